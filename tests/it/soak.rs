//! A long run: turns that go well, fail, hang and are cancelled, with and without the daemon's tools, many at
//! once, over and over in the same workspaces. Nothing adds up: no process, thread, descriptor, socket, file or
//! memory. Every stream is held against the protocol by [`Daemon`].
//!
//! `SOAK` says how many turns; `make soak` has a thousand.

use crate::support::{Daemon, Lab, method, ps, wait_until};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

const WORKSPACES: usize = 20;
const AT_ONCE: usize = 32;

/// What one run of codex does.
fn kinds(lab: &Lab) -> Vec<Value> {
    let message = |text: &str| {
        json!({"event": {"type": "item.completed",
            "item": {"id": "item_0", "type": "agent_message", "text": text}}})
    };
    let begun = |steps: Vec<Value>| {
        let begin = [
            json!("read_stdin"),
            json!({"event": {"type": "thread.started", "thread_id": "{thread}"}}),
        ];
        begin.into_iter().chain(steps).collect::<Value>()
    };
    let completed = json!({"event": {"type": "turn.completed", "usage": {"input_tokens": 1}}});
    let grandchild = |holds: bool| json!({"grandchild": {"setsid": true, "ignores_signals": true, "holds_pipes": holds}});
    let hang = json!({"wait_for": lab.path("never")});
    vec![
        json!(["default"]),
        json!(["default"]),
        json!([{"flood": {"to": "stderr", "bytes": 300_000}}, "default"]),
        begun(vec![
            json!({"rollout": [
                {"timestamp": "{now}", "type": "response_item", "payload": {"type": "function_call", "name": "x", "arguments": "{}", "call_id": "c"}},
                {"timestamp": "{now}", "type": "response_item", "payload": {"type": "function_call_output", "call_id": "c", "output": "y"}},
            ]}),
            json!({"events": {"count": 500}}),
            completed.clone(),
        ]),
        begun(vec![json!({"call_tool": "echo"}), completed.clone()]),
        begun(vec![json!({"call_tool": "fail"}), completed.clone()]),
        // Those that hang say so, and are cancelled.
        begun(vec![json!({"call_tool": "never"}), completed]),
        begun(vec![grandchild(true), message("hang"), hang.clone()]),
        begun(vec![
            json!({"ignore": ["INT", "TERM"]}),
            grandchild(false),
            message("hang"),
            hang,
        ]),
        begun(vec![
            json!({"event": {"type": "turn.failed", "error": {"message": "no"}}}),
            json!({"exit": 1}),
        ]),
        begun(vec![
            message("half"),
            json!({"raw": "{\"type\":\"it"}),
            json!({"err": "why"}),
            json!({"exit": 9}),
        ]),
        begun(vec![json!({"signal": "KILL"})]),
        json!([{"exit": 2}]),
    ]
}

/// What the plugin has and has left, but for its memory.
#[derive(Debug, PartialEq)]
struct Held {
    processes: usize,
    zombies: usize,
    threads: usize,
    open_files: BTreeMap<String, usize>,
    files: BTreeSet<PathBuf>,
}

impl Held {
    fn by(daemon: &Daemon, lab: &Lab) -> Held {
        let pid = daemon.pid();
        let mut files = BTreeSet::new();
        for directory in ["tmp", "runtime"] {
            list(&lab.path(directory), &mut files);
        }
        Held {
            processes: ps::of(lab.root()).len(),
            zombies: ps::zombies(pid),
            threads: ps::threads(pid),
            open_files: ps::open_files(pid),
            files,
        }
    }
}

fn list(directory: &Path, files: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        if entry.path().is_dir() {
            list(&entry.path(), files);
        }
        files.insert(entry.path());
    }
}

// fault: 22
#[test]
fn long_run_leaks_nothing() {
    let turns: usize = match std::env::var("SOAK") {
        Ok(turns) => turns.parse().expect("SOAK is a number of turns"),
        Err(_) => 60,
    };
    let mut lab = Lab::fake(Value::Null);
    // The path of a socket is short.
    let runtime = tempfile::Builder::new()
        .prefix("pxo")
        .tempdir_in("/tmp")
        .unwrap();
    lab.set_env("XDG_RUNTIME_DIR", runtime.path());
    lab.set_env("TMPDIR", lab.path("tmp"));
    std::os::unix::fs::symlink(runtime.path(), lab.path("runtime")).unwrap();
    let kinds = kinds(&lab);
    // One that is lost is followed by a second run: there are more runs than turns.
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random >> 33).unwrap() % below
    };
    let runs: Vec<&Value> = (0..2 * turns).map(|_| &kinds[next(kinds.len())]).collect();
    lab.script(json!({"runs": runs}));

    let mut daemon = Daemon::start(&lab);
    // The streams whose tool is never answered.
    let stuck: Rc<RefCell<Vec<i64>>> = Rc::default();
    let stuck_too = Rc::clone(&stuck);
    daemon.on_tool_call(move |params| match params["name"].as_str() {
        Some("echo") => Some(Ok(json!({"content": params["arguments"]["prompt"]}))),
        Some("never") => {
            stuck_too
                .borrow_mut()
                .push(params["_meta"]["stream"].as_i64().unwrap());
            None
        }
        _ => Some(Err(json!({"code": -32000, "message": "no such luck"}))),
    });
    let mut before = None;
    let mut memory = Vec::new();
    let mut ends: BTreeMap<String, usize> = BTreeMap::new();
    let start = Instant::now();
    // The first part warms up; the rest may add nothing to what there is then.
    let parts = [
        turns / 10,
        turns * 3 / 10,
        turns * 3 / 10,
        turns - turns / 10 - turns * 3 / 10 * 2,
    ];
    for part in parts {
        let mut to_start = part;
        let mut running: Vec<(i64, bool)> = Vec::new();
        while to_start > 0 || !running.is_empty() {
            while to_start > 0 && running.len() < AT_ONCE {
                to_start -= 1;
                let name = next(WORKSPACES).to_string();
                let mut params = Daemon::prompt(&lab, &format!("turn {to_start}"));
                params["agent"] = json!({"id": name, "workspace": lab.path("w").join(&name)});
                if next(4) > 0 {
                    params["request"]["tools"] = ["echo", "fail", "never"]
                        .map(|name| json!({"name": name, "input_schema": {"type": "object"}}))
                        .into();
                }
                let id = daemon.request(method::STREAM, params);
                // One in ten is cancelled wherever it is by then.
                let cancelled = next(10) == 0;
                if cancelled {
                    daemon.cancel(id);
                }
                running.push((id, cancelled));
            }
            daemon.serve_until("a turn to end or to hang", |daemon| {
                let hangs = running.iter_mut().filter(|(id, cancelled)| {
                    let told = daemon
                        .events(*id)
                        .iter()
                        .any(|event| event["text"] == "hang");
                    !cancelled && (told || stuck.borrow().contains(id))
                });
                let hangs: Vec<i64> = hangs
                    .map(|(id, cancelled)| {
                        *cancelled = true;
                        *id
                    })
                    .collect();
                for id in hangs {
                    daemon.cancel(id);
                }
                running.iter().any(|(id, _)| daemon.is_answered(*id))
            });
            running.retain(|(id, cancelled)| {
                if !daemon.is_answered(*id) {
                    return true;
                }
                let turn = daemon.finish(*id);
                let reason = turn.stop_reason().to_owned();
                assert!(reason != "cancelled" || *cancelled, "{turn:?}");
                let end = turn.error_code().map_or(reason, str::to_owned);
                *ends.entry(end).or_default() += 1;
                false
            });
        }
        wait_until("the last codex to be gone", || {
            ps::of(lab.root()).len() == 1
        });
        memory.push(ps::memory_now(daemon.pid()));
        let now = Held::by(&daemon, &lab);
        match &before {
            None => before = Some(now),
            Some(before) => assert_eq!(*before, now),
        }
    }
    for directory in fs::read_dir(lab.path("w")).unwrap().flatten() {
        let left = directory.path().join(".plexum-codex-session.tmp");
        assert!(!left.exists(), "{}", left.display());
    }
    let seconds = start.elapsed().as_secs_f32();
    let mib = |bytes: &u64| bytes >> 20;
    // Past the harness's capture: the figures are what a long run is for.
    writeln!(
        std::io::stderr(),
        "soak: {turns} turns in {seconds:.1} s: {ends:?}; memory after each part {:?} MiB",
        memory.iter().map(mib).collect::<Vec<_>>()
    )
    .unwrap();
    let (first, last) = (memory[1], memory[3]);
    assert!(last < first + (8 << 20), "memory grows: {memory:?}");
    drop(daemon);
    lab.assert_quiet();
}
