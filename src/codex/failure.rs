//! Why a turn failed, from what codex says of it.
//!
//! codex has no error codes in `exec --json`: there is a text on stdout, or only one on stderr. The texts are
//! those of 0.135.0 and 0.169.0 (each measured against a provider that answers so); both are looked for, in
//! lower case and with codex's curly apostrophes straightened, since they came between those versions.

use super::child::Exit;
use crate::error::{Error, Kind};

/// The error that a `turn.failed` message, or an `error` that was the last word, stands for.
pub(crate) fn from_message(message: &str) -> Error {
    let message = readable(message);
    let kind = kind_of(&message).unwrap_or(Kind::TurnFailed);
    let error = if message.trim().is_empty() {
        Error::new(kind, "codex said that the turn failed, and nothing more")
    } else {
        Error::new(kind, message.clone())
    };
    finish(error, &message)
}

/// The error of a codex that ended without saying why on stdout.
pub(crate) fn from_exit(exit: &Exit, last_error: Option<&str>) -> Error {
    let how = exit.describe();
    // Who was killed did not end for what was said before.
    let killed = exit.status.code().is_none();
    if let Some(message) = last_error.filter(|message| !message.trim().is_empty()) {
        let said = from_message(message);
        if said.kind() != Kind::TurnFailed && !killed {
            return said;
        }
        return Error::new(
            Kind::CodexFailed,
            format!("codex ended ({how}) after it had said: {}", said.message()),
        );
    }
    let stderr = exit.stderr.trim();
    if stderr.is_empty() {
        return Error::new(
            Kind::CodexFailed,
            format!(
                "codex ended ({how}) without an event that says why, and wrote nothing to stderr"
            ),
        );
    }
    // What some part of codex has logged, with the time before it, is no verdict on the turn.
    let is_log = |line: &&str| {
        let time = line.as_bytes().get(..11);
        time.is_some_and(|time| time[4] == b'-' && time[7] == b'-' && time[10] == b'T')
    };
    let said: Vec<&str> = stderr.lines().filter(|line| !is_log(line)).collect();
    let kind = match kind_of(&said.join("\n")) {
        // A model's word in a message of another kind is no verdict on the model.
        Some(kind @ (Kind::Auth | Kind::McpFailed | Kind::Busy)) if !killed => kind,
        _ => Kind::CodexFailed,
    };
    finish(
        Error::new(
            kind,
            format!("codex ended ({how}); the end of its stderr: {stderr}"),
        ),
        stderr,
    )
}

/// Why codex did not go on with a thread, before it asked the model anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It has no such thread, or one without a beginning: trying again is of no use.
    Unknown,
    /// The thread is archived; `codex unarchive` brings it back.
    Archived,
    /// It could not open the thread, for this reason. Whether it ever can is seen by trying again.
    Unopened(String),
}

/// The refusal of a codex that ended without naming its thread.
///
/// What passes by itself or has nothing to do with the thread (a lock, a full disk, a login, a server that did
/// not start) is none: no conversation may be given up for it.
pub(crate) fn refusal_of_exit(exit: &Exit) -> Option<Refusal> {
    if is_lost_thread(exit) {
        return Some(Refusal::Unknown);
    }
    // Killed from outside: whatever it said before was not why it ended.
    exit.status.code()?;
    let said = exit
        .stderr
        .lines()
        .rfind(|line| line.starts_with("Error: thread/resume"))?;
    if said.contains(" is archived. Run `codex unarchive ") {
        return Some(Refusal::Archived);
    }
    // A path has any word in it.
    let words = said.split(' ').filter(|word| !word.contains('/'));
    let words = plain(&words.collect::<Vec<_>>().join(" "));
    let passes = kind_of(&words).is_some() || PASSING.iter().any(|reason| words.contains(reason));
    (!passes).then(|| Refusal::Unopened(said.to_owned()))
}

/// The refusal of a turn whose conversation the provider does not accept: codex sends back encrypted reasoning,
/// which another account or key cannot read.
pub(crate) fn refusal_of_message(message: &str) -> Option<Refusal> {
    message
        .contains("invalid_encrypted_content")
        .then(|| Refusal::Unopened(readable(message)))
}

/// Reasons of the operating system, of codex's databases and of the network that have nothing to do with the
/// thread.
const PASSING: [&str; 17] = [
    "no space left",
    "quota exceeded",
    "read-only file system",
    "permission denied",
    "operation not permitted",
    "too many open files",
    "cannot allocate memory",
    "out of memory",
    "input/output error",
    "temporarily unavailable",
    "interrupted",
    "stale file handle",
    "is locked",
    "timed out",
    "timeout",
    "connection",
    "database",
];

/// Did codex say that it does not know the thread, or that its rollout has no beginning? A disk that was full when
/// the thread began leaves an empty one, which codex refuses ever after.
fn is_lost_thread(exit: &Exit) -> bool {
    let said = |text| exit.stderr.contains(text);
    said("no rollout found for thread id")
        || said("failed to parse first rollout record")
        || (said("rollout at ")
            && (said(" is empty") || said(" does not start with session metadata")))
}

/// Adds what can be done about it, and whether trying again can help.
fn finish(error: Error, said: &str) -> Error {
    let said = plain(said);
    match error.kind() {
        // A rate limit passes in seconds, a usage limit when the account's window ends.
        Kind::UsageLimit => {
            let passes = said.contains("429 too many requests") || is_rate_limit(&said);
            error.with_retryable(passes)
        }
        Kind::Auth if !said.contains("codex login") => error
            .hint("log in with `codex login`, or set the provider's key in \"env\" in the config"),
        Kind::ModelUnsupported => {
            error.hint("choose another model, or map this one in \"model_args\"")
        }
        Kind::TurnFailed => {
            let passes = [
                "stream disconnected",
                "connection",
                "timed out",
                "timeout",
                "error sending request",
            ]
            .iter()
            .any(|text| said.contains(text));
            error.with_retryable(passes)
        }
        _ => error,
    }
}

/// Is this a `response.failed` with the code `rate_limit_exceeded`? 0.169 puts that before the provider's words,
/// 0.135 has only these.
fn is_rate_limit(text: &str) -> bool {
    [
        "rate limit exceeded",
        "rate limit reached",
        "rate_limit_exceeded",
    ]
    .iter()
    .any(|part| text.contains(part))
}

fn plain(text: &str) -> String {
    text.to_lowercase().replace('’', "'")
}

/// The kind that a text of codex's stands for.
fn kind_of(text: &str) -> Option<Kind> {
    let text = plain(text);
    // Addresses and ids come last. They have any word and any number in them.
    let end = [", url: ", ", cf-ray: ", ", request id: ", "(request id"]
        .iter()
        .filter_map(|tail| text.find(tail))
        .min();
    let text = &text[..end.unwrap_or(text.len())];
    let has = |texts: &[&str]| texts.iter().any(|part| text.contains(part));
    if has(&["already has an active writer"]) {
        return Some(Kind::Busy);
    }
    if has(&[
        "required mcp server",
        "mcp servers failed to initialize",
        "mcp server failed",
    ]) || (has(&["mcp server", "mcp client"])
        && has(&["failed to start", "failed to initialize", "required"]))
    {
        return Some(Kind::McpFailed);
    }
    if has(&[
        "hit your usage limit",
        "usage limit has been reached",
        "usage_limit_reached",
        "quota exceeded",
        "insufficient_quota",
        "exceeded your current quota",
        "429 too many requests",
        "402 payment required",
        "out of credits",
    ]) || is_rate_limit(text)
    {
        return Some(Kind::UsageLimit);
    }
    if has(&[
        "context window",
        "context_length_exceeded",
        "ran out of room",
        "maximum context length",
    ]) {
        return Some(Kind::ContextWindow);
    }
    if has(&["model"])
        && has(&[
            "is not supported",
            "not supported when using",
            "does not exist",
            "model_not_found",
            "requires a newer version of codex",
            "not found",
        ])
    {
        return Some(Kind::ModelUnsupported);
    }
    if has(&[
        "401 unauthorized",
        "403 forbidden",
        "not logged in",
        "invalid_api_key",
        "incorrect api key",
        "missing environment variable",
        "access token could not be refreshed",
        "refresh token",
        "please log out and sign in",
        "token_expired",
        "codex login",
    ]) {
        return Some(Kind::Auth);
    }
    if has(&[
        "high demand",
        "at capacity",
        "server_is_overloaded",
        "overloaded",
        "503 service unavailable",
        "status 529",
        "status: 529",
        "502 bad gateway",
        "500 internal server error",
        "504 gateway timeout",
    ]) {
        return Some(Kind::Overloaded);
    }
    None
}

/// A 400 comes with the raw JSON body as its message: what a person wants of it is the message inside.
fn readable(message: &str) -> String {
    let Ok(body) = serde_json::from_str::<serde_json::Value>(message.trim()) else {
        return message.to_owned();
    };
    let text = |value: Option<&serde_json::Value>| {
        value.and_then(|value| value.as_str()).map(str::to_owned)
    };
    let inner = body.get("error").unwrap_or(&body);
    let said = text(inner.get("message"))
        .or_else(|| text(body.get("detail")))
        .or_else(|| text(body.get("error")));
    match (said, text(inner.get("code"))) {
        (Some(said), Some(code)) if !said.contains(&code) => format!("{said} ({code})"),
        (Some(said), _) => said,
        (None, _) => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn what_codex_says_has_a_code() {
        for (message, kind, retryable) in [
            (
                "{\"error\": {\"message\": \"The 'gpt-9' model is not supported when using Codex with a ChatGPT account.\", \"type\": \"invalid_request_error\", \"code\": null}}",
                Kind::ModelUnsupported,
                false,
            ),
            (
                "{\"detail\": \"The 'gpt-9' model is not supported when using Codex with a ChatGPT account.\"}",
                Kind::ModelUnsupported,
                false,
            ),
            (
                "unexpected status 404 Not Found: The model `gpt-9` does not exist or you do not have access to it., url: http://127.0.0.1/v1/responses",
                Kind::ModelUnsupported,
                false,
            ),
            (
                "The model `gpt-9` does not exist or you do not have access to it.",
                Kind::ModelUnsupported,
                false,
            ),
            (
                "unexpected status 401 Unauthorized: Incorrect API key provided, url: http://127.0.0.1/v1/responses",
                Kind::Auth,
                false,
            ),
            (
                "unexpected status 403 Forbidden: forbidden country, url: http://127.0.0.1/",
                Kind::Auth,
                false,
            ),
            (
                "exceeded retry limit, last status: 429 Too Many Requests",
                Kind::UsageLimit,
                true,
            ),
            (
                "stream disconnected before completion: Rate limit reached for gpt-5 on tokens per min (TPM)",
                Kind::UsageLimit,
                true,
            ),
            (
                "rate limit exceeded: Rate limit reached for gpt-5 on tokens per min (TPM)",
                Kind::UsageLimit,
                true,
            ),
            (
                "You've hit your usage limit. Upgrade to Pro or try again at 10:26 PM.",
                Kind::UsageLimit,
                false,
            ),
            (
                "You’ve hit your usage limit. Upgrade to Pro or try again at 10:26 PM.",
                Kind::UsageLimit,
                false,
            ),
            (
                "Quota exceeded. Check your plan and billing details.",
                Kind::UsageLimit,
                false,
            ),
            (
                "Codex ran out of room in the model's context window. Start a new thread or clear earlier history before retrying.",
                Kind::ContextWindow,
                false,
            ),
            (
                "We’re currently experiencing high demand, which may cause temporary errors.",
                Kind::Overloaded,
                true,
            ),
            (
                "Selected model is at capacity. Please try a different model.",
                Kind::Overloaded,
                true,
            ),
            (
                "stream disconnected before completion: Transport error",
                Kind::TurnFailed,
                true,
            ),
            (
                "exceeded retry limit, last status: 529 <unknown status code>, request id: req_1",
                Kind::Overloaded,
                true,
            ),
            // Words and numbers that are part of something else.
            (
                "unexpected status 404 Not Found: no, url: http://127.0.0.1/models/x, request id: req_8c52901f",
                Kind::TurnFailed,
                false,
            ),
            (
                "unexpected status 422 Unprocessable Entity: no, cf-ray: 9a3e7f5290b1c2d3-FRA",
                Kind::TurnFailed,
                false,
            ),
            (
                "unexpected status 400 Bad Request: no (request id 20251529011)",
                Kind::TurnFailed,
                false,
            ),
            (
                "Invalid schema for function 'mcp__plexum_host_alice__send': 'required' is required to be an array",
                Kind::TurnFailed,
                false,
            ),
            ("something new", Kind::TurnFailed, false),
            ("", Kind::TurnFailed, false),
        ] {
            let error = from_message(message);
            assert_eq!(
                (error.kind(), error.retryable()),
                (kind, retryable),
                "{message}"
            );
            assert!(!error.message().is_empty());
        }
        assert_eq!(
            from_message(
                "{\"error\":{\"message\":\"too long\",\"code\":\"context_length_exceeded\"}}"
            )
            .message(),
            "too long (context_length_exceeded)"
        );
    }

    #[test]
    fn an_end_without_a_word_is_told_with_what_is_known() {
        let exit = |status: i32, stderr: &str| Exit {
            status: std::process::ExitStatus::from_raw(status),
            stderr: stderr.to_owned(),
            spawn_error: None,
        };
        for (exit, last, kind, message) in [
            (
                exit(0, ""),
                None,
                Kind::CodexFailed,
                "codex ended (exit status 0) without an event that says why, and wrote nothing to stderr",
            ),
            (
                exit(9, "a\nb"),
                None,
                Kind::CodexFailed,
                "codex ended (killed by SIGKILL); the end of its stderr: a\nb",
            ),
            (
                exit(256, ""),
                Some("odd"),
                Kind::CodexFailed,
                "codex ended (exit status 1) after it had said: odd",
            ),
            (
                exit(256, "Error: thread 01 already has an active writer"),
                None,
                Kind::Busy,
                "codex ended (exit status 1); the end of its stderr: Error: thread 01 already has an active writer",
            ),
            (
                exit(256, "the model does not exist"),
                None,
                Kind::CodexFailed,
                "codex ended (exit status 1); the end of its stderr: the model does not exist",
            ),
            (
                exit(9, ""),
                Some(
                    "Reconnecting... 1/3 (exceeded retry limit, last status: 429 Too Many Requests)",
                ),
                Kind::CodexFailed,
                "codex ended (killed by SIGKILL) after it had said: Reconnecting... 1/3 (exceeded retry limit, last status: 429 Too Many Requests)",
            ),
            (
                exit(9, "Error: not logged in"),
                None,
                Kind::CodexFailed,
                "codex ended (killed by SIGKILL); the end of its stderr: Error: not logged in",
            ),
            (
                exit(
                    256,
                    "2026-11-21T12:07:52Z ERROR rmcp: mcp server is required: not logged in",
                ),
                None,
                Kind::CodexFailed,
                "codex ended (exit status 1); the end of its stderr: 2026-11-21T12:07:52Z ERROR rmcp: mcp server is required: not logged in",
            ),
        ] {
            let error = from_exit(&exit, last);
            assert_eq!((error.kind(), error.message()), (kind, message));
        }
    }
}
