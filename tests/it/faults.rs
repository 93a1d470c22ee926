//! Faults of the processes around the plugin, and of the machine, that have no better place. Which test injects
//! which fault says its `// fault: N` tag; the numbers are listed in `fault_list`.

use crate::programs;
use crate::support::codex::real_codex;
use crate::support::{Cli, Daemon, LIMIT, Lab, cli, copy_program, method, ps, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A turn of the fake codex that has begun: its first steps.
fn begun(steps: impl IntoIterator<Item = Value>) -> Value {
    let begin = [
        json!("read_stdin"),
        json!({"event": {"type": "thread.started", "thread_id": "{thread}"}}),
    ];
    begin.into_iter().chain(steps).collect()
}

/// A codex that obeys no signal but SIGKILL, with children that do not either: in its process group, in a group
/// and in a session of their own.
fn stubborn(lab: &Lab) -> Value {
    begun([
        json!({"ignore": ["INT", "TERM", "HUP"]}),
        json!({"grandchild": {"ignores_signals": true, "holds_pipes": true}}),
        json!({"grandchild": {"ignores_signals": true, "setpgid": true}}),
        json!({"grandchild": {"ignores_signals": true, "setsid": true, "holds_pipes": true}}),
        json!({"touch": lab.path("started")}),
        json!({"wait_for": lab.path("never")}),
    ])
}

/// A plugin in the middle of a turn with this script, which makes the file `started`; the turn's id.
#[track_caller]
fn in_a_turn(lab: &Lab, script: Value) -> (Daemon, i64) {
    lab.script(script);
    let _ = fs::remove_file(lab.path("started"));
    let mut daemon = Daemon::start(lab);
    let id = daemon.request(method::STREAM, Daemon::prompt(lab, "hi"));
    wait_until("the turn to start", || lab.path("started").exists());
    (daemon, id)
}

/// Makes a shell script the lab's codex.
fn use_shell(lab: &Lab, script: &str) {
    let text = lab.path("codex.txt");
    fs::write(&text, script).unwrap();
    // Not written by this process: another thread that starts a program meanwhile would hold it open for
    // writing, and it could not be executed.
    let made = Command::new("install")
        .args(["-m", "755"])
        .args([&text, &lab.path("codex.sh")])
        .status()
        .unwrap();
    assert!(made.success());
    lab.config(json!({"binary": lab.path("codex.sh")}));
}

/// A turn by hand, from the lab's directory.
const TURN: [&str; 4] = ["turn", "--workspace", "workspace", "hi"];

/// Runs `plexum-openai` with these arguments under strace with these options, in the lab's directory.
#[track_caller]
fn traced(lab: &Lab, strace: &Path, options: &[&str], arguments: &[&str]) -> Output {
    let mut child = Command::new(strace)
        .args(["-qq", "-o"])
        .arg(lab.path("trace"))
        .args(options)
        .arg(env!("CARGO_BIN_EXE_plexum-openai"))
        .args(arguments)
        .env_clear()
        .envs(lab.env())
        .current_dir(lab.root())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // What is said here fits into a pipe.
    cli::wait(&mut child, LIMIT);
    child.wait_with_output().unwrap()
}

// fault: 2
#[test]
fn reports_workspace_that_vanishes_or_is_closed() {
    // It is removed while a turn waits for it.
    let lab = Lab::fake(Value::Null);
    let held = [
        json!({"touch": lab.path("started")}),
        json!({"wait_for": lab.path("go")}),
    ];
    let (mut daemon, first) = in_a_turn(&lab, begun(held));
    let second = daemon.request(method::STREAM, Daemon::prompt(&lab, "hi"));
    daemon.event(second, "that it waits", |event| event["state"] == "queued");
    fs::remove_dir_all(lab.workspace()).unwrap();
    fs::write(lab.path("go"), "").unwrap();
    daemon.finish(first);
    // It was told that it waits, so its end is an event.
    let second = daemon.finish(second);
    assert_eq!(second.error_code(), Some("io"), "{second:?}");
    let message = second.result()["error"]["message"].as_str().unwrap();
    let workspace = lab.workspace().display().to_string();
    assert_eq!(
        message,
        format!("cannot enter the workspace '{workspace}': No such file or directory")
    );
    // root may enter everything: what others are told is injected.
    let Some(strace) = programs::find("strace") else {
        return;
    };
    fs::create_dir(lab.workspace()).unwrap();
    let closed = ["-f", "-e", "inject=chdir:error=EACCES"];
    let output = traced(&lab, &strace, &closed, &TURN);
    let expected =
        format!("plexum-openai: cannot enter the workspace '{workspace}': Permission denied\n");
    assert_eq!(
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned()
        ),
        (Some(2), expected)
    );
}

// fault: 63
#[test]
fn unreadable_config_fails_turn() {
    let Some(strace) = programs::find("strace") else {
        return;
    };
    let lab = Lab::fake(Value::Null);
    let path = lab.config_file().display().to_string();
    for (error, why) in [
        ("EACCES", "Permission denied"),
        ("EIO", "Input/output error"),
    ] {
        let inject = format!("inject=open,openat:error={error}");
        let output = traced(&lab, &strace, &["-P", &path, "-e", &inject], &TURN);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(&path) && said.contains(why), "{said}");
    }
    assert_eq!(lab.fake_runs().len(), 0);
}

// fault: 7
#[test]
fn names_signal_that_killed_codex() {
    let lab = Lab::fake(Value::Null);
    for name in [
        "SEGV", "BUS", "ABRT", "ILL", "FPE", "SYS", "PIPE", "HUP", "INT", "XCPU", "KILL",
    ] {
        // What started the tests may have had signals ignored, as nohup does, and a shell cannot undo that.
        use_shell(
            &lab,
            &format!(
                "#!/bin/sh\ncat >/dev/null\nexec env --default-signal sh -c 'kill -{name} $$'\n"
            ),
        );
        let output = Cli::new(&lab, ["turn", "hi"]).run();
        assert_eq!(output.status, 1, "{name}: {output:?}");
        let expected = format!("killed by SIG{name}");
        assert!(output.stderr.contains(&expected), "{name}: {output:?}");
    }
    let cores = fs::read_dir(lab.workspace()).unwrap().flatten();
    let cores: Vec<_> = cores
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("core"))
        .collect();
    // The shell's own may be there.
    assert!(cores.len() <= 1, "{cores:?}");
}

// fault: 7
/// Who starts the plugin may have SIGCHLD ignored, which is inherited.
#[test]
fn knows_exit_status_with_sigchld_ignored() {
    let lab = Lab::fake(json!({
        "new": begun([json!({"err": "no luck"}), json!({"exit": 3})]),
        "mcp": [{"out": "[]"}],
    }));
    let ignoring = || {
        let mut command = Command::new("env");
        command.args(["--ignore-signal=CHLD", env!("CARGO_BIN_EXE_plexum-openai")]);
        command
    };
    let mut daemon = Daemon::start_by(&lab, &mut ignoring());
    daemon.init();
    let turn = daemon.turn(Daemon::prompt(&lab, "hi"));
    let message = turn.of("error").next().unwrap()["error"]["message"].to_string();
    assert!(
        message.contains("exit status 3") && message.contains("no luck"),
        "{message}"
    );
    let doctor = ignoring()
        .arg("doctor")
        .env_clear()
        .envs(lab.env())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(doctor.status.success(), "{doctor:?}");
}

// fault: 8
#[test]
fn ends_codex_in_steps() {
    let lab = Lab::fake(Value::Null);
    let note = |name: &str| {
        format!(
            "trap 'echo {name} >> {}' {name}\n",
            lab.path("got").display()
        )
    };
    // It leads a session of its own, so that only what is sent to codex itself counts.
    use_shell(
        &lab,
        &format!(
            "#!/bin/sh\n{}{}echo '{{\"type\":\"turn.started\"}}'\n: > {}\nwhile :; do sleep 0.05; done\n",
            note("INT"),
            note("TERM"),
            lab.path("started").display()
        ),
    );
    let mut daemon = Daemon::start(&lab);
    let id = daemon.request(method::STREAM, Daemon::prompt(&lab, "hi"));
    wait_until("the turn to start", || lab.path("started").exists());
    let start = Instant::now();
    daemon.cancel(id);
    assert_eq!(daemon.finish(id).stop_reason(), "cancelled");
    assert!(
        start.elapsed() > Duration::from_secs(2),
        "a grace between the steps"
    );
    assert_eq!(fs::read_to_string(lab.path("got")).unwrap(), "INT\nTERM\n");
}

// fault: 22
#[test]
fn cancel_ends_process_tree_in_time() {
    let obedient = |lab: &Lab| {
        begun([
            json!({"grandchild": {"setsid": true, "holds_pipes": true}}),
            json!({"grandchild": {"setsid": true, "ignores_signals": true}}),
            json!({"touch": lab.path("started")}),
            json!({"wait_for": lab.path("never")}),
        ])
    };
    type Script<'a> = &'a dyn Fn(&Lab) -> Value;
    for (script, limit) in [(&obedient as Script<'_>, 1), (&stubborn, 5)] {
        // The best of a few: what else the machine does meanwhile is not measured.
        let mut best = Duration::MAX;
        for _ in 0..3 {
            let lab = Lab::fake(Value::Null);
            let (mut daemon, id) = in_a_turn(&lab, script(&lab));
            let start = Instant::now();
            daemon.cancel(id);
            let turn = daemon.finish(id);
            best = best.min(start.elapsed());
            assert_eq!(turn.stop_reason(), "cancelled");
            let left: Vec<_> = ps::of(lab.root())
                .into_iter()
                .filter(|process| process.pid != daemon.pid())
                .collect();
            assert!(left.is_empty(), "after message_end: {left:?}");
            assert_eq!(ps::zombies(daemon.pid()), 0);
            if best < Duration::from_secs(limit) {
                break;
            }
        }
        assert!(best < Duration::from_secs(limit), "{best:?}");
    }
}

// fault: 22
/// The guard is what ends codex and its commands. One that cannot is ended with all that it would have ended.
#[test]
fn kills_tree_below_stopped_guard() {
    let Some(strace) = programs::find("strace") else {
        return;
    };
    let lab = Lab::fake(Value::Null);
    let sessions = (0..3).map(|_| json!({"grandchild": {"setsid": true}}));
    let wait = [
        json!({"touch": lab.path("started")}),
        json!({"wait_for": lab.path("never")}),
    ];
    lab.script(begun(sessions.chain(wait)));
    // What is killed is gone before anything more is done: then nothing is found any more that only it led to.
    let mut command = Command::new(strace);
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=kill"]);
    command.args(["-e", "inject=kill:delay_exit=20000"]);
    command.arg(env!("CARGO_BIN_EXE_plexum-openai"));
    let mut daemon = Daemon::start_by(&lab, &mut command);
    daemon.init();
    let id = daemon.request(method::STREAM, Daemon::prompt(&lab, "hi"));
    wait_until("the turn to start", || lab.path("started").exists());
    let running = |part: &str| {
        let mut running = ps::of(lab.root());
        running.retain(|process| process.command.contains(part));
        running
    };
    for guard in running("codex-guard") {
        ps::signal(guard.pid, Signal::STOP);
    }
    daemon.cancel(id);
    assert_eq!(daemon.finish(id).stop_reason(), "cancelled");
    for part in ["codex-guard", "fake-codex"] {
        let left = running(part);
        assert!(left.is_empty(), "after message_end: {left:?}");
    }
}

// fault: 40
real_codex! {
    /// The real codex is asked first: it records the turn as aborted. What its tool has started in a session of
    /// its own, and does not end when it is told to, is ended all the same, when the plugin is killed too; and
    /// after a normal end it stays.
    fn ends_commands_of_real_codex(codex: &Path) {
        let leave = "(trap '' INT TERM HUP; setsid sleep 600 >/dev/null 2>&1) & touch ../started";
        let script = |wait: &str| {
            let command = json!({"cmd": format!("{leave}{wait}"), "yield_time_ms": 60_000});
            json!([{"calls": [{"name": "exec_command", "arguments": command}]}, {"text": "done"}])
        };
        let sleeps = |lab: &Lab| {
            let mut running = ps::of(lab.root());
            running.retain(|process| process.command.starts_with("sleep "));
            running
        };
        for how in ["cancel", "kill", "end"] {
            let wait = if how == "end" { "" } else { "; sleep 600" };
            let lab = Lab::real(codex, script(wait));
            let mut daemon = Daemon::start(&lab);
            let id = daemon.request(method::STREAM, Daemon::prompt(&lab, "hi"));
            wait_until("the command to start", || lab.path("started").exists());
            let start = Instant::now();
            match how {
                "cancel" => {
                    daemon.cancel(id);
                    let turn = daemon.finish(id);
                    assert_eq!(turn.stop_reason(), "cancelled");
                    assert!(sleeps(&lab).is_empty(), "{:?}", sleeps(&lab));
                    let record = lab.rollouts(turn.thread()).remove(0);
                    let record = fs::read_to_string(record).unwrap();
                    assert!(record.contains("\"turn_aborted\""), "{record}");
                }
                "kill" => {
                    daemon.signal(Signal::KILL);
                    daemon.exit(Duration::from_secs(10));
                    wait_until("all to be gone", || ps::of(lab.root()).is_empty());
                }
                _ => {
                    assert_eq!(daemon.finish(id).text(), "done");
                    let left = sleeps(&lab);
                    assert_eq!(left.len(), 1, "{left:?}");
                    ps::signal(left[0].pid, Signal::KILL);
                }
            }
            assert!(start.elapsed() < Duration::from_secs(10), "{how}");
        }
    }
}

real_codex! {
    /// The codex of a plugin that was killed records its turn as aborted, and only then the next one begins.
    fn restarted_plugin_waits_for_orphaned_real_codex(codex: &Path) {
        let command = json!({"cmd": "touch ../started; sleep 600", "yield_time_ms": 60_000});
        let lab = Lab::real(codex, json!([
            {"match": "first", "times": 1, "calls": [{"name": "exec_command", "arguments": command}]},
            {"text": "done"},
        ]));
        let mut first = Daemon::start(&lab);
        first.request(method::STREAM, Daemon::prompt(&lab, "first"));
        wait_until("the command to start", || lab.path("started").exists());
        first.signal(Signal::KILL);
        let mut second = Daemon::start(&lab);
        let turn = second.turn(Daemon::prompt(&lab, "second"));
        assert_eq!(turn.text(), "done", "{turn:?}");
        assert_eq!(turn.result()["thread_state"], "resumed");
        first.exit(Duration::from_secs(10));
        let record = lab.rollouts(turn.thread()).remove(0);
        let record = fs::read_to_string(record).unwrap();
        let aborted = record.find("\"turn_aborted\"").expect("a record of the abort");
        let begun = record.rfind("\"task_started\"").expect("a second turn");
        assert!(aborted < begun, "{record}");
    }
}

// fault: 37, 40
#[test]
fn shuts_down_within_five_seconds() {
    for (how, status) in [("stdin", 0), ("TERM", 143), ("INT", 130), ("KILL", 137)] {
        let lab = Lab::fake(Value::Null);
        let (mut daemon, _) = in_a_turn(&lab, stubborn(&lab));
        let start = Instant::now();
        match how {
            "stdin" => daemon.close_stdin(),
            "TERM" => daemon.signal(Signal::TERM),
            "INT" => daemon.signal(Signal::INT),
            _ => daemon.signal(Signal::KILL),
        }
        let ended = daemon.exit(Duration::from_secs(10));
        assert_eq!(crate::support::cli::shell_status(ended), status, "{how}");
        // The plugin's own end leaves nothing; a killed one's guard needs a moment.
        wait_until("all to be gone", || ps::of(lab.root()).is_empty());
        let took = start.elapsed();
        assert!(took < Duration::from_secs(5), "{how}: {took:?}");
    }
}

// fault: 37
/// codex is also run for its config, before the turn's own codex: that ends as soon.
#[test]
fn cancels_hanging_registration() {
    for (how, status) in [
        ("cancel", Some(0)),
        ("stdin", Some(0)),
        ("TERM", Some(143)),
        ("locked", Some(0)),
    ] {
        let lab = Lab::fake(json!({
            "mcp": [{"touch": "{cwd}/started"}, {"wait_for": "{cwd}/never"}],
        }));
        lab.config(json!({"mcp_registration": "persistent"}));
        let mut daemon = Daemon::start(&lab);
        let mut params = Daemon::prompt(&lab, "hi");
        params["request"]["tools"] = json!([{"name": "x", "input_schema": {}}]);
        // Another plugin, or another turn, that registers its agent.
        let lock = fs::File::open(lab.codex_home()).unwrap();
        if how == "locked" {
            rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        }
        let id = daemon.request(method::STREAM, params);
        if how == "locked" {
            // Its answer comes after the turn has been taken up.
            daemon.ping();
        } else {
            wait_until("the registration", || lab.root().join("started").exists());
        }
        let start = Instant::now();
        match how {
            "stdin" => daemon.close_stdin(),
            "TERM" => daemon.signal(Signal::TERM),
            _ => daemon.cancel(id),
        }
        let turn = daemon.finish(id);
        assert_eq!(turn.stop_reason(), "cancelled", "{how}: {turn:?}");
        let took = start.elapsed();
        assert!(took < Duration::from_secs(5), "{how}: {took:?}");
        let mut left = ps::of(lab.root());
        left.retain(|process| process.pid != daemon.pid());
        assert!(left.is_empty(), "{how}: {left:?}");
        daemon.close_stdin();
        assert_eq!(daemon.exit(LIMIT).code(), status, "{how}");
    }
}

// fault: 11
#[test]
fn keeps_background_processes_but_not_pipe_holders() {
    let lab = Lab::fake(Value::Null);
    let kinds = [
        (json!({}), true),
        (json!({"setpgid": true}), true),
        (json!({"setsid": true}), true),
        (json!({"setsid": true, "holds_pipes": true}), true),
        (json!({"holds_pipes": true}), false),
        (json!({"holds_pipes": true, "ignores_signals": true}), false),
    ];
    let mut daemon = Daemon::start(&lab);
    for (kind, stays) in kinds {
        let mut grandchild = kind.clone();
        // Longer than anything is waited for: it does not end by itself.
        grandchild["seconds"] = json!(120);
        lab.script(json!([{"grandchild": grandchild}, "default"]));
        let start = Instant::now();
        assert_eq!(
            daemon.turn(Daemon::prompt(&lab, "hi")).text(),
            "hi",
            "{kind}"
        );
        assert!(start.elapsed() < Duration::from_secs(5), "{kind}");
        let left = || {
            let mut left = ps::of(lab.root());
            left.retain(|process| process.command.contains("--grandchild"));
            left.len()
        };
        if stays {
            assert_eq!(left(), 1, "{kind}");
        } else {
            wait_until("what holds the pipe to be ended", || left() == 0);
        }
        for process in ps::of(lab.root()) {
            if process.command.contains("--grandchild") {
                ps::signal(process.pid, Signal::KILL);
            }
        }
        wait_until("the next to begin alone", || left() == 0);
    }
}

// fault: 21
/// The kernel's refusals to make a process, a thread, a pipe, one at a time, in plugin and guard: the turn ends
/// with a word that says so, or nothing came of it.
#[test]
fn classifies_spawn_errors() {
    let Some(strace) = programs::find("strace") else {
        return;
    };
    let lab = Lab::fake(Value::Null);
    let codex = lab.codex().display().to_string();
    let mut told = BTreeSet::new();
    for (path, call, errors) in [
        (None, "clone3,clone,vfork,fork", &["EAGAIN", "ENOMEM"][..]),
        (None, "pipe2,socketpair,pidfd_open", &["EMFILE"]),
        // Where the limit of processes is passed, it is this call in the guard's child that fails.
        (Some(codex.as_str()), "execve", &["EAGAIN", "ENOMEM"]),
    ] {
        for error in errors {
            for number in 1..=3 {
                let inject = format!("inject={call}:error={error}:when={number}");
                let mut options = vec!["-f", "-e", &inject];
                options.extend(path.iter().flat_map(|path| ["-P", path]));
                let output = traced(&lab, &strace, &options, &TURN);
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                let status = output.status.code();
                assert!(matches!(status, Some(0 | 1)), "{inject}: {status:?} {said}");
                assert!(!said.contains("panicked"), "{inject}: {said}");
                if status == Some(1) {
                    let last = said.lines().last().unwrap_or_default();
                    let words = last.split(['\'', ':']).nth(1).unwrap_or_default();
                    told.insert(format!("{error}:{words}"));
                }
                lab.assert_quiet();
            }
        }
    }
    for error in ["EAGAIN", "ENOMEM"] {
        for words in ["cannot start a process for codex", "cannot start codex "] {
            let told_it = told.contains(&format!("{error}: {words}"));
            assert!(told_it, "{error}: {words} in {told:#?}");
        }
    }
}

// fault: 31
/// Where the second codex cannot even be started, after the first has said something.
#[test]
fn started_turn_always_ends() {
    let lab = Lab::fake(Value::Null);
    copy_program(lab.codex(), &lab.path("codex-copy"));
    lab.config(json!({"binary": lab.path("codex-copy")}));
    fs::write(lab.session_file(), "01a1fe09-e49e-7b41-ae77-ccf89ea932da").unwrap();
    lab.script(json!([
        {"event": {"type": "item.completed", "item": {"id": "item_0", "type": "error", "message": "hm"}}},
        {"touch": lab.path("started")},
        {"wait_for": lab.path("go")},
        {"err": "no rollout found for thread id 01a1fe09-e49e-7b41-ae77-ccf89ea932da"},
        {"exit": 1},
    ]));
    let mut daemon = Daemon::start(&lab);
    let id = daemon.request(method::STREAM, Daemon::prompt(&lab, "hi"));
    wait_until("the turn to start", || lab.path("started").exists());
    fs::remove_file(lab.path("codex-copy")).unwrap();
    fs::write(lab.path("go"), "").unwrap();
    let turn = daemon.finish(id);
    assert_eq!(turn.error_code(), Some("codex_not_found"), "{turn:?}");
    assert_eq!(turn.stop_reason(), "error");
}

// fault: 24
#[test]
fn runs_two_hundred_turns_at_once() {
    const TURNS: usize = 200;
    let lab = Lab::fake(Value::Null);
    fs::create_dir(lab.path("started")).unwrap();
    lab.script(json!([
        {"touch": lab.path("started").join("{uuid}")},
        {"wait_for": lab.path("go")},
        "default",
    ]));
    let Some(prlimit) = programs::find("prlimit") else {
        return;
    };
    // What a process is usually given by systemd and by shells.
    let mut command = Command::new(prlimit);
    command.args(["--nofile=1024:", env!("CARGO_BIN_EXE_plexum-openai")]);
    let mut daemon = Daemon::start_by(&lab, &mut command);
    daemon.init();
    let ids: Vec<i64> = (0..TURNS)
        .map(|number| {
            let mut params = Daemon::prompt(&lab, &format!("prompt {number}"));
            params["agent"] =
                json!({"id": number.to_string(), "workspace": lab.path(&format!("w{number}"))});
            daemon.request(method::STREAM, params)
        })
        .collect();
    wait_until("all of them to run at once", || {
        fs::read_dir(lab.path("started")).unwrap().count() == TURNS
    });
    let codex = lab.fake_runs()[0]["pid"].to_string();
    let limits = fs::read_to_string(format!("/proc/{codex}/limits")).unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let files = files.and_then(|line| line.split_whitespace().nth(3));
    assert_eq!(files, Some("1024"), "codex's own limit is as it was");
    let threads = ps::threads(daemon.pid());
    assert!(threads <= TURNS + 8, "{threads} threads");
    fs::write(lab.path("go"), "").unwrap();
    for (number, id) in ids.into_iter().enumerate() {
        let turn = daemon.finish(id);
        assert_eq!(turn.text(), format!("prompt {number}"));
        assert_eq!(turn.stop_reason(), "end_turn");
    }
    let peak = ps::peak_memory(daemon.pid());
    assert!(peak < 100 << 20, "{peak} bytes");
}

const OLD: &str = "01a1fe09-e49e-7b41-ae77-ccf89ea932da";

/// Runs a turn that stores a new thread where [`OLD`] is stored; what stands in the session file afterwards.
#[track_caller]
fn save_over(lab: &Lab, run: impl FnOnce() -> Output) -> (Output, String) {
    fs::write(lab.session_file(), OLD).unwrap();
    let output = run();
    (
        output,
        lab.stored_thread()
            .expect("neither the old id nor the new one"),
    )
}

// fault: 28, 29
#[test]
fn session_save_is_atomic() {
    let Some(strace) = programs::find("strace") else {
        return;
    };
    let lab = Lab::fake(Value::Null);
    let fresh = ["turn", "--workspace", "workspace", "--fresh", "hi"];
    // So that each of the runs to come finds as many directories of codex's, and opens as many.
    let first = Cli::new(&lab, fresh).directory(lab.root()).run();
    assert_eq!(first.status, 0, "{first:?}");
    // The system calls of a save: the name, and which of its calls with that name it is.
    let (output, new) = save_over(&lab, || traced(&lab, &strace, &["-y", "-s", "300"], &fresh));
    assert!(output.status.success() && new != OLD, "{output:?}");
    let mut counts: HashMap<String, usize> = HashMap::new();
    let mut calls = Vec::new();
    for line in fs::read_to_string(lab.path("trace")).unwrap().lines() {
        let Some((name, _)) = line.split_once('(') else {
            continue;
        };
        let count = counts.entry(name.to_owned()).or_insert(0);
        *count += 1;
        let directory = format!("{}>", lab.workspace().display());
        let begun = line.contains(".plexum-codex-session.tmp");
        // After the rename, the directory is synced.
        if begun || !calls.is_empty() && line.contains(&directory) {
            calls.push((name.to_owned(), *count));
        }
    }
    let names: BTreeSet<&str> = calls.iter().map(|(name, _)| name.as_str()).collect();
    // What opens a file has another name on another machine.
    for name in ["write", "fsync", "rename"] {
        assert!(
            names.contains(name),
            "the trace shows the save: {name} in {names:?}"
        );
    }
    let mut seen = BTreeSet::new();
    for (name, number) in &calls {
        for fault in ["signal=KILL", "error=ENOSPC", "error=EIO", "error=EROFS"] {
            // A disk has no say in these.
            if fault != "signal=KILL" && matches!(name.as_str(), "close" | "fcntl") {
                continue;
            }
            let inject = format!("inject={name}:{fault}:when={number}");
            let (output, stored) =
                save_over(&lab, || traced(&lab, &strace, &["-e", &inject], &fresh));
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let is_old = stored == OLD;
            assert!(stored.len() == OLD.len(), "{inject}: {stored:?}");
            seen.insert((fault, is_old));
            if fault == "signal=KILL" {
                assert_eq!(output.status.code(), None, "{inject}: {said}");
            } else {
                // The turn itself is none the worse.
                assert!(output.status.success(), "{inject}: {said}");
                assert_eq!(output.stdout, b"hi\n", "{inject}");
                assert!(said.contains(".plexum-codex-session'"), "{inject}: {said}");
                assert_eq!(
                    is_old,
                    said.contains("cannot continue this conversation"),
                    "{inject}: {said}"
                );
                let left = lab.workspace().join(".plexum-codex-session.tmp");
                assert!(!left.exists(), "{inject}");
            }
            lab.assert_quiet();
            // The next save does all, whatever the last one left.
            let (output, stored) = save_over(&lab, || {
                let mut child = Cli::new(&lab, fresh).directory(lab.root()).spawn();
                cli::wait(&mut child, LIMIT);
                child.wait_with_output().unwrap()
            });
            assert!(output.status.success() && stored != OLD, "{inject}");
        }
    }
    for fault in ["signal=KILL", "error=EIO"] {
        assert!(
            seen.contains(&(fault, true)) && seen.contains(&(fault, false)),
            "{seen:?}"
        );
    }
}

// fault: 28
#[test]
fn full_disk_keeps_old_thread() {
    let lab = Lab::fake(Value::Null);
    let mount = |options: &str| {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "none"])
            .arg(lab.workspace())
            .output();
        mounted.is_ok_and(|output| output.status.success())
    };
    if !mount("size=64k") {
        // What such a disk says is injected in the test of the save; this one shows that all is thought of.
        writeln!(
            std::io::stderr(),
            "SKIPPED: a full disk: no tmpfs can be mounted here"
        )
        .unwrap();
        return;
    }
    struct Mounted(PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            // Lazily: what still stands in it goes its own way.
            let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
    let _mounted = Mounted(lab.workspace());
    fs::write(lab.session_file(), OLD).unwrap();
    let check = |what: &str| {
        let output = Cli::new(&lab, ["turn", "--fresh", "hi"]).run();
        assert_eq!(
            (output.status, output.stdout.as_str()),
            (0, "hi\n"),
            "{what}: {output:?}"
        );
        assert!(
            output.stderr.contains("cannot store the thread id"),
            "{what}: {output:?}"
        );
        assert_eq!(lab.stored_thread().as_deref(), Some(OLD), "{what}");
    };
    let _ = fs::write(lab.workspace().join("filler"), vec![b'x'; 100_000]);
    check("full");
    assert!(mount("remount,ro,size=64k"));
    check("read-only");
}

// fault: 30
#[test]
fn reports_busy_workspace_after_wait() {
    let lab = Lab::fake(Value::Null);
    lab.script(json!([{"touch": lab.path("started")}, {"wait_for": lab.path("go")}, "default"]));
    let mut first = Cli::new(&lab, ["turn", "first"]).spawn();
    wait_until("the first to start", || lab.path("started").exists());
    let told = format!(
        "another process runs a turn in the workspace '{}'",
        lab.workspace().display()
    );
    let refused = |answer: &Value| {
        assert_eq!(answer["error"]["code"], -32011, "{answer}");
        assert_eq!(
            answer["error"]["data"],
            json!({"code": "session_busy", "retryable": true})
        );
        assert!(answer["error"]["message"].as_str().unwrap().contains(&told));
    };
    // Not waited for at all.
    lab.config(json!({"busy_wait_secs": 0}));
    let mut daemon = Daemon::start(&lab);
    let id = daemon.request(method::STREAM, Daemon::prompt(&lab, "second"));
    refused(&daemon.answer(id));
    assert_eq!(daemon.events(id), [] as [Value; 0]);
    assert_eq!(daemon.logs(), [] as [Value; 0]);
    // Waited for, which only a log tells; but whoever has waited for another turn here has begun.
    lab.config(json!({"busy_wait_secs": 1}));
    daemon.init();
    let id = daemon.request(method::STREAM, Daemon::prompt(&lab, "second"));
    daemon.log("warning", &format!("{told} (process {}", first.id()));
    let behind = daemon.request(method::STREAM, Daemon::prompt(&lab, "behind"));
    refused(&daemon.answer(id));
    assert_eq!(daemon.events(id), [] as [Value; 0]);
    let turn = daemon.finish(behind);
    assert_eq!(turn.error_code(), Some("session_busy"), "{turn:?}");
    assert_eq!(turn.of("error").next().unwrap()["error"]["retryable"], true);
    let output = Cli::new(&lab, ["turn", "by hand"]).run();
    assert_eq!((output.status, output.stdout.as_str()), (1, ""));
    for part in [
        &format!("{told} (process {}", first.id()),
        "waiting for at most 1 s",
    ] {
        assert!(output.stderr.contains(part), "{output:?}");
    }
    lab.config(json!({}));
    daemon.init();
    fs::write(lab.path("go"), "").unwrap();
    assert!(cli::wait(&mut first, LIMIT).success());
    assert_eq!(daemon.turn(Daemon::prompt(&lab, "third")).text(), "third");
}

// fault: 56
#[test]
fn huge_rollout_needs_bounded_memory() {
    let Some(prlimit) = programs::find("prlimit") else {
        return;
    };
    let lab = Lab::fake(Value::Null);
    let rollout =
        lab.path("rollout-2026-11-21T12-06-56-01a1fe00-a027-7a81-b8a0-356e91ab6908.jsonl");
    let mut out = BufWriter::new(fs::File::create(&rollout).unwrap());
    let long = vec![b'x'; 1 << 20];
    let mut bytes = 0;
    for number in 0..4 {
        let head = |kind: &str| {
            format!(
                "{{\"timestamp\":\"t\",\"type\":\"response_item\",\"payload\":{{\"type\":\"{kind}\",\"call_id\":\"call_{number}\","
            )
        };
        let call = head("function_call") + "\"name\":\"x\",\"arguments\":\"{}\"}}\n";
        let output = head("function_call_output") + "\"output\":\"";
        out.write_all(call.as_bytes()).unwrap();
        out.write_all(output.as_bytes()).unwrap();
        for _ in 0..100 {
            out.write_all(&long).unwrap();
        }
        out.write_all(b"\"}}\n").unwrap();
        bytes += call.len() + output.len() + 100 * long.len() + 4;
    }
    out.into_inner().unwrap();
    // One line of those 400 MB, and what is grown to hold it, would not fit.
    for arguments in [
        &["parse-rollout"][..],
        &["parse-rollout", "--summary"],
        &["mutate", "call_0", "call_3", "--op", "heavy", "--rollout"],
    ] {
        let output = Command::new(&prlimit)
            .arg("--data=150000000")
            .arg(env!("CARGO_BIN_EXE_plexum-openai"))
            .args(arguments)
            .arg(&rollout)
            .env_clear()
            .envs(lab.env())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        // Lines this long are passed over, so that to 'mutate' the calls have no output.
        let (status, reason) = match arguments[0] {
            "mutate" => (1, "nothing was consumed"),
            _ => (0, ""),
        };
        assert_eq!(
            output.status.code(),
            Some(status),
            "{arguments:?}: {said:.500}"
        );
        assert!(said.contains(reason), "{arguments:?}: {said:.500}");
    }
    assert_eq!(fs::metadata(&rollout).unwrap().len(), bytes as u64);
}
