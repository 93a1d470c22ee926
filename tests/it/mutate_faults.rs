//! Consuming calls while everything goes wrong: at every system call of the rewrite, as a plain trace shows
//! them, the process is killed, the disk is full, the disk fails. The rollout is the old one or the new one,
//! whole, and a run after that does the rest and cleans up.

use crate::support::{LIMIT, Lab, cli, wait_until};
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const THREAD: &str = "01a1fe00-a027-7a81-b8a0-356e91ab6908";

/// Calls of two shapes, one of them to be consumed in each of the two ways, and padding enough for several
/// reads and writes.
fn old() -> String {
    let line = |payload: Value| {
        json!({"timestamp": "t", "type": "response_item", "payload": payload}).to_string() + "\n"
    };
    let mut text = String::new();
    for id in ["call_1", "call_2", "call_3"] {
        text += &line(
            json!({"type": "function_call", "name": "exec_command", "arguments": "{\"cmd\":\"ls\"}", "call_id": id}),
        );
        text += &line(
            json!({"type": "function_call_output", "call_id": id, "output": "x".repeat(200_000)}),
        );
    }
    text
}

struct Place {
    lab: Lab,
    rollout: PathBuf,
    old: String,
    new: String,
}

impl Place {
    fn new() -> Place {
        let lab = Lab::fake(Value::Null);
        let day = lab.codex_home().join("sessions/2026/11/21");
        fs::create_dir_all(&day).expect("a folder");
        let rollout = day.join(format!("rollout-2026-11-21T12-06-56-{THREAD}.jsonl"));
        let old = old();
        fs::write(&rollout, &old).expect("a file");
        let mut place = Place {
            lab,
            rollout,
            old,
            new: String::new(),
        };
        place.check_end("the first run");
        place.new = place.text();
        assert_ne!(place.new, place.old);
        assert_eq!(place.new.len(), place.old.len());
        place
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.rollout).expect("the rollout is there")
    }

    /// Everything as it was before the first run.
    fn reset(&self) {
        let folder = self.rollout.parent().expect("a folder");
        for entry in fs::read_dir(folder).expect("a folder").flatten() {
            fs::remove_file(entry.path()).expect("a file");
        }
        // A folder that is not there yet is one more call that can fail.
        let _ = fs::remove_dir_all(self.lab.codex_home().join("thread-writer-locks"));
        fs::write(&self.rollout, &self.old).expect("a file");
    }

    fn command(&self, program: &Path, before: &[String]) -> Command {
        let mut command = Command::new(program);
        command
            .args(before)
            .args((!before.is_empty()).then_some(env!("CARGO_BIN_EXE_plexum-openai")))
            .args(["mutate", "--thread", THREAD, "--stdin"])
            .env_clear()
            .envs(self.lab.env())
            .stdin(fs::File::open(self.request()).expect("a file"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn request(&self) -> PathBuf {
        let path = self.lab.path("request.json");
        fs::write(
            &path,
            r#"[{"block_id":"call_1","op":"heavy"},{"block_id":"call_3","op":"light"}]"#,
        )
        .expect("a file");
        path
    }

    /// A run without any fault, after whatever was before: all is done, nothing is left.
    fn check_end(&self, after: &str) {
        let output = self
            .command(Path::new(env!("CARGO_BIN_EXE_plexum-openai")), &[])
            .output()
            .expect("the program can be started");
        assert!(output.status.success(), "{after}: {output:?}");
        if !self.new.is_empty() {
            assert!(
                self.text() == self.new,
                "{after}: the end is not the new text"
            );
        }
        let folder = self.rollout.parent().expect("a folder");
        let names: Vec<_> = fs::read_dir(folder)
            .expect("a folder")
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        assert_eq!(
            names,
            [self.rollout.file_name().expect("a name")],
            "{after}"
        );
        let locks = self.lab.codex_home().join("thread-writer-locks");
        let locks: Vec<_> = fs::read_dir(locks)
            .expect("a folder")
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        assert_eq!(locks, [".coordination.lock"], "{after}");
    }
}

/// strace, which can make system calls fail.
fn strace() -> Option<PathBuf> {
    let found = ["/usr/bin/strace", "/usr/local/bin/strace", "/bin/strace"]
        .iter()
        .map(PathBuf::from)
        .find(|path| path.exists());
    if found.is_none() {
        assert!(
            std::env::var_os("CI").is_none_or(|ci| ci != "true"),
            "no strace to inject faults with"
        );
        // Not through a print macro: what those say in a test that passes is never seen.
        let _ = writeln!(
            std::io::stderr(),
            "\n*** SKIPPED: faults while consuming: strace is not installed ***"
        );
    }
    found
}

/// The system calls of the rewrite: the name, and which of its calls with that name it is. What only looks
/// around in `/proc` is left out, and what comes before anything of codex's is touched.
fn calls(place: &Place, strace: &Path) -> Vec<(String, usize)> {
    let trace = place.lab.path("trace");
    let before = ["-f", "-y", "-s", "300", "-o"].map(str::to_owned);
    let mut before = before.to_vec();
    before.push(trace.to_string_lossy().into_owned());
    let status = place
        .command(strace, &before)
        .output()
        .expect("strace can be started")
        .status;
    assert!(status.success());
    let home = place.lab.codex_home().to_string_lossy().into_owned();
    let mut counts: HashMap<String, usize> = HashMap::new();
    let mut begun = false;
    let mut found = Vec::new();
    for line in fs::read_to_string(&trace).expect("strace wrote it").lines() {
        // `PID name(arguments) = result`
        let Some((name, _)) = line
            .split_once(' ')
            .and_then(|(_, call)| call.trim_start().split_once('('))
        else {
            continue;
        };
        let count = counts.entry(name.to_owned()).or_default();
        *count += 1;
        begun |= line.contains(&home) && name != "execve";
        if begun && !line.contains("/proc") && name != "exit_group" {
            found.push((name.to_owned(), *count));
        }
    }
    place.reset();
    found
}

#[test]
fn the_old_file_or_the_new_one() {
    let Some(strace) = strace() else { return };
    let place = Place::new();
    place.reset();
    let calls = calls(&place, &strace);
    let names: BTreeSet<&str> = calls.iter().map(|(name, _)| name.as_str()).collect();
    for name in [
        "openat",
        "flock",
        "read",
        "pwrite64",
        "fsync",
        "renameat2",
        "unlink",
        "fchmod",
        "utimensat",
    ] {
        assert!(
            names.contains(name),
            "the trace shows the rewrite: {name} in {names:?}"
        );
    }
    let mut ends = HashMap::new();
    for (name, number) in &calls {
        for fault in ["signal=KILL", "error=ENOSPC", "error=EIO"] {
            let what = format!("{name} number {number}: {fault}");
            let before = [
                "-f",
                "--seccomp-bpf",
                "-qq",
                "-o",
                "/dev/null",
                "-e",
                &format!("trace={name}"),
                "-e",
                &format!("inject={name}:{fault}:when={number}"),
            ]
            .map(str::to_owned);
            let mut child = place
                .command(&strace, &before)
                .spawn()
                .expect("strace can be started");
            let status = cli::wait(&mut child, LIMIT);
            let text = place.text();
            let is_new = text == place.new;
            assert!(
                is_new || text == place.old,
                "{what}: neither the old file nor the new one"
            );
            match status.code() {
                Some(0) => assert!(is_new, "{what}: success without the new file"),
                Some(1) => {}
                // strace ends as what it traces did.
                None if fault == "signal=KILL" => {}
                _ => panic!("{what}: {status:?}"),
            }
            *ends.entry((fault, is_new)).or_insert(0) += 1;
            place.check_end(&what);
            place.reset();
        }
    }
    // Each fault struck before the file was replaced, and after.
    for fault in ["signal=KILL", "error=ENOSPC", "error=EIO"] {
        for is_new in [false, true] {
            assert!(
                ends.contains_key(&(fault, is_new)),
                "{fault} {is_new}: {ends:?}"
            );
        }
    }
}

/// While the rewrite is at work the thread's lock is held as codex holds it, and the lock of our own keeps a
/// second run away.
#[test]
fn two_runs_do_not_meet() {
    let Some(strace) = strace() else { return };
    let place = Place::new();
    place.reset();
    let before = [
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "trace=renameat2",
        "-e",
        "inject=renameat2:delay_enter=2s",
    ]
    .map(str::to_owned);
    let mut first = place
        .command(&strace, &before)
        .spawn()
        .expect("strace can be started");
    let lock = place
        .lab
        .codex_home()
        .join(format!("thread-writer-locks/{THREAD}.lock"));
    wait_until("the first run has the lock", || lock.exists());
    let output = place
        .command(Path::new(env!("CARGO_BIN_EXE_plexum-openai")), &[])
        .output()
        .expect("the program can be started");
    assert_eq!(
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned()
        ),
        (
            Some(1),
            format!(
                "plexum-openai: thread {THREAD} is in use by another codex process; try again when its turn is over\n"
            )
        )
    );
    assert!(cli::wait(&mut first, LIMIT).success());
    place.check_end("both runs");
}
