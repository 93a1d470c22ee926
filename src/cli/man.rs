//! The man page `plexum-openai`(1), and tests that compare it with the tables.
//!
//! The page is written by hand in `man/plexum-openai.1`. Its subcommands, flags, arguments, config keys, environment
//! variables, files and exit statuses must be those of the tables, in the same order and with the same texts, to which
//! the page can add more.

/// The page's mdoc source.
pub(crate) const PAGE: &str = include_str!("../../man/plexum-openai.1");

#[cfg(test)]
mod tests {
    use super::super::flags::{self, Flag, Subcommand};
    use super::super::{about, help};
    use super::*;
    use crate::config;

    /// Flags of other programs that the page mentions.
    const FOREIGN_FLAGS: &[&str] = &["--user", "--add-dir", "--color"];

    /// The text from this heading to the next one of the same or a higher level.
    fn section(heading: &str) -> &'static str {
        let (_, rest) = PAGE
            .split_once(&format!("\n{heading}\n"))
            .unwrap_or_else(|| panic!("the page has no '{heading}'"));
        let mut end = rest.find("\n.Sh ").unwrap_or(rest.len());
        if heading.starts_with(".Ss") {
            end = end.min(rest.find("\n.Ss ").unwrap_or(rest.len()));
        }
        &rest[..=end.min(rest.len() - 1)]
    }

    /// Renders a macro line: `-w, --workspace DIR` for `.It Fl w , Fl \-workspace Ar DIR`.
    fn render(line: &str) -> String {
        let mut text = line
            .replace("\\(dq", "\"")
            .replace("\\(ti", "~")
            .replace("Fl ", "-")
            .replace("\\-", "-")
            .replace(" ,", ",");
        for name in [".It ", ".Op ", "Ar ", "Cm ", "Ev ", "Pa "] {
            text = text.replace(name, "");
        }
        text
    }

    /// The lines of a text that begin with `start`, rendered.
    fn items(text: &str, start: &str) -> Vec<String> {
        text.lines()
            .filter(|line| line.starts_with(start))
            .map(render)
            .collect()
    }

    fn flag_names(flags: &[Flag]) -> Vec<String> {
        flags
            .iter()
            .map(|flag| help::flag_name(flag).trim().to_owned())
            .collect()
    }

    #[test]
    fn page_has_every_subcommand_and_flag() {
        let names: Vec<_> = flags::SUBCOMMANDS
            .iter()
            .map(|command| command.name)
            .collect();
        let sections: Vec<_> = PAGE
            .lines()
            .filter_map(|line| line.strip_prefix(".Ss "))
            .collect();
        assert_eq!(sections, names);
        let common = items(section(".Sh DESCRIPTION"), ".It Fl ");
        assert_eq!(common, flag_names(flags::COMMON));
        for command in flags::SUBCOMMANDS {
            let listed = items(section(&format!(".Ss {}", command.name)), ".It Fl ");
            assert_eq!(listed, flag_names(command.flags), "{}", command.name);
        }
    }

    /// The lines of a subcommand's synopsis: its name, the shorter form of each flag, its operands.
    fn synopsis(command: &Subcommand) -> Vec<String> {
        let mut parts = vec![command.name.to_owned()];
        for flag in command.flags {
            let mut part = match flag.short {
                Some(short) => format!("-{short}"),
                None => format!("--{}", flag.long),
            };
            if let Some(value) = flag.value {
                part.push_str(&format!(" {value}"));
            }
            if flag.repeatable {
                part.push_str(" ...");
            }
            parts.push(part);
        }
        if !command.operands.is_empty() {
            let operands = command.operands.trim_matches(['[', ']']);
            for operand in operands.split("] [") {
                parts.push(operand.replace("...", " ...").replace('|', " | "));
            }
        }
        parts
    }

    #[test]
    fn page_has_every_synopsis() {
        let mut blocks = section(".Sh SYNOPSIS").split(".Nm\n").skip(1);
        for command in flags::SUBCOMMANDS {
            let block = blocks.next().expect("a block for each subcommand");
            let parts: Vec<_> = block
                .lines()
                .map(|line| render(line).trim_start_matches('.').to_owned())
                .collect();
            assert_eq!(parts, synopsis(command));
        }
        assert_eq!(blocks.next(), None);
    }

    #[test]
    fn page_has_every_config_key() {
        let keys: Vec<_> = config::KEYS
            .iter()
            .map(|key| format!("{} Pq {}", key.name, help::kind_and_default(key)))
            .collect();
        assert_eq!(items(section(".Sh CONFIGURATION"), ".It "), keys);
        let (_, example) = section(".Sh CONFIGURATION")
            .split_once(".Bd -literal -offset indent\n")
            .expect("an example");
        let example = example.split(".Ed").next().unwrap();
        let example = example.replace("\\-", "-").replace("\\(ti", "~");
        let (_, warnings) = config::load::parse(&example).unwrap();
        assert_eq!(warnings, [""; 0]);
    }

    #[test]
    fn page_has_every_variable_file_and_exit_status() {
        for (heading, topics) in [
            (".Sh ENVIRONMENT", about::ENVIRONMENT),
            (".Sh FILES", about::FILES),
            (".Sh EXIT STATUS", about::EXIT_STATUS),
        ] {
            let names: Vec<_> = topics.iter().map(|(name, _)| (*name).to_owned()).collect();
            assert_eq!(items(section(heading), ".It "), names, "{heading}");
        }
    }

    /// The page's text without markup and line breaks; a macro that prints no text is a `|`.
    fn plain_page() -> String {
        let mut text = String::new();
        for line in PAGE.lines() {
            let line = line
                .replace("\\-", "-")
                .replace("\\(ti", "~")
                .replace("\\&", "")
                .replace("\"\"", "\\(dq");
            let words = match line.strip_prefix('.') {
                None => line,
                Some(line) => {
                    let (name, words) = line.split_once(' ').unwrap_or((line, ""));
                    match name {
                        "Nm" if words.is_empty() => "plexum-openai".to_owned(),
                        "Xr" => {
                            let (page, rest) = words.split_once(' ').unwrap();
                            let (section, end) = rest.split_once(' ').unwrap_or((rest, ""));
                            format!("{page}({section}) {end}")
                        }
                        "Cm" | "Ev" | "No" | "Pa" | "Ql" => {
                            words.replace(" Ns Ql ", "").replace('"', "")
                        }
                        "Po" => "(".to_owned(),
                        "Pc" => format!(") {words}"),
                        _ => "|".to_owned(),
                    }
                }
            };
            text.push_str(&words.replace("\\(dq", "\""));
            text.push(' ');
        }
        comparable(&text)
    }

    /// A text without backquotes and the spaces around punctuation.
    fn comparable(text: &str) -> String {
        let mut text = text.replace('`', "");
        for punctuation in [",", ".", ";", ":", ")"] {
            text = text.replace(&format!(" {punctuation}"), punctuation);
        }
        text.replace("( ", "(")
    }

    #[test]
    fn page_has_every_text_of_help() {
        let page = plain_page();
        let flags = flags::SUBCOMMANDS
            .iter()
            .flat_map(|command| command.flags)
            .chain(flags::COMMON);
        let briefs = flags::SUBCOMMANDS.iter().map(|command| command.brief);
        let briefs = briefs
            .chain(flags.clone().map(|flag| flag.brief))
            .map(|brief| match brief.starts_with("codex") {
                true => format!("{brief}."),
                false => brief[..1].to_uppercase() + &brief[1..] + ".",
            });
        let paragraphs = flags::SUBCOMMANDS.iter().flat_map(|command| command.more);
        let topics = [about::ENVIRONMENT, about::FILES, about::EXIT_STATUS];
        let texts = flags
            .map(|flag| flag.more)
            .chain(paragraphs.chain(about::PROGRAM).copied())
            .chain(config::KEYS.iter().map(|key| key.meaning))
            .chain(topics.into_iter().flatten().map(|(_, meaning)| *meaning))
            .map(str::to_owned);
        for text in briefs.chain(texts) {
            assert!(page.contains(&comparable(&text)), "{text}");
        }
    }

    #[test]
    fn page_names_no_flag_that_does_not_exist() {
        let known: Vec<_> = flags::SUBCOMMANDS
            .iter()
            .flat_map(|command| command.flags)
            .chain(flags::COMMON)
            .map(|flag| format!("--{}", flag.long))
            .collect();
        let text = PAGE.replace("Fl \\-", "--").replace("\\-", "-");
        let mut named = 0;
        for (at, _) in text.match_indices("--") {
            let end = text[at..].find(|c: char| c != '-' && !c.is_ascii_lowercase());
            let flag = &text[at..at + end.unwrap_or(text.len() - at)];
            assert!(
                FOREIGN_FLAGS.contains(&flag) || known.iter().any(|known| known == flag),
                "there is no '{flag}'"
            );
            named += 1;
        }
        assert!(
            named > known.len(),
            "the flags stand where they are looked for"
        );
    }
}
