//! A turn from request to answer.
//!
//! It owns the order of the events (one `message_start` first, one `message_end` last, at most one `error`), the
//! deadlines and the cancel. Whoever asks for a turn passes a [`Sink`] for what it tells: the daemon's outbox or
//! a printer for a terminal, so that what a person debugs is what the daemon gets. Nothing here knows JSON-RPC.
//!
//! What can be refused before codex starts comes back as an error and no event was told; after the first event
//! the turn always ends with an answer.

mod attempt;
mod exclude;
pub(crate) mod images;
pub(crate) mod prompt;
pub(crate) mod queue;
pub(crate) mod session;
mod system;
pub(crate) mod thread;
mod tools;
mod usage;
mod watch;

pub(crate) use prompt::{Block, History};
pub(crate) use tools::Tools;

use crate::canonical::{
    Status, StopReason, Telemetry, ThreadState, TurnError, TurnEvent, TurnResult, TurnUsage, Usage,
};
use crate::codex::failure::Refusal;
use crate::codex::translate::Step;
use crate::codex::{command, home};
use crate::config::{Config, LostThread, Places};
use crate::error::{Error, Kind, Result};
use crate::mcp::Bridge;
use crate::sys::{self, FileLock, Flag};
use attempt::{Attempt, Done, Ended};
use images::Images;
use queue::{Locked, Place};
use session::Stored;
use std::borrow::Cow;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

/// The pause before a thread is tried again that codex could not open.
const BEFORE_RETRY: std::time::Duration = std::time::Duration::from_millis(500);

/// What a turn is asked to do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
    /// The model as the daemon names it; empty leaves the choice to codex.
    pub(crate) model: String,
    pub(crate) agent_id: Option<String>,
    pub(crate) system: Option<String>,
    /// The blocks of each message that is new.
    pub(crate) prompt: Vec<Vec<Block>>,
    /// The conversation before them.
    pub(crate) history: History,
    /// What of the request could not be taken as it stands, one sentence each.
    pub(crate) warnings: Vec<String>,
    /// Which thread the turn is in.
    pub(crate) thread: ThreadChoice,
    /// The JSON Schema that the last text is to follow, as JSON.
    pub(crate) output_schema: Option<String>,
    /// How much the model is to think, in the provider's word for it.
    pub(crate) reasoning_effort: Option<String>,
    /// The codex executable, instead of the config's.
    pub(crate) binary: Option<String>,
}

/// Which thread a turn is in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum ThreadChoice {
    /// The workspace's own, or a new one where it has none.
    #[default]
    Stored,
    /// A new one, whatever the session file says.
    New,
    /// The one with this id, in lower case, which becomes the workspace's.
    Adopted(String),
}

/// What every turn of a process shares.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) places: Places,
}

/// How serious something told to the daemon's log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Debug,
    Warn,
}

impl Level {
    /// Its name on the wire, one of MCP's.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Level::Debug => "debug",
            Level::Warn => "warning",
        }
    }
}

/// Where a turn tells what happens.
pub(crate) trait Sink {
    /// One event, in the order of the contract. It may be kept back until the next [`Sink::flush`].
    fn event(&mut self, event: &TurnEvent<'_>);
    /// One event that is JSON already.
    fn raw_event(&mut self, event: &[u8]);
    /// Something for the log that is no event.
    fn log(&mut self, level: Level, message: &str);
    /// What codex is doing, for people.
    fn step(&mut self, _step: &Step) {}
    /// Gives out what was kept back. Where the other side does not read, this waits until it does or the turn
    /// is cancelled; what could not be given out stays.
    fn flush(&mut self);
    /// Gives out everything, the turn being over, and waits for that without regard to a cancel.
    fn finish(&mut self) {
        self.flush();
    }
}

/// Makes the workspace if it is missing, and gives its canonical path.
///
/// # Errors
/// [`Kind::Params`], naming the folder.
pub(crate) fn prepare_workspace(workspace: &Path) -> Result<PathBuf> {
    let failed = |error| {
        Error::os(
            Kind::Params,
            format!("cannot use the workspace '{}'", workspace.display()),
            error,
        )
    };
    sys::check_owner("the workspace", workspace)?;
    std::fs::create_dir_all(workspace).map_err(|error| {
        failed(match error.kind() {
            // A file has its name, or a link that leads nowhere.
            std::io::ErrorKind::AlreadyExists => rustix::io::Errno::NOTDIR.into(),
            _ => error,
        })
    })?;
    let canonical = workspace.canonicalize().map_err(failed)?;
    if !canonical.is_dir() {
        return Err(failed(rustix::io::Errno::NOTDIR.into()));
    }
    Ok(canonical)
}

/// What codex 0.169 says where it cannot open a lock of a thread.
const LOCK_FAILED: &str = "thread-store internal error";

/// Runs a turn in the workspace of `place`, which is made if it is missing, with the daemon's tools where it lends some.
///
/// # Errors
/// What is refused before codex starts; no event was told then.
pub(crate) fn run(
    request: &Request,
    place: &Place,
    context: &Context,
    cancel: &Flag,
    tools: Option<&Tools>,
    sink: &mut dyn Sink,
) -> Result<TurnResult> {
    let mut teller = Teller::new(sink);
    // A panic is a bug of ours; it must cost this turn and no other. Dropping ends codex on the way.
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
        work(request, place, context, cancel, tools, &mut teller)
    }));
    match outcome {
        // A second codex could not be started after the first had said something: no refusal any more.
        Ok(Err(error)) if teller.started => {
            Ok(teller.fail(&error, None, ThreadState::New, Account::default()))
        }
        Ok(result) => result,
        Err(panic) => {
            let what = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no reason given");
            let error = Error::new(Kind::Io, format!("plexum-openai has a bug: {what}"));
            if !teller.started {
                return Err(error);
            }
            Ok(teller.fail(&error, None, ThreadState::New, Account::default()))
        }
    }
}

/// Tokens of a turn and of its thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tokens {
    turn: TurnUsage,
    /// `None` where it is not known.
    thread: Option<Usage>,
}

/// What a turn's response tells of what it took.
#[derive(Clone, Debug, Default)]
struct Account {
    tokens: Tokens,
    telemetry: Telemetry,
}

fn work(
    request: &Request,
    place: &Place,
    context: &Context,
    cancel: &Flag,
    tools: Option<&Tools>,
    teller: &mut Teller<'_>,
) -> Result<TurnResult> {
    let cancelled = |teller: &mut Teller<'_>| {
        let (thread, state) = untouched(place.workspace());
        Ok(teller.end(StopReason::Cancelled, thread, state, Account::default()))
    };
    if cancel.is_raised() {
        return cancelled(teller);
    }
    let workspace = prepare_workspace(place.workspace())?;
    let place = place.join_directory(&workspace).map_err(|error| {
        let what = format!("cannot use the workspace '{}'", workspace.display());
        Error::os(Kind::Params, what, error)
    })?;
    let workspace = place.workspace();
    let failed = |error: &Error, teller: &mut Teller<'_>| {
        let (thread, state) = untouched(workspace);
        Ok(teller.fail(error, thread, state, Account::default()))
    };
    let before = "another turn of the workspace comes first";
    if !place.wait(cancel, || teller.queued(before)) {
        return cancelled(teller);
    }
    let codex_home = context.places.codex_home(&context.config);
    sys::check_owner("the workspace", workspace)?;
    sys::check_owner("the codex home", &codex_home)?;
    let binary = request.binary.as_deref().unwrap_or(&context.config.binary);
    let program = command::find(binary, &context.config, &context.places)?;
    let other = "another process runs a turn in the workspace";
    let lock = match queue::lock(workspace, cancel, || teller.queued(other)) {
        Ok(Locked::Held(lock)) => Some(lock),
        Ok(Locked::Without(why)) => {
            teller.warn(&why);
            None
        }
        Ok(Locked::Cancelled) => return cancelled(teller),
        Err(error) => return failed(&error, teller),
    };
    if teller.is_queued {
        teller.status(Status::Running, None);
        teller.sink.flush();
    }
    let stored = stored_thread(workspace, context, teller)?;
    if let Err(error) = exclude::exclude_own_files(workspace) {
        teller.debug(&format!(
            "the session file is not excluded from the git repository: {}",
            crate::error::reason(&error)
        ));
    }
    for warning in &request.warnings {
        teller.warn(warning);
    }
    let mut images = Images::new(workspace, &context.places.profile, cancel);
    let prompt = prompt::prompt_text(&request.prompt, &mut images, teller)?;
    if cancel.is_raised() {
        return cancelled(teller);
    }
    let schema = request.output_schema.as_deref();
    let schema = match schema.map(|schema| images.add_schema(schema)).transpose() {
        Ok(schema) => schema,
        Err(why) => {
            let error = Error::new(
                Kind::Io,
                format!("codex cannot be given the output schema: {why}"),
            );
            return failed(&error, teller);
        }
    };
    let agent_id = request.agent_id.as_deref().unwrap_or_default();
    let lent = tools.map(|tools| tools.lend(agent_id, &program, context, cancel, teller));
    let bridge = match lent.transpose() {
        Ok(bridge) => bridge.flatten(),
        Err(_) if cancel.is_raised() => return cancelled(teller),
        Err(error) if error.kind() == Kind::Params => return Err(error),
        Err(error) => return failed(&error, teller),
    };
    teller.debug(&format!(
        "a turn of agent '{agent_id}' in '{}': model '{}', a prompt of {} bytes, {} images, {} the daemon's tools",
        workspace.display(),
        request.model,
        prompt.len(),
        images.files.len(),
        if bridge.is_some() { "with" } else { "without" },
    ));
    let tool_args = bridge.as_ref().map(Bridge::codex_args).unwrap_or_default();
    let mut attempt = Attempt {
        request,
        context,
        workspace,
        program: &program,
        images: &images.files,
        tool_args: &tool_args,
        bridge: bridge.as_ref(),
        prompt: Cow::Borrowed(&prompt),
        schema: schema.as_deref(),
        asked: match &request.thread {
            ThreadChoice::Stored => stored.as_deref(),
            ThreadChoice::New => None,
            ThreadChoice::Adopted(thread) => Some(thread),
        },
        stored: stored.as_deref(),
        replaced: None,
        lock: lock.as_ref().map(FileLock::path),
    };
    let mut state = match attempt.asked {
        Some(_) => ThreadState::Resumed,
        None => ThreadState::New,
    };
    if attempt.asked.is_none()
        && request.thread != ThreadChoice::New
        && !request.history.is_empty()
        && context.config.replay_new
    {
        teller.warn(
            "the conversation has no thread of codex yet: a new one begins, with the conversation so far in its prompt",
        );
        attempt.prompt = Cow::Owned(request.history.before(&prompt));
    }
    let mut done = run_thread(&mut attempt, cancel, teller)?;
    if let (Ended::Refused(refusal), Some(lost)) = (&done.ended, attempt.asked) {
        let told = match refusal {
            Refusal::Unopened(reason) => {
                format!("codex cannot go on with the thread {lost}, tried twice: {reason}")
            }
            Refusal::NotAFile(reason) => {
                format!("codex cannot go on with the thread {lost}: {reason}")
            }
            Refusal::Unknown | Refusal::Archived => {
                format!("codex no longer knows the thread {lost}")
            }
        };
        // Nobody asked for another conversation than the one that is to be adopted.
        if let ThreadChoice::Adopted(_) = request.thread {
            let error = Error::new(Kind::ThreadLost, told)
                .hint("the workspace keeps the thread that it had; leave \"thread\" out to go on with that");
            return Ok(teller.fail(&error, stored.clone(), state, done.account()));
        }
        match context.config.lost_thread {
            LostThread::Error => {
                let error = Error::new(Kind::ThreadLost, told).hint(format!(
                    "remove '{}' to start a new conversation, or set \"lost_thread\" to \"replay\" in the config",
                    workspace.join(session::FILE).display()
                ));
                return Ok(teller.fail(&error, Some(lost.to_owned()), state, done.account()));
            }
            LostThread::Replay if !request.history.is_empty() => {
                teller.warn(&format!(
                    "{told}; a new one takes over, with the conversation so far in its prompt"
                ));
                attempt.prompt = Cow::Owned(request.history.before(&prompt));
            }
            LostThread::Replay | LostThread::Fresh => {
                teller.warn(&format!(
                    "{told}; a new one takes over, without the conversation so far"
                ));
            }
        }
        attempt.replaced = Some(lost);
        attempt.asked = None;
        state = ThreadState::Replaced;
        done = attempt.run(cancel, teller)?;
    }
    let account = done.account();
    let thread = done.thread.or_else(|| attempt.asked.map(str::to_owned));
    // codex is gone: nothing of the tools outlives it.
    drop(bridge);
    Ok(match done.ended {
        Ended::Completed => teller.end(StopReason::EndTurn, thread, state, account),
        Ended::Cancelled => teller.end(StopReason::Cancelled, thread, state, account),
        Ended::Failed(error) => {
            // codex only says that something is not permitted.
            let error = match home::check_coordination_lock(&codex_home) {
                Err(lock) if error.message().contains(LOCK_FAILED) => {
                    Error::new(error.kind(), lock.message())
                }
                _ => error,
            };
            teller.fail(&error, thread, state, account)
        }
        // A thread that was not asked for cannot be refused.
        Ended::Refused(_) => teller.fail(
            &Error::new(
                Kind::CodexFailed,
                "codex says that it lost a thread which was not asked for",
            ),
            thread,
            state,
            account,
        ),
    })
}

/// Runs codex; brings a thread back that is archived, and tries one again that codex could not open: it may have
/// been for a reason of the moment. [`Refusal::Unopened`] is then what codex said twice.
fn run_thread(attempt: &mut Attempt<'_>, cancel: &Flag, teller: &mut Teller<'_>) -> Result<Done> {
    if let Some(refusal) = attempt.rollout_is_not_a_file() {
        return Ok(Done::refused(refusal));
    }
    let mut done = attempt.run(cancel, teller)?;
    if let (Ended::Refused(Refusal::Archived), Some(thread)) = (&done.ended, attempt.asked) {
        let (config, places) = (&attempt.context.config, &attempt.context.places);
        match thread::unarchive(attempt.program, thread, config, places, cancel) {
            Ok(()) => teller.warn(&format!("thread {thread} was archived; it is unarchived")),
            Err(_) if cancel.is_raised() => {
                done.ended = Ended::Cancelled;
                return Ok(done);
            }
            Err(error) => {
                done.ended = Ended::Failed(error);
                return Ok(done);
            }
        }
        done = attempt.run(cancel, teller)?;
    }
    let Ended::Refused(Refusal::Unopened(first)) = &done.ended else {
        return Ok(done);
    };
    teller.debug(&format!(
        "codex did not open the thread, it is tried again: {first}"
    ));
    sys::wait_for(cancel, BEFORE_RETRY);
    let mut again = attempt.run(cancel, teller)?;
    if let Ended::Refused(Refusal::Unopened(second)) = &again.ended
        && first != second
    {
        again.ended = Ended::Failed(Error::new(
            Kind::CodexFailed,
            format!("codex could not open the thread: {second}"),
        ));
    }
    Ok(again)
}

/// The thread of a workspace in which a turn ends before codex was started: it goes on with the next one.
fn untouched(workspace: &Path) -> (Option<String>, ThreadState) {
    match session::read(workspace) {
        Ok(Stored::Thread(id)) => (Some(id), ThreadState::Resumed),
        _ => (None, ThreadState::New),
    }
}

/// The thread that the session file names; a file that is unusable, and one that names the thread of another
/// directory, is set aside with a warning.
fn stored_thread(
    workspace: &Path,
    context: &Context,
    teller: &mut Teller<'_>,
) -> Result<Option<String>> {
    let why = match session::read(workspace)? {
        Stored::Nothing => return Ok(None),
        Stored::Thread(id) => {
            let (config, places) = (&context.config, &context.places);
            match thread::foreign_directory(workspace, &id, config, places) {
                None => return Ok(Some(id)),
                Some(other) => format!(
                    "names thread {id}, which belongs to '{}': this workspace is a copy",
                    other.display()
                ),
            }
        }
        Stored::Unusable(why) => format!("is unusable ({why})"),
    };
    let aside = match session::set_aside(workspace) {
        Ok(name) => format!("it is now '{name}'"),
        Err(error) => format!(
            "it could not be set aside: {}",
            crate::error::reason(&error)
        ),
    };
    teller.warn(&format!(
        "the session file '{}' {why}; {aside}, and a new thread is started",
        workspace.join(session::FILE).display()
    ));
    Ok(None)
}

/// Keeps the order of the events.
struct Teller<'a> {
    sink: &'a mut dyn Sink,
    started: bool,
    /// The error that was told.
    failed: Option<TurnError>,
    /// It was told that the turn waits.
    is_queued: bool,
    /// Messages of the assistant so far.
    texts: usize,
    /// Events of tool calls so far, told or not wanted.
    calls: usize,
}

impl<'a> Teller<'a> {
    fn new(sink: &'a mut dyn Sink) -> Teller<'a> {
        Teller {
            sink,
            started: false,
            failed: None,
            is_queued: false,
            texts: 0,
            calls: 0,
        }
    }

    /// Tells `message_start`, if it was not told.
    fn start(&mut self) {
        if !self.started {
            self.started = true;
            self.sink.event(&TurnEvent::MessageStart);
        }
    }

    fn event(&mut self, event: &TurnEvent<'_>) {
        self.start();
        self.sink.event(event);
    }

    fn raw_event(&mut self, event: &[u8]) {
        self.start();
        self.sink.raw_event(event);
    }

    /// A message of the assistant; from the second on it is set off, so that joined deltas read well.
    fn text(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        let message = self.texts;
        let text = match message {
            0 => Cow::Borrowed(text),
            _ => Cow::Owned(format!("\n\n{text}")),
        };
        self.texts += 1;
        self.event(&TurnEvent::TextDelta { text, message });
    }

    fn status(&mut self, state: Status, detail: Option<&str>) {
        let detail = detail.map(Cow::Borrowed);
        self.event(&TurnEvent::Status { state, detail });
    }

    /// The turn waits for its workspace. Told at once, and once.
    fn queued(&mut self, detail: &str) {
        if !self.is_queued {
            self.is_queued = true;
            self.status(Status::Queued, Some(detail));
            self.sink.flush();
        }
    }

    fn warn(&mut self, message: &str) {
        self.sink.log(Level::Warn, message);
    }

    fn debug(&mut self, message: &str) {
        self.sink.log(Level::Debug, message);
    }

    /// Ends the turn with an error.
    fn fail(
        &mut self,
        error: &Error,
        thread: Option<String>,
        state: ThreadState,
        account: Account,
    ) -> TurnResult {
        if self.failed.is_none() {
            let error = TurnError {
                code: error.kind().code(),
                message: error.message().to_owned(),
                retryable: error.retryable(),
                retry_at: error.retry_at(),
            };
            self.event(&TurnEvent::Error { error: &error });
            self.failed = Some(error);
        }
        self.end(StopReason::Error, thread, state, account)
    }

    /// Ends the turn.
    fn end(
        &mut self,
        stop_reason: StopReason,
        thread_id: Option<String>,
        thread_state: ThreadState,
        account: Account,
    ) -> TurnResult {
        self.debug(&format!(
            "the turn ends: {}, {} tokens in, {} out",
            match stop_reason {
                StopReason::EndTurn => "it is done",
                StopReason::Error => "it failed",
                StopReason::Cancelled => "it was cancelled",
            },
            account.tokens.turn.total.input_tokens,
            account.tokens.turn.total.output_tokens,
        ));
        self.event(&TurnEvent::MessageEnd {
            stop_reason,
            usage: account.tokens.turn,
        });
        self.sink.finish();
        TurnResult {
            stop_reason,
            thread_id: thread_id.filter(|id| home::is_thread_id(id)),
            thread_state,
            usage: account.tokens.turn,
            thread_usage: account.tokens.thread,
            telemetry: account.telemetry,
            error: self.failed.clone(),
        }
    }
}
