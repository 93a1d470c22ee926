//! Texts on a terminal: how wide they are, how to cut them to fit, and how to show them without harm.
//!
//! Names, commands and what a model says come from elsewhere: a control character among them could move the
//! cursor, recolour the screen or worse. Pure, but for asking a terminal for its width.

use crate::os;
use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::os::fd::AsFd;

/// How many columns there are where nobody says.
const USUAL: usize = 80;

/// The width of this terminal in columns; where it has none, that of `COLUMNS`.
pub(super) fn terminal_width(stream: impl AsFd) -> usize {
    let told = || std::env::var("COLUMNS").ok()?.parse().ok();
    os::terminal_size(stream)
        .map(|(columns, _)| columns)
        .filter(|width| *width > 0)
        .or_else(told)
        .filter(|width| *width > 0)
        .unwrap_or(USUAL)
}

/// How many columns a terminal gives to a text.
pub(super) fn width(text: &str) -> usize {
    text.chars().map(columns_of).sum()
}

/// A character that a terminal shows, or a stand-in for one that it would obey or hide.
pub(super) fn visible(c: char) -> char {
    if is_harmful(c) { '\u{fffd}' } else { c }
}

/// Would a terminal obey this character or hide it? Those that turn the direction of writing can make a text read
/// as another one, and those that nobody sees can be in a text for the model alone. The joiners stay: without them
/// there is no family of emoji, nor Persian.
pub(crate) fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c,
            // Bidirectional marks, embeddings and isolates; the separators of lines and paragraphs.
            '\u{061C}' | '\u{200E}' | '\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{206F}'
            // Soft hyphen, byte order mark, annotations.
            | '\u{00AD}' | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFB}'
            // Tags, which spell any ASCII text invisibly.
            | '\u{E0000}'..='\u{E007F}')
}

/// JSON as a terminal may show it: what [`visible`] would replace is escaped, which means the same.
pub(super) fn json_for_terminal(json: &str) -> Cow<'_, str> {
    let escapes = |c: char| c != '\n' && is_harmful(c);
    if !json.chars().any(escapes) {
        return Cow::Borrowed(json);
    }
    let mut escaped = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if escapes(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string does not fail.
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

/// A terminal that JSON is written to: see [`json_for_terminal`].
pub(super) struct JsonTerminal<W> {
    out: W,
    /// The beginning of a character whose rest is still to come.
    part: Vec<u8>,
}

impl<W: Write> JsonTerminal<W> {
    pub(super) fn new(out: W) -> JsonTerminal<W> {
        JsonTerminal {
            out,
            part: Vec::new(),
        }
    }
}

impl<W: Write> Write for JsonTerminal<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.part.extend_from_slice(bytes);
        // What is not UTF-8 and more than the beginning of a character is replaced: it is not JSON.
        let whole = match str::from_utf8(&self.part) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => self.part.len(),
        };
        let text = String::from_utf8_lossy(&self.part[..whole]);
        self.out.write_all(json_for_terminal(&text).as_bytes())?;
        self.part.drain(..whole);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A text for people with its lines and tabs as they are, and nothing else in it that a terminal would obey.
pub(crate) fn sanitize(text: &str) -> Cow<'_, str> {
    let keeps = |c: char| c == '\n' || c == '\t' || visible(c) == c;
    if text.chars().all(keeps) {
        return Cow::Borrowed(text);
    }
    let text = text.replace("\r\n", "\n");
    let shown = text.chars().map(|c| if keeps(c) { c } else { visible(c) });
    Cow::Owned(shown.collect())
}

/// Text on one line of at most so many columns: a run of white space is one space, and what does not fit is cut
/// off at the end.
pub(super) fn cut(text: &str, columns: usize) -> String {
    let mut line = String::new();
    let mut used = 0;
    // Where the mark would stand, and how much stands before it.
    let mut room_for_mark = 0;
    let mut gap = false;
    for c in text.trim().chars() {
        if c.is_whitespace() {
            gap = true;
            continue;
        }
        for c in std::mem::take(&mut gap)
            .then_some(' ')
            .into_iter()
            .chain([visible(c)])
        {
            used += columns_of(c);
            if used > columns {
                line.truncate(room_for_mark);
                if columns > 0 {
                    line.push('…');
                }
                return line;
            }
            line.push(c);
            if used < columns {
                room_for_mark = line.len();
            }
        }
    }
    line
}

/// A line of at most so many columns with its spaces as they are; what does not fit is cut off at the end.
pub(super) fn clip(line: &str, columns: usize) -> String {
    let line: String = line
        .trim_end()
        .chars()
        .map(|c| if c == '\t' { ' ' } else { visible(c) })
        .collect();
    if width(&line) <= columns {
        return line;
    }
    let mut used = 0;
    let mut clipped: String = line
        .chars()
        .take_while(|c| {
            used += columns_of(*c);
            used < columns
        })
        .collect();
    if columns > 0 {
        clipped.push('…');
    }
    clipped
}

/// Text on at most so many columns: control characters made visible, and cut in its middle where it is longer.
pub(super) fn fit(text: &str, columns: usize) -> String {
    let text: String = text.chars().map(visible).collect();
    if width(&text) <= columns {
        return text;
    }
    let room = columns.saturating_sub(1);
    let mut head = String::new();
    let mut tail = Vec::new();
    let (mut used, mut forward, mut backward) = (0, text.chars(), text.chars().rev());
    // From both ends in turn, as long as there is room.
    while let Some(c) = forward.next().filter(|c| used + columns_of(*c) <= room) {
        used += columns_of(c);
        head.push(c);
        let Some(c) = backward.next().filter(|c| used + columns_of(*c) <= room) else {
            break;
        };
        used += columns_of(c);
        tail.push(c);
    }
    head.push('…');
    head.extend(tail.into_iter().rev());
    head
}

/// Text on lines of at most so many columns, broken after a semicolon where that is enough, else at any space;
/// all lines but the first are indented.
pub(super) fn wrapped(text: &str, columns: usize) -> String {
    const INDENT: &str = "  ";
    let mut lines = String::new();
    let mut used = 0;
    for phrase in text.split_inclusive("; ") {
        let whole = width(phrase.trim_end());
        let mut fresh = used + 1 + whole > columns && INDENT.len() + whole <= columns;
        for word in phrase.trim_end().split(' ') {
            let more = width(word);
            if used > INDENT.len() && (std::mem::take(&mut fresh) || used + 1 + more > columns) {
                lines.push('\n');
                lines.push_str(INDENT);
                used = INDENT.len();
            } else if used > 0 {
                lines.push(' ');
                used += 1;
            }
            lines.push_str(word);
            used += more;
        }
    }
    lines
}

/// How many columns a terminal gives to a character: two for those of East Asia and for emoji, none for marks
/// that combine with the one before. The ranges are Unicode's, coarsely: where terminals differ it is the wider,
/// so that a line is rather cut too early than broken.
fn columns_of(c: char) -> usize {
    match u32::from(c) {
        ..0x0300 => 1,
        0x0300..=0x036F | 0x0483..=0x0489 | 0x0591..=0x05BD | 0x064B..=0x065F => 0,
        0x1AB0..=0x1AFF | 0x1DC0..=0x1DFF | 0x200B..=0x200F | 0x2060..=0x2064 => 0,
        0x20D0..=0x20FF | 0xFE00..=0xFE0F | 0xFE20..=0xFE2F | 0xE0100..=0xE01EF => 0,
        0x1100..=0x115F | 0x2E80..=0x303E | 0x3041..=0xA4CF | 0xA960..=0xA97F => 2,
        0xAC00..=0xD7A3 | 0xF900..=0xFAFF | 0xFE30..=0xFE6F | 0xFF01..=0xFF60 => 2,
        0xFFE0..=0xFFE6 | 0x16FE0..=0x1B2FF | 0x20000..=0x3FFFD => 2,
        // Emoji: those before U+1F000 are among narrow signs.
        0x231A..=0x231B | 0x23E9..=0x23F3 | 0x25FD..=0x25FE | 0x2614..=0x2615 => 2,
        0x2648..=0x2653 | 0x267F | 0x2693 | 0x26A1 | 0x26AA..=0x26AB | 0x26BD..=0x26BE => 2,
        0x26C4..=0x26C5 | 0x26CE | 0x26D4 | 0x26EA | 0x26F2..=0x26FD | 0x2705 => 2,
        0x270A..=0x270B | 0x2728 | 0x274C | 0x274E | 0x2753..=0x2757 | 0x2795..=0x2797 => 2,
        0x27B0 | 0x27BF | 0x2B1B..=0x2B1C | 0x2B50 | 0x2B55 => 2,
        0x1F004 | 0x1F0CF | 0x1F18E..=0x1F19A | 0x1F200..=0x1F64F | 0x1F680..=0x1F6FF => 2,
        0x1F7E0..=0x1F7F0 | 0x1F900..=0x1F9FF | 0x1FA70..=0x1FAFF => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_character_widths() {
        for (text, columns) in [
            ("", 0),
            ("plain", 5),
            ("é", 1),
            ("e\u{301}", 1),
            ("日本語", 6),
            ("한국", 4),
            ("ｆｕ", 4),
            ("🎉✅", 4),
            ("❤\u{fe0f}", 1),
            ("…✓█", 3),
        ] {
            assert_eq!(width(text), columns, "{text:?}");
        }
    }

    #[test]
    fn cuts_lines_to_width() {
        for (text, columns, expected) in [
            ("wc -l", 5, "wc -l"),
            ("wc -l", 4, "wc …"),
            ("wc -l", 3, "wc…"),
            ("wc -l", 1, "…"),
            ("wc -l", 0, ""),
            ("  a \n\t b  ", 80, "a b"),
            ("日本語", 6, "日本語"),
            ("日本語", 5, "日本…"),
            ("日本語", 4, "日…"),
            ("日本語", 1, "…"),
            ("e\u{301}e\u{301}e\u{301}", 2, "e\u{301}…"),
            ("\x1b[31mred\x07", 80, "\u{fffd}[31mred\u{fffd}"),
            ("a\u{202e}b\u{9b}c", 80, "a\u{fffd}b\u{fffd}c"),
        ] {
            let got = cut(text, columns);
            assert_eq!(got, expected, "{text:?} on {columns}");
            assert!(width(&got) <= columns, "{text:?} on {columns}");
        }
        for columns in 0..120 {
            assert!(width(&cut(&"x日 ".repeat(2000), columns)) <= columns);
        }
    }

    #[test]
    fn replaces_control_characters() {
        for (text, expected) in [
            ("a\tb\n", "a\tb\n"),
            ("a\r\nb", "a\nb"),
            ("a\rb", "a\u{fffd}b"),
            ("\x1b]52;c;eA==\x07", "\u{fffd}]52;c;eA==\u{fffd}"),
            ("a\u{61c}b\u{ad}c\u{feff}", "a\u{fffd}b\u{fffd}c\u{fffd}"),
            ("a\u{e0041}\u{9d}", "a\u{fffd}\u{fffd}"),
            (
                "👨\u{200d}👩 \u{645}\u{200c}",
                "👨\u{200d}👩 \u{645}\u{200c}",
            ),
        ] {
            assert_eq!(sanitize(text), expected, "{text:?}");
        }
    }

    // fault: 108
    #[test]
    fn escapes_json_for_terminal() {
        for (json, expected) in [
            ("{\"a\":\"é👨\u{200d}👩\"}\n", "{\"a\":\"é👨\u{200d}👩\"}\n"),
            (
                "\u{9b}\u{202e}\u{61c}\u{ad}",
                "\\u009b\\u202e\\u061c\\u00ad",
            ),
            ("\u{e0041}\u{7f}", "\\udb40\\udc41\\u007f"),
        ] {
            assert_eq!(json_for_terminal(json), expected);
            // In whatever pieces it comes.
            let mut out = Vec::new();
            let mut terminal = JsonTerminal::new(&mut out);
            for byte in json.bytes() {
                terminal.write_all(&[byte]).unwrap();
            }
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn clips_lines_with_indent() {
        for (line, columns, expected) in [
            ("  a  b \n", 80, "  a  b"),
            ("\ta\x1b", 80, " a\u{fffd}"),
            ("abcdef", 4, "abc…"),
            ("日本語", 5, "日本…"),
            ("abc", 0, ""),
        ] {
            assert_eq!(clip(line, columns), expected, "{line:?} on {columns}");
        }
    }

    #[test]
    fn wraps_lines_at_spaces() {
        for (text, columns, expected) in [
            ("a b c", 80, "a b c"),
            ("aaa bbb ccc", 7, "aaa bbb\n  ccc"),
            ("aaaaaaaaaa b", 4, "aaaaaaaaaa\n  b"),
            ("日本 語", 5, "日本\n  語"),
            ("a b; c d", 7, "a b;\n  c d"),
            ("a b; c d", 8, "a b; c d"),
            ("a b; cc dd ee ff", 8, "a b; cc\n  dd ee\n  ff"),
        ] {
            assert_eq!(wrapped(text, columns), expected, "{text:?} on {columns}");
        }
    }
}
