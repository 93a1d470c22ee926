//! `CODEX_HOME`: where the rollout of a thread is.
//!
//! A rollout is `sessions/YYYY/MM/DD/rollout-<local time>-<id>.jsonl`, or directly in `archived_sessions/`. Thread ids
//! are UUIDs of version 7, whose first 48 bits are the time of creation in milliseconds, so the directory follows from
//! the id: three directories are listed, however many sessions there are. Only a thread that is in none of them (an
//! older codex's id, a directory that was moved) needs a recursive search.

use crate::error::{Error, Kind, Result};
use crate::timestamp;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Whether this is a thread id: a UUID in its usual form (8-4-4-4-12 hexadecimal digits).
///
/// Nothing else may reach codex's command line or a path: `exec resume` takes `-c…` as a flag that runs a program, and
/// an id that is not a UUID as a new thread.
pub(crate) fn is_thread_id(id: &str) -> bool {
    id.len() == 36
        && id.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// The rollout of `thread`; `None` where there is none.
///
/// It is not opened, and can disappear at any time.
///
/// # Errors
/// [`Kind::Params`] where `thread` is not a thread id; [`Kind::Io`] where a directory cannot be listed, or there are
/// several rollouts; [`Kind::Busy`] where codex has compressed it as `.jsonl.zst`, which it decompresses when the
/// thread is resumed.
pub(crate) fn find_rollout(home: &Path, thread: &str) -> Result<Option<PathBuf>> {
    match find_rollout_or_packed(home, thread)? {
        Some(path) if is_packed(&path) => Err(packed(&path)),
        found => Ok(found),
    }
}

/// The rollout of `thread`, compressed or not; `None` where there is none.
///
/// # Errors
/// [`Kind::Params`] and [`Kind::Io`] as [`find_rollout`].
pub(crate) fn find_rollout_or_packed(home: &Path, thread: &str) -> Result<Option<PathBuf>> {
    only(thread, find_rollouts(home, thread)?)
}

/// All rollouts of `thread`, of which there should be one. A compressed one beside the same one uncompressed is left
/// out.
///
/// # Errors
/// [`Kind::Params`] and [`Kind::Io`] as [`find_rollout`].
pub(crate) fn find_rollouts(home: &Path, thread: &str) -> Result<Vec<PathBuf>> {
    if !is_thread_id(thread) {
        return Err(Error::new(
            Kind::Params,
            format!("'{thread}' is not a thread id: expected a UUID"),
        ));
    }
    let search = RolloutSearch::new(thread);
    let sessions = home.join("sessions");
    let mut found = Vec::new();
    // All three days, though the first usually has it: a second rollout must be reported, not ignored.
    for (year, month, day) in days_of(thread) {
        search.add_from_directory(
            &sessions.join(format!("{year:04}/{month:02}/{day:02}")),
            &mut found,
        )?;
    }
    if found.is_empty() {
        search.add_from_directory(&home.join("archived_sessions"), &mut found)?;
    }
    if found.is_empty() {
        search.add_recursively(&sessions, 3, &mut found)?;
    }
    found.sort_unstable();
    // `….jsonl` is sorted right before `….jsonl.zst`.
    found.dedup_by(|next, path| is_packed(next) && next.with_extension("") == *path);
    Ok(found)
}

/// The only rollout among these.
fn only(thread: &str, mut found: Vec<PathBuf>) -> Result<Option<PathBuf>> {
    if found.len() > 1 {
        let names: Vec<_> = found
            .iter()
            .map(|path| format!("'{}'", path.display()))
            .collect();
        return Err(Error::new(
            Kind::Io,
            format!(
                "thread {thread} has more than one rollout: {}",
                names.join(", ")
            ),
        )
        .hint("move away the ones that codex did not write"));
    }
    Ok(found.pop())
}

/// Whether codex has compressed this rollout.
pub(crate) fn is_packed(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "zst")
}

fn packed(path: &Path) -> Error {
    Error::new(
        Kind::Busy,
        format!("the rollout '{}' is compressed", path.display()),
    )
    .hint("codex decompresses it when the thread is resumed: try again after the next turn")
}

/// Whether codex has archived this rollout.
pub(crate) fn is_archived(rollout: &Path) -> bool {
    let directory = rollout.parent().and_then(Path::file_name);
    directory == Some(OsStr::new("archived_sessions"))
}

/// When an id was created, in milliseconds since 1970; `None` unless it is a UUID of version 7.
pub(crate) fn time_of_id(id: &str) -> Option<u64> {
    if !is_thread_id(id) || id.as_bytes().get(14) != Some(&b'7') {
        return None;
    }
    u64::from_str_radix(&format!("{}{}", &id[..8], &id[9..13]), 16).ok()
}

/// By how many seconds codex's local time was ahead of UTC when it created this rollout: the name has the local time,
/// the id the UTC time.
pub(crate) fn local_offset(rollout: &Path) -> Option<i64> {
    const QUARTER: i64 = 15 * 60;
    let name = rollout.file_name()?.to_str()?.strip_prefix("rollout-")?;
    let (date, rest) = name.split_at_checked(19)?;
    let made = i64::try_from(time_of_id(rest.get(1..37)?)? / 1000).ok()?;
    let (day, time) = date.split_once('T')?;
    let local = timestamp::parse(&format!("{day}T{}", time.replace('-', ":")))?;
    let ahead = i64::try_from(local / 1000).ok()? - made;
    // Rounded to quarters of an hour: the name is made a moment after the id.
    Some((ahead + QUARTER / 2).div_euclid(QUARTER) * QUARTER)
}

/// The rollouts of threads that were created since this time, in milliseconds since 1970, with their threads; from the
/// days around that of `thread` and today. Directories that cannot be listed are ignored.
pub(crate) fn rollouts_since(home: &Path, thread: &str, since: u64) -> Vec<(String, PathBuf)> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let today = now.map_or(0, |now| now.as_secs() / 86_400);
    let today = i64::try_from(today).unwrap_or_default();
    let mut days: Vec<_> = days_of(thread).collect();
    days.extend([today - 1, today, today + 1].map(timestamp::date_of_day));
    days.sort_unstable();
    days.dedup();
    let mut found = Vec::new();
    for (year, month, day) in days {
        let directory = home.join(format!("sessions/{year:04}/{month:02}/{day:02}"));
        for (name, _) in entries(&directory).unwrap_or_default() {
            let path = directory.join(name);
            if let Some(thread) = thread_of(&path)
                && time_of_id(&thread).is_some_and(|made| made >= since)
            {
                found.push((thread, path));
            }
        }
    }
    found
}

/// The thread of a rollout, by its file name: the UUID at the end of `rollout-…-<id>.jsonl`, in lower case.
pub(crate) fn thread_of(path: &Path) -> Option<String> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".jsonl")?;
    let start = stem.len().checked_sub(36)?;
    let id = stem.get(start..)?;
    (stem.starts_with("rollout-") && is_thread_id(id)).then(|| id.to_ascii_lowercase())
}

/// The codex home of a rollout: the directory above `sessions` or `archived_sessions`.
pub(crate) fn home_of(rollout: &Path) -> Option<&Path> {
    rollout
        .ancestors()
        .skip(1)
        .take(5)
        .find(|directory| {
            matches!(
                directory.file_name().and_then(OsStr::to_str),
                Some("sessions" | "archived_sessions")
            )
        })
        .and_then(Path::parent)
}

/// The names that the rollout of a thread can have.
struct RolloutSearch {
    plain: String,
    packed: String,
}

impl RolloutSearch {
    fn new(thread: &str) -> RolloutSearch {
        let id = thread.to_ascii_lowercase();
        RolloutSearch {
            plain: format!("-{id}.jsonl"),
            packed: format!("-{id}.jsonl.zst"),
        }
    }

    /// Whether this is `rollout-YYYY-MM-DDTHH-MM-SS-<id>.jsonl`, compressed or not. codex gives no other names.
    fn matches(&self, name: &OsStr) -> bool {
        const TIME: &[u8] = b"0000-00-00T00-00-00";
        let Some(name) = name.to_str() else {
            return false;
        };
        let time = name.strip_prefix("rollout-").and_then(|name| {
            name.strip_suffix(&self.plain)
                .or_else(|| name.strip_suffix(&self.packed))
        });
        time.is_some_and(|time| {
            time.len() == TIME.len()
                && time.bytes().zip(TIME).all(|(byte, form)| match form {
                    b'0' => byte.is_ascii_digit(),
                    _ => byte == *form,
                })
        })
    }

    /// Adds the rollouts in this directory.
    fn add_from_directory(&self, directory: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
        self.add_matching(directory, &entries(directory)?, found);
        Ok(())
    }

    fn add_matching(
        &self,
        directory: &Path,
        entries: &[(OsString, fs::FileType)],
        found: &mut Vec<PathBuf>,
    ) {
        let names = entries.iter().map(|(name, _)| name);
        found.extend(
            names
                .filter(|name| self.matches(name))
                .map(|name| directory.join(name)),
        );
    }

    /// Adds those in this directory and `depth` levels below it: codex nests them by year, month and day. The limit
    /// also ends loops of symbolic links.
    fn add_recursively(
        &self,
        directory: &Path,
        depth: usize,
        found: &mut Vec<PathBuf>,
    ) -> Result<()> {
        let entries = entries(directory)?;
        self.add_matching(directory, &entries, found);
        if depth == 0 {
            return Ok(());
        }
        for (name, kind) in entries {
            if kind.is_dir() || kind.is_symlink() {
                self.add_recursively(&directory.join(name), depth - 1, found)?;
            }
        }
        Ok(())
    }
}

/// The names and types in a directory; none where it does not exist.
fn entries(directory: &Path) -> Result<Vec<(OsString, fs::FileType)>> {
    let failed = |error| {
        Error::os(
            Kind::Io,
            format!("cannot list '{}'", directory.display()),
            error,
        )
    };
    let listing = match fs::read_dir(directory) {
        Ok(listing) => listing,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(Vec::new());
        }
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in listing {
        let entry = entry.map_err(failed)?;
        // An entry that was removed meanwhile is ignored.
        if let Ok(kind) = entry.file_type() {
            found.push((entry.file_name(), kind));
        }
    }
    Ok(found)
}

/// The days (year, month, day) whose directory can have a thread's rollout: that of its UUID in UTC, and the ones
/// before and after, because codex uses the local date. Empty for a UUID that is not of version 7, which has no date.
fn days_of(thread: &str) -> impl Iterator<Item = (i64, u32, u32)> {
    let digits: String = thread.chars().filter(|c| *c != '-').collect();
    let day = (digits.as_bytes().get(12) == Some(&b'7'))
        .then(|| i64::from_str_radix(&digits[..12], 16).ok())
        .flatten()
        .map(|millis| millis / 86_400_000);
    day.into_iter()
        .flat_map(|day| [day, day - 1, day + 1])
        .map(timestamp::date_of_day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_only_uuids_as_thread_ids() {
        for (id, expected) in [
            ("01a1fe00-a027-7a81-b8a0-356e91ab6908", true),
            ("01A1FE00-A027-7A81-B8A0-356E91AB6908", true),
            ("67e55044-10b1-426f-9247-bb680e5fe0c8", true),
            ("", false),
            ("01a1fe00a0277a81b8a0356e91ab6908", false),
            ("01a1fe00-a027-7a81-b8a0-356e91ab690", false),
            ("01a1fe00-a027-7a81-b8a0-356e91ab69088", false),
            ("01a1fe00-a027-7a81-b8a0-356e91ab690g", false),
            ("-1a1fe00-a027-7a81-b8a0-356e91ab6908", false),
            ("-cmcp_servers.x.command=\"touch /tmp/x\"", false),
            ("01a1fe00-a027-7a81-b8a0-356e91ab690é", false),
            ("01a1fe00-a027-7a81-b8a0-356e91ab690\n", false),
            ("{1a1fe00-a027-7a81-b8a0-356e91ab690}", false),
        ] {
            assert_eq!(is_thread_id(id), expected, "{id:?}");
        }
    }

    const ID: &str = "01a1fe00-a027-7a81-b8a0-356e91ab6908"; // 2026-11-21 in UTC
    const OLD: &str = "67e55044-10b1-426f-9247-bb680e5fe0c8"; // version 4: no date

    #[test]
    fn finds_rollout_by_thread_id() {
        let own = format!("rollout-2026-11-21T12-06-56-{ID}.jsonl");
        let next = format!("rollout-2026-11-22T01-06-56-{ID}.jsonl");
        let last = format!("rollout-2026-11-20T23-06-56-{ID}.jsonl");
        let old = format!("rollout-2025-08-01T23-06-56-{OLD}.jsonl");
        let cases: &[(&str, &[String], &str, Option<usize>)] = &[
            ("nothing there", &[], ID, None),
            (
                "its own day",
                &[format!("sessions/2026/11/21/{own}")],
                ID,
                Some(0),
            ),
            (
                "an id in capitals",
                &[format!("sessions/2026/11/21/{own}")],
                "01A1FE00-A027-7A81-B8A0-356E91AB6908",
                Some(0),
            ),
            (
                "east of UTC",
                &[format!("sessions/2026/11/22/{next}")],
                ID,
                Some(0),
            ),
            (
                "west of UTC",
                &[format!("sessions/2026/11/20/{last}")],
                ID,
                Some(0),
            ),
            (
                "archived",
                &[format!("archived_sessions/{own}")],
                ID,
                Some(0),
            ),
            (
                "in use before archived",
                &[
                    format!("archived_sessions/{own}"),
                    format!("sessions/2026/11/21/{own}"),
                ],
                ID,
                Some(1),
            ),
            (
                "a directory of another day",
                &[format!("sessions/2020/01/01/{own}")],
                ID,
                Some(0),
            ),
            (
                "a decoy beside it",
                &[
                    format!("sessions/2026/11/21/{own}"),
                    format!("sessions/2026/11/21/rollout-zzz-{ID}.jsonl"),
                    format!("sessions/2026/11/21/rollout-2026-11-21T99-99-9x-{ID}.jsonl"),
                    format!("sessions/2026/11/21/rollout-{own}"),
                ],
                ID,
                Some(0),
            ),
            ("flat", &[format!("sessions/{own}")], ID, Some(0)),
            (
                "no deeper than codex goes",
                &[format!("sessions/a/b/c/d/{own}")],
                ID,
                None,
            ),
            (
                "an id without a date",
                &[format!("sessions/2025/08/01/{old}")],
                OLD,
                Some(0),
            ),
            (
                "another thread",
                &[format!("sessions/2026/11/21/{own}")],
                OLD,
                None,
            ),
            (
                "names that only look alike",
                &[
                    format!("sessions/2026/11/21/rollout-x{ID}.jsonl"),
                    format!("sessions/2026/11/21/x-{own}"),
                    format!("sessions/2026/11/21/{own}.bak"),
                ],
                ID,
                None,
            ),
            (
                "plain before packed",
                &[
                    format!("sessions/2026/11/21/{own}.zst"),
                    format!("sessions/2026/11/21/{own}"),
                ],
                ID,
                Some(1),
            ),
        ];
        for (what, files, thread, expected) in cases {
            let home = tempfile::tempdir().unwrap();
            for file in *files {
                let path = home.path().join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "").unwrap();
            }
            assert_eq!(
                find_rollout(home.path(), thread).unwrap(),
                expected.map(|at| home.path().join(&files[at])),
                "{what}"
            );
        }
    }

    #[test]
    fn lists_all_rollouts_of_one_thread() {
        let own = format!("rollout-2026-11-21T12-06-56-{ID}.jsonl");
        let later = format!("rollout-2026-11-21T12-06-57-{ID}.jsonl");
        for files in [
            [
                format!("sessions/2026/11/21/{own}"),
                format!("sessions/2026/11/21/{later}"),
            ],
            [
                format!("sessions/2026/11/21/{own}"),
                format!("sessions/2026/11/22/{own}"),
            ],
            [
                format!("sessions/2026/11/21/{own}"),
                format!("sessions/2026/11/21/{later}.zst"),
            ],
            [
                format!("sessions/2020/01/01/{own}"),
                format!("sessions/2021/01/01/{own}"),
            ],
            [
                format!("archived_sessions/{own}"),
                format!("archived_sessions/{later}"),
            ],
        ] {
            let home = tempfile::tempdir().unwrap();
            for file in &files {
                let path = home.path().join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "").unwrap();
            }
            let error = find_rollout(home.path(), ID).unwrap_err();
            let [first, second] = files.map(|file| home.path().join(file).display().to_string());
            assert_eq!(
                error.message(),
                format!(
                    "thread {ID} has more than one rollout: '{first}', '{second}'; move away the ones that codex did not write"
                )
            );
        }
    }

    #[test]
    fn recognizes_packed_rollout() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("sessions/2026/11/21");
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join(format!("rollout-2026-11-21T12-06-56-{ID}.jsonl.zst"));
        fs::write(&path, "").unwrap();
        let error = find_rollout(home.path(), ID).unwrap_err();
        assert_eq!((error.kind(), error.retryable()), (Kind::Busy, true));
        assert!(
            error
                .message()
                .contains("is compressed; codex decompresses it"),
            "{error}"
        );
        assert_eq!(find_rollout_or_packed(home.path(), ID).unwrap(), Some(path));
    }

    #[test]
    fn derives_thread_and_home_from_path() {
        let path = PathBuf::from(format!("/h/sessions/2026/11/21/rollout-2026-{ID}.jsonl"));
        assert_eq!(thread_of(&path).as_deref(), Some(ID));
        assert_eq!(home_of(&path), Some(Path::new("/h")));
        let archived = PathBuf::from(format!("/h/archived_sessions/rollout-2026-{ID}.jsonl"));
        assert_eq!(home_of(&archived), Some(Path::new("/h")));
        for strange in [
            "/x/rollout.jsonl",
            "/x/rollout-é01a1fe00-a027-7a81.jsonl",
            "/",
        ] {
            assert_eq!(thread_of(Path::new(strange)), None, "{strange}");
            assert_eq!(home_of(Path::new(strange)), None, "{strange}");
        }
    }
}
