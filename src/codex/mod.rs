//! What this program knows about codex: its folder, its command line, its events.

pub(crate) mod home;
