//! What a turn alone has used, and its thread.
//!
//! codex counts over the whole thread, reports that total and records it, and a new codex goes on from what was
//! recorded last. Two things are lost on that way, measured on 0.135.0 to 0.169.0: a request that does not fit
//! the context window any more sets the count to 0, and a codex that is killed in mid-call has not recorded its
//! last request in it. So what is used is added up here from how the total grows; and from 0.153 on, where codex
//! also records each request by itself, from those.

use crate::canonical::Usage;

/// Adds up what is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TokenCount {
    /// Where codex's own count stood last.
    total: Usage,
    /// What was used since this began.
    used: Usage,
    /// Each request is recorded by itself: how codex's count grows says nothing more.
    by_request: bool,
}

impl TokenCount {
    /// codex's count stands here.
    pub(super) fn total(&mut self, now: Usage) {
        if !self.by_request {
            self.used = self.used.plus(now.since(self.total));
        }
        self.total = now;
    }

    /// A request used this much.
    pub(super) fn request(&mut self, used: Usage) {
        self.by_request = true;
        self.used = self.used.plus(used);
    }

    /// What was used since this began.
    pub(super) fn used(self) -> Usage {
        self.used
    }

    /// A count that begins anew, from where this one stands.
    pub(super) fn anew(self) -> TokenCount {
        TokenCount {
            total: self.total,
            ..TokenCount::default()
        }
    }
}
