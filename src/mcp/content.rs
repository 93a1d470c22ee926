//! Converts a response of the daemon into an MCP result.
//!
//! codex decodes a result strictly: one content block that is not valid MCP makes the whole call fail, with an error
//! that tells the model nothing. So blocks are made valid ([`super::block`], [`why_unreadable`]), and a result that
//! codex would drop for its length is truncated, with a note.

use super::block::{self, text};
use super::version::ProtocolVersion;
use super::{ToolAnswer, ToolOutput};
use crate::json::{self, Cursor, limit_depth};
use crate::json::{json_string, replace_lone_surrogates, truncate, why_unreadable};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::ops::Range;

/// codex drops a longer line, in bytes, and the call then waits for its timeout.
const CODEX_LINE: usize = 16_777_216;
/// The most bytes of a result: the rest of the line is for the frame of the message and the caller's id.
pub(super) const RESULT_MAX: usize = CODEX_LINE - 16 * 1024;
/// More than the braces and keys around a list of blocks, or around one text, in bytes.
const FRAME: usize = 64;
/// The beginning of a result.
const BEGINNING: &str = "{\"content\":[";

/// The `result` of a `tools/call`, as JSON of at most `max` bytes.
pub(super) fn result(
    tool: &str,
    answer: ToolAnswer,
    version: ProtocolVersion,
    max: usize,
) -> String {
    let output = match answer {
        Ok(output) => output,
        Err(message) => ToolOutput {
            content: RawValue::from_string(json_string(&message)).ok(),
            is_error: true,
            structured_content: None,
        },
    };
    let content = output.content.as_deref().map(RawValue::get);
    let content = content.map(replace_lone_surrogates);
    let mut blocks = Blocks::new(tool, max);
    match content.as_deref() {
        None | Some("null") => {}
        Some(list) if list.starts_with('[') => {
            for raw in elements(list) {
                if blocks.is_over() {
                    // The rest would be cut off anyway.
                    break;
                }
                blocks.add(block::normalize(raw, version));
            }
        }
        Some(other) => blocks.add(block::normalize(other, version)),
    }
    let structured = output.structured_content.as_deref().map(RawValue::get);
    let structured = structured.map(replace_lone_surrogates);
    let given = content.as_deref().map_or(0, str::len) + structured.as_deref().map_or(0, str::len);
    // Values deeper than codex's reader accepts become strings.
    let limited = structured.as_deref().map(|raw| limit_depth(raw.as_bytes()));
    let structured = limited
        .as_deref()
        .and_then(|raw| std::str::from_utf8(raw).ok())
        .filter(|raw| *raw != "null");
    let refusal = structured.and_then(why_unreadable);
    match (structured, &refusal) {
        // MCP asks for this, for clients that do not know structured content.
        (Some(structured), _) if blocks.is_empty() => blocks.add(text(structured)),
        (Some(structured), Some(why)) => blocks.add(text(&format!(
            "The structured content of this result can only be given as text, because {why}: {structured}"
        ))),
        _ => {}
    }
    if blocks.is_empty() {
        // 0.135 takes a result without blocks as missing, and gives the model an error.
        blocks.add(text(""));
    }
    let structured = structured.filter(|raw| {
        raw.starts_with('{') && version >= ProtocolVersion::V2025_06_18 && refusal.is_none()
    });
    let length = blocks.length + structured.map_or(0, str::len);
    if length + FRAME <= max {
        blocks.finish(structured, output.is_error)
    } else {
        blocks.cut(tool, length.max(given))
    }
}

/// The elements of a JSON array, without collecting them: pointers would take more memory than short elements.
fn elements(list: &str) -> impl Iterator<Item = &str> {
    let mut cursor = Cursor::new(list);
    let mut has_more = cursor.open(json::JsonKind::Array).is_ok();
    std::iter::from_fn(move || {
        has_more = has_more && cursor.element().unwrap_or(false);
        let element = has_more.then(|| cursor.value().ok()).flatten()?;
        Some(&list[element])
    })
}

/// The blocks of a result, collected up to the limit.
struct Blocks {
    /// The result up to the end of the blocks so far.
    json: String,
    /// The length of all blocks in bytes, with a comma each.
    length: usize,
    max: usize,
    /// How many bytes of them fit behind the note of a truncated result.
    max_behind_note: usize,
    /// The range in `json` of the first block that does not fit behind the note.
    over_note: Option<Range<usize>>,
    /// The first block that exceeds `max`; no more are collected then.
    over_max: Option<String>,
}

impl Blocks {
    fn new(tool: &str, max: usize) -> Blocks {
        Blocks {
            json: BEGINNING.to_owned(),
            length: 0,
            max,
            max_behind_note: max.saturating_sub(cut_note(tool, usize::MAX).len() + FRAME),
            over_note: None,
            over_max: None,
        }
    }

    fn is_empty(&self) -> bool {
        self.length == 0
    }

    fn is_over(&self) -> bool {
        self.over_max.is_some()
    }

    fn add(&mut self, block: String) {
        self.length += block.len() + 1;
        if self.is_over() {
            return;
        }
        if self.length + FRAME > self.max {
            self.over_max = Some(block);
            return;
        }
        if self.json.len() > BEGINNING.len() {
            self.json.push(',');
        }
        let start = self.json.len();
        self.json.push_str(&block);
        if self.length > self.max_behind_note {
            self.over_note.get_or_insert(start..start + block.len());
        }
    }

    /// The complete result.
    fn finish(mut self, structured: Option<&str>, is_error: bool) -> String {
        self.json.push(']');
        if let Some(structured) = structured {
            self.json.push_str(",\"structuredContent\":");
            self.json.push_str(structured);
        }
        self.json.push_str(if is_error {
            ",\"isError\":true}"
        } else {
            ",\"isError\":false}"
        });
        self.json
    }

    /// The result with as many blocks as fit, behind a note. The note comes first because codex keeps the beginning of
    /// what it truncates itself. Structured content is dropped.
    fn cut(mut self, tool: &str, length: usize) -> String {
        // A part of a text is useful, a part of an image or a resource is not.
        #[derive(Deserialize)]
        struct TextBlock<'a> {
            #[serde(borrow)]
            r#type: Cow<'a, str>,
            #[serde(borrow)]
            text: Cow<'a, str>,
        }
        let whole = self.over_note.as_ref().map_or(self.json.len(), |range| {
            BEGINNING.len().max(range.start.saturating_sub(1))
        });
        let part = match &self.over_note {
            Some(range) => Some(&self.json[range.clone()]),
            None => self.over_max.as_deref(),
        };
        let available = self.max_behind_note.saturating_sub(whole + 1);
        let part = part
            .and_then(|part| serde_json::from_str::<TextBlock<'_>>(part).ok())
            .filter(|part| part.r#type == "text")
            .map(|part| text(escaped_prefix(&part.text, available)));
        self.json.truncate(whole);
        let mut note = cut_note(tool, length);
        if whole > BEGINNING.len() {
            note.push(',');
        }
        self.json.insert_str(BEGINNING.len(), &note);
        if let Some(part) = part {
            self.json.push(',');
            self.json.push_str(&part);
        }
        self.finish(None, true)
    }
}

/// The text block with the note of a truncated result.
fn cut_note(tool: &str, length: usize) -> String {
    text(&format!(
        "The result of the tool '{}' was cut: it has {length} bytes and codex takes at most {CODEX_LINE} in one message. What follows is its beginning.",
        truncate(tool, 256)
    ))
}

/// The longest prefix of `text` whose JSON string has at most `max` bytes.
fn escaped_prefix(text: &str, max: usize) -> &str {
    let mut length = 2;
    for (at, character) in text.char_indices() {
        length += match character {
            '"' | '\\' | '\u{8}' | '\u{9}' | '\u{a}' | '\u{c}' | '\u{d}' => 2,
            '\0'..='\u{1f}' => 6,
            other => other.len_utf8(),
        };
        if length > max {
            return &text[..at];
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(content: &str, structured: Option<&str>, version: ProtocolVersion, expected: &str) {
        let raw = |json: &str| RawValue::from_string(json.to_owned()).unwrap();
        let output = ToolOutput {
            content: Some(raw(content)),
            is_error: false,
            structured_content: structured.map(raw),
        };
        let result = result("t", Ok(output), version, RESULT_MAX);
        assert_eq!(
            result,
            format!("{{{expected},\"isError\":false}}"),
            "{content} with {structured:?} for {version:?}"
        );
        let _: serde_json::Value = serde_json::from_str(&result).unwrap();
    }

    #[test]
    fn passes_valid_blocks_and_turns_others_into_text() {
        let newest = ProtocolVersion::V2025_11_25;
        for (content, expected) in [
            // Valid blocks: byte for byte, with unknown members.
            (
                r#"[{"type":"text","text":"hi","annotations":{"priority":1}}]"#,
                r#"[{"type":"text","text":"hi","annotations":{"priority":1}}]"#,
            ),
            (
                r#"[ {"text": "a", "type": "text"} , {"type":"image","data":"AA==","mimeType":"image/png"}]"#,
                r#"[{"text": "a", "type": "text"},{"type":"image","data":"AA==","mimeType":"image/png"}]"#,
            ),
            (
                r#"[{"type":"audio","data":"AA==","mimeType":"audio/wav"}]"#,
                r#"[{"type":"audio","data":"AA==","mimeType":"audio/wav"}]"#,
            ),
            (
                r#"[{"type":"resource","resource":{"uri":"a:b","text":"x"}}]"#,
                r#"[{"type":"resource","resource":{"uri":"a:b","text":"x"}}]"#,
            ),
            (
                r#"[{"type":"resource_link","uri":"a:b","name":"x"}]"#,
                r#"[{"type":"resource_link","uri":"a:b","name":"x"}]"#,
            ),
            // 0.135 takes an empty array as a missing result.
            ("[]", r#"[{"type":"text","text":""}]"#),
            ("null", r#"[{"type":"text","text":""}]"#),
            // Other forms that the daemon may write.
            (
                r#""hi \"you\"""#,
                r#"[{"type":"text","text":"hi \"you\""}]"#,
            ),
            (
                r#"{"type":"text","text":"one"}"#,
                r#"[{"type":"text","text":"one"}]"#,
            ),
            (
                r#"[{"type":"image","media_type":"image/png","data":"AA=="}]"#,
                r#"[{"type":"image","data":"AA==","mimeType":"image/png"}]"#,
            ),
            // Invalid blocks.
            (
                r#"[{"type":"text","text":5}]"#,
                r#"[{"type":"text","text":"{\"type\":\"text\",\"text\":5}"}]"#,
            ),
            (
                r#"[{"type":"image"}]"#,
                r#"[{"type":"text","text":"{\"type\":\"image\"}"}]"#,
            ),
            (
                r#"[{"type":7}]"#,
                r#"[{"type":"text","text":"{\"type\":7}"}]"#,
            ),
            (
                r#"[{"type":"resource","resource":[]}]"#,
                r#"[{"type":"text","text":"{\"type\":\"resource\",\"resource\":[]}"}]"#,
            ),
            (
                r#"[1,[2],null,"s"]"#,
                r#"[{"type":"text","text":"1"},{"type":"text","text":"[2]"},{"type":"text","text":"null"},{"type":"text","text":"s"}]"#,
            ),
            ("17", r#"[{"type":"text","text":"17"}]"#),
        ] {
            check(content, None, newest, &format!("\"content\":{expected}"));
        }
    }

    /// codex rejects the whole result for a member of a wrong type, even for one that the model does not see.
    #[test]
    fn drops_wrong_members_of_blocks() {
        let deep = format!("{}{}", "[".repeat(101), "]".repeat(101));
        let text = |members: &str| format!(r#"{{"type":"text","text":"t"{members}}}"#);
        let link =
            |members: &str| format!(r#"{{"type":"resource_link","uri":"u","name":"n"{members}}}"#);
        let inner = |members: &str| {
            format!(r#"{{"type":"resource","resource":{{"uri":"u","blob":"b"{members}}}}}"#)
        };
        for block in [text, link] {
            for right in [
                "",
                r#","annotations":null,"_meta":null"#,
                r#","annotations":{},"_meta":{"a":1}"#,
                r#","annotations":{"audience":["user","assistant"],"priority":1,"x":[0.5]}"#,
                r#","annotations":{"lastModified":"2025-01-12T15:00:58Z"}"#,
                r#","annotations":{"lastModified":"2025-12-31T23:59:59.123-08:30"}"#,
                r#","unknown":3"#,
            ] {
                let block = block(right);
                check(
                    &format!("[{block}]"),
                    None,
                    ProtocolVersion::V2025_11_25,
                    &format!("\"content\":[{block}]"),
                );
            }
        }
        for right in [
            r#","title":"a","description":"b","mimeType":"c","size":4294967295"#,
            r#","icons":[{"src":"a","mimeType":"b","sizes":["48x48"],"theme":"dark"}]"#,
        ] {
            let block = link(right);
            check(
                &format!("[{block}]"),
                None,
                ProtocolVersion::V2025_11_25,
                &format!("\"content\":[{block}]"),
            );
        }
        for (given, expected) in [
            (text(r#","annotations":3"#), text("")),
            (text(r#","_meta":"x""#), text("")),
            (text(r#","_meta":[]"#), text("")),
            (
                text(r#","annotations":[],"_meta":{"a":1}"#),
                text(r#","_meta":{"a":1}"#),
            ),
            (text(r#","annotations":{"audience":["robot"]}"#), text("")),
            (text(r#","annotations":{"audience":"user"}"#), text("")),
            (text(r#","annotations":{"priority":"1"}"#), text("")),
            (text(r#","annotations":{"priority":0.5}"#), text("")),
            (
                text(r#","annotations":{"lastModified":"yesterday"}"#),
                text(""),
            ),
            (
                text(r#","annotations":{"lastModified":"2025-13-01T00:00:00Z"}"#),
                text(""),
            ),
            (
                text(r#","annotations":{"lastModified":"2025-01-01T00:00:00"}"#),
                text(""),
            ),
            (text(&format!(r#","_meta":{{"a":{deep}}}"#)), text("")),
            (text(&format!(r#","unknown":{deep}"#)), text("")),
            (text(r#","unknown":1e400"#), text("")),
            (link(r#","title":3"#), link("")),
            (
                link(r#","description":[],"title":"t""#),
                link(r#","title":"t""#),
            ),
            (link(r#","mimeType":{}"#), link("")),
            (link(r#","size":5000000000"#), link("")),
            (link(r#","size":5.5"#), link("")),
            (link(r#","icons":3"#), link("")),
            (inner(r#","mimeType":3"#), inner("")),
            (
                inner(r#","_meta":3,"mimeType":"m""#),
                inner(r#","mimeType":"m""#),
            ),
            (
                r#"{"type":"image","data":"AA==","mimeType":"image/png","_meta":1}"#.to_owned(),
                r#"{"type":"image","data":"AA==","mimeType":"image/png"}"#.to_owned(),
            ),
        ] {
            check(
                &format!("[{given}]"),
                None,
                ProtocolVersion::V2025_11_25,
                &format!("\"content\":[{expected}]"),
            );
        }
    }

    /// JSON that codex's reader rejects is replaced without losing text.
    #[test]
    fn fixes_what_codex_cannot_parse() {
        let newest = ProtocolVersion::V2025_11_25;
        check(
            r#"["\ud83d",{"type":"text","text":"a\ud83d\ude00\ude00"}]"#,
            Some(r#"{"a\ud800":1}"#),
            newest,
            r#""content":[{"type":"text","text":"\ufffd"},{"type":"text","text":"a\ud83d\ude00\ufffd"}],"structuredContent":{"a\ufffd":1}"#,
        );
        let (structured, why) = (r#"{"a":1e400}"#, "number out of range");
        check(
            "[]",
            Some(structured),
            newest,
            &format!("\"content\":[{}]", text(structured)),
        );
        let raw = |json: &str| RawValue::from_string(json.to_owned()).unwrap();
        let output = ToolOutput {
            content: Some(raw("[\"x\"]")),
            is_error: false,
            structured_content: Some(raw(structured)),
        };
        let result = result("t", Ok(output), newest, RESULT_MAX);
        let value: serde_json::Value = serde_json::from_str(&result).unwrap();
        assert_eq!(value.get("structuredContent"), None);
        assert_eq!(value["content"][0]["text"], "x");
        let shown = value["content"][1]["text"].as_str().unwrap();
        assert!(
            shown.contains(why) && shown.ends_with(structured),
            "{shown}"
        );
    }

    // fault: 89
    #[test]
    fn passes_deep_structured_content_as_a_string_below_100_levels() {
        let nested =
            |inner: &str, depth: usize| "{\"a\":".repeat(depth) + inner + &"}".repeat(depth);
        for depth in [101, 50_000] {
            let limited = nested(&json_string(&nested("1", depth - 100)), 100);
            check(
                "[\"x\"]",
                Some(&nested("1", depth)),
                ProtocolVersion::V2025_11_25,
                &format!(
                    r#""content":[{{"type":"text","text":"x"}}],"structuredContent":{limited}"#
                ),
            );
        }
    }

    #[test]
    fn adapts_blocks_to_protocol_version() {
        for (content, structured, version, expected) in [
            (
                "[]",
                Some(r#"{"a":1}"#),
                ProtocolVersion::V2025_06_18,
                r#""content":[{"type":"text","text":"{\"a\":1}"}],"structuredContent":{"a":1}"#,
            ),
            (
                r#"["x"]"#,
                Some(r#"{"a":1}"#),
                ProtocolVersion::V2025_03_26,
                r#""content":[{"type":"text","text":"x"}]"#,
            ),
            (
                r#"["x"]"#,
                Some("[1]"),
                ProtocolVersion::V2025_11_25,
                r#""content":[{"type":"text","text":"x"}]"#,
            ),
            (
                r#"["x"]"#,
                Some("17"),
                ProtocolVersion::V2025_11_25,
                r#""content":[{"type":"text","text":"x"}]"#,
            ),
            (
                r#"[{"type":"audio","data":"","mimeType":""}]"#,
                None,
                ProtocolVersion::V2024_11_05,
                r#""content":[{"type":"text","text":"{\"type\":\"audio\",\"data\":\"\",\"mimeType\":\"\"}"}]"#,
            ),
            (
                r#"[{"type":"resource_link","uri":"a:b","name":"x"}]"#,
                None,
                ProtocolVersion::V2025_03_26,
                r#""content":[{"type":"text","text":"{\"type\":\"resource_link\",\"uri\":\"a:b\",\"name\":\"x\"}"}]"#,
            ),
        ] {
            check(content, structured, version, expected);
        }
    }

    // fault: 50
    /// A result over the limit becomes an error of just under the limit that begins with a note, and stays valid JSON.
    #[test]
    fn truncates_overlong_results() {
        const MAX: usize = 2000;
        let long = |unit: &str| json_string(&unit.repeat(3000));
        let image = format!(
            r#"{{"type":"image","data":{},"mimeType":"a/b"}}"#,
            long("A")
        );
        for (content, structured, least) in [
            (long("a"), None, MAX - 300),
            (long("\0"), None, MAX - 310),
            (long("é\""), None, MAX - 310),
            (format!("[\"first\",{}]", long("a")), None, MAX - 300),
            (format!("[\"first\",{image},\"last\"]"), None, 200),
            (image.clone(), None, 150),
            (
                "[\"short\"]".to_owned(),
                Some(format!("{{\"a\":{}}}", long("a"))),
                30,
            ),
        ] {
            let raw = |json: String| RawValue::from_string(json).unwrap();
            let output = ToolOutput {
                content: Some(raw(content.clone())),
                is_error: false,
                structured_content: structured.map(raw),
            };
            let result = result("send", Ok(output), ProtocolVersion::V2025_11_25, MAX);
            assert!(
                (least..=MAX).contains(&result.len()),
                "{} bytes of {}",
                result.len(),
                truncate(&content, 40)
            );
            let value: serde_json::Value = serde_json::from_str(&result).unwrap();
            assert_eq!(value["isError"], true, "{}", truncate(&content, 40));
            assert_eq!(value.get("structuredContent"), None);
            let first = value["content"][0]["text"].as_str().unwrap();
            assert!(first.contains("tool 'send' was cut"), "{first}");
        }
        let error = result(
            "send",
            Err("x".repeat(3000)),
            ProtocolVersion::V2025_11_25,
            MAX,
        );
        assert!(error.len() <= MAX && error.contains("was cut") && error.ends_with("true}"));
    }
}
