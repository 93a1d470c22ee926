//! Owners and modes of files, and harmless advice about them.
//!
//! Advice is followed literally, by root too: so `chown` and `chmod` are only suggested inside the user's own home or
//! profile. For a system directory, the advice is to choose another directory.

use crate::os;
use crate::os::{Access, has_access, user_id};
use crate::paths::Paths;
use crate::shell;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Top-level directories that never count as a user's own, even if HOME or PLEXUM_PROFILE_ROOT points there.
const SYSTEM_DIRECTORIES: &[&str] = &[
    "bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin", "sys",
    "usr",
];
/// Directories that contain directories of several users. They are no user's own; directories below them can be.
const SHARED_DIRECTORIES: &[&str] = &[
    "/",
    "/home",
    "/media",
    "/mnt",
    "/opt",
    "/srv",
    "/tmp",
    "/var",
    "/var/cache",
    "/var/lib",
    "/var/local",
    "/var/log",
    "/var/mail",
    "/var/opt",
    "/var/run",
    "/var/spool",
    "/var/tmp",
];

/// Whether the path, with symbolic links resolved, is in the user's own home or profile.
pub(super) fn is_own(places: &Paths, path: &Path) -> bool {
    let Ok(path) = fs::canonicalize(path) else {
        return false;
    };
    let bases = places.home.iter().chain([&places.profile]);
    bases
        .filter_map(|base| own_base(base))
        .any(|base| path.starts_with(base))
}

/// The canonical path of a home or profile, if this user owns it and it is not a system directory.
fn own_base(base: &Path) -> Option<PathBuf> {
    let base = fs::canonicalize(base).ok()?;
    let owner = fs::metadata(&base).ok()?.uid();
    (owner == user_id() && !is_system(&base)).then_some(base)
}

/// Whether this is in a system directory, or is a shared directory itself.
fn is_system(path: &Path) -> bool {
    let first = path.components().nth(1).map(|first| first.as_os_str());
    first.is_none_or(|first| SYSTEM_DIRECTORIES.iter().any(|name| first == *name))
        || SHARED_DIRECTORIES
            .iter()
            .any(|shared| path == Path::new(shared))
}

/// Whether this missing path can be created without harm: in the user's home or profile, or in another directory that
/// the user owns.
pub(super) fn is_creatable(places: &Paths, path: &Path) -> bool {
    let Some(parent) = path.ancestors().skip(1).find(|parent| parent.exists()) else {
        return false;
    };
    let Ok(parent) = fs::canonicalize(parent) else {
        return false;
    };
    let is_owner = fs::metadata(&parent).is_ok_and(|found| found.uid() == user_id());
    let is_writable = has_access(&parent, Access::WRITE_OK | Access::EXEC_OK);
    is_writable && (is_own(places, &parent) || (is_owner && !is_system(&parent)))
}

/// A path in the user's home to suggest; `None` if the home is missing, not writable or not the user's own.
pub(super) fn in_home(places: &Paths, name: &str) -> Option<PathBuf> {
    let home = places.home.as_ref()?;
    let is_writable = has_access(home, Access::WRITE_OK | Access::EXEC_OK);
    (is_writable && home.is_dir() && is_own(places, home)).then(|| home.join(name))
}

/// Advice on how to get read and write access to a path: a command if it is in the user's home or profile, otherwise
/// `instead`, which names an alternative.
pub(super) fn access_fix(places: &Paths, path: &Path, instead: &str) -> String {
    let quoted = shell::quote_path(&path.to_string_lossy());
    if !is_own(places, path) {
        return instead.to_owned();
    }
    let writable = match fs::metadata(path) {
        Ok(found) if found.uid() != user_id() => {
            return format!("run as root: chown {} {quoted}", user_id());
        }
        Ok(found) => found.permissions().mode() & 0o200 != 0,
        Err(_) => false,
    };
    if writable && path.is_dir() && has_access(path, Access::READ_OK | Access::EXEC_OK) {
        // The mode allows it, so the file system is read-only.
        return format!("its file system is read-only; {instead}");
    }
    format!("run: chmod u+rwX {quoted}")
}

/// Whether other users can access the config; with the message of the check.
pub(super) enum ConfigModes {
    Fine,
    /// Others can change it, and thereby the program that a turn runs.
    Writable(String),
    /// Others can read its `env`, which may contain secrets.
    Readable(String),
}

/// Checks owners and modes of the config file and its parent directories up to the profile.
pub(super) fn config_modes(places: &Paths, has_env: bool) -> ConfigModes {
    let file = places.config_file();
    let plugin = places.plugin_directory();
    let plugins = places.profile.join("plugins");
    for path in [&places.profile, &plugins, &plugin, &file] {
        let Ok(found) = fs::metadata(path) else {
            continue;
        };
        let shown = path.display();
        let owner = found.uid();
        if owner != user_id() && owner != 0 {
            return ConfigModes::Writable(format!(
                "{shown} belongs to {}, who can thereby choose the program that a turn runs; set PLEXUM_PROFILE_ROOT to a directory of your own",
                os::user_name(owner)
            ));
        }
        let mode = found.mode() & 0o7777;
        if mode & 0o022 != 0 {
            let who = match mode & 0o022 {
                0o020 => "its group",
                _ => "every user",
            };
            let fix = match is_own(places, path) {
                true => format!(
                    "run: chmod go-w {}",
                    shell::quote_path(&path.to_string_lossy())
                ),
                false => "set PLEXUM_PROFILE_ROOT to a directory of your own".to_owned(),
            };
            return ConfigModes::Writable(format!(
                "{shown} has mode {mode:04o}: {who} can change it, and thereby the program that a turn runs; {fix}"
            ));
        }
    }
    if has_env
        && let Ok(found) = fs::metadata(&file)
        && found.mode() & 0o044 != 0
    {
        let fix = match is_own(places, &file) {
            true => format!(
                "run: chmod 600 {}",
                shell::quote_path(&file.to_string_lossy())
            ),
            false => "set PLEXUM_PROFILE_ROOT to a directory of your own".to_owned(),
        };
        return ConfigModes::Readable(format!(
            "{} has mode {:04o}, so that other users can read its \"env\"; {fix}",
            file.display(),
            found.mode() & 0o7777
        ));
    }
    ConfigModes::Fine
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recognizes_system_directories() {
        for (path, expected) in [
            ("/", true),
            ("/usr", true),
            ("/usr/local/share/x", true),
            ("/etc/x", true),
            ("/var/lib", true),
            ("/tmp", true),
            ("/home", true),
            ("/var/lib/plexum", false),
            ("/home/op", false),
            ("/root", false),
            ("/srv/agents", false),
        ] {
            assert_eq!(is_system(Path::new(path)), expected, "{path}");
        }
    }
}
