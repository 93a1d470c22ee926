//! Follows the rollout of a running turn: tool calls with codex's own ids, as codex records them.
//!
//! codex's output has no call ids and its rollout has no progress, so a turn needs both. The rollout is read from its
//! length at the beginning of the turn. Its records are queued in order, texts of the assistant among the calls, and
//! the turn takes the calls around the texts that codex prints. The queue is bounded: reading pauses while it is full.

use super::Tokens;
use super::usage::TokenCount;
use crate::canonical::{ContextUse, PlanItem, Telemetry, TurnUsage, Usage};
use crate::codex::home;
use crate::mcp::ToolNames;
use crate::os::open_regular_file;
use crate::os::{CancelToken, Cancellable};
use crate::rollout::calls::{Calls, MatchedRecord, write_result, write_use};
use crate::rollout::lines::{LineKind, Lines};
use crate::rollout::record::{self, Record, TurnEnd};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long records behind a text wait until codex has printed the text.
const PRINT_WAIT: Duration = Duration::from_millis(500);
/// How many bytes may be queued before reading pauses. One line may exceed it.
const MAX_QUEUED: usize = 1 << 20;
/// How many bytes of texts are kept that codex did not print in time.
const MAX_UNPRINTED: usize = 4 << 20;

/// A growing rollout.
#[derive(Debug)]
pub(super) struct RolloutFollower {
    lines: Lines<Cancellable<File>>,
    /// The offset where reading began.
    start: u64,
    /// The turn is the first one that began after this time, in milliseconds since 1970. `None` once it was found.
    awaits: Option<u64>,
    /// The thread, if it is a sub-agent's.
    agent: Option<String>,
    calls: Calls<()>,
    queue: VecDeque<Recorded>,
    /// How many bytes are queued.
    queued: usize,
    /// Texts that codex did not print in time. It may still print them.
    unprinted: VecDeque<String>,
    /// The id of the codex turn that began last.
    turn: Option<String>,
    /// How the turn ended, once codex has recorded it.
    end: Option<TurnEnd>,
    /// All calls before this number are completed, as codex has reported.
    reported: u64,
    /// A call that may have started a sub-agent was recorded since the last [`RolloutFollower::has_spawned`].
    spawned: bool,
    /// The tokens that the thread had used before the turn.
    before: Usage,
    /// The tokens of the turn.
    count: TokenCount,
    /// Whether the thread has any record of tokens.
    is_counted: bool,
    telemetry: Telemetry,
    /// The to-do list of the last `update_plan` call.
    plan: Vec<PlanItem>,
    /// The daemon's names of its tools.
    names: Option<Arc<ToolNames>>,
}

/// A queued record.
#[derive(Debug)]
pub(super) enum Recorded {
    /// An event, as JSON.
    Event(Vec<u8>),
    /// A text of the assistant, and when it was read.
    Text(String, Instant),
    /// The conversation was compacted.
    Compacted,
}

impl Recorded {
    fn bytes(&self) -> usize {
        match self {
            Recorded::Event(event) => event.len(),
            Recorded::Text(text, _) => text.len(),
            Recorded::Compacted => 1,
        }
    }
}

fn is_turn_record(kind: LineKind) -> bool {
    matches!(
        kind,
        LineKind::Call
            | LineKind::Output
            | LineKind::Item
            | LineKind::Turn
            | LineKind::TurnEnd
            | LineKind::Image
            | LineKind::Message
            | LineKind::Usage
            | LineKind::Context
            | LineKind::Compacted
    )
}

fn is_earlier_record(kind: LineKind) -> bool {
    matches!(kind, LineKind::Turn | LineKind::Usage)
}

impl RolloutFollower {
    /// Follows the rollout of a thread that the turn has created.
    ///
    /// # Errors
    /// Those of the operating system.
    pub(super) fn new_thread(path: &Path, cancel: &CancelToken) -> io::Result<RolloutFollower> {
        Ok(RolloutFollower::of(
            Lines::followed(growing(open_regular_file(path)?, cancel)),
            None,
            TokenCount::default(),
        ))
    }

    /// Follows the rollout of a thread that is about to be resumed.
    ///
    /// # Errors
    /// Those of the operating system.
    pub(super) fn known_thread(path: &Path, cancel: &CancelToken) -> io::Result<RolloutFollower> {
        let mut file = open_regular_file(path)?;
        let (length, count, context) = at_end(&mut file, cancel)?;
        file.seek(SeekFrom::Start(length))?;
        let lines = Lines::starting_at(growing(file, cancel), length);
        let mut follower = RolloutFollower::of(lines, None, count);
        follower.is_counted = count.used() != Usage::default();
        follower.telemetry.context = context;
        Ok(follower)
    }

    /// Follows a rollout from the first turn that began after this time, in milliseconds since 1970. For a rollout that
    /// could not be read before the turn: a compressed one, which codex decompresses.
    ///
    /// # Errors
    /// Those of the operating system.
    pub(super) fn starting_since(
        path: &Path,
        since: u64,
        cancel: &CancelToken,
    ) -> io::Result<RolloutFollower> {
        let lines = Lines::followed(growing(open_regular_file(path)?, cancel));
        Ok(RolloutFollower::of(
            lines,
            Some(since),
            TokenCount::default(),
        ))
    }

    /// Follows the rollout of a sub-agent that was started after this time. A fork's rollout begins with turns of its
    /// parent, which are skipped.
    ///
    /// # Errors
    /// Those of the operating system.
    pub(super) fn sub_agent(
        path: &Path,
        thread: &str,
        since: u64,
        cancel: &CancelToken,
    ) -> io::Result<RolloutFollower> {
        let since = home::time_of_id(thread).map_or(since, |made| made.max(since));
        let mut follower = RolloutFollower::starting_since(path, since, cancel)?;
        follower.agent = Some(thread.to_owned());
        Ok(follower)
    }

    fn of(
        lines: Lines<Cancellable<File>>,
        awaits: Option<u64>,
        count: TokenCount,
    ) -> RolloutFollower {
        RolloutFollower {
            start: lines.offset(),
            lines,
            awaits,
            agent: None,
            calls: Calls::default(),
            queue: VecDeque::new(),
            queued: 0,
            unprinted: VecDeque::new(),
            turn: None,
            end: None,
            reported: 0,
            spawned: false,
            before: count.used(),
            count: count.restarted(),
            is_counted: false,
            telemetry: Telemetry::default(),
            plan: Vec::new(),
            names: None,
        }
    }

    /// Renames the daemon's tools to these names.
    pub(super) fn with_names(mut self, names: Option<Arc<ToolNames>>) -> RolloutFollower {
        self.names = names;
        self
    }

    /// Reads new records until the queue is full. Returns whether there were any.
    pub(super) fn poll(&mut self) -> bool {
        let before = self.lines.offset();
        while !self.is_full() {
            let filter = match self.awaits {
                Some(_) => is_earlier_record,
                None => is_turn_record,
            };
            match self.lines.next(filter) {
                // It contains the whole new conversation and can be too long to be held.
                Ok(Some(line)) if line.kind == LineKind::Compacted => {
                    self.compacted();
                }
                Ok(Some(line)) => {
                    // An unreadable line is ignored; the turn's end does not depend on it.
                    let Ok(record) = record::read(&line) else {
                        continue;
                    };
                    match (record, self.awaits) {
                        (
                            Record::Total {
                                used,
                                context,
                                rate_limits,
                                ..
                            },
                            awaits,
                        ) => {
                            self.is_counted = true;
                            self.count.total(used);
                            self.telemetry.context = context.or(self.telemetry.context);
                            if awaits.is_none() {
                                self.telemetry.rate_limits =
                                    rate_limits.or(self.telemetry.rate_limits);
                            }
                        }
                        (Record::Limits(limits), None) => {
                            self.telemetry.rate_limits = Some(limits);
                        }
                        (Record::Model(model), None) => self.telemetry.model = Some(model),
                        (Record::Compacted, None) => self.compacted(),
                        (Record::Request { used, .. }, _) => {
                            self.is_counted = true;
                            self.count.request(used);
                        }
                        (Record::Turn { id, at }, Some(since))
                            if home::time_of_id(&id).or(at) >= Some(since) =>
                        {
                            self.awaits = None;
                            self.before = self.count.used();
                            self.count = self.count.restarted();
                            self.turn = Some(id.into_owned());
                        }
                        (_, Some(_)) => {}
                        (record, None) => {
                            let mut handler = RecordHandler {
                                agent: self.agent.as_deref(),
                                calls: &mut self.calls,
                                queue: &mut self.queue,
                                queued: &mut self.queued,
                                turn: &mut self.turn,
                                end: &mut self.end,
                                spawned: &mut self.spawned,
                                plan: &mut self.plan,
                                names: self.names.as_deref(),
                            };
                            handler.handle(record);
                        }
                    }
                }
                Ok(None) => return self.lines.offset() != before,
                Err(error) => {
                    log::warn!("cannot read the rollout: {error}");
                    return false;
                }
            }
        }
        true
    }

    fn compacted(&mut self) {
        self.telemetry.compactions += 1;
        if self.agent.is_none() {
            self.queue.push_back(Recorded::Compacted);
            self.queued += Recorded::Compacted.bytes();
        }
    }

    /// Whether the queue is full.
    pub(super) fn is_full(&self) -> bool {
        self.queued >= MAX_QUEUED
    }

    /// The tokens of the turn, and of the thread. `totals` are the thread's tokens that codex reported at the end.
    /// `None` where the turn was not found.
    pub(super) fn tokens(&mut self, totals: Option<Usage>) -> Option<Tokens> {
        if self.awaits.is_some() {
            return None;
        }
        // The same again, unless it could not be recorded.
        if let Some(totals) = totals {
            self.is_counted = true;
            self.count.total(totals);
        }
        Some(Tokens {
            turn: TurnUsage::from(self.count.used()),
            thread: self.is_counted.then(|| self.before.plus(self.count.used())),
        })
    }

    /// Other data of the turn's requests.
    pub(super) fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// Whether anything was recorded since reading began.
    pub(super) fn has_grown(&self) -> bool {
        self.lines.offset() > self.start
    }

    /// The to-do list of the last `update_plan` call, whether or not that succeeded.
    pub(super) fn plan(&self) -> &[PlanItem] {
        &self.plan
    }

    /// The tokens of the turn of this sub-agent.
    pub(super) fn used(&self) -> Usage {
        match self.awaits {
            Some(_) => Usage::default(),
            None => self.count.used(),
        }
    }

    /// Whether a call is recorded that has no output yet and that codex has not reported as completed.
    ///
    /// `is_reported_open`: codex has reported a step that has not completed.
    pub(super) fn is_running(&self, is_reported_open: bool) -> bool {
        self.calls.any_open_since(self.reported) || is_reported_open && self.calls.any_open()
    }

    /// Notes that codex has reported the completion of every step that it had reported as started.
    pub(super) fn all_reported_over(&mut self) {
        self.reported = self.calls.count();
    }

    /// Discards the recorded end: another codex turn continues this one.
    pub(super) fn continue_turn(&mut self) {
        self.end = None;
    }

    /// How the turn ended, once codex has recorded it.
    pub(super) fn end(&self) -> Option<&TurnEnd> {
        self.end.as_ref()
    }

    /// Whether a call that may have started a sub-agent was recorded since the last time.
    pub(super) fn has_spawned(&mut self) -> bool {
        std::mem::take(&mut self.spawned)
    }

    fn pop(&mut self) -> Option<Recorded> {
        let first = self.queue.pop_front()?;
        self.queued -= first.bytes();
        Some(first)
    }

    /// The next record before a text, never a text itself. A text that codex does not print in time is set aside, at
    /// once if the queue is full.
    pub(super) fn next_before_text(&mut self) -> Option<Recorded> {
        loop {
            match self.queue.front()? {
                Recorded::Text(_, seen) if seen.elapsed() <= PRINT_WAIT && !self.is_full() => {
                    return None;
                }
                _ => {}
            }
            match self.pop()? {
                Recorded::Text(text, _) => self.set_aside(text),
                other => return Some(other),
            }
        }
    }

    fn set_aside(&mut self, text: String) {
        // A sub-agent's texts go to its parent, and are never printed.
        if self.agent.is_some() || is_from_agent(&text) {
            return;
        }
        self.unprinted.push_back(text);
        while self.unprinted.len() > 1
            && self.unprinted.iter().map(String::len).sum::<usize>() > MAX_UNPRINTED
        {
            self.unprinted.pop_front();
        }
    }

    /// Takes what was recorded before this text, which codex has printed: calls, and texts that it has not printed.
    /// `None` while the text is not recorded.
    pub(super) fn take_before(&mut self, text: &str) -> Option<Vec<Recorded>> {
        let text = text.trim();
        if let Some(at) = self.unprinted.iter().position(|late| late.trim() == text) {
            let passed = self.unprinted.drain(..=at).take(at);
            let seen = Instant::now();
            return Some(passed.map(|text| Recorded::Text(text, seen)).collect());
        }
        let at = self.queue.iter().position(
            |recorded| matches!(recorded, Recorded::Text(recorded, _) if recorded.trim() == text),
        )?;
        let seen = Instant::now();
        let unprinted = self.unprinted.drain(..);
        let mut before: Vec<Recorded> = unprinted.map(|text| Recorded::Text(text, seen)).collect();
        for _ in 0..at {
            before.extend(self.pop());
        }
        self.pop();
        before.retain(|it| !matches!(it, Recorded::Text(text, _) if is_from_agent(text)));
        Some(before)
    }

    /// The next record, of any kind; texts that were set aside come first.
    pub(super) fn next_remaining(&mut self) -> Option<Recorded> {
        if let Some(text) = self.unprinted.pop_front() {
            return Some(Recorded::Text(text, Instant::now()));
        }
        loop {
            match self.pop()? {
                Recorded::Text(text, _) if self.agent.is_some() || is_from_agent(&text) => {}
                next => return Some(next),
            }
        }
    }

    /// An error result for each call without an output.
    pub(super) fn unanswered(&mut self) -> Vec<Vec<u8>> {
        let unanswered = self.calls.unanswered();
        unanswered.iter().map(|(id, ())| no_output(id)).collect()
    }
}

/// A rollout that is read while it grows, and for another 0.5 s after a cancel: the last records of a turn that is
/// being stopped are emitted, too.
fn growing(file: File, cancel: &CancelToken) -> Cancellable<File> {
    Cancellable::with_grace(file, cancel, Duration::from_millis(500))
}

/// The error result of a call without an output.
fn no_output(id: &str) -> Vec<u8> {
    serde_json::json!({
        "type": "tool_result",
        "id": id,
        "content": "the turn ended before this call had an output",
        "is_error": true,
    })
    .to_string()
    .into_bytes()
}

/// The to-do list in an `update_plan` call.
fn parse_plan(call: &record::Call<'_>) -> Option<Vec<PlanItem>> {
    #[derive(serde::Deserialize)]
    struct Arguments {
        plan: Vec<PlanStep>,
    }
    #[derive(serde::Deserialize)]
    struct PlanStep {
        step: String,
        status: String,
    }
    let record::CallInput::Encoded(raw) = call.input else {
        return None;
    };
    let arguments: Arguments = serde_json::from_str(&crate::json::decode(raw)).ok()?;
    let steps = arguments.plan.into_iter();
    Some(
        steps
            .map(|PlanStep { step, status }| PlanItem { text: step, status })
            .collect(),
    )
}

/// Whether this is a message between agents. codex records those as texts of the assistant, as JSON.
fn is_from_agent(text: &str) -> bool {
    text.starts_with('{')
        && serde_json::from_str::<serde_json::Value>(text).is_ok_and(|message| {
            message.get("author").is_some() && message.get("recipient").is_some()
        })
}

/// Distributes records to the follower's fields.
struct RecordHandler<'a> {
    agent: Option<&'a str>,
    calls: &'a mut Calls<()>,
    queue: &'a mut VecDeque<Recorded>,
    queued: &'a mut usize,
    turn: &'a mut Option<String>,
    end: &'a mut Option<TurnEnd>,
    spawned: &'a mut bool,
    plan: &'a mut Vec<PlanItem>,
    names: Option<&'a ToolNames>,
}

impl RecordHandler<'_> {
    fn push(&mut self, recorded: Recorded) {
        *self.queued += recorded.bytes();
        self.queue.push_back(recorded);
    }

    fn event(&mut self, write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) {
        let mut bytes = Vec::new();
        // Writing to memory does not fail.
        let _ = write(&mut bytes);
        self.push(Recorded::Event(bytes));
    }

    /// Replaces codex's name of one of the daemon's tools by the daemon's.
    fn rename(&self, call: &mut record::Call<'_>) {
        let namespace = call.namespace.as_deref().unwrap_or_default();
        let own = self
            .names
            .and_then(|names| names.own_name(namespace, &call.name));
        if let Some(own) = own {
            call.name = own.to_owned().into();
        }
    }

    fn handle(&mut self, record: Record<'_>) {
        let agent = self.agent;
        let Some(matched) = self.calls.feed(record, |_| ((), 0)) else {
            return;
        };
        match matched {
            MatchedRecord::Call { mut call, evicted } => {
                self.note_call(&mut call);
                self.event(|out| write_use(out, &call, None, agent));
                for (id, ()) in evicted {
                    log::warn!(
                        "too many calls are open; '{id}' is reported as a call without an output"
                    );
                    self.push(Recorded::Event(no_output(&id)));
                }
            }
            MatchedRecord::Output {
                output, is_error, ..
            } => self.event(|out| write_result(out, &output.id, &output.content, is_error)),
            MatchedRecord::Complete { mut call, parent } => {
                self.note_call(&mut call.call);
                self.event(|out| write_use(out, &call.call, parent.as_deref(), agent));
                self.event(|out| write_result(out, &call.call.id, &call.content, call.failed));
            }
            MatchedRecord::Other(Record::Turn { id, .. }) => *self.turn = Some(id.into_owned()),
            MatchedRecord::Other(Record::TurnEnd { id, end }) => {
                let is_another = matches!((&id, &self.turn), (Some(id), Some(turn)) if id != turn);
                if !is_another {
                    self.end.get_or_insert(end);
                }
            }
            MatchedRecord::Other(Record::Message {
                is_user: false,
                text,
                ..
            }) => self.push(Recorded::Text(text, Instant::now())),
            MatchedRecord::Other(_) => {}
        }
    }

    /// Evaluates a call before it is emitted.
    fn note_call(&mut self, call: &mut record::Call<'_>) {
        self.rename(call);
        if call.name == "update_plan" && call.namespace.is_none() {
            *self.plan = parse_plan(call).unwrap_or_default();
        }
        // Every version of codex's multi-agent tools has one with this suffix that starts an agent.
        *self.spawned |= call.name.ends_with("_agent");
    }
}

/// The tokens that the thread of this rollout has used, where they are known, and the use of its context window.
///
/// # Errors
/// Those of the operating system.
pub(crate) fn thread_use(
    rollout: &Path,
    cancel: &CancelToken,
) -> io::Result<(Option<Usage>, Option<ContextUse>)> {
    let mut file = open_regular_file(rollout)?;
    let (_, count, context) = at_end(&mut file, cancel)?;
    let used = count.used();
    Ok(((used != Usage::default()).then_some(used), context))
}

/// The length of a rollout in bytes, the tokens of its thread, and the use of its context window.
///
/// codex's last total is near the end and sufficient, unless tokens were lost from it: then it is marked, or differs
/// from the sum that codex records with each request from 0.153 on. Only then the whole rollout is read.
fn at_end(
    file: &mut File,
    cancel: &CancelToken,
) -> io::Result<(u64, TokenCount, Option<ContextUse>)> {
    let length = file.metadata()?.len();
    let mut chunk = 64 << 10;
    loop {
        let start = length.saturating_sub(chunk);
        file.seek(SeekFrom::Start(start))?;
        // The first line of a chunk is usually incomplete; then it is not JSON and is skipped.
        let piece_of_it = io::Read::take(&mut *file, length - start);
        let mut lines = Lines::starting_at(Cancellable::new(piece_of_it, cancel), start);
        let mut count = TokenCount::default();
        let (mut last, mut requests, mut has_grown) = (None, None, false);
        let mut last_context = None;
        while let Some(line) = lines.next(|kind| kind == LineKind::Usage)? {
            match record::read(&line) {
                Ok(Record::Total {
                    used,
                    is_whole,
                    context,
                    ..
                }) => {
                    count.total(used);
                    last_context = context.or(last_context);
                    has_grown |= last.is_some_and(|(before, _)| before != used);
                    last = Some((used, is_whole));
                }
                Ok(Record::Request { used, thread }) => {
                    count.request(used);
                    requests = Some(thread);
                }
                _ => {}
            }
        }
        if start == 0 {
            return Ok((length, count, last_context));
        }
        if let Some((total, true)) = last
            // With requests on record, there is one between any two totals that differ.
            && (requests == Some(total) || requests.is_none() && has_grown)
        {
            let mut count = TokenCount::default();
            count.total(total);
            return Ok((length, count, last_context));
        }
        chunk = chunk.saturating_mul(16);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::io::Write;

    fn line(kind: &str, payload: &Value) -> String {
        let line =
            json!({"timestamp": "2026-11-21T12:00:00.000Z", "type": kind, "payload": payload});
        format!("{line}\n")
    }

    /// codex's total, in input tokens, and the sum that it records with it.
    fn total(input: u64, sum: u64) -> String {
        let used = json!({"input_tokens": input, "output_tokens": 0, "total_tokens": sum});
        line(
            "event_msg",
            &json!({"type": "token_count", "info": {"total_token_usage": used, "last_token_usage": used}}),
        )
    }

    fn request(input: u64, thread: u64) -> String {
        let usage = |input| json!({"input_tokens": input, "output_tokens": 0});
        line(
            "token_usage_record",
            &json!({"usage": usage(input), "thread_token_usage": usage(thread)}),
        )
    }

    /// A line longer than the first chunk.
    fn long() -> String {
        let output = json!({"call_id": "x", "output": "x".repeat(100_000)});
        line("response_item", &output)
    }

    fn input(input_tokens: u64) -> Usage {
        Usage {
            input_tokens,
            ..Usage::default()
        }
    }

    #[test]
    fn finds_usage_in_rollout() {
        let (before, between) = (long(), long());
        let cases: &[(&str, Vec<String>, u64, u64)] = &[
            ("nothing", vec![], 0, 0),
            (
                "a line that is not whole",
                vec!["{\"timest".to_owned()],
                0,
                0,
            ),
            ("totals", vec![total(100, 100), total(200, 200)], 200, 200),
            (
                "totals behind much else",
                vec![
                    total(50, 50),
                    before.clone(),
                    total(100, 100),
                    total(200, 200),
                ],
                200,
                200,
            ),
            (
                "one total near the end",
                vec![total(100, 100), before.clone(), total(200, 200)],
                200,
                200,
            ),
            (
                "a full context window",
                vec![
                    total(100, 100),
                    total(300, 300),
                    total(0, 1000),
                    before.clone(),
                    total(100, 1100),
                    total(200, 1200),
                ],
                500,
                200,
            ),
            (
                "requests and totals",
                vec![
                    request(100, 100),
                    total(100, 100),
                    before.clone(),
                    request(100, 200),
                    total(200, 200),
                ],
                200,
                200,
            ),
            (
                "a killed codex",
                vec![
                    request(100, 100),
                    total(100, 100),
                    request(100, 200),
                    before.clone(),
                    request(100, 300),
                    total(200, 200),
                ],
                300,
                200,
            ),
            (
                "much between the last request and its total",
                vec![
                    request(100, 100),
                    total(100, 100),
                    request(100, 200),
                    before.clone(),
                    request(100, 300),
                    between.clone(),
                    total(200, 200),
                ],
                300,
                200,
            ),
            (
                "an older codex before",
                vec![
                    total(100, 100),
                    total(200, 200),
                    before.clone(),
                    request(100, 100),
                    total(300, 300),
                ],
                300,
                300,
            ),
        ];
        for (what, lines, thread, counted) in cases {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(lines.concat().as_bytes()).unwrap();
            let mut follower =
                RolloutFollower::known_thread(file.path(), &CancelToken::new().unwrap()).unwrap();
            let used = |turn: u64| Tokens {
                turn: TurnUsage::from(input(turn)),
                thread: (thread + turn > 0).then(|| input(thread + turn)),
            };
            assert!(
                !follower.poll(),
                "{what}: earlier records are not the turn's"
            );
            assert_eq!(follower.tokens(None), Some(used(0)), "{what}");
            // codex continues from its last total; its output counts where it could not record.
            assert_eq!(
                follower.tokens(Some(input(counted + 7))),
                Some(used(7)),
                "{what}"
            );
            assert_eq!(
                follower.tokens(Some(input(counted + 7))),
                Some(used(7)),
                "{what}"
            );
            for line in [request(10, thread + 10), total(counted + 10, counted + 10)] {
                file.write_all(line.as_bytes()).unwrap();
            }
            assert!(follower.poll(), "{what}");
            assert_eq!(
                follower.tokens(Some(input(counted + 10))),
                Some(used(17)),
                "{what}"
            );
        }
    }

    #[test]
    fn late_found_turn_starts_at_its_beginning() {
        let begins = |second: u8| {
            let payload = json!({"type": "task_started", "turn_id": "x"});
            line("event_msg", &payload).replace("00.000Z", &format!("{second:02}.000Z"))
        };
        let text = |text: &str| {
            let content = json!([{"type": "output_text", "text": text}]);
            let payload = json!({"type": "message", "role": "assistant", "content": content});
            line("response_item", &payload)
        };
        let turn = |second, said, used| [begins(second), text(said), total(used, used)].concat();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let since = 1_795_262_402_000; // 12:00:02
        let mut follower =
            RolloutFollower::starting_since(file.path(), since, &CancelToken::new().unwrap())
                .unwrap();
        file.write_all((turn(0, "first", 100) + &turn(1, "second", 200)).as_bytes())
            .unwrap();
        follower.poll();
        assert_eq!(follower.tokens(Some(input(300))), None);
        file.write_all(turn(2, "third", 300).as_bytes()).unwrap();
        follower.poll();
        assert_eq!(
            follower.tokens(Some(input(300))),
            Some(Tokens {
                turn: TurnUsage::from(input(100)),
                thread: Some(input(300))
            })
        );
        assert!(
            follower.take_before("second").is_none() && follower.take_before("third").is_some()
        );
    }
}
