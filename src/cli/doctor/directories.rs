//! Checks of the directories that a turn needs: codex's home, the sockets' directory, the workspace.

use super::checks::{Doctor, json};
use super::ownership::{self, access_fix};
use crate::config::McpRegistration;
use crate::error::reason;
use crate::os::{self, Access, check_owner};
use crate::paths::Paths;
use crate::shell;
use crate::turn::{NOT_UTF8, has_utf8_path};
use std::fs;
use std::io;
use std::path::Path;

/// Permission to list, change and enter a directory.
const ALL_ACCESS: Access = Access::READ_OK
    .union(Access::WRITE_OK)
    .union(Access::EXEC_OK);

impl Doctor<'_> {
    /// Checks codex's home; returns whether codex can use it.
    pub(super) fn codex_home(&mut self) -> bool {
        let home = self.places.codex_home(&self.config);
        let is_named = self.places.named_codex_home(&self.config).is_some();
        if let Err(error) = check_owner("the codex home", &home) {
            self.report.fail("codex home", error.message());
            return false;
        }
        match check_home(self.places, &home, is_named) {
            Ok(message) => {
                self.report.ok("codex home", message);
                true
            }
            Err(message) => {
                self.report.fail("codex home", message);
                false
            }
        }
    }

    /// Checks the directory of the sockets through which codex calls the daemon's tools.
    pub(super) fn sockets(&mut self) {
        if self.config.mcp_registration == McpRegistration::Off {
            return;
        }
        let directory =
            crate::mcp::runtime_place(crate::mcp::runtime_dir().as_deref(), &self.places.profile);
        let instead = match ownership::in_home(self.places, ".plexum") {
            Some(own) => format!(
                "choose a directory of your own: set PLEXUM_PROFILE_ROOT to {}",
                shell::quote_path(&own.to_string_lossy())
            ),
            None => "choose a directory of your own: set PLEXUM_PROFILE_ROOT to one".to_owned(),
        };
        // The directory is not created here: a turn creates it when needed.
        let outcome = match fs::symlink_metadata(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                check_creatable(self.places, &directory, &instead)
            }
            _ => crate::mcp::check_runtime_directory(&directory)
                .map(|()| directory.display().to_string())
                .map_err(|error| match error.message().split_once("; run: chmod ") {
                    // Instead of a chmod outside the user's own directories: a new one gets the right mode.
                    Some((what, _)) if !ownership::is_own(self.places, &directory) => {
                        let quoted = shell::quote_path(&directory.to_string_lossy());
                        format!("{what}; run: mv {quoted} {quoted}.old")
                    }
                    _ => error.message().to_owned(),
                }),
        };
        match outcome {
            Ok(message) => self.report.ok("sockets", message),
            Err(message) => self.report.fail("sockets", message),
        }
    }
}

/// Checks codex's home; returns the message of the check.
fn check_home(places: &Paths, home: &Path, is_named: bool) -> Result<String, String> {
    let shown = home.display();
    let own = ownership::in_home(places, ".codex").filter(|own| own != home);
    let instead = match own {
        Some(own) => format!(
            "choose a directory of your own: set \"codex_home\" in the config to {}",
            json(&own.to_string_lossy())
        ),
        // The default home is the unusable one.
        None => "choose a directory of your own: set HOME, or \"codex_home\" in the config, to one"
            .to_owned(),
    };
    match fs::metadata(home) {
        Ok(found) if !found.is_dir() => Err(format!(
            "{shown} is not a directory; set CODEX_HOME, or \"codex_home\" in the config, to one"
        )),
        Ok(_) if !os::has_access(home, ALL_ACCESS) => Err(format!(
            "{shown} cannot be read and written; {}",
            access_fix(places, home, &instead)
        )),
        Ok(_) => match fs::read_dir(home.join("sessions")) {
            Ok(_) => Ok(format!("{shown}")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok(format!("{shown}, no threads yet"))
            }
            Err(error) => Err(format!(
                "cannot read {shown}/sessions, without which no tool calls can be reported: {}; {}",
                reason(&error),
                access_fix(places, &home.join("sessions"), &instead)
            )),
        },
        // codex creates only its default home, including parent directories.
        Err(error)
            if !is_named
                && matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
        {
            let parent = home.ancestors().skip(1).find(|parent| parent.exists());
            let parent = parent.unwrap_or(home);
            if parent.is_dir() && os::has_access(parent, Access::WRITE_OK | Access::EXEC_OK) {
                Ok(format!(
                    "{shown} does not exist yet and is created by codex"
                ))
            } else {
                Err(format!(
                    "{shown} does not exist and cannot be created in {}; {instead}",
                    parent.display()
                ))
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(format!(
            "{shown} does not exist, and codex creates only ~/.codex; {}",
            match ownership::is_creatable(places, home) {
                true => format!(
                    "run: mkdir -p {}",
                    shell::quote_path(&home.to_string_lossy())
                ),
                false => instead,
            }
        )),
        Err(error) => Err(format!("cannot access {shown}: {}", reason(&error))),
    }
}

/// Checks a workspace's directory; returns the message of the check.
pub(super) fn check_workspace(places: &Paths, workspace: &Path) -> Result<String, String> {
    let shown = workspace.display();
    if !has_utf8_path(workspace) {
        return Err(format!("cannot use {shown}: {NOT_UTF8}; give another one"));
    }
    match fs::metadata(workspace) {
        Ok(found) if !found.is_dir() => {
            Err(format!("{shown} is not a directory; choose another path"))
        }
        Ok(_) if !os::has_access(workspace, ALL_ACCESS) => Err(format!(
            "{shown} cannot be read and written; {}",
            access_fix(places, workspace, &other_workspace(places))
        )),
        Ok(_) => Ok(format!("{shown}")),
        Err(_) if workspace.is_symlink() => Err(format!(
            "{shown} is a dangling symbolic link; choose another path"
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            check_creatable(places, workspace, &other_workspace(places))
        }
        Err(error) => Err(format!("cannot access {shown}: {}", reason(&error))),
    }
}

/// Advice to choose another workspace, for one that this user must not change.
fn other_workspace(places: &Paths) -> String {
    match ownership::in_home(places, "workspace") {
        Some(own) => format!(
            "choose a directory of your own as the workspace, such as {}",
            shell::quote_path(&own.to_string_lossy())
        ),
        None => "choose a directory of your own as the workspace".to_owned(),
    }
}

/// Checks that a missing directory can be created; returns the message of the check.
fn check_creatable(places: &Paths, directory: &Path, instead: &str) -> Result<String, String> {
    let shown = directory.display();
    let parent = directory
        .ancestors()
        .skip(1)
        .find(|directory| directory.exists());
    let parent = parent.unwrap_or(Path::new("/"));
    if !parent.is_dir() {
        Err(format!(
            "{shown} cannot be created, because {} is not a directory; choose another path",
            parent.display()
        ))
    } else if !os::has_access(parent, Access::WRITE_OK | Access::EXEC_OK) {
        Err(format!(
            "{shown} does not exist and cannot be created in {}; {}",
            parent.display(),
            access_fix(places, parent, instead)
        ))
    } else {
        Ok(format!(
            "{shown} does not exist yet and is created by the first turn"
        ))
    }
}
