//! File locations: the daemon's profile, the user's home, codex's home, the search path.

use crate::config::{self, Config, Loaded};
use crate::error::Result;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// The directories that this process uses; read from the environment once, at the start.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    /// The daemon's profile: `$PLEXUM_PROFILE_ROOT`, else `~/.plexum`.
    pub(crate) profile: PathBuf,
    /// The user's home directory.
    pub(crate) home: Option<PathBuf>,
    /// `$CODEX_HOME`, if it is set and not empty.
    codex_home: Option<PathBuf>,
    /// `$PATH`.
    path: Option<OsString>,
}

impl Paths {
    pub(crate) fn from_env() -> Paths {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let home = std::env::home_dir().filter(|home| !home.as_os_str().is_empty());
        let profile = match set("PLEXUM_PROFILE_ROOT") {
            Some(root) => absolute(Path::new(&root)),
            None => home
                .clone()
                .unwrap_or_else(|| PathBuf::from("/"))
                .join(".plexum"),
        };
        Paths {
            profile,
            home,
            codex_home: set("CODEX_HOME").map(|path| absolute(Path::new(&path))),
            path: set("PATH"),
        }
    }

    /// This plugin's directory in the profile.
    pub(crate) fn plugin_directory(&self) -> PathBuf {
        self.profile.join("plugins").join(crate::canonical::PLUGIN)
    }

    pub(crate) fn config_file(&self) -> PathBuf {
        self.plugin_directory().join("config.json")
    }

    /// The `CODEX_HOME` set by the config or the environment; `None` if codex uses its default.
    pub(crate) fn named_codex_home(&self, config: &Config) -> Option<PathBuf> {
        if let Some(home) = &config.codex_home {
            return Some(self.expand(home));
        }
        match config.env.get("CODEX_HOME") {
            Some(home) if !home.is_empty() => Some(absolute(Path::new(home))),
            Some(_) => None,
            None => self.codex_home.clone(),
        }
    }

    /// The directory in which codex stores its threads, `~/.codex` by default.
    pub(crate) fn codex_home(&self, config: &Config) -> PathBuf {
        self.named_codex_home(config).unwrap_or_else(|| {
            self.home
                .clone()
                .unwrap_or_else(|| PathBuf::from("/"))
                .join(".codex")
        })
    }

    /// The `PATH` in codex's environment.
    pub(crate) fn search_path(&self, config: &Config) -> OsString {
        match config.env.get("PATH") {
            Some(path) => OsString::from(path),
            None => self
                .path
                .clone()
                .unwrap_or_else(|| OsString::from("/usr/local/bin:/usr/bin:/bin")),
        }
    }

    /// Makes a path of the config absolute; expands a leading `~/`.
    pub(crate) fn expand(&self, path: &str) -> PathBuf {
        match (path.strip_prefix("~/"), &self.home) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => absolute(Path::new(path)),
        }
    }

    /// Loads the config file; a missing or empty one gives the defaults.
    ///
    /// # Errors
    /// As [`config::load()`].
    pub(crate) fn load_config(&self) -> Result<Loaded> {
        config::load(&self.config_file())
    }
}

fn absolute(path: &Path) -> PathBuf {
    // It fails for an empty path or a missing current directory; then the path is used unchanged.
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// The entries of a `PATH` that are not empty.
pub(crate) fn path_entries(path: &OsStr) -> impl Iterator<Item = PathBuf> {
    std::env::split_paths(path)
        .filter(|entry| !entry.as_os_str().is_empty())
        .collect::<Vec<_>>()
        .into_iter()
}
