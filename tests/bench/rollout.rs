//! Makes large rollouts: the records that codex 0.169 writes, in the mix and of the sizes that long sessions
//! have, the same bytes in every run.
//!
//! What matters for speed is kept: two thirds of the bytes are in records that are not tool calls (reasoning,
//! copies of outputs in `item_completed`, counters), outputs have a median of 1 KiB and a long tail, one byte
//! in sixteen of them is a backslash, and some are not ASCII.

use serde_json::{Value, json};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// What is in a rollout that was made.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    pub(crate) pairs: u64,
    pub(crate) sum: Sum,
    /// Ids of calls that have an output, from all over the file.
    pub(crate) ids: Vec<String>,
}

/// A sum over all pairs, in their order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum(u64);

impl Sum {
    pub(crate) fn add(&mut self, id: &str, name: &str, input: &Value, content: &Value) {
        let mut hasher = DefaultHasher::new();
        (self.0, id, name, input.to_string(), content.to_string()).hash(&mut hasher);
        self.0 = hasher.finish();
    }
}

const WORDS: &[&str] = &[
    "self", "result", "config", "buffer", "index", "path", "token", "request", "stream", "parse",
    "state", "async", "option", "vector", "context", "session", "writer", "reader", "cache",
    "thread",
];

struct Maker<W: Write> {
    out: W,
    written: u64,
    ordinal: u64,
    state: u64,
    /// What texts are cut out of.
    pool: String,
}

/// Writes a rollout of about so many bytes.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn make(path: &Path, bytes: u64) -> io::Result<Truth> {
    let mut maker = Maker {
        out: BufWriter::with_capacity(1 << 20, File::create(path)?),
        written: 0,
        ordinal: 0,
        state: 1,
        pool: String::new(),
    };
    while maker.pool.len() < 4 << 20 {
        let line = maker.line();
        maker.pool.push_str(&line);
        maker.pool.push('\n');
    }
    let mut truth = Truth::default();
    maker.record(
        "session_meta",
        json!({"id": "01a1fd57-0000-7000-a000-000000000000", "cwd": "/home/user"}),
    )?;
    while maker.written < bytes {
        maker.step(&mut truth)?;
    }
    maker.out.flush()?;
    Ok(truth)
}

impl<W: Write> Maker<W> {
    fn roll(&mut self, sides: u64) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        (self.state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % sides
    }

    fn word(&mut self) -> &'static str {
        let sides = WORDS.len() as u64;
        WORDS[self.roll(sides) as usize]
    }

    /// A line as programs, logs and listings have them.
    fn line(&mut self) -> String {
        let (a, b, c, n) = (self.word(), self.word(), self.word(), self.roll(9999));
        match self.roll(20) {
            0..7 => format!("        if {a} == \"{b}\" && {c}.len() > {n} {{"),
            7..10 => format!("src/{a}/{b}.rs:{n}:    {c}(\"{a}\")"),
            10..13 => format!("2026-11-21T12:00:00.{n:04}Z  INFO {a}: {b} took {n}ms"),
            13..15 => format!("+\t\t{a} := {b}(ctx, \"{c}\")"),
            15 => format!(
                "  {{\"{a}\": \"{b}\", \"call_id\": \"call_{n}\", \"type\": \"function_call_output\"}},"
            ),
            16 => format!("\u{1b}[3{}m{a}\u{1b}[0m ... ok", n % 8),
            17 => format!("C:\\Users\\{a}\\{b}.txt \u{2192} \u{e9}t\u{e9}"),
            18 => format!("\u{5b9f}\u{884c}\u{7d50}\u{679c} {a} \u{2705}"),
            _ => format!("{a} {b} {c} {b} {a} {c} {n}."),
        }
    }

    /// Text of about so many bytes.
    fn text(&mut self, bytes: u64) -> String {
        let most = self.pool.len() as u64 - bytes - 8;
        let start = self.roll(most) as usize;
        let start = self.pool.ceil_char_boundary(start);
        let end = self.pool.floor_char_boundary(start + bytes as usize);
        self.pool[start..end].to_owned()
    }

    fn hex(&mut self, digits: usize) -> String {
        (0..digits)
            .map(|_| char::from_digit(self.roll(16) as u32, 16).expect("a digit"))
            .collect()
    }

    /// Sizes between 8 bytes and 1 MiB, half of them below 1 KiB.
    fn output_bytes(&mut self) -> u64 {
        // The product of three numbers spreads about as a logarithm of a normal one does.
        let spread = (1 + self.roll(100)) * (1 + self.roll(100)) * (1 + self.roll(100));
        (spread * spread / 4_000_000).clamp(8, 1 << 20)
    }

    fn record(&mut self, kind: &str, payload: Value) -> io::Result<()> {
        // codex writes the type first; serde_json sorts keys.
        let mut payload = payload;
        let inner = payload
            .as_object_mut()
            .and_then(|payload| payload.remove("type"));
        let rest = payload.to_string();
        let rest = &rest[1..];
        let head = match (inner, rest) {
            (None, _) => String::new(),
            (Some(inner), "}") => format!("\"type\":{inner}"),
            (Some(inner), _) => format!("\"type\":{inner},"),
        };
        let line = format!(
            "{{\"timestamp\":\"2026-11-21T12:07:52.{:03}Z\",\"ordinal\":{},\"type\":\"{kind}\",\"payload\":{{{head}{rest}}}\n",
            self.ordinal % 1000,
            self.ordinal,
        );
        self.out.write_all(line.as_bytes())?;
        self.written += line.len() as u64;
        self.ordinal += 1;
        Ok(())
    }

    /// An event that an item is over, its keys in codex's order.
    fn item(&mut self, kind: &str, id: &str, rest: &Value) -> io::Result<()> {
        let rest = rest.to_string();
        let line = format!(
            "{{\"timestamp\":\"2026-11-21T12:07:52.075Z\",\"ordinal\":{},\"type\":\"event_msg\",\"payload\":{{\"type\":\"item_completed\",\"thread_id\":\"01a1fd57-0000-7000-a000-000000000000\",\"turn_id\":\"01a1fd57-0000-7000-a000-000000000001\",\"item\":{{\"type\":\"{kind}\",\"id\":\"{id}\",{},\"started_at_ms\":1,\"completed_at_ms\":2}}}}\n",
            self.ordinal,
            &rest[1..],
        );
        self.out.write_all(line.as_bytes())?;
        self.written += line.len() as u64;
        self.ordinal += 1;
        Ok(())
    }

    /// What a model does once: it thinks, calls, gets an output, and codex counts.
    fn step(&mut self, truth: &mut Truth) -> io::Result<()> {
        let thought = self.text(400);
        let reasoning = format!("rs_{}", self.hex(48));
        let summary = json!({"summary_text": [thought], "raw_content": []});
        self.item("Reasoning", &reasoning, &summary)?;
        let secret = self.hex(2600);
        self.record(
            "response_item",
            json!({"type": "reasoning", "id": reasoning, "summary": [{"type": "summary_text", "text": thought}],
                "encrypted_content": secret}),
        )?;
        let id = format!("call_{}", self.hex(24));
        let bytes = self.output_bytes();
        let output = self.text(bytes);
        let (name, input, content) = match self.roll(20) {
            0 | 1 => {
                let patch = format!("*** Begin Patch\n{}\n*** End Patch\n", self.text(1500));
                self.record(
                    "response_item",
                    json!({"type": "custom_tool_call", "call_id": id, "name": "apply_patch", "input": patch}),
                )?;
                self.item("FileChange", &id, &json!({"changes": {"src/x.rs": {"unified_diff": patch}}, "status": "completed"}))?;
                let output = "Exit code: 0\nOutput:\nSuccess.\n";
                self.record(
                    "response_item",
                    json!({"type": "custom_tool_call_output", "call_id": id, "output": output}),
                )?;
                ("apply_patch", json!(patch), json!(output))
            }
            2 => {
                let input = json!({"to": self.word()});
                let content = json!([{"type": "input_text", "text": output}]);
                self.record(
                    "response_item",
                    json!({"type": "function_call", "name": "send", "namespace": "mcp__plexum_host_alice",
                        "arguments": input.to_string(), "call_id": id}),
                )?;
                self.item(
                    "McpToolCall",
                    &id,
                    &json!({"server": "plexum_host_alice", "tool": "send", "arguments": input,
                    "status": "completed", "result": {"content": content}}),
                )?;
                self.record(
                    "response_item",
                    json!({"type": "function_call_output", "call_id": id, "output": content}),
                )?;
                // As the daemon is told it: a block of MCP.
                let told = json!([{"type": "text", "text": output}]);
                ("send", input, told)
            }
            _ => {
                let command = self.text(90);
                let input = json!({"cmd": command});
                let content = format!(
                    "Chunk ID: 1\nWall time: 0.1 seconds\nProcess exited with code 0\nOutput:\n{output}"
                );
                self.record(
                    "response_item",
                    json!({"type": "function_call", "name": "exec_command", "arguments": input.to_string(), "call_id": id}),
                )?;
                self.item(
                    "CommandExecution",
                    &id,
                    &json!({"command": ["/bin/bash", "-lc", command],
                    "status": "completed", "aggregated_output": output, "exit_code": 0}),
                )?;
                self.record(
                    "response_item",
                    json!({"type": "function_call_output", "call_id": id, "output": content}),
                )?;
                ("exec_command", input, json!(content))
            }
        };
        truth.sum.add(&id, name, &input, &content);
        truth.pairs += 1;
        truth.ids.push(id);
        let usage = json!({"input_tokens": 100, "cached_input_tokens": 10, "output_tokens": 5,
            "reasoning_output_tokens": 1, "total_tokens": 105});
        self.record(
            "event_msg",
            json!({"type": "token_count", "info": {"total_token_usage": usage, "last_token_usage": usage},
                "rate_limits": {"primary": {"used_percent": 7, "window_minutes": 300}}}),
        )?;
        if self.roll(8) == 0 {
            let said = self.text(600);
            self.record(
                "response_item",
                json!({"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": said}]}),
            )?;
        }
        Ok(())
    }
}
