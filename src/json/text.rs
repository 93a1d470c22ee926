//! Adapts JSON to what codex's own reader accepts, and quotes and truncates texts.
//!
//! A tool's response is passed on as the daemon wrote it, and the grammar of JSON allows more than codex's reader
//! (serde_json into typed structs): unpaired surrogates, any depth, any number. A message with one of these is lost: a
//! turn of codex 0.169 then waits for the response for ever, and 0.135 closes the connection and with it all tools.
//! Unpaired surrogates are replaced here; the others are detected.

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::fmt;

/// How deep a value may nest. codex's reader takes 127 levels, some of which the message around a value needs, and so
/// do the rollout and the events that codex writes it into.
const NESTING_MAX: usize = 100;

/// Replaces every escape of an unpaired surrogate by that of U+FFFD. All other bytes and the length stay.
pub(crate) fn replace_lone_surrogates(json: &str) -> Cow<'_, str> {
    let mut fixed: Option<String> = None;
    let mut at = 0;
    // Backslashes occur in strings only, and an escape is ASCII up to its fourth digit.
    while let Some(found) = memchr::memchr(b'\\', &json.as_bytes()[at..]) {
        let escape = at + found;
        at = match (surrogate(json, escape), surrogate(json, escape + 6)) {
            (Some(Surrogate::First), Some(Surrogate::Second)) => escape + 12,
            (Some(_), _) => {
                let text = fixed.get_or_insert_with(|| json.to_owned());
                text.replace_range(escape..escape + 6, "\\ufffd");
                escape + 6
            }
            // A backslash and the character that it escapes.
            (None, _) => escape + 2,
        };
    }
    fixed.map_or(Cow::Borrowed(json), Cow::Owned)
}

/// Quotes a text as a JSON string.
pub(crate) fn json_string(text: &str) -> String {
    serde_json::to_string(text).expect("a string is always JSON")
}

/// The longest prefix of `text` of at most `max` bytes that ends at a character boundary.
pub(crate) fn truncate(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

enum Surrogate {
    First,
    Second,
}

/// Which half of a surrogate pair the escape at `at` is, if any.
fn surrogate(json: &str, at: usize) -> Option<Surrogate> {
    let digits = json.get(at..at + 6)?.strip_prefix("\\u")?;
    match u16::from_str_radix(digits, 16).ok()? {
        0xd800..=0xdbff => Some(Surrogate::First),
        0xdc00..=0xdfff => Some(Surrogate::Second),
        _ => None,
    }
}

/// Why codex's reader would reject this JSON; `None` where it would not.
pub(crate) fn why_unreadable(json: &str) -> Option<String> {
    let mut reader = serde_json::Deserializer::from_str(json);
    let read = Checked { left: NESTING_MAX }.deserialize(&mut reader);
    read.and_then(|()| reader.end())
        .err()
        .map(|error| error.to_string())
}

/// Deserializes a value and discards it. `IgnoredAny` would not do: it does not check what it skips.
struct Checked {
    /// How many more arrays and objects may be opened.
    left: usize,
}

impl Checked {
    fn inner<E: Error>(&self) -> Result<usize, E> {
        self.left
            .checked_sub(1)
            .ok_or_else(|| E::custom(format_args!("it nests deeper than {NESTING_MAX} levels")))
    }
}

impl<'de> DeserializeSeed<'de> for Checked {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Checked {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let left = self.inner()?;
        while list.next_element_seed(Checked { left })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<(), A::Error> {
        let left = self.inner()?;
        while object.next_key_seed(Checked { left })?.is_some() {
            object.next_value_seed(Checked { left })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_only_lone_surrogates() {
        for (json, expected) in [
            (r#""\ud83d\ude00 \u00e9 \\ud83d é""#, None),
            (r#""\uD83D\uDE00\\\ud83d\ude00""#, None),
            (r#""a\ud83d""#, Some(r#""a\ufffd""#)),
            (r#""\ude00b""#, Some(r#""\ufffdb""#)),
            (r#""\ud83dé\ude00""#, Some(r#""\ufffdé\ufffd""#)),
            (r#""\ud83d\n\\\ude00""#, Some(r#""\ufffd\n\\\ufffd""#)),
            (
                r#""\ud83d\ud83d\ude00\ude00""#,
                Some(r#""\ufffd\ud83d\ude00\ufffd""#),
            ),
            (
                r#"{"k\uD800":["\uDFFF"]}"#,
                Some(r#"{"k\ufffd":["\ufffd"]}"#),
            ),
        ] {
            let fixed = replace_lone_surrogates(json);
            assert_eq!(fixed, expected.unwrap_or(json));
            assert_eq!(matches!(fixed, Cow::Borrowed(_)), expected.is_none());
            assert_eq!(why_unreadable(&fixed), None, "{json}");
            assert_eq!(why_unreadable(json).is_some(), expected.is_some(), "{json}");
        }
    }

    #[test]
    fn finds_what_codex_cannot_read() {
        let lists = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let objects = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
        for (json, part) in [
            (lists(100), None),
            (objects(100), None),
            (lists(101), Some("deeper than 100 levels")),
            (objects(101), Some("deeper than 100 levels")),
            (lists(100_000), Some("deeper than 100 levels")),
            (
                "[null,true,-1,1.5e300,\"\",18446744073709551616]".to_owned(),
                None,
            ),
            ("[1e400]".to_owned(), Some("number out of range")),
            ("{\"a\":1,\"a\":2}".to_owned(), None),
        ] {
            let refusal = why_unreadable(&json);
            let shown = &json[..json.len().min(40)];
            match part {
                None => assert_eq!(refusal, None, "{shown}"),
                Some(part) => assert!(refusal.unwrap().contains(part), "{shown}"),
            }
        }
    }
}
