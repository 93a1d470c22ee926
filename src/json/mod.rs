//! JSON as codex and the daemon write it: walked over in place, checked, cut to a length or a depth.
//!
//! `cursor` walks over a text without building values, `members` selects members by name, `scan` finds the ends of
//! strings, and `text` adapts JSON to what codex's reader accepts.
//!
//! It exists beside `serde_json` for two reasons. Reading a rollout takes a ninth of the time that a loop of
//! `serde_json` over its lines takes (`make bench`). And codex's texts are passed on unchanged: duplicate keys, numbers
//! out of range and unpaired surrogates, which a parsed value would reject or change.

mod cursor;
mod members;
mod scan;
mod text;

pub(crate) use cursor::{
    Cursor, JsonKind, NotJson, Span, decode, decode_bytes, is_deeper_than, limit_depth, str_eq,
    valid,
};
pub(crate) use members::{Members, elements, text_of};
pub(crate) use scan::{end as string_end, plain_end};
pub(crate) use text::{json_string, replace_lone_surrogates, truncate, why_unreadable};
