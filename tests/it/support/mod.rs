//! What every test needs: a place of its own, the program in it, and both codexes.

pub(crate) mod cli;
pub(crate) mod codex;
pub(crate) mod daemon;
pub(crate) mod lab;
#[path = "../../tools/model.rs"]
pub(crate) mod model;
pub(crate) mod ps;
pub(crate) mod user;

pub(crate) use cli::Cli;
pub(crate) use daemon::{Daemon, Turn, method};
pub(crate) use lab::Lab;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The limit of every wait. A turn of the real codex takes less than a second on an idle machine; twenty tests
/// side by side on two busy processors make that ten.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Waits until `done`, and says what did not come where the limit is reached.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LIMIT, "waited in vain: {what}");
        // What is waited for here (files, other processes) can only be looked at.
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Writes an executable script. Another process does it: a child that a test forks meanwhile would inherit a file that
/// is open for writing here, and such a file cannot be executed.
pub(crate) fn write_program(path: &Path, text: &str) {
    let mut writer = Command::new("sh")
        .args(["-c", "cat >\"$0\" && chmod 755 \"$0\""])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("sh can be started");
    let mut stdin = writer.stdin.take().expect("piped");
    stdin.write_all(text.as_bytes()).expect("sh reads");
    drop(stdin);
    assert!(writer.wait().expect("a child").success());
}

/// Copies an executable file, by another process as in [`write_program`].
pub(crate) fn copy_program(from: &Path, to: &Path) {
    let status = Command::new("cp").arg(from).arg(to).status();
    assert!(status.expect("cp can be started").success());
}
