//! `threads`: lists the threads of many workspaces, as a table or as JSON.

use super::flags::{Parsed, expand_home};
use super::{columns, ignore_broken_pipe};
use crate::backend::thread_use;
use crate::canonical::{ContextUse, Usage};
use crate::codex::home;
use crate::error::{Error, Kind, Result};
use crate::os::{self, CancelToken};
use crate::paths::Paths;
use crate::turn::served;
use crate::turn::session::{self, Stored};
use serde::{Serialize, Serializer};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// How many levels below a given directory are searched for workspaces.
const MAX_DEPTH: usize = 4;

/// A workspace and its thread; the names are those of `--json`.
#[derive(Debug, Serialize)]
struct ThreadRow {
    #[serde(serialize_with = "lossy")]
    workspace: PathBuf,
    thread: String,
    /// The time at which the rollout was last modified, in seconds since 1970.
    last_turn: Option<u64>,
    /// The total of the thread's tokens.
    tokens: Option<Usage>,
    context: Option<ContextUse>,
    #[serde(serialize_with = "lossy_option")]
    rollout: Option<PathBuf>,
    rollout_bytes: Option<u64>,
    /// The process that runs a turn in the workspace, or has the thread open.
    held_by: Option<Holder>,
}

#[derive(Debug, Serialize)]
struct Holder {
    pid: u32,
    name: String,
}

/// Serializes a path that may not be UTF-8, which JSON requires.
fn lossy<S: Serializer>(path: &Path, json: S) -> std::result::Result<S::Ok, S::Error> {
    json.serialize_str(&path.to_string_lossy())
}

fn lossy_option<S: Serializer>(
    path: &Option<PathBuf>,
    json: S,
) -> std::result::Result<S::Ok, S::Error> {
    path.as_deref().map(Path::to_string_lossy).serialize(json)
}

/// Runs the subcommand.
///
/// # Errors
/// [`Kind::Config`]; [`Kind::Io`] for a directory or the list of workspaces that cannot be read, and for stdout.
pub(crate) fn run(parsed: &Parsed, stdout: &mut dyn Write) -> Result<u8> {
    let paths = Paths::from_env();
    let config = paths.load_config()?.config;
    let home = paths.codex_home(&config);
    let workspaces = match parsed.operands.is_empty() {
        true => {
            let directory = paths.plugin_directory();
            served::list(&directory).map_err(|error| {
                let what = format!("cannot read the list in '{}'", directory.display());
                Error::os(Kind::Io, what, error)
            })?
        }
        false => {
            let mut found = Vec::new();
            for operand in &parsed.operands {
                let directory = std::path::absolute(expand_home(operand)).map_err(|error| {
                    Error::os(Kind::Io, "cannot determine the current directory", error)
                })?;
                find_workspaces(&directory, 0, &mut found).map_err(|error| {
                    let what = format!("cannot list '{}'", directory.display());
                    Error::os(Kind::Io, what, error)
                })?;
            }
            found
        }
    };
    let cancel = CancelToken::new()?;
    let mut rows: Vec<ThreadRow> = workspaces
        .into_iter()
        .filter_map(|workspace| row(workspace, &home, &cancel))
        .collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.last_turn));
    let result = match parsed.has("json") {
        true => serde_json::to_vec(&rows)
            .map_err(io::Error::from)
            .and_then(|mut json| {
                json.push(b'\n');
                stdout.write_all(&json)
            }),
        false => write_table(&rows, stdout),
    };
    ignore_broken_pipe(result.and_then(|()| stdout.flush()), 0)
}

/// Finds the directories with a session file: this one and those below it.
fn find_workspaces(directory: &Path, depth: usize, found: &mut Vec<PathBuf>) -> io::Result<()> {
    if directory.join(session::FILE).is_file() {
        found.push(directory.to_owned());
    }
    for entry in std::fs::read_dir(directory)? {
        let Ok(entry) = entry else { continue };
        let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        // Symbolic links are not followed: they could lead to the same workspaces again, or in a circle.
        if depth < MAX_DEPTH && !is_hidden && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            // Directories that this user may not read are skipped.
            let _ = find_workspaces(&entry.path(), depth + 1, found);
        }
    }
    Ok(())
}

/// The row of a workspace; `None` where its session file has no thread.
fn row(workspace: PathBuf, home: &Path, cancel: &CancelToken) -> Option<ThreadRow> {
    let Ok(Stored::Thread(thread)) = session::read(&workspace) else {
        return None;
    };
    let rollout = home::find_rollout_or_packed(home, &thread).ok().flatten();
    let metadata = rollout.as_deref().and_then(|path| path.metadata().ok());
    let usage = rollout
        .as_deref()
        .filter(|path| !home::is_packed(path))
        .and_then(|path| thread_use(path, cancel).ok());
    let lock = home
        .join("thread-writer-locks")
        .join(format!("{thread}.lock"));
    let holder = os::lock_holder(&workspace).or_else(|| os::lock_holder(&lock));
    Some(ThreadRow {
        last_turn: metadata.as_ref().and_then(|metadata| {
            let since = metadata
                .modified()
                .ok()?
                .duration_since(SystemTime::UNIX_EPOCH);
            since.ok().map(|since| since.as_secs())
        }),
        tokens: usage.and_then(|(tokens, _)| tokens),
        context: usage.and_then(|(_, context)| context),
        rollout_bytes: metadata.map(|metadata| metadata.len()),
        rollout,
        held_by: holder.map(|(pid, name)| Holder { pid, name }),
        workspace,
        thread,
    })
}

fn write_table(rows: &[ThreadRow], out: &mut dyn Write) -> io::Result<()> {
    if rows.is_empty() {
        return writeln!(out, "no threads");
    }
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let lines: Vec<[String; 7]> = rows.iter().map(|row| cells(row, now)).collect();
    let head = [
        "last turn",
        "tokens",
        "context",
        "rollout",
        "held by",
        "thread",
        "workspace",
    ];
    let width = |column: usize| {
        let cells = lines.iter().map(|line| columns::width(&line[column]));
        cells.max().unwrap_or(0).max(head[column].len())
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let screen = io::stdout()
        .is_terminal()
        .then(|| columns::terminal_width(io::stdout()));
    for line in std::iter::once(head.map(str::to_owned)).chain(lines) {
        let mut text = String::new();
        for (column, cell) in line.iter().enumerate() {
            let last = column == head.len() - 1;
            let gap = if last {
                0
            } else {
                widths[column] - columns::width(cell) + 2
            };
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', gap));
        }
        let text = match screen {
            Some(screen) => columns::truncate(&text, screen),
            None => text,
        };
        writeln!(out, "{}", text.trim_end())?;
    }
    Ok(())
}

fn cells(row: &ThreadRow, now: u64) -> [String; 7] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let context = row.context.and_then(|context| {
        let window = context.window.filter(|window| *window > 0)?;
        Some(format!("{}%", context.tokens.saturating_mul(100) / window))
    });
    [
        or_dash(row.last_turn.map(|at| ago(now.saturating_sub(at)))),
        or_dash(
            row.tokens
                .map(|used| (used.input_tokens + used.output_tokens).to_string()),
        ),
        or_dash(context),
        or_dash(row.rollout_bytes.map(size)),
        or_dash(row.held_by.as_ref().map(|holder| {
            columns::sanitize(&format!("{} {}", holder.pid, holder.name)).into_owned()
        })),
        row.thread.clone(),
        columns::sanitize(&row.workspace.to_string_lossy()).replace('\n', " "),
    ]
}

fn ago(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86_400 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_ages_and_sizes() {
        let ages = [0, 59, 60, 3599, 3600, 86_399, 86_400, 40 * 86_400].map(ago);
        assert_eq!(
            ages,
            [
                "0 s ago",
                "59 s ago",
                "1 min ago",
                "59 min ago",
                "1 h ago",
                "23 h ago",
                "1 d ago",
                "40 d ago"
            ]
        );
        let sizes = [0, 999, 1000, 1_250_000, 3_000_000_000].map(size);
        assert_eq!(sizes, ["0 B", "999 B", "1.0 kB", "1.2 MB", "3.0 GB"]);
    }
}
