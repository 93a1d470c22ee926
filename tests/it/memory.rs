//! What the daemon sends costs little more memory than its bytes, and nothing afterwards.

use crate::support::method::{CANCEL, MUTATE, STREAM};
use crate::support::{Daemon, Lab, ps, wait_until};
use serde_json::{Value, json};

/// How long the lines are, in bytes.
const LENGTH: usize = 2 << 20;
/// What a process may take beside the lines.
const CONSTANT: u64 = 16 << 20;

/// `unit`, with commas between, until it is as long as a line is to be.
fn many(unit: &str) -> String {
    let mut list = format!("{unit},").repeat(LENGTH / (unit.len() + 1));
    list.pop();
    list
}

fn request(id: &str, method: &str, params: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}"#)
}

/// The lines, each with a name.
fn lines(lab: &Lab) -> Vec<(&'static str, String)> {
    let workspace = json!(lab.workspace()).to_string();
    let stream = |request_members: &str, members: &str| {
        request(
            "1000",
            STREAM,
            &format!(
                r#"{{"agent":{{"id":"a","workspace":{workspace}}},"request":{{{request_members}}}{members}}}"#
            ),
        )
    };
    let content = |content: &str| {
        let messages = format!(r#""messages":[{{"role":"user","content":{content}}}]"#);
        stream(&messages, "")
    };
    let hi = r#""messages":[{"role":"user","content":"hi"}]"#;
    let tiny = many(r#"{"a":1}"#);
    vec![
        ("messages", stream(&format!("\"messages\":[{tiny}]"), "")),
        ("content", content(&format!("[{tiny}]"))),
        (
            "texts",
            content(&format!("[{}]", many(r#"{"type":"text","text":"a"}"#))),
        ),
        (
            "images",
            content(&format!("[{}]", many(r#"{"type":"image"}"#))),
        ),
        ("unknown", content(&format!("[{}]", many(r#"{"type":""}"#)))),
        (
            "thoughts",
            content(&format!(
                r#"[{},{{"type":"text","text":"hi"}}]"#,
                many(r#"{"type":"thinking"}"#)
            )),
        ),
        (
            "old messages",
            stream(
                &format!(
                    r#""messages":[{},{{"role":"user","content":"hi"}}]"#,
                    many(r#"{"role":"assistant","content":"a"}"#)
                ),
                "",
            ),
        ),
        (
            "new messages",
            stream(
                &format!(
                    r#""messages":[{}]"#,
                    many(r#"{"role":"user","content":"a"}"#)
                ),
                "",
            ),
        ),
        (
            "messages of a strange role",
            stream(
                &format!(
                    r#""messages":[{{"role":"user","content":"hi"}},{}]"#,
                    many(r#"{"role":"x","content":"a"}"#)
                ),
                "",
            ),
        ),
        (
            "tools",
            stream(
                &format!(r#"{hi},"tools":[{}]"#, many(r#"{"name":"a"}"#)),
                "",
            ),
        ),
        (
            "a schema",
            stream(
                &format!(r#"{hi},"tools":[{{"name":"a","input_schema":{{"enum":[{tiny}]}}}}]"#),
                "",
            ),
        ),
        (
            "a schema of many members",
            stream(
                &format!(
                    r#"{hi},"tools":[{{"name":"a","input_schema":{{{}}}}}]"#,
                    many(r#""a":1"#)
                ),
                "",
            ),
        ),
        (
            "unknown members",
            stream(hi, &format!(r#","x":[{tiny}],{}"#, many(r#""b":1"#))),
        ),
        (
            "escapes",
            content(&format!("\"{}\"", r"\n\ud800".repeat(LENGTH / 8))),
        ),
        (
            "a system text of escapes",
            stream(
                &format!(r#"{hi},"system":"{}""#, "\\n".repeat(LENGTH / 2)),
                "",
            ),
        ),
        (
            "an old text",
            stream(
                &format!(
                    r#""messages":[{{"role":"assistant","content":"{}"}},{{"role":"user","content":"hi"}}]"#,
                    "\\n".repeat(LENGTH / 2)
                ),
                "",
            ),
        ),
        (
            "depth",
            content(&("[".repeat(LENGTH / 2) + &"]".repeat(LENGTH / 2))),
        ),
        (
            "mutations",
            request(
                "1000",
                MUTATE,
                &format!(
                    r#"{{"workspace":{workspace},"mutations":[{}]}}"#,
                    many(r#"{"block_id":"a","op":"consume-light"}"#)
                ),
            ),
        ),
        (
            "a stream that is not an id",
            request("1000", CANCEL, &format!(r#"{{"stream":[{tiny}]}}"#)),
        ),
        (
            "an id",
            request(&format!("\"{}\"", "a".repeat(LENGTH)), CANCEL, "{}"),
        ),
        (
            "an id of objects",
            request(&format!("[{tiny}]"), CANCEL, "{}"),
        ),
        (
            "a version",
            format!(r#"{{"jsonrpc":[{tiny}],"id":1000,"method":"{CANCEL}"}}"#),
        ),
        (
            "a method",
            format!(r#"{{"jsonrpc":"2.0","id":1000,"method":[{tiny}]}}"#),
        ),
        ("a batch", format!("[{tiny}]")),
        ("no JSON", "[{\"a\":".repeat(LENGTH / 6)),
        (
            "a response",
            format!(r#"{{"jsonrpc":"2.0","id":"x","result":[{tiny}]}}"#),
        ),
    ]
}

/// Sends a line and waits until it is dealt with.
fn handle(daemon: &mut Daemon, line: &str) {
    let before = daemon.heard();
    // Of the lines that are sent to one daemon no two have the same id.
    let line = line.replacen("\"id\":1000", &format!("\"id\":{}", 1000 + before), 1);
    daemon.send_bytes(format!("{line}\n").as_bytes());
    if line.contains("\"result\"") {
        // It is not answered, but what comes behind it is.
        daemon.request(CANCEL, json!({"stream": 0}));
    }
    daemon.serve_until("an answer", |daemon| daemon.heard() > before);
}

// fault: 86
#[test]
fn request_costs_at_most_four_times_its_bytes() {
    let lab = Lab::fake(Value::Null);
    let mut wrong = Vec::new();
    for (name, line) in lines(&lab) {
        let mut daemon = Daemon::start(&lab);
        handle(&mut daemon, &line);
        let peak = ps::peak_memory(daemon.pid());
        let most = 4 * line.len() as u64 + CONSTANT;
        if peak > most {
            wrong.push(format!("{name}: {} MiB", peak >> 20));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

// fault: 86
#[test]
fn frees_memory_of_requests() {
    let lab = Lab::fake(Value::Null);
    let mut daemon = Daemon::start(&lab);
    daemon.turn(Daemon::prompt(&lab, "hi"));
    let before = ps::memory_now(daemon.pid());
    for (name, line) in lines(&lab) {
        handle(&mut daemon, &line);
        let (now, most) = (ps::memory_now(daemon.pid()), before + CONSTANT);
        assert!(now < most, "{} MiB after {name}", now >> 20);
    }
}

/// A daemon that does not read: waits until the plugin does nothing any more.
fn wait_for_rest(pid: u32) {
    let mut before = (0, 0);
    wait_until("the plugin to rest", || {
        // What rests cannot be waited for in another way.
        std::thread::sleep(std::time::Duration::from_millis(500));
        let now = (ps::memory_now(pid), ps::written(pid));
        std::mem::replace(&mut before, now) == now
    });
}

// fault: 86
/// What a tool gives is converted into blocks that have more bytes; no more of it is made than codex takes.
#[test]
fn tool_result_costs_at_most_four_times_its_bytes() {
    let lab = Lab::fake(Value::Null);
    lab.script(json!([
        "read_stdin",
        {"event": {"type": "thread.started", "thread_id": "{thread}"}},
        {"call_tool": "echo"},
        {"event": {"type": "turn.completed", "usage": {"input_tokens": 1}}},
    ]));
    let mut daemon = Daemon::start(&lab);
    daemon.on_tool_call(|_| None);
    let mut params = Daemon::prompt(&lab, "hi");
    params["request"]["tools"] = json!([{"name": "echo"}]);
    let id = daemon.request(STREAM, params);
    daemon.wait_for_tool_calls(1);
    let call = daemon.tool_calls()[0]["id"].clone();
    let blocks = many(r#"{"a":1}"#);
    let list = [&blocks[..]; 6].join(",");
    let line = format!(r#"{{"jsonrpc":"2.0","id":{call},"result":{{"content":[{list}]}}}}"#);
    daemon.send_bytes(format!("{line}\n").as_bytes());
    assert!(daemon.finish(id).text().contains("was cut"));
    let peak = ps::peak_memory(daemon.pid());
    let most = 4 * line.len() as u64 + CONSTANT;
    assert!(peak < most, "{} MiB of {}", peak >> 20, line.len() >> 20);
}

// fault: 87
#[test]
fn stops_reading_while_errors_are_unread() {
    const LINES: usize = 400_000;
    let lab = Lab::fake(Value::Null);
    let mut daemon = Daemon::start(&lab);
    daemon.stop_reading();
    // One answer may be read already when it stops.
    let sender = daemon.send_in_background(b"bad\n".repeat(LINES));
    wait_for_rest(daemon.pid());
    assert!(!sender.is_finished(), "everything was read");
    let peak = ps::peak_memory(daemon.pid());
    assert!(peak < 24 << 20, "{} MiB", peak >> 20);
    daemon.read_again();
    daemon.all_sent(sender);
    for _ in 0..LINES {
        assert_eq!(daemon.answer_to_nothing()["error"]["code"], -32700);
    }
    assert_eq!(daemon.turn(Daemon::prompt(&lab, "hi")).text(), "hi");
    let peak = ps::peak_memory(daemon.pid());
    assert!(peak < 24 << 20, "{} MiB", peak >> 20);
}

// fault: 88
#[test]
fn calls_recorded_faster_than_they_are_read_are_bounded() {
    const CALLS: usize = 8;
    const ROUNDS: usize = 12;
    let lab = Lab::fake(Value::Null);
    let text = "x".repeat(512 << 10);
    let calls: Vec<Value> = (0..CALLS)
        .map(|number| {
            let id = format!("call_{{round}}_{number}");
            let line = |payload: Value| json!({"timestamp": "{now}", "type": "response_item", "payload": payload});
            json!({"rollout": [
                line(json!({"type": "function_call", "name": "f", "arguments": json!({"a": text}).to_string(), "call_id": id})),
                line(json!({"type": "function_call_output", "call_id": id, "output": text})),
            ]})
        })
        .collect();
    lab.script(json!([
        "read_stdin",
        {"event": {"type": "thread.started", "thread_id": "{thread}"}},
        {"repeat": {"times": ROUNDS, "steps": calls}},
        {"touch": lab.path("recorded")},
        {"event": {"type": "turn.completed", "usage": {"input_tokens": 1}}},
    ]));
    let mut daemon = Daemon::start(&lab);
    daemon.stop_reading();
    let id = daemon.request(STREAM, Daemon::prompt(&lab, "hi"));
    wait_until("everything to be recorded", || {
        lab.path("recorded").exists()
    });
    wait_for_rest(daemon.pid());
    daemon.read_again();
    let turn = daemon.finish(id);
    let peak = ps::peak_memory(daemon.pid());
    assert!(peak < 48 << 20, "{} MiB", peak >> 20);
    let told: Vec<(&str, &str)> = turn
        .events
        .iter()
        .filter_map(|event| Some((event["type"].as_str()?, event["id"].as_str()?)))
        .collect();
    let ids: Vec<String> = (0..ROUNDS)
        .flat_map(|round| (0..CALLS).map(move |number| format!("call_{round}_{number}")))
        .collect();
    let expected: Vec<(&str, &str)> = ids
        .iter()
        .flat_map(|id| [("tool_use", id.as_str()), ("tool_result", id)])
        .collect();
    assert_eq!(told, expected);
}
