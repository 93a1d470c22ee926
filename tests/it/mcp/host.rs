//! `mcp-host`, the process that codex starts: how long it lives, and what it says by hand.

use super::{Held, Host};
use crate::support::{Cli, LIMIT, Lab};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

#[test]
fn mcp_host_ends_with_either_side() {
    let held = Held::new(&["never"]);
    // codex closes stdin, in the middle of a call too.
    let mut host = Host::start(&held);
    host.call(1, "never");
    host.stdin = None;
    let closed = Instant::now();
    assert_eq!(host.end(LIMIT), (0, String::new()));
    assert!(
        closed.elapsed() < Duration::from_secs(1),
        "{:?}",
        closed.elapsed()
    );
    // The turn ends, or the whole plugin at once.
    let host = Host::start(&held);
    held.daemon.signal(Signal::KILL);
    let killed = Instant::now();
    let Held {
        lab, mut daemon, ..
    } = held;
    daemon.exit(LIMIT);
    // The guard ends everything below codex, this process too: whether it notices the end of the turn before that
    // is a race, so its status is not compared.
    host.end(LIMIT);
    assert!(
        killed.elapsed() < Duration::from_secs(1),
        "{:?}",
        killed.elapsed()
    );
    lab.assert_quiet();
}

#[test]
fn mcp_host_reports_usage_errors() {
    let lab = Lab::fake(Value::Null);
    let dir = tempfile::Builder::new()
        .prefix("pxo")
        .tempdir_in("/tmp")
        .unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    drop(UnixListener::bind(path("dead")).unwrap());
    fs::write(path("file"), "").unwrap();
    let silent = UnixListener::bind(path("silent.sock")).unwrap();
    let needs = "'mcp-host' needs '--socket' or PLEXUM_MCP_SOCKET; codex starts it with both, for a turn that has tools";
    let needs_id = "'mcp-host' needs '--agent-id' or PLEXUM_MCP_AGENT_ID; codex starts it with both, for a turn that has tools";
    let long = format!("/tmp/{}", "x".repeat(200));
    for (args, env, status, message) in [
        (vec![], vec![], 2, needs.to_owned()),
        (vec!["--agent-id", "a"], vec![], 2, needs.to_owned()),
        (vec!["--socket", "/x"], vec![], 2, needs_id.to_owned()),
        (
            vec!["--socket=", "--agent-id", "a"],
            vec![],
            2,
            "the value of '--socket' is empty".to_owned(),
        ),
        (
            vec!["--socket", "/x", "--agent-id", ""],
            vec![],
            2,
            "the value of '--agent-id' is empty".to_owned(),
        ),
        (
            vec![],
            vec![("PLEXUM_MCP_SOCKET", ""), ("PLEXUM_MCP_AGENT_ID", "a")],
            2,
            needs.to_owned(),
        ),
        (
            vec!["--socket", &long, "--agent-id", "a"],
            vec![],
            2,
            format!(
                "'{long}' is not a path for a socket: it has 205 bytes, at most 107 are possible"
            ),
        ),
        (
            vec!["--socket", &path("gone"), "--agent-id", "a"],
            vec![],
            1,
            format!(
                "no turn of the plugin listens at '{}': No such file or directory",
                path("gone")
            ),
        ),
        (
            vec![],
            vec![
                ("PLEXUM_MCP_SOCKET", path("dead").as_str()),
                ("PLEXUM_MCP_AGENT_ID", "a"),
            ],
            1,
            format!(
                "no turn of the plugin listens at '{}': Connection refused",
                path("dead")
            ),
        ),
        // The flags win.
        (
            vec!["--socket", &path("file")],
            vec![
                ("PLEXUM_MCP_SOCKET", path("dead").as_str()),
                ("PLEXUM_MCP_AGENT_ID", "a"),
            ],
            1,
            format!(
                "no turn of the plugin listens at '{}': Connection refused",
                path("file")
            ),
        ),
        (
            vec!["--socket", &path("silent.sock"), "--agent-id", "a"],
            vec![],
            1,
            format!(
                "cannot read the token '{}': No such file or directory",
                path("silent.token")
            ),
        ),
    ] {
        let mut cli = Cli::new(&lab, ["mcp-host"]);
        for arg in &args {
            cli = cli.arg(arg);
        }
        for (name, value) in env {
            cli = cli.env(name, value);
        }
        let output = cli.run();
        assert_eq!(
            (output.status, output.stdout.as_str(), output.stderr),
            (status, "", format!("plexum-openai: {message}\n")),
            "{args:?}"
        );
    }
    drop(silent);
}
