//! Signals that this process gets: which ones end it, and what its starter has blocked or ignored.

use super::poll::{PollFlags, is_ready};
use crate::error::{Error, Kind, Result};
pub(crate) use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};
use signal_hook::consts::{SIGHUP, SIGTSTP};
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Lets this process learn how its children end, also where whoever started it ignores SIGCHLD: the kernel
/// reaps the children of such a process itself and keeps no exit status. What is executed from here has the
/// signal's default again.
///
/// # Errors
/// [`Kind::Io`] where no handler can be made.
pub(crate) fn keep_exit_statuses() -> Result<()> {
    // Any handler does; nobody looks at the flag.
    signal_hook::flag::register(SIGCHLD, Arc::default())
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

/// Has Ctrl-Z stop what this process has started, too, and `fg` continue it: codex is in a process group of its own,
/// which the terminal does not stop.
///
/// # Errors
/// As [`on_end_signal`].
pub(crate) fn stop_all_on_terminal_stop() -> Result<()> {
    match is_ignored(SIGTSTP) {
        true => Ok(()),
        false => on_signals(&[SIGTSTP], |_| super::stop_with_everything_below()),
    }
}

/// The exit status that stands for an end by SIGINT.
pub(crate) const INTERRUPTED: u8 = 130;

/// Ends this process as SIGINT does where nobody listens for it.
pub(crate) fn end_by_sigint() -> ! {
    // It does not come back unless there is no such signal.
    let _ = signal_hook::low_level::emulate_default_handler(SIGINT);
    std::process::exit(INTERRUPTED.into())
}

/// Ends this process as the signal does by default, without a core file. It comes back where the signal does not end
/// a process.
pub(crate) fn end_by_default_action(number: i32) {
    super::disable_core_files();
    let _ = signal_hook::low_level::emulate_default_handler(number);
    if let Some(signal) = super::Signal::from_named_raw(number) {
        super::signal_process(super::own_pid(), signal);
    }
}

/// Ends this process by SIGINT where that is the signal, else with the status that a shell gives it.
pub(crate) fn end_by(signal: i32) -> ! {
    match signal {
        SIGINT => end_by_sigint(),
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

fn on_signals(numbers: &'static [i32], mut told: impl FnMut(i32) + Send + 'static) -> Result<()> {
    let failed = |error| Error::os(Kind::Io, "cannot listen for signals", error);
    let mut signals = SignalPipe::register(numbers).map_err(failed)?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            loop {
                signals.wait(None);
                for number in numbers {
                    if signals.take(*number) {
                        told(*number);
                    }
                }
            }
        })
        .map_err(failed)?;
    Ok(())
}

/// Signals as something that can be waited for, and which of them came.
#[derive(Debug)]
pub(crate) struct SignalPipe {
    woken: UnixStream,
    came: Vec<(i32, Arc<AtomicUsize>)>,
}

impl SignalPipe {
    /// Takes these signals from now on, instead of what they do by default.
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub(crate) fn register(numbers: &[i32]) -> io::Result<SignalPipe> {
        let (woken, waker) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        let mut came = Vec::new();
        for &number in numbers {
            let flag = Arc::new(AtomicUsize::new(0));
            // The flag before the wake-up, so that it is seen by the thread that is woken.
            signal_hook::flag::register_usize(number, Arc::clone(&flag), 1)?;
            signal_hook::low_level::pipe::register(number, waker.try_clone()?)?;
            came.push((number, flag));
        }
        Ok(SignalPipe { woken, came })
    }

    /// Did this signal come since the last [`SignalPipe::take`] of it?
    pub(crate) fn has(&self, number: i32) -> bool {
        self.flag(number)
            .is_some_and(|flag| flag.load(Ordering::SeqCst) > 0)
    }

    /// The same, and forgets it.
    pub(crate) fn take(&self, number: i32) -> bool {
        self.flag(number)
            .is_some_and(|flag| flag.swap(0, Ordering::SeqCst) > 0)
    }

    fn flag(&self, number: i32) -> Option<&AtomicUsize> {
        let found = self.came.iter().find(|(known, _)| *known == number);
        found.map(|(_, flag)| &**flag)
    }

    /// Waits for one of the signals, at most until `deadline`.
    pub(crate) fn wait(&mut self, deadline: Option<Instant>) {
        is_ready(&self.woken, PollFlags::IN, deadline);
        let mut sink = [0; 64];
        while matches!(self.woken.read(&mut sink), Ok(1..)) {}
    }
}
