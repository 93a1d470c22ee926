//! `parse-rollout` from outside: what it makes of rollouts of both eras and of lines that codex would not
//! write, and the same for thousands of random ones, with serde_json as the judge.

use crate::support::cli::Output;
use crate::support::{Cli, LIMIT, Lab, cli};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};

/// A line as codex writes it; 0.135 has no ordinals.
fn line(ordinal: Option<usize>, kind: &str, payload: &str) -> String {
    let ordinal = ordinal.map_or(String::new(), |ordinal| format!(r#","ordinal":{ordinal}"#));
    format!(
        r#"{{"timestamp":"2026-11-21T12:07:52.075Z"{ordinal},"type":"{kind}","payload":{payload}}}"#
    )
}

/// The lines of a rollout as 0.148 and later write them.
fn rollout(items: &[(&str, Value)]) -> String {
    let lines = items
        .iter()
        .enumerate()
        .map(|(at, (kind, payload))| line(Some(at), kind, &payload.to_string()) + "\n");
    lines.collect()
}

fn call(id: &str, arguments: &str) -> (&'static str, Value) {
    let payload = json!({"type": "function_call", "name": "exec_command", "arguments": arguments, "call_id": id});
    ("response_item", payload)
}

fn output(id: &str, output: impl Into<Value>) -> (&'static str, Value) {
    let payload = json!({"type": "function_call_output", "call_id": id, "output": output.into()});
    ("response_item", payload)
}

fn told_use(id: &str, name: &str, input: Value) -> Value {
    json!({"type": "tool_use", "id": id, "name": name, "input": input})
}

fn told_result(id: &str, content: impl Into<Value>, is_error: bool) -> Value {
    json!({"type": "tool_result", "id": id, "content": content.into(), "is_error": is_error})
}

#[track_caller]
fn events(output: &Output) -> Vec<Value> {
    output.untimed_events()
}

/// A rollout with this text, from a file and from stdin, gives these events and says this.
#[track_caller]
fn check(flags: &[&str], rollout: impl AsRef<[u8]>, expected: &[Value], stderr: &str) {
    let lab = Lab::fake(Value::Null);
    let file = lab.path("rollout.jsonl");
    fs::write(&file, &rollout).unwrap();
    let command = || Cli::new(&lab, ["parse-rollout"].iter().chain(flags).copied());
    let of_file = command().arg(&file).run();
    assert_eq!(of_file.status, 0, "{of_file:?}");
    assert_eq!(events(&of_file), expected, "{of_file:?}");
    assert_eq!(of_file.told(&of_file.stderr), stderr);
    for more in [None, Some("-")] {
        let mut command = command().stdin(rollout.as_ref());
        if let Some(more) = more {
            command = command.arg(more);
        }
        let of_stdin = command.run();
        assert_eq!((of_stdin.status, &of_stdin.stdout), (0, &of_file.stdout));
        assert_eq!(
            of_stdin.stderr,
            stderr.replace("'<lab>/rollout.jsonl'", "stdin")
        );
    }
}

/// Recorded blocks of text and images as they are told. None of the images here is in its block.
fn told_content(recorded: &Value) -> Value {
    let block = |block: &Value| match block["type"].as_str() {
        Some("input_text") if block["text"].is_string() => {
            json!({"type": "text", "text": block["text"]})
        }
        Some("input_image") if block["image_url"].is_string() => {
            json!({"type": "image", "url": block["image_url"]})
        }
        _ => block.clone(),
    };
    recorded.as_array().unwrap().iter().map(block).collect()
}

#[test]
fn prints_calls_in_order_of_outputs() {
    let item = |name: &str, rest: Value| {
        let mut payload = json!({"type": name});
        payload
            .as_object_mut()
            .unwrap()
            .extend(rest.as_object().unwrap().clone());
        ("response_item", payload)
    };
    let text = |text: &str| json!([{"type": "input_text", "text": text}]);
    let items = [
        ("session_meta", json!({"id": "x", "cwd": "/"})),
        call("a", r#"{"cmd":"ls"}"#),
        call("b", "not JSON"),
        output("b", "Chunk ID: 1\nProcess exited with code 2\nOutput:\nno"),
        output(
            "a",
            "Chunk ID: 2\nProcess exited with code 0\nOutput:\nProcess exited with code 1",
        ),
        item(
            "custom_tool_call",
            json!({"name": "apply_patch", "input": "*** Begin \"Patch\"\n", "call_id": "c"}),
        ),
        item(
            "custom_tool_call_output",
            json!({"call_id": "c", "output": "Exit code: 1\nOutput:\n"}),
        ),
        item(
            "local_shell_call",
            json!({"call_id": "d", "action": {"type": "exec", "command": ["ls"]}}),
        ),
        output("d", "plain"),
        item(
            "tool_search_call",
            json!({"call_id": "e", "arguments": {"query": "x"}}),
        ),
        item(
            "tool_search_output",
            json!({"call_id": "e", "tools": [{"name": "y"}]}),
        ),
        item(
            "function_call",
            json!({"name": "send", "namespace": "mcp__host_a", "arguments": "{ }", "call_id": "f"}),
        ),
        (
            "event_msg",
            json!({"type": "item_completed", "thread_id": "t", "turn_id": "u", "item": {
            "type": "McpToolCall", "id": "f", "server": "host-a", "tool": "send", "status": "failed",
            "result": {"content": [], "isError": true}}}),
        ),
        output("f", text("Wall time: 0.1\nOutput:\n")),
        output("nobody", "asked"),
        call("unanswered", "{}"),
        ("a_type_to_come", json!({"call_id": "a", "type": 7})),
    ];
    let mut expected = vec![
        told_use("b", "exec_command", json!("not JSON")),
        told_result(
            "b",
            "Chunk ID: 1\nProcess exited with code 2\nOutput:\nno",
            true,
        ),
        told_use("a", "exec_command", json!({"cmd": "ls"})),
        told_result(
            "a",
            "Chunk ID: 2\nProcess exited with code 0\nOutput:\nProcess exited with code 1",
            false,
        ),
        told_use("c", "apply_patch", json!("*** Begin \"Patch\"\n")),
        told_result("c", "Exit code: 1\nOutput:\n", true),
        told_use(
            "d",
            "local_shell",
            json!({"type": "exec", "command": ["ls"]}),
        ),
        told_result("d", "plain", false),
        told_use("e", "tool_search", json!({"query": "x"})),
        told_result("e", r#"[{"name":"y"}]"#, false),
        json!({"type": "tool_use", "id": "f", "name": "send", "namespace": "mcp__host_a", "input": {}}),
        told_result("f", told_content(&text("Wall time: 0.1\nOutput:\n")), true),
    ];
    check(&[], rollout(&items), &expected, "");
    // Without ordinals, with what 0.135 says of an MCP call, and with the line ends of another system.
    let old: String = items
        .iter()
        .map(|(kind, payload)| match payload["type"].as_str() {
            Some("item_completed") => {
                let payload = json!({"type": "mcp_tool_call_end", "call_id": "f",
                    "invocation": {"server": "host-a", "tool": "send"}, "result": {"Err": "no"}});
                line(None, kind, &payload.to_string()) + "\r\n"
            }
            _ => line(None, kind, &payload.to_string()) + "\r\n",
        })
        .collect();
    check(&[], &old, &expected, "");
    // Without a last newline.
    check(&[], old.trim_end(), &expected, "");
    expected.push(told_use("unanswered", "exec_command", json!({})));
    check(&["--all"], rollout(&items), &expected, "");
}

#[test]
fn nested_calls_name_their_parent() {
    let nested = |id: &str, status: &str, started: u64| {
        (
            "event_msg",
            json!({"type": "item_completed", "thread_id": "t", "turn_id": "u",
            "item": {"type": "CommandExecution", "id": id, "command": ["ls"], "cwd": "/x",
                "status": status, "aggregated_output": "out", "exit_code": 0},
            "started_at_ms": started, "completed_at_ms": started + 1}),
        )
    };
    let outer = json!({"type": "custom_tool_call", "call_id": "outer", "name": "exec", "input": "await x()"});
    let over = json!({"type": "custom_tool_call_output", "call_id": "outer", "output": "Script completed\n"});
    let items = [
        ("response_item", outer),
        nested("exec-1", "completed", 1_795_262_872_075),
        nested("exec-2", "failed", 1_795_262_872_080),
        // Of the model's own commands the call and the output tell everything.
        nested("call_1", "completed", 1_795_262_872_090),
        ("response_item", over),
    ];
    let told = |id: &str| {
        json!({"type": "tool_use", "id": id, "name": "exec_command", "parent_id": "outer",
            "input": {"command": ["ls"], "cwd": "/x"}})
    };
    let expected = [
        told("exec-1"),
        told_result("exec-1", "out", false),
        told("exec-2"),
        told_result("exec-2", "out", true),
        told_use("outer", "exec", json!("await x()")),
        told_result("outer", "Script completed\n", false),
    ];
    check(&[], rollout(&items), &expected, "");

    // As 0.135 writes it: no time when it began, and its own name for a patch.
    let patch = |id: &str, success: bool| {
        let payload = json!({"type": "patch_apply_end", "call_id": id, "stdout": "out", "success": success,
            "changes": {"/x/a": {"type": "add", "content": "a"}}});
        ("event_msg", payload)
    };
    let items = [
        items[0].clone(),
        patch("exec-1", true),
        patch("exec-2", false),
        patch("call_1", true),
        items[4].clone(),
    ];
    let told = |id: &str| {
        json!({"type": "tool_use", "id": id, "name": "apply_patch", "parent_id": "outer",
            "input": {"changes": {"/x/a": {"type": "add", "content": "a"}}}})
    };
    let expected = [
        told("exec-1"),
        told_result("exec-1", "out", false),
        told("exec-2"),
        told_result("exec-2", "out", true),
        expected[4].clone(),
        expected[5].clone(),
    ];
    let old = items.map(|(kind, payload)| line(None, kind, &payload.to_string()) + "\n");
    check(&[], old.concat(), &expected, "");
}

#[test]
fn skips_and_counts_bad_lines() {
    let good = rollout(&[call("a", "{}"), output("a", "b")]);
    let (first, second) = good.split_once('\n').unwrap();
    let torn = &first[..first.len() - 9];
    let expected = [
        told_use("a", "exec_command", json!({})),
        told_result("a", "b", false),
    ];
    let skipped = |count: &str, place: &str| {
        format!("plexum-openai: '<lab>/rollout.jsonl': skipped {count} not JSON ({place})\n")
    };
    for (rollout, told) in [
        (
            format!("\n  \n{first}\n\n{second}\n\n").into_bytes(),
            String::new(),
        ),
        (
            format!("{first}\n{torn}\n{second}").into_bytes(),
            skipped("1 line that is", "line 2"),
        ),
        (
            format!("hello\n{first}\n{{}}}}\n{second}{torn}").into_bytes(),
            skipped("3 lines that are", "the first is line 1"),
        ),
        (
            [
                first.as_bytes(),
                b"\n",
                second.replace("\"b\"", "\"\u{e9}\"").as_bytes(),
            ]
            .concat()
            .into_iter()
            .filter(|byte| *byte != 0xC3)
            .chain(format!("\n{second}\n").bytes())
            .collect(),
            skipped("1 line that is", "line 2"),
        ),
        (
            format!(
                "{first}\n{}\n{second}\n",
                second.replace("\"b\"", "\"\\ud800\"")
            )
            .into_bytes(),
            skipped("1 line that is", "line 2"),
        ),
    ] {
        check(&[], &rollout, &expected, &told);
    }
}

#[test]
fn rejects_two_records_on_one_line() {
    let good = rollout(&[call("a", "{}"), output("a", "b")]);
    let told = "plexum-openai: '<lab>/rollout.jsonl': skipped 1 line that is not JSON (line 1)\n";
    check(&[], good.replacen("\n", "", 1), &[], told);
}

#[test]
fn reads_several_files_in_order() {
    let lab = Lab::fake(Value::Null);
    let (first, missing, second) = (lab.path("first"), lab.path("missing"), lab.path("second"));
    fs::write(&first, rollout(&[call("a", "{}"), output("a", "1")])).unwrap();
    fs::write(&second, rollout(&[call("b", "{}"), output("b", "2")])).unwrap();
    let output = Cli::new(&lab, ["parse-rollout"])
        .arg(&first)
        .arg(&missing)
        .arg(lab.root())
        .arg(&second)
        .run();
    let of = |file: &std::path::Path, event: Value| {
        let mut event = event;
        event["file"] = file.to_str().unwrap().into();
        event
    };
    let expected = [
        of(&first, told_use("a", "exec_command", json!({}))),
        of(&first, told_result("a", "1", false)),
        of(&second, told_use("b", "exec_command", json!({}))),
        of(&second, told_result("b", "2", false)),
    ];
    assert_eq!(events(&output), expected);
    assert_eq!(output.status, 1);
    assert_eq!(
        output.told(&output.stderr),
        "plexum-openai: cannot open '<lab>/missing': No such file or directory\n\
         plexum-openai: cannot read '<lab>': Is a directory\n"
    );
}

#[test]
fn filters_calls_by_tool_and_errors() {
    let send = |id: &str| {
        let payload =
            json!({"type": "function_call", "name": "send", "arguments": "{}", "call_id": id});
        ("response_item", payload)
    };
    let failed = "Exit code: 1\nOutput:\n";
    let text = rollout(&[
        call("a", "{}"),
        send("b"),
        output("b", "sent"),
        output("a", failed),
        call("c", "{}"),
        output("c", "well"),
        send("d"),
    ]);
    let a = [
        told_use("a", "exec_command", json!({})),
        told_result("a", failed, true),
    ];
    let b = [
        told_use("b", "send", json!({})),
        told_result("b", "sent", false),
    ];
    check(&["--errors"], &text, &a, "");
    check(&["--tool", "send"], &text, &b, "");
    check(&["--tool", "send", "--errors"], &text, &[], "");
    check(&["--tool", "none", "--all"], &text, &[], "");
    let with_open = [&b[..], &[told_use("d", "send", json!({}))]].concat();
    check(&["--tool", "send", "--all"], &text, &with_open, "");

    let lab = Lab::fake(Value::Null);
    fs::write(lab.path("rollout"), &text).unwrap();
    for (flags, ids) in [
        (&["--tool", "exec_command"][..], &["a", "c"][..]),
        (&["--errors"], &["a"]),
        (&["--errors", "--all"], &["a"]),
        (&["--tool", "send", "--all"], &["b", "d"]),
    ] {
        let told = Cli::new(&lab, ["parse-rollout", "--summary", "--json"])
            .args(flags)
            .arg(lab.path("rollout"))
            .run();
        let summary: Value = serde_json::from_str(&told.stdout).unwrap();
        let calls = summary["calls"].as_array().unwrap().iter();
        let mut found: Vec<&str> = calls.map(|call| call["id"].as_str().unwrap()).collect();
        found.sort_unstable();
        assert_eq!(found, ids, "{flags:?}");
    }
}

#[test]
fn finds_rollout_by_thread_and_workspace() {
    let lab = Lab::fake(Value::Null);
    let thread = "01a1fd57-0000-7000-a000-000000000001";
    let directory = lab.codex_home().join("archived_sessions");
    fs::create_dir_all(&directory).unwrap();
    let text = rollout(&[
        ("session_meta", json!({"id": thread})),
        call("a", "{}"),
        output("a", "1"),
    ]);
    fs::write(
        directory.join(format!("rollout-2026-11-21T12-00-00-{thread}.jsonl")),
        text,
    )
    .unwrap();
    fs::write(lab.session_file(), format!("{thread}\n")).unwrap();
    for arguments in [
        ["--thread", thread],
        ["--workspace", lab.workspace().to_str().unwrap()],
    ] {
        let output = Cli::new(&lab, ["parse-rollout"])
            .arg(arguments[0])
            .arg(arguments[1])
            .run();
        assert_eq!((output.status, events(&output).len()), (0, 2), "{output:?}");
    }
    let both = Cli::new(&lab, ["parse-rollout", "--thread", thread, "file"]).run();
    assert_eq!((both.status, both.stdout.as_str()), (2, ""));
    assert!(both.stderr.contains("'--thread'"), "{both:?}");
    let none = Cli::new(
        &lab,
        [
            "parse-rollout",
            "--thread",
            "01a1fd57-0000-7000-a000-000000000002",
        ],
    )
    .run();
    assert_eq!((none.status, none.stdout.as_str()), (1, ""), "{none:?}");
}

#[test]
fn summary_is_sorted_by_size() {
    let lab = Lab::fake(Value::Null);
    let file = lab.path("rollout.jsonl");
    let items = [
        call("small", r#"{"cmd":"ls"}"#),
        output("small", "0123456789"),
        call("big", "{}"),
        output("big", "x".repeat(989)),
        call("consumed", "{}"),
        output("consumed", "...(consumed)"),
        call("open", "{}"),
    ];
    fs::write(&file, rollout(&items)).unwrap();
    let summary = |more: &[&str]| {
        let output = Cli::new(&lab, ["parse-rollout", "--summary"].iter().chain(more))
            .arg(&file)
            .run();
        assert_eq!((output.status, output.stderr.as_str()), (0, ""));
        output.stdout
    };
    assert_eq!(
        summary(&[]),
        "call      tool            args  output   share\n\
         big       exec_command       2     989   96.4%  ████████████\n\
         small     exec_command      12      10    2.1%  ▎\n\
         consumed  exec_command       2      13    1.5%  ▏             light\n\
         3 calls: 16 bytes of arguments, 1.0K of output, 1 consumed\n"
    );
    let output = Cli::new(&lab, ["parse-rollout", "--summary"])
        .arg(&file)
        .env("COLUMNS", "100")
        .run();
    assert!(
        output
            .stdout
            .contains("2.1%  ▎                    {\"cmd\":\"ls\"}\n"),
        "{}",
        output.stdout
    );
    assert_eq!(
        summary(&["--by", "tool", "--all"]),
        "calls  tool            args  output   share\n\
         4      exec_command      18    1.0K  100.0%  ████████████\n\
         4 calls: 18 bytes of arguments, 1.0K of output, 1 consumed\n"
    );
    let told: Value = serde_json::from_str(&summary(&["--by", "tool", "--json"])).unwrap();
    assert_eq!(
        told,
        json!({
            "tools": [{"name": "exec_command", "calls": 3, "arguments_bytes": 16, "output_bytes": 1012, "share": 1.0}],
            "total": {"calls": 3, "arguments_bytes": 16, "output_bytes": 1012, "consumed": 1},
        })
    );
    let told: Value = serde_json::from_str(&summary(&["--json", "--all"])).unwrap();
    let ids: Vec<&Value> = told["calls"]
        .as_array()
        .unwrap()
        .iter()
        .map(|call| &call["id"])
        .collect();
    assert_eq!(ids, ["big", "small", "consumed", "open"]);
    assert_eq!(
        told["total"],
        json!({"calls": 4, "arguments_bytes": 18, "output_bytes": 1012, "consumed": 1})
    );
    assert_eq!(told["calls"][2]["consumed"], "light");
    assert_eq!(told["calls"][1]["arguments"], r#"{"cmd":"ls"}"#);
}

#[test]
fn keeps_order_in_large_file() {
    // Of every size that fits a block, once and many times, or goes over one; the last line has no newline.
    let sizes = [1, 70, 900, 70_000, 5, 1 << 20, 3000, 400_000, 12, 2 << 20];
    let (mut text, mut expected) = (String::new(), Vec::new());
    let mut bad = 0;
    for round in 0..100 {
        let id = format!("call_{round}");
        let size = sizes[round % sizes.len()] / (1 + round / 25);
        let content = format!("{size} {}", "\u{e9}\n\"".repeat(size / 4));
        let input = json!({"cmd": round});
        let call = call(&id, &input.to_string());
        let message = json!({"type": "agent_message", "message": "m".repeat(size)});
        let output = output(&id, content.clone());
        text += &rollout(&[call, ("event_msg", message), output]);
        expected.push(told_use(&id, "exec_command", input));
        expected.push(told_result(&id, content, false));
        if round % 7 == 0 {
            // Torn, of a kind that is read and of one that is not.
            text += &line(None, "response_item", r#"{"type":"function_call","name":"#)[..90];
            text += "\n";
            text += &line(None, "event_msg", r#"{"type":"agent_message","message":"#)[..90];
            text += "\n";
            bad += 2;
        }
    }
    text.truncate(text.trim_end().len());
    let number = text
        .lines()
        .position(|line| !line.trim().is_empty() && !line.ends_with('}'));
    let first = number.unwrap() + 1;
    let stderr = format!(
        "plexum-openai: '<lab>/rollout.jsonl': skipped {bad} lines that are not JSON (the first is line {first})\n"
    );
    check(&[], &text, &expected, &stderr);
}

#[test]
fn ignores_closed_stdout() {
    let lab = Lab::fake(Value::Null);
    let file = lab.path("rollout.jsonl");
    // Some of it is read by one thread alone, more by two.
    let items: Vec<_> = (0..800)
        .flat_map(|number| {
            let id = format!("call_{number}");
            [call(&id, "{}"), output(&id, "x".repeat(10_000))]
        })
        .collect();
    fs::write(&file, rollout(&items)).unwrap();
    for flags in [&[][..], &["--all"]] {
        let mut child = Cli::new(&lab, ["parse-rollout"].iter().chain(flags))
            .arg(&file)
            .spawn();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut first = String::new();
        stdout.read_line(&mut first).unwrap();
        drop(stdout);
        let status = cli::wait(&mut child, LIMIT);
        let mut stderr = String::new();
        std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut stderr).unwrap();
        assert_eq!((status.code(), stderr.as_str()), (Some(0), ""));
        assert_eq!(
            serde_json::from_str::<Value>(&first).unwrap()["id"],
            "call_0"
        );
    }
}

#[test]
fn prints_available_calls_before_end_of_input() {
    let lab = Lab::fake(Value::Null);
    let mut child = Cli::new(&lab, ["parse-rollout"]).spawn();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    for number in 0..3 {
        let id = format!("call_{number}");
        let text = rollout(&[call(&id, "{}"), output(&id, "x")]);
        std::io::Write::write_all(&mut stdin, text.as_bytes()).unwrap();
        for kind in ["tool_use", "tool_result"] {
            let mut told = String::new();
            stdout.read_line(&mut told).unwrap();
            let told: Value = serde_json::from_str(&told).unwrap();
            assert_eq!((&told["type"], &told["id"]), (&json!(kind), &json!(id)));
        }
    }
    drop(stdin);
    assert!(cli::wait(&mut child, LIMIT).success());
}

/// A generator of numbers that look random, the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        // xorshift64*, of which the upper bits are good enough here.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        usize::try_from(high).expect("31 bits") % sides
    }

    fn one_in(&mut self, sides: usize) -> bool {
        self.roll(sides) == 0
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.roll(choices.len())]
    }

    /// Text with everything that a JSON string has its own way of writing.
    fn text(&mut self) -> String {
        const PARTS: &[&str] = &[
            "plain",
            " ",
            "\n",
            "\t",
            "\"",
            "\\",
            "\\\\",
            "\\\"",
            "\r\n",
            "\u{1b}[31m",
            "\u{e9}",
            "\u{800}",
            "\u{ffff}",
            "\u{1f389}",
            "/",
            "\u{7f}",
            "{\"a\":1}",
            "\\u0041",
            "\u{0}",
            "sixteen letters.",
        ];
        let length = match self.roll(10) {
            0 => 0,
            1..6 => self.roll(6),
            6..9 => self.roll(80),
            _ => self.roll(3000),
        };
        (0..length).map(|_| self.of(PARTS)).collect()
    }

    /// The same string, written in another way.
    fn write_string(&mut self, out: &mut String, text: &str) {
        if !self.one_in(4) {
            out.push_str(&json!(text).to_string());
            return;
        }
        out.push('"');
        for char in text.chars() {
            if matches!(char, '"' | '\\' | ..' ') || self.one_in(6) {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    if self.one_in(2) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    } else {
                        out.push_str(&format!("\\u{unit:04X}"));
                    }
                }
            } else {
                out.push(char);
            }
        }
        out.push('"');
    }

    fn blank(&mut self, out: &mut String) {
        while self.one_in(12) {
            out.push(self.of(&[' ', '\t', '\r']));
        }
    }

    /// The same value with its keys in another order, blanks between its parts, its strings written otherwise.
    fn write(&mut self, out: &mut String, value: &Value) {
        self.blank(out);
        match value {
            Value::String(text) => self.write_string(out, text),
            Value::Array(list) => {
                out.push('[');
                for (at, value) in list.iter().enumerate() {
                    if at > 0 {
                        out.push(',');
                    }
                    self.write(out, value);
                }
                self.blank(out);
                out.push(']');
            }
            Value::Object(object) => {
                let mut keys: Vec<&String> = object.keys().collect();
                for at in (1..keys.len()).rev() {
                    keys.swap(at, self.roll(at + 1));
                }
                let mut before = '{';
                for key in keys {
                    out.push(before);
                    before = ',';
                    // Of a key that stands twice the last one counts.
                    if key != "type" && self.one_in(20) {
                        self.write_string(out, key);
                        out.push_str(":[\"}\\\"{\"],");
                    }
                    self.blank(out);
                    self.write_string(out, key);
                    self.blank(out);
                    out.push(':');
                    self.write(out, &object[key]);
                }
                if before == '{' {
                    out.push('{');
                }
                self.blank(out);
                out.push('}');
            }
            plain => out.push_str(&plain.to_string()),
        }
        self.blank(out);
    }

    fn record(&mut self) -> Value {
        let id = format!("call_{}", self.roll(6));
        let content = match self.roll(4) {
            0 => {
                json!([{"type": "input_text", "text": self.text()}, {"type": "input_image", "image_url": self.text()}])
            }
            1 => {
                json!(format!(
                    "Exit code: {}\nOutput:\n{}",
                    self.roll(2),
                    self.text()
                ))
            }
            _ => json!(self.text()),
        };
        let arguments = match self.roll(3) {
            0 => self.text(),
            1 => json!({"cmd": self.text(), "more": [1.5, null, true]}).to_string(),
            _ => " {}\n".to_owned(),
        };
        let (kind, payload) = match self.roll(10) {
            0..3 => (
                "response_item",
                json!({"type": "function_call", "name": self.text(), "arguments": arguments, "call_id": id}),
            ),
            3 => (
                "response_item",
                json!({"type": "function_call", "name": "x", "namespace": "mcp__y", "arguments": arguments, "call_id": id}),
            ),
            4 => (
                "response_item",
                json!({"type": "custom_tool_call", "name": "x", "input": self.text(), "call_id": id}),
            ),
            5..8 => (
                "response_item",
                json!({"type": "function_call_output", "call_id": id, "output": content}),
            ),
            8 => (
                "response_item",
                json!({"type": "custom_tool_call_output", "call_id": id, "output": content}),
            ),
            _ => (
                self.of(&["response_item", "event_msg", "unheard_of"]),
                json!({"type": self.of(&["reasoning", "agent_message", "function_call_x"]), "call_id": id, "output": content}),
            ),
        };
        json!({"timestamp": "2026-11-21T12:07:52.075Z", "ordinal": self.roll(1000), "type": kind, "payload": payload,
            "metadata": {"type": "function_call", "payload": {"type": "function_call"}, "more": self.text()}})
    }

    /// A line of codex's, or one that says the same otherwise, or one that was damaged; each without a newline.
    fn line(&mut self) -> Vec<u8> {
        let record = self.record();
        let mut text = String::new();
        if self.one_in(3) {
            self.write(&mut text, &record);
        } else {
            // The order of keys that codex has; serde_json's is the alphabet's.
            let mut payload = record["payload"].clone();
            let kind = payload
                .as_object_mut()
                .and_then(|payload| payload.remove("type"))
                .expect("a type");
            let rest = payload.to_string();
            text = format!(
                r#"{{"timestamp":{},"ordinal":{},"type":{},"payload":{{"type":{kind},{},"metadata":{}}}"#,
                record["timestamp"],
                record["ordinal"],
                record["type"],
                &rest[1..],
                record["metadata"],
            );
        }
        let mut bytes = text.into_bytes();
        if self.one_in(5) {
            // Not in the head, so that it is still known whether the line is to be read.
            let head = 150.min(bytes.len() - 1);
            let at = head + self.roll(bytes.len() - head);
            match self.roll(4) {
                0 => bytes.truncate(at),
                1 => bytes[at] = self.of(b"\"\\{},:x\x01\x80\xC3\xED\xF4"),
                2 => {
                    bytes.remove(at);
                }
                _ => bytes.insert(at, self.of(b"\"\\{},:u\x1f\xA0\xE2")),
            }
            bytes.retain(|byte| *byte != b'\n');
        }
        bytes
    }
}

/// What the lines say, found by parsing every one of them.
fn reference(lines: &[Vec<u8>]) -> Vec<Value> {
    let mut open: HashMap<String, Vec<Value>> = HashMap::new();
    let mut events = Vec::new();
    for line in lines {
        let Ok(record) = serde_json::from_slice::<Value>(line) else {
            continue;
        };
        let payload = &record["payload"];
        let (Some("response_item"), Some(kind)) =
            (record["type"].as_str(), payload["type"].as_str())
        else {
            continue;
        };
        let Some(id) = payload["call_id"].as_str() else {
            continue;
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        match kind {
            "function_call" | "custom_tool_call" => {
                let input = match (kind, &payload["arguments"]) {
                    ("custom_tool_call", _) => payload["input"].clone(),
                    (_, Value::String(arguments)) => {
                        serde_json::from_str(arguments).unwrap_or(json!(arguments))
                    }
                    (_, arguments) => arguments.clone(),
                };
                let mut told = told_use(id, &text(&payload["name"]), input);
                if let Some(namespace) = payload["namespace"].as_str() {
                    told["namespace"] = json!(namespace);
                }
                open.entry(id.to_owned()).or_default().push(told);
            }
            "function_call_output" | "custom_tool_call_output" => {
                let Some(queue) = open.get_mut(id).filter(|queue| !queue.is_empty()) else {
                    continue;
                };
                let output = &payload["output"];
                let first = output.as_str().and_then(|output| output.lines().next());
                let code = first.and_then(|first| first.strip_prefix("Exit code: "));
                let is_error = code.is_some_and(|code| code != "0");
                let content = match output {
                    Value::String(_) => output.clone(),
                    Value::Array(_) => told_content(output),
                    Value::Null => json!(""),
                    other => json!(other.to_string()),
                };
                events.push(queue.remove(0));
                events.push(told_result(id, content, is_error));
            }
            _ => {}
        }
    }
    events
}

#[test]
fn agrees_with_serde_json_on_random_lines() {
    let lab = Lab::fake(Value::Null);
    let file = lab.path("rollout.jsonl");
    let mut told = 0;
    for seed in 1..=8 {
        let mut dice = Dice(seed);
        let lines: Vec<Vec<u8>> = (0..1500).map(|_| dice.line()).collect();
        let mut text = lines.join(&b'\n');
        text.push(b'\n');
        fs::write(&file, text).unwrap();
        let output = Cli::new(&lab, ["parse-rollout"]).arg(&file).run();
        assert_eq!(output.status, 0, "{output:?}");
        let (found, expected) = (events(&output), reference(&lines));
        let same = found
            .iter()
            .zip(&expected)
            .take_while(|(found, expected)| found == expected);
        let same = same.count();
        assert!(
            same == expected.len() && same == found.len(),
            "seed {seed}: event {same} is\n{:.2000}\nand not\n{:.2000}",
            found.get(same).map_or(String::new(), Value::to_string),
            expected.get(same).map_or(String::new(), Value::to_string),
        );
        told += same;
    }
    assert!(told > 5000, "{told} events are too few to show anything");
}

// fault: 96
#[test]
fn rejects_files_that_are_not_rollouts() {
    for (bytes, told) in [
        (b"".as_slice(), "it is empty"),
        (b"\n \n", "it is empty"),
        (b"[{\"a\":1}]\n", "it seems to be JSON, but not one object per line"),
        (b"{\n  \"a\": 1\n}\n", "it seems to be JSON, but not one object per line"),
        (b"{\"a\":1}\n", "it seems to be JSON, but not of a rollout"),
        (b"not a rollout\nat all\n", "it seems to be plain text"),
        (b"\x89PNG\r\n\x1a\n\0\0", "it seems to be an image"),
        (b"\x28\xb5\x2f\xfd\x04\0", "it is compressed with zstd; 'zstd -dc' decompresses it"),
        (
            b"{\"type\":\"thread.started\",\"thread_id\":\"x\"}\n{\"type\":\"turn.started\"}\n",
            "it seems to be the output of 'codex exec --json', which is not a rollout",
        ),
        (
            b"{\"id\":\"x\",\"timestamp\":\"2025\",\"instructions\":null}\n{\"record_type\":\"state\"}\n{\"type\":\"function_call\",\"id\":\"fc_1\",\"name\":\"shell\",\"arguments\":\"{}\",\"call_id\":\"a\"}\n",
            "it seems to be a rollout of a codex from before September 2025, whose lines have no payload; no supported version of codex resumes it",
        ),
    ] {
        let lab = Lab::fake(Value::Null);
        let file = lab.path("it.jsonl");
        fs::write(&file, bytes).unwrap();
        for flags in [["parse-rollout"].as_slice(), &["parse-rollout", "--all"]] {
            let output = Cli::new(&lab, flags.iter().copied()).arg(&file).run();
            let expected = format!("plexum-openai: '<lab>/it.jsonl' is not a rollout: {told}\n");
            assert_eq!(output.told(&output.stderr), expected);
            assert_eq!((output.status, output.stdout.as_str()), (1, ""));
        }
        let piped = Cli::new(&lab, ["parse-rollout"]).stdin(bytes).run();
        assert_eq!(piped.stderr, format!("plexum-openai: stdin is not a rollout: {told}\n"));
        assert_eq!(piped.status, 1);
        for more in [["--dry-run", "a"].as_slice(), &["a"]] {
            let mutate = Cli::new(&lab, ["mutate", "--rollout"]).arg(&file).args(more).run();
            let expected = format!("plexum-openai: '<lab>/it.jsonl' is not a rollout: {told}\n");
            assert_eq!(mutate.told(&mutate.stderr), expected);
            assert_eq!((mutate.status, mutate.stdout.as_str()), (1, ""));
        }
        assert_eq!(fs::read(&file).unwrap(), bytes);
    }
    // One without calls is one all the same.
    check(
        &[],
        rollout(&[("session_meta", json!({"id": "x"}))]),
        &[],
        "",
    );
}

const PACKED: &str = "01990000-0000-7000-8000-000000000001";

/// A lab with this in place of a thread's packed rollout.
fn with_packed(place: impl FnOnce(&std::path::Path)) -> Lab {
    let lab = Lab::fake(Value::Null);
    let directory = lab.codex_home().join("sessions/2025/08/31");
    fs::create_dir_all(&directory).unwrap();
    place(&directory.join(format!("rollout-2025-08-31T10-00-00-{PACKED}.jsonl.zst")));
    fs::write(lab.session_file(), PACKED).unwrap();
    lab
}

// fault: 76, 119
#[test]
fn reads_packed_rollout() {
    let Some(zstd) = crate::programs::find("zstd") else {
        return;
    };
    let text = rollout(&[call("a", "{}"), output("a", "b")]);
    let lab = with_packed(|path| {
        fs::write(path.with_extension(""), &text).unwrap();
        let packed = std::process::Command::new(zstd)
            .args(["-q", "--rm"])
            .arg(path.with_extension(""))
            .status();
        assert!(packed.unwrap().success() && path.exists());
    });
    let path = lab.codex_home().join(format!(
        "sessions/2025/08/31/rollout-2025-08-31T10-00-00-{PACKED}.jsonl.zst"
    ));
    let by_path = [path.to_str().unwrap()];
    for flags in [&["--workspace", "."][..], &["--thread", PACKED], &by_path] {
        let told = Cli::new(&lab, ["parse-rollout"]).args(flags).run();
        let expected = [
            told_use("a", "exec_command", json!({})),
            told_result("a", "b", false),
        ];
        assert_eq!((told.status, told.stderr.as_str()), (0, ""));
        assert_eq!(events(&told), expected);
    }
    let none = Cli::new(&lab, ["parse-rollout", "--thread", PACKED])
        .env("PATH", "/nonexistent")
        .run();
    assert_eq!(none.status, 1);
    assert!(
        none.stderr.contains(
            "is compressed and must be read through 'zstd', which is not in PATH; install zstd"
        ),
        "{none:?}"
    );
}

// fault: 76, 119
#[test]
fn rejects_packed_rollout_that_is_not_a_file() {
    let fifo = |path: &std::path::Path| {
        rustix::fs::mknodat(
            rustix::fs::CWD,
            path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
    };
    for (lab, why) in [
        (
            with_packed(|path| std::os::unix::fs::symlink("/dev/zero", path).unwrap()),
            "it is a symbolic link, not a regular file",
        ),
        (
            with_packed(fifo),
            "it is a pipe or a device, not a regular file",
        ),
        (
            with_packed(|path| fs::create_dir(path).unwrap()),
            "it is a directory, not a regular file",
        ),
    ] {
        let told = Cli::new(&lab, ["parse-rollout", "--thread", PACKED]).run();
        assert_eq!((told.status, told.stdout.as_str()), (1, ""));
        assert!(
            told.stderr.ends_with(&format!("jsonl.zst': {why}\n")),
            "{told:?}"
        );
    }
    if crate::programs::find("zstd").is_some() {
        let lab = with_packed(|path| fs::write(path, b"\x28\xb5\x2f\xfd\x04 damaged").unwrap());
        let told = Cli::new(&lab, ["parse-rollout", "--thread", PACKED]).run();
        assert_eq!(told.status, 1);
        assert!(
            told.stderr.contains("'zstd' cannot decompress all of it"),
            "{told:?}"
        );
    }
}

/// Whoever names a FIFO means it.
#[test]
fn reads_named_fifos() {
    let lab = Lab::fake(Value::Null);
    fs::write(
        lab.path("rollout.jsonl"),
        rollout(&[call("a", "{}"), output("a", "b")]),
    )
    .unwrap();
    let script = "mkfifo fifo && (cat rollout.jsonl > fifo &) && \"$0\" parse-rollout fifo && \"$0\" parse-rollout <(cat rollout.jsonl)";
    let told = std::process::Command::new("bash")
        .args(["-c", script, env!("CARGO_BIN_EXE_plexum-openai")])
        .current_dir(lab.root())
        .output()
        .unwrap();
    assert!(told.status.success(), "{told:?}");
    assert_eq!(told.stdout.iter().filter(|byte| **byte == b'\n').count(), 4);
}

/// A message as codex records it.
fn message(role: &str, text: &str) -> (&'static str, Value) {
    let kind = if role == "user" {
        "input_text"
    } else {
        "output_text"
    };
    let payload =
        json!({"type": "message", "role": role, "content": [{"type": kind, "text": text}]});
    ("response_item", payload)
}

#[test]
fn prints_messages_among_calls_with_times() {
    let lab = Lab::fake(Value::Null);
    let file = lab.path("rollout.jsonl");
    let items = [
        message("developer", "be brief"),
        message("user", "# AGENTS.md instructions for /x\n\n<INSTRUCTIONS>"),
        message("user", "list \"it\""),
        message("assistant", "I will."),
        call("a", "{}"),
        output("a", "b"),
    ];
    fs::write(&file, rollout(&items)).unwrap();
    let output = Cli::new(&lab, ["parse-rollout", "--messages"])
        .arg(&file)
        .run();
    let time = r#","time":"2026-11-21T12:07:52.075Z"}"#;
    let expected = [
        r#"{"type":"message","role":"user","text":"list \"it\"""#,
        r#"{"type":"message","role":"assistant","text":"I will.""#,
        r#"{"type":"tool_use","id":"a","name":"exec_command","input":{}"#,
        r#"{"type":"tool_result","id":"a","content":"b","is_error":false"#,
    ];
    let expected: String = expected
        .iter()
        .map(|event| format!("{event}{time}\n"))
        .collect();
    assert_eq!((output.stdout, output.stderr), (expected, String::new()));
}

/// Also where the file is replaced meanwhile, as consuming a call does it, and until the reader leaves.
#[test]
fn follows_growing_rollout() {
    let lab = Lab::fake(Value::Null);
    let file = lab.path("rollout-2026-11-21T12-06-56-01a1fd57-0000-7000-a000-000000000009.jsonl");
    let meta = (
        "session_meta",
        json!({"id": "01a1fd57-0000-7000-a000-000000000009"}),
    );
    let begin = rollout(&[
        meta,
        call("a", r#"{"cmd":"ls"}"#),
        output("a", "x".repeat(100)),
    ]);
    fs::write(&file, &begin).unwrap();
    let mut child = Cli::new(&lab, ["parse-rollout", "--follow"])
        .arg(&file)
        .spawn();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || -> (String, String) {
        let event: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        let text = |name: &str| event[name].as_str().unwrap().to_owned();
        (text("type"), text("id"))
    };
    let both = |id: &str| ["tool_use", "tool_result"].map(|kind| (kind.to_owned(), id.to_owned()));
    assert_eq!([next(), next()], both("a"));
    let append = |text: &str| {
        use std::io::Write;
        let mut file = fs::OpenOptions::new().append(true).open(&file).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    let more = rollout(&[call("b", "{}"), output("b", "2")]);
    let (half, rest) = more.split_at(more.len() - 20);
    append(half);
    append(rest);
    assert_eq!([next(), next()], both("b"));
    let consumed = Cli::new(&lab, ["mutate", "a", "--rollout"])
        .arg(&file)
        .run();
    assert_eq!(consumed.status, 0, "{consumed:?}");
    append(&rollout(&[call("c", "{}"), output("c", "3")]));
    assert_eq!([next(), next()], both("c"));
    drop(lines);
    let status = cli::wait(&mut child, LIMIT);
    assert_eq!(status.code(), Some(0), "the reader has gone");
}

#[test]
fn prints_no_message_unasked() {
    let lab = Lab::fake(Value::Null);
    // Not in the order and without the spaces that codex writes: only the whole record shows what it is.
    let line = r#"{ "payload": {"content": [{"text": "hi"}], "role": "user", "type": "message"}, "type": "response_item" }"#;
    let messages = |arguments: &[&str]| {
        let run = Cli::new(&lab, ["parse-rollout"]).args(arguments);
        run.stdin(format!("{line}\n")).run().stdout
    };
    assert_eq!(messages(&[]), "");
    assert_eq!(messages(&["--errors", "--all"]), "");
    let expected = "{\"type\":\"message\",\"role\":\"user\",\"text\":\"hi\"}\n";
    assert_eq!(messages(&["--messages"]), expected);
}

#[test]
fn summarizes_no_unreadable_rollout() {
    let lab = Lab::fake(Value::Null);
    let file = lab.path("text");
    fs::write(&file, "text\n").unwrap();
    let output = Cli::new(&lab, ["parse-rollout", "--summary"])
        .arg(&file)
        .run();
    assert_eq!((output.status, output.stdout.as_str()), (1, ""));
    assert!(output.stderr.contains("is not a rollout"), "{output:?}");
}

#[test]
fn rejects_contradicting_flags() {
    let lab = Lab::fake(Value::Null);
    for (arguments, told) in [
        (
            &["--summary", "--messages"][..],
            "cannot be used with '--summary' or '--by'",
        ),
        (
            &["--by", "tool", "--follow"],
            "cannot be used with '--summary' or '--by'",
        ),
        (
            &["--by", "size"],
            "'--by size' is neither 'call' nor 'tool'",
        ),
        (
            &["--follow", "a", "b"],
            "'--follow' accepts only one rollout",
        ),
        (&["--follow", "a.jsonl.zst"], "cannot read a packed rollout"),
        (&["-w", ".", "a"], "both name a rollout: give one of them"),
    ] {
        let output = Cli::new(&lab, ["parse-rollout"]).args(arguments).run();
        assert_eq!((output.status, output.stdout.as_str()), (2, ""));
        assert!(output.stderr.contains(told), "{}", output.stderr);
    }
}
