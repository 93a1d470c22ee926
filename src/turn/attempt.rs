//! One run of codex for a turn: from its start to its end, everything it says told on the way.
//!
//! A turn has one attempt, or two when codex no longer knows the stored thread and a new one takes over.

use super::{Context, Request, Teller, Tokens, session, usage};
use crate::canonical::{TurnEvent, Usage};
use crate::codex::child::{Child, Line, Next};
use crate::codex::command::{self, Call};
use crate::codex::translate::{Said, Translator, Verdict};
use crate::codex::{failure, home};
use crate::error::{Error, Kind, Result};
use crate::sys::Flag;
use std::borrow::Cow;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long codex may take to end after it said that the turn is over: it still shuts down its MCP servers.
const AFTER_VERDICT: Duration = Duration::from_secs(10);

/// What codex is to be run with.
pub(super) struct Attempt<'a> {
    pub(super) request: &'a Request,
    pub(super) context: &'a Context,
    pub(super) workspace: &'a Path,
    pub(super) program: &'a Path,
    pub(super) images: &'a [PathBuf],
    /// codex's arguments that lend it the daemon's tools.
    pub(super) tool_args: &'a [OsString],
    pub(super) prompt: Cow<'a, str>,
    /// The thread to go on with.
    pub(super) asked: Option<&'a str>,
    /// The thread that the session file names.
    pub(super) stored: Option<&'a str>,
}

/// What came of it.
pub(super) struct Done {
    pub(super) ended: Ended,
    /// The thread that codex said it works on.
    pub(super) thread: Option<String>,
    pub(super) tokens: Tokens,
}

pub(super) enum Ended {
    Completed,
    Cancelled,
    Failed(Error),
    /// codex does not know the thread that was asked for, and did nothing.
    LostThread,
}

/// Why codex is being ended before it is done.
enum Cut {
    Cancelled,
    Limit(Error),
}

impl Attempt<'_> {
    /// Runs codex and tells what it says.
    ///
    /// # Errors
    /// codex could not be started; nothing was told then.
    pub(super) fn run(&self, cancel: &Flag, teller: &mut Teller<'_>) -> Result<Done> {
        if cancel.is_raised() {
            return Ok(self.done(Ended::Cancelled, None, Usage::default(), None));
        }
        let before = Usage::default();
        let config = &self.context.config;
        let invocation = command::build(
            self.program,
            config,
            &self.context.places,
            &Call {
                thread: self.asked,
                model: &self.request.model,
                system: self.request.system.as_deref(),
                images: self.images,
                prompt: &self.prompt,
                tool_args: self.tool_args,
                workspace: self.workspace,
            },
        );
        super::check_length(invocation.stdin.as_deref().unwrap_or_default())?;
        for warning in &invocation.warnings {
            teller.warn(warning);
        }
        teller.debug(&format!(
            "starting '{}' {}",
            self.program.display(),
            if self.asked.is_some() {
                "to go on with a thread"
            } else {
                "with a new thread"
            }
        ));
        let mut child = Child::start(&invocation)?;
        let mut heard = Heard {
            translator: Translator::default(),
            thread: None,
        };
        let cut = self.listen(&mut child, &mut heard, cancel, teller);
        let exit = child.exit();
        let Heard { translator, thread } = heard;
        if let Some(errno) = exit.spawn_error {
            return Err(self.not_started(errno));
        }
        log::debug!("codex has ended: {}", exit.describe());
        let totals = match translator.verdict() {
            Some(Verdict::Completed(totals)) => *totals,
            _ => None,
        };
        let lost = self.asked.is_some()
            && thread.is_none()
            && translator.verdict().is_none()
            && cut.is_none()
            && failure::is_lost_thread(&exit);
        let ended = match (translator.verdict(), cut) {
            _ if lost => Ended::LostThread,
            // What came first counts: a turn that was complete is complete.
            (_, Some(Cut::Cancelled)) => Ended::Cancelled,
            (_, Some(Cut::Limit(error))) => Ended::Failed(error),
            (Some(Verdict::Completed(_)), None) => {
                if !exit.status.success() {
                    teller.warn(&format!(
                        "codex completed the turn, and then ended with {}",
                        exit.describe()
                    ));
                }
                Ended::Completed
            }
            (Some(Verdict::Failed(message)), None) => Ended::Failed(failure::from_message(message)),
            (None, None) => Ended::Failed(failure::from_exit(&exit, translator.last_error())),
        };
        Ok(self.done(ended, thread, before, totals.map(usage::from_totals)))
    }

    fn done(
        &self,
        ended: Ended,
        thread: Option<String>,
        before: Usage,
        after: Option<Usage>,
    ) -> Done {
        let thread_usage = after.unwrap_or(before);
        Done {
            ended,
            thread,
            tokens: Tokens {
                turn: thread_usage.since(before),
                thread: thread_usage,
            },
        }
    }

    /// Reads codex to its end. Says why it was cut short, if it was.
    fn listen(
        &self,
        child: &mut Child,
        heard: &mut Heard,
        cancel: &Flag,
        teller: &mut Teller<'_>,
    ) -> Option<Cut> {
        let config = &self.context.config;
        let begun = Instant::now();
        let turn_limit = config
            .turn_timeout
            .and_then(|limit| begun.checked_add(limit));
        let mut quiet_since = begun;
        let mut cut = None;
        loop {
            let idle_limit = config
                .idle_timeout
                .and_then(|limit| quiet_since.checked_add(limit));
            let deadline = match (&cut, heard.translator.verdict()) {
                (None, None) => turn_limit.into_iter().chain(idle_limit).min(),
                _ => None,
            };
            match child.next(cancel, deadline) {
                Next::Line => {
                    quiet_since = Instant::now();
                    while let Some(line) = child.line() {
                        self.hear(line, heard, teller);
                    }
                    teller.sink.flush();
                    if heard.translator.verdict().is_some() {
                        child.expect_end_within(AFTER_VERDICT);
                    }
                }
                Next::Raised => {
                    if heard.translator.verdict().is_none() {
                        cut = cut.or(Some(Cut::Cancelled));
                    }
                    child.end();
                }
                Next::Deadline => {
                    let error = if turn_limit.is_some_and(|limit| Instant::now() >= limit) {
                        self.too_long(config.turn_timeout)
                    } else {
                        self.too_quiet(config.idle_timeout)
                    };
                    cut = Some(Cut::Limit(error));
                    child.end();
                }
                Next::Ended => return cut,
            }
        }
    }

    /// Tells what a line says.
    fn hear(&self, line: Line<'_>, heard: &mut Heard, teller: &mut Teller<'_>) {
        let line = match line {
            Line::Whole(line) => line,
            Line::Skipped(length) => {
                teller.start();
                teller.warn(&format!(
                    "codex printed a line of {length} bytes, more than can be held; it is skipped"
                ));
                return;
            }
        };
        let said = heard.translator.line(line);
        teller.start();
        match said {
            Said::Text(text) => teller.text(&text),
            Said::Thinking(text) => {
                if self.context.config.reasoning_events && !text.is_empty() {
                    teller.event(&TurnEvent::ThinkingDelta { text });
                }
            }
            Said::Thread(id) => self.hear_thread(&id, heard, teller),
            Said::Step(step) => teller.sink.step(&step),
            Said::Trouble(message) => teller.warn(&format!("codex: {message}")),
            Said::Nothing(what) => log::debug!("passed over: {what}"),
            Said::End => {}
        }
    }

    /// codex says which thread it works on: checks that it is the one asked for, and stores a new one.
    fn hear_thread(&self, id: &str, heard: &mut Heard, teller: &mut Teller<'_>) {
        if !home::is_thread_id(id) {
            teller.warn(&format!(
                "codex named a thread {id:?}, which is no thread id; it is not stored"
            ));
            return;
        }
        let id = id.to_ascii_lowercase();
        if let Some(first) = &heard.thread {
            if *first != id {
                teller.warn(&format!(
                    "codex named a second thread, {id}, after {first}; it is not stored"
                ));
            }
            return;
        }
        match self.asked {
            Some(asked) if asked != id => {
                teller.warn(&format!(
                    "codex works on the thread {id}, though {asked} was asked for; the stored id is kept"
                ));
            }
            Some(_) => {}
            None => {
                if self.stored != Some(id.as_str())
                    && let Err(error) = session::save(self.workspace, &id)
                {
                    teller.warn(&unsaved(self.workspace, &id, &error));
                }
            }
        }
        heard.thread = Some(id);
    }

    fn not_started(&self, errno: i32) -> Error {
        let error = io::Error::from_raw_os_error(errno);
        let hint = format!(
            "set \"binary\" in {}",
            self.context.places.config_file().display()
        );
        let what = format!("cannot start codex '{}'", self.program.display());
        match rustix::io::Errno::from_raw_os_error(errno) {
            rustix::io::Errno::NOENT => Error::new(
                Kind::CodexMissing,
                format!("{what}: it, or the interpreter that it needs, is not there"),
            )
            .hint(hint),
            rustix::io::Errno::AGAIN | rustix::io::Errno::NOMEM | rustix::io::Errno::MFILE => {
                Error::os(Kind::CodexFailed, what, error).with_retryable(true)
            }
            rustix::io::Errno::TOOBIG => Error::os(Kind::CodexFailed, what, error)
                .hint("shorten \"extra_args\" or \"env\" in the config"),
            _ => Error::os(Kind::CodexMissing, what, error).hint(hint),
        }
    }

    fn too_long(&self, limit: Option<Duration>) -> Error {
        Error::new(
            Kind::TurnTimeout,
            format!(
                "the turn took longer than {} s; \"turn_timeout_secs\" in {} is the limit",
                limit.unwrap_or_default().as_secs(),
                self.context.places.config_file().display()
            ),
        )
    }

    fn too_quiet(&self, limit: Option<Duration>) -> Error {
        Error::new(
            Kind::IdleTimeout,
            format!(
                "codex has neither printed nor recorded anything for {} s; \"idle_timeout_secs\" in {} is the limit",
                limit.unwrap_or_default().as_secs(),
                self.context.places.config_file().display()
            ),
        )
    }
}

/// What was heard so far.
struct Heard {
    translator: Translator,
    thread: Option<String>,
}

fn unsaved(workspace: &Path, id: &str, error: &io::Error) -> String {
    format!(
        "cannot store the thread id {id} in '{}': {}; the next turn will not know this conversation",
        workspace.join(session::FILE).display(),
        crate::error::reason(error)
    )
}
