//! Quotes strings for TOML, in which codex takes its settings.

/// A text as a TOML basic string.
pub(crate) fn string(text: &str) -> String {
    let mut toml = String::with_capacity(text.len() + 2);
    toml.push('"');
    for char in text.chars() {
        match char {
            '"' => toml.push_str("\\\""),
            '\\' => toml.push_str("\\\\"),
            '\n' => toml.push_str("\\n"),
            '\r' => toml.push_str("\\r"),
            '\t' => toml.push_str("\\t"),
            char if char.is_control() => {
                toml.push_str(&format!("\\u{:04X}", u32::from(char)));
            }
            char => toml.push(char),
        }
    }
    toml.push('"');
    toml
}

/// A text as a TOML multi-line literal string; `None` where it cannot be one.
pub(crate) fn literal(text: &str) -> Option<String> {
    let bare = |char: char| matches!(char, '\n' | '\t') || !char.is_control();
    let fits = text.chars().all(bare) && !text.contains("'''") && !text.ends_with('\'');
    // A newline right behind the opening delimiter is not part of the text.
    fits.then(|| format!("'''\n{text}'''"))
}
