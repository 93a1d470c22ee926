//! The daemon's side of the protocol.
//!
//! Whatever the plugin sends is held against `man/plexum-openai-protocol.7` as it comes, in every test: the
//! framing, the order of a stream's events, one result for each tool call, nothing after the answer.

use super::{LIMIT, Lab, ps};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The names on the wire, as the contract has them. Not those of the program: a name that is wrong there must fail.
pub(crate) mod method {
    pub(crate) const INITIALIZE: &str = "initialize";
    pub(crate) const PING: &str = "ping";
    pub(crate) const SET_LOG_LEVEL: &str = "logging/setLevel";
    pub(crate) const STREAM: &str = "plexum/provider/stream";
    pub(crate) const STEER: &str = "plexum/provider/steer";
    pub(crate) const CANCEL: &str = "plexum/provider/cancel";
    pub(crate) const MODELS: &str = "plexum/provider/models";
    pub(crate) const MUTATE: &str = "plexum/session/mutate";
    pub(crate) const INITIALIZED: &str = "notifications/initialized";
    pub(crate) const CANCELLED: &str = "notifications/cancelled";
    pub(crate) const TOOLS_CHANGED: &str = "notifications/plexum/tools/changed";
    pub(crate) const LOG: &str = "notifications/message";
    pub(crate) const EVENT: &str = "notifications/plexum/provider/event";
    pub(crate) const TOOL_CALL: &str = "plexum/host/tool/call";
}

/// A handler of tool calls: from the parameters to a result, an `Err` for an error answer, or `None` for
/// no answer at all.
type ToolHandler = Box<dyn FnMut(&Value) -> Option<Result<Value, Value>>>;

/// A running plugin, seen as its daemon sees it.
pub(crate) struct Daemon {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<Vec<u8>>,
    gate: Arc<Gate>,
    threads: Vec<JoinHandle<()>>,
    stderr: Arc<Mutex<String>>,
    next_id: i64,
    /// Answers that came, by the id as JSON; null ids have a list of their own.
    answers: BTreeMap<String, Value>,
    answers_to_nothing: VecDeque<Value>,
    streams: BTreeMap<String, Stream>,
    logs: Vec<Value>,
    tool_calls: Vec<Value>,
    early_calls: Vec<Value>,
    tools_cancelled: Vec<Value>,
    tools: ToolHandler,
    exit: Option<ExitStatus>,
}

/// Lets the reader of the plugin's stdout stop.
#[derive(Default)]
struct Gate {
    closed: Mutex<bool>,
    changed: Condvar,
}

#[derive(Default)]
struct Stream {
    events: Vec<Value>,
    answered: bool,
    open_calls: BTreeSet<String>,
    /// How many `text_delta` events came.
    texts: u64,
    calls: BTreeSet<String>,
}

/// A turn that is over.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(crate) events: Vec<Value>,
    /// The whole answer to the request.
    pub(crate) answer: Value,
}

impl Turn {
    pub(crate) fn result(&self) -> &Value {
        let result = &self.answer["result"];
        assert!(!result.is_null(), "an error answer: {}", self.answer);
        result
    }

    pub(crate) fn text(&self) -> String {
        self.of("text_delta")
            .map(|event| event["text"].as_str().expect("text is a string"))
            .collect()
    }

    /// The events of this type.
    pub(crate) fn of(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.events
            .iter()
            .filter(move |event| event["type"] == kind)
    }

    /// The code of the turn's error, where it has one.
    pub(crate) fn error_code(&self) -> Option<&str> {
        self.of("error").next()?["error"]["code"].as_str()
    }

    pub(crate) fn stop_reason(&self) -> &str {
        self.result()["stop_reason"]
            .as_str()
            .expect("a stop_reason")
    }

    pub(crate) fn thread(&self) -> &str {
        self.result()["thread_id"].as_str().expect("a thread_id")
    }
}

impl Daemon {
    /// A plugin that has been initialised.
    #[track_caller]
    pub(crate) fn start(lab: &Lab) -> Daemon {
        let mut daemon = Daemon::start_uninitialised(lab);
        daemon.init();
        daemon
    }

    #[track_caller]
    pub(crate) fn init(&mut self) {
        let answer = self.call(method::INITIALIZE, Daemon::introduction());
        assert_eq!(
            answer["result"]["protocolVersion"], "2025-06-18",
            "{answer}"
        );
        self.notify(method::INITIALIZED, json!({}));
    }

    /// The parameters of `initialize`.
    pub(crate) fn introduction() -> Value {
        json!({
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        })
    }

    pub(crate) fn start_uninitialised(lab: &Lab) -> Daemon {
        Daemon::start_by(lab, &mut Command::new(env!("CARGO_BIN_EXE_plexum-openai")))
    }

    /// A plugin that this command starts.
    pub(crate) fn start_by(lab: &Lab, command: &mut Command) -> Daemon {
        let mut child = command
            .env_clear()
            .envs(lab.env())
            .current_dir(lab.root())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the plugin can be started");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        let gate = Arc::new(Gate::default());
        let said = Arc::new(Mutex::new(String::new()));
        let (sender, lines) = channel();
        let reader = {
            let gate = Arc::clone(&gate);
            move || {
                loop {
                    gate.pass();
                    let mut line = Vec::new();
                    match stdout.read_until(b'\n', &mut line) {
                        Ok(0) | Err(_) => return,
                        Ok(_) if sender.send(line).is_err() => return,
                        Ok(_) => {}
                    }
                }
            }
        };
        let listener = {
            let said = Arc::clone(&said);
            move || {
                let mut part = [0; 4096];
                while let Ok(length @ 1..) = stderr.read(&mut part) {
                    let text = String::from_utf8_lossy(&part[..length]).into_owned();
                    said.lock()
                        .expect("no panic while it is held")
                        .push_str(&text);
                }
            }
        };
        Daemon {
            stdin: child.stdin.take(),
            child,
            lines,
            gate,
            threads: vec![thread::spawn(reader), thread::spawn(listener)],
            stderr: said,
            next_id: 1,
            answers: BTreeMap::new(),
            answers_to_nothing: VecDeque::new(),
            streams: BTreeMap::new(),
            logs: Vec::new(),
            tool_calls: Vec::new(),
            early_calls: Vec::new(),
            tools_cancelled: Vec::new(),
            tools: Box::new(|_| Some(Err(json!({"code": -32601, "message": "no tools here"})))),
            exit: None,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Answers the plugin's tool calls from now on.
    pub(crate) fn on_tool_call(
        &mut self,
        handler: impl FnMut(&Value) -> Option<Result<Value, Value>> + 'static,
    ) {
        self.tools = Box::new(handler);
    }

    /// Writes bytes from a thread of its own, for what the plugin does not read at once. Nothing else can be sent
    /// until that is given to [`Daemon::all_sent`].
    pub(crate) fn send_in_background(&mut self, bytes: Vec<u8>) -> JoinHandle<ChildStdin> {
        let mut stdin = self.stdin.take().expect("stdin is open");
        thread::spawn(move || {
            stdin.write_all(&bytes).expect("the plugin reads");
            stdin
        })
    }

    pub(crate) fn all_sent(&mut self, sender: JoinHandle<ChildStdin>) {
        self.stdin = Some(sender.join().expect("it was written"));
    }

    /// Writes bytes as they are.
    #[track_caller]
    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("stdin is open");
        stdin.write_all(bytes).expect("the plugin reads");
        stdin.flush().expect("the plugin reads");
    }

    #[track_caller]
    pub(crate) fn send(&mut self, message: &Value) {
        self.send_bytes(format!("{message}\n").as_bytes());
    }

    pub(crate) fn notify(&mut self, method: &str, params: Value) {
        self.send(&json!({"jsonrpc": "2.0", "method": method, "params": params}));
    }

    /// Sends a request and does not wait; its id.
    pub(crate) fn request(&mut self, method: &str, params: Value) -> i64 {
        let id = self.next_id;
        self.next_id += 1;
        self.send(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}));
        id
    }

    /// Says that nobody waits for this request any more.
    pub(crate) fn cancel(&mut self, id: i64) {
        self.notify(
            method::CANCELLED,
            json!({"requestId": id, "reason": "tested"}),
        );
    }

    /// Sees that the plugin answers: what was sent before has been read then.
    #[track_caller]
    pub(crate) fn ping(&mut self) {
        assert_eq!(self.call(method::PING, json!({}))["result"], json!({}));
    }

    /// Sends a request and waits for its whole answer.
    #[track_caller]
    pub(crate) fn call(&mut self, method: &str, params: Value) -> Value {
        let id = self.request(method, params);
        self.answer(id)
    }

    /// Waits for the answer to the request with this id.
    #[track_caller]
    pub(crate) fn answer(&mut self, id: impl Into<Value>) -> Value {
        let key = id.into().to_string();
        self.wait(&format!("the answer to {key}"), |daemon| {
            daemon.answers.remove(&key)
        })
    }

    /// Waits for an error answer with the id null.
    #[track_caller]
    pub(crate) fn answer_to_nothing(&mut self) -> Value {
        self.wait("an answer with the id null", |daemon| {
            daemon.answers_to_nothing.pop_front()
        })
    }

    /// The parameters of a stream for a prompt in a lab's workspace.
    pub(crate) fn prompt(lab: &Lab, text: &str) -> Value {
        json!({
            "model": "codex",
            "agent": {"id": "alice", "workspace": lab.workspace()},
            "request": {"messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]},
        })
    }

    /// Runs a turn to its end.
    #[track_caller]
    pub(crate) fn turn(&mut self, params: Value) -> Turn {
        let id = self.request(method::STREAM, params);
        self.finish(id)
    }

    /// Waits for the end of a turn that was requested.
    #[track_caller]
    pub(crate) fn finish(&mut self, id: i64) -> Turn {
        let answer = self.answer(id);
        let stream = self.streams.get(&id.to_string());
        Turn {
            events: stream.map_or(Vec::new(), |stream| stream.events.clone()),
            answer,
        }
    }

    /// Has the request with this id been answered?
    pub(crate) fn is_answered(&self, id: i64) -> bool {
        self.answers.contains_key(&id.to_string())
    }

    /// How many answers came so far that nobody has asked for yet.
    pub(crate) fn heard(&self) -> usize {
        self.answers.len() + self.answers_to_nothing.len()
    }

    /// The events of a stream that came so far.
    pub(crate) fn events(&self, id: i64) -> &[Value] {
        let stream = self.streams.get(&id.to_string());
        stream.map_or(&[], |stream| &stream.events)
    }

    /// Waits for an event of a stream that is as wanted.
    #[track_caller]
    pub(crate) fn event(&mut self, id: i64, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.wait(what, |daemon| {
            let stream = daemon.streams.get(&id.to_string())?;
            stream.events.iter().find(|event| wanted(event)).cloned()
        })
    }

    /// Waits for a log notification of this level with this in its message.
    #[track_caller]
    pub(crate) fn log(&mut self, level: &str, part: &str) -> Value {
        self.wait(&format!("a {level} log with {part:?}"), |daemon| {
            daemon
                .logs
                .iter()
                .find(|log| {
                    log["level"] == level
                        && log["data"]["message"]
                            .as_str()
                            .is_some_and(|message| message.contains(part))
                })
                .cloned()
        })
    }

    /// The logs that came so far.
    pub(crate) fn logs(&self) -> &[Value] {
        &self.logs
    }

    /// The tool calls that came so far, whole.
    pub(crate) fn tool_calls(&self) -> &[Value] {
        &self.tool_calls
    }

    /// codex's ids of the tool calls that came before their `tool_use` event.
    pub(crate) fn early_calls(&self) -> &[Value] {
        &self.early_calls
    }

    /// The ids of the tool calls whose cancel was told and not waited for.
    pub(crate) fn tools_cancelled(&self) -> &[Value] {
        &self.tools_cancelled
    }

    /// Waits until the plugin has asked for `count` tool calls.
    #[track_caller]
    pub(crate) fn wait_for_tool_calls(&mut self, count: usize) {
        self.wait("a tool call", |daemon| {
            (daemon.tool_calls.len() >= count).then_some(())
        });
    }

    /// Takes what the plugin says, and answers what it asks, until `done`.
    #[track_caller]
    pub(crate) fn serve_until(&mut self, what: &str, mut done: impl FnMut(&mut Daemon) -> bool) {
        let until = Instant::now() + LIMIT;
        while !done(self) {
            assert!(
                Instant::now() < until,
                "waited in vain for {what}; stderr: {}",
                self.stderr()
            );
            // What is waited for may be no message.
            if let Ok(line) = self.lines.recv_timeout(Duration::from_millis(5)) {
                self.take(&line);
            }
        }
    }

    /// Waits until a tool call is cancelled; the id of its request.
    #[track_caller]
    pub(crate) fn tool_cancelled(&mut self) -> Value {
        self.wait("a cancelled tool call", |daemon| {
            daemon.tools_cancelled.pop()
        })
    }

    /// Stops reading what the plugin writes.
    pub(crate) fn stop_reading(&mut self) {
        *self.gate.closed.lock().expect("no panic while it is held") = true;
    }

    pub(crate) fn read_again(&mut self) {
        self.gate.open();
    }

    pub(crate) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    pub(crate) fn signal(&self, signal: Signal) {
        ps::signal(self.pid(), signal);
    }

    /// What the plugin has said on stderr so far.
    pub(crate) fn stderr(&self) -> String {
        self.stderr
            .lock()
            .expect("no panic while it is held")
            .clone()
    }

    /// Waits for the end of the plugin's stdout, which may come before its own.
    #[track_caller]
    pub(crate) fn stdout_end(&mut self, limit: Duration) {
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.take(&line),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => panic!("stdout does not end"),
            }
        }
    }

    /// Waits for the plugin's end, reading what it still says; how it ended.
    #[track_caller]
    pub(crate) fn exit(&mut self, limit: Duration) -> ExitStatus {
        self.gate.open();
        let start = Instant::now();
        loop {
            while let Ok(line) = self.lines.recv_timeout(Duration::from_millis(5)) {
                self.take(&line);
            }
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                // What it wrote last.
                while let Ok(line) = self.lines.recv_timeout(Duration::from_millis(500)) {
                    self.take(&line);
                }
                self.exit = Some(status);
                return status;
            }
            assert!(start.elapsed() < limit, "the plugin does not end");
        }
    }

    /// Takes messages until `ready` has something.
    #[track_caller]
    fn wait<T>(&mut self, what: &str, mut ready: impl FnMut(&mut Daemon) -> Option<T>) -> T {
        let until = Instant::now() + LIMIT;
        loop {
            if let Some(found) = ready(self) {
                return found;
            }
            let left = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.take(&line),
                Err(RecvTimeoutError::Timeout) => {
                    panic!("waited in vain for {what}; stderr: {}", self.stderr())
                }
                Err(RecvTimeoutError::Disconnected) => panic!(
                    "the plugin's stdout ended before {what}; stderr: {}",
                    self.stderr()
                ),
            }
        }
    }

    /// Files a message away, after seeing that it may be as it is.
    #[track_caller]
    fn take(&mut self, line: &[u8]) {
        let shown = String::from_utf8_lossy(line);
        assert!(line.ends_with(b"\n"), "a line without its end: {shown}");
        let message: Value =
            serde_json::from_slice(line).unwrap_or_else(|error| panic!("{error}: {shown}"));
        assert_eq!(message["jsonrpc"], "2.0", "{shown}");
        let params = message["params"].clone();
        match (message["method"].as_str(), message.get("id")) {
            (Some(method::EVENT), None) => self.take_event(&params, &shown),
            (Some(method::LOG), None) => {
                let levels = ["debug", "info", "notice", "warning", "error"];
                assert!(
                    params["level"]
                        .as_str()
                        .is_some_and(|level| levels.contains(&level))
                        && params["logger"] == "plexum-openai"
                        && params["data"]["message"].is_string(),
                    "{shown}"
                );
                self.logs.push(params);
            }
            (Some(method::CANCELLED), None) => {
                assert!(
                    params["requestId"].is_string() && params["reason"].is_string(),
                    "{shown}"
                );
                self.tools_cancelled.push(params["requestId"].clone());
            }
            (Some(method::TOOL_CALL), Some(id)) => {
                let meta = &params["_meta"];
                let stream = self.streams.get(&meta["stream"].to_string());
                let mut events = stream.iter().flat_map(|stream| &stream.events);
                if meta["call_id"].is_string()
                    && !events.any(|it| it["type"] == "tool_use" && it["id"] == meta["call_id"])
                {
                    self.early_calls.push(meta["call_id"].clone());
                }
                let answer = (self.tools)(&params);
                self.tool_calls.push(message.clone());
                let answer = match answer {
                    None => return,
                    Some(Ok(result)) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
                    Some(Err(error)) => json!({"jsonrpc": "2.0", "id": id, "error": error}),
                };
                if let Some(stdin) = &mut self.stdin {
                    // A plugin that was killed in the middle of a call does not read its answer.
                    let _ = writeln!(stdin, "{answer}");
                }
            }
            (Some(_), _) => panic!("no such message: {shown}"),
            (None, Some(id)) => {
                assert!(
                    message.get("result").is_some() != message.get("error").is_some(),
                    "one of result and error: {shown}"
                );
                if let Some(error) = message.get("error") {
                    assert!(
                        error["code"].is_i64() && error["message"].is_string(),
                        "{shown}"
                    );
                }
                if id.is_null() {
                    self.answers_to_nothing.push_back(message);
                    return;
                }
                let key = id.to_string();
                // -32600 answers a second request under an id in use; the stream of that id goes on.
                if message["error"]["code"] != -32600
                    && let Some(stream) = self.streams.get_mut(&key)
                {
                    stream.answer(&shown);
                }
                let before = self.answers.insert(key, message.clone());
                assert!(before.is_none(), "a second answer: {shown}");
            }
            (None, None) => panic!("no message at all: {shown}"),
        }
    }

    #[track_caller]
    fn take_event(&mut self, params: &Value, shown: &str) {
        let stream = self
            .streams
            .entry(params["stream"].to_string())
            .or_default();
        stream.take(&params["event"], shown);
    }
}

impl Stream {
    #[track_caller]
    fn take(&mut self, event: &Value, shown: &str) {
        assert!(!self.answered, "an event after the answer: {shown}");
        check_order(
            &self.events,
            event,
            &mut self.texts,
            &mut self.calls,
            &mut self.open_calls,
        );
        self.events.push(event.clone());
    }

    #[track_caller]
    fn answer(&mut self, shown: &str) {
        assert!(!self.answered, "a second answer: {shown}");
        assert!(
            self.events
                .last()
                .is_some_and(|event| event["type"] == "message_end"),
            "an answer before message_end: {shown}"
        );
        self.answered = true;
    }
}

/// Sees that `event` may follow `before`.
#[track_caller]
fn check_order(
    before: &[Value],
    event: &Value,
    texts: &mut u64,
    calls: &mut BTreeSet<String>,
    open_calls: &mut BTreeSet<String>,
) {
    let kind = event["type"].as_str().expect("an event has a type");
    assert_eq!(
        kind == "message_start",
        before.is_empty(),
        "message_start is first and only first: {event}"
    );
    assert!(
        before
            .last()
            .is_none_or(|last| last["type"] != "message_end"),
        "an event after message_end: {event}"
    );
    match kind {
        "message_start" => {}
        "text_delta" => {
            assert!(event["text"].is_string(), "{event}");
            let message = event["message"].as_u64();
            assert!(message.is_some_and(|at| at <= *texts), "{event}");
            *texts += 1;
        }
        "thinking_delta" => assert!(event["text"].is_string(), "{event}"),
        "status" => {
            let states = ["queued", "running", "retrying", "compacting", "compacted"];
            let state = event["state"].as_str().expect("a status has a state");
            assert!(states.contains(&state), "{event}");
            let detail = event.get("detail");
            assert!(detail.is_none_or(Value::is_string), "{event}");
        }
        "plan" => {
            let items = event["items"].as_array().expect("a plan has items");
            let is_item = |item: &Value| item["text"].is_string() && item["status"].is_string();
            assert!(items.iter().all(is_item), "{event}");
        }
        "tool_use" => {
            let id = event["id"].as_str().expect("a tool_use has an id");
            assert!(
                event["name"].is_string() && event.get("input").is_some(),
                "{event}"
            );
            assert!(calls.insert(id.to_owned()), "a second tool_use: {event}");
            open_calls.insert(id.to_owned());
        }
        "tool_result" => {
            let id = event["id"].as_str().expect("a tool_result has an id");
            assert!(event["is_error"].is_boolean(), "{event}");
            assert!(
                event["content"].is_string() || event["content"].is_array(),
                "{event}"
            );
            assert!(open_calls.remove(id), "a result of no open call: {event}");
        }
        "error" => {
            assert!(
                before.iter().all(|event| event["type"] != "error"),
                "a second {event}"
            );
            let error = &event["error"];
            assert!(
                error["code"].is_string()
                    && error["message"].is_string()
                    && error["retryable"].is_boolean(),
                "{event}"
            );
        }
        "message_end" => {
            assert!(
                open_calls.is_empty(),
                "calls without a result: {open_calls:?}"
            );
            let usage = event["usage"].as_object().expect("message_end has usage");
            let mut names: Vec<_> = usage.keys().map(String::as_str).collect();
            // Only where there were some.
            names.retain(|name| *name != "subagents");
            names.sort_unstable();
            assert_eq!(
                names,
                [
                    "cache_read_tokens",
                    "cache_write_tokens",
                    "input_tokens",
                    "output_tokens",
                    "thinking_tokens"
                ]
            );
            let failed = before.iter().any(|event| event["type"] == "error");
            let reason = event["stop_reason"].as_str().expect("a stop_reason");
            assert!(
                matches!(
                    (reason, failed),
                    ("end_turn", false) | ("error", true) | ("cancelled", _)
                ),
                "{event}"
            );
        }
        _ => panic!("no such event: {event}"),
    }
}

/// Sees that these events are a whole turn in the right order.
#[track_caller]
pub(crate) fn check_turn(events: &[Value]) {
    let mut texts = 0;
    let (mut calls, mut open_calls) = (BTreeSet::new(), BTreeSet::new());
    for (number, event) in events.iter().enumerate() {
        check_order(
            &events[..number],
            event,
            &mut texts,
            &mut calls,
            &mut open_calls,
        );
    }
    assert!(
        events
            .last()
            .is_some_and(|event| event["type"] == "message_end"),
        "message_end is last: {events:?}"
    );
}

impl Gate {
    fn pass(&self) {
        let mut closed = self.closed.lock().expect("no panic while it is held");
        while *closed {
            closed = self
                .changed
                .wait(closed)
                .expect("no panic while it is held");
        }
    }

    fn open(&self) {
        *self.closed.lock().expect("no panic while it is held") = false;
        self.changed.notify_all();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stdin = None;
        self.gate.open();
        if self.exit.is_none() {
            if thread::panicking() {
                // The first panic is the one to read.
                let _ = self.child.kill();
                let _ = self.child.wait();
            } else {
                let status = self.exit(Duration::from_secs(20));
                assert!(status.success(), "{status}; stderr: {}", self.stderr());
            }
        }
        for thread in self.threads.drain(..) {
            // What it panicked of has been printed.
            let _ = thread.join();
        }
    }
}
