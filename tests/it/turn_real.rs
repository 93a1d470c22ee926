//! Turns of the real codex, oldest and newest, against a scripted model: what the daemon is told, and what
//! reached the model.

use crate::support::codex::real_codex;
use crate::support::daemon::check_turn;
use crate::support::{Cli, Daemon, LIMIT, Lab, cli, method, ps, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::io::Read;
use std::time::Duration;

fn usage(input: u64, cached: u64, output: u64, thinking: u64) -> Value {
    json!({"input_tokens": input, "output_tokens": output, "cache_read_tokens": cached,
        "cache_write_tokens": 0, "thinking_tokens": thinking})
}

/// Two turns: the first calls a tool and so asks the model twice.
fn two_turns() -> Value {
    json!([
        {"text": "I look.", "calls": [{"name": "exec_command", "arguments": {"cmd": "echo h''i there"}}]},
        {"after": "call_1", "text": "It says hi."},
        {"match": "second", "text": "Again."},
    ])
}

/// Sees that the two turns were told as they were, given their events and their results.
#[track_caller]
fn check_two_turns(lab: &Lab, turns: &[(Vec<Value>, Value)]) {
    for (events, _) in turns {
        check_turn(events);
    }
    let kinds = |events: &[Value]| -> Vec<String> {
        events
            .iter()
            .map(|event| match event["text"].as_str() {
                Some(text) => text.to_owned(),
                None => event["type"].as_str().unwrap().to_owned(),
            })
            .collect()
    };
    let (events, first) = &turns[0];
    assert_eq!(
        kinds(events),
        [
            "message_start",
            "I look.",
            "tool_use",
            "tool_result",
            "\n\nIt says hi.",
            "message_end"
        ]
    );
    assert_eq!(
        events[2],
        json!({"type": "tool_use", "id": "call_1", "name": "exec_command",
            "input": {"cmd": "echo h''i there"}})
    );
    assert_eq!(events[3]["id"], "call_1");
    assert_eq!(events[3]["is_error"], false);
    assert!(
        events[3]["content"].to_string().contains("hi there"),
        "{}",
        events[3]
    );
    let thread = lab.stored_thread().unwrap();
    let twice = usage(200, 20, 10, 2);
    assert_eq!(
        events[5],
        json!({"type": "message_end", "stop_reason": "end_turn", "usage": twice})
    );
    assert_eq!(
        *first,
        json!({"stop_reason": "end_turn", "thread_id": thread, "thread_state": "new",
            "usage": twice, "thread_usage": twice,
            "context": {"tokens": 105, "window": 258_400}, "compactions": 0,
            "rate_limits": null, "model": "gpt-5"})
    );
    let (events, second) = &turns[1];
    assert_eq!(kinds(events), ["message_start", "Again.", "message_end"]);
    assert_eq!(
        *second,
        json!({"stop_reason": "end_turn", "thread_id": thread, "thread_state": "resumed",
            "usage": usage(100, 10, 5, 1), "thread_usage": usage(300, 30, 15, 3),
            "context": {"tokens": 105, "window": 258_400}, "compactions": 0,
            "rate_limits": null, "model": "gpt-5"})
    );
    let requests = lab.model().requests();
    assert_eq!(requests.len(), 3);
    let input = requests[2].body["input"].to_string();
    for part in [
        "the first question",
        "I look.",
        "hi there",
        "It says hi.",
        "the second question",
    ] {
        assert!(
            input.contains(part),
            "{part:?} is not in the second turn's request"
        );
    }
}

real_codex! {
    fn runs_two_turns_with_tool_call_by_protocol(codex: &Path) {
        let lab = Lab::real(codex, two_turns());
        let mut daemon = Daemon::start(&lab);
        let turns: Vec<_> = ["the first question", "the second question"]
            .into_iter()
            .map(|prompt| {
                let turn = daemon.turn(Daemon::prompt(&lab, prompt));
                (turn.events.clone(), turn.result().clone())
            })
            .collect();
        check_two_turns(&lab, &turns);
        drop(daemon);
        lab.assert_quiet();
    }
}

real_codex! {
    fn runs_two_turns_with_tool_call_by_hand(codex: &Path) {
        let lab = Lab::real(codex, two_turns());
        let turns: Vec<_> = ["the first question", "the second question"]
            .into_iter()
            .map(|prompt| {
                let output = Cli::new(&lab, ["turn", "--json", prompt]).run();
                assert_eq!(output.status, 0, "{output:?}");
                events_and_result(&output.stdout)
            })
            .collect();
        check_two_turns(&lab, &turns);
        lab.assert_quiet();
    }
}

/// The events of `turn --json`, and its last line without the type.
#[track_caller]
fn events_and_result(stdout: &str) -> (Vec<Value>, Value) {
    let mut events: Vec<Value> = stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .collect();
    let mut result = events.pop().expect("a last line");
    let kind = result
        .as_object_mut()
        .and_then(|result| result.remove("type"));
    assert_eq!(kind, Some(json!("result")), "{result}");
    (events, result)
}

real_codex! {
    fn prints_text_on_stdout(codex: &Path) {
        let lab = Lab::real(codex, two_turns());
        let output = Cli::new(&lab, ["turn"]).stdin("the first question").run();
        assert_eq!((output.status, output.stdout.as_str()), (0, "I look.\n\nIt says hi.\n"), "{output:?}");
        assert!(output.stderr.contains("exec_command") || output.stderr.contains("echo"), "{output:?}");
        assert!(output.stderr.contains("200"), "the tokens used: {output:?}");
        assert!(!output.stderr.contains('\u{1b}'), "no colour where there is no terminal");
        assert_eq!(lab.model().requests()[0].user_text(), "the first question");
    }
}

real_codex! {
    fn usage_is_that_of_the_turn(codex: &Path) {
        let lab = Lab::real(codex, json!([{"text": "a"}, {"text": "b"}, {"text": "c"}]));
        // Each time another process: nothing but the workspace and codex's files is remembered.
        for number in 1..=3 {
            let mut daemon = Daemon::start(&lab);
            let turn = daemon.turn(Daemon::prompt(&lab, "hi"));
            assert_eq!(turn.result()["usage"], usage(100, 10, 5, 1), "turn {number}");
            let total = usage(100 * number, 10 * number, 5 * number, number);
            assert_eq!(turn.result()["thread_usage"], total, "turn {number}");
        }
    }
}

real_codex! {
    fn recovered_errors_do_not_fail_turn(codex: &Path) {
        let lab = Lab::real_with_retries(
            codex,
            json!([
                {"status": 500, "body": {"error": {"message": "try again"}}},
                {"text": "lost", "drop_after": 1},
                {"text": "at last"},
            ]),
            3,
        );
        let mut daemon = Daemon::start(&lab);
        let turn = daemon.turn(Daemon::prompt(&lab, "hi"));
        assert_eq!(turn.text(), "at last");
        assert_eq!(turn.stop_reason(), "end_turn");
        assert_eq!(turn.error_code(), None);
    }
}

real_codex! {
    fn final_failure_is_one_typed_error(codex: &Path) {
        for (status, body, code, retryable) in [
            (
                400,
                json!({"detail": "The 'gpt-5' model is not supported when using Codex with a ChatGPT account."}),
                "model_unsupported",
                false,
            ),
            (
                401,
                json!({"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}}),
                "auth",
                false,
            ),
            (
                429,
                json!({"error": {"type": "usage_limit_reached", "message": "The usage limit has been reached",
                    "plan_type": "plus", "resets_in_seconds": 3600}}),
                "usage_limit",
                false,
            ),
            (
                200,
                json!({"code": "rate_limit_exceeded", "message": "Rate limit reached for gpt-5 on tokens per min (TPM)"}),
                "usage_limit",
                true,
            ),
        ] {
            let reply = match status {
                200 => json!([{"failed": body}]),
                status => json!([{"status": status, "body": body}]),
            };
            let lab = Lab::real(codex, reply);
            let output = Cli::new(&lab, ["turn", "--json", "hi"]).run();
            assert_eq!(output.status, 1, "{output:?}");
            let (events, result) = events_and_result(&output.stdout);
            check_turn(&events);
            assert_eq!(result["stop_reason"], "error", "{result}");
            let errors: Vec<_> = events.iter().filter(|event| event["type"] == "error").collect();
            assert_eq!(errors.len(), 1, "{events:?}");
            assert_eq!(errors[0]["error"]["code"], code, "{status}: {}", errors[0]);
            assert_eq!(errors[0]["error"]["retryable"], retryable, "{status}: {}", errors[0]);

            let mut daemon = Daemon::start(&lab);
            let turn = daemon.turn(Daemon::prompt(&lab, "hi"));
            assert_eq!(turn.error_code(), Some(code), "{turn:?}");
            assert_eq!(turn.stop_reason(), "error");
        }
    }
}

/// Prompts that an argument parser, a shell or a size limit could spoil.
fn hard_prompts() -> Vec<String> {
    let mut prompts: Vec<String> = [
        "--help",
        "-",
        "-x",
        "--",
        "resume",
        "it's \"quoted\" `and` $HOME \\ \n and on a second line",
        "a\r\nb\tc",
        "\u{1f980} \u{e9}\u{301} \u{202e}abc",
        "{\"json\": [1]}",
    ]
    .map(str::to_owned)
    .to_vec();
    prompts.push("three hundred thousand ".repeat(300_000 / 23));
    prompts.push("\u{e4}\u{1f980}".repeat(500_000));
    prompts
}

/// Shows both ends of what is too long to be looked at.
fn short(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    if chars.len() < 200 {
        return text.to_owned();
    }
    let (head, tail) = (&chars[..60], &chars[chars.len() - 60..]);
    format!(
        "{}…{} ({} characters)",
        String::from_iter(head),
        String::from_iter(tail),
        chars.len()
    )
}

#[track_caller]
fn check_prompts(codex: &std::path::Path, config: Value) {
    let lab = Lab::real(codex, json!([{"text": "ok"}]));
    let by_argument = config["prompt_via"] == "arg";
    lab.config(config);
    let mut daemon = Daemon::start(&lab);
    for (at, prompt) in hard_prompts().into_iter().enumerate() {
        // codex parses the command line of a new thread and of a resumed one by different rules, which meet the
        // prompt only where it is an argument; what is longer goes through stdin all the same.
        let is_argument = by_argument && prompt.len() < 131_071;
        let states: &[&str] = match at == 0 || is_argument {
            true => &["new", "resumed"],
            false => &["resumed"],
        };
        if states.contains(&"new") {
            let _ = fs::remove_file(lab.session_file());
        }
        for &state in states {
            let turn = daemon.turn(Daemon::prompt(&lab, &prompt));
            assert_eq!(
                turn.result()["stop_reason"],
                "end_turn",
                "{}: {turn:?}",
                short(&prompt)
            );
            assert_eq!(turn.result()["thread_state"], state, "{}", short(&prompt));
            let reached = lab.model().requests().last().unwrap().user_text();
            assert!(
                reached == prompt,
                "{state}: {} became {}",
                short(&prompt),
                short(&reached)
            );
        }
    }
}

// fault: 19
real_codex! {
    fn prompts_reach_model_unchanged_by_stdin(codex: &Path) {
        check_prompts(codex, json!({}));
    }
}

// fault: 19
real_codex! {
    fn prompts_reach_model_unchanged_by_argument(codex: &Path) {
        check_prompts(codex, json!({"prompt_via": "arg"}));
    }
}

real_codex! {
    fn prompts_reach_model_unchanged_from_command_line(codex: &Path) {
        let lab = Lab::real(codex, json!([{"text": "ok"}]));
        for prompt in ["--help", "-x", "resume", "it's \"a\"\nb", "\u{1f980}"] {
            let output = Cli::new(&lab, ["turn", "--", prompt]).run();
            assert_eq!((output.status, output.stdout.as_str()), (0, "ok\n"), "{prompt}: {output:?}");
            assert_eq!(lab.model().requests().last().unwrap().user_text(), prompt);
        }
        for arguments in [&["turn"][..], &["turn", "-"], &["turn", "--", "-"]] {
            let output = Cli::new(&lab, arguments.iter().copied()).stdin("from stdin, -").run();
            assert_eq!((output.status, output.stdout.as_str()), (0, "ok\n"), "{arguments:?}: {output:?}");
            assert_eq!(lab.model().requests().last().unwrap().user_text(), "from stdin, -");
        }
    }
}

// fault: 26
real_codex! {
    fn session_file_cannot_inject_arguments(codex: &Path) {
        let lab = Lab::real(codex, json!([{"text": "ok"}]));
        let evil = lab.path("evil");
        fs::write(
            lab.session_file(),
            format!("-cmcp_servers.evil.command=\"touch\" -cmcp_servers.evil.args=[{evil:?}]\n"),
        )
        .unwrap();
        let mut daemon = Daemon::start(&lab);
        let turn = daemon.turn(Daemon::prompt(&lab, "hi"));
        assert_eq!(turn.result()["thread_state"], "new");
        assert_eq!(turn.text(), "ok");
        assert!(!evil.exists());
        daemon.log("warning", "plexum-codex-session");
        assert!(lab.workspace().join(".plexum-codex-session.bad").exists());
        assert_eq!(lab.stored_thread().unwrap(), turn.thread());
    }
}

/// A picture of one pixel.
const PIXEL: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

/// The bytes of [`PIXEL`].
const PIXEL_BYTES: &[u8] = &[
    0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a, 0, 0, 0, 0x0d, 0x49, 0x48, 0x44, 0x52, 0, 0, 0,
    1, 0, 0, 0, 1, 8, 6, 0, 0, 0, 0x1f, 0x15, 0xc4, 0x89, 0, 0, 0, 0x0d, 0x49, 0x44, 0x41, 0x54,
    0x78, 0xda, 0x63, 0x64, 0xf8, 0xcf, 0x50, 0x0f, 0, 3, 0x86, 1, 0x80, 0x5a, 0x34, 0x7d, 0x6b, 0,
    0, 0, 0, 0x49, 0x45, 0x4e, 0x44, 0xae, 0x42, 0x60, 0x82,
];

real_codex! {
    fn images_reach_model(codex: &Path) {
        let lab = Lab::real(codex, json!([{"text": "ok"}]));
        let odd = lab.path("a, b \u{e9}.png");
        fs::write(&odd, PIXEL_BYTES).unwrap();
        fs::write(lab.workspace().join("near.png"), PIXEL_BYTES).unwrap();
        let image = |more: Value| {
            let mut block = json!({"type": "image", "media_type": "image/png"});
            block.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            block
        };
        let mut daemon = Daemon::start(&lab);
        // What a block becomes is the same in a new thread and in a resumed one; how codex is given it is not.
        let (both, resumed) = (&["new", "resumed"][..], &["resumed"][..]);
        for (states, blocks, images, told) in [
            (both, vec![image(json!({"data": PIXEL}))], 1, None),
            (resumed, vec![image(json!({"data_base64": PIXEL}))], 1, None),
            (both, vec![image(json!({"path": odd}))], 1, None),
            (resumed, vec![image(json!({"url": format!("data:image/png;base64,{PIXEL}")}))], 1, None),
            (both, vec![image(json!({"path": odd})), image(json!({"data": PIXEL}))], 2, None),
            (both, vec![image(json!({"path": lab.path("gone.png")}))], 0, Some("gone.png")),
            (resumed, vec![image(json!({"data": "%%%"}))], 0, Some("unavailable")),
            (resumed, vec![image(json!({"url": "http://127.0.0.1:1/x.png"}))], 0, Some("x.png")),
            (resumed, vec![image(json!({"path": lab.path("gone.png")})), image(json!({"data": PIXEL}))], 1, Some("gone.png")),
        ] {
            for &state in states {
                if state == "new" {
                    let _ = fs::remove_file(lab.session_file());
                }
                let mut content = vec![json!({"type": "text", "text": "before"})];
                content.extend(blocks.iter().cloned());
                content.push(json!({"type": "text", "text": "after"}));
                let mut params = Daemon::prompt(&lab, "");
                params["request"]["messages"][0]["content"] = json!(content);
                let turn = daemon.turn(params);
                assert_eq!(turn.result()["stop_reason"], "end_turn", "{blocks:?}: {turn:?}");
                assert_eq!(turn.result()["thread_state"], state, "{blocks:?}");
                let request = lab.model().requests().pop().unwrap();
                let message = request.body["input"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .rfind(|item| item["role"] == "user")
                    .unwrap()
                    .clone();
                let parts = message["content"].as_array().unwrap();
                let pictures: Vec<_> = parts.iter().filter(|part| part["type"] == "input_image").collect();
                assert_eq!(pictures.len(), images, "{blocks:?}: {message}");
                for picture in pictures {
                    let url = picture["image_url"].as_str().unwrap();
                    assert!(url.starts_with("data:image/png;base64,"), "{url}");
                }
                let text = request.user_text();
                assert!(text.contains("before") && text.contains("after"), "{text}");
                if let Some(told) = told {
                    assert!(text.contains("[image ") && text.contains("unavailable]"), "{text}");
                    assert!(text.contains(told), "{text}");
                    let place = text.find("[image").unwrap();
                    assert!(text.find("before").unwrap() < place && place < text.find("after").unwrap(), "{text}");
                    daemon.log("warning", "image");
                }
            }
        }
        // The files that were made for codex are gone with their turn.
        drop(daemon);
        let mut files: Vec<_> = fs::read_dir(lab.workspace())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        files.sort();
        assert_eq!(files, [".plexum-codex-session", "near.png"]);
    }
}

real_codex! {
    fn images_by_flag_reach_model(codex: &Path) {
        let lab = Lab::real(codex, json!([{"text": "ok"}]));
        let odd = lab.path("a,b.png");
        fs::write(&odd, PIXEL_BYTES).unwrap();
        fs::write(lab.workspace().join("near.png"), PIXEL_BYTES).unwrap();
        let output = Cli::new(&lab, ["turn", "-i", "near.png", "--image"]).arg(&odd).arg("look").run();
        assert_eq!((output.status, output.stdout.as_str()), (0, "ok\n"), "{output:?}");
        let request = lab.model().requests().pop().unwrap();
        assert_eq!(request.body.to_string().matches("\"type\":\"input_image\"").count(), 2);
        assert!(request.user_text().ends_with("look"), "{}", request.user_text());
    }
}

/// A conversation of one turn whose thread codex then loses.
#[track_caller]
fn lose_thread(lab: &Lab, daemon: &mut Daemon) -> String {
    let turn = daemon.turn(Daemon::prompt(lab, "My name is Ada."));
    assert_eq!(turn.stop_reason(), "end_turn");
    for rollout in lab.rollouts(turn.thread()) {
        fs::remove_file(rollout).unwrap();
    }
    turn.thread().to_owned()
}

fn conversation(lab: &Lab) -> Value {
    let mut params = Daemon::prompt(lab, "");
    params["request"]["messages"] = json!([
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": [{"type": "text", "text": "Hello Ada."}]},
        {"role": "user", "content": "What is my name?"},
    ]);
    params
}

// fault: 31
real_codex! {
    fn replays_conversation_of_lost_thread(codex: &Path) {
        for (setting, replayed) in [(None, true), (Some("replay"), true), (Some("fresh"), false)] {
            let lab = Lab::real(codex, json!([{"text": "Hello Ada."}, {"text": "Ada."}]));
            if let Some(setting) = setting {
                lab.config(json!({"lost_thread": setting}));
            }
            let mut daemon = Daemon::start(&lab);
            let lost = lose_thread(&lab, &mut daemon);
            let turn = daemon.turn(conversation(&lab));
            assert_eq!(turn.text(), "Ada.");
            assert_eq!(turn.result()["thread_state"], "replaced");
            assert_ne!(turn.thread(), lost);
            assert_eq!(lab.stored_thread().unwrap(), turn.thread());
            assert_eq!(turn.result()["thread_usage"], usage(100, 10, 5, 1));
            daemon.log("warning", &lost);
            let text = lab.model().requests().pop().unwrap().user_text();
            assert!(text.ends_with("What is my name?"), "{text}");
            assert_eq!(text.contains("My name is Ada."), replayed, "{text}");
            assert_eq!(text.contains("Hello Ada."), replayed, "{text}");
            assert_eq!(text.matches("What is my name?").count(), 1, "{text}");
            // From then on the new one goes on.
            let turn = daemon.turn(Daemon::prompt(&lab, "Sure?"));
            assert_eq!(turn.result()["thread_state"], "resumed");
        }
    }
}

real_codex! {
    fn rollout_without_session_meta_is_lost(codex: &Path) {
        // What a full disk leaves, and what a power cut can.
        for (what, keep) in [("an empty file", 0), ("half a line", 100)] {
            let lab = Lab::real(codex, json!([{"text": "Hello Ada."}, {"text": "Ada."}]));
            let mut daemon = Daemon::start(&lab);
            let turn = daemon.turn(Daemon::prompt(&lab, "My name is Ada."));
            let lost = turn.thread().to_owned();
            let rollout = &lab.rollouts(&lost)[0];
            fs::File::options().write(true).open(rollout).unwrap().set_len(keep).unwrap();
            let turn = daemon.turn(conversation(&lab));
            assert_eq!(turn.text(), "Ada.", "{what}: {turn:?}");
            assert_eq!(turn.result()["thread_state"], "replaced", "{what}");
            assert_eq!(lab.stored_thread().unwrap(), turn.thread(), "{what}");
            assert_eq!(turn.result()["thread_usage"], usage(100, 10, 5, 1), "{what}");
            daemon.log("warning", &lost);
            let text = lab.model().requests().pop().unwrap().user_text();
            assert!(text.contains("My name is Ada."), "{what}: {text}");
            assert_eq!(fs::metadata(rollout).unwrap().len(), keep, "{what}: it is left as it was");
        }
    }
}

real_codex! {
    fn lost_thread_can_fail_turn(codex: &Path) {
        let lab = Lab::real(codex, json!([{"text": "Hello Ada."}]));
        lab.config(json!({"lost_thread": "error"}));
        let mut daemon = Daemon::start(&lab);
        let lost = lose_thread(&lab, &mut daemon);
        let turn = daemon.turn(conversation(&lab));
        assert_eq!(turn.stop_reason(), "error");
        let error = turn.of("error").next().unwrap();
        assert!(error["error"]["message"].as_str().unwrap().contains(&lost), "{error}");
        assert_eq!(lab.stored_thread().unwrap(), lost);
        assert_eq!(lab.model().requests().len(), 1);
    }
}

real_codex! {
    fn replays_newest_part_of_long_conversation(codex: &Path) {
        let lab = Lab::real(codex, json!([{"text": "Hello Ada."}, {"text": "ok"}]));
        let mut daemon = Daemon::start(&lab);
        lose_thread(&lab, &mut daemon);
        let mut params = conversation(&lab);
        let mut messages: Vec<Value> = (0..2_000)
            .map(|number| json!({"role": "user", "content": format!("line {number}; {}", "\u{e4}".repeat(500))}))
            .collect();
        messages.push(json!({"role": "assistant", "content": "I see."}));
        messages.push(json!({"role": "user", "content": "And now?"}));
        params["request"]["messages"] = json!(messages);
        let turn = daemon.turn(params);
        assert_eq!(turn.text(), "ok");
        let text = lab.model().requests().pop().unwrap().user_text();
        assert!(text.ends_with("And now?"), "{}", short(&text));
        assert!(text.contains("line 1999;") && !text.contains("line 0;"), "{}", short(&text));
        let length = text.len();
        assert!((200 << 10..300 << 10).contains(&length), "{length}");
    }
}

real_codex! {
    fn fresh_starts_new_thread_and_keeps_old_id(codex: &Path) {
        let lab = Lab::real(codex, json!([{"text": "a"}, {"text": "b"}]));
        let first = Cli::new(&lab, ["turn", "hi"]).run();
        assert_eq!(first.status, 0, "{first:?}");
        let old = lab.stored_thread().unwrap();
        let missing = Cli::new(&lab, ["turn", "--fresh", "--binary", "/no/codex", "hi"]).run();
        assert_eq!((missing.status, missing.stdout.as_str()), (1, ""), "{missing:?}");
        assert!(missing.stderr.contains("/no/codex"), "{missing:?}");
        assert_eq!(lab.stored_thread().unwrap(), old);
        let second = Cli::new(&lab, ["turn", "--fresh", "hi"]).run();
        assert_eq!((second.status, second.stdout.as_str()), (0, "b\n"), "{second:?}");
        assert_ne!(lab.stored_thread().unwrap(), old);
    }
}

real_codex! {
    fn ignores_closed_stdout(codex: &Path) {
        let lab = Lab::real(codex, json!([{"text": "a", "event_delay_ms": 50}, {"text": "b"}]));
        let mut child = Cli::new(&lab, ["turn", "--json", "hi"]).spawn();
        drop(child.stdin.take());
        // As `head -1` does: one line is read, then the pipe is closed.
        let mut stdout = child.stdout.take().unwrap();
        let mut byte = [0];
        while byte != *b"\n" {
            stdout.read_exact(&mut byte).unwrap();
        }
        drop(stdout);
        let status = cli::wait(&mut child, LIMIT);
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert!(!stderr.contains("panic") && !stderr.to_lowercase().contains("broken pipe"), "{stderr}");
        assert!(status.code().is_some(), "{status}");
        lab.assert_quiet();
    }
}

real_codex! {
    fn cancelled_turn_leaves_nothing(codex: &Path) {
        let lab = Lab::real(
            codex,
            json!([
                {"calls": [{"name": "exec_command", "arguments": {"cmd": "touch ../started; sleep 600", "yield_time_ms": 60_000}}]},
                {"text": "next"},
            ]),
        );
        let mut daemon = Daemon::start(&lab);
        let id = daemon.request(method::STREAM, Daemon::prompt(&lab, "hi"));
        wait_until("the command to start", || lab.path("started").exists());
        daemon.cancel(id);
        let turn = daemon.finish(id);
        assert_eq!(turn.stop_reason(), "cancelled");
        wait_until("all of the turn to be gone", || match lab.keeps_servers() {
            true => ps::of(lab.root()).iter().all(|process| !process.command.contains("sleep 600")),
            false => ps::of(lab.root()).len() == 1,
        });
        let thread = turn.thread().to_owned();
        let turn = daemon.turn(Daemon::prompt(&lab, "again"));
        assert_eq!((turn.text().as_str(), turn.thread()), ("next", thread.as_str()));
        assert_eq!(turn.result()["usage"]["input_tokens"], 100, "{turn:?}");
    }
}

real_codex! {
    fn signal_ends_turn_subcommand(codex: &Path) {
        for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143)] {
            let lab = Lab::real(
                codex,
                json!([{"calls": [{"name": "exec_command", "arguments": {"cmd": "touch ../started; sleep 600", "yield_time_ms": 60_000}}]}]),
            );
            let mut child = Cli::new(&lab, ["turn", "--json", "hi"]).spawn();
            drop(child.stdin.take());
            wait_until("the command to start", || lab.path("started").exists());
            ps::signal(child.id(), signal);
            let ended = cli::wait(&mut child, Duration::from_secs(10));
            assert_eq!(cli::shell_status(ended), status, "{ended}");
            assert!(ps::of(lab.root()).is_empty(), "{:?}", ps::of(lab.root()));
            let mut stdout = String::new();
            child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
            let (events, result) = events_and_result(&stdout);
            check_turn(&events);
            assert_eq!(result["stop_reason"], "cancelled");
        }
    }
}
