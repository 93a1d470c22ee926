//! JSON as codex and the daemon write it: walked over in place, checked, cut to a length or a depth.
//!
//! `cursor` walks over a text without building it, `members` takes the members that are asked for, `scan` is how it skips long strings, and `text`
//! makes what others wrote fit for those who read it next.

mod cursor;
mod members;
mod scan;
mod text;

pub(crate) use cursor::{
    Cursor, JsonKind, NotJson, Span, decode, is, is_deeper_than, limit_depth, valid, word,
};
pub(crate) use members::{Members, text_of};
pub(crate) use scan::{end as string_end, plain_end};
pub(crate) use text::{json_string, replace_lone_surrogates, truncate, why_unreadable};
