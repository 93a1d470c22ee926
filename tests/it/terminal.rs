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
    /// All that came.
    shown: Vec<u8>,
    /// How much of it was awaited.
    awaited: usize,
}

impl Terminal {
    /// Runs `command` through the shell, in `directory`, with these variables and no others but PATH.
    pub(crate) fn start(
        script: &Path,
        command: &str,
        directory: &Path,
        environment: &[(&str, &str)],
    ) -> Terminal {
        let mut child = Command::new(script)
            .args(["-qefc", command, "/dev/null"])
            .current_dir(directory)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("SHELL", "/bin/sh")
            .env("HOME", directory)
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
            shown: Vec::new(),
            awaited: 0,
        }
    }

    /// Types.
    pub(crate) fn keys(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    /// Waits until `text` comes to the terminal and gives what came before it.
    #[track_caller]
    pub(crate) fn wait(&mut self, text: &str) -> String {
        let end = Instant::now() + LIMIT;
        loop {
            let pending = &self.shown[self.awaited..];
            if let Some(at) = memchr::memmem::find(pending, text.as_bytes()) {
                let before = String::from_utf8_lossy(&pending[..at]).into_owned();
                self.awaited += at + text.len();
                return before;
            }
            let left = end.saturating_duration_since(Instant::now());
            match self.bytes.recv_timeout(left) {
                Ok(bytes) => self.shown.extend(bytes),
                Err(RecvTimeoutError::Timeout) => {
                    panic!("{text:?} did not come in {LIMIT:?}, but {:?}", self.all())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("the program ended before {text:?}, after {:?}", self.all())
                }
            }
        }
    }

    /// All that came so far, as it was written.
    pub(crate) fn all(&self) -> String {
        String::from_utf8_lossy(&self.shown).into_owned()
    }

    /// What a terminal of so many columns shows after that: its lines, the empty ones too, but not at the end.
    pub(crate) fn screen(&self, columns: usize) -> Vec<String> {
        screen(&self.all(), columns)
    }
}

/// What a terminal makes of what is written to it, as far as it is used here. A character beyond Latin and
/// punctuation takes two columns.
fn screen(written: &str, columns: usize) -> Vec<String> {
    let mut lines: Vec<Vec<char>> = vec![Vec::new()];
    let (mut row, mut column, mut wraps) = (0, 0, true);
    let mut rest = written;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        let width = if c >= '\u{2e80}' && c != '\u{fffd}' {
            2
        } else {
            1
        };
        match c {
            '\r' => column = 0,
            '\n' => row += 1,
            '\u{1b}' => {
                let end = rest.find(|c: char| c.is_ascii_alphabetic());
                let end = end.expect("an escape sequence ends") + 1;
                match &rest[..end] {
                    "[K" => lines[row].truncate(column),
                    "[?7l" => wraps = false,
                    "[?7h" => wraps = true,
                    color => assert!(color.ends_with('m'), "{color}"),
                }
                rest = &rest[end..];
            }
            _ => {
                assert!(!c.is_control(), "{c:?} in {written:?}");
                if column + width > columns {
                    if wraps {
                        row += 1;
                        column = 0;
                    } else {
                        column = columns - width;
                    }
                }
                if lines.len() <= row {
                    lines.resize(row + 1, Vec::new());
                }
                let line = &mut lines[row];
                line.resize(line.len().max(column), ' ');
                // The second column of a wide character holds nothing.
                line.splice(
                    column..line.len().min(column + width),
                    std::iter::once(c).chain(std::iter::repeat_n('\0', width - 1)),
                );
                column += width;
            }
        }
        if lines.len() <= row {
            lines.resize(row + 1, Vec::new());
        }
    }
    let lines = lines.into_iter();
    let mut lines: Vec<String> = lines
        .map(|line| line.into_iter().filter(|c| *c != '\0').collect())
        .collect();
    while lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    lines
}

#[test]
fn emulated_terminal_interprets_output() {
    for (written, shown) in [
        ("abc\r\nd", &["abc", "d"][..]),
        ("abc\rx", &["xbc"]),
        ("abc\r\u{1b}[Kx", &["x"]),
        ("abcdef", &["abcde", "f"]),
        ("\u{1b}[?7labcdef\u{1b}[?7h", &["abcdf"]),
        ("\u{1b}[31mab\u{1b}[0m", &["ab"]),
        ("日本語", &["日本", "語"]),
        ("\r\na\r\n\r\n", &["", "a"]),
    ] {
        assert_eq!(screen(written, 5), shown, "{written:?}");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
