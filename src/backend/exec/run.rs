//! One run of codex for a turn: from its start to its end, everything it says told on the way.
//!
//! A turn has one attempt, or two when codex no longer knows the stored thread and a new one takes over.

use super::child::{Child, Next, OutputLine};
use super::command::{self, TurnArgs};
use super::system;
use super::translate::{Translator, TurnOutcome, Update};
use crate::backend::emitter::{Emitter, Step, StepKind, StepState};
use crate::backend::follow::{Recorded, RolloutFollower};
use crate::backend::{Account, Outcome, Tokens, TurnSpec, TurnStatus};
use crate::canonical::{PlanItem, Status, Telemetry, TurnEvent, TurnUsage};
use crate::codex::failure;
use crate::codex::home;
use crate::error::{Error, Kind, Result, is_exhausted};
use crate::mcp::Bridge;
use crate::os::CancelToken;
use crate::os::open_regular_file;
use crate::rollout::lines::Lines;
use crate::rollout::record::{self, TurnEnd};
use crate::shell;
use serde_json::json;
use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// How long codex may take to end after it said that the turn is over: it still shuts down its MCP servers.
const AFTER_VERDICT: Duration = Duration::from_secs(10);

/// How often a rollout is looked at that grows.
const TICK: Duration = Duration::from_millis(40);
/// How often while a tool call waits for its event.
const HELD_TICK: Duration = Duration::from_millis(3);
/// How long a printed text waits for its record, so that the calls before it are told before it.
const RECORD_WAIT: Duration = Duration::from_millis(300);
/// How long a printed to-do list waits for its record.
const PLAN_WAIT: Duration = Duration::from_millis(150);
/// After so many texts in a row without a record, none is waited for any more.
const MAX_UNMATCHED_TEXTS: u32 = 3;
/// How many sub-agents' rollouts are followed in a turn.
const MAX_AGENTS: usize = 64;
/// How long after a call that may have started a sub-agent its rollout is looked for.
const AGENT_WAIT: Duration = Duration::from_secs(3);
/// How often.
const AGENT_PAUSE: Duration = Duration::from_millis(150);
/// The longest first line of a rollout that is read: it holds codex's whole instructions.
const MAX_META: u64 = 4 << 20;
/// So many warnings of codex, and lines that are not events, are told as warnings in a turn; the rest at `debug`.
const MAX_TROUBLES: u64 = 20;
/// How much is still told of tool calls after a cancel, in bytes: a daemon that does not read has it pile up.
const MAX_AFTER_CANCEL: usize = 8 << 20;

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
        let (watch, trouble) = match self.watch_known(cancel) {
            Ok(watch) => (watch, None),
            Err(error) => (None, Some(error)),
        };
        // Reading back may have taken a while.
        if cancel.is_cancelled() {
            return Ok(Outcome::not_started(TurnStatus::Cancelled));
        }
        let config = self.spec.config;
        let invocation = command::build(
            self.spec.program,
            config,
            self.spec.places,
            &TurnArgs {
                thread: self.spec.thread,
                model: self.spec.model,
                system: self.spec.system,
                system_in_thread: self.system_in_thread(cancel),
                images: self.spec.images,
                schema: self.spec.output_schema,
                reasoning_effort: self.spec.reasoning_effort,
                prompt: &self.spec.prompt,
                tool_args: &self.spec.tools.map(Bridge::codex_args).unwrap_or_default(),
                workspace: self.spec.workspace,
            },
        );
        crate::codex::check_prompt_length(invocation.stdin.as_deref().unwrap_or_default())?;
        for warning in &invocation.warnings {
            emitter.warn(warning);
        }
        emitter.debug(&format!(
            "starting '{}' {}",
            self.spec.program.display(),
            if self.spec.thread.is_some() {
                "to go on with a thread"
            } else {
                "with a new thread"
            }
        ));
        let begun = now();
        let mut child = Child::start(&invocation, self.spec.lock)?;
        if let Some(bridge) = self.spec.tools {
            bridge.admit_below(child.guard_pid());
            child.wake_by(bridge.called());
        }
        cancel.attach(child.pidfd());
        let mut state = RunState {
            translator: Translator::default(),
            thread: None,
            worked: false,
            has_steps: false,
            troubles: 0,
            record: RolloutState {
                next_search: Instant::now(),
                pause: TICK,
                watch,
                begun,
                unmatched: 0,
                cancel: cancel.clone(),
            },
            open: HashSet::new(),
            searches: HashSet::new(),
            skipped: 0,
            plan: None,
            last_text: None,
            misprinted: 0,
            agents: Agents::default(),
            cancel: cancel.clone(),
        };
        let cut = self.listen(&mut child, &mut state, cancel, emitter);
        let exit = child.exit();
        if let Some(bridge) = self.spec.tools {
            bridge.admit_nobody();
        }
        state.record.next_search = Instant::now();
        self.find_record(&mut state);
        if let Some(errno) = exit.spawn_error {
            return Err(self.not_started(errno));
        }
        emitter.debug(&format!("codex has ended: {}", exit.describe()));
        self.emit_remaining(&mut state, cancel, emitter);
        let RunState {
            translator,
            thread,
            worked,
            has_steps,
            troubles,
            record,
            skipped,
            agents,
            ..
        } = state;
        let end = record.watch.as_ref().and_then(|watch| watch.end().cloned());
        let totals = match translator.verdict() {
            Some(TurnOutcome::Completed(Some(totals))) => Some(totals.usage()),
            _ => None,
        };
        let said = match translator.verdict() {
            Some(TurnOutcome::Failed(message)) => Some(message.as_str()),
            _ => translator.last_error(),
        };
        let telemetry = record.watch.as_ref().map(|watch| watch.telemetry().clone());
        if let Some(more @ 1..) = troubles.checked_sub(MAX_TROUBLES) {
            emitter.warn(&format!(
                "codex: {more} more warnings and lines that are not events; they are told at 'debug'"
            ));
        }
        // A codex home that is a copy: its index leads codex to the rollout of the original (0.135 to 0.169).
        if has_steps && record.watch.as_ref().is_some_and(|it| !it.has_grown()) {
            emitter.warn(&format!(
                "codex has recorded nothing of the turn where the thread's rollout is, and its tool calls cannot be told: the codex home may be a copy of another; 'plexum-openai doctor -w {}' helps",
                shell::quote_path(&self.spec.workspace.to_string_lossy())
            ));
        }
        let recorded = record.watch.and_then(|mut watch| watch.tokens(totals));
        let mut tokens = recorded.unwrap_or_else(|| {
            // What of that was used before is not known where the rollout could not be read.
            let turn = totals.filter(|_| trouble.is_none()).unwrap_or_default();
            Tokens {
                turn: TurnUsage::from(turn),
                thread: totals,
            }
        });
        for agent in &agents.followed {
            tokens.turn = tokens.turn.with_subagent(agent.used());
        }
        if let (None, Some(error), Some(_)) = (recorded, trouble, &thread) {
            emitter.warn(&format!(
                "the turn's tokens and tool calls cannot be told: {error}"
            ));
        }
        let refusal = match (self.spec.thread, translator.verdict()) {
            (Some(_), None) if thread.is_none() => failure::refusal_of_exit(&exit),
            (Some(_), Some(TurnOutcome::Failed(message))) if !worked => {
                failure::refusal_of_message(message)
            }
            _ => None,
        };
        let ended = match (translator.verdict(), cut) {
            // What came first counts: a turn that was complete is complete.
            (_, Some(StopCause::Cancelled)) => TurnStatus::Cancelled,
            (_, Some(StopCause::Limit(error))) => TurnStatus::Failed(error),
            (Some(TurnOutcome::Completed(_)), None) => {
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
                TurnStatus::Completed
            }
            (_, None) if refusal.is_some() => {
                TurnStatus::Refused(refusal.expect("the guard has seen it"))
            }
            (Some(TurnOutcome::Failed(message)), None) => {
                TurnStatus::Failed(failure::from_message(message))
            }
            (None, None) => match end {
                // A turn that failed is recorded as complete, too, but without a last message.
                Some(TurnEnd::Completed(last)) if last.is_some() || emitter.texts > 0 => {
                    emitter.warn("codex recorded the end of the turn and did not print it; what it recorded is told");
                    TurnStatus::Completed
                }
                Some(end) => {
                    let how = match end {
                        TurnEnd::Completed(_) => {
                            "recorded the end of the turn, without a message,".to_owned()
                        }
                        TurnEnd::Aborted(reason) => {
                            format!("recorded that the turn was aborted ({reason:?}),")
                        }
                    };
                    match translator.last_error() {
                        Some(_) => {
                            TurnStatus::Failed(failure::from_exit(&exit, translator.last_error()))
                        }
                        None => TurnStatus::Failed(Error::new(
                            Kind::CodexFailed,
                            format!(
                                "codex {how} printed nothing of it, and ended with {}",
                                exit.describe()
                            ),
                        )),
                    }
                }
                None => TurnStatus::Failed(failure::from_exit(&exit, translator.last_error())),
            },
        };
        let telemetry = telemetry.unwrap_or_default();
        let ended = match ended {
            TurnStatus::Failed(error) => {
                let retry_at = self.retry_at(&error, said, &telemetry, thread.as_deref());
                TurnStatus::Failed(error.with_retry_at(retry_at))
            }
            other => other,
        };
        Ok(Outcome {
            status: ended,
            thread,
            account: Account { tokens, telemetry },
        })
    }

    /// Reads codex to its end. Says why it was cut short, if it was.
    fn listen(
        &self,
        child: &mut Child,
        state: &mut RunState,
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
            let running = (state.record.watch.iter())
                .chain(&state.agents.followed)
                .any(|watch| watch.is_running(is_reported_open));
            let is_over = state
                .record
                .watch
                .as_ref()
                .is_some_and(|watch| watch.end().is_some());
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
            let tick = (state.thread.is_some() && cut.is_none()).then(|| Instant::now() + pause);
            let deadline = limit.into_iter().chain(tick).min();
            match child.next(cancel, deadline) {
                Next::Line => {
                    // What codex goes on to say while it is being ended was not waited for: a daemon that does
                    // not read would have it pile up here.
                    let wanted = cut.is_none();
                    while let Some(line) = child.line() {
                        self.handle_line(line, wanted, state, cancel, emitter);
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
                    self.follow(state, emitter);
                }
                Next::Deadline if limit.is_none_or(|limit| Instant::now() < limit) => {
                    if self.follow(state, emitter) {
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
        state: &mut RunState,
        cancel: &CancelToken,
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
                self.emit_calls_recorded_before(&text, state, cancel, emitter);
                emitter.text(&text);
                state.last_text = Some(text.trim().to_owned());
            }
            Update::Thinking(text) => {
                if self.spec.config.reasoning_events && !text.is_empty() {
                    self.follow(state, emitter);
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
    fn handle_thread(&self, id: &str, state: &mut RunState, emitter: &mut Emitter<'_>) {
        if !home::is_thread_id(id) {
            emitter.warn(&format!(
                "codex named a thread {id:?}, which is not a thread id; it is not stored"
            ));
            return;
        }
        let id = id.to_ascii_lowercase();
        if let Some(first) = &state.thread {
            if *first != id {
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
        state.thread = Some(id);
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

    /// The rollout of the thread that goes on, followed from its present end.
    ///
    /// # Errors
    /// [`Kind::Io`] where it cannot be read; it may be later, when codex has unpacked it.
    fn watch_known(&self, cancel: &CancelToken) -> Result<Option<RolloutFollower>> {
        let Some(thread) = self.spec.thread else {
            return Ok(None);
        };
        let home = self.spec.places.codex_home(self.spec.config);
        let Some(path) = home::find_rollout(&home, thread)? else {
            // codex will say what it makes of that.
            return Ok(None);
        };
        let watch = RolloutFollower::known_thread(&path, cancel).map_err(|error| {
            Error::os(Kind::Io, format!("cannot read '{}'", path.display()), error)
        })?;
        Ok(Some(watch.with_names(self.spec.tools.map(Bridge::names))))
    }

    /// Finds the rollout of a thread that codex has just begun or unpacked.
    fn find_record(&self, state: &mut RunState) {
        let (Some(thread), None) = (&state.thread, &state.record.watch) else {
            return;
        };
        if Instant::now() < state.record.next_search {
            return;
        }
        let home = self.spec.places.codex_home(self.spec.config);
        // codex makes it when there is something to record; an error now may be none the next time.
        if let Ok(Some(path)) = home::find_rollout(&home, thread) {
            let watch = match self.spec.thread {
                None => RolloutFollower::new_thread(&path, &state.record.cancel),
                Some(_) => RolloutFollower::late(&path, state.record.begun, &state.record.cancel),
            };
            let names = self.spec.tools.map(Bridge::names);
            state.record.watch = watch.ok().map(|watch| watch.with_names(names));
            // Late, but there: texts are worth a wait again.
            state.record.unmatched = 0;
        }
        state.record.next_search = Instant::now() + state.record.pause;
        state.record.pause = (state.record.pause * 2).min(Duration::from_secs(2));
    }

    /// codex prints its to-do list, which it does again when the turn ends. What is in progress it only records.
    fn handle_plan(&self, items: Vec<PlanItem>, state: &mut RunState, emitter: &mut Emitter<'_>) {
        let is_done = |item: &PlanItem| item.status == "completed";
        let deadline = Instant::now() + PLAN_WAIT;
        let items = loop {
            self.follow(state, emitter);
            let recorded = state
                .record
                .watch
                .as_ref()
                .map_or(&[][..], RolloutFollower::plan);
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
    fn handle_step(&self, step: &Step, state: &mut RunState, emitter: &mut Emitter<'_>) {
        if step.what == StepKind::Other("collab_tool_call".to_owned()) {
            state.agents.look_until = Some(Instant::now() + AGENT_WAIT);
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
            self.follow(state, emitter);
            for watch in state
                .record
                .watch
                .iter_mut()
                .chain(&mut state.agents.followed)
            {
                watch.all_reported_over();
            }
        }
    }

    /// Tells a web search, which is not a call that codex records with its output: the provider makes it.
    fn emit_search(
        &self,
        step: &Step,
        query: &str,
        state: &mut RunState,
        emitter: &mut Emitter<'_>,
    ) {
        // codex's own id of it stands behind that of the item, under the same key.
        if step.key.is_empty() || !state.searches.insert(step.key.clone()) {
            return;
        }
        self.follow(state, emitter);
        let input = json!({"query": query});
        let used =
            json!({"type": "tool_use", "id": step.key, "name": "web_search", "input": input});
        let is_error = matches!(step.state, StepState::Failed(_));
        let result =
            json!({"type": "tool_result", "id": step.key, "content": "", "is_error": is_error});
        for event in [used, result] {
            self.tell(event.to_string().as_bytes(), emitter);
        }
    }

    /// Tells what codex has recorded; says whether it had recorded anything.
    fn follow(&self, state: &mut RunState, emitter: &mut Emitter<'_>) -> bool {
        self.find_record(state);
        let Some(watch) = &mut state.record.watch else {
            return false;
        };
        let mut grown = self.take_from(watch, &state.cancel, emitter);
        if watch.has_spawned() {
            state.agents.look_until = Some(Instant::now() + AGENT_WAIT);
        }
        let now = Instant::now();
        if state.agents.look_until.is_some_and(|until| now < until) && now >= state.agents.next_look
        {
            state.agents.next_look = now + AGENT_PAUSE;
            self.find_agents(state, emitter);
        }
        for agent in &mut state.agents.followed {
            grown |= self.take_from(agent, &state.cancel, emitter);
            if agent.has_spawned() {
                state.agents.look_until = Some(Instant::now() + AGENT_WAIT);
            }
        }
        grown
    }

    /// Tells what a rollout has, as far as no text stands before it that codex will print.
    fn take_from(
        &self,
        watch: &mut RolloutFollower,
        cancel: &CancelToken,
        emitter: &mut Emitter<'_>,
    ) -> bool {
        let mut grown = false;
        loop {
            let has_more = watch.poll();
            grown |= has_more;
            let was_full = watch.is_full();
            let mut told = false;
            while let Some(recorded) = watch.next_before_text() {
                match recorded {
                    Recorded::Event(event) => self.tell(&event, emitter),
                    Recorded::Compacted => emitter.status(Status::Compacted, None),
                    Recorded::Text(..) => {}
                }
                told = true;
            }
            if told {
                emitter.flush();
            }
            // After a cancel nothing holds this up any more, and what the daemon does not take would pile up.
            if !was_full || watch.is_full() || cancel.is_cancelled() {
                return grown;
            }
        }
    }

    /// Finds the rollouts of sub-agents that this turn has started: each names the thread that started it.
    fn find_agents(&self, state: &mut RunState, emitter: &mut Emitter<'_>) {
        let Some(main) = &state.thread else { return };
        let home = self.spec.places.codex_home(self.spec.config);
        let agents = &mut state.agents;
        // A sub-agent's sub-agent is only known once its parent is.
        let mut candidates = home::rollouts_since(&home, main, state.record.begun);
        candidates.sort_unstable();
        for (thread, path) in candidates {
            if thread == *main || agents.seen.contains(&thread) {
                continue;
            }
            let Some(origin) = first_line(&path).and_then(|line| record::origin(&line)) else {
                // It is not whole yet.
                continue;
            };
            let is_ours = origin.parent.as_ref().is_some_and(|parent| {
                parent == main
                    || agents.threads.contains(parent)
                    || origin.session.as_ref() == Some(main)
            });
            if !is_ours {
                // A parent that is not known can only be one that comes later in the order of ids, which is none.
                agents.seen.insert(thread);
                continue;
            }
            if agents.followed.len() == MAX_AGENTS {
                if !std::mem::replace(&mut agents.is_over_limit, true) {
                    emitter.warn(&format!(
                        "the turn has more than {MAX_AGENTS} sub-agents; the calls and tokens of the others are not told"
                    ));
                }
                return;
            }
            agents.seen.insert(thread.clone());
            match RolloutFollower::sub_agent(&path, &thread, state.record.begun, &state.cancel) {
                Ok(watch) => {
                    let names = self.spec.tools.map(Bridge::names);
                    agents.followed.push(watch.with_names(names));
                }
                Err(error) => emitter.warn(&format!(
                    "the calls and tokens of the sub-agent {thread} cannot be told: cannot read '{}': {}",
                    path.display(),
                    crate::error::reason(&error)
                )),
            }
            agents.threads.insert(thread);
        }
    }

    /// Tells everything that is recorded and was not told, the turn being over; texts only where codex has not
    /// printed them.
    fn emit_remaining(
        &self,
        state: &mut RunState,
        cancel: &CancelToken,
        emitter: &mut Emitter<'_>,
    ) {
        self.find_agents(state, emitter);
        let has_verdict = state.translator.verdict().is_some();
        let mut left_out = 0u64;
        let mut told = 0;
        let (watch, agents) = (&mut state.record.watch, &mut state.agents.followed);
        for (at, watch) in watch.iter_mut().chain(agents).enumerate() {
            let mut tell = |event: &[u8], emitter: &mut Emitter<'_>| {
                told += event.len();
                if cancel.is_cancelled() && told > MAX_AFTER_CANCEL {
                    left_out += 1;
                } else {
                    self.tell(event, emitter);
                }
            };
            loop {
                watch.poll();
                let was_full = watch.is_full();
                while let Some(next) = watch.next_left() {
                    match next {
                        Recorded::Event(event) => tell(&event, emitter),
                        Recorded::Compacted => emitter.status(Status::Compacted, None),
                        // What was printed in other words has its record here.
                        Recorded::Text(..) if state.misprinted > 0 => state.misprinted -= 1,
                        Recorded::Text(text, _)
                            if at == 0
                                && (state.skipped > 0 || !has_verdict && watch.end().is_some()) =>
                        {
                            emitter.text(&text);
                            state.last_text = Some(text.trim().to_owned());
                        }
                        Recorded::Text(..) => {}
                    }
                }
                emitter.flush();
                if !was_full {
                    break;
                }
            }
            for event in watch.unanswered() {
                tell(&event, emitter);
            }
            if at == 0
                && !has_verdict
                && let Some(TurnEnd::Completed(Some(last))) = watch.end()
                && state.last_text.as_deref() != Some(last.trim())
            {
                emitter.text(last);
            }
        }
        if left_out > 0 {
            emitter.warn(&format!(
                "{left_out} events of tool calls are left out: the turn was cancelled, and nobody took them"
            ));
        }
    }

    /// Tells the calls that codex recorded before it recorded this text, which it has printed.
    fn emit_calls_recorded_before(
        &self,
        text: &str,
        state: &mut RunState,
        cancel: &CancelToken,
        emitter: &mut Emitter<'_>,
    ) {
        if !self.spec.config.tool_events {
            state.misprinted += 1;
            return;
        }
        let mut deadline = None;
        loop {
            self.find_record(state);
            let record = &mut state.record;
            if let Some(watch) = &mut record.watch {
                watch.poll();
                if let Some(before) = watch.before(text) {
                    for recorded in before {
                        match recorded {
                            Recorded::Event(event) => self.tell(&event, emitter),
                            Recorded::Compacted => emitter.status(Status::Compacted, None),
                            // What was printed in other words has its record here.
                            Recorded::Text(..) if state.misprinted > 0 => state.misprinted -= 1,
                            Recorded::Text(text, _) => emitter.text(&text),
                        }
                    }
                    record.unmatched = 0;
                    return;
                }
            }
            if record.watch.as_ref().is_some_and(RolloutFollower::is_full) && !cancel.is_cancelled()
            {
                // It stands behind what has to be taken first.
                self.follow(state, emitter);
                continue;
            }
            // A codex whose texts are not found is not waited for again and again.
            if state.thread.is_none()
                || record.unmatched >= MAX_UNMATCHED_TEXTS
                || cancel.is_cancelled()
            {
                state.misprinted += 1;
                return;
            }
            let now = Instant::now();
            if now >= *deadline.get_or_insert(now + RECORD_WAIT) {
                record.unmatched = match record.watch {
                    Some(_) => record.unmatched + 1,
                    // It keeps no record at all.
                    None => MAX_UNMATCHED_TEXTS,
                };
                state.misprinted += 1;
                // It is not recorded; what was recorded by now came before it.
                self.follow(state, emitter);
                return;
            }
            crate::os::wait_for(cancel, Duration::from_millis(3));
            if record.watch.is_none() {
                // A new thread's rollout appears about when codex prints its first text.
                record.next_search = record.next_search.min(Instant::now() + TICK / 2);
            }
        }
    }

    fn tell(&self, event: &[u8], emitter: &mut Emitter<'_>) {
        emitter.calls += 1;
        if self.spec.config.tool_events {
            emitter.raw_event(event);
        }
    }

    /// From when on the turn can succeed that failed so: the account's limits say it to the second, codex's message
    /// to the minute.
    fn retry_at(
        &self,
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
        let home = self.spec.places.codex_home(self.spec.config);
        let rollout = thread.and_then(|thread| home::find_rollout(&home, thread).ok()?);
        let offset = rollout.and_then(|path| home::local_offset(&path));
        failure::retry_at(said?, now() / 1000, offset)
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

/// What was state so far.
struct RunState {
    translator: Translator,
    thread: Option<String>,
    /// Did the model do anything?
    worked: bool,
    /// It said that it does something.
    has_steps: bool,
    /// How many warnings it gave, lines that are not events among them.
    troubles: u64,
    record: RolloutState,
    /// The items that codex has reported as begun and not as over.
    open: HashSet<String>,
    /// The web searches that were told.
    searches: HashSet<String>,
    /// How many lines were too long.
    skipped: u64,
    /// The to-do list that was told last.
    plan: Option<Vec<PlanItem>>,
    /// The text that was told last.
    last_text: Option<String>,
    /// How many printed texts have no record of the same words.
    misprinted: u32,
    agents: Agents,
    cancel: CancelToken,
}

/// The sub-agents of the turn.
struct Agents {
    followed: Vec<RolloutFollower>,
    /// Their threads.
    threads: HashSet<String>,
    /// Threads whose rollouts were looked at.
    seen: HashSet<String>,
    /// Until when there may be new ones, and when to look for them next.
    look_until: Option<Instant>,
    next_look: Instant,
    is_over_limit: bool,
}

impl Default for Agents {
    fn default() -> Agents {
        Agents {
            followed: Vec::new(),
            threads: HashSet::new(),
            seen: HashSet::new(),
            look_until: None,
            next_look: Instant::now(),
            is_over_limit: false,
        }
    }
}

/// The first line of a rollout, once it is whole.
fn first_line(path: &Path) -> Option<Vec<u8>> {
    let file = open_regular_file(path).ok()?;
    let mut lines = Lines::new(io::Read::take(file, MAX_META));
    let line = lines.next(|_| true).ok()??;
    Some(line.bytes.to_vec())
}

/// What is known of the rollout.
struct RolloutState {
    watch: Option<RolloutFollower>,
    cancel: CancelToken,
    /// When codex was started, in milliseconds since 1970.
    begun: u64,
    /// When to look for it again, and how long to wait after that.
    next_search: Instant,
    pause: Duration,
    /// How many printed texts in a row were not found in it.
    unmatched: u32,
}

/// Milliseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis().try_into().unwrap_or(u64::MAX))
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
