//! The scripted model of `model.rs` as a program, for demos and for looking at codex by hand.
//!
//! It prints where it listens and serves until it is ended by a signal. See `model.rs` for the script.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;

#[path = "model.rs"]
#[expect(
    dead_code,
    reason = "tests also read back, from inside the process, what this program only logs"
)]
mod model;

const HELP: &str = "\
A scripted model on loopback, for running codex without an account.

usage: loopback-model --script FILE [--port N] [--log FILE] [--write-codex-home DIR] [--retries N]

  --script FILE           a JSON list of replies
  --port N                the port (default: any free one)
  --log FILE              write each request to FILE as a JSON line
  --write-codex-home DIR  write a config.toml that leads codex here; run codex
                          with CODEX_HOME=DIR and any LOOPBACK_KEY
  --retries N             how often codex then tries again (default: 0)
";

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell where even stderr is gone.
            let _ = writeln!(std::io::stderr(), "loopback-model: {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<(), Failure> {
    let mut script: Option<PathBuf> = None;
    let mut log: Option<PathBuf> = None;
    let mut home: Option<PathBuf> = None;
    let (mut port, mut retries) = (0, 0);
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        use lexopt::prelude::*;
        match argument {
            Long("script") => script = Some(arguments.value()?.into()),
            Long("log") => log = Some(arguments.value()?.into()),
            Long("write-codex-home") => home = Some(arguments.value()?.into()),
            Long("port") => port = arguments.value()?.parse()?,
            Long("retries") => retries = arguments.value()?.parse()?,
            Short('h') | Long("help") => {
                write!(std::io::stdout(), "{HELP}")?;
                return Ok(());
            }
            other => return Err(other.unexpected().into()),
        }
    }
    let script = script.ok_or("--script is missing; see --help")?;
    let text = std::fs::read(&script).map_err(|error| format!("{}: {error}", script.display()))?;
    let script =
        serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", script.display()))?;
    let log: Option<Box<dyn Write + Send>> = match log {
        Some(path) => Some(Box::new(
            File::options().create(true).append(true).open(path)?,
        )),
        None => None,
    };
    let model = model::Model::listen(script, port, log)?;
    if let Some(home) = home {
        model.write_codex_home(&home, retries)?;
    }
    writeln!(std::io::stdout(), "listening on {}", model.base_url())?;
    loop {
        thread::park();
    }
}
