//! codex's rollout files: one JSON record a line, everything that a thread ever said and did.
//!
//! `lines` finds the lines and decides by their heads which of them matter, `json` walks over one that does,
//! `record` says what it is, and `calls` knows which output belongs to which call. Nothing here knows JSON-RPC
//! or starts a process.

pub(crate) mod calls;
pub(crate) mod json;
pub(crate) mod lines;
pub(crate) mod record;
