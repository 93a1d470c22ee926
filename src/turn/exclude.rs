//! Keeps the plugin's files out of the workspace's git repository: an agent's `git add -A` would commit the session
//! file, and a clone would then carry on the agent's thread.
//!
//! They are listed in the repository's `info/exclude`, which is never committed. The repository is found as git finds
//! it; nothing is created outside one, and writes follow no symbolic link.

use super::session;
use crate::os::{Directory, open_regular_file, user_id};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Longer exclude files are left unchanged.
const MAX_EXCLUDE_BYTES: u64 = 1 << 20;
/// How much of a `.git` file or a `commondir` is read; each contains a path.
const MAX_POINTER_BYTES: u64 = 8 << 10;

/// Lists the plugin's files in the repository that contains `workspace`, if there is one and they are not listed yet.
///
/// # Errors
/// The operating system's, or the repository or its exclude file is not usable. The turn does not depend on it.
pub(super) fn exclude_own_files(workspace: &Path) -> io::Result<()> {
    let ceilings = std::env::var_os("GIT_CEILING_DIRECTORIES").unwrap_or_default();
    let ceilings: Vec<PathBuf> = std::env::split_paths(&ceilings).collect();
    let Some(repository) = find_repository(workspace, &ceilings)? else {
        return Ok(());
    };
    let found = std::fs::symlink_metadata(&repository)?;
    if !found.is_dir() || found.uid() != user_id() {
        let what = format!(
            "'{}' is not a directory owned by this user",
            repository.display()
        );
        return Err(io::Error::other(what));
    }
    let repository = Directory::open(&repository)?;
    let info = match repository.directory("info") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            repository.create_directory("info")?;
            repository.directory("info")?
        }
        opened => opened?,
    };
    let mut file = info.append("exclude")?;
    let found = file.metadata()?;
    if !found.is_file() || found.len() > MAX_EXCLUDE_BYTES {
        return Err(io::Error::other("info/exclude is not a short regular file"));
    }
    let mut listed = Vec::new();
    (&mut file)
        .take(MAX_EXCLUDE_BYTES)
        .read_to_end(&mut listed)?;
    let pattern = format!("{}*", session::FILE);
    if listed
        .split(|byte| *byte == b'\n')
        .any(|line| line.trim_ascii_end() == pattern.as_bytes())
    {
        return Ok(());
    }
    // The last line may lack its line end.
    let separator = match listed.last() {
        None | Some(b'\n') => "",
        Some(_) => "\n",
    };
    // A single append: two concurrent turns may add a duplicate, but lose nothing.
    file.write_all(format!("{separator}{pattern}\n").as_bytes())
}

/// The repository's common directory, searched as git does: from `workspace` upwards, below the `ceilings`.
fn find_repository(workspace: &Path, ceilings: &[PathBuf]) -> io::Result<Option<PathBuf>> {
    for directory in workspace.ancestors() {
        if directory != workspace && ceilings.iter().any(|ceiling| ceiling == directory) {
            break;
        }
        let entry = directory.join(".git");
        let Ok(found) = std::fs::symlink_metadata(&entry) else {
            continue;
        };
        if found.uid() != user_id() {
            // It may point to a repository of this user. git rejects it, too.
            return Ok(None);
        }
        let repository = if found.is_dir() {
            entry
        } else if found.is_file() {
            // A worktree or a submodule.
            let text = read_pointer(&entry)?;
            let Some(path) = text.strip_prefix("gitdir:") else {
                continue;
            };
            directory.join(path.trim())
        } else {
            continue;
        };
        if !repository.join("HEAD").exists() {
            continue;
        }
        // A worktree has a HEAD of its own and shares the rest.
        return match read_pointer(&repository.join("commondir")) {
            Ok(common) => repository.join(common.trim()).canonicalize().map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                repository.canonicalize().map(Some)
            }
            Err(error) => Err(error),
        };
    }
    Ok(None)
}

fn read_pointer(path: &Path) -> io::Result<String> {
    let file = open_regular_file(path)?;
    let mut text = String::new();
    file.take(MAX_POINTER_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const LINE: &str = ".plexum-codex-session*\n";

    #[test]
    fn appends_missing_pattern() {
        let root = tempfile::tempdir().unwrap();
        let workspace = root.path().join("a/b");
        fs::create_dir_all(&workspace).unwrap();
        let git = root.path().join(".git");
        let exclude = git.join("info/exclude");
        exclude_own_files(&workspace).unwrap();
        assert!(!git.exists());
        fs::create_dir(&git).unwrap();
        exclude_own_files(&workspace).unwrap();
        assert!(
            !exclude.exists(),
            "a directory without HEAD is not a repository"
        );
        fs::write(git.join("HEAD"), "ref: refs/heads/main\n").unwrap();
        let ceiling = [root.path().to_owned()];
        assert_eq!(find_repository(&workspace, &ceiling).unwrap(), None);
        for (before, after) in [
            (None, LINE.to_owned()),
            (Some("# x\n*.o"), format!("# x\n*.o\n{LINE}")),
            (Some(".plexum-codex-session*"), LINE.trim_end().to_owned()),
            (Some(""), LINE.to_owned()),
        ] {
            if let Some(before) = before {
                fs::write(&exclude, before).unwrap();
            }
            exclude_own_files(&workspace).unwrap();
            assert_eq!(fs::read_to_string(&exclude).unwrap(), after);
        }
        let elsewhere = root.path().join("elsewhere");
        fs::write(&elsewhere, "precious").unwrap();
        fs::remove_file(&exclude).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &exclude).unwrap();
        assert!(exclude_own_files(&workspace).is_err());
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "precious");
    }

    #[test]
    fn ignores_repository_of_another_user() {
        if user_id() != 0 {
            // Only root can change the owner of a file.
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let git = root.path().join("precious/.git");
        fs::create_dir_all(&git).unwrap();
        fs::write(git.join("HEAD"), "").unwrap();
        let pointer = root.path().join(".git");
        fs::write(&pointer, format!("gitdir: {}\n", git.display())).unwrap();
        std::os::unix::fs::chown(&pointer, Some(61_234), None).unwrap();
        let workspace = root.path().join("a");
        fs::create_dir(&workspace).unwrap();
        exclude_own_files(&workspace).unwrap();
        assert!(!git.join("info").exists());
    }

    #[test]
    fn finds_repository_of_worktree() {
        let root = tempfile::tempdir().unwrap();
        let git = root.path().join("main/.git");
        let tree = git.join("worktrees/tree");
        let workspace = root.path().join("tree");
        fs::create_dir_all(&tree).unwrap();
        fs::create_dir(&workspace).unwrap();
        fs::write(git.join("HEAD"), "").unwrap();
        fs::write(tree.join("HEAD"), "").unwrap();
        fs::write(tree.join("commondir"), "../..\n").unwrap();
        let pointer = format!("gitdir: {}\n", tree.display());
        fs::write(workspace.join(".git"), pointer).unwrap();
        exclude_own_files(&workspace).unwrap();
        assert_eq!(fs::read_to_string(git.join("info/exclude")).unwrap(), LINE);
    }
}
