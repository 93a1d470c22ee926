//! `plexum-openai parse-rollout`: the tool calls of rollout files, as events or as a table.
//!
//! Events go out as they are found: what is written so far is handed on before there is a wait for more, so that
//! behind a slow pipe nobody waits for a call that is already here.

use super::ahead::Ahead;
use super::flags::{Parsed, usage};
use super::summary::{Screen, Summary};
use super::target;
use crate::error::{Error, Kind, Result, reason};
use crate::rollout::calls::{Calls, write_result, write_use};
use crate::rollout::lines;
use crate::rollout::record::{self, Record, Unread};
use std::cell::RefCell;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

/// Runs the subcommand; the result is the exit status.
///
/// # Errors
/// [`Kind::Usage`] and [`Kind::Config`], and [`Kind::Io`] where stdout cannot be written. A file that cannot be
/// read is told on stderr, and the others are read all the same.
pub(crate) fn run(parsed: &Parsed, stdout: &mut dyn Write, stderr: &mut dyn Write) -> Result<u8> {
    let files = files(parsed)?;
    let screen = Screen::of_stdout(parsed)?;
    let mut out = BufWriter::with_capacity(64 * 1024, stdout);
    let mut summary = Summary::default();
    let mut status = 0;
    for file in &files {
        let (name, input): (String, Box<dyn Read + Send>) = if file == "-" {
            ("stdin".to_owned(), Box::new(io::stdin()))
        } else {
            let name = format!("'{}'", Path::new(file).display());
            match File::open(file) {
                Ok(opened) => (name, Box::new(opened)),
                Err(error) => {
                    status = 1;
                    complain(
                        stderr,
                        format_args!("cannot open {name}: {}", reason(&error)),
                    );
                    continue;
                }
            }
        };
        let mut reading = Reading::start(input)?;
        let written = if parsed.has("summary") {
            let result = summarize(&mut reading, &mut summary);
            if !parsed.has("all") {
                summary.forget_unanswered();
            }
            result
        } else {
            events(&mut reading, &mut out).and_then(|unanswered| match parsed.has("all") {
                true => unanswered.iter().try_for_each(|event| out.write_all(event)),
                false => Ok(()),
            })
        };
        if let Err(error) = written {
            return stopped(error, status);
        }
        if let Err(error) = reading.finish(&name, stderr) {
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
    match result.and_then(|()| out.flush()) {
        Ok(()) => Ok(status),
        Err(error) => stopped(error, status),
    }
}

/// The files to read, `-` for stdin.
fn files(parsed: &Parsed) -> Result<Vec<OsString>> {
    if let Some(rollout) = target::rollout(parsed)? {
        if !parsed.operands.is_empty() {
            return Err(usage(
                "FILE and '--workspace' or '--thread' both name a rollout: give one of them",
            ));
        }
        return Ok(vec![rollout.into_os_string()]);
    }
    if parsed.operands.is_empty() {
        return Ok(vec!["-".into()]);
    }
    Ok(parsed.operands.clone())
}

/// stdout takes no more. When its reader left, that is nobody's fault.
fn stopped(error: io::Error, status: u8) -> Result<u8> {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Ok(status),
        _ => Err(Error::os(Kind::Io, "cannot write to stdout", error)),
    }
}

fn complain(stderr: &mut dyn Write, message: fmt::Arguments<'_>) {
    // There is nowhere left to complain about stderr itself.
    let _ = writeln!(stderr, "plexum-openai: {message}");
}

/// One rollout being read.
struct Reading {
    lines: Ahead,
    /// How many lines were no JSON, and how many too long.
    unread: [u64; 2],
}

impl Reading {
    fn start(input: Box<dyn Read + Send>) -> Result<Reading> {
        let wanted = |kind| {
            matches!(
                kind,
                lines::Kind::Call | lines::Kind::Output | lines::Kind::Item
            )
        };
        let lines = Ahead::start(input, wanted)
            .map_err(|error| Error::os(Kind::Io, "cannot start a thread", error))?;
        Ok(Reading {
            lines,
            unread: [0; 2],
        })
    }

    /// Gives every record of a tool call to `take`, in order; calls `idle` before it waits for more.
    fn each(
        &mut self,
        mut take: impl FnMut(Record<'_>) -> io::Result<()>,
        idle: impl FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        let unread = &mut self.unread;
        let read = |line: &lines::Line<'_>| match record::read(line) {
            Ok(record) => take(record),
            Err(Unread::NotJson) => {
                unread[0] += 1;
                Ok(())
            }
            Err(Unread::TooLong) => {
                unread[1] += 1;
                Ok(())
            }
        };
        self.lines.each(read, idle)
    }

    /// Says what was passed over that should not have been there; an error is one of reading.
    fn finish(self, name: &str, stderr: &mut dyn Write) -> io::Result<()> {
        let [bad, long] = self.unread;
        let (torn, result) = self.lines.finish();
        for (count, what) in [(bad + torn, "not JSON"), (long, "longer than 32 MiB")] {
            let (lines, are) = if count == 1 {
                ("line", "is")
            } else {
                ("lines", "are")
            };
            if count > 0 {
                complain(
                    stderr,
                    format_args!("{name}: skipped {count} {lines} that {are} {what}"),
                );
            }
        }
        result
    }
}

/// Writes the events of one rollout; the calls that have no output come back.
fn events(reading: &mut Reading, out: &mut impl Write) -> io::Result<Vec<Vec<u8>>> {
    let mut calls: Calls<Vec<u8>> = Calls::default();
    // Written by one closure and flushed by another.
    let out = RefCell::new(out);
    let take = |record: Record<'_>| {
        let out = &mut **out.borrow_mut();
        match record {
            Record::Call(call) => {
                let mut event = Vec::with_capacity(call.input.len() + 200);
                write_use(&mut event, &call, None)?;
                event.push(b'\n');
                calls.begin(&call, event);
            }
            Record::Ended { id, failed } => calls.ended(&id, failed),
            Record::Output(output) => {
                if let Some(answered) = calls.answer(&output) {
                    out.write_all(&answered.kept)?;
                    write_result(out, &output.id, &output.content, answered.is_error)?;
                    out.write_all(b"\n")?;
                }
            }
            Record::Nested(nested) => {
                write_use(out, &nested.call, calls.parent(&nested))?;
                out.write_all(b"\n")?;
                write_result(out, &nested.call.id, &nested.content, nested.failed)?;
                out.write_all(b"\n")?;
            }
            _ => {}
        }
        Ok(())
    };
    reading.each(take, || out.borrow_mut().flush())?;
    let unanswered = calls.unanswered().into_iter();
    Ok(unanswered.map(|(_, event)| event).collect())
}

/// Adds the calls of one rollout to the summary.
fn summarize(reading: &mut Reading, summary: &mut Summary) -> io::Result<()> {
    let mut calls = Calls::default();
    let take = |record: Record<'_>| {
        match record {
            Record::Call(call) => calls.begin(&call, summary.begin(&call)),
            Record::Ended { id, failed } => calls.ended(&id, failed),
            Record::Output(output) => {
                if let Some(answered) = calls.answer(&output) {
                    summary.answer(answered.kept, &output.content, answered.is_error);
                }
            }
            // What these gave is in the output of the call that they were made in, and would count twice.
            _ => {}
        }
        Ok(())
    };
    reading.each(take, || Ok(()))
}
