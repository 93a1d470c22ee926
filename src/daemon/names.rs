//! The method name of every request and notification, in one table.
//!
//! Names without `plexum` are MCP's. The others follow the pattern of the daemon's other methods
//! (`plexum/host/agent-state/read`, `notifications/plexum/channel/inbound`).

/// Request of the daemon (MCP): its first one. A later one reloads the config.
pub(super) const INITIALIZE: &str = "initialize";
/// Request of the daemon (MCP): checks that the plugin responds.
pub(super) const PING: &str = "ping";
/// Request of the daemon (MCP): sets the minimum level of the logs that it receives.
pub(super) const SET_LOG_LEVEL: &str = "logging/setLevel";
/// Request of the daemon: runs a turn.
pub(super) const STREAM: &str = "plexum/provider/stream";
/// Request of the daemon: sends another message of the user to a running turn.
pub(super) const STEER: &str = "plexum/provider/steer";
/// Request of the daemon: ends a turn.
pub(super) const CANCEL: &str = "plexum/provider/cancel";
/// Request of the daemon: lists codex's models.
pub(super) const MODELS: &str = "plexum/provider/models";
/// Request of the daemon: consumes tool calls.
pub(super) const MUTATE: &str = "plexum/session/mutate";
/// Notification of the daemon (MCP): ignored.
pub(super) const INITIALIZED: &str = "notifications/initialized";
/// Notification of the daemon: the tools of an agent have changed.
pub(super) const TOOLS_CHANGED: &str = "notifications/plexum/tools/changed";
/// Notification in both directions (MCP): the sender no longer waits for the response to a request.
pub(super) const CANCELLED: &str = "notifications/cancelled";
/// Notification of the plugin (MCP): a log message.
pub(super) const LOG: &str = "notifications/message";
/// Notification of the plugin: an event of a turn.
pub(super) const EVENT: &str = "notifications/plexum/provider/event";
/// Request of the plugin: calls one of the daemon's tools.
pub(super) const TOOL_CALL: &str = "plexum/host/tool/call";
