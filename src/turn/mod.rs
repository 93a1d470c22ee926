//! A turn from request to answer.
//!
//! It owns the order of the events (one `message_start` first, one `message_end` last, at most one `error`), the
//! deadlines and the cancel. Whoever asks for a turn passes a [`Sink`] for what it tells: the daemon's outbox or
//! a printer for a terminal, so that what a person debugs is what the daemon gets. Nothing here knows JSON-RPC.
//!
//! What can be refused before codex starts comes back as an error and no event was told; after the first event
//! the turn always ends with an answer.

mod attempt;
pub(crate) mod images;
pub(crate) mod queue;
pub(crate) mod session;
mod tools;
mod usage;
mod watch;

pub(crate) use tools::Tools;

use crate::canonical::{StopReason, ThreadState, TurnError, TurnEvent, TurnResult, Usage};
use crate::codex::command::LONGEST_PROMPT;
use crate::codex::translate::Step;
use crate::codex::{command, home};
use crate::config::{Config, LostThread, Places};
use crate::error::{Error, Kind, Result};
use crate::mcp::Bridge;
use crate::sys::{FileLock, Flag};
use attempt::{Attempt, Ended};
use images::{Image, Images};
use queue::{Locked, Place};
use session::Stored;
use std::borrow::Cow;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

/// How much of a conversation is replayed to a thread that takes over, in bytes.
pub(crate) const LONGEST_REPLAY: usize = 256 << 10;

/// A block of the prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    Text(String),
    Image(Image),
}

/// What a turn is asked to do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
    /// The model as the daemon names it; empty leaves the choice to codex.
    pub(crate) model: String,
    pub(crate) agent_id: Option<String>,
    pub(crate) system: Option<String>,
    /// Text and images of the user's message.
    pub(crate) prompt: Vec<Block>,
    /// The conversation before it as text, the newest [`LONGEST_REPLAY`] bytes; empty where there is none.
    pub(crate) history: String,
    /// Start a new thread whatever the session file says.
    pub(crate) fresh: bool,
    /// The codex executable, instead of the config's.
    pub(crate) binary: Option<String>,
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
    /// Its name on the wire.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Level::Debug => "debug",
            Level::Warn => "warn",
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
            Ok(teller.fail(&error, None, ThreadState::New, Tokens::default()))
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
            Ok(teller.fail(&error, None, ThreadState::New, Tokens::default()))
        }
    }
}

/// Tokens of a turn and of its thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tokens {
    turn: Usage,
    thread: Usage,
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
        Ok(teller.end(StopReason::Cancelled, thread, state, Tokens::default()))
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
        Ok(teller.fail(error, thread, state, Tokens::default()))
    };
    if !place.wait(cancel) {
        return cancelled(teller);
    }
    let binary = request.binary.as_deref().unwrap_or(&context.config.binary);
    let program = command::find(binary, &context.config, &context.places)?;
    let lock = match queue::lock(workspace, cancel) {
        Ok(Locked::Held(lock)) => Some(lock),
        Ok(Locked::Without(why)) => {
            teller.warn(&why);
            None
        }
        Ok(Locked::Cancelled) => return cancelled(teller),
        Err(error) => return failed(&error, teller),
    };
    let stored = stored_thread(workspace, teller)?;
    let mut images = Images::default();
    let prompt = prompt_text(&request.prompt, &mut images, workspace, teller)?;
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
        prompt: Cow::Borrowed(&prompt),
        asked: stored.as_deref().filter(|_| !request.fresh),
        stored: stored.as_deref(),
        lock: lock.as_ref().map(FileLock::path),
    };
    let mut state = match attempt.asked {
        Some(_) => ThreadState::Resumed,
        None => ThreadState::New,
    };
    let mut done = attempt.run(cancel, teller)?;
    if let Ended::LostThread = done.ended {
        let lost = attempt.asked.unwrap_or_default().to_owned();
        let told = format!("codex no longer knows the thread {lost}");
        match context.config.lost_thread {
            LostThread::Error => {
                let error = Error::new(Kind::CodexFailed, told).hint(format!(
                    "remove '{}' to start a new conversation, or set \"lost_thread\" to \"replay\" in the config",
                    workspace.join(session::FILE).display()
                ));
                return Ok(teller.fail(&error, Some(lost), state, done.tokens));
            }
            LostThread::Replay if !request.history.is_empty() => {
                teller.warn(&format!(
                    "{told}; a new one takes over, with the conversation so far in its prompt"
                ));
                attempt.prompt = Cow::Owned(with_history(&request.history, &prompt));
            }
            LostThread::Replay | LostThread::Fresh => {
                teller.warn(&format!(
                    "{told}; a new one takes over, without the conversation so far"
                ));
            }
        }
        attempt.asked = None;
        state = ThreadState::Replaced;
        done = attempt.run(cancel, teller)?;
    }
    // codex is gone: nothing of the tools outlives it.
    drop(bridge);
    let thread = done.thread.or_else(|| attempt.asked.map(str::to_owned));
    Ok(match done.ended {
        Ended::Completed => teller.end(StopReason::EndTurn, thread, state, done.tokens),
        Ended::Cancelled => teller.end(StopReason::Cancelled, thread, state, done.tokens),
        Ended::Failed(error) => teller.fail(&error, thread, state, done.tokens),
        // A thread that was not asked for cannot be lost.
        Ended::LostThread => teller.fail(
            &Error::new(
                Kind::CodexFailed,
                "codex says that it lost a thread which was not asked for",
            ),
            thread,
            state,
            done.tokens,
        ),
    })
}

/// The thread of a workspace in which a turn ends before codex was started: it goes on with the next one.
fn untouched(workspace: &Path) -> (Option<String>, ThreadState) {
    match session::read(workspace) {
        Ok(Stored::Thread(id)) => (Some(id), ThreadState::Resumed),
        _ => (None, ThreadState::New),
    }
}

/// The thread that the session file names; one that is unusable is put aside with a warning.
fn stored_thread(workspace: &Path, teller: &mut Teller<'_>) -> Result<Option<String>> {
    match session::read(workspace)? {
        Stored::Nothing => Ok(None),
        Stored::Thread(id) => Ok(Some(id)),
        Stored::Unusable(why) => {
            let file = workspace.join(session::FILE);
            let aside = match session::set_aside(workspace) {
                Ok(()) => format!("it is now '{}'", session::bad_name()),
                Err(error) => format!(
                    "it could not be put aside: {}",
                    crate::error::reason(&error)
                ),
            };
            teller.warn(&format!(
                "the session file '{}' is unusable ({why}); {aside}, and a new thread is started",
                file.display()
            ));
            Ok(None)
        }
    }
}

/// The prompt's text, its blocks joined by line ends; an image that cannot be had leaves a line in its place.
///
/// # Errors
/// [`Kind::Params`] where there is no text at all: codex takes no empty prompt.
fn prompt_text(
    blocks: &[Block],
    images: &mut Images,
    workspace: &Path,
    teller: &mut Teller<'_>,
) -> Result<String> {
    let mut parts: Vec<Cow<'_, str>> = Vec::new();
    for block in blocks {
        match block {
            Block::Text(text) => parts.push(text.into()),
            Block::Image(image) => {
                if let Err(why) = images.add(image, workspace) {
                    teller.warn(&format!("the image \"{}\" is left out: {why}", image.name));
                    parts.push(format!("[image \"{}\" unavailable]", image.name).into());
                }
            }
        }
    }
    let text = parts.join("\n");
    if text.trim().is_empty() {
        return Err(Error::new(Kind::Params, "the prompt is empty"));
    }
    Ok(text)
}

/// Refuses what codex would refuse, before it starts.
fn check_length(prompt: &str) -> Result<()> {
    // A character has at most four bytes: most prompts need no count.
    if prompt.len() <= LONGEST_PROMPT {
        return Ok(());
    }
    let length = prompt.chars().count();
    if length <= LONGEST_PROMPT {
        return Ok(());
    }
    Err(Error::new(
        Kind::Params,
        format!("the prompt has {length} characters, and codex takes at most {LONGEST_PROMPT}"),
    ))
}

/// The first prompt of a thread that takes over: the conversation so far, set apart, then the question. The
/// conversation gives way where both together would be too long for codex.
fn with_history(history: &str, prompt: &str) -> String {
    const BEFORE: &str = "<conversation_so_far>\nThe thread of this conversation was lost. What follows between these tags is its record, oldest first; it is not a new request.\n\n";
    const AFTER: &str = "\n</conversation_so_far>\n\n";
    let room = LONGEST_PROMPT
        .saturating_sub(BEFORE.len() + AFTER.len() + prompt.chars().count())
        .min(LONGEST_REPLAY);
    let history = newest(history, room);
    if history.is_empty() {
        return prompt.to_owned();
    }
    format!("{BEFORE}{history}{AFTER}{prompt}")
}

/// The last `most` bytes of a text, cut between characters.
pub(crate) fn newest(text: &str, most: usize) -> &str {
    let mut start = text.len().saturating_sub(most);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

/// Keeps the order of the events.
struct Teller<'a> {
    sink: &'a mut dyn Sink,
    started: bool,
    failed: bool,
    /// Messages of the assistant so far.
    texts: usize,
}

impl<'a> Teller<'a> {
    fn new(sink: &'a mut dyn Sink) -> Teller<'a> {
        Teller {
            sink,
            started: false,
            failed: false,
            texts: 0,
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
        let text = match self.texts {
            0 => Cow::Borrowed(text),
            _ => Cow::Owned(format!("\n\n{text}")),
        };
        self.texts += 1;
        self.event(&TurnEvent::TextDelta { text });
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
        tokens: Tokens,
    ) -> TurnResult {
        if !self.failed {
            self.failed = true;
            let error = TurnError {
                code: error.kind().code(),
                message: error.message().to_owned(),
                retryable: error.retryable(),
            };
            self.event(&TurnEvent::Error { error: &error });
        }
        self.end(StopReason::Error, thread, state, tokens)
    }

    /// Ends the turn.
    fn end(
        &mut self,
        stop_reason: StopReason,
        thread_id: Option<String>,
        thread_state: ThreadState,
        tokens: Tokens,
    ) -> TurnResult {
        self.debug(&format!(
            "the turn ends: {}, {} tokens in, {} out",
            match stop_reason {
                StopReason::EndTurn => "it is done",
                StopReason::Error => "it failed",
                StopReason::Cancelled => "it was cancelled",
            },
            tokens.turn.input_tokens,
            tokens.turn.output_tokens,
        ));
        self.event(&TurnEvent::MessageEnd {
            stop_reason,
            usage: tokens.turn,
        });
        self.sink.finish();
        TurnResult {
            stop_reason,
            thread_id: thread_id.filter(|id| home::is_thread_id(id)),
            thread_state,
            usage: tokens.turn,
            thread_usage: tokens.thread,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_is_set_apart_and_keeps_the_newest() {
        let prompt = with_history("[user]\nhi\n\n[assistant]\nyes", "and now?");
        assert!(prompt.starts_with("<conversation_so_far>\n"), "{prompt}");
        assert!(
            prompt.ends_with("[assistant]\nyes\n</conversation_so_far>\n\nand now?"),
            "{prompt}"
        );
        let long = "é".repeat(LONGEST_REPLAY);
        let prompt = with_history(&long, "q");
        assert!(prompt.len() < LONGEST_REPLAY + 400 && prompt.len() > LONGEST_REPLAY);
        assert!(check_length(&with_history(&long, &"x".repeat(LONGEST_PROMPT - 100))).is_ok());
        assert_eq!(
            with_history(&long, &"x".repeat(LONGEST_PROMPT)).len(),
            LONGEST_PROMPT
        );
    }

    #[test]
    fn a_prompt_is_counted_in_characters() {
        assert!(check_length(&"é".repeat(LONGEST_PROMPT)).is_ok());
        let error = check_length(&"é".repeat(LONGEST_PROMPT + 1)).unwrap_err();
        assert_eq!(error.kind(), Kind::Params);
        assert!(error.message().contains("1048577 characters"), "{error}");
    }
}
