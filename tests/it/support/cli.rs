//! Runs the program on the command line and compares everything it said.

use super::{LIMIT, Lab};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// A command line to be.
pub(crate) struct Cli<'a> {
    lab: &'a Lab,
    args: Vec<OsString>,
    env: Vec<(OsString, Option<OsString>)>,
    directory: PathBuf,
    stdin: Vec<u8>,
    /// Where root may not write, it shall not.
    plain: bool,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// The exit status, or 128 and the signal's number, as a shell has it.
    pub(crate) status: i32,
    lab: String,
}

impl<'a> Cli<'a> {
    /// `plexum-openai` with these arguments, in the lab's workspace, with an empty stdin.
    pub(crate) fn new<T: Into<OsString>>(
        lab: &'a Lab,
        args: impl IntoIterator<Item = T>,
    ) -> Cli<'a> {
        Cli {
            lab,
            args: args.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            directory: lab.workspace(),
            stdin: Vec::new(),
            plain: false,
        }
    }

    /// As a user whom the modes of files bind; root is bound by them too then.
    pub(crate) fn bound_by_modes(mut self) -> Self {
        self.plain = rustix::process::geteuid().is_root();
        self
    }

    pub(crate) fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub(crate) fn args(self, args: &[&str]) -> Self {
        args.iter().fold(self, |cli, arg| cli.arg(arg))
    }

    pub(crate) fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), Some(value.into())));
        self
    }

    pub(crate) fn without_env(mut self, name: &str) -> Self {
        self.env.push((name.into(), None));
        self
    }

    pub(crate) fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = directory.into();
        self
    }

    /// Starts it with pipes to all its streams, for a test that does more than wait.
    pub(crate) fn spawn(&self) -> Child {
        let mut command = self.command();
        command.spawn().expect("the program can be started")
    }

    /// Starts it with these streams instead of pipes that are made for it.
    pub(crate) fn spawn_with(&self, stdin: impl Into<Stdio>, stdout: impl Into<Stdio>) -> Child {
        let mut command = self.command();
        let command = command.stdin(stdin).stdout(stdout);
        command.spawn().expect("the program can be started")
    }

    /// Runs it with a stdout whose reader has gone already: the exit status, and what it said on stderr.
    #[track_caller]
    pub(crate) fn run_unread(&self) -> (i32, String) {
        let (reader, stdout) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut child = self.spawn_with(Stdio::null(), stdout);
        let stderr = collect(child.stderr.take().expect("piped"));
        let status = wait(&mut child, LIMIT);
        let stderr = stderr.join().expect("the reader does not panic");
        (status.code().unwrap_or(-1), stderr)
    }

    fn command(&self) -> Command {
        const PROGRAM: &str = env!("CARGO_BIN_EXE_plexum-openai");
        let mut command = Command::new(if self.plain { "setpriv" } else { PROGRAM });
        if self.plain {
            command.args(["--bounding-set", "-dac_override,-dac_read_search", PROGRAM]);
        }
        command
            .args(&self.args)
            .env_clear()
            .envs(self.lab.env())
            .current_dir(&self.directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for (name, value) in &self.env {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }

    /// Runs it to its end.
    #[track_caller]
    pub(crate) fn run(&self) -> Output {
        let mut child = self.spawn();
        let mut stdin = child.stdin.take().expect("piped");
        let text = self.stdin.clone();
        // A program that does not read its stdin is not a failure of this thread.
        let writer = thread::spawn(move || drop(stdin.write_all(&text)));
        let stdout = collect(child.stdout.take().expect("piped"));
        let stderr = collect(child.stderr.take().expect("piped"));
        let status = wait(&mut child, LIMIT);
        writer.join().expect("the writer does not panic");
        Output {
            stdout: stdout.join().expect("the reader does not panic"),
            stderr: stderr.join().expect("the reader does not panic"),
            status: status.code().unwrap_or(128 + status.signal().unwrap_or(0)),
            lab: self.lab.root().to_string_lossy().into_owned(),
        }
    }
}

impl Output {
    /// The events on stdout, each a line of JSON, without their times; those are as RFC 3339 writes them.
    #[track_caller]
    pub(crate) fn untimed_events(&self) -> Vec<Value> {
        assert!(self.stdout.is_empty() || self.stdout.ends_with('\n'));
        let mut events: Vec<Value> = self
            .stdout
            .lines()
            .map(|line| serde_json::from_str(line).expect("a line of JSON"))
            .collect();
        for event in &mut events {
            if let Some(time) = event.as_object_mut().and_then(|event| event.remove("time")) {
                let digits: String = time
                    .as_str()
                    .unwrap()
                    .replace(|c: char| c.is_ascii_digit(), "0");
                assert_eq!(digits, "0000-00-00T00:00:00.000Z");
            }
        }
        events
    }

    /// Text with what differs from run to run made equal: the lab's path is `<lab>`, the UUIDs are `<uuid 1>`
    /// and on in the order in which they come, and seconds after `in ` or in brackets are `<time>`.
    pub(crate) fn told(&self, text: &str) -> String {
        let text = text.replace(&self.lab, "<lab>");
        let mut known: BTreeMap<String, usize> = BTreeMap::new();
        let mut told = String::new();
        let mut rest = text.as_str();
        while let Some(char) = rest.chars().next() {
            if let Some(uuid) = rest.get(..36).filter(|text| is_uuid(text)) {
                let next = known.len() + 1;
                let number = *known.entry(uuid.to_owned()).or_insert(next);
                told.push_str(&format!("<uuid {number}>"));
                rest = &rest[36..];
                continue;
            }
            let at_number =
                char.is_ascii_digit() && !told.ends_with(|last: char| last.is_alphanumeric());
            if at_number && let Some(length) = seconds(rest) {
                told.push_str("<time>");
                rest = &rest[length..];
                continue;
            }
            told.push(char);
            rest = &rest[char.len_utf8()..];
        }
        told
    }
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.char_indices().all(|(at, char)| match at {
            8 | 13 | 18 | 23 => char == '-',
            _ => char.is_ascii_hexdigit(),
        })
}

/// How long a number with the unit `s` or `ms` at the head of `text` is: `1.2s`, `0.4 s`, `350ms`.
fn seconds(text: &str) -> Option<usize> {
    let digits = text
        .find(|char: char| !char.is_ascii_digit() && char != '.')
        .unwrap_or(text.len());
    let unit = text[digits..].trim_start_matches(' ');
    let gap = text[digits..].len() - unit.len();
    let unit = ["ms", "s"].into_iter().find(|name| {
        unit.strip_prefix(name)
            .is_some_and(|after| !after.starts_with(char::is_alphanumeric))
    })?;
    Some(digits + gap + unit.len())
}

fn collect(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // A pipe cannot fail.
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8(bytes).expect("what the program says is UTF-8")
    })
}

/// Waits for a child; one that does not end is killed, and the test fails.
#[track_caller]
/// The exit status as a shell gives it: that of a signal is 128 and its number.
pub(crate) fn shell_status(status: ExitStatus) -> i32 {
    status.code().unwrap_or(128 + status.signal().unwrap_or(0))
}

pub(crate) fn wait(child: &mut Child, limit: Duration) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return status;
        }
        if start.elapsed() > limit {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the program does not end");
        }
        thread::sleep(Duration::from_millis(2));
    }
}
