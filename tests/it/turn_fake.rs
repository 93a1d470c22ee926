//! Faults of the codex process, one case each, by a scripted codex: the turn ends as written, nothing is lost
//! that was said before, nothing is left running, and the plugin serves the next turn.

use crate::support::codex::fake;
use crate::support::{Cli, Daemon, Lab, Turn, method, ps, wait_until};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

/// What a script of a turn begins with.
fn begin() -> Vec<Value> {
    vec![
        json!("read_stdin"),
        json!({"event": {"type": "thread.started", "thread_id": "{thread}"}}),
        json!({"event": {"type": "turn.started"}}),
    ]
}

fn message(text: &str) -> Value {
    json!({"event": {"type": "item.completed",
        "item": {"id": "item_0", "type": "agent_message", "text": text}}})
}

fn completed() -> Value {
    json!({"event": {"type": "turn.completed", "usage": {"input_tokens": 100,
        "cached_input_tokens": 10, "output_tokens": 5, "reasoning_output_tokens": 1}}})
}

/// A script: the beginning of a turn, and then these steps.
fn begun(steps: impl IntoIterator<Item = Value>) -> Value {
    begin().into_iter().chain(steps).collect()
}

/// Runs one turn with this script, and then a good one in the same plugin.
#[track_caller]
fn run(lab: &Lab, script: Value, config: Value) -> (Turn, Vec<Value>) {
    lab.config(config);
    lab.script(json!({"runs": [script, ["default"]]}));
    let mut daemon = Daemon::start(lab);
    let turn = daemon.turn(Daemon::prompt(lab, "hi"));
    assert_eq!(ps::zombies(daemon.pid()), 0);
    // A new one: what the fake told of its thread may be known to nobody.
    let _ = fs::remove_file(lab.session_file());
    let next = daemon.turn(Daemon::prompt(lab, "next"));
    assert_eq!(next.text(), "next", "{next:?}");
    let logs = daemon.logs().to_vec();
    drop(daemon);
    lab.assert_quiet();
    (turn, logs)
}

/// A turn with this script fails with this code, and its message has all of these parts.
#[track_caller]
fn check_failure(script: Value, code: &str, parts: &[&str]) -> (Turn, Vec<Value>) {
    let lab = Lab::fake(Value::Null);
    let (turn, logs) = run(&lab, script, json!({"idle_timeout_secs": 2}));
    let events = &turn.events;
    assert_eq!(turn.error_code(), Some(code), "{events:?}");
    assert_eq!(turn.stop_reason(), "error");
    let error = turn.of("error").next().unwrap();
    for part in parts {
        assert!(
            error["error"]["message"].as_str().unwrap().contains(part),
            "{part:?} in {error}"
        );
    }
    (turn, logs)
}

/// A turn with this script ends well, with this text and with this in a warning, where there is to be one.
#[track_caller]
fn check_success(script: Value, text: &str, warning: Option<&str>) -> Turn {
    let lab = Lab::fake(Value::Null);
    let (turn, logs) = run(&lab, script, json!({}));
    assert_eq!(turn.error_code(), None, "{:?}", turn.events);
    assert_eq!(turn.stop_reason(), "end_turn");
    assert!(turn.text() == text, "{:.300}", turn.text());
    if let Some(warning) = warning {
        assert!(
            logs.iter().any(|log| log["level"] == "warning"
                && log["data"]["message"].as_str().unwrap().contains(warning)),
            "no warning with {warning:?} in {logs:?}"
        );
    }
    turn
}

// fault: 1, 3, 4
#[test]
fn classifies_codex_that_cannot_start() {
    let lab = Lab::fake(Value::Null);
    let file = |name: &str, bytes: &[u8], mode: u32| {
        let path = lab.path(name);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    let foreign = {
        let mut elf = fs::read(fake()).unwrap();
        // e_machine: IBM S/390.
        elf[18..20].copy_from_slice(&22_u16.to_ne_bytes());
        elf
    };
    for (binary, parts) in [
        (lab.path("gone"), &["gone", "No such file"][..]),
        (lab.path("workspace"), &["workspace", "directory"]),
        (
            file("plain", b"#!/bin/sh\n", 0o644),
            &["plain", "not executable"],
        ),
        (file("empty", b"", 0o755), &["empty"]),
        (
            file("foreign", &foreign, 0o755),
            &["foreign", "architecture"],
        ),
        (file("noscript", b"hello", 0o755), &["noscript"]),
        (file("lost", b"#!/no/node\n", 0o755), &["lost", "/no/node"]),
        (
            file("nonode", b"#!/usr/bin/env no-such-node\n", 0o755),
            &["nonode", "no-such-node"],
        ),
        ("no-such-codex".into(), &["no-such-codex", "PATH"]),
    ] {
        lab.config(json!({"binary": binary}));
        let mut daemon = Daemon::start(&lab);
        let id = daemon.request(method::STREAM, Daemon::prompt(&lab, "hi"));
        let turn = daemon.finish(id);
        assert_eq!(turn.answer["error"]["code"], -32010, "{binary:?}: {turn:?}");
        assert_eq!(turn.events, Vec::<Value>::new(), "{binary:?}");
        let message = turn.answer["error"]["message"].as_str().unwrap();
        for part in parts.iter().chain(&["config.json"]) {
            assert!(message.contains(part), "{binary:?}: {part} in {message}");
        }
        // By hand the same words.
        let output = Cli::new(&lab, ["turn", "hi"]).run();
        assert_eq!(
            (
                output.status,
                output.stdout.as_str(),
                output.stderr.as_str()
            ),
            (1, "", format!("plexum-openai: {message}\n").as_str()),
        );
    }
}

// fault: 2
#[test]
fn reports_unusable_workspace() {
    let lab = Lab::fake(Value::Null);
    let mut daemon = Daemon::start(&lab);
    fs::write(lab.path("file"), "").unwrap();
    symlink(lab.path("nowhere"), lab.path("dangling")).unwrap();
    for workspace in ["file", "file/below", "dangling"] {
        let mut params = Daemon::prompt(&lab, "hi");
        params["agent"]["workspace"] = json!(lab.path(workspace));
        let answer = daemon.call(method::STREAM, params);
        let message = answer["error"]["message"]
            .as_str()
            .expect("an error answer");
        assert!(message.contains(workspace), "{answer}");
    }
    // One that is missing is made.
    let mut params = Daemon::prompt(&lab, "hi");
    params["agent"]["workspace"] = json!(lab.path("new/deep"));
    assert_eq!(daemon.turn(params).text(), "hi");
    assert!(lab.path("new/deep/.plexum-codex-session").exists());
}

// fault: 5, 6, 7
#[test]
fn reports_silent_end_of_codex() {
    check_failure(json!(["read_stdin"]), "codex_failed", &["status 0"]);
    check_failure(
        json!(["read_stdin", {"err": "first line"}, {"err": "the last words"}, {"exit": 3}]),
        "codex_failed",
        &["3", "the last words"],
    );
    check_failure(begun([]), "codex_failed", &["status 0"]);
    let (turn, _) = check_failure(
        begun([
            message("said"),
            json!({"raw": "{\"type\":\"item.completed\",\"item\":{\"id\":\"it"}),
            json!({"err": "the last words"}),
            json!({"exit": 9}),
        ]),
        "codex_failed",
        &["9", "the last words"],
    );
    assert_eq!(turn.text(), "said");
    for (signal, name) in [("KILL", "SIGKILL"), ("TERM", "SIGTERM")] {
        check_failure(
            begun([message("x"), json!({"signal": signal})]),
            "codex_failed",
            &[name],
        );
    }
}

// fault: 8, 10
#[test]
fn idle_timeout_ends_hanging_codex() {
    check_failure(
        begun([json!({"sleep_ms": 100_000})]),
        "idle_timeout",
        &["idle_timeout_secs"],
    );
    check_failure(
        begun([
            json!({"ignore": ["INT", "TERM"]}),
            json!({"sleep_ms": 100_000}),
        ]),
        "idle_timeout",
        &[],
    );
    // It reads nothing and says nothing.
    check_failure(json!([{"sleep_ms": 100_000}]), "idle_timeout", &[]);
    // Nothing more can be heard from it: that is waited for in bounds of its own.
    let lab = Lab::fake(Value::Null);
    let deaf = begun([
        message("x"),
        json!("close_stdout"),
        json!({"sleep_ms": 100_000}),
    ]);
    let start = Instant::now();
    let (turn, _) = run(&lab, deaf, json!({}));
    assert_eq!(turn.error_code(), Some("codex_failed"), "{:?}", turn.events);
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "{:?}",
        start.elapsed()
    );
    // Talking is not idleness, and the whole turn has a limit of its own.
    let lab = Lab::fake(Value::Null);
    let talk = json!({"repeat": {"times": 1000, "steps": [message("x"), {"sleep_ms": 300}]}});
    let start = Instant::now();
    let (turn, _) = run(
        &lab,
        begun([talk]),
        json!({"idle_timeout_secs": 2, "turn_timeout_secs": 4}),
    );
    assert_eq!(turn.error_code(), Some("turn_timeout"), "{:?}", turn.events);
    assert!(start.elapsed() > Duration::from_secs(4));
}

// fault: 8
#[test]
fn running_call_is_not_idle() {
    // A command that codex has told of runs longer than the limit, and is the turn's own business; and what
    // codex records counts as much as what it prints.
    let command = |kind: &str, status: &str| {
        json!({"event": {"type": kind, "item": {"id": "item_0", "type": "command_execution",
            "command": "sleep 4", "aggregated_output": "", "exit_code": null, "status": status}}})
    };
    let lab = Lab::fake(Value::Null);
    let script = begun([
        json!({"rollout": [{"timestamp": "{now}", "type": "response_item", "payload":
            {"type": "function_call", "name": "exec_command", "arguments": "{\"cmd\":\"sleep 4\"}", "call_id": "call_1"}}]}),
        command("item.started", "in_progress"),
        json!({"sleep_ms": 4_000}),
        json!({"rollout": [{"timestamp": "{now}", "type": "response_item", "payload":
            {"type": "function_call_output", "call_id": "call_1", "output": "done"}}]}),
        command("item.completed", "completed"),
        message("well"),
        completed(),
    ]);
    let (turn, _) = run(&lab, script, json!({"idle_timeout_secs": 2}));
    assert_eq!(
        (turn.stop_reason(), turn.text().as_str()),
        ("end_turn", "well"),
        "{turn:?}"
    );
    let script = begun([
        json!({"repeat": {"times": 20, "steps": [
            {"rollout": [{"timestamp": "{now}", "type": "event_msg", "payload": {"type": "other"}}]},
            {"sleep_ms": 200},
        ]}}),
        message("well"),
        completed(),
    ]);
    let lab = Lab::fake(Value::Null);
    let (turn, _) = run(&lab, script, json!({"idle_timeout_secs": 2}));
    assert_eq!(
        (turn.stop_reason(), turn.text().as_str()),
        ("end_turn", "well"),
        "{turn:?}"
    );
}

// fault: 8
/// A daemon that does not read holds codex up: that is not idleness of codex's.
#[test]
fn unread_output_is_not_idle() {
    let lab = Lab::fake(Value::Null);
    lab.config(json!({"idle_timeout_secs": 2}));
    let event = json!({"type": "item.completed",
        "item": {"id": "item_0", "type": "agent_message", "text": "x".repeat(200_000)}});
    // More than all that is between codex and the daemon holds.
    lab.script(begun([
        json!({"events": {"count": 100, "event": event}}),
        completed(),
    ]));
    let mut daemon = Daemon::start(&lab);
    daemon.stop_reading();
    let id = daemon.request(method::STREAM, Daemon::prompt(&lab, "hi"));
    // The time itself is what is tested.
    std::thread::sleep(Duration::from_secs(4));
    daemon.read_again();
    let turn = daemon.finish(id);
    assert_eq!(turn.stop_reason(), "end_turn", "{:?}", turn.error_code());
    assert_eq!(turn.of("text_delta").count(), 100);
}

/// What codex has said before its end counts, however late the daemon takes it.
#[test]
fn last_events_wait_for_slow_daemon() {
    let lab = Lab::fake(Value::Null);
    let event = json!({"type": "item.completed",
        "item": {"id": "item_0", "type": "agent_message", "text": "x".repeat(200_000)}});
    // Enough to hold the turn up, and little enough for the pipe, which the fake makes large, to take the rest.
    lab.script(begun([
        json!({"events": {"count": 24, "event": event}}),
        completed(),
    ]));
    let mut daemon = Daemon::start(&lab);
    daemon.stop_reading();
    let id = daemon.request(method::STREAM, Daemon::prompt(&lab, "hi"));
    wait_until("codex to end", || {
        lab.fake_prompts().len() == 1 && ps::of(lab.root()).len() == 1
    });
    // Longer than anything is waited for after that: the time itself is what is tested.
    std::thread::sleep(Duration::from_secs(1));
    daemon.read_again();
    let turn = daemon.finish(id);
    assert_eq!(turn.stop_reason(), "end_turn", "{:?}", turn.error_code());
    assert_eq!(turn.of("text_delta").count(), 24);
}

// fault: 9, 13
#[test]
fn drains_floods_in_bounded_memory() {
    let lab = Lab::fake(Value::Null);
    let prefix = "{\"type\":\"item.completed\",\"item\":{\"id\":\"item_0\",\"type\":\"command_execution\",\"aggregated_output\":\"";
    lab.script(json!({"runs": [
        begun([json!({"flood": {"to": "stderr", "bytes": 100_000_000}}), json!({"err": "the end of it"}), json!({"exit": 1})]),
        begun([
            json!({"long_line": {"bytes": 200_000_000}}),
            json!({"long_line": {"prefix": prefix, "bytes": 200_000_000, "suffix": "\"}}"}}),
            message("the next line"),
            completed(),
        ]),
    ]}));
    let mut daemon = Daemon::start(&lab);
    let turn = daemon.turn(Daemon::prompt(&lab, "hi"));
    let error = turn.of("error").next().unwrap();
    let text = error["error"]["message"].as_str().unwrap();
    assert!(
        text.contains("the end of it") && text.len() < 20_000,
        "{text:.500}"
    );
    let turn = daemon.turn(Daemon::prompt(&lab, "hi"));
    assert_eq!(
        (turn.stop_reason(), turn.text().as_str()),
        ("end_turn", "the next line")
    );
    let peak = ps::peak_memory(daemon.pid());
    assert!(peak < 150 << 20, "{peak} bytes");
}

#[test]
fn keeps_large_message_whole() {
    let prefix = "{\"type\":\"item.completed\",\"item\":{\"id\":\"item_0\",\"type\":\"agent_message\",\"text\":\"";
    check_success(
        begun([
            json!({"long_line": {"prefix": prefix, "bytes": 5_000_000, "suffix": "\"}}"}}),
            completed(),
        ]),
        &"x".repeat(5_000_000),
        None,
    );
}

// fault: 11
#[test]
fn waits_briefly_for_processes_that_hold_pipes() {
    let start = Instant::now();
    // What outlives a good turn in peace is the agent's business; the test ends it.
    for grandchild in [
        json!({"holds_pipes": true}),
        json!({"holds_pipes": true, "setsid": true}),
    ] {
        let lab = Lab::fake(Value::Null);
        lab.script(begun([
            json!({"grandchild": grandchild}),
            message("x"),
            completed(),
        ]));
        let mut daemon = Daemon::start(&lab);
        let turn = daemon.turn(Daemon::prompt(&lab, "hi"));
        assert_eq!(
            (turn.stop_reason(), turn.text().as_str()),
            ("end_turn", "x")
        );
        drop(daemon);
        ps::kill_all(lab.root());
    }
    // The event of the end has come, and codex lives on.
    let lab = Lab::fake(Value::Null);
    let (turn, _) = run(
        &lab,
        begun([
            message("x"),
            completed(),
            json!({"ignore": ["INT", "TERM"]}),
            json!({"sleep_ms": 100_000}),
        ]),
        json!({}),
    );
    assert_eq!(
        (turn.stop_reason(), turn.text().as_str()),
        ("end_turn", "x")
    );
    assert!(
        start.elapsed() < Duration::from_secs(40),
        "{:?}",
        start.elapsed()
    );
}

// fault: 12, 14
#[test]
fn ignores_bytes_that_are_not_events() {
    check_success(
        begun([
            json!({"raw": "\n\r\n  \n"}),
            json!({"raw": "\\xff\\xfe\\x00 not text\n"}),
            json!({"out": "not json"}),
            json!({"out": "17"}),
            json!({"out": "[]"}),
            json!({"out": "{}"}),
            json!({"out": "\u{feff}{\"type\":\"item.completed\",\"item\":{\"id\":\"item_0\",\"type\":\"agent_message\",\"text\":\"a\"}}\r"}),
            json!({"raw": "{\"type\":\"item.completed\",\"item\":{\"id\":\"item_1\",\"type\":\"agent_message\",\"text\":\"b\\xff\"}}\n"}),
            json!({"event": {"type": "strange", "x": [1]}}),
            json!({"event": {"type": 5}}),
            json!({"event": {"type": "item.completed"}}),
            json!({"event": {"type": "item.completed", "item": 5}}),
            json!({"event": {"type": "item.completed", "item": {"id": "item_2", "type": "strange"}}}),
            json!({"event": {"type": "item.completed", "item": {"id": "item_3", "type": "agent_message", "text": 5}}}),
            json!({"event": {"type": "item.completed", "item": {"id": "item_4", "type": "agent_message"}}}),
            json!({"out": "{\"type\":\"item.completed\",\"item\":{\"id\":\"item_5\",\"type\":\"web_search\",\"id\":\"ws_1\",\"query\":\"q\"}}"}),
            message("c"),
            completed(),
        ]),
        "a\n\nc",
        Some(""),
    );
}

// fault: 12
#[test]
fn counts_flood_of_lines_that_are_not_events() {
    let mut steps: Vec<Value> = vec![json!({"out": "usage: codex"}); 1000];
    steps.extend([message("a"), completed()]);
    let lab = Lab::fake(begun(steps));
    let turn = Cli::new(&lab, ["turn", "hi", "-w"])
        .arg(lab.workspace())
        .run();
    assert_eq!((turn.status, turn.stdout.as_str()), (0, "a\n"), "{turn:?}");
    let warnings: Vec<_> = turn
        .stderr
        .lines()
        .filter(|line| line.contains("warning"))
        .collect();
    assert_eq!(warnings.len(), 21, "{turn:?}");
    assert!(
        warnings[20].contains("980 more warnings and lines that are not events"),
        "{turn:?}"
    );
}

// fault: 15, 16, 17
#[test]
fn emits_one_end_per_turn() {
    check_success(
        begun([message("a"), completed(), completed(), message("late")]),
        "a",
        None,
    );
    let failed = json!({"event": {"type": "turn.failed", "error": {"message": "it went wrong"}}});
    check_success(
        begun([message("a"), completed(), failed.clone()]),
        "a",
        None,
    );
    check_success(
        begun([message("a"), completed(), json!({"exit": 4})]),
        "a",
        Some("4"),
    );
    let error = json!({"event": {"type": "error", "message": "it went wrong"}});
    for steps in [
        vec![failed.clone()],
        vec![error.clone(), failed.clone(), json!({"exit": 1})],
        vec![failed.clone(), completed(), message("late")],
    ] {
        let script = begun([message("a")].into_iter().chain(steps));
        let (turn, _) = check_failure(script, "turn_failed", &["it went wrong"]);
        assert_eq!(turn.text(), "a");
    }
    // What codex recovered from.
    check_success(
        begun([
            json!({"event": {"type": "error", "message": "Reconnecting... 1/3 (stream disconnected)"}}),
            message("a"),
            completed(),
        ]),
        "a",
        None,
    );
}

#[test]
fn emits_one_result_per_call() {
    let item = |kind: &str, item: Value| json!({"event": {"type": kind, "item": item}});
    let line = |payload: Value| json!({"rollout": [{"timestamp": "{now}", "type": "response_item", "payload": payload}]});
    let turn = check_success(
        begun([
            line(
                json!({"type": "function_call", "name": "exec_command", "arguments": "{\"cmd\": \"ls\"}", "call_id": "call_a"}),
            ),
            item(
                "item.started",
                json!({"id": "item_0", "type": "command_execution", "command": "ls",
                "aggregated_output": "", "exit_code": null, "status": "in_progress"}),
            ),
            // Its end is told in the rollout alone, as 0.135 does under load.
            line(json!({"type": "function_call_output", "call_id": "call_a", "output": "a.txt"})),
            line(
                json!({"type": "custom_tool_call", "name": "apply_patch", "input": "*** Begin", "call_id": "call_b"}),
            ),
            line(json!({"type": "custom_tool_call_output", "call_id": "call_b", "output": "ok"})),
            line(
                json!({"type": "function_call", "name": "never", "arguments": "no json", "call_id": "call_c"}),
            ),
            message("end"),
            completed(),
        ]),
        "end",
        None,
    );
    let uses: Vec<_> = turn
        .of("tool_use")
        .map(|event| (&event["id"], &event["name"], &event["input"]))
        .collect();
    assert_eq!(
        uses,
        [
            (
                &json!("call_a"),
                &json!("exec_command"),
                &json!({"cmd": "ls"})
            ),
            (&json!("call_b"), &json!("apply_patch"), &json!("*** Begin")),
            (&json!("call_c"), &json!("never"), &json!("no json")),
        ]
    );
    let results: Vec<_> = turn
        .of("tool_result")
        .map(|event| (&event["id"], &event["is_error"]))
        .collect();
    assert_eq!(
        results,
        [
            (&json!("call_a"), &json!(false)),
            (&json!("call_b"), &json!(false)),
            (&json!("call_c"), &json!(true)),
        ]
    );
    assert_eq!(turn.of("tool_result").next().unwrap()["content"], "a.txt");
}

#[test]
fn config_switches_tool_and_reasoning_events() {
    let script = begun([
        json!({"event": {"type": "item.completed", "item": {"id": "item_0", "type": "reasoning", "text": "hm"}}}),
        json!({"rollout": [
            {"timestamp": "{now}", "type": "response_item", "payload": {"type": "function_call", "name": "x", "arguments": "{}", "call_id": "c"}},
            {"timestamp": "{now}", "type": "response_item", "payload": {"type": "function_call_output", "call_id": "c", "output": "y"}},
            {"timestamp": "{now}", "type": "response_item", "payload": {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "end"}]}},
        ]}),
        message("end"),
        completed(),
    ]);
    for (config, kinds) in [
        (
            json!({}),
            &[
                "message_start",
                "tool_use",
                "tool_result",
                "text_delta",
                "message_end",
            ][..],
        ),
        (
            json!({"tool_events": false, "reasoning_events": true}),
            &[
                "message_start",
                "thinking_delta",
                "text_delta",
                "message_end",
            ],
        ),
    ] {
        let lab = Lab::fake(Value::Null);
        let (turn, _) = run(&lab, script.clone(), config);
        let told: Vec<_> = turn
            .events
            .iter()
            .map(|event| event["type"].as_str().unwrap())
            .collect();
        assert_eq!(told, kinds);
    }
}

// fault: 18
#[test]
fn rejects_invalid_thread_ids() {
    let started = |id: &str| json!({"event": {"type": "thread.started", "thread_id": id}});
    let known = "01a1fe09-e49e-7b41-ae77-ccf89ea932da";
    let other = "01a1fe09-ebc6-70c3-9bc6-c77e92a5ccbe";
    for (stored, told, kept) in [
        (None, vec![started("-cevil")], None),
        (None, vec![started("not a uuid")], None),
        (None, vec![started(known), started(other)], Some(known)),
        (Some(known), vec![started(other)], Some(known)),
        (
            Some(known),
            vec![started(known), started(other)],
            Some(known),
        ),
    ] {
        let lab = Lab::fake(Value::Null);
        if let Some(stored) = stored {
            fs::write(lab.session_file(), stored).unwrap();
        }
        let mut script = vec![json!("read_stdin")];
        script.extend(told.clone());
        script.extend([message("x"), completed()]);
        lab.script(json!(script));
        let mut daemon = Daemon::start(&lab);
        let turn = daemon.turn(Daemon::prompt(&lab, "hi"));
        assert_eq!(lab.stored_thread().as_deref(), kept, "{told:?}: {turn:?}");
        assert_eq!(turn.stop_reason(), "end_turn", "{told:?}: {turn:?}");
        daemon.log("warning", "thread");
    }
}

// fault: 20
#[test]
fn unread_prompt_does_not_hang() {
    let long = "x".repeat(1_000_000);
    for (steps, code, part) in [
        (
            json!([{"err": "no thanks"}, {"exit": 2}]),
            "codex_failed",
            "no thanks",
        ),
        (
            json!(["close_stdin", {"err": "no thanks"}, {"exit": 2}]),
            "codex_failed",
            "no thanks",
        ),
    ] {
        let lab = Lab::fake(Value::Null);
        lab.script(steps);
        let mut daemon = Daemon::start(&lab);
        let turn = daemon.turn(Daemon::prompt(&lab, &long));
        assert_eq!(turn.error_code(), Some(code));
        assert!(
            turn.of("error").next().unwrap().to_string().contains(part),
            "{turn:?}"
        );
    }
    // One that does its work without reading.
    let lab = Lab::fake(Value::Null);
    let mut script = begin();
    script.remove(0);
    script.extend([message("x"), completed()]);
    lab.script(json!(script));
    let mut daemon = Daemon::start(&lab);
    let turn = daemon.turn(Daemon::prompt(&lab, &long));
    assert_eq!(
        (turn.stop_reason(), turn.text().as_str()),
        ("end_turn", "x")
    );
}

#[test]
fn starts_codex_as_configured() {
    let mut lab = Lab::fake(Value::Null);
    lab.set_env("RUST_BACKTRACE", "1");
    lab.config(json!({
        "extra_args": ["--sandbox", "read-only", "-c", "a=\"b c\""],
        "env": {"MORE": "x = y"},
        "model_args": {"big": "gpt-big", "none": ""},
    }));
    let mut daemon = Daemon::start(&lab);
    let mut run = |model: Option<&str>| {
        let mut params = Daemon::prompt(&lab, "hi");
        match model {
            Some(model) => params["model"] = json!(model),
            None => drop(params.as_object_mut().unwrap().remove("model")),
        }
        assert_eq!(daemon.turn(params).text(), "hi");
        lab.fake_runs().pop().unwrap()
    };
    for (model, expected) in [
        (Some("codex"), None),
        (Some(""), None),
        (None, None),
        (Some("none"), None),
        (Some("big"), Some("gpt-big")),
        (Some("gpt-5"), Some("gpt-5")),
    ] {
        let run = run(model);
        let args: Vec<&str> = run["argv"]
            .as_array()
            .unwrap()
            .iter()
            .map(|arg| arg.as_str().unwrap())
            .collect();
        let given = args
            .iter()
            .position(|arg| matches!(*arg, "--model" | "-m"))
            .map(|at| args[at + 1]);
        assert_eq!(given, expected, "{model:?}: {args:?}");
        let end = args.iter().position(|arg| *arg == "--").unwrap();
        assert!(
            args[..end]
                .windows(4)
                .any(|part| part == ["--sandbox", "read-only", "-c", "a=\"b c\""]),
            "{args:?}"
        );
        assert_eq!(*args.last().unwrap(), "-");
        assert_eq!(
            run["cwd"],
            json!(fs::canonicalize(lab.workspace()).unwrap())
        );
        assert_eq!(run["env"]["MORE"], "x = y");
        assert_eq!(run["env"]["RUST_BACKTRACE"], Value::Null);
        assert_eq!(run["stdin_is"], "pipe");
        assert_eq!(run["env"]["CODEX_HOME"], json!(lab.codex_home()));
    }
    lab.config(json!({"prompt_via": "arg", "codex_home": lab.path("other")}));
    drop(daemon);
    let _ = fs::remove_file(lab.session_file());
    let mut daemon = Daemon::start(&lab);
    assert_eq!(daemon.turn(Daemon::prompt(&lab, "--hi")).text(), "--hi");
    let run = lab.fake_runs().pop().unwrap();
    let args = run["argv"].as_array().unwrap();
    assert_eq!(args[args.len() - 2..], [json!("--"), json!("--hi")]);
    assert_eq!(
        (&run["stdin_is"], &run["env"]["CODEX_HOME"]),
        (&json!("device"), &json!(lab.path("other")))
    );
}

// fault: 21
#[test]
fn process_limit_fails_turn_and_not_plugin() {
    // The limit is the plugin's own and its children's; one that it had before does no harm.
    let lab = Lab::fake(Value::Null);
    lab.script(json!({"runs": [["default"]]}));
    let mut daemon = Daemon::start(&lab);
    let limit = |files: &str| {
        let status = std::process::Command::new("prlimit")
            .args([
                "--pid",
                &daemon.pid().to_string(),
                &format!("--nofile={files}"),
            ])
            .status()
            .unwrap();
        assert!(status.success());
    };
    limit("6:4096");
    let id = daemon.request(method::STREAM, Daemon::prompt(&lab, "hi"));
    let turn = daemon.finish(id);
    let failed = turn.answer.get("error").is_some() || turn.error_code().is_some();
    assert!(failed, "{turn:?}");
    let status = std::process::Command::new("prlimit")
        .args(["--pid", &daemon.pid().to_string(), "--nofile=4096:4096"])
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(daemon.turn(Daemon::prompt(&lab, "again")).text(), "again");
}

// fault: 23
#[test]
fn cancels_turn_at_every_point() {
    let lab = Lab::fake(Value::Null);
    let mut daemon = Daemon::start(&lab);
    for number in 0..40_u64 {
        let mut params = Daemon::prompt(&lab, "hi");
        params["agent"]["workspace"] = json!(lab.path(&format!("w{}", number % 4)));
        let id = daemon.request(method::STREAM, params);
        // No point in time is waited for: every one is as good as any other.
        std::thread::sleep(Duration::from_micros(number * 700));
        daemon.cancel(id);
        let turn = daemon.finish(id);
        assert!(
            matches!(turn.stop_reason(), "cancelled" | "end_turn"),
            "{turn:?}"
        );
        assert_eq!(turn.error_code(), None, "{turn:?}");
    }
    wait_until("all to be gone", || ps::of(lab.root()).len() == 1);
    assert_eq!(ps::zombies(daemon.pid()), 0);
    assert!(Path::new("/proc").join(daemon.pid().to_string()).exists());
}

/// Lines of a rollout.
fn recorded(payloads: impl IntoIterator<Item = Value>) -> Value {
    let line = |payload: Value| {
        let kind = match payload["type"].as_str() {
            Some("task_started" | "task_complete" | "turn_aborted" | "token_count") => "event_msg",
            _ => "response_item",
        };
        json!({"timestamp": "{now}", "type": kind, "payload": payload})
    };
    json!({"rollout": payloads.into_iter().map(line).collect::<Vec<_>>()})
}

fn recorded_text(text: &str) -> Value {
    json!({"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]})
}

fn recorded_call(id: &str) -> Value {
    json!({"type": "function_call", "name": "exec_command", "arguments": "{}", "call_id": id})
}

fn recorded_output(id: &str) -> Value {
    json!({"type": "function_call_output", "call_id": id, "output": "done"})
}

fn task_complete(turn: &str, last: Option<&str>) -> Value {
    json!({"type": "task_complete", "turn_id": turn, "last_agent_message": last})
}

// fault: 83
#[test]
fn recorded_end_of_turn_counts_as_printed() {
    let started = || json!({"type": "task_started", "turn_id": "t1"});
    let count = json!({"type": "token_count", "info": {"total_token_usage":
        {"input_tokens": 70, "output_tokens": 7, "total_tokens": 77}}});
    let silent = json!({"sleep_ms": 100_000});
    let cases = [
        // Nothing was printed at all.
        (
            vec![recorded([
                started(),
                recorded_text("The answer."),
                count.clone(),
                task_complete("t1", Some("The answer.")),
            ])],
            "The answer.",
        ),
        // The message alone is in the last record.
        (
            vec![recorded([
                started(),
                task_complete("t1", Some("The answer.")),
            ])],
            "The answer.",
        ),
        // What was printed is told once, what was not is told in its place.
        (
            vec![
                recorded([started(), recorded_text("first"), recorded_text("second")]),
                message("first"),
                recorded([recorded_text("third"), task_complete("t1", Some("third"))]),
            ],
            "first\n\nsecond\n\nthird",
        ),
        (
            vec![
                recorded([started(), recorded_text("all")]),
                message("all"),
                recorded([task_complete("t1", Some("all"))]),
            ],
            "all",
        ),
    ];
    // Each waits for as long as codex may still print what it has recorded.
    std::thread::scope(|scope| {
        for (records, text) in cases {
            let silent = &silent;
            scope.spawn(move || {
                let start = Instant::now();
                let script = begun(records.into_iter().chain([silent.clone()]));
                let turn = check_success(script, text, Some("recorded the end"));
                assert!(
                    start.elapsed() >= Duration::from_secs(9),
                    "codex may still print it"
                );
                if text == "The answer." && turn.result()["usage"]["input_tokens"] != 0 {
                    assert_eq!(turn.result()["usage"]["input_tokens"], 70, "{turn:?}");
                }
            });
        }
    });
}

// fault: 83
#[test]
fn ignores_recorded_end_of_other_turn() {
    // The end of another turn, and an abort.
    check_failure(
        begun([
            recorded([
                json!({"type": "task_started", "turn_id": "t2"}),
                task_complete("t1", Some("old")),
            ]),
            json!({"sleep_ms": 100_000}),
        ]),
        "idle_timeout",
        &[],
    );
    let (turn, _) = check_failure(
        begun([
            recorded([
                json!({"type": "task_started", "turn_id": "t1"}),
                json!({"type": "turn_aborted", "turn_id": "t1", "reason": "interrupted"}),
            ]),
            json!({"sleep_ms": 100_000}),
        ]),
        "codex_failed",
        &["interrupted"],
    );
    assert_eq!(turn.text(), "");
}

// fault: 83
#[test]
fn emits_recorded_text_between_printed_ones_in_order() {
    let from_agent =
        json!({"author": "/main/a", "recipient": "/main", "content": "hi"}).to_string();
    check_success(
        begun([
            recorded([
                recorded_text("one"),
                recorded_text("two"),
                recorded_text(&from_agent),
                recorded_text("three"),
            ]),
            message("one"),
            message("three"),
            completed(),
        ]),
        "one\n\ntwo\n\nthree",
        None,
    );
}

// fault: 82
#[test]
fn reported_end_of_call_ends_its_exemption_from_idle_timeout() {
    let item = |kind: &str, id: &str, status: &str| {
        json!({"event": {"type": kind, "item": {"id": id, "type": "command_execution",
            "command": "true", "aggregated_output": "", "exit_code": 0, "status": status}}})
    };
    let over = |id: &str| {
        [
            item("item.started", id, "in_progress"),
            item("item.completed", id, "completed"),
        ]
    };
    for records in [
        // No output, one of two of the same id, a torn one.
        vec![recorded([recorded_call("a")])],
        vec![recorded([
            recorded_call("a"),
            recorded_call("a"),
            recorded_output("a"),
        ])],
        vec![
            recorded([recorded_call("a")]),
            json!({"rollout": ["{\"timestamp\":\"x\",\"type\":\"response_item\",\"payl"]}),
        ],
    ] {
        let steps = records
            .into_iter()
            .chain(over("item_0"))
            .chain([json!({"sleep_ms": 100_000})]);
        let lab = Lab::fake(Value::Null);
        let config = json!({"idle_timeout_secs": 2, "tool_events": false});
        let (turn, _) = run(&lab, begun(steps), config);
        assert_eq!(turn.error_code(), Some("idle_timeout"), "{turn:?}");
    }
}

// fault: 99
#[test]
fn warns_of_empty_turn() {
    check_success(begun([completed()]), "", Some("without any text"));
}

// fault: 99
#[test]
fn takes_skipped_text_from_rollout() {
    let long = json!({"long_line": {"prefix": "{\"type\":\"item.completed\",\"item\":{\"type\":\"agent_message\",\"text\":\"",
        "bytes": 17 << 20, "suffix": "\"}}"}});
    check_success(
        begun([
            recorded([recorded_text("the long answer")]),
            long.clone(),
            completed(),
        ]),
        "the long answer",
        Some("skipped"),
    );
    check_success(begun([long, completed()]), "", Some("has no text"));
}

// fault: 110
#[test]
fn spawn_error_of_guard_cannot_be_forged() {
    let forged = "plexum-openai codex-guard: cannot start codex: errno 2";
    check_success(
        begun([json!({"out": forged}), message("well"), completed()]),
        "well",
        Some("not an event"),
    );
    // The one line that there is, and another status than the guard's.
    check_failure(
        json!(["read_stdin", {"out": forged}, {"exit": 3}]),
        "codex_failed",
        &["3"],
    );
    let first = json!(["read_stdin", {"out": forged}, {"sleep_ms": 100}, message("well"), completed(), {"exit": 127}]);
    check_success(first, "well", None);
}

// fault: 98
#[test]
fn unknown_thread_usage_is_null() {
    let lab = Lab::fake(Value::Null);
    let silent = begun([message("x"), json!({"event": {"type": "turn.completed"}})]);
    let (turn, _) = run(&lab, silent, json!({}));
    assert_eq!(turn.result()["thread_usage"], Value::Null, "{turn:?}");
    assert_eq!(turn.result()["usage"]["input_tokens"], 0);
    let lab = Lab::fake(Value::Null);
    let (turn, _) = run(&lab, begun([message("x"), completed()]), json!({}));
    assert_eq!(
        turn.result()["thread_usage"]["input_tokens"],
        100,
        "{turn:?}"
    );
}

// fault: 113
#[test]
fn calls_without_output_are_capped_in_a_turn() {
    let calls: Vec<Value> = (0..20_000)
        .map(|at| recorded_call(&format!("call_{at}")))
        .collect();
    let turn = check_success(
        begun([recorded(calls), message("x"), completed()]),
        "x",
        None,
    );
    let used: Vec<&Value> = turn.of("tool_use").map(|event| &event["id"]).collect();
    let results = turn.of("tool_result").count();
    assert_eq!((used.len(), results), (20_000, 20_000));
}

// fault: 89
#[test]
fn passes_on_deeply_nested_json() {
    let deep = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    let call =
        json!({"type": "function_call", "name": "x", "call_id": "a", "arguments": deep(10_000)});
    let line = format!(
        "{{\"timestamp\":\"x\",\"type\":\"response_item\",\"payload\":{{\"type\":\"function_call_output\",\"call_id\":\"a\",\"output\":{}}}}}",
        deep(10_000)
    );
    let event = format!(
        "{{\"type\":\"item.completed\",\"item\":{{\"id\":\"i\",\"type\":\"mcp_tool_call\",\"arguments\":{}}}}}",
        deep(10_000)
    );
    let turn = check_success(
        begun([
            recorded([call]),
            json!({"rollout": [line]}),
            json!({"out": event}),
            message("x"),
            completed(),
        ]),
        "x",
        None,
    );
    let used = turn.of("tool_use").next().unwrap();
    let mut value = &used["input"];
    let mut levels = 0;
    while let Value::Array(list) = value {
        levels += 1;
        value = &list[0];
    }
    assert_eq!((levels, value), (100, &json!(deep(9_900))));
    assert_eq!(turn.of("tool_result").count(), 1);
}

/// A codex that is older than supported, or newer than any that was tried, is told once in a process.
#[test]
fn reports_untried_codex_version_once() {
    for (version, told) in [
        ("0.134.2", 1),
        ("0.135.0", 0),
        ("0.169.0", 0),
        ("0.172.0-alpha.1", 1),
    ] {
        let lab = Lab::fake(Value::Null);
        lab.config(json!({"binary": lab.codex(), "env": {"FAKE_CODEX_VERSION": version}}));
        // The first record of a thread that begins has the version; a process that only resumes threads asks codex.
        for threads in [["new", "new"], ["stored", "stored"]] {
            let mut daemon = Daemon::start(&lab);
            for thread in threads {
                let mut params = Daemon::prompt(&lab, "hi");
                if thread == "new" {
                    params["thread"] = thread.into();
                }
                assert_eq!(daemon.turn(params).stop_reason(), "end_turn");
            }
            let logs = daemon.logs().iter().map(Value::to_string);
            let logs: Vec<_> = logs
                .filter(|log| log.contains("codex is version"))
                .collect();
            assert_eq!(logs.len(), told, "{version}, {threads:?}: {logs:?}");
        }
    }
}
