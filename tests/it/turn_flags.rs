//! The flags of `turn`, for scripts and for people.

use crate::support::codex::real_codex;
use crate::support::{Cli, Lab, wait_until};
use serde_json::{Value, json};
use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

fn lab() -> Lab {
    let event = |event: Value| json!({"event": event});
    let item = |item: Value| event(json!({"type": "item.completed", "item": item}));
    let lab = Lab::fake(Value::Null);
    let printed: String = (1..=12).map(|line| format!("line {line}\n")).collect();
    lab.script(json!([
        "read_stdin",
        event(
            json!({"type": "thread.started", "thread_id": "01a1fe00-a027-7a81-b8a0-356e91ab6908"})
        ),
        event(json!({"type": "turn.started"})),
        item(json!({"id": "e", "type": "error", "message": "odd"})),
        item(json!({"id": "r", "type": "reasoning", "text": "hmm"})),
        item(json!({"id": "m", "type": "agent_message", "text": "on my way"})),
        item(
            json!({"id": "c", "type": "command_execution", "command": "awk '{print $1}'",
            "aggregated_output": printed, "exit_code": 0, "status": "completed"})
        ),
        item(json!({"id": "n", "type": "agent_message", "text": "the title"})),
        event(json!({"type": "turn.completed", "usage": {"input_tokens": 10, "output_tokens": 1}})),
    ]));
    lab
}

fn ask(lab: &Lab, arguments: &[&str]) -> (String, String, i32) {
    let output = Cli::new(lab, ["turn", "hi"]).args(arguments).run();
    (output.stdout, output.stderr, output.status)
}

#[test]
fn verbosity_selects_lines_on_stderr() {
    let lab = lab();
    let (stdout, stderr, _) = ask(&lab, &[]);
    assert_eq!(stdout, "on my way\n\nthe title\n");
    assert!(stderr.contains("$ awk '{print $1}'"), "{stderr}");
    assert!(stderr.contains("warning: codex: odd"), "{stderr}");
    assert!(
        !stderr.contains("line 1") && !stderr.contains("hmm"),
        "{stderr}"
    );
    let (stdout, stderr, _) = ask(&lab, &["-v"]);
    assert_eq!(stdout, "on my way\n\nthe title\n");
    assert!(
        stderr.contains("| line 1\n") && stderr.contains("| line 12\n"),
        "{stderr}"
    );
    assert!(stderr.contains("| hmm\n"), "{stderr}");
    let (stdout, stderr, _) = ask(&lab, &["--quiet"]);
    assert_eq!(
        (stdout.as_str(), stderr.as_str()),
        ("on my way\n\nthe title\n", "")
    );
    let (stdout, stderr, status) = ask(&lab, &["--json"]);
    assert_eq!(stderr, "plexum-openai: warning: codex: odd\n");
    assert_eq!((stdout.lines().count(), status), (5, 0), "{stdout}");
}

#[test]
fn last_prints_only_last_message() {
    let (stdout, stderr, status) = ask(&lab(), &["--last", "-q"]);
    assert_eq!(
        (stdout.as_str(), stderr.as_str(), status),
        ("the title\n", "", 0)
    );
}

#[test]
fn reports_error_once_in_each_verbosity() {
    let lab = Lab::fake(json!([
        {"event": {"type": "thread.started", "thread_id": "01a1fe00-a027-7a81-b8a0-356e91ab6908"}},
        {"event": {"type": "error", "message": "no such luck"}},
        {"event": {"type": "turn.failed", "error": {"message": "no such luck"}}},
        {"exit": 1},
    ]));
    for (flags, expected) in [(&["-q"][..], 1), (&[], 1), (&["-v"], 1), (&["--json"], 0)] {
        let (_, stderr, status) = ask(&lab, flags);
        assert_eq!(
            stderr.matches("no such luck").count(),
            expected,
            "{flags:?}: {stderr}"
        );
        assert_eq!(status, 1);
    }
}

#[test]
fn dash_appends_stdin_to_prompt() {
    let lab = Lab::fake(Value::Null);
    let prompt = |arguments: &[&str], stdin: &str| {
        let output = Cli::new(&lab, ["turn", "--fresh"])
            .args(arguments)
            .stdin(stdin)
            .run();
        (lab.fake_prompts().pop().unwrap(), output.stderr)
    };
    let (asked, _) = prompt(&["A title:", "-"], "one\ntwo\n");
    assert_eq!(asked, "A title:\n\n<stdin>\none\ntwo\n</stdin>");
    assert_eq!(prompt(&["-"], "alone").0, "alone");
    assert_eq!(prompt(&[], "alone").0, "alone");
    assert_eq!(prompt(&["A title:", "-"], "").0, "A title:");
    // Something that is there before the program looks.
    fs::write(lab.path("text"), "one\n").unwrap();
    let child = Cli::new(&lab, ["turn", "--fresh", "A title:", "-q"])
        .spawn_with(fs::File::open(lab.path("text")).unwrap(), Stdio::null());
    let output = child.wait_with_output().unwrap();
    assert_eq!(lab.fake_prompts().pop().unwrap(), "A title:");
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "plexum-openai: stdin was not read: add '-' after the prompt to append it\n"
    );
    assert_eq!(prompt(&["A title:", "-q"], "").1, "");
}

#[test]
fn rejects_contradicting_and_empty_flags() {
    let lab = Lab::fake(Value::Null);
    fs::write(lab.path("schema"), "[]").unwrap();
    let schema = lab.path("schema").display().to_string();
    for (arguments, expected) in [
        (
            &["--json", "--last"][..],
            "'--json' prints all events, '--last' only the last message: give one of them",
        ),
        (
            &["-q", "-v"],
            "'--quiet' and '--verbose' cannot be used together",
        ),
        (
            &["--fresh", "--thread", "x"],
            "'--fresh' starts a new thread, '--thread' resumes one: give one of them",
        ),
        (
            &["--thread", "x"],
            "'--thread x' is not a thread id: expected a UUID",
        ),
        (
            &["--timeout", "1.5"],
            "'--timeout 1.5' is not a whole number of seconds",
        ),
        (
            &["--wait", "-1"],
            "'--wait -1' is not a whole number of seconds",
        ),
        (
            &["--effort", "very high"],
            "'--effort very high' is not a word such as 'low' or 'high'",
        ),
        (
            &["--output-schema", &schema],
            &format!("the schema '{schema}': expected an object, found a list"),
        ),
    ] {
        let (stdout, stderr, status) = ask(&lab, arguments);
        assert_eq!(
            stderr,
            format!("plexum-openai: {expected}\n"),
            "{arguments:?}"
        );
        assert_eq!((stdout.as_str(), status), ("", 2), "{arguments:?}");
    }
    assert_eq!(lab.fake_runs(), [""; 0].map(Value::from));
}

#[test]
fn last_of_repeated_flag_wins() {
    let lab = Lab::fake(Value::Null);
    let output = Cli::new(
        &lab,
        ["turn", "hi", "--json", "-m", "a", "--json", "-m", "b"],
    )
    .run();
    assert_eq!(output.status, 0, "{output:?}");
    let arguments = lab.fake_runs()[0]["argv"].to_string();
    assert!(arguments.contains("\"--model\",\"b\""), "{arguments}");
}

#[test]
fn help_and_version_are_subcommands() {
    let lab = Lab::fake(Value::Null);
    let stdout = |arguments: &[&str]| Cli::new(&lab, arguments.to_vec()).run().stdout;
    assert_eq!(stdout(&["help"]), stdout(&["--help"]));
    assert_eq!(stdout(&["help", "turn"]), stdout(&["turn", "--help"]));
    assert_eq!(stdout(&["version"]), stdout(&["--version"]));
}

/// The limits of the command line go before those of the config.
#[test]
fn timeout_and_wait_override_config() {
    let lab = Lab::fake(Value::Null);
    lab.config(json!({"binary": lab.codex(), "turn_timeout_secs": 50, "busy_wait_secs": 50}));
    lab.script(json!([{"touch": lab.path("started")}, {"wait_for": lab.path("go")}, "default"]));
    let begun = Instant::now();
    let (_, stderr, status) = ask(&lab, &["--timeout", "1"]);
    assert!(stderr.contains("turn_timeout"), "{stderr}");
    assert_eq!(status, 1);
    fs::remove_file(lab.path("started")).unwrap();
    let mut first = Cli::new(&lab, ["turn", "first"]).spawn();
    wait_until("the first to start", || lab.path("started").exists());
    let (_, stderr, status) = ask(&lab, &["--wait", "0"]);
    assert!(
        stderr.contains("another process runs a turn in the workspace"),
        "{stderr}"
    );
    assert_eq!(status, 1);
    assert!(begun.elapsed() < Duration::from_secs(40));
    fs::write(lab.path("go"), "").unwrap();
    assert!(first.wait().unwrap().success());
}

real_codex! {
    /// Thread, effort and schema reach codex.
    fn thread_effort_and_schema_reach_model(codex: &Path) {
        let lab = Lab::real(codex, json!([{"text": "{\"a\":1}"}]));
        fs::write(lab.path("schema.json"), r#"{"type":"object","properties":{"a":{"type":"integer"}}}"#).unwrap();
        let schema = lab.path("schema.json").display().to_string();
        let (stdout, _, status) = ask(&lab, &["--output-schema", &schema, "--effort", "high", "-m", "gpt-5.4", "--last"]);
        assert_eq!((stdout.as_str(), status), ("{\"a\":1}\n", 0));
        let body = lab.model().requests().last().unwrap().body.clone();
        assert_eq!(body["text"]["format"]["schema"]["properties"]["a"]["type"], "integer", "{body}");
        assert_eq!(body["reasoning"]["effort"], "high");
        let first = lab.stored_thread().unwrap();
        ask(&lab, &["--fresh", "-q"]);
        assert_ne!(lab.stored_thread().unwrap(), first);
        let (_, stderr, _) = ask(&lab, &["--thread", &first.to_uppercase()]);
        assert!(stderr.contains(&first), "{stderr}");
        assert_eq!(lab.stored_thread().unwrap(), first);
    }
}
