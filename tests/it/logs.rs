//! The logs: what a turn did can be followed, and nothing that is the user's is in them.

use crate::support::{Cli, Daemon, LIMIT, Lab, codex, method, wait_until};
use serde_json::{Value, json};

/// What must not be told, as it is put into every place that a turn has.
const SECRET: &str = "swordfish";

/// A turn's request with the secret wherever it can stand.
fn request(lab: &Lab) -> Value {
    let mut params = Daemon::prompt(lab, &format!("the prompt {SECRET}"));
    params["request"]["system"] = json!(format!("the system {SECRET}"));
    params["request"]["tools"] = json!([{"name": "fabric_send", "description": SECRET,
        "input_schema": {"type": "object", "properties": {SECRET: {"type": "string"}}}}]);
    params
}

fn config(lab: &mut Lab) {
    lab.config(json!({
        "env": {"KEY_OF_MINE": SECRET},
        "extra_args": ["-c", format!("model_provider_name={SECRET}")],
        "reasoning_events": true,
    }));
    lab.set_env("CODEX_API_KEY", SECRET);
}

/// Runs a turn with this `RUST_LOG`; what stderr says, and what the daemon's log has at each level.
fn turn(lab: &mut Lab, filter: &str) -> (String, Vec<(String, String)>) {
    if filter.is_empty() {
        lab.set_env("RUST_LOG", "");
    } else {
        lab.set_env("RUST_LOG", filter);
    }
    let mut daemon = Daemon::start(lab);
    let answer = daemon.call(method::SET_LOG_LEVEL, json!({"level": "debug"}));
    assert_eq!(answer["result"], json!({}), "{answer}");
    daemon.on_tool_call(|_| Some(Ok(json!({"content": [{"type": "text", "text": SECRET}]}))));
    let turn = daemon.turn(request(lab));
    assert!(turn.text().contains("told"), "{turn:?}");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let logs = daemon.logs().iter();
    let logs = logs
        .map(|log| (text(&log["level"]), text(&log["data"]["message"])))
        .collect();
    daemon.close_stdin();
    daemon.exit(LIMIT);
    if ["debug", "trace"].contains(&filter) {
        wait_until("the log to be read to its end", || {
            daemon.stderr().contains("the turn ends")
        });
    }
    (daemon.stderr(), logs)
}

fn command(phase: &str, status: &str) -> Value {
    json!({"event": {"type": format!("item.{phase}"), "item": {"id": "item_1", "type": "command_execution",
        "command": format!("echo {SECRET}"), "aggregated_output": SECRET, "exit_code": 3, "status": status}}})
}

#[test]
fn logs_turn_without_secrets() {
    let thread = "01a1fe00-a027-7a81-b8a0-356e91ab6908";
    let item = |item: Value| json!({"event": {"type": "item.completed", "item": item}});
    let script = json!([
        "read_stdin",
        {"event": {"type": "thread.started", "thread_id": thread}},
        {"event": {"type": "turn.started"}},
        // What is not an event, and what nobody knows.
        {"out": format!("\"{SECRET}\"")},
        {"out": format!("[\"{SECRET}\"]")},
        {"out": format!("{{\"{SECRET}\": \"{SECRET}\"}}")},
        {"event": {"type": "new.thing", "text": SECRET}},
        {"err": SECRET},
        item(json!({"id": "item_0", "type": "reasoning", "text": SECRET})),
        command("started", "in_progress"),
        command("completed", "failed"),
        item(json!({"id": "item_2", "type": "mcp_tool_call", "server": "s", "tool": "t",
            "arguments": {SECRET: SECRET}, "status": "completed"})),
        item(json!({"id": "item_3", "type": "web_search", "query": SECRET})),
        item(json!({"id": "item_4", "type": "agent_message", "text": format!("told {SECRET}")})),
        {"event": {"type": "turn.completed", "usage": {"input_tokens": 7, "output_tokens": 2}}},
    ]);
    let mut lab = Lab::fake(script);
    config(&mut lab);
    let story = [
        "a turn of agent 'alice' in '",
        "with the daemon's tools",
        "starting '",
        &format!("codex runs the turn in thread {thread}"),
        "a command begins (item_1)",
        "a command failed with 3 (item_1)",
        "the tool s.t is done (item_2)",
        "a search is done (item_3)",
        "codex has ended: exit status 0",
        "the turn ends: it is done, 7 tokens in, 2 out",
    ];
    for (filter, follows) in [
        ("", false),
        ("warn", false),
        ("info", false),
        ("debug", true),
        ("trace", true),
    ] {
        let (stderr, logs) = turn(&mut lab, filter);
        if filter.is_empty() {
            assert_eq!(stderr, "");
        }
        for line in stderr.lines() {
            // At debug, too: nothing of ours needs it there.
            assert!(!line.contains(SECRET), "{filter}: {line}");
        }
        let mut rest = stderr.as_str();
        for part in story {
            match rest.find(part) {
                Some(at) if follows => rest = &rest[at + part.len()..],
                None if !follows => {}
                found => panic!("{filter}: {part:?} is at {found:?} in {stderr}"),
            }
        }
        // The daemon's log has the same, whatever we are asked for.
        let mut debug = logs.iter().filter(|(level, _)| level == "debug");
        for part in story {
            if part != "with the daemon's tools" {
                assert!(
                    debug.any(|(_, text)| text.contains(part)),
                    "{part:?} in {logs:#?}"
                );
            }
        }
        for (level, text) in &logs {
            assert!(!text.contains(SECRET), "{level}: {text}");
        }
        // The three lines that are none.
        assert_eq!(
            logs.iter().filter(|(level, _)| level == "warning").count(),
            3,
            "{logs:#?}"
        );
    }
}

/// By hand the person sees the commands, and the log still has none of them.
#[test]
fn turn_subcommand_logs_no_secrets() {
    let mut lab = Lab::fake(json!([
        "read_stdin",
        {"event": {"type": "thread.started", "thread_id": "01a1fe00-a027-7a81-b8a0-356e91ab6908"}},
        command("started", "in_progress"),
        command("completed", "failed"),
        {"event": {"type": "turn.failed", "error": {"message": "no"}}},
    ]));
    config(&mut lab);
    let prompt = format!("the prompt {SECRET}");
    let output = Cli::new(&lab, ["turn", "--system", SECRET, &prompt])
        .env("RUST_LOG", "trace")
        .run();
    let shown: Vec<&str> = output
        .stderr
        .lines()
        .filter(|line| line.contains(SECRET))
        .collect();
    // The command, and what it printed before it failed.
    assert_eq!(shown.len(), 2, "{}", output.stderr);
    assert!(shown[1].starts_with("plexum-openai:   | "), "{}", shown[1]);
    assert!(shown[0].starts_with(&format!("plexum-openai: $ echo {SECRET} (exit 3, ")));
    assert!(output.stderr.contains("DEBUG") && output.stderr.contains("the turn ends: it failed"));
}

/// With the real codex and a tool of the daemon's, whose arguments and answer pass through here.
#[test]
fn logs_no_tool_arguments_or_results() {
    let Some(codex) = codex::real(codex::NEWEST) else {
        return;
    };
    let mut lab = Lab::real(
        &codex,
        json!([
            {"calls": [{"name": "fabric_send", "namespace": "mcp__plexum_host_alice", "arguments": {"to": SECRET}}]},
            {"text": format!("told {SECRET}")},
        ]),
    );
    config(&mut lab);
    let (stderr, logs) = turn(&mut lab, "trace");
    assert!(
        stderr.contains("the tool plexum-host-alice.fabric_send is done"),
        "{stderr}"
    );
    assert!(!stderr.contains(SECRET), "{stderr}");
    assert!(!format!("{logs:?}").contains(SECRET), "{logs:#?}");
}
