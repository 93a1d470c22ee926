//! Tests of the MCP server, line by line.

use super::*;
use crate::mcp::Tool;
use crate::mcp::ToolOutput;
use crate::mcp::catalogue::TOOL_BYTES_MAX;

const PARSE: i64 = -32700;
const REQUEST: i64 = -32600;
const METHOD: i64 = -32601;
const PARAMS: i64 = -32602;
const BATCH: &str = "batches are not supported: send one message a line";

fn tool(name: &str) -> Tool {
    Tool {
        name: name.to_owned(),
        description: Some(format!("does {name}")),
        input_schema: None,
    }
}

/// A session with two tools; lines and results go in, effects come out as text.
struct SessionClient {
    session: Session,
    tools: Catalogue,
    now: Instant,
    keys: Vec<RequestKey>,
}

impl SessionClient {
    fn new() -> SessionClient {
        let (tools, warnings) = Catalogue::new(0, vec![tool("send"), tool("list")]);
        assert_eq!(warnings, [""; 0]);
        SessionClient {
            session: Session::default(),
            tools,
            now: Instant::now(),
            keys: Vec::new(),
        }
    }

    fn initialized(version: &str) -> SessionClient {
        let mut client = SessionClient::new();
        let line = format!(
            r#"{{"jsonrpc":"2.0","id":"i","method":"initialize","params":{{"protocolVersion":"{version}","capabilities":{{}},"clientInfo":{{"name":"c","version":"1"}}}}}}"#
        );
        let answer = client.line(&line);
        assert!(
            answer.starts_with(r#"{"jsonrpc":"2.0","id":"i","result":{"#),
            "{answer}"
        );
        assert_eq!(
            client.line(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#),
            ""
        );
        client
    }

    /// The effects of a line, one a line: lines to send as they are, `call <n> …` and `cancel <n>`.
    fn line(&mut self, line: &str) -> String {
        let mut effects = Vec::new();
        self.session
            .line(line.as_bytes(), &self.tools, self.now, &mut effects);
        let mut shown = Vec::new();
        for effect in effects {
            shown.push(match effect {
                Effect::Send(line) => {
                    let _: serde_json::Value = serde_json::from_str(&line).unwrap();
                    line
                }
                Effect::Call(key, call) => {
                    self.keys.push(key);
                    let id = call.call_id.as_deref().unwrap_or("-");
                    format!(
                        "call {} {id} {} {}",
                        self.keys.len() - 1,
                        call.name,
                        call.arguments
                    )
                }
                Effect::Cancel(key) => {
                    let at = self.keys.iter().position(|known| *known == key);
                    format!("cancel {}", at.unwrap())
                }
            });
        }
        shown.join("\n")
    }

    fn answer(&mut self, call: usize, text: &str) -> String {
        let output = ToolOutput {
            content: RawValue::from_string(json_string(text)).ok(),
            ..ToolOutput::default()
        };
        self.session
            .answer(self.keys[call], Ok(output))
            .unwrap_or_default()
    }
}

fn ok(id: &str, result: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#)
}

fn no(id: &str, code: i64, message: &str) -> String {
    format!(
        r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":{code},"message":{}}}}}"#,
        json_string(message)
    )
}

fn answered(id: &str, text: &str) -> String {
    ok(
        id,
        &format!(
            r#"{{"content":[{{"type":"text","text":{}}}],"isError":false}}"#,
            json_string(text)
        ),
    )
}

#[test]
fn negotiates_version() {
    for (requested, given) in [
        ("2025-11-25", "2025-11-25"),
        ("2025-06-18", "2025-06-18"),
        ("2025-03-26", "2025-03-26"),
        ("2024-11-05", "2024-11-05"),
        ("2024-10-07", "2025-11-25"),
        ("2099-01-01", "2025-11-25"),
        ("", "2025-11-25"),
    ] {
        let line = format!(
            r#"{{"jsonrpc":"2.0","id":0,"method":"initialize","params":{{"protocolVersion":"{requested}"}}}}"#
        );
        let expected = format!(
            r#"{{"protocolVersion":"{given}","capabilities":{{"tools":{{"listChanged":true}}}},"serverInfo":{{"name":"plexum-openai","version":"{}"}}}}"#,
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(
            SessionClient::new().line(&line),
            ok("0", &expected),
            "{requested}"
        );
    }
}

#[test]
fn answers_only_ping_before_initialize() {
    for (line, expected) in [
        (r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#, ok("1", "{}")),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#,
            no("1", REQUEST, "'tools/list' before 'initialize'"),
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"send"}}"#,
            no("1", REQUEST, "'tools/call' before 'initialize'"),
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"initialize"}"#,
            no("1", PARAMS, "'protocolVersion' is missing"),
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":1}}"#,
            no("1", PARAMS, "'protocolVersion' must be a string"),
        ),
    ] {
        assert_eq!(SessionClient::new().line(line), expected, "{line}");
    }
    assert_eq!(SessionClient::new().session.tools_changed(), None);
}

// fault: 52
#[test]
fn answers_each_kind_of_message() {
    let listed = r#"{"tools":[{"name":"send","description":"does send","inputSchema":{"type":"object"}},{"name":"list","description":"does list","inputSchema":{"type":"object"}}]}"#;
    let params = |id: &str, message: &str| no(id, PARAMS, message);
    for (line, expected) in [
        (r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#, ok("1", "{}")),
        (
            r#"{"jsonrpc":"2.0","id":"a\"b","method":"ping","params":{"_meta":{}}}"#,
            ok(r#""a\"b""#, "{}"),
        ),
        (
            "  {\"method\":\"ping\",\"id\":-7,\"jsonrpc\":\"2.0\"}\r",
            ok("-7", "{}"),
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#,
            ok("1", listed),
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"cursor":null}}"#,
            ok("1", listed),
        ),
        // Calls.
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"send","arguments":{"to": "é\n"}}}"#,
            r#"call 0 - send {"to": "é\n"}"#.to_owned(),
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"send","_meta":{"callId":"call_7"}}}"#,
            "call 0 call_7 send {}".to_owned(),
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"send","arguments":null,"_meta":{"callId":7}}}"#,
            "call 0 - send {}".to_owned(),
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"gone"}}"#,
            ok(
                "1",
                r#"{"content":[{"type":"text","text":"there is no tool 'gone' in this turn"}],"isError":true}"#,
            ),
        ),
        // Invalid parameters.
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"cursor":"0-1"}}"#,
            ok(
                "1",
                r#"{"tools":[{"name":"list","description":"does list","inputSchema":{"type":"object"}}]}"#,
            ),
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"cursor":"0-01"}}"#,
            params("1", "'cursor' is not valid for this list"),
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"cursor":"0-2"}}"#,
            params("1", "'cursor' is not valid for this list"),
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"cursor":"1-1"}}"#,
            params("1", "'cursor' is not valid for this list"),
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"cursor":""}}"#,
            params("1", "'cursor' is not valid for this list"),
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"cursor":1}}"#,
            params("1", "'cursor' must be a string"),
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":[]}"#,
            params("1", "'params' must be an object"),
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call"}"#,
            params("1", "'name' is missing"),
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":["send"]}"#,
            params("1", "'params' must be an object"),
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":["send"]}}"#,
            params("1", "'name' must be a string"),
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"send","arguments":[]}}"#,
            params("1", "'arguments' must be an object"),
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"send","_meta":[]}}"#,
            params("1", "'_meta' must be an object"),
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"send","_meta":{"progressToken":{}}}}"#,
            params("1", "'_meta.progressToken' must be a string or an integer"),
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"send","name":"list"}}"#,
            params("1", "'params': duplicate field `name` at line 1 column 21"),
        ),
        // Unknown methods.
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"resources/list"}"#,
            no("1", METHOD, "this server has no method 'resources/list'"),
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"notifications/cancelled","params":{"requestId":5}}"#,
            no(
                "1",
                METHOD,
                "this server has no method 'notifications/cancelled'",
            ),
        ),
        // Notifications and responses.
        (
            r#"{"jsonrpc":"2.0","method":"notifications/unknown"}"#,
            String::new(),
        ),
        (r#"{"jsonrpc":"2.0","method":"ping"}"#, String::new()),
        (
            r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"send"}}"#,
            String::new(),
        ),
        (
            r#"{"jsonrpc":"2.0","method":"notifications/cancelled"}"#,
            String::new(),
        ),
        (
            r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":[1]}"#,
            String::new(),
        ),
        (
            r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":99}}"#,
            String::new(),
        ),
        (r#"{"jsonrpc":"2.0","id":1,"result":{}}"#, String::new()),
        (
            r#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"x"}}"#,
            String::new(),
        ),
        ("", String::new()),
        (" \t\r", String::new()),
        // Invalid messages.
        (
            "{",
            no(
                "null",
                PARSE,
                "not JSON: EOF while parsing an object at line 1 column 1",
            ),
        ),
        (
            "x",
            no("null", PARSE, "not JSON: expected value at line 1 column 1"),
        ),
        (
            "{} {}",
            no(
                "null",
                PARSE,
                "not JSON: trailing characters at line 1 column 4",
            ),
        ),
        (
            "7",
            no(
                "null",
                REQUEST,
                "no request: invalid type: integer `7`, expected an object at line 1 column 1",
            ),
        ),
        ("{}", no("null", REQUEST, "`jsonrpc` must be \"2.0\"")),
        ("[]", no("null", REQUEST, BATCH)),
        (
            r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#,
            no("null", REQUEST, BATCH),
        ),
        (
            "[}",
            no("null", PARSE, "not JSON: expected value at line 1 column 2"),
        ),
        (
            r#"{"id":1,"method":"ping"}"#,
            no("1", REQUEST, "`jsonrpc` must be \"2.0\""),
        ),
        (
            r#"{"jsonrpc":2.0,"id":1,"method":"ping"}"#,
            no("1", REQUEST, "`jsonrpc` must be \"2.0\""),
        ),
        (
            r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#,
            no(
                "null",
                REQUEST,
                "`id` must be a string or an integer of at most 4096 bytes",
            ),
        ),
        (
            r#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#,
            no(
                "null",
                REQUEST,
                "`id` must be a string or an integer of at most 4096 bytes",
            ),
        ),
        (
            r#"{"jsonrpc":"2.0","id":[1],"method":"ping"}"#,
            no(
                "null",
                REQUEST,
                "`id` must be a string or an integer of at most 4096 bytes",
            ),
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":7}"#,
            no("1", REQUEST, "`method` must be a string"),
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}"#,
            no(
                "null",
                REQUEST,
                "no request: duplicate field `id` at line 1 column 28",
            ),
        ),
    ] {
        let mut client = SessionClient::initialized("2025-11-25");
        assert_eq!(client.line(line), expected, "{line}");
        assert_eq!(
            client.line(r#"{"jsonrpc":"2.0","id":"p","method":"ping"}"#),
            ok(r#""p""#, "{}"),
            "it goes on after {line}"
        );
    }
    let mut effects = Vec::new();
    let client = &mut SessionClient::initialized("2025-11-25");
    client
        .session
        .line(b"{\"\xff\":1}", &client.tools, client.now, &mut effects);
    assert!(
        matches!(&effects[..], [Effect::Send(line)] if *line == no("null", PARSE, "not JSON: invalid UTF-8 after 2 bytes"))
    );
}

#[test]
fn deep_arguments_do_not_overflow_stack() {
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let mut client = SessionClient::initialized("2025-11-25");
    assert_eq!(
            client.line(&format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"send","arguments":{deep}}}}}"#
            )),
            format!("call 0 - send {deep}")
        );
    assert_eq!(
        client.line(&format!(
            r#"{{"jsonrpc":"2.0","id":2,"method":"ping","x":{deep}}}"#
        )),
        ok("2", "{}")
    );
}

fn call(id: &str, rest: &str) -> String {
    format!(
        r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"send"{rest}}}}}"#
    )
}

// fault: 49
#[test]
fn answers_calls_in_any_order_and_once() {
    let mut client = SessionClient::initialized("2025-06-18");
    assert_eq!(client.line(&call("1", "")), "call 0 - send {}");
    assert_eq!(client.line(&call("\"1\"", "")), "call 1 - send {}");
    assert_eq!(
        client.line(&call("1", "")),
        no("null", REQUEST, "the id 1 is in use")
    );
    assert_eq!(
        client.line(r#"{"jsonrpc":"2.0","id":3,"method":"ping"}"#),
        ok("3", "{}")
    );
    assert_eq!(client.answer(1, "second"), answered("\"1\"", "second"));
    assert_eq!(client.answer(0, "first"), answered("1", "first"));
    assert_eq!(client.answer(0, "again"), "");
    assert_eq!(
        client.line(&call("1", "")),
        "call 2 - send {}",
        "the id is free again"
    );
}

#[test]
fn never_answers_cancelled_calls() {
    let mut client = SessionClient::initialized("2025-06-18");
    client.line(&call("1", r#","_meta":{"progressToken":"t"}"#));
    client.line(&call("2", ""));
    let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1,"reason":"x"}}"#;
    assert_eq!(client.line(cancel), "cancel 0");
    assert_eq!(client.line(cancel), "", "twice is once");
    assert_eq!(client.session.next_progress(), None);
    assert_eq!(client.answer(0, "late"), "");
    assert_eq!(client.answer(1, "other"), answered("2", "other"));
    client.line(&call("3", ""));
    client.line(&call("4", ""));
    assert_eq!(client.session.end(), client.keys[2..]);
    assert_eq!(client.answer(2, "late"), "");
}

#[test]
fn reports_progress_on_request() {
    for (version, message) in [
        ("2025-11-25", r#","message":"send is running""#),
        ("2024-11-05", ""),
    ] {
        let mut client = SessionClient::initialized(version);
        let progress_line = |token: &str, progress: u64| {
            format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":{token},"progress":{progress}{message}}}}}"#
            )
        };
        assert_eq!(
            client.line(&call("1", r#","_meta":{"progressToken":"t"}"#)),
            format!("{}\ncall 0 - send {{}}", progress_line("\"t\"", 0))
        );
        client.line(&call("2", ""));
        let due = client.session.next_progress().unwrap();
        assert_eq!(due, client.now + PROGRESS_EVERY);
        assert_eq!(
            client.session.progress(due - Duration::from_millis(1)),
            [""; 0]
        );
        assert_eq!(client.session.progress(due), [progress_line("\"t\"", 5)]);
        assert_eq!(client.session.progress(due), [""; 0]);
        let due = client.session.next_progress().unwrap();
        assert_eq!(client.session.progress(due), [progress_line("\"t\"", 10)]);
        client.answer(0, "done");
        assert_eq!(client.session.next_progress(), None);
    }
}

#[test]
fn rejects_batches_in_every_version() {
    for version in ProtocolVersion::ALL {
        let mut client = SessionClient::initialized(version.name());
        let batch = format!("[{},{}]", call("1", ""), call("2", ""));
        assert_eq!(client.line(&batch), no("null", REQUEST, BATCH));
        assert_eq!(client.line(&call("1", "")), "call 0 - send {}");
    }
}

#[test]
fn lists_tools_in_order_and_pages() {
    let many: Vec<Tool> = (0..450).map(|number| tool(&format!("t{number}"))).collect();
    let big = |number: usize| Tool {
        description: Some("x".repeat(400_000)),
        ..tool(&format!("b{number}"))
    };
    for (tools, pages) in [
        (Vec::new(), vec![0]),
        (many, vec![200, 200, 50]),
        ((0..5).map(big).collect(), vec![2, 2, 1]),
    ] {
        let names: Vec<String> = tools.iter().map(|tool| tool.name.clone()).collect();
        let (catalogue, _) = Catalogue::new(3, tools);
        let mut cursor = None;
        let mut seen = Vec::new();
        let mut sizes = Vec::new();
        loop {
            let page: serde_json::Value =
                serde_json::from_str(&catalogue.page(cursor.as_deref()).unwrap()).unwrap();
            let tools = page["tools"].as_array().unwrap();
            sizes.push(tools.len());
            seen.extend(
                tools
                    .iter()
                    .map(|tool| tool["name"].as_str().unwrap().to_owned()),
            );
            match page.get("nextCursor") {
                Some(next) => cursor = Some(next.as_str().unwrap().to_owned()),
                None => break,
            }
        }
        assert_eq!(sizes, pages);
        assert_eq!(seen, names);
    }
}

// fault: 52
#[test]
fn warns_of_tools_that_cannot_be_offered() {
    let given = |name: &str, schema: &str| Tool {
        input_schema: RawValue::from_string(schema.to_owned()).ok(),
        description: None,
        ..tool(name)
    };
    let long = Tool {
        description: Some("x".repeat(TOOL_BYTES_MAX)),
        ..tool("long")
    };
    let (catalogue, warnings) = Catalogue::new(
        0,
        vec![
            given("whole", r#"{"properties":{"a":{}}, "type":"object"}"#),
            given("typeless", r#"{ "properties":{}}"#),
            given("empty", "{ }"),
            given("null", "null"),
            given("text", r#"{"type":"string"}"#),
            given("whole", "{}"),
            given("", "{}"),
            long,
            given("twice", r#"{"type":"object","type":"object"}"#),
        ],
    );
    let any = r#"{"type":"object"}"#;
    assert_eq!(
        catalogue.page(None).unwrap(),
        format!(
            r#"{{"tools":[{{"name":"whole","inputSchema":{{"properties":{{"a":{{}}}}, "type":"object"}}}},{{"name":"typeless","inputSchema":{{"type":"object","properties":{{}}}}}},{{"name":"empty","inputSchema":{any}}},{{"name":"null","inputSchema":{any}}},{{"name":"text","description":"The arguments must match this JSON schema: {{\"type\":\"string\"}}","inputSchema":{any}}},{{"name":"twice","description":"The arguments must match this JSON schema: {{\"type\":\"object\",\"type\":\"object\"}}","inputSchema":{any}}}]}}"#
        )
    );
    assert_eq!(
        warnings,
        [
            "the input_schema of the tool 'null' is not an object; any object is accepted",
            "the input_schema of the tool 'text' is not the schema of an object; any object is accepted",
            "duplicate tool 'whole'; the first one is offered",
            "a tool without a name is not offered",
            &format!(
                "the tool 'long' has {} bytes of description and schema and is not offered",
                TOOL_BYTES_MAX + 64
            ),
            "the input_schema of the tool 'twice' has a duplicate type; any object is accepted",
        ]
    );
}
