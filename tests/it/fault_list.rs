//! Every fault that is to be survived, by its number. A test that injects one has the tag `// fault: N` (several
//! numbers with commas) above it, here or in `src`; each number must have one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The names of the faults; the first is number 1.
#[rustfmt::skip]
const FAULTS: &[&str] = &[
    // 1: The codex process.
    "codex is not found",
    "the workspace is gone or closed",
    "the interpreter of the script is missing",
    "not executable, another machine's, empty",
    "exits 0 without an event",
    "dies in the middle of a line",
    "killed by a signal",
    "hangs silently, or only seems to",
    "floods stderr",
    "closes stdout and lives on",
    "exits while a grandchild holds the pipe",
    "invalid UTF-8, NUL, BOM, CR LF, blank lines",
    "a line of 200 MB",
    "unknown events, items, fields",
    "`turn.completed` twice, events after the end",
    "`turn.completed`, then a status that is not 0",
    "`turn.failed`, then exit 0",
    "a thread id that was not asked for, a second, none",
    "prompts that look like flags, are long, have NUL",
    "codex does not read its stdin",
    "EAGAIN, EMFILE, ENOMEM on spawn",
    "ignores INT and TERM; many turns",
    "cancelled before the spawn, and against the end",
    "200 turns at once",
    // 25: The session file.
    "absent, empty",
    "garbage, arguments in it",
    "a symlink, a directory, a FIFO",
    "read-only, full, failing disk",
    "a crash while it is saved",
    "two turns in one workspace",
    "codex does not know the thread",
    "the thread is open elsewhere",
    // 33: The daemon.
    "bad JSON, invalid UTF-8, a line over the cap",
    "unknown methods, answers to nothing",
    "an id in use",
    "a stream before `initialize`",
    "the end of stdin in the middle of a turn",
    "the daemon does not read",
    "the daemon is gone",
    "SIGTERM, SIGINT, SIGKILL",
    "a tool call is never answered",
    "JSON 10,000 levels deep",
    // 43: The MCP socket.
    "a stale socket, a live one",
    "a path over 107 bytes",
    "a directory of others",
    "another user, agent, turn",
    "names that become equal",
    "a connection dropped in a call",
    "a slow tool",
    "a result over 16 MiB",
    "half a request, 100 connections",
    "a tool that is gone or named twice",
    // 53: Rollout files.
    "torn and bad lines",
    "duplicate ids, halves of pairs",
    "outputs of every shape",
    "4 GB",
    "replaced or grown meanwhile",
    "codex holds the thread",
    "mode, owner, times, links",
    "disk full, I/O error, killed",
    "nothing to change",
    "a marker longer than the output",
    // 63: The config file.
    "absent, empty, unreadable",
    "bad JSON, wrong types, unknown keys",
    "a directory, a FIFO, 100 MB",
    // 66: The conversation.
    "several user messages since the last response",
    "a message of attachments alone",
    "a block of an unknown type",
    "a new thread in a known conversation",
    "`system` after a compaction",
    "a copied or moved workspace",
    "a workspace that is a git repository",
    // 73: Threads that codex refuses.
    "an archived thread",
    "a rollout that codex cannot resume",
    "a rollout at another path than codex's index has",
    "a packed rollout",
    "`extra_args` that only `exec` takes",
    // 78: Nothing may block.
    "a workspace on a hung file system",
    "a turn or a rewrite stuck in I/O",
    "a rollout that is a FIFO, a device, a directory",
    "a rollout of 5 GB",
    "idle although a recorded call has no output",
    "an end that codex records and does not print",
    "blocked signals at the start",
    "PID 1 of a container",
    // 86: Memory and depth.
    "a request that costs many times its length",
    "a daemon that does not read and sends bad lines",
    "codex records faster than the daemon reads",
    "JSON nested deeper than 100 levels",
    // 90: Errors.
    "no /proc, no descriptors",
    "errors of providers that look alike",
    "a lost thread under `lost_thread: error`",
    "a tool's schema with alternatives at the top",
    "sub-agents",
    // 95: Advice and words.
    "advice about directories of the system",
    "a file that is not a rollout",
    "Ctrl-C, failed commands and reasons at the terminal",
    "the usage of a thread that is not known",
    "an empty turn, a skipped response",
    // 100: Security.
    "images readable by other users",
    "a session file that names a thread of another workspace",
    "a process of the same user as another agent",
    "the system text in the arguments",
    "a config file readable by other users",
    "a codex of another user",
    "a decoy beside the rollout",
    "an image path that is or becomes a FIFO",
    "control sequences in names at the terminal",
    "run by another user than the owner",
    "a forged spawn error",
    "credentials in the URL of an image",
    "control sequences in the log",
    "a million calls without an output",
    "connections and unended lines of the tool socket",
    "a lock held by another process",
    "a FIFO or device as session file",
    "a fallback directory that another user made",
    "quotes and spaces in PROFILE and PREFIX",
    "a packed rollout that grows when it is read",
];

#[test]
fn every_fault_has_a_test() {
    let mut tests: BTreeMap<usize, usize> = BTreeMap::new();
    for file in rust_files() {
        let source = fs::read_to_string(&file).unwrap();
        let mut lines = source.lines().enumerate();
        while let Some((at, line)) = lines.next() {
            let Some(numbers) = line.trim().strip_prefix("// fault: ") else {
                continue;
            };
            // The tag stands above a test, or above the macro that makes a test for each codex.
            let (_, next) = lines.next().unwrap_or_default();
            let next = next.trim();
            let place = format!("{}:{}", file.display(), at + 1);
            assert!(
                next == "#[test]" || next.starts_with("///") || next.starts_with("real_codex"),
                "{place}: a tag above '{next}', which is not a test"
            );
            for number in numbers.split(", ") {
                let number: usize = number.parse().expect(&place);
                assert!(
                    (1..=FAULTS.len()).contains(&number),
                    "{place}: no fault {number}"
                );
                *tests.entry(number).or_default() += 1;
            }
        }
    }
    let missing: Vec<String> = (1..=FAULTS.len())
        .filter(|number| !tests.contains_key(number))
        .map(|number| format!("{number} ({})", FAULTS[number - 1]))
        .collect();
    assert!(
        missing.is_empty(),
        "faults without a test: {}",
        missing.join("; ")
    );
}

/// The sources of the program and of these tests.
fn rust_files() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut directories = vec![root.join("src"), root.join("tests/it")];
    let mut files = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                files.push(path);
            }
        }
    }
    files
}
