//! placeholder
mod canonical;
mod cli;
mod codex;
mod config;
mod error;
mod sys;
fn main() {}
