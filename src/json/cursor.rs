//! A cursor over a JSON text: values are validated and skipped in place, and located by their byte ranges.
//!
//! Two users need ranges instead of values: `calls` emits strings and arguments exactly as codex wrote them, and
//! `consume` replaces bytes in the middle of a line and keeps the rest of it. A text is accepted exactly where
//! `serde_json::from_str::<Value>` accepts it, with two intended differences: the nesting depth is not limited (nothing
//! here recurses), and a number may exceed the range of `f64`.

use super::scan;
use std::borrow::Cow;
use std::ops::Range;

/// The byte range of a value or a key in the text: without surrounding whitespace, with the quotes of a string.
pub(crate) type Span = Range<usize>;

/// The text is not JSON, or the value is not of the requested kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotJson;

type JsonResult<T> = std::result::Result<T, NotJson>;

/// The kind of the next value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JsonKind {
    Object,
    Array,
    String,
    /// A number, `true`, `false` or `null`.
    Scalar,
}

/// A forward-only position in a JSON text.
///
/// The value of a key must be consumed before the next key is requested:
/// ```text
/// cursor.open(JsonKind::Object)?;
/// while let Some(key) = cursor.key()? {
///     if str_eq(&text[key], "id") { id = Some(cursor.value()?) } else { cursor.value()?; }
/// }
/// cursor.end()?;
/// ```
#[derive(Clone, Debug)]
pub(crate) struct Cursor<'a> {
    text: &'a [u8],
    at: usize,
    /// The object or array that was opened last has had no member or element yet.
    at_container_start: bool,
}

impl<'a> Cursor<'a> {
    /// A cursor before the first byte. Strings that it skips are checked to be UTF-8.
    pub(crate) fn new(text: &'a (impl AsRef<[u8]> + ?Sized)) -> Cursor<'a> {
        Cursor {
            text: text.as_ref(),
            at: 0,
            at_container_start: false,
        }
    }

    /// The kind of the next value, by its first byte.
    pub(crate) fn kind(&mut self) -> JsonResult<JsonKind> {
        self.skip_whitespace();
        match self.peek() {
            Some(b'{') => Ok(JsonKind::Object),
            Some(b'[') => Ok(JsonKind::Array),
            Some(b'"') => Ok(JsonKind::String),
            Some(b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => Ok(JsonKind::Scalar),
            _ => Err(NotJson),
        }
    }

    /// Enters the next value, which must be an object or an array of this kind.
    pub(crate) fn open(&mut self, kind: JsonKind) -> JsonResult<()> {
        if self.kind()? != kind || !matches!(kind, JsonKind::Object | JsonKind::Array) {
            return Err(NotJson);
        }
        self.at += 1;
        self.at_container_start = true;
        Ok(())
    }

    /// The next key of the current object; its value follows. `None` leaves the object.
    pub(crate) fn key(&mut self) -> JsonResult<Option<Span>> {
        match self.text.get(self.at..self.at + 2) {
            // The common case, without whitespace: right behind the comma or the opening brace.
            Some(b",\"") if !self.at_container_start => self.at += 1,
            Some([b'"', _]) if self.at_container_start => self.at_container_start = false,
            _ => {
                if !self.step(b'}')? {
                    return Ok(None);
                }
                self.skip_whitespace();
            }
        }
        let key = self.string()?;
        if self.peek() != Some(b':') {
            self.skip_whitespace();
        }
        self.expect_byte(b':')?;
        Ok(Some(key))
    }

    /// Whether the current array has another element. `false` leaves the array.
    pub(crate) fn element(&mut self) -> JsonResult<bool> {
        self.step(b']')
    }

    /// Skips the next value and returns its range.
    pub(crate) fn value(&mut self) -> JsonResult<Span> {
        self.skip_whitespace();
        let start = self.at;
        // One bit for each open level, set for an object; up to 64 levels need no allocation.
        let mut levels = 0u64;
        let mut outer: Vec<u64> = Vec::new();
        let mut depth = 0usize;
        loop {
            // A value is next.
            match self.peek() {
                Some(b'"') => {
                    self.string()?;
                }
                Some(open @ (b'{' | b'[')) => {
                    self.at += 1;
                    self.at_container_start = true;
                    if depth > 0 && depth.is_multiple_of(64) {
                        outer.push(levels);
                    }
                    let bit = 1 << (depth % 64);
                    levels = if open == b'{' {
                        levels | bit
                    } else {
                        levels & !bit
                    };
                    depth += 1;
                }
                Some(b't') => self.literal(b"true")?,
                Some(b'f') => self.literal(b"false")?,
                Some(b'n') => self.literal(b"null")?,
                Some(b'-' | b'0'..=b'9') => self.number()?,
                _ => return Err(NotJson),
            }
            // A key, an element, or the end of one or more levels is next.
            loop {
                if depth == 0 {
                    return Ok(start..self.at);
                }
                let object = levels & (1 << ((depth - 1) % 64)) != 0;
                let more = if object {
                    self.key()?.is_some()
                } else {
                    self.element()?
                };
                if more {
                    break;
                }
                depth -= 1;
                if depth > 0 && depth.is_multiple_of(64) {
                    levels = outer.pop().expect("pushed when this level was entered");
                }
            }
            self.skip_whitespace();
        }
    }

    /// Checks that only whitespace follows.
    pub(crate) fn end(&mut self) -> JsonResult<()> {
        self.skip_whitespace();
        if self.at == self.text.len() {
            Ok(())
        } else {
            Err(NotJson)
        }
    }

    /// Moves to the next key or element, over the comma before it; `false` where the closing byte was consumed.
    fn step(&mut self, close: u8) -> JsonResult<bool> {
        self.skip_whitespace();
        let at_container_start = std::mem::take(&mut self.at_container_start);
        match self.peek() {
            Some(byte) if byte == close => {
                self.at += 1;
                Ok(false)
            }
            Some(b',') if !at_container_start => {
                self.at += 1;
                self.skip_whitespace();
                // A trailing comma is not JSON.
                if self.peek() == Some(close) {
                    Err(NotJson)
                } else {
                    Ok(true)
                }
            }
            Some(_) if at_container_start => Ok(true),
            _ => Err(NotJson),
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn skip_whitespace(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    fn expect_byte(&mut self, byte: u8) -> JsonResult<()> {
        if self.peek() != Some(byte) {
            return Err(NotJson);
        }
        self.at += 1;
        Ok(())
    }

    fn literal(&mut self, word: &[u8]) -> JsonResult<()> {
        if !self.text[self.at..].starts_with(word) {
            return Err(NotJson);
        }
        self.at += word.len();
        Ok(())
    }

    fn number(&mut self) -> JsonResult<()> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            Some(b'0') => self.at += 1,
            _ => self.digits()?,
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> JsonResult<()> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        if self.at > start {
            Ok(())
        } else {
            Err(NotJson)
        }
    }

    /// Skips a string, from its opening quote on.
    fn string(&mut self) -> JsonResult<Span> {
        let start = self.at;
        self.expect_byte(b'"')?;
        self.at = scan::end(self.text, self.at).ok_or(NotJson)?;
        Ok(start..self.at)
    }
}

/// The text of a raw JSON string. `raw` is a string that a [`Cursor`] has skipped, with its quotes.
pub(crate) fn decode<'a>(raw: &'a (impl AsRef<[u8]> + ?Sized)) -> Cow<'a, str> {
    let raw = raw.as_ref();
    let inner = raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default();
    if memchr::memchr(b'\\', inner).is_none() {
        // The cursor has checked the UTF-8.
        return Cow::Borrowed(std::str::from_utf8(inner).unwrap_or_default());
    }
    // The cursor accepts only what serde_json accepts; other callers' invalid strings decode to the empty string.
    Cow::Owned(serde_json::from_slice(raw).unwrap_or_default())
}

/// As [`decode`], but bytes: comparing them with ASCII needs no second UTF-8 check.
pub(crate) fn decode_bytes(raw: &[u8]) -> Cow<'_, [u8]> {
    let inner = raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default();
    if inner.contains(&b'\\') {
        Cow::Owned(decode(raw).into_owned().into_bytes())
    } else {
        Cow::Borrowed(inner)
    }
}

/// Whether this raw JSON string (with its quotes) equals `text`, however it is escaped.
pub(crate) fn str_eq(raw: &(impl AsRef<[u8]> + ?Sized), text: &str) -> bool {
    *decode_bytes(raw.as_ref()) == *text.as_bytes()
}

/// How many levels of objects and arrays a value may have when it is passed on. Readers have limits of their own:
/// serde_json's is 128.
pub(crate) const MAX_DEPTH: usize = 100;

/// Replaces every value nested deeper than [`MAX_DEPTH`] by a string that holds its JSON text. `json` must be valid;
/// the result for other input is unspecified, but there is no panic.
pub(crate) fn limit_depth(json: &[u8]) -> Cow<'_, [u8]> {
    // Most values are long strings, which have no depth.
    if json.starts_with(b"\"") {
        return Cow::Borrowed(json);
    }
    let mut limited = Vec::new();
    // `json[..copied]` is in `limited` already.
    let mut copied = 0;
    let mut depth = 0usize;
    // Start of the value that is too deep, while inside it.
    let mut deep = None;
    let mut at = 0;
    while let Some(byte) = json.get(at) {
        match byte {
            b'"' => {
                let Some(end) = scan::end(json, at + 1) else {
                    break;
                };
                at = end;
                continue;
            }
            b'{' | b'[' => {
                if depth == MAX_DEPTH {
                    deep = Some(at);
                }
                depth += 1;
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                if depth == MAX_DEPTH
                    && let Some(start) = deep.take()
                {
                    limited.extend_from_slice(&json[copied..start]);
                    copied = at + 1;
                    let text = String::from_utf8_lossy(&json[start..copied]);
                    // Writing to a Vec does not fail.
                    let _ = serde_json::to_writer(&mut limited, &text);
                }
            }
            _ => {}
        }
        at += 1;
    }
    if copied == 0 {
        return Cow::Borrowed(json);
    }
    limited.extend_from_slice(&json[copied..]);
    Cow::Owned(limited)
}

/// Whether objects and arrays nest deeper than `levels`. `json` must be valid.
pub(crate) fn is_deeper_than(json: &[u8], levels: usize) -> bool {
    let mut depth = 0usize;
    let mut at = 0;
    while let Some(byte) = json.get(at) {
        at += 1;
        match byte {
            b'"' => at = scan::end(json, at).unwrap_or(json.len()),
            b'{' | b'[' if depth == levels => return true,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// Whether the whole text is one JSON value.
pub(crate) fn valid(text: &(impl AsRef<[u8]> + ?Sized)) -> bool {
    let mut cursor = Cursor::new(text);
    cursor.value().and_then(|_| cursor.end()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `serde_json` decides what is JSON.
    fn check(text: &str) {
        let judge = serde_json::from_str::<serde_json::Value>(text).is_ok();
        assert_eq!(valid(text), judge, "{text:?}");
    }

    #[test]
    fn accepts_what_serde_json_accepts() {
        for text in [
            "",
            " ",
            "{}",
            "[]",
            "{",
            "[",
            "}",
            "]",
            "[1,2]",
            "[1,]",
            "[,1]",
            "[1 2]",
            "{\"a\":1,}",
            "{,}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\" : [ { } , [ ] ] }",
            "{a:1}",
            "[}",
            "{]",
            "[[]",
            "[]]",
            "0",
            "-0",
            "01",
            "-",
            "1.",
            "1.5",
            ".5",
            "1e5",
            "1e",
            "1E+5",
            "1e-",
            "+1",
            "1 1",
            "true",
            "tru",
            "truer",
            "null",
            "nul",
            "false",
            "NaN",
            "\"\"",
            "\"",
            "\"a",
            "\"\\\"",
            "\"\\\\\"",
            "\"\\q\"",
            "\"\\u12\"",
            "\"\\u12g4\"",
            "\"\\u001b\"",
            "\"\n\"",
            "\"\\ud83c\\udf89\"",
            "\"\\ud83c\"",
            "\"\\ud83cx\"",
            "\"\\udf89\"",
            "\"\\ud83c\\u0041\"",
            "\"\\ud83c\\n\"",
            "\"abcdefg\\\"\"",
            "\"abcdefgh\"",
            "\"éééééééé\"",
            "\"\u{7f}\u{80}🎉\"",
            "\"abcdefgh\u{1f}\"",
            "\u{feff}{}",
            "{}\u{0}",
            "[\"a\",\"b\"]",
            "[\"a\" \"b\"]",
            "{\"a\":1 \"b\":2}",
            "{\"a\":1}}",
            "{\"a\":{\"b\":[1,{\"c\":null}]}}",
        ] {
            check(text);
            // Truncated anywhere, and with trailing bytes.
            for end in 0..text.len() {
                if text.is_char_boundary(end) {
                    check(&text[..end]);
                }
            }
            for more in [" ", ",", "}", "]", "\"", "x"] {
                check(&format!("{text}{more}"));
            }
        }
    }

    #[test]
    fn walks_any_depth() {
        for (open, close) in [("[", "]"), ("{\"a\":", "}"), ("[{\"a\":", "}]")] {
            let text = open.repeat(100_000) + "1" + &close.repeat(100_000);
            assert!(valid(&text));
            assert!(!valid(&text[..text.len() - 1]));
            assert!(!valid(&format!("{text}{close}")));
        }
    }

    // fault: 89
    #[test]
    fn limits_depth_by_strings() {
        let nested = |levels: usize| {
            "[{\"a\\\"]\":1,\"b\":".repeat(levels / 2) + "[]" + &"}]".repeat(levels / 2)
        };
        for levels in [0, 50, 98] {
            let json = nested(levels);
            assert_eq!(limit_depth(json.as_bytes()), Cow::Borrowed(json.as_bytes()));
        }
        // The array in the middle is level 101.
        let limited = limit_depth(nested(100).as_bytes()).into_owned();
        assert_eq!(
            String::from_utf8(limited).unwrap(),
            nested(100).replace("[]", "\"[]\"")
        );
        let deep = format!("[{},\"é\",{}]", nested(200), nested(100_000));
        let limited = limit_depth(deep.as_bytes());
        let value: serde_json::Value = serde_json::from_slice(&limited).unwrap();
        assert_eq!(value[1], "é");
        let mut value = &value[2];
        let mut levels = 1;
        let text = loop {
            value = match value {
                serde_json::Value::Array(list) => &list[0],
                serde_json::Value::Object(object) => &object["b"],
                serde_json::Value::String(text) => break text,
                other => panic!("{other}"),
            };
            levels += 1;
        };
        assert_eq!(levels, MAX_DEPTH);
        assert!(valid(text.as_str()) && nested(100_000).contains(text.as_str()));
        for broken in ["[", "]]", "\"", "[\"", "{]"] {
            assert_eq!(&*limit_depth(broken.as_bytes()), broken.as_bytes());
        }
    }

    #[test]
    fn walk_yields_spans() {
        let text = r#" { "a" : [ 1 , "x\"y" ] , "b\u0063" : { } , "d" : -1.5e3 } "#;
        let mut cursor = Cursor::new(text);
        let mut found = Vec::new();
        cursor.open(JsonKind::Object).unwrap();
        while let Some(key) = cursor.key().unwrap() {
            let kind = cursor.kind().unwrap();
            if kind == JsonKind::Array {
                cursor.open(JsonKind::Array).unwrap();
                while cursor.element().unwrap() {
                    found.push((
                        text[key.clone()].to_owned(),
                        text[cursor.value().unwrap()].to_owned(),
                    ));
                }
            } else {
                found.push((
                    text[key].to_owned(),
                    text[cursor.value().unwrap()].to_owned(),
                ));
            }
        }
        cursor.end().unwrap();
        let found: Vec<_> = found
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        assert_eq!(
            found,
            [
                ("\"a\"", "1"),
                ("\"a\"", r#""x\"y""#),
                (r#""b\u0063""#, "{ }"),
                ("\"d\"", "-1.5e3")
            ]
        );
        assert!(str_eq(r#""b\u0063""#, "bc"));
        assert!(!str_eq(r#""b\u0063""#, "b"));
        assert_eq!(decode(r#""x\"y""#), "x\"y");
    }
}
