//! README.md and the man page's EXAMPLES: every command in them is run.
//!
//! The blocks of README.md that begin with ```console are a session: their commands are run in order, in one
//! lab with the real codex, and what they print is compared with what the page shows. Every ```sh line is a
//! `make` target that is there, a command that codex has, or one of the daemon's own. The ```json block is a config file.
//! `README_UPDATE=1` writes what was printed into the page in place of comparing it.

use crate::programs;
use crate::support::{Lab, codex};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a home directory is called in the pages.
const HOME: &str = "/home/op";

fn page(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The blocks of a page that are marked with this word, as ranges of its text.
fn blocks(text: &str, mark: &str) -> Vec<std::ops::Range<usize>> {
    let open = format!("```{mark}\n");
    let starts = text.match_indices(&open).map(|(at, _)| at + open.len());
    starts
        .map(|start| start..start + text[start..].find("```").expect("a block ends"))
        .collect()
}

/// A home as an operator's: codex installed, an agent's workspace, a model that plays along.
fn home() -> Option<Lab> {
    let codex = codex::real(codex::NEWEST)?;
    for program in ["jq", "git", "mandoc"] {
        programs::find(program)?;
    }
    let script = fs::read(page("tests/demo/script.json")).unwrap();
    let mut lab = Lab::real(&codex, serde_json::from_slice::<Value>(&script).unwrap());
    let home = lab.path("home");
    for directory in [
        ".local/bin",
        ".config/fish/completions",
        "agents/alice",
        "bin",
    ] {
        fs::create_dir_all(home.join(directory)).unwrap();
    }
    symlink(&codex, home.join(".local/bin/codex")).unwrap();
    symlink(
        env!("CARGO_BIN_EXE_plexum-openai"),
        home.join("bin/plexum-openai"),
    )
    .unwrap();
    let poem = fs::read(page("tests/demo/poem.txt")).unwrap();
    fs::write(home.join("agents/alice/poem.txt"), poem).unwrap();
    // A model that codex has data on: it warns of others.
    let config = lab.codex_home().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(config, text.replacen("gpt-5", "gpt-5.5", 1)).unwrap();
    // The lab's directory of codex, where the home has it.
    symlink(lab.codex_home(), home.join(".codex")).unwrap();
    let path = format!(
        "{0}/bin:{0}/.local/bin:/usr/local/bin:/usr/bin:/bin",
        home.display()
    );
    for (name, value) in [
        ("PATH", path),
        ("CODEX_HOME", String::new()),
        ("PLEXUM_PROFILE_ROOT", String::new()),
        ("COLUMNS", "80".to_owned()),
        ("PAGER", "cat".to_owned()),
    ] {
        lab.set_env(name, value);
    }
    let plugin = home.join(".plexum/plugins/plexum-openai-provider");
    fs::create_dir_all(&plugin).unwrap();
    fs::write(
        plugin.join("config.json"),
        json!({"binary": "~/.local/bin/codex"}).to_string(),
    )
    .unwrap();
    Some(lab)
}

/// Runs a command line in bash, in the home; what it printed on both streams, and its status.
fn bash(lab: &Lab, line: &str) -> (String, i32) {
    let output = Command::new("bash")
        .args(["-c", &format!("exec 2>&1; {line}")])
        .current_dir(lab.path("home"))
        .env_clear()
        .envs(lab.env())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (
        String::from_utf8(output.stdout).unwrap(),
        output.status.code().unwrap_or(-1),
    )
}

/// Text with every point in time replaced.
fn without_times(text: &str) -> String {
    const FORM: &str = "0000-00-00T00:00:00.000Z";
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('T') {
        let time = at
            .checked_sub(10)
            .and_then(|start| rest.get(start..start + FORM.len()));
        let is_time =
            time.is_some_and(|time| time.replace(|c: char| c.is_ascii_digit(), "0") == FORM);
        let (shown, end) = match is_time {
            true => (at - 10, at - 10 + FORM.len()),
            false => (at + 1, at + 1),
        };
        plain.push_str(&rest[..shown]);
        if is_time {
            plain.push_str("<when>");
        }
        rest = &rest[end..];
    }
    plain + rest
}

/// What differs from run to run, made equal: homes, UUIDs in the order in which they come, codex's own ids of
/// chunks, seconds and tenths.
fn equal(lab: Option<&Lab>, text: &str) -> String {
    let text = match lab {
        Some(lab) => text.replace(&lab.path("home").to_string_lossy().into_owned(), HOME),
        None => text.to_owned(),
    };
    let mut text = without_times(&text);
    for seconds in 0..60 {
        text = text.replace(&format!("\n{seconds} s ago"), "\n<n> s ago");
    }
    // The columns of that table are as wide as what is in them.
    let text: String = text
        .split_inclusive('\n')
        .map(
            |line| match line.contains("s ago ") || line.starts_with("last turn") {
                true => line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n",
                false => line.to_owned(),
            },
        )
        .collect();
    let mut known: BTreeMap<String, usize> = BTreeMap::new();
    let mut said = String::new();
    for (at, part) in text
        .split_inclusive(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
        .enumerate()
    {
        let word = part.trim_end_matches(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
        let rest = &part[word.len()..];
        let is_uuid = word.len() == 36 && word.matches('-').count() == 4;
        let before = said.trim_end().to_owned();
        if word.is_empty() {
            said.push_str(part);
        } else if is_uuid {
            let next = known.len() + 1;
            let number = *known.entry(word.to_owned()).or_insert(next);
            said.push_str(&format!("<uuid {number}>{rest}"));
        } else if before.ends_with("Chunk ID:")
            || (before.ends_with('.') && at > 0 && word.chars().all(|c| c.is_ascii_digit()))
        {
            said.push_str(&format!("<n>{rest}"));
        } else {
            said.push_str(part);
        }
    }
    // A fraction's whole part stands before its point.
    said.split(' ')
        .map(|word| {
            if word.ends_with(".<n>") {
                "<time>"
            } else {
                word
            }
        })
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn sessions_in_readme_are_real() {
    let Some(lab) = home() else {
        return;
    };
    let path = page("README.md");
    let text = fs::read_to_string(&path).unwrap();
    let mut shown = String::new();
    let mut real = String::new();
    let mut updated = String::new();
    let mut end = 0;
    for block in blocks(&text, "console") {
        updated.push_str(&text[end..block.start]);
        end = block.end;
        shown.push_str(&text[block.clone()]);
        for line in text[block]
            .lines()
            .filter_map(|line| line.strip_prefix("$ "))
        {
            let (printed, _) = bash(&lab, line);
            let mut session = format!("$ {line}\n{printed}");
            if !session.ends_with('\n') {
                session.push('\n');
            }
            updated
                .push_str(&session.replace(&lab.path("home").to_string_lossy().into_owned(), HOME));
            real.push_str(&session);
        }
    }
    updated.push_str(&text[end..]);
    if std::env::var_os("README_UPDATE").is_some() {
        fs::write(path, updated).unwrap();
        return;
    }
    assert!(
        shown.matches("\n$ ").count() > 5,
        "the sessions stand where they are looked for"
    );
    let (shown, real) = (equal(None, &shown), equal(Some(&lab), &real));
    for (shown, real) in shown.split("\n$ ").zip(real.split("\n$ ")) {
        assert_eq!(
            shown, real,
            "README.md shows the one, and this is the other"
        );
    }
}

#[test]
fn commands_in_readme_exist() {
    let text = fs::read_to_string(page("README.md")).unwrap();
    let mut targets = 0;
    for block in blocks(&text, "sh") {
        for line in text[block].lines() {
            let command = line.split('#').next().unwrap().trim();
            if let Some(arguments) = command.strip_prefix("make ") {
                let output = Command::new("make")
                    .arg("-n")
                    .args(arguments.split_whitespace())
                    .current_dir(env!("CARGO_MANIFEST_DIR"))
                    .output()
                    .unwrap();
                assert!(output.status.success(), "{command}: {output:?}");
                targets += 1;
            } else if let Some(arguments) = command.strip_prefix("codex ") {
                let Some(codex) = codex::real(codex::NEWEST) else {
                    continue;
                };
                let lab = Lab::fake(Value::Null);
                let output = Command::new(codex)
                    .args(arguments.split_whitespace())
                    .arg("--help")
                    .env_clear()
                    .envs(lab.env())
                    .output()
                    .unwrap();
                assert!(output.status.success(), "{command}: {output:?}");
            } else {
                assert!(
                    command.is_empty()
                        || command.starts_with("plexum ")
                        || command == "npm install -g @openai/codex",
                    "who runs '{command}'?"
                );
            }
        }
    }
    assert!(targets > 4, "the commands stand where they are looked for");
}

#[test]
fn config_in_readme_is_valid() {
    let text = fs::read_to_string(page("README.md")).unwrap();
    let lab = Lab::fake(json!({"mcp": [{"out": "[]"}]}));
    let configs = blocks(&text, "json");
    assert!(!configs.is_empty());
    for config in configs {
        lab.raw_config(&text.as_bytes()[config]);
        let output = crate::support::Cli::new(&lab, ["doctor"]).run();
        let first = output.stdout.lines().next().unwrap();
        assert!(first.starts_with("ok    config"), "{first}");
    }
}

/// The man page's EXAMPLES, each in a home where a turn has been run.
#[test]
fn examples_in_man_page_work() {
    let Some(lab) = home() else {
        return;
    };
    let (printed, status) = bash(
        &lab,
        "plexum-openai turn -w ~/agents/alice 'How many lines has poem.txt?'",
    );
    assert_eq!(status, 0, "{printed}");
    let set_up = "git init -q . && git add -A agents && echo more >> agents/alice/poem.txt";
    assert_eq!(bash(&lab, set_up), (String::new(), 0));
    let text = fs::read_to_string(page("man/plexum-openai.1")).unwrap();
    let (_, text) = text
        .split_once(".Sh EXAMPLES\n")
        .expect("the page has examples");
    let mut run = 0;
    for block in text.split(".Bd -literal -offset indent\n").skip(1) {
        let block = block.split("\n.Ed").next().unwrap();
        // The drop-in is a file and no command.
        if block.starts_with('#') {
            continue;
        }
        let line = block
            .replace("\\-", "-")
            .replace("\\(ti", "~")
            .replace("\\(ha", "^")
            .replace("\\&", "")
            .replace("\\e", "\\");
        let (printed, status) = bash(&lab, &format!("set -o pipefail; {line}"));
        assert_eq!(status, 0, "{line}: {printed}");
        assert!(
            !printed.contains("plexum-openai: no such"),
            "{line}: {printed}"
        );
        run += 1;
    }
    assert!(run > 8, "the examples stand where they are looked for");
}
