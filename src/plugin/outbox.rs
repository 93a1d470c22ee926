//! The only writer of the wire.
//!
//! Whole lines are queued under one lock and written by one thread. A daemon that does not read fills the queue
//! to its limit and then holds up the turns, each in its own thread, and nothing else: the main loop queues its
//! short answers without waiting, so a cancel still works.

use crate::sys::Flag;
use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// How many bytes may wait to be written before turns are held up.
const LIMIT: usize = 4 << 20;

/// A handle on the queue of lines for the daemon.
#[derive(Clone, Debug)]
pub(crate) struct Outbox(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    /// Something is there to be written, or the end has come.
    work: Condvar,
    /// There is room again, or no more waiting.
    room: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    writing: bool,
    /// Nobody waits for room any more: the daemon is gone or the plugin ends.
    abandoned: bool,
    /// Why nothing more is written.
    failed: Option<std::io::Error>,
    /// Nothing more comes.
    closed: bool,
}

impl Outbox {
    /// An outbox that writes to `stream`. `gone` is called once when the stream fails.
    ///
    /// # Errors
    /// No thread could be started.
    pub(crate) fn start(
        mut stream: impl Write + Send + 'static,
        gone: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<(Outbox, JoinHandle<()>)> {
        let outbox = Outbox(Arc::new(Inner {
            state: Mutex::default(),
            work: Condvar::new(),
            room: Condvar::new(),
        }));
        let writer = outbox.clone();
        let thread = std::thread::Builder::new()
            .name("outbox".to_owned())
            .spawn(move || {
                if let Err(error) = writer.write_to(&mut stream) {
                    writer.state().failed = Some(error);
                    writer.abandon();
                    gone();
                }
            })?;
        Ok((outbox, thread))
    }

    /// Queues whole lines without waiting.
    pub(crate) fn push(&self, lines: Vec<u8>) {
        debug_assert!(lines.last() == Some(&b'\n'), "whole lines");
        self.queue(self.state(), lines);
    }

    /// Queues whole lines once there is room. Where the turn is cancelled meanwhile, they stay with the caller.
    pub(crate) fn push_when_room(&self, lines: &mut Vec<u8>, cancel: Option<&Flag>) {
        if lines.is_empty() {
            return;
        }
        let mut state = self.state();
        while state.bytes > LIMIT && !state.abandoned {
            if cancel.is_some_and(Flag::is_raised) {
                return;
            }
            state = self
                .0
                .room
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.queue(state, std::mem::take(lines));
    }

    fn queue(&self, mut state: MutexGuard<'_, State>, lines: Vec<u8>) {
        if state.abandoned && state.bytes > LIMIT {
            return;
        }
        state.bytes += lines.len();
        state.lines.push_back(lines);
        drop(state);
        self.0.work.notify_one();
    }

    /// Lets everybody who waits for room look at his flag again.
    pub(crate) fn wake(&self) {
        let _state = self.state();
        self.0.room.notify_all();
    }

    /// Nobody waits for room from now on.
    pub(crate) fn abandon(&self) {
        self.state().abandoned = true;
        self.0.room.notify_all();
    }

    /// Nothing more comes; waits until everything is written, at most until `deadline`.
    ///
    /// # Errors
    /// The stream's, where it has failed.
    pub(crate) fn close(&self, deadline: Instant) -> std::io::Result<()> {
        let mut state = self.state();
        state.closed = true;
        self.0.work.notify_all();
        while (state.writing || !state.lines.is_empty()) && state.failed.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            state = self
                .0
                .room
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        state.failed.take().map_or(Ok(()), Err)
    }

    fn write_to(&self, stream: &mut dyn Write) -> std::io::Result<()> {
        let mut state = self.state();
        loop {
            while state.lines.is_empty() {
                if state.closed {
                    return Ok(());
                }
                state = self
                    .0
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            let lines = std::mem::take(&mut state.lines);
            state.writing = true;
            drop(state);
            for part in lines {
                stream.write_all(&part)?;
                // Each as it goes, so that what is only half out does not count as a whole.
                self.state().bytes -= part.len();
                self.0.room.notify_all();
            }
            stream.flush()?;
            state = self.state();
            state.writing = false;
            self.0.room.notify_all();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that holds it can panic half-way.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
