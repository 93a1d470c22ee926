//! One run of codex for a turn: from its start to its end, everything it says told on the way.
//!
//! A turn has one attempt, or two when codex no longer knows the stored thread and a new one takes over.

use super::child::{Child, Line, Next};
use super::command::{self, Call};
use super::system;
use super::translate::{Said, Translator, Verdict};
use crate::backend::emitter::{Emitter, Step, StepKind, StepState};
use crate::backend::follow::{Recorded, Watch};
use crate::backend::{Account, Outcome, Tokens, TurnSpec, TurnStatus};
use crate::canonical::{PlanItem, Status, Telemetry, TurnEvent, TurnUsage};
use crate::codex::failure;
use crate::codex::home;
use crate::error::{Error, Kind, Result, is_exhausted};
use crate::mcp::Bridge;
use crate::os::Flag;
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
/// How long a printed text waits for its record, so that the calls before it are told before it.
const UNRECORDED: Duration = Duration::from_millis(300);
/// How long a printed to-do list waits for its record.
const PLAN_WAIT: Duration = Duration::from_millis(150);
/// After so many texts in a row without a record, none is waited for any more.
const GIVEN_UP: u32 = 3;
/// How many sub-agents' rollouts are followed in a turn.
const MAX_AGENTS: usize = 64;
/// How long after a call that may have started a sub-agent its rollout is looked for.
const AGENT_WAIT: Duration = Duration::from_secs(3);
/// How often.
const AGENT_PAUSE: Duration = Duration::from_millis(150);
/// The longest first line of a rollout that is read: it holds codex's whole instructions.
const MAX_META: u64 = 4 << 20;
/// So many warnings of codex, and lines that are no events, are told as warnings in a turn; the rest at `debug`.
const MAX_TROUBLES: u64 = 20;
/// How much is still told of tool calls after a cancel, in bytes: a daemon that does not read has it pile up.
const MAX_AFTER_CANCEL: usize = 8 << 20;

/// A turn by one `codex exec`.
pub(super) struct Run<'a> {
    pub(super) spec: &'a TurnSpec<'a>,
}

/// Why codex is being ended before it is done.
enum Cut {
    Cancelled,
    Limit(Error),
}

impl Run<'_> {
    /// Runs codex and tells what it says.
    ///
    /// # Errors
    /// codex could not be started; nothing was told then.
    pub(super) fn run(&self, cancel: &Flag, teller: &mut Emitter<'_>) -> Result<Outcome> {
        if cancel.is_raised() {
            return Ok(Outcome::not_started(TurnStatus::Cancelled));
        }
        let (watch, trouble) = match self.watch_known(cancel) {
            Ok(watch) => (watch, None),
            Err(error) => (None, Some(error)),
        };
        // Reading back may have taken a while.
        if cancel.is_raised() {
            return Ok(Outcome::not_started(TurnStatus::Cancelled));
        }
        let config = self.spec.config;
        let invocation = command::build(
            self.spec.program,
            config,
            self.spec.places,
            &Call {
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
            teller.warn(warning);
        }
        teller.debug(&format!(
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
        }
        cancel.attach(child.pidfd());
        let mut heard = Heard {
            translator: Translator::default(),
            thread: None,
            worked: false,
            has_steps: false,
            troubles: 0,
            record: Record {
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
        let cut = self.listen(&mut child, &mut heard, cancel, teller);
        let exit = child.exit();
        if let Some(bridge) = self.spec.tools {
            bridge.admit_nobody();
        }
        heard.record.next_search = Instant::now();
        self.find_record(&mut heard);
        if let Some(errno) = exit.spawn_error {
            return Err(self.not_started(errno));
        }
        teller.debug(&format!("codex has ended: {}", exit.describe()));
        self.tell_left(&mut heard, cancel, teller);
        let Heard {
            translator,
            thread,
            worked,
            has_steps,
            troubles,
            record,
            skipped,
            agents,
            ..
        } = heard;
        let end = record.watch.as_ref().and_then(|watch| watch.end().cloned());
        let totals = match translator.verdict() {
            Some(Verdict::Completed(Some(totals))) => Some(totals.usage()),
            _ => None,
        };
        let said = match translator.verdict() {
            Some(Verdict::Failed(message)) => Some(message.as_str()),
            _ => translator.last_error(),
        };
        let telemetry = record.watch.as_ref().map(|watch| watch.telemetry().clone());
        if let Some(more @ 1..) = troubles.checked_sub(MAX_TROUBLES) {
            teller.warn(&format!(
                "codex: {more} more warnings and lines that are no events; they are told at 'debug'"
            ));
        }
        // A codex home that is a copy: its index leads codex to the rollout of the original (0.135 to 0.169).
        if has_steps && record.watch.as_ref().is_some_and(|it| !it.has_grown()) {
            teller.warn(&format!(
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
            teller.warn(&format!(
                "the turn's tokens and tool calls cannot be told: {error}"
            ));
        }
        let refusal = match (self.spec.thread, translator.verdict()) {
            (Some(_), None) if thread.is_none() => failure::refusal_of_exit(&exit),
            (Some(_), Some(Verdict::Failed(message))) if !worked => {
                failure::refusal_of_message(message)
            }
            _ => None,
        };
        let ended = match (translator.verdict(), cut) {
            // What came first counts: a turn that was complete is complete.
            (_, Some(Cut::Cancelled)) => TurnStatus::Cancelled,
            (_, Some(Cut::Limit(error))) => TurnStatus::Failed(error),
            (Some(Verdict::Completed(_)), None) => {
                if !exit.status.success() {
                    teller.warn(&format!(
                        "codex completed the turn, and then ended with {}",
                        exit.describe()
                    ));
                }
                if teller.texts == 0 && teller.calls == 0 {
                    teller.warn(&match skipped {
                        0 => "codex completed the turn without any text and any tool call".to_owned(),
                        _ => format!("the turn has no text: it was in one of the lines that are skipped ({skipped}), and codex has not recorded it"),
                    });
                }
                TurnStatus::Completed
            }
            (_, None) if refusal.is_some() => {
                TurnStatus::Refused(refusal.expect("the guard has seen it"))
            }
            (Some(Verdict::Failed(message)), None) => {
                TurnStatus::Failed(failure::from_message(message))
            }
            (None, None) => match end {
                // A turn that failed is recorded as complete, too, but without a last message.
                Some(TurnEnd::Completed(last)) if last.is_some() || teller.texts > 0 => {
                    teller.warn("codex recorded the end of the turn and did not print it; what it recorded is told");
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
        heard: &mut Heard,
        cancel: &Flag,
        teller: &mut Emitter<'_>,
    ) -> Option<Cut> {
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
            let is_reported_open = !heard.open.is_empty();
            let running = (heard.record.watch.iter())
                .chain(&heard.agents.followed)
                .any(|watch| watch.is_running(is_reported_open));
            let is_over = heard
                .record
                .watch
                .as_ref()
                .is_some_and(|watch| watch.end().is_some());
            if is_over && cut.is_none() {
                // It may still print the end, and may as well never do it.
                child.expect_end_within(AFTER_VERDICT);
            }
            let limit = match (&cut, heard.translator.verdict()) {
                (None, None) if !is_over => turn_limit
                    .into_iter()
                    .chain(idle_limit.filter(|_| !running))
                    .min(),
                _ => None,
            };
            let tick = (heard.thread.is_some() && cut.is_none()).then(|| Instant::now() + TICK);
            let deadline = limit.into_iter().chain(tick).min();
            match child.next(cancel, deadline) {
                Next::Line => {
                    // What codex goes on to say while it is being ended was not waited for: a daemon that does
                    // not read would have it pile up here.
                    let wanted = cut.is_none();
                    while let Some(line) = child.line() {
                        self.hear(line, wanted, heard, cancel, teller);
                    }
                    teller.flush();
                    // Not before: a daemon that does not read holds this up, and codex with it.
                    quiet_since = Instant::now();
                    if heard.translator.verdict().is_some() {
                        child.expect_end_within(AFTER_VERDICT);
                    }
                }
                Next::Raised => {
                    if heard.translator.verdict().is_none() {
                        teller.debug("the turn is cancelled: codex is being ended");
                        cut = cut.or(Some(Cut::Cancelled));
                    }
                    child.end();
                }
                Next::Deadline if limit.is_none_or(|limit| Instant::now() < limit) => {
                    if self.follow(heard, teller) {
                        quiet_since = Instant::now();
                    }
                }
                Next::Deadline => {
                    let error = if turn_limit.is_some_and(|limit| Instant::now() >= limit) {
                        self.too_long(config.turn_timeout)
                    } else {
                        self.too_quiet(config.idle_timeout)
                    };
                    teller.debug("a limit is reached: codex is being ended");
                    cut = Some(Cut::Limit(error));
                    child.end();
                }
                Next::Ended => return cut,
            }
        }
    }

    /// Takes in what a line says, and tells it where it is `wanted`.
    fn hear(
        &self,
        line: Line<'_>,
        wanted: bool,
        heard: &mut Heard,
        cancel: &Flag,
        teller: &mut Emitter<'_>,
    ) {
        let line = match line {
            Line::Whole(line) => line,
            Line::Skipped(length) => {
                heard.skipped += 1;
                teller.start();
                teller.warn(&format!(
                    "codex printed a line of {length} bytes, more than can be held; it is skipped"
                ));
                return;
            }
        };
        let said = heard.translator.line(line);
        teller.start();
        heard.has_steps |= matches!(said, Said::Step(_));
        heard.worked |= matches!(
            said,
            Said::Text(_) | Said::Thinking(_) | Said::Step(_) | Said::Plan(_)
        );
        match said {
            Said::Thread(id) => self.hear_thread(&id, heard, teller),
            _ if !wanted => {}
            Said::Text(text) => {
                self.tell_before(&text, heard, cancel, teller);
                teller.text(&text);
                heard.last_text = Some(text.trim().to_owned());
            }
            Said::Thinking(text) => {
                if self.spec.config.reasoning_events && !text.is_empty() {
                    self.follow(heard, teller);
                    teller.event(&TurnEvent::ThinkingDelta { text });
                }
            }
            Said::Step(step) => {
                teller.debug(&outline(&step));
                teller.sink.step(&step);
                self.hear_step(&step, heard, teller);
            }
            Said::Plan(items) => self.hear_plan(items, heard, teller),
            Said::Trouble(message) => {
                if failure::is_retry(&message) {
                    teller.status(Status::Retrying, Some(&message));
                }
                heard.troubles += 1;
                let message = format!("codex: {message}");
                match heard.troubles <= MAX_TROUBLES {
                    true => teller.warn(&message),
                    false => teller.debug(&message),
                }
            }
            Said::Nothing(what) => log::debug!("passed over: {what}"),
            Said::End => {}
        }
    }

    /// codex says which thread it works on: checks that it is the one asked for, and stores a new one.
    fn hear_thread(&self, id: &str, heard: &mut Heard, teller: &mut Emitter<'_>) {
        if !home::is_thread_id(id) {
            teller.warn(&format!(
                "codex named a thread {id:?}, which is no thread id; it is not stored"
            ));
            return;
        }
        let id = id.to_ascii_lowercase();
        if let Some(first) = &heard.thread {
            if *first != id {
                teller.warn(&format!(
                    "codex named a second thread, {id}, after {first}; it is not stored"
                ));
            }
            return;
        }
        match self.spec.thread {
            Some(asked) if asked != id => {
                teller.warn(&format!(
                    "codex works on the thread {id}, though {asked} was asked for; the stored id is kept"
                ));
            }
            _ => {
                for warning in (self.spec.on_thread)(&id) {
                    teller.warn(&warning);
                }
            }
        }
        teller.debug(&format!("codex works on thread {id}"));
        heard.thread = Some(id);
    }

    /// Does the model still see the whole of a system text that had to stand in a prompt?
    fn system_in_thread(&self, cancel: &Flag) -> bool {
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
    fn watch_known(&self, cancel: &Flag) -> Result<Option<Watch>> {
        let Some(thread) = self.spec.thread else {
            return Ok(None);
        };
        let home = self.spec.places.codex_home(self.spec.config);
        let Some(path) = home::find_rollout(&home, thread)? else {
            // codex will say what it makes of that.
            return Ok(None);
        };
        let watch = Watch::known_thread(&path, cancel).map_err(|error| {
            Error::os(Kind::Io, format!("cannot read '{}'", path.display()), error)
        })?;
        Ok(Some(watch.with_names(self.spec.tools.map(Bridge::names))))
    }

    /// Finds the rollout of a thread that codex has just begun or unpacked.
    fn find_record(&self, heard: &mut Heard) {
        let (Some(thread), None) = (&heard.thread, &heard.record.watch) else {
            return;
        };
        if Instant::now() < heard.record.next_search {
            return;
        }
        let home = self.spec.places.codex_home(self.spec.config);
        // codex makes it when there is something to record; an error now may be none the next time.
        if let Ok(Some(path)) = home::find_rollout(&home, thread) {
            let watch = match self.spec.thread {
                None => Watch::new_thread(&path, &heard.record.cancel),
                Some(_) => Watch::late(&path, heard.record.begun, &heard.record.cancel),
            };
            let names = self.spec.tools.map(Bridge::names);
            heard.record.watch = watch.ok().map(|watch| watch.with_names(names));
            // Late, but there: texts are worth a wait again.
            heard.record.unmatched = 0;
        }
        heard.record.next_search = Instant::now() + heard.record.pause;
        heard.record.pause = (heard.record.pause * 2).min(Duration::from_secs(2));
    }

    /// codex prints its to-do list, which it does again when the turn ends. What is in progress it only records.
    fn hear_plan(&self, items: Vec<PlanItem>, heard: &mut Heard, teller: &mut Emitter<'_>) {
        let is_done = |item: &PlanItem| item.status == "completed";
        let deadline = Instant::now() + PLAN_WAIT;
        let items = loop {
            self.follow(heard, teller);
            let recorded = heard.record.watch.as_ref().map_or(&[][..], Watch::plan);
            let is_same = recorded.len() == items.len()
                && recorded.iter().zip(&items).all(|(recorded, item)| {
                    recorded.text == item.text && is_done(recorded) == is_done(item)
                });
            if is_same {
                break recorded.to_vec();
            }
            // Within code mode it is not recorded at all.
            if Instant::now() >= deadline || heard.cancel.is_raised() {
                break items;
            }
            crate::os::wait_for(&heard.cancel, Duration::from_millis(3));
        };
        if heard.plan.as_ref() != Some(&items) {
            teller.event(&TurnEvent::Plan { items: &items });
            heard.plan = Some(items);
        }
    }

    /// Keeps track of what codex has reported as begun and not as over.
    fn hear_step(&self, step: &Step, heard: &mut Heard, teller: &mut Emitter<'_>) {
        if step.what == StepKind::Other("collab_tool_call".to_owned()) {
            heard.agents.look_until = Some(Instant::now() + AGENT_WAIT);
        }
        if step.state == StepState::Running {
            heard.open.insert(step.key.clone());
            return;
        }
        heard.open.remove(&step.key);
        if let StepKind::Search(query) = &step.what {
            self.tell_search(step, query, heard, teller);
        }
        if heard.open.is_empty() {
            // What is recorded by now was begun before.
            self.follow(heard, teller);
            for watch in heard
                .record
                .watch
                .iter_mut()
                .chain(&mut heard.agents.followed)
            {
                watch.all_reported_over();
            }
        }
    }

    /// Tells a web search, which is no call that codex records with its output: the provider makes it.
    fn tell_search(&self, step: &Step, query: &str, heard: &mut Heard, teller: &mut Emitter<'_>) {
        // codex's own id of it stands behind that of the item, under the same key.
        if step.key.is_empty() || !heard.searches.insert(step.key.clone()) {
            return;
        }
        self.follow(heard, teller);
        let input = json!({"query": query});
        let used =
            json!({"type": "tool_use", "id": step.key, "name": "web_search", "input": input});
        let is_error = matches!(step.state, StepState::Failed(_));
        let result =
            json!({"type": "tool_result", "id": step.key, "content": "", "is_error": is_error});
        for event in [used, result] {
            self.tell(event.to_string().as_bytes(), teller);
        }
    }

    /// Tells what codex has recorded; says whether it had recorded anything.
    fn follow(&self, heard: &mut Heard, teller: &mut Emitter<'_>) -> bool {
        self.find_record(heard);
        let Some(watch) = &mut heard.record.watch else {
            return false;
        };
        let mut grown = self.take_from(watch, &heard.cancel, teller);
        if watch.has_spawned() {
            heard.agents.look_until = Some(Instant::now() + AGENT_WAIT);
        }
        let now = Instant::now();
        if heard.agents.look_until.is_some_and(|until| now < until) && now >= heard.agents.next_look
        {
            heard.agents.next_look = now + AGENT_PAUSE;
            self.find_agents(heard, teller);
        }
        for agent in &mut heard.agents.followed {
            grown |= self.take_from(agent, &heard.cancel, teller);
            if agent.has_spawned() {
                heard.agents.look_until = Some(Instant::now() + AGENT_WAIT);
            }
        }
        grown
    }

    /// Tells what a rollout has, as far as no text stands before it that codex will print.
    fn take_from(&self, watch: &mut Watch, cancel: &Flag, teller: &mut Emitter<'_>) -> bool {
        let mut grown = false;
        loop {
            let has_more = watch.poll();
            grown |= has_more;
            let was_full = watch.is_full();
            let mut told = false;
            while let Some(recorded) = watch.next_before_text() {
                match recorded {
                    Recorded::Event(event) => self.tell(&event, teller),
                    Recorded::Compacted => teller.status(Status::Compacted, None),
                    Recorded::Text(..) => {}
                }
                told = true;
            }
            if told {
                teller.flush();
            }
            // After a cancel nothing holds this up any more, and what the daemon does not take would pile up.
            if !was_full || watch.is_full() || cancel.is_raised() {
                return grown;
            }
        }
    }

    /// Finds the rollouts of sub-agents that this turn has started: each names the thread that started it.
    fn find_agents(&self, heard: &mut Heard, teller: &mut Emitter<'_>) {
        let Some(main) = &heard.thread else { return };
        let home = self.spec.places.codex_home(self.spec.config);
        let agents = &mut heard.agents;
        // A sub-agent's sub-agent is only known once its parent is.
        let mut candidates = home::rollouts_since(&home, main, heard.record.begun);
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
                    teller.warn(&format!(
                        "the turn has more than {MAX_AGENTS} sub-agents; the calls and tokens of the others are not told"
                    ));
                }
                return;
            }
            agents.seen.insert(thread.clone());
            match Watch::sub_agent(&path, &thread, heard.record.begun, &heard.cancel) {
                Ok(watch) => {
                    let names = self.spec.tools.map(Bridge::names);
                    agents.followed.push(watch.with_names(names));
                }
                Err(error) => teller.warn(&format!(
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
    fn tell_left(&self, heard: &mut Heard, cancel: &Flag, teller: &mut Emitter<'_>) {
        self.find_agents(heard, teller);
        let has_verdict = heard.translator.verdict().is_some();
        let mut left_out = 0u64;
        let mut told = 0;
        let (watch, agents) = (&mut heard.record.watch, &mut heard.agents.followed);
        for (at, watch) in watch.iter_mut().chain(agents).enumerate() {
            let mut tell = |event: &[u8], teller: &mut Emitter<'_>| {
                told += event.len();
                if cancel.is_raised() && told > MAX_AFTER_CANCEL {
                    left_out += 1;
                } else {
                    self.tell(event, teller);
                }
            };
            loop {
                watch.poll();
                let was_full = watch.is_full();
                while let Some(next) = watch.next_left() {
                    match next {
                        Recorded::Event(event) => tell(&event, teller),
                        Recorded::Compacted => teller.status(Status::Compacted, None),
                        // What was printed in other words has its record here.
                        Recorded::Text(..) if heard.misprinted > 0 => heard.misprinted -= 1,
                        Recorded::Text(text, _)
                            if at == 0
                                && (heard.skipped > 0 || !has_verdict && watch.end().is_some()) =>
                        {
                            teller.text(&text);
                            heard.last_text = Some(text.trim().to_owned());
                        }
                        Recorded::Text(..) => {}
                    }
                }
                teller.flush();
                if !was_full {
                    break;
                }
            }
            for event in watch.unanswered() {
                tell(&event, teller);
            }
            if at == 0
                && !has_verdict
                && let Some(TurnEnd::Completed(Some(last))) = watch.end()
                && heard.last_text.as_deref() != Some(last.trim())
            {
                teller.text(last);
            }
        }
        if left_out > 0 {
            teller.warn(&format!(
                "{left_out} events of tool calls are left out: the turn was cancelled, and nobody took them"
            ));
        }
    }

    /// Tells the calls that codex recorded before it recorded this text, which it has printed.
    fn tell_before(&self, text: &str, heard: &mut Heard, cancel: &Flag, teller: &mut Emitter<'_>) {
        if !self.spec.config.tool_events {
            heard.misprinted += 1;
            return;
        }
        let mut deadline = None;
        loop {
            self.find_record(heard);
            let record = &mut heard.record;
            if let Some(watch) = &mut record.watch {
                watch.poll();
                if let Some(before) = watch.before(text) {
                    for recorded in before {
                        match recorded {
                            Recorded::Event(event) => self.tell(&event, teller),
                            Recorded::Compacted => teller.status(Status::Compacted, None),
                            // What was printed in other words has its record here.
                            Recorded::Text(..) if heard.misprinted > 0 => heard.misprinted -= 1,
                            Recorded::Text(text, _) => teller.text(&text),
                        }
                    }
                    record.unmatched = 0;
                    return;
                }
            }
            if record.watch.as_ref().is_some_and(Watch::is_full) && !cancel.is_raised() {
                // It stands behind what has to be taken first.
                self.follow(heard, teller);
                continue;
            }
            // A codex whose texts are not found is not waited for again and again.
            if heard.thread.is_none() || record.unmatched >= GIVEN_UP || cancel.is_raised() {
                heard.misprinted += 1;
                return;
            }
            let now = Instant::now();
            if now >= *deadline.get_or_insert(now + UNRECORDED) {
                record.unmatched = match record.watch {
                    Some(_) => record.unmatched + 1,
                    // It keeps no record at all.
                    None => GIVEN_UP,
                };
                heard.misprinted += 1;
                // It is not recorded; what was recorded by now came before it.
                self.follow(heard, teller);
                return;
            }
            crate::os::wait_for(cancel, Duration::from_millis(3));
            if record.watch.is_none() {
                // A new thread's rollout appears about when codex prints its first text.
                record.next_search = record.next_search.min(Instant::now() + TICK / 2);
            }
        }
    }

    fn tell(&self, event: &[u8], teller: &mut Emitter<'_>) {
        teller.calls += 1;
        if self.spec.config.tool_events {
            teller.raw_event(event);
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

/// What was heard so far.
struct Heard {
    translator: Translator,
    thread: Option<String>,
    /// Did the model do anything?
    worked: bool,
    /// It said that it does something.
    has_steps: bool,
    /// How many warnings it gave, lines that are no events among them.
    troubles: u64,
    record: Record,
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
    cancel: Flag,
}

/// The sub-agents of the turn.
struct Agents {
    followed: Vec<Watch>,
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
struct Record {
    watch: Option<Watch>,
    cancel: Flag,
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
