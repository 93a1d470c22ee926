//! Reports a running turn, whichever way codex is run: texts, steps, plans and warnings come from codex's output, tool
//! calls from its rollout, merged in order.

use super::emitter::{Emitter, Step, StepKind, StepState};
use super::recording::{Recording, Unprinted, emit_call_event, now};
use super::{Account, Outcome, TurnSpec, TurnStatus};
use crate::canonical::{PlanItem, Status, Telemetry, TurnEvent, Usage};
use crate::codex::failure::{self, Exit};
use crate::codex::home;
use crate::error::{Error, Kind};
use crate::os::CancelToken;
use crate::rollout::record::TurnEnd;
use crate::shell;
use serde_json::json;
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// How many warnings and lines that are not events are logged as warnings in a turn; the rest at `debug`.
const MAX_TROUBLES: u64 = 20;

/// codex's warning that it cannot write to the rollout (0.135.0 to 0.169.0).
const UNRECORDED: &str = "Failed to save the conversation transcript";

/// How often the rollout is polled while a call of one of the daemon's tools waits for its event.
const HELD_TICK: Duration = Duration::from_millis(3);

/// Reports what codex prints and records of a turn.
pub(super) struct Reporter<'a> {
    spec: &'a TurnSpec<'a>,
    pub(super) recording: Recording<'a>,
    /// Whether the model did anything.
    pub(super) worked: bool,
    /// Whether codex reported a step.
    has_steps: bool,
    /// The number of warnings, and of lines that are not events.
    troubles: u64,
    /// The number of lines that were too long to be held.
    skipped: u64,
    /// codex warned that it cannot write to the rollout, for instance on a full disk. It writes later what it could
    /// not.
    is_unrecorded: bool,
    /// The keys of the steps that have started and not completed.
    open: HashSet<String>,
    /// The keys of the web searches that were emitted.
    searches: HashSet<String>,
    /// The to-do list that was emitted last.
    plan: Option<Vec<PlanItem>>,
}

impl<'a> Reporter<'a> {
    /// Reads the thread's rollout, which may take a while.
    pub(super) fn new(spec: &'a TurnSpec<'a>, cancel: &CancelToken) -> Reporter<'a> {
        Reporter {
            spec,
            recording: Recording::new(spec, cancel),
            worked: false,
            has_steps: false,
            troubles: 0,
            skipped: 0,
            is_unrecorded: false,
            open: HashSet::new(),
            searches: HashSet::new(),
            plan: None,
        }
    }

    /// How long to wait for output of codex before the rollout is polled.
    pub(super) fn tick(emitter: &Emitter<'_>) -> Duration {
        match emitter.sink.holds_calls() {
            true => HELD_TICK,
            false => super::recording::TICK,
        }
    }

    /// Whether something is running that codex has reported or recorded. Then its silence does not mean that it hangs.
    pub(super) fn is_running(&self) -> bool {
        self.recording.is_running(!self.open.is_empty())
    }

    /// Handles the thread that codex reports: checks that it is the requested one, and stores a new one.
    pub(super) fn thread(&mut self, id: &str, emitter: &mut Emitter<'_>) {
        if !home::is_thread_id(id) {
            emitter.warn(&format!(
                "codex reported {id:?}, which is not a thread id; it is not stored"
            ));
            return;
        }
        let id = id.to_ascii_lowercase();
        if let Some(first) = self.recording.thread() {
            if first != id {
                emitter.warn(&format!(
                    "codex reported a second thread, {id}, after {first}; it is not stored"
                ));
            }
            return;
        }
        match self.spec.thread {
            Some(asked) if asked != id => {
                emitter.warn(&format!(
                    "codex runs the turn in thread {id}, although {asked} was requested; the stored id is kept"
                ));
            }
            _ => {
                for warning in (self.spec.on_thread)(&id) {
                    emitter.warn(&warning);
                }
            }
        }
        emitter.debug(&format!("codex runs the turn in thread {id}"));
        self.recording.set_thread(&id);
    }

    /// Emits a whole message of the assistant.
    pub(super) fn text(&mut self, text: &str, emitter: &mut Emitter<'_>) {
        self.worked = true;
        self.recording.emit_calls_recorded_before(text, emitter);
        emitter.text(text);
        self.recording.set_last_text(text);
    }

    /// Emits reasoning, or a part of it. Text after a whole one begins another thought.
    pub(super) fn thinking(&mut self, text: &str, is_whole: bool, emitter: &mut Emitter<'_>) {
        self.worked = true;
        if self.spec.config.reasoning_events && !text.is_empty() {
            self.recording.follow(emitter);
            emitter.event(&TurnEvent::ThinkingDelta { text: text.into() });
            if is_whole {
                emitter.end_text();
            }
        }
    }

    /// Emits the to-do list, if it has changed.
    pub(super) fn plan(&mut self, items: Vec<PlanItem>, emitter: &mut Emitter<'_>) {
        self.worked = true;
        if self.plan.as_ref() != Some(&items) {
            emitter.event(&TurnEvent::Plan { items: &items });
            self.plan = Some(items);
        }
    }

    /// Reports a problem from which codex may recover: a reconnect, a warning.
    pub(super) fn trouble(&mut self, message: &str, emitter: &mut Emitter<'_>) {
        if failure::is_retry(message) {
            emitter.status(Status::Retrying, Some(message));
        }
        self.is_unrecorded |= message.contains(UNRECORDED);
        self.troubles += 1;
        let message = format!("codex: {message}");
        match self.troubles <= MAX_TROUBLES {
            true => emitter.warn(&message),
            false => emitter.debug(&message),
        }
    }

    /// Reports a line that was too long to be held; its length in bytes.
    pub(super) fn skipped_line(&mut self, length: u64, emitter: &mut Emitter<'_>) {
        self.skipped += 1;
        emitter.start();
        emitter.warn(&format!(
            "codex printed a line of {length} bytes, which exceeds the limit; it is skipped"
        ));
    }

    /// Reports the start or the end of a step.
    pub(super) fn step(&mut self, step: &Step, emitter: &mut Emitter<'_>) {
        self.worked = true;
        self.has_steps = true;
        emitter.debug(&outline(step));
        emitter.sink.step(step);
        if step.what == StepKind::Other("collab_tool_call".to_owned()) {
            self.recording.expect_agents();
        }
        if step.state == StepState::Running {
            self.open.insert(step.key.clone());
            return;
        }
        self.open.remove(&step.key);
        if let StepKind::Search(query) = &step.what {
            self.search(step, query, emitter);
        }
        if self.open.is_empty() {
            // All calls that are recorded by now have completed.
            self.recording.follow(emitter);
            self.recording.all_reported_over();
        }
    }

    /// Emits a web search. The provider makes it; codex does not record it as a call with an output.
    fn search(&mut self, step: &Step, query: &str, emitter: &mut Emitter<'_>) {
        // codex 0.135 to 0.169 print two `id`s in the item; the last one is the search's own.
        if step.key.is_empty() || !self.searches.insert(step.key.clone()) {
            return;
        }
        self.recording.follow(emitter);
        let input = json!({"query": query});
        let used =
            json!({"type": "tool_use", "id": step.key, "name": "web_search", "input": input});
        let is_error = matches!(step.state, StepState::Failed(_));
        let result =
            json!({"type": "tool_result", "id": step.key, "content": "", "is_error": is_error});
        for event in [used, result] {
            emit_call_event(
                event.to_string().as_bytes(),
                self.spec.config.tool_events,
                emitter,
            );
        }
    }

    /// Emits everything that remains when codex has finished the turn; `has_end`: it has reported how the turn ended.
    pub(super) fn emit_rest(&mut self, has_end: bool, emitter: &mut Emitter<'_>) {
        let unprinted = match (has_end, self.skipped) {
            (false, _) => Unprinted::End,
            (true, 0) => Unprinted::Nothing,
            (true, _) => Unprinted::Some,
        };
        self.recording.search_now();
        self.recording.emit_remaining(unprinted, emitter);
        if let Some(more @ 1..) = self.troubles.checked_sub(MAX_TROUBLES) {
            emitter.warn(&format!(
                "codex: {more} more warnings and lines that are not events; they are logged at level 'debug'"
            ));
        }
        // In a codex home that is a copy, the index leads codex to the original's rollout (0.135 to 0.169).
        if self.has_steps && self.recording.is_silent() && !self.is_unrecorded {
            emitter.warn(&format!(
                "codex has recorded nothing of the turn in the thread's rollout, so its tool calls cannot be reported: the codex home may be a copy of another; run: plexum-openai doctor -w {}",
                shell::quote_path(&self.spec.workspace.to_string_lossy())
            ));
        }
    }

    /// The result of the turn, without its status. `totals` are the thread's tokens that codex reported at the end.
    pub(super) fn conclude(self, totals: Option<Usage>, emitter: &mut Emitter<'_>) -> Concluded {
        Concluded {
            thread: self.recording.thread().map(str::to_owned),
            end: self.recording.end().cloned(),
            worked: self.worked,
            skipped: self.skipped,
            account: self.recording.account(totals, emitter),
        }
    }

    fn too_long(&self) -> Error {
        Error::new(
            Kind::TurnTimeout,
            format!(
                "the turn took longer than {} s; the limit is \"turn_timeout_secs\" in {}",
                self.spec.config.turn_timeout.unwrap_or_default().as_secs(),
                self.spec.places.config_file().display()
            ),
        )
    }

    fn too_quiet(&self) -> Error {
        Error::new(
            Kind::IdleTimeout,
            format!(
                "codex has neither printed nor recorded anything for {} s; the limit is \"idle_timeout_secs\" in {}",
                self.spec.config.idle_timeout.unwrap_or_default().as_secs(),
                self.spec.places.config_file().display()
            ),
        )
    }
}

/// The result of a turn, without its status.
pub(super) struct Concluded {
    pub(super) thread: Option<String>,
    /// The end that codex recorded.
    pub(super) end: Option<TurnEnd>,
    /// Whether the model did anything.
    pub(super) worked: bool,
    /// The number of lines that were too long to be held.
    pub(super) skipped: u64,
    pub(super) account: Account,
}

/// Why a turn is stopped early.
pub(super) enum StopCause {
    Cancelled,
    Limit(Error),
}

/// The time limits of a turn.
pub(super) struct Limits {
    turn: Option<Instant>,
    idle: Option<Duration>,
    active_at: Instant,
}

impl Limits {
    /// Those of a turn that begins now.
    pub(super) fn new(spec: &TurnSpec<'_>) -> Limits {
        let now = Instant::now();
        Limits {
            turn: (spec.config.turn_timeout).and_then(|limit| now.checked_add(limit)),
            idle: spec.config.idle_timeout,
            active_at: now,
        }
    }

    /// Notes that codex has printed or recorded something.
    pub(super) fn note_activity(&mut self) {
        self.active_at = Instant::now();
    }

    /// The next deadline. While something `is_running` the idle limit does not apply.
    pub(super) fn next(&self, is_running: bool) -> Option<Instant> {
        let idle = self.idle.filter(|_| !is_running);
        let idle = idle.and_then(|limit| self.active_at.checked_add(limit));
        self.turn.into_iter().chain(idle).min()
    }

    /// The error for the limit that was reached.
    pub(super) fn error(&self, reporter: &Reporter<'_>) -> Error {
        match self.turn {
            Some(limit) if Instant::now() >= limit => reporter.too_long(),
            _ => reporter.too_quiet(),
        }
    }
}

/// Warns of a completed turn without any output.
pub(super) fn warn_of_silence(skipped: u64, emitter: &mut Emitter<'_>) {
    if emitter.texts == 0 && emitter.calls == 0 {
        emitter.warn(&match skipped {
            0 => "codex completed the turn without any text or tool call".to_owned(),
            _ => format!("the turn has no text: it was in one of the {skipped} skipped lines, and codex has not recorded it"),
        });
    }
}

/// The status of a turn whose end codex did not print, by the end that it recorded.
pub(super) fn status_of_silent_end(
    end: Option<TurnEnd>,
    exit: &Exit,
    last_error: Option<&str>,
    emitter: &mut Emitter<'_>,
) -> TurnStatus {
    let how = match end {
        // A failed turn is recorded as complete, too, but without a last message.
        Some(TurnEnd::Completed(last)) if last.is_some() || emitter.texts > 0 => {
            emitter.warn(
                "codex recorded the end of the turn but did not print it; the recorded output is reported",
            );
            return TurnStatus::Completed;
        }
        Some(TurnEnd::Completed(_)) => {
            "recorded the end of the turn, without a message,".to_owned()
        }
        Some(TurnEnd::Aborted(reason)) => {
            format!("recorded that the turn was aborted ({reason:?}),")
        }
        None => return TurnStatus::Failed(failure::from_exit(exit, last_error)),
    };
    TurnStatus::Failed(match last_error {
        Some(_) => failure::from_exit(exit, last_error),
        None => Error::new(
            Kind::CodexFailed,
            format!(
                "codex {how} but did not print it, and ended with {}",
                exit.describe()
            ),
        ),
    })
}

/// The outcome of a turn. A failed one gets the time when it can be retried; `message` is codex's message of the
/// failure.
pub(super) fn outcome(
    spec: &TurnSpec<'_>,
    status: TurnStatus,
    message: Option<&str>,
    account: Account,
    thread: Option<String>,
) -> Outcome {
    let status = match status {
        TurnStatus::Failed(error) => {
            let at = retry_at(spec, &error, message, &account.telemetry, thread.as_deref());
            TurnStatus::Failed(error.with_retry_at(at))
        }
        other => other,
    };
    Outcome {
        status,
        thread,
        account,
    }
}

/// When a failed turn can be retried: the account's rate limits tell it to the second, codex's message to the minute.
fn retry_at(
    spec: &TurnSpec<'_>,
    error: &Error,
    message: Option<&str>,
    telemetry: &Telemetry,
    thread: Option<&str>,
) -> Option<u64> {
    if !matches!(
        error.kind(),
        Kind::UsageLimit | Kind::Overloaded | Kind::TurnFailed
    ) {
        return None;
    }
    let limits = telemetry.rate_limits.as_ref();
    let reached = limits.into_iter().flat_map(|limits| {
        let windows = limits.primary.iter().chain(&limits.secondary);
        windows.filter(|window| window.used_percent >= 100.0)
    });
    // Both windows have to be reset.
    let resets = reached.filter_map(|window| window.resets_at).max();
    if error.kind() == Kind::UsageLimit && resets.is_some() {
        return resets;
    }
    let home = spec.places.codex_home(spec.config);
    let rollout = thread.and_then(|thread| home::find_rollout(&home, thread).ok()?);
    let offset = rollout.and_then(|path| home::local_offset(&path));
    failure::retry_at(message?, now() / 1000, offset)
}

/// Describes a step for the log, which must not contain commands, queries or arguments.
fn outline(step: &Step) -> String {
    let what = match &step.what {
        StepKind::Command(_) => "a command",
        StepKind::Tool(server, tool) => &format!("the tool {server}.{tool}"),
        StepKind::Files(_) => "a change of files",
        StepKind::Search(_) => "a search",
        StepKind::Other(kind) => kind,
    };
    let state = match step.state {
        StepState::Running => "begins",
        StepState::Done => "is done",
        StepState::Failed(Some(code)) => &format!("failed with {code}"),
        StepState::Failed(None) => "failed",
    };
    format!("{what} {state} ({})", step.key)
}
