//! `parse-rollout`: prints the tool calls of rollout files, as events or as a table.
//!
//! Events are written out before each wait for more input, so that with a slow pipe as input no event is delayed.

use super::flags::{Parsed, usage};
use super::relay::{self, RecordSink, RelayError, RelayReport, Size, SkippedLines};
use super::summary::{GroupBy, Screen, Summary};
use super::{columns, file_type, ignore_broken_pipe, target};
use crate::error::{Error, Kind, Result, reason};
use crate::os::{Blocking, is_hung_up, open_regular_file};
use crate::rollout::calls::{Calls, MatchedRecord, write_open_result, write_use};
use crate::rollout::packed::Unpacked;
use crate::rollout::record::{Call, Content, Record};
use crate::timestamp;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Runs the subcommand and returns its exit status.
///
/// # Errors
/// [`Kind::Usage`]; [`Kind::Config`]; [`Kind::Io`] for stdout and for a rollout named by workspace or thread.
/// A file that cannot be read is reported on stderr, and the others are still read.
pub(crate) fn run(
    parsed: &Parsed,
    stdout: &mut (dyn Write + Send),
    stderr: &mut dyn Write,
) -> Result<u8> {
    let sources = sources(parsed)?;
    let screen = Screen::of_stdout(parsed)?;
    let options = Options::of(parsed, &sources)?;
    let mut terminal;
    let stdout: &mut (dyn Write + Send) = if options.is_json && io::stdout().is_terminal() {
        terminal = columns::JsonTerminal::new(stdout);
        &mut terminal
    } else {
        stdout
    };
    // Longer events bypass this buffer and are not copied.
    let mut out = BufWriter::with_capacity(16 * 1024, stdout);
    let mut summary = Summary::default();
    let mut status = 0;
    for source in &sources {
        match options.read(source, &mut summary, &mut out, stderr) {
            Ok(true) => {}
            Ok(false) => status = 1,
            Err(RelayError::Sink(error)) => return ignore_broken_pipe(Err(error), status),
            Err(RelayError::Thread(error)) => {
                return Err(Error::os(Kind::Io, "cannot start a thread", error));
            }
        }
    }
    let result = match (options.is_summary, options.is_json) {
        (false, _) => Ok(()),
        // That there are no calls is not known.
        _ if status != 0 && summary.is_empty() => Ok(()),
        (true, true) => summary.write_json(&mut out, options.group_by),
        (true, false) => summary.write_table(&mut out, &screen, options.group_by),
    };
    ignore_broken_pipe(result.and_then(|()| out.flush()), status)
}

/// What is printed.
struct Options<'a> {
    is_summary: bool,
    is_json: bool,
    group_by: GroupBy,
    filter: CallFilter<'a>,
    /// Also calls without an output.
    all: bool,
    messages: bool,
    follow: bool,
    /// Whether each event names its file.
    with_file: bool,
}

impl Options<'_> {
    /// # Errors
    /// [`Kind::Usage`].
    fn of<'a>(parsed: &'a Parsed, sources: &[RolloutSource]) -> Result<Options<'a>> {
        let group_by = match parsed.text("by")? {
            None | Some("call") => GroupBy::Call,
            Some("tool") => GroupBy::Tool,
            Some(word) => {
                return Err(usage(format!("'--by {word}' is neither 'call' nor 'tool'")));
            }
        };
        let is_summary = parsed.has("summary") || parsed.has("by");
        let (messages, follow) = (parsed.has("messages"), parsed.has("follow"));
        if is_summary && (messages || follow) {
            return Err(usage(
                "'--messages' and '--follow' cannot be used with '--summary' or '--by'",
            ));
        }
        if follow && sources.len() > 1 {
            return Err(usage("'--follow' accepts only one rollout"));
        }
        if follow && sources.iter().any(RolloutSource::is_packed) {
            return Err(usage(
                "'--follow' cannot read a packed rollout, which does not grow",
            ));
        }
        Ok(Options {
            is_summary,
            is_json: !is_summary || parsed.has("json"),
            group_by,
            filter: CallFilter {
                tool: parsed.text("tool")?,
                errors: parsed.has("errors"),
            },
            all: parsed.has("all"),
            messages,
            follow,
            with_file: sources.len() > 1,
        })
    }

    /// Reads a rollout to its end, into `summary` or as events to `out`. Returns whether all of it was read; what was
    /// not is reported on `stderr`.
    ///
    /// # Errors
    /// An event could not be written, or no thread could be started.
    fn read<W: Write + Send>(
        &self,
        source: &RolloutSource,
        summary: &mut Summary,
        out: &mut W,
        stderr: &mut dyn Write,
    ) -> std::result::Result<bool, RelayError> {
        let name = source.name();
        let (mut input, size) = match source.open(self.follow) {
            Ok(opened) => opened,
            Err(error) => {
                print_message(stderr, format_args!("{error}"));
                return Ok(false);
            }
        };
        let head = match file_type::read_head(&mut input) {
            Ok(head) => head,
            Err(error) => {
                report_unreadable(&error, &name, stderr);
                return Ok(false);
            }
        };
        let input = head.as_slice().chain(input);
        let (report, evicted) = if self.is_summary {
            self.summarize(input, size, summary)?
        } else {
            self.write_events(input, size, source, out)?
        };
        report_evicted(evicted, &name, stderr);
        if report.read.is_ok()
            && !report.has_records
            && let Some(what) = file_type::describe_non_rollout(&head)
        {
            print_message(stderr, format_args!("{name} is not a rollout: {what}"));
            return Ok(false);
        }
        report_skipped(&report, &name, stderr);
        match report.read {
            Ok(()) => Ok(true),
            Err(error) => {
                report_unreadable(&error, &name, stderr);
                Ok(false)
            }
        }
    }

    /// Adds a rollout's calls to `summary`. Returns what was read and how many open calls were evicted.
    fn summarize(
        &self,
        input: impl Read + Send,
        size: Size,
        summary: &mut Summary,
    ) -> std::result::Result<(RelayReport, u64), RelayError> {
        let mut collector = SummaryCollector {
            summary,
            calls: Calls::default(),
            filter: &self.filter,
            evicted: 0,
        };
        let report = relay::run(input, size, false, &mut collector)?;
        let evicted = collector.evicted;
        if !self.all || self.filter.errors {
            summary.remove_calls_without_output();
        }
        Ok((report, evicted))
    }

    /// Writes a rollout's events to `out`. Returns what was read and how many open calls were evicted.
    fn write_events<W: Write + Send>(
        &self,
        input: impl Read + Send,
        size: Size,
        source: &RolloutSource,
        out: &mut W,
    ) -> std::result::Result<(RelayReport, u64), RelayError> {
        let mut events = EventWriter {
            out,
            calls: Calls::default(),
            all: self.all,
            filter: &self.filter,
            file: self.with_file.then(|| file_member(&source.path())),
            evicted: 0,
        };
        let report = relay::run(input, size, self.messages, &mut events)?;
        if self.all && !self.filter.errors {
            events
                .calls
                .unanswered()
                .into_iter()
                .try_for_each(|(_, event)| events.write(&event))
                .map_err(RelayError::Sink)?;
        }
        Ok((report, events.evicted))
    }
}

/// An input.
enum RolloutSource {
    Stdin,
    /// An operand, which may be a FIFO or `<(…)`.
    Operand(OsString),
    /// The rollout of a thread.
    Thread(PathBuf),
}

impl RolloutSource {
    fn name(&self) -> String {
        match self {
            RolloutSource::Stdin => "stdin".to_owned(),
            RolloutSource::Operand(file) => format!("'{}'", Path::new(file).display()),
            RolloutSource::Thread(path) => format!("'{}'", path.display()),
        }
    }

    fn path(&self) -> PathBuf {
        match self {
            RolloutSource::Stdin => PathBuf::from("-"),
            RolloutSource::Operand(file) => PathBuf::from(file),
            RolloutSource::Thread(path) => path.clone(),
        }
    }

    fn is_packed(&self) -> bool {
        self.path().extension().is_some_and(|end| end == "zst")
    }

    fn open(&self, follow: bool) -> Result<(Box<dyn Read + Send>, Size)> {
        let opened = match self {
            RolloutSource::Stdin => io::stdin().as_fd().try_clone_to_owned().map(File::from),
            RolloutSource::Operand(file) => File::open(file),
            RolloutSource::Thread(path) => open_regular_file(path),
        };
        let file = opened
            .map_err(|error| Error::os(Kind::Io, format!("cannot open {}", self.name()), error))?;
        match self {
            RolloutSource::Thread(_) | RolloutSource::Operand(_) if self.is_packed() => {
                let unpacked = Unpacked::new(file, &self.path())?;
                Ok((Box::new(unpacked), Size::SmallOrUnknown))
            }
            RolloutSource::Thread(_) | RolloutSource::Operand(_)
                if follow && file.metadata().is_ok_and(|file| file.is_file()) =>
            {
                Ok((
                    Box::new(FollowedFile::new(file, self.path())),
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

/// The inputs that the command line names.
fn sources(parsed: &Parsed) -> Result<Vec<RolloutSource>> {
    if !parsed.operands.is_empty() && (parsed.has("workspace") || parsed.has("thread")) {
        return Err(usage(
            "FILE and '--workspace' or '--thread' both name a rollout: give one of them",
        ));
    }
    if let Some(rollout) = target::find_rollout(parsed)? {
        return Ok(vec![RolloutSource::Thread(rollout)]);
    }
    if parsed.operands.is_empty() {
        return Ok(vec![RolloutSource::Stdin]);
    }
    let operands = parsed.operands.iter().map(|file| match file.to_str() {
        Some("-") => RolloutSource::Stdin,
        _ => RolloutSource::Operand(file.clone()),
    });
    Ok(operands.collect())
}

fn print_message(stderr: &mut dyn Write, message: fmt::Arguments<'_>) {
    // An error of stderr cannot be reported anywhere.
    let _ = writeln!(
        stderr,
        "plexum-openai: {}",
        columns::sanitize(&message.to_string())
    );
}

fn report_unreadable(error: &io::Error, name: &str, stderr: &mut dyn Write) {
    print_message(
        stderr,
        format_args!("cannot read {name}: {}", reason(error)),
    );
}

/// Reports the calls that were evicted because too many were open.
fn report_evicted(count: u64, name: &str, stderr: &mut dyn Write) {
    if count > 0 {
        print_message(
            stderr,
            format_args!(
                "{name}: {count} calls had no output yet when too many calls were open; their later outputs are not printed"
            ),
        );
    }
}

/// Reports the lines that were skipped as damaged.
fn report_skipped(report: &RelayReport, name: &str, stderr: &mut dyn Write) {
    for (SkippedLines { count, first }, what) in [
        (report.not_json, "not JSON"),
        (report.too_long, "longer than 32 MiB"),
    ] {
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
            print_message(
                stderr,
                format_args!("{name}: skipped {count} {lines} that {are} {what}{place}"),
            );
        }
    }
}

/// The filter of `--tool` and `--errors`.
struct CallFilter<'a> {
    tool: Option<&'a str>,
    errors: bool,
}

impl CallFilter<'_> {
    fn allows_call(&self, call: &Call<'_>) -> bool {
        self.tool.is_none_or(|tool| call.name == tool)
    }

    fn allows_result(&self, is_error: bool) -> bool {
        is_error || !self.errors
    }
}

/// The JSON member with an event's file, to be appended to the others.
fn file_member(path: &Path) -> Vec<u8> {
    let file = serde_json::Value::from(path.to_string_lossy()).to_string();
    format!(",\"file\":{file}").into_bytes()
}

/// Writes the JSON member with a record's time, given in milliseconds since 1970: RFC 3339 in UTC, as in the rollout.
fn write_time(out: &mut impl Write, at: Option<u64>) -> io::Result<()> {
    let Some(at) = at else { return Ok(()) };
    out.write_all(b",\"time\":\"")?;
    out.write_all(&timestamp::format(at))?;
    out.write_all(b"\"")
}

/// How messages begin that codex itself adds in the user's role.
const INJECTED_PREFIXES: [&str; 5] = [
    "# AGENTS.md instructions",
    "<environment_context>",
    "<turn_aborted>",
    "<user_instructions>",
    "<user_shell_command>",
];

/// The event of a message, without its closing brace; empty for a message that codex added.
fn message_event(is_user: bool, text: &str, at: Option<u64>) -> Vec<u8> {
    if is_user
        && INJECTED_PREFIXES
            .iter()
            .any(|prefix| text.starts_with(prefix))
    {
        return Vec::new();
    }
    let role = if is_user { "user" } else { "assistant" };
    let text = serde_json::Value::from(text);
    let mut event =
        format!("{{\"type\":\"message\",\"role\":\"{role}\",\"text\":{text}").into_bytes();
    // Writing to a `Vec` cannot fail.
    let _ = write_time(&mut event, at);
    event
}

/// How often a followed file is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// A file that grows. At its end, reading waits for more, until the reader of stdout has closed it.
struct FollowedFile {
    file: File,
    path: PathBuf,
    /// How many bytes were read.
    offset: u64,
}

impl FollowedFile {
    fn new(file: File, path: PathBuf) -> FollowedFile {
        FollowedFile {
            file,
            path,
            offset: 0,
        }
    }

    /// Continues in the file that has replaced this one: consuming a call replaces the rollout, and every line keeps
    /// its length.
    fn follow_replacement(&mut self) -> io::Result<()> {
        let Ok(now) = fs::metadata(&self.path) else {
            // It was removed, and may come back.
            return Ok(());
        };
        let old = self.file.metadata()?;
        let is_other = (old.dev(), old.ino()) != (now.dev(), now.ino());
        if now.len() < self.offset {
            return Err(io::Error::other("it was truncated while it was followed"));
        }
        if is_other {
            self.file = open_regular_file(&self.path)?;
            self.file.seek(SeekFrom::Start(self.offset))?;
        }
        Ok(())
    }
}

impl Read for FollowedFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let length = self.file.read(buffer)?;
            if length > 0 || buffer.is_empty() {
                self.offset += length as u64;
                return Ok(length);
            }
            if is_hung_up(io::stdout(), POLL_INTERVAL) {
                return Ok(0);
            }
            self.follow_replacement()?;
        }
    }
}

/// Writes the events of one rollout.
struct EventWriter<'a, W> {
    out: &'a mut W,
    /// Each open call with its event; empty where the filter rejects it.
    calls: Calls<Vec<u8>>,
    /// Whether calls without an output are printed too.
    all: bool,
    filter: &'a CallFilter<'a>,
    /// The `file` member of each event, where there are several files.
    file: Option<Vec<u8>>,
    /// How many open calls were evicted.
    evicted: u64,
}

impl<W: Write> EventWriter<'_, W> {
    /// Writes an event that has no closing brace yet; an empty one is ignored.
    fn write(&mut self, event: &[u8]) -> io::Result<()> {
        if event.is_empty() {
            return Ok(());
        }
        self.out.write_all(event)?;
        self.close()
    }

    /// Writes the end of an event.
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
        write_time(self.out, at)?;
        self.close()
    }
}

/// A record, and the event of a call or a message, without its closing brace.
struct RecordAndEvent<'a>(Record<'a>, Vec<u8>);

fn use_event(call: &Call<'_>, parent: Option<&str>) -> Vec<u8> {
    let mut event = Vec::with_capacity(call.input.len() + 200);
    // Writing to a `Vec` cannot fail.
    let _ = write_use(&mut event, call, parent, None);
    event.pop();
    let _ = write_time(&mut event, call.at);
    event
}

impl<W: Write> RecordSink for EventWriter<'_, W> {
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
        let matched = self
            .calls
            .feed(record, |call| match filter.allows_call(call) {
                true => {
                    let size = event.len();
                    (event, size)
                }
                false => (Vec::new(), 0),
            });
        match matched {
            Some(MatchedRecord::Call { evicted, .. }) => {
                for (_, event) in evicted {
                    self.evicted += 1;
                    if self.all && !filter.errors {
                        self.write(&event)?;
                    }
                }
            }
            Some(MatchedRecord::Output {
                output,
                kept,
                is_error,
            }) if !kept.is_empty() && filter.allows_result(is_error) => {
                self.write(&kept)?;
                self.write_result(&output.id, &output.content, is_error, output.at)?;
            }
            Some(MatchedRecord::Complete { call, parent })
                if filter.allows_call(&call.call) && filter.allows_result(call.failed) =>
            {
                self.write(&use_event(&call.call, parent.as_deref()))?;
                self.write_result(&call.call.id, &call.content, call.failed, call.call.at)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Adds the calls of one rollout to the summary.
struct SummaryCollector<'a> {
    summary: &'a mut Summary,
    /// Each open call with the index of its row; `None` where the filter rejects it.
    calls: Calls<Option<usize>>,
    filter: &'a CallFilter<'a>,
    /// How many open calls were evicted.
    evicted: u64,
}

impl RecordSink for SummaryCollector<'_> {
    type Part<'a> = Record<'a>;

    fn prepare(record: Record<'_>) -> Record<'_> {
        record
    }

    fn take(&mut self, record: Record<'_>) -> io::Result<()> {
        let (filter, summary) = (self.filter, &mut *self.summary);
        let matched = self.calls.feed(record, |call| {
            let row = filter.allows_call(call).then(|| summary.add_call(call));
            (row, 0)
        });
        match matched {
            Some(MatchedRecord::Call { evicted, .. }) => self.evicted += evicted.len() as u64,
            Some(MatchedRecord::Output {
                output,
                kept: Some(row),
                is_error,
            }) if self.filter.allows_result(is_error) => {
                self.summary.add_output(row, &output.content, is_error);
            }
            // The calls of a code mode script are part of its own call's output, and would count twice.
            _ => {}
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
