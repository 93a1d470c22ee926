//! Which output belongs to which call, and what both look like to the daemon.
//!
//! [`Calls`] is fed with the records of a rollout in order and knows at any moment which calls are open; it
//! does no I/O. Whoever feeds it says what is to be kept of an open call: `parse-rollout` keeps its event,
//! `--summary` its size, a running turn nothing.
//!
//! Events are written as JSON at once: what codex wrote is checked where it is read and then passed on as it
//! stands, and most of a rollout's calls never become a value here.

use super::json;
use super::record::{Call, Content, Input, Nested, Output};
use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::io::{self, Write};

/// The calls of one rollout.
#[derive(Debug)]
pub(crate) struct Calls<T> {
    open: HashMap<String, Queue<T>>,
    count: u64,
    scripts: Scripts,
}

/// The open calls of one id, in the order in which they came: an id can come twice, and its outputs then too.
#[derive(Debug)]
struct Queue<T> {
    first: Open<T>,
    more: VecDeque<Open<T>>,
}

#[derive(Debug)]
struct Open<T> {
    /// Its place among all calls.
    place: u64,
    /// Is it over, and did it fail? Known of MCP calls before their outputs come.
    ended: bool,
    failed: bool,
    kept: T,
}

/// A call whose output has come.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answered<T> {
    pub(crate) is_error: bool,
    /// What was kept of the call.
    pub(crate) kept: T,
}

impl<T> Default for Calls<T> {
    fn default() -> Calls<T> {
        Calls {
            open: HashMap::new(),
            count: 0,
            scripts: Scripts::default(),
        }
    }
}

impl<T> Calls<T> {
    /// A call was recorded.
    pub(crate) fn begin(&mut self, call: &Call<'_>, kept: T) {
        self.scripts.begin(call);
        let open = Open {
            place: self.count,
            ended: false,
            failed: false,
            kept,
        };
        self.count += 1;
        match self.open.entry(call.id.clone().into_owned()) {
            Entry::Vacant(vacant) => {
                vacant.insert(Queue {
                    first: open,
                    more: VecDeque::new(),
                });
            }
            Entry::Occupied(mut queue) => queue.get_mut().more.push_back(open),
        }
    }

    /// An MCP call is over; its output is still to come.
    pub(crate) fn ended(&mut self, id: &str, failed: bool) {
        let Some(queue) = self.open.get_mut(id) else {
            return;
        };
        let mut open = std::iter::once(&mut queue.first).chain(&mut queue.more);
        if let Some(open) = open.find(|open| !open.ended) {
            open.ended = true;
            open.failed = failed;
        }
    }

    /// An output was recorded; `None` where no call is open that it could belong to.
    pub(crate) fn answer(&mut self, output: &Output<'_>) -> Option<Answered<T>> {
        self.scripts.answer(output);
        let queue = self.open.get_mut(output.id.as_ref())?;
        let open = match queue.more.pop_front() {
            Some(next) => std::mem::replace(&mut queue.first, next),
            None => self.open.remove(output.id.as_ref())?.first,
        };
        Some(Answered {
            is_error: open.failed || output.failed,
            kept: open.kept,
        })
    }

    /// The call that a call inside code mode was made in.
    pub(crate) fn parent(&self, nested: &Nested<'_>) -> Option<&str> {
        self.scripts.parent(nested.started)
    }

    /// Is a call open?
    pub(crate) fn any_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// The calls that never got an output, in the order in which they came: their ids and what was kept.
    pub(crate) fn unanswered(&mut self) -> Vec<(String, T)> {
        let mut open: Vec<(String, Open<T>)> = self
            .open
            .drain()
            .flat_map(|(id, queue)| {
                std::iter::once(queue.first)
                    .chain(queue.more)
                    .map(move |open| (id.clone(), open))
            })
            .collect();
        open.sort_by_key(|(_, open)| open.place);
        open.into_iter().map(|(id, open)| (id, open.kept)).collect()
    }
}

/// The scripts of code mode, and which of them runs.
///
/// The model's `exec` calls run one after the other, in the order in which they came, even when they came
/// together. A script that takes long yields: the call gets its output, which names a cell, and the script
/// goes on in that cell while other calls run, until a `wait` call fetches the rest. What a script calls is
/// recorded when it is over, without the call that it was made in, but with the time when it began.
#[derive(Debug, Default)]
struct Scripts {
    /// Recorded and without an output, in order: the first one runs.
    open: VecDeque<Script>,
    /// Those that yielded, with their cells.
    cells: Vec<(String, Script)>,
    /// The `wait` calls that are open, and their cells.
    waits: Vec<(String, String)>,
    /// The one that was over last: what it called can be recorded after it, when it was aborted.
    last: Option<Script>,
    /// When the last output of a script came.
    free: Option<u64>,
}

#[derive(Clone, Debug)]
struct Script {
    id: String,
    /// When it was recorded, in milliseconds since 1970.
    at: Option<u64>,
}

impl Scripts {
    fn begin(&mut self, call: &Call<'_>) {
        if call.namespace.is_some() {
            return;
        }
        match (call.name.as_ref(), &call.input) {
            ("exec", Input::Json(_)) => self.open.push_back(Script {
                id: call.id.clone().into_owned(),
                at: call.at,
            }),
            ("wait", Input::Encoded(arguments)) => {
                let arguments =
                    serde_json::from_str::<serde_json::Value>(&json::decode(*arguments));
                if let Some(cell) = arguments
                    .ok()
                    .and_then(|value| Some(value.get("cell_id")?.as_str()?.to_owned()))
                {
                    self.waits.push((call.id.clone().into_owned(), cell));
                }
            }
            _ => {}
        }
    }

    fn answer(&mut self, output: &Output<'_>) {
        if let Some(at) = self.open.iter().position(|script| script.id == output.id) {
            let script = self
                .open
                .remove(at)
                .expect("a script at the place where it was found");
            self.free = output.at;
            match &output.cell {
                Some(cell) => self.cells.push((cell.clone(), script)),
                None => self.last = Some(script),
            }
        } else if let Some(at) = self.waits.iter().position(|(id, _)| *id == output.id) {
            let (_, cell) = self.waits.remove(at);
            if output.cell.is_none()
                && let Some(at) = self.cells.iter().rposition(|(name, _)| *name == cell)
            {
                self.last = Some(self.cells.remove(at).1);
            }
        }
    }

    /// The script that made a call at this time.
    fn parent(&self, started: Option<u64>) -> Option<&str> {
        let before = |at: Option<u64>| match (at, started) {
            (Some(at), Some(started)) => at <= started,
            _ => true,
        };
        let current = self
            .open
            .front()
            .filter(|script| before(script.at.max(self.free)));
        let in_cell = || {
            self.cells
                .iter()
                .rev()
                .map(|(_, script)| script)
                .find(|script| before(script.at))
        };
        current
            .or_else(in_cell)
            .or(self.open.front())
            .or(self.last.as_ref())
            .map(|script| script.id.as_str())
    }
}

/// Writes the `tool_use` event of a call.
pub(crate) fn write_use(
    out: &mut impl Write,
    call: &Call<'_>,
    parent: Option<&str>,
) -> io::Result<()> {
    out.write_all(br#"{"type":"tool_use","id":"#)?;
    write_string(out, &call.id)?;
    out.write_all(br#","name":"#)?;
    write_string(out, &call.name)?;
    if let Some(namespace) = &call.namespace {
        out.write_all(br#","namespace":"#)?;
        write_string(out, namespace)?;
    }
    out.write_all(br#","input":"#)?;
    write_input(out, &call.input)?;
    if let Some(parent) = parent {
        out.write_all(br#","parent_id":"#)?;
        write_string(out, parent)?;
    }
    out.write_all(b"}")
}

/// Writes the `tool_result` event of a call.
pub(crate) fn write_result(
    out: &mut impl Write,
    id: &str,
    content: &Content<'_>,
    is_error: bool,
) -> io::Result<()> {
    out.write_all(br#"{"type":"tool_result","id":"#)?;
    write_string(out, id)?;
    out.write_all(br#","content":"#)?;
    write_content(out, content)?;
    write!(out, ",\"is_error\":{is_error}}}")
}

/// Writes the arguments of a call: as JSON, or as a string where they are none.
pub(crate) fn write_input(out: &mut impl Write, input: &Input<'_>) -> io::Result<()> {
    match input {
        Input::Json(raw) => out.write_all(raw),
        Input::Encoded(raw) => {
            let text = json::decode(*raw);
            if json::valid(text.as_ref()) {
                out.write_all(one_line(text.trim()).as_bytes())
            } else {
                out.write_all(raw)
            }
        }
        Input::Object(members) => {
            let mut before = "{";
            for (name, value) in members {
                write!(out, "{before}\"{name}\":")?;
                out.write_all(value)?;
                before = ",";
            }
            out.write_all(if members.is_empty() { b"{}" } else { b"}" })
        }
    }
}

/// Writes what a call gave, a JSON string or a list.
pub(crate) fn write_content(out: &mut impl Write, content: &Content<'_>) -> io::Result<()> {
    match content {
        Content::Json(raw) => out.write_all(raw),
        Content::Text(text) => write_string(out, text),
        Content::LeftOut(length) => write!(out, "\"[an output of {length} bytes, left out]\""),
    }
}

/// A JSON text on one line. A line break in it can only stand between its parts.
fn one_line(json: &str) -> Cow<'_, str> {
    if memchr::memchr2(b'\n', b'\r', json.as_bytes()).is_some() {
        Cow::Owned(json.replace(['\n', '\r'], " "))
    } else {
        Cow::Borrowed(json)
    }
}

fn write_string(out: &mut impl Write, text: &str) -> io::Result<()> {
    Ok(serde_json::to_writer(out, text)?)
}
