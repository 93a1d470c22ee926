//! How to start a server for a turn, and the parameters of its thread.

use crate::backend::TurnSpec;
use crate::backend::child::CodexCommand;
use crate::backend::exec::command::{ExtraArgs, model_arg};
use crate::codex::find::{environment, removed_from_environment};
use crate::codex::toml;
use crate::config::{Config, Sandbox};
use crate::mcp::Bridge;
use crate::paths::Paths;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How to start a server and load its thread.
#[derive(Clone, Debug)]
pub(super) struct Recipe {
    pub(super) command: CodexCommand,
    /// The lock file of the workspace, where it could be taken.
    pub(super) lock: Option<PathBuf>,
    /// The bridge to the daemon's tools; it lives as long as the server.
    pub(super) tools: Option<Arc<Bridge>>,
    pub(super) home: PathBuf,
    pub(super) workspace: PathBuf,
    pub(super) settings: ServerSettings,
    /// The thread to load; `None` starts a new one.
    pub(super) thread: Option<String>,
    /// For the hint of an error.
    pub(super) config_file: PathBuf,
}

/// The parameters of a loaded thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServerSettings {
    /// The model in codex's name for it; `None` leaves the choice to codex.
    pub(super) model: Option<String>,
    pub(super) system: Option<String>,
    sandbox: Sandbox,
    /// The reasoning effort, unless `extra_args` set it. It is sent with each turn, but persists in the thread.
    pub(super) effort: Option<String>,
}

impl ServerSettings {
    /// The sandbox as `thread/resume` takes it.
    pub(super) fn sandbox_mode(&self) -> &'static str {
        match self.sandbox {
            Sandbox::DangerFullAccess => "danger-full-access",
            Sandbox::WorkspaceWrite => "workspace-write",
            Sandbox::ReadOnly => "read-only",
        }
    }

    /// The sandbox as `turn/start` takes it.
    pub(super) fn sandbox_policy(&self) -> Value {
        let policy = match self.sandbox {
            Sandbox::DangerFullAccess => "dangerFullAccess",
            Sandbox::WorkspaceWrite => "workspaceWrite",
            Sandbox::ReadOnly => "readOnly",
        };
        json!({"type": policy})
    }
}

/// The part of the config that only `codex exec` supports, as text for a message.
pub(crate) fn only_by_exec(config: &Config) -> Option<String> {
    let extra = ExtraArgs::of(&config.extra_args, &mut Vec::new());
    if let Err(argument) = extra.check_common() {
        let what = format!("\"extra_args\" has '{argument}', which only 'codex exec' accepts");
        return Some(what);
    }
    // A thread can only get it by a request that writes codex's config.
    (config.sandbox == Sandbox::WorkspaceWrite)
        .then(|| "\"sandbox\" is \"workspace-write\"".to_owned())
}

impl Recipe {
    /// The recipe for this turn. `Err` with the reason where only `codex exec` can run it.
    pub(super) fn of(spec: &TurnSpec<'_>, warnings: &mut Vec<String>) -> Result<Recipe, String> {
        let config = spec.config;
        if let Some(why) = only_by_exec(config) {
            return Err(format!("{why} in the config"));
        }
        let extra = ExtraArgs::of(&config.extra_args, warnings);
        if let Some(path) = spec.images.iter().find(|path| path.to_str().is_none()) {
            return Err(format!("the path '{}' is not valid UTF-8", path.display()));
        }
        let mut args: Vec<OsString> = vec!["app-server".into()];
        for setting in [
            // Goals set by the model would start turns on their own.
            "features.goals=false",
            "features.unbounded_connection_retries=false",
        ] {
            args.extend(["-c".into(), setting.into()]);
        }
        let model_args = config.model_args.get(spec.model);
        if let Some(tier) = model_args.and_then(|args| args.service_tier.as_deref()) {
            let setting = format!("service_tier={}", toml::string(tier));
            args.extend(["-c".into(), setting.into()]);
        }
        args.extend(spec.tools.map(|it| it.codex_args()).unwrap_or_default());
        // After the others, so that they take precedence.
        args.extend(extra.args().iter().map(Into::into));
        let effort = model_args.and_then(|args| args.reasoning_effort.as_deref());
        let effort = spec.reasoning_effort.or(effort);
        let effort = effort.filter(|_| !extra.sets("model_reasoning_effort"));
        let system = spec
            .system
            .filter(|_| !extra.sets("developer_instructions"));
        Ok(Recipe {
            command: command(spec.program, args, config, spec.places),
            lock: spec.lock.map(Path::to_owned),
            tools: spec.tools.map(Arc::clone),
            home: spec.places.codex_home(config),
            workspace: spec.workspace.to_owned(),
            settings: ServerSettings {
                model: model_arg(config, spec.model).map(str::to_owned),
                system: system.map(str::to_owned),
                sandbox: config.sandbox,
                effort: effort.map(str::to_owned),
            },
            thread: spec.thread.map(str::to_owned),
            config_file: spec.places.config_file(),
        })
    }
}

/// The command of a server with these arguments.
pub(super) fn command(
    program: &Path,
    args: Vec<OsString>,
    config: &Config,
    places: &Paths,
) -> CodexCommand {
    CodexCommand {
        program: program.to_owned(),
        args,
        // The workspace can be removed and created again while the server runs.
        directory: "/".into(),
        env: environment(config, places),
        env_removed: removed_from_environment(config),
        stdin: Some(String::new()),
        keeps_stdin: true,
        warnings: Vec::new(),
    }
}
