//! What one line of a rollout says about tool calls: a record, its parts still as they stand in the line.
//!
//! Both eras are read here: 0.135 and its `…_end` events, and the `item_completed` of 0.148 and later. Where a
//! key stands twice the last one counts, as in any parsed JSON object. Unknown types and keys are ignored.
//! What belongs to what is not known here, that is `calls`.

use super::lines::{Line, LineKind, NESTED};
use crate::canonical::{ContextUse, RateLimits, Usage};
use crate::json::{self, Cursor, Members, NotJson, decode, text_of};
use std::borrow::Cow;

/// What a line says, as far as anybody here cares.
#[derive(Debug)]
pub(crate) enum Record<'a> {
    Call(Call<'a>),
    Output(Output<'a>),
    /// An MCP call is over, whose output comes in a line of its own. That one does not say if it failed.
    Ended {
        id: Cow<'a, str>,
        failed: bool,
    },
    /// A call that was made inside code mode: all that is recorded of it, in one line, when it is over.
    Nested(Nested<'a>),
    /// An image was generated, which the provider does: a call and its result in one. 0.135 records it twice, first
    /// with the file that it was saved to; versions from 0.148 on save none.
    Image(Nested<'a>),
    /// A message of the user or the assistant; codex puts its own words to the model in messages of the user, too.
    Message {
        is_user: bool,
        text: String,
        /// When it was recorded, in milliseconds since 1970.
        at: Option<u64>,
    },
    /// A turn begins.
    Turn {
        id: Cow<'a, str>,
        at: Option<u64>,
    },
    /// A turn is over.
    TurnEnd {
        id: Option<Cow<'a, str>>,
        end: TurnEnd,
    },
    /// Where codex's count of the thread's tokens stands.
    Total {
        used: Usage,
        /// Is it what was counted since the thread began? A request over the context window sets it back to 0,
        /// and leaves as its mark a `total_tokens` that is not the sum of the others.
        is_whole: bool,
        context: Option<ContextUse>,
        rate_limits: Option<RateLimits>,
    },
    /// What the provider reported of the account's limits, without a count.
    Limits(RateLimits),
    /// A turn runs with this model.
    Model(String),
    /// The conversation so far was replaced by a shorter one.
    Compacted,
    /// What one request used, and all of the thread's that are so recorded: from 0.153 on.
    Request {
        used: Usage,
        thread: Usage,
    },
    Other,
}

/// How a turn ended, as codex recorded it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TurnEnd {
    /// With the last message of the assistant, where there was one: a failed turn has none.
    Completed(Option<String>),
    /// With codex's word for the reason: `interrupted`, `replaced`, …
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
    /// A JSON value, as it stands.
    Json(&'a [u8]),
    /// A JSON string that has JSON in it, or should have.
    Encoded(&'a [u8]),
    /// A JSON object made up of these members, as they stand.
    Object(Vec<(&'static str, &'a [u8])>),
}

/// What a call gave.
#[derive(Debug)]
pub(crate) struct Output<'a> {
    pub(crate) id: Cow<'a, str>,
    pub(crate) content: Content<'a>,
    /// Does its text say that the call failed?
    pub(crate) failed: bool,
    /// The script that this is the output of goes on, in a cell of this name.
    pub(crate) cell: Option<String>,
    pub(crate) at: Option<u64>,
}

/// The content of an output.
#[derive(Debug)]
pub(crate) enum Content<'a> {
    /// A JSON string or list, as it stands.
    Json(&'a [u8]),
    /// Something else: its JSON text, or a note of ours, is emitted as a string.
    Text(Cow<'a, str>),
    /// A generated image: the file, or else the JSON string with its Base64 data.
    Image {
        path: Option<Cow<'a, str>>,
        data: &'a [u8],
    },
    /// It was in a line of so many bytes, which is not held: a note of ours is emitted in its place.
    LeftOut(u64),
}

/// A call that was made inside code mode.
#[derive(Debug)]
pub(crate) struct Nested<'a> {
    pub(crate) call: Call<'a>,
    pub(crate) content: Content<'a>,
    pub(crate) failed: bool,
    /// When it began, in milliseconds since 1970.
    pub(crate) started: Option<u64>,
    /// The turn of the call that it was made in; 0.135 does not say it of MCP calls.
    pub(crate) turn: Option<Cow<'a, str>>,
}

/// Whose thread a rollout is, by its first line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The thread of the agent that started it, where it is a sub-agent's.
    pub(crate) parent: Option<String>,
    /// The thread that the whole tree of agents began with; from 0.148 on, and of a thread of its own itself.
    pub(crate) session: Option<String>,
    /// The version of the codex that began it.
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
        // A fork of a thread by a person has a parent in some versions, and is not a sub-agent.
        parent: parent
            .filter(|_| source.raw("subagent").is_some())
            .map(Cow::into_owned),
        session: meta.text("session_id").map(Cow::into_owned),
        version: meta.text("cli_version").map(Cow::into_owned),
    })
}

/// What is asked for of a payload. Of the parts of a record, some are there in one kind and some in another.
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

/// What is asked for of an item, likewise.
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

/// Why a line could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unread {
    /// It is not JSON.
    NotJson,
    /// It is too long to be held, and its first bytes do not say whose output it is.
    TooLong,
}

/// Reads one line.
///
/// # Errors
/// See [`Unread`].
pub(crate) fn read<'a>(line: &Line<'a>) -> Result<Record<'a>, Unread> {
    if line.cut() {
        return parse_cut(line).ok_or(Unread::TooLong);
    }
    parse(line.bytes).map_err(|NotJson| Unread::NotJson)
}

/// Reads the text of one line.
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
        match json::word(&line[key]).as_ref() {
            // Walked into at once and not skipped first: most bytes of the line are in it.
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
    let at = timestamp.and_then(|text| millis(&text));
    let (Some(record), Some(payload)) = (record, payload) else {
        return Ok(Record::Other);
    };
    Ok(understand(&record, &payload, at).unwrap_or(Record::Other))
}

/// The record that these parts make, if anybody cares.
fn understand<'a>(
    record: &str,
    payload: &Members<'a, PAYLOAD_MEMBERS>,
    at: Option<u64>,
) -> Option<Record<'a>> {
    let form = payload.text("type").unwrap_or_default();
    let item = Members::of(payload.raw("item"), ITEM);
    let id = match form.as_ref() {
        "item_completed" => item.text("id"),
        _ => payload.text("call_id"),
    };
    let kind = item.text("type").unwrap_or_default();
    match LineKind::of(
        record.as_bytes(),
        form.as_bytes(),
        kind.as_bytes(),
        id.as_deref().unwrap_or_default().as_bytes(),
    ) {
        LineKind::Call => {
            let json = |name| CallInput::Json(payload.raw(name).unwrap_or(b"null"));
            let (name, input) = match form.as_ref() {
                "function_call" => (
                    payload.text("name"),
                    CallInput::arguments(payload.raw("arguments")),
                ),
                "custom_tool_call" => (payload.text("name"), json("input")),
                "local_shell_call" => (Some("local_shell".into()), json("action")),
                _ => (Some("tool_search".into()), json("arguments")),
            };
            Some(Record::Call(Call {
                // The older form of a shell call has only an `id`.
                id: payload.text("call_id").or_else(|| payload.text("id"))?,
                name: name.unwrap_or_default(),
                namespace: payload.text("namespace"),
                input,
                at,
            }))
        }
        LineKind::Output => {
            let content = match form.as_ref() {
                "tool_search_output" => Content::text(payload.raw("tools").unwrap_or(b"[]")),
                _ => Content::of(payload.raw("output")),
            };
            let beginning = content.beginning();
            Some(Record::Output(Output {
                id: payload.text("call_id")?,
                failed: tells_failure(&beginning),
                cell: running_cell(&beginning),
                content,
                at,
            }))
        }
        LineKind::Message => match payload.text("role")?.as_ref() {
            role @ ("user" | "assistant") => Some(Record::Message {
                is_user: role == "user",
                text: message_text(payload.raw("content")?),
                at,
            }),
            _ => None,
        },
        LineKind::Item => {
            let id = id?;
            let nested = id.starts_with(NESTED);
            let mut over = match form.as_ref() {
                "item_completed" => completed(&kind, &item, payload.raw("item")?),
                "patch_apply_end" => patched(payload, payload.raw("success") == Some(b"true")),
                _ => mcp_ended(payload),
            };
            if !nested {
                return Some(Record::Ended {
                    id,
                    failed: over.failed,
                });
            }
            over.call.id = id;
            over.call.at = at;
            over.started = payload.number("started_at_ms");
            over.turn = payload.text("turn_id");
            Some(Record::Nested(over))
        }
        LineKind::Image => {
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
            Some(Record::Image(image))
        }
        LineKind::Turn => payload.text("turn_id").map(|id| Record::Turn { id, at }),
        LineKind::TurnEnd => Some(Record::TurnEnd {
            id: payload.text("turn_id"),
            end: match form.as_ref() {
                "task_complete" => TurnEnd::Completed(
                    payload
                        .text("last_agent_message")
                        .filter(|text| !text.trim().is_empty())
                        .map(Cow::into_owned),
                ),
                _ => TurnEnd::Aborted(payload.text("reason").unwrap_or_default().into_owned()),
            },
        }),
        LineKind::Usage if record == "token_usage_record" => Some(Record::Request {
            used: usage(payload.raw("usage")?)?,
            thread: usage(payload.raw("thread_token_usage")?)?,
        }),
        LineKind::Usage => {
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
        LineKind::Context => payload
            .text("model")
            .map(|model| Record::Model(model.into_owned())),
        LineKind::Compacted => Some(Record::Compacted),
        _ => None,
    }
}

/// An `item_completed` of a kind that is a call, all but its id and its times.
fn completed<'a, const N: usize>(
    kind: &Cow<'a, str>,
    members: &Members<'a, N>,
    item: &'a [u8],
) -> Nested<'a> {
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
        // One that is not known here: all that is recorded of it.
        _ => Nested::new(
            kind.clone(),
            CallInput::Json(item),
            Content::of(None),
            !completed,
        ),
    }
}

/// What 0.135 writes when an MCP call is over.
fn mcp_ended<'a>(payload: &Members<'a, PAYLOAD_MEMBERS>) -> Nested<'a> {
    let invocation = Members::of(payload.raw("invocation"), &["server", "tool", "arguments"]);
    let result = Members::of(payload.raw("result"), &["Ok", "Err"]);
    mcp(&invocation, result.raw("Ok"), result.raw("Err"))
}

/// A patch, as both eras write it.
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
    // The namespace that codex gives to a server's tools.
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
    /// How many bytes it takes at most, about.
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

    /// How long it is, in bytes: of a string without its quotes, as it stands.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Content::Json(raw) => {
                let quotes = if raw.first() == Some(&b'"') { 2 } else { 0 };
                raw.len().saturating_sub(quotes) as u64
            }
            Content::Text(text) => text.len() as u64,
            Content::Image { data, .. } => data.len() as u64,
            Content::LeftOut(length) => *length,
        }
    }

    /// Its text, if it is a short one and there is nothing else in it.
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

    /// How its first text begins: far enough for what codex puts before the output itself.
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

/// The beginning of a raw JSON string, as much of it as codex's own words before an output take: up to a line
/// `Output:`, or to a length that none of them reaches.
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
            // codex's words need no other escape. Somebody who writes them with others gets the slow way.
            _ => return decode(raw).chars().take(MOST).collect(),
        });
        if *escaped == b'n' {
            if &text[line..] == b"Output:\n" {
                break;
            }
            line = text.len();
        }
    }
    // It may end in the middle of a character.
    String::from_utf8(text)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// Does an output that begins so belong to a call that failed?
///
/// The rollout has no field for it: codex leaves it to the model to read. A command's output begins with a
/// header that ends at `Output:` and has the exit code; a call that codex refused or that broke off has a
/// sentence of codex's in the output's place; a script in code mode says how it ended in its first line. An
/// MCP result always has a header without an exit code before it, so that nothing a server says is taken for
/// any of these.
fn tells_failure(beginning: &str) -> bool {
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

/// The cell in which the script goes on whose output begins so.
fn running_cell(beginning: &str) -> Option<String> {
    let rest = beginning.strip_prefix("Script running with cell ID ")?;
    rest.lines().next().map(str::to_owned)
}

/// The texts of a message.
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

/// What can be told of an output whose line is too long to be held, by its first bytes.
fn parse_cut<'a>(line: &Line<'a>) -> Option<Record<'a>> {
    if line.kind != LineKind::Output {
        return None;
    }
    // In a line that codex wrote, nothing but plain words and ids stands before the output.
    let plain = line
        .bytes
        .split(|byte| *byte >= 0x80 || *byte == b'\\')
        .next()?;
    let head = std::str::from_utf8(plain).ok()?;
    let (_, rest) = head.split_once(r#""call_id":""#)?;
    let (id, _) = rest.split_once('"')?;
    Some(Record::Output(Output {
        id: id.into(),
        content: Content::LeftOut(line.length),
        failed: false,
        cell: None,
        at: None,
    }))
}

/// codex's counters. `cache_write_input_tokens` is there from 0.145 on.
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

/// The limits of an account; `None` where there is neither of the two windows.
fn rate_limits(raw: &[u8]) -> Option<RateLimits> {
    let windows = Members::of(Some(raw), &["primary", "secondary"]);
    let window = |name| serde_json::from_slice(windows.raw(name)?).ok();
    let limits = RateLimits {
        primary: window("primary"),
        secondary: window("secondary"),
    };
    (limits.primary.is_some() || limits.secondary.is_some()).then_some(limits)
}

/// A timestamp like `2026-11-21T12:07:52.075Z` as milliseconds since 1970.
pub(crate) fn millis(timestamp: &str) -> Option<u64> {
    let part = |place: std::ops::Range<usize>| timestamp.get(place)?.parse::<u64>().ok();
    let (year, month, day) = (part(0..4)?, part(5..7)?, part(8..10)?);
    let (hour, minute, second) = (part(11..13)?, part(14..16)?, part(17..19)?);
    let fraction = part(20..23).unwrap_or_default();
    // Days of the civil calendar, the year taken to begin in March so that the leap day is its last.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year.checked_sub(1)?, month + 9)
    };
    let days = year * 365 + year / 4 - year / 100
        + year / 400
        + (month * 153 + 2) / 5
        + day.checked_sub(1)?;
    let days = days.checked_sub(719_468)?;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1000 + fraction)
}
