//! The list of the workspaces that turns ran in, beside the config file, for an overview of many agents.
//!
//! A line is a path as a JSON string, the newest last; duplicates occur only if two turns add a path at the same time.
//! A path that is not UTF-8 has no JSON and is not listed. No turn depends on the list: one that cannot be written is
//! only logged.

use crate::os::open_regular_file;
use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The file's name in the plugin's directory of the profile.
const FILE: &str = "workspaces";
/// How long the list may become, in bytes: some ten thousand workspaces.
const MAX_BYTES: u64 = 1 << 20;

/// Adds a workspace, unless it is listed.
///
/// # Errors
/// The operating system's. If the directory is missing or another user's, nothing is written, without an error.
pub(super) fn add(plugin_directory: &Path, workspace: &Path) -> io::Result<()> {
    // The workspaces that this process has found in the list: most turns run in one of them.
    static LISTED: Mutex<Option<HashSet<PathBuf>>> = Mutex::new(None);
    let listed = || LISTED.lock().unwrap_or_else(PoisonError::into_inner);
    let is_listed = listed().get_or_insert_default().contains(workspace);
    // The list may have been removed since.
    if !is_listed || !plugin_directory.join(FILE).exists() {
        if !add_to_file(plugin_directory, workspace)? {
            return Ok(());
        }
        listed()
            .get_or_insert_default()
            .insert(workspace.to_owned());
    }
    Ok(())
}

/// Returns whether the workspace is in the file.
fn add_to_file(plugin_directory: &Path, workspace: &Path) -> io::Result<bool> {
    let Some(new_line) = line(workspace) else {
        return Ok(false);
    };
    let Ok(found) = plugin_directory.metadata() else {
        return Ok(false);
    };
    if found.uid() != crate::os::user_id() {
        return Ok(false);
    }
    let path = plugin_directory.join(FILE);
    let listed = list(plugin_directory)?;
    if listed.iter().any(|other| other == workspace) {
        return Ok(true);
    }
    if path.metadata().is_ok_and(|file| file.len() > MAX_BYTES) {
        // The older half is most likely out of use.
        let mut file = tempfile::NamedTempFile::new_in(plugin_directory)?;
        for line in listed[listed.len() / 2..]
            .iter()
            .filter_map(|path| line(path))
        {
            file.write_all(&line)?;
        }
        file.persist(&path)?;
    }
    // A single append, so that lines of concurrent processes do not mix.
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)?;
    file.write_all(&new_line)?;
    Ok(true)
}

/// The listed workspaces, the newest last; none if the file is missing.
///
/// # Errors
/// The operating system's.
pub(crate) fn list(plugin_directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut text = Vec::new();
    match open_regular_file(&plugin_directory.join(FILE)) {
        Ok(file) => file.take(4 * MAX_BYTES).read_to_end(&mut text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let lines = text.split(|byte| *byte == b'\n');
    // A line that a full disk truncated is not JSON.
    let paths = lines.filter_map(|line| serde_json::from_slice::<PathBuf>(line).ok());
    Ok(paths.collect())
}

fn line(path: &Path) -> Option<Vec<u8>> {
    let mut line = serde_json::to_vec(path).ok()?;
    line.push(b'\n');
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn lists_workspaces_once_and_drops_older_half() {
        let directory = tempfile::tempdir().unwrap();
        let plugin = directory.path();
        assert_eq!(list(plugin).unwrap(), Vec::<PathBuf>::new());
        add(&plugin.join("missing"), Path::new("/w/0")).unwrap();
        add(plugin, Path::new(OsStr::from_bytes(b"/w/\xff"))).unwrap();
        assert!(!plugin.join(FILE).exists());
        // What could not be written is tried again.
        std::fs::create_dir(plugin.join(FILE)).unwrap();
        add(plugin, Path::new("/w/1")).unwrap_err();
        std::fs::remove_dir(plugin.join(FILE)).unwrap();
        std::fs::write(plugin.join(FILE), "\"/w/a b\"\nnot JSON\n\"/w/x\\ny\"\n").unwrap();
        add(plugin, Path::new("/w/a b")).unwrap();
        add(plugin, Path::new("/w/1")).unwrap();
        add(plugin, Path::new("/w/1")).unwrap();
        let listed = list(plugin).unwrap();
        assert_eq!(listed, ["/w/a b", "/w/x\ny", "/w/1"].map(PathBuf::from));
        // A list that was removed, and a directory that was missing before.
        std::fs::remove_file(plugin.join(FILE)).unwrap();
        add(plugin, Path::new("/w/1")).unwrap();
        add(plugin, Path::new("/w/0")).unwrap();
        assert_eq!(list(plugin).unwrap(), ["/w/1", "/w/0"].map(PathBuf::from));
        let many: Vec<u8> = (0..80_000)
            .flat_map(|number| line(Path::new(&format!("/other/{number}"))).unwrap())
            .collect();
        std::fs::write(plugin.join(FILE), many).unwrap();
        add(plugin, Path::new("/w/2")).unwrap();
        let listed = list(plugin).unwrap();
        assert_eq!(listed.len(), 40_001);
        assert_eq!(listed[0], Path::new("/other/40000"));
        assert_eq!(listed[40_000], Path::new("/w/2"));
    }
}
