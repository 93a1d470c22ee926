pub(crate) mod flags;
pub(crate) mod mcp_host;
