//! Emits what codex records of a turn while it runs, among what it reports: tool calls with codex's own ids, the calls of
//! sub-agents, tokens, how the turn ended.
//!
//! The rollout has everything and has it first; what codex says beside it, whichever way it is run, has no call ids.

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

/// How often a rollout is looked at that grows.
pub(super) const TICK: Duration = Duration::from_millis(40);

/// How long a printed text waits for its record, so that the calls before it are emitted before it.
const RECORD_WAIT: Duration = Duration::from_millis(300);

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

/// How much of tool calls is still emitted after a cancel, in bytes: a daemon that does not read has it pile up.
const MAX_AFTER_CANCEL: usize = 8 << 20;

/// The record of a running turn.
pub(super) struct Recording<'a> {
    spec: &'a TurnSpec<'a>,
    cancel: CancelToken,
    /// The thread that codex said it works on.
    thread: Option<String>,
    follower: Option<RolloutFollower>,
    /// The rollout of a thread that this turn has begun.
    new_rollout: Option<PathBuf>,
    /// Why the rollout of a thread that goes on could not be read.
    unreadable: Option<Error>,
    /// When codex was asked, in milliseconds since 1970.
    begun: u64,
    /// When to look for the rollout again, and how long to wait after that.
    next_search: Instant,
    pause: Duration,
    /// How many printed texts in a row were not found in it.
    unmatched: u32,
    /// The text that was emitted last.
    last_text: Option<String>,
    /// How many printed texts have no record of the same words.
    misprinted: u32,
    agents: Agents,
    version: VersionCheck,
}

/// What of the recorded texts codex has not said itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unprinted {
    Nothing,
    /// Lines of it were too long to be held.
    Some,
    /// It has not said how the turn ended, nor perhaps what came before.
    End,
}

impl<'a> Recording<'a> {
    /// The record of a turn that is about to begin. Reading back may take a while.
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

    /// codex works on this thread.
    pub(super) fn set_thread(&mut self, thread: &str) {
        self.thread = Some(thread.to_owned());
    }

    pub(super) fn thread(&self) -> Option<&str> {
        self.thread.as_deref()
    }

    /// codex is asked now.
    pub(super) fn begin(&mut self) {
        self.begun = now();
    }

    /// This text was emitted.
    pub(super) fn set_last_text(&mut self, text: &str) {
        self.last_text = Some(text.trim().to_owned());
    }

    /// codex goes on with what the turn has not answered: what it has recorded as the end is none.
    pub(super) fn goes_on(&mut self) {
        if let Some(follower) = &mut self.follower {
            follower.goes_on();
        }
    }

    /// How the turn ended, once that is recorded.
    pub(super) fn end(&self) -> Option<&TurnEnd> {
        self.follower.as_ref()?.end()
    }

    /// Is a call recorded that has no output yet and that codex has not reported as over?
    ///
    /// `is_reported_open`: codex has reported something that has begun and is not over.
    pub(super) fn is_running(&self, is_reported_open: bool) -> bool {
        let mut followers = self.follower.iter().chain(&self.agents.followed);
        followers.any(|follower| follower.is_running(is_reported_open))
    }

    /// codex has reported that everything is over which it had reported as begun.
    pub(super) fn all_reported_over(&mut self) {
        let followers = self.follower.iter_mut().chain(&mut self.agents.followed);
        followers.for_each(RolloutFollower::all_reported_over);
    }

    /// A sub-agent may have been started.
    pub(super) fn expect_agents(&mut self) {
        self.agents.look_until = Some(Instant::now() + AGENT_WAIT);
    }

    /// The to-do list of the last `update_plan` call.
    pub(super) fn plan(&self) -> &[PlanItem] {
        self.follower.as_ref().map_or(&[], RolloutFollower::plan)
    }

    /// Is there a rollout, and was nothing recorded in it?
    pub(super) fn is_silent(&self) -> bool {
        self.follower.as_ref().is_some_and(|it| !it.has_grown())
    }

    /// Looks for the rollout, also where that was tried just now.
    pub(super) fn search_now(&mut self) {
        self.next_search = Instant::now();
        self.find_record();
    }

    /// The version of codex, where this turn has begun the thread.
    fn recorded_version(&self) -> Option<CodexVersion> {
        let version = record::origin(&first_line(self.new_rollout.as_deref()?)?)?.version?;
        find::parse_version(&version)
    }

    /// What the turn took. `totals` is what codex has reported of the thread at its end.
    pub(super) fn account(mut self, totals: Option<Usage>, emitter: &mut Emitter<'_>) -> Account {
        let telemetry = self.follower.as_ref().map(|it| it.telemetry().clone());
        let recorded = self.follower.as_mut().and_then(|it| it.tokens(totals));
        let mut tokens = recorded.unwrap_or_else(|| {
            // What of that was used before is not known where the rollout could not be read.
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
                "the turn's tokens and tool calls cannot be told: {error}"
            ));
        }
        let version = self.recorded_version();
        self.version.finish(version, emitter);
        Account {
            tokens,
            telemetry: telemetry.unwrap_or_default(),
        }
    }

    /// Finds the rollout of a thread that codex has just begun or unpacked.
    fn find_record(&mut self) {
        let (Some(thread), None) = (&self.thread, &self.follower) else {
            return;
        };
        if Instant::now() < self.next_search {
            return;
        }
        let home = self.spec.places.codex_home(self.spec.config);
        // codex makes it when there is something to record; an error now may be none the next time.
        if let Ok(Some(path)) = home::find_rollout(&home, thread) {
            let follower = match self.spec.thread {
                None => RolloutFollower::new_thread(&path, &self.cancel),
                Some(_) => RolloutFollower::late(&path, self.begun, &self.cancel),
            };
            if self.spec.thread.is_none() {
                self.new_rollout = Some(path);
            }
            let names = self.spec.tools.map(|it| it.names());
            self.follower = follower.ok().map(|follower| follower.with_names(names));
            // Late, but there: texts are worth a wait again.
            self.unmatched = 0;
        }
        self.next_search = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(Duration::from_secs(2));
    }

    /// Tells what codex has recorded; says whether it had recorded anything.
    pub(super) fn follow(&mut self, emitter: &mut Emitter<'_>) -> bool {
        self.find_record();
        let wanted = self.spec.config.tool_events;
        let Some(follower) = &mut self.follower else {
            return false;
        };
        let mut grown = take_from(follower, wanted, &self.cancel, emitter);
        if follower.has_spawned() {
            self.agents.look_until = Some(Instant::now() + AGENT_WAIT);
        }
        let now = Instant::now();
        if self.agents.look_until.is_some_and(|until| now < until) && now >= self.agents.next_look {
            self.agents.next_look = now + AGENT_PAUSE;
            self.find_agents(emitter);
        }
        for agent in &mut self.agents.followed {
            grown |= take_from(agent, wanted, &self.cancel, emitter);
            if agent.has_spawned() {
                self.agents.look_until = Some(Instant::now() + AGENT_WAIT);
            }
        }
        grown
    }

    /// Finds the rollouts of sub-agents that this turn has started: each names the thread that started it.
    fn find_agents(&mut self, emitter: &mut Emitter<'_>) {
        let Some(main) = &self.thread else { return };
        let home = self.spec.places.codex_home(self.spec.config);
        let agents = &mut self.agents;
        // A sub-agent's sub-agent is only known once its parent is.
        let mut candidates = home::rollouts_since(&home, main, self.begun);
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
            match RolloutFollower::sub_agent(&path, &thread, self.begun, &self.cancel) {
                Ok(follower) => {
                    let names = self.spec.tools.map(|it| it.names());
                    agents.followed.push(follower.with_names(names));
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

    /// Emits everything that is recorded and was not emitted, the turn being over; texts only where codex has not
    /// printed them.
    pub(super) fn emit_remaining(&mut self, left: Unprinted, emitter: &mut Emitter<'_>) {
        self.find_agents(emitter);
        let wanted = self.spec.config.tool_events;
        let is_cancelled = self.cancel.is_cancelled();
        let mut left_out = 0u64;
        let mut told = 0;
        let (follower, agents) = (&mut self.follower, &mut self.agents.followed);
        for (at, follower) in follower.iter_mut().chain(agents).enumerate() {
            let mut tell = |event: &[u8], emitter: &mut Emitter<'_>| {
                told += event.len();
                if is_cancelled && told > MAX_AFTER_CANCEL {
                    left_out += 1;
                } else {
                    tell(event, wanted, emitter);
                }
            };
            loop {
                follower.poll();
                let was_full = follower.is_full();
                while let Some(next) = follower.next_left() {
                    match next {
                        Recorded::Event(event) => tell(&event, emitter),
                        Recorded::Compacted => emitter.status(Status::Compacted, None),
                        // What was printed in other words has its record here.
                        Recorded::Text(..) if self.misprinted > 0 => self.misprinted -= 1,
                        Recorded::Text(text, _)
                            if at == 0
                                && match left {
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
                tell(&event, emitter);
            }
            if at == 0
                && left == Unprinted::End
                && let Some(TurnEnd::Completed(Some(last))) = follower.end()
                && self.last_text.as_deref() != Some(last.trim())
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
                if let Some(before) = follower.before(text) {
                    for recorded in before {
                        match recorded {
                            Recorded::Event(event) => {
                                tell(&event, self.spec.config.tool_events, emitter)
                            }
                            Recorded::Compacted => emitter.status(Status::Compacted, None),
                            // What was printed in other words has its record here.
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
                // It stands behind what has to be taken first.
                self.follow(emitter);
                continue;
            }
            // A codex whose texts are not found is not waited for again and again.
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
                    // It keeps no record at all.
                    None => MAX_UNMATCHED_TEXTS,
                };
                self.misprinted += 1;
                // It is not recorded; what was recorded by now came before it.
                self.follow(emitter);
                return;
            }
            os::wait_for(&self.cancel, Duration::from_millis(3));
            if self.follower.is_none() {
                // A new thread's rollout appears about when codex prints its first text.
                self.next_search = self.next_search.min(Instant::now() + TICK / 2);
            }
        }
    }
}

/// The rollout of the thread that goes on, followed from its present end.
///
/// # Errors
/// [`Kind::Io`] where it cannot be read; it may be later, when codex has unpacked it.
fn known_thread(spec: &TurnSpec<'_>, cancel: &CancelToken) -> Result<Option<RolloutFollower>> {
    let Some(thread) = spec.thread else {
        return Ok(None);
    };
    let home = spec.places.codex_home(spec.config);
    let Some(path) = home::find_rollout(&home, thread)? else {
        // codex will say what it makes of that.
        return Ok(None);
    };
    let follower = RolloutFollower::known_thread(&path, cancel)
        .map_err(|error| Error::os(Kind::Io, format!("cannot read '{}'", path.display()), error))?;
    Ok(Some(follower.with_names(spec.tools.map(|it| it.names()))))
}

/// Tells what a rollout has, as far as no text stands before it that codex will print.
fn take_from(
    follower: &mut RolloutFollower,
    wanted: bool,
    cancel: &CancelToken,
    emitter: &mut Emitter<'_>,
) -> bool {
    let mut grown = false;
    loop {
        let has_more = follower.poll();
        grown |= has_more;
        let was_full = follower.is_full();
        let mut told = false;
        while let Some(recorded) = follower.next_before_text() {
            match recorded {
                Recorded::Event(event) => tell(&event, wanted, emitter),
                Recorded::Compacted => emitter.status(Status::Compacted, None),
                Recorded::Text(..) => {}
            }
            told = true;
        }
        if told {
            emitter.flush();
        }
        // After a cancel nothing holds this up any more, and what the daemon does not take would pile up.
        if !was_full || follower.is_full() || cancel.is_cancelled() {
            return grown;
        }
    }
}

/// Tells an event of a tool call, where they are `wanted`.
pub(super) fn tell(event: &[u8], wanted: bool, emitter: &mut Emitter<'_>) {
    emitter.calls += 1;
    if wanted {
        emitter.raw_event(event);
    }
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
    let mut lines = Lines::followed(io::Read::take(file, MAX_META));
    let line = lines.next(|_| true).ok()??;
    Some(line.bytes.to_vec())
}

/// Milliseconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis().try_into().unwrap_or(u64::MAX))
}
