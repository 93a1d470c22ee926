//! Matches calls and outputs, and writes both as the daemon's events.
//!
//! [`Calls`] is fed with the records of a rollout in order and tracks which calls are open; it does no I/O. The caller
//! chooses what is kept of an open call: `parse-rollout` its event, `--summary` its size, a running turn nothing.
//!
//! Events are written as JSON directly: codex's JSON is validated where it is read and then passed on unchanged, and
//! most calls of a rollout are never deserialized.

use super::record::{Call, CallInput, Content, Nested, Output, Record};
use crate::json;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::io::{self, Write};

/// How many calls without an output are kept, and how many bytes of them. codex runs a handful at once, and writes the
/// output of each before its turn ends: more than this is damage.
const MAX_OPEN: usize = 16_384;
const MAX_OPEN_BYTES: usize = 64 << 20;
/// How many scripts of code mode, and `wait` calls, are kept of a turn.
const MAX_SCRIPTS: usize = 4_096;

/// The calls of one rollout.
#[derive(Debug)]
pub(crate) struct Calls<T> {
    open: HashMap<String, OpenCalls<T>>,
    open_count: usize,
    open_bytes: usize,
    count: u64,
    scripts: Scripts,
    /// The id of the generated image that was seen last.
    last_image: Option<String>,
}

/// The open calls of one id, oldest first: ids can repeat, and their outputs then do, too.
#[derive(Debug)]
struct OpenCalls<T> {
    first: OpenCall<T>,
    more: VecDeque<OpenCall<T>>,
}

#[derive(Debug)]
struct OpenCall<T> {
    /// Its index among all calls.
    index: u64,
    /// Whether it has ended, and failed. Known of MCP calls before their outputs.
    ended: bool,
    failed: bool,
    /// The size of what is kept of it, in bytes.
    bytes: usize,
    kept: T,
}

/// A record, once it is matched with the calls before it.
#[derive(Debug)]
pub(crate) enum MatchedRecord<'a, T> {
    /// A call has begun. Where too many are open, the older half is evicted and returned, for the caller to report.
    /// Later outputs of evicted calls match no call.
    Call {
        call: Call<'a>,
        evicted: Vec<(String, T)>,
    },
    /// The output of a call.
    Output {
        output: Output<'a>,
        kept: T,
        is_error: bool,
    },
    /// A call that is recorded together with its result: one that the script of the call `parent` made, or a
    /// generated image.
    Complete {
        call: Nested<'a>,
        parent: Option<String>,
    },
    /// Not part of a call.
    Other(Record<'a>),
}

impl<T> Default for Calls<T> {
    fn default() -> Calls<T> {
        Calls {
            open: HashMap::new(),
            open_count: 0,
            open_bytes: 0,
            count: 0,
            scripts: Scripts::default(),
            last_image: None,
        }
    }
}

impl<T> Calls<T> {
    /// Takes the next record. `keep` returns what to keep of a call until its output, and the size of that in bytes.
    pub(crate) fn feed<'a>(
        &mut self,
        record: Record<'a>,
        keep: impl FnOnce(&Call<'a>) -> (T, usize),
    ) -> Option<MatchedRecord<'a, T>> {
        match record {
            Record::Turn { id, at } => {
                self.scripts.turn(&id);
                Some(MatchedRecord::Other(Record::Turn { id, at }))
            }
            Record::Call(call) => {
                let (kept, size) = keep(&call);
                let evicted = self.begin(&call, kept, size);
                Some(MatchedRecord::Call { call, evicted })
            }
            Record::Ended { id, failed } => {
                self.ended(&id, failed);
                None
            }
            Record::Output(output) => {
                let (kept, failed) = self.take_output(&output)?;
                Some(MatchedRecord::Output {
                    is_error: failed || output.failed,
                    output,
                    kept,
                })
            }
            Record::Nested(call) => Some(MatchedRecord::Complete {
                parent: self.scripts.parent(&call).map(str::to_owned),
                call,
            }),
            Record::Image(call) => {
                let id = call.call.id.as_ref();
                let is_new = self.last_image.replace(id.to_owned()).as_deref() != Some(id);
                is_new.then_some(MatchedRecord::Complete { call, parent: None })
            }
            other => Some(MatchedRecord::Other(other)),
        }
    }

    /// Adds an open call of which `size` bytes are kept. Returns the evicted ones.
    fn begin(&mut self, call: &Call<'_>, kept: T, size: usize) -> Vec<(String, T)> {
        self.scripts.begin(call);
        let bytes = size + call.id.len();
        let evicted = if self.open_count >= MAX_OPEN || self.open_bytes + bytes > MAX_OPEN_BYTES {
            self.evict_older_half()
        } else {
            Vec::new()
        };
        self.open_count += 1;
        self.open_bytes += bytes;
        let open = OpenCall {
            bytes,
            index: self.count,
            ended: false,
            failed: false,
            kept,
        };
        self.count += 1;
        match self.open.entry(call.id.clone().into_owned()) {
            Entry::Vacant(vacant) => {
                vacant.insert(OpenCalls {
                    first: open,
                    more: VecDeque::new(),
                });
            }
            Entry::Occupied(mut queue) => queue.get_mut().more.push_back(open),
        }
        evicted
    }

    fn evict_older_half(&mut self) -> Vec<(String, T)> {
        let mut all = self.drain();
        let newer = all.split_off(all.len().div_ceil(2));
        for (id, open) in newer {
            self.open_count += 1;
            self.open_bytes += open.bytes;
            match self.open.entry(id) {
                Entry::Vacant(vacant) => {
                    vacant.insert(OpenCalls {
                        first: open,
                        more: VecDeque::new(),
                    });
                }
                Entry::Occupied(mut queue) => queue.get_mut().more.push_back(open),
            }
        }
        all.into_iter().map(|(id, open)| (id, open.kept)).collect()
    }

    /// Marks an MCP call as ended; its output is still to come.
    fn ended(&mut self, id: &str, failed: bool) {
        let Some(queue) = self.open.get_mut(id) else {
            return;
        };
        let mut open = std::iter::once(&mut queue.first).chain(&mut queue.more);
        if let Some(open) = open.find(|open| !open.ended) {
            open.ended = true;
            open.failed = failed;
        }
    }

    /// Removes the call of an output: what was kept of it, and whether it failed. `None` where no call of that id is
    /// open.
    fn take_output(&mut self, output: &Output<'_>) -> Option<(T, bool)> {
        self.scripts.take_output(output);
        let queue = self.open.get_mut(output.id.as_ref())?;
        let open = match queue.more.pop_front() {
            Some(next) => std::mem::replace(&mut queue.first, next),
            None => self.open.remove(output.id.as_ref())?.first,
        };
        self.open_count -= 1;
        self.open_bytes -= open.bytes;
        Some((open.kept, open.failed))
    }

    /// Whether a call is open.
    pub(crate) fn any_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Whether a call is open that was recorded after `count` others.
    pub(crate) fn any_open_since(&self, count: u64) -> bool {
        let mut queues = self.open.values();
        // The last of a queue is the newest of its id.
        queues.any(|queue| queue.more.back().unwrap_or(&queue.first).index >= count)
    }

    /// How many calls were recorded.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Removes all calls that have no output, in the order of the rollout: their ids and what was kept.
    pub(crate) fn unanswered(&mut self) -> Vec<(String, T)> {
        let open = self.drain();
        open.into_iter().map(|(id, open)| (id, open.kept)).collect()
    }

    fn drain(&mut self) -> Vec<(String, OpenCall<T>)> {
        (self.open_count, self.open_bytes) = (0, 0);
        let mut open: Vec<(String, OpenCall<T>)> = self
            .open
            .drain()
            .flat_map(|(id, queue)| {
                std::iter::once(queue.first)
                    .chain(queue.more)
                    .map(move |open| (id.clone(), open))
            })
            .collect();
        open.sort_by_key(|(_, open)| open.index);
        open
    }
}

/// The scripts of code mode, and which of them is running.
///
/// codex runs the model's `exec` calls one after the other, in order, even when they came together. A script that
/// takes long yields: its call gets an output that names a cell, and the script continues in that cell beside other
/// calls until a `wait` call fetches the rest. A call made by a script is recorded when it has ended: without the
/// script's call id, but with the time when it began and the script's turn. A cell outlives its turn and ends with its
/// codex process; the calls that it makes later are still recorded with its own turn.
#[derive(Debug, Default)]
struct Scripts {
    /// The id of the latest turn.
    turn: Option<String>,
    /// Those without an output, in order: the first one is running.
    open: VecDeque<Script>,
    /// Those that yielded, with the names of their cells. One that no call waits for stays here.
    cells: Vec<(String, Script)>,
    /// The open `wait` calls, with the names of their cells.
    waits: Vec<(String, String)>,
    /// The one that ended last: calls of an aborted script can be recorded after its output.
    last: Option<Script>,
    /// When the last output of a script came, in milliseconds since 1970.
    idle_since: Option<u64>,
}

#[derive(Clone, Debug)]
struct Script {
    id: String,
    turn: Option<String>,
    /// When the script ran, in milliseconds since 1970: before `from` an earlier one ran; after `to` it had ended or
    /// continued in a cell.
    from: Option<u64>,
    to: Option<u64>,
}

impl Scripts {
    fn turn(&mut self, id: &str) {
        // codex writes the output of each call before its turn ends; where one is missing, codex was killed.
        self.open.clear();
        self.waits.clear();
        self.turn = Some(id.to_owned());
    }

    fn begin(&mut self, call: &Call<'_>) {
        if call.namespace.is_some() {
            return;
        }
        match (call.name.as_ref(), &call.input) {
            ("exec", CallInput::Json(_)) => {
                // codex runs one at a time and writes its output: the oldest of so many are damage.
                if self.open.len() == MAX_SCRIPTS {
                    self.open.pop_front();
                }
                self.open.push_back(Script {
                    id: call.id.clone().into_owned(),
                    turn: self.turn.clone(),
                    from: call.at,
                    to: None,
                });
            }
            ("wait", CallInput::Encoded(arguments)) => {
                let arguments =
                    serde_json::from_str::<serde_json::Value>(&json::decode(*arguments));
                if let Some(cell) = arguments
                    .ok()
                    .and_then(|value| Some(value.get("cell_id")?.as_str()?.to_owned()))
                {
                    if self.waits.len() == MAX_SCRIPTS {
                        self.waits.remove(0);
                    }
                    self.waits.push((call.id.clone().into_owned(), cell));
                }
            }
            _ => {}
        }
    }

    fn take_output(&mut self, output: &Output<'_>) {
        if let Some(at) = self.open.iter().position(|script| script.id == output.id) {
            let mut script = self
                .open
                .remove(at)
                .expect("a script at the place where it was found");
            script.from = script.from.max(self.idle_since);
            script.to = output.at;
            self.idle_since = output.at;
            match &output.cell {
                Some(cell) => {
                    // Each codex process numbers its cells anew: an older one of this name is gone.
                    self.cells.retain(|(name, _)| name != cell);
                    if self.cells.len() == MAX_SCRIPTS {
                        self.cells.remove(0);
                    }
                    self.cells.push((cell.clone(), script));
                }
                None => self.last = Some(script),
            }
        } else if let Some(at) = self.waits.iter().position(|(id, _)| *id == output.id) {
            let (_, cell) = self.waits.remove(at);
            if output.cell.is_none()
                && let Some(at) = self.cells.iter().rposition(|(name, _)| *name == cell)
            {
                self.last = Some(self.cells.remove(at).1);
            }
        }
    }

    /// The id of the script's call that made a nested call.
    fn parent(&self, nested: &Nested<'_>) -> Option<&str> {
        let script = match &nested.turn {
            Some(turn) => self.of_turn(Some(turn), nested.started),
            None => self
                .of_turn(self.turn.as_deref(), nested.started)
                .or_else(|| self.of_turn(None, nested.started)),
        };
        script.map(|script| script.id.as_str())
    }

    /// The script of this turn that made a call at this time. An unknown turn or time matches any.
    fn of_turn(&self, turn: Option<&str>, started: Option<u64>) -> Option<&Script> {
        let fits = |script: &&Script| match (turn, script.turn.as_deref()) {
            (Some(turn), Some(own)) => turn == own,
            _ => true,
        };
        let before = |at: Option<u64>| match (at, started) {
            (Some(at), Some(started)) => at <= started,
            _ => true,
        };
        let open = self.open.front().filter(fits);
        let last = self.last.as_ref().filter(fits);
        let current = open.filter(|script| before(script.from.max(self.idle_since)));
        // The calls of an aborted script are recorded after its output.
        let aborted = || {
            last.filter(|script| {
                let (from, to) = (script.from, script.to);
                started.is_some_and(|started| {
                    from.is_some_and(|from| from <= started) && to.is_some_and(|to| started <= to)
                })
            })
        };
        let in_cell = || {
            let scripts = self.cells.iter().rev().map(|(_, script)| script);
            scripts.filter(fits).find(|script| before(script.from))
        };
        current.or_else(aborted).or_else(in_cell).or(open).or(last)
    }
}

/// Writes the `tool_use` event of a call; `agent` is the thread of the sub-agent that made it, if one did.
pub(crate) fn write_use(
    out: &mut impl Write,
    call: &Call<'_>,
    parent: Option<&str>,
    agent: Option<&str>,
) -> io::Result<()> {
    out.write_all(br#"{"type":"tool_use","id":"#)?;
    write_string(out, &call.id)?;
    out.write_all(br#","name":"#)?;
    write_string(out, &call.name)?;
    if let Some(namespace) = &call.namespace {
        out.write_all(br#","namespace":"#)?;
        write_string(out, namespace)?;
    }
    out.write_all(br#","input":"#)?;
    write_input(out, &call.input)?;
    if let Some(parent) = parent {
        out.write_all(br#","parent_id":"#)?;
        write_string(out, parent)?;
    }
    if let Some(agent) = agent {
        out.write_all(br#","agent":"#)?;
        write_string(out, agent)?;
    }
    out.write_all(b"}")
}

/// Writes the `tool_result` event of a call.
pub(crate) fn write_result(
    out: &mut impl Write,
    id: &str,
    content: &Content<'_>,
    is_error: bool,
) -> io::Result<()> {
    write_open_result(out, id, content, is_error)?;
    out.write_all(b"}")
}

/// As [`write_result`], without the closing brace: the caller adds members and closes the object.
pub(crate) fn write_open_result(
    out: &mut impl Write,
    id: &str,
    content: &Content<'_>,
    is_error: bool,
) -> io::Result<()> {
    out.write_all(br#"{"type":"tool_result","id":"#)?;
    write_string(out, id)?;
    out.write_all(br#","content":"#)?;
    write_content(out, content)?;
    write!(out, ",\"is_error\":{is_error}")
}

/// Writes the arguments of a call: as JSON, or as a string where they are not valid JSON.
pub(crate) fn write_input(out: &mut impl Write, input: &CallInput<'_>) -> io::Result<()> {
    match input {
        CallInput::Json(raw) => out.write_all(&json::limit_depth(raw)),
        CallInput::Encoded(raw) => {
            let text = json::decode(*raw);
            if json::valid(text.as_ref()) {
                out.write_all(&json::limit_depth(one_line(text.trim()).as_bytes()))
            } else {
                out.write_all(raw)
            }
        }
        CallInput::Object(members) => {
            let mut object = b"{".to_vec();
            for (name, value) in members {
                if object.len() > 1 {
                    object.push(b',');
                }
                write!(object, "\"{name}\":")?;
                object.extend_from_slice(value);
            }
            object.push(b'}');
            out.write_all(&json::limit_depth(&object))
        }
    }
}

/// Writes the content of an output: a JSON string or an array.
pub(crate) fn write_content(out: &mut impl Write, content: &Content<'_>) -> io::Result<()> {
    match content {
        Content::Json(raw) => {
            if let Some(texts) = plain_texts(raw) {
                return write_texts(out, &texts);
            }
            let json = json::limit_depth(raw);
            match mcp_blocks(&json) {
                Some(blocks) => Ok(serde_json::to_writer(out, &blocks)?),
                None => out.write_all(&json),
            }
        }
        Content::Text(text) => write_string(out, text),
        Content::Image {
            path: Some(path), ..
        } => {
            out.write_all(b"[{\"type\":\"image\",\"path\":")?;
            write_string(out, path)?;
            out.write_all(b"}]")
        }
        Content::Image { path: None, data } => {
            out.write_all(b"[{\"type\":\"image\",\"data\":")?;
            out.write_all(data)?;
            write!(out, ",\"mimeType\":\"{}\"}}]", image_type(data))
        }
        Content::Omitted(length) => write!(out, "\"[an output of {length} bytes, left out]\""),
    }
}

/// The MIME type of an image, by the first characters of its Base64 data, which is a JSON string.
fn image_type(data: &[u8]) -> &'static str {
    match data.get(1..).unwrap_or_default() {
        [b'/', b'9', b'j', ..] => "image/jpeg",
        [b'U', b'k', b'l', b'G', ..] => "image/webp",
        [b'R', b'0', b'l', b'G', ..] => "image/gif",
        _ => "image/png",
    }
}

/// The texts of an array of text blocks alone, as raw JSON strings, where it is written exactly as codex writes it: a
/// fast path that needs one pass.
fn plain_texts(json: &[u8]) -> Option<Vec<&[u8]>> {
    const BLOCK: &[u8] = b"{\"type\":\"input_text\",\"text\":\"";
    let mut texts = Vec::new();
    let mut rest = json.strip_prefix(b"[")?;
    loop {
        rest.strip_prefix(BLOCK)?;
        let string = &rest[BLOCK.len() - 1..];
        let end = json::string_end(string, 1)?;
        texts.push(&string[..end]);
        rest = string[end..].strip_prefix(b"}")?;
        match rest.split_first()? {
            (b',', more) => rest = more,
            (b']', []) => return Some(texts),
            _ => return None,
        }
    }
}

fn write_texts(out: &mut impl Write, texts: &[&[u8]]) -> io::Result<()> {
    let mut before: &[u8] = b"[";
    for text in texts {
        out.write_all(before)?;
        out.write_all(b"{\"type\":\"text\",\"text\":")?;
        out.write_all(text)?;
        out.write_all(b"}")?;
        before = b",";
    }
    out.write_all(b"]")
}

/// A content block as it is written to the daemon.
#[derive(serde::Serialize)]
#[serde(untagged)]
enum McpBlock<'a> {
    Text {
        r#type: &'static str,
        text: &'a RawValue,
    },
    Image {
        r#type: &'static str,
        data: Cow<'a, str>,
        #[serde(rename = "mimeType")]
        mime_type: String,
    },
    /// An image that is referred to by its URL.
    Link {
        r#type: &'static str,
        url: Cow<'a, str>,
    },
    /// A block that is passed on as codex recorded it.
    Other(&'a RawValue),
}

/// The blocks of an array in MCP's form; `None` where they need no conversion.
fn mcp_blocks(json: &[u8]) -> Option<Vec<McpBlock<'_>>> {
    let has = |part: &[u8]| memchr::memmem::find(json, part).is_some();
    // `put_` is part of codex's types; any of its characters can be escaped.
    if !json.starts_with(b"[") || !has(b"put_") && !has(b"\\u00") {
        return None;
    }
    let blocks: Vec<&RawValue> = serde_json::from_slice(json).ok()?;
    fn block<'a>(raw: &'a RawValue) -> Option<McpBlock<'a>> {
        // The last of duplicate keys counts.
        let block: HashMap<String, &'a RawValue> = serde_json::from_str(raw.get()).ok()?;
        let text = |name| block.get(name).filter(|raw| raw.get().starts_with('"'));
        match json::decode(text("type")?.get().as_bytes()).as_ref() {
            "input_text" | "output_text" => Some(McpBlock::Text {
                r#type: "text",
                text: text("text")?,
            }),
            "input_image" => {
                let url: &'a RawValue = text("image_url")?;
                Some(image_block(json::decode(url.get().as_bytes())))
            }
            _ => None,
        }
    }
    Some(
        blocks
            .into_iter()
            .map(|raw| block(raw).unwrap_or(McpBlock::Other(raw)))
            .collect(),
    )
}

fn image_block(url: Cow<'_, str>) -> McpBlock<'_> {
    let inline = url.strip_prefix("data:").and_then(|rest| {
        let (mime_type, _) = rest.split_once(";base64,")?;
        Some((
            mime_type.to_owned(),
            url.len() - rest.len() + mime_type.len() + 8,
        ))
    });
    match inline {
        Some((mime_type, at)) => McpBlock::Image {
            r#type: "image",
            data: match url {
                Cow::Borrowed(url) => Cow::Borrowed(&url[at..]),
                Cow::Owned(url) => Cow::Owned(url[at..].to_owned()),
            },
            mime_type,
        },
        None => McpBlock::Link {
            r#type: "image",
            url,
        },
    }
}

/// A valid JSON text on one line: line breaks can only be whitespace between its tokens.
fn one_line(json: &str) -> Cow<'_, str> {
    if memchr::memchr2(b'\n', b'\r', json.as_bytes()).is_some() {
        Cow::Owned(json.replace(['\n', '\r'], " "))
    } else {
        Cow::Borrowed(json)
    }
}

fn write_string(out: &mut impl Write, text: &str) -> io::Result<()> {
    Ok(serde_json::to_writer(out, text)?)
}

#[cfg(test)]
mod tests {
    use super::super::record::{self, Record};
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn writes_content_blocks_as_mcp_does() {
        for (recorded, expected) in [
            (r#""input_text""#, r#""input_text""#),
            (
                r#"[{"type":"text","text":"a"}]"#,
                r#"[{"type":"text","text":"a"}]"#,
            ),
            (
                r#"[{"type":"input_text","text":"a\n\u00e9"}, {"type":"input_image","image_url":"data:image/png;base64,AAA=","detail":"high"}]"#,
                r#"[{"type":"text","text":"a\n\u00e9"},{"type":"image","data":"AAA=","mimeType":"image/png"}]"#,
            ),
            (
                r#"[{"type":"input_image","image_url":"data:image\/png;base64,A\/A="},{"type":"input_image","image_url":"https://h/x.png"}]"#,
                r#"[{"type":"image","data":"A/A=","mimeType":"image/png"},{"type":"image","url":"https://h/x.png"}]"#,
            ),
            (
                r#"[{"type":"input_text"},{"type":"input_image","image_url":1},{"type":"input_file","x":1},7,null]"#,
                r#"[{"type":"input_text"},{"type":"input_image","image_url":1},{"type":"input_file","x":1},7,null]"#,
            ),
        ] {
            let mut out = Vec::new();
            write_content(&mut out, &Content::Json(recorded.as_bytes())).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    /// A rollout line recorded in this second; [`nested`] uses the middle of a second.
    fn line(second: usize, payload: &Value) -> String {
        let kind = match payload["type"].as_str() {
            Some("task_started" | "item_completed" | "patch_apply_end" | "mcp_tool_call_end") => {
                "event_msg"
            }
            _ => "response_item",
        };
        json!({"timestamp": format!("2026-11-21T12:00:{second:02}.000Z"), "type": kind, "payload": payload})
            .to_string()
    }

    fn turn(id: &str) -> Value {
        json!({"type": "task_started", "turn_id": id})
    }

    fn exec(id: &str) -> Value {
        json!({"type": "custom_tool_call", "name": "exec", "input": "", "call_id": id})
    }

    fn output(id: &str, text: &str) -> Value {
        json!({"type": "custom_tool_call_output", "call_id": id, "output": text})
    }

    fn cell(id: &str, cell: u8) -> Value {
        output(id, &format!("Script running with cell ID {cell}\n"))
    }

    /// A call that a script of this turn made in this second.
    fn nested(id: &str, turn: &str, second: u64) -> Value {
        json!({"type": "item_completed", "turn_id": turn, "started_at_ms": 1_795_262_400_500 + second * 1000,
            "item": {"type": "CommandExecution", "id": format!("exec-{id}")}})
    }

    #[track_caller]
    fn check(what: &str, records: &[Value], expected: &[(&str, Option<&str>)]) {
        let lines: Vec<String> = records
            .iter()
            .enumerate()
            .map(|(second, payload)| line(second, payload))
            .collect();
        let mut calls = Calls::default();
        let mut found = Vec::new();
        for line in &lines {
            let record = record::parse(line).unwrap();
            if let Some(MatchedRecord::Complete { call, parent }) = calls.feed(record, |_| ((), 0))
            {
                let id = call.call.id.trim_start_matches("exec-").to_owned();
                found.push((id, parent));
            }
        }
        let found: Vec<_> = found
            .iter()
            .map(|(id, parent)| (id.as_str(), parent.as_deref()))
            .collect();
        assert_eq!(found, expected, "{what}");
    }

    // fault: 113
    #[test]
    fn caps_calls_without_output() {
        let mut calls = Calls::default();
        let mut evicted = Vec::new();
        let total = 3 * MAX_OPEN;
        for number in 0..total {
            let line = line(0, &exec(&format!("call_{number}")));
            let Ok(Record::Call(call)) = record::parse(&line) else {
                panic!("{line}")
            };
            evicted.extend(calls.begin(&call, number, 0));
            assert!(calls.open_count <= MAX_OPEN && calls.scripts.open.len() <= MAX_SCRIPTS);
        }
        let kept = calls.unanswered();
        // Each is either kept or evicted, in order.
        let all: Vec<_> = evicted.iter().chain(&kept).map(|(_, at)| *at).collect();
        assert_eq!(all, (0..total).collect::<Vec<_>>());
        // Bytes are limited as well, and the newest call still finds its output.
        let mut calls = Calls::default();
        for id in ["a", "b", "c"] {
            let line = line(0, &exec(id));
            let Ok(Record::Call(call)) = record::parse(&line) else {
                panic!("{line}")
            };
            let evicted = calls.begin(&call, (), MAX_OPEN_BYTES / 2);
            assert_eq!(evicted.len(), usize::from(id != "a"), "{id}");
        }
        let last = line(0, &output("c", ""));
        let Ok(Record::Output(output)) = record::parse(&last) else {
            panic!("{last}")
        };
        assert!(calls.take_output(&output).is_some() && !calls.any_open());
    }

    #[test]
    fn assigns_nested_calls_to_their_script() {
        let wait = json!({"type": "function_call", "name": "wait", "call_id": "w",
            "arguments": "{\"cell_id\":\"1\"}"});
        let waited = json!({"type": "function_call_output", "call_id": "w", "output": "done"});
        check(
            "scripts of one answer run one after the other",
            &[
                turn("1"),
                exec("a"),
                exec("b"),
                nested("in-a", "1", 2),
                output("a", ""),
                nested("in-b", "1", 4),
                output("b", ""),
            ],
            &[("in-a", Some("a")), ("in-b", Some("b"))],
        );
        check(
            "a script goes on in its cell beside another one",
            &[
                turn("1"),
                exec("a"),
                cell("a", 1),
                nested("in-a", "1", 2),
                exec("b"),
                nested("before-b", "1", 2),
                nested("in-b", "1", 5),
                output("b", ""),
                wait.clone(),
                nested("waited-for", "1", 8),
                waited.clone(),
                nested("late", "1", 8),
            ],
            &[
                ("in-a", Some("a")),
                ("before-b", Some("a")),
                ("in-b", Some("b")),
                ("waited-for", Some("a")),
                ("late", Some("a")),
            ],
        );
        check(
            "an aborted script beside a cell that nobody waited for",
            &[
                turn("1"),
                exec("a"),
                cell("a", 1),
                exec("b"),
                output("b", "aborted by user after 1.5s"),
                nested("aborted", "1", 3),
                nested("in-a", "1", 2),
                turn("2"),
                exec("c"),
                output("c", "aborted by user after 1.5s"),
                nested("aborted", "2", 8),
            ],
            &[
                ("aborted", Some("b")),
                ("in-a", Some("a")),
                ("aborted", Some("c")),
            ],
        );
        check(
            "a script whose codex was killed",
            &[
                turn("1"),
                exec("a"),
                turn("2"),
                exec("b"),
                nested("in-b", "2", 3),
                output("b", ""),
                exec("c"),
                nested("in-c", "2", 6),
            ],
            &[("in-b", Some("b")), ("in-c", Some("c"))],
        );
        check(
            "a cell outlives its turn",
            &[
                turn("1"),
                exec("a"),
                cell("a", 1),
                turn("2"),
                exec("b"),
                nested("in-a", "1", 4),
                nested("in-b", "2", 4),
                output("b", ""),
                turn("3"),
                wait,
                nested("waited-for", "1", 9),
                waited,
            ],
            &[
                ("in-a", Some("a")),
                ("in-b", Some("b")),
                ("waited-for", Some("a")),
            ],
        );
        check(
            "a rollout whose beginning is missing",
            &[
                exec("a"),
                nested("in-a", "1", 0),
                turn("2"),
                nested("without-script", "2", 2),
            ],
            &[("in-a", Some("a")), ("without-script", None)],
        );
        let old = |id: &str, turn: &str| json!({"type": "patch_apply_end", "call_id": format!("exec-{id}"), "turn_id": turn});
        let mcp = |id: &str| json!({"type": "mcp_tool_call_end", "call_id": format!("exec-{id}")});
        check(
            "0.135 says neither when it began nor, of MCP calls, in which turn",
            &[
                turn("1"),
                exec("a"),
                cell("a", 1),
                exec("killed"),
                turn("2"),
                old("in-a", "1"),
                mcp("in-a"),
                exec("b"),
                mcp("in-b"),
                output("b", "aborted by user after 1.5s"),
                old("aborted", "2"),
                mcp("aborted"),
            ],
            &[
                ("in-a", Some("a")),
                ("in-a", Some("a")),
                ("in-b", Some("b")),
                ("aborted", Some("b")),
                ("aborted", Some("b")),
            ],
        );
    }
}
