//! What the built program does, seen from outside: the daemon's protocol and the command line, with the real
//! codex against a scripted model, and with a scripted codex for the faults that the real one cannot show.
//!
//! Nothing here knows a line of the program's source. The tests run side by side; each has a [`support::Lab`]
//! to itself, and leaves nothing running.
#![cfg(test)]

mod app_server;
mod choices;
mod commands;
mod config;
mod containers;
mod conversation;
mod doctor;
mod drift;
mod fault_list;
mod faults;
mod hangs;
mod install;
mod logs;
mod mcp;
mod mcp_clients;
mod mcp_security;
mod members;
mod memory;
mod models;
mod mutate;
mod mutate_faults;
mod mutate_real;
mod pages;
mod parse_rollout;
mod programs;
mod protocol;
mod protocol_page;
mod readme;
mod rollout_real;
mod session;
mod shells;
mod soak;
mod support;
mod terminal;
mod thread;
mod threads;
mod turn_fake;
mod turn_flags;
mod turn_real;
mod turn_terminal;
mod usage_real;
mod users;
