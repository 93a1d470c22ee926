//! The limit on open files.

use std::sync::OnceLock;

/// The soft limit before [`raise_open_files`]; `None` if that changed nothing.
pub(crate) fn open_files_before() -> Option<u64> {
    OPEN_FILES_BEFORE.get().copied()
}

static OPEN_FILES_BEFORE: OnceLock<u64> = OnceLock::new();

/// Raises the soft limit to the hard limit: the usual 1,024 are used up by 150 concurrent turns. It is that low for
/// programs that call `select`, so child processes should get the old limit again ([`limit_open_files`]).
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

/// Sets the soft limit of this process, which its children inherit.
pub(crate) fn limit_open_files(limit: u64) {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limits = getrlimit(Resource::Nofile);
    limits.current = Some(limit);
    // Lowering the soft limit cannot fail.
    let _ = setrlimit(Resource::Nofile, limits);
}
