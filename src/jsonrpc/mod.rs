//! JSON-RPC 2.0, one message a line: for the daemon and for the MCP server that codex talks to.
//!
//! No method names here.

mod lines;
mod message;

pub(crate) use lines::{Frame, LONGEST_LINE, read_line};
pub(crate) use message::{
    Id, InvalidMessage, Message, error_message, error_response, id_of_broken_response, parse,
    result_response,
};
