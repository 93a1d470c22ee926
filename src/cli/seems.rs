//! What a file seems to be that has no line of a rollout.
//!
//! Only its beginning is looked at: enough to tell a picture, a packed file or the output of `codex exec --json`
//! from a rollout, and not so much that a pipe is waited for.

use serde::Deserialize;
use serde_json::Value;
use std::io::{self, Read};

/// So much of a file is looked at.
const HEAD: usize = 64 << 10;

/// Reads the beginning of what is to be looked at: as much as the first read that gives something gives.
///
/// # Errors
/// It cannot be read.
pub(super) fn head(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = vec![0; HEAD];
    loop {
        match input.read(&mut head) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(length) => {
                head.truncate(length);
                return Ok(head);
            }
        }
    }
}

/// What something that begins so seems to be, where no line of it is one of a rollout.
pub(super) fn other_than_a_rollout(head: &[u8]) -> Option<&'static str> {
    let whole = head.len() < HEAD;
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    if text.trim_ascii().is_empty() {
        return whole.then_some("it is empty");
    }
    if let Some(format) = format_of(head) {
        return Some(format);
    }
    let mut lines = text.split(|byte| *byte == b'\n');
    let mut seen = None;
    for line in &mut lines {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        match kind_of_line(line) {
            Seen::Rollout => return None,
            Seen::Other(what) => {
                seen.get_or_insert(what);
            }
        }
    }
    seen
}

enum Seen {
    Rollout,
    Other(&'static str),
}

fn kind_of_line(line: &[u8]) -> Seen {
    #[derive(Deserialize)]
    struct LineHead {
        #[serde(rename = "type")]
        kind: Option<Value>,
        payload: Option<serde::de::IgnoredAny>,
        item: Option<serde::de::IgnoredAny>,
        thread_id: Option<Value>,
        record_type: Option<Value>,
        timestamp: Option<Value>,
        id: Option<Value>,
        call_id: Option<Value>,
        jsonrpc: Option<Value>,
    }
    // What the first block does not hold to its end, and what was broken off, still begins as a rollout does.
    let begins_as_one = line.starts_with(b"{\"timestamp\":") && {
        let start = &line[..line.len().min(400)];
        memchr::memmem::find(start, b"\"type\":").is_some()
            && memchr::memmem::find(start, b"\"payload\":").is_some()
    };
    if begins_as_one {
        return Seen::Rollout;
    }
    let Ok(head) = serde_json::from_slice::<LineHead>(line) else {
        return Seen::Other(match line[0] {
            b'[' | b'{' if line.len() < 3 || !line.ends_with(b"}") => {
                "it seems to be JSON that is not one object a line"
            }
            b'{' => "it seems to be JSON with errors in it",
            b'[' => "it seems to be JSON that is not one object a line",
            _ if line.contains(&0) => "it seems to be binary data",
            _ => "it seems to be plain text",
        });
    };
    let kind = head
        .kind
        .as_ref()
        .and_then(Value::as_str)
        .unwrap_or_default();
    if !kind.is_empty() && head.payload.is_some() {
        return Seen::Rollout;
    }
    Seen::Other(match kind {
        _ if head.jsonrpc.is_some() => "it seems to be JSON-RPC messages",
        "thread.started" | "turn.started" | "turn.completed" | "turn.failed" | "error"
        | "item.started" | "item.updated" | "item.completed" => {
            "it seems to be the output of 'codex exec --json', which is not what codex stores"
        }
        "tool_use" | "tool_result" | "text_delta" | "message_start" | "result" => {
            "it seems to be the output of this program"
        }
        "message" | "function_call" | "function_call_output" | "reasoning" | "local_shell_call" => {
            OLD
        }
        _ if head.record_type.is_some() => OLD,
        _ if head.timestamp.is_some() && head.id.is_some() => OLD,
        _ if head.thread_id.is_some() || head.item.is_some() || head.call_id.is_some() => {
            "it seems to be JSON of something else"
        }
        _ => "it seems to be JSON of something else",
    })
}

const OLD: &str = "it seems to be a rollout of a codex from before September 2025, whose lines have no payload; no supported codex goes on with it";

/// The formats that are not text, by their first bytes.
fn format_of(head: &[u8]) -> Option<&'static str> {
    let formats: [(&[u8], &str); 11] = [
        (
            b"\x28\xb5\x2f\xfd",
            "it is packed by zstd; 'zstd -dc' unpacks it",
        ),
        (b"\x1f\x8b", "it is packed by gzip; 'zcat' unpacks it"),
        (b"\xfd7zXZ\0", "it is packed by xz; 'xzcat' unpacks it"),
        (b"BZh", "it is packed by bzip2; 'bzcat' unpacks it"),
        (b"PK\x03\x04", "it seems to be a zip archive"),
        (b"\x89PNG", "it seems to be a picture"),
        (b"\xff\xd8\xff", "it seems to be a picture"),
        (b"GIF8", "it seems to be a picture"),
        (b"%PDF", "it seems to be a PDF"),
        (b"SQLite format 3\0", "it seems to be a SQLite database"),
        (b"\x7fELF", "it seems to be a program"),
    ];
    let webp = head.starts_with(b"RIFF") && head.get(8..12) == Some(b"WEBP");
    formats
        .iter()
        .find(|(magic, _)| head.starts_with(magic))
        .map(|(_, what)| *what)
        .or(webp.then_some("it seems to be a picture"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recognizes_files_that_are_not_rollouts() {
        for (text, expected) in [
            ("", Some("is empty")),
            (" \n\n", Some("is empty")),
            ("[{\"a\":1}]", Some("not one object a line")),
            ("{\n  \"a\": 1\n}\n", Some("not one object a line")),
            ("not a rollout\nat all\n", Some("plain text")),
            ("{\"a\":1}\n", Some("something else")),
            (
                "{\"type\":\"thread.started\",\"thread_id\":\"x\"}\n",
                Some("codex exec --json"),
            ),
            (
                "{\"id\":\"x\",\"timestamp\":\"2025\",\"instructions\":null}\n",
                Some("from before"),
            ),
            ("{\"record_type\":\"state\"}\n", Some("from before")),
            ("\u{89}PNG", Some("text")),
            (
                "{\"timestamp\":\"t\",\"type\":\"session_meta\",\"payload\":{}}\n",
                None,
            ),
            ("{\"type\":\"x\",\"payload\":{}}\n", None),
            (
                "truncated\n{\"timestamp\":\"t\",\"type\":\"event_msg\",\"payload\":{\"ty",
                None,
            ),
            (
                "\u{feff}{\"timestamp\":\"t\",\"type\":\"x\",\"payload\":{}}",
                None,
            ),
        ] {
            let told = other_than_a_rollout(text.as_bytes());
            match expected {
                None => assert_eq!(told, None, "{text}"),
                Some(part) => assert!(
                    told.is_some_and(|told| told.contains(part)),
                    "{text}: {told:?}"
                ),
            }
        }
        for (bytes, expected) in [
            (b"\x28\xb5\x2f\xfd\x04".as_slice(), "zstd"),
            (b"\x89PNG\r\n\x1a\n", "picture"),
            (b"RIFF\0\0\0\0WEBPVP8", "picture"),
        ] {
            let told = other_than_a_rollout(bytes).unwrap();
            assert!(told.contains(expected), "{told}");
        }
    }
}
