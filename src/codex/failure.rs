//! Classifies failures of a turn by codex's messages.
//!
//! `exec --json` has no error codes: there is a text on stdout, or only one on stderr. What codex keeps of a provider's
//! response was measured on 0.135.0 and 0.169.0 and is recorded, response by response, in `failure/measured.jsonl`: the
//! whole body for a status of 400; the status and the message in the body, or the body if it has none, for most others;
//! a sentence of codex for some; nothing for a stream that ends with an `error` event. So status and codes are used
//! where there are any, and phrases otherwise, in lower case and with curly apostrophes straightened, since codex
//! introduced those between the two versions.

use crate::error::{Error, Kind};
use crate::os;
use crate::timestamp;
use serde_json::Value;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// How codex exited.
#[derive(Debug)]
pub(crate) struct Exit {
    pub(crate) status: ExitStatus,
    /// The last lines that codex wrote to stderr.
    pub(crate) stderr: String,
    /// The errno if codex could not be started.
    pub(crate) spawn_error: Option<i32>,
}

impl Exit {
    /// For a message: `exit status 1`, `killed by SIGKILL`.
    pub(crate) fn describe(&self) -> String {
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (None, Some(signal)) => format!("killed by {}", os::signal_name(signal)),
            (None, None) => "unknown status".to_owned(),
        }
    }
}

/// The error of a `turn.failed` message, or of an `error` that was the last event.
pub(crate) fn from_message(message: &str) -> Error {
    let said = ParsedFailure::parse(message);
    let kind = said.kind().unwrap_or(Kind::TurnFailed);
    let error = if message.trim().is_empty() {
        Error::new(
            kind,
            "codex reported that the turn failed, without a reason",
        )
    } else {
        Error::new(kind, readable(message))
    };
    finish(error, &said)
}

/// The error of a codex that exited without an end of the turn on stdout.
pub(crate) fn from_exit(exit: &Exit, last_error: Option<&str>) -> Error {
    let how = exit.describe();
    // A codex that was killed did not exit because of what it had reported before.
    let killed = exit.status.code().is_none();
    if let Some(message) = last_error.filter(|message| !message.trim().is_empty()) {
        let said = from_message(message);
        if said.kind() != Kind::TurnFailed && !killed {
            return said;
        }
        return Error::new(
            Kind::CodexFailed,
            format!("codex ended ({how}) after it reported: {}", said.message()),
        );
    }
    let stderr = exit.stderr.trim();
    if stderr.is_empty() {
        return Error::new(
            Kind::CodexFailed,
            format!(
                "codex ended ({how}) without an event that states the reason, and wrote nothing to stderr"
            ),
        );
    }
    // A log line, which begins with a time, does not tell why the turn failed.
    let is_log = |line: &&str| {
        let time = line.as_bytes().get(..11);
        time.is_some_and(|time| time[4] == b'-' && time[7] == b'-' && time[10] == b'T')
    };
    let said: Vec<&str> = stderr.lines().filter(|line| !is_log(line)).collect();
    let said = ParsedFailure::parse(&said.join("\n"));
    let kind = match said.kind() {
        // Phrases about a model, for instance, are not reliable in stderr.
        Some(kind @ (Kind::Auth | Kind::McpFailed | Kind::Busy)) if !killed => kind,
        _ => Kind::CodexFailed,
    };
    finish(
        Error::new(
            kind,
            format!("codex ended ({how}); the end of its stderr: {stderr}"),
        ),
        &said,
    )
}

/// The error of a request to which codex has responded with this error message.
pub(crate) fn from_response(method: &str, message: &str) -> Error {
    let said = ParsedFailure::parse(message);
    let kind = match said.kind() {
        Some(kind @ (Kind::Auth | Kind::McpFailed | Kind::Busy)) => kind,
        _ => Kind::CodexFailed,
    };
    finish(
        Error::new(kind, format!("codex rejects {method}: {}", message.trim())),
        &said,
    )
}

/// Whether codex reports that another process refreshed the login at the same time, so that its own refresh token was
/// used already. It gets the new login then or a moment later (0.135.0 to 0.169.0).
pub(crate) fn is_refreshed_elsewhere(message: &str) -> bool {
    message.contains("refresh token was already used")
}

/// Whether codex reports that it retries a request, after which there can be a long pause.
pub(crate) fn is_retry(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    message.contains("reconnecting") || message.contains("retrying")
}

/// When the provider accepts requests again, by codex's message, in seconds since 1970.
///
/// `now` is in the same unit. `offset` is by how many seconds codex's local time is ahead of UTC: codex prints the time
/// of a usage limit in local time, to the minute.
pub(crate) fn retry_at(message: &str, now: u64, offset: Option<i64>) -> Option<u64> {
    if let Ok(body) = serde_json::from_str::<Value>(message.trim()) {
        let error = body.get("error").unwrap_or(&body);
        let number = |name: &str| error.get(name)?.as_u64();
        return number("resets_at").or_else(|| Some(now + number("resets_in_seconds")?));
    }
    let text = message.to_ascii_lowercase();
    if let Some((_, rest)) = text.split_once("try again in ") {
        return Some(now + seconds_of(rest)?);
    }
    let (_, rest) = text.split_once("try again at ")?;
    local_time(rest, i64::try_from(now).ok()?, offset?)
}

/// The seconds of a duration such as `11.054s`, `1h2m` or `3 days 4 hours`, rounded up.
fn seconds_of(text: &str) -> Option<u64> {
    let mut rest = text.trim_start();
    let mut total = None;
    loop {
        let digits = rest.find(|char: char| !char.is_ascii_digit() && char != '.');
        let (number, behind) = rest.split_at(digits.unwrap_or(rest.len()));
        // The number can be followed by the full stop of the sentence.
        let Ok(number) = number.trim_end_matches('.').parse::<f64>() else {
            return total.map(|total: f64| total.ceil() as u64);
        };
        let behind = behind.trim_start();
        let unit = behind.find(|char: char| !char.is_ascii_alphabetic());
        let (unit, behind) = behind.split_at(unit.unwrap_or(behind.len()));
        let seconds = match unit {
            "ms" => 0.001,
            "s" | "sec" | "secs" | "second" | "seconds" => 1.0,
            "m" | "min" | "mins" | "minute" | "minutes" => 60.0,
            "h" | "hour" | "hours" => 3_600.0,
            "d" | "day" | "days" => 86_400.0,
            _ => return total.map(|total: f64| total.ceil() as u64),
        };
        total = Some(total.unwrap_or_default() + number * seconds);
        rest = behind.trim_start_matches([' ', ',']);
        if rest.is_empty() {
            return total.map(|total: f64| total.ceil() as u64);
        }
    }
}

/// A time as codex prints it, in lower case: `2:13 pm`, which is today, or `sep 21st, 2026 2:13 pm`.
fn local_time(text: &str, now: i64, offset: i64) -> Option<u64> {
    const MONTHS: [&str; 12] = [
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
    ];
    const DAY: i64 = 86_400;
    let words: Vec<&str> = text.split_whitespace().collect();
    let clock = words.iter().position(|word| word.contains(':'))?;
    let (hour, minute) = words[clock].split_once(':')?;
    let (hour, minute) = (hour.parse::<i64>().ok()?, minute.parse::<i64>().ok()?);
    let is_afternoon = match words.get(clock + 1)?.trim_end_matches('.') {
        "am" => false,
        "pm" => true,
        _ => return None,
    };
    if !(1..=12).contains(&hour) || !(0..60).contains(&minute) {
        return None;
    }
    let hour = hour % 12 + if is_afternoon { 12 } else { 0 };
    let day = match &words[..clock] {
        [] => (now + offset).div_euclid(DAY) * DAY,
        [month, day, year] => {
            let month = 1 + MONTHS.iter().position(|known| month.starts_with(known))?;
            let day: u32 = day
                .trim_end_matches(|char: char| !char.is_ascii_digit())
                .parse()
                .ok()?;
            let midnight = format!("{year:0>4}-{month:02}-{day:02}T00:00:00");
            i64::try_from(timestamp::parse(&midnight)? / 1000).ok()?
        }
        _ => return None,
    };
    // The seconds were truncated; a retry must not be too early.
    u64::try_from(day + (hour * 60 + minute + 1) * 60 - offset).ok()
}

/// Why codex refused to resume a thread, before any request to the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The thread does not exist, or its rollout has no beginning: a retry cannot succeed.
    Unknown,
    /// The thread is archived; `codex unarchive` restores it.
    Archived,
    /// The thread could not be opened, for this reason; a retry may succeed.
    Unopened(String),
    /// Its rollout is not a regular file, for this reason. codex was not started: it would block on it.
    NotAFile(String),
}

/// The refusal of a codex that exited without naming its thread.
///
/// Temporary failures and those that have nothing to do with the thread (a lock, a full disk, a login, a server that
/// did not start) are not refusals: a conversation must not be abandoned for them.
pub(crate) fn refusal_of_exit(exit: &Exit) -> Option<Refusal> {
    if is_lost_thread(&exit.stderr) {
        return Some(Refusal::Unknown);
    }
    // Killed: what it reported before was not the reason.
    exit.status.code()?;
    let said = exit
        .stderr
        .lines()
        .rfind(|line| line.starts_with("Error: thread/resume"))?;
    refusal_of_resume(said)
}

/// The refusal in codex's error message for resuming a thread.
pub(crate) fn refusal_of_resume(said: &str) -> Option<Refusal> {
    if is_lost_thread(said) {
        return Some(Refusal::Unknown);
    }
    if said.contains(" is archived. Run `codex unarchive ") {
        return Some(Refusal::Archived);
    }
    // A path can contain any word.
    let words = said.split(' ').filter(|word| !word.contains('/'));
    let words = words.collect::<Vec<_>>().join(" ");
    let passes = ParsedFailure::parse(&words).kind().is_some()
        || TEMPORARY
            .iter()
            .any(|reason| plain(&words).contains(reason));
    (!passes).then(|| Refusal::Unopened(said.to_owned()))
}

/// The refusal of a conversation by the provider: codex sends encrypted reasoning back, which another account or key
/// cannot decrypt.
pub(crate) fn refusal_of_message(message: &str) -> Option<Refusal> {
    message
        .contains("invalid_encrypted_content")
        .then(|| Refusal::Unopened(readable(message)))
}

/// Failures of the operating system, codex's databases and the network, which have nothing to do with the thread.
const TEMPORARY: [&str; 17] = [
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

/// Whether codex reports that the thread does not exist, or that its rollout has no beginning. A disk that was full
/// when the thread was created leaves an empty rollout, which codex rejects from then on.
fn is_lost_thread(stderr: &str) -> bool {
    let said = |text| stderr.contains(text);
    said("no rollout found for thread id")
        || said("failed to parse first rollout record")
        || (said("rollout at ")
            && (said(" is empty") || said(" does not start with session metadata")))
}

/// Adds a hint, and whether a retry can succeed.
fn finish(error: Error, said: &ParsedFailure) -> Error {
    let text = said.text.as_str();
    match error.kind() {
        // A rate limit ends within seconds, a usage limit with the account's window.
        Kind::UsageLimit => {
            let passes = said.kind_by_status() == Some(Kind::UsageLimit)
                && said.status == Some(429)
                || RATE_LIMITS
                    .iter()
                    .any(|part| said.has_code(part) || text.contains(part));
            error.with_retryable(passes)
        }
        Kind::Auth if !text.contains("codex login") => error
            .hint("log in with `codex login`, or set the provider's key in \"env\" in the config"),
        Kind::ModelUnsupported => {
            error.hint("choose another model, or map this one in \"model_args\"")
        }
        // These statuses do not change by themselves: a proxy's login, a wrong address.
        Kind::Network => error.with_retryable(!matches!(said.status, Some(404 | 405 | 407 | 511))),
        Kind::CodexFailed if has(text, &DATABASE_LOCKED) => error.with_retryable(true),
        Kind::CodexFailed if has(text, &REFUSED_ARGUMENTS) => error.hint(
            "codex rejects its arguments: 'plexum-openai doctor' checks \"extra_args\" in the config",
        ),
        Kind::CodexFailed if has(text, &SERVER_FAILED) => error.hint(
            "it is a server of codex's own config: see \"mcp_servers\" in codex's 'config.toml'",
        ),
        Kind::TurnFailed => {
            // codex retries a broken stream itself; the provider's refusal in it would be the same again.
            let passes = (said.is_broken_stream && !is_about_the_request(said))
                || matches!(said.status, Some(409 | 425));
            error.with_retryable(passes)
        }
        _ => error,
    }
}

/// Phrases and codes of rate limits, which end within seconds. 0.169 puts the first phrase before the provider's
/// message; 0.135 has only the message.
const RATE_LIMITS: [&str; 6] = [
    "rate limit exceeded",
    "rate limit reached",
    "rate_limit_exceeded",
    "rate_limit_error",
    "too many requests",
    "token rate limit",
];
/// SQLite's messages about codex's own files (`state_5.sqlite` and others): another codex is writing.
const DATABASE_LOCKED: [&str; 4] = [
    "database is locked",
    "database table is locked",
    "database schema is locked",
    "sqlite_busy",
];
/// How the messages of codex's parsers of arguments, settings and features begin or end.
const REFUSED_ARGUMENTS: [&str; 3] = [
    "for more information, try '--help'",
    "error parsing -c overrides: ",
    "error: unknown feature flag: ",
];
/// Phrases before the names of required MCP servers that did not start.
const SERVER_FAILED: [&str; 2] = ["mcp servers failed to initialize", "required mcp server"];

const USAGE_CODES: [&str; 16] = [
    "usage_limit_reached",
    "usage_not_included",
    "insufficient_quota",
    "quota_exceeded",
    "rate_limit_exceeded",
    "rate_limit_error",
    "rate_limit_reached",
    "too_many_requests",
    "slow_down",
    "billing_hard_limit_reached",
    "billing_not_active",
    "billing_error",
    "insufficient_credits",
    "insufficient_balance",
    "resource_exhausted",
    "throttlingexception",
];
const CONTEXT_CODES: [&str; 8] = [
    "context_length_exceeded",
    "exceed_context_size_error",
    "context_window_exceeded",
    "contextwindowexceedederror",
    "model_context_window_exceeded",
    "request_too_large",
    "tokens_limit_reached",
    "prompt_too_long",
];
const MODEL_CODES: [&str; 12] = [
    "model_not_found",
    "model_not_supported",
    "model_not_available",
    "model_not_allowed",
    "model_deprecated",
    "model_decommissioned",
    "unsupported_model",
    "unknown_model",
    "invalid_model",
    "invalid_model_id",
    "deploymentnotfound",
    "modelnotfound",
];
const AUTH_CODES: [&str; 14] = [
    "invalid_api_key",
    "invalid_authentication",
    "authentication_error",
    "permission_error",
    "permission_denied",
    "token_invalidated",
    "token_expired",
    "token_revoked",
    "account_deactivated",
    "deactivated_workspace",
    "unauthorized",
    "unauthenticated",
    "access_denied",
    "accessdeniedexception",
];
const OVERLOADED_CODES: [&str; 8] = [
    "overloaded_error",
    "server_is_overloaded",
    "engine_overloaded",
    "server_error",
    "internal_server_error",
    "internal_error",
    "unavailable_error",
    "service_unavailable",
];

/// A parsed message of codex, in lower case.
#[derive(Debug, Default)]
struct ParsedFailure {
    /// The HTTP status, if codex tells it.
    status: Option<u16>,
    /// `code` and `type` of the bodies.
    codes: Vec<String>,
    /// The parameter that the provider rejects.
    param: String,
    /// The provider's message, if there is one, else the whole text; without addresses and ids.
    text: String,
    /// codex reported a broken stream.
    is_broken_stream: bool,
}

impl ParsedFailure {
    fn parse(said: &str) -> ParsedFailure {
        let said = plain(said);
        let mut text = said.trim();
        // "Reconnecting... 1/3 (unexpected status 503 …)": the last event of a codex that was stopped.
        if let Some(inner) = text
            .strip_prefix("reconnecting... ")
            .and_then(|rest| Some(rest.split_once('(')?.1))
        {
            text = inner.strip_suffix(')').unwrap_or(inner);
        }
        let mut failure = ParsedFailure::default();
        // Addresses and ids come last. They can contain any word and any number.
        let tails = [", url: ", ", cf-ray: ", ", request id: ", "(request id"];
        // In a body they are part of the provider's JSON.
        if !text.starts_with('{') {
            let end = tails.iter().filter_map(|tail| text.rfind(tail)).min();
            text = &text[..end.unwrap_or(text.len())];
        }
        if let Some(rest) = text.strip_prefix("stream disconnected before completion: ") {
            failure.is_broken_stream = true;
            text = rest;
        }
        for start in ["unexpected status ", "exceeded retry limit, last status: "] {
            if let Some(rest) = text.strip_prefix(start) {
                failure.status = rest.get(..3).and_then(|digits| digits.parse().ok());
                // "404 Not Found: " or, for an unknown status, "529 <unknown status code>: ".
                text = rest.split_once(": ").map_or("", |(_, rest)| rest);
            }
        }
        failure.text = failure.body(text, 0).unwrap_or_else(|| text.to_owned());
        failure
    }

    /// Parses a body and returns the message in it. A gateway's message can be the body of the provider behind it.
    fn body(&mut self, text: &str, depth: usize) -> Option<String> {
        const GATEWAYS_MAX: usize = 3;
        if depth > GATEWAYS_MAX || !text.starts_with('{') {
            return None;
        }
        let body: Value = serde_json::from_str(text).ok()?;
        let error = ["error", "detail"]
            .into_iter()
            .filter_map(|key| body.get(key))
            .find(|value| value.is_object())
            .unwrap_or(&body);
        for key in ["code", "type", "__type", "status"] {
            match error.get(key) {
                // "com.amazon.coral.service#ValidationException"
                Some(Value::String(code)) => self
                    .codes
                    .push(code.rsplit('#').next().unwrap_or(code).to_owned()),
                // OpenRouter and llama.cpp put the status into the body.
                Some(Value::Number(code)) if self.status.is_none() => {
                    self.status = code.as_u64().and_then(|code| u16::try_from(code).ok());
                }
                _ => {}
            }
        }
        if let Some(param) = error.get("param").and_then(Value::as_str) {
            param.clone_into(&mut self.param);
        }
        let message = [
            error.get("message"),
            body.get("message"),
            body.get("detail"),
            body.get("error"),
        ]
        .into_iter()
        .flatten()
        .find_map(Value::as_str)?;
        Some(
            self.body(message, depth + 1)
                .unwrap_or_else(|| message.to_owned()),
        )
    }

    fn has_code(&self, code: &str) -> bool {
        self.codes.iter().any(|known| known == code)
    }

    fn kind(&self) -> Option<Kind> {
        // codex's own messages first: they never contain a provider's code.
        self.kind_by_codex()
            .or_else(|| self.kind_by_code())
            .or_else(|| self.kind_by_status())
            .or_else(|| self.kind_by_words())
    }

    /// By codex's own sentences.
    fn kind_by_codex(&self) -> Option<Kind> {
        let text = self.text.as_str();
        if self.status.is_some() || !self.codes.is_empty() {
            return None;
        }
        if has(text, &["already has an active writer"]) {
            return Some(Kind::Busy);
        }
        if let Some(at) = SERVER_FAILED
            .iter()
            .filter_map(|part| text.find(part))
            .min()
        {
            // Other servers are the user's own: all that is known is that codex failed.
            let ours = text[at..].contains(super::SERVER_PREFIX);
            return Some(if ours {
                Kind::McpFailed
            } else {
                Kind::CodexFailed
            });
        }
        if has(text, &DATABASE_LOCKED) {
            return Some(Kind::CodexFailed);
        }
        if has(
            text,
            &[
                "hit your usage limit",
                "usage limit has been reached",
                "to use codex with your chatgpt plan",
                "out of credits",
                "rate limit exceeded: ",
            ],
        ) || text.starts_with("quota exceeded.")
        {
            return Some(Kind::UsageLimit);
        }
        if has(text, &["ran out of room in the model's context window"]) {
            return Some(Kind::ContextWindow);
        }
        if has(
            text,
            &[
                "currently experiencing high demand",
                "selected model is at capacity",
            ],
        ) {
            return Some(Kind::Overloaded);
        }
        None
    }

    /// By the provider's codes.
    fn kind_by_code(&self) -> Option<Kind> {
        let any = |known: &[&str]| known.iter().any(|code| self.has_code(code));
        // Providers combine a model's code with any type, so it is checked first.
        if any(&MODEL_CODES) {
            return Some(Kind::ModelUnsupported);
        }
        if any(&CONTEXT_CODES) {
            return Some(Kind::ContextWindow);
        }
        if any(&USAGE_CODES) {
            return Some(Kind::UsageLimit);
        }
        if any(&AUTH_CODES) {
            return Some(Kind::Auth);
        }
        if any(&OVERLOADED_CODES) {
            return Some(Kind::Overloaded);
        }
        let missing = any(&["missing_required_parameter", "unsupported_parameter"]);
        if matches!(self.param.as_str(), "model" | "body.model") && !missing {
            return Some(Kind::ModelUnsupported);
        }
        // Efforts, verbosity, a tool's schema: whatever the message says, it is about neither the model nor the
        // account. `invalid_encrypted_content` is among them: it belongs to another account, and a new thread helps,
        // not a login.
        let refused = self.codes.iter().any(|code| {
            code.starts_with("unsupported_")
                || code.ends_with("_policy")
                || code.starts_with("invalid_")
                    && !matches!(
                        code.as_str(),
                        "invalid_request_error" | "invalid_request" | "invalid_argument"
                    )
        });
        refused.then_some(Kind::TurnFailed)
    }

    /// By the status, where it is sufficient.
    fn kind_by_status(&self) -> Option<Kind> {
        let text = self.text.as_str();
        let status = self.status?;
        match status {
            401 => Some(Kind::Auth),
            402 => Some(Kind::UsageLimit),
            // A conversation that is too long for a gateway stays so.
            413 => Some(Kind::ContextWindow),
            429 => Some(Kind::UsageLimit),
            _ if is_context_overflow(text) => Some(Kind::ContextWindow),
            // 501 and 505 are permanent; 511 is a captive portal, 525 and 526 are TLS errors behind Cloudflare.
            511 | 525 | 526 => Some(Kind::Network),
            501 | 505 => Some(Kind::TurnFailed),
            500..=599 => Some(Kind::Overloaded),
            407 | 408 => Some(Kind::Network),
            // A provider responds in JSON: an HTML page comes from something in between.
            300..=499 if is_page(text) => Some(Kind::Network),
            _ if is_model_refused(text) => Some(Kind::ModelUnsupported),
            // Anthropic's message is nothing but the name.
            404 if text.starts_with("model: ") => Some(Kind::ModelUnsupported),
            _ if is_usage(text) => Some(Kind::UsageLimit),
            403 => Some(Kind::Auth),
            _ => None,
        }
    }

    fn kind_by_words(&self) -> Option<Kind> {
        let text = self.text.as_str();
        if is_page(text) {
            return Some(Kind::Network);
        }
        if is_context_overflow(text) {
            return Some(Kind::ContextWindow);
        }
        if is_usage(text) {
            return Some(Kind::UsageLimit);
        }
        if is_model_refused(text) {
            return Some(Kind::ModelUnsupported);
        }
        if has(
            text,
            &[
                "not logged in",
                "invalid_api_key",
                "incorrect api key",
                "invalid x-api-key",
                "invalid api key",
                "api key not valid",
                "no auth credentials",
                "missing environment variable",
                "access token could not be refreshed",
                "refresh token",
                "please log out and sign in",
                "token_expired",
                "codex login",
                "401 unauthorized",
                "403 forbidden",
            ],
        ) {
            return Some(Kind::Auth);
        }
        if has(
            text,
            &[
                "overloaded",
                "at capacity",
                "high demand",
                "server had an error",
                "internal server error",
                "service unavailable",
                "bad gateway",
                "gateway timeout",
            ],
        ) {
            return Some(Kind::Overloaded);
        }
        let broken = has(
            text,
            &[
                "error sending request",
                "stream closed before",
                "transport error",
                "error decoding response body",
                "idle timeout waiting for",
                "timeout waiting for",
                "request timed out",
                "operation timed out",
                "connection refused",
                "connection reset",
                "connection closed",
                "connection timed out",
                "dns error",
                "failed to lookup address",
                "network error",
                "network is unreachable",
                "tls handshake",
                "invalid peer certificate",
                "certificate verify failed",
            ],
        );
        (broken || text.starts_with("connection failed") || text == "timeout")
            .then_some(Kind::Network)
    }
}

fn has(text: &str, parts: &[&str]) -> bool {
    parts.iter().any(|part| text.contains(part))
}

/// Whether this is an HTML page.
fn is_page(text: &str) -> bool {
    ["<!doctype html", "<html", "<head", "<body"]
        .iter()
        .any(|start| text.starts_with(start))
}

/// The phrases of OpenAI, vLLM, llama.cpp, Anthropic, Bedrock, Gemini and xAI.
fn is_context_overflow(text: &str) -> bool {
    has(
        text,
        &[
            "context window",
            "context_length_exceeded",
            "context length",
            "context size",
            "exceed context limit",
            "exceeds context limit",
            "prompt is too long",
            "prompt too long",
            "input is too long",
            "maximum model length",
            "maximum prompt length",
            "maximum number of tokens allowed",
            "request body too large for",
            "contextwindowexceedederror",
        ],
    )
}

fn is_usage(text: &str) -> bool {
    has(
        text,
        &[
            "exceeded your current quota",
            "insufficient_quota",
            "quota exceeded",
            "usage_limit_reached",
            "credit balance",
            "insufficient credits",
            "insufficient balance",
            "key limit exceeded",
            "rate_limit_exceeded",
            "rate limit",
            "too many requests",
        ],
    )
}

/// Whether the model itself is unknown or refused. The words `model` and `not supported` occur in many sentences about
/// something else ("'xhigh' is not supported with this model", "Model output not found"), so the model must be the
/// subject: `model 'x' not found`, `the 'x' model is not supported when using …`.
fn is_model_refused(text: &str) -> bool {
    const PREDICATES: [&str; 18] = [
        "not found",
        "was not found",
        "is not found",
        "could not be found",
        "cannot be found",
        "does not exist",
        "doesn't exist",
        "is not supported",
        "is not available",
        "is unavailable",
        "is not allowed",
        "is unknown",
        "is deprecated",
        "is invalid",
        "has been deprecated",
        "has been decommissioned",
        "has been removed",
        "requires a newer version of codex",
    ];
    if has(
        text,
        &[
            "model_not_found",
            "is not a valid model",
            "model identifier is invalid",
            "invalid model name",
            "invalid model id",
            "unknown model",
            "unsupported model",
            "no such model",
            "no endpoints found for ",
            "api deployment for this resource does not exist",
            "organization must be verified to use the model",
            "does not work with the specified model",
            "not found the model ",
        ],
    ) {
        return true;
    }
    // "project `x` does not have access to model `y`", "you don't have access to the model with …"
    let no_access = has(text, &["have access to the model", "have access to model"])
        && has(
            text,
            &[
                "does not have access",
                "don't have access",
                "do not have access",
            ],
        );
    let refused = |rest: &str| {
        let rest = rest.trim_start();
        PREDICATES
            .iter()
            .any(|predicate| rest.starts_with(predicate))
    };
    no_access
        || text.match_indices("model").any(|(at, word)| {
            let rest = text[at + word.len()..].trim_start_matches([' ', ':']);
            if refused(rest) {
                return true;
            }
            let quote = rest
                .chars()
                .next()
                .filter(|first| matches!(first, '\'' | '"' | '`'));
            let (name, rest) = match quote {
                Some(quote) => rest[1..].split_once(quote).unwrap_or_default(),
                None => rest.split_once(' ').unwrap_or_default(),
            };
            // A name without quotes must look like one: "model output not found" is about an output.
            let is_name = quote.is_some()
                || name.contains(|character: char| {
                    character.is_ascii_digit() || matches!(character, '-' | '/' | ':')
                });
            is_name && refused(rest)
        })
}

/// Whether the provider rejected the request itself. It would reject it again.
fn is_about_the_request(said: &ParsedFailure) -> bool {
    has(
        &said.text,
        &[
            "unsupported",
            "not supported",
            "invalid",
            "incomplete response",
            "not found",
            "flagged",
        ],
    )
}

fn plain(text: &str) -> String {
    text.to_lowercase().replace('’', "'")
}

/// The message in a raw JSON body, which is codex's message for a status of 400.
fn readable(message: &str) -> String {
    let Ok(body) = serde_json::from_str::<Value>(message.trim()) else {
        return message.to_owned();
    };
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
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
    fn finds_retry_time() {
        // 2026-11-26 02:40:00
        let now = 1_795_660_800;
        for (message, offset, expected) in [
            ("no", 0, None),
            ("Please try again in 11.054s. Visit x", 0, Some(now + 12)),
            ("try again in 20ms", 0, Some(now + 1)),
            ("Please try again in 1h2m3s.", 0, Some(now + 3723)),
            (
                "try again in 3 days 4 hours 5 minutes.",
                0,
                Some(now + 273_900),
            ),
            ("try again in a while", 0, None),
            (
                "… try again at Sep 21st, 2026 2:13 PM.",
                0,
                Some(1_790_000_040),
            ),
            (
                "… try again at Sep 21st, 2026 7:43 PM.",
                19_800,
                Some(1_790_000_040),
            ),
            ("try again at 12:00 AM.", 0, Some(now - 160 * 60 + 60)),
            ("try again at 11:59 pm", -14_400, Some(now + 79 * 60 + 60)),
            ("try again at Nov 3rd, 26", 0, None),
            ("try again at 25:00 PM", 0, None),
            ("try again at noon", 0, None),
            (
                r#"{"error":{"type":"usage_limit_reached","resets_at":1790000000}}"#,
                0,
                Some(1_790_000_000),
            ),
            (r#"{"error":{"resets_in_seconds":5}}"#, 0, Some(now + 5)),
            (r#"{"error":{"message":"try again in 5s"}}"#, 0, None),
        ] {
            assert_eq!(retry_at(message, now, Some(offset)), expected, "{message}");
        }
    }

    // fault: 91
    /// The code and `retryable` of each provider response, as both versions report it.
    #[test]
    fn classifies_measured_responses() {
        let mut wrong = Vec::new();
        let measured = include_str!("failure/measured.jsonl");
        assert!(measured.lines().count() > 100);
        for line in measured.lines() {
            let entry: Value = serde_json::from_str(line).unwrap();
            for version in ["both", "0.135.0", "0.169.0"] {
                let Some(expected) = entry.get(version) else {
                    continue;
                };
                let error = from_message(expected["said"].as_str().unwrap());
                let code = error.kind().code();
                if expected["code"] != code || expected["retryable"] != error.retryable() {
                    wrong.push(format!("{code}, {}: {expected}", error.retryable()));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    // fault: 91
    /// More responses, which were not measured through codex.
    #[test]
    fn classifies_provider_messages() {
        for (message, kind) in [
            (
                r#"{"error":{"message":"The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).","status":"INVALID_ARGUMENT","code":400}}"#,
                Kind::ContextWindow,
            ),
            (
                r#"{"error":{"message":"litellm.BadRequestError: ContextWindowExceededError: OpenAIException"}}"#,
                Kind::ContextWindow,
            ),
            (
                r#"{"error":{"code":"OperationNotSupported","message":"The responses operation does not work with the specified model, gpt-4. Please choose different model and try again."}}"#,
                Kind::ModelUnsupported,
            ),
            (
                "unexpected status 403 Forbidden: Key limit exceeded (total limit). Manage it using https://openrouter.ai/settings/keys, url: http://127.0.0.1:1/v1/responses",
                Kind::UsageLimit,
            ),
            (
                r#"{"error":{"message":"This model's maximum prompt length is 131072 but the request contains 537812 tokens."}}"#,
                Kind::ContextWindow,
            ),
            (
                r#"{"error":{"message":"The decoder prompt (length 5000) is longer than the maximum model length of 4096."}}"#,
                Kind::ContextWindow,
            ),
            (
                r#"{"error":{"message":"{\"type\":\"error\",\"error\":{\"type\":\"invalid_request_error\",\"message\":\"prompt is too long: 9 tokens > 8 maximum\"}}","code":"400"}}"#,
                Kind::ContextWindow,
            ),
            (
                r#"{"error":{"message":"The model `x` has been decommissioned and is no longer supported.","type":"invalid_request_error","code":"model_decommissioned"}}"#,
                Kind::ModelUnsupported,
            ),
            (
                r#"{"error":{"message":"No endpoints found that support tool use.","code":404}}"#,
                Kind::TurnFailed,
            ),
            (
                r#"{"error":{"message":"The model gpt-5 does not support reasoning effort 'xhigh'.","param":"reasoning.effort"}}"#,
                Kind::TurnFailed,
            ),
            (
                r#"{"error":{"message":"Missing required parameter: 'model'.","param":"model","code":"missing_required_parameter"}}"#,
                Kind::TurnFailed,
            ),
            (
                r#"{"error":{"message":"API key not valid. Please pass a valid API key.","status":"INVALID_ARGUMENT","code":400}}"#,
                Kind::Auth,
            ),
            (
                "unexpected status 400 Bad Request: <html>squid</html>",
                Kind::Network,
            ),
            (
                "<!DOCTYPE HTML><html><body>Access denied by your administrator</body></html>",
                Kind::Network,
            ),
            (
                "unexpected status 403 Forbidden: {\"error\":{\"message\":\"The model 'x' is not allowed for this key\"}}",
                Kind::ModelUnsupported,
            ),
            (
                "The 'gpt-6' model requires a newer version of Codex. Please upgrade to the latest app or CLI and try again.",
                Kind::ModelUnsupported,
            ),
            ("idle timeout waiting for SSE", Kind::Network),
            (
                "stream disconnected before completion: Transport error: network error: error decoding response body",
                Kind::Network,
            ),
            (
                "failed to record rollout items: (code: 5) database is locked",
                Kind::CodexFailed,
            ),
        ] {
            let error = from_message(message);
            assert_eq!(error.kind(), kind, "{message}");
        }
        assert!(from_message("(code: 5) database is locked").retryable());
    }

    // fault: 91
    /// Only a server that exposes the daemon's tools is `mcp_failed`.
    #[test]
    fn names_failed_mcp_server() {
        let fatal = |servers: &str| Exit {
            status: std::process::ExitStatus::from_raw(256),
            stderr: format!(
                "Error: thread/start: thread/start failed: error creating thread: Fatal error: Failed to initialize session: required MCP servers failed to initialize: {servers} (code -32603)"
            ),
            spawn_error: None,
        };
        let theirs =
            "mine: handshaking with MCP server failed: connection closed: initialize response";
        let ours = "plexum-host-alice: No such file or directory (os error 2)";
        for (servers, kind, hint) in [
            (theirs.to_owned(), Kind::CodexFailed, true),
            (ours.to_owned(), Kind::McpFailed, false),
            (format!("{theirs}; {ours}"), Kind::McpFailed, false),
        ] {
            let error = from_exit(&fatal(&servers), None);
            assert_eq!(
                (error.kind(), error.retryable()),
                (kind, false),
                "{servers}"
            );
            assert_eq!(
                error.message().contains("a server of codex's own config"),
                hint
            );
        }
        let refused = Exit {
            stderr: "error: unexpected argument '--x' found\n\nUsage: codex exec [OPTIONS] [PROMPT]\n\nFor more information, try '--help'.".to_owned(),
            ..fatal("")
        };
        let error = from_exit(&refused, None);
        assert_eq!(error.kind(), Kind::CodexFailed);
        assert!(error.message().contains("\"extra_args\""), "{error}");
        let locked = Exit {
            stderr: "Error: failed to open state db: (code: 5) database is locked".to_owned(),
            ..fatal("")
        };
        let error = from_exit(&locked, None);
        assert_eq!((error.kind(), error.retryable()), (Kind::CodexFailed, true));
    }

    #[test]
    fn classifies_codex_messages() {
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
                Kind::Network,
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
    fn describes_silent_end() {
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
                "codex ended (exit status 0) without an event that states the reason, and wrote nothing to stderr",
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
                "codex ended (exit status 1) after it reported: odd",
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
                "codex ended (killed by SIGKILL) after it reported: Reconnecting... 1/3 (exceeded retry limit, last status: 429 Too Many Requests)",
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
