pub(crate) mod flags;
