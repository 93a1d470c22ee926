//! Whole turns as a user without rights, and what a second user of the machine can do about them. Only root can start
//! programs as somebody else: elsewhere these tests are skipped with one line that says so.

use crate::programs;
use crate::support::codex::{NEWEST, is_at_least, real, real_codex};
use crate::support::user::User;
use crate::support::{Cli, Daemon, Lab, Turn, ps, wait_until, write_program};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;

/// A model that calls the tool `send` of the agent `a` once a turn.
fn calls(turns: usize) -> Value {
    let mut script = Vec::new();
    for turn in 0..turns {
        script.push(
            json!({"times": 1, "calls": [{"name": "send", "namespace": "mcp__plexum_host_a",
            "arguments": {"to": "bob"}, "id": format!("call_{turn}")}]}),
        );
        script.push(json!({"times": 1, "text": "done"}));
    }
    json!(script)
}

fn prompt(lab: &Lab) -> Value {
    let mut params = Daemon::prompt(lab, "go");
    params["agent"]["id"] = json!("a");
    params["request"]["tools"] = json!([{"name": "send", "description": "x",
        "input_schema": {"type": "object", "properties": {"to": {"type": "string"}}}}]);
    params
}

/// A turn in which the model calls the tool, and what it gets for it.
#[track_caller]
fn turn(daemon: &mut Daemon, lab: &Lab) -> Turn {
    let before = daemon.tool_calls().len();
    let turn = daemon.turn(prompt(lab));
    assert_eq!(
        turn.stop_reason(),
        "end_turn",
        "{turn:?}; {}",
        daemon.stderr()
    );
    assert_eq!(daemon.tool_calls().len(), before + 1);
    let request = lab.model().requests().pop().unwrap().body.to_string();
    assert!(request.contains("sent it"), "{request}");
    turn
}

fn start(lab: &Lab, user: User) -> Daemon {
    let mut daemon = Daemon::start_by(lab, &mut user.command(lab.path("plugin")));
    daemon.init();
    daemon.on_tool_call(|_| Some(Ok(json!({"content": "sent it"}))));
    daemon
}

/// What lies in the directory for sockets.
fn runtime(lab: &Lab) -> Vec<PathBuf> {
    let entries = fs::read_dir(lab.path("profile/run")).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

// fault: 102
real_codex! {
    /// The plugin's file is deleted and replaced while it runs; its processes show their own file to nobody.
    fn exposes_tools_while_plugin_is_upgraded(codex: &Path) {
        let Some(user) = User::one() else { return };
        let lab = Lab::real_of(user, codex, calls(4));
        let plugin = lab.path("plugin");
        let mut daemon = start(&lab, user);
        let first = turn(&mut daemon, &lab);
        fs::remove_file(&plugin).unwrap();
        let second = turn(&mut daemon, &lab);
        assert_eq!(second.thread(), first.thread());
        // Whatever takes its place is another version, which may say other things.
        write_program(&plugin, "#!/bin/sh\nexit 1\n");
        turn(&mut daemon, &lab);
        drop(daemon);
        // The copy stays with a killed plugin, and half of one may.
        let [copy] = &runtime(&lab)[..] else {
            panic!("one copy of the program: {:?}", runtime(&lab));
        };
        fs::write(copy.with_extension("tmp"), "half").unwrap();
        fs::remove_file(&plugin).unwrap();
        fs::hard_link(copy, &plugin).unwrap();
        user.own(lab.root());
        let mut daemon = start(&lab, user);
        turn(&mut daemon, &lab);
        drop(daemon);
        assert_eq!(runtime(&lab), [""; 0].map(PathBuf::from));
        lab.assert_quiet();
    }
}

// fault: 102
real_codex! {
    /// `hidepid` hides processes that are not dumpable from their own user too: then nobody's ancestors are to be seen.
    fn exposes_tools_with_hidepid(codex: &Path) {
        let Some(user) = User::one() else { return };
        let (Some(unshare), Some(setpriv)) = (programs::find("unshare"), programs::find("setpriv")) else { return };
        let lab = Lab::real_of(user, codex, calls(1));
        let id = user.id().to_string();
        let mut command = Command::new(unshare);
        let mount = "mount -t proc -o hidepid=2 proc /proc && exec \"$@\"";
        command.args(["-m", "sh", "-c", mount, "sh"]).arg(setpriv);
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]).arg(lab.path("plugin"));
        let mut daemon = Daemon::start_by(&lab, &mut command);
        daemon.init();
        daemon.on_tool_call(|_| Some(Ok(json!({"content": "sent it"}))));
        turn(&mut daemon, &lab);
    }
}

// fault: 102
real_codex! {
    /// What an agent's own processes can do about those of this program: nothing, but end them.
    fn own_processes_cannot_be_inspected(codex: &Path) {
        let Some(user) = User::one() else { return };
        let lab = Lab::real_of(user, codex, calls(1));
        let root = lab.root().to_owned();
        let mut daemon = start(&lab, user);
        let found = Rc::new(RefCell::new(BTreeMap::new()));
        let seen = Rc::clone(&found);
        daemon.on_tool_call(move |_| {
            for process in ps::of(&root) {
                let readable = |name: &str| {
                    let path = format!("/proc/{}/{name}", process.pid);
                    // What cannot be opened has no first byte.
                    let read = user.command("head").args(["-c1", &path]).output().unwrap();
                    read.status.success()
                };
                let listed = user.command("ls").arg(format!("/proc/{}/fd/", process.pid)).output().unwrap();
                let looked = [readable("environ"), readable("mem"), readable("maps"), listed.status.success()];
                let name = process.command.split(' ').find(|word| matches!(*word, "codex-guard" | "mcp-host"));
                let is_plugin = process.command.ends_with("/plugin") && name.is_none();
                let name = if is_plugin { Some("serve") } else { name };
                seen.borrow_mut().insert(name.unwrap_or("else").to_owned(), looked);
            }
            Some(Ok(json!({"content": "sent it"})))
        });
        turn(&mut daemon, &lab);
        let found = found.borrow();
        for name in ["serve", "codex-guard", "mcp-host"] {
            assert_eq!(found.get(name), Some(&[false; 4]), "{name}: {found:?}");
        }
    }
}

// fault: 102
real_codex! {
    /// A registered server has its socket in everybody's config.
    fn exposes_tools_of_registered_server(codex: &Path) {
        let Some(user) = User::one() else { return };
        let lab = Lab::real_of(user, codex, calls(2));
        lab.config(json!({"mcp_registration": "persistent"}));
        user.own(lab.root());
        let mut daemon = start(&lab, user);
        let first = turn(&mut daemon, &lab);
        assert_eq!(turn(&mut daemon, &lab).thread(), first.thread());
        drop(daemon);
        assert_eq!(runtime(&lab), [""; 0].map(PathBuf::from));
        lab.assert_quiet();
    }
}

// fault: 102
#[test]
fn sub_agent_calls_host_tool() {
    let Some(codex) = real(NEWEST) else { return };
    let Some(user) = User::one() else { return };
    let call = |name: &str, namespace: &str, arguments: Value, id: &str| json!([{"name": name, "namespace": namespace, "arguments": arguments, "id": id}]);
    let lab = Lab::real_of(
        user,
        &codex,
        json!([
            {"match": "main task", "times": 1, "calls": call("spawn_agent", "multi_agent_v1", json!({"message": "child task"}), "call_spawn")},
            {"match": "child task", "times": 1, "calls": call("send", "mcp__plexum_host_a", json!({"to": "bob"}), "call_child")},
            {"after": "call_child", "times": 1, "text": "child done"},
            {"after": "call_spawn", "times": 1, "calls": [{"name": "exec_command", "arguments": {"cmd": "sleep 3"}, "id": "call_main"}]},
            {"text": "well"},
        ]),
    );
    let mut daemon = start(&lab, user);
    let mut params = prompt(&lab);
    params["request"]["messages"][0]["content"] = json!("main task");
    let turn = daemon.turn(params);
    assert_eq!(turn.text(), "well", "{turn:?}");
    assert_eq!(daemon.tool_calls().len(), 1, "{turn:?}");
    assert_eq!(
        daemon.tool_calls()[0]["params"]["_meta"]["call_id"],
        "call_child"
    );
    let told = turn
        .of("tool_use")
        .find(|event| event["id"] == "call_child");
    assert!(
        told.is_some_and(|event| event["agent"].is_string()),
        "{turn:?}"
    );
    let requests = lab.model().requests();
    assert!(
        requests
            .iter()
            .any(|request| request.body.to_string().contains("sent it"))
    );
}

// fault: 109, 115
#[test]
fn reports_files_of_another_user() {
    let Some((alice, bob)) = User::two() else {
        return;
    };
    let lab = Lab::fake_of(alice, Value::Null);
    fs::set_permissions(lab.root(), fs::Permissions::from_mode(0o755)).unwrap();
    let open = lab.path("open");
    fs::create_dir(&open).unwrap();
    bob.own(&open);
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let run = |arguments: &[&str], workspace: &Path| {
        let mut command = alice.command(lab.path("plugin"));
        command
            .args(arguments)
            .arg("-w")
            .arg(workspace)
            .env_clear()
            .envs(lab.env());
        let output = command
            .current_dir("/")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    };
    for arguments in [
        &["turn", "hi"][..],
        &["doctor", "--json"],
        &["mutate", "call_1"],
    ] {
        let (status, said) = run(arguments, &open);
        assert_eq!(status, Some(1), "{said}");
        let told = format!(
            "belongs to {}, but this program runs as {}",
            bob.id(),
            alice.id()
        );
        assert!(said.contains(&told), "{arguments:?}: {said}");
        assert!(
            said.contains(&format!("sudo -u '#{}' ", bob.id())),
            "{said}"
        );
    }
    assert_eq!(fs::read_dir(&open).unwrap().count(), 0);
    assert_eq!(lab.fake_runs(), [] as [Value; 0]);

    // A lock that somebody else holds: whoever may read a directory may lock it.
    let mut holder = bob.command("flock");
    let workspace = lab.workspace();
    fs::set_permissions(&workspace, fs::Permissions::from_mode(0o755)).unwrap();
    holder
        .arg(&workspace)
        .args(["sh", "-c", "echo held; exec sleep 60"]);
    let mut holder = holder.stdout(Stdio::piped()).spawn().unwrap();
    let mut held = [0; 5];
    holder.stdout.take().unwrap().read_exact(&mut held).unwrap();
    let (status, said) = run(&["turn", "hi"], &workspace);
    let told = format!(
        "another process runs a turn in the workspace '{}' (process {}, flock)",
        workspace.display(),
        holder.id()
    );
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(status, Some(1));
    assert!(said.contains(&told), "{said}");
}

// fault: 109
/// What root makes in another user's directory that user could not write.
#[test]
fn root_creates_nothing_in_another_users_directory() {
    let Some(user) = User::one() else { return };
    let lab = Lab::fake_of(user, Value::Null);
    let new = lab.path("new");
    let output = Cli::new(&lab, ["turn", "hi", "-w"]).arg(&new).run();
    assert_eq!(output.status, 1, "{output:?}");
    assert!(
        output
            .stderr
            .contains(&format!("run: sudo -u '#{}' ", user.id())),
        "{output:?}"
    );
    assert!(!new.exists());
    let own = tempfile::tempdir().unwrap();
    fs::create_dir(own.path().join("codex")).unwrap();
    fs::write(own.path().join("x.png"), "x").unwrap();
    let output = Cli::new(&lab, ["turn", "hi", "-i"])
        .arg(own.path().join("x.png"))
        .arg("-w")
        .arg(own.path())
        .env("CODEX_HOME", own.path().join("codex"))
        .run();
    assert_eq!(output.status, 0, "{output:?}");
    assert!(output.stderr.contains("sudo -u"), "{output:?}");
    assert!(!lab.path("profile/run").exists());
}

// fault: 115
real_codex! {
    /// A coordination lock that codex cannot open ends every turn of a new codex: what to do is said.
    fn reports_unopenable_lock_with_fix(codex: &Path) {
        let Some(user) = User::one() else { return };
        let lab = Lab::real_of(user, codex, json!([{"text": "ok"}]));
        let has_locks = is_at_least(codex, (0, 169, 0));
        let run = |arguments: &[&str]| {
            let mut command = user.command(lab.path("plugin"));
            command.args(arguments).arg("-w").arg(lab.workspace()).env_clear().envs(lab.env());
            let output = command.current_dir("/").stdin(Stdio::null()).output().unwrap();
            let said = [output.stdout, output.stderr].concat();
            (output.status.success(), String::from_utf8(said).unwrap())
        };
        assert!(run(&["turn", "hi"]).0);
        let thread = lab.stored_thread();
        let locks = lab.codex_home().join("thread-writer-locks");
        let lock = locks.join(".coordination.lock");
        fs::create_dir_all(&locks).unwrap();
        user.own(&locks);
        for (fix, is_link) in [("sudo rm", false), ("rm", true)] {
            let _ = fs::remove_file(&lock);
            if is_link {
                symlink("/nowhere", &lock).unwrap();
            } else {
                fs::write(&lock, "").unwrap();
                fs::set_permissions(&lock, fs::Permissions::from_mode(0o600)).unwrap();
            }
            let fix = format!("run: {fix} {}", lock.display());
            for arguments in [["doctor", "--json"], ["mutate", "call_1"]] {
                let (_, said) = run(&arguments);
                assert!(said.contains(&fix), "{arguments:?}: {said}");
            }
            let (good, said) = run(&["turn", "hi"]);
            assert_eq!(good, !has_locks, "{said}");
            assert!(good || said.contains(&fix), "{said}");
            assert_eq!(lab.stored_thread(), thread);
        }
        fs::remove_file(&lock).unwrap();
        assert!(run(&["turn", "hi"]).0);
    }
}

// fault: 117
#[test]
fn reports_squatted_runtime_directory() {
    let Some((_, bob)) = User::two() else { return };
    // Of no other test: the directory's name has the user's number.
    let alice = User::of(61_236);
    let mut lab = Lab::fake_of(alice, Value::Null);
    // Too long for a socket, so that the directory for all is taken.
    let profile = lab.path(&"x".repeat(90));
    fs::rename(lab.path("profile"), &profile).unwrap();
    lab.set_env("PLEXUM_PROFILE_ROOT", &profile);
    let squatted = PathBuf::from(format!("/tmp/plexum-openai-{}", alice.id()));
    let _ = fs::remove_dir_all(&squatted);
    fs::create_dir(&squatted).unwrap();
    bob.own(&squatted);
    fs::set_permissions(&squatted, fs::Permissions::from_mode(0o700)).unwrap();
    let mut daemon = Daemon::start_by(&lab, &mut alice.command(lab.path("plugin")));
    daemon.init();
    let turn = daemon.turn(prompt(&lab));
    fs::remove_dir(&squatted).unwrap();
    assert_eq!(turn.error_code(), Some("mcp_failed"), "{turn:?}");
    let message = turn.of("error").next().unwrap()["error"]["message"]
        .as_str()
        .unwrap();
    let told = format!(
        "'{}' belongs to user {}, not to {}; run as root: mv ",
        squatted.display(),
        bob.id(),
        alice.id()
    );
    assert!(message.contains(&told), "{message}");
    assert_eq!(
        daemon.turn(prompt(&lab)).stop_reason(),
        "end_turn",
        "nobody squats it any more"
    );
    drop(daemon);
    fs::remove_dir_all(&squatted).unwrap();
}

// fault: 100, 104
#[test]
fn hides_images_and_keys_from_other_users() {
    let Some((alice, bob)) = User::two() else {
        return;
    };
    let lab = Lab::fake_of(
        alice,
        json!([{"touch": "{cwd}/../running"}, {"wait_for": "{cwd}/../go"}, "default"]),
    );
    fs::set_permissions(lab.root(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut shell = alice.command("sh");
    shell
        .args(["-c", "umask 0; exec \"$0\""])
        .arg(lab.path("plugin"));
    let mut daemon = Daemon::start_by(&lab, &mut shell);
    daemon.init();
    let mut params = prompt(&lab);
    let image = json!({"type": "image", "media_type": "image/png", "data": "aGk="});
    params["request"]["messages"][0]["content"] = json!([image]);
    let id = daemon.request(crate::support::method::STREAM, params);
    wait_until("codex to start", || lab.path("running").exists());
    let mut secret = vec![lab.config_file()];
    let mut directories = vec![lab.path("profile/run")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => directories.push(entry.path()),
                false => secret.push(entry.path()),
            }
        }
    }
    // The config, an image, a socket and its token.
    assert_eq!(secret.len(), 4, "{secret:?}");
    for path in &secret {
        let mode = fs::metadata(path).unwrap().permissions().mode() & 0o077;
        assert_eq!(mode, 0, "{}", path.display());
        let read = |user: User| {
            user.command("test")
                .arg("-r")
                .arg(path)
                .status()
                .unwrap()
                .success()
        };
        assert!(read(alice) && !read(bob), "{}", path.display());
    }
    fs::write(lab.path("go"), "").unwrap();
    assert_eq!(daemon.finish(id).stop_reason(), "end_turn");
}

// fault: 102
real_codex! {
    /// What an agent starts to stay leaves its turn behind, and with it the tools.
    fn rejects_process_that_outlives_its_turn(codex: &Path) {
        let Some(user) = User::one() else { return };
        let escape = lab_script();
        let command = json!({"cmd": "setsid sh -c 'sh escape.sh >/dev/null 2>&1 </dev/null &'"});
        let lab = Lab::real_of(user, codex, json!([
            {"times": 1, "calls": [{"name": "exec_command", "arguments": command, "id": "call_escape"}]},
            {"times": 1, "calls": [{"name": "send", "namespace": "mcp__plexum_host_a", "arguments": {}, "id": "call_1"}]},
            {"times": 1, "text": "done"},
            {"times": 1, "calls": [{"name": "send", "namespace": "mcp__plexum_host_a", "arguments": {}, "id": "call_2"}]},
            {"text": "done"},
        ]));
        let workspace = lab.workspace();
        fs::write(workspace.join("escape.sh"), escape).unwrap();
        let mut daemon = start(&lab, user);
        let mut turns = ["first", "second"].into_iter();
        let at = workspace.clone();
        daemon.on_tool_call(move |_| {
            let name = turns.next().unwrap();
            fs::write(at.join(format!("{name}.go")), "").unwrap();
            wait_until("the process to try", || at.join(format!("{name}.done")).exists());
            Some(Ok(json!({"content": "sent it"})))
        });
        turn(&mut daemon, &lab);
        turn(&mut daemon, &lab);
        let said = |name: &str| fs::read_to_string(workspace.join(format!("{name}.out"))).unwrap();
        assert!(said("first").contains("\"protocolVersion\""), "{}", said("first"));
        assert!(said("second").contains("it was not started by this turn's codex"), "{}", said("second"));
    }
}

/// Tries the socket that there is, in one turn and then in the next.
fn lab_script() -> &'static str {
    r#"for name in first second; do
    while [ ! -e $name.go ]; do sleep 0.05; done
    printf '%s\n' '{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}' |
        ../plugin mcp-host --socket ../profile/run/t-*.sock --agent-id a >$name.out 2>&1
    touch $name.done
done
"#
}

// fault: 102, 114
real_codex! {
    /// Whoever floods the socket from outside the turn takes no place of its codex.
    fn flood_from_outside_does_not_evict_codex(codex: &Path) {
        let (Some(user), Some(perl)) = (User::one(), programs::find("perl")) else { return };
        let lab = Lab::real_of(user, codex, calls(1));
        let flood = "use IO::Socket::UNIX; while (1) { my @held; for (glob($ARGV[0])) { for my $i (1..100) { push @held, IO::Socket::UNIX->new(Peer => $_, Timeout => 1) } } select(undef, undef, undef, 0.001) }";
        let sockets = lab.path("profile/run/t-*.sock");
        let mut floods: Vec<_> = (0..2)
            .map(|_| user.command(&perl).args(["-e", flood]).arg(&sockets).spawn().unwrap())
            .collect();
        let mut daemon = start(&lab, user);
        let answer = daemon.turn(prompt(&lab));
        for flood in &mut floods {
            flood.kill().unwrap();
            flood.wait().unwrap();
        }
        assert_eq!(answer.stop_reason(), "end_turn", "{answer:?}");
        assert_eq!(daemon.tool_calls().len(), 1);
    }
}
