//! `turn` as a person sees it: on terminals of two widths, in a pipe, with and without colour, interrupted.

use crate::programs;
use crate::support::cli::{self, Output};
use crate::support::{Cli, LIMIT, Lab, ps, wait_until};
use crate::terminal::Terminal;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::io::Read;
use std::time::{Duration, Instant};

const THREAD: &str = "01a1fe00-a027-7a81-b8a0-356e91ab6908";

fn event(event: Value) -> Value {
    json!({"event": event})
}

fn text(text: &str) -> Value {
    event(
        json!({"type": "item.completed", "item": {"id": "m", "type": "agent_message", "text": text}}),
    )
}

/// The begin, the end, or another phase of a command.
fn command(phase: &str, id: &str, command: &str, exit_code: Value) -> Value {
    let status = match (&exit_code, phase) {
        (_, "started") => "in_progress",
        (Value::Number(code), _) if code.as_i64() != Some(0) => "failed",
        _ => "completed",
    };
    event(
        json!({"type": format!("item.{phase}"), "item": {"id": id, "type": "command_execution",
        "command": command, "aggregated_output": "", "exit_code": exit_code, "status": status}}),
    )
}

fn begin() -> [Value; 3] {
    [
        json!("read_stdin"),
        event(json!({"type": "thread.started", "thread_id": THREAD})),
        event(json!({"type": "turn.started"})),
    ]
}

fn end() -> Value {
    event(
        json!({"type": "turn.completed", "usage": {"input_tokens": 1840,
        "cached_input_tokens": 900, "output_tokens": 30}}),
    )
}

/// A turn with everything that is hard to show, which waits for the file `go` while a command runs.
fn work(lab: &Lab) -> Value {
    let long = format!("/bin/bash -lc 'echo\n\t日本語 {}'", "x".repeat(5000));
    let hostile = "/bin/bash -lc 'printf \u{1b}[2J\u{1b}]0;title\u{7} \u{202e}'";
    let steps = [
        text("I will look."),
        command("started", "a", &long, Value::Null),
        command("started", "b", hostile, Value::Null),
        json!({"wait_for": lab.path("go")}),
        command("completed", "b", hostile, json!(0)),
        command("completed", "a", &long, json!(7)),
        event(
            json!({"type": "item.started", "item": {"id": "c", "type": "mcp_tool_call",
            "server": "plexum_alice", "tool": "fabric_send", "status": "in_progress"}}),
        ),
        event(
            json!({"type": "item.completed", "item": {"id": "c", "type": "mcp_tool_call",
            "server": "plexum_alice", "tool": "fabric_send", "status": "failed"}}),
        ),
        event(
            json!({"type": "item.completed", "item": {"id": "d", "type": "file_change",
            "changes": [{"path": format!("{}/src/a.rs", lab.workspace().display())}, {"path": "/etc/b"}],
            "status": "completed"}}),
        ),
        text("It is\u{1b}[31m red."),
        end(),
    ];
    begin().into_iter().chain(steps).collect()
}

/// Starts `plexum-openai turn` with these arguments on a terminal of so many columns; `END` and the status come
/// last.
fn start(
    lab: &Lab,
    columns: usize,
    arguments: &str,
    environment: &[(&str, &str)],
) -> Option<Terminal> {
    let script = programs::find("script")?;
    let mut variables: Vec<(String, String)> = lab
        .env()
        .map(|(name, value)| (name.into_string().unwrap(), value.into_string().unwrap()))
        .collect();
    variables.push(("TERM".to_owned(), "xterm".to_owned()));
    for (name, value) in environment {
        variables.push(((*name).to_owned(), (*value).to_owned()));
    }
    let variables: Vec<(&str, &str)> = variables
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    // The shell outlives the Ctrl-C that ends the turn, to tell how it ended.
    let line = format!(
        "stty cols {columns} rows 24; trap : INT; {} turn {arguments}; echo E''ND $?",
        env!("CARGO_BIN_EXE_plexum-openai")
    );
    let directory = lab.workspace();
    Some(Terminal::start(&script, &line, &directory, &variables))
}

/// Without what a run takes: `(2.4 s)` and `12 s:` are `(T)` and `T:`.
fn timeless(lines: &[String]) -> Vec<String> {
    let mut timeless = Vec::new();
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        let mut shown: Vec<String> = Vec::new();
        for word in words {
            let seconds = word.trim_matches([':', ';', ')']);
            let number = shown
                .last()
                .is_some_and(|last| last.ends_with(|c: char| c.is_ascii_digit()));
            if seconds == "s" && number {
                let last = shown.pop().unwrap();
                let head = last.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
                shown.push(format!("{head}T{}", &word[1..]));
            } else {
                shown.push(word.to_owned());
            }
        }
        timeless.push(shown.join(" "));
    }
    timeless
}

#[test]
fn shows_live_line_and_keeps_finished_steps() {
    let x = "x".repeat(80);
    for (columns, live, done) in [
        (
            80,
            "T: $ printf \u{fffd}[2J\u{fffd}]0;title\u{fffd} \u{fffd} (+1)",
            vec![
                "I will look.".to_owned(),
                "$ printf \u{fffd}[2J\u{fffd}]0;title\u{fffd} \u{fffd} (T)".to_owned(),
                format!("$ echo 日本語 {}… (exit 7, T)", &x[..49]),
                "tool plexum_alice.fabric_send (failed, T)".to_owned(),
                "edit src/a.rs, /etc/b".to_owned(),
                String::new(),
                "It is\u{fffd}[31m red.".to_owned(),
                "done in T; 1840 tokens in (900 from cache), 30 out;".to_owned(),
                format!("  thread {THREAD}"),
                "END 0".to_owned(),
            ],
        ),
        (
            40,
            "T: $ printf \u{fffd}[2J\u{fffd}]0;title\u{fffd} \u{fffd} (+1)",
            vec![
                "I will look.".to_owned(),
                "$ printf \u{fffd}[2J\u{fffd}]0;title\u{fffd} \u{fffd} (T)".to_owned(),
                format!("$ echo 日本語 {}… (exit 7, T)", &x[..9]),
                "tool plexum_alice.fabri… (failed, T)".to_owned(),
                "edit src/a.rs, /etc/b".to_owned(),
                String::new(),
                "It is\u{fffd}[31m red.".to_owned(),
                "done in T; 1840 tokens in (900 from".to_owned(),
                "  cache), 30 out; thread".to_owned(),
                format!("  {THREAD}"),
                "END 0".to_owned(),
            ],
        ),
    ] {
        let lab = Lab::fake(Value::Null);
        lab.script(work(&lab));
        let Some(mut terminal) = start(&lab, columns, "hi", &[]) else {
            return;
        };
        terminal.wait("printf");
        terminal.wait("(+1)");
        let shown = timeless(&terminal.screen(columns));
        assert_eq!(shown, ["I will look.", live], "{columns} columns");
        // The seconds pass though codex says nothing.
        terminal.wait("1 s: $ printf");
        fs::write(lab.path("go"), "").unwrap();
        terminal.wait("END ");
        terminal.wait("\n");
        let shown = terminal.screen(columns);
        assert_eq!(timeless(&shown), done, "{columns} columns: {shown:#?}");
    }
}

#[test]
fn stdout_has_only_the_response() {
    let lab = Lab::fake(Value::Null);
    lab.script(work(&lab));
    fs::write(lab.path("go"), "").unwrap();
    let Some(mut terminal) = start(&lab, 80, "hi > ../out", &[]) else {
        return;
    };
    terminal.wait("END 0");
    let out = fs::read_to_string(lab.path("out")).unwrap();
    // As it was said: a file is not a terminal that could be harmed.
    assert_eq!(out, "I will look.\n\nIt is\u{1b}[31m red.\n");
}

#[test]
fn queued_turn_shows_that_it_waits() {
    if programs::find("script").is_none() {
        return;
    }
    let lab = Lab::fake(Value::Null);
    lab.script(json!([{"touch": lab.path("started")}, {"wait_for": lab.path("go")}, "default"]));
    let mut first = Cli::new(&lab, ["turn", "first"]).spawn();
    wait_until("the first to start", || lab.path("started").exists());
    let mut terminal = start(&lab, 80, "second", &[]).expect("script is there");
    terminal.wait("0 s: waiting to start");
    terminal.wait("1 s: waiting to start");
    fs::write(lab.path("go"), "").unwrap();
    assert!(cli::wait(&mut first, LIMIT).success());
    terminal.wait("END 0");
}

#[test]
fn fails_when_stdout_cannot_be_written() {
    let lab = Lab::fake(Value::Null);
    lab.script(work(&lab));
    fs::write(lab.path("go"), "").unwrap();
    for arguments in ["hi > /dev/full", "--json hi > /dev/full"] {
        let Some(mut terminal) = start(&lab, 80, arguments, &[]) else {
            return;
        };
        terminal.wait("END 1");
        let all = terminal.all();
        assert!(
            all.contains("cannot write to stdout: No space left on device"),
            "{all}"
        );
        assert!(!all.contains("done"), "{all}");
    }
}

#[test]
fn prints_plain_lines_to_pipe() {
    let lab = Lab::fake(Value::Null);
    lab.script(work(&lab));
    fs::write(lab.path("go"), "").unwrap();
    let output: Output = Cli::new(&lab, ["turn", "hi"]).env("TERM", "xterm").run();
    let expected = format!(
        "plexum-openai: $ printf \u{fffd}[2J\u{fffd}]0;title\u{fffd} \u{fffd} (<time>)
plexum-openai: $ echo 日本語 {}… (exit 7, <time>)
plexum-openai: tool plexum_alice.fabric_send (failed, <time>)
plexum-openai: edit src/a.rs, /etc/b
plexum-openai: done in <time>; 1840 tokens in (900 from cache), 30 out; thread <uuid 1>
",
        "x".repeat(169)
    );
    assert_eq!(output.told(&output.stderr), expected);
    assert_eq!(
        (output.status, output.stdout.as_str()),
        (0, "I will look.\n\nIt is\u{1b}[31m red.\n")
    );
}

#[test]
fn colour_and_live_line_follow_environment() {
    for (arguments, variable, color, live) in [
        ("hi", ("LC_ALL", "C.UTF-8"), true, true),
        ("hi", ("NO_COLOR", "1"), false, true),
        ("--color=never hi", ("LC_ALL", "C.UTF-8"), false, true),
        ("--color always hi", ("NO_COLOR", "1"), true, true),
        ("hi", ("TERM", "dumb"), false, false),
        // A log would be written into the live line.
        ("hi", ("RUST_LOG", "warn"), true, false),
        // Whoever reads the pipe may write on the same terminal.
        ("hi | cat", ("LC_ALL", "C.UTF-8"), true, false),
        ("hi 2>&1 | cat", ("LC_ALL", "C.UTF-8"), false, false),
        (
            "--color=always hi 2>&1 | cat",
            ("LC_ALL", "C.UTF-8"),
            true,
            false,
        ),
    ] {
        let lab = Lab::fake(Value::Null);
        lab.script(work(&lab));
        fs::write(lab.path("go"), "").unwrap();
        let Some(mut terminal) = start(&lab, 80, arguments, &[variable]) else {
            return;
        };
        terminal.wait("END 0");
        // What the answer has in it is not ours.
        let all = terminal.all().replace("\u{1b}[31m red.", "");
        let case = format!("{arguments} {variable:?}: {all:?}");
        assert_eq!(all.contains("\u{1b}[32mdone\u{1b}[0m"), color, "{case}");
        assert_eq!(all.contains("\u{1b}[K"), live, "{case}");
        assert_eq!(all.contains('\u{1b}'), color || live, "{case}");
    }
}

#[test]
fn ctrl_c_cancels_and_second_one_kills() {
    let lab = Lab::fake(Value::Null);
    let running = |more: Vec<Value>| -> Value {
        let steps = [
            command("started", "a", "sleep 100", Value::Null),
            json!({"touch": lab.path("started")}),
            json!({"sleep_ms": 100_000}),
        ];
        begin().into_iter().chain(more).chain(steps).collect()
    };
    lab.script(running(Vec::new()));
    let Some(mut terminal) = start(&lab, 80, "hi", &[]) else {
        return;
    };
    terminal.wait("sleep 100");
    terminal.keys("\u{3}");
    terminal.wait("END ");
    terminal.wait("\n");
    let done = [
        "$ sleep 100 (not finished, T)",
        "cancelled in T; 0 tokens in (0 from cache), 0 out;",
        &format!("  thread {THREAD}"),
        "END 130",
    ];
    assert_eq!(timeless(&terminal.screen(80)), done);
    lab.assert_quiet();
    assert_eq!(lab.stored_thread().as_deref(), Some(THREAD));

    // Something that does not want to end, and something of its own besides.
    fs::remove_file(lab.path("started")).unwrap();
    lab.script(running(vec![
        json!({"ignore": ["INT", "TERM"]}),
        json!({"grandchild": {"setsid": true, "holds_pipes": true, "ignores_signals": true}}),
    ]));
    let Some(mut terminal) = start(&lab, 80, "hi", &[]) else {
        return;
    };
    wait_until("codex to work", || lab.path("started").exists());
    terminal.wait("sleep 100");
    terminal.keys("\u{3}");
    terminal.wait("cancelling the turn; Ctrl-C kills it at once");
    let second = Instant::now();
    terminal.keys("\u{3}");
    terminal.wait("END 130");
    // The steps of a proper end take two and a half.
    assert!(
        second.elapsed() < Duration::from_secs(2),
        "{:?}",
        second.elapsed()
    );
    assert_eq!(timeless(&terminal.screen(80)), done);
    lab.assert_quiet();
}

/// Whoever reads stdout may have stopped reading; the turn can still be ended.
#[test]
fn unread_stdout_does_not_block_cancel() {
    let lab = Lab::fake(Value::Null);
    let flood = [
        json!({"long_line": {"bytes": 1 << 20, "suffix": "\"}}",
            "prefix": "{\"type\":\"item.completed\",\"item\":{\"id\":\"m\",\"type\":\"agent_message\",\"text\":\""}}),
        json!({"sleep_ms": 100_000}),
    ];
    lab.script(begin().into_iter().chain(flood).collect());
    let mut child = Cli::new(&lab, ["turn", "hi"]).spawn();
    drop(child.stdin.take());
    wait_until("the turn to begin", || lab.stored_thread().is_some());
    let mut stdout = child.stdout.take().unwrap();
    wait_until("the pipe to be full", || {
        rustix::io::ioctl_fionread(&stdout).unwrap() == 64 << 10
    });
    ps::signal(child.id(), Signal::INT);
    let status = cli::wait(&mut child, LIMIT);
    assert_eq!(cli::shell_status(status), 130, "{status}");
    let mut stderr = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut stderr)
        .unwrap();
    assert!(
        stderr.contains("plexum-openai: io: cannot write to stdout: timed out\n")
            && stderr.contains("plexum-openai: cancelled in "),
        "{stderr}"
    );
    drop(stdout.read(&mut [0]));
    lab.assert_quiet();
}

// fault: 97
#[test]
fn ctrl_c_ends_shell_loop() {
    let lab = Lab::fake(Value::Null);
    lab.script(
        begin()
            .into_iter()
            .chain([
                json!({"touch": lab.path("started")}),
                json!({"sleep_ms": 100_000}),
            ])
            .collect(),
    );
    let mut child = std::process::Command::new("setsid")
        .args([
            // Where the tests run in the background of a script, SIGINT is ignored.
            "env",
            "--default-signal=INT",
            "bash",
            "-c",
            "for i in 1 2 3; do \"$0\" turn hi; echo again; done",
        ])
        .arg(env!("CARGO_BIN_EXE_plexum-openai"))
        .env_clear()
        .envs(lab.env())
        .current_dir(lab.workspace())
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_until("codex to work", || lab.path("started").exists());
    // As the terminal sends it: to the shell and the turn, but not to codex, which has a group of its own.
    let group = rustix::process::Pid::from_raw(child.id().try_into().unwrap()).unwrap();
    rustix::process::kill_process_group(group, Signal::INT).unwrap();
    let status = cli::wait(&mut child, LIMIT);
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status),
        Some(2),
        "{status}"
    );
    let mut stdout = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut stdout)
        .unwrap();
    assert_eq!(stdout, "");
    lab.assert_quiet();
}

/// What codex quotes for its display, with the reason told once.
// fault: 97
#[test]
fn shows_commands_as_written_and_why_they_failed() {
    let lab = Lab::fake(Value::Null);
    let printed: String = (1..=14).map(|n| format!("  line {n}\u{1b}[2J\n")).collect();
    let failed = json!({"type": "item.completed", "item": {"id": "a", "type": "command_execution",
        "command": "/bin/bash -lc \"awk '\"'{print $1}'\"' x\"", "aggregated_output": printed,
        "exit_code": 2, "status": "failed"}});
    lab.script(
        begin()
            .into_iter()
            .chain([
                event(failed),
                event(json!({"type": "error", "message": "Reconnecting... 1/5"})),
                event(json!({"type": "error", "message": "the model is gone"})),
                event(json!({"type": "turn.failed", "error": {"message": "the model is gone"}})),
            ])
            .collect(),
    );
    let output = Cli::new(&lab, ["turn", "hi"]).run();
    let lines: Vec<&str> = output
        .stderr
        .lines()
        .map(|line| line.strip_prefix("plexum-openai: ").unwrap())
        .collect();
    assert_eq!(lines[0], "$ awk '{print $1}' x (exit 2)", "{output:?}");
    let shown: Vec<String> = (5..=14)
        .map(|n| format!("  |   line {n}\u{fffd}[2J"))
        .collect();
    assert_eq!(lines[1..11], shown);
    assert_eq!(lines[11], "warning: codex: Reconnecting... 1/5");
    assert_eq!(
        output.stderr.matches("the model is gone").count(),
        1,
        "{output:?}"
    );
    assert_eq!(output.status, 1);
}

#[test]
fn ctrl_z_stops_codex_and_fg_continues_it() {
    let lab = Lab::fake(Value::Null);
    let steps = [
        json!({"touch": lab.path("started")}),
        json!({"wait_for": lab.path("go")}),
        json!("default"),
    ];
    lab.script(begin().into_iter().chain(steps).collect());
    let mut child = Cli::new(&lab, ["turn", "hi"]).spawn();
    wait_until("codex to work", || lab.path("started").exists());
    let codex = u32::try_from(lab.fake_runs()[0]["pid"].as_u64().unwrap()).unwrap();
    let is_stopped = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.starts_with('T')
    };
    let turn = rustix::process::Pid::from_raw(child.id().try_into().unwrap()).unwrap();
    rustix::process::kill_process(turn, Signal::TSTP).unwrap();
    wait_until("both to stop", || {
        is_stopped(child.id()) && is_stopped(codex)
    });
    rustix::process::kill_process(turn, Signal::CONT).unwrap();
    wait_until("both to go on", || {
        !is_stopped(child.id()) && !is_stopped(codex)
    });
    fs::write(lab.path("go"), "").unwrap();
    assert_eq!(cli::wait(&mut child, LIMIT).code(), Some(0));
}
