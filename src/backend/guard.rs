//! The process between the plugin and codex.
//!
//! codex's shell tools start sessions of their own, so a signal to codex's process group does not reach them, and they
//! are orphaned when codex dies without cleanup (SIGTERM, SIGKILL, a crash). So each codex gets a small parent: this
//! executable, started as `codex-guard`. It is a child subreaper, so that every process started by codex stays below it
//! and can be found; it sets a parent-death signal, so that SIGKILL of the plugin ends codex, too; and it ends codex in
//! steps.
//!
//! It also keeps the workspace locked while it lives: a restarted plugin waits for the codex of the one that was
//! killed.
//!
//! When codex exits by itself, the guard only passes on its exit status: processes that an agent has started to outlive
//! the turn are not ended.
//!
//! The guard has no channel of its own. Its standard streams are codex's, and it closes them once codex runs. SIGTERM
//! tells it to end codex. It reports a codex that could not be started by a line on stdout that codex never prints
//! ([`SPAWN_ERROR`]) and exit status 127.

use crate::os::{self, Pid, SIGCHLD, SIGINT, SIGTERM, Signal, SignalPipe};
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

/// The first argument that makes this executable a guard.
pub(crate) const NAME: &str = "codex-guard";
/// The beginning of the line that reports that codex could not be started; an errno follows.
pub(crate) const SPAWN_ERROR: &str = "plexum-openai codex-guard: cannot start codex: errno ";

/// How long a codex that exits when its stdin is closed may take. It needs 0.07 s (0.135 to 0.169); after SIGINT it
/// would not record the turn as aborted.
pub(crate) const EOF_GRACE: Duration = Duration::from_millis(500);
/// How long codex may take to exit after SIGINT. It needs 0.15 s to record the turn as aborted (0.135 and 0.169).
const INT_GRACE: Duration = Duration::from_millis(1500);
/// How long codex may take to exit after SIGTERM.
const TERM_GRACE: Duration = Duration::from_millis(1000);
/// How long processes left by codex may take to exit after SIGTERM.
const SWEEP_GRACE: Duration = Duration::from_millis(300);
/// How long killed processes may take to disappear; only uninterruptible sleep takes longer.
const KILL_WAIT: Duration = Duration::from_millis(1000);
/// The longest time from SIGTERM to the guard's own exit, with a margin for a loaded machine. A cancelled turn is answered
/// 5 s after the cancel at the latest, and what a guard that hangs has left is killed before.
pub(crate) const LONGEST_ENDING: Duration = Duration::from_millis(4200);

/// Runs codex and exits as it exits. The arguments: the plugin's pid; codex's limit of open files, or 0 to leave it;
/// the milliseconds that codex may take to exit once its stdin is closed; a file to keep locked, or an empty path; the
/// executable; its arguments.
pub(crate) fn run(mut arguments: impl Iterator<Item = OsString>) -> u8 {
    let mut number = || arguments.next()?.to_str()?.parse::<u64>().ok();
    let plugin = number().and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
    let (Some(plugin), Some(files), Some(eof_grace), Some(lock), Some(codex)) = (
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
    // A process that could trace the guard could start processes below it, which may use the daemon's tools.
    os::protect_from_other_processes();
    os::set_parent_death_signal(Signal::TERM);
    os::become_subreaper();
    let signals = SignalPipe::register(&SIGNALS);
    // Before the plugin is checked: otherwise codex could run in a workspace that another plugin takes for free.
    let _lock = (!lock.is_empty()).then(|| os::keep_locked(Path::new(&lock)));
    // The plugin may have died before the parent-death signal was set.
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
    // Only codex holds its streams then: the plugin waits for their end.
    os::close_standard_streams();

    let mut status = None;
    while status.is_none() {
        signals.wait(None);
        status = reap(codex);
        if status.is_none() && end_requested(&signals) {
            return mirror(end(codex, eof_grace, &mut signals));
        }
    }
    // A request to end codex that came as it exited still means that nothing may keep running.
    if end_requested(&signals) {
        sweep(&mut signals);
    }
    mirror(status)
}

/// Where this process is PID 1, as in a container: starts the program again as its child and reaps the orphans that
/// codex and its tools leave. Returns the exit status of the program then.
///
/// The program itself cannot do that: waiting for any child would reap those that it waits for by pid.
pub(crate) fn reap_as_init() -> Option<u8> {
    if !os::is_init() {
        return None;
    }
    // It has the environment of the program; this keeps other processes from reading it.
    os::protect_from_other_processes();
    let mut signals = SignalPipe::register(&SIGNALS).ok()?;
    // Without /proc or a free process the program runs as PID 1, and orphans are not reaped.
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
            // PID 1 cannot kill itself by a signal.
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

/// Ends codex in steps, then whatever it left. Returns its status, if it exited.
fn end(codex: Pid, eof_grace: Duration, signals: &mut SignalPipe) -> Option<ExitStatus> {
    // Only the plugin writes to codex's stdin, and has closed it or died.
    let mut status = wait_for_end(codex, eof_grace, signals);
    for (signal, grace) in [(Signal::INT, INT_GRACE), (Signal::TERM, TERM_GRACE)] {
        if status.is_none() {
            // The guard is in this group, too, and handles both signals.
            os::signal_group(os::own_group(), signal);
            status = wait_for_end(codex, grace, signals);
        }
    }
    if status.is_none() {
        os::signal_process(codex, Signal::KILL);
        status = wait_for_end(codex, KILL_WAIT, signals);
    }
    sweep(signals);
    status
}

/// Waits for codex's exit, at most this long.
fn wait_for_end(codex: Pid, time: Duration, signals: &mut SignalPipe) -> Option<ExitStatus> {
    let deadline = Instant::now() + time;
    let mut status = None;
    while status.is_none() && Instant::now() < deadline {
        signals.wait(Some(deadline));
        status = reap(codex);
    }
    status
}

/// Ends every process below this one: SIGTERM, a short grace period, then SIGKILL until none is left.
fn sweep(signals: &mut SignalPipe) {
    os::end_own_descendants(SWEEP_GRACE, KILL_WAIT, |next_look| {
        // SIGCHLD comes for children only; deeper descendants are polled.
        signals.wait(Some(next_look));
        while os::reap().is_some() {}
    });
}

/// Reaps every child that has exited. Returns codex's status if it was among them.
fn reap(codex: Pid) -> Option<ExitStatus> {
    let mut found = None;
    while let Some((pid, status)) = os::reap() {
        if pid == codex {
            found = Some(status);
        }
    }
    found
}

/// Exits as codex did: with its exit status, or by its signal.
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

/// Whether the guard was told to end codex. SIGINT does not count: the group gets it while codex is ended.
fn end_requested(signals: &SignalPipe) -> bool {
    signals.has(SIGTERM)
}
