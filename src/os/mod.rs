//! The operating system: cancelling, locks, processes, signals, streams, limits.
//!
//! Linux is what the program is written for: `/proc`, pidfds, the child subreaper and the parent-death signal have
//! no portable form. Nothing here knows what codex is.

mod cancel;
mod files;
mod limits;
mod lock;
mod process;
mod signals;
mod streams;
mod waker;

pub(crate) use cancel::{CancelToken, Cancellable, wait_for};
pub(crate) use files::{check_owner, open_regular_file, user_id, user_name};
pub(crate) use limits::{limit_open_files, open_files_before, raise_open_files};
pub(crate) use lock::{
    FileLock, TryLock, keep_locked, lock_holder, shown_holder, try_lock, try_lock_directory,
};
pub(crate) use process::{
    descendants, end_marked_below, has_ancestor, has_proc, is_alive, is_at_or_below, is_hidden,
    kill_below, kill_everything_below, parent_of, protect_from_other_processes,
    resident_of_children, signal_group, signal_name, start_of, stop_with_everything_below,
    suspended, ticks_since_boot,
};
pub(crate) use signals::{
    INTERRUPTED, end_by, end_by_sigint, keep_exit_statuses, on_end_signal, on_end_signal_or_hangup,
    stop_all_on_terminal_stop, unblock_signals,
};
pub(crate) use streams::{
    Blocking, PIPE_BUF, close_standard_streams, has_input, is_hung_up, wait_for_room,
};
pub(crate) use waker::Waker;
