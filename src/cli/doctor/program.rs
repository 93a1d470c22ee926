//! Checks of the codex executable: its path, its version, and whether a daemon under systemd finds it.

use super::account::first_line;
use super::checks::Doctor;
use super::ownership;
use crate::codex::find::{self, NEWEST_TRIED, OLDEST};
use crate::config::Config;
use crate::os::{self, Access};
use crate::shell;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// systemd's default PATH for services.
const SYSTEMD_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// codex's npm package.
const PACKAGE: &str = "@openai/codex@latest";

impl Doctor<'_> {
    /// Checks the executable and its version; returns the executable if other checks can run it.
    pub(super) fn codex(&mut self) -> Option<PathBuf> {
        let program = match find::find_codex(&self.config.binary, &self.config, self.places) {
            Ok(program) => program,
            Err(error) => {
                // The error's own hints are replaced by a fix that can be copied literally.
                let what = error.message().split("; ").next().unwrap_or_default();
                let what = what.split(" (chmod ").next().unwrap_or_default();
                let fix = self.fix_for_missing();
                self.report.fail("codex", format!("{what}; {fix}"));
                return None;
            }
        };
        let shown = program.display();
        let output = match self.ask(&program, &["--version"]) {
            Ok(output) => output,
            Err(error) => {
                let message = format!("{}; {}", error.message(), self.other_binary());
                self.report.fail("codex", message);
                return None;
            }
        };
        let Some(version) = find::version_in(&output.stdout) else {
            let line = first_line(&output.stdout).or(first_line(&output.stderr));
            self.report.fail(
                "codex",
                format!(
                    "'{shown} --version' prints {:?} instead of codex's version; {}",
                    line.unwrap_or_default(),
                    self.other_binary()
                ),
            );
            return None;
        };
        let (major, minor, patch) = version;
        self.version = Some(version);
        if version < OLDEST {
            let (a, b, c) = OLDEST;
            self.report.fail(
                "codex",
                format!(
                    "{shown} is version {major}.{minor}.{patch}, older than {a}.{b}.{c}, the oldest supported version; {}",
                    update(&program)
                ),
            );
        } else if version > NEWEST_TRIED {
            let (a, b, c) = NEWEST_TRIED;
            self.report.warn(
                "codex",
                format!(
                    "{shown} is version {major}.{minor}.{patch}, newer than {a}.{b}.{c}, the newest version that this program was tested with; update plexum-openai if turns fail"
                ),
            );
        } else {
            let ((a, b, c), (x, y, z)) = (OLDEST, NEWEST_TRIED);
            let message = format!(
                "{shown}, version {major}.{minor}.{patch} (tested: {a}.{b}.{c} to {x}.{y}.{z})"
            );
            self.report.ok("codex", message);
        }
        Some(program)
    }

    /// Advice on how to get a codex that can be started.
    fn fix_for_missing(&self) -> String {
        let named = self.places.expand(&self.config.binary);
        if self.config.binary.contains('/') {
            if let Some(native) = native_executable(&named) {
                return self.set(&[("binary", &native.to_string_lossy())], &[]);
            }
            if named.is_file()
                && !os::has_access(&named, Access::EXEC_OK)
                && ownership::is_own(self.places, &named)
                && fs::metadata(&named).is_ok_and(|found| found.uid() == os::user_id())
            {
                return format!(
                    "run: chmod +x {}",
                    shell::quote_path(&named.to_string_lossy())
                );
            }
        }
        let path = self.places.search_path(&self.config);
        let found = find::in_path("codex", &path)
            .into_iter()
            .chain(self.common_install_paths())
            .map(|found| native_executable(&found).unwrap_or(found))
            .find(|found| {
                let found = found.to_string_lossy();
                find::find_codex(&found, &self.config, self.places).is_ok()
            });
        match found {
            Some(found) => self.set(&[("binary", &found.to_string_lossy())], &[]),
            None if self.config.binary == "codex" => install(),
            None => self.set(&[("binary", "codex")], &[]),
        }
    }

    /// The codex executables in directories that installers use and that may be missing from PATH.
    fn common_install_paths(&self) -> Vec<PathBuf> {
        let Some(home) = &self.places.home else {
            return Vec::new();
        };
        let mut directories: Vec<PathBuf> =
            [".local/bin", ".npm-global/bin", ".volta/bin", ".bun/bin"]
                .map(|directory| home.join(directory))
                .into();
        let versions = fs::read_dir(home.join(".nvm/versions/node"));
        let versions = versions.into_iter().flatten().flatten();
        directories.extend(versions.map(|version| version.path().join("bin")));
        directories.push(PathBuf::from("/usr/local/bin"));
        let programs = directories
            .into_iter()
            .map(|directory| directory.join("codex"));
        programs.filter(|program| program.is_file()).collect()
    }

    /// Checks that a daemon under systemd, whose PATH differs from a login shell's, finds the same codex.
    pub(super) fn systemd(&mut self, program: &Path) {
        let mut config = self.config.clone();
        let path = config
            .env
            .entry("PATH".to_owned())
            .or_insert_with(|| SYSTEMD_PATH.to_owned());
        let path = path.clone();
        let found = find::find_codex(&config.binary, &config, self.places);
        let binary = config.binary.as_str();
        if binary.contains('/') && !binary.starts_with('/') && !binary.starts_with("~/") {
            self.report.warn(
                "systemd",
                format!(
                    "'{binary}' is relative to the directory in which the daemon is started; {}",
                    self.set(&[("binary", &program.to_string_lossy())], &[])
                ),
            );
            return;
        }
        match found {
            Ok(found) if found == program => {
                let message = if config.binary.contains('/') {
                    "\"binary\" is an absolute path, so the daemon's PATH has no effect on it"
                        .to_owned()
                } else {
                    format!("codex is also found in PATH={path}")
                };
                self.report.ok("systemd", message);
            }
            Ok(found) => self.report.warn(
                "systemd",
                format!(
                    "a daemon under systemd (PATH={path}) runs another codex, {}; {}",
                    found.display(),
                    self.set(&[("binary", &program.to_string_lossy())], &[])
                ),
            ),
            Err(error) => {
                let what = error.message().split("; ").next().unwrap_or_default();
                let fix = self.fix_for_systemd(program, &config);
                self.report
                    .warn("systemd", format!("a daemon under systemd {what}; {fix}"));
            }
        }
    }

    /// Advice on the config keys with which codex starts independently of the daemon's PATH.
    fn fix_for_systemd(&self, program: &Path, config: &Config) -> String {
        let native = native_executable(program);
        let binary = native.as_deref().unwrap_or(program).to_string_lossy();
        let mut keys = vec![("binary", binary.as_ref())];
        keys.retain(|(_, binary)| *binary != self.config.binary);
        // A script whose interpreter is only in the login shell's PATH.
        if find::find_codex(&binary, config, self.places).is_err()
            && let Some(name) = interpreter(program)
            && let Some(found) = find::in_path(&name, &self.places.search_path(&self.config))
            && let Some(directory) = found.parent()
        {
            let path = format!("{}:{SYSTEMD_PATH}", directory.display());
            return self.set(&keys, &[("PATH", &path)]);
        }
        self.set(&keys, &[])
    }

    /// The shell command that runs this codex with the same threads and login.
    pub(super) fn codex_by_hand(&self, program: &Path) -> String {
        let real = |path: &Path| native_executable(path).or_else(|| fs::canonicalize(path).ok());
        let same = |found: &PathBuf| real(found).is_some() && real(found) == real(program);
        let by_name = find::in_path("codex", &self.places.search_path(&self.config));
        let program = match by_name.filter(same) {
            Some(_) => "codex".to_owned(),
            None => shell::quote_path(&program.to_string_lossy()),
        };
        match self.places.named_codex_home(&self.config) {
            Some(home) => format!(
                "CODEX_HOME={} {program}",
                shell::quote_path(&home.to_string_lossy())
            ),
            None => program,
        }
    }

    /// Advice to configure another executable.
    pub(super) fn other_binary(&self) -> String {
        format!("set \"binary\" in {}", self.places.config_file().display())
    }
}

/// The command that installs codex: for all users only if this is root.
fn install() -> String {
    let prefix = match os::user_id() {
        0 => "",
        _ => "--prefix ~/.local ",
    };
    format!("run: npm install -g {prefix}{PACKAGE}")
}

/// The command that updates this codex in place.
fn update(program: &Path) -> String {
    let path = fs::canonicalize(program).unwrap_or_else(|_| program.to_owned());
    let path = path.to_string_lossy();
    let Some((before, _)) = path.split_once("/node_modules/@openai/") else {
        return install();
    };
    match before.strip_suffix("/lib") {
        Some(prefix) => format!(
            "run: npm install -g --prefix {} {PACKAGE}",
            shell::quote_path(prefix)
        ),
        None => format!(
            "run: npm install --prefix {} {PACKAGE}",
            shell::quote_path(before)
        ),
    }
}

/// The native executable that npm's `codex`, a node script, starts; it does not need node.
///
/// Only npm's packages are searched: the script's `node_modules/@openai/codex`, and the `codex-linux-…` next to it or
/// below it. In another directory, such as a shared `bin`, other users may have put files next to the script.
fn native_executable(script: &Path) -> Option<PathBuf> {
    let script = fs::canonicalize(script).ok()?;
    let package = script.parent()?.parent()?;
    if !script.ends_with("node_modules/@openai/codex/bin/codex.js") {
        return None;
    }
    let children = |directory: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        paths
    };
    let is_platform = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default();
        name.as_encoded_bytes().starts_with(b"codex-linux-")
    };
    let platforms = [
        package.join("node_modules/@openai"),
        package.parent()?.to_owned(),
    ];
    platforms
        .iter()
        .flat_map(|directory| children(directory).into_iter().filter(is_platform))
        .chain([package.to_owned()])
        .flat_map(|package| children(&package.join("vendor")))
        .map(|vendor| vendor.join("bin/codex"))
        .find(|program| program.is_file() && os::has_access(program, Access::EXEC_OK))
}

/// The interpreter's name in a script's `#!/usr/bin/env NAME`.
fn interpreter(script: &Path) -> Option<String> {
    let mut head = [0; 256];
    let length = fs::File::open(script).ok()?.read(&mut head).ok()?;
    let head = std::str::from_utf8(&head[..length]).ok()?;
    let mut words = head.lines().next()?.strip_prefix("#!")?.split_whitespace();
    words.next()?.ends_with("/env").then_some(())?;
    words.find(|word| !word.starts_with('-')).map(str::to_owned)
}
