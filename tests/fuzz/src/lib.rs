//! What the fuzz targets run: for each parser of what others write, whatever bytes are its input. That nothing
//! panics is the least; what comes out is held against serde_json, or against what it promises.
//!
//! The program is a binary and has no library. Its modules are included here under the names that they have in
//! `src/main.rs`, so that their own paths hold, and nothing of them has to be public.
#![expect(
    dead_code,
    unused_imports,
    reason = "the targets call a part of the program"
)]
#![expect(clippy::unwrap_used, reason = "a panic is how a finding is told")]

#[path = "../../../src/backend/mod.rs"]
mod backend;
#[path = "../../../src/canonical.rs"]
mod canonical;
#[path = "../../../src/codex/mod.rs"]
mod codex;
#[path = "../../../src/config/mod.rs"]
mod config;
#[path = "../../../src/daemon/mod.rs"]
mod daemon;
#[path = "../../../src/error.rs"]
mod error;
#[path = "../../../src/json/mod.rs"]
mod json;
#[path = "../../../src/jsonrpc/mod.rs"]
mod jsonrpc;
#[path = "../../../src/mcp/mod.rs"]
mod mcp;
#[path = "../../../src/os/mod.rs"]
mod os;
#[path = "../../../src/paths.rs"]
mod paths;
#[path = "../../../src/rollout/mod.rs"]
mod rollout;
#[path = "../../../src/shell.rs"]
mod shell;
#[path = "../../../src/timestamp.rs"]
mod timestamp;
#[path = "../../../src/turn/mod.rs"]
mod turn;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{BufReader, Read};
use std::time::{Duration, Instant};

/// The daemon's lines.
pub fn fuzz_wire(data: &[u8]) {
    use jsonrpc::{Frame, read_line};
    let strip = |line: &[u8]| line.strip_suffix(b"\r").unwrap_or(line).to_vec();
    let mut expected = data
        .split(|byte| *byte == b'\n')
        .map(strip)
        .filter(|line| !line.trim_ascii().is_empty());
    // A small buffer, so that lines span it.
    let mut stream = BufReader::with_capacity(7, data);
    let mut line = Vec::new();
    loop {
        match read_line(&mut stream, &mut line).unwrap() {
            Frame::Line => {
                assert_eq!(Some(&line), expected.next().as_ref());
                wire_line(&line);
            }
            Frame::End => break,
            Frame::TooLong(_) => unreachable!("no input is that long"),
        }
    }
    assert_eq!(expected.next(), None);
}

fn wire_line(line: &[u8]) {
    use daemon::params;
    use jsonrpc::{Id, Message, error_response, parse, result_response};
    let json = line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line);
    match parse(line) {
        Ok(Message::Request { params, .. } | Message::Notification { params, .. }) => {
            let value: IgnoredAny = serde_json::from_slice(json).unwrap();
            let _ = value;
            if let Ok(Message::Request { id, .. }) = parse(line) {
                // The escapes of a string may be longer than they came.
                if id.json().len() <= 4096 {
                    assert_eq!(Id::from_json(&id.json()), Some(id.clone()));
                }
                one_line_of_json(&result_response(&id, "{}"));
            }
            let Ok(value) = params::value(params) else {
                return;
            };
            let params = params::root(&value);
            let _ = params::protocol_version(&params);
            let _ = params::log_level(&params);
            let _ = params::cancelled_stream(&params);
            let _ = params::cancelled_request(&params);
            let _ = params::steer(&params);
            let _ = params::stream_tools(&params);
            let _ = params::mutate(&params);
            let _ = params::tools_changed(&params);
            if let Ok((workspace, request)) = params::stream(&params) {
                assert!(workspace.is_absolute());
                assert!(!request.prompt.is_empty());
                assert!(request.history.text.len() <= turn::prompt::LONGEST_REPLAY);
            }
        }
        Ok(Message::Response { outcome, .. }) => {
            let (Ok(json) | Err(json)) = outcome;
            let _ = serde_json::from_str::<mcp::ToolOutput>(json.get());
        }
        Ok(Message::InvalidResponse { .. }) => {
            let _: IgnoredAny = serde_json::from_slice(json).unwrap();
        }
        Err(refused) => {
            let code = refused.error.kind().rpc_code();
            assert!(matches!(code, -32700 | -32600));
            // What is JSON to who only looks at its form, and what is to who builds it: a number too large for
            // a float, half of a surrogate pair or too much depth lies between.
            let json = std::str::from_utf8(json);
            let has_form = json.is_ok_and(|json| serde_json::from_str::<IgnoredAny>(json).is_ok());
            let is_value = json.is_ok_and(|json| serde_json::from_str::<Value>(json).is_ok());
            assert!(has_form || code == -32700, "{}", refused.error);
            assert!(!is_value || code == -32600, "{}", refused.error);
            let answer = error_response(
                refused.id.as_ref(),
                refused.error.kind().rpc_code(),
                refused.error.message(),
                None,
            );
            one_line_of_json(answer.strip_suffix('\n').unwrap());
        }
    }
}

/// What codex prints.
pub fn fuzz_events(data: &[u8]) {
    use backend::exec::translate::{Translator, Update};
    let mut translator = Translator::default();
    for line in data.split(|byte| *byte == b'\n') {
        let before = translator.outcome().cloned();
        let said = translator.line(line);
        if let (Update::Text(said), Some(Unique(json))) = (&said, unique(line))
            && let Some(text) = json["item"]["text"].as_str()
        {
            assert_eq!(text, said);
        }
        if let (Update::Thread(said), Some(Unique(json))) = (&said, unique(line))
            && let Some(id) = json["thread_id"].as_str()
        {
            assert_eq!(id, said);
        }
        let is_end = said == Update::End;
        match before {
            Some(_) => {
                assert!(matches!(said, Update::Nothing(_)), "{said:?} after the end");
                assert_eq!(translator.outcome(), before.as_ref());
            }
            None => assert_eq!(translator.outcome().is_some(), is_end),
        }
    }
    let _ = translator.last_error().map(codex::failure::from_message);
}

/// A rollout as it is scanned, against serde_json.
pub fn fuzz_rollout(data: &[u8]) {
    use rollout::lines::LineKind;
    let all = scan(data, usize::MAX, |_| true);
    let mut offset = 0;
    let mut expected = Vec::new();
    for line in data.split_inclusive(|byte| *byte == b'\n') {
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        // As JSON has it, a form feed is not white space.
        if !text.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\r')) {
            expected.push((offset, text.to_vec()));
        }
        offset += line.len() as u64;
    }
    let found: Vec<_> = all
        .iter()
        .map(|(at, _, text)| (*at, text.clone()))
        .collect();
    assert_eq!(found, expected);
    // However it is read, and whatever is ignored.
    let step = usize::from(data.first().copied().unwrap_or(0)) % 37 + 1;
    let wanted = |kind| matches!(kind, LineKind::Call | LineKind::Output);
    let some: Vec<_> = all
        .iter()
        .filter(|(_, kind, _)| wanted(*kind) || *kind == LineKind::Unknown)
        .cloned()
        .collect();
    assert_eq!(scan(data, step, wanted), some);
    for (_, kind, text) in &all {
        if let Ok(text) = std::str::from_utf8(text) {
            rollout_line(*kind, text);
        }
    }
}

type Scanned = (u64, rollout::lines::LineKind, Vec<u8>);

fn scan(
    data: &[u8],
    step: usize,
    wanted: impl Fn(rollout::lines::LineKind) -> bool,
) -> Vec<Scanned> {
    /// Gives so many bytes at a time.
    struct Slow<'a>(&'a [u8], usize);
    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let length = buffer.len().min(self.1);
            self.0.read(&mut buffer[..length])
        }
    }
    use rollout::lines::{Line, LineBlock, Lines};
    let told = |line: Line<'_>| (line.offset, line.kind, line.bytes.to_vec());
    let mut lines = Lines::new(Slow(data, step));
    let mut found = Vec::new();
    while let Some(line) = lines.next(&wanted).unwrap() {
        found.push(told(line));
    }
    found.extend(lines.rest(&wanted).map(told));
    let mut lines = Lines::in_blocks(Slow(data, step));
    let (mut blocks, mut in_blocks) = ([LineBlock::default(), LineBlock::default()], Vec::new());
    let mut more = true;
    while more {
        blocks.rotate_left(1);
        more = lines.block(&mut blocks[0], &wanted).unwrap();
        in_blocks.extend(blocks[0].lines().map(told));
    }
    assert_eq!(found, in_blocks);
    found
}

fn rollout_line(kind: rollout::lines::LineKind, text: &str) {
    use rollout::calls;
    use rollout::lines::LineKind;
    use rollout::record::{Record, parse};
    let is_json = json::valid(text);
    // See there: what is taken for a value, and more depth and larger numbers.
    let has_form = serde_json::from_str::<IgnoredAny>(text).is_ok();
    let is_value = serde_json::from_str::<Value>(text).is_ok();
    assert!(is_json || !is_value, "{text}");
    assert!(has_form || !is_json, "{text}");
    let record = match parse(text) {
        Ok(record) => record,
        Err(_) => {
            // Only objects are records.
            assert!(!is_json || !text.trim_start().starts_with('{'), "{text}");
            return;
        }
    };
    assert!(is_json, "{text}");
    let mut out = Vec::new();
    match &record {
        Record::Call(call) => calls::write_use(&mut out, call, Some("x"), Some("y")).unwrap(),
        Record::Output(output) => {
            calls::write_result(&mut out, &output.id, &output.content, output.failed).unwrap();
        }
        Record::Nested(nested) => calls::write_use(&mut out, &nested.call, None, None).unwrap(),
        _ => {}
    }
    if !out.is_empty() {
        let out = String::from_utf8(out).unwrap();
        assert!(serde_json::from_str::<IgnoredAny>(&out).is_ok(), "{out}");
    }
    let Some(Unique(value)) = unique(text.as_bytes()) else {
        return;
    };
    let word = |value: &Value| value.as_str().unwrap_or_default().as_bytes().to_vec();
    let (payload, item) = (&value["payload"], &value["payload"]["item"]);
    let id = match payload["type"].as_str() {
        Some("item_completed") => &item["id"],
        _ => &payload["call_id"],
    };
    if kind != LineKind::Unknown {
        let real = LineKind::of(
            &word(&value["type"]),
            &word(&payload["type"]),
            &word(&item["type"]),
            &word(id),
        );
        assert_eq!(kind, real, "{text}");
    }
    match &record {
        Record::Call(call) if payload["call_id"].is_string() => {
            assert_eq!(payload["call_id"], Value::from(call.id.as_ref()));
        }
        Record::Output(output) => {
            assert_eq!(payload["call_id"], Value::from(output.id.as_ref()));
        }
        _ => {}
    }
}

/// Consuming calls in a rollout: what is changed, what is not, and that a second time changes nothing.
pub fn fuzz_rewrite(data: &[u8]) {
    use rollout::consume::Mutation;
    use rollout::consume::splice::Op;
    let Some((ops, text)) = data.split_first() else {
        return;
    };
    let mut ids = BTreeSet::new();
    for line in text.split(|byte| *byte == b'\n') {
        if let Some(Unique(json)) = unique(line) {
            for id in [&json["payload"]["call_id"], &json["payload"]["item"]["id"]] {
                ids.extend(id.as_str().map(str::to_owned));
            }
        }
    }
    // Some of them, in either way, and one that is not there.
    let mutations: Vec<Mutation> = ids
        .into_iter()
        .take(8)
        .enumerate()
        .filter(|(at, _)| ops >> at & 1 == 0 || *at == 0)
        .map(|(at, block_id)| Mutation {
            block_id,
            reach: rollout::consume::Reach::All,
            op: if (usize::from(*ops) + at) % 3 == 0 {
                Op::Light
            } else {
                Op::Heavy
            },
        })
        .collect();
    let (new, touched, missing) = consume(text, &mutations);
    let old_lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    let new_lines: Vec<&[u8]> = new.split(|byte| *byte == b'\n').collect();
    assert_eq!(old_lines.len(), new_lines.len());
    for (old, new) in old_lines.iter().zip(&new_lines) {
        assert_eq!(old.len(), new.len(), "a line has another length");
        if old == new {
            continue;
        }
        serde_json::from_slice::<IgnoredAny>(new).expect("a changed line is still JSON");
        if let Some(Unique(old)) = unique(old) {
            let Some(Unique(new)) = unique(new) else {
                panic!("a changed line can be read as before");
            };
            let named = |json: &Value| {
                let id = json["payload"]["call_id"].as_str();
                mutations.iter().any(|it| Some(it.block_id.as_str()) == id)
            };
            assert!(
                named(&old) || old["type"] == "compacted" || has_nested(&mutations),
                "{old}"
            );
            assert_eq!(without_parts(old), without_parts(new));
        }
    }
    let (again, touched_again, missing_again) = consume(&new, &mutations);
    assert!(again == new, "a second time changes something");
    assert_eq!(
        (touched_again, missing_again),
        (0, missing),
        "touched {touched}"
    );
}

fn has_nested(mutations: &[rollout::consume::Mutation]) -> bool {
    let nested = rollout::lines::NESTED_ID_PREFIX;
    mutations.iter().any(|it| it.block_id.starts_with(nested))
}

fn consume(text: &[u8], mutations: &[rollout::consume::Mutation]) -> (Vec<u8>, usize, Vec<String>) {
    use rollout::consume::splice::Piece;
    let plan = rollout::consume::Plan::read(|| text, mutations).unwrap();
    let mut new = text.to_vec();
    let mut written = 0;
    for patch in &plan.patches {
        let mut at = usize::try_from(patch.at).unwrap();
        assert!(at >= written, "patches are in order and do not meet");
        for piece in &patch.pieces {
            let bytes = match piece {
                Piece::Text(text) => text.as_bytes().to_vec(),
                Piece::Spaces(count) => vec![b' '; usize::try_from(*count).unwrap()],
                Piece::Keep(span) => text[span.start as usize..span.end as usize].to_vec(),
            };
            new[at..at + bytes.len()].copy_from_slice(&bytes);
            at += bytes.len();
        }
        written = at;
    }
    (new, plan.outcome.touched, plan.outcome.missing)
}

/// What is not to be changed of a line.
fn without_parts(mut json: Value) -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(map) => {
                for name in ["output", "arguments", "input", "action", "tools", "content"] {
                    map.remove(name);
                }
                map.values_mut().for_each(strip);
            }
            Value::Array(values) => values.iter_mut().for_each(strip),
            _ => {}
        }
    }
    strip(&mut json["payload"]);
    json
}

/// The plugin's config file.
pub fn fuzz_config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    // Whoever reads the file has taken a BOM away.
    match config::load::parse(text) {
        Ok((_, warnings)) => {
            let json = text.trim();
            let blank = json.is_empty();
            assert!(
                blank || serde_json::from_str::<IgnoredAny>(json).is_ok(),
                "{json}"
            );
            assert!(blank || json.starts_with('{'), "{json}");
            assert!(warnings.iter().all(|warning| !warning.is_empty()));
        }
        Err(why) => {
            let mut parts = why.splitn(3, ':');
            let mut number = || parts.next().and_then(|part| part.parse::<usize>().ok());
            let place = (number(), number());
            assert!(matches!(place, (Some(1..), Some(_))), "{why}");
            assert!(parts.next().is_some_and(|what| what.len() > 3), "{why}");
        }
    }
}

/// What codex's side of the MCP connection says, and the daemon's answers to its calls.
pub fn fuzz_mcp(data: &[u8]) {
    use mcp::catalogue::Catalogue;
    use mcp::session::{Effect, Session};
    let tool = |name: &str| mcp::Tool {
        name: name.to_owned(),
        description: Some("d".to_owned()),
        input_schema: None,
    };
    let (tools, _) = Catalogue::new(1, vec![tool("a"), tool("b"), tool("a")]);
    let mut session = Session::default();
    let mut open: BTreeMap<_, Vec<u8>> = BTreeMap::new();
    let now = Instant::now();
    let mut effects = Vec::new();
    for line in data.split(|byte| *byte == b'\n') {
        effects.clear();
        session.line(line, &tools, now, &mut effects);
        let (mut sent, mut called) = (0, 0);
        for effect in effects.drain(..) {
            match effect {
                Effect::Send(line) => {
                    one_line_of_json(&line);
                    // Of progress it is told beside the answer.
                    sent += usize::from(!line.contains("\"method\":"));
                }
                Effect::Call(key, call) => {
                    assert!(matches!(call.name.as_str(), "a" | "b"));
                    assert!(call.arguments.get().starts_with('{'));
                    assert!(open.insert(key, line.to_vec()).is_none());
                    called += 1;
                }
                Effect::Cancel(key) => assert!(open.remove(&key).is_some(), "cancelled twice"),
            }
        }
        // Not trimmed: a form feed is white space to Rust, and none to JSON.
        if let Some(Unique(json)) = unique(line)
            && json["jsonrpc"] == "2.0"
            && json["method"].is_string()
            && json.get("result").is_none()
            && json.get("error").is_none()
        {
            // Each request has one answer, now or later, and a notification none.
            let is_request = json["id"].is_string() || json["id"].is_i64();
            let is_notification = json.get("id").is_none();
            if is_request {
                assert_eq!(sent + called, 1, "{json}");
            } else if is_notification {
                assert_eq!(sent, 0, "{json}");
            }
        }
        for line in session.progress(now + Duration::from_secs(3600)) {
            one_line_of_json(&line);
        }
        // Every other call is answered, by whatever the line is.
        if open.len() > 1
            && let Some((key, line)) = open.pop_first()
        {
            let answer = serde_json::from_slice(&line).map_err(|error| error.to_string());
            if let Some(answer) = session.answer(key, answer) {
                one_line_of_json(&answer);
                // What codex reads it with is stricter than the grammar.
                assert!(serde_json::from_str::<Value>(&answer).is_ok(), "{answer}");
            }
            assert!(session.answer(key, Err("again".to_owned())).is_none());
        }
    }
    assert_eq!(session.end(), open.into_keys().collect::<Vec<_>>());
}

#[track_caller]
fn one_line_of_json(line: &str) {
    assert!(!line.contains(['\n', '\r']), "{line}");
    assert!(serde_json::from_str::<IgnoredAny>(line).is_ok(), "{line}");
}

/// A value in which no key stands twice; of others serde_json's own reading is only one of several.
struct Unique(Value);

fn unique(json: &[u8]) -> Option<Unique> {
    serde_json::from_slice(json).ok()
}

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Unique, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Unique;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value without duplicate keys")
            }
            fn visit_unit<E>(self) -> Result<Unique, E> {
                Ok(Unique(Value::Null))
            }
            fn visit_bool<E>(self, value: bool) -> Result<Unique, E> {
                Ok(Unique(value.into()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Unique, E> {
                Ok(Unique(value.into()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Unique, E> {
                Ok(Unique(value.into()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Unique, E> {
                Ok(Unique(value.into()))
            }
            fn visit_str<E>(self, value: &str) -> Result<Unique, E> {
                Ok(Unique(value.into()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Unique, A::Error> {
                let mut values = Vec::new();
                while let Some(Unique(value)) = seq.next_element()? {
                    values.push(value);
                }
                Ok(Unique(values.into()))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique, A::Error> {
                let mut members = serde_json::Map::new();
                while let Some((key, Unique(value))) = map.next_entry::<String, _>()? {
                    if members.insert(key, value).is_some() {
                        return Err(serde::de::Error::custom("a key stands twice"));
                    }
                }
                Ok(Unique(members.into()))
            }
        }
        from.deserialize_any(Any)
    }
}
