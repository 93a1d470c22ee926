//! `turn`: runs one turn in a workspace, as the daemon would.
//!
//! The assistant's text or the canonical events go to stdout, the progress of codex goes to stderr.

use super::flags::{Parsed, expand_home, usage};
use super::progress::{Progress, StatusLine, Verbosity};
use super::{color, columns, target, unbuffered_stdout};
use crate::backend::emitter::Step;
use crate::backend::emitter::{EventSink, Level};
use crate::canonical::{ContextUse, Status, StopReason, TurnEvent, TurnResult};
use crate::codex::failure::is_retry;
use crate::config::BackendChoice;
use crate::daemon::{check_schema_text, is_effort};
use crate::error::{Error, Kind, Result, reason};
use crate::os::{self, CancelToken};
use crate::paths::Paths;
use crate::turn::images::{Image, ImageSource};
use crate::turn::queue::Queue;
use crate::turn::{self, Context, History, PromptBlock, ThreadChoice, TurnRequest};
use serde::Serialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

/// How long a write waits for a blocked reader of stdout once the turn is cancelled.
const WRITE_TIMEOUT_AFTER_CANCEL: Duration = Duration::from_secs(1);
/// How long the turn may take to clean up once its processes are killed.
const CLEANUP_TIMEOUT: Duration = Duration::from_millis(500);

/// Runs the subcommand and returns its exit status.
///
/// # Errors
/// A wrong command line or config, a prompt or an image that cannot be read, and those of [`turn::run`]. A turn that
/// fails later is reported on stderr and by the exit status.
pub(crate) fn run(parsed: &Parsed) -> Result<u8> {
    let paths = Paths::from_env();
    let loaded = paths.load_config()?;
    for warning in &loaded.warnings {
        print_message(&format!("warning: {warning}"));
    }
    let mut config = loaded.config;
    let style = OutputStyle::parse(parsed)?;
    if let Some(name) = parsed.text("backend")? {
        config.backend = BackendChoice::named(name).ok_or_else(|| {
            usage(format!(
                "'--backend {name}' is neither 'exec' nor 'app-server'"
            ))
        })?;
    }
    if let Some(seconds) = seconds(parsed, "timeout")? {
        config.turn_timeout = (!seconds.is_zero()).then_some(seconds);
    }
    if let Some(seconds) = seconds(parsed, "wait")? {
        config.busy_wait = seconds;
    }
    config.reasoning_events |= style.verbosity == Verbosity::Verbose && !style.json;
    let color = color::is_enabled(parsed, &io::stderr())?;
    let workspace = match parsed.directory("workspace")? {
        Some(directory) => directory,
        None => std::env::current_dir().map_err(|error| {
            Error::os(Kind::Io, "cannot determine the current directory", error)
        })?,
    };
    let request = request(parsed)?;
    let workspace = turn::prepare_workspace(&workspace)?;
    let cancel = CancelToken::new()?;
    let queue = Queue::default();
    let progress = Progress::start(color, &workspace, style.verbosity);
    let signal = Arc::new(AtomicI32::new(0));
    {
        let (cancel, queue, signal) = (cancel.clone(), queue.clone(), Arc::clone(&signal));
        let status_line = progress.status_line().clone();
        os::on_end_signal(move |number| {
            if signal.swap(number, Ordering::SeqCst) != 0 {
                kill_and_exit(number, &status_line);
            }
            cancel.cancel();
            queue.wake();
            status_line.show_cancel_notice("cancelling the turn; Ctrl-C kills it at once");
        })?;
    }
    os::stop_all_on_terminal_stop()?;
    let context = Context {
        config,
        places: paths,
        backends: Arc::default(),
    };
    let stdout = Stdout {
        stdout: unbuffered_stdout()?,
        cancel: cancel.clone(),
    };
    let mut printer = Printer::new(style, stdout, cancel.clone(), progress);
    let ticket = queue.join(&workspace);
    let result = turn::run(
        &request,
        &ticket,
        &context,
        &cancel,
        None,
        None,
        &mut printer,
    );
    printer.print_held_warning();
    let result = result?;
    printer.print_result(&result);
    context.backends.end();
    let signal = signal.load(Ordering::SeqCst);
    Ok(match result.stop_reason {
        StopReason::Cancelled if signal != 0 => u8::try_from(128 + signal).unwrap_or(1),
        // Even a successful turn fails if its output could not be written.
        _ if printer.write_failed => 1,
        _ if printer.stdout_closed => 0,
        StopReason::EndTurn => 0,
        StopReason::Cancelled | StopReason::Error => 1,
    })
}

/// What is written to stdout and stderr.
#[derive(Clone, Copy, Debug)]
struct OutputStyle {
    json: bool,
    /// Whether only the assistant's last message is written.
    last: bool,
    verbosity: Verbosity,
}

impl OutputStyle {
    fn parse(parsed: &Parsed) -> Result<OutputStyle> {
        let (json, last) = (parsed.has("json"), parsed.has("last"));
        if json && last {
            return Err(usage(
                "'--json' prints all events, '--last' only the last message: give one of them",
            ));
        }
        let verbosity = match (parsed.has("quiet"), parsed.has("verbose")) {
            (true, true) => return Err(usage("'--quiet' and '--verbose' cannot be used together")),
            (true, false) => Verbosity::Quiet,
            (false, _) if json => Verbosity::Warnings,
            (false, true) => Verbosity::Verbose,
            (false, false) => Verbosity::Normal,
        };
        Ok(OutputStyle {
            json,
            last,
            verbosity,
        })
    }
}

/// The value of this flag, in whole seconds.
fn seconds(parsed: &Parsed, flag: &str) -> Result<Option<Duration>> {
    let Some(text) = parsed.text(flag)? else {
        return Ok(None);
    };
    match text.parse() {
        Ok(seconds) => Ok(Some(Duration::from_secs(seconds))),
        Err(_) => Err(usage(format!(
            "'--{flag} {text}' is not a whole number of seconds"
        ))),
    }
}

/// The choice that `--fresh` and `--thread` make.
fn thread_choice(parsed: &Parsed) -> Result<ThreadChoice> {
    match (parsed.has("fresh"), parsed.text("thread")?) {
        (true, Some(_)) => Err(usage(
            "'--fresh' starts a new thread, '--thread' resumes one: give one of them",
        )),
        (true, None) => Ok(ThreadChoice::New),
        (false, _) => {
            let thread = target::parse_thread(parsed)?;
            Ok(thread.map_or(ThreadChoice::Stored, ThreadChoice::Adopted))
        }
    }
}

/// The content of the file that `--output-schema` names, checked to be a JSON Schema.
fn output_schema(parsed: &Parsed) -> Result<Option<String>> {
    let Some(path) = parsed.value("output-schema").map(expand_home) else {
        return Ok(None);
    };
    let shown = format!("the schema '{}'", path.display());
    let schema = std::fs::read_to_string(&path)
        .map_err(|error| Error::os(Kind::Usage, format!("cannot read {shown}"), error))?;
    check_schema_text(&schema, &shown)?;
    Ok(Some(schema))
}

/// Handles a second signal: kills all processes of the turn, then ends this process by the signal.
fn kill_and_exit(signal: i32, status_line: &StatusLine) -> ! {
    os::kill_everything_below();
    // With codex dead the turn ends by itself and cleans up, unless it is blocked in a write to stdout.
    std::thread::park_timeout(CLEANUP_TIMEOUT);
    status_line.try_end();
    os::end_by(signal);
}

fn request(parsed: &Parsed) -> Result<TurnRequest> {
    let text = prompt_text(parsed)?;
    if text.trim().is_empty() {
        return Err(usage(
            "the prompt is empty: give it as an argument or on stdin",
        ));
    }
    let mut prompt = vec![PromptBlock::Text(text)];
    for path in parsed.all("image") {
        let path = std::path::absolute(expand_home(path))
            .map_err(|error| Error::os(Kind::Usage, format!("the image {path:?}"), error))?;
        let unreadable = |error| {
            Error::os(
                Kind::Io,
                format!("cannot read the image '{}'", path.display()),
                error,
            )
        };
        // Opening a FIFO could block for ever.
        if !path.metadata().map_err(unreadable)?.is_file() {
            let message = format!("the image '{}' is not a regular file", path.display());
            return Err(Error::new(Kind::Io, message));
        }
        os::open_options()
            .read(true)
            .open(&path)
            .map_err(unreadable)?;
        prompt.push(PromptBlock::Image(Image {
            name: path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            source: ImageSource::Path(path),
        }));
    }
    Ok(TurnRequest {
        model: parsed.text("model")?.unwrap_or_default().to_owned(),
        agent_id: parsed.text("agent-id")?.map(str::to_owned),
        system: parsed
            .text("system")?
            .filter(|text| !text.trim().is_empty())
            .map(str::to_owned),
        prompt: vec![prompt],
        history: History::default(),
        warnings: Vec::new(),
        thread: thread_choice(parsed)?,
        output_schema: output_schema(parsed)?,
        reasoning_effort: match parsed.text("effort")? {
            Some(effort) if is_effort(effort) => Some(effort.to_owned()),
            Some(effort) => {
                return Err(usage(format!(
                    "'--effort {effort}' is not a word such as 'low' or 'high'"
                )));
            }
            None => None,
        },
        binary: match parsed.text("binary")? {
            Some("") => return Err(usage("'--binary' needs a path")),
            binary => binary.map(str::to_owned),
        },
    })
}

/// Reads the prompt: the operand, stdin, or both.
fn prompt_text(parsed: &Parsed) -> Result<String> {
    let (dashes, prompts): (Vec<_>, Vec<_>) =
        parsed.operands.iter().partition(|operand| *operand == "-");
    let Some(prompt) = prompts.first() else {
        return read_stdin();
    };
    let prompt = prompt
        .to_str()
        .ok_or_else(|| usage(format!("the prompt is not valid UTF-8: {prompt:?}")))?;
    if dashes.is_empty() {
        if os::has_input(io::stdin()) {
            print_message("stdin was not read: add '-' after the prompt to append it");
        }
        return Ok(prompt.to_owned());
    }
    let input = read_stdin()?;
    Ok(match input.trim().is_empty() {
        true => prompt.to_owned(),
        false => format!(
            "{prompt}\n\n<stdin>\n{}\n</stdin>",
            input.trim_end_matches('\n')
        ),
    })
}

fn read_stdin() -> Result<String> {
    let mut stdin = io::stdin();
    if stdin.is_terminal() {
        print_message("reading the prompt from the terminal; end it with Ctrl-D");
    }
    let mut bytes = Vec::new();
    stdin
        .read_to_end(&mut bytes)
        .map_err(|error| Error::os(Kind::Io, "cannot read the prompt from stdin", error))?;
    String::from_utf8(bytes)
        .map_err(|_| Error::new(Kind::Usage, "the prompt on stdin is not valid UTF-8"))
}

fn print_message(message: &str) {
    // A warning quotes keys of the config file, which are untrusted.
    let message = columns::sanitize(message);
    // An error of stderr cannot be reported anywhere.
    let _ = writeln!(std::io::stderr(), "plexum-openai: {message}");
}

/// The last line of `--json`.
#[derive(Serialize)]
struct ResultLine<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(flatten)]
    result: &'a TurnResult,
}

/// The prefix of warnings that come from codex itself.
const CODEX_PREFIX: &str = "codex: ";

/// Prints a turn: events to stdout, progress to stderr.
struct Printer {
    style: OutputStyle,
    /// With `--last`: the text of the latest message, and its number.
    last: String,
    last_number: usize,
    out: BufWriter<Stdout>,
    /// A buffer that is reused for each event.
    line: Vec<u8>,
    /// Whether stdout is a terminal, most likely the one that shows the progress.
    to_terminal: bool,
    /// The reader of stdout has closed it: the turn is cancelled, without a message.
    stdout_closed: bool,
    /// Another error of stdout, which was reported.
    write_failed: bool,
    cancel: CancelToken,
    /// A newline was written early, by [`Printer::end_line`]: the one that the next text begins with is left out.
    newline_written: bool,
    /// The last text has not ended its line.
    line_open: bool,
    /// Reasoning that is not shown yet.
    thought: String,
    progress: Progress,
    /// The latest warning of codex. codex reports most fatal errors twice, as a warning and in the turn's error; it is
    /// held until the next event shows whether it is such a duplicate.
    held_warning: Option<String>,
    /// The id of the image generation call whose result is expected.
    image: Option<String>,
}

impl Printer {
    fn new(style: OutputStyle, stdout: Stdout, cancel: CancelToken, progress: Progress) -> Printer {
        Printer {
            style,
            last: String::new(),
            last_number: 0,
            out: BufWriter::with_capacity(64 << 10, stdout),
            line: Vec::new(),
            to_terminal: io::stdout().is_terminal(),
            stdout_closed: false,
            write_failed: false,
            cancel,
            newline_written: false,
            line_open: false,
            thought: String::new(),
            progress,
            held_warning: None,
            image: None,
        }
    }

    /// Writes to stdout; the status line is hidden until the next flush.
    fn write(&mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) {
        if self.stdout_closed || self.write_failed {
            return;
        }
        if self.to_terminal {
            self.progress.status_line().suspend();
        }
        if let Err(error) = write(&mut self.out) {
            self.on_write_error(&error);
        }
    }

    fn write_json_line(&mut self, line: &[u8]) {
        if self.to_terminal {
            let line = String::from_utf8_lossy(line);
            let line = columns::json_for_terminal(&line);
            self.write(|out| out.write_all(line.as_bytes()));
        } else {
            self.write(|out| out.write_all(line));
        }
    }

    /// Cancels the turn after an error of stdout; a closed pipe is not reported.
    fn on_write_error(&mut self, error: &io::Error) {
        if error.kind() == io::ErrorKind::BrokenPipe {
            self.stdout_closed = true;
        } else if !self.write_failed {
            self.write_failed = true;
            let message = format!("cannot write to stdout: {}", reason(error));
            self.progress.status_line().error("io", &message);
        }
        self.cancel.cancel();
    }

    fn write_text(&mut self, text: &str) {
        let shown = match self.to_terminal {
            true => columns::sanitize(text),
            false => text.into(),
        };
        let shown = match self.newline_written {
            true => shown.strip_prefix('\n').unwrap_or(&shown),
            false => &shown,
        };
        self.newline_written = false;
        self.line_open = !shown.ends_with('\n');
        self.write(|out| out.write_all(shown.as_bytes()));
    }

    /// Ends the line after a message at once, so that anything else on the terminal begins on a new line. The next
    /// message begins with two newlines, of which one is then left out: the bytes of stdout are the same in the end.
    fn end_line(&mut self) {
        if std::mem::take(&mut self.line_open) {
            self.newline_written = true;
            self.write(|out| out.write_all(b"\n"));
        }
    }

    fn show_thought(&mut self) {
        let thought = std::mem::take(&mut self.thought);
        if !thought.is_empty() {
            self.prepare_stderr();
            self.progress.status_line().thinking(&thought);
        }
    }

    /// Flushes stdout before a line is written to stderr. On a terminal an open line of text is ended first; elsewhere
    /// stdout has exactly the bytes of the text.
    fn prepare_stderr(&mut self) {
        if self.to_terminal {
            self.end_line();
        }
        self.flush();
    }

    fn print_held_warning(&mut self) {
        if let Some(message) = self.held_warning.take() {
            self.prepare_stderr();
            self.progress.status_line().warn(&message);
        }
    }

    /// Writes all pending output, the result, and the last line of the progress.
    fn print_result(&mut self, result: &TurnResult) {
        self.print_held_warning();
        self.show_thought();
        let last = std::mem::take(&mut self.last);
        if !last.is_empty() {
            self.write_text(last.trim_start_matches('\n'));
        }
        self.end_line();
        if self.style.json {
            let line = ResultLine {
                kind: "result",
                result,
            };
            let mut line = serde_json::to_vec(&line).expect("plain structs");
            line.push(b'\n');
            self.write_json_line(&line);
        }
        self.flush();
        if !self.stdout_closed {
            let usage = result.usage.total;
            let (word, good) = match result.stop_reason {
                StopReason::EndTurn if !self.write_failed => ("done", true),
                StopReason::EndTurn | StopReason::Error => ("failed", false),
                StopReason::Cancelled => ("cancelled", false),
            };
            let rest = format!(
                "{} tokens in ({} from cache), {} out{}; thread {}",
                usage.input_tokens,
                usage.cache_read_tokens,
                usage.output_tokens,
                context_fill(result),
                result.thread_id.as_deref().unwrap_or("unknown"),
            );
            self.progress.status_line().finish(word, good, &rest);
        }
    }
}

/// The use of the context window for the last line; empty where it is unknown or below 1%.
fn context_fill(result: &TurnResult) -> String {
    match result.telemetry.context {
        Some(ContextUse {
            tokens,
            window: Some(window @ 1..),
        }) if tokens >= window / 100 => {
            format!("; context {}% full", tokens.saturating_mul(100) / window)
        }
        _ => String::new(),
    }
}

impl Printer {
    /// A line about a generated image, made from the event of its result; `None` for other events.
    fn generated_image_line(&mut self, event: &[u8]) -> Option<String> {
        #[derive(serde::Deserialize)]
        struct CallEvent<'a> {
            #[serde(borrow)]
            id: Cow<'a, str>,
            name: Option<Cow<'a, str>>,
            content: Option<&'a RawValue>,
        }
        #[derive(serde::Deserialize)]
        struct Block<'a> {
            path: Option<PathBuf>,
            data: Option<Cow<'a, str>>,
        }
        // Most events are long and of other tools: a search rejects them unparsed. Names and ids are not escaped.
        let contains = |word: &str| memchr::memmem::find(event, word.as_bytes()).is_some();
        if !contains("image_generation") && !self.image.as_deref().is_some_and(contains) {
            return None;
        }
        let call: CallEvent<'_> = serde_json::from_slice(event).ok()?;
        if let Some(name) = call.name {
            self.image = (name == "image_generation").then(|| call.id.into_owned());
            return None;
        }
        if self.image.as_deref() != Some(&*call.id) {
            return None;
        }
        let blocks: Vec<Block<'_>> = serde_json::from_str(call.content?.get()).ok()?;
        Some(match blocks.into_iter().next()? {
            Block {
                path: Some(path), ..
            } => format!("image: {}", path.display()),
            // Base64 has four characters for three bytes.
            Block { data, .. } => format!(
                "image of {} kB, which codex has not saved; '--json' prints it",
                (data?.len() / 4 * 3).div_ceil(1000)
            ),
        })
    }
}

impl EventSink for Printer {
    fn event(&mut self, event: &TurnEvent<'_>) {
        if let TurnEvent::Error { error } = event
            && let Some(warning) = &self.held_warning
            && error
                .message
                .contains(warning.trim_start_matches(CODEX_PREFIX))
        {
            self.held_warning = None;
        }
        self.print_held_warning();
        if self.style.json {
            // serde writes an event in a dozen small pieces, which is faster to memory than to the writer.
            let mut line = std::mem::take(&mut self.line);
            line.clear();
            // Writing to a `Vec` cannot fail.
            let _ = serde_json::to_writer(&mut line, event);
            line.push(b'\n');
            self.write_json_line(&line);
            self.line = line;
        }
        match event {
            _ if self.style.json => {}
            TurnEvent::TextDelta { text, message } if self.style.last => {
                if *message != self.last_number {
                    self.last.clear();
                    self.last_number = *message;
                }
                self.last.push_str(text);
            }
            TurnEvent::TextDelta { text, .. } => {
                self.show_thought();
                self.write_text(text);
            }
            TurnEvent::ThinkingDelta { text } => {
                self.thought.push_str(text);
            }
            _ => {}
        }
        if let TurnEvent::Status { state, detail, .. } = event {
            self.prepare_stderr();
            let status_line = self.progress.status_line();
            match state {
                Status::Queued => status_line.waiting(detail.as_deref().unwrap_or("queued")),
                Status::Running => status_line.working(),
                // No permanent line: there is a warning about it, too.
                Status::Retrying => status_line.retrying(),
                Status::Compacting => status_line.compacting(),
                Status::Compacted => status_line.note("the conversation was compacted"),
            }
        } else if !matches!(event, TurnEvent::MessageStart | TurnEvent::Error { .. }) {
            self.progress.status_line().working();
        }
        // With `--json` the error is among the events.
        if let TurnEvent::Error { error } = event
            && !self.style.json
        {
            self.prepare_stderr();
            let status_line = self.progress.status_line();
            status_line.error(error.code, &error.message);
        }
    }

    fn raw_event(&mut self, event: &[u8]) {
        if self.style.json {
            let line = [event, b"\n"].concat();
            self.write_json_line(&line);
        } else if let Some(line) = self.generated_image_line(event) {
            self.prepare_stderr();
            self.progress.status_line().note(&line);
        }
    }

    fn log(&mut self, level: Level, message: &str) {
        match level {
            Level::Warn if message.starts_with(CODEX_PREFIX) && !is_retry(message) => {
                self.print_held_warning();
                self.held_warning = Some(message.to_owned());
            }
            Level::Warn => {
                self.print_held_warning();
                self.prepare_stderr();
                self.progress.status_line().warn(message);
            }
            Level::Debug => log::debug!("{message}"),
        }
    }

    fn text_ends(&mut self) {
        self.end_line();
        self.show_thought();
    }

    fn step(&mut self, step: &Step) {
        self.print_held_warning();
        self.prepare_stderr();
        self.progress.status_line().step(step);
    }

    fn flush(&mut self) {
        if !self.stdout_closed
            && !self.write_failed
            && let Err(error) = self.out.flush()
        {
            self.on_write_error(&error);
        }
        if self.to_terminal && !self.line_open {
            self.progress.status_line().resume();
        }
    }
}

/// stdout. Writes wait for a slow reader, but not for long once the turn is cancelled, so that a reader that has
/// stopped reading cannot keep the turn from ending.
struct Stdout {
    stdout: File,
    cancel: CancelToken,
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A pipe that has room at all takes this much without blocking.
        let piece = &bytes[..bytes.len().min(os::PIPE_BUF)];
        loop {
            if !os::wait_for_room(&self.stdout, &self.cancel, WRITE_TIMEOUT_AFTER_CANCEL)? {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match self.stdout.write(piece) {
                // Another process that shares stdout has made it non-blocking, and has filled it first.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
