//! The table of subcommands and flags, and the command line parser that uses it.
//!
//! Help and completions are rendered from this table, so they cannot disagree with the parser. The man page is written
//! by hand; the tests in `man.rs` compare it with the table. lexopt splits the arguments; this file looks names up, and
//! opens no file.

use crate::config::nearest;
use crate::error::{Error, Kind, Result};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

/// How a shell completes a flag's value or an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Completes {
    /// The shell has nothing to suggest.
    Nothing,
    File,
    Directory,
    Words(&'static [&'static str]),
}

/// One flag of a subcommand.
#[derive(Debug)]
pub(crate) struct Flag {
    pub(crate) long: &'static str,
    pub(crate) short: Option<char>,
    /// The placeholder of its value in help; `None` where it takes no value.
    pub(crate) value: Option<&'static str>,
    pub(crate) completes: Completes,
    /// Whether all of its values count; of any other flag the last one does.
    pub(crate) repeatable: bool,
    /// One line, for `-h`.
    pub(crate) brief: &'static str,
    /// The additional text of `--help`; may be empty. Text in backquotes is code.
    pub(crate) more: &'static str,
}

/// One subcommand.
#[derive(Debug)]
pub(crate) struct Subcommand {
    pub(crate) name: &'static str,
    /// Its operands in the syntax of a synopsis; empty where it takes none.
    pub(crate) operands: &'static str,
    /// The maximum number of operands; `turn` takes a `-` besides.
    pub(crate) max_operands: usize,
    pub(crate) operand_completes: Completes,
    /// One line, for the list of subcommands.
    pub(crate) brief: &'static str,
    /// Paragraphs for `--help`. Text in backquotes is code.
    pub(crate) more: &'static [&'static str],
    pub(crate) flags: &'static [Flag],
    /// Command lines, each with its purpose.
    pub(crate) examples: &'static [(&'static str, &'static str)],
}

const fn flag(long: &'static str, short: Option<char>, brief: &'static str) -> Flag {
    Flag {
        long,
        short,
        value: None,
        completes: Completes::Nothing,
        repeatable: false,
        brief,
        more: "",
    }
}

const fn valued(
    long: &'static str,
    short: Option<char>,
    value: &'static str,
    completes: Completes,
    brief: &'static str,
) -> Flag {
    Flag {
        long,
        short,
        value: Some(value),
        completes,
        repeatable: false,
        brief,
        more: "",
    }
}

const WORKSPACE: Flag = valued(
    "workspace",
    Some('w'),
    "DIR",
    Completes::Directory,
    "the agent's workspace",
);
const THREAD: Flag = valued(
    "thread",
    Some('t'),
    "ID",
    Completes::Nothing,
    "codex's thread, by its UUID",
);
const COLOR: Flag = Flag {
    more: "`auto` uses colour on a terminal, unless `NO_COLOR` is set or `TERM` is `dumb`.",
    ..valued(
        "color",
        None,
        "WHEN",
        Completes::Words(&["auto", "always", "never"]),
        "when to use colour: auto, always or never",
    )
};

/// The flags of every subcommand, and of the program without one.
pub(crate) const COMMON: &[Flag] = &[
    Flag {
        more: "`-h` prints the short help, `--help` the full help.",
        ..flag("help", Some('h'), "print help and exit")
    },
    flag("version", Some('V'), "print the version and exit"),
];

/// All subcommands, in the order of the help text.
pub(crate) const SUBCOMMANDS: &[Subcommand] = &[
    Subcommand {
        name: "serve",
        operands: "",
        max_operands: 0,
        operand_completes: Completes::Nothing,
        brief: "serve the daemon on stdin and stdout (the default)",
        more: &[
            "The protocol is JSON-RPC 2.0 with one message per line, described in plexum-openai-protocol(7). The daemon starts this subcommand; running it by hand is useful for trying out the protocol. It exits at the end of stdin.",
        ],
        flags: &[],
        examples: &[(
            r#"echo '{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18"}}' | plexum-openai serve"#,
            "send one request by hand",
        )],
    },
    Subcommand {
        name: "turn",
        operands: "[PROMPT] [-]",
        max_operands: 1,
        operand_completes: Completes::Nothing,
        brief: "run one turn in a workspace, as the daemon would",
        more: &[
            "Runs codex once in the workspace and continues the conversation whose thread id is stored in the workspace's `.plexum-codex-session`, with the same config, session file and locks as a turn of the daemon.",
            "Without PROMPT, or with `-` alone, the prompt is read from stdin. With PROMPT and `-`, the content of stdin is appended to PROMPT, marked as `<stdin>`. The assistant's text is written to stdout. The progress is written to stderr: a line for each command and tool call with its duration, and at the end the tokens used. On a terminal a status line also shows the current activity, unless stdout is a pipe.",
            "Ctrl-C cancels the turn cleanly and keeps the thread; a second Ctrl-C kills it at once. The program then terminates itself with SIGINT, so that a shell loop around it stops too. Ctrl-Z also suspends codex, and `fg` resumes it; time limits keep running meanwhile. If a command of the agent fails, the last lines of its output are shown, at most ten. With `--json` only warnings are written to stderr.",
        ],
        flags: &[
            Flag {
                brief: "the workspace (default: the current directory)",
                more: "It is created if it is missing.",
                ..WORKSPACE
            },
            Flag {
                more: "With the empty string or `codex`, codex chooses the model; other names are mapped by `model_args` in the config.",
                ..valued(
                    "model",
                    Some('m'),
                    "ID",
                    Completes::Nothing,
                    "the model, by the name that the daemon uses",
                )
            },
            valued(
                "agent-id",
                Some('a'),
                "ID",
                Completes::Nothing,
                "the agent's id",
            ),
            Flag {
                repeatable: true,
                ..valued(
                    "image",
                    Some('i'),
                    "FILE",
                    Completes::File,
                    "attach an image to the prompt (repeatable)",
                )
            },
            Flag {
                more: "codex applies them when it starts a thread, and in a resumed thread when it compacts the conversation, so give them with every turn. Other users can see them in the process list.",
                ..valued(
                    "system",
                    None,
                    "TEXT",
                    Completes::Nothing,
                    "system instructions for the model",
                )
            },
            Flag {
                more: "A value that the provider supports, such as `low`, `medium` or `high`.",
                ..valued(
                    "effort",
                    None,
                    "LEVEL",
                    Completes::Nothing,
                    "the reasoning effort",
                )
            },
            Flag {
                more: "The last message is then JSON that conforms to the schema.",
                ..valued(
                    "output-schema",
                    None,
                    "FILE",
                    Completes::File,
                    "a JSON Schema for the last message",
                )
            },
            Flag {
                more: "The id of the old thread is kept until codex has reported the new one.",
                ..flag("fresh", None, "start a new thread")
            },
            Flag {
                brief: "resume the thread with this UUID",
                more: "It becomes the thread of the workspace.",
                ..THREAD
            },
            valued(
                "timeout",
                None,
                "SECS",
                Completes::Nothing,
                "time limit in seconds; 0 means no limit",
            ),
            Flag {
                more: "The default is `busy_wait_secs` in the config.",
                ..valued(
                    "wait",
                    None,
                    "SECS",
                    Completes::Nothing,
                    "seconds to wait for a workspace that is in use",
                )
            },
            Flag {
                more: "NAME is `exec` or `app-server`.",
                ..valued(
                    "backend",
                    None,
                    "NAME",
                    Completes::Words(&["exec", "app-server"]),
                    "how codex is run, overriding the config",
                )
            },
            valued(
                "binary",
                None,
                "PATH",
                Completes::File,
                "the codex executable, overriding the config",
            ),
            Flag {
                more: "These are exactly the `event` objects that the daemon would get, one per line, followed by a line of type `result`.",
                ..flag("json", None, "print the canonical events as JSON lines")
            },
            Flag {
                more: "This suits scripts: the intermediate messages of the model are left out.",
                ..flag("last", None, "print only the last message")
            },
            flag("quiet", Some('q'), "print only errors to stderr"),
            flag(
                "verbose",
                Some('v'),
                "also show command output and the model's reasoning",
            ),
            COLOR,
        ],
        examples: &[
            (
                "plexum-openai turn --workspace ~/agents/alice \"What changed today?\"",
                "run a turn and watch its progress",
            ),
            (
                "git diff | plexum-openai turn -w ~/agents/alice --json | jq .type",
                "read the prompt from a pipe and write the events to another",
            ),
            (
                "title=$(git diff | plexum-openai turn -q --last \"A title for this:\" -)",
                "use the answer in a script",
            ),
        ],
    },
    Subcommand {
        name: "parse-rollout",
        operands: "[FILE...|-]",
        max_operands: usize::MAX,
        operand_completes: Completes::File,
        brief: "print the tool calls of rollout files as canonical events",
        more: &[
            "Prints the `tool_use` and then the `tool_result` of every call that has an output, in the order of the outputs, one JSON object per line. Without FILE, or with `-`, the rollout is read from stdin. Memory use does not grow with the size of the file.",
            "Lines that are not JSON are skipped; a message on stderr gives their count and the number of the first one. A file without any rollout record, for example an empty file, is an error whose message says what the file seems to be. A rollout that codex has compressed to `.jsonl.zst` is read through the program `zstd`, up to 4 GiB. Each event has `time`, the time at which it was recorded, and with several FILEs also `file`.",
        ],
        flags: &[
            Flag {
                brief: "the rollout of this workspace's thread",
                ..WORKSPACE
            },
            Flag {
                brief: "the rollout of this thread",
                ..THREAD
            },
            flag("all", None, "also print calls without an output"),
            Flag {
                more: "NAME is the tool's name in the events; it also filters `--summary`.",
                ..valued(
                    "tool",
                    None,
                    "NAME",
                    Completes::Nothing,
                    "print only the calls of this tool",
                )
            },
            Flag {
                more: "It also filters `--summary`.",
                ..flag("errors", None, "print only the calls that failed")
            },
            Flag {
                more: "They are printed in order, as `{\"type\":\"message\",\"role\":\"user\",\"text\":...}`, without the messages that codex itself adds for the model.",
                ..flag(
                    "messages",
                    None,
                    "also print the texts of the user and the assistant",
                )
            },
            Flag {
                more: "It ends with Ctrl-C or when the reader of stdout closes it, and continues across a rewrite of the rollout by `mutate`. A packed rollout does not grow and cannot be followed.",
                ..flag(
                    "follow",
                    Some('f'),
                    "follow a rollout that is being written",
                )
            },
            Flag {
                more: "The largest calls come first, each with its id, tool, bytes of arguments and output, share of the total, a bar relative to the largest call, whether it has been consumed, and on a wide terminal the beginning of its arguments.",
                ..flag(
                    "summary",
                    None,
                    "print a table for people instead of events",
                )
            },
            Flag {
                more: "`tool` prints a row for each tool, with the sums over its calls. The default is `call`. This flag implies `--summary`.",
                ..valued(
                    "by",
                    None,
                    "WHAT",
                    Completes::Words(&["call", "tool"]),
                    "what a row of the summary stands for: call or tool",
                )
            },
            Flag {
                more: "One object: `calls`, the largest first, each with `id`, `name`, `arguments_bytes`, `arguments` (the beginning of the arguments), `output_bytes`, `share` (0 to 1), `answered`, `is_error`, `consumed` (`light`, `heavy`, `cut` if the marker is cut too short to tell the two apart, or null) and, for a tool of an MCP server, `namespace`; and `total`, with `calls`, `arguments_bytes`, `output_bytes` and `consumed`. With `--by tool`, `tools` takes the place of `calls`, each with `name`, `calls`, the two sizes and `share`.",
                ..flag("json", None, "with --summary: print the summary as JSON")
            },
            COLOR,
        ],
        examples: &[
            (
                "plexum-openai parse-rollout --workspace ~/agents/alice --summary",
                "show what fills the context",
            ),
            (
                "plexum-openai parse-rollout -w ~/agents/alice | jq -r 'select(.type == \"tool_use\").id'",
                "list the ids of the tool calls, for 'mutate'",
            ),
            (
                "plexum-openai parse-rollout -w ~/agents/alice --follow --messages | jq -r '.text // .name // empty'",
                "follow the conversation",
            ),
        ],
    },
    Subcommand {
        name: "mutate",
        operands: "[CALL_ID...]",
        max_operands: usize::MAX,
        operand_completes: Completes::Nothing,
        brief: "consume tool calls in a rollout",
        more: &[
            "codex rebuilds the model's context from the rollout, so content that is replaced there is no longer in the context from the next turn on. `light` replaces the outputs of a call with `...(consumed)`; `heavy` replaces them with `...(tool called)` and the arguments with `{}`. Every line of the rollout keeps its length in bytes, so that codex's own index of the file stays valid. A marker that is longer than the text it replaces is cut.",
            "The result is written to stdout: `{\"requested\":2,\"touched\":1,\"missing\":[\"call_x\"],\"freed_bytes\":11500}`. `missing` lists the ids for which the rollout has no call with an output, or has a line longer than 32 MiB. A call made inside codex's code mode has no record that could be replaced; instead its outer call is consumed, once all calls made inside it are named. `freed_bytes` counts the bytes that codex no longer reads; the size of the file does not change. A call that was consumed before is not touched again.",
            "Consuming cannot be undone. The file keeps its size and modification time, so a backup or sync tool that relies on them does not notice the change. If none of the calls was found, stderr has a message and the exit status is 1.",
            "Some models restart the numbering of their calls in each turn, so that an id such as `list_dir:0` repeats within a thread. An id selects all calls that have it. With `--newest` it selects only the last one that has an output; the earlier ones, and the copies in a compacted history, are kept.",
            "The file is replaced atomically. Nothing is written, and the exit status is 1, while codex has the thread open, and if the file is a symbolic link, has several hard links or is not a rollout.",
        ],
        flags: &[
            Flag {
                brief: "the rollout of this workspace's thread",
                ..WORKSPACE
            },
            Flag {
                brief: "the rollout of this thread",
                ..THREAD
            },
            valued(
                "rollout",
                None,
                "FILE",
                Completes::File,
                "this rollout file",
            ),
            valued(
                "op",
                None,
                "OP",
                Completes::Words(&["light", "heavy", "consume-light", "consume-heavy"]),
                "the operation: light (default) or heavy",
            ),
            Flag {
                more: "The input is either call ids, one per line, or a list in the daemon's format, `[{\"block_id\":...,\"op\":...}]`.",
                ..flag("stdin", None, "read the calls from stdin")
            },
            valued(
                "larger-than",
                None,
                "BYTES",
                Completes::Nothing,
                "select the calls with more bytes of output than this",
            ),
            Flag {
                more: "With `--larger-than`, only calls that are also larger than that are selected.",
                ..valued(
                    "keep-last",
                    None,
                    "N",
                    Completes::Nothing,
                    "select all calls except the last N",
                )
            },
            flag(
                "newest",
                None,
                "consume only the newest of calls with the same id",
            ),
            flag(
                "dry-run",
                Some('n'),
                "report what would be done, without writing",
            ),
        ],
        examples: &[(
            "plexum-openai mutate --workspace ~/agents/alice --keep-last 0 --dry-run",
            "show how much consuming all calls would free",
        )],
    },
    Subcommand {
        name: "threads",
        operands: "[DIR...]",
        max_operands: usize::MAX,
        operand_completes: Completes::Directory,
        brief: "list the conversations of many agents",
        more: &[
            "Prints a line for each workspace that has a conversation, sorted by the last turn, newest first: the time of the last turn, the tokens used by the thread, how full its context is, the size of its rollout, the process that runs a turn in the workspace or has the thread open, the thread and the workspace. With DIR, workspaces are searched for in DIR and up to four levels of directories below it. Without DIR, the list has the workspaces in which turns have run; the plugin records them in a file next to its config file.",
        ],
        flags: &[Flag {
            more: "A list of objects with `workspace`, `thread`, `last_turn` (seconds since 1970), `tokens`, `context`, `rollout`, `rollout_bytes` and `held_by`; unknown values are null.",
            ..flag("json", None, "print the list as JSON")
        }],
        examples: &[(
            "plexum-openai threads",
            "list the agents by their last turn, with the size of their contexts",
        )],
    },
    Subcommand {
        name: "mcp-host",
        operands: "",
        max_operands: 0,
        operand_completes: Completes::Nothing,
        brief: "expose the daemon's tools to codex (codex starts this)",
        more: &[
            "An MCP server on stdin and stdout that forwards all messages to the socket of the running plugin. The variables `PLEXUM_MCP_SOCKET` and `PLEXUM_MCP_AGENT_ID` can replace the flags; a flag takes precedence.",
        ],
        flags: &[
            valued(
                "socket",
                None,
                "PATH",
                Completes::File,
                "the socket of the running plugin",
            ),
            valued(
                "agent-id",
                Some('a'),
                "ID",
                Completes::Nothing,
                "the agent to which the tools belong",
            ),
        ],
        examples: &[],
    },
    Subcommand {
        name: "doctor",
        operands: "",
        max_operands: 0,
        operand_completes: Completes::Nothing,
        brief: "check the requirements of a turn and report how to fix problems",
        more: &[
            "Checks the config file, the codex executable, its login and its directory, the directory for sockets, the plugin in the daemon's profile if it is installed there, and the given workspaces. Each check prints one line: `ok`, `warn` or `FAIL`, the finding, and after a semicolon the fix, which is a command to run or a key to set. On a terminal long lines are wrapped, and a command is kept whole on its own line. The exit status is 1 if a check failed. Nothing is changed.",
        ],
        flags: &[
            Flag {
                repeatable: true,
                brief: "check this workspace too (repeatable)",
                ..WORKSPACE
            },
            Flag {
                more: "One object: `ok`, true if no check failed, and `checks`, each with `check`, `status` (`ok`, `warn` or `fail`) and `message`, and `workspace` if the check is about one.",
                ..flag("json", None, "print the checks as JSON")
            },
            COLOR,
        ],
        examples: &[
            (
                "plexum-openai doctor --workspace ~/agents/alice",
                "check the setup before the first turn",
            ),
            (
                "plexum-openai doctor -w ~/agents/alice -w ~/agents/bob",
                "check two agents at once",
            ),
        ],
    },
    Subcommand {
        name: "manifest",
        operands: "",
        max_operands: 0,
        operand_completes: Completes::Nothing,
        brief: "print the plugin's manifest",
        more: &[
            "The manifest describes this plugin to the daemon: its name, version and executable, and the models listed in `supported_models` in the config.",
        ],
        flags: &[],
        examples: &[(
            "plexum-openai manifest | jq",
            "the manifest, for people to read",
        )],
    },
    Subcommand {
        name: "completions",
        operands: "bash|zsh|fish",
        max_operands: 1,
        operand_completes: Completes::Words(&["bash", "zsh", "fish"]),
        brief: "print a shell's completion script",
        more: &[
            "Source the script, or install it where the shell looks for completions, as `make install` does.",
        ],
        flags: &[],
        examples: &[
            (
                "source <(plexum-openai completions bash)",
                "bash: completions for this session",
            ),
            (
                "plexum-openai completions fish > ~/.config/fish/completions/plexum-openai.fish",
                "fish: completions for good",
            ),
        ],
    },
    Subcommand {
        name: "man",
        operands: "",
        max_operands: 0,
        operand_completes: Completes::Nothing,
        brief: "print the source of this man page",
        more: &["It is in mdoc format, the same file that `make install` installs."],
        flags: &[],
        examples: &[(
            "plexum-openai man | mandoc -a",
            "read it without installing it",
        )],
    },
];

/// The length of a help text: `-h` or `--help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Help {
    Short,
    Whole,
}

/// The action that a command line requests.
#[derive(Debug)]
pub(crate) enum Invocation {
    /// Help on a subcommand, or on the whole program.
    Help(Help, Option<&'static Subcommand>),
    Version,
    Run(Parsed),
}

/// A parsed command line.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) subcommand: &'static Subcommand,
    flags: Vec<(&'static str, OsString)>,
    pub(crate) operands: Vec<OsString>,
}

impl Parsed {
    pub(crate) fn has(&self, long: &str) -> bool {
        self.all(long).next().is_some()
    }

    /// The value of this flag; of a repeatable one, the first.
    pub(crate) fn value(&self, long: &str) -> Option<&OsStr> {
        self.all(long).next()
    }

    /// Every value of a repeatable flag, in order.
    pub(crate) fn all<'a>(&'a self, long: &str) -> impl Iterator<Item = &'a OsStr> {
        debug_assert!(
            self.subcommand.flags.iter().any(|flag| flag.long == long),
            "a flag that the table has"
        );
        self.flags
            .iter()
            .filter(move |(name, _)| *name == long)
            .map(|(_, value)| value.as_os_str())
    }

    /// The directory that this flag names.
    ///
    /// # Errors
    /// [`Kind::Usage`] for the empty name, which an unset variable in a script results in.
    pub(crate) fn directory(&self, long: &str) -> Result<Option<PathBuf>> {
        Ok(self.directories(long)?.into_iter().next())
    }

    /// The directories that a repeatable flag names, in order; errors as for [`Parsed::directory`].
    pub(crate) fn directories(&self, long: &str) -> Result<Vec<PathBuf>> {
        self.all(long)
            .map(|directory| match directory.is_empty() {
                true => Err(usage(format!("'--{long}' needs a directory"))),
                false => Ok(expand_home(directory)),
            })
            .collect()
    }

    /// The value of this flag as text.
    ///
    /// # Errors
    /// [`Kind::Usage`] where it is not UTF-8.
    pub(crate) fn text(&self, long: &str) -> Result<Option<&str>> {
        match self.value(long) {
            None => Ok(None),
            Some(value) => value.to_str().map(Some).ok_or_else(|| {
                usage(format!(
                    "the value of '--{long}' is not valid UTF-8: {value:?}"
                ))
            }),
        }
    }
}

/// Expands a leading `~/`, which bash does not do in `--workspace=~/agents`.
pub(crate) fn expand_home(path: &OsStr) -> PathBuf {
    let below = path.to_str().and_then(|path| path.strip_prefix("~/"));
    match (below, std::env::home_dir()) {
        (Some(below), Some(home)) => home.join(below),
        _ => path.into(),
    }
}

pub(crate) fn usage(message: impl Into<String>) -> Error {
    Error::new(Kind::Usage, message)
}

/// Looks up a subcommand by its exact name.
pub(crate) fn find(name: &str) -> Option<&'static Subcommand> {
    SUBCOMMANDS.iter().find(|command| command.name == name)
}

/// Parses the arguments, without the program's name.
///
/// # Errors
/// [`Kind::Usage`], with the argument and, for a misspelled name, a suggestion.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation> {
    use lexopt::Arg;
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut subcommand: Option<&'static Subcommand> = None;
    let mut flags: Vec<(&'static str, OsString)> = Vec::new();
    let mut operands: Vec<OsString> = Vec::new();
    loop {
        let Some(argument) = parser.next().map_err(lexopt_error)? else {
            break;
        };
        let spelling = match argument {
            Arg::Short('h') => return Ok(Invocation::Help(Help::Short, subcommand)),
            Arg::Long("help") => return Ok(Invocation::Help(Help::Whole, subcommand)),
            Arg::Short('V') | Arg::Long("version") => return Ok(Invocation::Version),
            Arg::Value(value) => {
                match subcommand {
                    None if value == "version" => return Ok(Invocation::Version),
                    None if value == "help" => return help(&mut parser),
                    None => subcommand = Some(find_or_suggest(&value)?),
                    Some(command) if operands.len() < command.max_operands => operands.push(value),
                    // `-` after the prompt appends stdin to it.
                    Some(command)
                        if command.name == "turn" && operands.len() == 1 && value == "-" =>
                    {
                        operands.push(value);
                    }
                    Some(command) => {
                        return Err(usage(format!(
                            "'{}' takes {}: {value:?} is too much",
                            command.name,
                            if command.max_operands == 0 {
                                "no operands"
                            } else {
                                "one operand, in quotes where it has spaces"
                            },
                        ))
                        .hint(help_hint(Some(command))));
                    }
                }
                continue;
            }
            Arg::Long(name) => format!("--{name}"),
            Arg::Short(name) => format!("-{name}"),
        };
        let table = subcommand.map_or(COMMON, |command| command.flags);
        let known = table.iter().find(|flag| {
            spelling.strip_prefix("--") == Some(flag.long)
                || flag
                    .short
                    .is_some_and(|short| spelling == format!("-{short}"))
        });
        let Some(known) = known else {
            return Err(unknown_flag(&spelling, subcommand));
        };
        // The last value counts, so that a shell alias's flags can be overridden.
        if !known.repeatable {
            flags.retain(|(name, _)| *name != known.long);
        }
        let value = match known.value {
            Some(_) => parser.value().map_err(|_| {
                usage(format!(
                    "'{spelling}' needs a value: --{} {}",
                    known.long,
                    known.value.unwrap_or_default()
                ))
                .hint(help_hint(subcommand))
            })?,
            None => OsString::new(),
        };
        flags.push((known.long, value));
    }
    let subcommand = match subcommand {
        Some(subcommand) => subcommand,
        None => find("serve").expect("the table has `serve`"),
    };
    Ok(Invocation::Run(Parsed {
        subcommand,
        flags,
        operands,
    }))
}

/// Parses the rest of `help [SUBCOMMAND]`, which is an alias of `--help`.
fn help(parser: &mut lexopt::Parser) -> Result<Invocation> {
    use lexopt::Arg;
    let mut subject = None;
    while let Some(argument) = parser.next().map_err(lexopt_error)? {
        match argument {
            Arg::Value(value)
                if subject.is_none() && !matches!(value.to_str(), Some("help" | "version")) =>
            {
                subject = Some(find_or_suggest(&value)?);
            }
            Arg::Value(_) | Arg::Short('h') | Arg::Long("help") => {}
            Arg::Long(name) => return Err(help_takes_no_flags(&format!("--{name}"))),
            Arg::Short(name) => return Err(help_takes_no_flags(&format!("-{name}"))),
        }
    }
    Ok(Invocation::Help(Help::Whole, subject))
}

fn help_takes_no_flags(spelling: &str) -> Error {
    usage(format!("'help' takes no flags: '{spelling}'")).hint(help_hint(None))
}

/// Looks up a subcommand; the error suggests the nearest name.
fn find_or_suggest(value: &OsStr) -> Result<&'static Subcommand> {
    let text = value.to_string_lossy();
    if let Some(command) = find(&text) {
        return Ok(command);
    }
    let error = usage(format!("no such subcommand: '{text}'"));
    Err(
        match nearest(&text, SUBCOMMANDS.iter().map(|command| command.name)) {
            Some(near) => error.hint(format!("did you mean '{near}'?")),
            None => error.hint(help_hint(None)),
        },
    )
}

fn unknown_flag(spelling: &str, subcommand: Option<&'static Subcommand>) -> Error {
    let of = subcommand.map_or(String::new(), |command| format!(" of '{}'", command.name));
    let error = usage(format!("no such flag{of}: '{spelling}'"));
    let names = subcommand
        .map_or(&[] as &[Flag], |command| command.flags)
        .iter()
        .chain(COMMON)
        .map(|flag| flag.long);
    match spelling
        .strip_prefix("--")
        .and_then(|name| nearest(name, names))
    {
        Some(near) => error.hint(format!("did you mean '--{near}'?")),
        None => error.hint(help_hint(subcommand)),
    }
}

fn lexopt_error(error: lexopt::Error) -> Error {
    usage(error.to_string()).hint(help_hint(None))
}

/// The hint that refers to `--help`.
fn help_hint(subcommand: Option<&'static Subcommand>) -> String {
    match subcommand {
        Some(command) => format!("see 'plexum-openai {} --help'", command.name),
        None => "see 'plexum-openai --help'".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flag_table_is_consistent() {
        for command in SUBCOMMANDS {
            let mut seen: Vec<String> = Vec::new();
            for flag in command.flags.iter().chain(COMMON) {
                let mut names = vec![format!("--{}", flag.long)];
                names.extend(flag.short.map(|short| format!("-{short}")));
                for name in names {
                    assert!(!seen.contains(&name), "{} has {name} twice", command.name);
                    seen.push(name);
                }
                assert!(
                    flag.brief.len() <= 60,
                    "{}: --{} is too long for -h",
                    command.name,
                    flag.long
                );
                assert!(!flag.brief.ends_with('.'), "--{}: no full stop", flag.long);
            }
            assert_eq!(
                command.operands.is_empty(),
                command.max_operands == 0,
                "{}: operands",
                command.name
            );
        }
    }

    fn parsed(line: &[&str]) -> Parsed {
        match parse(line.iter().map(OsString::from)).unwrap() {
            Invocation::Run(parsed) => parsed,
            other => panic!("{line:?} gave {other:?}"),
        }
    }

    #[test]
    fn accepts_every_form_of_flags() {
        for line in [
            &["turn", "-w", "x", "hi"][..],
            &["turn", "-wx", "hi"],
            &["turn", "--workspace", "x", "hi"],
            &["turn", "--workspace=x", "--", "hi"],
            &["turn", "hi", "--workspace=x"],
        ] {
            let parsed = parsed(line);
            assert_eq!(parsed.value("workspace"), Some(OsStr::new("x")), "{line:?}");
            assert_eq!(parsed.operands, ["hi"], "{line:?}");
        }
        assert_eq!(parsed(&["turn", "--", "--json"]).operands, ["--json"]);
        assert_eq!(parsed(&["turn", "-"]).operands, ["-"]);
        assert_eq!(parsed(&[]).subcommand.name, "serve");
    }

    #[test]
    fn errors_suggest_names_or_refer_to_help() {
        for (line, message) in [
            (
                &["trun"][..],
                "no such subcommand: 'trun'; did you mean 'turn'?",
            ),
            (
                &["zzzzzz"],
                "no such subcommand: 'zzzzzz'; see 'plexum-openai --help'",
            ),
            (
                &["turn", "--workspce", "x"],
                "no such flag of 'turn': '--workspce'; did you mean '--workspace'?",
            ),
            (
                &["turn", "-z"],
                "no such flag of 'turn': '-z'; see 'plexum-openai turn --help'",
            ),
            (
                &["turn", "-w"],
                "'-w' needs a value: --workspace DIR; see 'plexum-openai turn --help'",
            ),
            (
                &["help", "--json"],
                "'help' takes no flags: '--json'; see 'plexum-openai --help'",
            ),
            (
                &["help", "trun"],
                "no such subcommand: 'trun'; did you mean 'turn'?",
            ),
            (
                &["turn", "a", "b"],
                "'turn' takes one operand, in quotes where it has spaces: \"b\" is too much; see 'plexum-openai turn --help'",
            ),
            (
                &["turn", "--json=x"],
                "unexpected argument for option '--json': \"x\"; see 'plexum-openai --help'",
            ),
        ] {
            let error = parse(line.iter().map(OsString::from)).unwrap_err();
            assert_eq!(error.message(), message, "{line:?}");
            assert_eq!(error.kind().exit_status(), 2);
        }
    }
}
