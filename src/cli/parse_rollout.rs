//! `plexum-openai parse-rollout`: the tool calls of rollout files, as events or as a table.
//!
//! Events go out as they are found: what is written so far is handed on before there is a wait for more, so that
//! behind a slow pipe nobody waits for a call that is already here.

use super::flags::{Parsed, usage};
use super::relay::{self, RecordSink, RelayError, Size, Skipped};
use super::seems;
use super::summary::{Screen, Summary, Sums};
use super::{columns, target, written};
use crate::codex::home::civil;
use crate::error::{Error, Kind, Result, reason};
use crate::os::{Blocking, is_hung_up, open_regular_file};
use crate::rollout::calls::{Calls, MatchedRecord, write_open_result, write_use};
use crate::rollout::packed::Unpacked;
use crate::rollout::record::{Call, Content, Record};
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Runs the subcommand; the result is the exit status.
///
/// # Errors
/// [`Kind::Usage`] and [`Kind::Config`], and [`Kind::Io`] where stdout cannot be written. A file that cannot be
/// read is reported on stderr, and the others are read all the same.
pub(crate) fn run(
    parsed: &Parsed,
    stdout: &mut (dyn Write + Send),
    stderr: &mut dyn Write,
) -> Result<u8> {
    let files = files(parsed)?;
    let screen = Screen::of_stdout(parsed)?;
    let sums = match parsed.text("by")? {
        None | Some("call") => Sums::ByCall,
        Some("tool") => Sums::ByTool,
        Some(word) => {
            return Err(usage(format!("'--by {word}' is neither 'call' nor 'tool'")));
        }
    };
    let is_summary = parsed.has("summary") || parsed.has("by");
    let is_json = !is_summary || parsed.has("json");
    let (messages, follow) = (parsed.has("messages"), parsed.has("follow"));
    if is_summary && (messages || follow) {
        return Err(usage(
            "'--messages' and '--follow' are for events and not for a summary",
        ));
    }
    if follow && files.len() > 1 {
        return Err(usage("'--follow' takes one rollout"));
    }
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
        let opened = file.open(follow);
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
        let result = if is_summary {
            let mut rows = Rows {
                summary: &mut summary,
                calls: Calls::default(),
                filter: &filter,
                given_up: 0,
            };
            let result = relay::run(input, size, false, &mut rows);
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
            let result = relay::run(input, size, messages, &mut events).and_then(|end| {
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
    let result = match (is_summary, parsed.has("json")) {
        (false, _) => Ok(()),
        (true, true) => summary.write_json(&mut out, sums),
        (true, false) => summary.write_table(&mut out, &screen, sums),
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

    fn open(&self, follow: bool) -> Result<(Box<dyn Read + Send>, Size)> {
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
            RolloutSource::Found(_) | RolloutSource::Named(_)
                if follow && file.metadata().is_ok_and(|file| file.is_file()) =>
            {
                Ok((
                    Box::new(Following::new(file, self.path())),
                    Size::SmallOrUnknown,
                ))
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
    format!(",\"file\":{file}").into_bytes()
}

/// The member that says when something was recorded: RFC 3339, in UTC, as codex writes it.
fn time_member(at: Option<u64>) -> String {
    let Some(at) = at else { return String::new() };
    let (seconds, millis) = (at / 1000, at % 1000);
    let (year, month, day) = civil(i64::try_from(seconds / 86_400).unwrap_or(i64::MAX / 2));
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!(
        ",\"time\":\"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z\""
    )
}

/// How codex begins what it says to the model in the user's place.
const OF_CODEX: [&str; 5] = [
    "# AGENTS.md instructions",
    "<environment_context>",
    "<turn_aborted>",
    "<user_instructions>",
    "<user_shell_command>",
];

fn message_event(is_user: bool, text: &str, at: Option<u64>) -> Vec<u8> {
    if is_user && OF_CODEX.iter().any(|head| text.starts_with(head)) {
        return Vec::new();
    }
    let role = if is_user { "user" } else { "assistant" };
    let text = serde_json::Value::from(text);
    let time = time_member(at);
    format!("{{\"type\":\"message\",\"role\":\"{role}\",\"text\":{text}{time}").into_bytes()
}

/// How often a file that is followed is looked at.
const FOLLOW_PAUSE: Duration = Duration::from_millis(100);

/// A file that grows: at its end there is a wait for more, until nobody reads stdout any more.
struct Following {
    file: File,
    path: PathBuf,
    /// How much was read.
    place: u64,
}

impl Following {
    fn new(file: File, path: PathBuf) -> Following {
        Following {
            file,
            path,
            place: 0,
        }
    }

    /// Goes on in the file that has taken the place of this one: consuming a call replaces a rollout by one in which
    /// every line has the same length.
    fn follow_replacement(&mut self) -> io::Result<()> {
        let Ok(now) = fs::metadata(&self.path) else {
            // Between its end and its successor, or gone: there may be one again.
            return Ok(());
        };
        let old = self.file.metadata()?;
        let is_other = (old.dev(), old.ino()) != (now.dev(), now.ino());
        if now.len() < self.place {
            return Err(io::Error::other("it has become shorter"));
        }
        if is_other {
            self.file = open_regular_file(&self.path)?;
            self.file.seek(SeekFrom::Start(self.place))?;
        }
        Ok(())
    }
}

impl Read for Following {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let length = self.file.read(buffer)?;
            if length > 0 || buffer.is_empty() {
                self.place += length as u64;
                return Ok(length);
            }
            if is_hung_up(io::stdout(), FOLLOW_PAUSE) {
                return Ok(0);
            }
            self.follow_replacement()?;
        }
    }
}

/// Writes the events of one rollout.
struct Events<'a, W> {
    out: &'a mut W,
    /// With the event of each open call that is wanted.
    calls: Calls<Vec<u8>>,
    /// Are calls without an output printed, too?
    all: bool,
    filter: &'a Filter<'a>,
    /// The member that each event has where there are several files.
    file: Option<Vec<u8>>,
    /// How many calls without an output were too many to be kept.
    given_up: u64,
}

impl<W: Write> Events<'_, W> {
    /// Writes an event that is not closed; nothing for a call that is not wanted.
    fn write(&mut self, event: &[u8]) -> io::Result<()> {
        if event.is_empty() {
            return Ok(());
        }
        self.out.write_all(event)?;
        self.close()
    }

    fn close(&mut self) -> io::Result<()> {
        self.out
            .write_all(self.file.as_deref().unwrap_or_default())?;
        self.out.write_all(b"}\n")
    }

    fn write_result(
        &mut self,
        id: &str,
        content: &Content<'_>,
        is_error: bool,
        at: Option<u64>,
    ) -> io::Result<()> {
        write_open_result(self.out, id, content, is_error)?;
        self.out.write_all(time_member(at).as_bytes())?;
        self.close()
    }
}

/// A record, and the event if it is a call or a message, without its closing brace.
struct RecordAndEvent<'a>(Record<'a>, Vec<u8>);

fn use_event(call: &Call<'_>, parent: Option<&str>) -> Vec<u8> {
    let mut event = Vec::with_capacity(call.input.len() + 200);
    // A `Vec` takes everything.
    let _ = write_use(&mut event, call, parent, None);
    event.pop();
    event.extend_from_slice(time_member(call.at).as_bytes());
    event
}

impl<W: Write> RecordSink for Events<'_, W> {
    type Part<'a> = RecordAndEvent<'a>;

    fn prepare(record: Record<'_>) -> RecordAndEvent<'_> {
        let event = match &record {
            Record::Call(call) => use_event(call, None),
            Record::Message { is_user, text, at } => message_event(*is_user, text, *at),
            _ => Vec::new(),
        };
        RecordAndEvent(record, event)
    }

    fn take(&mut self, RecordAndEvent(record, event): RecordAndEvent<'_>) -> io::Result<()> {
        let filter = self.filter;
        if let Record::Message { .. } = record {
            return self.write(&event);
        }
        let fed = self.calls.feed(record, |call| match filter.has_tool(call) {
            true => {
                let size = event.len();
                (event, size)
            }
            false => (Vec::new(), 0),
        });
        match fed {
            Some(MatchedRecord::Call { evicted, .. }) => {
                for (_, event) in evicted {
                    self.given_up += 1;
                    if self.all && !filter.errors {
                        self.write(&event)?;
                    }
                }
            }
            Some(MatchedRecord::Output {
                output,
                kept,
                is_error,
            }) if !kept.is_empty() && filter.has_result(is_error) => {
                self.write(&kept)?;
                self.write_result(&output.id, &output.content, is_error, output.at)?;
            }
            Some(MatchedRecord::Complete { call, parent })
                if filter.has_tool(&call.call) && filter.has_result(call.failed) =>
            {
                self.write(&use_event(&call.call, parent.as_deref()))?;
                self.write_result(&call.call.id, &call.content, call.failed, call.call.at)?;
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
            Some(MatchedRecord::Call { evicted, .. }) => self.given_up += evicted.len() as u64,
            Some(MatchedRecord::Output {
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
