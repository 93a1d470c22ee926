//! The types of the wire contract with the daemon: the manifest, the events of a turn, its usage and result.
//!
//! Pure data; names and shapes are specified in `man/plexum-openai-protocol.7`. `daemon` frames them, and `turn` and
//! `backend` produce them.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// The version of the wire contract that this plugin implements.
pub(crate) const CONTRACT: u64 = 2;
/// The plugin's name in the daemon's `.plugins.allow`, and its directory's name in the profile.
pub(crate) const PLUGIN: &str = "plexum-openai-provider";

/// The result of `initialize`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InitializeResult<'a> {
    /// The negotiated version of MCP.
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

/// Serializes as `{}`.
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

impl InitializeResult<'_> {
    /// The result for this version of MCP and these advertised models.
    pub(crate) fn new<'a>(
        protocol_version: &'static str,
        models: &'a [String],
    ) -> InitializeResult<'a> {
        InitializeResult {
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

/// The file name of the executable in the plugin's directory.
pub(crate) const EXECUTABLE: &str = "plexum-openai-provider-plugin";

/// The plugin's manifest: part of the result of `initialize`, and the content of `manifest.json`.
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

/// Token counts. `input_tokens` includes the cached ones, as codex reports them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Usage {
    pub(crate) input_tokens: u64,
    pub(crate) output_tokens: u64,
    pub(crate) cache_read_tokens: u64,
    pub(crate) cache_write_tokens: u64,
    pub(crate) thinking_tokens: u64,
}

impl Usage {
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

    /// The increase since `before`. A counter that is lower than before was reset by codex and counts in full.
    pub(crate) fn since(self, before: Usage) -> Usage {
        let increase = |now: u64, then: u64| now.checked_sub(then).unwrap_or(now);
        Usage {
            input_tokens: increase(self.input_tokens, before.input_tokens),
            output_tokens: increase(self.output_tokens, before.output_tokens),
            cache_read_tokens: increase(self.cache_read_tokens, before.cache_read_tokens),
            cache_write_tokens: increase(self.cache_write_tokens, before.cache_write_tokens),
            thinking_tokens: increase(self.thinking_tokens, before.thinking_tokens),
        }
    }
}

/// The tokens used by a turn, including its sub-agents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct TurnUsage {
    #[serde(flatten)]
    pub(crate) total: Usage,
    /// The sub-agents' share of the total; `None` if there were no sub-agents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) subagents: Option<Usage>,
}

impl TurnUsage {
    /// Adds a sub-agent's usage.
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

/// The origin of a turn's thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ThreadState {
    /// The workspace had no thread.
    New,
    /// The thread in the workspace's session file.
    Resumed,
    /// A new thread in place of the stored one, which codex no longer knew.
    Replaced,
}

/// Why a turn failed, for the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct TurnError {
    pub(crate) code: &'static str,
    pub(crate) message: String,
    pub(crate) retryable: bool,
    /// When a retry can succeed, in seconds since 1970, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retry_at: Option<u64>,
}

/// A change of a turn's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    /// It waits for its workspace.
    Queued,
    /// It has its workspace.
    Running,
    /// codex retries a request.
    Retrying,
    /// codex has started to compact the conversation.
    Compacting,
    /// codex has compacted the conversation.
    Compacted,
}

/// An entry of codex's to-do list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct PlanItem {
    pub(crate) text: String,
    /// As codex reports it: `pending`, `in_progress` or `completed`.
    pub(crate) status: String,
}

/// An event of a turn. `tool_use` and `tool_result` are missing here: `rollout::calls` writes them directly as JSON,
/// with codex's own JSON unchanged.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum TurnEvent<'a> {
    /// The first event of every turn.
    MessageStart,
    /// Text of the assistant; `message` is the number of its message in the turn, from 0.
    TextDelta { text: Cow<'a, str>, message: usize },
    /// A summary of the model's reasoning.
    ThinkingDelta { text: Cow<'a, str> },
    /// Progress, for display.
    Status {
        state: Status,
        #[serde(skip_serializing_if = "Option::is_none")]
        detail: Option<Cow<'a, str>>,
        /// The number of a partly emitted message that will not be continued.
        #[serde(skip_serializing_if = "Option::is_none")]
        discarded_message: Option<usize>,
    },
    /// codex's to-do list, whenever it changes.
    Plan { items: &'a [PlanItem] },
    /// Why the turn failed; at most once in a turn.
    Error { error: &'a TurnError },
    /// The last event of every turn.
    MessageEnd {
        stop_reason: StopReason,
        usage: TurnUsage,
    },
}

/// How much of the model's context window the thread occupies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct ContextUse {
    /// As counted by the last request; codex's estimate if a compaction came after that.
    pub(crate) tokens: u64,
    pub(crate) window: Option<u64>,
}

/// A window of an account's rate limits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RateWindow {
    pub(crate) used_percent: f64,
    #[serde(default)]
    pub(crate) window_minutes: Option<u64>,
    /// In seconds since 1970.
    #[serde(default)]
    pub(crate) resets_at: Option<u64>,
}

/// The account's rate limits, as the provider reported them last. At least one is `Some`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct RateLimits {
    pub(crate) primary: Option<RateWindow>,
    pub(crate) secondary: Option<RateWindow>,
}

/// What codex recorded of a turn's requests besides their tokens; `None` if it recorded nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Telemetry {
    pub(crate) context: Option<ContextUse>,
    /// How often the conversation was compacted in this turn.
    pub(crate) compactions: u64,
    pub(crate) rate_limits: Option<RateLimits>,
    /// The model that codex used.
    pub(crate) model: Option<String>,
}

/// The result of a turn: the result of a stream, and the last line of `turn --json`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct TurnResult {
    pub(crate) stop_reason: StopReason,
    pub(crate) thread_id: Option<String>,
    pub(crate) thread_state: ThreadState,
    /// Usage of this turn alone.
    pub(crate) usage: TurnUsage,
    /// Usage of the whole thread, if known; without sub-agents, which have their own threads.
    pub(crate) thread_usage: Option<Usage>,
    #[serde(flatten)]
    pub(crate) telemetry: Telemetry,
    /// The same as in the `error` event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<TurnError>,
}
