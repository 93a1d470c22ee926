//! Following the rollout of a running turn: tool calls with codex's own ids, as codex records them.
//!
//! codex's events have no call ids and its rollout has no progress, so a turn listens to both. The rollout is
//! read from where it stood when the turn began, so a turn costs what it wrote and emits nothing of an earlier
//! one. What it says is queued in codex's order, texts of the assistant among the calls, and the turn takes the
//! calls out around the texts that codex prints. The queue is bounded: no more is read than is taken.

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

/// How long a text that was recorded may keep what was recorded behind it waiting for codex to print it.
const UNPRINTED: Duration = Duration::from_millis(500);
/// How much may be queued, in bytes, before no more is read. One line may go over it.
const MAX_QUEUED: usize = 1 << 20;
/// How much is kept of texts that codex did not print in time, in bytes.
const MAX_LATE: usize = 4 << 20;

/// A rollout that grows.
#[derive(Debug)]
pub(super) struct RolloutFollower {
    lines: Lines<Cancellable<File>>,
    /// Where the reading began.
    start: u64,
    /// The turn is the first that began since then, in milliseconds since 1970. `None` once it has begun.
    awaits: Option<u64>,
    /// The thread, where it is a sub-agent's.
    agent: Option<String>,
    calls: Calls<()>,
    queue: VecDeque<Recorded>,
    /// How many bytes are queued.
    queued: usize,
    /// Texts that codex did not print in time. It may print them still.
    late: VecDeque<String>,
    /// The turn that began last.
    turn: Option<String>,
    /// How the turn ended, once that is recorded.
    end: Option<TurnEnd>,
    /// codex has reported everything as over that was recorded before so many calls.
    reported: u64,
    /// Was a call recorded that may have started a sub-agent, since this was asked last?
    spawned: bool,
    /// What the thread had used before the turn.
    before: Usage,
    /// What the turn uses.
    count: TokenCount,
    /// Was any use recorded of the thread?
    is_counted: bool,
    telemetry: Telemetry,
    /// The list of the last `update_plan` call.
    plan: Vec<PlanItem>,
    /// The daemon's names of its tools.
    names: Option<Arc<ToolNames>>,
}

/// What was recorded.
#[derive(Debug)]
pub(super) enum Recorded {
    /// An event, as JSON.
    Event(Vec<u8>),
    /// A text of the assistant, and when it was seen here.
    Text(String, Instant),
    /// The conversation was made shorter.
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

fn wanted(kind: LineKind) -> bool {
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

fn wanted_before(kind: LineKind) -> bool {
    matches!(kind, LineKind::Turn | LineKind::Usage)
}

impl RolloutFollower {
    /// Follows the rollout of a thread that the turn has begun.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn new_thread(path: &Path, cancel: &CancelToken) -> io::Result<RolloutFollower> {
        Ok(RolloutFollower::of(
            Lines::followed(growing(open_regular_file(path)?, cancel)),
            None,
            TokenCount::default(),
        ))
    }

    /// Follows the rollout of a thread that is about to go on.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn known_thread(path: &Path, cancel: &CancelToken) -> io::Result<RolloutFollower> {
        let mut file = open_regular_file(path)?;
        let (length, count, context) = at_end(&mut file, cancel)?;
        file.seek(SeekFrom::Start(length))?;
        let lines = Lines::starting_at(growing(file, cancel), length);
        let mut watch = RolloutFollower::of(lines, None, count);
        watch.is_counted = count.used() != Usage::default();
        watch.telemetry.context = context;
        Ok(watch)
    }

    /// Follows the rollout of a thread that went on at this time, in milliseconds since 1970, and whose rollout
    /// could not be read then: one that was packed, which codex unpacks.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn late(
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

    /// Follows the rollout of a sub-agent that was started since this time. What a fork took over from its parent
    /// stands before its own first turn, and is not its own.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn sub_agent(
        path: &Path,
        thread: &str,
        since: u64,
        cancel: &CancelToken,
    ) -> io::Result<RolloutFollower> {
        let since = home::time_of_id(thread).map_or(since, |made| made.max(since));
        let mut watch = RolloutFollower::late(path, since, cancel)?;
        watch.agent = Some(thread.to_owned());
        Ok(watch)
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
            late: VecDeque::new(),
            turn: None,
            end: None,
            reported: 0,
            spawned: false,
            before: count.used(),
            count: count.anew(),
            is_counted: false,
            telemetry: Telemetry::default(),
            plan: Vec::new(),
            names: None,
        }
    }

    /// The same, telling the daemon's tools by these names.
    pub(super) fn with_names(mut self, names: Option<Arc<ToolNames>>) -> RolloutFollower {
        self.names = names;
        self
    }

    /// Takes what was recorded since, unless so much is queued that it has to be taken first; says whether that
    /// was anything.
    pub(super) fn poll(&mut self) -> bool {
        let before = self.lines.offset();
        while !self.is_full() {
            let wanted = match self.awaits {
                Some(_) => wanted_before,
                None => wanted,
            };
            match self.lines.next(wanted) {
                // It holds the whole new conversation, and may be longer than a line that is read.
                Ok(Some(line)) if line.kind == LineKind::Compacted => {
                    self.compacted();
                }
                Ok(Some(line)) => {
                    // A line that cannot be read is codex's to fix; the turn's end does not hang on it.
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
                            self.count = self.count.anew();
                            self.turn = Some(id.into_owned());
                        }
                        (_, Some(_)) => {}
                        (record, None) => {
                            let mut taker = Taker {
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
                            taker.take(record);
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

    /// Is so much queued that no more is read?
    pub(super) fn is_full(&self) -> bool {
        self.queued >= MAX_QUEUED
    }

    /// What the turn has used, and the thread with it. `totals` is what codex has printed at its end. `None` where
    /// the turn was not found.
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

    /// What was recorded of the turn's requests besides.
    pub(super) fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// Was anything recorded since the reading began?
    pub(super) fn has_grown(&self) -> bool {
        self.lines.offset() > self.start
    }

    /// The to-do list of the last `update_plan` call, whatever became of it.
    pub(super) fn plan(&self) -> &[PlanItem] {
        &self.plan
    }

    /// What the turn of this sub-agent has used.
    pub(super) fn used(&self) -> Usage {
        match self.awaits {
            Some(_) => Usage::default(),
            None => self.count.used(),
        }
    }

    /// Is a call recorded that has no output yet and that codex has not reported as over?
    ///
    /// `is_reported_open`: codex has reported something that has begun and is not over.
    pub(super) fn is_running(&self, is_reported_open: bool) -> bool {
        self.calls.any_open_since(self.reported) || is_reported_open && self.calls.any_open()
    }

    /// codex has reported that everything is over which it had reported as begun.
    pub(super) fn all_reported_over(&mut self) {
        self.reported = self.calls.count();
    }

    /// What is recorded as the turn's end is none.
    pub(super) fn goes_on(&mut self) {
        self.end = None;
    }

    /// How the turn ended, once that is recorded.
    pub(super) fn end(&self) -> Option<&TurnEnd> {
        self.end.as_ref()
    }

    /// Was a call answered that may have started a sub-agent, since this was asked last?
    pub(super) fn has_spawned(&mut self) -> bool {
        std::mem::take(&mut self.spawned)
    }

    fn pop(&mut self) -> Option<Recorded> {
        let first = self.queue.pop_front()?;
        self.queued -= first.bytes();
        Some(first)
    }

    /// The next of what is queued that no text stands before, never a text; a text that codex does not print is ignored in time, and
    /// at once where nothing would be read any more.
    pub(super) fn next_before_text(&mut self) -> Option<Recorded> {
        loop {
            match self.queue.front()? {
                Recorded::Text(_, seen) if seen.elapsed() <= UNPRINTED && !self.is_full() => {
                    return None;
                }
                _ => {}
            }
            match self.pop()? {
                Recorded::Text(text, _) => self.keep_late(text),
                other => return Some(other),
            }
        }
    }

    fn keep_late(&mut self, text: String) {
        // What a sub-agent says goes to its parent, and is never printed.
        if self.agent.is_some() || is_from_agent(&text) {
            return;
        }
        self.late.push_back(text);
        while self.late.len() > 1 && self.late.iter().map(String::len).sum::<usize>() > MAX_LATE {
            self.late.pop_front();
        }
    }

    /// Gives what was recorded before this text, which codex now prints: calls, and texts that it has not printed.
    /// `None` while it is not recorded.
    pub(super) fn before(&mut self, text: &str) -> Option<Vec<Recorded>> {
        let text = text.trim();
        if let Some(at) = self.late.iter().position(|late| late.trim() == text) {
            let unprinted = self.late.drain(..=at).take(at);
            let seen = Instant::now();
            return Some(unprinted.map(|text| Recorded::Text(text, seen)).collect());
        }
        let at = self.queue.iter().position(
            |recorded| matches!(recorded, Recorded::Text(recorded, _) if recorded.trim() == text),
        )?;
        let seen = Instant::now();
        let late = self.late.drain(..);
        let mut before: Vec<Recorded> = late.map(|text| Recorded::Text(text, seen)).collect();
        for _ in 0..at {
            before.extend(self.pop());
        }
        self.pop();
        before.retain(|it| !matches!(it, Recorded::Text(text, _) if is_from_agent(text)));
        Some(before)
    }

    /// The next of what is queued, whatever it is; a text that was late comes first.
    pub(super) fn next_left(&mut self) -> Option<Recorded> {
        if let Some(text) = self.late.pop_front() {
            return Some(Recorded::Text(text, Instant::now()));
        }
        loop {
            match self.pop()? {
                Recorded::Text(text, _) if self.agent.is_some() || is_from_agent(&text) => {}
                next => return Some(next),
            }
        }
    }

    /// An error for each call that never got an output.
    pub(super) fn unanswered(&mut self) -> Vec<Vec<u8>> {
        let unanswered = self.calls.unanswered();
        unanswered.iter().map(|(id, ())| no_output(id)).collect()
    }
}

/// A rollout that is read as it grows. What codex records while it is being ended is still emitted, as far as it can be
/// read in a moment.
fn growing(file: File, cancel: &CancelToken) -> Cancellable<File> {
    Cancellable::patient(file, cancel, Duration::from_millis(500))
}

/// The result of a call that has none.
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

/// The list that an `update_plan` call has.
fn planned(call: &record::Call<'_>) -> Option<Vec<PlanItem>> {
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

/// Is this a message of one agent to another? codex records those as texts of the assistant, as JSON.
fn is_from_agent(text: &str) -> bool {
    text.starts_with('{')
        && serde_json::from_str::<serde_json::Value>(text).is_ok_and(|message| {
            message.get("author").is_some() && message.get("recipient").is_some()
        })
}

/// Where a record goes.
struct Taker<'a> {
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

impl Taker<'_> {
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

    /// Gives a call of one of the daemon's tools the daemon's name for it.
    fn rename(&self, call: &mut record::Call<'_>) {
        let namespace = call.namespace.as_deref().unwrap_or_default();
        let own = self
            .names
            .and_then(|names| names.own_name(namespace, &call.name));
        if let Some(own) = own {
            call.name = own.to_owned().into();
        }
    }

    fn take(&mut self, record: Record<'_>) {
        let agent = self.agent;
        let Some(fed) = self.calls.feed(record, |_| ((), 0)) else {
            return;
        };
        match fed {
            MatchedRecord::Call { mut call, evicted } => {
                self.note_call(&mut call);
                self.event(|out| write_use(out, &call, None, agent));
                for (id, ()) in evicted {
                    log::warn!("too many calls have no output; '{id}' is told as one without");
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

    /// Looks at a call before it is emitted.
    fn note_call(&mut self, call: &mut record::Call<'_>) {
        self.rename(call);
        if call.name == "update_plan" && call.namespace.is_none() {
            *self.plan = planned(call).unwrap_or_default();
        }
        // Each kind of multi-agent tools that codex has has one that starts an agent.
        *self.spawned |= call.name.ends_with("_agent");
    }
}

/// What the thread of this rollout has used, where it is known, and what it holds.
///
/// # Errors
/// The operating system's.
pub(crate) fn thread_use(
    rollout: &Path,
    cancel: &CancelToken,
) -> io::Result<(Option<Usage>, Option<ContextUse>)> {
    let mut file = open_regular_file(rollout)?;
    let (_, count, context) = at_end(&mut file, cancel)?;
    let used = count.used();
    Ok(((used != Usage::default()).then_some(used), context))
}

/// The length of a rollout in bytes, what its thread has used so far, and what it holds.
///
/// codex's last total says it, and stands near the end, unless something was lost from it: then it has a mark, or
/// is not the sum that codex keeps with the single requests from 0.153 on. Only then the whole rollout is read.
fn at_end(
    file: &mut File,
    cancel: &CancelToken,
) -> io::Result<(u64, TokenCount, Option<ContextUse>)> {
    let length = file.metadata()?.len();
    let mut piece = 64 << 10;
    loop {
        let start = length.saturating_sub(piece);
        file.seek(SeekFrom::Start(start))?;
        // The first line of a piece is likely cut; then it is not JSON and skipped.
        let piece_of_it = io::Read::take(&mut *file, length - start);
        let mut lines = Lines::starting_at(Cancellable::new(piece_of_it, cancel), start);
        let mut count = TokenCount::default();
        let (mut last, mut requests, mut has_grown) = (None, None, false);
        let mut holds = None;
        while let Some(line) = lines.next(|kind| kind == LineKind::Usage)? {
            match record::read(&line) {
                Ok(Record::Total {
                    used,
                    is_whole,
                    context,
                    ..
                }) => {
                    count.total(used);
                    holds = context.or(holds);
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
            return Ok((length, count, holds));
        }
        if let Some((total, true)) = last
            // Where single requests are recorded, one stands between two totals that differ.
            && (requests == Some(total) || requests.is_none() && has_grown)
        {
            let mut count = TokenCount::default();
            count.total(total);
            return Ok((length, count, holds));
        }
        piece = piece.saturating_mul(16);
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

    /// Where codex's count stands, in input tokens; and the sum that it reports with it.
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

    /// Something longer than the piece that is read first.
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
            let mut watch =
                RolloutFollower::known_thread(file.path(), &CancelToken::new().unwrap()).unwrap();
            let used = |turn: u64| Tokens {
                turn: TurnUsage::from(input(turn)),
                thread: (thread + turn > 0).then(|| input(thread + turn)),
            };
            assert!(!watch.poll(), "{what}: nothing of that is the turn's");
            assert_eq!(watch.tokens(None), Some(used(0)), "{what}");
            // codex goes on from the last total; what it prints counts where it could not record it.
            assert_eq!(
                watch.tokens(Some(input(counted + 7))),
                Some(used(7)),
                "{what}"
            );
            assert_eq!(
                watch.tokens(Some(input(counted + 7))),
                Some(used(7)),
                "{what}"
            );
            for line in [request(10, thread + 10), total(counted + 10, counted + 10)] {
                file.write_all(line.as_bytes()).unwrap();
            }
            assert!(watch.poll(), "{what}");
            assert_eq!(
                watch.tokens(Some(input(counted + 10))),
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
        let mut watch =
            RolloutFollower::late(file.path(), since, &CancelToken::new().unwrap()).unwrap();
        file.write_all((turn(0, "first", 100) + &turn(1, "second", 200)).as_bytes())
            .unwrap();
        watch.poll();
        assert_eq!(watch.tokens(Some(input(300))), None);
        file.write_all(turn(2, "third", 300).as_bytes()).unwrap();
        watch.poll();
        assert_eq!(
            watch.tokens(Some(input(300))),
            Some(Tokens {
                turn: TurnUsage::from(input(100)),
                thread: Some(input(300))
            })
        );
        assert!(watch.before("second").is_none() && watch.before("third").is_some());
    }
}
