//! The interface between a turn and the way in which codex is run: what a turn passes to it, and what it returns.
//!
//! Events of a running turn go to the [`Emitter`]. Code above this directory does not depend on how codex runs; code in
//! it does not depend on the daemon, the queue of a workspace or its session file.

pub(crate) mod app_server;
pub(crate) mod child;
pub(crate) mod emitter;
pub(crate) mod exec;
mod follow;
pub(crate) mod guard;
mod recording;
mod reporter;
pub(crate) mod steering;
mod usage;
mod version;

pub(crate) use app_server::control::{ReleaseTarget, request_release};
pub(crate) use app_server::models::list_models;
pub(crate) use app_server::pool::Suspended;
pub(crate) use app_server::recipe::only_by_exec;
pub(crate) use follow::thread_use;

use crate::canonical::{Telemetry, TurnUsage, Usage};
use crate::codex::failure::Refusal;
use crate::config::{BackendChoice, Config};
use crate::error::{Error, Kind, Result, is_exhausted};
use crate::mcp::Bridge;
use crate::os::{CancelToken, Errno, FileLock};
use crate::paths::Paths;
use app_server::AppServer;
use emitter::Emitter;
use exec::Exec;
use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use steering::Steering;

/// A way of running codex.
pub(crate) trait Backend: Send + Sync {
    /// Runs one turn on the caller's thread; events are emitted in the contract's order.
    ///
    /// # Errors
    /// codex could not be started; nothing was emitted then.
    fn run(
        &self,
        spec: &TurnSpec<'_>,
        cancel: &CancelToken,
        emitter: &mut Emitter<'_>,
    ) -> Result<Outcome>;
}

/// All backends, and the state that they keep between turns.
#[derive(Debug, Default)]
pub(crate) struct Backends {
    app_server: AppServer,
}

impl Backends {
    /// The backend that the config selects.
    pub(crate) fn choose(&self, config: &Config) -> &dyn Backend {
        match config.backend {
            BackendChoice::Exec => &Exec,
            BackendChoice::AppServer => &self.app_server,
        }
    }

    /// Begins a turn in this workspace, whose path is canonical.
    pub(crate) fn claim<'a>(
        &'a self,
        workspace: &'a Path,
        config: &'a Config,
        places: &'a Paths,
        cancel: &CancelToken,
    ) -> Claim<'a> {
        let lock = self.app_server.pool.claim(workspace, cancel);
        if config.backend == BackendChoice::Exec
            && let Some(server) = self.app_server.pool.take(workspace)
        {
            server.close();
        }
        Claim {
            backends: self,
            workspace,
            config,
            places,
            lock,
        }
    }

    /// Releases the thread of this workspace, whose path is canonical, until the result is resumed or dropped; no turn
    /// runs there meanwhile. `None` where the thread was not held.
    pub(crate) fn suspend(&self, workspace: &Path) -> Option<Suspended> {
        self.app_server.pool.handle().suspend(workspace)
    }

    /// Ends all kept processes; none are kept from now on.
    pub(crate) fn end(&self) {
        self.app_server.pool.end();
    }
}

/// A workspace during a turn. When it is dropped, the backend keeps its process for the next turn.
pub(crate) struct Claim<'a> {
    backends: &'a Backends,
    workspace: &'a Path,
    config: &'a Config,
    places: &'a Paths,
    /// The lock on the workspace, which is held as long as a process is kept.
    pub(crate) lock: Option<FileLock>,
}

impl Claim<'_> {
    /// The bridge to the daemon's tools of the kept process.
    pub(crate) fn tools(&self) -> Option<Arc<Bridge>> {
        self.backends.app_server.pool.tools(self.workspace)
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let (time, most) = (self.config.warm, self.config.warm_max);
        let pool = &self.backends.app_server.pool;
        pool.end_turn(self.workspace, self.lock.take(), time, most, self.places);
    }
}

/// The parameters of a turn.
pub(crate) struct TurnSpec<'a> {
    pub(crate) config: &'a Config,
    pub(crate) places: &'a Paths,
    /// The canonical path of an existing directory.
    pub(crate) workspace: &'a Path,
    /// The codex executable.
    pub(crate) program: &'a Path,
    /// The lock file that keeps other processes out of the workspace, where it could be taken.
    pub(crate) lock: Option<&'a Path>,
    /// The id of the thread to resume; `None` starts a new one.
    pub(crate) thread: Option<&'a str>,
    /// The model as the daemon names it; empty leaves the choice to codex.
    pub(crate) model: &'a str,
    pub(crate) system: Option<&'a str>,
    /// The reasoning effort, in the provider's terms.
    pub(crate) reasoning_effort: Option<&'a str>,
    /// A file with the JSON Schema for the last message.
    pub(crate) output_schema: Option<&'a Path>,
    pub(crate) images: &'a [PathBuf],
    pub(crate) prompt: Cow<'a, str>,
    /// The bridge to the daemon's tools, if there are any.
    pub(crate) tools: Option<&'a Arc<Bridge>>,
    /// Messages of the user during the turn.
    pub(crate) steering: Option<&'a Steering>,
    /// Called once, with the id of the thread that codex works on, unless it is another one than was asked for. Returns
    /// a warning for each thing that could not be stored.
    pub(crate) on_thread: &'a dyn Fn(&str) -> Vec<String>,
}

/// The result of a turn.
pub(crate) struct Outcome {
    pub(crate) status: TurnStatus,
    /// The thread that codex reported.
    pub(crate) thread: Option<String>,
    pub(crate) account: Account,
}

impl Outcome {
    /// codex was not started.
    pub(crate) fn not_started(status: TurnStatus) -> Outcome {
        Outcome {
            status,
            thread: None,
            account: Account::default(),
        }
    }
}

/// How a turn ended.
pub(crate) enum TurnStatus {
    Completed,
    Cancelled,
    Failed(Error),
    /// codex refused to resume the thread, and did nothing.
    Refused(Refusal),
}

/// Tokens of a turn and of its thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tokens {
    pub(crate) turn: TurnUsage,
    /// `None` where it is not known.
    pub(crate) thread: Option<Usage>,
}

/// What a turn's response reports beside its status.
#[derive(Clone, Debug, Default)]
pub(crate) struct Account {
    pub(crate) tokens: Tokens,
    pub(crate) telemetry: Telemetry,
}

/// The error of a codex that could not be executed, by its errno.
fn not_started(program: &Path, config_file: &Path, errno: i32) -> Error {
    let error = io::Error::from_raw_os_error(errno);
    let hint = format!("set \"binary\" in {}", config_file.display());
    let what = format!("cannot start codex '{}'", program.display());
    match Errno::from_raw_os_error(errno) {
        Errno::NOENT => Error::new(
            Kind::CodexMissing,
            format!("{what}: it, or the interpreter that it needs, does not exist"),
        )
        .hint(hint),
        _ if is_exhausted(&error) => Error::os(Kind::CodexFailed, what, error),
        Errno::TOOBIG => Error::os(Kind::CodexFailed, what, error)
            .hint("shorten \"extra_args\" or \"env\" in the config"),
        _ => Error::os(Kind::CodexMissing, what, error).hint(hint),
    }
}
