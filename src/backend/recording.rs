//! Follows the record of a running turn and emits its parts in order with codex's output: tool calls with codex's own
//! ids, the calls of sub-agents, tokens, how the turn ended.
//!
//! The rollout is complete, and written before codex reports anything; codex's output has no call ids in either
//! backend.

use super::emitter::Emitter;
use super::follow::{Recorded, RolloutFollower};
use super::version::VersionCheck;
use super::{Account, Tokens, TurnSpec};
use crate::canonical::{PlanItem, Status, TurnUsage, Usage};
use crate::codex::find::{self, CodexVersion};
use crate::codex::home;
use crate::error::{Error, Kind, Result};
use crate::os::{self, CancelToken, open_regular_file};
use crate::rollout::lines::Lines;
use crate::rollout::record::{self, TurnEnd};
use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// How often a growing rollout is polled.
pub(super) const TICK: Duration = Duration::from_millis(40);

/// How long a printed text waits for its record, so that the calls before it are emitted before it.
const RECORD_WAIT: Duration = Duration::from_millis(300);

/// After this many texts in a row without a record, later texts do not wait.
const MAX_UNMATCHED_TEXTS: u32 = 3;

/// How many sub-agents' rollouts are followed in a turn.
const MAX_AGENTS: usize = 64;

/// How long the rollout of a sub-agent is searched for after a call that may have started one.
const AGENT_WAIT: Duration = Duration::from_secs(3);

/// How often it is searched for.
const AGENT_PAUSE: Duration = Duration::from_millis(150);

/// The longest first line of a rollout that is read, in bytes: it contains codex's instructions.
const MAX_META: u64 = 4 << 20;

/// How many bytes of tool call events are still emitted after a cancel: they pile up if the daemon does not read.
const MAX_AFTER_CANCEL: usize = 8 << 20;

/// The record of a running turn.
pub(super) struct Recording<'a> {
    spec: &'a TurnSpec<'a>,
    cancel: CancelToken,
    /// The thread that codex reported.
    thread: Option<String>,
    follower: Option<RolloutFollower>,
    /// The rollout of a thread that this turn has created.
    new_rollout: Option<PathBuf>,
    /// Why the rollout of a resumed thread could not be read.
    unreadable: Option<Error>,
    /// When codex was given the turn, in milliseconds since 1970.
    begun: u64,
    /// When to search for the rollout again, and how long to pause after that.
    next_search: Instant,
    pause: Duration,
    /// How many printed texts in a row were not found in the rollout.
    unmatched: u32,
    /// The text that was emitted last.
    last_text: Option<String>,
    /// How many printed texts had no record with the same text.
    misprinted: u32,
    agents: Agents,
    version: VersionCheck,
}

/// Which recorded texts codex has not printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unprinted {
    Nothing,
    /// Some of its lines were too long to be held.
    Some,
    /// It has not printed the end of the turn, and perhaps not what came before.
    End,
}

impl<'a> Recording<'a> {
    /// The record of a turn that is about to begin. Reads the thread's rollout, which may take a while.
    pub(super) fn new(spec: &'a TurnSpec<'a>, cancel: &CancelToken) -> Recording<'a> {
        let (follower, unreadable) = match known_thread(spec, cancel) {
            Ok(follower) => (follower, None),
            Err(error) => (None, Some(error)),
        };
        Recording {
            spec,
            cancel: cancel.clone(),
            thread: None,
            follower,
            new_rollout: None,
            unreadable,
            begun: now(),
            next_search: Instant::now(),
            pause: TICK,
            unmatched: 0,
            last_text: None,
            misprinted: 0,
            agents: Agents::default(),
            version: VersionCheck::begin(spec, cancel),
        }
    }

    /// Sets the thread that codex reported.
    pub(super) fn set_thread(&mut self, thread: &str) {
        self.thread = Some(thread.to_owned());
    }

    pub(super) fn thread(&self) -> Option<&str> {
        self.thread.as_deref()
    }

    /// Notes that codex is given the turn now.
    pub(super) fn begin(&mut self) {
        self.begun = now();
    }

    /// Notes a text that was emitted.
    pub(super) fn set_last_text(&mut self, text: &str) {
        self.last_text = Some(text.trim().to_owned());
    }

    /// Discards the recorded end: another codex turn continues this one.
    pub(super) fn continue_turn(&mut self) {
        if let Some(follower) = &mut self.follower {
            follower.continue_turn();
        }
    }

    /// How the turn ended, once codex has recorded it.
    pub(super) fn end(&self) -> Option<&TurnEnd> {
        self.follower.as_ref()?.end()
    }

    /// Whether a call is recorded that has no output yet and that codex has not reported as completed.
    ///
    /// `is_reported_open`: codex has reported a step that has not completed.
    pub(super) fn is_running(&self, is_reported_open: bool) -> bool {
        let mut followers = self.follower.iter().chain(&self.agents.followed);
        followers.any(|follower| follower.is_running(is_reported_open))
    }

    /// Notes that codex has reported the completion of every step that it had reported as started.
    pub(super) fn all_reported_over(&mut self) {
        let followers = self.follower.iter_mut().chain(&mut self.agents.followed);
        followers.for_each(RolloutFollower::all_reported_over);
    }

    /// Notes that a sub-agent may have been started.
    pub(super) fn expect_agents(&mut self) {
        self.agents.search_until = Some(Instant::now() + AGENT_WAIT);
    }

    /// The to-do list of the last `update_plan` call.
    pub(super) fn plan(&self) -> &[PlanItem] {
        self.follower.as_ref().map_or(&[], RolloutFollower::plan)
    }

    /// Whether there is a rollout without new records.
    pub(super) fn is_silent(&self) -> bool {
        self.follower.as_ref().is_some_and(|it| !it.has_grown())
    }

    /// Searches for the rollout at once.
    pub(super) fn search_now(&mut self) {
        self.next_search = Instant::now();
        self.find_record();
    }

    /// The version of codex in the first record, where this turn has created the thread.
    fn recorded_version(&self) -> Option<CodexVersion> {
        let version = record::origin(&first_line(self.new_rollout.as_deref()?)?)?.version?;
        find::parse_version(&version)
    }

    /// The tokens and telemetry of the turn. `totals` are the thread's tokens that codex reported at its end.
    pub(super) fn account(mut self, totals: Option<Usage>, emitter: &mut Emitter<'_>) -> Account {
        let telemetry = self.follower.as_ref().map(|it| it.telemetry().clone());
        let recorded = self.follower.as_mut().and_then(|it| it.tokens(totals));
        let mut tokens = recorded.unwrap_or_else(|| {
            // Without the rollout it is not known how many of them were used before the turn.
            let turn = totals.filter(|_| self.unreadable.is_none());
            Tokens {
                turn: TurnUsage::from(turn.unwrap_or_default()),
                thread: totals,
            }
        });
        for agent in &self.agents.followed {
            tokens.turn = tokens.turn.with_subagent(agent.used());
        }
        if let (None, Some(error), Some(_)) = (recorded, &self.unreadable, &self.thread) {
            emitter.warn(&format!(
                "the turn's tokens and tool calls cannot be reported: {error}"
            ));
        }
        let version = self.recorded_version();
        self.version.finish(version, emitter);
        Account {
            tokens,
            telemetry: telemetry.unwrap_or_default(),
        }
    }

    /// Finds the rollout of a thread that codex has just created or decompressed.
    fn find_record(&mut self) {
        let (Some(thread), None) = (&self.thread, &self.follower) else {
            return;
        };
        if Instant::now() < self.next_search {
            return;
        }
        let home = self.spec.places.codex_home(self.spec.config);
        // codex creates it with the first record; an error may be temporary.
        if let Ok(Some(path)) = home::find_rollout(&home, thread) {
            let follower = match self.spec.thread {
                None => RolloutFollower::new_thread(&path, &self.cancel),
                Some(_) => RolloutFollower::starting_since(&path, self.begun, &self.cancel),
            };
            if self.spec.thread.is_none() {
                self.new_rollout = Some(path);
            }
            let names = self.spec.tools.map(|it| it.names());
            self.follower = follower.ok().map(|follower| follower.with_names(names));
            // Texts can be matched from now on.
            self.unmatched = 0;
        }
        self.next_search = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(Duration::from_secs(2));
    }

    /// Emits what codex has recorded. Returns whether there was anything new.
    pub(super) fn follow(&mut self, emitter: &mut Emitter<'_>) -> bool {
        self.find_record();
        let is_enabled = self.spec.config.tool_events;
        let Some(follower) = &mut self.follower else {
            return false;
        };
        let mut grown = emit_before_text(follower, is_enabled, &self.cancel, emitter);
        if follower.has_spawned() {
            self.agents.search_until = Some(Instant::now() + AGENT_WAIT);
        }
        let now = Instant::now();
        if self.agents.search_until.is_some_and(|until| now < until)
            && now >= self.agents.next_search
        {
            self.agents.next_search = now + AGENT_PAUSE;
            self.find_agents(emitter);
        }
        for agent in &mut self.agents.followed {
            grown |= emit_before_text(agent, is_enabled, &self.cancel, emitter);
            if agent.has_spawned() {
                self.agents.search_until = Some(Instant::now() + AGENT_WAIT);
            }
        }
        grown
    }

    /// Finds the rollouts of sub-agents that this turn has started: each has the thread that started it in its first
    /// line.
    fn find_agents(&mut self, emitter: &mut Emitter<'_>) {
        let Some(main) = &self.thread else { return };
        let home = self.spec.places.codex_home(self.spec.config);
        let agents = &mut self.agents;
        // Ids are ordered by time, so that a parent comes before its sub-agents.
        let mut candidates = home::rollouts_since(&home, main, self.begun);
        candidates.sort_unstable();
        for (thread, path) in candidates {
            if thread == *main || agents.seen.contains(&thread) {
                continue;
            }
            let Some(origin) = first_line(&path).and_then(|line| record::origin(&line)) else {
                // The line is incomplete.
                continue;
            };
            let is_ours = origin.parent.as_ref().is_some_and(|parent| {
                parent == main
                    || agents.threads.contains(parent)
                    || origin.session.as_ref() == Some(main)
            });
            if !is_ours {
                // A parent that is not known by now is not one of this turn.
                agents.seen.insert(thread);
                continue;
            }
            if agents.followed.len() == MAX_AGENTS {
                if !std::mem::replace(&mut agents.is_over_limit, true) {
                    emitter.warn(&format!(
                        "the turn has more than {MAX_AGENTS} sub-agents; the calls and tokens of the others are not reported"
                    ));
                }
                return;
            }
            agents.seen.insert(thread.clone());
            match RolloutFollower::sub_agent(&path, &thread, self.begun, &self.cancel) {
                Ok(follower) => {
                    let names = self.spec.tools.map(|it| it.names());
                    agents.followed.push(follower.with_names(names));
                }
                Err(error) => emitter.warn(&format!(
                    "the calls and tokens of the sub-agent {thread} cannot be reported: cannot read '{}': {}",
                    path.display(),
                    crate::error::reason(&error)
                )),
            }
            agents.threads.insert(thread);
        }
    }

    /// Emits all remaining records at the end of the turn; texts only where codex has not printed them.
    pub(super) fn emit_remaining(&mut self, unprinted: Unprinted, emitter: &mut Emitter<'_>) {
        self.find_agents(emitter);
        let is_enabled = self.spec.config.tool_events;
        let is_cancelled = self.cancel.is_cancelled();
        let mut omitted = 0u64;
        let mut emitted = 0;
        let (follower, agents) = (&mut self.follower, &mut self.agents.followed);
        for (at, follower) in follower.iter_mut().chain(agents).enumerate() {
            let mut emit = |event: &[u8], emitter: &mut Emitter<'_>| {
                emitted += event.len();
                if is_cancelled && emitted > MAX_AFTER_CANCEL {
                    omitted += 1;
                } else {
                    emit_call_event(event, is_enabled, emitter);
                }
            };
            loop {
                follower.poll();
                let was_full = follower.is_full();
                while let Some(next) = follower.next_remaining() {
                    match next {
                        Recorded::Event(event) => emit(&event, emitter),
                        Recorded::Compacted => emitter.status(Status::Compacted, None),
                        // The record of a text that was printed differently.
                        Recorded::Text(..) if self.misprinted > 0 => self.misprinted -= 1,
                        Recorded::Text(text, _)
                            if at == 0
                                && match unprinted {
                                    Unprinted::Nothing => false,
                                    Unprinted::Some => true,
                                    Unprinted::End => follower.end().is_some(),
                                } =>
                        {
                            emitter.text(&text);
                            self.last_text = Some(text.trim().to_owned());
                        }
                        Recorded::Text(..) => {}
                    }
                }
                emitter.flush();
                if !was_full {
                    break;
                }
            }
            for event in follower.unanswered() {
                emit(&event, emitter);
            }
            if at == 0
                && unprinted == Unprinted::End
                && let Some(TurnEnd::Completed(Some(last))) = follower.end()
                && self.last_text.as_deref() != Some(last.trim())
            {
                emitter.text(last);
            }
        }
        if omitted > 0 {
            emitter.warn(&format!(
                "{omitted} events of tool calls are omitted: the turn was cancelled, and they were not read"
            ));
        }
    }

    /// Emits the calls that codex recorded before this text, which it has printed.
    pub(super) fn emit_calls_recorded_before(&mut self, text: &str, emitter: &mut Emitter<'_>) {
        if !self.spec.config.tool_events {
            self.misprinted += 1;
            return;
        }
        let mut deadline = None;
        loop {
            self.find_record();
            if let Some(follower) = &mut self.follower {
                follower.poll();
                if let Some(before) = follower.take_before(text) {
                    for recorded in before {
                        match recorded {
                            Recorded::Event(event) => {
                                emit_call_event(&event, self.spec.config.tool_events, emitter)
                            }
                            Recorded::Compacted => emitter.status(Status::Compacted, None),
                            // The record of a text that was printed differently.
                            Recorded::Text(..) if self.misprinted > 0 => self.misprinted -= 1,
                            Recorded::Text(text, _) => emitter.text(&text),
                        }
                    }
                    self.unmatched = 0;
                    return;
                }
            }
            if self.follower.as_ref().is_some_and(RolloutFollower::is_full)
                && !self.cancel.is_cancelled()
            {
                // Its record is behind others that have to be taken first.
                self.follow(emitter);
                continue;
            }
            // If texts are not found repeatedly, no further one is waited for.
            if self.thread.is_none()
                || self.unmatched >= MAX_UNMATCHED_TEXTS
                || self.cancel.is_cancelled()
            {
                self.misprinted += 1;
                return;
            }
            let now = Instant::now();
            if now >= *deadline.get_or_insert(now + RECORD_WAIT) {
                self.unmatched = match self.follower {
                    Some(_) => self.unmatched + 1,
                    // There is no rollout.
                    None => MAX_UNMATCHED_TEXTS,
                };
                self.misprinted += 1;
                // It is not recorded; what is recorded by now came before it.
                self.follow(emitter);
                return;
            }
            os::wait_for_cancel(&self.cancel, Duration::from_millis(3));
            if self.follower.is_none() {
                // The rollout of a new thread appears at about the time of the first printed text.
                self.next_search = self.next_search.min(Instant::now() + TICK / 2);
            }
        }
    }
}

/// Follows the rollout of the resumed thread from its present end.
///
/// # Errors
/// [`Kind::Io`] where it cannot be read; it may be readable later, when codex has decompressed it.
fn known_thread(spec: &TurnSpec<'_>, cancel: &CancelToken) -> Result<Option<RolloutFollower>> {
    let Some(thread) = spec.thread else {
        return Ok(None);
    };
    let home = spec.places.codex_home(spec.config);
    let Some(path) = home::find_rollout(&home, thread)? else {
        // codex will report the missing thread itself.
        return Ok(None);
    };
    let follower = RolloutFollower::known_thread(&path, cancel)
        .map_err(|error| Error::os(Kind::Io, format!("cannot read '{}'", path.display()), error))?;
    Ok(Some(follower.with_names(spec.tools.map(|it| it.names()))))
}

/// Emits the records before the next text that codex has still to print. Returns whether there was anything new.
fn emit_before_text(
    follower: &mut RolloutFollower,
    is_enabled: bool,
    cancel: &CancelToken,
    emitter: &mut Emitter<'_>,
) -> bool {
    let mut grown = false;
    loop {
        let has_more = follower.poll();
        grown |= has_more;
        let was_full = follower.is_full();
        let mut has_emitted = false;
        while let Some(recorded) = follower.next_before_text() {
            match recorded {
                Recorded::Event(event) => emit_call_event(&event, is_enabled, emitter),
                Recorded::Compacted => emitter.status(Status::Compacted, None),
                Recorded::Text(..) => {}
            }
            has_emitted = true;
        }
        if has_emitted {
            emitter.flush();
        }
        // After a cancel the caller must not be delayed, and events that the daemon does not read would pile up.
        if !was_full || follower.is_full() || cancel.is_cancelled() {
            return grown;
        }
    }
}

/// Emits an event of a tool call, if `is_enabled`; counts it in any case.
pub(super) fn emit_call_event(event: &[u8], is_enabled: bool, emitter: &mut Emitter<'_>) {
    emitter.calls += 1;
    if is_enabled {
        emitter.raw_event(event);
    }
}

/// The sub-agents of the turn.
struct Agents {
    followed: Vec<RolloutFollower>,
    /// Their threads.
    threads: HashSet<String>,
    /// Threads whose rollouts were examined.
    seen: HashSet<String>,
    /// Until when new ones are searched for, and when next.
    search_until: Option<Instant>,
    next_search: Instant,
    is_over_limit: bool,
}

impl Default for Agents {
    fn default() -> Agents {
        Agents {
            followed: Vec::new(),
            threads: HashSet::new(),
            seen: HashSet::new(),
            search_until: None,
            next_search: Instant::now(),
            is_over_limit: false,
        }
    }
}

/// The first line of a rollout, once it is complete.
fn first_line(path: &Path) -> Option<Vec<u8>> {
    let file = open_regular_file(path).ok()?;
    let mut lines = Lines::followed(io::Read::take(file, MAX_META));
    let line = lines.next(|_| true).ok()??;
    Some(line.bytes.to_vec())
}

/// Milliseconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis().try_into().unwrap_or(u64::MAX))
}
