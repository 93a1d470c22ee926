//! What a turn alone has used.
//!
//! codex counts over the whole thread and tells its totals. What the thread had used before the turn stands at
//! the end of its rollout; the difference is this turn's.

use crate::canonical::Usage;
use crate::codex::events::Totals;

/// codex's totals in the daemon's terms.
pub(super) fn from_totals(totals: Totals) -> Usage {
    Usage {
        input_tokens: totals.input_tokens,
        output_tokens: totals.output_tokens,
        cache_read_tokens: totals.cached_input_tokens,
        cache_write_tokens: totals.cache_write_input_tokens,
        thinking_tokens: totals.reasoning_output_tokens,
    }
}
