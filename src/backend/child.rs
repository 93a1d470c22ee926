//! A codex process: starting it, reading its output, ending it, and never leaving it behind.
//!
//! One thread does everything, with `poll`: it writes the prompt, reads stdout in lines, drains stderr, notices the
//! exit and a cancelled turn, and keeps the deadlines. So codex cannot block the turn by not reading or writing a
//! stream, and there are no reader threads to join. Memory is bounded: a line over [`LONGEST_LINE`] is skipped to its
//! end, and only the end of stderr is kept.

use super::guard;
use crate::codex::failure::Exit;
use crate::error::{Error, Kind, Result, reason};
use crate::os::{self, CancelToken, Errno, Pid, PollFd, PollFlags, Signal, Waker};
use memchr::memchr;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The longest line of codex that is held, in bytes; the bytes of a longer one are skipped and counted.
pub(crate) const LONGEST_LINE: usize = 16 << 20;
/// How many bytes of the end of stderr are kept.
const STDERR_KEPT: usize = 8 << 10;
/// How many bytes are read at once. The pipe is enlarged to this size.
const READ_SIZE: usize = 256 << 10;
/// The maximum capacity of a pipe in bytes, unless root has raised it.
const LARGEST_PIPE: usize = 1 << 20;
/// How long codex may run on after it has closed its stdout.
const STDOUT_CLOSED_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a process left by codex may hold the pipes after codex's exit.
const PIPES_TIMEOUT: Duration = Duration::from_millis(500);

/// How to start codex.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CodexCommand {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    pub(crate) directory: PathBuf,
    pub(crate) env: Vec<(OsString, OsString)>,
    pub(crate) env_removed: Vec<&'static str>,
    /// What is written to its stdin first; `None` connects stdin to the null device.
    pub(crate) stdin: Option<String>,
    /// Keeps its stdin open after that, for [`Child::send`].
    pub(crate) keeps_stdin: bool,
    /// What could not be done as configured, a sentence each.
    pub(crate) warnings: Vec<String>,
}

/// The result of a wait.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// There is a line, or a skipped one, for [`Child::line`].
    Line,
    /// The deadline passed.
    Deadline,
    /// The turn was cancelled.
    Cancelled,
    /// One of the wakers of [`Child::wake_by`] was used.
    Woken,
    /// codex has exited and all its output was taken.
    Ended,
}

/// A line that codex printed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum OutputLine<'a> {
    /// Its bytes, without the line end.
    Whole(&'a [u8]),
    /// It was too long to be held; the number of bytes that were skipped.
    Skipped(u64),
}

/// A running codex. Dropping it ends and reaps it.
#[derive(Debug)]
pub(crate) struct Child {
    guard: std::process::Child,
    pid: Pid,
    /// The guard's pidfd: readable once the guard has exited.
    ended: Arc<OwnedFd>,
    stdin: Option<Input>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    lines: LineBuffer,
    tail: Vec<u8>,
    spawn_error: Option<i32>,
    /// Whether codex has printed anything. Then it was started, and a line with [`guard::SPAWN_ERROR`] is its own.
    has_printed: bool,
    /// Whether the guard's exit was noticed.
    exited: bool,
    /// When the present state times out, and what to do then.
    timeout: Option<(Instant, OnTimeout)>,
    /// The token was cancelled, which was not reported yet.
    cancelled: bool,
    wakers: Vec<Waker>,
    woken: bool,
    asked_to_end: bool,
    exit_status: Option<ExitStatus>,
}

/// Its stdin.
#[derive(Debug)]
struct Input {
    pipe: ChildStdin,
    unwritten: Vec<u8>,
    /// How many bytes of `unwritten` are written.
    written: usize,
    stays_open: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnTimeout {
    /// Request that the guard end codex.
    End,
    /// Kill the whole group: the guard has not ended codex in time.
    Kill,
    /// Kill the rest of the group after codex's exit, and stop reading.
    Abandon,
}

impl Child {
    /// Starts codex. `lock` stays locked until codex has ended ([`os::keep_locked`]).
    ///
    /// # Errors
    /// A directory that cannot be entered ([`Kind::Params`]), or a lack of processes, descriptors or memory
    /// ([`Kind::CodexFailed`], retryable). That codex itself could not be executed is reported by
    /// [`Exit::spawn_error`].
    pub(crate) fn start(invocation: &CodexCommand, lock: Option<&Path>) -> Result<Child> {
        // The guard is this executable, even if an update has replaced the file on disk.
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("plexum-openai")
            .arg(guard::NAME)
            .arg(std::process::id().to_string())
            .arg(os::open_files_before().unwrap_or_default().to_string())
            .arg(
                match invocation.keeps_stdin {
                    true => guard::EOF_GRACE.as_millis(),
                    false => 0,
                }
                .to_string(),
            )
            .arg(lock.unwrap_or(Path::new("")))
            .arg(&invocation.program)
            .args(&invocation.args)
            .current_dir(&invocation.directory)
            .envs(invocation.env.iter().map(|(name, value)| (name, value)))
            .stdin(match invocation.stdin {
                Some(_) => Stdio::piped(),
                None => Stdio::null(),
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        for name in &invocation.env_removed {
            command.env_remove(name);
        }
        let mut guard = command
            .spawn()
            .map_err(|error| spawn_failed(invocation, error))?;
        let pid = Pid::from_child(&guard);
        let streams = (guard.stdin.take(), guard.stdout.take(), guard.stderr.take());
        let prepared = (|| -> io::Result<OwnedFd> {
            for stream in [
                streams.0.as_ref().map(AsFd::as_fd),
                streams.1.as_ref().map(AsFd::as_fd),
                streams.2.as_ref().map(AsFd::as_fd),
            ]
            .into_iter()
            .flatten()
            {
                os::set_nonblocking(stream)?;
            }
            if let Some(stdout) = &streams.1 {
                // A larger pipe means fewer wakeups.
                os::enlarge_pipe(stdout, READ_SIZE);
            }
            os::open_pidfd(pid)
        })();
        let ended = match prepared {
            Ok(ended) => ended,
            Err(error) => {
                // Not SIGKILL: codex may run already, and only the guard can end it.
                os::signal_process(pid, Signal::TERM);
                let _ = guard.wait();
                return Err(spawn_failed(invocation, error));
            }
        };
        Ok(Child {
            guard,
            pid,
            ended: Arc::new(ended),
            stdin: streams
                .0
                .zip(invocation.stdin.clone())
                .map(|(pipe, text)| Input {
                    pipe,
                    unwritten: text.into_bytes(),
                    written: 0,
                    stays_open: invocation.keeps_stdin,
                }),
            stdout: streams.1,
            stderr: streams.2,
            lines: LineBuffer::default(),
            tail: Vec::new(),
            spawn_error: None,
            has_printed: false,
            exited: false,
            timeout: None,
            cancelled: false,
            wakers: Vec::new(),
            woken: false,
            asked_to_end: false,
            exit_status: None,
        })
    }

    /// Queues bytes for its stdin, which [`Child::next`] writes. Returns whether stdin is still open.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> bool {
        let Some(input) = &mut self.stdin else {
            return false;
        };
        input.unwritten.extend_from_slice(bytes);
        self.write_input();
        self.stdin.is_some()
    }

    /// Closes its stdin. Bytes that are not written yet are dropped.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Whether it has closed its stdout, as it does on exit.
    pub(crate) fn has_closed_stdout(&self) -> bool {
        self.stdout.is_none()
    }

    /// The guard's pid: all processes started by this codex are below it.
    pub(crate) fn guard_pid(&self) -> Pid {
        self.pid
    }

    /// The guard's pidfd: SIGTERM to it ends codex.
    pub(crate) fn pidfd(&self) -> &Arc<OwnedFd> {
        &self.ended
    }

    /// Replaces the wakers that end a wait of [`Child::next`].
    pub(crate) fn wake_by(&mut self, wakers: Vec<Waker>) {
        self.wakers = wakers;
    }

    /// Waits for a line, the end of codex, a wakeup, `cancel` or `deadline`.
    ///
    /// After [`Child::end`], `cancel` is ignored.
    pub(crate) fn next(&mut self, cancel: Option<&CancelToken>, deadline: Option<Instant>) -> Next {
        loop {
            if self.lines.ready() {
                return Next::Line;
            }
            // Before more is read: a codex that prints without pause must not delay its own cancellation.
            if std::mem::take(&mut self.cancelled) && !self.asked_to_end {
                return Next::Cancelled;
            }
            if self.exited && self.stdout.is_none() && self.stderr.is_none() {
                return Next::Ended;
            }
            if std::mem::take(&mut self.woken) {
                return Next::Woken;
            }
            let now = Instant::now();
            if let Some((until, action)) = self.timeout
                && now >= until
            {
                self.on_timeout(action);
                continue;
            }
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Next::Deadline;
            }
            let until = match (deadline, self.timeout) {
                (Some(deadline), Some((timeout, _))) => Some(deadline.min(timeout)),
                (deadline, timeout) => deadline.or(timeout.map(|(until, _)| until)),
            };
            let ready = self.wait(cancel, until);
            if ready.stdin {
                self.write_input();
            }
            if ready.stderr {
                self.read_stderr();
            }
            if ready.stdout {
                self.read_stdout();
            }
            if ready.exited && !self.exited {
                self.exited = true;
                self.stdin = None;
                self.timeout = Some((Instant::now() + PIPES_TIMEOUT, OnTimeout::Abandon));
                // All of codex's output is in the pipes by now.
                self.read_stderr();
            }
            self.cancelled = ready.cancelled;
            self.woken = ready.woken;
            if ready.woken {
                self.wakers.iter().for_each(Waker::reset);
            }
        }
    }

    /// The next complete line, if [`Next::Line`] was returned.
    pub(crate) fn line(&mut self) -> Option<OutputLine<'_>> {
        self.lines.take()
    }

    /// Requests codex's end: SIGINT, SIGTERM, SIGKILL with grace periods in between, then whatever it left behind.
    /// [`Child::next`] has to be called until it has ended.
    pub(crate) fn end(&mut self) {
        if self.asked_to_end {
            return;
        }
        self.asked_to_end = true;
        self.stdin = None;
        if !self.exited {
            // It is not reaped yet, so the pid cannot have been reused.
            os::signal_process(self.pid, Signal::TERM);
            self.timeout = Some((Instant::now() + guard::LONGEST_ENDING, OnTimeout::Kill));
        }
    }

    /// Kills codex and everything below it at once, including processes in other sessions. [`Child::next`] has to be
    /// called until it has ended.
    pub(crate) fn kill_all(&mut self) {
        self.asked_to_end = true;
        self.stdin = None;
        if !self.exited {
            self.on_timeout(OnTimeout::Kill);
        }
    }

    /// Ends codex if it does not exit within `timeout`.
    pub(crate) fn expect_end_within(&mut self, timeout: Duration) {
        if self.timeout.is_none() {
            self.timeout = Some((Instant::now() + timeout, OnTimeout::End));
        }
    }

    /// Waits for codex's exit and describes it.
    pub(crate) fn exit(&mut self) -> Exit {
        let status = self.reap();
        Exit {
            status,
            stderr: readable_tail(&self.tail),
            // 127 is the guard's status then. A codex that itself prints the guard's line exits with another one.
            spawn_error: self.spawn_error.filter(|_| status.code() == Some(127)),
        }
    }

    fn reap(&mut self) -> ExitStatus {
        *self.exit_status.get_or_insert_with(|| {
            // It has exited or was killed, so this does not block for long. It fails only if something else reaped it,
            // which nothing does.
            self.guard
                .wait()
                .unwrap_or_else(|_| ExitStatus::from_raw(9))
        })
    }

    fn on_timeout(&mut self, action: OnTimeout) {
        self.timeout = None;
        match action {
            OnTimeout::End => self.end(),
            OnTimeout::Kill => {
                self.kill();
                self.timeout = Some((Instant::now() + PIPES_TIMEOUT, OnTimeout::Abandon));
            }
            OnTimeout::Abandon => {
                os::signal_group(self.pid, Signal::KILL);
                self.exited = true;
                self.drain_stdout();
                self.stderr = None;
                self.lines.finish();
            }
        }
    }

    /// Kills everything. The guard is killed last: processes that codex has started in other sessions can only be found
    /// below it.
    fn kill(&self) {
        os::kill_below(self.pid);
        os::signal_group(self.pid, Signal::KILL);
    }

    fn wait(&self, cancel: Option<&CancelToken>, deadline: Option<Instant>) -> Ready {
        let mut ready = Ready::default();
        let mut fds = Vec::with_capacity(5);
        let mut which: Vec<fn(&mut Ready)> = Vec::with_capacity(5);
        let mut add = |fd, flags, mark: fn(&mut Ready)| {
            fds.push(PollFd::from_borrowed_fd(fd, flags));
            which.push(mark);
        };
        if let Some(stdout) = &self.stdout {
            add(stdout.as_fd(), PollFlags::IN, |ready| ready.stdout = true);
        }
        if let Some(stderr) = &self.stderr {
            add(stderr.as_fd(), PollFlags::IN, |ready| ready.stderr = true);
        }
        if let Some(input) = &self.stdin {
            // Without flags, poll only reports that the read end was closed.
            let flags = match input.written < input.unwritten.len() || !input.stays_open {
                true => PollFlags::OUT,
                false => PollFlags::empty(),
            };
            add(input.pipe.as_fd(), flags, |ready| ready.stdin = true);
        }
        if !self.exited {
            add(self.ended.as_fd(), PollFlags::IN, |ready| {
                ready.exited = true
            });
        }
        if let (Some(cancel), false) = (cancel, self.asked_to_end) {
            add(cancel.as_fd(), PollFlags::IN, |ready| {
                ready.cancelled = true
            });
        }
        for waker in &self.wakers {
            add(waker.as_fd(), PollFlags::IN, |ready| ready.woken = true);
        }
        // It fails only for lack of memory; the caller checks the deadlines and retries.
        if os::poll(&mut fds, deadline).is_ok() {
            for (fd, mark) in fds.iter().zip(which) {
                if !fd.revents().is_empty() {
                    mark(&mut ready);
                }
            }
        }
        ready
    }

    fn write_input(&mut self) {
        let Some(input) = &mut self.stdin else {
            return;
        };
        if input.stays_open && input.unwritten.is_empty() {
            // poll has reported that the read end was closed.
            self.stdin = None;
            return;
        }
        match input.pipe.write(&input.unwritten[input.written..]) {
            Ok(more) => input.written += more,
            Err(error) if is_temporary(&error) => return,
            // codex has closed its stdin. Its output or its exit tells why.
            Err(_) => {
                self.stdin = None;
                return;
            }
        }
        if input.written >= input.unwritten.len() {
            input.unwritten = Vec::new();
            input.written = 0;
            if !input.stays_open {
                self.stdin = None;
            }
        }
    }

    fn read_stdout(&mut self) {
        let Some(stdout) = &mut self.stdout else {
            return;
        };
        match self.lines.read_from(stdout) {
            Ok(0) => {
                self.stdout = None;
                self.lines.finish();
                if !self.exited && self.timeout.is_none() {
                    self.timeout = Some((Instant::now() + STDOUT_CLOSED_TIMEOUT, OnTimeout::End));
                }
            }
            Ok(_) => self.notice_spawn_error(),
            Err(error) if is_temporary(&error) => {}
            Err(_) => {
                self.stdout = None;
                self.lines.finish();
            }
        }
    }

    /// Detects the guard's own line, which is the first and only one; later ones are codex's output.
    fn notice_spawn_error(&mut self) {
        if std::mem::replace(&mut self.has_printed, true) {
            self.spawn_error = None;
            return;
        }
        if let Some(rest) = self
            .lines
            .unread()
            .strip_prefix(guard::SPAWN_ERROR.as_bytes())
        {
            self.spawn_error = std::str::from_utf8(rest)
                .ok()
                .and_then(|rest| rest.trim().parse().ok());
            if self.spawn_error.is_some() {
                self.lines = LineBuffer::default();
            }
        }
    }

    /// Reads what is in the pipe, and no more: a process left by codex could write for ever. What codex wrote before
    /// its exit still counts.
    fn drain_stdout(&mut self) {
        let mut limit = LARGEST_PIPE;
        if let Some(mut stdout) = self.stdout.take() {
            while let Ok(length @ 1..) = self.lines.read_from(&mut stdout)
                && length < limit
            {
                limit -= length;
            }
        }
    }

    fn read_stderr(&mut self) {
        let Some(stderr) = &mut self.stderr else {
            return;
        };
        let mut chunk = [0; 16 << 10];
        // Bounded: a flood on stderr must not delay stdout.
        for _ in 0..16 {
            match stderr.read(&mut chunk) {
                Ok(0) => {
                    self.stderr = None;
                    return;
                }
                Ok(length) => {
                    self.tail.extend_from_slice(&chunk[..length]);
                    if self.tail.len() > 4 * STDERR_KEPT {
                        self.tail.drain(..self.tail.len() - STDERR_KEPT);
                    }
                }
                Err(error) if is_temporary(&error) => return,
                Err(_) => {
                    self.stderr = None;
                    return;
                }
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.exit_status.is_some() {
            return;
        }
        if !self.exited {
            self.end();
            // A codex that is blocked writing its output gets an error.
            self.stdout = None;
            self.stderr = None;
            let deadline = Instant::now() + guard::LONGEST_ENDING;
            os::is_ready(&self.ended, PollFlags::IN, Some(deadline));
            if !os::has_ended(&self.ended) {
                self.kill();
            }
        }
        self.reap();
    }
}

#[derive(Default)]
struct Ready {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    exited: bool,
    cancelled: bool,
    woken: bool,
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

fn spawn_failed(invocation: &CodexCommand, error: io::Error) -> Error {
    match Errno::from_io_error(&error) {
        Some(Errno::NOENT | Errno::ACCESS) if !os::has_proc() => Error::new(
            Kind::CodexFailed,
            "cannot start codex: '/proc' is not mounted, and the processes that codex starts cannot be found and ended without it",
        )
        .hint("mount it: mount -t proc proc /proc"),
        // The executable is this process's own: the missing or inaccessible path is the directory.
        Some(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS | Errno::LOOP) => Error::os(
            Kind::Params,
            format!(
                "cannot enter the workspace '{}'",
                invocation.directory.display()
            ),
            error,
        ),
        Some(Errno::TOOBIG) => Error::new(
            Kind::CodexFailed,
            format!(
                "cannot start codex: {}; shorten \"extra_args\" or \"env\" in the config",
                reason(&error)
            ),
        ),
        _ => Error::os(Kind::CodexFailed, "cannot start a process for codex", error)
            .hint("the machine or this user is out of processes, descriptors or memory")
            .with_retryable(true),
    }
}

/// The end of stderr as text for a message: whole lines without escape sequences, at most twelve.
fn readable_tail(tail: &[u8]) -> String {
    let start = tail.len().saturating_sub(STDERR_KEPT);
    let text = String::from_utf8_lossy(&tail[start..]);
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        if char == '\u{1b}' && chars.peek() == Some(&'[') {
            // A colour or a cursor movement, up to its final letter.
            for char in chars.by_ref() {
                if char.is_ascii_alphabetic() {
                    break;
                }
            }
        } else if char == '\n' || !char.is_control() {
            plain.push(char);
        }
    }
    let mut lines: Vec<&str> = plain
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty())
        .collect();
    if tail.len() > STDERR_KEPT && lines.len() > 1 {
        // The first line is usually incomplete.
        lines.remove(0);
    }
    let kept = lines.len().saturating_sub(12);
    lines.split_off(kept).join("\n")
}

/// Splits a stream into lines, in one buffer.
#[derive(Debug, Default)]
struct LineBuffer {
    /// The bytes that were read, followed by unused space.
    buffer: Vec<u8>,
    /// How many bytes of it were read.
    filled: usize,
    /// The start of the first line that was not taken.
    start: usize,
    /// There is no line end before this position.
    searched: usize,
    /// The end of the first line, if it is known.
    end: Option<usize>,
    /// The bytes skipped so far of an overlong line whose end has not come.
    skipping: Option<u64>,
    /// The length of an overlong line that has ended, for [`OutputLine::Skipped`].
    skipped: Option<u64>,
}

impl LineBuffer {
    fn read_from(&mut self, stream: &mut impl Read) -> io::Result<usize> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.filled, 0);
            self.filled -= self.start;
            self.searched -= self.start;
            self.start = 0;
        }
        if self.filled == 0 && self.buffer.len() > 4 * READ_SIZE {
            self.buffer = Vec::new();
        }
        // The buffer is not cleared for each read: most reads are of one short line.
        let end = self.filled + READ_SIZE;
        if self.buffer.len() < end {
            self.buffer.resize(end, 0);
        }
        let read = stream.read(&mut self.buffer[self.filled..end])?;
        self.filled += read;
        self.search();
        Ok(read)
    }

    /// Finds the end of the first line, and drops a line that is too long.
    fn search(&mut self) {
        if self.end.is_some() || self.skipped.is_some() {
            return;
        }
        if let Some(skipped) = self.skipping {
            match memchr(b'\n', self.unread()) {
                Some(at) => {
                    self.skipped = Some(skipped + at as u64);
                    self.skipping = None;
                    self.start += at + 1;
                    self.searched = self.start;
                }
                None => {
                    self.skipping = Some(skipped + (self.filled - self.start) as u64);
                    self.clear();
                }
            }
            return;
        }
        match memchr(b'\n', &self.buffer[self.searched..self.filled]) {
            Some(at) => self.end = Some(self.searched + at),
            None => {
                self.searched = self.filled;
                if self.filled - self.start > LONGEST_LINE {
                    self.skipping = Some((self.filled - self.start) as u64);
                    self.buffer = Vec::new();
                    self.clear();
                }
            }
        }
    }

    fn clear(&mut self) {
        self.filled = 0;
        self.start = 0;
        self.searched = 0;
    }

    fn ready(&self) -> bool {
        self.end.is_some() || self.skipped.is_some()
    }

    fn unread(&self) -> &[u8] {
        &self.buffer[self.start..self.filled]
    }

    fn take(&mut self) -> Option<OutputLine<'_>> {
        if let Some(skipped) = self.skipped.take() {
            self.search();
            return Some(OutputLine::Skipped(skipped));
        }
        let end = self.end.take()?;
        let start = self.start;
        self.start = end + 1;
        self.searched = self.start;
        self.search();
        Some(OutputLine::Whole(&self.buffer[start..end]))
    }

    /// Ends the stream. A last line without its end is dropped: codex died while writing it.
    fn finish(&mut self) {
        if self.skipping.take().is_some() || (self.end.is_none() && !self.unread().is_empty()) {
            log::warn!("codex's output ended in the middle of a line; the fragment is dropped");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(pieces: &[&[u8]]) -> Vec<std::result::Result<String, u64>> {
        let mut lines = LineBuffer::default();
        let mut found = Vec::new();
        for piece in pieces {
            let mut piece = *piece;
            while !piece.is_empty() {
                lines.read_from(&mut piece).unwrap();
                while lines.ready() {
                    match lines.take() {
                        Some(OutputLine::Whole(line)) => {
                            found.push(Ok(String::from_utf8_lossy(line).into_owned()))
                        }
                        Some(OutputLine::Skipped(length)) => found.push(Err(length)),
                        None => {}
                    }
                }
            }
        }
        lines.finish();
        found
    }

    #[test]
    fn finds_lines_across_reads() {
        let text = b"one\n\ntwo and more\nthree\nfragment";
        let whole = [
            Ok("one".to_owned()),
            Ok(String::new()),
            Ok("two and more".to_owned()),
            Ok("three".to_owned()),
        ];
        for cut in 0..text.len() {
            assert_eq!(split(&[&text[..cut], &text[cut..]]), whole, "cut at {cut}");
        }
    }

    // fault: 13
    #[test]
    fn skips_overlong_line() {
        let mut text = vec![b'x'; 40 << 20];
        text.extend_from_slice(b"\nnext\n");
        text.extend(vec![b'y'; LONGEST_LINE]);
        text.extend_from_slice(b"\nlast\n");
        let found = split(&[&text]);
        assert_eq!(found[0], Err(40 << 20));
        assert_eq!(found[1], Ok("next".to_owned()));
        assert_eq!(found[2].as_ref().unwrap().len(), LONGEST_LINE);
        assert_eq!(found[3], Ok("last".to_owned()));
    }

    #[test]
    fn makes_stderr_readable() {
        assert_eq!(
            readable_tail(b"\x1b[31merror\x1b[0m: bad\r\n\n  at\x07 x \n"),
            "error: bad\n  at x"
        );
        let mut flood = "noise\n".repeat(100_000);
        flood.push_str("the reason");
        let tail = readable_tail(&flood.as_bytes()[flood.len() - 4 * STDERR_KEPT..]);
        assert_eq!(tail.lines().count(), 12);
        assert!(tail.ends_with("noise\nthe reason"));
    }
}
