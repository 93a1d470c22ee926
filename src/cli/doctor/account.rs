//! Checks that query codex: its config, its MCP servers, its login.

use super::checks::Doctor;
use crate::codex::SERVER_PREFIX;
use crate::codex::ask::CommandOutput;
use crate::codex::mcp_servers::ConfiguredServer;
use crate::config::McpRegistration;
use crate::os::{self, Access, open_regular_file};
use crate::shell;
use std::fs;
use std::io::Read;
use std::path::Path;

impl Doctor<'_> {
    /// Checks codex's config and login with codex's own subcommands.
    pub(super) fn codex_config(&mut self, program: &Path) {
        let outputs = self
            .ask(program, &["login", "status"])
            .and_then(|login| Ok((login, self.ask(program, &["mcp", "list", "--json"])?)));
        let (login, servers) = match outputs {
            Ok(outputs) => outputs,
            Err(error) => {
                self.report.fail("codex config", error.message());
                return;
            }
        };
        let config_file = self.places.codex_home(&self.config).join("config.toml");
        // `login status` has the most precise message for an invalid config (0.135 and 0.169).
        let config_error = login
            .stderr
            .lines()
            .find_map(|line| line.strip_prefix("Error loading configuration: "));
        if let Some(config_error) = config_error {
            self.report.fail(
                "codex config",
                format!(
                    "codex cannot use its config: {config_error}; fix {}",
                    config_file.display()
                ),
            );
            return;
        }
        self.arguments(program);
        self.servers(program, &servers);
        let text = read_config(&config_file);
        if let Some(argument) = self.profile() {
            let message = format!(
                "not checked: \"extra_args\" has {argument}, and only a turn shows which login a codex profile requires"
            );
            self.report.warn("login", message);
            return;
        }
        let provider = self
            .setting("model_provider")
            .map(|name| name.trim_matches(['"', '\'']).to_owned())
            .or_else(|| toml_text(&text, "model_provider"))
            .filter(|name| name != "openai");
        match provider {
            Some(provider) => self.provider(&provider, &text),
            None => self.login(program, &login),
        }
    }

    /// Checks for stale `mcp_servers` entries of this program in codex's config.
    pub(super) fn servers(&mut self, program: &Path, listed: &CommandOutput) {
        let entries: Vec<ConfiguredServer> = match serde_json::from_str(&listed.stdout) {
            Ok(entries) => entries,
            Err(error) => {
                self.report.warn(
                    "codex config",
                    format!("cannot parse the output of 'codex mcp list --json': {error}; update plexum-openai if this codex is newer"),
                );
                return;
            }
        };
        let mut stale = Vec::new();
        let mut ours = 0;
        for entry in entries
            .iter()
            .filter(|entry| entry.name.starts_with(SERVER_PREFIX))
        {
            ours += 1;
            let why = if self.config.mcp_registration != McpRegistration::Persistent {
                "\"mcp_registration\" is not \"persistent\"".to_owned()
            } else if !os::has_access(&entry.transport.command, Access::EXEC_OK) {
                format!("'{}' cannot be executed", entry.transport.command)
            } else {
                continue;
            };
            stale.push((entry.name.as_str(), why));
        }
        let Some((first, why)) = stale.first() else {
            let message = match ours {
                0 => "no stale MCP server entries of this program in codex's config".to_owned(),
                1 => "1 MCP server entry of this program in codex's config, whose command can be executed".to_owned(),
                more => format!("{more} MCP server entries of this program in codex's config, whose commands can be executed"),
            };
            self.report.ok("codex config", message);
            return;
        };
        let removal: Vec<String> = stale
            .iter()
            .map(|(name, _)| {
                let codex = self.codex_by_hand(program);
                format!("{codex} mcp remove {}", shell::quote_path(name))
            })
            .collect();
        let more = match stale.len() - 1 {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        self.report.warn(
            "codex config",
            format!(
                "stale MCP server entry '{first}'{more} in codex's config: {why}; run: {}",
                removal.join(" && ")
            ),
        );
    }

    /// Checks a custom model provider, which needs no login but may need an API key.
    pub(super) fn provider(&mut self, provider: &str, text: &str) {
        let table = format!("model_providers.{provider}");
        // Not a failure: codex has built-in providers (ollama, lmstudio, ...), more with each version.
        if !text.contains(&table) && self.setting(&format!("{table}.base_url")).is_none() {
            let message = format!(
                "codex uses the provider '{provider}', which its config.toml does not define; ignore this if the provider is built into codex"
            );
            self.report.warn("login", message);
            return;
        }
        let key = toml_text(text, &format!("{table}.env_key"));
        match key {
            None => self.report.ok(
                "login",
                format!("codex uses the provider '{provider}', which requires no key"),
            ),
            Some(name) if self.variable(&name).is_some() => self.report.ok(
                "login",
                format!("codex uses the provider '{provider}', and its key {name} is set"),
            ),
            Some(name) => self.report.fail(
                "login",
                format!(
                    "codex uses the provider '{provider}', and its key {name} is not set; {}",
                    self.set(&[], &[(&name, "...")])
                ),
            ),
        }
    }

    /// Checks the login by the output of `codex login status`.
    pub(super) fn login(&mut self, program: &Path, status: &CommandOutput) {
        if status.success {
            let line = first_line(&status.stderr).or(first_line(&status.stdout));
            self.report
                .ok("login", line.unwrap_or("codex is logged in"));
        } else if self.config.env.contains_key("CODEX_API_KEY") {
            self.report.ok(
                "login",
                "not logged in, but the config's \"env\" has CODEX_API_KEY",
            );
        } else if self.variable("CODEX_API_KEY").is_some() {
            self.report.ok(
                "login",
                format!(
                    "not logged in, but CODEX_API_KEY is set; if the daemon's environment does not have it, {}",
                    self.set(&[], &[("CODEX_API_KEY", "...")])
                ),
            );
        } else if self.variable("OPENAI_API_KEY").is_some() {
            self.report.fail(
                "login",
                format!(
                    "OPENAI_API_KEY is set, but 'codex exec' reads only CODEX_API_KEY, and codex is not logged in; run: printenv OPENAI_API_KEY | {} login --with-api-key",
                    self.codex_by_hand(program)
                ),
            );
        } else {
            self.report.fail(
                "login",
                format!(
                    "codex is not logged in; run: {} login",
                    self.codex_by_hand(program)
                ),
            );
        }
    }
}

/// The text of codex's config; symbolic links are followed. Empty if it is not a readable file.
pub(super) fn read_config(file: &Path) -> String {
    const MAX_BYTES: u64 = 16 << 20;
    let mut text = String::new();
    let opened = fs::canonicalize(file).and_then(|file| open_regular_file(&file));
    // Errors are ignored: codex itself reports an unreadable config.
    let _ = opened.and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text));
    text
}

/// The first line that is not blank, trimmed.
pub(super) fn first_line(text: &str) -> Option<&str> {
    text.lines().map(str::trim).find(|line| !line.is_empty())
}

/// The string at this dotted key of a TOML text, if it is in a line of the form `key = "value"`. Other forms are
/// ignored.
pub(super) fn toml_text(text: &str, wanted: &str) -> Option<String> {
    let value = toml_value(text, wanted)?;
    let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    value[1..].split(quote).next().map(str::to_owned)
}

/// Whether this dotted key of a TOML text is `true`, in a line of the form `key = true`.
pub(super) fn toml_flag(text: &str, wanted: &str) -> bool {
    toml_value(text, wanted)
        .and_then(|value| value.split('#').next())
        .is_some_and(|value| value.trim() == "true")
}

/// What follows `key =` in the line that has this dotted key, with a comment behind it. No key occurs twice in TOML.
fn toml_value<'a>(text: &'a str, wanted: &str) -> Option<&'a str> {
    let plain = |key: &str| key.replace(['"', '\'', ' ', '\t'], "");
    let mut table = String::new();
    for line in text.lines() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[') {
            table = plain(name.split(']').next().unwrap_or_default()) + ".";
        } else if let Some((key, value)) = line.split_once('=')
            && format!("{table}{}", plain(key)) == wanted
        {
            return Some(value.trim());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_values_in_codex_config() {
        let text = "# model_provider = \"no\"\nmodel_provider = \"loop back\" # yes\n\n[model_providers.'loop']\nname=1\nenv_key = 'KEY'\n[other]\nmodel = \"x\"\n";
        for (key, expected) in [
            ("model_provider", Some("loop back")),
            ("model_providers.loop.env_key", Some("KEY")),
            ("other.model", Some("x")),
            ("model", None),
            ("model_providers.loop.name", None),
        ] {
            assert_eq!(toml_text(text, key).as_deref(), expected, "{key}");
        }
        let text = "a = true # yes\n[b]\n'c' = false\nd = \"true\"\n";
        for (key, expected) in [("a", true), ("b.c", false), ("b.d", false), ("c", false)] {
            assert_eq!(toml_flag(text, key), expected, "{key}");
        }
    }
}
