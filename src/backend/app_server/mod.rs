//! Runs turns by `codex app-server`: a process for each workspace, which is kept between turns and streams texts as the
//! model writes them.
//!
//! A turn behaves as with `codex exec`: it reads the same files, emits the same events, and leaves no process running.
//! Where codex cannot be used like this, `codex exec` runs the turn.

mod client;
pub(crate) mod control;
mod inputs;
mod message;
pub(crate) mod models;
pub(crate) mod pool;
pub(crate) mod recipe;
mod run;
mod server;
mod start;
mod texts;

use super::emitter::Emitter;
use super::exec::Exec;
use super::{Backend, Outcome, TurnSpec, TurnStatus};
use crate::error::Result;
use crate::os::CancelToken;
use inputs::FileState;
use pool::Pool;
use recipe::Recipe;
use server::{Server, StartError};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// The backend that keeps a `codex app-server` for each workspace.
#[derive(Debug, Default)]
pub(crate) struct AppServer {
    pub(super) pool: Pool,
    /// The executable that was found not to support this.
    unusable: Mutex<Option<FileState>>,
    /// A warning was logged that `codex exec` is used instead.
    has_warned: AtomicBool,
}

impl Backend for AppServer {
    fn run(
        &self,
        spec: &TurnSpec<'_>,
        cancel: &CancelToken,
        emitter: &mut Emitter<'_>,
    ) -> Result<Outcome> {
        if cancel.is_cancelled() {
            return Ok(Outcome::not_started(TurnStatus::Cancelled));
        }
        crate::codex::check_prompt_length(&spec.prompt)?;
        let mut run = run::AppServerRun {
            pool: &self.pool,
            spec,
            cancel,
            is_last: false,
        };
        let error = loop {
            match self.server(spec, cancel, emitter) {
                Ok(server) => match run.run(server, emitter) {
                    Some(outcome) => return Ok(outcome),
                    // A kept server may have been stopped or have died just now: try once more with another one.
                    None => run.is_last = true,
                },
                Err(error) => break error,
            }
        };
        match error {
            StartError::NotStarted(error) => Err(error),
            StartError::Failed(error) => Ok(Outcome::not_started(TurnStatus::Failed(error))),
            StartError::Refused(refusal) => Ok(Outcome::not_started(TurnStatus::Refused(refusal))),
            StartError::Cancelled => Ok(Outcome::not_started(TurnStatus::Cancelled)),
            StartError::Unusable(why) | StartError::Unavailable(why) => {
                let message = format!(
                    "codex app-server cannot be used ({why}); 'codex exec' is used instead"
                );
                match self.has_warned.swap(true, Ordering::Relaxed) {
                    false => emitter.warn(&message),
                    true => emitter.debug(&message),
                }
                Exec.run(spec, cancel, emitter)
            }
        }
    }
}

impl AppServer {
    /// The workspace's own server, if it can run the turn, or a new one; with the turn's thread loaded.
    fn server(
        &self,
        spec: &TurnSpec<'_>,
        cancel: &CancelToken,
        emitter: &mut Emitter<'_>,
    ) -> std::result::Result<Server, StartError> {
        let mut warnings = Vec::new();
        let recipe = Recipe::of(spec, &mut warnings).map_err(StartError::Unusable)?;
        for warning in &warnings {
            emitter.warn(warning);
        }
        let mut replaced = None;
        if let Some(mut server) = self.pool.take(spec.workspace) {
            match server.why_stale(&recipe) {
                None => {
                    emitter.debug("codex app-server runs already and has the thread loaded");
                    return Ok(server);
                }
                Some(why) => {
                    emitter.debug(&format!("codex app-server is replaced: {why}"));
                    server.client.begin_close();
                    replaced = Some(server);
                }
            }
        }
        if let Some(thread) = spec.thread {
            // Another workspace's server that has this thread loaded is ended: a thread is never loaded twice.
            let pool = self.pool.handle();
            pool.release_thread(thread, Some(spec.workspace));
        }
        let program = FileState::of(spec.program);
        let is_unusable = |it: &Option<FileState>| it.is_some() && *it == program;
        if is_unusable(&self.unusable()) {
            let why = "an earlier attempt to use it failed".to_owned();
            return Err(StartError::Unusable(why));
        }
        emitter.debug(&format!(
            "starting '{}' app-server {}",
            spec.program.display(),
            match spec.thread {
                Some(_) => "to resume a thread",
                None => "with a new thread",
            }
        ));
        let started = Server::start(&self.pool.handle(), recipe, replaced, cancel);
        if let Err(StartError::Unusable(_)) = &started {
            *self.unusable() = program;
        }
        started
    }

    fn unusable(&self) -> std::sync::MutexGuard<'_, Option<FileState>> {
        self.unusable.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
