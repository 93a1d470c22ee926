//! Renders the flag table as completion scripts for bash, zsh and fish.
//!
//! Only [`run`] does I/O. The bash script does not need the bash-completion package, and each script can be sourced or
//! installed in the shell's completion directory. All texts are quoted for the shell, although the present ones would
//! not need it.

use super::about::NAME;
use super::flags::{self, Completes, Flag, Parsed, Subcommand, usage};
use super::help::plain;
use super::ignore_broken_pipe;
use crate::error::Result;
use std::fmt::Write as _;
use std::io::Write;

/// Runs `completions SHELL` and returns its exit status.
///
/// # Errors
/// [`crate::error::Kind::Usage`] where the shell is missing or unknown, [`crate::error::Kind::Io`] where
/// stdout cannot be written.
pub(crate) fn run(parsed: &Parsed, stdout: &mut dyn Write) -> Result<u8> {
    let shell = parsed
        .operands
        .first()
        .ok_or_else(|| usage("'completions' needs a shell: bash, zsh or fish"))?;
    let script = match shell.to_str() {
        Some("bash") => bash(),
        Some("zsh") => zsh(),
        Some("fish") => fish(),
        _ => {
            return Err(usage(format!(
                "no completions for the shell {shell:?}: expected bash, zsh or fish"
            )));
        }
    };
    ignore_broken_pipe(stdout.write_all(script.as_bytes()), 0)
}

/// Joins words for `compgen -W`, which splits at spaces; no word has one.
fn words(words: impl IntoIterator<Item = &'static str>) -> String {
    words.into_iter().collect::<Vec<_>>().join(" ")
}

/// All forms of a subcommand's flags and of the common ones.
fn spellings(flags: &'static [Flag]) -> String {
    let mut all = Vec::new();
    for flag in flags.iter().chain(flags::COMMON) {
        all.extend(flag.short.map(|short| format!("-{short}")));
        all.push(format!("--{}", flag.long));
    }
    all.join(" ")
}

fn bash() -> String {
    let mut script = format!(
        "\
# bash completion of {NAME}, printed by '{NAME} completions bash'.
# Source it, or put it into ~/.local/share/bash-completion/completions/{NAME}.
_plexum_openai() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}}
    local subcommand='' value_of='' ended='' at
    # bash makes a word of its own of the '=' in --flag=value.
    if [[ $word == '=' ]]; then
        value_of=$before word=''
    elif [[ $before == '=' ]]; then
        value_of=${{COMP_WORDS[COMP_CWORD-2]}}
    else
        value_of=$before
    fi
    for ((at = 1; at < COMP_CWORD; at++)); do
        case ${{COMP_WORDS[at]}} in
            --) ended=1 ;;
            -*) ;;
            *) if [[ -z $subcommand ]]; then subcommand=${{COMP_WORDS[at]}}; fi ;;
        esac
    done
    COMPREPLY=()
    if [[ -z $ended ]]; then
        case $subcommand:$value_of in
"
    );
    for command in flags::SUBCOMMANDS {
        for flag in command.flags.iter().filter(|flag| flag.value.is_some()) {
            let mut pattern = format!("{}:--{}", command.name, flag.long);
            if let Some(short) = flag.short {
                let _ = write!(pattern, " | {}:-{short}", command.name);
            }
            let _ = writeln!(
                script,
                "            {pattern}) {}; return ;;",
                bash_value(flag.completes)
            );
        }
    }
    script.push_str(
        "        esac\n        if [[ $word == -* ]]; then\n            case $subcommand in\n",
    );
    for command in flags::SUBCOMMANDS {
        let _ = writeln!(
            script,
            "                {}) _plexum_openai_words '{}' ;;",
            command.name,
            spellings(command.flags)
        );
    }
    let _ = write!(
        script,
        "                '') _plexum_openai_words '{}' ;;
            esac
            return
        fi
    fi
    case $subcommand in
        '') _plexum_openai_words '{}' ;;
",
        spellings(&[]),
        words(flags::SUBCOMMANDS.iter().map(|command| command.name)),
    );
    for command in flags::SUBCOMMANDS {
        if command.operand_completes != Completes::Nothing {
            let _ = writeln!(
                script,
                "        {}) {} ;;",
                command.name,
                bash_value(command.operand_completes)
            );
        }
    }
    let _ = write!(
        script,
        "    esac
}}
_plexum_openai_words() {{
    local IFS=$' \\t\\n'
    COMPREPLY=($(compgen -W \"$1\" -- \"$word\"))
}}
complete -F _plexum_openai {NAME}
"
    );
    script
}

/// The bash command that completes a value. File names are left to readline, which handles `~`, spaces and quotes.
fn bash_value(completes: Completes) -> String {
    match completes {
        Completes::Nothing => ":".to_owned(),
        Completes::File => "compopt -o default".to_owned(),
        Completes::Directory => "compopt -o dirnames".to_owned(),
        Completes::Words(list) => {
            format!("_plexum_openai_words '{}'", words(list.iter().copied()))
        }
    }
}

fn zsh() -> String {
    let mut script = format!(
        "\
#compdef {NAME}
# zsh completion of {NAME}, printed by '{NAME} completions zsh'.
# Put it into a directory of $fpath as _{NAME}, or source it after compinit.
_{NAME}() {{
    local context state state_descr line
    typeset -A opt_args
    _arguments -C -s -S \\
"
    );
    for spec in zsh_flags(&[]) {
        let _ = writeln!(script, "        {spec} \\");
    }
    script.push_str(
        "        '1:subcommand:->subcommand' \\
        '*::argument:->arguments' && return 0
    case $state in
        subcommand)
            local -a subcommands=(
",
    );
    for command in flags::SUBCOMMANDS {
        let _ = writeln!(
            script,
            "                {}",
            quoted(&format!(
                "{}:{}",
                command.name.replace(':', "\\:"),
                plain(command.brief)
            ))
        );
    }
    script.push_str(
        "            )
            _describe -t commands subcommand subcommands
            ;;
        arguments)
            case $line[1] in
",
    );
    for command in flags::SUBCOMMANDS {
        let _ = write!(
            script,
            "                {})\n                    _arguments -s -S",
            command.name
        );
        let indent = " ".repeat(24);
        for spec in zsh_flags(command.flags)
            .into_iter()
            .chain(zsh_operand(command))
        {
            let _ = write!(script, " \\\n{indent}{spec}");
        }
        script.push_str("\n                    ;;\n");
    }
    let _ = write!(
        script,
        "            esac
            ;;
    esac
}}
if [ \"$funcstack[1]\" = _{NAME} ]; then
    _{NAME} \"$@\"
else
    compdef _{NAME} {NAME}
fi
"
    );
    script
}

fn zsh_flags(own: &'static [Flag]) -> Vec<String> {
    let mut specs = Vec::new();
    for flag in own {
        let brief = zsh_text(flag.brief);
        let (eq, plus, value) = match flag.value {
            Some(name) => ("=", "+", format!(":{name}:{}", zsh_value(flag.completes))),
            None => ("", "", String::new()),
        };
        let description = quoted(&format!("[{brief}]{value}"));
        let long = flag.long;
        specs.push(match (flag.short, flag.repeatable) {
            (Some(short), false) => {
                format!("'(-{short} --{long})'{{-{short}{plus},--{long}{eq}}}{description}")
            }
            (Some(short), true) => format!("'*'{{-{short}{plus},--{long}{eq}}}{description}"),
            (None, false) => format!("--{long}{eq}{description}"),
            (None, true) => format!("'*'--{long}{eq}{description}"),
        });
    }
    for flag in flags::COMMON {
        let short = flag
            .short
            .map_or(String::new(), |short| format!("-{short},"));
        let description = quoted(&format!("[{}]", zsh_text(flag.brief)));
        specs.push(format!("'(- *)'{{{short}--{}}}{description}", flag.long));
    }
    specs
}

/// The `_arguments` spec of a subcommand's operands; `None` where nothing completes them. With a spec that completes
/// nothing, zsh would show its name instead of inserting a flag that is the only match.
fn zsh_operand(command: &Subcommand) -> Option<String> {
    if command.operand_completes == Completes::Nothing {
        return None;
    }
    let action = zsh_value(command.operand_completes);
    let name = zsh_text(command.operands.trim_matches(['[', ']']));
    let position = if command.max_operands == 1 { "1" } else { "*" };
    Some(quoted(&format!("{position}:{name}:{action}")))
}

fn zsh_value(completes: Completes) -> String {
    match completes {
        Completes::Nothing => " ".to_owned(),
        Completes::File => "_files".to_owned(),
        Completes::Directory => "_files -/".to_owned(),
        Completes::Words(list) => format!("({})", words(list.iter().copied())),
    }
}

/// Escapes a text for an `_arguments` spec, where brackets and colons are special.
fn zsh_text(text: &str) -> String {
    let mut escaped = String::new();
    for c in plain(text).chars() {
        if "[]:\\".contains(c) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// Puts a text in single quotes, for bash and zsh.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn fish() -> String {
    let mut script = format!(
        "\
# fish completion of {NAME}, printed by '{NAME} completions fish'.
# Source it, or put it into ~/.config/fish/completions/{NAME}.fish.
function __plexum_openai_subcommand
    for word in (commandline -opc)[2..]
        if not string match -q -- '-*' $word
            echo $word
            return
        end
    end
end
function __plexum_openai_in
    set -l subcommand (__plexum_openai_subcommand)
    test \"$subcommand\" = \"$argv[1]\"
end
complete -c {NAME} -f
"
    );
    for flag in flags::COMMON {
        fish_flag(&mut script, None, flag);
    }
    for command in flags::SUBCOMMANDS {
        let _ = writeln!(
            script,
            "complete -c {NAME} -n \"__plexum_openai_in ''\" -a {} -d {}",
            command.name,
            fish_quoted(&plain(command.brief))
        );
    }
    for command in flags::SUBCOMMANDS {
        for flag in command.flags {
            fish_flag(&mut script, Some(command), flag);
        }
        let what = fish_value(command.operand_completes);
        if command.operand_completes != Completes::Nothing {
            let _ = writeln!(
                script,
                "complete -c {NAME} -n '__plexum_openai_in {}'{what}",
                command.name
            );
        }
    }
    script
}

fn fish_flag(script: &mut String, command: Option<&Subcommand>, flag: &Flag) {
    let _ = write!(script, "complete -c {NAME}");
    if let Some(command) = command {
        let _ = write!(script, " -n '__plexum_openai_in {}'", command.name);
    }
    if let Some(short) = flag.short {
        let _ = write!(script, " -s {short}");
    }
    let _ = write!(script, " -l {}", flag.long);
    if flag.value.is_some() {
        let _ = write!(script, " -r{}", fish_value(flag.completes));
    }
    let _ = writeln!(script, " -d {}", fish_quoted(&plain(flag.brief)));
}

fn fish_value(completes: Completes) -> String {
    match completes {
        Completes::Nothing => " -f".to_owned(),
        Completes::File => " -F".to_owned(),
        Completes::Directory => " -f -a '(__fish_complete_directories)'".to_owned(),
        Completes::Words(list) => format!(" -f -a '{}'", words(list.iter().copied())),
    }
}

fn fish_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tests/it/shells.rs` runs the scripts; this only checks that they are complete.
    #[test]
    fn scripts_list_every_flag_and_subcommand() {
        for (shell, script) in [("bash", bash()), ("zsh", zsh()), ("fish", fish())] {
            for command in flags::SUBCOMMANDS {
                assert!(script.contains(command.name), "{shell}: {}", command.name);
                for flag in command.flags.iter().chain(flags::COMMON) {
                    assert!(script.contains(flag.long), "{shell}: --{}", flag.long);
                }
            }
        }
    }

    #[test]
    fn quotes_texts_for_each_shell() {
        assert_eq!(quoted("it's"), "'it'\\''s'");
        assert_eq!(fish_quoted("it's \\"), "'it\\'s \\\\'");
        assert_eq!(zsh_text("read [{`a`:1}]"), "read \\[{'a'\\:1}\\]");
    }
}
