//! Renders the help text, `-h` or `--help`, of a subcommand or of the program.
//!
//! Does no I/O: tables in, text of at most 80 columns out. Everything comes from the flag table, the tables in
//! `about.rs` and the config keys, so that help cannot disagree with the parser.

use super::about::{self, NAME};
use super::flags::{self, Flag, Help, Subcommand};
use crate::config;

/// The maximum width of a line, apart from examples.
const COLUMNS: usize = 80;
/// The last column in which descriptions of flags and subcommands begin; after a longer name they begin on the next
/// line.
const MAX_NAME_WIDTH: usize = 28;

/// Renders the help text, which ends with a newline.
pub(crate) fn text(help: Help, subcommand: Option<&Subcommand>) -> String {
    let mut page = HelpPage::default();
    match subcommand {
        Some(command) => page.subcommand(help, command),
        None => page.program(help),
    }
    page.text
}

/// The page while it is rendered.
#[derive(Default)]
struct HelpPage {
    text: String,
}

impl HelpPage {
    fn program(&mut self, help: Help) {
        let version = env!("CARGO_PKG_VERSION");
        self.line(&format!("{NAME} {version}: {}", about::BRIEF));
        self.line("");
        self.line(&format!("Usage: {NAME} [SUBCOMMAND] [FLAGS] [OPERANDS]"));
        if help == Help::Whole {
            self.paragraphs(about::PROGRAM);
        }
        self.heading("Subcommands");
        let commands: Vec<_> = flags::SUBCOMMANDS
            .iter()
            .map(|command| (format!("  {}", command.name), command.brief))
            .collect();
        self.list(&commands, &[]);
        self.flags(help, &[]);
        match help {
            Help::Short => {
                self.line("");
                self.line(
                    "A subcommand's flags: 'plexum-openai SUBCOMMAND -h'. All of it: '--help'.",
                );
            }
            Help::Whole => {
                self.heading("Config file");
                self.config();
                self.topics("Environment", about::ENVIRONMENT);
                self.topics("Files", about::FILES);
                self.topics("Exit status", about::EXIT_STATUS);
                self.line("");
                self.wrapped(
                    &format!("See also '{NAME} SUBCOMMAND --help', {NAME}(1), {NAME}-protocol(7)."),
                    0,
                    0,
                );
            }
        }
    }

    fn subcommand(&mut self, help: Help, command: &Subcommand) {
        let title = format!("{NAME} {}: {}", command.name, command.brief);
        self.wrapped(&title, 0, 2);
        self.line("");
        let mut usage = format!("Usage: {NAME} {}", command.name);
        if !command.flags.is_empty() {
            usage.push_str(" [FLAGS]");
        }
        if !command.operands.is_empty() {
            usage.push(' ');
            usage.push_str(command.operands);
        }
        self.line(&usage);
        if help == Help::Whole {
            self.paragraphs(command.more);
        }
        self.flags(help, command.flags);
        if help == Help::Whole && !command.examples.is_empty() {
            self.heading("Examples");
            for (at, (example, what)) in command.examples.iter().enumerate() {
                if at > 0 {
                    self.line("");
                }
                self.wrapped(&format!("# {}", plain(what)), 2, 4);
                // A command line is never wrapped, so that it can be copied.
                self.line(&format!("  {example}"));
            }
        }
    }

    fn flags(&mut self, help: Help, own: &[Flag]) {
        self.heading("Flags");
        // Short help must fit on 24 lines: of the common flags a subcommand only lists `--help`.
        let common = match (help, own) {
            (Help::Short, [_, ..]) => &flags::COMMON[..1],
            _ => flags::COMMON,
        };
        let names: Vec<_> = own
            .iter()
            .chain(common)
            .map(|flag| (flag_name(flag), flag.brief))
            .collect();
        let more: Vec<_> = match help {
            Help::Short => Vec::new(),
            Help::Whole => own.iter().chain(flags::COMMON).map(|f| f.more).collect(),
        };
        self.list(&names, &more);
    }

    fn config(&mut self) {
        for (at, key) in config::KEYS.iter().enumerate() {
            if at > 0 {
                self.line("");
            }
            self.line(&format!("  {} ({})", key.name, kind_and_default(key)));
            self.wrapped(&plain(key.meaning), 6, 6);
        }
    }

    fn topics(&mut self, heading: &str, topics: &[(&str, &str)]) {
        self.heading(heading);
        for (name, meaning) in topics {
            let name = format!("  {name}");
            if name.len() < 10 {
                self.wrapped(&format!("{name:10}{}", plain(meaning)), 0, 10);
            } else {
                self.line(&name);
                self.wrapped(&plain(meaning), 6, 6);
            }
        }
    }

    /// Adds two columns, names and descriptions; `more` has additional text for each row, where it is not empty.
    fn list(&mut self, rows: &[(String, &str)], more: &[&str]) {
        let fits = rows.iter().map(|(name, _)| name.len() + 2);
        let column = fits.filter(|&end| end <= MAX_NAME_WIDTH).max().unwrap_or(2);
        for (at, (name, brief)) in rows.iter().enumerate() {
            if name.len() + 2 > column {
                self.line(name);
                self.wrapped(&plain(brief), column, column);
            } else {
                self.wrapped(&format!("{name:column$}{}", plain(brief)), 0, column);
            }
            if let Some(more) = more.get(at).filter(|more| !more.is_empty()) {
                self.wrapped(&plain(more), column, column);
            }
        }
    }

    fn paragraphs(&mut self, paragraphs: &[&str]) {
        for paragraph in paragraphs {
            self.line("");
            self.wrapped(&plain(paragraph), 0, 0);
        }
    }

    fn heading(&mut self, name: &str) {
        self.line("");
        self.line(&format!("{name}:"));
    }

    /// Adds text wrapped at spaces, with indents `first` and `next`. Leading and inner spaces of the first line are
    /// kept: it can begin with a name that is padded to its column.
    fn wrapped(&mut self, text: &str, first: usize, next: usize) {
        let mut line = " ".repeat(first);
        let mut rest = text;
        loop {
            let room = COLUMNS.saturating_sub(line.len());
            if rest.len() <= room {
                break;
            }
            // The texts are ASCII, so a byte is a column. A word that is wider than a line gets a line alone.
            let end = rest[..=room]
                .rfind(' ')
                .filter(|&at| !rest[..at].trim().is_empty())
                .or_else(|| rest.find(' '));
            let Some(end) = end else { break };
            line.push_str(rest[..end].trim_end());
            self.line(&line);
            rest = rest[end..].trim_start();
            line = " ".repeat(next);
        }
        line.push_str(rest);
        self.line(&line);
    }

    fn line(&mut self, line: &str) {
        self.text.push_str(line.trim_end());
        self.text.push('\n');
    }
}

/// Converts a table's text for a terminal: code in backquotes gets single quotes instead, or none where it begins with
/// a double quote.
pub(crate) fn plain(text: &str) -> String {
    let mut shown = String::new();
    for (at, part) in text.split('`').enumerate() {
        let is_code = at % 2 == 1 && !part.starts_with('"');
        let quote = if is_code { "'" } else { "" };
        shown.extend([quote, part, quote]);
    }
    shown
}

/// A config key's type and default, in the format of help and man page.
pub(crate) fn kind_and_default(key: &config::ConfigKey) -> String {
    match key.default {
        "unset" => format!("{}, unset", key.kind),
        default => format!("{}, default {default}", key.kind),
    }
}

/// A flag's short and long form and its placeholder, indented so that the long forms are aligned.
pub(crate) fn flag_name(flag: &Flag) -> String {
    let mut name = match flag.short {
        Some(short) => format!("  -{short}, --{}", flag.long),
        None => format!("      --{}", flag.long),
    };
    if let Some(value) = flag.value {
        name.push(' ');
        name.push_str(value);
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_pages() -> Vec<(String, String)> {
        let mut pages = Vec::new();
        for help in [Help::Short, Help::Whole] {
            pages.push((format!("{help:?}"), text(help, None)));
            for command in flags::SUBCOMMANDS {
                let name = format!("{help:?} {}", command.name);
                pages.push((name, text(help, Some(command))));
            }
        }
        pages
    }

    #[test]
    fn lines_fit_80_columns() {
        for (name, page) in all_pages() {
            let mut examples = false;
            for line in page.lines() {
                examples |= line == "Examples:";
                let command = examples && !line.trim_start().starts_with('#');
                assert!(line.len() <= COLUMNS || command, "{name}: {line}");
                assert_eq!(line.trim_end(), line, "{name}: spaces at the end");
                // Wrapping relies on it: a byte is a column.
                assert!(line.is_ascii(), "{name}: {line}");
            }
        }
    }

    #[test]
    fn quotes_code_once() {
        assert_eq!(plain("`a b` and `c`."), "'a b' and 'c'.");
        assert_eq!(plain("see `x` or `\"y\"`"), "see 'x' or \"y\"");
    }

    #[test]
    fn backquotes_are_paired() {
        let flags = flags::SUBCOMMANDS.iter().flat_map(|command| command.flags);
        let flags = flags.chain(flags::COMMON);
        let mut texts: Vec<&str> = flags.flat_map(|flag| [flag.brief, flag.more]).collect();
        for command in flags::SUBCOMMANDS {
            texts.push(command.brief);
            texts.extend(command.more);
        }
        for topics in [about::FILES, about::ENVIRONMENT, about::EXIT_STATUS] {
            texts.extend(topics.iter().map(|(_, meaning)| meaning));
        }
        texts.extend(about::PROGRAM);
        texts.extend(config::KEYS.iter().map(|key| key.meaning));
        for text in texts {
            assert_eq!(text.matches('`').count() % 2, 0, "{text}");
        }
    }

    #[test]
    fn short_help_fits_screen() {
        for command in flags::SUBCOMMANDS {
            let short = text(Help::Short, Some(command));
            let whole = text(Help::Whole, Some(command));
            assert!(short.lines().count() <= 24, "{}:\n{short}", command.name);
            assert!(whole.len() > short.len(), "{}", command.name);
        }
        assert!(text(Help::Short, None).lines().count() <= 24);
    }

    #[test]
    fn help_lists_every_key_subcommand_and_flag() {
        let whole = text(Help::Whole, None);
        for key in config::KEYS {
            assert!(
                whole.contains(&format!("\n  {} (", key.name)),
                "{}",
                key.name
            );
        }
        for command in flags::SUBCOMMANDS {
            assert!(whole.contains(&format!("\n  {} ", command.name)));
            let pages = [Help::Short, Help::Whole].map(|help| text(help, Some(command)));
            for flag in command.flags.iter().chain(flags::COMMON) {
                let name = flag_name(flag);
                // The short help of a subcommand leaves `--version` out.
                let is_short = pages[0].contains(&name) || flag.long == "version";
                assert!(
                    is_short && pages[1].contains(&name),
                    "{}: {}",
                    command.name,
                    flag.long
                );
            }
        }
    }

    #[test]
    fn wraps_long_words_and_exact_fits() {
        for (input, expected) in [
            ("a b", "    a b\n".to_owned()),
            (
                &format!("{} end", "x".repeat(76)),
                format!("    {}\n    end\n", "x".repeat(76)),
            ),
            (
                &format!("{} end", "x".repeat(90)),
                format!("    {}\n    end\n", "x".repeat(90)),
            ),
            (&"x".repeat(90), format!("    {}\n", "x".repeat(90))),
            (
                &format!("{} yy", "x".repeat(74)),
                format!("    {}\n    yy\n", "x".repeat(74)),
            ),
        ] {
            let mut page = HelpPage::default();
            page.wrapped(input, 4, 4);
            assert_eq!(page.text, expected);
        }
    }
}
