//! The plugin's side of the protocol on stdin and stdout: MCP's lifecycle and the `plexum/` methods, documented in
//! `man/plexum-openai-protocol.7`.

mod names;
mod outbox;
pub(crate) mod params;
mod serve;
mod tools;

pub(crate) use params::{check_schema_text, is_effort, parse_mutations};
pub(crate) use serve::{Setup, serve_stdio};
