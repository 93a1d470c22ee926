//! Streams: standard streams that may be inherited in non-blocking mode, pipes, terminals, and waiting for the other
//! end.

use super::CancelToken;
use super::poll::{PollFd, PollFlags, is_ready, poll};
use rustix::fs::{FileType, OFlags};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// How many bytes a writable pipe accepts without blocking.
pub(crate) const PIPE_BUF: usize = 4096;

/// A stream whose reads and writes block even if it is in non-blocking mode. That mode belongs to the open file
/// description, which other processes may share, so it must not be changed here.
#[derive(Debug)]
pub(crate) struct Blocking<T>(pub(crate) T);

impl<T: Read + AsFd> Read for Blocking<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait_until_ready(&self.0, PollFlags::IN)?;
                }
                outcome => return outcome,
            }
        }
    }
}

impl<T: Write + AsFd> Write for Blocking<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait_until_ready(&self.0, PollFlags::OUT)?;
                }
                outcome => return outcome,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        loop {
            match self.0.flush() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait_until_ready(&self.0, PollFlags::OUT)?;
                }
                outcome => return outcome,
            }
        }
    }
}

fn wait_until_ready(stream: &impl AsFd, flags: PollFlags) -> io::Result<()> {
    // An error of the stream is returned by the next read or write.
    poll(&mut [PollFd::new(stream, flags)], None).map(drop)
}

/// Waits until `stream` is writable; after `cancel` for at most `grace`. Returns whether it is writable.
///
/// # Errors
/// The operating system's.
pub(crate) fn wait_for_room(
    stream: impl AsFd,
    cancel: &CancelToken,
    grace: Duration,
) -> io::Result<bool> {
    let mut deadline = None;
    loop {
        let mut fds = vec![PollFd::new(&stream, PollFlags::OUT)];
        if deadline.is_none() {
            fds.push(PollFd::new(cancel, PollFlags::IN));
        }
        if !poll(&mut fds, deadline)? {
            return Ok(false);
        }
        // An error of the stream is returned by the next write.
        if !fds[0].revents().is_empty() {
            return Ok(true);
        }
        deadline = Some(Instant::now() + grace);
    }
}

/// Replaces stdin, stdout and stderr by the null device. The other ends see EOF now instead of when the last thread of
/// this process exits, which a thread that hangs in the file system can delay for ever.
pub(crate) fn close_standard_streams() {
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null");
    let Ok(null) = null else { return };
    // dup2 cannot fail on open files.
    let _ = rustix::stdio::dup2_stdin(&null);
    let _ = rustix::stdio::dup2_stdout(&null);
    let _ = rustix::stdio::dup2_stderr(&null);
}

/// Whether this is a pipe or a socket, whose reader receives data as it is written.
pub(crate) fn is_pipe(stream: impl AsFd) -> bool {
    rustix::fs::fstat(stream).is_ok_and(|found| {
        let kind = FileType::from_raw_mode(found.st_mode);
        matches!(kind, FileType::Fifo | FileType::Socket)
    })
}

/// The columns and rows of a terminal, each 0 if unknown; `None` if this is not a terminal.
pub(crate) fn terminal_size(stream: impl AsFd) -> Option<(usize, usize)> {
    let size = rustix::termios::tcgetwinsize(stream).ok()?;
    Some((usize::from(size.ws_col), usize::from(size.ws_row)))
}

/// Sets non-blocking mode.
///
/// # Errors
/// The operating system's.
pub(crate) fn set_nonblocking(stream: impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&stream)?;
    Ok(rustix::fs::fcntl_setfl(&stream, flags | OFlags::NONBLOCK)?)
}

/// Requests a pipe capacity. The pipe is unchanged if the user's limit on pipe memory is reached.
pub(crate) fn enlarge_pipe(pipe: impl AsFd, bytes: usize) {
    let _ = rustix::pipe::fcntl_setpipe_size(pipe, bytes);
}

/// Whether this pipe, socket or file has data to read now; `false` for a device, where that is not known.
pub(crate) fn has_input(stream: impl AsFd) -> bool {
    let Ok(found) = rustix::fs::fstat(&stream) else {
        return false;
    };
    match FileType::from_raw_mode(found.st_mode) {
        FileType::RegularFile => found.st_size > 0,
        FileType::Fifo | FileType::Socket => {
            let mut fds = [PollFd::new(&stream, PollFlags::IN)];
            matches!(poll(&mut fds, Some(Instant::now())), Ok(true))
                && fds[0].revents().contains(PollFlags::IN)
        }
        _ => false,
    }
}

/// Waits until the other end of `stream` is closed, for at most `timeout`; returns whether it is. Data that was written
/// before may still be unread.
pub(crate) fn is_hung_up(stream: impl AsFd, timeout: Duration) -> bool {
    is_ready(
        stream,
        PollFlags::RDHUP,
        Instant::now().checked_add(timeout),
    )
}
