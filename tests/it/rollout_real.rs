//! The tool calls of the real codex's turns: each told once, while it runs, by the id that the rollout has, and
//! the same that `parse-rollout` finds in the rollout afterwards.

use crate::support::codex::{APP_SERVER, CHANGED, EXEC, NEWEST, real, real_codex, run_on};
use crate::support::daemon::check_turn;
use crate::support::{Cli, Daemon, Lab, Turn, method, ps};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// A turn that calls everything that there is, and one that calls something once more.
fn script() -> Value {
    let command = |id: &str, command: &str| json!({"id": id, "name": "exec_command", "arguments": {"cmd": command}});
    let patch = "*** Begin Patch\n*** Add File: new.txt\n+made by a patch\n*** End Patch\n";
    json!([
        {"times": 1, "match": "again", "text": "Once more.", "calls": [command("call_again", "echo again")]},
        {"after": "call_again", "text": "Again done."},
        // It ends only when this file is there.
        {"times": 1, "text": "First.", "calls": [command("call_slow",
            "until [ -e go ]; do sleep 0.05; done; echo slow")]},
        {"after": "call_slow", "text": "Second.", "calls": [command("call_bad", "echo bad; exit 3")]},
        {"after": "call_bad", "calls": [
            command("call_a", "echo a"), command("call_b", "echo b"), command("call_c", "echo c")]},
        {"after": "call_c", "calls": [{"id": "call_send", "name": "send", "namespace": "mcp__plexum_host_alice",
            "arguments": {"to": "bob"}}]},
        {"after": "call_send", "calls": [{"id": "call_fail", "name": "fail", "namespace": "mcp__plexum_host_alice"}]},
        {"after": "call_fail", "custom_calls": [{"id": "call_patch", "name": "apply_patch", "input": patch}]},
        {"after": "call_patch", "calls": [command("call_long", "head -c 3000000 /dev/zero | tr '\\0' x")]},
        {"after": "call_long", "text": "Done."},
    ])
}

/// The calls of [`script`], in order, and whether they fail.
const CALLS: &[(&str, bool)] = &[
    ("call_slow", false),
    ("call_bad", true),
    ("call_a", false),
    ("call_b", false),
    ("call_c", false),
    ("call_send", false),
    ("call_fail", true),
    ("call_patch", false),
    ("call_long", false),
];

fn prompt(lab: &Lab, text: &str) -> Value {
    let mut params = Daemon::prompt(lab, text);
    params["request"]["tools"] = ["send", "fail"]
        .map(|name| json!({"name": name, "description": "", "input_schema": {"type": "object"}}))
        .into();
    params
}

/// The events about tools, in the order of `parse-rollout`: by the results, each behind its call.
fn paired(turn: &Turn) -> Vec<Value> {
    let uses: Vec<&Value> = turn.of("tool_use").collect();
    turn.of("tool_result")
        .flat_map(|result| {
            let of_it = |used: &&&Value| used["id"] == result["id"];
            let used = uses.iter().find(of_it).expect("a call before its result");
            [(*used).clone(), result.clone()]
        })
        .collect()
}

/// The events that `parse-rollout` finds in the rollout of a thread, without a complaint.
#[track_caller]
fn parsed(lab: &Lab, thread: &str) -> Vec<Value> {
    let output = Cli::new(lab, ["parse-rollout", "--thread", thread]).run();
    assert_eq!((output.status, output.stderr.as_str()), (0, ""));
    output.untimed_events()
}

/// Text with what differs between versions left out: the order of calls and texts of a turn.
fn told(turn: &Turn) -> Vec<String> {
    let events = turn.events.iter().filter_map(|event| {
        let id = event["id"].as_str().unwrap_or_default();
        Some(match event["type"].as_str()? {
            "tool_use" => format!("{id}("),
            "tool_result" => format!("){id}"),
            "text_delta" => event["text"].as_str()?.trim().to_owned(),
            _ => return None,
        })
    });
    events.collect()
}

#[track_caller]
fn check_calls(codex: &Path) {
    let mut lab = Lab::real(codex, script());
    // In a CODEX_HOME below the directory for temporary files codex has no apply_patch, wherever this is built.
    let temporary = lab.path("tmp");
    lab.set_env("TMPDIR", temporary);
    // The model of which codex knows, in all these versions, that it patches files.
    lab.config(json!({"extra_args": ["-m", "gpt-5.5"]}));
    let mut daemon = Daemon::start(&lab);
    daemon.on_tool_call(|params| {
        let text = |text: &str| json!([{"type": "text", "text": text}]);
        Some(Ok(match params["name"].as_str() {
            Some("send") => json!({"content": text("sent"), "is_error": false}),
            _ => json!({"content": text("no such luck"), "is_error": true}),
        }))
    });

    let id = daemon.request(method::STREAM, prompt(&lab, "go"));
    daemon.event(id, "the call of a command that runs", |event| {
        event["type"] == "tool_use" && event["id"] == "call_slow"
    });
    fs::write(lab.workspace().join("go"), "").unwrap();
    let first = daemon.finish(id);
    check_turn(&first.events);
    assert_eq!(first.stop_reason(), "end_turn", "{first:?}");

    let results: Vec<(&str, bool)> = first
        .of("tool_result")
        .map(|result| {
            (
                result["id"].as_str().unwrap(),
                result["is_error"].as_bool().unwrap(),
            )
        })
        .collect();
    let mut sorted = results.clone();
    // Of three calls at once any can be over first.
    sorted[2..5].sort_unstable();
    assert_eq!(sorted, CALLS, "{:?}", told(&first));
    let told = told(&first);
    let place = |what: &str| {
        told.iter()
            .position(|told| told == what)
            .unwrap_or(usize::MAX)
    };
    for order in [
        ["First.", "call_slow(", ")call_slow"],
        [")call_slow", "Second.", "call_bad("],
        ["call_bad(", ")call_bad", "call_a("],
        ["call_a(", "call_b(", "call_c("],
        ["call_c(", ")call_a", "call_send("],
        ["call_patch(", ")call_patch", "call_long("],
        ["call_long(", ")call_long", "Done."],
    ] {
        let places = order.map(place);
        assert!(
            places.is_sorted() && places[2] < usize::MAX,
            "{order:?} in {told:?}"
        );
    }

    let content = |call: &str| {
        let result = first.of("tool_result").find(|result| result["id"] == call);
        result.unwrap()["content"].to_string()
    };
    assert!(
        content("call_bad").contains("bad"),
        "{}",
        content("call_bad")
    );
    assert!(
        content("call_send").contains("sent"),
        "{}",
        content("call_send")
    );
    assert!(
        content("call_fail").contains("no such luck"),
        "{}",
        content("call_fail")
    );
    assert!(content("call_long").contains("xxxxxxxx"));
    let patched = fs::read_to_string(lab.workspace().join("new.txt"));
    assert_eq!(
        patched.unwrap(),
        "made by a patch\n",
        "{}",
        content("call_patch")
    );

    let second = daemon.turn(prompt(&lab, "again"));
    assert_eq!(second.result()["thread_state"], "resumed");
    let used: Vec<&Value> = second.of("tool_use").map(|used| &used["id"]).collect();
    assert_eq!(used, ["call_again"]);

    let parsed = parsed(&lab, first.thread());
    assert_eq!(parsed, [paired(&first), paired(&second)].concat());
    drop(daemon);
    lab.assert_quiet();
}

real_codex! {
    fn emits_every_call_once_while_it_runs(codex: &Path) {
        check_calls(codex);
    }
}

/// The same where outputs became lists.
#[test]
fn emits_every_call_once_while_it_runs_on_0_155() {
    run_on(CHANGED, EXEC, check_calls);
    run_on(CHANGED, APP_SERVER, check_calls);
}

/// A script of code mode that fails a command, patches, calls an MCP tool, says something in between, and goes on
/// after it has yielded.
const SCRIPT: &str = r#"
await tools.exec_command({cmd: "echo quick; exit 3"});
await tools.apply_patch("*** Begin Patch\n*** Add File: new.txt\n+made by a patch\n*** End Patch\n");
await tools.mcp__plexum_host_alice__send({to: "bob"});
notify("by the way");
text("half");
yield_control();
await tools.exec_command({cmd: "until [ -e go ]; do sleep 0.05; done; echo slow"});
text("whole");
"#;

/// In code mode the model calls one tool and its script all the others. 0.135 records none of its commands.
#[track_caller]
fn check_code_mode(codex: &Path, commands: bool) {
    let mut lab = Lab::real(
        codex,
        json!([
            {"times": 1, "custom_calls": [{"id": "call_exec", "name": "exec", "input": SCRIPT}]},
            {"times": 1, "after": "call_exec", "calls": [
                {"id": "call_wait", "name": "wait", "arguments": {"cell_id": "1", "yield_time_ms": 60000}}]},
            {"text": "Done."},
        ]),
    );
    // As above.
    let temporary = lab.path("tmp");
    lab.set_env("TMPDIR", temporary);
    lab.config(json!({"extra_args": ["-m", "gpt-5.5", "-c", "features.code_mode=true"]}));
    let mut daemon = Daemon::start(&lab);
    daemon.on_tool_call(|_| {
        Some(Ok(
            json!({"content": [{"type": "text", "text": "sent"}], "is_error": false}),
        ))
    });
    let id = daemon.request(method::STREAM, prompt(&lab, "go"));
    daemon.event(id, "the call that waits for the script", |event| {
        event["type"] == "tool_use" && event["id"] == "call_wait"
    });
    fs::write(lab.workspace().join("go"), "").unwrap();
    let turn = daemon.finish(id);
    check_turn(&turn.events);
    assert_eq!(turn.stop_reason(), "end_turn", "{turn:?}");

    let calls: HashMap<&str, &str> = turn
        .of("tool_use")
        .map(|used| (used["id"].as_str().unwrap(), used["name"].as_str().unwrap()))
        .collect();
    let told: Vec<String> = turn
        .events
        .iter()
        .filter_map(|event| {
            let name = calls.get(event["id"].as_str()?)?;
            Some(match event["parent_id"].as_str() {
                Some(parent) => format!("{name} in {parent}"),
                None if event["type"] == "tool_use" => (*name).to_owned(),
                None => format!("{name} failed: {}", event["is_error"]),
            })
        })
        .collect();
    let mut expected = vec![
        "exec",
        "exec_command in call_exec",
        "exec_command failed: true",
        "apply_patch in call_exec",
        "apply_patch failed: false",
        "send in call_exec",
        "send failed: false",
        "exec failed: false",
        "wait",
        "exec_command in call_exec",
        "exec_command failed: false",
        "wait failed: false",
    ];
    expected.retain(|told| commands || !told.starts_with("exec_command"));
    assert_eq!(told, expected, "{turn:?}");
    let content = |name: &str| {
        let of_it = |result: &&Value| calls[result["id"].as_str().unwrap()] == name;
        let last = turn.of("tool_result").filter(of_it).last();
        last.unwrap()["content"].to_string()
    };
    assert!(content("exec").contains("half"), "{}", content("exec"));
    assert!(content("wait").contains("whole"), "{}", content("wait"));
    assert!(content("send").contains("sent"), "{}", content("send"));
    if commands {
        assert_eq!(content("exec_command"), r#""slow\n""#);
    }

    let parsed = parsed(&lab, turn.thread());
    assert_eq!(parsed, paired(&turn));
    drop(daemon);
    lab.assert_quiet();
}

real_codex! {
    fn nested_calls_name_their_parent(codex: &Path) {
        check_code_mode(codex, !codex.to_string_lossy().contains(OLDEST));
    }
}

#[test]
fn nested_calls_name_their_parent_on_0_155() {
    run_on(CHANGED, EXEC, |codex| check_code_mode(codex, true));
    run_on(CHANGED, APP_SERVER, |codex| check_code_mode(codex, true));
}

/// A script whose cell nobody waits for, one whose codex is killed, one that is cancelled, and one that ends: what
/// each called is told as its own, by the stream and from the rollout, and consumed with it.
#[track_caller]
fn check_broken_scripts(codex: &Path) {
    let exec = |id: &str, rest: &str| {
        let script = format!("await tools.exec_command({{cmd: 'echo {id}'}}); {rest}");
        json!({"match": id, "times": 1, "custom_calls": [{"id": id, "name": "exec", "input": script}]})
    };
    let sleep = "await tools.exec_command({cmd: 'sleep 600'});";
    let lab = Lab::real(
        codex,
        json!([
            exec("left", "text('left'); yield_control(); await new Promise(r => setTimeout(r, 60000));"),
            exec("killed", sleep),
            exec("cancelled", sleep),
            exec("ended", "text('ended');"),
            {"text": "Done."},
        ]),
    );
    lab.config(json!({"extra_args": ["-m", "gpt-5.5", "-c", "features.code_mode=true"]}));
    let mut daemon = Daemon::start(&lab);
    let mut told = HashMap::new();
    let mut thread = String::new();
    for (script, stop_reason) in [
        ("left", "end_turn"),
        ("killed", "error"),
        ("cancelled", "cancelled"),
        ("ended", "end_turn"),
    ] {
        let id = daemon.request(method::STREAM, Daemon::prompt(&lab, script));
        daemon.event(id, "what the script called", |event| {
            event["type"] == "tool_result" && event["content"] == format!("{script}\n")
        });
        match stop_reason {
            "error" => ps::signal(codex_of(&lab), Signal::KILL),
            "cancelled" => daemon.cancel(id),
            _ => {}
        }
        let turn = daemon.finish(id);
        check_turn(&turn.events);
        assert_eq!(turn.stop_reason(), stop_reason, "{script}: {turn:?}");
        let parents = parents(&turn.events);
        assert!(
            !parents.is_empty() && parents.values().all(|parent| parent == script),
            "{script}: {turn:?}"
        );
        told.extend(parents);
        turn.thread().clone_into(&mut thread);
    }

    let parsed = parsed(&lab, &thread);
    assert_eq!(parents(&parsed), told);

    for (script, touched) in [("left", 1), ("killed", 0), ("cancelled", 1), ("ended", 1)] {
        let nested: Vec<&str> = told
            .iter()
            .filter(|(_, parent)| *parent == script)
            .map(|(id, _)| id.as_str())
            .collect();
        let output = Cli::new(&lab, ["mutate", "--thread", &thread])
            .args(&nested)
            .run();
        let told: Value = serde_json::from_str(&output.stdout).unwrap();
        assert_eq!(told["touched"], touched * nested.len(), "{script}: {told}");
        let rollout = fs::read_to_string(&lab.rollouts(&thread)[0]).unwrap();
        let consumed = rollout.lines().any(|line| {
            line.contains("custom_tool_call_output")
                && line.contains(&format!("\"{script}\""))
                && line.contains("...(consumed)")
        });
        assert_eq!(consumed, touched == 1, "{script}");
    }
    drop(daemon);
    lab.assert_quiet();
}

/// The calls that were made inside others, and in which.
fn parents(events: &[Value]) -> HashMap<String, String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    events
        .iter()
        .filter_map(|event| Some((text(&event["id"])?, text(&event["parent_id"])?)))
        .collect()
}

/// The codex that runs in the lab.
#[track_caller]
fn codex_of(lab: &Lab) -> u32 {
    let program = lab.codex().to_str().unwrap();
    let found = ps::of(lab.root())
        .into_iter()
        .find(|process| process.command.starts_with(&format!("{program} exec")));
    found.expect("it runs").pid
}

#[test]
fn calls_of_failed_script_are_its_own() {
    for version in [CHANGED, NEWEST] {
        if let Some(codex) = real(version) {
            check_broken_scripts(&codex);
        }
    }
}

real_codex! {
    /// What the user and the model said, and nothing that codex puts before it.
    fn prints_messages_of_user_and_model(codex: &Path) {
        let calls = json!([{"id": "call_a", "name": "exec_command", "arguments": {"cmd": "echo hi"}}]);
        let lab = Lab::real(codex, json!([{"match": "go on", "times": 1, "text": "I will.", "calls": calls}, {"text": "done"}]));
        std::fs::write(lab.workspace().join("AGENTS.md"), "be brief").unwrap();
        let turn = Daemon::start(&lab).turn(prompt(&lab, "go on"));
        let output = Cli::new(&lab, ["parse-rollout", "--messages", "--thread", turn.thread()]).run();
        let told: Vec<String> = output.untimed_events().iter().map(|event| match event["type"].as_str().unwrap() {
            "message" => format!("{}: {}", event["role"].as_str().unwrap(), event["text"].as_str().unwrap()),
            kind => kind.to_owned(),
        }).collect();
        assert_eq!(told, ["user: go on", "assistant: I will.", "tool_use", "tool_result", "assistant: done"]);
        assert!(output.stdout.lines().all(|line| line.contains(r#","time":"2"#)), "{}", output.stdout);
    }
}
