//! What the plugin says to the daemon on its own account: the `log` notification, and a turn's events.

use super::outbox::Outbox;
use crate::canonical::TurnEvent;
use crate::sys::Flag;
use crate::turn::{Level, Sink};
use serde_json::json;
use std::io::Write;

/// How much a turn gathers before it asks for room in the outbox, in bytes.
const GATHERED: usize = 256 << 10;

/// The line of a `log` notification.
pub(super) fn log_line(level: Level, message: &str, fields: &serde_json::Value) -> Vec<u8> {
    let line = json!({
        "jsonrpc": "2.0",
        "method": "log",
        "params": {"level": level.name(), "message": message, "fields": fields},
    });
    format!("{line}\n").into_bytes()
}

/// A turn's events and logs on their way to the daemon.
pub(super) struct DaemonSink {
    outbox: Outbox,
    /// The id of the stream request, as JSON.
    stream: String,
    fields: serde_json::Value,
    cancel: Flag,
    lines: Vec<u8>,
}

impl DaemonSink {
    pub(super) fn new(
        outbox: Outbox,
        stream: String,
        agent: Option<&str>,
        cancel: Flag,
    ) -> DaemonSink {
        let mut fields = json!({});
        // It was made from an id, so it is JSON.
        fields["stream"] = serde_json::from_str(&stream).unwrap_or_default();
        if let Some(agent) = agent {
            fields["agent_id"] = agent.into();
        }
        DaemonSink {
            outbox,
            stream,
            fields,
            cancel,
            lines: Vec::new(),
        }
    }
}

impl Sink for DaemonSink {
    fn event(&mut self, event: &TurnEvent<'_>) {
        let _ = write!(
            self.lines,
            "{{\"jsonrpc\":\"2.0\",\"method\":\"event\",\"params\":{{\"stream\":{},\"event\":",
            self.stream
        );
        // Writing to memory, and what is written has only keys that are strings: neither can fail.
        let _ = serde_json::to_writer(&mut self.lines, event);
        self.lines.extend_from_slice(b"}}\n");
        if self.lines.len() >= GATHERED {
            self.flush();
        }
    }

    fn log(&mut self, level: Level, message: &str) {
        self.lines
            .extend_from_slice(&log_line(level, message, &self.fields));
    }

    fn flush(&mut self) {
        self.outbox
            .push_when_room(&mut self.lines, Some(&self.cancel));
    }

    fn finish(&mut self) {
        self.outbox.push_when_room(&mut self.lines, None);
    }
}
