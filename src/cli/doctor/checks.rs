//! The checks of `doctor`, in the order in which a turn would come upon what is wrong.
//!
//! They look as the turn will look: the same config, the same search for codex, the same environment for it.
//! What depends on something that has failed already is left out, since its message would only mislead.

use super::Report;
use super::plugin;
use crate::codex::ask::{CommandOutput, ask};
use crate::codex::find;
use crate::config::Config;
use crate::os::CancelToken;
use crate::paths::Paths;
use crate::shell;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long codex may take for a short answer; it takes 0.1 s.
pub(super) const LIMIT: Duration = Duration::from_secs(15);

/// Runs every check that applies.
///
/// Once `cancel` is cancelled codex is not waited for, and the report is worth nothing.
pub(super) fn examine(
    places: &Paths,
    workspaces: &[PathBuf],
    cancel: &CancelToken,
    report: &mut Report,
) {
    let mut doctor = Doctor {
        places,
        config: Config::default(),
        config_is_there: false,
        version: None,
        cancel,
        report,
    };
    if !doctor.config() {
        return;
    }
    let home_is_sound = doctor.codex_home();
    if let Some(program) = doctor.codex() {
        doctor.systemd(&program);
        doctor.backend();
        doctor.network();
        if home_is_sound {
            doctor.ask_codex(&program);
        }
    }
    doctor.sockets();
    plugin::examine(places, &doctor.config, cancel, doctor.report);
    for workspace in workspaces {
        let workspace = std::path::absolute(workspace).unwrap_or_else(|_| workspace.clone());
        doctor.report.workspace = Some(workspace.clone());
        doctor.workspace(&workspace);
    }
}

pub(super) struct Doctor<'a> {
    pub(super) places: &'a Paths,
    /// The defaults, until the file was read.
    pub(super) config: Config,
    pub(super) config_is_there: bool,
    /// codex's, once it is known.
    pub(super) version: Option<(u32, u32, u32)>,
    pub(super) cancel: &'a CancelToken,
    pub(super) report: &'a mut Report,
}

impl Doctor<'_> {
    /// A variable as codex will see it.
    pub(super) fn variable(&self, name: &str) -> Option<OsString> {
        let set = match self.config.env.get(name) {
            Some(value) => Some(value.into()),
            None => std::env::var_os(name),
        };
        set.filter(|value: &OsString| !value.is_empty())
    }

    /// Asks codex, in the environment that a turn gives it.
    pub(super) fn ask(
        &self,
        program: &Path,
        arguments: &[impl AsRef<std::ffi::OsStr>],
    ) -> crate::error::Result<CommandOutput> {
        let mut command = find::in_environment(program, &self.config, self.places);
        command.args(arguments);
        ask(command, LIMIT, self.cancel)
    }

    /// How to set keys of the config, and variables in its `env`: what to write into the file that is there, or
    /// the command that makes one.
    pub(super) fn set(&self, keys: &[(&str, &str)], variables: &[(&str, &str)]) -> String {
        let pairs = |pairs: &[(&str, &str)]| {
            let pairs = pairs
                .iter()
                .map(|(key, value)| format!("\"{key}\": {}", json(value)));
            pairs.collect::<Vec<_>>().join(", ")
        };
        let (mut text, variables) = (pairs(keys), pairs(variables));
        let extends = self.config_is_there && !self.config.env.is_empty();
        if !variables.is_empty() {
            let gap = if text.is_empty() { "" } else { ", " };
            text = if extends {
                format!("{text}{gap}{variables} in \"env\"")
            } else {
                format!("{text}{gap}\"env\": {{{variables}}}")
            };
        }
        let file = self.places.config_file();
        if self.config_is_there {
            return format!("set {text} in {}", file.display());
        }
        format!(
            "run: (umask 077 && mkdir -p {} && printf '%s\\n' {} > {})",
            shell::quote_path(&self.places.plugin_directory().to_string_lossy()),
            shell::quote_path(&format!("{{{text}}}")),
            shell::quote_path(&file.to_string_lossy())
        )
    }
}

/// A text as JSON.
pub(super) fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
