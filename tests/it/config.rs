//! The config file, as the daemon and the command line are told of it.

use crate::support::{Cli, Daemon, Lab, method};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

/// `initialize` with this config is refused, and the message has all of these parts; the command line says the same.
#[track_caller]
fn check_refused(lab: &Lab, shown: &str, parts: &[&str]) {
    let mut daemon = Daemon::start_uninitialised(lab);
    let answer = daemon.call(method::INITIALIZE, Daemon::introduction());
    assert_eq!(answer["error"]["code"], -32001, "{shown}: {answer}");
    let message = answer["error"]["message"].as_str().unwrap();
    for part in parts.iter().chain(&["config.json"]) {
        assert!(message.contains(part), "{shown}: {part:?} in {message}");
    }
    let stream = daemon.call(method::STREAM, Daemon::prompt(lab, "hi"));
    assert_eq!(stream["error"]["code"], -32003, "{shown}: {stream}");
    daemon.ping();
    let output = Cli::new(lab, ["turn", "hi"]).run();
    assert_eq!(
        (output.status, output.stdout.as_str(), output.stderr),
        (2, "", format!("plexum-openai: {message}\n")),
        "{shown}"
    );
}

// fault: 64
#[test]
fn reports_config_error_with_line_and_column() {
    let lab = Lab::fake(Value::Null);
    for (config, parts) in [
        ("{\n  \"binary\": \"x\",\n}", &["3"][..]),
        ("{\"binary\": 5}", &["binary", "5", "string", "1"]),
        ("{\n \"extra_args\": \"x\"}", &["extra_args", "2"]),
        ("{\"extra_args\": [1]}", &["extra_args"]),
        ("{\"model_args\": []}", &["model_args"]),
        (
            "{\"prompt_via\": \"pipe\"}",
            &["prompt_via", "pipe", "stdin", "arg"],
        ),
        (
            "{\"mcp_registration\": \"on\"}",
            &["mcp_registration", "turn", "persistent", "off"],
        ),
        (
            "{\"lost_thread\": 1}",
            &["lost_thread", "replay", "fresh", "error"],
        ),
        ("{\"tool_events\": \"yes\"}", &["tool_events", "yes"]),
        ("{\"idle_timeout_secs\": -1}", &["idle_timeout_secs", "-1"]),
        (
            "{\"idle_timeout_secs\": 1.5}",
            &["idle_timeout_secs", "1.5"],
        ),
        ("{\"env\": {\"A\": 1}}", &["env"]),
        ("{\"binary\": \"a\", \"binary\": \"b\"}", &["binary"]),
        ("[]", &[]),
        ("null", &[]),
        ("{} {}", &["1"]),
        ("nonsense", &["1"]),
    ] {
        lab.raw_config(config.as_bytes());
        check_refused(&lab, config, parts);
    }
    lab.raw_config(b"{\"binary\": \"\xff\"}");
    check_refused(&lab, "invalid UTF-8", &[]);
}

// fault: 65
#[test]
fn rejects_config_that_is_not_a_regular_file() {
    for kind in ["directory", "fifo", "large", "dangling"] {
        let lab = Lab::fake(Value::Null);
        let path = lab.config_file();
        fs::remove_file(&path).unwrap();
        match kind {
            "directory" => fs::create_dir(&path).unwrap(),
            "fifo" => assert!(
                Command::new("mkfifo")
                    .arg(&path)
                    .status()
                    .unwrap()
                    .success()
            ),
            "dangling" => symlink(lab.path("nowhere"), &path).unwrap(),
            _ => fs::File::create(&path).unwrap().set_len(100 << 20).unwrap(),
        }
        check_refused(&lab, kind, &[]);
    }
}

// fault: 63
#[test]
fn accepts_valid_config() {
    for config in [
        None,
        Some(""),
        Some("\u{feff}{}"),
        Some(" \n"),
        Some("{\"binray\": \"x\"}"),
    ] {
        let mut lab = Lab::fake(Value::Null);
        // Without a config codex is looked for in PATH.
        fs::create_dir(lab.path("bin")).unwrap();
        symlink(lab.codex(), lab.path("bin/codex")).unwrap();
        let path = format!("{}:/usr/bin:/bin", lab.path("bin").display());
        lab.set_env("PATH", path);
        match config {
            None => fs::remove_dir_all(lab.path("profile")).unwrap(),
            Some(text) => lab.raw_config(text.as_bytes()),
        }
        let mut daemon = Daemon::start(&lab);
        if config.is_some_and(|text| text.contains("binray")) {
            let log = daemon.log("warning", "binray");
            assert!(
                log["data"]["message"]
                    .as_str()
                    .unwrap()
                    .contains("'binary'"),
                "{log}"
            );
        }
        let turn = daemon.turn(Daemon::prompt(&lab, "hi"));
        assert_eq!(turn.text(), "hi", "{config:?}");
    }
}

#[test]
fn finds_profile_by_environment() {
    let lab = Lab::fake(Value::Null);
    let models = |cli: &Cli<'_>| -> Value {
        let output = cli.run();
        assert_eq!(
            (output.status, output.stderr.as_str()),
            (0, ""),
            "{output:?}"
        );
        let manifest: Value = serde_json::from_str(&output.stdout).unwrap();
        manifest["contracts"]["provider"]["models"].clone()
    };
    lab.config(json!({"supported_models": ["here"]}));
    let below_home = lab.path("home/.plexum/plugins/plexum-openai-provider");
    fs::create_dir_all(&below_home).unwrap();
    fs::write(
        below_home.join("config.json"),
        "{\"supported_models\":[\"home\"]}",
    )
    .unwrap();
    assert_eq!(models(&Cli::new(&lab, ["manifest"])), json!(["here"]));
    let cli = Cli::new(&lab, ["manifest"]).without_env("PLEXUM_PROFILE_ROOT");
    assert_eq!(models(&cli), json!(["home"]));
    let cli = Cli::new(&lab, ["manifest"]).env("PLEXUM_PROFILE_ROOT", "");
    assert_eq!(models(&cli), json!(["home"]));
}
