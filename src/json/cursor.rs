//! Walking over one JSON text without building it: what is ignored is checked and never copied, and
//! what is looked for comes out as the place where it stands.
//!
//! Two users need the places and not the values: `calls` writes strings and arguments out as codex wrote
//! them, and the rewrite replaces bytes in the middle of a line and leaves the rest as it was. A text is
//! taken as JSON exactly where serde_json would take it for a value, with two differences that are wanted:
//! there is no limit on how deep it nests (nothing here recurses), and a number may be too large for a float.

use super::scan;
use std::borrow::Cow;
use std::ops::Range;

/// Where a value or a key stands in the text, without the white space around it, strings with their quotes.
pub(crate) type Span = Range<usize>;

/// The text is not JSON, or not the kind of value that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotJson;

type JsonResult<T> = std::result::Result<T, NotJson>;

/// What kind of value comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JsonKind {
    Object,
    Array,
    String,
    /// A number, `true`, `false` or `null`.
    Scalar,
}

/// A place in a JSON text, moving forward over it.
///
/// An object is walked so; whoever got a key must consume its value before asking for the next key:
/// ```text
/// cursor.open(JsonKind::Object)?;
/// while let Some(key) = cursor.key()? {
///     if is(&text[key], "id") { id = Some(cursor.value()?) } else { cursor.value()?; }
/// }
/// cursor.end()?;
/// ```
#[derive(Clone, Debug)]
pub(crate) struct Cursor<'a> {
    text: &'a [u8],
    at: usize,
    /// Nothing stands yet in the object or list that was opened last.
    at_container_start: bool,
}

impl<'a> Cursor<'a> {
    /// A cursor before the first byte. What it skips is valid UTF-8, too.
    pub(crate) fn new(text: &'a (impl AsRef<[u8]> + ?Sized)) -> Cursor<'a> {
        Cursor {
            text: text.as_ref(),
            at: 0,
            at_container_start: false,
        }
    }

    /// What kind of value comes next, judged by its first byte.
    pub(crate) fn kind(&mut self) -> JsonResult<JsonKind> {
        self.blank();
        match self.peek() {
            Some(b'{') => Ok(JsonKind::Object),
            Some(b'[') => Ok(JsonKind::Array),
            Some(b'"') => Ok(JsonKind::String),
            Some(b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => Ok(JsonKind::Scalar),
            _ => Err(NotJson),
        }
    }

    /// Goes into the object or list that comes next.
    pub(crate) fn open(&mut self, kind: JsonKind) -> JsonResult<()> {
        if self.kind()? != kind || !matches!(kind, JsonKind::Object | JsonKind::Array) {
            return Err(NotJson);
        }
        self.at += 1;
        self.at_container_start = true;
        Ok(())
    }

    /// The next key of the object that the cursor is in, its value next; `None` leaves the object.
    pub(crate) fn key(&mut self) -> JsonResult<Option<Span>> {
        match self.text.get(self.at..self.at + 2) {
            // As most keys stand: right behind the comma, or right at the beginning.
            Some(b",\"") if !self.at_container_start => self.at += 1,
            Some([b'"', _]) if self.at_container_start => self.at_container_start = false,
            _ => {
                if !self.step(b'}')? {
                    return Ok(None);
                }
                self.blank();
            }
        }
        let key = self.string()?;
        if self.peek() != Some(b':') {
            self.blank();
        }
        self.byte(b':')?;
        Ok(Some(key))
    }

    /// Is there another element in the list that the cursor is in? `false` leaves the list.
    pub(crate) fn element(&mut self) -> JsonResult<bool> {
        self.step(b']')
    }

    /// Passes over the value that comes next and tells where it stands.
    pub(crate) fn value(&mut self) -> JsonResult<Span> {
        self.blank();
        let start = self.at;
        // One bit a level, set for an object: memory is an eighth of a byte for each level of nesting. Up to 64
        // levels need no allocation.
        let mut levels = 0u64;
        let mut outer: Vec<u64> = Vec::new();
        let mut depth = 0usize;
        loop {
            // Here a value comes next.
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
                Some(b't') => self.word(b"true")?,
                Some(b'f') => self.word(b"false")?,
                Some(b'n') => self.word(b"null")?,
                Some(b'-' | b'0'..=b'9') => self.number()?,
                _ => return Err(NotJson),
            }
            // Here the next key or element comes, or the end of one or more levels.
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
            self.blank();
        }
    }

    /// Nothing but white space may follow.
    pub(crate) fn end(&mut self) -> JsonResult<()> {
        self.blank();
        if self.at == self.text.len() {
            Ok(())
        } else {
            Err(NotJson)
        }
    }

    /// Goes on to the next key or element, over the comma before it, or over the closing byte.
    fn step(&mut self, close: u8) -> JsonResult<bool> {
        self.blank();
        let at_container_start = std::mem::take(&mut self.at_container_start);
        match self.peek() {
            Some(byte) if byte == close => {
                self.at += 1;
                Ok(false)
            }
            Some(b',') if !at_container_start => {
                self.at += 1;
                self.blank();
                // A comma before the end is not JSON.
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

    fn blank(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    fn byte(&mut self, byte: u8) -> JsonResult<()> {
        if self.peek() != Some(byte) {
            return Err(NotJson);
        }
        self.at += 1;
        Ok(())
    }

    fn word(&mut self, word: &[u8]) -> JsonResult<()> {
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

    /// A string from its opening quote on.
    fn string(&mut self) -> JsonResult<Span> {
        let start = self.at;
        self.byte(b'"')?;
        self.at = scan::end(self.text, self.at).ok_or(NotJson)?;
        Ok(start..self.at)
    }
}

/// What a raw JSON string says. `raw` is a string that a [`Cursor`] has skipped, with its quotes.
pub(crate) fn decode<'a>(raw: &'a (impl AsRef<[u8]> + ?Sized)) -> Cow<'a, str> {
    let raw = raw.as_ref();
    let inner = raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default();
    if memchr::memchr(b'\\', inner).is_none() {
        // What the cursor let pass is UTF-8.
        return Cow::Borrowed(std::str::from_utf8(inner).unwrap_or_default());
    }
    // And serde_json takes it as well; the empty string stands for what cannot be.
    Cow::Owned(serde_json::from_slice(raw).unwrap_or_default())
}

/// What a raw JSON string says, as bytes: for comparing it with ASCII words, which needs no look at its UTF-8.
pub(crate) fn word(raw: &[u8]) -> Cow<'_, [u8]> {
    let inner = raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default();
    if inner.contains(&b'\\') {
        Cow::Owned(decode(raw).into_owned().into_bytes())
    } else {
        Cow::Borrowed(inner)
    }
}

/// Is this raw JSON string (with its quotes) this text, however it is escaped?
pub(crate) fn is(raw: &(impl AsRef<[u8]> + ?Sized), text: &str) -> bool {
    *word(raw.as_ref()) == *text.as_bytes()
}

/// How many levels of objects and lists a value may have that is passed on. What reads it may have a limit of its
/// own: serde_json gives up at 128.
pub(crate) const MAX_DEPTH: usize = 100;

/// A JSON value in which whatever is nested deeper than [`MAX_DEPTH`] is a string, which holds the JSON text that
/// stood there. `json` is JSON already; what is not comes back in some form, but never with a panic.
pub(crate) fn limit_depth(json: &[u8]) -> Cow<'_, [u8]> {
    // Most values are long strings, which need no look.
    if json.starts_with(b"\"") {
        return Cow::Borrowed(json);
    }
    let mut limited = Vec::new();
    // Up to here `json` is copied.
    let mut copied = 0;
    let mut depth = 0usize;
    // Where the value begins that is too deep, while it lasts.
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
                    // Writing to memory does not fail.
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

/// Do more than so many objects and lists stand in each other? `json` is JSON already.
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

/// Is the whole of this text one JSON value?
pub(crate) fn valid(text: &(impl AsRef<[u8]> + ?Sized)) -> bool {
    let mut cursor = Cursor::new(text);
    cursor.value().and_then(|_| cursor.end()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// serde_json is the judge of what is JSON.
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
            // Cut anywhere, and with anything behind it.
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
        // The list in the middle is the 101st level.
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
        assert!(is(r#""b\u0063""#, "bc"));
        assert!(!is(r#""b\u0063""#, "b"));
        assert_eq!(decode(r#""x\"y""#), "x\"y");
    }
}
