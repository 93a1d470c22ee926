//! placeholder
mod canonical;
mod cli;
mod codex;
mod config;
mod error;
mod rollout;
mod sys;
fn main() {}
