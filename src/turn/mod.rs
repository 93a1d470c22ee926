//! A turn, from its request to its result.
//!
//! The caller passes an [`EventSink`](crate::backend::emitter::EventSink): the daemon's outbox or a printer for a
//! terminal, so that both get the same events. Nothing here depends on JSON-RPC or on how codex is run.
//!
//! A turn that is refused before codex starts returns an error and emits no event; after the first event it always ends
//! with a result.

mod exclude;
pub(crate) mod images;
pub(crate) mod prompt;
pub(crate) mod queue;
mod run;
pub(crate) mod served;
pub(crate) mod session;
pub(crate) mod thread;
mod tools;

pub(crate) use prompt::{History, PromptBlock, plain_text};
pub(crate) use run::{NOT_UTF8, has_utf8_path, prepare_workspace, run};
pub(crate) use tools::Tools;

use crate::backend::Backends;
use crate::config::Config;
use crate::paths::Paths;
use std::sync::Arc;

/// The request for a turn.
#[derive(Clone, Debug, Default)]
pub(crate) struct TurnRequest {
    /// The daemon's name of the model; if empty, codex chooses.
    pub(crate) model: String,
    pub(crate) agent_id: Option<String>,
    pub(crate) system: Option<String>,
    /// The blocks of each new message.
    pub(crate) prompt: Vec<Vec<PromptBlock>>,
    /// The conversation before them.
    pub(crate) history: History,
    /// What of the request was changed or left out, a sentence each.
    pub(crate) warnings: Vec<String>,
    pub(crate) thread: ThreadChoice,
    /// The JSON Schema for the last text, as JSON.
    pub(crate) output_schema: Option<String>,
    /// The provider's name of the reasoning effort.
    pub(crate) reasoning_effort: Option<String>,
    /// The codex executable, instead of the config's.
    pub(crate) binary: Option<String>,
}

/// Which thread a turn is in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum ThreadChoice {
    /// The thread in the session file, or a new one without that.
    #[default]
    Stored,
    /// A new thread, regardless of the session file.
    New,
    /// The thread with this id, in lower case. It is stored in the session file.
    Adopted(String),
}

/// The state that all turns of a process share.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) places: Paths,
    pub(crate) backends: Arc<Backends>,
}
