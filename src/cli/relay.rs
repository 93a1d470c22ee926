//! Reading a rollout with two threads that take turns, what it says still taken in order.
//!
//! Half of the work is to get the bytes from the kernel and to find the lines that matter, the other half to
//! read those. While one thread does the one for a block of the file, the other does the other for the block
//! before. Two things go round between the threads: the input, which has to be held for reading the next block,
//! and the turn to write, which has to be held for handing on what the block says. Both go round in the same order, and so
//! the blocks come out as they came in. A block never leaves the thread that has read it, nor its processor's
//! cache, and memory does not grow with the file.

use crate::rollout::lines::{LineBlock, LineKind, Lines};
use crate::rollout::record::{self, Record, UnreadableLine};
use std::fs::File;
use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

/// A file up to this length is read before a second thread is there.
const SMALL: u64 = 4 << 20;

/// What takes the records of a rollout.
pub(super) trait RecordSink {
    /// What is made of a record before its turn comes.
    type Part<'a>;

    /// What can be done with a record without knowing those before it.
    fn prepare(record: Record<'_>) -> Self::Part<'_>;

    /// Takes the next record.
    ///
    /// # Errors
    /// It cannot be handed on. Nothing more comes then.
    fn take(&mut self, part: Self::Part<'_>) -> io::Result<()>;

    /// Nothing may come for a while.
    ///
    /// # Errors
    /// As for `take`.
    fn pause(&mut self) -> io::Result<()>;
}

/// How it went.
#[derive(Debug)]
pub(super) struct End {
    /// How many lines were no JSON.
    pub(super) bad: Skipped,
    /// How many lines were too long to be held.
    pub(super) long: Skipped,
    /// Was there anything that only a rollout has?
    pub(super) any: bool,
    /// Why the input ended before its end.
    pub(super) read: io::Result<()>,
}

/// Lines that were skipped.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Skipped {
    pub(super) count: u64,
    /// The number of the first of them, from 1.
    pub(super) first: Option<u64>,
}

impl Skipped {
    fn add(&mut self, other: Skipped) {
        self.count += other.count;
        self.first = match (self.first, other.first) {
            (Some(one), Some(another)) => Some(one.min(another)),
            (one, another) => one.or(another),
        };
    }

    fn one(number: u64) -> Skipped {
        Skipped {
            count: 1,
            first: Some(number),
        }
    }
}

/// Why the end was not reached.
#[derive(Debug)]
pub(super) enum RelayError {
    /// There is no thread to be had.
    Thread(io::Error),
    /// What the sink said.
    Sink(io::Error),
}

/// How much there is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    Large,
    /// Who reads from a pipe or a terminal may have to wait for more, and a second thread would wait with the first
    /// when there is nobody left to write for.
    SmallOrUnknown,
}

impl Size {
    pub(super) fn of(file: &File) -> Size {
        let found = file.metadata();
        match found.is_ok_and(|file| file.is_file() && file.len() > SMALL) {
            true => Size::Large,
            false => Size::SmallOrUnknown,
        }
    }
}

/// Gives every record of a tool call in the rollout to `sink`, in order, and with `messages` those of messages too.
///
/// # Errors
/// See [`RelayError`]. The rest is not read then.
pub(super) fn run<S: RecordSink + Send>(
    input: impl Read + Send,
    size: Size,
    messages: bool,
    sink: &mut S,
) -> Result<End, RelayError> {
    let threads = match size {
        Size::Large => 2,
        Size::SmallOrUnknown => 1,
    };
    let lines = Lines::in_blocks(input);
    let mut runners: Vec<_> = ring(threads, lines)
        .into_iter()
        .zip(ring(threads, sink))
        .map(|(input, output_turn)| Runner {
            input,
            output_turn,
            messages,
        })
        .collect();
    let mine = runners.pop().expect("at least one");
    thread::scope(|scope| {
        let others = runners
            .into_iter()
            .map(|runner| {
                thread::Builder::new()
                    .name("rollout".to_owned())
                    .spawn_scoped(scope, || runner.run())
                    .map_err(RelayError::Thread)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut end = mine.run()?;
        for other in others {
            let other = match other.join() {
                Ok(end) => end?,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            end.bad.add(other.bad);
            end.long.add(other.long);
            end.any |= other.any;
            end.read = end.read.and(other.read);
        }
        Ok(end)
    })
}

/// One thread's place in the ring in which something goes round.
struct RingSlot<P> {
    from: Receiver<P>,
    to: SyncSender<P>,
}

/// A ring of so many places; `it` begins at the first of them.
fn ring<P>(places: usize, it: P) -> Vec<RingSlot<P>> {
    let (mut to, from): (Vec<_>, Vec<_>) = (0..places).map(|_| sync_channel(1)).unzip();
    // There is room for it, and somebody will come for it.
    let _ = to[0].send(it);
    to.rotate_left(1);
    from.into_iter()
        .zip(to)
        .map(|(from, to)| RingSlot { from, to })
        .collect()
}

/// One of the threads.
struct Runner<'a, R, S> {
    input: RingSlot<Lines<R>>,
    output_turn: RingSlot<&'a mut S>,
    messages: bool,
}

fn wanted(kind: LineKind, messages: bool) -> bool {
    match kind {
        LineKind::Call | LineKind::Output | LineKind::Item | LineKind::Image | LineKind::Turn => {
            true
        }
        LineKind::Message => messages,
        _ => false,
    }
}

impl<R: Read, S: RecordSink> Runner<'_, R, S> {
    /// Runs until the input or another thread has come to its end.
    fn run(self) -> Result<End, RelayError> {
        let mut block = LineBlock::default();
        let mut end = End {
            bad: Skipped::default(),
            long: Skipped::default(),
            any: false,
            read: Ok(()),
        };
        let mut more = true;
        while more && let Ok(mut lines) = self.input.from.recv() {
            more = lines
                .block(&mut block, |kind| wanted(kind, self.messages))
                .unwrap_or_else(|error| {
                    end.read = Err(error);
                    false
                });
            if more {
                // Refused where the other thread was stopped. Then it has the turn to write, too.
                let _ = self.input.to.send(lines);
            } else {
                end.bad.add(Skipped {
                    count: lines.truncated(),
                    first: lines.first_truncated(),
                });
            }
            let mut parts = Vec::new();
            for line in block.lines() {
                match record::read(&line) {
                    Ok(record) => {
                        end.any |= !matches!(record, Record::Other);
                        parts.push(S::prepare(record));
                    }
                    Err(UnreadableLine::NotJson) => end.bad.add(Skipped::one(line.number)),
                    Err(UnreadableLine::TooLong) => end.long.add(Skipped::one(line.number)),
                }
            }
            let Ok(output_turn) = self.output_turn.from.recv() else {
                break;
            };
            parts
                .into_iter()
                .try_for_each(|part| output_turn.take(part))
                .and_then(|()| output_turn.pause())
                .map_err(RelayError::Sink)?;
            // As above; nobody wants it any more.
            let _ = self.output_turn.to.send(output_turn);
        }
        Ok(end)
    }
}
