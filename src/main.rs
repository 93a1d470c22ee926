//! placeholder
mod canonical;
mod cli;
mod config;
mod error;
mod rollout;
fn main() {}
