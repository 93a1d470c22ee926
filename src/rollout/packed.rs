//! Reading a rollout that codex has packed as `.jsonl.zst`, by way of the program `zstd`.
//!
//! A packed file of a few kilobytes can hold more than any disk: no more than [`LONGEST`] bytes are taken from it.

use crate::error::{Error, Kind, Result, reason};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

/// How much is read of what was packed: codex's own rollouts are smaller by far.
const LONGEST: u64 = 4 << 30;

/// What a packed file has in it. Dropping it ends the program that unpacks.
pub(crate) struct Unpacked {
    child: Child,
    out: Capped<ChildStdout>,
}

impl Unpacked {
    /// Begins to unpack.
    ///
    /// # Errors
    /// [`Kind::Io`] where there is no `zstd`, or it cannot be started.
    pub(crate) fn new(packed: File, path: &Path) -> Result<Unpacked> {
        let failed = |error: io::Error| {
            let what = format!("'{}' is packed, and 'zstd' unpacks it", path.display());
            match error.kind() {
                io::ErrorKind::NotFound => {
                    Error::new(Kind::Io, format!("{what}, which is not in PATH"))
                        .hint("install zstd, or resume the thread: codex unpacks its rollout then")
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
        // The end of the pipe is one of the file only where zstd says so.
        if read == 0 && !buffer.is_empty() && !self.child.wait()?.success() {
            return Err(io::Error::other(
                "it is packed, and damaged: zstd cannot unpack all of it",
            ));
        }
        Ok(read)
    }
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        // It has ended, or nobody wants more of it; that it cannot be ended any more is fine.
        let _ = self.child.kill();
        if let Err(error) = self.child.wait() {
            log::debug!("cannot wait for zstd: {}", reason(&error));
        }
    }
}

/// A reader that gives so many bytes and then an error where there are more.
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
                    "it is packed and has more than 4 GiB in it, and the rest is not read",
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
