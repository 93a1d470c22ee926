//! The MCP servers in codex's config, as `codex mcp list --json` and `codex mcp get --json` print them (0.135 to
//! 0.171).

use serde::Deserialize;

/// A server, as far as it is read here.
#[derive(Debug, Deserialize)]
pub(crate) struct ConfiguredServer {
    #[serde(default)]
    pub(crate) name: String,
    pub(crate) transport: ServerTransport,
}

/// The transport of a server. An HTTP server has no command.
#[derive(Debug, Deserialize)]
pub(crate) struct ServerTransport {
    #[serde(default)]
    pub(crate) command: String,
    #[serde(default)]
    pub(crate) args: Vec<String>,
}
