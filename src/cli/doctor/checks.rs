//! The checks of `doctor`, in the order in which a turn would come upon what is wrong.
//!
//! They look as the turn will look: the same config, the same search for codex, the same environment for it.
//! What depends on something that has failed already is left out, since its message would only mislead.

use super::Report;
use super::ownership::{self, ConfigModes, open_up};
use super::plugin;
use crate::backend::exec::command::{self, TurnArgs};
use crate::backend::{Held, ask_to_release, list_models, only_by_exec};
use crate::codex::SERVER_PREFIX;
use crate::codex::ask::{CommandOutput, ask};
use crate::codex::find::{self, NEWEST_TRIED, OLDEST};
use crate::codex::home;
use crate::codex::mcp_servers::ConfiguredServer;
use crate::codex::writer_lock;
use crate::config::{BackendChoice, Config, LostThread, McpRegistration};
use crate::error::{Kind, reason};
use crate::os::{self, Access, CancelToken, check_owner, open_regular_file};
use crate::paths::Paths;
use crate::shell;
use crate::turn::session::{self, Stored};
use crate::turn::thread::foreign_directory;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Seek};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// To read, write and enter a directory.
const ALL_ACCESS: Access = Access::READ_OK
    .union(Access::WRITE_OK)
    .union(Access::EXEC_OK);

/// The PATH that systemd gives to services where nobody sets another.
const SYSTEMD_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long codex may take for a short answer; it takes 0.1 s.
const LIMIT: Duration = Duration::from_secs(15);
/// codex, as npm knows it.
const PACKAGE: &str = "@openai/codex@latest";
/// An id that no thread has.
const NO_THREAD: &str = "00000000-0000-7000-8000-000000000000";
/// The first version known to look for a rollout nowhere but where its index has it.
const TRUSTS_INDEX: (u32, u32, u32) = (0, 148, 0);
/// The last one known to find it by its name.
const FINDS_BY_NAME: (u32, u32, u32) = (0, 135, u32::MAX);

/// Runs every check that applies.
///
/// Once `cancel` is raised codex is not waited for, and the report is worth nothing.
pub(super) fn examine(
    places: &Paths,
    workspaces: &[PathBuf],
    cancel: &CancelToken,
    report: &mut Report,
) {
    let mut doctor = Doctor {
        places,
        config: Config::default(),
        config_is_there: false,
        version: None,
        cancel,
        report,
    };
    if !doctor.config() {
        return;
    }
    let home_is_sound = doctor.codex_home();
    if let Some(program) = doctor.codex() {
        doctor.systemd(&program);
        doctor.backend();
        doctor.network();
        if home_is_sound {
            doctor.ask_codex(&program);
        }
    }
    doctor.sockets();
    plugin::examine(places, &doctor.config, cancel, doctor.report);
    for workspace in workspaces {
        let workspace = std::path::absolute(workspace).unwrap_or_else(|_| workspace.clone());
        doctor.report.workspace = Some(workspace.clone());
        doctor.workspace(&workspace);
    }
}

struct Doctor<'a> {
    places: &'a Paths,
    /// The defaults, until the file was read.
    config: Config,
    config_is_there: bool,
    /// codex's, once it has told it.
    version: Option<(u32, u32, u32)>,
    cancel: &'a CancelToken,
    report: &'a mut Report,
}

impl Doctor<'_> {
    /// The config file. The result says whether it is known what it asks for.
    fn config(&mut self) -> bool {
        let path = self.places.config_file();
        match self.places.load_config() {
            Ok(loaded) => {
                let modes = ownership::config_modes(self.places, !loaded.config.env.is_empty());
                if loaded.warnings.is_empty() && matches!(modes, ConfigModes::Fine) {
                    let message = if loaded.found {
                        format!("{}", path.display())
                    } else {
                        format!("there is no {}: the defaults hold", path.display())
                    };
                    self.report.ok("config", message);
                }
                for warning in loaded.warnings {
                    self.report.warn("config", warning);
                }
                match modes {
                    ConfigModes::Fine => {}
                    ConfigModes::Writable(message) => self.report.fail("config", message),
                    ConfigModes::Readable(message) => self.report.warn("config", message),
                }
                self.config = loaded.config;
                self.config_is_there = loaded.found;
                true
            }
            Err(error) => {
                self.report.fail("config", error.message());
                false
            }
        }
    }

    /// codex's directory. The result says whether codex can use it.
    fn codex_home(&mut self) -> bool {
        let home = self.places.codex_home(&self.config);
        let is_named = self.places.named_codex_home(&self.config).is_some();
        if let Err(error) = check_owner("the codex home", &home) {
            self.report.fail("codex home", error.message());
            return false;
        }
        match look_at_home(self.places, &home, is_named) {
            Ok(message) => {
                self.report.ok("codex home", message);
                true
            }
            Err(message) => {
                self.report.fail("codex home", message);
                false
            }
        }
    }

    /// Can codex be run in the way that the config asks for?
    fn backend(&mut self) {
        if self.config.backend == BackendChoice::Exec {
            return;
        }
        if let Some(why) = only_by_exec(&self.config) {
            let message = format!(
                "{why}: turns are run by 'codex exec'; remove it from the config, or set \"backend\" to \"exec\""
            );
            return self.report.warn("backend", message);
        }
        match list_models(&self.config, self.places, self.cancel) {
            Ok(models) => {
                let message = format!("codex app-server, which lists {} models", models.len());
                self.report.ok("backend", message);
            }
            Err(error) => {
                let message = format!(
                    "codex app-server cannot be used, turns are run by 'codex exec': {}; {}",
                    error.message(),
                    self.other_binary()
                );
                self.report.warn("backend", message);
            }
        }
    }

    /// The executable and its version. The result is the executable, where it can be asked more.
    fn codex(&mut self) -> Option<PathBuf> {
        let program = match find::find_codex(&self.config.binary, &self.config, self.places) {
            Ok(program) => program,
            Err(error) => {
                // Its own hints give way to one that can be followed as it stands.
                let what = error.message().split("; ").next().unwrap_or_default();
                let what = what.split(" (chmod ").next().unwrap_or_default();
                let fix = self.fix_for_missing();
                self.report.fail("codex", format!("{what}; {fix}"));
                return None;
            }
        };
        let shown = program.display();
        let answer = match self.ask(&program, &["--version"]) {
            Ok(answer) => answer,
            Err(error) => {
                let fix = format!("{}; {}", error.message(), self.other_binary());
                self.report.fail("codex", fix);
                return None;
            }
        };
        let Some(version) = find::version_in(&answer.stdout) else {
            let said = first_line(&answer.stdout).or(first_line(&answer.stderr));
            self.report.fail(
                "codex",
                format!(
                    "'{shown} --version' does not tell codex's version but {:?}; {}",
                    said.unwrap_or_default(),
                    self.other_binary()
                ),
            );
            return None;
        };
        let (major, minor, patch) = version;
        self.version = Some(version);
        if version < OLDEST {
            let (a, b, c) = OLDEST;
            self.report.fail(
                "codex",
                format!(
                    "{shown} is version {major}.{minor}.{patch}, and {a}.{b}.{c} is the least that is supported; {}",
                    update(&program)
                ),
            );
        } else if version > NEWEST_TRIED {
            let (a, b, c) = NEWEST_TRIED;
            self.report.warn(
                "codex",
                format!(
                    "{shown} is version {major}.{minor}.{patch}, newer than {a}.{b}.{c}, the newest that this program was tried with; look for a newer plexum-openai where turns go wrong"
                ),
            );
        } else {
            let ((a, b, c), (x, y, z)) = (OLDEST, NEWEST_TRIED);
            let message = format!(
                "{shown}, version {major}.{minor}.{patch} (tried: {a}.{b}.{c} to {x}.{y}.{z})"
            );
            self.report.ok("codex", message);
        }
        Some(program)
    }

    /// How to come to a codex that can be started.
    fn fix_for_missing(&self) -> String {
        let named = self.places.expand(&self.config.binary);
        if self.config.binary.contains('/') {
            if let Some(native) = native_beside(&named) {
                return self.set(&[("binary", &native.to_string_lossy())], &[]);
            }
            if named.is_file()
                && !os::has_access(&named, Access::EXEC_OK)
                && ownership::is_own(self.places, &named)
                && fs::metadata(&named).is_ok_and(|found| found.uid() == os::user_id())
            {
                return format!(
                    "run: chmod +x {}",
                    shell::quote_path(&named.to_string_lossy())
                );
            }
        }
        let path = self.places.search_path(&self.config);
        let usual = self.usual_places();
        let found = find::in_path("codex", &path)
            .into_iter()
            .chain(usual)
            .map(|found| native_beside(&found).unwrap_or(found))
            .find(|found| {
                let found = found.to_string_lossy();
                find::find_codex(&found, &self.config, self.places).is_ok()
            });
        match found {
            Some(found) => self.set(&[("binary", &found.to_string_lossy())], &[]),
            None if self.config.binary == "codex" => install(),
            None => self.set(&[("binary", "codex")], &[]),
        }
    }

    /// Where installers put codex besides the directories of a plain PATH.
    fn usual_places(&self) -> Vec<PathBuf> {
        let Some(home) = &self.places.home else {
            return Vec::new();
        };
        let mut directories: Vec<PathBuf> =
            [".local/bin", ".npm-global/bin", ".volta/bin", ".bun/bin"]
                .map(|directory| home.join(directory))
                .into();
        let versions = fs::read_dir(home.join(".nvm/versions/node"));
        let versions = versions.into_iter().flatten().flatten();
        directories.extend(versions.map(|version| version.path().join("bin")));
        directories.push(PathBuf::from("/usr/local/bin"));
        let programs = directories
            .into_iter()
            .map(|directory| directory.join("codex"));
        programs.filter(|program| program.is_file()).collect()
    }

    /// Whether a daemon that systemd starts, whose PATH is not a login shell's, finds the same codex.
    fn systemd(&mut self, program: &Path) {
        let mut config = self.config.clone();
        let path = config
            .env
            .entry("PATH".to_owned())
            .or_insert_with(|| SYSTEMD_PATH.to_owned());
        let path = path.clone();
        let found = find::find_codex(&config.binary, &config, self.places);
        let binary = config.binary.as_str();
        if binary.contains('/') && !binary.starts_with('/') && !binary.starts_with("~/") {
            self.report.warn(
                "systemd",
                format!(
                    "'{binary}' is looked for in the directory that the daemon is started in; {}",
                    self.set(&[("binary", &program.to_string_lossy())], &[])
                ),
            );
            return;
        }
        match found {
            Ok(found) if found == program => {
                let message = if config.binary.contains('/') {
                    "codex is found by its path, whatever PATH the daemon has".to_owned()
                } else {
                    format!("codex is found with {path} too")
                };
                self.report.ok("systemd", message);
            }
            Ok(found) => self.report.warn(
                "systemd",
                format!(
                    "a daemon under systemd (PATH={path}) runs another codex, {}; {}",
                    found.display(),
                    self.set(&[("binary", &program.to_string_lossy())], &[])
                ),
            ),
            Err(error) => {
                let what = error.message().split("; ").next().unwrap_or_default();
                let fix = self.fix_for_systemd(program, &config);
                self.report
                    .warn("systemd", format!("a daemon under systemd {what}; {fix}"));
            }
        }
    }

    /// The keys with which codex starts whatever PATH there is.
    fn fix_for_systemd(&self, program: &Path, config: &Config) -> String {
        let native = native_beside(program);
        let binary = native.as_deref().unwrap_or(program).to_string_lossy();
        let mut keys = vec![("binary", binary.as_ref())];
        keys.retain(|(_, binary)| *binary != self.config.binary);
        // A script for an interpreter that only the login shell's PATH leads to.
        if find::find_codex(&binary, config, self.places).is_err()
            && let Some(name) = interpreter(program)
            && let Some(found) = find::in_path(&name, &self.places.search_path(&self.config))
            && let Some(directory) = found.parent()
        {
            let path = format!("{}:{SYSTEMD_PATH}", directory.display());
            return self.set(&keys, &[("PATH", &path)]);
        }
        self.set(&keys, &[])
    }

    /// A sandbox with the network in it: what is kept from writing files can send them away, and reach what else
    /// listens on this machine.
    fn network(&mut self) {
        const KEY: &str = "sandbox_workspace_write.network_access";
        let file = self.places.codex_home(&self.config).join("config.toml");
        let text = read_config(&file);
        let place = match self.setting(KEY) {
            Some("true") => "\"extra_args\"".to_owned(),
            Some(_) => return,
            None if toml_flag(&text, KEY) => file.display().to_string(),
            None => return,
        };
        let mut arguments = self.config.extra_args.iter().map(String::as_str);
        let bypassed =
            arguments.any(|argument| argument == "--dangerously-bypass-approvals-and-sandbox");
        let sandbox = self.sandbox_in_arguments().or_else(|| {
            self.setting("sandbox_mode")
                .map(|mode| mode.trim_matches(['"', '\'']).to_owned())
        });
        let sandbox = sandbox.or_else(|| toml_text(&text, "sandbox_mode"));
        if !bypassed && sandbox.as_deref() == Some("workspace-write") {
            self.report.warn(
                "sandbox",
                format!("the sandbox \"workspace-write\" has network_access = true by {place}: its commands reach the network and every service of this machine; set it to false if they need none"),
            );
        }
    }

    /// What `-s` or `--sandbox` in `extra_args` says.
    fn sandbox_in_arguments(&self) -> Option<String> {
        let arguments = &self.config.extra_args;
        let mut sandbox = None;
        for (at, argument) in arguments.iter().enumerate() {
            sandbox = match argument.as_str() {
                "-s" | "--sandbox" => arguments.get(at + 1).map(String::as_str),
                "--full-auto" => Some("workspace-write"),
                argument => argument
                    .strip_prefix("--sandbox=")
                    .or_else(|| argument.strip_prefix("-s").filter(|mode| !mode.is_empty())),
            }
            .or(sandbox);
        }
        sandbox.map(str::to_owned)
    }

    /// What codex itself says of its config and its login.
    fn ask_codex(&mut self, program: &Path) {
        let asked = self
            .ask(program, &["login", "status"])
            .and_then(|login| Ok((login, self.ask(program, &["mcp", "list", "--json"])?)));
        let (login, servers) = match asked {
            Ok(answers) => answers,
            Err(error) => {
                self.report.fail("codex config", error.message());
                return;
            }
        };
        let config_file = self.places.codex_home(&self.config).join("config.toml");
        // Of all subcommands this one says best where a config is wrong (0.135 and 0.169).
        let wrong = login
            .stderr
            .lines()
            .find_map(|line| line.strip_prefix("Error loading configuration: "));
        if let Some(wrong) = wrong {
            self.report.fail(
                "codex config",
                format!(
                    "codex cannot use its config: {wrong}; fix {}",
                    config_file.display()
                ),
            );
            return;
        }
        self.arguments(program);
        self.servers(program, &servers);
        let text = read_config(&config_file);
        if let Some(argument) = self.profile() {
            let message = format!(
                "not looked at: \"extra_args\" has {argument}, and what a profile of codex asks for only a turn shows"
            );
            self.report.warn("login", message);
            return;
        }
        let provider = self
            .setting("model_provider")
            .map(|name| name.trim_matches(['"', '\'']).to_owned())
            .or_else(|| toml_text(&text, "model_provider"))
            .filter(|name| name != "openai");
        match provider {
            Some(provider) => self.provider(&provider, &text),
            None => self.login(program, &login),
        }
    }

    /// Whether codex takes the config's `extra_args`, where a turn has them.
    fn arguments(&mut self, program: &Path) {
        if self.config.extra_args.is_empty() {
            return;
        }
        let fix = format!(
            "fix \"extra_args\" in {}",
            self.places.config_file().display()
        );
        let is = |flags: &[&str]| {
            let mut arguments = self.config.extra_args.iter();
            arguments.find(|argument| flags.contains(&argument.as_str()))
        };
        if let Some(flag) = is(&["-h", "--help", "-V", "--version"]) {
            let message =
                format!("\"extra_args\" has {flag}, with which codex ends before its work; {fix}");
            self.report.fail("arguments", message);
            return;
        }
        if let Some(flag) = is(&["--ephemeral"]) {
            let message = format!(
                "\"extra_args\" has {flag}: codex keeps no thread, so that every turn begins a new one; {fix}"
            );
            self.report.warn("arguments", message);
        }
        // The flags as a turn has them, up to its `--`. Help comes only where all before it is in order; settings
        // and features are looked at later than that.
        let mut flags = command::build(program, &self.config, self.places, &no_call()).args;
        flags.truncate(flags.iter().take_while(|flag| *flag != "--").count());
        let asked = |more: &[&str]| {
            let mut asked = flags.clone();
            asked.extend(more.iter().map(OsString::from));
            asked
        };
        let mut features = settings(&self.config.extra_args);
        features.extend(["features", "list"]);
        for arguments in [
            asked(&["-", "--help"]),
            asked(&["resume", NO_THREAD, "-", "--help"]),
            features.iter().map(OsString::from).collect(),
        ] {
            let Ok(answer) = self.ask(program, &arguments) else {
                return;
            };
            if answer.success {
                continue;
            }
            let said = answer.stderr.lines().find_map(|line| {
                let start = ["error: ", "Error: ", "Error parsing -c overrides: "];
                start.iter().find_map(|start| line.strip_prefix(start))
            });
            let said = match said.unwrap_or(answer.stderr.trim()) {
                // The prompt, ours, which another word has the place of.
                "unexpected argument '-' found" => {
                    "a word in it is neither a flag nor a flag's value"
                }
                said => said,
            };
            let message = format!("codex refuses \"extra_args\": {said}; {fix}");
            self.report.fail("arguments", message);
            return;
        }
    }

    /// What codex's `-c`, in any of its spellings, sets in `extra_args`; the last one counts.
    fn setting(&self, key: &str) -> Option<&str> {
        let settings = self.config.extra_args.iter().rev().map(|argument| {
            let argument = argument.strip_prefix("--config=").unwrap_or(argument);
            argument.strip_prefix("-c").unwrap_or(argument)
        });
        let mut values = settings.filter_map(|setting| setting.split_once('='));
        values.find_map(|(name, value)| (name.trim() == key).then(|| value.trim()))
    }

    /// The flag in `extra_args` by which codex is to take another profile of its config.
    fn profile(&self) -> Option<&str> {
        let mut arguments = self.config.extra_args.iter().map(String::as_str);
        arguments.find(|argument| {
            *argument == "--profile"
                || argument.starts_with("--profile=")
                || (argument.starts_with("-p") && !argument.starts_with("--"))
        })
    }

    /// Entries of ours in codex's config that no longer lead anywhere.
    fn servers(&mut self, program: &Path, listed: &CommandOutput) {
        let entries: Vec<ConfiguredServer> = match serde_json::from_str(&listed.stdout) {
            Ok(entries) => entries,
            Err(error) => {
                self.report.warn(
                    "codex config",
                    format!("'codex mcp list --json' is not understood ({error}): is this codex newer than this program?"),
                );
                return;
            }
        };
        let mut lost = Vec::new();
        let mut ours = 0;
        for entry in entries
            .iter()
            .filter(|entry| entry.name.starts_with(SERVER_PREFIX))
        {
            ours += 1;
            let why = if self.config.mcp_registration != McpRegistration::Persistent {
                "\"mcp_registration\" is not \"persistent\"".to_owned()
            } else if !os::has_access(&entry.transport.command, Access::EXEC_OK) {
                format!("'{}' cannot be executed", entry.transport.command)
            } else {
                continue;
            };
            lost.push((entry.name.as_str(), why));
        }
        let Some((first, why)) = lost.first() else {
            let message = match ours {
                0 => "no leftover entries of ours in codex's config".to_owned(),
                1 => "1 entry of ours in codex's config, and it leads somewhere".to_owned(),
                more => format!("{more} entries of ours in codex's config lead somewhere"),
            };
            self.report.ok("codex config", message);
            return;
        };
        let removal: Vec<String> = lost
            .iter()
            .map(|(name, _)| {
                let codex = self.codex_by_hand(program);
                format!("{codex} mcp remove {}", shell::quote_path(name))
            })
            .collect();
        let more = match lost.len() - 1 {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        self.report.warn(
            "codex config",
            format!(
                "the server '{first}'{more} leads nowhere: {why}; run: {}",
                removal.join(" && ")
            ),
        );
    }

    /// A provider of the operator's own, which needs no login but perhaps a key.
    fn provider(&mut self, provider: &str, text: &str) {
        let table = format!("model_providers.{provider}");
        // codex has a few of its own (ollama, lmstudio, ...), more with each version, so this is not a failure.
        if !text.contains(&table) && self.setting(&format!("{table}.base_url")).is_none() {
            let message = format!(
                "codex uses the provider '{provider}', which is none in its config.toml: one of codex's own?"
            );
            self.report.warn("login", message);
            return;
        }
        let key = toml_text(text, &format!("{table}.env_key"));
        match key {
            None => self.report.ok(
                "login",
                format!("codex uses the provider '{provider}', which asks for no key"),
            ),
            Some(name) if self.variable(&name).is_some() => self.report.ok(
                "login",
                format!("codex uses the provider '{provider}', and its key {name} is set"),
            ),
            Some(name) => self.report.fail(
                "login",
                format!(
                    "codex uses the provider '{provider}', and its key {name} is not set; {}",
                    self.set(&[], &[(&name, "...")])
                ),
            ),
        }
    }

    fn login(&mut self, program: &Path, answer: &CommandOutput) {
        if answer.success {
            let said = first_line(&answer.stderr).or(first_line(&answer.stdout));
            self.report
                .ok("login", said.unwrap_or("codex is logged in"));
        } else if self.config.env.contains_key("CODEX_API_KEY") {
            self.report.ok(
                "login",
                "not logged in, but the config's \"env\" has CODEX_API_KEY",
            );
        } else if self.variable("CODEX_API_KEY").is_some() {
            self.report.ok(
                "login",
                format!(
                    "not logged in, but CODEX_API_KEY is set; for a daemon that does not have it, {}",
                    self.set(&[], &[("CODEX_API_KEY", "...")])
                ),
            );
        } else if self.variable("OPENAI_API_KEY").is_some() {
            self.report.fail(
                "login",
                format!(
                    "OPENAI_API_KEY is set, but 'codex exec' reads only CODEX_API_KEY, and codex is not logged in; run: printenv OPENAI_API_KEY | {} login --with-api-key",
                    self.codex_by_hand(program)
                ),
            );
        } else {
            self.report.fail(
                "login",
                format!(
                    "codex is not logged in; run: {} login",
                    self.codex_by_hand(program)
                ),
            );
        }
    }

    /// The directory for the sockets through which codex reaches the daemon's tools.
    fn sockets(&mut self) {
        if self.config.mcp_registration == McpRegistration::Off {
            return;
        }
        let directory =
            crate::mcp::runtime_place(crate::mcp::runtime_dir().as_deref(), &self.places.profile);
        let instead = match ownership::in_home(self.places, ".plexum") {
            Some(own) => format!(
                "choose a directory of your own: set PLEXUM_PROFILE_ROOT to {}",
                shell::quote_path(&own.to_string_lossy())
            ),
            None => "choose a directory of your own: set PLEXUM_PROFILE_ROOT to one".to_owned(),
        };
        // Looked at and not made: a turn makes it when it needs it.
        let sound = match fs::symlink_metadata(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                could_be_made(self.places, &directory, &instead)
            }
            _ => crate::mcp::check_runtime_directory(&directory)
                .map(|()| directory.display().to_string())
                .map_err(|error| match error.message().split_once("; run: chmod ") {
                    // Made anew, it has the right mode, and nothing of others is opened or closed.
                    Some((what, _)) if !ownership::is_own(self.places, &directory) => {
                        let word = shell::quote_path(&directory.to_string_lossy());
                        format!("{what}; run: mv {word} {word}.old")
                    }
                    _ => error.message().to_owned(),
                }),
        };
        match sound {
            Ok(message) => self.report.ok("sockets", message),
            Err(message) => self.report.fail("sockets", message),
        }
    }

    fn workspace(&mut self, workspace: &Path) {
        if let Err(error) = check_owner("the workspace", workspace) {
            self.report.fail("workspace", error.message());
            return;
        }
        match look_at_workspace(self.places, workspace) {
            Ok(message) => self.report.ok("workspace", message),
            Err(message) => {
                self.report.fail("workspace", message);
                return;
            }
        }
        match session::read(workspace) {
            Ok(Stored::Nothing) => self
                .report
                .ok("session", "no thread yet: the next turn starts one"),
            Ok(Stored::Thread(thread)) => {
                let other = foreign_directory(workspace, &thread, &self.config, self.places);
                if let Some(other) = other {
                    self.report.warn(
                        "session",
                        format!(
                            "{} names thread {thread}, which belongs to {}: the next turn sets it aside and starts a new thread",
                            workspace.join(session::FILE).display(),
                            other.display()
                        ),
                    );
                    return;
                }
                self.report.ok("session", format!("thread {thread}"));
                self.thread(&thread);
            }
            Ok(Stored::Unusable(why)) => self.report.warn(
                "session",
                format!(
                    "{}: {why}; the next turn sets it aside and starts a new thread",
                    workspace.join(session::FILE).display()
                ),
            ),
            Err(error) => self.report.fail("session", error.message()),
        }
    }

    /// What becomes of a thread that codex cannot go on with.
    fn lost_thread(&mut self, what: &str) {
        match self.config.lost_thread {
            LostThread::Replay => self.report.warn(
                "rollout",
                format!("{what}; the next turn starts a new one with the conversation that the daemon has"),
            ),
            LostThread::Fresh => self
                .report
                .warn("rollout", format!("{what}; the next turn starts a new, empty one")),
            LostThread::Error => self.report.fail(
                "rollout",
                format!(
                    "{what}, and \"lost_thread\" is \"error\"; {}",
                    self.set(&[("lost_thread", "replay")], &[])
                ),
            ),
        }
    }

    /// The rollout of the workspace's thread, and who may write to it.
    fn thread(&mut self, thread: &str) {
        let home = self.places.codex_home(&self.config);
        let rollout = match home::find_rollout_or_packed(&home, thread) {
            Ok(Some(rollout)) => rollout,
            Ok(None) => {
                self.lost_thread(&format!(
                    "codex has no thread {thread} in {}",
                    home.display()
                ));
                return;
            }
            Err(error) => {
                self.report.fail("rollout", error.message());
                return;
            }
        };
        let metadata = match open_regular_file(&rollout).and_then(|file| file.metadata()) {
            Ok(metadata) => metadata,
            Err(error) if fs::metadata(&rollout).is_ok_and(|found| !found.is_file()) => {
                self.lost_thread(&format!(
                    "codex cannot go on with {}: {}",
                    rollout.display(),
                    reason(&error)
                ));
                return;
            }
            Err(error) if rollout.is_symlink() => {
                self.report.warn(
                    "rollout",
                    format!(
                        "{}: {}, which codex does not go on with from some version on, and which is not rewritten; put the file itself there",
                        rollout.display(),
                        reason(&error)
                    ),
                );
                return;
            }
            Err(error) => {
                self.report.fail(
                    "rollout",
                    format!(
                        "cannot read '{}': {}; {}",
                        rollout.display(),
                        reason(&error),
                        open_up(self.places, &rollout, "run everything as its owner")
                    ),
                );
                return;
            }
        };
        if metadata.len() == 0 {
            // As a full disk leaves it.
            let what = format!(
                "{} is empty, and codex goes on with no such thread",
                rollout.display()
            );
            self.lost_thread(&what);
            return;
        }
        if home::is_archived(&rollout) {
            let codex = self.config.binary.clone();
            let codex = self.codex_by_hand(Path::new(&codex));
            self.report.warn(
                "rollout",
                format!(
                    "{} is archived, the next turn unarchives it; run: {codex} unarchive {thread}",
                    rollout.display()
                ),
            );
        } else if let Some(other) = indexed_elsewhere(&home, &rollout, thread) {
            if !self.rollout_elsewhere(&home, &rollout, &other) {
                return;
            }
        } else if self.version >= Some(TRUSTS_INDEX) && !begins_with_meta(&rollout, thread) {
            // 0.135 takes the first such record for it, wherever it is.
            self.lost_thread(&format!(
                "codex cannot open {}: its first record is not the session_meta of this thread",
                rollout.display()
            ));
            return;
        } else if let Some(why) = unopened(&rollout) {
            self.lost_thread(&format!("codex cannot open {}: {why}", rollout.display()));
            return;
        } else {
            self.report.ok(
                "rollout",
                format!("{} ({} bytes)", rollout.display(), metadata.len()),
            );
        }
        // One that a plugin only keeps for its next turn is free.
        ask_to_release(Held::Thread(thread), self.places);
        match writer_lock::check_unlocked(&home, thread) {
            Err(error) if error.kind() == Kind::Busy => {
                self.report.warn("thread lock", error.message());
            }
            Ok(()) => {
                match writer_lock::open_writer(&rollout, (metadata.dev(), metadata.ino())) {
                    // Before 0.147 an open file is the only trace.
                    Ok(Some(pid)) => self.report.warn(
                        "thread lock",
                        format!("process {pid} has the rollout open for writing; try again when its turn is over"),
                    ),
                    Ok(None) => self.report.ok("thread lock", "free"),
                    Err(error) => self.report.warn("thread lock", error.message()),
                }
            }
            Err(error) => self.report.fail("thread lock", error.message()),
        }
    }

    /// A thread that codex's index has at another path than where its rollout was found: the codex home was moved
    /// or copied. Measured on 0.135, 0.148, 0.155 and 0.169. Says whether codex goes on with the rollout found.
    fn rollout_elsewhere(&mut self, home: &Path, rollout: &Path, other: &Path) -> bool {
        let shown = rollout.display();
        let index = format!(
            "run, while no codex runs: rm {}/state_*.sqlite*, which codex makes anew from its threads",
            shell::quote_path(&home.to_string_lossy())
        );
        if other.exists() {
            // All of them write there, and nobody sees it here.
            let message = format!(
                "codex goes on in {}, where its index has the thread, and not in {shown}: the codex home is a copy, and the tool calls of its turns are neither told nor consumed; {index}",
                other.display()
            );
            self.report.warn("rollout", message);
            return false;
        }
        let what = format!(
            "{shown} is not where codex's index has it, {}, which is gone: the codex home was moved",
            other.display()
        );
        match self.version {
            Some(version) if version <= FINDS_BY_NAME => {
                let message = format!("{what}, and this version finds it all the same");
                self.report.ok("rollout", message);
                true
            }
            Some(version) if version >= TRUSTS_INDEX => {
                self.lost_thread(&format!("{what}, and codex does not find it ({index})"));
                false
            }
            _ => {
                self.lost_thread(&format!("{what}, and codex may not find it ({index})"));
                false
            }
        }
    }

    /// A variable as codex will see it.
    fn variable(&self, name: &str) -> Option<OsString> {
        let set = match self.config.env.get(name) {
            Some(value) => Some(value.into()),
            None => std::env::var_os(name),
        };
        set.filter(|value: &OsString| !value.is_empty())
    }

    /// Asks codex, in the environment that a turn gives it.
    fn ask(
        &self,
        program: &Path,
        arguments: &[impl AsRef<std::ffi::OsStr>],
    ) -> crate::error::Result<CommandOutput> {
        let mut command = find::in_environment(program, &self.config, self.places);
        command.args(arguments);
        ask(command, LIMIT, self.cancel)
    }

    /// How to call this codex in a shell, for the same threads and login.
    fn codex_by_hand(&self, program: &Path) -> String {
        let real = |path: &Path| native_beside(path).or_else(|| fs::canonicalize(path).ok());
        let same = |found: &PathBuf| real(found).is_some() && real(found) == real(program);
        let by_name = find::in_path("codex", &self.places.search_path(&self.config));
        let program = match by_name.filter(same) {
            Some(_) => "codex".to_owned(),
            None => shell::quote_path(&program.to_string_lossy()),
        };
        match self.places.named_codex_home(&self.config) {
            Some(home) => format!(
                "CODEX_HOME={} {program}",
                shell::quote_path(&home.to_string_lossy())
            ),
            None => program,
        }
    }

    fn other_binary(&self) -> String {
        format!("set \"binary\" in {}", self.places.config_file().display())
    }

    /// How to set keys of the config, and variables in its `env`: what to write into the file that is there, or
    /// the command that makes one.
    fn set(&self, keys: &[(&str, &str)], variables: &[(&str, &str)]) -> String {
        let pairs = |pairs: &[(&str, &str)]| {
            let pairs = pairs
                .iter()
                .map(|(key, value)| format!("\"{key}\": {}", json(value)));
            pairs.collect::<Vec<_>>().join(", ")
        };
        let (mut text, variables) = (pairs(keys), pairs(variables));
        let extends = self.config_is_there && !self.config.env.is_empty();
        if !variables.is_empty() {
            let gap = if text.is_empty() { "" } else { ", " };
            text = if extends {
                format!("{text}{gap}{variables} in \"env\"")
            } else {
                format!("{text}{gap}\"env\": {{{variables}}}")
            };
        }
        let file = self.places.config_file();
        if self.config_is_there {
            return format!("set {text} in {}", file.display());
        }
        format!(
            "run: (umask 077 && mkdir -p {} && printf '%s\\n' {} > {})",
            shell::quote_path(&self.places.plugin_directory().to_string_lossy()),
            shell::quote_path(&format!("{{{text}}}")),
            shell::quote_path(&file.to_string_lossy())
        )
    }
}

/// A call of codex that asks nothing of a model.
fn no_call() -> TurnArgs<'static> {
    TurnArgs {
        thread: None,
        model: "",
        system: None,
        system_in_thread: false,
        images: &[],
        schema: None,
        reasoning_effort: None,
        prompt: "",
        tool_args: &[],
        workspace: Path::new("/"),
    }
}

/// The settings and features among `extra_args`, which every subcommand of codex takes.
fn settings(extra_args: &[String]) -> Vec<&str> {
    let mut found = Vec::new();
    let mut arguments = extra_args.iter().map(String::as_str);
    while let Some(argument) = arguments.next() {
        if matches!(argument, "-c" | "--config" | "--enable" | "--disable") {
            found.push(argument);
            found.extend(arguments.next());
        } else if ["--config=", "--enable=", "--disable="]
            .iter()
            .any(|start| argument.starts_with(start))
            || (argument.starts_with("-c") && !argument.starts_with("--"))
        {
            found.push(argument);
        }
    }
    found
}

/// Where codex's index has the rollout of `thread`, if that is another path than `rollout`.
///
/// The index is an SQLite database. In a row of it the path follows the thread's id, so that neither SQLite nor its
/// lock is needed; a page that is out of use can have an old path, which is why the right one anywhere is enough.
fn indexed_elsewhere(home: &Path, rollout: &Path, thread: &str) -> Option<PathBuf> {
    const MOST: u64 = 64 << 20;
    let start = format!("{thread}/");
    let end = format!("{thread}.jsonl");
    let mut found = None;
    for entry in fs::read_dir(home).ok()?.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_index = name.starts_with("state_")
            && (name.ends_with(".sqlite") || name.ends_with(".sqlite-wal"));
        if !is_index || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let mut bytes = Vec::new();
        let file = open_regular_file(&entry.path()).ok()?;
        file.take(MOST).read_to_end(&mut bytes).ok()?;
        for at in memchr::memmem::find_iter(&bytes, start.as_bytes()) {
            let path = &bytes[at + thread.len()..];
            let path = &path[..path.len().min(4096)];
            let Some(length) = memchr::memmem::find(path, end.as_bytes()) else {
                continue;
            };
            let path = Path::new(std::ffi::OsStr::from_bytes(&path[..length + end.len()]));
            // Packed: the index keeps the plain name.
            if same_file(path, rollout) || same_file(path, &rollout.with_extension("")) {
                return None;
            }
            found = Some(path.to_owned());
        }
    }
    found
}

/// codex's config, which may lie behind a link; nothing where it cannot be read, or is not a file.
fn read_config(file: &Path) -> String {
    const MOST: u64 = 16 << 20;
    let mut text = String::new();
    let opened = fs::canonicalize(file).and_then(|file| open_regular_file(&file));
    // What codex makes of it codex says.
    let _ = opened.and_then(|file| file.take(MOST).read_to_string(&mut text));
    text
}

/// Are these two names of one file?
fn same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).ok().map(|it| (it.dev(), it.ino()));
    one == other || (identity(one).is_some() && identity(one) == identity(other))
}

/// Does a rollout that is not packed begin with the record of this thread? What cannot be read does.
fn begins_with_meta(rollout: &Path, thread: &str) -> bool {
    const MOST: u64 = 4096;
    if rollout.extension().is_some_and(|end| end == "zst") {
        return true;
    }
    let mut head = Vec::new();
    let read = open_regular_file(rollout).and_then(|file| file.take(MOST).read_to_end(&mut head));
    let first = head.split(|byte| *byte == b'\n').next().unwrap_or(&head);
    let has = |text: &str| memchr::memmem::find(first, text.as_bytes()).is_some();
    read.is_err() || (first.starts_with(b"{") && has("\"session_meta\"") && has(thread))
}

/// Why codex cannot open a rollout whose last record has no number where the records before have one: something
/// old has appended to it.
fn unopened(rollout: &Path) -> Option<&'static str> {
    const TAIL: u64 = 4 << 20;
    if rollout.extension().is_some_and(|end| end == "zst") {
        return None;
    }
    let mut file = open_regular_file(rollout).ok()?;
    let mut head = [0; 4096];
    let length = file.read(&mut head).ok()?;
    let first = head[..length].split(|byte| *byte == b'\n').next()?;
    // Only the first record's own keys stand before its payload.
    let own = memchr::memmem::find(first, b"\"payload\"").unwrap_or(first.len());
    memchr::memmem::find(&first[..own], b"\"ordinal\":")?;
    let start = file.metadata().ok()?.len().saturating_sub(TAIL);
    file.seek(io::SeekFrom::Start(start)).ok()?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail).ok()?;
    let last = tail.trim_ascii_end().rsplit(|byte| *byte == b'\n').next()?;
    let record: std::collections::HashMap<String, serde::de::IgnoredAny> =
        serde_json::from_slice(last).ok()?;
    (!record.contains_key("ordinal")).then_some("its last record has no ordinal")
}

/// What is good about codex's directory, or what is wrong with it.
fn look_at_home(places: &Paths, home: &Path, is_named: bool) -> Result<String, String> {
    let shown = home.display();
    let own = ownership::in_home(places, ".codex").filter(|own| own != home);
    let instead = match own {
        Some(own) => format!(
            "choose a directory of your own: set \"codex_home\" in the config to {}",
            json(&own.to_string_lossy())
        ),
        // It is this one that cannot be used.
        None => "choose a directory of your own: set HOME, or \"codex_home\" in the config, to one"
            .to_owned(),
    };
    match fs::metadata(home) {
        Ok(found) if !found.is_dir() => Err(format!(
            "{shown} is not a directory; set CODEX_HOME, or \"codex_home\" in the config, to one"
        )),
        Ok(_) if !os::has_access(home, ALL_ACCESS) => Err(format!(
            "{shown} cannot be read and written; {}",
            open_up(places, home, &instead)
        )),
        Ok(_) => match fs::read_dir(home.join("sessions")) {
            Ok(_) => Ok(format!("{shown}")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok(format!("{shown}, no threads yet"))
            }
            Err(error) => Err(format!(
                "cannot read {shown}/sessions, without which no tool call can be told: {}; {}",
                reason(&error),
                open_up(places, &home.join("sessions"), &instead)
            )),
        },
        // Only its own default is made by codex, with all that it lies in.
        Err(error)
            if !is_named
                && matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
        {
            let parent = home.ancestors().skip(1).find(|parent| parent.exists());
            let parent = parent.unwrap_or(home);
            if parent.is_dir() && os::has_access(parent, Access::WRITE_OK | Access::EXEC_OK) {
                Ok(format!("{shown} is not there yet, codex makes it"))
            } else {
                Err(format!(
                    "{shown} is not there and cannot be made in {}; {instead}",
                    parent.display()
                ))
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(format!(
            "{shown} is not there, and codex makes none but ~/.codex; {}",
            match ownership::may_be_made(places, home) {
                true => format!(
                    "run: mkdir -p {}",
                    shell::quote_path(&home.to_string_lossy())
                ),
                false => instead,
            }
        )),
        Err(error) => Err(format!("cannot look at {shown}: {}", reason(&error))),
    }
}

/// What is good about a workspace, or what is wrong with it.
fn look_at_workspace(places: &Paths, workspace: &Path) -> Result<String, String> {
    let shown = workspace.display();
    match fs::metadata(workspace) {
        Ok(found) if !found.is_dir() => {
            Err(format!("{shown} is not a directory; give another one"))
        }
        Ok(_) if !os::has_access(workspace, ALL_ACCESS) => Err(format!(
            "{shown} cannot be read and written; {}",
            open_up(places, workspace, &other_workspace(places))
        )),
        Ok(_) => Ok(format!("{shown}")),
        Err(_) if workspace.is_symlink() => Err(format!(
            "{shown} is a link that leads nowhere; give another one"
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            could_be_made(places, workspace, &other_workspace(places))
        }
        Err(error) => Err(format!("cannot look at {shown}: {}", reason(&error))),
    }
}

/// What to do about a workspace that is not this user's to change.
fn other_workspace(places: &Paths) -> String {
    match ownership::in_home(places, "workspace") {
        Some(own) => format!(
            "choose a directory of your own as the workspace, such as {}",
            shell::quote_path(&own.to_string_lossy())
        ),
        None => "choose a directory of your own as the workspace".to_owned(),
    }
}

/// Whether a directory that is not there could be made.
fn could_be_made(places: &Paths, directory: &Path, instead: &str) -> Result<String, String> {
    let shown = directory.display();
    let parent = directory
        .ancestors()
        .skip(1)
        .find(|directory| directory.exists());
    let parent = parent.unwrap_or(Path::new("/"));
    if !parent.is_dir() {
        Err(format!(
            "{shown} cannot be made, since {} is not a directory; give another one",
            parent.display()
        ))
    } else if !os::has_access(parent, Access::WRITE_OK | Access::EXEC_OK) {
        Err(format!(
            "{shown} is not there and cannot be made in {}; {}",
            parent.display(),
            open_up(places, parent, instead)
        ))
    } else {
        Ok(format!("{shown} is not there yet, the first turn makes it"))
    }
}

/// The command that brings a codex where there is none: who is not root cannot install for everybody.
fn install() -> String {
    let place = match os::user_id() {
        0 => "",
        _ => "--prefix ~/.local ",
    };
    format!("run: npm install -g {place}{PACKAGE}")
}

/// The command that brings a newer codex to where this one is.
fn update(program: &Path) -> String {
    let whole = fs::canonicalize(program).unwrap_or_else(|_| program.to_owned());
    let whole = whole.to_string_lossy();
    let Some((before, _)) = whole.split_once("/node_modules/@openai/") else {
        return install();
    };
    match before.strip_suffix("/lib") {
        Some(prefix) => format!(
            "run: npm install -g --prefix {} {PACKAGE}",
            shell::quote_path(prefix)
        ),
        None => format!(
            "run: npm install --prefix {} {PACKAGE}",
            shell::quote_path(before)
        ),
    }
}

/// The program that npm's `codex`, a script for node, starts, and which needs no node.
///
/// It is looked for in npm's own packages alone: in `node_modules/@openai/codex` of the script, and in the
/// `codex-linux-…` beside it or below it. A script that lies elsewhere, in a `bin` of many users' for one, has
/// neighbours that anybody may have put there.
fn native_beside(script: &Path) -> Option<PathBuf> {
    let script = fs::canonicalize(script).ok()?;
    let package = script.parent()?.parent()?;
    if !script.ends_with("node_modules/@openai/codex/bin/codex.js") {
        return None;
    }
    let children = |directory: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        paths
    };
    let is_platform = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default();
        name.as_encoded_bytes().starts_with(b"codex-linux-")
    };
    let platforms = [
        package.join("node_modules/@openai"),
        package.parent()?.to_owned(),
    ];
    platforms
        .iter()
        .flat_map(|directory| children(directory).into_iter().filter(is_platform))
        .chain([package.to_owned()])
        .flat_map(|package| children(&package.join("vendor")))
        .map(|vendor| vendor.join("bin/codex"))
        .find(|program| program.is_file() && os::has_access(program, Access::EXEC_OK))
}

/// What a script with `#!/usr/bin/env NAME` wants to be run by.
fn interpreter(script: &Path) -> Option<String> {
    let mut head = [0; 256];
    let length = fs::File::open(script).ok()?.read(&mut head).ok()?;
    let head = std::str::from_utf8(&head[..length]).ok()?;
    let mut words = head.lines().next()?.strip_prefix("#!")?.split_whitespace();
    words.next()?.ends_with("/env").then_some(())?;
    words.find(|word| !word.starts_with('-')).map(str::to_owned)
}

fn first_line(text: &str) -> Option<&str> {
    text.lines().map(str::trim).find(|line| !line.is_empty())
}

/// The string at this key of a TOML file, as far as lines of the form `key = "value"` tell. Whatever is
/// written in a rarer form is taken as not there.
fn toml_text(text: &str, wanted: &str) -> Option<String> {
    let plain = |key: &str| key.replace(['"', '\'', ' ', '\t'], "");
    let mut table = String::new();
    for line in text.lines() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[') {
            table = plain(name.split(']').next().unwrap_or_default()) + ".";
        } else if let Some((key, value)) = line.split_once('=')
            && format!("{table}{}", plain(key)) == wanted
        {
            let value = value.trim();
            let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''))?;
            return value[1..].split(quote).next().map(str::to_owned);
        }
    }
    None
}

/// Is this key of a TOML file `true`, in the same plain forms?
fn toml_flag(text: &str, wanted: &str) -> bool {
    let plain = |key: &str| key.replace(['"', '\'', ' ', '\t'], "");
    let mut table = String::new();
    let mut is = false;
    for line in text.lines() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[') {
            table = plain(name.split(']').next().unwrap_or_default()) + ".";
        } else if let Some((key, value)) = line.split_once('=')
            && format!("{table}{}", plain(key)) == wanted
        {
            is = value.split('#').next().unwrap_or_default().trim() == "true";
        }
    }
    is
}

/// A text as JSON.
fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_codexs_config_are_found() {
        let text = "# model_provider = \"no\"\nmodel_provider = \"loop back\" # yes\n\n[model_providers.'loop']\nname=1\nenv_key = 'KEY'\n[other]\nmodel = \"x\"\n";
        for (key, expected) in [
            ("model_provider", Some("loop back")),
            ("model_providers.loop.env_key", Some("KEY")),
            ("other.model", Some("x")),
            ("model", None),
            ("model_providers.loop.name", None),
        ] {
            assert_eq!(toml_text(text, key).as_deref(), expected, "{key}");
        }
    }
}
