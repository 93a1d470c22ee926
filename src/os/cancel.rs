//! Cancelling: a token that one thread cancels and others wait for, and readers that stop with it.

use super::Waker;
use super::poll::{PollFlags, is_ready};
use crate::error::{Error, Kind, Result};
use rustix::process::Signal;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// A token that one thread cancels and others notice, also while they wait in `poll`.
#[derive(Clone, Debug)]
pub(crate) struct CancelToken(Arc<CancelState>);

#[derive(Debug)]
struct CancelState {
    is_cancelled: AtomicBool,
    /// Woken on the cancel, and never reset.
    waker: Waker,
    /// The pidfds of the children that run for what can be cancelled.
    children: Mutex<Vec<Weak<OwnedFd>>>,
}

impl CancelToken {
    /// A token that is not cancelled.
    ///
    /// # Errors
    /// [`Kind::Io`] where the process has no descriptors left.
    pub(crate) fn new() -> Result<CancelToken> {
        let waker = Waker::new().map_err(|error| {
            Error::os(Kind::Io, "cannot make an eventfd", error).with_retryable(true)
        })?;
        Ok(CancelToken(Arc::new(CancelState {
            is_cancelled: AtomicBool::new(false),
            waker,
            children: Mutex::default(),
        })))
    }

    /// Notes the pidfd of a child, for [`CancelToken::end_children`], as long as its owner keeps it.
    pub(crate) fn attach(&self, pidfd: &Arc<OwnedFd>) {
        let mut children = self.children();
        children.retain(|child| child.strong_count() > 0);
        children.push(Arc::downgrade(pidfd));
    }

    /// Sends SIGTERM to the children, for a thread that should end them and hangs
    /// in the file system.
    pub(crate) fn end_children(&self) {
        for child in self.children().iter().filter_map(Weak::upgrade) {
            // It may have ended already.
            let _ = rustix::process::pidfd_send_signal(&*child, Signal::TERM);
        }
    }

    fn children(&self) -> MutexGuard<'_, Vec<Weak<OwnedFd>>> {
        self.0
            .children
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Cancels it for good.
    pub(crate) fn cancel(&self) {
        if !self.0.is_cancelled.swap(true, Ordering::SeqCst) {
            self.0.waker.wake();
        }
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.is_cancelled.load(Ordering::SeqCst)
    }
}

impl AsFd for CancelToken {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.waker.as_fd()
    }
}

/// A reader that fails once a token is cancelled, for input that is too long to be read to its end then.
#[derive(Debug)]
pub(crate) struct Cancellable<R> {
    input: R,
    cancel: CancelToken,
    /// How long it goes on reading after the cancel, and since when it does.
    patience: Duration,
    since: Option<Instant>,
}

impl<R> Cancellable<R> {
    pub(crate) fn new(input: R, cancel: &CancelToken) -> Cancellable<R> {
        Cancellable::patient(input, cancel, Duration::ZERO)
    }

    /// One that reads on for so long after the cancel, counted anew after each end of the input.
    pub(crate) fn patient(input: R, cancel: &CancelToken, patience: Duration) -> Cancellable<R> {
        Cancellable {
            input,
            cancel: cancel.clone(),
            patience,
            since: None,
        }
    }
}

impl<R: Read> Read for Cancellable<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            let since = *self.since.get_or_insert_with(Instant::now);
            if since.elapsed() >= self.patience {
                return Err(io::Error::other("cancelled"));
            }
        }
        let length = self.input.read(buffer)?;
        if length == 0 {
            self.since = None;
        }
        Ok(length)
    }
}

/// Waits for the cancel, at most for `time`.
pub(crate) fn wait_for(flag: &CancelToken, time: Duration) {
    is_ready(flag, PollFlags::IN, Instant::now().checked_add(time));
}
