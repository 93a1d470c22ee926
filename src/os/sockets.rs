//! Unix sockets: made private, connected to without waiting, and who is at the other end.

use super::{Pid, user_id};
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// Listens at `path`, with mode 0600 from the first moment, and a queue of `backlog` connections; nothing waits.
///
/// `bind` makes the file with the mode of the socket's inode less the umask (Linux, `unix_bind_bsd`), so the
/// mode is set before there is a file; the umask itself is the whole process's and is not touched.
///
/// # Errors
/// The operating system's.
pub(crate) fn listen(path: &Path, backlog: i32) -> io::Result<UnixListener> {
    let socket = socket()?;
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    // For a kernel that has another rule; until then the directory has to keep everybody else out.
    let mode = std::fs::symlink_metadata(path)?.permissions().mode() & 0o777;
    if mode != 0o600 {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    }
    rustix::net::listen(&socket, backlog)?;
    Ok(UnixListener::from(socket))
}

/// Connects to the socket at this path, without waiting where a stopped process's queue is full: the error is then
/// [`io::ErrorKind::WouldBlock`]. Reads and writes of the stream do not wait either.
///
/// # Errors
/// The operating system's.
pub(crate) fn connect_without_waiting(path: &Path) -> io::Result<UnixStream> {
    let socket = socket()?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    Ok(socket?)
}

/// The process at the other end of the connection, where it is one of this user's.
pub(crate) fn peer_of_this_user(stream: impl AsFd) -> Option<Pid> {
    let peer = rustix::net::sockopt::socket_peercred(stream).ok()?;
    (peer.uid.as_raw() == user_id()).then_some(peer.pid)
}
