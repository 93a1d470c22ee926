//! A workspace's thread: its session file, its rollout, and who holds it.

use super::checks::Doctor;
use super::directories::look_at_workspace;
use super::ownership::open_up;
use crate::backend::{ReleaseTarget, request_release};
use crate::codex::home;
use crate::codex::writer_lock;
use crate::config::LostThread;
use crate::error::{Kind, reason};
use crate::os::{check_owner, open_regular_file};
use crate::shell;
use crate::turn::session::{self, Stored};
use crate::turn::thread::foreign_directory;
use std::fs::{self, Metadata};
use std::io::{self, Read, Seek};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The first version known to look for a rollout nowhere but where its index has it.
const TRUSTS_INDEX: (u32, u32, u32) = (0, 148, 0);

/// The last one known to find it by its name.
const FINDS_BY_NAME: (u32, u32, u32) = (0, 135, u32::MAX);

impl Doctor<'_> {
    pub(super) fn workspace(&mut self, workspace: &Path) {
        if let Err(error) = check_owner("the workspace", workspace) {
            self.report.fail("workspace", error.message());
            return;
        }
        match look_at_workspace(self.places, workspace) {
            Ok(message) => self.report.ok("workspace", message),
            Err(message) => {
                self.report.fail("workspace", message);
                return;
            }
        }
        match session::read(workspace) {
            Ok(Stored::Nothing) => self
                .report
                .ok("session", "no thread yet: the next turn starts one"),
            Ok(Stored::Thread(thread)) => {
                let other = foreign_directory(workspace, &thread, &self.config, self.places);
                if let Some(other) = other {
                    self.report.warn(
                        "session",
                        format!(
                            "{} names thread {thread}, which belongs to {}: the next turn sets it aside and starts a new thread",
                            workspace.join(session::FILE).display(),
                            other.display()
                        ),
                    );
                    return;
                }
                self.report.ok("session", format!("thread {thread}"));
                self.thread(&thread);
            }
            Ok(Stored::Unusable(why)) => self.report.warn(
                "session",
                format!(
                    "{}: {why}; the next turn sets it aside and starts a new thread",
                    workspace.join(session::FILE).display()
                ),
            ),
            Err(error) => self.report.fail("session", error.message()),
        }
    }

    /// What becomes of a thread that codex cannot go on with.
    pub(super) fn lost_thread(&mut self, what: &str) {
        match self.config.lost_thread {
            LostThread::Replay => self.report.warn(
                "rollout",
                format!("{what}; the next turn starts a new one with the conversation that the daemon has"),
            ),
            LostThread::Fresh => self
                .report
                .warn("rollout", format!("{what}; the next turn starts a new, empty one")),
            LostThread::Error => self.report.fail(
                "rollout",
                format!(
                    "{what}, and \"lost_thread\" is \"error\"; {}",
                    self.set(&[("lost_thread", "replay")], &[])
                ),
            ),
        }
    }

    /// The rollout of the workspace's thread, and who may write to it.
    pub(super) fn thread(&mut self, thread: &str) {
        let home = self.places.codex_home(&self.config);
        match home::find_rollout_or_packed(&home, thread) {
            Ok(Some(rollout)) => {
                if let Some(metadata) = self.readable(&rollout)
                    && self.rollout(&home, thread, &rollout, metadata.len())
                {
                    self.writer(&home, thread, &rollout, &metadata);
                }
            }
            Ok(None) => {
                self.lost_thread(&format!(
                    "codex has no thread {thread} in {}",
                    home.display()
                ));
            }
            Err(error) => self.report.fail("rollout", error.message()),
        }
    }

    /// The rollout's metadata, where it is a file that can be read.
    fn readable(&mut self, rollout: &Path) -> Option<Metadata> {
        match open_regular_file(rollout).and_then(|file| file.metadata()) {
            Ok(metadata) => return Some(metadata),
            Err(error) if fs::metadata(rollout).is_ok_and(|found| !found.is_file()) => {
                self.lost_thread(&format!(
                    "codex cannot go on with {}: {}",
                    rollout.display(),
                    reason(&error)
                ));
            }
            Err(error) if rollout.is_symlink() => {
                self.report.warn(
                    "rollout",
                    format!(
                        "{}: {}, which codex does not go on with from some version on, and which is not rewritten; put the file itself there",
                        rollout.display(),
                        reason(&error)
                    ),
                );
            }
            Err(error) => {
                self.report.fail(
                    "rollout",
                    format!(
                        "cannot read '{}': {}; {}",
                        rollout.display(),
                        reason(&error),
                        open_up(self.places, rollout, "run everything as its owner")
                    ),
                );
            }
        }
        None
    }

    /// Can codex go on with this rollout of so many bytes?
    fn rollout(&mut self, home: &Path, thread: &str, rollout: &Path, length: u64) -> bool {
        if length == 0 {
            // As a full disk leaves it.
            let what = format!(
                "{} is empty, and codex goes on with no such thread",
                rollout.display()
            );
            self.lost_thread(&what);
            return false;
        }
        if home::is_archived(rollout) {
            let codex = self.config.binary.clone();
            let codex = self.codex_by_hand(Path::new(&codex));
            self.report.warn(
                "rollout",
                format!(
                    "{} is archived, the next turn unarchives it; run: {codex} unarchive {thread}",
                    rollout.display()
                ),
            );
        } else if let Some(other) = indexed_elsewhere(home, rollout, thread) {
            if !self.rollout_elsewhere(home, rollout, &other) {
                return false;
            }
        } else if self.version >= Some(TRUSTS_INDEX) && !begins_with_meta(rollout, thread) {
            // 0.135 takes the first such record for it, wherever it is.
            self.lost_thread(&format!(
                "codex cannot open {}: its first record is not the session_meta of this thread",
                rollout.display()
            ));
            return false;
        } else if let Some(why) = unopened(rollout) {
            self.lost_thread(&format!("codex cannot open {}: {why}", rollout.display()));
            return false;
        } else {
            self.report.ok(
                "rollout",
                format!("{} ({} bytes)", rollout.display(), length),
            );
        }
        true
    }

    /// Who has the thread?
    fn writer(&mut self, home: &Path, thread: &str, rollout: &Path, metadata: &Metadata) {
        // One that a plugin only keeps for its next turn is free.
        request_release(ReleaseTarget::Thread(thread), self.places);
        match writer_lock::check_unlocked(home, thread) {
            Err(error) if error.kind() == Kind::Busy => {
                self.report.warn("thread lock", error.message());
            }
            Ok(()) => {
                match writer_lock::open_writer(rollout, (metadata.dev(), metadata.ino())) {
                    // Before 0.147 an open file is the only trace.
                    Ok(Some(pid)) => self.report.warn(
                        "thread lock",
                        format!("process {pid} has the rollout open for writing; try again when its turn is over"),
                    ),
                    Ok(None) => self.report.ok("thread lock", "free"),
                    Err(error) => self.report.warn("thread lock", error.message()),
                }
            }
            Err(error) => self.report.fail("thread lock", error.message()),
        }
    }

    /// A thread that codex's index has at another path than where its rollout was found: the codex home was moved
    /// or copied. Measured on 0.135, 0.148, 0.155 and 0.169. Says whether codex goes on with the rollout found.
    pub(super) fn rollout_elsewhere(&mut self, home: &Path, rollout: &Path, other: &Path) -> bool {
        let shown = rollout.display();
        let index = format!(
            "run, while no codex runs: rm {}/state_*.sqlite*, which codex makes anew from its threads",
            shell::quote_path(&home.to_string_lossy())
        );
        if other.exists() {
            // All of them write there, and nobody sees it here.
            let message = format!(
                "codex goes on in {}, where its index has the thread, and not in {shown}: the codex home is a copy, and the tool calls of its turns are neither told nor consumed; {index}",
                other.display()
            );
            self.report.warn("rollout", message);
            return false;
        }
        let what = format!(
            "{shown} is not where codex's index has it, {}, which is gone: the codex home was moved",
            other.display()
        );
        match self.version {
            Some(version) if version <= FINDS_BY_NAME => {
                let message = format!("{what}, and this version finds it all the same");
                self.report.ok("rollout", message);
                true
            }
            Some(version) if version >= TRUSTS_INDEX => {
                self.lost_thread(&format!("{what}, and codex does not find it ({index})"));
                false
            }
            _ => {
                self.lost_thread(&format!("{what}, and codex may not find it ({index})"));
                false
            }
        }
    }
}

/// Where codex's index has the rollout of `thread`, if that is another path than `rollout`.
///
/// The index is an SQLite database. In a row of it the path follows the thread's id, so that neither SQLite nor its
/// lock is needed; a page that is out of use can have an old path, which is why the right one anywhere is enough.
pub(super) fn indexed_elsewhere(home: &Path, rollout: &Path, thread: &str) -> Option<PathBuf> {
    const MOST: u64 = 64 << 20;
    let start = format!("{thread}/");
    let end = format!("{thread}.jsonl");
    let mut found = None;
    for entry in fs::read_dir(home).ok()?.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_index = name.starts_with("state_")
            && (name.ends_with(".sqlite") || name.ends_with(".sqlite-wal"));
        if !is_index || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let mut bytes = Vec::new();
        let file = open_regular_file(&entry.path()).ok()?;
        file.take(MOST).read_to_end(&mut bytes).ok()?;
        for at in memchr::memmem::find_iter(&bytes, start.as_bytes()) {
            let path = &bytes[at + thread.len()..];
            let path = &path[..path.len().min(4096)];
            let Some(length) = memchr::memmem::find(path, end.as_bytes()) else {
                continue;
            };
            let path = Path::new(std::ffi::OsStr::from_bytes(&path[..length + end.len()]));
            // Packed: the index keeps the plain name.
            if same_file(path, rollout) || same_file(path, &rollout.with_extension("")) {
                return None;
            }
            found = Some(path.to_owned());
        }
    }
    found
}

/// Are these two names of one file?
pub(super) fn same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).ok().map(|it| (it.dev(), it.ino()));
    one == other || (identity(one).is_some() && identity(one) == identity(other))
}

/// Does a rollout that is not packed begin with the record of this thread? What cannot be read does.
pub(super) fn begins_with_meta(rollout: &Path, thread: &str) -> bool {
    const MOST: u64 = 4096;
    if rollout.extension().is_some_and(|end| end == "zst") {
        return true;
    }
    let mut head = Vec::new();
    let read = open_regular_file(rollout).and_then(|file| file.take(MOST).read_to_end(&mut head));
    let first = head.split(|byte| *byte == b'\n').next().unwrap_or(&head);
    let has = |text: &str| memchr::memmem::find(first, text.as_bytes()).is_some();
    read.is_err() || (first.starts_with(b"{") && has("\"session_meta\"") && has(thread))
}

/// Why codex cannot open a rollout whose last record has no number where the records before have one: something
/// old has appended to it.
pub(super) fn unopened(rollout: &Path) -> Option<&'static str> {
    const TAIL: u64 = 4 << 20;
    if rollout.extension().is_some_and(|end| end == "zst") {
        return None;
    }
    let mut file = open_regular_file(rollout).ok()?;
    let mut head = [0; 4096];
    let length = file.read(&mut head).ok()?;
    let first = head[..length].split(|byte| *byte == b'\n').next()?;
    // Only the first record's own keys stand before its payload.
    let own = memchr::memmem::find(first, b"\"payload\"").unwrap_or(first.len());
    memchr::memmem::find(&first[..own], b"\"ordinal\":")?;
    let start = file.metadata().ok()?.len().saturating_sub(TAIL);
    file.seek(io::SeekFrom::Start(start)).ok()?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail).ok()?;
    let last = tail.trim_ascii_end().rsplit(|byte| *byte == b'\n').next()?;
    let record: std::collections::HashMap<String, serde::de::IgnoredAny> =
        serde_json::from_slice(last).ok()?;
    (!record.contains_key("ordinal")).then_some("its last record has no ordinal")
}
