//! What hangs in a file system hangs alone.

use crate::support::{Daemon, Lab, ps, wait_until};
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
    let hangs = daemon.request("stream", frozen.clone());
    assert!(daemon.call("manifest", json!({}))["result"].is_object());
    assert_eq!(daemon.turn(Daemon::prompt(&lab, "other")).text(), "other");
    let answer = daemon.call("cancel", json!({"stream": hangs}));
    assert_eq!(answer["result"], json!({"cancelled": true}));
    assert_eq!(daemon.finish(hangs).stop_reason(), "cancelled");
    daemon.request("stream", frozen);
    assert!(daemon.call("manifest", json!({}))["result"].is_object());
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

// fault: 81
/// A rollout of 5 GB is read back, or copied, no longer than somebody waits for that.
#[test]
fn huge_rollout_delays_neither_cancel_nor_end() {
    const ID: &str = "01a1fe09-e49e-7b41-ae77-ccf89ea932da";
    let lab = Lab::fake(Value::Null);
    let day = lab.codex_home().join("sessions/2026/11/21");
    fs::create_dir_all(&day).unwrap();
    let path = day.join(format!("rollout-2026-11-21T12-06-56-{ID}.jsonl"));
    let meta = json!({"type": "session_meta", "payload": {"id": ID, "cwd": lab.workspace()}});
    fs::write(&path, format!("{meta}\n")).unwrap();
    // A hole: it takes no room, and has no line in it where reading back could stop.
    let rollout = fs::OpenOptions::new().write(true).open(&path).unwrap();
    rollout.set_len(5 << 30).unwrap();
    fs::write(lab.session_file(), ID).unwrap();
    let mut daemon = Daemon::start(&lab);
    let turn = daemon.request("stream", Daemon::prompt(&lab, "hi"));
    assert!(daemon.call("manifest", json!({}))["result"].is_object());
    let start = Instant::now();
    daemon.call("cancel", json!({"stream": turn}));
    assert_eq!(daemon.finish(turn).stop_reason(), "cancelled");
    // A second, and what a busy machine adds.
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
    daemon.request(
        "mutate_session",
        json!({"agent_id": "a", "workspace": lab.workspace(),
            "mutations": [{"block_id": "call_1", "op": "consume-light"}]}),
    );
    assert!(daemon.call("manifest", json!({}))["result"].is_object());
    let start = Instant::now();
    daemon.close_stdin();
    assert!(daemon.exit(Duration::from_secs(20)).success());
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    let left: Vec<_> = fs::read_dir(&day).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

// fault: 85
/// As the first process of a container it buries what codex has left to it, and is not to be looked into either.
#[test]
fn first_process_of_a_container_reaps_orphans() {
    let Some(unshare) = crate::programs::find("unshare") else {
        return;
    };
    if !rustix::process::geteuid().is_root() {
        let _ = writeln!(std::io::stderr(), "SKIPPED: only root can make a container");
        return;
    }
    let lab = Lab::fake(json!([
        {"grandchild": {"seconds": 1, "setsid": true}},
        "default",
    ]));
    let mut command = Command::new(unshare);
    command
        .args(["--fork", "--pid", "--mount-proc", "--kill-child"])
        .arg(env!("CARGO_BIN_EXE_plexum-openai"));
    let mut daemon = Daemon::start_by(&lab, &mut command);
    daemon.init();
    for _ in 0..2 {
        assert_eq!(daemon.turn(Daemon::prompt(&lab, "hi")).text(), "hi");
    }
    let processes = ps::of(lab.root());
    let below = |parent: u32| {
        let mut found = processes.iter().filter(move |one| one.parent == parent);
        found.next().map(|one| one.pid).unwrap()
    };
    let init = below(daemon.pid());
    let plugin = below(init);
    let orphans = || {
        let mut of = ps::of(lab.root());
        of.retain(|one| one.command.contains("--grandchild"));
        of.len()
    };
    wait_until("the orphans to end", || orphans() == 0);
    wait_until("them to be buried", || {
        ps::zombies(init) + ps::zombies(plugin) == 0
    });
}
