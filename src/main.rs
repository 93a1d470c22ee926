//! placeholder
mod canonical;
mod cli;
mod codex {
    pub(crate) mod ask;
    pub(crate) mod command;
    pub(crate) mod home;
}
mod config;
mod error;
mod mcp;
mod sys;
mod turn {
    pub(crate) mod session;
}
use cli::flags::{self, Request};
fn main() -> std::process::ExitCode {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let r = flags::parse(std::env::args_os().skip(1));
    let code = match r {
        Ok(Request::Help(h, s)) => {
            out.write_all(cli::help::text(h, s).as_bytes()).unwrap();
            0
        }
        Ok(Request::Version) => {
            writeln!(out, "plexum-openai {}", env!("CARGO_PKG_VERSION")).unwrap();
            0
        }
        Ok(Request::Run(p)) => {
            let r = match p.subcommand.name {
                "man" => cli::man::run(&p, &mut out),
                "doctor" => cli::doctor::run(&p, &mut out),
                "completions" => cli::complete::run(&p, &mut out),
                _ => Ok(0),
            };
            match r {
                Ok(c) => c,
                Err(e) => {
                    let _ = writeln!(std::io::stderr(), "plexum-openai: {e}");
                    e.kind().exit_status()
                }
            }
        }
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "plexum-openai: {e}");
            e.kind().exit_status()
        }
    };
    code.into()
}
