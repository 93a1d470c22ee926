//! The loop: takes what the daemon says, starts turns, answers.
//!
//! One thread owns the map of live requests and never waits on one, nor on a file: everything reaches it through one
//! channel, the lines of stdin from a reader thread, the ends of turns from their threads, signals from theirs. A
//! turn's response goes out through it as well, so that a stream's id is free again exactly when its response is
//! queued. Whatever a request needs of the file system its own thread does: one that hangs hangs alone.
//!
//! A thread that hangs cannot be ended. Its codex is, and what it was started for is answered without it
//! ([`Server::abandon`]). Such threads are not joined, and neither is the reader: blocked in stdin it cannot be
//! woken, and it holds nothing.

use super::names;
use super::outbox::Outbox;
use super::params;
use super::tools::{DaemonSink, DaemonTools, LogFilter, PendingCalls, StreamHandle};
use crate::backend::emitter::{EventSink, Level};
use crate::backend::steering::{SteerMessage, Steering};
use crate::backend::{Backends, list_models};
use crate::canonical::InitializeResult;
use crate::error::{Error, Kind, Result};
use crate::jsonrpc::{self, Frame, Id, InvalidMessage, Message};
use crate::mcp::ProtocolVersion;
use crate::os::{self, Blocking, CancelToken};
use crate::paths::Paths;
use crate::rollout::consume::{self, ConsumeReport, Mutation, WriteMode};
use crate::turn::queue::{Queue, Ticket};
use crate::turn::session::{self, Stored};
use crate::turn::{self, Context, Tools, plain_text};
use serde_json::json;
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long turns may take to end, once everything is to end, before nobody waits for a daemon that does not
/// read. A codex that ignores SIGINT and SIGTERM needs 2.6 s.
const ENDING: Duration = Duration::from_millis(3200);
/// How long they have then, before what is left is killed and abandoned. With the killing and the last lines that is
/// 4.2 s at most: a busy machine has something left of the 5 s.
const ABANDONED_ENDING: Duration = Duration::from_millis(150);
/// How long the last lines may take to be written at least. A daemon that reads, however slowly, has the whole
/// time of the end for them: what it does not get it cannot ask for again.
const LAST_LINES: Duration = Duration::from_millis(300);
/// When the loop ends a cancelled turn's codex itself: its thread, which does that at once, must hang.
const NUDGE_AFTER: Duration = Duration::from_millis(1000);
/// How long after that a cancelled turn's thread may take before the turn is answered without it. codex has its
/// time to end in it ([`LONGEST_ENDING`](crate::backend::guard::LONGEST_ENDING)).
const ABANDON_AFTER: Duration = Duration::from_millis(4000);
/// How long the reader waits at once for a daemon that does not read its responses.
const FLOODED_PAUSE: Duration = Duration::from_millis(100);
/// How many lines may wait to be handled.
const LINES_AHEAD: usize = 16;
/// The longest line behind which others are read before it is handled, in bytes.
const READ_AHEAD: usize = 1 << 20;

/// What the loop is given besides its streams.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) places: Paths,
}

/// Something for the loop.
enum LoopInput {
    /// A line. Where it is a long one, the reader waits until the sender is dropped, so that there is one of its kind.
    Line(Vec<u8>, Option<SyncSender<()>>),
    /// A line that was skipped, and whom it answers, where it does.
    TooLong(Option<Id>),
    /// The end of stdin, or an error in reading it.
    End(std::io::Result<()>),
    /// SIGINT or SIGTERM, by number.
    Signal(i32),
    /// What a thread was started for is over: a turn, a rewrite, a look at the config. Which, by its number and its
    /// request's id, and the result as JSON.
    Done(u64, Id, Result<String>),
    /// The daemon no longer takes what is written.
    Gone,
}

/// Serves on this process's stdin and stdout until the daemon closes stdin, goes away, or a signal comes.
/// Gives the exit status.
///
/// # Errors
/// [`Kind::Io`] where no thread or pipe can be made at the start, and where stdin or stdout fails; that the
/// daemon is gone is not a failure.
pub(crate) fn serve_stdio(setup: Setup) -> Result<u8> {
    crate::os::raise_open_files();
    let (sender, receiver) = sync_channel(LINES_AHEAD);
    let signals = sender.clone();
    crate::os::on_end_signal(move |number| {
        // The loop has ended: so does the process, at once.
        let _ = signals.send(LoopInput::Signal(number));
    })?;
    let stdin = BufReader::with_capacity(256 << 10, Blocking(std::io::stdin()));
    let stdout = Blocking(std::io::stdout());
    let is_hung_up = |time| crate::os::is_hung_up(std::io::stdin(), time);
    let status = run(setup, stdin, is_hung_up, stdout, sender, receiver)?;
    // A thread that hangs would keep the daemon waiting for the end of these.
    crate::os::close_standard_streams();
    Ok(status)
}

/// Serves on the given streams.
///
/// # Errors
/// As [`serve_stdio`].
#[cfg(test)]
pub(crate) fn serve(
    setup: Setup,
    stdin: impl BufRead + Send + 'static,
    stdout: impl Write + Send + 'static,
) -> Result<u8> {
    let (sender, receiver) = sync_channel(LINES_AHEAD);
    run(setup, stdin, |_| true, stdout, sender, receiver)
}

/// `is_hung_up` waits for the end of the writer of stdin, at most for so long.
fn run(
    setup: Setup,
    stdin: impl BufRead + Send + 'static,
    is_hung_up: impl Fn(Duration) -> bool + Send + 'static,
    stdout: impl Write + Send + 'static,
    sender: SyncSender<LoopInput>,
    receiver: Receiver<LoopInput>,
) -> Result<u8> {
    let no_thread = |error| Error::os(Kind::Io, "cannot start a thread", error);
    let gone = sender.clone();
    let (outbox, _writer) = Outbox::start(stdout, move || {
        // The loop may be over already.
        let _ = gone.send(LoopInput::Gone);
    })
    .map_err(no_thread)?;
    let (lines, responses) = (sender.clone(), outbox.clone());
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || {
            read(stdin, &lines, || {
                // A daemon that sends and does not read is not read either; what a dead one has sent is little.
                while responses.is_flooded() && !is_hung_up(FLOODED_PAUSE) {}
            });
        })
        .map_err(no_thread)?;
    let mut server = Server {
        setup,
        outbox,
        sender,
        queue: Queue::default(),
        backends: Arc::default(),
        context: None,
        live: HashMap::new(),
        last: 0,
        calls: PendingCalls::default(),
        log_filter: LogFilter::default(),
        ending: None,
        unread: Ok(()),
    };
    let status = server.work(&receiver);
    server.backends.end();
    let least = Instant::now() + LAST_LINES;
    let deadline = server
        .ending
        .map_or(least, |ending| ending.deadline.max(least));
    let unwritten = server.outbox.close(deadline);
    for (what, outcome) in [
        ("cannot read stdin", server.unread),
        ("cannot write to stdout", unwritten),
    ] {
        match outcome {
            Err(error) if !is_gone(&error) => return Err(Error::os(Kind::Io, what, error)),
            _ => {}
        }
    }
    Ok(status)
}

/// Is this how the end of the daemon looks?
fn is_gone(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionReset)
}

/// Reads lines, each after `wait`.
fn read(mut stdin: impl BufRead, lines: &SyncSender<LoopInput>, wait: impl Fn()) {
    loop {
        wait();
        let mut line = Vec::new();
        let input = match jsonrpc::read_line(&mut stdin, &mut line) {
            Ok(Frame::Line) if line.len() > READ_AHEAD => {
                let (handled, wait) = sync_channel(0);
                if lines.send(LoopInput::Line(line, Some(handled))).is_err() {
                    return;
                }
                // Nothing is sent: it ends when the other side is dropped.
                let _ = wait.recv();
                continue;
            }
            Ok(Frame::Line) => LoopInput::Line(line, None),
            Ok(Frame::TooLong(answered)) => LoopInput::TooLong(answered),
            Ok(Frame::End) => LoopInput::End(Ok(())),
            Err(error) => LoopInput::End(Err(error)),
        };
        let last = matches!(input, LoopInput::End(_));
        if lines.send(input).is_err() || last {
            return;
        }
    }
}

struct Server {
    setup: Setup,
    outbox: Outbox,
    sender: SyncSender<LoopInput>,
    queue: Queue,
    /// What outlives a turn, and a config.
    backends: Arc<Backends>,
    /// There after an `initialize` that may succeed.
    context: Option<Arc<Initialization>>,
    live: HashMap<Id, RunningRequest>,
    /// The number of the newest of them.
    last: u64,
    /// What the turns have asked the daemon for.
    calls: PendingCalls,
    log_filter: LogFilter,
    ending: Option<Shutdown>,
    /// How reading stdin came to its end.
    unread: std::io::Result<()>,
}

/// A request whose thread runs.
struct RunningRequest {
    /// A response of the thread's counts for this one, and not for a later request with the same id.
    number: u64,
    task: Task,
    cancel: CancelToken,
    thread: JoinHandle<()>,
    /// When something is to be done about a cancelled one that does not end.
    due: Option<Instant>,
    nudged: bool,
}

/// What a request's thread does.
enum Task {
    Initialize,
    Turn(RunningTurn),
    ListModels,
    Mutate,
}

impl Task {
    fn turn(&self) -> Option<&RunningTurn> {
        match self {
            Task::Turn(turn) => Some(turn),
            _ => None,
        }
    }

    /// Can the daemon end it? A rewrite is too short to be worth it, and what comes behind an `initialize` waits
    /// for that.
    fn is_cancellable(&self) -> bool {
        matches!(self, Task::Turn(_) | Task::ListModels)
    }

    /// The name of its thread.
    fn name(&self) -> &'static str {
        match self {
            Task::Initialize => "initialize",
            Task::Turn(_) => "turn",
            Task::ListModels => "models",
            Task::Mutate => "rewrite",
        }
    }
}

/// What a turn has, and nothing else that runs: it can be cancelled and has tools.
struct RunningTurn {
    agent_id: Option<String>,
    tools: Arc<Tools>,
    steering: Arc<Steering>,
    handle: StreamHandle,
}

impl RunningRequest {
    fn cancel(&mut self) {
        self.cancel.cancel();
        self.due.get_or_insert_with(|| Instant::now() + NUDGE_AFTER);
    }
}

/// What an `initialize` is to give to the turns that were asked for right behind it.
#[derive(Default)]
struct Initialization {
    state: Mutex<Initialized>,
    changed: Condvar,
}

#[derive(Clone, Default)]
enum Initialized {
    #[default]
    NotYet,
    Failed,
    Done(Arc<Context>),
}

impl Initialization {
    fn finish(&self, outcome: Initialized) {
        *self.state() = outcome;
        self.changed.notify_all();
    }

    /// Lets everybody who waits look at his flag again.
    fn wake(&self) {
        let _state = self.state();
        self.changed.notify_all();
    }

    /// How it went, once that is known; [`Initialized::NotYet`] where `cancel` is cancelled before.
    fn wait(&self, cancel: &CancelToken) -> Initialized {
        let mut state = self.state();
        while matches!(*state, Initialized::NotYet) && !cancel.is_cancelled() {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.clone()
    }

    fn state(&self) -> MutexGuard<'_, Initialized> {
        // Nothing that holds it can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_initialized() -> Error {
    Error::new(Kind::NotInitialized, "`initialize` must succeed first")
}

/// The plugin ends: why, and until when it is patient.
struct Shutdown {
    status: u8,
    deadline: Instant,
    abandoned: bool,
}

impl Server {
    /// Works until the end; gives the exit status.
    fn work(&mut self, receiver: &Receiver<LoopInput>) -> u8 {
        loop {
            if let Some(ending) = &self.ending
                && self.live.is_empty()
            {
                return ending.status;
            }
            let deadline = self.ending.as_ref().map(|ending| ending.deadline);
            let next = self.live.values().filter_map(|live| live.due);
            let received = match next.chain(deadline).min() {
                Some(at) => receiver.recv_timeout(at.saturating_duration_since(Instant::now())),
                None => receiver.recv().map_err(RecvTimeoutError::from),
            };
            match received {
                Ok(input) => self.take(input),
                Err(RecvTimeoutError::Timeout) => self.on_timeout(),
                // It cannot be: the server itself holds a sender.
                Err(RecvTimeoutError::Disconnected) => return 1,
            }
        }
    }

    /// Sees to cancelled requests that do not end, and to the end that does not come.
    fn on_timeout(&mut self) {
        let now = Instant::now();
        let mut hang = Vec::new();
        for (id, live) in &mut self.live {
            if live.due.is_none_or(|due| due > now) {
                continue;
            }
            if !live.nudged {
                live.nudged = true;
                live.cancel.end_children();
                live.due = Some(now + ABANDON_AFTER);
            } else if live
                .task
                .turn()
                .is_some_and(|turn| turn.handle.waits_for_room())
            {
                // It does not hang: it is the daemon that does not read.
                live.due = Some(now + NUDGE_AFTER);
            } else {
                hang.push(id.clone());
            }
        }
        if let Some(ending) = &mut self.ending
            && ending.deadline <= now
        {
            if ending.abandoned {
                crate::os::kill_everything_below();
                hang = self.live.keys().cloned().collect();
            } else {
                ending.abandoned = true;
                ending.deadline = now + ABANDONED_ENDING;
                self.outbox.abandon();
            }
        }
        for id in hang {
            self.abandon(&id);
        }
    }

    /// Answers a cancelled request in the place of its thread, which hangs; what that still has to say is dropped.
    fn abandon(&mut self, id: &Id) {
        let Some(live) = self.live.remove(id) else {
            return;
        };
        live.cancel.end_children();
        log::warn!("the thread of request {} hangs and is abandoned", id.json());
        let outcome = match live.task.turn() {
            Some(turn) => Ok(as_json(&turn.handle.abandon())),
            None => Err(shutting_down()),
        };
        self.answer(id, outcome);
    }

    fn take(&mut self, input: LoopInput) {
        match input {
            LoopInput::Line(line, _handled) => self.line(&line),
            LoopInput::TooLong(answered) => {
                let error = Error::new(
                    Kind::Request,
                    format!(
                        "the line is longer than {} MiB and was skipped",
                        jsonrpc::LONGEST_LINE >> 20
                    ),
                );
                self.reject_unparsable(answered.as_ref(), &error);
            }
            LoopInput::End(outcome) => {
                self.unread = outcome;
                self.end(0);
            }
            LoopInput::Signal(number) => {
                self.end(u8::try_from(128 + number).unwrap_or(1));
            }
            LoopInput::Gone => {
                log::info!("the daemon is gone");
                self.end(0);
            }
            LoopInput::Done(number, id, outcome) => self.done(number, &id, outcome),
        }
    }

    fn line(&mut self, line: &[u8]) {
        match jsonrpc::parse(line) {
            Ok(Message::Request { id, method, params }) => self.request(id, &method, params),
            Ok(Message::Notification { method, params }) => self.notification(&method, params),
            Ok(Message::Response { id, outcome }) => {
                if !self.calls.answer(&id, outcome) {
                    log::debug!("an answer that nobody waits for: {}", id.json());
                }
            }
            Ok(Message::InvalidResponse { id, why }) => {
                if let Some(id) = &id {
                    self.calls.fail(id, &why);
                }
                let message = format!("an answer of the daemon's cannot be used: {why}");
                self.log(Level::Warn, &message);
            }
            Err(InvalidMessage { id: None, error }) => {
                self.reject_unparsable(jsonrpc::id_of_broken_response(line, &[]).as_ref(), &error);
            }
            Err(InvalidMessage { id, error }) => self.refuse(id.as_ref(), &error),
        }
    }

    /// A line that could not be read is refused; a call that it answered does not wait for another.
    fn reject_unparsable(&self, answered: Option<&Id>, error: &Error) {
        if let Some(id) = answered {
            self.calls.fail(id, error.message());
        }
        self.refuse(None, error);
    }

    fn request(&mut self, id: Id, method: &str, params: Option<&RawValue>) {
        if self.live.contains_key(&id) {
            let error = Error::new(Kind::Request, format!("the id {} is in use", id.json()));
            return self.refuse(Some(&id), &error);
        }
        if method == names::PING {
            return self.answer(&id, Ok("{}".to_owned()));
        }
        if self.ending.is_some() {
            let error = Error::new(Kind::Request, "the plugin is shutting down");
            return self.refuse(Some(&id), &error);
        }
        let result = match method {
            names::SET_LOG_LEVEL => self.set_log_level(params).map(Some),
            names::CANCEL => self.cancel(params).map(Some),
            // Their threads answer.
            names::INITIALIZE => self.initialize(&id, params).map(|()| None),
            names::STEER => self.steer(&id, params).map(|()| None),
            names::STREAM => self.stream(&id, params).map(|()| None),
            names::MODELS => self.models(&id, params).map(|()| None),
            names::MUTATE => self.mutate(&id, params),
            _ => Err(Error::new(
                Kind::Method,
                format!("unknown method '{method}'"),
            )),
        };
        match result {
            Ok(Some(result)) => self.answer(&id, Ok(result)),
            Ok(None) => {}
            Err(error) => self.refuse(Some(&id), &error),
        }
    }

    fn notification(&mut self, method: &str, params: Option<&RawValue>) {
        match method {
            names::INITIALIZED => {}
            names::CANCELLED => {
                let result = self.cancelled(params);
                self.warn_of_unusable(method, result);
            }
            names::TOOLS_CHANGED => {
                let result = self.tools_changed(params);
                self.warn_of_unusable(method, result);
            }
            _ => log::debug!("an unknown notification: '{method}'"),
        }
    }

    /// A notification has no response that could report it.
    fn warn_of_unusable(&self, method: &str, result: Result<()>) {
        if let Err(error) = result {
            let message = format!("a `{method}` that cannot be used: {error}");
            self.log(Level::Warn, &message);
        }
    }

    /// Starts a thread for a request, which it answers with what `work` gives.
    fn spawn(
        &mut self,
        id: &Id,
        task: Task,
        cancel: CancelToken,
        work: impl FnOnce() -> Result<String> + Send + 'static,
    ) -> Result<()> {
        self.last += 1;
        let (number, done) = (self.last, self.sender.clone());
        let thread = {
            let id = id.clone();
            std::thread::Builder::new()
                .name(task.name().to_owned())
                .spawn(move || {
                    // A panic is a bug of ours; it must cost this request and no other.
                    let outcome = std::panic::catch_unwind(AssertUnwindSafe(work))
                        .unwrap_or_else(|_| Err(Error::new(Kind::Io, "plexum-openai has a bug")));
                    // Only where the request was abandoned nobody may listen any more.
                    let _ = done.send(LoopInput::Done(number, id, outcome));
                })
        };
        let thread = thread.map_err(|error| {
            let kind = match task {
                Task::Turn(_) => Kind::CodexFailed,
                _ => Kind::Io,
            };
            let what = format!("cannot start a thread for the {}", task.name());
            Error::os(kind, what, error).with_retryable(true)
        })?;
        let live = RunningRequest {
            number,
            task,
            cancel,
            thread,
            due: None,
            nudged: false,
        };
        self.live.insert(id.clone(), live);
        Ok(())
    }

    /// Starts to load the config. What is asked for behind `initialize` waits for it in its own thread.
    fn initialize(&mut self, id: &Id, params: Option<&RawValue>) -> Result<()> {
        let value = params::value(params)?;
        let version =
            ProtocolVersion::negotiated(&params::protocol_version(&params::root(&value))?);
        let cancel = CancelToken::new()?;
        let next = Arc::new(Initialization::default());
        // One that fails leaves what an earlier one has loaded.
        let before = self.context.replace(Arc::clone(&next));
        let (places, outbox) = (self.setup.places.clone(), self.outbox.clone());
        let backends = Arc::clone(&self.backends);
        let filter = self.log_filter.clone();
        let (failed, flag) = (Arc::clone(&next), cancel.clone());
        let started = self.spawn(id, Task::Initialize, cancel, move || {
            match places.load_config() {
                Ok(loaded) => {
                    for warning in &loaded.warnings {
                        if let Some(line) = filter.line(Level::Warn, warning, &json!({})) {
                            outbox.push(line);
                        }
                    }
                    let config = loaded.config;
                    let result = as_json(&InitializeResult::new(
                        version.name(),
                        &config.supported_models,
                    ));
                    next.finish(Initialized::Done(Arc::new(Context {
                        config,
                        places,
                        backends,
                    })));
                    Ok(result)
                }
                Err(error) => {
                    next.finish(match before.map(|before| before.wait(&flag)) {
                        Some(done @ Initialized::Done(_)) => done,
                        _ => Initialized::Failed,
                    });
                    Err(error)
                }
            }
        });
        if started.is_err() {
            failed.finish(Initialized::Failed);
        }
        started
    }

    fn initialization(&self) -> Result<Arc<Initialization>> {
        let context = self.context.clone().ok_or_else(not_initialized)?;
        if let Initialized::Failed = *context.state() {
            return Err(not_initialized());
        }
        Ok(context)
    }

    /// Starts a turn in a thread of its own.
    fn stream(&mut self, id: &Id, params: Option<&RawValue>) -> Result<()> {
        let context = self.initialization()?;
        let (workspace, request, tools) = {
            let value = params::value(params)?;
            let params = params::root(&value);
            let (workspace, request) = params::stream(&params)?;
            (workspace, request, params::stream_tools(&params)?)
        };
        let cancel = CancelToken::new()?;
        // Here and not in the thread, so that the turns of a workspace keep the order in which they came.
        let ticket = self.queue.join(&workspace);
        let mut sink = DaemonSink::new(
            self.outbox.clone(),
            id.json(),
            request.agent_id.as_deref(),
            self.log_filter.clone(),
            cancel.clone(),
        );
        let agent_id = request.agent_id.clone();
        let host = DaemonTools::new(
            self.outbox.clone(),
            self.calls.clone(),
            agent_id.clone(),
            sink.handle(),
        );
        let tools = Arc::new(Tools::new(tools, Arc::new(host)));
        let steering = Arc::new(Steering::new()?);
        let turn = RunningTurn {
            agent_id,
            tools: Arc::clone(&tools),
            steering: Arc::clone(&steering),
            handle: sink.handle(),
        };
        let flag = cancel.clone();
        self.spawn(id, Task::Turn(turn), cancel, move || {
            let outcome = match context.wait(&flag) {
                Initialized::Done(context) => {
                    if context.config.tool_events {
                        sink.expect_tool_events();
                    }
                    let (tools, steering) = (Some(&*tools), Some(&*steering));
                    turn::run(
                        &request, &ticket, &context, &flag, tools, steering, &mut sink,
                    )
                }
                Initialized::Failed => Err(not_initialized()),
                // It was cancelled before there was a config.
                Initialized::NotYet => Ok(sink.handle().abandon()),
            };
            sink.finish();
            // The next turn of the workspace may go on before this one's response is out.
            drop(ticket);
            outcome.map(|result| as_json(&result))
        })
    }

    /// Starts to ask codex for its models.
    fn models(&mut self, id: &Id, params: Option<&RawValue>) -> Result<()> {
        let context = self.initialization()?;
        params::models(&params::root(&params::value(params)?))?;
        let cancel = CancelToken::new()?;
        let flag = cancel.clone();
        self.spawn(id, Task::ListModels, cancel, move || {
            let context = match context.wait(&flag) {
                Initialized::Done(context) => context,
                Initialized::Failed => return Err(not_initialized()),
                Initialized::NotYet => return Err(shutting_down()),
            };
            let (config, places) = (&context.config, &context.places);
            let models = list_models(config, places, &flag)?;
            Ok(json!({"models": models}).to_string())
        })
    }

    /// Starts consuming calls of a workspace's session, after the turns of the workspace that came before; or
    /// knows the outcome already.
    fn mutate(&mut self, id: &Id, params: Option<&RawValue>) -> Result<Option<String>> {
        let context = self.initialization()?;
        let (workspace, mutations) = {
            let value = params::value(params)?;
            params::mutate(&params::root(&value))?
        };
        if mutations.is_empty() {
            return Ok(Some(as_json(&ConsumeReport::default())));
        }
        let cancel = CancelToken::new()?;
        let ticket = self.queue.join(&workspace);
        let flag = cancel.clone();
        self.spawn(id, Task::Mutate, cancel, move || {
            let context = match context.wait(&flag) {
                Initialized::Done(context) => context,
                Initialized::Failed => return Err(not_initialized()),
                Initialized::NotYet => return Err(shutting_down()),
            };
            consume(&ticket, &context, &mutations, &flag).map(|outcome| as_json(&outcome))
        })?;
        Ok(None)
    }

    fn set_log_level(&self, params: Option<&RawValue>) -> Result<String> {
        self.initialization()?;
        let value = params::value(params)?;
        self.log_filter
            .set(&params::log_level(&params::root(&value))?)?;
        Ok("{}".to_owned())
    }

    /// Cancels a stream.
    fn cancel(&mut self, params: Option<&RawValue>) -> Result<String> {
        self.initialization()?;
        let value = params::value(params)?;
        let stream = params::cancelled_stream(&params::root(&value))?;
        let is_cancelled = self.cancel_if(&stream, |task| task.turn().is_some());
        Ok(json!({"cancelled": is_cancelled}).to_string())
    }

    /// Cancels this request. One that is over met the cancel on its way.
    fn cancelled(&mut self, params: Option<&RawValue>) -> Result<()> {
        let value = params::value(params)?;
        let request = params::cancelled_request(&params::root(&value))?;
        self.cancel_if(&request, Task::is_cancellable);
        Ok(())
    }

    /// Cancels what runs for this request, where it is something of this kind.
    fn cancel_if(&mut self, id: &Id, is_meant: impl Fn(&Task) -> bool) -> bool {
        let live = self.live.get_mut(id);
        let live = live.filter(|live| is_meant(&live.task));
        let is_cancelled = live.map(RunningRequest::cancel).is_some();
        if is_cancelled {
            self.wake();
        }
        is_cancelled
    }

    /// Gives words of the user to a turn that runs. It answers when the model has them; a turn that takes none does at
    /// once.
    fn steer(&self, id: &Id, params: Option<&RawValue>) -> Result<()> {
        self.initialization()?;
        let value = params::value(params)?;
        let (stream, prompt) = params::steer(&params::root(&value))?;
        let (id, outbox) = (id.clone(), self.outbox.clone());
        let answer = move |steered: bool| {
            let result = json!({"steered": steered}).to_string();
            let response = jsonrpc::result_response(&id, &result);
            outbox.respond(format!("{response}\n").into_bytes());
        };
        let turn = self.live.get(&stream).and_then(|live| live.task.turn());
        // Attachments go along with a turn of their own.
        match (turn, plain_text(&prompt)) {
            (Some(turn), Some(text)) => turn
                .steering
                .send(SteerMessage::new(text, Box::new(answer))),
            _ => answer(false),
        }
        Ok(())
    }

    /// Replaces the tools of the agent's running turns.
    fn tools_changed(&mut self, params: Option<&RawValue>) -> Result<()> {
        let value = params::value(params)?;
        let (agent_id, tools) = params::tools_changed(&params::root(&value))?;
        let mut warnings = Vec::new();
        for live in self.live.values() {
            if let Some(turn) = live.task.turn()
                && turn.agent_id.as_deref() == Some(agent_id.as_str())
            {
                warnings = turn.tools.change(tools.clone());
            }
        }
        for warning in warnings {
            self.log(Level::Warn, &warning);
        }
        Ok(())
    }

    fn done(&mut self, number: u64, id: &Id, outcome: Result<String>) {
        if self.live.get(id).is_none_or(|live| live.number != number) {
            // It was abandoned, and has come back.
            return;
        }
        if let Some(live) = self.live.remove(id) {
            // It has sent its last word. A panic after that would be a bug that has been reported on stderr.
            let _ = live.thread.join();
        }
        self.answer(id, outcome);
    }

    fn answer(&self, id: &Id, outcome: Result<String>) {
        match outcome {
            Ok(result) => self.respond(jsonrpc::result_response(id, &result)),
            Err(error) => self.refuse(Some(id), &error),
        }
    }

    /// Lets every thread that waits for something of the plugin's own look at its flag again.
    fn wake(&self) {
        self.queue.wake();
        self.outbox.wake();
        if let Some(context) = &self.context {
            context.wake();
        }
    }

    /// Begins the end: everything that runs is cancelled.
    fn end(&mut self, status: u8) {
        if self.ending.is_some() {
            return;
        }
        for live in self.live.values_mut() {
            live.cancel();
        }
        self.wake();
        self.calls.end(&self.outbox);
        self.ending = Some(Shutdown {
            status,
            deadline: Instant::now() + ENDING,
            abandoned: false,
        });
    }

    fn refuse(&self, id: Option<&Id>, error: &Error) {
        self.respond(error_response(id, error));
    }

    fn respond(&self, response: String) {
        self.outbox.respond(format!("{response}\n").into_bytes());
    }

    fn log(&self, level: Level, message: &str) {
        if let Some(line) = self.log_filter.line(level, message, &json!({})) {
            self.outbox.respond(line);
        }
    }
}

fn shutting_down() -> Error {
    Error::new(Kind::Busy, "the plugin is shutting down")
}

/// A type of ours as JSON, its fields in their order.
fn as_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("plain structs whose keys are strings")
}

/// Consumes calls of the session of the workspace of `ticket`, when its turn has come.
fn consume(
    ticket: &Ticket,
    context: &Context,
    mutations: &[Mutation],
    cancel: &CancelToken,
) -> Result<ConsumeReport> {
    if cancel.is_cancelled() {
        return Err(shutting_down());
    }
    // As a stream names it; but nothing is created for a rewrite of what is not there.
    let workspace = match ticket.workspace().canonicalize() {
        Ok(workspace) => workspace,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(ConsumeReport::all_missing(mutations));
        }
        Err(error) => return Err(unusable(ticket.workspace(), error)),
    };
    let ticket = ticket
        .join_directory(&workspace)
        .map_err(|error| unusable(&workspace, error))?;
    if !ticket.wait(cancel, || ()) {
        return Err(shutting_down());
    }
    let workspace = ticket.workspace();
    os::check_owner("the workspace", workspace)?;
    // A codex that has the thread loaded would neither see what is changed nor write behind it.
    let suspended = context.backends.suspend(workspace);
    let outcome = consume_stored(workspace, context, mutations, cancel);
    if let Some(suspended) = suspended {
        suspended.resume();
    }
    outcome
}

/// Consumes calls of the thread that the session file of a workspace names.
fn consume_stored(
    workspace: &Path,
    context: &Context,
    mutations: &[Mutation],
    cancel: &CancelToken,
) -> Result<ConsumeReport> {
    match session::read(workspace)? {
        Stored::Thread(thread) => {
            let (config, places) = (&context.config, &context.places);
            if let Some(other) = turn::thread::foreign_directory(workspace, &thread, config, places)
            {
                return Err(turn::thread::foreign(workspace, &thread, &other));
            }
            let home = context.places.codex_home(&context.config);
            consume::consume(&home, &thread, mutations, WriteMode::Write, cancel)
        }
        // The next turn starts a new thread; there is nothing of the old one that the model would see.
        Stored::Nothing | Stored::Unusable(_) => Ok(ConsumeReport::all_missing(mutations)),
    }
}

fn unusable(workspace: &Path, error: std::io::Error) -> Error {
    let what = format!("cannot use the workspace '{}'", workspace.display());
    Error::os(Kind::Params, what, error)
}

/// The response with an error. Its `data` says what the message cannot say to code: the code of
/// `error` events where the kind has one, which what was wrong with the request itself has not.
fn error_response(id: Option<&Id>, error: &Error) -> String {
    let kind = error.kind();
    let mut data = json!({"retryable": error.retryable()});
    if let -32000 | -32010 | -32011 = kind.rpc_code() {
        data["code"] = kind.code().into();
    }
    jsonrpc::error_response(id, kind.rpc_code(), error.message(), Some(&data))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Clone, Default)]
    struct Wire(Arc<Mutex<Vec<u8>>>);

    impl Write for Wire {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What the plugin writes when the daemon writes these lines and then closes.
    fn talk(lines: &[&str]) -> Vec<serde_json::Value> {
        let wire = Wire::default();
        let setup = Setup {
            places: Paths::from_env(),
        };
        let stdin = std::io::Cursor::new(lines.join("\n").into_bytes());
        assert_eq!(serve(setup, stdin, wire.clone()).unwrap(), 0);
        let written = String::from_utf8(wire.0.lock().unwrap().clone()).unwrap();
        assert!(written.is_empty() || written.ends_with('\n'));
        written
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn maps_errors_to_codes() {
        for (kind, code) in [
            (Kind::Parse, None),
            (Kind::Request, None),
            (Kind::Method, None),
            (Kind::Params, None),
            (Kind::Config, None),
            (Kind::NotInitialized, None),
            (Kind::CodexMissing, Some("codex_not_found")),
            (Kind::CodexFailed, Some("codex_failed")),
            (Kind::Busy, Some("session_busy")),
            (Kind::Io, Some("io")),
        ] {
            let error = Error::new(kind, "m");
            let line: serde_json::Value =
                serde_json::from_str(&error_response(Some(&Id::Integer(1)), &error)).unwrap();
            let mut data = serde_json::json!({"retryable": error.retryable()});
            if let Some(code) = code {
                data["code"] = code.into();
            }
            let expected =
                serde_json::json!({"code": kind.rpc_code(), "message": "m", "data": data});
            assert_eq!(line["error"], expected);
        }
    }

    #[test]
    fn every_request_is_answered() {
        let said = talk(&[
            r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#,
            r#"{"jsonrpc":"2.0","id":"two","method":"nothing"}"#,
            r#"{"jsonrpc":"2.0","method":"nothing"}"#,
            r#"{"jsonrpc":"2.0","id":3,"result":{}}"#,
            r#"{"jsonrpc":"2.0","id":4,"method":"plexum/provider/stream","params":{}}"#,
            r#"{"jsonrpc":"2.0","id":5,"method":"initialize","params":{"protocolVersion":2}}"#,
            r#"{"jsonrpc":"2.0","id":6,"method":"plexum/provider/cancel"}"#,
            "nonsense",
            r#"[{"jsonrpc":"2.0","id":7,"method":"ping"}]"#,
        ]);
        let short: Vec<_> = said
            .iter()
            .map(|line| {
                (
                    line["id"].clone(),
                    line["result"].clone(),
                    line["error"]["code"].clone(),
                )
            })
            .collect();
        let null = serde_json::Value::Null;
        assert_eq!(
            short,
            [
                (json!(1), json!({}), null.clone()),
                (json!("two"), null.clone(), json!(-32601)),
                (json!(4), null.clone(), json!(-32003)),
                (json!(5), null.clone(), json!(-32602)),
                (json!(6), null.clone(), json!(-32003)),
                (null.clone(), null.clone(), json!(-32700)),
                (null.clone(), null, json!(-32600)),
            ]
        );
    }
}
