//! The command line interface: a module for each subcommand, the flag table with its parser, and terminal output.

mod about;
mod color;
mod columns;
pub(crate) mod complete;
pub(crate) mod doctor;
mod file_type;
pub(crate) mod flags;
pub(crate) mod help;
pub(crate) mod man;
pub(crate) mod mcp_host;
pub(crate) mod mutate;
pub(crate) mod parse_rollout;
mod progress;
mod relay;
mod summary;
mod target;
pub(crate) mod threads;
pub(crate) mod turn;

pub(crate) use columns::{is_harmful, sanitize};

use crate::error::{Error, Kind, Result};
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;

/// Prints a notice for a person who started `serve`, the daemon's stdio server, at a terminal.
pub(crate) fn print_serve_notice() {
    if std::io::stdin().is_terminal() {
        // The notice is a convenience: serving works without stderr.
        let _ = writeln!(
            std::io::stderr(),
            "plexum-openai: serving the daemon's protocol on this terminal, one JSON-RPC message per line; see plexum-openai-protocol(7), and 'plexum-openai --help' for everything else; Ctrl-D ends it"
        );
    }
}

/// The exit status after writing to stdout: `status`, also where its reader has closed it.
///
/// # Errors
/// [`Kind::Io`] for other errors of writing.
pub(crate) fn ignore_broken_pipe(result: io::Result<()>, status: u8) -> Result<u8> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::os(Kind::Io, "cannot write to stdout", error))
        }
        _ => Ok(status),
    }
}

/// stdout without std's line buffer, for output in large blocks.
///
/// # Errors
/// [`Kind::Io`] where its descriptor cannot be duplicated.
pub(crate) fn unbuffered_stdout() -> Result<File> {
    match std::io::stdout().as_fd().try_clone_to_owned() {
        Ok(stdout) => Ok(File::from(stdout)),
        Err(error) => Err(Error::os(Kind::Io, "cannot write to stdout", error)),
    }
}
