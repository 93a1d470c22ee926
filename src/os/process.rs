//! Processes: this one and its children through system calls, others through `/proc`.

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

/// The parent of this process, or the process that has adopted it; `None` if that is outside the container.
pub(crate) fn own_parent() -> Option<Pid> {
    rustix::process::getppid()
}

/// The process group of this process.
pub(crate) fn own_group() -> Pid {
    rustix::process::getpgrp()
}

/// Whether this process is pid 1 of a container, which adopts orphans.
pub(crate) fn is_init() -> bool {
    own_pid().is_init()
}

/// Has the kernel send `signal` to this process when the thread that started it exits.
pub(crate) fn set_parent_death_signal(signal: Signal) {
    // It cannot fail with a valid signal.
    let _ = rustix::process::set_parent_process_death_signal(Some(signal));
}

/// Makes this process the parent of orphans among its descendants, so that they can be found and reaped.
pub(crate) fn become_subreaper() {
    // It cannot fail on Linux.
    let _ = rustix::process::set_child_subreaper(Some(own_pid()));
}

/// Prevents a core file when a signal ends this process.
pub(crate) fn disable_core_files() {
    let none = rustix::process::Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    // A limit can always be lowered.
    let _ = rustix::process::setrlimit(rustix::process::Resource::Core, none);
}

/// A descriptor that becomes readable when the process exits, and through which it can be signalled.
///
/// # Errors
/// The operating system's: the process does not exist, or no descriptors are left.
pub(crate) fn open_pidfd(pid: Pid) -> io::Result<OwnedFd> {
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// Whether this child has exited; does not reap it.
pub(crate) fn has_ended(pidfd: impl AsFd) -> bool {
    let how = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let found = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), how);
    matches!(found, Ok(Some(_)))
}

/// Reaps one child that has exited, without waiting.
pub(crate) fn reap() -> Option<(Pid, ExitStatus)> {
    let (pid, status) = rustix::process::wait(WaitOptions::NOHANG).ok()??;
    Some((pid, ExitStatus::from_raw(status.as_raw())))
}

/// Sends a signal to a process; that it has ended meanwhile is not an error.
pub(crate) fn signal_process(pid: Pid, signal: Signal) {
    let _ = rustix::process::kill_process(pid, signal);
}

/// Sends `signal` to every process of the group; returns whether one was signalled.
pub(crate) fn signal_group(group: Pid, signal: Signal) -> bool {
    rustix::process::kill_process_group(group, signal).is_ok()
}

/// The signal's name, or its number for a rare one.
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

/// Whether `/proc` is mounted. Without it the descendants of a process cannot be found.
pub(crate) fn has_proc() -> bool {
    Path::new("/proc/self/stat").exists()
}

/// The current time in clock ticks since boot, the unit of [`start_of`].
pub(crate) fn ticks_since_boot() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let ticks = rustix::param::clock_ticks_per_second();
    let nanos = u64::try_from(now.tv_nsec).unwrap_or_default();
    u64::try_from(now.tv_sec).unwrap_or_default() * ticks + nanos * ticks / 1_000_000_000
}

/// How long the machine has been suspended since boot.
pub(crate) fn suspended() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    let since_boot = |clock| Duration::try_from(clock_gettime(clock)).unwrap_or_default();
    since_boot(ClockId::Boottime).saturating_sub(since_boot(ClockId::Monotonic))
}

/// The largest resident set among the children of `root`'s main thread, in bytes; 0 if it is not known.
pub(crate) fn largest_child_resident(root: Pid) -> u64 {
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

/// Keeps other processes of the same user from the memory, environment and open files of this one: they could read a
/// token there or act through this process.
///
/// `/proc/PID` of a process that is not dumpable belongs to root, but the process can still open `/proc/self`. It dumps
/// no core, and the user's debuggers cannot attach. The programs that it executes are dumpable again.
pub(crate) fn protect_from_other_processes() {
    // It cannot fail with this value. It is defence in depth: the manual does not rely on it.
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// A process's parent and start time by `/proc`; the start in clock ticks since boot.
fn parent_and_start(pid: Pid) -> Option<(Option<Pid>, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The name is in parentheses and can itself contain parentheses.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let parent = fields.nth(1)?.parse().ok().and_then(Pid::from_raw);
    let start = fields.nth(17)?.parse().ok()?;
    Some((parent, start))
}

/// Whether the process with this pid and start time still exists.
pub(crate) fn is_alive(pid: Pid, start: u64) -> bool {
    parent_and_start(pid).is_some_and(|(_, started)| started == start)
}

/// When a process started, in clock ticks since boot. This distinguishes it from a later process with the same pid.
pub(crate) fn start_of(pid: Pid) -> Option<u64> {
    parent_and_start(pid).map(|(_, start)| start)
}

/// Whether the process or one of its ancestors has `argument` as its first argument; `false` for hidden processes.
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

pub(crate) fn parent_of(pid: Pid) -> Option<Pid> {
    parent_and_start(pid)?.0
}

/// Whether `/proc` hides this living process. With the mount option `hidepid`, processes that are not dumpable are
/// hidden even from their own user, and their ancestry with them.
pub(crate) fn is_hidden(pid: Pid) -> bool {
    if parent_and_start(pid).is_some() || rustix::process::test_kill_process(pid).is_err() {
        return false;
    }
    // It may have ended between the two checks, and its pid may be reused: the mount option decides.
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    hides_processes(&mounts)
}

/// Whether the last mount on `/proc` in this `mountinfo` has `hidepid` enabled.
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

/// Whether the process `pid` that started at `start` is `root` or a descendant of it, but neither one of `excluded` nor
/// a descendant of those. Each process is identified by pid and start time, so that a reused pid does not match.
pub(crate) fn is_at_or_below(
    pid: Pid,
    start: u64,
    root: Pid,
    root_start: u64,
    excluded: &[(Pid, u64)],
) -> bool {
    // A process whose parent ends during the walk gets another parent.
    const TRIES: usize = 3;
    const GENERATIONS_MAX: usize = 1000;
    let is_below = (0..TRIES).any(|_| {
        let mut at = pid;
        // A parent is older than its child; a younger process has only reused the parent's pid.
        let mut youngest = u64::MAX;
        for _ in 0..GENERATIONS_MAX {
            let Some((parent, start)) = parent_and_start(at) else {
                return false;
            };
            if start > youngest {
                return false;
            }
            if excluded.contains(&(at, start)) {
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
    // Checked last, so that `pid` was this process during the whole walk.
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
        let excluded = [(me, my_start)];
        assert!(!is_at_or_below(
            me,
            my_start,
            parent,
            parent_start,
            &excluded
        ));
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
