//! Checks of the installed plugin: whether the daemon would start this program, and whether the manifest is up to date.

use super::Report;
use crate::canonical::{Manifest, PLUGIN};
use crate::codex::ask::ask;
use crate::config::Config;
use crate::os::{CancelToken, open_regular_file};
use crate::paths::Paths;
use crate::shell;
use serde_json::Value;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// How long the installed program may take to print its version.
const VERSION_TIMEOUT: Duration = Duration::from_secs(5);

/// How much is read of the manifest and of the daemon's config, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Compares the plugin in the profile with this program; adds no check if none is installed.
pub(super) fn examine(places: &Paths, config: &Config, cancel: &CancelToken, report: &mut Report) {
    let directory = places.plugin_directory();
    let program = directory.join(crate::canonical::EXECUTABLE);
    let manifest = directory.join("manifest.json");
    if !program.exists() && !manifest.exists() {
        return;
    }
    let (failed, message) = match compare(&program, &manifest, config, cancel) {
        Ok(()) => match is_allowed(&places.profile.join("config.json")) {
            Some(false) => (
                false,
                format!(
                    "the daemon does not load {}; add \"{PLUGIN}\" to .plugins.allow in {}",
                    program.display(),
                    places.profile.join("config.json").display()
                ),
            ),
            _ => return report.ok("plugin", program.display().to_string()),
        },
        Err(problem) => problem,
    };
    match failed {
        true => report.fail("plugin", message),
        false => report.warn("plugin", message),
    }
}

/// Compares the installed program and manifest with this program. An error is a message, and whether turns fail.
fn compare(
    program: &Path,
    manifest: &Path,
    config: &Config,
    cancel: &CancelToken,
) -> Result<(), (bool, String)> {
    let shown = program.display();
    let own = std::env::current_exe().ok();
    let install = own.as_deref().map_or_else(
        || "install it again".to_owned(),
        |own| {
            format!(
                "run: install -m 755 {} {}",
                shell::quote_path(&own.to_string_lossy()),
                shell::quote_path(&program.to_string_lossy())
            )
        },
    );
    let is_this = match (own.as_deref().map(fs::metadata), fs::metadata(program)) {
        (_, Err(error)) => {
            let reason = crate::error::reason(&error);
            return Err((true, format!("{shown}: {reason}; {install}")));
        }
        (Some(Ok(own)), Ok(installed)) => {
            (own.dev(), own.ino()) == (installed.dev(), installed.ino())
        }
        _ => false,
    };
    if !is_this {
        let mut command = Command::new(program);
        command.arg("--version");
        let version = match ask(command, VERSION_TIMEOUT, cancel) {
            Ok(output) => output.stdout.trim().to_owned(),
            Err(error) => return Err((true, format!("{}; {install}", error.message()))),
        };
        let own = format!("plexum-openai {}", env!("CARGO_PKG_VERSION"));
        if version != own {
            return Err((
                false,
                format!(
                    "'{shown} --version' prints {version:?}, but this program is {own}; {install}"
                ),
            ));
        }
    }
    // The daemon reads the file before it starts the plugin, and the manifest in the result of `initialize` after that.
    let expected = serde_json::to_value(Manifest::new(&config.supported_models));
    let expected = expected.expect("plain structs");
    let is_equal = match read(manifest) {
        Ok(text) => serde_json::from_slice(&text).is_ok_and(|found: Value| found == expected),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => {
            let reason = crate::error::reason(&error);
            return Err((false, format!("{}: {reason}", manifest.display())));
        }
    };
    match is_equal {
        true => Ok(()),
        false => Err((
            false,
            format!(
                "{} is missing or differs from the plugin's manifest; run: {} manifest > {}",
                manifest.display(),
                shell::quote_path(&program.to_string_lossy()),
                shell::quote_path(&manifest.to_string_lossy())
            ),
        )),
    }
}

/// Whether the daemon's config allows the plugin; `None` if it has no `plugins.allow`.
fn is_allowed(config: &Path) -> Option<bool> {
    let config: Value = serde_json::from_slice(&read(config).ok()?).ok()?;
    let allowed = config.pointer("/plugins/allow")?.as_array()?;
    Some(allowed.iter().any(|name| name == PLUGIN))
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    open_regular_file(path)?
        .take(MAX_BYTES)
        .read_to_end(&mut text)?;
    Ok(text)
}
