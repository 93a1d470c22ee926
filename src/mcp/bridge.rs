//! The plugin's side of a turn's socket: one thread that serves all connections.
//!
//! It is a single thread, however many connections and calls are open: two hundred turns side by side need two hundred
//! threads here, and five hundred open calls are five hundred entries in a map. So it may block in `poll` only.
//! Responses come on whichever thread reads the daemon's line: they are put into the inbox, and this thread is woken.
//!
//! A connection is authenticated by its first line (`Hello`); until then its memory and time are limited.
//! [`super::proxy`] is what `mcp-host` runs to send that line.

use super::catalogue::Catalogue;
use super::names::ToolNames;
use super::register::{self, ServerEntry};
use super::session::{self, Effect, RequestKey, Session};
use super::socket::{self, Listening};
use super::{BridgeSettings, CallId, RegistrationMode, Tool, ToolAnswer, ToolCall, ToolHost};
use crate::error::{Error, Kind, Result};
use crate::os::{self, Pid, PollFd, PollFlags, Waker};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The most authenticated connections of one turn. codex makes one.
const SESSIONS_MAX: usize = 8;
/// The most unauthenticated connections; the oldest one is closed for another.
const MAX_UNAUTHENTICATED: usize = 64;
/// How long a connection may take to authenticate, and a closing one to read its last lines.
const HELLO_WAIT: Duration = Duration::from_secs(2);
/// The longest first line, in bytes: it has an agent's id and a token.
const HELLO_BYTES: usize = 16 * 1024;
/// The longest id of an agent, in bytes: it is an argument of codex.
const AGENT_ID_BYTES: usize = 1024;
/// The longest message, in bytes, as for the daemon's.
const LINE_BYTES: usize = 64 * 1024 * 1024;
/// The most bytes of incomplete lines of all connections of a turn: one of the longest.
const UNENDED_BYTES: usize = LINE_BYTES;
/// A connection with more unwritten output, in bytes, is not read from.
const BACKLOG_BYTES: usize = 1024 * 1024;
/// How many bytes are read from one connection at a time.
const READ_BYTES: usize = 64 * 1024;
/// How long no connection is accepted after an error (no descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The first line of a connection.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Hello<'a> {
    #[serde(borrow)]
    pub(super) agent_id: Cow<'a, str>,
    /// The token in the file beside the socket.
    #[serde(borrow)]
    pub(super) token: Cow<'a, str>,
    /// The turn's mark, if codex got one.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub(super) turn: Option<Cow<'a, str>>,
}

/// The response to it; `error` tells why the connection is refused.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Welcome<'a> {
    #[serde(borrow, default)]
    pub(super) error: Option<Cow<'a, str>>,
}

/// The MCP server of one turn, or of consecutive turns of the same codex. Dropping it cancels open calls, closes the
/// connections, removes the files and joins the thread.
#[derive(Debug)]
pub(crate) struct Bridge {
    shared: Arc<BridgeState>,
    /// A hash of what it was started with, for [`Bridge::serves`].
    key: u64,
    thread: Option<JoinHandle<()>>,
    arguments: Vec<OsString>,
    warnings: Vec<String>,
    names: Arc<ToolNames>,
}

/// The state that a bridge shares with other threads.
#[derive(Debug)]
struct BridgeState {
    inbox: Mutex<Inbox>,
    /// Wakes the bridge's thread.
    waker: Waker,
    /// Wakes the turn when codex calls a tool: it has recorded the call by then, or is about to.
    called: Waker,
    /// The processes of the authenticated connections, by pid and start time.
    served: Mutex<Vec<(Pid, u64)>>,
}

#[derive(Default)]
struct Inbox {
    answers: Vec<(Waiting, ToolAnswer)>,
    /// The new host; `Some(None)` is the end of a turn.
    host: Option<Option<Arc<dyn ToolHost>>>,
    tools: Option<Catalogue>,
    /// The new admission.
    guard: Option<Admission>,
    /// How many lists of tools there have been.
    generation: u64,
    stop: bool,
}

/// Which processes may connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admission {
    /// No codex runs: connections wait for one, and are closed if none comes in time.
    Nobody,
    /// Those of the codex below this guard, given by pid and start time.
    Below(Pid, u64),
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").finish_non_exhaustive()
    }
}

/// The host while no turn runs.
struct NoTurn;

impl ToolHost for NoTurn {
    fn call(&self, _: ToolCall, answer: Box<dyn FnOnce(ToolAnswer) + Send>) -> CallId {
        answer(Err("no turn is running".to_owned()));
        CallId(0)
    }

    fn cancel(&self, _: CallId) {}
}

/// A call whose result is awaited: its connection and its key there.
type Waiting = (u64, RequestKey);

impl Bridge {
    /// Exposes these tools to the codex that is started with [`Bridge::codex_args`].
    ///
    /// # Errors
    /// [`Kind::Params`] for an agent's id that cannot be an argument, [`Kind::Busy`] where another turn of the agent
    /// has its socket (persistent registration), [`Kind::McpFailed`] otherwise.
    pub(crate) fn start(
        agent_id: &str,
        tools: Vec<Tool>,
        host: Arc<dyn ToolHost>,
        settings: &BridgeSettings,
    ) -> Result<Bridge> {
        if agent_id.contains('\0') || agent_id.len() > AGENT_ID_BYTES {
            return Err(Error::new(
                Kind::Params,
                format!("'agent.id' has a NUL or more than {AGENT_ID_BYTES} bytes"),
            ));
        }
        let key = key(agent_id, &tools, settings);
        // An empty id cannot be the value of a flag.
        let unnamed = register::short_id("");
        let agent_id = if agent_id.is_empty() {
            unnamed.as_str()
        } else {
            agent_id
        };
        let directory = socket::directory(settings.runtime_dir.as_deref(), &settings.profile)?;
        let name = match settings.mode {
            // Unique, so that two turns of an agent never share it.
            RegistrationMode::Turn => socket::fresh_name()?,
            RegistrationMode::Persistent => format!("p-{}", register::short_id(agent_id)),
        };
        let listening = Listening::start(&directory, &name)?;
        let server = ServerEntry::new(agent_id, &settings.executable, &listening.path)?;
        let turn = match settings.mode {
            // The socket's path is given to this turn's codex alone.
            RegistrationMode::Turn => None,
            // The socket's path is in the shared config: the mark identifies this turn's codex.
            RegistrationMode::Persistent => Some(socket::fresh_name()?),
        };
        let config = register::prepare(&server, settings)?;
        let arguments = server.arguments(turn.as_deref(), &config, settings.tool_timeout);
        let names = tools.iter().map(|tool| tool.name.as_str());
        let names = Arc::new(ToolNames::new(&register::server_name(agent_id), names));
        let (catalogue, warnings) = Catalogue::new(0, tools);
        let cannot = |what: &str, error: std::io::Error| {
            Error::os(
                Kind::McpFailed,
                format!("cannot {what} for the tools"),
                error,
            )
        };
        let new_waker = || Waker::new().map_err(|error| cannot("make an eventfd", error));
        let shared = Arc::new(BridgeState {
            inbox: Mutex::new(Inbox::default()),
            waker: new_waker()?,
            called: new_waker()?,
            served: Mutex::default(),
        });
        let serving = BridgeThread {
            listening,
            agent_id: agent_id.to_owned(),
            turn,
            catalogue,
            host,
            is_between_turns: false,
            left_behind: Vec::new(),
            admission: Admission::Nobody,
            shared: Arc::clone(&shared),
            connections: BTreeMap::new(),
            next: 0,
            no_accept_before: None,
        };
        let thread = std::thread::Builder::new()
            .name("mcp-bridge".to_owned())
            .spawn(move || serving.run())
            .map_err(|error| cannot("start a thread", error))?;
        Ok(Bridge {
            shared,
            key,
            thread: Some(thread),
            arguments,
            warnings,
            names,
        })
    }

    /// Whether it can serve another turn of this agent, with these tools. Not after a change of the tools.
    pub(crate) fn serves(&self, agent_id: &str, tools: &[Tool], settings: &BridgeSettings) -> bool {
        self.shared.lock().generation == 0 && self.key == key(agent_id, tools, settings)
    }

    /// Begins a turn: `host` serves its calls.
    pub(crate) fn begin_turn(&self, host: Arc<dyn ToolHost>) {
        self.change_host(Some(host));
    }

    /// Ends a turn: its open calls are cancelled, and no call or connection is accepted until the next one.
    pub(crate) fn end_turn(&self) {
        self.change_host(None);
    }

    fn change_host(&self, host: Option<Arc<dyn ToolHost>>) {
        self.shared.lock().host = Some(host);
        self.shared.wake();
    }

    /// Whether an `mcp-host` is connected. codex does not restart one that has ended.
    pub(crate) fn is_connected(&self) -> bool {
        let served = &self.shared.served;
        let served = served.lock().unwrap_or_else(PoisonError::into_inner);
        // The end of one that was killed just now may not have been noticed yet.
        let mut served = served.iter();
        served.any(|(pid, start)| os::is_alive(*pid, *start) || os::is_hidden(*pid))
    }

    /// Woken when codex calls a tool.
    pub(crate) fn called(&self) -> &Waker {
        &self.shared.called
    }

    /// codex's arguments that configure the MCP server: `-c` and its value, repeated.
    pub(crate) fn codex_args(&self) -> Vec<OsString> {
        self.arguments.clone()
    }

    /// Admits the processes below this guard, and no other process of the same user.
    pub(crate) fn admit_below(&self, guard: Pid) {
        let admission = match os::start_of(guard) {
            Some(start) => Admission::Below(guard, start),
            None if os::is_hidden(guard) => Admission::Below(guard, 0),
            // A guard that has exited has no processes below it.
            None => Admission::Nobody,
        };
        self.admit(admission);
    }

    /// Closes every connection, and admits none until the next codex.
    pub(crate) fn admit_nobody(&self) {
        self.admit(Admission::Nobody);
    }

    fn admit(&self, admission: Admission) {
        self.shared.lock().guard = Some(admission);
        self.shared.wake();
    }

    /// The daemon's names of the tools. codex requests the list once, when it starts.
    pub(crate) fn names(&self) -> Arc<ToolNames> {
        Arc::clone(&self.names)
    }

    /// Warnings about the tools that the bridge was started with, for the daemon's log.
    pub(crate) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// A handle for changing the tools during the turn.
    pub(crate) fn updater(&self) -> ToolUpdater {
        ToolUpdater(Arc::clone(&self.shared))
    }
}

/// Changes the tools of a running bridge, from any thread and without blocking. It has no effect after the bridge's
/// end.
#[derive(Clone, Debug)]
pub(crate) struct ToolUpdater(Arc<BridgeState>);

impl ToolUpdater {
    /// Replaces the tools and notifies codex. Returns warnings about the new ones.
    pub(crate) fn change(&self, tools: Vec<Tool>) -> Vec<String> {
        let generation = {
            let mut inbox = self.0.lock();
            inbox.generation += 1;
            inbox.generation
        };
        let (catalogue, warnings) = Catalogue::new(generation, tools);
        let mut inbox = self.0.lock();
        // Of two concurrent changes the later one takes effect, whichever is prepared first.
        if inbox
            .tools
            .as_ref()
            .is_none_or(|waiting| waiting.generation() < generation)
        {
            inbox.tools = Some(catalogue);
        }
        drop(inbox);
        self.0.wake();
        warnings
    }
}

/// A hash of what a bridge is started with.
fn key(agent_id: &str, tools: &[Tool], settings: &BridgeSettings) -> u64 {
    let mut hasher = DefaultHasher::new();
    agent_id.hash(&mut hasher);
    (settings.mode, &settings.executable, settings.tool_timeout).hash(&mut hasher);
    for tool in tools {
        let schema = tool.input_schema.as_ref().map(|schema| schema.get());
        (&tool.name, &tool.description, schema).hash(&mut hasher);
    }
    hasher.finish()
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by it; its state is gone.
            let _ = thread.join();
        }
    }
}

impl BridgeState {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.waker.wake();
    }
}

/// The pending result of a call. Dropped without one, it is an error, so that no call hangs.
struct Reply {
    shared: Arc<BridgeState>,
    waiting: Waiting,
    sent: bool,
}

impl Reply {
    fn send(mut self, answer: ToolAnswer) {
        self.put(answer);
    }

    fn put(&mut self, answer: ToolAnswer) {
        self.sent = true;
        let mut inbox = self.shared.lock();
        // After the bridge's end it is ignored.
        if !inbox.stop {
            inbox.answers.push((self.waiting, answer));
        }
        drop(inbox);
        self.shared.wake();
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.sent {
            self.put(Err("the daemon gave no answer to this call".to_owned()));
        }
    }
}

/// The state of the bridge's thread.
struct BridgeThread {
    listening: Listening,
    agent_id: String,
    turn: Option<String>,
    catalogue: Catalogue,
    host: Arc<dyn ToolHost>,
    /// No turn runs.
    is_between_turns: bool,
    /// Processes that earlier turns of this codex have left running, by pid and start time: they are refused.
    left_behind: Vec<(Pid, u64)>,
    admission: Admission,
    shared: Arc<BridgeState>,
    connections: BTreeMap<u64, Connection>,
    /// The id of the last connection.
    next: u64,
    no_accept_before: Option<Instant>,
}

/// A connection. It is unauthenticated while `session` is `None`.
struct Connection {
    stream: UnixStream,
    /// The peer's pid from the kernel, and when that process started.
    peer: Pid,
    peer_start: Option<u64>,
    /// Its process was not one of the turn's codex when it connected.
    outside: bool,
    /// It has sent its first line before a codex was admitted.
    early: bool,
    session: Option<Session>,
    /// The host's ids of the open calls, by the session's keys.
    calls: HashMap<RequestKey, CallId>,
    input: Vec<u8>,
    /// How many bytes of `input` have no newline.
    searched: usize,
    /// An overlong line is being skipped to its end.
    skipping: bool,
    output: VecDeque<Vec<u8>>,
    /// The bytes of `output` that are not written.
    waiting: usize,
    /// How many bytes of the first line of `output` are written.
    written: usize,
    /// When the connection must be authenticated, or a closing one must have read its last lines.
    deadline: Option<Instant>,
    /// Nothing more is read; the rest of the output is written.
    ending: bool,
}

impl BridgeThread {
    fn run(mut self) {
        while !self.take_inbox() {
            self.publish_served();
            self.wait();
        }
        let ids: Vec<u64> = self.connections.keys().copied().collect();
        for id in ids {
            self.close(id);
        }
    }

    /// Publishes the processes of the authenticated connections.
    fn publish_served(&self) {
        let served = self.connections.values().filter(|it| it.session.is_some());
        let served = served.map(|it| (it.peer, it.peer_start.unwrap_or_default()));
        let mut published = (self.shared.served.lock()).unwrap_or_else(PoisonError::into_inner);
        published.clear();
        published.extend(served);
    }

    /// Handles requests of other threads. Returns whether the bridge is to end.
    fn take_inbox(&mut self) -> bool {
        let (answers, host, tools, admission, stop) = {
            let mut inbox = self.shared.lock();
            (
                std::mem::take(&mut inbox.answers),
                inbox.host.take(),
                inbox.tools.take(),
                inbox.guard.take(),
                inbox.stop,
            )
        };
        if stop {
            return true;
        }
        if let Some(host) = host {
            for connection in self.connections.values_mut() {
                connection.end_calls(&*self.host);
            }
            self.is_between_turns = host.is_none();
            self.host = host.unwrap_or_else(|| Arc::new(NoTurn));
            self.left_behind = self.processes_left_behind();
        }
        if let Some(tools) = tools {
            self.catalogue = tools;
            for connection in self.connections.values_mut() {
                let line = connection.session.as_ref().and_then(Session::tools_changed);
                connection.send(line);
            }
        }
        for ((id, key), answer) in answers {
            // The connection or the call may have ended meanwhile.
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.calls.remove(&key);
                if let Some(session) = &mut connection.session {
                    let line = session.answer(key, answer);
                    connection.send(line);
                }
            }
        }
        if let Some(admission) = admission {
            self.admit(admission);
        }
        self.flush_all();
        false
    }

    /// Closes what was admitted before, and authenticates connections that were too early.
    fn admit(&mut self, admission: Admission) {
        self.admission = admission;
        // A codex that starts between turns is admitted, too.
        self.is_between_turns &= admission == Admission::Nobody;
        let mut served = Vec::new();
        let mut early = Vec::new();
        for (id, connection) in &self.connections {
            if connection.session.is_some() {
                served.push(*id);
            } else if connection.early {
                early.push(*id);
            }
        }
        for id in served {
            self.close(id);
        }
        if admission == Admission::Nobody {
            return;
        }
        let outside: Vec<_> = self
            .connections
            .iter()
            .filter(|(_, connection)| self.is_outside(connection))
            .map(|(id, _)| *id)
            .collect();
        for id in outside {
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.outside = true;
            }
        }
        for id in early {
            if let Some(mut connection) = self.connections.remove(&id) {
                connection.early = false;
                self.lines(id, &mut connection);
                self.connections.insert(id, connection);
            }
        }
    }

    /// The processes below the guard when a turn begins or ends, without codex and the connected `mcp-host`s.
    fn processes_left_behind(&self) -> Vec<(Pid, u64)> {
        let Admission::Below(guard, _) = self.admission else {
            return Vec::new();
        };
        let served = self.connections.values().filter(|it| it.session.is_some());
        let served: Vec<Pid> = served.map(|it| it.peer).collect();
        let codex: Vec<Pid> = served
            .iter()
            .filter_map(|pid| os::parent_of(*pid))
            .collect();
        let mut left = os::descendants(guard);
        left.retain(|pid| !served.contains(pid) && !codex.contains(pid));
        left.into_iter()
            .filter_map(|pid| Some((pid, os::start_of(pid)?)))
            .collect()
    }

    /// Waits for events and handles them.
    fn wait(&mut self) {
        let now = Instant::now();
        let accepting = self.no_accept_before.is_none_or(|at| at <= now);
        let mut next = match self.no_accept_before {
            Some(at) if at > now => Some(at),
            _ => None,
        };
        let mut fds = vec![
            PollFd::new(&self.shared.waker, PollFlags::IN),
            PollFd::new(
                &self.listening.listener,
                if accepting {
                    PollFlags::IN
                } else {
                    PollFlags::empty()
                },
            ),
        ];
        let mut ids = Vec::with_capacity(self.connections.len());
        for (id, connection) in &self.connections {
            let progress = connection.session.as_ref().and_then(Session::next_progress);
            for at in [connection.deadline, progress].into_iter().flatten() {
                next = Some(next.map_or(at, |next| next.min(at)));
            }
            ids.push(*id);
            fds.push(PollFd::new(&connection.stream, connection.interest()));
        }
        // poll fails only for lack of memory; the steps below do not rely on its result.
        let _ = os::poll(&mut fds, next);
        let woken = fds[0].revents();
        let listener_ready = fds[1].revents();
        let ready: Vec<(u64, PollFlags)> = ids
            .into_iter()
            .zip(fds[2..].iter().map(PollFd::revents))
            .filter(|(_, events)| !events.is_empty())
            .collect();
        drop(fds);
        if !woken.is_empty() {
            self.shared.waker.reset();
        }
        for (id, events) in ready {
            if events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                self.read(id);
            }
        }
        if !listener_ready.is_empty() {
            self.accept();
        }
        let now = Instant::now();
        let mut late = Vec::new();
        for (id, connection) in &mut self.connections {
            if connection.deadline.is_some_and(|at| at <= now) {
                late.push(*id);
            } else if let Some(session) = &mut connection.session {
                for line in session.progress(now) {
                    connection.send(Some(line));
                }
            }
        }
        for id in late {
            self.close(id);
        }
        self.flush_all();
    }

    fn accept(&mut self) {
        // As many as the backlog holds: a valid connection may be behind many silent ones.
        for _ in 0..socket::BACKLOG {
            match self.listening.listener.accept() {
                Ok((stream, _)) => self.greet(stream),
                Err(error) if would_block(&error) => return,
                Err(error) => {
                    log::warn!(
                        "cannot accept at '{}': {error}",
                        self.listening.path.display()
                    );
                    self.no_accept_before = Some(Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    /// Adds an accepted connection, unless its peer is another user.
    fn greet(&mut self, stream: UnixStream) {
        let Some(peer) = os::peer_of_this_user(&stream) else {
            log::warn!(
                "another user connected to '{}'",
                self.listening.path.display()
            );
            return;
        };
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        let unauthenticated: Vec<_> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.session.is_none())
            .map(|(id, connection)| (*id, connection.outside))
            .collect();
        // The oldest is closed, since an `mcp-host` authenticates at once; but one of the turn's codex never for
        // others.
        let outside = unauthenticated.iter().find(|(_, outside)| *outside);
        if unauthenticated.len() >= MAX_UNAUTHENTICATED
            && let Some((oldest, _)) = outside.or(unauthenticated.first())
        {
            self.close(*oldest);
        }
        let mut connection = Connection::new(stream, peer);
        connection.outside = self.is_outside(&connection);
        self.next += 1;
        self.connections.insert(self.next, connection);
    }

    /// Whether this connection is certainly not of the turn's codex.
    fn is_outside(&self, connection: &Connection) -> bool {
        match self.admission {
            Admission::Nobody => false,
            Admission::Below(guard, start) => {
                let is_below = connection.peer_start.is_some_and(|peer_start| {
                    let (peer, but) = (connection.peer, &self.left_behind);
                    os::is_at_or_below(peer, peer_start, guard, start, but)
                });
                // Where /proc hides the guard, the token has to suffice.
                !is_below && !os::is_hidden(guard)
            }
        }
    }

    /// Reads up to a limit, and handles complete lines.
    fn read(&mut self, id: u64) {
        // Removed from the map meanwhile, so that `self` can be borrowed.
        let Some(mut connection) = self.connections.remove(&id) else {
            return;
        };
        let mut buffer = [0; READ_BYTES];
        if !connection.ending && !connection.early {
            match connection.stream.read(&mut buffer) {
                Ok(0) => {
                    connection.cancel_calls(&*self.host);
                    connection.end();
                }
                Ok(length) => {
                    connection.input.extend_from_slice(&buffer[..length]);
                    self.lines(id, &mut connection);
                }
                Err(error) if would_block(&error) => {}
                Err(_) => {
                    connection.cancel_calls(&*self.host);
                    return;
                }
            }
        }
        self.connections.insert(id, connection);
        self.limit_unended();
    }

    /// Discards the longest incomplete lines until the others are within the limit.
    fn limit_unended(&mut self) {
        loop {
            let unended: usize = self.connections.values().map(|c| c.input.len()).sum();
            let longest = self
                .connections
                .values_mut()
                .max_by_key(|connection| connection.input.len());
            let Some(longest) = longest.filter(|_| unended > UNENDED_BYTES) else {
                return;
            };
            longest.skipping = true;
            longest.input = Vec::new();
            longest.searched = 0;
        }
    }

    /// Handles the complete lines of a connection's input.
    fn lines(&mut self, id: u64, connection: &mut Connection) {
        let mut input = std::mem::take(&mut connection.input);
        let mut start = 0;
        let mut searched = connection.searched;
        while let Some(at) = memchr::memchr(b'\n', &input[searched..]) {
            if connection.session.is_none() && self.admission == Admission::Nobody {
                // The line is kept, and nothing more is read, until a codex is admitted.
                connection.early = true;
                connection.searched = searched;
                connection.input = input;
                return;
            }
            let line = &input[start..searched + at];
            searched += at + 1;
            start = searched;
            if std::mem::take(&mut connection.skipping) || line.len() > LINE_BYTES {
                connection.send(Some(session::too_long(LINE_BYTES)));
            } else if connection.session.is_some() {
                self.line(id, connection, line);
            } else {
                self.hello(connection, line);
            }
            if connection.ending {
                return;
            }
        }
        input.drain(..start);
        let max = match connection.session {
            Some(_) => LINE_BYTES,
            None => HELLO_BYTES,
        };
        if input.len() > max {
            if connection.session.is_none() {
                connection.end();
                return;
            }
            connection.skipping = true;
        }
        if connection.skipping {
            input.clear();
        }
        if input.is_empty() {
            // Memory of an overlong line is released.
            input.shrink_to(READ_BYTES);
        }
        connection.searched = input.len();
        connection.input = input;
    }

    /// Handles the first line of a connection: accepts it, or refuses it with the reason.
    fn hello(&mut self, connection: &mut Connection, line: &[u8]) {
        let sessions = self.connections.values().filter(|c| c.session.is_some());
        let is_admitted = self.admission != Admission::Nobody && !self.is_outside(connection);
        let refusal = match serde_json::from_slice::<Hello<'_>>(line) {
            Err(_) => Some("this is not an mcp-host of this version"),
            Ok(hello) if hello.agent_id != self.agent_id => {
                Some("this socket belongs to another agent")
            }
            Ok(hello) if hello.token != self.listening.token => {
                Some("the token belongs to another turn")
            }
            Ok(hello) if self.turn.is_some() && hello.turn.as_deref() != self.turn.as_deref() => {
                Some("it was not started by this turn's codex")
            }
            Ok(_) if !is_admitted => Some("it was not started by this turn's codex"),
            Ok(_) if self.is_between_turns => Some("no turn is running"),
            Ok(_) if sessions.count() >= SESSIONS_MAX && !self.evict_silent() => {
                Some("this turn has too many connections")
            }
            Ok(_) => None,
        };
        let welcome = Welcome {
            error: refusal.map(Cow::from),
        };
        connection.send(serde_json::to_string(&welcome).ok());
        match refusal {
            None => {
                connection.session = Some(Session::default());
                connection.deadline = None;
            }
            Some(why) => {
                log::warn!("rejected an mcp-host of agent '{}': {why}", self.agent_id);
                connection.end();
            }
        }
    }

    /// Closes the oldest session without `initialize`. Returns whether there was one.
    fn evict_silent(&mut self) -> bool {
        let silent = self.connections.iter().find(|(_, connection)| {
            let session = connection.session.as_ref();
            session.is_some_and(|session| !session.is_initialized())
        });
        let Some(id) = silent.map(|(id, _)| *id) else {
            return false;
        };
        self.close(id);
        true
    }

    /// Handles one line of MCP.
    fn line(&self, id: u64, connection: &mut Connection, line: &[u8]) {
        let Some(session) = &mut connection.session else {
            return;
        };
        let mut effects = Vec::new();
        session.line(line, &self.catalogue, Instant::now(), &mut effects);
        for effect in effects {
            match effect {
                Effect::Send(line) => connection.send(Some(line)),
                Effect::Call(key, call) => {
                    let reply = Reply {
                        shared: Arc::clone(&self.shared),
                        waiting: (id, key),
                        sent: false,
                    };
                    let answer = Box::new(move |answer| reply.send(answer));
                    let call = self.host.call(call, answer);
                    self.shared.called.wake();
                    connection.calls.insert(key, call);
                }
                Effect::Cancel(key) => {
                    if let Some(call) = connection.calls.remove(&key) {
                        self.host.cancel(call);
                    }
                }
            }
        }
    }

    /// Writes to every connection what does not block.
    fn flush_all(&mut self) {
        let mut done = Vec::new();
        for (id, connection) in &mut self.connections {
            let broken = connection.flush().is_err();
            if broken || (connection.ending && connection.output.is_empty()) {
                done.push(*id);
            }
        }
        for id in done {
            self.close(id);
        }
    }

    fn close(&mut self, id: u64) {
        if let Some(mut connection) = self.connections.remove(&id) {
            connection.cancel_calls(&*self.host);
        }
    }
}

impl Connection {
    fn new(stream: UnixStream, peer: Pid) -> Connection {
        Connection {
            stream,
            peer,
            peer_start: os::start_of(peer),
            outside: false,
            early: false,
            session: None,
            calls: HashMap::new(),
            input: Vec::new(),
            searched: 0,
            skipping: false,
            output: VecDeque::new(),
            waiting: 0,
            written: 0,
            deadline: Some(Instant::now() + HELLO_WAIT),
            ending: false,
        }
    }

    fn interest(&self) -> PollFlags {
        let mut interest = PollFlags::empty();
        if !self.ending && !self.early && self.waiting < BACKLOG_BYTES {
            interest |= PollFlags::IN;
        }
        if !self.output.is_empty() {
            interest |= PollFlags::OUT;
        }
        interest
    }

    /// Queues a line.
    fn send(&mut self, line: Option<String>) {
        if let Some(line) = line {
            let mut line = line.into_bytes();
            line.push(b'\n');
            self.waiting += line.len();
            self.output.push_back(line);
        }
    }

    /// Stops reading; queued lines are still written, until the deadline.
    fn end(&mut self) {
        self.ending = true;
        self.deadline = Some(Instant::now() + HELLO_WAIT);
    }

    /// Cancels the calls of a connection that has ended.
    fn cancel_calls(&mut self, host: &dyn ToolHost) {
        for key in self.session.as_mut().map(Session::end).unwrap_or_default() {
            if let Some(call) = self.calls.remove(&key) {
                host.cancel(call);
            }
        }
    }

    /// Cancels the calls of a turn that has ended, and responds to them: codex continues.
    fn end_calls(&mut self, host: &dyn ToolHost) {
        for (key, call) in std::mem::take(&mut self.calls) {
            host.cancel(call);
            let session = self.session.as_mut();
            let line = session.and_then(|it| it.answer(key, Err("the turn has ended".to_owned())));
            self.send(line);
        }
    }

    /// Writes what does not block.
    fn flush(&mut self) -> std::io::Result<()> {
        while let Some(first) = self.output.front() {
            match self.stream.write(&first[self.written..]) {
                Ok(length) => {
                    self.written += length;
                    self.waiting -= length;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if would_block(&error) => break,
                Err(error) => return Err(error),
            }
            if self.written == first.len() {
                self.output.pop_front();
                self.written = 0;
            }
        }
        Ok(())
    }
}

fn would_block(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests;
