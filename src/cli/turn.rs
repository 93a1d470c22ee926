//! `turn`: one turn in a workspace, for people and scripts.
//!
//! The same turn as the daemon's, printed for a terminal: the assistant's text or the canonical events on stdout,
//! what codex does meanwhile on stderr.

use super::flags::{Parsed, at_home, usage};
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

/// How long a reader of stdout that does not read is waited for once the turn is cancelled.
const AFTER_CANCEL: Duration = Duration::from_secs(1);
/// How long the turn has to end by itself once its processes were killed.
const AFTER_KILL: Duration = Duration::from_millis(500);

/// Runs the subcommand.
///
/// # Errors
/// A wrong command line or config, a prompt that cannot be read, a turn that is refused.
pub(crate) fn run(parsed: &Parsed) -> Result<u8> {
    let places = Paths::from_env();
    let loaded = places.load_config()?;
    for warning in &loaded.warnings {
        say(&format!("warning: {warning}"));
    }
    let mut config = loaded.config;
    let style = Style::of(parsed)?;
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
    let color = color::wanted(parsed, &io::stderr())?;
    let workspace = match parsed.directory("workspace")? {
        Some(directory) => directory,
        None => std::env::current_dir()
            .map_err(|error| Error::os(Kind::Io, "cannot tell the current directory", error))?,
    };
    let request = request(parsed)?;
    let workspace = turn::prepare_workspace(&workspace)?;
    let cancel = CancelToken::new()?;
    let queue = Queue::default();
    let progress = Progress::start(color, &workspace, style.verbosity);
    let signal = Arc::new(AtomicI32::new(0));
    {
        let (cancel, queue, signal) = (cancel.clone(), queue.clone(), Arc::clone(&signal));
        let board = progress.board().clone();
        os::on_end_signal(move |number| {
            if signal.swap(number, Ordering::SeqCst) != 0 {
                end_at_once(number, &board);
            }
            cancel.cancel();
            queue.wake();
            board.ending("the turn is being ended; Ctrl-C ends it at once");
        })?;
    }
    os::stop_all_on_terminal_stop()?;
    let context = Context {
        config,
        places,
        backends: Arc::default(),
    };
    let stdout = Stdout {
        stdout: unbuffered_stdout()?,
        cancel: cancel.clone(),
    };
    let mut printer = Printer::new(style, stdout, cancel.clone(), progress);
    let place = queue.join(&workspace);
    let result = turn::run(
        &request,
        &place,
        &context,
        &cancel,
        None,
        None,
        &mut printer,
    );
    printer.release_held();
    let result = result?;
    printer.result(&result);
    context.backends.end();
    let signal = signal.load(Ordering::SeqCst);
    Ok(match result.stop_reason {
        StopReason::Cancelled if signal != 0 => u8::try_from(128 + signal).unwrap_or(1),
        // The turn may have ended well, but not all of it was handed on.
        _ if printer.failed => 1,
        _ if printer.closed => 0,
        StopReason::EndTurn => 0,
        StopReason::Cancelled | StopReason::Error => 1,
    })
}

/// What goes to stdout and stderr.
#[derive(Clone, Copy, Debug)]
struct Style {
    json: bool,
    /// Of the assistant's messages only the last one.
    last: bool,
    verbosity: Verbosity,
}

impl Style {
    fn of(parsed: &Parsed) -> Result<Style> {
        let (json, last) = (parsed.has("json"), parsed.has("last"));
        if json && last {
            return Err(usage(
                "'--json' gives all events, '--last' the last message alone: give one of them",
            ));
        }
        let verbosity = match (parsed.has("quiet"), parsed.has("verbose")) {
            (true, true) => return Err(usage("'--quiet' and '--verbose' exclude each other")),
            (true, false) => Verbosity::Quiet,
            (false, _) if json => Verbosity::Warnings,
            (false, true) => Verbosity::Verbose,
            (false, false) => Verbosity::Normal,
        };
        Ok(Style {
            json,
            last,
            verbosity,
        })
    }
}

/// The seconds that this flag gives.
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

/// The thread that the turn is to be in.
fn thread_choice(parsed: &Parsed) -> Result<ThreadChoice> {
    match (parsed.has("fresh"), parsed.text("thread")?) {
        (true, Some(_)) => Err(usage(
            "'--fresh' begins a thread, '--thread' names one: give one of them",
        )),
        (true, None) => Ok(ThreadChoice::New),
        (false, _) => {
            let thread = target::thread(parsed)?;
            Ok(thread.map_or(ThreadChoice::Stored, ThreadChoice::Adopted))
        }
    }
}

/// The JSON Schema that the file has which '--output-schema' names.
fn output_schema(parsed: &Parsed) -> Result<Option<String>> {
    let Some(path) = parsed.value("output-schema").map(at_home) else {
        return Ok(None);
    };
    let shown = format!("the schema '{}'", path.display());
    let schema = std::fs::read_to_string(&path)
        .map_err(|error| Error::os(Kind::Usage, format!("cannot read {shown}"), error))?;
    check_schema_text(&schema, &shown)?;
    Ok(Some(schema))
}

/// Ends everything that the turn has started, and then this process, as a second signal asks for.
fn end_at_once(signal: i32, board: &StatusLine) -> ! {
    os::kill_everything_below();
    // With codex gone the turn ends by itself, and puts things away, unless it waits for a reader of stdout.
    std::thread::park_timeout(AFTER_KILL);
    board.leave();
    os::end_by(signal);
}

/// The turn that the command line asks for.
fn request(parsed: &Parsed) -> Result<TurnRequest> {
    let text = prompt_text(parsed)?;
    if text.trim().is_empty() {
        return Err(usage(
            "the prompt is empty: give it as an argument or on stdin",
        ));
    }
    let mut prompt = vec![PromptBlock::Text(text)];
    for path in parsed.all("image") {
        let path = std::path::absolute(at_home(path))
            .map_err(|error| Error::os(Kind::Usage, format!("the image {path:?}"), error))?;
        let unreadable = |error| {
            Error::os(
                Kind::Io,
                format!("cannot read the image '{}'", path.display()),
                error,
            )
        };
        // Nobody may ever write into a FIFO: it is not opened but refused with the turn's other bad images.
        if path.metadata().map_err(unreadable)?.is_file() {
            os::open_options()
                .read(true)
                .open(&path)
                .map_err(unreadable)?;
        }
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

/// The prompt: the operand, stdin, or both.
fn prompt_text(parsed: &Parsed) -> Result<String> {
    let (dash, given): (Vec<_>, Vec<_>) =
        parsed.operands.iter().partition(|operand| *operand == "-");
    let Some(prompt) = given.first() else {
        return read_prompt();
    };
    let prompt = prompt
        .to_str()
        .ok_or_else(|| usage(format!("the prompt is not valid UTF-8: {prompt:?}")))?;
    if dash.is_empty() {
        if os::has_input(io::stdin()) {
            say("stdin was not read: give '-' behind the prompt to have it appended");
        }
        return Ok(prompt.to_owned());
    }
    let more = read_prompt()?;
    Ok(match more.trim().is_empty() {
        true => prompt.to_owned(),
        false => format!(
            "{prompt}\n\n<stdin>\n{}\n</stdin>",
            more.trim_end_matches('\n')
        ),
    })
}

fn read_prompt() -> Result<String> {
    let mut stdin = io::stdin();
    if stdin.is_terminal() {
        say("reading the prompt from the terminal; end it with Ctrl-D");
    }
    let mut bytes = Vec::new();
    stdin
        .read_to_end(&mut bytes)
        .map_err(|error| Error::os(Kind::Io, "cannot read the prompt from stdin", error))?;
    String::from_utf8(bytes)
        .map_err(|_| Error::new(Kind::Usage, "the prompt on stdin is not valid UTF-8"))
}

/// A message for the person at the terminal.
fn say(message: &str) {
    // A key of the config file may have anything in it.
    let message = columns::sanitize(message);
    // Nobody reads stderr: nothing to be done about it.
    let _ = writeln!(std::io::stderr(), "plexum-openai: {message}");
}

/// The last line of `--json`.
#[derive(Serialize)]
struct LastLine<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(flatten)]
    result: &'a TurnResult,
}

/// What a warning of codex's own begins with.
const FROM_CODEX: &str = "codex: ";

/// Tells a turn to a terminal or a pipe.
struct Printer {
    style: Style,
    /// The last message, where it alone is printed.
    last: String,
    last_number: usize,
    out: BufWriter<Stdout>,
    /// The memory of the event that was written last.
    line: Vec<u8>,
    /// Is stdout a terminal, and most likely the one that shows the progress?
    to_terminal: bool,
    /// The reader of stdout has closed it: the turn is cancelled, quietly.
    closed: bool,
    failed: bool,
    cancel: CancelToken,
    /// A message of the assistant was ended with a line end of ours, which the next one brings along.
    line_ended: bool,
    /// The message goes on in the line that was written last.
    line_open: bool,
    /// What the model has thought, while it goes on.
    thought: String,
    progress: Progress,
    /// What codex said last of its trouble. Most of what ends a turn is said twice: as an error, and as the reason of
    /// the end; it waits here until it is known which it is.
    held: Option<String>,
    /// The id of the generated image whose result is to come.
    image: Option<String>,
}

impl Printer {
    fn new(style: Style, stdout: Stdout, cancel: CancelToken, progress: Progress) -> Printer {
        Printer {
            style,
            last: String::new(),
            last_number: 0,
            out: BufWriter::with_capacity(64 << 10, stdout),
            line: Vec::new(),
            to_terminal: io::stdout().is_terminal(),
            closed: false,
            failed: false,
            cancel,
            line_ended: false,
            line_open: false,
            thought: String::new(),
            progress,
            held: None,
            image: None,
        }
    }

    fn write(&mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) {
        if self.closed || self.failed {
            return;
        }
        if self.to_terminal {
            self.progress.board().hold();
        }
        if let Err(error) = write(&mut self.out) {
            self.stop(&error);
        }
    }

    /// A line of JSON.
    fn json_line(&mut self, line: &[u8]) {
        if self.to_terminal {
            let line = String::from_utf8_lossy(line);
            let line = columns::json_for_terminal(&line);
            self.write(|out| out.write_all(line.as_bytes()));
        } else {
            self.write(|out| out.write_all(line));
        }
    }

    /// stdout takes no more.
    fn stop(&mut self, error: &io::Error) {
        if error.kind() == io::ErrorKind::BrokenPipe {
            self.closed = true;
        } else if !self.failed {
            self.failed = true;
            let message = format!("cannot write to stdout: {}", reason(error));
            self.progress.board().error("io", &message);
        }
        self.cancel.cancel();
    }

    /// Text of the assistant.
    fn text(&mut self, text: &str) {
        let shown = match self.to_terminal {
            true => columns::sanitize(text),
            false => text.into(),
        };
        let shown = match self.line_ended {
            true => shown.strip_prefix('\n').unwrap_or(&shown),
            false => &shown,
        };
        self.line_ended = false;
        self.line_open = !shown.ends_with('\n');
        self.write(|out| out.write_all(shown.as_bytes()));
    }

    /// A line end behind a message at once: what else the terminal shows then begins on a line of its own. The blank
    /// line before the next message comes with that, so that stdout has the same bytes in the end.
    fn end_line(&mut self) {
        if std::mem::take(&mut self.line_open) {
            self.line_ended = true;
            self.write(|out| out.write_all(b"\n"));
        }
    }

    /// Shows what the model has thought since this was done last.
    fn show_thought(&mut self) {
        let thought = std::mem::take(&mut self.thought);
        if !thought.is_empty() {
            self.make_room();
            self.progress.board().thinking(&thought);
        }
    }

    /// Everything up to now is shown, and a line of stderr may follow. On a terminal it must not stand behind a piece
    /// of text; elsewhere stdout has the text's own bytes.
    fn make_room(&mut self) {
        if self.to_terminal {
            self.end_line();
        }
        self.flush();
    }

    /// Shows the warning that waited.
    fn release_held(&mut self) {
        if let Some(message) = self.held.take() {
            self.make_room();
            self.progress.board().warn(&message);
        }
    }

    /// The last line.
    fn result(&mut self, result: &TurnResult) {
        self.release_held();
        self.show_thought();
        let last = std::mem::take(&mut self.last);
        if !last.is_empty() {
            self.text(last.trim_start_matches('\n'));
        }
        self.end_line();
        if self.style.json {
            let line = LastLine {
                kind: "result",
                result,
            };
            let mut line = serde_json::to_vec(&line).expect("plain structs");
            line.push(b'\n');
            self.json_line(&line);
        }
        self.flush();
        if !self.closed {
            let usage = result.usage.total;
            let (word, good) = match result.stop_reason {
                StopReason::EndTurn if !self.failed => ("done", true),
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
            self.progress.board().close(word, good, &rest);
        }
    }
}

/// How full the model's context is, where that is known.
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
    /// Where the image is that codex has generated, from the event of its result.
    fn generated_image(&mut self, event: &[u8]) -> Option<String> {
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
        // Most events are long and of other tools: their names and ids are in them as they are.
        let mentions = |word: &str| memchr::memmem::find(event, word.as_bytes()).is_some();
        if !mentions("image_generation") && !self.image.as_deref().is_some_and(mentions) {
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
            // Base64: four characters for three bytes.
            Block { data, .. } => format!(
                "image of {} kB, which codex has not saved; --json prints it",
                (data?.len() / 4 * 3).div_ceil(1000)
            ),
        })
    }
}

impl EventSink for Printer {
    fn event(&mut self, event: &TurnEvent<'_>) {
        if let TurnEvent::Error { error } = event
            && let Some(held) = &self.held
            && error.message.contains(held.trim_start_matches(FROM_CODEX))
        {
            self.held = None;
        }
        self.release_held();
        if self.style.json {
            // An event is a dozen small pieces, and memory takes those quicker than a writer does.
            let mut line = std::mem::take(&mut self.line);
            line.clear();
            // Writing to memory does not fail.
            let _ = serde_json::to_writer(&mut line, event);
            line.push(b'\n');
            self.json_line(&line);
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
                self.text(text);
            }
            TurnEvent::ThinkingDelta { text } => {
                self.thought.push_str(text);
            }
            _ => {}
        }
        if let TurnEvent::Status { state, detail, .. } = event {
            self.make_room();
            let board = self.progress.board();
            match state {
                Status::Queued => board.waiting(detail.as_deref().unwrap_or("queued")),
                Status::Running => board.begin(),
                // The warning about it is the line that stays.
                Status::Retrying => board.retrying(),
                Status::Compacting => board.compacting(),
                Status::Compacted => board.note("the conversation was compacted"),
            }
        } else if !matches!(event, TurnEvent::MessageStart | TurnEvent::Error { .. }) {
            self.progress.board().begin();
        }
        // Whoever reads the events has it from there.
        if let TurnEvent::Error { error } = event
            && !self.style.json
        {
            self.make_room();
            let board = self.progress.board();
            board.error(error.code, &error.message);
        }
    }

    fn raw_event(&mut self, event: &[u8]) {
        if self.style.json {
            let line = [event, b"\n"].concat();
            self.json_line(&line);
        } else if let Some(image) = self.generated_image(event) {
            self.make_room();
            self.progress.board().note(&image);
        }
    }

    fn log(&mut self, level: Level, message: &str) {
        match level {
            Level::Warn if message.starts_with(FROM_CODEX) && !is_retry(message) => {
                self.release_held();
                self.held = Some(message.to_owned());
            }
            Level::Warn => {
                self.release_held();
                // What was said before it stands before it.
                self.make_room();
                self.progress.board().warn(message);
            }
            Level::Debug => log::debug!("{message}"),
        }
    }

    fn text_ends(&mut self) {
        self.end_line();
        self.show_thought();
    }

    fn step(&mut self, step: &Step) {
        self.release_held();
        self.make_room();
        self.progress.board().step(step);
    }

    fn flush(&mut self) {
        if !self.closed
            && !self.failed
            && let Err(error) = self.out.flush()
        {
            self.stop(&error);
        }
        if self.to_terminal && !self.line_open {
            self.progress.board().release();
        }
    }
}

/// stdout, as long as somebody reads it or the turn goes on: a reader that does not read must not keep a
/// cancelled turn from its end.
struct Stdout {
    stdout: File,
    cancel: CancelToken,
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // So much a pipe takes whole once it has room at all.
        let piece = &bytes[..bytes.len().min(os::PIPE_BUF)];
        loop {
            if !os::wait_for_room(&self.stdout, &self.cancel, AFTER_CANCEL)? {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match self.stdout.write(piece) {
                // Somebody who shares it has made it non-blocking and was quicker.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
