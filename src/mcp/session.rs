//! The MCP server for one connection, without any input or output of its own.
//!
//! A line goes in, [`Effect`]s come out: lines to send, calls to start, calls that nobody waits for any more.
//! So all of MCP can be tested in memory, and whoever owns the socket ([`super::bridge`]) can serve many calls
//! at once on one thread: nothing in here waits.
//!
//! Formats: <https://modelcontextprotocol.io/specification>, the four versions of [`Version`].

use super::catalogue::Catalogue;
use super::content;
use super::version::Version;
use super::{ToolAnswer, ToolCall};
use crate::json::{json_string, truncate};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// A caller that asks for progress is told so often that the call is still running.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);
/// The most calls that one connection may have open: far over what a model asks for at once.
const OPEN_CALLS_MAX: usize = 4096;
const PARSE: i64 = -32700;
const REQUEST: i64 = -32600;
const METHOD: i64 = -32601;
const PARAMS: i64 = -32602;

/// A JSON-RPC id. `null`, fractions and numbers beyond 64 bits are none.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Id {
    Integer(i64),
    Text(String),
}

impl Id {
    fn parse(raw: &RawValue) -> Option<Id> {
        if raw.get().starts_with('"') {
            serde_json::from_str(raw.get()).ok().map(Id::Text)
        } else {
            serde_json::from_str(raw.get()).ok().map(Id::Integer)
        }
    }

    fn json(&self) -> String {
        match self {
            Id::Integer(id) => id.to_string(),
            Id::Text(id) => json_string(id),
        }
    }
}

/// Tells a field that is `null` from one that is not there.
fn present<'de: 'a, 'a, D: Deserializer<'de>>(from: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

#[derive(Deserialize)]
struct ClientMessage<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    jsonrpc: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    method: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    params: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    error: Option<&'a RawValue>,
}

/// The fields of all parameters that are read, each still raw.
#[derive(Default, Deserialize)]
struct Params<'a> {
    #[serde(borrow, default, rename = "protocolVersion")]
    protocol_version: Option<&'a RawValue>,
    #[serde(borrow, default)]
    cursor: Option<&'a RawValue>,
    #[serde(borrow, default)]
    name: Option<&'a RawValue>,
    #[serde(borrow, default)]
    arguments: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "requestId")]
    request_id: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "_meta")]
    meta: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
struct Meta<'a> {
    #[serde(borrow, default, rename = "progressToken")]
    progress_token: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "callId")]
    call_id: Option<&'a RawValue>,
}

/// Names an open call of a session.
pub(crate) type RequestKey = u64;

/// What is to be done because of a line.
#[derive(Debug)]
pub(crate) enum Effect {
    /// A line for the client, without its newline.
    Send(String),
    /// A call for the daemon; its answer goes to [`Session::answer`].
    Call(RequestKey, ToolCall),
    /// Nobody waits for this call any more.
    Cancel(RequestKey),
}

/// A call that has no answer yet.
#[derive(Debug)]
struct ServedCall {
    id: Id,
    tool: String,
    progress: Option<CallProgress>,
}

#[derive(Debug)]
struct CallProgress {
    /// The caller's token, as it wrote it.
    token: Box<RawValue>,
    since: Instant,
    next: Instant,
}

/// The server's side of one connection.
#[derive(Debug, Default)]
pub(crate) struct Session {
    /// Set by `initialize`.
    version: Option<Version>,
    open: HashMap<RequestKey, ServedCall>,
    /// The open calls by the client's id.
    by_id: HashMap<Id, RequestKey>,
    /// The next name of a call.
    next: u64,
}

impl Session {
    /// Did the client begin MCP?
    pub(crate) fn is_initialized(&self) -> bool {
        self.version.is_some()
    }

    /// Takes one line, without its newline.
    pub(crate) fn line(
        &mut self,
        line: &[u8],
        tools: &Catalogue,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let Ok(line) = std::str::from_utf8(line) else {
            let error = error_line(None, PARSE, "the line is not valid UTF-8");
            effects.push(Effect::Send(error));
            return;
        };
        let line = line.trim_matches([' ', '\t', '\r', '\n']);
        if line.is_empty() {
            return;
        }
        if let Some(answer) = self.message(line, tools, now, effects) {
            effects.push(Effect::Send(answer));
        }
    }

    /// The daemon answered a call. `None` where nobody waits for it any more.
    pub(crate) fn answer(&mut self, key: RequestKey, answer: ToolAnswer) -> Option<String> {
        let call = self.open.remove(&key)?;
        self.by_id.remove(&call.id);
        let version = self.version?;
        let result = content::result(&call.tool, answer, version, content::RESULT_MAX);
        Some(result_line(&call.id, &result))
    }

    /// The client is gone: the calls that nobody waits for any more.
    pub(crate) fn end(&mut self) -> Vec<RequestKey> {
        self.by_id.clear();
        let mut keys: Vec<RequestKey> = self.open.drain().map(|(key, _)| key).collect();
        keys.sort_unstable();
        keys
    }

    /// The line that says that the tools are others now, where the client can be told yet.
    pub(crate) fn tools_changed(&self) -> Option<String> {
        self.version?;
        Some("{\"jsonrpc\":\"2.0\",\"method\":\"notifications/tools/list_changed\"}".to_owned())
    }

    /// When [`Session::progress`] has something to say next.
    pub(crate) fn next_progress(&self) -> Option<Instant> {
        let progress = self.open.values().filter_map(|call| call.progress.as_ref());
        progress.map(|progress| progress.next).min()
    }

    /// The progress notifications that are due.
    pub(crate) fn progress(&mut self, now: Instant) -> Vec<String> {
        let version = self.version;
        let mut lines = Vec::new();
        for call in self.open.values_mut() {
            if let Some(progress) = &mut call.progress
                && progress.next <= now
            {
                lines.push(progress.line(&call.tool, version, now));
                progress.next = now + PROGRESS_EVERY;
            }
        }
        lines
    }

    /// Takes one message; gives its answer, where it has one at once.
    fn message(
        &mut self,
        json: &str,
        tools: &Catalogue,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) -> Option<String> {
        let parsed = match json.starts_with('{') {
            true => serde_json::from_str::<ClientMessage<'_>>(json),
            false => {
                return Some(match serde_json::from_str::<&RawValue>(json) {
                    // MCP had batches in 2025-03-26 alone; codex speaks a later version.
                    Ok(_) if json.starts_with('[') => {
                        let why = "batches are not supported; send one message a line";
                        error_line(None, REQUEST, why)
                    }
                    Ok(_) => error_line(None, REQUEST, "a message is an object"),
                    Err(error) => {
                        error_line(None, PARSE, &format!("the line is not JSON: {error}"))
                    }
                });
            }
        };
        let message = match parsed {
            Ok(message) => message,
            Err(error) if error.is_data() => {
                return Some(error_line(None, REQUEST, &error.to_string()));
            }
            Err(error) => {
                let message = format!("the line is not JSON: {error}");
                return Some(error_line(None, PARSE, &message));
            }
        };
        let id = message.id.and_then(Id::parse);
        let Some(method) = message.method else {
            // An answer. This server asks nothing, so it answers no question of ours.
            if message.result.is_some() || message.error.is_some() {
                return None;
            }
            let why = "a message without a method";
            return Some(error_line(id.as_ref(), REQUEST, why));
        };
        let method = serde_json::from_str::<String>(method.get()).ok();
        let Some(raw_id) = message.id else {
            let version = message.jsonrpc.map(RawValue::get);
            if let (Some(method), Some("\"2.0\"")) = (&method, version) {
                self.notification(method, message.params, effects);
            }
            return None;
        };
        let Some(id) = id else {
            let why = format!(
                "an id is a string or an integer, not {}",
                truncate(raw_id.get(), 64)
            );
            return Some(error_line(None, REQUEST, &why));
        };
        if message.jsonrpc.map(RawValue::get) != Some("\"2.0\"") {
            return Some(error_line(Some(&id), REQUEST, "'jsonrpc' must be \"2.0\""));
        }
        let Some(method) = method else {
            return Some(error_line(Some(&id), REQUEST, "'method' must be a string"));
        };
        if self.by_id.contains_key(&id) {
            // Under its own id this would be taken for the answer to the first.
            let why = format!("the id {} is in use", id.json());
            return Some(error_line(None, REQUEST, &why));
        }
        match self.request(&id, &method, message.params, tools, now, effects) {
            Ok(Some(result)) => Some(result_line(&id, &result)),
            Ok(None) => None,
            Err((code, message)) => Some(error_line(Some(&id), code, &message)),
        }
    }

    /// Answers a request: with a result, later (`None`), or with an error.
    fn request(
        &mut self,
        id: &Id,
        method: &str,
        params: Option<&RawValue>,
        tools: &Catalogue,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) -> Result<Option<String>, (i64, String)> {
        match method {
            "ping" => return Ok(Some("{}".to_owned())),
            "initialize" | "tools/list" | "tools/call" => {}
            _ => {
                let shown = truncate(method, 256);
                return Err((METHOD, format!("this server has no method '{shown}'")));
            }
        }
        let params = Params::parse(params)?;
        if method == "initialize" {
            let wanted = string(params.protocol_version, "protocolVersion")?
                .ok_or_else(|| missing("protocolVersion"))?;
            let version = Version::negotiated(&wanted);
            self.version = Some(version);
            return Ok(Some(format!(
                "{{\"protocolVersion\":\"{}\",\"capabilities\":{{\"tools\":{{\"listChanged\":true}}}},\"serverInfo\":{{\"name\":\"plexum-openai\",\"version\":\"{}\"}}}}",
                version.name(),
                env!("CARGO_PKG_VERSION")
            )));
        }
        let Some(version) = self.version else {
            return Err((REQUEST, format!("'{method}' before 'initialize'")));
        };
        if method == "tools/list" {
            let cursor = string(params.cursor, "cursor")?;
            return match tools.page(cursor.as_deref()) {
                Some(page) => Ok(Some(page)),
                None => Err((PARAMS, "'cursor' is none of this list's".to_owned())),
            };
        }
        let name = string(params.name, "name")?.ok_or_else(|| missing("name"))?;
        let arguments = match params.arguments.map(RawValue::get) {
            None => "{}",
            Some(object) if object.starts_with('{') => object,
            Some(_) => return Err((PARAMS, "'arguments' must be an object".to_owned())),
        };
        let meta = match params.meta {
            None => Meta::default(),
            Some(meta) => fields(meta, "_meta")?,
        };
        let token = match meta.progress_token {
            Some(token) if Id::parse(token).is_none() => {
                let why = "'_meta.progressToken' must be a string or an integer";
                return Err((PARAMS, why.to_owned()));
            }
            token => token,
        };
        // Not MCP's but codex's own field: what it is there for is better missed than refused.
        let call_id = meta
            .call_id
            .and_then(|id| serde_json::from_str::<String>(id.get()).ok());
        let refusal = if !tools.names.contains(&name) {
            Some(format!(
                "there is no tool '{}' in this turn",
                truncate(&name, 256)
            ))
        } else if self.open.len() >= OPEN_CALLS_MAX {
            Some(format!("{OPEN_CALLS_MAX} calls are open already"))
        } else {
            None
        };
        if let Some(refusal) = refusal {
            let result = content::result(&name, Err(refusal), version, content::RESULT_MAX);
            return Ok(Some(result));
        }
        let key = self.next;
        self.next += 1;
        let progress = token.map(|token| CallProgress {
            token: token.to_owned(),
            since: now,
            next: now + PROGRESS_EVERY,
        });
        if let Some(progress) = &progress {
            effects.push(Effect::Send(progress.line(&name, Some(version), now)));
        }
        effects.push(Effect::Call(
            key,
            ToolCall {
                call_id,
                name: name.clone(),
                arguments: RawValue::from_string(arguments.to_owned())
                    .expect("a part of parsed JSON is JSON"),
            },
        ));
        self.by_id.insert(id.clone(), key);
        self.open.insert(
            key,
            ServedCall {
                id: id.clone(),
                tool: name,
                progress,
            },
        );
        Ok(None)
    }

    /// Takes a notification. None is ever answered, however wrong it is.
    fn notification(&mut self, method: &str, params: Option<&RawValue>, effects: &mut Vec<Effect>) {
        if method != "notifications/cancelled" {
            return;
        }
        let Ok(params) = Params::parse(params) else {
            return;
        };
        let Some(key) = params
            .request_id
            .and_then(Id::parse)
            .and_then(|id| self.by_id.remove(&id))
        else {
            // Its answer and the cancellation met on the way.
            return;
        };
        effects.push(Effect::Cancel(key));
        self.open.remove(&key);
    }
}

impl CallProgress {
    fn line(&self, tool: &str, version: Option<Version>, now: Instant) -> String {
        let seconds = now.saturating_duration_since(self.since).as_secs();
        let message = match version {
            Some(version) if version >= Version::V2025_03_26 => {
                let message = format!("{} is running", truncate(tool, 256));
                format!(",\"message\":{}", json_string(&message))
            }
            _ => String::new(),
        };
        format!(
            "{{\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\"params\":{{\"progressToken\":{},\"progress\":{seconds}{message}}}}}",
            self.token.get()
        )
    }
}

impl<'a> Params<'a> {
    fn parse(params: Option<&'a RawValue>) -> Result<Params<'a>, (i64, String)> {
        params.map_or_else(|| Ok(Params::default()), |params| fields(params, "params"))
    }
}

/// The fields of an object.
fn fields<'a, T: Deserialize<'a>>(raw: &'a RawValue, name: &str) -> Result<T, (i64, String)> {
    // A derived struct would take a list for its fields in order.
    if !raw.get().starts_with('{') {
        return Err((PARAMS, format!("'{name}' must be an object")));
    }
    serde_json::from_str(raw.get()).map_err(|error| (PARAMS, format!("'{name}': {error}")))
}

fn string(raw: Option<&RawValue>, name: &str) -> Result<Option<String>, (i64, String)> {
    raw.map(|raw| serde_json::from_str(raw.get()))
        .transpose()
        .map_err(|_| (PARAMS, format!("'{name}' must be a string")))
}

fn missing(name: &str) -> (i64, String) {
    (PARAMS, format!("'{name}' is missing"))
}

fn result_line(id: &Id, result: &str) -> String {
    format!(
        "{{\"jsonrpc\":\"2.0\",\"id\":{},\"result\":{result}}}",
        id.json()
    )
}

/// An error answer. `None` is the id of a message that has none that could be read.
fn error_line(id: Option<&Id>, code: i64, message: &str) -> String {
    format!(
        "{{\"jsonrpc\":\"2.0\",\"id\":{},\"error\":{{\"code\":{code},\"message\":{}}}}}",
        id.map_or_else(|| "null".to_owned(), Id::json),
        json_string(message)
    )
}

/// The answer to a line that is too long to be read.
pub(crate) fn too_long(max: usize) -> String {
    error_line(None, REQUEST, &format!("a line is at most {max} bytes"))
}

#[cfg(test)]
mod tests;
