//! A `codex app-server` with one thread loaded: starting it, deciding whether it can run another turn, ending it.
//!
//! A server is started for a workspace and a thread. It is replaced where what it has read ([`Inputs`]) or loaded
//! differs from what the turn needs, so that no state from an earlier turn replaces what `codex exec` would read anew.

use super::client::{Client, RequestError};
use super::inputs::{FileState, Inputs};
use super::recipe::{Recipe, ServerSettings};
use super::start::Starter;
use crate::codex::failure::{self, Exit, Refusal};
use crate::error::{Error, Kind};
use crate::json::{Members, elements};
use crate::mcp::Bridge;
use crate::os::{self, CancelToken};
use serde_json::json;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long codex may take to respond.
pub(super) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take to load a thread: it waits for every MCP server that is required.
const LOAD_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a server may be idle before it is replaced: if its connection to the provider has died meanwhile, the next
/// turn would wait for codex's stream timeout, 300 s (0.135.0 to 0.169.0).
const MAX_IDLE: Duration = Duration::from_secs(180);
/// The largest resident size, in bytes, with which a server is kept.
const MAX_RESIDENT_BYTES: u64 = 512 << 20;
/// How long to retry while another codex still has the thread open that it has just finished with.
const WRITER_TIMEOUT: Duration = Duration::from_secs(1);
/// stderr of a server that cannot open codex's databases while others start at the same time (0.135.0 to 0.155.0).
const DATABASE_INIT_FAILED: &str = "failed to initialize sqlite state runtime";

/// A running server.
#[derive(Debug)]
pub(in crate::backend) struct Server {
    pub(super) client: Client,
    /// How to start it again.
    recipe: Recipe,
    inputs: Inputs,
    /// The id of the loaded thread.
    pub(super) thread: String,
    /// The state of the thread's rollout after the last turn.
    rollout: Option<FileState>,
    idle_since: Instant,
    suspended: Duration,
}

/// Why no server could be started.
pub(super) enum StartError {
    /// No process can be started; `codex exec` would fail, too.
    NotStarted(Error),
    /// codex cannot load the thread.
    Failed(Error),
    /// codex does not support `app-server` in the needed form; the reason.
    Unusable(String),
    /// It fails now, but may work the next time; the reason.
    Unavailable(String),
    /// codex refuses to resume the thread.
    Refused(Refusal),
    Cancelled,
}

impl Server {
    /// Starts a server and loads the thread, or starts one. `replaced` is closed while the new server starts.
    pub(super) fn start(
        starter: &dyn Starter,
        recipe: Recipe,
        replaced: Option<Server>,
        cancel: &CancelToken,
    ) -> Result<Server, StartError> {
        let inputs = Inputs::now(&recipe);
        let connected = connect(starter, &recipe, cancel);
        // The old server exits in parallel with the start of the new one.
        if let Some(replaced) = replaced {
            replaced.close();
        }
        let mut client = connected?;
        let deadline = Instant::now() + WRITER_TIMEOUT;
        let thread = loop {
            match load(&mut client, &recipe, cancel) {
                Err(StartError::Failed(error))
                    if error.kind() == Kind::Busy
                        && Instant::now() < deadline
                        && !cancel.is_cancelled() =>
                {
                    os::wait_for_cancel(cancel, Duration::from_millis(50));
                }
                Ok(thread) => break thread,
                Err(error) => {
                    client.close();
                    return Err(error);
                }
            }
        };
        Ok(Server {
            client,
            inputs,
            rollout: FileState::of_rollout(&recipe.home, &thread),
            recipe,
            thread,
            idle_since: Instant::now(),
            suspended: os::suspended(),
        })
    }

    /// Ends the server; returns how to start another one with the same thread.
    pub(super) fn into_recipe(self) -> Recipe {
        let recipe = Recipe {
            thread: Some(self.thread.clone()),
            ..self.recipe.clone()
        };
        self.close();
        recipe
    }

    /// Why this server cannot run the turn of `recipe`; `None` where it can.
    pub(super) fn why_stale(&mut self, recipe: &Recipe) -> Option<&'static str> {
        self.client.discard_pending();
        let is_connected = self.tools().is_none_or(|it| it.is_connected());
        if self.client.is_broken() {
            Some("it has ended")
        } else if recipe.thread.as_deref() != Some(self.thread.as_str()) {
            Some("the turn is in another thread")
        } else if self.inputs != Inputs::now(recipe) {
            Some("its executable, settings or files have changed")
        } else if !is_connected {
            Some("the MCP server for the daemon's tools has ended")
        } else if self.rollout != FileState::of_rollout(&recipe.home, &self.thread) {
            Some("the thread's rollout has changed")
        } else if self.idle_since.elapsed() > MAX_IDLE || self.suspended != os::suspended() {
            Some("it was idle for too long")
        } else {
            None
        }
    }

    /// Records the state after a turn. `Err` with the reason if the server should be replaced.
    pub(super) fn end_turn(&mut self) -> Result<(), &'static str> {
        self.rollout = FileState::of_rollout(&self.recipe.home, &self.thread);
        self.idle_since = Instant::now();
        self.suspended = os::suspended();
        if self.client.is_broken() {
            Err("it has ended")
        } else if os::largest_child_resident(self.client.guard_pid()) > MAX_RESIDENT_BYTES {
            Err("it uses too much memory")
        } else {
            Ok(())
        }
    }

    /// The parameters with which its thread was loaded.
    pub(super) fn settings(&self) -> &ServerSettings {
        &self.recipe.settings
    }

    /// The bridge to the daemon's tools.
    pub(super) fn tools(&self) -> Option<&Arc<Bridge>> {
        self.recipe.tools.as_ref()
    }

    /// Ends the server.
    pub(in crate::backend) fn close(self) -> Exit {
        self.client.close()
    }
}

/// Starts a server and performs its handshake.
fn connect(
    starter: &dyn Starter,
    recipe: &Recipe,
    cancel: &CancelToken,
) -> Result<Client, StartError> {
    /// How often a server is started whose databases were locked.
    const TRIES: u32 = 4;
    for attempt in 1.. {
        // In a new codex home the first server creates the databases; others that start meanwhile fail.
        let first = starter.first_starts().wait(&recipe.command.program, cancel);
        let child = starter
            .spawn(&recipe.command, recipe.lock.as_deref())
            .map_err(StartError::NotStarted)?;
        let mut client = Client::new(child);
        if let Some(tools) = &recipe.tools {
            tools.admit_below(client.guard_pid());
        }
        match client.initialize(RESPONSE_TIMEOUT, cancel) {
            Ok(()) => {
                first.succeeded();
                return Ok(client);
            }
            Err(RequestError::Cancelled) => {
                client.kill();
                return Err(StartError::Cancelled);
            }
            Err(RequestError::Rejected(why)) => {
                client.close();
                return Err(StartError::Unusable(why));
            }
            Err(RequestError::Timeout) => {
                client.kill();
                let seconds = RESPONSE_TIMEOUT.as_secs();
                return Err(StartError::Unavailable(format!(
                    "no response within {seconds} s"
                )));
            }
            Err(RequestError::Ended) => {
                let exit = client.close();
                if let Some(errno) = exit.spawn_error {
                    let program = &recipe.command.program;
                    let error = crate::backend::not_started(program, &recipe.config_file, errno);
                    return Err(StartError::NotStarted(error));
                }
                if !exit.stderr.contains(DATABASE_INIT_FAILED) {
                    let last_line = exit.stderr.lines().last().unwrap_or_default();
                    let why = format!("{}: {last_line}", exit.describe());
                    // Status 2: this codex has no such subcommand or argument. Other failures may pass.
                    return Err(match exit.status.code() {
                        Some(2) => StartError::Unusable(why),
                        _ => StartError::Unavailable(why),
                    });
                }
                if attempt == TRIES {
                    return Err(StartError::Unavailable(exit.stderr));
                }
                // Not at the same moment as the other processes that failed.
                let jitter = u64::from(std::process::id() % 7 + attempt) * 20;
                os::wait_for_cancel(cancel, Duration::from_millis(100 + jitter));
            }
        }
    }
    unreachable!("the last attempt returns")
}

/// Loads the recipe's thread or starts one; returns its id.
fn load(client: &mut Client, recipe: &Recipe, cancel: &CancelToken) -> Result<String, StartError> {
    let settings = &recipe.settings;
    let mut params = json!({"cwd": recipe.workspace, "approvalPolicy": "never"});
    if let Some(model) = &settings.model {
        params["model"] = model.as_str().into();
    }
    if let Some(system) = &settings.system {
        params["developerInstructions"] = system.as_str().into();
    }
    let method = match &recipe.thread {
        Some(thread) => {
            // codex would keep the model and the effort of the thread's last turn; `codex exec` does not.
            if params.get("model").is_none()
                && let Some(model) = default_model(client, cancel)
            {
                params["model"] = model.into();
            }
            params["threadId"] = thread.as_str().into();
            params["excludeTurns"] = true.into();
            params["sandbox"] = settings.sandbox_mode().into();
            "thread/resume"
        }
        None => {
            // Without the sandbox: codex would write into its config that the workspace is trusted, and load the
            // workspace's own config. It is sent with the turn.
            params["threadSource"] = "user".into();
            "thread/start"
        }
    };
    match client.request(method, &params, LOAD_TIMEOUT, Some(cancel)) {
        Ok(result) => {
            let result = Members::of(Some(&result), &["thread"]);
            let thread = Members::of(result.raw("thread"), &["id"]);
            let id = thread.text("id").unwrap_or_default();
            Ok(id.to_ascii_lowercase())
        }
        Err(RequestError::Cancelled) => Err(StartError::Cancelled),
        Err(RequestError::Rejected(message)) => {
            let refusal = failure::refusal_of_resume(&message);
            Err(match refusal.filter(|_| recipe.thread.is_some()) {
                Some(refusal) => StartError::Refused(refusal),
                None => StartError::Failed(failure::from_response(method, &message)),
            })
        }
        Err(RequestError::Timeout) => Err(StartError::Failed(
            Error::new(
                Kind::CodexFailed,
                format!(
                    "codex did not respond to {method} within {} s",
                    LOAD_TIMEOUT.as_secs()
                ),
            )
            .with_retryable(true),
        )),
        Err(RequestError::Ended) => Err(StartError::Failed(
            Error::new(
                Kind::CodexFailed,
                format!("codex ended before it responded to {method}"),
            )
            .with_retryable(true),
        )),
    }
}

/// The model that codex uses where none is given: the config's, else codex's default.
fn default_model(client: &mut Client, cancel: &CancelToken) -> Option<String> {
    let mut request = |method| {
        client
            .request(method, &json!({}), RESPONSE_TIMEOUT, Some(cancel))
            .ok()
    };
    let config = request("config/read")?;
    let config = Members::of(Some(&config), &["config"]);
    let configured = Members::of(config.raw("config"), &["model"]).text("model");
    if let Some(model) = configured {
        return Some(model.into_owned());
    }
    let models = request("model/list")?;
    let models = Members::of(Some(&models), &["data"]);
    elements(models.raw("data")).into_iter().find_map(|model| {
        let model = Members::of(Some(model), &["model", "isDefault"]);
        (model.raw("isDefault") == Some(b"true"))
            .then(|| model.text("model").map(Cow::into_owned))
            .flatten()
    })
}
