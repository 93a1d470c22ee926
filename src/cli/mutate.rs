//! `mutate`: consumes tool calls in a rollout, which is named by workspace, thread or file.
//!
//! It takes the same locks as the daemon's `plexum/session/mutate`, and prints the same result as JSON.

use super::flags::{Parsed, expand_home, usage};
use super::target::{self, Target};
use super::{columns, file_type, ignore_broken_pipe};
use crate::backend::{ReleaseTarget, request_release};
use crate::codex::home::find_rollout;
use crate::daemon::parse_mutations;
use crate::error::{Error, Kind, Result};
use crate::os::{CancelToken, open_regular_file};
use crate::paths::Paths;
use crate::rollout::calls::{Calls, MatchedRecord};
use crate::rollout::consume::{
    ConsumeReport, Mutation, Op, Reach, WriteMode, consume, consume_file,
};
use crate::rollout::lines::{LineKind, Lines};
use crate::rollout::record;
use crate::turn::session::{self, Stored};
use crate::turn::thread::{foreign, foreign_directory};
use std::collections::HashSet;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

/// The longest list that `--stdin` takes, in bytes: the daemon's limit for a line.
const MAX_LIST_BYTES: u64 = 64 << 20;

/// Runs the command and returns its exit status.
///
/// # Errors
/// [`Kind::Usage`] for the command line, [`Kind::Params`] for the list on stdin, [`Kind::Io`] where no call was found,
/// and those of [`crate::rollout::consume::consume`].
pub(crate) fn run(parsed: &Parsed, stdin: &mut dyn Read, stdout: &mut dyn Write) -> Result<u8> {
    let selection = parse_selection(parsed, stdin)?;
    let mode = if parsed.has("dry-run") {
        WriteMode::DryRun
    } else {
        WriteMode::Write
    };
    let target = parse_target(parsed)?;
    let (mutations, outcome) = match resolve(&target, mode)? {
        Some(rollout) => {
            let mutations = selection.mutations(&rollout.path)?;
            let outcome = match &rollout.thread {
                Some((home, thread)) => {
                    consume(home, thread, &mutations, mode, &CancelToken::new()?)?
                }
                None => consume_file(&rollout.path, &mutations, mode)?,
            };
            // The rollout of a thread is named after it, so only `--rollout` can name another type of file.
            if rollout.thread.is_none()
                && outcome.touched == 0
                && outcome.missing.len() == outcome.requested
            {
                reject_non_rollout(&rollout.path)?;
            }
            (mutations, outcome)
        }
        // As for the daemon, a workspace without a session has no calls.
        None => {
            let mutations = selection.named();
            let outcome = ConsumeReport::all_missing(&mutations);
            (mutations, outcome)
        }
    };
    // An empty list requests nothing, so finding nothing is no error.
    let found_nothing = outcome.touched == 0
        && outcome.missing.len() == outcome.requested
        && !matches!(&selection, CallSelection::Named(named) if named.is_empty());
    let mut line = serde_json::to_string(&outcome).expect("an outcome is plain data");
    line.push('\n');
    if io::stdout().is_terminal() {
        line = columns::json_for_terminal(&line).into_owned();
    }
    let result = stdout.write_all(line.as_bytes());
    let status = ignore_broken_pipe(result.and_then(|()| stdout.flush()), 0)?;
    match found_nothing {
        true => Err(Error::new(
            Kind::Io,
            selection.nothing_consumed(&mutations, &target),
        )),
        false => Ok(status),
    }
}

/// Fails where a file without calls is not a rollout at all, with a guess at its type.
fn reject_non_rollout(path: &Path) -> Result<()> {
    let head = open_regular_file(path).and_then(|mut file| file_type::read_head(&mut file));
    // The calls were read from it just before: its type stays unknown, and the caller reports the missing calls.
    let Ok(head) = head else { return Ok(()) };
    match file_type::describe_non_rollout(&head) {
        Some(what) => Err(Error::new(
            Kind::Io,
            format!("'{}' is not a rollout: {what}", path.display()),
        )),
        None => Ok(()),
    }
}

struct Rollout {
    path: PathBuf,
    /// The codex home and the thread; `None` for `--rollout`.
    thread: Option<(PathBuf, String)>,
}

/// Finds the target's rollout; `None` for a workspace without a session.
fn resolve(target: &RolloutTarget, mode: WriteMode) -> Result<Option<Rollout>> {
    // The config is loaded only where it is needed: `--rollout` works with a broken one.
    let paths = Paths::from_env();
    let thread = match target {
        RolloutTarget::File(file) => {
            return Ok(Some(Rollout {
                path: file.clone(),
                thread: None,
            }));
        }
        RolloutTarget::Session(Target::Thread(thread)) => thread.clone(),
        RolloutTarget::Session(Target::Workspace(workspace)) => {
            // The daemon treats a missing directory as one without a session; on a command line it is a mistake.
            if !workspace.is_dir() {
                return Err(Error::new(
                    Kind::Io,
                    format!("the directory '{}' does not exist", workspace.display()),
                ));
            }
            if mode == WriteMode::Write {
                crate::os::check_owner("the workspace", workspace)?;
            }
            match thread_of_workspace(workspace, &paths)? {
                Some(thread) => thread,
                None => return Ok(None),
            }
        }
    };
    let home = paths.codex_home(&paths.load_config()?.config);
    if mode == WriteMode::Write {
        // An idle plugin may keep the thread loaded, and with it codex's writer lock.
        request_release(ReleaseTarget::Thread(&thread), &paths);
    }
    match find_rollout(&home, &thread)? {
        Some(path) => Ok(Some(Rollout {
            path,
            thread: Some((home, thread)),
        })),
        None => Err(target::missing_rollout(&thread, &home)),
    }
}

/// The id in the workspace's session file, if any.
///
/// # Errors
/// The session file is unusable, or a copy of another workspace's.
fn thread_of_workspace(workspace: &Path, paths: &Paths) -> Result<Option<String>> {
    match session::read(workspace)? {
        Stored::Thread(thread) => {
            let config = paths.load_config()?.config;
            match foreign_directory(workspace, &thread, &config, paths) {
                Some(other) => Err(foreign(workspace, &thread, &other)),
                None => Ok(Some(thread)),
            }
        }
        Stored::Nothing => Ok(None),
        Stored::Unusable(why) => Err(session::unusable(workspace, &why)),
    }
}

/// The calls to consume.
enum CallSelection {
    Named(Vec<Mutation>),
    /// By size and age.
    Matching {
        /// Only calls whose output has more bytes.
        larger_than: Option<u64>,
        /// How many of the last calls to keep.
        keep_last: usize,
        op: Op,
    },
}

impl CallSelection {
    fn named(&self) -> Vec<Mutation> {
        match self {
            CallSelection::Named(mutations) => mutations.clone(),
            CallSelection::Matching { .. } => Vec::new(),
        }
    }

    /// The mutations of the selected calls in this rollout.
    fn mutations(&self, rollout: &Path) -> Result<Vec<Mutation>> {
        let CallSelection::Matching {
            larger_than,
            keep_last,
            op,
        } = self
        else {
            return Ok(self.named());
        };
        let mut calls = calls_of(rollout).map_err(|error| {
            Error::os(
                Kind::Io,
                format!("cannot read '{}'", rollout.display()),
                error,
            )
        })?;
        calls.truncate(calls.len().saturating_sub(*keep_last));
        calls.retain(|(_, bytes)| larger_than.is_none_or(|limit| *bytes > limit));
        let mut seen = HashSet::new();
        Ok(calls
            .into_iter()
            .filter(|(id, _)| seen.insert(id.clone()))
            .map(|(block_id, _)| Mutation {
                block_id,
                op: *op,
                reach: Reach::All,
            })
            .collect())
    }

    fn nothing_consumed(&self, mutations: &[Mutation], target: &RolloutTarget) -> String {
        let shown = match target {
            RolloutTarget::File(file) => format!("'{}'", file.display()),
            RolloutTarget::Session(Target::Thread(thread)) => format!("thread {thread}"),
            RolloutTarget::Session(Target::Workspace(workspace)) => {
                format!("the workspace '{}'", workspace.display())
            }
        };
        match self {
            CallSelection::Named(_) if mutations.len() == 1 => {
                format!("nothing was consumed: {shown} has no such call with an output")
            }
            CallSelection::Named(_) => {
                format!("nothing was consumed: {shown} has none of these calls with an output")
            }
            CallSelection::Matching { .. } => {
                format!("nothing was consumed: {shown} has no call that is that large or that old")
            }
        }
    }
}

/// The ids of the calls that have an output, in the order of the outputs, each with the size of its output in bytes.
fn calls_of(rollout: &Path) -> io::Result<Vec<(String, u64)>> {
    let mut lines = Lines::new(open_regular_file(rollout)?);
    let mut calls = Calls::default();
    let mut found = Vec::new();
    let filter = |kind| matches!(kind, LineKind::Call | LineKind::Output | LineKind::Turn);
    while let Some(line) = lines.next(filter)? {
        let Ok(record) = record::read(&line) else {
            continue;
        };
        if let Some(MatchedRecord::Output { output, .. }) = calls.feed(record, |_| ((), 0)) {
            found.push((output.id.into_owned(), output.content.bytes()));
        }
    }
    Ok(found)
}

/// Parses the selection: operands, a list on stdin, or size and age.
fn parse_selection(parsed: &Parsed, stdin: &mut dyn Read) -> Result<CallSelection> {
    let op = parsed
        .text("op")?
        .map(|name| {
            Op::named(name).ok_or_else(|| {
                usage(format!(
                    "'{name}' is not an operation; '--op' accepts light or heavy"
                ))
            })
        })
        .transpose()?;
    let reach = match parsed.has("newest") {
        true => Reach::Newest,
        false => Reach::All,
    };
    let number = |flag: &str| -> Result<Option<u64>> {
        let Some(text) = parsed.text(flag)? else {
            return Ok(None);
        };
        let number = text.parse().ok();
        number
            .map(Some)
            .ok_or_else(|| usage(format!("'--{flag} {text}' is not a whole number")))
    };
    let (larger_than, keep_last) = (number("larger-than")?, number("keep-last")?);
    if larger_than.is_some() || keep_last.is_some() {
        if parsed.has("stdin") || !parsed.operands.is_empty() || reach == Reach::Newest {
            return Err(usage(
                "'--larger-than' and '--keep-last' select the calls: give no call ids, neither as operands nor on stdin",
            ));
        }
        return Ok(CallSelection::Matching {
            larger_than,
            keep_last: usize::try_from(keep_last.unwrap_or(0)).unwrap_or(usize::MAX),
            op: op.unwrap_or(Op::Light),
        });
    }
    let named = |ids: &[&str]| -> Result<CallSelection> {
        let mut mutations: Vec<Mutation> = Vec::new();
        let mut seen = HashSet::new();
        for &id in ids {
            if !seen.insert(id) {
                return Err(usage(format!("duplicate call id '{id}'")));
            }
            mutations.push(Mutation {
                block_id: id.to_owned(),
                op: op.unwrap_or(Op::Light),
                reach,
            });
        }
        Ok(CallSelection::Named(mutations))
    };
    if parsed.has("stdin") {
        if !parsed.operands.is_empty() {
            return Err(usage(
                "'--stdin' reads the call ids from stdin: give none as operands",
            ));
        }
        let mut json = Vec::new();
        stdin
            .take(MAX_LIST_BYTES + 1)
            .read_to_end(&mut json)
            .map_err(|error| Error::os(Kind::Io, "cannot read stdin", error))?;
        if json.len() as u64 > MAX_LIST_BYTES {
            return Err(usage("the list on stdin is longer than 64 MiB: split it"));
        }
        let json =
            str::from_utf8(&json).map_err(|_| usage("the list on stdin is not valid UTF-8"))?;
        if json.trim_start().starts_with(['[', '{']) {
            if op.is_some() || reach == Reach::Newest {
                return Err(usage(
                    "the list on stdin has an operation for each call: remove '--op' and '--newest'",
                ));
            }
            return parse_mutations(json).map(CallSelection::Named);
        }
        let ids: Vec<&str> = json
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        if ids.is_empty() {
            return Err(usage("stdin contains no call ids"));
        }
        return named(&ids);
    }
    if parsed.operands.is_empty() {
        return Err(usage(
            "no calls are given: name at least one, or use '--stdin', '--larger-than' or '--keep-last'",
        ));
    }
    let mut ids = Vec::new();
    for operand in &parsed.operands {
        ids.push(
            operand
                .to_str()
                .ok_or_else(|| usage(format!("a call id is not valid UTF-8: {operand:?}")))?,
        );
    }
    named(&ids)
}

enum RolloutTarget {
    Session(Target),
    File(PathBuf),
}

fn parse_target(parsed: &Parsed) -> Result<RolloutTarget> {
    match (target::parse(parsed)?, parsed.value("rollout")) {
        (Some(target), None) => Ok(RolloutTarget::Session(target)),
        (None, Some(file)) => Ok(RolloutTarget::File(expand_home(file))),
        (None, None) => Err(usage(
            "no rollout is given: use '--workspace', '--thread' or '--rollout'",
        )),
        (Some(_), Some(_)) => Err(usage(
            "'--rollout' and '--workspace' or '--thread' both name a rollout: give one of them",
        )),
    }
}
