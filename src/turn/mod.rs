//! A turn from request to answer.
//!
//! Whoever asks for a turn passes a [`Sink`](crate::backend::emitter::EventSink) for its events: the daemon's outbox or a
//! printer for a terminal, so that what a person debugs is what the daemon gets. Nothing here knows JSON-RPC, or in
//! which way codex is run.
//!
//! What can be refused before codex starts comes back as an error and no event was emitted; after the first event
//! the turn always ends with a response.

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
pub(crate) use run::{prepare_workspace, run};
pub(crate) use tools::Tools;

use crate::backend::Backends;
use crate::config::Config;
use crate::paths::Paths;
use std::sync::Arc;

/// What a turn is asked to do.
#[derive(Clone, Debug, Default)]
pub(crate) struct TurnRequest {
    /// The model as the daemon names it; empty leaves the choice to codex.
    pub(crate) model: String,
    pub(crate) agent_id: Option<String>,
    pub(crate) system: Option<String>,
    /// The blocks of each message that is new.
    pub(crate) prompt: Vec<Vec<PromptBlock>>,
    /// The conversation before them.
    pub(crate) history: History,
    /// What of the request could not be taken as it stands, one sentence each.
    pub(crate) warnings: Vec<String>,
    /// Which thread the turn is in.
    pub(crate) thread: ThreadChoice,
    /// The JSON Schema that the last text is to follow, as JSON.
    pub(crate) output_schema: Option<String>,
    /// How much the model is to think, in the provider's word for it.
    pub(crate) reasoning_effort: Option<String>,
    /// The codex executable, instead of the config's.
    pub(crate) binary: Option<String>,
}

/// Which thread a turn is in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum ThreadChoice {
    /// The workspace's own, or a new one where it has none.
    #[default]
    Stored,
    /// A new one, whatever the session file says.
    New,
    /// The one with this id, in lower case, which becomes the workspace's.
    Adopted(String),
}

/// What every turn of a process shares.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) places: Paths,
    pub(crate) backends: Arc<Backends>,
}
