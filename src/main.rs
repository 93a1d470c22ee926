//! placeholder
mod canonical;
mod cli;

mod codex;
mod config;
mod error;
mod rollout;
#[cfg_attr(not(test), expect(dead_code, reason="x"))]
fn main() {}
