//! The plugin's side of the wire: JSON-RPC on stdin and stdout, as `man/plexum-openai-protocol.7` describes it.

mod host;
pub(crate) mod message;
mod outbox;
pub(crate) mod params;
mod serve;

pub(crate) use serve::{Setup, serve_stdio};
