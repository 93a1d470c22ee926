//! The official MCP clients against `mcp-host`: those of Python and TypeScript, and the inspector.
//!
//! `tests/mcp/install` fetches them (`make test` runs it); without them these tests are skipped, which is said
//! loudly, and is a failure in CI. What they check is in `tests/mcp/client.py` and `tests/mcp/client.mjs`.

use crate::mcp::Held;
use serde_json::{Value, json};
use std::cell::Cell;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;

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

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/mcp")
        .join(name)
}
