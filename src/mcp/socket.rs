//! The private directory for sockets, and how the plugin and `mcp-host` authenticate each other.
//!
//! The directory is private (mode 0700, owned by this user, not a symbolic link), so that no other user can reach its
//! files; a socket has mode 0600 from the moment it exists; the kernel reports the peer's identity; and a token in a
//! file beside the socket distinguishes this turn's `mcp-host` from other processes of the same user. No secret is ever
//! in an argument, which other users can see, or in the environment.
//!
//! Files are created and removed under the directory's lock, so that a socket that is just being created is not taken
//! for the leftover of a killed plugin.

use super::failed;
use crate::error::{Error, Kind, Result};
use crate::os::{self, Directory, Errno, Pid};
use crate::shell;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The longest path of a socket on Linux, in bytes.
pub(super) const PATH_MAX: usize = 107;
/// The longest name of a socket here, in bytes: `p-`, 24 bytes of the agent's id, `.sock`.
const NAME_MAX: usize = 31;
/// The backlog of a listening socket: connections that wait while the bridge is busy.
pub(super) const BACKLOG: i32 = 128;
/// How long to wait for the directory's lock; other plugins hold it for well under a millisecond.
const LOCK_WAIT: Duration = Duration::from_secs(5);
const SOCKET_SUFFIX: &str = ".sock";
const TOKEN_SUFFIX: &str = ".token";
/// The prefix of the name of a copy of this program; the pid and the start time of the process that made it follow.
const PROGRAM_PREFIX: &str = "program-";
/// The suffix of an incomplete copy.
const INCOMPLETE_SUFFIX: &str = ".tmp";

/// The private directory for sockets, which is created if it is missing.
///
/// # Errors
/// [`Kind::McpFailed`] where it exists and is not private: a symbolic link, another user's, or accessible to others.
pub(super) fn directory(runtime_dir: Option<&Path>, profile: &Path) -> Result<PathBuf> {
    let directory = place(runtime_dir, profile);
    open_directory(&directory)?;
    Ok(directory)
}

/// Checks that an existing directory for sockets is private.
///
/// # Errors
/// As [`directory`].
pub(crate) fn check(directory: &Path) -> Result<()> {
    open_directory(directory).map(drop)
}

/// The path of the directory for sockets: `$XDG_RUNTIME_DIR/plexum-openai`, else `run` in the profile, else, where the
/// path of a socket there would be too long, a directory in `/tmp`.
pub(crate) fn place(runtime_dir: Option<&Path>, profile: &Path) -> PathBuf {
    let user = os::user_id();
    // A runtime directory of another user was inherited through `su`; that of this user is unknown.
    let runtime_dir = runtime_dir.filter(|directory| {
        directory.is_absolute()
            && std::fs::metadata(directory).is_ok_and(|found| found.is_dir() && found.uid() == user)
    });
    let profile = std::path::absolute(profile).unwrap_or_else(|_| profile.to_owned());
    runtime_dir
        .map(|directory| directory.join("plexum-openai"))
        .into_iter()
        .chain([profile.join("run")])
        // codex's arguments have to be UTF-8.
        .find(|directory| {
            directory.to_str().is_some() && directory.as_os_str().len() + 1 + NAME_MAX <= PATH_MAX
        })
        .unwrap_or_else(short_place)
}

/// The private directory with a short ASCII path, whatever the profile's path is.
pub(crate) fn short_place() -> PathBuf {
    let user = os::user_id();
    PathBuf::from(format!("/tmp/plexum-openai-{user}"))
}

/// Opens the directory, and creates it if it is missing.
fn open_directory(directory: &Path) -> Result<Directory> {
    let cannot = |what: &str, error: std::io::Error| {
        Error::os(
            Kind::McpFailed,
            format!(
                "cannot {what} the directory for sockets '{}'",
                directory.display()
            ),
            error,
        )
    };
    let mut opened = Directory::open(directory);
    if matches!(&opened, Err(error) if error.kind() == ErrorKind::NotFound) {
        os::check_owner("the directory for sockets", directory)?;
        // With its mode in one call, so that it is private from the beginning.
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder
            .create(directory)
            .map_err(|error| cannot("make", error))?;
        opened = Directory::open(directory);
    }
    let refused = |why: String, hint: String| {
        Err(failed(format!(
            "the directory for sockets '{}' {why}",
            directory.display()
        ))
        .hint(hint))
    };
    let word = shell::quote_path(&directory.to_string_lossy());
    let user = os::user_id();
    let owned_by_another = |owner: u32| {
        refused(
            format!(
                "belongs to user {}, not to {}",
                os::user_name(owner),
                os::user_name(user)
            ),
            format!(
                "run as root: mv {word} {word}.old; or set XDG_RUNTIME_DIR to a directory of your own"
            ),
        )
    };
    let opened = match opened {
        Ok(opened) => opened,
        Err(error) => {
            // Whatever it is, its owner is what the message has to tell first.
            let owner = std::fs::symlink_metadata(directory).map(|found| found.uid());
            return match (owner, Errno::from_io_error(&error)) {
                (Ok(owner), _) if owner != user => owned_by_another(owner),
                (_, Some(Errno::LOOP | Errno::NOTDIR)) => refused(
                    "is a symbolic link or not a directory".to_owned(),
                    format!("run: mv {word} {word}.old"),
                ),
                _ => Err(cannot("open", error)),
            };
        }
    };
    let found = opened.metadata().map_err(|error| cannot("access", error))?;
    if found.uid() != user {
        return owned_by_another(found.uid());
    }
    let mode = found.mode() & 0o777;
    if mode != 0o700 {
        return refused(
            format!("has mode {mode:04o}, not 0700"),
            format!("run: chmod 700 {word}"),
        );
    }
    Ok(opened)
}

/// Opens the directory and waits for its lock, which is released with the descriptor. The lock is on the directory
/// itself, so that there is no lock file.
pub(crate) fn locked(directory: &Path) -> Result<Directory> {
    lock(open_directory(directory)?, directory)
}

fn lock(opened: Directory, directory: &Path) -> Result<Directory> {
    match os::lock_file_until(opened.as_file(), Instant::now() + LOCK_WAIT, None) {
        Ok(true) => Ok(opened),
        Ok(false) => {
            let message = format!(
                "another process holds the lock on '{}' for more than {} seconds",
                directory.display(),
                LOCK_WAIT.as_secs()
            );
            Err(Error::new(Kind::Busy, message))
        }
        Err(error) => {
            let message = format!("cannot lock '{}'", directory.display());
            Err(Error::os(Kind::McpFailed, message, error))
        }
    }
}

/// Listens on a socket of this name in the private directory.
///
/// # Errors
/// As [`Listening::start`].
pub(crate) fn listen_privately(
    runtime_dir: Option<&Path>,
    profile: &Path,
    name: &str,
) -> Result<Listening> {
    Listening::start(&directory(runtime_dir, profile)?, name)
}

/// Connects to a socket of this user without blocking.
///
/// # Errors
/// Those of the operating system; `ConnectionRefused` where another user listens.
pub(crate) fn connect_privately(path: &Path) -> std::io::Result<UnixStream> {
    let stream = os::connect_nonblocking(path)?;
    if os::peer_of_this_user(&stream).is_none() {
        return Err(ErrorKind::ConnectionRefused.into());
    }
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// A listening socket and its token file. Both are removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Listening {
    pub(super) listener: UnixListener,
    pub(super) path: PathBuf,
    pub(super) token: String,
    directory: PathBuf,
    name: String,
}

impl Listening {
    /// The listener.
    pub(crate) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Listens on `<name>.sock` in the directory. The leftover of a killed plugin is replaced.
    ///
    /// # Errors
    /// [`Kind::Busy`] where another process listens there; [`Kind::McpFailed`] otherwise.
    pub(super) fn start(directory: &Path, name: &str) -> Result<Listening> {
        let lock = locked(directory)?;
        sweep_once(directory, &lock);
        let path = directory.join(format!("{name}{SOCKET_SUFFIX}"));
        match probe(&path) {
            SocketState::Nothing => {}
            SocketState::Stale => remove(&lock, name),
            SocketState::Live => {
                let message = format!("another turn of this agent listens at '{}'", path.display());
                return Err(Error::new(Kind::Busy, message));
            }
            SocketState::NotASocket(what) => {
                return Err(failed(format!("there is {what} at '{}'", path.display()))
                    .hint("remove it, unless another program uses it"));
            }
        }
        let cannot = |what: &str, error: std::io::Error| {
            Error::os(
                Kind::McpFailed,
                format!("cannot {what} '{}'", path.display()),
                error,
            )
        };
        let token = token().map_err(|error| cannot("make a token for", error))?;
        // Before the socket, so that a process that can connect can read it.
        write_token(&lock, name, &token).map_err(|error| cannot("write the token of", error))?;
        let listener = os::listen(&path, BACKLOG).map_err(|error| {
            remove(&lock, name);
            cannot("listen at", error)
        })?;
        Ok(Listening {
            listener,
            path,
            token,
            directory: directory.to_owned(),
            name: name.to_owned(),
        })
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // Under the lock: otherwise the files of the agent's next turn could be removed. A missing directory is not
        // created for this. Files that cannot be removed are removed by the next start.
        if let Ok(opened) = Directory::open(&self.directory)
            && let Ok(lock) = lock(opened, &self.directory)
        {
            remove(&lock, &self.name);
        }
    }
}

/// What is at the path of a socket.
enum SocketState {
    Nothing,
    /// A socket without a listener.
    Stale,
    Live,
    NotASocket(&'static str),
}

fn probe(path: &Path) -> SocketState {
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return SocketState::Nothing,
        Err(_) => return SocketState::NotASocket("a file that cannot be accessed"),
    };
    // Connecting to a regular file is refused, too, so the type has to be checked first.
    if !found.file_type().is_socket() {
        return SocketState::NotASocket("a file that is not a socket");
    }
    match os::connect_nonblocking(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => SocketState::Stale,
        Err(error) if error.kind() == ErrorKind::NotFound => SocketState::Nothing,
        // A full backlog or a lack of descriptors, for instance: only a socket that is certainly stale may be removed.
        _ => SocketState::Live,
    }
}

/// Removes a socket and its token in the directory, whose lock is held.
fn remove(lock: &Directory, name: &str) {
    for end in [SOCKET_SUFFIX, TOKEN_SUFFIX] {
        // They may not exist; and if they cannot be removed, creating their successors fails with a message.
        let _ = lock.remove(&format!("{name}{end}"));
    }
}

/// Removes the leftovers of killed plugins, when this process uses the directory for the first time.
fn sweep_once(directory: &Path, lock: &Directory) {
    static SWEPT: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
    let mut swept = SWEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if !swept.iter().any(|known| known == directory) {
        swept.push(directory.to_owned());
        sweep_locked(directory, lock);
    }
}

fn sweep_locked(directory: &Path, lock: &Directory) {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if let Some(of) = name.strip_prefix(PROGRAM_PREFIX) {
            // Copies are made under the lock: an incomplete one is a killed plugin's.
            let is_incomplete = of.ends_with(INCOMPLETE_SUFFIX);
            let of = of.split_once('-').and_then(|(pid, start)| {
                Some((Pid::from_raw(pid.parse().ok()?)?, start.parse().ok()?))
            });
            if is_incomplete || of.is_some_and(|(pid, start)| !os::is_alive(pid, start)) {
                // A file that cannot be removed does no harm.
                let _ = lock.remove(name);
            }
            continue;
        }
        let of = name.strip_suffix(SOCKET_SUFFIX);
        let Some(name) = of.or(name.strip_suffix(TOKEN_SUFFIX)) else {
            continue;
        };
        // Under the lock a token without a socket is as stale as a socket without a listener.
        if let SocketState::Stale | SocketState::Nothing =
            probe(&directory.join(format!("{name}{SOCKET_SUFFIX}")))
        {
            log::debug!(
                "removing the leftovers of a killed plugin: '{name}' in '{}'",
                directory.display()
            );
            remove(lock, name);
        }
    }
}

/// A copy of the running program that codex can start while this process runs. It is needed where the program's own
/// file was removed: other processes cannot open `/proc/PID/exe` of a protected process.
///
/// # Errors
/// [`Kind::McpFailed`] where the private directory is not available or full.
pub(crate) fn program_copy(runtime_dir: Option<&Path>, profile: &Path) -> Result<PathBuf> {
    let directory = directory(runtime_dir, profile)?;
    let lock = locked(&directory)?;
    sweep_once(&directory, &lock);
    let me = os::own_pid();
    let start = os::start_of(me).unwrap_or_default();
    let name = format!("{PROGRAM_PREFIX}{}-{start}", me.as_raw_nonzero());
    let path = directory.join(&name);
    if path.exists() {
        return Ok(path);
    }
    let cannot = |error: std::io::Error| {
        let message = format!("cannot copy this program to '{}'", path.display());
        Error::os(Kind::McpFailed, message, error)
    };
    if lock.is_noexec().map_err(cannot)? {
        let message = format!("nothing can be run from '{}'", directory.display());
        return Err(failed(message));
    }
    // Renamed when it is complete: another turn may use it at once.
    let incomplete = format!("{name}{INCOMPLETE_SUFFIX}");
    let copied = copy_program(&lock, &incomplete).and_then(|()| lock.rename(&incomplete, &name));
    if copied.is_err() {
        // An incomplete copy wastes space; if it cannot be removed it is swept later.
        let _ = lock.remove(&incomplete);
    }
    copied.map_err(cannot)?;
    Ok(path)
}

/// Copies the running program to this name in the directory.
fn copy_program(directory: &Directory, name: &str) -> std::io::Result<()> {
    let mut copy = directory.create(name, 0o700)?;
    // The umask may have cleared bits that codex needs.
    copy.set_permissions(std::fs::Permissions::from_mode(0o700))?;
    std::io::copy(&mut File::open("/proc/self/exe")?, &mut copy)?;
    Ok(())
}

/// 256 random bits, in hexadecimal.
fn token() -> std::io::Result<String> {
    let mut random = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(hexadecimal(&random))
}

/// A random name for a socket.
pub(super) fn fresh_name() -> Result<String> {
    let mut random = [0; 8];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut random))
        .map_err(|error| Error::os(Kind::McpFailed, "cannot read '/dev/urandom'", error))?;
    Ok(format!("t-{}", hexadecimal(&random)))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn write_token(lock: &Directory, name: &str, token: &str) -> std::io::Result<()> {
    // A token without a socket is a killed plugin's, and is replaced.
    let mut file = lock.create(&format!("{name}{TOKEN_SUFFIX}"), 0o600)?;
    file.write_all(token.as_bytes())
}

/// The path of the token of this socket.
fn token_path(socket: &Path) -> PathBuf {
    socket.with_extension(&TOKEN_SUFFIX[1..])
}

/// Reads the token of a socket: a regular file that only this user can access. It never blocks.
pub(super) fn read_token(socket: &Path) -> Result<String> {
    let path = token_path(socket);
    let cannot = |error: std::io::Error| {
        Error::os(
            Kind::McpFailed,
            format!("cannot read the token '{}'", path.display()),
            error,
        )
    };
    let mut options = os::open_options_nofollow();
    let file = options.read(true).open(&path).map_err(cannot)?;
    let found = file.metadata().map_err(cannot)?;
    if !found.is_file() || found.uid() != os::user_id() || found.mode() & 0o077 != 0 {
        let message = format!(
            "the token '{}' is not a private file of this user",
            path.display()
        );
        return Err(failed(message));
    }
    let mut token = String::new();
    file.take(1024).read_to_string(&mut token).map_err(cannot)?;
    Ok(token.trim_end().to_owned())
}

/// Connects to a socket whose listener must be this user's.
///
/// # Errors
/// [`Kind::Usage`] where the path cannot be a socket's, [`Kind::McpFailed`] where nothing listens there.
pub(super) fn connect(path: &Path) -> Result<UnixStream> {
    if path.as_os_str().len() > PATH_MAX || path.as_os_str().as_bytes().contains(&0) {
        return Err(Error::new(
            Kind::Usage,
            format!(
                "'{}' is not a path for a socket: it has {} bytes, at most {PATH_MAX} are possible",
                path.display(),
                path.as_os_str().len()
            ),
        ));
    }
    let stream = UnixStream::connect(path).map_err(|error| {
        let message = format!("no turn of the plugin listens at '{}'", path.display());
        Error::os(Kind::McpFailed, message, error)
    })?;
    if os::peer_of_this_user(&stream).is_none() {
        let message = format!("another user listens at '{}'", path.display());
        return Err(failed(message));
    }
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn private(directory: &Path) -> PathBuf {
        let directory = directory.join("run");
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .unwrap();
        directory
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    // fault: 44
    #[test]
    fn chooses_first_own_and_short_directory() {
        let base = tempfile::tempdir().unwrap();
        let (runtime, profile) = (base.path().join("r"), base.path().join("p"));
        std::fs::create_dir(&runtime).unwrap();
        let long = base.path().join("x".repeat(80));
        let short = PathBuf::from(format!("/tmp/plexum-openai-{}", os::user_id()));
        for (runtime_dir, profile, expected) in [
            (Some(&runtime), &profile, runtime.join("plexum-openai")),
            (None, &profile, profile.join("run")),
            (
                Some(&base.path().join("missing")),
                &profile,
                profile.join("run"),
            ),
            (
                Some(&PathBuf::from("relative")),
                &profile,
                profile.join("run"),
            ),
            (Some(&long), &long, short.clone()),
            (None, &long, short),
        ] {
            let found = directory(runtime_dir.map(PathBuf::as_path), profile).unwrap();
            assert_eq!(found, expected, "{runtime_dir:?} {profile:?}");
            let mode = std::fs::symlink_metadata(&found)
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o700, "{found:?}");
        }
    }

    // fault: 45
    #[test]
    fn rejects_directory_that_is_not_private() {
        let base = tempfile::tempdir().unwrap();
        let real = base.path().join("real");
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&real)
            .unwrap();
        for (name, make, message) in [
            (
                "link",
                Box::new(|path: &Path| symlink("real", path).unwrap()) as Box<dyn Fn(&Path)>,
                "is a symbolic link or not a directory; run: mv <path> <path>.old",
            ),
            (
                "file",
                Box::new(|path: &Path| std::fs::write(path, "").unwrap()),
                "is a symbolic link or not a directory; run: mv <path> <path>.old",
            ),
            (
                "open",
                Box::new(|path: &Path| {
                    std::fs::create_dir(path).unwrap();
                    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
                }),
                "has mode 0755, not 0700; run: chmod 700 <path>",
            ),
        ] {
            let path = base.path().join(name);
            make(&path);
            let error = open_directory(&path).unwrap_err();
            let shown = path.to_str().unwrap();
            assert_eq!(
                error.message().replace(shown, "<path>"),
                format!("the directory for sockets '<path>' {message}")
            );
        }
        if os::user_id() == 0 {
            let path = base.path().join("theirs");
            std::fs::DirBuilder::new()
                .mode(0o700)
                .create(&path)
                .unwrap();
            std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
            let error = open_directory(&path).unwrap_err();
            assert!(
                error.message().contains(&format!(
                    "belongs to user {}, not to root (0)",
                    os::user_name(65534)
                )),
                "{error}"
            );
        }
    }

    // fault: 117
    #[test]
    fn names_owner_of_squatted_directory() {
        if os::user_id() != 0 {
            // Only root can create files of another user.
            return;
        }
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("plexum-openai-0");
        for make in [
            &(|| std::fs::create_dir(&path).unwrap()) as &dyn Fn(),
            &|| symlink("elsewhere", &path).unwrap(),
            &|| std::fs::write(&path, "").unwrap(),
        ] {
            make();
            std::os::unix::fs::lchown(&path, Some(65534), None).unwrap();
            let shown = path.display();
            assert_eq!(
                open_directory(&path).unwrap_err().message(),
                format!(
                    "the directory for sockets '{shown}' belongs to user {}, not to root (0); run as root: mv {shown} {shown}.old; or set XDG_RUNTIME_DIR to a directory of your own",
                    os::user_name(65534)
                )
            );
            let _ = std::fs::remove_dir(&path).or_else(|_| std::fs::remove_file(&path));
        }
    }

    // fault: 45
    #[test]
    fn socket_is_private_and_removed() {
        let base = tempfile::tempdir().unwrap();
        let directory = private(base.path());
        let listening = Listening::start(&directory, "a").unwrap();
        assert_eq!(names(&directory), ["a.sock", "a.token"]);
        for name in ["a.sock", "a.token"] {
            let mode = std::fs::metadata(directory.join(name))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let client = connect(&listening.path).unwrap();
        assert!(os::peer_of_this_user(&client).is_some());
        assert_eq!(read_token(&listening.path).unwrap(), listening.token);
        assert_eq!(listening.token.len(), 64);
        drop(listening);
        assert_eq!(names(&directory), [""; 0]);
    }

    // fault: 43
    #[test]
    fn replaces_only_stale_sockets() {
        let base = tempfile::tempdir().unwrap();
        let directory = private(base.path());
        let path = directory.join("a.sock");
        drop(UnixListener::bind(&path).unwrap());
        std::fs::write(directory.join("a.token"), "old").unwrap();
        let first = Listening::start(&directory, "a").unwrap();
        assert_ne!(first.token, "old");

        let error = Listening::start(&directory, "a").unwrap_err();
        assert_eq!(error.kind(), Kind::Busy);
        assert_eq!(
            error.message(),
            format!("another turn of this agent listens at '{}'", path.display())
        );
        assert_eq!(
            read_token(&path).unwrap(),
            first.token,
            "the first keeps its own"
        );
        connect(&path).unwrap();
        drop(first);

        for make in [
            &(|| std::fs::write(&path, "").unwrap()) as &dyn Fn(),
            &|| std::fs::create_dir(&path).unwrap(),
            &|| symlink("elsewhere", &path).unwrap(),
        ] {
            make();
            let error = Listening::start(&directory, "a").unwrap_err();
            assert!(
                error.message().contains("a file that is not a socket"),
                "{error}"
            );
            let _ = std::fs::remove_dir(&path).or_else(|_| std::fs::remove_file(&path));
        }
    }

    #[test]
    fn removes_files_of_killed_plugin() {
        let base = tempfile::tempdir().unwrap();
        let directory = private(base.path());
        drop(UnixListener::bind(directory.join("dead.sock")).unwrap());
        for name in ["dead.token", "orphan.token", "else"] {
            std::fs::write(directory.join(name), "").unwrap();
        }
        let alive = UnixListener::bind(directory.join("alive.sock")).unwrap();
        std::fs::write(directory.join("alive.token"), "").unwrap();
        let listening = Listening::start(&directory, "a").unwrap();
        assert_eq!(
            names(&directory),
            ["a.sock", "a.token", "alive.sock", "alive.token", "else"]
        );
        drop((alive, listening));
    }

    #[test]
    fn rejects_token_of_others() {
        let base = tempfile::tempdir().unwrap();
        let socket = base.path().join("a.sock");
        let token = base.path().join("a.token");
        let wrong = "is not a private file of this user";
        std::fs::write(&token, "x").unwrap();
        std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(read_token(&socket).unwrap_err().message().contains(wrong));
        std::fs::remove_file(&token).unwrap();
        os::make_fifo(&token);
        assert!(read_token(&socket).unwrap_err().message().contains(wrong));
        std::fs::remove_file(&token).unwrap();
        symlink("elsewhere", &token).unwrap();
        let error = read_token(&socket).unwrap_err();
        assert!(
            error.message().starts_with("cannot read the token"),
            "{error}"
        );
    }
}
