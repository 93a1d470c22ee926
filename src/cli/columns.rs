//! Text on a terminal: its width in columns, truncating and wrapping it, and removing control characters.
//!
//! File names, commands and model output are untrusted: a control character in them could move the cursor, recolour the
//! screen or worse. Only [`terminal_width`] does I/O.

use crate::os;
use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::os::fd::AsFd;

/// The width that is assumed where neither the terminal nor `COLUMNS` states one.
const DEFAULT_WIDTH: usize = 80;

/// The width of this terminal in columns; where it is unknown, the value of `COLUMNS`.
pub(super) fn terminal_width(stream: impl AsFd) -> usize {
    let from_environment = || std::env::var("COLUMNS").ok()?.parse().ok();
    os::terminal_size(stream)
        .map(|(columns, _)| columns)
        .filter(|width| *width > 0)
        .or_else(from_environment)
        .filter(|width| *width > 0)
        .unwrap_or(DEFAULT_WIDTH)
}

/// The width of a text on a terminal, in columns.
pub(super) fn width(text: &str) -> usize {
    text.chars().map(columns_of).sum()
}

/// The character, or U+FFFD in place of a harmful one: see [`is_harmful`].
pub(super) fn visible(c: char) -> char {
    if is_harmful(c) { '\u{fffd}' } else { c }
}

/// Whether a terminal would interpret or hide this character: controls, bidirectional formatting, which can make a text
/// read as another one, and invisible characters, which can carry text for the model alone. The zero-width joiners are
/// allowed: emoji sequences and Persian need them.
pub(crate) fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c,
            // Bidirectional marks, embeddings and isolates; line and paragraph separators.
            '\u{061C}' | '\u{200E}' | '\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{206F}'
            // Soft hyphen, byte order mark, annotations.
            | '\u{00AD}' | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFB}'
            // Tags, which encode any ASCII text invisibly.
            | '\u{E0000}'..='\u{E007F}')
}

/// JSON that is safe on a terminal: harmful characters become `\u` escapes, so that its value is unchanged.
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

/// Applies [`json_for_terminal`] to the JSON that is written to a terminal.
pub(super) struct JsonTerminal<W> {
    out: W,
    /// The first bytes of an incomplete UTF-8 character.
    partial: Vec<u8>,
}

impl<W: Write> JsonTerminal<W> {
    pub(super) fn new(out: W) -> JsonTerminal<W> {
        JsonTerminal {
            out,
            partial: Vec::new(),
        }
    }
}

impl<W: Write> Write for JsonTerminal<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.partial.extend_from_slice(bytes);
        // Invalid UTF-8 is not JSON and is replaced; an incomplete character at the end waits for the next write.
        let complete = match str::from_utf8(&self.partial) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => self.partial.len(),
        };
        let text = String::from_utf8_lossy(&self.partial[..complete]);
        self.out.write_all(json_for_terminal(&text).as_bytes())?;
        self.partial.drain(..complete);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Replaces the harmful characters of a text by U+FFFD, apart from newlines and tabs. CRLF becomes LF.
pub(crate) fn sanitize(text: &str) -> Cow<'_, str> {
    let is_kept = |c: char| c == '\n' || c == '\t' || visible(c) == c;
    if text.chars().all(is_kept) {
        return Cow::Borrowed(text);
    }
    let text = text.replace("\r\n", "\n");
    let shown = text
        .chars()
        .map(|c| if is_kept(c) { c } else { visible(c) });
    Cow::Owned(shown.collect())
}

/// Truncates a text to one line of at most `columns`, with an ellipsis at the end. Each run of white space becomes one
/// space.
pub(super) fn truncate(text: &str, columns: usize) -> String {
    let mut line = String::new();
    let mut used = 0;
    // The length in bytes before which the ellipsis still fits.
    let mut ellipsis_at = 0;
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
                line.truncate(ellipsis_at);
                if columns > 0 {
                    line.push('…');
                }
                return line;
            }
            line.push(c);
            if used < columns {
                ellipsis_at = line.len();
            }
        }
    }
    line
}

/// Truncates a line to at most `columns` as [`truncate`] does, but keeps its leading and inner spaces.
pub(super) fn truncate_keeping_spaces(line: &str, columns: usize) -> String {
    let line: String = line
        .trim_end()
        .chars()
        .map(|c| if c == '\t' { ' ' } else { visible(c) })
        .collect();
    if width(&line) <= columns {
        return line;
    }
    let mut used = 0;
    let mut truncated: String = line
        .chars()
        .take_while(|c| {
            used += columns_of(*c);
            used < columns
        })
        .collect();
    if columns > 0 {
        truncated.push('…');
    }
    truncated
}

/// Truncates a text to at most `columns`, with an ellipsis in the middle.
pub(super) fn truncate_middle(text: &str, columns: usize) -> String {
    let text: String = text.chars().map(visible).collect();
    if width(&text) <= columns {
        return text;
    }
    let room = columns.saturating_sub(1);
    let mut head = String::new();
    let mut tail = Vec::new();
    let (mut used, mut forward, mut backward) = (0, text.chars(), text.chars().rev());
    // Take characters from both ends in turn.
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

/// Wraps a text to lines of at most `columns`: after a semicolon where the phrase then fits on a line, else at any
/// space. Continuation lines are indented; a word that is wider than a line is not broken.
pub(super) fn wrapped(text: &str, columns: usize) -> String {
    const INDENT: &str = "  ";
    let mut lines = String::new();
    let mut used = 0;
    for phrase in text.split_inclusive("; ") {
        let whole = width(phrase.trim_end());
        let mut break_before = used + 1 + whole > columns && INDENT.len() + whole <= columns;
        for word in phrase.trim_end().split(' ') {
            let more = width(word);
            if used > INDENT.len()
                && (std::mem::take(&mut break_before) || used + 1 + more > columns)
            {
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

/// The width of a character in columns: two for East Asian wide characters and emoji, none for combining marks. The
/// ranges are Unicode's, simplified. Where terminals differ the wider is used: a line may be truncated too early, but
/// never wraps.
fn columns_of(c: char) -> usize {
    match u32::from(c) {
        ..0x0300 => 1,
        0x0300..=0x036F | 0x0483..=0x0489 | 0x0591..=0x05BD | 0x064B..=0x065F => 0,
        0x1AB0..=0x1AFF | 0x1DC0..=0x1DFF | 0x200B..=0x200F | 0x2060..=0x2064 => 0,
        0x20D0..=0x20FF | 0xFE00..=0xFE0F | 0xFE20..=0xFE2F | 0xE0100..=0xE01EF => 0,
        0x1100..=0x115F | 0x2E80..=0x303E | 0x3041..=0xA4CF | 0xA960..=0xA97F => 2,
        0xAC00..=0xD7A3 | 0xF900..=0xFAFF | 0xFE30..=0xFE6F | 0xFF01..=0xFF60 => 2,
        0xFFE0..=0xFFE6 | 0x16FE0..=0x1B2FF | 0x20000..=0x3FFFD => 2,
        // Emoji; below U+1F000 they are mixed with narrow symbols.
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
    fn truncates_to_width() {
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
            let got = truncate(text, columns);
            assert_eq!(got, expected, "{text:?} on {columns}");
            assert!(width(&got) <= columns, "{text:?} on {columns}");
        }
        for columns in 0..120 {
            assert!(width(&truncate(&"x日 ".repeat(2000), columns)) <= columns);
        }
    }

    #[test]
    fn sanitize_replaces_harmful_characters() {
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
            // Each byte in a write: no character may be broken between two.
            let mut out = Vec::new();
            let mut terminal = JsonTerminal::new(&mut out);
            for byte in json.bytes() {
                terminal.write_all(&[byte]).unwrap();
            }
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn truncates_keeping_indent() {
        for (line, columns, expected) in [
            ("  a  b \n", 80, "  a  b"),
            ("\ta\x1b", 80, " a\u{fffd}"),
            ("abcdef", 4, "abc…"),
            ("日本語", 5, "日本…"),
            ("abc", 0, ""),
        ] {
            assert_eq!(
                truncate_keeping_spaces(line, columns),
                expected,
                "{line:?} on {columns}"
            );
        }
    }

    #[test]
    fn wraps_at_semicolons_and_spaces() {
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
