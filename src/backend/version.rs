//! Checks the version of codex: a warning is logged once in a process if it is older than supported, or newer than any
//! tested one.

use super::TurnSpec;
use super::emitter::Emitter;
use crate::codex::find::{self, CodexVersion};
use crate::os::CancelToken;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

/// Whether the version was determined in this process.
static IS_KNOWN: AtomicBool = AtomicBool::new(false);

/// Determines the version during a turn. Dropping it waits for the `codex --version` that was started.
pub(super) struct VersionCheck(Option<JoinHandle<Option<CodexVersion>>>);

impl VersionCheck {
    /// A new thread has the version in its first record. Resuming one neither prints nor records it (0.135 to 0.171),
    /// so `codex --version` is run beside the turn, which takes 10 ms.
    pub(super) fn begin(spec: &TurnSpec<'_>, cancel: &CancelToken) -> VersionCheck {
        if spec.thread.is_none() || IS_KNOWN.load(Ordering::Relaxed) {
            return VersionCheck(None);
        }
        let codex = find::in_environment(spec.program, spec.config, spec.places);
        let cancel = cancel.clone();
        let started = Builder::new()
            .name("codex version".to_owned())
            .spawn(move || find::ask_version(codex, &cancel));
        // Without a thread the next turn tries again.
        VersionCheck(started.ok())
    }

    /// Ends the check; `recorded` is the version in the first record of a new thread.
    pub(super) fn finish(&mut self, recorded: Option<CodexVersion>, emitter: &mut Emitter<'_>) {
        if let Some(version) = recorded.or_else(|| self.join())
            && !IS_KNOWN.swap(true, Ordering::Relaxed)
            && let Some(why) = find::untried(version)
        {
            emitter.warn(&why);
        }
    }

    fn join(&mut self) -> Option<CodexVersion> {
        // A panic of the thread was reported by it.
        self.0.take()?.join().ok().flatten()
    }
}

impl Drop for VersionCheck {
    fn drop(&mut self) {
        self.join();
    }
}
