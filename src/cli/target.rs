//! Which rollout `--workspace` and `--thread` mean.

use super::flags::{Parsed, usage};
use crate::codex::home::{find_rollout_or_packed, is_thread_id};
use crate::config::Paths;
use crate::error::{Error, Kind, Result};
use crate::turn::session::{self, Stored};
use std::path::{Path, PathBuf};

/// The rollout that the flags name, which can be a packed one; `None` where neither was given.
///
/// # Errors
/// [`Kind::Usage`] where both were given, or the thread is not a UUID; [`Kind::Config`]; [`Kind::Io`] where there is
/// no such rollout.
pub(super) fn rollout(parsed: &Parsed) -> Result<Option<PathBuf>> {
    let thread = match (parsed.directory("workspace")?, parsed.text("thread")?) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => {
            return Err(usage(
                "'--workspace' and '--thread' both name a rollout: give one of them",
            ));
        }
        (Some(workspace), None) => thread_of_workspace(&workspace)?,
        (None, Some(thread)) if is_thread_id(thread) => thread.to_owned(),
        (None, Some(thread)) => {
            return Err(usage(format!(
                "'--thread {thread}' is not a thread id: a UUID was expected"
            )));
        }
    };
    let places = Paths::from_env();
    let home = places.codex_home(&places.load_config()?.config);
    match find_rollout_or_packed(&home, &thread)? {
        Some(rollout) => Ok(Some(rollout)),
        None => Err(Error::new(
            Kind::Io,
            format!(
                "codex has no rollout of thread '{thread}' in '{}'",
                home.display()
            ),
        )
        .hint("CODEX_HOME, or \"codex_home\" in the config, says where codex keeps its threads")),
    }
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
