//! Parses the lines that `codex exec --json` prints.
//!
//! Measured on 0.135.0 to 0.169.0. Each line is one JSON object, which is parsed leniently, in one pass: a field of an
//! unexpected type counts as absent, unknown fields and types are ignored, and duplicate keys are accepted
//! (`web_search` items have two `id`s, which a derived struct would reject). Text without escapes is borrowed from the
//! line.

use crate::canonical;
use crate::json::{self, Cursor, JsonKind, Members, NotJson, elements, text_of};
use serde::de::IgnoredAny;
use std::borrow::Cow;

/// codex's token counters, over the whole thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) input_tokens: u64,
    pub(crate) cached_input_tokens: u64,
    /// From 0.145 on.
    pub(crate) cache_write_input_tokens: u64,
    pub(crate) output_tokens: u64,
    pub(crate) reasoning_output_tokens: u64,
}

impl Totals {
    /// The counters in the daemon's terms.
    pub(crate) fn usage(self) -> canonical::Usage {
        canonical::Usage {
            input_tokens: self.input_tokens,
            output_tokens: self.output_tokens,
            cache_read_tokens: self.cached_input_tokens,
            cache_write_tokens: self.cache_write_input_tokens,
            thinking_tokens: self.reasoning_output_tokens,
        }
    }
}

/// The phase of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Started,
    Updated,
    Completed,
}

/// An item. Which members are present depends on its type; they are decoded on access.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ExecItem<'a>(Members<'a, 14>);

/// An entry of codex's to-do list. Only the rollout tells which one is in progress.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Todo {
    pub(crate) text: String,
    pub(crate) completed: bool,
}

/// An event: one line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ExecEvent<'a> {
    ThreadStarted {
        thread_id: Cow<'a, str>,
    },
    TurnStarted,
    /// With the thread's counters, if codex printed them.
    TurnCompleted {
        usage: Option<Totals>,
    },
    TurnFailed {
        message: Cow<'a, str>,
    },
    /// Not necessarily the end: often a reconnect after which the turn succeeds.
    Error {
        message: Cow<'a, str>,
    },
    Item(Phase, ExecItem<'a>),
    /// An unknown type.
    Unknown(Cow<'a, str>),
}

/// The members of an item that are read.
const ITEM: &[&str; 14] = &[
    "id",
    "type",
    "text",
    "message",
    "error",
    "command",
    "aggregated_output",
    "status",
    "server",
    "tool",
    "query",
    "exit_code",
    "items",
    "changes",
];

/// Parses a line.
///
/// # Errors
/// Why it is not a JSON object with a `type`.
pub(crate) fn parse(line: &[u8]) -> Result<ExecEvent<'_>, String> {
    let text = line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line);
    let mut event = Members::none(&["type", "thread_id", "message", "error", "usage"]);
    let mut item = Members::none(ITEM);
    walk(text, &mut event, &mut item).map_err(|NotJson| why_not_an_object(text))?;
    let message_of = |name| event.raw(name).and_then(message);
    let kind = event.text("type").ok_or("no `type`")?;
    let item = |phase| ExecEvent::Item(phase, ExecItem(item));
    Ok(match &*kind {
        "thread.started" => ExecEvent::ThreadStarted {
            thread_id: event.text("thread_id").unwrap_or_default(),
        },
        "turn.started" => ExecEvent::TurnStarted,
        "turn.completed" => ExecEvent::TurnCompleted {
            usage: event.raw("usage").and_then(Totals::of),
        },
        "turn.failed" => ExecEvent::TurnFailed {
            message: message_of("error")
                .or_else(|| message_of("message"))
                .unwrap_or_default(),
        },
        "error" => ExecEvent::Error {
            message: message_of("message")
                .or_else(|| message_of("error"))
                .unwrap_or_default(),
        },
        "item.started" => item(Phase::Started),
        "item.updated" => item(Phase::Updated),
        "item.completed" => item(Phase::Completed),
        _ => ExecEvent::Unknown(kind),
    })
}

/// Reads the members of an event, and of the item in it, in one pass.
fn walk<'a>(
    text: &'a [u8],
    event: &mut Members<'a, 5>,
    item: &mut Members<'a, 14>,
) -> Result<(), NotJson> {
    let mut cursor = Cursor::new(text);
    cursor.open(JsonKind::Object)?;
    while let Some(key) = cursor.key()? {
        let key = &text[key];
        if json::str_eq(key, "item") && cursor.kind()? == JsonKind::Object {
            item.walk_into(text, &mut cursor)?;
        } else {
            event.set(key, &text[cursor.value()?]);
        }
    }
    cursor.end()
}

/// Why a line is not an event. It is logged, so it must not contain any value.
fn why_not_an_object(text: &[u8]) -> String {
    if std::str::from_utf8(text).is_err() {
        return "not valid UTF-8".to_owned();
    }
    match serde_json::from_slice::<IgnoredAny>(text) {
        Ok(_) => "not an object".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// A string, or the `message` of an object: errors have either form.
fn message(raw: &[u8]) -> Option<Cow<'_, str>> {
    text_of(raw).or_else(|| Members::of(Some(raw), &["message"]).text("message"))
}

impl<'a> ExecItem<'a> {
    /// Its type: `agent_message`, `reasoning`, `command_execution`, `file_change`, `mcp_tool_call`, `web_search`, …
    pub(crate) fn kind(&self) -> Cow<'a, str> {
        self.text("type")
    }

    /// The member of this name; empty where it is not a string. The `id` (`item_0`, `item_1`, …) is numbered anew in
    /// every process: it only pairs the start and the end of an item within a turn.
    pub(crate) fn text(&self, name: &str) -> Cow<'a, str> {
        self.0.text(name).unwrap_or_default()
    }

    /// The `message` or `error`, which is a string or an object with a `message`.
    pub(crate) fn message(&self) -> Option<Cow<'a, str>> {
        ["message", "error"]
            .into_iter()
            .find_map(|name| self.0.raw(name).and_then(message))
    }

    pub(crate) fn exit_code(&self) -> Option<i64> {
        let code = self.0.raw("exit_code")?;
        std::str::from_utf8(code).ok()?.parse().ok()
    }

    /// The paths of a `file_change`.
    pub(crate) fn changes(&self) -> Vec<Cow<'a, str>> {
        let changes = elements(self.0.raw("changes")).into_iter();
        changes
            .filter_map(|change| Members::of(Some(change), &["path"]).text("path"))
            .collect()
    }

    /// The entries of a `todo_list`.
    pub(crate) fn todos(&self) -> Vec<Todo> {
        let todos = elements(self.0.raw("items")).into_iter();
        todos.filter_map(Todo::of).collect()
    }
}

impl Todo {
    fn of(raw: &[u8]) -> Option<Todo> {
        let members = Members::of(Some(raw), &["text", "completed"]);
        Some(Todo {
            text: members.text("text")?.into_owned(),
            completed: members.raw("completed") == Some(b"true"),
        })
    }
}

impl Totals {
    fn of(raw: &[u8]) -> Option<Totals> {
        if !raw.starts_with(b"{") {
            return None;
        }
        let usage = Members::of(
            Some(raw),
            &[
                "input_tokens",
                "cached_input_tokens",
                "cache_write_input_tokens",
                "output_tokens",
                "reasoning_output_tokens",
            ],
        );
        let count = |name| usage.number(name).unwrap_or(0);
        Some(Totals {
            input_tokens: count("input_tokens"),
            cached_input_tokens: count("cached_input_tokens"),
            cache_write_input_tokens: count("cache_write_input_tokens"),
            output_tokens: count("output_tokens"),
            reasoning_output_tokens: count("reasoning_output_tokens"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, event: ExecEvent<'_>) {
        assert_eq!(parse(line.as_bytes()), Ok(event), "{line}");
    }

    /// The item of a line, which must have this phase.
    #[track_caller]
    fn item(line: &str, expected: Phase) -> ExecItem<'_> {
        match parse(line.as_bytes()) {
            Ok(ExecEvent::Item(phase, item)) if phase == expected => item,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn reads_events_of_codex() {
        check(
            r#"{"type":"thread.started","thread_id":"01a1"}"#,
            ExecEvent::ThreadStarted {
                thread_id: "01a1".into(),
            },
        );
        check(r#"{"type":"turn.started"}"#, ExecEvent::TurnStarted);
        check(
            r#"{"type":"turn.completed","usage":{"input_tokens":200,"cached_input_tokens":20,"cache_write_input_tokens":3,"output_tokens":10,"reasoning_output_tokens":2}}"#,
            ExecEvent::TurnCompleted {
                usage: Some(Totals {
                    input_tokens: 200,
                    cached_input_tokens: 20,
                    cache_write_input_tokens: 3,
                    output_tokens: 10,
                    reasoning_output_tokens: 2,
                }),
            },
        );
        check(
            r#"{"type":"turn.failed","error":{"message":"no \"model\""}}"#,
            ExecEvent::TurnFailed {
                message: "no \"model\"".into(),
            },
        );
        check(
            r#"{"type":"error","message":"Reconnecting... 1/3"}"#,
            ExecEvent::Error {
                message: "Reconnecting... 1/3".into(),
            },
        );
    }

    #[test]
    fn parses_items() {
        let message = item(
            r#"{"type":"item.completed","item":{"id":"i","type":"agent_message","text":"a\nb 🎉"}}"#,
            Phase::Completed,
        );
        assert_eq!(
            (message.kind(), message.text("text")),
            ("agent_message".into(), "a\nb 🎉".into())
        );
        assert_eq!(message.text("id"), "i");
        let command = item(
            r#"{"type":"item.started","item":{"id":"i","type":"command_execution","command":"ls","aggregated_output":"","exit_code":null,"status":"in_progress"}}"#,
            Phase::Started,
        );
        assert_eq!(
            (command.text("command"), command.text("status")),
            ("ls".into(), "in_progress".into())
        );
        assert_eq!((command.exit_code(), command.message()), (None, None));
        let tool = item(
            r#"{"type":"item.completed","item":{"id":"i","type":"mcp_tool_call","server":"s","tool":"t","arguments":{"a":[1]},"result":null,"error":{"message":"gone"},"status":"failed"}}"#,
            Phase::Completed,
        );
        assert_eq!(
            (tool.text("server"), tool.text("tool")),
            ("s".into(), "t".into())
        );
        assert_eq!(tool.message().as_deref(), Some("gone"));
        let patch = item(
            r#"{"type":"item.updated","item":{"id":"i","type":"file_change","changes":[{"path":"/a","kind":"add"},{"path":"/b"},{}],"exit_code":-1}}"#,
            Phase::Updated,
        );
        assert_eq!(patch.changes(), ["/a", "/b"]);
        assert_eq!(patch.exit_code(), Some(-1));
        let list = item(
            r#"{"type":"item.updated","item":{"type":"todo_list","items":[{"text":"a","completed":true},{"text":"b"},{},3]}}"#,
            Phase::Updated,
        );
        let todo = |text: &str, completed| Todo {
            text: text.to_owned(),
            completed,
        };
        assert_eq!(list.todos(), [todo("a", true), todo("b", false)]);
    }

    // fault: 14
    #[test]
    fn reads_events_with_duplicate_unknown_and_mistyped_members() {
        let search = item(
            r#"{"type":"item.completed","item":{"id":"x","id":"i","type":"web_search","query":"q"}}"#,
            Phase::Completed,
        );
        assert_eq!(search.text("id"), "i");
        assert_eq!(search.text("query"), "q");
        let message = item(
            r#"{"item":{"text":{"no":1},"type":"agent_message","id":"i","new":[{}]},"more":{"x":[]},"type":"item.completed"}"#,
            Phase::Completed,
        );
        assert_eq!(message.text("text"), "");
        let none = item(r#"{"type":"item.completed","item":3}"#, Phase::Completed);
        assert_eq!(none.kind(), "");
        check(
            "\u{feff}{\"type\":\"turn.completed\",\"usage\":null}\r",
            ExecEvent::TurnCompleted { usage: None },
        );
        check(
            r#"{"type":"turn.completed","usage":{"input_tokens":-1,"output_tokens":"5","new":1}}"#,
            ExecEvent::TurnCompleted {
                usage: Some(Totals::default()),
            },
        );
        check(
            r#"{"type":"turn.failed","message":"m"}"#,
            ExecEvent::TurnFailed {
                message: "m".into(),
            },
        );
        check(
            r#"{"type":"thread.renamed"}"#,
            ExecEvent::Unknown("thread.renamed".into()),
        );
        check(r#"{"t\u0079pe":"turn.started"}"#, ExecEvent::TurnStarted);
    }

    #[test]
    fn rejects_lines_that_are_not_events() {
        let deep = format!(
            "{{\"type\":\"x\",\"y\":{}{}}}",
            "[".repeat(10_000),
            "]".repeat(10_000)
        );
        assert_eq!(parse(deep.as_bytes()), Ok(ExecEvent::Unknown("x".into())));
        for line in [
            &b"{\"type\":\"turn.started\""[..],
            b"[]",
            b"hello",
            b"{\"kind\":1}",
            b"{\"type\":1}",
            b"{\"type\":\"x\xff\"}",
            b"{} {}",
            b"",
        ] {
            assert!(parse(line).is_err(), "{:?}", String::from_utf8_lossy(line));
        }
    }
}
