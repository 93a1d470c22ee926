//! Which processes of a test are alive, and what they hold open: read from `/proc`.

use super::wait_until;
use rustix::process::{Pid, Signal};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A running process.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) parent: u32,
    pub(crate) command: String,
}

/// The processes that belong to the lab in `root`: its path is in their environment, in their command line, or
/// holds their directory. codex gives an MCP server little of the environment, hence the other two.
pub(crate) fn of(root: &Path) -> Vec<Process> {
    let root = root.as_os_str().as_bytes();
    let has = |text: &[u8]| memchr::memmem::find(text, root).is_some();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc is mounted").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|pid| pid.parse().ok()) else {
            continue;
        };
        let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
        let command = read("cmdline");
        let directory = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        if has(&read("environ")) || has(&command) || has(directory.as_os_str().as_bytes()) {
            found.push(Process {
                pid,
                parent: stat(pid).map_or(0, |stat| stat.parent),
                command: String::from_utf8_lossy(&command)
                    .trim_end_matches('\0')
                    .replace('\0', " "),
            });
        }
    }
    found
}

struct Stat {
    state: String,
    parent: u32,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in brackets, and may hold anything.
    let mut fields = text[text.rfind(')')? + 1..].split_whitespace();
    Some(Stat {
        state: fields.next()?.to_owned(),
        parent: fields.next()?.parse().ok()?,
    })
}

/// Waits until no process belongs to the lab in `root`.
#[track_caller]
pub(crate) fn assert_gone(root: &Path) {
    wait_until("the processes of the lab to be gone", || {
        of(root).is_empty()
    });
}

/// Kills what belongs to the lab in `root`, and tells what that was.
pub(crate) fn kill_all(root: &Path) -> Vec<Process> {
    let left = of(root);
    for process in &left {
        signal(process.pid, Signal::KILL);
    }
    left
}

/// Sends a signal; to a process that is gone already, none.
pub(crate) fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let _ = rustix::process::kill_process(pid.expect("a process id"), signal);
}

/// The children of a process that have ended and were not waited for.
pub(crate) fn zombies(parent: u32) -> usize {
    fs::read_dir("/proc")
        .expect("/proc is mounted")
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(stat)
        .filter(|stat| stat.parent == parent && stat.state == "Z")
        .count()
}

/// How many threads a process has.
pub(crate) fn threads(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

/// What a process has open: each target and how often.
pub(crate) fn open_files(pid: u32) -> BTreeMap<String, usize> {
    let mut open = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten()
    {
        if let Ok(target) = fs::read_link(entry.path()) {
            // Pipes and sockets have numbers of their own.
            let kind = target.to_string_lossy();
            let kind = kind.split(":[").next().unwrap_or_default().to_owned();
            *open.entry(kind).or_default() += 1;
        }
    }
    open
}

/// The most memory that a process has had in use, in bytes.
pub(crate) fn peak_memory(pid: u32) -> u64 {
    memory(pid, "VmHWM:")
}

/// The memory that a process has in use now, in bytes.
pub(crate) fn memory_now(pid: u32) -> u64 {
    memory(pid, "VmRSS:")
}

fn memory(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .find_map(|line| {
            line.strip_prefix(name)?
                .split_whitespace()
                .next()?
                .parse::<u64>()
                .ok()
        })
        .map_or(0, |kib| kib * 1024)
}

/// How many bytes a process has written so far, to whatever.
pub(crate) fn written(pid: u32) -> u64 {
    io(pid, "wchar: ")
}

/// How many bytes a process has read so far, of whatever.
pub(crate) fn read(pid: u32) -> u64 {
    io(pid, "rchar: ")
}

fn io(pid: u32, name: &str) -> u64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    io.lines()
        .find_map(|line| line.strip_prefix(name)?.parse().ok())
        .unwrap_or(0)
}
