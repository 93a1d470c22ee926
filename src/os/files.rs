//! Files: opened whatever they may be by now, made private, exchanged; who may use them, and whose they are.

use crate::error::{Error, Kind, Result};
use crate::shell;
use rustix::fs::{Access, AtFlags, Mode, OFlags};
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A FIFO is not waited for, and a terminal does not become the controlling one.
const NO_WAIT: OFlags = OFlags::NONBLOCK.union(OFlags::NOCTTY);
/// A symbolic link at the end of the path is not followed either, but is `ELOOP`.
const NOFOLLOW: OFlags = NO_WAIT.union(OFlags::NOFOLLOW);

/// Options to open what may be anything by now: a FIFO is not waited for.
pub(crate) fn open_options() -> OpenOptions {
    with_flags(NO_WAIT)
}

/// The same, for what may also be a symbolic link at the end of its path, which is an error ([`is_symlink_error`]).
pub(crate) fn open_options_nofollow() -> OpenOptions {
    with_flags(NOFOLLOW)
}

fn with_flags(flags: OFlags) -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(flags.bits().cast_signed());
    options
}

/// Makes a file that this user alone may read and write. What is there already is an error
/// ([`io::ErrorKind::AlreadyExists`]), a symbolic link too, wherever it leads.
///
/// # Errors
/// The operating system's.
pub(crate) fn create_private_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path)
}

/// Was nothing opened since there is a symbolic link at the end of the path?
pub(crate) fn is_symlink_error(error: &io::Error) -> bool {
    is(error, rustix::io::Errno::LOOP)
}

fn is(error: &io::Error, errno: rustix::io::Errno) -> bool {
    rustix::io::Errno::from_io_error(error) == Some(errno)
}

/// May this user do that with the file? Of a link with what it leads to.
pub(crate) fn has_access(path: impl AsRef<Path>, access: Access) -> bool {
    rustix::fs::access(path.as_ref(), access).is_ok()
}

/// Has the disk begin to write these bytes of a file, where the system does that, so that a sync has less to wait for.
///
/// sync_file_range(2), which is made for this, has no safe form here. This one has the same effect on pages that are
/// not written yet.
pub(crate) fn start_writing(file: &File, at: u64, length: u64) {
    let length = std::num::NonZeroU64::new(length);
    let _ = rustix::fs::fadvise(file, at, length, rustix::fs::Advice::DontNeed);
}

/// Exchanges two files in one step; `false` where the file system cannot.
///
/// # Errors
/// The operating system's.
pub(crate) fn exchange(one: &Path, other: &Path) -> io::Result<bool> {
    use rustix::fs::{CWD, RenameFlags};
    use rustix::io::Errno;
    match rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A file in memory. A kernel can be told to refuse them (`vm.memfd_noexec`).
///
/// # Errors
/// The operating system's.
pub(crate) fn memory_file(name: &str) -> io::Result<File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    Ok(File::from(rustix::fs::memfd_create(name, flags)?))
}

/// An open directory, in which files are opened and made by their name: whatever takes its path meanwhile is not met.
/// In it no symbolic link is ever followed.
#[derive(Debug)]
pub(crate) struct Directory(File);

impl Directory {
    /// # Errors
    /// The operating system's, a link at the end of the path or what is not a directory being one.
    pub(crate) fn open(path: &Path) -> io::Result<Directory> {
        let mut options = with_flags(OFlags::DIRECTORY | OFlags::NOFOLLOW);
        options.read(true).open(path).map(Directory)
    }

    /// The same, through a link at the end of the path.
    ///
    /// # Errors
    /// The operating system's, what is not a directory being one.
    pub(crate) fn open_following(path: &Path) -> io::Result<Directory> {
        let mut options = with_flags(OFlags::DIRECTORY);
        options.read(true).open(path).map(Directory)
    }

    /// The directory of this name in it.
    ///
    /// # Errors
    /// As [`Directory::open`].
    pub(crate) fn directory(&self, name: &str) -> io::Result<Directory> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        self.open_file(name, flags, Mode::empty()).map(Directory)
    }

    /// Makes a directory of this name in it.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn create_directory(&self, name: &str) -> io::Result<()> {
        let mode = Mode::from_raw_mode(0o777);
        Ok(rustix::fs::mkdirat(&self.0, name, mode)?)
    }

    /// A file of this name in it to be read and appended to, made if it is missing.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn append(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::APPEND | OFlags::NONBLOCK;
        self.open_file(name, flags, Mode::from_raw_mode(0o666))
    }

    /// A new file of this name in it, with these bits of a mode; one that is there is removed.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn create(&self, name: &str, mode: u32) -> io::Result<File> {
        match self.remove(name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        self.open_file(name, flags, Mode::from_raw_mode(mode))
    }

    fn open_file(&self, name: &str, flags: OFlags, mode: Mode) -> io::Result<File> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(&self.0, name, flags, mode)?))
    }

    /// Removes the file of this name.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name, AtFlags::empty())?)
    }

    /// Gives a file in it another name, in the place of one that has it.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.0, from, &self.0, to)?)
    }

    /// # Errors
    /// The operating system's.
    pub(crate) fn metadata(&self) -> io::Result<Metadata> {
        self.0.metadata()
    }

    /// Can no program be run from its file system?
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn is_noexec(&self) -> io::Result<bool> {
        let mounted = rustix::fs::fstatvfs(&self.0)?;
        let noexec = rustix::fs::StatVfsMountFlags::NOEXEC;
        Ok(mounted.f_flag.contains(noexec))
    }

    /// The directory itself, for a lock on it.
    pub(crate) fn as_file(&self) -> &File {
        &self.0
    }
}

impl From<Directory> for File {
    fn from(directory: Directory) -> File {
        directory.0
    }
}

/// Opens a file for reading that may be anything by now: never through a link at its end, and never waiting, as on a
/// FIFO. Its access time stays where this user may ask for that.
///
/// # Errors
/// The operating system's, and one that says what it is where it is not a regular file.
pub(crate) fn open_regular_file(path: &Path) -> io::Result<File> {
    use rustix::io::Errno;
    let not_a_file = |what: &str| io::Error::other(format!("it is {what}, not a regular file"));
    let open = |more| {
        let mut options = with_flags(NOFOLLOW | more);
        options.read(true).open(path)
    };
    let opened = match open(OFlags::NOATIME) {
        Err(error) if is(&error, Errno::PERM) => open(OFlags::empty()),
        opened => opened,
    };
    let file = match opened {
        Ok(file) => file,
        Err(error) if is(&error, Errno::LOOP) => return Err(not_a_file("a symbolic link")),
        Err(error) if is(&error, Errno::NXIO) => return Err(not_a_file("a socket or a device")),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    match metadata.is_file() {
        true => Ok(file),
        false if metadata.is_dir() => Err(not_a_file("a directory")),
        false => Err(not_a_file("a pipe or a device")),
    }
}

/// Refuses to write what belongs to another user, `what` at `path`: that user's own programs could not write it any
/// more. What is not there yet belongs to nobody; but what root makes belongs to root, and so has no place in a
/// directory of another user's.
///
/// A directory of root's that this user may write is one that root has set up for this user. Where a user
/// namespace does not know the owner, nobody in it could be that user.
///
/// # Errors
/// [`Kind::Io`] with the command to run instead.
pub(crate) fn check_owner(what: &str, path: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let me = user_id();
    let mut found = std::fs::metadata(path);
    if me == 0 {
        let mut above = path.ancestors().skip(1).map(std::fs::metadata);
        found = found.or_else(|error| above.find_map(std::result::Result::ok).ok_or(error));
    }
    let Ok(found) = found else {
        return Ok(());
    };
    let owner = found.uid();
    if owner == me || !is_mapped(owner) {
        return Ok(());
    }
    if owner == 0 && has_access(path, Access::WRITE_OK) {
        return Ok(());
    }
    let word = match account(owner) {
        Some(name) => shell::quote_path(&name),
        None => format!("'#{owner}'"),
    };
    let error = Error::new(
        Kind::Io,
        format!(
            "{what} '{}' belongs to {}, and this runs as {}, whose files that user could not write",
            path.display(),
            user_name(owner),
            user_name(me)
        ),
    );
    Err(match owner {
        // Nobody becomes root to run an agent.
        0 => error.hint("choose a directory of your own"),
        _ => error.hint(format!("run: sudo -u {word} {}", shell::own_command_line())),
    })
}

/// Does this process's user namespace know the user? The others are all shown as one.
fn is_mapped(uid: u32) -> bool {
    let Ok(map) = std::fs::read_to_string("/proc/self/uid_map") else {
        return true;
    };
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(first)), _, Some(Ok(count))) =
            (numbers.next(), numbers.next(), numbers.next())
        else {
            return true;
        };
        (first..first.saturating_add(count)).contains(&u64::from(uid))
    })
}

/// The name of a user, as far as `/etc/passwd` has it: names from elsewhere are rare on machines that run agents.
fn account(uid: u32) -> Option<String> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// The user that this process acts for.
pub(crate) fn user_id() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The name of a user and its number, for a message: `alice (1000)`.
pub(crate) fn user_name(uid: u32) -> String {
    match account(uid) {
        Some(name) => format!("{name} ({uid})"),
        None => uid.to_string(),
    }
}

/// Makes a FIFO, for tests of what must not wait for its other end.
#[cfg(test)]
pub(crate) fn make_fifo(path: &Path) {
    rustix::fs::mkfifoat(rustix::fs::CWD, path, Mode::RUSR | Mode::WUSR).unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;

    // fault: 80
    #[test]
    fn opens_only_regular_files() {
        let directory = tempfile::tempdir().unwrap();
        let rejected = |path: &Path, what: &str| {
            let error = open_regular_file(path).unwrap_err().to_string();
            assert_eq!(error, format!("it is {what}, not a regular file"));
        };
        rejected(directory.path(), "a directory");
        rejected(Path::new("/dev/zero"), "a pipe or a device");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        rejected(&link, "a symbolic link");
        let fifo = directory.path().join("fifo");
        make_fifo(&fifo);
        rejected(&fifo, "a pipe or a device");
    }
}
