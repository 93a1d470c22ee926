//! Everything that a process has started, and how it is ended.
//!
//! With a child subreaper at its root nothing gets out of the tree: also what a killed process leaves behind is found
//! below it. There is no portable form of that.

use super::process::{Pid, Signal, own_pid, signal_process, start_of};
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// How long what was killed is looked for again; longer only in uninterruptible sleep.
const AFTER_KILL: Duration = Duration::from_millis(500);
/// The pause between two looks: the end of a process that is not a child cannot be waited for.
const PAUSE: Duration = Duration::from_millis(10);

/// Sends `signal` to each process that `find` gives, until it gives `None` or `grace` is over; says whether it gave `None`.
/// `wait` is called between two looks, with when the next one is due at the latest.
///
/// Each process gets it once, so that its handler runs once. SIGKILL has no handler and is sent at each look: what is
/// started meanwhile can have the pid of a process that was killed before, where few pids are left.
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
        wait(deadline.min(now + PAUSE));
    }
}

fn sleep_until(at: Instant) {
    std::thread::sleep(at.saturating_duration_since(Instant::now()));
}

/// `None` for none, as [`signal_until_gone`] has it.
fn some(found: Vec<Pid>) -> Option<Vec<Pid>> {
    (!found.is_empty()).then_some(found)
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
    let find = || some(descendants(root));
    signal_until_gone(Signal::KILL, AFTER_KILL, find, sleep_until);
}

/// Ends everything below this process: SIGTERM, `grace`, SIGKILL until nothing is left, at most for `after_kill`.
/// `wait` is as in [`signal_until_gone`]; it reaps what has ended.
pub(crate) fn end_own_descendants(
    grace: Duration,
    after_kill: Duration,
    mut wait: impl FnMut(Instant),
) {
    for (signal, grace) in [(Signal::TERM, grace), (Signal::KILL, after_kill)] {
        if signal_until_gone(signal, grace, || some(descendants(own_pid())), &mut wait) {
            return;
        }
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
    let find = || {
        let mut left = descendants(root);
        left.retain(marked);
        some(left)
    };
    for (signal, grace) in [(Signal::TERM, GRACE), (Signal::KILL, AFTER_KILL)] {
        if signal_until_gone(signal, grace, find, sleep_until) {
            return;
        }
    }
}

/// Stops what this process's children have started and then this process, until somebody continues it, and
/// continues the others with it. Its children themselves go on: they end the others where this process is killed.
pub(crate) fn stop_with_everything_below() {
    let me = own_pid();
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
            signal_process(pid, Signal::STOP);
            stopped.push(pid);
        }
    }
    // Sent to this very thread, it stops before it goes on from here; sent to the process, perhaps after.
    let _ = signal_hook::low_level::raise(signal_hook::consts::SIGSTOP);
    for pid in stopped {
        signal_process(pid, Signal::CONT);
    }
}

/// Kills what this process's children have started, and the children themselves where they do not end then.
///
/// A child goes last since it may be a subreaper: as long as it lives, whatever it started can be found.
pub(crate) fn kill_everything_below() {
    let find = || {
        let parents = parents();
        let children = children(&parents, own_pid());
        let below = below(&parents, &children);
        let started = below.into_iter().filter(|pid| !children.contains(pid));
        (!children.is_empty()).then(|| started.collect())
    };
    if !signal_until_gone(Signal::KILL, AFTER_KILL, find, sleep_until) {
        for pid in descendants(own_pid()) {
            signal_process(pid, Signal::KILL);
        }
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
