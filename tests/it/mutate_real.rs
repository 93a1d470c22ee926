//! Consuming tool calls of the real codex: what the model sees at the next turn, and what codex itself still knows
//! of a rollout that was rewritten under it.
//!
//! Since 0.148 codex keeps byte offsets into its rollouts, in `thread_history_1.sqlite` and in forks. With these
//! versions it is shown that they stay right; with the oldest one that the rewrite is understood at all.

use crate::support::codex::{APP_SERVER, EXEC, run_on};
use crate::support::{Daemon, LIMIT, Lab, cli, codex, method};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The first version that keeps byte offsets.
const INDEXED: &str = "0.148.0";

#[test]
fn oldest() {
    run_on(codex::OLDEST, EXEC, without_index);
}

#[test]
fn oldest_app_server() {
    run_on(codex::OLDEST, APP_SERVER, without_index);
}

fn without_index(codex: &Path) {
    let lab = Lab::real(codex, script());
    let mut daemon = Daemon::start(&lab);
    let thread = daemon
        .turn(Daemon::prompt(&lab, "the first question"))
        .thread()
        .to_owned();
    let rollout = consume(&lab, &mut daemon, &thread);
    let length = rollout.metadata().unwrap().len();
    let turn = daemon.turn(Daemon::prompt(&lab, "a third question"));
    assert_eq!((turn.thread(), turn.text().as_str()), (&*thread, "Again."));
    check_view(&lab, "a third question");
    assert!(rollout.metadata().unwrap().len() > length);
}

#[test]
fn indexed() {
    run_on(INDEXED, EXEC, with_index);
}

/// A thread that the server of this version begins has no index.
#[test]
fn indexed_app_server() {
    run_on(INDEXED, APP_SERVER, without_index);
}

#[test]
fn newest() {
    run_on(codex::NEWEST, EXEC, with_index);
}

#[test]
fn newest_app_server() {
    run_on(codex::NEWEST, APP_SERVER, with_index);
}

/// Three calls, one after the other, and further turns without any.
fn script() -> Value {
    let call = |word: &str| json!([{"name": "exec_command", "arguments": {"cmd": format!("echo {word}''-output")}}]);
    json!([
        {"match": "the first question", "calls": call("heavy"), "times": 1},
        {"after": "call_1", "calls": call("light")},
        {"after": "call_2", "calls": call("kept")},
        {"after": "call_3", "text": "Three calls."},
        {"match": "a second question", "text": "Once more."},
        {"match": "a third question", "text": "Again."},
        {"match": "a side question", "text": "Aside."},
    ])
}

/// Consumes the first call heavily and the second lightly: the file stays as long as it is, and a second time
/// there is nothing to do. The thread's rollout.
#[track_caller]
fn consume(lab: &Lab, daemon: &mut Daemon, thread: &str) -> PathBuf {
    let [rollout] = &lab.rollouts(thread)[..] else {
        panic!("one rollout: {:?}", lab.rollouts(thread));
    };
    let lengths = |text: &[u8]| -> Vec<usize> {
        text.split(|byte| *byte == b'\n').map(<[u8]>::len).collect()
    };
    let before = fs::read(rollout).unwrap();
    let request = json!({"agent_id": "alice", "workspace": lab.workspace(), "mutations": [
        {"block_id": "call_1", "op": "consume-heavy"},
        {"block_id": "call_2", "op": "consume-light"},
    ]});
    for touched in [2, 0] {
        let answer = daemon.call(method::MUTATE, request.clone());
        let freed = &answer["result"]["freed_bytes"];
        assert_eq!(freed.as_u64().is_some_and(|freed| freed > 0), touched > 0);
        assert_eq!(
            answer["result"],
            json!({"requested": 2, "touched": touched, "missing": [], "freed_bytes": freed}),
            "{answer}"
        );
    }
    let after = fs::read(rollout).unwrap();
    assert_eq!(lengths(&after), lengths(&before));
    assert!(after != before);
    rollout.clone()
}

/// What the model was sent with the last request, which has this prompt: two markers, and the third call as it was.
#[track_caller]
fn check_view(lab: &Lab, prompt: &str) {
    let requests = lab.model().requests();
    let request = requests.last().unwrap();
    assert!(
        request.user_text().contains(prompt),
        "{}",
        request.user_text()
    );
    let input = request.body["input"].as_array().unwrap();
    let of = |id: &str| -> (Value, Value) {
        let [call, output] = &input
            .iter()
            .filter(|item| item["call_id"] == id)
            .collect::<Vec<_>>()[..]
        else {
            panic!("a call and its output: {id} in {input:#?}");
        };
        (call["arguments"].clone(), output["output"].clone())
    };
    assert_eq!(of("call_1"), (json!("{}"), json!("...(tool called)")));
    let (arguments, output) = of("call_2");
    assert_eq!(arguments, r#"{"cmd":"echo light''-output"}"#);
    assert_eq!(output, "...(consumed)");
    let (arguments, output) = of("call_3");
    assert_eq!(arguments, r#"{"cmd":"echo kept''-output"}"#);
    assert!(output.to_string().contains("kept-output"), "{output}");
    let all = request.body.to_string();
    assert!(
        !all.contains("heavy-output") && !all.contains("light-output"),
        "{all}"
    );
}

fn with_index(codex: &Path) {
    let lab = Lab::real(codex, script());
    let mut daemon = Daemon::start(&lab);
    let thread = daemon
        .turn(Daemon::prompt(&lab, "the first question"))
        .thread()
        .to_owned();
    // In the middle of what the file is going to be.
    let fork = exec(&lab, &["fork", &thread], "a side question");
    assert_ne!(fork, thread);
    daemon.turn(Daemon::prompt(&lab, "a second question"));
    check_index(&lab, &thread, 2);
    check_index(&lab, &fork, 1);

    let rollout = consume(&lab, &mut daemon, &thread);
    check_index(&lab, &thread, 2);
    // A fork has of its parent only where it ends in the parent's file; what was consumed there is so for it too.
    let again = exec(&lab, &["resume", &fork], "a side question, again");
    assert_eq!(again, fork);
    check_view(&lab, "a side question, again");
    check_index(&lab, &fork, 2);
    // codex finds its end of the file where it is, and goes on there.
    let length = rollout.metadata().unwrap().len();
    let turn = daemon.turn(Daemon::prompt(&lab, "a third question"));
    assert_eq!((turn.thread(), turn.text().as_str()), (&*thread, "Again."));
    check_view(&lab, "a third question");
    assert!(rollout.metadata().unwrap().len() > length);
    check_index(&lab, &thread, 3);
    // A fork that is made now.
    let late = exec(&lab, &["fork", &thread], "a side question, at last");
    check_view(&lab, "a side question, at last");
    check_index(&lab, &late, 1);
}

/// Runs codex itself; the thread that it says it is in.
#[track_caller]
fn exec(lab: &Lab, subcommand: &[&str], prompt: &str) -> String {
    let (verb, thread) = (subcommand[0], subcommand[1]);
    let mut child = Command::new(lab.codex())
        .args([
            "exec",
            verb,
            "--skip-git-repo-check",
            "--json",
            "--",
            thread,
            "-",
        ])
        .env_clear()
        .envs(lab.env())
        .current_dir(lab.workspace())
        .stdin(Stdio::piped())
        .stdout(fs::File::create(lab.path("codex.out")).unwrap())
        .stderr(fs::File::create(lab.path("codex.err")).unwrap())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(prompt.as_bytes()).unwrap();
    drop(stdin);
    let status = cli::wait(&mut child, LIMIT);
    let said = fs::read_to_string(lab.path("codex.out")).unwrap();
    let complained = fs::read_to_string(lab.path("codex.err")).unwrap();
    assert!(status.success(), "{verb}: {status}: {complained}{said}");
    let started: Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    started["thread_id"].as_str().unwrap().to_owned()
}

/// codex's index of a thread says of its `turns` turns where their `task_started` lines begin, and of the whole
/// that it has read the file to its end.
#[track_caller]
fn check_index(lab: &Lab, thread: &str, turns: usize) {
    let database = lab.codex_home().join("thread_history_1.sqlite");
    let Some(known) = query(
        &database,
        &format!(
            "SELECT json_group_array(json_array(turn_id, rollout_byte_offset)) FROM
                (SELECT * FROM thread_turns WHERE thread_id = '{thread}' ORDER BY rollout_ordinal)"
        ),
    ) else {
        return;
    };
    let [rollout] = &lab.rollouts(thread)[..] else {
        panic!("one rollout: {:?}", lab.rollouts(thread));
    };
    let text = fs::read_to_string(rollout).unwrap();
    let mut offset = 0;
    let mut begun = Vec::new();
    for line in text.split_inclusive('\n') {
        let record: Value = serde_json::from_str(line).unwrap();
        let payload = &record["payload"];
        if record["type"] == "event_msg" && payload["type"] == "task_started" {
            let id = match &payload["turn_id"] {
                // Since about 0.160.
                Value::Null => &payload["turn_attribution"]["turn_id"],
                id => id,
            };
            begun.push(json!([id, offset]));
        }
        offset += line.len();
    }
    assert_eq!(begun.len(), turns);
    assert_eq!(known, json!(begun), "{thread}");
    let end = query(
        &database,
        &format!(
            "SELECT json_group_array(next_rollout_byte_offset) FROM thread_history_projection_state
                WHERE thread_id = '{thread}'"
        ),
    );
    assert_eq!(end, Some(json!([text.len()])), "{thread}");
}

/// Asks a database of codex's for one JSON text, without changing it; `None` where nothing here can read one.
#[track_caller]
fn query(database: &Path, sql: &str) -> Option<Value> {
    const PYTHON: &str = "import sqlite3, sys
print(sqlite3.connect('file:' + sys.argv[1] + '?mode=ro', uri=True).execute(sys.argv[2]).fetchone()[0])";
    let works = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output();
        output.is_ok_and(|output| output.status.success())
    };
    let mut command = if works("python3", &["-c", "import sqlite3"]) {
        let mut command = Command::new("python3");
        command.args(["-c", PYTHON]);
        command
    } else if works("sqlite3", &["--version"]) {
        let mut command = Command::new("sqlite3");
        command.arg("-readonly");
        command
    } else {
        let told =
            "codex's index of a rewritten rollout: neither python3 nor sqlite3 is there to read it";
        assert!(
            std::env::var_os("CI").is_none_or(|ci| ci != "true"),
            "{told}"
        );
        // Not through a print macro: what those say in a test that passes is never seen.
        let _ = writeln!(std::io::stderr(), "\n*** SKIPPED: {told} ***");
        return None;
    };
    let output = command.arg(database).arg(sql).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    Some(serde_json::from_slice(&output.stdout).unwrap())
}
