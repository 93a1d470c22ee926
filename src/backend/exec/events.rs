//! The lines that `codex exec --json` prints.
//!
//! Measured on 0.135.0 to 0.169.0. Each line is one JSON object; it is read in one pass, leniently: a field of
//! another type than it had counts as absent, unknown fields and types are ignored, and a key that stands
//! twice is not an error (`web_search` items have two `id`s, which a derived struct would refuse). Text that needs
//! no unescaping is borrowed from the line.

use crate::canonical;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// What codex counted over the whole thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) input_tokens: u64,
    pub(crate) cached_input_tokens: u64,
    /// From 0.145.
    pub(crate) cache_write_input_tokens: u64,
    pub(crate) output_tokens: u64,
    pub(crate) reasoning_output_tokens: u64,
}

impl Totals {
    /// The same in the daemon's terms.
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

/// Where an item stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Started,
    Updated,
    Completed,
}

/// An item; which fields are there depends on its kind.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Item<'a> {
    /// `item_0`, `item_1`, …: new in every process, so only good for pairing start and end within a turn.
    pub(crate) id: Option<Cow<'a, str>>,
    /// `agent_message`, `reasoning`, `command_execution`, `file_change`, `mcp_tool_call`, `web_search`, …
    pub(crate) kind: Option<Cow<'a, str>>,
    pub(crate) text: Option<Cow<'a, str>>,
    /// A string, or an object with a `message`.
    pub(crate) message: Option<Cow<'a, str>>,
    pub(crate) command: Option<Cow<'a, str>>,
    pub(crate) exit_code: Option<i64>,
    /// What a command printed.
    pub(crate) output: Option<Cow<'a, str>>,
    pub(crate) status: Option<Cow<'a, str>>,
    pub(crate) server: Option<Cow<'a, str>>,
    pub(crate) tool: Option<Cow<'a, str>>,
    pub(crate) query: Option<Cow<'a, str>>,
    /// The paths of a `file_change`.
    pub(crate) changes: Vec<Cow<'a, str>>,
    /// The lines of a `todo_list`.
    pub(crate) todos: Vec<Todo>,
}

/// A line of codex's to-do list. That somebody is at work on it is only in the rollout.
#[derive(Debug, PartialEq, Eq, serde::Deserialize)]
pub(crate) struct Todo {
    pub(crate) text: String,
    #[serde(default)]
    pub(crate) completed: bool,
}

/// One line.
#[derive(Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one at a time, on the stack; a box would cost an allocation for each event"
)]
pub(crate) enum Event<'a> {
    ThreadStarted {
        thread_id: Cow<'a, str>,
    },
    TurnStarted,
    /// Totals of the thread, absent where codex gave none.
    TurnCompleted {
        usage: Option<Totals>,
    },
    TurnFailed {
        message: Cow<'a, str>,
    },
    /// Not the end by itself: often a reconnect after which the turn succeeds.
    Error {
        message: Cow<'a, str>,
    },
    Item(Phase, Item<'a>),
    /// A type that is not known here.
    Unknown(Cow<'a, str>),
}

/// Reads one line.
///
/// # Errors
/// What is wrong with it, where it is not a JSON object with a `type`.
pub(crate) fn parse(line: &[u8]) -> Result<Event<'_>, String> {
    // Checked as a whole first: serde_json would check each string, and borrowing wants a str.
    let text = std::str::from_utf8(line).map_err(|_| "not valid UTF-8".to_owned())?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let raw: Raw<'_> = serde_json::from_str(text).map_err(|error| match error.classify() {
        // What serde says of these shows a value, and what is wrong here goes to the log.
        serde_json::error::Category::Data => format!("no object at column {}", error.column()),
        _ => error.to_string(),
    })?;
    let kind = raw.kind.ok_or("no `type`")?;
    Ok(match &*kind {
        "thread.started" => Event::ThreadStarted {
            thread_id: raw.thread_id.unwrap_or_default(),
        },
        "turn.started" => Event::TurnStarted,
        "turn.completed" => Event::TurnCompleted { usage: raw.usage },
        "turn.failed" => Event::TurnFailed {
            message: raw.error.or(raw.message).unwrap_or_default(),
        },
        "error" => Event::Error {
            message: raw.message.or(raw.error).unwrap_or_default(),
        },
        "item.started" => Event::Item(Phase::Started, raw.item),
        "item.updated" => Event::Item(Phase::Updated, raw.item),
        "item.completed" => Event::Item(Phase::Completed, raw.item),
        _ => Event::Unknown(kind),
    })
}

/// Every field that any known event has.
#[derive(Default)]
struct Raw<'a> {
    kind: Option<Cow<'a, str>>,
    thread_id: Option<Cow<'a, str>>,
    message: Option<Cow<'a, str>>,
    error: Option<Cow<'a, str>>,
    usage: Option<Totals>,
    item: Item<'a>,
}

impl<'de> Deserialize<'de> for Raw<'de> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct RawVisitor;
        impl<'de> Visitor<'de> for RawVisitor {
            type Value = Raw<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw<'de>, A::Error> {
                let mut raw = Raw::default();
                while let Some(Name(key)) = map.next_key()? {
                    match &*key {
                        "type" => raw.kind = map.next_value::<TextMember<'_>>()?.0,
                        "thread_id" => raw.thread_id = map.next_value::<TextMember<'_>>()?.0,
                        "message" => raw.message = map.next_value::<TextMember<'_>>()?.0,
                        "error" => raw.error = map.next_value::<TextMember<'_>>()?.0,
                        "usage" => raw.usage = map.next_value::<UsageMember>()?.0,
                        "item" => raw.item = map.next_value::<LenientItem<'_>>()?.0,
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(raw)
            }
        }
        json.deserialize_map(RawVisitor)
    }
}

/// A key, borrowed where it has no escapes.
struct Name<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct NameVisitor;
        impl<'de> Visitor<'de> for NameVisitor {
            type Value = Name<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(text.to_owned())))
            }
        }
        json.deserialize_str(NameVisitor)
    }
}

/// Implements the visits of a visitor for which everything but what it wants counts as absent.
macro_rules! absent {
    ($value:expr; $($method:ident($type:ty)),*) => {
        $(fn $method<E>(self, _: $type) -> Result<Self::Value, E> { Ok($value) })*
    };
    ($value:expr; unit) => {
        fn visit_unit<E>(self) -> Result<Self::Value, E> { Ok($value) }
        fn visit_none<E>(self) -> Result<Self::Value, E> { Ok($value) }
    };
    ($value:expr; seq) => {
        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            Ok($value)
        }
    };
    ($value:expr; map) => {
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok($value)
        }
    };
}

/// A string; or the `message` of an object, as errors have it in one place and plain in another.
struct TextMember<'a>(Option<Cow<'a, str>>);

impl<'de> Deserialize<'de> for TextMember<'de> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct TextMemberVisitor;
        impl<'de> Visitor<'de> for TextMemberVisitor {
            type Value = TextMember<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<TextMember<'de>, E> {
                Ok(TextMember(Some(Cow::Borrowed(text))))
            }
            fn visit_str<E>(self, text: &str) -> Result<TextMember<'de>, E> {
                Ok(TextMember(Some(Cow::Owned(text.to_owned()))))
            }
            absent!(TextMember(None); visit_bool(bool), visit_i64(i64), visit_u64(u64), visit_f64(f64));
            absent!(TextMember(None); unit);
            absent!(TextMember(None); seq);
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TextMember<'de>, A::Error> {
                let mut message = None;
                while let Some(Name(key)) = map.next_key()? {
                    if key == "message" {
                        message = map.next_value::<TextMember<'_>>()?.0;
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(TextMember(message))
            }
        }
        json.deserialize_any(TextMemberVisitor)
    }
}

/// A whole number.
struct Number(Option<i64>);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct NumberVisitor;
        impl<'de> Visitor<'de> for NumberVisitor {
            type Value = Number;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            fn visit_i64<E>(self, number: i64) -> Result<Number, E> {
                Ok(Number(Some(number)))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Number, E> {
                Ok(Number(i64::try_from(number).ok()))
            }
            absent!(Number(None); visit_bool(bool), visit_f64(f64), visit_str(&str));
            absent!(Number(None); unit);
            absent!(Number(None); seq);
            absent!(Number(None); map);
        }
        json.deserialize_any(NumberVisitor)
    }
}

/// The counters of a `usage` object.
pub(crate) struct UsageMember(pub(crate) Option<Totals>);

impl<'de> Deserialize<'de> for UsageMember {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct UsageMemberVisitor;
        impl<'de> Visitor<'de> for UsageMemberVisitor {
            type Value = UsageMember;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            absent!(UsageMember(None); visit_bool(bool), visit_i64(i64), visit_u64(u64), visit_f64(f64), visit_str(&str));
            absent!(UsageMember(None); unit);
            absent!(UsageMember(None); seq);
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UsageMember, A::Error> {
                let mut totals = Totals::default();
                while let Some(Name(key)) = map.next_key()? {
                    let counter = match &*key {
                        "input_tokens" => &mut totals.input_tokens,
                        "cached_input_tokens" => &mut totals.cached_input_tokens,
                        "cache_write_input_tokens" => &mut totals.cache_write_input_tokens,
                        "output_tokens" => &mut totals.output_tokens,
                        "reasoning_output_tokens" => &mut totals.reasoning_output_tokens,
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                    };
                    let number = map.next_value::<Number>()?.0;
                    *counter = number
                        .and_then(|number| u64::try_from(number).ok())
                        .unwrap_or(0);
                }
                Ok(UsageMember(Some(totals)))
            }
        }
        json.deserialize_any(UsageMemberVisitor)
    }
}

struct LenientItem<'a>(Item<'a>);

impl<'de> Deserialize<'de> for LenientItem<'de> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct LenientItemVisitor;
        impl<'de> Visitor<'de> for LenientItemVisitor {
            type Value = LenientItem<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            absent!(LenientItem(Item::default()); visit_bool(bool), visit_i64(i64), visit_u64(u64), visit_f64(f64), visit_str(&str));
            absent!(LenientItem(Item::default()); unit);
            absent!(LenientItem(Item::default()); seq);
            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<LenientItem<'de>, A::Error> {
                let mut item = Item::default();
                while let Some(Name(key)) = map.next_key()? {
                    let text = match &*key {
                        "id" => &mut item.id,
                        "type" => &mut item.kind,
                        "text" => &mut item.text,
                        "message" | "error" => &mut item.message,
                        "command" => &mut item.command,
                        "aggregated_output" => &mut item.output,
                        "status" => &mut item.status,
                        "server" => &mut item.server,
                        "tool" => &mut item.tool,
                        "query" => &mut item.query,
                        "exit_code" => {
                            item.exit_code = map.next_value::<Number>()?.0;
                            continue;
                        }
                        "items" => {
                            let raw = map.next_value::<&RawValue>()?;
                            item.todos = serde_json::from_str(raw.get()).unwrap_or_default();
                            continue;
                        }
                        "changes" => {
                            item.changes = map.next_value::<ChangedPaths<'_>>()?.0;
                            continue;
                        }
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                    };
                    let value = map.next_value::<TextMember<'_>>()?.0;
                    if value.is_some() {
                        *text = value;
                    }
                }
                Ok(LenientItem(item))
            }
        }
        json.deserialize_any(LenientItemVisitor)
    }
}

/// The `path`s of a list of changes.
struct ChangedPaths<'a>(Vec<Cow<'a, str>>);

impl<'de> Deserialize<'de> for ChangedPaths<'de> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct ChangedPathsVisitor;
        impl<'de> Visitor<'de> for ChangedPathsVisitor {
            type Value = ChangedPaths<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            absent!(ChangedPaths(Vec::new()); visit_bool(bool), visit_i64(i64), visit_u64(u64), visit_f64(f64), visit_str(&str));
            absent!(ChangedPaths(Vec::new()); unit);
            absent!(ChangedPaths(Vec::new()); map);
            fn visit_seq<A: SeqAccess<'de>>(
                self,
                mut list: A,
            ) -> Result<ChangedPaths<'de>, A::Error> {
                let mut paths = Vec::new();
                while let Some(Change(path)) = list.next_element()? {
                    paths.extend(path);
                }
                Ok(ChangedPaths(paths))
            }
        }
        json.deserialize_any(ChangedPathsVisitor)
    }
}

struct Change<'a>(Option<Cow<'a, str>>);

impl<'de> Deserialize<'de> for Change<'de> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct ChangeVisitor;
        impl<'de> Visitor<'de> for ChangeVisitor {
            type Value = Change<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            absent!(Change(None); visit_bool(bool), visit_i64(i64), visit_u64(u64), visit_f64(f64), visit_str(&str));
            absent!(Change(None); unit);
            absent!(Change(None); seq);
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Change<'de>, A::Error> {
                let mut path = None;
                while let Some(Name(key)) = map.next_key()? {
                    if key == "path" {
                        path = map.next_value::<TextMember<'_>>()?.0;
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Change(path))
            }
        }
        json.deserialize_any(ChangeVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, event: Event<'_>) {
        assert_eq!(parse(line.as_bytes()), Ok(event), "{line}");
    }

    fn item<'a>(kind: &'a str) -> Item<'a> {
        Item {
            id: Some("i".into()),
            kind: Some(kind.into()),
            ..Item::default()
        }
    }

    #[test]
    fn what_codex_prints_is_read() {
        check(
            r#"{"type":"thread.started","thread_id":"01a1"}"#,
            Event::ThreadStarted {
                thread_id: "01a1".into(),
            },
        );
        check(r#"{"type":"turn.started"}"#, Event::TurnStarted);
        check(
            r#"{"type":"turn.completed","usage":{"input_tokens":200,"cached_input_tokens":20,"cache_write_input_tokens":3,"output_tokens":10,"reasoning_output_tokens":2}}"#,
            Event::TurnCompleted {
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
            Event::TurnFailed {
                message: "no \"model\"".into(),
            },
        );
        check(
            r#"{"type":"error","message":"Reconnecting... 1/3"}"#,
            Event::Error {
                message: "Reconnecting... 1/3".into(),
            },
        );
        check(
            r#"{"type":"item.completed","item":{"id":"i","type":"agent_message","text":"a\nb 🎉"}}"#,
            Event::Item(
                Phase::Completed,
                Item {
                    text: Some("a\nb 🎉".into()),
                    ..item("agent_message")
                },
            ),
        );
        check(
            r#"{"type":"item.started","item":{"id":"i","type":"command_execution","command":"ls","aggregated_output":"","exit_code":null,"status":"in_progress"}}"#,
            Event::Item(
                Phase::Started,
                Item {
                    command: Some("ls".into()),
                    output: Some("".into()),
                    status: Some("in_progress".into()),
                    ..item("command_execution")
                },
            ),
        );
        check(
            r#"{"type":"item.completed","item":{"id":"i","type":"mcp_tool_call","server":"s","tool":"t","arguments":{"a":[1]},"result":null,"error":{"message":"gone"},"status":"failed"}}"#,
            Event::Item(
                Phase::Completed,
                Item {
                    server: Some("s".into()),
                    tool: Some("t".into()),
                    message: Some("gone".into()),
                    status: Some("failed".into()),
                    ..item("mcp_tool_call")
                },
            ),
        );
        check(
            r#"{"type":"item.completed","item":{"id":"i","type":"file_change","changes":[{"path":"/a","kind":"add"},{"path":"/b"}],"status":"completed"}}"#,
            Event::Item(
                Phase::Completed,
                Item {
                    changes: vec!["/a".into(), "/b".into()],
                    status: Some("completed".into()),
                    ..item("file_change")
                },
            ),
        );
    }

    // fault: 14
    #[test]
    fn what_is_odd_is_still_read() {
        check(
            r#"{"type":"item.completed","item":{"id":"x","id":"i","type":"web_search","query":"q"}}"#,
            Event::Item(
                Phase::Completed,
                Item {
                    query: Some("q".into()),
                    ..item("web_search")
                },
            ),
        );
        check(
            r#"{"item":{"text":{"no":1},"type":"agent_message","id":"i","new":[{}]},"more":{"x":[]},"type":"item.completed"}"#,
            Event::Item(Phase::Completed, item("agent_message")),
        );
        check(
            "\u{feff}{\"type\":\"turn.completed\",\"usage\":null}\r",
            Event::TurnCompleted { usage: None },
        );
        check(
            r#"{"type":"turn.completed","usage":{"input_tokens":-1,"output_tokens":"5","new":1}}"#,
            Event::TurnCompleted {
                usage: Some(Totals::default()),
            },
        );
        check(
            r#"{"type":"turn.failed","message":"m"}"#,
            Event::TurnFailed {
                message: "m".into(),
            },
        );
        check(
            r#"{"type":"item.completed","item":3}"#,
            Event::Item(Phase::Completed, Item::default()),
        );
        check(
            r#"{"type":"thread.renamed"}"#,
            Event::Unknown("thread.renamed".into()),
        );
        check(r#"{"t\u0079pe":"turn.started"}"#, Event::TurnStarted);
    }

    #[test]
    fn what_is_no_event_is_refused() {
        let deep = format!(
            "{{\"type\":\"x\",\"y\":{}{}}}",
            "[".repeat(10_000),
            "]".repeat(10_000)
        );
        assert_eq!(parse(deep.as_bytes()), Ok(Event::Unknown("x".into())));
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
