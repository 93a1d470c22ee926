//! The parameters of the daemon's requests, checked field by field so that an error can name the field.

use super::message::Id;
use crate::codex::home::is_thread_id;
use crate::error::{Error, Kind, Result};
use crate::mcp::{Tool, whole_characters};
use crate::rollout::mutate::{Mutation, Op, Reach};
use crate::turn::images::{Image, Source};
use crate::turn::prompt::label;
use crate::turn::{Block, History, Request, ThreadChoice};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::fmt::Display;
use std::path::{Path, PathBuf};

/// A value and where it stands.
#[derive(Clone)]
pub(crate) struct Field<'a> {
    value: &'a Value,
    path: String,
}

impl<'a> Field<'a> {
    fn wrong(&self, expected: &str) -> Error {
        let found = match self.value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
        };
        bad(&self.path, format!("expected {expected}, found {found}"))
    }

    fn object(&self) -> Result<&'a Map<String, Value>> {
        self.value
            .as_object()
            .ok_or_else(|| self.wrong("an object"))
    }

    fn text(&self) -> Result<&'a str> {
        self.value.as_str().ok_or_else(|| self.wrong("a string"))
    }

    fn list(&self) -> Result<impl Iterator<Item = Field<'a>> + use<'a>> {
        let list = self.value.as_array().ok_or_else(|| self.wrong("a list"))?;
        let path = self.path.clone();
        Ok(list.iter().enumerate().map(move |(at, value)| Field {
            value,
            path: format!("{path}[{at}]"),
        }))
    }

    /// A member; `null` counts as absent.
    fn member(&self, name: &str) -> Result<Option<Field<'a>>> {
        let value = self.object()?.get(name).filter(|value| !value.is_null());
        Ok(value.map(|value| Field {
            value,
            path: format!("{}.{name}", self.path),
        }))
    }

    fn needed(&self, name: &str) -> Result<Field<'a>> {
        self.member(name)?
            .ok_or_else(|| bad(&format!("{}.{name}", self.path), "is missing"))
    }

    fn optional_text(&self, name: &str) -> Result<Option<&'a str>> {
        self.member(name)?.map(|field| field.text()).transpose()
    }
}

fn bad(path: &str, what: impl Display) -> Error {
    Error::new(Kind::Params, format!("{path}: {what}"))
}

/// The parameters as a value; absent ones are an empty object.
pub(crate) fn value(params: Option<&RawValue>) -> Result<Value> {
    match params {
        None => Ok(Value::Object(Map::new())),
        // A text that was cut in the middle of a character stays in the conversation, and must not cost every
        // turn from then on.
        Some(params) => serde_json::from_str(&whole_characters(params.get()))
            .map_err(|error| bad("params", format!("cannot be read: {error}"))),
    }
}

/// The root of the parameters.
pub(crate) fn root(value: &Value) -> Field<'_> {
    Field {
        value,
        path: "params".to_owned(),
    }
}

/// The version of MCP that `initialize` asks for.
pub(crate) fn protocol_version<'a>(params: &Field<'a>) -> Result<&'a str> {
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
pub(crate) fn log_level<'a>(params: &Field<'a>) -> Result<&'a str> {
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
pub(crate) fn steered_stream(params: &Field<'_>) -> Result<Id> {
    let stream = id(&params.needed("stream")?)?;
    conversation(&params.needed("request")?)?;
    Ok(stream)
}

fn id(field: &Field<'_>) -> Result<Id> {
    Id::from_json(field.value).ok_or_else(|| field.wrong("a string or an integer"))
}

/// Nothing can be asked of the list of models.
pub(crate) fn models(params: &Field<'_>) -> Result<()> {
    params.object().map(|_| ())
}

/// What a stream asks for: the workspace and the turn.
pub(crate) fn stream(params: &Field<'_>) -> Result<(PathBuf, Request)> {
    let agent = params.needed("agent")?;
    let workspace = workspace(&agent.needed("workspace")?)?;
    let request = params.needed("request")?;
    let mut turn = conversation(&request)?;
    turn.model = params
        .optional_text("model")?
        .unwrap_or_default()
        .to_owned();
    if turn.model.contains('\0') {
        return Err(bad("params.model", "a model cannot have a NUL in its name"));
    }
    turn.agent_id = agent.optional_text("id")?.map(str::to_owned);
    turn.system = request
        .optional_text("system")?
        .filter(|text| !text.trim().is_empty())
        .map(str::to_owned);
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
    match field.text()? {
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
    check_schema(&field)?;
    Ok(Some(field.value.to_string()))
}

/// Checks what a JSON Schema means whatever the provider supports of it; the provider judges the rest.
fn check_schema(schema: &Field<'_>) -> Result<()> {
    // `true` and `false` are schemas too.
    if schema.value.is_boolean() {
        return Ok(());
    }
    schema.object()?;
    if let Some(field) = schema.member("type")? {
        let names = match field.value {
            Value::Array(_) => field.list()?.collect(),
            _ => vec![field],
        };
        for name in names {
            const TYPES: [&str; 7] = [
                "string", "number", "integer", "boolean", "object", "array", "null",
            ];
            if !TYPES.contains(&name.text()?) {
                let name_text = label(name.text()?);
                return Err(bad(
                    &name.path,
                    format!("'{name_text}' is not a type of JSON Schema"),
                ));
            }
        }
    }
    if let Some(required) = schema.member("required")? {
        for name in required.list()? {
            name.text()?;
        }
    }
    for name in ["properties", "$defs", "definitions", "patternProperties"] {
        if let Some(members) = schema.member(name)? {
            for (key, value) in members.object()? {
                check_schema(&Field {
                    value,
                    path: format!("{}.{}", members.path, label(key)),
                })?;
            }
        }
    }
    for name in ["anyOf", "oneOf", "allOf", "prefixItems"] {
        if let Some(list) = schema.member(name)? {
            list.list()?.try_for_each(|field| check_schema(&field))?;
        }
    }
    for name in ["items", "additionalProperties", "not"] {
        if let Some(field) = schema.member(name)? {
            match field.value {
                // Older drafts have a list of schemas for the items.
                Value::Array(_) if name == "items" => {
                    field.list()?.try_for_each(|field| check_schema(&field))?;
                }
                _ => check_schema(&field)?,
            }
        }
    }
    Ok(())
}

/// How much the model is to think. The words are the provider's, and new ones come; but each is a word.
fn reasoning_effort(params: &Field<'_>) -> Result<Option<String>> {
    const LONGEST: usize = 64;
    let Some(field) = params.member("reasoning_effort")? else {
        return Ok(None);
    };
    let effort = field.text()?;
    let is_word = (1..=LONGEST).contains(&effort.len())
        && effort
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    if !is_word {
        return Err(bad(
            &field.path,
            format!("'{}' is not a word such as 'low' or 'high'", label(effort)),
        ));
    }
    Ok(Some(effort.to_owned()))
}

/// The tools that are lent to a stream.
pub(crate) fn stream_tools(params: &Field<'_>) -> Result<Vec<Tool>> {
    tools(params.needed("request")?.member("tools")?)
}

/// Which calls of which workspace are to be consumed, and how.
pub(crate) fn mutate(params: &Field<'_>) -> Result<(PathBuf, Vec<Mutation>)> {
    params.optional_text("agent_id")?;
    let workspace = workspace(&params.needed("workspace")?)?;
    let mut mutations = Vec::new();
    for field in params.needed("mutations")?.list()? {
        let op = field.needed("op")?;
        let name = op.text()?;
        mutations.push(Mutation {
            reach: Reach::All,
            block_id: field.needed("block_id")?.text()?.to_owned(),
            op: Op::named(name).ok_or_else(|| {
                bad(
                    &op.path,
                    format!(
                        "'{name}' is no operation, expected 'consume-light' or 'consume-heavy'"
                    ),
                )
            })?,
        });
    }
    Ok((workspace, mutations))
}

/// A workspace's path.
fn workspace(field: &Field<'_>) -> Result<PathBuf> {
    let workspace = Path::new(field.text()?);
    if !workspace.is_absolute() {
        return Err(bad(
            &field.path,
            format!("'{}' is not an absolute path", workspace.display()),
        ));
    }
    if workspace.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(bad(&field.path, "a path cannot have a NUL in it"));
    }
    Ok(workspace.to_owned())
}

/// The agent whose tools are others, and the tools.
pub(crate) fn tools_changed(params: &Field<'_>) -> Result<(String, Vec<Tool>)> {
    let agent_id = params.needed("agent_id")?.text()?.to_owned();
    Ok((agent_id, tools(Some(params.needed("tools")?))?))
}

fn tools(field: Option<Field<'_>>) -> Result<Vec<Tool>> {
    let mut tools = Vec::new();
    let Some(field) = field else {
        return Ok(tools);
    };
    for tool in field.list()? {
        let schema = match tool.member("input_schema")? {
            Some(schema) => Some(schema),
            // As MCP has it.
            None => tool.member("inputSchema")?,
        };
        let schema = schema
            .map(|schema| schema.object().map(|_| schema.value.to_string()))
            .transpose()?;
        tools.push(Tool {
            name: tool.needed("name")?.text()?.to_owned(),
            description: tool.optional_text("description")?.map(str::to_owned),
            input_schema: schema.and_then(|schema| RawValue::from_string(schema).ok()),
        });
    }
    Ok(tools)
}

/// Prompt and history of the messages: what came after the last one of the assistant is new.
fn conversation(request: &Field<'_>) -> Result<Request> {
    let field = request.needed("messages")?;
    let mut messages: Vec<(&str, Vec<Block>)> = Vec::new();
    for message in field.list()? {
        let role = message.needed("role")?.text()?;
        messages.push((role, blocks(&message)?));
    }
    let answered = messages.iter().rposition(|(role, _)| *role == "assistant");
    let new = messages.split_off(answered.map_or(0, |at| at + 1));
    let mut prompt = Vec::new();
    let mut warnings = Vec::new();
    for (at, (role, blocks)) in new.into_iter().enumerate() {
        if blocks.iter().all(says_nothing) {
            continue;
        }
        match role {
            "user" => prompt.push(blocks),
            // What a tool said is known to codex, which has called it.
            "tool" | "function" => {}
            role => warnings.push(format!(
                "{}[{}] is left out: its role is '{}', and only what the user says is new to codex",
                field.path,
                messages.len() + at,
                label(role)
            )),
        }
    }
    if prompt.is_empty() {
        return Err(bad(
            &field.path,
            "nothing is new: no message of the user after the last one of the assistant has any content",
        ));
    }
    let history = History::of(
        messages
            .iter()
            .rev()
            .map(|(role, blocks)| (*role, blocks.iter().filter_map(recorded).collect())),
    );
    Ok(Request {
        prompt,
        history,
        warnings,
        ..Request::default()
    })
}

/// Is there nothing in this block that codex would have to be told?
fn says_nothing(block: &Block) -> bool {
    match block {
        Block::Text(text) => text.trim().is_empty(),
        Block::Image(_) | Block::Unsupported { .. } => false,
    }
}

/// A block as the record of the conversation has it.
fn recorded(block: &Block) -> Option<String> {
    match block {
        Block::Text(text) => Some(text.clone()),
        Block::Image(image) => Some(format!("[image \"{}\"]", label(&image.name))),
        Block::Unsupported { kind, name } => Some(format!("[{} \"{}\"]", label(kind), label(name))),
    }
}

/// The blocks of a message's content.
fn blocks(message: &Field<'_>) -> Result<Vec<Block>> {
    // A message that only calls tools has null where others have text.
    if message.object()?.get("content").is_some_and(Value::is_null) {
        return Ok(Vec::new());
    }
    let content = message.needed("content")?;
    if let Value::String(text) = content.value {
        return Ok(vec![Block::Text(text.clone())]);
    }
    if !content.value.is_array() {
        return Err(content.wrong("a string or a list of blocks"));
    }
    let mut blocks = Vec::new();
    for block in content.list()? {
        let kind = block.needed("type")?.text()?;
        match kind {
            // The other names are those of OpenAI's own interfaces.
            "text" | "input_text" | "output_text" => {
                blocks.push(Block::Text(block.needed("text")?.text()?.to_owned()));
            }
            "image" | "input_image" | "image_url" => blocks.push(Block::Image(image(&block)?)),
            "thinking" | "redacted_thinking" | "reasoning" => {}
            // codex knows what its tools were asked and what they gave.
            kind if is_of_a_tool(kind) => {}
            kind => blocks.push(Block::Unsupported {
                kind: kind.to_owned(),
                name: block_name(&block, kind),
            }),
        }
    }
    Ok(blocks)
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
        let text = block.value.get(name)?.as_str()?;
        (!text.trim().is_empty()).then_some(text)
    };
    ["name", "filename", "file_name", "title"]
        .into_iter()
        .find_map(text)
        .map(without_secrets)
        .or_else(|| ["path", "url"].into_iter().find_map(text).map(file_name))
        .or_else(|| {
            ["id", "media_type"]
                .into_iter()
                .find_map(text)
                .map(str::to_owned)
        })
        .filter(|name| !name.trim().is_empty())
        .unwrap_or_else(|| kind.to_owned())
}

fn image(block: &Field<'_>) -> Result<Image> {
    // Where others put the picture: in a `source`, or as `image_url`, a string or an object with a `url`.
    let source = block
        .member("source")?
        .filter(|source| source.value.is_object());
    let place = source.as_ref().unwrap_or(block);
    let media_type = match place.optional_text("media_type")? {
        Some(media_type) => media_type,
        None => block.optional_text("media_type")?.unwrap_or("image/png"),
    };
    let data = match place.optional_text("data")? {
        Some(data) => Some(data),
        None => place.optional_text("data_base64")?,
    };
    let path = place.optional_text("path")?;
    let url = match (place.optional_text("url")?, block.member("image_url")?) {
        (Some(url), _) => Some(url),
        (None, Some(field)) if field.value.is_object() => field.optional_text("url")?,
        (None, Some(field)) => Some(field.text()?),
        (None, None) => None,
    };
    let given = block.optional_text("name")?.map(without_secrets);
    let (name, source) = if let Some(path) = path {
        (file_name(path), Source::Path(path.into()))
    } else if let Some(data) = data {
        (
            media_type.to_owned(),
            Source::Data {
                base64: data.to_owned(),
                media_type: media_type.to_owned(),
            },
        )
    } else if let Some(url) = url {
        let name = if is_data_url(url) {
            media_type.to_owned()
        } else {
            file_name(url)
        };
        (name, Source::Url(url.to_owned()))
    } else {
        ("image".to_owned(), Source::Nothing)
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
    use serde_json::json;

    fn asked(messages: Value) -> Result<Request> {
        let params = json!({"agent": {"workspace": "/w"}, "request": {"messages": messages}});
        stream(&root(&params)).map(|(_, request)| request)
    }

    fn text(text: &str) -> Block {
        Block::Text(text.to_owned())
    }

    fn image(name: &str, source: Source) -> Block {
        Block::Image(Image {
            name: name.into(),
            source,
        })
    }

    // fault: 66
    #[test]
    fn the_prompt_is_every_user_message_after_the_last_response() {
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
        let spoken: Vec<Vec<Block>> = request
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
                vec![image("y.png", Source::Path("/x/y.png".into()))],
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
    fn a_thousand_messages_are_one_prompt() {
        let messages: Vec<Value> = (0..1000)
            .map(|number| json!({"role": "user", "content": number.to_string()}))
            .collect();
        let request = asked(json!(messages)).unwrap();
        assert_eq!(request.prompt.len(), 1000);
        assert_eq!(request.prompt[999], [text("999")]);
        assert!(request.history.is_empty());
    }

    #[test]
    fn rejects_members_of_a_turn_that_codex_would_not_take() {
        let with = |name: &str, value: Value| {
            let mut params = json!({"agent": {"workspace": "/w"}, "request": {"messages": [{"role": "user", "content": "hi"}]}});
            params[name] = value;
            stream(&root(&params)).map(|(_, request)| request)
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
    fn a_block_of_an_unknown_type_keeps_its_place_and_a_name() {
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
            let expected = Block::Unsupported {
                kind: "audio".to_owned(),
                name: name.to_owned(),
            };
            assert_eq!(request.prompt, [[expected]], "{block}");
        }
    }

    // fault: 111
    #[test]
    fn the_name_of_a_url_has_no_secrets() {
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
                let [Block::Image(image)] = &request.prompt[0][..] else {
                    panic!("{block} is not an image");
                };
                assert_eq!(image.name, name, "{block}");
            }
        }
    }

    #[test]
    fn the_newest_of_a_long_conversation_is_kept() {
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
    fn images_come_in_every_form() {
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
        let data = Source::Data {
            base64: "aGk=".into(),
            media_type: "image/gif".into(),
        };
        let url = Source::Url("data:image/png;base64,aGk=".into());
        assert_eq!(
            request.prompt[0][1..],
            [
                image("image/gif", data.clone()),
                image("image/gif", data.clone()),
                image(
                    "cat.png",
                    Source::Url("https://example.org/a/cat.png?x=1".into())
                ),
                image("dog", url.clone()),
                image("image", Source::Nothing),
                image("image/png", url),
                image("image/gif", data),
            ]
        );
    }

    #[test]
    fn an_error_names_the_field() {
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
            let error = stream(&root(&params)).unwrap_err();
            assert_eq!(error.kind().rpc_code(), -32602);
            assert_eq!(error.message(), message, "{params}");
        }
    }
}
