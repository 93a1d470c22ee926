//! The command line: one table of flags, what is rendered from it, and the subcommands.

pub(crate) mod about;
mod color;
pub(crate) mod complete;
pub(crate) mod doctor;
pub(crate) mod flags;
pub(crate) mod help;
pub(crate) mod man;
mod markup;
pub(crate) mod mcp_host;
