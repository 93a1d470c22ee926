//! What hangs in a file system hangs alone.

use crate::support::{Daemon, Lab, method, ps, wait_until};
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
fn frozen_workspace_does_not_block_other_agents() {
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

// fault: 79
/// The longest way to the end: a thread that hangs, and a codex that ignores every signal but SIGKILL.
#[test]
fn shuts_down_in_time_when_anything_hangs() {
    let lab = Lab::fake(Value::Null);
    let Some(freezer) = Freezer::mount(&lab) else {
        return;
    };
    lab.script(json!([
        {"ignore": ["INT", "TERM"]},
        {"event": {"type": "thread.started", "thread_id": "{thread}"}},
        {"grandchild": {"setsid": true, "ignores_signals": true, "holds_pipes": true}},
        {"touch": lab.path("started")},
        {"wait_for": lab.path("never")},
    ]));
    let mut daemon = Daemon::start(&lab);
    freezer.set("-f");
    let mut frozen = Daemon::prompt(&lab, "hi");
    frozen["agent"]["workspace"] = json!(freezer.0.join("new"));
    daemon.request(method::STREAM, frozen);
    daemon.request(method::STREAM, Daemon::prompt(&lab, "hi"));
    wait_until("codex to run", || lab.path("started").exists());
    let start = Instant::now();
    daemon.close_stdin();
    daemon.stdout_end(Duration::from_secs(10));
    let took = start.elapsed();
    freezer.set("-u");
    let _ = writeln!(std::io::stderr(), "the end took {took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(daemon.exit(Duration::from_secs(10)).success());
    ps::assert_gone(lab.root());
}

/// A rollout of 5 GiB, nearly all of it a hole, behind these lines.
fn huge_rollout(lab: &Lab, thread: &str, lines: &[Value]) {
    let directory = lab.codex_home().join("sessions/2026/11/21");
    fs::create_dir_all(&directory).unwrap();
    let path = directory.join(format!("rollout-2026-11-21T12-06-56-{thread}.jsonl"));
    let mut text = String::new();
    for line in lines {
        text += &format!("{line}\n");
    }
    fs::write(&path, text).unwrap();
    let file = fs::File::options().append(true).open(&path).unwrap();
    file.set_len(5 << 30).unwrap();
    fs::write(lab.session_file(), format!("{thread}\n")).unwrap();
}

const THREAD: &str = "01a1fe00-a027-7a81-b8a0-356e91ab6908";

// fault: 81
#[test]
fn cancel_and_end_interrupt_reading_back() {
    let lab = Lab::fake(Value::Null);
    huge_rollout(
        &lab,
        THREAD,
        &[
            json!({"timestamp": "2026-11-21T12:06:56.000Z", "type": "session_meta",
            "payload": {"id": THREAD, "cwd": lab.workspace()}}),
        ],
    );
    let mut daemon = Daemon::start(&lab);
    for ends in [false, true] {
        let before = ps::read(daemon.pid());
        let id = daemon.request(method::STREAM, Daemon::prompt(&lab, "hi"));
        wait_until("the rollout to be read", || {
            ps::read(daemon.pid()) > before + (64 << 20)
        });
        assert!(!daemon.is_answered(id));
        let start = Instant::now();
        if ends {
            daemon.close_stdin();
        } else {
            daemon.notify(method::CANCELLED, json!({"requestId": id}));
        }
        assert_eq!(daemon.finish(id).stop_reason(), "cancelled");
        if ends {
            daemon.stdout_end(Duration::from_secs(10));
        }
        let took = start.elapsed();
        let _ = writeln!(std::io::stderr(), "reading back, {ends}: {took:?}");
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
    assert!(lab.fake_runs().is_empty());
}

// fault: 81
#[test]
fn end_interrupts_a_rewrite() {
    let lab = Lab::fake(Value::Null);
    let line = |payload: Value| json!({"timestamp": "2026-11-21T12:06:56.000Z", "type": "response_item", "payload": payload});
    huge_rollout(
        &lab,
        THREAD,
        &[
            json!({"timestamp": "2026-11-21T12:06:56.000Z", "type": "session_meta",
                "payload": {"id": THREAD, "cwd": lab.workspace()}}),
            line(json!({"type": "function_call", "name": "f", "arguments": "{}", "call_id": "c"})),
            line(
                json!({"type": "function_call_output", "call_id": "c", "output": "x".repeat(1000)}),
            ),
        ],
    );
    let mut daemon = Daemon::start(&lab);
    let before = ps::read(daemon.pid());
    daemon.request(
        method::MUTATE,
        json!({"workspace": lab.workspace(), "mutations": [{"block_id": "c", "op": "consume-light"}]}),
    );
    wait_until("the rollout to be read", || {
        ps::read(daemon.pid()) > before + (64 << 20)
    });
    let start = Instant::now();
    daemon.close_stdin();
    daemon.stdout_end(Duration::from_secs(10));
    let took = start.elapsed();
    let _ = writeln!(std::io::stderr(), "a rewrite: {took:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
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
