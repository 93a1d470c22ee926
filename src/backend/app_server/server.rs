//! One `codex app-server` with one thread loaded: its start, whether it can run another turn, its end.
//!
//! A server is started for a workspace and a thread, and replaced where either what it has read ([`Inputs`]) or what it has
//! loaded is not what the turn asks for. So nothing that a server keeps from one turn to the next is ever anything that
//! `codex exec` would read anew.

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

/// How long codex has for an answer.
pub(super) const ANSWER: Duration = Duration::from_secs(10);
/// How long it has to load a thread: it waits for every MCP server without which it does not go on.
const LOADING: Duration = Duration::from_secs(120);
/// How long a server may be idle before another takes its place: a connection to the provider that died meanwhile would
/// hold the next turn up for as long as a stream may be silent, 300 s (0.135.0 to 0.169.0).
const IDLE: Duration = Duration::from_secs(180);
/// The largest a server may be to run another turn, in bytes.
const LARGEST: u64 = 512 << 20;
/// How long another codex may take to let go of a thread that it has just ended with.
const WRITER: Duration = Duration::from_secs(1);
/// What a server says that cannot open codex's databases beside others which start just now (0.135.0 to 0.155.0).
const DATABASE: &str = "failed to initialize sqlite state runtime";

/// A running server.
#[derive(Debug)]
pub(in crate::backend) struct Server {
    pub(super) client: Client,
    /// How it was started.
    recipe: Recipe,
    inputs: Inputs,
    /// The thread that is loaded.
    pub(super) thread: String,
    /// The thread's rollout when the last turn had ended.
    rollout: Option<FileState>,
    idle_since: Instant,
    suspended: Duration,
}

/// Why there is no server.
pub(super) enum StartError {
    /// No process can be started; no other way of running codex would help.
    NotStarted(Error),
    /// codex serves, and cannot load the thread.
    Failed(Error),
    /// codex does not serve like this; why.
    Unusable(String),
    /// It does not serve now, and may the next time.
    NotNow(String),
    /// The thread is refused.
    Refused(Refusal),
    Cancelled,
}

impl Server {
    /// Starts a server and has it load the thread, or begin one, once `replaced` has ended.
    pub(super) fn start(
        starter: &dyn Starter,
        recipe: Recipe,
        replaced: Option<Server>,
        cancel: &CancelToken,
    ) -> Result<Server, StartError> {
        let inputs = Inputs::now(&recipe);
        let connected = connect(starter, &recipe, cancel);
        // Only now: it ends while the new one starts.
        if let Some(replaced) = replaced {
            replaced.close();
        }
        let mut client = connected?;
        let deadline = Instant::now() + WRITER;
        let thread = loop {
            match load(&mut client, &recipe, cancel) {
                Err(StartError::Failed(error))
                    if error.kind() == Kind::Busy
                        && Instant::now() < deadline
                        && !cancel.is_cancelled() =>
                {
                    os::wait_for(cancel, Duration::from_millis(50));
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

    /// Ends the server, and gives what another one is started with that goes on with its thread.
    pub(super) fn into_recipe(self) -> Recipe {
        let recipe = Recipe {
            thread: Some(self.thread.clone()),
            ..self.recipe.clone()
        };
        self.close();
        recipe
    }

    /// Why this server cannot run a turn for which one would be started so; `None` where it can.
    pub(super) fn why_stale(&mut self, recipe: &Recipe) -> Option<&'static str> {
        self.client.look();
        let is_connected = self.tools().is_none_or(|it| it.is_connected());
        if self.client.is_broken() {
            Some("it has ended")
        } else if recipe.thread.as_deref() != Some(self.thread.as_str()) {
            Some("the turn is in another thread")
        } else if self.inputs != Inputs::now(recipe) {
            Some("what it has read has changed")
        } else if !is_connected {
            Some("the server that lends the daemon's tools has ended")
        } else if self.rollout != FileState::of_rollout(&recipe.home, &self.thread) {
            Some("the thread's rollout has changed")
        } else if self.idle_since.elapsed() > IDLE || self.suspended != os::suspended() {
            Some("it was idle for long")
        } else {
            None
        }
    }

    /// The turn is over, and the server waits for the next one; unless it is better replaced, which `Err` says why.
    pub(super) fn rest(&mut self) -> Result<(), &'static str> {
        self.rollout = FileState::of_rollout(&self.recipe.home, &self.thread);
        self.idle_since = Instant::now();
        self.suspended = os::suspended();
        if self.client.is_broken() {
            Err("it has ended")
        } else if os::resident_of_children(self.client.guard_pid()) > LARGEST {
            Err("it has become large")
        } else {
            Ok(())
        }
    }

    /// What its thread was loaded with.
    pub(super) fn settings(&self) -> &ServerSettings {
        &self.recipe.settings
    }

    /// What lends it the daemon's tools.
    pub(super) fn tools(&self) -> Option<&Arc<Bridge>> {
        self.recipe.tools.as_ref()
    }

    /// Ends the server.
    pub(in crate::backend) fn close(self) -> Exit {
        self.client.close()
    }
}

/// Starts a server and greets it.
fn connect(
    starter: &dyn Starter,
    recipe: &Recipe,
    cancel: &CancelToken,
) -> Result<Client, StartError> {
    /// How often one is started anew whose databases were locked.
    const TRIES: u32 = 4;
    for attempt in 1.. {
        // In a new codex home the databases are made by the first; others that start meanwhile fail.
        let first = starter.first_starts().wait(&recipe.command.program, cancel);
        let child = starter
            .spawn(&recipe.command, recipe.lock.as_deref())
            .map_err(StartError::NotStarted)?;
        let mut client = Client::new(child);
        if let Some(tools) = &recipe.tools {
            tools.admit_below(client.guard_pid());
        }
        match client.initialize(ANSWER, cancel) {
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
            Err(RequestError::NoAnswer) => {
                client.kill();
                let seconds = ANSWER.as_secs();
                return Err(StartError::NotNow(format!("no answer within {seconds} s")));
            }
            Err(RequestError::Ended) => {
                let exit = client.close();
                if let Some(errno) = exit.spawn_error {
                    let program = &recipe.command.program;
                    let error = crate::backend::not_started(program, &recipe.config_file, errno);
                    return Err(StartError::NotStarted(error));
                }
                if !exit.stderr.contains(DATABASE) {
                    let said = exit.stderr.lines().last().unwrap_or_default();
                    let why = format!("{}: {said}", exit.describe());
                    // It has no such subcommand or argument; anything else may pass.
                    return Err(match exit.status.code() {
                        Some(2) => StartError::Unusable(why),
                        _ => StartError::NotNow(why),
                    });
                }
                if attempt == TRIES {
                    return Err(StartError::NotNow(exit.stderr));
                }
                // Not all of them at the same moment again.
                let jitter = u64::from(std::process::id() % 7 + attempt) * 20;
                os::wait_for(cancel, Duration::from_millis(100 + jitter));
            }
        }
    }
    unreachable!("the last attempt returns")
}

/// Has the server load the thread, or begin one; gives its id.
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
            // codex would go on with the model and the effort of the thread's last turn, which `codex exec` does not.
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
            // Not the sandbox: with it codex writes into its config that the workspace is trusted, and loads the
            // workspace's own config then. It is given with the turn.
            params["threadSource"] = "user".into();
            "thread/start"
        }
    };
    match client.request(method, &params, LOADING, Some(cancel)) {
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
                None => StartError::Failed(failure::from_answer(method, &message)),
            })
        }
        Err(RequestError::NoAnswer) => Err(StartError::Failed(
            Error::new(
                Kind::CodexFailed,
                format!(
                    "codex did not answer {method} within {} s",
                    LOADING.as_secs()
                ),
            )
            .with_retryable(true),
        )),
        Err(RequestError::Ended) => Err(StartError::Failed(
            Error::new(
                Kind::CodexFailed,
                format!("codex ended before it had answered {method}"),
            )
            .with_retryable(true),
        )),
    }
}

/// The model that codex takes where none is named: the config's, else its own.
fn default_model(client: &mut Client, cancel: &CancelToken) -> Option<String> {
    let mut ask = |method| {
        client
            .request(method, &json!({}), ANSWER, Some(cancel))
            .ok()
    };
    let config = ask("config/read")?;
    let config = Members::of(Some(&config), &["config"]);
    let named = Members::of(config.raw("config"), &["model"]).text("model");
    if let Some(model) = named {
        return Some(model.into_owned());
    }
    let models = ask("model/list")?;
    let models = Members::of(Some(&models), &["data"]);
    elements(models.raw("data")).into_iter().find_map(|model| {
        let model = Members::of(Some(model), &["model", "isDefault"]);
        (model.raw("isDefault") == Some(b"true"))
            .then(|| model.text("model").map(Cow::into_owned))
            .flatten()
    })
}
