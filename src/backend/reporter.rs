//! Emits what codex reports of a running turn: texts, steps, plans and trouble from what it
//! prints, tool calls from what it records, each in its place. The same whichever way codex is run.

use super::emitter::{Emitter, Step, StepKind, StepState};
use super::recording::{Recording, Unprinted, now, tell};
use super::{Account, TurnSpec, TurnStatus};
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

/// So many warnings of codex, and lines that are not events, are emitted as warnings in a turn; the rest at `debug`.
const MAX_TROUBLES: u64 = 20;

/// What codex says where it cannot write into a rollout (0.135.0 to 0.169.0).
const UNRECORDED: &str = "Failed to save the conversation transcript";

/// How often the rollout is looked at while a tool call waits for its event.
const HELD_TICK: Duration = Duration::from_millis(3);

/// Tells what codex says and records of a turn.
pub(super) struct Reporter<'a> {
    spec: &'a TurnSpec<'a>,
    pub(super) recording: Recording<'a>,
    /// Did the model do anything?
    pub(super) worked: bool,
    /// It said that it does something.
    has_steps: bool,
    /// How many warnings it gave, lines that are not events among them.
    troubles: u64,
    /// How many lines were too long to be held.
    skipped: u64,
    /// codex said that it cannot record anything: a full disk. It does so once there is room.
    is_unrecorded: bool,
    /// The items that codex has reported as begun and not as over.
    open: HashSet<String>,
    /// The web searches that were emitted.
    searches: HashSet<String>,
    /// The to-do list that was emitted last.
    plan: Option<Vec<PlanItem>>,
}

impl<'a> Reporter<'a> {
    /// Reading back what the thread has recorded may take a while.
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

    /// How long to wait at once for codex to say something before what it has recorded is looked at.
    pub(super) fn tick(emitter: &Emitter<'_>) -> Duration {
        match emitter.sink.holds_calls() {
            true => HELD_TICK,
            false => super::recording::TICK,
        }
    }

    /// Is something running that codex has reported or recorded as begun? Then silence is no sign of a hang.
    pub(super) fn is_running(&self) -> bool {
        self.recording.is_running(!self.open.is_empty())
    }

    /// codex says which thread it works on: checks that it is the one asked for, and stores a new one.
    pub(super) fn thread(&mut self, id: &str, emitter: &mut Emitter<'_>) {
        if !home::is_thread_id(id) {
            emitter.warn(&format!(
                "codex named a thread {id:?}, which is not a thread id; it is not stored"
            ));
            return;
        }
        let id = id.to_ascii_lowercase();
        if let Some(first) = self.recording.thread() {
            if first != id {
                emitter.warn(&format!(
                    "codex named a second thread, {id}, after {first}; it is not stored"
                ));
            }
            return;
        }
        match self.spec.thread {
            Some(asked) if asked != id => {
                emitter.warn(&format!(
                    "codex works on the thread {id}, though {asked} was asked for; the stored id is kept"
                ));
            }
            _ => {
                for warning in (self.spec.on_thread)(&id) {
                    emitter.warn(&warning);
                }
            }
        }
        emitter.debug(&format!("codex works on thread {id}"));
        self.recording.set_thread(&id);
    }

    /// A whole message of the assistant.
    pub(super) fn text(&mut self, text: &str, emitter: &mut Emitter<'_>) {
        self.worked = true;
        self.recording.emit_calls_recorded_before(text, emitter);
        emitter.text(text);
        self.recording.set_last_text(text);
    }

    /// Something that the model thought, or a piece of it. What follows a whole one is another thought.
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

    /// The to-do list, perhaps as it was.
    pub(super) fn plan(&mut self, items: Vec<PlanItem>, emitter: &mut Emitter<'_>) {
        self.worked = true;
        if self.plan.as_ref() != Some(&items) {
            emitter.event(&TurnEvent::Plan { items: &items });
            self.plan = Some(items);
        }
    }

    /// codex is in trouble and goes on: a reconnect, a warning.
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

    /// codex has printed a line of so many bytes, more than can be held.
    pub(super) fn skipped_line(&mut self, length: u64, emitter: &mut Emitter<'_>) {
        self.skipped += 1;
        emitter.start();
        emitter.warn(&format!(
            "codex printed a line of {length} bytes, more than can be held; it is skipped"
        ));
    }

    /// A step of codex's work begins or is over.
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
            // What is recorded by now was begun before.
            self.recording.follow(emitter);
            self.recording.all_reported_over();
        }
    }

    /// Tells a web search, which is not a call that codex records with its output: the provider makes it.
    fn search(&mut self, step: &Step, query: &str, emitter: &mut Emitter<'_>) {
        // codex's own id of it stands behind that of the item, under the same key.
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
            tell(
                event.to_string().as_bytes(),
                self.spec.config.tool_events,
                emitter,
            );
        }
    }

    /// Tells what is left once codex is done with the turn; `has_end`: it has said how that ended.
    pub(super) fn rest(&mut self, has_end: bool, emitter: &mut Emitter<'_>) {
        let unprinted = match (has_end, self.skipped) {
            (false, _) => Unprinted::End,
            (true, 0) => Unprinted::Nothing,
            (true, _) => Unprinted::Some,
        };
        self.recording.search_now();
        self.recording.emit_remaining(unprinted, emitter);
        if let Some(more @ 1..) = self.troubles.checked_sub(MAX_TROUBLES) {
            emitter.warn(&format!(
                "codex: {more} more warnings and lines that are not events; they are told at 'debug'"
            ));
        }
        // A codex home that is a copy: its index leads codex to the rollout of the original (0.135 to 0.169).
        if self.has_steps && self.recording.is_silent() && !self.is_unrecorded {
            emitter.warn(&format!(
                "codex has recorded nothing of the turn where the thread's rollout is, and its tool calls cannot be told: the codex home may be a copy of another; 'plexum-openai doctor -w {}' helps",
                shell::quote_path(&self.spec.workspace.to_string_lossy())
            ));
        }
    }

    /// What the turn came to, beside its status. `totals` is what codex has reported of the thread at its end.
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
                "the turn took longer than {} s; \"turn_timeout_secs\" in {} is the limit",
                self.spec.config.turn_timeout.unwrap_or_default().as_secs(),
                self.spec.places.config_file().display()
            ),
        )
    }

    fn too_quiet(&self) -> Error {
        Error::new(
            Kind::IdleTimeout,
            format!(
                "codex has neither printed nor recorded anything for {} s; \"idle_timeout_secs\" in {} is the limit",
                self.spec.config.idle_timeout.unwrap_or_default().as_secs(),
                self.spec.places.config_file().display()
            ),
        )
    }
}

/// What a turn came to.
pub(super) struct Concluded {
    pub(super) thread: Option<String>,
    /// How codex recorded that it ended.
    pub(super) end: Option<TurnEnd>,
    /// Did the model do anything?
    pub(super) worked: bool,
    /// How many lines were too long to be held.
    pub(super) skipped: u64,
    pub(super) account: Account,
}

/// Why a turn is being ended before it is done.
pub(super) enum StopCause {
    Cancelled,
    Limit(Error),
}

/// When the limits of a turn are reached.
pub(super) struct Limits {
    turn: Option<Instant>,
    idle: Option<Duration>,
    quiet_since: Instant,
}

impl Limits {
    /// Those of a turn that begins now.
    pub(super) fn new(spec: &TurnSpec<'_>) -> Limits {
        let now = Instant::now();
        Limits {
            turn: (spec.config.turn_timeout).and_then(|limit| now.checked_add(limit)),
            idle: spec.config.idle_timeout,
            quiet_since: now,
        }
    }

    /// codex has said or recorded something.
    pub(super) fn heard(&mut self) {
        self.quiet_since = Instant::now();
    }

    /// The next of them. While codex `is_running` something the only limit is the turn's own.
    pub(super) fn next(&self, is_running: bool) -> Option<Instant> {
        let idle = self.idle.filter(|_| !is_running);
        let idle = idle.and_then(|limit| self.quiet_since.checked_add(limit));
        self.turn.into_iter().chain(idle).min()
    }

    /// Which of them is reached, one being reached.
    pub(super) fn error(&self, reporter: &Reporter<'_>) -> Error {
        match self.turn {
            Some(limit) if Instant::now() >= limit => reporter.too_long(),
            _ => reporter.too_quiet(),
        }
    }
}

/// Warns of a turn that was complete and said nothing.
pub(super) fn warn_of_silence(skipped: u64, emitter: &mut Emitter<'_>) {
    if emitter.texts == 0 && emitter.calls == 0 {
        emitter.warn(&match skipped {
            0 => "codex completed the turn without any text and any tool call".to_owned(),
            _ => format!("the turn has no text: it was in one of the lines that are skipped ({skipped}), and codex has not recorded it"),
        });
    }
}

/// How a turn ended of which codex printed no end: as it recorded it.
pub(super) fn status_of_silent_end(
    end: Option<TurnEnd>,
    exit: &Exit,
    last_error: Option<&str>,
    emitter: &mut Emitter<'_>,
) -> TurnStatus {
    let how = match end {
        // A turn that failed is recorded as complete, too, but without a last message.
        Some(TurnEnd::Completed(last)) if last.is_some() || emitter.texts > 0 => {
            emitter.warn(
                "codex recorded the end of the turn and did not print it; what it recorded is told",
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
                "codex {how} printed nothing of it, and ended with {}",
                exit.describe()
            ),
        ),
    })
}

/// The status with the time from which on a turn that failed so can succeed. `said` is what codex said of the failure.
pub(super) fn with_retry_at(
    spec: &TurnSpec<'_>,
    status: TurnStatus,
    said: Option<&str>,
    account: &Account,
    thread: Option<&str>,
) -> TurnStatus {
    match status {
        TurnStatus::Failed(error) => {
            let at = retry_at(spec, &error, said, &account.telemetry, thread);
            TurnStatus::Failed(error.with_retry_at(at))
        }
        other => other,
    }
}

/// From when on the turn can succeed that failed so: the account's limits say it to the second, codex's message
/// to the minute.
fn retry_at(
    spec: &TurnSpec<'_>,
    error: &Error,
    said: Option<&str>,
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
    // All of them have to be over.
    let resets = reached.filter_map(|window| window.resets_at).max();
    if error.kind() == Kind::UsageLimit && resets.is_some() {
        return resets;
    }
    let home = spec.places.codex_home(spec.config);
    let rollout = thread.and_then(|thread| home::find_rollout(&home, thread).ok()?);
    let offset = rollout.and_then(|path| home::local_offset(&path));
    failure::retry_at(said?, now() / 1000, offset)
}

/// A step for the log, where no command, query or argument may stand.
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
