//! Consuming tool calls: what the model no longer has to see leaves the rollout, between turns.
//!
//! codex builds the model's view from the rollout whenever it resumes a thread. An output that is replaced
//! here is what the model sees next. The copies in `event_msg` records and in codex's SQLite files do not
//! reach the model and stay, and so does everything else, byte for byte.
//!
//! The file is read once to find the places, and only if something is to be changed it is copied and the copy
//! patched: a request that changes nothing writes nothing. Memory is for the places of the calls that were asked
//! for, not for the file.
//!
//! What a call is, here: a call and, after it, its output. One half alone is left as it is, and its id counts
//! as missing, because codex makes up the other half or drops it.

mod replace;
pub(crate) mod splice;

use crate::codex::home;
use crate::codex::writer_lock::WriterLock;
use crate::error::{Error, Kind, Result};
use crate::os::{CancelToken, Cancellable};
use crate::rollout::calls::{Calls, Fed};
use crate::rollout::lines::{self, Lines, NESTED};
use crate::rollout::record;
use replace::{Access, Replaced, RolloutFile};
use serde::Serialize;
pub(crate) use splice::Op;
use splice::{LineRole, Patch, PatchLine};
use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{self, Read};
use std::path::Path;

/// How often a file is tried that changes while it is rewritten. codex appends in bursts, at the end of a turn.
const TRIES: usize = 3;

/// What is to be done with one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mutation {
    /// The call's id, or that of a call made inside it.
    pub(crate) block_id: String,
    pub(crate) op: Op,
    pub(crate) reach: Reach,
}

/// Which of the calls of one id are meant: some models number their calls anew in every turn (`list_dir:0`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Reach {
    #[default]
    All,
    /// The last one with an output. Copies in compacted histories, which cannot be told apart, stay.
    Newest,
}

/// What was done. An id that is neither touched nor missing was consumed before.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct ConsumeReport {
    /// How many ids the request names.
    pub(crate) requested: usize,
    /// Of how many of them something was changed.
    pub(crate) touched: usize,
    /// Those that the rollout has no call with an output for, in the order of the request.
    pub(crate) missing: Vec<String>,
    /// How many bytes of JSON codex no longer reads, with the copies of a compacted history. The file keeps its
    /// length.
    pub(crate) freed_bytes: u64,
}

impl ConsumeReport {
    /// The report for a workspace without a session, and of a thread without a rollout.
    pub(crate) fn all_missing(mutations: &[Mutation]) -> ConsumeReport {
        ConsumeReport {
            requested: mutations.len(),
            touched: 0,
            missing: mutations.iter().map(|it| it.block_id.clone()).collect(),
            freed_bytes: 0,
        }
    }
}

/// Whether anything is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteMode {
    Write,
    /// Only report what would be done. Takes no lock either.
    DryRun,
}

/// Consumes calls of a thread of the codex home `home`. A thread without a rollout has no calls: all of them
/// are missing.
///
/// # Errors
/// [`Kind::Params`] where an id is named twice; [`Kind::Busy`] where codex has the thread open, or the file
/// changes all the time; [`Kind::Io`]. In each case nothing was changed, unless the message says that only the
/// directory could not be synced.
pub(crate) fn consume(
    home: &Path,
    thread: &str,
    mutations: &[Mutation],
    mode: WriteMode,
    cancel: &CancelToken,
) -> Result<ConsumeReport> {
    check(mutations)?;
    if mutations.is_empty() {
        return Ok(ConsumeReport::default());
    }
    let Some(rollout) = home::find_rollout(home, thread)? else {
        return Ok(ConsumeReport::all_missing(mutations));
    };
    consume_locked(&rollout, Some((home, thread)), mutations, mode, cancel)
}

/// Consumes calls in this rollout file. Where it lies in a codex home, codex's lock on its thread is taken.
///
/// # Errors
/// Those of [`consume`].
pub(crate) fn consume_file(
    path: &Path,
    mutations: &[Mutation],
    mode: WriteMode,
) -> Result<ConsumeReport> {
    check(mutations)?;
    if mutations.is_empty() {
        return Ok(ConsumeReport::default());
    }
    let path = std::path::absolute(path)
        .map_err(|error| Error::os(Kind::Io, format!("cannot find '{}'", path.display()), error))?;
    let thread = home::thread_of(&path);
    // A directory that only looks like a codex home has no locks, and is not given any.
    let home = home::home_of(&path).filter(|home| home.join("thread-writer-locks").is_dir());
    let never = CancelToken::new()?;
    consume_locked(&path, home.zip(thread.as_deref()), mutations, mode, &never)
}

fn check(mutations: &[Mutation]) -> Result<()> {
    let mut seen = HashMap::new();
    for (at, mutation) in mutations.iter().enumerate() {
        if let Some(before) = seen.insert(mutation.block_id.as_str(), at) {
            return Err(Error::new(
                Kind::Params,
                format!(
                    "mutations[{at}].block_id: '{}' is named in mutations[{before}] already",
                    mutation.block_id
                ),
            ));
        }
    }
    Ok(())
}

fn consume_locked(
    path: &Path,
    thread: Option<(&Path, &str)>,
    mutations: &[Mutation],
    mode: WriteMode,
    cancel: &CancelToken,
) -> Result<ConsumeReport> {
    if mode == WriteMode::DryRun {
        let source = RolloutFile::open(path, Access::Look)?;
        return Ok(Plan::make(&source, mutations, cancel)?.outcome);
    }
    if let Some((home, _)) = thread {
        crate::os::check_owner("the codex home", home)?;
    }
    let _lock = match thread {
        Some((home, thread)) => Some(WriterLock::take(home, thread)?),
        None => None,
    };
    for _ in 0..TRIES {
        let source = RolloutFile::open(path, Access::Rewrite)?;
        let plan = Plan::make(&source, mutations, cancel)?;
        if plan.patches.is_empty() {
            return Ok(plan.outcome);
        }
        let copied = source.copy(&|| cancel.is_cancelled());
        // A copy that was cut short is not a copy.
        if cancel.is_cancelled() {
            return Err(cancelled(path));
        }
        if source.replace(copied, &plan.patches)? == Replaced::Done {
            return Ok(plan.outcome);
        }
    }
    Err(Error::new(
        Kind::Busy,
        format!("'{}' changes all the time", path.display()),
    )
    .hint("try again when nobody writes to it"))
}

fn cancelled(path: &Path) -> Error {
    let message = format!("the rewrite of '{}' was cancelled", path.display());
    Error::new(Kind::Busy, message)
}

/// What is to be written, and what it amounts to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) patches: Vec<Patch>,
    pub(crate) outcome: ConsumeReport,
}

impl Plan {
    fn make(source: &RolloutFile, mutations: &[Mutation], cancel: &CancelToken) -> Result<Plan> {
        let open = || Cancellable::new(source.reader(), cancel);
        Plan::read(open, mutations).map_err(|error| {
            if cancel.is_cancelled() {
                return cancelled(source.path());
            }
            let path = source.path().display();
            Error::os(Kind::Io, format!("cannot read '{path}'"), error)
        })
    }

    /// `open` gives the rollout from its beginning.
    pub(crate) fn read<R: Read>(open: impl Fn() -> R, mutations: &[Mutation]) -> io::Result<Plan> {
        let outer = if mutations.iter().any(|it| it.block_id.starts_with(NESTED)) {
            outer_calls(open())?
        } else {
            HashMap::new()
        };
        let wanted = Selection::new(mutations, &outer);
        let lines = wanted.lines(open())?;
        Ok(wanted.plan(&lines))
    }
}

/// Which call each call inside code mode was made in, for all of a rollout: as it was emitted when they happened.
///
/// What a script wrote after it yielded is in the output of the `wait` call that fetched it. That call has an
/// id of its own, by which the daemon consumes it; it is not meant by the ids of what the script called.
fn outer_calls(input: impl Read) -> io::Result<HashMap<String, String>> {
    use lines::LineKind::{Call, Item, Output, Turn};
    let mut outer = HashMap::new();
    let mut calls = Calls::default();
    let mut note = |line: &lines::Line<'_>| {
        // One that is given up is of no interest: only where the scripts stand is asked for here.
        let fed = record::parse(line.bytes)
            .ok()
            .and_then(|record| calls.feed(record, |_| ((), 0)));
        if let Some(Fed::Whole {
            call,
            parent: Some(parent),
        }) = fed
        {
            outer.insert(call.call.id.into_owned(), parent);
        }
    };
    let kinds = |kind| matches!(kind, Call | Output | Item | Turn);
    let mut lines = Lines::new(input);
    while let Some(line) = lines.next(kinds)? {
        note(&line);
    }
    if let Some(line) = lines.rest(kinds) {
        note(&line);
    }
    Ok(outer)
}

/// The calls that are to be consumed.
struct Selection<'a> {
    mutations: &'a [Mutation],
    /// For each mutation the call that its id stands for, if it stands for one.
    calls: Vec<Option<usize>>,
    /// The number of each id.
    numbers: HashMap<&'a str, usize>,
    /// What is to be done with each.
    ops: Vec<Op>,
    /// Of which only the newest call is meant.
    newest: Vec<bool>,
}

impl<'a> Selection<'a> {
    /// An id of a nested call stands for its outer call if all the outer call's nested ones are named. Then
    /// the weakest of their operations counts, and a stronger one that names the outer call itself wins.
    fn new(mutations: &'a [Mutation], outer: &'a HashMap<String, String>) -> Selection<'a> {
        let mut wanted = Selection {
            mutations,
            calls: Vec::new(),
            numbers: HashMap::new(),
            ops: Vec::new(),
            newest: Vec::new(),
        };
        let ops: HashMap<&str, Op> = mutations
            .iter()
            .map(|it| (it.block_id.as_str(), it.op))
            .collect();
        // For each outer call what its nested ones have in common; nothing if one of them is not named.
        let mut common: HashMap<&str, Option<Op>> = HashMap::new();
        for (nested, outer) in outer {
            let op = ops.get(nested.as_str()).copied();
            common
                .entry(outer)
                .and_modify(|so_far| *so_far = so_far.zip(op).map(|(a, b)| a.min(b)))
                .or_insert(op);
        }
        for mutation in mutations {
            let id = mutation.block_id.as_str();
            let call = match outer.get(id) {
                None => Some((id, mutation.op)),
                Some(outer) => common[outer.as_str()].map(|op| (outer.as_str(), op)),
            };
            wanted.calls.push(call.map(|(id, op)| {
                let next = wanted.ops.len();
                let number = *wanted.numbers.entry(id).or_insert(next);
                if number == next {
                    wanted.ops.push(op);
                    wanted.newest.push(true);
                }
                wanted.newest[number] &= mutation.reach == Reach::Newest;
                wanted.ops[number] = wanted.ops[number].max(op);
                number
            }));
        }
        wanted
    }

    /// The lines of a rollout that have something of these calls.
    fn lines(&self, input: impl Read) -> io::Result<Vec<PatchLine>> {
        let number = |id: &str| self.numbers.get(id).copied();
        let of_interest = |line: &lines::Line<'_>| {
            if line.cut() {
                log::warn!(
                    "the line at {} is left as it is: its {} bytes are more than is held",
                    line.offset,
                    line.length
                );
                return None;
            }
            let text = std::str::from_utf8(line.bytes).ok()?;
            let certain = matches!(line.kind, lines::LineKind::Call | lines::LineKind::Output);
            if certain && splice::is_of_another(text, &number) {
                return None;
            }
            splice::read(line.offset, text, &number)
        };
        let kinds = |kind| {
            matches!(
                kind,
                lines::LineKind::Call | lines::LineKind::Output | lines::LineKind::Compacted
            )
        };
        let mut found = Vec::new();
        let mut lines = Lines::new(input);
        while let Some(line) = lines.next(kinds)? {
            found.extend(of_interest(&line));
        }
        if let Some(line) = lines.rest(kinds) {
            found.extend(of_interest(&line));
        }
        Ok(found)
    }

    /// What is to be done in these lines, all the lines of a rollout that matter, in order.
    fn plan(&self, lines: &[PatchLine]) -> Plan {
        let pairs = Pairs::find(&self.newest, lines);
        let mut touched = vec![false; self.ops.len()];
        let mut patches = Vec::new();
        for (at, line) in lines.iter().enumerate() {
            let op = |site: &splice::Site| {
                let paired = if site.copied {
                    pairs.complete[site.id] && !self.newest[site.id]
                } else {
                    pairs.sites.contains(&(at, site.id))
                };
                paired.then(|| self.ops[site.id])
            };
            if let Some((patch, changed)) = line.patch(op) {
                patches.push(patch);
                for id in changed {
                    touched[id] = true;
                }
            }
        }
        let of = |call: &Option<usize>, what: &[bool]| call.is_some_and(|call| what[call]);
        let outcome = ConsumeReport {
            requested: self.mutations.len(),
            touched: self.calls.iter().filter(|call| of(call, &touched)).count(),
            missing: self
                .mutations
                .iter()
                .zip(&self.calls)
                .filter(|(_, call)| !of(call, &pairs.complete))
                .map(|(mutation, _)| mutation.block_id.clone())
                .collect(),
            freed_bytes: patches
                .iter()
                .map(|patch| patch.freed)
                .sum::<i64>()
                .try_into()
                .unwrap_or(0),
        };
        Plan { patches, outcome }
    }
}

/// Which halves of calls belong together.
struct Pairs {
    /// Of each id: is there a call and an output behind it?
    complete: Vec<bool>,
    /// The halves outside compacted histories that have another half, by line and id.
    sites: HashSet<(usize, usize)>,
}

impl Pairs {
    /// An id can stand for several calls one after the other: each output belongs to the first call before it
    /// that has none yet, and where all have one it is a further output of the last.
    ///
    /// In a compacted history everything is a copy, of which the model sees what is left: there a half counts
    /// as complete if the id has a pair anywhere.
    ///
    /// Of an id of which only the newest call is meant, the others have no other half.
    fn find(newest: &[bool], lines: &[PatchLine]) -> Pairs {
        let ids = newest.len();
        let mut pairs = Pairs {
            complete: vec![false; ids],
            sites: HashSet::new(),
        };
        let mut called = vec![false; ids];
        let mut halves: Vec<Vec<usize>> = vec![Vec::new(); ids];
        let mut open: Vec<VecDeque<usize>> = vec![VecDeque::new(); ids];
        for (at, line) in lines.iter().enumerate() {
            for site in &line.sites {
                match site.role {
                    LineRole::Call => {
                        called[site.id] = true;
                        if !site.copied {
                            open[site.id].push_back(at);
                        }
                    }
                    LineRole::Output if called[site.id] => {
                        pairs.complete[site.id] = true;
                        if !site.copied {
                            let halves = &mut halves[site.id];
                            if let Some(call) = open[site.id].pop_front() {
                                if newest[site.id] {
                                    halves.clear();
                                }
                                halves.push(call);
                            }
                            halves.push(at);
                        }
                    }
                    LineRole::Output => {}
                }
            }
        }
        for (id, lines) in halves.into_iter().enumerate() {
            pairs.sites.extend(lines.into_iter().map(|at| (at, id)));
        }
        pairs
    }
}

#[cfg(test)]
mod tests;
