//! The daemon's tools of a turn.
//!
//! They can change at any time: while the turn waits for its workspace, and while codex runs. A change never blocks on
//! the turn.

use super::Context;
use crate::backend::emitter::Emitter;
use crate::codex::find;
use crate::config::McpRegistration;
use crate::error::{Error, Kind, Result};
use crate::mcp::{self, Bridge, BridgeSettings, RegistrationMode, Tool, ToolHost, ToolUpdater};
use crate::os::CancelToken;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A turn's tools and the host that serves their calls.
pub(crate) struct Tools {
    host: Arc<dyn ToolHost>,
    state: Mutex<ToolsState>,
}

struct ToolsState {
    /// The newest tools, until they are exposed.
    tools: Vec<Tool>,
    /// `tools` was changed after it was copied for exposing.
    changed: bool,
    /// codex was started when the list was empty.
    started_without_tools: bool,
    /// `Some` once the tools are exposed.
    updater: Option<ToolUpdater>,
}

impl Tools {
    pub(crate) fn new(tools: Vec<Tool>, host: Arc<dyn ToolHost>) -> Tools {
        Tools {
            host,
            state: Mutex::new(ToolsState {
                tools,
                changed: false,
                started_without_tools: false,
                updater: None,
            }),
        }
    }

    /// Replaces the tools. Returns warnings: about the new tools if the old ones are exposed already, or that codex was
    /// started without tools.
    pub(crate) fn change(&self, tools: Vec<Tool>) -> Vec<String> {
        let mut state = self.state();
        if let Some(updater) = state.updater.clone() {
            drop(state);
            return updater.change(tools);
        }
        let too_late = state.started_without_tools && !tools.is_empty();
        state.tools = tools;
        state.changed = true;
        let warning = "the turn was started without tools: new tools are exposed to codex from the next turn on";
        too_late.then(|| warning.to_owned()).into_iter().collect()
    }

    /// Exposes the tools to the codex that will be started, or to a running one that already has the same tools through
    /// `kept`. Without tools there is no bridge.
    pub(super) fn expose(
        &self,
        agent_id: &str,
        program: &Path,
        kept: Option<Arc<Bridge>>,
        context: &Context,
        cancel: &CancelToken,
        emitter: &mut Emitter<'_>,
    ) -> Result<Option<Arc<Bridge>>> {
        let mode = match context.config.mcp_registration {
            McpRegistration::Turn => RegistrationMode::Turn,
            McpRegistration::Persistent => RegistrationMode::Persistent,
            McpRegistration::Off => return Ok(None),
        };
        let tools = {
            let mut state = self.state();
            state.changed = false;
            state.started_without_tools = state.tools.is_empty();
            state.tools.clone()
        };
        if tools.is_empty() {
            return Ok(None);
        }
        let settings = BridgeSettings {
            mode,
            profile: context.places.profile.clone(),
            runtime_dir: mcp::runtime_dir(),
            executable: executable(mode, &context.places.profile)?,
            codex_home: context.places.codex_home(&context.config),
            codex: program.to_owned(),
            codex_env: find::environment(&context.config, &context.places),
            tool_timeout: context.config.tool_timeout,
            cancel: cancel.clone(),
        };
        let bridge = match kept {
            Some(kept) if kept.serves(agent_id, &tools, &settings) => {
                kept.begin_turn(Arc::clone(&self.host));
                kept
            }
            _ => {
                let host = Arc::clone(&self.host);
                Arc::new(Bridge::start(agent_id, tools, host, &settings)?)
            }
        };
        for warning in bridge.warnings() {
            emitter.warn(warning);
        }
        let updater = bridge.updater();
        let mut state = self.state();
        let newer = state.changed.then(|| std::mem::take(&mut state.tools));
        state.updater = Some(updater.clone());
        drop(state);
        for warning in newer.map(|tools| updater.change(tools)).unwrap_or_default() {
            emitter.warn(&warning);
        }
        Ok(Some(bridge))
    }

    fn state(&self) -> MutexGuard<'_, ToolsState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The path by which codex can start this program.
fn executable(mode: RegistrationMode, profile: &Path) -> Result<PathBuf> {
    let path = std::env::current_exe().map_err(|error| {
        if !crate::os::has_proc() {
            let message = "cannot determine this program's own path: '/proc' is not mounted";
            return Error::new(Kind::McpFailed, message).hint("mount it: mount -t proc proc /proc");
        }
        Error::os(
            Kind::McpFailed,
            "cannot determine this program's own path",
            error,
        )
    })?;
    if path.exists() {
        return Ok(path);
    }
    // An update has replaced the file. The program at that path may use another version of the protocol between the two
    // processes. A copy of the running program exists as long as this process, which is enough for a turn.
    let name = path.to_string_lossy();
    let replaced = PathBuf::from(name.strip_suffix(" (deleted)").unwrap_or(&name));
    if mode == RegistrationMode::Persistent {
        return Ok(replaced);
    }
    match mcp::program_copy(mcp::runtime_dir().as_deref(), profile) {
        // For example, the runtime directory is full or `noexec`.
        Err(error) if replaced.exists() => {
            log::debug!("{error}; codex is given '{}' instead", replaced.display());
            Ok(replaced)
        }
        copied => copied,
    }
}
