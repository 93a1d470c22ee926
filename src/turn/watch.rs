//! Following the rollout of a running turn: tool calls with codex's own ids, as codex records them.
//!
//! codex's events have no call ids and its rollout has no progress, so a turn listens to both. The rollout is
//! read from where it stood when the turn began, so a turn costs what it wrote and tells nothing of an earlier
//! one. What it says is queued in codex's order, texts of the assistant among the calls, and the turn takes the
//! calls out around the texts that codex prints.

use crate::canonical::Usage;
use crate::rollout::calls::{Calls, write_result, write_use};
use crate::rollout::lines::{Kind, Lines};
use crate::rollout::record::{self, Record};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a text that was recorded may keep what was recorded behind it waiting for codex to print it.
const UNPRINTED: Duration = Duration::from_millis(500);

/// A rollout that grows.
#[derive(Debug)]
pub(super) struct Watch {
    lines: Lines<File>,
    calls: Calls<()>,
    found: VecDeque<Found>,
    usage: Option<Usage>,
}

#[derive(Debug)]
enum Found {
    /// An event, as JSON.
    Event(Vec<u8>),
    /// A text of the assistant, and when it was seen here.
    Text(String, Instant),
}

fn wanted(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Call | Kind::Output | Kind::Item | Kind::Turn | Kind::Message | Kind::Usage
    )
}

impl Watch {
    /// Follows the file at `path` from `offset`.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn open(path: &Path, offset: u64) -> io::Result<Watch> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(offset))?;
        Ok(Watch {
            lines: Lines::starting_at(file, offset),
            calls: Calls::default(),
            found: VecDeque::new(),
            usage: None,
        })
    }

    /// Takes what was recorded since; says whether that was anything.
    pub(super) fn poll(&mut self) -> bool {
        let before = self.lines.offset();
        loop {
            match self.lines.next(wanted) {
                Ok(Some(line)) => {
                    // A line that cannot be read is codex's to mend; the turn's end does not hang on it.
                    if let Ok(record) = record::read(&line) {
                        take(record, &mut self.calls, &mut self.found, &mut self.usage);
                    }
                }
                Ok(None) => return self.lines.offset() != before,
                Err(error) => {
                    log::warn!("cannot read the rollout: {error}");
                    return false;
                }
            }
        }
    }

    /// What the thread has used so far, as far as this turn has recorded it.
    pub(super) fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// Is a call recorded that has no output yet?
    pub(super) fn is_running(&self) -> bool {
        self.calls.any_open()
    }

    /// The next event that no text stands before; a text that codex does not print is passed over in time.
    pub(super) fn next_event(&mut self) -> Option<Vec<u8>> {
        loop {
            match self.found.pop_front()? {
                Found::Event(event) => return Some(event),
                Found::Text(_, seen) if seen.elapsed() > UNPRINTED => {}
                text @ Found::Text(..) => {
                    self.found.push_front(text);
                    return None;
                }
            }
        }
    }

    /// Gives the events that were recorded before this text, which codex now prints; `None` while it is not
    /// recorded.
    pub(super) fn before(&mut self, text: &str) -> Option<Vec<Vec<u8>>> {
        let is_it = |found: &Found| matches!(found, Found::Text(recorded, _) if recorded.trim() == text.trim());
        let at = self.found.iter().position(is_it)?;
        let events = self.found.drain(..=at).filter_map(|found| match found {
            Found::Event(event) => Some(event),
            Found::Text(..) => None,
        });
        Some(events.collect())
    }

    /// Everything that is left, and an error for each call that never got an output.
    pub(super) fn finish(&mut self) -> Vec<Vec<u8>> {
        self.poll();
        let mut events: Vec<Vec<u8>> = self
            .found
            .drain(..)
            .filter_map(|found| match found {
                Found::Event(event) => Some(event),
                Found::Text(..) => None,
            })
            .collect();
        for (id, ()) in self.calls.unanswered() {
            events.push(
                serde_json::json!({
                    "type": "tool_result",
                    "id": id,
                    "content": "the turn ended before this call had an output",
                    "is_error": true,
                })
                .to_string()
                .into_bytes(),
            );
        }
        events
    }
}

fn take(
    record: Record<'_>,
    calls: &mut Calls<()>,
    found: &mut VecDeque<Found>,
    usage: &mut Option<Usage>,
) {
    let mut event = |write: &dyn Fn(&mut Vec<u8>) -> io::Result<()>| {
        let mut bytes = Vec::new();
        // Writing to memory does not fail.
        let _ = write(&mut bytes);
        found.push_back(Found::Event(bytes));
    };
    match record {
        Record::Turn(id) => calls.turn(&id),
        Record::Call(call) => {
            event(&|out| write_use(out, &call, None));
            calls.begin(&call, ());
        }
        Record::Ended { id, failed } => calls.ended(&id, failed),
        Record::Output(output) => {
            if let Some(answered) = calls.answer(&output) {
                event(&|out| write_result(out, &output.id, &output.content, answered.is_error));
            }
        }
        Record::Nested(nested) => {
            event(&|out| write_use(out, &nested.call, calls.parent(&nested)));
            event(&|out| write_result(out, &nested.call.id, &nested.content, nested.failed));
        }
        Record::Text(text) => found.push_back(Found::Text(text, Instant::now())),
        Record::Usage(now) => *usage = Some(now),
        Record::Other => {}
    }
}

/// What a thread had used when its rollout was last written, and the rollout's length in bytes. It is read from
/// its end in growing pieces, never as a whole unless nothing is found before.
///
/// # Errors
/// The operating system's.
pub(super) fn at_end(path: &Path) -> io::Result<(u64, Option<Usage>)> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut piece = 64 << 10;
    loop {
        let start = length.saturating_sub(piece);
        file.seek(SeekFrom::Start(start))?;
        // The first line of a piece is likely cut; then it is no JSON and passed over.
        let mut lines = Lines::starting_at(io::Read::take(&file, length - start), start);
        let mut usage = None;
        while let Some(line) = lines.next(|kind| kind == Kind::Usage)? {
            if let Ok(Record::Usage(now)) = record::read(&line) {
                usage = Some(now);
            }
        }
        if usage.is_some() || start == 0 {
            return Ok((length, usage));
        }
        piece = piece.saturating_mul(16);
    }
}
