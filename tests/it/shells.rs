//! The completion scripts in the shells that they are for.

use crate::programs;
use crate::terminal::Terminal;
use std::path::Path;
use std::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_plexum-openai");

/// A directory with something to complete, and the completion scripts under the names that the shells want.
fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("a directory")).unwrap();
    std::fs::write(directory.path().join("an image.png"), "").unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let output = Command::new(PROGRAM)
            .args(["completions", shell])
            .output()
            .unwrap();
        assert!(output.status.success() && output.stderr.is_empty());
        let name = if shell == "zsh" {
            "_plexum-openai"
        } else {
            shell
        };
        let scripts = directory.path().join("scripts");
        std::fs::create_dir_all(&scripts).unwrap();
        std::fs::write(scripts.join(name), output.stdout).unwrap();
    }
    directory
}

/// What is typed after the program's name (`\t` is the tab key), and the arguments that the program then gets.
const TYPED: &[(&str, &str)] = &[
    ("tur\t-V", "<turn><-V>"),
    ("--ver\t", "<--version>"),
    ("turn --js\t", "<turn><--json>"),
    ("turn --fr\t--js\tx", "<turn><--fresh><--json><x>"),
    ("turn -w a\\ d\t", "<turn><-w><a directory/>"),
    ("turn -i an\t", "<turn><-i><an image.png>"),
    ("turn --color=al\t", "<turn><--color=always>"),
    ("mutate --op heav\t", "<mutate><--op><heavy>"),
    ("parse-rollout an\t", "<parse-rollout><an image.png>"),
    ("completions zs\t", "<completions><zsh>"),
    // No flag follows `--`, and a flag's value is not a subcommand.
    ("turn -- --js\t", "<turn><--><--js>"),
    ("turn -m mutate --fr\t", "<turn><-m><mutate><--fresh>"),
];

/// Types each line in a shell on a terminal, where a function stands for the program and shows its arguments.
fn check(shell: &str, command: &str, load: &str) {
    let (Some(script), Some(_)) = (programs::find("script"), programs::find(shell)) else {
        return;
    };
    let directory = directory();
    let environment = [("PS1", "$ "), ("INPUTRC", "/dev/null")];
    let mut terminal = Terminal::start(&script, command, directory.path(), &environment);
    // The marks are typed in two halves, so that the echo of what is typed is not taken for them.
    let stand_in = r#"plexum-openai() { printf 'ST''ART'; printf '<%s>' "$@"; echo E''ND; }"#;
    terminal.keys(&format!("{load}\n{stand_in}\necho READ''Y\n"));
    terminal.wait("READY");
    for (typed, expected) in TYPED {
        terminal.keys(&format!("plexum-openai {typed}\n"));
        terminal.wait("START");
        let got = terminal.wait("END");
        // zsh takes the slash off a directory that ends the word.
        let got = got.replace("directory>", "directory/>");
        assert_eq!(got, *expected, "{shell}: {typed:?}");
    }
}

#[test]
fn completes_in_bash() {
    check("bash", "bash --norc --noprofile -i", "source scripts/bash");
}

#[test]
fn completes_in_zsh_from_fpath() {
    let load = "fpath=($PWD/scripts $fpath); autoload -Uz compinit; compinit -u -D";
    check("zsh", "zsh -f -i", load);
}

#[test]
fn completes_in_zsh_when_sourced() {
    let load = "autoload -Uz compinit; compinit -u -D; source scripts/_plexum-openai";
    check("zsh", "zsh -f -i", load);
}

/// fish has a command that gives the candidates of a line, with what they are.
#[test]
fn completes_in_fish() {
    let Some(fish) = programs::find("fish") else {
        return;
    };
    let directory = directory();
    for (typed, expected) in [
        (
            "tur",
            "turn\trun one turn in a workspace, as the daemon would\n",
        ),
        ("--ver", "--version\tprint the version and exit\n"),
        (
            "turn --js",
            "--json\tprint the canonical events as JSON lines\n",
        ),
        ("turn -w a", "a directory/\tDirectory\n"),
        ("turn --image an", "an image.png\n"),
        ("turn ", ""),
        (
            "turn --color=al",
            "--color=always\twhen to use colour: auto, always or never\n",
        ),
        ("parse-rollout an", "an image.png\n"),
        ("completions ", "bash\nfish\nzsh\n"),
        ("manifest ", ""),
        ("turn -- --js", ""),
        ("turn -m mutate --fr", "--fresh\tstart a new thread\n"),
    ] {
        assert_eq!(
            candidates(&fish, directory.path(), typed),
            expected,
            "{typed:?}"
        );
    }
}

fn candidates(fish: &Path, directory: &Path, typed: &str) -> String {
    let line = format!("source scripts/fish; complete -C 'plexum-openai {typed}'");
    let output = Command::new(fish)
        .args(["--no-config", "-c", &line])
        .current_dir(directory)
        .env("HOME", directory)
        .env_remove("XDG_CONFIG_HOME")
        .env_remove("XDG_DATA_HOME")
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{typed}");
    String::from_utf8(output.stdout).unwrap()
}
