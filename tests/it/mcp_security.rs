//! Who may use the tools that the daemon lends: the processes of this turn's codex, and no other of the same user.

use crate::mcp::Held;
use crate::programs;
use crate::support::codex::real_codex;
use crate::support::{Daemon, Lab, copy_program, wait_until};
use rustix::process::{Pid, Signal};
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

// fault: 102
/// It has the socket, the agent's name and the token, and is refused all the same.
#[test]
fn refuses_processes_outside_the_turn() {
    let held = Held::new(&["x"]);
    let output = held.host_outside();
    let socket = held.socket().display().to_string();
    assert_eq!(
        (output.status, output.stderr),
        (
            1,
            format!(
                "plexum-openai: the plugin at '{socket}' rejects this agent: it was not started by this turn's codex\n"
            )
        )
    );
    held.let_go();
}

// fault: 102
/// Another process of the same user cannot read the environment, and so not the memory, of the plugin and the guard.
#[test]
fn hides_its_processes_from_others_of_the_same_user() {
    // Root reads everything of everybody: as a user without such rights, where this is root.
    let user = rustix::process::geteuid().is_root().then_some(65534);
    let as_user = |program: &Path| {
        let mut command = Command::new(program);
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        command
    };
    let base = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = base.path().join("plexum-openai");
    copy_program(Path::new(env!("CARGO_BIN_EXE_plexum-openai")), &program);
    let (Some(cat), Some(sleep)) = (programs::find("cat"), programs::find("sleep")) else {
        return;
    };
    let me = std::process::id().to_string();
    let sleep = sleep.to_str().unwrap();
    for (arguments, hidden) in [
        (&["serve"][..], true),
        (&["codex-guard", &me, "0", "0", "", sleep, "60"], true),
        // That others can be read shows that the test can fail.
        (&[sleep, "60"], false),
    ] {
        let mut command = match hidden {
            true => as_user(&program),
            false => as_user(Path::new(arguments[0])),
        };
        let mut child = command
            .args(&arguments[usize::from(!hidden)..])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let environ = format!("/proc/{}/environ", child.id());
        let readable = || {
            let output = as_user(&cat).arg(&environ).output().unwrap();
            output.status.success()
        };
        if hidden {
            // It takes a moment to get there.
            wait_until("the process to hide", || !readable());
        } else {
            assert!(readable());
        }
        let _ = rustix::process::kill_process(Pid::from_child(&child), Signal::TERM);
        child.wait().unwrap();
    }
}

real_codex! {
    // fault: 93
    /// A tool whose schema providers refuse is offered in a form that they take, and the others as they are; what
    /// the model gives reaches the daemon as it gave it.
    fn offers_tool_whose_schema_has_alternatives(codex: &Path) {
        let lab = Lab::real(codex, json!([
            {"times": 1, "calls": [{"name": "lookup", "namespace": "mcp__plexum_host_a", "arguments": {"name": "x", "more": [1]}, "id": "call_0"}]},
            {"text": "done"},
        ]));
        let mut daemon = Daemon::start(&lab);
        daemon.on_tool_call(|params| Some(Ok(json!({"content": params["arguments"].to_string()}))));
        let string = json!({"type": "string"});
        let either = json!([{"required": ["id"]}, {"required": ["name"]}]);
        let mut params = Daemon::prompt(&lab, "go");
        params["agent"]["id"] = json!("a");
        params["request"]["tools"] = json!([
            {"name": "send", "description": "x", "input_schema": {"type": "object", "properties": {"to": string}}},
            {"name": "lookup", "description": "y", "input_schema": {"type": "object", "properties": {"id": string, "name": string}, "anyOf": either}},
            {"name": "parts", "input_schema": {"$defs": {"P": {"type": "object", "properties": {"p": string}}}, "allOf": [{"$ref": "#/$defs/P"}, {"properties": {"q": string}}]}},
            {"name": "old", "input_schema": {"type": "object", "properties": {"id": {"type": "string", "required": true}}}},
        ]);
        let turn = daemon.turn(params);
        assert_eq!(turn.stop_reason(), "end_turn", "{turn:?}");
        assert_eq!(daemon.tool_calls()[0]["params"]["arguments"], json!({"name": "x", "more": [1]}));
        let request = &lab.model().requests()[0].body;
        let tools = request["tools"].as_array().unwrap();
        let ours = tools.iter().find(|tool| tool["name"] == "mcp__plexum_host_a").unwrap();
        let tool = |name: &str| {
            let mut tools = ours["tools"].as_array().unwrap().iter();
            tools.find(|tool| tool["name"] == name).unwrap_or_else(|| panic!("{name} is offered: {ours}"))
        };
        assert_eq!(tool("send")["parameters"], json!({"type": "object", "properties": {"to": string}}));
        assert_eq!(tool("lookup")["parameters"], json!({"type": "object", "properties": {"id": string, "name": string}}));
        let described = tool("lookup")["description"].as_str().unwrap();
        assert!(described.starts_with("y") && described.contains(&either.to_string()), "{described}");
        assert_eq!(tool("parts")["parameters"]["properties"], json!({"p": string, "q": string}));
        assert_eq!(tool("parts")["parameters"].get("allOf"), None);
        assert_eq!(tool("old")["parameters"]["properties"], json!({"id": string}));
        daemon.log("warning", "the input_schema of the tool 'lookup' has 'anyOf' at the top level");
        drop(daemon);
        lab.assert_quiet();
    }
}
