pub(crate) mod flags;
pub(crate) mod parse_rollout;
mod summary;
mod target;
