//! The man pages: that a formatter takes them without a word.

use crate::tools;
use std::path::Path;
use std::process::Command;

#[test]
fn mandoc_has_nothing_to_say() {
    let Some(mandoc) = tools::find("mandoc") else {
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
