pub(crate) mod child;
pub(crate) mod command;
pub(crate) mod events;
pub(crate) mod guard;
