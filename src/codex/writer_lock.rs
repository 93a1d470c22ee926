//! codex's writer lock on a thread (from 0.147 on), taken and probed in codex's own way.
//!
//! codex takes it for each thread that it may write to, in `thread-writer-locks/` of its home. Earlier versions take
//! none; they can only be noticed by the rollout that they hold open for writing ([`open_writer`]).

use super::home::is_thread_id;
use crate::error::{Error, Kind, Result};
use crate::os;
use crate::shell;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long to wait for codex's coordination lock. codex holds it for microseconds, and itself gives up after 30 s.
const COORDINATION_WAIT: Duration = Duration::from_secs(5);

/// codex's writer lock on a thread, held until this is dropped. Meanwhile codex fails with
/// `thread … already has an active writer` and does not touch the thread.
#[derive(Debug)]
pub(crate) struct WriterLock {
    directory: PathBuf,
    path: PathBuf,
    /// The lock is released when this file is closed.
    _file: File,
}

impl WriterLock {
    /// Takes the lock of `thread` in codex's way: under the coordination lock, so that the file is not unlinked between
    /// opening and locking it.
    ///
    /// The directory is created if it is missing: a codex before 0.147 has none, but a newer one can start at any time.
    ///
    /// # Errors
    /// [`Kind::Busy`] where codex or another plugin holds it; [`Kind::Params`] where `thread` is not a thread id;
    /// [`Kind::Io`].
    pub(crate) fn take(home: &Path, thread: &str) -> Result<WriterLock> {
        if !is_thread_id(thread) {
            return Err(Error::new(
                Kind::Params,
                format!("'{thread}' is not a thread id: expected a UUID"),
            ));
        }
        let thread = thread.to_ascii_lowercase();
        let directory = home.join("thread-writer-locks");
        match fs::create_dir(&directory) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(Error::os(
                    Kind::Io,
                    format!("cannot create '{}'", directory.display()),
                    error,
                ));
            }
        }
        let _coordination = coordinate(&directory)?;
        let path = directory.join(format!("{thread}.lock"));
        let file = open_lock(&path)?;
        if try_lock(&file, &path)? {
            Ok(WriterLock {
                directory,
                path,
                _file: file,
            })
        } else {
            Err(busy(&thread, &path))
        }
    }
}

impl Drop for WriterLock {
    fn drop(&mut self) {
        // Without the coordination lock the file stays: a stale one does no harm, and another process may have just
        // opened it.
        if let Ok(_coordination) = coordinate(&self.directory)
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::debug!("cannot remove '{}': {error}", self.path.display());
        }
    }
}

/// Checks that no process holds codex's lock on `thread`, and that codex's locks can be taken at all.
///
/// A missing lock file is not created, and a codex that starts meanwhile is not disturbed: it waits for the
/// coordination lock before it takes its own.
///
/// # Errors
/// [`Kind::Busy`] where the lock, or the coordination lock, is held; [`Kind::Io`].
pub(crate) fn check_unlocked(home: &Path, thread: &str) -> Result<()> {
    let directory = home.join("thread-writer-locks");
    let path = directory.join(format!("{}.lock", thread.to_ascii_lowercase()));
    if fs::symlink_metadata(&path).is_err() {
        return check_coordination_lock(home);
    }
    let _coordination = coordinate(&directory)?;
    // Closed, and so released, before the coordination lock is.
    let file = open_lock(&path)?;
    match try_lock(&file, &path)? {
        true => Ok(()),
        false => Err(busy(thread, &path)),
    }
}

/// Checks that codex's coordination lock, if it exists, can be opened: otherwise every turn of codex from 0.147 on
/// fails, in any thread.
///
/// # Errors
/// [`Kind::Io`] with a hint.
pub(crate) fn check_coordination_lock(home: &Path) -> Result<()> {
    let path = home.join("thread-writer-locks/.coordination.lock");
    match fs::symlink_metadata(&path) {
        Ok(_) => open_lock(&path).map(drop),
        Err(_) => Ok(()),
    }
}

/// The pid of another process that has this file open for writing, as far as `/proc` shows it: of our own user, in our
/// own pid namespace. `None` where there is none or none can be seen.
///
/// # Errors
/// [`Kind::Io`] where `/proc` is not mounted: then no process can be seen.
pub(crate) fn open_writer(path: &Path, inode: (u64, u64)) -> Result<Option<u32>> {
    if !crate::os::has_proc() {
        let path = path.display();
        let message = format!(
            "cannot determine which process has '{path}' open for writing: '/proc' is not mounted"
        );
        return Err(Error::new(Kind::Io, message).hint("mount it: mount -t proc proc /proc"));
    }
    let Some(name) = path.file_name() else {
        return Ok(None);
    };
    let ourselves = std::process::id();
    let processes = fs::read_dir("/proc").map_err(|error| {
        let path = path.display();
        Error::os(
            Kind::Io,
            format!("cannot determine which process has '{path}' open for writing: '/proc'"),
            error,
        )
    })?;
    let found = processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != ourselves)
        .find(|pid| {
            // Fails for another user's process, and for one that has exited.
            fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|files| {
                files
                    .flatten()
                    .any(|file| is_written(*pid, &file.path(), name, inode))
            })
        });
    Ok(found)
}

/// Whether this open file of a process is the given one, and open for writing.
fn is_written(pid: u32, link: &Path, name: &OsStr, inode: (u64, u64)) -> bool {
    // The name first: it needs no access to the file, whose file system may hang. A substring, because a rollout has
    // its copy's name while the two are exchanged.
    let named = fs::read_link(link).is_ok_and(|target| {
        let target = target.as_os_str().as_encoded_bytes();
        memchr::memmem::find(target, name.as_encoded_bytes()).is_some()
    });
    if !named || !fs::metadata(link).is_ok_and(|meta| (meta.dev(), meta.ino()) == inode) {
        return false;
    }
    let Some(number) = link.file_name().and_then(OsStr::to_str) else {
        return false;
    };
    let Ok(info) = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")) else {
        return false;
    };
    let flags = info
        .lines()
        .find_map(|line| line.strip_prefix("flags:"))
        .and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    // O_ACCMODE, of which O_RDONLY is 0.
    flags.is_some_and(|flags| flags & 0o3 != 0)
}

/// The error of a thread whose lock, at `path`, another process holds.
fn busy(thread: &str, path: &Path) -> Error {
    Error::new(
        Kind::Busy,
        format!(
            "thread {thread} is in use by another codex process{}",
            os::describe_holder(path)
        ),
    )
    .hint("try again when its turn is over")
}

/// Takes codex's coordination lock, which must be released soon.
fn coordinate(directory: &Path) -> Result<File> {
    let path = directory.join(".coordination.lock");
    let file = open_lock(&path)?;
    let deadline = Instant::now() + COORDINATION_WAIT;
    match os::lock_file_until(&file, deadline, None).map_err(cannot_lock(&path))? {
        true => Ok(file),
        false => {
            let holder = os::describe_holder(&path);
            let message = format!("'{}' is held by another process{holder}", path.display());
            Err(Error::new(Kind::Busy, message))
        }
    }
}

fn open_lock(path: &Path) -> Result<File> {
    let mut options = os::open_options_nofollow();
    options.read(true).write(true).create(true).mode(0o666);
    let opened = options.open(path);
    let error = match opened.and_then(|file| Ok((file.metadata()?, file))) {
        Ok((found, file)) if found.is_file() => return Ok(file),
        Ok(_) => os::Errno::INVAL.into(),
        Err(error) => error,
    };
    let word = shell::quote_path(&path.to_string_lossy());
    let what = format!("cannot open the lock '{}'", path.display());
    let Ok(found) = fs::symlink_metadata(path) else {
        return Err(Error::os(Kind::Io, what, error));
    };
    if found.is_dir() {
        let what = format!("{what}: it is a directory");
        return Err(Error::new(Kind::Io, what).hint(format!("run: rmdir {word}")));
    }
    if !found.is_file() {
        let what = format!("{what}: it is not a regular file");
        return Err(Error::new(Kind::Io, what).hint(format!("run: rm {word}")));
    }
    // codex creates a new one, as its own user.
    let what = format!("{what} (of uid {})", found.uid());
    Err(Error::os(Kind::Io, what, error).hint(format!("codex cannot either; run: sudo rm {word}")))
}

/// Takes the lock if it is free.
fn try_lock(file: &File, path: &Path) -> Result<bool> {
    os::try_lock_file(file).map_err(cannot_lock(path))
}

fn cannot_lock(path: &Path) -> impl Fn(io::Error) -> Error {
    move |error| Error::os(Kind::Io, format!("cannot lock '{}'", path.display()), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "01a1fe00-a027-7a81-b8a0-356e91ab6908";
    const OLD: &str = "67e55044-10b1-426f-9247-bb680e5fe0c8";

    #[test]
    fn allows_one_writer_per_thread() {
        let home = tempfile::tempdir().unwrap();
        let lock = home.path().join(format!("thread-writer-locks/{ID}.lock"));
        let held = WriterLock::take(home.path(), ID).unwrap();
        assert!(lock.exists());
        // A second lock of the same process is another open file, and so another owner.
        let error = WriterLock::take(home.path(), ID).unwrap_err();
        assert_eq!(error.kind(), Kind::Busy);
        assert_eq!(
            error.message(),
            format!(
                "thread {ID} is in use by another codex process; try again when its turn is over"
            )
        );
        let other = WriterLock::take(home.path(), OLD).unwrap();
        drop(held);
        assert!(!lock.exists());
        drop(other);
        fs::write(&lock, "").unwrap();
        drop(WriterLock::take(home.path(), ID).expect("a stale file does no harm"));
        let entries = fs::read_dir(home.path().join("thread-writer-locks")).unwrap();
        let names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [".coordination.lock"]);
    }

    #[test]
    fn does_not_follow_linked_lock() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("thread-writer-locks");
        fs::create_dir(&directory).unwrap();
        std::os::unix::fs::symlink("/dev/null", directory.join(format!("{ID}.lock"))).unwrap();
        assert_eq!(
            WriterLock::take(home.path(), ID).unwrap_err().kind(),
            Kind::Io
        );
    }

    #[test]
    fn finds_process_with_file_open_for_writing() {
        use std::process::{Command, Stdio};
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rollout-x.jsonl");
        fs::write(&path, "").unwrap();
        let meta = fs::metadata(&path).unwrap();
        let inode = (meta.dev(), meta.ino());
        let opened = |write: bool| {
            let file = fs::OpenOptions::new()
                .read(true)
                .write(write)
                .open(&path)
                .unwrap();
            Command::new("sleep")
                .arg("60")
                .stdin(Stdio::null())
                .stdout(file)
                .spawn()
                .unwrap()
        };
        for (write, seen) in [(true, true), (false, false)] {
            let mut child = opened(write);
            let found = open_writer(&path, inode).unwrap();
            child.kill().unwrap();
            child.wait().unwrap();
            assert_eq!(found, seen.then(|| child.id()), "open for writing: {write}");
        }
        let _own = fs::OpenOptions::new().write(true).open(&path).unwrap();
        assert_eq!(
            open_writer(&path, inode).unwrap(),
            None,
            "ourselves do not count"
        );
    }
}
