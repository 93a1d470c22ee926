//! The config file: one JSON object of optional keys.
//!
//! An error has its line and column. A wrong type, a duplicate key or an unreadable file is an error; an unknown key,
//! which may be misspelled or of a newer version, is a warning. The file is never written.

mod keys;
pub(crate) mod load;
mod values;

pub(crate) use keys::{
    BackendChoice, Config, ConfigKey, KEYS, LostThread, McpRegistration, ModelArgs, PromptVia,
    Sandbox,
};
pub(crate) use load::{Loaded, load, nearest};
