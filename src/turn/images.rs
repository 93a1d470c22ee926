//! The images of a prompt, as files for codex's `-i`.
//!
//! codex opens a file by its path, and blocks forever if that has become a FIFO. So it only gets the plugin's copies:
//! each image is opened here without blocking, checked through its descriptor, and copied into a directory of the turn
//! in the private runtime directory. That directory is locked while it is in use; an unlocked one is left from a killed
//! plugin and is removed.
//!
//! An image that cannot be read does not fail the turn: a line of text takes its place, with a warning. Nothing is
//! fetched over the network.

use crate::error::{Error, reason};
use crate::mcp;
use crate::os::{self, CancelToken, FileLock, TryLock};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The largest image, in bytes: more than any provider accepts.
const LARGEST: u64 = 64 << 20;
/// The largest total size of a turn's images, in bytes: the runtime directory is often in memory.
const LARGEST_TOTAL: u64 = 256 << 20;
/// The prefix of the names of image directories.
const PREFIX: &str = "images-";

/// An image block of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    /// Its name for display: that of its file, a given one, or the media type.
    pub(crate) name: String,
    pub(crate) source: ImageSource,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ImageSource {
    /// A file; a relative path is below the workspace.
    Path(PathBuf),
    Data {
        base64: String,
        media_type: String,
    },
    Url(String),
    /// The block has no source.
    Missing,
}

/// The files of a turn's images. Dropping it removes them.
#[derive(Debug)]
pub(crate) struct Images<'a> {
    pub(crate) files: Vec<PathBuf>,
    workspace: &'a Path,
    runtime: PathBuf,
    cancel: &'a CancelToken,
    directory: Option<ImageDirectory>,
    total: u64,
}

/// A turn's directory in the runtime directory.
#[derive(Debug)]
struct ImageDirectory {
    // In this order: the directory is removed before its lock is released.
    path: TempDir,
    _lock: FileLock,
}

impl<'a> Images<'a> {
    /// Starts without images. Directories left from killed plugins are removed.
    pub(crate) fn new(workspace: &'a Path, profile: &Path, cancel: &'a CancelToken) -> Images<'a> {
        let runtime = runtime_directory(profile);
        sweep(&runtime);
        Images {
            files: Vec::new(),
            workspace,
            runtime,
            cancel,
            directory: None,
            total: 0,
        }
    }

    /// Stores an image in a file.
    ///
    /// # Errors
    /// The reason, for a message.
    pub(crate) fn add(&mut self, image: &Image) -> Result<(), String> {
        match &image.source {
            ImageSource::Path(path) => {
                let path = self.workspace.join(path);
                let file = open(&path)?;
                let extension = path.extension().and_then(|extension| extension.to_str());
                self.write(file, &image.name, extension.unwrap_or("img"))
            }
            ImageSource::Data { base64, media_type } => {
                self.write(&decode(base64)?[..], &image.name, extension(media_type))
            }
            ImageSource::Url(url) => {
                let (bytes, media_type) = data_url(url)?;
                self.write(&bytes[..], &image.name, extension(&media_type))
            }
            ImageSource::Missing => {
                Err("it has none of `path`, `data`, `data_base64` and `url`".to_owned())
            }
        }
    }

    /// Stores the JSON Schema for codex's last text beside the images. Returns its path.
    ///
    /// # Errors
    /// The reason, for a message.
    pub(super) fn add_schema(&mut self, schema: &str) -> Result<PathBuf, String> {
        let path = self.next_path("schema", "json")?;
        self.copy(schema.as_bytes(), &path)?;
        Ok(path)
    }

    fn write(&mut self, from: impl Read, name: &str, extension: &str) -> Result<(), String> {
        let path = self.next_path(name, extension)?;
        let copied = self.copy(from, &path);
        if let Err(why) = &copied {
            // The partial file would take space from the next image, which reports it if the removal fails.
            let _ = std::fs::remove_file(&path);
            log::debug!("no image '{}': {why}", path.display());
        }
        self.total += copied?;
        self.files.push(path);
        Ok(())
    }

    fn copy(&self, mut from: impl Read, path: &Path) -> Result<u64, String> {
        let cannot =
            |error: io::Error| format!("cannot write '{}': {}", path.display(), reason(&error));
        let mut file = os::create_private_file(path).map_err(cannot)?;
        // The umask may have removed permissions that codex needs.
        file.set_permissions(PermissionsExt::from_mode(0o600))
            .map_err(cannot)?;
        let mut part = vec![0; 64 << 10];
        let mut length = 0;
        loop {
            if self.cancel.is_cancelled() {
                return Err("the turn is cancelled".to_owned());
            }
            let read = match from.read(&mut part) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(reason(&error)),
            };
            length += read as u64;
            if length > LARGEST {
                return Err(too_large(LARGEST));
            }
            if self.total + length > LARGEST_TOTAL {
                return Err(format!(
                    "the images of the turn exceed {} MiB in total",
                    LARGEST_TOTAL >> 20
                ));
            }
            file.write_all(&part[..read]).map_err(cannot)?;
        }
        if length == 0 {
            return Err("it is empty".to_owned());
        }
        Ok(length)
    }

    /// The path of the next file. Its name shows the model which image it is (from 0.148 codex sends the path), and has
    /// no comma, since codex splits the argument at commas.
    fn next_path(&mut self, name: &str, extension: &str) -> Result<PathBuf, String> {
        let directory = match &mut self.directory {
            Some(directory) => directory,
            missing => missing
                .insert(make_directory(&self.runtime).map_err(|error| error.message().to_owned())?),
        };
        let number = self.files.len() + 1;
        let stem = match Path::new(name).file_stem().and_then(|stem| stem.to_str()) {
            Some(stem) if !name.contains('/') => format!("-{}", safe_name(stem, 40)),
            _ => String::new(),
        };
        let extension = safe_name(extension, 10);
        Ok(directory
            .path
            .path()
            .join(format!("{number}{stem}.{extension}")))
    }
}

/// The parent of the image directories: that of the sockets, unless its path has a comma, at which codex would split.
fn runtime_directory(profile: &Path) -> PathBuf {
    let directory = mcp::runtime_place(mcp::runtime_dir().as_deref(), profile);
    if directory.as_os_str().as_bytes().contains(&b',') {
        return mcp::short_runtime_place();
    }
    directory
}

/// Creates the directory of a turn's images, private and locked.
fn make_directory(runtime: &Path) -> Result<ImageDirectory, Error> {
    // Another process's sweep must not find it before it is locked.
    let _runtime_lock = mcp::lock_runtime_directory(runtime)?;
    let cannot = |error: io::Error| {
        Error::os(
            crate::error::Kind::Io,
            format!("cannot make a directory in '{}'", runtime.display()),
            error,
        )
    };
    let private = std::fs::Permissions::from_mode(0o700);
    let path = tempfile::Builder::new()
        .prefix(PREFIX)
        .permissions(private.clone())
        .tempdir_in(runtime)
        .map_err(cannot)?;
    // The umask may have removed permissions.
    std::fs::set_permissions(path.path(), private).map_err(cannot)?;
    match os::try_lock_directory(path.path()).map_err(cannot)? {
        TryLock::Held(lock) => Ok(ImageDirectory { path, _lock: lock }),
        TryLock::Busy => Err(cannot(os::Errno::WOULDBLOCK.into())),
    }
}

/// Removes the directories left from killed plugins. Those of running plugins are locked.
fn sweep(runtime: &Path) {
    let directories = || {
        let entries = std::fs::read_dir(runtime).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_name().as_bytes().starts_with(PREFIX.as_bytes()))
    };
    if directories().next().is_none() {
        return;
    }
    // The next turn tries again. Creating a directory reports the error.
    let Ok(_runtime_lock) = mcp::lock_runtime_directory(runtime) else {
        return;
    };
    for entry in directories() {
        let path = entry.path();
        if let Ok(TryLock::Held(_lock)) = os::try_lock_directory(&path) {
            log::debug!(
                "removing the leftovers of a killed plugin: '{}'",
                path.display()
            );
            // The next turn tries again to remove what is left.
            let _ = std::fs::remove_dir_all(&path);
        }
    }
}

/// Opens an image that is a regular file, without blocking on anything else.
///
/// A symbolic link is followed only if it belongs to this user or root: other users who can write to the image's
/// directory must not choose which of this user's files is sent to the model.
fn open(path: &Path) -> Result<File, String> {
    let found = std::fs::symlink_metadata(path).map_err(|error| reason(&error))?;
    let user = os::user_id();
    let target = if !found.is_symlink() {
        path.to_owned()
    } else if found.uid() == user || found.uid() == 0 {
        path.canonicalize().map_err(|error| reason(&error))?
    } else {
        return Err(format!(
            "it is a symbolic link that belongs to user {}",
            found.uid()
        ));
    };
    // Checked before the open too: opening a device can have side effects.
    let found = std::fs::symlink_metadata(&target).map_err(|error| reason(&error))?;
    if !found.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    let file = match os::open_options_nofollow().read(true).open(&target) {
        Ok(file) => file,
        Err(error) if os::is_symlink_error(&error) => {
            return Err("it has become a symbolic link".to_owned());
        }
        Err(error) => return Err(reason(&error)),
    };
    // The path may have been replaced since; the open file cannot be.
    let found = file.metadata().map_err(|error| reason(&error))?;
    if !found.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    if found.len() > LARGEST {
        return Err(too_large(LARGEST));
    }
    Ok(file)
}

fn too_large(most: u64) -> String {
    format!("it is larger than {} MiB", most >> 20)
}

/// A name with only characters that are safe in codex's arguments, at most `longest` of them.
fn safe_name(name: &str, longest: usize) -> String {
    name.chars()
        .take(longest)
        .map(|char| match char {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' | '.' => char,
            _ => '_',
        })
        .collect()
}

/// The usual extension of a media type.
fn extension(media_type: &str) -> &'static str {
    match media_type.split(';').next().unwrap_or_default().trim() {
        "image/jpeg" | "image/jpg" => "jpg",
        "image/gif" => "gif",
        "image/webp" => "webp",
        "image/bmp" => "bmp",
        "image/svg+xml" => "svg",
        _ => "png",
    }
}

/// Decodes a `data:` URL into its bytes and media type.
fn data_url(url: &str) -> Result<(Vec<u8>, String), String> {
    let Some(rest) = url
        .get(..5)
        .filter(|scheme| scheme.eq_ignore_ascii_case("data:"))
        .map(|_| &url[5..])
    else {
        return Err("only data: URLs are supported, nothing is fetched".to_owned());
    };
    let (head, data) = rest.split_once(',').ok_or("a data: URL without a comma")?;
    let mut parts = head.split(';');
    let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
    let data = percent_decoded(data);
    let bytes = if parts.any(|part| part.eq_ignore_ascii_case("base64")) {
        decode(std::str::from_utf8(&data).map_err(|_| "invalid base64")?)?
    } else {
        data
    };
    Ok((bytes, media_type))
}

fn percent_decoded(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, more @ ..] = rest {
        let hex = |at: usize| more.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        if let (b'%', Some(high), Some(low)) = (first, hex(0), hex(1)) {
            bytes.push((high * 16 + low) as u8);
            rest = &more[2..];
        } else {
            bytes.push(*first);
            rest = more;
        }
    }
    bytes
}

/// Decodes base64 in the standard or the URL-safe alphabet, padded or not; white space is skipped.
fn decode(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 3);
    let mut group = 0u32;
    let mut digits = 0;
    let mut padding = 0;
    for byte in text.bytes() {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            b'=' => {
                padding += 1;
                continue;
            }
            b' ' | b'\t' | b'\r' | b'\n' => continue,
            _ => return Err("invalid base64".to_owned()),
        };
        if padding > 0 {
            return Err("invalid base64".to_owned());
        }
        group = group << 6 | u32::from(digit);
        digits += 1;
        if digits == 4 {
            bytes.extend_from_slice(&group.to_be_bytes()[1..]);
            (group, digits) = (0, 0);
        }
    }
    let left = match digits {
        0 => 0,
        2 => 1,
        3 => 2,
        _ => return Err("invalid base64".to_owned()),
    };
    if padding > 0 && padding != (4 - digits) % 4 {
        return Err("invalid base64".to_owned());
    }
    let group = group << ((6 * (4 - digits)) % 24);
    bytes.extend_from_slice(&group.to_be_bytes()[1..=left]);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_base64() {
        for (text, bytes) in [
            ("", &b""[..]),
            ("aGk=", b"hi"),
            ("aGk", b"hi"),
            ("aGkh", b"hi!"),
            ("aA==", b"h"),
            ("aG\nkh aGkh", b"hi!hi!"),
            ("_-8=", b"\xff\xef"),
            ("/+8=", b"\xff\xef"),
        ] {
            assert_eq!(decode(text).as_deref(), Ok(bytes), "{text}");
        }
        for text in ["a", "a===", "aGk=aGk=", "aG*k", "aGk==", "====", "é"] {
            assert!(decode(text).is_err(), "{text}");
        }
    }

    #[test]
    fn accepts_only_data_urls() {
        assert_eq!(
            data_url("data:image/gif;base64,aGk%3D"),
            Ok((b"hi".to_vec(), "image/gif".to_owned()))
        );
        assert_eq!(
            data_url("DATA:,a%20b%"),
            Ok((b"a b%".to_vec(), String::new()))
        );
        for url in [
            "https://example.org/a.png",
            "data:image/png",
            "data",
            "",
            "é",
        ] {
            assert!(data_url(url).is_err(), "{url}");
        }
    }

    struct TestDirectory {
        root: TempDir,
        cancel: CancelToken,
    }

    impl TestDirectory {
        fn new() -> TestDirectory {
            TestDirectory {
                root: tempfile::tempdir().unwrap(),
                cancel: CancelToken::new().unwrap(),
            }
        }

        /// Like [`Images::new`], but independent of the environment.
        fn images(&self) -> Images<'_> {
            let runtime = self.root.path().join("run");
            sweep(&runtime);
            Images {
                runtime,
                ..Images::new(self.root.path(), self.root.path(), &self.cancel)
            }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.root.path().join(name)
        }

        fn entries(&self) -> usize {
            std::fs::read_dir(self.path("run")).map_or(0, Iterator::count)
        }
    }

    fn image_at(path: &str) -> Image {
        Image {
            name: path.to_owned(),
            source: ImageSource::Path(path.into()),
        }
    }

    fn data() -> Image {
        Image {
            name: "image/jpeg".to_owned(),
            source: ImageSource::Data {
                base64: "aGk=".into(),
                media_type: "image/jpeg".into(),
            },
        }
    }

    // fault: 100
    #[test]
    fn stores_images_in_private_files() {
        let directory = TestDirectory::new();
        std::fs::write(directory.path("a,b \u{e9}.png"), "pixels").unwrap();
        let mut images = directory.images();
        assert_eq!(images.add(&image_at("a,b \u{e9}.png")), Ok(()));
        assert_eq!(images.add(&data()), Ok(()));
        for (image, why) in [
            (image_at("none.png"), "No such file or directory"),
            (image_at("."), "it is not a regular file"),
            (
                Image {
                    name: "x".to_owned(),
                    source: ImageSource::Url("http://x/".into()),
                },
                "only data: URLs are supported, nothing is fetched",
            ),
        ] {
            assert_eq!(images.add(&image), Err(why.to_owned()));
        }
        let files = images.files.clone();
        let names: Vec<_> = files
            .iter()
            .map(|file| file.file_name().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(names, ["1-a_b__.png", "2.jpg"]);
        assert_eq!(std::fs::read(&files[0]).unwrap(), b"pixels");
        assert_eq!(std::fs::read(&files[1]).unwrap(), b"hi");
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        for file in &files {
            assert_eq!(mode(file), 0o600);
            assert_eq!(mode(file.parent().unwrap()), 0o700);
        }
        assert_eq!(mode(&directory.path("run")), 0o700);
        drop(images);
        assert_eq!(directory.entries(), 0);
    }

    // fault: 100
    #[test]
    fn removes_images_of_killed_plugins_only() {
        let directory = TestDirectory::new();
        let mut running = directory.images();
        running.add(&data()).unwrap();
        let killed = directory.path("run/images-dead");
        std::fs::create_dir(&killed).unwrap();
        std::fs::write(killed.join("1.png"), "private").unwrap();
        std::fs::write(directory.path("run/images-file"), "not ours").unwrap();
        let _other = directory.images();
        assert!(!killed.exists());
        assert!(running.files[0].exists());
        assert!(directory.path("run/images-file").exists());
    }

    // fault: 107
    #[test]
    fn rejects_images_that_are_not_regular_files() {
        let directory = TestDirectory::new();
        let fifo = directory.path("fifo.png");
        os::make_fifo(&fifo);
        std::fs::write(directory.path("real.png"), "pixels").unwrap();
        std::fs::write(directory.path("empty.png"), "").unwrap();
        File::create(directory.path("large.png"))
            .unwrap()
            .set_len(LARGEST + 1)
            .unwrap();
        for (target, link) in [
            ("real.png", "link.png"),
            ("fifo.png", "pipe.png"),
            ("/dev/zero", "zero.png"),
            ("loop.png", "loop.png"),
        ] {
            std::os::unix::fs::symlink(target, directory.path(link)).unwrap();
        }
        let mut images = directory.images();
        for (name, why) in [
            ("fifo.png", Some("it is not a regular file")),
            ("/dev/zero", Some("it is not a regular file")),
            ("/dev/tty", Some("it is not a regular file")),
            ("pipe.png", Some("it is not a regular file")),
            ("zero.png", Some("it is not a regular file")),
            ("empty.png", Some("it is empty")),
            ("large.png", Some("it is larger than 64 MiB")),
            ("link.png", None),
            ("real.png", None),
        ] {
            let added = images.add(&image_at(name));
            assert_eq!(added.err().as_deref(), why, "{name}");
        }
        assert!(images.add(&image_at("loop.png")).is_err());
        // A file that replaces an image afterwards does not reach codex.
        std::fs::remove_file(directory.path("real.png")).unwrap();
        std::fs::rename(&fifo, directory.path("real.png")).unwrap();
        assert_eq!(std::fs::read(&images.files[1]).unwrap(), b"pixels");
    }

    #[test]
    fn cancelled_turn_copies_no_images() {
        let directory = TestDirectory::new();
        directory.cancel.cancel();
        let mut images = directory.images();
        assert_eq!(images.add(&data()), Err("the turn is cancelled".to_owned()));
        assert!(images.files.is_empty());
    }
}
