//! What a container may not have, or has too little of: `/proc`, open files, a first process that reaps.

use crate::support::method::{INITIALIZE, MUTATE, STREAM};
use crate::support::{Daemon, Lab, ps, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// `unshare` with these arguments, where it can do that here; the loud skip otherwise.
fn unshare(arguments: &[&str]) -> Option<Command> {
    let unshare = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(arguments);
        command
    };
    let works = unshare(arguments)
        .arg("true")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !works {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: no namespaces can be made here: unshare {}",
            arguments.join(" ")
        );
    }
    works.then(|| unshare(arguments))
}

// fault: 90
#[test]
fn reports_missing_proc() {
    let lab = Lab::fake(Value::Null);
    let mut daemon = Daemon::start(&lab);
    daemon.turn(Daemon::prompt(&lab, "hi"));
    let thread = lab.stored_thread();
    assert!(thread.is_some());
    drop(daemon);
    let Some(mut command) = unshare(&["--mount"]) else {
        return;
    };
    command.args(["sh", "-c", "mount -t tmpfs none /proc && exec \"$0\""]);
    command.arg(env!("CARGO_BIN_EXE_plexum-openai"));
    let mut daemon = Daemon::start_by(&lab, &mut command);
    daemon.init();
    let mut with_tools = Daemon::prompt(&lab, "hi");
    with_tools["request"]["tools"] = json!([{"name": "echo"}]);
    for (method, params) in [
        (STREAM, Daemon::prompt(&lab, "hi")),
        (STREAM, with_tools),
        (
            MUTATE,
            json!({"workspace": lab.workspace(), "mutations": [{"block_id": "c", "op": "consume-light"}]}),
        ),
    ] {
        let id = daemon.request(method, params);
        let answer = daemon.finish(id);
        let told = format!("{answer:?}");
        assert!(told.contains("'/proc' is not mounted"), "{method}: {told}");
    }
    assert_eq!(lab.stored_thread(), thread);
}

// fault: 90
/// Whatever it is that cannot be opened: the turn can be asked for again, and the thread is kept.
#[test]
fn too_few_open_files_are_retryable() {
    let lab = Lab::fake(Value::Null);
    let mut daemon = Daemon::start(&lab);
    daemon.turn(Daemon::prompt(&lab, "hi"));
    drop(daemon);
    let thread = lab.stored_thread();
    let mut failed = 0;
    for limit in 11..40 {
        let mut command = Command::new("prlimit");
        command.args([
            &format!("--nofile={limit}:{limit}"),
            env!("CARGO_BIN_EXE_plexum-openai"),
        ]);
        let mut daemon = Daemon::start_by(&lab, &mut command);
        let answer = daemon.call(INITIALIZE, json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}));
        if answer["error"].is_object() {
            assert_eq!(
                answer["error"]["data"]["retryable"], true,
                "{limit}: {answer}"
            );
            continue;
        }
        let mut params = Daemon::prompt(&lab, "hi");
        params["request"]["tools"] = json!([{"name": "echo"}]);
        let turn = daemon.turn(params);
        let errors: Vec<&Value> = turn.of("error").collect();
        let answer = &turn.answer;
        let told = format!("{limit}: {errors:?} {answer}");
        let is_error = answer["error"].is_object() || !errors.is_empty();
        if is_error {
            failed += 1;
            let retryable = errors
                .last()
                .map_or(&answer["error"]["data"]["retryable"], |error| {
                    &error["error"]["retryable"]
                });
            assert_eq!(*retryable, true, "{told}");
        }
        assert_eq!(lab.stored_thread(), thread, "{told}");
        drop(daemon);
        ps::assert_gone(lab.root());
    }
    assert!(failed > 3, "{failed} turns had too few files");
}

// fault: 85
#[test]
fn first_process_of_a_container_reaps_orphans() {
    let lab = Lab::fake(json!([
        "read_stdin",
        {"event": {"type": "thread.started", "thread_id": "{thread}"}},
        {"grandchild": {"setsid": true, "ignores_signals": true, "holds_pipes": false}},
        "default",
    ]));
    let Some(mut command) = unshare(&["--pid", "--fork", "--mount-proc"]) else {
        return;
    };
    command.arg(env!("CARGO_BIN_EXE_plexum-openai"));
    let mut daemon = Daemon::start_by(&lab, &mut command);
    daemon.init();
    daemon.turn(Daemon::prompt(&lab, "hi"));
    let processes = ps::of(lab.root());
    let first = processes
        .iter()
        .find(|process| process.parent == daemon.pid())
        .expect("what unshare started")
        .pid;
    let orphan = || {
        ps::of(lab.root())
            .into_iter()
            .find(|process| process.command.contains("--grandchild"))
    };
    let left = orphan().expect("it lives on");
    wait_until("the orphan to be the first process's", || {
        orphan().is_some_and(|orphan| orphan.parent == first)
    });
    ps::signal(left.pid, Signal::KILL);
    wait_until("the orphan to be reaped", || {
        orphan().is_none() && ps::zombies(first) == 0
    });
    // One that is running when the end comes.
    lab.script(json!([
        {"ignore": ["INT", "TERM"]},
        {"event": {"type": "thread.started", "thread_id": "{thread}"}},
        {"touch": lab.path("started")},
        {"wait_for": lab.path("never")},
    ]));
    daemon.request(STREAM, Daemon::prompt(&lab, "hi"));
    wait_until("codex to run", || lab.path("started").exists());
    let start = Instant::now();
    ps::signal(first, Signal::TERM);
    let status = daemon.exit(Duration::from_secs(10));
    assert_eq!(status.code(), Some(143));
    let took = start.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    ps::assert_gone(lab.root());
}
