//! What `turn` shows on stderr: codex's work while it goes on.
//!
//! A finished command or tool is a line that stays. On a terminal the last line is a live one besides: how long
//! the turn has taken, and what runs now. It is taken away before anything else is written and drawn again
//! after it, so nothing of it is left when the turn is over. Elsewhere, where `TERM` is `dumb`, and where stdout
//! is a pipe, there are only the lines that stay, each with the program's name before it.
//!
//! A thread of its own redraws the live line each second; it ends with the [`Progress`].

use super::columns;
use crate::backend::emitter::{Step, StepKind, StepState};
use crate::os;
use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Another turn may be in the workspace, which is waited for.
const WAITING: &str = "waiting to start";
/// How much of a command is shown where there is no width that limits it, in columns.
const LONGEST: usize = 200;

/// Back to the line's begin, and everything on it gone.
const ERASE: &str = "\r\x1b[K";
/// A line that is wider than it was thought to be is cut by the terminal and not continued on the next line,
/// where nothing would take it away.
const NO_WRAP: (&str, &str) = ("\x1b[?7l", "\x1b[?7h");

const DIM: &str = "2";
const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";

/// Shows a turn's progress. Dropping it takes the live line away.
pub(super) struct Progress {
    board: StatusLine,
    ticker: Option<JoinHandle<()>>,
}

/// A handle on what is shown.
#[derive(Clone)]
pub(super) struct StatusLine(Arc<ProgressInner>);

struct ProgressInner {
    state: Mutex<ProgressState>,
    /// The turn is over.
    over: Condvar,
}

struct ProgressState {
    begun: Instant,
    /// Is there a live line?
    live: bool,
    verbosity: Verbosity,
    color: bool,
    /// Paths below it are shown without it.
    workspace: PathBuf,
    running: Vec<Running>,
    /// What is the matter while nothing runs.
    mood: &'static str,
    /// The turn is being ended, for this reason.
    ending: Option<&'static str>,
    /// The live line as it stands on the terminal; empty where it does not.
    drawn: String,
    /// Somebody else writes to the terminal.
    held: bool,
    over: bool,
}

struct Running {
    key: String,
    what: String,
    since: Instant,
}

/// How much is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verbosity {
    /// Errors alone.
    Quiet,
    /// Warnings alone: whoever reads the events has the rest from them.
    Warnings,
    Normal,
    /// What commands print and what the model thinks, too.
    Verbose,
}

impl Progress {
    /// Begins to show a turn in this workspace.
    pub(super) fn start(color: bool, workspace: &Path, verbosity: Verbosity) -> Progress {
        // With a log between its lines a live line is no use; and who reads from a pipe may show what comes at
        // any time, most likely on the same terminal.
        let live = verbosity >= Verbosity::Normal
            && std::io::stderr().is_terminal()
            && !os::is_pipe(std::io::stdout())
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
            && log::max_level() == log::LevelFilter::Off;
        let board = StatusLine(Arc::new(ProgressInner {
            state: Mutex::new(ProgressState {
                begun: Instant::now(),
                live,
                verbosity,
                color,
                workspace: workspace.to_owned(),
                running: Vec::new(),
                mood: WAITING,
                ending: None,
                drawn: String::new(),
                held: false,
                over: false,
            }),
            over: Condvar::new(),
        }));
        let ticker = live.then(|| {
            let board = board.clone();
            std::thread::Builder::new()
                .name("live line".to_owned())
                .spawn(move || board.tick())
        });
        Progress {
            board,
            // Without the thread the live line only changes with the work.
            ticker: ticker.and_then(Result::ok),
        }
    }

    pub(super) fn board(&self) -> &StatusLine {
        &self.board
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.board.state().end();
        self.board.0.over.notify_all();
        if let Some(ticker) = self.ticker.take() {
            // A ticker that panicked has nothing left to do.
            let _ = ticker.join();
        }
    }
}

impl StatusLine {
    /// A step of codex's work began or ended.
    pub(super) fn step(&self, step: &Step) {
        let mut state = self.state();
        let what = state.describe(&step.what);
        let place = state.running.iter().position(|known| known.key == step.key);
        if step.state == StepState::Running {
            match place {
                Some(place) => state.running[place].what = what,
                None => state.running.push(Running {
                    key: step.key.clone(),
                    what,
                    since: Instant::now(),
                }),
            }
            state.draw();
            return;
        }
        let time = place.map(|place| state.running.remove(place).since.elapsed());
        let failed = match step.state {
            StepState::Failed(Some(code)) => Some(format!("exit {code}")),
            StepState::Failed(None) => Some("failed".to_owned()),
            StepState::Running | StepState::Done => None,
        };
        state.finished(&what, failed.as_deref(), time);
        match (state.verbosity, failed) {
            (Verbosity::Verbose, _) => state.output(&step.output),
            (_, Some(_)) => state.output(last_lines(&step.output)),
            (_, None) => {}
        }
    }

    /// codex is at work.
    pub(super) fn begin(&self) {
        self.set_mood("codex is at work");
    }

    /// The turn waits for its workspace, for this reason.
    pub(super) fn waiting(&self, why: &str) {
        self.note(&format!("waiting: {why}"));
        self.set_mood(WAITING);
    }

    /// codex tries a request again.
    pub(super) fn retrying(&self) {
        self.set_mood("codex tries again");
    }

    /// codex makes the conversation shorter.
    pub(super) fn compacting(&self) {
        self.set_mood("codex compacts the conversation");
    }

    /// Something that people should know, in a line that stays.
    pub(super) fn note(&self, text: &str) {
        let mut state = self.state();
        let line = state.paint(DIM, &columns::sanitize(text));
        state.line(&line);
    }

    fn set_mood(&self, mood: &'static str) {
        let mut state = self.state();
        state.mood = mood;
        state.draw();
    }

    /// What the model thinks, where that is shown.
    pub(super) fn thinking(&self, text: &str) {
        let mut state = self.state();
        if state.verbosity == Verbosity::Verbose {
            state.output(text);
        }
    }

    /// A warning, for the person.
    pub(super) fn warn(&self, message: &str) {
        let mut state = self.state();
        if state.verbosity > Verbosity::Quiet {
            state.message("warning", YELLOW, message);
        }
    }

    /// Why the turn failed.
    pub(super) fn error(&self, code: &str, message: &str) {
        self.state().message(code, RED, message);
    }

    /// The turn is being ended, and this is said of it.
    pub(super) fn ending(&self, why: &'static str) {
        let mut state = self.state();
        state.ending = Some(why);
        state.draw();
    }

    /// Takes the live line away until [`StatusLine::release`], so that others can write to the terminal.
    pub(super) fn hold(&self) {
        let mut state = self.state();
        state.erase();
        state.held = true;
    }

    /// Others have written to the terminal and are at the begin of a line.
    pub(super) fn release(&self) {
        let mut state = self.state();
        state.held = false;
        state.draw();
    }

    /// The last line: how the turn ended, and what it took.
    pub(super) fn close(&self, word: &str, good: bool, rest: &str) {
        let mut state = self.state();
        for step in std::mem::take(&mut state.running) {
            let time = step.since.elapsed();
            state.finished(&step.what, Some("not finished"), Some(time));
        }
        let time = exact(state.begun.elapsed());
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

    /// Takes the live line away if that can be done at once.
    pub(super) fn leave(&self) {
        if let Ok(mut state) = self.0.state.try_lock() {
            state.end();
        }
    }

    fn tick(&self) {
        let mut state = self.state();
        while !state.over {
            state.draw();
            // The number of seconds changes at the end of this wait.
            let part = Duration::from_nanos(state.begun.elapsed().subsec_nanos().into());
            state = self
                .0
                .over
                .wait_timeout(state, Duration::from_secs(1).saturating_sub(part))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn state(&self) -> MutexGuard<'_, ProgressState> {
        // Nothing that holds it can panic half-way.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ProgressState {
    fn describe(&self, what: &StepKind) -> String {
        match what {
            StepKind::Command(command) => format!("$ {}", unwrapped(command)),
            StepKind::Tool(server, tool) => format!("tool {server}.{tool}"),
            StepKind::Files(paths) => {
                let paths: Vec<_> = paths.iter().map(|path| self.short(path)).collect();
                format!("edit {}", paths.join(", "))
            }
            StepKind::Search(query) if query.trim().is_empty() => "search the web".to_owned(),
            StepKind::Search(query) => format!("search {query}"),
            StepKind::Other(kind) => kind.replace('_', " "),
        }
    }

    fn short<'a>(&self, path: &'a str) -> Cow<'a, str> {
        match Path::new(path).strip_prefix(&self.workspace) {
            Ok(below) => below.to_string_lossy(),
            Err(_) => path.into(),
        }
    }

    /// A line that stays: a step that is over.
    fn finished(&mut self, what: &str, failed: Option<&str>, time: Option<Duration>) {
        let notes: Vec<String> = failed
            .map(str::to_owned)
            .into_iter()
            .chain(time.map(exact))
            .collect();
        let notes = match notes.join(", ") {
            notes if notes.is_empty() => notes,
            notes => format!(" ({notes})"),
        };
        let columns = if self.live {
            columns::terminal_width(std::io::stderr())
        } else {
            LONGEST
        };
        let what = columns::cut(what, columns.saturating_sub(columns::width(&notes)));
        let paint = if failed.is_some() { RED } else { DIM };
        let line = self.paint(paint, &format!("{what}{notes}"));
        self.line(&line);
    }

    /// What a command has printed, below its line.
    fn output(&mut self, output: &str) {
        const INDENT: &str = "  | ";
        let columns = match self.live {
            true => columns::terminal_width(std::io::stderr()),
            false => LONGEST,
        };
        for line in output.lines() {
            let line = columns::clip(line, columns.saturating_sub(INDENT.len()));
            let line = self.paint(DIM, format!("{INDENT}{line}").trim_end());
            self.line(&line);
        }
    }

    fn message(&mut self, kind: &str, color: &str, message: &str) {
        let kind = self.paint(color, kind);
        let text = format!("plexum-openai: {kind}: {}\n", columns::sanitize(message));
        self.write(&text);
    }

    /// Writes a line that stays.
    fn line(&mut self, line: &str) {
        if self.verbosity < Verbosity::Normal {
            return;
        }
        let name = if self.live { "" } else { "plexum-openai: " };
        self.write(&format!("{name}{line}\n"));
    }

    /// Writes whole lines that stay, and the live line below them.
    fn write(&mut self, lines: &str) {
        let erase = if std::mem::take(&mut self.drawn).is_empty() {
            ""
        } else {
            ERASE
        };
        put(&format!("{erase}{lines}"));
        self.draw();
    }

    /// Draws the live line if it is another one than stands there.
    fn draw(&mut self) {
        if !self.live || self.held || self.over {
            return;
        }
        // The last column stays free: some terminals begin a new line once it is filled.
        let columns = columns::terminal_width(std::io::stderr()).saturating_sub(1);
        let now = match self.ending {
            Some(why) => why,
            None => self.running.last().map_or(self.mood, |last| &last.what),
        };
        let others = match self.running.len() {
            more @ 2.. if self.ending.is_none() => format!(" (+{})", more - 1),
            _ => String::new(),
        };
        let line = live_line(self.begun.elapsed(), now, &others, columns);
        if line == self.drawn {
            return;
        }
        let painted = self.paint(DIM, &line);
        put(&format!("{ERASE}{}{painted}{}", NO_WRAP.0, NO_WRAP.1));
        self.drawn = line;
    }

    fn erase(&mut self) {
        if !std::mem::take(&mut self.drawn).is_empty() {
            put(ERASE);
        }
    }

    fn end(&mut self) {
        self.erase();
        self.over = true;
    }

    fn paint(&self, color: &str, text: &str) -> String {
        if self.color {
            format!("\x1b[{color}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Writes to stderr, in one piece.
fn put(text: &str) {
    // Nobody reads stderr: nothing to be done about it.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// The time, what runs now, and how much runs besides.
fn live_line(elapsed: Duration, now: &str, others: &str, columns: usize) -> String {
    let time = rough(elapsed);
    let taken = columns::width(&time) + 2 + columns::width(others);
    let now = columns::cut(now, columns.saturating_sub(taken));
    columns::cut(&format!("{time}: {now}{others}"), columns)
}

/// A time that has not come to its end: `12 s`, `3 min 05 s`, `2 h 07 min`.
fn rough(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// A time that something took: `0.6 s`, and from a minute on as [`rough`] has it.
fn exact(time: Duration) -> String {
    // What would be rounded to a minute is one.
    if time.as_millis() < 59_950 {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        rough(time + Duration::from_millis(50))
    }
}

/// The command that the model wrote, without the shell that codex hands it to: `wc -l x` of
/// `/bin/bash -lc 'wc -l x'`. codex quotes it for display as a shell would take it, in pieces of several kinds
/// (`"awk '"'{print $1}'"'"`). What is not three words so is left as it is.
fn unwrapped(command: &str) -> Cow<'_, str> {
    let inner = || {
        let [shell, flag, script] = <[String; 3]>::try_from(shell_words(command)?).ok()?;
        let shell = shell.rsplit('/').next()?;
        let is_shell = ["bash", "sh", "zsh", "dash"].contains(&shell);
        (is_shell && ["-lc", "-c"].contains(&flag.as_str()) && !script.is_empty()).then_some(script)
    };
    inner().map_or(Cow::Borrowed(command), Cow::Owned)
}

/// The words of a command line that has nothing in it but words, quoted in whatever way; `None` where a shell would
/// expand something or a quote is not closed.
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

/// The last lines of a text, and of long ones no more than can be shown.
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
    fn live_line_fits_width() {
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
            let line = live_line(time, now, others, columns);
            assert!(columns::width(&line) <= columns, "{line}");
            assert_eq!(line, expected, "{now:?} on {columns}");
        }
        let long = "x".repeat(5000);
        assert_eq!(columns::width(&live_line(second, &long, "", 39)), 39);
    }

    #[test]
    fn formats_durations() {
        for (millis, rough_text, exact_text) in [
            (0, "0 s", "0.0 s"),
            (649, "0 s", "0.6 s"),
            (59_940, "59 s", "59.9 s"),
            (59_960, "59 s", "1 min 00 s"),
            (185_000, "3 min 05 s", "3 min 05 s"),
            (7_620_000, "2 h 07 min", "2 h 07 min"),
        ] {
            let time = Duration::from_millis(millis);
            assert_eq!(
                (rough(time).as_str(), exact(time).as_str()),
                (rough_text, exact_text)
            );
        }
    }

    #[test]
    fn strips_shell_from_commands() {
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
            assert_eq!(unwrapped(command), expected, "{command}");
        }
    }
}
