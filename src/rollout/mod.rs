//! codex's rollout files: one JSON record a line, everything that a thread ever said and did.
//!
//! `lines` finds the lines and decides by their heads which of them matter, `json` walks over one that does,
//! `string` over what is long in it.
//! For reading, `record` parses such a line and `calls` pairs what belongs together. For consuming,
//! `splice` says what of a line is replaced, `mutate` which lines those are, and `replace` puts the new file
//! in the old one's place. Nothing here knows JSON-RPC or starts a process.

pub(crate) mod calls;
pub(crate) mod consume;
pub(crate) mod lines;
pub(crate) mod packed;
pub(crate) mod record;
