//! A place for one test: home, profile, `CODEX_HOME`, workspaces, a model, all in one temporary directory.
//!
//! The directory's path is in the environment of everything that is started in it, which is how [`super::ps`]
//! finds what was left running.

use super::model::Model;
use super::user::User;
use super::{codex, copy_program, ps};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub(crate) struct Lab {
    root: TempDir,
    codex: PathBuf,
    model: Option<Model>,
    env: Vec<(OsString, OsString)>,
}

impl Lab {
    /// A place where the real codex is used, with a model that says what `script` says.
    pub(crate) fn real(codex: &Path, script: Value) -> Lab {
        Lab::real_with_retries(codex, script, 0)
    }

    /// The same, and codex tries a failed request and a broken stream again.
    pub(crate) fn real_with_retries(codex: &Path, script: Value, retries: u32) -> Lab {
        let mut lab = Lab::with(codex.to_owned());
        lab.start_model(script, retries);
        lab
    }

    /// A place where codex is the fake with this script; null is the fake's own good behaviour.
    pub(crate) fn fake(script: Value) -> Lab {
        let lab = Lab::with(codex::fake());
        fs::create_dir_all(lab.codex_home()).expect("a directory");
        lab.script(script);
        lab
    }

    /// A place where this user runs the real codex, however closed the directories of the checkout are. `plugin` in it
    /// is the program.
    pub(crate) fn real_of(user: User, codex: &Path, script: Value) -> Lab {
        let mut lab = Lab::with_in(codex.to_owned(), Path::new("/tmp"));
        lab.start_model(script, 0);
        lab.give_to(user);
        lab
    }

    /// The same with the fake codex.
    pub(crate) fn fake_of(user: User, script: Value) -> Lab {
        let mut lab = Lab::with_in(codex::fake(), Path::new("/tmp"));
        fs::create_dir_all(lab.codex_home()).expect("a directory");
        lab.script(script);
        lab.give_to(user);
        lab
    }

    fn start_model(&mut self, script: Value, retries: u32) {
        let model = Model::start(script).expect("the model's script is one");
        let home = self.codex_home();
        model
            .write_codex_home(&home, retries)
            .expect("CODEX_HOME can be written");
        // codex else asks the internet for updates of its plugins at each start. There are none here.
        let config = home.join("config.toml");
        let text = fs::read_to_string(&config).expect("it was just written");
        fs::write(config, format!("features.plugins = false\n{text}")).expect("a file");
        self.model = Some(model);
    }

    fn give_to(&mut self, user: User) {
        let plugin = self.path("plugin");
        copy_program(Path::new(env!("CARGO_BIN_EXE_plexum-openai")), &plugin);
        let tried = user.command(&self.codex).arg("--version").output();
        if tried.is_err() {
            let codex = self.path("codex-program");
            copy_program(&self.codex, &codex);
            self.codex = codex;
            self.config(json!({}));
        }
        user.own(self.root());
    }

    fn with(codex: PathBuf) -> Lab {
        Lab::with_in(codex, Path::new(env!("CARGO_TARGET_TMPDIR")))
    }

    fn with_in(codex: PathBuf, base: &Path) -> Lab {
        let root = tempfile::Builder::new()
            .prefix("lab-")
            .tempdir_in(base)
            .expect("the directory for tests can be written");
        let mut lab = Lab {
            root,
            codex,
            model: None,
            env: Vec::new(),
        };
        for directory in ["home", "workspace", "tmp", "stubs"] {
            fs::create_dir(lab.path(directory)).expect("a directory");
        }
        // codex runs it at each start, for a request header. Debian's is a shell script that runs half a dozen programs.
        let stub = lab.path("stubs/lsb_release");
        symlink("/bin/false", stub).expect("a symbolic link");
        let log = lab.path("fake.log");
        let path = format!(
            "{}:/usr/local/bin:/usr/bin:/bin",
            lab.path("stubs").display()
        );
        for (name, value) in [
            // The login shell that codex runs commands in looks for its files here.
            ("HOME", lab.path("home")),
            ("CODEX_HOME", lab.codex_home()),
            ("PLEXUM_PROFILE_ROOT", lab.path("profile")),
            ("FAKE_CODEX_LOG", log),
            ("LOOPBACK_KEY", "any".into()),
            // The model is reached by http. Reading the machine's certificates is a fifth of the processor time of a turn.
            ("SSL_CERT_FILE", "/dev/null".into()),
            // The repository that these tests are part of is none of a workspace here.
            ("GIT_CEILING_DIRECTORIES", lab.root().to_owned()),
            ("LANG", "C.UTF-8".into()),
            ("TZ", "UTC".into()),
            ("PATH", path.into()),
        ] {
            lab.set_env(name, value);
        }
        lab.config(json!({}));
        lab
    }

    /// Replaces the fake codex's script.
    pub(crate) fn script(&self, script: Value) {
        let path = self.path("fake.json");
        if script.is_null() {
            // The script's name stays in the environment: an empty object leaves all to the fake.
            fs::write(path, "{}").expect("a file");
        } else {
            fs::write(path, script.to_string()).expect("a file");
        }
    }

    /// Writes the plugin's config, with the lab's codex as `binary` unless it says another.
    pub(crate) fn config(&self, mut config: Value) {
        if config.get("binary").is_none() {
            config["binary"] = json!(self.codex);
        }
        if config.get("backend").is_none() && codex::backend() != codex::EXEC {
            config["backend"] = json!(codex::backend());
        }
        self.raw_config(config.to_string().as_bytes());
    }

    /// Writes these bytes as the plugin's config.
    pub(crate) fn raw_config(&self, bytes: &[u8]) {
        let path = self.config_file();
        let directory = path.parent().expect("a file in a directory");
        if !directory.is_dir() {
            fs::create_dir_all(directory).expect("a directory");
            // doctor minds what others can write, as some umasks have it.
            for directory in directory.ancestors().take(3) {
                fs::set_permissions(directory, fs::Permissions::from_mode(0o755))
                    .expect("a directory");
            }
        }
        fs::write(&path, bytes).expect("a file");
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("a file");
    }

    /// The pids of the `codex app-server`s that run here, without their guards.
    pub(crate) fn servers(&self) -> Vec<u32> {
        let is_server = |process: &ps::Process| {
            process.command.contains(" app-server ") && !process.command.contains("codex-guard")
        };
        let mut found = ps::of(self.root());
        found.retain(is_server);
        let pids: Vec<u32> = found.iter().map(|process| process.pid).collect();
        // A process that a server is just starting has the server's command line until it runs its own program.
        found.retain(|process| !pids.contains(&process.parent));
        found.iter().map(|process| process.pid).collect()
    }

    /// Does the plugin keep something of a workspace between turns?
    pub(crate) fn keeps_servers(&self) -> bool {
        codex::backend() == codex::APP_SERVER
    }

    pub(crate) fn config_file(&self) -> PathBuf {
        self.path("profile/plugins/plexum-openai-provider/config.json")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    pub(crate) fn codex(&self) -> &Path {
        &self.codex
    }

    pub(crate) fn codex_home(&self) -> PathBuf {
        self.path("codex")
    }

    pub(crate) fn workspace(&self) -> PathBuf {
        self.path("workspace")
    }

    pub(crate) fn session_file(&self) -> PathBuf {
        self.workspace().join(".plexum-codex-session")
    }

    /// What the session file holds, without the line's end; `None` where there is none.
    pub(crate) fn stored_thread(&self) -> Option<String> {
        let text = fs::read_to_string(self.session_file()).ok()?;
        Some(text.trim_end().to_owned())
    }

    pub(crate) fn model(&self) -> &Model {
        self.model.as_ref().expect("a lab with the real codex")
    }

    /// The whole environment of what is started here.
    pub(crate) fn env(&self) -> impl Iterator<Item = (OsString, OsString)> {
        let script = self.path("fake.json");
        self.env
            .clone()
            .into_iter()
            .chain([("FAKE_CODEX_SCRIPT".into(), script.into())])
    }

    pub(crate) fn set_env(&mut self, name: &str, value: impl Into<OsString>) {
        self.env.retain(|(known, _)| known != name);
        self.env.push((name.into(), value.into()));
    }

    /// What the fake codex recorded: one object for each start and for each prompt that it read from stdin.
    pub(crate) fn fake_log(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("fake.log")).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).expect("the fake writes JSON lines"))
            .collect()
    }

    /// The fake's runs of `exec`.
    pub(crate) fn fake_runs(&self) -> Vec<Value> {
        let mut log = self.fake_log();
        log.retain(|line| line["argv"][0] == "exec");
        log
    }

    /// The prompts that the fake read from stdin.
    pub(crate) fn fake_prompts(&self) -> Vec<String> {
        self.fake_log()
            .iter()
            .filter_map(|line| line["stdin"].as_str().map(str::to_owned))
            .collect()
    }

    /// The rollout files of a thread.
    pub(crate) fn rollouts(&self, thread: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut directories = vec![self.codex_home().join("sessions")];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    directories.push(path);
                } else if path.to_string_lossy().contains(thread) {
                    found.push(path);
                }
            }
        }
        found
    }

    /// Waits until nothing runs here any more.
    #[track_caller]
    pub(crate) fn assert_quiet(&self) {
        ps::assert_gone(self.root());
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // codex itself leaves a shell behind that still records its settings; it ends by itself.
        let patience = Instant::now() + Duration::from_secs(10);
        while !std::thread::panicking()
            && !ps::of(self.root()).is_empty()
            && Instant::now() < patience
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        // A failed test must not hold up the next one; one that has not failed must have nothing here.
        let left = ps::kill_all(self.root());
        if !std::thread::panicking() {
            assert!(left.is_empty(), "left running: {left:#?}");
        }
    }
}
