//! How codex is told of an agent's MCP server: its name, codex's arguments that configure it for one run, and the entry
//! that `codex mcp add` writes where the config asks for that.
//!
//! An entry in codex's config is shared: every agent's codex starts the server, sees its tools and could act in that
//! agent's name. So the entry alone grants nothing: a turn's own codex also gets the turn's mark, and the bridge
//! refuses an `mcp-host` without it. And because a refused server still costs a start, the entries of other agents are
//! disabled for the turn, including those that another mode has left.

use super::{BridgeSettings, RegistrationMode, failed};
use crate::codex::SERVER_PREFIX;
use crate::codex::ask::{CommandOutput, ask};
use crate::codex::mcp_servers::ConfiguredServer;
use crate::codex::toml;
use crate::error::{Error, Kind, Result};
use crate::json::truncate;
use crate::os::{self, CancelToken, Directory};
use std::ffi::OsString;
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// The most bytes of an agent's id in a name. codex 0.135 allows 64 bytes for `mcp__plexum_host_<id>` and the tool's
/// name together, and replaces a part of longer names by a hash.
const ID_MAX: usize = 24;
/// codex's limit for the start of a server. Ours responds in milliseconds, but two hundred codexes can start at once,
/// and a required server that is late fails the turn.
const STARTUP_TIMEOUT_SECS: u32 = 60;
/// How long `codex mcp` may take; it takes 0.02 s.
const CODEX_WAIT: Duration = Duration::from_secs(30);
/// The most that is read of codex's config, in bytes.
const CONFIG_MAX: u64 = 16 * 1024 * 1024;
/// The variable that marks an `mcp-host` as started by a turn's own codex.
pub(super) const TURN_VARIABLE: &str = "PLEXUM_MCP_TURN";

/// The part of the names of an agent's server and socket that stands for its id: the same in every turn, and different
/// for different ids. An id that cannot be used as it is is shortened and gets a hash.
pub(super) fn short_id(agent_id: &str) -> String {
    let kept: String = agent_id
        .chars()
        .map(|character| match character {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '-' => character,
            _ => '_',
        })
        .collect();
    let hash = format!("{:08x}", hash(agent_id));
    // An id that ends like a hash could collide with the short form of another id.
    let like_a_hash = kept.len() > 8
        && kept.as_bytes()[kept.len() - 9] == b'-'
        && kept[kept.len() - 8..]
            .bytes()
            .all(|digit| digit.is_ascii_hexdigit());
    if kept == agent_id && !kept.is_empty() && kept.len() <= ID_MAX && !like_a_hash {
        return kept;
    }
    let kept = truncate(&kept, ID_MAX - 9);
    format!("{}-{hash}", if kept.is_empty() { "agent" } else { kept })
}

/// FNV-1a with its halves folded: unlike std's hash, the same in every version of this program.
fn hash(text: &str) -> u32 {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash ^ (hash >> 32)) as u32
}

/// The name of an agent's server.
pub(super) fn server_name(agent_id: &str) -> String {
    format!("{SERVER_PREFIX}{}", short_id(agent_id))
}

/// The command line by which codex starts a server.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ServerEntry {
    name: String,
    command: String,
    args: Vec<String>,
}

impl ServerEntry {
    /// The server of this agent: `executable` as `mcp-host` for this socket.
    pub(super) fn new(agent_id: &str, executable: &Path, socket: &Path) -> Result<ServerEntry> {
        let text = |path: &Path| {
            path.to_str().map(str::to_owned).ok_or_else(|| {
                failed(format!(
                    "cannot pass the path '{}' to codex",
                    path.display()
                ))
                .hint("it is not valid UTF-8")
            })
        };
        Ok(ServerEntry {
            name: server_name(agent_id),
            command: text(executable)?,
            args: vec![
                "mcp-host".to_owned(),
                "--socket".to_owned(),
                text(socket)?,
                "--agent-id".to_owned(),
                agent_id.to_owned(),
            ],
        })
    }

    /// codex's arguments for the turn: this server enabled, every other agent's disabled.
    pub(super) fn arguments(
        &self,
        turn: Option<&str>,
        config: &str,
        tool_timeout: Duration,
    ) -> Vec<OsString> {
        let args: Vec<String> = self
            .args
            .iter()
            .map(|argument| toml::string(argument))
            .collect();
        let env = match turn {
            Some(turn) => format!("env={{{TURN_VARIABLE}={}}},", toml::string(turn)),
            None => String::new(),
        };
        // `required`: without it codex from 0.147 on does not wait for the tools. The approval mode: without it every
        // call fails, since `codex exec` cannot ask for approval (0.135 reports "user cancelled MCP tool call", 0.169
        // "requires approval, but approval policy is never").
        let mut values = vec![format!(
            "mcp_servers.{}={{command={},args=[{}],{env}required=true,startup_timeout_sec={STARTUP_TIMEOUT_SECS},tool_timeout_sec={},default_tools_approval_mode=\"approve\"}}",
            self.name,
            toml::string(&self.command),
            args.join(","),
            tool_timeout.as_secs()
        )];
        // With a command, so that it is a valid entry even if the name was only in a comment or has been removed
        // meanwhile: `enabled` alone would be a config error then.
        values.extend(others(config, &self.name).into_iter().map(|name| {
            format!(
                "mcp_servers.{name}={{command={},enabled=false}}",
                toml::string(&self.command)
            )
        }));
        values
            .into_iter()
            .flat_map(|value| [OsString::from("-c"), OsString::from(value)])
            .collect()
    }

    /// Adds this server to codex's config by `codex mcp add`, unless it is there already.
    fn register(&self, settings: &BridgeSettings, config: &str) -> Result<()> {
        if names(config).contains(&self.name.as_str()) && self.is_registered(settings) {
            return Ok(());
        }
        let mut command = codex(settings);
        command
            .args(["mcp", "add"])
            .arg(&self.name)
            .arg("--")
            .arg(&self.command)
            .args(&self.args);
        let ended = run(command, settings)?;
        if ended.success {
            return Ok(());
        }
        Err(failed(format!(
            "cannot register the server '{}' with codex: {}",
            self.name,
            last_error_line(&ended)
        )))
    }

    /// Whether codex's entry of this name is this server.
    fn is_registered(&self, settings: &BridgeSettings) -> bool {
        let mut command = codex(settings);
        command.args(["mcp", "get", "--json"]).arg(&self.name);
        // If `get` fails for any reason, `add` writes the entry.
        run(command, settings)
            .ok()
            .filter(|ended| ended.success)
            .and_then(|ended| serde_json::from_str::<ConfiguredServer>(&ended.stdout).ok())
            .is_some_and(|entry| {
                entry.transport.command == self.command && entry.transport.args == self.args
            })
    }
}

/// A command of codex in its environment.
fn codex(settings: &BridgeSettings) -> Command {
    let mut command = Command::new(&settings.codex);
    command.envs(settings.codex_env.iter().map(|(name, value)| (name, value)));
    command
}

/// Registers the server if the mode requires it, and returns the config after that.
pub(super) fn prepare(server: &ServerEntry, settings: &BridgeSettings) -> Result<String> {
    let path = settings.codex_home.join("config.toml");
    if settings.mode == RegistrationMode::Turn {
        return read(&path);
    }
    // codex does not lock its config: of eight concurrent adds four to six survive. Our lock is on its directory, so
    // that no lock file is created there.
    let _lock = lock(&settings.codex_home, &settings.cancel)?;
    server.register(settings, &read(&path)?)?;
    read(&path)
}

fn lock(directory: &Path, cancel: &CancelToken) -> Result<Directory> {
    let cannot = |error: std::io::Error| {
        Error::os(
            Kind::McpFailed,
            format!("cannot lock codex's directory '{}'", directory.display()),
            error,
        )
    };
    // A home that is a link to one is none the worse.
    let opened = Directory::open_following(directory).map_err(cannot)?;
    match os::lock_file_until(opened.as_file(), Instant::now() + CODEX_WAIT, Some(cancel)) {
        Ok(true) => Ok(opened),
        Ok(false) => {
            let message = format!(
                "another process holds the lock on '{}'",
                directory.display()
            );
            Err(Error::new(Kind::Busy, message))
        }
        Err(error) => Err(cannot(error)),
    }
}

/// codex's config as text; codex itself reports one that is unreadable or not text.
fn read(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    if let Ok(file) = os::open_options().read(true).open(path) {
        let _ = file.take(CONFIG_MAX).read_to_end(&mut bytes);
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Every name in the config that one of our servers could have, even in comments and values: disabling a missing server
/// does no harm, and no TOML parser is needed.
fn names(config: &str) -> Vec<&str> {
    let mut names: Vec<&str> = config
        .match_indices(SERVER_PREFIX)
        .map(|(at, _)| {
            let rest = &config[at..];
            let end = rest.find(|character: char| {
                !(character.is_ascii_alphanumeric() || matches!(character, '_' | '-'))
            });
            &rest[..end.unwrap_or(rest.len())]
        })
        .filter(|name| name.len() > SERVER_PREFIX.len())
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn others<'a>(config: &'a str, own: &str) -> Vec<&'a str> {
    let mut names = names(config);
    names.retain(|name| *name != own);
    names
}

/// Runs a `codex mcp …` with a time limit.
fn run(command: Command, settings: &BridgeSettings) -> Result<CommandOutput> {
    ask(command, CODEX_WAIT, &settings.cancel).map_err(|error| failed(error.message()))
}

/// The last line of a failed command's stderr.
fn last_error_line(ended: &CommandOutput) -> &str {
    ended
        .stderr
        .lines()
        .rev()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or("no reason given")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    // fault: 47
    #[test]
    fn server_names_are_stable_short_and_unique() {
        for (id, expected) in [
            ("alice", "plexum-host-alice"),
            ("Alice_1-b", "plexum-host-Alice_1-b"),
            ("alice/1", "plexum-host-alice_1-ef45c0eb"),
            ("alice.1", "plexum-host-alice_1-ef4c76ce"),
            ("", "plexum-host-agent-4fd0bfc1"),
            ("你好", "plexum-host-__-eaf3ce22"),
        ] {
            assert_eq!(server_name(id), expected, "{id:?}");
        }
        let ids = [
            "a/b",
            "a.b",
            "a b",
            "a_b",
            "A_b",
            "a-b",
            "a\nb",
            "a\"b",
            "_",
            "",
            "agent",
            " ",
            "é",
            "ё",
            "0123456789012345678901234",
            "0123456789012345678901235",
            "012345678901234567890123",
        ];
        let mut names: Vec<String> = ids.iter().map(|id| server_name(id)).collect();
        // The short forms, used as ids.
        for id in ids {
            let shortened = short_id(id);
            if shortened != id && !ids.contains(&shortened.as_str()) {
                names.push(server_name(&shortened));
            }
        }
        let different: HashSet<&String> = names.iter().collect();
        assert_eq!(different.len(), names.len(), "{names:?}");
        for name in &names {
            assert!(name.len() <= SERVER_PREFIX.len() + ID_MAX, "{name}");
            assert!(
                name.bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
            );
        }
    }

    #[test]
    fn locks_codex_home_only_if_it_is_a_directory() {
        let base = tempfile::tempdir().unwrap();
        let cancel = CancelToken::new().unwrap();
        let (home, link) = (base.path().join("home"), base.path().join("link"));
        std::fs::create_dir(&home).unwrap();
        std::os::unix::fs::symlink(&home, &link).unwrap();
        let held = lock(&link, &cancel).unwrap();
        cancel.cancel();
        assert_eq!(lock(&home, &cancel).unwrap_err().kind(), Kind::Busy);
        drop(held);
        lock(&home, &cancel).unwrap();
        let file = base.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(
            lock(&file, &cancel).unwrap_err().message(),
            format!(
                "cannot lock codex's directory '{}': Not a directory",
                file.display()
            )
        );
    }

    #[test]
    fn quotes_every_character_in_arguments() {
        let server = ServerEntry::new(
            "a\"b\\c\n\u{7f}é",
            Path::new("/opt/my \"tools\"/plexum-openai"),
            Path::new("/run/x.sock"),
        )
        .unwrap();
        let name = server_name("a\"b\\c\n\u{7f}é");
        let config = "[mcp_servers.plexum-host-bob]\n# plexum-host-, plexum-host-old.\n[mcp_servers.\"plexum-host-bob\".env]\n";
        assert_eq!(
            server.arguments(Some("7"), config, Duration::from_secs(9)),
            [
                "-c",
                &format!(
                    r#"mcp_servers.{name}={{command="/opt/my \"tools\"/plexum-openai",args=["mcp-host","--socket","/run/x.sock","--agent-id","a\"b\\c\n\u007Fé"],env={{PLEXUM_MCP_TURN="7"}},required=true,startup_timeout_sec=60,tool_timeout_sec=9,default_tools_approval_mode="approve"}}"#
                ),
                "-c",
                r#"mcp_servers.plexum-host-bob={command="/opt/my \"tools\"/plexum-openai",enabled=false}"#,
                "-c",
                r#"mcp_servers.plexum-host-old={command="/opt/my \"tools\"/plexum-openai",enabled=false}"#,
            ]
        );
        let own = format!("[mcp_servers.{name}]\nplexum-host-");
        assert_eq!(
            server.arguments(None, &own, Duration::from_secs(9)).len(),
            2,
            "its own stays on"
        );
    }
}
