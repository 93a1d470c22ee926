//! Consumes tool calls: removes from the rollout, between turns, what the model no longer has to see.
//!
//! codex builds the model's view from the rollout whenever it resumes a thread. An output that is replaced here is what
//! the model sees next. The copies in `event_msg` records and in codex's SQLite files do not reach the model and stay,
//! as does everything else, byte for byte.
//!
//! The file is read once to find the values, and copied and patched only if something changes: a request that changes
//! nothing writes nothing. Memory grows with the selected calls, not with the file.
//!
//! A call is consumed only together with an output behind it. A call without an output, or the reverse, is left
//! unchanged and its id counts as missing: codex invents or drops the other half.

mod replace;
pub(crate) mod splice;

use crate::codex::home;
use crate::codex::writer_lock::WriterLock;
use crate::error::{Error, Kind, Result};
use crate::os::{CancelToken, Cancellable};
use crate::rollout::calls::{Calls, MatchedRecord};
use crate::rollout::lines::{self, Lines, NESTED_ID_PREFIX};
use crate::rollout::record;
use replace::{Access, Replaced, RolloutFile};
use serde::Serialize;
pub(crate) use splice::Op;
use splice::{LineRole, Patch, PatchLine};
use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{self, Read};
use std::path::Path;

/// How often the rewrite of a file that changes meanwhile is tried. codex appends in bursts, at the end of a turn.
const TRIES: usize = 3;

/// A request to consume a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mutation {
    /// The id of the call, or of a call made inside it.
    pub(crate) block_id: String,
    pub(crate) op: Op,
    pub(crate) reach: Reach,
}

/// Which of the calls of one id are consumed: some models number their calls anew in every turn (`list_dir:0`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Reach {
    #[default]
    All,
    /// The last one with an output. Copies in compacted histories, which cannot be told apart, are not consumed.
    Newest,
}

/// The result of a request. An id that is neither touched nor missing was consumed before.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct ConsumeReport {
    /// The number of ids in the request.
    pub(crate) requested: usize,
    /// How many of them were changed.
    pub(crate) touched: usize,
    /// Those without a call and output in the rollout, in the order of the request.
    pub(crate) missing: Vec<String>,
    /// By how many bytes the JSON became shorter, including copies in a compacted history. The file keeps its length.
    pub(crate) freed_bytes: u64,
}

impl ConsumeReport {
    /// The report for a workspace without a session, or a thread without a rollout.
    pub(crate) fn all_missing(mutations: &[Mutation]) -> ConsumeReport {
        ConsumeReport {
            requested: mutations.len(),
            touched: 0,
            missing: mutations.iter().map(|it| it.block_id.clone()).collect(),
            freed_bytes: 0,
        }
    }
}

/// Whether the rollout is rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteMode {
    Write,
    /// Only reports what would change. Takes no lock.
    DryRun,
}

/// Consumes calls of a thread of the codex home `home`. Without a rollout, all ids are missing.
///
/// # Errors
/// [`Kind::Params`] where an id is duplicate; [`Kind::Busy`] where codex has the thread open, or the file changes at
/// each try; [`Kind::Io`]. The rollout is unchanged then, unless the message says that only the directory could not be
/// synced.
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

/// Consumes calls in a rollout file. If it is in a codex home, codex's writer lock on its thread is taken.
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
    // Without the lock directory it only looks like a codex home, and gets no locks.
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
        // A cancelled copy is incomplete.
        if cancel.is_cancelled() {
            return Err(cancelled(path));
        }
        if source.replace(copied, &plan.patches)? == Replaced::Done {
            return Ok(plan.outcome);
        }
    }
    Err(Error::new(
        Kind::Busy,
        format!("'{}' is being changed by another process", path.display()),
    )
    .hint("try again when no process writes to it"))
}

fn cancelled(path: &Path) -> Error {
    let message = format!("the rewrite of '{}' was cancelled", path.display());
    Error::new(Kind::Busy, message)
}

/// The patches, and their report.
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

    /// `open` returns the rollout from its beginning.
    pub(crate) fn read<R: Read>(open: impl Fn() -> R, mutations: &[Mutation]) -> io::Result<Plan> {
        let outer = if mutations
            .iter()
            .any(|it| it.block_id.starts_with(NESTED_ID_PREFIX))
        {
            outer_calls(open())?
        } else {
            HashMap::new()
        };
        let selection = Selection::new(mutations, &outer);
        let lines = selection.lines(open())?;
        Ok(selection.plan(&lines))
    }
}

/// Maps each call made inside code mode to the `exec` call that made it, as the events of the turns reported it.
///
/// The output of a script that yielded is in the `wait` call that fetched it. That call has its own id, by which it is
/// consumed; the ids of the script's calls do not select it.
fn outer_calls(input: impl Read) -> io::Result<HashMap<String, String>> {
    use lines::LineKind::{Call, Item, Output, Turn};
    let mut outer = HashMap::new();
    let mut calls = Calls::default();
    let mut note = |line: &lines::Line<'_>| {
        // Evicted calls do not matter: only the scripts are of interest here.
        let matched = record::parse(line.bytes)
            .ok()
            .and_then(|record| calls.feed(record, |_| ((), 0)));
        if let Some(MatchedRecord::Complete {
            call,
            parent: Some(parent),
        }) = matched
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

/// The selected calls.
struct Selection<'a> {
    mutations: &'a [Mutation],
    /// For each mutation the index of the call that it selects, if any.
    calls: Vec<Option<usize>>,
    /// The index of each id.
    numbers: HashMap<&'a str, usize>,
    /// The operation on each call.
    ops: Vec<Op>,
    /// Whether only the newest call of the id is selected.
    newest: Vec<bool>,
}

impl<'a> Selection<'a> {
    /// The id of a nested call selects its outer call if all nested ones of that are named, with the weakest of their
    /// operations. A stronger operation on the outer call itself takes precedence.
    fn new(mutations: &'a [Mutation], outer: &'a HashMap<String, String>) -> Selection<'a> {
        let mut selection = Selection {
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
        // For each outer call the weakest operation on its nested ones; `None` if one of them is not named.
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
            selection.calls.push(call.map(|(id, op)| {
                let next = selection.ops.len();
                let number = *selection.numbers.entry(id).or_insert(next);
                if number == next {
                    selection.ops.push(op);
                    selection.newest.push(true);
                }
                selection.newest[number] &= mutation.reach == Reach::Newest;
                selection.ops[number] = selection.ops[number].max(op);
                number
            }));
        }
        selection
    }

    /// The lines that contain selected calls.
    fn lines(&self, input: impl Read) -> io::Result<Vec<PatchLine>> {
        let index_of = |id: &str| self.numbers.get(id).copied();
        let patchable = |line: &lines::Line<'_>| {
            if line.cut() {
                log::warn!(
                    "the line at offset {} is not changed: its {} bytes exceed the limit",
                    line.offset,
                    line.length
                );
                return None;
            }
            let text = std::str::from_utf8(line.bytes).ok()?;
            let certain = matches!(line.kind, lines::LineKind::Call | lines::LineKind::Output);
            if certain && splice::is_of_another(text, &index_of) {
                return None;
            }
            splice::read(line.offset, text, &index_of)
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
            found.extend(patchable(&line));
        }
        if let Some(line) = lines.rest(kinds) {
            found.extend(patchable(&line));
        }
        Ok(found)
    }

    /// The plan for these lines: all that contain selected calls, in order.
    fn plan(&self, lines: &[PatchLine]) -> Plan {
        let pairs = Pairs::find(&self.newest, lines);
        let mut touched = vec![false; self.ops.len()];
        let mut patches = Vec::new();
        for (at, line) in lines.iter().enumerate() {
            let op = |site: &splice::Site| {
                let paired = if site.in_compacted_history {
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

/// Which calls and outputs belong together.
struct Pairs {
    /// For each id, whether it has a call and an output behind it.
    complete: Vec<bool>,
    /// The calls and outputs outside compacted histories that have their other half, as (line, id).
    sites: HashSet<(usize, usize)>,
}

impl Pairs {
    /// An id can have several calls one after the other: an output belongs to the first call before it that has none
    /// yet, or, if all have one, to the last.
    ///
    /// A compacted history has copies, possibly of one half alone: these count as complete if the id has a pair
    /// anywhere.
    ///
    /// Of an id of which only the newest call is selected, the others count as incomplete.
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
                        if !site.in_compacted_history {
                            open[site.id].push_back(at);
                        }
                    }
                    LineRole::Output if called[site.id] => {
                        pairs.complete[site.id] = true;
                        if !site.in_compacted_history {
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
