//! Counts the tokens of a turn and of its thread.
//!
//! codex counts over the whole thread, reports and records that total, and a new process continues from the last
//! recorded one. This loses tokens in two cases, measured on 0.135.0 to 0.169.0: a request that exceeds the context
//! window resets the count to 0, and a codex that is killed during a call has not counted its last request. So usage is
//! summed up here from the increments of the total; and from 0.153 on, where codex also records each request, from
//! those.

use crate::canonical::Usage;

/// A token counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TokenCount {
    /// codex's last total.
    total: Usage,
    /// The tokens used since this counter was started.
    used: Usage,
    /// Requests are recorded one by one: increments of the total are not added.
    by_request: bool,
}

impl TokenCount {
    /// Takes a new total of codex.
    pub(super) fn total(&mut self, now: Usage) {
        if !self.by_request {
            self.used = self.used.plus(now.since(self.total));
        }
        self.total = now;
    }

    /// Adds the tokens of one request.
    pub(super) fn request(&mut self, used: Usage) {
        self.by_request = true;
        self.used = self.used.plus(used);
    }

    /// The tokens used since this counter was started.
    pub(super) fn used(self) -> Usage {
        self.used
    }

    /// A counter that starts at 0 from the current total.
    pub(super) fn restarted(self) -> TokenCount {
        TokenCount {
            total: self.total,
            ..TokenCount::default()
        }
    }
}
