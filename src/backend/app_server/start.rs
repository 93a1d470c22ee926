//! Starting the process of a server: on which thread, and which ones may be started in parallel.

use crate::backend::child::{Child, CodexCommand};
use crate::error::Result;
use crate::os::{self, CancelToken};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// Starts servers on a thread that lives as long as they do.
pub(super) trait Starter {
    /// Starts a server. `lock` stays locked while it runs.
    ///
    /// # Errors
    /// As [`Child::start`].
    fn spawn(&self, command: &CodexCommand, lock: Option<&Path>) -> Result<Child>;

    /// The first starts of the executables.
    fn first_starts(&self) -> &FirstStarts;
}

/// Makes the first start of an executable exclusive.
#[derive(Debug, Default)]
pub(super) struct FirstStarts {
    /// The executables of which a server has completed its handshake. The first start of another one is exclusive.
    verified: Mutex<Vec<PathBuf>>,
}

impl FirstStarts {
    /// Waits until no other server of an unverified executable is being started.
    pub(super) fn wait(&self, program: &Path, cancel: &CancelToken) -> FirstStart<'_> {
        loop {
            let verified = match self.verified.try_lock() {
                Ok(verified) => verified,
                Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(std::sync::TryLockError::WouldBlock) if cancel.is_cancelled() => {
                    return FirstStart(None);
                }
                Err(std::sync::TryLockError::WouldBlock) => {
                    os::wait_for_cancel(cancel, Duration::from_millis(3));
                    continue;
                }
            };
            let is_known = verified.iter().any(|known| known == program);
            return FirstStart((!is_known).then(|| (verified, program.to_owned())));
        }
    }
}

/// The exclusive right to start a server, where the executable has not completed a handshake before.
pub(super) struct FirstStart<'a>(Option<(MutexGuard<'a, Vec<PathBuf>>, PathBuf)>);

impl FirstStart<'_> {
    /// The handshake is complete: servers of this executable may be started in parallel.
    pub(super) fn succeeded(self) {
        if let Some((mut verified, program)) = self.0 {
            verified.push(program);
        }
    }
}
