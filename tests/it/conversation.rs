//! What a turn says to codex: the new messages, the older ones where a thread begins, the system text, images.

use crate::support::codex::{real_codex, real_codex_by};
use crate::support::{Cli, Daemon, LIMIT, Lab, method, wait_until};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A picture of one pixel.
const PIXEL: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

/// The parameters of a turn with these messages.
fn messages(lab: &Lab, messages: Value) -> Value {
    let mut params = Daemon::prompt(lab, "");
    params["request"]["messages"] = messages;
    params
}

/// Makes the picture that is in [`PIXEL`] at `path`.
fn write_pixel(path: &Path) {
    let bytes: Vec<u8> = PIXEL.bytes().filter(|byte| *byte != b'=').collect();
    let digit = |byte: u8| -> u32 {
        match byte {
            b'A'..=b'Z' => (byte - b'A').into(),
            b'a'..=b'z' => (byte - b'a' + 26).into(),
            b'0'..=b'9' => (byte - b'0' + 52).into(),
            b'+' => 62,
            _ => 63,
        }
    };
    let mut picture = Vec::new();
    for group in bytes.chunks(4) {
        let bits =
            group.iter().fold(0, |bits, byte| bits << 6 | digit(*byte)) << (6 * (4 - group.len()));
        picture.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    fs::write(path, picture).unwrap();
}

fn make_fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

/// How many pictures the last message of the user has, and its text without what codex says of pictures itself.
#[track_caller]
fn last_message(lab: &Lab) -> (usize, String) {
    let request = lab.model().requests().pop().unwrap();
    let input = request.body["input"].as_array().unwrap();
    let message = input.iter().rfind(|item| item["role"] == "user").unwrap();
    let parts = message["content"].as_array().unwrap();
    let pictures = parts
        .iter()
        .filter(|part| part["type"] == "input_image")
        .count();
    let texts = parts
        .iter()
        .filter_map(|part| part["text"].as_str())
        .filter(|text| !text.starts_with("<image") && !text.starts_with("</image"));
    (pictures, texts.collect())
}

fn arguments(run: &Value) -> Vec<String> {
    let argv = run["argv"].as_array().unwrap();
    argv.iter()
        .map(|arg| arg.as_str().unwrap().to_owned())
        .collect()
}

/// The files that a run of codex was given with `-i`.
fn image_files(run: &Value) -> Vec<PathBuf> {
    let arguments = arguments(run);
    let pairs = arguments.windows(2).filter(|pair| pair[0] == "-i");
    pairs.map(|pair| PathBuf::from(&pair[1])).collect()
}

// fault: 66, 67, 68
real_codex! {
    fn sends_every_new_message_to_model(codex: &Path) {
        let lab = Lab::real(codex, json!([{"text": "ok"}]));
        write_pixel(&lab.path("a.png"));
        write_pixel(&lab.workspace().join("b.png"));
        let a = json!({"type": "image", "media_type": "image/png", "path": lab.path("a.png")});
        let b = json!({"type": "image", "path": "b.png"});
        let gone = json!({"type": "image", "name": "the \"gone\"\none.png", "path": lab.path("gone.png")});
        let said = json!({"role": "user", "content": "Delete the oldest backup."});
        let answered = json!({"role": "assistant", "content": "Deleted backup-1."});
        let mut daemon = Daemon::start(&lab);
        assert_eq!(daemon.turn(messages(&lab, json!([said]))).text(), "ok");
        for (new, pictures, text) in [
            (json!([[a]]), 1, "(see the attachment)"),
            (json!([[a, {"type": "text", "text": " "}, {"type": "tool_result"}], [b]]), 2, "(see the attachment)\n\n(see the attachment)"),
            (json!([[a, gone]]), 1, "(see the attachment)\n[image \"the 'gone' one.png\" unavailable]"),
            (json!([[gone]]), 0, "[image \"the 'gone' one.png\" unavailable]"),
            (json!(["Book a table at the Blue Door.", "For four people."]), 0, "Book a table at the Blue Door.\n\nFor four people."),
            (
                json!(["one", [a], "", [{"type": "tool_result", "content": "x"}], [{"type": "text", "text": "two"}, b]]),
                2,
                "one\n\n(see the attachment)\n\ntwo",
            ),
            (json!([[{"type": "audio", "name": "call.mp3"}]]), 0, "[audio \"call.mp3\" unavailable]"),
            (
                json!([[{"type": "text", "text": "a"}, {"type": "document", "title": "bill.pdf", "data": "x"}, {"type": "text", "text": "b"}], [a]]),
                1,
                "a\n[document \"bill.pdf\" unavailable]\nb\n\n(see the attachment)",
            ),
        ] {
            let mut all = vec![said.clone(), answered.clone()];
            all.extend(new.as_array().unwrap().iter().map(|content| json!({"role": "user", "content": content})));
            let turn = daemon.turn(messages(&lab, json!(all)));
            assert_eq!(turn.stop_reason(), "end_turn", "{new}: {turn:?}");
            assert_eq!(turn.result()["thread_state"], "resumed");
            assert_eq!(last_message(&lab), (pictures, text.to_owned()), "{new}");
        }
        for part in ["only attachments", "the 'gone' one.png", "the audio \"call.mp3\"", "the document \"bill.pdf\""] {
            daemon.log("warning", part);
        }
        let requests = lab.model().requests().len();
        for last in [json!([]), json!([{"role": "user", "content": [{"type": "tool_result"}]}])] {
            let mut all = vec![said.clone(), answered.clone()];
            all.extend(last.as_array().unwrap().clone());
            let answer = daemon.turn(messages(&lab, json!(all))).answer;
            assert_eq!(answer["error"]["code"], -32602, "{answer}");
        }
        assert_eq!(lab.model().requests().len(), requests);
        drop(daemon);
        lab.assert_quiet();
    }
}

// fault: 69
real_codex! {
    fn replays_known_conversation_to_new_thread(codex: &Path) {
        for (config, replayed) in [(json!({}), true), (json!({"replay_new": false}), false)] {
            let lab = Lab::real(codex, json!([{"text": "ok"}]));
            lab.config(config);
            let mut daemon = Daemon::start(&lab);
            let conversation = json!([
                {"role": "system", "content": "You are Bob."},
                {"role": "user", "content": [{"type": "text", "text": "My name is Ada."}, {"type": "image", "path": "me.png"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "Hello Ada."}, {"type": "tool_use", "id": "1", "name": "wave"}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1"}, {"type": "audio", "name": "song"}]},
                {"role": "assistant", "content": null},
                {"role": "user", "content": "What is my name?"},
            ]);
            // Twice: a session file that is gone makes the thread begin again.
            for _ in 0..2 {
                let turn = daemon.turn(messages(&lab, conversation.clone()));
                assert_eq!((turn.text().as_str(), &turn.result()["thread_state"]), ("ok", &json!("new")));
                let (_, text) = last_message(&lab);
                if replayed {
                    let (before, record) = text.split_once("not a new request.\n\n").unwrap();
                    assert!(before.starts_with("<conversation_so_far>\n") && !before.contains("lost"), "{before}");
                    assert_eq!(
                        record,
                        "[system]\nYou are Bob.\n\n[user]\nMy name is Ada.\n[image \"me.png\"]\n\n[assistant]\nHello Ada.\n\n[user]\n[audio \"song\"]\n</conversation_so_far>\n\nWhat is my name?"
                    );
                    daemon.log("warning", "with the conversation so far");
                } else {
                    assert_eq!(text, "What is my name?");
                }
                let turn = daemon.turn(messages(&lab, conversation.clone()));
                assert_eq!(turn.result()["thread_state"], "resumed");
                assert_eq!(last_message(&lab).1, "What is my name?");
                fs::remove_file(lab.session_file()).unwrap();
            }
        }
    }
}

/// How often the last request has this text, wherever it stands.
fn count_in_last_request(lab: &Lab, text: &str) -> usize {
    let request = lab.model().requests().pop().unwrap();
    let escaped = json!(text).to_string();
    request
        .body
        .to_string()
        .matches(escaped.trim_matches('"'))
        .count()
}

// fault: 70
real_codex! {
    fn system_text_survives_compaction(codex: &Path) {
        let short = "Speak like a \"pirate\".\n[a]\nb = 'c' \\ \u{1f980}".to_owned();
        let lines = "a line\n".repeat(18_000);
        let long = "long ".repeat(50_000) + "end";
        for (system, is_argument) in [(short, true), (lines, true), (long, false)] {
            let lab = Lab::real(codex, json!([{"text": "ok"}]));
            let turn = |prompt: &str, limit: Option<&str>| {
                let extra_args = limit.map_or(json!([]), |limit| json!(["-c", limit]));
                lab.config(json!({"extra_args": extra_args}));
                let mut params = Daemon::prompt(&lab, prompt);
                params["request"]["system"] = json!(system);
                let turn = Daemon::start(&lab).turn(params);
                assert_eq!(turn.text(), "ok", "{turn:?}");
            };
            turn("first", None);
            assert_eq!(count_in_last_request(&lab, &system), 1);
            turn("second", None);
            assert_eq!(count_in_last_request(&lab, &system), 1);
            let before = lab.model().requests().len();
            turn("third", Some("model_auto_compact_token_limit=50"));
            assert_eq!(lab.model().requests().len(), before + 2, "the turn compacts");
            if is_argument {
                assert_eq!(count_in_last_request(&lab, &system), 1);
            }
            for prompt in ["fourth", "fifth"] {
                turn(prompt, None);
                assert_eq!(count_in_last_request(&lab, &system), 1, "{prompt}");
            }
        }
    }
}

// fault: 77
real_codex! {
    fn extra_args_apply_to_every_turn(codex: &Path) {
        let lab = Lab::real(codex, json!([{"text": "ok"}]));
        fs::write(lab.codex_home().join("fast.config.toml"), "model = \"gpt-5-fast\"\n").unwrap();
        write_pixel(&lab.path("a.png"));
        let elsewhere = fs::canonicalize(lab.path("tmp")).unwrap();
        for (extra, shows) in [
            (json!(["-p", "fast"]), "gpt-5-fast"),
            (json!(["-C", elsewhere]), elsewhere.to_str().unwrap()),
            (json!(["--add-dir", elsewhere]), ""),
            (json!(["-s", "read-only"]), "read-only"),
            (json!(["--color", "never"]), ""),
            (json!(["-m", "gpt-5-big"]), "gpt-5-big"),
            (json!(["-c", "model=\"gpt-5-set\""]), "gpt-5-set"),
            (json!(["--json", "--skip-git-repo-check"]), ""),
            (json!(["-i", lab.path("a.png")]), "data:image/png;base64,"),
        ] {
            lab.config(json!({"extra_args": extra}));
            let _ = fs::remove_file(lab.session_file());
            let mut daemon = Daemon::start(&lab);
            for state in ["new", "resumed"] {
                let before = lab.model().requests().len();
                let mut params = Daemon::prompt(&lab, state);
                params["request"]["system"] = json!("be brief");
                let turn = daemon.turn(params);
                assert_eq!(turn.text(), "ok", "{extra}: {turn:?}");
                assert_eq!(turn.result()["thread_state"], state, "{extra}");
                let requests = lab.model().requests();
                assert_eq!(requests.len(), before + 1, "{extra}");
                let body = requests[before].body.to_string();
                assert!(body.contains(shows), "{extra} on a thread that is {state}: {body}");
                assert_eq!(last_message(&lab).1, state, "{extra}");
            }
        }
    }
}

// fault: 100
#[test]
fn image_files_are_private_and_removed_after_turn() {
    let lab = Lab::fake(json!([
        {"touch": "{cwd}/../running"},
        {"wait_for": "{cwd}/../go"},
    ]));
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
    let params = || {
        let image = json!({"type": "image", "media_type": "image/png", "data": PIXEL});
        let near = json!({"type": "image", "path": "near.png"});
        messages(&lab, json!([{"role": "user", "content": [image, near]}]))
    };
    write_pixel(&lab.workspace().join("near.png"));
    let mut shell = Command::new("/bin/sh");
    shell.args([
        "-c",
        "umask 0; exec \"$0\"",
        env!("CARGO_BIN_EXE_plexum-openai"),
    ]);
    let mut daemon = Daemon::start_by(&lab, &mut shell);
    daemon.init();
    daemon.request(method::STREAM, params());
    wait_until("codex to start", || lab.path("running").exists());
    let run = lab.path("profile/run");
    let files = image_files(&lab.fake_runs()[0]);
    assert_eq!(files.len(), 2);
    for file in &files {
        assert!(file.starts_with(&run), "{}", file.display());
        assert_eq!(mode(file), 0o600);
        assert_eq!(mode(file.parent().unwrap()), 0o700);
    }
    assert_eq!(mode(&run), 0o700);

    // A second plugin leaves them alone while the first lives, and removes them when it was killed.
    fs::remove_file(lab.path("running")).unwrap();
    let mut other_lab = params();
    other_lab["agent"]["workspace"] = json!(lab.path("other"));
    let mut other = Daemon::start(&lab);
    let id = other.request(method::STREAM, other_lab);
    wait_until("the other codex to start", || lab.path("running").exists());
    assert!(files.iter().all(|file| file.exists()));
    daemon.signal(Signal::KILL);
    daemon.exit(LIMIT);
    fs::write(lab.path("go"), "").unwrap();
    other.finish(id);
    other.turn(Daemon::prompt(&lab, "no image"));
    assert!(files.iter().all(|file| !file.exists()), "{files:?}");
    let left: Vec<_> = fs::read_dir(&run).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

// fault: 107
#[test]
fn rejects_images_that_would_block() {
    let lab = Lab::fake(Value::Null);
    let fifo = lab.workspace().join("fifo.png");
    make_fifo(&fifo);
    symlink(&fifo, lab.workspace().join("link.png")).unwrap();
    let mut daemon = Daemon::start(&lab);
    for path in [
        "fifo.png",
        "link.png",
        "/dev/zero",
        "/dev/tty",
        ".",
        "/dev/fd",
    ] {
        let image = json!({"type": "image", "name": "x", "path": path});
        let turn = daemon.turn(messages(
            &lab,
            json!([{"role": "user", "content": [image]}]),
        ));
        assert_eq!(turn.text(), "[image \"x\" unavailable]", "{path}: {turn:?}");
        daemon.log(
            "warning",
            "the image \"x\" is left out: it is not a regular file",
        );
    }
    drop(daemon);
    lab.assert_quiet();
}

// fault: 107
real_codex_by! { EXEC,
    fn image_replaced_by_fifo_does_not_hang_codex(codex: &Path) {
        let lab = Lab::real(codex, json!([{"text": "ok"}]));
        let path = lab.workspace().join("a.png");
        write_pixel(&path);
        // This codex puts the FIFO there before it looks at its arguments.
        let late = lab.path("late");
        let script = format!("#!/bin/sh\nrm a.png; mkfifo a.png; exec '{}' \"$@\"\n", codex.display());
        // Written by another process: a child that another test forks meanwhile would keep it open for writing,
        // and then it cannot be executed.
        let written = Command::new("/bin/sh")
            .args(["-c", "printf %s \"$1\" >\"$2\" && chmod 755 \"$2\"", "sh", &script])
            .arg(&late)
            .status()
            .unwrap();
        assert!(written.success());
        lab.config(json!({"binary": late}));
        let mut daemon = Daemon::start(&lab);
        let image = json!({"type": "image", "path": "a.png"});
        let turn = daemon.turn(messages(&lab, json!([{"role": "user", "content": [image]}])));
        assert_eq!(turn.text(), "ok", "{turn:?}");
        assert_eq!(last_message(&lab).0, 1);
        assert!(!fs::metadata(&path).unwrap().is_file(), "it has become a FIFO");
    }
}

// fault: 111
#[test]
fn redacts_secrets_in_image_url() {
    let mut lab = Lab::fake(Value::Null);
    lab.set_env("RUST_LOG", "trace");
    let mut daemon = Daemon::start(&lab);
    for url in [
        "https://ada:SECRET@example.org/cat.png?sig=SECRET#SECRET",
        "https://SECRET@example.org",
        "//ada:SECRET@example.org/?a=/SECRET",
    ] {
        for block in [
            json!({"type": "image", "url": url}),
            json!({"type": "image", "name": url, "url": url}),
            json!({"type": "image", "path": url}),
            json!({"type": "image_url", "image_url": {"url": url}}),
            json!({"type": "video", "url": url}),
        ] {
            let turn = daemon.turn(messages(
                &lab,
                json!([{"role": "user", "content": [block]}]),
            ));
            assert!(turn.text().ends_with("unavailable]"), "{turn:?}");
            assert!(!turn.text().contains("SECRET"), "{turn:?}");
        }
    }
    assert!(
        lab.fake_prompts()
            .iter()
            .all(|prompt| !prompt.contains("SECRET"))
    );
    let told = format!("{:?} {}", daemon.logs(), daemon.stderr());
    assert!(
        told.contains("cat.png") && !told.contains("SECRET"),
        "{told}"
    );
}

// fault: 103
#[test]
fn process_arguments_have_system_text_but_no_prompt() {
    let lab = Lab::fake(Value::Null);
    let mut params = Daemon::prompt(&lab, "a private prompt");
    params["request"]["system"] = json!("Be brief.");
    assert_eq!(Daemon::start(&lab).turn(params).text(), "a private prompt");
    let arguments = arguments(&lab.fake_runs()[0]).join(" ");
    assert!(
        arguments.contains("developer_instructions=\"Be brief.\""),
        "{arguments}"
    );
    assert!(!arguments.contains("private"), "{arguments}");
    let page = Cli::new(&lab, ["man"]).run().stdout;
    let (_, security) = page.split_once(".Sh SECURITY CONSIDERATIONS").unwrap();
    assert!(security.contains("system text"), "{security}");
}
