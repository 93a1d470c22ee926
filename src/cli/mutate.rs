//! `mutate`: consumes tool calls in a rollout that a person names by workspace, thread or file.
//!
//! It does what the daemon's `plexum/session/mutate` does, with the same locks, and prints the same answer.

use super::flags::{Parsed, at_home, usage};
use super::target::{self, Target};
use super::{columns, seems, written};
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

/// The longest list that `--stdin` takes: what the daemon can send in one line, too.
const LONGEST_LIST: u64 = 64 << 20;

/// Runs the command and returns its exit status.
///
/// # Errors
/// [`Kind::Usage`] for the command line, [`Kind::Params`] for the list on stdin, and what consuming can
/// meet: see [`crate::rollout::consume::consume`].
pub(crate) fn run(parsed: &Parsed, stdin: &mut dyn Read, stdout: &mut dyn Write) -> Result<u8> {
    let choice = choice(parsed, stdin)?;
    let mode = if parsed.has("dry-run") {
        WriteMode::DryRun
    } else {
        WriteMode::Write
    };
    let target = rollout_target(parsed)?;
    let (mutations, outcome) = match resolve(&target, mode)? {
        Some(rollout) => {
            let mutations = choice.mutations(&rollout.path)?;
            let outcome = match &rollout.thread {
                Some((home, thread)) => {
                    consume(home, thread, &mutations, mode, &CancelToken::new()?)?
                }
                None => consume_file(&rollout.path, &mutations, mode)?,
            };
            // A thread's rollout is found by its name, whatever stands in it.
            if rollout.thread.is_none()
                && outcome.touched == 0
                && outcome.missing.len() == outcome.requested
            {
                refuse_other_files(&rollout.path)?;
            }
            (mutations, outcome)
        }
        // As for the daemon: what has no session has no calls.
        None => {
            let mutations = choice.named();
            let outcome = ConsumeReport::all_missing(&mutations);
            (mutations, outcome)
        }
    };
    // Of an empty list nothing was asked.
    let found_nothing = outcome.touched == 0
        && outcome.missing.len() == outcome.requested
        && !matches!(&choice, Choice::Named(named) if named.is_empty());
    let mut line = serde_json::to_string(&outcome).expect("an outcome is plain data");
    line.push('\n');
    if io::stdout().is_terminal() {
        line = columns::json_for_terminal(&line).into_owned();
    }
    let result = stdout.write_all(line.as_bytes());
    let status = written(result.and_then(|()| stdout.flush()), 0)?;
    match found_nothing {
        true => Err(Error::new(
            Kind::Io,
            choice.why_nothing(&mutations, &target),
        )),
        false => Ok(status),
    }
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

/// A rollout whose calls are meant.
struct Rollout {
    path: PathBuf,
    /// The codex home and the thread, where it is a thread's and not just a file.
    thread: Option<(PathBuf, String)>,
}

/// The rollout that is meant; `None` for a workspace without a session.
fn resolve(target: &RolloutTarget, mode: WriteMode) -> Result<Option<Rollout>> {
    // Only here, so that a broken config does not matter to `--rollout`.
    let places = Paths::from_env();
    let thread = match target {
        RolloutTarget::File(file) => {
            return Ok(Some(Rollout {
                path: file.clone(),
                thread: None,
            }));
        }
        RolloutTarget::Of(Target::Thread(thread)) => thread.clone(),
        RolloutTarget::Of(Target::Workspace(workspace)) => {
            // To the daemon a directory that is not there is one without a session; to a person it is a slip.
            if !workspace.is_dir() {
                return Err(Error::new(
                    Kind::Io,
                    format!("there is no directory '{}'", workspace.display()),
                ));
            }
            if mode == WriteMode::Write {
                crate::os::check_owner("the workspace", workspace)?;
            }
            match thread_of_workspace(workspace, &places)? {
                Some(thread) => thread,
                None => return Ok(None),
            }
        }
    };
    let home = places.codex_home(&places.load_config()?.config);
    if mode == WriteMode::Write {
        // A plugin may keep the thread for its next turn.
        request_release(ReleaseTarget::Thread(&thread), &places);
    }
    match find_rollout(&home, &thread)? {
        Some(path) => Ok(Some(Rollout {
            path,
            thread: Some((home, thread)),
        })),
        None => Err(target::no_rollout(&thread, &home)),
    }
}

/// The id of the workspace's own thread, if it has one.
fn thread_of_workspace(workspace: &Path, places: &Paths) -> Result<Option<String>> {
    match session::read(workspace)? {
        Stored::Thread(thread) => {
            let config = places.load_config()?.config;
            match foreign_directory(workspace, &thread, &config, places) {
                Some(other) => Err(foreign(workspace, &thread, &other)),
                None => Ok(Some(thread)),
            }
        }
        Stored::Nothing => Ok(None),
        Stored::Unusable(why) => Err(session::unusable(workspace, &why)),
    }
}

/// Which calls are meant.
enum Choice {
    Named(Vec<Mutation>),
    /// Those whose output has more bytes than that, all but the last so many.
    By {
        larger_than: Option<u64>,
        keep_last: usize,
        op: Op,
    },
}

impl Choice {
    fn named(&self) -> Vec<Mutation> {
        match self {
            Choice::Named(mutations) => mutations.clone(),
            Choice::By { .. } => Vec::new(),
        }
    }

    /// The mutations of the calls in this rollout that are meant.
    fn mutations(&self, rollout: &Path) -> Result<Vec<Mutation>> {
        let Choice::By {
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
        calls.retain(|(_, bytes)| larger_than.is_none_or(|least| *bytes > least));
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

    fn why_nothing(&self, mutations: &[Mutation], target: &RolloutTarget) -> String {
        let shown = match target {
            RolloutTarget::File(file) => format!("'{}'", file.display()),
            RolloutTarget::Of(Target::Thread(thread)) => format!("thread {thread}"),
            RolloutTarget::Of(Target::Workspace(workspace)) => {
                format!("the workspace '{}'", workspace.display())
            }
        };
        match self {
            Choice::Named(_) if mutations.len() == 1 => {
                format!("nothing was consumed: {shown} has no such call with an output")
            }
            Choice::Named(_) => {
                format!("nothing was consumed: {shown} has none of these calls with an output")
            }
            Choice::By { .. } => {
                format!("nothing was consumed: {shown} has no call that is so large or so old")
            }
        }
    }
}

/// The calls that have an output, in the order of the outputs, each with the bytes of its output.
fn calls_of(rollout: &Path) -> io::Result<Vec<(String, u64)>> {
    let mut lines = Lines::new(open_regular_file(rollout)?);
    let mut calls = Calls::default();
    let mut found = Vec::new();
    let wanted = |kind| matches!(kind, LineKind::Call | LineKind::Output | LineKind::Turn);
    while let Some(line) = lines.next(wanted)? {
        let Ok(record) = record::read(&line) else {
            continue;
        };
        if let Some(MatchedRecord::Output { output, .. }) = calls.feed(record, |_| ((), 0)) {
            found.push((output.id.into_owned(), output.content.bytes()));
        }
    }
    Ok(found)
}

/// What to do: with the operands, with what stands on stdin, or with calls of a kind.
fn choice(parsed: &Parsed, stdin: &mut dyn Read) -> Result<Choice> {
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
                "'--larger-than' and '--keep-last' choose the calls: name none, on stdin neither",
            ));
        }
        return Ok(Choice::By {
            larger_than,
            keep_last: usize::try_from(keep_last.unwrap_or(0)).unwrap_or(usize::MAX),
            op: op.unwrap_or(Op::Light),
        });
    }
    let named = |ids: &[&str]| -> Result<Choice> {
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
        Ok(Choice::Named(mutations))
    };
    if parsed.has("stdin") {
        if !parsed.operands.is_empty() {
            return Err(usage("with '--stdin' the call ids come from stdin alone"));
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
        if json.trim_start().starts_with(['[', '{']) {
            if op.is_some() || reach == Reach::Newest {
                return Err(usage(
                    "the list on stdin says itself what is to be done with each call: give no '--op' and no '--newest'",
                ));
            }
            return parse_mutations(json).map(Choice::Named);
        }
        let ids: Vec<&str> = json
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        if ids.is_empty() {
            return Err(usage("there is no call id on stdin"));
        }
        return named(&ids);
    }
    if parsed.operands.is_empty() {
        return Err(usage(
            "no call is given: name one or more, or use '--stdin', '--larger-than' or '--keep-last'",
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

/// Whose calls are meant.
enum RolloutTarget {
    Of(Target),
    File(PathBuf),
}

fn rollout_target(parsed: &Parsed) -> Result<RolloutTarget> {
    match (target::given(parsed)?, parsed.value("rollout")) {
        (Some(target), None) => Ok(RolloutTarget::Of(target)),
        (None, Some(file)) => Ok(RolloutTarget::File(at_home(file))),
        (None, None) => Err(usage(
            "whose calls? name a '--workspace', a '--thread' or a '--rollout'",
        )),
        (Some(_), Some(_)) => Err(usage(
            "'--rollout' and '--workspace' or '--thread' both name a rollout: give one of them",
        )),
    }
}
