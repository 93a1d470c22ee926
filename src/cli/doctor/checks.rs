//! Runs the checks of `doctor`, in the order in which a turn depends on their subjects.
//!
//! They use the same config, search for codex and environment as a turn. A check that depends on a failed one is
//! skipped, since its message would be misleading.

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

/// How long a short codex command may take; it takes 0.1 s.
pub(super) const LIMIT: Duration = Duration::from_secs(15);

/// Runs every check that applies.
///
/// After `cancel`, codex is not waited for, and the report is meaningless.
pub(super) fn examine(
    places: &Paths,
    workspaces: &[PathBuf],
    cancel: &CancelToken,
    report: &mut Report,
) {
    let mut doctor = Doctor {
        places,
        config: Config::default(),
        has_config_file: false,
        version: None,
        cancel,
        report,
    };
    if !doctor.config() {
        return;
    }
    let has_usable_home = doctor.codex_home();
    if let Some(program) = doctor.codex() {
        doctor.systemd(&program);
        doctor.backend();
        doctor.network();
        if has_usable_home {
            doctor.codex_config(&program);
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

/// The state of a run: the checks are its methods, in this module's siblings.
pub(super) struct Doctor<'a> {
    pub(super) places: &'a Paths,
    /// The defaults until the file has been read.
    pub(super) config: Config,
    pub(super) has_config_file: bool,
    /// codex's version, once known.
    pub(super) version: Option<(u32, u32, u32)>,
    pub(super) cancel: &'a CancelToken,
    pub(super) report: &'a mut Report,
}

impl Doctor<'_> {
    /// A variable of codex's environment, if it is not empty.
    pub(super) fn variable(&self, name: &str) -> Option<OsString> {
        let set = match self.config.env.get(name) {
            Some(value) => Some(value.into()),
            None => std::env::var_os(name),
        };
        set.filter(|value: &OsString| !value.is_empty())
    }

    /// Runs a codex command in the environment of a turn.
    pub(super) fn ask(
        &self,
        program: &Path,
        arguments: &[impl AsRef<std::ffi::OsStr>],
    ) -> crate::error::Result<CommandOutput> {
        let mut command = find::in_environment(program, &self.config, self.places);
        command.args(arguments);
        ask(command, LIMIT, self.cancel)
    }

    /// Advice on how to set config keys and variables in the config's `env`: the entries for an existing file, or a
    /// command that creates the file.
    pub(super) fn set(&self, keys: &[(&str, &str)], variables: &[(&str, &str)]) -> String {
        let pairs = |pairs: &[(&str, &str)]| {
            let pairs = pairs
                .iter()
                .map(|(key, value)| format!("\"{key}\": {}", json(value)));
            pairs.collect::<Vec<_>>().join(", ")
        };
        let (mut text, variables) = (pairs(keys), pairs(variables));
        let extends = self.has_config_file && !self.config.env.is_empty();
        if !variables.is_empty() {
            let gap = if text.is_empty() { "" } else { ", " };
            text = if extends {
                format!("{text}{gap}{variables} in \"env\"")
            } else {
                format!("{text}{gap}\"env\": {{{variables}}}")
            };
        }
        let file = self.places.config_file();
        if self.has_config_file {
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

/// A JSON string.
pub(super) fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
