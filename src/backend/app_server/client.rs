//! The client's side of one `codex app-server`: requests with a time limit, and the notifications that come meanwhile.
//!
//! A server that has ended or has not responded in time is never used again. Its own requests are answered at once: one
//! without a response blocks its turn for ever (0.135.0 to 0.169.0).

use super::message::{self, ServerMessage};
use crate::backend::child::{Child, Next, OutputLine};
use crate::backend::guard::LONGEST_ENDING;
use crate::codex::failure::Exit;
use crate::os::{CancelToken, Pid};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long a server may take to exit once its stdin is closed; it takes 0.03 to 0.07 s (0.135.0 to 0.169.0).
pub(super) const ENDING: Duration = Duration::from_millis(1000);

/// How many bytes of notifications are queued during a request. codex sends a few kilobytes.
const MAX_QUEUED: usize = 16 << 20;

/// Frequent notifications that are never used here.
const UNUSED_NOTIFICATIONS: [&str; 4] = [
    "item/commandExecution/outputDelta",
    "account/rateLimits/updated",
    "thread/status/changed",
    "remoteControl/status/changed",
];
/// The results that decline the server's requests, by method; other methods get an error.
const DECLINED: &[(&str, &str)] = &[
    (
        "item/commandExecution/requestApproval",
        r#"{"decision":"decline"}"#,
    ),
    (
        "item/fileChange/requestApproval",
        r#"{"decision":"decline"}"#,
    ),
    ("item/permissions/requestApproval", r#"{"permissions":{}}"#),
    ("item/tool/requestUserInput", r#"{"answers":{}}"#),
    (
        "mcpServer/elicitation/request",
        r#"{"action":"decline","content":null}"#,
    ),
    ("applyPatchApproval", r#"{"decision":"abort"}"#),
    ("execCommandApproval", r#"{"decision":"abort"}"#),
];

/// A connection to a server.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) child: Child,
    last_id: u64,
    /// Notifications that came during a request.
    queued: VecDeque<Vec<u8>>,
    /// Their size in bytes.
    queued_bytes: usize,
    /// It has ended, or has not responded in time.
    is_broken: bool,
}

/// Why a request has no result.
#[derive(Debug)]
pub(super) enum RequestError {
    /// The server's error message.
    Rejected(String),
    /// The time limit has passed.
    Timeout,
    /// The server has ended.
    Ended,
    Cancelled,
}

impl Client {
    pub(super) fn new(child: Child) -> Client {
        Client {
            child,
            last_id: 0,
            queued: VecDeque::new(),
            queued_bytes: 0,
            is_broken: false,
        }
    }

    pub(super) fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Discards what an idle server has sent, and detects that it has ended.
    pub(super) fn discard_pending(&mut self) {
        /// How long to wait where there is nothing to read.
        const MOMENT: Duration = Duration::from_micros(50);
        while !self.is_broken {
            match self.child.next(None, Some(Instant::now() + MOMENT)) {
                Next::Line => while self.child.line().is_some() {},
                Next::Woken => {}
                Next::Deadline | Next::Cancelled => {
                    // stdout is closed, but the guard has not exited yet.
                    self.is_broken = self.child.has_closed_stdout();
                    return;
                }
                Next::Ended => self.is_broken = true,
            }
        }
    }

    pub(super) fn guard_pid(&self) -> Pid {
        self.child.guard_pid()
    }

    /// Sends a request without waiting; returns its id.
    pub(super) fn send(&mut self, method: &str, params: &Value) -> u64 {
        self.last_id += 1;
        let id = self.last_id;
        self.write(&json!({"id": id, "method": method, "params": params}));
        id
    }

    /// Requests that a turn be interrupted; returns the request's id.
    pub(super) fn interrupt(&mut self, thread: &str, turn: &str) -> u64 {
        let params = json!({"threadId": thread, "turnId": turn});
        self.send("turn/interrupt", &params)
    }

    /// Performs the `initialize` handshake, which must come first.
    pub(super) fn initialize(
        &mut self,
        limit: Duration,
        cancel: &CancelToken,
    ) -> Result<(), RequestError> {
        let params = json!({
            "clientInfo": {
                "name": "plexum-openai",
                "title": null,
                "version": env!("CARGO_PKG_VERSION"),
            },
            "capabilities": {
                "experimentalApi": true,
                "optOutNotificationMethods": UNUSED_NOTIFICATIONS,
            },
        });
        self.request("initialize", &params, limit, Some(cancel))?;
        self.write(&json!({"method": "initialized"}));
        Ok(())
    }

    fn write(&mut self, message: &Value) {
        let mut line = message.to_string();
        line.push('\n');
        // A failed write means that the server is ending, which `next` reports.
        self.child.send(line.as_bytes());
    }

    /// Declines a request of the server.
    pub(super) fn decline(&mut self, id: &[u8], method: &str) {
        let id = String::from_utf8_lossy(id);
        let shape = DECLINED.iter().find(|(known, _)| *known == method);
        let response = match shape {
            Some((_, result)) => format!("{{\"id\":{id},\"result\":{result}}}\n"),
            None => format!(
                "{{\"id\":{id},\"error\":{{\"code\":-32601,\"message\":\"not supported\"}}}}\n"
            ),
        };
        log::debug!("declined codex's request '{method}', which is not supported");
        self.child.send(response.as_bytes());
    }

    /// Sends a request and waits for its result. Notifications that come meanwhile are queued for [`Client::line`].
    pub(super) fn request(
        &mut self,
        method: &str,
        params: &Value,
        limit: Duration,
        cancel: Option<&CancelToken>,
    ) -> Result<Vec<u8>, RequestError> {
        if self.is_broken {
            return Err(RequestError::Ended);
        }
        let id = self.send(method, params);
        let deadline = Instant::now() + limit;
        loop {
            match self.child.next(cancel, Some(deadline)) {
                Next::Line => {}
                Next::Woken => continue,
                Next::Cancelled => {
                    self.is_broken = true;
                    return Err(RequestError::Cancelled);
                }
                Next::Deadline => {
                    self.is_broken = true;
                    return Err(RequestError::Timeout);
                }
                Next::Ended => {
                    self.is_broken = true;
                    return Err(RequestError::Ended);
                }
            }
            // Lines can be buffered from before the end.
            while let Some(line) = self.child.line() {
                let OutputLine::Whole(line) = line else {
                    continue;
                };
                match message::parse(line) {
                    ServerMessage::Response {
                        id: response_id,
                        outcome,
                    } if response_id == id => {
                        return outcome
                            .map(<[u8]>::to_vec)
                            .map_err(|message| RequestError::Rejected(message.into_owned()));
                    }
                    ServerMessage::Request { id, method } => {
                        let (id, method) = (id.to_vec(), method.into_owned());
                        self.decline(&id, &method);
                    }
                    ServerMessage::Notification(_) if self.queued_bytes < MAX_QUEUED => {
                        self.queued_bytes += line.len();
                        self.queued.push_back(line.to_vec());
                    }
                    _ => {}
                }
            }
        }
    }

    /// Waits for a line, the end of the server, a wakeup, `cancel` or `deadline`.
    pub(super) fn next(&mut self, cancel: Option<&CancelToken>, deadline: Option<Instant>) -> Next {
        if !self.queued.is_empty() {
            return Next::Line;
        }
        let next = self.child.next(cancel, deadline);
        self.is_broken |= next == Next::Ended;
        next
    }

    /// The next line; `Err` with the length of one that was too long to be held, in bytes.
    pub(super) fn line(&mut self) -> Option<Result<Cow<'_, [u8]>, u64>> {
        if let Some(line) = self.queued.pop_front() {
            self.queued_bytes -= line.len();
            return Some(Ok(Cow::Owned(line)));
        }
        match self.child.line()? {
            OutputLine::Whole(line) => Some(Ok(Cow::Borrowed(line))),
            OutputLine::Skipped(length) => Some(Err(length)),
        }
    }

    /// Closes the server's stdin and waits until it has exited; after [`ENDING`] it is killed.
    pub(super) fn close(self) -> Exit {
        self.close_by(Instant::now() + ENDING)
    }

    /// As [`Client::close`], with a deadline.
    pub(super) fn close_by(mut self, deadline: Instant) -> Exit {
        self.child.close_stdin();
        self.wait_for_end(deadline);
        self.child.exit()
    }

    /// Terminates the server and everything below its guard.
    pub(super) fn end(mut self) -> Exit {
        self.child.end();
        self.wait_for_end(Instant::now() + LONGEST_ENDING);
        self.child.exit()
    }

    /// Closes the server's stdin without waiting; [`Client::close`] is still to be called.
    pub(super) fn begin_close(&mut self) {
        self.is_broken = true;
        self.child.close_stdin();
    }

    /// Waits for the end of the server, which is killed at `deadline`.
    fn wait_for_end(&mut self, mut deadline: Instant) {
        loop {
            match self.child.next(None, Some(deadline)) {
                Next::Line => while self.child.line().is_some() {},
                Next::Woken => {}
                Next::Deadline | Next::Cancelled => {
                    self.child.kill_all();
                    deadline = Instant::now() + ENDING;
                }
                Next::Ended => return,
            }
        }
    }

    /// Kills the server and everything below its guard.
    pub(super) fn kill(mut self) -> Exit {
        self.child.kill_all();
        self.wait_for_end(Instant::now() + ENDING);
        self.child.exit()
    }
}
