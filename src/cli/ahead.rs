//! Reading a rollout on a thread of its own, ahead of what is made of it.
//!
//! Half of the work is to get the bytes from the kernel and to find the lines that matter, the other half to
//! read those and to write what they say: side by side they take half the time. The lines are handed over in
//! batches, never more than two of them waiting, so that memory does not grow with the file.

use crate::rollout::lines::{Kind, Line, Lines};
use std::cell::RefCell;
use std::io::{self, Read};
use std::mem;
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::{self, JoinHandle};

/// Batches whose memory is larger are not used again: a long line was in them.
const ROOMY: usize = 1 << 20;

/// The lines of a reader, found by another thread.
pub(super) struct Ahead {
    batches: Receiver<Batch>,
    spare: SyncSender<Batch>,
    reader: JoinHandle<(u64, io::Result<()>)>,
}

/// Some lines, one behind the other.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    lines: Vec<Place>,
}

struct Place {
    bytes: Range<usize>,
    length: u64,
    kind: Kind,
}

impl Ahead {
    /// Begins to read; the lines of the kinds that are `wanted` come, and those of an unknown kind.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub(super) fn start(
        input: Box<dyn Read + Send>,
        wanted: fn(Kind) -> bool,
    ) -> io::Result<Ahead> {
        let (sender, batches) = sync_channel(1);
        let (spare, returned) = sync_channel(2);
        // Joined at the end of the input. Where nobody takes the batches any more it may be left blocked in a
        // read of stdin; then the process is about to end.
        let reader = thread::Builder::new()
            .name("read-ahead".to_owned())
            .spawn(move || read(input, wanted, &sender, &returned))?;
        Ok(Ahead {
            batches,
            spare,
            reader,
        })
    }

    /// Gives every line to `take`, in order. Before it waits for more it calls `idle`.
    ///
    /// # Errors
    /// What `take` or `idle` says; then the rest is not read.
    pub(super) fn each<E>(
        &self,
        mut take: impl FnMut(&Line<'_>) -> Result<(), E>,
        mut idle: impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        loop {
            let mut batch = match self.batches.try_recv() {
                Ok(batch) => batch,
                Err(TryRecvError::Disconnected) => return Ok(()),
                Err(TryRecvError::Empty) => {
                    idle()?;
                    match self.batches.recv() {
                        Ok(batch) => batch,
                        Err(_) => return Ok(()),
                    }
                }
            };
            for place in &batch.lines {
                take(&Line {
                    offset: 0,
                    length: place.length,
                    bytes: &batch.bytes[place.bytes.clone()],
                    kind: place.kind,
                    ended: true,
                })?;
            }
            if batch.bytes.capacity() <= ROOMY {
                batch.bytes.clear();
                batch.lines.clear();
                // Whether there is room for it or somebody to use it does not matter.
                let _ = self.spare.try_send(batch);
            }
        }
    }

    /// After the last line: how many lines were torn, and why the input ended before its end.
    pub(super) fn finish(self) -> (u64, io::Result<()>) {
        drop(self.batches);
        match self.reader.join() {
            Ok(end) => end,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// The thread that reads.
fn read(
    input: Box<dyn Read + Send>,
    wanted: fn(Kind) -> bool,
    batches: &SyncSender<Batch>,
    returned: &Receiver<Batch>,
) -> (u64, io::Result<()>) {
    let batch = RefCell::new(Batch::default());
    let mut lines = Lines::new(Handing {
        input,
        batch: &batch,
        batches,
        returned,
    });
    let result = loop {
        match lines.next(wanted) {
            Ok(Some(line)) => batch.borrow_mut().add(&line),
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    if result.is_ok()
        && let Some(line) = lines.rest(wanted)
    {
        batch.borrow_mut().add(&line);
    }
    let torn = lines.torn();
    // Refused where nobody wants it any more.
    let _ = batches.send(batch.into_inner());
    (torn, result)
}

impl Batch {
    fn add(&mut self, line: &Line<'_>) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(line.bytes);
        self.lines.push(Place {
            bytes: start..self.bytes.len(),
            length: line.length,
            kind: line.kind,
        });
    }
}

/// A reader that hands on the lines that are found before it may block.
struct Handing<'a> {
    input: Box<dyn Read + Send>,
    batch: &'a RefCell<Batch>,
    batches: &'a SyncSender<Batch>,
    returned: &'a Receiver<Batch>,
}

impl Read for Handing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut batch = self.batch.borrow_mut();
        if !batch.lines.is_empty() {
            let next = self.returned.try_recv().unwrap_or_default();
            if self.batches.send(mem::replace(&mut *batch, next)).is_err() {
                // Nobody wants more: as good as the end.
                return Ok(0);
            }
        }
        drop(batch);
        self.input.read(buffer)
    }
}
