//! Which thread a workspace goes on with: copies and other agents' threads, what codex refuses, what belongs to
//! another user, and what the plugin leaves in a workspace.

use crate::support::codex::real_codex;
use crate::support::{Cli, Daemon, Lab, Turn, method};
use rustix::fs::FlockOperation;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;

const ID: &str = "01a1fe09-e49e-7b41-ae77-ccf89ea932da";
const BAD: &str = ".plexum-codex-session.bad";
/// Nobody's uid on any machine that runs these tests.
const STRANGER: u32 = 61_234;

#[track_caller]
fn shell(program: &str, arguments: &[&str], directory: &Path) {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(directory);
    for (name, value) in [
        ("GIT_CONFIG_GLOBAL", "/dev/null"),
        ("GIT_AUTHOR_NAME", "a"),
        ("GIT_AUTHOR_EMAIL", "a@b"),
        ("GIT_COMMITTER_NAME", "a"),
        ("GIT_COMMITTER_EMAIL", "a@b"),
    ] {
        command.env(name, value);
    }
    let output = command.output().expect("it can be started");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

fn turn_in(daemon: &mut Daemon, lab: &Lab, workspace: &Path, text: &str) -> Turn {
    let mut params = Daemon::prompt(lab, text);
    params["agent"]["workspace"] = json!(workspace);
    daemon.turn(params)
}

fn stored(workspace: &Path) -> String {
    fs::read_to_string(workspace.join(".plexum-codex-session")).unwrap()
}

// fault: 71, 101
real_codex! {
    fn copied_workspace_gets_own_thread(codex: &Path) {
        let lab = Lab::real(codex, json!([{"text": "ok"}]));
        let alice = lab.workspace();
        shell("git", &["init", "-q"], &alice);
        let mut daemon = Daemon::start(&lab);
        let first = turn_in(&mut daemon, &lab, &alice, "My PIN is 4711.");
        // The agent has committed it whatever the plugin did against that.
        shell("git", &["add", "-f", "-A"], &alice);
        shell("git", &["commit", "-qm", "x"], &alice);
        for copy in [&["cp", "-r"][..], &["cp", "-al"], &["git", "clone", "-q"]] {
            let bob = lab.path(&copy.concat());
            let mut arguments = copy[1..].to_vec();
            let (from, to) = (alice.display().to_string(), bob.display().to_string());
            arguments.extend([from.as_str(), to.as_str()]);
            shell(copy[0], &arguments, lab.root());
            assert_eq!(stored(&bob), first.thread(), "{copy:?}");
            let consume = daemon.call(method::MUTATE, json!({"agent_id": "a", "workspace": bob,
                "mutations": [{"block_id": "call_1", "op": "consume-light"}]}));
            assert!(consume["error"]["message"].as_str().unwrap().contains("belongs to"), "{consume}");
            let by_hand = Cli::new(&lab, ["mutate", "call_1", "-w"]).arg(&bob).run();
            assert_eq!(by_hand.status, 1, "{by_hand:?}");
            assert!(by_hand.stderr.contains("belongs to"), "{by_hand:?}");
            let doctor = Cli::new(&lab, ["doctor", "-w"]).arg(&bob).run();
            assert!(doctor.stdout.contains("sets it aside and starts a new thread"), "{doctor:?}");
            let turn = turn_in(&mut daemon, &lab, &bob, "Hello, I am new.");
            assert_eq!(turn.result()["thread_state"], "new", "{copy:?}");
            assert_ne!(turn.thread(), first.thread());
            daemon.log("warning", "this workspace is a copy");
            assert_eq!(stored(&bob), turn.thread());
            assert_eq!(fs::read_to_string(bob.join(BAD)).unwrap(), first.thread());
            let request = lab.model().requests().pop().unwrap().body.to_string();
            assert!(!request.contains("My PIN"), "{copy:?}");
            let again = turn_in(&mut daemon, &lab, &bob, "again");
            assert_eq!((&again.result()["thread_state"], again.thread()), (&json!("resumed"), turn.thread()));
        }
        assert_eq!(stored(&alice), first.thread());
        // Moved, twice, and with something else where it began.
        let (there, beyond) = (lab.path("there"), lab.path("beyond"));
        fs::rename(&alice, &there).unwrap();
        let turn = turn_in(&mut daemon, &lab, &there, "moved");
        assert_eq!((&turn.result()["thread_state"], turn.thread()), (&json!("resumed"), first.thread()));
        fs::create_dir(&alice).unwrap();
        assert_eq!(turn_in(&mut daemon, &lab, &there, "again").thread(), first.thread());
        fs::rename(&there, &beyond).unwrap();
        assert_eq!(turn_in(&mut daemon, &lab, &beyond, "beyond").thread(), first.thread());
        // A copy of what was moved: the first directory does not help to tell.
        fs::remove_dir_all(&alice).unwrap();
        let carol = lab.path("carol");
        shell("cp", &["-r", &beyond.display().to_string(), &carol.display().to_string()], lab.root());
        assert_ne!(turn_in(&mut daemon, &lab, &carol, "copy").thread(), first.thread());
    }
}

// fault: 71
real_codex! {
    fn moved_workspace_keeps_thread(codex: &Path) {
        let lab = Lab::real(codex, json!([{"text": "ok"}]));
        let mut daemon = Daemon::start(&lab);
        let (alice, there) = (lab.workspace(), lab.path("there"));
        let first = turn_in(&mut daemon, &lab, &alice, "one").thread().to_owned();
        fs::rename(&alice, &there).unwrap();
        fs::create_dir(&alice).unwrap();
        let doctor = Cli::new(&lab, ["doctor", "-w"]).arg(&there).run();
        assert!(!doctor.stdout.contains("belongs to"), "{doctor:?}");
        let newcomer = turn_in(&mut daemon, &lab, &alice, "new").thread().to_owned();
        let turn = turn_in(&mut daemon, &lab, &there, "two");
        assert_eq!((&turn.result()["thread_state"], turn.thread()), (&json!("resumed"), first.as_str()));
        // Older than the newcomer's thread, and so no newcomer.
        fs::write(there.join(".plexum-codex-session"), &newcomer).unwrap();
        let turn = turn_in(&mut daemon, &lab, &there, "three");
        assert_ne!(turn.thread(), newcomer);
        daemon.log("warning", "this workspace is a copy");
        // What has the path is young, but has the id: it was put back from a copy.
        let (kept, copy) = (turn.thread().to_owned(), lab.path("copy"));
        for (from, to) in [(&there, &copy), (&copy, &there)] {
            if to.exists() {
                fs::remove_dir_all(to).unwrap();
            }
            shell("cp", &["-r", &from.display().to_string(), &to.display().to_string()], lab.root());
        }
        assert_ne!(turn_in(&mut daemon, &lab, &copy, "four").thread(), kept);
    }
}

// fault: 80
real_codex! {
    fn replaces_thread_whose_rollout_is_a_fifo(codex: &Path) {
        let lab = Lab::real(codex, json!([{"text": "ok"}]));
        let mut daemon = Daemon::start(&lab);
        let first = daemon.turn(Daemon::prompt(&lab, "one")).thread().to_owned();
        let rollout = &lab.rollouts(&first)[0];
        fs::remove_file(rollout).unwrap();
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, rollout, fifo, rustix::fs::Mode::RWXU, 0).unwrap();
        let doctor = Cli::new(&lab, ["doctor", "-w"]).arg(lab.workspace()).run();
        assert!(doctor.stdout.contains("it is a pipe or a device, not a regular file; the next turn"), "{doctor:?}");
        let turn = daemon.turn(Daemon::prompt(&lab, "two"));
        assert_eq!((turn.stop_reason(), &turn.result()["thread_state"]), ("end_turn", &json!("replaced")));
        daemon.log("warning", "it is a pipe or a device, not a regular file; a new thread is started");
        assert_eq!(fs::read_to_string(lab.workspace().join(BAD)).unwrap(), first);
    }
}

// fault: 71
real_codex! {
    fn keeps_thread_when_codex_changes_directory(codex: &Path) {
        let lab = Lab::real(codex, json!([{"text": "ok"}]));
        let elsewhere = lab.path("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        lab.config(json!({"extra_args": ["-C", elsewhere]}));
        let thread = {
            let mut daemon = Daemon::start(&lab);
            daemon.turn(Daemon::prompt(&lab, "one")).thread().to_owned()
        };
        // exec resume takes no -C in its place: what is stored is all that is looked at here.
        let mutate = Cli::new(&lab, ["mutate", "call_1", "-w"]).arg(lab.workspace()).run();
        assert!(!mutate.stderr.contains("belongs to"), "{mutate:?}");
        lab.config(json!({}));
        let mutate = Cli::new(&lab, ["mutate", "call_1", "-w"]).arg(lab.workspace()).run();
        assert!(mutate.stderr.contains(&thread), "{mutate:?}");
    }
}

// fault: 73
real_codex! {
    fn unarchives_archived_thread(codex: &Path) {
        let lab = Lab::real(codex, json!([{"text": "ok"}]));
        // codex archives none that is loaded.
        lab.config(json!({"warm_secs": 0}));
        let mut daemon = Daemon::start(&lab);
        let first = daemon.turn(Daemon::prompt(&lab, "one"));
        let oldest = codex.to_string_lossy().contains("/0.135.0/");
        if oldest {
            // It has no such subcommand: another codex of the same home may have archived it.
            let rollout = &lab.rollouts(first.thread())[0];
            let archived = lab.codex_home().join("archived_sessions");
            fs::create_dir_all(&archived).unwrap();
            fs::rename(rollout, archived.join(rollout.file_name().unwrap())).unwrap();
        } else {
            let mut archive = Command::new(codex);
            archive.args(["archive", first.thread()]).env_clear().envs(lab.env());
            assert!(archive.output().unwrap().status.success());
        }
        let doctor = Cli::new(&lab, ["doctor", "-w"]).arg(lab.workspace()).run();
        assert!(doctor.stdout.contains(&format!("unarchive {}", first.thread())), "{doctor:?}");
        let turn = daemon.turn(Daemon::prompt(&lab, "two"));
        assert_eq!((turn.stop_reason(), turn.thread()), ("end_turn", first.thread()));
        assert_eq!(turn.result()["thread_state"], "resumed");
        if !oldest {
            daemon.log("warning", "it is unarchived");
        }
    }
}

// fault: 74
real_codex! {
    fn replaces_thread_that_cannot_be_opened(codex: &Path) {
        for (name, damage) in [
            ("ordinal", &b"{\"timestamp\":\"2026-11-21T12:00:00.000Z\",\"type\":\"event_msg\",\"payload\":{\"type\":\"token_count\",\"info\":null,\"rate_limits\":null}}\n"[..]),
            ("garbage", b"\xff\xfe\xfd\n"),
        ] {
            let lab = Lab::real(codex, json!([{"text": "ok"}]));
            let mut daemon = Daemon::start(&lab);
            let first = daemon.turn(Daemon::prompt(&lab, "one"));
            let rollout = &lab.rollouts(first.thread())[0];
            if name == "ordinal" {
                let mut bytes = fs::read(rollout).unwrap();
                bytes.extend(damage);
                fs::write(rollout, bytes).unwrap();
            } else {
                fs::write(rollout, damage).unwrap();
            }
            // 0.135 has no ordinals, and misses none.
            let opens = name == "ordinal" && codex.to_string_lossy().contains("/0.135.0/");
            if name == "ordinal" && !opens {
                let doctor = Cli::new(&lab, ["doctor", "-w"]).arg(lab.workspace()).run();
                assert!(doctor.stdout.contains("has no ordinal; the next turn starts a new thread"), "{doctor:?}");
            }
            let turn = daemon.turn(Daemon::prompt(&lab, "two"));
            assert_eq!(turn.stop_reason(), "end_turn", "{name}: {turn:?}");
            if opens {
                assert_eq!(turn.thread(), first.thread());
                continue;
            }
            assert_eq!(turn.result()["thread_state"], "replaced", "{name}");
            assert_ne!(turn.thread(), first.thread());
            daemon.log("warning", first.thread());
            assert_eq!(fs::read_to_string(lab.workspace().join(BAD)).unwrap(), first.thread());
            assert_eq!(lab.stored_thread().unwrap(), turn.thread());
            assert_eq!(daemon.turn(Daemon::prompt(&lab, "three")).result()["thread_state"], "resumed");
        }
    }
}

// fault: 74
real_codex! {
    fn replaces_conversation_of_another_account(codex: &Path) {
        let refused = json!({"error": {"message": "The encrypted content could not be verified.",
            "type": "invalid_request_error", "param": null, "code": "invalid_encrypted_content"}});
        let lab = Lab::real(codex, json!([
            {"match": "two", "status": 400, "body": refused, "times": 2},
            {"text": "ok"},
        ]));
        let mut daemon = Daemon::start(&lab);
        let first = daemon.turn(Daemon::prompt(&lab, "one"));
        let turn = daemon.turn(Daemon::prompt(&lab, "two"));
        assert_eq!(turn.stop_reason(), "end_turn", "{turn:?}");
        assert_eq!(turn.result()["thread_state"], "replaced");
        assert_eq!(fs::read_to_string(lab.workspace().join(BAD)).unwrap(), first.thread());
    }
}

// fault: 75
real_codex! {
    fn doctor_foretells_moved_codex_home(codex: &Path) {
        let call = json!([{"name": "exec_command", "arguments": {"cmd": "echo hi"}}]);
        let lab = Lab::real(codex, json!([{"match": "three", "calls": call, "times": 1}, {"text": "ok"}]));
        let doctor = || Cli::new(&lab, ["doctor", "-w"]).arg(lab.workspace()).run().stdout;
        let first = Daemon::start(&lab).turn(Daemon::prompt(&lab, "one")).thread().to_owned();
        assert!(!doctor().contains("codex's index"), "{}", doctor());
        let moved = lab.path("moved");
        fs::rename(lab.codex_home(), &moved).unwrap();
        lab.config(json!({"codex_home": moved}));
        let foretold = doctor();
        let line = foretold.lines().find(|line| line.contains("codex's index does not have"));
        let line = line.unwrap_or_else(|| panic!("{foretold}"));
        let turn = Daemon::start(&lab).turn(Daemon::prompt(&lab, "two"));
        assert_eq!(turn.stop_reason(), "end_turn", "{turn:?}");
        if codex.to_string_lossy().contains("/0.135.0/") {
            // It looks for the file where its index has none.
            assert_eq!(turn.thread(), first);
            assert!(line.starts_with("ok"), "{line}");
        } else {
            assert_eq!(turn.result()["thread_state"], "replaced");
            assert!(line.starts_with("warn") && line.contains("the next turn starts a new thread"), "{line}");
        }
        // A copy, of which codex writes to the original.
        let (thread, copy) = (turn.thread().to_owned(), lab.path("copy"));
        shell("cp", &["-r", &moved.display().to_string(), &copy.display().to_string()], lab.root());
        lab.config(json!({"codex_home": copy}));
        let foretold = doctor();
        assert!(foretold.contains("neither reported nor consumed; run, while no codex is running: rm "), "{foretold}");
        let original = |thread: &str| {
            let listed = Command::new("find").arg(&moved).args(["-name", &format!("*{thread}*")]).output().unwrap();
            let path = String::from_utf8(listed.stdout).unwrap();
            fs::metadata(path.trim()).unwrap().len()
        };
        let before = original(&thread);
        let mut daemon = Daemon::start(&lab);
        assert_eq!(daemon.turn(Daemon::prompt(&lab, "three")).thread(), thread);
        daemon.log("warning", "its tool calls cannot be reported: the codex home may be a copy");
        assert!(original(&thread) > before);
        // As it is advised.
        for entry in fs::read_dir(&copy).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with("state_") {
                fs::remove_file(entry.path()).unwrap();
            }
        }
        let before = original(&thread);
        assert_eq!(Daemon::start(&lab).turn(Daemon::prompt(&lab, "four")).thread(), thread);
        assert_eq!(original(&thread), before);
        assert!(!doctor().contains("codex's index"), "{}", doctor());
    }
}

// fault: 76
real_codex! {
    fn packed_rollout_is_not_reported_as_moved(codex: &Path) {
        let Some(zstd) = crate::programs::find("zstd") else {
            return;
        };
        let lab = Lab::real(codex, json!([{"text": "ok"}]));
        let thread = Daemon::start(&lab).turn(Daemon::prompt(&lab, "one")).thread().to_owned();
        let rollout = &lab.rollouts(&thread)[0];
        assert!(Command::new(zstd).args(["-q", "--rm"]).arg(rollout).status().unwrap().success());
        let doctor = Cli::new(&lab, ["doctor", "-w"]).arg(lab.workspace()).run().stdout;
        let line = doctor.lines().find(|line| line.contains(".jsonl.zst")).unwrap();
        assert!(line.starts_with("ok"), "{line}");
    }
}

/// A fake codex that says these lines, one a run, when it is to resume.
fn refusing(lines: &[&str]) -> Lab {
    let lab = Lab::fake(Value::Null);
    let runs: Vec<Value> = lines
        .iter()
        .map(|line| json!(["read_stdin", {"err": line}, {"exit": 1}]))
        .collect();
    lab.script(json!({"runs": runs}));
    fs::write(lab.session_file(), ID).unwrap();
    lab
}

// fault: 74
#[test]
fn keeps_thread_on_passing_failures() {
    const PREFIX: &str = "Error: thread/resume: thread/resume failed: ";
    for (lines, code, runs) in [
        (
            vec![format!(
                "{PREFIX}No space left on device (os error 28) (code -32603)"
            )],
            "codex_failed",
            1,
        ),
        (
            vec![format!("{PREFIX}database is locked (code -32603)")],
            "codex_failed",
            1,
        ),
        (
            vec![format!(
                "{PREFIX}thread {ID} already has an active writer (code -32600)"
            )],
            "session_busy",
            1,
        ),
        (
            vec!["Error: unexpected status 401 Unauthorized".to_owned()],
            "auth",
            1,
        ),
        (
            vec![format!("{PREFIX}odd"), format!("{PREFIX}other")],
            "codex_failed",
            2,
        ),
    ] {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let lab = refusing(&lines);
        let mut daemon = Daemon::start(&lab);
        let turn = daemon.turn(Daemon::prompt(&lab, "hi"));
        assert_eq!(turn.error_code(), Some(code), "{lines:?}: {turn:?}");
        assert_eq!(lab.fake_runs().len(), runs, "{lines:?}");
        assert_eq!(lab.stored_thread().unwrap(), ID);
        assert!(!lab.workspace().join(BAD).exists());
    }
}

// fault: 74, 92
#[test]
fn lost_thread_error_fails_turn() {
    for line in [
        "Error: thread/resume: thread/resume failed: /a/database/b is odd (code -32603)",
        "Error: thread/resume: thread/resume failed: no rollout found for thread id x (code -32600)",
    ] {
        let lab = refusing(&[line]);
        lab.config(json!({"lost_thread": "error"}));
        let mut daemon = Daemon::start(&lab);
        let turn = daemon.turn(Daemon::prompt(&lab, "hi"));
        assert_eq!(turn.error_code(), Some("thread_lost"), "{line}: {turn:?}");
        assert_eq!(lab.stored_thread().unwrap(), ID);
    }
}

// fault: 72
#[test]
fn session_file_is_excluded_from_git() {
    let lab = Lab::fake(Value::Null);
    let repository = lab.path("repository");
    let tree = lab.path("tree");
    fs::create_dir_all(repository.join("sub")).unwrap();
    shell("git", &["init", "-q"], &repository);
    shell(
        "git",
        &["commit", "-q", "--allow-empty", "-m", "x"],
        &repository,
    );
    let tree_name = tree.display().to_string();
    shell("git", &["worktree", "add", "-q", &tree_name], &repository);
    let mut daemon = Daemon::start(&lab);
    for workspace in [&repository.join("sub"), &tree] {
        assert_eq!(
            turn_in(&mut daemon, &lab, workspace, "hi").stop_reason(),
            "end_turn"
        );
        assert_eq!(stored(workspace).len(), 36);
        fs::write(workspace.join("work"), "").unwrap();
        shell("git", &["add", "-A"], workspace);
        let staged = Command::new("git")
            .args(["diff", "--cached", "--name-only", "--relative"])
            .current_dir(workspace)
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(staged.stdout).unwrap(), "work\n");
    }
}

// fault: 115
#[test]
fn busy_workspace_names_holder() {
    let lab = Lab::fake(Value::Null);
    let directory = fs::File::open(lab.workspace()).unwrap();
    rustix::fs::flock(&directory, FlockOperation::LockExclusive).unwrap();
    let turn = Cli::new(&lab, ["turn", "hi"]).run();
    assert_eq!(turn.status, 1);
    let holder = format!("(process {}, ", std::process::id());
    assert!(turn.stderr.contains(&holder), "{turn:?}");
}

// fault: 115
#[test]
fn reports_lock_that_is_not_a_file() {
    let lab = Lab::fake(Value::Null);
    let day = lab.codex_home().join("sessions/2026/11/21");
    let locks = lab.codex_home().join("thread-writer-locks");
    fs::create_dir_all(&day).unwrap();
    fs::create_dir_all(locks.join(".coordination.lock")).unwrap();
    fs::write(
        day.join(format!("rollout-2026-11-21T12-06-56-{ID}.jsonl")),
        format!("{{\"type\":\"session_meta\",\"payload\":{{\"id\":\"{ID}\"}}}}\n"),
    )
    .unwrap();
    fs::write(lab.session_file(), ID).unwrap();
    let fix = format!(
        "it is a directory; run: rmdir {}/.coordination.lock",
        locks.display()
    );
    for arguments in [["mutate", "call_1"], ["doctor", "--json"]] {
        let output = Cli::new(&lab, arguments)
            .arg("-w")
            .arg(lab.workspace())
            .run();
        let said = format!("{}{}", output.stdout, output.stderr);
        assert!(said.contains(&fix), "{said}");
    }
}

// fault: 76
#[test]
fn doctor_accepts_packed_rollout() {
    let lab = Lab::fake(Value::Null);
    let day = lab.codex_home().join("sessions/2026/11/21");
    fs::create_dir_all(&day).unwrap();
    fs::write(
        day.join(format!("rollout-2026-11-21T12-06-56-{ID}.jsonl.zst")),
        "x",
    )
    .unwrap();
    fs::write(lab.session_file(), ID).unwrap();
    let doctor = Cli::new(&lab, ["doctor", "-w"]).arg(lab.workspace()).run();
    assert!(
        doctor
            .stdout
            .lines()
            .any(|line| line.starts_with("ok") && line.contains(".jsonl.zst")),
        "{doctor:?}"
    );
    let mut daemon = Daemon::start(&lab);
    let response = daemon.call(
        method::MUTATE,
        json!({"agent_id": "a", "workspace": lab.workspace(),
        "mutations": [{"block_id": "call_1", "op": "consume-light"}]}),
    );
    assert_eq!(response["error"]["code"], -32011, "{response}");
    assert!(
        response["error"]["message"]
            .as_str()
            .unwrap()
            .contains("is compressed"),
        "{response}"
    );
}

// fault: 106
#[test]
fn rejects_several_rollouts_of_one_thread() {
    let lab = Lab::fake(Value::Null);
    let day = lab.codex_home().join("sessions/2026/11/21");
    fs::create_dir_all(&day).unwrap();
    let name = |time: &str| day.join(format!("rollout-{time}-{ID}.jsonl"));
    fs::write(name("2026-11-21T12-06-56"), "{}\n").unwrap();
    fs::write(name("zzz"), "{}\n").unwrap();
    let mutate = || Cli::new(&lab, ["mutate", "call_1", "--dry-run", "--thread", ID]).run();
    let output = mutate();
    assert_eq!(output.status, 1);
    assert!(
        output.stdout.contains("\"missing\":[\"call_1\"]"),
        "{output:?}"
    );
    fs::write(name("2027-11-21T12-06-56"), "{}\n").unwrap();
    let output = mutate();
    assert_eq!(output.status, 1);
    for part in ["2026-11-21T12-06-56", "2027-11-21T12-06-56"] {
        assert!(output.stderr.contains(part), "{output:?}");
    }
}

// fault: 71, 101, 106
#[test]
fn detects_foreign_thread_behind_packed_or_decoy_rollout() {
    for (packed, decoy) in [(true, false), (false, true)] {
        if packed && crate::programs::find("zstd").is_none() {
            continue;
        }
        let lab = Lab::fake(Value::Null);
        let bob = lab.path("bob");
        fs::create_dir(&bob).unwrap();
        let day = lab.codex_home().join("sessions/2026/11/21");
        fs::create_dir_all(&day).unwrap();
        let write = |time: &str, cwd: &Path| {
            let path = day.join(format!("rollout-2026-11-21T{time}-{ID}.jsonl"));
            let meta = json!({"type": "session_meta", "payload": {"id": ID, "cwd": cwd}});
            let turn = json!({"type": "turn_context", "payload": {"turn_id": "1", "cwd": cwd}});
            fs::write(&path, format!("{meta}\n{turn}\n")).unwrap();
            path
        };
        let rollout = write("12-06-56", &bob);
        if packed {
            shell(
                "zstd",
                &["-q", "--rm", &rollout.to_string_lossy()],
                lab.root(),
            );
        }
        if decoy {
            write("13-06-56", &lab.workspace());
        }
        fs::write(lab.session_file(), ID).unwrap();
        let mut daemon = Daemon::start(&lab);
        let turn = daemon.turn(Daemon::prompt(&lab, "hi"));
        assert_eq!(turn.result()["thread_state"], "new", "{packed} {turn:?}");
        assert_ne!(turn.thread(), ID);
        daemon.log("warning", "this workspace is a copy");
    }
}

// fault: 109
#[test]
fn rejects_files_of_another_user() {
    if crate::support::user::User::one().is_none() {
        return;
    }
    for owned in ["workspace", "codex"] {
        let lab = Lab::fake(Value::Null);
        fs::write(lab.session_file(), ID).unwrap();
        let day = lab.codex_home().join("sessions/2026/11/21");
        fs::create_dir_all(&day).unwrap();
        fs::write(
            day.join(format!("rollout-2026-11-21T12-06-56-{ID}.jsonl")),
            "{}\n",
        )
        .unwrap();
        chown(lab.path(owned), Some(STRANGER), Some(STRANGER)).unwrap();
        let fix = format!("run: sudo -u '#{STRANGER}' ");
        for arguments in [
            &["turn", "hi"][..],
            &["mutate", "call_1"],
            &["doctor", "--json"],
        ] {
            let output = Cli::new(&lab, arguments.iter().copied())
                .arg("-w")
                .arg(lab.workspace())
                .run();
            let said = format!("{}{}", output.stdout, output.stderr);
            assert_eq!(output.status, 1, "{owned} {arguments:?}: {said}");
            assert!(said.contains(&fix), "{owned} {arguments:?}: {said}");
        }
        let mut daemon = Daemon::start(&lab);
        let id = daemon.request(method::STREAM, Daemon::prompt(&lab, "hi"));
        let response = daemon.finish(id).answer;
        assert!(
            response["error"]["message"]
                .as_str()
                .unwrap()
                .contains(&fix),
            "{response}"
        );
        assert!(lab.fake_runs().is_empty());
        assert!(!lab.codex_home().join("thread-writer-locks").exists());
    }
}
