//! `doctor`: checks the prerequisites of a turn and states how to fix what is missing.
//!
//! This file has the report; `checks` runs the checks. The outcome of a check is one line: the finding and, after a
//! semicolon, the fix, as a command or a config key that can be copied literally. Every check must be able to fail or
//! warn.

mod account;
mod checks;
mod directories;
mod ownership;
mod plugin;
mod program;
mod setup;
mod thread;

use super::flags::Parsed;
use super::{color, columns, ignore_broken_pipe};
use crate::error::Result;
use crate::os::{self, CancelToken};
use crate::paths::Paths;
use serde::Serialize;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

/// The status of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum CheckStatus {
    Ok,
    /// Turns can succeed, but not always or only with restrictions.
    Warn,
    /// Turns fail.
    Fail,
}

/// A check's outcome.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Check {
    check: &'static str,
    status: CheckStatus,
    /// The finding and its fix.
    message: String,
    /// The absolute path of the workspace that was checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    workspace: Option<PathBuf>,
}

/// The outcomes, in the order in which a turn depends on them.
#[derive(Debug, Default)]
struct Report {
    checks: Vec<Check>,
    /// The workspace of the checks that are added next.
    workspace: Option<PathBuf>,
}

/// `plexum-openai doctor`: prints the report; the exit status is 1 if a check failed.
///
/// # Errors
/// [`crate::error::Kind::Usage`] for a wrong `--color`, [`crate::error::Kind::Io`] if stdout cannot be written.
pub(crate) fn run(parsed: &Parsed, stdout: &mut dyn Write) -> Result<u8> {
    let color = color::is_enabled(parsed, &io::stdout())?;
    let mut report = Report::default();
    let workspaces = parsed.directories("workspace")?;
    let cancel = CancelToken::new()?;
    let signal = Arc::new(AtomicI32::new(0));
    {
        let (cancel, signal) = (cancel.clone(), Arc::clone(&signal));
        os::on_end_signal_or_hangup(move |number| {
            if signal.swap(number, Ordering::SeqCst) != 0 {
                // The first signal ends the wait for codex, so a check hangs in something else.
                os::kill_everything_below();
                os::end_by(number);
            }
            cancel.cancel();
        })?;
    }
    let places = Paths::from_env();
    checks::examine(&places, &workspaces, &cancel, &mut report);
    match signal.load(Ordering::SeqCst) {
        0 => {}
        number => return Ok(u8::try_from(128 + number).unwrap_or(1)),
    }
    let text = if parsed.has("json") {
        let json = report.json();
        match io::stdout().is_terminal() {
            true => columns::json_for_terminal(&json).into_owned(),
            false => json,
        }
    } else {
        let columns = io::stdout()
            .is_terminal()
            .then(|| columns::terminal_width(io::stdout()));
        report.lines(color, columns)
    };
    ignore_broken_pipe(stdout.write_all(text.as_bytes()), report.failed().into())
}

impl Report {
    fn ok(&mut self, check: &'static str, message: impl Into<String>) {
        self.add(check, CheckStatus::Ok, message.into());
    }

    fn warn(&mut self, check: &'static str, message: impl Into<String>) {
        self.add(check, CheckStatus::Warn, message.into());
    }

    fn fail(&mut self, check: &'static str, message: impl Into<String>) {
        self.add(check, CheckStatus::Fail, message.into());
    }

    fn add(&mut self, check: &'static str, status: CheckStatus, message: String) {
        self.checks.push(Check {
            check,
            status,
            message,
            workspace: self.workspace.clone(),
        });
    }

    fn failed(&self) -> bool {
        self.checks
            .iter()
            .any(|check| check.status == CheckStatus::Fail)
    }

    /// A line for each check: status, name, message. Lines longer than the terminal's `columns` are wrapped; a wrapped
    /// line's command gets a separate line, which is not wrapped, so that it can be copied.
    fn lines(&self, color: bool, columns: Option<usize>) -> String {
        let width = self.checks.iter().map(|check| check.check.len()).max();
        let width = width.unwrap_or(0);
        let mut text = String::new();
        for check in &self.checks {
            let (word, paint) = match check.status {
                CheckStatus::Ok => ("ok  ", "\x1b[32m"),
                CheckStatus::Warn => ("warn", "\x1b[33m"),
                CheckStatus::Fail => ("FAIL", "\x1b[1;31m"),
            };
            let message = one_line(&check.message);
            let mut line = format!("{word}  {:width$}  {message}", check.check);
            if let Some(columns) = columns.filter(|columns| columns::width(&line) > *columns) {
                line = match message.rsplit_once("; run: ") {
                    Some((found, command)) => {
                        let found = format!("{word}  {:width$}  {found}; run:", check.check);
                        format!("{}\n  {command}", columns::wrapped(&found, columns))
                    }
                    None => columns::wrapped(&line, columns),
                };
            }
            if color {
                line.replace_range(..word.len(), &format!("{paint}{word}\x1b[0m"));
            }
            text.push_str(&line);
            text.push('\n');
        }
        text
    }

    /// The report as a line of JSON.
    fn json(&self) -> String {
        #[derive(Serialize)]
        struct Json<'a> {
            ok: bool,
            checks: &'a [Check],
        }
        let json = Json {
            ok: !self.failed(),
            checks: &self.checks,
        };
        let mut text = serde_json::to_string(&json).expect("strings and booleans can be JSON");
        text.push('\n');
        text
    }
}

/// Replaces line breaks and control characters, which file names and codex's output can contain.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\r' | '\t' => ' ',
            c => columns::visible(c),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_has_one_line_per_check() {
        let mut report = Report::default();
        report.ok("config", "there");
        assert!(!report.failed());
        report.warn("login", "a\nb");
        assert!(!report.failed());
        report.fail("codex", "gone; bring it");
        assert!(report.failed());
        assert_eq!(
            report.lines(false, None),
            "ok    config  there\nwarn  login   a b\nFAIL  codex   gone; bring it\n"
        );
        let colored = report.lines(true, None);
        assert!(colored.contains("\x1b[1;31mFAIL\x1b[0m  codex"));
        assert_eq!(
            report.json(),
            concat!(
                r#"{"ok":false,"checks":[{"check":"config","status":"ok","message":"there"},"#,
                r#"{"check":"login","status":"warn","message":"a\nb"},"#,
                r#"{"check":"codex","status":"fail","message":"gone; bring it"}]}"#,
                "\n"
            )
        );
    }

    #[test]
    fn wraps_lines_but_not_commands() {
        let mut report = Report::default();
        report.warn(
            "login",
            "nobody is logged in; run: codex login --device-auth",
        );
        report.ok("config", "there");
        report.fail("codex", "it is not where the config says that it is");
        assert_eq!(
            report.lines(false, Some(30)),
            "\
warn  login   nobody is logged
  in; run:
  codex login --device-auth
ok    config  there
FAIL  codex   it is not where
  the config says that it is
"
        );
        let colored = report.lines(true, Some(30));
        assert!(colored.contains("\x1b[1;31mFAIL\x1b[0m  codex   it is not where\n"));
    }
}
