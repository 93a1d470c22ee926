//! The config file and the few environment variables that say where things are.
//!
//! One JSON file of optional keys, read with its positions, so that an error can say where it is. Nothing here
//! guesses: a wrong type, a duplicate key or an unreadable file is an error, and only an unknown key (a newer
//! version's, or a misspelling) is a warning. Nothing is written.

use crate::error::{Error, Kind, Result, reason};
use crate::os;
use serde::de::{self, Deserialize, Deserializer, IntoDeserializer, MapAccess, Visitor};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, Read};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The largest config file that is read; a real one has a few hundred bytes.
const LARGEST: u64 = 1 << 20;

/// A key of the config file, for the pages that list them.
#[derive(Debug)]
pub(crate) struct ConfigKey {
    pub(crate) name: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) default: &'static str,
    /// Words in backquotes are code.
    pub(crate) meaning: &'static str,
}

/// Every key that the config file can have.
pub(crate) const KEYS: &[ConfigKey] = &[
    ConfigKey {
        name: "binary",
        kind: "string",
        default: "\"codex\"",
        meaning: "The codex executable. Make it absolute under systemd, whose `PATH` has no nvm or local directories. A leading `~/` is expanded.",
    },
    ConfigKey {
        name: "backend",
        kind: "string",
        default: "\"exec\"",
        meaning: "`\"exec\"`: a `codex exec` for each turn. `\"app-server\"`: a `codex app-server` for each workspace, kept between turns, which tells the text as the model writes it.",
    },
    ConfigKey {
        name: "warm_secs",
        kind: "whole number",
        default: "600",
        meaning: "With `app-server`: how many seconds one that is idle is kept; 0 ends it with the turn.",
    },
    ConfigKey {
        name: "warm_max",
        kind: "whole number",
        default: "16",
        meaning: "With `app-server`: how many that are idle are kept at most; the one that was idle longest goes first.",
    },
    ConfigKey {
        name: "extra_args",
        kind: "list of strings",
        default: "[]",
        meaning: "Passed to codex on every turn, before `resume` where a thread goes on, so that what only `codex exec` takes (`-p`, `-C`, `--add-dir`, `--color`) works in every turn.",
    },
    ConfigKey {
        name: "sandbox",
        kind: "string",
        default: "\"danger-full-access\"",
        meaning: "`\"danger-full-access\"`: the agent may do whatever this user may. `\"workspace-write\"`: codex's own sandbox, in which commands write in the workspace alone and have no network. `\"read-only\"`: they write nothing. Nobody is asked anything, and the daemon's tools work in each of them. `-s` in `extra_args` wins.",
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
        meaning: "Advertised id to codex's `--model` value. `\"\"` and `\"codex\"` pass no `--model`; an id that is not in the map is passed as it is. A value may be an object with `model`, `reasoning_effort` and `service_tier`, each of which may be missing: `{\"model\":\"gpt-5.6\",\"reasoning_effort\":\"high\"}`. What the daemon's request says of the effort wins.",
    },
    ConfigKey {
        name: "mcp_registration",
        kind: "string",
        default: "\"turn\"",
        meaning: "`\"turn\"`: the agent's tools are given to codex with that turn alone and no file of codex is changed. `\"persistent\"`: `codex mcp add` once per agent. `\"off\"`: host tools are not offered.",
    },
    ConfigKey {
        name: "prompt_via",
        kind: "string",
        default: "\"stdin\"",
        meaning: "`\"stdin\"`: never seen in `ps`, no size limit but codex's own. `\"arg\"`: the last argument; what cannot be an argument goes through stdin all the same.",
    },
    ConfigKey {
        name: "lost_thread",
        kind: "string",
        default: "\"replay\"",
        meaning: "When codex no longer knows the stored thread: `\"replay\"` starts a new one with the conversation so far in its prompt, `\"fresh\"` one without, `\"error\"` fails the turn.",
    },
    ConfigKey {
        name: "replay_new",
        kind: "boolean",
        default: "true",
        meaning: "When a thread begins although the daemon has a conversation already (another provider had it, the session file is gone), put the conversation so far into its prompt.",
    },
    ConfigKey {
        name: "busy_wait_secs",
        kind: "whole number",
        default: "10",
        meaning: "How many seconds a turn waits for a workspace that another process uses; 0 is not at all.",
    },
    ConfigKey {
        name: "tool_timeout_secs",
        kind: "whole number",
        default: "3600",
        meaning: "How many seconds codex waits for one of the daemon's tools, at least 1; codex's own limit is 300, in old versions 120.",
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
        meaning: "End a turn when codex has neither printed nor recorded anything for so many seconds; 0 is never.",
    },
    ConfigKey {
        name: "turn_timeout_secs",
        kind: "whole number",
        default: "0",
        meaning: "End a turn after so many seconds; 0 is never.",
    },
    ConfigKey {
        name: "codex_home",
        kind: "string",
        default: "unset",
        meaning: "`CODEX_HOME` for codex and for finding rollouts; else the environment's, else `~/.codex`. A leading `~/` is expanded.",
    },
    ConfigKey {
        name: "env",
        kind: "map of strings",
        default: "{}",
        meaning: "Further environment variables for codex.",
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
    /// What can be chosen, by the names that the config and the command line have for it.
    pub(crate) const NAMES: &[(&'static str, BackendChoice)] = &[
        ("exec", BackendChoice::Exec),
        ("app-server", BackendChoice::AppServer),
    ];

    /// The one of this name.
    pub(crate) fn named(name: &str) -> Option<BackendChoice> {
        let known = BackendChoice::NAMES.iter();
        known
            .into_iter()
            .find_map(|(known, choice)| (*known == name).then_some(*choice))
    }
}

/// What commands of the agent may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sandbox {
    DangerFullAccess,
    WorkspaceWrite,
    ReadOnly,
}

/// What an advertised model means to codex.
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

/// How the prompt reaches codex.
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

/// The config file's values, with the defaults for what it does not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) binary: String,
    pub(crate) backend: BackendChoice,
    /// How long an idle app-server is kept.
    pub(crate) warm: Duration,
    /// How many idle ones are kept.
    pub(crate) warm_max: usize,
    pub(crate) extra_args: Vec<String>,
    pub(crate) supported_models: Vec<String>,
    pub(crate) sandbox: Sandbox,
    pub(crate) model_args: BTreeMap<String, ModelArgs>,
    pub(crate) mcp_registration: McpRegistration,
    pub(crate) prompt_via: PromptVia,
    pub(crate) lost_thread: LostThread,
    pub(crate) replay_new: bool,
    /// How long a workspace that another process uses is waited for.
    pub(crate) busy_wait: Duration,
    /// How long codex waits for a tool of the daemon's.
    pub(crate) tool_timeout: Duration,
    pub(crate) reasoning_events: bool,
    pub(crate) tool_events: bool,
    /// `None` is never.
    pub(crate) idle_timeout: Option<Duration>,
    /// `None` is never.
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

/// A config file as it was read: its values, and what is odd about it without being wrong.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) config: Config,
    /// One sentence each, with the path, line and column.
    pub(crate) warnings: Vec<String>,
    /// Was there a file at all?
    pub(crate) found: bool,
}

/// Where this process's things are: taken from the environment once, at the start.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    /// The daemon's profile: `$PLEXUM_PROFILE_ROOT`, else `~/.plexum`.
    pub(crate) profile: PathBuf,
    /// The user's home directory, where there is one.
    pub(crate) home: Option<PathBuf>,
    /// `$CODEX_HOME`, where it is set and not empty.
    codex_home: Option<PathBuf>,
    /// `$PATH`.
    path: Option<OsString>,
}

impl Paths {
    /// Reads the environment.
    pub(crate) fn from_env() -> Paths {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let home = std::env::home_dir().filter(|home| !home.as_os_str().is_empty());
        let profile = match set("PLEXUM_PROFILE_ROOT") {
            Some(root) => absolute(Path::new(&root)),
            None => home
                .clone()
                .unwrap_or_else(|| PathBuf::from("/"))
                .join(".plexum"),
        };
        Paths {
            profile,
            home,
            codex_home: set("CODEX_HOME").map(|path| absolute(Path::new(&path))),
            path: set("PATH"),
        }
    }

    /// The directory of this plugin's own files in the profile.
    pub(crate) fn plugin_directory(&self) -> PathBuf {
        self.profile.join("plugins").join(crate::canonical::PLUGIN)
    }

    /// The config file's path.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.plugin_directory().join("config.json")
    }

    /// The `CODEX_HOME` that the config or the environment names; `None` leaves the choice to codex.
    pub(crate) fn named_codex_home(&self, config: &Config) -> Option<PathBuf> {
        if let Some(home) = &config.codex_home {
            return Some(self.expand(home));
        }
        match config.env.get("CODEX_HOME") {
            Some(home) if !home.is_empty() => Some(absolute(Path::new(home))),
            Some(_) => None,
            None => self.codex_home.clone(),
        }
    }

    /// The directory that codex keeps its threads in, as codex itself chooses it.
    pub(crate) fn codex_home(&self, config: &Config) -> PathBuf {
        self.named_codex_home(config).unwrap_or_else(|| {
            self.home
                .clone()
                .unwrap_or_else(|| PathBuf::from("/"))
                .join(".codex")
        })
    }

    /// The `PATH` that codex will have.
    pub(crate) fn search_path(&self, config: &Config) -> OsString {
        match config.env.get("PATH") {
            Some(path) => OsString::from(path),
            None => self
                .path
                .clone()
                .unwrap_or_else(|| OsString::from("/usr/local/bin:/usr/bin:/bin")),
        }
    }

    /// A path from the config: a leading `~/` is the home directory, and the rest becomes absolute.
    pub(crate) fn expand(&self, path: &str) -> PathBuf {
        match (path.strip_prefix("~/"), &self.home) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => absolute(Path::new(path)),
        }
    }

    /// Loads the config file; a missing or empty one is the defaults.
    ///
    /// # Errors
    /// [`Kind::Config`], with path, line and column.
    pub(crate) fn load_config(&self) -> Result<Loaded> {
        load(&self.config_file())
    }
}

fn absolute(path: &Path) -> PathBuf {
    // It fails for the empty path and where there is no current directory; the path as it stands is then the best.
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Reads and parses the config file at `path`.
///
/// # Errors
/// [`Kind::Config`]: a file that is there and cannot be read, is not a regular file or too large, is not UTF-8, or
/// says something that no key can mean.
pub(crate) fn load(path: &Path) -> Result<Loaded> {
    let Some(bytes) = read(path)? else {
        return Ok(Loaded {
            config: Config::default(),
            warnings: Vec::new(),
            found: false,
        });
    };
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let column = before
            .iter()
            .rev()
            .take_while(|byte| **byte != b'\n')
            .count()
            + 1;
        Error::new(
            Kind::Config,
            format!("{}:{line}:{column}: not valid UTF-8", path.display()),
        )
    })?;
    let (config, warnings) = parse(text)
        .map_err(|error| Error::new(Kind::Config, format!("{}:{error}", path.display())))?;
    Ok(Loaded {
        config,
        warnings: warnings
            .into_iter()
            .map(|warning| format!("{}: {warning}", path.display()))
            .collect(),
        found: true,
    })
}

/// The bytes of a regular file of sensible size; `None` where there is no file.
fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let wrong = |what: &dyn fmt::Display| {
        Error::new(
            Kind::Config,
            format!("cannot read the config file '{}': {what}", path.display()),
        )
    };
    let file = match os::open_options().read(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match path.is_symlink() {
                true => Err(wrong(&"it is a link that leads nowhere")),
                false => Ok(None),
            };
        }
        Err(error) => return Err(wrong(&reason(&error))),
    };
    let metadata = file.metadata().map_err(|error| wrong(&reason(&error)))?;
    if !metadata.is_file() {
        let what = if metadata.is_dir() {
            "it is a directory"
        } else {
            "it is not a regular file"
        };
        return Err(wrong(&what));
    }
    let mut bytes = Vec::new();
    (&file)
        .take(LARGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| wrong(&reason(&error)))?;
    if bytes.len() as u64 > LARGEST {
        return Err(wrong(
            &"it is larger than 1 MiB, so it can be no config file",
        ));
    }
    Ok(Some(bytes))
}

/// Parses the text of a config file. An error begins with `LINE:COLUMN: `; a warning says line and column.
pub(crate) fn parse(text: &str) -> std::result::Result<(Config, Vec<String>), String> {
    if text.trim().is_empty() {
        return Ok((Config::default(), Vec::new()));
    }
    let key = Cell::new(None);
    let mut json = serde_json::Deserializer::from_str(text);
    let mut unknown = Vec::new();
    let config = json
        .deserialize_map(ConfigVisitor {
            key: &key,
            unknown: &mut unknown,
        })
        .and_then(|config| json.end().map(|()| config))
        .map_err(|error| {
            // Of a value that is not an object serde_json tells the place before it, column 0.
            let place = format!("{}:{}: ", error.line(), error.column().max(1));
            let said = error.to_string();
            let said = match said.rfind(" at line ") {
                Some(end) => &said[..end],
                None => &said,
            };
            match key.take() {
                Some(name) if error.is_data() => format!("{place}'{name}' is wrong: {said}"),
                _ => format!("{place}{said}"),
            }
        })?;
    let warnings = unknown
        .into_iter()
        .map(|name| {
            let said = format!("unknown key '{name}' is ignored");
            match nearest(&name, KEYS.iter().map(|key| key.name)) {
                Some(near) => format!("{said}; did you mean '{near}'?"),
                None => said,
            }
        })
        .collect();
    Ok((config, warnings))
}

struct ConfigVisitor<'a> {
    /// The key whose value is being read, for the error message.
    key: &'a Cell<Option<String>>,
    unknown: &'a mut Vec<String>,
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
                "binary" => config.binary = map.next_value::<Filled>()?.0,
                "backend" => config.backend = map.next_value_seed(OneOf(BackendChoice::NAMES))?,
                "warm_secs" => config.warm = map.next_value::<Wait>()?.0,
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
                "busy_wait_secs" => config.busy_wait = map.next_value::<Wait>()?.0,
                "tool_timeout_secs" => {
                    config.tool_timeout = map
                        .next_value::<Seconds>()?
                        .0
                        .ok_or_else(|| de::Error::custom("0 would leave no time for any tool"))?;
                }
                "idle_timeout_secs" => config.idle_timeout = map.next_value::<Seconds>()?.0,
                "turn_timeout_secs" => config.turn_timeout = map.next_value::<Seconds>()?.0,
                "codex_home" => config.codex_home = Some(map.next_value::<Filled>()?.0),
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

/// NoNulText that can be an argument or an environment variable: no NUL in it.
struct NoNulText(String);
/// The same, and not empty.
struct Filled(String);
struct Strings(Vec<String>);
struct Bool(bool);
/// A number of seconds, 0 being never.
struct Seconds(Option<Duration>);
/// A number of seconds, 0 being none.
struct Wait(Duration);
/// A whole number, from 0.
struct Count(usize);

macro_rules! deserialize_with {
    ($type:ident, $method:ident, $expecting:literal, $($visit:item)*) => {
        impl<'de> de::Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(json: D) -> std::result::Result<Self, D::Error> {
                struct ArgumentVisitor;
                impl<'de> Visitor<'de> for ArgumentVisitor {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }
                    $($visit)*
                }
                json.$method(ArgumentVisitor)
            }
        }
    };
}

deserialize_with!(
    NoNulText,
    deserialize_str,
    "a string",
    fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<NoNulText, E> {
        if text.contains('\0') {
            return Err(E::invalid_value(
                de::Unexpected::Str(text),
                &"a string without NUL",
            ));
        }
        Ok(NoNulText(text.to_owned()))
    }
);
deserialize_with!(
    Filled,
    deserialize_str,
    "a string that is not empty",
    fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<Filled, E> {
        if text.is_empty() || text.contains('\0') {
            return Err(E::invalid_value(de::Unexpected::Str(text), &self));
        }
        Ok(Filled(text.to_owned()))
    }
);
deserialize_with!(
    Strings,
    deserialize_seq,
    "a list of strings",
    fn visit_seq<A: de::SeqAccess<'de>>(
        self,
        mut list: A,
    ) -> std::result::Result<Strings, A::Error> {
        let mut strings = Vec::new();
        while let Some(NoNulText(text)) = list.next_element()? {
            strings.push(text);
        }
        Ok(Strings(strings))
    }
);
/// An object of values of one kind, by whatever names.
struct MapOf<T>(BTreeMap<String, T>);

impl<'de, T: de::Deserialize<'de>> de::Deserialize<'de> for MapOf<T> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> std::result::Result<Self, D::Error> {
        json.deserialize_map(MapVisitor(PhantomData))
    }
}

struct MapVisitor<T>(PhantomData<T>);

impl<'de, T: de::Deserialize<'de>> Visitor<'de> for MapVisitor<T> {
    type Value = MapOf<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<MapOf<T>, A::Error> {
        let mut values = BTreeMap::new();
        while let Some(NoNulText(name)) = map.next_key()? {
            if values.contains_key(&name) {
                return Err(de::Error::custom(format!("duplicate key '{name}'")));
            }
            values.insert(name, map.next_value()?);
        }
        Ok(MapOf(values))
    }
}

impl<'de> Deserialize<'de> for ModelArgs {
    fn deserialize<D: Deserializer<'de>>(json: D) -> std::result::Result<Self, D::Error> {
        json.deserialize_any(ModelArgsVisitor)
    }
}

struct ModelArgsVisitor;

impl<'de> Visitor<'de> for ModelArgsVisitor {
    type Value = ModelArgs;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or an object")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<ModelArgs, E> {
        NoNulText::deserialize(text.into_deserializer()).map(|NoNulText(model)| ModelArgs {
            model: Some(model),
            ..ModelArgs::default()
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<ModelArgs, A::Error> {
        let MapOf(mut members) = MapVisitor::<NoNulText>(PhantomData).visit_map(map)?;
        let mut take = |name| members.remove(name).map(|NoNulText(text)| text);
        let args = ModelArgs {
            model: take("model"),
            reasoning_effort: take("reasoning_effort"),
            service_tier: take("service_tier"),
        };
        match members.keys().next() {
            None => Ok(args),
            Some(other) => Err(de::Error::custom(format!(
                "'{other}' is not one of \"model\", \"reasoning_effort\" and \"service_tier\""
            ))),
        }
    }
}
deserialize_with!(
    Bool,
    deserialize_bool,
    "true or false",
    fn visit_bool<E: de::Error>(self, value: bool) -> std::result::Result<Bool, E> {
        Ok(Bool(value))
    }
);
deserialize_with!(
    Seconds,
    deserialize_u64,
    "a whole number of seconds, 0 for never",
    fn visit_u64<E: de::Error>(self, seconds: u64) -> std::result::Result<Seconds, E> {
        Ok(Seconds((seconds > 0).then(|| Duration::from_secs(seconds))))
    }
);

deserialize_with!(
    Wait,
    deserialize_u64,
    "a whole number of seconds",
    fn visit_u64<E: de::Error>(self, seconds: u64) -> std::result::Result<Wait, E> {
        Ok(Wait(Duration::from_secs(seconds)))
    }
);

deserialize_with!(
    Count,
    deserialize_u64,
    "a whole number",
    fn visit_u64<E: de::Error>(self, number: u64) -> std::result::Result<Count, E> {
        Ok(Count(usize::try_from(number).unwrap_or(usize::MAX)))
    }
);

/// One of a few words.
struct OneOf<T: 'static>(&'static [(&'static str, T)]);

impl<'de, T: Copy> de::DeserializeSeed<'de> for OneOf<T> {
    type Value = T;
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> std::result::Result<T, D::Error> {
        json.deserialize_str(self)
    }
}

impl<T: Copy> Visitor<'_> for OneOf<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("one of ")?;
        for (at, (word, _)) in self.0.iter().enumerate() {
            write!(f, "{}\"{word}\"", if at == 0 { "" } else { ", " })?;
        }
        Ok(())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<T, E> {
        match self.0.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Ok(*value),
            None => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
        }
    }
}

/// The known name that `name` was probably meant to be: at most a third of its letters away.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(distance, candidate)| {
            *distance <= (candidate.len().max(name.len()) / 3).max(1)
                || (name.len() >= 3 && candidate.starts_with(name))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// How many letters to insert, delete, replace or swap with their neighbour to get from `a` to `b`.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(64).collect();
    let b: Vec<char> = b.chars().take(64).collect();
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut best = (rows[i][j] + usize::from(x != y))
                .min(rows[i][j + 1] + 1)
                .min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                best = best.min(rows[i - 1][j - 1] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// `PATH`'s entries in which a program can be looked for.
pub(crate) fn path_entries(path: &OsStr) -> impl Iterator<Item = PathBuf> {
    std::env::split_paths(path)
        .filter(|entry| !entry.as_os_str().is_empty())
        .collect::<Vec<_>>()
        .into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn wrong(text: &str, message: &str) {
        assert_eq!(parse(text).unwrap_err(), message, "{text}");
    }

    #[test]
    fn every_key_is_read() {
        let (config, warnings) = parse(
            r#"{"binary":"~/bin/codex","backend":"app-server","warm_secs":60,"warm_max":2,"extra_args":["-c","x=1"],"sandbox":"read-only","supported_models":["a","b"],
               "model_args":{"a":"gpt-5","b":{"reasoning_effort":"high","service_tier":"fast"}},"tool_timeout_secs":9,"mcp_registration":"off","prompt_via":"arg","lost_thread":"error",
               "replay_new":false,"busy_wait_secs":3,"reasoning_events":true,"tool_events":false,"idle_timeout_secs":0,"turn_timeout_secs":7,
               "codex_home":"/c","env":{"A":"b"}}"#,
        )
        .unwrap();
        assert_eq!(warnings, Vec::<String>::new());
        assert_eq!(
            config,
            Config {
                binary: "~/bin/codex".into(),
                backend: BackendChoice::AppServer,
                warm: Duration::from_secs(60),
                warm_max: 2,
                extra_args: vec!["-c".into(), "x=1".into()],
                supported_models: vec!["a".into(), "b".into()],
                sandbox: Sandbox::ReadOnly,
                model_args: [
                    (
                        "a".to_owned(),
                        ModelArgs {
                            model: Some("gpt-5".to_owned()),
                            ..ModelArgs::default()
                        },
                    ),
                    (
                        "b".to_owned(),
                        ModelArgs {
                            model: None,
                            reasoning_effort: Some("high".to_owned()),
                            service_tier: Some("fast".to_owned()),
                        },
                    ),
                ]
                .into(),
                tool_timeout: Duration::from_secs(9),
                mcp_registration: McpRegistration::Off,
                prompt_via: PromptVia::Arg,
                lost_thread: LostThread::Error,
                replay_new: false,
                busy_wait: Duration::from_secs(3),
                reasoning_events: true,
                tool_events: false,
                idle_timeout: None,
                turn_timeout: Some(Duration::from_secs(7)),
                codex_home: Some("/c".into()),
                env: [("A".to_owned(), "b".to_owned())].into(),
            }
        );
        for key in KEYS {
            let text = format!("{{\"{}\": null}}", key.name);
            assert!(parse(&text).is_err(), "{} takes null", key.name);
        }
    }

    // fault: 63
    #[test]
    fn nothing_is_the_defaults() {
        for text in ["", "  \n", "{}"] {
            assert_eq!(parse(text).unwrap().0, Config::default(), "{text:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        wrong("{", "1:1: EOF while parsing an object");
        wrong(
            "{\n  \"binary\": 3\n}",
            "2:13: 'binary' is wrong: invalid type: integer `3`, expected a string that is not empty",
        );
        wrong(
            "{\"binary\":\"\"}",
            "1:12: 'binary' is wrong: invalid value: string \"\", expected a string that is not empty",
        );
        wrong(
            "{\"extra_args\":\"-x\"}",
            "1:18: 'extra_args' is wrong: invalid type: string \"-x\", expected a list of strings",
        );
        wrong(
            "{\"extra_args\":[1]}",
            "1:16: 'extra_args' is wrong: invalid type: integer `1`, expected a string",
        );
        wrong(
            "{\"env\":{\"A\":true}}",
            "1:16: 'env' is wrong: invalid type: boolean `true`, expected a string",
        );
        wrong(
            "{\"idle_timeout_secs\":-5}",
            "1:23: 'idle_timeout_secs' is wrong: invalid type: integer `-5`, expected a whole number of seconds, 0 for never",
        );
        wrong(
            "{\"prompt_via\":\"pipe\"}",
            "1:20: 'prompt_via' is wrong: invalid value: string \"pipe\", expected one of \"stdin\", \"arg\"",
        );
        wrong(
            "{\"tool_events\":\"yes\"}",
            "1:20: 'tool_events' is wrong: invalid type: string \"yes\", expected true or false",
        );
        wrong(
            "{\"binary\":\"a\",\n\"binary\":\"b\"}",
            "2:8: duplicate key 'binary'",
        );
        wrong(
            "[]",
            "1:1: invalid type: sequence, expected an object of config keys",
        );
        wrong("{} x", "1:4: trailing characters");
        wrong(
            "{\"env\":{\"A=B\":\"\"}}",
            "1:18: 'env' is wrong: 'A=B' cannot be the name of an environment variable",
        );
        wrong(
            &format!("{{\"x\":{}", "[".repeat(10_000)),
            "1:10005: EOF while parsing a list",
        );
    }

    // fault: 64
    #[test]
    fn an_unknown_key_is_a_warning_with_the_nearest() {
        let (_, warnings) = parse("{\"binry\":\"x\",\"zzz\":[1]}").unwrap();
        assert_eq!(
            warnings,
            [
                "unknown key 'binry' is ignored; did you mean 'binary'?",
                "unknown key 'zzz' is ignored",
            ]
        );
    }

    #[test]
    fn only_a_regular_file_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        assert!(!load(&path).unwrap().found);
        std::fs::write(&path, b"\xef\xbb\xbf{}").unwrap();
        assert!(load(&path).unwrap().found);
        std::fs::write(&path, b"{\n\"a\xff").unwrap();
        let said = load(&path).unwrap_err().message().to_owned();
        assert!(said.ends_with("config.json:2:3: not valid UTF-8"), "{said}");
        std::fs::write(&path, vec![b' '; 2 << 20]).unwrap();
        assert!(
            load(&path)
                .unwrap_err()
                .message()
                .contains("larger than 1 MiB")
        );
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(
            load(&path)
                .unwrap_err()
                .message()
                .ends_with("it is a directory")
        );
        std::fs::remove_dir(&path).unwrap();
        os::make_fifo(&path);
        assert!(
            load(&path)
                .unwrap_err()
                .message()
                .ends_with("not a regular file")
        );
    }
}
