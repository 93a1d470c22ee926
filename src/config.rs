//! placeholder: the real one comes with the lead's branch
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .find(|k| k.len().abs_diff(name.len()) < 2 && k.starts_with(&name[..1]))
}

/// One key of the config file.
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) kind: &'static str,
    /// As JSON; empty where the key is unset by default.
    pub(crate) default: &'static str,
    /// Words in backquotes are code.
    pub(crate) meaning: &'static str,
}

const fn key(
    name: &'static str,
    kind: &'static str,
    default: &'static str,
    meaning: &'static str,
) -> Key {
    Key {
        name,
        kind,
        default,
        meaning,
    }
}

/// Every key of the config file.
pub(crate) const KEYS: &[Key] = &[
    key(
        "binary",
        "string",
        "\"codex\"",
        "The codex executable; absolute under systemd, whose PATH has no nvm or local folders. A leading `~/` is expanded.",
    ),
    key(
        "extra_args",
        "strings",
        "[]",
        "Passed to codex before the prompt.",
    ),
    key(
        "supported_models",
        "strings",
        "[\"codex\"]",
        "The advertised models.",
    ),
    key(
        "model_args",
        "map",
        "{}",
        "Advertised id to `--model` value. The empty string and `codex` pass no `--model`; an id that is not in the map is passed as it is.",
    ),
    key(
        "mcp_registration",
        "string",
        "\"turn\"",
        "How codex learns of the agent's MCP server. `turn`: with that turn alone (`-c mcp_servers.NAME=...`), and no file of codex is changed. `persistent`: by `codex mcp add`, once per agent. `off`: the daemon's tools are not offered.",
    ),
    key(
        "prompt_via",
        "string",
        "\"stdin\"",
        "`stdin`: never seen in `ps`, no size limit but codex's own. `arg`: the last argument, after `--`, stdin from the null device; what cannot be an argument goes through stdin all the same.",
    ),
    key(
        "lost_thread",
        "string",
        "\"replay\"",
        "When codex no longer knows the stored thread: `replay` starts a new one with the conversation so far in its prompt, `fresh` one without, `error` fails the turn.",
    ),
    key(
        "reasoning_events",
        "bool",
        "false",
        "Emit `thinking_delta`.",
    ),
    key(
        "tool_events",
        "bool",
        "true",
        "Emit `tool_use` and `tool_result`.",
    ),
    key(
        "idle_timeout_secs",
        "integer",
        "3600",
        "End a turn when codex has neither printed nor recorded anything for so long; 0 is never.",
    ),
    key(
        "turn_timeout_secs",
        "integer",
        "0",
        "End a turn after so long; 0 is never.",
    ),
    key(
        "codex_home",
        "string",
        "",
        "`CODEX_HOME` for codex and for finding rollouts; else the environment's, else `~/.codex`.",
    ),
    key(
        "env",
        "map",
        "{}",
        "Further environment variables for codex.",
    ),
];
