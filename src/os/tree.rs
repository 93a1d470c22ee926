//! The descendants of a process: finding, stopping and ending them.
//!
//! If the root is a child subreaper, no descendant leaves the tree: orphans of a killed process become children of the
//! root.

use super::process::{Pid, Signal, own_pid, signal_process, start_of};
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// How long to wait for killed processes; only uninterruptible sleep takes longer.
const KILL_TIMEOUT: Duration = Duration::from_millis(500);
/// The interval between two scans of `/proc`: the exit of a process that is not a child cannot be waited for.
const SCAN_INTERVAL: Duration = Duration::from_millis(10);

/// Sends `signal` to each process that `find` returns, until it returns `None` or `grace` is over; returns whether it
/// returned `None`. `wait` is called between two scans, with the latest time of the next one.
///
/// A process gets the signal once, so that its handler runs once. SIGKILL has no handler and is sent after each scan:
/// where few pids are free, a new process can have the pid of one that was killed before.
fn signal_until_gone(
    signal: Signal,
    grace: Duration,
    mut find: impl FnMut() -> Option<Vec<Pid>>,
    mut wait: impl FnMut(Instant),
) -> bool {
    let deadline = Instant::now() + grace;
    let mut signalled = HashSet::new();
    loop {
        let Some(left) = find() else { return true };
        for pid in left {
            if signalled.insert(pid) || signal == Signal::KILL {
                signal_process(pid, signal);
            }
        }
        let now = Instant::now();
        if now >= deadline {
            return false;
        }
        wait(deadline.min(now + SCAN_INTERVAL));
    }
}

fn sleep_until(at: Instant) {
    std::thread::sleep(at.saturating_duration_since(Instant::now()));
}

/// `None` for an empty list, as [`signal_until_gone`] expects.
fn non_empty(found: Vec<Pid>) -> Option<Vec<Pid>> {
    (!found.is_empty()).then_some(found)
}

/// The living descendants of `root`, without `root` itself.
///
/// If `root` is a child subreaper, these are all processes that it ever started, including those in other sessions, but
/// possibly without processes that were started during the scan: repeat until the result is empty.
pub(crate) fn descendants(root: Pid) -> Vec<Pid> {
    let parents = parents();
    below(&parents, &children(&parents, root))
}

/// Kills the descendants of `root`, but not `root`: while a child subreaper lives, the orphans of killed processes can
/// be found below it.
pub(crate) fn kill_below(root: Pid) {
    let find = || non_empty(descendants(root));
    signal_until_gone(Signal::KILL, KILL_TIMEOUT, find, sleep_until);
}

/// Ends the descendants of this process: SIGTERM, `grace`, SIGKILL until none is left, for at most `kill_timeout`.
/// `wait` is as in [`signal_until_gone`] and has to reap.
pub(crate) fn end_own_descendants(
    grace: Duration,
    kill_timeout: Duration,
    mut wait: impl FnMut(Instant),
) {
    for (signal, grace) in [(Signal::TERM, grace), (Signal::KILL, kill_timeout)] {
        let find = || non_empty(descendants(own_pid()));
        if signal_until_gone(signal, grace, find, &mut wait) {
            return;
        }
    }
}

/// Ends the descendants of `root` that have `entry` (`NAME=value`) in their environment and started at `since` or
/// later, in clock ticks since boot: SIGTERM, a short grace period, SIGKILL.
pub(crate) fn end_marked_below(root: Pid, entry: &str, since: u64) {
    const GRACE: Duration = Duration::from_millis(300);
    let marked = |pid: &Pid| {
        let path = format!("/proc/{}/environ", pid.as_raw_nonzero());
        let environment = std::fs::read(path).unwrap_or_default();
        let mut entries = environment.split(|byte| *byte == 0);
        start_of(*pid) >= Some(since) && entries.any(|it| it == entry.as_bytes())
    };
    let find = || {
        let mut left = descendants(root);
        left.retain(marked);
        non_empty(left)
    };
    for (signal, grace) in [(Signal::TERM, GRACE), (Signal::KILL, KILL_TIMEOUT)] {
        if signal_until_gone(signal, grace, find, sleep_until) {
            return;
        }
    }
}

/// Stops the grandchildren and their descendants, then this process; continues them when this process is continued.
/// The children are not stopped: they have to end the others if this process is killed.
pub(crate) fn stop_with_everything_below() {
    let me = own_pid();
    let mut stopped = Vec::new();
    // Repeated until a scan finds no process that was started meanwhile.
    loop {
        let parents = parents();
        let children = children(&parents, me);
        let new: Vec<Pid> = below(&parents, &children)
            .into_iter()
            .filter(|pid| !children.contains(pid) && !stopped.contains(pid))
            .collect();
        if new.is_empty() {
            break;
        }
        for pid in new {
            signal_process(pid, Signal::STOP);
            stopped.push(pid);
        }
    }
    // Raised for this thread, the signal stops it before the next statement; sent to the process it may stop later.
    let _ = signal_hook::low_level::raise(signal_hook::consts::SIGSTOP);
    for pid in stopped {
        signal_process(pid, Signal::CONT);
    }
}

/// Kills the grandchildren and their descendants, then the children if they do not exit by themselves.
///
/// The children are last since they may be subreapers, below which orphans can be found.
pub(crate) fn kill_everything_below() {
    let find = || {
        let parents = parents();
        let children = children(&parents, own_pid());
        let below = below(&parents, &children);
        let started = below.into_iter().filter(|pid| !children.contains(pid));
        (!children.is_empty()).then(|| started.collect())
    };
    if !signal_until_gone(Signal::KILL, KILL_TIMEOUT, find, sleep_until) {
        for pid in descendants(own_pid()) {
            signal_process(pid, Signal::KILL);
        }
    }
}

/// Every living process with its parent.
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
        // The name is in parentheses and can itself contain parentheses; state and parent follow the last one.
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

/// `roots` and their descendants, parents before their children.
fn below(parents: &[(Pid, Pid)], roots: &[Pid]) -> Vec<Pid> {
    let mut found = roots.to_vec();
    let mut at = 0;
    while at < found.len() {
        found.extend(children(parents, found[at]));
        at += 1;
    }
    found
}
