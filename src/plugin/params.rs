//! The parameters of the daemon's requests, checked field by field so that an error can name the field.

use crate::error::{Error, Kind, Result};
use crate::mcp::{Tool, whole_characters};
use crate::rollout::mutate::{Mutation, Op, Reach};
use crate::turn::images::{Image, Source};
use crate::turn::{Block, LONGEST_REPLAY, Request, newest};
use serde_json::value::RawValue;
use serde_json::{Map, Number, Value};
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

/// The protocol that `init` asks for, where it names one.
pub(crate) fn init_protocol<'a>(params: &Field<'a>) -> Result<Option<&'a Number>> {
    if let Some(host) = params.member("host")? {
        host.optional_text("name")?;
        host.optional_text("version")?;
    }
    match params.member("protocol")? {
        None => Ok(None),
        Some(field) => match field.value {
            // -1 or 1.5 is a number all the same, and no version that could be supported.
            Value::Number(number) => Ok(Some(number)),
            _ => Err(field.wrong("a number")),
        },
    }
}

/// The stream that `cancel` names.
pub(crate) fn cancelled_stream(params: &Field<'_>) -> Result<super::message::Id> {
    let field = params.needed("stream")?;
    super::message::Id::from_json(field.value).ok_or_else(|| field.wrong("a string or an integer"))
}

/// What `stream` asks for: the workspace and the turn.
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
    Ok((workspace, turn))
}

/// The tools that `stream` lends.
pub(crate) fn stream_tools(params: &Field<'_>) -> Result<Vec<Tool>> {
    tools(params.needed("request")?.member("tools")?)
}

/// What `mutate_session` asks for: the workspace, and what is to be done with which call.
pub(crate) fn mutate_session(params: &Field<'_>) -> Result<(PathBuf, Vec<Mutation>)> {
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

/// The agent and the tools that `tools_changed` names.
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
        let schema = tool
            .member("input_schema")?
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

/// Prompt and history of the messages.
fn conversation(request: &Field<'_>) -> Result<Request> {
    let field = request.needed("messages")?;
    let mut messages: Vec<(&str, Vec<Block>)> = Vec::new();
    for message in field.list()? {
        let role = message.needed("role")?.text()?;
        messages.push((role, blocks(&message.needed("content")?)?));
    }
    let asked = messages.iter().rposition(|(role, blocks)| {
        *role == "user"
            && blocks
                .iter()
                .any(|block| matches!(block, Block::Text(text) if !text.trim().is_empty()))
    });
    let Some(asked) = asked else {
        return Err(bad(&field.path, "no message of the user has any text"));
    };
    let history = history(&messages[..asked]);
    let mut prompt = Vec::new();
    for (at, (role, blocks)) in messages.into_iter().enumerate().skip(asked) {
        // Images that the user sent after the question without a word belong to it.
        if at == asked {
            prompt.extend(blocks);
        } else if role == "user" {
            prompt.extend(
                blocks
                    .into_iter()
                    .filter(|block| matches!(block, Block::Image(_))),
            );
        }
    }
    Ok(Request {
        prompt,
        history,
        ..Request::default()
    })
}

/// The blocks of a message's content; those that are neither text nor image are passed over.
fn blocks(content: &Field<'_>) -> Result<Vec<Block>> {
    if let Value::String(text) = content.value {
        return Ok(vec![Block::Text(text.clone())]);
    }
    if !content.value.is_array() {
        return Err(content.wrong("a string or a list of blocks"));
    }
    let mut blocks = Vec::new();
    for block in content.list()? {
        match block.needed("type")?.text()? {
            "text" => blocks.push(Block::Text(block.needed("text")?.text()?.to_owned())),
            "image" => blocks.push(Block::Image(image(&block)?)),
            _ => {}
        }
    }
    Ok(blocks)
}

fn image(block: &Field<'_>) -> Result<Image> {
    let media_type = block.optional_text("media_type")?.unwrap_or("image/png");
    let data = match block.optional_text("data")? {
        Some(data) => Some(data),
        None => block.optional_text("data_base64")?,
    };
    let path = block.optional_text("path")?;
    let url = block.optional_text("url")?;
    let given = block.optional_text("name")?.map(str::to_owned);
    let file_name = |text: &str| {
        let text = text.split(['?', '#']).next().unwrap_or_default();
        let name = text
            .trim_end_matches('/')
            .rsplit('/')
            .next()
            .unwrap_or_default();
        name.to_owned()
    };
    let (name, source) = if let Some(path) = path {
        (
            Path::new(path).file_name().map_or_else(
                || path.to_owned(),
                |name| name.to_string_lossy().into_owned(),
            ),
            Source::Path(path.into()),
        )
    } else if let Some(data) = data {
        (
            media_type.to_owned(),
            Source::Data {
                base64: data.to_owned(),
                media_type: media_type.to_owned(),
            },
        )
    } else if let Some(url) = url {
        let name = if url
            .get(..5)
            .is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"))
        {
            media_type.to_owned()
        } else {
            file_name(url)
        };
        (name, Source::Url(url.to_owned()))
    } else {
        ("image".to_owned(), Source::Nothing)
    };
    Ok(Image {
        name: given.unwrap_or(name),
        source,
    })
}

/// A conversation as text: each message under its role, the newest [`LONGEST_REPLAY`] bytes.
fn history(messages: &[(&str, Vec<Block>)]) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut length = 0;
    for (role, blocks) in messages.iter().rev() {
        let texts: Vec<String> = blocks
            .iter()
            .map(|block| match block {
                Block::Text(text) => text.clone(),
                Block::Image(image) => format!("[image \"{}\"]", image.name),
            })
            .filter(|text| !text.is_empty())
            .collect();
        if texts.is_empty() {
            continue;
        }
        let part = format!("[{role}]\n{}", texts.join("\n"));
        length += part.len() + 2;
        parts.push(part);
        if length >= LONGEST_REPLAY {
            break;
        }
    }
    parts.reverse();
    newest(&parts.join("\n\n"), LONGEST_REPLAY).to_owned()
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

    #[test]
    fn the_prompt_is_the_last_message_of_the_user_that_has_text() {
        let request = asked(json!([
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": [{"type": "text", "text": "yes"}, {"type": "tool_use", "id": 1}]},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "tool_result"}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": [{"type": "image", "path": "/x/y.png"}]},
            {"role": "user", "content": []},
            {"role": "assistant", "content": "…"},
        ]))
        .unwrap();
        let image = Image {
            name: "y.png".into(),
            source: Source::Path("/x/y.png".into()),
        };
        assert_eq!(request.prompt, [text("a"), text("b"), Block::Image(image)]);
        assert_eq!(request.history, "[user]\nfirst\n\n[assistant]\nyes");
    }

    #[test]
    fn the_newest_of_a_long_conversation_is_kept() {
        let mut messages = vec![json!({"role": "user", "content": "old"})];
        for _ in 0..10 {
            messages.push(json!({"role": "assistant", "content": "é".repeat(50_000)}));
        }
        messages.push(json!({"role": "user", "content": "now"}));
        let history = asked(json!(messages)).unwrap().history;
        assert!(history.len() <= LONGEST_REPLAY && history.len() > LONGEST_REPLAY - 4);
        assert!(!history.contains("old"));
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
        ]}]))
        .unwrap();
        let data = Source::Data {
            base64: "aGk=".into(),
            media_type: "image/gif".into(),
        };
        let image = |name: &str, source: &Source| {
            Block::Image(Image {
                name: name.into(),
                source: source.clone(),
            })
        };
        assert_eq!(
            request.prompt[1..],
            [
                image("image/gif", &data),
                image("image/gif", &data),
                image(
                    "cat.png",
                    &Source::Url("https://example.org/a/cat.png?x=1".into())
                ),
                image("dog", &Source::Url("data:image/png;base64,aGk=".into())),
                image("image", &Source::Nothing),
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
                "params.request.messages: no message of the user has any text",
            ),
            (
                json!({"agent": {"workspace": "/w"}, "request": {"messages": [{"role": "user", "content": " \n"}]}}),
                "params.request.messages: no message of the user has any text",
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
