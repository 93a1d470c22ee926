//! codex itself: how it is started and ended, what it prints, where it keeps its threads.
//!
//! Nothing here knows of the daemon.

pub(crate) mod ask;
pub(crate) mod child;
pub(crate) mod command;
pub(crate) mod events;
pub(crate) mod failure;
pub(crate) mod guard;
pub(crate) mod home;
pub(crate) mod models;
pub(crate) mod translate;
