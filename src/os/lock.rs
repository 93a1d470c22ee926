//! Advisory locks on files and directories, and the processes that hold them.

use super::CancelToken;
use super::files::{Directory, open_options_nofollow};
use rustix::fs::{FlockOperation, fcntl_lock};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// An advisory lock on a file, held until it is dropped.
#[derive(Debug)]
pub(crate) struct FileLock {
    _file: File,
    path: PathBuf,
}

impl FileLock {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// The outcome of an attempt to lock a file.
#[derive(Debug)]
pub(crate) enum TryLock {
    Held(FileLock),
    /// Another process holds it, or another open file of this process.
    Busy,
}

/// Tries to lock the file at `path` without waiting; creates it with mode 0600 if it is missing.
///
/// This is a flock(2) lock: it ends with the process that holds it, even if that is killed. The file is never removed,
/// since unlinking a lock file lets two processes hold "the" lock. A file locked by [`keep_locked`] is busy as well.
///
/// # Errors
/// The operating system's; `ELOOP` if `path` is a symbolic link.
pub(crate) fn try_lock(path: &Path) -> io::Result<TryLock> {
    use rustix::io::Errno;
    let file = lock_file_options().create(true).open(path)?;
    // Before flock: over NFS the two kinds of lock are the same, and this process's own flock would conflict.
    match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => fcntl_lock(&file, FlockOperation::NonBlockingUnlock)?,
        Err(Errno::WOULDBLOCK | Errno::ACCESS) => return Ok(TryLock::Busy),
        // The file system has no fcntl locks, so `keep_locked` cannot have taken one either.
        Err(_) => {}
    }
    lock_or_busy(file, path)
}

/// Tries to lock a directory itself, without waiting; no lock file is needed in it.
///
/// # Errors
/// The operating system's; NFS only locks files that are open for writing, which a directory cannot be.
pub(crate) fn try_lock_directory(path: &Path) -> io::Result<TryLock> {
    lock_or_busy(Directory::open(path)?.into(), path)
}

fn lock_or_busy(file: File, path: &Path) -> io::Result<TryLock> {
    Ok(match try_lock_file(&file)? {
        true => TryLock::Held(FileLock {
            _file: file,
            path: path.to_owned(),
        }),
        false => TryLock::Busy,
    })
}

/// Tries to take an exclusive flock(2) lock on an open file, without waiting; returns whether it is held now. It ends
/// with the open file description, which a child shares between fork and exec: see [`unlock_file`].
///
/// # Errors
/// The operating system's.
pub(crate) fn try_lock_file(file: &File) -> io::Result<bool> {
    loop {
        return match file.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Interrupted => {
                continue;
            }
            Err(TryLockError::Error(error)) => Err(error),
        };
    }
}

/// As [`try_lock_file`], but waits for the lock until `deadline` or `cancel`.
///
/// # Errors
/// The operating system's.
pub(crate) fn lock_file_until(
    file: &File,
    deadline: Instant,
    cancel: Option<&CancelToken>,
) -> io::Result<bool> {
    let attempt = || try_lock_file(file).map(|held| held.then_some(()));
    Ok(retry_until(Some(deadline), cancel, attempt)?.is_some())
}

/// Releases a lock of [`try_lock_file`]. Closing the file is not enough: a child that another thread is starting has it
/// open too, until its exec.
pub(crate) fn unlock_file(file: &File) {
    // It cannot fail on an open file; and if it did, closing has the same effect a moment later.
    let _ = file.unlock();
}

/// Calls `attempt`, at least once, until it returns a value, `deadline` has passed or `cancel` is cancelled: flock(2)
/// has no timeout. `None` if `attempt` returned no value.
///
/// # Errors
/// Those of `attempt`.
pub(crate) fn retry_until<T, E>(
    deadline: Option<Instant>,
    cancel: Option<&CancelToken>,
    mut attempt: impl FnMut() -> Result<Option<T>, E>,
) -> Result<Option<T>, E> {
    // Most locks are held for less than a millisecond; one on a workspace is held for minutes.
    const SHORTEST: Duration = Duration::from_millis(2);
    const LONGEST: Duration = Duration::from_millis(50);
    let mut pause = SHORTEST;
    loop {
        let found = attempt()?;
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        if found.is_some()
            || cancel.is_some_and(CancelToken::is_cancelled)
            || left.is_some_and(|left| left.is_zero())
        {
            return Ok(found);
        }
        let timeout = left.map_or(pause, |left| left.min(pause));
        match cancel {
            Some(cancel) => super::wait_for_cancel(cancel, timeout),
            None => std::thread::sleep(timeout),
        }
        pause = (2 * pause).min(LONGEST);
    }
}

/// Locks the file at `path` in addition to another process's [`try_lock`], so that it stays busy after that process's
/// end. The lock ends with this process or when the returned file is dropped.
///
/// It is an fcntl(2) lock, which does not conflict with flock(2)'s; the descriptor of the other process's lock is not
/// available here.
///
/// A directory has no fcntl locks. For one, a thread waits for the flock, which it gets as soon as the other process
/// has ended, and holds it until this process ends.
pub(crate) fn keep_locked(path: &Path) -> Option<File> {
    if let Ok(directory) = Directory::open(path) {
        let directory = File::from(directory);
        let wait = move || {
            while let Err(error) = directory.lock()
                && error.kind() == io::ErrorKind::Interrupted
            {}
            loop {
                // The lock is to end with the process, not earlier.
                std::thread::park();
            }
        };
        // Without the thread an orphaned codex is detected only by codex's own lock; not worth a message.
        let _ = std::thread::Builder::new()
            .name("workspace lock".to_owned())
            .spawn(wait);
        return None;
    }
    let file = lock_file_options().open(path).ok()?;
    let locked = fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive);
    locked.is_ok().then_some(file)
}

/// The pid and name of another process that holds a flock(2) or fcntl(2) lock on this file, if `/proc` shows it.
pub(crate) fn lock_holder(path: &Path) -> Option<(u32, String)> {
    use std::os::unix::fs::MetadataExt;
    let inode = std::fs::symlink_metadata(path).ok()?.ino();
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        // `1: FLOCK  ADVISORY  WRITE 4711 08:01:1234 0 EOF`; a waiter has `->` before the kind. The device is not
        // compared: on file systems with several devices it differs from that of stat.
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, kind, _, _, pid, file, ..] = fields[..] else {
            return None;
        };
        let held = matches!(kind, "FLOCK" | "POSIX" | "OFDLCK");
        let same = file.rsplit(':').next()?.parse() == Ok(inode);
        let pid: u32 = pid.parse().ok()?;
        if !held || !same || pid == std::process::id() {
            return None;
        }
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        let name = name
            .trim_end()
            .chars()
            .filter(|c| !c.is_control())
            .collect();
        Some((pid, name))
    })
}

/// ` (process 4711, codex)` for the holder of a lock, for a message; empty if it is not known.
pub(crate) fn describe_holder(path: &Path) -> String {
    match lock_holder(path) {
        Some((pid, name)) => format!(" (process {pid}, {name})"),
        None => String::new(),
    }
}

fn lock_file_options() -> OpenOptions {
    let mut options = open_options_nofollow();
    options.read(true).write(true).mode(0o600);
    options
}
