//! The one room that knows the operating system: locks on files, signals to process groups, what processes
//! there are, and the wake-up that a signal or a cancelled turn gives to a thread that waits in `poll`.
//!
//! Linux is what this is written for: `/proc`, pidfds, the child subreaper and the parent-death signal have no
//! portable form. Nothing here knows what codex is.

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
const AFTER_KILL: Duration = Duration::from_secs(1);

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

/// Keeps the file at `path` locked beside another process that holds [`try_lock`]'s lock on it, and longer than
/// that process lives. It ends with the process that calls this, and when what this gives is dropped.
///
/// The lock is `fcntl`'s, which does not meet `flock`'s; a descriptor of the other process's own lock cannot be
/// had here.
pub(crate) fn keep_locked(path: &Path) -> Option<File> {
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

/// A word as a shell takes it.
pub(crate) fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@,~".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_the_shell() {
        assert_eq!(shell_word("/a/b-c.json"), "/a/b-c.json");
        assert_eq!(shell_word("it's {x}"), "'it'\\''s {x}'");
        assert_eq!(shell_word(""), "''");
    }
}
