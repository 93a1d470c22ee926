//! The command line: what people and scripts see.

pub(crate) mod flags;
pub(crate) mod complete;
pub(crate) mod doctor;
pub(crate) mod help;
pub(crate) mod man;
pub(crate) mod mcp_host;
pub(crate) mod mutate;
pub(crate) mod parse_rollout;
pub(crate) mod summary;
pub(crate) mod target;
pub(crate) mod turn;
