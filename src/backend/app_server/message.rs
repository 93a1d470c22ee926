//! The messages of `codex app-server`: JSON-RPC without the `jsonrpc` member, one object a line.
//!
//! Measured on 0.135.0 to 0.169.0. They are read as leniently as the output of `codex exec`: a member of an unexpected
//! type counts as absent, unknown ones are ignored. Text without escapes is borrowed from the line.

use crate::backend::emitter::{Step, StepKind, StepState};
use crate::canonical::{PlanItem, Usage};
use crate::json::{Members, elements, text_of};
use std::borrow::Cow;

/// A parsed line.
#[derive(Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "it lives for one line, and is a notification most of the time"
)]
pub(super) enum ServerMessage<'a> {
    Notification(Notification<'a>),
    /// A request of the server; `id` is raw JSON.
    Request {
        id: &'a [u8],
        method: Cow<'a, str>,
    },
    /// The response to one of our requests: its result as raw JSON, or the message of its error.
    Response {
        id: u64,
        outcome: Result<&'a [u8], Cow<'a, str>>,
    },
    /// None of these.
    Other,
}

/// A notification about a thread.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Notification<'a> {
    pub(super) thread: Option<Cow<'a, str>>,
    /// The id of its turn.
    pub(super) turn: Option<Cow<'a, str>>,
    pub(super) event: ServerEvent<'a>,
}

/// The contents of a notification.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ServerEvent<'a> {
    TurnStarted,
    TurnCompleted(TurnCompletion),
    /// A part of the assistant's message in this item.
    TextDelta {
        item: Cow<'a, str>,
        text: Cow<'a, str>,
    },
    /// A part of a reasoning summary; `part` is its index in the summary.
    ThoughtDelta {
        item: Cow<'a, str>,
        part: u64,
        text: Cow<'a, str>,
    },
    ItemStarted(ThreadItem<'a>),
    ItemCompleted(ThreadItem<'a>),
    Plan(Vec<PlanItem>),
    /// The total of the thread's tokens.
    Usage(Usage),
    /// A request to the model has failed; codex may retry it.
    Error(String),
    Warning(Cow<'a, str>),
    /// An unknown or unused notification.
    Other,
}

/// How a turn ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TurnCompletion {
    Completed,
    Interrupted,
    Failed(String),
}

/// An item of a turn; which members are present depends on its type.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ThreadItem<'a>(Members<'a, 14>);

/// Parses a line.
pub(super) fn parse(line: &[u8]) -> ServerMessage<'_> {
    let members = Members::of(Some(line), &["id", "method", "params", "result", "error"]);
    let (id, method) = (members.raw("id"), members.text("method"));
    match (id, method) {
        (Some(id), Some(method)) => ServerMessage::Request { id, method },
        (None, Some(method)) => {
            ServerMessage::Notification(notification(&method, members.raw("params")))
        }
        (Some(_), None) => {
            let Some(id) = members.number("id") else {
                return ServerMessage::Other;
            };
            let error = members.raw("error");
            let outcome = match error {
                Some(error) => Err(Members::of(Some(error), &["message"])
                    .text("message")
                    .unwrap_or_default()),
                None => Ok(members.raw("result").unwrap_or_default()),
            };
            ServerMessage::Response { id, outcome }
        }
        (None, None) => ServerMessage::Other,
    }
}

fn notification<'a>(method: &str, params: Option<&'a [u8]>) -> Notification<'a> {
    let params = Members::of(
        params,
        &[
            "threadId",
            "turnId",
            "turn",
            "itemId",
            "item",
            "delta",
            "summaryIndex",
            "plan",
            "tokenUsage",
            "willRetry",
            "error",
            "message",
            "summary",
        ],
    );
    let text = |name| params.text(name).unwrap_or_default();
    let item = || ThreadItem::of(params.raw("item"));
    let mut turn = params.text("turnId");
    let event = match method {
        "turn/started" | "turn/completed" => {
            let members = Members::of(params.raw("turn"), &["id", "status", "error"]);
            turn = members.text("id");
            match method {
                "turn/started" => ServerEvent::TurnStarted,
                _ => ServerEvent::TurnCompleted(match members.text("status").as_deref() {
                    Some("interrupted") => TurnCompletion::Interrupted,
                    Some("failed") => TurnCompletion::Failed(
                        Members::of(members.raw("error"), &["message"])
                            .text("message")
                            .unwrap_or_default()
                            .into_owned(),
                    ),
                    _ => TurnCompletion::Completed,
                }),
            }
        }
        "item/agentMessage/delta" => ServerEvent::TextDelta {
            item: text("itemId"),
            text: text("delta"),
        },
        "item/reasoning/summaryTextDelta" => ServerEvent::ThoughtDelta {
            item: text("itemId"),
            part: params.number("summaryIndex").unwrap_or(0),
            text: text("delta"),
        },
        "item/started" => ServerEvent::ItemStarted(item()),
        "item/completed" => ServerEvent::ItemCompleted(item()),
        "turn/plan/updated" => {
            let steps = elements(params.raw("plan")).into_iter();
            ServerEvent::Plan(steps.filter_map(plan_item).collect())
        }
        "thread/tokenUsage/updated" => {
            let usage = Members::of(params.raw("tokenUsage"), &["total"]);
            usage.raw("total").map_or(ServerEvent::Other, |total| {
                ServerEvent::Usage(usage_of(total))
            })
        }
        "error" => {
            let error = Members::of(params.raw("error"), &["message", "additionalDetails"]);
            let message = error.text("message").unwrap_or_default();
            ServerEvent::Error(match error.text("additionalDetails") {
                // The format of `codex exec`.
                Some(details) if params.raw("willRetry") == Some(b"true") => {
                    format!("{message} ({details})")
                }
                _ => message.into_owned(),
            })
        }
        "warning" | "guardianWarning" => ServerEvent::Warning(text("message")),
        "deprecationNotice" | "configWarning" => ServerEvent::Warning(text("summary")),
        _ => ServerEvent::Other,
    };
    Notification {
        thread: params.text("threadId"),
        turn,
        event,
    }
}

fn plan_item(step: &[u8]) -> Option<PlanItem> {
    let step = Members::of(Some(step), &["step", "status"]);
    Some(PlanItem {
        text: step.text("step")?.into_owned(),
        status: match step.text("status").as_deref() {
            Some("inProgress") => "in_progress".to_owned(),
            Some(status) => status.to_owned(),
            None => "pending".to_owned(),
        },
    })
}

fn usage_of(total: &[u8]) -> Usage {
    let total = Members::of(
        Some(total),
        &[
            "inputTokens",
            "cachedInputTokens",
            "cacheWriteInputTokens",
            "outputTokens",
            "reasoningOutputTokens",
        ],
    );
    let count = |name| total.number(name).unwrap_or(0);
    Usage {
        input_tokens: count("inputTokens"),
        output_tokens: count("outputTokens"),
        cache_read_tokens: count("cachedInputTokens"),
        cache_write_tokens: count("cacheWriteInputTokens"),
        thinking_tokens: count("reasoningOutputTokens"),
    }
}

impl<'a> ThreadItem<'a> {
    fn of(raw: Option<&'a [u8]>) -> ThreadItem<'a> {
        ThreadItem(Members::of(
            raw,
            &[
                "id",
                "type",
                "text",
                "summary",
                "command",
                "aggregatedOutput",
                "exitCode",
                "status",
                "server",
                "tool",
                "query",
                "changes",
                "error",
                "content",
            ],
        ))
    }

    /// Its type: `agentMessage`, `reasoning`, `commandExecution`, `fileChange`, `mcpToolCall`, `webSearch`, …
    pub(super) fn kind(&self) -> Cow<'a, str> {
        self.text("type")
    }

    /// The member of this name; empty where it is not a string.
    pub(super) fn text(&self, name: &str) -> Cow<'a, str> {
        self.0.text(name).unwrap_or_default()
    }

    /// The texts of a `userMessage`.
    pub(super) fn user_texts(&self) -> Vec<Cow<'a, str>> {
        let blocks = elements(self.0.raw("content")).into_iter();
        let text = |block| Members::of(Some(block), &["text"]).text("text");
        blocks.filter_map(text).collect()
    }

    /// The parts of a reasoning summary.
    pub(super) fn summary(&self) -> Vec<Cow<'a, str>> {
        let parts = elements(self.0.raw("summary")).into_iter();
        parts.filter_map(text_of).collect()
    }

    /// The item as a step that can be shown to a person; `None` for other types. `is_over`: it is completed.
    pub(super) fn step(&self, is_over: bool) -> Option<Step> {
        let text = |name| self.text(name).into_owned();
        let what = match &*self.kind() {
            "commandExecution" => StepKind::Command(text("command")),
            "mcpToolCall" => StepKind::Tool(text("server"), text("tool")),
            "fileChange" => {
                let changes = elements(self.0.raw("changes")).into_iter();
                let path = |change| Members::of(Some(change), &["path"]).text("path");
                StepKind::Files(changes.filter_map(path).map(Cow::into_owned).collect())
            }
            "webSearch" => StepKind::Search(text("query")),
            "collabAgentToolCall" => StepKind::Other("collab_tool_call".to_owned()),
            // Messages, reasoning, and types that `codex exec` does not print either.
            _ => return None,
        };
        let exit_code = self.0.raw("exitCode");
        let exit_code = exit_code.and_then(|code| std::str::from_utf8(code).ok()?.parse().ok());
        let failed = matches!(&*self.text("status"), "failed" | "declined")
            || exit_code.is_some_and(|code: i64| code != 0);
        Some(Step {
            key: text("id"),
            state: match (is_over, failed) {
                (false, _) => StepState::Running,
                (true, true) => StepState::Failed(exit_code),
                (true, false) => StepState::Done,
            },
            what,
            output: match is_over {
                true => text("aggregatedOutput"),
                false => String::new(),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notification(line: &str) -> Notification<'_> {
        match parse(line.as_bytes()) {
            ServerMessage::Notification(notification) => notification,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn classifies_messages() {
        assert_eq!(
            parse(br#"{"id":0,"method":"item/tool/call","params":{}}"#),
            ServerMessage::Request {
                id: b"0",
                method: "item/tool/call".into()
            }
        );
        assert_eq!(
            parse(br#"{"id":3,"result":{"a":1}}"#),
            ServerMessage::Response {
                id: 3,
                outcome: Ok(b"{\"a\":1}")
            }
        );
        assert_eq!(
            parse(br#"{"id":3,"error":{"code":-32600,"message":"no rollout"}}"#),
            ServerMessage::Response {
                id: 3,
                outcome: Err("no rollout".into())
            }
        );
        for line in [&b"{}"[..], b"[]", b"", b"x", b"{\"id\":\"a\"}"] {
            assert_eq!(parse(line), ServerMessage::Other);
        }
    }

    #[test]
    fn parses_notifications() {
        let delta = notification(
            r#"{"method":"item/agentMessage/delta","params":{"threadId":"t","turnId":"u","itemId":"m","delta":"a\nb"}}"#,
        );
        assert_eq!(
            (delta.thread.as_deref(), delta.turn.as_deref()),
            (Some("t"), Some("u"))
        );
        assert_eq!(
            delta.event,
            ServerEvent::TextDelta {
                item: "m".into(),
                text: "a\nb".into()
            }
        );
        let end = notification(
            r#"{"method":"turn/completed","params":{"threadId":"t","turn":{"id":"u","status":"failed","error":{"message":"no"}}}}"#,
        );
        assert_eq!(end.turn.as_deref(), Some("u"));
        assert_eq!(
            end.event,
            ServerEvent::TurnCompleted(TurnCompletion::Failed("no".to_owned()))
        );
        let retry = notification(
            r#"{"method":"error","params":{"threadId":"t","turnId":"u","willRetry":true,"error":{"message":"Reconnecting... 1/2","additionalDetails":"gone"}}}"#,
        );
        assert_eq!(
            retry.event,
            ServerEvent::Error("Reconnecting... 1/2 (gone)".to_owned())
        );
        let usage = notification(
            r#"{"method":"thread/tokenUsage/updated","params":{"threadId":"t","tokenUsage":{"total":{"inputTokens":5,"outputTokens":2}}}}"#,
        );
        assert_eq!(
            usage.event,
            ServerEvent::Usage(Usage {
                input_tokens: 5,
                output_tokens: 2,
                ..Usage::default()
            })
        );
        let plan = notification(
            r#"{"method":"turn/plan/updated","params":{"plan":[{"step":"a","status":"inProgress"},{},3]}}"#,
        );
        assert_eq!(
            plan.event,
            ServerEvent::Plan(vec![PlanItem {
                text: "a".to_owned(),
                status: "in_progress".to_owned()
            }])
        );
        assert_eq!(
            notification(r#"{"method":"new/thing"}"#).event,
            ServerEvent::Other
        );
    }

    #[test]
    fn converts_items_to_steps() {
        let step = |line: &'static str| match notification(line).event {
            ServerEvent::ItemCompleted(item) => item.step(true),
            ServerEvent::ItemStarted(item) => item.step(false),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            step(
                r#"{"method":"item/completed","params":{"item":{"type":"commandExecution","id":"c","command":"ls","aggregatedOutput":"x","exitCode":2,"status":"failed"}}}"#
            ),
            Some(Step {
                key: "c".to_owned(),
                state: StepState::Failed(Some(2)),
                what: StepKind::Command("ls".to_owned()),
                output: "x".to_owned(),
            })
        );
        assert_eq!(
            step(
                r#"{"method":"item/started","params":{"item":{"type":"fileChange","id":"p","changes":[{"path":"/a"},{}]}}}"#
            ),
            Some(Step {
                key: "p".to_owned(),
                state: StepState::Running,
                what: StepKind::Files(vec!["/a".to_owned()]),
                output: String::new(),
            })
        );
        assert_eq!(
            step(r#"{"method":"item/started","params":{"item":{"type":"userMessage","id":"g"}}}"#),
            None
        );
    }
}
