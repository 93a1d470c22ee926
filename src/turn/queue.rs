//! Ensures that a workspace runs one turn at a time: a queue orders the turns of this process, and an advisory lock
//! excludes other processes. The lock is on the workspace itself, or on a file in it where directories cannot be
//! locked.
//!
//! Resolving a path can hang. So a turn is queued under its path first, without I/O, and once that is resolved, under
//! its directory too: different paths of one directory share a queue.

use crate::error::{Error, Kind, Result};
use crate::os::{self, CancelToken, FileLock, TryLock};
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The lock file in a workspace whose directory cannot be locked (NFS). It is never unlinked: two processes could then
/// hold locks on different files of that name.
const LOCK_FILE: &str = ".plexum-codex-session.lock";

/// The queues of this process's turns and rewrites, one for each workspace.
#[derive(Clone, Debug, Default)]
pub(crate) struct Queue(Arc<QueueInner>);

#[derive(Debug, Default)]
struct QueueInner {
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct QueueState {
    waiting: HashMap<WorkspaceKey, VecDeque<u64>>,
    /// The numbers of the tickets whose wait has completed.
    running: HashSet<u64>,
    last_number: u64,
}

/// Identifies the queue of a workspace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum WorkspaceKey {
    Path(PathBuf),
    /// By device and inode.
    Directory(u64, u64),
}

/// A position in the queue of a workspace. Dropping it gives it up.
#[derive(Debug)]
pub(crate) struct Ticket {
    queue: Queue,
    workspace: PathBuf,
    key: WorkspaceKey,
    /// Another queue in which it must be the first, too.
    outer_key: Option<WorkspaceKey>,
    number: u64,
}

impl Queue {
    /// Joins the queue of this path. Does no I/O: the path is not resolved.
    pub(crate) fn join(&self, workspace: &Path) -> Ticket {
        let key = WorkspaceKey::Path(workspace.to_owned());
        let mut state = self.state();
        state.last_number += 1;
        let number = state.last_number;
        state
            .waiting
            .entry(key.clone())
            .or_default()
            .push_back(number);
        Ticket {
            queue: self.clone(),
            workspace: workspace.to_owned(),
            key,
            outer_key: None,
            number,
        }
    }

    /// Wakes all waiting tickets, to check their cancel tokens.
    pub(crate) fn wake(&self) {
        let _state = self.state();
        self.0.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, QueueState> {
        // No holder of this lock panics while the state is inconsistent.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// Waits until this ticket is the first of its queues. Returns `false` if `cancel` is cancelled first. `on_wait` is
    /// called once if it is not the first at once.
    pub(crate) fn wait(&self, cancel: &CancelToken, mut on_wait: impl FnMut()) -> bool {
        let mut state = self.queue.state();
        let mut has_waited = false;
        loop {
            if cancel.is_cancelled() {
                return false;
            }
            let is_first = |key| {
                let first = state.waiting.get(key).and_then(VecDeque::front);
                first == Some(&self.number)
            };
            if is_first(&self.key) && self.outer_key.iter().all(is_first) {
                state.running.insert(self.number);
                return true;
            }
            if !std::mem::replace(&mut has_waited, true) {
                // Unlocked: it may block for long.
                drop(state);
                on_wait();
                state = self.queue.state();
                continue;
            }
            state = self
                .queue
                .0
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Joins the queue of the directory that this ticket's path resolves to. This ticket has to be kept too.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn join_directory(&self, canonical: &Path) -> io::Result<Ticket> {
        let metadata = canonical.metadata()?;
        let key = WorkspaceKey::Directory(metadata.dev(), metadata.ino());
        let mut state = self.queue.state();
        let QueueState {
            waiting, running, ..
        } = &mut *state;
        let waiting = waiting.entry(key.clone()).or_default();
        // In the order of the numbers, whichever path was resolved first, but behind a running ticket.
        let first = waiting.front().is_some_and(|first| running.contains(first));
        let later = waiting.iter().skip(usize::from(first));
        let at = usize::from(first) + later.take_while(|number| **number < self.number).count();
        waiting.insert(at, self.number);
        drop(state);
        Ok(Ticket {
            queue: self.queue.clone(),
            workspace: canonical.to_owned(),
            key,
            outer_key: Some(self.key.clone()),
            number: self.number,
        })
    }

    /// The path that it was created for; a canonical one for a ticket of [`Ticket::join_directory`].
    pub(crate) fn workspace(&self) -> &Path {
        &self.workspace
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        state.running.remove(&self.number);
        if let Some(waiting) = state.waiting.get_mut(&self.key) {
            waiting.retain(|number| *number != self.number);
            if waiting.is_empty() {
                state.waiting.remove(&self.key);
            }
        }
        self.queue.0.changed.notify_all();
    }
}

/// The result of [`lock`].
#[derive(Debug)]
pub(crate) enum LockOutcome {
    Held(FileLock),
    /// The workspace cannot be locked; the reason, for a warning.
    Unavailable(String),
    /// The turn was cancelled first.
    Cancelled,
}

/// Locks the workspace against other processes, waiting up to `timeout`. If another process holds the lock, `release`
/// is called once, to make processes release it that keep it only for their next turn; if it is still held, `on_wait`
/// is called once with a message that names the holder if known.
///
/// # Errors
/// [`Kind::Busy`] if another process still holds the lock, [`Kind::Io`] if the lock file is not a regular file.
pub(crate) fn lock(
    workspace: &Path,
    timeout: Duration,
    cancel: &CancelToken,
    release: impl FnOnce(),
    on_wait: impl FnOnce(&str),
) -> Result<LockOutcome> {
    let deadline = Instant::now().checked_add(timeout);
    let (mut release, mut on_wait) = (Some(release), Some(on_wait));
    let mut busy = String::new();
    let locked = os::retry_until(deadline, Some(cancel), || {
        loop {
            let path = match try_lock(workspace)? {
                Attempt::Done(locked) => return Ok(Some(locked)),
                Attempt::Busy(path) => path,
            };
            if cancel.is_cancelled() {
                return Ok(None);
            }
            if let Some(release) = release.take() {
                release();
                continue;
            }
            let is_late = deadline.is_some_and(|at| Instant::now() >= at);
            if is_late || on_wait.is_some() {
                busy = format!(
                    "another process runs a turn in the workspace '{}'{}",
                    workspace.display(),
                    os::describe_holder(&path)
                );
            }
            if !is_late && let Some(on_wait) = on_wait.take() {
                on_wait(&busy);
            }
            return Ok(None);
        }
    })?;
    match locked {
        Some(locked) => Ok(locked),
        None if cancel.is_cancelled() => Ok(LockOutcome::Cancelled),
        None => Err(Error::new(Kind::Busy, busy).hint("try again when it has ended")),
    }
}

enum Attempt {
    Done(LockOutcome),
    /// Another process holds the lock on this directory or file.
    Busy(PathBuf),
}

/// Tries to lock the workspace itself, or a file in it where directories cannot be locked.
fn try_lock(workspace: &Path) -> Result<Attempt> {
    let file = workspace.join(LOCK_FILE);
    let (path, tried) = match os::try_lock_directory(workspace) {
        Ok(tried) => (workspace, Ok(tried)),
        Err(_) => (file.as_path(), os::try_lock(&file)),
    };
    match tried {
        Ok(TryLock::Held(lock)) => Ok(Attempt::Done(LockOutcome::Held(lock))),
        Ok(TryLock::Busy) => Ok(Attempt::Busy(path.to_owned())),
        Err(_)
            if path == file
                && std::fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) =>
        {
            let message = format!("the lock '{}' is not a regular file", path.display());
            Err(Error::new(Kind::Io, message).hint("remove it; the next turn creates a new one"))
        }
        // For example, a read-only or full file system. The turn runs all the same.
        Err(error) => Ok(Attempt::Done(LockOutcome::Unavailable(format!(
            "cannot lock '{}': {}; another process could run a turn here at the same time",
            path.display(),
            crate::error::reason(&error)
        )))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serves_workspace_in_order_without_blocking_others() {
        let queue = Queue::default();
        let never = CancelToken::new().unwrap();
        let (a, b) = (Path::new("/a"), Path::new("/b"));
        let first = queue.join(a);
        let second = queue.join(a);
        let third = queue.join(a);
        let other = queue.join(b);
        assert!(first.wait(&never, || ()));
        assert!(other.wait(&never, || ()));
        let cancelled = CancelToken::new().unwrap();
        cancelled.cancel();
        assert!(!second.wait(&cancelled, || ()));
        drop(second);
        let waiter = std::thread::spawn(move || third.wait(&never, || ()));
        drop(first);
        assert!(waiter.join().unwrap());
        assert!(
            queue
                .state()
                .waiting
                .keys()
                .all(|key| *key == WorkspaceKey::Path(b.to_owned()))
        );
    }

    #[test]
    fn paths_of_one_directory_share_queue() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path(), &link).unwrap();
        let queue = Queue::default();
        let cancel = CancelToken::new().unwrap();
        let (a, b) = (queue.join(directory.path()), queue.join(&link));
        assert!(a.wait(&cancel, || ()) && b.wait(&cancel, || ()));
        let first = a.join_directory(directory.path()).unwrap();
        let second = b.join_directory(&link).unwrap();
        assert!(first.wait(&cancel, || ()));
        cancel.cancel();
        assert!(!second.wait(&cancel, || ()));
        drop(first);
        assert!(second.wait(&CancelToken::new().unwrap(), || ()));
    }

    #[test]
    fn cancel_ends_wait() {
        let queue = Queue::default();
        let _first = queue.join(Path::new("/a"));
        let second = queue.join(Path::new("/a"));
        let cancel = CancelToken::new().unwrap();
        let waiter = {
            let cancel = cancel.clone();
            std::thread::spawn(move || second.wait(&cancel, || ()))
        };
        cancel.cancel();
        queue.wake();
        assert!(!waiter.join().unwrap());
    }

    #[test]
    fn waits_for_lock_of_another_process() {
        let directory = tempfile::tempdir().unwrap();
        let never = CancelToken::new().unwrap();
        let Ok(LockOutcome::Held(held)) =
            lock(directory.path(), Duration::ZERO, &never, || (), |_| ())
        else {
            panic!("nobody else has it");
        };
        let cancelled = CancelToken::new().unwrap();
        cancelled.cancel();
        assert!(matches!(
            lock(directory.path(), Duration::MAX, &cancelled, || (), |_| ()),
            Ok(LockOutcome::Cancelled)
        ));
        for (timeout, waits) in [(Duration::ZERO, 0), (Duration::from_millis(100), 1)] {
            let mut messages = Vec::new();
            let busy = lock(
                directory.path(),
                timeout,
                &never,
                || (),
                |message| {
                    messages.push(message.to_owned());
                },
            );
            assert_eq!(busy.unwrap_err().kind(), Kind::Busy);
            assert_eq!(messages.len(), waits, "{messages:?}");
        }
        drop(held);
        assert!(matches!(
            lock(directory.path(), Duration::ZERO, &never, || (), |_| ()),
            Ok(LockOutcome::Held(_))
        ));
        let unavailable = lock(
            Path::new("/proc/self"),
            Duration::ZERO,
            &never,
            || (),
            |_| (),
        )
        .unwrap();
        assert!(matches!(unavailable, LockOutcome::Unavailable(why) if why.contains(LOCK_FILE)));
    }
}
