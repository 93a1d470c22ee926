//! The examples at the end of `man/plexum-openai-protocol.7`, word for word: the session is held with a plugin, and
//! the client is run.

use crate::programs;
use crate::support::{LIMIT, Lab};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

/// The workspace, as the page calls it.
const WORKSPACE: &str = "/home/op/agents/alice";

/// The first example under this heading of the page.
fn example(heading: &str) -> String {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/man/plexum-openai-protocol.7");
    let page = std::fs::read_to_string(page).unwrap();
    let (_, section) = page
        .split_once(&format!("\n.Ss {heading}\n"))
        .expect("the heading is there");
    let (_, block) = section.split_once("\n.Bd -literal\n").expect("an example");
    let block = block.split("\n.Ed\n").next().unwrap();
    block.replace("\\-", "-").replace("\\e", "\\") + "\n"
}

/// The messages of the session: whether the daemon sends it, and the message.
fn session() -> Vec<(bool, Value)> {
    let mut messages: Vec<(bool, String)> = Vec::new();
    for line in example("A session").lines() {
        match line.split_at_checked(2) {
            Some(("> ", message)) => messages.push((true, message.to_owned())),
            Some(("< ", message)) => messages.push((false, message.to_owned())),
            _ => messages.last_mut().expect("a message").1.push_str(line),
        }
    }
    messages
        .into_iter()
        .map(|(sent, text)| {
            let message = serde_json::from_str(&text);
            (
                sent,
                message.unwrap_or_else(|error| panic!("{error}: {text}")),
            )
        })
        .collect()
}

/// What differs from run to run, made equal.
fn equal(mut message: Value) -> Value {
    if let Some(thread) = message.pointer_mut("/result/thread_id") {
        assert!(thread.is_string(), "{thread}");
        *thread = json!("<thread>");
    }
    message
}

/// A plugin whose messages can be waited for, the events apart from the rest: what has to come first is only said
/// among the events.
struct Plugin {
    child: Child,
    lines: Receiver<String>,
    events: Vec<Value>,
    others: Vec<Value>,
}

impl Plugin {
    fn start(lab: &Lab) -> Plugin {
        let mut child = Command::new(env!("CARGO_BIN_EXE_plexum-openai"))
            .env_clear()
            .envs(lab.env())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines() {
                // A test that has failed does not listen.
                let _ = sender.send(line.unwrap());
            }
        });
        Plugin {
            child,
            lines,
            events: Vec::new(),
            others: Vec::new(),
        }
    }

    fn send(&mut self, message: &Value, workspace: &Path) {
        let line = message.to_string();
        let line = line.replace(WORKSPACE, workspace.to_str().unwrap());
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    #[track_caller]
    fn expect(&mut self, wanted: &Value) {
        let is_event = |message: &Value| message["method"] == "notifications/plexum/provider/event";
        loop {
            let kept = match is_event(wanted) {
                true => &mut self.events,
                false => &mut self.others,
            };
            if !kept.is_empty() {
                assert_eq!(equal(kept.remove(0)), equal(wanted.clone()));
                return;
            }
            let line = self.lines.recv_timeout(LIMIT);
            let line = line.unwrap_or_else(|_| panic!("waited in vain for {wanted}"));
            let message: Value = serde_json::from_str(&line).unwrap();
            match is_event(&message) {
                true => self.events.push(message),
                false => self.others.push(message),
            }
        }
    }
}

#[test]
fn session_in_protocol_page_is_real() {
    let lab = Lab::fake(Value::Null);
    let record = |payload: Value| json!({"timestamp": "{now}", "ordinal": 1, "type": "response_item", "payload": payload});
    let call = json!({"to": "bob", "text": "hello"});
    let tokens = json!({"input_tokens": 120, "cached_input_tokens": 0, "output_tokens": 8,
        "reasoning_output_tokens": 0, "total_tokens": 128});
    lab.script(json!([
        "read_stdin",
        {"event": {"type": "thread.started", "thread_id": "{thread}"}},
        {"rollout": [
            {"timestamp": "{now}", "type": "turn_context",
                "payload": {"cwd": "{cwd}", "model": "gpt-5.6"}},
            record(json!({"type": "function_call", "name": "fabric_send",
                "namespace": "mcp__plexum_host_alice", "arguments": call.to_string(),
                "call_id": "call_1"})),
        ]},
        {"call_tool": {"name": "fabric_send", "arguments": call, "call_id": "call_1"}},
        {"rollout": [
            record(json!({"type": "function_call_output", "call_id": "call_1",
                "output": [
                    {"type": "input_text", "text": "Wall time: 0.0213 seconds\nOutput:"},
                    {"type": "input_text", "text": "sent"},
                ]})),
            {"timestamp": "{now}", "type": "event_msg", "payload": {"type": "token_count",
                "info": {"total_token_usage": tokens, "last_token_usage": tokens,
                    "model_context_window": 272_000}, "rate_limits": null}},
        ]},
        {"event": {"type": "item.completed",
            "item": {"id": "item_0", "type": "agent_message", "text": "Bob has it."}}},
        {"event": {"type": "turn.completed", "usage": tokens}},
    ]));
    let mut plugin = Plugin::start(&lab);
    for (sent, message) in session() {
        match sent {
            true => plugin.send(&message, &lab.workspace()),
            false => plugin.expect(&message),
        }
    }
    plugin.child.stdin = None;
    // Nothing that is not in the page.
    let end = plugin.lines.recv_timeout(LIMIT);
    assert_eq!(end, Err(RecvTimeoutError::Disconnected));
    assert!(plugin.child.wait().unwrap().success());
    assert_eq!((plugin.events, plugin.others), (vec![], vec![]));
    lab.assert_quiet();
}

#[test]
fn client_in_protocol_page_works() {
    let Some(python) = programs::find("python3") else {
        return;
    };
    let lab = Lab::fake(Value::Null);
    let thread = json!({"event": {"type": "thread.started", "thread_id": "{thread}"}});
    lab.script(json!({"runs": [
        ["read_stdin", thread, {"call_tool": "clock"},
            {"event": {"type": "turn.completed", "usage": {"input_tokens": 1, "output_tokens": 1}}}],
        ["read_stdin", thread, {"event": {"type": "turn.failed", "error": {"message": "no luck"}}},
            {"exit": 1}],
    ]}));
    let client = lab.path("client.py");
    std::fs::write(&client, example("A client")).unwrap();
    let run = || {
        let output = Command::new(&python)
            .arg(&client)
            .arg(env!("CARGO_BIN_EXE_plexum-openai"))
            .arg(lab.workspace())
            .arg("What time is it?")
            .env_clear()
            .envs(lab.env())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let (said, complained) = (text(&output.stdout), text(&output.stderr));
        (said, complained, output.status.code())
    };
    let (said, complained, status) = run();
    assert_eq!((complained.as_str(), status), ("", Some(0)), "{said}");
    let is_time = |text: &str| {
        let form = text.replace(|c: char| c.is_ascii_digit(), "0");
        form.starts_with("0000-00-00 00:00:00")
    };
    assert!(is_time(&said), "{said}");
    assert_eq!(lab.fake_prompts(), ["What time is it?"]);
    let (said, complained, status) = run();
    assert_eq!((complained.as_str(), status), ("", Some(1)), "{said}");
    assert!(said.contains("no luck"), "{said}");
}
