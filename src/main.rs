//! placeholder
mod canonical;
mod cli;
mod codex;
mod config;
mod error;
mod mcp;
mod sys;
fn main() {}
