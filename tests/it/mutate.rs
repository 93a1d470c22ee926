//! Consuming tool calls, seen from outside: the `mutate` command and the daemon's `mutate_session` on rollouts
//! as codex writes them, and what is told where nothing can or may be rewritten.

use crate::support::{Cli, Daemon, Lab, method, wait_until};
use rustix::fs::FlockOperation;
use serde_json::{Value, json};
use std::fs::{self, File, FileTimes, Metadata, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

const THREAD: &str = "01a1fe00-a027-7a81-b8a0-356e91ab6908";

const LIGHT: &str = r#""...(consumed)""#;
const HEAVY: &str = r#""...(tool called)""#;
/// An output with room for either.
const LONG: &str = r#""Chunk ID: 1\nOutput:\n\"long\" \u00e9nough""#;
/// What consuming it lightly frees.
const FREED: usize = LONG.len() - LIGHT.len();

/// A workspace, its thread, and the thread's rollout.
struct Thread {
    lab: Lab,
    rollout: PathBuf,
}

impl Thread {
    fn new(text: &str) -> Thread {
        let lab = Lab::fake(Value::Null);
        let day = lab.codex_home().join("sessions/2026/11/21");
        fs::create_dir_all(&day).unwrap();
        let rollout = day.join(format!("rollout-2026-11-21T12-06-56-{THREAD}.jsonl"));
        fs::write(&rollout, text).unwrap();
        fs::write(lab.session_file(), format!("{THREAD}\n")).unwrap();
        Thread { lab, rollout }
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.rollout).unwrap()
    }

    fn metadata(&self) -> Metadata {
        fs::metadata(&self.rollout).unwrap()
    }

    fn locks(&self) -> PathBuf {
        self.lab.codex_home().join("thread-writer-locks")
    }

    /// `mutate` with these arguments; all that it said.
    #[track_caller]
    fn mutate(&self, args: &[&str], stdin: &str) -> (i32, String, String) {
        let output = Cli::new(&self.lab, ["mutate"])
            .args(args)
            .stdin(stdin)
            .run();
        let told = (output.told(&output.stdout), output.told(&output.stderr));
        (output.status, told.0, told.1)
    }

    /// The same where it has something to answer and nothing to say.
    #[track_caller]
    fn answer(&self, args: &[&str], stdin: &str) -> Value {
        let (status, stdout, stderr) = self.mutate(args, stdin);
        assert!(stdout.ends_with("}\n"), "{args:?}: {stdout:?} {stderr}");
        let answer: Value = serde_json::from_str(&stdout).unwrap();
        let missing = answer["missing"].as_array().unwrap().len();
        let found_nothing = missing > 0 && answer["requested"] == missing;
        let told = stderr.starts_with("plexum-openai: nothing was consumed: ");
        assert_eq!(
            (status == 1, told),
            (found_nothing, found_nothing),
            "{args:?}: {stderr}"
        );
        assert!(status == 1 || stderr.is_empty(), "{args:?}: {stderr}");
        answer
    }

    /// What the daemon asks for, in the thread's workspace.
    fn request(&self, mutations: &Value) -> Value {
        json!({"agent_id": "alice", "workspace": self.lab.workspace(), "mutations": mutations})
    }

    /// Nothing but the rollout is left in its directory, and of the locks what codex leaves.
    #[track_caller]
    fn check_tidy(&self) {
        let names = |directory: &Path| -> Vec<_> {
            fs::read_dir(directory)
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect()
        };
        let directory = self.rollout.parent().unwrap();
        assert_eq!(names(directory), [self.rollout.file_name().unwrap()]);
        assert_eq!(names(&self.locks()), [".coordination.lock"]);
    }
}

/// Is this the same file, and nobody has touched it?
fn untouched(before: &Metadata, after: &Metadata) -> bool {
    let all = |it: &Metadata| {
        (
            it.ino(),
            it.len(),
            it.mtime_nsec(),
            it.ctime(),
            it.ctime_nsec(),
        )
    };
    all(before) == all(after)
}

fn line(payload: &str) -> String {
    format!(
        r#"{{"timestamp":"2026-11-21T12:06:56.790Z","ordinal":7,"type":"response_item","payload":{payload},"x":1.50}}"#
    )
}

fn call(id: &str) -> String {
    line(&format!(
        r#"{{"type":"function_call","name":"exec_command","arguments":"{{\"cmd\":\"ls\"}}","call_id":"{id}"}}"#
    ))
}

fn output(id: &str, output: &str) -> String {
    line(&format!(
        r#"{{"type":"function_call_output","call_id":"{id}","output":{output},"z":[ 1 ]}}"#
    ))
}

fn text(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// One thing to consume, and what comes of it.
struct Case {
    what: &'static str,
    before: Vec<String>,
    /// Ids and operations.
    request: Vec<(&'static str, &'static str)>,
    /// The lines without the spaces that fill them.
    after: Vec<String>,
    touched: usize,
    missing: Vec<&'static str>,
}

/// Consumes by the command and by the daemon; both write the same bytes and say the same, and a second time
/// nothing is written.
#[track_caller]
fn check(case: &Case) {
    let what = case.what;
    let before = text(&case.before);
    let thread = Thread::new(&before);
    let mutations: Value = case
        .request
        .iter()
        .map(|(id, op)| json!({"block_id": id, "op": op}))
        .collect();
    let json_bytes = |lines: &[String]| -> usize {
        let json = lines.iter().map(|line| line.trim_end_matches(' ').len());
        json.sum()
    };
    let answer = json!({"requested": case.request.len(), "touched": case.touched, "missing": case.missing,
        "freed_bytes": json_bytes(&case.before).saturating_sub(json_bytes(&case.after))});
    let again = json!({"requested": case.request.len(), "touched": 0, "missing": case.missing,
        "freed_bytes": 0});

    let by_thread = ["--thread", THREAD, "--stdin"];
    let request = mutations.to_string();
    assert_eq!(thread.answer(&by_thread, &request), answer, "{what}");
    let after = thread.text();
    let lines: Vec<&str> = after.lines().collect();
    for (new, old) in lines.iter().zip(&case.before) {
        assert_eq!(new.len(), old.len(), "{what}: {new}");
    }
    let shown: Vec<&str> = lines
        .iter()
        .map(|line| line.trim_end_matches(' '))
        .collect();
    assert_eq!(shown, case.after, "{what}");
    thread.check_tidy();

    let written = thread.metadata();
    assert_eq!(thread.answer(&by_thread, &request), again, "{what}");
    assert!(untouched(&written, &thread.metadata()), "{what}");

    fs::write(&thread.rollout, before).unwrap();
    let mut daemon = Daemon::start(&thread.lab);
    let told = daemon.call(method::MUTATE, thread.request(&mutations));
    assert_eq!(told["result"], answer, "{what}");
    assert!(
        thread.text() == after,
        "{what}: the daemon's rewrite is another"
    );
    thread.check_tidy();
    let written = thread.metadata();
    let told = daemon.call(method::MUTATE, thread.request(&mutations));
    assert_eq!(told["result"], again, "{what}");
    assert!(untouched(&written, &thread.metadata()), "{what}");
}

#[test]
fn consumes_outputs_of_every_shape() {
    let list = r#"[{"type":"input_text","text":"x"},{"type":"input_image","image_url":"data:image/png;base64,AAAA"}]"#;
    let custom = |input: &str| {
        line(&format!(
            r#"{{"type":"custom_tool_call","call_id":"a","name":"apply_patch","input":{input}}}"#
        ))
    };
    let custom_output = |output: &str| {
        line(&format!(
            r#"{{"type":"custom_tool_call_output","call_id":"a","output":{output}}}"#
        ))
    };
    let shell = |action: &str| {
        line(&format!(
            r#"{{"type":"local_shell_call","id":"a","call_id":null,"action":{action},"status":"completed"}}"#
        ))
    };
    let (before, after) = (
        r#"{"type":"exec","command":["ls","-l"],"timeout_ms":1000}"#,
        r#"{"type":"exec","command":[]}"#,
    );
    let heavy_call = |id: &str| call(id).replace(r#""{\"cmd\":\"ls\"}""#, r#""{}""#);
    for (what, op, before, after) in [
        (
            "a string, light",
            "consume-light",
            vec![call("a"), output("a", LONG)],
            vec![call("a"), output("a", LIGHT)],
        ),
        (
            "a string, heavy",
            "consume-heavy",
            vec![call("a"), output("a", LONG)],
            vec![heavy_call("a"), output("a", HEAVY)],
        ),
        (
            "a list, by the short name",
            "light",
            vec![call("a"), output("a", list)],
            vec![call("a"), output("a", LIGHT)],
        ),
        (
            "several outputs of one id",
            "heavy",
            vec![call("a"), output("a", LONG), output("a", list)],
            vec![heavy_call("a"), output("a", HEAVY), output("a", HEAVY)],
        ),
        (
            "free-form input",
            "heavy",
            vec![custom(r#""*** Begin Patch\n""#), custom_output(LONG)],
            vec![custom(r#""""#), custom_output(HEAVY)],
        ),
        (
            "a shell call of the old form",
            "heavy",
            vec![shell(before), output("a", LONG)],
            vec![shell(after), output("a", HEAVY)],
        ),
    ] {
        check(&Case {
            what,
            before,
            request: vec![("a", op)],
            after,
            touched: 1,
            missing: vec![],
        });
    }
}

#[test]
fn consumes_several_calls_at_once() {
    let heavy_b = call("b").replace(r#""{\"cmd\":\"ls\"}""#, r#""{}""#);
    check(&Case {
        what: "one light, one heavy, one left alone, one that has no output, one that is not there",
        before: vec![
            call("a"),
            call("b"),
            output("b", LONG),
            output("a", LONG),
            call("c"),
            output("c", LONG),
            call("d"),
        ],
        request: vec![
            ("x", "light"),
            ("a", "light"),
            ("b", "heavy"),
            ("d", "heavy"),
        ],
        after: vec![
            call("a"),
            heavy_b,
            output("b", HEAVY),
            output("a", LIGHT),
            call("c"),
            output("c", LONG),
            call("d"),
        ],
        touched: 2,
        missing: vec!["x", "d"],
    });
}

#[test]
fn consumes_copies_in_compacted_history() {
    let item = |line: &str| {
        let at = line.find(r#""payload":"#).unwrap() + 10;
        line[at..line.len() - r#","x":1.50}"#.len()].to_owned()
    };
    let compacted = |items: [String; 4]| {
        let items = items.map(|line| item(&line)).join(",");
        format!(
            r#"{{"timestamp":"t","type":"compacted","payload":{{"message":"","replacement_history":[{items}],"replacement_history_metadata":[null,null,null,null]}}}}"#
        )
    };
    check(&Case {
        what: "in the history and before it",
        before: vec![
            call("a"),
            output("a", LONG),
            compacted([call("a"), output("a", LONG), call("b"), output("b", LONG)]),
        ],
        request: vec![("a", "light")],
        after: vec![
            call("a"),
            output("a", LIGHT),
            compacted([call("a"), output("a", LIGHT), call("b"), output("b", LONG)]),
        ],
        touched: 1,
        missing: vec![],
    });
}

/// What a script of codex's code mode called has no output of its own. The script's goes once all are named.
#[test]
fn consumes_calls_of_code_mode() {
    let script = line(
        r#"{"type":"custom_tool_call","call_id":"outer","name":"exec","input":"await tools.exec_command({cmd: 'ls'})"}"#,
    );
    let nested = |id: &str| {
        format!(
            r#"{{"timestamp":"t","ordinal":1,"type":"event_msg","payload":{{"type":"item_completed","thread_id":"h","turn_id":"u","item":{{"type":"CommandExecution","id":"{id}","command":["ls"],"status":"completed"}}}}}}"#
        )
    };
    let out = |output: &str| {
        line(&format!(
            r#"{{"type":"custom_tool_call_output","call_id":"outer","output":{output}}}"#
        ))
    };
    let rollout = |output: &str| {
        vec![
            script.clone(),
            nested("exec-1"),
            nested("exec-2"),
            out(output),
        ]
    };
    check(&Case {
        what: "one of two",
        before: rollout(LONG),
        request: vec![("exec-2", "light")],
        after: rollout(LONG),
        touched: 0,
        missing: vec!["exec-2"],
    });
    check(&Case {
        what: "both",
        before: rollout(LONG),
        request: vec![("exec-2", "light"), ("exec-1", "light")],
        after: rollout(LIGHT),
        touched: 2,
        missing: vec![],
    });
}

#[test]
fn leaves_outputs_shorter_than_the_marker() {
    for (what, before, op, after, touched) in [
        ("an empty output has no room", r#""""#, "light", r#""""#, 0),
        (
            "a short one takes the beginning",
            r#""hi!""#,
            "light",
            r#""...""#,
            1,
        ),
        (
            "one byte short",
            r#""012345678901234""#,
            "heavy",
            r#""...(tool called""#,
            1,
        ),
        (
            "a list has room too",
            r#"[{"type":"x"}]"#,
            "light",
            r#""...(consumed""#,
            1,
        ),
    ] {
        let heavy = call("a").replace(r#""{\"cmd\":\"ls\"}""#, r#""{}""#);
        let (touched, call_after) = match op {
            "heavy" => (1, heavy),
            _ => (touched, call("a")),
        };
        check(&Case {
            what,
            before: vec![call("a"), output("a", before)],
            request: vec![("a", op)],
            after: vec![call_after, output("a", after)],
            touched,
            missing: vec![],
        });
    }
    // Spaces that an earlier time has left at the line's end are room.
    check(&Case {
        what: "room at the end",
        before: vec![call("a"), output("a", r#""x""#) + &" ".repeat(30)],
        request: vec![("a", "light")],
        after: vec![call("a"), output("a", LIGHT)],
        touched: 1,
        missing: vec![],
    });
}

/// Light, then heavy, then light again: the stronger one stays.
#[test]
fn applies_heavy_after_light() {
    let thread = Thread::new(&text(&[call("a"), output("a", LONG)]));
    let consume =
        |op: &str| thread.answer(&["--workspace", ".", "--op", op, "a"], "")["touched"].clone();
    assert_eq!(consume("light"), 1);
    assert_eq!(consume("consume-heavy"), 1);
    let heavy = thread.text();
    assert!(
        heavy.contains(HEAVY) && heavy.contains(r#""arguments":"{}""#),
        "{heavy}"
    );
    let written = thread.metadata();
    assert_eq!(consume("consume-light"), 0);
    assert!(untouched(&written, &thread.metadata()));
}

/// Bad lines, blank lines, unknown fields, odd spelling, no final newline: whatever is not asked for stays as it
/// is, byte for byte, and so does what is asked for but for its value.
#[test]
fn changes_nothing_else() {
    let target = "{ \"payload\" : {\"z\":1e5, \"output\":\"0123456789abcdef0123456789\",\t\"call_id\":\"\\u0061\",\"type\":\"function_call_output\"} , \"type\":\"response_item\",\"n\":1.10 }";
    let mut bytes = Vec::new();
    for part in [
        r#"{"timestamp":"t","type":"session_meta","payload":{"id":"x"}}"#.as_bytes(),
        b"\n",
        b"\n   \n",
        b"not json at all \xff\xfe\n",
        call("a").as_bytes(),
        b"\r\n",
        br#"{"type":"event_msg","payload":{"type":"exec_command_end","call_id":"a","output":"0123456789abcdef0123456789"}}"#,
        b"\n",
        output("ab", LONG).as_bytes(),
        b"\n",
        // Torn, with a line behind it.
        br#"{"timestamp":"t","type":"response_item","payload":{"type":"function_call_output","call_id":"a","output":"to"#,
        b"\n",
        target.as_bytes(),
        b"  \r\n",
        output("a", LONG).as_bytes(),
        b"\n\0\0\n",
        br#"{"timestamp":"t","type":"token_usage_record","payload":{"a":1}}"#,
    ] {
        bytes.extend_from_slice(part);
    }
    let thread = Thread::new("");
    fs::write(&thread.rollout, &bytes).unwrap();
    assert_eq!(
        thread.answer(&["-t", THREAD, "a"], ""),
        json!({"requested": 1, "touched": 1, "missing": [], "freed_bytes": FREED + 13})
    );
    let new = fs::read(&thread.rollout).unwrap();
    let spliced = |old: &[u8], value: &str, by: &str| {
        let at = memchr::memmem::find(old, value.as_bytes()).unwrap();
        let end = at + memchr::memchr2(b'\r', b'\n', &old[at..]).unwrap();
        let mut new = old[..at].to_vec();
        new.extend_from_slice(by.as_bytes());
        new.extend_from_slice(&old[at + value.len()..end]);
        new.resize(end, b' ');
        new.extend_from_slice(&old[end..]);
        new
    };
    let at = memchr::memmem::find(&bytes, target.as_bytes()).unwrap();
    let behind = spliced(&bytes[at..], r#""0123456789abcdef0123456789""#, LIGHT);
    let behind = spliced(&behind, LONG, LIGHT);
    let expected = [&bytes[..at], &behind].concat();
    assert_eq!(
        String::from_utf8_lossy(&new),
        String::from_utf8_lossy(&expected)
    );
    assert!(new == expected);
}

/// Some models number their calls anew in each turn.
// fault: 54
#[test]
fn newest_consumes_the_last_of_calls_with_one_id() {
    let consumed = || output("a", LIGHT) + &" ".repeat(LONG.len() - LIGHT.len());
    let (call, output) = (|| call("a"), || output("a", LONG));
    let old = text(&[call(), output(), call(), output(), call()]);
    for (args, expected) in [
        (
            ["-w", ".", "a"].as_slice(),
            [call(), consumed(), call(), consumed(), call()],
        ),
        // The call that has no output yet is not the newest one.
        (
            &["-w", ".", "--newest", "a"],
            [call(), output(), call(), consumed(), call()],
        ),
    ] {
        let thread = Thread::new(&old);
        let freed = FREED * expected.iter().filter(|line| line.contains(LIGHT)).count();
        assert_eq!(
            thread.answer(args, ""),
            json!({"requested": 1, "touched": 1, "missing": [], "freed_bytes": freed})
        );
        assert_eq!(
            fs::read_to_string(&thread.rollout).unwrap(),
            text(&expected),
            "{args:?}"
        );
        assert_eq!(thread.answer(args, "")["touched"], 0, "a second time");
    }
    let thread = Thread::new(&old);
    let (status, _, stderr) = thread.mutate(&["-w", ".", "--newest", "--stdin"], "[]");
    assert_eq!(
        (status, stderr.contains("remove '--op' and '--newest'")),
        (2, true),
        "{stderr}"
    );
}

#[test]
fn selects_rollout_by_workspace_thread_or_file() {
    let old = text(&[call("a"), output("a", LONG)]);
    let new = text(&[
        call("a"),
        output("a", LIGHT) + &" ".repeat(LONG.len() - LIGHT.len()),
    ]);
    let thread = Thread::new(&old);
    let touched = json!({"requested": 1, "touched": 1, "missing": [], "freed_bytes": FREED});
    let workspace = thread.lab.workspace().to_string_lossy().into_owned();
    let rollout = thread.rollout.to_string_lossy().into_owned();
    let upper = THREAD.to_uppercase();
    let before = thread.metadata();
    for args in [
        ["--workspace", &workspace, "a"],
        ["-w", ".", "a"],
        ["--thread", THREAD, "a"],
        ["-t", &upper, "a"],
        ["--rollout", &rollout, "a"],
    ] {
        for dry_run in [[&["--dry-run"], &args[..]], [&args[..], &["-n"]]] {
            assert_eq!(thread.answer(&dry_run.concat(), ""), touched, "{args:?}");
        }
        assert!(
            untouched(&before, &thread.metadata()),
            "a dry run writes nothing"
        );
        assert!(!thread.locks().exists(), "a dry run takes no lock");
    }
    for args in [
        vec!["--workspace", &workspace, "a"],
        vec!["-t", &upper, "a"],
        vec!["--rollout", &rollout, "--op=light", "--", "a"],
    ] {
        fs::write(&thread.rollout, &old).unwrap();
        assert_eq!(thread.answer(&args, ""), touched, "{args:?}");
        assert_eq!(thread.text(), new, "{args:?}");
        thread.check_tidy();
    }
    // A file anywhere, which belongs to no codex: no lock is made for it.
    let alone = thread.lab.workspace().join("copy.jsonl");
    fs::write(&alone, &old).unwrap();
    assert_eq!(
        thread.answer(&["--rollout", "copy.jsonl", "a"], ""),
        touched
    );
    assert_eq!(fs::read_to_string(&alone).unwrap(), new);
    // Where codex keeps archived threads.
    let archive = thread.lab.codex_home().join("archived_sessions");
    fs::create_dir(&archive).unwrap();
    let archived = archive.join(thread.rollout.file_name().unwrap());
    fs::rename(&thread.rollout, &archived).unwrap();
    fs::write(&archived, &old).unwrap();
    assert_eq!(thread.answer(&["-w", ".", "a"], ""), touched);
    assert_eq!(fs::read_to_string(&archived).unwrap(), new);
}

#[test]
fn keeps_mode_owner_and_times() {
    let thread = Thread::new(&text(&[call("a"), output("a", LONG)]));
    fs::set_permissions(&thread.rollout, Permissions::from_mode(0o4750)).unwrap();
    // Only root can give a file away.
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&thread.rollout, Some(4711), Some(4712)).unwrap();
        fs::set_permissions(&thread.rollout, Permissions::from_mode(0o4750)).unwrap();
    }
    let time = UNIX_EPOCH + Duration::new(1_795_000_000, 123_456_789);
    let file = File::options().write(true).open(&thread.rollout).unwrap();
    file.set_times(FileTimes::new().set_accessed(time).set_modified(time))
        .unwrap();
    drop(file);
    let before = thread.metadata();
    assert_eq!(thread.answer(&["-w", ".", "a"], "")["touched"], 1);
    let after = thread.metadata();
    let kept = |it: &Metadata| {
        (
            (it.mode(), it.uid(), it.gid(), it.len()),
            (it.mtime(), it.mtime_nsec(), it.atime(), it.atime_nsec()),
        )
    };
    assert_eq!(kept(&after), kept(&before));
    assert!(
        after.ino() != before.ino(),
        "it is another file, put in place whole"
    );
}

#[test]
fn rejects_files_that_cannot_be_replaced() {
    let old = text(&[call("a"), output("a", LONG)]);
    let thread = Thread::new(&old);
    let refused = |file: &str, why: &str| {
        let path = thread.rollout.with_file_name(file);
        assert_eq!(
            thread.mutate(&["--rollout", &path.to_string_lossy(), "a"], ""),
            (1, String::new(), {
                let path = path.to_string_lossy().into_owned();
                let root = thread.lab.root().to_string_lossy().into_owned();
                let path = path.replace(&root, "<lab>").replace(THREAD, "<uuid 1>");
                format!(
                    "plexum-openai: {}\n",
                    why.replace("{}", &format!("'{path}'"))
                )
            })
        );
        assert_eq!(thread.text(), old);
    };
    let name = thread.rollout.file_name().unwrap().to_str().unwrap();
    let link = thread.rollout.with_file_name("rollout-link.jsonl");
    std::os::unix::fs::symlink(&thread.rollout, &link).unwrap();
    refused(
        "rollout-link.jsonl",
        "cannot rewrite {}: it is a symbolic link; name the file itself",
    );
    fs::remove_file(&link).unwrap();
    fs::create_dir(&link).unwrap();
    refused(
        "rollout-link.jsonl",
        "cannot rewrite {}: it is not a regular file",
    );
    fs::remove_dir(&link).unwrap();
    // Opened as a file is, it would wait for ever.
    rustix::fs::mkfifoat(rustix::fs::CWD, &link, rustix::fs::Mode::RUSR).unwrap();
    refused(
        "rollout-link.jsonl",
        "cannot rewrite {}: it is not a regular file",
    );
    fs::remove_file(&link).unwrap();
    refused(
        "rollout-link.jsonl",
        "cannot open {}: No such file or directory",
    );
    fs::hard_link(&thread.rollout, &link).unwrap();
    refused(
        name,
        "cannot rewrite {}: it has more than one hard link, and the others would keep the old content",
    );
    let mut daemon = Daemon::start(&thread.lab);
    let request = thread.request(&json!([{"block_id": "a", "op": "light"}]));
    let answer = daemon.call(method::MUTATE, request.clone());
    assert_eq!(answer["error"]["code"], -32000, "{answer}");
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("more than one hard link"), "{message}");
    assert_eq!(thread.text(), old);
    fs::remove_file(&link).unwrap();
    // The lock was given back: now it works.
    assert_eq!(daemon.call(method::MUTATE, request)["result"]["touched"], 1);
    thread.check_tidy();
}

/// Another codex has the thread: it holds the lock as codex does, by flock on the thread's own file.
#[test]
fn rejects_thread_in_use() {
    let old = text(&[call("a"), output("a", LONG)]);
    let thread = Thread::new(&old);
    fs::create_dir(thread.locks()).unwrap();
    let path = thread.locks().join(format!("{THREAD}.lock"));
    let lock = File::create(&path).unwrap();
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    let before = thread.metadata();
    let name = fs::read_to_string("/proc/self/comm").unwrap();
    let told = format!(
        "thread <uuid 1> is in use by another codex process (process {}, {}); try again when its turn is over",
        std::process::id(),
        name.trim_end()
    );
    let rollout = thread.rollout.to_string_lossy().into_owned();
    for args in [
        ["-w", ".", "a"],
        ["-t", THREAD, "a"],
        ["--rollout", &rollout, "a"],
    ] {
        assert_eq!(
            thread.mutate(&args, ""),
            (1, String::new(), format!("plexum-openai: {told}\n"))
        );
    }
    let mut daemon = Daemon::start(&thread.lab);
    let request = thread.request(&json!([{"block_id": "a", "op": "heavy"}]));
    let answer = daemon.call(method::MUTATE, request.clone());
    assert_eq!(answer["error"]["code"], -32011, "{answer}");
    assert_eq!(
        answer["error"]["message"],
        told.replace("<uuid 1>", THREAD),
        "{answer}"
    );
    assert!(untouched(&before, &thread.metadata()));
    assert!(path.exists(), "it is not ours to remove");
    // To look does not need it.
    assert_eq!(thread.answer(&["-w", ".", "-n", "a"], "")["touched"], 1);

    drop(lock);
    assert_eq!(daemon.call(method::MUTATE, request)["result"]["touched"], 1);
    thread.check_tidy();
}

/// A turn of our own has the thread: the daemon's request waits for its end, a command beside it does not.
#[test]
fn waits_for_running_turn() {
    let thread = Thread::new(&text(&[call("a"), output("a", LONG)]));
    let (at_work, go_on) = (thread.lab.path("at-work"), thread.lab.path("go-on"));
    thread.lab.script(json!([
        "read_stdin",
        "hold_lock",
        {"event": {"type": "thread.started", "thread_id": "{thread}"}},
        {"rollout": [
            serde_json::from_str::<Value>(&call("b")).unwrap(),
            serde_json::from_str::<Value>(&output("b", LONG)).unwrap(),
        ]},
        {"touch": at_work},
        {"wait_for": go_on},
        {"event": {"type": "turn.completed", "usage": {"input_tokens": 1, "output_tokens": 1}}},
        "release_lock",
    ]));
    let mut daemon = Daemon::start(&thread.lab);
    let turn = daemon.request(method::STREAM, Daemon::prompt(&thread.lab, "hi"));
    wait_until("codex is at work", || at_work.exists());
    let (status, stdout, stderr) = thread.mutate(&["-w", ".", "a"], "");
    assert_eq!((status, stdout.as_str()), (1, ""));
    assert!(stderr.contains("is in use by another codex"), "{stderr}");
    let request = thread.request(&json!([
        {"block_id": "a", "op": "light"},
        {"block_id": "b", "op": "light"},
    ]));
    let mutation = daemon.request(method::MUTATE, request);
    // It is read and waits: what is asked after it is answered before it.
    daemon.ping();
    assert!(thread.text().matches("consumed").count() == 0);
    fs::write(&go_on, "").unwrap();
    assert_eq!(daemon.finish(turn).stop_reason(), "end_turn");
    assert_eq!(
        daemon.answer(mutation)["result"],
        json!({"requested": 2, "touched": 2, "missing": [], "freed_bytes": 54})
    );
    assert_eq!(thread.text().matches("...(consumed)").count(), 2);
}

#[test]
fn selects_calls_by_size_age_and_plain_ids() {
    let rollout = || {
        let outputs = [("a", 10), ("b", 3000), ("c", 200), ("d", 4000)];
        let lines = outputs
            .map(|(id, length)| [call(id), output(id, &json!("y".repeat(length)).to_string())]);
        Thread::new(&text(&lines.concat()))
    };
    for (args, stdin, expected) in [
        (&["--larger-than", "200"][..], "", &["b", "d"][..]),
        (&["--larger-than", "199"], "", &["b", "c", "d"]),
        (&["--keep-last", "1"], "", &["a", "b", "c"]),
        (&["--keep-last", "1", "--larger-than", "200"], "", &["b"]),
        (
            &["--keep-last", "0", "--op", "heavy"],
            "",
            &["a", "b", "c", "d"],
        ),
        (&["--stdin"], "a\r\n\n c \n", &["a", "c"]),
        (&["--stdin", "--op", "heavy", "--newest"], "d", &["d"]),
    ] {
        let thread = rollout();
        let args = [&["-w", "."], args].concat();
        let answer = thread.answer(&args, stdin);
        assert_eq!(answer["touched"], expected.len(), "{args:?}: {answer}");
        for id in ["a", "b", "c", "d"] {
            let line = thread
                .text()
                .lines()
                .find(|line| {
                    line.contains("_output") && line.contains(&format!("\"call_id\":\"{id}\""))
                })
                .unwrap()
                .to_owned();
            assert_eq!(
                line.contains("yyy"),
                !expected.contains(&id),
                "{args:?} {id}: {line:.200}"
            );
        }
    }
    let thread = rollout();
    let none = json!({"requested": 0, "touched": 0, "missing": [], "freed_bytes": 0});
    for args in [&["--larger-than", "4000"][..], &["--keep-last", "4"]] {
        let (status, stdout, stderr) = thread.mutate(&[&["-w", "."], args].concat(), "");
        assert_eq!(
            (status, serde_json::from_str::<Value>(&stdout).unwrap()),
            (1, none.clone())
        );
        assert!(
            stderr.contains("no call that is that large or that old"),
            "{stderr}"
        );
    }
    for (args, told) in [
        (
            &["--larger-than", "1", "a"][..],
            "give no call ids, neither as operands nor on stdin",
        ),
        (
            &["--keep-last", "1", "--stdin"],
            "give no call ids, neither as operands nor on stdin",
        ),
        (
            &["--keep-last", "one"],
            "'--keep-last one' is not a whole number",
        ),
        (&["--stdin"], "stdin contains no call ids"),
        (&["--stdin", "a"], "give none as operands"),
    ] {
        let (status, _, stderr) = thread.mutate(&[&["-w", "."], args].concat(), " \n");
        assert_eq!(status, 2, "{args:?}");
        assert!(stderr.contains(told), "{args:?}: {stderr}");
    }
}

#[test]
fn removes_leftover_of_crashed_run() {
    let old = text(&[call("a"), output("a", LONG)]);
    let thread = Thread::new(&old);
    let name = thread.rollout.file_name().unwrap().to_str().unwrap();
    let leftover = thread.rollout.with_file_name(format!(".{name}.plexum-tmp"));
    fs::write(&leftover, "half of").unwrap();
    // codex's own, of a codex that was killed.
    fs::create_dir(thread.locks()).unwrap();
    fs::write(thread.locks().join(format!("{THREAD}.lock")), "").unwrap();
    // Also by a run that has nothing to change.
    assert_eq!(
        thread.answer(&["-w", ".", "x"], "")["missing"],
        json!(["x"])
    );
    thread.check_tidy();
    assert_eq!(thread.text(), old);
    fs::write(&leftover, "half of").unwrap();
    assert_eq!(thread.answer(&["-w", ".", "a"], "")["touched"], 1);
    thread.check_tidy();
}

#[test]
fn reports_all_missing_without_session() {
    let thread = Thread::new(&text(&[call("a"), output("a", LONG)]));
    let missing = json!({"requested": 2, "touched": 0, "missing": ["a", "b"], "freed_bytes": 0});
    let mutations = json!([{"block_id": "a", "op": "light"}, {"block_id": "b", "op": "light"}]);
    let other = thread.lab.path("other");
    fs::create_dir(&other).unwrap();
    let mut daemon = Daemon::start(&thread.lab);
    let mut ask = |workspace: &Path| {
        let params = json!({"workspace": workspace, "mutations": mutations});
        daemon.call(method::MUTATE, params)["result"].clone()
    };
    assert_eq!(ask(&other), missing);
    assert_eq!(ask(&thread.lab.path("none")), missing);
    assert_eq!(
        thread.answer(&["-w", &other.to_string_lossy(), "a", "b"], ""),
        missing
    );
    assert_eq!(
        fs::read_dir(&other).unwrap().count(),
        0,
        "nothing is made there"
    );
    // A session whose thread codex no longer has.
    fs::remove_file(&thread.rollout).unwrap();
    assert_eq!(ask(&thread.lab.workspace()), missing);
    // A person has most likely another CODEX_HOME there.
    let (status, stdout, stderr) = thread.mutate(&["-w", ".", "a", "b"], "");
    assert_eq!((status, stdout.as_str()), (1, ""));
    assert!(
        stderr.ends_with("in the config, to the directory in which codex stores its threads\n"),
        "{stderr}"
    );
    // Nor does a person want to hear that all is missing where nobody can tell.
    fs::write(thread.lab.session_file(), "not an id").unwrap();
    assert_eq!(ask(&thread.lab.workspace()), missing);
    let (status, stdout, stderr) = thread.mutate(&["-w", ".", "a", "b"], "");
    assert_eq!((status, stdout.as_str()), (1, ""));
    assert!(stderr.contains("is unusable: "), "{stderr}");
}

#[test]
fn rejects_wrong_command_lines_and_writes_nothing() {
    let old = text(&[call("a"), output("a", LONG)]);
    let thread = Thread::new(&old);
    let before = thread.metadata();
    let by_workspace = &["-w", ".", "--stdin"][..];
    for (args, stdin, status, told) in [
        (
            &["a"][..],
            "",
            2,
            "no rollout is given: use '--workspace', '--thread' or '--rollout'",
        ),
        (
            &["-w", "."],
            "",
            2,
            "no calls are given: name at least one, or use '--stdin', '--larger-than' or '--keep-last'",
        ),
        (
            &["-w", ".", "-t", THREAD, "a"],
            "",
            2,
            "'--workspace' and '--thread' both name a rollout: give one of them",
        ),
        (
            &["-t", "-x", "a"],
            "",
            2,
            "'--thread -x' is not a thread id: expected a UUID",
        ),
        (
            &["-w", ".", "--op", "eat", "a"],
            "",
            2,
            "'eat' is not an operation; '--op' accepts light or heavy",
        ),
        (&["-w", ".", "a", "a"], "", 2, "duplicate call id 'a'"),
        (
            &["-w", ".", "--stdin", "a"],
            "",
            2,
            "'--stdin' reads the call ids from stdin: give none as operands",
        ),
        (
            by_workspace,
            "[{\"block_id\":\"a\",\n\"op\":light}]",
            2,
            "mutations: not JSON: expected value at line 2 column 6",
        ),
        (by_workspace, "", 2, "stdin contains no call ids"),
        (
            by_workspace,
            "{}",
            2,
            "mutations: expected a list, found an object",
        ),
        (
            by_workspace,
            r#"[{"block_id":"a","op":"light"},{"block_id":7,"op":"light"}]"#,
            2,
            "mutations[1].block_id: expected a string, found a number",
        ),
        (
            by_workspace,
            r#"[{"block_id":"a","op":"light"},{"block_id":"b","op":"consume"}]"#,
            2,
            "mutations[1].op: 'consume' is not an operation, expected 'consume-light' or 'consume-heavy'",
        ),
        (
            by_workspace,
            r#"[{"block_id":"a","op":"light"},{"block_id":"a","op":"heavy"}]"#,
            2,
            "mutations[1].block_id: 'a' is named in mutations[0] already",
        ),
        (
            &["-t", "00000000-a027-7a81-b8a0-356e91ab6908", "a"],
            "",
            1,
            "codex has no rollout of thread '<uuid 1>' in '<lab>/codex'; set CODEX_HOME, or \"codex_home\" in the config, to the directory in which codex stores its threads",
        ),
        (
            &["--rollout", "none.jsonl", "a"],
            "",
            1,
            "cannot open '<lab>/workspace/none.jsonl': No such file or directory",
        ),
        (
            &["-w", "none", "a"],
            "",
            1,
            "the directory 'none' does not exist",
        ),
    ] {
        assert_eq!(
            thread.mutate(args, stdin),
            (status, String::new(), format!("plexum-openai: {told}\n")),
            "{args:?}"
        );
    }
    assert!(untouched(&before, &thread.metadata()));
    // An empty list is a request like any other; it does not even look for the file.
    assert_eq!(
        thread.answer(by_workspace, "[]"),
        json!({"requested": 0, "touched": 0, "missing": [], "freed_bytes": 0})
    );
}

/// A reader of the answer that is gone is no reason for a message: the work is done.
#[test]
fn ignores_closed_stdout() {
    let thread = Thread::new(&text(&[call("a"), output("a", LONG)]));
    let mut child = Cli::new(&thread.lab, ["mutate", "-w", ".", "--stdin"]).spawn();
    drop(child.stdout.take());
    let mut stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, br#"[{"block_id":"a","op":"light"}]"#).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
    assert!(thread.text().contains(LIGHT));
}
