//! The little of TOML that is needed to pass values to codex.

/// Text as a TOML basic string.
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

/// Text as a TOML multi-line literal string, where it can be one.
pub(crate) fn literal(text: &str) -> Option<String> {
    let bare = |char: char| matches!(char, '\n' | '\t') || !char.is_control();
    let fits = text.chars().all(bare) && !text.contains("'''") && !text.ends_with('\'');
    // A line end right behind the opening is not part of the text.
    fits.then(|| format!("'''\n{text}'''"))
}
