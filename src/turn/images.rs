//! Images of a prompt, as files that codex can be given with `-i`.
//!
//! One that cannot be had does not fail the turn: it becomes a line of text in its place and a warning. Nothing
//! is fetched from anywhere.

use crate::error::reason;
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// An image block of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    /// What people call it: its file's name, or what it was given as.
    pub(crate) name: String,
    pub(crate) source: Source,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A file; a relative path is one in the workspace.
    Path(PathBuf),
    /// Base64, and the media type.
    Data { base64: String, media_type: String },
    /// A URL.
    Url(String),
    /// The block did not say where the image is.
    Nothing,
}

/// The files of a turn's images. Those that were written for it are removed with it.
#[derive(Debug, Default)]
pub(crate) struct Images {
    pub(crate) files: Vec<PathBuf>,
    folder: Option<TempDir>,
}

impl Images {
    /// Makes a file of an image.
    ///
    /// # Errors
    /// Why it cannot be had, in words.
    pub(crate) fn add(&mut self, image: &Image, workspace: &Path) -> Result<(), String> {
        let file = match &image.source {
            Source::Path(path) => self.linked(readable(&workspace.join(path))?)?,
            Source::Data { base64, media_type } => self.written(&decode(base64)?, media_type)?,
            Source::Url(url) => {
                let (bytes, media_type) = data_url(url)?;
                self.written(&bytes, &media_type)?
            }
            Source::Nothing => {
                return Err("it has none of `path`, `data`, `data_base64` and `url`".to_owned());
            }
        };
        self.files.push(file);
        Ok(())
    }

    /// A path that codex's `-i` takes for one file: it splits its value at commas, so a path that has one is
    /// reached through a link that has none.
    fn linked(&mut self, path: PathBuf) -> Result<PathBuf, String> {
        if !path.as_os_str().as_bytes().contains(&b',') {
            return Ok(path);
        }
        let extension = path
            .extension()
            .and_then(|extension| extension.to_str())
            .filter(|extension| extension.chars().all(|char| char.is_ascii_alphanumeric()))
            .unwrap_or("img")
            .to_owned();
        let link = self.next_name(&extension)?;
        std::os::unix::fs::symlink(&path, &link).map_err(|error| reason(&error))?;
        Ok(link)
    }

    fn written(&mut self, bytes: &[u8], media_type: &str) -> Result<PathBuf, String> {
        if bytes.is_empty() {
            return Err("it is empty".to_owned());
        }
        let extension = match media_type.split(';').next().unwrap_or_default().trim() {
            "image/jpeg" | "image/jpg" => "jpg",
            "image/gif" => "gif",
            "image/webp" => "webp",
            "image/bmp" => "bmp",
            "image/svg+xml" => "svg",
            _ => "png",
        };
        let path = self.next_name(extension)?;
        let written = File::create_new(&path).and_then(|mut file| file.write_all(bytes));
        written.map_err(|error| {
            // What there is of it would take the room and the name of the next one, which says so if it stays.
            let _ = std::fs::remove_file(&path);
            format!("cannot write '{}': {}", path.display(), reason(&error))
        })?;
        Ok(path)
    }

    fn next_name(&mut self, extension: &str) -> Result<PathBuf, String> {
        let folder = match &mut self.folder {
            Some(folder) => folder,
            none => {
                // tempfile makes it with mode 0700.
                let made = tempfile::Builder::new()
                    .prefix("plexum-openai-images-")
                    .tempdir()
                    .map_err(|error| {
                        format!("cannot make a temporary folder: {}", reason(&error))
                    })?;
                if made.path().as_os_str().as_bytes().contains(&b',') {
                    return Err(
                        "the temporary folder's path has a comma, which codex splits it at"
                            .to_owned(),
                    );
                }
                none.insert(made)
            }
        };
        Ok(folder
            .path()
            .join(format!("{}.{extension}", self.files.len() + 1)))
    }
}

/// An absolute path to a regular file that can be read, or why it is none.
fn readable(path: &Path) -> Result<PathBuf, String> {
    let metadata = std::fs::metadata(path).map_err(|error| reason(&error))?;
    if !metadata.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    if metadata.len() == 0 {
        return Err("it is empty".to_owned());
    }
    File::open(path).map_err(|error| reason(&error))?;
    Ok(path.to_owned())
}

/// The bytes and the media type of a `data:` URL.
fn data_url(url: &str) -> Result<(Vec<u8>, String), String> {
    let Some(rest) = url
        .get(..5)
        .filter(|scheme| scheme.eq_ignore_ascii_case("data:"))
        .map(|_| &url[5..])
    else {
        return Err("only data: URLs are taken, nothing is fetched".to_owned());
    };
    let (head, data) = rest.split_once(',').ok_or("a data: URL without a comma")?;
    let mut parts = head.split(';');
    let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
    let data = percent_decoded(data);
    let bytes = if parts.any(|part| part.eq_ignore_ascii_case("base64")) {
        decode(std::str::from_utf8(&data).map_err(|_| "bad base64")?)?
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

/// Base64, the usual alphabet or the one for URLs, padded or not, white space in it passed over.
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
            _ => return Err("bad base64".to_owned()),
        };
        if padding > 0 {
            return Err("bad base64".to_owned());
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
        _ => return Err("bad base64".to_owned()),
    };
    if padding > 0 && padding != (4 - digits) % 4 {
        return Err("bad base64".to_owned());
    }
    let group = group << ((6 * (4 - digits)) % 24);
    bytes.extend_from_slice(&group.to_be_bytes()[1..=left]);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_decoded() {
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
    fn data_urls_are_taken_and_no_others() {
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

    #[test]
    fn images_become_files_and_go_again() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a,b.png"), "pixels").unwrap();
        std::fs::write(folder.path().join("plain.png"), "pixels").unwrap();
        let mut images = Images::default();
        let image = |source| Image {
            name: "x".to_owned(),
            source,
        };
        images
            .add(&image(Source::Path("plain.png".into())), folder.path())
            .unwrap();
        images
            .add(&image(Source::Path("a,b.png".into())), folder.path())
            .unwrap();
        images
            .add(
                &image(Source::Data {
                    base64: "aGk=".into(),
                    media_type: "image/jpeg".into(),
                }),
                folder.path(),
            )
            .unwrap();
        assert!(
            images
                .add(&image(Source::Path("none.png".into())), folder.path())
                .is_err()
        );
        assert!(
            images
                .add(&image(Source::Path(".".into())), folder.path())
                .is_err()
        );
        assert!(
            images
                .add(&image(Source::Url("http://x/".into())), folder.path())
                .is_err()
        );
        let files = images.files.clone();
        assert_eq!(files.len(), 3);
        assert_eq!(files[0], folder.path().join("plain.png"));
        assert_eq!(std::fs::read(&files[1]).unwrap(), b"pixels");
        assert_eq!(std::fs::read(&files[2]).unwrap(), b"hi");
        assert!(
            files
                .iter()
                .all(|file| !file.to_str().unwrap().contains(','))
        );
        drop(images);
        assert!(!files[1].exists() && !files[2].exists() && files[0].exists());
    }
}
