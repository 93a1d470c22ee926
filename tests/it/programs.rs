//! Programs of the system that some tests need: found, or told as missing.

use std::io::Write;
use std::path::PathBuf;

/// The program `name` in PATH. Where it is missing, the test that asks cannot show anything: that is told on
/// stderr, past the test harness's capture, and is a failure under `CI=true`, where everything is installed.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|file| file.is_file());
    if found.is_none() {
        let test = std::thread::current().name().unwrap_or("?").to_owned();
        assert!(
            std::env::var_os("CI").is_none_or(|ci| ci != "true"),
            "{test} needs '{name}', which is not installed"
        );
        writeln!(
            std::io::stderr(),
            "SKIPPED {test}: '{name}' is not installed"
        )
        .unwrap();
    }
    found
}
