//! placeholder
mod canonical;
mod cli;
mod config;
mod error;
fn main() {}
