//! The session file of a workspace: `.plexum-codex-session` contains the id of codex's thread and nothing else.
//!
//! The id becomes an argument of codex, so only a UUID is accepted: `exec resume` parses `-c…` as a flag, and some
//! flags run programs. The file is replaced by a rename, so that a crash leaves either the old id or the new one.

use crate::codex::home::is_thread_id;
use crate::error::{Error, Kind, Result, reason};
use crate::os;
use std::fs::{File, FileType};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// The session file's name in the workspace.
pub(crate) const FILE: &str = ".plexum-codex-session";
const TEMPORARY: &str = ".plexum-codex-session.tmp";
const BAD: &str = ".plexum-codex-session.bad";

/// How many names are tried for a file that is set aside.
const MAX_SET_ASIDE: u32 = 9;

/// The content of a session file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    /// The file is missing or empty.
    Nothing,
    /// The thread's id, in lower case.
    Thread(String),
    /// Not a thread id, or not a regular file; the reason, for a message.
    Unusable(String),
}

/// Reads the session file of `workspace`, without following a symbolic link or blocking on a FIFO.
///
/// # Errors
/// [`Kind::Io`] if it cannot be read.
pub(crate) fn read(workspace: &Path) -> Result<Stored> {
    let path = workspace.join(FILE);
    let failed = |error: io::Error| {
        Error::os(
            Kind::Io,
            format!("cannot read the session file '{}'", path.display()),
            error,
        )
    };
    // Checked before the open: opening a device can have side effects.
    let found = match std::fs::symlink_metadata(&path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Stored::Nothing),
        Err(error) => return Err(failed(error)),
    };
    if let Some(kind) = irregular(found.file_type()) {
        return Ok(Stored::Unusable(kind.to_owned()));
    }
    let file = match os::open_options_nofollow().read(true).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Stored::Nothing),
        Err(error) if os::is_symlink_error(&error) => {
            return Ok(Stored::Unusable("it is a symbolic link".to_owned()));
        }
        Err(error) => return Err(failed(error)),
    };
    if let Some(kind) = irregular(file.metadata().map_err(failed)?.file_type()) {
        return Ok(Stored::Unusable(kind.to_owned()));
    }
    let mut bytes = Vec::new();
    // An id has 36 bytes, and little white space is expected around it.
    file.take(257).read_to_end(&mut bytes).map_err(failed)?;
    let text = bytes.trim_ascii();
    if text.is_empty() && bytes.len() < 257 {
        return Ok(Stored::Nothing);
    }
    match std::str::from_utf8(text) {
        Ok(id) if is_thread_id(id) => Ok(Stored::Thread(id.to_ascii_lowercase())),
        _ => {
            let mut shown = String::from_utf8_lossy(text)
                .chars()
                .take(40)
                .collect::<String>();
            if text.len() > shown.len() {
                shown.push('…');
            }
            Ok(Stored::Unusable(format!("{shown:?} is not a thread id")))
        }
    }
}

/// Describes a file that is not a regular one.
fn irregular(kind: FileType) -> Option<&'static str> {
    if kind.is_file() {
        None
    } else if kind.is_symlink() {
        Some("it is a symbolic link")
    } else if kind.is_dir() {
        Some("it is a directory")
    } else if kind.is_fifo() {
        Some("it is a FIFO")
    } else if kind.is_socket() {
        Some("it is a socket")
    } else {
        Some("it is a device")
    }
}

/// The error of a command that needs the thread of a session file that is [`Stored::Unusable`].
pub(crate) fn unusable(workspace: &Path, why: &str) -> Error {
    let path = workspace.join(FILE);
    Error::new(
        Kind::Io,
        format!("the session file '{}' is unusable: {why}", path.display()),
    )
}

/// Renames a session file of any file type to `.plexum-codex-session.bad`, or with a number if a directory has that
/// name. Returns the new name.
///
/// # Errors
/// The operating system's; the file then keeps its name, and the next turn finds it again.
pub(crate) fn set_aside(workspace: &Path) -> io::Result<String> {
    let mut name = BAD.to_owned();
    for number in 1..=MAX_SET_ASIDE {
        match std::fs::rename(workspace.join(FILE), workspace.join(&name)) {
            Err(error)
                if number < MAX_SET_ASIDE
                    && matches!(
                        error.kind(),
                        io::ErrorKind::IsADirectory
                            | io::ErrorKind::NotADirectory
                            | io::ErrorKind::DirectoryNotEmpty
                            | io::ErrorKind::AlreadyExists
                    ) =>
            {
                name = format!("{BAD}.{number}");
            }
            renamed => return renamed.map(|()| name),
        }
    }
    unreachable!("the last round returns")
}

/// Stores the id of codex's thread unless it is `stored` already, and keeps the id of the thread that it replaces.
/// Returns a warning for each write that failed.
pub(super) fn store(
    workspace: &Path,
    id: &str,
    stored: Option<&str>,
    replaced: Option<&str>,
) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(replaced) = replaced
        && let Err(error) = keep_replaced(workspace, replaced)
    {
        warnings.push(format!(
            "cannot keep the id of the thread {replaced}, which {id} replaces: {}",
            reason(&error)
        ));
    }
    if stored != Some(id)
        && let Err(error) = save(workspace, id)
    {
        warnings.push(unsaved(workspace, id, &error));
    }
    warnings
}

fn unsaved(workspace: &Path, id: &str, error: &io::Error) -> String {
    let file = workspace.join(FILE);
    let (file, why) = (file.display(), reason(error));
    // If the new id can be read, only the sync of the directory has failed.
    if read(workspace).is_ok_and(|stored| stored == Stored::Thread(id.to_owned())) {
        return format!("a power cut now could lose the thread id {id} in '{file}': {why}");
    }
    format!(
        "cannot store the thread id {id} in '{file}': {why}; the next turn cannot continue this conversation"
    )
}

/// Keeps the id of a replaced thread in `.plexum-codex-session.bad`.
///
/// # Errors
/// The operating system's.
fn keep_replaced(workspace: &Path, thread: &str) -> io::Result<()> {
    write(workspace, BAD, thread)
}

/// Stores a thread's id in the session file.
///
/// # Errors
/// The operating system's; the old file is then unchanged, unless only the final sync has failed.
fn save(workspace: &Path, thread: &str) -> io::Result<()> {
    write(workspace, FILE, thread)
}

/// Replaces a file atomically: writes a temporary file with mode 0600, syncs and renames it, and syncs the directory.
fn write(workspace: &Path, name: &str, thread: &str) -> io::Result<()> {
    debug_assert!(is_thread_id(thread), "checked by the caller");
    let temporary = workspace.join(TEMPORARY);
    let saved = (|| {
        let mut file = match os::create_private_file(&temporary) {
            // Left from a crash, or a planted link, which must not be written through.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                std::fs::remove_file(&temporary)?;
                os::create_private_file(&temporary)?
            }
            opened => opened?,
        };
        file.write_all(thread.as_bytes())?;
        file.sync_all()?;
        drop(file);
        std::fs::rename(&temporary, workspace.join(name))
    })();
    if saved.is_err() {
        // If this fails, the next save replaces the file.
        let _ = std::fs::remove_file(&temporary);
        return saved;
    }
    // The rename is visible already; the sync makes it survive a power failure.
    File::open(workspace).and_then(|directory| directory.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const ID: &str = "01a1fdf6-cd77-75f3-a4e6-2e7b46178746";

    #[test]
    fn accepts_only_thread_ids() {
        let directory = tempfile::tempdir().unwrap();
        let stored = |bytes: &[u8]| {
            std::fs::write(directory.path().join(FILE), bytes).unwrap();
            read(directory.path()).unwrap()
        };
        assert_eq!(read(directory.path()).unwrap(), Stored::Nothing);
        assert_eq!(stored(b""), Stored::Nothing);
        assert_eq!(stored(b" \n"), Stored::Nothing);
        assert_eq!(stored(ID.as_bytes()), Stored::Thread(ID.to_owned()));
        assert_eq!(
            stored(format!("{}\r\n", ID.to_uppercase()).as_bytes()),
            Stored::Thread(ID.to_owned())
        );
        for bad in [
            &b"-cmcp_servers.evil.command=\"touch x\""[..],
            b"hello",
            b"\xff\xfe",
            b"01a1fdf6-cd77-75f3-a4e6-2e7b46178746 01a1fdf6-cd77-75f3-a4e6-2e7b46178746",
            &[b' '; 300],
            &[b'a'; 100_000],
        ] {
            assert!(matches!(stored(bad), Stored::Unusable(_)), "{bad:?}");
        }
        set_aside(directory.path()).unwrap();
        assert_eq!(read(directory.path()).unwrap(), Stored::Nothing);
        assert!(directory.path().join(BAD).exists());
    }

    #[test]
    fn sets_aside_session_file_that_is_not_regular() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        let check = |what: &str, name: &str| {
            let expected = Stored::Unusable(format!("it is a {what}"));
            assert_eq!(read(directory.path()).unwrap(), expected);
            assert_eq!(set_aside(directory.path()).unwrap(), name, "{what}");
            assert_eq!(read(directory.path()).unwrap(), Stored::Nothing);
        };
        std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
        check("symbolic link", BAD);
        os::make_fifo(&path);
        check("FIFO", BAD);
        let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        check("socket", BAD);
        drop(socket);
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("x"), "").unwrap();
        check("directory", ".plexum-codex-session.bad.1");
        std::fs::create_dir(&path).unwrap();
        check("directory", ".plexum-codex-session.bad.2");
    }

    #[test]
    fn save_replaces_leftovers() {
        let directory = tempfile::tempdir().unwrap();
        let elsewhere = directory.path().join("elsewhere");
        std::fs::write(&elsewhere, "precious").unwrap();
        std::os::unix::fs::symlink(&elsewhere, directory.path().join(TEMPORARY)).unwrap();
        save(directory.path(), ID).unwrap();
        assert_eq!(std::fs::read_to_string(&elsewhere).unwrap(), "precious");
        let path = directory.path().join(FILE);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), ID);
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(!directory.path().join(TEMPORARY).exists());
        std::fs::write(directory.path().join(TEMPORARY), "stale").unwrap();
        save(directory.path(), &ID.replace('0', "1")).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            ID.replace('0', "1")
        );
        assert!(save(Path::new("/nowhere"), ID).is_err());
    }
}
