//! `turn`: one turn in a workspace, for people and scripts.
//!
//! The same turn as the daemon's, told to a terminal: the assistant's text or the canonical events on stdout,
//! what codex does meanwhile on stderr.

use super::flags::{Parsed, usage};
use crate::canonical::{StopReason, TurnEvent, TurnResult, Usage};
use crate::codex::translate::{Step, StepKind, StepState};
use crate::config::Places;
use crate::error::{Error, Kind, Result, reason};
use crate::sys::Flag;
use crate::turn::images::{Image, Source};
use crate::turn::queue::Queue;
use crate::turn::{self, Block, Context, Level, Request, Sink};
use serde::Serialize;
use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Instant;

/// Runs the subcommand.
///
/// # Errors
/// A wrong command line or config, a prompt that cannot be read, a turn that is refused.
pub(crate) fn run(parsed: &Parsed) -> Result<u8> {
    let places = Places::from_env();
    let loaded = places.load_config()?;
    for warning in &loaded.warnings {
        say(&format!("warning: {warning}"));
    }
    let request = request(parsed)?;
    let workspace = match parsed.value("workspace") {
        Some(folder) if folder.is_empty() => return Err(usage("'--workspace' needs a folder")),
        Some(folder) => PathBuf::from(folder),
        None => std::env::current_dir()
            .map_err(|error| Error::os(Kind::Io, "cannot tell the current folder", error))?,
    };
    let workspace = turn::prepare_workspace(&workspace)?;
    let cancel = Flag::new()?;
    let queue = Queue::default();
    let signal = Arc::new(AtomicI32::new(0));
    {
        let (cancel, queue, signal) = (cancel.clone(), queue.clone(), Arc::clone(&signal));
        crate::sys::on_end_signal(move |number| {
            signal.store(number, Ordering::SeqCst);
            cancel.raise();
            queue.wake();
        })?;
    }
    let context = Context {
        config: loaded.config,
        places,
    };
    let mut printer = Printer::new(parsed.has("json"), cancel.clone());
    let place = queue.join(&workspace);
    let result = turn::run(&request, &place, &context, &cancel, None, &mut printer)?;
    printer.result(&result);
    let signal = signal.load(Ordering::SeqCst);
    Ok(match result.stop_reason {
        _ if printer.closed => 0,
        StopReason::EndTurn => 0,
        StopReason::Cancelled if signal != 0 => u8::try_from(128 + signal).unwrap_or(1),
        StopReason::Cancelled | StopReason::Error => 1,
    })
}

/// The turn that the command line asks for.
fn request(parsed: &Parsed) -> Result<Request> {
    let mut prompt = vec![Block::Text(prompt_text(parsed)?)];
    for path in parsed.all("image") {
        let path = std::path::absolute(path)
            .map_err(|error| Error::os(Kind::Usage, format!("the image {path:?}"), error))?;
        std::fs::File::open(&path).map_err(|error| {
            Error::os(
                Kind::Io,
                format!("cannot read the image '{}'", path.display()),
                error,
            )
        })?;
        prompt.push(Block::Image(Image {
            name: path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            source: Source::Path(path),
        }));
    }
    Ok(Request {
        model: parsed.text("model")?.unwrap_or_default().to_owned(),
        agent_id: parsed.text("agent-id")?.map(str::to_owned),
        system: parsed
            .text("system")?
            .filter(|text| !text.trim().is_empty())
            .map(str::to_owned),
        prompt,
        history: String::new(),
        fresh: parsed.has("fresh"),
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
    // Nobody reads stderr: nothing to be done about it.
    let _ = writeln!(std::io::stderr(), "plexum-openai: {message}");
}

/// The last line of `--json`.
#[derive(Serialize)]
struct LastLine<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    stop_reason: StopReason,
    thread_id: Option<&'a str>,
    usage: Usage,
    thread_usage: Usage,
}

/// Tells a turn to a terminal or a pipe.
struct Printer {
    json: bool,
    out: std::io::BufWriter<std::io::Stdout>,
    /// The reader of stdout has closed it: the turn is cancelled, quietly.
    closed: bool,
    cancel: Flag,
    begun: Instant,
    failed: bool,
    /// Did the text end with a line end?
    open_line: bool,
}

impl Printer {
    fn new(json: bool, cancel: Flag) -> Printer {
        Printer {
            json,
            out: std::io::BufWriter::with_capacity(64 << 10, std::io::stdout()),
            closed: false,
            cancel,
            begun: Instant::now(),
            failed: false,
            open_line: false,
        }
    }

    fn write(&mut self, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) {
        if self.closed || self.failed {
            return;
        }
        if let Err(error) = write(&mut self.out) {
            self.stop(&error);
        }
    }

    /// stdout takes no more: the turn has nobody to tell.
    fn stop(&mut self, error: &std::io::Error) {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            self.closed = true;
        } else if !self.failed {
            self.failed = true;
            say(&format!("cannot write to stdout: {}", reason(error)));
        }
        self.cancel.raise();
    }

    /// The last line.
    fn result(&mut self, result: &TurnResult) {
        if self.json {
            let line = LastLine {
                kind: "result",
                stop_reason: result.stop_reason,
                thread_id: result.thread_id.as_deref(),
                usage: result.usage,
                thread_usage: result.thread_usage,
            };
            self.write(|out| {
                serde_json::to_writer(&mut *out, &line)?;
                out.write_all(b"\n")
            });
        } else if self.open_line {
            self.write(|out| writeln!(out));
        }
        self.flush();
        if !self.closed {
            let usage = result.usage;
            say(&format!(
                "{} in {:.1} s; {} tokens in ({} from cache), {} out; thread {}",
                match result.stop_reason {
                    StopReason::EndTurn => "done",
                    StopReason::Error => "failed",
                    StopReason::Cancelled => "cancelled",
                },
                self.begun.elapsed().as_secs_f64(),
                usage.input_tokens,
                usage.cache_read_tokens,
                usage.output_tokens,
                result.thread_id.as_deref().unwrap_or("unknown"),
            ));
        }
    }
}

impl Sink for Printer {
    fn event(&mut self, event: &TurnEvent<'_>) {
        if self.json {
            self.write(|out| {
                serde_json::to_writer(&mut *out, event)?;
                out.write_all(b"\n")
            });
        } else if let TurnEvent::TextDelta { text } = event {
            self.open_line = !text.ends_with('\n');
            self.write(|out| out.write_all(text.as_bytes()));
        }
        if let TurnEvent::Error { error } = event {
            self.flush();
            say(&format!("{}: {}", error.code, error.message));
        }
    }

    fn raw_event(&mut self, event: &[u8]) {
        if self.json {
            self.write(|out| {
                out.write_all(event)?;
                out.write_all(b"\n")
            });
        }
    }

    fn log(&mut self, level: Level, message: &str) {
        match level {
            Level::Warn => say(&format!("warning: {message}")),
            Level::Debug => log::debug!("{message}"),
        }
    }

    fn step(&mut self, step: &Step) {
        let what = match &step.what {
            StepKind::Command(command) => format!("$ {}", one_line(command)),
            StepKind::Tool(server, tool) => format!("tool {server}.{tool}"),
            StepKind::Files(paths) => format!("edit {}", paths.join(", ")),
            StepKind::Search(query) => format!("search {}", one_line(query)),
            StepKind::Other(kind) => kind.clone(),
        };
        match step.state {
            StepState::Running => say(&what),
            StepState::Failed(Some(code)) => say(&format!("{what} (exit {code})")),
            StepState::Failed(None) => say(&format!("{what} (failed)")),
            StepState::Done => {}
        }
    }

    fn flush(&mut self) {
        if self.closed || self.failed {
            return;
        }
        if let Err(error) = self.out.flush() {
            self.stop(&error);
        }
    }
}

fn one_line(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(200) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
