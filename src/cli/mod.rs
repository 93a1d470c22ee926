//! The command line: what people and scripts see.

mod about;
mod color;
mod columns;
pub(crate) mod complete;
pub(crate) mod doctor;
pub(crate) mod flags;
pub(crate) mod help;
pub(crate) mod man;
pub(crate) mod mcp_host;
pub(crate) mod mutate;
pub(crate) mod parse_rollout;
mod progress;
mod relay;
mod seems;
mod summary;
mod target;
pub(crate) mod threads;
pub(crate) mod turn;

pub(crate) use columns::{is_harmful, sanitize};

use crate::error::{Error, Kind, Result};
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;

/// Tells a person who started the daemon's end by hand what it is; it goes on serving.
pub(crate) fn serve_by_hand() {
    if std::io::stdin().is_terminal() {
        // Nobody reads stderr: then nobody is at the terminal either.
        let _ = writeln!(
            std::io::stderr(),
            "plexum-openai: serving the daemon's protocol on this terminal, one JSON-RPC message a line; see plexum-openai-protocol(7), and 'plexum-openai --help' for everything else; Ctrl-D ends it"
        );
    }
}

/// What came of writing to stdout: where all was well, or its reader has gone, this is the exit status.
pub(crate) fn written(result: io::Result<()>, status: u8) -> Result<u8> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::os(Kind::Io, "cannot write to stdout", error))
        }
        _ => Ok(status),
    }
}

/// stdout without std's buffer, for what writes whole blocks.
pub(crate) fn unbuffered_stdout() -> Result<File> {
    match std::io::stdout().as_fd().try_clone_to_owned() {
        Ok(stdout) => Ok(File::from(stdout)),
        Err(error) => Err(Error::os(Kind::Io, "cannot write to stdout", error)),
    }
}
