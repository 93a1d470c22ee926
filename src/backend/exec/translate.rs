//! Translates codex's lines into updates of a turn.
//!
//! A state machine without I/O. It distinguishes final failures from errors that codex recovered from, and ignores
//! lines after the end: codex reports a failure twice (`error`, then `turn.failed`, with the same text) and can print
//! more after `turn.completed`. Messages are returned one by one; the emitter joins them.

use super::events::{self, ExecEvent, ExecItem, Phase, Todo, Totals};
use crate::backend::emitter::{Step, StepKind, StepState};
use crate::canonical::PlanItem;
use std::borrow::Cow;

/// The end of the turn that codex printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TurnOutcome {
    /// With the thread's counters, if codex printed them.
    Completed(Option<Totals>),
    Failed(String),
}

/// The meaning of a line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Update<'a> {
    /// The thread that codex works on.
    Thread(Cow<'a, str>),
    /// A whole message of the assistant, without the `\n\n` that joins it to the one before.
    Text(Cow<'a, str>),
    /// A summary of the model's reasoning.
    Thinking(Cow<'a, str>),
    /// The start or the end of a step.
    Step(Step),
    /// The to-do list, changed or not.
    Plan(Vec<PlanItem>),
    /// A problem from which codex may recover: a reconnect, a warning.
    Trouble(String),
    /// The end of the turn; everything after it is ignored.
    End,
    /// An ignored line; the reason is for the debug log.
    Nothing(Cow<'static, str>),
}

/// The state of one turn's output.
#[derive(Debug, Default)]
pub(crate) struct Translator {
    outcome: Option<TurnOutcome>,
    /// The last `error` that codex printed: the reason of a `turn.failed` without one.
    last_error: Option<String>,
}

impl Translator {
    /// Translates one line of codex's stdout, without its line end.
    pub(crate) fn line<'a>(&mut self, line: &'a [u8]) -> Update<'a> {
        if line.trim_ascii().is_empty() {
            return Update::Nothing("a blank line".into());
        }
        if self.outcome.is_some() {
            return Update::Nothing("a line after the end".into());
        }
        let event = match events::parse(line) {
            Ok(event) => event,
            // NUL bytes, invalid UTF-8, output of a library: reported, and the next line counts.
            Err(why) => {
                return Update::Trouble(format!(
                    "codex printed a line of {} bytes that is not an event: {why}",
                    line.len()
                ));
            }
        };
        match event {
            ExecEvent::ThreadStarted { thread_id } => Update::Thread(thread_id),
            ExecEvent::TurnStarted => Update::Nothing("turn.started".into()),
            ExecEvent::TurnCompleted { usage } => {
                self.outcome = Some(TurnOutcome::Completed(usage));
                Update::End
            }
            ExecEvent::TurnFailed { message } => {
                let message = match (message.is_empty(), self.last_error.take()) {
                    (true, Some(before)) => before,
                    _ => message.into_owned(),
                };
                self.outcome = Some(TurnOutcome::Failed(message));
                Update::End
            }
            ExecEvent::Error { message } => {
                self.last_error = Some(message.clone().into_owned());
                Update::Trouble(message.into_owned())
            }
            ExecEvent::Item(phase, item) => {
                if item.kind() != "error" {
                    // codex has recovered from the error.
                    self.last_error = None;
                }
                Translator::item(phase, &item)
            }
            ExecEvent::Unknown(kind) => {
                Update::Nothing(format!("an event of type '{kind}'").into())
            }
        }
    }

    fn item<'a>(phase: Phase, item: &ExecItem<'a>) -> Update<'a> {
        match (&*item.kind(), phase) {
            ("agent_message", Phase::Completed) => Update::Text(item.text("text")),
            ("reasoning", Phase::Completed) => Update::Thinking(item.text("text")),
            // These items are warnings; they can come before `turn.started`.
            ("error", Phase::Completed) => {
                Update::Trouble(item.message().unwrap_or(item.text("text")).into_owned())
            }
            ("todo_list", _) => Update::Plan(item.todos().into_iter().map(plan_item).collect()),
            ("agent_message" | "reasoning" | "error", _) | (_, Phase::Updated) => {
                Update::Nothing("an item that is not complete".into())
            }
            ("", _) => Update::Nothing("an item that is not a step".into()),
            _ => Update::Step(step(phase, item)),
        }
    }

    /// The end of the turn, once codex has printed it.
    pub(crate) fn outcome(&self) -> Option<&TurnOutcome> {
        self.outcome.as_ref()
    }

    /// The last `error` that codex printed and has not recovered from.
    pub(crate) fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }
}

fn plan_item(todo: Todo) -> PlanItem {
    PlanItem {
        text: todo.text,
        status: match todo.completed {
            true => "completed",
            false => "pending",
        }
        .to_owned(),
    }
}

fn step(phase: Phase, item: &ExecItem<'_>) -> Step {
    let text = |name| item.text(name).into_owned();
    let exit_code = item.exit_code();
    let failed = matches!(&*item.text("status"), "failed" | "declined")
        || exit_code.is_some_and(|code| code != 0);
    let output = match phase {
        Phase::Completed => item.text("aggregated_output").into_owned(),
        _ => String::new(),
    };
    Step {
        output,
        key: text("id"),
        state: match phase {
            Phase::Completed if failed => StepState::Failed(exit_code),
            Phase::Completed => StepState::Done,
            _ => StepState::Running,
        },
        what: match &*item.kind() {
            "command_execution" => StepKind::Command(text("command")),
            "mcp_tool_call" => StepKind::Tool(text("server"), text("tool")),
            "file_change" => {
                StepKind::Files(item.changes().into_iter().map(Cow::into_owned).collect())
            }
            "web_search" => StepKind::Search(text("query")),
            other => StepKind::Other(other.to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn translates_turn() {
        let mut translator = Translator::default();
        let mut translate = |line: &'static str| translator.line(line.as_bytes());
        assert_eq!(
            translate(r#"{"type":"thread.started","thread_id":"T"}"#),
            Update::Thread("T".into())
        );
        assert_eq!(
            translate(
                r#"{"type":"item.completed","item":{"id":"item_0","type":"error","message":"no metadata"}}"#
            ),
            Update::Trouble("no metadata".into())
        );
        assert_eq!(
            translate(r#"{"type":"turn.started"}"#),
            Update::Nothing("turn.started".into())
        );
        assert_eq!(translate(""), Update::Nothing("a blank line".into()));
        assert_eq!(
            translate(r#"{"type":"error","message":"Reconnecting... 1/3"}"#),
            Update::Trouble("Reconnecting... 1/3".into())
        );
        assert_eq!(
            translate(
                r#"{"type":"item.started","item":{"id":"item_1","type":"command_execution","command":"ls","exit_code":null}}"#
            ),
            Update::Step(Step {
                key: "item_1".into(),
                state: StepState::Running,
                what: StepKind::Command("ls".into()),
                output: String::new(),
            })
        );
        assert_eq!(
            translate(
                r#"{"type":"item.completed","item":{"id":"item_1","type":"command_execution","command":"ls","aggregated_output":"1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n11\n","exit_code":2,"status":"failed"}}"#
            ),
            Update::Step(Step {
                key: "item_1".into(),
                state: StepState::Failed(Some(2)),
                what: StepKind::Command("ls".into()),
                output: "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n11\n".into(),
            })
        );
        assert_eq!(
            translate(
                r#"{"type":"item.completed","item":{"id":"item_2","type":"agent_message","text":"done"}}"#
            ),
            Update::Text("done".into())
        );
        assert!(matches!(translate("no json"), Update::Trouble(_)));
        assert_eq!(
            translate(r#"{"type":"turn.completed","usage":null}"#),
            Update::End
        );
        assert_eq!(
            translate(r#"{"type":"turn.completed","usage":{"input_tokens":5}}"#),
            Update::Nothing("a line after the end".into())
        );
        assert_eq!(translator.outcome(), Some(&TurnOutcome::Completed(None)));
    }

    #[test]
    fn reports_failure_once() {
        let mut translator = Translator::default();
        assert_eq!(
            translator.line(br#"{"type":"error","message":"no"}"#),
            Update::Trouble("no".into())
        );
        assert_eq!(translator.last_error(), Some("no"));
        assert_eq!(
            translator.line(br#"{"type":"turn.failed","error":{"message":"no"}}"#),
            Update::End
        );
        assert_eq!(
            translator.outcome(),
            Some(&TurnOutcome::Failed("no".into()))
        );
        let mut translator = Translator::default();
        translator.line(br#"{"type":"error","message":"Reconnecting... 1/5"}"#);
        translator.line(
            br#"{"type":"item.completed","item":{"id":"i","type":"agent_message","text":"on"}}"#,
        );
        assert_eq!(translator.last_error(), None, "codex recovered from it");
        let mut translator = Translator::default();
        translator.line(br#"{"type":"error","message":"why"}"#);
        translator.line(br#"{"type":"turn.failed"}"#);
        assert_eq!(
            translator.outcome(),
            Some(&TurnOutcome::Failed("why".into()))
        );
    }
}
