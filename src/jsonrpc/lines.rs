//! Lines of a stream, one message each, with a cap on their length.

use super::message::{Id, OVERLONG_PEEK_BYTES, id_of_broken_response};
use memchr::memchr;
use std::io::{self, BufRead};

/// The longest line that is taken, in bytes; a longer one is skipped to its end.
pub(crate) const LONGEST_LINE: usize = 64 << 20;

/// A line longer than this gets the room for the longest at once. Untouched pages cost nothing, no copy grows beside
/// the first, and a block of this size goes back to the system when it is freed: of one that is freed at a size of
/// less than 32 MiB, glibc learns to keep blocks of that size for later.
const LONG_LINE: usize = 64 << 10;

/// What reading the next line gave.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// A line, without its end, in the buffer that was passed.
    Line,
    /// A line over the cap; it was skipped. The id is there where it was the answer to a request.
    TooLong(Option<Id>),
    /// The end of the stream.
    End,
}

/// Reads the next line that is not blank into `line`. The last one need not have an end.
///
/// # Errors
/// The stream's.
pub(crate) fn read_line(stream: &mut dyn BufRead, line: &mut Vec<u8>) -> io::Result<Frame> {
    loop {
        line.clear();
        let mut too_long = false;
        let mut tail = Vec::new();
        let mut anything = false;
        loop {
            let chunk = match stream.fill_buf() {
                Ok(chunk) => chunk,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if chunk.is_empty() {
                if !anything {
                    return Ok(Frame::End);
                }
                break;
            }
            anything = true;
            let end = memchr(b'\n', chunk);
            let part = &chunk[..end.unwrap_or(chunk.len())];
            // A `\r` before the end does not count; one byte more or less does not matter either.
            if !too_long && line.len() + part.len() > LONGEST_LINE + 1 {
                too_long = true;
                tail = line.split_off(line.len().saturating_sub(OVERLONG_PEEK_BYTES));
                line.truncate(OVERLONG_PEEK_BYTES);
                line.shrink_to(OVERLONG_PEEK_BYTES);
            }
            if too_long {
                tail.extend_from_slice(&part[part.len().saturating_sub(OVERLONG_PEEK_BYTES)..]);
                tail.drain(..tail.len().saturating_sub(OVERLONG_PEEK_BYTES));
            } else {
                if line.len() + part.len() > LONG_LINE {
                    line.reserve_exact(LONGEST_LINE + 1 - line.len());
                }
                line.extend_from_slice(part);
            }
            let used = end.map_or(chunk.len(), |end| end + 1);
            stream.consume(used);
            if end.is_some() {
                break;
            }
        }
        if too_long {
            return Ok(Frame::TooLong(id_of_broken_response(line, &tail)));
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        if line.len() > LONGEST_LINE {
            return Ok(Frame::TooLong(id_of_broken_response(line, &[])));
        }
        if !line.trim_ascii().is_empty() {
            return Ok(Frame::Line);
        }
    }
}
