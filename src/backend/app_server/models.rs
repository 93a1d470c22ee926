//! Lists codex's models through `codex app-server`, the only interface of codex that has them.
//!
//! No account is needed: without one the list is the catalogue built into codex (0.135.0 to 0.169.0).

use super::client::{Client, RequestError};
use super::recipe;
use crate::backend::child::Child;
use crate::codex::find;
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::os::CancelToken;
use crate::paths::Paths;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The time limit of all requests together. With the end of the process it stays under 5 s.
const LIMIT: Duration = Duration::from_millis(4500);

/// A model that a turn can use.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Model {
    /// The name that codex takes as `--model`.
    pub(crate) id: String,
    /// The display name.
    pub(crate) name: String,
    /// Whether codex uses it where no model is configured.
    pub(crate) default: bool,
    /// Its reasoning efforts.
    pub(crate) efforts: Vec<String>,
}

/// Lists codex's models. Returns soon after `cancel`.
///
/// # Errors
/// [`Kind::CodexMissing`]; [`Kind::CodexFailed`] where codex does not return the list.
pub(crate) fn list_models(
    config: &Config,
    places: &Paths,
    cancel: &CancelToken,
) -> Result<Vec<Model>> {
    let program = find::find_codex(&config.binary, config, places)?;
    let command = recipe::command(&program, vec!["app-server".into()], config, places);
    let child = Child::start(&command, None)?;
    cancel.attach(child.pidfd());
    let mut query = ModelQuery {
        client: Client::new(child),
        deadline: Instant::now() + LIMIT,
        cancel,
    };
    match query.list() {
        Ok(models) => {
            query.client.end();
            Ok(models)
        }
        Err((method, error)) => Err(request_error(method, error, query.client)),
    }
}

/// A running server and the deadline of its requests.
struct ModelQuery<'a> {
    client: Client,
    deadline: Instant,
    cancel: &'a CancelToken,
}

impl ModelQuery<'_> {
    fn list(&mut self) -> std::result::Result<Vec<Model>, (&'static str, RequestError)> {
        self.client
            .initialize(self.left(), self.cancel)
            .map_err(|error| ("initialize", error))?;
        let mut models = Vec::new();
        let mut params = json!({});
        loop {
            let method = "model/list";
            let result = self.ask(method, &params)?;
            let page: ModelPage = serde_json::from_slice(&result).map_err(|error| {
                let what = format!("the list of models cannot be read: {error}");
                (method, RequestError::Rejected(what))
            })?;
            models.extend(page.data.into_iter().filter_map(ListedModel::model));
            match page.next_cursor {
                Some(cursor) => params["cursor"] = cursor.into(),
                None => return Ok(models),
            }
        }
    }

    fn ask(
        &mut self,
        method: &'static str,
        params: &Value,
    ) -> std::result::Result<Vec<u8>, (&'static str, RequestError)> {
        self.client
            .request(method, params, self.left(), Some(self.cancel))
            .map_err(|error| (method, error))
    }

    /// The time until the deadline.
    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

/// The error of a failed request. Ends the server.
fn request_error(method: &str, error: RequestError, client: Client) -> Error {
    let failed = |message: String| Error::new(Kind::CodexFailed, message);
    match error {
        RequestError::Rejected(why) => {
            client.end();
            failed(format!("codex rejects {method}: {why}"))
        }
        RequestError::Cancelled => {
            client.kill();
            failed("asking codex for its models was cancelled".to_owned())
        }
        RequestError::Timeout => {
            client.kill();
            let seconds = LIMIT.as_secs_f32();
            let message = format!("codex app-server did not list its models within {seconds:.1} s");
            failed(message).with_retryable(true)
        }
        RequestError::Ended => {
            let exit = client.end();
            let last_line = exit.stderr.lines().last().unwrap_or("nothing on stderr");
            failed(format!(
                "codex app-server ended before it listed its models: {last_line}"
            ))
        }
    }
}

/// A page of the list. So far codex has returned only one.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ModelPage {
    data: Vec<ListedModel>,
    next_cursor: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListedModel {
    model: String,
    #[serde(default)]
    display_name: Option<String>,
    #[serde(default)]
    hidden: bool,
    #[serde(default)]
    is_default: bool,
    #[serde(default)]
    supported_reasoning_efforts: Vec<Effort>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Effort {
    reasoning_effort: String,
}

impl ListedModel {
    /// The model, unless codex hides it.
    fn model(self) -> Option<Model> {
        let efforts = self.supported_reasoning_efforts.into_iter();
        (!self.hidden).then(|| Model {
            name: self.display_name.unwrap_or_else(|| self.model.clone()),
            id: self.model,
            default: self.is_default,
            efforts: efforts.map(|effort| effort.reasoning_effort).collect(),
        })
    }
}
