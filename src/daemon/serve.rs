//! The main loop: handles the daemon's messages, starts the threads of requests, and sends their responses.
//!
//! One thread owns the map of running requests and blocks on none of them, nor on a file: all its input comes through
//! one channel, lines of stdin from a reader thread, results from the threads of requests, signals from theirs. It also
//! sends the responses, so that a request's id is free again exactly when its response is queued. All access to the
//! file system is in the threads of requests: if one hangs, no other is affected.
//!
//! A thread that hangs cannot be ended. Its codex is ended instead, and its request gets a response without it
//! ([`Server::abandon`]). These threads are not joined, and neither is the reader: it blocks in stdin, where it cannot
//! be woken, and owns nothing that needs cleanup.

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

/// How long turns may take to end at shutdown, until they no longer wait for a daemon that does not read. A codex that
/// ignores SIGINT and SIGTERM takes 2.6 s.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(3200);
/// How long they may take after that, until the rest is killed and abandoned. With the killing and the last lines the
/// shutdown takes 4.2 s at most, a margin below 5 s for a loaded machine.
const KILL_TIMEOUT: Duration = Duration::from_millis(150);
/// How long the writing of the last lines may take at least. It may use all that is left of [`SHUTDOWN_TIMEOUT`], for a
/// daemon that reads slowly: it cannot ask for lost lines again.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(300);
/// How long after a cancel the loop itself ends the turn's codex: the turn's thread would have done so at once, so it
/// hangs.
const NUDGE_AFTER: Duration = Duration::from_millis(1000);
/// How long after that the loop sends the response without the thread: 5 s after the cancel. codex needs about that
/// time to end ([`LONGEST_ENDING`](crate::backend::guard::LONGEST_ENDING)).
const ABANDON_AFTER: Duration = Duration::from_millis(4000);
/// How often the reader checks whether a daemon that does not read its responses has read some.
const FLOODED_PAUSE: Duration = Duration::from_millis(100);
/// The capacity of the loop's channel, in messages.
const INPUT_CAPACITY: usize = 16;
/// The longest line in bytes after which the reader reads on before the line is handled.
const MAX_READ_AHEAD: usize = 1 << 20;

/// The parameters of the server besides its streams.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) places: Paths,
}

/// An input of the loop.
enum LoopInput {
    /// A line. After a long one the reader waits until the sender is dropped, so that there is only one long line in
    /// memory.
    Line(Vec<u8>, Option<SyncSender<()>>),
    /// A line that was too long and skipped; with an id if it was the response to a request of the plugin.
    TooLong(Option<Id>),
    /// The end of stdin, or the error of reading it.
    End(std::io::Result<()>),
    /// SIGINT or SIGTERM, by number.
    Signal(i32),
    /// The thread of a request has finished: the number and the id of the request, and the result as JSON.
    Done(u64, Id, Result<String>),
    /// A write to stdout failed.
    Gone,
}

/// Serves on this process's stdin and stdout until stdin ends, stdout fails or a signal arrives. Returns the exit
/// status.
///
/// # Errors
/// [`Kind::Io`] if a thread or pipe cannot be created at the start, or if stdin or stdout fails, except because the
/// daemon has closed it.
pub(crate) fn serve_stdio(setup: Setup) -> Result<u8> {
    crate::os::raise_open_files();
    let (sender, receiver) = sync_channel(INPUT_CAPACITY);
    let signals = sender.clone();
    crate::os::on_end_signal(move |number| {
        // Fails only once the loop has ended, when the process exits anyway.
        let _ = signals.send(LoopInput::Signal(number));
    })?;
    let stdin = BufReader::with_capacity(256 << 10, Blocking(std::io::stdin()));
    let stdout = Blocking(std::io::stdout());
    let is_hung_up = |time| crate::os::is_hung_up(std::io::stdin(), time);
    let status = run(setup, stdin, is_hung_up, stdout, sender, receiver)?;
    // While a hung thread delays the exit, the daemon would wait for the end of these streams.
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
    let (sender, receiver) = sync_channel(INPUT_CAPACITY);
    run(setup, stdin, |_| true, stdout, sender, receiver)
}

/// `is_hung_up` waits up to the given time for the writer of stdin to close it, and returns whether it has.
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
        // Fails if the loop has ended already.
        let _ = gone.send(LoopInput::Gone);
    })
    .map_err(no_thread)?;
    let (lines, responses) = (sender.clone(), outbox.clone());
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || {
            read_lines(stdin, &lines, || {
                // Backpressure for a daemon that sends without reading. After a hangup there is little left to read.
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
        last_number: 0,
        calls: PendingCalls::default(),
        log_filter: LogFilter::default(),
        ending: None,
        stdin_result: Ok(()),
    };
    let status = server.run_loop(&receiver);
    server.backends.end();
    let least = Instant::now() + FLUSH_TIMEOUT;
    let deadline = server
        .ending
        .map_or(least, |ending| ending.deadline.max(least));
    let unwritten = server.outbox.close(deadline);
    for (what, outcome) in [
        ("cannot read stdin", server.stdin_result),
        ("cannot write to stdout", unwritten),
    ] {
        match outcome {
            Err(error) if !is_disconnect(&error) => return Err(Error::os(Kind::Io, what, error)),
            _ => {}
        }
    }
    Ok(status)
}

/// Whether the error means that the daemon closed the stream.
fn is_disconnect(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionReset)
}

/// Reads lines until the end of stdin, and calls `wait` before each.
fn read_lines(mut stdin: impl BufRead, lines: &SyncSender<LoopInput>, wait: impl Fn()) {
    loop {
        wait();
        let mut line = Vec::new();
        let input = match jsonrpc::read_line(&mut stdin, &mut line) {
            Ok(Frame::Line) if line.len() > MAX_READ_AHEAD => {
                let (handled, wait) = sync_channel(0);
                if lines.send(LoopInput::Line(line, Some(handled))).is_err() {
                    return;
                }
                // Nothing is sent: this returns when the sender is dropped.
                let _ = wait.recv();
                continue;
            }
            Ok(Frame::Line) => LoopInput::Line(line, None),
            Ok(Frame::TooLong(response_id)) => LoopInput::TooLong(response_id),
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
    /// The state of codex that is kept across turns and config reloads.
    backends: Arc<Backends>,
    /// The newest `initialize`, in any state.
    context: Option<Arc<Initialization>>,
    live: HashMap<Id, RunningRequest>,
    /// The number of the newest request.
    last_number: u64,
    /// The tool calls that wait for the daemon's response.
    calls: PendingCalls,
    log_filter: LogFilter,
    ending: Option<Shutdown>,
    /// The error of reading stdin, if it did not just end.
    stdin_result: std::io::Result<()>,
}

/// A request with a running thread.
struct RunningRequest {
    /// Distinguishes it from a later request with the same id.
    number: u64,
    task: Task,
    cancel: CancelToken,
    thread: JoinHandle<()>,
    /// When to act next if it was cancelled and has not ended.
    due: Option<Instant>,
    /// Its codex was ended by the loop.
    nudged: bool,
}

/// The work of a request's thread.
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

    /// Whether the daemon can cancel it. A rewrite is too short for that, and later requests wait for an `initialize`.
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

/// The loop's access to a running turn.
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

/// The result of an `initialize`, for the requests that arrive before it has finished.
#[derive(Default)]
struct Initialization {
    state: Mutex<Initialized>,
    changed: Condvar,
}

#[derive(Clone, Default)]
enum Initialized {
    #[default]
    Pending,
    Failed,
    Done(Arc<Context>),
}

impl Initialization {
    fn finish(&self, outcome: Initialized) {
        *self.state() = outcome;
        self.changed.notify_all();
    }

    /// Wakes all waiting threads, to check their cancel tokens.
    fn wake(&self) {
        let _state = self.state();
        self.changed.notify_all();
    }

    /// Waits for the result; [`Initialized::Pending`] if `cancel` is cancelled first.
    fn wait(&self, cancel: &CancelToken) -> Initialized {
        let mut state = self.state();
        while matches!(*state, Initialized::Pending) && !cancel.is_cancelled() {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.clone()
    }

    fn state(&self) -> MutexGuard<'_, Initialized> {
        // No holder of this lock panics while the state is inconsistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_initialized() -> Error {
    Error::new(Kind::NotInitialized, "`initialize` must succeed first")
}

/// A shutdown in progress.
struct Shutdown {
    /// The exit status.
    status: u8,
    deadline: Instant,
    /// [`SHUTDOWN_TIMEOUT`] has passed, and `deadline` is that of [`KILL_TIMEOUT`].
    abandoned: bool,
}

impl Server {
    /// Runs until the shutdown is complete. Returns the exit status.
    fn run_loop(&mut self, receiver: &Receiver<LoopInput>) -> u8 {
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
                Ok(input) => self.handle_input(input),
                Err(RecvTimeoutError::Timeout) => self.on_timeout(),
                // Unreachable: the server itself holds a sender.
                Err(RecvTimeoutError::Disconnected) => return 1,
            }
        }
    }

    /// Escalates for cancelled requests that do not end, and for a shutdown that does not complete.
    fn on_timeout(&mut self) {
        let now = Instant::now();
        let mut hung = Vec::new();
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
                // It does not hang: the daemon does not read.
                live.due = Some(now + NUDGE_AFTER);
            } else {
                hung.push(id.clone());
            }
        }
        if let Some(ending) = &mut self.ending
            && ending.deadline <= now
        {
            if ending.abandoned {
                crate::os::kill_everything_below();
                hung = self.live.keys().cloned().collect();
            } else {
                ending.abandoned = true;
                ending.deadline = now + KILL_TIMEOUT;
                self.outbox.abandon();
            }
        }
        for id in hung {
            self.abandon(&id);
        }
    }

    /// Sends the response to a cancelled request whose thread hangs. The thread's own result will be dropped.
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
        self.respond(id, outcome);
    }

    fn handle_input(&mut self, input: LoopInput) {
        match input {
            LoopInput::Line(line, _handled) => self.handle_line(&line),
            LoopInput::TooLong(response_id) => {
                let error = Error::new(
                    Kind::Request,
                    format!(
                        "the line is longer than {} MiB and was skipped",
                        jsonrpc::LONGEST_LINE >> 20
                    ),
                );
                self.reject_unparsable(response_id.as_ref(), &error);
            }
            LoopInput::End(outcome) => {
                self.stdin_result = outcome;
                self.shut_down(0);
            }
            LoopInput::Signal(number) => {
                self.shut_down(u8::try_from(128 + number).unwrap_or(1));
            }
            LoopInput::Gone => {
                log::info!("the daemon is gone");
                self.shut_down(0);
            }
            LoopInput::Done(number, id, outcome) => self.finish(number, &id, outcome),
        }
    }

    fn handle_line(&mut self, line: &[u8]) {
        match jsonrpc::parse(line) {
            Ok(Message::Request { id, method, params }) => self.handle_request(id, &method, params),
            Ok(Message::Notification { method, params }) => {
                self.handle_notification(&method, params);
            }
            Ok(Message::Response { id, outcome }) => {
                if !self.calls.complete(&id, outcome) {
                    log::debug!(
                        "ignored a response that matches no pending request: {}",
                        id.json()
                    );
                }
            }
            Ok(Message::InvalidResponse { id, why }) => {
                if let Some(id) = &id {
                    self.calls.fail(id, &why);
                }
                let message = format!("the daemon sent an invalid response: {why}");
                self.log(Level::Warn, &message);
            }
            Err(InvalidMessage { id: None, error }) => {
                self.reject_unparsable(jsonrpc::id_of_broken_response(line, &[]).as_ref(), &error);
            }
            Err(InvalidMessage { id, error }) => self.reject(id.as_ref(), &error),
        }
    }

    /// Rejects a line that cannot be read. If it was the response to a tool call, the call fails.
    fn reject_unparsable(&self, response_id: Option<&Id>, error: &Error) {
        if let Some(id) = response_id {
            self.calls.fail(id, error.message());
        }
        self.reject(None, error);
    }

    fn handle_request(&mut self, id: Id, method: &str, params: Option<&RawValue>) {
        if self.live.contains_key(&id) {
            let error = Error::new(Kind::Request, format!("the id {} is in use", id.json()));
            return self.reject(Some(&id), &error);
        }
        if method == names::PING {
            return self.respond(&id, Ok("{}".to_owned()));
        }
        if self.ending.is_some() {
            let error = Error::new(Kind::Request, "the plugin is shutting down");
            return self.reject(Some(&id), &error);
        }
        let result = match method {
            names::SET_LOG_LEVEL => self.set_log_level(params).map(Some),
            names::CANCEL => self.cancel(params).map(Some),
            // These have their responses later.
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
            Ok(Some(result)) => self.respond(&id, Ok(result)),
            Ok(None) => {}
            Err(error) => self.reject(Some(&id), &error),
        }
    }

    fn handle_notification(&mut self, method: &str, params: Option<&RawValue>) {
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
            _ => log::debug!("ignored an unknown notification: '{method}'"),
        }
    }

    /// Logs the error of a notification, which has no response.
    fn warn_of_unusable(&self, method: &str, result: Result<()>) {
        if let Err(error) = result {
            let message = format!("ignored an invalid `{method}`: {error}");
            self.log(Level::Warn, &message);
        }
    }

    /// Starts a thread for a request, whose response is the result of `work`.
    fn spawn(
        &mut self,
        id: &Id,
        task: Task,
        cancel: CancelToken,
        work: impl FnOnce() -> Result<String> + Send + 'static,
    ) -> Result<()> {
        self.last_number += 1;
        let (number, done) = (self.last_number, self.sender.clone());
        let thread = {
            let id = id.clone();
            std::thread::Builder::new()
                .name(task.name().to_owned())
                .spawn(move || {
                    // A panic is a bug of ours; only this request fails.
                    let outcome = std::panic::catch_unwind(AssertUnwindSafe(work))
                        .unwrap_or_else(|_| Err(Error::new(Kind::Io, "plexum-openai has a bug")));
                    // Fails only if the request was abandoned and the loop has ended.
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

    /// Starts to load the config. Later requests wait for it in their own threads.
    fn initialize(&mut self, id: &Id, params: Option<&RawValue>) -> Result<()> {
        let value = params::value(params)?;
        let version =
            ProtocolVersion::negotiated(&params::protocol_version(&params::root(&value))?);
        let cancel = CancelToken::new()?;
        let next = Arc::new(Initialization::default());
        // If this one fails, an earlier config stays in use.
        let previous = self.context.replace(Arc::clone(&next));
        let (places, outbox) = (self.setup.places.clone(), self.outbox.clone());
        let backends = Arc::clone(&self.backends);
        let filter = self.log_filter.clone();
        let (failed, token) = (Arc::clone(&next), cancel.clone());
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
                    next.finish(match previous.map(|previous| previous.wait(&token)) {
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

    /// Starts a turn in a new thread.
    fn stream(&mut self, id: &Id, params: Option<&RawValue>) -> Result<()> {
        let context = self.initialization()?;
        let (workspace, request, tools) = {
            let value = params::value(params)?;
            let params = params::root(&value);
            let (workspace, request) = params::stream(&params)?;
            (workspace, request, params::stream_tools(&params)?)
        };
        let cancel = CancelToken::new()?;
        // Not in the thread, so that the turns of a workspace run in the order of their requests.
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
        let token = cancel.clone();
        self.spawn(id, Task::Turn(turn), cancel, move || {
            let outcome = match context.wait(&token) {
                Initialized::Done(context) => {
                    if context.config.tool_events {
                        sink.expect_tool_events();
                    }
                    let (tools, steering) = (Some(&*tools), Some(&*steering));
                    turn::run(
                        &request, &ticket, &context, &token, tools, steering, &mut sink,
                    )
                }
                Initialized::Failed => Err(not_initialized()),
                // It was cancelled before the config was loaded.
                Initialized::Pending => Ok(sink.handle().abandon()),
            };
            sink.finish();
            // The next turn of the workspace need not wait for this one's response.
            drop(ticket);
            outcome.map(|result| as_json(&result))
        })
    }

    /// Starts a thread that lists codex's models.
    fn models(&mut self, id: &Id, params: Option<&RawValue>) -> Result<()> {
        let context = self.initialization()?;
        params::models(&params::root(&params::value(params)?))?;
        let cancel = CancelToken::new()?;
        let token = cancel.clone();
        self.spawn(id, Task::ListModels, cancel, move || {
            let context = match context.wait(&token) {
                Initialized::Done(context) => context,
                Initialized::Failed => return Err(not_initialized()),
                Initialized::Pending => return Err(shutting_down()),
            };
            let (config, places) = (&context.config, &context.places);
            let models = list_models(config, places, &token)?;
            Ok(json!({"models": models}).to_string())
        })
    }

    /// Starts a thread that consumes calls of a workspace's session after the earlier turns of the workspace. Returns
    /// the result at once if there are no mutations.
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
        let token = cancel.clone();
        self.spawn(id, Task::Mutate, cancel, move || {
            let context = match context.wait(&token) {
                Initialized::Done(context) => context,
                Initialized::Failed => return Err(not_initialized()),
                Initialized::Pending => return Err(shutting_down()),
            };
            consume(&ticket, &context, &mutations, &token).map(|outcome| as_json(&outcome))
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

    /// Handles a request to cancel a stream.
    fn cancel(&mut self, params: Option<&RawValue>) -> Result<String> {
        self.initialization()?;
        let value = params::value(params)?;
        let stream = params::cancelled_stream(&params::root(&value))?;
        let is_cancelled = self.cancel_if(&stream, |task| task.turn().is_some());
        Ok(json!({"cancelled": is_cancelled}).to_string())
    }

    /// Handles MCP's cancel of a request. The request may have completed already.
    fn cancelled(&mut self, params: Option<&RawValue>) -> Result<()> {
        let value = params::value(params)?;
        let request = params::cancelled_request(&params::root(&value))?;
        self.cancel_if(&request, Task::is_cancellable);
        Ok(())
    }

    /// Cancels a running request if its task matches. Returns whether it did.
    fn cancel_if(&mut self, id: &Id, matches: impl Fn(&Task) -> bool) -> bool {
        let live = self.live.get_mut(id);
        let live = live.filter(|live| matches(&live.task));
        let is_cancelled = live.map(RunningRequest::cancel).is_some();
        if is_cancelled {
            self.wake();
        }
        is_cancelled
    }

    /// Sends a message of the user to a running turn. The response follows when the model has it, or at once if the
    /// turn does not accept messages.
    fn steer(&self, id: &Id, params: Option<&RawValue>) -> Result<()> {
        self.initialization()?;
        let value = params::value(params)?;
        let (stream, prompt) = params::steer(&params::root(&value))?;
        let (id, outbox) = (id.clone(), self.outbox.clone());
        let on_result = move |steered: bool| {
            let result = json!({"steered": steered}).to_string();
            let response = jsonrpc::result_response(&id, &result);
            outbox.respond(format!("{response}\n").into_bytes());
        };
        let turn = self.live.get(&stream).and_then(|live| live.task.turn());
        // A message with attachments needs a new turn.
        match (turn, plain_text(&prompt)) {
            (Some(turn), Some(text)) => turn
                .steering
                .send(SteerMessage::new(text, Box::new(on_result))),
            _ => on_result(false),
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
                // Those of another turn of this agent are about the same tools.
                let of_turn = turn.tools.change(tools.clone());
                if warnings.is_empty() {
                    warnings = of_turn;
                }
            }
        }
        for warning in warnings {
            self.log(Level::Warn, &warning);
        }
        Ok(())
    }

    /// Sends the response of a request whose thread has finished.
    fn finish(&mut self, number: u64, id: &Id, outcome: Result<String>) {
        if self.live.get(id).is_none_or(|live| live.number != number) {
            // It was abandoned before.
            return;
        }
        if let Some(live) = self.live.remove(id) {
            // The thread is about to exit. If it panicked after its result, that was reported on stderr.
            let _ = live.thread.join();
        }
        self.respond(id, outcome);
    }

    fn respond(&self, id: &Id, outcome: Result<String>) {
        match outcome {
            Ok(result) => self.send(jsonrpc::result_response(id, &result)),
            Err(error) => self.reject(Some(id), &error),
        }
    }

    /// Wakes all threads that wait for the queue, the outbox or the config, to check their cancel tokens.
    fn wake(&self) {
        self.queue.wake();
        self.outbox.wake();
        if let Some(context) = &self.context {
            context.wake();
        }
    }

    /// Begins the shutdown: cancels all running requests.
    fn shut_down(&mut self, status: u8) {
        if self.ending.is_some() {
            return;
        }
        for live in self.live.values_mut() {
            live.cancel();
        }
        self.wake();
        self.calls.close(&self.outbox);
        self.ending = Some(Shutdown {
            status,
            deadline: Instant::now() + SHUTDOWN_TIMEOUT,
            abandoned: false,
        });
    }

    fn reject(&self, id: Option<&Id>, error: &Error) {
        self.send(error_response(id, error));
    }

    fn send(&self, response: String) {
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

/// A value as JSON, its fields in the order of their declaration.
fn as_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("plain structs whose keys are strings")
}

/// Waits for `ticket`, and consumes calls of its workspace's session.
fn consume(
    ticket: &Ticket,
    context: &Context,
    mutations: &[Mutation],
    cancel: &CancelToken,
) -> Result<ConsumeReport> {
    if cancel.is_cancelled() {
        return Err(shutting_down());
    }
    // Unlike a turn, this does not create a missing workspace.
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
    // A codex that has the thread loaded would neither see the changes nor append after them.
    let suspended = context.backends.suspend(workspace);
    let outcome = consume_stored(workspace, context, mutations, cancel);
    if let Some(suspended) = suspended {
        suspended.resume();
    }
    outcome
}

/// Consumes calls of the thread in a workspace's session file.
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
        // The next turn starts a new thread, where the model sees none of these calls.
        Stored::Nothing | Stored::Unusable(_) => Ok(ConsumeReport::all_missing(mutations)),
    }
}

fn unusable(workspace: &Path, error: std::io::Error) -> Error {
    let what = format!("cannot use the workspace '{}'", workspace.display());
    Error::os(Kind::Params, what, error)
}

/// The error response. Its `data` is for programs: whether a retry makes sense, and the code of `error` events, except
/// if the request itself was wrong.
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

    /// The plugin's output for these lines of input.
    fn exchange(lines: &[&str]) -> Vec<serde_json::Value> {
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
    fn responds_to_every_request() {
        let responses = exchange(&[
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
        let short: Vec<_> = responses
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
