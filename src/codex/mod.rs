//! Facts about codex that hold whichever way it is run: where its executable and its threads are, how it locks them,
//! what its messages mean, and what its other subcommands print.
//!
//! Nothing here depends on the daemon.

pub(crate) mod ask;
pub(crate) mod failure;
pub(crate) mod find;
pub(crate) mod home;
pub(crate) mod mcp_servers;
pub(crate) mod toml;
pub(crate) mod writer_lock;

use crate::error::{Error, Kind, Result};

/// The prefix of the names of the MCP servers that expose the daemon's tools to codex.
pub(crate) const SERVER_PREFIX: &str = "plexum-host-";

/// The longest prompt that codex accepts, in characters (`input_too_large` above that, 0.135 and 0.169).
pub(crate) const LONGEST_PROMPT: usize = 1_048_576;

/// Rejects a prompt that codex would reject, before codex is started.
pub(crate) fn check_prompt_length(prompt: &str) -> Result<()> {
    // A character has at least one byte: most prompts need no count.
    if prompt.len() <= LONGEST_PROMPT {
        return Ok(());
    }
    let length = prompt.chars().count();
    if length <= LONGEST_PROMPT {
        return Ok(());
    }
    Err(Error::new(
        Kind::Params,
        format!("the prompt has {length} characters, and codex accepts at most {LONGEST_PROMPT}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompt_limit_counts_characters() {
        assert!(check_prompt_length(&"é".repeat(LONGEST_PROMPT)).is_ok());
        let error = check_prompt_length(&"é".repeat(LONGEST_PROMPT + 1)).unwrap_err();
        assert_eq!(error.kind(), Kind::Params);
        assert!(error.message().contains("1048577 characters"), "{error}");
    }
}
