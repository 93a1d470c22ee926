//! `plexum-openai parse-rollout`: the tool calls of rollout files, as events or as a table.
//!
//! Events go out as they are found: what is written so far is handed on before there is a wait for more, so that
//! behind a slow pipe nobody waits for a call that is already here.

use super::flags::{Parsed, usage};
use super::relay::{self, RecordSink, RelayError, Size, Skipped};
use super::seems;
use super::summary::{Screen, Summary};
use super::{columns, target, written};
use crate::error::{Error, Kind, Result, reason};
use crate::os::Blocking;
use crate::os::open_regular_file;
use crate::rollout::calls::{Calls, Fed, write_result, write_use};
use crate::rollout::packed::Unpacked;
use crate::rollout::record::{Call, Content, Record};
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// Runs the subcommand; the result is the exit status.
///
/// # Errors
/// [`Kind::Usage`] and [`Kind::Config`], and [`Kind::Io`] where stdout cannot be written. A file that cannot be
/// read is told on stderr, and the others are read all the same.
pub(crate) fn run(
    parsed: &Parsed,
    stdout: &mut (dyn Write + Send),
    stderr: &mut dyn Write,
) -> Result<u8> {
    let files = files(parsed)?;
    let screen = Screen::of_stdout(parsed)?;
    let is_json = !parsed.has("summary") || parsed.has("json");
    let mut terminal;
    let stdout: &mut (dyn Write + Send) = if is_json && io::stdout().is_terminal() {
        terminal = columns::JsonTerminal::new(stdout);
        &mut terminal
    } else {
        stdout
    };
    // What is longer goes out as it stands, without being copied.
    let mut out = BufWriter::with_capacity(16 * 1024, stdout);
    let filter = Filter {
        tool: parsed.text("tool")?,
        errors: parsed.has("errors"),
    };
    let mut summary = Summary::default();
    let mut status = 0;
    for file in &files {
        let name = file.name();
        let opened = file.open();
        let (mut input, size) = match opened {
            Ok(input) => input,
            Err(error) => {
                status = 1;
                complain(stderr, format_args!("{error}"));
                continue;
            }
        };
        let head = match seems::head(&mut input) {
            Ok(head) => head,
            Err(error) => {
                status = 1;
                complain(
                    stderr,
                    format_args!("cannot read {name}: {}", reason(&error)),
                );
                continue;
            }
        };
        let input = head.as_slice().chain(input);
        let result = if parsed.has("summary") {
            let mut rows = Rows {
                summary: &mut summary,
                calls: Calls::default(),
                filter: &filter,
                given_up: 0,
            };
            let result = relay::run(input, size, &mut rows);
            given_up(rows.given_up, &name, stderr);
            if !parsed.has("all") || filter.errors {
                summary.forget_unanswered();
            }
            result
        } else {
            let mut events = Events {
                out: &mut out,
                calls: Calls::default(),
                all: parsed.has("all"),
                filter: &filter,
                file: (files.len() > 1).then(|| file_member(&file.path())),
                given_up: 0,
            };
            let result = relay::run(input, size, &mut events).and_then(|end| {
                if parsed.has("all") {
                    let unanswered = events.calls.unanswered().into_iter();
                    unanswered
                        .filter(|_| !filter.errors)
                        .try_for_each(|(_, kept)| events.write(&kept))
                        .map_err(RelayError::Sink)?;
                }
                Ok(end)
            });
            given_up(events.given_up, &name, stderr);
            result
        };
        let end = match result {
            Ok(end) => end,
            Err(RelayError::Sink(error)) => return written(Err(error), status),
            Err(RelayError::Thread(error)) => {
                return Err(Error::os(Kind::Io, "cannot start a thread", error));
            }
        };
        if end.read.is_ok()
            && !end.any
            && let Some(what) = seems::other_than_a_rollout(&head)
        {
            status = 1;
            complain(stderr, format_args!("{name} is not a rollout: {what}"));
            continue;
        }
        skipped(&end, &name, stderr);
        if let Err(error) = end.read {
            status = 1;
            complain(
                stderr,
                format_args!("cannot read {name}: {}", reason(&error)),
            );
        }
    }
    let result = match (parsed.has("summary"), parsed.has("json")) {
        (false, _) => Ok(()),
        (true, true) => summary.write_json(&mut out),
        (true, false) => summary.write_table(&mut out, &screen),
    };
    written(result.and_then(|()| out.flush()), status)
}

/// A rollout that is to be read.
enum RolloutSource {
    Stdin,
    /// Named by whoever calls; a FIFO or `<(…)` is meant as such.
    Named(OsString),
    /// Found by its thread.
    Found(PathBuf),
}

impl RolloutSource {
    fn name(&self) -> String {
        match self {
            RolloutSource::Stdin => "stdin".to_owned(),
            RolloutSource::Named(file) => format!("'{}'", Path::new(file).display()),
            RolloutSource::Found(path) => format!("'{}'", path.display()),
        }
    }

    fn path(&self) -> PathBuf {
        match self {
            RolloutSource::Stdin => PathBuf::from("-"),
            RolloutSource::Named(file) => PathBuf::from(file),
            RolloutSource::Found(path) => path.clone(),
        }
    }

    fn is_packed(&self) -> bool {
        self.path().extension().is_some_and(|end| end == "zst")
    }

    fn open(&self) -> Result<(Box<dyn Read + Send>, Size)> {
        let opened = match self {
            RolloutSource::Stdin => io::stdin().as_fd().try_clone_to_owned().map(File::from),
            RolloutSource::Named(file) => File::open(file),
            RolloutSource::Found(path) => open_regular_file(path),
        };
        let file = opened
            .map_err(|error| Error::os(Kind::Io, format!("cannot open {}", self.name()), error))?;
        match self {
            RolloutSource::Found(_) | RolloutSource::Named(_) if self.is_packed() => {
                let unpacked = Unpacked::new(file, &self.path())?;
                Ok((Box::new(unpacked), Size::SmallOrUnknown))
            }
            _ => {
                let size = Size::of(&file);
                Ok((Box::new(Blocking(file)), size))
            }
        }
    }
}

/// The files to read.
fn files(parsed: &Parsed) -> Result<Vec<RolloutSource>> {
    if let Some(rollout) = target::rollout(parsed)? {
        if !parsed.operands.is_empty() {
            return Err(usage(
                "FILE and '--workspace' or '--thread' both name a rollout: give one of them",
            ));
        }
        return Ok(vec![RolloutSource::Found(rollout)]);
    }
    if parsed.operands.is_empty() {
        return Ok(vec![RolloutSource::Stdin]);
    }
    let sources = parsed.operands.iter().map(|file| match file.to_str() {
        Some("-") => RolloutSource::Stdin,
        _ => RolloutSource::Named(file.clone()),
    });
    Ok(sources.collect())
}

fn complain(stderr: &mut dyn Write, message: fmt::Arguments<'_>) {
    // There is nowhere left to complain about stderr itself.
    let _ = writeln!(
        stderr,
        "plexum-openai: {}",
        columns::sanitize(&message.to_string())
    );
}

/// Says how many calls were too many to wait for their outputs.
fn given_up(count: u64, name: &str, stderr: &mut dyn Write) {
    if count > 0 {
        complain(
            stderr,
            format_args!(
                "{name}: {count} calls had no output yet when too many were open; an output that came later is not told"
            ),
        );
    }
}

/// Says which lines were skipped that should not have been there.
fn skipped(end: &relay::End, name: &str, stderr: &mut dyn Write) {
    for (Skipped { count, first }, what) in
        [(end.bad, "not JSON"), (end.long, "longer than 32 MiB")]
    {
        let (lines, are) = if count == 1 {
            ("line", "is")
        } else {
            ("lines", "are")
        };
        let place = match (count, first) {
            (1, Some(number)) => format!(" (line {number})"),
            (_, Some(number)) => format!(" (the first is line {number})"),
            (_, None) => String::new(),
        };
        if count > 0 {
            complain(
                stderr,
                format_args!("{name}: skipped {count} {lines} that {are} {what}{place}"),
            );
        }
    }
}

/// Which calls are wanted.
struct Filter<'a> {
    tool: Option<&'a str>,
    errors: bool,
}

impl Filter<'_> {
    fn has_tool(&self, call: &Call<'_>) -> bool {
        self.tool.is_none_or(|tool| call.name == tool)
    }

    fn has_result(&self, is_error: bool) -> bool {
        is_error || !self.errors
    }
}

/// The member that says which file an event is of, as it goes behind the others.
fn file_member(path: &Path) -> Vec<u8> {
    let file = serde_json::Value::from(path.to_string_lossy()).to_string();
    format!(",\"file\":{file}}}\n").into_bytes()
}

/// Writes the events of one rollout.
struct Events<'a, W> {
    out: &'a mut W,
    /// With the event of each open call that is wanted.
    calls: Calls<Vec<u8>>,
    /// Are calls without an output told, too?
    all: bool,
    filter: &'a Filter<'a>,
    /// What each event ends with where there are several files.
    file: Option<Vec<u8>>,
    /// How many calls without an output were too many to be kept.
    given_up: u64,
}

impl<W: Write> Events<'_, W> {
    /// Writes an event, a line with its end; nothing for a call that is not wanted.
    fn write(&mut self, event: &[u8]) -> io::Result<()> {
        match &self.file {
            Some(member) if !event.is_empty() => {
                self.out.write_all(&event[..event.len() - 2])?;
                self.out.write_all(member)
            }
            _ => self.out.write_all(event),
        }
    }

    fn write_result(&mut self, id: &str, content: &Content<'_>, is_error: bool) -> io::Result<()> {
        if self.file.is_none() {
            write_result(self.out, id, content, is_error)?;
            return self.out.write_all(b"\n");
        }
        let mut event = Vec::new();
        write_result(&mut event, id, content, is_error)?;
        event.push(b'\n');
        self.write(&event)
    }
}

/// A record, and the event if it is a call.
struct RecordAndEvent<'a>(Record<'a>, Vec<u8>);

fn use_event(call: &Call<'_>, parent: Option<&str>) -> Vec<u8> {
    let mut event = Vec::with_capacity(call.input.len() + 200);
    // A `Vec` takes everything.
    let _ = write_use(&mut event, call, parent, None);
    event.push(b'\n');
    event
}

impl<W: Write> RecordSink for Events<'_, W> {
    type Part<'a> = RecordAndEvent<'a>;

    fn prepare(record: Record<'_>) -> RecordAndEvent<'_> {
        let event = match &record {
            Record::Call(call) => use_event(call, None),
            _ => Vec::new(),
        };
        RecordAndEvent(record, event)
    }

    fn take(&mut self, RecordAndEvent(record, event): RecordAndEvent<'_>) -> io::Result<()> {
        let filter = self.filter;
        let fed = self.calls.feed(record, |call| match filter.has_tool(call) {
            true => {
                let size = event.len();
                (event, size)
            }
            false => (Vec::new(), 0),
        });
        match fed {
            Some(Fed::Call { given_up, .. }) => {
                for (_, event) in given_up {
                    self.given_up += 1;
                    if self.all && !filter.errors {
                        self.write(&event)?;
                    }
                }
            }
            Some(Fed::Output {
                output,
                kept,
                is_error,
            }) if !kept.is_empty() && filter.has_result(is_error) => {
                self.write(&kept)?;
                self.write_result(&output.id, &output.content, is_error)?;
            }
            Some(Fed::Whole { call, parent })
                if filter.has_tool(&call.call) && filter.has_result(call.failed) =>
            {
                self.write(&use_event(&call.call, parent.as_deref()))?;
                self.write_result(&call.call.id, &call.content, call.failed)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn pause(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Adds the calls of one rollout to the summary.
struct Rows<'a> {
    summary: &'a mut Summary,
    /// With the place of each open call in the summary, where it is wanted.
    calls: Calls<Option<usize>>,
    filter: &'a Filter<'a>,
    given_up: u64,
}

impl RecordSink for Rows<'_> {
    type Part<'a> = Record<'a>;

    fn prepare(record: Record<'_>) -> Record<'_> {
        record
    }

    fn take(&mut self, record: Record<'_>) -> io::Result<()> {
        let (filter, summary) = (self.filter, &mut *self.summary);
        let fed = self.calls.feed(record, |call| {
            let place = filter.has_tool(call).then(|| summary.begin(call));
            (place, 0)
        });
        match fed {
            Some(Fed::Call { given_up, .. }) => self.given_up += given_up.len() as u64,
            Some(Fed::Output {
                output,
                kept: Some(place),
                is_error,
            }) if self.filter.has_result(is_error) => {
                self.summary.answer(place, &output.content, is_error);
            }
            // What scripts called is in the output of the call that they were made in, and would count twice.
            _ => {}
        }
        Ok(())
    }

    fn pause(&mut self) -> io::Result<()> {
        Ok(())
    }
}
