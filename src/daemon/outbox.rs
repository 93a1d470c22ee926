//! The only writer of the wire.
//!
//! Whole lines are queued under one lock and written by one thread. A daemon that does not read fills the queue
//! to its limit and then holds up the turns, each in its own thread, and nothing else: the main loop queues its
//! short responses without waiting, so a cancel still works. Too many of those stop the reading of stdin instead
//! ([`Outbox::is_flooded`]).

use crate::os::CancelToken;
use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// How many bytes may wait to be written before turns are held up.
const LIMIT: usize = 4 << 20;
/// How many bytes of the loop's own responses may wait to be written before no more requests are read.
const RESPONSES_LIMIT: usize = 4 << 20;
/// What a queued line costs beside its bytes, roughly: it matters where millions of short ones wait.
const LINE_OVERHEAD: usize = 64;

/// A handle on the queue of lines for the daemon.
#[derive(Clone, Debug)]
pub(crate) struct Outbox(Arc<OutboxInner>);

#[derive(Debug)]
struct OutboxInner {
    state: Mutex<OutboxState>,
    /// Something is there to be written, or the end has come.
    work: Condvar,
    /// There is room again, or no more waiting.
    room: Condvar,
}

#[derive(Debug, Default)]
struct OutboxState {
    lines: VecDeque<OutboxPart>,
    bytes: usize,
    /// How many of them are the loop's own responses, with what they cost beside their bytes.
    responses: usize,
    writing: bool,
    /// Nobody waits for room any more: the daemon is gone or the plugin ends.
    abandoned: bool,
    /// Why nothing more is written.
    failed: Option<std::io::Error>,
    /// Nothing more comes.
    closed: bool,
}

#[derive(Debug)]
struct OutboxPart {
    lines: Vec<u8>,
    /// Is it a response of the loop's own?
    is_response: bool,
}

impl OutboxPart {
    fn response_cost(&self) -> usize {
        match self.is_response {
            true => self.lines.len() + LINE_OVERHEAD,
            false => 0,
        }
    }
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
        let outbox = Outbox(Arc::new(OutboxInner {
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
        self.queue(self.state(), lines, false);
    }

    /// Queues a response of the loop's own without waiting. Whoever reads requests looks at
    /// [`Outbox::is_flooded`] first.
    pub(crate) fn respond(&self, line: Vec<u8>) {
        debug_assert!(line.last() == Some(&b'\n'), "whole lines");
        self.queue(self.state(), line, true);
    }

    /// Do so many responses wait for a daemon that does not read that no more requests should be read?
    pub(crate) fn is_flooded(&self) -> bool {
        let state = self.state();
        state.responses > RESPONSES_LIMIT && !state.abandoned && !state.closed
    }

    /// Queues whole lines where there is room; otherwise they stay with the caller.
    pub(crate) fn try_push(&self, lines: &mut Vec<u8>) -> bool {
        let state = self.state();
        let has_room = state.bytes <= LIMIT || state.abandoned;
        if has_room {
            self.queue(state, std::mem::take(lines), false);
        }
        has_room
    }

    /// Waits until there is room; `false` where the turn is cancelled before.
    pub(crate) fn wait_for_room(&self, cancel: Option<&CancelToken>) -> bool {
        let mut state = self.state();
        while state.bytes > LIMIT && !state.abandoned {
            if cancel.is_some_and(CancelToken::is_cancelled) {
                return false;
            }
            state = self
                .0
                .room
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    fn queue(&self, mut state: MutexGuard<'_, OutboxState>, lines: Vec<u8>, is_response: bool) {
        if state.abandoned && state.bytes > LIMIT {
            return;
        }
        state.bytes += lines.len();
        let part = OutboxPart { lines, is_response };
        state.responses += part.response_cost();
        state.lines.push_back(part);
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
                stream.write_all(&part.lines)?;
                // Each as it goes, so that what is only half out does not count as a whole.
                let mut state = self.state();
                state.bytes -= part.lines.len();
                state.responses -= part.response_cost();
                drop(state);
                self.0.room.notify_all();
            }
            stream.flush()?;
            state = self.state();
            state.writing = false;
            self.0.room.notify_all();
        }
    }

    fn state(&self) -> MutexGuard<'_, OutboxState> {
        // Nothing that holds it can panic half-way.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // fault: 87
    #[test]
    fn limits_unread_responses_but_not_events() {
        let (reader, writer) = std::io::pipe().unwrap();
        let (outbox, _thread) = Outbox::start(writer, || {}).unwrap();
        outbox.push(b"e\n".repeat(RESPONSES_LIMIT));
        assert!(!outbox.is_flooded());
        for _ in 0..2 * RESPONSES_LIMIT / 1000 {
            outbox.respond(b"r\n".repeat(500));
        }
        assert!(outbox.is_flooded());
        drop(reader);
        while outbox.is_flooded() {
            std::thread::yield_now();
        }
    }
}
