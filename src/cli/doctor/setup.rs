//! Checks of the config file, the backend, the sandbox and `extra_args`.

use super::account::{read_config, toml_flag, toml_text};
use super::checks::Doctor;
use super::ownership::{self, ConfigModes};
use crate::backend::exec::command::{self, TurnArgs};
use crate::backend::{list_models, only_by_exec};
use crate::config::BackendChoice;
use std::ffi::OsString;
use std::path::Path;

/// A well-formed thread id that does not exist.
const NO_THREAD: &str = "00000000-0000-7000-8000-000000000000";

impl Doctor<'_> {
    /// Checks the config file; returns whether it could be loaded.
    pub(super) fn config(&mut self) -> bool {
        let path = self.places.config_file();
        match self.places.load_config() {
            Ok(loaded) => {
                let modes = ownership::config_modes(self.places, !loaded.config.env.is_empty());
                if loaded.warnings.is_empty() && matches!(modes, ConfigModes::Fine) {
                    let message = if loaded.found {
                        format!("{}", path.display())
                    } else {
                        format!("{} does not exist: the defaults apply", path.display())
                    };
                    self.report.ok("config", message);
                }
                for warning in loaded.warnings {
                    self.report.warn("config", warning);
                }
                match modes {
                    ConfigModes::Fine => {}
                    ConfigModes::Writable(message) => self.report.fail("config", message),
                    ConfigModes::Readable(message) => self.report.warn("config", message),
                }
                self.config = loaded.config;
                self.has_config_file = loaded.found;
                true
            }
            Err(error) => {
                self.report.fail("config", error.message());
                false
            }
        }
    }

    /// Checks that codex can be run by the configured backend.
    pub(super) fn backend(&mut self) {
        if self.config.backend == BackendChoice::Exec {
            return;
        }
        if let Some(why) = only_by_exec(&self.config) {
            let message = format!(
                "{why}: turns are run by 'codex exec'; remove it from the config, or set \"backend\" to \"exec\""
            );
            return self.report.warn("backend", message);
        }
        match list_models(&self.config, self.places, self.cancel) {
            Ok(models) => {
                let message = format!("codex app-server, which lists {} models", models.len());
                self.report.ok("backend", message);
            }
            Err(error) => {
                let message = format!(
                    "codex app-server cannot be used, turns are run by 'codex exec': {}; {}",
                    error.message(),
                    self.other_binary()
                );
                self.report.warn("backend", message);
            }
        }
    }

    /// Warns of a sandbox with network access: its commands can send files away and reach the services of this machine.
    pub(super) fn network(&mut self) {
        const KEY: &str = "sandbox_workspace_write.network_access";
        let file = self.places.codex_home(&self.config).join("config.toml");
        let text = read_config(&file);
        let source = match self.setting(KEY) {
            Some("true") => "\"extra_args\"".to_owned(),
            Some(_) => return,
            None if toml_flag(&text, KEY) => file.display().to_string(),
            None => return,
        };
        let mut arguments = self.config.extra_args.iter().map(String::as_str);
        let bypassed =
            arguments.any(|argument| argument == "--dangerously-bypass-approvals-and-sandbox");
        let sandbox = self.sandbox_in_arguments().or_else(|| {
            self.setting("sandbox_mode")
                .map(|mode| mode.trim_matches(['"', '\'']).to_owned())
        });
        let sandbox = sandbox.or_else(|| toml_text(&text, "sandbox_mode"));
        if !bypassed && sandbox.as_deref() == Some("workspace-write") {
            self.report.warn(
                "sandbox",
                format!("the sandbox \"workspace-write\" has network_access = true in {source}: commands in it can reach the network and every service of this machine; set it to false unless they need that"),
            );
        }
    }

    /// The sandbox mode that `extra_args` sets; the last flag wins.
    pub(super) fn sandbox_in_arguments(&self) -> Option<String> {
        let arguments = &self.config.extra_args;
        let mut sandbox = None;
        for (at, argument) in arguments.iter().enumerate() {
            sandbox = match argument.as_str() {
                "-s" | "--sandbox" => arguments.get(at + 1).map(String::as_str),
                "--full-auto" => Some("workspace-write"),
                argument => argument
                    .strip_prefix("--sandbox=")
                    .or_else(|| argument.strip_prefix("-s").filter(|mode| !mode.is_empty())),
            }
            .or(sandbox);
        }
        sandbox.map(str::to_owned)
    }

    /// Checks that codex accepts the config's `extra_args` at their position in a turn's command line.
    pub(super) fn arguments(&mut self, program: &Path) {
        if self.config.extra_args.is_empty() {
            return;
        }
        let fix = format!(
            "fix \"extra_args\" in {}",
            self.places.config_file().display()
        );
        let find_flag = |flags: &[&str]| {
            let mut arguments = self.config.extra_args.iter();
            arguments.find(|argument| flags.contains(&argument.as_str()))
        };
        if let Some(flag) = find_flag(&["-h", "--help", "-V", "--version"]) {
            let message = format!(
                "\"extra_args\" has {flag}, with which codex exits without running a turn; {fix}"
            );
            self.report.fail("arguments", message);
            return;
        }
        if let Some(flag) = find_flag(&["--ephemeral"]) {
            let message = format!(
                "\"extra_args\" has {flag}: codex stores no thread, so every turn starts a new one; {fix}"
            );
            self.report.warn("arguments", message);
        }
        // A turn's flags up to its `--`, with `--help` after them: codex prints the help only if it accepts all of the
        // flags. It validates settings and features later than that, so `features list` is run with those.
        let turn = TurnArgs::new(Path::new("/"), "");
        let mut flags = command::build(program, &self.config, self.places, &turn).args;
        flags.truncate(flags.iter().take_while(|flag| *flag != "--").count());
        let with_flags = |more: &[&str]| {
            let mut arguments = flags.clone();
            arguments.extend(more.iter().map(OsString::from));
            arguments
        };
        let mut features = settings(&self.config.extra_args);
        features.extend(["features", "list"]);
        for arguments in [
            with_flags(&["-", "--help"]),
            with_flags(&["resume", NO_THREAD, "-", "--help"]),
            features.iter().map(OsString::from).collect(),
        ] {
            let Ok(output) = self.ask(program, &arguments) else {
                return;
            };
            if output.success {
                continue;
            }
            let reason = output.stderr.lines().find_map(|line| {
                let prefixes = ["error: ", "Error: ", "Error parsing -c overrides: "];
                prefixes.iter().find_map(|prefix| line.strip_prefix(prefix))
            });
            let reason = match reason.unwrap_or(output.stderr.trim()) {
                // `-` is this program's prompt argument, whose position another argument has taken.
                "unexpected argument '-' found" => {
                    "it contains an argument that is neither a flag nor the value of a flag"
                }
                reason => reason,
            };
            let message = format!("codex rejects \"extra_args\": {reason}; {fix}");
            self.report.fail("arguments", message);
            return;
        }
    }

    /// The value of a key that `-c` or `--config` sets in `extra_args`; the last one wins.
    pub(super) fn setting(&self, key: &str) -> Option<&str> {
        let settings = self.config.extra_args.iter().rev().map(|argument| {
            let argument = argument.strip_prefix("--config=").unwrap_or(argument);
            argument.strip_prefix("-c").unwrap_or(argument)
        });
        let mut values = settings.filter_map(|setting| setting.split_once('='));
        values.find_map(|(name, value)| (name.trim() == key).then(|| value.trim()))
    }

    /// The flag in `extra_args` that selects a profile of codex's config.
    pub(super) fn profile(&self) -> Option<&str> {
        let mut arguments = self.config.extra_args.iter().map(String::as_str);
        arguments.find(|argument| {
            *argument == "--profile"
                || argument.starts_with("--profile=")
                || (argument.starts_with("-p") && !argument.starts_with("--"))
        })
    }
}

/// The arguments in `extra_args` that set config values and features; every subcommand of codex accepts them.
fn settings(extra_args: &[String]) -> Vec<&str> {
    let mut found = Vec::new();
    let mut arguments = extra_args.iter().map(String::as_str);
    while let Some(argument) = arguments.next() {
        if matches!(argument, "-c" | "--config" | "--enable" | "--disable") {
            found.push(argument);
            found.extend(arguments.next());
        } else if ["--config=", "--enable=", "--disable="]
            .iter()
            .any(|start| argument.starts_with(start))
            || (argument.starts_with("-c") && !argument.starts_with("--"))
        {
            found.push(argument);
        }
    }
    found
}
