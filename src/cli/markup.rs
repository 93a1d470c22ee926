//! The one markup that the tables' texts use: words in backquotes are code.
//!
//! Help, man page and completions each render it in their own way; this file only takes it apart, so that
//! none of them can read it differently. Texts are ASCII: a man page's source and every terminal have it.

/// A stretch of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Span<'a> {
    Plain(&'a str),
    Code(&'a str),
}

/// Takes a text apart. An unpaired backquote makes the rest code; a test keeps the tables free of them.
pub(crate) fn spans(text: &str) -> impl Iterator<Item = Span<'_>> {
    text.split('`').enumerate().filter_map(|(at, part)| {
        if part.is_empty() {
            None
        } else if at % 2 == 0 {
            Some(Span::Plain(part))
        } else {
            Some(Span::Code(part))
        }
    })
}

/// The text as a terminal shows it: code between straight quotes, unless it has its own.
pub(crate) fn plain(text: &str) -> String {
    spans(text)
        .map(|span| match span {
            Span::Plain(plain) => plain.to_owned(),
            Span::Code(code) if has_quotes(code) => code.to_owned(),
            Span::Code(code) => format!("'{code}'"),
        })
        .collect()
}

/// Is this code a string in quotes, which needs no others around it?
pub(crate) fn has_quotes(code: &str) -> bool {
    code.len() >= 2 && code.starts_with('"') && code.ends_with('"')
}

#[cfg(test)]
mod tests {
    use super::super::{about, flags};
    use super::*;
    use crate::config;

    #[test]
    fn code_stands_between_backquotes() {
        let got: Vec<_> = spans("`a b` and `c`.").collect();
        assert_eq!(
            got,
            [
                Span::Code("a b"),
                Span::Plain(" and "),
                Span::Code("c"),
                Span::Plain(".")
            ]
        );
        assert_eq!(plain("see `x` or `\"y\"`"), "see 'x' or \"y\"");
    }

    /// Every text that is rendered, with the place where it stands.
    fn texts() -> Vec<(String, &'static str)> {
        let mut all: Vec<(String, &'static str)> = Vec::new();
        let mut flag_texts = |of: &str, flags: &'static [flags::Flag]| {
            for flag in flags {
                all.push((format!("{of} --{}", flag.long), flag.brief));
                all.push((format!("{of} --{}", flag.long), flag.more));
            }
        };
        flag_texts("", flags::COMMON);
        for command in flags::SUBCOMMANDS {
            flag_texts(command.name, command.flags);
        }
        for command in flags::SUBCOMMANDS {
            let paragraphs = command.more.iter().chain([&command.brief]);
            all.extend(paragraphs.map(|text| (command.name.to_owned(), *text)));
        }
        for topic in about::FILES.iter().chain(about::ENVIRONMENT) {
            all.push((topic.0.to_owned(), topic.1));
        }
        for topic in about::EXIT_STATUS {
            all.push((format!("exit {}", topic.0), topic.1));
        }
        all.extend(about::PROGRAM.iter().map(|text| ("program".into(), *text)));
        all.extend(
            config::KEYS
                .iter()
                .map(|key| (key.name.to_owned(), key.meaning)),
        );
        all
    }

    #[test]
    fn the_texts_are_ascii_with_paired_backquotes() {
        for (place, text) in texts() {
            assert!(text.is_ascii(), "{place}: {text}");
            assert!(!text.contains('\n'), "{place}: {text}");
            assert_eq!(text.matches('`').count() % 2, 0, "{place}: {text}");
        }
    }
}
