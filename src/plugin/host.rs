//! What the plugin says to the daemon on its own account: the `log` notification, a turn's events, and the
//! calls of the tools that the daemon lends.

use super::message::Id;
use super::outbox::Outbox;
use crate::canonical::TurnEvent;
use crate::mcp::{CallId, ToolAnswer, ToolCall, ToolHost, ToolOutput};
use crate::sys::Flag;
use crate::turn::{Level, Sink};
use serde_json::json;
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How much a turn gathers before it asks for room in the outbox, in bytes.
const GATHERED: usize = 256 << 10;

/// The line of a `log` notification.
pub(super) fn log_line(level: Level, message: &str, fields: &serde_json::Value) -> Vec<u8> {
    let line = json!({
        "jsonrpc": "2.0",
        "method": "log",
        "params": {"level": level.name(), "message": message, "fields": fields},
    });
    format!("{line}\n").into_bytes()
}

/// A turn's events and logs on their way to the daemon.
pub(super) struct DaemonSink {
    outbox: Outbox,
    /// The id of the stream request, as JSON.
    stream: String,
    fields: serde_json::Value,
    cancel: Flag,
    lines: Vec<u8>,
}

impl DaemonSink {
    pub(super) fn new(
        outbox: Outbox,
        stream: String,
        agent: Option<&str>,
        cancel: Flag,
    ) -> DaemonSink {
        let mut fields = json!({});
        // It was made from an id, so it is JSON.
        fields["stream"] = serde_json::from_str(&stream).unwrap_or_default();
        if let Some(agent) = agent {
            fields["agent_id"] = agent.into();
        }
        DaemonSink {
            outbox,
            stream,
            fields,
            cancel,
            lines: Vec::new(),
        }
    }
}

impl DaemonSink {
    /// Adds the line of one event, which `write` writes as JSON.
    fn line(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let _ = write!(
            self.lines,
            "{{\"jsonrpc\":\"2.0\",\"method\":\"event\",\"params\":{{\"stream\":{},\"event\":",
            self.stream
        );
        write(&mut self.lines);
        self.lines.extend_from_slice(b"}}\n");
        if self.lines.len() >= GATHERED {
            self.flush();
        }
    }
}

impl Sink for DaemonSink {
    fn event(&mut self, event: &TurnEvent<'_>) {
        self.line(|out| {
            // Writing to memory, and what is written has only keys that are strings: neither can fail.
            let _ = serde_json::to_writer(out, event);
        });
    }

    fn raw_event(&mut self, event: &[u8]) {
        self.line(|out| out.extend_from_slice(event));
    }

    fn log(&mut self, level: Level, message: &str) {
        let ours = match level {
            Level::Debug => log::Level::Debug,
            Level::Warn => log::Level::Warn,
        };
        log::log!(ours, "stream {}: {message}", self.stream);
        self.lines
            .extend_from_slice(&log_line(level, message, &self.fields));
    }

    fn flush(&mut self) {
        self.outbox
            .push_when_room(&mut self.lines, Some(&self.cancel));
    }

    fn finish(&mut self) {
        self.outbox.push_when_room(&mut self.lines, None);
    }
}

/// What is done with a call's answer.
type Answer = Box<dyn FnOnce(ToolAnswer) + Send>;

/// The `tools.call` requests that the daemon has not answered, of all turns.
#[derive(Clone, Default)]
pub(super) struct Calls(Arc<Mutex<Open>>);

#[derive(Default)]
struct Open {
    next: u64,
    waiting: HashMap<u64, Answer>,
    /// Nothing is answered any more.
    gone: bool,
}

impl Calls {
    /// Takes the daemon's answer; false where it is to no call that waits.
    pub(super) fn answer(&self, id: &Id, outcome: Result<&RawValue, &RawValue>) -> bool {
        let Some(answer) = self.take(id) else {
            return false;
        };
        answer(match outcome {
            Ok(result) => output(result).map_err(|why| unreadable(&why)),
            Err(error) => Err(message_of(error)),
        });
        true
    }

    /// The daemon's answer to this call, where it is one that waits, cannot be read.
    pub(super) fn fail(&self, id: &Id, why: &str) {
        if let Some(answer) = self.take(id) {
            answer(Err(unreadable(why)));
        }
    }

    fn take(&self, id: &Id) -> Option<Answer> {
        let number = call_number(id)?;
        self.open().waiting.remove(&number)
    }

    /// Nobody waits for the daemon any more: every call is taken back, and answered with an error, now and from
    /// now on.
    pub(super) fn end(&self, outbox: &Outbox) {
        let waiting = {
            let mut open = self.open();
            open.gone = true;
            std::mem::take(&mut open.waiting)
        };
        for (number, answer) in waiting {
            outbox.push(cancelled_line(number));
            answer(Err(GONE.to_owned()));
        }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const GONE: &str = "the daemon is gone, and its tools with it";

/// The id of a call's request, as text.
fn call_id(number: u64) -> String {
    format!("tool-{number}")
}

fn call_number(id: &Id) -> Option<u64> {
    let Id::Text(id) = id else { return None };
    let number = id.strip_prefix("tool-")?.parse().ok()?;
    (call_id(number) == *id).then_some(number)
}

fn output(result: &RawValue) -> Result<ToolOutput, String> {
    // A derived struct would take a list for its fields in order.
    if !result.get().starts_with('{') {
        return Err("`result` must be an object".to_owned());
    }
    serde_json::from_str(result.get()).map_err(|error| error.to_string())
}

fn unreadable(why: &str) -> String {
    format!("the daemon's answer cannot be read: {why}")
}

/// The line that says that nobody waits for a call any more.
fn cancelled_line(number: u64) -> Vec<u8> {
    format!(
        "{{\"jsonrpc\":\"2.0\",\"method\":\"tools.cancelled\",\"params\":{{\"id\":\"{}\"}}}}\n",
        call_id(number)
    )
    .into_bytes()
}

/// What an error answer says, for the model.
fn message_of(error: &RawValue) -> String {
    #[derive(serde::Deserialize)]
    struct RpcError {
        message: String,
    }
    match serde_json::from_str::<RpcError>(error.get()) {
        Ok(error) if !error.message.is_empty() => error.message,
        _ => format!("the daemon answered with an error: {}", error.get()),
    }
}

/// The daemon, as a turn's tools see it.
pub(super) struct DaemonTools {
    outbox: Outbox,
    calls: Calls,
    agent_id: Option<String>,
    /// The id of the stream request, as JSON.
    stream: String,
}

impl DaemonTools {
    pub(super) fn new(
        outbox: Outbox,
        calls: Calls,
        agent_id: Option<String>,
        stream: String,
    ) -> DaemonTools {
        DaemonTools {
            outbox,
            calls,
            agent_id,
            stream,
        }
    }
}

impl ToolHost for DaemonTools {
    fn call(&self, call: ToolCall, answer: Answer) -> CallId {
        let mut open = self.calls.open();
        open.next += 1;
        let number = open.next;
        if open.gone {
            drop(open);
            answer(Err(GONE.to_owned()));
            return CallId(number);
        }
        open.waiting.insert(number, answer);
        self.outbox.push(
            format!(
                "{{\"jsonrpc\":\"2.0\",\"id\":\"{}\",\"method\":\"tools.call\",\"params\":{{\"agent_id\":{},\"stream\":{},\"call_id\":{},\"name\":{},\"arguments\":{}}}}}\n",
                call_id(number),
                json!(self.agent_id),
                self.stream,
                json!(call.call_id),
                json!(call.name),
                call.arguments
            )
            .into_bytes(),
        );
        // Not before: whoever takes the call back must come after it on the wire too.
        drop(open);
        CallId(number)
    }

    fn cancel(&self, call: CallId) {
        if self.calls.open().waiting.remove(&call.0).is_none() {
            // Its answer is there, and met the cancel on the way.
            return;
        }
        self.outbox.push(cancelled_line(call.0));
    }
}
