//! Detects that the thread in a session file belongs to another workspace, and unarchives threads.
//!
//! A workspace can be copied with its session file (`cp -r`, or `git clone` of an agent's commits), and an agent can
//! write another agent's id into its session file. A resume would then expose the conversation of one agent to another.
//! So the directories in the rollout are compared with the workspace, by device and inode, since a workspace can be
//! renamed, mounted elsewhere or reached through a link.

use crate::codex::ask::ask;
use crate::codex::find;
use crate::codex::home;
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::os::{CancelToken, open_regular_file};
use crate::paths::Paths;
use crate::rollout::packed::Unpacked;
use memchr::memmem;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How long `codex unarchive` may take; usually it takes 0.6 s.
const UNARCHIVE_TIMEOUT: Duration = Duration::from_secs(30);
/// How many bytes of a rollout's beginning are read: the directory precedes codex's instructions.
const HEAD_BYTES: u64 = 64 << 10;
/// How many bytes at its end are searched for the last turn.
const TAIL_BYTES: u64 = 16 << 20;
/// The size of the pieces in which it is read, in bytes.
const TAIL_PIECE: u64 = 256 << 10;
/// By how many bytes pieces overlap, so that the beginning of a record is whole in one of them.
const OVERLAP: u64 = 4 << 10;
/// How many unpacked bytes of a packed rollout are searched, which can only be read from its beginning: some seconds.
const UNPACKED_BYTES: u64 = 1 << 30;
/// Identifies the record of a turn's beginning: in a text of the conversation the quotes would be escaped.
const TURN_CONTEXT: &[u8] = b"\"type\":\"turn_context\"";

/// The other existing directory that `thread` belongs to, if any: the one where it began, unless that or the one of the
/// last turn is `workspace` or the config's working directory for codex; or the one of the last turn, if its session
/// file still has the same id. A directory counts as moved away if it is missing, or if it was created after the last
/// write to the rollout and does not have the id.
///
/// A rollout that cannot be read counts as the workspace's own: codex reports what is wrong with it.
pub(crate) fn foreign_directory(
    workspace: &Path,
    thread: &str,
    config: &Config,
    places: &Paths,
) -> Option<PathBuf> {
    let rollouts = home::find_rollouts(&places.codex_home(config), thread).ok()?;
    let own = [
        identity(workspace),
        working_directory(config).and_then(|directory| identity(&workspace.join(directory))),
    ];
    // codex uses any one of several rollouts: a planted one must not hide another.
    rollouts
        .iter()
        .find_map(|rollout| other_directory(rollout, thread, &own))
}

/// [`foreign_directory`] for one rollout; `own` are the identities of the workspace and of codex's working directory.
fn other_directory(rollout: &Path, thread: &str, own: &[Option<(u64, u64)>; 2]) -> Option<PathBuf> {
    let file = open_regular_file(rollout).ok()?;
    let written = file.metadata().and_then(|found| found.modified()).ok();
    let is_own = |directory: &Path| {
        let found = identity(directory);
        found.is_some() && own.contains(&found)
    };
    let (began, last) = match home::is_packed(rollout) {
        true => directories_in(Unpacked::new(file, rollout).ok()?)?,
        false => {
            let began = began_in(&file)?;
            if is_own(&began) {
                return None;
            }
            (began, last_turn_in(&file))
        }
    };
    if is_own(&began) {
        return None;
    }
    let is_there = |directory: &Path| {
        identity(directory).is_some()
            && (holds(directory, thread) || !is_created_after(directory, written))
    };
    match last {
        Some(last) if is_own(&last) => None,
        Some(last) if last != began && identity(&last).is_some() && holds(&last, thread) => {
            Some(last)
        }
        // The workspace was moved to `last`, had a turn there, and was moved again.
        Some(last) if last != began && !is_there(&last) => None,
        _ => is_there(&began).then_some(began),
    }
}

/// Whether the directory was created after the thread was last `written`. Then the thread had no turn in it: its path
/// is that of a directory that was moved away. `false` if the file system has no creation times.
fn is_created_after(directory: &Path, written: Option<SystemTime>) -> bool {
    let created = std::fs::metadata(directory).and_then(|found| found.created());
    matches!((created, written), (Ok(created), Some(written)) if created > written)
}

/// The error of a command that would change the thread of another directory.
pub(crate) fn foreign(workspace: &Path, thread: &str, directory: &Path) -> Error {
    Error::new(
        Kind::Io,
        format!(
            "the session file of '{}' names thread {thread}, which belongs to '{}'",
            workspace.display(),
            directory.display()
        ),
    )
    .hint("the next turn sets it aside and starts a thread of its own")
}

/// Runs `codex unarchive` for a thread.
///
/// # Errors
/// [`Kind::CodexFailed`], with codex's message if it has exited.
pub(super) fn unarchive(
    program: &Path,
    thread: &str,
    config: &Config,
    places: &Paths,
    cancel: &CancelToken,
) -> Result<()> {
    let mut command = find::in_environment(program, config, places);
    command.args(["unarchive", "--", thread]);
    let output = ask(command, UNARCHIVE_TIMEOUT, cancel)?;
    if output.success {
        return Ok(());
    }
    let message = output.stderr.trim().lines().last().unwrap_or_default();
    Err(Error::new(
        Kind::CodexFailed,
        format!("thread {thread} is archived, and `codex unarchive` says: {message}"),
    ))
}

/// The working directory for codex in the config's extra arguments, which overrides the workspace.
fn working_directory(config: &Config) -> Option<PathBuf> {
    let mut found = None;
    let mut arguments = config.extra_args.iter();
    while let Some(argument) = arguments.next() {
        let value = match argument.as_str() {
            "-C" | "--cd" => arguments.next().map(String::as_str),
            other => other
                .strip_prefix("--cd=")
                .or_else(|| other.strip_prefix("-C")),
        };
        found = value.map(PathBuf::from).or(found);
    }
    found
}

fn identity(directory: &Path) -> Option<(u64, u64)> {
    let found = std::fs::metadata(directory).ok()?;
    found.is_dir().then(|| (found.dev(), found.ino()))
}

/// Whether the session file of this directory contains `thread`.
fn holds(directory: &Path, thread: &str) -> bool {
    super::session::read(directory)
        .is_ok_and(|stored| stored == super::session::Stored::Thread(thread.to_ascii_lowercase()))
}

/// The directory in which a thread began, from its rollout.
fn began_in(file: &File) -> Option<PathBuf> {
    let mut head = Vec::new();
    file.take(HEAD_BYTES).read_to_end(&mut head).ok()?;
    began_at(&head)
}

/// The directory in which a thread began, from the beginning of its rollout.
fn began_at(head: &[u8]) -> Option<PathBuf> {
    let line = head.split(|byte| *byte == b'\n').next()?;
    memmem::find(line, b"\"session_meta\"")?;
    cwd(line)
}

/// The directory of the last turn.
fn last_turn_in(file: &File) -> Option<PathBuf> {
    let length = file.metadata().ok()?.len();
    let mut piece = Vec::new();
    let mut end = length;
    while end > 0 && length - end < TAIL_BYTES {
        let start = end.saturating_sub(TAIL_PIECE);
        let most = TAIL_PIECE.min(end - start) + OVERLAP.min(length - end);
        piece.resize(usize::try_from(most).ok()?, 0);
        file.read_exact_at(&mut piece, start).ok()?;
        let mut before = piece.len();
        while let Some(at) = memmem::rfind(&piece[..before], TURN_CONTEXT) {
            let line = piece[at..].split(|byte| *byte == b'\n').next()?;
            if let Some(found) = cwd(line) {
                return Some(found);
            }
            before = at;
        }
        end = start;
    }
    None
}

/// The directories in which a thread began and had its last turn, for a rollout that cannot be read backwards.
fn directories_in(mut rollout: impl Read) -> Option<(PathBuf, Option<PathBuf>)> {
    let mut piece = Vec::new();
    rollout
        .by_ref()
        .take(HEAD_BYTES)
        .read_to_end(&mut piece)
        .ok()?;
    let began = began_at(&piece)?;
    let mut rest = rollout.take(UNPACKED_BYTES);
    let mut last = None;
    loop {
        for at in memmem::find_iter(&piece, TURN_CONTEXT) {
            let line = piece[at..].split(|byte| *byte == b'\n').next()?;
            last = cwd(line).or(last);
        }
        // A record that begins here may continue in the next piece.
        let overlap = usize::try_from(OVERLAP).ok()?.min(piece.len());
        piece.drain(..piece.len() - overlap);
        let more = rest.by_ref().take(TAIL_PIECE).read_to_end(&mut piece);
        if more.ok()? == 0 {
            return Some((began, last));
        }
    }
}

/// The first `cwd` in this part of a record. Quotes in texts are escaped, so that only a key matches.
fn cwd(record: &[u8]) -> Option<PathBuf> {
    const KEY: &[u8] = b"\"cwd\":";
    let value = &record[memmem::find(record, KEY)? + KEY.len()..];
    let mut values = serde_json::Deserializer::from_slice(value).into_iter::<String>();
    values.next()?.ok().map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_directories_in_rollout() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rollout");
        let meta = |padding: usize| {
            format!(
                r#"{{"type":"session_meta","payload":{{"id":"x","cwd":"/a \"b\"","text":"{}"}}}}"#,
                "x".repeat(padding)
            )
        };
        let turn = |cwd: &str| {
            format!(r#"{{"type":"turn_context","payload":{{"turn_id":"1","cwd":"{cwd}"}}}}"#)
        };
        let said = |length: usize| {
            format!(
                r#"{{"type":"response_item","text":"{} {{\"type\":\"turn_context\",\"cwd\":\"/no\"}}"}}"#,
                "y".repeat(length)
            )
        };
        for (lines, expected) in [
            (vec![meta(0)], None),
            (vec![meta(1 << 20), turn("/b"), turn("/c")], Some("/c")),
            (vec![meta(0), turn("/b"), said(1 << 20)], Some("/b")),
            (
                vec![meta(0), turn("/b"), said((256 << 10) - 150)],
                Some("/b"),
            ),
            (vec![meta(0), turn("/b"), said(20 << 20)], None),
        ] {
            std::fs::write(&path, lines.join("\n")).unwrap();
            let file = open_regular_file(&path).unwrap();
            assert_eq!(began_in(&file), Some(PathBuf::from("/a \"b\"")));
            assert_eq!(last_turn_in(&file), expected.map(PathBuf::from));
            let (began, last) = directories_in(&lines.join("\n").into_bytes()[..]).unwrap();
            assert_eq!(began, PathBuf::from("/a \"b\""));
            let unlimited = lines.iter().rev().find_map(|line| {
                let at = line.starts_with("{\"type\":\"turn_context\"");
                at.then(|| cwd(line.as_bytes()).unwrap())
            });
            assert_eq!(last, unlimited);
        }
    }

    #[test]
    fn finds_working_directory_in_extra_args() {
        for (arguments, expected) in [
            (&["-m", "x"][..], None),
            (&["-C", "/a"], Some("/a")),
            (&["-C/a"], Some("/a")),
            (&["--cd", "/a", "--cd=/b"], Some("/b")),
            (&["-C"], None),
        ] {
            let config = Config {
                extra_args: arguments.iter().map(|&it| it.to_owned()).collect(),
                ..Config::default()
            };
            assert_eq!(working_directory(&config), expected.map(PathBuf::from));
        }
    }
}
