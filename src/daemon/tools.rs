//! What the plugin says to the daemon on its own account: logs, a turn's events, and the
//! calls of the tools that the daemon lends.

use super::names;
use super::outbox::Outbox;
use crate::backend::emitter::{EventSink, Level};
use crate::canonical::{
    StopReason, Telemetry, ThreadState, TurnError, TurnEvent, TurnResult, TurnUsage,
};
use crate::error::{Error, Kind};
use crate::jsonrpc::{self, Id};
use crate::mcp::{CallId, ToolAnswer, ToolCall, ToolHost, ToolOutput};
use crate::os::CancelToken;
use crate::rollout::lines::NESTED_ID_PREFIX;
use serde_json::json;
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How much a turn gathers before it asks for room in the outbox, in bytes.
const GATHERED: usize = 256 << 10;

/// How long a call of a tool is held back for its `tool_use` event, at most.
const HELD_AT_MOST: Duration = Duration::from_millis(250);
/// After so many calls in a row whose event did not come in time, the turn's calls are not held back any more: codex
/// keeps no record (`--ephemeral`).
const MAX_UNTOLD: u32 = 3;

/// MCP's levels, from the least important one on.
const LEVELS: [&str; 8] = [
    "debug",
    "info",
    "notice",
    "warning",
    "error",
    "critical",
    "alert",
    "emergency",
];

/// Which logs the daemon gets, shared by all that log to it.
#[derive(Clone, Debug)]
pub(super) struct LogFilter(Arc<AtomicUsize>);

impl Default for LogFilter {
    /// From `info` on, until the daemon says otherwise.
    fn default() -> LogFilter {
        LogFilter(Arc::new(AtomicUsize::new(1)))
    }
}

impl LogFilter {
    /// Lets logs of this level and more important ones through.
    ///
    /// # Errors
    /// [`Kind::Params`] where MCP has no such level.
    pub(super) fn set(&self, level: &str) -> Result<(), Error> {
        let Some(least) = LEVELS.iter().position(|name| *name == level) else {
            let expected = LEVELS.join("', '");
            return Err(Error::new(
                Kind::Params,
                format!("params.level: '{level}' is not a log level, expected one of '{expected}'"),
            ));
        };
        self.0.store(least, Ordering::Relaxed);
        Ok(())
    }

    /// The line of a log, where the daemon wants it. `fields` is an object, and stands beside the message.
    pub(super) fn line(
        &self,
        level: Level,
        message: &str,
        fields: &serde_json::Value,
    ) -> Option<Vec<u8>> {
        let importance = LEVELS.iter().position(|name| *name == level.name());
        if importance < Some(self.0.load(Ordering::Relaxed)) {
            return None;
        }
        let mut data = json!({"message": message});
        for (name, value) in fields.as_object().into_iter().flatten() {
            data[name] = value.clone();
        }
        let line = json!({
            "jsonrpc": "2.0",
            "method": names::LOG,
            "params": {"level": level.name(), "logger": "plexum-openai", "data": data},
        });
        Some(format!("{line}\n").into_bytes())
    }
}

/// A turn's events and logs on their way to the daemon.
pub(super) struct DaemonSink {
    outbox: Outbox,
    /// The id of the stream request, as JSON.
    stream: String,
    fields: serde_json::Value,
    filter: LogFilter,
    cancel: CancelToken,
    pending: Arc<Mutex<Pending>>,
}

/// The events of a stream that were queued, and those that still wait for it.
#[derive(Default)]
struct Pending {
    lines: Vec<u8>,
    started: bool,
    ended: Option<(StopReason, TurnUsage)>,
    error: Option<TurnError>,
    /// The ids of the `tool_use` events without a result.
    open_calls: Vec<String>,
    /// Calls whose `tool_use` event is to come first.
    held: Vec<HeldCall>,
    /// How many calls in a row were not emitted in time.
    untold: u32,
    /// Does the turn emit `tool_use` events?
    has_tool_events: bool,
    /// Does the turn wait for room in the outbox, and for nothing else?
    waits_for_room: bool,
    /// Its thread is not waited for any more: further events are dropped.
    abandoned: bool,
}

/// A call of one of the daemon's tools that codex made before its `tool_use` was emitted.
struct HeldCall {
    number: u64,
    /// codex's own id of it.
    call_id: String,
    /// The line of its request.
    line: Vec<u8>,
    /// Until when it waits.
    until: Instant,
}

impl Pending {
    /// Lets those calls go whose event is queued, or which have waited long enough. They never wait among the lines: a
    /// call that is cancelled there would be emitted after its cancel.
    fn release_calls(&mut self, outbox: &Outbox) {
        if !self.lines.is_empty() {
            return;
        }
        let now = Instant::now();
        let (open, untold) = (&self.open_calls, &mut self.untold);
        let due = |call: &mut HeldCall| open.contains(&call.call_id) || call.until <= now;
        for call in self.held.extract_if(.., due) {
            *untold = match open.contains(&call.call_id) {
                true => 0,
                false => *untold + 1,
            };
            outbox.push(call.line);
        }
    }
}

/// A hold on a stream's events, for ending it when its thread does not.
pub(super) struct StreamHandle {
    outbox: Outbox,
    stream: String,
    pending: Arc<Mutex<Pending>>,
}

impl StreamHandle {
    /// Takes the line of a call that codex has made, to go out behind its `tool_use` event. Gives it back where there
    /// is nothing to wait for.
    fn hold(&self, number: u64, call_id: Option<&str>, line: Vec<u8>) -> Option<Vec<u8>> {
        let mut pending = pending(&self.pending);
        // A call that is made inside code mode is recorded when it is over.
        let call_id = call_id.filter(|id| !id.starts_with(NESTED_ID_PREFIX));
        let is_told = call_id.is_some_and(|id| pending.open_calls.iter().any(|open| open == id));
        match call_id {
            Some(call_id)
                if pending.has_tool_events
                    && pending.untold < MAX_UNTOLD
                    && !(is_told && pending.lines.is_empty()) =>
            {
                pending.held.push(HeldCall {
                    number,
                    call_id: call_id.to_owned(),
                    line,
                    until: Instant::now() + HELD_AT_MOST,
                });
                None
            }
            _ => Some(line),
        }
    }

    /// Drops a call that is still held back; says whether it was.
    fn drop_held(&self, number: u64) -> bool {
        let held = &mut pending(&self.pending).held;
        let at = held.iter().position(|call| call.number == number);
        at.map(|at| held.remove(at)).is_some()
    }

    /// Does the turn only wait for the daemon to read?
    pub(super) fn waits_for_room(&self) -> bool {
        pending(&self.pending).waits_for_room
    }

    /// Ends the stream in the place of its thread, whose further events are dropped.
    pub(super) fn abandon(&self) -> TurnResult {
        let mut pending = pending(&self.pending);
        pending.abandoned = true;
        let mut lines = std::mem::take(&mut pending.lines);
        let has_failed = pending.error.is_some();
        let (stop_reason, usage) = pending.ended.unwrap_or_else(|| {
            let mut tell = |event: serde_json::Value| {
                let event = event.to_string();
                event_line(&mut lines, &self.stream, |out| {
                    out.extend_from_slice(event.as_bytes());
                });
            };
            if !pending.started {
                tell(json!(TurnEvent::MessageStart));
            }
            for id in std::mem::take(&mut pending.open_calls) {
                let content = "the turn was cancelled and did not end; this call has no output";
                tell(
                    json!({"type": "tool_result", "id": id, "content": content, "is_error": true}),
                );
            }
            // Its error was emitted: that is how it ends, and only the end itself is missing.
            let stop_reason = match has_failed {
                true => StopReason::Error,
                false => StopReason::Cancelled,
            };
            let usage = TurnUsage::default();
            tell(json!(TurnEvent::MessageEnd { stop_reason, usage }));
            (stop_reason, usage)
        });
        if !lines.is_empty() {
            // Under the lock, so that nothing of the thread's comes behind it.
            self.outbox.push(lines);
        }
        TurnResult {
            stop_reason,
            thread_id: None,
            thread_state: ThreadState::New,
            usage,
            thread_usage: None,
            telemetry: Telemetry::default(),
            error: pending.error.take(),
        }
    }
}

fn pending(pending: &Mutex<Pending>) -> MutexGuard<'_, Pending> {
    // Nothing that holds it can panic half-way.
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds the line of one event, which `write` writes as JSON.
fn event_line(lines: &mut Vec<u8>, stream: &str, write: impl FnOnce(&mut Vec<u8>)) {
    // Writing to memory does not fail.
    let _ = write!(
        lines,
        "{{\"jsonrpc\":\"2.0\",\"method\":\"{}\",\"params\":{{\"stream\":{stream},\"event\":",
        names::EVENT
    );
    write(lines);
    lines.extend_from_slice(b"}}\n");
}

impl DaemonSink {
    pub(super) fn new(
        outbox: Outbox,
        stream: String,
        agent: Option<&str>,
        filter: LogFilter,
        cancel: CancelToken,
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
            filter,
            cancel,
            pending: Arc::default(),
        }
    }

    /// From now on calls of the daemon's tools are held back until their `tool_use` event is emitted.
    pub(super) fn expect_tool_events(&self) {
        pending(&self.pending).has_tool_events = true;
    }

    /// A hold on the calls of this sink.
    pub(super) fn handle(&self) -> StreamHandle {
        StreamHandle {
            outbox: self.outbox.clone(),
            stream: self.stream.clone(),
            pending: Arc::clone(&self.pending),
        }
    }
}

impl DaemonSink {
    fn line(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut pending = pending(&self.pending);
        if pending.abandoned {
            return;
        }
        event_line(&mut pending.lines, &self.stream, write);
        if pending.lines.len() >= GATHERED {
            drop(pending);
            self.flush();
        }
    }

    /// Queues what is gathered. The lock is held while it is queued, so that an abandoned stream's end is its last
    /// word, and not while there is a wait for room.
    fn queue(&self, cancel: Option<&CancelToken>) {
        loop {
            {
                let mut pending = pending(&self.pending);
                pending.waits_for_room = false;
                if pending.lines.is_empty() || self.outbox.try_push(&mut pending.lines) {
                    return;
                }
                pending.waits_for_room = true;
            }
            if !self.outbox.wait_for_room(cancel) {
                pending(&self.pending).waits_for_room = false;
                return;
            }
        }
    }
}

impl EventSink for DaemonSink {
    fn event(&mut self, event: &TurnEvent<'_>) {
        match event {
            TurnEvent::MessageStart => pending(&self.pending).started = true,
            TurnEvent::MessageEnd { stop_reason, usage } => {
                pending(&self.pending).ended = Some((*stop_reason, *usage));
            }
            TurnEvent::Error { error } => pending(&self.pending).error = Some((*error).clone()),
            _ => {}
        }
        self.line(|out| {
            // Writing to memory, and what is written has only keys that are strings: neither can fail.
            let _ = serde_json::to_writer(out, event);
        });
    }

    fn raw_event(&mut self, event: &[u8]) {
        #[derive(serde::Deserialize)]
        struct Head {
            r#type: String,
            id: Option<String>,
        }
        // First: a call that comes meanwhile must not take the event for an emitted one.
        self.line(|out| out.extend_from_slice(event));
        if let Ok(Head {
            r#type: kind,
            id: Some(id),
        }) = serde_json::from_slice(event)
        {
            let open = &mut pending(&self.pending).open_calls;
            match kind.as_str() {
                "tool_use" => open.push(id),
                "tool_result" => {
                    let at = open.iter().position(|open| *open == id);
                    at.map(|at| open.swap_remove(at));
                }
                _ => {}
            }
        }
    }

    fn log(&mut self, level: Level, message: &str) {
        let ours = match level {
            Level::Debug => log::Level::Debug,
            Level::Warn => log::Level::Warn,
        };
        log::log!(ours, "stream {}: {message}", self.stream);
        let mut pending = pending(&self.pending);
        if !pending.abandoned
            && let Some(line) = self.filter.line(level, message, &self.fields)
        {
            pending.lines.extend_from_slice(&line);
        }
    }

    fn flush(&mut self) {
        self.queue(Some(&self.cancel));
        pending(&self.pending).release_calls(&self.outbox);
    }

    fn finish(&mut self) {
        self.queue(None);
    }

    fn holds_calls(&self) -> bool {
        !pending(&self.pending).held.is_empty()
    }
}

/// What is done with a call's answer.
type OnResponse = Box<dyn FnOnce(ToolAnswer) + Send>;

/// The tool calls that the daemon has not answered, of all turns.
#[derive(Clone, Default)]
pub(super) struct PendingCalls(Arc<Mutex<PendingCall>>);

#[derive(Default)]
struct PendingCall {
    next: u64,
    waiting: HashMap<u64, OnResponse>,
    /// Nothing is answered any more.
    gone: bool,
}

impl PendingCalls {
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

    fn take(&self, id: &Id) -> Option<OnResponse> {
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
            outbox.push(cancelled_line(number, GONE));
            answer(Err(GONE.to_owned()));
        }
    }

    fn open(&self) -> MutexGuard<'_, PendingCall> {
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
fn cancelled_line(number: u64, why: &str) -> Vec<u8> {
    let line = json!({
        "jsonrpc": "2.0",
        "method": names::CANCELLED,
        "params": {"requestId": call_id(number), "reason": why},
    });
    format!("{line}\n").into_bytes()
}

/// What an error answer says, for the model.
fn message_of(error: &RawValue) -> String {
    jsonrpc::error_message(error)
        .unwrap_or_else(|| format!("the daemon answered with an error: {}", error.get()))
}

/// The daemon, as a turn's tools see it.
pub(super) struct DaemonTools {
    outbox: Outbox,
    calls: PendingCalls,
    agent_id: Option<String>,
    stream: StreamHandle,
}

impl DaemonTools {
    pub(super) fn new(
        outbox: Outbox,
        calls: PendingCalls,
        agent_id: Option<String>,
        stream: StreamHandle,
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
    fn call(&self, call: ToolCall, answer: OnResponse) -> CallId {
        let mut open = self.calls.open();
        open.next += 1;
        let number = open.next;
        if open.gone {
            drop(open);
            answer(Err(GONE.to_owned()));
            return CallId(number);
        }
        open.waiting.insert(number, answer);
        let line = format!(
                "{{\"jsonrpc\":\"2.0\",\"id\":\"{}\",\"method\":\"{}\",\"params\":{{\"name\":{},\"arguments\":{},\"_meta\":{{\"agent_id\":{},\"stream\":{},\"call_id\":{}}}}}}}\n",
                call_id(number),
                names::TOOL_CALL,
                json!(call.name),
                call.arguments,
                json!(self.agent_id),
                self.stream.stream,
                json!(call.call_id)
            )
            .into_bytes();
        if let Some(line) = self.stream.hold(number, call.call_id.as_deref(), line) {
            self.outbox.push(line);
        }
        // Not before: whoever takes the call back must come after it on the wire too.
        drop(open);
        CallId(number)
    }

    fn cancel(&self, call: CallId) {
        if self.calls.open().waiting.remove(&call.0).is_none() {
            // Its answer is there, and met the cancel on the way.
            return;
        }
        if self.stream.drop_held(call.0) {
            // The daemon does not know of it.
            return;
        }
        let why = "the turn no longer waits for it";
        self.outbox.push(cancelled_line(call.0, why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};

    /// Neither a call that waits for its event nor one whose event waits for room is sent once it is cancelled.
    #[test]
    fn does_not_send_held_call_that_is_cancelled() {
        for is_told in [false, true] {
            let (reader, writer) = std::io::pipe().unwrap();
            let (outbox, _thread) = Outbox::start(writer, || {}).unwrap();
            let cancel = CancelToken::new().unwrap();
            let filter = LogFilter::default();
            let mut sink = DaemonSink::new(outbox.clone(), "7".to_owned(), None, filter, cancel);
            sink.expect_tool_events();
            let calls = PendingCalls::default();
            let tools = DaemonTools::new(outbox.clone(), calls, None, sink.handle());
            if is_told {
                sink.raw_event(br#"{"type":"tool_use","id":"call_1"}"#);
            }
            let call = ToolCall {
                call_id: Some("call_1".to_owned()),
                name: "send".to_owned(),
                arguments: RawValue::from_string("{}".to_owned()).unwrap(),
            };
            let call = tools.call(call, Box::new(|_| ()));
            assert!(sink.holds_calls());
            tools.cancel(call);
            assert!(!sink.holds_calls());
            sink.flush();
            outbox.push(b"end\n".to_vec());
            let lines = BufReader::new(reader).lines().map(Result::unwrap);
            let told = lines.take_while(|line| line != "end").count();
            assert_eq!(told, usize::from(is_told));
        }
    }
}
