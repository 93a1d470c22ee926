//! The models that codex has, asked of its `app-server`: the only one of its interfaces that tells them.
//!
//! JSON-RPC on stdio, one object a line, without the `jsonrpc` member. It needs no account: without one the list is
//! the catalogue that came with codex (0.135.0 to 0.169.0).

use super::ask;
use crate::error::{Error, Kind, Result};
use crate::jsonrpc;
use crate::os::CancelToken;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long codex has for the whole of it. With [`ENDING`] that is under 5 s.
const LIMIT: Duration = Duration::from_millis(4500);
/// How long codex has to end once its stdin is closed (it takes 0.03 s), before it is killed.
const ENDING: Duration = Duration::from_millis(300);
/// The most that is read of it, in bytes. The list of 0.169.0 is 15 KB.
const LONGEST: usize = 4 << 20;

/// A model that can be asked for.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Model {
    /// What a turn is given as its model.
    pub(crate) id: String,
    /// What people call it.
    pub(crate) name: String,
    /// Is it the one that codex takes where none is named?
    pub(crate) default: bool,
    /// The reasoning efforts that it has.
    pub(crate) efforts: Vec<String>,
}

/// Asks codex for its models; `command` is codex without arguments, and its environment. Ends soon after `cancel` is
/// raised.
///
/// # Errors
/// [`Kind::CodexFailed`] where codex cannot say.
pub(crate) fn list(mut command: Command, cancel: &CancelToken) -> Result<Vec<Model>> {
    command.arg("app-server");
    let mut server = AppServer::start(command, cancel)?;
    let client = json!({"name": "plexum-openai", "version": env!("CARGO_PKG_VERSION")});
    server.request("initialize", &json!({"clientInfo": client}))?;
    server.notify("initialized")?;
    let mut models = Vec::new();
    let mut params = json!({});
    loop {
        let result = server.request("model/list", &params)?;
        let page = ModelPage::deserialize(&result)
            .map_err(|error| failed(format!("codex's list of models cannot be read: {error}")))?;
        models.extend(page.data.into_iter().filter_map(Listed::model));
        match page.next_cursor {
            Some(cursor) => params["cursor"] = cursor.into(),
            None => return Ok(models),
        }
    }
}

/// A part of the list, of which there was one only so far.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ModelPage {
    data: Vec<Listed>,
    next_cursor: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    model: String,
    #[serde(default)]
    display_name: Option<String>,
    #[serde(default)]
    hidden: bool,
    #[serde(default)]
    is_default: bool,
    #[serde(default)]
    supported_reasoning_efforts: Vec<Effort>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Effort {
    reasoning_effort: String,
}

impl Listed {
    /// The model, where people are meant to see it.
    fn model(self) -> Option<Model> {
        (!self.hidden).then(|| Model {
            name: self.display_name.unwrap_or_else(|| self.model.clone()),
            id: self.model,
            default: self.is_default,
            efforts: self
                .supported_reasoning_efforts
                .into_iter()
                .map(|effort| effort.reasoning_effort)
                .collect(),
        })
    }
}

/// A message of codex's.
#[derive(Deserialize)]
struct ServerMessage {
    id: Option<u64>,
    method: Option<String>,
    result: Option<Value>,
    error: Option<Box<RawValue>>,
}

/// A running `codex app-server`. Dropped, it is ended and waited for.
struct AppServer<'a> {
    child: Child,
    pidfd: Arc<OwnedFd>,
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    stderr: File,
    buffer: Vec<u8>,
    /// How much of the buffer has been looked at.
    at: usize,
    /// How much was read in all.
    read: usize,
    last_id: u64,
    cancel: &'a CancelToken,
    deadline: Instant,
}

impl<'a> AppServer<'a> {
    fn start(mut command: Command, cancel: &'a CancelToken) -> Result<AppServer<'a>> {
        let shown = command.get_program().to_string_lossy().into_owned();
        let cannot = |error: io::Error| {
            let what = format!("cannot run '{shown} app-server'");
            Error::os(Kind::CodexFailed, what, error)
        };
        let deadline = Instant::now() + LIMIT;
        let stderr = ask::file().map_err(cannot)?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr.try_clone().map_err(cannot)?)
            .process_group(0)
            .spawn()
            .map_err(cannot)?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let pidfd = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
        let (Ok(pidfd), Some(stdout)) = (pidfd, stdout) else {
            // Without a descriptor left there is nothing to talk to it with.
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed(format!("cannot run '{shown} app-server'")).with_retryable(true));
        };
        let pidfd = Arc::new(pidfd);
        cancel.attach(&pidfd);
        Ok(AppServer {
            child,
            pidfd,
            stdin,
            stdout,
            stderr,
            buffer: Vec::new(),
            at: 0,
            read: 0,
            last_id: 0,
            cancel,
            deadline,
        })
    }

    /// Sends a request and waits for its result.
    fn request(&mut self, method: &str, params: &Value) -> Result<Value> {
        self.last_id += 1;
        self.send(&json!({"id": self.last_id, "method": method, "params": params}))?;
        loop {
            let line = self.line()?;
            // What is not JSON-RPC is not for us.
            let Ok(message) = serde_json::from_slice::<ServerMessage>(&line) else {
                continue;
            };
            if message.method.is_some() || message.id != Some(self.last_id) {
                continue;
            }
            return match message.error {
                Some(error) => {
                    let why = jsonrpc::error_message(&error).unwrap_or_default();
                    Err(failed(format!("codex rejects {method}: {why}")))
                }
                None => Ok(message.result.unwrap_or_default()),
            };
        }
    }

    fn notify(&mut self, method: &str) -> Result<()> {
        self.send(&json!({"method": method}))
    }

    fn send(&mut self, message: &Value) -> Result<()> {
        let sent = match &mut self.stdin {
            // Far less than the pipe holds: it does not block.
            Some(stdin) => writeln!(stdin, "{message}"),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        };
        // What it says on stderr tells more than a broken pipe.
        sent.map_err(|_| self.why_ended())
    }

    /// The next line.
    fn line(&mut self) -> Result<Vec<u8>> {
        loop {
            if let Some(length) = memchr::memchr(b'\n', &self.buffer[self.at..]) {
                let line = self.buffer[self.at..self.at + length].to_vec();
                self.at += length + 1;
                return Ok(line);
            }
            self.buffer.drain(..self.at);
            self.at = 0;
            self.wait_readable()?;
            let mut part = [0; 64 << 10];
            match self.stdout.read(&mut part) {
                Ok(0) => return Err(self.why_ended()),
                Ok(length) => {
                    self.buffer.extend_from_slice(&part[..length]);
                    self.read += length;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let what = "cannot read what codex app-server says";
                    return Err(Error::os(Kind::CodexFailed, what, error));
                }
            }
            if self.read > LONGEST {
                return Err(failed(format!(
                    "codex app-server says more than {} MiB",
                    LONGEST >> 20
                )));
            }
        }
    }

    fn wait_readable(&self) -> Result<()> {
        loop {
            if self.cancel.is_cancelled() {
                return Err(failed("asking codex for its models was cancelled"));
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let message = format!(
                    "codex app-server did not tell its models within {:.1} s",
                    LIMIT.as_secs_f32()
                );
                return Err(failed(message).with_retryable(true));
            }
            let timeout = Timespec::try_from(left).ok();
            let mut fds = [
                PollFd::new(&self.stdout, PollFlags::IN),
                PollFd::new(self.cancel, PollFlags::IN),
            ];
            match rustix::event::poll(&mut fds, timeout.as_ref()) {
                Ok(_) if !fds[0].revents().is_empty() => return Ok(()),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    let what = "cannot wait for codex app-server";
                    return Err(Error::os(Kind::CodexFailed, what, error.into()));
                }
            }
        }
    }

    /// It ended, or closed a stream, before it had told its models.
    fn why_ended(&mut self) -> Error {
        let mut said = Vec::new();
        // Where it cannot be read there is nothing to tell of it.
        let _ = self.stderr.rewind();
        let _ = (&self.stderr).take(LONGEST as u64).read_to_end(&mut said);
        let said = String::from_utf8_lossy(&said);
        let last = said.trim().lines().last().unwrap_or("nothing on stderr");
        failed(format!(
            "codex app-server ended before it told its models: {last}"
        ))
    }
}

impl Drop for AppServer<'_> {
    fn drop(&mut self) {
        self.stdin = None;
        let deadline = Instant::now() + ENDING;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).ok();
            let mut fds = [PollFd::new(&*self.pidfd, PollFlags::IN)];
            match rustix::event::poll(&mut fds, timeout.as_ref()) {
                Ok(0) if left.is_zero() => break,
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) | Err(_) => break,
            }
        }
        // Where it has ended, what it left behind: 0.169 starts `git` at once, 0.135 `lsb_release` too, and codex ends
        // without waiting for them. The group is its own, and it is not waited for yet, so the number is still its.
        let _ = rustix::process::kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        // It is dead or has been killed.
        let _ = self.child.wait();
    }
}

fn failed(message: impl Into<String>) -> Error {
    Error::new(Kind::CodexFailed, message)
}
