//! A turn's socket: whom it lets in, and where it may be.

use super::{Held, Runtime, prompt};
use crate::support::user::User;
use crate::support::{Cli, Daemon, Lab};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

// fault: 46
#[test]
fn rejects_mcp_host_of_another_turn() {
    let held = Held::new(&["x"]);
    let socket = held.socket.to_str().unwrap();
    let output = Cli::new(
        &held.lab,
        ["mcp-host", "--socket", socket, "--agent-id", "bob"],
    )
    .run();
    assert_eq!(
        (output.status, output.stderr),
        (
            1,
            format!(
                "plexum-openai: the plugin at '{socket}' rejects this agent: this socket belongs to another agent\n"
            )
        )
    );
    fs::write(held.socket.with_extension("token"), "f".repeat(64)).unwrap();
    let output = Cli::new(&held.lab, held.args()).run();
    assert_eq!(
        (output.status, output.stderr),
        (
            1,
            format!(
                "plexum-openai: the plugin at '{socket}' rejects this agent: the token belongs to another turn\n"
            )
        )
    );
    held.let_go();
}

// fault: 46
/// The kernel says who connects; neither the directory nor the mode of the socket is all that keeps others out.
#[test]
fn rejects_another_user() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    if User::one().is_none() {
        return;
    }
    let Some(perl) = crate::programs::find("perl") else {
        return;
    };
    let held = Held::new(&["x"]);
    // As if somebody had opened everything.
    for (path, mode) in [
        (held.lab.short.path(), 0o755),
        (held.socket.parent().unwrap(), 0o755),
        (held.socket.as_path(), 0o666),
    ] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let connect = "use IO::Socket::UNIX; my $s = IO::Socket::UNIX->new($ARGV[0]) or die; alarm 20; print 'closed' unless sysread($s, my $byte, 1)";
    let run = |user: Option<u32>| {
        let mut command = Command::new(&perl);
        command
            .args(["-e", connect])
            .arg(&held.socket)
            .stdin(Stdio::null());
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let start = Instant::now();
    assert_eq!(run(Some(65534)), "closed");
    let refused = start.elapsed();
    // One of this user's is heard, and closed only when it has said nothing for a while.
    let start = Instant::now();
    assert_eq!(run(None), "closed");
    assert!(
        start.elapsed() > refused + Duration::from_secs(1),
        "{refused:?}"
    );
    fs::set_permissions(
        held.socket.parent().unwrap(),
        fs::Permissions::from_mode(0o700),
    )
    .unwrap();
    held.let_go();
}

// fault: 43
/// A live listener where a registered agent's socket should be is not touched, and the turn says so.
#[test]
fn keeps_live_listener() {
    let lab = Runtime::new(Lab::fake(Value::Null));
    lab.config(json!({"mcp_registration": "persistent"}));
    let directory = lab.short.path().join("plexum-openai");
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&directory)
        .unwrap();
    let listener = UnixListener::bind(directory.join("p-alice.sock")).unwrap();
    let mut daemon = Daemon::start(&lab);
    let turn = daemon.turn(prompt(&lab, "alice", &["x"]));
    assert_eq!(turn.error_code(), Some("session_busy"), "{turn:?}");
    assert_eq!(turn.of("error").next().unwrap()["error"]["retryable"], true);
    assert_eq!(lab.fake_runs(), [] as [Value; 0]);
    UnixStream::connect(directory.join("p-alice.sock")).unwrap();
    drop(listener);
    // Nobody listens any more: it is replaced.
    let turn = daemon.turn(prompt(&lab, "alice", &["x"]));
    assert_eq!(turn.stop_reason(), "end_turn", "{turn:?}");
    lab.assert_clean(daemon);
}

// fault: 45
/// A directory for sockets that is not private is refused, and what to do is said.
#[test]
fn rejects_runtime_directory_of_others() {
    let lab = Runtime::new(Lab::fake(Value::Null));
    let directory = lab.short.path().join("plexum-openai");
    fs::create_dir(lab.path("elsewhere")).unwrap();
    std::os::unix::fs::symlink(lab.path("elsewhere"), &directory).unwrap();
    let mut daemon = Daemon::start(&lab);
    let turn = daemon.turn(prompt(&lab, "alice", &["x"]));
    assert_eq!(turn.error_code(), Some("mcp_failed"));
    let message = turn.of("error").next().unwrap()["error"]["message"]
        .as_str()
        .unwrap();
    assert_eq!(
        message,
        format!(
            "the directory for sockets '{0}' is a symbolic link or not a directory; run: mv {0} {0}.old",
            directory.display()
        )
    );
    assert_eq!(fs::read_dir(lab.path("elsewhere")).unwrap().count(), 0);
    // Without tools the directory does not matter.
    assert_eq!(
        daemon.turn(prompt(&lab, "alice", &[])).stop_reason(),
        "end_turn"
    );
    drop(daemon);
    fs::remove_file(directory).unwrap();
}
