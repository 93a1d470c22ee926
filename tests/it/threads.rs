//! `threads`: the conversations of many agents at a glance.

use crate::support::codex::real_codex;
use crate::support::{Cli, Daemon, Lab, cli, wait_until};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

fn list(lab: &Lab, arguments: &[&str]) -> Vec<Value> {
    let output = Cli::new(lab, ["threads", "--json"]).args(arguments).run();
    assert_eq!(
        (output.status, output.stderr.as_str()),
        (0, ""),
        "{output:?}"
    );
    serde_json::from_str(&output.stdout).unwrap()
}

fn in_workspace(lab: &Lab, name: &str) -> Value {
    let mut params = Daemon::prompt(lab, "hi");
    params["agent"]["workspace"] = lab.path(name).to_str().into();
    params
}

real_codex! {
    /// Those that turns ran in, the newest first, with what codex counted; and those below a directory that is named.
    fn lists_workspaces_of_turns(codex: &Path) {
        let lab = Lab::real(codex, json!([{"text": "hi", "usage": {"input": 1000, "cached": 0, "output": 20, "reasoning": 0}}]));
        assert_eq!(list(&lab, &[]), [""; 0].map(Value::from));
        let mut daemon = Daemon::start(&lab);
        let first = daemon.turn(in_workspace(&lab, "agents/first"));
        let second = daemon.turn(in_workspace(&lab, "agents/second"));
        daemon.turn(in_workspace(&lab, "agents/second"));
        let root = lab.root().canonicalize().unwrap();
        let found = list(&lab, &[]);
        assert_eq!(found.len(), 2, "{found:?}");
        let of = |name: &str| {
            let path = root.join("agents").join(name);
            found.iter().find(|row| row["workspace"] == path.to_str().unwrap()).unwrap()
        };
        assert_eq!(of("first")["thread"], first.thread());
        assert_eq!(of("second")["thread"], second.thread());
        assert_eq!(of("first")["tokens"]["input_tokens"], 1000);
        assert_eq!(of("second")["tokens"]["input_tokens"], 2000);
        assert_eq!(of("second")["context"]["tokens"], 1020);
        for row in &found {
            let rollout = Path::new(row["rollout"].as_str().unwrap());
            assert_eq!(row["rollout_bytes"], fs::metadata(rollout).unwrap().len());
            assert_eq!(row["held_by"].is_object(), lab.keeps_servers(), "{row}");
        }
        let agents = root.join("agents");
        let mut below = list(&lab, &[agents.to_str().unwrap()]);
        below.sort_by_key(|row| row["workspace"].to_string());
        let mut all = found.clone();
        all.sort_by_key(|row| row["workspace"].to_string());
        assert_eq!(below, all);
        // One that is gone, or has no conversation any more, is not shown.
        fs::remove_dir_all(agents.join("second")).unwrap();
        assert_eq!(list(&lab, &[]).len(), 1);
    }
}

#[test]
fn shows_holder_of_workspace() {
    let lab = Lab::fake(Value::Null);
    assert!(Cli::new(&lab, ["turn", "hi"]).run().status == 0);
    lab.script(json!([{"touch": lab.path("started")}, {"wait_for": lab.path("go")}, "default"]));
    let mut turn = Cli::new(&lab, ["turn", "hi"]).spawn();
    wait_until("the turn to start", || lab.path("started").exists());
    let found = list(&lab, &[]);
    assert_eq!(found[0]["held_by"]["pid"], turn.id(), "{found:?}");
    let output = Cli::new(&lab, ["threads"]).run();
    assert!(output.stdout.starts_with("last turn  "), "{output:?}");
    assert!(
        output
            .stdout
            .contains(&format!("{} plexum-openai", turn.id())),
        "{output:?}"
    );
    fs::write(lab.path("go"), "").unwrap();
    assert!(cli::wait(&mut turn, Duration::from_secs(60)).success());
}

#[test]
fn lists_two_hundred_workspaces_quickly() {
    let lab = Lab::fake(Value::Null);
    let day = lab.codex_home().join("sessions/2026/11/21");
    fs::create_dir_all(&day).unwrap();
    for number in 0..200 {
        let thread = format!("01a1fe00-a027-7a81-b8a0-{number:012}");
        let workspace = lab.path("many").join(number.to_string());
        fs::create_dir_all(&workspace).unwrap();
        fs::write(workspace.join(".plexum-codex-session"), &thread).unwrap();
        let meta = json!({"timestamp": "2026-11-21T12:00:00.000Z", "type": "session_meta", "payload": {"id": thread}});
        let rollout = day.join(format!("rollout-2026-11-21T12-00-00-{thread}.jsonl"));
        fs::write(rollout, format!("{meta}\n")).unwrap();
    }
    let many = lab.path("many");
    let quickest = (0..5).map(|_| {
        let begun = Instant::now();
        assert_eq!(list(&lab, &[many.to_str().unwrap()]).len(), 200);
        begun.elapsed()
    });
    // Not optimised, and beside other tests; the optimised program takes a fraction of it.
    let quickest = quickest.min().unwrap();
    assert!(quickest < Duration::from_millis(1500), "{quickest:?}");
}
