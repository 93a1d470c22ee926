//! One run of codex for a turn: from its start to its end, everything it says told on the way.
//!
//! A turn has one attempt, or two when codex no longer knows the stored thread and a new one takes over.

use super::child::{Child, Next, OutputLine};
use super::command::{self, CodexCommand, TurnArgs};
use super::system;
use super::translate::{Translator, TurnOutcome, Update};
use crate::backend::emitter::{Emitter, Step, StepKind, StepState};
use crate::backend::recording::{Recording, TICK, Unprinted, now, tell};
use crate::backend::{Outcome, TurnSpec, TurnStatus};
use crate::canonical::{PlanItem, Status, Telemetry, TurnEvent};
use crate::codex::failure::{self, Exit};
use crate::codex::home;
use crate::error::{Error, Kind, Result, is_exhausted};
use crate::mcp::Bridge;
use crate::os::CancelToken;
use crate::rollout::record::TurnEnd;
use crate::shell;
use serde_json::json;
use std::collections::HashSet;
use std::io;
use std::time::{Duration, Instant};

/// How long codex may take to end after it said that the turn is over: it still shuts down its MCP servers.
const AFTER_VERDICT: Duration = Duration::from_secs(10);

/// How often while a tool call waits for its event.
const HELD_TICK: Duration = Duration::from_millis(3);
/// How long a printed to-do list waits for its record.
const PLAN_WAIT: Duration = Duration::from_millis(150);
/// So many warnings of codex, and lines that are not events, are told as warnings in a turn; the rest at `debug`.
const MAX_TROUBLES: u64 = 20;

/// A turn by one `codex exec`.
pub(super) struct Run<'a> {
    pub(super) spec: &'a TurnSpec<'a>,
}

/// Why codex is being ended before it is done.
enum StopCause {
    Cancelled,
    Limit(Error),
}

impl Run<'_> {
    /// Runs codex and tells what it says.
    ///
    /// # Errors
    /// codex could not be started; nothing was told then.
    pub(super) fn run(&self, cancel: &CancelToken, emitter: &mut Emitter<'_>) -> Result<Outcome> {
        if cancel.is_cancelled() {
            return Ok(Outcome::not_started(TurnStatus::Cancelled));
        }
        let recording = Recording::new(self.spec, cancel);
        // Reading back may have taken a while.
        if cancel.is_cancelled() {
            return Ok(Outcome::not_started(TurnStatus::Cancelled));
        }
        let command = self.command(cancel, emitter)?;
        let mut state = RunState::new(recording, cancel);
        state.recording.begin();
        let mut child = Child::start(&command, self.spec.lock)?;
        if let Some(bridge) = self.spec.tools {
            bridge.admit_below(child.guard_pid());
            child.wake_by(bridge.called());
        }
        cancel.attach(child.pidfd());
        let stopped = self.listen(&mut child, &mut state, cancel, emitter);
        let exit = child.exit();
        if let Some(bridge) = self.spec.tools {
            bridge.admit_nobody();
        }
        state.recording.search_now();
        if let Some(errno) = exit.spawn_error {
            return Err(self.not_started(errno));
        }
        emitter.debug(&format!("codex has ended: {}", exit.describe()));
        self.tell_rest(&mut state, emitter);
        Ok(self.conclude(state, stopped, &exit, emitter))
    }

    /// The command line, as long as codex would take it.
    fn command(&self, cancel: &CancelToken, emitter: &mut Emitter<'_>) -> Result<CodexCommand> {
        let spec = self.spec;
        let command = command::build(
            spec.program,
            spec.config,
            spec.places,
            &TurnArgs {
                thread: spec.thread,
                model: spec.model,
                system: spec.system,
                system_in_thread: self.system_in_thread(cancel),
                images: spec.images,
                schema: spec.output_schema,
                reasoning_effort: spec.reasoning_effort,
                prompt: &spec.prompt,
                tool_args: &spec.tools.map(Bridge::codex_args).unwrap_or_default(),
                workspace: spec.workspace,
            },
        );
        crate::codex::check_prompt_length(command.stdin.as_deref().unwrap_or_default())?;
        for warning in &command.warnings {
            emitter.warn(warning);
        }
        emitter.debug(&format!(
            "starting '{}' {}",
            spec.program.display(),
            if spec.thread.is_some() {
                "to go on with a thread"
            } else {
                "with a new thread"
            }
        ));
        Ok(command)
    }

    /// Tells what is left once codex has ended.
    fn tell_rest(&self, state: &mut RunState<'_>, emitter: &mut Emitter<'_>) {
        let unprinted = match state.translator.verdict() {
            None => Unprinted::End,
            Some(_) if state.skipped > 0 => Unprinted::Some,
            Some(_) => Unprinted::Nothing,
        };
        state.recording.emit_remaining(unprinted, emitter);
        if let Some(more @ 1..) = state.troubles.checked_sub(MAX_TROUBLES) {
            emitter.warn(&format!(
                "codex: {more} more warnings and lines that are not events; they are told at 'debug'"
            ));
        }
        // A codex home that is a copy: its index leads codex to the rollout of the original (0.135 to 0.169).
        if state.has_steps && state.recording.is_silent() {
            emitter.warn(&format!(
                "codex has recorded nothing of the turn where the thread's rollout is, and its tool calls cannot be told: the codex home may be a copy of another; 'plexum-openai doctor -w {}' helps",
                shell::quote_path(&self.spec.workspace.to_string_lossy())
            ));
        }
    }

    /// What came of it all.
    fn conclude(
        &self,
        state: RunState<'_>,
        stopped: Option<StopCause>,
        exit: &Exit,
        emitter: &mut Emitter<'_>,
    ) -> Outcome {
        let RunState {
            translator,
            recording,
            worked,
            skipped,
            ..
        } = state;
        let totals = match translator.verdict() {
            Some(TurnOutcome::Completed(Some(totals))) => Some(totals.usage()),
            _ => None,
        };
        let thread = recording.thread().map(str::to_owned);
        let end = recording.end().cloned();
        let account = recording.account(totals, emitter);
        let refusal = match (self.spec.thread, translator.verdict()) {
            (Some(_), None) if thread.is_none() => failure::refusal_of_exit(exit),
            (Some(_), Some(TurnOutcome::Failed(message))) if !worked => {
                failure::refusal_of_message(message)
            }
            _ => None,
        };
        let status = match (translator.verdict(), stopped) {
            // What came first counts: a turn that was complete is complete.
            (_, Some(StopCause::Cancelled)) => TurnStatus::Cancelled,
            (_, Some(StopCause::Limit(error))) => TurnStatus::Failed(error),
            (Some(TurnOutcome::Completed(_)), None) => {
                warn_of_completion(exit, skipped, emitter);
                TurnStatus::Completed
            }
            (_, None) if refusal.is_some() => {
                TurnStatus::Refused(refusal.expect("the guard has seen it"))
            }
            (Some(TurnOutcome::Failed(message)), None) => {
                TurnStatus::Failed(failure::from_message(message))
            }
            (None, None) => status_of_silent_end(end, exit, translator.last_error(), emitter),
        };
        let status = match status {
            TurnStatus::Failed(error) => {
                let said = match translator.verdict() {
                    Some(TurnOutcome::Failed(message)) => Some(message.as_str()),
                    _ => translator.last_error(),
                };
                let retry_at = retry_at(
                    self.spec,
                    &error,
                    said,
                    &account.telemetry,
                    thread.as_deref(),
                );
                TurnStatus::Failed(error.with_retry_at(retry_at))
            }
            other => other,
        };
        Outcome {
            status,
            thread,
            account,
        }
    }

    /// Reads codex to its end. Says why it was cut short, if it was.
    fn listen(
        &self,
        child: &mut Child,
        state: &mut RunState<'_>,
        cancel: &CancelToken,
        emitter: &mut Emitter<'_>,
    ) -> Option<StopCause> {
        let config = self.spec.config;
        let begun = Instant::now();
        let turn_limit = config
            .turn_timeout
            .and_then(|limit| begun.checked_add(limit));
        let mut quiet_since = begun;
        let mut cut = None;
        loop {
            let idle_limit = config
                .idle_timeout
                .and_then(|limit| quiet_since.checked_add(limit));
            // While codex waits for a call that it has recorded, the only limit is the turn's own.
            let is_reported_open = !state.open.is_empty();
            let running = state.recording.is_running(is_reported_open);
            let is_over = state.recording.end().is_some();
            if is_over && cut.is_none() {
                // It may still print the end, and may as well never do it.
                child.expect_end_within(AFTER_VERDICT);
            }
            let limit = match (&cut, state.translator.verdict()) {
                (None, None) if !is_over => turn_limit
                    .into_iter()
                    .chain(idle_limit.filter(|_| !running))
                    .min(),
                _ => None,
            };
            let pause = match emitter.sink.holds_calls() {
                true => HELD_TICK,
                false => TICK,
            };
            let tick = (state.recording.thread().is_some() && cut.is_none())
                .then(|| Instant::now() + pause);
            let deadline = limit.into_iter().chain(tick).min();
            match child.next(cancel, deadline) {
                Next::Line => {
                    // What codex goes on to say while it is being ended was not waited for: a daemon that does
                    // not read would have it pile up here.
                    let wanted = cut.is_none();
                    while let Some(line) = child.line() {
                        self.handle_line(line, wanted, state, emitter);
                    }
                    emitter.flush();
                    // Not before: a daemon that does not read holds this up, and codex with it.
                    quiet_since = Instant::now();
                    if state.translator.verdict().is_some() {
                        child.expect_end_within(AFTER_VERDICT);
                    }
                }
                Next::Cancelled => {
                    if state.translator.verdict().is_none() {
                        emitter.debug("the turn is cancelled: codex is being ended");
                        cut = cut.or(Some(StopCause::Cancelled));
                    }
                    child.end();
                }
                // A call of one of the daemon's tools: its record is there, or about to be.
                Next::Woken => {
                    state.recording.follow(emitter);
                }
                Next::Deadline if limit.is_none_or(|limit| Instant::now() < limit) => {
                    if state.recording.follow(emitter) {
                        quiet_since = Instant::now();
                    }
                    emitter.flush();
                }
                Next::Deadline => {
                    let error = if turn_limit.is_some_and(|limit| Instant::now() >= limit) {
                        self.too_long(config.turn_timeout)
                    } else {
                        self.too_quiet(config.idle_timeout)
                    };
                    emitter.debug("a limit is reached: codex is being ended");
                    cut = Some(StopCause::Limit(error));
                    child.end();
                }
                Next::Ended => return cut,
            }
        }
    }

    /// Takes in what a line says, and tells it where it is `wanted`.
    fn handle_line(
        &self,
        line: OutputLine<'_>,
        wanted: bool,
        state: &mut RunState<'_>,
        emitter: &mut Emitter<'_>,
    ) {
        let line = match line {
            OutputLine::Whole(line) => line,
            OutputLine::Skipped(length) => {
                state.skipped += 1;
                emitter.start();
                emitter.warn(&format!(
                    "codex printed a line of {length} bytes, more than can be held; it is skipped"
                ));
                return;
            }
        };
        let said = state.translator.line(line);
        emitter.start();
        state.has_steps |= matches!(said, Update::Step(_));
        state.worked |= matches!(
            said,
            Update::Text(_) | Update::Thinking(_) | Update::Step(_) | Update::Plan(_)
        );
        match said {
            Update::Thread(id) => self.handle_thread(&id, state, emitter),
            _ if !wanted => {}
            Update::Text(text) => {
                state.recording.emit_calls_recorded_before(&text, emitter);
                emitter.text(&text);
                state.recording.set_last_text(&text);
            }
            Update::Thinking(text) => {
                if self.spec.config.reasoning_events && !text.is_empty() {
                    state.recording.follow(emitter);
                    emitter.event(&TurnEvent::ThinkingDelta { text });
                }
            }
            Update::Step(step) => {
                emitter.debug(&outline(&step));
                emitter.sink.step(&step);
                self.handle_step(&step, state, emitter);
            }
            Update::Plan(items) => self.handle_plan(items, state, emitter),
            Update::Trouble(message) => {
                if failure::is_retry(&message) {
                    emitter.status(Status::Retrying, Some(&message));
                }
                state.troubles += 1;
                let message = format!("codex: {message}");
                match state.troubles <= MAX_TROUBLES {
                    true => emitter.warn(&message),
                    false => emitter.debug(&message),
                }
            }
            Update::Nothing(what) => log::debug!("skipped: {what}"),
            Update::End => {}
        }
    }

    /// codex says which thread it works on: checks that it is the one asked for, and stores a new one.
    fn handle_thread(&self, id: &str, state: &mut RunState<'_>, emitter: &mut Emitter<'_>) {
        if !home::is_thread_id(id) {
            emitter.warn(&format!(
                "codex named a thread {id:?}, which is not a thread id; it is not stored"
            ));
            return;
        }
        let id = id.to_ascii_lowercase();
        if let Some(first) = state.recording.thread() {
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
        state.recording.set_thread(&id);
    }

    /// Does the model still see the whole of a system text that had to stand in a prompt?
    fn system_in_thread(&self, cancel: &CancelToken) -> bool {
        let (Some(thread), Some(text)) = (self.spec.thread, self.spec.system) else {
            return false;
        };
        if command::system_can_be_argument(text) {
            return false;
        }
        let home = self.spec.places.codex_home(self.spec.config);
        // One that cannot be read will be told of by who follows it; the text twice is better than never.
        home::find_rollout(&home, thread)
            .ok()
            .flatten()
            .and_then(|path| system::is_in_view(&path, text, cancel).ok())
            .unwrap_or(false)
    }

    /// codex prints its to-do list, which it does again when the turn ends. What is in progress it only records.
    fn handle_plan(
        &self,
        items: Vec<PlanItem>,
        state: &mut RunState<'_>,
        emitter: &mut Emitter<'_>,
    ) {
        let is_done = |item: &PlanItem| item.status == "completed";
        let deadline = Instant::now() + PLAN_WAIT;
        let items = loop {
            state.recording.follow(emitter);
            let recorded = state.recording.plan();
            let is_same = recorded.len() == items.len()
                && recorded.iter().zip(&items).all(|(recorded, item)| {
                    recorded.text == item.text && is_done(recorded) == is_done(item)
                });
            if is_same {
                break recorded.to_vec();
            }
            // Within code mode it is not recorded at all.
            if Instant::now() >= deadline || state.cancel.is_cancelled() {
                break items;
            }
            crate::os::wait_for(&state.cancel, Duration::from_millis(3));
        };
        if state.plan.as_ref() != Some(&items) {
            emitter.event(&TurnEvent::Plan { items: &items });
            state.plan = Some(items);
        }
    }

    /// Keeps track of what codex has reported as begun and not as over.
    fn handle_step(&self, step: &Step, state: &mut RunState<'_>, emitter: &mut Emitter<'_>) {
        if step.what == StepKind::Other("collab_tool_call".to_owned()) {
            state.recording.expect_agents();
        }
        if step.state == StepState::Running {
            state.open.insert(step.key.clone());
            return;
        }
        state.open.remove(&step.key);
        if let StepKind::Search(query) = &step.what {
            self.emit_search(step, query, state, emitter);
        }
        if state.open.is_empty() {
            // What is recorded by now was begun before.
            state.recording.follow(emitter);
            state.recording.all_reported_over();
        }
    }

    /// Tells a web search, which is not a call that codex records with its output: the provider makes it.
    fn emit_search(
        &self,
        step: &Step,
        query: &str,
        state: &mut RunState<'_>,
        emitter: &mut Emitter<'_>,
    ) {
        // codex's own id of it stands behind that of the item, under the same key.
        if step.key.is_empty() || !state.searches.insert(step.key.clone()) {
            return;
        }
        state.recording.follow(emitter);
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

    fn not_started(&self, errno: i32) -> Error {
        let error = io::Error::from_raw_os_error(errno);
        let hint = format!(
            "set \"binary\" in {}",
            self.spec.places.config_file().display()
        );
        let what = format!("cannot start codex '{}'", self.spec.program.display());
        match rustix::io::Errno::from_raw_os_error(errno) {
            rustix::io::Errno::NOENT => Error::new(
                Kind::CodexMissing,
                format!("{what}: it, or the interpreter that it needs, is not there"),
            )
            .hint(hint),
            _ if is_exhausted(&error) => Error::os(Kind::CodexFailed, what, error),
            rustix::io::Errno::TOOBIG => Error::os(Kind::CodexFailed, what, error)
                .hint("shorten \"extra_args\" or \"env\" in the config"),
            _ => Error::os(Kind::CodexMissing, what, error).hint(hint),
        }
    }

    fn too_long(&self, limit: Option<Duration>) -> Error {
        Error::new(
            Kind::TurnTimeout,
            format!(
                "the turn took longer than {} s; \"turn_timeout_secs\" in {} is the limit",
                limit.unwrap_or_default().as_secs(),
                self.spec.places.config_file().display()
            ),
        )
    }

    fn too_quiet(&self, limit: Option<Duration>) -> Error {
        Error::new(
            Kind::IdleTimeout,
            format!(
                "codex has neither printed nor recorded anything for {} s; \"idle_timeout_secs\" in {} is the limit",
                limit.unwrap_or_default().as_secs(),
                self.spec.places.config_file().display()
            ),
        )
    }
}

/// What codex has said so far.
struct RunState<'a> {
    translator: Translator,
    recording: Recording<'a>,
    /// Did the model do anything?
    worked: bool,
    /// It said that it does something.
    has_steps: bool,
    /// How many warnings it gave, lines that are not events among them.
    troubles: u64,
    /// The items that codex has reported as begun and not as over.
    open: HashSet<String>,
    /// The web searches that were told.
    searches: HashSet<String>,
    /// How many lines were too long.
    skipped: u64,
    /// The to-do list that was told last.
    plan: Option<Vec<PlanItem>>,
    cancel: CancelToken,
}

impl<'a> RunState<'a> {
    fn new(recording: Recording<'a>, cancel: &CancelToken) -> RunState<'a> {
        RunState {
            translator: Translator::default(),
            recording,
            worked: false,
            has_steps: false,
            troubles: 0,
            open: HashSet::new(),
            searches: HashSet::new(),
            skipped: 0,
            plan: None,
            cancel: cancel.clone(),
        }
    }
}

/// What is odd about a turn that was complete.
fn warn_of_completion(exit: &Exit, skipped: u64, emitter: &mut Emitter<'_>) {
    if !exit.status.success() {
        emitter.warn(&format!(
            "codex completed the turn, and then ended with {}",
            exit.describe()
        ));
    }
    if emitter.texts == 0 && emitter.calls == 0 {
        emitter.warn(&match skipped {
            0 => "codex completed the turn without any text and any tool call".to_owned(),
            _ => format!("the turn has no text: it was in one of the lines that are skipped ({skipped}), and codex has not recorded it"),
        });
    }
}

/// How a turn ended of which codex printed no end: as it recorded it.
fn status_of_silent_end(
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

/// From when on the turn can succeed that failed so: the account's limits say it to the second, codex's message
/// to the minute.
pub(in crate::backend) fn retry_at(
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
