//! What starts the process of a server: by which thread, and which ones may be started side by side.

use crate::backend::child::{Child, CodexCommand};
use crate::error::Result;
use crate::os::{self, CancelToken};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// Starts servers in a thread that lives as long as they do.
pub(super) trait Starter {
    /// Starts a server. While it runs, `lock` is kept locked.
    ///
    /// # Errors
    /// As [`Child::start`].
    fn spawn(&self, command: &CodexCommand, lock: Option<&Path>) -> Result<Child>;

    /// The first starts of each program.
    fn first_starts(&self) -> &FirstStarts;
}

/// Keeps the first start of a program from being beside another one.
#[derive(Debug, Default)]
pub(super) struct FirstStarts {
    /// The programs of which a server has answered. One that is not among them is started by itself.
    answered: Mutex<Vec<PathBuf>>,
}

impl FirstStarts {
    /// Waits until no server of this program is being started that none has been started of before.
    pub(super) fn wait(&self, program: &Path, cancel: &CancelToken) -> FirstStart<'_> {
        loop {
            let answered = match self.answered.try_lock() {
                Ok(answered) => answered,
                Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(std::sync::TryLockError::WouldBlock) if cancel.is_cancelled() => {
                    return FirstStart(None);
                }
                Err(std::sync::TryLockError::WouldBlock) => {
                    os::wait_for(cancel, Duration::from_millis(3));
                    continue;
                }
            };
            let is_known = answered.iter().any(|known| known == program);
            return FirstStart((!is_known).then(|| (answered, program.to_owned())));
        }
    }
}

/// The first start of a program, while which there is no other.
pub(super) struct FirstStart<'a>(Option<(MutexGuard<'a, Vec<PathBuf>>, PathBuf)>);

impl FirstStart<'_> {
    /// It has answered: others may be started side by side.
    pub(super) fn succeeded(self) {
        if let Some((mut answered, program)) = self.0 {
            answered.push(program);
        }
    }
}
