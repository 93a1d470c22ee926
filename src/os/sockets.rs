//! Unix sockets: private listeners, non-blocking connects, and the credentials of the peer.

use super::{Pid, user_id};
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// Creates a non-blocking listener at `path` with a queue of `backlog` connections; the file has mode 0600 from its
/// creation on.
///
/// `bind` creates the file with the mode of the socket's inode less the umask (Linux, `unix_bind_bsd`), so the mode is
/// set before. The umask is not changed, since it applies to all threads.
///
/// # Errors
/// The operating system's.
pub(crate) fn listen(path: &Path, backlog: i32) -> io::Result<UnixListener> {
    let socket = socket()?;
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    // For a kernel with another rule; until here only the directory's mode keeps other users out.
    let mode = std::fs::symlink_metadata(path)?.permissions().mode() & 0o777;
    if mode != 0o600 {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    }
    rustix::net::listen(&socket, backlog)?;
    Ok(UnixListener::from(socket))
}

/// Connects to the socket at this path. The stream is in non-blocking mode.
///
/// # Errors
/// The operating system's; [`io::ErrorKind::WouldBlock`] if the listener's queue is full, as that of a stopped process.
pub(crate) fn connect_nonblocking(path: &Path) -> io::Result<UnixStream> {
    let socket = socket()?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    Ok(socket?)
}

/// The pid of the peer, if it runs as this user.
pub(crate) fn peer_of_this_user(stream: impl AsFd) -> Option<Pid> {
    let peer = rustix::net::sockopt::socket_peercred(stream).ok()?;
    (peer.uid.as_raw() == user_id()).then_some(peer.pid)
}
