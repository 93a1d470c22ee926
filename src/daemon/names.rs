//! The name of every request and notification on the wire, in one table: a name learnt later is one line here.
//!
//! Those without `plexum` in them are MCP's. The others are built as the daemon's own are where one is known
//! (`plexum/host/agent-state/read`, `notifications/plexum/channel/inbound`).

/// Request of the daemon (MCP): the first one, and again for another look at the config.
pub(super) const INITIALIZE: &str = "initialize";
/// Request of the daemon (MCP): is the plugin there?
pub(super) const PING: &str = "ping";
/// Request of the daemon (MCP): the least level of the logs that it wants.
pub(super) const SET_LOG_LEVEL: &str = "logging/setLevel";
/// Request of the daemon: a turn.
pub(super) const STREAM: &str = "plexum/provider/stream";
/// Request of the daemon: more words of the user into a running turn.
pub(super) const STEER: &str = "plexum/provider/steer";
/// Request of the daemon: ends a turn.
pub(super) const CANCEL: &str = "plexum/provider/cancel";
/// Request of the daemon: the models that codex has.
pub(super) const MODELS: &str = "plexum/provider/models";
/// Request of the daemon: consumes tool calls.
pub(super) const MUTATE: &str = "plexum/session/mutate";
/// Notification of the daemon (MCP): nothing is done about it.
pub(super) const INITIALIZED: &str = "notifications/initialized";
/// Notification of the daemon: an agent's tools are others.
pub(super) const TOOLS_CHANGED: &str = "notifications/plexum/tools/changed";
/// Notification in both directions (MCP): whoever sent that request does not wait for it any more.
pub(super) const CANCELLED: &str = "notifications/cancelled";
/// Notification of the plugin (MCP): a log.
pub(super) const LOG: &str = "notifications/message";
/// Notification of the plugin: an event of a turn.
pub(super) const EVENT: &str = "notifications/plexum/provider/event";
/// Request of the plugin: a call of a tool that the daemon lends.
pub(super) const TOOL_CALL: &str = "plexum/host/tool/call";
