//! Both codexes: the real one in its oldest and newest supported version, and the fake.
//!
//! The real ones are not part of the repository; `make codex` fetches them into `target/codex/<version>`.
//! Without them their tests are skipped, which is said once and loudly, and is a failure in CI.

use std::cell::Cell;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Once;

/// The least version that is supported.
pub(crate) const OLDEST: &str = "0.135.0";
/// The one that first wrote the outputs of MCP calls as lists.
pub(crate) const CHANGED: &str = "0.155.0";
/// The newest that was measured.
pub(crate) const NEWEST: &str = "0.169.0";

/// Writes a test for the oldest and the newest codex, by either backend: `real_codex! { fn name(codex: &Path) { … } }`
/// becomes the tests `name::oldest`, `name::newest`, `name::oldest_app_server` and `name::newest_app_server`.
macro_rules! real_codex {
    ($(#[doc = $doc:literal])* fn $name:ident($codex:ident: &Path) $body:block) => {
        $(#[doc = $doc])*
        mod $name {
            use super::*;
            use crate::support::codex::{APP_SERVER, EXEC, NEWEST, OLDEST, run_on};

            fn run($codex: &std::path::Path) $body

            #[test]
            fn oldest() {
                run_on(OLDEST, EXEC, run);
            }

            #[test]
            fn newest() {
                run_on(NEWEST, EXEC, run);
            }

            #[test]
            fn oldest_app_server() {
                run_on(OLDEST, APP_SERVER, run);
            }

            #[test]
            fn newest_app_server() {
                run_on(NEWEST, APP_SERVER, run);
            }
        }
    };
}
/// The same for what has to do with one backend alone: `real_codex_by! { EXEC, fn name(codex: &Path) { … } }`.
macro_rules! real_codex_by {
    ($backend:ident, $(#[doc = $doc:literal])* fn $name:ident($codex:ident: &Path) $body:block) => {
        $(#[doc = $doc])*
        mod $name {
            use super::*;
            use crate::support::codex::{$backend, NEWEST, OLDEST, run_on};

            pub(super) fn run($codex: &std::path::Path) $body

            #[test]
            fn oldest() {
                run_on(OLDEST, $backend, run);
            }

            #[test]
            fn newest() {
                run_on(NEWEST, $backend, run);
            }
        }
    };
}
pub(crate) use real_codex_by;

/// The backends, as the config names them.
pub(crate) const EXEC: &str = "exec";
pub(crate) const APP_SERVER: &str = "app-server";

thread_local! {
    /// The backend that labs of this test use.
    static BACKEND: Cell<&'static str> = const { Cell::new(EXEC) };
}

/// The backend of this test.
pub(crate) fn backend() -> &'static str {
    BACKEND.get()
}

/// Runs a test on the real codex of this version, where it is there, with labs that use this backend.
pub(crate) fn run_on(version: &str, backend: &'static str, run: fn(&Path)) {
    if let Some(codex) = real(version) {
        BACKEND.set(backend);
        run(&codex);
    }
}

pub(crate) use real_codex;

/// A version, a backend, and what to run.
type Run<'a> = (&'a str, &'static str, fn(&Path));

/// [`run_on`] for several at once: these tests wait most of their time.
pub(crate) fn run_at_once(runs: &[Run<'_>]) {
    std::thread::scope(|scope| {
        for (version, backend, run) in runs {
            scope.spawn(move || run_on(version, backend, *run));
        }
    });
}

/// The real codex of this version, where it has been fetched. `make compat` names in `COMPAT` the version that stands
/// for all of them.
///
/// # Panics
/// It is missing and the environment has `CI=true`.
pub(crate) fn real(version: &str) -> Option<PathBuf> {
    let compat = std::env::var("COMPAT").ok();
    let version = compat.as_deref().unwrap_or(version);
    let directory = target().join("codex").join(version);
    let found = find(&directory.join("node_modules/@openai"));
    if found.is_none() {
        let told = format!(
            "no codex {version} in '{}'; `make codex` fetches it",
            directory.display()
        );
        assert!(
            std::env::var_os("CI").is_none_or(|ci| ci != "true"),
            "{told}"
        );
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            // Not through a print macro: what those say in a test that passes is never seen.
            let _ = writeln!(
                std::io::stderr(),
                "\n*** SKIPPED: every test with the real codex: {told} ***"
            );
        });
    }
    found
}

/// Is this codex, one of [`real`]'s, of that version or a newer one?
pub(crate) fn is_at_least(codex: &Path, version: (u32, u32, u32)) -> bool {
    let directory = codex
        .strip_prefix(target().join("codex"))
        .expect("a real codex");
    let name = directory.iter().next().expect("its version");
    let numbers: Vec<u32> = name
        .to_str()
        .expect("digits and points")
        .split('.')
        .map(|number| number.parse().expect("a number"))
        .collect();
    (numbers[0], numbers[1], numbers[2]) >= version
}

/// The fake codex, an example of this package.
pub(crate) fn fake() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its file");
    let built = test
        .parent()
        .and_then(Path::parent)
        .expect("tests are in target/<profile>/deps");
    let fake = built.join("examples/fake-codex");
    assert!(
        fake.exists(),
        "'{}' is missing: `cargo test` builds it, `cargo test --test it` needs `cargo build --examples` before",
        fake.display()
    );
    fake
}

fn target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("target/tmp")
        .to_owned()
}

/// The native executable below `directory`. Its place in the package changes (`vendor/<triple>/codex/codex`,
/// `vendor/<triple>/bin/codex`); the launcher in `bin/codex.js` is a script and not it.
fn find(directory: &Path) -> Option<PathBuf> {
    let mut entries: Vec<PathBuf> = fs::read_dir(directory)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    entries.sort();
    entries.iter().find_map(|path| {
        if path.is_dir() {
            return find(path);
        }
        let mut head = [0; 4];
        let is_program = path.file_name().is_some_and(|name| name == "codex")
            && path.to_string_lossy().contains(std::env::consts::ARCH)
            && fs::File::open(path)
                .and_then(|mut file| file.read_exact(&mut head))
                .is_ok()
            && head == *b"\x7fELF";
        is_program.then(|| path.clone())
    })
}
