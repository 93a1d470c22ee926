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
use crate::rollout::record::Record;
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
                given_up: 0,
            };
            let result = relay::run(input, size, &mut rows);
            given_up(rows.given_up, &name, stderr);
            if !parsed.has("all") {
                summary.forget_unanswered();
            }
            result
        } else {
            let mut events = Events {
                out: &mut out,
                calls: Calls::default(),
                all: parsed.has("all"),
                given_up: 0,
            };
            let result = relay::run(input, size, &mut events).and_then(|end| {
                if parsed.has("all") {
                    let mut unanswered = events.calls.unanswered().into_iter();
                    unanswered
                        .try_for_each(|(_, event)| events.out.write_all(&event))
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

    fn open(&self) -> Result<(Box<dyn Read + Send>, Size)> {
        let opened = match self {
            RolloutSource::Stdin => io::stdin().as_fd().try_clone_to_owned().map(File::from),
            RolloutSource::Named(file) => File::open(file),
            RolloutSource::Found(path) => open_regular_file(path),
        };
        let file = opened
            .map_err(|error| Error::os(Kind::Io, format!("cannot open {}", self.name()), error))?;
        match self {
            RolloutSource::Found(path) if path.extension().is_some_and(|end| end == "zst") => {
                let unpacked = Unpacked::new(file, path)?;
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

/// Writes the events of one rollout.
struct Events<'a, W> {
    out: &'a mut W,
    /// With the event of each open call.
    calls: Calls<Vec<u8>>,
    /// Are calls without an output told, too?
    all: bool,
    /// How many calls without an output were too many to be kept.
    given_up: u64,
}

/// A record, and the event if it is a call.
struct RecordAndEvent<'a>(Record<'a>, Vec<u8>);

impl<W: Write> RecordSink for Events<'_, W> {
    type Part<'a> = RecordAndEvent<'a>;

    fn prepare(record: Record<'_>) -> RecordAndEvent<'_> {
        let mut event = Vec::new();
        if let Record::Call(call) = &record {
            event.reserve(call.input.len() + 200);
            // A `Vec` takes everything.
            let _ = write_use(&mut event, call, None, None);
            event.push(b'\n');
        }
        RecordAndEvent(record, event)
    }

    fn take(&mut self, RecordAndEvent(record, event): RecordAndEvent<'_>) -> io::Result<()> {
        let out = &mut *self.out;
        let fed = self.calls.feed(record, |_| {
            let size = event.len();
            (event, size)
        });
        match fed {
            Some(Fed::Call { given_up, .. }) => {
                for (_, event) in given_up {
                    self.given_up += 1;
                    if self.all {
                        out.write_all(&event)?;
                    }
                }
            }
            Some(Fed::Output {
                output,
                kept,
                is_error,
            }) => {
                out.write_all(&kept)?;
                write_result(out, &output.id, &output.content, is_error)?;
                out.write_all(b"\n")?;
            }
            Some(Fed::Whole { call, parent }) => {
                write_use(out, &call.call, parent.as_deref(), None)?;
                out.write_all(b"\n")?;
                write_result(out, &call.call.id, &call.content, call.failed)?;
                out.write_all(b"\n")?;
            }
            Some(Fed::Other(_)) | None => {}
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
    /// With the place of each open call in the summary.
    calls: Calls<usize>,
    given_up: u64,
}

impl RecordSink for Rows<'_> {
    type Part<'a> = Record<'a>;

    fn prepare(record: Record<'_>) -> Record<'_> {
        record
    }

    fn take(&mut self, record: Record<'_>) -> io::Result<()> {
        match self
            .calls
            .feed(record, |call| (self.summary.begin(call), 0))
        {
            Some(Fed::Call { given_up, .. }) => self.given_up += given_up.len() as u64,
            Some(Fed::Output {
                output,
                kept,
                is_error,
            }) => self.summary.answer(kept, &output.content, is_error),
            // What scripts called is in the output of the call that they were made in, and would count twice.
            Some(Fed::Whole { .. } | Fed::Other(_)) | None => {}
        }
        Ok(())
    }

    fn pause(&mut self) -> io::Result<()> {
        Ok(())
    }
}
