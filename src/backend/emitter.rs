//! Emits a turn's events in the order of the protocol, whichever way codex is run.
//!
//! `message_start` is first and `message_end` last, once each; there is at most one `error`.

use super::Account;
use crate::canonical::{Status, StopReason, ThreadState, TurnError, TurnEvent, TurnResult};
use crate::codex::home;
use crate::error::Error;
use std::borrow::Cow;

/// Emits a turn's events, and tracks what it has emitted.
pub(crate) struct Emitter<'a> {
    pub(crate) sink: &'a mut dyn EventSink,
    pub(crate) started: bool,
    /// The error that was emitted.
    pub(crate) failed: Option<TurnError>,
    /// A `status` event with `queued` was emitted.
    pub(crate) is_queued: bool,
    /// The number of messages of the assistant so far.
    pub(crate) texts: usize,
    /// The number of tool call events so far, including those that the config suppresses.
    pub(crate) calls: usize,
}

impl<'a> Emitter<'a> {
    pub(crate) fn new(sink: &'a mut dyn EventSink) -> Emitter<'a> {
        Emitter {
            sink,
            started: false,
            failed: None,
            is_queued: false,
            texts: 0,
            calls: 0,
        }
    }

    /// Emits `message_start`, unless it was.
    pub(crate) fn start(&mut self) {
        if !self.started {
            self.started = true;
            self.sink.event(&TurnEvent::MessageStart);
        }
    }

    pub(crate) fn event(&mut self, event: &TurnEvent<'_>) {
        self.start();
        self.sink.event(event);
    }

    pub(crate) fn raw_event(&mut self, event: &[u8]) {
        self.start();
        self.sink.raw_event(event);
    }

    /// Emits a whole message of the assistant. From the second on it begins with an empty line, so that deltas can be
    /// joined.
    pub(crate) fn text(&mut self, text: &str) {
        if !text.is_empty() {
            self.begin_text(text);
            self.end_text();
        }
    }

    /// Emits the beginning of a message of the assistant.
    pub(crate) fn begin_text(&mut self, text: &str) {
        let message = self.texts;
        let text = match message {
            0 => Cow::Borrowed(text),
            _ => Cow::Owned(format!("\n\n{text}")),
        };
        self.texts += 1;
        self.event(&TurnEvent::TextDelta { text, message });
    }

    /// Emits more of the current message.
    pub(crate) fn continue_text(&mut self, text: &str) {
        let message = self.texts.saturating_sub(1);
        let text = Cow::Borrowed(text);
        self.event(&TurnEvent::TextDelta { text, message });
    }

    /// Completes the current message.
    pub(crate) fn end_text(&mut self) {
        self.sink.text_ends();
    }

    /// Reports that the current message is discarded: codex requests another one in its place.
    pub(crate) fn discard_text(&mut self, detail: &str) {
        self.end_text();
        self.event(&TurnEvent::Status {
            state: Status::Retrying,
            detail: Some(Cow::Borrowed(detail)),
            discarded_message: self.texts.checked_sub(1),
        });
    }

    pub(crate) fn status(&mut self, state: Status, detail: Option<&str>) {
        let detail = detail.map(Cow::Borrowed);
        self.event(&TurnEvent::Status {
            state,
            detail,
            discarded_message: None,
        });
    }

    /// Reports that the turn waits for its workspace: once, without delay.
    pub(crate) fn queued(&mut self, detail: &str) {
        if !self.is_queued {
            self.is_queued = true;
            self.status(Status::Queued, Some(detail));
            self.sink.flush();
        }
    }

    /// Writes out what the sink has buffered.
    pub(crate) fn flush(&mut self) {
        self.sink.flush();
    }

    pub(crate) fn warn(&mut self, message: &str) {
        self.sink.log(Level::Warn, message);
    }

    pub(crate) fn debug(&mut self, message: &str) {
        self.sink.log(Level::Debug, message);
    }

    /// Ends the turn with an error.
    pub(crate) fn fail(
        &mut self,
        error: &Error,
        thread: Option<String>,
        state: ThreadState,
        account: Account,
    ) -> TurnResult {
        if self.failed.is_none() {
            let error = TurnError {
                code: error.kind().code(),
                message: error.message().to_owned(),
                retryable: error.retryable(),
                retry_at: error.retry_at(),
            };
            self.event(&TurnEvent::Error { error: &error });
            self.failed = Some(error);
        }
        self.end(StopReason::Error, thread, state, account)
    }

    /// Ends the turn.
    pub(crate) fn end(
        &mut self,
        stop_reason: StopReason,
        thread_id: Option<String>,
        thread_state: ThreadState,
        account: Account,
    ) -> TurnResult {
        self.debug(&format!(
            "the turn ends: {}, {} tokens in, {} out",
            match stop_reason {
                StopReason::EndTurn => "it is done",
                StopReason::Error => "it failed",
                StopReason::Cancelled => "it was cancelled",
            },
            account.tokens.turn.total.input_tokens,
            account.tokens.turn.total.output_tokens,
        ));
        self.event(&TurnEvent::MessageEnd {
            stop_reason,
            usage: account.tokens.turn,
        });
        self.sink.finish();
        TurnResult {
            stop_reason,
            thread_id: thread_id.filter(|id| home::is_thread_id(id)),
            thread_state,
            usage: account.tokens.turn,
            thread_usage: account.tokens.thread,
            telemetry: account.telemetry,
            error: self.failed.clone(),
        }
    }
}

/// Receives a turn's events.
pub(crate) trait EventSink {
    /// An event, in the order of the protocol. It may be buffered until the next [`EventSink::flush`].
    fn event(&mut self, event: &TurnEvent<'_>);
    /// An event that is JSON already.
    fn raw_event(&mut self, event: &[u8]);
    /// The current message or thought is complete, or will not be continued.
    fn text_ends(&mut self) {}
    /// A log message, which is not an event.
    fn log(&mut self, level: Level, message: &str);
    /// A step of codex's work, for a person at a terminal.
    fn step(&mut self, _step: &Step) {}
    /// Whether a call of one of the daemon's tools waits until its `tool_use` is emitted.
    fn holds_calls(&self) -> bool {
        false
    }
    /// Writes out what was buffered. Where the other side does not read, this waits until it does or the turn is
    /// cancelled; what could not be written stays buffered.
    fn flush(&mut self);
    /// Writes out everything at the end of the turn, and does not stop for a cancel.
    fn finish(&mut self) {
        self.flush();
    }
}

/// The level of a log message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Debug,
    Warn,
}

impl Level {
    /// Its name in the protocol, one of MCP's.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Level::Debug => "debug",
            Level::Warn => "warning",
        }
    }
}

/// A step of codex's work, for a person at a terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// The same for the start and the end of one item; numbered anew in every process of codex.
    pub(crate) key: String,
    pub(crate) state: StepState,
    pub(crate) what: StepKind,
    /// The output of a completed command.
    pub(crate) output: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StepState {
    Running,
    Done,
    /// With the exit code, where it is a command's.
    Failed(Option<i64>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StepKind {
    /// A shell command.
    Command(String),
    /// An MCP tool: server and tool.
    Tool(String, String),
    /// The files that a patch changes.
    Files(Vec<String>),
    /// A web search, by its query.
    Search(String),
    /// An item of another type.
    Other(String),
}
