//! The seam between a turn and the way in which codex is run: what a turn asks of it, and what comes of that.
//!
//! Everything codex says on the way goes to the [`Emitter`]. Above this directory nobody knows how codex runs; in it
//! nobody knows the daemon, the queue of a workspace or its session file.

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

pub(crate) use app_server::control::{Held, ask_to_release};
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

/// The ways of running codex, and what they keep from one turn to the next.
#[derive(Debug, Default)]
pub(crate) struct Backends {
    app_server: AppServer,
}

impl Backends {
    /// The backend that the config chooses.
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

    /// Lets go of the thread of this workspace, whose path is canonical, until what this gives is resumed or dropped: no
    /// turn runs there meanwhile. `None` where it was not held.
    pub(crate) fn suspend(&self, workspace: &Path) -> Option<Suspended> {
        self.app_server.pool.kept().suspend(workspace)
    }

    /// Ends everything that is kept, and keeps nothing any more.
    pub(crate) fn end(&self) {
        self.app_server.pool.end();
    }
}

/// A workspace in a turn. Dropped, what the backend keeps of it waits for the next one.
pub(crate) struct Claim<'a> {
    backends: &'a Backends,
    workspace: &'a Path,
    config: &'a Config,
    places: &'a Paths,
    /// The lock on the workspace, which stays with what is kept.
    pub(crate) lock: Option<FileLock>,
}

impl Claim<'_> {
    /// What lends the daemon's tools to the codex that is kept.
    pub(crate) fn tools(&self) -> Option<Arc<Bridge>> {
        self.backends.app_server.pool.tools(self.workspace)
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let (time, most) = (self.config.warm, self.config.warm_max);
        let pool = &self.backends.app_server.pool;
        pool.rest(self.workspace, self.lock.take(), time, most, self.places);
    }
}

/// What a turn asks of codex.
pub(crate) struct TurnSpec<'a> {
    pub(crate) config: &'a Config,
    pub(crate) places: &'a Paths,
    /// The canonical path of a directory that is there.
    pub(crate) workspace: &'a Path,
    /// The codex executable.
    pub(crate) program: &'a Path,
    /// The lock that keeps other processes out of the workspace, where it could be had.
    pub(crate) lock: Option<&'a Path>,
    /// The thread to go on with; `None` begins one.
    pub(crate) thread: Option<&'a str>,
    /// The model as the daemon names it; empty leaves the choice to codex.
    pub(crate) model: &'a str,
    pub(crate) system: Option<&'a str>,
    /// How much the model is to think, in the provider's word for it.
    pub(crate) reasoning_effort: Option<&'a str>,
    /// The file of the JSON Schema that the last text is to follow.
    pub(crate) output_schema: Option<&'a Path>,
    pub(crate) images: &'a [PathBuf],
    pub(crate) prompt: Cow<'a, str>,
    /// The daemon's tools, where it lends some.
    pub(crate) tools: Option<&'a Arc<Bridge>>,
    /// What the user says meanwhile.
    pub(crate) steering: Option<&'a Steering>,
    /// Called once, with the id of the thread that codex works on, unless it is another than was asked for. Gives a
    /// warning for each thing that could not be stored.
    pub(crate) on_thread: &'a dyn Fn(&str) -> Vec<String>,
}

/// What came of a turn.
pub(crate) struct Outcome {
    pub(crate) status: TurnStatus,
    /// The thread that codex said it works on.
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
    /// codex does not go on with the thread that was asked for, and did nothing.
    Refused(Refusal),
}

/// Tokens of a turn and of its thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tokens {
    pub(crate) turn: TurnUsage,
    /// `None` where it is not known.
    pub(crate) thread: Option<Usage>,
}

/// What a turn's response reports of its cost.
#[derive(Clone, Debug, Default)]
pub(crate) struct Account {
    pub(crate) tokens: Tokens,
    pub(crate) telemetry: Telemetry,
}

/// The error of a codex that could not be executed, by the operating system's number for it.
fn not_started(program: &Path, config_file: &Path, errno: i32) -> Error {
    let error = io::Error::from_raw_os_error(errno);
    let hint = format!("set \"binary\" in {}", config_file.display());
    let what = format!("cannot start codex '{}'", program.display());
    match Errno::from_raw_os_error(errno) {
        Errno::NOENT => Error::new(
            Kind::CodexMissing,
            format!("{what}: it, or the interpreter that it needs, is not there"),
        )
        .hint(hint),
        _ if is_exhausted(&error) => Error::os(Kind::CodexFailed, what, error),
        Errno::TOOBIG => Error::os(Kind::CodexFailed, what, error)
            .hint("shorten \"extra_args\" or \"env\" in the config"),
        _ => Error::os(Kind::CodexMissing, what, error).hint(hint),
    }
}
