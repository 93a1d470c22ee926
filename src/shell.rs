//! Shell quoting, for commands in messages that people copy.

/// Quotes a path for a shell; a leading `-` gets a `./` in front, so that no program takes it for a flag.
pub(crate) fn quote_path(path: &str) -> String {
    match path.strip_prefix('-') {
        Some(_) => quote(&format!("./{path}")),
        None => quote(path),
    }
}

/// Quotes an argument for a shell. With control characters, which cannot be copied from a terminal, it is written in
/// the syntax of bash, zsh and ksh: `$'a\012b'`.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@,~=".contains(c);
    // A shell expands a leading tilde.
    if !word.is_empty() && word.chars().all(plain) && !word.starts_with('~') {
        return word.to_owned();
    }
    if !word.chars().any(char::is_control) {
        return format!("'{}'", word.replace('\'', "'\\''"));
    }
    let mut quoted = "$'".to_owned();
    for c in word.chars() {
        match c {
            '\'' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => {
                let mut bytes = [0; 4];
                for byte in c.encode_utf8(&mut bytes).bytes() {
                    quoted.push_str(&format!("\\{byte:03o}"));
                }
            }
            c => quoted.push(c),
        }
    }
    quoted + "'"
}

/// The command line of this process, quoted for a shell. After 400 bytes, or before an argument with control
/// characters, it ends with ` …`.
pub(crate) fn own_command_line() -> String {
    let mut line = String::new();
    for argument in std::env::args_os() {
        let word = quote(&argument.to_string_lossy());
        if line.len() + word.len() > 400 || word.chars().any(char::is_control) {
            return format!("{line} …");
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(&word);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_words_for_shell() {
        assert_eq!(quote_path("/a/b-c.json"), "/a/b-c.json");
        assert_eq!(quote_path("it's {x}"), "'it'\\''s {x}'");
        assert_eq!(quote_path(""), "''");
        assert_eq!(quote_path("~root/x"), "'~root/x'");
        assert_eq!(quote_path("a\n'b"), "$'a\\012\\'b'");
    }
}
