//! Opening files that may be anything, and whose they are.

use crate::error::{Error, Kind, Result};
use crate::shell;
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io;
use std::path::Path;

/// Opens a file for reading that may be anything by now: never through a link at its end, and never waiting, as on a
/// FIFO. Its access time stays where this user may ask for that.
///
/// # Errors
/// The operating system's, and one that says what it is where it is not a regular file.
pub(crate) fn open_regular_file(path: &Path) -> io::Result<File> {
    use rustix::io::Errno;
    let not_a_file = |what: &str| io::Error::other(format!("it is {what}, not a regular file"));
    let flags =
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = match rustix::fs::open(path, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => rustix::fs::open(path, flags, Mode::empty()),
        opened => opened,
    };
    let file = match opened {
        Ok(file) => File::from(file),
        Err(Errno::LOOP) => return Err(not_a_file("a symbolic link")),
        Err(Errno::NXIO) => return Err(not_a_file("a socket or a device")),
        Err(error) => return Err(error.into()),
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
    let me = rustix::process::geteuid().as_raw();
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
    if owner == 0 && rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok() {
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

#[cfg(test)]
mod tests {
    use super::*;

    // fault: 80
    #[test]
    fn rejects_what_is_not_a_regular_file() {
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
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, Mode::RWXU).unwrap();
        rejected(&fifo, "a pipe or a device");
    }
}
