//! Streams: standard ones in whatever mode they were inherited, and waiting for the other end.

use super::CancelToken;
use rustix::event::{PollFd, PollFlags, Timespec};
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
    match rustix::event::poll(&mut [PollFd::new(stream, what)], None) {
        // An error of the stream is told by using it; an interrupted wait is a short one.
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Waits until `stream` takes more, and says whether it does. Once `flag` is raised it is waited for `patience` and
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
        let left = deadline.map(|end: Instant| end.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(0) => return Ok(false),
            // An error of the stream is told by writing to it.
            Ok(_) if !fds[0].revents().is_empty() => return Ok(true),
            Ok(_) => deadline = Some(Instant::now() + patience),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
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

/// Can something be read from this pipe, socket or file at once? Of a device it is not known.
pub(crate) fn has_input(stream: impl AsFd) -> bool {
    use rustix::fs::FileType;
    let Ok(found) = rustix::fs::fstat(&stream) else {
        return false;
    };
    match FileType::from_raw_mode(found.st_mode) {
        FileType::RegularFile => found.st_size > 0,
        FileType::Fifo | FileType::Socket => {
            let mut fds = [PollFd::new(&stream, PollFlags::IN)];
            let now = Timespec::default();
            matches!(rustix::event::poll(&mut fds, Some(&now)), Ok(1..))
                && fds[0].revents().contains(PollFlags::IN)
        }
        _ => false,
    }
}

/// Waits until the other end of `stream` is closed, at most for `time`; says whether it is. What was written before
/// that may still be there to be read.
pub(crate) fn is_hung_up(stream: impl AsFd, time: Duration) -> bool {
    let timeout = Timespec::try_from(time).ok();
    let mut fds = [PollFd::new(&stream, PollFlags::RDHUP)];
    matches!(rustix::event::poll(&mut fds, timeout.as_ref()), Ok(1..))
}
