//! Tests of consuming: on texts, on random rollouts and on files.

use super::splice::Piece;
use super::*;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

fn mutation(id: &str, op: Op) -> Mutation {
    Mutation {
        block_id: id.to_owned(),
        op,
        reach: Reach::All,
    }
}

fn light(id: &str) -> Mutation {
    mutation(id, Op::Light)
}

fn heavy(id: &str) -> Mutation {
    mutation(id, Op::Heavy)
}

/// The JSON of a rollout in bytes, without padding.
fn json_bytes(text: &str) -> u64 {
    text.lines().map(|line| line.trim_end().len() as u64).sum()
}

/// The text and the report after consuming.
fn consumed(text: &[u8], mutations: &[Mutation]) -> (Vec<u8>, ConsumeReport) {
    let plan = Plan::read(|| text, mutations).unwrap();
    let mut new = text.to_vec();
    for patch in &plan.patches {
        let mut at = patch.at as usize;
        for piece in &patch.pieces {
            let bytes = match piece {
                Piece::Text(text) => text.as_bytes().to_vec(),
                Piece::Spaces(count) => vec![b' '; *count as usize],
                Piece::Keep(span) => text[span.start as usize..span.end as usize].to_vec(),
            };
            new[at..at + bytes.len()].copy_from_slice(&bytes);
            at += bytes.len();
        }
    }
    (new, plan.outcome)
}

/// `before` becomes `after`, with this report; a second run changes nothing.
fn check(
    what: &str,
    before: &[&str],
    mutations: &[Mutation],
    after: &[&str],
    touched: usize,
    missing: &[&str],
) {
    let text = before.join("\n");
    let (new, outcome) = consumed(text.as_bytes(), mutations);
    let new = String::from_utf8(new).unwrap();
    let lines: Vec<&str> = new.split('\n').collect();
    for (line, old) in lines.iter().zip(before) {
        assert_eq!(line.len(), old.len(), "{what}: {line}");
    }
    let shown: Vec<&str> = lines
        .iter()
        .map(|line| line.trim_end_matches(' '))
        .collect();
    assert_eq!(shown, after, "{what}");
    let expected = ConsumeReport {
        requested: mutations.len(),
        touched,
        missing: missing.iter().map(|id| (*id).to_owned()).collect(),
        freed_bytes: json_bytes(&text).saturating_sub(json_bytes(&new)),
    };
    assert_eq!(outcome, expected, "{what}");
    let (again, outcome) = consumed(new.as_bytes(), mutations);
    assert!(again == new.as_bytes(), "{what}: a second time");
    assert_eq!(outcome.touched, 0, "{what}: a second time");
    assert_eq!(outcome.missing, expected.missing, "{what}: a second time");
}

fn line(payload: &str) -> String {
    format!(
        r#"{{"timestamp":"t","ordinal":1,"type":"response_item","payload":{payload},"x":1.50}}"#
    )
}

fn call(id: &str) -> String {
    line(&format!(
        r#"{{"type":"function_call","name":"f","arguments":"{{\"cmd\":\"ls\"}}","call_id":"{id}","z":"\u00e9"}}"#
    ))
}

fn output(id: &str, output: &str) -> String {
    line(&format!(
        r#"{{"type":"function_call_output","call_id":"{id}","output":{output},"z":[ 1 ]}}"#
    ))
}

const LONG: &str = r#""Chunk ID: 1\nOutput:\n\"long\" enough""#;
const LIGHT: &str = r#""...(consumed)""#;
const HEAVY: &str = r#""...(tool called)""#;

// fault: 53, 55
#[test]
fn consumes_every_shape_of_output() {
    let a = call("a");
    let heavy_a = a.replace(r#""{\"cmd\":\"ls\"}""#, r#""{}""#);
    let pair = |text: &str| [a.clone(), output("a", text)];
    let list = r#"[{"type":"input_text","text":"x"},{"type":"input_image","image_url":"data:image/png;base64,AAAA"}]"#;
    let custom = line(
        r#"{"type":"custom_tool_call","call_id":"a","name":"apply_patch","input":"*** Begin"}"#,
    );
    let custom_output = line(&format!(
        r#"{{"type":"custom_tool_call_output","call_id":"a","output":{LONG}}}"#
    ));
    let shell = line(
        r#"{"type":"local_shell_call","id":"a","call_id":null,"action":{"type":"exec","command":["ls","-l"],"timeout_ms":1000},"status":"completed"}"#,
    );
    let search = line(
        r#"{"type":"tool_search_call","call_id":"a","execution":"client","arguments":{"query":"good"}}"#,
    );
    let found = line(r#"{"type":"tool_search_output","call_id":"a","tools":[{"name":"x"}]}"#);
    let cases: &[(&str, &[String], Mutation, &[String])] = &[
        ("light", &pair(LONG), light("a"), &pair(LIGHT)),
        ("heavy", &pair(LONG), heavy("a"), &[heavy_a.clone(), output("a", HEAVY)]),
        ("a list", &pair(list), light("a"), &pair(LIGHT)),
        (
            "several outputs",
            &[a.clone(), output("a", LONG), output("a", list)],
            light("a"),
            &[a.clone(), output("a", LIGHT), output("a", LIGHT)],
        ),
        (
            "free-form input",
            &[custom.clone(), custom_output.clone()],
            heavy("a"),
            &[
                custom.replace("*** Begin", ""),
                custom_output.replace(LONG, HEAVY),
            ],
        ),
        (
            "a shell call without a call id",
            &[shell.clone(), output("a", LONG)],
            heavy("a"),
            &[
                shell.replace(r#"["ls","-l"],"timeout_ms":1000"#, "[]"),
                output("a", HEAVY),
            ],
        ),
        (
            "a tool search",
            &[search.clone(), found.clone()],
            heavy("a"),
            &[
                search.replace(r#"{"query":"good"}"#, "{}"),
                found.replace(r#"[{"name":"x"}]"#, "[]"),
            ],
        ),
        (
            "keys in another order, spaces, escapes",
            &[
                r#" { "payload" : { "call_id" : "\u0061" , "arguments" : "{ }" , "t\u0079pe" : "function\u005fcall" } , "type" : "response_item" } "#.to_owned(),
                r#"{"payload":{"output":"0123456789abcdefghi","call_id":"a","type":"function_call_output"},"type":"response_item"}"#.to_owned(),
            ],
            heavy("a"),
            &[
                r#" { "payload" : { "call_id" : "\u0061" , "arguments" : "{}" , "t\u0079pe" : "function\u005fcall" } , "type" : "response_item" }"#.to_owned(),
                r#"{"payload":{"output":"...(tool called)","call_id":"a","type":"function_call_output"},"type":"response_item"}"#.to_owned(),
            ],
        ),
        (
            "other lines in between",
            &[
                "\u{feff}not json".to_owned(),
                a.clone(),
                r#"{"timestamp":"t","type":"response_item","payload":{"type":"function_call_output","call_id":"a","output":"torn"#.to_owned(),
                String::new(),
                output("b", LONG),
                format!("{}\r", output("a", LONG)),
                format!("{{\"type\":\"event_msg\",\"payload\":{{\"call_id\":\"a\",\"output\":{LONG}}}}}"),
            ],
            light("a"),
            &[
                "\u{feff}not json".to_owned(),
                a.clone(),
                r#"{"timestamp":"t","type":"response_item","payload":{"type":"function_call_output","call_id":"a","output":"torn"#.to_owned(),
                String::new(),
                output("b", LONG),
                // The `\r` stays where it was, at the line's end.
                format!("{}{}\r", output("a", LIGHT), " ".repeat(LONG.len() - LIGHT.len())),
                format!("{{\"type\":\"event_msg\",\"payload\":{{\"call_id\":\"a\",\"output\":{LONG}}}}}"),
            ],
        ),
    ];
    for (what, before, mutation, after) in cases {
        let before: Vec<&str> = before.iter().map(String::as_str).collect();
        let after: Vec<&str> = after.iter().map(String::as_str).collect();
        check(
            what,
            &before,
            std::slice::from_ref(mutation),
            &after,
            1,
            &[],
        );
    }
}

// fault: 54
#[test]
fn reports_unpaired_calls_as_missing() {
    let a = call("a");
    let out = output("a", LONG);
    let with = |line: &str, from: &str, to: &str| line.replace(from, to);
    let cases: &[(&str, &[&str])] = &[
        ("nothing", &[]),
        ("a call alone", &[&a]),
        ("an output alone", &[&out]),
        ("an output before its call", &[&out, &a]),
        (
            "a key twice",
            &[&a, &with(&out, "\"z\":[ 1 ]", "\"output\":1")],
        ),
        ("an output of another type", &[&a, &output("a", "7")]),
        ("an output that is null", &[&a, &output("a", "null")]),
        (
            "an output without an id",
            &[&a, &with(&out, "call_id", "call_ix")],
        ),
        ("a truncated output", &[&a, &out[..out.len() - 1]]),
        ("invalid text", &[&a, &with(&out, "Chunk", "\u{1}")]),
        (
            "an id that only begins so",
            &[&call("ab"), &output("ab", LONG)],
        ),
    ];
    for (what, lines) in cases {
        for op in [Op::Light, Op::Heavy] {
            check(
                what,
                lines,
                &[mutation("a", op)],
                if lines.is_empty() { &[""] } else { lines },
                0,
                &["a"],
            );
        }
    }
}

// fault: 62
#[test]
fn truncates_marker_to_fit() {
    let a = call("a");
    for (before, op, after) in [
        (r#""""#, Op::Light, r#""""#),
        ("[]", Op::Light, "[]"),
        (r#""x""#, Op::Light, r#"".""#),
        (r#""0123456""#, Op::Light, r#""...(con""#),
        (r#""0123456""#, Op::Heavy, r#""...(too""#),
        (r#""012345678901""#, Op::Light, r#""...(consumed""#),
        (r#""0123456789012""#, Op::Light, LIGHT),
        // Three bytes of JSON, one of text.
        (r#""\t\t""#, Op::Light, r#""...(""#),
        (r#"[{"a":1}]"#, Op::Light, r#""...(con""#),
    ] {
        let (new, outcome) = consumed(
            format!("{a}\n{}", output("a", before)).as_bytes(),
            &[mutation("a", op)],
        );
        let new = String::from_utf8(new).unwrap();
        let arguments = if op == Op::Heavy {
            let new = a.replace(r#""{\"cmd\":\"ls\"}""#, r#""{}""#);
            format!("{new}{}", " ".repeat(a.len() - new.len()))
        } else {
            a.clone()
        };
        assert_eq!(
            new,
            format!("{arguments}\n{}", output("a", after)),
            "{before}"
        );
        let expected = usize::from(op == Op::Heavy || before != after);
        assert_eq!(outcome.touched, expected, "{before}");
    }
    // With padding it is not truncated, and the rest of the padding stays.
    for spaces in [1, 5, 12, 13, 20] {
        let text = format!("{a}\n{}{}\n", output("a", r#""x""#), " ".repeat(spaces));
        let (new, _) = consumed(text.as_bytes(), &[light("a")]);
        let new = String::from_utf8(new).unwrap();
        assert_eq!(new.len(), text.len());
        let shown = &LIGHT[1..LIGHT.len() - 1][..(1 + spaces).min(13)];
        assert!(new.contains(&format!("\"output\":\"{shown}\"")), "{new}");
    }
}

#[test]
fn consumes_repeatedly() {
    let a = call("a");
    let heavy_a = a.replace(r#""{\"cmd\":\"ls\"}""#, r#""{}""#);
    let long = output("a", LONG);
    let padded = |line: &str, like: &str| format!("{line}{}", " ".repeat(like.len() - line.len()));
    let light_out = padded(&output("a", LIGHT), &long);
    let heavy_out = padded(&output("a", HEAVY), &long);
    let heavy_a = padded(&heavy_a, &a);
    for (what, before, op, after, touched) in [
        (
            "light again",
            [&a, &light_out],
            Op::Light,
            [&a, &light_out],
            0,
        ),
        (
            "heavy after light",
            [&a, &light_out],
            Op::Heavy,
            [&heavy_a, &heavy_out],
            1,
        ),
        (
            "heavy again",
            [&heavy_a, &heavy_out],
            Op::Heavy,
            [&heavy_a, &heavy_out],
            0,
        ),
        (
            "light after heavy",
            [&heavy_a, &heavy_out],
            Op::Light,
            [&heavy_a, &heavy_out],
            0,
        ),
    ] {
        let text = before.map(String::as_str).join("\n");
        let (new, outcome) = consumed(text.as_bytes(), &[mutation("a", op)]);
        assert_eq!(
            String::from_utf8(new).unwrap(),
            after.map(String::as_str).join("\n"),
            "{what}"
        );
        assert_eq!(
            (outcome.touched, outcome.missing.len()),
            (touched, 0),
            "{what}"
        );
    }
    // The same with truncated markers.
    let text = format!("{a}\n{}", output("a", r#""0123456""#));
    let (heavy_text, _) = consumed(text.as_bytes(), &[heavy("a")]);
    let (new, outcome) = consumed(&heavy_text, &[light("a")]);
    assert!(new == heavy_text && outcome.touched == 0);
}

// fault: 54
#[test]
fn pairs_repeated_ids_in_order() {
    let first = call("a");
    let second = first.replace("ls", "rm");
    let done = |line: &str| {
        line.replace(r#""{\"cmd\":\"ls\"}""#, r#""{}""#)
            .replace(r#""{\"cmd\":\"rm\"}""#, r#""{}""#)
    };
    let (out, out_done) = (output("a", LONG), output("a", HEAVY));
    check(
        "two pairs",
        &[&first, &out, &second, &out],
        &[heavy("a")],
        &[&done(&first), &out_done, &done(&second), &out_done],
        1,
        &[],
    );
    check(
        "two calls, then their outputs",
        &[&first, &second, &out, &out],
        &[heavy("a")],
        &[&done(&first), &done(&second), &out_done, &out_done],
        1,
        &[],
    );
    check(
        "the second one goes on",
        &[&first, &out, &second],
        &[heavy("a")],
        &[&done(&first), &out_done, &second],
        1,
        &[],
    );
    check(
        "an output of nothing before",
        &[&out, &first, &out],
        &[heavy("a")],
        &[&out, &done(&first), &out_done],
        1,
        &[],
    );
}

// fault: 55
#[test]
fn consumes_copies_in_compacted_history() {
    let compacted = |items: &str| {
        format!(
            r#"{{"timestamp":"t","type":"compacted","payload":{{"message":"m","replacement_history":[{items}],"replacement_history_metadata":[null,{{"a":1}}]}}}}"#
        )
    };
    let inner = |line: &str| serde_json::from_str::<Value>(line).unwrap()["payload"].to_string();
    let (a, b) = (call("a"), call("b"));
    let (out_a, out_b) = (output("a", LONG), output("b", LONG));
    let all = [&a, &out_a, &b, &out_b].map(|line| inner(line)).join(",");
    let all_done = [
        inner(&a.replace(r#"{\"cmd\":\"ls\"}"#, "{}")),
        inner(&output("a", HEAVY)),
        inner(&b),
        inner(&output("b", LIGHT)),
    ]
    .join(",");
    check(
        "in the history alone",
        &[&compacted(&all)],
        &[heavy("a"), light("b")],
        &[&compacted(&all_done)],
        2,
        &[],
    );
    check(
        "nothing there",
        &[&compacted("null,1,[],{}")],
        &[heavy("a")],
        &[&compacted("null,1,[],{}")],
        0,
        &["a"],
    );
    let half = inner(&out_a);
    let half_done = inner(&output("a", LIGHT));
    check(
        "half of it there",
        &[&a, &out_a, &compacted(&half)],
        &[light("a")],
        &[&a, &output("a", LIGHT), &compacted(&half_done)],
        1,
        &[],
    );
    // Bytes freed by one value are available to another one, until they are used up.
    let shared = format!(
        "{},{},{},{}",
        inner(&b),
        inner(&output("b", "\"\"")),
        inner(&a),
        inner(&output("a", r#""0123456789012345678""#))
    );
    let shared_done = format!(
        "{},{},{},{}",
        inner(&b),
        inner(&output("b", "\"...(co\"")),
        inner(&a),
        inner(&output("a", LIGHT))
    );
    check(
        "freed bytes are shared",
        &[&compacted(&shared)],
        &[light("a"), light("b")],
        &[&compacted(&shared_done)],
        2,
        &[],
    );
}

#[test]
fn nested_ids_consume_their_call_when_all_are_named() {
    let exec = line(
        r#"{"type":"custom_tool_call","call_id":"outer","name":"exec","input":"await tools.x()"}"#,
    );
    let nested = |id: &str| {
        format!(
            r#"{{"timestamp":"t","ordinal":1,"type":"event_msg","payload":{{"type":"item_completed","thread_id":"h","turn_id":"u","item":{{"type":"CommandExecution","id":"{id}","command":["ls"],"status":"completed"}}}}}}"#
        )
    };
    let out = line(&format!(
        r#"{{"type":"custom_tool_call_output","call_id":"outer","output":{LONG}}}"#
    ));
    let (one, two) = (nested("exec-1"), nested("exec-2"));
    let before: &[&str] = &[&exec, &one, &two, &out];
    let light_out = out.replace(LONG, LIGHT);
    let heavy_exec = exec.replace("await tools.x()", "");
    let heavy_out = out.replace(LONG, HEAVY);
    let done: &[&str] = &[&exec, &one, &two, &light_out];
    let heavy_done: &[&str] = &[&heavy_exec, &one, &two, &heavy_out];
    check(
        "one of two",
        before,
        &[light("exec-1")],
        before,
        0,
        &["exec-1"],
    );
    check(
        "both",
        before,
        &[light("exec-1"), light("exec-2")],
        done,
        2,
        &[],
    );
    check(
        "one stronger",
        before,
        &[heavy("exec-1"), light("exec-2")],
        done,
        2,
        &[],
    );
    check(
        "both stronger",
        before,
        &[heavy("exec-1"), heavy("exec-2")],
        heavy_done,
        2,
        &[],
    );
    check("the call itself", before, &[light("outer")], done, 1, &[]);
    check(
        "the call and one",
        before,
        &[heavy("outer"), light("exec-1")],
        heavy_done,
        1,
        &["exec-1"],
    );
    check(
        "the call and both",
        before,
        &[heavy("outer"), light("exec-1"), light("exec-2")],
        heavy_done,
        3,
        &[],
    );
    check(
        "one that is not there",
        before,
        &[light("exec-3")],
        before,
        0,
        &["exec-3"],
    );
}

/// A deterministic random number generator, so that a failure can be reproduced.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % end
    }

    fn one_in(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }

    fn text(&mut self) -> String {
        let length = [0, 1, 3, 13, 20, 200][self.below(6)];
        (0..length)
            .map(|_| {
                self.pick(&[
                    "a", "\"", "\\", "\n", "é", "🎉", "call_id", "}", " ", "\u{1b}",
                ])
            })
            .collect()
    }

    /// An item of the Responses API, with one of a few ids.
    fn item(&mut self) -> Value {
        let id = self.pick(&["call_1", "call_2", "call_3", "call_é\"", "exec-9"]);
        let text = self.text();
        let content = if self.one_in(3) {
            json!([{"type": "input_text", "text": text}])
        } else if self.one_in(20) {
            json!(7)
        } else {
            json!(text)
        };
        let mut item = match self.below(10) {
            0 | 1 => {
                json!({"type": "function_call", "name": "f", "arguments": text, "call_id": id})
            }
            2 => json!({"type": "custom_tool_call", "name": "p", "input": text, "call_id": id}),
            3 => {
                json!({"type": "local_shell_call", "id": id, "action": {"type": "exec", "command": [text]}})
            }
            4 => json!({"type": "tool_search_call", "call_id": id, "arguments": {"q": text}}),
            5 => json!({"type": "tool_search_output", "call_id": id, "tools": [text]}),
            6 => json!({"type": "custom_tool_call_output", "call_id": id, "output": content}),
            7 => json!({"type": "message", "role": "user", "content": content, "call_id": id}),
            _ => json!({"type": "function_call_output", "call_id": id, "output": content}),
        };
        if self.one_in(4) {
            item["more"] = json!({"call_id": "call_1", "output": 1.5, "type": "function_call"});
        }
        item
    }

    fn line(&mut self) -> String {
        let record = match self.below(12) {
            0 => {
                json!({"type": "compacted", "payload": {"message": "", "replacement_history": (0..self.below(5)).map(|_| self.item()).collect::<Vec<_>>()}})
            }
            1 => json!({"type": "event_msg", "payload": self.item()}),
            _ => {
                json!({"timestamp": "t", "ordinal": 3, "type": "response_item", "payload": self.item()})
            }
        };
        let mut line = record.to_string();
        match self.below(14) {
            0 => line = line.replace(":", " : ").replace(",", ", "),
            1 => {
                line = line
                    .replace("call_1", "call\\u005f1")
                    .replace("output", "o\\u0075tput")
            }
            2 => line.truncate(
                (0..=self.below(line.len()))
                    .rev()
                    .find(|at| line.is_char_boundary(*at))
                    .unwrap(),
            ),
            3 => line.insert_str(0, self.pick(&[" ", "\t ", "x"])),
            _ => {}
        }
        if self.one_in(4) {
            line.push_str(self.pick(&[
                " ",
                "      ",
                "                        ",
                "\t",
                "  \r",
                "\r",
            ]));
        }
        line
    }
}

/// The field of an item that is consumed, and which half of a call the item is.
fn consumed_field(item: &Value) -> Option<(&'static str, LineRole)> {
    let (field, role) = match item["type"].as_str()? {
        "function_call" | "tool_search_call" => ("arguments", LineRole::Call),
        "custom_tool_call" => ("input", LineRole::Call),
        "local_shell_call" => ("action", LineRole::Call),
        "tool_search_output" => ("tools", LineRole::Output),
        "function_call_output" | "custom_tool_call_output" => ("output", LineRole::Output),
        _ => return None,
    };
    // A number is not an output.
    (!item[field].is_number()).then_some((field, role))
}

/// The value of that field after `op`.
fn replacement(item: &Value, op: Op) -> Value {
    match (item["type"].as_str().unwrap(), op) {
        ("tool_search_output", _) => json!([]),
        ("function_call_output" | "custom_tool_call_output", Op::Light) => json!("...(consumed)"),
        ("function_call_output" | "custom_tool_call_output", Op::Heavy) => {
            json!("...(tool called)")
        }
        (_, Op::Light) => item[consumed_field(item).unwrap().0].clone(),
        ("function_call", Op::Heavy) => json!("{}"),
        ("tool_search_call", Op::Heavy) => json!({}),
        ("custom_tool_call", Op::Heavy) => json!(""),
        ("local_shell_call", Op::Heavy) => json!({"type": "exec", "command": []}),
        other => unreachable!("{other:?}"),
    }
}

/// An item of a call: where it is, and which half.
#[derive(Debug)]
struct HalfCall {
    line: usize,
    pointer: String,
    in_compacted_history: bool,
    id: String,
    role: LineRole,
}

/// All such items of a rollout.
fn halves(lines: &[Option<Value>]) -> Vec<HalfCall> {
    let mut found = Vec::new();
    for (line, record) in lines.iter().enumerate() {
        let Some(record) = record else { continue };
        let places = match record["type"].as_str() {
            Some("response_item") => vec![("/payload".to_owned(), false)],
            Some("compacted") => {
                let history = record["payload"]["replacement_history"].as_array().unwrap();
                (0..history.len())
                    .map(|at| (format!("/payload/replacement_history/{at}"), true))
                    .collect()
            }
            _ => Vec::new(),
        };
        for (pointer, in_compacted_history) in places {
            let item = record.pointer(&pointer).unwrap();
            let id = item["call_id"].as_str().or(item["id"].as_str());
            if let (Some((_, role)), Some(id)) = (consumed_field(item), id) {
                let id = id.to_owned();
                found.push(HalfCall {
                    line,
                    pointer,
                    in_compacted_history,
                    id,
                    role,
                });
            }
        }
    }
    found
}

/// Which of them are consumed if their ids are selected: a direct implementation of the pairing rules.
fn due(halves: &[HalfCall]) -> Vec<bool> {
    let mut due = vec![false; halves.len()];
    let complete = |id: &str, end: usize| {
        let before = |role| {
            halves[..end]
                .iter()
                .position(|it| it.id == id && it.role == role)
        };
        let last = halves[..end]
            .iter()
            .rposition(|it| it.id == id && it.role == LineRole::Output);
        before(LineRole::Call) < last && before(LineRole::Call).is_some()
    };
    for (at, half) in halves.iter().enumerate() {
        if half.in_compacted_history {
            due[at] = complete(&half.id, halves.len());
        } else if half.role == LineRole::Output && complete(&half.id, at + 1) {
            due[at] = true;
            let call = (0..at).find(|call| {
                let call_half = &halves[*call];
                !due[*call]
                    && !call_half.in_compacted_history
                    && (call_half.role, &call_half.id) == (LineRole::Call, &half.id)
            });
            if let Some(call) = call {
                due[call] = true;
            }
        }
    }
    due
}

// fault: 53
#[test]
fn consumes_random_rollouts() {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let (mut touched, mut missing, mut whole, mut cut) = (0, 0, 0, 0);
    for round in 0..4_000 {
        let mut text = (0..random.below(24))
            .map(|_| random.line())
            .collect::<Vec<_>>()
            .join("\n");
        if random.one_in(2) {
            text.push('\n');
        }
        let mut mutations = Vec::new();
        for id in ["call_1", "call_2", "call_é\"", "call_none", "exec-9"] {
            if random.one_in(2) {
                mutations.push(mutation(
                    id,
                    if random.one_in(2) {
                        Op::Light
                    } else {
                        Op::Heavy
                    },
                ));
            }
        }
        let (new, outcome) = consumed(text.as_bytes(), &mutations);
        let new = String::from_utf8(new).unwrap();
        let why = || format!("round {round}: {mutations:?}\n{text}\n{new}");

        // Every line keeps its length, and a line that is not JSON its text.
        let parsed = |text: &str| -> Vec<Option<Value>> {
            text.split('\n')
                .map(|line| serde_json::from_str(line).ok())
                .collect()
        };
        let (old_lines, mut new_lines) = (parsed(&text), parsed(&new));
        assert_eq!(old_lines.len(), new_lines.len(), "{}", why());
        for (old, new) in text.split('\n').zip(new.split('\n')) {
            assert_eq!(old.len(), new.len(), "{}", why());
            let is_json = serde_json::from_str::<Value>(old).is_ok();
            assert!(is_json || old == new, "{}", why());
        }
        let padding: Vec<usize> = new
            .split('\n')
            .map(|line| line.trim_end_matches(['\r', '\t']))
            .map(|line| line.len() - line.trim_end_matches(' ').len())
            .collect();

        // The selected values are replaced, and nothing else has changed.
        let halves = halves(&old_lines);
        let due = due(&halves);
        let mut changed: Vec<&str> = Vec::new();
        let mut complete: Vec<&str> = Vec::new();
        for (half, due) in halves.iter().zip(due) {
            if due && half.role == LineRole::Output {
                complete.push(&half.id);
            }
            let asked = mutations.iter().find(|it| it.block_id == half.id);
            let (Some(asked), true) = (asked, due) else {
                continue;
            };
            let item = |lines: &[Option<Value>]| {
                let record = lines[half.line].as_ref().unwrap();
                record.pointer(&half.pointer).unwrap().clone()
            };
            let field = consumed_field(&item(&old_lines)).unwrap().0;
            let (old, new) = (
                item(&old_lines)[field].clone(),
                item(&new_lines)[field].clone(),
            );
            let full = replacement(&item(&old_lines), asked.op);
            if new == full {
                whole += 1;
            } else {
                // Only where not all of it fits. Serialized again, a text is never longer than before.
                let most = new.to_string().len() + padding[half.line];
                assert!(
                    most.max(old.to_string().len()) < full.to_string().len(),
                    "{old} {new} {}",
                    why()
                );
                let part = match (new.as_str(), full.as_str()) {
                    (Some(new), Some(full)) => !new.is_empty() && full.starts_with(new),
                    _ => false,
                };
                assert!(new == old || part, "{old} {new} {}", why());
                cut += 1;
            }
            if new != old {
                changed.push(&half.id);
            }
            let record = new_lines[half.line].as_mut().unwrap();
            record.pointer_mut(&half.pointer).unwrap()[field] = old;
        }
        assert!(old_lines == new_lines, "{}", why());
        changed.sort();
        changed.dedup();
        let expected = ConsumeReport {
            requested: mutations.len(),
            touched: changed.len(),
            missing: mutations
                .iter()
                .map(|it| it.block_id.clone())
                .filter(|id| !complete.contains(&id.as_str()))
                .collect(),
            freed_bytes: json_bytes(&text).saturating_sub(json_bytes(&new)),
        };
        assert_eq!(outcome, expected, "{}", why());
        touched += outcome.touched;
        missing += outcome.missing.len();

        // A second run has nothing to write, and the same is missing.
        let (again, second) = consumed(new.as_bytes(), &mutations);
        assert!(again == new.as_bytes(), "{}", why());
        assert_eq!(
            (second.touched, &second.missing),
            (0, &outcome.missing),
            "{}",
            why()
        );
    }
    assert!(
        touched > 1_000 && missing > 1_000 && whole > 1_000 && cut > 100,
        "the cases are too uniform: {touched} {missing} {whole} {cut}"
    );
}

/// A rollout in a codex home.
struct Home {
    directory: tempfile::TempDir,
    rollout: std::path::PathBuf,
}

const THREAD: &str = "01a1fe00-a027-7a81-b8a0-356e91ab6908";

impl Home {
    fn new(text: &str) -> Home {
        let directory = tempfile::tempdir().unwrap();
        let day = directory.path().join("sessions/2026/11/21");
        fs::create_dir_all(&day).unwrap();
        let rollout = day.join(format!("rollout-2026-11-21T12-06-56-{THREAD}.jsonl"));
        fs::write(&rollout, text).unwrap();
        Home { directory, rollout }
    }

    fn consume(&self, mutations: &[Mutation], mode: WriteMode) -> Result<ConsumeReport> {
        consume(
            self.directory.path(),
            THREAD,
            mutations,
            mode,
            &CancelToken::new().unwrap(),
        )
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.rollout).unwrap()
    }

    /// The rollout is the only file in its directory, and there is no lock file.
    fn check_tidy(&self) {
        assert_eq!(
            fs::read_dir(self.rollout.parent().unwrap())
                .unwrap()
                .count(),
            1
        );
        assert!(
            !self
                .directory
                .path()
                .join(format!("thread-writer-locks/{THREAD}.lock"))
                .exists()
        );
    }
}

fn pair() -> String {
    format!("{}\n{}\n", call("a"), output("a", LONG))
}

// fault: 59, 61
#[test]
fn rewrites_file_in_place() {
    let (new, _) = consumed(pair().as_bytes(), &[light("a")]);
    let freed = json_bytes(&pair()) - json_bytes(std::str::from_utf8(&new).unwrap());
    let home = Home::new(&pair());
    fs::set_permissions(&home.rollout, fs::Permissions::from_mode(0o640)).unwrap();
    let file = fs::File::options().write(true).open(&home.rollout).unwrap();
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_795_000_000, 123_456_789);
    file.set_times(fs::FileTimes::new().set_accessed(time).set_modified(time))
        .unwrap();
    drop(file);

    let outcome = home
        .consume(&[light("a"), light("x")], WriteMode::DryRun)
        .unwrap();
    assert_eq!(
        outcome,
        ConsumeReport {
            requested: 2,
            touched: 1,
            missing: vec!["x".to_owned()],
            freed_bytes: freed,
        }
    );
    assert_eq!(home.text(), pair());
    assert!(
        !home.directory.path().join("thread-writer-locks").exists(),
        "a dry run writes nothing"
    );

    let before = fs::metadata(&home.rollout).unwrap();
    let outcome = home
        .consume(&[light("a"), light("x")], WriteMode::Write)
        .unwrap();
    let after = fs::metadata(&home.rollout).unwrap();
    assert_eq!(
        serde_json::to_string(&outcome).unwrap(),
        format!(r#"{{"requested":2,"touched":1,"missing":["x"],"freed_bytes":{freed}}}"#)
    );
    assert_eq!(
        home.text().as_bytes(),
        consumed(pair().as_bytes(), &[light("a")]).0
    );
    assert_ne!(after.ino(), before.ino());
    assert_eq!(
        (after.mode(), after.uid(), after.gid(), after.len()),
        (before.mode(), before.uid(), before.gid(), before.len())
    );
    assert_eq!(
        (after.mtime(), after.mtime_nsec()),
        (before.mtime(), before.mtime_nsec())
    );
    assert_eq!(
        (after.atime(), after.atime_nsec()),
        (before.atime(), before.atime_nsec())
    );
    home.check_tidy();

    let outcome = home.consume(&[light("a")], WriteMode::Write).unwrap();
    assert_eq!((outcome.touched, outcome.missing.len()), (0, 0));
    assert_eq!(
        fs::metadata(&home.rollout).unwrap().ino(),
        after.ino(),
        "nothing to change, nothing written"
    );
}

// fault: 59
#[test]
fn rejects_files_that_cannot_be_replaced() {
    let home = Home::new(&pair());
    let link = home.rollout.with_file_name("rollout-link.jsonl");
    let check = |path: &Path, message: &str| {
        let error = consume_file(path, &[light("a")], WriteMode::Write).unwrap_err();
        assert_eq!(error.kind(), Kind::Io);
        assert_eq!(
            error.message(),
            format!("cannot rewrite '{}': {message}", path.display())
        );
        assert_eq!(home.text(), pair());
    };
    std::os::unix::fs::symlink(&home.rollout, &link).unwrap();
    check(&link, "it is a symbolic link; name the file itself");
    fs::remove_file(&link).unwrap();
    fs::hard_link(&home.rollout, &link).unwrap();
    check(
        &link,
        "it has more than one hard link, and the others would keep the old content",
    );
    check(
        &home.rollout,
        "it has more than one hard link, and the others would keep the old content",
    );
    fs::remove_file(&link).unwrap();
    check(home.rollout.parent().unwrap(), "it is not a regular file");
    // Opening it without O_NONBLOCK would block.
    let fifo = home.directory.path().join("fifo");
    crate::os::make_fifo(&fifo);
    check(&fifo, "it is not a regular file");
    let error = consume_file(
        &home.directory.path().join("none"),
        &[light("a")],
        WriteMode::Write,
    )
    .unwrap_err();
    assert!(
        error
            .message()
            .ends_with("none': No such file or directory"),
        "{error}"
    );
}

// fault: 58
#[test]
fn reports_thread_in_use_as_busy() {
    let home = Home::new(&pair());
    let held = WriterLock::take(home.directory.path(), THREAD).unwrap();
    let error = home.consume(&[light("a")], WriteMode::Write).unwrap_err();
    assert_eq!(error.kind().rpc_code(), -32011);
    assert!(error.retryable());
    let error = consume_file(&home.rollout, &[light("a")], WriteMode::Write).unwrap_err();
    assert_eq!(error.kind(), Kind::Busy);
    assert_eq!(home.text(), pair());
    drop(held);

    // codex before 0.147 has no lock; it keeps the file open.
    let file = fs::File::options()
        .append(true)
        .open(&home.rollout)
        .unwrap();
    let mut child = std::process::Command::new("sleep")
        .arg("60")
        .stdout(file)
        .spawn()
        .unwrap();
    let result = home.consume(&[light("a")], WriteMode::Write);
    child.kill().unwrap();
    child.wait().unwrap();
    let error = result.unwrap_err();
    assert_eq!(error.kind(), Kind::Busy);
    assert_eq!(
        error.message(),
        format!(
            "'{}' is open for writing in process {}; try again when it is closed",
            home.rollout.display(),
            child.id()
        )
    );
    assert_eq!(home.text(), pair());
    home.check_tidy();
    assert_eq!(
        home.consume(&[light("a")], WriteMode::Write)
            .unwrap()
            .touched,
        1
    );
}

#[test]
fn removes_leftover_of_killed_run() {
    let home = Home::new(&pair());
    let name = format!(
        ".{}.plexum-tmp",
        home.rollout.file_name().unwrap().to_str().unwrap()
    );
    fs::write(home.rollout.with_file_name(&name), "half of").unwrap();
    // Even if the run changes nothing.
    home.consume(&[light("x")], WriteMode::Write).unwrap();
    home.check_tidy();
    assert_eq!(home.text(), pair());
}

fn replaced(source: &RolloutFile, patches: &[Patch]) -> Replaced {
    let copied = source.copy(&|| false);
    source.replace(copied, patches).unwrap()
}

// fault: 57
#[test]
fn notices_concurrent_change() {
    let home = Home::new(&pair());
    let made = |source: &RolloutFile| {
        let never = CancelToken::new().unwrap();
        Plan::make(source, &[light("a")], &never).unwrap().patches
    };
    let open = || RolloutFile::open(&home.rollout, Access::Rewrite).unwrap();
    let text = || home.text();

    let source = open();
    let patches = made(&source);
    fs::write(&home.rollout, format!("{}more\n", pair())).unwrap();
    assert_eq!(replaced(&source, &patches), Replaced::Changed);
    assert_eq!(text(), format!("{}more\n", pair()));
    drop(source);

    let source = open();
    let patches = made(&source);
    let other = home.directory.path().join("other");
    fs::write(&other, "another file").unwrap();
    fs::rename(&other, &home.rollout).unwrap();
    assert_eq!(replaced(&source, &patches), Replaced::Changed);
    assert_eq!(text(), "another file");
    drop(source);

    fs::write(&home.rollout, pair()).unwrap();
    let source = open();
    let patches = made(&source);
    fs::write(&home.rollout, "shorter").unwrap();
    assert_eq!(replaced(&source, &patches), Replaced::Changed);
    assert_eq!(text(), "shorter");
    drop(source);

    let source = open();
    fs::remove_file(&home.rollout).unwrap();
    assert_eq!(replaced(&source, &[]), Replaced::Changed);
    assert!(!home.rollout.exists());
}

#[test]
fn rewrites_file_of_several_parts() {
    let filler = output("z", &format!("\"{}\"", "z".repeat(100_000))) + "\n";
    let large = [pair(), filler.repeat(100), pair().replace("\"a\"", "\"b\"")].concat();
    let home = Home::new(&large);
    let both = [light("a"), light("b")];
    let (new, _) = consumed(large.as_bytes(), &both);

    home.consume(&both, WriteMode::Write).unwrap();
    assert!(home.text().as_bytes() == new);
    home.check_tidy();

    // A cancelled copy is removed.
    let source = RolloutFile::open(&home.rollout, Access::Rewrite).unwrap();
    let copy = source.copy(&|| true).unwrap();
    assert!(copy_of(&home).exists());
    drop(copy);
    drop(source);
    home.check_tidy();

    // Concurrent changes are detected here, too, also one that makes the copying fail.
    for length in [large.len() as u64 + 1, 1 << 20] {
        fs::write(&home.rollout, &large).unwrap();
        let source = RolloutFile::open(&home.rollout, Access::Rewrite).unwrap();
        let file = fs::File::options().write(true).open(&home.rollout).unwrap();
        file.set_len(length).unwrap();
        drop(file);
        assert_eq!(replaced(&source, &[]), Replaced::Changed);
        drop(source);
        assert_eq!(fs::metadata(&home.rollout).unwrap().len(), length);
        home.check_tidy();
    }
}

fn copy_of(home: &Home) -> std::path::PathBuf {
    let name = home.rollout.file_name().unwrap().to_str().unwrap();
    home.rollout.with_file_name(format!(".{name}.plexum-tmp"))
}

#[test]
fn checks_request_before_opening_files() {
    let none = Path::new("/nonexistent");
    let nothing = consume(
        none,
        "no uuid",
        &[],
        WriteMode::Write,
        &CancelToken::new().unwrap(),
    )
    .unwrap();
    assert_eq!(nothing, ConsumeReport::default());
    let error = consume(
        none,
        THREAD,
        &[light("a"), light("b"), heavy("a")],
        WriteMode::Write,
        &CancelToken::new().unwrap(),
    )
    .unwrap_err();
    assert_eq!(error.kind(), Kind::Params);
    assert_eq!(
        error.message(),
        "mutations[2].block_id: 'a' is named in mutations[0] already"
    );
    let outcome = consume(
        none,
        THREAD,
        &[light("a"), light("b")],
        WriteMode::Write,
        &CancelToken::new().unwrap(),
    )
    .unwrap();
    assert_eq!(
        outcome,
        ConsumeReport {
            requested: 2,
            touched: 0,
            missing: vec!["a".to_owned(), "b".to_owned()],
            freed_bytes: 0,
        }
    );
}
