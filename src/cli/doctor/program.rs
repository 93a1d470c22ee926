//! Where codex is, which version it is, and whether a daemon under systemd would find it.

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

/// The PATH that systemd gives to services where nobody sets another.
const SYSTEMD_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// codex, as npm knows it.
const PACKAGE: &str = "@openai/codex@latest";

impl Doctor<'_> {
    /// The executable and its version. The result is the executable, where it can be asked more.
    pub(super) fn codex(&mut self) -> Option<PathBuf> {
        let program = match find::find_codex(&self.config.binary, &self.config, self.places) {
            Ok(program) => program,
            Err(error) => {
                // Its own hints give way to one that can be followed as it stands.
                let what = error.message().split("; ").next().unwrap_or_default();
                let what = what.split(" (chmod ").next().unwrap_or_default();
                let fix = self.fix_for_missing();
                self.report.fail("codex", format!("{what}; {fix}"));
                return None;
            }
        };
        let shown = program.display();
        let answer = match self.ask(&program, &["--version"]) {
            Ok(answer) => answer,
            Err(error) => {
                let fix = format!("{}; {}", error.message(), self.other_binary());
                self.report.fail("codex", fix);
                return None;
            }
        };
        let Some(version) = find::version_in(&answer.stdout) else {
            let said = first_line(&answer.stdout).or(first_line(&answer.stderr));
            self.report.fail(
                "codex",
                format!(
                    "'{shown} --version' does not tell codex's version but {:?}; {}",
                    said.unwrap_or_default(),
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
                    "{shown} is version {major}.{minor}.{patch}, and {a}.{b}.{c} is the least that is supported; {}",
                    update(&program)
                ),
            );
        } else if version > NEWEST_TRIED {
            let (a, b, c) = NEWEST_TRIED;
            self.report.warn(
                "codex",
                format!(
                    "{shown} is version {major}.{minor}.{patch}, newer than {a}.{b}.{c}, the newest that this program was tried with; look for a newer plexum-openai where turns go wrong"
                ),
            );
        } else {
            let ((a, b, c), (x, y, z)) = (OLDEST, NEWEST_TRIED);
            let message = format!(
                "{shown}, version {major}.{minor}.{patch} (tried: {a}.{b}.{c} to {x}.{y}.{z})"
            );
            self.report.ok("codex", message);
        }
        Some(program)
    }

    /// How to come to a codex that can be started.
    pub(super) fn fix_for_missing(&self) -> String {
        let named = self.places.expand(&self.config.binary);
        if self.config.binary.contains('/') {
            if let Some(native) = native_beside(&named) {
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
        let usual = self.usual_places();
        let found = find::in_path("codex", &path)
            .into_iter()
            .chain(usual)
            .map(|found| native_beside(&found).unwrap_or(found))
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

    /// Where installers put codex besides the directories of a plain PATH.
    pub(super) fn usual_places(&self) -> Vec<PathBuf> {
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

    /// Whether a daemon that systemd starts, whose PATH is not a login shell's, finds the same codex.
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
                    "'{binary}' is looked for in the directory that the daemon is started in; {}",
                    self.set(&[("binary", &program.to_string_lossy())], &[])
                ),
            );
            return;
        }
        match found {
            Ok(found) if found == program => {
                let message = if config.binary.contains('/') {
                    "codex is found by its path, whatever PATH the daemon has".to_owned()
                } else {
                    format!("codex is found with {path} too")
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

    /// The keys with which codex starts whatever PATH there is.
    pub(super) fn fix_for_systemd(&self, program: &Path, config: &Config) -> String {
        let native = native_beside(program);
        let binary = native.as_deref().unwrap_or(program).to_string_lossy();
        let mut keys = vec![("binary", binary.as_ref())];
        keys.retain(|(_, binary)| *binary != self.config.binary);
        // A script for an interpreter that only the login shell's PATH leads to.
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

    /// How to call this codex in a shell, for the same threads and login.
    pub(super) fn codex_by_hand(&self, program: &Path) -> String {
        let real = |path: &Path| native_beside(path).or_else(|| fs::canonicalize(path).ok());
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

    pub(super) fn other_binary(&self) -> String {
        format!("set \"binary\" in {}", self.places.config_file().display())
    }
}

/// The command that brings a codex where there is none: who is not root cannot install for everybody.
pub(super) fn install() -> String {
    let place = match os::user_id() {
        0 => "",
        _ => "--prefix ~/.local ",
    };
    format!("run: npm install -g {place}{PACKAGE}")
}

/// The command that brings a newer codex to where this one is.
pub(super) fn update(program: &Path) -> String {
    let whole = fs::canonicalize(program).unwrap_or_else(|_| program.to_owned());
    let whole = whole.to_string_lossy();
    let Some((before, _)) = whole.split_once("/node_modules/@openai/") else {
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

/// The program that npm's `codex`, a script for node, starts, and which needs no node.
///
/// It is looked for in npm's own packages alone: in `node_modules/@openai/codex` of the script, and in the
/// `codex-linux-…` beside it or below it. A script that lies elsewhere, in a `bin` of many users' for one, has
/// neighbours that anybody may have put there.
pub(super) fn native_beside(script: &Path) -> Option<PathBuf> {
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

/// What a script with `#!/usr/bin/env NAME` wants to be run by.
pub(super) fn interpreter(script: &Path) -> Option<String> {
    let mut head = [0; 256];
    let length = fs::File::open(script).ok()?.read(&mut head).ok()?;
    let head = std::str::from_utf8(&head[..length]).ok()?;
    let mut words = head.lines().next()?.strip_prefix("#!")?.split_whitespace();
    words.next()?.ends_with("/env").then_some(())?;
    words.find(|word| !word.starts_with('-')).map(str::to_owned)
}
