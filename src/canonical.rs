//! The daemon's types: what a provider is, the events of a turn, and what it cost.
//!
//! Pure data. The names and shapes are those of the wire contract (`man/plexum-openai-protocol.7`); how they
//! are framed is `plugin`'s business, and where they come from is `turn`'s.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// The version of the wire contract that this plugin speaks.
pub(crate) const CONTRACT: u64 = 2;
/// The plugin's name, as the daemon's `.plugins.allow` and the profile's directory spell it.
pub(crate) const PLUGIN: &str = "plexum-openai-provider";

/// What the plugin says of itself in the result of `initialize`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Introduction<'a> {
    /// The version of MCP that both sides speak from now on.
    protocol_version: &'static str,
    server_info: ServerInfo,
    capabilities: Capabilities<'a>,
}

#[derive(Debug, Serialize)]
struct ServerInfo {
    name: &'static str,
    version: &'static str,
}

#[derive(Debug, Serialize)]
struct Capabilities<'a> {
    logging: Empty,
    experimental: Experimental<'a>,
}

/// `{}`.
#[derive(Debug, Serialize)]
struct Empty {}

#[derive(Debug, Serialize)]
struct Experimental<'a> {
    plexum: Extension<'a>,
}

#[derive(Debug, Serialize)]
struct Extension<'a> {
    contract: u64,
    manifest: Manifest<'a>,
}

impl Introduction<'_> {
    /// The introduction in this version of MCP, with these advertised models.
    pub(crate) fn new<'a>(
        protocol_version: &'static str,
        models: &'a [String],
    ) -> Introduction<'a> {
        Introduction {
            protocol_version,
            server_info: ServerInfo {
                name: PLUGIN,
                version: env!("CARGO_PKG_VERSION"),
            },
            capabilities: Capabilities {
                logging: Empty {},
                experimental: Experimental {
                    plexum: Extension {
                        contract: CONTRACT,
                        manifest: Manifest::new(models),
                    },
                },
            },
        }
    }
}

/// The file name of the program in the plugin's directory.
pub(crate) const EXECUTABLE: &str = "plexum-openai-provider-plugin";

/// What the plugin is and offers; part of the result of `initialize`, and the file `manifest.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Manifest<'a> {
    name: &'static str,
    version: &'static str,
    activation: &'static str,
    executable: &'static str,
    contracts: Contracts<'a>,
}

#[derive(Debug, Serialize)]
struct Contracts<'a> {
    provider: Provider<'a>,
}

#[derive(Debug, Serialize)]
struct Provider<'a> {
    models: &'a [String],
}

impl Manifest<'_> {
    /// The manifest with these advertised models.
    pub(crate) fn new(models: &[String]) -> Manifest<'_> {
        Manifest {
            name: PLUGIN,
            version: env!("CARGO_PKG_VERSION"),
            activation: "lazy",
            executable: EXECUTABLE,
            contracts: Contracts {
                provider: Provider { models },
            },
        }
    }
}

/// Tokens, as the daemon counts them. `input_tokens` has the cached ones in it, as codex reports it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Usage {
    pub(crate) input_tokens: u64,
    pub(crate) output_tokens: u64,
    pub(crate) cache_read_tokens: u64,
    pub(crate) cache_write_tokens: u64,
    pub(crate) thinking_tokens: u64,
}

impl Usage {
    /// Both together.
    pub(crate) fn plus(self, other: Usage) -> Usage {
        Usage {
            input_tokens: self.input_tokens.saturating_add(other.input_tokens),
            output_tokens: self.output_tokens.saturating_add(other.output_tokens),
            cache_read_tokens: self
                .cache_read_tokens
                .saturating_add(other.cache_read_tokens),
            cache_write_tokens: self
                .cache_write_tokens
                .saturating_add(other.cache_write_tokens),
            thinking_tokens: self.thinking_tokens.saturating_add(other.thinking_tokens),
        }
    }

    /// What came on top of `before`; a counter that went back (codex started to count anew) counts as it is.
    pub(crate) fn since(self, before: Usage) -> Usage {
        let part = |now: u64, then: u64| now.checked_sub(then).unwrap_or(now);
        Usage {
            input_tokens: part(self.input_tokens, before.input_tokens),
            output_tokens: part(self.output_tokens, before.output_tokens),
            cache_read_tokens: part(self.cache_read_tokens, before.cache_read_tokens),
            cache_write_tokens: part(self.cache_write_tokens, before.cache_write_tokens),
            thinking_tokens: part(self.thinking_tokens, before.thinking_tokens),
        }
    }
}

/// What a turn has used, its sub-agents with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct TurnUsage {
    /// All of it.
    #[serde(flatten)]
    pub(crate) total: Usage,
    /// What of that the sub-agents used, where there were some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) subagents: Option<Usage>,
}

impl TurnUsage {
    /// The same, and what a sub-agent used.
    pub(crate) fn with_subagent(self, used: Usage) -> TurnUsage {
        TurnUsage {
            total: self.total.plus(used),
            subagents: Some(self.subagents.unwrap_or_default().plus(used)),
        }
    }
}

impl From<Usage> for TurnUsage {
    fn from(total: Usage) -> TurnUsage {
        TurnUsage {
            total,
            subagents: None,
        }
    }
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StopReason {
    EndTurn,
    Error,
    Cancelled,
}

/// How the thread of a turn came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ThreadState {
    /// There was none before.
    New,
    /// The one that the workspace's session file names.
    Resumed,
    /// codex no longer knew the stored one; a new one took over.
    Replaced,
}

/// Why a turn failed, for the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct TurnError {
    pub(crate) code: &'static str,
    pub(crate) message: String,
    pub(crate) retryable: bool,
    /// From when on it can succeed, in seconds since 1970, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retry_at: Option<u64>,
}

/// Where a turn stands, where that is not what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    /// It waits for its workspace.
    Queued,
    /// It no longer does.
    Running,
    /// codex tries a request again.
    Retrying,
    /// codex is making the conversation shorter.
    Compacting,
    /// codex has made it shorter.
    Compacted,
}

/// One line of codex's to-do list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct PlanItem {
    pub(crate) text: String,
    /// codex's word: `pending`, `in_progress`, `completed`.
    pub(crate) status: String,
}

/// One thing that happened in a turn. `tool_use` and `tool_result` are not here: they are written from the rollout
/// as JSON at once, codex's own JSON in them as it stood (`rollout::calls`).
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum TurnEvent<'a> {
    /// The first event of every turn.
    MessageStart,
    /// Text of the assistant, of its message of this number in the turn, from 0.
    TextDelta { text: Cow<'a, str>, message: usize },
    /// A summary of what the model thought.
    ThinkingDelta { text: Cow<'a, str> },
    /// What somebody who waits would want to know.
    Status {
        state: Status,
        #[serde(skip_serializing_if = "Option::is_none")]
        detail: Option<Cow<'a, str>>,
        /// The number of a message of which a part was emitted and that does not go on.
        #[serde(skip_serializing_if = "Option::is_none")]
        discarded_message: Option<usize>,
    },
    /// codex's list of what is to be done, whenever it changes.
    Plan { items: &'a [PlanItem] },
    /// Why the turn failed; at most one a turn.
    Error { error: &'a TurnError },
    /// The last event of every turn.
    MessageEnd {
        stop_reason: StopReason,
        usage: TurnUsage,
    },
}

/// How much of what the model can hold the thread takes now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct ContextUse {
    /// As the last request counted them; after a compaction without one, codex's own estimate.
    pub(crate) tokens: u64,
    pub(crate) window: Option<u64>,
}

/// One of the windows of an account's limits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RateWindow {
    pub(crate) used_percent: f64,
    #[serde(default)]
    pub(crate) window_minutes: Option<u64>,
    /// In seconds since 1970.
    #[serde(default)]
    pub(crate) resets_at: Option<u64>,
}

/// The limits of the account, as the provider reported them last. At least one of them is there.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct RateLimits {
    pub(crate) primary: Option<RateWindow>,
    pub(crate) secondary: Option<RateWindow>,
}

/// What codex recorded of a turn's requests besides their tokens. What it did not record is `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Telemetry {
    pub(crate) context: Option<ContextUse>,
    /// How often the conversation was compacted in this turn.
    pub(crate) compactions: u64,
    pub(crate) rate_limits: Option<RateLimits>,
    /// The model that codex asked.
    pub(crate) model: Option<String>,
}

/// How a turn ended, in full: the result of a stream, and the last line of `turn --json`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct TurnResult {
    pub(crate) stop_reason: StopReason,
    pub(crate) thread_id: Option<String>,
    pub(crate) thread_state: ThreadState,
    /// Of this turn alone.
    pub(crate) usage: TurnUsage,
    /// Of the thread so far; `None` where that is not known. A sub-agent is a thread of its own.
    pub(crate) thread_usage: Option<Usage>,
    #[serde(flatten)]
    pub(crate) telemetry: Telemetry,
    /// That of the `error` event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<TurnError>,
}
