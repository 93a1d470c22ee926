//! Runs turns by `codex exec`: a process for each turn.

pub(crate) mod command;
mod events;
mod run;
mod system;
pub(crate) mod translate;

use super::emitter::Emitter;
use super::{Backend, Outcome, TurnSpec};
use crate::error::Result;
use crate::os::CancelToken;

/// The backend that starts a `codex exec` for each turn.
pub(crate) struct Exec;

impl Backend for Exec {
    fn run(
        &self,
        spec: &TurnSpec<'_>,
        cancel: &CancelToken,
        emitter: &mut Emitter<'_>,
    ) -> Result<Outcome> {
        run::ExecRun { spec }.run(cancel, emitter)
    }
}
