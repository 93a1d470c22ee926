//! Builds the command line of a turn.
//!
//! Values must not be misread by codex's argument parser: `--` always precedes the positional arguments (`resume` would
//! be a subcommand, `--help` a flag), a thread id is a checked UUID, and the prompt goes through stdin unless the
//! config requests an argument and the prompt can be one.

use crate::backend::child::CodexCommand;
use crate::codex::find::{environment, removed_from_environment};
use crate::codex::toml;
use crate::config::{Config, PromptVia, Sandbox};
use crate::paths::Paths;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The longest argument that Linux accepts, in bytes: `MAX_ARG_STRLEN` includes the final NUL.
const LONGEST_ARGUMENT: usize = 131_072 - 1;

/// The parameters of a turn that determine the command line.
#[derive(Debug)]
pub(crate) struct TurnArgs<'a> {
    /// The thread to resume; `None` starts a new one.
    pub(crate) thread: Option<&'a str>,
    /// The model as the daemon names it.
    pub(crate) model: &'a str,
    /// Developer instructions. codex reads them when a thread starts, and again whenever it compacts one.
    pub(crate) system: Option<&'a str>,
    /// A prompt of this thread began with the instructions, and the model still sees them whole.
    pub(crate) system_in_thread: bool,
    pub(crate) images: &'a [PathBuf],
    /// A file with the JSON Schema for the last message.
    pub(crate) schema: Option<&'a Path>,
    /// codex's `model_reasoning_effort`.
    pub(crate) reasoning_effort: Option<&'a str>,
    pub(crate) prompt: &'a str,
    /// `-c` arguments that configure the bridge to the daemon's tools.
    pub(crate) tool_args: &'a [OsString],
    pub(crate) workspace: &'a Path,
}

impl<'a> TurnArgs<'a> {
    /// A turn in a new thread, without tools and options.
    pub(crate) fn new(workspace: &'a Path, prompt: &'a str) -> TurnArgs<'a> {
        TurnArgs {
            thread: None,
            model: "",
            system: None,
            system_in_thread: false,
            images: &[],
            schema: None,
            reasoning_effort: None,
            prompt,
            tool_args: &[],
            workspace,
        }
    }
}

/// Builds the command line of a turn.
pub(crate) fn build(
    program: &Path,
    config: &Config,
    places: &Paths,
    call: &TurnArgs<'_>,
) -> CodexCommand {
    let mut warnings = Vec::new();
    let extra = ExtraArgs::of(&config.extra_args, &mut warnings);
    // All flags precede `resume`, which accepts fewer of them than `exec`; those that both accept take effect there,
    // too (0.135 and 0.169).
    let mut args: Vec<OsString> = vec!["exec".into(), "--skip-git-repo-check".into()];
    if !extra.has("--sandbox", "-s") {
        // `codex exec` requests no approval with any of them.
        match config.sandbox {
            Sandbox::DangerFullAccess => {
                args.push("--dangerously-bypass-approvals-and-sandbox".into());
            }
            Sandbox::WorkspaceWrite => args.extend(["-s".into(), "workspace-write".into()]),
            Sandbox::ReadOnly => args.extend(["-s".into(), "read-only".into()]),
        }
    }
    push_model(config, call, &extra, &mut args, &mut warnings);
    // From 0.148 on an unreachable provider is retried without limit, and no failure is reported.
    args.push("-c".into());
    args.push("features.unbounded_connection_retries=false".into());
    let head = push_system(call, &extra, &mut args, &mut warnings);
    args.extend(call.tool_args.iter().cloned());
    // After the others, so that they take precedence.
    args.extend(extra.args.iter().map(OsString::from));
    // `-i` takes every argument up to the next flag: with an `-i` at the end of `extra_args` that must not be `resume`.
    args.push("--json".into());
    if call.thread.is_some() {
        args.push("resume".into());
    }
    args.push("--".into());
    if let Some(thread) = call.thread {
        args.push(thread.into());
    }
    let prompt = match head {
        Some(head) => format!("{head}\n\n{}", call.prompt),
        None => call.prompt.to_owned(),
    };
    let stdin = if config.prompt_via == PromptVia::Arg && can_be_argument(&prompt) {
        args.push(prompt.into());
        None
    } else {
        args.push("-".into());
        Some(prompt)
    };

    CodexCommand {
        program: program.to_owned(),
        args,
        directory: call.workspace.to_owned(),
        env: environment(config, places),
        env_removed: removed_from_environment(config),
        stdin,
        keeps_stdin: false,
        warnings,
    }
}

/// Adds what the model is given besides texts and tools: its name, images, the output schema, the reasoning effort
/// and the service tier.
fn push_model(
    config: &Config,
    call: &TurnArgs<'_>,
    extra: &ExtraArgs<'_>,
    args: &mut Vec<OsString>,
    warnings: &mut Vec<String>,
) {
    let model_args = config.model_args.get(call.model);
    match model_arg(config, call.model) {
        Some(model) if extra.has("--model", "-m") => warnings.push(format!(
            "\"extra_args\" in the config sets the model, which replaces the turn's '{model}'; use \"model_args\" to map models"
        )),
        Some(model) => args.extend(["--model".into(), model.into()]),
        None => {}
    }
    for image in call.images {
        args.push("-i".into());
        args.push(image.into());
    }
    if let Some(schema) = call.schema {
        if extra.has("--output-schema", "--output-schema") {
            warnings.push(
                "\"extra_args\" in the config sets an output schema, which replaces the turn's"
                    .to_owned(),
            );
        } else {
            args.extend(["--output-schema".into(), schema.into()]);
        }
    }
    let effort = model_args.and_then(|args| args.reasoning_effort.as_deref());
    if let Some(effort) = call.reasoning_effort.or(effort) {
        if extra.sets("model_reasoning_effort") {
            warnings.push(format!(
                "\"extra_args\" in the config sets model_reasoning_effort, which replaces the turn's '{effort}'"
            ));
        }
        let setting = format!("model_reasoning_effort={}", toml::string(effort));
        args.extend(["-c".into(), setting.into()]);
    }
    if let Some(tier) = model_args.and_then(|args| args.service_tier.as_deref()) {
        if extra.sets("service_tier") {
            warnings.push(format!(
                "\"extra_args\" in the config sets service_tier, which replaces the '{tier}' of \"model_args\""
            ));
        }
        let setting = format!("service_tier={}", toml::string(tier));
        args.extend(["-c".into(), setting.into()]);
    }
}

/// Adds the system text. Returns the block that the prompt has to begin with where it cannot be an argument.
fn push_system(
    call: &TurnArgs<'_>,
    extra: &ExtraArgs<'_>,
    args: &mut Vec<OsString>,
    warnings: &mut Vec<String>,
) -> Option<String> {
    let system = call.system?;
    if extra.sets("developer_instructions") {
        warnings.push(
            "\"extra_args\" in the config sets developer_instructions, which replaces the daemon's system text"
                .to_owned(),
        );
    }
    if let Some(setting) = system_setting(system) {
        args.extend(["-c".into(), setting.into()]);
        return None;
    }
    if call.system_in_thread {
        return None;
    }
    warnings.push(format!(
        "the system text of {} bytes does not fit in an argument of a program; it is placed at the beginning of the prompt instead, where a compaction shortens it until the next turn",
        system.len()
    ));
    Some(system_block(system))
}

/// The config's `extra_args`, without those that codex would reject beside the generated ones.
pub(in crate::backend) struct ExtraArgs<'a> {
    args: Vec<&'a str>,
}

impl<'a> ExtraArgs<'a> {
    pub(in crate::backend) fn of(args: &'a [String], warnings: &mut Vec<String>) -> ExtraArgs<'a> {
        let args = args
            .iter()
            .map(String::as_str)
            .filter(|arg| match *arg {
                // Already present; codex rejects duplicate flags.
                "--json"
                | "--experimental-json"
                | "--skip-git-repo-check"
                | "--dangerously-bypass-approvals-and-sandbox"
                | "--yolo" => false,
                "--" => {
                    warnings.push(
                        "'--' in \"extra_args\" in the config is ignored: codex would take the argument after it as the prompt"
                            .to_owned(),
                    );
                    false
                }
                _ => true,
            })
            .collect();
        ExtraArgs { args }
    }

    pub(in crate::backend) fn args(&self) -> &[&'a str] {
        &self.args
    }

    /// Checks that all of them are accepted by every subcommand of codex.
    ///
    /// # Errors
    /// The first one that is not.
    pub(in crate::backend) fn check_common(&self) -> Result<(), &'a str> {
        let mut rest = self.args.iter();
        while let Some(arg) = rest.next() {
            match *arg {
                "-c" | "--config" | "--enable" | "--disable" => {
                    rest.next();
                }
                arg if arg.starts_with("-c") && !arg.starts_with("--") => {}
                arg if ["--config=", "--enable=", "--disable="]
                    .iter()
                    .any(|flag| arg.starts_with(flag)) => {}
                other => return Err(other),
            }
        }
        Ok(())
    }

    /// Whether this flag is among them, in any spelling that codex accepts.
    fn has(&self, long: &str, short: &str) -> bool {
        self.args.iter().any(|arg| {
            arg.strip_prefix(long)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
                || (arg.starts_with(short) && !arg.starts_with("--"))
        })
    }

    /// Whether a `-c` sets this key of codex's config.
    pub(in crate::backend) fn sets(&self, key: &str) -> bool {
        self.args.iter().any(|arg| {
            let setting = arg
                .strip_prefix("--config=")
                .or_else(|| arg.strip_prefix("-c"))
                .unwrap_or(arg);
            setting
                .split_once('=')
                .is_some_and(|(name, _)| name.trim() == key)
        })
    }
}

/// The `-c` setting with the system text, if that can be an argument.
fn system_setting(system: &str) -> Option<String> {
    const KEY: &str = "developer_instructions=";
    let max_value = LONGEST_ARGUMENT - KEY.len();
    // Most texts fit in either form; the second one has no escapes, which double the length of a text with many line
    // breaks.
    let basic = (system.len() <= max_value).then(|| toml::string(system))?;
    let value = if basic.len() <= max_value {
        basic
    } else {
        toml::literal(system).filter(|literal| literal.len() <= max_value)?
    };
    Some(format!("{KEY}{value}"))
}

/// Whether this system text can be an argument.
pub(crate) fn system_can_be_argument(system: &str) -> bool {
    system_setting(system).is_some()
}

/// The system text in the form that is put at the beginning of a prompt.
pub(crate) fn system_block(system: &str) -> String {
    format!("<instructions>\n{system}\n</instructions>")
}

/// The value of `--model` for an advertised model; `None` leaves the choice to codex.
pub(in crate::backend) fn model_arg<'a>(config: &'a Config, model: &'a str) -> Option<&'a str> {
    let mapped = config.model_args.get(model);
    let mapped = mapped.map_or(model, |args| args.model.as_deref().unwrap_or(model));
    (!matches!(mapped, "" | "codex")).then_some(mapped)
}

/// Whether this prompt can be an argument. codex takes `-` as stdin even behind `--`.
fn can_be_argument(prompt: &str) -> bool {
    prompt != "-" && prompt.len() <= LONGEST_ARGUMENT && !prompt.contains('\0')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelArgs;

    fn args(config: &Config, call: &TurnArgs<'_>) -> Vec<String> {
        let built = build(Path::new("/codex"), config, &Paths::from_env(), call);
        built
            .args
            .iter()
            .map(|arg| arg.to_str().unwrap().to_owned())
            .collect()
    }

    fn as_model(model: &str) -> ModelArgs {
        ModelArgs {
            model: Some(model.to_owned()),
            ..ModelArgs::default()
        }
    }

    fn call<'a>(prompt: &'a str) -> TurnArgs<'a> {
        TurnArgs::new(Path::new("/w"), prompt)
    }

    const HEAD: [&str; 3] = [
        "exec",
        "--skip-git-repo-check",
        "--dangerously-bypass-approvals-and-sandbox",
    ];
    const RETRIES: [&str; 2] = ["-c", "features.unbounded_connection_retries=false"];

    #[test]
    fn new_thread_reads_prompt_from_stdin() {
        let config = Config::default();
        for prompt in ["hi", "-", "--help", "resume"] {
            let built = build(
                Path::new("/codex"),
                &config,
                &Paths::from_env(),
                &call(prompt),
            );
            assert_eq!(built.stdin.as_deref(), Some(prompt));
            assert_eq!(
                args(&config, &call(prompt)),
                [&HEAD[..], &RETRIES, &["--json", "--", "-"]].concat()
            );
        }
    }

    #[test]
    fn orders_arguments() {
        let config = Config {
            extra_args: vec!["--x".into()],
            model_args: [("big".to_owned(), as_model("gpt-5"))].into(),
            prompt_via: PromptVia::Arg,
            ..Config::default()
        };
        let images = [PathBuf::from("/a.png"), PathBuf::from("/b.png")];
        let tools = ["-c".into(), "mcp_servers.x={}".into()];
        let full = TurnArgs {
            thread: Some("T"),
            model: "big",
            system: Some("be brief"),
            images: &images,
            schema: Some(Path::new("/s.json")),
            reasoning_effort: Some("high"),
            tool_args: &tools,
            ..call("hi")
        };
        assert_eq!(
            args(&config, &full),
            [
                &HEAD[..],
                &["--model", "gpt-5", "-i", "/a.png", "-i", "/b.png"],
                &["--output-schema", "/s.json"],
                &["-c", "model_reasoning_effort=\"high\""],
                &RETRIES,
                &["-c", "developer_instructions=\"be brief\""],
                &["-c", "mcp_servers.x={}", "--x", "--json"],
                &["resume", "--", "T", "hi"],
            ]
            .concat()
        );
        assert_eq!(
            args(
                &config,
                &TurnArgs {
                    thread: None,
                    system: Some("a\"\\\n\u{7f}é"),
                    ..call("hi")
                }
            ),
            [
                &HEAD[..],
                &RETRIES,
                &[
                    "-c",
                    "developer_instructions=\"a\\\"\\\\\\n\\u007Fé\"",
                    "--x",
                    "--json",
                    "--",
                    "hi"
                ],
            ]
            .concat()
        );
    }

    // fault: 77
    #[test]
    fn extra_args_precede_resume_once() {
        let resumed = TurnArgs {
            thread: Some("T"),
            model: "gpt-5",
            system: Some("x"),
            ..call("hi")
        };
        for (extra, expected, sandboxed, model, warnings) in [
            (&["-p", "fast"][..], &["-p", "fast"][..], false, true, 0),
            (&["-s", "read-only"], &["-s", "read-only"], true, true, 0),
            (&["-sread-only"], &["-sread-only"], true, true, 0),
            (&["--sandbox=x"], &["--sandbox=x"], true, true, 0),
            (&["-m", "o9"], &["-m", "o9"], false, false, 1),
            (&["--model=o9"], &["--model=o9"], false, false, 1),
            (
                &["--json", "--yolo", "--skip-git-repo-check"],
                &[],
                false,
                true,
                0,
            ),
            (&["--", "-i", "/a.png"], &["-i", "/a.png"], false, true, 1),
            (
                &["-c", "developer_instructions=\"y\""],
                &["-c", "developer_instructions=\"y\""],
                false,
                true,
                1,
            ),
        ] {
            let config = Config {
                extra_args: extra.iter().map(|arg| (*arg).to_owned()).collect(),
                ..Config::default()
            };
            let places = Paths::from_env();
            let built = build(Path::new("/codex"), &config, &places, &resumed);
            let args = args(&config, &resumed);
            let end = [expected, &["--json", "resume", "--", "T", "-"]].concat();
            assert_eq!(args[args.len() - end.len()..], end, "{extra:?}");
            assert_eq!(args.contains(&HEAD[2].to_owned()), !sandboxed, "{args:?}");
            assert_eq!(args.contains(&"--model".to_owned()), model, "{args:?}");
            assert_eq!(built.warnings.len(), warnings, "{:?}", built.warnings);
        }
    }

    #[test]
    fn prompt_that_is_no_argument_goes_through_stdin() {
        let config = Config {
            prompt_via: PromptVia::Arg,
            ..Config::default()
        };
        let long = "x".repeat(131_072);
        for prompt in ["-", "a\0b", &long] {
            let built = build(
                Path::new("/codex"),
                &config,
                &Paths::from_env(),
                &call(prompt),
            );
            assert_eq!(built.stdin.as_deref(), Some(prompt));
            assert_eq!(built.args.last().unwrap(), "-");
        }
        let long = "x".repeat(131_071);
        assert_eq!(args(&config, &call(&long)).last(), Some(&long));
    }

    // fault: 70
    #[test]
    fn overlong_system_text_heads_prompt() {
        let config = Config::default();
        let built = |system: &str, system_in_thread| {
            let call = TurnArgs {
                thread: Some("T"),
                system: Some(system),
                system_in_thread,
                ..call("hi")
            };
            build(Path::new("/codex"), &config, &Paths::from_env(), &call)
        };
        let long = "x".repeat(131_071);
        let first = built(&long, false);
        assert_eq!(first.warnings.len(), 1);
        assert_eq!(
            first.stdin.unwrap(),
            format!("<instructions>\n{long}\n</instructions>\n\nhi")
        );
        let next = built(&long, true);
        assert_eq!(next.warnings, Vec::<String>::new());
        assert_eq!(next.stdin.as_deref(), Some("hi"));
        // Escapes would double the length of these; a literal string has none.
        let lines = "\n".repeat(100_000);
        let given = built(&lines, false);
        let setting = format!("developer_instructions='''\n{lines}'''");
        assert!(given.args.contains(&OsString::from(setting)));
        assert_eq!(given.stdin.as_deref(), Some("hi"));
        for text in [
            "\r\n".repeat(50_000),
            "'''\n".repeat(30_000),
            "\\'".repeat(50_000),
        ] {
            assert!(built(&text, false).stdin.unwrap().contains(&text));
        }
    }

    #[test]
    fn maps_model() {
        let config = Config {
            model_args: [("a", "gpt-5"), ("none", ""), ("same", "codex")]
                .map(|(id, model)| (id.to_owned(), as_model(model)))
                .into(),
            ..Config::default()
        };
        for (model, arg) in [
            ("", None),
            ("codex", None),
            ("a", Some("gpt-5")),
            ("none", None),
            ("same", None),
            ("o9", Some("o9")),
        ] {
            assert_eq!(model_arg(&config, model), arg, "{model:?}");
        }
        let config = Config {
            model_args: [("codex".to_owned(), as_model("gpt-5"))].into(),
            ..Config::default()
        };
        assert_eq!(model_arg(&config, "codex"), Some("gpt-5"));
        assert_eq!(model_arg(&config, ""), None);
    }
}
