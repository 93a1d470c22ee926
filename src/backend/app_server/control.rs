//! How other processes of this program have a plugin let go of what it keeps: a socket for each plugin that keeps
//! servers, in the private directory for sockets.
//!
//! A request is the kind of thing that is meant and its name, up to the end of what is written; the answer is that the
//! connection is closed, once nothing of that is held any more or a turn holds it. Nothing is told. Whoever is below a guard
//! is refused: what an agent starts has no say in other agents' servers.

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

/// How the name of a socket begins; the plugin's pid follows.
const NAME_START: &str = "control-";
/// The longest request, in bytes: a path.
const LONGEST: u64 = 8 << 10;
/// How long a peer may take to say what it wants.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long whoever asks waits for each plugin: the end of a server takes 0.07 s, and 1 s where it has to be killed.
const ANSWER: Duration = Duration::from_millis(1500);

/// What is to be let go of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held<'a> {
    /// The workspace of this canonical path.
    Workspace(&'a Path),
    /// The thread of this id, whichever workspace it is of.
    Thread(&'a str),
}

impl<'a> Held<'a> {
    fn encode(self) -> Vec<u8> {
        match self {
            Held::Workspace(path) => [b"workspace\0", path.as_os_str().as_bytes()].concat(),
            Held::Thread(id) => [b"thread\0", id.as_bytes()].concat(),
        }
    }

    fn decode(request: &'a [u8]) -> Option<Held<'a>> {
        if let Some(path) = request.strip_prefix(b"workspace\0") {
            return Some(Held::Workspace(Path::new(OsStr::from_bytes(path))));
        }
        let id = request.strip_prefix(b"thread\0")?;
        Some(Held::Thread(std::str::from_utf8(id).ok()?))
    }
}

/// Has every plugin of this user let go of this, where it is idle. Returns when they have, at once where there are none.
pub(crate) fn ask_to_release(held: Held<'_>, places: &Paths) {
    let directory = mcp::runtime_place(mcp::runtime_dir().as_deref(), &places.profile);
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(NAME_START) && name.ends_with(".sock") {
            // One that is not there any more holds nothing.
            let _ = ask(&entry.path(), held);
        }
    }
}

fn ask(socket: &Path, held: Held<'_>) -> io::Result<()> {
    let mut stream = mcp::connect_privately(socket)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.write_all(&held.encode())?;
    stream.shutdown(Shutdown::Write)?;
    stream.read_to_end(&mut Vec::new()).map(drop)
}

/// The plugin's side.
#[derive(Debug)]
pub(super) struct Control {
    stop: Waker,
    thread: Option<JoinHandle<()>>,
}

impl Control {
    /// Listens, and calls `release` with what somebody else wants.
    ///
    /// # Errors
    /// A private directory, a descriptor or a thread cannot be had.
    pub(super) fn start(
        places: &Paths,
        release: impl Fn(Held<'_>) -> bool + Send + 'static,
    ) -> crate::error::Result<Control> {
        let failed = |error| {
            let what = "cannot listen for who wants a workspace";
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
                    // An error, a lack of memory, is a wait that ended early.
                    let _ = os::poll(&mut fds, None);
                    if !fds[0].revents().is_empty() {
                        return;
                    }
                    if let Ok((stream, _)) = listening.listener().accept() {
                        // Whoever does not say what it wants gets nothing.
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
            // A panic over there was reported there.
            let _ = thread.join();
        }
    }
}

fn serve(mut stream: UnixStream, release: &dyn Fn(Held<'_>) -> bool) -> io::Result<()> {
    let Some(peer) = os::peer_of_this_user(&stream) else {
        return Ok(());
    };
    if os::has_ancestor(peer, crate::backend::guard::NAME) {
        log::warn!("process {peer:?}, which an agent has started, asked for another's workspace");
        return Ok(());
    }
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    (&mut stream).take(LONGEST).read_to_end(&mut request)?;
    if let Some(held) = Held::decode(&request) {
        release(held);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_requests() {
        for held in [
            Held::Workspace(Path::new("/a b/\n")),
            Held::Thread("01a21bef"),
        ] {
            assert_eq!(Held::decode(&held.encode()), Some(held));
        }
        assert_eq!(Held::decode(b"workspace"), None);
        assert_eq!(Held::decode(b""), None);
    }
}
