//! `make install` and `make install-plugin`, and their ways back, into directories of the test's own.

use crate::programs;
use crate::support::user::User;
use crate::support::{Daemon, method, write_program};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_plexum-openai");

/// A home with its PATH. The program is the one that is tested, so nothing is built.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Option<Home> {
        programs::find("make")?;
        Some(Home(tempfile::tempdir().unwrap()))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// What make says, with the home as `~`.
    fn make(&self, arguments: &[&str]) -> String {
        let output = self.make_under("022", arguments);
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{arguments:?}: {said}");
        assert_eq!(
            String::from_utf8(output.stderr).unwrap(),
            "",
            "{arguments:?}"
        );
        said.replace(&self.0.path().to_string_lossy().into_owned(), "~")
    }

    /// Runs make with this umask.
    fn make_under(&self, umask: &str, arguments: &[&str]) -> std::process::Output {
        let path = format!("{}:/usr/bin:/bin", self.path("bin").display());
        Command::new("sh")
            .args(["-c", "umask \"$0\" && exec make \"$@\"", umask])
            .args(["--no-print-directory", &format!("PROGRAM={PROGRAM}")])
            .args(arguments)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env_clear()
            .env("HOME", self.0.path())
            .env("PATH", path)
            .output()
            .unwrap()
    }

    /// The result of `initialize` of a plugin that is started in it.
    fn introduction(&self, plugin: &Path) -> Value {
        let mut child = Command::new(plugin)
            .env_clear()
            .env("HOME", self.0.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method::INITIALIZE,
            "params": Daemon::introduction()});
        writeln!(child.stdin.take().unwrap(), "{request}").unwrap();
        let output = child.wait_with_output().unwrap();
        let response: Value = serde_json::from_slice(&output.stdout).unwrap();
        response["result"].clone()
    }

    /// Every file in it.
    fn files(&self) -> Vec<String> {
        let mut files = Vec::new();
        let mut directories = vec![self.0.path().to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    directories.push(path);
                } else {
                    let below = path.strip_prefix(self.0.path()).unwrap();
                    files.push(below.to_string_lossy().into_owned());
                }
            }
        }
        files.sort();
        files
    }
}

fn printed(program: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn installs_and_uninstalls_program() {
    let Some(home) = Home::new() else { return };
    // make expands the tilde where the shell does not.
    let said = home.make(&["install", "PREFIX=~/.local"]);
    assert!(
        said.starts_with("Installed ~/.local/bin/plexum-openai,"),
        "{said}"
    );
    assert!(said.contains("~/.local/bin is not in your PATH"), "{said}");
    let page = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("man/plexum-openai.1")).unwrap();
    assert_eq!(
        home.files(),
        [
            ".local/bin/plexum-openai",
            ".local/share/bash-completion/completions/plexum-openai",
            ".local/share/fish/vendor_completions.d/plexum-openai.fish",
            ".local/share/man/man1/plexum-openai.1",
            ".local/share/man/man7/plexum-openai-codex.7",
            ".local/share/man/man7/plexum-openai-events.7",
            ".local/share/man/man7/plexum-openai-protocol.7",
            ".local/share/zsh/site-functions/_plexum-openai",
        ]
    );
    assert_eq!(
        fs::read(home.path(".local/share/man/man1/plexum-openai.1")).unwrap(),
        page
    );
    let program = home.path(".local/bin/plexum-openai");
    for (shell, file) in [
        ("bash", "bash-completion/completions/plexum-openai"),
        ("zsh", "zsh/site-functions/_plexum-openai"),
        ("fish", "fish/vendor_completions.d/plexum-openai.fish"),
    ] {
        let installed = fs::read_to_string(home.path(".local/share").join(file)).unwrap();
        assert_eq!(installed, printed(&program, &["completions", shell]));
    }
    let said = home.make(&["uninstall", "PREFIX=~/.local"]);
    assert_eq!(said, "Removed plexum-openai from ~/.local.\n");
    assert_eq!(home.files(), [""; 0]);
}

#[test]
fn installs_plugin_and_keeps_config() {
    let Some(home) = Home::new() else { return };
    let directory = ".plexum/plugins/plexum-openai-provider";
    let config = || fs::read_to_string(home.path(directory).join("config.json")).unwrap();
    let said = home.make(&["install-plugin", "PROFILE=~/.plexum"]);
    assert_eq!(
        said,
        format!(
            "Installed the plugin into ~/{directory}.
codex is not in your PATH: the doctor below says what to do about that.

What remains to do:
  1. See whether a turn has what it needs:
       ~/{directory}/plexum-openai-provider-plugin doctor
  2. Allow the plugin: add \"plexum-openai-provider\" to .plugins.allow in the config of the daemon.
  3. Make an agent that uses it: plexum agent-add --model codex my-agent
  4. Restart the daemon.
"
        )
    );
    assert_eq!(serde_json::from_str::<Value>(&config()).unwrap(), json!({}));
    let manifest = fs::read_to_string(home.path(directory).join("manifest.json")).unwrap();
    let manifest_read: Value = serde_json::from_str(&manifest).unwrap();
    let executable = manifest_read["executable"].as_str().unwrap();
    let program = home.path(directory).join(executable);
    assert_eq!(printed(&program, &["manifest"]), manifest);
    let introduced = home.introduction(&program);
    assert_eq!(
        introduced["capabilities"]["experimental"]["plexum"]["manifest"],
        manifest_read
    );

    // With npm's codex, a script, the program beside it is the one; it is found later, too.
    let package = home.path("lib/node_modules/@openai/codex");
    let native = package.join("node_modules/@openai/codex-linux-x64/vendor/x/bin/codex");
    for program in [&package.join("bin/codex.js"), &native] {
        fs::create_dir_all(program.parent().unwrap()).unwrap();
        write_program(program, "#!/bin/sh\n");
    }
    fs::create_dir(home.path("bin")).unwrap();
    symlink(package.join("bin/codex.js"), home.path("bin/codex")).unwrap();
    let said = home.make(&["install-plugin"]);
    let native = native.canonicalize().unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(&config()).unwrap(),
        json!({"binary": native}),
        "{said}"
    );

    // What the operator wrote stays, through an update and the end.
    let own = "{\"binary\": \"mine\"}\n";
    fs::write(home.path(directory).join("config.json"), own).unwrap();
    let said = home.make(&["install-plugin"]);
    assert!(
        said.contains("Its config.json was there already and is as it was."),
        "{said}"
    );
    assert_eq!(config(), own);
    let said = home.make(&["uninstall-plugin"]);
    assert!(
        said.starts_with("Removed the plugin; its config.json is still in"),
        "{said}"
    );
    assert_eq!(config(), own);
    assert_eq!(fs::read_dir(home.path(directory)).unwrap().count(), 1);

    // Another profile is one that doctor has to be told of.
    let said = home.make(&["install-plugin", "PROFILE=~/other"]);
    let doctor = format!(
        "PLEXUM_PROFILE_ROOT=~/other ~/other/{}/plexum-openai-provider-plugin doctor",
        "plugins/plexum-openai-provider"
    );
    assert!(said.contains(&doctor), "{said}");
}

// fault: 104
#[test]
fn writes_config_for_its_owner_alone() {
    for umask in ["000", "002", "022", "077"] {
        let Some(home) = Home::new() else { return };
        let output = home.make_under(umask, &["install-plugin"]);
        assert!(output.status.success(), "{output:?}");
        let mode = |path: &str| {
            let found = fs::metadata(home.path(path)).unwrap();
            found.permissions().mode() & 0o777
        };
        let directory = ".plexum/plugins/plexum-openai-provider";
        assert_eq!(mode(&format!("{directory}/config.json")), 0o600, "{umask}");
        for path in [".plexum", ".plexum/plugins", directory] {
            assert_eq!(mode(path) & 0o022, 0, "{path} under {umask}");
        }
    }
}

/// The script lies in a directory of many users', and what is beside that is anybody's.
// fault: 105
#[test]
fn configures_codex_only_from_npm_package() {
    let Some(home) = Home::new() else { return };
    let script = home.path("shared/mine/bin/codex");
    for program in [
        script.clone(),
        home.path("shared/codex-decoy/vendor/x/bin/codex"),
        home.path("shared/mine/node_modules/@openai/codex-decoy/vendor/x/bin/codex"),
    ] {
        fs::create_dir_all(program.parent().unwrap()).unwrap();
        write_program(&program, "#!/bin/sh\n");
    }
    // Another user's, where these tests can make one.
    if let Some(user) = User::one() {
        user.own(&home.path("shared/codex-decoy"));
        user.own(&home.path("shared/mine/node_modules"));
    }
    fs::create_dir(home.path("bin")).unwrap();
    symlink(script, home.path("bin/codex")).unwrap();
    let said = home.make(&["install-plugin"]);
    assert!(said.contains("says that codex is ~/bin/codex."), "{said}");
}

// fault: 118
#[test]
fn quotes_special_characters_in_prefix_and_profile() {
    for name in [
        "a b",
        "it's",
        "d\"q",
        "b`touch PWNED`",
        "-x",
        "a;touch PWNED",
        "(x)&#*",
    ] {
        let Some(home) = Home::new() else { return };
        // A leading dash is one of a path that is not absolute, which would be made in this repository.
        let root = home.path(name);
        let destination = format!("DESTDIR={}", home.path("-d e").display());
        let (prefix, profile) = (
            format!("PREFIX={}", root.display()),
            format!("PROFILE={}", root.display()),
        );
        for target in ["install", "install-plugin"] {
            let output = home.make_under("022", &[target, &prefix, &profile]);
            assert!(output.status.success(), "{name}: {output:?}");
            let said = String::from_utf8(output.stdout).unwrap();
            // What it tells to run is run by a shell.
            if let Some(doctor) = said.lines().find(|line| line.ends_with(" doctor")) {
                let told = Command::new("bash")
                    .args(["-c", doctor])
                    .current_dir(home.path(""))
                    .output()
                    .unwrap();
                let told = String::from_utf8(told.stdout).unwrap();
                let config = root.join("plugins/plexum-openai-provider/config.json");
                assert!(
                    told.contains(&config.display().to_string()),
                    "{name}: {told}"
                );
            }
            home.make(&[target, &prefix, &profile, &destination]);
        }
        assert!(root.join("bin/plexum-openai").is_file(), "{name}");
        for target in ["uninstall", "uninstall-plugin"] {
            home.make(&[target, &prefix, &profile]);
            home.make(&[target, &prefix, &profile, &destination]);
        }
        let left: Vec<String> = home.files();
        assert!(
            left.iter().all(|file| file.ends_with("config.json")),
            "{name}: {left:?}"
        );
    }
    let Some(home) = Home::new() else { return };
    for name in ["$(shell touch PWNED)", "$HOME", "a\tb"] {
        for target in ["install", "uninstall", "install-plugin", "uninstall-plugin"] {
            let output = home.make_under(
                "022",
                &[
                    target,
                    &format!("PROFILE={}/{name}", home.0.path().display()),
                ],
            );
            assert!(!output.status.success(), "{name}: {output:?}");
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(
                said.starts_with("PROFILE has a dollar sign or a control character in it"),
                "{said}"
            );
        }
    }
    assert_eq!(home.files(), [""; 0]);
    assert!(!Path::new(env!("CARGO_MANIFEST_DIR")).join("PWNED").exists());
}
