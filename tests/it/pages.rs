//! The man pages: that a formatter takes them without a word, and that what they show is so.

use crate::programs;
use crate::support::Lab;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

#[test]
fn mandoc_lint_is_clean() {
    let Some(mandoc) = programs::find("mandoc") else {
        return;
    };
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("man");
    let mut pages = 0;
    for page in std::fs::read_dir(directory).unwrap() {
        let page = page.unwrap().path();
        let output = Command::new(&mandoc)
            .args(["-T", "lint", "-W", "warning"])
            .arg(&page)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(said, "", "{}", page.display());
        assert!(output.status.success(), "{}", page.display());
        pages += 1;
    }
    assert!(pages >= 4, "the man pages are there");
}

#[test]
fn codex_page_has_every_tested_version() {
    let read = |name: &str| {
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
    };
    let (makefile, page) = (read("Makefile"), read("man/plexum-openai-codex.7"));
    let versions = makefile
        .lines()
        .find_map(|line| line.strip_prefix("CODEX_VERSIONS := "))
        .expect("the Makefile names the versions");
    let items: Vec<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix(".It 0."))
        .map(|version| format!("0.{version}"))
        // Versions between the tested ones have no third number.
        .filter(|version| version.matches('.').count() == 2)
        .collect();
    assert_eq!(items, versions.split(' ').collect::<Vec<_>>());
}

/// Every reference from page to page is to one that is there.
#[test]
fn references_between_pages_resolve() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("man");
    let mut references = 0;
    for page in std::fs::read_dir(&directory).unwrap() {
        let page = page.unwrap().path();
        let text = std::fs::read_to_string(&page).unwrap();
        let named = text.lines().filter_map(|line| line.strip_prefix(".Xr "));
        for reference in named.filter(|name| name.starts_with("plexum-openai")) {
            let mut words = reference.split(' ');
            let (name, section) = (words.next().unwrap(), words.next().unwrap());
            assert!(
                directory.join(format!("{name}.{section}")).exists(),
                "{reference} in {}",
                page.display()
            );
            references += 1;
        }
    }
    assert!(
        references > 10,
        "the references stand where they are looked for"
    );
}

fn protocol_page() -> String {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/man/plexum-openai-protocol.7");
    std::fs::read_to_string(page).unwrap().replace("\\-", "-")
}

#[test]
fn protocol_page_has_every_error_code() {
    let page = protocol_page();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/error.rs");
    let source = std::fs::read_to_string(source).unwrap();
    let mut codes = 0;
    for line in source.lines() {
        let Some((_, code)) = line.split_once(" => ") else {
            continue;
        };
        let code = code.trim_end_matches(',');
        if let Some(code) = code
            .strip_prefix('"')
            .and_then(|code| code.strip_suffix('"'))
        {
            assert!(page.contains(&format!("\n.It Cm {code}\n")), "{code}");
            codes += 1;
        } else if code.starts_with("-32") {
            assert!(page.contains(&format!("\n.It {code}\n")), "{code}");
            codes += 1;
        }
    }
    assert!(codes > 20, "the codes stand where they are looked for");
}

#[test]
fn protocol_page_has_a_section_for_every_name() {
    let page = protocol_page();
    let names = concat!(env!("CARGO_MANIFEST_DIR"), "/src/daemon/names.rs");
    let names = std::fs::read_to_string(names).unwrap();
    let values = names.lines().filter_map(|line| line.split_once(" = "));
    let mut found = 0;
    for (_, value) in values {
        let name = value.trim_matches(['"', ';']);
        assert!(page.contains(&format!("\n.Ss {name}\n")), "{name}");
        found += 1;
    }
    assert!(found > 10, "the names stand where they are looked for");
}

#[test]
fn json_in_protocol_page_is_valid() {
    let page = protocol_page();
    let mut examples = 0;
    for block in page.split(".Bd -literal\n").skip(1) {
        let block = block.split(".Ed\n").next().unwrap();
        if block.starts_with('{') {
            let parsed: Result<serde_json::Value, _> = serde_json::from_str(block);
            assert!(parsed.is_ok(), "{parsed:?} in {block}");
            examples += 1;
        }
    }
    assert!(examples > 5, "the examples stand where they are looked for");
}

#[test]
fn examples_in_events_page_are_real() {
    if programs::find("jq").is_none() {
        return;
    }
    let lab = Lab::fake(Value::Null);
    let line = |payload: Value| {
        json!({"timestamp": "2026-11-21T12:07:52.075Z", "type": "response_item", "payload": payload})
            .to_string()
            + "\n"
    };
    let pair = |id: &str, command: &str, output: &str| {
        let arguments = json!({"cmd": command}).to_string();
        line(
            json!({"type": "function_call", "name": "exec_command", "arguments": arguments, "call_id": id}),
        ) + &line(json!({"type": "function_call_output", "call_id": id, "output": output}))
    };
    let rollout = pair("call_1", "make", "Exit code: 2\n") + &pair("call_2", "ls", "Makefile\n");
    std::fs::write(lab.workspace().join("rollout.jsonl"), rollout).unwrap();

    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/man/plexum-openai-events.7");
    let page = std::fs::read_to_string(page).unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_plexum-openai"));
    let mut path = vec![program.parent().unwrap().to_owned()];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap()));
    let mut examples = 0;
    for block in page.split(".Bd -literal\n").skip(1) {
        let block = block.split(".Ed\n").next().unwrap();
        let block = block.replace("\\-", "-").replace("\\e", "\\");
        let command = block.strip_prefix("$ ").expect("a command first");
        // What is indented belongs to the command, what is not is what it says.
        let end = command
            .match_indices('\n')
            .find(|(at, _)| !command[at + 1..].starts_with(' '));
        let (command, said) = command.split_at(end.expect("what the command says").0 + 1);
        let output = Command::new("sh")
            .args(["-c", command])
            .current_dir(lab.workspace())
            .env("PATH", std::env::join_paths(&path).unwrap())
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            said,
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        examples += 1;
    }
    assert_eq!(examples, 3, "the examples stand where they are looked for");
}
