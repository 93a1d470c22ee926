//! The one error of the crate.
//!
//! Code branches on the [`Kind`]; people read the message, which says what failed, on what, why, and what to
//! do where that is known. Exit status, JSON-RPC code and canonical error code all come from the kind, here
//! and nowhere else, so that a terminal, the daemon and a script get the same message.

use std::fmt;
use std::io;

/// What kind of thing went wrong, as far as code has to distinguish the kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The command line is wrong.
    Usage,
    /// The config file cannot be read or says something impossible.
    Config,
    /// A request that needs `initialize` came before it.
    NotInitialized,
    /// Parameters that are not of the form `man/plexum-openai-protocol.7` gives; the message names the field.
    Params,
    /// A line that is not JSON.
    Parse,
    /// JSON that is not a request, or one whose id is in use.
    Request,
    /// A method that this plugin does not have.
    Method,
    /// codex is not there or cannot be executed.
    CodexMissing,
    /// codex was started, or should have been, and did not do its work.
    CodexFailed,
    /// codex said that the turn failed, for a reason that has no kind of its own.
    TurnFailed,
    /// The provider cannot be reached, or something between it and codex answers in its place.
    Network,
    /// The MCP server that lends the daemon's tools did not start.
    McpFailed,
    /// codex is not logged in, or its login is no longer accepted.
    Auth,
    /// The account's usage limit is reached.
    UsageLimit,
    /// The account or the provider does not have this model.
    ModelUnsupported,
    /// The conversation does not fit into the model's context window.
    ContextWindow,
    /// The provider has more to do than it can.
    Overloaded,
    /// codex cannot go on with the workspace's thread, and the config forbids to begin another.
    ThreadLost,
    /// Somebody else is at work in the workspace or holds the thread open.
    Busy,
    /// codex was silent for longer than `idle_timeout_secs`.
    IdleTimeout,
    /// The turn took longer than `turn_timeout_secs`.
    TurnTimeout,
    /// A file or a stream could not be read or written.
    Io,
}

impl Kind {
    /// The process's exit status for an error of this kind.
    pub(crate) fn exit_status(self) -> u8 {
        match self {
            Kind::Usage | Kind::Config | Kind::Params => 2,
            _ => 1,
        }
    }

    /// The JSON-RPC error code for an error of this kind.
    pub(crate) fn rpc_code(self) -> i64 {
        match self {
            Kind::Parse => -32700,
            Kind::Request => -32600,
            Kind::Method => -32601,
            Kind::Params | Kind::Usage => -32602,
            Kind::Config => -32001,
            Kind::NotInitialized => -32003,
            Kind::Busy => -32011,
            Kind::Io => -32000,
            _ => -32010,
        }
    }

    /// The code of the `error` event for an error of this kind.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Kind::CodexMissing => "codex_not_found",
            Kind::TurnFailed => "turn_failed",
            Kind::Network => "network",
            Kind::McpFailed => "mcp_failed",
            Kind::Auth => "auth",
            Kind::UsageLimit => "usage_limit",
            Kind::ModelUnsupported => "model_unsupported",
            Kind::ContextWindow => "context_window",
            Kind::Overloaded => "overloaded",
            Kind::ThreadLost => "thread_lost",
            Kind::Busy => "session_busy",
            Kind::IdleTimeout => "idle_timeout",
            Kind::TurnTimeout => "turn_timeout",
            // What was asked for is checked before: here it is a workspace that went away meanwhile.
            Kind::Io | Kind::Params => "io",
            _ => "codex_failed",
        }
    }

    /// Whether the same request can succeed later with nothing changed by anybody.
    pub(crate) fn retryable(self) -> bool {
        matches!(
            self,
            Kind::Busy | Kind::Network | Kind::Overloaded | Kind::IdleTimeout | Kind::TurnTimeout
        )
    }
}

/// An error: its kind, a message for people, and what lies beneath it.
#[derive(Debug)]
pub(crate) struct Error {
    kind: Kind,
    message: String,
    retryable: bool,
    retry_at: Option<u64>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What most functions here give back.
pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `kind`; `message` is in lower case, without a full stop, with values quoted.
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error {
            kind,
            message: message.into(),
            retryable: kind.retryable(),
            retry_at: None,
            source: None,
        }
    }

    /// An error of `kind` with the operating system's reason after the message.
    pub(crate) fn os(kind: Kind, message: impl fmt::Display, source: io::Error) -> Error {
        Error {
            kind,
            message: format!("{message}: {}", reason(&source)),
            retryable: kind.retryable() || is_exhausted(&source),
            retry_at: None,
            source: Some(Box::new(source)),
        }
    }

    /// The same error with a hint on how to fix it behind its message.
    pub(crate) fn hint(mut self, hint: impl fmt::Display) -> Error {
        self.message = format!("{}; {hint}", self.message);
        self
    }

    /// The same error, marked as one that can pass by itself, or as one that cannot.
    pub(crate) fn with_retryable(mut self, retryable: bool) -> Error {
        self.retryable = retryable;
        self
    }

    /// The same error, with the time from when on trying again can help, in seconds since 1970.
    pub(crate) fn with_retry_at(mut self, retry_at: Option<u64>) -> Error {
        self.retry_at = retry_at;
        self
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn retryable(&self) -> bool {
        self.retryable
    }

    pub(crate) fn retry_at(&self) -> Option<u64> {
        self.retry_at
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source
            .as_ref()
            .map(|source| source.as_ref() as &(dyn std::error::Error + 'static))
    }
}

/// Is the machine, or this process, out of descriptors or memory? That passes when others end.
pub(crate) fn is_exhausted(error: &io::Error) -> bool {
    // Linux's numbers, for most of which std has no kind.
    const EAGAIN: i32 = 11;
    const ENOMEM: i32 = 12;
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    matches!(
        error.raw_os_error(),
        Some(EAGAIN | ENOMEM | ENFILE | EMFILE)
    )
}

/// The operating system's own words for an error, without the `(os error N)` that std adds.
pub(crate) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}
