//! The messages that the plugin itself starts: logs, the events of a turn, and calls of the daemon's tools.

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

/// How many bytes a turn buffers before it waits for room in the outbox.
const FLUSH_BYTES: usize = 256 << 10;

/// How long a tool call is held back for its `tool_use` event.
const HOLD_TIMEOUT: Duration = Duration::from_millis(250);
/// After this many calls in a row without an event in time, the turn's calls are no longer held back: codex keeps no
/// record (`--ephemeral`).
const MAX_UNRECORDED_CALLS: u32 = 3;

/// MCP's log levels, the least important first.
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

/// The minimum level of the logs that the daemon receives, an index into [`LEVELS`]. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct LogFilter(Arc<AtomicUsize>);

impl Default for LogFilter {
    /// `info`, until the daemon sets another level.
    fn default() -> LogFilter {
        LogFilter(Arc::new(AtomicUsize::new(1)))
    }
}

impl LogFilter {
    /// Sets the minimum level.
    ///
    /// # Errors
    /// [`Kind::Params`] if it is not a level of MCP.
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

    /// The line of a log, or `None` below the minimum level. `fields` is an object whose members are added to the data.
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

/// Sends a turn's events and logs to the daemon.
pub(super) struct DaemonSink {
    outbox: Outbox,
    /// The id of the stream request, as JSON.
    stream: String,
    fields: serde_json::Value,
    filter: LogFilter,
    cancel: CancelToken,
    state: Arc<Mutex<StreamState>>,
}

/// The unsent lines and held calls of a stream, and which events it has had.
#[derive(Default)]
struct StreamState {
    /// Events and logs that are not in the outbox yet.
    lines: Vec<u8>,
    started: bool,
    ended: Option<(StopReason, TurnUsage)>,
    error: Option<TurnError>,
    /// The ids of the `tool_use` events without a result.
    open_calls: Vec<String>,
    /// Calls that wait for their `tool_use` event.
    held: Vec<HeldCall>,
    /// How many calls in a row had no event in time.
    unrecorded_calls: u32,
    /// Whether the turn emits `tool_use` events.
    has_tool_events: bool,
    /// Whether the turn's thread is waiting for room in the outbox.
    waits_for_room: bool,
    /// The stream was ended without its thread, whose further events are dropped.
    abandoned: bool,
}

/// A call of one of the daemon's tools that codex made before its `tool_use` was emitted.
struct HeldCall {
    number: u64,
    /// codex's id of the call.
    call_id: String,
    /// The request to the daemon.
    line: Vec<u8>,
    /// When it is sent at the latest.
    until: Instant,
}

impl StreamState {
    /// Sends the held calls whose event is in the outbox, or whose time is up. They are never added to `lines`: one
    /// that is cancelled meanwhile would be sent after its cancel.
    fn release_calls(&mut self, outbox: &Outbox) {
        if !self.lines.is_empty() {
            return;
        }
        let now = Instant::now();
        let (open, unrecorded_calls) = (&self.open_calls, &mut self.unrecorded_calls);
        let due = |call: &mut HeldCall| open.contains(&call.call_id) || call.until <= now;
        for call in self.held.extract_if(.., due) {
            *unrecorded_calls = match open.contains(&call.call_id) {
                true => 0,
                false => *unrecorded_calls + 1,
            };
            outbox.push(call.line);
        }
    }
}

/// Access to a stream from other threads: orders tool calls behind their events, and ends a stream whose thread hangs.
pub(super) struct StreamHandle {
    outbox: Outbox,
    stream: String,
    state: Arc<Mutex<StreamState>>,
}

impl StreamHandle {
    /// Holds the request of a tool call back until its `tool_use` event is in the outbox. Returns it if there is
    /// nothing to wait for.
    fn hold(&self, number: u64, call_id: Option<&str>, line: Vec<u8>) -> Option<Vec<u8>> {
        let mut state = lock(&self.state);
        // A call inside code mode is recorded only when it has completed.
        let call_id = call_id.filter(|id| !id.starts_with(NESTED_ID_PREFIX));
        let is_emitted = call_id.is_some_and(|id| state.open_calls.iter().any(|open| open == id));
        match call_id {
            Some(call_id)
                if state.has_tool_events
                    && state.unrecorded_calls < MAX_UNRECORDED_CALLS
                    && !(is_emitted && state.lines.is_empty()) =>
            {
                state.held.push(HeldCall {
                    number,
                    call_id: call_id.to_owned(),
                    line,
                    until: Instant::now() + HOLD_TIMEOUT,
                });
                None
            }
            _ => Some(line),
        }
    }

    /// Drops a held call. Returns whether it was still held.
    fn drop_held(&self, number: u64) -> bool {
        let held = &mut lock(&self.state).held;
        let at = held.iter().position(|call| call.number == number);
        at.map(|at| held.remove(at)).is_some()
    }

    /// Whether the turn is only waiting for the daemon to read.
    pub(super) fn waits_for_room(&self) -> bool {
        lock(&self.state).waits_for_room
    }

    /// Emits the rest of the stream's events without its thread, whose further events are dropped.
    pub(super) fn abandon(&self) -> TurnResult {
        let mut state = lock(&self.state);
        state.abandoned = true;
        let mut lines = std::mem::take(&mut state.lines);
        let has_failed = state.error.is_some();
        let (stop_reason, usage) = state.ended.unwrap_or_else(|| {
            let mut emit = |event: serde_json::Value| {
                let event = event.to_string();
                event_line(&mut lines, &self.stream, |out| {
                    out.extend_from_slice(event.as_bytes());
                });
            };
            if !state.started {
                emit(json!(TurnEvent::MessageStart));
            }
            for id in std::mem::take(&mut state.open_calls) {
                let content = "the turn was cancelled and did not end; this call has no output";
                emit(
                    json!({"type": "tool_result", "id": id, "content": content, "is_error": true}),
                );
            }
            // The thread has emitted an `error` event, but not the end.
            let stop_reason = match has_failed {
                true => StopReason::Error,
                false => StopReason::Cancelled,
            };
            let usage = TurnUsage::default();
            emit(json!(TurnEvent::MessageEnd { stop_reason, usage }));
            (stop_reason, usage)
        });
        if !lines.is_empty() {
            // Under the lock, so that no event of the thread follows.
            self.outbox.push(lines);
        }
        TurnResult {
            stop_reason,
            thread_id: None,
            thread_state: ThreadState::New,
            usage,
            thread_usage: None,
            telemetry: Telemetry::default(),
            error: state.error.take(),
        }
    }
}

fn lock(state: &Mutex<StreamState>) -> MutexGuard<'_, StreamState> {
    // No holder of this lock panics while the state is inconsistent.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Appends the line of an event, whose JSON is written by `write`.
fn event_line(lines: &mut Vec<u8>, stream: &str, write: impl FnOnce(&mut Vec<u8>)) {
    // Writes to memory cannot fail.
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
        // Made from an id, so it is valid JSON.
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
            state: Arc::default(),
        }
    }

    /// Starts to hold calls of the daemon's tools back until their `tool_use` event is emitted.
    pub(super) fn expect_tool_events(&self) {
        lock(&self.state).has_tool_events = true;
    }

    /// Another handle to this stream.
    pub(super) fn handle(&self) -> StreamHandle {
        StreamHandle {
            outbox: self.outbox.clone(),
            stream: self.stream.clone(),
            state: Arc::clone(&self.state),
        }
    }
}

impl DaemonSink {
    fn line(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut state = lock(&self.state);
        if state.abandoned {
            return;
        }
        event_line(&mut state.lines, &self.stream, write);
        if state.lines.len() >= FLUSH_BYTES {
            drop(state);
            self.flush();
        }
    }

    /// Moves the buffered lines to the outbox. The lock is held meanwhile, so that nothing can follow the end of an
    /// abandoned stream, but not while waiting for room.
    fn queue(&self, cancel: Option<&CancelToken>) {
        loop {
            {
                let mut state = lock(&self.state);
                state.waits_for_room = false;
                if state.lines.is_empty() || self.outbox.try_push(&mut state.lines) {
                    return;
                }
                state.waits_for_room = true;
            }
            if !self.outbox.wait_for_room(cancel) {
                lock(&self.state).waits_for_room = false;
                return;
            }
        }
    }
}

impl EventSink for DaemonSink {
    fn event(&mut self, event: &TurnEvent<'_>) {
        match event {
            TurnEvent::MessageStart => lock(&self.state).started = true,
            TurnEvent::MessageEnd { stop_reason, usage } => {
                lock(&self.state).ended = Some((*stop_reason, *usage));
            }
            TurnEvent::Error { error } => lock(&self.state).error = Some((*error).clone()),
            _ => {}
        }
        self.line(|out| {
            // Cannot fail: it writes to memory, and all keys are strings.
            let _ = serde_json::to_writer(out, event);
        });
    }

    fn raw_event(&mut self, event: &[u8]) {
        #[derive(serde::Deserialize)]
        struct Head {
            r#type: String,
            id: Option<String>,
        }
        // Before `open_calls` is updated: a call made meanwhile must not count this event as emitted.
        self.line(|out| out.extend_from_slice(event));
        if let Ok(Head {
            r#type: kind,
            id: Some(id),
        }) = serde_json::from_slice(event)
        {
            let open = &mut lock(&self.state).open_calls;
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
        let log_level = match level {
            Level::Debug => log::Level::Debug,
            Level::Warn => log::Level::Warn,
        };
        log::log!(log_level, "stream {}: {message}", self.stream);
        let mut state = lock(&self.state);
        if !state.abandoned
            && let Some(line) = self.filter.line(level, message, &self.fields)
        {
            state.lines.extend_from_slice(&line);
        }
    }

    fn flush(&mut self) {
        self.queue(Some(&self.cancel));
        lock(&self.state).release_calls(&self.outbox);
    }

    fn finish(&mut self) {
        self.queue(None);
    }

    fn holds_calls(&self) -> bool {
        !lock(&self.state).held.is_empty()
    }
}

/// Called with the response to a call.
type OnResponse = Box<dyn FnOnce(ToolAnswer) + Send>;

/// The tool calls of all turns that the daemon has not responded to.
#[derive(Clone, Default)]
pub(super) struct PendingCalls(Arc<Mutex<PendingCallsState>>);

#[derive(Default)]
struct PendingCallsState {
    /// The number of the newest call.
    last_number: u64,
    waiting: HashMap<u64, OnResponse>,
    /// No more responses will come: calls fail at once.
    is_closed: bool,
}

impl PendingCalls {
    /// Completes a call with the daemon's response. Returns whether the id is that of a pending call.
    pub(super) fn complete(&self, id: &Id, outcome: Result<&RawValue, &RawValue>) -> bool {
        let Some(on_response) = self.take(id) else {
            return false;
        };
        on_response(match outcome {
            Ok(result) => parse_output(result).map_err(|why| unreadable(&why)),
            Err(error) => Err(error_message(error)),
        });
        true
    }

    /// Fails a pending call whose response cannot be read. Other ids are ignored.
    pub(super) fn fail(&self, id: &Id, why: &str) {
        if let Some(on_response) = self.take(id) {
            on_response(Err(unreadable(why)));
        }
    }

    fn take(&self, id: &Id) -> Option<OnResponse> {
        let number = call_number(id)?;
        self.lock().waiting.remove(&number)
    }

    /// Cancels all pending calls, and fails them and all later ones.
    pub(super) fn close(&self, outbox: &Outbox) {
        let waiting = {
            let mut state = self.lock();
            state.is_closed = true;
            std::mem::take(&mut state.waiting)
        };
        for (number, on_response) in waiting {
            outbox.push(cancelled_line(number, DAEMON_GONE));
            on_response(Err(DAEMON_GONE.to_owned()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, PendingCallsState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const DAEMON_GONE: &str = "the daemon is gone, and its tools with it";

/// The id of the request of a call.
fn request_id(number: u64) -> String {
    format!("tool-{number}")
}

fn call_number(id: &Id) -> Option<u64> {
    let Id::Text(id) = id else { return None };
    let number = id.strip_prefix("tool-")?.parse().ok()?;
    (request_id(number) == *id).then_some(number)
}

fn parse_output(result: &RawValue) -> Result<ToolOutput, String> {
    // A derived `Deserialize` also accepts a list of the fields in order.
    if !result.get().starts_with('{') {
        return Err("`result` must be an object".to_owned());
    }
    serde_json::from_str(result.get()).map_err(|error| error.to_string())
}

fn unreadable(why: &str) -> String {
    format!("the daemon's answer cannot be read: {why}")
}

/// The notification that cancels a call.
fn cancelled_line(number: u64, why: &str) -> Vec<u8> {
    let line = json!({
        "jsonrpc": "2.0",
        "method": names::CANCELLED,
        "params": {"requestId": request_id(number), "reason": why},
    });
    format!("{line}\n").into_bytes()
}

/// The message of an error response, for the model.
fn error_message(error: &RawValue) -> String {
    jsonrpc::error_message(error)
        .unwrap_or_else(|| format!("the daemon answered with an error: {}", error.get()))
}

/// Sends a turn's tool calls to the daemon.
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
    fn call(&self, call: ToolCall, on_response: OnResponse) -> CallId {
        let mut state = self.calls.lock();
        state.last_number += 1;
        let number = state.last_number;
        if state.is_closed {
            drop(state);
            on_response(Err(DAEMON_GONE.to_owned()));
            return CallId(number);
        }
        state.waiting.insert(number, on_response);
        let line = format!(
                "{{\"jsonrpc\":\"2.0\",\"id\":\"{}\",\"method\":\"{}\",\"params\":{{\"name\":{},\"arguments\":{},\"_meta\":{{\"agent_id\":{},\"stream\":{},\"call_id\":{}}}}}}}\n",
                request_id(number),
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
        // Unlocked only now: a cancel of the call must follow it on the wire.
        drop(state);
        CallId(number)
    }

    fn cancel(&self, call: CallId) {
        if self.calls.lock().waiting.remove(&call.0).is_none() {
            // The response came before the cancel.
            return;
        }
        if self.stream.drop_held(call.0) {
            // It was not sent to the daemon.
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

    /// With and without a `tool_use` event that is not in the outbox yet.
    #[test]
    fn does_not_send_held_call_that_is_cancelled() {
        for has_event in [false, true] {
            let (reader, writer) = std::io::pipe().unwrap();
            let (outbox, _thread) = Outbox::start(writer, || {}).unwrap();
            let cancel = CancelToken::new().unwrap();
            let filter = LogFilter::default();
            let mut sink = DaemonSink::new(outbox.clone(), "7".to_owned(), None, filter, cancel);
            sink.expect_tool_events();
            let calls = PendingCalls::default();
            let tools = DaemonTools::new(outbox.clone(), calls, None, sink.handle());
            if has_event {
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
            let sent = lines.take_while(|line| line != "end").count();
            assert_eq!(sent, usize::from(has_event));
        }
    }
}
