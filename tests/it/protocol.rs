//! The contract between daemon and plugin, message by message.

use crate::support::{Cli, Daemon, LIMIT, Lab, method, ps, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A fake turn that has begun and goes on until it is ended.
fn endless(lab: &Lab) -> Value {
    json!([
        "read_stdin",
        {"event": {"type": "thread.started", "thread_id": "{thread}"}},
        {"event": {"type": "turn.started"}},
        {"touch": lab.path("started")},
        {"wait_for": lab.path("never")},
    ])
}

/// Starts a turn that goes on until it is ended; its id.
#[track_caller]
fn start_endless(daemon: &mut Daemon, lab: &Lab) -> i64 {
    let id = daemon.request(method::STREAM, Daemon::prompt(lab, "go on"));
    wait_until("the turn to start", || lab.path("started").exists());
    id
}

// fault: 33, 34
#[test]
fn answers_invalid_lines_and_keeps_connection() {
    let lab = Lab::fake(Value::Null);
    let mut daemon = Daemon::start_uninitialised(&lab);
    let mut check = |line: &[u8], id: Value, code: i64, part: &str| {
        let shown = String::from_utf8_lossy(&line[..line.len().min(80)]).into_owned();
        daemon.send_bytes(line);
        daemon.send_bytes(b"\n");
        let answer = match &id {
            Value::Null => daemon.answer_to_nothing(),
            id => daemon.answer(id.clone()),
        };
        assert_eq!(answer["error"]["code"], code, "{shown}: {answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(part), "{shown}: {message}");
        let alive = daemon.call(method::PING, json!({}));
        assert_eq!(alive["result"], json!({}), "{shown}: {alive}");
    };
    for line in [
        "not json",
        "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"",
        "{} {}",
        "\"\u{feff}",
    ] {
        check(line.as_bytes(), Value::Null, -32700, "");
    }
    check(
        b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\xff\"}",
        Value::Null,
        -32700,
        "",
    );
    check(&b"[".repeat(100_000), Value::Null, -32700, "");
    for line in [
        r#"[{"jsonrpc":"2.0","id":901,"method":"ping"}]"#,
        "[]",
        r#"["2.0",903,"ping",{}]"#,
        r#"["2.0",903,"ping",null,null,null]"#,
        "17",
        "null",
        "{}",
        r#"{"jsonrpc":"2.0","id":{},"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":true,"method":"ping"}"#,
    ] {
        check(line.as_bytes(), Value::Null, -32600, "");
    }
    for line in [
        r#"{"jsonrpc":"2.0","id":902,"method":5}"#,
        r#"{"jsonrpc":"1.0","id":902,"method":"ping"}"#,
        r#"{"id":902,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":902,"method":"ping","params":"x"}"#,
    ] {
        // Each time the same id: one that was refused is free again.
        daemon.send_bytes(format!("{line}\n").as_bytes());
        let answer = daemon.answer(902);
        assert!(
            matches!(answer["error"]["code"].as_i64(), Some(-32600 | -32602)),
            "{line}: {answer}"
        );
    }
    let mut check = |line: &str, id: Value, code: i64, part: &str| {
        daemon.send_bytes(format!("{line}\n").as_bytes());
        let answer = daemon.answer(id);
        assert_eq!(answer["error"]["code"], code, "{line}: {answer}");
        assert!(
            answer["error"]["message"].as_str().unwrap().contains(part),
            "{answer}"
        );
    };
    check(
        r#"{"jsonrpc":"2.0","id":"x","method":"strem"}"#,
        json!("x"),
        -32601,
        "strem",
    );
    check(
        r#"{"jsonrpc":"2.0","id":-7,"method":""}"#,
        json!(-7),
        -32601,
        "",
    );
}

/// Two sides that answer each other's errors never come to an end.
#[test]
fn never_answers_responses() {
    let lab = Lab::fake(Value::Null);
    let mut daemon = Daemon::start_uninitialised(&lab);
    for line in [
        r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"not JSON"}}"#,
        r#"{"jsonrpc":"2.0","error":{"code":-32700,"message":"not JSON"}}"#,
        r#"{"jsonrpc":"2.0","id":7,"result":null,"error":null}"#,
        r#"{"jsonrpc":"2.0","id":7,"result":1,"result":2}"#,
        r#"{"id":7,"result":{}}"#,
        r#"{"jsonrpc":"2.0","id":{},"result":{}}"#,
    ] {
        daemon.send_bytes(format!("{line}\n").as_bytes());
    }
    daemon.send_bytes(b"not JSON\n");
    assert_eq!(daemon.answer_to_nothing()["error"]["code"], -32700);
    assert!(!daemon.is_answered(7));
    let told = daemon.logs().iter();
    assert_eq!(told.filter(|log| log["level"] == "warning").count(), 5);
    daemon.log("warning", "an error without an `id`");
}

// fault: 42
/// Where such a line is refused depends on where the depth is; that it is, and by an error, does not.
#[test]
fn rejects_deeply_nested_json() {
    let lab = Lab::fake(Value::Null);
    let mut daemon = Daemon::start(&lab);
    let deep = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
    let deep_object = format!("{}1{}", "{\"a\":".repeat(10_000), "}".repeat(10_000));
    for deep in [&deep, &deep_object] {
        daemon.send_bytes(format!("{deep}\n").as_bytes());
        let answer = daemon.answer_to_nothing();
        assert!(
            matches!(answer["error"]["code"].as_i64(), Some(-32700 | -32600)),
            "{answer}"
        );
        for (member, id) in [("params", 900), ("extra", 901)] {
            let method = if member == "params" {
                method::STREAM
            } else {
                method::PING
            };
            daemon.send_bytes(
                format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":\"{method}\",\"{member}\":{deep}}}\n").as_bytes(),
            );
        }
        // What is not a part of the protocol is ignored however deep it is.
        let extra = daemon.answer(901);
        assert!(
            extra["result"].is_object() || extra["error"].is_object(),
            "{extra}"
        );
        let params = daemon.answer(900);
        assert!(
            matches!(params["error"]["code"].as_i64(), Some(-32700 | -32602)),
            "{params}"
        );
    }
}

// fault: 33
#[test]
fn skips_and_answers_overlong_line() {
    let lab = Lab::fake(Value::Null);
    let mut daemon = Daemon::start_uninitialised(&lab);
    let mebibyte = vec![b'x'; 1 << 20];
    daemon.send_bytes(br#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":""#);
    for _ in 0..80 {
        daemon.send_bytes(&mebibyte);
    }
    daemon.send_bytes(b"\"}}\n");
    assert_eq!(daemon.answer_to_nothing()["error"]["code"], -32600);
    daemon.ping();
    let peak = ps::peak_memory(daemon.pid());
    assert!(peak < 100 << 20, "{peak} bytes for a line that is skipped");
}

// fault: 34, 37
#[test]
fn ignores_unknown_members_and_blank_lines() {
    let lab = Lab::fake(Value::Null);
    let mut daemon = Daemon::start_uninitialised(&lab);
    daemon.send_bytes(b"\n\r\n   \n");
    daemon.notify("who/knows", json!({"x": 1}));
    daemon.notify(method::CANCELLED, json!({"requestId": "unknown"}));
    daemon.send(&json!({"jsonrpc": "2.0", "id": 77, "result": {}}));
    daemon.send(&json!({"jsonrpc": "2.0", "id": "x", "error": {"code": 1, "message": "x"}}));
    daemon.send_bytes(b"{\"jsonrpc\":\"2.0\",\"id\":\"a\",\"method\":\"ping\",\"extra\":[]}\r\n");
    let answer = daemon.answer("a");
    assert!(answer["result"].is_object(), "{answer}");
    // A last line without its end is still read.
    daemon.send_bytes(b"{\"jsonrpc\":\"2.0\",\"id\":\"b\",\"method\":\"ping\"}");
    daemon.close_stdin();
    assert!(daemon.answer("b")["result"].is_object());
    assert!(daemon.exit(LIMIT).success());
    assert_eq!(daemon.stderr(), "");
}

/// The result of `initialize`, with these models.
fn introduced(version: &str, models: &Value) -> Value {
    json!({
        "protocolVersion": version,
        "serverInfo": {"name": "plexum-openai-provider", "version": env!("CARGO_PKG_VERSION")},
        "capabilities": {"logging": {}, "experimental": {"plexum": {"contract": 2, "manifest": {
            "name": "plexum-openai-provider", "version": env!("CARGO_PKG_VERSION"), "activation": "lazy",
            "executable": "plexum-openai-provider-plugin", "contracts": {"provider": {"models": models}}}}}},
    })
}

#[test]
fn initialize_negotiates_version_and_has_manifest() {
    let lab = Lab::fake(Value::Null);
    for (config, models) in [
        ("{}", json!(["codex"])),
        (r#"{"supported_models":["a","b"]}"#, json!(["a", "b"])),
    ] {
        lab.raw_config(config.as_bytes());
        let mut daemon = Daemon::start_uninitialised(&lab);
        for (asked, given) in [
            ("2025-11-25", "2025-11-25"),
            ("2025-06-18", "2025-06-18"),
            ("2025-03-26", "2025-03-26"),
            ("2024-11-05", "2024-11-05"),
            ("2024-10-07", "2025-11-25"),
            ("2099-01-01", "2025-11-25"),
            ("", "2025-11-25"),
        ] {
            let answer = daemon.call(method::INITIALIZE, json!({"protocolVersion": asked}));
            assert_eq!(answer["result"], introduced(given, &models), "{asked}");
        }
    }
}

// fault: 36
#[test]
fn rejects_requests_before_initialize() {
    let lab = Lab::fake(Value::Null);
    let mut daemon = Daemon::start_uninitialised(&lab);
    let requests = [
        (method::STREAM, Daemon::prompt(&lab, "hi")),
        (method::STEER, json!({})),
        (method::CANCEL, json!({"stream": 7})),
        (
            method::MUTATE,
            json!({"workspace": lab.workspace(), "mutations": []}),
        ),
        (method::SET_LOG_LEVEL, json!({"level": "debug"})),
    ];
    let check = |daemon: &mut Daemon| {
        for (name, params) in &requests {
            let answer = daemon.call(name, params.clone());
            assert_eq!(answer["error"]["code"], -32003, "{name}: {answer}");
        }
        daemon.ping();
    };
    check(&mut daemon);
    // What does not count as one.
    daemon.notify(method::INITIALIZE, Daemon::introduction());
    daemon.notify(method::INITIALIZED, json!({}));
    for (params, part) in [
        (json!({}), "params.protocolVersion: is missing"),
        (json!({"protocolVersion": 2}), "params.protocolVersion"),
        (
            json!({"protocolVersion": "2025-06-18", "capabilities": 5}),
            "params.capabilities",
        ),
        (
            json!({"protocolVersion": "2025-06-18", "clientInfo": "me"}),
            "params.clientInfo",
        ),
    ] {
        let answer = daemon.call(method::INITIALIZE, params);
        assert_eq!(answer["error"]["code"], -32602, "{answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(part), "{message}");
    }
    lab.raw_config(b"{\n \"binary\": 5}");
    let answer = daemon.call(method::INITIALIZE, Daemon::introduction());
    assert_eq!(answer["error"]["code"], -32001, "{answer}");
    check(&mut daemon);
    assert_eq!(lab.fake_runs().len(), 0);
}

#[test]
fn second_initialize_reloads_config() {
    let lab = Lab::fake(Value::Null);
    lab.config(json!({"supported_models": ["one"]}));
    let mut daemon = Daemon::start(&lab);
    lab.config(json!({"supported_models": ["two"]}));
    let answer = daemon.call(method::INITIALIZE, Daemon::introduction());
    assert_eq!(
        answer["result"],
        introduced("2025-06-18", &json!(["two"])),
        "{answer}"
    );
    lab.raw_config(b"{");
    let answer = daemon.call(method::INITIALIZE, Daemon::introduction());
    assert_eq!(answer["error"]["code"], -32001, "{answer}");
    assert_eq!(daemon.turn(Daemon::prompt(&lab, "hi")).text(), "hi");
}

/// Nothing that goes on, and not the end either, keeps a ping from its response.
#[test]
fn answers_ping_at_once() {
    let lab = Lab::fake(Value::Null);
    lab.script(json!([
        "read_stdin",
        {"event": {"type": "thread.started", "thread_id": "{thread}"}},
        {"ignore": ["INT"]},
        {"touch": lab.path("started")},
        {"wait_for": lab.path("never")},
    ]));
    let mut daemon = Daemon::start(&lab);
    let id = start_endless(&mut daemon, &lab);
    daemon.ping();
    // Behind the signal, which begins the end; codex takes longer to go.
    daemon.signal(Signal::TERM);
    daemon.ping();
    assert_eq!(daemon.finish(id).stop_reason(), "cancelled");
    assert_eq!(daemon.exit(LIMIT).code(), Some(143));
}

#[test]
fn sends_logs_from_requested_level() {
    let lab = Lab::fake(Value::Null);
    let mut daemon = Daemon::start(&lab);
    let set = |daemon: &mut Daemon, level: Value| {
        daemon.call(method::SET_LOG_LEVEL, json!({"level": level}))
    };
    let count = |daemon: &mut Daemon, level: &str| {
        let logs = |daemon: &Daemon| {
            let logs = daemon.logs().iter();
            logs.filter(|log| log["level"] == level).count()
        };
        let before = logs(daemon);
        assert_eq!(
            daemon.turn(Daemon::prompt(&lab, "hi")).stop_reason(),
            "end_turn"
        );
        daemon.notify(method::CANCELLED, json!({}));
        daemon.ping();
        logs(daemon) - before
    };
    assert_eq!(count(&mut daemon, "debug"), 0);
    assert_eq!(count(&mut daemon, "warning"), 1);
    for (level, debugs, warns) in [
        ("debug", true, true),
        ("info", false, true),
        ("notice", false, true),
        ("warning", false, true),
        ("error", false, false),
        ("critical", false, false),
        ("alert", false, false),
        ("emergency", false, false),
    ] {
        assert_eq!(set(&mut daemon, json!(level))["result"], json!({}));
        assert_eq!(count(&mut daemon, "debug") > 0, debugs, "{level}");
        assert_eq!(count(&mut daemon, "warning") > 0, warns, "{level}");
    }
    for level in [
        json!("warn"),
        json!("INFO"),
        json!(""),
        json!(1),
        json!(null),
    ] {
        let answer = set(&mut daemon, level);
        assert_eq!(answer["error"]["code"], -32602, "{answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains("params.level"), "{message}");
    }
    set(&mut daemon, json!("debug"));
    let id = daemon.request(method::STREAM, Daemon::prompt(&lab, "hi"));
    daemon.finish(id);
    let mut logs = daemon.logs().iter();
    let log = logs.rfind(|log| log["level"] == "debug").unwrap();
    assert_eq!(
        log["data"],
        json!({"message": log["data"]["message"], "stream": id, "agent_id": "alice"})
    );
}

#[test]
fn exec_backend_refuses_steer() {
    let lab = Lab::fake(Value::Null);
    lab.script(endless(&lab));
    let mut daemon = Daemon::start(&lab);
    let id = start_endless(&mut daemon, &lab);
    let words = json!({"messages": [{"role": "user", "content": "and this"}]});
    for stream in [json!(id), json!("unknown")] {
        let answer = daemon.call(method::STEER, json!({"stream": stream, "request": words}));
        assert_eq!(answer["result"], json!({"steered": false}), "{answer}");
    }
    for (params, part) in [
        (json!({"request": words}), "params.stream"),
        (json!({"stream": id}), "params.request"),
        (
            json!({"stream": id, "request": {"messages": []}}),
            "params.request.messages",
        ),
    ] {
        let answer = daemon.call(method::STEER, params);
        assert_eq!(answer["error"]["code"], -32602, "{answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(part), "{message}");
    }
    daemon.cancel(id);
    assert_eq!(daemon.finish(id).stop_reason(), "cancelled");
}

// fault: 19
#[test]
fn rejects_bad_parameters_by_path() {
    let lab = Lab::fake(Value::Null);
    let mut daemon = Daemon::start(&lab);
    let workspace = lab.workspace();
    let user = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
    let text = |text: &str| user(json!([{"type": "text", "text": text}]));
    let agent = json!({"id": "alice", "workspace": workspace});
    let ok = text("hi");
    for (method, params, part) in [
        (method::STREAM, json!({}), "agent"),
        (method::STREAM, json!([]), "params"),
        (method::STREAM, json!({"agent": 5, "request": ok}), "agent"),
        (
            method::STREAM,
            json!({"agent": {"id": "a"}, "request": ok}),
            "workspace",
        ),
        (
            method::STREAM,
            json!({"agent": {"workspace": 5}, "request": ok}),
            "workspace",
        ),
        (
            method::STREAM,
            json!({"agent": {"workspace": ""}, "request": ok}),
            "workspace",
        ),
        (
            method::STREAM,
            json!({"agent": {"workspace": "a/b"}, "request": ok}),
            "workspace",
        ),
        (method::STREAM, json!({"agent": agent}), "request"),
        (
            method::STREAM,
            json!({"agent": agent, "request": {}}),
            "messages",
        ),
        (
            method::STREAM,
            json!({"agent": agent, "request": {"messages": 5}}),
            "messages",
        ),
        (
            method::STREAM,
            json!({"agent": agent, "request": {"messages": []}}),
            "messages",
        ),
        (
            method::STREAM,
            json!({"agent": agent, "request": {"messages": [5]}}),
            "messages",
        ),
        (
            method::STREAM,
            json!({"agent": agent, "request": user(json!(5))}),
            "content",
        ),
        (
            method::STREAM,
            json!({"agent": agent, "request": text("")}),
            "messages",
        ),
        (
            method::STREAM,
            json!({"agent": agent,
                "request": {"messages": [{"role": "assistant", "content": "hi"}]}}),
            "messages",
        ),
        (
            method::STREAM,
            json!({"agent": agent, "request": user(json!([{"type": "tool_result"}]))}),
            "messages",
        ),
        (
            method::STREAM,
            json!({"agent": agent, "model": 5, "request": ok}),
            "model",
        ),
        (
            method::STREAM,
            json!({"agent": agent, "request": {"messages": ok["messages"], "system": 5}}),
            "system",
        ),
        (
            method::STREAM,
            json!({"agent": agent, "request": {"messages": ok["messages"], "tools": 5}}),
            "tools",
        ),
        (
            method::STREAM,
            json!({"agent": agent, "request": text(&"x".repeat(1_048_577))}),
            "1048576",
        ),
        (
            method::STREAM,
            json!({"agent": agent, "request": text(&"ä".repeat(1_048_577))}),
            "1048576",
        ),
        (method::CANCEL, json!({}), "stream"),
        (method::MUTATE, json!({"mutations": []}), "workspace"),
        (method::MUTATE, json!({"workspace": workspace}), "mutations"),
        (
            method::MUTATE,
            json!({"workspace": workspace, "mutations": [{"op": "light"}]}),
            "block_id",
        ),
        (
            method::MUTATE,
            json!({"workspace": workspace, "mutations": [{"block_id": "c", "op": "eat"}]}),
            "op",
        ),
    ] {
        let shown = format!("{method} {params:.200}");
        let answer = daemon.call(method, params);
        assert_eq!(answer["error"]["code"], -32602, "{shown}: {answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(part), "{shown} names {part}: {message}");
    }
    assert_eq!(lab.fake_runs().len(), 0);
    // The longest prompt that codex takes, which has more bytes than characters.
    let longest = "ä".repeat(1_048_576);
    let turn = daemon.turn(json!({"agent": agent, "request": text(&longest)}));
    assert_eq!(turn.text().len(), longest.len());
    assert_eq!(lab.fake_prompts(), [longest]);
}

#[test]
fn emits_complete_plain_turn() {
    let lab = Lab::fake(Value::Null);
    let mut daemon = Daemon::start(&lab);
    // `content` may be a plain string, `model` and the agent's `id` may be left out, and what else stands
    // there is ignored.
    let turn = daemon.turn(json!({
        "agent": {"workspace": lab.workspace(), "more": 1},
        "request": {"messages": [
            {"role": "user", "content": [
                {"type": "text", "text": "one"}, {"type": "tool_result"}, {"type": "text", "text": "two"}]},
            {"role": "user", "content": []},
        ], "temperature": 1},
    }));
    assert_eq!(lab.fake_prompts(), ["one\ntwo"]);
    let usage = json!({"input_tokens": 100, "output_tokens": 5, "cache_read_tokens": 10,
        "cache_write_tokens": 0, "thinking_tokens": 1});
    assert_eq!(
        turn.events,
        [
            json!({"type": "message_start"}),
            json!({"type": "text_delta", "text": "one\ntwo", "message": 0}),
            json!({"type": "message_end", "stop_reason": "end_turn", "usage": usage}),
        ]
    );
    let thread = lab.stored_thread().unwrap();
    assert_eq!(
        *turn.result(),
        json!({"stop_reason": "end_turn", "thread_id": thread, "thread_state": "new",
            "usage": usage, "thread_usage": usage, "context": null,
            "compactions": 0, "rate_limits": null, "model": null})
    );
    let turn = daemon.turn(Daemon::prompt(&lab, "three"));
    let total = json!({"input_tokens": 200, "output_tokens": 10, "cache_read_tokens": 20,
        "cache_write_tokens": 0, "thinking_tokens": 2});
    assert_eq!(
        *turn.result(),
        json!({"stop_reason": "end_turn", "thread_id": thread, "thread_state": "resumed",
            "usage": usage, "thread_usage": total, "context": null,
            "compactions": 0, "rate_limits": null, "model": null})
    );
}

/// Who cuts a text by UTF-16 units leaves such halves, and JSON can carry them.
#[test]
fn replaces_lone_surrogates() {
    let lab = Lab::fake(Value::Null);
    let mut daemon = Daemon::start(&lab);
    let workspace = json!(lab.workspace());
    daemon.send_bytes(
        format!(
            r#"{{"jsonrpc":"2.0","id":900,"method":"plexum/provider/stream","params":{{"agent":{{"workspace":{workspace}}},"request":{{"messages":[
            {{"role":"assistant","content":[{{"type":"tool_use","input":{{"a":"\ud83d"}}}}]}},
            {{"role":"user","content":"\ud83d\ude00 \ude00"}}]}}}}}}"#
        )
        .replace('\n', "")
        .as_bytes(),
    );
    daemon.send_bytes(b"\n");
    let turn = daemon.finish(900);
    assert_eq!(turn.text(), "\u{1f600} \u{fffd}", "{turn:?}");
    assert_eq!(lab.fake_prompts(), ["\u{1f600} \u{fffd}"]);
}

// fault: 35
#[test]
fn rejects_duplicate_request_id() {
    let lab = Lab::fake(Value::Null);
    lab.script(json!([{"touch": lab.path("started")}, {"wait_for": lab.path("go")}, "default"]));
    let mut daemon = Daemon::start(&lab);
    let id = start_endless(&mut daemon, &lab);
    daemon.send(
        &json!({"jsonrpc": "2.0", "id": id, "method": method::STREAM,
        "params": Daemon::prompt(&lab, "again")}),
    );
    let answer = daemon.answer(id);
    assert_eq!(answer["error"]["code"], -32600, "{answer}");
    std::fs::write(lab.path("go"), "").unwrap();
    let turn = daemon.finish(id);
    assert_eq!(turn.text(), "go on");
    assert_eq!(lab.fake_prompts(), ["go on"]);
}

#[test]
fn cancel_ends_only_its_turn() {
    let lab = Lab::fake(Value::Null);
    lab.script(json!({"runs": [endless(&lab), ["default"]]}));
    let mut daemon = Daemon::start(&lab);
    for unknown in [json!(4711), json!("x"), json!(null)] {
        let answer = daemon.call(method::CANCEL, json!({"stream": unknown}));
        let refused = answer["error"]["code"] == -32602 && unknown.is_null();
        assert!(
            refused || answer["result"] == json!({"cancelled": false}),
            "{answer}"
        );
    }
    let id = start_endless(&mut daemon, &lab);
    assert_eq!(
        daemon.call(method::CANCEL, json!({"stream": id}))["result"],
        json!({"cancelled": true})
    );
    let turn = daemon.finish(id);
    assert_eq!(turn.stop_reason(), "cancelled");
    assert_eq!(turn.events.last().unwrap()["stop_reason"], "cancelled");
    assert_eq!(turn.of("error").count(), 0);
    wait_until("codex to be gone", || ps::of(lab.root()).len() == 1);
    let answer = daemon.call(method::CANCEL, json!({"stream": id}));
    assert_eq!(answer["result"], json!({"cancelled": false}));
    // The thread had been told, and is gone on with.
    let turn = daemon.turn(Daemon::prompt(&lab, "next"));
    assert_eq!(turn.stop_reason(), "end_turn", "{turn:?}");
}

#[test]
fn cancelled_notification_ends_turn() {
    let lab = Lab::fake(Value::Null);
    lab.script(endless(&lab));
    let mut daemon = Daemon::start(&lab);
    let id = start_endless(&mut daemon, &lab);
    daemon.cancel(id);
    assert_eq!(daemon.finish(id).stop_reason(), "cancelled");
}

// fault: 23
#[test]
fn cancels_queued_turn() {
    let lab = Lab::fake(Value::Null);
    lab.script(endless(&lab));
    let thread = "01a1fe00-a027-7a81-b8a0-356e91ab6908";
    std::fs::write(lab.session_file(), thread).unwrap();
    let mut daemon = Daemon::start(&lab);
    let first = start_endless(&mut daemon, &lab);
    let second = daemon.request(method::STREAM, Daemon::prompt(&lab, "second"));
    let answer = daemon.call(method::CANCEL, json!({"stream": second}));
    assert_eq!(answer["result"], json!({"cancelled": true}));
    let turn = daemon.finish(second);
    assert_eq!(turn.stop_reason(), "cancelled");
    // The workspace's thread is what it was.
    assert_eq!(turn.thread(), thread);
    assert_eq!(turn.result()["thread_state"], "resumed");
    assert_eq!(lab.fake_runs().len(), 1, "never spawned");
    daemon.cancel(first);
    assert_eq!(daemon.finish(first).stop_reason(), "cancelled");
}

/// A codex that ignores every polite signal, and a child of it in a session of its own.
#[test]
fn cancel_ends_codex_that_ignores_signals() {
    let lab = Lab::fake(Value::Null);
    lab.script(json!([
        "read_stdin",
        {"event": {"type": "thread.started", "thread_id": "{thread}"}},
        {"ignore": ["INT", "TERM", "HUP"]},
        {"grandchild": {"ignores_signals": true, "holds_pipes": true}},
        {"grandchild": {"ignores_signals": true, "holds_pipes": true, "setsid": true}},
        {"grandchild": {"ignores_signals": true, "setsid": true}},
        {"touch": lab.path("started")},
        {"wait_for": lab.path("never")},
    ]));
    let mut daemon = Daemon::start(&lab);
    let id = start_endless(&mut daemon, &lab);
    let start = Instant::now();
    daemon.cancel(id);
    assert_eq!(daemon.finish(id).stop_reason(), "cancelled");
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    wait_until("all of the turn to be gone", || {
        ps::of(lab.root()).len() == 1
    });
    assert_eq!(ps::zombies(daemon.pid()), 0);
}

// fault: 37
#[test]
fn end_of_stdin_answers_running_and_queued_turns() {
    let lab = Lab::fake(Value::Null);
    lab.script(endless(&lab));
    let mut daemon = Daemon::start(&lab);
    let id = start_endless(&mut daemon, &lab);
    let waiting = daemon.request(method::STREAM, Daemon::prompt(&lab, "waiting"));
    daemon.ping();
    daemon.close_stdin();
    assert_eq!(daemon.finish(id).stop_reason(), "cancelled");
    assert_eq!(daemon.finish(waiting).stop_reason(), "cancelled");
    assert_eq!(daemon.exit(Duration::from_secs(10)).code(), Some(0));
    lab.assert_quiet();
}

// fault: 37
/// What a turn has said goes out before the plugin does, to a daemon that takes its time.
#[test]
fn late_reader_gets_all_responses() {
    let lab = Lab::fake(Value::Null);
    let text = "x".repeat(100_000);
    lab.script(json!([
        "read_stdin",
        {"event": {"type": "thread.started", "thread_id": "{thread}"}},
        {"event": {"type": "turn.started"}},
        {"events": {"count": 20, "event": {"type": "item.completed",
            "item": {"id": "item_0", "type": "agent_message", "text": text}}}},
        {"event": {"type": "turn.completed", "usage": {"input_tokens": 1, "output_tokens": 1}}},
        {"touch": lab.path("started")},
    ]));
    let mut daemon = Daemon::start(&lab);
    let idle = ps::threads(daemon.pid());
    daemon.stop_reading();
    let id = start_endless(&mut daemon, &lab);
    // All that it says is with the plugin then.
    wait_until("the turn to end", || ps::threads(daemon.pid()) == idle);
    let start = Instant::now();
    daemon.close_stdin();
    // This is the fault itself, and longer than an impatient end would wait.
    std::thread::sleep(Duration::from_secs(1));
    daemon.read_again();
    assert!(daemon.finish(id).text().len() >= 20 * text.len());
    assert!(daemon.exit(Duration::from_secs(10)).success());
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn reports_responses_that_cannot_be_written() {
    let lab = Lab::fake(Value::Null);
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_plexum-openai"))
        .env_clear()
        .envs(lab.env())
        .stdin(Stdio::piped())
        .stdout(full)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The plugin may be gone before this has left.
    let _ = child
        .stdin
        .take()
        .unwrap()
        .write_all(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}\n");
    let status = crate::support::cli::wait(&mut child, LIMIT);
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (status.code(), String::from_utf8_lossy(&output.stderr)),
        (
            Some(1),
            "plexum-openai: cannot write to stdout: No space left on device\n".into()
        )
    );
}

// fault: 37
/// One that never reads holds up the end for 5 seconds at most.
#[test]
fn exits_when_daemon_does_not_read() {
    let lab = Lab::fake(Value::Null);
    let mut child = Command::new(env!("CARGO_BIN_EXE_plexum-openai"))
        .env_clear()
        .envs(lab.env())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    for id in 0..1000 {
        writeln!(
            stdin,
            "{}",
            json!({"jsonrpc": "2.0", "id": id, "method": method::PING})
        )
        .unwrap();
    }
    drop(stdin);
    let status = crate::support::cli::wait(&mut child, Duration::from_secs(5));
    assert_eq!(status.code(), Some(0), "{status}");
}

// fault: 37
#[test]
fn end_of_stdin_ends_everything() {
    let lab = Lab::fake(Value::Null);
    lab.script(endless(&lab));
    let mut daemon = Daemon::start(&lab);
    start_endless(&mut daemon, &lab);
    let start = Instant::now();
    daemon.close_stdin();
    assert_eq!(daemon.exit(Duration::from_secs(10)).code(), Some(0));
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    lab.assert_quiet();
}

// fault: 40
#[test]
fn signals_end_children_first() {
    for (signal, status) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let lab = Lab::fake(Value::Null);
        lab.script(endless(&lab));
        let mut daemon = Daemon::start(&lab);
        start_endless(&mut daemon, &lab);
        daemon.signal(signal);
        let ended = daemon.exit(Duration::from_secs(10));
        assert_eq!(crate::support::cli::shell_status(ended), status, "{ended}");
        assert!(ps::of(lab.root()).is_empty(), "{:?}", ps::of(lab.root()));
    }
}

#[test]
fn kills_tree_on_parent_death() {
    let lab = Lab::fake(Value::Null);
    lab.script(json!([
        "read_stdin",
        {"event": {"type": "thread.started", "thread_id": "{thread}"}},
        {"grandchild": {"setsid": true}},
        {"touch": lab.path("started")},
        {"wait_for": lab.path("never")},
    ]));
    let mut daemon = Daemon::start(&lab);
    start_endless(&mut daemon, &lab);
    daemon.signal(Signal::KILL);
    assert_eq!(daemon.exit(Duration::from_secs(10)).code(), None);
    lab.assert_quiet();
}

// fault: 40
/// A plugin that is started again at once waits until the codex of the one that was killed has been ended.
#[test]
fn restarted_plugin_waits_for_orphaned_codex() {
    let lab = Lab::fake(Value::Null);
    assert_eq!(Cli::new(&lab, ["turn", "before"]).run().status, 0);
    lab.script(json!({"runs": [
        [
            "hold_lock",
            {"event": {"type": "thread.started", "thread_id": "{thread}"}},
            {"ignore": ["INT", "TERM"]},
            {"touch": lab.path("started")},
            {"wait_for": lab.path("never")},
        ],
        ["default"],
    ]}));
    let mut first = Daemon::start(&lab);
    start_endless(&mut first, &lab);
    let codex = lab.fake_runs().last().unwrap()["pid"].to_string();
    first.signal(Signal::KILL);
    first.exit(Duration::from_secs(10));
    assert!(
        Path::new("/proc").join(&codex).exists(),
        "it is being ended"
    );
    let mut second = Daemon::start(&lab);
    let turn = second.turn(Daemon::prompt(&lab, "after"));
    assert_eq!(
        (turn.stop_reason(), turn.text().as_str()),
        ("end_turn", "after"),
        "{turn:?}"
    );
}

// fault: 39
#[test]
fn exits_quietly_when_daemon_is_gone() {
    let lab = Lab::fake(Value::Null);
    lab.script(endless(&lab));
    let mut child = Command::new(env!("CARGO_BIN_EXE_plexum-openai"))
        .env_clear()
        .envs(lab.env())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut send = |message: Value| writeln!(stdin, "{message}");
    send(
        json!({"jsonrpc": "2.0", "id": 1, "method": method::INITIALIZE,
        "params": Daemon::introduction()}),
    )
    .unwrap();
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    send(json!({"jsonrpc": "2.0", "id": 2, "method": method::STREAM,
        "params": Daemon::prompt(&lab, "hi")}))
    .unwrap();
    wait_until("the turn to start", || lab.path("started").exists());
    drop(stdout);
    // The plugin notices when it next writes.
    for id in 3..10 {
        let _ = send(json!({"jsonrpc": "2.0", "id": id, "method": method::PING}));
    }
    let status = crate::support::cli::wait(&mut child, Duration::from_secs(10));
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!stderr.contains("panic"), "{stderr}");
    assert!(status.code().is_some(), "{status}");
    lab.assert_quiet();
}

// fault: 38
/// Whoever has the other descriptors of a stream can make it non-blocking: nothing to read, or no room, is not an end.
#[test]
fn waits_for_nonblocking_streams() {
    let lab = Lab::fake(Value::Null);
    let event = json!({"type": "item.completed",
        "item": {"id": "item_0", "type": "agent_message", "text": "x".repeat(100_000)}});
    lab.script(json!([
        "read_stdin",
        {"event": {"type": "thread.started", "thread_id": "{thread}"}},
        {"touch": lab.path("started")},
        {"events": {"count": 10, "event": event}},
        {"event": {"type": "turn.completed", "usage": {"input_tokens": 1, "output_tokens": 1}}},
    ]));
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let (theirs_in, ours_in) = pipe();
    let (ours_out, theirs_out) = pipe();
    for end in [&theirs_in, &theirs_out] {
        rustix::fs::fcntl_setfl(end, rustix::fs::OFlags::NONBLOCK).unwrap();
    }
    let mut child = Command::new(env!("CARGO_BIN_EXE_plexum-openai"))
        .env_clear()
        .envs(lab.env())
        .stdin(theirs_in)
        .stdout(theirs_out)
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut stdin = std::fs::File::from(ours_in);
    let mut lines = BufReader::new(std::fs::File::from(ours_out)).lines();
    let mut send = |message: Value| writeln!(stdin, "{message}").unwrap();
    // By the time of the second there has been nothing to read.
    send(
        json!({"jsonrpc": "2.0", "id": 1, "method": method::INITIALIZE,
        "params": Daemon::introduction()}),
    );
    assert!(lines.next().unwrap().unwrap().contains("\"result\""));
    send(json!({"jsonrpc": "2.0", "id": 2, "method": method::STREAM,
        "params": Daemon::prompt(&lab, "hi")}));
    // codex writes on only where the plugin cannot: the pipe to here is full.
    wait_until("the turn to start", || lab.path("started").exists());
    wait_until("codex to have ended", || ps::of(lab.root()).len() == 1);
    let answer = lines
        .map(|line| line.expect("a pipe can be read"))
        .map(|line| serde_json::from_str::<Value>(&line).expect("whole lines"))
        .find(|message| message["id"] == 2);
    assert_eq!(
        answer.expect("an answer")["result"]["stop_reason"],
        "end_turn"
    );
    drop(stdin);
    let status = crate::support::cli::wait(&mut child, Duration::from_secs(10));
    assert_eq!(status.code(), Some(0));
}

// fault: 38
#[test]
fn unread_output_is_bounded_and_cancellable() {
    let lab = Lab::fake(Value::Null);
    lab.script(json!([
        "read_stdin",
        {"event": {"type": "thread.started", "thread_id": "{thread}"}},
        {"touch": lab.path("started")},
        {"events": {"count": 20_000_000}},
    ]));
    let mut daemon = Daemon::start(&lab);
    daemon.stop_reading();
    let id = start_endless(&mut daemon, &lab);
    // Once the pipes are full nothing moves: that state is waited for, as what codex has written.
    let written = || {
        let codex = ps::of(lab.root()).into_iter().find(|process| {
            process.command.contains("fake-codex") && process.parent != daemon.pid()
        });
        codex.map_or(0, |codex| ps::written(codex.pid))
    };
    let mut before = 0;
    wait_until("the pipes to be full", || {
        std::thread::sleep(Duration::from_millis(200));
        let now = written();
        std::mem::replace(&mut before, now) == now && now > 0
    });
    daemon.cancel(id);
    wait_until("codex to be gone", || ps::of(lab.root()).len() == 1);
    let peak = ps::peak_memory(daemon.pid());
    assert!(peak < 100 << 20, "{peak} bytes");
    daemon.read_again();
    assert_eq!(daemon.finish(id).stop_reason(), "cancelled");
}

#[test]
fn turns_of_different_workspaces_run_concurrently() {
    let lab = Lab::fake(Value::Null);
    // Each waits for the other: one after the other would wait for ever.
    lab.script(json!({"runs": [
        [{"touch": lab.path("a")}, {"wait_for": lab.path("b")}, "default"],
        [{"touch": lab.path("b")}, {"wait_for": lab.path("a")}, "default"],
    ]}));
    let mut daemon = Daemon::start(&lab);
    let ids: Vec<i64> = ["one", "two"]
        .into_iter()
        .map(|name| {
            let mut params = Daemon::prompt(&lab, name);
            params["agent"] = json!({"id": name, "workspace": lab.path(name)});
            daemon.request(method::STREAM, params)
        })
        .collect();
    for (id, name) in ids.into_iter().zip(["one", "two"]) {
        assert_eq!(daemon.finish(id).text(), name);
    }
}

// fault: 30
#[test]
fn turns_of_one_workspace_run_in_order() {
    let lab = Lab::fake(Value::Null);
    lab.script(json!([{"touch": lab.path("started")}, {"wait_for": lab.path("go")}, "default"]));
    let mut daemon = Daemon::start(&lab);
    let names = ["one", "two", "three", "four"];
    let mut ids = vec![daemon.request(method::STREAM, Daemon::prompt(&lab, "one"))];
    wait_until("the first to start", || lab.path("started").exists());
    for name in &names[1..] {
        // The same directory under other names is the same workspace.
        let mut params = Daemon::prompt(&lab, name);
        if *name == "three" {
            std::os::unix::fs::symlink(lab.workspace(), lab.path("link")).unwrap();
            params["agent"]["workspace"] = json!(lab.path("link"));
        } else if *name == "four" {
            params["agent"]["workspace"] = json!(lab.path("home/../workspace"));
        }
        ids.push(daemon.request(method::STREAM, params));
    }
    daemon.ping();
    assert_eq!(lab.fake_runs().len(), 1);
    std::fs::write(lab.path("go"), "").unwrap();
    for (number, id) in ids.into_iter().enumerate() {
        let turn = daemon.finish(id);
        assert_eq!(turn.text(), names[number]);
        assert_eq!(
            turn.result()["thread_state"],
            if number == 0 { "new" } else { "resumed" }
        );
        assert_eq!(turn.result()["usage"]["input_tokens"], 100);
        assert_eq!(
            turn.result()["thread_usage"]["input_tokens"],
            100 * (number + 1)
        );
    }
    assert_eq!(lab.fake_prompts(), names);
}

// fault: 22
#[test]
fn many_turns_leak_no_descriptors() {
    let lab = Lab::fake(Value::Null);
    let mut daemon = Daemon::start(&lab);
    let mut turn = |number: usize| {
        let turn = daemon.turn(Daemon::prompt(&lab, &number.to_string()));
        assert_eq!(turn.stop_reason(), "end_turn");
        let pid = daemon.pid();
        (ps::open_files(pid), ps::threads(pid), ps::zombies(pid))
    };
    let first = turn(0);
    let mut last = first.clone();
    for number in 1..60 {
        last = turn(number);
    }
    assert_eq!(first, last);
    assert_eq!(last.2, 0);
}
