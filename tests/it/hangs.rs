//! What hangs in a file system hangs alone.

use crate::support::{Daemon, Lab, method};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A file system of its own that can be frozen; thawed and unmounted when it is dropped.
struct Freezer(PathBuf);

impl Freezer {
    fn mount(lab: &Lab) -> Option<Freezer> {
        let (image, directory) = (lab.path("image"), lab.path("frozen"));
        fs::create_dir(&directory).unwrap();
        fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
        let run = |program: &str, arguments: &[&std::ffi::OsStr]| {
            let status = Command::new(program)
                .args(arguments)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            status.is_ok_and(|status| status.success())
        };
        let made = run("mkfs.ext4", &["-q".as_ref(), image.as_os_str()])
            && run(
                "mount",
                &[
                    "-o".as_ref(),
                    "loop".as_ref(),
                    image.as_os_str(),
                    directory.as_os_str(),
                ],
            );
        if !made {
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED: no file system can be mounted and frozen here"
            );
        }
        made.then_some(Freezer(directory))
    }

    fn set(&self, how: &str) {
        let status = Command::new("fsfreeze").arg(how).arg(&self.0).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        // It may be thawed already.
        let _ = Command::new("fsfreeze").arg("-u").arg(&self.0).status();
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

// fault: 78, 79
/// Another agent's turn completes, the hanging one is cancelled without its thread, and the end comes.
#[test]
fn frozen_workspace_holds_up_nobody_else() {
    let lab = Lab::fake(Value::Null);
    let Some(freezer) = Freezer::mount(&lab) else {
        return;
    };
    let mut daemon = Daemon::start(&lab);
    freezer.set("-f");
    let mut frozen = Daemon::prompt(&lab, "hi");
    frozen["agent"]["workspace"] = json!(freezer.0.join("new"));
    let hangs = daemon.request(method::STREAM, frozen.clone());
    daemon.ping();
    assert_eq!(daemon.turn(Daemon::prompt(&lab, "other")).text(), "other");
    let answer = daemon.call(method::CANCEL, json!({"stream": hangs}));
    assert_eq!(answer["result"], json!({"cancelled": true}));
    assert_eq!(daemon.finish(hangs).stop_reason(), "cancelled");
    daemon.request(method::STREAM, frozen);
    daemon.ping();
    let start = Instant::now();
    daemon.close_stdin();
    daemon.stdout_end(Duration::from_secs(10));
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    // Only now the process can vanish.
    freezer.set("-u");
    assert!(daemon.exit(Duration::from_secs(10)).success());
}

// fault: 84
#[test]
fn blocked_signals_are_unblocked() {
    let lab = Lab::fake(Value::Null);
    let mut command = Command::new("/usr/bin/env");
    command.args(["--block-signal", env!("CARGO_BIN_EXE_plexum-openai")]);
    let mut daemon = Daemon::start_by(&lab, &mut command);
    daemon.init();
    assert_eq!(daemon.turn(Daemon::prompt(&lab, "hi")).text(), "hi");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.exit(Duration::from_secs(10)).code(), Some(143));
}
