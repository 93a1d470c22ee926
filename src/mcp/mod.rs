//! The daemon's tools as an MCP server for codex.
//!
//! For a turn with tools, a [`Bridge`] listens on a unix socket, codex starts `plexum-openai mcp-host`, and that
//! process ([`proxy`]) only copies bytes between codex and the socket. The MCP server itself ([`session`]) runs here in
//! the plugin, where the tools and the daemon are. So the process that codex starts has little that can fail, and MCP
//! is implemented in one place.
//!
//! The daemon's JSON-RPC is not used here: calls go to a [`ToolHost`]. codex is told of the server in one of two ways:
//! by arguments for the turn's own codex ([`Bridge::codex_args`]), or by `codex mcp add`, which writes its config file
//! (`register`). The turn's codex itself is started elsewhere.

mod block;
mod bridge;
pub(crate) mod catalogue;
mod content;
mod names;
pub(crate) mod proxy;
mod register;
mod schema;
pub(crate) mod session;
mod socket;
mod version;

pub(crate) use bridge::{Bridge, ToolUpdater};
pub(crate) use names::ToolNames;
pub(crate) use socket::{
    check as check_runtime_directory, connect_privately, listen_privately,
    locked as lock_runtime_directory, place as runtime_place, program_copy,
    short_place as short_runtime_place,
};
pub(crate) use version::ProtocolVersion;

use crate::error::Error;
use crate::os::CancelToken;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// A tool of the daemon, as in `tools` of a request.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Tool {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) description: Option<String>,
    /// A JSON schema. One that is not of an object is replaced by one that allows any object.
    #[serde(default)]
    pub(crate) input_schema: Option<Box<RawValue>>,
}

/// A call of one of the tools by codex's model.
#[derive(Debug)]
pub(crate) struct ToolCall {
    /// codex's id of the call, if its version sends it (0.169 does, 0.135 does not).
    pub(crate) call_id: Option<String>,
    pub(crate) name: String,
    /// A JSON object.
    pub(crate) arguments: Box<RawValue>,
}

/// The daemon's result of a call, as on the wire.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct ToolOutput {
    /// Content blocks as in MCP, or a string for one block of text.
    #[serde(default)]
    pub(crate) content: Option<Box<RawValue>>,
    #[serde(default, alias = "isError")]
    pub(crate) is_error: bool,
    #[serde(default, alias = "structuredContent")]
    pub(crate) structured_content: Option<Box<RawValue>>,
}

/// The response to a call; the message of an error becomes a tool error that the model reads.
pub(crate) type ToolAnswer = Result<ToolOutput, String>;

/// Identifies a call between the bridge and its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct CallId(pub(crate) u64);

/// Serves calls for the bridge.
///
/// Both functions run on the bridge's only thread and must not block: no other call of the turn proceeds meanwhile.
pub(crate) trait ToolHost: Send + Sync {
    /// Starts a call. `answer` is called once, on any thread, before or after this returns; if it is dropped uncalled,
    /// the call fails with a tool error instead of hanging.
    fn call(&self, call: ToolCall, answer: Box<dyn FnOnce(ToolAnswer) + Send>) -> CallId;
    /// The caller no longer waits for this call. A late answer is ignored.
    fn cancel(&self, call: CallId);
}

/// How an agent's tools are made known to codex.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RegistrationMode {
    /// By the turn's command line. Nothing of codex's is written.
    Turn,
    /// By `codex mcp add`, which all agents share.
    Persistent,
}

/// The parameters of a bridge.
#[derive(Debug)]
pub(crate) struct BridgeSettings {
    pub(crate) mode: RegistrationMode,
    /// The daemon's profile directory; the sockets are below it where there is no better directory.
    pub(crate) profile: PathBuf,
    /// `$XDG_RUNTIME_DIR`, where it is set.
    pub(crate) runtime_dir: Option<PathBuf>,
    /// This executable, which codex starts as `mcp-host`.
    pub(crate) executable: PathBuf,
    /// codex's home, whose `config.toml` can have the servers of other agents.
    pub(crate) codex_home: PathBuf,
    /// The codex executable, and its environment besides our own; run for `RegistrationMode::Persistent` only.
    pub(crate) codex: PathBuf,
    pub(crate) codex_env: Vec<(OsString, OsString)>,
    /// How long codex waits for the result of a call.
    pub(crate) tool_timeout: Duration,
    /// The turn's token: when it is cancelled, running codex commands are not waited for.
    pub(crate) cancel: CancelToken,
}

/// `$XDG_RUNTIME_DIR`, where it is set.
pub(crate) fn runtime_dir() -> Option<PathBuf> {
    std::env::var_os("XDG_RUNTIME_DIR")
        .filter(|directory| !directory.is_empty())
        .map(PathBuf::from)
}

/// An error whose code is `mcp_failed`.
fn failed(message: impl Into<String>) -> Error {
    Error::new(crate::error::Kind::McpFailed, message)
}
