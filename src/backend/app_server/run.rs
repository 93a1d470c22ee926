//! Runs one turn on a server that has the thread loaded: from `turn/start` to the turn's end and the cleanup after it.
//!
//! The turn's own thread emits all events; it waits for the server, the rollout, a cancel and timeouts at the same
//! time. Notifications of other threads and turns are ignored: those of sub-agents come on the same pipe.

use super::client::{Client, RequestError};
use super::message::{self, Notification, ServerEvent, ServerMessage, ThreadItem, TurnCompletion};
use super::pool::Pool;
use super::server::{RESPONSE_TIMEOUT, Server};
use super::texts::Texts;
use crate::backend::child::Next;
use crate::backend::emitter::Emitter;
use crate::backend::reporter::{
    Concluded, Limits, Reporter, StopCause, outcome, status_of_silent_end, warn_of_silence,
};
use crate::backend::steering::SteerMessage;
use crate::backend::{Outcome, TurnSpec, TurnStatus};
use crate::canonical::{Status, Usage};
use crate::codex::failure;
use crate::error::{Error, Kind};
use crate::os::{self, CancelToken};
use serde_json::json;
use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long an interrupted turn may take to end; it takes 0.004 to 0.07 s (0.135.0 to 0.169.0).
const INTERRUPT_TIMEOUT: Duration = Duration::from_millis(1000);
/// When an interrupt is repeated that codex has rejected because the turn had not begun.
const INTERRUPT_RETRY: Duration = Duration::from_millis(5);
/// How long codex may take to report the end of a turn that it has recorded.
const END_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the rollout may lag behind the notifications: 0.3 ms (0.135.0).
const RECORD_LAG: Duration = Duration::from_millis(50);
/// How long another codex that refreshes the login may take to write it to disk.
const REFRESH_WAIT: Duration = Duration::from_millis(1500);
/// How long the cleanup after a turn may take.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs a turn on a server.
pub(super) struct AppServerRun<'a> {
    pub(super) pool: &'a Pool,
    pub(super) spec: &'a TurnSpec<'a>,
    pub(super) cancel: &'a CancelToken,
    /// No other server will be tried if this one does not respond.
    pub(super) is_last: bool,
}

/// The state of a running turn.
struct TurnState<'a> {
    reporter: Reporter<'a>,
    texts: Texts,
    /// The id of the `turn/start` request, until its response.
    request: Option<u64>,
    /// The turn's id, once it is known.
    turn: Option<String>,
    has_begun: bool,
    end: Option<TurnCompletion>,
    /// The last error that codex reported.
    last_error: Option<String>,
    /// The error response to `turn/start`.
    rejected: Option<String>,
    usage: Option<Usage>,
    /// Notifications that came before the turn's id was known.
    early: Vec<Vec<u8>>,
    /// Running turns of other threads, by thread.
    foreign: HashMap<String, String>,
    has_foreign: bool,
    /// The item and the index of the reasoning summary part that is being streamed.
    thought: Option<(String, u64)>,
    stopped: Option<StopCause>,
    /// When the turn was interrupted, and when the interrupt is to be repeated.
    interrupted: Option<Instant>,
    interrupt_at: Option<Instant>,
    /// The ids of the interrupt requests.
    interrupts: Vec<u64>,
    /// Messages of the user during the turn.
    steered: Vec<Steered>,
    /// codex was asked to respond to input that it had left without a response.
    is_continuation: bool,
}

/// A message that was sent to codex during the turn.
struct Steered {
    message: SteerMessage,
    /// The id of its `turn/steer` request.
    request: u64,
    /// How far it has come.
    stage: SteerStage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum SteerStage {
    /// codex has not responded yet.
    Sent,
    /// codex has accepted it. Whether the model gets it in this turn is open: up to 0.155 a message that comes after
    /// the last request to the model only goes into the history.
    Accepted,
    /// It is in the conversation. The model's next activity shows that it was delivered.
    Echoed,
}

impl AppServerRun<'_> {
    /// Runs the turn. `None` where the server has not responded to `turn/start` and another one may be tried: nothing
    /// was emitted, and this server has been killed.
    pub(super) fn run(&self, mut server: Server, emitter: &mut Emitter<'_>) -> Option<Outcome> {
        let begun = os::ticks_since_boot();
        let mut state = TurnState {
            reporter: Reporter::new(self.spec, self.cancel),
            texts: Texts::default(),
            request: None,
            turn: None,
            has_begun: false,
            end: None,
            last_error: None,
            rejected: None,
            usage: None,
            early: Vec::new(),
            foreign: HashMap::new(),
            has_foreign: false,
            thought: None,
            stopped: None,
            interrupted: None,
            interrupt_at: None,
            interrupts: Vec::new(),
            steered: Vec::new(),
            is_continuation: false,
        };
        if self.spec.thread.is_some() {
            state.reporter.thread(&server.thread, emitter);
        }
        if let Some(steering) = self.spec.steering {
            // Messages from before the turn has begun wait for it.
            steering.open(true);
        }
        let called = self.spec.tools.map(|tools| tools.called().clone());
        let steered = self.spec.steering.map(|steering| steering.waker().clone());
        let wakers = called.into_iter().chain(steered).collect();
        server.client.child.wake_by(wakers);
        self.cancel.attach(server.client.child.pidfd());
        state.reporter.recording.begin();
        let params = self.params(&server);
        state.request = Some(server.client.send("turn/start", &params));
        self.listen(&mut server, &mut state, emitter);
        if let Some(steering) = self.spec.steering {
            steering.open(false);
        }
        // The remaining ones were not delivered.
        state.steered.clear();
        if state.request.is_some() && state.stopped.is_none() && !self.is_last {
            emitter.debug("codex app-server does not respond: starting another one");
            server.client.kill();
            return None;
        }
        state.texts.abandon(emitter);
        self.clean_up(&mut server, &state, begun, emitter);
        if let Some(tools) = self.spec.tools {
            tools.end_turn();
        }
        let exit = self.return_to_pool(server, &state, emitter);
        state.reporter.emit_rest(state.end.is_some(), emitter);
        Some(self.conclude(state, exit, emitter))
    }

    /// The parameters of `turn/start`.
    fn params(&self, server: &Server) -> serde_json::Value {
        let spec = self.spec;
        let images = spec.images.iter();
        let mut input: Vec<_> = images
            .map(|path| json!({"type": "localImage", "path": text_of(path)}))
            .collect();
        input.push(json!({"type": "text", "text": spec.prompt}));
        let mut params = json!({
            "threadId": server.thread,
            "input": input,
            "approvalPolicy": "never",
            "sandboxPolicy": server.settings().sandbox_policy(),
        });
        if let Some(model) = &server.settings().model {
            params["model"] = model.as_str().into();
        }
        if let Some(effort) = &server.settings().effort {
            params["effort"] = effort.as_str().into();
        }
        if let Some(schema) = spec.output_schema {
            // It was written for this turn, and is JSON.
            let schema = std::fs::read(schema).unwrap_or_default();
            params["outputSchema"] = serde_json::from_slice(&schema).unwrap_or_default();
        }
        params
    }

    /// Emits events until the turn or the server has ended.
    fn listen(&self, server: &mut Server, state: &mut TurnState<'_>, emitter: &mut Emitter<'_>) {
        let mut limits = Limits::new(self.spec);
        let mut recorded_since = None;
        let begun = Instant::now();
        loop {
            if state.end.is_some() || state.rejected.is_some() {
                if self.start_continuation(server, state, emitter) {
                    recorded_since = None;
                    continue;
                }
                break;
            }
            let client = &mut server.client;
            let now = Instant::now();
            if state.reporter.recording.end().is_some() {
                let since = *recorded_since.get_or_insert(now);
                if now.duration_since(since) > END_TIMEOUT {
                    emitter.debug("codex has recorded the end of the turn but does not report it");
                    client.begin_close();
                    return;
                }
            }
            let limit = match (&state.stopped, recorded_since) {
                (None, None) => limits.next(state.reporter.is_running()),
                _ => None,
            };
            let tick = state
                .stopped
                .is_none()
                .then(|| now + Reporter::tick(emitter));
            let interrupt_deadline = state.interrupted.map(|since| since + INTERRUPT_TIMEOUT);
            let response_deadline = (state.request.filter(|_| !state.is_continuation))
                .map(|_| begun + RESPONSE_TIMEOUT);
            let deadline = [
                limit,
                tick,
                interrupt_deadline,
                state.interrupt_at,
                response_deadline,
            ];
            let cancel = state.stopped.is_none().then_some(self.cancel);
            match client.next(cancel, deadline.into_iter().flatten().min()) {
                Next::Line => {
                    self.take_lines(client, &server.thread, state, emitter);
                    emitter.flush();
                    limits.note_activity();
                }
                Next::Cancelled => {
                    emitter.debug("the turn is cancelled: interrupting it");
                    state.stop(StopCause::Cancelled);
                    self.interrupt(client, &server.thread, state);
                }
                // A call of one of the daemon's tools, whose record is written about now, or a message of the user.
                Next::Woken => {
                    state.reporter.recording.follow(emitter);
                    self.steer(client, &server.thread, state);
                }
                Next::Deadline => {
                    let now = Instant::now();
                    if limit.is_some_and(|limit| now >= limit) {
                        emitter.debug("a time limit is reached: interrupting the turn");
                        let error = limits.error(&state.reporter);
                        state.stop(StopCause::Limit(error));
                        self.interrupt(client, &server.thread, state);
                    } else if response_deadline.is_some_and(|at| now >= at)
                        && state.stopped.is_none()
                    {
                        let seconds = RESPONSE_TIMEOUT.as_secs();
                        state.rejected = Some(format!("no response within {seconds} s"));
                        client.begin_close();
                        return;
                    } else if interrupt_deadline
                        .is_some_and(|interrupt_deadline| now >= interrupt_deadline)
                    {
                        emitter.debug("codex does not interrupt the turn: ending codex app-server");
                        client.begin_close();
                        return;
                    } else if state.interrupt_at.is_some_and(|at| now >= at) {
                        self.interrupt(client, &server.thread, state);
                    } else if state.stopped.is_none() {
                        if state.reporter.recording.follow(emitter) {
                            limits.note_activity();
                        }
                        emitter.flush();
                    }
                }
                Next::Ended => return,
            }
        }
        if state.end.is_some() {
            self.wait_for_record(state, emitter);
        }
    }

    /// Sends pending messages of the user, if the turn accepts them.
    fn steer(&self, client: &mut Client, thread: &str, state: &mut TurnState<'_>) {
        let (Some(steering), Some(turn)) = (self.spec.steering, &state.turn) else {
            return;
        };
        if !state.has_begun || state.stopped.is_some() {
            return;
        }
        for message in steering.take() {
            let params = json!({
                "threadId": thread,
                "expectedTurnId": turn,
                "input": [{"type": "text", "text": message.text}],
            });
            state.steered.push(Steered {
                request: client.send("turn/steer", &params),
                message,
                stage: SteerStage::Sent,
            });
        }
    }

    /// Starts another codex turn where the last one left input without a response: the user's last messages, or
    /// everything where its login was being refreshed. Returns whether it did.
    fn start_continuation(
        &self,
        server: &mut Server,
        state: &mut TurnState<'_>,
        emitter: &mut Emitter<'_>,
    ) -> bool {
        state.steered.retain(|it| it.stage >= SteerStage::Accepted);
        if state.stopped.is_some() || state.is_continuation {
            return false;
        }
        match &state.end {
            Some(TurnCompletion::Completed) if !state.steered.is_empty() => {
                emitter.debug("codex has not responded to the user's last messages: starting another turn for them")
            }
            Some(TurnCompletion::Failed(why))
                if failure::is_refreshed_elsewhere(why) && !state.reporter.worked =>
            {
                emitter.debug("another codex has just refreshed the login: starting the turn again");
                os::wait_for_cancel(self.cancel, REFRESH_WAIT);
            }
            _ => return false,
        }
        state.last_error = None;
        self.wait_for_record(state, emitter);
        state.reporter.recording.continue_turn();
        let mut params = self.params(server);
        params["input"] = json!([]);
        state.request = Some(server.client.send("turn/start", &params));
        state.is_continuation = true;
        state.has_begun = false;
        state.turn = None;
        state.end = None;
        for steered in &mut state.steered {
            steered.stage = SteerStage::Echoed;
        }
        true
    }

    /// Waits for the last record of a turn.
    fn wait_for_record(&self, state: &mut TurnState<'_>, emitter: &mut Emitter<'_>) {
        let deadline = Instant::now() + RECORD_LAG;
        loop {
            state.reporter.recording.follow(emitter);
            if state.reporter.recording.end().is_some() || Instant::now() >= deadline {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Requests that the turn be interrupted. codex rejects that before the turn has begun.
    fn interrupt(&self, client: &mut Client, thread: &str, state: &mut TurnState<'_>) {
        state.interrupt_at = None;
        if let Some(turn) = &state.turn {
            state.interrupts.push(client.interrupt(thread, turn));
        }
    }

    /// Handles the lines that are available.
    fn take_lines(
        &self,
        client: &mut Client,
        thread: &str,
        state: &mut TurnState<'_>,
        emitter: &mut Emitter<'_>,
    ) {
        let mut declined = Vec::new();
        let mut is_answered = false;
        while let Some(line) = client.line() {
            let line = match line {
                Ok(line) => line,
                Err(length) => {
                    state.reporter.skipped_line(length, emitter);
                    continue;
                }
            };
            match message::parse(&line) {
                ServerMessage::Notification(_) if state.request.is_some() => {
                    state.early.push(line.into_owned());
                }
                ServerMessage::Notification(notification) => {
                    self.notification(notification, thread, state, emitter);
                }
                ServerMessage::Request { id, method } => {
                    declined.push((id.to_vec(), method.into_owned()));
                }
                ServerMessage::Response { id, outcome } if state.request == Some(id) => {
                    state.request = None;
                    is_answered = true;
                    match outcome {
                        Ok(result) => state.turn = turn_id(result),
                        Err(message) => state.rejected = Some(message.into_owned()),
                    }
                    for line in std::mem::take(&mut state.early) {
                        if let ServerMessage::Notification(notification) = message::parse(&line) {
                            self.notification(notification, thread, state, emitter);
                        }
                    }
                }
                ServerMessage::Response { id, outcome } if state.interrupts.contains(&id) => {
                    if let Err(message) = outcome {
                        on_interrupt_rejected(&message, state);
                    }
                }
                ServerMessage::Response { id, outcome } => {
                    if let Some(at) = state.steered.iter().position(|it| it.request == id) {
                        match outcome {
                            Ok(_) => {
                                let stage = &mut state.steered[at].stage;
                                *stage = SteerStage::Accepted.max(*stage);
                            }
                            Err(_) => drop(state.steered.remove(at)),
                        }
                    }
                }
                ServerMessage::Other => {}
            }
            if state.end.is_some() {
                break;
            }
        }
        for (id, method) in declined {
            client.decline(&id, &method);
        }
        if is_answered && state.stopped.is_some() && state.rejected.is_none() {
            // It was cancelled before the turn had an id.
            self.interrupt(client, thread, state);
        }
        // Messages from before the turn had begun.
        self.steer(client, thread, state);
        // Goals are disabled, and nothing else starts a turn without a request.
        let foreign = state.foreign.remove(thread);
        if let Some(turn) = foreign.filter(|turn| Some(turn) != state.turn.as_ref()) {
            client.interrupt(thread, &turn);
        }
    }

    fn notification(
        &self,
        notification: Notification<'_>,
        thread: &str,
        state: &mut TurnState<'_>,
        emitter: &mut Emitter<'_>,
    ) {
        let Notification {
            thread: of,
            turn,
            event,
        } = notification;
        let is_foreign_thread = of.as_deref().is_some_and(|it| it != thread);
        let is_foreign_turn = turn.is_some() && turn.as_deref() != state.turn.as_deref();
        if is_foreign_thread || is_foreign_turn {
            let (Some(of), Some(turn)) = (of, turn) else {
                return;
            };
            state.has_foreign |= is_foreign_thread;
            match event {
                ServerEvent::TurnStarted => {
                    state.foreign.insert(of.into_owned(), turn.into_owned());
                }
                ServerEvent::TurnCompleted(_) => {
                    state.foreign.remove(&*of);
                }
                _ => {}
            }
            return;
        }
        let is_running = state.stopped.is_none();
        match event {
            ServerEvent::TurnStarted => {
                state.has_begun = true;
                emitter.start();
                state.reporter.thread(thread, emitter);
            }
            ServerEvent::TurnCompleted(end) => state.end = Some(end),
            ServerEvent::Usage(total) => {
                state.usage = Some(total);
                state.note_model_activity();
            }
            _ if !is_running => {}
            ServerEvent::TextDelta { item, text } => {
                state.reporter.worked = true;
                if state.texts.begins(&item) {
                    state.reporter.recording.follow(emitter);
                }
                state.texts.delta(&item, &text, emitter);
            }
            ServerEvent::ThoughtDelta { item, part, text } => {
                let separator = match &state.thought {
                    Some((known, current)) if *known == *item && *current != part => "\n",
                    _ => "",
                };
                let text = format!("{separator}{text}");
                state.thought = Some((item.into_owned(), part));
                state.reporter.thinking(&text, false, emitter);
            }
            ServerEvent::ItemStarted(item) => self.item_started(&item, state, emitter),
            ServerEvent::ItemCompleted(item) => self.item_completed(&item, state, emitter),
            ServerEvent::Plan(items) => {
                state.reporter.recording.follow(emitter);
                state.reporter.plan(items, emitter);
            }
            ServerEvent::Error(message) => {
                emitter.start();
                state.reporter.trouble(&message, emitter);
                state.last_error = Some(message);
            }
            // A warning about no thread concerns the machine; `codex exec` does not print it.
            ServerEvent::Warning(message) if of.is_none() => {
                emitter.debug(&format!("codex: {message}"));
            }
            ServerEvent::Warning(message) => {
                emitter.start();
                state.reporter.trouble(&message, emitter);
            }
            ServerEvent::Other => {}
        }
    }

    fn item_started(
        &self,
        item: &ThreadItem<'_>,
        state: &mut TurnState<'_>,
        emitter: &mut Emitter<'_>,
    ) {
        // codex has recovered from it.
        state.last_error = None;
        match &*item.kind() {
            "userMessage" => {
                let texts = item.user_texts();
                let echoed = state.steered.iter_mut().find(|it| {
                    it.stage < SteerStage::Echoed
                        && texts.iter().any(|text| **text == it.message.text)
                });
                if let Some(echoed) = echoed {
                    echoed.stage = SteerStage::Echoed;
                }
            }
            _ => state.note_model_activity(),
        }
        if item.kind() == "contextCompaction" {
            state.reporter.recording.follow(emitter);
            emitter.status(Status::Compacting, None);
        } else if let Some(step) = item.step(false) {
            state.reporter.step(&step, emitter);
        }
    }

    fn item_completed(
        &self,
        item: &ThreadItem<'_>,
        state: &mut TurnState<'_>,
        emitter: &mut Emitter<'_>,
    ) {
        match &*item.kind() {
            "agentMessage" => {
                let (id, text) = (item.text("id"), item.text("text"));
                state.reporter.worked = true;
                // If none of it was streamed, the calls before it are emitted first.
                let is_unstreamed = state.texts.begins(&id) && !text.trim().is_empty();
                let recording = &mut state.reporter.recording;
                if is_unstreamed {
                    recording.emit_calls_recorded_before(&text, emitter);
                }
                let text = state.texts.complete(&id, &text, emitter);
                if text.is_empty() {
                    return;
                }
                if !is_unstreamed {
                    emitter.flush();
                    recording.emit_calls_recorded_before(&text, emitter);
                }
                recording.set_last_text(&text);
            }
            "reasoning" => {
                let id = item.text("id");
                if state
                    .thought
                    .take()
                    .is_some_and(|(current, _)| current == *id)
                {
                    emitter.end_text();
                } else {
                    let whole = item.summary().join("\n");
                    state.reporter.thinking(&whole, true, emitter);
                }
            }
            _ => {
                if let Some(step) = item.step(true) {
                    state.reporter.step(&step, emitter);
                }
            }
        }
    }

    /// Ends what the turn has left running, as the end of a `codex exec` would.
    fn clean_up(
        &self,
        server: &mut Server,
        state: &TurnState<'_>,
        begun: u64,
        emitter: &mut Emitter<'_>,
    ) {
        let client = &mut server.client;
        if client.is_broken() || !state.has_begun {
            return;
        }
        for (thread, turn) in &state.foreign {
            client.interrupt(thread, turn);
        }
        let params = json!({"threadId": server.thread});
        match client.request(
            "thread/backgroundTerminals/clean",
            &params,
            CLEANUP_TIMEOUT,
            None,
        ) {
            Ok(_) => {}
            Err(RequestError::Rejected(why)) => {
                emitter.debug(&format!(
                    "codex does not end the background terminals of the turn: {why}"
                ));
            }
            Err(_) => {}
        }
        if state.stopped.is_some() {
            let entry = format!("CODEX_THREAD_ID={}", server.thread);
            os::end_marked_below(client.guard_pid(), &entry, begun);
        }
    }

    /// Returns the server to the pool, or ends it. The exit is returned where it determines the outcome: codex has not
    /// reported the end of the turn.
    fn return_to_pool(
        &self,
        mut server: Server,
        state: &TurnState<'_>,
        emitter: &mut Emitter<'_>,
    ) -> Option<failure::Exit> {
        let is_over = state.end.is_some() || state.rejected.is_some();
        if !is_over {
            // It has ended, or does not respond.
            let exit = match state.stopped {
                Some(_) => server.client.kill(),
                None => server.close(),
            };
            emitter.debug(&format!("codex has ended: {}", exit.describe()));
            return Some(exit);
        }
        let why = match server.end_turn() {
            Err(why) => why,
            // Sub-agents stay loaded, and so do their MCP servers.
            Ok(()) if state.has_foreign => "it has had sub-agents",
            Ok(()) if state.rejected.is_some() => "it has rejected the turn",
            Ok(()) => {
                self.pool.put(self.spec.workspace, server);
                return None;
            }
        };
        emitter.debug(&format!("codex app-server is ended: {why}"));
        server.close();
        None
    }

    fn conclude(
        &self,
        state: TurnState<'_>,
        exit: Option<failure::Exit>,
        emitter: &mut Emitter<'_>,
    ) -> Outcome {
        let TurnState {
            reporter,
            end,
            last_error,
            rejected,
            usage,
            stopped,
            ..
        } = state;
        let Concluded {
            thread,
            end: recorded,
            worked,
            skipped,
            account,
        } = reporter.conclude(usage, emitter);
        let mut failure_message = last_error;
        let status = match (end, stopped) {
            (_, Some(StopCause::Cancelled)) => TurnStatus::Cancelled,
            (_, Some(StopCause::Limit(error))) => TurnStatus::Failed(error),
            (Some(TurnCompletion::Completed), None) => {
                warn_of_silence(skipped, emitter);
                TurnStatus::Completed
            }
            (Some(TurnCompletion::Failed(message)), None) => {
                let message = match message.is_empty() {
                    true => failure_message.take().unwrap_or_default(),
                    false => message,
                };
                let refusal = self.spec.thread.filter(|_| !worked);
                let refusal = refusal.and_then(|_| failure::refusal_of_message(&message));
                let status = match refusal {
                    Some(refusal) => TurnStatus::Refused(refusal),
                    None => TurnStatus::Failed(failure::from_message(&message)),
                };
                failure_message = Some(message);
                status
            }
            (Some(TurnCompletion::Interrupted), None) => TurnStatus::Failed(Error::new(
                Kind::CodexFailed,
                "codex interrupted the turn without a request to do so",
            )),
            (None, None) => match (rejected, exit) {
                (None, Some(exit)) => {
                    status_of_silent_end(recorded, &exit, failure_message.as_deref(), emitter)
                }
                // A server that still runs has reported the result.
                (message, _) => {
                    let message = message.unwrap_or_default();
                    TurnStatus::Failed(failure::from_response("turn/start", &message))
                }
            },
        };
        let failure_message = failure_message.as_deref();
        outcome(self.spec, status, failure_message, account, thread)
    }
}

impl TurnState<'_> {
    /// The model was active: it has been given what is in the conversation.
    fn note_model_activity(&mut self) {
        let given = self
            .steered
            .extract_if(.., |it| it.stage == SteerStage::Echoed);
        given.for_each(|it| it.message.delivered());
    }

    fn stop(&mut self, cause: StopCause) {
        self.stopped = Some(cause);
        self.interrupted = Some(Instant::now());
    }
}

/// Handles a rejected interrupt. It is repeated where the turn has not begun: codex reports that no turn is active, or
/// that the turn interrupted before it is.
fn on_interrupt_rejected(message: &str, state: &mut TurnState<'_>) {
    if message.contains("no active turn") || message.contains("expected active turn id") {
        state.interrupt_at = Some(Instant::now() + INTERRUPT_RETRY);
    }
}

/// The turn's id in the result of `turn/start`.
fn turn_id(result: &[u8]) -> Option<String> {
    let result = crate::json::Members::of(Some(result), &["turn"]);
    let turn = crate::json::Members::of(result.raw("turn"), &["id"]);
    turn.text("id").map(std::borrow::Cow::into_owned)
}

fn text_of(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
