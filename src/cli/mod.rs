pub(crate) mod flags;
pub(crate) mod mutate;
