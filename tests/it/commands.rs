//! What is the same for every subcommand: a reader that has gone, a flag that is empty, a prompt or a list that
//! cannot be read.

use crate::support::{Cli, LIMIT, Lab, cli};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

#[test]
fn ignores_closed_stdout() {
    let lab = Lab::fake(Value::Null);
    let lines = [
        ("session_meta", serde_json::json!({})),
        ("response_item", serde_json::json!({"type": "function_call", "name": "f", "arguments": "{}", "call_id": "x"})),
        ("response_item", serde_json::json!({"type": "function_call_output", "call_id": "x", "output": "y"})),
    ]
    .map(|(kind, payload)| serde_json::json!({"timestamp": "t", "type": kind, "payload": payload}).to_string() + "\n");
    fs::write(lab.path("rollout.jsonl"), lines.concat()).unwrap();
    for (args, status) in [
        (&["--help"][..], 0),
        (&["--version"], 0),
        (&["manifest"], 0),
        (&["man"], 0),
        (&["completions", "bash"], 0),
        // What it found stays its exit status.
        (&["doctor"], 1),
        (&["parse-rollout", "--summary", "../rollout.jsonl"], 0),
        (&["mutate", "--rollout", "../rollout.jsonl", "-n", "x"], 0),
    ] {
        lab.config(serde_json::json!({"binary": "/nowhere"}));
        let cli = Cli::new(&lab, args.iter().copied());
        assert_eq!(cli.run_unread(), (status, String::new()), "{args:?}");
    }
}

/// Whoever shares a pipe or a terminal may have put it into non-blocking mode.
#[test]
fn waits_for_nonblocking_streams() {
    let lab = Lab::fake(Value::Null);
    let line = |payload: Value| {
        let line =
            serde_json::json!({"timestamp": "t", "type": "response_item", "payload": payload});
        line.to_string() + "\n"
    };
    let mut rollout = String::new();
    for number in 0..40 {
        let id = format!("call_{number}");
        rollout += &line(
            serde_json::json!({"type": "function_call", "call_id": id, "name": "x", "arguments": "{}"}),
        );
        rollout += &line(
            serde_json::json!({"type": "function_call_output", "call_id": id, "output": "y".repeat(10_000)}),
        );
    }
    let (stdin, mut feed) = std::io::pipe().unwrap();
    let (mut told, stdout) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&stdin, true).unwrap();
    rustix::io::ioctl_fionbio(&stdout, true).unwrap();
    let mut child = Cli::new(&lab, ["parse-rollout"]).spawn_with(stdin, stdout);
    // It waits for the rest, and for a reader, since a pipe holds 64 KiB.
    let (go, gone) = std::sync::mpsc::channel();
    let feeder = std::thread::spawn(move || {
        let (half, rest) = rollout.split_at(rollout.len() / 2);
        feed.write_all(half.as_bytes()).unwrap();
        gone.recv().unwrap();
        feed.write_all(rest.as_bytes()).unwrap();
    });
    let mut first = [0; 1];
    told.read_exact(&mut first).unwrap();
    go.send(()).unwrap();
    let mut all = String::new();
    told.read_to_string(&mut all).unwrap();
    feeder.join().unwrap();
    assert!(cli::wait(&mut child, LIMIT).success());
    assert_eq!(all.lines().count(), 80);
}

#[test]
fn rejects_empty_workspace_argument() {
    let lab = Lab::fake(Value::Null);
    for args in [
        &["turn", "hi"][..],
        &["parse-rollout"],
        &["mutate", "x"],
        &["doctor"],
    ] {
        let output = Cli::new(&lab, args.iter().copied())
            .args(&["--workspace", ""])
            .run();
        assert_eq!((output.status, output.stdout.as_str()), (2, ""), "{args:?}");
        assert_eq!(
            output.stderr,
            "plexum-openai: '--workspace' needs a directory\n"
        );
    }
}

#[test]
fn expands_tilde_in_arguments() {
    let lab = Lab::fake(Value::Null);
    let output = Cli::new(&lab, ["turn", "--workspace=~/agents/alice", "hi"]).run();
    assert_eq!(output.status, 0, "{output:?}");
    assert!(lab.path("home/agents/alice/.plexum-codex-session").exists());
    assert!(!lab.path("workspace/~").exists());
}

#[test]
fn rejects_unusable_workspace_and_creates_none_on_usage_error() {
    let lab = Lab::fake(Value::Null);
    fs::write(lab.path("workspace/file"), "").unwrap();
    std::os::unix::fs::symlink("nowhere", lab.path("workspace/link")).unwrap();
    for name in ["file", "link"] {
        let output = Cli::new(&lab, ["turn", "-w", name, "hi"]).run();
        let told = format!("plexum-openai: cannot use the workspace '{name}': Not a directory\n");
        assert_eq!((output.status, output.stderr), (2, told));
    }
    for wrong in [
        &["--color", "red", "hi"][..],
        &["-i", "none.png", "hi"],
        &[""],
    ] {
        let output = Cli::new(&lab, ["turn", "-w", "new"]).args(wrong).run();
        assert_ne!(output.status, 0, "{output:?}");
        assert!(!lab.path("workspace/new").exists(), "{wrong:?}");
    }
}

#[test]
fn rejects_image_and_workspace_that_cannot_be_used() {
    let lab = Lab::fake(Value::Null);
    let root = lab.root().to_owned();
    let output = Cli::new(&lab, ["turn", "hi", "-i"]).arg(&root).run();
    let expected = format!("the image '{}' is not a regular file", root.display());
    assert_eq!((output.status, output.stdout.as_str()), (1, ""));
    assert!(output.stderr.contains(&expected), "{output:?}");

    let workspace = root.join(OsStr::from_bytes(b"w\xff"));
    for command in [&["turn", "hi", "-w"][..], &["doctor", "-w"]] {
        let output = Cli::new(&lab, command.iter().copied())
            .arg(&workspace)
            .run();
        let said = output.stdout + &output.stderr;
        assert!(said.contains("is not valid UTF-8"), "{said}");
        assert_ne!(output.status, 0, "{said}");
        assert!(!workspace.exists());
    }
    // The same behind a link.
    fs::create_dir(&workspace).unwrap();
    let link = lab.path("link");
    symlink(&workspace, &link).unwrap();
    let output = Cli::new(&lab, ["turn", "hi", "-w"]).arg(&link).run();
    assert!(output.stderr.contains("is not valid UTF-8"), "{output:?}");
    assert!(lab.fake_runs().is_empty());
}

#[test]
fn rejects_fifo_image_without_waiting() {
    let lab = Lab::fake(Value::Null);
    let fifo = lab.path("workspace/image.png");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
    let output = Cli::new(&lab, ["turn", "-i", "image.png", "hi"]).run();
    assert!(
        output.stderr.contains("is not a regular file"),
        "{output:?}"
    );
}

#[test]
fn reports_unreadable_workspace_list() {
    let lab = Lab::fake(Value::Null);
    let output = Cli::new(&lab, ["mutate", "-w", ".", "--stdin"])
        .stdin(*b"[\"\xff\"]")
        .run();
    let told = "plexum-openai: the list on stdin is not valid UTF-8\n";
    assert_eq!((output.status, output.stderr.as_str()), (2, told));
}
