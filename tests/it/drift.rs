//! What codex writes that is not known here: types of events and records, and members of them.
//!
//! The known names stand beside the code that reads them, in `known-events.txt`, `known-records.txt` and, for the schema
//! that `codex app-server` prints of itself, `known-schema.txt`, one a line: a type, or a type and a member of it
//! (`item.completed/agent_message.text`). Unknown ones are no failure for the
//! program, which ignores them; they are the first sign that a release of codex has changed something.
//! `KNOWN_UPDATE=1`, with one test at a time, adds what was found to the lists, and `make compat` prints what a release has besides.

use crate::support::codex::{CHANGED, real, real_codex_by};
use crate::support::{Cli, Daemon, Lab};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const EVENTS: &str = "src/backend/exec/known-events.txt";
const RECORDS: &str = "src/rollout/known-records.txt";
const SCHEMA: &str = "src/backend/app_server/known-schema.txt";

/// The requests to `codex app-server` that are made here.
const REQUESTS: [&str; 9] = [
    "config/read",
    "initialize",
    "model/list",
    "thread/backgroundTerminals/clean",
    "thread/resume",
    "thread/start",
    "turn/interrupt",
    "turn/start",
    "turn/steer",
];

/// How often each name was found.
type Counts = BTreeMap<String, u64>;

fn count(counts: &mut Counts, name: &str, members: Option<&Value>, ignored: &[&str]) {
    *counts.entry(name.to_owned()).or_default() += 1;
    let members = members.and_then(Value::as_object).into_iter();
    for member in members.flat_map(Map::keys) {
        if !ignored.contains(&member.as_str()) {
            *counts.entry(format!("{name}.{member}")).or_default() += 1;
        }
    }
}

/// The names in lines of `codex exec --json`.
fn event_names(lines: &str, counts: &mut Counts) {
    for event in lines
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
    {
        let kind = event["type"].as_str().unwrap_or("?");
        match event["item"]["type"].as_str() {
            Some(item) => count(
                counts,
                &format!("{kind}/{item}"),
                event.get("item"),
                &["type"],
            ),
            None => count(counts, kind, Some(&event), &["type"]),
        }
    }
}

/// The names in lines of a rollout.
fn record_names(lines: &str, counts: &mut Counts) {
    for record in lines
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
    {
        let kind = record["type"].as_str().unwrap_or("?");
        let payload = &record["payload"];
        let name = match payload["type"].as_str() {
            Some(form) => format!("{kind}/{form}"),
            None => kind.to_owned(),
        };
        count(counts, &name, Some(payload), &["type"]);
        if let Some(item) = payload["item"]["type"].as_str() {
            let name = format!("{name}/{item}");
            count(counts, &name, payload.get("item"), &["type"]);
        }
        count(counts, "record", Some(&record), &["type", "payload"]);
    }
}

fn list(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn known(path: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(list(path)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// The names in what codex has printed and recorded, by the list that they belong into.
fn found(events: &str, records: &str) -> [(&'static str, Counts); 2] {
    let (mut of_events, mut of_records) = (Counts::new(), Counts::new());
    event_names(events, &mut of_events);
    record_names(records, &mut of_records);
    [(EVENTS, of_events), (RECORDS, of_records)]
}

/// The names that are not in the lists, each with how often it was found.
fn unknown<const N: usize>(found: [(&str, Counts); N]) -> Vec<String> {
    let mut unknown = Vec::new();
    for (path, counts) in found {
        let known = known(path);
        let kind = match path {
            EVENTS => "event",
            RECORDS => "record",
            _ => "schema",
        };
        let fresh = counts.into_iter().filter(|(name, _)| !known.contains(name));
        unknown.extend(fresh.map(|(name, count)| format!("{kind} {name}: {count}")));
    }
    unknown
}

/// Adds the names to the lists.
fn learn<const N: usize>(found: [(&str, Counts); N]) {
    for (path, counts) in found {
        let all: BTreeSet<String> = known(path).into_iter().chain(counts.into_keys()).collect();
        let text: String = all.into_iter().map(|name| name + "\n").collect();
        fs::write(list(path), text).unwrap();
    }
}

/// Has what codex prints written down on its way, and says where.
fn record_output(lab: &Lab) -> PathBuf {
    let (script, output) = (lab.path("codex-and-tee"), lab.path("printed.jsonl"));
    let text = format!(
        "#!/bin/bash\nset -o pipefail\n'{}' \"$@\" | tee -a '{}'\n",
        lab.codex().display(),
        output.display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    output
}

/// The rollouts of a lab's codex, joined.
fn records(lab: &Lab, thread: &str) -> String {
    let rollouts = lab.rollouts(thread);
    assert!(!rollouts.is_empty());
    rollouts
        .iter()
        .map(|path| fs::read_to_string(path).unwrap())
        .collect()
}

/// What is not known of a conversation in which there is some of everything.
fn check(codex: &Path) {
    let command = |id: &str, command: &str| json!([{"id": id, "name": "exec_command", "arguments": {"cmd": command}}]);
    let patch = "*** Begin Patch\n*** Add File: new.txt\n+made by a patch\n*** End Patch\n";
    let mut lab = Lab::real(
        codex,
        json!([
            {"match": "again", "text": "Once more."},
            {"times": 1, "text": "First.", "calls": command("call_bad", "echo bad; exit 3")},
            {"after": "call_bad", "calls": [{"id": "call_send", "name": "send", "namespace": "mcp__plexum_host_alice",
                "arguments": {"to": "bob"}}]},
            {"after": "call_send", "custom_calls": [{"id": "call_patch", "name": "apply_patch", "input": patch}]},
            {"after": "call_patch", "items": [
                {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}},
                {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "**Think**"}]},
                {"type": "message", "role": "assistant", "id": "msg_1",
                    "content": [{"type": "output_text", "text": "done"}]}]},
        ]),
    );
    let temporary = lab.path("tmp");
    lab.set_env("TMPDIR", temporary);
    let printed = record_output(&lab);
    lab.config(json!({"binary": lab.path("codex-and-tee"), "extra_args": ["-m", "gpt-5.5"]}));
    let mut daemon = Daemon::start(&lab);
    daemon.on_tool_call(|_| Some(Ok(json!({"content": [{"type": "text", "text": "sent"}]}))));
    let mut params = Daemon::prompt(&lab, "go");
    params["request"]["tools"] =
        json!([{"name": "send", "description": "", "input_schema": {"type": "object"}}]);
    let turn = daemon.turn(params);
    assert!(turn.text().ends_with("done"), "{turn:?}");
    daemon.turn(Daemon::prompt(&lab, "again"));
    let found = found(
        &fs::read_to_string(printed).unwrap(),
        &records(&lab, turn.thread()),
    );
    report(found);
}

/// Sees that all names are known, or writes down those that are not, where the environment says so.
fn report<const N: usize>(found: [(&str, Counts); N]) {
    if std::env::var_os("KNOWN_UPDATE").is_some() {
        return learn(found);
    }
    let unknown = unknown(found);
    if let Some(path) = std::env::var_os("COMPAT_DRIFT") {
        let text: String = unknown.into_iter().map(|name| name + "\n").collect();
        let file = fs::File::options().create(true).append(true).open(path);
        file.unwrap().write_all(text.as_bytes()).unwrap();
        return;
    }
    assert!(unknown.is_empty(), "{unknown:#?}");
}

/// The names in a part of the schema: of each message its method, of the parameters their members, and the types of
/// items.
fn schema_names(kind: &str, schema: &Value, wanted: impl Fn(&str) -> bool, counts: &mut Counts) {
    let definition = |value: &Value| -> Value {
        match value["$ref"]
            .as_str()
            .and_then(|it| it.strip_prefix("#/definitions/"))
        {
            Some(name) => schema["definitions"][name].clone(),
            None => value.clone(),
        }
    };
    for message in schema["oneOf"].as_array().into_iter().flatten() {
        let method = message["properties"]["method"]["enum"][0]
            .as_str()
            .unwrap_or("?");
        if wanted(method) {
            let params = definition(&message["properties"]["params"]);
            let name = format!("{kind} {method}");
            count(counts, &name, params.get("properties"), &[]);
        }
    }
    let items = &schema["definitions"]["ThreadItem"]["oneOf"];
    for item in items.as_array().into_iter().flatten() {
        let form = item["properties"]["type"]["enum"][0]
            .as_str()
            .unwrap_or("?");
        count(
            counts,
            &format!("item {form}"),
            item.get("properties"),
            &["type"],
        );
    }
}

/// What is not known of what codex says that its app-server can say, and takes.
fn check_schema(codex: &Path) {
    let lab = Lab::real(codex, json!([]));
    let out = lab.path("schema");
    let mut command = Command::new(codex);
    command.args([
        "app-server",
        "generate-json-schema",
        "--experimental",
        "--out",
    ]);
    let output = command
        .arg(&out)
        .env_clear()
        .envs(lab.env())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut counts = Counts::new();
    for (file, kind) in [
        ("ServerNotification", "notification"),
        ("ServerRequest", "server-request"),
        ("ClientRequest", "request"),
    ] {
        let text = fs::read(out.join(format!("{file}.json"))).unwrap();
        let schema: Value = serde_json::from_slice(&text).unwrap();
        let is_ours = |method: &str| file != "ClientRequest" || REQUESTS.contains(&method);
        schema_names(kind, &schema, is_ours, &mut counts);
    }
    for request in REQUESTS {
        assert!(
            counts.contains_key(&format!("request {request}")),
            "'{request}' is gone"
        );
    }
    report([(SCHEMA, counts)]);
}

real_codex_by! { APP_SERVER,
    fn everything_that_the_app_server_can_say_is_known(codex: &Path) {
        check_schema(codex);
    }
}

#[test]
fn everything_that_the_app_server_of_0_155_can_say_is_known() {
    if let Some(codex) = real(CHANGED) {
        check_schema(&codex);
    }
}

real_codex_by! { EXEC,
    fn everything_that_codex_writes_is_known(codex: &Path) {
        check(codex);
    }
}

#[test]
fn everything_that_0_155_writes_is_known() {
    if let Some(codex) = real(CHANGED) {
        check(&codex);
    }
}

#[test]
fn what_is_not_known_is_listed() {
    const THREAD: &str = "01a1fe00-a027-7a81-b8a0-356e91ab6908";
    let lab = Lab::fake(json!([
        {"event": {"type": "thread.started", "thread_id": THREAD}},
        {"event": {"type": "turn.started", "mood": "good"}},
        {"event": {"type": "thread.renamed", "title": "x"}},
        {"event": {"type": "item.completed", "item": {"id": "i", "type": "agent_message", "text": "hi", "tone": 1}}},
        {"event": {"type": "item.completed", "item": {"id": "i", "type": "poem", "lines": 4}}},
        {"event": {"type": "turn.completed", "usage": {}}},
    ]));
    let printed = record_output(&lab);
    lab.config(json!({"binary": lab.path("codex-and-tee")}));
    let output = Cli::new(&lab, ["turn", "hi"]).run();
    assert_eq!(output.status, 0, "{output:?}");
    let line = |kind: &str, payload: Value| {
        json!({"timestamp": "t", "type": kind, "payload": payload, "mood": 1}).to_string() + "\n"
    };
    let records = line(
        "event_msg",
        json!({"type": "task_started", "turn_id": "1", "color": "red"}),
    ) + &line("dream", json!({"of": "sheep"}));
    assert_eq!(
        unknown(found(&fs::read_to_string(printed).unwrap(), &records)),
        [
            "event item.completed/agent_message.tone: 1",
            "event item.completed/poem: 1",
            "event item.completed/poem.id: 1",
            "event item.completed/poem.lines: 1",
            "event thread.renamed: 1",
            "event thread.renamed.title: 1",
            "event turn.started.mood: 1",
            "record dream: 1",
            "record dream.of: 1",
            "record event_msg/task_started.color: 1",
            "record record.mood: 2",
        ]
    );
}
