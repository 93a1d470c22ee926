//! `mcp-host`: the process that codex starts, a pipe between codex and the running plugin.
//!
//! It says who it is in one line and then carries bytes both ways, without looking at them: the MCP server is
//! in the plugin. It lives no longer than either side: codex closing its stdin ends it, and so does the end of
//! the plugin, however that ended.

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

/// How long the plugin may take for its first line.
const WELCOME_WAIT: Duration = Duration::from_secs(10);
/// How long the plugin's last answers may take once codex has closed stdin.
const LAST_ANSWERS: Duration = Duration::from_millis(700);
const BUFFER: usize = 64 * 1024;

/// Who is gone.
enum Ended {
    Codex,
    Plugin,
}

/// How copying came to its end.
enum Copied {
    /// There is no more to read.
    Whole,
    /// Nobody takes it.
    Refused,
}

/// Serves until one side ends. `turn` is the mark that codex gave, where it gave one.
///
/// # Errors
/// [`Kind::Usage`] for a path that is not a socket's; [`Kind::McpFailed`] where no plugin listens there, where it
/// refuses, and where it ends before codex does.
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
        // A terminal that is gone is no reason not to serve.
        let _ = writeln!(
            std::io::stderr(),
            "plexum-openai: this is the MCP server that codex starts for agent '{agent_id}'; type MCP messages, one a line"
        );
    }

    let (ended, wait) = mpsc::channel();
    // Neither thread is joined: each may sit in a read that only the other side can end, and the end of this
    // function is the end of the process.
    let stdin = file(std::io::stdin()).map_err(lost)?;
    let to_plugin = stream.try_clone().map_err(lost)?;
    spawn("stdin", &ended, move || match copy(stdin, &to_plugin) {
        Copied::Whole => {
            // The plugin answers what it has and closes.
            let _ = to_plugin.shutdown(Shutdown::Write);
            Ended::Codex
        }
        Copied::Refused => Ended::Plugin,
    })?;
    let stdout = file(std::io::stdout()).map_err(lost)?;
    spawn("stdout", &ended, move || match copy(stream, stdout) {
        Copied::Whole => Ended::Plugin,
        Copied::Refused => Ended::Codex,
    })?;
    finish(&wait, path)
}

/// Waits for the end of one side, and what is right to wait for the other.
fn finish(wait: &Receiver<Ended>, path: &Path) -> Result<()> {
    match wait.recv() {
        Ok(Ended::Codex) | Err(_) => {
            // That the time is over is as good an end as the plugin's: codex no longer listens.
            let _: std::result::Result<Ended, RecvTimeoutError> = wait.recv_timeout(LAST_ANSWERS);
            Ok(())
        }
        Ok(Ended::Plugin) => {
            // Both at once is a normal end of a turn, and which is seen first is chance.
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

/// Reads the plugin's answer to the first line.
fn welcome(stream: &mut UnixStream, path: &Path) -> Result<()> {
    let strange = || {
        failed(format!(
            "what listens at '{}' is not the plugin",
            path.display()
        ))
    };
    let lost = |error| {
        let message = format!("the plugin at '{}' is gone", path.display());
        Error::os(Kind::McpFailed, message, error)
    };
    let stdin = std::io::stdin();
    let mut stdin_open = true;
    let mut deadline = Instant::now() + WELCOME_WAIT;
    let mut line = Vec::new();
    // Byte by byte: what follows the line is codex's.
    let mut byte = [0];
    while byte[0] != b'\n' {
        if Instant::now() >= deadline {
            let message = format!("the plugin at '{}' does not answer", path.display());
            return Err(failed(message));
        }
        let mut fds = vec![PollFd::new(&*stream, PollFlags::IN)];
        if stdin_open {
            // Polled for nothing, it only reports its end.
            fds.push(PollFd::new(&stdin, PollFlags::empty()));
        }
        os::poll(&mut fds, Some(deadline)).map_err(lost)?;
        if stdin_open && !fds[1].revents().is_empty() {
            // codex is gone, or has written everything: what is to come has to come soon.
            stdin_open = false;
            deadline = deadline.min(Instant::now() + LAST_ANSWERS);
        }
        if fds[0].revents().is_empty() {
            continue;
        }
        match stream.read(&mut byte) {
            Ok(1) if line.len() < BUFFER => line.push(byte[0]),
            Ok(_) => return Err(strange()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(lost(error)),
        }
    }
    match serde_json::from_slice::<Welcome<'_>>(&line) {
        Ok(Welcome { error: None }) => Ok(()),
        Ok(Welcome { error: Some(why) }) => Err(failed(format!(
            "the plugin at '{}' refuses this agent: {why}",
            path.display()
        ))),
        Err(_) => Err(strange()),
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
            // Nobody waits any more where the process is ending.
            let _ = ended.send(work());
        })
        .map_err(|error| Error::os(Kind::Io, "cannot start a thread", error))?;
    Ok(())
}

/// A standard stream without std's buffer and lock.
fn file(stream: impl AsFd) -> std::io::Result<File> {
    stream.as_fd().try_clone_to_owned().map(File::from)
}

/// Copies until either side ends. Why it ended does not matter: the other side sees the close.
fn copy(mut from: impl Read, mut to: impl Write) -> Copied {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Copied::Whole,
            Ok(length) => {
                if to.write_all(&buffer[..length]).is_err() {
                    return Copied::Refused;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Copied::Whole,
        }
    }
}

/// The turn's mark, as codex gives it in the environment.
pub(crate) fn turn_of_environment() -> Option<String> {
    std::env::var(register::TURN_VARIABLE).ok()
}
