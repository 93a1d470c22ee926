//! Decides whether output is in colour: `--color`, then `NO_COLOR` and `TERM`.

use super::flags::{Parsed, usage};
use crate::error::Result;
use std::ffi::OsString;
use std::io::IsTerminal;

/// Whether to write to this stream in colour.
///
/// # Errors
/// [`crate::error::Kind::Usage`] where the value of `--color` is unknown.
pub(crate) fn is_enabled(parsed: &Parsed, stream: &impl IsTerminal) -> Result<bool> {
    decide(parsed.text("color")?, stream.is_terminal(), |name| {
        std::env::var_os(name).filter(|value| !value.is_empty())
    })
}

fn decide(
    flag: Option<&str>,
    terminal: bool,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<bool> {
    match flag {
        None | Some("auto") => Ok(terminal
            && variable("NO_COLOR").is_none()
            && variable("TERM").is_none_or(|term| term != "dumb")),
        Some("always") => Ok(true),
        Some("never") => Ok(false),
        Some(other) => Err(usage(format!(
            "'--color {other}': expected auto, always or never"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn color_follows_flag_and_environment() {
        for (flag, terminal, variable, expected) in [
            (None, true, ("TERM", "xterm"), true),
            (None, false, ("TERM", "xterm"), false),
            (Some("auto"), true, ("NO_COLOR", "1"), false),
            (Some("auto"), true, ("TERM", "dumb"), false),
            (Some("always"), false, ("NO_COLOR", "1"), true),
            (Some("never"), true, ("TERM", "xterm"), false),
        ] {
            let lookup = |name: &str| (name == variable.0).then(|| variable.1.into());
            let got = decide(flag, terminal, lookup).unwrap();
            assert_eq!(got, expected, "{flag:?} {terminal} {variable:?}");
        }
        let error = decide(Some("red"), true, |_| None).unwrap_err();
        assert_eq!(
            error.message(),
            "'--color red': expected auto, always or never"
        );
    }
}
