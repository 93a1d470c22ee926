//! Words as a shell takes them, for what people are to copy from a message.

/// A path as a shell takes it, which no program takes for a flag.
pub(crate) fn quote_path(path: &str) -> String {
    match path.strip_prefix('-') {
        Some(_) => quote(&format!("./{path}")),
        None => quote(path),
    }
}

/// An argument as a shell takes it. A control character in it, which people could not copy, is written as bash, zsh
/// and ksh take it: `$'a\nb'`.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@,~=".contains(c);
    // At the beginning a shell would expand the tilde.
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

/// How this process was called, for a shell; a long command line only in its beginning.
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
