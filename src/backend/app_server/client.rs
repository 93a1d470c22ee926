//! The client's side of one `codex app-server`: requests, each with a limit, and what the server says meanwhile.
//!
//! A server that has ended, or that has not answered in time, is never used again. What it asks for is answered at once:
//! a request without an answer holds its turn up for ever (0.135.0 to 0.169.0).

use super::message::{self, ServerMessage};
use crate::backend::child::{Child, Next, OutputLine};
use crate::backend::guard::LONGEST_ENDING;
use crate::codex::failure::Exit;
use crate::os::{CancelToken, Pid};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long a server has to end once its stdin is closed; it takes 0.03 to 0.07 s (0.135.0 to 0.169.0).
pub(super) const ENDING: Duration = Duration::from_millis(1000);

/// How much is kept of the messages of a server while a response is waited for, in bytes. codex sends a few kilobytes.
const MAX_KEPT: usize = 16 << 20;

/// What is never of use here, of the notifications that there are many of.
const UNWANTED: [&str; 4] = [
    "item/commandExecution/outputDelta",
    "account/rateLimits/updated",
    "thread/status/changed",
    "remoteControl/status/changed",
];
/// The shapes in which the server's requests are declined, by method; any other gets an error.
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

/// A connection to a running server.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) child: Child,
    last_id: u64,
    /// What came while an answer was waited for.
    kept: VecDeque<Vec<u8>>,
    /// How many bytes that is.
    kept_bytes: usize,
    /// It has ended, or has not answered.
    is_broken: bool,
}

/// Why a request has no result.
#[derive(Debug)]
pub(super) enum RequestError {
    /// The server says why.
    Rejected(String),
    /// The time is up.
    NoAnswer,
    /// The server has ended.
    Ended,
    Cancelled,
}

impl Client {
    pub(super) fn new(child: Child) -> Client {
        Client {
            child,
            last_id: 0,
            kept: VecDeque::new(),
            kept_bytes: 0,
            is_broken: false,
        }
    }

    pub(super) fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Drops what the server has said while nobody listened, and sees whether it has ended.
    pub(super) fn look(&mut self) {
        /// What a look takes where there is nothing to be seen.
        const MOMENT: Duration = Duration::from_micros(50);
        while !self.is_broken {
            match self.child.next(None, Some(Instant::now() + MOMENT)) {
                Next::Line => while self.child.line().is_some() {},
                Next::Woken => {}
                Next::Deadline | Next::Cancelled => {
                    // Its guard may need a moment more.
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

    /// Sends a request; gives its id.
    pub(super) fn send(&mut self, method: &str, params: &Value) -> u64 {
        self.last_id += 1;
        let id = self.last_id;
        self.write(&json!({"id": id, "method": method, "params": params}));
        id
    }

    /// Tells the server to interrupt a turn; gives the request's id.
    pub(super) fn interrupt(&mut self, thread: &str, turn: &str) -> u64 {
        let params = json!({"threadId": thread, "turnId": turn});
        self.send("turn/interrupt", &params)
    }

    /// Initializes the server, which has to be the first request.
    pub(super) fn initialize(
        &mut self,
        limit: Duration,
        cancel: &CancelToken,
    ) -> Result<(), RequestError> {
        let greeting = json!({
            "clientInfo": {
                "name": "plexum-openai",
                "title": null,
                "version": env!("CARGO_PKG_VERSION"),
            },
            "capabilities": {
                "experimentalApi": true,
                "optOutNotificationMethods": UNWANTED,
            },
        });
        self.request("initialize", &greeting, limit, Some(cancel))?;
        self.write(&json!({"method": "initialized"}));
        Ok(())
    }

    fn write(&mut self, message: &Value) {
        let mut line = message.to_string();
        line.push('\n');
        // Where nobody reads it the end of the server will show.
        self.child.send(line.as_bytes());
    }

    /// Declines what the server asks for.
    pub(super) fn decline(&mut self, id: &[u8], method: &str) {
        let id = String::from_utf8_lossy(id);
        let shape = DECLINED.iter().find(|(known, _)| *known == method);
        let answer = match shape {
            Some((_, result)) => format!("{{\"id\":{id},\"result\":{result}}}\n"),
            None => format!(
                "{{\"id\":{id},\"error\":{{\"code\":-32601,\"message\":\"not supported\"}}}}\n"
            ),
        };
        log::debug!("codex asks for '{method}', which is declined");
        self.child.send(answer.as_bytes());
    }

    /// Sends a request and waits for its result. Other messages of the server are kept for [`Client::line`].
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
                    return Err(RequestError::NoAnswer);
                }
                Next::Ended => {
                    self.is_broken = true;
                    return Err(RequestError::Ended);
                }
            }
            // What came before the end may be in the buffer still.
            while let Some(line) = self.child.line() {
                let OutputLine::Whole(line) = line else {
                    continue;
                };
                match message::parse(line) {
                    ServerMessage::Response {
                        id: answered,
                        outcome,
                    } if answered == id => {
                        return outcome
                            .map(<[u8]>::to_vec)
                            .map_err(|message| RequestError::Rejected(message.into_owned()));
                    }
                    ServerMessage::Request { id, method } => {
                        let (id, method) = (id.to_vec(), method.into_owned());
                        self.decline(&id, &method);
                    }
                    ServerMessage::Notification(_) if self.kept_bytes < MAX_KEPT => {
                        self.kept_bytes += line.len();
                        self.kept.push_back(line.to_vec());
                    }
                    _ => {}
                }
            }
        }
    }

    /// Waits until there is a line, the server has ended, somebody wakes it, `cancel` is cancelled or `deadline` has passed.
    pub(super) fn next(&mut self, cancel: Option<&CancelToken>, deadline: Option<Instant>) -> Next {
        if !self.kept.is_empty() {
            return Next::Line;
        }
        let next = self.child.next(cancel, deadline);
        self.is_broken |= next == Next::Ended;
        next
    }

    /// The next line; `Err` with the length of one that was too long to be held.
    pub(super) fn line(&mut self) -> Option<Result<Cow<'_, [u8]>, u64>> {
        if let Some(line) = self.kept.pop_front() {
            self.kept_bytes -= line.len();
            return Some(Ok(Cow::Owned(line)));
        }
        match self.child.line()? {
            OutputLine::Whole(line) => Some(Ok(Cow::Borrowed(line))),
            OutputLine::Skipped(length) => Some(Err(length)),
        }
    }

    /// Has the server end by closing its stdin; where it does not, kills it.
    pub(super) fn close(self) -> Exit {
        self.close_by(Instant::now() + ENDING)
    }

    /// The same, and kills it at this time.
    pub(super) fn close_by(mut self, deadline: Instant) -> Exit {
        self.child.close_stdin();
        self.wait_for_end(deadline);
        self.child.exit()
    }

    /// Ends the server and everything below its guard.
    pub(super) fn end(mut self) -> Exit {
        self.child.end();
        self.wait_for_end(Instant::now() + LONGEST_ENDING);
        self.child.exit()
    }

    /// Closes the server's stdin, for [`Client::close`] to find it ended.
    pub(super) fn begin_close(&mut self) {
        self.is_broken = true;
        self.child.close_stdin();
    }

    /// Waits for the end of a server, and kills one that does not come to it.
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
