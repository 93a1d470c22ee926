//! Advisory locks on files and directories, and who holds them.

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

/// What trying to lock a file gave.
#[derive(Debug)]
pub(crate) enum TryLock {
    Held(FileLock),
    /// Another process, or another open file of this one, has it.
    Busy,
}

/// Tries to lock the file at `path` (made with mode 0600 if it is missing) without waiting.
///
/// The lock is `flock`'s: it ends with the process that holds it, however that ends. The file is left where it
/// is, since unlinking a lock file lets two processes hold "the" lock. A file that somebody keeps
/// ([`keep_locked`]) is busy as well.
///
/// # Errors
/// The operating system's, a symlink at `path` being `ELOOP`.
pub(crate) fn try_lock(path: &Path) -> io::Result<TryLock> {
    use rustix::io::Errno;
    let file = lock_file_options().create(true).open(path)?;
    // First, since over NFS the two kinds of lock are one, and this process's own would be in its way.
    match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => fcntl_lock(&file, FlockOperation::NonBlockingUnlock)?,
        Err(Errno::WOULDBLOCK | Errno::ACCESS) => return Ok(TryLock::Busy),
        // A file system without this kind: then nobody can have kept it.
        Err(_) => {}
    }
    lock_or_busy(file, path)
}

/// Tries to lock a directory itself, without waiting: no file has to be made in it.
///
/// # Errors
/// The operating system's: NFS locks nothing that is not open for writing, which a directory never is.
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

/// Tries to take flock(2)'s exclusive lock on an open file, without waiting; says whether it is held now. It ends with
/// the open file, which a process that is just being started shares for a moment: see [`unlock_file`].
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

/// Takes the lock of [`try_lock_file`], waiting for it at most until `deadline` has passed or `cancel` is cancelled; says
/// whether it is held now.
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

/// Gives back a lock of [`try_lock_file`]. To close the file is not enough: a process that another thread is just starting
/// has it open too, until its program runs.
pub(crate) fn unlock_file(file: &File) {
    // It cannot fail on an open file; and if it did, closing does the same a moment later.
    let _ = file.unlock();
}

/// Calls `attempt` until it gives a value, `deadline` has passed or `cancel` is cancelled: flock(2) itself has no wait
/// with a limit. It is called at least once; `None` where it gave nothing.
///
/// # Errors
/// Those of `attempt`.
pub(crate) fn retry_until<T, E>(
    deadline: Option<Instant>,
    cancel: Option<&CancelToken>,
    mut attempt: impl FnMut() -> Result<Option<T>, E>,
) -> Result<Option<T>, E> {
    // Most locks are held for less than a millisecond, and one on a workspace for minutes.
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
        let time = left.map_or(pause, |left| left.min(pause));
        match cancel {
            Some(cancel) => super::wait_for(cancel, time),
            None => std::thread::sleep(time),
        }
        pause = (2 * pause).min(LONGEST);
    }
}

/// Keeps the file at `path` locked beside another process that holds [`try_lock`]'s lock on it, and longer than
/// that process lives. It ends with the process that calls this, and when what this gives is dropped.
///
/// The lock is `fcntl`'s, which does not meet `flock`'s; a descriptor of the other process's own lock cannot be
/// had here.
///
/// A directory cannot be locked that way. There this waits for the other process's lock in a thread of its own, which
/// gets it the moment that process is gone, and keeps it until this process ends.
pub(crate) fn keep_locked(path: &Path) -> Option<File> {
    if let Ok(directory) = Directory::open(path) {
        let directory = File::from(directory);
        let wait = move || {
            while let Err(error) = directory.lock()
                && error.kind() == io::ErrorKind::Interrupted
            {}
            loop {
                // It ends with the process, and with it the lock.
                std::thread::park();
            }
        };
        // Without it an orphaned codex is only seen by its own lock, which is nothing to report.
        let _ = std::thread::Builder::new()
            .name("workspace lock".to_owned())
            .spawn(wait);
        return None;
    }
    let file = lock_file_options().open(path).ok()?;
    let locked = fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive);
    locked.is_ok().then_some(file)
}

/// The process that holds `flock`'s or `fcntl`'s lock on this file, other than ourselves: its id and its name, as
/// far as `/proc` shows.
pub(crate) fn lock_holder(path: &Path) -> Option<(u32, String)> {
    use std::os::unix::fs::MetadataExt;
    let inode = std::fs::symlink_metadata(path).ok()?.ino();
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        // `1: FLOCK  ADVISORY  WRITE 4711 08:01:1234 0 EOF`; one that waits has `->` before its kind. The device
        // is not compared: file systems with several have another one here than in stat.
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

/// ` (process 4711, codex)` for the holder of a lock, or nothing where it cannot be seen.
pub(crate) fn shown_holder(path: &Path) -> String {
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
