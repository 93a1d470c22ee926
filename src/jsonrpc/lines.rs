//! Reads one message a line, with a limit on the length of a line.

use super::message::{Id, OVERLONG_PEEK_BYTES, id_of_broken_response};
use memchr::memchr;
use std::io::{self, BufRead};

/// The longest line that is accepted, in bytes; a longer one is skipped to its end.
pub(crate) const LONGEST_LINE: usize = 64 << 20;

/// A line longer than this, in bytes, reserves the space of the longest one at once. Untouched pages cost nothing, the
/// line is not copied while it grows, and a block of that size is returned to the system when it is freed: glibc raises
/// its mmap threshold to the size of freed blocks of up to 32 MiB and keeps those for later.
const LONG_LINE: usize = 64 << 10;

/// The result of reading a line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// A line, without its end, in the buffer that was passed.
    Line,
    /// A line over the limit, which was skipped. The id is set where it was the response to a request.
    TooLong(Option<Id>),
    /// The stream has ended.
    End,
}

/// Reads the next line that is not blank into `line`. The last line may lack its line end.
///
/// # Errors
/// Those of the stream.
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
            // One byte more: a `\r` before the line end is removed below.
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
