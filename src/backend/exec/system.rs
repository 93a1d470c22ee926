//! Whether a system text that is too long for an argument is still before the model.
//!
//! Such a text stands at the head of a prompt. A compaction keeps at most 20,000 tokens of what the user said
//! (0.135 and 0.169), so that less than this text is left of it: it is then given again with the next turn. The
//! thread's rollout says which of the two came last.

use super::command;
use crate::os::{CancelToken, open_regular_file};
use memchr::memmem::rfind;
use std::io::{self, Read};
use std::path::Path;

/// How much is read between two looks at the cancel.
const PART: usize = 1 << 20;

/// Does the model see this text, at the head of a prompt, whole? Reads the rollout once, a part at a time.
///
/// # Errors
/// The file cannot be read or is not a regular one, or the turn is cancelled.
pub(super) fn is_in_view(rollout: &Path, text: &str, cancel: &CancelToken) -> io::Result<bool> {
    let file = open_regular_file(rollout)?;
    search(file, text, cancel)
}

fn search(mut rollout: impl Read, text: &str, cancel: &CancelToken) -> io::Result<bool> {
    // codex writes JSON as serde_json does, without spaces; inside a string the quotes would have backslashes.
    let wanted = serde_json::to_string(&command::system_block(text))?;
    let wanted = wanted.trim_matches('"').as_bytes();
    let compacted = br#""type":"compacted""#;
    let keep = wanted.len().max(compacted.len()) - 1;
    let mut buffer = Vec::with_capacity(keep + PART);
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
        match (rfind(&buffer, wanted), rfind(&buffer, compacted)) {
            (None, None) => {}
            (found, lost) => in_view = found > lost,
        }
        log::trace!("{read} bytes behind {kept} of the rollout were searched");
        let done = buffer.len().saturating_sub(keep);
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
        let said = serde_json::json!({"type": "response_item", "payload": {"role": "user",
            "content": [{"text": format!("{}\n\nhi", command::system_block(&text))}]}})
        .to_string();
        let said = said.as_str();
        let compacted = r#"{"timestamp":"x","type":"compacted","payload":{"message":"short"}}"#;
        let quoted = serde_json::to_string(compacted).unwrap();
        let other = "x".repeat(PART - 7);
        let (quoted, other) = (quoted.as_str(), other.as_str());
        for (lines, expected) in [
            (Vec::<&str>::new(), false),
            (vec![other, said, other], true),
            (vec![said, quoted], true),
            (vec![said, compacted], false),
            (vec![said, other, compacted, other, other], false),
            (vec![said, compacted, other, said, other, other], true),
            (vec![&said[..said.len() - 100]], false),
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
