//! What a daemon's answer looks like to an MCP client.
//!
//! codex decodes a result strictly: one content block that is not as MCP has it, and the whole call fails with
//! an error that tells the model nothing. So blocks that are right pass through byte for byte, and everything
//! else becomes text. A result that codex's reader would drop for its length is cut here, and says so.

use super::server::Version;
use super::{ToolAnswer, ToolOutput};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// codex drops a line that is longer than this many bytes and lets the call wait for its timeout.
const CODEX_LINE: usize = 16_777_216;
/// The room that a result may take: what is left beside the frame of the message and the caller's id.
pub(super) const RESULT_MAX: usize = CODEX_LINE - 16 * 1024;
/// More than the braces and keys around a list of blocks, or around one text.
const FRAME: usize = 64;

/// A content block, as far as its form is checked. Field by field raw, so that a wrong type is a wrong block
/// and not an error.
#[derive(Deserialize)]
struct Block<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow)]
    text: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow, rename = "mimeType")]
    mime_type: Option<&'a RawValue>,
    /// As the daemon writes its own image blocks.
    #[serde(borrow)]
    media_type: Option<&'a RawValue>,
    #[serde(borrow)]
    resource: Option<&'a RawValue>,
    #[serde(borrow)]
    uri: Option<&'a RawValue>,
    #[serde(borrow)]
    name: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Resource<'a> {
    #[serde(borrow)]
    uri: Option<&'a RawValue>,
    #[serde(borrow)]
    text: Option<&'a RawValue>,
    #[serde(borrow)]
    blob: Option<&'a RawValue>,
}

/// The `result` of a `tools/call`, as JSON: at most `max` bytes of it.
pub(super) fn result(tool: &str, answer: ToolAnswer, version: Version, max: usize) -> String {
    let output = match answer {
        Ok(output) => output,
        Err(message) => ToolOutput {
            content: RawValue::from_string(quoted(&message)).ok(),
            is_error: true,
            structured_content: None,
        },
    };
    let mut blocks = Vec::new();
    match output.content.as_deref().map(RawValue::get) {
        None | Some("null") => {}
        Some(list) if list.starts_with('[') => match serde_json::from_str::<Vec<&RawValue>>(list) {
            Ok(list) => blocks.extend(list.into_iter().map(|raw| block(raw.get(), version))),
            Err(_) => blocks.push(text(list)),
        },
        Some(other) => blocks.push(block(other, version)),
    }
    let structured = output.structured_content.as_deref().map(RawValue::get);
    if let (true, Some(structured)) = (blocks.is_empty(), structured) {
        // MCP asks for this, for the sake of clients that know no structured content.
        blocks.push(text(structured));
    }
    let structured =
        structured.filter(|raw| raw.starts_with('{') && version >= Version::V2025_06_18);
    let length =
        blocks.iter().map(|block| block.len() + 1).sum::<usize>() + structured.map_or(0, str::len);
    if length + FRAME <= max {
        render(&blocks, structured, output.is_error)
    } else {
        // Half of a structured content is none.
        render(&cut(tool, blocks, length, max), None, true)
    }
}

fn render(blocks: &[String], structured: Option<&str>, is_error: bool) -> String {
    let mut result = format!("{{\"content\":[{}]", blocks.join(","));
    if let Some(structured) = structured {
        result.push_str(",\"structuredContent\":");
        result.push_str(structured);
    }
    result.push_str(if is_error {
        ",\"isError\":true}"
    } else {
        ",\"isError\":false}"
    });
    result
}

/// A block of text.
pub(super) fn text(text: &str) -> String {
    format!("{{\"type\":\"text\",\"text\":{}}}", quoted(text))
}

/// A string as JSON.
pub(super) fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a string is always JSON")
}

/// The block as MCP has it, whatever the daemon wrote.
fn block(raw: &str, version: Version) -> String {
    let string = |field: Option<&RawValue>| field.is_some_and(|raw| raw.get().starts_with('"'));
    if raw.starts_with('"') {
        return format!("{{\"type\":\"text\",\"text\":{raw}}}");
    }
    let parsed = match raw.starts_with('{') {
        true => serde_json::from_str::<Block<'_>>(raw).ok(),
        false => None,
    };
    let Some(parsed) = parsed else {
        return text(raw);
    };
    let known = match parsed.kind.as_deref() {
        Some("text") => string(parsed.text),
        Some("image") => string(parsed.data) && string(parsed.mime_type),
        Some("audio") => {
            string(parsed.data) && string(parsed.mime_type) && version >= Version::V2025_03_26
        }
        Some("resource_link") => {
            string(parsed.uri) && string(parsed.name) && version >= Version::V2025_06_18
        }
        Some("resource") => parsed
            .resource
            .filter(|raw| raw.get().starts_with('{'))
            .and_then(|raw| serde_json::from_str::<Resource<'_>>(raw.get()).ok())
            .is_some_and(|resource| {
                string(resource.uri) && (string(resource.text) || string(resource.blob))
            }),
        _ => false,
    };
    if known {
        return raw.to_owned();
    }
    match (parsed.kind.as_deref(), parsed.data, parsed.media_type) {
        (Some("image"), Some(data), Some(media_type))
            if string(parsed.data) && string(parsed.media_type) =>
        {
            format!(
                "{{\"type\":\"image\",\"data\":{},\"mimeType\":{}}}",
                data.get(),
                media_type.get()
            )
        }
        _ => text(raw),
    }
}

/// As much of the blocks as fits into `max` bytes, behind a sentence that says so. It stands first because
/// codex keeps the head of what it shortens itself.
fn cut(tool: &str, blocks: Vec<String>, length: usize, max: usize) -> Vec<String> {
    let sentence = text(&format!(
        "The result of the tool '{}' was cut: it has {length} bytes and codex takes at most {CODEX_LINE} in one message. What follows is its beginning.",
        head(tool, 256)
    ));
    let mut room = max.saturating_sub(sentence.len() + FRAME);
    let mut kept = vec![sentence];
    for block in blocks {
        if block.len() < room {
            room -= block.len() + 1;
            kept.push(block);
            continue;
        }
        // Of an image or a resource a part is of no use; of a text it is.
        #[derive(Deserialize)]
        struct Text<'a> {
            #[serde(borrow)]
            r#type: Cow<'a, str>,
            #[serde(borrow)]
            text: Cow<'a, str>,
        }
        if let Ok(part) = serde_json::from_str::<Text<'_>>(&block)
            && part.r#type == "text"
        {
            kept.push(text(escaped_head(&part.text, room.saturating_sub(FRAME))));
        }
        break;
    }
    kept
}

/// The longest beginning of `text` whose JSON string has at most `max` bytes.
fn escaped_head(text: &str, max: usize) -> &str {
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

/// At most `max` bytes of `text`, whole characters.
pub(super) fn head(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(content: &str, structured: Option<&str>, version: Version, expected: &str) {
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
    fn blocks_that_are_right_pass_and_all_else_is_text() {
        let newest = Version::V2025_11_25;
        for (content, expected) in [
            // As MCP has them: byte for byte, what is unknown in them too.
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
            ("[]", "[]"),
            ("null", "[]"),
            // What the daemon may write besides.
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
            // What MCP does not have.
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

    #[test]
    fn a_client_gets_what_its_version_knows() {
        for (content, structured, version, expected) in [
            (
                "[]",
                Some(r#"{"a":1}"#),
                Version::V2025_06_18,
                r#""content":[{"type":"text","text":"{\"a\":1}"}],"structuredContent":{"a":1}"#,
            ),
            (
                r#"["x"]"#,
                Some(r#"{"a":1}"#),
                Version::V2025_03_26,
                r#""content":[{"type":"text","text":"x"}]"#,
            ),
            (
                r#"["x"]"#,
                Some("[1]"),
                Version::V2025_11_25,
                r#""content":[{"type":"text","text":"x"}]"#,
            ),
            (
                r#"["x"]"#,
                Some("17"),
                Version::V2025_11_25,
                r#""content":[{"type":"text","text":"x"}]"#,
            ),
            (
                r#"[{"type":"audio","data":"","mimeType":""}]"#,
                None,
                Version::V2024_11_05,
                r#""content":[{"type":"text","text":"{\"type\":\"audio\",\"data\":\"\",\"mimeType\":\"\"}"}]"#,
            ),
            (
                r#"[{"type":"resource_link","uri":"a:b","name":"x"}]"#,
                None,
                Version::V2025_03_26,
                r#""content":[{"type":"text","text":"{\"type\":\"resource_link\",\"uri\":\"a:b\",\"name\":\"x\"}"}]"#,
            ),
        ] {
            check(content, structured, version, expected);
        }
    }

    /// What is over the line is cut to just under it, is an error, says so first, and stays JSON.
    #[test]
    fn what_codex_would_drop_is_cut() {
        const MAX: usize = 2000;
        let long = |unit: &str| quoted(&unit.repeat(3000));
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
            let result = result("send", Ok(output), Version::V2025_11_25, MAX);
            assert!(
                (least..=MAX).contains(&result.len()),
                "{} bytes of {}",
                result.len(),
                head(&content, 40)
            );
            let value: serde_json::Value = serde_json::from_str(&result).unwrap();
            assert_eq!(value["isError"], true, "{}", head(&content, 40));
            assert_eq!(value.get("structuredContent"), None);
            let first = value["content"][0]["text"].as_str().unwrap();
            assert!(first.contains("tool 'send' was cut"), "{first}");
        }
        let error = result("send", Err("x".repeat(3000)), Version::V2025_11_25, MAX);
        assert!(error.len() <= MAX && error.contains("was cut") && error.ends_with("true}"));
    }
}
