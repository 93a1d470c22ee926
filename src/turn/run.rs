//! The steps of a turn, from the workspace's queue to the result.

use super::images::Images;
use super::queue::{self, LockOutcome, Ticket};
use super::session::{self, Stored};
use super::{Context, ThreadChoice, Tools, TurnRequest, exclude, prompt, served, thread};
use crate::backend::emitter::{Emitter, EventSink};
use crate::backend::steering::Steering;
use crate::backend::{
    Account, Backend, Outcome, ReleaseTarget, TurnSpec, TurnStatus, request_release,
};
use crate::canonical::{Status, StopReason, ThreadState, TurnResult};
use crate::codex::failure::Refusal;
use crate::codex::{find, home, writer_lock};
use crate::config::LostThread;
use crate::error::{Error, Kind, Result, reason};
use crate::mcp::Bridge;
use crate::os::{self, CancelToken, FileLock};
use std::borrow::Cow;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The delay before the retry if codex could not open a thread.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// Part of codex 0.169's message if it cannot open a lock of a thread.
const LOCK_FAILED: &str = "thread-store internal error";

/// Runs a turn in the workspace of `ticket`, which is created if it is missing, with the daemon's `tools`. Messages in
/// `steering` are sent to the running turn if codex accepts them.
///
/// # Errors
/// The turn was refused before codex started. Then no event was emitted.
pub(crate) fn run(
    request: &TurnRequest,
    ticket: &Ticket,
    context: &Context,
    cancel: &CancelToken,
    tools: Option<&Tools>,
    steering: Option<&Steering>,
    sink: &mut dyn EventSink,
) -> Result<TurnResult> {
    let turn = Turn {
        request,
        context,
        cancel,
        tools,
        steering,
        backend: context.backends.choose(&context.config),
    };
    let mut emitter = Emitter::new(sink);
    // A panic is a bug of ours; only this turn fails. The unwinding ends codex.
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| turn.run(ticket, &mut emitter)));
    let stop = match outcome {
        Ok(Ok(result)) => return Ok(result),
        Ok(Err(stop)) => stop,
        Err(panic) => {
            let what = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no reason given");
            Stop::Refused(Error::new(
                Kind::Io,
                format!("plexum-openai has a bug: {what}"),
            ))
        }
    };
    match stop {
        Stop::Refused(error) if !emitter.started => Err(error),
        // For example, a second codex could not be started after the first: events were emitted already.
        Stop::Refused(error) => {
            Ok(emitter.fail(&error, None, ThreadState::New, Account::default()))
        }
        Stop::Failed(error) => {
            let (thread, state) = unchanged_thread(ticket.workspace());
            Ok(emitter.fail(&error, thread, state, Account::default()))
        }
        Stop::Cancelled => {
            let (thread, state) = unchanged_thread(ticket.workspace());
            Ok(emitter.end(StopReason::Cancelled, thread, state, Account::default()))
        }
    }
}

/// Why a turn ends before codex is started for it.
enum Stop {
    /// The response is an error, if no event was emitted yet.
    Refused(Error),
    /// The turn ends with an `error` event.
    Failed(Error),
    Cancelled,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Refused(error)
    }
}

/// The workspace's thread after a turn that ended before codex started: the next turn resumes it.
fn unchanged_thread(workspace: &Path) -> (Option<String>, ThreadState) {
    match session::read(workspace) {
        Ok(Stored::Thread(id)) => (Some(id), ThreadState::Resumed),
        _ => (None, ThreadState::New),
    }
}

struct Turn<'a> {
    request: &'a TurnRequest,
    context: &'a Context,
    cancel: &'a CancelToken,
    tools: Option<&'a Tools>,
    steering: Option<&'a Steering>,
    backend: &'a dyn Backend,
}

impl Turn<'_> {
    fn run(
        &self,
        ticket: &Ticket,
        emitter: &mut Emitter<'_>,
    ) -> std::result::Result<TurnResult, Stop> {
        self.check_cancelled()?;
        let workspace = prepare_workspace(ticket.workspace())?;
        let ticket = ticket.join_directory(&workspace).map_err(|error| {
            let what = format!("cannot use the workspace '{}'", workspace.display());
            Error::os(Kind::Params, what, error)
        })?;
        let workspace = ticket.workspace();
        if !ticket.wait(self.cancel, || {
            emitter.queued("another turn of the workspace is running");
        }) {
            return Err(Stop::Cancelled);
        }
        let program = self.find_codex(workspace)?;
        let (config, places) = (&self.context.config, &self.context.places);
        let mut claim = self
            .context
            .backends
            .claim(workspace, config, places, self.cancel);
        if claim.lock.is_none() {
            claim.lock = self.lock(workspace, emitter)?;
        }
        let stored = self.stored_thread(workspace, emitter)?;
        self.exclude_own_files(workspace, emitter);
        if let Err(error) = served::add(&self.context.places.plugin_directory(), workspace) {
            emitter.debug(&format!(
                "the workspace is not recorded for 'plexum-openai threads': {}",
                reason(&error)
            ));
        }
        for warning in &self.request.warnings {
            emitter.warn(warning);
        }
        let mut images = Images::new(workspace, &self.context.places.profile, self.cancel);
        let prompt = prompt::prompt_text(&self.request.prompt, &mut images, emitter)?;
        self.check_cancelled()?;
        let schema = self.write_schema(&mut images)?;
        let bridge = self.expose_tools(&program, claim.tools(), emitter)?;
        emitter.debug(&format!(
            "a turn of agent '{}' in '{}': model '{}', a prompt of {} bytes, {} images, {} the daemon's tools",
            self.agent_id(),
            workspace.display(),
            self.request.model,
            prompt.len(),
            images.files.len(),
            if bridge.is_some() { "with" } else { "without" },
        ));
        let stored = stored.as_deref();
        let thread = match &self.request.thread {
            ThreadChoice::Stored => stored,
            ThreadChoice::New => None,
            ThreadChoice::Adopted(thread) => Some(thread.as_str()),
        };
        let spec = TurnSpec {
            config: &self.context.config,
            places: &self.context.places,
            workspace,
            program: &program,
            lock: claim.lock.as_ref().map(FileLock::path),
            thread,
            model: &self.request.model,
            system: self.request.system.as_deref(),
            reasoning_effort: self.request.reasoning_effort.as_deref(),
            output_schema: schema.as_deref(),
            images: &images.files,
            prompt: self.first_prompt(&prompt, thread, emitter),
            tools: bridge.as_ref(),
            steering: self.steering,
            on_thread: &|id| session::store(workspace, id, stored, None),
        };
        let result = self.run_or_replace(spec, &prompt, stored, emitter)?;
        Ok(result)
    }

    fn check_cancelled(&self) -> std::result::Result<(), Stop> {
        match self.cancel.is_cancelled() {
            true => Err(Stop::Cancelled),
            false => Ok(()),
        }
    }

    fn agent_id(&self) -> &str {
        self.request.agent_id.as_deref().unwrap_or_default()
    }

    fn codex_home(&self) -> PathBuf {
        self.context.places.codex_home(&self.context.config)
    }

    /// Finds codex, after checking that this user owns the directories that it writes to.
    fn find_codex(&self, workspace: &Path) -> Result<PathBuf> {
        os::check_owner("the workspace", workspace)?;
        os::check_owner("the codex home", &self.codex_home())?;
        let (config, places) = (&self.context.config, &self.context.places);
        let binary = self.request.binary.as_deref().unwrap_or(&config.binary);
        find::find_codex(binary, config, places)
    }

    /// Locks the workspace against other processes, if that is possible. A wait emits no event, so that the turn can
    /// still be refused when the wait times out.
    fn lock(
        &self,
        workspace: &Path,
        emitter: &mut Emitter<'_>,
    ) -> std::result::Result<Option<FileLock>, Stop> {
        let timeout = self.context.config.busy_wait;
        let release = || request_release(ReleaseTarget::Workspace(workspace), &self.context.places);
        let locked = queue::lock(workspace, timeout, self.cancel, release, |message| {
            let seconds = timeout.as_secs();
            emitter.warn(&format!("{message}; waiting for at most {seconds} s"));
            emitter.flush();
        });
        let lock = match locked {
            Ok(LockOutcome::Held(lock)) => Some(lock),
            Ok(LockOutcome::Unavailable(why)) => {
                emitter.warn(&why);
                None
            }
            Ok(LockOutcome::Cancelled) => return Err(Stop::Cancelled),
            Err(error) if emitter.started => return Err(Stop::Failed(error)),
            Err(error) => return Err(Stop::Refused(error)),
        };
        if emitter.is_queued {
            emitter.status(Status::Running, None);
            emitter.flush();
        }
        Ok(lock)
    }

    /// The thread in the session file. If the file is unusable or names the thread of another directory, it is set
    /// aside with a warning.
    fn stored_thread(&self, workspace: &Path, emitter: &mut Emitter<'_>) -> Result<Option<String>> {
        let why = match session::read(workspace)? {
            Stored::Nothing => return Ok(None),
            Stored::Thread(id) => {
                let (config, places) = (&self.context.config, &self.context.places);
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
            Ok(name) => format!("it is renamed to '{name}'"),
            Err(error) => format!("it cannot be set aside: {}", reason(&error)),
        };
        emitter.warn(&format!(
            "the session file '{}' {why}; {aside}, and a new thread is started",
            workspace.join(session::FILE).display()
        ));
        Ok(None)
    }

    fn exclude_own_files(&self, workspace: &Path, emitter: &mut Emitter<'_>) {
        if let Err(error) = exclude::exclude_own_files(workspace) {
            emitter.debug(&format!(
                "the session file is not excluded from the git repository: {}",
                reason(&error)
            ));
        }
    }

    fn write_schema(&self, images: &mut Images<'_>) -> std::result::Result<Option<PathBuf>, Stop> {
        let schema = self.request.output_schema.as_deref();
        let written = schema.map(|schema| images.add_schema(schema)).transpose();
        written.map_err(|why| {
            Stop::Failed(Error::new(
                Kind::Io,
                format!("cannot pass the output schema to codex: {why}"),
            ))
        })
    }

    fn expose_tools(
        &self,
        program: &Path,
        kept: Option<Arc<Bridge>>,
        emitter: &mut Emitter<'_>,
    ) -> std::result::Result<Option<Arc<Bridge>>, Stop> {
        let Some(tools) = self.tools else {
            return Ok(None);
        };
        let exposed = tools.expose(
            self.agent_id(),
            program,
            kept,
            self.context,
            self.cancel,
            emitter,
        );
        exposed.map_err(|error| match error.kind() {
            _ if self.cancel.is_cancelled() => Stop::Cancelled,
            Kind::Params => Stop::Refused(error),
            _ => Stop::Failed(error),
        })
    }

    /// The prompt. If there is no thread yet, and the request does not ask for a new one, the history precedes it.
    fn first_prompt<'p>(
        &self,
        prompt: &'p str,
        thread: Option<&str>,
        emitter: &mut Emitter<'_>,
    ) -> Cow<'p, str> {
        let history = &self.request.history;
        if thread.is_some()
            || self.request.thread == ThreadChoice::New
            || history.is_empty()
            || !self.context.config.replay_new
        {
            return Cow::Borrowed(prompt);
        }
        emitter.warn(
            "codex has no thread for the conversation yet: a new one is started, with the conversation so far in its prompt",
        );
        Cow::Owned(history.before(prompt))
    }

    /// Runs the turn, in a new thread if codex does not resume the requested one and the config allows that.
    fn run_or_replace(
        &self,
        mut spec: TurnSpec<'_>,
        prompt: &str,
        stored: Option<&str>,
        emitter: &mut Emitter<'_>,
    ) -> Result<TurnResult> {
        let state = match spec.thread {
            Some(_) => ThreadState::Resumed,
            None => ThreadState::New,
        };
        let outcome = self.run_in_thread(&spec, emitter)?;
        let (TurnStatus::Refused(refusal), Some(lost)) = (&outcome.status, spec.thread) else {
            return Ok(self.conclude(outcome, spec.thread, state, emitter));
        };
        let message = why_refused(refusal, lost);
        // The request is for this thread only: no other replaces it.
        if let ThreadChoice::Adopted(_) = self.request.thread {
            let error = Error::new(Kind::ThreadLost, message).hint(
                "the workspace keeps its previous thread; omit \"thread\" to continue that one",
            );
            return Ok(emitter.fail(&error, stored.map(str::to_owned), state, outcome.account));
        }
        match self.context.config.lost_thread {
            LostThread::Error => {
                let error = Error::new(Kind::ThreadLost, message).hint(format!(
                    "remove '{}' to start a new conversation, or set \"lost_thread\" to \"replay\" in the config",
                    spec.workspace.join(session::FILE).display()
                ));
                return Ok(emitter.fail(&error, Some(lost.to_owned()), state, outcome.account));
            }
            LostThread::Replay if !self.request.history.is_empty() => {
                emitter.warn(&format!(
                    "{message}; a new thread is started, with the conversation so far in its prompt"
                ));
                spec.prompt = Cow::Owned(self.request.history.before(prompt));
            }
            LostThread::Replay | LostThread::Fresh => {
                emitter.warn(&format!(
                    "{message}; a new thread is started, without the conversation so far"
                ));
            }
        }
        let workspace = spec.workspace;
        let store = |id: &str| session::store(workspace, id, stored, Some(lost));
        let spec = TurnSpec {
            thread: None,
            on_thread: &store,
            ..spec
        };
        let outcome = self.backend.run(&spec, self.cancel, emitter)?;
        Ok(self.conclude(outcome, None, ThreadState::Replaced, emitter))
    }

    /// Runs the turn in the thread of `spec`. Unarchives an archived thread, and retries once if codex cannot open the
    /// thread, which can be transient: [`Refusal::Unopened`] is returned only if both errors are the same.
    fn run_in_thread(&self, spec: &TurnSpec<'_>, emitter: &mut Emitter<'_>) -> Result<Outcome> {
        if let Some(refusal) = self.rollout_is_not_a_file(spec.thread) {
            return Ok(Outcome::not_started(TurnStatus::Refused(refusal)));
        }
        let mut outcome = self.backend.run(spec, self.cancel, emitter)?;
        if let (TurnStatus::Refused(Refusal::Archived), Some(thread)) =
            (&outcome.status, spec.thread)
        {
            match thread::unarchive(spec.program, thread, spec.config, spec.places, self.cancel) {
                Ok(()) => emitter.warn(&format!("thread {thread} was archived; it is unarchived")),
                Err(error) => {
                    outcome.status = match self.cancel.is_cancelled() {
                        true => TurnStatus::Cancelled,
                        false => TurnStatus::Failed(error),
                    };
                    return Ok(outcome);
                }
            }
            outcome = self.backend.run(spec, self.cancel, emitter)?;
        }
        let TurnStatus::Refused(Refusal::Unopened(first)) = &outcome.status else {
            return Ok(outcome);
        };
        emitter.debug(&format!(
            "retrying, as codex could not open the thread: {first}"
        ));
        os::wait_for_cancel(self.cancel, RETRY_DELAY);
        let mut retried = self.backend.run(spec, self.cancel, emitter)?;
        if let TurnStatus::Refused(Refusal::Unopened(second)) = &retried.status
            && first != second
        {
            retried.status = TurnStatus::Failed(Error::new(
                Kind::CodexFailed,
                format!("codex could not open the thread: {second}"),
            ));
        }
        Ok(retried)
    }

    /// Refuses a thread whose rollout is a FIFO or a device: codex would open it and block until the turn times out
    /// (0.135 and 0.169).
    fn rollout_is_not_a_file(&self, thread: Option<&str>) -> Option<Refusal> {
        let rollout = home::find_rollout(&self.codex_home(), thread?).ok()??;
        // Follows symbolic links, as codex does.
        let kind = std::fs::metadata(&rollout).ok()?.file_type();
        (!kind.is_file() && !kind.is_dir()).then(|| {
            Refusal::NotAFile(format!(
                "'{}': it is a pipe or a device, not a regular file",
                rollout.display()
            ))
        })
    }

    /// Ends the turn with the outcome in the thread `requested`, or in a new one.
    fn conclude(
        &self,
        outcome: Outcome,
        requested: Option<&str>,
        state: ThreadState,
        emitter: &mut Emitter<'_>,
    ) -> TurnResult {
        let account = outcome.account;
        let thread = outcome.thread.or_else(|| requested.map(str::to_owned));
        let error = match outcome.status {
            TurnStatus::Completed => {
                return emitter.end(StopReason::EndTurn, thread, state, account);
            }
            TurnStatus::Cancelled => {
                return emitter.end(StopReason::Cancelled, thread, state, account);
            }
            TurnStatus::Failed(error) => self.explain_lock(error),
            // Unexpected: without a requested thread, codex has none to refuse.
            TurnStatus::Refused(_) => Error::new(
                Kind::CodexFailed,
                "codex reports a lost thread, but none was requested",
            ),
        };
        emitter.fail(&error, thread, state, account)
    }

    /// Names the lock of codex's that cannot be opened, in place of codex's own message, which reports only that something
    /// is not permitted.
    fn explain_lock(&self, error: Error) -> Error {
        if !error.message().contains(LOCK_FAILED) {
            return error;
        }
        match writer_lock::check_coordination_lock(&self.codex_home()) {
            Err(lock) => Error::new(error.kind(), lock.message()),
            Ok(()) => error,
        }
    }
}

/// Why codex starts no thread in a directory (0.135 and 0.169).
pub(crate) const NOT_UTF8: &str = "its path is not valid UTF-8, which codex requires";

/// Whether the path of a directory is UTF-8, also behind symbolic links.
pub(crate) fn has_utf8_path(directory: &Path) -> bool {
    let canonical = directory.canonicalize();
    directory.to_str().is_some() && !canonical.is_ok_and(|path| path.to_str().is_none())
}

/// Creates the workspace if it is missing. Returns its canonical path.
///
/// # Errors
/// [`Kind::Params`], naming the directory.
pub(crate) fn prepare_workspace(workspace: &Path) -> Result<PathBuf> {
    let failed = |error| {
        Error::os(
            Kind::Params,
            format!("cannot use the workspace '{}'", workspace.display()),
            error,
        )
    };
    os::check_owner("the workspace", workspace)?;
    if !has_utf8_path(workspace) {
        let what = format!("cannot use the workspace '{}'", workspace.display());
        return Err(Error::new(Kind::Params, format!("{what}: {NOT_UTF8}")));
    }
    std::fs::create_dir_all(workspace).map_err(|error| {
        failed(match error.kind() {
            // A file or a dangling link has its name.
            std::io::ErrorKind::AlreadyExists => os::Errno::NOTDIR.into(),
            _ => error,
        })
    })?;
    let canonical = workspace.canonicalize().map_err(failed)?;
    if !canonical.is_dir() {
        return Err(failed(os::Errno::NOTDIR.into()));
    }
    Ok(canonical)
}

/// The message about a thread that codex refuses to resume.
fn why_refused(refusal: &Refusal, thread: &str) -> String {
    match refusal {
        Refusal::Unopened(reason) => {
            format!("codex cannot resume the thread {thread}, tried twice: {reason}")
        }
        Refusal::NotAFile(reason) => {
            format!("codex cannot resume the thread {thread}: {reason}")
        }
        Refusal::Unknown | Refusal::Archived => {
            format!("codex no longer knows the thread {thread}")
        }
    }
}
