//! The man pages: that a formatter takes them without a word.

use crate::programs;
use std::path::Path;
use std::process::Command;

#[test]
fn mandoc_has_nothing_to_say() {
    let Some(mandoc) = programs::find("mandoc") else {
        return;
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("man");
    let mut pages = 0;
    for page in std::fs::read_dir(folder).unwrap() {
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
    assert!(pages >= 2, "the man pages are there");
}

fn protocol_page() -> String {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/man/plexum-openai-protocol.7");
    std::fs::read_to_string(page).unwrap().replace("\\-", "-")
}

#[test]
fn the_protocol_page_names_every_code() {
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
fn the_json_in_the_protocol_page_is_json() {
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
