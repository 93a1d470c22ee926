//! codex's rollout files: one JSON record a line, everything that a thread ever said and did.
//!
//! `lines` finds the lines and decides by their heads which of them matter, `json` walks over one that does.
//! Nothing here knows JSON-RPC or starts a process.

#[expect(dead_code, reason = "its users come next")]
pub(crate) mod json;
#[expect(dead_code, reason = "its users come next")]
pub(crate) mod lines;
