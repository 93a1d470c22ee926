//! Processes as `/proc` shows them: the descendants of one, and how they are ended.
//!
//! Linux alone: there is no portable form of `/proc`, pidfds and the child subreaper.

use rustix::process::{Pid, Signal};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long what was killed is looked for again; longer only in uninterruptible sleep.
const AFTER_KILL: Duration = Duration::from_millis(500);

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

/// Ends those processes below `root` that have `entry` (`NAME=value`) in their environment and started at `since` or
/// later, in ticks after the boot: SIGTERM, a short grace, SIGKILL.
pub(crate) fn end_marked_below(root: Pid, entry: &str, since: u64) {
    const GRACE: Duration = Duration::from_millis(300);
    let marked = |pid: &Pid| {
        let path = format!("/proc/{}/environ", pid.as_raw_nonzero());
        let environment = std::fs::read(path).unwrap_or_default();
        let mut entries = environment.split(|byte| *byte == 0);
        start_of(*pid) >= Some(since) && entries.any(|it| it == entry.as_bytes())
    };
    for (signal, grace) in [(Signal::TERM, GRACE), (Signal::KILL, AFTER_KILL)] {
        let deadline = Instant::now() + grace;
        let mut told = Vec::new();
        loop {
            let mut left = descendants(root);
            left.retain(marked);
            if left.is_empty() || Instant::now() >= deadline {
                break;
            }
            for pid in left {
                if !told.contains(&pid) {
                    // It may have ended since it was found.
                    let _ = rustix::process::kill_process(pid, signal);
                    told.push(pid);
                }
            }
            // Nothing tells of the end of a process that is not a child: it can only be looked for again.
            std::thread::sleep(Duration::from_millis(5));
        }
    }
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

/// Stops what this process's children have started and then this process, until somebody continues it, and
/// continues the others with it. Its children themselves go on: they end the others where this process is killed.
pub(crate) fn stop_with_everything_below() {
    let me = rustix::process::getpid();
    let mut stopped = Vec::new();
    // Until nothing is found that was started while this looked.
    loop {
        let parents = parents();
        let children = children(&parents, me);
        let fresh: Vec<Pid> = below(&parents, &children)
            .into_iter()
            .filter(|pid| !children.contains(pid) && !stopped.contains(pid))
            .collect();
        if fresh.is_empty() {
            break;
        }
        for pid in fresh {
            // It may have ended since it was found.
            let _ = rustix::process::kill_process(pid, Signal::STOP);
            stopped.push(pid);
        }
    }
    // Sent to this very thread, it stops before it goes on from here; sent to the process, perhaps after.
    let _ = signal_hook::low_level::raise(signal_hook::consts::SIGSTOP);
    for pid in stopped {
        let _ = rustix::process::kill_process(pid, Signal::CONT);
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

#[cfg(test)]
mod tests {
    use super::*;

    // fault: 102
    #[test]
    fn knows_a_pid_that_is_used_again() {
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
}
