//! Finds the codex executable, and builds its environment.

use super::ask::ask;
use crate::config::Config;
use crate::error::{Error, Kind, Result, reason};
use crate::os::{Access, CancelToken, Errno, has_access};
use crate::paths::{Paths, path_entries};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The oldest version of codex that is supported.
pub(crate) const OLDEST: CodexVersion = (0, 135, 0);
/// The newest version of codex that was tested.
pub(crate) const NEWEST_TRIED: CodexVersion = (0, 171, 0);

/// How long `codex --version` may take; it takes 0.01 s.
const VERSION_LIMIT: Duration = Duration::from_secs(2);

/// A version of codex: major, minor, patch.
pub(crate) type CodexVersion = (u32, u32, u32);

/// Parses a version: `0.169.0`, `0.170.0-alpha.4`.
pub(crate) fn parse_version(text: &str) -> Option<CodexVersion> {
    let mut numbers = text.split('.').map(|number| {
        let end = number.find(|c: char| !c.is_ascii_digit());
        number[..end.unwrap_or(number.len())].parse().ok()
    });
    Some((numbers.next()??, numbers.next()??, numbers.next()??))
}

/// The version in the output of `codex --version`: `codex-cli 0.169.0`.
pub(crate) fn version_in(printed: &str) -> Option<CodexVersion> {
    let word = printed
        .lines()
        .filter(|line| line.starts_with("codex"))
        .find_map(|line| line.split_whitespace().nth(1))?;
    parse_version(word)
}

/// Runs `codex --version`; `None` where it prints no version.
pub(crate) fn ask_version(mut codex: Command, cancel: &CancelToken) -> Option<CodexVersion> {
    codex.arg("--version");
    let output = ask(codex, VERSION_LIMIT, cancel).ok()?;
    version_in(&output.stdout)
}

/// A warning for a version that is older than supported, or newer than any tested one.
pub(crate) fn untried(version: CodexVersion) -> Option<String> {
    let shown = |(major, minor, patch): CodexVersion| format!("{major}.{minor}.{patch}");
    if version < OLDEST {
        return Some(format!(
            "codex is version {}, older than {}, the oldest supported version",
            shown(version),
            shown(OLDEST)
        ));
    }
    (version > NEWEST_TRIED).then(|| {
        format!(
            "codex is version {}, newer than {}, the newest version that this program was tested with",
            shown(version),
            shown(NEWEST_TRIED)
        )
    })
}

/// codex without arguments, in the environment of a turn.
pub(crate) fn in_environment(program: &Path, config: &Config, places: &Paths) -> Command {
    let mut command = Command::new(program);
    for name in removed_from_environment(config) {
        command.env_remove(name);
    }
    command.envs(environment(config, places));
    command
}

/// Variables of the plugin that are removed from codex's environment, unless the config sets them: backtraces would get
/// into its messages, and our log filter into its stderr.
pub(crate) fn removed_from_environment(config: &Config) -> Vec<&'static str> {
    ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE", "RUST_LOG"]
        .into_iter()
        .filter(|name| !config.env.contains_key(*name))
        .collect()
}

/// The variables that codex gets besides the plugin's own.
pub(crate) fn environment(config: &Config, places: &Paths) -> Vec<(OsString, OsString)> {
    let mut env: Vec<(OsString, OsString)> = config
        .env
        .iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect();
    if let Some(home) = places.named_codex_home(config) {
        // Absolute: codex would resolve a relative path in the workspace.
        env.retain(|(name, _)| name != "CODEX_HOME");
        env.push(("CODEX_HOME".into(), home.into()));
    }
    env
}

/// Finds the codex executable that `binary` names, and checks that it can be executed.
///
/// A name with a slash is a path; any other is searched for in codex's `PATH`. The checks cover what the kernel would
/// report as "No such file" or leave to a shell: a missing interpreter, an empty file, an executable of another
/// architecture.
///
/// # Errors
/// [`Kind::CodexMissing`], with the path and a hint.
pub(crate) fn find_codex(binary: &str, config: &Config, places: &Paths) -> Result<PathBuf> {
    let path = places.search_path(config);
    let hint = || format!("set \"binary\" in {}", places.config_file().display());
    let found = if binary.contains('/') {
        places.expand(binary)
    } else {
        in_path(binary, &path).ok_or_else(|| {
            missing(format!(
                "cannot find codex '{binary}' in PATH ({})",
                path.to_string_lossy()
            ))
            .hint(format!(
                "install it, or {} to its absolute path; 'plexum-openai doctor' checks the setup",
                hint()
            ))
        })?
    };
    match check(&found, &path) {
        Ok(()) => Ok(found),
        Err(why) => {
            Err(missing(format!("cannot start codex '{}': {why}", found.display())).hint(hint()))
        }
    }
}

fn missing(message: String) -> Error {
    Error::new(Kind::CodexMissing, message)
}

/// The first executable file of this name in `PATH`.
pub(crate) fn in_path(name: &str, path: &OsStr) -> Option<PathBuf> {
    path_entries(path)
        // A relative entry would be resolved in the plugin's working directory.
        .filter(|entry| entry.is_absolute())
        .map(|entry| entry.join(name))
        .find(|file| file.is_file() && has_access(file, Access::EXEC_OK))
}

/// Why the file cannot be executed, as far as that can be seen.
fn check(file: &Path, path: &OsStr) -> std::result::Result<(), String> {
    let metadata = std::fs::metadata(file).map_err(|error| reason(&error))?;
    if metadata.is_dir() {
        return Err("it is a directory".to_owned());
    }
    if !metadata.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    if !has_access(file, Access::EXEC_OK) {
        return Err(format!(
            "it is not executable (chmod +x '{}' makes it so)",
            file.display()
        ));
    }
    let mut head = [0; 256];
    let length = match File::open(file).and_then(|file| read_head(file, &mut head)) {
        Ok(length) => length,
        // An executable need not be readable; and a temporary lack of resources is left to the start itself.
        Err(error)
            if matches!(
                Errno::from_io_error(&error),
                Some(Errno::ACCESS | Errno::MFILE | Errno::NFILE | Errno::NOMEM)
            ) =>
        {
            return Ok(());
        }
        Err(error) => return Err(reason(&error)),
    };
    let head = &head[..length];
    if head.is_empty() {
        return Err("it is an empty file".to_owned());
    }
    if let Some(line) = head.strip_prefix(b"#!") {
        return check_interpreter(line, path);
    }
    match head.strip_prefix(b"\x7fELF") {
        Some(_) if runs_here(head) => Ok(()),
        Some(_) => Err("it is an executable for another architecture".to_owned()),
        None => Err("it is neither a program nor a script with a `#!` line".to_owned()),
    }
}

fn read_head(mut file: File, head: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < head.len() {
        match file.read(&mut head[length..])? {
            0 => break,
            more => length += more,
        }
    }
    Ok(length)
}

/// Checks that a script's interpreter exists: `#!/usr/bin/env node` needs `node` in codex's `PATH`.
fn check_interpreter(line: &[u8], path: &OsStr) -> std::result::Result<(), String> {
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let mut words = line
        .split(|byte| matches!(byte, b' ' | b'\t' | b'\r'))
        .filter(|word| !word.is_empty())
        .map(|word| Path::new(OsStr::from_bytes(word)));
    let Some(interpreter) = words.next() else {
        return Err("its `#!` line names no interpreter".to_owned());
    };
    if !interpreter.exists() {
        return Err(format!(
            "it is a script, and its interpreter '{}' is missing",
            interpreter.display()
        ));
    }
    if interpreter.file_name() == Some(OsStr::new("env")) {
        let target = words.find(|word| !word.as_os_str().as_bytes().starts_with(b"-"));
        if let Some(target) = target.and_then(Path::to_str)
            && !target.contains('/')
            && !target.contains('=')
            && in_path(target, path).is_none()
        {
            return Err(format!(
                "it is a script for '{target}', which is not in PATH ({}); use the native codex executable, or put the directory of '{target}' into PATH with \"env\" in the config",
                path.to_string_lossy()
            ));
        }
    }
    Ok(())
}

/// Whether this ELF header is of an executable for this machine. Unknown architectures are left to the kernel.
fn runs_here(head: &[u8]) -> bool {
    let Some(machine) = head.get(18..20) else {
        return false;
    };
    let machine = match head[5] {
        1 => u16::from_le_bytes([machine[0], machine[1]]),
        _ => u16::from_be_bytes([machine[0], machine[1]]),
    };
    // From the ELF specification: 62 x86-64, 3 i386, 183 AArch64, 40 ARM.
    match std::env::consts::ARCH {
        "x86_64" => matches!(machine, 62 | 3),
        "aarch64" => matches!(machine, 183 | 40),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_version_that_codex_prints() {
        for (said, expected) in [
            ("codex-cli 0.169.0\n", Some((0, 169, 0))),
            ("WARNING: x.y\ncodex-cli 1.2.3-alpha.4\n", Some((1, 2, 3))),
            ("git version 2.39.5\n", None),
            ("codex-cli new\n", None),
            ("", None),
        ] {
            assert_eq!(version_in(said), expected, "{said:?}");
        }
    }

    #[test]
    fn reports_untried_versions() {
        for (text, expected) in [
            (
                "0.134.9",
                Some("codex is version 0.134.9, older than 0.135.0, the oldest supported version"),
            ),
            ("0.135.0", None),
            ("0.171.0", None),
            (
                "0.171.1-alpha.2",
                Some(
                    "codex is version 0.171.1, newer than 0.171.0, the newest version that this program was tested with",
                ),
            ),
            (
                "1.0.0",
                Some(
                    "codex is version 1.0.0, newer than 0.171.0, the newest version that this program was tested with",
                ),
            ),
        ] {
            assert_eq!(
                parse_version(text).and_then(untried).as_deref(),
                expected,
                "{text}"
            );
        }
        for text in ["", "0.1", "x.y.z", "new"] {
            assert_eq!(parse_version(text), None, "{text}");
        }
    }
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn classifies_unusable_executables() {
        let directory = tempfile::tempdir().unwrap();
        let config = Config {
            env: [(
                "PATH".to_owned(),
                directory.path().to_str().unwrap().to_owned(),
            )]
            .into(),
            ..Config::default()
        };
        let places = Paths::from_env();
        let file = |name: &str, bytes: &[u8], mode: u32| {
            let path = directory.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        };
        let mut other = b"\x7fELF\x02\x01\x01".to_vec();
        other.resize(64, 0);
        other[18] = 0xf7; // eBPF, which no machine runs.
        file("plain", b"#!/bin/sh\n", 0o644);
        file("empty", b"", 0o755);
        file("text", b"hello\n", 0o755);
        file("node", b"#!/usr/bin/env nodejs-that-is-not-there\n", 0o755);
        file("gone", b"#! /no/such/interpreter -x\n", 0o755);
        file("other", &other, 0o755);
        file("script", b"#!/bin/sh\n", 0o755);
        std::fs::create_dir(directory.path().join("directory")).unwrap();
        for (name, message) in [
            ("nowhere", "No such file or directory"),
            ("plain", "it is not executable"),
            ("empty", "it is an empty file"),
            ("text", "it is neither a program nor a script"),
            (
                "node",
                "it is a script for 'nodejs-that-is-not-there', which is not in PATH",
            ),
            ("gone", "its interpreter '/no/such/interpreter' is missing"),
            ("directory", "it is a directory"),
            ("other", "another architecture"),
        ] {
            let path = directory.path().join(name);
            let error = find_codex(path.to_str().unwrap(), &config, &places).unwrap_err();
            assert_eq!(error.kind(), Kind::CodexMissing);
            assert!(error.message().contains(message), "{name}: {error}");
            assert!(
                error.message().contains(path.to_str().unwrap()),
                "{name}: {error}"
            );
            assert!(error.message().contains("config.json"), "{name}: {error}");
        }
        assert_eq!(
            find_codex("script", &config, &places).unwrap(),
            directory.path().join("script")
        );
        let error = find_codex("plain", &config, &places).unwrap_err();
        assert!(
            error
                .message()
                .starts_with("cannot find codex 'plain' in PATH ("),
            "{error}"
        );
    }
}
