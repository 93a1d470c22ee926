//! The parts of the help text besides the flags: description, files, environment variables, exit statuses.
//!
//! Data only; text in backquotes is code. The tests in `man.rs` compare the man page with it.

/// The program's name; every message on stderr begins with it.
pub(crate) const NAME: &str = "plexum-openai";

/// The description in one line.
pub(crate) const BRIEF: &str = "run codex as a provider of the Plexum agent daemon";

/// The description, in paragraphs.
pub(crate) const PROGRAM: &[&str] = &[
    "Makes the codex command line of this machine a provider of the Plexum agent daemon. A turn of an agent is one run of `codex exec` in the agent's workspace; the workspace remembers codex's thread, so the next turn continues the conversation.",
    "With no subcommand it serves the daemon, the same as `serve`. Every other subcommand exposes one stage by itself, for a person at a terminal or a script. Results go to stdout, everything for people to stderr; a reader that closes stdout early ends it quietly.",
];

/// A name and its meaning.
type Topic = (&'static str, &'static str);

/// The files that the program reads or writes.
pub(crate) const FILES: &[Topic] = &[
    (
        "~/.plexum/plugins/plexum-openai-provider/config.json",
        "The config file, in the profile that `PLEXUM_PROFILE_ROOT` names, else in `~/.plexum`. A missing file is an empty one.",
    ),
    (
        "~/.plexum/plugins/plexum-openai-provider/workspaces",
        "The workspaces that turns ran in, for `threads`; it may be removed.",
    ),
    (
        "WORKSPACE/.plexum-codex-session",
        "The id of codex's thread and nothing else. Remove it and the next turn starts a new thread. In a copy of the workspace the next turn sets it aside and starts a thread of its own; a workspace that is moved keeps its thread. In a git repository it is listed in `info/exclude`.",
    ),
    (
        "WORKSPACE/.plexum-codex-session.bad",
        "A session file that was not one, or that came with a copy, set aside; or the id of a thread that a new one took over from. It is never passed to codex.",
    ),
    (
        "WORKSPACE/.plexum-codex-session.lock",
        "Held by the one turn that runs in the workspace, where the directory itself cannot be locked (NFS); an empty file, which stays.",
    ),
    (
        "~/.codex/sessions/YYYY/MM/DD/rollout-*.jsonl",
        "codex's record of a thread, its rollout; below `CODEX_HOME`. `parse-rollout` reads it, `mutate` rewrites it.",
    ),
    (
        "$XDG_RUNTIME_DIR/plexum-openai/",
        "Sockets through which codex reaches the daemon's tools, and images while codex runs; a directory below the profile where `XDG_RUNTIME_DIR` is not set.",
    ),
];

/// The environment variables that affect the program.
pub(crate) const ENVIRONMENT: &[Topic] = &[
    (
        "PLEXUM_PROFILE_ROOT",
        "The daemon's profile, instead of `~/.plexum`.",
    ),
    (
        "CODEX_HOME",
        "codex's directory, instead of `~/.codex`; the config's `codex_home` wins.",
    ),
    (
        "CODEX_API_KEY",
        "The key that `codex exec` uses where codex is not logged in. It ignores `OPENAI_API_KEY`.",
    ),
    (
        "PATH",
        "Where codex is looked for, unless the config's `binary` has a slash in it.",
    ),
    (
        "NO_COLOR",
        "No colour, where it is set to anything but the empty string; `--color` wins.",
    ),
    ("TERM", "No colour and no live line where it is `dumb`."),
    (
        "XDG_RUNTIME_DIR",
        "Where the sockets for codex are made, in a directory of their own.",
    ),
    (
        "PLEXUM_MCP_SOCKET, PLEXUM_MCP_AGENT_ID",
        "Stand in for the flags of `mcp-host`; the flags win.",
    ),
    (
        "RUST_LOG",
        "What is logged on stderr for who works on this program: `error`, `warn`, `info`, `debug` or `trace`. Prompts, tool arguments and keys are not logged at any level.",
    ),
];

/// The exit statuses.
pub(crate) const EXIT_STATUS: &[Topic] = &[
    ("0", "Done."),
    (
        "1",
        "The work failed: the turn ended in an error, a file could not be read or written, a check of `doctor` failed.",
    ),
    ("2", "The command line or the config is wrong."),
    (
        "143",
        "Ended by SIGTERM, every child process gone first. At SIGINT they end too, and then the program by that signal itself, so that a shell loop around it ends; a shell calls that 130.",
    ),
];
