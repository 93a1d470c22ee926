//! Whose a file or directory is, and what advice about it does no harm.
//!
//! Advice is followed to the letter, by root too: so `chown` and `chmod` are named only for what lies in the user's
//! own home or profile. A directory of the system is never to be opened up; another directory is to be chosen.

use crate::os;
use crate::os::{Access, has_access, user_id};
use crate::paths::Paths;
use crate::shell;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Directories that are no user's own, whatever HOME and PLEXUM_PROFILE_ROOT say.
const SYSTEM: &[&str] = &[
    "bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin", "sys",
    "usr",
];
/// Directories that others' directories lie in: what lies deeper can be somebody's own.
const SHARED: &[&str] = &[
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

/// Is this in the user's own home or profile, links resolved?
pub(super) fn is_own(places: &Paths, path: &Path) -> bool {
    let Ok(path) = fs::canonicalize(path) else {
        return false;
    };
    let bases = places.home.iter().chain([&places.profile]);
    bases
        .filter_map(|base| own_base(base))
        .any(|base| path.starts_with(base))
}

/// A home or profile, if it is this user's and not a directory of the system.
fn own_base(base: &Path) -> Option<PathBuf> {
    let base = fs::canonicalize(base).ok()?;
    let owner = fs::metadata(&base).ok()?.uid();
    (owner == user_id() && !is_system(&base)).then_some(base)
}

/// Is this a directory of the system, or one that all users share?
fn is_system(path: &Path) -> bool {
    let first = path.components().nth(1).map(|first| first.as_os_str());
    first.is_none_or(|first| SYSTEM.iter().any(|name| first == *name))
        || SHARED.iter().any(|shared| path == Path::new(shared))
}

/// Could this be made by hand without harm: is it in the user's own home or profile, or in another directory of
/// theirs?
pub(super) fn may_be_made(places: &Paths, path: &Path) -> bool {
    let Some(parent) = path.ancestors().skip(1).find(|parent| parent.exists()) else {
        return false;
    };
    let Ok(parent) = fs::canonicalize(parent) else {
        return false;
    };
    let theirs = fs::metadata(&parent).is_ok_and(|found| found.uid() == user_id());
    let writable = has_access(&parent, Access::WRITE_OK | Access::EXEC_OK);
    writable && (is_own(places, &parent) || (theirs && !is_system(&parent)))
}

/// A path in the user's home where something could be made, if there could: no advice leads back to a home that is
/// not there or cannot be written.
pub(super) fn in_home(places: &Paths, name: &str) -> Option<PathBuf> {
    let home = places.home.as_ref()?;
    let is_writable = has_access(home, Access::WRITE_OK | Access::EXEC_OK);
    (is_writable && home.is_dir() && is_own(places, home)).then(|| home.join(name))
}

/// How to come to read and write what this user may not; `instead` says which other one to choose where this one
/// is not theirs to change.
pub(super) fn open_up(places: &Paths, path: &Path, instead: &str) -> String {
    let word = shell::quote_path(&path.to_string_lossy());
    if !is_own(places, path) {
        return instead.to_owned();
    }
    let writable = match fs::metadata(path) {
        Ok(found) if found.uid() != user_id() => {
            return format!("run as root: chown {} {word}", user_id());
        }
        Ok(found) => found.permissions().mode() & 0o200 != 0,
        Err(_) => false,
    };
    if writable && path.is_dir() && has_access(path, Access::READ_OK | Access::EXEC_OK) {
        // The mode is right and the file system says no.
        return format!("its file system cannot be written; {instead}");
    }
    format!("run: chmod u+rwX {word}")
}

/// A check of who can change the config, and with it what program is run; and who can read what is secret in it.
pub(super) enum ConfigModes {
    Fine,
    /// Others can change it.
    Writable(String),
    /// Others can read its `env`.
    Readable(String),
}

/// Looks at the modes and owners of the config file and of the directories that it lies in, up to the profile.
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
                "{shown} is of user {}, who can name the program that a turn runs; set PLEXUM_PROFILE_ROOT to a directory of your own",
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
                "{shown} has mode {mode:04o}: {who} can change it, and with it the program that a turn runs; {fix}"
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
            "{} has mode {:04o} and an \"env\", which others can read; {fix}",
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
    fn knows_system_directories() {
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
