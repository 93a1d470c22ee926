//! Replaces a rollout by a patched copy, atomically.
//!
//! The copy is made next to the file, synced, and exchanged with it in one step: a reader finds the old file or the new
//! one, complete, even after a crash. A killed run leaves its copy behind, under a name that the next run removes.
//!
//! The file itself is only read, and never through a symbolic link. Whether codex permits the rewrite is for the caller
//! to check.

use super::splice::{Patch, Piece};
use crate::codex::writer_lock::open_writer;
use crate::error::{Error, Kind, Result};
use crate::os::{self, Errno};
use std::fs::{File, FileTimes, Metadata, Permissions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// How many bytes are collected before a write.
const BUFFER: usize = 64 * 1024;

/// How many bytes are copied before their writeback is started.
const PART: u64 = 8 << 20;

/// A rollout that no other run rewrites while this value lives.
#[derive(Debug)]
pub(crate) struct RolloutFile {
    path: PathBuf,
    file: File,
    before: Metadata,
}

/// The result of a replacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replaced {
    Done,
    /// The file was changed by another process meanwhile; nothing was replaced.
    Changed,
}

/// Whether the file is only read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Look,
    /// Other runs are locked out, and the copy of a killed one is removed.
    Rewrite,
}

impl RolloutFile {
    /// Opens a rollout.
    ///
    /// # Errors
    /// [`Kind::Io`] where it cannot be opened or cannot be replaced by a copy: a symbolic link, one of several hard
    /// links, not a regular file. [`Kind::Busy`] where another process rewrites it or has it open for writing.
    pub(crate) fn open(path: &Path, access: Access) -> Result<RolloutFile> {
        let refused = |why: &str| {
            Error::new(
                Kind::Io,
                format!("cannot rewrite '{}': {why}", path.display()),
            )
        };
        let open = |write| {
            let mut options = os::open_options_nofollow();
            options.read(true).write(write).open(path).map_err(|error| {
                match os::is_symlink_error(&error) {
                    true => refused("it is a symbolic link; name the file itself"),
                    false => failed("open", path)(error),
                }
            })
        };
        let mut file = open(false)?;
        let mut before = file.metadata().map_err(failed("access", path))?;
        if !before.is_file() {
            return Err(refused("it is not a regular file"));
        }
        if access == Access::Rewrite {
            if before.nlink() > 1 {
                return Err(refused(
                    "it has more than one hard link, and the others would keep the old content",
                ));
            }
            let mut locked = os::try_lock_file(&file);
            if let Err(error) = &locked
                && Errno::from_io_error(error) == Some(Errno::BADF)
            {
                // NFS grants an exclusive lock only to a descriptor open for writing.
                file = open(true)?;
                before = file.metadata().map_err(failed("access", path))?;
                locked = os::try_lock_file(&file);
            }
            if !locked.map_err(failed("lock", path))? {
                return Err(Error::new(
                    Kind::Busy,
                    format!("'{}' is being rewritten by another process", path.display()),
                ));
            }
        }
        let source = RolloutFile {
            path: path.to_owned(),
            file,
            before,
        };
        if access == Access::Rewrite {
            source.check_nobody_writes()?;
            // Only under the lock, and only while the path is still this file: otherwise the copy may be another run's.
            if source.is_unchanged()? {
                remove_leftover(&source.copy_path())?;
            }
        }
        Ok(source)
    }

    /// The file's bytes from the beginning.
    pub(crate) fn reader(&self) -> impl Read + '_ {
        // Bytes that are appended from now on are detected as a change.
        let from_start = Reader {
            file: &self.file,
            at: 0,
        };
        from_start.take(self.before.len())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a copy for [`RolloutFile::replace`]. It stays incomplete once `stops` returns true.
    ///
    /// The kernel copies, on some file systems by sharing extents. Writeback of each part is started while the next one
    /// is copied, so that little is left for the sync at the end.
    ///
    /// # Errors
    /// [`Kind::Io`]; the copy is removed then.
    pub(crate) fn copy(&self, stops: &dyn Fn() -> bool) -> Result<Copy> {
        let copy = Copy::create(self.copy_path())?;
        // The file's position is used here only; all other reads are positional.
        let mut from = &self.file;
        from.seek(SeekFrom::Start(0))
            .map_err(failed("read", &self.path))?;
        let mut done = 0;
        while done < self.before.len() && !stops() {
            let part = PART.min(self.before.len() - done);
            let copied = io::copy(&mut from.take(part), &mut &copy.file)
                .and_then(|copied| match copied {
                    0 => Err(io::ErrorKind::UnexpectedEof.into()),
                    _ => Ok(copied),
                })
                .map_err(failed("write", &copy.path))?;
            os::start_writing(&copy.file, done, copied);
            done += copied;
        }
        Ok(copy)
    }

    /// Puts the copy, with these patches, in the file's place.
    ///
    /// # Errors
    /// [`Kind::Io`], with the file unchanged, unless the directory could not be synced at the end: then the new file
    /// is in place. [`Kind::Busy`] where another process has opened the file for writing.
    pub(crate) fn replace(&self, copied: Result<Copy>, patches: &[Patch]) -> Result<Replaced> {
        let finished = copied.and_then(|copy| {
            self.finish(&copy, patches)?;
            Ok(copy)
        });
        // Before the copy's error is reported: the copy fails where the file became shorter meanwhile.
        if !self.is_unchanged()? {
            return Ok(Replaced::Changed);
        }
        let copy = finished?;
        self.check_nobody_writes()?;
        if !self.put_in_place(copy)? {
            return Ok(Replaced::Changed);
        }
        let directory = directory_of(&self.path);
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(failed("sync", directory))?;
        Ok(Replaced::Done)
    }

    /// Applies the patches, the owner, the mode and the times to the copy, and syncs it.
    fn finish(&self, copy: &Copy, patches: &[Patch]) -> Result<()> {
        let wrong = failed("write", &copy.path);
        for patch in patches {
            self.write(copy, patch).map_err(&wrong)?;
        }
        let before = &self.before;
        let now = copy.file.metadata().map_err(&wrong)?;
        if (now.uid(), now.gid()) != (before.uid(), before.gid()) {
            std::os::unix::fs::fchown(&copy.file, Some(before.uid()), Some(before.gid()))
                .map_err(failed("keep the owner of", &self.path))?;
        }
        // After the owner, whose change can clear mode bits.
        let mode = Permissions::from_mode(before.mode());
        (copy.file.set_permissions(mode)).map_err(failed("keep the mode of", &self.path))?;
        let keep_times = || {
            let times = FileTimes::new().set_accessed(before.accessed()?);
            copy.file.set_times(times.set_modified(before.modified()?))
        };
        keep_times().map_err(failed("keep the times of", &self.path))?;
        copy.file.sync_all().map_err(wrong)
    }

    fn write(&self, copy: &Copy, patch: &Patch) -> io::Result<()> {
        let mut out = PieceWriter {
            file: &copy.file,
            at: patch.at,
            buffer: Vec::new(),
        };
        for piece in &patch.pieces {
            match piece {
                Piece::Text(text) => out.push(text.as_bytes())?,
                Piece::Spaces(count) => {
                    let mut left = *count;
                    while left > 0 {
                        let some = left.min(BUFFER as u64);
                        // At most BUFFER, which is a usize.
                        out.push(&[b' '; BUFFER][..some as usize])?;
                        left -= some;
                    }
                }
                Piece::Keep(span) => {
                    let mut at = span.start;
                    let mut buffer = [0; 4096];
                    while at < span.end {
                        let some = (span.end - at).min(buffer.len() as u64) as usize;
                        self.file.read_exact_at(&mut buffer[..some], at)?;
                        out.push(&buffer[..some])?;
                        at += some as u64;
                    }
                }
            }
        }
        out.flush()
    }

    /// Exchanges the two and then checks that the old file was not changed until then: a process that opened it for
    /// appending just before writes to it under its new name, too. If it was changed they are exchanged back, nothing
    /// is lost, and the result is `false`.
    fn put_in_place(&self, mut copy: Copy) -> Result<bool> {
        let path = &self.path;
        let wrong = failed("replace", path);
        if !os::exchange(&copy.path, path).map_err(&wrong)? {
            // Not every file system supports it. A change between the last check and the rename is lost then.
            std::fs::rename(&copy.path, path).map_err(wrong)?;
            copy.persist = true;
            return Ok(true);
        }
        let now = self.file.metadata().map_err(failed("access", path))?;
        if same_text(&now, &self.before)
            && matches!(open_writer(path, (now.dev(), now.ino())), Ok(None))
        {
            // `copy` is the path of the old file now, and removes it.
            return Ok(true);
        }
        if let Err(error) = os::exchange(&copy.path, path) {
            copy.persist = true;
            return Err(wrong(error).hint(format!(
                "the data that another process has just written is in '{}'",
                copy.path.display()
            )));
        }
        Ok(false)
    }

    /// Whether the path is still the file that was opened, unchanged since.
    fn is_unchanged(&self) -> Result<bool> {
        let wrong = failed("access", &self.path);
        let now = self.file.metadata().map_err(&wrong)?;
        let there = match std::fs::symlink_metadata(&self.path) {
            Ok(there) => there,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(wrong(error)),
        };
        Ok(same_text(&now, &self.before)
            && (now.ctime(), now.ctime_nsec()) == (self.before.ctime(), self.before.ctime_nsec())
            && (there.dev(), there.ino()) == (now.dev(), now.ino()))
    }

    fn check_nobody_writes(&self) -> Result<()> {
        match open_writer(&self.path, (self.before.dev(), self.before.ino()))? {
            None => Ok(()),
            Some(pid) => Err(Error::new(
                Kind::Busy,
                format!(
                    "'{}' is open for writing in process {pid}",
                    self.path.display()
                ),
            )
            .hint("try again when it is closed")),
        }
    }

    /// The path of the copy. It is always the same, so that a killed run's copy is found without a search; codex
    /// ignores names that do not begin with `rollout-`.
    fn copy_path(&self) -> PathBuf {
        let mut name = std::ffi::OsString::from(".");
        name.push(self.path.file_name().unwrap_or_default());
        name.push(".plexum-tmp");
        self.path.with_file_name(name)
    }
}

/// Reads a file from an offset of its own, without moving the file's position.
struct Reader<'a> {
    file: &'a File,
    at: u64,
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// The copy, removed when dropped unless `persist` is set.
#[derive(Debug)]
pub(crate) struct Copy {
    path: PathBuf,
    file: File,
    persist: bool,
}

impl Copy {
    fn create(path: PathBuf) -> Result<Copy> {
        let wrong = failed("create", &path);
        // Only the owner may read it before it gets the file's mode.
        let file = os::create_private_file(&path).map_err(wrong)?;
        let copy = Copy {
            path: path.clone(),
            file,
            persist: false,
        };
        // It is about to become the rollout: another run that opens it then must wait.
        match os::try_lock_file(&copy.file).map_err(failed("lock", &path))? {
            true => Ok(copy),
            false => Err(failed("lock", &path)(Errno::WOULDBLOCK.into())),
        }
    }
}

impl Drop for RolloutFile {
    fn drop(&mut self) {
        os::unlock_file(&self.file);
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        os::unlock_file(&self.file);
        if !self.persist
            && let Err(error) = remove_leftover(&self.path)
        {
            // It does no harm, and the next run removes it.
            log::warn!("{error}");
        }
    }
}

/// Writes consecutive pieces, small ones together.
struct PieceWriter<'a> {
    file: &'a File,
    at: u64,
    buffer: Vec<u8>,
}

impl PieceWriter<'_> {
    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.buffer.len() + bytes.len() > BUFFER {
            self.flush()?;
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.at)?;
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

fn remove_leftover(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Whether length and modification time are equal. Not the change time: a rename changes it on some file systems.
fn same_text(a: &Metadata, b: &Metadata) -> bool {
    let text = |meta: &Metadata| (meta.len(), meta.mtime(), meta.mtime_nsec());
    text(a) == text(b)
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    }
}

fn failed(what: &str, path: &Path) -> impl Fn(io::Error) -> Error {
    let message = format!("cannot {what} '{}'", path.display());
    move |error| Error::os(Kind::Io, &message, error)
}
