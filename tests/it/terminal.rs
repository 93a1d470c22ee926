//! A program on a terminal of its own, typed to and read from as a person would.
//!
//! The terminal is made by `script`(1), which every Debian has; a pseudo-terminal by hand would need code of
//! the kind that this crate forbids itself.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How long anything may take to appear.
const LIMIT: Duration = Duration::from_secs(20);

/// A running program and what its terminal shows.
pub(crate) struct Terminal {
    child: Child,
    keys: ChildStdin,
    bytes: Receiver<Vec<u8>>,
    /// What came and was not awaited yet.
    pending: String,
}

impl Terminal {
    /// Runs `command` through the shell, in `folder`, with these variables and no others but PATH.
    pub(crate) fn start(
        script: &Path,
        command: &str,
        folder: &Path,
        environment: &[(&str, &str)],
    ) -> Terminal {
        let mut child = Command::new(script)
            .args(["-qefc", command, "/dev/null"])
            .current_dir(folder)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("SHELL", "/bin/sh")
            .env("HOME", folder)
            .env("TERM", "dumb")
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let keys = child.stdin.take().unwrap();
        let mut shown = child.stdout.take().unwrap();
        let (send, bytes) = channel();
        // Ends with the terminal: `drop` ends that, and nobody waits for a reader that has nothing to read.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(got) = shown.read(&mut buffer) {
                if got == 0 || send.send(buffer[..got].to_vec()).is_err() {
                    break;
                }
            }
        });
        Terminal {
            child,
            keys,
            bytes,
            pending: String::new(),
        }
    }

    /// Types.
    pub(crate) fn keys(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    /// Waits until `text` is on the terminal and gives what came before it.
    pub(crate) fn wait(&mut self, text: &str) -> String {
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(at) = self.pending.find(text) {
                let rest = self.pending.split_off(at + text.len());
                let mut before = std::mem::replace(&mut self.pending, rest);
                before.truncate(at);
                return before;
            }
            match self
                .bytes
                .recv_timeout(end.saturating_duration_since(Instant::now()))
            {
                Ok(bytes) => self.pending.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Timeout) => {
                    panic!("{text:?} did not come in {LIMIT:?}, but {:?}", self.pending)
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!(
                        "the program ended before {text:?}, after {:?}",
                        self.pending
                    )
                }
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
