//! plexum-openai makes the local `codex` command line a provider of the Plexum agent daemon.
//!
//! The modules; dependencies point down:
//!
//! * `main`: dispatch and exit status
//! * `cli`: the subcommands, and the table of flags that parser, help and completions are generated from
//! * `daemon`: the wire to Plexum on stdin and stdout: framing, the loop, the outbox
//! * `turn`: a turn from request to response: queue, session file, prompt
//! * `backend`: running codex for a turn (`backend::exec`, `backend::app_server`), and ordering the resulting events
//! * `codex`: codex's properties that are independent of the backend; `mcp`: the daemon's tools; `rollout`: codex's
//!   record of a thread: reading it, pairing its calls, rewriting it
//! * `jsonrpc`, `json`, `os`, `config`, `paths`, `canonical`, `error`, `shell`: JSON-RPC, JSON texts, the operating
//!   system, the config file, file locations, the daemon's types, errors, shell quoting
//!
//! A turn passes through: a line on stdin, `daemon::message`, `daemon::serve`, the turn's OS thread, `turn::run`,
//! `backend::exec` (`command`, `events`, `translate`) or `backend::app_server` (`server`, `message`, `texts`), both
//! with `backend::child`, `backend::reporter`, `backend::emitter`, the sink, stdout.

mod backend;
mod canonical;
mod cli;
mod codex;
mod config;
mod daemon;
mod error;
mod json;
mod jsonrpc;
mod mcp;
mod os;
mod paths;
mod rollout;
mod shell;
mod timestamp;
mod turn;

use cli::flags::{self, Invocation};
use error::Result;
use paths::Paths;
use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    // First, since threads, the guard and codex inherit the signal mask.
    os::unblock_signals();
    let mut arguments = std::env::args_os().skip(1).peekable();
    if arguments
        .peek()
        .is_some_and(|first| first == backend::guard::NAME)
    {
        return ExitCode::from(backend::guard::run(arguments.skip(1)));
    }
    // The developers' log, on stderr; off unless `RUST_LOG` is set.
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("off"))
        .format(|out, record| {
            // A record can contain codex's output, file names and arguments, and a terminal may display it.
            let message = escape_controls(&record.args().to_string());
            writeln!(out, "[{:<5} {}] {message}", record.level(), record.target())
        })
        .init();
    if let Some(status) = backend::guard::reap_as_init() {
        return ExitCode::from(status);
    }
    match os::keep_exit_statuses().and_then(|()| dispatch(arguments)) {
        // The parent has to see an end by SIGINT: only then a shell also ends its loop.
        Ok(os::INTERRUPTED) => os::end_by_sigint(),
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            let message = error.to_string();
            let message = cli::sanitize(&message);
            // If stderr is closed, only the exit status remains to report the error.
            let _ = writeln!(std::io::stderr(), "plexum-openai: {message}");
            ExitCode::from(error.kind().exit_status())
        }
    }
}

/// Escapes all characters but tabs that a terminal would interpret or hide, in Rust's syntax (`\u{1b}`).
fn escape_controls(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' => escaped.push(c),
            c if c.is_control() => escaped.extend(c.escape_default()),
            // Bidirectional controls and invisible characters.
            c if cli::is_harmful(c) => escaped.extend(c.escape_unicode()),
            c => escaped.push(c),
        }
    }
    escaped
}

fn dispatch(arguments: impl Iterator<Item = OsString>) -> Result<u8> {
    let parsed = match flags::parse(arguments)? {
        Invocation::Help(help, subcommand) => return print(&cli::help::text(help, subcommand)),
        Invocation::Version => {
            return print(&format!("plexum-openai {}\n", env!("CARGO_PKG_VERSION")));
        }
        Invocation::Run(parsed) => parsed,
    };
    if matches!(parsed.subcommand.name, "serve" | "turn" | "mcp-host") {
        os::protect_from_other_processes();
    }
    let mut stdin = os::Blocking(std::io::stdin());
    let mut stdout = os::Blocking(std::io::stdout());
    let mut stderr = std::io::stderr();
    match parsed.subcommand.name {
        "serve" => {
            cli::print_serve_notice();
            daemon::serve_stdio(daemon::Setup {
                places: Paths::from_env(),
            })
        }
        "turn" => cli::turn::run(&parsed),
        "parse-rollout" => {
            // std's stdout is line-buffered: it searches each write for line ends and splits it at the last one.
            let mut stdout = os::Blocking(cli::unbuffered_stdout()?);
            cli::parse_rollout::run(&parsed, &mut stdout, &mut stderr)
        }
        "mutate" => cli::mutate::run(&parsed, &mut stdin, &mut stdout),
        "mcp-host" => cli::mcp_host::run(&parsed).map(|()| 0),
        "threads" => cli::threads::run(&parsed, &mut stdout),
        "doctor" => cli::doctor::run(&parsed, &mut stdout),
        "manifest" => {
            // With a broken config file the manifest has the default models, so that an installation does not fail.
            let config = Paths::from_env().load_config().map_or_else(
                |error| {
                    let message = error.to_string();
                    let message = cli::sanitize(&message);
                    let _ = writeln!(stderr, "plexum-openai: warning: {message}");
                    config::Config::default()
                },
                |loaded| loaded.config,
            );
            let manifest = canonical::Manifest::new(&config.supported_models);
            let json = serde_json::to_string(&manifest).expect("plain structs");
            print(&format!("{json}\n"))
        }
        "completions" => cli::complete::run(&parsed, &mut stdout),
        "man" => print(cli::man::PAGE),
        other => unreachable!("the table has no other subcommand than those above: {other}"),
    }
}

/// Writes text to stdout. A broken pipe is not an error.
fn print(text: &str) -> Result<u8> {
    let mut out = std::io::stdout().lock();
    let result = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    cli::ignore_broken_pipe(result, 0)
}

#[cfg(test)]
mod tests {
    // fault: 112
    #[test]
    fn log_escapes_control_characters() {
        let escaped =
            super::escape_controls("a\x1b]0;x\x07\n\u{9b}\u{202e}\té\u{ad}\u{feff}\u{e0041}");
        assert_eq!(
            escaped,
            "a\\u{1b}]0;x\\u{7}\\n\\u{9b}\\u{202e}\té\\u{ad}\\u{feff}\\u{e0041}"
        );
    }
}
