//! Cancellation: a token that one thread cancels and others wait for, and a reader that stops on it.

use super::Waker;
use super::poll::{PollFlags, is_ready};
use crate::error::{Error, Kind, Result};
use rustix::process::Signal;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// A token that one thread cancels; others see it, also while they wait in `poll`.
#[derive(Clone, Debug)]
pub(crate) struct CancelToken(Arc<CancelState>);

#[derive(Debug)]
struct CancelState {
    is_cancelled: AtomicBool,
    /// Woken on the cancel and never reset.
    waker: Waker,
    /// The pidfds of the children that [`CancelToken::end_children`] signals.
    children: Mutex<Vec<Weak<OwnedFd>>>,
}

impl CancelToken {
    /// # Errors
    /// [`Kind::Io`] if the process has no descriptors left.
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

    /// Registers the pidfd of a child for [`CancelToken::end_children`], until its owner drops the pidfd.
    pub(crate) fn attach(&self, pidfd: &Arc<OwnedFd>) {
        let mut children = self.children();
        children.retain(|child| child.strong_count() > 0);
        children.push(Arc::downgrade(pidfd));
    }

    /// Sends SIGTERM to the attached children, in case the thread that has to end them hangs in the file system.
    pub(crate) fn end_children(&self) {
        for child in self.children().iter().filter_map(Weak::upgrade) {
            // It fails if the child has ended already.
            let _ = rustix::process::pidfd_send_signal(&*child, Signal::TERM);
        }
    }

    fn children(&self) -> MutexGuard<'_, Vec<Weak<OwnedFd>>> {
        self.0
            .children
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Cancels the token; this cannot be undone.
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

/// A reader that fails once its token is cancelled, for input that may be long.
#[derive(Debug)]
pub(crate) struct Cancellable<R> {
    input: R,
    cancel: CancelToken,
    /// How long reads still succeed after the cancel.
    grace: Duration,
    /// When the grace period began.
    since: Option<Instant>,
}

impl<R> Cancellable<R> {
    pub(crate) fn new(input: R, cancel: &CancelToken) -> Cancellable<R> {
        Cancellable::with_grace(input, cancel, Duration::ZERO)
    }

    /// A reader that fails only `grace` after the cancel; the period restarts after each end of the input.
    pub(crate) fn with_grace(input: R, cancel: &CancelToken, grace: Duration) -> Cancellable<R> {
        Cancellable {
            input,
            cancel: cancel.clone(),
            grace,
            since: None,
        }
    }
}

impl<R: Read> Read for Cancellable<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            let since = *self.since.get_or_insert_with(Instant::now);
            if since.elapsed() >= self.grace {
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

/// Waits until `cancel` is cancelled, for at most `timeout`.
pub(crate) fn wait_for_cancel(cancel: &CancelToken, timeout: Duration) {
    is_ready(cancel, PollFlags::IN, Instant::now().checked_add(timeout));
}
