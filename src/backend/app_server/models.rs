//! The models that codex has, asked of its `app-server`: the only one of its interfaces that lists them.
//!
//! It needs no account: without one the list is the catalogue that came with codex (0.135.0 to 0.169.0).

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

/// How long codex has for the whole of it. With its end that is under 5 s.
const LIMIT: Duration = Duration::from_millis(4500);

/// A model that can be asked for.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Model {
    /// What a turn is given as its model.
    pub(crate) id: String,
    /// What people call it.
    pub(crate) name: String,
    /// Is it the one that codex takes where none is named?
    pub(crate) default: bool,
    /// The reasoning efforts that it has.
    pub(crate) efforts: Vec<String>,
}

/// Asks codex for its models. Ends soon after `cancel` is cancelled.
///
/// # Errors
/// [`Kind::CodexMissing`], and [`Kind::CodexFailed`] where codex cannot say.
pub(crate) fn list_models(
    config: &Config,
    places: &Paths,
    cancel: &CancelToken,
) -> Result<Vec<Model>> {
    let program = find::find_codex(&config.binary, config, places)?;
    let command = recipe::command(&program, vec!["app-server".into()], config, places);
    let child = Child::start(&command, None)?;
    cancel.attach(child.pidfd());
    let mut asked = Asked {
        client: Client::new(child),
        deadline: Instant::now() + LIMIT,
        cancel,
    };
    match asked.list() {
        Ok(models) => {
            asked.client.end();
            Ok(models)
        }
        Err((method, error)) => Err(why(method, error, asked.client)),
    }
}

/// A server that is asked.
struct Asked<'a> {
    client: Client,
    deadline: Instant,
    cancel: &'a CancelToken,
}

impl Asked<'_> {
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

    /// The time that is left.
    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

/// The error of a request that failed. Ends the server.
fn why(method: &str, error: RequestError, client: Client) -> Error {
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
        RequestError::NoAnswer => {
            client.kill();
            let seconds = LIMIT.as_secs_f32();
            let message = format!("codex app-server did not tell its models within {seconds:.1} s");
            failed(message).with_retryable(true)
        }
        RequestError::Ended => {
            let exit = client.end();
            let said = exit.stderr.lines().last().unwrap_or("nothing on stderr");
            failed(format!(
                "codex app-server ended before it told its models: {said}"
            ))
        }
    }
}

/// A part of the list, of which there was one only so far.
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
    /// The model, where people are meant to see it.
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
