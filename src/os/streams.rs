//! Streams: standard ones in whatever mode they were inherited, and waiting for the other end.

use super::CancelToken;
use super::poll::{PollFd, PollFlags, is_ready, poll};
use rustix::fs::{FileType, OFlags};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// How much a pipe that has room takes without blocking, in bytes.
pub(crate) const PIPE_BUF: usize = 4096;

/// A stream that is waited for also where it is in non-blocking mode, which it shares with everybody who has it
/// open: whoever set that may be another process, so it is not for us to change.
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

fn wait_until_ready(stream: &impl AsFd, what: PollFlags) -> io::Result<()> {
    // An error of the stream shows when it is used.
    poll(&mut [PollFd::new(stream, what)], None).map(drop)
}

/// Waits until `stream` takes more, and says whether it does. Once `flag` is cancelled it is waited for `patience` and
/// no longer.
///
/// # Errors
/// The operating system's.
pub(crate) fn wait_for_room(
    stream: impl AsFd,
    flag: &CancelToken,
    patience: Duration,
) -> io::Result<bool> {
    let mut deadline = None;
    loop {
        let mut fds = vec![PollFd::new(&stream, PollFlags::OUT)];
        if deadline.is_none() {
            fds.push(PollFd::new(flag, PollFlags::IN));
        }
        if !poll(&mut fds, deadline)? {
            return Ok(false);
        }
        // An error of the stream shows when it is written to.
        if !fds[0].revents().is_empty() {
            return Ok(true);
        }
        deadline = Some(Instant::now() + patience);
    }
}

/// Lets go of stdin, stdout and stderr: whoever reads the other end sees its end now, and not only when the last
/// thread of this process is gone, which one that hangs in the file system can put off for ever.
pub(crate) fn close_standard_streams() {
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null");
    let Ok(null) = null else { return };
    // None of the three can fail on open files.
    let _ = rustix::stdio::dup2_stdin(&null);
    let _ = rustix::stdio::dup2_stdout(&null);
    let _ = rustix::stdio::dup2_stderr(&null);
}

/// Is this a pipe or a socket, whose reader sees what is written while it is written?
pub(crate) fn is_pipe(stream: impl AsFd) -> bool {
    rustix::fs::fstat(stream).is_ok_and(|found| {
        let kind = FileType::from_raw_mode(found.st_mode);
        matches!(kind, FileType::Fifo | FileType::Socket)
    })
}

/// The columns and rows of the terminal that this is; 0 where it is not known.
pub(crate) fn terminal_size(stream: impl AsFd) -> Option<(usize, usize)> {
    let size = rustix::termios::tcgetwinsize(stream).ok()?;
    Some((usize::from(size.ws_col), usize::from(size.ws_row)))
}

/// Has reads and writes return at once instead of waiting.
///
/// # Errors
/// The operating system's.
pub(crate) fn set_nonblocking(stream: impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&stream)?;
    Ok(rustix::fs::fcntl_setfl(&stream, flags | OFlags::NONBLOCK)?)
}

/// Asks for a pipe that holds so many bytes. A limit on the memory of pipes keeps it as it is.
pub(crate) fn enlarge_pipe(pipe: impl AsFd, bytes: usize) {
    let _ = rustix::pipe::fcntl_setpipe_size(pipe, bytes);
}

/// Can something be read from this pipe, socket or file at once? Of a device it is not known.
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

/// Waits until the other end of `stream` is closed, at most for `time`; says whether it is. What was written before
/// that may still be there to be read.
pub(crate) fn is_hung_up(stream: impl AsFd, time: Duration) -> bool {
    is_ready(stream, PollFlags::RDHUP, Instant::now().checked_add(time))
}
