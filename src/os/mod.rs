//! The operating system: cancellation, files, locks, polling, processes, signals, sockets, streams, limits.
//!
//! All system calls beyond std's are made here (`make lint` checks that), and nothing here depends on codex. The
//! program needs Linux: `/proc`, pidfds, the child subreaper and the parent-death signal have no portable form.

mod cancel;
mod files;
mod limits;
mod lock;
mod poll;
mod process;
mod signals;
mod sockets;
mod streams;
mod tree;
mod waker;

pub(crate) use cancel::{CancelToken, Cancellable, wait_for_cancel};
#[cfg(test)]
pub(crate) use files::make_fifo;
pub(crate) use files::{
    Directory, check_owner, create_memfd, create_private_file, exchange, has_access,
    is_symlink_error, open_options, open_options_nofollow, open_regular_file, start_writing,
    user_id, user_name,
};
pub(crate) use limits::{limit_open_files, open_files_before, raise_open_files};
pub(crate) use lock::{
    FileLock, TryLock, describe_holder, keep_locked, lock_file_until, lock_holder, retry_until,
    try_lock, try_lock_directory, try_lock_file, unlock_file,
};
pub(crate) use poll::{PollFd, PollFlags, is_ready, poll};
pub(crate) use process::{
    Pid, Signal, become_subreaper, disable_core_files, has_ancestor, has_ended, has_proc, is_alive,
    is_at_or_below, is_hidden, is_init, largest_child_resident, open_pidfd, own_group, own_parent,
    own_pid, parent_of, protect_from_other_processes, reap, set_parent_death_signal, signal_group,
    signal_name, signal_process, start_of, suspended, ticks_since_boot,
};
pub(crate) use rustix::fs::Access;
pub(crate) use rustix::io::Errno;
pub(crate) use signals::{
    INTERRUPTED, SIGCHLD, SIGINT, SIGTERM, SignalPipe, end_by, end_by_default_action,
    end_by_sigint, keep_exit_statuses, on_end_signal, on_end_signal_or_hangup,
    stop_all_on_terminal_stop, unblock_signals,
};
pub(crate) use sockets::{connect_nonblocking, listen, peer_of_this_user};
pub(crate) use streams::{
    Blocking, PIPE_BUF, close_standard_streams, enlarge_pipe, has_input, is_hung_up, is_pipe,
    set_nonblocking, terminal_size, wait_for_room,
};
pub(crate) use tree::{
    descendants, end_marked_below, end_own_descendants, kill_below, kill_everything_below,
    stop_with_everything_below,
};
pub(crate) use waker::Waker;
