//! `plexum-openai parse-rollout`: the tool calls of rollout files, as events or as a table.
//!
//! Events go out as they are found: what is written so far is handed on before every read, so that behind a
//! slow pipe nobody waits for a call that is already here.

use super::flags::{Parsed, usage};
use super::summary::{Screen, Summary};
use super::target;
use crate::error::{Error, Kind, Result, reason};
use crate::rollout::calls::{Calls, write_result, write_use};
use crate::rollout::lines::{self, Lines};
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
pub(crate) fn run(
    parsed: &Parsed,
    stdin: &mut dyn Read,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
) -> Result<u8> {
    let files = files(parsed)?;
    let screen = Screen::of_stdout(parsed)?;
    let out = RefCell::new(BufWriter::with_capacity(64 * 1024, stdout));
    let mut summary = Summary::default();
    let mut status = 0;
    for file in &files {
        let (name, mut input): (String, Box<dyn Read>) = if file == "-" {
            ("stdin".to_owned(), Box::new(&mut *stdin))
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
        let input = Flushing {
            input: &mut input,
            out: &out,
            failure: None,
        };
        let mut reading = Reading {
            lines: Lines::new(input),
            unread: [0; 2],
        };
        let result = if parsed.has("summary") {
            let result = summarize(&mut reading, &mut summary);
            if !parsed.has("all") {
                summary.forget_unanswered();
            }
            result
        } else {
            events(&mut reading, &out).and_then(|unanswered| match parsed.has("all") {
                true => write_lines(&out, &unanswered).map_err(Trouble::Write),
                false => Ok(()),
            })
        };
        reading.tell(&name, stderr);
        if let Some(error) = reading.lines.input().failure.take() {
            return stopped(error, status);
        }
        match result {
            Ok(()) => {}
            Err(Trouble::Write(error)) => return stopped(error, status),
            Err(Trouble::Read(error)) => {
                status = 1;
                complain(
                    stderr,
                    format_args!("cannot read {name}: {}", reason(&error)),
                );
            }
        }
    }
    let mut out = out.into_inner();
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

/// Which side of the pipe failed.
enum Trouble {
    Read(io::Error),
    Write(io::Error),
}

/// A reader that hands on what was written before it may block.
struct Flushing<'a, W: Write> {
    input: &'a mut dyn Read,
    out: &'a RefCell<W>,
    /// Why it could not be handed on.
    failure: Option<io::Error>,
}

impl<W: Write> Read for Flushing<'_, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Err(error) = self.out.borrow_mut().flush() {
            self.failure = Some(error);
            return Err(io::Error::other("stdout failed"));
        }
        self.input.read(buffer)
    }
}

/// One rollout being read.
struct Reading<R> {
    lines: Lines<R>,
    /// How many lines were no JSON, and how many too long.
    unread: [u64; 2],
}

impl<R: Read> Reading<R> {
    /// Gives every record of a tool call to `take`, in order.
    fn each(
        &mut self,
        mut take: impl FnMut(Record<'_>) -> io::Result<()>,
    ) -> std::result::Result<(), Trouble> {
        let wanted = |kind| {
            matches!(
                kind,
                lines::Kind::Call | lines::Kind::Output | lines::Kind::Item
            )
        };
        let mut last = false;
        while !last {
            let line = match self.lines.next(wanted).map_err(Trouble::Read)? {
                Some(line) => Some(line),
                None => {
                    last = true;
                    self.lines.rest(wanted)
                }
            };
            match line.as_ref().map(record::read) {
                None => {}
                Some(Ok(record)) => take(record).map_err(Trouble::Write)?,
                Some(Err(Unread::NotJson)) => self.unread[0] += 1,
                Some(Err(Unread::TooLong)) => self.unread[1] += 1,
            }
        }
        Ok(())
    }

    /// Says what was passed over that should not have been there.
    fn tell(&self, name: &str, stderr: &mut dyn Write) {
        let [bad, long] = self.unread;
        for (count, what) in [
            (bad + self.lines.torn(), "not JSON"),
            (long, "longer than 32 MiB"),
        ] {
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
    }
}

/// Writes the events of one rollout; the calls that have no output come back.
fn events<R: Read, W: Write>(
    reading: &mut Reading<R>,
    out: &RefCell<W>,
) -> std::result::Result<Vec<Vec<u8>>, Trouble> {
    let mut calls: Calls<Vec<u8>> = Calls::default();
    reading.each(|record| {
        let mut out = out.borrow_mut();
        let out = &mut *out;
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
    })?;
    Ok(calls
        .unanswered()
        .into_iter()
        .map(|(_, event)| event)
        .collect())
}

fn write_lines(out: &RefCell<impl Write>, lines: &[Vec<u8>]) -> io::Result<()> {
    lines
        .iter()
        .try_for_each(|line| out.borrow_mut().write_all(line))
}

/// Adds the calls of one rollout to the summary.
fn summarize<R: Read>(
    reading: &mut Reading<R>,
    summary: &mut Summary,
) -> std::result::Result<(), Trouble> {
    let mut calls = Calls::default();
    reading.each(|record| {
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
    })
}
