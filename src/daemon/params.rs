//! Parses the parameters of the daemon's requests, field by field, so that an error can name the field.

use crate::codex::check_prompt_length;
use crate::codex::home::is_thread_id;
use crate::error::{Error, Kind, Result};
use crate::json::replace_lone_surrogates;
use crate::json::{self, Cursor};
use crate::jsonrpc::Id;
use crate::mcp::Tool;
use crate::rollout::consume::{Mutation, Op, Reach};
use crate::turn::images::{Image, ImageSource};
use crate::turn::prompt::{HistoryBuilder, label};
use crate::turn::{PromptBlock, ThreadChoice, TurnRequest};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::cell::OnceCell;
use std::fmt::Display;
use std::path::{Path, PathBuf};

/// The maximum number of tools of a turn: many times what providers accept. Each takes more memory than its bytes.
const MAX_TOOLS: usize = 10_000;
/// The maximum number of mutations in a request.
const MAX_MUTATIONS: usize = 65_536;
/// The maximum number of blocks in a prompt that are not text.
const MAX_ATTACHMENTS: usize = 4096;
/// How many omitted messages get a warning each; of the rest only the number is reported.
const MAX_LEFT_OUT_WARNINGS: usize = 100;
/// The longest output schema, in bytes: twice what providers accept.
const LONGEST_SCHEMA: usize = 256 << 10;
/// How deep objects and lists may nest.
const MAX_DEPTH: usize = 127;
/// Objects of up to this many bytes are scanned for every member.
const MAX_SCANNED_BYTES: usize = 4096;
/// How many members of a larger object are indexed.
const MAX_INDEXED: usize = 64;

/// A JSON value and its path.
///
/// It borrows the text instead of a tree, which would take up to a hundred times the bytes, memory that the allocator
/// keeps afterwards. So members are searched on access, and lists are iterated.
#[derive(Clone)]
pub(crate) struct Field<'a> {
    /// Valid JSON, without surrounding white space.
    json: &'a str,
    path: String,
    index: OnceCell<MemberIndex<'a>>,
}

/// The first members of an object.
#[derive(Clone, Default)]
struct MemberIndex<'a> {
    /// Keys, with their quotes, and values.
    members: Vec<(&'a str, &'a str)>,
    /// The object has more members.
    truncated: bool,
}

impl<'a> Field<'a> {
    fn new(json: &'a str, path: String) -> Field<'a> {
        Field {
            json,
            path,
            index: OnceCell::new(),
        }
    }

    fn wrong_type(&self, expected: &str) -> Error {
        let found = match self.json.as_bytes().first() {
            Some(b'n') => "null",
            Some(b't' | b'f') => "a boolean",
            Some(b'"') => "a string",
            Some(b'[') => "a list",
            Some(b'{') => "an object",
            _ => "a number",
        };
        invalid(&self.path, format!("expected {expected}, found {found}"))
    }

    fn is_object(&self) -> bool {
        self.json.starts_with('{')
    }

    /// Checks that it is an object.
    fn check_object(&self) -> Result<()> {
        match self.is_object() {
            true => Ok(()),
            false => Err(self.wrong_type("an object")),
        }
    }

    fn is_list(&self) -> bool {
        self.json.starts_with('[')
    }

    fn is_string(&self) -> bool {
        self.json.starts_with('"')
    }

    fn text(&self) -> Result<Cow<'a, str>> {
        let inner = self
            .json
            .strip_prefix('"')
            .and_then(|json| json.strip_suffix('"'))
            .ok_or_else(|| self.wrong_type("a string"))?;
        Ok(unescape(inner))
    }

    fn list(&self) -> Result<impl Iterator<Item = Field<'a>> + use<'a>> {
        if !self.is_list() {
            return Err(self.wrong_type("a list"));
        }
        let (json, path) = (self.json, self.path.clone());
        let mut cursor = Cursor::new(json);
        let mut has_more = cursor.open(json::JsonKind::Array).is_ok();
        let mut at = 0;
        Ok(std::iter::from_fn(move || {
            has_more = has_more && cursor.element().unwrap_or(false);
            let element = has_more.then(|| cursor.value().ok()).flatten()?;
            let field = Field::new(&json[element], format!("{path}[{at}]"));
            at += 1;
            Some(field)
        }))
    }

    /// The JSON of a member, even if it is `null`.
    fn get(&self, name: &str) -> Option<&'a str> {
        if self.json.len() <= MAX_SCANNED_BYTES {
            return self.find(name);
        }
        let index = self.index.get_or_init(|| self.build_index());
        let found = index
            .members
            .iter()
            .rev()
            .find(|(key, _)| json::str_eq(key, name))
            .map(|(_, value)| *value);
        match index.truncated {
            true => self.find(name),
            false => found,
        }
    }

    /// Scans the object for a member; of duplicates the last one counts.
    fn find(&self, name: &str) -> Option<&'a str> {
        let mut found = None;
        self.for_each_member(|key, value| {
            if json::str_eq(key, name) {
                found = Some(value);
            }
            true
        });
        found
    }

    fn build_index(&self) -> MemberIndex<'a> {
        let mut index = MemberIndex::default();
        self.for_each_member(|key, value| {
            index.truncated = index.members.len() == MAX_INDEXED;
            if !index.truncated {
                index.members.push((key, value));
            }
            !index.truncated
        });
        index
    }

    /// Calls `visit` with each key, with its quotes, and value, as long as it returns true.
    fn for_each_member(&self, mut visit: impl FnMut(&'a str, &'a str) -> bool) {
        let mut cursor = Cursor::new(self.json);
        if cursor.open(json::JsonKind::Object).is_err() {
            return;
        }
        let mut step = || -> std::result::Result<bool, json::NotJson> {
            let Some(key) = cursor.key()? else {
                return Ok(false);
            };
            let value = cursor.value()?;
            Ok(visit(&self.json[key], &self.json[value]))
        };
        // It was parsed as JSON before, so there is no error.
        while let Ok(true) = step() {}
    }

    /// A member; `null` counts as absent.
    fn member(&self, name: &str) -> Result<Option<Field<'a>>> {
        self.check_object()?;
        let value = self.get(name).filter(|value| *value != "null");
        Ok(value.map(|value| Field::new(value, format!("{}.{name}", self.path))))
    }

    fn required(&self, name: &str) -> Result<Field<'a>> {
        self.member(name)?
            .ok_or_else(|| invalid(&format!("{}.{name}", self.path), "is missing"))
    }

    fn optional_text(&self, name: &str) -> Result<Option<Cow<'a, str>>> {
        self.member(name)?.map(|field| field.text()).transpose()
    }
}

/// Decodes the inside of a JSON string. A lone surrogate becomes U+FFFD: a text that was cut within a character stays
/// in the conversation, and an error would fail every later turn.
fn unescape(inner: &str) -> Cow<'_, str> {
    let Some(first) = memchr::memchr(b'\\', inner.as_bytes()) else {
        return Cow::Borrowed(inner);
    };
    let unit = |at: usize| {
        let digits = inner.get(at..at + 6)?.strip_prefix("\\u")?;
        u32::from_str_radix(digits, 16).ok()
    };
    let mut text = inner[..first].to_owned();
    let mut at = first;
    while let Some(escaped) = inner.as_bytes().get(at + 1) {
        let mut length = 2;
        text.push(match escaped {
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                length = 6;
                let low = || unit(at + 6).filter(|low| (0xdc00..0xe000).contains(low));
                match unit(at) {
                    Some(high @ 0xd800..0xdc00) => low().map_or('\u{fffd}', |low| {
                        length = 12;
                        let code = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
                        char::from_u32(code).unwrap_or('\u{fffd}')
                    }),
                    code => code.and_then(char::from_u32).unwrap_or('\u{fffd}'),
                }
            }
            // A quote, a backslash or a slash.
            other => char::from(*other),
        });
        at += length;
        let rest = inner.get(at..).unwrap_or_default();
        let plain = memchr::memchr(b'\\', rest.as_bytes()).unwrap_or(rest.len());
        text.push_str(&rest[..plain]);
        at += plain;
    }
    Cow::Owned(text)
}

fn invalid(path: &str, what: impl Display) -> Error {
    Error::new(Kind::Params, format!("{path}: {what}"))
}

/// The JSON of the parameters; without any, an empty object.
pub(crate) fn value(params: Option<&RawValue>) -> Result<Cow<'_, str>> {
    let Some(params) = params else {
        return Ok(Cow::Borrowed("{}"));
    };
    check_depth(params, "params")
}

/// The text of a value, if it nests no deeper than [`MAX_DEPTH`]. Lone surrogates are replaced.
fn check_depth<'a>(json: &'a RawValue, name: &str) -> Result<Cow<'a, str>> {
    if json::is_deeper_than(json.get().as_bytes(), MAX_DEPTH) {
        let what = format!("cannot be read: it nests deeper than {MAX_DEPTH} levels");
        return Err(invalid(name, what));
    }
    // The cursor rejects lone surrogates.
    Ok(replace_lone_surrogates(json.get()))
}

/// The parameters as a field.
pub(crate) fn root(json: &str) -> Field<'_> {
    Field::new(json.trim_ascii(), "params".to_owned())
}

/// The version of MCP in an `initialize`.
pub(crate) fn protocol_version<'a>(params: &Field<'a>) -> Result<Cow<'a, str>> {
    if let Some(capabilities) = params.member("capabilities")? {
        capabilities.check_object()?;
    }
    if let Some(client) = params.member("clientInfo")? {
        client.optional_text("name")?;
        client.optional_text("version")?;
    }
    params.required("protocolVersion")?.text()
}

/// The level in a `logging/setLevel`.
pub(crate) fn log_level<'a>(params: &Field<'a>) -> Result<Cow<'a, str>> {
    params.required("level")?.text()
}

/// The stream in a `plexum/provider/cancel`.
pub(crate) fn cancelled_stream(params: &Field<'_>) -> Result<Id> {
    id(&params.required("stream")?)
}

/// The request in a `notifications/cancelled`.
pub(crate) fn cancelled_request(params: &Field<'_>) -> Result<Id> {
    id(&params.required("requestId")?)
}

/// The stream and the messages of the user in a `plexum/provider/steer`.
pub(crate) fn steer(params: &Field<'_>) -> Result<(Id, Vec<Vec<PromptBlock>>)> {
    let stream = id(&params.required("stream")?)?;
    let turn = conversation(&params.required("request")?)?;
    Ok((stream, turn.prompt))
}

fn id(field: &Field<'_>) -> Result<Id> {
    Id::from_json(field.json).ok_or_else(|| field.wrong_type("a string or an integer"))
}

/// `plexum/provider/models` has no parameters.
pub(crate) fn models(params: &Field<'_>) -> Result<()> {
    params.check_object()
}

/// The workspace and the turn in a `plexum/provider/stream`, without its tools.
pub(crate) fn stream(params: &Field<'_>) -> Result<(PathBuf, TurnRequest)> {
    let agent = params.required("agent")?;
    let workspace = workspace(&agent.required("workspace")?)?;
    let request = params.required("request")?;
    let mut turn = conversation(&request)?;
    turn.model = params
        .optional_text("model")?
        .unwrap_or_default()
        .into_owned();
    if turn.model.contains('\0') {
        return Err(invalid(
            "params.model",
            "a model cannot have a NUL in its name",
        ));
    }
    turn.agent_id = agent.optional_text("id")?.map(Cow::into_owned);
    turn.system = request
        .optional_text("system")?
        .filter(|text| !text.trim().is_empty())
        .map(Cow::into_owned);
    turn.thread = thread_choice(params)?;
    turn.output_schema = output_schema(params)?;
    turn.reasoning_effort = reasoning_effort(params)?;
    Ok((workspace, turn))
}

/// The parameter `thread`.
fn thread_choice(params: &Field<'_>) -> Result<ThreadChoice> {
    let Some(field) = params.member("thread")? else {
        return Ok(ThreadChoice::Stored);
    };
    match &*field.text()? {
        "new" => Ok(ThreadChoice::New),
        id if is_thread_id(id) => Ok(ThreadChoice::Adopted(id.to_ascii_lowercase())),
        other => Err(invalid(
            &field.path,
            format!("'{}' is neither \"new\" nor a thread id", label(other)),
        )),
    }
}

/// The JSON Schema for the last text of the turn, as JSON.
fn output_schema(params: &Field<'_>) -> Result<Option<String>> {
    let Some(field) = params.member("output_schema")? else {
        return Ok(None);
    };
    field.check_object()?;
    if field.json.len() > LONGEST_SCHEMA {
        let what = format!("is longer than {LONGEST_SCHEMA} bytes");
        return Err(invalid(&field.path, what));
    }
    check_schema(&field)?;
    Ok(Some(replace_lone_surrogates(field.json).into_owned()))
}

/// Checks the JSON Schema for the last text of a turn; `name` is its path in messages.
///
/// # Errors
/// [`Kind::Params`], with the path of the invalid field.
pub(crate) fn check_schema_text(json: &str, name: &str) -> Result<()> {
    with_document(json, name, |field| {
        field.check_object()?;
        check_schema(field)
    })
}

/// Parses a JSON document, whose path in messages is `name`.
fn with_document<T>(
    json: &str,
    name: &str,
    parse: impl FnOnce(&Field<'_>) -> Result<T>,
) -> Result<T> {
    let json: &RawValue = serde_json::from_str(json)
        .map_err(|error| Error::new(Kind::Params, format!("{name}: not JSON: {error}")))?;
    let json = check_depth(json, name)?;
    parse(&Field::new(json.trim_ascii(), name.to_owned()))
}

/// Checks the keywords of a JSON Schema that mean the same for all providers; the provider checks the rest.
fn check_schema(schema: &Field<'_>) -> Result<()> {
    // `true` and `false` are schemas too.
    if matches!(schema.json, "true" | "false") {
        return Ok(());
    }
    schema.check_object()?;
    if let Some(field) = schema.member("type")? {
        match field.is_list() {
            true => field.list()?.try_for_each(|name| check_type(&name))?,
            false => check_type(&field)?,
        }
    }
    if let Some(required) = schema.member("required")? {
        for name in required.list()? {
            name.text()?;
        }
    }
    for name in ["properties", "$defs", "definitions", "patternProperties"] {
        if let Some(members) = schema.member(name)? {
            members.check_object()?;
            let mut checked = Ok(());
            members.for_each_member(|key, value| {
                let key = unescape(&key[1..key.len() - 1]);
                let path = format!("{}.{}", members.path, label(&key));
                checked = check_schema(&Field::new(value, path));
                checked.is_ok()
            });
            checked?;
        }
    }
    for name in ["anyOf", "oneOf", "allOf", "prefixItems"] {
        if let Some(list) = schema.member(name)? {
            list.list()?.try_for_each(|field| check_schema(&field))?;
        }
    }
    for name in ["items", "additionalProperties", "not"] {
        if let Some(field) = schema.member(name)? {
            // Older drafts allow a list of schemas here.
            match name == "items" && field.is_list() {
                true => field.list()?.try_for_each(|field| check_schema(&field))?,
                false => check_schema(&field)?,
            }
        }
    }
    Ok(())
}

fn check_type(field: &Field<'_>) -> Result<()> {
    const TYPES: [&str; 7] = [
        "string", "number", "integer", "boolean", "object", "array", "null",
    ];
    let name = field.text()?;
    match TYPES.contains(&&*name) {
        true => Ok(()),
        false => Err(invalid(
            &field.path,
            format!("'{}' is not a type of JSON Schema", label(&name)),
        )),
    }
}

/// Whether this can be a reasoning effort. Providers add new ones, so there is no list of them, but each is one word.
pub(crate) fn is_effort(effort: &str) -> bool {
    const LONGEST: usize = 64;
    (1..=LONGEST).contains(&effort.len())
        && effort
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

/// The parameter `reasoning_effort`.
fn reasoning_effort(params: &Field<'_>) -> Result<Option<String>> {
    let Some(field) = params.member("reasoning_effort")? else {
        return Ok(None);
    };
    let effort = field.text()?;
    if !is_effort(&effort) {
        return Err(invalid(
            &field.path,
            format!("'{}' is not a word such as 'low' or 'high'", label(&effort)),
        ));
    }
    Ok(Some(effort.into_owned()))
}

/// The tools in a `plexum/provider/stream`.
pub(crate) fn stream_tools(params: &Field<'_>) -> Result<Vec<Tool>> {
    tools(params.required("request")?.member("tools")?)
}

/// The workspace and the mutations in a `plexum/session/mutate`.
pub(crate) fn mutate(params: &Field<'_>) -> Result<(PathBuf, Vec<Mutation>)> {
    params.optional_text("agent_id")?;
    let workspace = workspace(&params.required("workspace")?)?;
    let mutations = mutations(&params.required("mutations")?)?;
    Ok((workspace, mutations))
}

/// Parses a list of mutations, `[{"block_id":"…","op":"…"}]`; other members are ignored.
///
/// # Errors
/// [`Kind::Params`], with the path of the invalid field, below `mutations`.
pub(crate) fn parse_mutations(json: &str) -> Result<Vec<Mutation>> {
    with_document(json, "mutations", mutations)
}

fn mutations(list: &Field<'_>) -> Result<Vec<Mutation>> {
    let mut mutations = Vec::new();
    for field in list.list()? {
        if mutations.len() == MAX_MUTATIONS {
            let what = format!("has more than {MAX_MUTATIONS} entries: split it");
            return Err(invalid(&list.path, what));
        }
        let op = field.required("op")?;
        let name = op.text()?;
        let op = Op::named(&name).ok_or_else(|| {
            let expected = "expected 'consume-light' or 'consume-heavy'";
            invalid(
                &op.path,
                format!("'{name}' is not an operation, {expected}"),
            )
        })?;
        mutations.push(Mutation {
            block_id: field.required("block_id")?.text()?.into_owned(),
            op,
            reach: Reach::All,
        });
    }
    Ok(mutations)
}

fn workspace(field: &Field<'_>) -> Result<PathBuf> {
    let workspace = PathBuf::from(field.text()?.into_owned());
    if !workspace.is_absolute() {
        return Err(invalid(
            &field.path,
            format!("'{}' is not an absolute path", workspace.display()),
        ));
    }
    if workspace.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(invalid(&field.path, "a path cannot have a NUL in it"));
    }
    Ok(workspace)
}

/// The agent and its new tools in a `notifications/plexum/tools/changed`.
pub(crate) fn tools_changed(params: &Field<'_>) -> Result<(String, Vec<Tool>)> {
    let agent_id = params.required("agent_id")?.text()?.into_owned();
    Ok((agent_id, tools(Some(params.required("tools")?))?))
}

fn tools(field: Option<Field<'_>>) -> Result<Vec<Tool>> {
    let mut tools = Vec::new();
    let Some(field) = field else {
        return Ok(tools);
    };
    for tool in field.list()? {
        if tools.len() == MAX_TOOLS {
            let what = format!("has more than {MAX_TOOLS} entries");
            return Err(invalid(&field.path, what));
        }
        let schema = match tool.member("input_schema")? {
            Some(schema) => Some(schema),
            // MCP's name of it.
            None => tool.member("inputSchema")?,
        };
        let schema = schema
            .map(|schema| schema.check_object().map(|()| schema.json.to_owned()))
            .transpose()?
            .and_then(|schema| RawValue::from_string(schema).ok());
        tools.push(Tool {
            name: tool.required("name")?.text()?.into_owned(),
            description: tool.optional_text("description")?.map(Cow::into_owned),
            input_schema: schema,
        });
    }
    Ok(tools)
}

/// The prompt and the history in the messages. Messages after the assistant's last one are the prompt.
fn conversation(request: &Field<'_>) -> Result<TurnRequest> {
    let field = request.required("messages")?;
    // A first pass, which keeps nothing, validates all messages and finds the assistant's last one.
    let mut first_new = 0;
    for (at, message) in field.list()?.enumerate() {
        if message.required("role")?.text()? == "assistant" {
            first_new = at + 1;
        }
        for_each_block(&message, |_, _| Ok(()))?;
    }
    let mut history = HistoryBuilder::default();
    let mut prompt = Prompt::default();
    let mut warnings = Vec::new();
    let mut left_out = 0;
    for (at, message) in field.list()?.enumerate() {
        let role = message.required("role")?.text()?;
        if at < first_new {
            history.begin(&role);
            for_each_block(&message, |_, block| {
                history.add(&history_text(&block));
                Ok(())
            })?;
            continue;
        }
        match &*role {
            "user" => {
                prompt.begin();
                for_each_block(&message, |field, block| prompt.add(field, block))?;
                prompt.end();
            }
            // codex has called the tool itself and knows the result.
            "tool" | "function" => {}
            role => {
                let mut is_empty = true;
                for_each_block(&message, |_, block| {
                    is_empty &= is_blank(&block);
                    Ok(())
                })?;
                if is_empty {
                    continue;
                }
                left_out += 1;
                if left_out <= MAX_LEFT_OUT_WARNINGS {
                    warnings.push(format!(
                        "{} is ignored: its role is '{}', and only messages of the user are new to codex",
                        message.path,
                        label(role)
                    ));
                }
            }
        }
    }
    if left_out > MAX_LEFT_OUT_WARNINGS {
        let more = left_out - MAX_LEFT_OUT_WARNINGS;
        warnings.push(format!("{more} more messages with such roles are ignored"));
    }
    let prompt = prompt.messages;
    if prompt.is_empty() {
        return Err(invalid(
            &field.path,
            "nothing is new: no message of the user after the last one of the assistant has any content",
        ));
    }
    // Checked early, before a text that can never be sent is copied.
    if let [messages] = &prompt[..]
        && let [PromptBlock::Text(text)] = &messages[..]
    {
        check_prompt_length(text)?;
    }
    Ok(TurnRequest {
        prompt,
        history: history.finish(),
        warnings,
        ..TurnRequest::default()
    })
}

/// Collects the new messages of the user. Adjacent texts become one, joined as codex would get them: short texts in
/// blocks of their own would take many times their bytes.
#[derive(Default)]
struct Prompt {
    messages: Vec<Vec<PromptBlock>>,
    current: Vec<PromptBlock>,
    attachments: usize,
}

impl Prompt {
    fn begin(&mut self) {
        self.current = Vec::new();
    }

    fn add(&mut self, field: &Field<'_>, block: PromptBlock) -> Result<()> {
        match (self.current.last_mut(), block) {
            (Some(PromptBlock::Text(before)), PromptBlock::Text(text)) => {
                before.push('\n');
                before.push_str(&text);
            }
            (_, block @ PromptBlock::Text(_)) => self.current.push(block),
            (_, block) => {
                self.attachments += 1;
                if self.attachments > MAX_ATTACHMENTS {
                    let what = format!(
                        "a prompt cannot have more than {MAX_ATTACHMENTS} blocks that are not text"
                    );
                    return Err(invalid(&field.path, what));
                }
                self.current.push(block);
            }
        }
        Ok(())
    }

    fn end(&mut self) {
        let current = std::mem::take(&mut self.current);
        if current.iter().all(is_blank) {
            return;
        }
        if let Some(before) = self.messages.last_mut()
            && let [PromptBlock::Text(before)] = &mut before[..]
            && let [PromptBlock::Text(text)] = &current[..]
        {
            before.push_str("\n\n");
            before.push_str(text);
        } else {
            self.messages.push(current);
        }
    }
}

/// Whether the block has no content for codex.
fn is_blank(block: &PromptBlock) -> bool {
    match block {
        PromptBlock::Text(text) => text.trim().is_empty(),
        PromptBlock::Image(_) | PromptBlock::Unsupported { .. } => false,
    }
}

/// The text for a block in the history.
fn history_text(block: &PromptBlock) -> String {
    match block {
        PromptBlock::Text(text) => text.clone(),
        PromptBlock::Image(image) => format!("[image \"{}\"]", label(&image.name)),
        PromptBlock::Unsupported { kind, name } => {
            format!("[{} \"{}\"]", label(kind), label(name))
        }
    }
}

/// Calls `visit` with each block of a message's content, and its field.
fn for_each_block(
    message: &Field<'_>,
    mut visit: impl FnMut(&Field<'_>, PromptBlock) -> Result<()>,
) -> Result<()> {
    // The content of a message that only calls tools can be null.
    if message.get("content") == Some("null") {
        return Ok(());
    }
    let content = message.required("content")?;
    if content.is_string() {
        return visit(&content, PromptBlock::Text(content.text()?.into_owned()));
    }
    if !content.is_list() {
        return Err(content.wrong_type("a string or a list of blocks"));
    }
    for block in content.list()? {
        let kind = block.required("type")?.text()?;
        let parsed = match &*kind {
            // `input_…`, `output_text` and `image_url` are from OpenAI's APIs.
            "text" | "input_text" | "output_text" => {
                PromptBlock::Text(block.required("text")?.text()?.into_owned())
            }
            "image" | "input_image" | "image_url" => PromptBlock::Image(image(&block)?),
            "thinking" | "redacted_thinking" | "reasoning" => continue,
            // codex knows its tools' calls and results.
            kind if is_tool_block(kind) => continue,
            kind => PromptBlock::Unsupported {
                kind: kind.to_owned(),
                name: block_name(&block, kind),
            },
        };
        visit(&block, parsed)?;
    }
    Ok(())
}

/// Whether this is the type of a tool call or result (`tool_use`, `tool_result`, `server_tool_use`,
/// `web_search_tool_result`, `function_call_output`, …).
fn is_tool_block(kind: &str) -> bool {
    kind.starts_with("function_call")
        || kind.starts_with("custom_tool_call")
        || ["tool_use", "tool_result", "tool_call", "tool_call_output"]
            .iter()
            .any(|end| kind.ends_with(end))
}

/// A display name of a block that is not an image: the first of its members that names it, else its type.
fn block_name(block: &Field<'_>, kind: &str) -> String {
    let text = |name: &str| {
        let text = Field::new(block.get(name)?, String::new()).text().ok()?;
        (!text.trim().is_empty()).then_some(text)
    };
    ["name", "filename", "file_name", "title"]
        .into_iter()
        .find_map(text)
        .map(|name| without_secrets(&name))
        .or_else(|| {
            let path = ["path", "url"].into_iter().find_map(text)?;
            Some(file_name(&path))
        })
        .or_else(|| {
            ["id", "media_type"]
                .into_iter()
                .find_map(text)
                .map(Cow::into_owned)
        })
        .filter(|name| !name.trim().is_empty())
        .unwrap_or_else(|| kind.to_owned())
}

fn image(block: &Field<'_>) -> Result<Image> {
    // Other APIs put the image into `source`, or into `image_url`, a string or an object with a `url`.
    let source = block.member("source")?.filter(Field::is_object);
    let holder = source.as_ref().unwrap_or(block);
    let media_type = match holder.optional_text("media_type")? {
        Some(media_type) => media_type,
        None => block
            .optional_text("media_type")?
            .unwrap_or("image/png".into()),
    };
    let data = match holder.optional_text("data")? {
        Some(data) => Some(data),
        None => holder.optional_text("data_base64")?,
    };
    let path = holder.optional_text("path")?;
    let url = match (holder.optional_text("url")?, block.member("image_url")?) {
        (Some(url), _) => Some(url),
        (None, Some(field)) if field.is_object() => field.optional_text("url")?,
        (None, Some(field)) => Some(field.text()?),
        (None, None) => None,
    };
    let given_name = block.optional_text("name")?;
    let given_name = given_name.map(|name| without_secrets(&name));
    let (name, source) = if let Some(path) = path {
        (
            file_name(&path),
            ImageSource::Path(path.into_owned().into()),
        )
    } else if let Some(data) = data {
        (
            media_type.clone().into_owned(),
            ImageSource::Data {
                base64: data.into_owned(),
                media_type: media_type.into_owned(),
            },
        )
    } else if let Some(url) = url {
        let name = if is_data_url(&url) {
            media_type.into_owned()
        } else {
            file_name(&url)
        };
        (name, ImageSource::Url(url.into_owned()))
    } else {
        ("image".to_owned(), ImageSource::Missing)
    };
    let name = given_name.unwrap_or(name);
    Ok(Image {
        name: if name.trim().is_empty() {
            "image".to_owned()
        } else {
            name
        },
        source,
    })
}

fn is_data_url(text: &str) -> bool {
    text.get(..5)
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"))
}

/// A given name, or the file name if it is a URL.
fn without_secrets(name: &str) -> String {
    if name.contains("://") || name.starts_with("//") || is_data_url(name) {
        file_name(name)
    } else {
        name.to_owned()
    }
}

/// The last component of a path or URL. Of a URL it has no user, password, query or fragment: they can contain secrets,
/// and the name is logged and sent to the model.
fn file_name(text: &str) -> String {
    if is_data_url(text) {
        return "data".to_owned();
    }
    let Some((_, rest)) = text
        .split_once("//")
        .filter(|(scheme, _)| scheme.is_empty() || scheme.ends_with(':'))
    else {
        return Path::new(text).file_name().map_or_else(
            || text.to_owned(),
            |name| name.to_string_lossy().into_owned(),
        );
    };
    // Cut at the first of these, wherever it is: an unescaped password can contain one, too.
    let rest = rest.split(['?', '#', ';']).next().unwrap_or_default();
    let name = rest.trim_end_matches(['/', '\\']);
    let name = name.rsplit(['/', '\\']).next().unwrap_or_default();
    name.rsplit('@').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parse(messages: Value) -> Result<TurnRequest> {
        let params = json!({"agent": {"workspace": "/w"}, "request": {"messages": messages}});
        stream(&root(&params.to_string())).map(|(_, request)| request)
    }

    fn text(text: &str) -> PromptBlock {
        PromptBlock::Text(text.to_owned())
    }

    fn image(name: &str, source: ImageSource) -> PromptBlock {
        PromptBlock::Image(Image {
            name: name.into(),
            source,
        })
    }

    // fault: 66
    #[test]
    fn prompt_is_every_user_message_after_last_response() {
        let request = parse(json!([
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": [{"type": "text", "text": "yes"}, {"type": "tool_use", "id": "1", "name": "ls"}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1"}, {"type": "text", "text": "a"}]},
            {"role": "tool", "content": "done"},
            {"role": "user", "content": [{"type": "image", "path": "/x/y.png"}]},
            {"role": "user", "content": []},
            {"role": "user", "content": " \n"},
            {"role": "user", "content": null},
            {"role": "developer", "content": "be quick"},
            {"role": "user", "content": "b"},
        ]))
        .unwrap();
        let prompt: Vec<Vec<PromptBlock>> = request
            .prompt
            .into_iter()
            .map(|blocks| {
                blocks
                    .into_iter()
                    .filter(|block| !is_blank(block))
                    .collect()
            })
            .collect();
        assert_eq!(
            prompt,
            [
                vec![text("a")],
                vec![image("y.png", ImageSource::Path("/x/y.png".into()))],
                vec![text("b")],
            ]
        );
        assert_eq!(request.history.text, "[user]\nfirst\n\n[assistant]\nyes");
        assert_eq!(
            request.warnings,
            [
                "params.request.messages[8] is ignored: its role is 'developer', and only messages of the user are new to codex"
            ]
        );
    }

    // fault: 66
    #[test]
    fn rejects_conversation_without_new_message() {
        let question = json!({"role": "user", "content": "hi"});
        let reply = json!({"role": "assistant", "content": "yes"});
        for last in [
            None,
            Some(json!({"role": "user", "content": ""})),
            Some(json!({"role": "user", "content": null})),
            Some(json!({"role": "user", "content": []})),
            Some(json!({"role": "user", "content": [{"type": "text", "text": "\t"}]})),
            Some(json!({"role": "user", "content": [{"type": "tool_result", "content": "x"}]})),
            Some(json!({"role": "system", "content": "x"})),
            Some(json!({"role": "tool", "content": "x"})),
        ] {
            let mut messages = vec![question.clone(), reply.clone()];
            messages.extend(last);
            let error = parse(json!(messages)).unwrap_err();
            assert_eq!(error.kind().rpc_code(), -32602);
            assert!(error.message().contains("nothing is new"), "{error}");
        }
        // An empty reply counts as one.
        for empty in [json!(""), json!(null), json!([])] {
            let messages = json!([question, {"role": "assistant", "content": empty}]);
            assert!(parse(messages).is_err());
        }
    }

    #[test]
    fn joins_many_messages_into_one_prompt() {
        let messages: Vec<Value> = (0..1000)
            .map(|number| json!({"role": "user", "content": number.to_string()}))
            .collect();
        let request = parse(json!(messages)).unwrap();
        let joined: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
        assert_eq!(request.prompt, [[text(&joined.join("\n\n"))]]);
        assert!(request.history.is_empty());
    }

    #[test]
    fn rejects_invalid_members_of_turn() {
        let with = |name: &str, value: Value| {
            let mut params = json!({"agent": {"workspace": "/w"}, "request": {"messages": [{"role": "user", "content": "hi"}]}});
            params[name] = value;
            stream(&root(&params.to_string())).map(|(_, request)| request)
        };
        for (name, value, part) in [
            ("thread", json!(""), "params.thread"),
            ("thread", json!("fresh"), "'fresh' is neither"),
            ("thread", json!("-cx=y"), "neither"),
            ("thread", json!(1), "expected a string"),
            ("output_schema", json!("x"), "expected an object"),
            ("output_schema", json!([]), "expected an object"),
            (
                "output_schema",
                json!({"type": "text"}),
                "params.output_schema.type: 'text'",
            ),
            (
                "output_schema",
                json!({"properties": {"a": {"type": ["string", 1]}}}),
                "params.output_schema.properties.a.type[1]",
            ),
            (
                "output_schema",
                json!({"items": [{"required": "a"}]}),
                "items[0].required",
            ),
            (
                "output_schema",
                json!({"anyOf": {}}),
                "anyOf: expected a list",
            ),
            ("reasoning_effort", json!(""), "params.reasoning_effort"),
            ("reasoning_effort", json!("high\""), "not a word"),
            ("reasoning_effort", json!(3), "expected a string"),
        ] {
            let error = with(name, value.clone()).unwrap_err();
            assert_eq!(error.kind(), Kind::Params);
            assert!(error.message().contains(part), "{value}: {error}");
        }
        let id = "019A0000-0000-7000-8000-00000000000A";
        let request = with("thread", json!(id)).unwrap();
        assert_eq!(
            request.thread,
            ThreadChoice::Adopted(id.to_ascii_lowercase())
        );
        assert_eq!(
            with("thread", json!("new")).unwrap().thread,
            ThreadChoice::New
        );
        assert_eq!(
            with("thread", json!(null)).unwrap().thread,
            ThreadChoice::Stored
        );
        let schema = json!({"type": "object", "properties": {"a": {"type": ["string", "null"]}}, "additionalProperties": false});
        let request = with("output_schema", schema.clone()).unwrap();
        assert_eq!(request.output_schema, Some(schema.to_string()));
        let request = with("reasoning_effort", json!("xhigh")).unwrap();
        assert_eq!(request.reasoning_effort.as_deref(), Some("xhigh"));
    }

    // fault: 68
    #[test]
    fn unknown_block_keeps_place_and_name() {
        for (block, name) in [
            (json!({"type": "audio", "name": "call.mp3"}), "call.mp3"),
            (json!({"type": "audio", "path": "/x/call.mp3"}), "call.mp3"),
            (
                json!({"type": "audio", "filename": "https://u:p@h/a/b.mp3?k=1"}),
                "b.mp3",
            ),
            (
                json!({"type": "audio", "name": 5, "id": "file_1"}),
                "file_1",
            ),
            (json!({"type": "audio", "data": "aGk="}), "audio"),
        ] {
            let request = parse(json!([{"role": "user", "content": [block]}])).unwrap();
            let expected = PromptBlock::Unsupported {
                kind: "audio".to_owned(),
                name: name.to_owned(),
            };
            assert_eq!(request.prompt, [[expected]], "{block}");
        }
    }

    // fault: 111
    #[test]
    fn names_of_urls_have_no_secrets() {
        for (url, name) in [
            ("https://example.org/a/cat.png?x=1", "cat.png"),
            ("https://user:key@example.org/a/cat.png#key", "cat.png"),
            ("https://user:key@example.org", "example.org"),
            ("https://user:key@example.org?key", "example.org"),
            ("https://user:key@example.org/?key=a/b.png", "example.org"),
            ("//user:key@example.org/", "example.org"),
            ("s3://key:key@bucket/cat@2x.png", "2x.png"),
            ("https://user:key/key@example.org", "example.org"),
            ("https://example.org/cat.png;key=1", "cat.png"),
            ("https://", "image"),
        ] {
            for block in [
                json!({"type": "image", "url": url}),
                json!({"type": "image", "path": url}),
                json!({"type": "image", "name": url, "data": "aGk="}),
                json!({"type": "image_url", "image_url": {"url": url}}),
            ] {
                let request = parse(json!([{"role": "user", "content": [block]}])).unwrap();
                let [PromptBlock::Image(image)] = &request.prompt[0][..] else {
                    panic!("{block} is not an image");
                };
                assert_eq!(image.name, name, "{block}");
            }
        }
    }

    #[test]
    fn keeps_newest_part_of_long_conversation() {
        const LONGEST: usize = crate::turn::prompt::LONGEST_REPLAY;
        let mut messages = vec![json!({"role": "user", "content": "old"})];
        for _ in 0..10 {
            messages.push(json!({"role": "assistant", "content": "é".repeat(50_000)}));
        }
        messages.push(json!({"role": "user", "content": "now"}));
        let history = parse(json!(messages)).unwrap().history;
        assert!(history.text.len() <= LONGEST && history.text.len() > LONGEST - 4);
        assert!(history.truncated && !history.text.contains("old"));
    }

    #[test]
    fn reads_every_form_of_image() {
        let request = parse(json!([{"role": "user", "content": [
            {"type": "text", "text": "see"},
            {"type": "image", "media_type": "image/gif", "data": "aGk="},
            {"type": "image", "media_type": "image/gif", "data_base64": "aGk="},
            {"type": "image", "url": "https://example.org/a/cat.png?x=1"},
            {"type": "image", "url": "data:image/png;base64,aGk=", "name": "dog"},
            {"type": "image"},
            {"type": "input_image", "image_url": "data:image/png;base64,aGk="},
            {"type": "image", "source": {"type": "base64", "media_type": "image/gif", "data": "aGk="}},
        ]}]))
        .unwrap();
        let data = ImageSource::Data {
            base64: "aGk=".into(),
            media_type: "image/gif".into(),
        };
        let url = ImageSource::Url("data:image/png;base64,aGk=".into());
        assert_eq!(
            request.prompt[0][1..],
            [
                image("image/gif", data.clone()),
                image("image/gif", data.clone()),
                image(
                    "cat.png",
                    ImageSource::Url("https://example.org/a/cat.png?x=1".into())
                ),
                image("dog", url.clone()),
                image("image", ImageSource::Missing),
                image("image/png", url),
                image("image/gif", data),
            ]
        );
    }

    #[test]
    fn errors_name_the_field() {
        let messages = json!([{"role": "user", "content": "hi"}]);
        for (params, message) in [
            (json!([]), "params: expected an object, found a list"),
            (json!({}), "params.agent: is missing"),
            (
                json!({"agent": 3}),
                "params.agent: expected an object, found a number",
            ),
            (json!({"agent": {}}), "params.agent.workspace: is missing"),
            (
                json!({"agent": {"workspace": null}}),
                "params.agent.workspace: is missing",
            ),
            (
                json!({"agent": {"workspace": "w"}}),
                "params.agent.workspace: 'w' is not an absolute path",
            ),
            (
                json!({"agent": {"workspace": "/w"}}),
                "params.request: is missing",
            ),
            (
                json!({"agent": {"workspace": "/w"}, "request": {}}),
                "params.request.messages: is missing",
            ),
            (
                json!({"agent": {"workspace": "/w"}, "request": {"messages": {}}}),
                "params.request.messages: expected a list, found an object",
            ),
            (
                json!({"agent": {"workspace": "/w"}, "request": {"messages": []}}),
                "params.request.messages: nothing is new: no message of the user after the last one of the assistant has any content",
            ),
            (
                json!({"agent": {"workspace": "/w"}, "request": {"messages": [{"role": "user", "content": " \n"}]}}),
                "params.request.messages: nothing is new: no message of the user after the last one of the assistant has any content",
            ),
            (
                json!({"agent": {"workspace": "/w"}, "request": {"messages": [{"content": "x"}]}}),
                "params.request.messages[0].role: is missing",
            ),
            (
                json!({"agent": {"workspace": "/w"}, "request": {"messages": [{"role": "user", "content": 1}]}}),
                "params.request.messages[0].content: expected a string or a list of blocks, found a number",
            ),
            (
                json!({"agent": {"workspace": "/w"}, "request": {"messages": [{"role": "user", "content": [{"type": "text"}]}]}}),
                "params.request.messages[0].content[0].text: is missing",
            ),
            (
                json!({"agent": {"workspace": "/w"}, "request": {"messages": [{"role": "user", "content": [{"type": "image", "url": 1}]}]}}),
                "params.request.messages[0].content[0].url: expected a string, found a number",
            ),
            (
                json!({"agent": {"workspace": "/w", "id": 1}, "request": {"messages": messages}}),
                "params.agent.id: expected a string, found a number",
            ),
            (
                json!({"model": {}, "agent": {"workspace": "/w"}, "request": {"messages": messages}}),
                "params.model: expected a string, found an object",
            ),
            (
                json!({"agent": {"workspace": "/w"}, "request": {"messages": messages, "system": []}}),
                "params.request.system: expected a string, found a list",
            ),
        ] {
            let error = stream(&root(&params.to_string())).unwrap_err();
            assert_eq!(error.kind().rpc_code(), -32602);
            assert_eq!(error.message(), message, "{params}");
        }
    }

    #[test]
    fn reads_list_of_mutations() {
        let found = parse_mutations(
            r#" [{"block_id":"a","op":"light","x":1},{"op":"consume-heavy","block_id":""}] "#,
        );
        let mutation = |id: &str, op| Mutation {
            block_id: id.to_owned(),
            op,
            reach: Reach::All,
        };
        assert_eq!(
            found.unwrap(),
            [mutation("a", Op::Light), mutation("", Op::Heavy)]
        );
        let many = format!(
            "[{}{{}}]",
            r#"{"block_id":"a","op":"light"},"#.repeat(65_536)
        );
        for (json, message) in [
            ("{}", "mutations: expected a list, found an object"),
            ("[1]", "mutations[0]: expected an object, found a number"),
            (r#"[{"op":"light"}]"#, "mutations[0].block_id: is missing"),
            (
                r#"[{"block_id":"a","op":"light"},{"block_id":"b","op":"eat"}]"#,
                "mutations[1].op: 'eat' is not an operation, expected 'consume-light' or 'consume-heavy'",
            ),
            (
                "[",
                "mutations: not JSON: EOF while parsing a list at line 1 column 1",
            ),
            (&many, "mutations: has more than 65536 entries: split it"),
        ] {
            let error = parse_mutations(json).unwrap_err();
            assert_eq!(error.message(), message);
            assert_eq!(error.kind(), Kind::Params);
        }
    }
}
