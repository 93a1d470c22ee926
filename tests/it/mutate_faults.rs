//! Consuming calls while everything goes wrong: at every system call of the rewrite, as a plain trace shows
//! them, the process is killed, the disk is full, the disk fails. The rollout is the old one or the new one,
//! whole, and a run after that does the rest and cleans up.

use crate::support::{Cli, LIMIT, Lab, cli, ps, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_plexum-openai");
const ANSWER: &str = "{\"requested\":2,\"touched\":2,\"missing\":[],\"freed_bytes\":399985}\n";
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
        fs::create_dir_all(&day).expect("a directory");
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
        let directory = self.rollout.parent().expect("a directory");
        for entry in fs::read_dir(directory).expect("a directory").flatten() {
            fs::remove_file(entry.path()).expect("a file");
        }
        // A directory that is not there yet is one more call that can fail.
        let _ = fs::remove_dir_all(self.lab.codex_home().join("thread-writer-locks"));
        fs::write(&self.rollout, &self.old).expect("a file");
    }

    fn command(&self, program: &Path, before: &[String]) -> Command {
        let mut command = Command::new(program);
        command
            .args(before)
            .args((!before.is_empty()).then_some(PROGRAM))
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
        let directory = self.rollout.parent().expect("a directory");
        let name = self.rollout.file_name().expect("a name").to_string_lossy();
        let locks = self.lab.codex_home().join("thread-writer-locks");
        let files = [
            self.rollout.clone(),
            directory.join(format!(".{name}.plexum-tmp")),
            directory.to_owned(),
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
            .command(Path::new(PROGRAM), &[])
            .output()
            .expect("the program can be started");
        assert!(output.status.success(), "{after}: {output:?}");
        if !self.new.is_empty() {
            assert!(
                self.text() == self.new,
                "{after}: the end is not the new text"
            );
        }
        self.check_tidy(after);
    }

    /// Nothing but the rollout is left in its directory, and of the locks what codex leaves.
    #[track_caller]
    fn check_tidy(&self, after: &str) {
        let directory = self.rollout.parent().expect("a directory");
        let names: Vec<_> = fs::read_dir(directory)
            .expect("a directory")
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
            .expect("a directory")
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
/// before; and std takes a close of a directory that fails for a bug, and panics. With poll std looks at the three
/// streams before `main`.
fn can_fail(name: &str) -> bool {
    !matches!(name, "close" | "poll")
}

/// As NFS does it: who has opened a file for reading alone gets no exclusive lock on it.
#[test]
fn locks_on_file_systems_that_lock_only_for_writers() {
    let Some(strace) = strace() else { return };
    let place = Place::new();
    place.reset();
    let mut before = ["-f", "-qq", "-o", "/dev/null", "-e", "trace=flock", "-e"]
        .map(str::to_owned)
        .to_vec();
    before.push("inject=flock:error=EBADF:when=1".to_owned());
    before.extend([
        "-P".to_owned(),
        place.rollout.to_string_lossy().into_owned(),
    ]);
    let mut child = place
        .command(&strace, &before)
        .spawn()
        .expect("strace can be started");
    let status = cli::wait(&mut child, LIMIT);
    assert!(status.success(), "{status:?}");
    assert!(place.text() == place.new, "it is the new text");
}

// fault: 60
#[test]
fn rewrite_is_atomic() {
    let Some(strace) = strace() else { return };
    let place = Place::new();
    place.reset();
    let calls = calls(&place, &strace);
    let names: BTreeSet<&str> = calls.iter().map(|(name, _)| name.as_str()).collect();
    for name in [
        "openat",
        "flock",
        "pread64",
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

impl Place {
    /// A run that stops right after the first system call of this name that has to do with the rollout or its
    /// copy, until `meanwhile` is through; its exit status, what it answered and what it complained of.
    #[track_caller]
    fn interrupted(
        &self,
        strace: &Path,
        name: &str,
        mut meanwhile: impl FnMut(),
    ) -> (Option<i32>, String, String) {
        let trace = self.lab.path("trace");
        fs::write(&trace, "").expect("a file");
        let mut before = ["-f", "-qq", "-o"].map(str::to_owned).to_vec();
        before.push(trace.to_string_lossy().into_owned());
        for expression in [
            format!("trace={name}"),
            format!("inject={name}:signal=STOP:when=1"),
        ] {
            before.extend(["-e".to_owned(), expression]);
        }
        before.extend(self.only_files());
        let mut first = self
            .command(strace, &before)
            .spawn()
            .expect("strace can be started");
        let stopped = || {
            let trace = fs::read_to_string(&trace).expect("strace writes it");
            let line = trace
                .lines()
                .find(|line| line.contains("--- stopped by "))?;
            line.split(' ').next()?.parse().ok()
        };
        wait_until("the run to stop", || stopped().is_some());
        meanwhile();
        ps::signal(stopped().expect("it is in the trace"), Signal::CONT);
        let status = cli::wait(&mut first, LIMIT);
        let mut told = String::new();
        let mut stderr = first.stderr.take().expect("piped");
        stderr.read_to_string(&mut told).expect("it is UTF-8");
        let answer = fs::read_to_string(self.lab.path("stdout")).expect("a file");
        (status.code(), answer, told)
    }
}

// fault: 58
/// While the rewrite is at work the thread's lock is held as codex holds it, and keeps a second run away.
#[test]
fn concurrent_runs_exclude_each_other() {
    let Some(strace) = strace() else { return };
    let place = Place::new();
    place.reset();
    let first = place.interrupted(&strace, "pwrite64", || {
        let output = Cli::new(&place.lab, ["mutate", "-t", THREAD, "call_1"]).run();
        let (before, holder) = output.stderr.split_once(" (process ").expect("the holder");
        let (holder, after) = holder.split_once(')').expect("the holder");
        assert!(holder.ends_with(", plexum-openai"), "{holder}");
        let without_holder = format!("{before}{after}");
        assert_eq!(
            (output.status, output.stdout.as_str(), without_holder.as_str()),
            (
                1,
                "",
                format!(
                    "plexum-openai: thread {THREAD} is in use by another codex process; try again when its turn is over\n"
                )
                .as_str()
            )
        );
        // Named as a file outside of codex's home, where no lock of codex's is: our own on the file holds.
        let bare = place.lab.path("bare.jsonl");
        fs::rename(&place.rollout, &bare).expect("a file");
        let bare_name = bare.to_string_lossy();
        let output = Cli::new(&place.lab, ["mutate", "--rollout", &bare_name, "call_1"]).run();
        assert_eq!(
            (output.status, output.told(&output.stderr).as_str()),
            (
                1,
                "plexum-openai: '<lab>/bare.jsonl' is being rewritten by another process\n"
            )
        );
        fs::rename(&bare, &place.rollout).expect("a file");
    });
    assert_eq!(first, (Some(0), ANSWER.to_owned(), String::new()));
    place.check_end("both runs");
}

/// Somebody without codex's lock writes to the rollout, or puts another in its place, at the worst moments: what
/// was written stays, and is consumed where that can be.
#[test]
fn keeps_lines_appended_during_rewrite() {
    let Some(strace) = strace() else { return };
    let place = Place::new();
    let more = "{\"type\":\"event_msg\",\"payload\":{\"type\":\"more\"}}\n";
    let grow = |path: &Path| {
        let mut file = fs::File::options().append(true).open(path).expect("a file");
        file.write_all(more.as_bytes()).expect("a file");
        file
    };
    let name = place.rollout.file_name().expect("a name").to_string_lossy();
    let copy = place.rollout.with_file_name(format!(".{name}.plexum-tmp"));
    // While the copy is made; when it is whole; when it is in the file's place and the old file, which somebody
    // may have opened before, has its name.
    for (call, path) in [
        ("pwrite64", &place.rollout),
        ("fsync", &place.rollout),
        ("renameat2", &copy),
    ] {
        place.reset();
        let end = place.interrupted(&strace, call, || drop(grow(path)));
        assert_eq!(
            end,
            (Some(0), ANSWER.to_owned(), String::new()),
            "grown at {call}"
        );
        assert!(
            place.text() == format!("{}{more}", place.new),
            "grown at {call}"
        );
        place.check_tidy(call);
    }
    for call in ["pwrite64", "fsync"] {
        place.reset();
        let other = place.lab.path("other");
        let end = place.interrupted(&strace, call, || {
            fs::write(&other, format!("{more}{}", place.old)).expect("a file");
            fs::rename(&other, &place.rollout).expect("a file");
        });
        assert_eq!(
            end,
            (Some(0), ANSWER.to_owned(), String::new()),
            "replaced at {call}"
        );
        assert!(
            place.text() == format!("{more}{}", place.new),
            "replaced at {call}"
        );
        place.check_tidy(call);
    }
    // Whoever keeps the file open may write at any moment: codex before 0.147 has no lock but this.
    for (call, path) in [("fsync", &place.rollout), ("renameat2", &copy)] {
        place.reset();
        let mut open = None;
        let (status, answer, told) = place.interrupted(&strace, call, || open = Some(grow(path)));
        let writer = std::process::id();
        assert_eq!(
            (status, answer.as_str(), told.as_str()),
            (
                Some(1),
                "",
                format!(
                    "plexum-openai: '{}' is open for writing in process {writer}; try again when it is closed\n",
                    place.rollout.display()
                )
                .as_str()
            ),
            "kept open at {call}"
        );
        assert!(
            place.text() == format!("{}{more}", place.old),
            "kept open at {call}"
        );
        drop(open);
        place.check_tidy(call);
    }
    // A codex deletes the thread.
    place.reset();
    let end = place.interrupted(&strace, "fsync", || {
        fs::remove_file(&place.rollout).expect("a file");
    });
    assert_eq!(
        end,
        (
            Some(1),
            String::new(),
            format!(
                "plexum-openai: cannot open '{}': No such file or directory\n",
                place.rollout.display()
            )
        )
    );
    assert!(!place.rollout.exists() && !copy.exists());
}
