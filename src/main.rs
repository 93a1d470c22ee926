//! placeholder
mod canonical;
mod cli;
mod codex;
mod config;
mod error;
mod rollout;
mod sys;
fn main() -> std::process::ExitCode {
    let request = cli::flags::parse(std::env::args_os().skip(1)).expect("flags");
    let cli::flags::Request::Run(parsed) = request else {
        panic!()
    };
    match cli::parse_rollout::run(
        &parsed,
        &mut std::io::stdin().lock(),
        &mut std::io::stdout().lock(),
        &mut std::io::stderr().lock(),
    ) {
        Ok(status) => status.into(),
        Err(error) => {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "plexum-openai: {error}");
            error.kind().exit_status().into()
        }
    }
}
