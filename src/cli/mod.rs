//! The command line: what people and scripts see.

pub(crate) mod flags;
pub(crate) mod mcp_host;
pub(crate) mod turn;
