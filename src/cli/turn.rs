//! `turn`: one turn in a workspace, for people and scripts.
//!
//! The same turn as the daemon's, told to a terminal: the assistant's text or the canonical events on stdout,
//! what codex does meanwhile on stderr.

use super::flags::{Parsed, at_home, usage};
use super::progress::{Progress, StatusLine};
use super::{color, columns};
use crate::backend::emitter::Step;
use crate::backend::emitter::{EventSink, Level};
use crate::canonical::{Status, StopReason, TurnEvent, TurnResult};
use crate::codex::failure::is_retry;
use crate::config::Paths;
use crate::error::{Error, Kind, Result, reason};
use crate::os::{self, CancelToken};
use crate::turn::images::{Image, ImageSource};
use crate::turn::queue::Queue;
use crate::turn::{self, Context, History, PromptBlock, ThreadChoice, TurnRequest};
use rustix::fs::{Mode, OFlags};
use serde::Serialize;
use std::io::{self, BufWriter, IsTerminal, Read, Write};
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
    let progress = Progress::start(color, &workspace);
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
    let context = Context {
        config: loaded.config,
        places,
    };
    let mut printer = Printer::new(parsed.has("json"), cancel.clone(), progress);
    let place = queue.join(&workspace);
    let result = turn::run(&request, &place, &context, &cancel, None, &mut printer);
    printer.release_held();
    let result = result?;
    printer.result(&result);
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
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            rustix::fs::open(&path, flags, Mode::empty())
                .map_err(|error| unreadable(error.into()))?;
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
        thread: match parsed.has("fresh") {
            true => ThreadChoice::New,
            false => ThreadChoice::Stored,
        },
        output_schema: None,
        reasoning_effort: None,
        binary: match parsed.text("binary")? {
            Some("") => return Err(usage("'--binary' needs a path")),
            binary => binary.map(str::to_owned),
        },
    })
}

fn prompt_text(parsed: &Parsed) -> Result<String> {
    match parsed.operands.first() {
        Some(prompt) if prompt != "-" => prompt
            .to_str()
            .map(str::to_owned)
            .ok_or_else(|| usage(format!("the prompt is not valid UTF-8: {prompt:?}"))),
        _ => {
            let mut stdin = std::io::stdin();
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
    }
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
    json: bool,
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
    progress: Progress,
    /// What codex said last of its trouble. Most of what ends a turn is said twice: as an error, and as the reason of
    /// the end; it waits here until it is known which it is.
    held: Option<String>,
}

impl Printer {
    fn new(json: bool, cancel: CancelToken, progress: Progress) -> Printer {
        let stdout = Stdout {
            cancel: cancel.clone(),
        };
        Printer {
            json,
            out: BufWriter::with_capacity(64 << 10, stdout),
            line: Vec::new(),
            to_terminal: io::stdout().is_terminal(),
            closed: false,
            failed: false,
            cancel,
            line_ended: false,
            progress,
            held: None,
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

    /// stdout takes no more: the turn has nobody to tell.
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

    /// A message of the assistant, with a line end behind it at once: what else the terminal shows then begins on
    /// a line of its own. The blank line before the next message comes with that, so that stdout has the same
    /// bytes in the end.
    fn text(&mut self, text: &str) {
        let shown = match self.to_terminal {
            true => columns::sanitize(text),
            false => text.into(),
        };
        let shown = match self.line_ended {
            true => shown.strip_prefix('\n').unwrap_or(&shown),
            false => &shown,
        };
        self.line_ended = !shown.ends_with('\n');
        let end = if self.line_ended { "\n" } else { "" };
        self.write(|out| {
            out.write_all(shown.as_bytes())?;
            out.write_all(end.as_bytes())
        });
    }

    /// Shows the warning that waited.
    fn release_held(&mut self) {
        if let Some(message) = self.held.take() {
            self.flush();
            self.progress.board().warn(&message);
        }
    }

    /// The last line.
    fn result(&mut self, result: &TurnResult) {
        self.release_held();
        if self.json {
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
                "{} tokens in ({} from cache), {} out; thread {}",
                usage.input_tokens,
                usage.cache_read_tokens,
                usage.output_tokens,
                result.thread_id.as_deref().unwrap_or("unknown"),
            );
            self.progress.board().close(word, good, &rest);
        }
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
        if self.json {
            // An event is a dozen small pieces, and memory takes those quicker than a writer does.
            let mut line = std::mem::take(&mut self.line);
            line.clear();
            // Writing to memory does not fail.
            let _ = serde_json::to_writer(&mut line, event);
            line.push(b'\n');
            self.json_line(&line);
            self.line = line;
        } else if let TurnEvent::TextDelta { text, .. } = event {
            self.text(text);
        }
        if let TurnEvent::Status { state, detail } = event {
            self.flush();
            let board = self.progress.board();
            match state {
                Status::Queued => board.waiting(detail.as_deref().unwrap_or("queued")),
                Status::Running => board.begin(),
                // The warning about it is the line that stays.
                Status::Retrying => board.retrying(),
                Status::Compacted => board.note("the conversation was compacted"),
            }
        } else if !matches!(event, TurnEvent::MessageStart | TurnEvent::Error { .. }) {
            self.progress.board().begin();
        }
        if let TurnEvent::Error { error } = event {
            self.flush();
            let board = self.progress.board();
            board.error(error.code, &error.message);
        }
    }

    fn raw_event(&mut self, event: &[u8]) {
        if self.json {
            let line = [event, b"\n"].concat();
            self.json_line(&line);
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
                self.flush();
                self.progress.board().warn(message);
            }
            Level::Debug => log::debug!("{message}"),
        }
    }

    fn step(&mut self, step: &Step) {
        self.release_held();
        self.flush();
        self.progress.board().step(step);
    }

    fn flush(&mut self) {
        if !self.closed
            && !self.failed
            && let Err(error) = self.out.flush()
        {
            self.stop(&error);
        }
        if self.to_terminal {
            self.progress.board().release();
        }
    }
}

/// stdout, as long as somebody reads it or the turn goes on: a reader that does not read must not keep a
/// cancelled turn from its end.
struct Stdout {
    cancel: CancelToken,
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stdout = io::stdout();
        // So much a pipe takes whole once it has room at all.
        let piece = &bytes[..bytes.len().min(os::PIPE_BUF)];
        loop {
            if !os::wait_for_room(&stdout, &self.cancel, AFTER_CANCEL)? {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match rustix::io::write(&stdout, piece) {
                // Somebody who shares it has made it non-blocking and was quicker.
                Err(rustix::io::Errno::AGAIN) => {}
                done => return Ok(done?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
