//! Runs a short command of codex (`--version`, `login status`, `mcp list`) with a time limit.
//!
//! Not for turns, whose output is read as it comes and which are ended in steps (`backend::child`). A command that
//! hangs here has no state to save and is killed with its process group.

use crate::error::{Error, Kind, Result};
use crate::os::{self, CancelToken, Pid, PollFd, PollFlags, Signal};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The most bytes that are kept of each stream.
const LONGEST: u64 = 1 << 20;
/// How long a cancelled command may still take: `codex mcp add` should not be killed while it writes its config, and
/// takes 0.02 s.
const GRACE: Duration = Duration::from_millis(500);

/// The output of a command.
#[derive(Debug)]
pub(crate) struct CommandOutput {
    pub(crate) success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a command until it exits, at most for `limit`, or for [`GRACE`] after `cancel`.
///
/// # Errors
/// [`Kind::CodexFailed`] where it cannot be run, does not exit in time, or is cancelled.
pub(crate) fn ask(
    mut command: Command,
    limit: Duration,
    cancel: &CancelToken,
) -> Result<CommandOutput> {
    let mut shown = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        shown = format!("{shown} {}", argument.to_string_lossy());
    }
    let failed =
        |error: io::Error| Error::os(Kind::CodexFailed, format!("cannot run '{shown}'"), error);
    let cancelled = || Error::new(Kind::CodexFailed, format!("'{shown}' was cancelled"));
    if cancel.is_cancelled() {
        return Err(cancelled());
    }
    let mut stdout = file().map_err(failed)?;
    let mut stderr = file().map_err(failed)?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone().map_err(failed)?)
        .stderr(stderr.try_clone().map_err(failed)?)
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    let pid = Pid::from_child(&child);
    let ended =
        os::open_pidfd(pid).and_then(|process| wait(&process, Instant::now() + limit, cancel));
    if !matches!(ended, Ok(true)) {
        // It is not reaped yet, so the id of its group cannot have been reused.
        os::signal_group(pid, Signal::KILL);
    }
    let status = child.wait().map_err(failed)?;
    let is_late = matches!(ended, Ok(false));
    if is_late && cancel.is_cancelled() {
        return Err(cancelled());
    }
    if is_late {
        return Err(Error::new(
            Kind::CodexFailed,
            format!("'{shown}' did not end within {} s", limit.as_secs()),
        ));
    }
    let read = |file: &mut File| -> io::Result<String> {
        file.rewind()?;
        let mut bytes = Vec::new();
        file.take(LONGEST).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    Ok(CommandOutput {
        success: status.success(),
        stdout: read(&mut stdout).map_err(failed)?,
        stderr: read(&mut stderr).map_err(failed)?,
    })
}

/// A file for the output. Not a pipe: nothing has to read it meanwhile, and a child left by codex does not keep it
/// open. In memory, so that it does not depend on a directory for temporary files.
fn file() -> io::Result<File> {
    os::create_memfd("codex").or_else(|_| tempfile::tempfile())
}

/// Waits until the process exits; `false` at the deadline, or [`GRACE`] after `cancel`.
fn wait(process: &OwnedFd, deadline: Instant, cancel: &CancelToken) -> io::Result<bool> {
    let mut fds = [
        PollFd::new(process, PollFlags::IN),
        PollFd::new(cancel, PollFlags::IN),
    ];
    if !os::poll(&mut fds, Some(deadline))? {
        return Ok(false);
    }
    if !fds[0].revents().is_empty() {
        return Ok(true);
    }
    let deadline = deadline.min(Instant::now() + GRACE);
    os::poll(&mut fds[..1], Some(deadline))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn captures_output_and_status() {
        let limit = Duration::from_secs(20);
        let never = CancelToken::new().unwrap();
        let answer = ask(shell("echo out; echo err >&2; exit 3"), limit, &never).unwrap();
        assert_eq!(
            (answer.stdout.as_str(), answer.stderr.as_str()),
            ("out\n", "err\n")
        );
        assert!(!answer.success);
        // A process left running does not delay the result.
        let begun = Instant::now();
        let answer = ask(shell("sleep 15 & echo done"), limit, &never).unwrap();
        assert!(answer.success);
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn kills_command_at_limit() {
        let never = CancelToken::new().unwrap();
        let error = ask(shell("sleep 600"), Duration::from_millis(50), &never).unwrap_err();
        assert_eq!(
            error.message(),
            "'/bin/sh -c sleep 600' did not end within 0 s"
        );
        let error = ask(
            Command::new("/nowhere/codex"),
            Duration::from_secs(1),
            &never,
        )
        .unwrap_err();
        assert_eq!(
            error.message(),
            "cannot run '/nowhere/codex': No such file or directory"
        );
    }
    #[test]
    fn kills_command_on_cancel() {
        let limit = Duration::from_secs(60);
        let cancel = CancelToken::new().unwrap();
        let raiser = {
            let cancel = cancel.clone();
            std::thread::spawn(move || cancel.cancel())
        };
        let begun = Instant::now();
        let error = ask(shell("sleep 600"), limit, &cancel).unwrap_err();
        assert_eq!(error.message(), "'/bin/sh -c sleep 600' was cancelled");
        assert!(begun.elapsed() < Duration::from_secs(20));
        raiser.join().unwrap();
        // And it is not begun.
        let error = ask(Command::new("/nowhere/codex"), limit, &cancel).unwrap_err();
        assert_eq!(error.message(), "'/nowhere/codex' was cancelled");
    }
}
