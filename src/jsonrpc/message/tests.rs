use super::*;
use crate::jsonrpc::{Frame, LONGEST_LINE, read_line};
use std::io;

fn frames(bytes: &[u8]) -> Vec<Result<String, Frame>> {
    // A small buffer, so that lines span it.
    let mut stream = io::BufReader::with_capacity(7, bytes);
    let mut line = Vec::new();
    let mut found = Vec::new();
    loop {
        match read_line(&mut stream, &mut line).unwrap() {
            Frame::Line => found.push(Ok(String::from_utf8_lossy(&line).into_owned())),
            frame @ Frame::TooLong(_) => found.push(Err(frame)),
            Frame::End => return found,
        }
    }
}

#[test]
fn frames_lines() {
    assert_eq!(frames(b""), []);
    assert_eq!(frames(b"\n\r\n \n"), []);
    assert_eq!(
        frames(b"{\"a\":1}\r\n\n{\"long\":\"line here\"}\nlast"),
        [
            Ok("{\"a\":1}".to_owned()),
            Ok("{\"long\":\"line here\"}".to_owned()),
            Ok("last".to_owned())
        ]
    );
}

#[test]
fn skips_line_over_limit() {
    let mut bytes = vec![b'x'; LONGEST_LINE];
    bytes.extend_from_slice(b"\r\n");
    bytes.extend(vec![b'y'; LONGEST_LINE + 1]);
    bytes.extend_from_slice(b"\nnext\n");
    let mut stream = io::BufReader::new(&bytes[..]);
    let mut line = Vec::new();
    assert_eq!(read_line(&mut stream, &mut line).unwrap(), Frame::Line);
    assert_eq!(line.len(), LONGEST_LINE);
    assert_eq!(
        read_line(&mut stream, &mut line).unwrap(),
        Frame::TooLong(None)
    );
    assert_eq!(read_line(&mut stream, &mut line).unwrap(), Frame::Line);
    assert_eq!(line, b"next");
}

#[test]
fn classifies_messages() {
    let request = |line: &str| match parse(line.as_bytes()) {
        Ok(Message::Request { id, method, .. }) => (id, method),
        other => panic!("{line}: {other:?}"),
    };
    assert_eq!(
        request(r#"{"jsonrpc":"2.0","id":1,"method":"m"}"#),
        (Id::Integer(1), "m".to_owned())
    );
    assert_eq!(
        request(r#"{"id":"a\"b","params":{},"method":"m","jsonrpc":"2.0","more":1}"#),
        (Id::Text("a\"b".to_owned()), "m".to_owned())
    );
    assert_eq!(
        request(r#"{"jsonrpc":"2.0","id":18446744073709551615,"method":"m"}"#)
            .0
            .json(),
        "18446744073709551615"
    );
    assert!(matches!(
        parse(br#"{"jsonrpc":"2.0","method":"m"}"#),
        Ok(Message::Notification { .. })
    ));
    assert!(matches!(
        parse(br#"{"jsonrpc":"2.0","id":3,"result":null}"#),
        Ok(Message::Response { outcome: Ok(_), .. })
    ));
    assert!(matches!(
        parse(br#"{"jsonrpc":"2.0","id":3,"error":{"code":1,"message":"x"}}"#),
        Ok(Message::Response {
            outcome: Err(_),
            ..
        })
    ));
}

#[test]
fn rejects_invalid_messages() {
    let deep = format!(
        "{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"m\",\"params\":{}",
        "[".repeat(10_000)
    );
    for (line, code, id) in [
        (&b"{"[..], -32700, None),
        (b"hello", -32700, None),
        (b"\xff", -32700, None),
        (b"{\"a\":\"\xff\"}", -32700, None),
        (b"{\"jsonrpc\":3", -32700, None),
        (deep.as_bytes(), -32700, None),
        (b"[]", -32600, None),
        (
            b"[{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"m\"}]",
            -32600,
            None,
        ),
        (b"[,]", -32700, None),
        (b"3", -32600, None),
        (b"{}", -32600, None),
        (
            b"{\"jsonrpc\":\"1.0\",\"id\":1,\"method\":\"m\"}",
            -32600,
            Some(Id::Integer(1)),
        ),
        (b"{\"id\":1,\"method\":\"m\"}", -32600, Some(Id::Integer(1))),
        (
            b"{\"jsonrpc\":\"2.0\",\"id\":1.5,\"method\":\"m\"}",
            -32600,
            None,
        ),
        (
            b"{\"jsonrpc\":\"2.0\",\"id\":null,\"method\":\"m\"}",
            -32600,
            None,
        ),
        (
            b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":2}",
            -32600,
            Some(Id::Integer(1)),
        ),
        (
            b"{\"jsonrpc\":\"2.0\",\"id\":1}",
            -32600,
            Some(Id::Integer(1)),
        ),
        (
            b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"m\",\"params\":3}",
            -32600,
            Some(Id::Integer(1)),
        ),
        (b"[\"2.0\",\"x\",null,null,{\"a\":1},null]", -32600, None),
        (
            b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"m\",\"result\":null}",
            -32600,
            Some(Id::Integer(1)),
        ),
    ] {
        let invalid = parse(line).unwrap_err();
        let shown = String::from_utf8_lossy(&line[..line.len().min(80)]);
        assert_eq!(
            invalid.error.kind().rpc_code(),
            code,
            "{shown}: {}",
            invalid.error
        );
        assert_eq!(invalid.id, id, "{shown}");
    }
}
#[test]
fn distinguishes_invalid_responses_from_requests() {
    for (line, id, part) in [
        (
            r#"{"jsonrpc":"2.0","id":1,"result":1,"error":{}}"#,
            Some(Id::Integer(1)),
            "one of",
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"error":null}"#,
            Some(Id::Integer(1)),
            "one of",
        ),
        (r#"{"jsonrpc":"2.0","result":1}"#, None, "no `id`"),
        (r#"{"jsonrpc":"2.0","id":1.5,"result":1}"#, None, "no `id`"),
        (
            r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"not JSON"}}"#,
            None,
            "not JSON",
        ),
        (
            r#"{"id":"tool-1","result":{}}"#,
            Some(Id::Text("tool-1".to_owned())),
            "`jsonrpc`",
        ),
        (
            r#"{"jsonrpc":"2.0","id":"tool-1","result":1,"result":2}"#,
            Some(Id::Text("tool-1".to_owned())),
            "duplicate",
        ),
    ] {
        match parse(line.as_bytes()) {
            Ok(Message::InvalidResponse { id: found, why }) => {
                assert_eq!(found, id, "{line}");
                assert!(why.contains(part), "{line}: {why}");
            }
            other => panic!("{line}: {other:?}"),
        }
    }
    for line in [
        r#"{"jsonrpc":"2.0","id":1,"result":null,"error":{"code":1,"message":"x"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"x"}}"#,
    ] {
        assert!(
            matches!(
                parse(line.as_bytes()),
                Ok(Message::Response {
                    outcome: Err(_),
                    ..
                })
            ),
            "{line}"
        );
    }
    assert!(matches!(
        parse(br#"{"jsonrpc":"2.0","id":1,"result":1,"error":null}"#),
        Ok(Message::Response { outcome: Ok(_), .. })
    ));
}

#[test]
fn truncates_long_message() {
    for (length, kept) in [
        (LONGEST_MESSAGE, LONGEST_MESSAGE),
        (LONGEST_MESSAGE + 1, LONGEST_MESSAGE + "…".len()),
        (60 << 20, LONGEST_MESSAGE + "…".len()),
    ] {
        let response = error_response(None, -32601, &"m".repeat(length), None);
        let line: serde_json::Value = serde_json::from_str(&response).unwrap();
        assert_eq!(line["error"]["message"].as_str().unwrap().len(), kept);
    }
}

/// The response can be too long or not JSON.
#[test]
fn finds_id_of_broken_response() {
    let tool = Some(Id::Text("tool-7".to_owned()));
    for (beginning, end, id) in [
        (
            r#"{"jsonrpc":"2.0","id":"tool-7","result":{"a":""#,
            "",
            tool.clone(),
        ),
        (
            r#"{"jsonrpc":"2.0","result":{"content":"#,
            r#"x"}, "id" : "tool-7" } "#,
            tool.clone(),
        ),
        (r#"{"error":"#, r#","id":"tool-7"}"#, tool.clone()),
        // The end of a nested object, a request, neither response nor request.
        (r#"{"result":"#, r#","id":"tool-7"}}"#, None),
        (r#"{"result":"#, r#"x\"id\":\"tool-7\"}"#, None),
        (r#"{"method":"m","id":"tool-7","params":"#, "", None),
        (r#"{"id":"tool-7","x":"#, "", None),
        ("", "", None),
    ] {
        assert_eq!(
            id_of_broken_response(beginning.as_bytes(), end.as_bytes()),
            id,
            "{beginning} {end}"
        );
    }
    let line = |start: &str, end: &str| format!("{start}{}{end}\nnext\n", "x".repeat(LONGEST_LINE));
    for line in [
        line(
            r#"{"jsonrpc":"2.0","id":"tool-7","result":{"content":""#,
            "\"}}",
        ),
        line(
            r#"{"jsonrpc":"2.0","result":{"content":""#,
            r#""},"id":"tool-7"}"#,
        ),
    ] {
        let mut stream = io::BufReader::new(line.as_bytes());
        let mut read = Vec::new();
        assert_eq!(
            read_line(&mut stream, &mut read).unwrap(),
            Frame::TooLong(tool.clone())
        );
        assert_eq!(read_line(&mut stream, &mut read).unwrap(), Frame::Line);
        assert_eq!(read, b"next");
    }
}
