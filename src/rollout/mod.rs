//! codex's rollout files: one JSON record a line, everything that was said and done in a thread.
//!
//! `lines` splits a rollout into lines and selects them by their first bytes. For reading, `record` parses one line and
//! `calls` matches calls and outputs; `packed` decompresses. For consuming, `consume::splice` decides what of a line is
//! replaced, `consume` which lines, and `consume::replace` puts the new file in place of the old one. No JSON-RPC and
//! no codex process here.

pub(crate) mod calls;
pub(crate) mod consume;
pub(crate) mod lines;
pub(crate) mod packed;
pub(crate) mod record;
