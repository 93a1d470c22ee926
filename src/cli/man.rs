//! Renders the flag table as `plexum-openai`(1), in mdoc.
//!
//! Pure: from the tables to the page's source. `man/plexum-openai.1` is this text as it was when it was last
//! made; a test compares them, so that the page in the repository cannot fall behind the flags.

use super::about::{self, NAME};
use super::flags::{self, Flag, Parsed, Subcommand};
use super::help::kind_and_default;
use super::markup::{Span, has_quotes, spans};
use super::written;
use crate::config;
use crate::error::Result;
use std::fmt::Write as _;
use std::io::Write;

/// The day of the page's last change in substance, as mdoc writes dates.
const DATE: &str = "November 26, 2026";
/// Source lines are filled up to here, so that a change shows as a small diff.
const FILL: usize = 78;

/// `plexum-openai man`.
///
/// # Errors
/// [`crate::error::Kind::Io`] where stdout cannot be written.
pub(crate) fn run(_: &Parsed, stdout: &mut dyn Write) -> Result<u8> {
    written(stdout.write_all(page().as_bytes()), 0)
}

/// The source of the whole page.
pub(crate) fn page() -> String {
    let mut page = Page::default();
    page.head();
    page.synopsis();
    page.section("DESCRIPTION");
    page.paragraphs(about::PROGRAM);
    page.raw(".Pp\nThe flags that every subcommand has:\n");
    page.flags(flags::COMMON);
    page.section("SUBCOMMANDS");
    for command in flags::SUBCOMMANDS {
        page.subcommand(command);
    }
    page.config();
    page.topics("ENVIRONMENT", ".Ev", about::ENVIRONMENT);
    page.topics("FILES", ".Pa", about::FILES);
    page.topics("EXIT STATUS", ".It", about::EXIT_STATUS);
    page.section("SECURITY");
    page.paragraphs(about::SECURITY);
    page.examples();
    page.raw(
        "\
.Sh SEE ALSO
.Xr plexum-openai-events 7 ,
.Xr plexum-openai-protocol 7
.Sh STANDARDS
The dialogue with the daemon is JSON-RPC 2.0; the servers that lend its tools to
codex speak the Model Context Protocol, versions 2024-11-05 to 2025-11-25.
",
    );
    page.source
}

/// The source so far.
#[derive(Default)]
struct Page {
    source: String,
}

impl Page {
    fn head(&mut self) {
        self.raw(".\\\" Made from the table of flags: change that, then run 'make man'.\n");
        self.raw(&format!(".Dd {DATE}\n.Dt PLEXUM-OPENAI 1\n.Os\n"));
        self.raw(&format!(".Sh NAME\n.Nm {NAME}\n.Nd {}\n", about::BRIEF));
    }

    fn synopsis(&mut self) {
        self.section("SYNOPSIS");
        for command in flags::SUBCOMMANDS {
            self.raw(".Nm\n");
            self.raw(&match command.name {
                "serve" => ".Op Cm serve\n".to_owned(),
                name => format!(".Cm {name}\n"),
            });
            for flag in command.flags {
                self.raw(&format!(".Op {}\n", shortest(flag)));
            }
            self.operands(command);
        }
    }

    /// `[FILE...|-]` and the like, as arguments that are optional, may be several, or are words to choose from.
    fn operands(&mut self, command: &Subcommand) {
        if command.operands.is_empty() {
            return;
        }
        let optional = command
            .operands
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        let mut line = String::from(if optional.is_some() { ".Op" } else { "." });
        for (at, choice) in optional.unwrap_or(command.operands).split('|').enumerate() {
            if at > 0 {
                line.push_str(" |");
            }
            let (name, several) = match choice.strip_suffix("...") {
                Some(name) => (name, true),
                None => (choice, false),
            };
            let kind = if name.chars().all(|c| c.is_ascii_uppercase() || c == '_') {
                "Ar"
            } else {
                "Cm"
            };
            let gap = if line == "." { "" } else { " " };
            let _ = write!(line, "{gap}{kind} {}", escaped(name));
            if several {
                line.push_str(" ...");
            }
        }
        line.push('\n');
        self.raw(&line);
    }

    fn subcommand(&mut self, command: &Subcommand) {
        self.raw(&format!(".Ss {}\n", command.name));
        let mut brief = command.brief.to_owned();
        brief[..1].make_ascii_uppercase();
        self.prose(&format!("{brief}."));
        for paragraph in command.more {
            self.raw(".Pp\n");
            self.prose(paragraph);
        }
        self.flags(command.flags);
    }

    fn flags(&mut self, flags: &[Flag]) {
        if flags.is_empty() {
            return;
        }
        self.raw(".Bl -tag -width Ds\n");
        for flag in flags {
            let mut item = String::from(".It");
            if let Some(short) = flag.short {
                let _ = write!(item, " Fl {short} ,");
            }
            let _ = write!(item, " Fl \\-{}", escaped(flag.long));
            if let Some(value) = flag.value {
                let _ = write!(item, " Ar {value}");
            }
            self.raw(&format!("{item}\n"));
            let mut brief = flag.brief.to_owned();
            brief[..1].make_ascii_uppercase();
            self.prose(&format!("{brief}."));
            if !flag.more.is_empty() {
                self.prose(flag.more);
            }
        }
        self.raw(".El\n");
    }

    fn config(&mut self) {
        self.section("CONFIGURATION");
        self.prose(
            "The config file is `config.json` in the folder `plugins/plexum-openai-provider` of the daemon's profile: one JSON object, every key of it optional. A wrong type is an error that names the key, what stands there and what was expected, with line and column; an unknown key is a warning that names the nearest known one.",
        );
        self.raw(".Bl -tag -width Ds\n");
        for key in config::KEYS {
            let default = escaped(&kind_and_default(key)).replace('"', "\\(dq");
            self.raw(&format!(".It Cm {} Pq {default}\n", escaped(key.name)));
            self.prose(key.meaning);
        }
        self.raw(".El\n");
        self.raw(".Pp\nA config with several of them:\n");
        self.literal(about::CONFIG_EXAMPLE);
    }

    fn topics(&mut self, section: &str, mark: &str, topics: &[(&str, &str)]) {
        self.section(section);
        self.raw(".Bl -tag -width Ds\n");
        for (name, meaning) in topics {
            let mut item = String::from(".It");
            for (at, name) in name.split(", ").enumerate() {
                if at > 0 {
                    item.push_str(" ,");
                }
                if mark != ".It" {
                    let _ = write!(item, " {}", &mark[1..]);
                }
                let _ = write!(item, " {}", escaped(name));
            }
            self.raw(&format!("{item}\n"));
            self.prose(meaning);
        }
        self.raw(".El\n");
    }

    fn examples(&mut self) {
        self.section("EXAMPLES");
        let mut first = true;
        for command in flags::SUBCOMMANDS {
            for (example, what) in command.examples {
                if !first {
                    self.raw(".Pp\n");
                }
                first = false;
                let mut what = (*what).to_owned();
                what[..1].make_ascii_uppercase();
                self.prose(&format!("{what}:"));
                self.literal(example);
            }
        }
        self.raw(".Pp\n");
        self.prose(
            "Under systemd the daemon has neither the PATH nor the variables of a login shell. A drop-in for its user unit, here called `plexum.service`, can say what it needs:",
        );
        self.literal(about::SYSTEMD_DROP_IN);
        self.raw(".Pp\n");
        self.prose("It is read after `systemctl --user daemon-reload` and a restart of the unit.");
    }

    fn literal(&mut self, text: &str) {
        self.raw(".Bd -literal -offset indent\n");
        for line in text.lines() {
            let line = escaped(line);
            // A dot or a quote at its beginning would make the line a request.
            let guard = if line.starts_with(['.', '\'']) {
                "\\&"
            } else {
                ""
            };
            self.raw(&format!("{guard}{line}\n"));
        }
        self.raw(".Ed\n");
    }

    fn section(&mut self, name: &str) {
        self.raw(&format!(".Sh {name}\n"));
    }

    fn paragraphs(&mut self, paragraphs: &[&str]) {
        for (at, paragraph) in paragraphs.iter().enumerate() {
            if at > 0 {
                self.raw(".Pp\n");
            }
            self.prose(paragraph);
        }
    }

    /// A paragraph's text: sentences on lines of their own, code as `.Ql`, references as `.Xr`.
    fn prose(&mut self, text: &str) {
        let mut line = Line::default();
        // Where a stretch ends without a space, what follows it belongs to the same word.
        let mut glued = String::new();
        let parts: Vec<Span<'_>> = spans(text).collect();
        for (at, part) in parts.iter().enumerate() {
            match part {
                Span::Plain(plain) => {
                    let after_code = at > 0;
                    let before_code = at + 1 < parts.len();
                    let mut words = *plain;
                    if after_code && !words.starts_with(' ') {
                        // The caller before has taken what is glued to it.
                        words = words.find(' ').map_or("", |end| &words[end..]);
                    }
                    if before_code && !words.ends_with(' ') {
                        let start = words.rfind(' ').map_or(0, |space| space + 1);
                        glued = words[start..].to_owned();
                        words = &words[..start];
                    }
                    for word in words.split_whitespace() {
                        line.word(word, &mut self.source);
                    }
                }
                Span::Code(code) => {
                    line.end(&mut self.source);
                    let tail = match parts.get(at + 1) {
                        Some(Span::Plain(next)) => next.split(' ').next().unwrap_or_default(),
                        _ => "",
                    };
                    self.code(&glued, code, tail);
                    glued.clear();
                }
            }
        }
        line.end(&mut self.source);
    }

    /// One `.Ql` line: the code, with what is glued to it before and behind.
    fn code(&mut self, before: &str, code: &str, behind: &str) {
        let mut line = String::from(".");
        if !before.is_empty() {
            let _ = write!(line, "No \\&{} Ns ", escaped(before));
        }
        // In double quotes it is one argument and no macro, whatever its words are.
        let mark = if has_quotes(code) { "Cm" } else { "Ql" };
        let code = escaped(code).replace('"', "\\(dq");
        let _ = write!(line, "{mark} \"{code}\"");
        if !behind.is_empty() {
            if behind.chars().all(|c| ".,:;?!)]".contains(c)) {
                for mark in behind.chars() {
                    let _ = write!(line, " {mark}");
                }
            } else {
                let _ = write!(line, " Ns No {}", escaped(behind));
            }
        }
        line.push('\n');
        self.raw(&line);
    }

    fn raw(&mut self, source: &str) {
        self.source.push_str(source);
    }
}

/// A line of plain words that is being filled.
#[derive(Default)]
struct Line {
    text: String,
}

impl Line {
    fn word(&mut self, word: &str, source: &mut String) {
        let bare = word.trim_end_matches(['.', ',', ':', ';', ')']);
        // The bracket of a reference is its own: `name(7)`, not the end of a parenthesis.
        let reference = word
            .find("(")
            .filter(|&open| open > 0 && word[open..].chars().nth(2) == Some(')'))
            .map(|open| (&word[..open], &word[open + 1..open + 2], &word[open + 3..]));
        if let Some((name, section, behind)) = reference {
            self.end(source);
            let _ = write!(source, ".Xr {name} {section}");
            for mark in behind.chars() {
                let _ = write!(source, " {mark}");
            }
            source.push('\n');
            return;
        }
        let word_escaped = escaped(word);
        if !self.text.is_empty() && self.text.len() + 1 + word_escaped.len() > FILL {
            self.end(source);
        }
        if !self.text.is_empty() {
            self.text.push(' ');
        }
        self.text.push_str(&word_escaped);
        if word.ends_with('.') && bare.len() + 1 == word.len() {
            self.end(source);
        }
    }

    fn end(&mut self, source: &mut String) {
        if self.text.is_empty() {
            return;
        }
        if self.text.starts_with(['.', '\'']) {
            source.push_str("\\&");
        }
        source.push_str(&self.text);
        source.push('\n');
        self.text.clear();
    }
}

/// A flag in the synopsis: short where it has a short form.
fn shortest(flag: &Flag) -> String {
    let mut shown = match flag.short {
        Some(short) => format!("Fl {short}"),
        None => format!("Fl \\-{}", escaped(flag.long)),
    };
    if let Some(value) = flag.value {
        let _ = write!(shown, " Ar {value}");
    }
    if flag.repeatable {
        shown.push_str(" ...");
    }
    shown
}

/// Text as roff takes it: a backslash is itself, and a minus sign stays one, so that it can be copied.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\e")
        .replace('-', "\\-")
        .replace('~', "\\(ti")
        .replace('^', "\\(ha")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_becomes_mdoc() {
        for (text, source) in [
            ("One. Two three.", "One.\nTwo three.\n"),
            ("see `x`, or `y`.", "see\n.Ql \"x\" ,\nor\n.Ql \"y\" .\n"),
            ("(`x`)", ".No \\&( Ns Ql \"x\" )\n"),
            ("the `x`'s end", "the\n.Ql \"x\" Ns No 's\nend\n"),
            ("`\"a\"`", ".Cm \"\\(dqa\\(dq\"\n"),
            ("in foo(7).", "in\n.Xr foo 7 .\n"),
            (".dot first", "\\&.dot first\n"),
            ("`a\"b\\`", ".Ql \"a\\(dqb\\e\"\n"),
            ("`-c x=\"~\"` a", ".Ql \"\\-c x=\\(dq\\(ti\\(dq\"\na\n"),
        ] {
            let mut page = Page::default();
            page.prose(text);
            assert_eq!(page.source, source, "{text}");
        }
    }

    #[test]
    fn the_page_in_the_repository_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/man/plexum-openai.1");
        let there = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            there == page(),
            "man/plexum-openai.1 is out of date: run 'make man'"
        );
    }
}
