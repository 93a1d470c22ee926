//! Files: opened without blocking and without following links, created private, exchanged; their access rights and
//! owners.

use crate::error::{Error, Kind, Result};
use crate::shell;
use rustix::fs::{Access, AtFlags, Mode, OFlags};
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Opening a FIFO does not block, and a terminal does not become the controlling one.
const NONBLOCK: OFlags = OFlags::NONBLOCK.union(OFlags::NOCTTY);
/// As [`NONBLOCK`], and a symbolic link at the end of the path is the error `ELOOP`.
const NOFOLLOW: OFlags = NONBLOCK.union(OFlags::NOFOLLOW);

/// Options to open a path that may be of any file type: opening a FIFO does not block.
pub(crate) fn open_options() -> OpenOptions {
    with_flags(NONBLOCK)
}

/// As [`open_options`]; a symbolic link at the end of the path is an error ([`is_symlink_error`]).
pub(crate) fn open_options_nofollow() -> OpenOptions {
    with_flags(NOFOLLOW)
}

fn with_flags(flags: OFlags) -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(flags.bits().cast_signed());
    options
}

/// Creates a file that only this user may read and write.
///
/// # Errors
/// The operating system's; [`io::ErrorKind::AlreadyExists`] if the path exists, also as a dangling symbolic link.
pub(crate) fn create_private_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path)
}

/// Whether opening failed because the path ends in a symbolic link.
pub(crate) fn is_symlink_error(error: &io::Error) -> bool {
    has_errno(error, rustix::io::Errno::LOOP)
}

fn has_errno(error: &io::Error, errno: rustix::io::Errno) -> bool {
    rustix::io::Errno::from_io_error(error) == Some(errno)
}

/// Whether this user has these access rights to the file; symbolic links are followed.
pub(crate) fn has_access(path: impl AsRef<Path>, access: Access) -> bool {
    rustix::fs::access(path.as_ref(), access).is_ok()
}

/// Starts the writeback of `length` bytes at `at`, if the file system does that, so that a later sync takes less time.
///
/// rustix has no safe sync_file_range(2). POSIX_FADV_DONTNEED has the same effect on dirty pages.
pub(crate) fn start_writing(file: &File, at: u64, length: u64) {
    let length = std::num::NonZeroU64::new(length);
    let _ = rustix::fs::fadvise(file, at, length, rustix::fs::Advice::DontNeed);
}

/// Exchanges two files atomically; `false` if the kernel or the file system does not support that.
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

/// Creates a file in memory, memfd_create(2).
///
/// # Errors
/// The operating system's; the sysctl `vm.memfd_noexec` can forbid such files.
pub(crate) fn create_memfd(name: &str) -> io::Result<File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    Ok(File::from(rustix::fs::memfd_create(name, flags)?))
}

/// An open directory. Files are opened and created relative to it, so that a later replacement of its path has no
/// effect; a name in it that is a symbolic link is an error.
#[derive(Debug)]
pub(crate) struct Directory(File);

impl Directory {
    /// Opens a directory; a symbolic link at the end of the path is an error.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn open(path: &Path) -> io::Result<Directory> {
        let mut options = with_flags(OFlags::DIRECTORY | OFlags::NOFOLLOW);
        options.read(true).open(path).map(Directory)
    }

    /// As [`Directory::open`], but follows a symbolic link at the end of the path.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn open_following(path: &Path) -> io::Result<Directory> {
        let mut options = with_flags(OFlags::DIRECTORY);
        options.read(true).open(path).map(Directory)
    }

    /// Opens the subdirectory of this name.
    ///
    /// # Errors
    /// As [`Directory::open`].
    pub(crate) fn directory(&self, name: &str) -> io::Result<Directory> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        self.open_file(name, flags, Mode::empty()).map(Directory)
    }

    /// Creates a subdirectory.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn create_directory(&self, name: &str) -> io::Result<()> {
        let mode = Mode::from_raw_mode(0o777);
        Ok(rustix::fs::mkdirat(&self.0, name, mode)?)
    }

    /// Opens a file for reading and appending; creates it if it is missing.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn append(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::APPEND | OFlags::NONBLOCK;
        self.open_file(name, flags, Mode::from_raw_mode(0o666))
    }

    /// Creates a file with these permission bits; an existing one is removed first.
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

    /// Removes a file.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name, AtFlags::empty())?)
    }

    /// Renames a file; an existing file `to` is replaced.
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

    /// Whether its file system is mounted with `noexec`.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn is_noexec(&self) -> io::Result<bool> {
        let mounted = rustix::fs::fstatvfs(&self.0)?;
        let noexec = rustix::fs::StatVfsMountFlags::NOEXEC;
        Ok(mounted.f_flag.contains(noexec))
    }

    /// The descriptor of the directory, to lock it.
    pub(crate) fn as_file(&self) -> &File {
        &self.0
    }
}

impl From<Directory> for File {
    fn from(directory: Directory) -> File {
        directory.0
    }
}

/// Opens a regular file for reading. If the path has become something else, this neither follows a symbolic link at its
/// end nor blocks on a FIFO. The access time is left unchanged where this user may request that.
///
/// # Errors
/// The operating system's; a message with the file type if it is not a regular file.
pub(crate) fn open_regular_file(path: &Path) -> io::Result<File> {
    use rustix::io::Errno;
    let not_a_file = |what: &str| io::Error::other(format!("it is {what}, not a regular file"));
    let open = |extra| {
        let mut options = with_flags(NOFOLLOW | extra);
        options.read(true).open(path)
    };
    let opened = match open(OFlags::NOATIME) {
        Err(error) if has_errno(&error, Errno::PERM) => open(OFlags::empty()),
        opened => opened,
    };
    let file = match opened {
        Ok(file) => file,
        Err(error) if has_errno(&error, Errno::LOOP) => return Err(not_a_file("a symbolic link")),
        Err(error) if has_errno(&error, Errno::NXIO) => {
            return Err(not_a_file("a socket or a device"));
        }
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    match metadata.is_file() {
        true => Ok(file),
        false if metadata.is_dir() => Err(not_a_file("a directory")),
        false => Err(not_a_file("a pipe or a device")),
    }
}

/// Checks that `what` at `path` does not belong to another user, whose own programs could not write files that this
/// user creates there. A missing path passes; but for root the closest existing ancestor counts, since what root
/// creates belongs to root.
///
/// A directory of root that this user may write passes: root has set it up for this user. So does an owner who is not
/// mapped into this user namespace: no process in it can run as that user.
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
    let user = match account_name(owner) {
        Some(name) => shell::quote_path(&name),
        None => format!("'#{owner}'"),
    };
    let error = Error::new(
        Kind::Io,
        format!(
            "{what} '{}' belongs to {}, but this program runs as {}, whose files that user could not write",
            path.display(),
            user_name(owner),
            user_name(me)
        ),
    );
    Err(match owner {
        // Running an agent as root is not advised.
        0 => error.hint("choose a directory of your own"),
        _ => error.hint(format!("run: sudo -u {user} {}", shell::own_command_line())),
    })
}

/// Whether the user is mapped into this process's user namespace. All others appear as the same overflow uid.
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

/// A user's name in `/etc/passwd`. Other sources are not queried: they are rare on machines that run agents.
fn account_name(uid: u32) -> Option<String> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// The effective uid of this process.
pub(crate) fn user_id() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// A user's name and uid, for a message: `alice (1000)`.
pub(crate) fn user_name(uid: u32) -> String {
    match account_name(uid) {
        Some(name) => format!("{name} ({uid})"),
        None => uid.to_string(),
    }
}

/// Creates a FIFO, for tests of functions that must not block on one.
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
