//! The plugin's side of the wire: MCP's lifecycle and methods of its own on stdin and stdout, as `man/plexum-openai-protocol.7` describes it.

mod names;
mod outbox;
pub(crate) mod params;
mod serve;
mod tools;

pub(crate) use params::{check_schema_text, is_effort, parse_mutations};
pub(crate) use serve::{Setup, serve_stdio};
