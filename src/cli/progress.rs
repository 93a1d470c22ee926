//! The progress of a turn, which `turn` shows on stderr.
//!
//! Each finished step is a permanent line. On a terminal there is also a status line at the bottom: the elapsed time
//! and the running step. It is erased before anything else is written, drawn again afterwards, and removed at the end
//! of the turn. Where stderr is not a terminal, where `TERM` is `dumb`, and where stdout is a pipe, there are only the
//! permanent lines, each with the program's name as prefix.
//!
//! A thread redraws the status line each second; dropping the [`Progress`] joins it.

use super::columns;
use crate::backend::emitter::{Step, StepKind, StepState};
use crate::os;
use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The activity until codex starts; another turn may still run in the workspace.
const WAITING: &str = "waiting to start";
/// The maximum width of a line about a step where there is no status line, in columns.
const MAX_WIDTH: usize = 200;

/// Carriage return and "erase to the end of the line".
const ERASE: &str = "\r\x1b[K";
/// Turns automatic wrapping off and on: a status line that is wider than computed must not continue on the next line,
/// which [`ERASE`] does not reach.
const NO_WRAP: (&str, &str) = ("\x1b[?7l", "\x1b[?7h");

const DIM: &str = "2";
const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";

/// Dropping it removes the status line.
pub(super) struct Progress {
    status_line: StatusLine,
    ticker: Option<JoinHandle<()>>,
}

/// A handle for writing progress.
#[derive(Clone)]
pub(super) struct StatusLine(Arc<ProgressInner>);

struct ProgressInner {
    state: Mutex<ProgressState>,
    /// Signals that `ended` is set.
    ended: Condvar,
}

struct ProgressState {
    started: Instant,
    /// Whether there is a status line.
    live: bool,
    verbosity: Verbosity,
    color: bool,
    /// Paths below it are shown relative to it.
    workspace: PathBuf,
    running: Vec<Running>,
    /// Shown while no step runs.
    activity: &'static str,
    /// Shown in place of steps and activity once the turn is being cancelled.
    cancel_notice: Option<&'static str>,
    /// The status line that is on the terminal; empty where none is.
    drawn: String,
    /// The status line is hidden while stdout is written to the same terminal.
    suspended: bool,
    ended: bool,
}

struct Running {
    key: String,
    what: String,
    started: Instant,
}

/// How much is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verbosity {
    /// Only errors.
    Quiet,
    /// Only errors and warnings: with `--json`, the rest is in the events.
    Warnings,
    Normal,
    /// Also the output of all commands and the model's reasoning.
    Verbose,
}

impl Progress {
    /// Starts to show a turn in this workspace.
    pub(super) fn start(color: bool, workspace: &Path, verbosity: Verbosity) -> Progress {
        // Log lines, and the output of a pipe's reader on the same terminal, would be mixed with the status line.
        let live = verbosity >= Verbosity::Normal
            && std::io::stderr().is_terminal()
            && !os::is_pipe(std::io::stdout())
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
            && log::max_level() == log::LevelFilter::Off;
        let status_line = StatusLine(Arc::new(ProgressInner {
            state: Mutex::new(ProgressState {
                started: Instant::now(),
                live,
                verbosity,
                color,
                workspace: workspace.to_owned(),
                running: Vec::new(),
                activity: WAITING,
                cancel_notice: None,
                drawn: String::new(),
                suspended: false,
                ended: false,
            }),
            ended: Condvar::new(),
        }));
        let ticker = live.then(|| {
            let status_line = status_line.clone();
            std::thread::Builder::new()
                .name("live line".to_owned())
                .spawn(move || status_line.tick())
        });
        Progress {
            status_line,
            // Without the thread the status line still changes with each step.
            ticker: ticker.and_then(Result::ok),
        }
    }

    pub(super) fn status_line(&self) -> &StatusLine {
        &self.status_line
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.status_line.state().end();
        self.status_line.0.ended.notify_all();
        if let Some(ticker) = self.ticker.take() {
            // A panic of the ticker has no consequences: the status line is removed already.
            let _ = ticker.join();
        }
    }
}

impl StatusLine {
    /// Shows the start or the end of a step.
    pub(super) fn step(&self, step: &Step) {
        let mut state = self.state();
        let what = state.describe(&step.what);
        let index = state.running.iter().position(|known| known.key == step.key);
        if step.state == StepState::Running {
            match index {
                Some(index) => state.running[index].what = what,
                None => state.running.push(Running {
                    key: step.key.clone(),
                    what,
                    started: Instant::now(),
                }),
            }
            state.draw();
            return;
        }
        let time = index.map(|index| state.running.remove(index).started.elapsed());
        let failed = match step.state {
            StepState::Failed(Some(code)) => Some(format!("exit {code}")),
            StepState::Failed(None) => Some("failed".to_owned()),
            StepState::Running | StepState::Done => None,
        };
        state.write_step(&what, failed.as_deref(), time);
        match (state.verbosity, failed) {
            (Verbosity::Verbose, _) => state.output(&step.output),
            (_, Some(_)) => state.output(last_lines(&step.output)),
            (_, None) => {}
        }
    }

    pub(super) fn working(&self) {
        self.set_activity("codex is working");
    }

    /// Shows that the turn waits for its workspace, and the reason.
    pub(super) fn waiting(&self, why: &str) {
        self.note(&format!("waiting: {why}"));
        self.set_activity(WAITING);
    }

    pub(super) fn retrying(&self) {
        self.set_activity("codex is retrying");
    }

    pub(super) fn compacting(&self) {
        self.set_activity("codex is compacting the conversation");
    }

    /// Writes a permanent line.
    pub(super) fn note(&self, text: &str) {
        let mut state = self.state();
        let line = state.paint(DIM, &columns::sanitize(text));
        state.line(&line);
    }

    fn set_activity(&self, activity: &'static str) {
        let mut state = self.state();
        state.activity = activity;
        state.draw();
    }

    /// Writes the model's reasoning with `--verbose`.
    pub(super) fn thinking(&self, text: &str) {
        let mut state = self.state();
        if state.verbosity == Verbosity::Verbose {
            state.output(text);
        }
    }

    /// Writes a warning, unless `--quiet` is given.
    pub(super) fn warn(&self, message: &str) {
        let mut state = self.state();
        if state.verbosity > Verbosity::Quiet {
            state.message("warning", YELLOW, message);
        }
    }

    pub(super) fn error(&self, code: &str, message: &str) {
        self.state().message(code, RED, message);
    }

    /// Shows a notice that the turn is being cancelled.
    pub(super) fn show_cancel_notice(&self, notice: &'static str) {
        let mut state = self.state();
        state.cancel_notice = Some(notice);
        state.draw();
    }

    /// Hides the status line until [`StatusLine::resume`], so that stdout can be written to the same terminal.
    pub(super) fn suspend(&self) {
        let mut state = self.state();
        state.erase();
        state.suspended = true;
    }

    /// Shows the status line again. The terminal's cursor must be at the beginning of a line.
    pub(super) fn resume(&self) {
        let mut state = self.state();
        state.suspended = false;
        state.draw();
    }

    /// Removes the status line and writes the last line: the turn's outcome in a word, its duration, and `rest`.
    pub(super) fn finish(&self, word: &str, good: bool, rest: &str) {
        let mut state = self.state();
        for step in std::mem::take(&mut state.running) {
            let time = step.started.elapsed();
            state.write_step(&step.what, Some("not finished"), Some(time));
        }
        let time = format_duration(state.started.elapsed());
        let text = format!("{word} in {time}; {rest}");
        let text = if state.live {
            columns::wrapped(&text, columns::terminal_width(std::io::stderr()))
        } else {
            text
        };
        let word_painted = state.paint(if good { GREEN } else { RED }, word);
        let text = format!("{word_painted}{}", &text[word.len()..]);
        state.line(&text);
        state.end();
    }

    /// Removes the status line unless another thread holds the lock: this must not block.
    pub(super) fn try_end(&self) {
        if let Ok(mut state) = self.0.state.try_lock() {
            state.end();
        }
    }

    fn tick(&self) {
        let mut state = self.state();
        while !state.ended {
            state.draw();
            // Wait until the elapsed time is the next whole number of seconds.
            let part = Duration::from_nanos(state.started.elapsed().subsec_nanos().into());
            state = self
                .0
                .ended
                .wait_timeout(state, Duration::from_secs(1).saturating_sub(part))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn state(&self) -> MutexGuard<'_, ProgressState> {
        // The state stays usable after a panic of another thread.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ProgressState {
    fn describe(&self, what: &StepKind) -> String {
        match what {
            StepKind::Command(command) => format!("$ {}", strip_shell(command)),
            StepKind::Tool(server, tool) => format!("tool {server}.{tool}"),
            StepKind::Files(paths) => {
                let paths: Vec<_> = paths.iter().map(|path| self.relative(path)).collect();
                format!("edit {}", paths.join(", "))
            }
            StepKind::Search(query) if query.trim().is_empty() => "search the web".to_owned(),
            StepKind::Search(query) => format!("search {query}"),
            StepKind::Other(kind) => kind.replace('_', " "),
        }
    }

    fn relative<'a>(&self, path: &'a str) -> Cow<'a, str> {
        match Path::new(path).strip_prefix(&self.workspace) {
            Ok(below) => below.to_string_lossy(),
            Err(_) => path.into(),
        }
    }

    /// Writes the permanent line of a step that has ended.
    fn write_step(&mut self, what: &str, failed: Option<&str>, time: Option<Duration>) {
        let notes: Vec<String> = failed
            .map(str::to_owned)
            .into_iter()
            .chain(time.map(format_duration))
            .collect();
        let notes = match notes.join(", ") {
            notes if notes.is_empty() => notes,
            notes => format!(" ({notes})"),
        };
        let columns = if self.live {
            columns::terminal_width(std::io::stderr())
        } else {
            MAX_WIDTH
        };
        let what = columns::truncate(what, columns.saturating_sub(columns::width(&notes)));
        let paint = if failed.is_some() { RED } else { DIM };
        let line = self.paint(paint, &format!("{what}{notes}"));
        self.line(&line);
    }

    /// Writes text, such as a command's output, indented below the last line.
    fn output(&mut self, output: &str) {
        const INDENT: &str = "  | ";
        let columns = match self.live {
            true => columns::terminal_width(std::io::stderr()),
            false => MAX_WIDTH,
        };
        for line in output.lines() {
            let line = columns::truncate_keeping_spaces(line, columns.saturating_sub(INDENT.len()));
            let line = self.paint(DIM, format!("{INDENT}{line}").trim_end());
            self.line(&line);
        }
    }

    /// Writes a message, whatever the verbosity.
    fn message(&mut self, kind: &str, color: &str, message: &str) {
        let kind = self.paint(color, kind);
        let text = format!("plexum-openai: {kind}: {}\n", columns::sanitize(message));
        self.write(&text);
    }

    /// Writes a permanent line, unless the verbosity leaves it out.
    fn line(&mut self, line: &str) {
        if self.verbosity < Verbosity::Normal {
            return;
        }
        let name = if self.live { "" } else { "plexum-openai: " };
        self.write(&format!("{name}{line}\n"));
    }

    /// Writes permanent lines, and the status line below them.
    fn write(&mut self, lines: &str) {
        let erase = if std::mem::take(&mut self.drawn).is_empty() {
            ""
        } else {
            ERASE
        };
        write_stderr(&format!("{erase}{lines}"));
        self.draw();
    }

    /// Draws the status line if it has changed.
    fn draw(&mut self) {
        if !self.live || self.suspended || self.ended {
            return;
        }
        // The last column is not used: some terminals wrap once it is filled.
        let columns = columns::terminal_width(std::io::stderr()).saturating_sub(1);
        let now = match self.cancel_notice {
            Some(notice) => notice,
            None => self.running.last().map_or(self.activity, |last| &last.what),
        };
        let others = match self.running.len() {
            more @ 2.. if self.cancel_notice.is_none() => format!(" (+{})", more - 1),
            _ => String::new(),
        };
        let line = format_status_line(self.started.elapsed(), now, &others, columns);
        if line == self.drawn {
            return;
        }
        let painted = self.paint(DIM, &line);
        write_stderr(&format!("{ERASE}{}{painted}{}", NO_WRAP.0, NO_WRAP.1));
        self.drawn = line;
    }

    fn erase(&mut self) {
        if !std::mem::take(&mut self.drawn).is_empty() {
            write_stderr(ERASE);
        }
    }

    fn end(&mut self) {
        self.erase();
        self.ended = true;
    }

    fn paint(&self, color: &str, text: &str) -> String {
        if self.color {
            format!("\x1b[{color}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Writes to stderr with one call, so that other writers do not come between.
fn write_stderr(text: &str) {
    // An error of stderr cannot be reported anywhere.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// The status line: the elapsed time, the current step, and the number of other running steps.
fn format_status_line(elapsed: Duration, now: &str, others: &str, columns: usize) -> String {
    let time = format_elapsed(elapsed);
    let taken = columns::width(&time) + 2 + columns::width(others);
    let now = columns::truncate(now, columns.saturating_sub(taken));
    columns::truncate(&format!("{time}: {now}{others}"), columns)
}

/// The time so far, in whole seconds or minutes: `12 s`, `3 min 05 s`, `2 h 07 min`.
fn format_elapsed(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// A duration: `0.6 s`; from a minute on the format of [`format_elapsed`].
fn format_duration(time: Duration) -> String {
    // From here on it would be rounded to `60.0 s`.
    if time.as_millis() < 59_950 {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        format_elapsed(time + Duration::from_millis(50))
    }
}

/// The command that the model wrote, without the shell that codex runs it in: `wc -l x` for `/bin/bash -lc 'wc -l x'`.
/// codex quotes commands for display in shell syntax, and can mix quotes (`"awk '"'{print $1}'"'"`). Any other command
/// is returned unchanged.
fn strip_shell(command: &str) -> Cow<'_, str> {
    let inner = || {
        let [shell, flag, script] = <[String; 3]>::try_from(shell_words(command)?).ok()?;
        let shell = shell.rsplit('/').next()?;
        let is_shell = ["bash", "sh", "zsh", "dash"].contains(&shell);
        (is_shell && ["-lc", "-c"].contains(&flag.as_str()) && !script.is_empty()).then_some(script)
    };
    inner().map_or(Cow::Borrowed(command), Cow::Owned)
}

/// Splits a command line into words and removes their quotes; `None` where it has operators, expansions or an unclosed
/// quote.
fn shell_words(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '"' => break,
                        '\\' => match chars.next()? {
                            c @ ('"' | '$' | '`' | '\\') => word.push(c),
                            c => word.extend(['\\', c]),
                        },
                        c => word.push(c),
                    }
                }
            }
            '\\' => word.get_or_insert_default().push(chars.next()?),
            '\n' | '$' | '`' | '|' | '&' | ';' | '<' | '>' | '(' | ')' => return None,
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Some(words)
}

/// The last ten lines of a text, at most 8 KiB.
fn last_lines(text: &str) -> &str {
    const LINES: usize = 10;
    const BYTES: usize = 8 << 10;
    let text = text.trim_end();
    let start = text.floor_char_boundary(text.len().saturating_sub(BYTES));
    let lines = text[start..].rmatch_indices('\n').nth(LINES - 1);
    &text[start..][lines.map_or(0, |(at, _)| at + 1)..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_line_fits_width() {
        let second = Duration::from_secs(1);
        for (time, now, others, columns, expected) in [
            (second * 12, "$ ls", "", 79, "12 s: $ ls"),
            (
                second * 12,
                "$ cargo test",
                " (+2)",
                18,
                "12 s: $ carg… (+2)",
            ),
            (second * 12, "$ 日本語", "", 12, "12 s: $ 日…"),
            (second * 12, "$ a\x1b[2J", "", 79, "12 s: $ a\u{fffd}[2J"),
            (second * 12, "$ ls", " (+2)", 3, "12…"),
            (second * 12, "$ ls", "", 0, ""),
        ] {
            let line = format_status_line(time, now, others, columns);
            assert!(columns::width(&line) <= columns, "{line}");
            assert_eq!(line, expected, "{now:?} on {columns}");
        }
        let long = "x".repeat(5000);
        assert_eq!(
            columns::width(&format_status_line(second, &long, "", 39)),
            39
        );
    }

    #[test]
    fn formats_durations() {
        for (millis, elapsed, duration) in [
            (0, "0 s", "0.0 s"),
            (649, "0 s", "0.6 s"),
            (59_940, "59 s", "59.9 s"),
            (59_960, "59 s", "1 min 00 s"),
            (185_000, "3 min 05 s", "3 min 05 s"),
            (7_620_000, "2 h 07 min", "2 h 07 min"),
        ] {
            let time = Duration::from_millis(millis);
            assert_eq!(
                (
                    format_elapsed(time).as_str(),
                    format_duration(time).as_str()
                ),
                (elapsed, duration)
            );
        }
    }

    #[test]
    fn strips_shell_of_commands() {
        for (command, expected) in [
            ("/bin/bash -lc 'wc -l poem.txt'", "wc -l poem.txt"),
            ("bash -lc ls", "ls"),
            (
                "/bin/sh -c \"echo \\\"it's\\\" \\$HOME\"",
                "echo \"it's\" $HOME",
            ),
            ("/bin/bash -lc 'a'\\''b'", "a'b"),
            (
                "/bin/bash -lc \"awk '\"'{print $1}'\"'\"",
                "awk '{print $1}'",
            ),
            ("bash -lc \"awk '{print \\$1}' x\"", "awk '{print $1}' x"),
            ("bash -lc 'a\nb  c'", "a\nb  c"),
            ("bash -lc $x", "bash -lc $x"),
            ("bash -lc ls; rm x", "bash -lc ls; rm x"),
            ("bash -lc \"a\" b\"", "bash -lc \"a\" b\""),
            ("bash -lc ls -l", "bash -lc ls -l"),
            ("bash -lc ", "bash -lc "),
            ("bash -lc '", "bash -lc '"),
            ("bash -lc \"", "bash -lc \""),
            ("python3 -c 'x'", "python3 -c 'x'"),
            ("ls", "ls"),
            ("", ""),
        ] {
            assert_eq!(strip_shell(command), expected, "{command}");
        }
    }
}
