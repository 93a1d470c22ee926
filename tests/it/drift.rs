//! What codex writes that is not known here: types of events and records, and their members at every depth.
//!
//! The known names stand beside the code that reads them, in `known-events.txt`, `known-records.txt` and, for the schema
//! that `codex app-server` prints of itself, `known-schema.txt`; the head of each list says how a name is written.
//! Names that are not in a list are no failure for the program, which ignores what it does not know; they are the first
//! sign that a release of codex has changed something. `make compat` prints those of a release, and these tests fail on
//! those of a version that the tests run on. `KNOWN_UPDATE=1`, with one test at a time, adds to the lists what was
//! found.

mod schema;

use self::schema::{SchemaNames, response_file};
use crate::support::codex::{CHANGED, is_at_least, real, real_codex, real_codex_by};
use crate::support::{Cli, Daemon, Lab, write_program};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
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

/// The names found so far, and those of the list that they are compared with, which says what is data.
struct Names {
    known: BTreeSet<String>,
    counts: Counts,
}

impl Names {
    fn new(list: &str) -> Names {
        Names {
            known: known(list),
            counts: Counts::new(),
        }
    }

    fn add(&mut self, name: String) {
        *self.counts.entry(name).or_default() += 1;
    }

    /// Does the list have this name with that mark?
    fn is_marked(&self, name: &str, mark: &str) -> bool {
        self.known.contains(&format!("{name}{mark}"))
    }

    /// The name of a member.
    fn member(&self, name: &str, key: &str) -> String {
        if self.is_marked(name, ".*") {
            return format!("{name}.*");
        }
        // A key that is data, and not yet marked as such, may have whatever is in it.
        format!("{name}.{}", key.escape_debug())
    }

    /// Adds the names of an object's members, but of these, and of all below.
    fn add_members(&mut self, name: &str, object: &Map<String, Value>, except: &[&str]) {
        for (key, value) in object {
            if !except.contains(&key.as_str()) {
                let name = self.member(name, key);
                self.add(name.clone());
                self.add_below(&name, value);
            }
        }
    }

    /// Adds the names of all that is below the value of this name.
    fn add_below(&mut self, name: &str, value: &Value) {
        if self.is_marked(name, ".**") {
            return;
        }
        match value {
            Value::Array(elements) => {
                for element in elements {
                    self.add_below(&format!("{name}[]"), element);
                }
            }
            Value::Object(object) => match object.get("type").and_then(Value::as_str) {
                Some(form) if !self.is_marked(name, ".*") => {
                    let name = format!("{name}/{}", form.escape_debug());
                    self.add(name.clone());
                    self.add_members(&name, object, &["type"]);
                }
                _ => self.add_members(name, object, &[]),
            },
            _ => {}
        }
    }

    /// Adds the names of an event or a payload. One that has an item with a type is named with both, and the members of
    /// the item follow that name.
    fn add_message(&mut self, name: &str, message: &Map<String, Value>) {
        match message.get("item").filter(|item| item["type"].is_string()) {
            Some(item) => {
                self.add_members(name, message, &["type", "item"]);
                self.add_below(name, item);
            }
            None => {
                self.add(name.to_owned());
                self.add_members(name, message, &["type"]);
            }
        }
    }
}

/// The objects in lines of JSON.
fn objects(lines: &str) -> impl Iterator<Item = Map<String, Value>> {
    lines
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
}

/// The names in lines of `codex exec --json`.
fn event_names(lines: &str) -> Counts {
    let mut names = Names::new(EVENTS);
    for event in objects(lines) {
        let kind = event.get("type").and_then(Value::as_str).unwrap_or("?");
        names.add_message(kind, &event);
    }
    names.counts
}

/// The names in lines of a rollout.
fn record_names(lines: &str) -> Counts {
    let mut names = Names::new(RECORDS);
    for record in objects(lines) {
        names.add("record".to_owned());
        names.add_members("record", &record, &["type", "payload"]);
        let kind = record.get("type").and_then(Value::as_str).unwrap_or("?");
        let Some(payload) = record.get("payload").and_then(Value::as_object) else {
            names.add(kind.to_owned());
            continue;
        };
        match payload.get("type").and_then(Value::as_str) {
            Some(form) => names.add_message(&format!("{kind}/{form}"), payload),
            None => names.add_message(kind, payload),
        }
    }
    names.counts
}

fn list(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The head of a list, which says how its names are written, and its names.
fn read_list(path: &str) -> (String, BTreeSet<String>) {
    let text = fs::read_to_string(list(path)).unwrap();
    let (head, names): (Vec<&str>, Vec<&str>) =
        text.lines().partition(|line| line.starts_with('#'));
    let head = head.into_iter().map(|line| line.to_owned() + "\n");
    (
        head.collect(),
        names.into_iter().map(str::to_owned).collect(),
    )
}

fn known(path: &str) -> BTreeSet<String> {
    read_list(path).1
}

/// The names in what codex has printed and recorded, by the list that they belong into.
fn found(events: &str, records: &str) -> [(&'static str, Counts); 2] {
    [
        (EVENTS, event_names(events)),
        (RECORDS, record_names(records)),
    ]
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
        let (head, known) = read_list(path);
        let all: BTreeSet<String> = known.into_iter().chain(counts.into_keys()).collect();
        let names: String = all.into_iter().map(|name| name + "\n").collect();
        fs::write(list(path), head + &names).unwrap();
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
    write_program(&script, &text);
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
    let plan = |id: &str, status: &str| {
        json!([{"id": id, "name": "update_plan",
            "arguments": {"explanation": "why", "plan": [{"step": "one", "status": status}]}}])
    };
    let mut lab = Lab::real(
        codex,
        json!([
            {"match": "again", "text": "Once more."},
            {"match": "fail", "status": 400, "body": {"error": {"message": "no"}}},
            {"times": 1, "text": "First.", "calls": command("call_bad", "echo bad; exit 3")},
            {"after": "call_bad", "calls": [{"id": "call_send", "name": "send", "namespace": "mcp__plexum_host_alice",
                "arguments": {"to": "bob"}}]},
            {"after": "call_send", "custom_calls": [{"id": "call_patch", "name": "apply_patch", "input": patch}]},
            {"after": "call_patch", "calls": plan("call_plan", "in_progress")},
            {"after": "call_plan", "calls": plan("call_planned", "completed")},
            {"after": "call_planned", "items": [
                {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}},
                {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "**Think**"}]},
                {"type": "message", "role": "assistant", "id": "msg_1",
                    "content": [{"type": "output_text", "text": "done"}]}]},
            {"text": "Summary."},
        ]),
    );
    let temporary = lab.path("tmp");
    lab.set_env("TMPDIR", temporary);
    let printed = record_output(&lab);
    let mut extra_args = vec!["-m", "gpt-5.5"];
    if is_at_least(codex, (0, 169, 0)) {
        // It no longer has the tool unless it is asked to.
        extra_args.extend(["-c", "tools.update_plan={enabled=true}"]);
    }
    lab.config(json!({"binary": lab.path("codex-and-tee"), "extra_args": extra_args}));
    let mut daemon = Daemon::start(&lab);
    daemon.on_tool_call(|_| Some(Ok(json!({"content": [{"type": "text", "text": "sent"}]}))));
    let mut params = Daemon::prompt(&lab, "go");
    params["request"]["tools"] =
        json!([{"name": "send", "description": "", "input_schema": {"type": "object"}}]);
    let turn = daemon.turn(params);
    assert!(turn.text().ends_with("done"), "{turn:?}");
    daemon.turn(Daemon::prompt(&lab, "again"));
    let failed = daemon.turn(Daemon::prompt(&lab, "fail"));
    assert!(failed.error_code().is_some(), "{failed:?}");
    drop(daemon);
    extra_args.extend(["-c", "model_auto_compact_token_limit=60"]);
    lab.config(json!({"binary": lab.path("codex-and-tee"), "extra_args": extra_args}));
    let compacted = Daemon::start(&lab).turn(Daemon::prompt(&lab, "once again"));
    assert_eq!(compacted.result()["compactions"], 1, "{compacted:?}");
    let printed = fs::read_to_string(printed).unwrap();
    let records = records(&lab, turn.thread());
    match lab.keeps_servers() {
        // What the app-server prints is in its schema.
        true => report([(RECORDS, record_names(&records))]),
        false => report(found(&printed, &records)),
    }
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
    let read = |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let mut names = BTreeSet::new();
    for (file, kind) in [
        ("ServerNotification", "notification"),
        ("ServerRequest", "server-request"),
        ("ClientRequest", "request"),
    ] {
        let schema = read(&out.join(file).with_extension("json"));
        let is_ours = |method: &str| file != "ClientRequest" || REQUESTS.contains(&method);
        SchemaNames::new(&schema, &mut names).add_messages(kind, &schema, is_ours);
    }
    for request in REQUESTS {
        assert!(
            names.contains(&format!("request {request}")),
            "'{request}' is gone"
        );
        let schema = read(&response_file(&out, request));
        SchemaNames::new(&schema, &mut names).add(&format!("response {request}"), &schema);
    }
    report([(SCHEMA, names.into_iter().map(|name| (name, 1)).collect())]);
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

real_codex! {
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

/// A line of a rollout.
fn record(kind: &str, payload: Value) -> Value {
    json!({"timestamp": "t", "type": kind, "payload": payload})
}

#[test]
fn lists_what_is_not_known_by_its_path() {
    let tool = json!({"id": "i", "type": "mcp_tool_call", "arguments": {"data": {"data": 1}}, "result": {"weight": 1,
        "content": [{"type": "data", "data": 1}], "structured_content": {"data": 1}}});
    let changes =
        json!({"/data": {"type": "add", "content": "", "owner": 1}, "/type": {"type": "copy"}});
    let calls = [
        json!({"type": "function_call", "arguments": "{\"data\":1}"}),
        json!({"type": "message", "content": [{"type": "input_text", "font": "serif"}, {"type": "smell"}]}),
    ];
    let lab = Lab::fake(json!([
        {"event": {"type": "thread.started", "thread_id": "{thread}"}},
        {"event": {"type": "turn.started", "mood": "good"}},
        {"event": {"type": "thread.renamed", "title": "x"}},
        {"event": {"type": "item.completed", "item": {"id": "i", "type": "agent_message", "text": "hi", "tone": 1}, "at": 1}},
        {"event": {"type": "item.completed", "item": {"id": "i", "type": "poem", "lines": [[{"feet": 5}], 4]}}},
        {"event": {"type": "item.completed", "item": tool}},
        {"rollout": [
            {"timestamp": "t", "type": "session_meta", "payload": {"id": "{thread}"}, "mood": {"of": 1}},
            record("event_msg", json!({"type": "task_started", "turn_id": "1", "color": "red"})),
            record("event_msg", json!({"type": "patch_apply_end", "changes": changes})),
            record("event_msg", json!({"type": "item_completed", "item": {"type": "Reasoning", "depth": 3}, "at": 1})),
            record("response_item", calls[0].clone()),
            record("response_item", calls[1].clone()),
            record("dream", json!({"of": {"what": "sheep"}})),
        ]},
        {"event": {"type": "turn.completed", "usage": {"input_tokens": 1, "new_member": {"of": 1}}}},
    ]));
    let printed = record_output(&lab);
    lab.config(json!({"binary": lab.path("codex-and-tee")}));
    let output = Cli::new(&lab, ["turn", "hi"]).run();
    assert_eq!(output.status, 0, "{output:?}");
    let thread = lab.stored_thread().unwrap();
    let found = found(
        &fs::read_to_string(printed).unwrap(),
        &records(&lab, &thread),
    );
    assert_eq!(
        unknown(found),
        [
            "event item.completed.at: 1",
            "event item.completed/agent_message.tone: 1",
            "event item.completed/mcp_tool_call.result.weight: 1",
            "event item.completed/poem: 1",
            "event item.completed/poem.id: 1",
            "event item.completed/poem.lines: 1",
            "event item.completed/poem.lines[][].feet: 1",
            "event thread.renamed: 1",
            "event thread.renamed.title: 1",
            "event turn.completed.usage.new_member: 1",
            "event turn.completed.usage.new_member.of: 1",
            "event turn.started.mood: 1",
            "record dream: 1",
            "record dream.of: 1",
            "record dream.of.what: 1",
            "record event_msg/item_completed.at: 1",
            "record event_msg/item_completed/Reasoning.depth: 1",
            "record event_msg/patch_apply_end.changes.*/add.owner: 1",
            "record event_msg/patch_apply_end.changes.*/copy: 1",
            "record event_msg/task_started.color: 1",
            "record record.mood: 1",
            "record record.mood.of: 1",
            "record response_item/message.content[]/input_text.font: 1",
            "record response_item/message.content[]/smell: 1",
        ]
    );
}

/// A name below one that is marked as data is never found.
#[test]
fn lists_name_nothing_below_data() {
    for path in [EVENTS, RECORDS] {
        let known = known(path);
        for mark in [".*", ".**"] {
            for data in known.iter().filter_map(|name| name.strip_suffix(mark)) {
                let below = |name: &&String| {
                    let rest = name.strip_prefix(data).unwrap_or_default();
                    let is_member = rest.starts_with(['.', '/', '[']);
                    is_member && rest != mark && !(mark == ".*" && rest.starts_with(".*"))
                };
                assert_eq!(known.iter().find(below), None, "{path}: {data}{mark}");
            }
        }
    }
}
