//! The error type of the crate.
//!
//! Code branches on the [`Kind`]; the message, for people, states what failed, on what, why, and what to do if that is
//! known. Exit status, JSON-RPC code and canonical error code are derived from the kind only here, so that a terminal,
//! the daemon and a script get the same error.

use std::fmt;
use std::io;

/// The kinds of errors that code has to distinguish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The command line is wrong.
    Usage,
    /// The config file cannot be read or has an invalid value.
    Config,
    /// A request that needs `initialize` came before it.
    NotInitialized,
    /// Parameters that do not conform to `man/plexum-openai-protocol.7`; the message names the field.
    Params,
    /// A line that is not JSON.
    Parse,
    /// JSON that is not a request, or one whose id is in use.
    Request,
    /// A method that this plugin does not have.
    Method,
    /// codex was not found or cannot be executed.
    CodexMissing,
    /// codex could not be started, or ended without doing its work.
    CodexFailed,
    /// codex reported that the turn failed, for a reason that has no other kind here.
    TurnFailed,
    /// The provider cannot be reached, or an intermediary responds in its place.
    Network,
    /// The MCP server that exposes the daemon's tools did not start.
    McpFailed,
    /// codex is not logged in, or its login is no longer accepted.
    Auth,
    /// The account's usage limit is reached.
    UsageLimit,
    /// The account or the provider does not have this model.
    ModelUnsupported,
    /// The conversation does not fit into the model's context window.
    ContextWindow,
    /// The provider is overloaded.
    Overloaded,
    /// codex cannot resume the workspace's thread, and the config forbids starting another one.
    ThreadLost,
    /// Another process uses the workspace or the thread.
    Busy,
    /// codex printed and recorded nothing for longer than `idle_timeout_secs`.
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
            // The request's parameters were valid: its workspace has disappeared since.
            Kind::Io | Kind::Params => "io",
            _ => "codex_failed",
        }
    }

    /// Whether the same request can succeed later without any intervention.
    pub(crate) fn retryable(self) -> bool {
        matches!(
            self,
            Kind::Busy | Kind::Network | Kind::Overloaded | Kind::IdleTimeout | Kind::TurnTimeout
        )
    }
}

/// An error: its kind, a message for people, and the underlying error.
#[derive(Debug)]
pub(crate) struct Error {
    kind: Kind,
    message: String,
    retryable: bool,
    retry_at: Option<u64>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

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

    /// Appends a hint on how to fix the error to its message.
    pub(crate) fn hint(mut self, hint: impl fmt::Display) -> Error {
        self.message = format!("{}; {hint}", self.message);
        self
    }

    /// Overrides whether a retry can succeed.
    pub(crate) fn with_retryable(mut self, retryable: bool) -> Error {
        self.retryable = retryable;
        self
    }

    /// Sets when a retry can succeed, in seconds since 1970.
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

/// Whether descriptors, processes or memory are exhausted, which is temporary.
pub(crate) fn is_exhausted(error: &io::Error) -> bool {
    // Linux's error numbers; std has no `ErrorKind` for most of them.
    const EAGAIN: i32 = 11;
    const ENOMEM: i32 = 12;
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    matches!(
        error.raw_os_error(),
        Some(EAGAIN | ENOMEM | ENFILE | EMFILE)
    )
}

/// The operating system's message for an error, without the `(os error N)` that std appends.
pub(crate) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}
