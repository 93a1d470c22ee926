//! The session file: which thread a workspace goes on with, and what becomes of it when things go wrong.

use crate::support::{Cli, Daemon, LIMIT, Lab, cli, wait_until};
use serde_json::{Value, json};
use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

const KNOWN: &str = "01a1fe09-e49e-7b41-ae77-ccf89ea932da";

/// A turn in the lab's workspace; its thread's state and whether there was a warning with `part`.
#[track_caller]
fn state(lab: &Lab, part: &str) -> (String, bool) {
    let mut daemon = Daemon::start(lab);
    let turn = daemon.turn(Daemon::prompt(lab, "hi"));
    assert_eq!(
        (turn.stop_reason(), turn.text().as_str()),
        ("end_turn", "hi"),
        "{turn:?}"
    );
    let warned = daemon.logs().iter().any(|log| {
        log["level"] == "warning" && log["data"]["message"].as_str().unwrap().contains(part)
    });
    (
        turn.result()["thread_state"].as_str().unwrap().to_owned(),
        warned,
    )
}

// fault: 25
#[test]
fn absent_and_empty_session_file_start_new_thread() {
    for content in [None, Some(""), Some("\n"), Some("  \r\n")] {
        let lab = Lab::fake(Value::Null);
        if let Some(content) = content {
            fs::write(lab.session_file(), content).unwrap();
        }
        assert_eq!(state(&lab, ""), ("new".to_owned(), false), "{content:?}");
        let thread = lab.stored_thread().unwrap();
        assert_eq!(thread.len(), 36);
        assert_eq!(
            state(&lab, ""),
            ("resumed".to_owned(), false),
            "{content:?}"
        );
        assert_eq!(lab.stored_thread().unwrap(), thread);
        let files: Vec<_> = fs::read_dir(lab.workspace())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(files, [".plexum-codex-session"]);
    }
}

#[test]
fn reads_uuid_in_any_case_and_white_space() {
    for written in [
        KNOWN.to_owned(),
        format!("{KNOWN}\n"),
        format!("  {KNOWN}\r\n\n"),
    ] {
        let lab = Lab::fake(Value::Null);
        lab.script(json!([
            "read_stdin",
            {"event": {"type": "thread.started", "thread_id": "{thread}"}},
            {"event": {"type": "item.completed", "item": {"id": "item_0", "type": "agent_message", "text": "hi"}}},
            {"event": {"type": "turn.completed", "usage": {}}},
        ]));
        fs::write(lab.session_file(), &written).unwrap();
        assert_eq!(state(&lab, "").0, "resumed", "{written:?}");
        let run = lab.fake_runs().pop().unwrap();
        let args = run["argv"].as_array().unwrap();
        assert_eq!(
            args[args.len() - 3..],
            [json!("--"), json!(KNOWN), json!("-")]
        );
    }
}

// fault: 26
#[test]
fn sets_aside_invalid_session_file() {
    for content in [
        &b"garbage"[..],
        b"-cmcp_servers.evil.command=\"touch x\"",
        b"--help",
        b"\xff\xfe",
        b"\0\0\0\0",
        b"01a1fe09-e49e-7b41-ae77-ccf89ea932d",
        b"01a1fe09-e49e-7b41-ae77-ccf89ea932da01a1fe09-e49e-7b41-ae77-ccf89ea932da",
        b"01a1fe09-e49e-7b41-ae77-ccf89ea932da -c x=y",
        b"01a1fe09e49e7b41ae77ccf89ea932da",
        &[b'x'; 1 << 20],
    ] {
        let lab = Lab::fake(Value::Null);
        fs::write(lab.session_file(), content).unwrap();
        let shown = String::from_utf8_lossy(&content[..content.len().min(40)]);
        assert_eq!(
            state(&lab, ".plexum-codex-session"),
            ("new".to_owned(), true),
            "{shown}"
        );
        let aside = lab.workspace().join(".plexum-codex-session.bad");
        assert_eq!(fs::read(aside).unwrap(), content, "{shown}");
        let runs = lab.fake_runs();
        assert_eq!(runs.len(), 1);
        assert!(!runs[0]["argv"].to_string().contains("resume"), "{runs:?}");
        assert_eq!(state(&lab, ""), ("resumed".to_owned(), false), "{shown}");
    }
}

// fault: 27, 116
#[test]
fn sets_aside_session_file_that_is_not_regular() {
    for kind in ["symlink", "dangling", "directory", "fifo"] {
        let lab = Lab::fake(Value::Null);
        let path = lab.session_file();
        fs::write(lab.path("elsewhere"), KNOWN).unwrap();
        match kind {
            "symlink" => symlink(lab.path("elsewhere"), &path).unwrap(),
            "dangling" => symlink(lab.path("nowhere"), &path).unwrap(),
            "directory" => fs::create_dir(&path).unwrap(),
            _ => {
                let made = Command::new("mkfifo").arg(&path).status().unwrap();
                assert!(made.success());
            }
        }
        let before = fs::symlink_metadata(&path).unwrap().file_type();
        assert_eq!(
            state(&lab, ".plexum-codex-session"),
            ("new".to_owned(), true),
            "{kind}"
        );
        let aside = lab.workspace().join(".plexum-codex-session.bad");
        assert_eq!(
            fs::symlink_metadata(aside).unwrap().file_type(),
            before,
            "{kind}"
        );
        // Nothing was followed.
        assert_eq!(fs::read_to_string(lab.path("elsewhere")).unwrap(), KNOWN);
        assert!(!lab.path("nowhere").exists());
        assert!(!lab.fake_runs()[0]["argv"].to_string().contains("resume"));
        assert_eq!(state(&lab, ""), ("resumed".to_owned(), false), "{kind}");
    }
}

// fault: 29
#[test]
fn ignores_stale_temporary_file() {
    let lab = Lab::fake(Value::Null);
    for name in [".plexum-codex-session.tmp", ".plexum-codex-session.bad"] {
        fs::write(lab.workspace().join(name), "stale").unwrap();
    }
    assert_eq!(state(&lab, "").0, "new");
    assert_eq!(lab.stored_thread().unwrap().len(), 36);
}

#[test]
fn unwritable_workspace_keeps_old_thread() {
    // root may write everywhere, but not into what is mounted read-only or immutable: neither is to be had in
    // a test, so the directory's mode has to do, and root's run shows nothing.
    if rustix::process::geteuid().is_root() {
        return;
    }
    let lab = Lab::fake(Value::Null);
    assert_eq!(state(&lab, "").0, "new");
    let thread = lab.stored_thread().unwrap();
    fs::write(lab.session_file(), format!("{KNOWN}\n")).unwrap();
    fs::set_permissions(lab.workspace(), fs::Permissions::from_mode(0o500)).unwrap();
    let mut daemon = Daemon::start(&lab);
    let turn = daemon.turn(Daemon::prompt(&lab, "hi"));
    fs::set_permissions(lab.workspace(), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(turn.stop_reason(), "end_turn");
    assert_ne!(turn.thread(), thread);
    assert_eq!(lab.stored_thread().unwrap(), KNOWN);
    daemon.log("warning", ".plexum-codex-session");
}

// fault: 31
#[test]
fn replaces_unknown_thread_after_one_attempt() {
    let lab = Lab::fake(Value::Null);
    fs::write(lab.session_file(), KNOWN).unwrap();
    assert_eq!(state(&lab, KNOWN), ("replaced".to_owned(), true));
    let runs = lab.fake_runs();
    let modes: Vec<_> = runs
        .iter()
        .map(|run| run["mode"].as_str().unwrap())
        .collect();
    assert_eq!(modes, ["resume", "new"]);
    assert_ne!(lab.stored_thread().unwrap(), KNOWN);
    assert_eq!(state(&lab, ""), ("resumed".to_owned(), false));
}

/// Where the new thread fails too, the old one may be found again another day.
#[test]
fn failed_replacement_keeps_old_thread() {
    let lab = Lab::fake(Value::Null);
    fs::write(lab.session_file(), KNOWN).unwrap();
    lab.script(json!({"new": ["read_stdin", {"err": "no luck"}, {"exit": 1}]}));
    let mut daemon = Daemon::start(&lab);
    let turn = daemon.turn(Daemon::prompt(&lab, "hi"));
    assert_eq!(turn.error_code(), Some("codex_failed"));
    assert_eq!(lab.stored_thread().unwrap(), KNOWN);
}

// fault: 32
#[test]
fn reports_thread_open_elsewhere_as_busy() {
    let lab = Lab::fake(Value::Null);
    assert_eq!(state(&lab, "").0, "new");
    let thread = lab.stored_thread().unwrap();
    lab.script(json!({"runs": [
        ["hold_lock", {"touch": lab.path("started")}, {"wait_for": lab.path("go")}],
    ]}));
    // Another codex, by hand.
    let mut other = Command::new(lab.codex())
        .args(["exec", "resume", "--", &thread, "-"])
        .env_clear()
        .envs(lab.env())
        .spawn()
        .unwrap();
    wait_until("the other to hold the thread", || {
        lab.path("started").exists()
    });
    lab.script(Value::Null);
    let mut daemon = Daemon::start(&lab);
    let turn = daemon.turn(Daemon::prompt(&lab, "hi"));
    assert_eq!(turn.error_code(), Some("session_busy"), "{turn:?}");
    let error = turn.of("error").next().unwrap();
    assert_eq!(error["error"]["retryable"], true);
    assert_eq!(lab.stored_thread().unwrap(), thread);
    fs::write(lab.path("go"), "").unwrap();
    assert!(cli::wait(&mut other, LIMIT).success());
    assert_eq!(daemon.turn(Daemon::prompt(&lab, "hi")).text(), "hi");
}

// fault: 30
#[test]
fn serializes_processes_in_one_workspace() {
    let lab = Lab::fake(Value::Null);
    lab.script(json!({"runs": [
        [{"touch": lab.path("started")}, {"wait_for": lab.path("go")}, "default"],
        ["default"],
    ]}));
    let mut first = Cli::new(&lab, ["turn", "first"]).spawn();
    drop(first.stdin.take());
    wait_until("the first to start", || lab.path("started").exists());
    let mut second = Cli::new(&lab, ["turn", "second"]).spawn();
    drop(second.stdin.take());
    // The second tells that it waits, or is heard of no more before the first is done.
    fs::write(lab.path("go"), "").unwrap();
    for (child, text) in [(&mut first, "first\n"), (&mut second, "second\n")] {
        let status = cli::wait(child, LIMIT);
        let mut stdout = String::new();
        child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut stdout)
            .unwrap();
        let mut stderr = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut stderr)
            .unwrap();
        assert_eq!(
            (status.code(), stdout.as_str()),
            (Some(0), text),
            "{stderr}"
        );
    }
    assert_eq!(lab.fake_prompts(), ["first", "second"]);
    let modes: Vec<_> = lab
        .fake_runs()
        .iter()
        .map(|run| run["mode"].clone())
        .collect();
    assert_eq!(modes, ["new", "resume"]);
}
