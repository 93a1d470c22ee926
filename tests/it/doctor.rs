//! `doctor` against broken set-ups: each is named, and the mend that it tells is followed to the letter, after
//! which the check is content.

use crate::support::codex;
use crate::support::{Cli, Lab};
use rustix::fs::{FlockOperation, Mode};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

const THREAD: &str = "01a1fe00-a027-7a81-b8a0-356e91ab6908";

/// A codex that is logged in and has no servers.
fn healthy() -> Value {
    json!({"mcp": [{"out": "[]"}]})
}

/// One check of the report: its status and message, with the lab's path made equal.
#[track_caller]
fn check_named(lab: &Lab, name: &str) -> (String, String) {
    let workspace = lab.workspace();
    let cli = Cli::new(lab, ["doctor", "--json", "--workspace"]).arg(workspace);
    let output = cli.run();
    assert_eq!(output.stderr, "");
    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    let failed = report["checks"]
        .as_array()
        .unwrap()
        .iter()
        .any(|check| check["status"] == "fail");
    assert_eq!(report["ok"], !failed);
    assert_eq!(output.status, i32::from(failed));
    let checks = report["checks"].as_array().unwrap();
    let Some(check) = checks.iter().find(|check| check["check"] == name) else {
        panic!("no check '{name}' in {checks:#?}");
    };
    let text = |key: &str| check[key].as_str().unwrap().to_owned();
    (text("status"), text("message"))
}

/// Sees that a check says this, does what it tells to do, and sees that it is content then.
#[track_caller]
fn check(lab: &Lab, name: &str, status: &str, message: &str) {
    let (got, told) = check_named(lab, name);
    let shown = told.replace(&lab.root().to_string_lossy().into_owned(), "<lab>");
    assert_eq!((got.as_str(), shown.as_str()), (status, message));
    let Some(mend) = told.rsplit("; ").next() else {
        return;
    };
    if let Some(command) = mend.strip_prefix("run: ") {
        let done = Command::new("sh")
            .args(["-c", command])
            .env_clear()
            .envs(lab.env())
            .status();
        assert!(done.unwrap().success(), "{command}");
    } else if let Some(setting) = mend
        .strip_prefix("set ")
        .filter(|mend| mend.contains("\": "))
    {
        let (pairs, file) = setting.rsplit_once(" in ").unwrap();
        let config = fs::read(file).unwrap();
        let mut config: Value = serde_json::from_slice(&config).unwrap();
        let (pairs, target) = match pairs.strip_suffix(" in \"env\"") {
            Some(pairs) => (pairs, &mut config["env"]),
            None => (pairs, &mut config),
        };
        let pairs: Value = serde_json::from_str(&format!("{{{pairs}}}")).unwrap();
        for (key, value) in pairs.as_object().unwrap() {
            target[key] = value.clone();
        }
        fs::write(file, config.to_string()).unwrap();
    } else {
        return;
    }
    let (got, told) = check_named(lab, name);
    assert_eq!(got, "ok", "{told}, after: {mend}");
}

#[test]
fn a_sound_set_up_is_told_as_one() {
    let lab = Lab::fake(healthy());
    let (status, message) = check_named(&lab, "codex");
    assert_eq!(status, "ok");
    assert!(
        message.starts_with(&lab.codex().display().to_string()),
        "{message}"
    );
    let output = Cli::new(&lab, ["doctor", "-w", "."]).run();
    assert_eq!((output.status, output.stderr.as_str()), (0, ""));
    for line in output.stdout.lines() {
        assert!(line.starts_with("ok    "), "{line}");
    }
    let names: Vec<&str> = output
        .stdout
        .lines()
        .map(|line| line[6..18].trim_end())
        .collect();
    assert_eq!(
        names,
        [
            "config",
            "codex home",
            "codex",
            "systemd",
            "codex config",
            "login",
            "sockets",
            "workspace",
            "session"
        ]
    );
}

#[test]
fn the_config_file_is_checked_as_a_turn_reads_it() {
    let lab = Lab::fake(healthy());
    lab.raw_config(b"{\n  \"binary\" \"codex\"}");
    check(
        &lab,
        "config",
        "fail",
        "<lab>/profile/plugins/plexum-openai-provider/config.json:2:12: expected `:`",
    );
    lab.raw_config(b"{\"binery\": \"codex\"}");
    check(
        &lab,
        "config",
        "warn",
        "<lab>/profile/plugins/plexum-openai-provider/config.json: unknown key 'binery' is passed over; did you mean 'binary'?",
    );
}

#[test]
fn a_codex_that_is_not_there_is_told() {
    let lab = Lab::fake(healthy());
    lab.config(json!({"binary": "no-such-codex"}));
    check(
        &lab,
        "codex",
        "fail",
        "cannot find codex 'no-such-codex' in PATH (/usr/local/bin:/usr/bin:/bin); set \"binary\" in <lab>/profile/plugins/plexum-openai-provider/config.json to its absolute path",
    );
    let lab = Lab::fake(json!({"version": [{"out": "git version 2.39.5"}]}));
    check(
        &lab,
        "codex",
        "fail",
        &format!(
            "'{} --version' does not tell codex's version but \"git version 2.39.5\"; set \"binary\" in <lab>/profile/plugins/plexum-openai-provider/config.json",
            lab.codex().display()
        ),
    );
}

#[test]
fn an_old_codex_is_told() {
    let lab = Lab::fake(json!({"version": [{"out": "codex-cli 0.98.0"}]}));
    let (status, message) = check_named(&lab, "codex");
    assert_eq!(status, "fail");
    assert!(
        message.ends_with(
            " is version 0.98.0, and 0.135.0 is the least that is supported; run: npm install -g @openai/codex@latest"
        ),
        "{message}"
    );
}

/// The trap that most fall into: codex is found in the login shell's PATH, but not under systemd.
#[test]
fn a_codex_that_systemd_does_not_find_is_told() {
    let mut lab = Lab::fake(healthy());
    fs::create_dir(lab.path("bin")).unwrap();
    symlink(lab.codex(), lab.path("bin/codex-of-mine")).unwrap();
    let path = format!("{}:/usr/bin:/bin", lab.path("bin").display());
    lab.set_env("PATH", path);
    lab.config(json!({"binary": "codex-of-mine"}));
    let binary = lab.path("bin/codex-of-mine");
    check(
        &lab,
        "systemd",
        "warn",
        "a daemon under systemd cannot find codex 'codex-of-mine' in PATH (/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin); set \"binary\": \"<lab>/bin/codex-of-mine\" in <lab>/profile/plugins/plexum-openai-provider/config.json",
    );
    let config = fs::read_to_string(lab.config_file()).unwrap();
    assert_eq!(config, json!({"binary": binary}).to_string());

    // Without a config file the mend is a command that makes one.
    lab.config(json!({"binary": "codex-of-mine"}));
    fs::rename(lab.path("bin/codex-of-mine"), lab.path("bin/codex")).unwrap();
    fs::remove_dir_all(lab.path("profile")).unwrap();
    check(
        &lab,
        "systemd",
        "warn",
        "a daemon under systemd cannot find codex 'codex' in PATH (/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin); run: mkdir -p <lab>/profile/plugins/plexum-openai-provider && echo '{\"binary\": \"<lab>/bin/codex\"}' > <lab>/profile/plugins/plexum-openai-provider/config.json",
    );
}

/// npm's codex is a script for node, and node is often in a folder that systemd does not look into.
#[test]
fn a_codex_that_needs_a_node_is_told() {
    let mut lab = Lab::fake(healthy());
    let package = lab.path("lib/node_modules/@openai/codex");
    fs::create_dir_all(package.join("bin")).unwrap();
    fs::create_dir(lab.path("bin")).unwrap();
    // Its interpreter stands in for node: it runs the fake whatever the script says.
    let script = package.join("bin/codex.js");
    fs::write(&script, "#!/usr/bin/env node-of-mine\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    symlink(&script, lab.path("bin/codex")).unwrap();
    symlink(lab.codex(), lab.path("bin/node-of-mine")).unwrap();
    let path = format!("{}:/usr/bin:/bin", lab.path("bin").display());
    lab.set_env("PATH", path);
    lab.config(json!({"binary": lab.path("bin/codex")}));
    // With the native program beside the script, that is the better one.
    let vendor = lab.path("lib/node_modules/@openai/codex-linux-x64/vendor/x/bin");
    fs::create_dir_all(&vendor).unwrap();
    symlink(lab.codex(), vendor.join("codex")).unwrap();
    check(
        &lab,
        "systemd",
        "warn",
        "a daemon under systemd cannot start codex '<lab>/bin/codex': it is a script for 'node-of-mine', which is not in PATH (/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin); set \"binary\": \"<lab>/lib/node_modules/@openai/codex-linux-x64/vendor/x/bin/codex\" in <lab>/profile/plugins/plexum-openai-provider/config.json",
    );
    // Without it, the folder of the interpreter has to be in codex's PATH.
    fs::remove_dir_all(vendor).unwrap();
    lab.config(json!({"binary": lab.path("bin/codex"), "env": {"A": "b"}}));
    check(
        &lab,
        "systemd",
        "warn",
        "a daemon under systemd cannot start codex '<lab>/bin/codex': it is a script for 'node-of-mine', which is not in PATH (/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin); set \"PATH\": \"<lab>/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\" in \"env\" in <lab>/profile/plugins/plexum-openai-provider/config.json",
    );
    // The mend keeps what was there.
    let config: Value = serde_json::from_slice(&fs::read(lab.config_file()).unwrap()).unwrap();
    assert_eq!(config["env"]["A"], "b");
}

#[test]
fn a_missing_login_is_told() {
    let out = json!([{"err": "Not logged in"}, {"exit": 1}]);
    let mut lab = Lab::fake(json!({"mcp": [{"out": "[]"}], "login": out}));
    let (status, message) = check_named(&lab, "login");
    assert_eq!(status, "fail");
    assert_eq!(
        message,
        format!(
            "codex is not logged in; run: CODEX_HOME={} {} login",
            lab.codex_home().display(),
            lab.codex().display()
        )
    );
    lab.set_env("CODEX_API_KEY", "sk-secret");
    let (status, message) = check_named(&lab, "login");
    assert_eq!(status, "ok");
    assert!(!message.contains("secret"), "{message}");
    lab.set_env("CODEX_API_KEY", "");
    lab.set_env("OPENAI_API_KEY", "sk-secret");
    check(
        &lab,
        "login",
        "fail",
        "OPENAI_API_KEY is set, but 'codex exec' reads only CODEX_API_KEY; set \"env\": {\"CODEX_API_KEY\": \"...\"} in <lab>/profile/plugins/plexum-openai-provider/config.json",
    );
}

#[test]
fn a_provider_without_its_key_is_told() {
    let mut lab = Lab::fake(healthy());
    let text = "model_provider = \"mine\"\n[model_providers.mine]\nenv_key = \"KEY_OF_MINE\"\n";
    fs::write(lab.codex_home().join("config.toml"), text).unwrap();
    check(
        &lab,
        "login",
        "fail",
        "codex uses the provider 'mine', and its key KEY_OF_MINE is not set; set \"env\": {\"KEY_OF_MINE\": \"...\"} in <lab>/profile/plugins/plexum-openai-provider/config.json",
    );
    lab.config(json!({}));
    lab.set_env("KEY_OF_MINE", "secret");
    assert_eq!(
        check_named(&lab, "login"),
        (
            "ok".to_owned(),
            "codex uses the provider 'mine', and its key KEY_OF_MINE is set".to_owned()
        )
    );
}

#[test]
fn a_codex_home_that_is_not_there_is_told() {
    let lab = Lab::fake(healthy());
    fs::remove_dir_all(lab.codex_home()).unwrap();
    check(
        &lab,
        "codex home",
        "fail",
        "<lab>/codex is not there, and codex makes none but ~/.codex; run: mkdir -p <lab>/codex",
    );
    fs::remove_dir_all(lab.codex_home()).unwrap();
    fs::write(lab.codex_home(), "").unwrap();
    check(
        &lab,
        "codex home",
        "fail",
        "<lab>/codex is no folder; set CODEX_HOME, or \"codex_home\" in the config, to one",
    );
}

#[test]
fn a_folder_for_sockets_that_others_can_enter_is_told() {
    let mut lab = Lab::fake(healthy());
    let folder = lab.path("run/plexum-openai");
    fs::create_dir_all(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    lab.set_env("XDG_RUNTIME_DIR", lab.path("run"));
    let (status, message) = check_named(&lab, "sockets");
    assert_eq!(status, "fail");
    assert!(message.contains("has mode 0755, not 0700"), "{message}");
    fs::remove_dir(&folder).unwrap();
    assert_eq!(check_named(&lab, "sockets").0, "ok");
}

#[test]
fn a_workspace_that_is_none_is_told() {
    let lab = Lab::fake(healthy());
    fs::remove_dir(lab.workspace()).unwrap();
    let folder = lab.path("home");
    let missing = Cli::new(&lab, ["doctor", "-w", "x/y"])
        .folder(&folder)
        .run();
    assert_eq!(missing.status, 0);
    assert!(
        missing
            .stdout
            .contains("/home/x/y is not there yet, the first turn makes it\n")
    );
    fs::write(lab.path("home/x"), "").unwrap();
    let file = Cli::new(&lab, ["doctor", "-w", "x"]).folder(&folder).run();
    assert!(
        file.told(&file.stdout)
            .contains("FAIL  workspace     <lab>/home/x is no folder; give another one\n"),
        "{}",
        file.stdout
    );
    assert_eq!(file.status, 1);
}

#[test]
fn a_session_file_that_is_none_is_told() {
    let lab = Lab::fake(healthy());
    fs::write(lab.session_file(), "-cmcp_servers.x.command=y").unwrap();
    check(
        &lab,
        "session",
        "warn",
        "<lab>/workspace/.plexum-codex-session: \"-cmcp_servers.x.command=y\" is no thread id; the next turn sets it aside and starts a new thread",
    );
    fs::remove_file(lab.session_file()).unwrap();
    symlink("/etc/passwd", lab.session_file()).unwrap();
    check(
        &lab,
        "session",
        "fail",
        "the session file '<lab>/workspace/.plexum-codex-session' is a symbolic link, not a regular file; move it away to start a new conversation",
    );
}

#[test]
fn a_lost_thread_is_told() {
    let lab = Lab::fake(healthy());
    fs::write(lab.session_file(), THREAD).unwrap();
    check(
        &lab,
        "rollout",
        "warn",
        &format!(
            "codex has no thread {THREAD} in <lab>/codex; the next turn starts a new one with the conversation that the daemon has"
        ),
    );
    lab.config(json!({"lost_thread": "error"}));
    let (status, message) = check_named(&lab, "rollout");
    assert_eq!(status, "fail");
    assert!(
        message.contains("; set \"lost_thread\": \"replay\" in "),
        "{message}"
    );
}

#[test]
fn a_thread_that_another_codex_holds_is_told() {
    let lab = Lab::fake(healthy());
    fs::write(lab.session_file(), THREAD).unwrap();
    let folder = lab.codex_home().join("sessions/2026/11/21");
    fs::create_dir_all(&folder).unwrap();
    let rollout = folder.join(format!("rollout-2026-11-21T10-00-00-{THREAD}.jsonl"));
    fs::write(&rollout, "{}\n").unwrap();
    check(&lab, "thread lock", "ok", "free");
    let locks = lab.codex_home().join("thread-writer-locks");
    fs::create_dir(&locks).unwrap();
    let lock = hold(&locks.join(format!("{THREAD}.lock")));
    check(
        &lab,
        "thread lock",
        "warn",
        &format!(
            "thread {THREAD} is in use by another codex process; try again when its turn is over"
        ),
    );
    drop(lock);
    check(&lab, "thread lock", "ok", "free");
    // Before 0.147 codex has no locks.
    let writer = fs::OpenOptions::new().append(true).open(&rollout).unwrap();
    let (status, message) = check_named(&lab, "thread lock");
    assert_eq!(status, "warn");
    let told = format!(
        "process {} has the rollout open for writing",
        std::process::id()
    );
    assert!(message.starts_with(&told), "{message}");
    drop(writer);
}

fn hold(path: &Path) -> rustix::fd::OwnedFd {
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CREATE | rustix::fs::OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o600)).unwrap();
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
    file
}

/// Entries in codex's config are read, and removed, by codex itself.
#[test]
fn servers_that_lead_nowhere_are_told() {
    let Some(codex) = codex::real(codex::NEWEST) else {
        return;
    };
    let lab = Lab::real(&codex, json!([]));
    let add = |name: &str, command: &str| {
        let mut codex = Command::new(lab.codex());
        codex.args(["mcp", "add", name, "--", command, "mcp-host"]);
        let output = codex.env_clear().envs(lab.env()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    assert_eq!(check_named(&lab, "codex config").0, "ok");
    add("of-somebody-else", "/nowhere");
    assert_eq!(check_named(&lab, "codex config").0, "ok");
    add("plexum-host-alice", "/nowhere/plexum-openai");
    add("plexum-host-bob", "/bin/true");
    lab.config(json!({"mcp_registration": "persistent"}));
    let remove = format!(
        "CODEX_HOME=<lab>/codex {} mcp remove",
        lab.codex().display()
    );
    check(
        &lab,
        "codex config",
        "warn",
        &format!(
            "the server 'plexum-host-alice' leads nowhere: '/nowhere/plexum-openai' cannot be executed; run: {remove} plexum-host-alice"
        ),
    );
    let (_, message) = check_named(&lab, "codex config");
    assert_eq!(
        message,
        "1 entry of ours in codex's config, and it leads somewhere"
    );
    add("plexum-host-carol", "/bin/true");
    lab.config(json!({}));
    check(
        &lab,
        "codex config",
        "warn",
        &format!(
            "the server 'plexum-host-bob' (and 1 more) leads nowhere: \"mcp_registration\" is not \"persistent\"; run: {remove} plexum-host-bob && {remove} plexum-host-carol"
        ),
    );
    let (_, message) = check_named(&lab, "codex config");
    assert_eq!(message, "no leftover entries of ours in codex's config");
    let text = fs::read_to_string(lab.codex_home().join("config.toml")).unwrap();
    assert!(text.contains("of-somebody-else"), "others are left alone");
}

#[test]
fn a_config_that_codex_cannot_use_is_told() {
    let Some(codex) = codex::real(codex::NEWEST) else {
        return;
    };
    let lab = Lab::real(&codex, json!([]));
    fs::write(lab.codex_home().join("config.toml"), "model = [\n").unwrap();
    let (status, message) = check_named(&lab, "codex config");
    assert_eq!(status, "fail");
    assert!(
        message.starts_with("codex cannot use its config: "),
        "{message}"
    );
    assert!(
        message.ends_with(&format!(
            "; mend {}/config.toml",
            lab.codex_home().display()
        )),
        "{message}"
    );
    assert!(message.contains(":1:"), "the place is told: {message}");
}
