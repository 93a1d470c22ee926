//! Guesses the type of a file that is not a rollout, for an error message.
//!
//! Only the first bytes are examined: enough to distinguish an image, a compressed file or the output of
//! `codex exec --json` from a rollout, without waiting for a pipe.

use serde::Deserialize;
use serde_json::Value;
use std::io::{self, Read};

/// How many bytes are examined at most.
const HEAD_BYTES: usize = 64 << 10;

/// Reads the first bytes with a single read, which may return fewer than [`HEAD_BYTES`]; none at end of file.
///
/// # Errors
/// Those of reading; interrupted reads are repeated.
pub(super) fn read_head(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = vec![0; HEAD_BYTES];
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

/// Describes the type of a file with these first bytes; `None` where a line may be a rollout's.
pub(super) fn describe_non_rollout(head: &[u8]) -> Option<&'static str> {
    let whole = head.len() < HEAD_BYTES;
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    if text.trim_ascii().is_empty() {
        return whole.then_some("it is empty");
    }
    if let Some(format) = binary_format(head) {
        return Some(format);
    }
    let mut lines = text.split(|byte| *byte == b'\n');
    let mut first = None;
    for line in &mut lines {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        match classify_line(line) {
            LineType::Rollout => return None,
            LineType::Other(description) => {
                first.get_or_insert(description);
            }
        }
    }
    first
}

enum LineType {
    Rollout,
    /// With a description for the message.
    Other(&'static str),
}

fn classify_line(line: &[u8]) -> LineType {
    #[derive(Deserialize)]
    struct LineHead {
        #[serde(rename = "type")]
        kind: Option<Value>,
        payload: Option<serde::de::IgnoredAny>,
        record_type: Option<Value>,
        timestamp: Option<Value>,
        id: Option<Value>,
        jsonrpc: Option<Value>,
    }
    // The last line may be incomplete, so that it cannot be parsed: its beginning has to do.
    let has_rollout_head = line.starts_with(b"{\"timestamp\":") && {
        let start = &line[..line.len().min(400)];
        memchr::memmem::find(start, b"\"type\":").is_some()
            && memchr::memmem::find(start, b"\"payload\":").is_some()
    };
    if has_rollout_head {
        return LineType::Rollout;
    }
    let Ok(head) = serde_json::from_slice::<LineHead>(line) else {
        return LineType::Other(match line[0] {
            // The end of this line was not read.
            b'{' if line.len() + b"\xef\xbb\xbf".len() >= HEAD_BYTES => OTHER_JSON,
            b'[' | b'{' if line.len() < 3 || !line.ends_with(b"}") => {
                "it seems to be JSON, but not one object per line"
            }
            b'{' => "it seems to be invalid JSON",
            b'[' => "it seems to be JSON, but not one object per line",
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
        return LineType::Rollout;
    }
    LineType::Other(match kind {
        _ if head.jsonrpc.is_some() => "it seems to be JSON-RPC messages",
        "thread.started" | "turn.started" | "turn.completed" | "turn.failed" | "error"
        | "item.started" | "item.updated" | "item.completed" => {
            "it seems to be the output of 'codex exec --json', which is not a rollout"
        }
        "tool_use" | "tool_result" | "text_delta" | "message_start" | "result" => {
            "it seems to be the output of this program"
        }
        "message" | "function_call" | "function_call_output" | "reasoning" | "local_shell_call" => {
            OLD_ROLLOUT
        }
        _ if head.record_type.is_some() => OLD_ROLLOUT,
        _ if head.timestamp.is_some() && head.id.is_some() => OLD_ROLLOUT,
        _ => OTHER_JSON,
    })
}

const OTHER_JSON: &str = "it seems to be JSON, but not of a rollout";

const OLD_ROLLOUT: &str = "it seems to be a rollout of a codex from before September 2025, whose lines have no payload; no supported version of codex resumes it";

/// Recognizes binary formats by their magic numbers.
fn binary_format(head: &[u8]) -> Option<&'static str> {
    let formats: [(&[u8], &str); 11] = [
        (
            b"\x28\xb5\x2f\xfd",
            "it is compressed with zstd; 'zstd -dc' decompresses it",
        ),
        (
            b"\x1f\x8b",
            "it is compressed with gzip; 'zcat' decompresses it",
        ),
        (
            b"\xfd7zXZ\0",
            "it is compressed with xz; 'xzcat' decompresses it",
        ),
        (
            b"BZh",
            "it is compressed with bzip2; 'bzcat' decompresses it",
        ),
        (b"PK\x03\x04", "it seems to be a zip archive"),
        (b"\x89PNG", "it seems to be an image"),
        (b"\xff\xd8\xff", "it seems to be an image"),
        (b"GIF8", "it seems to be an image"),
        (b"%PDF", "it seems to be a PDF"),
        (b"SQLite format 3\0", "it seems to be a SQLite database"),
        (b"\x7fELF", "it seems to be a program"),
    ];
    let webp = head.starts_with(b"RIFF") && head.get(8..12) == Some(b"WEBP");
    formats
        .iter()
        .find(|(magic, _)| head.starts_with(magic))
        .map(|(_, what)| *what)
        .or(webp.then_some("it seems to be an image"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn describes_files_that_are_not_rollouts() {
        for (text, expected) in [
            ("", Some("is empty")),
            (" \n\n", Some("is empty")),
            ("[{\"a\":1}]", Some("not one object per line")),
            ("{\n  \"a\": 1\n}\n", Some("not one object per line")),
            ("not a rollout\nat all\n", Some("plain text")),
            ("{\"a\":1}\n", Some("not of a rollout")),
            (
                &format!("{{\"a\":\"{}", "x".repeat(HEAD_BYTES)),
                Some("not of a rollout"),
            ),
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
            let description = describe_non_rollout(text.as_bytes());
            match expected {
                None => assert_eq!(description, None, "{text}"),
                Some(part) => assert!(
                    description.is_some_and(|description| description.contains(part)),
                    "{text}: {description:?}"
                ),
            }
        }
        for (bytes, expected) in [
            (b"\x28\xb5\x2f\xfd\x04".as_slice(), "zstd"),
            (b"\x89PNG\r\n\x1a\n", "image"),
            (b"RIFF\0\0\0\0WEBPVP8", "image"),
        ] {
            let description = describe_non_rollout(bytes).unwrap();
            assert!(description.contains(expected), "{description}");
        }
    }
}
