//! Reads a rollout on two threads that alternate between its blocks, and passes the records on in order.
//!
//! Half of the work is reading bytes and finding the relevant lines, the other half is parsing those. While one thread
//! reads a block of the file, the other parses the previous one. Two tokens are passed around a ring of the threads:
//! the input, which a thread must hold to read a block, and the sink, which it must hold to write the block's records.
//! Both go around in the same order, so that the records keep theirs. A block stays on the thread that has read it, and
//! so in its CPU cache; memory does not grow with the file.

use crate::rollout::lines::{LineBlock, LineKind, Lines};
use crate::rollout::record::{self, Record, UnreadableLine};
use std::fs::File;
use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

/// A file up to this size, in bytes, is read faster than a second thread starts.
const MAX_SMALL: u64 = 4 << 20;

/// Receives the records of a rollout.
pub(super) trait RecordSink {
    /// A prepared record.
    type Part<'a>;

    /// Does the work that does not depend on earlier records; runs on both threads at once.
    fn prepare(record: Record<'_>) -> Self::Part<'_>;

    /// Takes the next record.
    ///
    /// # Errors
    /// Those of writing. Reading stops then.
    fn take(&mut self, part: Self::Part<'_>) -> io::Result<()>;

    /// Called after each block, before a possible wait for more input: writes out what is buffered.
    ///
    /// # Errors
    /// As for `take`.
    fn flush(&mut self) -> io::Result<()>;
}

/// What was read.
#[derive(Debug)]
pub(super) struct RelayReport {
    /// Lines that are not JSON or have no end.
    pub(super) not_json: SkippedLines,
    /// Lines that were too long to be held.
    pub(super) too_long: SkippedLines,
    /// Whether there was a record that only a rollout has.
    pub(super) has_records: bool,
    /// The error that ended reading early.
    pub(super) read: io::Result<()>,
}

/// Lines that were skipped for one reason.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SkippedLines {
    pub(super) count: u64,
    /// The number of the first of them, from 1.
    pub(super) first: Option<u64>,
}

impl SkippedLines {
    fn add(&mut self, other: SkippedLines) {
        self.count += other.count;
        self.first = match (self.first, other.first) {
            (Some(one), Some(another)) => Some(one.min(another)),
            (one, another) => one.or(another),
        };
    }

    fn one(number: u64) -> SkippedLines {
        SkippedLines {
            count: 1,
            first: Some(number),
        }
    }
}

/// Why reading was given up.
#[derive(Debug)]
pub(super) enum RelayError {
    /// A thread cannot be started.
    Thread(io::Error),
    /// The error of the sink.
    Sink(io::Error),
}

/// The size of an input, which decides about the second thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    Large,
    /// Also a pipe or a terminal, where a read can block: with two threads, one could block in a read after the other
    /// has found that stdout is closed.
    SmallOrUnknown,
}

impl Size {
    pub(super) fn of(file: &File) -> Size {
        let found = file.metadata();
        match found.is_ok_and(|file| file.is_file() && file.len() > MAX_SMALL) {
            true => Size::Large,
            false => Size::SmallOrUnknown,
        }
    }
}

/// Passes every record of a tool call in the rollout to `sink`, in order; with `messages`, messages too.
///
/// # Errors
/// See [`RelayError`]; errors of reading are in the [`RelayReport`].
pub(super) fn run<S: RecordSink + Send>(
    input: impl Read + Send,
    size: Size,
    messages: bool,
    sink: &mut S,
) -> Result<RelayReport, RelayError> {
    let threads = match size {
        Size::Large => 2,
        Size::SmallOrUnknown => 1,
    };
    let lines = Lines::in_blocks(input);
    let mut workers: Vec<_> = ring(threads, lines)
        .into_iter()
        .zip(ring(threads, sink))
        .map(|(input, sink)| Worker {
            input,
            sink,
            messages,
        })
        .collect();
    let own = workers.pop().expect("at least one");
    thread::scope(|scope| {
        let others = workers
            .into_iter()
            .map(|worker| {
                thread::Builder::new()
                    .name("rollout".to_owned())
                    .spawn_scoped(scope, || worker.run())
                    .map_err(RelayError::Thread)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut report = own.run()?;
        for other in others {
            let other = match other.join() {
                Ok(report) => report?,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            report.not_json.add(other.not_json);
            report.too_long.add(other.too_long);
            report.has_records |= other.has_records;
            report.read = report.read.and(other.read);
        }
        Ok(report)
    })
}

/// A thread's position in a ring that passes a token around.
struct RingSlot<T> {
    from: Receiver<T>,
    to: SyncSender<T>,
}

/// Makes a ring; `token` starts at the first slot.
fn ring<T>(slots: usize, token: T) -> Vec<RingSlot<T>> {
    let (mut to, from): (Vec<_>, Vec<_>) = (0..slots).map(|_| sync_channel(1)).unzip();
    // It cannot fail: the channel is empty, and its receiver is in `from`.
    let _ = to[0].send(token);
    to.rotate_left(1);
    from.into_iter()
        .zip(to)
        .map(|(from, to)| RingSlot { from, to })
        .collect()
}

/// The work of one thread.
struct Worker<'a, R, S> {
    input: RingSlot<Lines<R>>,
    sink: RingSlot<&'a mut S>,
    messages: bool,
}

fn is_relevant(kind: LineKind, messages: bool) -> bool {
    match kind {
        LineKind::Call | LineKind::Output | LineKind::Item | LineKind::Image | LineKind::Turn => {
            true
        }
        LineKind::Message => messages,
        _ => false,
    }
}

impl<R: Read, S: RecordSink> Worker<'_, R, S> {
    /// Runs until the input ends or the other thread has stopped.
    fn run(self) -> Result<RelayReport, RelayError> {
        let mut block = LineBlock::default();
        let mut report = RelayReport {
            not_json: SkippedLines::default(),
            too_long: SkippedLines::default(),
            has_records: false,
            read: Ok(()),
        };
        let mut more = true;
        while more && let Ok(mut lines) = self.input.from.recv() {
            more = lines
                .block(&mut block, |kind| is_relevant(kind, self.messages))
                .unwrap_or_else(|error| {
                    report.read = Err(error);
                    false
                });
            if more {
                // It fails where the other thread has stopped; then the sink does not come back either.
                let _ = self.input.to.send(lines);
            } else {
                report.not_json.add(SkippedLines {
                    count: lines.truncated(),
                    first: lines.first_truncated(),
                });
            }
            let mut parts = Vec::new();
            for line in block.lines() {
                match record::read(&line) {
                    Ok(record) => {
                        report.has_records |= !matches!(record, Record::Other);
                        // The head of a line that codex has not written need not show that it is a message.
                        if self.messages || !matches!(record, Record::Message { .. }) {
                            parts.push(S::prepare(record));
                        }
                    }
                    Err(UnreadableLine::NotJson) => {
                        report.not_json.add(SkippedLines::one(line.number));
                    }
                    Err(UnreadableLine::TooLong) => {
                        report.too_long.add(SkippedLines::one(line.number));
                    }
                }
            }
            let Ok(sink) = self.sink.from.recv() else {
                break;
            };
            parts
                .into_iter()
                .try_for_each(|part| sink.take(part))
                .and_then(|()| sink.flush())
                .map_err(RelayError::Sink)?;
            // It fails where the other thread has stopped, and so does not use it any more.
            let _ = self.sink.to.send(sink);
        }
        Ok(report)
    }
}
