//! The seam between a turn and the way in which codex is run: what a turn asks of it, and what comes of that.
//!
//! Everything codex says on the way goes to the [`Emitter`]. Above this directory nobody knows how codex runs; in it
//! nobody knows the daemon, the queue of a workspace or its session file.

pub(crate) mod emitter;
pub(crate) mod exec;
mod follow;
mod recording;
mod usage;

pub(crate) use follow::thread_use;

use crate::canonical::{Telemetry, TurnUsage, Usage};
use crate::codex::failure::Refusal;
use crate::config::{Config, Paths};
use crate::error::{Error, Result};
use crate::mcp::Bridge;
use crate::os::CancelToken;
use emitter::Emitter;
use std::borrow::Cow;
use std::path::{Path, PathBuf};

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

/// The backend that the config chooses.
pub(crate) fn choose(_config: &Config) -> &'static dyn Backend {
    &exec::Exec
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
    pub(crate) tools: Option<&'a Bridge>,
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

/// What a turn's response tells of what it took.
#[derive(Clone, Debug, Default)]
pub(crate) struct Account {
    pub(crate) tokens: Tokens,
    pub(crate) telemetry: Telemetry,
}
