//! Parses one line of a rollout into a [`Record`], whose values are slices of the line.
//!
//! Both formats are read: the `…_end` events of 0.135, and the `item_completed` of 0.148 and later. The last of
//! duplicate keys counts, as in a parsed JSON object. Unknown types and keys are ignored. How records belong together
//! is the matter of `calls`.

use super::lines::{Line, LineKind, NESTED_ID_PREFIX};
use crate::canonical::{ContextUse, RateLimits, Usage};
use crate::json::{self, Cursor, Members, NotJson, decode, text_of};
use crate::timestamp;
use std::borrow::Cow;

/// The contents of a line, as far as they matter here.
#[derive(Debug)]
pub(crate) enum Record<'a> {
    Call(Call<'a>),
    Output(Output<'a>),
    /// An MCP call has ended. Its output is in another line, which does not tell whether it failed.
    Ended {
        id: Cow<'a, str>,
        failed: bool,
    },
    /// A call made inside code mode: one line, written when it has ended, is all that is recorded of it.
    Nested(Nested<'a>),
    /// A generated image: the provider's call and its result in one. 0.135 records it twice, first with the file that
    /// it was saved to; versions from 0.148 on save no file.
    Image(Nested<'a>),
    /// A message of the user or the assistant. codex's own texts for the model are messages of the user, too.
    Message {
        is_user: bool,
        text: String,
        /// When it was recorded, in milliseconds since 1970.
        at: Option<u64>,
    },
    /// A turn has begun.
    Turn {
        id: Cow<'a, str>,
        at: Option<u64>,
    },
    /// A turn has ended.
    TurnEnd {
        id: Option<Cow<'a, str>>,
        end: TurnEnd,
    },
    /// The total of the thread's tokens that codex has counted.
    Total {
        used: Usage,
        /// Whether it covers the whole thread. A request that exceeds the context window resets the count to 0; its
        /// `total_tokens` is not the sum of the other counters from then on.
        is_whole: bool,
        context: Option<ContextUse>,
        rate_limits: Option<RateLimits>,
    },
    /// The account's rate limits, without a token count.
    Limits(RateLimits),
    /// The model of a turn.
    Model(String),
    /// The conversation so far was replaced by a shorter one.
    Compacted,
    /// The tokens of one request, and those of all requests of the thread recorded this way: from 0.153 on.
    Request {
        used: Usage,
        thread: Usage,
    },
    Other,
}

/// How a turn ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TurnEnd {
    /// With the assistant's last message; a failed turn has none.
    Completed(Option<String>),
    /// With codex's reason: `interrupted`, `replaced`, …
    Aborted(String),
}

/// A tool call.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) id: Cow<'a, str>,
    pub(crate) name: Cow<'a, str>,
    pub(crate) namespace: Option<Cow<'a, str>>,
    pub(crate) input: CallInput<'a>,
    /// When it was recorded, in milliseconds since 1970.
    pub(crate) at: Option<u64>,
}

/// The arguments of a call.
#[derive(Debug)]
pub(crate) enum CallInput<'a> {
    /// A raw JSON value.
    Json(&'a [u8]),
    /// A raw JSON string whose text is JSON, or should be.
    Encoded(&'a [u8]),
    /// A JSON object made of these members, whose values are raw JSON.
    Object(Vec<(&'static str, &'a [u8])>),
}

/// The output of a call.
#[derive(Debug)]
pub(crate) struct Output<'a> {
    pub(crate) id: Cow<'a, str>,
    pub(crate) content: Content<'a>,
    /// Whether its text reports that the call failed.
    pub(crate) failed: bool,
    /// The name of the cell in which the script continues, where this is the output of a script that yielded.
    pub(crate) cell: Option<String>,
    pub(crate) at: Option<u64>,
}

/// The content of an output.
#[derive(Debug)]
pub(crate) enum Content<'a> {
    /// A raw JSON string or array.
    Json(&'a [u8]),
    /// Text that becomes a JSON string: the JSON of a value of another type, or a note of ours.
    Text(Cow<'a, str>),
    /// A generated image: the path of its file, or else the raw JSON string with its Base64 data.
    Image {
        path: Option<Cow<'a, str>>,
        data: &'a [u8],
    },
    /// The line was too long to be held; its length in bytes, which a note reports in place of the content.
    Omitted(u64),
}

/// A call that was made inside code mode.
#[derive(Debug)]
pub(crate) struct Nested<'a> {
    pub(crate) call: Call<'a>,
    pub(crate) content: Content<'a>,
    pub(crate) failed: bool,
    /// When it began, in milliseconds since 1970.
    pub(crate) started: Option<u64>,
    /// The turn of the script that made it; 0.135 does not record it for MCP calls.
    pub(crate) turn: Option<Cow<'a, str>>,
}

/// Where a thread comes from, by the first line of its rollout.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The thread that spawned it, where it is a sub-agent's.
    pub(crate) parent: Option<String>,
    /// The root thread of the tree of agents, which can be the thread itself; from 0.148 on.
    pub(crate) session: Option<String>,
    /// The version of codex that created it.
    pub(crate) version: Option<String>,
}

/// Reads the first line of a rollout; `None` where it is not codex's `session_meta`.
pub(crate) fn origin(line: &[u8]) -> Option<Origin> {
    let record = Members::of(Some(line), &["type", "payload"]);
    if record.text("type")? != "session_meta" {
        return None;
    }
    let meta = Members::of(
        record.raw("payload"),
        &["session_id", "parent_thread_id", "source", "cli_version"],
    );
    let source = Members::of(meta.raw("source"), &["subagent"]);
    let subagent = Members::of(source.raw("subagent"), &["thread_spawn"]);
    let spawned = Members::of(subagent.raw("thread_spawn"), &["parent_thread_id"]);
    let parent = meta
        .text("parent_thread_id")
        .or_else(|| spawned.text("parent_thread_id"));
    Some(Origin {
        // A fork made by a person has a parent in some versions, too, but is not a sub-agent's thread.
        parent: parent
            .filter(|_| source.raw("subagent").is_some())
            .map(Cow::into_owned),
        session: meta.text("session_id").map(Cow::into_owned),
        version: meta.text("cli_version").map(Cow::into_owned),
    })
}

/// The members of a payload that are read, of all types of records.
const PAYLOAD: &[&str; PAYLOAD_MEMBERS] = &[
    "type",
    "call_id",
    "id",
    "turn_id",
    "name",
    "namespace",
    "arguments",
    "input",
    "output",
    "action",
    "tools",
    "role",
    "content",
    "item",
    "started_at_ms",
    "invocation",
    "result",
    "changes",
    "stdout",
    "success",
    "info",
    "usage",
    "thread_token_usage",
    "last_agent_message",
    "reason",
    "rate_limits",
    "model",
    "status",
    "revised_prompt",
    "saved_path",
];

const PAYLOAD_MEMBERS: usize = 30;

/// The members of an item that are read.
const ITEM: &[&str; 15] = &[
    "type",
    "id",
    "status",
    "command",
    "cwd",
    "aggregated_output",
    "exit_code",
    "server",
    "tool",
    "arguments",
    "result",
    "error",
    "changes",
    "stdout",
    "path",
];

/// Why a line could not be parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnreadableLine {
    /// It is not JSON.
    NotJson,
    /// It is too long to be held, and its head does not identify the call that it is the output of.
    TooLong,
}

/// Parses a line.
///
/// # Errors
/// See [`UnreadableLine`].
pub(crate) fn read<'a>(line: &Line<'a>) -> Result<Record<'a>, UnreadableLine> {
    if line.cut() {
        return parse_cut(line).ok_or(UnreadableLine::TooLong);
    }
    parse(line.bytes).map_err(|NotJson| UnreadableLine::NotJson)
}

/// Parses the text of a line.
///
/// # Errors
/// It is not JSON.
pub(crate) fn parse(line: &(impl AsRef<[u8]> + ?Sized)) -> Result<Record<'_>, NotJson> {
    let line = line.as_ref();
    let mut cursor = Cursor::new(line);
    if cursor.kind()? != json::JsonKind::Object {
        cursor.value()?;
        cursor.end()?;
        return Ok(Record::Other);
    }
    let (mut record, mut timestamp, mut payload) = (None, None, None);
    cursor.open(json::JsonKind::Object)?;
    while let Some(key) = cursor.key()? {
        match json::decode_bytes(&line[key]).as_ref() {
            // Parsed directly instead of skipped first: it has most of the line's bytes.
            b"payload" if cursor.kind()? == json::JsonKind::Object => {
                payload = Some(Members::walk(line, &mut cursor, PAYLOAD)?);
            }
            b"payload" => {
                cursor.value()?;
                payload = None;
            }
            b"type" => record = text_of(&line[cursor.value()?]),
            b"timestamp" => timestamp = text_of(&line[cursor.value()?]),
            _ => {
                cursor.value()?;
            }
        }
    }
    cursor.end()?;
    let at = timestamp.and_then(|text| timestamp::parse(&text));
    let (Some(record), Some(payload)) = (record, payload) else {
        return Ok(Record::Other);
    };
    Ok(classify(&record, &payload, at).unwrap_or(Record::Other))
}

/// The record that a line's parts make; `None` where it does not matter here.
fn classify<'a>(
    record: &str,
    payload: &Members<'a, PAYLOAD_MEMBERS>,
    at: Option<u64>,
) -> Option<Record<'a>> {
    let payload_type = payload.text("type").unwrap_or_default();
    let payload_type = payload_type.as_ref();
    let item = Members::of(payload.raw("item"), ITEM);
    let id = match payload_type {
        "item_completed" => item.text("id"),
        _ => payload.text("call_id"),
    };
    let line_kind = LineKind::of(
        record.as_bytes(),
        payload_type.as_bytes(),
        item.text("type").unwrap_or_default().as_bytes(),
        id.as_deref().unwrap_or_default().as_bytes(),
    );
    match line_kind {
        LineKind::Call => call(payload_type, payload, at).map(Record::Call),
        LineKind::Output => output(payload_type, payload, at).map(Record::Output),
        LineKind::Message => match payload.text("role")?.as_ref() {
            role @ ("user" | "assistant") => Some(Record::Message {
                is_user: role == "user",
                text: message_text(payload.raw("content")?),
                at,
            }),
            _ => None,
        },
        LineKind::Item => ended_item(id?, payload_type, payload, &item, at),
        LineKind::Image => image(payload, at).map(Record::Image),
        LineKind::Turn => payload.text("turn_id").map(|id| Record::Turn { id, at }),
        LineKind::TurnEnd => Some(Record::TurnEnd {
            id: payload.text("turn_id"),
            end: turn_end(payload_type, payload),
        }),
        LineKind::Usage if record == "token_usage_record" => Some(Record::Request {
            used: usage(payload.raw("usage")?)?,
            thread: usage(payload.raw("thread_token_usage")?)?,
        }),
        LineKind::Usage => token_count(payload),
        LineKind::Context => payload
            .text("model")
            .map(|model| Record::Model(model.into_owned())),
        LineKind::Compacted => Some(Record::Compacted),
        _ => None,
    }
}

fn call<'a>(
    payload_type: &str,
    payload: &Members<'a, PAYLOAD_MEMBERS>,
    at: Option<u64>,
) -> Option<Call<'a>> {
    let json = |name| CallInput::Json(payload.raw(name).unwrap_or(b"null"));
    let (name, input) = match payload_type {
        "function_call" => (
            payload.text("name"),
            CallInput::arguments(payload.raw("arguments")),
        ),
        "custom_tool_call" => (payload.text("name"), json("input")),
        "local_shell_call" => (Some("local_shell".into()), json("action")),
        _ => (Some("tool_search".into()), json("arguments")),
    };
    Some(Call {
        // The legacy form of a shell call has only an `id`.
        id: payload.text("call_id").or_else(|| payload.text("id"))?,
        name: name.unwrap_or_default(),
        namespace: payload.text("namespace"),
        input,
        at,
    })
}

fn output<'a>(
    payload_type: &str,
    payload: &Members<'a, PAYLOAD_MEMBERS>,
    at: Option<u64>,
) -> Option<Output<'a>> {
    let content = match payload_type {
        "tool_search_output" => Content::text(payload.raw("tools").unwrap_or(b"[]")),
        _ => Content::of(payload.raw("output")),
    };
    let beginning = content.beginning();
    Some(Output {
        id: payload.text("call_id")?,
        failed: reports_failure(&beginning),
        cell: running_cell(&beginning),
        content,
        at,
    })
}

/// The end of an MCP call, or a call inside code mode.
fn ended_item<'a, const N: usize>(
    id: Cow<'a, str>,
    payload_type: &str,
    payload: &Members<'a, PAYLOAD_MEMBERS>,
    item: &Members<'a, N>,
    at: Option<u64>,
) -> Option<Record<'a>> {
    let mut ended = match payload_type {
        "item_completed" => completed(item, payload.raw("item")?),
        "patch_apply_end" => patched(payload, payload.raw("success") == Some(b"true")),
        _ => mcp_ended(payload),
    };
    if !id.starts_with(NESTED_ID_PREFIX) {
        return Some(Record::Ended {
            id,
            failed: ended.failed,
        });
    }
    ended.call.id = id;
    ended.call.at = at;
    ended.started = payload.number("started_at_ms");
    ended.turn = payload.text("turn_id");
    Some(Record::Nested(ended))
}

fn image<'a>(payload: &Members<'a, PAYLOAD_MEMBERS>, at: Option<u64>) -> Option<Nested<'a>> {
    let prompt = payload.raw("revised_prompt").map(|raw| ("prompt", raw));
    let data = payload.raw("result").filter(|raw| raw.starts_with(b"\""));
    let path = payload.text("saved_path");
    let content = match (path, data) {
        (None, None) => Content::of(None),
        (path, data) => Content::Image {
            path,
            data: data.unwrap_or_default(),
        },
    };
    let status = payload.text("status").unwrap_or_default();
    let mut image = Nested::new(
        "image_generation".into(),
        CallInput::Object(prompt.into_iter().collect()),
        content,
        matches!(&*status, "failed" | "incomplete"),
    );
    image.call.id = payload.text("call_id").or_else(|| payload.text("id"))?;
    image.call.at = at;
    Some(image)
}

fn turn_end(payload_type: &str, payload: &Members<'_, PAYLOAD_MEMBERS>) -> TurnEnd {
    if payload_type != "task_complete" {
        return TurnEnd::Aborted(payload.text("reason").unwrap_or_default().into_owned());
    }
    let last = payload.text("last_agent_message");
    TurnEnd::Completed(
        last.filter(|text| !text.trim().is_empty())
            .map(Cow::into_owned),
    )
}

/// The totals of a `token_count`, or the rate limits where it has no totals.
fn token_count<'a>(payload: &Members<'a, PAYLOAD_MEMBERS>) -> Option<Record<'a>> {
    let rate_limits = payload.raw("rate_limits").and_then(rate_limits);
    let info = Members::of(
        payload.raw("info"),
        &[
            "total_token_usage",
            "last_token_usage",
            "model_context_window",
        ],
    );
    let Some(raw) = info.raw("total_token_usage") else {
        return rate_limits.map(Record::Limits);
    };
    let last = Members::of(info.raw("last_token_usage"), &["total_tokens"]);
    let context = last.number("total_tokens").map(|tokens| ContextUse {
        tokens,
        window: info.number("model_context_window"),
    });
    let used = usage(raw)?;
    let sum = Members::of(Some(raw), &["total_tokens"]).number("total_tokens");
    let parts = used.input_tokens.checked_add(used.output_tokens);
    let is_whole = sum.is_none() || sum == parts;
    Some(Record::Total {
        used,
        is_whole,
        context,
        rate_limits,
    })
}

/// The call in an `item_completed`, without its id and its times.
fn completed<'a, const N: usize>(members: &Members<'a, N>, item: &'a [u8]) -> Nested<'a> {
    let kind = members.text("type").unwrap_or_default();
    let object = |names: &[&'static str]| {
        let present = names
            .iter()
            .filter_map(|name| Some((*name, members.raw(name)?)));
        CallInput::Object(present.collect())
    };
    let status = members.text("status");
    let completed = status.as_deref().unwrap_or("completed") == "completed";
    match kind.as_ref() {
        "CommandExecution" => Nested::new(
            "exec_command".into(),
            object(&["command", "cwd"]),
            Content::of(members.raw("aggregated_output")),
            !completed || members.raw("exit_code").is_some_and(|code| code != b"0"),
        ),
        "McpToolCall" => {
            let mut nested = mcp(
                members,
                members.raw("result"),
                Members::of(members.raw("error"), &["message"]).raw("message"),
            );
            nested.failed |= !completed;
            nested
        }
        "FileChange" => patched(members, completed),
        "ImageView" => Nested::new(
            "view_image".into(),
            object(&["path"]),
            Content::of(None),
            !completed,
        ),
        // An unknown type: the whole item.
        _ => Nested::new(kind, CallInput::Json(item), Content::of(None), !completed),
    }
}

/// An `mcp_tool_call_end`, which 0.135 writes instead of `item_completed`.
fn mcp_ended<'a>(payload: &Members<'a, PAYLOAD_MEMBERS>) -> Nested<'a> {
    let invocation = Members::of(payload.raw("invocation"), &["server", "tool", "arguments"]);
    let result = Members::of(payload.raw("result"), &["Ok", "Err"]);
    mcp(&invocation, result.raw("Ok"), result.raw("Err"))
}

/// A patch, in either format.
fn patched<'a, const N: usize>(members: &Members<'a, N>, applied: bool) -> Nested<'a> {
    let changes = members.raw("changes").map(|changes| ("changes", changes));
    Nested::new(
        "apply_patch".into(),
        CallInput::Object(changes.into_iter().collect()),
        Content::of(members.raw("stdout")),
        !applied,
    )
}

fn mcp<'a, const N: usize>(
    call: &Members<'a, N>,
    result: Option<&'a [u8]>,
    error: Option<&'a [u8]>,
) -> Nested<'a> {
    let result = Members::of(result, &["content", "isError"]);
    let mut nested = Nested::new(
        call.text("tool").unwrap_or_default(),
        CallInput::Json(call.raw("arguments").unwrap_or(b"null")),
        Content::of(error.or_else(|| result.raw("content"))),
        error.is_some() || result.raw("isError") == Some(b"true"),
    );
    // codex names the namespace of a server's tools so.
    let server = call.text("server").unwrap_or_default();
    nested.call.namespace = Some(format!("mcp__{}", server.replace('-', "_")).into());
    nested
}

impl<'a> Nested<'a> {
    fn new(
        name: Cow<'a, str>,
        input: CallInput<'a>,
        content: Content<'a>,
        failed: bool,
    ) -> Nested<'a> {
        Nested {
            call: Call {
                id: "".into(),
                name,
                namespace: None,
                input,
                at: None,
            },
            content,
            failed,
            started: None,
            turn: None,
        }
    }
}

impl<'a> CallInput<'a> {
    /// Its approximate size in bytes.
    pub(crate) fn len(&self) -> usize {
        match self {
            CallInput::Json(raw) | CallInput::Encoded(raw) => raw.len(),
            CallInput::Object(members) => members
                .iter()
                .map(|(name, raw)| name.len() + raw.len() + 4)
                .sum(),
        }
    }

    fn arguments(raw: Option<&'a [u8]>) -> CallInput<'a> {
        match raw {
            Some(raw) if raw.starts_with(b"\"") => CallInput::Encoded(raw),
            raw => CallInput::Json(raw.unwrap_or(b"null")),
        }
    }
}

impl<'a> Content<'a> {
    fn of(raw: Option<&'a [u8]>) -> Content<'a> {
        match raw {
            Some(raw @ [b'"' | b'[', ..]) => Content::Json(raw),
            raw => Content::text(raw.unwrap_or_default()),
        }
    }

    fn text(raw: &[u8]) -> Content<'_> {
        Content::Text(String::from_utf8_lossy(raw))
    }

    /// Its raw length in bytes, without the quotes of a string.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Content::Json(raw) => {
                let quotes = if raw.first() == Some(&b'"') { 2 } else { 0 };
                raw.len().saturating_sub(quotes) as u64
            }
            Content::Text(text) => text.len() as u64,
            Content::Image { data, .. } => data.len() as u64,
            Content::Omitted(length) => *length,
        }
    }

    /// Its text, if that is shorter than 256 bytes and the only block.
    pub(crate) fn only_text(&self) -> Option<String> {
        const SHORT: usize = 256;
        let Content::Json(raw) = self else {
            return None;
        };
        let blocks: serde_json::Value =
            (raw.len() < SHORT).then(|| serde_json::from_slice(raw).ok())??;
        match blocks {
            serde_json::Value::String(text) => Some(text),
            serde_json::Value::Array(blocks) if blocks.len() == 1 => {
                Some(blocks[0].get("text")?.as_str()?.to_owned())
            }
            _ => None,
        }
    }

    /// The beginning of its first text: long enough for the header that codex puts before an output.
    fn beginning(&self) -> String {
        let Content::Json(raw) = self else {
            return String::new();
        };
        if raw.starts_with(b"\"") {
            return beginning(raw);
        }
        let mut cursor = Cursor::new(raw);
        let first = cursor
            .open(json::JsonKind::Array)
            .and_then(|()| cursor.element())
            .and_then(|any| if any { cursor.value() } else { Err(NotJson) });
        match first {
            Ok(first) => Members::of(Some(&raw[first]), &["text"])
                .raw("text")
                .filter(|text| text.starts_with(b"\""))
                .map(beginning)
                .unwrap_or_default(),
            Err(NotJson) => String::new(),
        }
    }
}

/// The beginning of a raw JSON string, long enough for the header that codex puts before an output: up to a line
/// `Output:`, or to 256 bytes, which no header reaches.
fn beginning(raw: &[u8]) -> String {
    const MOST: usize = 256;
    let mut text = Vec::with_capacity(MOST);
    let mut line = 0;
    let mut rest = &raw[1..raw.len() - 1];
    while text.len() < MOST {
        let near = &rest[..rest.len().min(MOST - text.len())];
        let plain = memchr::memchr(b'\\', near).unwrap_or(near.len());
        text.extend_from_slice(&rest[..plain]);
        let [b'\\', escaped, behind @ ..] = &rest[plain..] else {
            break;
        };
        rest = behind;
        text.push(match escaped {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'"' | b'\\' | b'/' => *escaped,
            // codex's headers need no other escape; other texts take the slow path.
            _ => return decode(raw).chars().take(MOST).collect(),
        });
        if *escaped == b'n' {
            if &text[line..] == b"Output:\n" {
                break;
            }
            line = text.len();
        }
    }
    // It can end inside a UTF-8 sequence.
    String::from_utf8(text)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// Whether an output with this beginning is that of a failed call.
///
/// The rollout has no field for it: codex leaves it to the model to read. The output of a command begins with a header
/// that ends at `Output:` and has the exit code; where codex rejected a call or it was aborted, a sentence replaces the
/// output; a script of code mode reports its result in the first line. An MCP result always has a header without an
/// exit code, so that no text of a server is mistaken for one of these.
fn reports_failure(beginning: &str) -> bool {
    const SENTENCES: &[&str] = &[
        "unsupported call: ",
        "unsupported custom tool call: ",
        "failed to parse function arguments: ",
        "exec_command failed",
        "write_stdin failed",
        "apply_patch verification failed: ",
        "unable to locate image at ",
        "Script failed\n",
        "aborted",
    ];
    if SENTENCES
        .iter()
        .any(|sentence| beginning.starts_with(sentence))
    {
        return true;
    }
    let header = beginning.lines().take_while(|line| *line != "Output:");
    for line in header.take(8) {
        let code = line
            .strip_prefix("Process exited with code ")
            .or_else(|| line.strip_prefix("Exit code: "));
        match code {
            Some(code) => return code != "0",
            None if line == "aborted by user" => return true,
            None => {}
        }
    }
    false
}

/// The cell in which a script continues, by the beginning of its output.
fn running_cell(beginning: &str) -> Option<String> {
    let rest = beginning.strip_prefix("Script running with cell ID ")?;
    rest.lines().next().map(str::to_owned)
}

/// The concatenated texts of a message.
fn message_text(content: &[u8]) -> String {
    let mut text = String::new();
    let mut cursor = Cursor::new(content);
    if cursor.open(json::JsonKind::Array).is_err() {
        return text_of(content).unwrap_or_default().into_owned();
    }
    while let Ok(true) = cursor.element() {
        let Ok(block) = cursor.value() else { break };
        text.push_str(
            &Members::of(Some(&content[block]), &["text"])
                .text("text")
                .unwrap_or_default(),
        );
    }
    text
}

/// Parses the head of a line that is too long to be held; `None` unless it is an output with an id.
fn parse_cut<'a>(line: &Line<'a>) -> Option<Record<'a>> {
    if line.kind != LineKind::Output {
        return None;
    }
    // codex writes only plain ASCII names and ids before the output.
    let plain = line
        .bytes
        .split(|byte| *byte >= 0x80 || *byte == b'\\')
        .next()?;
    let head = std::str::from_utf8(plain).ok()?;
    let (_, rest) = head.split_once(r#""call_id":""#)?;
    let (id, _) = rest.split_once('"')?;
    Some(Record::Output(Output {
        id: id.into(),
        content: Content::Omitted(line.length),
        failed: false,
        cell: None,
        at: None,
    }))
}

/// codex's token counters. `cache_write_input_tokens` exists from 0.145 on.
fn usage(raw: &[u8]) -> Option<Usage> {
    let counters = Members::of(
        Some(raw),
        &[
            "input_tokens",
            "output_tokens",
            "cached_input_tokens",
            "cache_write_input_tokens",
            "reasoning_output_tokens",
        ],
    );
    let counter = |name| counters.number(name);
    Some(Usage {
        input_tokens: counter("input_tokens")?,
        output_tokens: counter("output_tokens").unwrap_or_default(),
        cache_read_tokens: counter("cached_input_tokens").unwrap_or_default(),
        cache_write_tokens: counter("cache_write_input_tokens").unwrap_or_default(),
        thinking_tokens: counter("reasoning_output_tokens").unwrap_or_default(),
    })
}

/// The rate limits of an account; `None` where both windows are missing.
fn rate_limits(raw: &[u8]) -> Option<RateLimits> {
    let windows = Members::of(Some(raw), &["primary", "secondary"]);
    let window = |name| serde_json::from_slice(windows.raw(name)?).ok();
    let limits = RateLimits {
        primary: window("primary"),
        secondary: window("secondary"),
    };
    (limits.primary.is_some() || limits.secondary.is_some()).then_some(limits)
}
