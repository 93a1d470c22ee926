//! placeholder
mod canonical;
mod cli;
mod config;
mod error;
mod mcp;
fn main() {}
