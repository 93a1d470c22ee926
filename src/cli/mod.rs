//! The command line: what people and scripts see.

pub(crate) mod flags;
pub(crate) mod mutate;
pub(crate) mod turn;
