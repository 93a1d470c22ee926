//! The lines of a rollout, fast: which of them matter is decided by their first bytes.
//!
//! Most bytes of a rollout lie in lines that nobody here asks for. So line ends are found at memory speed, the
//! head of a line (as codex writes it: timestamp, ordinal, type, the payload's type) says what the line is, and
//! a line that is not wanted is ignored unread, however long it is, and never held. A line with a head in
//! any other form (other key order, spaces, escapes) is [`LineKind::Unknown`]: it is given to the caller whole, who
//! finds out by walking over it what it is.
//!
//! The price of not reading is known: of a line that is ignored, only the head and the last byte are looked
//! at. A line whose end is missing is counted as truncated; one that is broken in the middle is not noticed.
//!
//! It reads in file order and only forward, every byte once, and reports where each line begins. A caller that
//! copies while it scans can hand in a reader that writes down what passes through it.

use crate::json::plain_end;
use std::io::{self, Read};
use std::mem;
use std::ops::Range;

/// How much is read at a time: small enough to stay in the processor's cache until it is scanned.
const READ: usize = 256 * 1024;
/// How much is read at a time where the memory is held for as long as a turn takes.
const FOLLOWED: usize = 64 * 1024;
/// How much is read at a time where threads take turns: the more, the less they wait for each other.
const BLOCK: usize = 1 << 20;
/// In what codex writes, the kind of a line is known by here; four UUIDs would fit in.
const HEAD: usize = 512;
/// The longest line that is held. codex cuts a command's output at 1 MiB and refuses MCP lines over 16 MiB,
/// which escaping can double once more.
pub(crate) const LONGEST: usize = 32 << 20;
/// After a line longer than this, its memory is given back.
const ROOMY: usize = 4 << 20;

/// How the ids of calls begin that were made inside code mode.
pub(crate) const NESTED: &str = "exec-";

/// What a line of a rollout is, as far as anybody here cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LineKind {
    /// `response_item`: a call of a tool.
    Call,
    /// `response_item`: the output of a call.
    Output,
    /// `response_item`: a message, of whatever role.
    Message,
    /// `event_msg`: an MCP call is over, or one that was made inside code mode is.
    Item,
    /// `response_item` or `event_msg`: an image was generated.
    Image,
    /// `event_msg` `token_count`, or `token_usage_record`.
    Usage,
    /// `event_msg`: a turn begins.
    Turn,
    /// `event_msg`: a turn is over.
    TurnEnd,
    /// `turn_context`: what a turn runs with.
    Context,
    /// The conversation so far was replaced by a shorter one, which this line holds.
    Compacted,
    /// Nothing of the above.
    Other,
    /// Not the form in which codex writes: to be found out by reading the line.
    Unknown,
}

impl LineKind {
    /// The kind of a line, by its `type`, its payload's `type`, in an `item_completed` the item's type, and the id
    /// of the item or the call. Where a part is missing, or no string, it is the empty string.
    pub(crate) fn of(record: &[u8], payload: &[u8], item: &[u8], id: &[u8]) -> LineKind {
        match (record, payload) {
            (
                b"response_item",
                b"function_call" | b"custom_tool_call" | b"local_shell_call" | b"tool_search_call",
            ) => LineKind::Call,
            (
                b"response_item",
                b"function_call_output" | b"custom_tool_call_output" | b"tool_search_output",
            ) => LineKind::Output,
            (b"response_item", b"message") => LineKind::Message,
            (b"response_item", b"image_generation_call")
            | (b"event_msg", b"image_generation_end") => LineKind::Image,
            // Of a command, everything is in the call's own output; only inside code mode it has none.
            (b"event_msg", b"item_completed")
                if item == b"McpToolCall" || id.starts_with(NESTED.as_bytes()) =>
            {
                LineKind::Item
            }
            // What 0.135 writes instead, for MCP calls and patches alone.
            (b"event_msg", b"mcp_tool_call_end") => LineKind::Item,
            (b"event_msg", b"patch_apply_end") if id.starts_with(NESTED.as_bytes()) => {
                LineKind::Item
            }
            (b"event_msg", b"token_count") | (b"token_usage_record", _) => LineKind::Usage,
            (b"event_msg", b"task_started") => LineKind::Turn,
            (b"event_msg", b"task_complete" | b"turn_aborted") => LineKind::TurnEnd,
            (b"turn_context", _) => LineKind::Context,
            (b"compacted", _) => LineKind::Compacted,
            _ => LineKind::Other,
        }
    }

    /// The kind of a line by its first bytes.
    fn of_head(line: &[u8]) -> LineKind {
        LineKind::of_usual_head(&line[..line.len().min(HEAD)]).unwrap_or(LineKind::Unknown)
    }

    fn of_usual_head(head: &[u8]) -> Option<LineKind> {
        let (_, rest) = word(head.strip_prefix(br#"{"timestamp":"#)?)?;
        let rest = match rest.strip_prefix(br#","ordinal":"#) {
            Some(rest) => {
                let digits = rest.iter().take_while(|byte| byte.is_ascii_digit());
                &rest[digits.count()..]
            }
            None => rest,
        };
        let (record, rest) = word(rest.strip_prefix(br#","type":"#)?)?;
        let rest = rest.strip_prefix(br#","payload":{"#)?;
        if !matches!(record, b"response_item" | b"event_msg") {
            return Some(LineKind::of(record, b"", b"", b""));
        }
        let (payload, rest) = word(rest.strip_prefix(br#""type":"#)?)?;
        if payload == b"patch_apply_end" {
            let (id, _) = word(rest.strip_prefix(br#","call_id":"#)?)?;
            return Some(LineKind::of(record, payload, b"", id));
        }
        if payload != b"item_completed" {
            return Some(LineKind::of(record, payload, b"", b""));
        }
        let (_, rest) = word(rest.strip_prefix(br#","thread_id":"#)?)?;
        let (_, rest) = word(rest.strip_prefix(br#","turn_id":"#)?)?;
        let (item, rest) = word(rest.strip_prefix(br#","item":{"type":"#)?)?;
        let (id, _) = word(rest.strip_prefix(br#","id":"#)?)?;
        Some(LineKind::of(record, payload, item, id))
    }
}

/// A JSON string without escapes, and what follows it.
fn word(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let text = text.strip_prefix(b"\"")?;
    let (word, rest) = text.split_at(plain_end(text, 0, text.len()));
    Some((word, rest.strip_prefix(b"\"")?))
}

/// One line.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    /// Where it begins, in bytes from where reading began.
    pub(crate) offset: u64,
    /// Its number, from 1, counted from where reading began.
    pub(crate) number: u64,
    /// Its length without its newline.
    pub(crate) length: u64,
    /// The line without its newline; where it is longer than [`LONGEST`], only its first bytes.
    pub(crate) bytes: &'a [u8],
    pub(crate) kind: LineKind,
    /// Did a newline end it?
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "the tests of every way of reading compare it")
    )]
    pub(crate) ended: bool,
}

impl Line<'_> {
    /// Was the line too long to be held?
    pub(crate) fn cut(&self) -> bool {
        (self.bytes.len() as u64) < self.length
    }
}

/// The lines of a reader.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    input: R,
    /// How much is read at a time, in bytes.
    size: usize,
    buffer: Vec<u8>,
    /// Where the line begins that is being read, or what came last of it if it is being skipped.
    start: usize,
    /// No newline stands in `start..scanned`.
    scanned: usize,
    /// What lies behind here was not read.
    end: usize,
    /// Where the line begins in the input.
    offset: u64,
    /// The line is longer than what is held of it.
    passing: Option<SkippedLine>,
    truncated: u64,
    /// The number of the first of them.
    first_torn: Option<u64>,
    /// How many lines were looked at.
    number: u64,
}

/// A line whose bytes are not held any more.
#[derive(Debug)]
struct SkippedLine {
    kind: LineKind,
    /// How many of its first bytes stand at the beginning of the buffer; none if the line is not wanted.
    kept: usize,
    /// How long the line is as far as it was let go.
    length: u64,
    /// The last byte so far that is not blank.
    last: u8,
}

/// Some lines of a reader, with the memory that they stand in.
#[derive(Debug, Default)]
pub(crate) struct LineBlock {
    buffer: Vec<u8>,
    lines: Vec<FoundLine>,
}

impl LineBlock {
    /// The lines, in order.
    pub(crate) fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        self.lines.iter().map(|found| found.lend(&self.buffer))
    }
}

/// A line that was found, before its bytes are lent out.
#[derive(Debug)]
struct FoundLine {
    offset: u64,
    number: u64,
    length: u64,
    place: Range<usize>,
    kind: LineKind,
    ended: bool,
}

impl FoundLine {
    fn lend<'a>(&self, buffer: &'a [u8]) -> Line<'a> {
        Line {
            offset: self.offset,
            number: self.number,
            length: self.length,
            bytes: &buffer[self.place.clone()],
            kind: self.kind,
            ended: self.ended,
        }
    }
}

impl<R: Read> Lines<R> {
    /// The lines of `input` from where it stands.
    pub(crate) fn new(input: R) -> Lines<R> {
        Lines::starting_at(input, 0)
    }

    /// The lines of `input` from where it stands, many at a time: for [`Lines::block`].
    pub(crate) fn in_blocks(input: R) -> Lines<R> {
        Lines {
            size: BLOCK,
            ..Lines::new(input)
        }
    }

    /// The lines of `input`, with little memory: for a rollout that is followed, as each of many turns does.
    pub(crate) fn followed(input: R) -> Lines<R> {
        Lines {
            size: FOLLOWED,
            ..Lines::new(input)
        }
    }

    /// The lines of `input`, which stands at `offset` of what the lines are to be told as places of.
    pub(crate) fn starting_at(input: R, offset: u64) -> Lines<R> {
        Lines {
            input,
            size: READ,
            buffer: Vec::new(),
            start: 0,
            scanned: 0,
            end: 0,
            offset,
            passing: None,
            number: 0,
            truncated: 0,
            first_torn: None,
        }
    }

    /// The next line that is ended by a newline and wanted; lines of an unknown kind always are, blank ones
    /// never. `None` at the end of the input: what came behind the last newline is kept, so that more of it
    /// may come, and [`Lines::rest`] gives it.
    pub(crate) fn next(
        &mut self,
        wanted: impl Fn(LineKind) -> bool,
    ) -> io::Result<Option<Line<'_>>> {
        loop {
            match memchr::memchr(b'\n', &self.buffer[self.scanned..self.end]) {
                Some(at) => {
                    let newline = self.scanned + at;
                    if let Some(found) = self.finish(newline, true, &wanted) {
                        return Ok(Some(found.lend(&self.buffer)));
                    }
                }
                None => {
                    self.scanned = self.end;
                    if !self.fill(&wanted)? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// At the end of the input: the last line, if it has no newline and is wanted.
    pub(crate) fn rest(&mut self, wanted: impl Fn(LineKind) -> bool) -> Option<Line<'_>> {
        let found = self.finish(self.end, false, &wanted)?;
        Some(found.lend(&self.buffer))
    }

    /// Reads on until something that is wanted was found, and puts it into `block` in place of what was there.
    /// The last line needs no newline. `false` at the end of the input.
    ///
    /// Nothing is copied but the beginning of a line whose end is not read yet: the bytes are read into the
    /// memory of the block, which stays near to the processor that works on it.
    pub(crate) fn block(
        &mut self,
        block: &mut LineBlock,
        wanted: impl Fn(LineKind) -> bool,
    ) -> io::Result<bool> {
        block.lines.clear();
        self.change_buffer(&mut block.buffer);
        let more = loop {
            while let Some(at) = memchr::memchr(b'\n', &self.buffer[self.scanned..self.end]) {
                let found = self.finish(self.scanned + at, true, &wanted);
                block.lines.extend(found);
            }
            self.scanned = self.end;
            if !block.lines.is_empty() {
                break Ok(true);
            }
            match self.fill(&wanted) {
                Ok(true) => {}
                Ok(false) => {
                    block.lines.extend(self.finish(self.end, false, &wanted));
                    break Ok(false);
                }
                Err(error) => break Err(error),
            }
        };
        self.change_buffer(&mut block.buffer);
        more
    }

    /// Goes on in another memory, with the bytes that were read and not used yet; the old one takes its place.
    fn change_buffer(&mut self, other: &mut Vec<u8>) {
        let left = &self.buffer[self.start..self.end];
        if other.len() < left.len() {
            other.resize(left.len(), 0);
        }
        other[..left.len()].copy_from_slice(left);
        (self.start, self.scanned, self.end) = (0, self.scanned - self.start, left.len());
        mem::swap(&mut self.buffer, other);
    }

    /// Where the line begins that [`Lines::next`] will look at next.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The number of the first line that was skipped and whose end was missing.
    pub(crate) fn first_torn(&self) -> Option<u64> {
        self.first_torn
    }

    /// How many lines were skipped whose end was missing.
    pub(crate) fn truncated(&self) -> u64 {
        self.truncated
    }

    /// The line that is being read ends at `end`: tells what it was, if it is wanted, and goes on behind it.
    fn finish(
        &mut self,
        end: usize,
        ended: bool,
        wanted: &impl Fn(LineKind) -> bool,
    ) -> Option<FoundLine> {
        let offset = self.offset;
        let bytes = &self.buffer[self.start..end];
        let (length, kind, last, place) = match self.passing.take() {
            Some(passing) => (
                passing.length + bytes.len() as u64,
                passing.kind,
                last_byte(bytes).or(Some(passing.last)),
                0..passing.kept,
            ),
            None => {
                let kind = LineKind::of_head(bytes);
                let held = match bytes.len() {
                    _ if kind != LineKind::Unknown && !wanted(kind) => 0,
                    // The block that was read last can reach further than what is held.
                    length if length > LONGEST => HEAD,
                    length => length,
                };
                let place = self.start..self.start + held;
                (bytes.len() as u64, kind, last_byte(bytes), place)
            }
        };
        let newline = usize::from(ended);
        self.number += 1;
        self.start = end + newline;
        self.scanned = self.start;
        self.offset = offset + length + newline as u64;
        if place.is_empty() {
            let truncated = last.is_some_and(|last| last != b'}');
            self.truncated += u64::from(truncated);
            if truncated {
                self.first_torn.get_or_insert(self.number);
            }
        }
        (last.is_some() && !place.is_empty()).then_some(FoundLine {
            offset,
            number: self.number,
            length,
            place,
            kind,
            ended,
        })
    }

    /// Reads on; no newline stands in the buffer. `false` at the end of the input.
    fn fill(&mut self, wanted: &impl Fn(LineKind) -> bool) -> io::Result<bool> {
        self.compact_buffer(wanted);
        if self.end == self.buffer.len() {
            let more = self.buffer.len().clamp(self.size, ROOMY);
            self.buffer.resize(self.buffer.len() + more, 0);
        }
        loop {
            match self.input.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Ok(false),
                Ok(read) => {
                    self.end += read;
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes room: keeps of the line what has to be kept and moves it to the front.
    fn compact_buffer(&mut self, wanted: &impl Fn(LineKind) -> bool) {
        let bytes = &self.buffer[self.start..self.end];
        if let Some(passing) = &mut self.passing {
            passing.length += bytes.len() as u64;
            passing.last = last_byte(bytes).unwrap_or(passing.last);
            (self.start, self.end) = (passing.kept, passing.kept);
        } else {
            let kind = LineKind::of_head(bytes);
            let kept = match bytes.len() {
                ..HEAD => None,
                _ if kind != LineKind::Unknown && !wanted(kind) => Some(0),
                length => (length > LONGEST).then_some(HEAD),
            };
            self.passing = kept.map(|kept| SkippedLine {
                kind,
                kept,
                length: bytes.len() as u64,
                last: last_byte(bytes).unwrap_or_default(),
            });
            let held = kept.unwrap_or(bytes.len());
            if self.start > 0 {
                self.buffer.copy_within(self.start..self.start + held, 0);
            }
            // Of a line that is ignored, what comes next is read behind the head that is kept of it.
            (self.start, self.end) = (kept.unwrap_or(0), held);
        }
        self.scanned = self.end;
        if self.end < self.size {
            self.buffer.truncate(self.size);
            if self.buffer.capacity() > ROOMY {
                self.buffer.shrink_to_fit();
            }
        }
    }
}

/// The last byte that is not blank. A line is padded with spaces where a part of it was consumed.
fn last_byte(bytes: &[u8]) -> Option<u8> {
    bytes
        .iter()
        .rev()
        .find(|byte| !matches!(byte, b' ' | b'\t' | b'\r'))
        .copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader that gives a few bytes at a time, and says "interrupted" between them.
    struct Drops<'a> {
        bytes: &'a [u8],
        most: usize,
        interrupt: bool,
    }

    impl Read for Drops<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.interrupt = !self.interrupt;
            if self.interrupt {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let most = self.most.min(buffer.len());
            self.bytes.read(&mut buffer[..most])
        }
    }

    const CALL: &str = r#"{"timestamp":"t","ordinal":7,"type":"response_item","payload":{"type":"function_call","name":"x"}}"#;
    const OTHER: &str =
        r#"{"timestamp":"t","type":"event_msg","payload":{"type":"agent_message","message":""}}"#;

    /// Every way of reading gives these lines (offset, length, what is held, ended), and so many truncated ones.
    fn check(text: &str, expected: &[(u64, u64, &str, bool)], truncated: u64) {
        let wanted = |kind| kind == LineKind::Call;
        for most in [1, 3, 64, 4096, usize::MAX] {
            if text.len() / most > 100_000 {
                continue;
            }
            let input = || Drops {
                bytes: text.as_bytes(),
                most,
                interrupt: false,
            };
            let mut found = Vec::new();
            let told = |line: Line<'_>| {
                let held = std::str::from_utf8(line.bytes).unwrap().to_owned();
                assert_eq!(line.cut(), line.length > LONGEST as u64);
                (line.offset, line.length, held, line.ended)
            };
            let mut one_by_one = Lines::new(input());
            while let Some(line) = one_by_one.next(wanted).unwrap() {
                found.push(told(line));
            }
            found.extend(one_by_one.rest(wanted).map(told));
            let count = found.len();
            // As two threads do it.
            let mut blocks = [LineBlock::default(), LineBlock::default()];
            let mut in_blocks = Lines::in_blocks(input());
            let mut more = true;
            while more {
                blocks.rotate_left(1);
                more = in_blocks.block(&mut blocks[0], wanted).unwrap();
                found.extend(blocks[0].lines().map(told));
            }
            let found: Vec<_> = found
                .iter()
                .map(|(offset, length, held, ended)| (*offset, *length, held.as_str(), *ended))
                .collect();
            // Not `assert_eq`, which would print the long ones whole.
            for found in [&found[..count], &found[count..]] {
                assert!(
                    found == expected,
                    "{most} bytes at a time: {} lines, the first {:.200?}",
                    found.len(),
                    found.first()
                );
            }
            for lines in [one_by_one, in_blocks] {
                assert_eq!(lines.truncated(), truncated, "{most} bytes at a time");
                assert_eq!(lines.offset(), text.len() as u64);
            }
        }
    }

    #[test]
    fn yields_whole_lines_with_offsets() {
        let call = CALL.len() as u64;
        let other = OTHER.len() as u64;
        check("", &[], 0);
        check("\n\r\n  \n", &[], 0);
        check("x", &[(0, 1, "x", false)], 0);
        check(CALL, &[(0, call, CALL, false)], 0);
        check(
            &format!("{CALL}\n{OTHER}\r\n\n{CALL}  \n{OTHER}"),
            &[
                (0, call, CALL, true),
                (call + other + 4, call + 2, &format!("{CALL}  "), true),
            ],
            0,
        );
        // Torn in the middle of what is not wanted, and of what is.
        let truncated = &OTHER[..OTHER.len() - 2];
        check(
            &format!("{truncated}\n{CALL}\n{truncated}"),
            &[(other - 1, call, CALL, true)],
            2,
        );
        check(
            &format!("{OTHER}\n{}", &CALL[..20]),
            &[(other + 1, 20, &CALL[..20], false)],
            0,
        );
    }

    // fault: 56
    #[test]
    fn holds_long_lines_only_on_request() {
        let long = format!(
            "{}{}\"}}}}  ",
            &OTHER[..OTHER.len() - 3],
            "x".repeat(3 * READ)
        );
        let truncated = &long[..long.len() - 5];
        let wanted = CALL.replace("\"x\"", &format!("\"{}\"", "é".repeat(READ)));
        check(
            &format!("{long}\n{CALL}\n{wanted}\n{truncated}\n{long}"),
            &[
                (long.len() as u64 + 1, CALL.len() as u64, CALL, true),
                (
                    (long.len() + CALL.len() + 2) as u64,
                    wanted.len() as u64,
                    &wanted,
                    true,
                ),
            ],
            1,
        );
    }

    #[test]
    fn cuts_overlong_line_to_its_head() {
        for more in [1, READ, 3 * ROOMY] {
            let long = CALL.replace("\"x\"", &format!("\"{}\"", "x".repeat(LONGEST + more)));
            check(
                &format!("{long}\n{CALL}\n"),
                &[
                    (0, long.len() as u64, &long[..HEAD], true),
                    (long.len() as u64 + 1, CALL.len() as u64, CALL, true),
                ],
                0,
            );
        }
    }

    #[test]
    fn follows_growing_input() {
        /// Ends after each part.
        struct Parts(Vec<&'static str>);
        impl Read for Parts {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                if self.0.is_empty() {
                    return Ok(0);
                }
                let part = self.0.remove(0).as_bytes();
                buffer[..part.len()].copy_from_slice(part);
                Ok(part.len())
            }
        }
        let parts = vec!["a\nb", "", "c", "", "\n", "", "d\n"];
        let mut lines = Lines::starting_at(Parts(parts), 10);
        let mut found = Vec::new();
        for _ in 0..6 {
            found.push(lines.next(|_| true).unwrap().map(|line| {
                let bytes = String::from_utf8(line.bytes.to_vec()).unwrap();
                (line.offset, bytes)
            }));
        }
        let line = |offset, text: &str| Some((offset, text.to_owned()));
        assert_eq!(
            found,
            [
                line(10, "a"),
                None,
                None,
                line(12, "bc"),
                None,
                line(15, "d")
            ]
        );
    }

    #[test]
    fn head_tells_kind_of_line() {
        let line = |record: &str, payload: &str| {
            format!(r#"{{"timestamp":"t","ordinal":12,"type":"{record}","payload":{{{payload}"#)
        };
        let item = |ids: &str, item: &str| {
            line(
                "event_msg",
                &format!(r#""type":"item_completed",{ids}"turn_id":"b","item":{{{item},"#),
            )
        };
        let thread = r#""thread_id":"a","#;
        for (head, kind) in [
            (CALL.to_owned(), LineKind::Call),
            (OTHER.to_owned(), LineKind::Other),
            (
                line("response_item", r#""type":"custom_tool_call_output""#),
                LineKind::Output,
            ),
            (
                line("response_item", r#""type":"message","role":"#),
                LineKind::Message,
            ),
            (
                line("token_usage_record", r#""thread_id":"#),
                LineKind::Usage,
            ),
            (
                line("event_msg", r#""type":"task_started","turn_id":"x"}}"#),
                LineKind::Turn,
            ),
            (
                line("event_msg", r#""type":"task_complete","turn_id":"x"}}"#),
                LineKind::TurnEnd,
            ),
            (
                line("event_msg", r#""type":"mcp_tool_call_end","#),
                LineKind::Item,
            ),
            (
                line(
                    "event_msg",
                    r#""type":"patch_apply_end","call_id":"exec-1","#,
                ),
                LineKind::Item,
            ),
            (
                line(
                    "event_msg",
                    r#""type":"patch_apply_end","call_id":"call_1","#,
                ),
                LineKind::Other,
            ),
            (
                line("compacted", "\"message\":\"\u{e9}"),
                LineKind::Compacted,
            ),
            (
                item(thread, r#""type":"CommandExecution","id":"call_1""#),
                LineKind::Other,
            ),
            (
                item(thread, r#""type":"CommandExecution","id":"exec-1""#),
                LineKind::Item,
            ),
            (
                item(thread, r#""type":"McpToolCall","id":"call_1""#),
                LineKind::Item,
            ),
            // Everything that codex does not write so.
            (
                item("", r#""type":"McpToolCall","id":"call_1""#),
                LineKind::Unknown,
            ),
            (CALL.replace("\"t\",", "\"t\", "), LineKind::Unknown),
            (CALL.replace(":\"t\"", ": \"t\""), LineKind::Unknown),
            (
                CALL.replace("function_call", "function\\u005fcall"),
                LineKind::Unknown,
            ),
            (CALL.replace("type\"", "typ\\u0065\""), LineKind::Unknown),
            (CALL.replace("\"timestamp\":\"t\",", ""), LineKind::Unknown),
            (
                line("response_item", r#""name":"x","type":"function_call""#),
                LineKind::Unknown,
            ),
            (CALL[..60].to_owned(), LineKind::Unknown),
        ] {
            assert_eq!(LineKind::of_head(head.as_bytes()), kind, "{head}");
        }
    }
}
