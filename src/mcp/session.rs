//! The MCP server of one connection, without I/O.
//!
//! It takes lines and returns [`Effect`]s: lines to send, calls to start, calls to cancel. So MCP can be tested in
//! memory, and the owner of the socket ([`super::bridge`]) can serve many calls at once on one thread: nothing here
//! blocks.
//!
//! Formats: <https://modelcontextprotocol.io/specification>, the four versions of [`ProtocolVersion`].

use super::catalogue::Catalogue;
use super::content;
use super::version::ProtocolVersion;
use super::{ToolAnswer, ToolCall};
use crate::error::Kind;
use crate::json::{json_string, truncate};
use crate::jsonrpc::{self, Id, Message};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How often a caller that asked for progress is notified that its call is running.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);
/// The most open calls of a connection: far more than a model makes at once.
const OPEN_CALLS_MAX: usize = 4096;

/// All parameters that are read, raw.
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

/// The parameters of a `tools/call`.
struct RequestedCall<'a> {
    name: String,
    arguments: &'a str,
    /// Raw.
    progress_token: Option<&'a RawValue>,
    /// codex's id of the call.
    call_id: Option<String>,
}

impl<'a> RequestedCall<'a> {
    fn parse(params: &Params<'a>) -> Result<RequestedCall<'a>, (Kind, String)> {
        let name = string(params.name, "name")?.ok_or_else(|| missing("name"))?;
        let arguments = match params.arguments.map(RawValue::get) {
            None => "{}",
            Some(object) if object.starts_with('{') => object,
            Some(_) => return Err((Kind::Params, "'arguments' must be an object".to_owned())),
        };
        let meta = match params.meta {
            None => Meta::default(),
            Some(meta) => fields(meta, "_meta")?,
        };
        if meta
            .progress_token
            .is_some_and(|token| id_of(token).is_none())
        {
            let why = "'_meta.progressToken' must be a string or an integer";
            return Err((Kind::Params, why.to_owned()));
        }
        Ok(RequestedCall {
            name,
            arguments,
            progress_token: meta.progress_token,
            // codex's own field, not MCP's: an invalid one is ignored.
            call_id: meta
                .call_id
                .and_then(|id| serde_json::from_str::<String>(id.get()).ok()),
        })
    }
}

/// Identifies an open call of a session.
pub(crate) type RequestKey = u64;

/// What the caller has to do.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Send this line to the client, without its newline.
    Send(String),
    /// Start this call; its result goes to [`Session::answer`].
    Call(RequestKey, ToolCall),
    /// Cancel this call.
    Cancel(RequestKey),
}

/// A call without a result.
#[derive(Debug)]
struct ServedCall {
    id: Id,
    tool: String,
    progress: Option<CallProgress>,
}

#[derive(Debug)]
struct CallProgress {
    /// The caller's token, raw.
    token: Box<RawValue>,
    since: Instant,
    next: Instant,
}

/// The server's side of one connection.
#[derive(Debug, Default)]
pub(crate) struct Session {
    /// Set by `initialize`.
    version: Option<ProtocolVersion>,
    open: HashMap<RequestKey, ServedCall>,
    /// The keys of the open calls by the client's ids.
    by_id: HashMap<Id, RequestKey>,
    /// The key of the next call.
    next: u64,
}

impl Session {
    /// Whether the client has sent `initialize`.
    pub(crate) fn is_initialized(&self) -> bool {
        self.version.is_some()
    }

    /// Handles one line, without its newline.
    pub(crate) fn line(
        &mut self,
        line: &[u8],
        tools: &Catalogue,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let line = line.trim_ascii();
        if line.is_empty() {
            return;
        }
        if let Some(answer) = self.message(line, tools, now, effects) {
            effects.push(Effect::Send(answer));
        }
    }

    /// The response to an open call. `None` where the call was cancelled.
    pub(crate) fn answer(&mut self, key: RequestKey, answer: ToolAnswer) -> Option<String> {
        let call = self.open.remove(&key)?;
        self.by_id.remove(&call.id);
        let version = self.version?;
        let result = content::result(&call.tool, answer, version, content::RESULT_MAX);
        Some(jsonrpc::result_response(&call.id, &result))
    }

    /// The client has disconnected. Returns the open calls, to be cancelled.
    pub(crate) fn end(&mut self) -> Vec<RequestKey> {
        self.by_id.clear();
        let mut keys: Vec<RequestKey> = self.open.drain().map(|(key, _)| key).collect();
        keys.sort_unstable();
        keys
    }

    /// The notification that the list of tools has changed, if the client is initialized.
    pub(crate) fn tools_changed(&self) -> Option<String> {
        self.version?;
        Some("{\"jsonrpc\":\"2.0\",\"method\":\"notifications/tools/list_changed\"}".to_owned())
    }

    /// When [`Session::progress`] returns the next notification.
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

    /// Handles one message. Returns its response, if there is one at once.
    fn message(
        &mut self,
        line: &[u8],
        tools: &Catalogue,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) -> Option<String> {
        let (id, method, params) = match jsonrpc::parse(line) {
            Ok(Message::Request { id, method, params }) => (id, method, params),
            Ok(Message::Notification { method, params }) => {
                self.notification(&method, params, effects);
                return None;
            }
            // This server sends no requests, so responses are ignored.
            Ok(Message::Response { .. } | Message::InvalidResponse { .. }) => return None,
            Err(invalid) => {
                let (kind, why) = (invalid.error.kind(), invalid.error.message());
                return Some(error_response(invalid.id.as_ref(), kind, why));
            }
        };
        if self.by_id.contains_key(&id) {
            // A response with this id would be taken for the one to the first request.
            let why = format!("the id {} is in use", id.json());
            return Some(error_response(None, Kind::Request, &why));
        }
        match self.request(&id, &method, params, tools, now, effects) {
            Ok(Some(result)) => Some(jsonrpc::result_response(&id, &result)),
            Ok(None) => None,
            Err((kind, message)) => Some(error_response(Some(&id), kind, &message)),
        }
    }

    /// Handles a request. Returns its result, `None` for a later response, or an error.
    fn request(
        &mut self,
        id: &Id,
        method: &str,
        params: Option<&RawValue>,
        tools: &Catalogue,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) -> Result<Option<String>, (Kind, String)> {
        match method {
            "ping" => return Ok(Some("{}".to_owned())),
            "initialize" | "tools/list" | "tools/call" => {}
            _ => {
                let shown = truncate(method, 256);
                return Err((Kind::Method, format!("this server has no method '{shown}'")));
            }
        }
        let params = Params::parse(params)?;
        if method == "initialize" {
            return self.initialize(&params).map(Some);
        }
        let Some(version) = self.version else {
            return Err((Kind::Request, format!("'{method}' before 'initialize'")));
        };
        if method == "tools/list" {
            let cursor = string(params.cursor, "cursor")?;
            return match tools.page(cursor.as_deref()) {
                Some(page) => Ok(Some(page)),
                None => Err((
                    Kind::Params,
                    "'cursor' is not valid for this list".to_owned(),
                )),
            };
        }
        let call = RequestedCall::parse(&params)?;
        let refusal = if !tools.names.contains(&call.name) {
            format!(
                "there is no tool '{}' in this turn",
                truncate(&call.name, 256)
            )
        } else if self.open.len() >= OPEN_CALLS_MAX {
            format!("{OPEN_CALLS_MAX} calls are open already")
        } else {
            self.open_call(id, call, version, now, effects);
            return Ok(None);
        };
        let result = content::result(&call.name, Err(refusal), version, content::RESULT_MAX);
        Ok(Some(result))
    }

    fn initialize(&mut self, params: &Params<'_>) -> Result<String, (Kind, String)> {
        let requested = string(params.protocol_version, "protocolVersion")?
            .ok_or_else(|| missing("protocolVersion"))?;
        let version = ProtocolVersion::negotiated(&requested);
        self.version = Some(version);
        Ok(format!(
            "{{\"protocolVersion\":\"{}\",\"capabilities\":{{\"tools\":{{\"listChanged\":true}}}},\"serverInfo\":{{\"name\":\"plexum-openai\",\"version\":\"{}\"}}}}",
            version.name(),
            env!("CARGO_PKG_VERSION")
        ))
    }

    /// Opens the call that request `id` makes.
    fn open_call(
        &mut self,
        id: &Id,
        call: RequestedCall<'_>,
        version: ProtocolVersion,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let key = self.next;
        self.next += 1;
        let progress = call.progress_token.map(|token| CallProgress {
            token: token.to_owned(),
            since: now,
            next: now + PROGRESS_EVERY,
        });
        if let Some(progress) = &progress {
            effects.push(Effect::Send(progress.line(&call.name, Some(version), now)));
        }
        effects.push(Effect::Call(
            key,
            ToolCall {
                call_id: call.call_id,
                name: call.name.clone(),
                arguments: RawValue::from_string(call.arguments.to_owned())
                    .expect("a part of parsed JSON is JSON"),
            },
        ));
        self.by_id.insert(id.clone(), key);
        self.open.insert(
            key,
            ServedCall {
                id: id.clone(),
                tool: call.name,
                progress,
            },
        );
    }

    /// Handles a notification. There is never a response, even to an invalid one.
    fn notification(&mut self, method: &str, params: Option<&RawValue>, effects: &mut Vec<Effect>) {
        if method != "notifications/cancelled" {
            return;
        }
        let Ok(params) = Params::parse(params) else {
            return;
        };
        let Some(key) = params
            .request_id
            .and_then(id_of)
            .and_then(|id| self.by_id.remove(&id))
        else {
            // It has been answered in the meantime.
            return;
        };
        effects.push(Effect::Cancel(key));
        self.open.remove(&key);
    }
}

impl CallProgress {
    fn line(&self, tool: &str, version: Option<ProtocolVersion>, now: Instant) -> String {
        let seconds = now.saturating_duration_since(self.since).as_secs();
        let message = match version {
            Some(version) if version >= ProtocolVersion::V2025_03_26 => {
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
    fn parse(params: Option<&'a RawValue>) -> Result<Params<'a>, (Kind, String)> {
        params.map_or_else(|| Ok(Params::default()), |params| fields(params, "params"))
    }
}

/// Deserializes an object.
fn fields<'a, T: Deserialize<'a>>(raw: &'a RawValue, name: &str) -> Result<T, (Kind, String)> {
    // A derived struct would also accept an array, as its fields in order.
    if !raw.get().starts_with('{') {
        return Err((Kind::Params, format!("'{name}' must be an object")));
    }
    serde_json::from_str(raw.get()).map_err(|error| (Kind::Params, format!("'{name}': {error}")))
}

fn string(raw: Option<&RawValue>, name: &str) -> Result<Option<String>, (Kind, String)> {
    raw.map(|raw| serde_json::from_str(raw.get()))
        .transpose()
        .map_err(|_| (Kind::Params, format!("'{name}' must be a string")))
}

fn missing(name: &str) -> (Kind, String) {
    (Kind::Params, format!("'{name}' is missing"))
}

fn id_of(raw: &RawValue) -> Option<Id> {
    Id::from_json(raw.get())
}

fn error_response(id: Option<&Id>, kind: Kind, message: &str) -> String {
    jsonrpc::error_response(id, kind.rpc_code(), message, None)
}

/// The error response to an overlong line.
pub(crate) fn too_long(max: usize) -> String {
    let why = format!("a line is at most {max} bytes");
    error_response(None, Kind::Request, &why)
}

#[cfg(test)]
mod tests;
