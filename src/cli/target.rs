//! Which thread, and which rollout, `--workspace` and `--thread` mean.

use super::flags::{Parsed, usage};
use crate::codex::home::{find_rollout_or_packed, is_thread_id};
use crate::error::{Error, Kind, Result};
use crate::paths::Paths;
use crate::turn::session::{self, Stored};
use std::path::{Path, PathBuf};

/// Whose rollout is meant.
pub(super) enum Target {
    /// That of the thread that the workspace's session file names.
    Workspace(PathBuf),
    /// That of this thread, whose id is in lower case.
    Thread(String),
}

/// The target that the flags name; `None` where neither was given.
///
/// # Errors
/// [`Kind::Usage`] where both were given, or the thread is not a UUID.
pub(super) fn given(parsed: &Parsed) -> Result<Option<Target>> {
    match (parsed.directory("workspace")?, thread(parsed)?) {
        (None, None) => Ok(None),
        (Some(workspace), None) => Ok(Some(Target::Workspace(workspace))),
        (None, Some(thread)) => Ok(Some(Target::Thread(thread))),
        (Some(_), Some(_)) => Err(usage(
            "'--workspace' and '--thread' both name a rollout: give one of them",
        )),
    }
}

/// The id that `--thread` gives, in lower case.
///
/// # Errors
/// [`Kind::Usage`] where it is not a UUID.
pub(super) fn thread(parsed: &Parsed) -> Result<Option<String>> {
    match parsed.text("thread")? {
        Some(thread) if !is_thread_id(thread) => Err(usage(format!(
            "'--thread {thread}' is not a thread id: a UUID was expected"
        ))),
        thread => Ok(thread.map(str::to_ascii_lowercase)),
    }
}

/// The rollout that the flags name, which can be a packed one; `None` where neither was given.
///
/// # Errors
/// Those of [`given`]; [`Kind::Config`]; [`Kind::Io`] where there is no such rollout.
pub(super) fn rollout(parsed: &Parsed) -> Result<Option<PathBuf>> {
    let thread = match given(parsed)? {
        None => return Ok(None),
        Some(Target::Workspace(workspace)) => thread_of_workspace(&workspace)?,
        Some(Target::Thread(thread)) => thread,
    };
    let places = Paths::from_env();
    let home = places.codex_home(&places.load_config()?.config);
    match find_rollout_or_packed(&home, &thread)? {
        Some(rollout) => Ok(Some(rollout)),
        None => Err(no_rollout(&thread, &home)),
    }
}

/// The error of a thread that has no rollout: most likely another codex home is meant.
pub(super) fn no_rollout(thread: &str, home: &Path) -> Error {
    let home = home.display();
    let message = format!("codex has no rollout of thread '{thread}' in '{home}'");
    Error::new(Kind::Io, message)
        .hint("CODEX_HOME, or \"codex_home\" in the config, says where codex keeps its threads")
}

/// The thread that the workspace's conversation is.
fn thread_of_workspace(workspace: &Path) -> Result<String> {
    let path = workspace.join(session::FILE);
    match session::read(workspace)? {
        Stored::Thread(thread) => Ok(thread),
        Stored::Nothing => Err(Error::new(
            Kind::Io,
            format!("the workspace has no session file '{}'", path.display()),
        )
        .hint("a workspace has one after its first turn")),
        Stored::Unusable(why) => Err(session::unusable(workspace, &why)),
    }
}
