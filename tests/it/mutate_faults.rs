//! Consuming calls while everything goes wrong: at every system call of the rewrite, as a plain trace shows
//! them, the process is killed, the disk is full, the disk fails. The rollout is the old one or the new one,
//! whole, and a run after that does the rest and cleans up.

use crate::support::{LIMIT, Lab, cli, ps, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::{Read, Write};
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
            .stdout(fs::File::create(self.lab.path("stdout")).expect("a file"))
            .stderr(Stdio::piped());
        command
    }

    /// strace's flags that let it see only what is done with these files: what a run looks at in `/proc` is
    /// never the same twice, and would shift the numbers of all calls behind it.
    fn only_files(&self) -> Vec<String> {
        let folder = self.rollout.parent().expect("a folder");
        let name = self.rollout.file_name().expect("a name").to_string_lossy();
        let locks = self.lab.codex_home().join("thread-writer-locks");
        let files = [
            self.rollout.clone(),
            folder.join(format!(".{name}.plexum-tmp")),
            folder.to_owned(),
            locks.join(".coordination.lock"),
            locks.join(format!("{THREAD}.lock")),
            locks,
            self.lab.path("stdout"),
        ];
        files
            .iter()
            .flat_map(|file| ["-P".to_owned(), file.to_string_lossy().into_owned()])
            .collect()
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

/// The system calls of the rewrite: the name, and which of its calls with that name it is. Only calls that have
/// to do with files are listed, for only these change what a kill leaves behind.
fn calls(place: &Place, strace: &Path) -> Vec<(String, usize)> {
    let trace = place.lab.path("trace");
    let mut before = ["-f", "-o"].map(str::to_owned).to_vec();
    before.push(trace.to_string_lossy().into_owned());
    before.extend(place.only_files());
    let output = place
        .command(strace, &before)
        .output()
        .expect("strace can be started");
    assert!(output.status.success(), "{output:?}");
    let trace = fs::read_to_string(&trace).expect("strace wrote it");
    let mut counts: HashMap<&str, usize> = HashMap::new();
    let mut processes = BTreeSet::new();
    let mut found = Vec::new();
    for line in trace.lines() {
        // `PID name(arguments) = result`
        let Some((pid, call)) = line.split_once(' ') else {
            continue;
        };
        let Some((name, _)) = call.trim_start().split_once('(') else {
            continue;
        };
        processes.insert(pid);
        let count = counts.entry(name).or_default();
        *count += 1;
        found.push((name.to_owned(), *count));
    }
    assert_eq!(processes.len(), 1, "strace counts for each thread: {trace}");
    place.reset();
    found
}

/// Can a disk make this system call fail? What there is to say about a file that is closed, fsync has said
/// before; and std takes a close of a folder that fails for a bug, and panics. With poll std looks at the three
/// streams before `main`.
fn can_fail(name: &str) -> bool {
    !matches!(name, "close" | "poll")
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
        // With or without the `at`, as the processor has it.
        "unlink",
        "fchmod",
        "utimensat",
        "write",
    ] {
        assert!(
            names.iter().any(|known| known.starts_with(name)),
            "the trace shows the rewrite: {name} in {names:?}"
        );
    }
    let mut ends = HashMap::new();
    for (name, number) in &calls {
        for fault in ["signal=KILL", "error=ENOSPC", "error=EIO"] {
            if fault != "signal=KILL" && !can_fail(name) {
                continue;
            }
            let what = format!("{name} number {number}: {fault}");
            let mut before = ["-f", "-qq", "-o", "/dev/null", "-e"]
                .map(str::to_owned)
                .to_vec();
            before.push(format!("trace={name}"));
            before.push("-e".to_owned());
            before.push(format!("inject={name}:{fault}:when={number}"));
            before.extend(place.only_files());
            // Much faster, but strace 6.1 forgets the signals over it.
            if fault != "signal=KILL" {
                before.push("--seccomp-bpf".to_owned());
            }
            let mut child = place
                .command(&strace, &before)
                .spawn()
                .expect("strace can be started");
            let status = cli::wait(&mut child, LIMIT);
            let mut told = String::new();
            let mut stderr = child.stderr.take().expect("piped");
            stderr.read_to_string(&mut told).expect("it is UTF-8");
            let text = place.text();
            let is_new = text == place.new;
            assert!(
                is_new || text == place.old,
                "{what}: neither the old file nor the new one"
            );
            match status.code() {
                Some(0) => assert!(is_new, "{what}: success without the new file"),
                Some(1) => assert!(
                    told.starts_with("plexum-openai: cannot ") && told.lines().count() == 1,
                    "{what}: {told}"
                ),
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

/// While the rewrite is at work the thread's lock is held as codex holds it, and keeps a second run away.
#[test]
fn two_runs_do_not_meet() {
    let Some(strace) = strace() else { return };
    let place = Place::new();
    place.reset();
    // Stops the first run where the copy is written and about to take the file's place.
    let before = [
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "trace=renameat2",
        "-e",
        "inject=renameat2:signal=STOP:when=1",
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
    wait_until("the first run to go on and end", || {
        // Whoever is not stopped yet does not notice.
        for process in ps::of(place.lab.root()) {
            ps::signal(process.pid, Signal::CONT);
        }
        first
            .try_wait()
            .expect("a child can be waited for")
            .is_some()
    });
    assert!(cli::wait(&mut first, LIMIT).success());
    place.check_end("both runs");
}
