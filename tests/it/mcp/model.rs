//! The daemon's tools with the real codex: what the model is offered, calls and gets.

use super::{Runtime, echo, prompt, sockets};
use crate::support::codex::{self, real_codex, real_codex_by};
use crate::support::{Daemon, LIMIT, Lab, method, ps, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

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

real_codex! {
    /// The daemon knows a call by its event before it is asked to run it, one after the other and at once, and one
    /// without events does not wait for them.
    fn tool_use_precedes_tool_call(codex: &Path) {
        let call = |id: &str| {
            json!({"name": "send", "namespace": namespace("alice"), "arguments": {"to": id}, "id": id})
        };
        let script = json!([
            {"times": 1, "calls": [call("call_0")]},
            {"times": 1, "text": "now two at once", "calls": [call("call_1"), call("call_2")]},
            {"times": 1, "calls": [call("call_3")]},
            {"times": 1, "text": "done"},
            {"times": 1, "calls": [call("call_4")]},
            {"text": "done"},
        ]);
        let lab = Runtime::new(Lab::real(codex, script));
        let mut daemon = Daemon::start(&lab);
        echo(&mut daemon);
        let id = daemon.request(method::STREAM, prompt(&lab, "alice", &["send"]));
        let turn = daemon.finish(id);
        assert_eq!(turn.stop_reason(), "end_turn", "{turn:?}");
        assert_eq!(daemon.tool_calls().len(), 4);
        assert_eq!(daemon.early_calls(), [""; 0].map(Value::from), "{turn:?}");
        drop(daemon);

        lab.config(json!({"tool_events": false}));
        let mut daemon = Daemon::start(&lab);
        echo(&mut daemon);
        let id = daemon.request(method::STREAM, prompt(&lab, "alice", &["send"]));
        let turn = daemon.finish(id);
        assert_eq!(turn.stop_reason(), "end_turn", "{turn:?}");
        assert_eq!((turn.of("tool_use").count(), daemon.tool_calls().len()), (0, 1));
    }
}

real_codex! {
    /// The tools are in the model's first request, a call goes to the daemon and its answer to the model.
    fn relays_call_to_daemon_and_back(codex: &Path) {
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
        let id = daemon.request(method::STREAM, prompt(&lab, "alice", &["send", "fail", "many"]));
        let turn = daemon.finish(id);
        assert_eq!(turn.stop_reason(), "end_turn", "{turn:?}");
        assert_eq!(turn.text(), "done");

        let asked: Vec<&Value> = daemon.tool_calls().iter().map(|call| &call["params"]).collect();
        let says_call = codex::is_at_least(codex, (0, 148, 0));
        for (at, (params, name)) in asked.iter().zip(["send", "fail", "many"]).enumerate() {
            // 0.135 does not say which call it is.
            let call = says_call.then(|| format!("call_{at}"));
            assert_eq!(
                **params,
                json!({"name": name, "arguments": {"to": "bob"},
                    "_meta": {"agent_id": "alice", "stream": id, "call_id": call}})
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
            // codex shows the structured content alone, in which what is too deep is a string.
            r#"{\\\"a\\\":1}"#,
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
    let id = daemon.request(method::STREAM, prompt(&lab, "alice", &names));
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
    fn every_result_reaches_model(codex: &Path) {
        check_every_answer(codex);
    }
}

/// A version between those, whose reader takes other numbers than either.
#[test]
fn every_result_reaches_model_of_version_between() {
    if let Some(codex) = codex::real(codex::CHANGED) {
        check_every_answer(&codex);
    }
}

// fault: 47
real_codex! {
    /// Three agents at once, each with a tool of its own: none sees another's, nothing of codex's is written.
    fn agents_see_only_their_own_tools(codex: &Path) {
        isolation(codex, "turn", &["alice", "bob", "carol-1"]);
    }
}

real_codex! {
    /// The same with servers that are registered with codex for good, eight at the same moment.
    fn registered_agents_see_only_their_own_tools(codex: &Path) {
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
                daemon.request(method::STREAM, params)
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
            .find(|call| call["params"]["_meta"]["stream"] == id);
        let asked = &asked.expect("its tool was called")["params"];
        assert_eq!(asked["_meta"]["agent_id"], *agent);
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
    fn starts_no_server_without_tools(codex: &Path) {
        for (registration, tools) in [("turn", &[][..]), ("off", &["send"])] {
            let lab = Runtime::new(Lab::real(codex, json!([{"text": "hi"}])));
            lab.config(json!({"mcp_registration": registration}));
            let mut daemon = Daemon::start(&lab);
            let turn = daemon.turn(prompt(&lab, "alice", tools));
            assert_eq!(turn.stop_reason(), "end_turn", "{turn:?}");
            assert_eq!(offered(&lab.model().requests()[0].body), []);
            assert_eq!(sockets(&lab), [""; 0].map(PathBuf::from), "{registration}");
        }
    }
}

// fault: 41
real_codex! {
    /// A call that is never answered ends with the turn; an answer after that is ignored.
    fn unanswered_call_ends_with_turn(codex: &Path) {
        let lab = Runtime::new(Lab::real(codex, calls("alice", &["never"])));
        let mut daemon = Daemon::start(&lab);
        daemon.on_tool_call(|_| None);
        let id = daemon.request(method::STREAM, prompt(&lab, "alice", &["never"]));
        daemon.wait_for_tool_calls(1);
        let call = daemon.tool_calls()[0]["id"].clone();
        daemon.cancel(id);
        assert_eq!(daemon.tool_cancelled(), call);
        assert_eq!(daemon.finish(id).stop_reason(), "cancelled");
        daemon.send(&json!({"jsonrpc": "2.0", "id": call, "result": {"content": []}}));
        daemon.send(&json!({"jsonrpc": "2.0", "id": "tool-99", "error": {"code": 1, "message": "x"}}));
        daemon.ping();
        lab.assert_clean(daemon);
    }
}

// fault: 40, 48
real_codex! {
    /// Whatever ends in the middle of a call, nothing hangs and nothing is left.
    fn leaves_nothing_when_a_process_dies_in_a_call(codex: &Path) {
        for what in ["daemon", "SIGTERM", "plugin", "codex", "mcp-host"] {
            let lab = Runtime::new(Lab::real(codex, calls("alice", &["never"])));
            let mut daemon = Daemon::start(&lab);
            daemon.on_tool_call(|_| None);
            let id = daemon.request(method::STREAM, prompt(&lab, "alice", &["never"]));
            daemon.wait_for_tool_calls(1);
            let call = daemon.tool_calls()[0]["id"].clone();
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
                    kill(&lab, match lab.keeps_servers() {
                        true => " app-server ",
                        false => " exec ",
                    });
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

/// Kills the process, whose pid it gives, of the lab whose command line has `part`, and is not the guard between plugin and codex.
#[track_caller]
fn kill(lab: &Lab, part: &str) -> u32 {
    let found = ps::of(lab.root())
        .into_iter()
        .find(|process| process.command.contains(part) && !process.command.contains("codex-guard"));
    let pid = found.expect("it runs").pid;
    ps::signal(pid, Signal::KILL);
    pid
}

/// Consumes a call between turns; the servers that run then.
fn daemon_consumes(lab: &Lab, daemon: &mut Daemon, call: &str, before: &[u32]) -> Vec<u32> {
    let mutations = json!([{"block_id": call, "op": "consume-light"}]);
    let params =
        json!({"agent_id": "alice", "workspace": lab.path("alice"), "mutations": mutations});
    let outcome = daemon.call(method::MUTATE, params);
    assert_eq!(outcome["result"]["touched"], 1, "{outcome}");
    wait_until("another server to have the thread loaded", || {
        let now = lab.servers();
        let hosts = ps::of(lab.root());
        now.len() == 1
            && now != before
            && hosts
                .iter()
                .any(|process| process.command.contains(" mcp-host "))
    });
    lab.servers()
}

real_codex_by! { APP_SERVER,
    /// The tools are lent to one turn after the other, by the same server as long as they are the same.
    fn kept_server_gets_tools_of_next_turn(codex: &Path) {
        let call = |id: &str, tool: &str| json!({"match": id, "times": 1, "calls": [{"id": id, "name": tool, "namespace": namespace("alice")}]});
        let lab = Runtime::new(Lab::real(codex, json!([
            call("call_a", "send"), call("call_b", "send"), call("call_c", "read"), call("call_d", "read"), call("call_f", "send"),
            {"text": "done"},
        ])));
        let mut daemon = Daemon::start(&lab);
        echo(&mut daemon);
        let turn = |daemon: &mut Daemon, id: &str, tools: &[&str]| {
            let mut params = prompt(&lab, "alice", tools);
            params["request"]["messages"][0]["content"] = json!(id);
            let turn = daemon.turn(params);
            assert_eq!(turn.text(), "done", "{id}: {turn:?}");
            let calls: Vec<&Value> = turn.of("tool_use").map(|event| &event["name"]).collect();
            assert_eq!(calls.len(), 1, "{id}: {turn:?}");
            let result = turn.of("tool_result").next().unwrap();
            assert_eq!(result["is_error"], false, "{id}: {result}");
            lab.servers()
        };
        let first = turn(&mut daemon, "call_a", &["send"]);
        assert_eq!(turn(&mut daemon, "call_b", &["send"]), first, "the same tools");
        let again = daemon_consumes(&lab, &mut daemon, "call_a", &first);
        assert_eq!(turn(&mut daemon, "call_f", &["send"]), again, "after a call was consumed");
        let second = turn(&mut daemon, "call_c", &["send", "read"]);
        assert_ne!(second, again, "other tools");
        let host = kill(&lab, " mcp-host ");
        wait_until("codex to have waited for it", || !Path::new(&format!("/proc/{host}")).exists());
        let third = turn(&mut daemon, "call_d", &["send", "read"]);
        assert_ne!(third, second, "the server that lends them was killed");
        let none = daemon.turn(prompt(&lab, "alice", &[]));
        assert_eq!(none.text(), "done");
        let requests = lab.model().requests();
        assert_eq!(offered(&requests[requests.len() - 1].body), []);
        lab.assert_clean(daemon);
    }
}
