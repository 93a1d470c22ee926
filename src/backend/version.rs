//! The version of the codex that runs turns: reported once in a process where it is older than supported, or newer
//! than any that was tried.

use super::TurnSpec;
use super::emitter::Emitter;
use crate::codex::find::{self, CodexVersion};
use crate::os::CancelToken;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

/// Was a version learned in this process?
static IS_KNOWN: AtomicBool = AtomicBool::new(false);

/// Learns the version in a turn. Dropping it waits for the codex that was asked.
pub(super) struct VersionCheck(Option<JoinHandle<Option<CodexVersion>>>);

impl VersionCheck {
    /// A thread that begins has the version in its first record. Where one goes on codex neither prints nor records it
    /// (0.135 to 0.171), so it is asked beside the turn, which takes it 10 ms.
    pub(super) fn begin(spec: &TurnSpec<'_>, cancel: &CancelToken) -> VersionCheck {
        if spec.thread.is_none() || IS_KNOWN.load(Ordering::Relaxed) {
            return VersionCheck(None);
        }
        let codex = find::in_environment(spec.program, spec.config, spec.places);
        let cancel = cancel.clone();
        let asked = Builder::new()
            .name("codex version".to_owned())
            .spawn(move || find::ask_version(codex, &cancel));
        // Without a thread the next turn learns it.
        VersionCheck(asked.ok())
    }

    /// Ends the check: `recorded` is what the first record of a thread that began says.
    pub(super) fn finish(&mut self, recorded: Option<CodexVersion>, emitter: &mut Emitter<'_>) {
        if let Some(version) = recorded.or_else(|| self.join())
            && !IS_KNOWN.swap(true, Ordering::Relaxed)
            && let Some(why) = find::untried(version)
        {
            emitter.warn(&why);
        }
    }

    fn join(&mut self) -> Option<CodexVersion> {
        // A panic over there was reported there.
        self.0.take()?.join().ok().flatten()
    }
}

impl Drop for VersionCheck {
    fn drop(&mut self) {
        self.join();
    }
}
