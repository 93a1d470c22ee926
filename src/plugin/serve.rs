//! The loop: takes what the daemon says, starts turns, answers.
//!
//! One thread owns the map of live turns and never waits on one: everything reaches it through one channel, the
//! lines of stdin from a reader thread, the ends of turns from their threads, signals from theirs. A turn's
//! answer goes out through it as well, so that a stream's id is free again exactly when its answer is queued.
//!
//! The reader is the one thread that is not joined: blocked in stdin it cannot be woken, and it holds nothing.

use super::host::{Calls, DaemonSink, DaemonTools, log_line};
use super::message::{self, Frame, Id, Message, Refused};
use super::outbox::Outbox;
use super::params;
use crate::canonical::{Manifest, PROTOCOL};
use crate::config::{Config, Places};
use crate::error::{Error, Kind, Result};
use crate::rollout::mutate::{self, Mode, Mutation, Outcome};
use crate::sys::{self, Blocking, Flag};
use crate::turn::queue::{Place, Queue};
use crate::turn::session::{self, Stored};
use crate::turn::{self, Context, Level, Tools};
use serde_json::json;
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long turns may take to end, once everything is to end, before nobody waits for a daemon that does not
/// read: with the last lines this keeps the exit within 5 s.
const ENDING: Duration = Duration::from_millis(4000);
/// How long the last lines may take to be written at least. A daemon that reads, however slowly, has the whole
/// time of the end for them: what it does not get it cannot ask for again.
const LAST_LINES: Duration = Duration::from_millis(500);
/// How many lines may wait to be handled.
const LINES_AHEAD: usize = 16;

/// What the loop is given besides its streams.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) places: Places,
}

/// Something for the loop.
enum Input {
    Line(Vec<u8>),
    /// A line that was skipped, and whom it answers, where it does.
    TooLong(Option<Id>),
    /// The end of stdin, or an error in reading it.
    End(std::io::Result<()>),
    /// SIGINT or SIGTERM, by number.
    Signal(i32),
    /// What a thread was started for is over: a turn, or the rewrite of a session. The result as JSON.
    Done(Id, Result<String>),
    /// The daemon no longer takes what is written.
    Gone,
}

/// Serves on this process's stdin and stdout until the daemon says `shutdown`, goes away, or a signal comes.
/// Gives the exit status.
///
/// # Errors
/// [`Kind::Io`] where no thread or pipe can be made at the start, and where stdin or stdout fails; that the
/// daemon is gone is no failure.
pub(crate) fn serve_stdio(setup: Setup) -> Result<u8> {
    crate::sys::raise_open_files();
    let (sender, receiver) = sync_channel(LINES_AHEAD);
    let signals = sender.clone();
    crate::sys::on_end_signal(move |number| {
        // The loop has ended: so does the process, at once.
        let _ = signals.send(Input::Signal(number));
    })?;
    let stdin = BufReader::with_capacity(256 << 10, Blocking(std::io::stdin()));
    run(setup, stdin, Blocking(std::io::stdout()), sender, receiver)
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
    run(setup, stdin, stdout, sender, receiver)
}

fn run(
    setup: Setup,
    stdin: impl BufRead + Send + 'static,
    stdout: impl Write + Send + 'static,
    sender: SyncSender<Input>,
    receiver: Receiver<Input>,
) -> Result<u8> {
    let no_thread = |error| Error::os(Kind::Io, "cannot start a thread", error);
    let gone = sender.clone();
    let (outbox, _writer) = Outbox::start(stdout, move || {
        // The loop may be over already.
        let _ = gone.send(Input::Gone);
    })
    .map_err(no_thread)?;
    let lines = sender.clone();
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || read(stdin, &lines))
        .map_err(no_thread)?;
    let mut server = Server {
        setup,
        outbox,
        sender,
        queue: Queue::default(),
        context: None,
        live: HashMap::new(),
        calls: Calls::default(),
        ending: None,
        unread: Ok(()),
    };
    let status = server.work(&receiver);
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

fn read(mut stdin: impl BufRead, lines: &SyncSender<Input>) {
    loop {
        let mut line = Vec::new();
        let input = match message::read_line(&mut stdin, &mut line) {
            Ok(Frame::Line) => Input::Line(line),
            Ok(Frame::TooLong(answered)) => Input::TooLong(answered),
            Ok(Frame::End) => Input::End(Ok(())),
            Err(error) => Input::End(Err(error)),
        };
        let last = matches!(input, Input::End(_));
        if lines.send(input).is_err() || last {
            return;
        }
    }
}

struct Server {
    setup: Setup,
    outbox: Outbox,
    sender: SyncSender<Input>,
    queue: Queue,
    /// There after a successful `init`.
    context: Option<Arc<Context>>,
    live: HashMap<Id, Live>,
    /// What the turns have asked the daemon for.
    calls: Calls,
    ending: Option<Ending>,
    /// How reading stdin came to its end.
    unread: std::io::Result<()>,
}

/// A turn or a `mutate_session` that runs.
struct Live {
    agent_id: Option<String>,
    /// A turn's; nothing else can be cancelled or has tools.
    tools: Option<Arc<Tools>>,
    cancel: Flag,
    thread: JoinHandle<()>,
}

/// The plugin ends: why, and until when it is patient.
struct Ending {
    status: u8,
    /// The `shutdown` request to be answered.
    answer: Option<Id>,
    deadline: Instant,
    abandoned: bool,
}

impl Server {
    /// Works until the end; gives the exit status.
    fn work(&mut self, receiver: &Receiver<Input>) -> u8 {
        loop {
            if let Some(ending) = &mut self.ending
                && self.live.is_empty()
            {
                if let Some(id) = ending.answer.take() {
                    self.outbox
                        .push(message::result_line(&id, "{}").into_bytes());
                }
                return ending.status;
            }
            let input = match &mut self.ending {
                Some(ending) if !ending.abandoned => {
                    let left = ending.deadline.saturating_duration_since(Instant::now());
                    match receiver.recv_timeout(left) {
                        Ok(input) => input,
                        Err(RecvTimeoutError::Timeout) => {
                            ending.abandoned = true;
                            self.outbox.abandon();
                            continue;
                        }
                        Err(RecvTimeoutError::Disconnected) => return 1,
                    }
                }
                _ => match receiver.recv() {
                    Ok(input) => input,
                    // It cannot be: the server itself holds a sender.
                    Err(_) => return 1,
                },
            };
            self.take(input);
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Line(line) => self.line(&line),
            Input::TooLong(answered) => {
                let error = Error::new(
                    Kind::Request,
                    format!(
                        "the line is longer than {} MiB and was skipped",
                        message::LONGEST_LINE >> 20
                    ),
                );
                self.spoilt(answered.as_ref(), &error);
            }
            Input::End(outcome) => {
                self.unread = outcome;
                self.end(0, None);
            }
            Input::Signal(number) => {
                self.end(u8::try_from(128 + number).unwrap_or(1), None);
            }
            Input::Gone => {
                log::info!("the daemon is gone");
                self.end(0, None);
            }
            Input::Done(id, outcome) => self.done(&id, outcome),
        }
    }

    fn line(&mut self, line: &[u8]) {
        match message::parse(line) {
            Ok(Message::Request { id, method, params }) => self.request(id, &method, params),
            Ok(Message::Notification { method, params }) => self.notification(&method, params),
            Ok(Message::Answer { id, outcome }) => {
                if !self.calls.answer(&id, outcome) {
                    log::debug!("an answer that nobody waits for: {}", id.json());
                }
            }
            Ok(Message::BadAnswer { id, why }) => {
                if let Some(id) = &id {
                    self.calls.fail(id, &why);
                }
                let message = format!("an answer of the daemon's cannot be used: {why}");
                self.log(Level::Warn, &message);
            }
            Err(Refused { id: None, error }) => {
                self.spoilt(message::answered(line, &[]).as_ref(), &error);
            }
            Err(Refused { id, error }) => self.refuse(id.as_ref(), &error),
        }
    }

    /// A line that could not be read is refused; a call that it answered does not wait for another.
    fn spoilt(&self, answered: Option<&Id>, error: &Error) {
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
        if self.ending.is_some() {
            let error = Error::new(Kind::Request, "the plugin is shutting down");
            return self.refuse(Some(&id), &error);
        }
        let result = match method {
            "manifest" => Ok(self.manifest()),
            "init" => self.init(params),
            "cancel" => self.cancel(params),
            "stream" => match self.stream(&id, params) {
                // Its thread answers.
                Ok(()) => return,
                Err(error) => Err(error),
            },
            "mutate_session" => match self.mutate_session(&id, params) {
                Ok(Some(outcome)) => Ok(as_json(&outcome)),
                // Its thread answers.
                Ok(None) => return,
                Err(error) => Err(error),
            },
            "shutdown" => return self.end(0, Some(id)),
            _ => Err(Error::new(
                Kind::Method,
                format!("unknown method '{method}'"),
            )),
        };
        match result {
            Ok(result) => self
                .outbox
                .push(message::result_line(&id, &result).into_bytes()),
            Err(error) => self.refuse(Some(&id), &error),
        }
    }

    fn notification(&mut self, method: &str, params: Option<&RawValue>) {
        match method {
            "cancel" => {
                if let Err(error) = self.cancel(params) {
                    self.log(
                        Level::Warn,
                        &format!("a `cancel` that names no stream: {error}"),
                    );
                }
            }
            "tools_changed" => {
                if let Err(error) = self.tools_changed(params) {
                    let message = format!("a `tools_changed` that cannot be used: {error}");
                    self.log(Level::Warn, &message);
                }
            }
            "shutdown" => self.end(0, None),
            _ => log::debug!("an unknown notification: '{method}'"),
        }
    }

    /// The manifest; a broken config file does not fail it.
    fn manifest(&self) -> String {
        let models = match self.setup.places.load_config() {
            Ok(loaded) => loaded.config.supported_models,
            Err(error) => {
                log::warn!("{error}");
                Config::default().supported_models
            }
        };
        as_json(&Manifest::new(&models))
    }

    fn init(&mut self, params: Option<&RawValue>) -> Result<String> {
        let value = params::value(params)?;
        if let Some(protocol) = params::init_protocol(&params::root(&value))?
            && protocol.as_u64() != Some(PROTOCOL)
        {
            return Err(Error::new(
                Kind::ProtocolVersion,
                format!(
                    "protocol {protocol} is not supported; this plugin speaks protocol {PROTOCOL}"
                ),
            ));
        }
        let loaded = self.setup.places.load_config()?;
        for warning in &loaded.warnings {
            self.log(Level::Warn, warning);
        }
        self.context = Some(Arc::new(Context {
            config: loaded.config,
            places: self.setup.places.clone(),
        }));
        Ok(json!({"protocol": PROTOCOL}).to_string())
    }

    fn initialized(&self) -> Result<Arc<Context>> {
        self.context
            .clone()
            .ok_or_else(|| Error::new(Kind::NotInitialized, "`init` must succeed first"))
    }

    /// Starts a turn in a thread of its own.
    fn stream(&mut self, id: &Id, params: Option<&RawValue>) -> Result<()> {
        let context = self.initialized()?;
        let (workspace, request, tools) = {
            let value = params::value(params)?;
            let params = params::root(&value);
            let (workspace, request) = params::stream(&params)?;
            (workspace, request, params::stream_tools(&params)?)
        };
        // Here and not in the thread, so that the turns of a workspace keep the order in which they came.
        let workspace = turn::prepare_workspace(&workspace)?;
        let cancel = Flag::new()?;
        let place = self.queue.join(&workspace);
        let mut sink = DaemonSink::new(
            self.outbox.clone(),
            id.json(),
            request.agent_id.as_deref(),
            cancel.clone(),
        );
        let agent_id = request.agent_id.clone();
        let host = DaemonTools::new(
            self.outbox.clone(),
            self.calls.clone(),
            agent_id.clone(),
            id.json(),
        );
        let tools = Arc::new(Tools::new(tools, Arc::new(host)));
        let done = self.sender.clone();
        let thread = {
            let (id, cancel, tools) = (id.clone(), cancel.clone(), Arc::clone(&tools));
            std::thread::Builder::new()
                .name("turn".to_owned())
                .spawn(move || {
                    let outcome =
                        turn::run(&request, &place, &context, &cancel, Some(&tools), &mut sink);
                    turn::Sink::finish(&mut sink);
                    // The next turn of the workspace may go on before this one's answer is out.
                    drop(place);
                    // The loop only ends when there are no live turns.
                    let _ = done.send(Input::Done(id, outcome.map(|result| as_json(&result))));
                })
        };
        let thread = thread.map_err(|error| {
            Error::os(
                Kind::CodexFailed,
                "cannot start a thread for the turn",
                error,
            )
            .with_retryable(true)
        })?;
        let live = Live {
            agent_id,
            tools: Some(tools),
            cancel,
            thread,
        };
        self.live.insert(id.clone(), live);
        Ok(())
    }

    /// Starts consuming calls of a workspace's session, after the turns of the workspace that came before; or
    /// knows the outcome already.
    fn mutate_session(&mut self, id: &Id, params: Option<&RawValue>) -> Result<Option<Outcome>> {
        let context = self.initialized()?;
        let (workspace, mutations) = {
            let value = params::value(params)?;
            params::mutate_session(&params::root(&value))?
        };
        if mutations.is_empty() {
            return Ok(Some(Outcome::default()));
        }
        // As `stream` names it; but nothing is created for a rewrite of what is not there.
        let workspace = match workspace.canonicalize() {
            Ok(workspace) => workspace,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Some(Outcome::all_missing(&mutations)));
            }
            Err(error) => {
                let what = format!("cannot use the workspace '{}'", workspace.display());
                return Err(Error::os(Kind::Params, what, error));
            }
        };
        let cancel = Flag::new()?;
        let place = self.queue.join(&workspace);
        let done = self.sender.clone();
        let thread = {
            let (id, cancel) = (id.clone(), cancel.clone());
            std::thread::Builder::new()
                .name("mutate".to_owned())
                .spawn(move || {
                    // A panic is a bug of ours; it must cost this request and no other.
                    let work = AssertUnwindSafe(|| consume(&place, &context, &mutations, &cancel));
                    let outcome = std::panic::catch_unwind(work).unwrap_or_else(|_| {
                        Err(Error::new(Kind::Io, "consuming the calls has panicked"))
                    });
                    drop(place);
                    // The loop only ends when there is nothing live.
                    let _ = done.send(Input::Done(id, outcome.map(|result| as_json(&result))));
                })
        };
        let thread = thread.map_err(|error| {
            Error::os(Kind::Io, "cannot start a thread for the rewrite", error).with_retryable(true)
        })?;
        let live = Live {
            agent_id: None,
            tools: None,
            cancel,
            thread,
        };
        self.live.insert(id.clone(), live);
        Ok(None)
    }

    fn cancel(&mut self, params: Option<&RawValue>) -> Result<String> {
        let value = params::value(params)?;
        let stream = params::cancelled_stream(&params::root(&value))?;
        let live = self.live.get(&stream).filter(|live| live.tools.is_some());
        if let Some(live) = live {
            live.cancel.raise();
            self.queue.wake();
            self.outbox.wake();
        }
        Ok(json!({"cancelled": live.is_some()}).to_string())
    }

    /// Replaces the tools of the agent's running turns.
    fn tools_changed(&mut self, params: Option<&RawValue>) -> Result<()> {
        let value = params::value(params)?;
        let (agent_id, tools) = params::tools_changed(&params::root(&value))?;
        let mut warnings = Vec::new();
        for live in self.live.values() {
            if live.agent_id.as_deref() == Some(agent_id.as_str())
                && let Some(lent) = &live.tools
            {
                warnings = lent.change(tools.clone());
            }
        }
        for warning in warnings {
            self.log(Level::Warn, &warning);
        }
        Ok(())
    }

    fn done(&mut self, id: &Id, outcome: Result<String>) {
        if let Some(live) = self.live.remove(id) {
            // It has sent its last word. A panic after that would be a bug that has been reported on stderr.
            let _ = live.thread.join();
        }
        match outcome {
            Ok(result) => self
                .outbox
                .push(message::result_line(id, &result).into_bytes()),
            Err(error) => self.refuse(Some(id), &error),
        }
    }

    /// Begins the end: everything that runs is cancelled.
    fn end(&mut self, status: u8, answer: Option<Id>) {
        if self.ending.is_some() {
            return;
        }
        for live in self.live.values() {
            live.cancel.raise();
        }
        self.queue.wake();
        self.outbox.wake();
        self.calls.end(&self.outbox);
        self.ending = Some(Ending {
            status,
            answer,
            deadline: Instant::now() + ENDING,
            abandoned: false,
        });
    }

    fn refuse(&self, id: Option<&Id>, error: &Error) {
        self.outbox
            .push(message::error_line(id, error).into_bytes());
    }

    fn log(&self, level: Level, message: &str) {
        self.outbox.push(log_line(level, message, &json!({})));
    }
}

/// A type of ours as JSON, its fields in their order.
fn as_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("plain structs whose keys are strings")
}

/// Consumes calls of the session of the workspace of `place`, when its turn has come.
fn consume(
    place: &Place,
    context: &Context,
    mutations: &[Mutation],
    cancel: &Flag,
) -> Result<Outcome> {
    if !place.wait(cancel) {
        return Err(Error::new(Kind::Busy, "the plugin is shutting down"));
    }
    let workspace = place.workspace();
    sys::check_owner("the workspace", workspace)?;
    match session::read(workspace)? {
        Stored::Thread(thread) => {
            let (config, places) = (&context.config, &context.places);
            if let Some(other) = turn::thread::foreign_directory(workspace, &thread, config, places)
            {
                return Err(turn::thread::foreign(workspace, &thread, &other));
            }
            let home = context.places.codex_home(&context.config);
            mutate::consume(&home, &thread, mutations, Mode::Write)
        }
        // The next turn starts a new thread; there is nothing of the old one that the model would see.
        Stored::Nothing | Stored::Unusable(_) => Ok(Outcome::all_missing(mutations)),
    }
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
            places: Places::from_env(),
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
    fn what_is_asked_is_answered() {
        let said = talk(&[
            r#"{"jsonrpc":"2.0","id":1,"method":"cancel","params":{"stream":9}}"#,
            r#"{"jsonrpc":"2.0","id":"two","method":"nothing"}"#,
            r#"{"jsonrpc":"2.0","method":"nothing"}"#,
            r#"{"jsonrpc":"2.0","id":3,"result":{}}"#,
            r#"{"jsonrpc":"2.0","id":4,"method":"stream","params":{}}"#,
            r#"{"jsonrpc":"2.0","id":5,"method":"init","params":{"protocol":2}}"#,
            r#"{"jsonrpc":"2.0","id":6,"method":"cancel"}"#,
            "nonsense",
            r#"{"jsonrpc":"2.0","id":7,"method":"shutdown"}"#,
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
                (json!(1), json!({"cancelled": false}), null.clone()),
                (json!("two"), null.clone(), json!(-32601)),
                (json!(4), null.clone(), json!(-32003)),
                (json!(5), null.clone(), json!(-32002)),
                (json!(6), null.clone(), json!(-32602)),
                (null.clone(), null.clone(), json!(-32700)),
                (json!(7), json!({}), null),
            ]
        );
    }
}
