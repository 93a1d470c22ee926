//! One turn a workspace: in this process one after the other, in the order they came; against other processes
//! by an advisory lock on the workspace itself, or on a file in it where directories cannot be locked.
//!
//! What directory a path leads to is only known by looking, and that can hang. So a turn queues by the path
//! it was given, which needs no look, and once it has looked, by the directory too: two paths of one directory still
//! have one turn at a time.

use crate::error::{Error, Kind, Result};
use crate::os::{self, CancelToken, FileLock, TryLock};
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The lock file in a workspace whose directory cannot be locked (NFS). It stays: unlinking it would let two processes hold "the" lock.
const LOCK_FILE: &str = ".plexum-codex-session.lock";
/// The turns of this process by workspace, each in the order in which they came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Queue(Arc<QueueInner>);

#[derive(Debug, Default)]
struct QueueInner {
    state: Mutex<QueueState>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct QueueState {
    waiting: HashMap<WorkspaceKey, VecDeque<u64>>,
    /// Those that have waited to the end.
    running: HashSet<u64>,
    last: u64,
}

/// What is queued for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum WorkspaceKey {
    Path(PathBuf),
    /// By device and inode.
    Directory(u64, u64),
}

/// A place in the queue of a workspace; dropping it lets the next one in.
#[derive(Debug)]
pub(crate) struct Ticket {
    queue: Queue,
    workspace: PathBuf,
    key: WorkspaceKey,
    /// A second queue in which it must be the first.
    behind: Option<WorkspaceKey>,
    number: u64,
}

impl Queue {
    /// Takes the next place in the queue of this path, whatever it leads to. Does no I/O.
    pub(crate) fn join(&self, workspace: &Path) -> Ticket {
        let key = WorkspaceKey::Path(workspace.to_owned());
        let mut state = self.state();
        state.last += 1;
        let number = state.last;
        state
            .waiting
            .entry(key.clone())
            .or_default()
            .push_back(number);
        Ticket {
            queue: self.clone(),
            workspace: workspace.to_owned(),
            key,
            behind: None,
            number,
        }
    }

    /// Lets everybody who waits look at his flag again.
    pub(crate) fn wake(&self) {
        let _state = self.state();
        self.0.moved.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, QueueState> {
        // Nothing that holds it can panic half-way.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// Waits until this place is the first; `false` where `cancel` was cancelled before. Where it has to wait at all,
    /// `on_wait` is called, at least once.
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
            if is_first(&self.key) && self.behind.iter().all(is_first) {
                state.running.insert(self.number);
                return true;
            }
            if !std::mem::replace(&mut has_waited, true) {
                // It may take long, and others queue meanwhile.
                drop(state);
                on_wait();
                state = self.queue.state();
                continue;
            }
            state = self
                .queue
                .0
                .moved
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes the next place in the queue of the directory that this place's path leads to.
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
        // In the order in which they came, whichever path was looked at first; but whoever runs stays in front.
        let first = waiting.front().is_some_and(|first| running.contains(first));
        let later = waiting.iter().skip(usize::from(first));
        let at = usize::from(first) + later.take_while(|number| **number < self.number).count();
        waiting.insert(at, self.number);
        drop(state);
        Ok(Ticket {
            queue: self.queue.clone(),
            workspace: canonical.to_owned(),
            key,
            behind: Some(self.key.clone()),
            number: self.number,
        })
    }

    /// The path that was queued for.
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
        self.queue.0.moved.notify_all();
    }
}

/// What asking for the workspace's lock gave.
#[derive(Debug)]
pub(crate) enum Locked {
    Held(FileLock),
    /// The lock cannot be had on this file system; the reason is for a warning.
    Without(String),
    /// `cancel` was cancelled first.
    Cancelled,
}

/// Locks the workspace against other processes, waiting at most `patience` for them. Where another one has it, `release`
/// is called, once, which has those let go that only keep it for their next turn; and where it has to be waited for all
/// the same, `on_wait`, once, with what is known of who has it.
///
/// # Errors
/// [`Kind::Busy`] where another process keeps it.
pub(crate) fn lock(
    workspace: &Path,
    patience: Duration,
    cancel: &CancelToken,
    release: impl FnOnce(),
    on_wait: impl FnOnce(&str),
) -> Result<Locked> {
    let deadline = Instant::now().checked_add(patience);
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
        None if cancel.is_cancelled() => Ok(Locked::Cancelled),
        None => Err(Error::new(Kind::Busy, busy).hint("try again when it has ended")),
    }
}

enum Attempt {
    Done(Locked),
    /// Another process has the lock on this directory or file.
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
        Ok(TryLock::Held(lock)) => Ok(Attempt::Done(Locked::Held(lock))),
        Ok(TryLock::Busy) => Ok(Attempt::Busy(path.to_owned())),
        Err(_)
            if path == file
                && std::fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) =>
        {
            let message = format!("the lock '{}' is not a regular file", path.display());
            Err(Error::new(Kind::Io, message).hint("remove it; the next turn makes a new one"))
        }
        // A read-only or full file system is no reason to refuse the turn.
        Err(error) => Ok(Attempt::Done(Locked::Without(format!(
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
        let Ok(Locked::Held(held)) = lock(directory.path(), Duration::ZERO, &never, || (), |_| ())
        else {
            panic!("nobody else has it");
        };
        let cancelled = CancelToken::new().unwrap();
        cancelled.cancel();
        assert!(matches!(
            lock(directory.path(), Duration::MAX, &cancelled, || (), |_| ()),
            Ok(Locked::Cancelled)
        ));
        for (patience, waits) in [(Duration::ZERO, 0), (Duration::from_millis(100), 1)] {
            let mut told = Vec::new();
            let busy = lock(
                directory.path(),
                patience,
                &never,
                || (),
                |holder| {
                    told.push(holder.to_owned());
                },
            );
            assert_eq!(busy.unwrap_err().kind(), Kind::Busy);
            assert_eq!(told.len(), waits, "{told:?}");
        }
        drop(held);
        assert!(matches!(
            lock(directory.path(), Duration::ZERO, &never, || (), |_| ()),
            Ok(Locked::Held(_))
        ));
        let nowhere = lock(
            Path::new("/proc/self"),
            Duration::ZERO,
            &never,
            || (),
            |_| (),
        )
        .unwrap();
        assert!(matches!(nowhere, Locked::Without(why) if why.contains(LOCK_FILE)));
    }
}
