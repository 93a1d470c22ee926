//! `doctor` against broken set-ups: each is named, and the fix that it tells is followed to the letter, after
//! which the check is content.

use crate::support::codex;
use crate::support::codex::real_codex_by;
use crate::support::{Cli, LIMIT, Lab, cli, copy_program, ps, wait_until, write_program};
use rustix::fs::{FlockOperation, Mode};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

const THREAD: &str = "01a1fe00-a027-7a81-b8a0-356e91ab6908";

/// A codex that is logged in and has no servers.
fn healthy() -> Value {
    json!({"mcp": [{"out": "[]"}]})
}

/// One check of the report: its status and message, with the lab's path made equal.
#[track_caller]
fn check_named(lab: &Lab, name: &str) -> (String, String) {
    let workspace = lab.workspace();
    let cli = Cli::new(lab, ["doctor", "--json", "--workspace"])
        .arg(workspace)
        .bound_by_modes();
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
    follow(lab, name, status, message, "ok");
}

/// The same, where the fix leads to another status.
#[track_caller]
fn follow(lab: &Lab, name: &str, status: &str, message: &str, after: &str) {
    let (got, told) = check_named(lab, name);
    let root = lab.root().to_string_lossy().into_owned();
    let shown = told.replace(&root, "<lab>");
    assert_eq!((got.as_str(), shown.as_str()), (status, message));
    let Some(fix) = told.rsplit("; ").next() else {
        return;
    };
    if let Some(command) = fix.strip_prefix("run: ") {
        let done = Command::new("sh")
            .args(["-c", command])
            .env_clear()
            .envs(lab.env())
            .output()
            .unwrap();
        assert!(done.status.success(), "{command}: {done:?}");
    } else if let Some(setting) = fix.strip_prefix("set ").filter(|fix| fix.contains("\": ")) {
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
    assert_eq!(got, after, "{told}, after: {fix}");
}

#[test]
fn reports_sound_setup() {
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
fn checks_config_file_as_a_turn_reads_it() {
    let lab = Lab::fake(healthy());
    lab.raw_config(b"{\n  \"binary\" \"codex\"}");
    check(
        &lab,
        "config",
        "fail",
        "<lab>/profile/plugins/plexum-openai-provider/config.json:2:12: expected `:`",
    );
    // What depends on the config is not guessed at.
    let told = Cli::new(&lab, ["doctor"]).run();
    assert_eq!(
        (told.status, told.stdout.lines().count()),
        (1, 1),
        "{told:?}"
    );
    lab.raw_config(b"[]");
    let (_, message) = check_named(&lab, "config");
    assert!(message.contains("config.json:1:1: "), "{message}");
    lab.raw_config(b"{\"binery\": \"codex\"}");
    check(
        &lab,
        "config",
        "warn",
        "<lab>/profile/plugins/plexum-openai-provider/config.json: unknown key 'binery' is ignored; did you mean 'binary'?",
    );
}

#[test]
fn reports_missing_codex() {
    let mut lab = Lab::fake(healthy());
    let install = install();
    let home = lab.path("home").to_string_lossy().into_owned();
    with_npm(
        &mut lab,
        &install.replace('~', &home),
        "ln -s $CODEX $BIN/codex",
    );
    fs::remove_dir_all(lab.path("profile")).unwrap();
    check(
        &lab,
        "codex",
        "fail",
        &format!("cannot find codex 'codex' in PATH (<lab>/bin:/usr/bin:/bin); run: npm {install}"),
    );
    // It is there, and the config leads elsewhere: to nowhere, to a directory, to what cannot be executed.
    fs::create_dir(lab.path("directory")).unwrap();
    fs::write(lab.path("text"), "").unwrap();
    for (binary, status) in [
        (
            "no-such-codex",
            "cannot find codex 'no-such-codex' in PATH (<lab>/bin:/usr/bin:/bin)",
        ),
        (
            "/no/such/codex",
            "cannot start codex '/no/such/codex': No such file or directory",
        ),
        (
            "<lab>/directory",
            "cannot start codex '<lab>/directory': it is a directory",
        ),
    ] {
        let binary = binary.replace("<lab>", &lab.root().to_string_lossy());
        lab.config(json!({"binary": binary}));
        let fix = "set \"binary\": \"<lab>/bin/codex\" in <lab>/profile/plugins/plexum-openai-provider/config.json";
        check(&lab, "codex", "fail", &format!("{status}; {fix}"));
    }
    // It is not in PATH, but where its installers put it.
    let own = lab.path("home/.nvm/versions/node/v22.1.0/bin");
    fs::create_dir_all(&own).unwrap();
    fs::rename(lab.path("bin/codex"), own.join("codex")).unwrap();
    lab.config(json!({"binary": "codex"}));
    check(
        &lab,
        "codex",
        "fail",
        "cannot find codex 'codex' in PATH (<lab>/bin:/usr/bin:/bin); set \"binary\": \"<lab>/home/.nvm/versions/node/v22.1.0/bin/codex\" in <lab>/profile/plugins/plexum-openai-provider/config.json",
    );
    copy_program(lab.codex(), &lab.path("home/copy"));
    fs::set_permissions(lab.path("home/copy"), fs::Permissions::from_mode(0o644)).unwrap();
    lab.config(json!({"binary": lab.path("home/copy")}));
    check(
        &lab,
        "codex",
        "fail",
        "cannot start codex '<lab>/home/copy': it is not executable; run: chmod +x <lab>/home/copy",
    );
}

/// What npm is told where there is no codex: into the home of who is not root.
fn install() -> String {
    let place = match rustix::process::geteuid().is_root() {
        true => "",
        false => "--prefix ~/.local ",
    };
    format!("install -g {place}@openai/codex@latest")
}

/// A `npm` in PATH that does `what`, a shell's command line, when its arguments are those.
fn with_npm(lab: &mut Lab, arguments: &str, what: &str) {
    let bin = lab.path("bin");
    fs::create_dir(&bin).unwrap();
    let script = format!(
        "#!/bin/sh\n[ \"$*\" = '{arguments}' ] || exit 1\nCODEX={} BIN={}\n{what}\n",
        lab.codex().display(),
        bin.display()
    );
    write_program(&bin.join("npm"), &script);
    lab.set_env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
}

#[test]
fn reports_binary_that_is_not_codex() {
    let lab = Lab::fake(json!({"version": [{"out": "git version 2.39.5"}]}));
    check(
        &lab,
        "codex",
        "fail",
        &format!(
            "'{} --version' prints \"git version 2.39.5\" instead of codex's version; set \"binary\" in <lab>/profile/plugins/plexum-openai-provider/config.json",
            lab.codex().display()
        ),
    );
}

#[test]
fn reports_unsupported_codex_version() {
    let old = json!({"version": [{"out": "codex-cli 0.98.0"}]});
    // Where npm has put it, npm is told to put the new one.
    for (directory, arguments) in [
        ("bin", install().as_str()),
        (
            "lib/node_modules/@openai/codex/bin",
            "install -g --prefix <lab> @openai/codex@latest",
        ),
        (
            "own/node_modules/@openai/codex/bin",
            "install --prefix <lab>/own @openai/codex@latest",
        ),
    ] {
        let mut lab = Lab::fake(old.clone());
        let root = lab.root().to_string_lossy().into_owned();
        let new = format!("echo '{}' > {root}/fake.json", healthy());
        let real = arguments.replace("<lab>", &root);
        with_npm(&mut lab, &real.replace('~', &format!("{root}/home")), &new);
        let program = lab.path(directory).join("codex");
        fs::create_dir_all(program.parent().unwrap()).unwrap();
        // A copy: it is where a program really is that counts.
        copy_program(lab.codex(), &program);
        lab.config(json!({"binary": program}));
        check(
            &lab,
            "codex",
            "fail",
            &format!(
                "<lab>/{directory}/codex is version 0.98.0, older than 0.135.0, the oldest supported version; run: npm {arguments}"
            ),
        );
    }
}

/// A relative path leads to somewhere else for a daemon.
#[test]
fn reports_relative_path_to_codex() {
    let lab = Lab::fake(healthy());
    symlink(lab.codex(), lab.path("workspace/codex")).unwrap();
    lab.config(json!({"binary": "./codex"}));
    check(
        &lab,
        "systemd",
        "warn",
        "'./codex' is relative to the directory in which the daemon is started; set \"binary\": \"<lab>/workspace/codex\" in <lab>/profile/plugins/plexum-openai-provider/config.json",
    );
}

/// The trap that most fall into: codex is found in the login shell's PATH, but not under systemd.
#[test]
fn reports_codex_outside_systemd_path() {
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

    // Without a config file the fix is a command that makes one.
    lab.config(json!({"binary": "codex-of-mine"}));
    fs::rename(lab.path("bin/codex-of-mine"), lab.path("bin/codex")).unwrap();
    fs::remove_dir_all(lab.path("profile")).unwrap();
    check(
        &lab,
        "systemd",
        "warn",
        "a daemon under systemd cannot find codex 'codex' in PATH (/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin); run: (umask 077 && mkdir -p <lab>/profile/plugins/plexum-openai-provider && printf '%s\\n' '{\"binary\": \"<lab>/bin/codex\"}' > <lab>/profile/plugins/plexum-openai-provider/config.json)",
    );
}

/// npm's codex is a script for node, and node is often in a directory that systemd does not look into.
#[test]
fn reports_codex_that_needs_node() {
    let mut lab = Lab::fake(healthy());
    let package = lab.path("lib/node_modules/@openai/codex");
    fs::create_dir_all(package.join("bin")).unwrap();
    fs::create_dir(lab.path("bin")).unwrap();
    // Its interpreter stands in for node: it runs the fake whatever the script says.
    let script = package.join("bin/codex.js");
    write_program(&script, "#!/usr/bin/env node-of-mine\n");
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
    // So it is where there is no such interpreter at all.
    lab.config(json!({"binary": lab.path("bin/codex")}));
    fs::rename(lab.path("bin/node-of-mine"), lab.path("node")).unwrap();
    check(
        &lab,
        "codex",
        "fail",
        &format!(
            "cannot start codex '<lab>/bin/codex': it is a script for 'node-of-mine', which is not in PATH ({}:/usr/bin:/bin); set \"binary\": \"<lab>/lib/node_modules/@openai/codex-linux-x64/vendor/x/bin/codex\" in <lab>/profile/plugins/plexum-openai-provider/config.json",
            "<lab>/bin"
        ),
    );
    fs::rename(lab.path("node"), lab.path("bin/node-of-mine")).unwrap();
    // Without it, the directory of the interpreter has to be in codex's PATH.
    fs::remove_dir_all(vendor).unwrap();
    lab.config(json!({"binary": lab.path("bin/codex"), "env": {"A": "b"}}));
    check(
        &lab,
        "systemd",
        "warn",
        "a daemon under systemd cannot start codex '<lab>/bin/codex': it is a script for 'node-of-mine', which is not in PATH (/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin); set \"PATH\": \"<lab>/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\" in \"env\" in <lab>/profile/plugins/plexum-openai-provider/config.json",
    );
    // The fix keeps what was there.
    let config: Value = serde_json::from_slice(&fs::read(lab.config_file()).unwrap()).unwrap();
    assert_eq!(config["env"]["A"], "b");
}

#[test]
fn reports_missing_login() {
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
    let config = fs::read_to_string(lab.config_file()).unwrap();
    // What it says of the daemon can be followed too.
    let told = message.rsplit("set ").next().unwrap();
    assert!(
        told.starts_with("\"env\": {\"CODEX_API_KEY\": \"...\"} in "),
        "{message}"
    );
    lab.set_env("CODEX_API_KEY", "");
    let mut with_key: Value = serde_json::from_str(&config).unwrap();
    with_key["env"] = json!({"CODEX_API_KEY": "sk-secret"});
    lab.config(with_key);
    let (_, message) = check_named(&lab, "login");
    assert_eq!(
        message,
        "not logged in, but the config's \"env\" has CODEX_API_KEY"
    );
}

/// With the real codex, since its fix is codex's own command.
#[test]
fn reports_api_key_variable_that_codex_ignores() {
    for version in [codex::OLDEST, codex::NEWEST] {
        let Some(codex) = codex::real(version) else {
            return;
        };
        let mut lab = Lab::real(&codex, json!([]));
        // codex's own provider, which is not asked anything here.
        fs::write(lab.codex_home().join("config.toml"), "").unwrap();
        lab.set_env("OPENAI_API_KEY", "sk-secret");
        check(
            &lab,
            "login",
            "fail",
            &format!(
                "OPENAI_API_KEY is set, but 'codex exec' reads only CODEX_API_KEY, and codex is not logged in; run: printenv OPENAI_API_KEY | CODEX_HOME=<lab>/codex {} login --with-api-key",
                lab.codex().display()
            ),
        );
    }
}

#[test]
fn finds_provider_in_config_and_arguments() {
    let lab = Lab::fake(healthy());
    let text = "[model_providers.mine]\nbase_url = \"http://127.0.0.1:1\"\n";
    fs::write(lab.codex_home().join("config.toml"), text).unwrap();
    for arguments in [
        &["-c", "model_provider=mine"][..],
        &["-c", "model_provider=\"mine\""],
        &["-cmodel_provider='mine'"],
        &["--config", "model_provider = \"mine\""],
        &["--config=model_provider=mine"],
        &["-c", "model_provider=other", "-c", "model_provider=mine"],
    ] {
        lab.config(json!({"extra_args": arguments}));
        let told = "codex uses the provider 'mine', which requires no key";
        assert_eq!(
            check_named(&lab, "login"),
            ("ok".to_owned(), told.to_owned()),
            "{arguments:?}"
        );
    }
    for (arguments, told) in [
        (
            &["-c", "model_provider=none"][..],
            "codex uses the provider 'none', which its config.toml does not define",
        ),
        (
            &["--profile", "p"],
            "not checked: \"extra_args\" has --profile",
        ),
        (&["-pp"], "not checked: \"extra_args\" has -pp"),
    ] {
        lab.config(json!({"extra_args": arguments}));
        let (status, message) = check_named(&lab, "login");
        assert!(
            status == "warn" && message.starts_with(told),
            "{arguments:?}: {message}"
        );
    }
}

#[test]
fn reports_provider_without_key() {
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

// fault: 95
#[test]
fn advises_another_home_when_home_cannot_be_created() {
    let mut lab = Lab::fake(healthy());
    lab.set_env("HOME", lab.path("none/deep"));
    lab.set_env("CODEX_HOME", "");
    let (status, _) = check_named(&lab, "codex home");
    assert_eq!(status, "ok", "codex makes it and what it lies in");
    // Nobody can make a directory in a file, root neither.
    fs::write(lab.path("none"), "").unwrap();
    check(
        &lab,
        "codex home",
        "fail",
        "<lab>/none/deep/.codex does not exist and cannot be created in <lab>/none; choose a directory of your own: set HOME, or \"codex_home\" in the config, to one",
    );
}

// fault: 77
real_codex_by! { EXEC,
    fn reports_extra_args_that_codex_rejects(codex: &Path) {
        let lab = Lab::real(codex, json!([{"text": "ok"}]));
        for (arguments, expected) in [
            (&["--nonsense"][..], "codex rejects \"extra_args\": unexpected argument '--nonsense' found; fix \"extra_args\" in "),
            (&["-p"], "a value is required for '--profile"),
            (&["-s", "bad"], "invalid value 'bad' for '--sandbox"),
            (&["hello"], "it contains an argument that is neither a flag nor the value of a flag"),
            (&["resume"], "it contains an argument that is neither a flag nor the value of a flag"),
            (&["--enable", "nope"], "Unknown feature flag: nope"),
            (&["-c", "nonsense"], "Invalid override (missing '='): nonsense"),
            (&["-V"], "with which codex exits without running a turn"),
            (&["--ephemeral"], "every turn starts a new one"),
            (&["-p", "fast", "-C", "/", "--add-dir", "/", "-s", "read-only", "--color", "never", "--json"], ""),
            (&["--disable", "apps", "-c", "x=1", "--", "-i", "a.png"], ""),
        ] {
            lab.config(json!({"extra_args": arguments}));
            let told = Cli::new(&lab, ["doctor"]).run().stdout;
            let lines: Vec<_> = told.lines().filter(|line| line[6..].starts_with("arguments")).collect();
            match expected {
                "" => assert!(lines.is_empty(), "{told}"),
                _ => assert!(lines.len() == 1 && lines[0].contains(expected), "{arguments:?}: {told}"),
            }
        }
        assert!(lab.model().requests().is_empty());
        assert!(!lab.codex_home().join("sessions").exists());
    }
}

#[test]
fn reports_missing_codex_home() {
    let lab = Lab::fake(healthy());
    fs::remove_dir_all(lab.codex_home()).unwrap();
    check(
        &lab,
        "codex home",
        "fail",
        "<lab>/codex does not exist, and codex creates only ~/.codex; run: mkdir -p <lab>/codex",
    );
    fs::remove_dir_all(lab.codex_home()).unwrap();
    fs::write(lab.codex_home(), "").unwrap();
    check(
        &lab,
        "codex home",
        "fail",
        "<lab>/codex is not a directory; set CODEX_HOME, or \"codex_home\" in the config, to one",
    );
}

#[test]
fn reports_runtime_directory_that_is_not_private() {
    let mut lab = Lab::fake(healthy());
    // Not in the lab: a socket's path has to be short.
    let short = tempfile::tempdir_in("/tmp").unwrap();
    let directory = short.path().join("plexum-openai");
    lab.set_env("XDG_RUNTIME_DIR", short.path());
    let ready = |what: &dyn Fn()| {
        let _ = fs::remove_dir(&directory);
        let _ = fs::remove_dir(directory.with_file_name("plexum-openai.old"));
        let _ = fs::remove_file(&directory);
        what();
    };
    let expect = |message: &str| {
        let (status, told) = check_named(&lab, "sockets");
        let told = told.replace(&directory.to_string_lossy().into_owned(), "<directory>");
        assert_eq!((status.as_str(), told.as_str()), ("fail", message));
        check(&lab, "sockets", "fail", &check_named(&lab, "sockets").1);
    };
    ready(&|| {
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
    });
    expect(
        "the directory for sockets '<directory>' has mode 0755, not 0700; run: mv <directory> <directory>.old",
    );
    ready(&|| symlink("/tmp", &directory).unwrap());
    expect(
        "the directory for sockets '<directory>' is a symbolic link or not a directory; run: mv <directory> <directory>.old",
    );
    ready(&|| fs::set_permissions(short.path(), fs::Permissions::from_mode(0o555)).unwrap());
    let (_, told) = check_named(&lab, "sockets");
    let shown = short.path().display();
    assert_eq!(
        told,
        format!(
            "{shown}/plexum-openai does not exist and cannot be created in {shown}; choose a directory of your own: set PLEXUM_PROFILE_ROOT to {}",
            lab.path("home/.plexum").display()
        )
    );
    assert!(!directory.exists(), "nothing is made by looking");
}

/// The profile, where there is no runtime directory.
#[test]
fn reports_unwritable_profile() {
    let mut lab = Lab::fake(healthy());
    let short = tempfile::tempdir_in("/tmp").unwrap();
    let profile = short.path().join("profile");
    fs::rename(lab.path("profile"), &profile).unwrap();
    lab.set_env("PLEXUM_PROFILE_ROOT", &profile);
    fs::set_permissions(&profile, fs::Permissions::from_mode(0o555)).unwrap();
    let shown = profile.display();
    check(
        &lab,
        "sockets",
        "fail",
        &format!(
            "{shown}/run does not exist and cannot be created in {shown}; run: chmod u+rwX {shown}"
        ),
    );
}

#[test]
fn reports_unusable_workspace() {
    let lab = Lab::fake(healthy());
    fs::remove_dir(lab.workspace()).unwrap();
    let directory = lab.path("home");
    let missing = Cli::new(&lab, ["doctor", "-w", "x/y"])
        .directory(&directory)
        .run();
    assert_eq!(missing.status, 0);
    assert!(
        missing
            .stdout
            .contains("/home/x/y does not exist yet and is created by the first turn\n")
    );
    fs::create_dir(lab.workspace()).unwrap();
    for mode in [0o555, 0o300, 0o600] {
        fs::set_permissions(lab.workspace(), fs::Permissions::from_mode(mode)).unwrap();
        check(
            &lab,
            "workspace",
            "fail",
            "<lab>/workspace cannot be read and written; choose a directory of your own as the workspace, such as <lab>/home/workspace",
        );
    }
    // In the user's own home it is theirs to open up.
    let mut at_home = Lab::fake(healthy());
    at_home.set_env("HOME", at_home.root().to_owned());
    for mode in [0o555, 0o300, 0o600] {
        fs::set_permissions(at_home.workspace(), fs::Permissions::from_mode(mode)).unwrap();
        check(
            &at_home,
            "workspace",
            "fail",
            "<lab>/workspace cannot be read and written; run: chmod u+rwX <lab>/workspace",
        );
    }
    std::os::unix::fs::symlink("nowhere", lab.path("home/dangling")).unwrap();
    let dangling = Cli::new(&lab, ["doctor", "-w", "dangling"])
        .directory(&directory)
        .run();
    assert!(
        dangling
            .stdout
            .contains("/home/dangling is a dangling symbolic link; choose another path\n"),
        "{dangling:?}"
    );
    fs::write(lab.path("home/x"), "").unwrap();
    let file = Cli::new(&lab, ["doctor", "-w", "x"])
        .directory(&directory)
        .run();
    assert!(
        file.told(&file.stdout)
            .contains("FAIL  workspace     <lab>/home/x is not a directory; choose another path\n"),
        "{}",
        file.stdout
    );
    assert_eq!(file.status, 1);
}

#[test]
fn reports_unusable_session_file() {
    let lab = Lab::fake(healthy());
    fs::write(lab.session_file(), "-cmcp_servers.x.command=y").unwrap();
    check(
        &lab,
        "session",
        "warn",
        "<lab>/workspace/.plexum-codex-session: \"-cmcp_servers.x.command=y\" is not a thread id; the next turn sets it aside and starts a new thread",
    );
    fs::remove_file(lab.session_file()).unwrap();
    symlink("/etc/passwd", lab.session_file()).unwrap();
    check(
        &lab,
        "session",
        "warn",
        "<lab>/workspace/.plexum-codex-session: it is a symbolic link; the next turn sets it aside and starts a new thread",
    );
}

#[test]
fn reports_lost_thread() {
    let lab = Lab::fake(healthy());
    fs::write(lab.session_file(), THREAD).unwrap();
    check(
        &lab,
        "rollout",
        "warn",
        &format!(
            "codex has no thread {THREAD} in <lab>/codex; the next turn starts a new thread with the conversation so far in its prompt"
        ),
    );
    lab.config(json!({"lost_thread": "error"}));
    follow(
        &lab,
        "rollout",
        "fail",
        &format!(
            "codex has no thread {THREAD} in <lab>/codex, and \"lost_thread\" is \"error\"; set \"lost_thread\": \"replay\" in <lab>/profile/plugins/plexum-openai-provider/config.json"
        ),
        "warn",
    );
}

#[test]
fn reports_empty_rollout_left_by_full_disk() {
    let lab = Lab::fake(healthy());
    fs::write(lab.session_file(), THREAD).unwrap();
    let directory = lab.codex_home().join("archived_sessions");
    fs::create_dir(&directory).unwrap();
    let rollout = directory.join(format!("rollout-2026-11-21T12-06-56-{THREAD}.jsonl"));
    fs::write(rollout, "").unwrap();
    let (status, message) = check_named(&lab, "rollout");
    assert_eq!(status, "warn");
    assert!(
        message.contains(
            ".jsonl is empty, so codex cannot resume the thread; the next turn starts a new thread"
        ),
        "{message}"
    );
}

#[test]
fn reports_thread_held_by_another_process() {
    let lab = Lab::fake(healthy());
    fs::write(lab.session_file(), THREAD).unwrap();
    let directory = lab.codex_home().join("sessions/2026/11/21");
    fs::create_dir_all(&directory).unwrap();
    let rollout = directory.join(format!("rollout-2026-11-21T10-00-00-{THREAD}.jsonl"));
    let meta = json!({"type": "session_meta", "payload": {"id": THREAD}});
    fs::write(&rollout, format!("{meta}\n")).unwrap();
    check(&lab, "thread lock", "ok", "free");
    let locks = lab.codex_home().join("thread-writer-locks");
    fs::create_dir(&locks).unwrap();
    let lock = hold(&locks.join(format!("{THREAD}.lock")));
    let (status, message) = check_named(&lab, "thread lock");
    assert_eq!(status, "warn");
    let told = format!(
        "thread {THREAD} is in use by another codex process (process {}, ",
        std::process::id()
    );
    assert!(message.starts_with(&told), "{message}");
    // Closing it is not enough: what another test is just starting has it open too.
    rustix::fs::flock(&lock, FlockOperation::Unlock).unwrap();
    check(&lab, "thread lock", "ok", "free");
    // Before 0.147 codex has no locks. A process of its own opens the file, so that no other one has it open.
    let mut writer = Command::new("sh")
        .args(["-c", "exec 3>>\"$0\"; echo open; read end"])
        .arg(&rollout)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut open = [0; 5];
    let stdout = writer.stdout.as_mut().unwrap();
    std::io::Read::read_exact(stdout, &mut open).unwrap();
    let (status, message) = check_named(&lab, "thread lock");
    assert_eq!(status, "warn");
    let told = format!("process {} has the rollout open for writing", writer.id());
    assert!(message.starts_with(&told), "{message}");
    drop(writer.stdin.take());
    writer.wait().unwrap();
}

fn hold(path: &Path) -> rustix::fd::OwnedFd {
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CREATE | rustix::fs::OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o600)).unwrap();
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
    file
}

/// Entries in codex's config are read, and removed, by codex itself.
#[test]
fn reports_stale_mcp_servers() {
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
            "stale MCP server entry 'plexum-host-alice' in codex's config: '/nowhere/plexum-openai' cannot be executed; run: {remove} plexum-host-alice"
        ),
    );
    let (_, message) = check_named(&lab, "codex config");
    assert_eq!(
        message,
        "1 MCP server entry of this program in codex's config, whose command can be executed"
    );
    add("plexum-host-carol", "/bin/true");
    lab.config(json!({}));
    check(
        &lab,
        "codex config",
        "warn",
        &format!(
            "stale MCP server entry 'plexum-host-bob' (and 1 more) in codex's config: \"mcp_registration\" is not \"persistent\"; run: {remove} plexum-host-bob && {remove} plexum-host-carol"
        ),
    );
    let (_, message) = check_named(&lab, "codex config");
    assert_eq!(
        message,
        "no stale MCP server entries of this program in codex's config"
    );
    let text = fs::read_to_string(lab.codex_home().join("config.toml")).unwrap();
    assert!(text.contains("of-somebody-else"), "others are left alone");
}

#[test]
fn reports_config_that_codex_rejects() {
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
        message.ends_with(&format!("; fix {}/config.toml", lab.codex_home().display())),
        "{message}"
    );
    assert!(message.contains(":1:"), "the place is told: {message}");
}

#[test]
fn interrupt_ends_running_codex() {
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let lab = Lab::fake(json!({
            "version": [{"touch": "{cwd}/started"}, {"wait_for": "{cwd}/never"}],
        }));
        // What started the tests may have had SIGHUP ignored, and then doctor leaves it at that.
        let mut child = Command::new("env")
            .args([
                "--default-signal",
                env!("CARGO_BIN_EXE_plexum-openai"),
                "doctor",
            ])
            .env_clear()
            .envs(lab.env())
            .current_dir(lab.workspace())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        wait_until("codex to be asked", || {
            lab.workspace().join("started").exists()
        });
        ps::signal(child.id(), signal);
        let ended = cli::wait(&mut child, LIMIT);
        let left = ps::of(lab.root());
        assert!(left.is_empty(), "{signal:?}: {left:?}");
        let output = child.wait_with_output().unwrap();
        assert_eq!(cli::shell_status(ended), status, "{output:?}");
        assert_eq!(
            (output.stdout, output.stderr),
            (vec![], vec![]),
            "{signal:?}"
        );
    }
}

#[test]
fn works_without_temporary_directory() {
    let mut lab = Lab::fake(healthy());
    lab.set_env("TMPDIR", "/nonexistent");
    assert_eq!(check_named(&lab, "codex").0, "ok");
    assert_eq!(Cli::new(&lab, ["turn", "hi"]).run().stdout, "hi\n");
}

/// Whatever the directory is needed for, and whatever HOME says.
// fault: 95
#[test]
fn never_advises_changing_directories_of_the_system() {
    for home in ["", "/", "/proc"] {
        let mut lab = Lab::fake(healthy());
        if !home.is_empty() {
            lab.set_env("HOME", home);
        }
        // Which nobody can write, root included.
        for (name, value) in [("CODEX_HOME", "/proc/x"), ("XDG_RUNTIME_DIR", "/proc")] {
            lab.set_env(name, value);
        }
        let told = Cli::new(&lab, ["doctor", "--json", "-w", "/proc/it's/x"])
            .bound_by_modes()
            .run();
        let report: Value = serde_json::from_str(&told.stdout).unwrap();
        for name in ["codex home", "workspace", "sockets"] {
            let checks = report["checks"].as_array().unwrap();
            let check = checks.iter().find(|check| check["check"] == name).unwrap();
            assert_eq!(check["status"], "fail", "{check}");
            let message = check["message"].as_str().unwrap();
            for word in ["chmod", "chown", "mkdir", "rm ", "run:"] {
                assert!(!message.contains(word), "{word} in {message}");
            }
            assert!(
                message.contains("choose a directory of your own"),
                "{message}"
            );
        }
    }
}

/// As `sudo plexum-openai` meets them: what it made in them would be root's.
// fault: 95, 109
#[test]
fn reports_owner_of_another_users_directory() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let lab = Lab::fake(healthy());
    for (name, what, directory) in [
        ("workspace", "the workspace", lab.workspace()),
        ("codex home", "the codex home", lab.codex_home()),
    ] {
        std::os::unix::fs::chown(&directory, Some(4242), None).unwrap();
        let shown = directory.strip_prefix(lab.root()).unwrap().display();
        let (status, told) = check_named(&lab, name);
        let told = told.replace(&lab.root().to_string_lossy().into_owned(), "<lab>");
        assert_eq!(
            (status.as_str(), told),
            (
                "fail",
                format!(
                    "{what} '<lab>/{shown}' belongs to 4242, but this program runs as root (0), whose files that user could not write; run: sudo -u '#4242' {} doctor --json --workspace <lab>/workspace",
                    env!("CARGO_BIN_EXE_plexum-openai")
                )
            )
        );
        std::os::unix::fs::chown(&directory, Some(0), None).unwrap();
    }
}

/// Who can write the config names the program that a turn runs.
// fault: 104
#[test]
fn rejects_config_that_others_can_change() {
    let lab = Lab::fake(healthy());
    let mode = |name: &str, mode| {
        fs::set_permissions(lab.path(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    let plugin = "profile/plugins/plexum-openai-provider";
    let file = "profile/plugins/plexum-openai-provider/config.json";
    for (path, bits, who) in [
        (file, 0o620, "its group"),
        (file, 0o602, "every user"),
        (plugin, 0o777, "every user"),
        ("profile/plugins", 0o770, "its group"),
        ("profile", 0o1777, "every user"),
    ] {
        mode(path, bits);
        check(
            &lab,
            "config",
            "fail",
            &format!(
                "<lab>/{path} has mode {bits:04o}: {who} can change it, and thereby the program that a turn runs; run: chmod go-w <lab>/{path}"
            ),
        );
    }
    mode(file, 0o644);
    assert_eq!(
        check_named(&lab, "config").0,
        "ok",
        "there is nothing secret in it"
    );
    lab.config(json!({"env": {"CODEX_API_KEY": "secret"}}));
    assert_eq!(check_named(&lab, "config").0, "ok");
    mode(file, 0o640);
    check(
        &lab,
        "config",
        "warn",
        &format!(
            "<lab>/{file} has mode 0640, so that other users can read its \"env\"; run: chmod 600 <lab>/{file}"
        ),
    );
}

/// Nobody may ever write into it.
// fault: 80
#[test]
fn does_not_wait_for_fifos() {
    let id = "01a1fe09-e49e-7b41-ae77-ccf89ea932da";
    let lab = Lab::fake(healthy());
    let day = lab.codex_home().join("sessions/2026/11/21");
    fs::create_dir_all(&day).unwrap();
    fs::write(lab.session_file(), id).unwrap();
    let rollout = day.join(format!("rollout-2026-11-21T12-06-56-{id}.jsonl"));
    for path in [rollout, lab.codex_home().join("config.toml")] {
        let _ = fs::remove_file(&path);
        let mode = rustix::fs::Mode::RWXU;
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).unwrap();
        let told = Cli::new(&lab, ["doctor", "-w"]).arg(lab.workspace()).run();
        assert!(told.stdout.contains("session"), "{told:?}");
    }
}

// fault: 105
#[test]
fn finds_native_codex_only_in_npm_package() {
    let mut lab = Lab::fake(healthy());
    // What a directory of many users' has beside the script's own.
    let script = lab.path("share/bin/codex.js");
    let decoy = lab.path("codex-linux-x64/vendor/x/bin/codex");
    for path in [&script, &decoy] {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
    }
    write_program(&script, "#!/usr/bin/env node-of-nobody\n");
    symlink(lab.codex(), &decoy).unwrap();
    lab.set_env("PATH", "/usr/bin:/bin");
    lab.config(json!({"binary": script}));
    let told = Cli::new(&lab, ["doctor"]).run();
    assert!(told.stdout.contains("it is a script for"), "{told:?}");
    assert!(!told.stdout.contains("codex-linux-x64"), "{told:?}");
}

#[test]
fn reports_sandbox_with_network_access() {
    let lab = Lab::fake(healthy());
    let config =
        "sandbox_mode = \"workspace-write\"\n[sandbox_workspace_write]\nnetwork_access = true\n";
    fs::write(lab.codex_home().join("config.toml"), config).unwrap();
    let (status, told) = check_named(&lab, "sandbox");
    assert_eq!(status, "warn");
    assert!(
        told.contains("reach the network and every service"),
        "{told}"
    );
    lab.config(json!({"extra_args": ["-c", "sandbox_workspace_write.network_access=false"]}));
    let told = Cli::new(&lab, ["doctor"]).run();
    assert!(!told.stdout.contains("network_access"), "{told:?}");
    lab.config(json!({"extra_args": ["-s", "read-only"]}));
    let told = Cli::new(&lab, ["doctor"]).run();
    assert!(!told.stdout.contains("network_access"), "{told:?}");
}

#[test]
fn checks_each_given_workspace() {
    let lab = Lab::fake(healthy());
    fs::create_dir(lab.path("second")).unwrap();
    fs::write(lab.path("second/.plexum-codex-session"), THREAD).unwrap();
    let output = Cli::new(
        &lab,
        ["doctor", "--json", "-w", "../none", "-w", "../second"],
    )
    .run();
    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    let found: Vec<(&str, &str)> = report["checks"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|check| {
            let workspace = check["workspace"].as_str()?;
            Some((check["check"].as_str()?, workspace.rsplit_once('/')?.1))
        })
        .collect();
    assert_eq!(
        found,
        [
            ("workspace", "none"),
            ("session", "none"),
            ("workspace", "second"),
            ("session", "second"),
            ("rollout", "second"),
        ],
        "{report:#}"
    );
}

/// The plugin's directory in the profile, with the program and its manifest as `make install-plugin` leaves them.
fn installed(lab: &Lab) -> std::path::PathBuf {
    let directory = lab.path("profile/plugins/plexum-openai-provider");
    fs::create_dir_all(&directory).unwrap();
    let program = directory.join("plexum-openai-provider-plugin");
    copy_program(Path::new(env!("CARGO_BIN_EXE_plexum-openai")), &program);
    let manifest = Cli::new(lab, ["manifest"]).run().stdout;
    fs::write(directory.join("manifest.json"), manifest).unwrap();
    directory
}

#[test]
fn reports_outdated_installed_plugin() {
    let lab = Lab::fake(healthy());
    let directory = installed(&lab);
    let program = directory.join("plexum-openai-provider-plugin");
    let shown = "<lab>/profile/plugins/plexum-openai-provider";
    assert_eq!(
        check_named(&lab, "plugin"),
        ("ok".to_owned(), program.display().to_string())
    );
    fs::write(directory.join("manifest.json"), "{}").unwrap();
    check(
        &lab,
        "plugin",
        "warn",
        &format!(
            "{shown}/manifest.json is missing or differs from the plugin's manifest; run: {shown}/plexum-openai-provider-plugin manifest > {shown}/manifest.json"
        ),
    );
    let own = env!("CARGO_BIN_EXE_plexum-openai");
    write_program(&program, "#!/bin/sh\necho plexum-openai 0.0.1\n");
    check(
        &lab,
        "plugin",
        "warn",
        &format!(
            "'{shown}/plexum-openai-provider-plugin --version' prints \"plexum-openai 0.0.1\", but this program is plexum-openai {}; run: install -m 755 {own} {shown}/plexum-openai-provider-plugin",
            env!("CARGO_PKG_VERSION")
        ),
    );
    fs::remove_file(&program).unwrap();
    check(
        &lab,
        "plugin",
        "fail",
        &format!(
            "{shown}/plexum-openai-provider-plugin: No such file or directory; run: install -m 755 {own} {shown}/plexum-openai-provider-plugin"
        ),
    );
    let daemon = lab.path("profile/config.json");
    fs::write(&daemon, r#"{"plugins":{"allow":["another"]}}"#).unwrap();
    let (status, message) = check_named(&lab, "plugin");
    assert_eq!(status, "warn");
    assert!(
        message.ends_with(&format!(
            "; add \"plexum-openai-provider\" to .plugins.allow in {}",
            daemon.display()
        )),
        "{message}"
    );
    fs::write(
        &daemon,
        r#"{"plugins":{"allow":["plexum-openai-provider"]}}"#,
    )
    .unwrap();
    assert_eq!(check_named(&lab, "plugin").0, "ok");
}
