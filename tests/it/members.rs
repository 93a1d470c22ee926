//! The members of a turn's request and of its response: what codex makes of the first, and where the others come
//! from.

use crate::support::codex::{is_at_least, real_codex};
use crate::support::{Cli, Daemon, Lab, method};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// The parameters of a turn with these members besides.
fn with(lab: &Lab, text: &str, members: Value) -> Value {
    let mut params = Daemon::prompt(lab, text);
    for (name, value) in members.as_object().unwrap() {
        params[name] = value.clone();
    }
    params
}

/// The body of the last request that reached the model.
fn last_body(lab: &Lab) -> Value {
    lab.model().requests().last().unwrap().body.clone()
}

real_codex! {
    fn output_schema_and_effort_reach_model(codex: &Path) {
        let lab = Lab::real(codex, json!([{"text": "{\"word\":\"yes\"}"}]));
        let schema = json!({"type": "object", "properties": {"word": {"type": "string"}},
            "required": ["word"], "additionalProperties": false});
        let mut daemon = Daemon::start(&lab);
        for (state, effort) in [("new", "high"), ("resumed", "low")] {
            // 0.135 asks for an effort only where it knows that the model has one.
            let members = json!({"model": "gpt-5.4", "output_schema": schema, "reasoning_effort": effort});
            let turn = daemon.turn(with(&lab, "say it", members));
            assert_eq!(turn.result()["thread_state"], state);
            assert_eq!(turn.text(), "{\"word\":\"yes\"}");
            let body = last_body(&lab);
            assert_eq!(body["text"]["format"]["schema"], schema);
            assert_eq!(body["reasoning"]["effort"], effort);
        }
        // The next turn has nothing of them.
        daemon.turn(Daemon::prompt(&lab, "again"));
        let body = last_body(&lab);
        assert!(body["text"]["format"].is_null());
        assert_ne!(body["reasoning"]["effort"], "low");
    }
}

real_codex! {
    fn starts_or_adopts_thread_as_requested(codex: &Path) {
        let lab = Lab::real(codex, json!([{"text": "ok"}]));
        let mut daemon = Daemon::start(&lab);
        let first = daemon.turn(Daemon::prompt(&lab, "the first words")).thread().to_owned();
        let mut params = with(&lab, "anew", json!({"thread": "new"}));
        params["request"]["messages"] = json!([{"role": "user", "content": "what was"},
            {"role": "assistant", "content": "said"}, {"role": "user", "content": "anew"}]);
        let turn = daemon.turn(params);
        assert_eq!(turn.result()["thread_state"], "new");
        assert_ne!(turn.thread(), first);
        assert_eq!(lab.stored_thread().as_deref(), Some(turn.thread()));
        // Nothing of the conversation is replayed.
        assert!(!last_body(&lab).to_string().contains("what was"));
        // In capitals, too.
        let turn = daemon.turn(with(&lab, "back", json!({"thread": first.to_ascii_uppercase()})));
        assert_eq!((turn.thread(), turn.result()["thread_state"].as_str()), (first.as_str(), Some("resumed")));
        assert!(last_body(&lab).to_string().contains("the first words"));
        assert_eq!(lab.stored_thread().as_deref(), Some(first.as_str()));
        // Another workspace adopts it, and keeps it.
        fs::create_dir(lab.path("other")).unwrap();
        for (text, members) in [("here", json!({"thread": first})), ("still here", json!({}))] {
            let mut params = with(&lab, text, members);
            params["agent"]["workspace"] = json!(lab.path("other"));
            let turn = daemon.turn(params);
            assert_eq!((turn.thread(), turn.result()["thread_state"].as_str()), (first.as_str(), Some("resumed")), "{text}");
            assert!(last_body(&lab).to_string().contains("the first words"));
        }
        // One that is not there is an error, and costs nothing.
        let gone = "019a0000-0000-7000-8000-000000000000";
        let turn = daemon.turn(with(&lab, "gone", json!({"thread": gone})));
        assert_eq!(turn.error_code(), Some("thread_lost"), "{turn:?}");
        assert_eq!(turn.thread(), first);
        assert_eq!(lab.stored_thread().as_deref(), Some(first.as_str()));
    }
}

#[test]
fn output_schema_file_is_private_and_removed() {
    let lab = Lab::fake(Value::Null);
    let mut daemon = Daemon::start(&lab);
    let waits = json!(["read_stdin", {"event": {"type": "thread.started", "thread_id": "{thread}"}},
        {"wait_for": lab.path("go")}, "default"]);
    lab.script(waits);
    let schema = json!({"type": "object"});
    let id = daemon.request(
        method::STREAM,
        with(&lab, "hi", json!({"output_schema": schema})),
    );
    daemon.event(id, "the beginning", |event| {
        event["type"] == "message_start"
    });
    let run = lab.fake_runs().remove(0);
    let arguments = run["argv"].as_array().unwrap();
    let at = arguments
        .iter()
        .position(|argument| argument == "--output-schema");
    let path = arguments[at.expect("it is there") + 1].as_str().unwrap();
    assert_eq!(fs::read_to_string(path).unwrap(), schema.to_string());
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let path = Path::new(path);
    assert_eq!((mode(path), mode(path.parent().unwrap())), (0o600, 0o700));
    fs::write(lab.path("go"), "").unwrap();
    daemon.finish(id);
    assert!(!path.parent().unwrap().exists());
    // What is none is refused before codex is started.
    let turn = daemon.turn(with(&lab, "hi", json!({"output_schema": {"type": "text"}})));
    assert_eq!(turn.answer["error"]["code"], -32602);
    assert!(
        turn.answer["error"]["message"]
            .as_str()
            .unwrap()
            .contains("params.output_schema.type")
    );
    assert_eq!(lab.fake_runs().len(), 1);
}

real_codex! {
    fn context_is_that_of_the_last_request(codex: &Path) {
        let used = |input: u64| json!({"input": input, "cached": 0, "output": 7, "reasoning": 0});
        let calls = json!([{"id": "call_a", "name": "exec_command", "arguments": {"cmd": "true"}}]);
        let lab = Lab::real(codex, json!([
            {"match": "first", "times": 1, "calls": calls, "usage": used(100)},
            {"after": "call_a", "times": 1, "text": "one", "usage": used(200)},
            {"match": "second", "times": 1, "text": "two", "usage": used(300)},
            {"match": "third", "times": 1, "text": "three", "usage": used(150)},
            // The summary that a compaction asks for.
            {"text": "so far", "usage": used(50)},
        ]));
        let turn = |prompt: &str, extra_args: Value| {
            lab.config(json!({"extra_args": extra_args}));
            let turn = Daemon::start(&lab).turn(Daemon::prompt(&lab, prompt));
            let result = turn.result();
            assert_eq!(result["stop_reason"], "end_turn");
            assert_eq!(result["context"]["window"], 258_400);
            let states: Vec<&Value> = turn.of("status").map(|event| &event["state"]).collect();
            let mut expected = vec!["compacted"; result["compactions"].as_u64().unwrap() as usize];
            if lab.keeps_servers() && !expected.is_empty() {
                expected.insert(0, "compacting");
            }
            assert_eq!(states, expected);
            (result["context"]["tokens"].clone(), result["compactions"].clone(), result["model"].clone())
        };
        let model = json!("gpt-5");
        assert_eq!(turn("first", json!([])), (json!(207), json!(0), model.clone()));
        assert_eq!(turn("second", json!(["-m", "gpt-5.4"])).2, "gpt-5.4");
        let limit = json!(["-c", "model_auto_compact_token_limit=60"]);
        assert_eq!(turn("third", limit), (json!(157), json!(1), model.clone()));
        assert_eq!(turn("fourth", json!([])), (json!(57), json!(0), model));
    }
}

real_codex! {
    fn reports_rate_limits(codex: &Path) {
        let window = |name: &str, part: &str| format!("x-codex-{name}-{part}");
        let limits = |used: &str| {
            let mut headers = json!({});
            for (name, used, minutes, reset) in [
                ("primary", used, "300", "1990000000"),
                ("secondary", "40.5", "10080", "1990500000"),
            ] {
                headers[window(name, "used-percent")] = json!(used);
                headers[window(name, "window-minutes")] = json!(minutes);
                headers[window(name, "reset-at")] = json!(reset);
            }
            headers
        };
        let told = |used: f64| json!({
            "primary": {"used_percent": used, "window_minutes": 300, "resets_at": 1_990_000_000_u64},
            "secondary": {"used_percent": 40.5, "window_minutes": 10_080, "resets_at": 1_990_500_000_u64},
        });
        let reached = json!({"error": {"type": "usage_limit_reached", "message": "The usage limit has been reached",
            "plan_type": "pro", "resets_at": 1_990_000_000_u64}});
        let lab = Lab::real(codex, json!([
            {"match": "limited", "times": 1, "status": 429, "headers": limits("100"), "body": reached},
            {"match": "told", "times": 1, "text": "ok", "headers": limits("12.5")},
            {"text": "ok"},
        ]));
        let mut daemon = Daemon::start(&lab);
        // A new thread, whose first request fails already.
        let turn = daemon.turn(Daemon::prompt(&lab, "limited"));
        assert_eq!(turn.error_code(), Some("usage_limit"));
        assert_eq!(turn.result()["rate_limits"], told(100.0));
        assert_eq!(turn.result()["context"], Value::Null);
        let error = turn.of("error").next().unwrap();
        assert_eq!(error["error"]["retry_at"], 1_990_000_000_u64);
        assert_eq!(turn.result()["error"], error["error"]);
        let turn = daemon.turn(Daemon::prompt(&lab, "told"));
        assert_eq!(turn.result()["rate_limits"], told(12.5));
        assert!(turn.result().get("error").is_none());
        // What was told of an earlier turn is not this one's.
        let turn = daemon.turn(Daemon::prompt(&lab, "nothing"));
        assert_eq!(turn.result()["rate_limits"], Value::Null);
    }
}

real_codex! {
    /// Without the account's limits there is only codex's sentence, in the local time and without seconds.
    fn usage_limit_error_has_retry_at(codex: &Path) {
        let reached = json!({"error": {"type": "usage_limit_reached", "message": "The usage limit has been reached",
            "resets_at": 1_990_000_000_u64}});
        let mut lab = Lab::real(codex, json!([{"status": 429, "body": reached}]));
        lab.set_env("TZ", "Asia/Kolkata");
        let turn = Daemon::start(&lab).turn(Daemon::prompt(&lab, "hi"));
        assert_eq!(turn.error_code(), Some("usage_limit"));
        let retry_at = turn.result()["error"]["retry_at"].as_u64().unwrap();
        assert!((1_990_000_000..=1_990_000_060).contains(&retry_at), "{retry_at}");
    }
}

real_codex! {
    fn reports_retried_request(codex: &Path) {
        let lab = Lab::real_with_retries(codex, json!([{"drop_after": 1, "text": "no"}, {"text": "yes"}]), 2);
        let mut daemon = Daemon::start(&lab);
        let turn = daemon.turn(Daemon::prompt(&lab, "hi"));
        assert_eq!((turn.text().as_str(), turn.stop_reason()), ("yes", "end_turn"));
        let status = turn.of("status").next().expect("a status");
        assert_eq!(status["state"], "retrying");
        assert!(status["detail"].as_str().unwrap().contains("1/2"), "{status}");
    }
}

#[test]
fn reports_queued_turn() {
    let lab = Lab::fake(Value::Null);
    let started = json!({"event": {"type": "thread.started", "thread_id": "{thread}"}});
    lab.script(json!({"runs": [["read_stdin", started, {"wait_for": lab.path("go")}, "default"], ["default"]]}));
    let mut daemon = Daemon::start(&lab);
    let params = Daemon::prompt(&lab, "hi");
    let first = daemon.request(method::STREAM, params.clone());
    daemon.event(first, "the beginning", |event| {
        event["type"] == "message_start"
    });
    let second = daemon.request(method::STREAM, params.clone());
    let queued = daemon.event(second, "a status", |event| event["type"] == "status");
    assert_eq!(
        queued,
        json!({"type": "status", "state": "queued", "detail": "another turn of the workspace is running"})
    );
    fs::write(lab.path("go"), "").unwrap();
    assert_eq!(daemon.finish(first).of("status").count(), 0);
    let turn = daemon.finish(second);
    assert_eq!(turn.stop_reason(), "end_turn", "{turn:?}");
    let states: Vec<&Value> = turn.of("status").map(|event| &event["state"]).collect();
    assert_eq!(states, ["queued", "running"]);
}

real_codex! {
    fn turn_subcommand_shows_compaction(codex: &Path) {
        let lab = Lab::real(codex, json!([{"text": "ok"}]));
        assert_eq!(Cli::new(&lab, ["turn", "first"]).run().status, 0);
        lab.config(json!({"extra_args": ["-c", "model_auto_compact_token_limit=60"]}));
        let output = Cli::new(&lab, ["turn", "second"]).run();
        assert!(output.stderr.contains("plexum-openai: the conversation was compacted\n"), "{output:?}");
        let output = Cli::new(&lab, ["turn", "--json", "third"]).run();
        assert!(output.stdout.contains("{\"type\":\"status\",\"state\":\"compacted\"}\n"), "{output:?}");
        assert!(output.stdout.contains("\"compactions\":1"), "{output:?}");
    }
}

real_codex! {
    fn reports_each_change_of_plan(codex: &Path) {
        let plan = |id: &str, one: &str, two: &str| json!([{"id": id, "name": "update_plan", "arguments":
            {"plan": [{"step": "one", "status": one}, {"step": "two", "status": two}]}}]);
        let lab = Lab::real(codex, json!([
            {"match": "work", "times": 1, "calls": plan("call_a", "in_progress", "pending")},
            {"after": "call_a", "times": 1, "calls": plan("call_b", "completed", "in_progress")},
            {"text": "so far"},
        ]));
        if is_at_least(codex, (0, 169, 0)) {
            // It no longer has the tool unless it is asked to.
            lab.config(json!({"extra_args": ["-c", "tools.update_plan={enabled=true}"]}));
        }
        let turn = Daemon::start(&lab).turn(Daemon::prompt(&lab, "work"));
        let told: Vec<&Value> = turn.of("plan").map(|event| &event["items"]).collect();
        let items = |one: &str, two: &str| json!([{"text": "one", "status": one}, {"text": "two", "status": two}]);
        assert_eq!(told, [&items("in_progress", "pending"), &items("completed", "in_progress")]);
    }
}

real_codex! {
    fn tool_events_have_host_tool_names_and_blocks(codex: &Path) {
        let call = json!([{"id": "call_a", "name": "fabric_send", "namespace": "mcp__plexum_host_alice", "arguments": {"to": "x"}}]);
        let lab = Lab::real(codex, json!([{"match": "send", "times": 1, "calls": call}, {"text": "sent"}]));
        let mut daemon = Daemon::start(&lab);
        let pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==";
        daemon.on_tool_call(move |_| Some(Ok(json!({"content": [{"type": "text", "text": "done"},
            {"type": "image", "data": pixel, "mimeType": "image/png"}]}))));
        let mut params = Daemon::prompt(&lab, "send");
        params["request"]["tools"] = json!([{"name": "fabric.send", "description": "d", "input_schema": {"type": "object"}}]);
        let turn = daemon.turn(params);
        assert_eq!(turn.text(), "sent");
        assert_eq!(daemon.tool_calls()[0]["params"]["name"], "fabric.send");
        let used = turn.of("tool_use").next().unwrap();
        assert_eq!((&used["id"], &used["name"]), (&json!("call_a"), &json!("fabric.send")));
        let blocks = &turn.of("tool_result").next().unwrap()["content"];
        // 0.135 records some results as text.
        for block in blocks.as_array().into_iter().flatten() {
            let kind = block["type"].as_str().unwrap();
            assert!(kind == "text" && block["text"].is_string()
                || kind == "image" && block["data"] == pixel && block["mimeType"] == "image/png", "{kind}");
        }
        assert!(blocks.to_string().contains("done"));
        assert!(!is_at_least(codex, (0, 169, 0)) || blocks.is_array());
    }
}

real_codex! {
    /// An image is told once, with its file where codex saves it, and else with its data; of the rollout likewise.
    fn reports_generated_image_with_call_id(codex: &Path) {
        const PIXEL: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
        let image = |id: &str, prompt: &str| {
            json!({"type": "image_generation_call", "id": id, "status": "completed",
                "revised_prompt": prompt, "result": PIXEL})
        };
        let said = json!({"type": "message", "role": "assistant", "id": "msg_1",
            "content": [{"type": "output_text", "text": "there"}]});
        let lab = Lab::real(codex, json!([{"items": [image("ig_1", "a cat"), image("ig_2", "a dog"), said]}]));
        let turn = Daemon::start(&lab).turn(Daemon::prompt(&lab, "draw"));
        assert_eq!(turn.text(), "there");
        let is_saved = codex.to_string_lossy().contains(OLDEST);
        let block = |id: &str| match is_saved {
            true => json!({"type": "image", "path": lab.codex_home().canonicalize().unwrap()
                .join("generated_images").join(turn.thread()).join(format!("{id}.png"))}),
            false => json!({"type": "image", "data": PIXEL, "mimeType": "image/png"}),
        };
        let expected: Vec<Value> = [("ig_1", "a cat"), ("ig_2", "a dog")].into_iter().flat_map(|(id, prompt)| [
            json!({"type": "tool_use", "id": id, "name": "image_generation", "input": {"prompt": prompt}}),
            json!({"type": "tool_result", "id": id, "content": [block(id)], "is_error": false}),
        ]).collect();
        let is_call = |event: &&Value| event["type"] == "tool_use" || event["type"] == "tool_result";
        let told: Vec<&Value> = turn.events.iter().filter(is_call).collect();
        assert_eq!(told, expected.iter().collect::<Vec<_>>());
        if is_saved {
            assert!(Path::new(told[1]["content"][0]["path"].as_str().unwrap()).is_file());
        }
        let output = Cli::new(&lab, ["parse-rollout", "-w"]).arg(lab.workspace()).run();
        assert_eq!(output.untimed_events(), expected);
        let output = Cli::new(&lab, ["turn", "--fresh", "draw"]).run();
        let shown: Vec<&str> = output.stderr.lines().filter(|line| line.contains("image")).collect();
        assert_eq!(shown.len(), 2, "{output:?}");
        for (line, id) in shown.into_iter().zip(["ig_1", "ig_2"]) {
            match is_saved {
                true => assert!(line.starts_with("plexum-openai: image: /") && line.ends_with(&format!("/{id}.png")), "{line}"),
                false => assert_eq!(line, "plexum-openai: image of 1 kB, which codex has not saved; '--json' prints it"),
            }
        }
    }
}

real_codex! {
    fn reports_web_search_with_call_id(codex: &Path) {
        let search = json!({"type": "web_search_call", "id": "ws_1", "status": "completed",
            "action": {"type": "search", "query": "weather"}});
        let said = json!({"type": "message", "role": "assistant", "id": "msg_1",
            "content": [{"type": "output_text", "text": "rain"}]});
        let lab = Lab::real(codex, json!([{"items": [search, said]}]));
        let turn = Daemon::start(&lab).turn(Daemon::prompt(&lab, "hi"));
        assert_eq!(turn.text(), "rain");
        let told: Vec<&Value> = turn.events.iter().filter(|event| event["id"] == "ws_1").collect();
        assert_eq!(told, [
            &json!({"type": "tool_use", "id": "ws_1", "name": "web_search", "input": {"query": "weather"}}),
            &json!({"type": "tool_result", "id": "ws_1", "content": "", "is_error": false}),
        ]);
    }
}
