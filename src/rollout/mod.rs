//! codex's rollout files: one JSON record a line, everything that a thread ever said and did.
//!
//! `lines` finds the lines and decides by their heads which of them matter, `json` walks over one that does.
//! Nothing here knows JSON-RPC or starts a process.

pub(crate) mod json;

pub(crate) mod lines;
pub(crate) mod mutate;
mod replace;
mod splice;
