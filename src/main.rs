//! placeholder
mod canonical;
mod cli;
#[cfg_attr(not(test), expect(dead_code, reason = "used once the turns are there"))]
mod codex;
mod config;
mod error;
mod rollout;
fn main() {}
