//! Servers that are kept for their workspace's next turn, and the thread that starts and ends them.
//!
//! A workspace's lock is held as long as its server is kept: no other process may run a turn there beside a server that
//! has the thread loaded. codex 0.135 has no lock of its own that would prevent that. Nothing reads from a server while
//! it is idle; it sends next to nothing then.
//!
//! A thread that lives as long as the pool starts the servers: the parent-death signal of a guard fires when the thread
//! that spawned it exits, not the process.

use super::client::ENDING;
use super::control::{Control, ReleaseTarget};
use super::recipe::Recipe;
use super::server::Server;
use super::start::{FirstStarts, Starter};
use crate::backend::child::{Child, CodexCommand};
use crate::error::{Error, Kind, Result};
use crate::mcp::Bridge;
use crate::os::{CancelToken, FileLock};
use crate::paths::Paths;
use std::collections::{HashMap, HashSet, VecDeque};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The servers of this process, by workspace.
#[derive(Debug, Default)]
pub(in crate::backend) struct Pool {
    shared: Arc<PoolShared>,
    /// Serves other processes' requests to end a server; started when the first server is kept.
    control: OnceLock<Option<Control>>,
}

#[derive(Debug, Default)]
struct PoolShared {
    keeper: Mutex<Option<JoinHandle<()>>>,
    state: Mutex<PoolState>,
    changed: Condvar,
    first_starts: FirstStarts,
}

#[derive(Debug, Default)]
struct PoolState {
    slots: HashMap<PathBuf, PoolSlot>,
    /// Servers to be started.
    starts: VecDeque<Start>,
    /// Servers to be ended, by workspace.
    ends: Vec<(PathBuf, PoolSlot)>,
    /// The workspace of the server that is being ended.
    ending: Option<PathBuf>,
    /// Workspaces whose server is suspended or being restarted.
    suspended: HashSet<PathBuf>,
    is_over: bool,
}

/// A request to start a server.
#[derive(Debug)]
struct Start {
    command: CodexCommand,
    lock: Option<PathBuf>,
    result: SyncSender<Result<Child>>,
}

/// The pool's entry for a workspace.
#[derive(Debug)]
struct PoolSlot {
    // Declared before the lock, so that the server is dropped before the lock is released.
    server: Option<Server>,
    lock: Option<FileLock>,
    /// The workspace's device and inode: its path can lead to another directory later.
    directory: Option<(u64, u64)>,
    is_in_turn: bool,
    idle_since: Instant,
    /// When the server is ended unless another turn uses it.
    expires_at: Option<Instant>,
}

impl PoolSlot {
    fn is_idle(&self) -> bool {
        !self.is_in_turn && self.server.is_some()
    }

    fn end(self) {
        self.end_by(Instant::now() + ENDING);
    }

    fn end_by(mut self, deadline: Instant) {
        if let Some(server) = self.server.take() {
            server.client.close_by(deadline);
        }
    }
}

impl PoolShared {
    fn state(&self) -> MutexGuard<'_, PoolState> {
        // No holder of this lock panics while the state is inconsistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`PoolShared::state`], after waiting until no server of this workspace is being started or ended, or
    /// `cancel`.
    fn state_of(
        &self,
        workspace: &Path,
        cancel: Option<&CancelToken>,
    ) -> MutexGuard<'_, PoolState> {
        /// How often `cancel` is checked.
        const PAUSE: Duration = Duration::from_millis(20);
        let mut state = self.state();
        loop {
            let is_busy = state.suspended.contains(workspace)
                || state.ending.as_deref() == Some(workspace)
                || state.ends.iter().any(|(at, _)| at == workspace);
            if !is_busy || cancel.is_some_and(CancelToken::is_cancelled) {
                return state;
            }
            let waited = self.changed.wait_timeout(state, PAUSE);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Starts and ends servers until the pool is dropped.
    fn keep(&self) {
        let mut state = self.state();
        loop {
            if let Some(start) = state.starts.pop_front() {
                drop(state);
                let child = Child::start(&start.command, start.lock.as_deref());
                // Fails only where the requester has gone.
                let _ = start.result.send(child);
                state = self.state();
                continue;
            }
            let now = Instant::now();
            let PoolState { slots, ends, .. } = &mut *state;
            let due = |_: &PathBuf, slot: &mut PoolSlot| {
                slot.is_idle() && slot.expires_at.is_some_and(|until| until <= now)
            };
            ends.extend(slots.extract_if(due));
            if let Some((workspace, slot)) = state.ends.pop() {
                state.ending = Some(workspace);
                drop(state);
                slot.end();
                state = self.state();
                state.ending = None;
                self.changed.notify_all();
                continue;
            }
            if state.is_over {
                return;
            }
            let idle = state.slots.values().filter(|slot| slot.is_idle());
            let next = idle.filter_map(|slot| slot.expires_at).min();
            state = match next {
                Some(next) => {
                    let time = next.saturating_duration_since(now);
                    let waited = self.changed.wait_timeout(state, time);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => (self.changed.wait(state)).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

impl Pool {
    /// Begins a turn in this workspace, which reserves its server. Returns the workspace's lock, if the pool holds it.
    pub(in crate::backend) fn claim(
        &self,
        workspace: &Path,
        cancel: &CancelToken,
    ) -> Option<FileLock> {
        let directory = identity(workspace);
        // Servers of the same directory under its old path, and of a former directory at this path.
        self.handle()
            .release_all(|at, slot| (at == workspace) != (slot.directory == directory));
        let mut state = self.shared.state_of(workspace, Some(cancel));
        let slot = state.slots.get_mut(workspace)?;
        slot.is_in_turn = true;
        slot.lock.take()
    }

    /// Takes the workspace's server, in a turn.
    pub(in crate::backend) fn take(&self, workspace: &Path) -> Option<Server> {
        self.shared.state().slots.get_mut(workspace)?.server.take()
    }

    /// Returns the server, in a turn.
    pub(super) fn put(&self, workspace: &Path, server: Server) {
        let slot = PoolSlot {
            server: Some(server),
            lock: None,
            directory: identity(workspace),
            is_in_turn: true,
            idle_since: Instant::now(),
            expires_at: None,
        };
        self.shared.state().slots.insert(workspace.to_owned(), slot);
    }

    /// The bridge to the daemon's tools of the workspace's server, in a turn.
    pub(in crate::backend) fn tools(&self, workspace: &Path) -> Option<Arc<Bridge>> {
        let state = self.shared.state();
        state
            .slots
            .get(workspace)?
            .server
            .as_ref()?
            .tools()
            .cloned()
    }

    /// Ends a turn: the server, if there is one, and the lock are kept for `time`. At most `most` idle servers are
    /// kept.
    pub(in crate::backend) fn end_turn(
        &self,
        workspace: &Path,
        lock: Option<FileLock>,
        time: Duration,
        most: usize,
        places: &Paths,
    ) {
        let mut state = self.shared.state();
        let Some(mut slot) = state.slots.remove(workspace) else {
            return;
        };
        let Some(server) = &mut slot.server else {
            return;
        };
        if state.is_over {
            drop(state);
            slot.end();
            return;
        }
        if time.is_zero() || most == 0 {
            // Only the next turn of this workspace waits for the end.
            server.client.begin_close();
            slot.lock = lock;
            state.ends.push((workspace.to_owned(), slot));
            self.shared.changed.notify_all();
            return;
        }
        slot.is_in_turn = false;
        slot.lock = lock;
        slot.idle_since = Instant::now();
        slot.expires_at = slot.idle_since.checked_add(time);
        state.slots.insert(workspace.to_owned(), slot);
        let mut idle: Vec<_> = state.slots.iter().filter(|(_, it)| it.is_idle()).collect();
        idle.sort_by_key(|(_, slot)| slot.idle_since);
        let over = idle.len().saturating_sub(most);
        let over: Vec<PathBuf> = idle
            .iter()
            .take(over)
            .map(|(at, _)| (*at).clone())
            .collect();
        for workspace in over {
            let slot = state.slots.remove_entry(&workspace);
            state.ends.extend(slot);
        }
        drop(state);
        self.shared.changed.notify_all();
        self.control.get_or_init(|| {
            let kept = self.handle();
            let control = Control::start(places, move |target| match target {
                ReleaseTarget::Workspace(path) => kept.release(path),
                ReleaseTarget::Thread(id) => kept.release_thread(id, None),
            });
            let failed = |error: &Error| {
                log::warn!(
                    "{error}; other processes cannot make this one release an idle codex app-server"
                )
            };
            control.inspect_err(failed).ok()
        });
    }

    /// A handle to end or suspend servers.
    pub(in crate::backend) fn handle(&self) -> PoolHandle {
        PoolHandle(Arc::clone(&self.shared))
    }

    /// Ends all idle servers; none are kept from now on.
    pub(in crate::backend) fn end(&self) {
        let mut state = self.shared.state();
        state.is_over = true;
        let slots = state.slots.extract_if(|_, slot| slot.is_idle());
        let mut slots: Vec<PoolSlot> = slots.map(|(_, slot)| slot).collect();
        slots.extend(state.ends.drain(..).map(|(_, slot)| slot));
        drop(state);
        // All of them first, so that they exit in parallel.
        for server in slots.iter_mut().filter_map(|slot| slot.server.as_mut()) {
            server.client.begin_close();
        }
        let deadline = Instant::now() + ENDING;
        for slot in slots {
            slot.end_by(deadline);
        }
        self.shared.changed.notify_all();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.end();
        let keeper = self.shared.keeper.lock();
        let keeper = keeper.unwrap_or_else(PoisonError::into_inner).take();
        if let Some(keeper) = keeper {
            // A panic of the thread was reported by it.
            let _ = keeper.join();
        }
    }
}

/// A handle to the servers of a pool.
#[derive(Clone, Debug)]
pub(in crate::backend) struct PoolHandle(Arc<PoolShared>);

impl PoolHandle {
    /// Ends the server of this workspace and releases the lock, unless a turn runs. Returns whether there was one.
    pub(in crate::backend) fn release(&self, workspace: &Path) -> bool {
        drop(self.0.state_of(workspace, None));
        self.release_all(|at, _| at == workspace)
    }

    /// The same for the server that has this thread loaded, except in the workspace `but`.
    pub(super) fn release_thread(&self, thread: &str, but: Option<&Path>) -> bool {
        self.release_all(|at, slot| {
            let server = slot.server.as_ref();
            Some(at) != but && server.is_some_and(|server| server.thread == thread)
        })
    }

    fn start_keeper(&self) -> Result<()> {
        let mut keeper = self.0.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        if keeper.as_ref().is_none_or(JoinHandle::is_finished) {
            let shared = Arc::clone(&self.0);
            let started = std::thread::Builder::new()
                .name("app-servers".to_owned())
                .spawn(move || shared.keep());
            *keeper = Some(started.map_err(|error| keeper_error(Some(error)))?);
        }
        Ok(())
    }

    /// Ends the server of this workspace and returns what restarts it. No turn runs in the workspace until that is resumed
    /// or dropped.
    pub(in crate::backend) fn suspend(&self, workspace: &Path) -> Option<Suspended> {
        let mut state = self.0.state_of(workspace, None);
        let slot = state.slots.get(workspace).filter(|slot| slot.is_idle())?;
        let (directory, expires_at) = (slot.directory, slot.expires_at);
        let slot = state.slots.remove(workspace)?;
        state.suspended.insert(workspace.to_owned());
        drop(state);
        let hold = Hold {
            kept: self.clone(),
            workspace: workspace.to_owned(),
        };
        Some(Suspended {
            recipe: slot.server?.into_recipe(),
            lock: slot.lock,
            directory,
            expires_at,
            hold,
        })
    }

    /// Ends the idle servers that `filter` selects. Returns whether there was one.
    fn release_all(&self, filter: impl Fn(&Path, &PoolSlot) -> bool) -> bool {
        let mut state = self.0.state();
        let slots = state
            .slots
            .extract_if(|at, slot| slot.is_idle() && filter(at, slot));
        let slots: Vec<PoolSlot> = slots.map(|(_, slot)| slot).collect();
        drop(state);
        let has_ended_any = !slots.is_empty();
        slots.into_iter().for_each(PoolSlot::end);
        has_ended_any
    }
}

impl Starter for PoolHandle {
    fn spawn(&self, command: &CodexCommand, lock: Option<&Path>) -> Result<Child> {
        self.start_keeper()?;
        let (result, child) = sync_channel(1);
        self.0.state().starts.push_back(Start {
            command: command.clone(),
            lock: lock.map(Path::to_owned),
            result,
        });
        self.0.changed.notify_all();
        child.recv().unwrap_or_else(|_| Err(keeper_error(None)))
    }

    fn first_starts(&self) -> &FirstStarts {
        &self.0.first_starts
    }
}

/// A server that was ended for a while.
pub(crate) struct Suspended {
    recipe: Recipe,
    directory: Option<(u64, u64)>,
    expires_at: Option<Instant>,
    // Dropped before `hold`: the lock must be free when turns may run again.
    lock: Option<FileLock>,
    hold: Hold,
}

/// Blocks turns in a workspace until it is dropped.
struct Hold {
    kept: PoolHandle,
    workspace: PathBuf,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let shared = &self.kept.0;
        shared.state().suspended.remove(&self.workspace);
        shared.changed.notify_all();
    }
}

impl Suspended {
    /// Starts the server again, on a thread of its own. Where that fails the next turn starts one.
    pub(crate) fn resume(self) {
        let started = std::thread::Builder::new()
            .name("warm-up".to_owned())
            .spawn(move || self.start());
        if let Err(error) = started {
            log::debug!("codex app-server is not started before the next turn: {error}");
        }
    }

    fn start(self) {
        let Suspended {
            recipe,
            directory,
            expires_at,
            hold,
            lock,
        } = self;
        let Ok(never) = CancelToken::new() else {
            return;
        };
        let Ok(mut server) = Server::start(&hold.kept, recipe, None, &never) else {
            log::debug!("codex app-server cannot be started before the next turn");
            return;
        };
        if let Some(tools) = server.tools() {
            tools.end_turn();
        }
        if let Err(why) = server.end_turn() {
            log::debug!("codex app-server is not kept: {why}");
            return;
        }
        let slot = PoolSlot {
            server: Some(server),
            lock,
            directory,
            is_in_turn: false,
            idle_since: Instant::now(),
            expires_at,
        };
        let mut state = hold.kept.0.state();
        match state.is_over {
            true => {
                drop(state);
                slot.end();
            }
            false => drop(state.slots.insert(hold.workspace.clone(), slot)),
        }
    }
}

/// A directory's device and inode.
fn identity(directory: &Path) -> Option<(u64, u64)> {
    let found = std::fs::metadata(directory).ok()?;
    Some((found.dev(), found.ino()))
}

fn keeper_error(error: Option<std::io::Error>) -> Error {
    let what = "cannot start a thread for codex app-server";
    match error {
        Some(error) => Error::os(Kind::CodexFailed, what, error),
        None => Error::new(Kind::CodexFailed, what),
    }
    .with_retryable(true)
}
