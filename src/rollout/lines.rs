//! Splits a rollout into lines and classifies them by their first bytes.
//!
//! Most bytes of a rollout are in lines that no caller asks for. So line ends are searched with memchr, the head of a
//! line (as codex writes it: timestamp, ordinal, type, the payload's type) tells its kind, and a line that the caller's
//! filter rejects is skipped without being parsed or held in memory, however long it is. A line with a head in another
//! form (key order, spaces, escapes) is [`LineKind::Unknown`]; it always reaches the caller, who has to parse it.
//!
//! Only the head and the last byte of a skipped line are examined: a line whose end is missing is counted as truncated;
//! damage in the middle of a line is not detected.
//!
//! Bytes are read once, in file order, and each line has its offset. A caller that copies while it scans can pass a
//! reader that records what is read through it.

use crate::json::plain_end;
use std::io::{self, Read};
use std::mem;
use std::ops::Range;

/// How many bytes are read at a time: few enough to stay in the CPU cache until they are scanned.
const READ: usize = 256 * 1024;
/// The same for a rollout that is followed, whose buffer is held as long as a turn takes.
const FOLLOWED: usize = 64 * 1024;
/// The same for reading in blocks on two threads: larger blocks mean less waiting for each other.
const BLOCK: usize = 1 << 20;
/// By here, in bytes, the kind of a line that codex wrote is known; there is space for four UUIDs.
const HEAD: usize = 512;
/// The longest line that is held, in bytes. codex truncates a command's output at 1 MiB and rejects MCP lines over
/// 16 MiB, which escaping can double.
pub(crate) const LONGEST: usize = 32 << 20;
/// The buffer is shrunk after a line that made it larger than this, in bytes.
const MAX_IDLE_BUFFER: usize = 4 << 20;

/// The prefix of the ids of calls that were made inside code mode.
pub(crate) const NESTED_ID_PREFIX: &str = "exec-";

/// The kind of a line, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LineKind {
    /// `response_item`: a call of a tool.
    Call,
    /// `response_item`: the output of a call.
    Output,
    /// `response_item`: a message, of whatever role.
    Message,
    /// `event_msg`: an MCP call, or a call made inside code mode, has ended.
    Item,
    /// `response_item` or `event_msg`: an image was generated.
    Image,
    /// `event_msg` `token_count`, or `token_usage_record`.
    Usage,
    /// `event_msg`: a turn begins.
    Turn,
    /// `event_msg`: a turn has ended.
    TurnEnd,
    /// `turn_context`: what a turn runs with.
    Context,
    /// `compacted`: the conversation so far was replaced by a shorter one, which this line contains.
    Compacted,
    /// Nothing of the above.
    Other,
    /// The head is not in the form that codex writes: the line has to be parsed.
    Unknown,
}

impl LineKind {
    /// The kind of a line, by its `type`, its payload's `type`, the item's type in an `item_completed`, and the id of
    /// the item or the call. A part that is missing or not a string is passed as the empty string.
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
            // The output of a command is in the call's own output; only inside code mode there is no such line.
            (b"event_msg", b"item_completed")
                if item == b"McpToolCall" || id.starts_with(NESTED_ID_PREFIX.as_bytes()) =>
            {
                LineKind::Item
            }
            // 0.135 writes these instead, for MCP calls and patches alone.
            (b"event_msg", b"mcp_tool_call_end") => LineKind::Item,
            (b"event_msg", b"patch_apply_end") if id.starts_with(NESTED_ID_PREFIX.as_bytes()) => {
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

/// Splits a JSON string without escapes from the text behind it.
fn word(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let text = text.strip_prefix(b"\"")?;
    let (word, rest) = text.split_at(plain_end(text, 0, text.len()));
    Some((word, rest.strip_prefix(b"\"")?))
}

/// A line of a rollout.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    /// Its offset in bytes, from where reading began.
    pub(crate) offset: u64,
    /// Its number, from 1, counted from where reading began.
    pub(crate) number: u64,
    /// Its length without its newline.
    pub(crate) length: u64,
    /// The line without its newline; where it is longer than [`LONGEST`], only its first bytes.
    pub(crate) bytes: &'a [u8],
    pub(crate) kind: LineKind,
    /// Whether a newline ends it.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "the tests of every way of reading compare it")
    )]
    pub(crate) ended: bool,
}

impl Line<'_> {
    /// Whether the line was too long to be held.
    pub(crate) fn cut(&self) -> bool {
        (self.bytes.len() as u64) < self.length
    }
}

/// Reads the lines of a rollout.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    input: R,
    /// How much is read at a time, in bytes.
    size: usize,
    buffer: Vec<u8>,
    /// Where in the buffer the current line begins; of a skipped one, the bytes that were read last.
    start: usize,
    /// There is no newline in `start..scanned`.
    scanned: usize,
    /// The end of the bytes that were read.
    end: usize,
    /// The offset of the current line in the input.
    offset: u64,
    /// The state of the current line where its bytes are not all held.
    skipped: Option<SkippedLine>,
    truncated: u64,
    /// The number of the first truncated line.
    first_truncated: Option<u64>,
    /// How many lines have ended.
    number: u64,
}

/// A line whose bytes are not all held.
#[derive(Debug)]
struct SkippedLine {
    kind: LineKind,
    /// How many of its first bytes are at the beginning of the buffer; 0 if the filter rejects it.
    kept: usize,
    /// How many of its bytes have left the buffer.
    length: u64,
    /// The last byte so far that is not whitespace.
    last: u8,
}

/// Some lines, with the buffer that holds their bytes.
#[derive(Debug, Default)]
pub(crate) struct LineBlock {
    buffer: Vec<u8>,
    lines: Vec<FoundLine>,
}

impl LineBlock {
    /// The lines, in order.
    pub(crate) fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        self.lines.iter().map(|found| found.line(&self.buffer))
    }
}

/// A line as a range of a buffer.
#[derive(Debug)]
struct FoundLine {
    offset: u64,
    number: u64,
    length: u64,
    range: Range<usize>,
    kind: LineKind,
    ended: bool,
}

impl FoundLine {
    fn line<'a>(&self, buffer: &'a [u8]) -> Line<'a> {
        Line {
            offset: self.offset,
            number: self.number,
            length: self.length,
            bytes: &buffer[self.range.clone()],
            kind: self.kind,
            ended: self.ended,
        }
    }
}

impl<R: Read> Lines<R> {
    /// The lines of `input` from its current position on.
    pub(crate) fn new(input: R) -> Lines<R> {
        Lines::starting_at(input, 0)
    }

    /// The same for [`Lines::block`], which reads many lines at a time.
    pub(crate) fn in_blocks(input: R) -> Lines<R> {
        Lines {
            size: BLOCK,
            ..Lines::new(input)
        }
    }

    /// The same with a small buffer: for a rollout that is followed, by each of many turns.
    pub(crate) fn followed(input: R) -> Lines<R> {
        Lines {
            size: FOLLOWED,
            ..Lines::new(input)
        }
    }

    /// The same; the current position of `input` counts as `offset`.
    pub(crate) fn starting_at(input: R, offset: u64) -> Lines<R> {
        Lines {
            input,
            size: READ,
            buffer: Vec::new(),
            start: 0,
            scanned: 0,
            end: 0,
            offset,
            skipped: None,
            number: 0,
            truncated: 0,
            first_truncated: None,
        }
    }

    /// The next complete line whose kind `filter` accepts; lines of unknown kind are always returned, blank ones never.
    /// `None` at the end of the input: an incomplete last line is kept, so that it can be continued by a later call or
    /// returned by [`Lines::rest`].
    pub(crate) fn next(
        &mut self,
        filter: impl Fn(LineKind) -> bool,
    ) -> io::Result<Option<Line<'_>>> {
        loop {
            match memchr::memchr(b'\n', &self.buffer[self.scanned..self.end]) {
                Some(at) => {
                    let newline = self.scanned + at;
                    if let Some(found) = self.finish(newline, true, &filter) {
                        return Ok(Some(found.line(&self.buffer)));
                    }
                }
                None => {
                    self.scanned = self.end;
                    if !self.fill(&filter)? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// At the end of the input: the last line, if it has no newline and `filter` accepts it.
    pub(crate) fn rest(&mut self, filter: impl Fn(LineKind) -> bool) -> Option<Line<'_>> {
        let found = self.finish(self.end, false, &filter)?;
        Some(found.line(&self.buffer))
    }

    /// Replaces the contents of `block` by the next lines that `filter` accepts, at least one. The last line needs no
    /// newline. `false` at the end of the input.
    ///
    /// Only an incomplete last line is copied: the bytes are read into the block's own buffer, which stays in the cache
    /// of the thread that uses it.
    pub(crate) fn block(
        &mut self,
        block: &mut LineBlock,
        filter: impl Fn(LineKind) -> bool,
    ) -> io::Result<bool> {
        block.lines.clear();
        self.change_buffer(&mut block.buffer);
        let more = loop {
            while let Some(at) = memchr::memchr(b'\n', &self.buffer[self.scanned..self.end]) {
                let found = self.finish(self.scanned + at, true, &filter);
                block.lines.extend(found);
            }
            self.scanned = self.end;
            if !block.lines.is_empty() {
                break Ok(true);
            }
            match self.fill(&filter) {
                Ok(true) => {}
                Ok(false) => {
                    block.lines.extend(self.finish(self.end, false, &filter));
                    break Ok(false);
                }
                Err(error) => break Err(error),
            }
        };
        self.change_buffer(&mut block.buffer);
        more
    }

    /// Exchanges the buffer for another one, and copies the bytes that are not used yet.
    fn change_buffer(&mut self, other: &mut Vec<u8>) {
        let left = &self.buffer[self.start..self.end];
        if other.len() < left.len() {
            other.resize(left.len(), 0);
        }
        other[..left.len()].copy_from_slice(left);
        (self.start, self.scanned, self.end) = (0, self.scanned - self.start, left.len());
        mem::swap(&mut self.buffer, other);
    }

    /// The offset of the line that [`Lines::next`] will examine next.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The number of the first skipped line whose end was missing.
    pub(crate) fn first_truncated(&self) -> Option<u64> {
        self.first_truncated
    }

    /// How many skipped lines had no end.
    pub(crate) fn truncated(&self) -> u64 {
        self.truncated
    }

    /// Ends the current line at `end`. Returns it if `filter` accepts it.
    fn finish(
        &mut self,
        end: usize,
        ended: bool,
        filter: &impl Fn(LineKind) -> bool,
    ) -> Option<FoundLine> {
        let offset = self.offset;
        let bytes = &self.buffer[self.start..end];
        let (length, kind, last, range) = match self.skipped.take() {
            Some(skipped) => (
                skipped.length + bytes.len() as u64,
                skipped.kind,
                last_byte(bytes).or(Some(skipped.last)),
                0..skipped.kept,
            ),
            None => {
                let kind = LineKind::of_head(bytes);
                let held = match bytes.len() {
                    _ if kind != LineKind::Unknown && !filter(kind) => 0,
                    // The last read can have gone beyond what is held.
                    length if length > LONGEST => HEAD,
                    length => length,
                };
                let range = self.start..self.start + held;
                (bytes.len() as u64, kind, last_byte(bytes), range)
            }
        };
        let newline = usize::from(ended);
        self.number += 1;
        self.start = end + newline;
        self.scanned = self.start;
        self.offset = offset + length + newline as u64;
        if range.is_empty() {
            let truncated = last.is_some_and(|last| last != b'}');
            self.truncated += u64::from(truncated);
            if truncated {
                self.first_truncated.get_or_insert(self.number);
            }
        }
        (last.is_some() && !range.is_empty()).then_some(FoundLine {
            offset,
            number: self.number,
            length,
            range,
            kind,
            ended,
        })
    }

    /// Reads more; the buffer has no newline. `false` at the end of the input.
    fn fill(&mut self, filter: &impl Fn(LineKind) -> bool) -> io::Result<bool> {
        self.compact_buffer(filter);
        if self.end == self.buffer.len() {
            let more = self.buffer.len().clamp(self.size, MAX_IDLE_BUFFER);
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

    /// Moves the bytes that are still needed to the front of the buffer.
    fn compact_buffer(&mut self, filter: &impl Fn(LineKind) -> bool) {
        let bytes = &self.buffer[self.start..self.end];
        if let Some(skipped) = &mut self.skipped {
            skipped.length += bytes.len() as u64;
            skipped.last = last_byte(bytes).unwrap_or(skipped.last);
            (self.start, self.end) = (skipped.kept, skipped.kept);
        } else {
            let kind = LineKind::of_head(bytes);
            let kept = match bytes.len() {
                ..HEAD => None,
                _ if kind != LineKind::Unknown && !filter(kind) => Some(0),
                length => (length > LONGEST).then_some(HEAD),
            };
            self.skipped = kept.map(|kept| SkippedLine {
                kind,
                kept,
                length: bytes.len() as u64,
                last: last_byte(bytes).unwrap_or_default(),
            });
            let held = kept.unwrap_or(bytes.len());
            if self.start > 0 {
                self.buffer.copy_within(self.start..self.start + held, 0);
            }
            // Of a skipped line, what follows is read behind the head that is kept of it.
            (self.start, self.end) = (kept.unwrap_or(0), held);
        }
        self.scanned = self.end;
        if self.end < self.size {
            self.buffer.truncate(self.size);
            if self.buffer.capacity() > MAX_IDLE_BUFFER {
                self.buffer.shrink_to_fit();
            }
        }
    }
}

/// The last byte that is not whitespace. A line is padded with spaces where a part of it was consumed.
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

    /// A reader that returns a few bytes at a time, and `Interrupted` in between.
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

    /// Every way of reading gives these lines (offset, length, bytes held, ended) and this number of truncated ones.
    fn check(text: &str, expected: &[(u64, u64, &str, bool)], truncated: u64) {
        let is_call = |kind| kind == LineKind::Call;
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
            let parts = |line: Line<'_>| {
                let held = std::str::from_utf8(line.bytes).unwrap().to_owned();
                assert_eq!(line.cut(), line.length > LONGEST as u64);
                (line.offset, line.length, held, line.ended)
            };
            let mut one_by_one = Lines::new(input());
            while let Some(line) = one_by_one.next(is_call).unwrap() {
                found.push(parts(line));
            }
            found.extend(one_by_one.rest(is_call).map(parts));
            let count = found.len();
            // As `parse-rollout` does on two threads.
            let mut blocks = [LineBlock::default(), LineBlock::default()];
            let mut in_blocks = Lines::in_blocks(input());
            let mut more = true;
            while more {
                blocks.rotate_left(1);
                more = in_blocks.block(&mut blocks[0], is_call).unwrap();
                found.extend(blocks[0].lines().map(parts));
            }
            let found: Vec<_> = found
                .iter()
                .map(|(offset, length, held, ended)| (*offset, *length, held.as_str(), *ended))
                .collect();
            // Not `assert_eq`, which would print long lines in full.
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
        // A truncated line that the filter rejects, and one that it accepts.
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
        let long_call = CALL.replace("\"x\"", &format!("\"{}\"", "é".repeat(READ)));
        check(
            &format!("{long}\n{CALL}\n{long_call}\n{truncated}\n{long}"),
            &[
                (long.len() as u64 + 1, CALL.len() as u64, CALL, true),
                (
                    (long.len() + CALL.len() + 2) as u64,
                    long_call.len() as u64,
                    &long_call,
                    true,
                ),
            ],
            1,
        );
    }

    #[test]
    fn cuts_overlong_line_to_its_head() {
        for more in [1, READ, 3 * MAX_IDLE_BUFFER] {
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
        /// Returns 0 bytes after each part.
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
            // Not in the form that codex writes.
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
