//! Advisory locks on files and directories, and who holds them.

use rustix::fs::{FlockOperation, Mode, OFlags};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

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
    use rustix::fs::{fcntl_lock, flock};
    use rustix::io::Errno;
    let file = open_lock(path, OFlags::CREATE)?;
    // First, since over NFS the two kinds of lock are one, and this process's own would be in its way.
    match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => fcntl_lock(&file, FlockOperation::NonBlockingUnlock)?,
        Err(Errno::WOULDBLOCK | Errno::ACCESS) => return Ok(TryLock::Busy),
        // A file system without this kind: then nobody can have kept it.
        Err(_) => {}
    }
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(TryLock::Held(FileLock {
            _file: file,
            path: path.to_owned(),
        })),
        Err(Errno::WOULDBLOCK) => Ok(TryLock::Busy),
        Err(error) => Err(error.into()),
    }
}

/// Tries to lock a directory itself, without waiting: no file has to be made in it.
///
/// # Errors
/// The operating system's: NFS locks nothing that is not open for writing, which a directory never is.
pub(crate) fn try_lock_directory(path: &Path) -> io::Result<TryLock> {
    use rustix::io::Errno;
    let file = open_directory(path)?;
    loop {
        return match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(TryLock::Held(FileLock {
                _file: file,
                path: path.to_owned(),
            })),
            Err(Errno::WOULDBLOCK) => Ok(TryLock::Busy),
            Err(Errno::INTR) => continue,
            Err(error) => Err(error.into()),
        };
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
    if let Ok(directory) = open_directory(path) {
        let wait = move || {
            while rustix::fs::flock(&directory, FlockOperation::LockExclusive)
                == Err(rustix::io::Errno::INTR)
            {}
            loop {
                // It ends with the process, and with it the lock.
                std::thread::park();
            }
        };
        // Without it an orphaned codex is only seen by its own lock: nothing to tell.
        let _ = std::thread::Builder::new()
            .name("workspace lock".to_owned())
            .spawn(wait);
        return None;
    }
    let file = open_lock(path, OFlags::empty()).ok()?;
    let locked = rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive);
    locked.is_ok().then_some(file)
}

/// The process that holds `flock`'s or `fcntl`'s lock on this file, other than ourselves: its id and its name, as
/// far as `/proc` tells.
pub(crate) fn lock_holder(path: &Path) -> Option<(u32, String)> {
    use std::os::unix::fs::MetadataExt;
    let inode = std::fs::symlink_metadata(path).ok()?.ino();
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        // `1: FLOCK  ADVISORY  WRITE 4711 08:01:1234 0 EOF`; one that waits has `->` before its kind. The device
        // is not compared: file systems with several have another one here than stat tells.
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

fn open_directory(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

fn open_lock(path: &Path, more: OFlags) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    Ok(File::from(rustix::fs::open(
        path,
        flags | more,
        Mode::RUSR | Mode::WUSR,
    )?))
}
