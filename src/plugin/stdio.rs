//! stdin and stdout where whoever gave them has made them non-blocking.
//!
//! The flag belongs to the open file and not to this process: to clear it would change it under the other one's
//! feet. So what would block is waited for.

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;

/// A stream that waits where it is told to come again.
#[derive(Debug)]
pub(super) struct Patient<T>(pub(super) T);

impl<T: AsFd> Patient<T> {
    /// Does it until it does not block.
    fn until_done<R>(
        &mut self,
        wanted: PollFlags,
        mut work: impl FnMut(&mut T) -> io::Result<R>,
    ) -> io::Result<R> {
        loop {
            match work(&mut self.0) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                done => return done,
            }
            match rustix::event::poll(&mut [PollFd::new(&self.0, wanted)], None) {
                // What is wrong with the stream is told by trying again.
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl<T: AsFd + Read> Read for Patient<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.until_done(PollFlags::IN, |stream| stream.read(buffer))
    }
}

impl<T: AsFd + Write> Write for Patient<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.until_done(PollFlags::OUT, |stream| stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.until_done(PollFlags::OUT, T::flush)
    }
}
