//! `mcp-host`: the process that codex starts, a pipe between codex and the running plugin.
//!
//! It authenticates with one line and then copies bytes both ways without parsing them: the MCP server is in the
//! plugin. It exits with either side: when codex closes its stdin, and when the plugin ends, however that happens.

use super::bridge::{Hello, Welcome};
use super::{failed, register, socket};
use crate::error::{Error, Kind, Result};
use crate::os::{self, PollFd, PollFlags};
use std::borrow::Cow;
use std::fs::File;
use std::io::{ErrorKind, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How long the plugin may take to respond to the first line.
const WELCOME_WAIT: Duration = Duration::from_secs(10);
/// How long the plugin's last responses may take once codex has closed stdin.
const LAST_RESPONSES_WAIT: Duration = Duration::from_millis(700);
const BUFFER: usize = 64 * 1024;

/// Which side has ended.
enum Ended {
    Codex,
    Plugin,
}

/// Why copying has stopped.
enum Copied {
    /// At the end of the input.
    EndOfInput,
    /// At an error of the output.
    OutputFailed,
}

/// Serves until one side ends. `turn` is the turn's mark, if codex got one.
///
/// # Errors
/// [`Kind::Usage`] where the path cannot be a socket's; [`Kind::McpFailed`] where no plugin listens there, where it
/// refuses the connection, and where it ends before codex does.
pub(crate) fn run(path: &Path, agent_id: &str, turn: Option<&str>) -> Result<()> {
    let mut stream = socket::connect(path)?;
    let token = socket::read_token(path)?;
    let hello = Hello {
        agent_id: Cow::from(agent_id),
        token: Cow::from(token),
        turn: turn.map(Cow::from),
    };
    let mut line = serde_json::to_vec(&hello).expect("three strings are always JSON");
    line.push(b'\n');
    let lost = |error| {
        Error::os(
            Kind::McpFailed,
            format!("the plugin at '{}' cannot be reached", path.display()),
            error,
        )
    };
    stream.write_all(&line).map_err(lost)?;
    welcome(&mut stream, path)?;
    if std::io::stdin().is_terminal() {
        // A closed terminal is no reason not to serve.
        let _ = writeln!(
            std::io::stderr(),
            "plexum-openai: this is the MCP server that codex starts for agent '{agent_id}'; it reads MCP messages from stdin, one per line"
        );
    }

    let (ended, wait) = mpsc::channel();
    // Neither thread is joined: each can be blocked in a read that only the other side can end, and the process exits
    // when this function returns.
    let stdin = file(std::io::stdin()).map_err(lost)?;
    let to_plugin = stream.try_clone().map_err(lost)?;
    spawn("stdin", &ended, move || match copy(stdin, &to_plugin) {
        Copied::EndOfInput => {
            // The plugin sends its last responses and closes the connection.
            let _ = to_plugin.shutdown(Shutdown::Write);
            Ended::Codex
        }
        Copied::OutputFailed => Ended::Plugin,
    })?;
    let stdout = file(std::io::stdout()).map_err(lost)?;
    spawn("stdout", &ended, move || match copy(stream, stdout) {
        Copied::EndOfInput => Ended::Plugin,
        Copied::OutputFailed => Ended::Codex,
    })?;
    finish(&wait, path)
}

/// Waits for the end of one side, and then, within limits, of the other.
fn finish(wait: &Receiver<Ended>, path: &Path) -> Result<()> {
    match wait.recv() {
        Ok(Ended::Codex) | Err(_) => {
            // A timeout is as good as the plugin's end: codex no longer listens.
            let _: std::result::Result<Ended, RecvTimeoutError> =
                wait.recv_timeout(LAST_RESPONSES_WAIT);
            Ok(())
        }
        Ok(Ended::Plugin) => {
            // Both ending at once is the normal end of a turn, and which one is noticed first is chance.
            match wait.recv_timeout(Duration::from_millis(50)) {
                Ok(Ended::Codex) => Ok(()),
                _ => Err(failed(format!(
                    "the turn of the plugin at '{}' has ended",
                    path.display()
                ))),
            }
        }
    }
}

/// Reads the plugin's response to the first line.
fn welcome(stream: &mut UnixStream, path: &Path) -> Result<()> {
    let not_the_plugin = || {
        failed(format!(
            "the listener at '{}' is not the plugin",
            path.display()
        ))
    };
    let lost = |error| {
        let message = format!("the plugin at '{}' closed the connection", path.display());
        Error::os(Kind::McpFailed, message, error)
    };
    let stdin = std::io::stdin();
    let mut stdin_open = true;
    let mut deadline = Instant::now() + WELCOME_WAIT;
    let mut line = Vec::new();
    // Byte by byte: what follows the line is for codex.
    let mut byte = [0];
    while byte[0] != b'\n' {
        if Instant::now() >= deadline {
            let message = format!("the plugin at '{}' does not respond", path.display());
            return Err(failed(message));
        }
        let mut fds = vec![PollFd::new(&*stream, PollFlags::IN)];
        if stdin_open {
            // Without flags, poll reports only that it was closed.
            fds.push(PollFd::new(&stdin, PollFlags::empty()));
        }
        os::poll(&mut fds, Some(deadline)).map_err(lost)?;
        if stdin_open && !fds[1].revents().is_empty() {
            // codex has exited or written everything: the response must come soon.
            stdin_open = false;
            deadline = deadline.min(Instant::now() + LAST_RESPONSES_WAIT);
        }
        if fds[0].revents().is_empty() {
            continue;
        }
        match stream.read(&mut byte) {
            Ok(1) if line.len() < BUFFER => line.push(byte[0]),
            Ok(_) => return Err(not_the_plugin()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(lost(error)),
        }
    }
    match serde_json::from_slice::<Welcome<'_>>(&line) {
        Ok(Welcome { error: None }) => Ok(()),
        Ok(Welcome { error: Some(why) }) => Err(failed(format!(
            "the plugin at '{}' rejects this agent: {why}",
            path.display()
        ))),
        Err(_) => Err(not_the_plugin()),
    }
}

fn spawn(
    name: &str,
    ended: &mpsc::Sender<Ended>,
    work: impl FnOnce() -> Ended + Send + 'static,
) -> Result<()> {
    let ended = ended.clone();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            // The receiver is gone where the process is exiting.
            let _ = ended.send(work());
        })
        .map_err(|error| Error::os(Kind::Io, "cannot start a thread", error))?;
    Ok(())
}

/// A standard stream without std's buffer and lock.
fn file(stream: impl AsFd) -> std::io::Result<File> {
    stream.as_fd().try_clone_to_owned().map(File::from)
}

/// Copies until either side ends. The reason does not matter: the other side notices the close.
fn copy(mut from: impl Read, mut to: impl Write) -> Copied {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Copied::EndOfInput,
            Ok(length) => {
                if to.write_all(&buffer[..length]).is_err() {
                    return Copied::OutputFailed;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Copied::EndOfInput,
        }
    }
}

/// The turn's mark, which codex passes in the environment.
pub(crate) fn turn_of_environment() -> Option<String> {
    std::env::var(register::TURN_VARIABLE).ok()
}
