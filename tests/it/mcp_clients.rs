//! The official MCP clients against `mcp-host`, those of Python and TypeScript, and the inspector; and the first two
//! in the place of the daemon, against the plugin itself.
//!
//! `tests/mcp/install` fetches them (`make test` runs it); without them these tests are skipped, which is said
//! loudly, and is a failure in CI. What they check is in `tests/mcp/client.*` and `tests/mcp/daemon.*`.

use crate::mcp::Held;
use crate::support::{LIMIT, Lab};
use serde_json::{Value, json};
use std::cell::Cell;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::mpsc::channel;

const TOOLS: [&str; 8] = [
    "echo",
    "slow",
    "release",
    "never",
    "cancelled",
    "picture",
    "table",
    "fail",
];

/// Where the clients are, where they are.
fn clients() -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let clients = target.join("mcp-clients");
    if clients.join("versions").is_file() {
        return Some(clients);
    }
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "{test} needs the official MCP clients; `make mcp-clients` fetches them"
    );
    writeln!(
        std::io::stderr(),
        "SKIPPED {test}: the official MCP clients are not there; `make mcp-clients` fetches them"
    )
    .unwrap();
    None
}

/// Runs a client with the command line of an `mcp-host` behind its own; what it printed.
#[track_caller]
fn run(clients: &Path, client: &[&Path], behind: &[&str]) -> String {
    let mut held = Held::new(&TOOLS);
    let cancelled = Rc::new(Cell::new(0));
    let seen = Rc::clone(&cancelled);
    let mut never = 0;
    held.daemon.on_tool_call(move |params| {
        let text = |text: String| Some(Ok(json!({"content": text, "is_error": false})));
        match params["name"].as_str().unwrap() {
            "echo" => text(params["arguments"].to_string()),
            // Answered below, once `release` was called.
            "slow" => None,
            "release" => text(String::new()),
            "never" => {
                never += 1;
                None
            }
            "cancelled" => text(json!({"never": never, "cancelled": seen.get()}).to_string()),
            "picture" => Some(Ok(json!({"content": [
                {"type": "image", "media_type": "image/png", "data": "iVBORw0KGgo="}]}))),
            "table" => Some(Ok(json!({"structured_content": {"rows": [1, 2]}}))),
            "fail" => Some(Err(json!({"code": -32000, "message": "no such luck"}))),
            other => panic!("no such tool: {other}"),
        }
    });
    let mut child = Command::new(client[0])
        .args(&client[1..])
        .args(held.host_below())
        .args(behind)
        .env("MCP_CLIENT_PACKAGES", clients)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the client can be started");
    let mut streams = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let reader = std::thread::spawn(move || {
        let (mut said, mut complained) = (String::new(), String::new());
        streams.0.read_to_string(&mut said).unwrap();
        streams.1.read_to_string(&mut complained).unwrap();
        (said, complained)
    });
    let mut released = false;
    held.daemon.serve_until("the client to end", |daemon| {
        cancelled.set(daemon.tools_cancelled().len());
        let called = |name: &str| {
            let mut calls = daemon.tool_calls().iter();
            calls.rfind(|call| call["params"]["name"] == name).cloned()
        };
        if let (false, Some(_), Some(slow)) = (released, called("release"), called("slow")) {
            released = true;
            let result = json!({"content": [{"type": "text", "text": "released"}]});
            daemon.send(&json!({"jsonrpc": "2.0", "id": slow["id"], "result": result}));
        }
        reader.is_finished()
    });
    let (said, complained) = reader.join().unwrap();
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}: {said}{complained}");
    held.let_go();
    said
}

#[test]
fn python() {
    let Some(clients) = clients() else { return };
    let client = [&clients.join("venv/bin/python"), &script("client.py")];
    assert_eq!(run(&clients, &client.map(PathBuf::as_path), &[]), "ok\n");
}

#[test]
fn typescript() {
    let (Some(clients), Some(node)) = (clients(), crate::programs::find("node")) else {
        return;
    };
    let client = [&node, &script("client.mjs")];
    assert_eq!(run(&clients, &client.map(PathBuf::as_path), &[]), "ok\n");
}

#[test]
fn inspector() {
    let (Some(clients), Some(node)) = (clients(), crate::programs::find("node")) else {
        return;
    };
    let inspector = clients.join("node_modules/.bin/mcp-inspector");
    let client = [node.as_path(), &inspector, Path::new("--cli")];
    let listed: Value =
        serde_json::from_str(&run(&clients, &client, &["--method", "tools/list"])).unwrap();
    let tools = listed["tools"].as_array().unwrap();
    let names: Vec<&str> = tools
        .iter()
        .map(|tool| tool["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, TOOLS);
    let call = [
        "--method",
        "tools/call",
        "--tool-name",
        "echo",
        "--tool-arg",
        "n=7",
    ];
    let called: Value = serde_json::from_str(&run(&clients, &client, &call)).unwrap();
    let content = json!([{"type": "text", "text": "{\"n\":\"7\"}"}]);
    assert_eq!(called, json!({"content": content, "isError": false}));
}

/// Runs a client as the daemon of a plugin whose codex ends the first turn, hangs in the second and calls a tool in the
/// third; what it printed.
#[track_caller]
fn run_as_daemon(clients: &Path, client: &[&Path]) -> String {
    let lab = Lab::fake(Value::Null);
    lab.config(json!({"supported_models": ["codex", "codex-mini"]}));
    let thread = json!({"event": {"type": "thread.started", "thread_id": "{thread}"}});
    let message = |text: &str| {
        json!({"event": {"type": "item.completed",
            "item": {"id": "item_0", "type": "agent_message", "text": text}}})
    };
    let end = json!({"event": {"type": "turn.completed",
        "usage": {"input_tokens": 1, "cached_input_tokens": 0, "output_tokens": 1}}});
    lab.script(json!({"runs": [
        ["read_stdin", thread, message("Hello."), end],
        ["read_stdin", thread, message("At work."), {"wait_for": lab.path("never")}],
        ["read_stdin", thread, {"call_tool": "fabric_send"}, end],
    ]}));
    let mut child = Command::new(client[0])
        .args(&client[1..])
        .arg(lab.workspace())
        .arg(env!("CARGO_BIN_EXE_plexum-openai"))
        .env_clear()
        .envs(lab.env())
        .env("MCP_CLIENT_PACKAGES", clients)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the client can be started");
    let mut streams = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let (sender, ended) = channel();
    std::thread::spawn(move || {
        let (mut said, mut complained) = (String::new(), String::new());
        streams.0.read_to_string(&mut said).unwrap();
        streams.1.read_to_string(&mut complained).unwrap();
        // Where the test has given up nobody listens.
        let _ = sender.send((said, complained));
    });
    let (said, complained) = ended.recv_timeout(LIMIT).expect("the client ends");
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}: {said}{complained}");
    lab.assert_quiet();
    said
}

#[test]
fn python_as_daemon() {
    let Some(clients) = clients() else { return };
    let client = [&clients.join("venv/bin/python"), &script("daemon.py")];
    assert_eq!(
        run_as_daemon(&clients, &client.map(PathBuf::as_path)),
        "ok\n"
    );
}

#[test]
fn typescript_as_daemon() {
    let (Some(clients), Some(node)) = (clients(), crate::programs::find("node")) else {
        return;
    };
    let client = [&node, &script("daemon.mjs")];
    assert_eq!(
        run_as_daemon(&clients, &client.map(PathBuf::as_path)),
        "ok\n"
    );
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/mcp")
        .join(name)
}
