//! poll(2) with a deadline.

use rustix::event::Timespec;
pub(crate) use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

/// Waits until a descriptor is ready or `deadline` has passed (`None`: without limit); returns whether one is ready.
/// A signal does not end the wait.
///
/// # Errors
/// The operating system's, for lack of memory.
pub(crate) fn poll(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        // A duration that is too long for a timespec means no limit.
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match rustix::event::poll(fds, timeout.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// As [`poll`], for one descriptor; an error counts as not ready.
pub(crate) fn is_ready(fd: impl AsFd, flags: PollFlags, deadline: Option<Instant>) -> bool {
    poll(&mut [PollFd::new(&fd, flags)], deadline).unwrap_or(false)
}
