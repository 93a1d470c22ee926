//! Which rollout `--workspace` and `--thread` mean.

use super::flags::{Parsed, usage};
use crate::codex::home::{find_rollout, is_thread_id};
use crate::config::Places;
use crate::error::{Error, Kind, Result};
use rustix::fs::OFlags;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The file in a workspace that has the id of its thread.
const SESSION: &str = ".plexum-codex-session";

/// The rollout that the flags name; `None` where neither was given.
///
/// # Errors
/// [`Kind::Usage`] where both were given, or the thread is no UUID; [`Kind::Config`]; [`Kind::Io`] where there is
/// no such rollout.
pub(super) fn rollout(parsed: &Parsed) -> Result<Option<PathBuf>> {
    let thread = match (parsed.value("workspace"), parsed.text("thread")?) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => {
            return Err(usage(
                "'--workspace' and '--thread' both name a rollout: give one of them",
            ));
        }
        (Some(workspace), None) => thread_of_workspace(Path::new(workspace))?,
        (None, Some(thread)) if is_thread_id(thread) => thread.to_owned(),
        (None, Some(thread)) => {
            return Err(usage(format!(
                "'--thread {thread}' is no thread id: a UUID was expected"
            )));
        }
    };
    let places = Places::from_env();
    let home = places.codex_home(&places.load_config()?.config);
    match find_rollout(&home, &thread)? {
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
    let path = workspace.join(SESSION);
    let mut text = String::new();
    // Neither a symlink to elsewhere nor a FIFO that nobody writes to is what a turn leaves there.
    OpenOptions::new()
        .read(true)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
        .open(&path)
        .and_then(|file| file.take(4096).read_to_string(&mut text))
        .map_err(|error| {
            Error::os(
                Kind::Io,
                format!(
                    "cannot read the workspace's session file '{}'",
                    path.display()
                ),
                error,
            )
            .hint("a workspace has one after its first turn")
        })?;
    let thread = text.trim();
    if !is_thread_id(thread) {
        return Err(Error::new(
            Kind::Io,
            format!(
                "the workspace's session file '{}' has no thread id in it",
                path.display()
            ),
        ));
    }
    Ok(thread.to_owned())
}
