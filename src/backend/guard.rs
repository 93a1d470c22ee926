//! The process between the plugin and codex.
//!
//! codex's shell tools lead sessions of their own, so a signal to codex's process group does not reach them,
//! and when codex dies without cleaning (SIGTERM, SIGKILL, a crash) they live on and belong to nobody. So each
//! codex gets a small parent that is nothing but that: this executable, started again as `codex-guard`. It is a
//! child subreaper, so whatever codex started stays below it and can be found; it asks the kernel for a signal
//! when the plugin dies, so that SIGKILL of the plugin ends codex too; and it ends what it guards in steps.
//!
//! It also keeps the workspace locked as long as it lives: a plugin that is started again at once waits for the
//! codex of the one that was killed.
//!
//! What leaves the plugin with a normal turn is left alone: when codex ends by itself, the guard only passes its
//! exit status on and what an agent started to stay lives on.
//!
//! The guard talks on no channel of its own. Its streams are codex's and it lets go of them once codex runs.
//! SIGTERM tells it to end codex. That codex could not be started is reported on stdout by a line that no codex
//! prints ([`SPAWN_ERROR`]) and exit status 127.

use crate::os::{self, Pid, SIGCHLD, SIGINT, SIGTERM, Signal, SignalPipe};
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

/// The first argument that makes this executable a guard.
pub(crate) const NAME: &str = "codex-guard";
/// How the line begins that reports why codex could not be started; an errno follows.
pub(crate) const SPAWN_ERROR: &str = "plexum-openai codex-guard: cannot start codex: errno ";

/// How long a codex that ends when its stdin is closed has for that. It needs 0.07 s (0.135 to 0.169), and at SIGINT it
/// would not record the turn as aborted.
pub(crate) const AFTER_EOF: Duration = Duration::from_millis(500);
/// How long codex has after SIGINT. It needs 0.15 s to record the turn as aborted (0.135 and 0.169).
const AFTER_INT: Duration = Duration::from_millis(1500);
/// How long codex has after SIGTERM.
const AFTER_TERM: Duration = Duration::from_millis(1000);
/// How long what codex left behind has after SIGTERM.
const LEFT_BEHIND: Duration = Duration::from_millis(300);
/// How long what was killed may take to be gone; longer only in uninterruptible sleep.
const AFTER_KILL: Duration = Duration::from_millis(1000);
/// The longest that a guard takes from SIGTERM to its own end, with room for a busy machine.
pub(crate) const LONGEST_ENDING: Duration = Duration::from_millis(4500);

/// Runs codex as the arguments say (the plugin's pid, how many files codex may have open or 0 for what it is
/// already, how many milliseconds it has to end by itself once its stdin is closed, a file to keep locked or an empty
/// path, the executable, its arguments), and ends as it ended.
pub(crate) fn run(mut arguments: impl Iterator<Item = OsString>) -> u8 {
    let mut number = || arguments.next()?.to_str()?.parse::<u64>().ok();
    let plugin = number().and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
    let (Some(plugin), Some(files), Some(patience), Some(lock), Some(codex)) = (
        plugin,
        number(),
        number().map(Duration::from_millis),
        arguments.next(),
        arguments.next(),
    ) else {
        let _ = writeln!(
            std::io::stderr(),
            "plexum-openai: {NAME} is started by the plugin itself, not by hand"
        );
        return 2;
    };
    // Whoever could trace the guard could start processes below it, and those may use the daemon's tools.
    os::protect_from_other_processes();
    os::end_with_parent(Signal::TERM);
    os::become_subreaper();
    let signals = SignalPipe::register(&SIGNALS);
    // Before the plugin is looked for: no codex runs that another plugin could take for ended.
    let _lock = (!lock.is_empty()).then(|| os::keep_locked(Path::new(&lock)));
    // The plugin may have died before the kernel was asked for the signal.
    if os::own_parent() != Some(plugin) {
        return 143;
    }
    if files > 0 {
        os::limit_open_files(files);
    }
    let mut command = Command::new(&codex);
    command.args(arguments).arg0(&codex);
    let started = signals.and_then(|signals| Ok((signals, command.spawn()?)));
    let (mut signals, child) = match started {
        Ok(started) => started,
        Err(error) => {
            let _ = writeln!(
                std::io::stdout(),
                "{SPAWN_ERROR}{}",
                error.raw_os_error().unwrap_or_default()
            );
            return 127;
        }
    };
    let codex = Pid::from_child(&child);
    // codex is the only one that holds its streams: the plugin waits for their end.
    os::close_standard_streams();

    let mut status = None;
    while status.is_none() {
        signals.wait(None);
        status = reap(codex);
        if status.is_none() && is_told_to_end(&signals) {
            return mirror(end(codex, patience, &mut signals));
        }
    }
    // A request to end that came with codex's own end is still one to leave nothing running.
    if is_told_to_end(&signals) {
        sweep(&mut signals);
    }
    mirror(status)
}

/// Where this process is the first of a container: starts the program once more and does here what is a first
/// process's to do, which is to reap the orphans that codex and its tools leave to it. Gives the exit status then.
///
/// The program itself cannot: to wait for any child takes the exit status of one that it waits for by its id.
pub(crate) fn reap_as_init() -> Option<u8> {
    if !os::is_init() {
        return None;
    }
    // It has the environment of the program itself; that hides its own.
    os::protect_from_other_processes();
    let mut signals = SignalPipe::register(&SIGNALS).ok()?;
    // Without /proc or a process to be had it is as it was without this: the orphans stay.
    let child = Command::new("/proc/self/exe")
        .arg0("plexum-openai")
        .args(std::env::args_os().skip(1))
        .spawn()
        .ok()?;
    let child = Pid::from_child(&child);
    os::close_standard_streams();
    loop {
        signals.wait(None);
        if let Some(status) = reap(child) {
            // A first process cannot die by a signal that it sends to itself.
            let by_signal = || status.signal().map_or(1, |number| 128 + number);
            return Some(u8::try_from(status.code().unwrap_or_else(by_signal)).unwrap_or(1));
        }
        for (number, signal) in [(SIGTERM, Signal::TERM), (SIGINT, Signal::INT)] {
            if signals.take(number) {
                os::signal_process(child, signal);
            }
        }
    }
}

/// Ends codex in steps, then whatever it left; gives its status where it could be had.
fn end(codex: Pid, patience: Duration, signals: &mut SignalPipe) -> Option<ExitStatus> {
    // Nobody but the plugin writes to its stdin, and that has closed it, or has died.
    let mut status = wait_for_end(codex, patience, signals);
    for (signal, grace) in [(Signal::INT, AFTER_INT), (Signal::TERM, AFTER_TERM)] {
        if status.is_none() {
            // The guard is of this group too, and has handlers for both.
            os::signal_group(os::own_group(), signal);
            status = wait_for_end(codex, grace, signals);
        }
    }
    if status.is_none() {
        os::signal_process(codex, Signal::KILL);
        status = wait_for_end(codex, AFTER_KILL, signals);
    }
    sweep(signals);
    status
}

/// Waits for codex's end, at most for so long.
fn wait_for_end(codex: Pid, time: Duration, signals: &mut SignalPipe) -> Option<ExitStatus> {
    let deadline = Instant::now() + time;
    let mut status = None;
    while status.is_none() && Instant::now() < deadline {
        signals.wait(Some(deadline));
        status = reap(codex);
    }
    status
}

/// Ends every process below this one: SIGTERM, a short grace, SIGKILL until none is left.
fn sweep(signals: &mut SignalPipe) {
    os::end_own_descendants(LEFT_BEHIND, AFTER_KILL, |next_look| {
        // Only the end of a child sends a signal.
        signals.wait(Some(next_look));
        while os::reap().is_some() {}
    });
}

/// Reaps every child that has ended; gives codex's status when it was among them.
fn reap(codex: Pid) -> Option<ExitStatus> {
    let mut found = None;
    while let Some((pid, status)) = os::reap() {
        if pid == codex {
            found = Some(status);
        }
    }
    found
}

/// Ends this process as codex ended: with its exit status, or by its signal.
fn mirror(status: Option<ExitStatus>) -> u8 {
    let Some(status) = status else { return 137 };
    if let Some(code) = status.code() {
        return u8::try_from(code).unwrap_or(1);
    }
    let number = status.signal().unwrap_or(Signal::KILL.as_raw());
    os::end_by_default_action(number);
    u8::try_from(128 + number).unwrap_or(1)
}

const SIGNALS: [i32; 3] = [SIGTERM, SIGINT, SIGCHLD];

/// Was the guard told to end codex? SIGINT alone is not that: the group gets it while codex is ended.
fn is_told_to_end(signals: &SignalPipe) -> bool {
    signals.has(SIGTERM)
}
