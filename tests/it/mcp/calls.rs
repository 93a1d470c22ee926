//! Calls on their way from codex's side to the daemon and back, without codex.

use super::{Held, Host, Runtime, echo, prompt};
use crate::support::{Daemon, LIMIT, Lab, method, wait_until};
use serde_json::{Value, json};
use std::fs;
use std::time::{Duration, Instant};

// fault: 52
#[test]
fn tools_change_during_turn() {
    let mut held = Held::new(&["old"]);
    let mut host = Host::start(&held);
    let list = |host: &mut Host| -> Vec<String> {
        host.send(&json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}));
        let listed = host.line();
        let tools = listed["result"]["tools"].as_array().unwrap();
        tools
            .iter()
            .map(|tool| tool["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(list(&mut host), ["old"]);
    held.daemon.notify(
        method::TOOLS_CHANGED,
        json!({"agent_id": "bob", "tools": [{"name": "bob's"}]}),
    );
    held.daemon.notify(
        method::TOOLS_CHANGED,
        json!({"agent_id": "alice", "tools": 7}),
    );
    held.daemon
        .log("warning", "params.tools: expected a list, found a number");
    assert_eq!(list(&mut host), ["old"]);
    let tools = json!([{"name": "new", "input_schema": {"type": "object"}}, {"name": "new"}]);
    held.daemon.notify(
        method::TOOLS_CHANGED,
        json!({"agent_id": "alice", "tools": tools}),
    );
    held.daemon.log("warning", "duplicate tool 'new'");
    assert_eq!(host.line()["method"], "notifications/tools/list_changed");
    assert_eq!(list(&mut host), ["new"]);
    host.stdin = None;
    host.end(LIMIT);
    held.let_go();
}

/// A codex that was started without tools has no server that could get some; that is said.
#[test]
fn reports_tools_changed_too_late() {
    let lab = Runtime::new(Lab::fake(Value::Null));
    lab.script(json!([
        {"touch": lab.path("started")},
        {"wait_for": lab.path("go")},
        "default",
    ]));
    let mut daemon = Daemon::start(&lab);
    let id = daemon.request(method::STREAM, prompt(&lab, "alice", &[]));
    wait_until("the turn to start", || lab.path("started").exists());
    daemon.notify(
        method::TOOLS_CHANGED,
        json!({"agent_id": "alice", "tools": []}),
    );
    daemon.ping();
    assert!(daemon.logs().iter().all(|log| log["level"] != "warning"));
    daemon.notify(
        method::TOOLS_CHANGED,
        json!({"agent_id": "alice", "tools": [{"name": "new"}]}),
    );
    daemon.log("warning", "the turn was started without tools");
    fs::write(lab.path("go"), "").unwrap();
    assert_eq!(daemon.finish(id).stop_reason(), "end_turn");
    lab.assert_clean(daemon);
}

/// The daemon is told of the calls that nobody waits for, when it ends the plugin too.
#[test]
fn shutdown_cancels_open_calls() {
    let mut held = Held::new(&["t"]);
    held.daemon.on_tool_call(|_| None);
    let mut host = Host::start(&held);
    host.call(1, "t");
    held.daemon.wait_for_tool_calls(1);
    let call = held.daemon.tool_calls()[0]["id"].clone();
    held.daemon.close_stdin();
    assert_eq!(held.daemon.finish(held.id).stop_reason(), "cancelled");
    assert_eq!(held.daemon.tools_cancelled(), [call]);
    drop(host);
    held.lab.assert_clean(held.daemon);
}

// fault: 41
/// Nobody waits for an answer that has come and cannot be used; the caller is told what is wrong with it.
#[test]
fn unusable_response_ends_its_call() {
    let mut held = Held::new(&["t"]);
    held.daemon.on_tool_call(|_| None);
    let mut host = Host::start(&held);
    let mebibyte = "x".repeat(1 << 20);
    for (at, (start, end, part)) in [
        (
            r#"{"jsonrpc":"2.0","id":ID,"result":null,"error":{"code":1,"message":"boom"}}"#,
            "",
            "boom",
        ),
        (
            r#"{"id":ID,"result":{"content":"fine"}}"#,
            "",
            "`jsonrpc` must be",
        ),
        (
            r#"{"jsonrpc":"2.0","id":ID,"result":{},"error":{}}"#,
            "",
            "one of `result` and `error`",
        ),
        (
            r#"{"jsonrpc":"2.0","id":ID,"result":{},"result":{}}"#,
            "",
            "duplicate field `result`",
        ),
        (
            r#"{"jsonrpc":"2.0","id":ID,"result":[[{"type":"text","text":"x"}]]}"#,
            "",
            "`result` must be an object",
        ),
        (
            r#"{"jsonrpc":"2.0","id":ID,"result":{"content":"x"}"#,
            "",
            "not JSON",
        ),
        (
            r#"{"jsonrpc":"2.0","result":{"content":"FILL"#,
            r#""},"id":ID}"#,
            "longer than 64 MiB",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        host.call(at, "t");
        held.daemon.wait_for_tool_calls(at + 1);
        let id = held.daemon.tool_calls()[at]["id"].to_string();
        let long = start.strip_suffix("FILL");
        let start = long.unwrap_or(start).replace("ID", &id);
        held.daemon.send_bytes(start.as_bytes());
        for _ in 0..long.map_or(0, |_| 65) {
            held.daemon.send_bytes(mebibyte.as_bytes());
        }
        let end = end.replace("ID", &id);
        held.daemon.send_bytes(format!("{end}\n").as_bytes());
        let answer = host.line();
        assert_eq!(answer["id"], at, "{start}: {answer}");
        assert_eq!(answer["result"]["isError"], true, "{start}: {answer}");
        let text = answer["result"]["content"][0]["text"].as_str().unwrap();
        assert!(text.contains(part), "{start}: {text}");
    }
    // Only what could be a request too is answered.
    assert_eq!(held.daemon.answer_to_nothing()["error"]["code"], -32700);
    assert_eq!(held.daemon.answer_to_nothing()["error"]["code"], -32600);
    host.stdin = None;
    host.end(LIMIT);
    held.let_go();
}

/// The way of a call from codex's side to the daemon and back costs less than a millisecond.
#[test]
fn call_latency_is_low() {
    const CALLS: usize = 200;
    let mut held = Held::new(&["echo"]);
    echo(&mut held.daemon);
    let mut host = Host::start(&held);
    let client = std::thread::spawn(move || {
        let times = (1..=CALLS).map(|id| {
            let start = Instant::now();
            host.call(id, "echo");
            assert_eq!(host.line()["id"], id);
            start.elapsed()
        });
        let mut times: Vec<Duration> = times.collect();
        times.sort();
        host.stdin = None;
        host.end(LIMIT);
        times
    });
    held.daemon
        .serve_until("the calls", |_| client.is_finished());
    let times = client.join().unwrap();
    // Other tests run beside this one: the best tenth is what the way itself costs.
    let best = times[CALLS / 10];
    assert!(
        best < Duration::from_millis(1),
        "{best:?}, half of them {:?}",
        times[CALLS / 2]
    );
    held.let_go();
}

/// A call whose `tool_use` is never recorded goes on all the same, after a few no more of them wait, and with
/// `tool_events: false` none does.
#[test]
fn unrecorded_call_is_held_briefly() {
    const HOLD: Duration = Duration::from_millis(250);
    for (config, held_calls) in [(json!({}), 3), (json!({"tool_events": false}), 0)] {
        let lab = Runtime::new(Lab::fake(Value::Null));
        lab.config(config);
        let mut held = Held::with(lab, &["echo"]);
        echo(&mut held.daemon);
        let mut host = Host::start(&held);
        let client = std::thread::spawn(move || {
            let times = (1..=10).map(|id| {
                let start = Instant::now();
                host.send(&json!({"jsonrpc": "2.0", "id": id, "method": "tools/call",
                    "params": {"name": "echo", "_meta": {"callId": format!("call_{id}")}}}));
                assert_eq!(host.line()["id"], id);
                start.elapsed()
            });
            let times: Vec<Duration> = times.collect();
            host.stdin = None;
            host.end(LIMIT);
            times
        });
        held.daemon
            .serve_until("the calls", |_| client.is_finished());
        let times = client.join().unwrap();
        assert!(
            times[..held_calls].iter().all(|time| *time >= HOLD),
            "{times:?}"
        );
        // Other tests run beside this one: the best is what the way itself costs.
        assert!(
            times[held_calls..].iter().min().unwrap() < &HOLD,
            "{times:?}"
        );
        held.let_go();
    }
}

// fault: 49
/// Five hundred calls are in flight at once, and the daemon answers them in an order of its own.
#[test]
fn relays_five_hundred_calls_at_once() {
    const CALLS: usize = 500;
    let mut held = Held::new(&["wait"]);
    held.daemon.on_tool_call(|_| None);
    let mut host = Host::start(&held);
    for id in 1..=CALLS {
        host.call(id, "wait");
    }
    held.daemon.wait_for_tool_calls(CALLS);
    let mut ids: Vec<Value> = held
        .daemon
        .tool_calls()
        .iter()
        .map(|call| call["id"].clone())
        .collect();
    ids.reverse();
    for id in ids {
        let result = json!({"content": [{"type": "text", "text": id}]});
        held.daemon
            .send(&json!({"jsonrpc": "2.0", "id": id, "result": result}));
    }
    let mut answered: Vec<u64> = (0..CALLS)
        .map(|_| {
            let line = host.line();
            assert_eq!(line["result"]["isError"], false, "{line}");
            line["id"].as_u64().unwrap()
        })
        .collect();
    answered.sort_unstable();
    assert_eq!(answered, (1..=CALLS as u64).collect::<Vec<u64>>());
    host.stdin = None;
    host.end(LIMIT);
    held.let_go();
}
