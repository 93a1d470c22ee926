//! The thread and the rollout that `--workspace` and `--thread` name.

use super::flags::{Parsed, usage};
use crate::codex::home::{find_rollout_or_packed, is_thread_id};
use crate::error::{Error, Kind, Result};
use crate::paths::Paths;
use crate::turn::session::{self, Stored};
use std::path::{Path, PathBuf};

/// The argument that names a rollout.
pub(super) enum Target {
    /// A workspace, whose session file names the thread.
    Workspace(PathBuf),
    /// A thread's id, in lower case.
    Thread(String),
}

/// Parses the two flags; `None` where neither was given.
///
/// # Errors
/// [`Kind::Usage`] where both were given, or the thread is not a UUID.
pub(super) fn parse(parsed: &Parsed) -> Result<Option<Target>> {
    match (parsed.directory("workspace")?, parse_thread(parsed)?) {
        (None, None) => Ok(None),
        (Some(workspace), None) => Ok(Some(Target::Workspace(workspace))),
        (None, Some(thread)) => Ok(Some(Target::Thread(thread))),
        (Some(_), Some(_)) => Err(usage(
            "'--workspace' and '--thread' both name a rollout: give one of them",
        )),
    }
}

/// Parses `--thread`: the id, in lower case.
///
/// # Errors
/// [`Kind::Usage`] where it is not a UUID.
pub(super) fn parse_thread(parsed: &Parsed) -> Result<Option<String>> {
    match parsed.text("thread")? {
        Some(thread) if !is_thread_id(thread) => Err(usage(format!(
            "'--thread {thread}' is not a thread id: expected a UUID"
        ))),
        thread => Ok(thread.map(str::to_ascii_lowercase)),
    }
}

/// Finds the rollout that the flags name, which can be a compressed one; `None` where neither was given.
///
/// # Errors
/// Those of [`parse`]; [`Kind::Config`]; [`Kind::Io`] where the rollout is missing.
pub(super) fn find_rollout(parsed: &Parsed) -> Result<Option<PathBuf>> {
    let thread = match parse(parsed)? {
        None => return Ok(None),
        Some(Target::Workspace(workspace)) => thread_of_workspace(&workspace)?,
        Some(Target::Thread(thread)) => thread,
    };
    let paths = Paths::from_env();
    let home = paths.codex_home(&paths.load_config()?.config);
    match find_rollout_or_packed(&home, &thread)? {
        Some(rollout) => Ok(Some(rollout)),
        None => Err(missing_rollout(&thread, &home)),
    }
}

/// The error for a thread without a rollout: most likely it is in another codex home.
pub(super) fn missing_rollout(thread: &str, home: &Path) -> Error {
    let home = home.display();
    let message = format!("codex has no rollout of thread '{thread}' in '{home}'");
    Error::new(Kind::Io, message)
        .hint("set CODEX_HOME, or \"codex_home\" in the config, to the directory in which codex stores its threads")
}

/// The id in the workspace's session file.
fn thread_of_workspace(workspace: &Path) -> Result<String> {
    let path = workspace.join(session::FILE);
    match session::read(workspace)? {
        Stored::Thread(thread) => Ok(thread),
        Stored::Nothing => Err(Error::new(
            Kind::Io,
            format!("the workspace has no session file '{}'", path.display()),
        )
        .hint("the first turn in the workspace creates it")),
        Stored::Unusable(why) => Err(session::unusable(workspace, &why)),
    }
}
