//! The daemon's tools: what the tests of its parts share, a lab, a turn that lends tools, an `mcp-host`.

mod calls;
mod host;
mod model;
mod socket;

use crate::support::{Cli, Daemon, Lab, cli, codex, method, wait_until};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

/// A prompt of this agent with these tools.
fn prompt(lab: &Runtime, agent: &str, tools: &[&str]) -> Value {
    let mut params = Daemon::prompt(lab, "go");
    params["agent"] = json!({"id": agent, "workspace": lab.path(agent)});
    params["request"]["tools"] = tools
        .iter()
        .map(|name| {
            json!({"name": name, "description": format!("does {name}"),
                "input_schema": {"type": "object", "properties": {"to": {"type": "string"}}}})
        })
        .collect();
    params
}

/// Answers with the name and the arguments of each call.
fn echo(daemon: &mut Daemon) {
    daemon.on_tool_call(|params| {
        let told = format!(
            "{} got {}",
            params["name"].as_str().unwrap(),
            params["arguments"]
        );
        Some(Ok(
            json!({"content": [{"type": "text", "text": told}], "is_error": false}),
        ))
    });
}

/// The sockets of a lab whose paths are short enough for its profile.
/// But for the one at which others ask for a workspace that the plugin keeps.
fn sockets(lab: &Lab) -> Vec<PathBuf> {
    let entries = fs::read_dir(lab.path("runtime/plexum-openai"));
    entries
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| !path.to_string_lossy().contains("/control-"))
        .collect()
}

/// A lab whose sockets have a directory of their own, however deep the checkout lies.
struct Runtime {
    lab: Lab,
    short: tempfile::TempDir,
}

impl Runtime {
    fn new(mut lab: Lab) -> Runtime {
        let short = tempfile::Builder::new()
            .prefix("pxo")
            .tempdir_in("/tmp")
            .unwrap();
        lab.set_env("XDG_RUNTIME_DIR", short.path());
        std::os::unix::fs::symlink(short.path(), lab.path("runtime")).unwrap();
        Runtime { lab, short }
    }

    /// Ends the plugin and sees that no socket is left, and no process.
    #[track_caller]
    fn assert_clean(&self, daemon: Daemon) {
        if !self.lab.keeps_servers() {
            assert_eq!(
                sockets(&self.lab),
                [""; 0].map(PathBuf::from),
                "while it runs"
            );
        }
        drop(daemon);
        assert_eq!(sockets(&self.lab), [""; 0].map(PathBuf::from));
        self.lab.assert_quiet();
    }
}

impl std::ops::Deref for Runtime {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.lab
    }
}

/// A turn of the fake codex that lends tools and goes on until [`Held::let_go`], and its socket.
pub(crate) struct Held {
    lab: Runtime,
    pub(crate) daemon: Daemon,
    id: i64,
    socket: PathBuf,
}

impl Held {
    pub(crate) fn new(tools: &[&str]) -> Held {
        Held::with(Runtime::new(Lab::fake(Value::Null)), tools)
    }

    fn with(lab: Runtime, tools: &[&str]) -> Held {
        lab.script(json!([
            "read_stdin",
            {"event": {"type": "thread.started", "thread_id": "{thread}"}},
            {"event": {"type": "turn.started"}},
            {"start_below": lab.short.path().join("below")},
            {"touch": lab.path("started")},
            {"wait_for": lab.path("go")},
            {"event": {"type": "turn.completed", "usage": {"input_tokens": 1, "output_tokens": 1}}},
        ]));
        let mut daemon = Daemon::start(&lab);
        let id = daemon.request(method::STREAM, prompt(&lab, "alice", tools));
        wait_until("the turn to start", || lab.path("started").exists());
        let runs = lab.fake_runs();
        let args: Vec<&str> = runs[0]["argv"]
            .as_array()
            .unwrap()
            .iter()
            .map(|arg| arg.as_str().unwrap())
            .collect();
        let value = args
            .iter()
            .find(|arg| arg.starts_with("mcp_servers.plexum-host-alice="))
            .expect("the server is lent");
        let (_, rest) = value
            .split_once("\"--socket\",\"")
            .expect("with its socket");
        let socket = PathBuf::from(rest.split('"').next().unwrap());
        Held {
            lab,
            daemon,
            id,
            socket,
        }
    }

    pub(crate) fn args(&self) -> [String; 5] {
        let socket = self.socket.to_str().unwrap();
        ["mcp-host", "--socket", socket, "--agent-id", "alice"].map(str::to_owned)
    }

    /// The command line of an `mcp-host` that this turn's codex starts: only such a one is admitted.
    pub(crate) fn host_below(&self) -> Vec<String> {
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        let mut line = vec![
            text(codex::fake()),
            "--below".to_owned(),
            text(self.lab.short.path().join("below")),
            env!("CARGO_BIN_EXE_plexum-openai").to_owned(),
        ];
        line.extend(self.args());
        line
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Runs the `mcp-host` of this turn as any other process of the user would.
    pub(crate) fn host_outside(&self) -> cli::Output {
        Cli::new(&self.lab, self.args()).run()
    }

    /// Lets the turn end.
    pub(crate) fn let_go(mut self) {
        fs::write(self.lab.path("go"), "").unwrap();
        assert_eq!(self.daemon.finish(self.id).stop_reason(), "end_turn");
        self.lab.assert_clean(self.daemon);
    }
}

/// An `mcp-host` and what an MCP client does with it.
struct Host {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Host {
    fn start(held: &Held) -> Host {
        let line = held.host_below();
        let mut child = Command::new(&line[0])
            .args(&line[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut host = Host {
            stdin: child.stdin.take(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            child,
        };
        host.send(&json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
            "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}}));
        assert_eq!(host.line()["result"]["protocolVersion"], "2025-06-18");
        host.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}));
        host
    }

    fn send(&mut self, message: &Value) {
        let stdin = self.stdin.as_mut().expect("stdin is open");
        stdin.write_all(format!("{message}\n").as_bytes()).unwrap();
    }

    fn call(&mut self, id: usize, tool: &str) {
        self.send(
            &json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": tool}}),
        );
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    /// Waits for its end: the exit status and what it said on stderr.
    #[track_caller]
    fn end(mut self, limit: Duration) -> (i32, String) {
        let status = cli::wait(&mut self.child, limit).code().unwrap_or(-1);
        let mut said = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        (status, said)
    }
}
