//! The config file: one JSON object of optional keys.
//!
//! It is read with its positions, so that an error can name line and column. A wrong type, a duplicate key or an unreadable
//! file is an error; an unknown key, of a newer version or misspelled, is a warning. Nothing is written.

mod keys;
pub(crate) mod load;
mod values;

pub(crate) use keys::{
    BackendChoice, Config, ConfigKey, KEYS, LostThread, McpRegistration, ModelArgs, PromptVia,
    Sandbox,
};
pub(crate) use load::{Loaded, load, nearest};
