//! `plexum-openai parse-rollout`: the tool calls of rollout files, as events or as a table.
//!
//! Events go out as they are found: what is written so far is handed on before there is a wait for more, so that
//! behind a slow pipe nobody waits for a call that is already here.

use super::flags::{Parsed, usage};
use super::relay::{self, Failure, Sink};
use super::summary::{Screen, Summary};
use super::{target, written};
use crate::error::{Error, Kind, Result, reason};
use crate::rollout::calls::{Calls, write_result, write_use};
use crate::rollout::open_rollout;
use crate::rollout::record::Record;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::path::Path;

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
    // What is longer goes out as it stands, without being copied.
    let mut out = BufWriter::with_capacity(16 * 1024, stdout);
    let mut summary = Summary::default();
    let mut status = 0;
    for file in &files {
        let (name, opened) = if file == "-" {
            let stdin = io::stdin().as_fd().try_clone_to_owned();
            ("stdin".to_owned(), stdin.map(File::from))
        } else {
            let name = format!("'{}'", Path::new(file).display());
            // A FIFO that was named is meant: `parse-rollout <(zcat …)`. One that a thread id leads to is not.
            let opened = match parsed.operands.is_empty() {
                true => open_rollout(Path::new(file)),
                false => File::open(file),
            };
            (name, opened)
        };
        let input = match opened {
            Ok(input) => input,
            Err(error) => {
                status = 1;
                complain(
                    stderr,
                    format_args!("cannot open {name}: {}", reason(&error)),
                );
                continue;
            }
        };
        let result = if parsed.has("summary") {
            let mut rows = Rows {
                summary: &mut summary,
                calls: Calls::default(),
            };
            let result = relay::run(input, &mut rows);
            if !parsed.has("all") {
                summary.forget_unanswered();
            }
            result
        } else {
            let mut events = Events {
                out: &mut out,
                calls: Calls::default(),
            };
            relay::run(input, &mut events).and_then(|end| {
                if parsed.has("all") {
                    let mut unanswered = events.calls.unanswered().into_iter();
                    unanswered
                        .try_for_each(|(_, event)| out.write_all(&event))
                        .map_err(Failure::Sink)?;
                }
                Ok(end)
            })
        };
        let end = match result {
            Ok(end) => end,
            Err(Failure::Sink(error)) => return written(Err(error), status),
            Err(Failure::Thread(error)) => {
                return Err(Error::os(Kind::Io, "cannot start a thread", error));
            }
        };
        passed_over(&end, &name, stderr);
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

fn complain(stderr: &mut dyn Write, message: fmt::Arguments<'_>) {
    // There is nowhere left to complain about stderr itself.
    let _ = writeln!(stderr, "plexum-openai: {message}");
}

/// Says what was passed over that should not have been there.
fn passed_over(end: &relay::End, name: &str, stderr: &mut dyn Write) {
    for (count, what) in [(end.bad, "not JSON"), (end.long, "longer than 32 MiB")] {
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

/// Writes the events of one rollout.
struct Events<'a, W> {
    out: &'a mut W,
    /// With the event of each open call.
    calls: Calls<Vec<u8>>,
}

/// A record, and the event if it is a call.
struct Part<'a>(Record<'a>, Vec<u8>);

impl<W: Write> Sink for Events<'_, W> {
    type Part<'a> = Part<'a>;

    fn prepare(record: Record<'_>) -> Part<'_> {
        let mut event = Vec::new();
        if let Record::Call(call) = &record {
            event.reserve(call.input.len() + 200);
            // A `Vec` takes everything.
            let _ = write_use(&mut event, call, None);
            event.push(b'\n');
        }
        Part(record, event)
    }

    fn take(&mut self, Part(record, event): Part<'_>) -> io::Result<()> {
        let (out, calls) = (&mut *self.out, &mut self.calls);
        match record {
            Record::Turn { id, .. } => calls.turn(&id),
            Record::Call(call) => calls.begin(&call, event),
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
}

impl Sink for Rows<'_> {
    type Part<'a> = Record<'a>;

    fn prepare(record: Record<'_>) -> Record<'_> {
        record
    }

    fn take(&mut self, record: Record<'_>) -> io::Result<()> {
        match record {
            Record::Turn { id, .. } => self.calls.turn(&id),
            Record::Call(call) => {
                let place = self.summary.begin(&call);
                self.calls.begin(&call, place);
            }
            Record::Ended { id, failed } => self.calls.ended(&id, failed),
            Record::Output(output) => {
                if let Some(answered) = self.calls.answer(&output) {
                    self.summary
                        .answer(answered.kept, &output.content, answered.is_error);
                }
            }
            // What these gave is in the output of the call that they were made in, and would count twice.
            _ => {}
        }
        Ok(())
    }

    fn pause(&mut self) -> io::Result<()> {
        Ok(())
    }
}
