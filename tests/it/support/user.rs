//! Users other than the one that runs the tests: what root may do, and what somebody else sees, shows nothing of what
//! people's daemons may do and see.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Once;

/// A user without rights, of no account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct User(u32);

impl User {
    /// Two users, where these tests may start programs as somebody else: only root may. Everybody else is told once,
    /// loudly, what is not tested.
    pub(crate) fn two() -> Option<(User, User)> {
        if rustix::process::geteuid().is_root() {
            return Some((User(61_234), User(61_235)));
        }
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            // Not through a print macro: what those say in a test that passes is never seen.
            let _ = writeln!(
                std::io::stderr(),
                "\n*** SKIPPED: every test with a second user: only root can start programs as another one ***"
            );
        });
        None
    }

    /// One user, as [`User::two`] has them.
    pub(crate) fn one() -> Option<User> {
        User::two().map(|(user, _)| user)
    }

    /// The user of this number.
    pub(crate) fn of(id: u32) -> User {
        User(id)
    }

    pub(crate) fn id(self) -> u32 {
        self.0
    }

    /// A program to be run as this user.
    pub(crate) fn command(self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.uid(self.0).gid(self.0);
        command
    }

    /// Gives the user a file, or a directory with all that is in it.
    pub(crate) fn own(self, path: &Path) {
        chown(path, Some(self.0), Some(self.0)).expect("root gives away what it likes");
        let found = fs::symlink_metadata(path).expect("it was there");
        if found.is_dir() {
            for entry in fs::read_dir(path).expect("a directory").flatten() {
                let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
                if !is_link {
                    self.own(&entry.path());
                }
            }
        }
    }
}
