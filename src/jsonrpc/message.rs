//! Classifies a line as a request, notification or response, and writes responses.

use crate::error::{Error, Kind};
use crate::json::{self, Members, truncate};
use memchr::memrchr;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// How many bytes of the beginning and of the end of an overlong line are examined.
pub(super) const OVERLONG_PEEK_BYTES: usize = 1024;

/// The longest id, in bytes as JSON. A turn keeps several copies of its request's id.
const LONGEST_ID: usize = 4096;
/// The longest message of an error, in bytes. It can quote what the daemon sent, and that can be a whole line.
const LONGEST_MESSAGE: usize = 16 << 10;

/// A JSON-RPC id: a string or an integer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Id {
    Integer(i128),
    Text(String),
}

impl Id {
    /// The id as JSON.
    pub(crate) fn json(&self) -> String {
        match self {
            Id::Integer(number) => number.to_string(),
            Id::Text(text) => serde_json::Value::from(text.as_str()).to_string(),
        }
    }

    /// The id that this JSON is. The length is checked first: it can be as long as the line.
    pub(crate) fn from_json(json: &str) -> Option<Id> {
        if json.len() > LONGEST_ID {
            return None;
        }
        match json.as_bytes().first() {
            Some(b'"') => serde_json::from_str(json).ok().map(Id::Text),
            Some(b'-' | b'0'..=b'9') => {
                let number: serde_json::Number = serde_json::from_str(json).ok()?;
                number
                    .as_i64()
                    .map(i128::from)
                    .or_else(|| number.as_u64().map(i128::from))
                    .map(Id::Integer)
            }
            _ => None,
        }
    }
}

/// A JSON-RPC message.
#[derive(Debug)]
pub(crate) enum Message<'a> {
    Request {
        id: Id,
        method: String,
        params: Option<&'a RawValue>,
    },
    Notification {
        method: String,
        params: Option<&'a RawValue>,
    },
    /// The response to one of our requests.
    Response {
        id: Id,
        outcome: Result<&'a RawValue, &'a RawValue>,
    },
    /// A response that cannot be used: its id, where it has one, and the reason. It is never answered with an error, as
    /// an invalid request is: two peers that answer each other's responses would never stop.
    InvalidResponse { id: Option<Id>, why: String },
}

/// A line that is not a message: the error, and the id to respond with, where there is one.
#[derive(Debug)]
pub(crate) struct InvalidMessage {
    pub(crate) id: Option<Id>,
    pub(crate) error: Error,
}

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct Envelope<'a> {
    #[serde(borrow)]
    jsonrpc: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<&'a RawValue>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    error: Option<&'a RawValue>,
}

/// Distinguishes `null` from absent.
fn present<'de, D: serde::Deserializer<'de>>(json: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(json).map(Some)
}

/// Parses and classifies a line.
///
/// # Errors
/// -32700 where the line is not JSON, -32600 where it is JSON but not a message.
pub(crate) fn parse(line: &[u8]) -> Result<Message<'_>, InvalidMessage> {
    let parse_error = |why: &dyn std::fmt::Display| InvalidMessage {
        id: None,
        error: Error::new(Kind::Parse, format!("not JSON: {why}")),
    };
    let text = std::str::from_utf8(line).map_err(|error| {
        parse_error(&format_args!(
            "invalid UTF-8 after {} bytes",
            error.valid_up_to()
        ))
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // A derived struct would also accept an array, as its fields in order.
    let parsed = match text.trim_start().starts_with('[') {
        false => serde_json::from_str::<Envelope<'_>>(text),
        true => match serde_json::from_str::<IgnoredAny>(text) {
            Ok(_) => {
                return Err(invalid(
                    None,
                    "batches are not supported: send one message a line",
                ));
            }
            Err(error) => Err(error),
        },
    };
    let envelope = match parsed {
        Ok(envelope) => envelope,
        Err(error) if error.is_data() => {
            // It stopped at the first member that does not fit; -32700 takes precedence where the rest is not JSON.
            return match (
                serde_json::from_str::<IgnoredAny>(text),
                id_of_broken_response(line, &[]),
            ) {
                (Err(error), _) => Err(parse_error(&error)),
                (Ok(_), None) => Err(invalid(None, &format!("no request: {error}"))),
                (Ok(_), id) => Ok(Message::InvalidResponse {
                    id,
                    why: error.to_string(),
                }),
            };
        }
        Err(error) => return Err(parse_error(&error)),
    };
    let id = envelope.id.and_then(|id| Id::from_json(id.get()));
    let is_response =
        envelope.method.is_none() && (envelope.result.is_some() || envelope.error.is_some());
    let reject = |id, why: &str| match is_response {
        true => Ok(Message::InvalidResponse {
            id,
            why: why.to_owned(),
        }),
        false => Err(invalid(id, why)),
    };
    let version = envelope.jsonrpc.map_or("", RawValue::get);
    if !version.starts_with('"') || !json::str_eq(version, "2.0") {
        return reject(id, "`jsonrpc` must be \"2.0\"");
    }
    if is_response {
        return Ok(response(id, envelope.result, envelope.error));
    }
    if envelope.id.is_some() && id.is_none() {
        let why = format!("`id` must be a string or an integer of at most {LONGEST_ID} bytes");
        return Err(invalid(None, &why));
    }
    // Some peers write `null` for an absent member.
    let error = envelope.error.filter(|error| error.get() != "null");
    let method = envelope
        .method
        .map(|method| serde_json::from_str::<String>(method.get()).map_err(|_| ()));
    match (method, envelope.result, error) {
        (Some(Ok(method)), None, None) => {
            let params = envelope.params;
            if params.is_some_and(|params| !params.get().starts_with(['{', '['])) {
                return Err(invalid(id, "`params` must be an object"));
            }
            Ok(match id {
                Some(id) => Message::Request { id, method, params },
                None => Message::Notification { method, params },
            })
        }
        (Some(_), None, None) => Err(invalid(id, "`method` must be a string")),
        (None, ..) => Err(invalid(id, "`method` is missing")),
        _ => Err(invalid(
            id,
            "a message has one of `method`, `result` and `error`",
        )),
    }
}

/// The response with these members, at least one of which is present.
fn response<'a>(
    id: Option<Id>,
    result: Option<&'a RawValue>,
    error: Option<&'a RawValue>,
) -> Message<'a> {
    let is_null = |json: &&RawValue| json.get() == "null";
    // Some peers write both, the unused one as null.
    let outcome = match (result, error.filter(|error| !is_null(error))) {
        (Some(result), None) => Ok(result),
        (result, Some(error)) if result.is_none_or(|result| is_null(&result)) => Err(error),
        _ => {
            let why = "a response has one of `result` and `error`".to_owned();
            return Message::InvalidResponse { id, why };
        }
    };
    match (id, outcome) {
        (Some(id), outcome) => Message::Response { id, outcome },
        (None, Ok(_)) => Message::InvalidResponse {
            id: None,
            why: "it has no `id`".to_owned(),
        },
        // A peer's error for a line of ours that it could not parse.
        (None, Err(error)) => {
            let shown = error.get();
            let shown = truncate(shown, OVERLONG_PEEK_BYTES);
            Message::InvalidResponse {
                id: None,
                why: format!("an error without an `id`: {shown}"),
            }
        }
    }
}

/// The id of the request that an unreadable line responds to: from its beginning or, as many peers write the id last,
/// from its end. `None` where the line is not recognized as a response.
pub(crate) fn id_of_broken_response(beginning: &[u8], end: &[u8]) -> Option<Id> {
    let mut members = MessageMembers::default();
    // Fails where the line was cut or is damaged; the members before that are known then.
    let _ = serde_json::Deserializer::from_slice(beginning).deserialize_map(&mut members);
    if members.method || !members.outcome {
        return None;
    }
    members.id.or_else(|| last_id(end))
}

/// The members of a message that were seen before it became unreadable.
#[derive(Default)]
struct MessageMembers {
    id: Option<Id>,
    method: bool,
    outcome: bool,
}

impl<'de> Visitor<'de> for &mut MessageMembers {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a message")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut message: A) -> Result<(), A::Error> {
        while let Some(name) = message.next_key::<Cow<'_, str>>()? {
            match &*name {
                "id" => {
                    self.id = Id::from_json(message.next_value::<&RawValue>()?.get());
                    continue;
                }
                "method" => self.method = true,
                "result" | "error" => self.outcome = true,
                _ => {}
            }
            message.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

/// The last member of a line, where it is an `id` and a string.
fn last_id(end: &[u8]) -> Option<Id> {
    let line = end.trim_ascii_end().strip_suffix(b"}")?;
    let text = line.trim_ascii_end().strip_suffix(b"\"")?;
    let start = memrchr(b'"', text)?;
    let before = text[..start].trim_ascii_end().strip_suffix(b":")?;
    let comma = before.trim_ascii_end().strip_suffix(b"\"id\"")?;
    comma.trim_ascii_end().strip_suffix(b",")?;
    let id = String::from_utf8(text[start + 1..].to_vec()).ok()?;
    Some(Id::Text(id))
}

fn invalid(id: Option<Id>, why: &str) -> InvalidMessage {
    InvalidMessage {
        id,
        error: Error::new(Kind::Request, why),
    }
}

/// A response with a result; `result` is JSON. Without a line end.
pub(crate) fn result_response(id: &Id, result: &str) -> String {
    format!(
        "{{\"jsonrpc\":\"2.0\",\"id\":{},\"result\":{result}}}",
        id.json()
    )
}

/// An error response, without a line end. `None` is for a message whose id could not be read.
pub(crate) fn error_response(
    id: Option<&Id>,
    code: i64,
    message: &str,
    data: Option<&serde_json::Value>,
) -> String {
    let shown = truncate(message, LONGEST_MESSAGE);
    let cut = if shown.len() < message.len() {
        "…"
    } else {
        ""
    };
    let mut body = serde_json::json!({"code": code, "message": format!("{shown}{cut}")});
    if let Some(data) = data {
        body["data"] = data.clone();
    }
    let id = id.map_or_else(|| "null".to_owned(), Id::json);
    format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"error\":{body}}}")
}

/// The message of an error object, where it has one that is not empty.
pub(crate) fn error_message(error: &RawValue) -> Option<String> {
    let members = Members::of(Some(error.get().as_bytes()), &["message"]);
    let message = members.text("message")?;
    (!message.is_empty()).then(|| message.into_owned())
}

#[cfg(test)]
mod tests;
