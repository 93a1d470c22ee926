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
    more: "`auto` is colour on a terminal, unless `NO_COLOR` is set or `TERM` is `dumb`.",
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
        more: "`-h` is the short help, `--help` the whole.",
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
            "The stdio protocol that plexum-openai-protocol(7) describes: JSON-RPC 2.0, one message a line. The daemon starts this; by hand it is of use for trying the protocol out. It ends with its stdin.",
        ],
        flags: &[],
        examples: &[(
            r#"echo '{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18"}}' | plexum-openai serve"#,
            "one request, by hand",
        )],
    },
    Subcommand {
        name: "turn",
        operands: "[PROMPT] [-]",
        max_operands: 1,
        operand_completes: Completes::Nothing,
        brief: "run one turn in a workspace, as the daemon would",
        more: &[
            "Runs codex once in the workspace and continues the conversation whose thread id is in the workspace's `.plexum-codex-session`: the same config, the same session file, the same locks as for the daemon.",
            "Without PROMPT, or with `-` alone, the prompt is read from stdin; with PROMPT and `-`, what stdin has is appended to it, set apart as `<stdin>`. The assistant's text goes to stdout. What codex does meanwhile goes to stderr: a line for each command and tool, the time it took, and at the end the tokens; on a terminal one line shows what is going on, unless stdout is a pipe.",
            "Ctrl-C ends the turn properly and keeps the thread, a second one ends it at once; the program then ends by SIGINT itself, and with it a shell loop around it. Ctrl-Z stops codex too, and `fg` continues it; time limits go on meanwhile. Of a command that fails, the last lines that it printed are shown, ten at most. With `--json` stderr has warnings alone.",
        ],
        flags: &[
            Flag {
                brief: "the workspace (default: the current directory)",
                more: "It is made if it is missing.",
                ..WORKSPACE
            },
            Flag {
                more: "The empty string and `codex` leave the choice to codex; other names are mapped by `model_args` in the config.",
                ..valued(
                    "model",
                    Some('m'),
                    "ID",
                    Completes::Nothing,
                    "the model, as the daemon names it",
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
                    "an image to go with the prompt (repeatable)",
                )
            },
            Flag {
                more: "codex takes it when a thread starts, and in a conversation that goes on when it compacts it: give it with every turn. Others can see it in the list of processes.",
                ..valued(
                    "system",
                    None,
                    "TEXT",
                    Completes::Nothing,
                    "instructions for the model",
                )
            },
            Flag {
                more: "A word of the provider's: `low`, `medium`, `high`.",
                ..valued(
                    "effort",
                    None,
                    "LEVEL",
                    Completes::Nothing,
                    "how much the model is to think",
                )
            },
            Flag {
                more: "The last message is then JSON that fits it.",
                ..valued(
                    "output-schema",
                    None,
                    "FILE",
                    Completes::File,
                    "a JSON Schema that the last message is to follow",
                )
            },
            Flag {
                more: "The old thread's id is kept until codex has told the new one.",
                ..flag("fresh", None, "start a new thread")
            },
            Flag {
                brief: "go on with this thread, by its UUID",
                more: "It becomes the workspace's.",
                ..THREAD
            },
            valued(
                "timeout",
                None,
                "SECS",
                Completes::Nothing,
                "end the turn after so many seconds; 0 is never",
            ),
            Flag {
                more: "The config's `busy_wait_secs` unless given.",
                ..valued(
                    "wait",
                    None,
                    "SECS",
                    Completes::Nothing,
                    "wait so long for a workspace that is in use",
                )
            },
            valued(
                "backend",
                None,
                "NAME",
                Completes::Words(&["exec", "app-server"]),
                "how codex is run, instead of the config's way",
            ),
            valued(
                "binary",
                None,
                "PATH",
                Completes::File,
                "the codex executable, instead of the config's",
            ),
            Flag {
                more: "Exactly the `event` objects that the daemon would get, one a line, and last a line of type `result`.",
                ..flag("json", None, "print the canonical events as JSON lines")
            },
            Flag {
                more: "For scripts: without what the model says on its way there.",
                ..flag("last", None, "print the last message alone")
            },
            flag("quiet", Some('q'), "say nothing but errors on stderr"),
            flag(
                "verbose",
                Some('v'),
                "show what commands print and what the model thinks",
            ),
            COLOR,
        ],
        examples: &[
            (
                "plexum-openai turn --workspace ~/agents/alice \"What changed today?\"",
                "ask, and see the work as it goes",
            ),
            (
                "git diff | plexum-openai turn -w ~/agents/alice --json | jq .type",
                "a prompt from a pipe, the events to another",
            ),
            (
                "title=$(git diff | plexum-openai turn -q --last \"A title for this:\" -)",
                "an answer for a script",
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
            "For every call that has an output, in the order of the outputs: its `tool_use` and then its `tool_result`, one JSON object a line. Without FILE, or with `-`, the rollout is read from stdin. Memory does not grow with the file.",
            "Lines that are not JSON are skipped and counted on stderr, with the number of the first. A file that has nothing of a rollout in it, an empty one too, is an error that says what it seems to be. A rollout that codex has packed as `.jsonl.zst` is read by way of `zstd`, up to 4 GiB. Each event has `time`, when it was recorded, and with several FILEs `file`.",
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
            flag("all", None, "give calls without an output too"),
            Flag {
                more: "By the name in the events; with `--summary` too.",
                ..valued(
                    "tool",
                    None,
                    "NAME",
                    Completes::Nothing,
                    "the calls of this tool alone",
                )
            },
            Flag {
                more: "With `--summary` too.",
                ..flag("errors", None, "the calls that failed alone")
            },
            Flag {
                more: "`{\"type\":\"message\",\"role\":\"user\",\"text\":...}`, in order, without what codex itself tells the model.",
                ..flag("messages", None, "give the texts of user and assistant too")
            },
            Flag {
                more: "Until Ctrl-C, or until nobody reads stdout any more; also while calls are consumed in it.",
                ..flag("follow", Some('f'), "go on with a rollout that grows")
            },
            Flag {
                more: "The biggest first: call id, tool, bytes of arguments and output, share of the total, a bar relative to the biggest, whether it is consumed already, and on a wide terminal the beginning of the arguments.",
                ..flag("summary", None, "print a table for people instead")
            },
            Flag {
                more: "`tool`: a line for each tool, with the sums of its calls. `call` is the default. It means `--summary`.",
                ..valued(
                    "by",
                    None,
                    "WHAT",
                    Completes::Words(&["call", "tool"]),
                    "what a line of the summary stands for: call or tool",
                )
            },
            Flag {
                more: "One object: `calls`, the biggest first, each with `id`, `name`, `arguments_bytes`, `arguments` (their beginning), `output_bytes`, `share` (0 to 1), `answered`, `is_error`, `consumed` (`light`, `heavy`, `cut` or null) and, for a server's tool, `namespace`; and `total`, with `calls`, `arguments_bytes`, `output_bytes` and `consumed`. With `--by tool`, `tools` in place of `calls`, each with `name`, `calls`, the two sizes and `share`.",
                ..flag("json", None, "with --summary: the same as JSON")
            },
            COLOR,
        ],
        examples: &[
            (
                "plexum-openai parse-rollout --workspace ~/agents/alice --summary",
                "what fills the context",
            ),
            (
                "plexum-openai parse-rollout -w ~/agents/alice | jq -r 'select(.type == \"tool_use\").id'",
                "the ids of the tool calls, for 'mutate'",
            ),
            (
                "plexum-openai parse-rollout -w ~/agents/alice --follow --messages | jq -r .text",
                "read along",
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
            "codex rebuilds what the model sees from the rollout: what is replaced there is gone from the conversation's context at the next turn. `light` replaces the outputs of a call by `...(consumed)`; `heavy` replaces them by `...(tool called)` and the arguments by `{}`. Every line of the rollout keeps its length in bytes, so codex's own index of the file stays right; where a marker is longer than what it replaces, it is cut.",
            "What was done goes to stdout: `{\"requested\":2,\"touched\":1,\"missing\":[\"call_x\"],\"freed_bytes\":11500}`. Missing is what has no call with an output in the rollout, or has a line longer than 32 MiB there. A call made inside codex's code mode stands for the call around it, once all that were made there are named. The bytes are those that codex no longer reads; the file keeps its length. Consuming a call a second time touches nothing.",
            "It cannot be undone, and the file keeps its size and its time: a backup or a sync that goes by those does not see the change. Where no call was found at all, the exit status is 1 and stderr says so.",
            "Some models number their calls anew in each turn, so that an id such as `list_dir:0` repeats in a thread. An id means all of its calls; with `--newest` it means the last one that has an output, and the earlier ones and the copies in a compacted history stay.",
            "The file is replaced whole or not at all. While codex has the thread open, nothing is written and the exit status is 1; so it is for a symbolic link, for a file with several hard links, and for one that is not a rollout.",
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
                "what to do: light (default) or heavy",
            ),
            Flag {
                more: "Call ids, one a line, or the daemon's list, `[{\"block_id\":...,\"op\":...}]`.",
                ..flag("stdin", None, "read the calls from stdin")
            },
            valued(
                "larger-than",
                None,
                "BYTES",
                Completes::Nothing,
                "the calls whose output has more bytes than that",
            ),
            Flag {
                more: "With `--larger-than`, those of them that are so large.",
                ..valued(
                    "keep-last",
                    None,
                    "N",
                    Completes::Nothing,
                    "the calls before the last N",
                )
            },
            flag(
                "newest",
                None,
                "of calls with the same id, consume only the newest",
            ),
            flag(
                "dry-run",
                Some('n'),
                "say what would be done and write nothing",
            ),
        ],
        examples: &[(
            "plexum-openai mutate --workspace ~/agents/alice --keep-last 0 --dry-run",
            "see what consuming all calls would free",
        )],
    },
    Subcommand {
        name: "threads",
        operands: "[DIR...]",
        max_operands: usize::MAX,
        operand_completes: Completes::Directory,
        brief: "list the conversations of many agents",
        more: &[
            "A line for each workspace that has a conversation, the one with the newest turn first: when that was, the tokens that the thread has used, how full its context is, the size of its rollout, the process that has a turn in it or the thread open, the thread and the workspace. With DIR, the workspaces in it and at most four directories below it; without, those that turns ran in, which the plugin keeps a list of beside its config file.",
        ],
        flags: &[Flag {
            more: "A list of objects with `workspace`, `thread`, `last_turn` (seconds since 1970), `tokens`, `context`, `rollout`, `rollout_bytes` and `held_by`; what is not known is null.",
            ..flag("json", None, "print the list as JSON")
        }],
        examples: &[(
            "plexum-openai threads",
            "who was at work last, and how much is in their context",
        )],
    },
    Subcommand {
        name: "mcp-host",
        operands: "",
        max_operands: 0,
        operand_completes: Completes::Nothing,
        brief: "lend the daemon's tools to codex (codex starts this)",
        more: &[
            "An MCP server on stdin and stdout that passes everything on to the running plugin's socket. `PLEXUM_MCP_SOCKET` and `PLEXUM_MCP_AGENT_ID` stand in for the flags; the flags win.",
        ],
        flags: &[
            valued(
                "socket",
                None,
                "PATH",
                Completes::File,
                "the running plugin's socket",
            ),
            valued(
                "agent-id",
                Some('a'),
                "ID",
                Completes::Nothing,
                "the agent whose tools these are",
            ),
        ],
        examples: &[],
    },
    Subcommand {
        name: "doctor",
        operands: "",
        max_operands: 0,
        operand_completes: Completes::Nothing,
        brief: "check what a turn needs and say how to fix what is wrong",
        more: &[
            "The config file, the codex executable, its login, its directory, the directory for sockets, the plugin in the daemon's profile if it is installed there, and the workspaces that are given. One line a check: `ok`, `warn` or `FAIL`, what was found, and behind a semicolon how to fix it, as a command to run or a key to set; a terminal gets long lines wrapped, a command whole on a line of its own. Exit status 1 if a check failed; nothing is changed.",
        ],
        flags: &[
            Flag {
                repeatable: true,
                brief: "check this workspace too (repeatable)",
                ..WORKSPACE
            },
            Flag {
                more: "One object: `ok`, whether none failed, and `checks`, each with `check`, `status` (`ok`, `warn` or `fail`) and `message`, and with `workspace` where it is about one.",
                ..flag("json", None, "print the checks as JSON")
            },
            COLOR,
        ],
        examples: &[
            (
                "plexum-openai doctor --workspace ~/agents/alice",
                "look before the first turn",
            ),
            (
                "plexum-openai doctor -w ~/agents/alice -w ~/agents/bob",
                "two agents at once",
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
            "What the daemon is told of this plugin: its name, version and executable, and the models of the config's `supported_models`.",
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
            "To be sourced, or put where the shell looks for completions. `make install` does that.",
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
        brief: "print the man page's source",
        more: &["In mdoc, the same that `make install` installs."],
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
