//! What the config chooses of codex: the sandbox, what a model's name stands for, how long a tool may take.

use crate::support::codex::{is_at_least, real_codex};
use crate::support::{Daemon, Lab};
use serde_json::{Value, json};

/// A turn that lends one tool.
fn with_a_tool(lab: &Lab) -> Value {
    let mut params = Daemon::prompt(lab, "go");
    params["request"]["tools"] = json!([{"name": "send", "description": "sends",
        "input_schema": {"type": "object"}}]);
    params
}

/// A command that writes, then a call of the lent tool, then a text.
fn script(turn: u32) -> [Value; 3] {
    let command = json!({"cmd": "touch made && echo written"});
    let id = |what: &str| format!("call_{what}_{turn}");
    [
        json!({"times": 1, "calls": [{"name": "exec_command", "arguments": command, "id": id("write")}]}),
        json!({"times": 1, "calls": [{"name": "send", "namespace": "mcp__plexum_host_alice",
            "arguments": {}, "id": id("send")}]}),
        json!({"times": 1, "text": "done"}),
    ]
}

real_codex! {
    /// In each sandbox, in a new and in a resumed thread: a command writes only where it may, nobody is asked, and
    /// the lent tool works.
    fn sandbox_confines_commands_but_not_host_tools(codex: &Path) {
        for (sandbox, writes) in [("read-only", false), ("workspace-write", true), ("danger-full-access", true)] {
            let lab = Lab::real(codex, json!([script(0), script(1)].concat()));
            lab.config(json!({"sandbox": sandbox}));
            let mut daemon = Daemon::start(&lab);
            daemon.on_tool_call(|_| Some(Ok(json!({"content": "sent it"}))));
            for turn in 0..2 {
                let ended = daemon.turn(with_a_tool(&lab));
                assert_eq!(ended.stop_reason(), "end_turn", "{sandbox}: {ended:?}");
                assert_eq!(ended.result()["thread_state"], ["new", "resumed"][turn]);
                let result = |id: String| {
                    ended.of("tool_result").find(|it| it["id"] == id).unwrap()["content"].to_string()
                };
                assert_eq!(result(format!("call_write_{turn}")).contains("written"), writes, "{sandbox}: {ended:?}");
                assert!(result(format!("call_send_{turn}")).contains("sent it"), "{sandbox}: {ended:?}");
            }
            assert_eq!(lab.workspace().join("made").exists(), writes, "{sandbox}");
            assert_eq!(daemon.tool_calls().len(), 2);
        }
    }
}

real_codex! {
    /// What a name stands for reaches the model in a new and in a resumed thread; the request's own effort wins.
    fn model_args_set_model_effort_and_tier(codex: &Path) {
        let lab = Lab::real(codex, json!([{"text": "hi"}]));
        // A model that each version knows to have efforts and tiers: 0.135 asks for them only there.
        lab.config(json!({"model_args": {
            "quick": {"model": "gpt-5.4", "reasoning_effort": "low", "service_tier": "flex"},
            "plain": "gpt-5.2",
            "gpt-5.4": {"reasoning_effort": "high"},
        }}));
        let mut daemon = Daemon::start(&lab);
        let mut ask = |model: &str, effort: Value| {
            let mut params = Daemon::prompt(&lab, "hi");
            params["model"] = model.into();
            params["reasoning_effort"] = effort;
            let turn = daemon.turn(params);
            assert_eq!(turn.stop_reason(), "end_turn", "{turn:?}");
            lab.model().requests().last().unwrap().body.clone()
        };
        for _ in ["new", "resumed"] {
            let body = ask("quick", Value::Null);
            assert_eq!((&body["model"], &body["reasoning"]["effort"]), (&json!("gpt-5.4"), &json!("low")));
            // 0.135 has no tiers for a provider of one's own.
            if is_at_least(codex, (0, 169, 0)) {
                assert_eq!(body["service_tier"], "flex");
            }
            assert_eq!(ask("plain", Value::Null)["model"], "gpt-5.2");
            let body = ask("gpt-5.4", Value::Null);
            assert_eq!((&body["model"], &body["reasoning"]["effort"]), (&json!("gpt-5.4"), &json!("high")));
            assert_eq!(ask("quick", json!("medium"))["reasoning"]["effort"], "medium");
        }
    }
}

real_codex! {
    /// codex waits for a lent tool as long as the config says, and the model is told where that is over.
    fn tool_timeout_applies_to_host_tools(codex: &Path) {
        let [_, call, text] = script(0);
        let lab = Lab::real(codex, json!([call, text]));
        lab.config(json!({"tool_timeout_secs": 1}));
        let mut daemon = Daemon::start(&lab);
        daemon.on_tool_call(|_| None);
        let turn = daemon.turn(with_a_tool(&lab));
        assert_eq!(turn.stop_reason(), "end_turn", "{turn:?}");
        let result = turn.of("tool_result").next().unwrap();
        assert_eq!(result["is_error"], true, "{turn:?}");
        assert!(result["content"].to_string().contains("timed out"), "{turn:?}");
    }
}
