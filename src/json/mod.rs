//! JSON as codex and the daemon write it: walked over in place, checked, cut to a length or a depth.
//!
//! `cursor` walks over a text without building it, `members` takes the members that are asked for, `scan` is how it
//! skips long strings, and `text` makes what others wrote fit for those who read it next.
//!
//! It stands here beside `serde_json` for two reasons. A rollout is read in a ninth of the time that a loop of
//! `serde_json` over its lines takes (`make bench`). And what codex wrote is passed on as it stands: duplicate keys,
//! numbers out of range and halves of surrogate pairs, which a parsed value would refuse or change.

mod cursor;
mod members;
mod scan;
mod text;

pub(crate) use cursor::{
    Cursor, JsonKind, NotJson, Span, decode, is, is_deeper_than, limit_depth, valid, word,
};
pub(crate) use members::{Members, elements, text_of};
pub(crate) use scan::{end as string_end, plain_end};
pub(crate) use text::{json_string, replace_lone_surrogates, truncate, why_unreadable};
