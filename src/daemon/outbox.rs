//! The queue of lines for the daemon, and the only writer of stdout.
//!
//! Whole lines are queued under one lock and written by one thread. If the daemon does not read, the queue fills up to
//! its limit. Then only the threads of turns block: the main loop queues its short responses without waiting, so a
//! cancel still works. Too many unread responses stop the reading of stdin instead ([`Outbox::is_flooded`]).

use crate::os::CancelToken;
use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// How many bytes may be queued before turns block.
const LIMIT: usize = 4 << 20;
/// How many bytes of the main loop's responses may be queued before the reading of requests pauses.
const RESPONSES_LIMIT: usize = 4 << 20;
/// The approximate memory of a queued line besides its bytes: it matters for millions of short lines.
const LINE_OVERHEAD: usize = 64;

/// A handle on the queue of lines for the daemon.
#[derive(Clone, Debug)]
pub(crate) struct Outbox(Arc<OutboxInner>);

#[derive(Debug)]
struct OutboxInner {
    state: Mutex<OutboxState>,
    /// Notified when a line is queued, and on close.
    work: Condvar,
    /// Notified when lines were written, on [`Outbox::wake`] and when the outbox is abandoned.
    room: Condvar,
}

#[derive(Debug, Default)]
struct OutboxState {
    lines: VecDeque<OutboxPart>,
    bytes: usize,
    /// The bytes of the main loop's responses, with [`LINE_OVERHEAD`] for each.
    responses: usize,
    writing: bool,
    /// The daemon is gone or the plugin shuts down: there is no more waiting for room.
    abandoned: bool,
    /// The error of the stream, after which nothing is written.
    failed: Option<std::io::Error>,
    /// Nothing more will be queued.
    closed: bool,
}

#[derive(Debug)]
struct OutboxPart {
    lines: Vec<u8>,
    /// A response of the main loop counts towards [`RESPONSES_LIMIT`].
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
    /// Starts an outbox that writes to `stream`, and its thread. `on_failure` is called once if the stream fails.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(crate) fn start(
        mut stream: impl Write + Send + 'static,
        on_failure: impl FnOnce() + Send + 'static,
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
                    on_failure();
                }
            })?;
        Ok((outbox, thread))
    }

    /// Queues whole lines without waiting.
    pub(crate) fn push(&self, lines: Vec<u8>) {
        debug_assert!(lines.last() == Some(&b'\n'), "whole lines");
        self.queue(self.state(), lines, false);
    }

    /// Queues a response of the main loop without waiting. The reader of requests has to check [`Outbox::is_flooded`]
    /// before each.
    pub(crate) fn respond(&self, line: Vec<u8>) {
        debug_assert!(line.last() == Some(&b'\n'), "whole lines");
        self.queue(self.state(), line, true);
    }

    /// Whether so many responses are unread that the reading of requests should pause.
    pub(crate) fn is_flooded(&self) -> bool {
        let state = self.state();
        state.responses > RESPONSES_LIMIT && !state.abandoned && !state.closed
    }

    /// Queues whole lines if there is room, and returns whether it did; otherwise `lines` is unchanged.
    pub(crate) fn try_push(&self, lines: &mut Vec<u8>) -> bool {
        let state = self.state();
        let has_room = state.bytes <= LIMIT || state.abandoned;
        if has_room {
            self.queue(state, std::mem::take(lines), false);
        }
        has_room
    }

    /// Waits until there is room. Returns `false` if the turn is cancelled first.
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

    /// Wakes all threads that wait for room, to check their cancel tokens.
    pub(crate) fn wake(&self) {
        let _state = self.state();
        self.0.room.notify_all();
    }

    /// Ends all waits for room, now and later.
    pub(crate) fn abandon(&self) {
        self.state().abandoned = true;
        self.0.room.notify_all();
    }

    /// Ends the thread once everything is written; waits for that until `deadline` at most.
    ///
    /// # Errors
    /// The stream has failed.
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
                // After each part, so that written bytes no longer take room.
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
        // No holder of this lock panics while the state is inconsistent.
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
