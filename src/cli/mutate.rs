//! `mutate`: consumes tool calls in a rollout that a person names by workspace, thread or file.
//!
//! It does what the daemon's `plexum/session/mutate` does, with the same locks, and prints the same answer.

use super::flags::{Parsed, at_home, usage};
use super::{columns, seems, written};
use crate::codex::home::{find_rollout, is_thread_id};
use crate::error::{Error, Kind, Result};
use crate::os::{CancelToken, open_regular_file};
use crate::rollout::consume::{
    ConsumeReport, Mutation, Op, Reach, WriteMode, consume, consume_file, parse,
};
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

/// The longest list that `--stdin` takes: what the daemon can send in one line, too.
const LONGEST_LIST: u64 = 64 << 20;

/// What the command needs to know of its surroundings; asked for only if it is needed, so that a broken
/// config does not matter to `--rollout`.
pub(crate) struct Surroundings<'a> {
    /// The codex home.
    pub(crate) codex_home: &'a dyn Fn() -> Result<PathBuf>,
    /// The id of the thread that a workspace's session file names, if it has one.
    pub(crate) session: &'a dyn Fn(&Path) -> Result<Option<String>>,
}

/// Runs the command and returns its exit status.
///
/// # Errors
/// [`Kind::Usage`] for the command line, [`Kind::Params`] for the list on stdin, and what consuming can
/// meet: see [`crate::rollout::consume::consume`].
pub(crate) fn run(
    parsed: &Parsed,
    surroundings: &Surroundings<'_>,
    stdin: &mut dyn Read,
    stdout: &mut dyn Write,
) -> Result<u8> {
    let mutations = mutations(parsed, stdin)?;
    let mode = if parsed.has("dry-run") {
        WriteMode::DryRun
    } else {
        WriteMode::Write
    };
    let outcome = match target(parsed)? {
        Target::File(file) => {
            let outcome = consume_file(&file, &mutations, mode)?;
            if outcome.touched == 0 && outcome.missing.len() == outcome.requested {
                refuse_other_files(&file)?;
            }
            outcome
        }
        Target::Thread(thread) => in_thread(thread, surroundings, &mutations, mode)?,
        Target::Workspace(workspace) => {
            // To the daemon a directory that is not there is one without a session; to a person it is a slip.
            if !workspace.is_dir() {
                return Err(Error::new(
                    Kind::Io,
                    format!("there is no directory '{}'", workspace.display()),
                ));
            }
            if mode == WriteMode::Write {
                crate::os::check_owner("the workspace", &workspace)?;
            }
            match (surroundings.session)(&workspace)? {
                Some(thread) => in_thread(&thread, surroundings, &mutations, mode)?,
                // As for the daemon: what has no session has no calls.
                None => ConsumeReport::all_missing(&mutations),
            }
        }
    };
    let mut line = serde_json::to_string(&outcome).expect("an outcome is plain data");
    line.push('\n');
    if io::stdout().is_terminal() {
        line = columns::json_for_terminal(&line).into_owned();
    }
    let result = stdout.write_all(line.as_bytes());
    written(result.and_then(|()| stdout.flush()), 0)
}

/// Says what a file seems to be in which no call was found, where it is not a rollout.
fn refuse_other_files(path: &Path) -> Result<()> {
    let head = open_regular_file(path).and_then(|mut file| seems::head(&mut file));
    // It was read a moment ago; that it no longer can be says nothing of what it is.
    let Ok(head) = head else { return Ok(()) };
    match seems::other_than_a_rollout(&head) {
        Some(what) => Err(Error::new(
            Kind::Io,
            format!("'{}' is not a rollout: {what}", path.display()),
        )),
        None => Ok(()),
    }
}

/// Consumes calls of a thread. To the daemon a rollout that is not there has no calls; a person has most likely
/// named another CODEX_HOME.
fn in_thread(
    thread: &str,
    surroundings: &Surroundings<'_>,
    mutations: &[Mutation],
    mode: WriteMode,
) -> Result<ConsumeReport> {
    let home = (surroundings.codex_home)()?;
    if find_rollout(&home, thread)?.is_none() {
        return Err(Error::new(
            Kind::Io,
            format!("no rollout of thread {thread} in '{}'", home.display()),
        )
        .hint("is this the CODEX_HOME that codex used?"));
    }
    consume(&home, thread, mutations, mode, &CancelToken::new()?)
}

/// The list of what to do: the operands, or what stands on stdin.
fn mutations(parsed: &Parsed, stdin: &mut dyn Read) -> Result<Vec<Mutation>> {
    let op = parsed
        .text("op")?
        .map(|name| {
            Op::named(name).ok_or_else(|| {
                usage(format!(
                    "'{name}' is not an operation; '--op' takes light or heavy"
                ))
            })
        })
        .transpose()?;
    let reach = match parsed.has("newest") {
        true => Reach::Newest,
        false => Reach::All,
    };
    if parsed.has("stdin") {
        if op.is_some() || reach == Reach::Newest || !parsed.operands.is_empty() {
            return Err(usage(
                "with '--stdin' the call ids and their operations come from stdin alone",
            ));
        }
        let mut json = Vec::new();
        stdin
            .take(LONGEST_LIST + 1)
            .read_to_end(&mut json)
            .map_err(|error| Error::os(Kind::Io, "cannot read stdin", error))?;
        if json.len() as u64 > LONGEST_LIST {
            return Err(usage("the list on stdin is longer than 64 MiB: divide it"));
        }
        let json =
            str::from_utf8(&json).map_err(|_| usage("the list on stdin is not valid UTF-8"))?;
        return parse(json);
    }
    if parsed.operands.is_empty() {
        return Err(usage(
            "no call id is given; name one or more, or use '--stdin'",
        ));
    }
    let mut mutations: Vec<Mutation> = Vec::new();
    for operand in &parsed.operands {
        let Some(id) = operand.to_str() else {
            return Err(usage(format!("a call id is not valid UTF-8: {operand:?}")));
        };
        if mutations.iter().any(|it| it.block_id == id) {
            return Err(usage(format!("duplicate call id '{id}'")));
        }
        mutations.push(Mutation {
            block_id: id.to_owned(),
            op: op.unwrap_or(Op::Light),
            reach,
        });
    }
    Ok(mutations)
}

/// Whose calls are meant.
enum Target<'a> {
    Workspace(PathBuf),
    Thread(&'a str),
    File(PathBuf),
}

fn target(parsed: &Parsed) -> Result<Target<'_>> {
    let given = (
        parsed.directory("workspace")?,
        parsed.text("thread")?,
        parsed.value("rollout"),
    );
    match given {
        (Some(workspace), None, None) => Ok(Target::Workspace(workspace)),
        (None, Some(thread), None) if is_thread_id(thread) => Ok(Target::Thread(thread)),
        (None, Some(thread), None) => Err(usage(format!(
            "'{thread}' is not a thread id: a UUID was expected"
        ))),
        (None, None, Some(file)) => Ok(Target::File(at_home(file))),
        (None, None, None) => Err(usage(
            "whose calls? name a '--workspace', a '--thread' or a '--rollout'",
        )),
        _ => Err(usage(
            "'--workspace', '--thread' and '--rollout' exclude each other",
        )),
    }
}
