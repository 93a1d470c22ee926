//! Signal handling of this process: handlers, inherited masks and ignored signals, ending by a signal.

use super::poll::{PollFlags, is_ready};
use crate::error::{Error, Kind, Result};
pub(crate) use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};
use signal_hook::consts::{SIGHUP, SIGTSTP};
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Installs a handler for SIGCHLD. If the signal is inherited as ignored, the kernel itself reaps the children of this
/// process and discards their exit statuses. Executed programs have the default action again.
///
/// # Errors
/// [`Kind::Io`] if the handler cannot be installed.
pub(crate) fn keep_exit_statuses() -> Result<()> {
    // Any handler will do; the flag is never read.
    signal_hook::flag::register(SIGCHLD, Arc::default())
        .map(|_| ())
        .map_err(|error| Error::os(Kind::Io, "cannot listen for signals", error))
}

/// Unblocks all signals for this process and its children. A parent that uses a `signalfd` blocks them, and a blocked
/// SIGCHLD or SIGTERM would never be delivered here.
pub(crate) fn unblock_signals() {
    // It cannot fail with the full set.
    let _ = nix::sys::signal::SigSet::all().thread_unblock();
}

/// Calls `handler` with the signal's number on SIGINT and SIGTERM, in a thread that lives as long as the process.
///
/// # Errors
/// [`Kind::Io`] if a handler, socket pair or thread cannot be created.
pub(crate) fn on_end_signal(handler: impl FnMut(i32) + Send + 'static) -> Result<()> {
    on_signals(&[SIGINT, SIGTERM], handler)
}

/// As [`on_end_signal`], and on SIGHUP unless that is ignored, as under `nohup`.
///
/// # Errors
/// As [`on_end_signal`].
pub(crate) fn on_end_signal_or_hangup(handler: impl FnMut(i32) + Send + 'static) -> Result<()> {
    match is_ignored(SIGHUP) {
        true => on_signals(&[SIGINT, SIGTERM], handler),
        false => on_signals(&[SIGINT, SIGTERM, SIGHUP], handler),
    }
}

/// Makes Ctrl-Z stop the descendants of this process too, and `fg` continue them: codex is in another process group,
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

/// The exit status of a process that SIGINT ended, as a shell reports it.
pub(crate) const INTERRUPTED: u8 = 130;

/// Ends this process by SIGINT's default action.
pub(crate) fn end_by_sigint() -> ! {
    // It returns only for an unknown signal.
    let _ = signal_hook::low_level::emulate_default_handler(SIGINT);
    std::process::exit(INTERRUPTED.into())
}

/// Ends this process by the signal's default action, without a core file. Returns if that action does not terminate.
pub(crate) fn end_by_default_action(number: i32) {
    super::disable_core_files();
    let _ = signal_hook::low_level::emulate_default_handler(number);
    if let Some(signal) = super::Signal::from_named_raw(number) {
        super::signal_process(super::own_pid(), signal);
    }
}

/// Ends this process by SIGINT if `signal` is that, otherwise with the exit status that a shell reports for the signal.
pub(crate) fn end_by(signal: i32) -> ! {
    match signal {
        SIGINT => end_by_sigint(),
        other => std::process::exit(128 + other),
    }
}

/// Whether this process ignores the signal.
fn is_ignored(number: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (number - 1) & 1 == 1)
}

fn on_signals(
    numbers: &'static [i32],
    mut handler: impl FnMut(i32) + Send + 'static,
) -> Result<()> {
    let failed = |error| Error::os(Kind::Io, "cannot listen for signals", error);
    let mut signals = SignalPipe::register(numbers).map_err(failed)?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            loop {
                signals.wait(None);
                for number in numbers {
                    if signals.take(*number) {
                        handler(*number);
                    }
                }
            }
        })
        .map_err(failed)?;
    Ok(())
}

/// Received signals that a thread can wait for: a self-pipe with a flag for each signal.
#[derive(Debug)]
pub(crate) struct SignalPipe {
    receiver: UnixStream,
    flags: Vec<(i32, Arc<AtomicUsize>)>,
}

impl SignalPipe {
    /// Installs handlers for these signals, in place of their default actions.
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub(crate) fn register(numbers: &[i32]) -> io::Result<SignalPipe> {
        let (receiver, sender) = UnixStream::pair()?;
        receiver.set_nonblocking(true)?;
        let mut flags = Vec::new();
        for &number in numbers {
            let flag = Arc::new(AtomicUsize::new(0));
            // Handlers run in the order of registration: the flag must be set when the thread is woken.
            signal_hook::flag::register_usize(number, Arc::clone(&flag), 1)?;
            signal_hook::low_level::pipe::register(number, sender.try_clone()?)?;
            flags.push((number, flag));
        }
        Ok(SignalPipe { receiver, flags })
    }

    /// Whether the signal was received since its last [`SignalPipe::take`].
    pub(crate) fn has(&self, number: i32) -> bool {
        self.flag(number)
            .is_some_and(|flag| flag.load(Ordering::SeqCst) > 0)
    }

    /// As [`SignalPipe::has`], and resets the flag.
    pub(crate) fn take(&self, number: i32) -> bool {
        self.flag(number)
            .is_some_and(|flag| flag.swap(0, Ordering::SeqCst) > 0)
    }

    fn flag(&self, number: i32) -> Option<&AtomicUsize> {
        let found = self.flags.iter().find(|(known, _)| *known == number);
        found.map(|(_, flag)| &**flag)
    }

    /// Waits for one of the signals, at most until `deadline`.
    pub(crate) fn wait(&mut self, deadline: Option<Instant>) {
        is_ready(&self.receiver, PollFlags::IN, deadline);
        let mut sink = [0; 64];
        while matches!(self.receiver.read(&mut sink), Ok(1..)) {}
    }
}
