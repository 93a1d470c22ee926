//! The daemon's tools in codex's hands.
//!
//! For a turn that is lent tools, a [`Bridge`] listens on a unix socket of that turn's own, codex starts
//! `plexum-openai mcp-host`, and that process ([`proxy`]) does nothing but carry bytes between codex and the
//! socket. The MCP server itself ([`session`]) lives here in the plugin, where the tools and the daemon are.
//! So the process that codex starts has nothing to go wrong in, and one place knows MCP.
//!
//! The daemon's JSON-RPC is unknown here: a [`ToolHost`] is asked. Of codex this directory knows how it is told of
//! an MCP server, which is two ways: arguments for the turn's own run ([`Bridge::codex_args`]), and runs of
//! `codex mcp` that write its config file (`register`). A turn's run of codex is started elsewhere.

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

/// A tool that the daemon lends for a turn, as `tools` of the request has it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Tool {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) description: Option<String>,
    /// A JSON schema. Anything but a schema of an object is taken for one that allows every object.
    #[serde(default)]
    pub(crate) input_schema: Option<Box<RawValue>>,
}

/// A call that codex's model made of one of the tools.
#[derive(Debug)]
pub(crate) struct ToolCall {
    /// codex's own id of the call, where its version says it (0.169 does, 0.135 does not).
    pub(crate) call_id: Option<String>,
    pub(crate) name: String,
    /// A JSON object.
    pub(crate) arguments: Box<RawValue>,
}

/// What the daemon answered, as its result has it.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct ToolOutput {
    /// Content blocks as in MCP. A string stands for one block of text.
    #[serde(default)]
    pub(crate) content: Option<Box<RawValue>>,
    #[serde(default, alias = "isError")]
    pub(crate) is_error: bool,
    #[serde(default, alias = "structuredContent")]
    pub(crate) structured_content: Option<Box<RawValue>>,
}

/// The answer to a call; the text of an error becomes a tool error that the model reads.
pub(crate) type ToolAnswer = Result<ToolOutput, String>;

/// Names a call between the bridge and its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct CallId(pub(crate) u64);

/// What the bridge asks of the daemon.
///
/// Both functions are called on the bridge's only thread, so they must not wait for the daemon: while they
/// do, no other call of the turn moves.
pub(crate) trait ToolHost: Send + Sync {
    /// Starts a call. `answer` is called once, on any thread, before or after this returns; dropping it
    /// uncalled is a tool error too, so that no call hangs.
    fn call(&self, call: ToolCall, answer: Box<dyn FnOnce(ToolAnswer) + Send>) -> CallId;
    /// The caller no longer waits for this call. An answer that comes all the same is ignored.
    fn cancel(&self, call: CallId);
}

/// How an agent's tools are made known to codex.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RegistrationMode {
    /// With that turn's command line alone. Nothing of codex's is written.
    Turn,
    /// With `codex mcp add`, once for every agent.
    Persistent,
}

/// What a bridge has to know of its surroundings.
#[derive(Debug)]
pub(crate) struct BridgeSettings {
    pub(crate) mode: RegistrationMode,
    /// The daemon's profile directory; sockets lie below it where there is no better place.
    pub(crate) profile: PathBuf,
    /// `$XDG_RUNTIME_DIR`, where it is set.
    pub(crate) runtime_dir: Option<PathBuf>,
    /// This program, which codex starts as `mcp-host`.
    pub(crate) executable: PathBuf,
    /// codex's home, whose `config.toml` may name other agents' servers.
    pub(crate) codex_home: PathBuf,
    /// codex itself, and its environment besides our own; only `RegistrationMode::Persistent` runs it.
    pub(crate) codex: PathBuf,
    pub(crate) codex_env: Vec<(OsString, OsString)>,
    /// How long codex waits for the answer to a call.
    pub(crate) tool_timeout: Duration,
    /// Cancelled when the turn is: then nothing of codex's is waited for.
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
