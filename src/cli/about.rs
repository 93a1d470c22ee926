//! The parts of the help text besides the flags: description, files, environment variables, exit statuses.
//!
//! Data only; text in backquotes is code. The tests in `man.rs` compare the man page with it.

/// The program's name; every message on stderr begins with it.
pub(crate) const NAME: &str = "plexum-openai";

/// The description in one line.
pub(crate) const BRIEF: &str = "run codex as a provider of the Plexum agent daemon";

/// The description, in paragraphs.
pub(crate) const PROGRAM: &[&str] = &[
    "Makes the codex command line on this machine a provider of the Plexum agent daemon. Each turn of an agent is one run of `codex exec` in the agent's workspace. The workspace stores the id of codex's thread, so the next turn continues the conversation.",
    "Without a subcommand, plexum-openai serves the daemon, as `serve` does. Each of the other subcommands runs one part of this work on its own, from a terminal or a script. Results are written to stdout, and messages for people to stderr. If the reader of stdout closes it early, plexum-openai exits without an error message.",
];

/// A name and its meaning.
type Topic = (&'static str, &'static str);

/// The files that the program reads or writes.
pub(crate) const FILES: &[Topic] = &[
    (
        "~/.plexum/plugins/plexum-openai-provider/config.json",
        "The config file, in the profile directory given by `PLEXUM_PROFILE_ROOT`, by default `~/.plexum`. A missing file is treated as an empty one.",
    ),
    (
        "~/.plexum/plugins/plexum-openai-provider/workspaces",
        "The workspaces in which turns have run, for `threads`. It can be removed.",
    ),
    (
        "WORKSPACE/.plexum-codex-session",
        "The id of codex's thread and nothing else. If it is removed, the next turn starts a new thread. In a copy of the workspace, the next turn sets the file aside and starts a separate thread; a workspace that is moved keeps its thread. In a git repository the file is listed in `info/exclude`.",
    ),
    (
        "WORKSPACE/.plexum-codex-session.bad",
        "A session file that was set aside because it was invalid or came with a copy of the workspace; or the id of a thread that was replaced by a new one. It is never passed to codex.",
    ),
    (
        "WORKSPACE/.plexum-codex-session.lock",
        "Locked by the turn that runs in the workspace, if the directory itself cannot be locked (NFS). It is empty and is not removed.",
    ),
    (
        "~/.codex/sessions/YYYY/MM/DD/rollout-*.jsonl",
        "codex's record of a thread, called its rollout, below `CODEX_HOME`. `parse-rollout` reads it, `mutate` rewrites it.",
    ),
    (
        "$XDG_RUNTIME_DIR/plexum-openai/",
        "The sockets through which codex reaches the daemon's tools, and images while codex runs. If `XDG_RUNTIME_DIR` is not set, `run` in the profile is used instead, or, if that path is too long for a socket, a directory in `/tmp`.",
    ),
];

/// The environment variables that affect the program.
pub(crate) const ENVIRONMENT: &[Topic] = &[
    (
        "PLEXUM_PROFILE_ROOT",
        "The daemon's profile directory, instead of `~/.plexum`.",
    ),
    (
        "CODEX_HOME",
        "codex's directory, instead of `~/.codex`; `codex_home` in the config takes precedence.",
    ),
    (
        "CODEX_API_KEY",
        "The API key that `codex exec` uses if codex is not logged in. codex ignores `OPENAI_API_KEY`.",
    ),
    (
        "PATH",
        "Where to find codex, unless `binary` in the config contains a slash.",
    ),
    (
        "NO_COLOR",
        "Disables colour if it is set and not empty; `--color` takes precedence.",
    ),
    (
        "TERM",
        "The value `dumb` disables colour and the status line.",
    ),
    (
        "XDG_RUNTIME_DIR",
        "The directory in which a subdirectory for the sockets for codex is created.",
    ),
    (
        "PLEXUM_MCP_SOCKET, PLEXUM_MCP_AGENT_ID",
        "Can replace the flags of `mcp-host`; a flag takes precedence.",
    ),
    (
        "RUST_LOG",
        "The level of the developer log on stderr: `error`, `warn`, `info`, `debug` or `trace`. Prompts, tool arguments and keys are not logged at any level.",
    ),
];

/// The exit statuses.
pub(crate) const EXIT_STATUS: &[Topic] = &[
    ("0", "Success."),
    (
        "1",
        "The operation failed: the turn ended with an error, a file could not be read or written, or a check of `doctor` failed.",
    ),
    ("2", "The command line or the config is wrong."),
    (
        "143",
        "Terminated by SIGTERM, after all child processes have ended. After SIGINT the program also ends its child processes first and then terminates itself with SIGINT, so that a shell loop around it stops; a shell reports this as 130.",
    ),
];
