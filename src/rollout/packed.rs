//! Reads a rollout that codex has compressed as `.jsonl.zst`, through the program `zstd`.
//!
//! A compressed file of a few kilobytes can expand without limit: at most [`LONGEST`] bytes are read from it.

use crate::error::{Error, Kind, Result, reason};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

/// The most that is read of the decompressed text, in bytes: codex's own rollouts are far smaller.
const LONGEST: u64 = 4 << 30;

/// The decompressed text. Dropping it kills and reaps `zstd`.
pub(crate) struct Unpacked {
    child: Child,
    out: Capped<ChildStdout>,
}

impl Unpacked {
    /// Starts `zstd`.
    ///
    /// # Errors
    /// [`Kind::Io`] where there is no `zstd`, or it cannot be started.
    pub(crate) fn new(packed: File, path: &Path) -> Result<Unpacked> {
        let failed = |error: io::Error| {
            let what = format!(
                "'{}' is compressed and must be read through 'zstd'",
                path.display()
            );
            match error.kind() {
                io::ErrorKind::NotFound => {
                    Error::new(Kind::Io, format!("{what}, which is not in PATH")).hint(
                        "install zstd, or resume the thread: codex then decompresses its rollout",
                    )
                }
                _ => Error::os(Kind::Io, format!("{what}, which cannot be started"), error),
            }
        };
        let mut child = Command::new("zstd")
            .args(["-q", "-dc"])
            .stdin(packed)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let out = child.stdout.take().expect("it is piped");
        Ok(Unpacked {
            child,
            out: Capped::new(out, LONGEST),
        })
    }
}

impl Read for Unpacked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.out.read(buffer)?;
        // End of file counts only if zstd exits with status 0.
        if read == 0 && !buffer.is_empty() && !self.child.wait()?.success() {
            return Err(io::Error::other(
                "it is damaged: 'zstd' cannot decompress all of it",
            ));
        }
        Ok(read)
    }
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        // Fails only where zstd has been reaped already.
        let _ = self.child.kill();
        if let Err(error) = self.child.wait() {
            log::debug!("cannot wait for zstd: {}", reason(&error));
        }
    }
}

/// A reader that returns at most `left` bytes, and then an error if there are more.
struct Capped<R> {
    input: R,
    left: u64,
}

impl<R> Capped<R> {
    fn new(input: R, most: u64) -> Capped<R> {
        Capped { input, left: most }
    }
}

impl<R: Read> Read for Capped<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        match self.left.checked_sub(read as u64) {
            Some(left) => self.left = left,
            None => {
                return Err(io::Error::other(
                    "it contains more than 4 GiB when decompressed, and the rest is not read",
                ));
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // fault: 119
    #[test]
    fn stops_unpacking_at_limit() {
        let mut text = String::new();
        Capped::new("12345".as_bytes(), 5)
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "12345");
        let more = Capped::new(io::repeat(b'x'), 100_000).read_to_end(&mut Vec::new());
        assert!(more.unwrap_err().to_string().contains("more than 4 GiB"));
    }
}
