//! The limit on open files.

use std::sync::OnceLock;

/// How many files this process could have open before [`raise_open_files`]; `None` where that changed nothing.
pub(crate) fn open_files_before() -> Option<u64> {
    OPEN_FILES_BEFORE.get().copied()
}

static OPEN_FILES_BEFORE: OnceLock<u64> = OnceLock::new();

/// Lets this process have as many files open as it may at all. The 1,024 that are usual are used up by a
/// hundred and fifty turns at once; they are that low for programs that call `select`, so what is started
/// should have the old limit again ([`limit_open_files`]).
pub(crate) fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if let Some(before) = limit.current
        && limit.maximum.is_none_or(|most| before < most)
    {
        limit.current = limit.maximum;
        if setrlimit(Resource::Nofile, limit).is_ok() {
            let _ = OPEN_FILES_BEFORE.set(before);
        }
    }
}

/// Sets how many files this process and what it starts may have open.
pub(crate) fn limit_open_files(limit: u64) {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limits = getrlimit(Resource::Nofile);
    limits.current = Some(limit);
    // It is lowered to what it was: that cannot fail.
    let _ = setrlimit(Resource::Nofile, limits);
}
