//! What several modules need of the operating system: locks on files, signals to process groups, what processes
//! there are, and the wake-up that a signal or a cancelled turn gives to a thread that waits in `poll`. What one
//! module alone needs (a socket, a terminal's width, an open without following links) it takes from rustix.
//!
//! Linux is what the program is written for: `/proc`, pidfds, the child subreaper and the parent-death signal have
//! no portable form. Nothing here knows what codex is.

use crate::error::{Error, Kind, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::process::{Pid, Signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How much a pipe that has room takes without blocking, in bytes.
pub(crate) const PIPE_BUF: usize = 4096;

/// How long what was killed is looked for again; longer only in uninterruptible sleep.
const AFTER_KILL: Duration = Duration::from_millis(500);

/// A flag that one thread raises and another notices, also while it waits in `poll`.
#[derive(Clone, Debug)]
pub(crate) struct Flag(Arc<FlagInner>);

#[derive(Debug)]
struct FlagInner {
    raised: AtomicBool,
    /// Becomes readable for ever once the flag is raised.
    readable: OwnedFd,
    writable: OwnedFd,
    /// The pidfds of what runs for whoever looks at the flag.
    children: Mutex<Vec<Weak<OwnedFd>>>,
}

impl Flag {
    /// A flag that is not raised.
    ///
    /// # Errors
    /// [`Kind::Io`] where the process has no descriptors left.
    pub(crate) fn new() -> Result<Flag> {
        use rustix::pipe::{PipeFlags, pipe_with};
        let (readable, writable) =
            pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(|error| {
                Error::os(Kind::Io, "cannot make a pipe", error.into()).with_retryable(true)
            })?;
        Ok(Flag(Arc::new(FlagInner {
            raised: AtomicBool::new(false),
            readable,
            writable,
            children: Mutex::default(),
        })))
    }

    /// Notes the pidfd of a child, for [`Flag::end_children`], as long as its owner keeps it.
    pub(crate) fn attach(&self, pidfd: &Arc<OwnedFd>) {
        let mut children = self.children();
        children.retain(|child| child.strong_count() > 0);
        children.push(Arc::downgrade(pidfd));
    }

    /// Sends SIGTERM to the children, for a thread that has seen the flag raised and does not come to it: it hangs
    /// in the file system.
    pub(crate) fn end_children(&self) {
        for child in self.children().iter().filter_map(Weak::upgrade) {
            // It may have ended already.
            let _ = rustix::process::pidfd_send_signal(&*child, Signal::TERM);
        }
    }

    fn children(&self) -> MutexGuard<'_, Vec<Weak<OwnedFd>>> {
        self.0
            .children
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Raises the flag; it stays up.
    pub(crate) fn raise(&self) {
        if !self.0.raised.swap(true, Ordering::SeqCst) {
            // It cannot fail: the pipe is empty and its other end is held beside it.
            let _ = rustix::io::write(&self.0.writable, &[1]);
        }
    }

    pub(crate) fn is_raised(&self) -> bool {
        self.0.raised.load(Ordering::SeqCst)
    }
}

impl AsFd for Flag {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.readable.as_fd()
    }
}

/// A reader that reads no more once a flag is raised, for what is too long to be read to its end then.
#[derive(Debug)]
pub(crate) struct Cancellable<R> {
    input: R,
    cancel: Flag,
    /// How long it goes on reading after the flag, and since when it does.
    patience: Duration,
    since: Option<Instant>,
}

impl<R> Cancellable<R> {
    pub(crate) fn new(input: R, cancel: &Flag) -> Cancellable<R> {
        Cancellable::patient(input, cancel, Duration::ZERO)
    }

    /// One that reads on for so long where the flag is raised, counted anew after each end of the input.
    pub(crate) fn patient(input: R, cancel: &Flag, patience: Duration) -> Cancellable<R> {
        Cancellable {
            input,
            cancel: cancel.clone(),
            patience,
            since: None,
        }
    }
}

impl<R: Read> Read for Cancellable<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_raised() {
            let since = *self.since.get_or_insert_with(Instant::now);
            if since.elapsed() >= self.patience {
                return Err(io::Error::other("cancelled"));
            }
        }
        let length = self.input.read(buffer)?;
        if length == 0 {
            self.since = None;
        }
        Ok(length)
    }
}

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

fn open_directory(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
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
        Some(name) => shell_word(&name),
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
        _ => error.hint(format!("run: sudo -u {word} {}", own_command_line())),
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

/// The name of a user and its number, for a message: `alice (1000)`.
pub(crate) fn user_name(uid: u32) -> String {
    match account(uid) {
        Some(name) => format!("{name} ({uid})"),
        None => uid.to_string(),
    }
}

/// How this process was called, for a shell; a long command line only in its beginning.
fn own_command_line() -> String {
    let mut line = String::new();
    for argument in std::env::args_os() {
        let word = shell_argument(&argument.to_string_lossy());
        if line.len() + word.len() > 400 || word.chars().any(char::is_control) {
            return format!("{line} …");
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(&word);
    }
    line
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

fn open_lock(path: &Path, more: OFlags) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    Ok(File::from(rustix::fs::open(
        path,
        flags | more,
        Mode::RUSR | Mode::WUSR,
    )?))
}

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

/// A stream that is waited for also where it is in non-blocking mode, which it shares with everybody who has it
/// open: whoever set that may be another process, so it is not for us to change.
#[derive(Debug)]
pub(crate) struct Blocking<T>(pub(crate) T);

impl<T: Read + AsFd> Read for Blocking<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait_until_ready(&self.0, PollFlags::IN)?;
                }
                outcome => return outcome,
            }
        }
    }
}

impl<T: Write + AsFd> Write for Blocking<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait_until_ready(&self.0, PollFlags::OUT)?;
                }
                outcome => return outcome,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        loop {
            match self.0.flush() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait_until_ready(&self.0, PollFlags::OUT)?;
                }
                outcome => return outcome,
            }
        }
    }
}

fn wait_until_ready(stream: &impl AsFd, what: PollFlags) -> io::Result<()> {
    match rustix::event::poll(&mut [PollFd::new(stream, what)], None) {
        // An error of the stream is told by using it; an interrupted wait is a short one.
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Sends `signal` to every process of the group, and says whether there was one.
pub(crate) fn signal_group(group: Pid, signal: Signal) -> bool {
    rustix::process::kill_process_group(group, signal).is_ok()
}

/// The signal's usual name, or its number.
pub(crate) fn signal_name(number: i32) -> String {
    let name = match number {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => return format!("signal {number}"),
    };
    name.to_owned()
}

/// Is `/proc` there? Without it no process can be found that another one has started.
pub(crate) fn has_proc() -> bool {
    Path::new("/proc/self/stat").exists()
}

/// Every living descendant of `root`, `root` not among them, as `/proc` shows them at this moment.
///
/// With `root` a child subreaper this is everything that it ever started, sessions of their own included, but
/// for what was started while this looked: look again until nothing is left.
pub(crate) fn descendants(root: Pid) -> Vec<Pid> {
    let parents = parents();
    below(&parents, &children(&parents, root))
}

/// Kills everything below `root`, which itself lives on: as long as a child subreaper does, whatever it started
/// can be found, also what a killed process leaves behind.
pub(crate) fn kill_below(root: Pid) {
    let deadline = Instant::now() + AFTER_KILL;
    loop {
        let left = descendants(root);
        if left.is_empty() || Instant::now() >= deadline {
            return;
        }
        for pid in left {
            // It may have ended since it was found.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        // Nothing tells of the end of a process that is not a child: it can only be looked for again.
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Kills what this process's children have started, and the children themselves where they do not end then.
///
/// A child goes last since it may be a subreaper: as long as it lives, whatever it started can be found.
pub(crate) fn kill_everything_below() {
    let me = rustix::process::getpid();
    let deadline = Instant::now() + AFTER_KILL;
    loop {
        let parents = parents();
        let children = children(&parents, me);
        if children.is_empty() {
            return;
        }
        let late = Instant::now() >= deadline;
        let all = below(&parents, &children);
        for pid in all.iter().filter(|pid| late || !children.contains(pid)) {
            // It may have ended since it was found.
            let _ = rustix::process::kill_process(*pid, Signal::KILL);
        }
        if late {
            return;
        }
        // Nothing tells of the end of a process that is not a child: it can only be looked for again.
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Keeps the memory, environment and open files of this process from other processes of its user, which could read
/// a token out of them, or make this process speak for them.
///
/// `/proc/PID` of such a process belongs to root, but the process itself still opens `/proc/self`; no core is
/// dumped, and no debugger of the user's attaches. What is executed from here is as usual again.
pub(crate) fn protect_from_other_processes() {
    // It cannot fail with this value; without it there is one wall less, which the manual does not rely on.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
}

/// A process as `/proc` shows it: its parent, and when it started, in ticks after the boot.
fn parent_and_start(pid: Pid) -> Option<(Option<Pid>, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The name in parentheses may hold anything, parentheses too.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let parent = fields.nth(1)?.parse().ok().and_then(Pid::from_raw);
    let start = fields.nth(17)?.parse().ok()?;
    Some((parent, start))
}

/// Does this process, of these pid and start, still live?
pub(crate) fn is_alive(pid: Pid, start: u64) -> bool {
    parent_and_start(pid).is_some_and(|(_, started)| started == start)
}

/// When a process started, which tells it from another that gets its pid later.
pub(crate) fn start_of(pid: Pid) -> Option<u64> {
    parent_and_start(pid).map(|(_, start)| start)
}

/// Does `/proc` hide this living process? With the mount option `hidepid` it hides those that are not dumpable from
/// their own user too, and so whose child a process of ours is.
pub(crate) fn is_hidden(pid: Pid) -> bool {
    if parent_and_start(pid).is_some() || rustix::process::test_kill_process(pid).is_err() {
        return false;
    }
    // Between the two it may have ended, and another may have its pid.
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    hides_processes(&mounts)
}

/// Does the last mount on `/proc` in this `mountinfo` have the option?
fn hides_processes(mounts: &str) -> bool {
    let on_proc = mounts.lines().rev().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let is_proc = mount.split(' ').nth(4) == Some("/proc") && file_system.starts_with("proc ");
        is_proc.then(|| file_system.rsplit(' ').next().unwrap_or_default())
    });
    let mut options = on_proc.unwrap_or_default().split(',');
    options.any(|option| {
        option
            .strip_prefix("hidepid=")
            .is_some_and(|how| !matches!(how, "0" | "off"))
    })
}

/// Is `pid` the process `root`, which started at `root_start`, or one below it? Not where `pid` is not the process
/// any more that started at `start`, but another one.
pub(crate) fn is_at_or_below(pid: Pid, start: u64, root: Pid, root_start: u64) -> bool {
    // Whose parent ends while this looks is below another afterwards.
    const TRIES: usize = 3;
    const GENERATIONS_MAX: usize = 1000;
    let is_below = (0..TRIES).any(|_| {
        let mut at = pid;
        // A parent is older than its child: a younger one only has a dead one's pid.
        let mut youngest = u64::MAX;
        for _ in 0..GENERATIONS_MAX {
            let Some((parent, start)) = parent_and_start(at) else {
                return false;
            };
            if start > youngest {
                return false;
            }
            if at == root {
                return start == root_start;
            }
            let Some(parent) = parent else { return false };
            youngest = start;
            at = parent;
        }
        false
    });
    // Last, so that it was the same all the time.
    is_below && is_alive(pid, start)
}

/// Every living process and its parent.
fn parents() -> Vec<(Pid, Pid)> {
    let mut parents = Vec::new();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    for entry in entries.flatten() {
        let pid = |number: &str| number.parse().ok().and_then(Pid::from_raw);
        let Some(child) = entry.file_name().to_str().and_then(pid) else {
            continue;
        };
        // It may have ended since it was listed.
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        // The name in parentheses may hold anything, parentheses too; state and parent follow the last one.
        let Some((_, rest)) = stat.rsplit_once(") ") else {
            continue;
        };
        let mut fields = rest.split(' ');
        let (Some(state), Some(parent)) = (fields.next(), fields.next()) else {
            continue;
        };
        if state != "Z"
            && let Some(parent) = pid(parent)
        {
            parents.push((child, parent));
        }
    }
    parents
}

fn children(parents: &[(Pid, Pid)], of: Pid) -> Vec<Pid> {
    let children = parents.iter().filter(|(_, parent)| *parent == of);
    children.map(|(child, _)| *child).collect()
}

/// These processes and everything below them, parents before their children.
fn below(parents: &[(Pid, Pid)], roots: &[Pid]) -> Vec<Pid> {
    let mut found = roots.to_vec();
    let mut at = 0;
    while at < found.len() {
        found.extend(children(parents, found[at]));
        at += 1;
    }
    found
}

/// How many files this process could have open before [`raise_open_files`]; `None` where that changed nothing.
pub(crate) fn open_files_before() -> Option<u64> {
    OPEN_FILES_BEFORE.get().copied()
}

static OPEN_FILES_BEFORE: OnceLock<u64> = OnceLock::new();

/// Lets this process have as many files open as it may at all. The 1,024 that are usual are used up by a
/// hundred and fifty turns at once; they are that low for programs that call `select`, so what is started
/// should have the old limit again ([`limit_open_files`]).
pub(crate) fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if let Some(before) = limit.current
        && limit.maximum.is_none_or(|most| before < most)
    {
        limit.current = limit.maximum;
        if setrlimit(Resource::Nofile, limit).is_ok() {
            let _ = OPEN_FILES_BEFORE.set(before);
        }
    }
}

/// Sets how many files this process and what it starts may have open.
pub(crate) fn limit_open_files(limit: u64) {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limits = getrlimit(Resource::Nofile);
    limits.current = Some(limit);
    // It is lowered to what it was: that cannot fail.
    let _ = setrlimit(Resource::Nofile, limits);
}

/// Waits until `flag` is raised, at most for `time`.
pub(crate) fn wait_for(flag: &Flag, time: Duration) {
    let timeout = Timespec::try_from(time).ok();
    let mut fds = [PollFd::new(flag, PollFlags::IN)];
    // An interrupted wait is a short one; the caller keeps the time.
    let _ = rustix::event::poll(&mut fds, timeout.as_ref());
}

/// Waits until `stream` takes more, and says whether it does. Once `flag` is raised it is waited for `patience` and
/// no longer.
///
/// # Errors
/// The operating system's.
pub(crate) fn wait_for_room(
    stream: impl AsFd,
    flag: &Flag,
    patience: Duration,
) -> io::Result<bool> {
    let mut deadline = None;
    loop {
        let mut fds = vec![PollFd::new(&stream, PollFlags::OUT)];
        if deadline.is_none() {
            fds.push(PollFd::new(flag, PollFlags::IN));
        }
        let left = deadline.map(|end: Instant| end.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(0) => return Ok(false),
            // An error of the stream is told by writing to it.
            Ok(_) if !fds[0].revents().is_empty() => return Ok(true),
            Ok(_) => deadline = Some(Instant::now() + patience),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Lets this process learn how its children end, also where SIGCHLD was ignored by who started it: the kernel
/// buries the children of such a process itself and keeps no exit status. What is executed from here has the
/// signal's default again.
///
/// # Errors
/// [`Kind::Io`] where no handler can be made.
pub(crate) fn keep_exit_statuses() -> Result<()> {
    // Any handler does; nobody looks at the flag.
    signal_hook::flag::register(signal_hook::consts::SIGCHLD, Arc::default())
        .map(|_| ())
        .map_err(|error| Error::os(Kind::Io, "cannot listen for signals", error))
}

/// Lets every signal reach this process and what it starts, whatever its starter has blocked, as a daemon does that
/// takes its signals from a `signalfd`: a blocked SIGCHLD or SIGTERM would never be seen here.
pub(crate) fn unblock_signals() {
    // It cannot fail with a whole set.
    let _ = nix::sys::signal::SigSet::all().thread_unblock();
}

/// Calls `told` with the signal's number for each SIGINT and SIGTERM that this process gets, in a thread of its
/// own that lives as long as the process.
///
/// # Errors
/// [`Kind::Io`] where no handler, pipe or thread can be made.
pub(crate) fn on_end_signal(told: impl FnMut(i32) + Send + 'static) -> Result<()> {
    on_signals(&[SIGINT, SIGTERM], told)
}

/// The same, and for SIGHUP too unless that is ignored, as `nohup` has it.
///
/// # Errors
/// As [`on_end_signal`].
pub(crate) fn on_end_signal_or_hangup(told: impl FnMut(i32) + Send + 'static) -> Result<()> {
    match is_ignored(SIGHUP) {
        true => on_signals(&[SIGINT, SIGTERM], told),
        false => on_signals(&[SIGINT, SIGTERM, SIGHUP], told),
    }
}

/// The exit status that stands for an end by SIGINT.
pub(crate) const INTERRUPTED: u8 = 130;

/// Ends this process as SIGINT does where nobody listens for it.
pub(crate) fn end_by_interrupt() -> ! {
    // It does not come back unless there is no such signal.
    let _ = signal_hook::low_level::emulate_default_handler(SIGINT);
    std::process::exit(INTERRUPTED.into())
}

/// Ends this process by SIGINT where that is the signal, else with the status that a shell gives it.
pub(crate) fn end_by(signal: i32) -> ! {
    match signal {
        SIGINT => end_by_interrupt(),
        other => std::process::exit(128 + other),
    }
}

/// Is this signal ignored in this process?
fn is_ignored(number: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (number - 1) & 1 == 1)
}

fn on_signals(numbers: &[i32], mut told: impl FnMut(i32) + Send + 'static) -> Result<()> {
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::AtomicUsize;
    let failed = |error| Error::os(Kind::Io, "cannot listen for signals", error);
    let (mut woken, waker) = UnixStream::pair().map_err(failed)?;
    let counts: Vec<_> = numbers
        .iter()
        .map(|number| (*number, Arc::new(AtomicUsize::new(0))))
        .collect();
    for (number, count) in &counts {
        // The mark before the wake-up, so that whoever is woken sees it.
        signal_hook::flag::register_usize(*number, Arc::clone(count), 1).map_err(failed)?;
        signal_hook::low_level::pipe::register(*number, waker.try_clone().map_err(failed)?)
            .map_err(failed)?;
    }
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let mut sink = [0; 1];
            while matches!(woken.read(&mut sink), Ok(1)) {
                for (number, count) in &counts {
                    if count.swap(0, Ordering::SeqCst) > 0 {
                        told(*number);
                    }
                }
            }
        })
        .map_err(failed)?;
    Ok(())
}

/// Lets go of stdin, stdout and stderr: whoever reads the other end sees its end now, and not only when the last
/// thread of this process is gone, which one that hangs in the file system can put off for ever.
pub(crate) fn let_go_of_streams() {
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null");
    let Ok(null) = null else { return };
    // None of the three can fail on open files.
    let _ = rustix::stdio::dup2_stdin(&null);
    let _ = rustix::stdio::dup2_stdout(&null);
    let _ = rustix::stdio::dup2_stderr(&null);
}

/// Waits until the other end of `stream` is closed, at most for `time`; says whether it is. What was written before
/// that may still be there to be read.
pub(crate) fn is_hung_up(stream: impl AsFd, time: Duration) -> bool {
    let timeout = Timespec::try_from(time).ok();
    let mut fds = [PollFd::new(&stream, PollFlags::RDHUP)];
    matches!(rustix::event::poll(&mut fds, timeout.as_ref()), Ok(1..))
}

/// A path as a shell takes it, which no program takes for a flag.
pub(crate) fn shell_word(path: &str) -> String {
    match path.strip_prefix('-') {
        Some(_) => shell_argument(&format!("./{path}")),
        None => shell_argument(path),
    }
}

/// An argument as a shell takes it. A control character in it, which people could not copy, is written as bash, zsh
/// and ksh take it: `$'a\nb'`.
fn shell_argument(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@,~=".contains(c);
    // At the beginning a shell would expand the tilde.
    if !word.is_empty() && word.chars().all(plain) && !word.starts_with('~') {
        return word.to_owned();
    }
    if !word.chars().any(char::is_control) {
        return format!("'{}'", word.replace('\'', "'\\''"));
    }
    let mut quoted = "$'".to_owned();
    for c in word.chars() {
        match c {
            '\'' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => {
                let mut bytes = [0; 4];
                for byte in c.encode_utf8(&mut bytes).bytes() {
                    quoted.push_str(&format!("\\{byte:03o}"));
                }
            }
            c => quoted.push(c),
        }
    }
    quoted + "'"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_the_shell() {
        assert_eq!(shell_word("/a/b-c.json"), "/a/b-c.json");
        assert_eq!(shell_word("it's {x}"), "'it'\\''s {x}'");
        assert_eq!(shell_word(""), "''");
        assert_eq!(shell_word("~root/x"), "'~root/x'");
        assert_eq!(shell_word("a\n'b"), "$'a\\012\\'b'");
    }

    // fault: 102
    #[test]
    fn knows_a_pid_that_is_used_again() {
        let (me, parent) = (
            rustix::process::getpid(),
            rustix::process::getppid().unwrap(),
        );
        let (my_start, parent_start) = (start_of(me).unwrap(), start_of(parent).unwrap());
        assert!(is_at_or_below(me, my_start, parent, parent_start));
        assert!(!is_at_or_below(me, my_start - 1, parent, parent_start));
        assert!(!is_at_or_below(me, my_start, parent, parent_start - 1));
        assert!(!is_at_or_below(parent, parent_start, me, my_start));
    }

    #[test]
    fn knows_whether_proc_hides_processes() {
        let root = "29 1 254:0 / / rw,relatime - ext4 /dev/vda rw";
        for (options, hides) in [
            ("rw", false),
            ("rw,hidepid=0", false),
            ("rw,hidepid=off", false),
            ("rw,gid=4,hidepid=noaccess", true),
            ("rw,hidepid=invisible", true),
            ("rw,hidepid=2", true),
        ] {
            let proc = format!("22 29 0:21 / /proc rw,nosuid shared:12 - proc proc {options}");
            assert_eq!(
                hides_processes(&format!("{root}\n{proc}\n")),
                hides,
                "{options}"
            );
            let above = "40 22 0:30 / /proc rw - proc proc rw";
            assert!(!hides_processes(&format!("{proc}\n{above}\n")), "{options}");
        }
    }

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
