//! Lets other processes of this program ask a plugin to release a server that it keeps: each plugin that keeps servers
//! listens on a socket in the private directory for sockets.
//!
//! A request is a kind of target and its name, ended by closing the write side. The response is the close of the
//! connection, once nothing of the target is held, or if a turn holds it; it has no content. Processes below a guard
//! are rejected: what an agent starts must not end other agents' servers.

use crate::mcp;
use crate::os::{self, PollFd, PollFlags, Waker};
use crate::paths::Paths;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

/// The prefix of a socket's name; the plugin's pid follows.
const NAME_START: &str = "control-";
/// The longest request, in bytes: it contains a path.
const LONGEST: u64 = 8 << 10;
/// How long a peer may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(500);
/// How long the requester waits for each plugin: a server takes 0.07 s to exit, and 1 s if it has to be killed.
const RESPONSE_TIMEOUT: Duration = Duration::from_millis(1500);

/// What is to be released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReleaseTarget<'a> {
    /// The server of the workspace with this canonical path.
    Workspace(&'a Path),
    /// The server that has the thread with this id loaded, in any workspace.
    Thread(&'a str),
}

impl<'a> ReleaseTarget<'a> {
    fn encode(self) -> Vec<u8> {
        match self {
            ReleaseTarget::Workspace(path) => {
                [b"workspace\0", path.as_os_str().as_bytes()].concat()
            }
            ReleaseTarget::Thread(id) => [b"thread\0", id.as_bytes()].concat(),
        }
    }

    fn decode(request: &'a [u8]) -> Option<ReleaseTarget<'a>> {
        if let Some(path) = request.strip_prefix(b"workspace\0") {
            return Some(ReleaseTarget::Workspace(Path::new(OsStr::from_bytes(path))));
        }
        let id = request.strip_prefix(b"thread\0")?;
        Some(ReleaseTarget::Thread(std::str::from_utf8(id).ok()?))
    }
}

/// Asks every plugin of this user to release the target, if it is idle. Returns when they have, at once if there are
/// none.
pub(crate) fn request_release(target: ReleaseTarget<'_>, places: &Paths) {
    let directory = mcp::runtime_place(mcp::runtime_dir().as_deref(), &places.profile);
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(NAME_START) && name.ends_with(".sock") {
            // A stale socket: its plugin has exited.
            let _ = request(&entry.path(), target);
        }
    }
}

fn request(socket: &Path, target: ReleaseTarget<'_>) -> io::Result<()> {
    let mut stream = mcp::connect_privately(socket)?;
    stream.set_read_timeout(Some(RESPONSE_TIMEOUT))?;
    stream.write_all(&target.encode())?;
    stream.shutdown(Shutdown::Write)?;
    stream.read_to_end(&mut Vec::new()).map(drop)
}

/// The listening side.
#[derive(Debug)]
pub(super) struct Control {
    stop: Waker,
    thread: Option<JoinHandle<()>>,
}

impl Control {
    /// Starts to listen; `release` is called with each target and returns whether it was held.
    ///
    /// # Errors
    /// The private directory, the socket, an eventfd or the thread cannot be created.
    pub(super) fn start(
        places: &Paths,
        release: impl Fn(ReleaseTarget<'_>) -> bool + Send + 'static,
    ) -> crate::error::Result<Control> {
        let failed = |error| {
            let what = "cannot listen for requests to release a workspace";
            crate::error::Error::os(crate::error::Kind::Io, what, error)
        };
        let name = format!("{NAME_START}{}", std::process::id());
        let listening =
            mcp::listen_privately(mcp::runtime_dir().as_deref(), &places.profile, &name)?;
        let stop = Waker::new().map_err(failed)?;
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                loop {
                    let mut fds = [
                        PollFd::new(&stopped, PollFlags::IN),
                        PollFd::new(listening.listener(), PollFlags::IN),
                    ];
                    // poll fails only for lack of memory; the next accept is tried then.
                    let _ = os::poll(&mut fds, None);
                    if !fds[0].revents().is_empty() {
                        return;
                    }
                    if let Ok((stream, _)) = listening.listener().accept() {
                        // A peer without a valid request is ignored.
                        let _ = serve(stream, &release);
                    }
                }
            })
            .map_err(failed)?;
        Ok(Control {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop.wake();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by it.
            let _ = thread.join();
        }
    }
}

fn serve(mut stream: UnixStream, release: &dyn Fn(ReleaseTarget<'_>) -> bool) -> io::Result<()> {
    let Some(peer) = os::peer_of_this_user(&stream) else {
        return Ok(());
    };
    if os::has_ancestor(peer, crate::backend::guard::NAME) {
        log::warn!(
            "ignored a request to release a workspace from process {peer:?}, which an agent has started"
        );
        return Ok(());
    }
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
    let mut request = Vec::new();
    (&mut stream).take(LONGEST).read_to_end(&mut request)?;
    if let Some(target) = ReleaseTarget::decode(&request) {
        release(target);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_requests() {
        for target in [
            ReleaseTarget::Workspace(Path::new("/a b/\n")),
            ReleaseTarget::Thread("01a21bef"),
        ] {
            assert_eq!(ReleaseTarget::decode(&target.encode()), Some(target));
        }
        assert_eq!(ReleaseTarget::decode(b"workspace"), None);
        assert_eq!(ReleaseTarget::decode(b""), None);
    }
}
