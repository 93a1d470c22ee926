//! A model that says what a script says: the Responses API on loopback, so that the real codex runs without
//! an account.
//!
//! A script is a list of [`Reply`]s. Every request takes the first reply that still has turns left and whose
//! `match` fits; when all fitting ones are used up, the last of them that calls no tool is given again, so that
//! a script may be shorter than the conversation (a call given again would go on without end). Every request
//! is recorded whole: what reached the model is the only proof that a prompt, an image or a tool's output came
//! through.
//!
//! Threads and blocking reads only. It answers what codex asks and nothing else: no compression (codex
//! compresses for its own provider alone; a compressed request is refused loudly), no WebSocket.

use serde::Deserialize;
use serde_json::{Value, json};
use std::fs;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The largest request that is read: a prompt of a million characters may be four million bytes, and a
/// conversation has several.
const LARGEST_BODY: usize = 256 << 20;

/// One scripted answer to one request.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Reply {
    /// Only for requests whose last user text contains this.
    #[serde(rename = "match")]
    matches: Option<String>,
    /// Only for requests whose last item is the output of this call.
    after: Option<String>,
    /// How often it is given before the next fitting reply takes over.
    times: Option<u64>,

    /// A reasoning summary; comes first.
    reasoning: Option<String>,
    /// An assistant message.
    text: Option<String>,
    /// An assistant message that repeats the last user text.
    echo: bool,
    /// Write the message, and the reasoning, word by word.
    words: bool,
    /// Calls of functions, of an MCP server's tools where there is a `namespace`.
    calls: Vec<Call>,
    /// Calls of tools that take free text.
    custom_calls: Vec<CustomCall>,
    /// Whole output items as the Responses API has them; come last.
    items: Vec<Value>,
    usage: Tokens,

    /// An HTTP error instead of a stream.
    status: Option<u16>,
    /// Of the error, or of the stream.
    headers: serde_json::Map<String, Value>,
    body: Value,
    /// The `error` of a `response.failed` in place of `response.completed`.
    failed: Value,

    /// Close the connection after so many events; `response.created` is the first.
    drop_after: Option<usize>,
    /// Wait before the answer's first byte.
    delay_ms: u64,
    /// Wait before each event.
    event_delay_ms: u64,
    /// Wait, before the answer's first byte, until this file exists.
    wait_for: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Call {
    name: String,
    namespace: Option<String>,
    /// An object, or a string that is passed on as it is.
    #[serde(default)]
    arguments: Value,
    /// `call_1`, `call_2`, … over the whole script where there is none.
    id: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CustomCall {
    name: String,
    input: String,
    id: Option<String>,
}

/// What a reply costs.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Tokens {
    input: u64,
    cached: u64,
    output: u64,
    reasoning: u64,
}

impl Default for Tokens {
    fn default() -> Tokens {
        Tokens {
            input: 100,
            cached: 10,
            output: 5,
            reasoning: 1,
        }
    }
}

/// A request that came, whole.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Value,
}

impl Request {
    /// The text of the last message of the user, its parts joined.
    pub(crate) fn user_text(&self) -> String {
        let input = self.body["input"].as_array().map_or(&[][..], Vec::as_slice);
        input
            .iter()
            .rev()
            .find(|item| item["role"] == "user")
            .and_then(|item| item["content"].as_array())
            .map_or(String::new(), |parts| {
                parts
                    .iter()
                    .filter_map(|part| part["text"].as_str())
                    .collect()
            })
    }

    fn follows(&self, call: &str) -> bool {
        self.body["input"]
            .as_array()
            .and_then(|input| input.last())
            .is_some_and(|item| item["call_id"] == call && item.get("output").is_some())
    }

    fn to_json(&self) -> Value {
        let headers: serde_json::Map<String, Value> = self
            .headers
            .iter()
            .map(|(name, value)| (name.clone(), json!(value)))
            .collect();
        json!({"path": self.path, "headers": headers, "body": self.body})
    }
}

/// A running model; it stops when this is dropped.
pub(crate) struct Model {
    address: SocketAddr,
    shared: Arc<Shared>,
    accept: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// Told at every new request, and at the end.
    changed: Condvar,
}

struct State {
    replies: Vec<(Reply, u64)>,
    requests: Vec<Request>,
    log: Option<Box<dyn Write + Send>>,
    /// The open connections, so that the end can wake their readers, and their threads.
    connections: Vec<TcpStream>,
    threads: Vec<JoinHandle<()>>,
    calls: u64,
    stopping: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere must not hide the requests that show why.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits; `false` where the model ended meanwhile.
    fn wait(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut state = self.state();
        while !state.stopping {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        false
    }
}

impl Model {
    /// A model with this script, on any free port.
    ///
    /// # Errors
    /// The script is none, or nothing can be bound on loopback.
    pub(crate) fn start(script: Value) -> io::Result<Model> {
        Model::listen(script, 0, None)
    }

    /// A model on `port` (0 is any), which also writes each request to `log` as a JSON line.
    ///
    /// # Errors
    /// As [`Model::start`].
    pub(crate) fn listen(
        script: Value,
        port: u16,
        log: Option<Box<dyn Write + Send>>,
    ) -> io::Result<Model> {
        let replies: Vec<Reply> = serde_json::from_value(script)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                replies: replies.into_iter().map(|reply| (reply, 0)).collect(),
                requests: Vec::new(),
                log,
                connections: Vec::new(),
                threads: Vec::new(),
                calls: 0,
                stopping: false,
            }),
            changed: Condvar::new(),
        });
        let accept = {
            let shared = Arc::clone(&shared);
            thread::Builder::new()
                .name("model-accept".to_owned())
                .spawn(move || accept(&listener, &shared))?
        };
        Ok(Model {
            address,
            shared,
            accept: Some(accept),
        })
    }

    /// What codex's `base_url` has to be.
    pub(crate) fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Writes the `config.toml` that leads codex here; the directory is made where it is missing. codex tries a
    /// failed request and a broken stream `retries` times again.
    ///
    /// # Errors
    /// The file or the directory cannot be written.
    pub(crate) fn write_codex_home(&self, home: &Path, retries: u32) -> io::Result<()> {
        fs::create_dir_all(home)?;
        fs::write(
            home.join("config.toml"),
            format!(
                r#"model = "gpt-5"
model_provider = "loopback"
# Nothing but loopback: no check for updates, no statistics.
check_for_update_on_startup = false
[analytics]
enabled = false
[model_providers.loopback]
name = "loopback"
base_url = "{}"
env_key = "LOOPBACK_KEY"
wire_api = "responses"
request_max_retries = {retries}
stream_max_retries = {retries}
"#,
                self.base_url()
            ),
        )
    }

    /// Every request so far, in the order in which they came.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.state().requests.clone()
    }

    /// Waits until `count` requests have come; the number that have when the time is up.
    pub(crate) fn wait_for_requests(&self, count: usize, limit: Duration) -> usize {
        let until = Instant::now() + limit;
        let mut state = self.shared.state();
        while state.requests.len() < count {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        state.requests.len()
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        let connections = {
            let mut state = self.shared.state();
            state.stopping = true;
            std::mem::take(&mut state.connections)
        };
        self.shared.changed.notify_all();
        for connection in connections {
            // One that the other side has closed already is as good.
            let _ = connection.shutdown(Shutdown::Both);
        }
        // Wakes the blocking accept; refused means that it is over already.
        let _ = TcpStream::connect(self.address);
        if let Some(accept) = self.accept.take() {
            // A panic there has been printed by its thread.
            let _ = accept.join();
        }
        let threads = std::mem::take(&mut self.shared.state().threads);
        for thread in threads {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for connection in listener.incoming() {
        let mut state = shared.state();
        if state.stopping {
            return;
        }
        let Ok(connection) = connection else {
            continue;
        };
        state.threads.retain(|thread| !thread.is_finished());
        let Ok(waker) = connection.try_clone() else {
            continue;
        };
        state.connections.push(waker);
        let shared = Arc::clone(shared);
        let thread = thread::Builder::new()
            .name("model-connection".to_owned())
            .spawn(move || {
                let peer = connection.peer_addr().ok();
                // A broken connection ends here; codex sees it, and the test sees what codex makes of it.
                let _ = converse(&connection, &shared);
                let _ = connection.shutdown(Shutdown::Both);
                shared
                    .state()
                    .connections
                    .retain(|open| open.peer_addr().ok() != peer);
            });
        if let Ok(thread) = thread {
            state.threads.push(thread);
        }
    }
}

/// Answers the requests of one connection until it ends.
fn converse(connection: &TcpStream, shared: &Shared) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut reader = BufReader::new(connection);
    let mut writer = BufWriter::new(connection);
    while let Some(head) = read_head(&mut reader)? {
        if head.length > LARGEST_BODY {
            return error_reply(&mut writer, 413, &[], &json!("the request is too large"));
        }
        let mut body = vec![0; head.length];
        reader.read_exact(&mut body)?;
        if head.method != "POST" || !head.path.ends_with("/responses") {
            error_reply(&mut writer, 404, &[], &json!("not a model's path"))?;
            continue;
        }
        let Ok(body) = serde_json::from_slice(&body) else {
            // Compressed, in all likelihood: a test would look at nothing and pass.
            error_reply(
                &mut writer,
                415,
                &[],
                &json!("the request is not plain JSON"),
            )?;
            continue;
        };
        let request = Request {
            path: head.path,
            headers: head.headers,
            body,
        };
        if !answer(&mut writer, shared, request)? {
            return Ok(());
        }
    }
    Ok(())
}

struct Head {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    length: usize,
}

/// Reads a request up to its body; `None` at the end of the connection.
fn read_head(reader: &mut impl BufRead) -> io::Result<Option<Head>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        match line.trim_end() {
            "" if lines.is_empty() => {}
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let mut words = lines[0].split(' ').map(str::to_owned);
    let headers: Vec<(String, String)> = lines[1..]
        .iter()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers
        .iter()
        .find(|(name, _)| name == "content-length")
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or(0);
    Ok(Some(Head {
        method: words.next().unwrap_or_default(),
        path: words.next().unwrap_or_default(),
        headers,
        length,
    }))
}

/// Chooses the reply for a request, records the request, and writes the reply. `false` where the connection
/// is to be closed now.
fn answer(writer: &mut impl Write, shared: &Shared, request: Request) -> io::Result<bool> {
    let user_text = request.user_text();
    let (reply, number, first_call) = {
        let mut state = shared.state();
        if let Some(log) = &mut state.log {
            writeln!(log, "{}", request.to_json())?;
            log.flush()?;
        }
        let reply = choose(&mut state.replies, &request, &user_text);
        state.requests.push(request);
        let number = state.requests.len();
        let first_call = state.calls;
        if let Some(reply) = &reply {
            state.calls += (reply.calls.len() + reply.custom_calls.len()) as u64;
        }
        (reply, number, first_call)
    };
    shared.changed.notify_all();
    let Some(reply) = reply else {
        // 400 is what codex does not try again.
        let message = format!("the script has no reply for a request that asks {user_text:.80?}");
        error_reply(
            writer,
            400,
            &[],
            &json!({"error": {"message": message, "type": "script"}}),
        )?;
        return Ok(true);
    };
    if !shared.wait(Duration::from_millis(reply.delay_ms)) {
        return Ok(false);
    }
    if let Some(path) = &reply.wait_for {
        while !Path::new(path).exists() {
            if !shared.wait(Duration::from_millis(5)) {
                return Ok(false);
            }
        }
    }
    let headers: Vec<(&str, &str)> = reply
        .headers
        .iter()
        .filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)))
        .collect();
    if let Some(status) = reply.status {
        error_reply(writer, status, &headers, &reply.body)?;
        return Ok(true);
    }
    stream_reply(
        writer, shared, &reply, &headers, number, first_call, &user_text,
    )
}

fn choose(replies: &mut [(Reply, u64)], request: &Request, user_text: &str) -> Option<Reply> {
    let fits = |reply: &Reply| {
        reply
            .matches
            .as_ref()
            .is_none_or(|part| user_text.contains(part.as_str()))
            && reply
                .after
                .as_ref()
                .is_none_or(|call| request.follows(call))
    };
    let fitting = |(reply, _): &&mut (Reply, u64)| fits(reply);
    let fresh = replies
        .iter_mut()
        .filter(fitting)
        .find(|(reply, given)| *given < reply.times.unwrap_or(1));
    if let Some((reply, given)) = fresh {
        *given += 1;
        return Some(reply.clone());
    }
    replies
        .iter()
        .rev()
        .find(|(reply, _)| fits(reply) && reply.calls.is_empty() && reply.custom_calls.is_empty())
        .map(|(reply, _)| reply.clone())
}

fn error_reply(
    writer: &mut impl Write,
    status: u16,
    headers: &[(&str, &str)],
    body: &Value,
) -> io::Result<()> {
    let body = match body {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    write!(
        writer,
        "HTTP/1.1 {status} Scripted\r\ncontent-type: application/json\r\ncontent-length: {}\r\n",
        body.len()
    )?;
    for (name, value) in headers {
        write!(writer, "{name}: {value}\r\n")?;
    }
    write!(writer, "\r\n{body}")?;
    writer.flush()
}

fn stream_reply(
    writer: &mut impl Write,
    shared: &Shared,
    reply: &Reply,
    headers: &[(&str, &str)],
    number: usize,
    first_call: u64,
    user_text: &str,
) -> io::Result<bool> {
    let mut events =
        vec![json!({"type": "response.created", "response": {"id": format!("resp_{number}")}})];
    for (index, item) in items(reply, number, first_call, user_text)
        .into_iter()
        .enumerate()
    {
        if reply.words {
            events.extend(words(&item, index));
        }
        events.push(
            json!({"type": "response.output_item.done", "output_index": index, "item": item}),
        );
    }
    let usage = reply.usage;
    let id = format!("resp_{number}");
    events.push(if reply.failed.is_null() {
        json!({"type": "response.completed", "response": {
            "id": id,
            "usage": {
                "input_tokens": usage.input,
                "input_tokens_details": {"cached_tokens": usage.cached},
                "output_tokens": usage.output,
                "output_tokens_details": {"reasoning_tokens": usage.reasoning},
                "total_tokens": usage.input + usage.output,
            },
        }})
    } else {
        json!({"type": "response.failed", "response": {"id": id, "error": reply.failed}})
    });
    write!(
        writer,
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
    )?;
    for (name, value) in headers {
        write!(writer, "{name}: {value}\r\n")?;
    }
    write!(writer, "\r\n")?;
    for (sent, event) in events.iter().enumerate() {
        if reply.drop_after == Some(sent) {
            writer.flush()?;
            return Ok(false);
        }
        if reply.event_delay_ms > 0 {
            writer.flush()?;
            if !shared.wait(Duration::from_millis(reply.event_delay_ms)) {
                return Ok(false);
            }
        }
        let name = event["type"].as_str().unwrap_or_default();
        let text = format!("event: {name}\ndata: {event}\n\n");
        write!(writer, "{:x}\r\n{text}\r\n", text.len())?;
    }
    write!(writer, "0\r\n\r\n")?;
    writer.flush()?;
    Ok(true)
}

/// The events that tell the text of an item before it is done, a word at a time.
fn words(item: &Value, index: usize) -> Vec<Value> {
    let (kind, part) = match item["type"].as_str() {
        Some("message") => ("response.output_text.delta", &item["content"][0]["text"]),
        Some("reasoning") => (
            "response.reasoning_summary_text.delta",
            &item["summary"][0]["text"],
        ),
        _ => return Vec::new(),
    };
    let text = part.as_str().unwrap_or_default();
    let mut begun = item.clone();
    for parts in ["content", "summary"] {
        if begun.get(parts).is_some() {
            begun[parts] = json!([]);
        }
    }
    let mut events =
        vec![json!({"type": "response.output_item.added", "output_index": index, "item": begun})];
    if item["type"] == "reasoning" {
        events.push(
            json!({"type": "response.reasoning_summary_part.added", "item_id": item["id"],
            "output_index": index, "summary_index": 0}),
        );
    }
    events.extend(text.split_inclusive(' ').map(|word| {
        json!({"type": kind, "item_id": item["id"], "output_index": index,
            "content_index": 0, "summary_index": 0, "delta": word})
    }));
    events
}

/// The reply's output items as the Responses API has them.
fn items(reply: &Reply, number: usize, first_call: u64, user_text: &str) -> Vec<Value> {
    let mut items = Vec::new();
    if let Some(text) = &reply.reasoning {
        items.push(json!({"type": "reasoning", "id": format!("rs_{number}"),
            "summary": [{"type": "summary_text", "text": text}]}));
    }
    let echo = reply.echo.then_some(user_text);
    for text in reply.text.as_deref().into_iter().chain(echo) {
        items.push(json!({"type": "message", "role": "assistant",
            "id": format!("msg_{number}_{}", items.len()),
            "content": [{"type": "output_text", "text": text}]}));
    }
    let mut calls = first_call;
    let mut call_id = |id: &Option<String>| {
        calls += 1;
        id.clone().unwrap_or_else(|| format!("call_{calls}"))
    };
    for call in &reply.calls {
        let id = call_id(&call.id);
        let arguments = match &call.arguments {
            Value::String(text) => text.clone(),
            Value::Null => "{}".to_owned(),
            other => other.to_string(),
        };
        let mut item = json!({"type": "function_call", "id": format!("fc_{id}"), "call_id": id,
            "name": call.name, "arguments": arguments});
        if let Some(namespace) = &call.namespace {
            item["namespace"] = json!(namespace);
        }
        items.push(item);
    }
    for call in &reply.custom_calls {
        let id = call_id(&call.id);
        items.push(
            json!({"type": "custom_tool_call", "id": format!("ctc_{id}"), "call_id": id,
            "name": call.name, "input": call.input}),
        );
    }
    items.extend(reply.items.iter().cloned());
    items
}
