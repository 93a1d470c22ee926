//! Checks of a workspace and its thread: the session file, the rollout, and the process that has the thread open.

use super::checks::Doctor;
use super::directories::check_workspace;
use super::ownership::access_fix;
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

/// The first codex version known to open a rollout only at the path in its index.
const TRUSTS_INDEX: (u32, u32, u32) = (0, 148, 0);

/// The last version known to find a rollout by its file name.
const FINDS_BY_NAME: (u32, u32, u32) = (0, 135, u32::MAX);

impl Doctor<'_> {
    pub(super) fn workspace(&mut self, workspace: &Path) {
        if let Err(error) = check_owner("the workspace", workspace) {
            self.report.fail("workspace", error.message());
            return;
        }
        match check_workspace(self.places, workspace) {
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

    /// Reports a thread that codex cannot resume, and what the next turn does about it.
    fn lost_thread(&mut self, what: &str) {
        match self.config.lost_thread {
            LostThread::Replay => self.report.warn(
                "rollout",
                format!("{what}; the next turn starts a new thread with the conversation so far in its prompt"),
            ),
            LostThread::Fresh => self
                .report
                .warn("rollout", format!("{what}; the next turn starts a new, empty thread")),
            LostThread::Error => self.report.fail(
                "rollout",
                format!(
                    "{what}, and \"lost_thread\" is \"error\"; {}",
                    self.set(&[("lost_thread", "replay")], &[])
                ),
            ),
        }
    }

    /// Checks the thread's rollout and its lock.
    fn thread(&mut self, thread: &str) {
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

    /// The metadata of a rollout that is a readable regular file; reports other ones.
    fn readable(&mut self, rollout: &Path) -> Option<Metadata> {
        match open_regular_file(rollout).and_then(|file| file.metadata()) {
            Ok(metadata) => return Some(metadata),
            Err(error) if fs::metadata(rollout).is_ok_and(|found| !found.is_file()) => {
                self.lost_thread(&format!(
                    "codex cannot resume {}: {}",
                    rollout.display(),
                    reason(&error)
                ));
            }
            Err(error) if rollout.is_symlink() => {
                self.report.warn(
                    "rollout",
                    format!(
                        "{}: {}, which newer versions of codex do not resume and 'mutate' does not rewrite; replace the link with the file itself",
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
                        access_fix(
                            self.places,
                            rollout,
                            "run the daemon and this program as its owner"
                        )
                    ),
                );
            }
        }
        None
    }

    /// Checks a rollout of `length` bytes; returns whether codex can resume it.
    fn rollout(&mut self, home: &Path, thread: &str, rollout: &Path, length: u64) -> bool {
        if length == 0 {
            // A full disk can leave an empty file.
            let what = format!(
                "{} is empty, so codex cannot resume the thread",
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
                    "{} is archived and is unarchived by the next turn; run: {codex} unarchive {thread}",
                    rollout.display()
                ),
            );
        } else if let Some(other) = indexed_elsewhere(home, rollout, thread) {
            if !self.rollout_elsewhere(home, rollout, &other) {
                return false;
            }
        } else if self.version >= Some(TRUSTS_INDEX) && !begins_with_meta(rollout, thread) {
            // 0.135 accepts a session_meta that is not the first record.
            self.lost_thread(&format!(
                "codex cannot open {}: its first record is not the session_meta of this thread",
                rollout.display()
            ));
            return false;
        } else if let Some(why) = why_unopenable(rollout) {
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

    /// Checks that no process has the thread open for writing.
    fn writer(&mut self, home: &Path, thread: &str, rollout: &Path, metadata: &Metadata) {
        // A thread that a plugin only keeps loaded for its next turn counts as free.
        request_release(ReleaseTarget::Thread(thread), self.places);
        match writer_lock::check_unlocked(home, thread) {
            Err(error) if error.kind() == Kind::Busy => {
                self.report.warn("thread lock", error.message());
            }
            Ok(()) => {
                match writer_lock::open_writer(rollout, (metadata.dev(), metadata.ino())) {
                    // Before 0.147 codex has no lock; the open file is the only sign of a writer.
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

    /// Reports a thread whose path in codex's index is not that of the rollout found: the codex home was moved or
    /// copied. Returns whether codex resumes the rollout found. Measured on 0.135, 0.148, 0.155 and 0.169.
    fn rollout_elsewhere(&mut self, home: &Path, rollout: &Path, other: &Path) -> bool {
        let shown = rollout.display();
        let index = format!(
            "run, while no codex is running: rm {}/state_*.sqlite*, which codex rebuilds from its threads",
            shell::quote_path(&home.to_string_lossy())
        );
        if other.exists() {
            // All versions write to the indexed path, and this program reads the other one.
            let message = format!(
                "codex continues {}, the path in its index, and not {shown}: the codex home is a copy, and the tool calls of its turns are neither reported nor consumed; {index}",
                other.display()
            );
            self.report.warn("rollout", message);
            return false;
        }
        let what = format!(
            "codex's index does not have {shown} but {}, which no longer exists: the codex home was moved",
            other.display()
        );
        match self.version {
            Some(version) if version <= FINDS_BY_NAME => {
                let message = format!("{what}, but this version of codex finds the thread anyway");
                self.report.ok("rollout", message);
                true
            }
            Some(version) if version >= TRUSTS_INDEX => {
                self.lost_thread(&format!(
                    "{what}, and codex does not find the thread ({index})"
                ));
                false
            }
            _ => {
                self.lost_thread(&format!(
                    "{what}, and codex may not find the thread ({index})"
                ));
                false
            }
        }
    }
}

/// The rollout's path in codex's index, if that is not `rollout`.
///
/// The index is an SQLite database. In its rows the path follows the thread's id, so the files are searched for that,
/// without SQLite and its lock. A free page can contain an outdated path, so one match with `rollout` is enough.
fn indexed_elsewhere(home: &Path, rollout: &Path, thread: &str) -> Option<PathBuf> {
    const MAX_BYTES: u64 = 64 << 20;
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
        let read = open_regular_file(&entry.path())
            .and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes));
        if read.is_err() {
            continue;
        }
        for at in memchr::memmem::find_iter(&bytes, start.as_bytes()) {
            let path = &bytes[at + thread.len()..];
            let path = &path[..path.len().min(4096)];
            let Some(length) = memchr::memmem::find(path, end.as_bytes()) else {
                continue;
            };
            let path = Path::new(std::ffi::OsStr::from_bytes(&path[..length + end.len()]));
            // The index has the name without `.zst`, also of a packed rollout.
            if same_file(path, rollout) || same_file(path, &rollout.with_extension("")) {
                return None;
            }
            found = Some(path.to_owned());
        }
    }
    found
}

/// Whether both paths lead to the same file.
fn same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    one == other || (identity(one).is_some() && identity(one) == identity(other))
}

/// Whether a rollout begins with the session_meta of this thread; `true` also for one that is packed or unreadable.
fn begins_with_meta(rollout: &Path, thread: &str) -> bool {
    const MAX_BYTES: u64 = 4096;
    if rollout.extension().is_some_and(|end| end == "zst") {
        return true;
    }
    let mut head = Vec::new();
    let read =
        open_regular_file(rollout).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut head));
    let first = head.split(|byte| *byte == b'\n').next().unwrap_or(&head);
    let has = |text: &str| memchr::memmem::find(first, text.as_bytes()).is_some();
    read.is_err() || (first.starts_with(b"{") && has("\"session_meta\"") && has(thread))
}

/// Why codex cannot open a rollout: its first record has an `ordinal` and its last one, which an older program has
/// appended, has none.
fn why_unopenable(rollout: &Path) -> Option<&'static str> {
    const TAIL: u64 = 4 << 20;
    if rollout.extension().is_some_and(|end| end == "zst") {
        return None;
    }
    let mut file = open_regular_file(rollout).ok()?;
    let mut head = [0; 4096];
    let length = file.read(&mut head).ok()?;
    let first = head[..length].split(|byte| *byte == b'\n').next()?;
    // Only keys of the record itself precede its payload.
    let payload = memchr::memmem::find(first, b"\"payload\"").unwrap_or(first.len());
    memchr::memmem::find(&first[..payload], b"\"ordinal\":")?;
    let start = file.metadata().ok()?.len().saturating_sub(TAIL);
    file.seek(io::SeekFrom::Start(start)).ok()?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail).ok()?;
    let last = tail.trim_ascii_end().rsplit(|byte| *byte == b'\n').next()?;
    let record: std::collections::HashMap<String, serde::de::IgnoredAny> =
        serde_json::from_slice(last).ok()?;
    (!record.contains_key("ordinal")).then_some("its last record has no ordinal")
}
