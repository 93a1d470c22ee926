//! Tests of the bridge through its socket.

use super::*;
use crate::mcp::{ToolCall, ToolOutput};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender};

/// The limit of every wait in these tests.
const LIMIT: Duration = Duration::from_secs(20);

type Answer = Box<dyn FnOnce(ToolAnswer) + Send>;

/// What the bridge asks of its host.
enum HostRequest {
    Call(CallId, ToolCall, Answer),
    Cancelled(CallId),
}

/// A host that passes everything to the test. `echo` is answered at once, on the bridge's own thread.
struct Daemon {
    asked: Sender<HostRequest>,
    next: Mutex<u64>,
}

impl ToolHost for Daemon {
    fn call(&self, call: ToolCall, answer: Answer) -> CallId {
        let id = {
            let mut next = self.next.lock().unwrap();
            *next += 1;
            CallId(*next)
        };
        if call.name == "echo" {
            answer(Ok(output(call.arguments.get())));
        } else {
            // The test may have ended.
            let _ = self.asked.send(HostRequest::Call(id, call, answer));
        }
        id
    }

    fn cancel(&self, call: CallId) {
        let _ = self.asked.send(HostRequest::Cancelled(call));
    }
}

fn output(text: &str) -> ToolOutput {
    ToolOutput {
        content: RawValue::from_string(crate::json::json_string(text)).ok(),
        ..ToolOutput::default()
    }
}

fn tools(names: &[&str]) -> Vec<Tool> {
    let tool = |name: &&str| Tool {
        name: (*name).to_owned(),
        description: None,
        input_schema: None,
    };
    names.iter().map(tool).collect()
}

/// A turn of agent `alice` with the tools `echo` and `slow`.
struct BridgedTurn {
    base: tempfile::TempDir,
    bridge: Option<Bridge>,
    asked: Receiver<HostRequest>,
}

impl BridgedTurn {
    fn new() -> BridgedTurn {
        let base = tempfile::tempdir().unwrap();
        let (asked, received) = mpsc::channel();
        let host = Daemon {
            asked,
            next: Mutex::new(0),
        };
        let bridge = Bridge::start(
            "alice",
            tools(&["echo", "slow"]),
            Arc::new(host),
            &settings(base.path(), RegistrationMode::Turn),
        )
        .unwrap();
        // The process of the tests is the client.
        bridge.admit_below(os::own_pid());
        BridgedTurn {
            base,
            bridge: Some(bridge),
            asked: received,
        }
    }

    fn bridge(&self) -> &Bridge {
        self.bridge.as_ref().unwrap()
    }

    fn asked(&self) -> HostRequest {
        self.asked.recv_timeout(LIMIT).expect("the daemon is asked")
    }

    fn call(&self) -> (CallId, ToolCall, Answer) {
        match self.asked() {
            HostRequest::Call(id, call, answer) => (id, call, answer),
            HostRequest::Cancelled(id) => panic!("{id:?} was cancelled"),
        }
    }

    fn cancelled(&self) -> CallId {
        match self.asked() {
            HostRequest::Cancelled(id) => id,
            HostRequest::Call(_, call, _) => panic!("{call:?} was asked for"),
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        let directory = self.base.path().join("run");
        let entries = std::fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    fn socket(&self) -> PathBuf {
        let mut files = self.files();
        files.retain(|path| path.extension().is_some_and(|end| end == "sock"));
        assert_eq!(files.len(), 1, "{files:?}");
        files.remove(0)
    }

    fn connect(&self) -> BridgeClient {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        BridgeClient {
            reader: BufReader::new(stream.try_clone().unwrap()),
            stream,
        }
    }

    /// An authenticated and initialized connection.
    fn client(&self) -> BridgeClient {
        let mut client = self.connect();
        let token = socket::read_token(&self.socket()).unwrap();
        client.send(&json!({"agent_id": "alice", "token": token}));
        assert_eq!(client.line(), Some(json!({"error": null})));
        client.send(&json!({"jsonrpc": "2.0", "id": "i", "method": "initialize",
                "params": {"protocolVersion": "2025-06-18"}}));
        assert_eq!(client.line().unwrap()["id"], "i");
        client
    }
}

fn settings(base: &std::path::Path, mode: RegistrationMode) -> BridgeSettings {
    BridgeSettings {
        tool_timeout: Duration::from_secs(9),
        mode,
        profile: base.to_owned(),
        runtime_dir: None,
        executable: PathBuf::from("/bin/plexum-openai"),
        codex_home: base.to_owned(),
        codex: PathBuf::from("true"),
        codex_env: Vec::new(),
        cancel: crate::os::CancelToken::new().unwrap(),
    }
}

struct BridgeClient {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
}

impl BridgeClient {
    fn send(&mut self, message: &Value) {
        self.stream
            .write_all(format!("{message}\n").as_bytes())
            .unwrap();
    }

    fn call(&mut self, id: u64, name: &str, arguments: &Value) {
        self.send(&json!({"jsonrpc": "2.0", "id": id, "method": "tools/call",
                "params": {"name": name, "arguments": arguments}}));
    }

    /// The next line; `None` at the end of the connection.
    fn line(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap()),
            // The bridge closed the connection with unread input.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn ping(&mut self) {
        self.send(&json!({"jsonrpc": "2.0", "id": "p", "method": "ping"}));
        assert_eq!(
            self.line(),
            Some(json!({"jsonrpc": "2.0", "id": "p", "result": {}}))
        );
    }
}

fn answered(id: u64, text: &str) -> Option<Value> {
    Some(json!({"jsonrpc": "2.0", "id": id,
            "result": {"content": [{"type": "text", "text": text}], "isError": false}}))
}

// fault: 46
#[test]
fn admits_only_mcp_host_of_this_turn() {
    let turn = BridgedTurn::new();
    let token = socket::read_token(&turn.socket()).unwrap();
    for (hello, why) in [
        (
            json!({"agent_id": "bob", "token": token}),
            "this socket belongs to another agent",
        ),
        (
            json!({"agent_id": "alice", "token": "0"}),
            "the token belongs to another turn",
        ),
        (
            json!({"agent_id": "alice"}),
            "this is not an mcp-host of this version",
        ),
        (
            json!({"jsonrpc": "2.0", "id": 1, "method": "ping"}),
            "this is not an mcp-host of this version",
        ),
        (json!(7), "this is not an mcp-host of this version"),
    ] {
        let mut client = turn.connect();
        client.send(&hello);
        assert_eq!(client.line(), Some(json!({"error": why})), "{hello}");
        assert_eq!(client.line(), None, "{hello}");
    }
    turn.client().ping();
}

/// An entry in codex's shared config starts an `mcp-host` for every user of codex.
#[test]
fn rejects_registered_host_without_turn_mark() {
    let base = tempfile::tempdir().unwrap();
    let host = Daemon {
        asked: mpsc::channel().0,
        next: Mutex::new(0),
    };
    let host: Arc<dyn ToolHost> = Arc::new(host);
    let settings = settings(base.path(), RegistrationMode::Persistent);
    let start = || Bridge::start("alice", tools(&["echo"]), Arc::clone(&host), &settings);
    let bridge = start().unwrap();
    bridge.admit_below(os::own_pid());
    assert_eq!(
        start().unwrap_err().kind(),
        Kind::Busy,
        "one turn at a time"
    );
    let arguments = bridge.codex_args();
    let value = arguments[1].to_str().unwrap();
    let (_, mark) = value.split_once("PLEXUM_MCP_TURN=\"").unwrap();
    let mark = mark.split('"').next().unwrap();
    let socket = base.path().join("run/p-alice.sock");
    let token = socket::read_token(&socket).unwrap();
    for (turn, expected) in [
        (
            None,
            json!({"error": "it was not started by this turn's codex"}),
        ),
        (
            Some("t-0"),
            json!({"error": "it was not started by this turn's codex"}),
        ),
        (Some(mark), json!({"error": null})),
    ] {
        let stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut client = BridgeClient {
            reader: BufReader::new(stream.try_clone().unwrap()),
            stream,
        };
        client.send(&json!({"agent_id": "alice", "token": token, "turn": turn}));
        assert_eq!(client.line(), Some(expected), "{turn:?}");
    }
    drop(bridge);
    start().unwrap();
}

#[test]
fn relays_calls_to_daemon_and_back() {
    let turn = BridgedTurn::new();
    let mut client = turn.client();
    client.call(1, "slow", &json!({"to": "bob"}));
    let (_, call, answer) = turn.call();
    assert_eq!(
        (call.name.as_str(), call.arguments.get()),
        ("slow", r#"{"to":"bob"}"#)
    );
    // Other calls proceed meanwhile, on this connection and on another one.
    client.ping();
    client.call(2, "echo", &json!({"a": 1}));
    assert_eq!(client.line(), answered(2, r#"{"a":1}"#));
    let mut other = turn.client();
    other.call(1, "echo", &json!({}));
    assert_eq!(other.line(), answered(1, "{}"));
    answer(Ok(output("at last")));
    assert_eq!(client.line(), answered(1, "at last"));
    // A dropped call is a tool error, too.
    client.call(3, "slow", &json!({}));
    drop(turn.call());
    let line = client.line().unwrap();
    assert_eq!(line["result"]["isError"], true);
    client.call(4, "slow", &json!({}));
    let (_, _, answer) = turn.call();
    answer(Err("the daemon is gone".to_owned()));
    assert_eq!(
        client.line().unwrap()["result"],
        json!({"content": [{"type": "text", "text": "the daemon is gone"}], "isError": true})
    );
}

#[test]
fn relays_five_hundred_calls_at_once() {
    let turn = BridgedTurn::new();
    let mut client = turn.client();
    for id in 0..500 {
        client.call(id, "slow", &json!({"n": id}));
    }
    let mut answers: Vec<(ToolCall, Answer)> = (0..500)
        .map(|_| turn.call())
        .map(|(_, call, answer)| (call, answer))
        .collect();
    answers.reverse();
    let threads = answers
        .into_iter()
        .map(|(call, answer)| std::thread::spawn(move || answer(Ok(output(call.arguments.get())))));
    for thread in threads.collect::<Vec<_>>() {
        thread.join().unwrap();
    }
    let mut seen: Vec<u64> = (0..500)
        .map(|_| {
            let line = client.line().unwrap();
            let id = line["id"].as_u64().unwrap();
            assert_eq!(Some(line), answered(id, &format!("{{\"n\":{id}}}")));
            id
        })
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..500).collect::<Vec<u64>>());
}

// fault: 48
#[test]
fn cancels_calls_of_closed_connection() {
    let mut turn = BridgedTurn::new();
    let mut client = turn.client();
    client.call(1, "slow", &json!({}));
    let (first, _, answer) = turn.call();
    client.send(
        &json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}),
    );
    assert_eq!(turn.cancelled(), first);
    answer(Ok(output("late")));
    client.ping();

    // The connection is lost during a call: the call is cancelled, and the next connection is served.
    client.call(2, "slow", &json!({}));
    let (second, _, late) = turn.call();
    drop(client);
    assert_eq!(turn.cancelled(), second);
    late(Ok(output("late")));
    turn.client().ping();

    // codex shuts down its sending side only: results that are there already are still written.
    let mut client = turn.client();
    client.call(3, "slow", &json!({}));
    client.call(4, "echo", &json!({}));
    let (third, _, _late) = turn.call();
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.line(), answered(4, "{}"));
    assert_eq!(client.line(), None);
    assert_eq!(turn.cancelled(), third);

    // At the end of the turn.
    let mut client = turn.client();
    client.call(5, "slow", &json!({}));
    let (last, _, late) = turn.call();
    turn.bridge = None;
    assert_eq!(turn.cancelled(), last);
    late(Ok(output("late")));
    assert_eq!(client.line(), None);
    assert_eq!(turn.files(), [""; 0].map(PathBuf::from));
}

#[test]
fn notifies_codex_of_changed_tools() {
    let turn = BridgedTurn::new();
    let mut client = turn.client();
    let warnings = turn
        .bridge()
        .updater()
        .change(tools(&["echo", "new", "new"]));
    assert_eq!(warnings, ["duplicate tool 'new'; the first one is offered"]);
    assert_eq!(
        client.line(),
        Some(json!({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}))
    );
    client.send(&json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}));
    let listed = client.line().unwrap();
    let names: Vec<&str> = listed["result"]["tools"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tool| tool["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["echo", "new"]);
    client.call(2, "slow", &json!({}));
    assert_eq!(client.line().unwrap()["result"]["isError"], true);
    turn.bridge().updater().change(Vec::new());
    client.line();
    client.send(&json!({"jsonrpc": "2.0", "id": 3, "method": "tools/list"}));
    assert_eq!(client.line().unwrap()["result"], json!({"tools": []}));
}

// fault: 51
#[test]
fn silent_connections_do_not_block_others() {
    let turn = BridgedTurn::new();
    let mut silent: Vec<BridgeClient> = (0..100).map(|_| turn.connect()).collect();
    for (at, client) in silent.iter_mut().enumerate() {
        // Some send half a line, some too much. The oldest may have been closed for later ones.
        match at % 3 {
            0 => drop(client.stream.write_all(b"{\"agent")),
            1 => drop(client.stream.write_all(&[b'x'; 2 * HELLO_BYTES])),
            _ => {}
        }
    }
    let mut served: Vec<BridgeClient> = (0..SESSIONS_MAX).map(|_| turn.client()).collect();
    let mut one_more = turn.connect();
    let token = socket::read_token(&turn.socket()).unwrap();
    one_more.send(&json!({"agent_id": "alice", "token": token}));
    assert_eq!(
        one_more.line(),
        Some(json!({"error": "this turn has too many connections"}))
    );
    assert_eq!(one_more.line(), None);
    for client in &mut silent {
        assert_eq!(client.line(), None, "it is closed");
    }
    // An incomplete request of a session blocks no other one, either.
    served[0].stream.write_all(b"{\"jsonrpc\":").unwrap();
    served.pop().unwrap().ping();
    served.remove(1).ping();
    turn.client().ping();
}

// fault: 102
/// A process with everything but the turn's guard above it is refused, and so is every process while no codex runs.
#[test]
fn admits_only_processes_below_guard() {
    let turn = BridgedTurn::new();
    let token = socket::read_token(&turn.socket()).unwrap();
    let hello = json!({"agent_id": "alice", "token": token});
    let mut served = turn.client();
    turn.bridge().admit_nobody();
    assert_eq!(served.line(), None, "it is closed with its codex");
    let mut between = turn.connect();
    between.send(&hello);
    assert_eq!(between.line(), None, "it is never answered");

    let mut sibling = std::process::Command::new("sleep")
        .arg("60")
        .spawn()
        .unwrap();
    turn.bridge().admit_below(Pid::from_child(&sibling));
    let mut outside = turn.connect();
    outside.send(&hello);
    let refusal = json!({"error": "it was not started by this turn's codex"});
    assert_eq!(outside.line(), Some(refusal));
    assert_eq!(outside.line(), None);
    sibling.kill().unwrap();
    sibling.wait().unwrap();

    // A connection before its codex is admitted waits for that.
    turn.bridge().admit_nobody();
    let mut early = turn.connect();
    early.send(&hello);
    turn.bridge().admit_below(os::own_pid());
    assert_eq!(early.line(), Some(json!({"error": null})));
    turn.client().ping();
}

// fault: 114
#[test]
fn evicts_silent_connections_for_one_that_speaks() {
    let turn = BridgedTurn::new();
    let silent: Vec<BridgeClient> = (0..193).map(|_| turn.connect()).collect();
    turn.client().ping();
    // Sessions without `initialize`.
    let token = socket::read_token(&turn.socket()).unwrap();
    let mute: Vec<BridgeClient> = (0..SESSIONS_MAX)
        .map(|_| {
            let mut client = turn.connect();
            client.send(&json!({"agent_id": "alice", "token": token}));
            assert_eq!(client.line(), Some(json!({"error": null})));
            client
        })
        .collect();
    turn.client().ping();
    drop((silent, mute));
}

// fault: 114
/// The incomplete lines of all connections share one limit, and the longest one is discarded for it.
#[test]
fn bounds_unended_lines_of_all_connections() {
    let turn = BridgedTurn::new();
    let mut clients: Vec<BridgeClient> = (0..3).map(|_| turn.client()).collect();
    let part = vec![b'x'; UNENDED_BYTES / 5 * 2];
    for client in &mut clients {
        client.stream.write_all(&part).unwrap();
    }
    let mut short = turn.client();
    short.stream.write_all(b"{\"jsonrpc\":").unwrap();
    let mut codes = Vec::new();
    for client in &mut clients {
        client.stream.write_all(b"\n").unwrap();
        codes.push(client.line().unwrap()["error"]["code"].clone());
    }
    codes.sort_by_key(Value::to_string);
    assert_eq!(codes, [json!(-32600), json!(-32700), json!(-32700)]);
    short
        .stream
        .write_all(b"\"2.0\",\"id\":9,\"method\":\"ping\"}\n")
        .unwrap();
    assert_eq!(short.line().unwrap()["id"], 9);
}

// fault: 50
#[test]
fn bounds_long_lines_in_both_directions() {
    let turn = BridgedTurn::new();
    let mut client = turn.client();
    let mut writer = client.stream.try_clone().unwrap();
    let writing = std::thread::spawn(move || {
        let chunk = vec![b'x'; 1 << 20];
        for _ in 0..LINE_BYTES / chunk.len() + 2 {
            writer.write_all(&chunk).unwrap();
        }
        writer.write_all(b"\n").unwrap();
    });
    let refused = client.line().unwrap();
    assert_eq!(refused["error"]["code"], -32600);
    writing.join().unwrap();
    client.ping();
    client.call(1, "slow", &json!({}));
    let (_, _, answer) = turn.call();
    answer(Ok(output(&"x".repeat(20_000_000))));
    let mut line = String::new();
    client.reader.read_line(&mut line).unwrap();
    assert!(line.len() < 16 << 20, "{} bytes", line.len());
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["result"]["isError"], true);
    client.ping();
}

#[test]
fn rejects_agent_ids_that_are_no_arguments() {
    let base = tempfile::tempdir().unwrap();
    let host: Arc<dyn ToolHost> = Arc::new(Daemon {
        asked: mpsc::channel().0,
        next: Mutex::new(0),
    });
    let settings = settings(base.path(), RegistrationMode::Turn);
    for id in ["a\0b", &"a".repeat(AGENT_ID_BYTES + 1)] {
        let error = Bridge::start(id, tools(&["echo"]), Arc::clone(&host), &settings);
        assert_eq!(error.unwrap_err().kind(), Kind::Params);
    }
    for id in ["", "-", "--socket", "é \"\n"] {
        Bridge::start(id, tools(&["echo"]), Arc::clone(&host), &settings).unwrap();
    }
}
