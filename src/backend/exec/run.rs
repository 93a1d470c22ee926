//! Runs one `codex exec` for a turn, from its start to its end, and reports its output.

use super::command::{self, TurnArgs};
use super::system;
use super::translate::{Translator, TurnOutcome, Update};
use crate::backend::child::{Child, CodexCommand, Next, OutputLine};
use crate::backend::emitter::Emitter;
use crate::backend::reporter::{
    Concluded, Limits, Reporter, StopCause, outcome, status_of_silent_end, warn_of_silence,
};
use crate::backend::{Outcome, TurnSpec, TurnStatus, not_started};
use crate::canonical::PlanItem;
use crate::codex::failure::{self, Exit};
use crate::codex::home;
use crate::error::Result;
use crate::os::CancelToken;
use std::time::{Duration, Instant};

/// How long codex may take to exit after it has reported the end of the turn: it still shuts down its MCP servers.
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a printed to-do list waits for its record.
const PLAN_WAIT: Duration = Duration::from_millis(150);

/// Runs a turn by one `codex exec`.
pub(super) struct ExecRun<'a> {
    pub(super) spec: &'a TurnSpec<'a>,
}

impl ExecRun<'_> {
    /// Runs codex and reports its output.
    ///
    /// # Errors
    /// codex could not be started; nothing was emitted then.
    pub(super) fn run(&self, cancel: &CancelToken, emitter: &mut Emitter<'_>) -> Result<Outcome> {
        if cancel.is_cancelled() {
            return Ok(Outcome::not_started(TurnStatus::Cancelled));
        }
        let reporter = Reporter::new(self.spec, cancel);
        // Reading the thread's rollout may have taken a while.
        if cancel.is_cancelled() {
            return Ok(Outcome::not_started(TurnStatus::Cancelled));
        }
        let command = self.command(cancel, emitter)?;
        let mut state = RunState {
            translator: Translator::default(),
            reporter,
            cancel: cancel.clone(),
        };
        state.reporter.recording.begin();
        let mut child = Child::start(&command, self.spec.lock)?;
        if let Some(bridge) = self.spec.tools {
            bridge.admit_below(child.guard_pid());
            child.wake_by(vec![bridge.called().clone()]);
        }
        cancel.attach(child.pidfd());
        let stopped = self.listen(&mut child, &mut state, cancel, emitter);
        let exit = child.exit();
        if let Some(bridge) = self.spec.tools {
            bridge.admit_nobody();
        }
        if let Some(errno) = exit.spawn_error {
            let config_file = self.spec.places.config_file();
            return Err(not_started(self.spec.program, &config_file, errno));
        }
        emitter.debug(&format!("codex has ended: {}", exit.describe()));
        let has_end = state.translator.outcome().is_some();
        state.reporter.emit_rest(has_end, emitter);
        Ok(self.conclude(state, stopped, &exit, emitter))
    }

    /// The command line, checked against codex's limits.
    fn command(&self, cancel: &CancelToken, emitter: &mut Emitter<'_>) -> Result<CodexCommand> {
        let spec = self.spec;
        let command = command::build(
            spec.program,
            spec.config,
            spec.places,
            &TurnArgs {
                thread: spec.thread,
                model: spec.model,
                system: spec.system,
                system_in_thread: self.system_in_thread(cancel),
                images: spec.images,
                schema: spec.output_schema,
                reasoning_effort: spec.reasoning_effort,
                prompt: &spec.prompt,
                tool_args: &spec.tools.map(|it| it.codex_args()).unwrap_or_default(),
                workspace: spec.workspace,
            },
        );
        crate::codex::check_prompt_length(command.stdin.as_deref().unwrap_or_default())?;
        for warning in &command.warnings {
            emitter.warn(warning);
        }
        emitter.debug(&format!(
            "starting '{}' {}",
            spec.program.display(),
            if spec.thread.is_some() {
                "to resume a thread"
            } else {
                "with a new thread"
            }
        ));
        Ok(command)
    }

    /// The outcome of the run.
    fn conclude(
        &self,
        state: RunState<'_>,
        stopped: Option<StopCause>,
        exit: &Exit,
        emitter: &mut Emitter<'_>,
    ) -> Outcome {
        let RunState {
            translator,
            reporter,
            ..
        } = state;
        let totals = match translator.outcome() {
            Some(TurnOutcome::Completed(Some(totals))) => Some(totals.usage()),
            _ => None,
        };
        let Concluded {
            thread,
            end,
            worked,
            skipped,
            account,
        } = reporter.conclude(totals, emitter);
        let refusal = match (self.spec.thread, translator.outcome()) {
            (Some(_), None) if thread.is_none() => failure::refusal_of_exit(exit),
            (Some(_), Some(TurnOutcome::Failed(message))) if !worked => {
                failure::refusal_of_message(message)
            }
            _ => None,
        };
        let status = match (translator.outcome(), stopped) {
            // Only a turn that had not completed is stopped.
            (_, Some(StopCause::Cancelled)) => TurnStatus::Cancelled,
            (_, Some(StopCause::Limit(error))) => TurnStatus::Failed(error),
            (Some(TurnOutcome::Completed(_)), None) => {
                warn_of_completion(exit, skipped, emitter);
                TurnStatus::Completed
            }
            (_, None) if refusal.is_some() => {
                TurnStatus::Refused(refusal.expect("the guard has seen it"))
            }
            (Some(TurnOutcome::Failed(message)), None) => {
                TurnStatus::Failed(failure::from_message(message))
            }
            (None, None) => status_of_silent_end(end, exit, translator.last_error(), emitter),
        };
        let failure_message = match translator.outcome() {
            Some(TurnOutcome::Failed(message)) => Some(message.as_str()),
            _ => translator.last_error(),
        };
        outcome(self.spec, status, failure_message, account, thread)
    }

    /// Reads codex's output to its end. Returns why it was stopped early, if it was.
    fn listen(
        &self,
        child: &mut Child,
        state: &mut RunState<'_>,
        cancel: &CancelToken,
        emitter: &mut Emitter<'_>,
    ) -> Option<StopCause> {
        let mut limits = Limits::new(self.spec);
        let mut stopped = None;
        loop {
            let running = state.reporter.is_running();
            let is_over = state.reporter.recording.end().is_some();
            if is_over && stopped.is_none() {
                // codex may still print the end, or never do so.
                child.expect_end_within(EXIT_TIMEOUT);
            }
            let limit = match (&stopped, state.translator.outcome()) {
                (None, None) if !is_over => limits.next(running),
                _ => None,
            };
            let follows = state.reporter.recording.thread().is_some() && stopped.is_none();
            let tick = follows.then(|| Instant::now() + Reporter::tick(emitter));
            let deadline = limit.into_iter().chain(tick).min();
            match child.next(Some(cancel), deadline) {
                Next::Line => {
                    // What codex prints while it is being stopped is not emitted: nothing limits it, and it would pile
                    // up here if the daemon does not read.
                    let is_emitting = stopped.is_none();
                    while let Some(line) = child.line() {
                        self.handle_line(line, is_emitting, state, emitter);
                    }
                    emitter.flush();
                    // Not before the flush, which blocks while the daemon does not read, and so does codex then.
                    limits.note_activity();
                    if state.translator.outcome().is_some() {
                        child.expect_end_within(EXIT_TIMEOUT);
                    }
                }
                Next::Cancelled => {
                    if state.translator.outcome().is_none() {
                        emitter.debug("the turn is cancelled: ending codex");
                        stopped = stopped.or(Some(StopCause::Cancelled));
                    }
                    child.end();
                }
                // A call of one of the daemon's tools, whose record is written about now.
                Next::Woken => {
                    state.reporter.recording.follow(emitter);
                }
                Next::Deadline if limit.is_none_or(|limit| Instant::now() < limit) => {
                    if state.reporter.recording.follow(emitter) {
                        limits.note_activity();
                    }
                    emitter.flush();
                }
                Next::Deadline => {
                    emitter.debug("a time limit is reached: ending codex");
                    stopped = Some(StopCause::Limit(limits.error(&state.reporter)));
                    child.end();
                }
                Next::Ended => return stopped,
            }
        }
    }

    /// Handles a line of codex; reports it if `is_emitting`.
    fn handle_line(
        &self,
        line: OutputLine<'_>,
        is_emitting: bool,
        state: &mut RunState<'_>,
        emitter: &mut Emitter<'_>,
    ) {
        let line = match line {
            OutputLine::Whole(line) => line,
            OutputLine::Skipped(length) => {
                state.reporter.skipped_line(length, emitter);
                return;
            }
        };
        let update = state.translator.line(line);
        emitter.start();
        match update {
            Update::Thread(id) => state.reporter.thread(&id, emitter),
            _ if !is_emitting => {}
            Update::Text(text) => state.reporter.text(&text, emitter),
            Update::Thinking(text) => state.reporter.thinking(&text, true, emitter),
            Update::Step(step) => state.reporter.step(&step, emitter),
            Update::Plan(items) => self.handle_plan(items, state, emitter),
            Update::Trouble(message) => state.reporter.trouble(&message, emitter),
            Update::Nothing(what) => log::debug!("skipped: {what}"),
            Update::End => {}
        }
    }

    /// Whether the model still sees the whole of a system text that had to be put into a prompt.
    fn system_in_thread(&self, cancel: &CancelToken) -> bool {
        let (Some(thread), Some(text)) = (self.spec.thread, self.spec.system) else {
            return false;
        };
        if command::system_can_be_argument(text) {
            return false;
        }
        let home = self.spec.places.codex_home(self.spec.config);
        // The follower reports an unreadable rollout; sending the text twice is better than never.
        home::find_rollout(&home, thread)
            .ok()
            .flatten()
            .and_then(|path| system::is_in_view(&path, text, cancel).ok())
            .unwrap_or(false)
    }

    /// Handles a printed to-do list, which codex prints again at the turn's end. Only its record says what is in
    /// progress.
    fn handle_plan(
        &self,
        items: Vec<PlanItem>,
        state: &mut RunState<'_>,
        emitter: &mut Emitter<'_>,
    ) {
        let is_done = |item: &PlanItem| item.status == "completed";
        let deadline = Instant::now() + PLAN_WAIT;
        let items = loop {
            state.reporter.recording.follow(emitter);
            let recorded = state.reporter.recording.plan();
            let is_same = recorded.len() == items.len()
                && recorded.iter().zip(&items).all(|(recorded, item)| {
                    recorded.text == item.text && is_done(recorded) == is_done(item)
                });
            if is_same {
                break recorded.to_vec();
            }
            // Calls made inside code mode are not recorded like this.
            if Instant::now() >= deadline || state.cancel.is_cancelled() {
                break items;
            }
            crate::os::wait_for_cancel(&state.cancel, Duration::from_millis(3));
        };
        state.reporter.plan(items, emitter);
    }
}

/// The state of a running turn.
struct RunState<'a> {
    translator: Translator,
    reporter: Reporter<'a>,
    cancel: CancelToken,
}

/// Warns of anything unexpected about a completed turn.
fn warn_of_completion(exit: &Exit, skipped: u64, emitter: &mut Emitter<'_>) {
    if !exit.status.success() {
        emitter.warn(&format!(
            "codex completed the turn, and then ended with {}",
            exit.describe()
        ));
    }
    warn_of_silence(skipped, emitter);
}
