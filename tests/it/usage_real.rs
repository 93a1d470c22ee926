//! What the real codex's turns and threads have used, where its own count is wrong: it was killed, the context
//! window was full, the rollout was packed, or an older codex had begun the thread.

use crate::support::codex::{
    APP_SERVER, CHANGED, EXEC, NEWEST, OLDEST, real, real_codex, run_at_once, run_on,
};
use crate::support::daemon::check_turn;
use crate::support::{Daemon, Lab, Turn, method, ps, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// The version in which single requests are not recorded yet, but threads have an index.
const INDEXED: &str = "0.148.0";

/// What so many requests use.
fn requests(number: u64) -> Value {
    json!({"input_tokens": 100 * number, "output_tokens": 5 * number, "cache_read_tokens": 10 * number,
        "cache_write_tokens": 0, "thinking_tokens": number})
}

/// The turn has used this many requests, and its thread so many with it.
#[track_caller]
fn check_usage(turn: &Turn, of_turn: u64, of_thread: u64) {
    check_turn(&turn.events);
    let result = turn.result();
    assert_eq!(result["usage"], requests(of_turn), "{turn:?}");
    assert_eq!(result["thread_usage"], requests(of_thread), "{turn:?}");
    let end = turn.of("message_end").next().unwrap();
    assert_eq!(end["usage"], requests(of_turn), "{turn:?}");
}

fn command(id: &str, command: &str) -> Value {
    json!([{"id": id, "name": "exec_command", "arguments": {"cmd": command, "yield_time_ms": 60_000}}])
}

/// The thread's rollout.
#[track_caller]
fn rollout(lab: &Lab, thread: &str) -> PathBuf {
    let [rollout] = &lab.rollouts(thread)[..] else {
        panic!("one rollout: {:?}", lab.rollouts(thread));
    };
    rollout.clone()
}

/// `recorded` is what tells that the request was recorded, and whether it can be counted.
#[track_caller]
fn check_killed(codex: &Path, recorded: (&str, usize), counted: u64) {
    let lab = Lab::real(
        codex,
        json!([
            {"match": "long", "times": 1, "calls": command("call_long", "sleep 600")},
            {"text": "ok"},
        ]),
    );
    let mut daemon = Daemon::start(&lab);
    let turn = daemon.turn(Daemon::prompt(&lab, "hi"));
    check_usage(&turn, 1, 1);
    let thread = turn.thread().to_owned();
    let id = daemon.request(method::STREAM, Daemon::prompt(&lab, "long"));
    wait_until("the request to be recorded", || {
        let text = fs::read_to_string(rollout(&lab, &thread)).unwrap();
        text.matches(recorded.0).count() == recorded.1
    });
    let program = lab.codex().to_str().unwrap();
    let found = ps::of(lab.root())
        .into_iter()
        .find(|process| process.command.starts_with(&format!("{program} exec")));
    ps::signal(found.expect("it runs").pid, Signal::KILL);
    let turn = daemon.finish(id);
    assert_eq!(turn.error_code(), Some("codex_failed"));
    check_usage(&turn, counted, 1 + counted);
    for number in 2..=3 {
        let turn = daemon.turn(Daemon::prompt(&lab, "go on"));
        assert_eq!(turn.result()["thread_state"], "resumed");
        check_usage(&turn, 1, number + counted);
    }
}

#[test]
fn counts_usage_after_killed_codex() {
    // In 0.135 nothing at all is recorded of what the killed one had used.
    for (version, recorded, counted) in [
        (OLDEST, ("\"call_long\"", 1), 0),
        (CHANGED, ("\"token_usage_record\"", 2), 1),
        (NEWEST, ("\"token_usage_record\"", 2), 1),
    ] {
        if let Some(codex) = real(version) {
            check_killed(&codex, recorded, counted);
        }
    }
}

real_codex! {
    fn counts_usage_with_full_context_window(codex: &Path) {
        let lab = Lab::real(
            codex,
            json!([
                {"match": "much", "times": 1, "calls": command("call_much", "echo much")},
                {"after": "call_much", "times": 1, "failed": {"code": "context_length_exceeded",
                    "message": "Your input exceeds the context window of this model."}},
                {"text": "ok"},
            ]),
        );
        let mut daemon = Daemon::start(&lab);
        check_usage(&daemon.turn(Daemon::prompt(&lab, "hi")), 1, 1);
        let turn = daemon.turn(Daemon::prompt(&lab, "much"));
        assert_eq!(turn.error_code(), Some("context_window"), "{turn:?}");
        check_usage(&turn, 1, 2);
        // codex makes the conversation shorter first, which is a request of its own.
        check_usage(&daemon.turn(Daemon::prompt(&lab, "go on")), 2, 4);
        check_usage(&daemon.turn(Daemon::prompt(&lab, "go on")), 1, 5);
    }
}

/// Packs a file as codex does with old rollouts: as Zstandard, which may hold its content as it is.
fn pack(path: &Path) {
    let content = fs::read(path).unwrap();
    // The magic number, no checksum and no sizes, a window of 8 MiB.
    let mut packed = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0x68];
    for block in content.chunks(100_000) {
        packed.extend(&u32::try_from(block.len() << 3).unwrap().to_le_bytes()[..3]);
        packed.extend(block);
    }
    // The last block is an empty one.
    packed.extend([1, 0, 0]);
    fs::write(path.with_extension("jsonl.zst"), packed).unwrap();
    fs::remove_file(path).unwrap();
}

#[test]
fn counts_usage_on_packed_rollout() {
    for (version, backend) in [
        (INDEXED, EXEC),
        (CHANGED, EXEC),
        (NEWEST, EXEC),
        (INDEXED, APP_SERVER),
        (NEWEST, APP_SERVER),
    ] {
        run_on(version, backend, check_packed);
    }
}

fn check_packed(codex: &Path) {
    let call = |word: &str| {
        let calls = command(&format!("call_{word}"), &format!("echo {word}"));
        json!({"match": word, "times": 1, "calls": calls})
    };
    let lab = Lab::real(
        codex,
        json!([call("first"), call("second"), {"text": "ok"}]),
    );
    let mut daemon = Daemon::start(&lab);
    let turn = daemon.turn(Daemon::prompt(&lab, "first"));
    check_usage(&turn, 2, 2);
    pack(&rollout(&lab, turn.thread()));
    let turn = daemon.turn(Daemon::prompt(&lab, "second"));
    assert_eq!(turn.result()["thread_state"], "resumed");
    check_usage(&turn, 2, 4);
    let told: Vec<&Value> = turn.of("tool_use").map(|used| &used["id"]).collect();
    assert_eq!(told, ["call_second"], "{turn:?}");
    assert_eq!(turn.of("tool_result").count(), 1, "{turn:?}");
    check_usage(&daemon.turn(Daemon::prompt(&lab, "third")), 1, 5);
}

#[test]
fn counts_usage_of_thread_begun_by_older_codex() {
    let (Some(old), Some(new)) = (real(INDEXED), real(NEWEST)) else {
        return;
    };
    let lab = Lab::real(&old, json!([{"text": "ok"}]));
    for (number, codex) in (1..).zip([&old, &old, &new, &new]) {
        lab.config(json!({"binary": codex}));
        let mut daemon = Daemon::start(&lab);
        check_usage(&daemon.turn(Daemon::prompt(&lab, "hi")), 1, number);
    }
}

/// The calls and tokens of sub-agents, one of which a sub-agent has started.
fn check_sub_agents(codex: &Path) {
    let used = |input: u64| json!({"input": input, "cached": 0, "output": 1, "reasoning": 0});
    let spawn = |message: &str, id: &str| json!([{"name": "spawn_agent", "namespace": "multi_agent_v1", "arguments": {"message": message}, "id": id}]);
    let lab = Lab::real(
        codex,
        json!([
            {"match": "main task", "times": 1, "calls": spawn("child task", "call_spawn"), "usage": used(1000)},
            {"match": "child task", "times": 1, "calls": command("call_child", "echo child"), "usage": used(20)},
            {"after": "call_child", "times": 1, "text": "child done", "usage": used(20)},
            // Long enough for the child to be done: codex ends its agents with the turn.
            {"after": "call_spawn", "times": 1, "calls": command("call_main", "sleep 3"), "usage": used(1000)},
            {"text": "well", "usage": used(1000)},
        ]),
    );
    let mut daemon = Daemon::start(&lab);
    let turn = daemon.turn(Daemon::prompt(&lab, "main task"));
    check_turn(&turn.events);
    assert_eq!(turn.text(), "well", "{turn:?}");
    let result = turn.result();
    assert_eq!(result["usage"]["input_tokens"], 3040, "{turn:?}");
    assert_eq!(result["usage"]["output_tokens"], 5, "{turn:?}");
    assert_eq!(result["usage"]["subagents"]["input_tokens"], 40, "{turn:?}");
    assert_eq!(result["thread_usage"]["input_tokens"], 3000, "{turn:?}");
    let used: Vec<_> = turn
        .of("tool_use")
        .map(|event| (event["id"].as_str().unwrap(), event["agent"].is_string()))
        .collect();
    assert!(used.contains(&("call_child", true)), "{used:?}");
    assert!(used.contains(&("call_main", false)), "{used:?}");
    assert_eq!(turn.of("tool_result").count(), used.len());
    let child = turn
        .of("tool_use")
        .find(|event| event["id"] == "call_child")
        .unwrap();
    assert_ne!(child["agent"], turn.thread(), "{turn:?}");
    // The next turn has nothing of them.
    let turn = daemon.turn(Daemon::prompt(&lab, "again"));
    assert_eq!(turn.result()["usage"]["input_tokens"], 1000, "{turn:?}");
    assert!(
        turn.result()["usage"].get("subagents").is_none(),
        "{turn:?}"
    );
}

// fault: 94
#[test]
fn counts_sub_agents_and_emits_their_calls() {
    for version in [OLDEST, INDEXED, CHANGED, NEWEST] {
        run_at_once(&[
            (version, EXEC, check_sub_agents),
            (version, APP_SERVER, check_sub_agents),
        ]);
    }
}
