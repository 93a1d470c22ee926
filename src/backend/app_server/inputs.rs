//! The files and settings that a server reads when it starts or loads a thread. `codex exec` reads them in every turn.
//!
//! A server whose inputs have changed is replaced before the next turn. Measured on 0.135.0 to 0.169.0: a new login is
//! never noticed, not even after a 401; the config, instructions and MCP servers only when a thread is loaded.

use super::recipe::{Recipe, ServerSettings};
use crate::backend::child::CodexCommand;
use crate::codex::home;
use serde::Deserialize;
use std::fs::Metadata;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The most that is read of a file, in bytes.
const LONGEST: u64 = 16 << 20;

/// The files that codex reads from its working directory and the directories above it.
const IN_DIRECTORIES: [&str; 3] = ["AGENTS.md", "AGENTS.override.md", ".codex/config.toml"];

/// The inputs of a server that works in one workspace.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Inputs {
    /// The command line and environment, including the daemon's tools.
    command: CodexCommand,
    /// The identity of the executable: an update replaces the file.
    program: Option<FileState>,
    /// A hash of the account, codex's config and the instruction files.
    files: u64,
    /// The parameters with which the thread is loaded.
    settings: ServerSettings,
}

impl Inputs {
    /// The inputs of a server that would be started now.
    pub(super) fn now(recipe: &Recipe) -> Inputs {
        let home = &recipe.home;
        let mut files = DefaultHasher::new();
        account(&home.join("auth.json")).hash(&mut files);
        config(&text(&home.join("config.toml"))).hash(&mut files);
        text(&home.join("AGENTS.md")).hash(&mut files);
        text(&home.join("AGENTS.override.md")).hash(&mut files);
        for directory in recipe.workspace.ancestors() {
            for name in IN_DIRECTORIES {
                text(&directory.join(name)).hash(&mut files);
            }
        }
        let command = recipe.command.clone();
        Inputs {
            program: FileState::of(&command.program.canonicalize().unwrap_or_default()),
            command,
            files: files.finish(),
            settings: recipe.settings.clone(),
        }
    }
}

/// Identifies a file and a version of its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileState {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl FileState {
    pub(super) fn of(path: &Path) -> Option<FileState> {
        std::fs::metadata(path)
            .ok()
            .map(|found| FileState::from(&found))
    }

    /// The state of a thread's rollout.
    pub(super) fn of_rollout(home: &Path, thread: &str) -> Option<FileState> {
        FileState::of(&home::find_rollout(home, thread).ok()??)
    }
}

impl From<&Metadata> for FileState {
    fn from(found: &Metadata) -> FileState {
        FileState {
            device: found.dev(),
            inode: found.ino(),
            length: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
        }
    }
}

/// The account that is logged in. The tokens are left out: codex itself refreshes them and rereads them.
fn account(path: &Path) -> (Option<String>, Option<String>) {
    #[derive(Default, Deserialize)]
    struct Login {
        #[serde(rename = "OPENAI_API_KEY", default)]
        key: Option<String>,
        #[serde(default)]
        tokens: Option<LoginTokens>,
    }
    #[derive(Deserialize)]
    struct LoginTokens {
        #[serde(default)]
        account_id: Option<String>,
    }
    let login: Login = serde_json::from_slice(&text(path)).unwrap_or_default();
    (login.key, login.tokens.and_then(|tokens| tokens.account_id))
}

/// The lines of codex's config without those that codex itself writes: the trusted directories.
fn config(text: &[u8]) -> Vec<&[u8]> {
    let mut is_project = false;
    let mut kept = Vec::new();
    for line in text.split(|byte| *byte == b'\n') {
        let line = line.trim_ascii();
        if line.starts_with(b"[") {
            is_project = line.starts_with(b"[projects.");
        }
        if !is_project && !line.is_empty() {
            kept.push(line);
        }
    }
    kept
}

/// The content of a file; empty where it cannot be read.
fn text(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(file) = crate::os::open_regular_file(path) {
        // A partial read is enough: codex would read no more.
        let _ = std::io::Read::read_to_end(&mut std::io::Read::take(file, LONGEST), &mut bytes);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignores_trusted_directories_in_config() {
        let before = b"model = \"a\"\n[mcp_servers.x]\ncommand = \"y\"\n";
        let after = b"model = \"a\"\n\n[projects.\"/w\"]\ntrust_level = \"trusted\"\n\n[mcp_servers.x]\ncommand = \"y\"\n";
        assert_eq!(config(before), config(after));
        assert_ne!(config(before), config(b"model = \"b\"\n"));
    }

    #[test]
    fn refreshed_token_keeps_account() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("auth.json");
        let of = |text: &str| {
            std::fs::write(&path, text).unwrap();
            account(&path)
        };
        let first = of(r#"{"tokens":{"account_id":"a","access_token":"1"}}"#);
        assert_eq!(
            first,
            of(r#"{"tokens":{"account_id":"a","access_token":"2"}}"#)
        );
        assert_ne!(
            first,
            of(r#"{"tokens":{"account_id":"b","access_token":"1"}}"#)
        );
        assert_ne!(of(r#"{"OPENAI_API_KEY":"k"}"#), of("{}"));
    }
}
