//! Processes: the own one and its children by system calls, all others as `/proc` shows them.

use rustix::process::{DumpableBehavior, PidfdFlags, WaitId, WaitIdOptions, WaitOptions};
pub(crate) use rustix::process::{Pid, Signal};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

/// This process.
pub(crate) fn own_pid() -> Pid {
    rustix::process::getpid()
}

/// The process that started this one, or that it was left to; `None` where that is outside of the container.
pub(crate) fn own_parent() -> Option<Pid> {
    rustix::process::getppid()
}

/// The process group of this process.
pub(crate) fn own_group() -> Pid {
    rustix::process::getpgrp()
}

/// Is this process the first one of a container, to which orphans are left?
pub(crate) fn is_init() -> bool {
    own_pid().is_init()
}

/// Has the kernel send this process a signal when the thread that started it ends.
pub(crate) fn end_with_parent(signal: Signal) {
    // It cannot fail on Linux with a signal.
    let _ = rustix::process::set_parent_process_death_signal(Some(signal));
}

/// Has the orphans among this process's descendants left to it, so that they can be found and reaped.
pub(crate) fn become_subreaper() {
    // It cannot fail on Linux.
    let _ = rustix::process::set_child_subreaper(Some(own_pid()));
}

/// Has no core file written when this process ends by a signal.
pub(crate) fn disable_core_files() {
    let none = rustix::process::Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    // A limit can always be lowered.
    let _ = rustix::process::setrlimit(rustix::process::Resource::Core, none);
}

/// A descriptor that is readable once the process has ended, and by which it can be sent signals.
///
/// # Errors
/// The operating system's: there is no such process, or no descriptor left.
pub(crate) fn open_pidfd(pid: Pid) -> io::Result<OwnedFd> {
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// Has this child ended? It is not reaped by that.
pub(crate) fn has_ended(pidfd: impl AsFd) -> bool {
    let how = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let found = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), how);
    matches!(found, Ok(Some(_)))
}

/// Reaps a child that has ended, if there is one.
pub(crate) fn reap() -> Option<(Pid, ExitStatus)> {
    let (pid, status) = rustix::process::wait(WaitOptions::NOHANG).ok()??;
    Some((pid, ExitStatus::from_raw(status.as_raw())))
}

/// Sends a signal to a process. It may have ended since it was found: that is not an error.
pub(crate) fn signal_process(pid: Pid, signal: Signal) {
    let _ = rustix::process::kill_process(pid, signal);
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

/// Now, in ticks after the boot, as [`start_of`] counts.
pub(crate) fn ticks_since_boot() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let ticks = rustix::param::clock_ticks_per_second();
    let nanos = u64::try_from(now.tv_nsec).unwrap_or_default();
    u64::try_from(now.tv_sec).unwrap_or_default() * ticks + nanos * ticks / 1_000_000_000
}

/// For how long the machine has been suspended since it was booted.
pub(crate) fn suspended() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    let since_boot = |clock| Duration::try_from(clock_gettime(clock)).unwrap_or_default();
    since_boot(ClockId::Boottime).saturating_sub(since_boot(ClockId::Monotonic))
}

/// The largest resident size of the processes that `root`'s first thread has started, in bytes; 0 where it is not known.
pub(crate) fn resident_of_children(root: Pid) -> u64 {
    let size = |pid: Pid| {
        let path = format!("/proc/{}/statm", pid.as_raw_nonzero());
        let statm = std::fs::read_to_string(path).ok()?;
        let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
        Some(pages * rustix::param::page_size() as u64)
    };
    let root = root.as_raw_nonzero();
    let children = std::fs::read_to_string(format!("/proc/{root}/task/{root}/children"));
    let children = children.unwrap_or_default();
    let pids = children.split_whitespace();
    let pids = pids.filter_map(|pid| pid.parse().ok().and_then(Pid::from_raw));
    pids.filter_map(size).max().unwrap_or(0)
}

/// Keeps the memory, environment and open files of this process from other processes of its user, which could read
/// a token out of them, or make this process speak for them.
///
/// `/proc/PID` of such a process belongs to root, but the process itself still opens `/proc/self`; no core is
/// dumped, and no debugger of the user's attaches. What is executed from here is as usual again.
pub(crate) fn protect_from_other_processes() {
    // It cannot fail with this value; without it there is one wall less, which the manual does not rely on.
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
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

/// When a process started, which distinguishes it from another that gets its pid later.
pub(crate) fn start_of(pid: Pid) -> Option<u64> {
    parent_and_start(pid).map(|(_, start)| start)
}

/// Has a process, or one that it descends from, this as its first argument? One that cannot be seen has not.
pub(crate) fn has_ancestor(pid: Pid, argument: &str) -> bool {
    const GENERATIONS_MAX: usize = 1000;
    let mut at = Some(pid);
    for _ in 0..GENERATIONS_MAX {
        let Some(pid) = at else { return false };
        let path = format!("/proc/{}/cmdline", pid.as_raw_nonzero());
        let line = std::fs::read(path).unwrap_or_default();
        if line.split(|byte| *byte == 0).nth(1) == Some(argument.as_bytes()) {
            return true;
        }
        at = parent_of(pid);
    }
    false
}

/// The process's parent.
pub(crate) fn parent_of(pid: Pid) -> Option<Pid> {
    parent_and_start(pid)?.0
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

/// Is `pid` the process `root`, which started at `root_start`, or one below it, and not one at or below one of `but`, by
/// pid and start? Not where `pid` is not the process any more that started at `start`, but another one.
pub(crate) fn is_at_or_below(
    pid: Pid,
    start: u64,
    root: Pid,
    root_start: u64,
    but: &[(Pid, u64)],
) -> bool {
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
            if but.contains(&(at, start)) {
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

#[cfg(test)]
mod tests {
    use super::*;

    // fault: 102
    #[test]
    fn recognizes_reused_pid() {
        let (me, parent) = (
            rustix::process::getpid(),
            rustix::process::getppid().unwrap(),
        );
        let (my_start, parent_start) = (start_of(me).unwrap(), start_of(parent).unwrap());
        let is_below =
            |pid, start, root, root_start| is_at_or_below(pid, start, root, root_start, &[]);
        assert!(is_below(me, my_start, parent, parent_start));
        assert!(!is_below(me, my_start - 1, parent, parent_start));
        assert!(!is_below(me, my_start, parent, parent_start - 1));
        assert!(!is_below(parent, parent_start, me, my_start));
        let but = [(me, my_start)];
        assert!(!is_at_or_below(me, my_start, parent, parent_start, &but));
    }

    #[test]
    fn recognizes_hidepid() {
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
}
