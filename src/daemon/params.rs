//! The parameters of the daemon's requests, checked field by field so that an error can name the field.

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

/// The most tools that a turn can be lent: many times what providers take, and each costs more than its bytes.
const MAX_TOOLS: usize = 10_000;
/// The most calls that one request can consume.
const MAX_MUTATIONS: usize = 65_536;
/// The most images and blocks of other types that a prompt can have.
const MAX_ATTACHMENTS: usize = 4096;
/// How many messages are named that are left out; of the rest only the number is reported.
const MAX_LEFT_OUT_WARNINGS: usize = 100;
/// The longest schema of an output, in bytes: twice what providers take.
const LONGEST_SCHEMA: usize = 256 << 10;
/// How many objects and lists may stand in each other.
const MAX_DEPTH: usize = 127;
/// In an object up to so many bytes a member is looked for anew each time.
const SMALL_OBJECT: usize = 4096;
/// The members of a larger one are remembered, up to so many.
const MAX_REMEMBERED: usize = 64;

/// A value and where it stands.
///
/// It is the text on the wire and not a tree: a tree takes up to a hundred times the bytes, and what it took stays
/// with the allocator. So a member is looked for when it is asked for, and a list is walked.
#[derive(Clone)]
pub(crate) struct Field<'a> {
    /// Valid JSON, without white space around it.
    json: &'a str,
    path: String,
    remembered: OnceCell<Remembered<'a>>,
}

/// The members of an object.
#[derive(Clone, Default)]
struct Remembered<'a> {
    members: Vec<(&'a str, &'a str)>,
    /// There are more.
    truncated: bool,
}

impl<'a> Field<'a> {
    fn new(json: &'a str, path: String) -> Field<'a> {
        Field {
            json,
            path,
            remembered: OnceCell::new(),
        }
    }

    fn wrong(&self, expected: &str) -> Error {
        let found = match self.json.as_bytes().first() {
            Some(b'n') => "null",
            Some(b't' | b'f') => "a boolean",
            Some(b'"') => "a string",
            Some(b'[') => "a list",
            Some(b'{') => "an object",
            _ => "a number",
        };
        bad(&self.path, format!("expected {expected}, found {found}"))
    }

    fn is_object(&self) -> bool {
        self.json.starts_with('{')
    }

    /// Sees that it is an object.
    fn object(&self) -> Result<()> {
        match self.is_object() {
            true => Ok(()),
            false => Err(self.wrong("an object")),
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
            .ok_or_else(|| self.wrong("a string"))?;
        Ok(unescape(inner))
    }

    fn list(&self) -> Result<impl Iterator<Item = Field<'a>> + use<'a>> {
        if !self.is_list() {
            return Err(self.wrong("a list"));
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

    /// The JSON of a member, `null` too.
    fn get(&self, name: &str) -> Option<&'a str> {
        if self.json.len() <= SMALL_OBJECT {
            return self.find(name);
        }
        let remembered = self.remembered.get_or_init(|| self.remember());
        let found = remembered
            .members
            .iter()
            .rev()
            .find(|(key, _)| json::str_eq(key, name))
            .map(|(_, value)| *value);
        match remembered.truncated {
            true => self.find(name),
            false => found,
        }
    }

    /// Looks for a member from the beginning; of duplicates the last one counts.
    fn find(&self, name: &str) -> Option<&'a str> {
        let mut found = None;
        self.walk(|key, value| {
            if json::str_eq(key, name) {
                found = Some(value);
            }
            true
        });
        found
    }

    fn remember(&self) -> Remembered<'a> {
        let mut remembered = Remembered::default();
        self.walk(|key, value| {
            remembered.truncated = remembered.members.len() == MAX_REMEMBERED;
            if !remembered.truncated {
                remembered.members.push((key, value));
            }
            !remembered.truncated
        });
        remembered
    }

    /// Shows each key, with its quotes, and its value, while `goes_on` says so.
    fn walk(&self, mut goes_on: impl FnMut(&'a str, &'a str) -> bool) {
        let mut cursor = Cursor::new(self.json);
        if cursor.open(json::JsonKind::Object).is_err() {
            return;
        }
        let mut step = || -> std::result::Result<bool, json::NotJson> {
            let Some(key) = cursor.key()? else {
                return Ok(false);
            };
            let value = cursor.value()?;
            Ok(goes_on(&self.json[key], &self.json[value]))
        };
        // It was read as JSON before: an error would be a bug of ours.
        while let Ok(true) = step() {}
    }

    /// A member; `null` counts as absent.
    fn member(&self, name: &str) -> Result<Option<Field<'a>>> {
        self.object()?;
        let value = self.get(name).filter(|value| *value != "null");
        Ok(value.map(|value| Field::new(value, format!("{}.{name}", self.path))))
    }

    fn needed(&self, name: &str) -> Result<Field<'a>> {
        self.member(name)?
            .ok_or_else(|| bad(&format!("{}.{name}", self.path), "is missing"))
    }

    fn optional_text(&self, name: &str) -> Result<Option<Cow<'a, str>>> {
        self.member(name)?.map(|field| field.text()).transpose()
    }
}

/// What stands between the quotes of a JSON string. A text that was cut in the middle of a character stays in the
/// conversation, and must not cost every turn from then on: U+FFFD stands for the half of a surrogate pair.
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
            // A quote, a backslash, a slash.
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

fn bad(path: &str, what: impl Display) -> Error {
    Error::new(Kind::Params, format!("{path}: {what}"))
}

/// The JSON of the parameters; absent ones are an empty object.
pub(crate) fn value(params: Option<&RawValue>) -> Result<Cow<'_, str>> {
    let Some(params) = params else {
        return Ok(Cow::Borrowed("{}"));
    };
    checked(params, "params")
}

/// The text of a value that does not nest too deep for what reads it.
fn checked<'a>(json: &'a RawValue, name: &str) -> Result<Cow<'a, str>> {
    if json::is_deeper_than(json.get().as_bytes(), MAX_DEPTH) {
        let what = format!("cannot be read: it nests deeper than {MAX_DEPTH} levels");
        return Err(bad(name, what));
    }
    // The cursor takes half a surrogate pair for no JSON, wherever it stands.
    Ok(replace_lone_surrogates(json.get()))
}

/// The root of the parameters.
pub(crate) fn root(json: &str) -> Field<'_> {
    Field::new(json.trim_ascii(), "params".to_owned())
}

/// The version of MCP that `initialize` asks for.
pub(crate) fn protocol_version<'a>(params: &Field<'a>) -> Result<Cow<'a, str>> {
    if let Some(capabilities) = params.member("capabilities")? {
        capabilities.object()?;
    }
    if let Some(client) = params.member("clientInfo")? {
        client.optional_text("name")?;
        client.optional_text("version")?;
    }
    params.needed("protocolVersion")?.text()
}

/// The level that `logging/setLevel` asks for.
pub(crate) fn log_level<'a>(params: &Field<'a>) -> Result<Cow<'a, str>> {
    params.needed("level")?.text()
}

/// The stream that a request to cancel it names.
pub(crate) fn cancelled_stream(params: &Field<'_>) -> Result<Id> {
    id(&params.needed("stream")?)
}

/// The request that `notifications/cancelled` names.
pub(crate) fn cancelled_request(params: &Field<'_>) -> Result<Id> {
    id(&params.needed("requestId")?)
}

/// The stream into which words of the user are to go.
pub(crate) fn steer(params: &Field<'_>) -> Result<(Id, Vec<Vec<PromptBlock>>)> {
    let stream = id(&params.needed("stream")?)?;
    let turn = conversation(&params.needed("request")?)?;
    Ok((stream, turn.prompt))
}

fn id(field: &Field<'_>) -> Result<Id> {
    Id::from_json(field.json).ok_or_else(|| field.wrong("a string or an integer"))
}

/// Nothing can be asked of the list of models.
pub(crate) fn models(params: &Field<'_>) -> Result<()> {
    params.object()
}

/// What a stream asks for: the workspace and the turn.
pub(crate) fn stream(params: &Field<'_>) -> Result<(PathBuf, TurnRequest)> {
    let agent = params.needed("agent")?;
    let workspace = workspace(&agent.needed("workspace")?)?;
    let request = params.needed("request")?;
    let mut turn = conversation(&request)?;
    turn.model = params
        .optional_text("model")?
        .unwrap_or_default()
        .into_owned();
    if turn.model.contains('\0') {
        return Err(bad("params.model", "a model cannot have a NUL in its name"));
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

/// The thread that `thread` names.
fn thread_choice(params: &Field<'_>) -> Result<ThreadChoice> {
    let Some(field) = params.member("thread")? else {
        return Ok(ThreadChoice::Stored);
    };
    match &*field.text()? {
        "new" => Ok(ThreadChoice::New),
        id if is_thread_id(id) => Ok(ThreadChoice::Adopted(id.to_ascii_lowercase())),
        other => Err(bad(
            &field.path,
            format!("'{}' is neither \"new\" nor a thread id", label(other)),
        )),
    }
}

/// The JSON Schema that the last text is to follow, as JSON.
fn output_schema(params: &Field<'_>) -> Result<Option<String>> {
    let Some(field) = params.member("output_schema")? else {
        return Ok(None);
    };
    field.object()?;
    if field.json.len() > LONGEST_SCHEMA {
        let what = format!("is longer than {LONGEST_SCHEMA} bytes");
        return Err(bad(&field.path, what));
    }
    check_schema(&field)?;
    Ok(Some(replace_lone_surrogates(field.json).into_owned()))
}

/// Checks the text of a JSON Schema for the last text of a turn; `name` is for messages.
///
/// # Errors
/// [`Kind::Params`], with the path of what is wrong.
pub(crate) fn check_schema_text(json: &str, name: &str) -> Result<()> {
    with_document(json, name, |field| {
        field.object()?;
        check_schema(field)
    })
}

/// Reads a text that is one JSON value, whose path in messages is `name`.
fn with_document<T>(
    json: &str,
    name: &str,
    read: impl FnOnce(&Field<'_>) -> Result<T>,
) -> Result<T> {
    let json: &RawValue = serde_json::from_str(json)
        .map_err(|error| Error::new(Kind::Params, format!("{name}: not JSON: {error}")))?;
    let json = checked(json, name)?;
    read(&Field::new(json.trim_ascii(), name.to_owned()))
}

/// Checks what a JSON Schema means whatever the provider supports of it; the provider judges the rest.
fn check_schema(schema: &Field<'_>) -> Result<()> {
    // `true` and `false` are schemas too.
    if matches!(schema.json, "true" | "false") {
        return Ok(());
    }
    schema.object()?;
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
            members.object()?;
            let mut checked = Ok(());
            members.walk(|key, value| {
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
            // Older drafts have a list of schemas for the items.
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
        false => Err(bad(
            &field.path,
            format!("'{}' is not a type of JSON Schema", label(&name)),
        )),
    }
}

/// Is this a word of a provider's for how much the model is to think? New ones come; but each is a word.
pub(crate) fn is_effort(effort: &str) -> bool {
    const LONGEST: usize = 64;
    (1..=LONGEST).contains(&effort.len())
        && effort
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

/// How much the model is to think.
fn reasoning_effort(params: &Field<'_>) -> Result<Option<String>> {
    let Some(field) = params.member("reasoning_effort")? else {
        return Ok(None);
    };
    let effort = field.text()?;
    if !is_effort(&effort) {
        return Err(bad(
            &field.path,
            format!("'{}' is not a word such as 'low' or 'high'", label(&effort)),
        ));
    }
    Ok(Some(effort.into_owned()))
}

/// The tools that are lent to a stream.
pub(crate) fn stream_tools(params: &Field<'_>) -> Result<Vec<Tool>> {
    tools(params.needed("request")?.member("tools")?)
}

/// Which calls of which workspace are to be consumed, and how.
pub(crate) fn mutate(params: &Field<'_>) -> Result<(PathBuf, Vec<Mutation>)> {
    params.optional_text("agent_id")?;
    let workspace = workspace(&params.needed("workspace")?)?;
    let mutations = mutations(&params.needed("mutations")?)?;
    Ok((workspace, mutations))
}

/// The list of mutations that a text is, `[{"block_id":"…","op":"…"}]`; other members are ignored.
///
/// # Errors
/// [`Kind::Params`], with the path of what is wrong, below `mutations`.
pub(crate) fn parse_mutations(json: &str) -> Result<Vec<Mutation>> {
    with_document(json, "mutations", mutations)
}

fn mutations(list: &Field<'_>) -> Result<Vec<Mutation>> {
    let mut mutations = Vec::new();
    for field in list.list()? {
        if mutations.len() == MAX_MUTATIONS {
            let what = format!("has more than {MAX_MUTATIONS} entries: divide it");
            return Err(bad(&list.path, what));
        }
        let op = field.needed("op")?;
        let name = op.text()?;
        let op = Op::named(&name).ok_or_else(|| {
            let expected = "expected 'consume-light' or 'consume-heavy'";
            bad(
                &op.path,
                format!("'{name}' is not an operation, {expected}"),
            )
        })?;
        mutations.push(Mutation {
            block_id: field.needed("block_id")?.text()?.into_owned(),
            op,
            reach: Reach::All,
        });
    }
    Ok(mutations)
}

/// A workspace's path.
fn workspace(field: &Field<'_>) -> Result<PathBuf> {
    let workspace = PathBuf::from(field.text()?.into_owned());
    if !workspace.is_absolute() {
        return Err(bad(
            &field.path,
            format!("'{}' is not an absolute path", workspace.display()),
        ));
    }
    if workspace.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(bad(&field.path, "a path cannot have a NUL in it"));
    }
    Ok(workspace)
}

/// The agent whose tools are others, and the tools.
pub(crate) fn tools_changed(params: &Field<'_>) -> Result<(String, Vec<Tool>)> {
    let agent_id = params.needed("agent_id")?.text()?.into_owned();
    Ok((agent_id, tools(Some(params.needed("tools")?))?))
}

fn tools(field: Option<Field<'_>>) -> Result<Vec<Tool>> {
    let mut tools = Vec::new();
    let Some(field) = field else {
        return Ok(tools);
    };
    for tool in field.list()? {
        if tools.len() == MAX_TOOLS {
            let what = format!("has more than {MAX_TOOLS} entries");
            return Err(bad(&field.path, what));
        }
        let schema = match tool.member("input_schema")? {
            Some(schema) => Some(schema),
            // As MCP has it.
            None => tool.member("inputSchema")?,
        };
        let schema = schema
            .map(|schema| schema.object().map(|()| schema.json.to_owned()))
            .transpose()?
            .and_then(|schema| RawValue::from_string(schema).ok());
        tools.push(Tool {
            name: tool.needed("name")?.text()?.into_owned(),
            description: tool.optional_text("description")?.map(Cow::into_owned),
            input_schema: schema,
        });
    }
    Ok(tools)
}

/// Prompt and history of the messages: what came after the last one of the assistant is new.
fn conversation(request: &Field<'_>) -> Result<TurnRequest> {
    let field = request.needed("messages")?;
    // First everything is looked at and nothing is kept: only the end says what is new.
    let mut first_new = 0;
    for (at, message) in field.list()?.enumerate() {
        if message.needed("role")?.text()? == "assistant" {
            first_new = at + 1;
        }
        blocks(&message, |_, _| Ok(()))?;
    }
    let mut history = HistoryBuilder::default();
    let mut prompt = Prompt::default();
    let mut warnings = Vec::new();
    let mut left_out = 0;
    for (at, message) in field.list()?.enumerate() {
        let role = message.needed("role")?.text()?;
        if at < first_new {
            history.begin(&role);
            blocks(&message, |_, block| {
                recorded(&block).inspect(|part| history.add(part));
                Ok(())
            })?;
            continue;
        }
        match &*role {
            "user" => {
                prompt.begin();
                blocks(&message, |field, block| prompt.add(field, block))?;
                prompt.end();
            }
            // What a tool said is known to codex, which has called it.
            "tool" | "function" => {}
            role => {
                let mut is_empty = true;
                blocks(&message, |_, block| {
                    is_empty &= says_nothing(&block);
                    Ok(())
                })?;
                if is_empty {
                    continue;
                }
                left_out += 1;
                if left_out <= MAX_LEFT_OUT_WARNINGS {
                    warnings.push(format!(
                        "{} is left out: its role is '{}', and only what the user says is new to codex",
                        message.path,
                        label(role)
                    ));
                }
            }
        }
    }
    if left_out > MAX_LEFT_OUT_WARNINGS {
        let more = left_out - MAX_LEFT_OUT_WARNINGS;
        warnings.push(format!("{more} more messages of such roles are left out"));
    }
    let prompt = prompt.messages;
    if prompt.is_empty() {
        return Err(bad(
            &field.path,
            "nothing is new: no message of the user after the last one of the assistant has any content",
        ));
    }
    // Here already, so that nothing is copied that can never be sent.
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

/// The new messages of the user while they are gathered. Texts beside each other become one, joined as they would
/// be anyway: a block each takes many times the bytes of a short one.
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
                    return Err(bad(&field.path, what));
                }
                self.current.push(block);
            }
        }
        Ok(())
    }

    fn end(&mut self) {
        let current = std::mem::take(&mut self.current);
        if current.iter().all(says_nothing) {
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

/// Is there nothing in this block that codex would have to be told?
fn says_nothing(block: &PromptBlock) -> bool {
    match block {
        PromptBlock::Text(text) => text.trim().is_empty(),
        PromptBlock::Image(_) | PromptBlock::Unsupported { .. } => false,
    }
}

/// A block as the record of the conversation has it.
fn recorded(block: &PromptBlock) -> Option<String> {
    match block {
        PromptBlock::Text(text) => Some(text.clone()),
        PromptBlock::Image(image) => Some(format!("[image \"{}\"]", label(&image.name))),
        PromptBlock::Unsupported { kind, name } => {
            Some(format!("[{} \"{}\"]", label(kind), label(name)))
        }
    }
}

/// Shows each block of a message's content, and where it stands.
fn blocks(
    message: &Field<'_>,
    mut show: impl FnMut(&Field<'_>, PromptBlock) -> Result<()>,
) -> Result<()> {
    // A message that only calls tools has null where others have text.
    if message.get("content") == Some("null") {
        return Ok(());
    }
    let content = message.needed("content")?;
    if content.is_string() {
        return show(&content, PromptBlock::Text(content.text()?.into_owned()));
    }
    if !content.is_list() {
        return Err(content.wrong("a string or a list of blocks"));
    }
    for block in content.list()? {
        let kind = block.needed("type")?.text()?;
        let read = match &*kind {
            // The other names are those of OpenAI's own interfaces.
            "text" | "input_text" | "output_text" => {
                PromptBlock::Text(block.needed("text")?.text()?.into_owned())
            }
            "image" | "input_image" | "image_url" => PromptBlock::Image(image(&block)?),
            "thinking" | "redacted_thinking" | "reasoning" => continue,
            // codex knows what its tools were asked and what they gave.
            kind if is_of_a_tool(kind) => continue,
            kind => PromptBlock::Unsupported {
                kind: kind.to_owned(),
                name: block_name(&block, kind),
            },
        };
        show(&block, read)?;
    }
    Ok(())
}

/// Is this the type of a block by which a tool is called, or of what one gave (`tool_use`, `tool_result`,
/// `server_tool_use`, `web_search_tool_result`, `function_call_output`, …)?
fn is_of_a_tool(kind: &str) -> bool {
    kind.starts_with("function_call")
        || kind.starts_with("custom_tool_call")
        || ["tool_use", "tool_result", "tool_call", "tool_call_output"]
            .iter()
            .any(|end| kind.ends_with(end))
}

/// What people call a block that is not an image: the first of its members that names it, else its type.
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
    // Where others put the picture: in a `source`, or as `image_url`, a string or an object with a `url`.
    let source = block.member("source")?.filter(Field::is_object);
    let place = source.as_ref().unwrap_or(block);
    let media_type = match place.optional_text("media_type")? {
        Some(media_type) => media_type,
        None => block
            .optional_text("media_type")?
            .unwrap_or("image/png".into()),
    };
    let data = match place.optional_text("data")? {
        Some(data) => Some(data),
        None => place.optional_text("data_base64")?,
    };
    let path = place.optional_text("path")?;
    let url = match (place.optional_text("url")?, block.member("image_url")?) {
        (Some(url), _) => Some(url),
        (None, Some(field)) if field.is_object() => field.optional_text("url")?,
        (None, Some(field)) => Some(field.text()?),
        (None, None) => None,
    };
    let given = block.optional_text("name")?;
    let given = given.map(|name| without_secrets(&name));
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
        ("image".to_owned(), ImageSource::Nothing)
    };
    let name = given.unwrap_or(name);
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

/// A name that somebody gave; where it is a URL, only its file name.
fn without_secrets(name: &str) -> String {
    if name.contains("://") || name.starts_with("//") || is_data_url(name) {
        file_name(name)
    } else {
        name.to_owned()
    }
}

/// The last part of a path or a URL. Of a URL neither the user and the password nor the query and the fragment
/// are in it: both can hold keys, and the name goes to the log and to the model.
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
    // Cut at the first of these wherever it stands: a password that was not escaped may have one too.
    let rest = rest.split(['?', '#', ';']).next().unwrap_or_default();
    let name = rest.trim_end_matches(['/', '\\']);
    let name = name.rsplit(['/', '\\']).next().unwrap_or_default();
    name.rsplit('@').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn asked(messages: Value) -> Result<TurnRequest> {
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
        let request = asked(json!([
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
        let spoken: Vec<Vec<PromptBlock>> = request
            .prompt
            .into_iter()
            .map(|blocks| {
                blocks
                    .into_iter()
                    .filter(|block| !says_nothing(block))
                    .collect()
            })
            .collect();
        assert_eq!(
            spoken,
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
                "params.request.messages[8] is left out: its role is 'developer', and only what the user says is new to codex"
            ]
        );
    }

    // fault: 66
    #[test]
    fn rejects_a_conversation_with_nothing_new() {
        let said = json!({"role": "user", "content": "hi"});
        let answered = json!({"role": "assistant", "content": "yes"});
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
            let mut messages = vec![said.clone(), answered.clone()];
            messages.extend(last);
            let error = asked(json!(messages)).unwrap_err();
            assert_eq!(error.kind().rpc_code(), -32602);
            assert!(error.message().contains("nothing is new"), "{error}");
        }
        // An empty response is one all the same.
        for empty in [json!(""), json!(null), json!([])] {
            let messages = json!([said, {"role": "assistant", "content": empty}]);
            assert!(asked(messages).is_err());
        }
    }

    #[test]
    fn joins_many_messages_into_one_prompt() {
        let messages: Vec<Value> = (0..1000)
            .map(|number| json!({"role": "user", "content": number.to_string()}))
            .collect();
        let request = asked(json!(messages)).unwrap();
        // One text, as they are joined for codex.
        let joined: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
        assert_eq!(request.prompt, [[text(&joined.join("\n\n"))]]);
        assert!(request.history.is_empty());
    }

    #[test]
    fn rejects_members_of_a_turn_that_codex_would_not_take() {
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
            let request = asked(json!([{"role": "user", "content": [block]}])).unwrap();
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
                let request = asked(json!([{"role": "user", "content": [block]}])).unwrap();
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
        let history = asked(json!(messages)).unwrap().history;
        assert!(history.text.len() <= LONGEST && history.text.len() > LONGEST - 4);
        assert!(history.truncated && !history.text.contains("old"));
    }

    #[test]
    fn reads_every_form_of_image() {
        let request = asked(json!([{"role": "user", "content": [
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
                image("image", ImageSource::Nothing),
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
            (&many, "mutations: has more than 65536 entries: divide it"),
        ] {
            let error = parse_mutations(json).unwrap_err();
            assert_eq!(error.message(), message);
            assert_eq!(error.kind(), Kind::Params);
        }
    }
}
