//! The keys of the config file: the documentation, default and deserialization of each.

use super::values::{
    Bool, Count, MapOf, NoNulText, NonEmptyText, OneOf, Strings, TimeLimit, WholeSeconds,
};
use serde::de::{self, MapAccess, Visitor};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// A key of the config file and its documentation.
#[derive(Debug)]
pub(crate) struct ConfigKey {
    pub(crate) name: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) default: &'static str,
    /// One or more sentences; backquotes mark code.
    pub(crate) meaning: &'static str,
}

/// All keys of the config file.
pub(crate) const KEYS: &[ConfigKey] = &[
    ConfigKey {
        name: "binary",
        kind: "string",
        default: "\"codex\"",
        meaning: "The codex executable. Use an absolute path under systemd, whose `PATH` contains no nvm or local directories. A leading `~/` is expanded.",
    },
    ConfigKey {
        name: "backend",
        kind: "string",
        default: "\"exec\"",
        meaning: "\"exec\" runs a `codex exec` for each turn. \"app-server\" runs a `codex app-server` for each workspace and keeps it between turns: a turn takes less than a third of the time, and its text is streamed as the model writes it.",
    },
    ConfigKey {
        name: "warm_secs",
        kind: "whole number",
        default: "600",
        meaning: "How many seconds an idle `codex app-server` is kept; with 0 it ends with the turn.",
    },
    ConfigKey {
        name: "warm_max",
        kind: "whole number",
        default: "16",
        meaning: "The maximum number of idle servers; the one that has been idle longest is ended first.",
    },
    ConfigKey {
        name: "extra_args",
        kind: "list of strings",
        default: "[]",
        meaning: "Arguments for codex in every turn. They are placed before `resume` when a thread is resumed, so that flags that only `codex exec` accepts (`-p`, `-C`, `--add-dir`, `--color`) work in every turn.",
    },
    ConfigKey {
        name: "sandbox",
        kind: "string",
        default: "\"danger-full-access\"",
        meaning: "With \"danger-full-access\", the agent may do whatever this user may do. \"workspace-write\" is codex's own sandbox, in which commands can write only in the workspace and have no network access. With \"read-only\", commands cannot write at all. There are no approval prompts, and the daemon's tools work in each mode. `-s` in `extra_args` takes precedence.",
    },
    ConfigKey {
        name: "supported_models",
        kind: "list of strings",
        default: "[\"codex\"]",
        meaning: "The advertised models.",
    },
    ConfigKey {
        name: "model_args",
        kind: "map of strings or objects",
        default: "{}",
        meaning: "Maps an advertised model id to the value of codex's `--model`. For the values \"\" and \"codex\", no `--model` is passed; an id that is not in the map is passed unchanged. A value may be an object with `model`, `reasoning_effort` and `service_tier`, all of them optional: `{\"model\":\"gpt-5.6\",\"reasoning_effort\":\"high\"}`. A reasoning effort in the daemon's request takes precedence.",
    },
    ConfigKey {
        name: "mcp_registration",
        kind: "string",
        default: "\"turn\"",
        meaning: "How the agent's tools are registered with codex. \"turn\" registers them for one turn only and changes no file of codex. \"persistent\" runs `codex mcp add` once per agent. \"off\" does not offer the daemon's tools.",
    },
    ConfigKey {
        name: "prompt_via",
        kind: "string",
        default: "\"stdin\"",
        meaning: "How codex gets the prompt. \"stdin\": it is never visible in `ps`, and only codex limits its size. \"arg\": it is the last argument; a prompt that cannot be an argument still goes through stdin.",
    },
    ConfigKey {
        name: "lost_thread",
        kind: "string",
        default: "\"replay\"",
        meaning: "What to do if codex no longer knows the stored thread. \"replay\" starts a new thread whose first prompt contains the conversation so far, \"fresh\" starts one without it, and \"error\" fails the turn.",
    },
    ConfigKey {
        name: "replay_new",
        kind: "boolean",
        default: "true",
        meaning: "Include the conversation so far in the first prompt of a new thread. This applies if the daemon already has a conversation, because another provider conducted it or the session file is gone.",
    },
    ConfigKey {
        name: "busy_wait_secs",
        kind: "whole number",
        default: "10",
        meaning: "How many seconds a turn waits for a workspace that another process uses; with 0 it does not wait.",
    },
    ConfigKey {
        name: "tool_timeout_secs",
        kind: "whole number",
        default: "3600",
        meaning: "How many seconds codex waits for one of the daemon's tools, at least 1. codex's own limit is 300 seconds, in old versions 120.",
    },
    ConfigKey {
        name: "reasoning_events",
        kind: "boolean",
        default: "false",
        meaning: "Emit `thinking_delta`.",
    },
    ConfigKey {
        name: "tool_events",
        kind: "boolean",
        default: "true",
        meaning: "Emit `tool_use` and `tool_result`.",
    },
    ConfigKey {
        name: "idle_timeout_secs",
        kind: "whole number",
        default: "3600",
        meaning: "End a turn if codex has neither printed nor recorded anything for this number of seconds; 0 means no limit.",
    },
    ConfigKey {
        name: "turn_timeout_secs",
        kind: "whole number",
        default: "0",
        meaning: "End a turn after this number of seconds; 0 means no limit.",
    },
    ConfigKey {
        name: "codex_home",
        kind: "string",
        default: "unset",
        meaning: "The value of `CODEX_HOME` for codex, and the directory in which rollouts are searched for. If unset, the value in the environment is used, or else `~/.codex`. A leading `~/` is expanded.",
    },
    ConfigKey {
        name: "env",
        kind: "map of strings",
        default: "{}",
        meaning: "Additional environment variables for codex.",
    },
];

/// How codex is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BackendChoice {
    /// A `codex exec` for each turn.
    Exec,
    /// A `codex app-server` for each workspace, kept between turns.
    AppServer,
}

impl BackendChoice {
    /// The choices by their names in the config and on the command line.
    pub(crate) const NAMES: &[(&'static str, BackendChoice)] = &[
        ("exec", BackendChoice::Exec),
        ("app-server", BackendChoice::AppServer),
    ];

    pub(crate) fn named(name: &str) -> Option<BackendChoice> {
        BackendChoice::NAMES
            .iter()
            .find_map(|(known, choice)| (*known == name).then_some(*choice))
    }
}

/// What the agent's commands may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sandbox {
    DangerFullAccess,
    WorkspaceWrite,
    ReadOnly,
}

/// The codex settings behind an advertised model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ModelArgs {
    /// The value of `--model`; `None` is the advertised id.
    pub(crate) model: Option<String>,
    pub(crate) reasoning_effort: Option<String>,
    pub(crate) service_tier: Option<String>,
}

/// How the daemon's tools are registered with codex.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum McpRegistration {
    Turn,
    Persistent,
    Off,
}

/// How the prompt is passed to codex.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PromptVia {
    Stdin,
    Arg,
}

/// What to do when codex no longer knows the stored thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LostThread {
    Replay,
    Fresh,
    Error,
}

/// The values of the config file, with defaults for missing keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) binary: String,
    pub(crate) backend: BackendChoice,
    /// How long an idle app-server is kept.
    pub(crate) warm: Duration,
    /// The maximum number of idle app-servers.
    pub(crate) warm_max: usize,
    pub(crate) extra_args: Vec<String>,
    pub(crate) supported_models: Vec<String>,
    pub(crate) sandbox: Sandbox,
    pub(crate) model_args: BTreeMap<String, ModelArgs>,
    pub(crate) mcp_registration: McpRegistration,
    pub(crate) prompt_via: PromptVia,
    pub(crate) lost_thread: LostThread,
    pub(crate) replay_new: bool,
    /// How long a turn waits for a workspace that another process uses.
    pub(crate) busy_wait: Duration,
    /// How long codex waits for one of the daemon's tools.
    pub(crate) tool_timeout: Duration,
    pub(crate) reasoning_events: bool,
    pub(crate) tool_events: bool,
    /// `None` means no limit.
    pub(crate) idle_timeout: Option<Duration>,
    /// `None` means no limit.
    pub(crate) turn_timeout: Option<Duration>,
    pub(crate) codex_home: Option<String>,
    pub(crate) env: BTreeMap<String, String>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            binary: "codex".to_owned(),
            backend: BackendChoice::Exec,
            warm: Duration::from_secs(600),
            warm_max: 16,
            extra_args: Vec::new(),
            supported_models: vec!["codex".to_owned()],
            sandbox: Sandbox::DangerFullAccess,
            model_args: BTreeMap::new(),
            mcp_registration: McpRegistration::Turn,
            prompt_via: PromptVia::Stdin,
            lost_thread: LostThread::Replay,
            replay_new: true,
            busy_wait: Duration::from_secs(10),
            tool_timeout: Duration::from_secs(3600),
            reasoning_events: false,
            tool_events: true,
            idle_timeout: Some(Duration::from_secs(3600)),
            turn_timeout: None,
            codex_home: None,
            env: BTreeMap::new(),
        }
    }
}

/// Deserializes the file's object.
pub(super) struct ConfigVisitor<'a> {
    /// The key whose value is being read, for the error message.
    pub(super) key: &'a Cell<Option<String>>,
    /// Receives the unknown keys.
    pub(super) unknown: &'a mut Vec<String>,
}

impl<'de> Visitor<'de> for ConfigVisitor<'_> {
    type Value = Config;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of config keys")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Config, A::Error> {
        let mut config = Config::default();
        let mut seen: Vec<String> = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if seen.contains(&name) {
                return Err(de::Error::custom(format!("duplicate key '{name}'")));
            }
            self.key.set(Some(name.clone()));
            match name.as_str() {
                "binary" => config.binary = map.next_value::<NonEmptyText>()?.0,
                "backend" => config.backend = map.next_value_seed(OneOf(BackendChoice::NAMES))?,
                "warm_secs" => config.warm = map.next_value::<WholeSeconds>()?.0,
                "warm_max" => config.warm_max = map.next_value::<Count>()?.0,
                "extra_args" => config.extra_args = map.next_value::<Strings>()?.0,
                "supported_models" => config.supported_models = map.next_value::<Strings>()?.0,
                "sandbox" => {
                    config.sandbox = map.next_value_seed(OneOf(&[
                        ("danger-full-access", Sandbox::DangerFullAccess),
                        ("workspace-write", Sandbox::WorkspaceWrite),
                        ("read-only", Sandbox::ReadOnly),
                    ]))?;
                }
                "model_args" => {
                    config.model_args = map.next_value::<MapOf<ModelArgs>>()?.0;
                }
                "mcp_registration" => {
                    config.mcp_registration = map.next_value_seed(OneOf(&[
                        ("turn", McpRegistration::Turn),
                        ("persistent", McpRegistration::Persistent),
                        ("off", McpRegistration::Off),
                    ]))?;
                }
                "prompt_via" => {
                    config.prompt_via = map.next_value_seed(OneOf(&[
                        ("stdin", PromptVia::Stdin),
                        ("arg", PromptVia::Arg),
                    ]))?;
                }
                "lost_thread" => {
                    config.lost_thread = map.next_value_seed(OneOf(&[
                        ("replay", LostThread::Replay),
                        ("fresh", LostThread::Fresh),
                        ("error", LostThread::Error),
                    ]))?;
                }
                "replay_new" => config.replay_new = map.next_value::<Bool>()?.0,
                "reasoning_events" => config.reasoning_events = map.next_value::<Bool>()?.0,
                "tool_events" => config.tool_events = map.next_value::<Bool>()?.0,
                "busy_wait_secs" => config.busy_wait = map.next_value::<WholeSeconds>()?.0,
                "tool_timeout_secs" => {
                    config.tool_timeout = map
                        .next_value::<TimeLimit>()?
                        .0
                        .ok_or_else(|| de::Error::custom("0 would leave no time for any tool"))?;
                }
                "idle_timeout_secs" => config.idle_timeout = map.next_value::<TimeLimit>()?.0,
                "turn_timeout_secs" => config.turn_timeout = map.next_value::<TimeLimit>()?.0,
                "codex_home" => config.codex_home = Some(map.next_value::<NonEmptyText>()?.0),
                "env" => {
                    let env = map.next_value::<MapOf<NoNulText>>()?.0;
                    if let Some(name) = env
                        .keys()
                        .find(|name| name.is_empty() || name.contains('='))
                    {
                        return Err(de::Error::custom(format!(
                            "'{name}' cannot be the name of an environment variable"
                        )));
                    }
                    config.env = env.into_iter().map(|(name, text)| (name, text.0)).collect();
                }
                _ => {
                    map.next_value::<de::IgnoredAny>()?;
                    self.unknown.push(name.clone());
                }
            }
            self.key.set(None);
            seen.push(name);
        }
        Ok(config)
    }
}
