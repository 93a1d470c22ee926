//! Finds out whether the model still sees a system text that is too long for an argument.
//!
//! Such a text is put at the beginning of a prompt. A compaction keeps at most 20,000 tokens of the user's messages
//! (0.135 and 0.169), and so truncates the text, which is sent again with the next turn then. The order of the two in
//! the thread's rollout tells whether that is necessary.

use super::command;
use crate::os::{CancelToken, open_regular_file};
use memchr::memmem::rfind;
use std::io::{self, Read};
use std::path::Path;

/// How many bytes are read between two checks for a cancel.
const PART: usize = 1 << 20;

/// Whether the model sees this text whole, at the beginning of a prompt. Reads the rollout once, in parts.
///
/// # Errors
/// The file cannot be read or is not a regular one, or the turn is cancelled.
pub(super) fn is_in_view(rollout: &Path, text: &str, cancel: &CancelToken) -> io::Result<bool> {
    let file = open_regular_file(rollout)?;
    search(file, text, cancel)
}

fn search(mut rollout: impl Read, text: &str, cancel: &CancelToken) -> io::Result<bool> {
    // codex writes JSON as serde_json does, without spaces; a quote of it inside a string would have backslashes.
    let needle = serde_json::to_string(&command::system_block(text))?;
    let needle = needle.trim_matches('"').as_bytes();
    let compacted = br#""type":"compacted""#;
    let overlap = needle.len().max(compacted.len()) - 1;
    let mut buffer = Vec::with_capacity(overlap + PART);
    let mut in_view = false;
    loop {
        if cancel.is_cancelled() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let kept = buffer.len();
        let read = (&mut rollout).take(PART as u64).read_to_end(&mut buffer)?;
        if read == 0 {
            return Ok(in_view);
        }
        match (rfind(&buffer, needle), rfind(&buffer, compacted)) {
            (None, None) => {}
            (text_at, compacted_at) => in_view = text_at > compacted_at,
        }
        log::trace!("searched {read} bytes of the rollout from offset {kept}");
        let done = buffer.len().saturating_sub(overlap);
        buffer.drain(..done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_system_text_counts() {
        let text = "say \"hi\"\n".repeat(20_000);
        let cancel = CancelToken::new().unwrap();
        let prompt = serde_json::json!({"type": "response_item", "payload": {"role": "user",
            "content": [{"text": format!("{}\n\nhi", command::system_block(&text))}]}})
        .to_string();
        let prompt = prompt.as_str();
        let compacted = r#"{"timestamp":"x","type":"compacted","payload":{"message":"short"}}"#;
        let quoted = serde_json::to_string(compacted).unwrap();
        let other = "x".repeat(PART - 7);
        let (quoted, other) = (quoted.as_str(), other.as_str());
        for (lines, expected) in [
            (Vec::<&str>::new(), false),
            (vec![other, prompt, other], true),
            (vec![prompt, quoted], true),
            (vec![prompt, compacted], false),
            (vec![prompt, other, compacted, other, other], false),
            (vec![prompt, compacted, other, prompt, other, other], true),
            (vec![&prompt[..prompt.len() - 100]], false),
        ] {
            let rollout = lines.join("\n");
            assert_eq!(
                search(rollout.as_bytes(), &text, &cancel).unwrap(),
                expected
            );
        }
        cancel.cancel();
        assert!(search(&b"x"[..], &text, &cancel).is_err());
    }
}
