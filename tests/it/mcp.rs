//! The daemon's tools, from the model's request to the daemon and back: with the real codex what it makes of
//! them, with the fake one what a turn's socket lets in and leaves behind.

use crate::support::codex::{self, NEWEST, real_codex};
use crate::support::{Cli, Daemon, LIMIT, Lab, cli, ps, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// A prompt of this agent with these tools.
fn prompt(lab: &Runtime, agent: &str, tools: &[&str]) -> Value {
    let mut params = Daemon::prompt(lab, "go");
    params["agent"] = json!({"id": agent, "workspace": lab.path(agent)});
    params["request"]["tools"] = tools
        .iter()
        .map(|name| {
            json!({"name": name, "description": format!("does {name}"),
                "input_schema": {"type": "object", "properties": {"to": {"type": "string"}}}})
        })
        .collect();
    params
}

/// Answers with the name and the arguments of each call.
fn echo(daemon: &mut Daemon) {
    daemon.on_tool_call(|params| {
        let told = format!(
            "{} got {}",
            params["name"].as_str().unwrap(),
            params["arguments"]
        );
        Some(Ok(
            json!({"content": [{"type": "text", "text": told}], "is_error": false}),
        ))
    });
}

/// A model that calls these tools of the agent in turn.
fn calls(agent: &str, tools: &[&str]) -> Value {
    let mut script: Vec<Value> = tools
        .iter()
        .enumerate()
        .map(|(at, tool)| {
            json!({"times": 1, "calls": [{"name": tool, "namespace": namespace(agent),
                "arguments": {"to": "bob"}, "id": format!("call_{at}")}]})
        })
        .collect();
    script.push(json!({"text": "done"}));
    json!(script)
}

fn namespace(agent: &str) -> String {
    format!("mcp__plexum_host_{}", agent.replace('-', "_"))
}

/// The one tool of an agent; codex turns a `-` in a name into `_`.
fn tool_of(agent: &str) -> String {
    format!("tool_{}", agent.replace('-', "_"))
}

/// What a request to the model offers of the daemon's tools: each namespace and its tools.
fn offered(request: &Value) -> Vec<(String, Vec<String>)> {
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    let tools = request["tools"].as_array().map_or(&[][..], Vec::as_slice);
    tools
        .iter()
        .filter(|tool| name(tool).contains("plexum_host"))
        .map(|tool| {
            let inner = tool["tools"].as_array().expect("a namespace has tools");
            (name(tool), inner.iter().map(name).collect())
        })
        .collect()
}

/// The output that the model got for a call, as text.
fn output(request: &Value, call: &str) -> String {
    request["input"]
        .as_array()
        .expect("input is a list")
        .iter()
        .find(|item| item["call_id"] == call && item.get("output").is_some())
        .map_or(String::new(), |item| item["output"].to_string())
}

/// codex's config, but for what codex itself writes there: versions up to 0.155 at least note each workspace as
/// trusted when they run with `--dangerously-bypass-approvals-and-sandbox`.
fn config(lab: &Lab) -> String {
    let text = fs::read_to_string(lab.codex_home().join("config.toml")).unwrap();
    let mut kept = String::new();
    let mut own = false;
    for line in text.lines().filter(|line| !line.is_empty()) {
        if line.starts_with('[') {
            own = line.starts_with("[projects.");
        }
        if !own {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// The sockets of a lab whose paths are short enough for its profile.
fn sockets(lab: &Lab) -> Vec<PathBuf> {
    let entries = fs::read_dir(lab.path("runtime/plexum-openai"));
    entries
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect()
}

/// A lab whose sockets have a folder of their own, however deep the checkout lies.
struct Runtime {
    lab: Lab,
    short: tempfile::TempDir,
}

impl Runtime {
    fn new(mut lab: Lab) -> Runtime {
        let short = tempfile::Builder::new()
            .prefix("pxo")
            .tempdir_in("/tmp")
            .unwrap();
        lab.set_env("XDG_RUNTIME_DIR", short.path());
        std::os::unix::fs::symlink(short.path(), lab.path("runtime")).unwrap();
        Runtime { lab, short }
    }

    /// Ends the plugin and sees that no socket is left, and no process.
    #[track_caller]
    fn assert_clean(&self, daemon: Daemon) {
        assert_eq!(
            sockets(&self.lab),
            [""; 0].map(PathBuf::from),
            "while it runs"
        );
        drop(daemon);
        assert_eq!(sockets(&self.lab), [""; 0].map(PathBuf::from));
        self.lab.assert_quiet();
    }
}

impl std::ops::Deref for Runtime {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.lab
    }
}

real_codex! {
    /// The tools are in the model's first request, a call goes to the daemon and its answer to the model.
    fn a_call_goes_to_the_daemon_and_back(codex: &Path) {
        let lab = Runtime::new(Lab::real(codex, calls("alice", &["send", "fail", "many"])));
        let before = config(&lab);
        let mut daemon = Daemon::start(&lab);
        daemon.on_tool_call(|params| {
            Some(match params["name"].as_str().unwrap() {
                "send" => Ok(json!({"content": [{"type": "text", "text": "sent it"}], "is_error": false})),
                "fail" => Err(json!({"code": -32000, "message": "no such luck"})),
                _ => Ok(json!({"content": "x".repeat(20_000_000)})),
            })
        });
        let id = daemon.request("stream", prompt(&lab, "alice", &["send", "fail", "many"]));
        let turn = daemon.finish(id);
        assert_eq!(turn.stop_reason(), "end_turn", "{turn:?}");
        assert_eq!(turn.text(), "done");

        let asked: Vec<&Value> = daemon.tool_calls().iter().map(|call| &call["params"]).collect();
        let newest = codex.to_string_lossy().contains(NEWEST);
        for (at, (params, name)) in asked.iter().zip(["send", "fail", "many"]).enumerate() {
            // 0.135 does not say which call it is.
            let call = newest.then(|| format!("call_{at}"));
            assert_eq!(
                **params,
                json!({"agent_id": "alice", "stream": id, "call_id": call, "name": name,
                    "arguments": {"to": "bob"}})
            );
        }
        let requests = lab.model().requests();
        assert_eq!(requests.len(), 4);
        for request in &requests {
            let [(name, tools)] = &offered(&request.body)[..] else {
                panic!("one namespace: {:?}", offered(&request.body));
            };
            assert_eq!(name, "mcp__plexum_host_alice");
            // codex gives them in an order of its own.
            let mut tools = tools.clone();
            tools.sort();
            assert_eq!(tools, ["fail", "many", "send"]);
        }
        let last = &requests[3].body;
        assert!(output(last, "call_0").contains("sent it"), "{last}");
        assert!(output(last, "call_1").contains("no such luck"), "{last}");
        assert!(output(last, "call_2").contains("was cut: it has 20000026 bytes"), "{last}");

        // The call has one id everywhere: for the model, in the daemon's events and in the rollout.
        let rollout = fs::read_to_string(&lab.rollouts(turn.thread())[0]).unwrap();
        for (at, name) in ["send", "fail", "many"].into_iter().enumerate() {
            let call = format!("call_{at}");
            assert!(rollout.contains(&format!("\"call_id\":\"{call}\"")));
            let used = turn.of("tool_use").find(|event| event["id"] == call.as_str());
            let used = used.unwrap_or_else(|| panic!("a tool_use for {call}: {:?}", turn.events));
            assert_eq!(used["name"], name);
            assert_eq!(used["namespace"], "mcp__plexum_host_alice");
        }
        assert_eq!(config(&lab), before);
        lab.assert_clean(daemon);
    }
}

/// What a daemon may write and codex's reader does not take: it would wait for ever for the answer, or close
/// the connection, or drop the tool's text for the sake of a member that says nothing.
fn check_every_answer(codex: &Path) {
    let deep = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
    let answers = [
        (
            "half",
            r#"{"content":[{"type":"text","text":"half \ud83d one"}]}"#.to_owned(),
            "half \u{fffd} one",
        ),
        (
            "halves",
            r#"{"content":"\ude00 two","structured_content":{"k\ud83d":"two"}}"#.to_owned(),
            "two",
        ),
        (
            "deep",
            format!(
                r#"{{"content":"three","structured_content":{}}}"#,
                deep(126)
            ),
            "three",
        ),
        (
            "member",
            format!(
                r#"{{"content":[{{"type":"text","text":"four","x":{}}}]}}"#,
                deep(126)
            ),
            "four",
        ),
        (
            "number",
            r#"{"content":["five"],"structured_content":{"a":1e400}}"#.to_owned(),
            "five",
        ),
        (
            "annotated",
            r#"{"content":[{"type":"text","text":"six","annotations":3,"_meta":"x"}]}"#.to_owned(),
            "six",
        ),
        (
            "fraction",
            r#"{"content":[{"type":"text","text":"seven","annotations":{"priority":0.5}}]}"#
                .to_owned(),
            "seven",
        ),
        ("nothing", r#"{"content":[]}"#.to_owned(), "Output:"),
        ("after", r#"{"content":"eight"}"#.to_owned(), "eight"),
    ];
    let names = answers.each_ref().map(|(name, ..)| *name);
    let lab = Runtime::new(Lab::real(codex, calls("alice", &names)));
    let mut daemon = Daemon::start(&lab);
    daemon.on_tool_call(|_| None);
    let id = daemon.request("stream", prompt(&lab, "alice", &names));
    for (at, (_, result, _)) in answers.iter().enumerate() {
        daemon.wait_for_tool_calls(at + 1);
        let call = daemon.tool_calls()[at]["id"].clone();
        daemon.send_bytes(
            format!("{{\"jsonrpc\":\"2.0\",\"id\":{call},\"result\":{result}}}\n").as_bytes(),
        );
    }
    let turn = daemon.finish(id);
    assert_eq!(turn.stop_reason(), "end_turn", "{turn:?}");
    let requests = lab.model().requests();
    let last = &requests.last().unwrap().body;
    for (at, (name, _, expected)) in answers.iter().enumerate() {
        let output = output(last, &format!("call_{at}"));
        assert!(output.contains(expected), "{name}: {output}");
        assert!(!output.contains("tool call error"), "{name}: {output}");
    }
    lab.assert_clean(daemon);
}

// fault: 41
real_codex! {
    fn every_answer_reaches_the_model(codex: &Path) {
        check_every_answer(codex);
    }
}

/// A version between those, whose reader takes other numbers than either.
#[test]
fn every_answer_reaches_the_model_of_the_version_between() {
    if let Some(codex) = codex::real(codex::CHANGED) {
        check_every_answer(&codex);
    }
}

// fault: 47
real_codex! {
    /// Three agents at once, each with a tool of its own: none sees another's, nothing of codex's is written.
    fn agents_have_their_own_tools_alone(codex: &Path) {
        isolation(codex, "turn", &["alice", "bob", "carol-1"]);
    }
}

real_codex! {
    /// The same with servers that are registered with codex for good, eight at the same moment.
    fn registered_agents_have_their_own_tools_alone(codex: &Path) {
        let agents = ["a1", "a2", "a3", "a4", "a5", "a6", "a7", "a8"];
        isolation(codex, "persistent", &agents);
    }
}

#[track_caller]
fn isolation(codex: &Path, registration: &str, agents: &[&str]) {
    // Each agent's prompt names it, and the model calls the tool that this agent has.
    let mut script = Vec::new();
    for agent in agents {
        script.push(json!({"match": format!("I am {agent}."), "times": 1, "calls": [
            {"name": tool_of(agent), "namespace": namespace(agent), "id": format!("call_{agent}")}]}));
        script.push(json!({"after": format!("call_{agent}"), "text": format!("{agent} is done")}));
    }
    // The second round calls nothing.
    script.push(json!({"text": "again"}));
    let lab = Runtime::new(Lab::real(codex, json!(script)));
    lab.config(json!({"mcp_registration": registration}));
    let before = config(&lab);
    let mut daemon = Daemon::start(&lab);
    echo(&mut daemon);
    let ask = |daemon: &mut Daemon| -> Vec<i64> {
        agents
            .iter()
            .map(|agent| {
                let mut params = prompt(&lab, agent, &[&tool_of(agent)]);
                params["request"]["messages"][0]["content"] = json!(format!("I am {agent}."));
                daemon.request("stream", params)
            })
            .collect()
    };
    for (id, agent) in ask(&mut daemon).into_iter().zip(agents) {
        let turn = daemon.finish(id);
        assert_eq!(turn.stop_reason(), "end_turn", "{turn:?}");
        assert_eq!(turn.text(), format!("{agent} is done"));
        let asked = daemon
            .tool_calls()
            .iter()
            .find(|call| call["params"]["stream"] == id);
        let asked = &asked.expect("its tool was called")["params"];
        assert_eq!(asked["agent_id"], *agent);
        assert_eq!(asked["name"], tool_of(agent));
    }
    assert_eq!(daemon.tool_calls().len(), agents.len());
    let after = config(&lab);
    if registration == "turn" {
        assert_eq!(after, before);
    } else {
        for agent in agents {
            let entry = format!("[mcp_servers.plexum-host-{agent}]");
            assert_eq!(after.matches(&entry).count(), 1, "{after}");
        }
    }
    // What is registered is not registered again, and is still no other agent's.
    for id in ask(&mut daemon) {
        assert_eq!(daemon.finish(id).stop_reason(), "end_turn");
    }
    assert_eq!(config(&lab), after);
    for request in lab.model().requests() {
        let text = request.user_text();
        let agent = text
            .strip_prefix("I am ")
            .and_then(|rest| rest.strip_suffix('.'));
        let agent = agent.expect("the prompt names the agent");
        assert_eq!(
            offered(&request.body),
            [(namespace(agent), vec![tool_of(agent)])],
            "{agent}"
        );
    }
    lab.assert_clean(daemon);
}

real_codex! {
    /// Without tools there is no server, and without registration there are no tools.
    fn no_tools_cost_nothing(codex: &Path) {
        for (registration, tools) in [("turn", &[][..]), ("off", &["send"])] {
            let lab = Runtime::new(Lab::real(codex, json!([{"text": "hi"}])));
            lab.config(json!({"mcp_registration": registration}));
            let mut daemon = Daemon::start(&lab);
            let turn = daemon.turn(prompt(&lab, "alice", tools));
            assert_eq!(turn.stop_reason(), "end_turn", "{turn:?}");
            assert_eq!(offered(&lab.model().requests()[0].body), []);
            assert!(!lab.path("runtime/plexum-openai").exists(), "{registration}");
        }
    }
}

// fault: 41
real_codex! {
    /// A call that is never answered ends with the turn; an answer after that is passed over.
    fn a_call_without_an_answer_ends_with_the_turn(codex: &Path) {
        let lab = Runtime::new(Lab::real(codex, calls("alice", &["never"])));
        let mut daemon = Daemon::start(&lab);
        daemon.on_tool_call(|_| None);
        let id = daemon.request("stream", prompt(&lab, "alice", &["never"]));
        daemon.wait_for_tool_calls(1);
        let call = daemon.tool_calls()[0]["id"].clone();
        daemon.notify("cancel", json!({"stream": id}));
        assert_eq!(daemon.tool_cancelled(), json!({"id": call}));
        assert_eq!(daemon.finish(id).stop_reason(), "cancelled");
        daemon.send(&json!({"jsonrpc": "2.0", "id": call, "result": {"content": []}}));
        daemon.send(&json!({"jsonrpc": "2.0", "id": "tool-99", "error": {"code": 1, "message": "x"}}));
        assert!(daemon.call("manifest", json!({}))["result"].is_object());
        lab.assert_clean(daemon);
    }
}

// fault: 40, 48
real_codex! {
    /// Whatever ends in the middle of a call, nothing hangs and nothing is left.
    fn whatever_dies_in_a_call_nothing_is_left(codex: &Path) {
        for what in ["daemon", "SIGTERM", "plugin", "codex", "mcp-host"] {
            let lab = Runtime::new(Lab::real(codex, calls("alice", &["never"])));
            let mut daemon = Daemon::start(&lab);
            daemon.on_tool_call(|_| None);
            let id = daemon.request("stream", prompt(&lab, "alice", &["never"]));
            daemon.wait_for_tool_calls(1);
            let call = json!({"id": daemon.tool_calls()[0]["id"]});
            match what {
                "daemon" => {
                    daemon.close_stdin();
                    assert!(daemon.exit(Duration::from_secs(6)).success());
                }
                "SIGTERM" => {
                    daemon.signal(Signal::TERM);
                    assert_eq!(daemon.exit(Duration::from_secs(6)).code(), Some(143));
                }
                "plugin" => {
                    daemon.signal(Signal::KILL);
                    assert_eq!(daemon.exit(LIMIT).signal(), Some(9));
                }
                "codex" => {
                    kill(&lab, " exec ");
                    assert_eq!(daemon.tool_cancelled(), call);
                    assert_eq!(daemon.finish(id).stop_reason(), "error");
                }
                _ => {
                    // codex tells the model, and the turn goes on.
                    kill(&lab, " mcp-host ");
                    assert_eq!(daemon.tool_cancelled(), call);
                    assert_eq!(daemon.finish(id).stop_reason(), "end_turn");
                }
            }
            if what == "plugin" {
                lab.assert_quiet();
                // A kill leaves the files; the next start removes them.
                assert_eq!(sockets(&lab).len(), 2);
                daemon = Daemon::start(&lab);
                daemon.turn(prompt(&lab, "bob", &["x"]));
            }
            lab.assert_clean(daemon);
        }
    }
}

/// Kills the process of the lab whose command line has `part`, and is not the guard between plugin and codex.
#[track_caller]
fn kill(lab: &Lab, part: &str) {
    let found = ps::of(lab.root())
        .into_iter()
        .find(|process| process.command.contains(part) && !process.command.contains("codex-guard"));
    ps::signal(found.expect("it runs").pid, Signal::KILL);
}

/// A turn of the fake codex that lends tools and goes on until [`Held::let_go`], and its socket.
pub(crate) struct Held {
    lab: Runtime,
    pub(crate) daemon: Daemon,
    id: i64,
    socket: PathBuf,
}

impl Held {
    pub(crate) fn new(tools: &[&str]) -> Held {
        Held::with(Runtime::new(Lab::fake(Value::Null)), tools)
    }

    fn with(lab: Runtime, tools: &[&str]) -> Held {
        lab.script(json!([
            "read_stdin",
            {"event": {"type": "thread.started", "thread_id": "{thread}"}},
            {"event": {"type": "turn.started"}},
            {"start_below": lab.short.path().join("below")},
            {"touch": lab.path("started")},
            {"wait_for": lab.path("go")},
            {"event": {"type": "turn.completed", "usage": {"input_tokens": 1, "output_tokens": 1}}},
        ]));
        let mut daemon = Daemon::start(&lab);
        let id = daemon.request("stream", prompt(&lab, "alice", tools));
        wait_until("the turn to start", || lab.path("started").exists());
        let runs = lab.fake_runs();
        let args: Vec<&str> = runs[0]["argv"]
            .as_array()
            .unwrap()
            .iter()
            .map(|arg| arg.as_str().unwrap())
            .collect();
        let value = args
            .iter()
            .find(|arg| arg.starts_with("mcp_servers.plexum-host-alice="))
            .expect("the server is lent");
        let (_, rest) = value
            .split_once("\"--socket\",\"")
            .expect("with its socket");
        let socket = PathBuf::from(rest.split('"').next().unwrap());
        Held {
            lab,
            daemon,
            id,
            socket,
        }
    }

    pub(crate) fn args(&self) -> [String; 5] {
        let socket = self.socket.to_str().unwrap();
        ["mcp-host", "--socket", socket, "--agent-id", "alice"].map(str::to_owned)
    }

    /// The command line of an `mcp-host` that this turn's codex starts: only such a one is admitted.
    pub(crate) fn host_below(&self) -> Vec<String> {
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        let mut line = vec![
            text(codex::fake()),
            "--below".to_owned(),
            text(self.lab.short.path().join("below")),
            env!("CARGO_BIN_EXE_plexum-openai").to_owned(),
        ];
        line.extend(self.args());
        line
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Runs the `mcp-host` of this turn as any other process of the user would.
    pub(crate) fn host_outside(&self) -> cli::Output {
        Cli::new(&self.lab, self.args()).run()
    }

    /// Lets the turn end.
    pub(crate) fn let_go(mut self) {
        fs::write(self.lab.path("go"), "").unwrap();
        assert_eq!(self.daemon.finish(self.id).stop_reason(), "end_turn");
        self.lab.assert_clean(self.daemon);
    }
}

/// An `mcp-host` and what an MCP client does with it.
struct Host {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Host {
    fn start(held: &Held) -> Host {
        let line = held.host_below();
        let mut child = Command::new(&line[0])
            .args(&line[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut host = Host {
            stdin: child.stdin.take(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            child,
        };
        host.send(&json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
            "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}}));
        assert_eq!(host.line()["result"]["protocolVersion"], "2025-06-18");
        host.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}));
        host
    }

    fn send(&mut self, message: &Value) {
        let stdin = self.stdin.as_mut().expect("stdin is open");
        stdin.write_all(format!("{message}\n").as_bytes()).unwrap();
    }

    fn call(&mut self, id: usize, tool: &str) {
        self.send(
            &json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": tool}}),
        );
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    /// Waits for its end: the exit status and what it said on stderr.
    #[track_caller]
    fn end(mut self, limit: Duration) -> (i32, String) {
        let status = cli::wait(&mut self.child, limit).code().unwrap_or(-1);
        let mut said = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        (status, said)
    }
}

// fault: 52
#[test]
fn the_tools_can_change_while_codex_runs() {
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
        "tools_changed",
        json!({"agent_id": "bob", "tools": [{"name": "bob's"}]}),
    );
    held.daemon
        .notify("tools_changed", json!({"agent_id": "alice", "tools": 7}));
    held.daemon
        .log("warn", "params.tools: expected a list, found a number");
    assert_eq!(list(&mut host), ["old"]);
    let tools = json!([{"name": "new", "input_schema": {"type": "object"}}, {"name": "new"}]);
    held.daemon.notify(
        "tools_changed",
        json!({"agent_id": "alice", "tools": tools}),
    );
    held.daemon.log("warn", "the tool 'new' is given twice");
    assert_eq!(host.line()["method"], "notifications/tools/list_changed");
    assert_eq!(list(&mut host), ["new"]);
    host.stdin = None;
    host.end(LIMIT);
    held.let_go();
}

/// A codex that was started without tools has no server that could get some; that is said.
#[test]
fn tools_that_come_too_late_are_told() {
    let lab = Runtime::new(Lab::fake(Value::Null));
    lab.script(json!([
        {"touch": lab.path("started")},
        {"wait_for": lab.path("go")},
        "default",
    ]));
    let mut daemon = Daemon::start(&lab);
    let id = daemon.request("stream", prompt(&lab, "alice", &[]));
    wait_until("the turn to start", || lab.path("started").exists());
    daemon.notify("tools_changed", json!({"agent_id": "alice", "tools": []}));
    assert!(daemon.call("manifest", json!({}))["result"].is_object());
    assert!(daemon.logs().iter().all(|log| log["level"] != "warn"));
    daemon.notify(
        "tools_changed",
        json!({"agent_id": "alice", "tools": [{"name": "new"}]}),
    );
    daemon.log("warn", "the turn was begun without tools");
    fs::write(lab.path("go"), "").unwrap();
    assert_eq!(daemon.finish(id).stop_reason(), "end_turn");
    lab.assert_clean(daemon);
}

/// The daemon is told of the calls that nobody waits for, when it ends the plugin too.
#[test]
fn shutdown_takes_the_open_calls_back() {
    let mut held = Held::new(&["t"]);
    held.daemon.on_tool_call(|_| None);
    let mut host = Host::start(&held);
    host.call(1, "t");
    held.daemon.wait_for_tool_calls(1);
    let call = held.daemon.tool_calls()[0]["id"].clone();
    assert_eq!(held.daemon.call("shutdown", json!({}))["result"], json!({}));
    assert_eq!(held.daemon.tools_cancelled(), [json!({"id": call})]);
    assert_eq!(held.daemon.finish(held.id).stop_reason(), "cancelled");
    drop(host);
    held.lab.assert_clean(held.daemon);
}

// fault: 41
/// Nobody waits for an answer that has come and cannot be used; the caller is told what is wrong with it.
#[test]
fn an_answer_that_cannot_be_used_ends_its_call() {
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

#[test]
fn a_host_lives_no_longer_than_either_side() {
    let held = Held::new(&["never"]);
    // codex closes stdin, in the middle of a call too.
    let mut host = Host::start(&held);
    host.call(1, "never");
    host.stdin = None;
    let closed = Instant::now();
    assert_eq!(host.end(LIMIT), (0, String::new()));
    assert!(
        closed.elapsed() < Duration::from_secs(1),
        "{:?}",
        closed.elapsed()
    );
    // The turn ends, or the whole plugin at once.
    let host = Host::start(&held);
    held.daemon.signal(Signal::KILL);
    let killed = Instant::now();
    let socket = held.socket.clone();
    let Held {
        lab, mut daemon, ..
    } = held;
    daemon.exit(LIMIT);
    let (status, said) = host.end(LIMIT);
    assert!(
        killed.elapsed() < Duration::from_secs(1),
        "{:?}",
        killed.elapsed()
    );
    assert_eq!(status, 1);
    assert_eq!(
        said,
        format!(
            "plexum-openai: the turn of the plugin at '{}' has ended\n",
            socket.display()
        )
    );
    lab.assert_quiet();
}

#[test]
fn a_host_by_hand_says_what_is_wrong() {
    let lab = Lab::fake(Value::Null);
    let dir = tempfile::Builder::new()
        .prefix("pxo")
        .tempdir_in("/tmp")
        .unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    drop(UnixListener::bind(path("dead")).unwrap());
    fs::write(path("file"), "").unwrap();
    let silent = UnixListener::bind(path("silent.sock")).unwrap();
    let needs = "'mcp-host' needs '--socket' or PLEXUM_MCP_SOCKET; codex starts it with both, for a turn that has tools";
    let needs_id = "'mcp-host' needs '--agent-id' or PLEXUM_MCP_AGENT_ID; codex starts it with both, for a turn that has tools";
    let long = format!("/tmp/{}", "x".repeat(200));
    for (args, env, status, message) in [
        (vec![], vec![], 2, needs.to_owned()),
        (vec!["--agent-id", "a"], vec![], 2, needs.to_owned()),
        (vec!["--socket", "/x"], vec![], 2, needs_id.to_owned()),
        (
            vec!["--socket=", "--agent-id", "a"],
            vec![],
            2,
            "the value of '--socket' is empty".to_owned(),
        ),
        (
            vec!["--socket", "/x", "--agent-id", ""],
            vec![],
            2,
            "the value of '--agent-id' is empty".to_owned(),
        ),
        (
            vec![],
            vec![("PLEXUM_MCP_SOCKET", ""), ("PLEXUM_MCP_AGENT_ID", "a")],
            2,
            needs.to_owned(),
        ),
        (
            vec!["--socket", &long, "--agent-id", "a"],
            vec![],
            2,
            format!("'{long}' is no path for a socket: it has 205 bytes, at most 107 are possible"),
        ),
        (
            vec!["--socket", &path("gone"), "--agent-id", "a"],
            vec![],
            1,
            format!(
                "no turn of the plugin listens at '{}': No such file or directory",
                path("gone")
            ),
        ),
        (
            vec![],
            vec![
                ("PLEXUM_MCP_SOCKET", path("dead").as_str()),
                ("PLEXUM_MCP_AGENT_ID", "a"),
            ],
            1,
            format!(
                "no turn of the plugin listens at '{}': Connection refused",
                path("dead")
            ),
        ),
        // The flags win.
        (
            vec!["--socket", &path("file")],
            vec![
                ("PLEXUM_MCP_SOCKET", path("dead").as_str()),
                ("PLEXUM_MCP_AGENT_ID", "a"),
            ],
            1,
            format!(
                "no turn of the plugin listens at '{}': Connection refused",
                path("file")
            ),
        ),
        (
            vec!["--socket", &path("silent.sock"), "--agent-id", "a"],
            vec![],
            1,
            format!(
                "cannot read the token '{}': No such file or directory",
                path("silent.token")
            ),
        ),
    ] {
        let mut cli = Cli::new(&lab, ["mcp-host"]);
        for arg in &args {
            cli = cli.arg(arg);
        }
        for (name, value) in env {
            cli = cli.env(name, value);
        }
        let output = cli.run();
        assert_eq!(
            (output.status, output.stdout.as_str(), output.stderr),
            (status, "", format!("plexum-openai: {message}\n")),
            "{args:?}"
        );
    }
    drop(silent);
}

// fault: 46
#[test]
fn a_host_of_another_turn_is_refused() {
    let held = Held::new(&["x"]);
    let socket = held.socket.to_str().unwrap();
    let output = Cli::new(
        &held.lab,
        ["mcp-host", "--socket", socket, "--agent-id", "bob"],
    )
    .run();
    assert_eq!(
        (output.status, output.stderr),
        (
            1,
            format!(
                "plexum-openai: the plugin at '{socket}' refuses this agent: this socket is another agent's\n"
            )
        )
    );
    fs::write(held.socket.with_extension("token"), "f".repeat(64)).unwrap();
    let output = Cli::new(&held.lab, held.args()).run();
    assert_eq!(
        (output.status, output.stderr),
        (
            1,
            format!(
                "plexum-openai: the plugin at '{socket}' refuses this agent: the token is another turn's\n"
            )
        )
    );
    held.let_go();
}

// fault: 46
/// The kernel says who connects; neither the folder nor the mode of the socket is all that keeps others out.
#[test]
fn another_user_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    if !rustix::process::geteuid().is_root() {
        // Nobody else can start a program as another user.
        return;
    }
    let Some(perl) = crate::programs::find("perl") else {
        return;
    };
    let held = Held::new(&["x"]);
    // As if somebody had opened everything.
    for (path, mode) in [
        (held.lab.short.path(), 0o755),
        (held.socket.parent().unwrap(), 0o755),
        (held.socket.as_path(), 0o666),
    ] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let connect = "use IO::Socket::UNIX; my $s = IO::Socket::UNIX->new($ARGV[0]) or die; alarm 20; print 'closed' unless sysread($s, my $byte, 1)";
    let run = |user: Option<u32>| {
        let mut command = Command::new(&perl);
        command
            .args(["-e", connect])
            .arg(&held.socket)
            .stdin(Stdio::null());
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let start = Instant::now();
    assert_eq!(run(Some(65534)), "closed");
    let refused = start.elapsed();
    // One of this user's is heard, and closed only when it has said nothing for a while.
    let start = Instant::now();
    assert_eq!(run(None), "closed");
    assert!(
        start.elapsed() > refused + Duration::from_secs(1),
        "{refused:?}"
    );
    fs::set_permissions(
        held.socket.parent().unwrap(),
        fs::Permissions::from_mode(0o700),
    )
    .unwrap();
    held.let_go();
}

// fault: 43
/// A live listener where a registered agent's socket should be is not touched, and the turn says so.
#[test]
fn a_live_listener_is_not_stolen() {
    let lab = Runtime::new(Lab::fake(Value::Null));
    lab.config(json!({"mcp_registration": "persistent"}));
    let folder = lab.short.path().join("plexum-openai");
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().mode(0o700).create(&folder).unwrap();
    let listener = UnixListener::bind(folder.join("p-alice.sock")).unwrap();
    let mut daemon = Daemon::start(&lab);
    let turn = daemon.turn(prompt(&lab, "alice", &["x"]));
    assert_eq!(turn.error_code(), Some("session_busy"), "{turn:?}");
    assert_eq!(turn.of("error").next().unwrap()["error"]["retryable"], true);
    assert_eq!(lab.fake_runs(), [] as [Value; 0]);
    UnixStream::connect(folder.join("p-alice.sock")).unwrap();
    drop(listener);
    // Nobody listens any more: it is replaced.
    let turn = daemon.turn(prompt(&lab, "alice", &["x"]));
    assert_eq!(turn.stop_reason(), "end_turn", "{turn:?}");
    lab.assert_clean(daemon);
}

// fault: 45
/// A folder for sockets that is not private is refused, and what to do is said.
#[test]
fn a_folder_of_others_is_refused() {
    let lab = Runtime::new(Lab::fake(Value::Null));
    let folder = lab.short.path().join("plexum-openai");
    fs::create_dir(lab.path("elsewhere")).unwrap();
    std::os::unix::fs::symlink(lab.path("elsewhere"), &folder).unwrap();
    let mut daemon = Daemon::start(&lab);
    let turn = daemon.turn(prompt(&lab, "alice", &["x"]));
    assert_eq!(turn.error_code(), Some("mcp_failed"));
    let message = turn.of("error").next().unwrap()["error"]["message"]
        .as_str()
        .unwrap();
    assert_eq!(
        message,
        format!(
            "the folder for sockets '{0}' is a symbolic link or no folder; run: mv {0} {0}.old",
            folder.display()
        )
    );
    assert_eq!(fs::read_dir(lab.path("elsewhere")).unwrap().count(), 0);
    // Without tools the folder does not matter.
    assert_eq!(
        daemon.turn(prompt(&lab, "alice", &[])).stop_reason(),
        "end_turn"
    );
    drop(daemon);
    fs::remove_file(folder).unwrap();
}

/// The way of a call from codex's side to the daemon and back costs less than a millisecond.
#[test]
fn a_call_is_quick() {
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

// fault: 49
/// Five hundred calls are in flight at once, and the daemon answers them in an order of its own.
#[test]
fn five_hundred_calls_at_once() {
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
