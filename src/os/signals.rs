//! Signals that this process gets: which ones end it, and what its starter has blocked or ignored.

use crate::error::{Error, Kind, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGTSTP};
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Lets this process learn how its children end, also where SIGCHLD was ignored by who started it: the kernel
/// buries the children of such a process itself and keeps no exit status. What is executed from here has the
/// signal's default again.
///
/// # Errors
/// [`Kind::Io`] where no handler can be made.
pub(crate) fn keep_exit_statuses() -> Result<()> {
    // Any handler does; nobody looks at the flag.
    signal_hook::flag::register(signal_hook::consts::SIGCHLD, Arc::default())
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

fn on_signals(numbers: &[i32], mut told: impl FnMut(i32) + Send + 'static) -> Result<()> {
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::AtomicUsize;
    let failed = |error| Error::os(Kind::Io, "cannot listen for signals", error);
    let (mut woken, waker) = UnixStream::pair().map_err(failed)?;
    let counts: Vec<_> = numbers
        .iter()
        .map(|number| (*number, Arc::new(AtomicUsize::new(0))))
        .collect();
    for (number, count) in &counts {
        // The mark before the wake-up, so that whoever is woken sees it.
        signal_hook::flag::register_usize(*number, Arc::clone(count), 1).map_err(failed)?;
        signal_hook::low_level::pipe::register(*number, waker.try_clone().map_err(failed)?)
            .map_err(failed)?;
    }
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let mut sink = [0; 1];
            while matches!(woken.read(&mut sink), Ok(1)) {
                for (number, count) in &counts {
                    if count.swap(0, Ordering::SeqCst) > 0 {
                        told(*number);
                    }
                }
            }
        })
        .map_err(failed)?;
    Ok(())
}
