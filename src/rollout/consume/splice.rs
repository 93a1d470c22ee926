//! Decides what of a line is replaced, and by what: pure functions, one line at a time.
//!
//! A line never changes its length in bytes. codex stores byte offsets into its rollouts (from 0.148 on in
//! `thread_history_1.sqlite`, and a fork stores one into its parent's rollout), and a shorter line would move all bytes
//! behind it. So freed bytes become spaces at the line's end, which JSON allows, and a marker that is longer than the
//! value it replaces is truncated. Later runs can use that padding for longer markers.
//!
//! The rest of a line is never serialized again: key order, number formats and escapes stay codex's own.

use crate::json::{Cursor, JsonKind, NotJson, Span, decode, str_eq};
use std::borrow::Cow;
use std::ops::Range;

/// How a call is consumed, the weaker operation first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Op {
    /// The outputs become `...(consumed)`.
    Light,
    /// The outputs become `...(tool called)` and the arguments `{}`.
    Heavy,
}

impl Op {
    /// The operation of this name: one of the daemon's names or their short forms.
    pub(crate) fn named(name: &str) -> Option<Op> {
        match name {
            "consume-light" | "light" => Some(Op::Light),
            "consume-heavy" | "heavy" => Some(Op::Heavy),
            _ => None,
        }
    }

    fn marker(self) -> &'static str {
        match self {
            Op::Light => "...(consumed)",
            Op::Heavy => "...(tool called)",
        }
    }
}

/// Which half of a call an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LineRole {
    Call,
    Output,
}

/// A kind of value that can be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    /// An output: a string, or an array of content blocks. Every codex since 0.135 accepts a string for either.
    Output,
    /// The result of a search for tools.
    Tools,
    /// Arguments as JSON in a string, as the Responses API has them.
    Text,
    /// Arguments as a JSON object.
    Object,
    /// The input of a free-form call.
    Input,
    /// The action of a `local_shell_call`. codex requires its type and an array as the command.
    Action,
}

/// The replacement of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Replacement {
    /// A string that may be truncated.
    Marker(&'static str),
    /// JSON that is written completely or not at all.
    Whole(&'static str),
}

impl Slot {
    /// The replacement under `op`; `None` where `op` keeps the value.
    fn replacement(self, op: Op) -> Option<Replacement> {
        match (self, op) {
            (Slot::Output, op) => Some(Replacement::Marker(op.marker())),
            (Slot::Tools, _) => Some(Replacement::Whole("[]")),
            (_, Op::Light) => None,
            (Slot::Text, Op::Heavy) => Some(Replacement::Whole(r#""{}""#)),
            (Slot::Object, Op::Heavy) => Some(Replacement::Whole("{}")),
            (Slot::Input, Op::Heavy) => Some(Replacement::Whole(r#""""#)),
            (Slot::Action, Op::Heavy) => {
                Some(Replacement::Whole(r#"{"type":"exec","command":[]}"#))
            }
        }
    }
}

impl Replacement {
    /// Its full length in bytes, as JSON.
    fn length(self) -> u64 {
        match self {
            Replacement::Marker(text) => text.len() as u64 + 2,
            Replacement::Whole(text) => text.len() as u64,
        }
    }

    /// Its JSON in at most `most` bytes; `None` where nothing useful fits.
    fn within(self, most: u64) -> Option<Cow<'static, str>> {
        match self {
            Replacement::Whole(text) => (text.len() as u64 <= most).then_some(Cow::Borrowed(text)),
            Replacement::Marker(text) => {
                let available = usize::try_from(most.saturating_sub(2)).unwrap_or(usize::MAX);
                // The markers are ASCII without characters that JSON escapes.
                let cut = &text[..text.len().min(available)];
                (!cut.is_empty()).then(|| Cow::Owned(format!("\"{cut}\"")))
            }
        }
    }
}

/// A call or an output in a line.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    /// The index of its id among the selected ones.
    pub(crate) id: usize,
    pub(crate) role: LineRole,
    /// It is in the history of a `compacted` line.
    pub(crate) in_compacted_history: bool,
    slot: Slot,
    /// The range of its value, in bytes from the beginning of the line.
    span: Range<u64>,
    /// The raw value, if it is short enough to be one of our replacements.
    raw: Option<Box<str>>,
}

/// No replacement is longer, in bytes.
const LONGEST_NEW: usize = 32;

/// A line that contains selected calls or outputs, without its bytes.
#[derive(Debug)]
pub(crate) struct PatchLine {
    /// Its offset in the file.
    pub(crate) offset: u64,
    pub(crate) sites: Vec<Site>,
    /// The end of its JSON, in bytes from its beginning.
    json: u64,
    /// The end of the spaces behind the JSON, likewise.
    padding_end: u64,
}

/// A piece of a line's new text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Text(Cow<'static, str>),
    /// The bytes of this range of the old file.
    Keep(Range<u64>),
    Spaces(u64),
}

/// New bytes for the file at offset `at`, as many as they replace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Patch {
    pub(crate) at: u64,
    pub(crate) pieces: Vec<Piece>,
    /// By how many bytes the line's JSON becomes shorter; negative where a marker uses padding.
    pub(crate) freed: i64,
}

/// Whether the first `call_id` of the payload shows that a line belongs to another call. For lines that are known to be
/// a call or an output; `false` means that the line has to be parsed.
pub(crate) fn is_of_another(text: &str, index_of: &dyn Fn(&str) -> Option<usize>) -> bool {
    let id = || -> Result<Option<Span>, NotJson> {
        let mut cursor = Cursor::new(text);
        cursor.open(JsonKind::Object)?;
        while let Some(key) = cursor.key()? {
            if !str_eq(&text[key], "payload") {
                cursor.value()?;
                continue;
            }
            cursor.open(JsonKind::Object)?;
            while let Some(key) = cursor.key()? {
                let value = cursor.value()?;
                if str_eq(&text[key], "call_id") {
                    return Ok(Some(value));
                }
            }
            break;
        }
        Ok(None)
    };
    match id() {
        Ok(Some(id)) if text[id.clone()].starts_with('"') => index_of(&decode(&text[id])).is_none(),
        _ => false,
    }
}

/// Finds the selected calls and outputs in a line; `index_of` maps an id to its index. `None` where there are none, and
/// for a line that is not JSON or has duplicates of the keys used here: codex does not read such a line either.
pub(crate) fn read(
    offset: u64,
    text: &str,
    index_of: &dyn Fn(&str) -> Option<usize>,
) -> Option<PatchLine> {
    let sites = sites(text, index_of)
        .ok()
        .filter(|sites| !sites.is_empty())?;
    let json = text.trim_end_matches([' ', '\t', '\r', '\n']).len();
    let spaces = text[json..]
        .bytes()
        .take_while(|byte| *byte == b' ')
        .count();
    Some(PatchLine {
        offset,
        sites,
        json: json as u64,
        padding_end: (json + spaces) as u64,
    })
}

fn sites(text: &str, index_of: &dyn Fn(&str) -> Option<usize>) -> Result<Vec<Site>, NotJson> {
    let mut cursor = Cursor::new(text);
    let [record, payload] = keys(&mut cursor, text, ["type", "payload"])?;
    cursor.end()?;
    let (Some(record), Some(payload)) = (record, payload) else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    if str_eq(&text[record.clone()], "response_item") {
        found.extend(find_site(text, payload, false, index_of)?);
    } else if str_eq(&text[record], "compacted") {
        let mut cursor = Cursor::new(&text[payload.clone()]);
        let [history] = keys(&mut cursor, &text[payload.clone()], ["replacement_history"])?;
        let Some(history) = history.map(|span| within(&payload, span)) else {
            return Ok(found);
        };
        let mut cursor = Cursor::new(&text[history.clone()]);
        if cursor.kind()? != JsonKind::Array {
            return Ok(found);
        }
        cursor.open(JsonKind::Array)?;
        while cursor.element()? {
            let element = within(&history, cursor.value()?);
            found.extend(find_site(text, element, true, index_of)?);
        }
    }
    Ok(found)
}

/// The call or output that an item of the Responses API is, if its id is selected.
fn find_site(
    text: &str,
    span: Span,
    in_compacted_history: bool,
    index_of: &dyn Fn(&str) -> Option<usize>,
) -> Result<Option<Site>, NotJson> {
    let inner = &text[span.clone()];
    let mut cursor = Cursor::new(inner);
    if cursor.kind()? != JsonKind::Object {
        return Ok(None);
    }
    let [kind, call_id, id, output, tools, arguments, input, action] = keys(
        &mut cursor,
        inner,
        [
            "type",
            "call_id",
            "id",
            "output",
            "tools",
            "arguments",
            "input",
            "action",
        ],
    )?;
    let Some(kind) = kind else { return Ok(None) };
    let kind = decode_string(&inner[kind]);
    let (role, value) = match kind.as_deref() {
        Some("function_call" | "tool_search_call") => (LineRole::Call, arguments),
        Some("custom_tool_call") => (LineRole::Call, input),
        Some("local_shell_call") => (LineRole::Call, action),
        Some("function_call_output" | "custom_tool_call_output") => (LineRole::Output, output),
        Some("tool_search_output") => (LineRole::Output, tools),
        _ => return Ok(None),
    };
    let text_of = |span: Option<Span>| span.and_then(|span| decode_string(&inner[span]));
    let id = match role {
        // The legacy form of a shell call has only an `id`.
        LineRole::Call => text_of(call_id).or_else(|| text_of(id)),
        LineRole::Output => text_of(call_id),
    };
    let (Some(id), Some(value)) = (id.and_then(|id| index_of(&id)), value) else {
        return Ok(None);
    };
    let raw = &inner[value.clone()];
    let slot = match (kind.as_deref(), raw.as_bytes()[0]) {
        (Some("function_call_output" | "custom_tool_call_output"), b'"' | b'[') => Slot::Output,
        (Some("tool_search_output"), b'[') => Slot::Tools,
        (Some("function_call" | "tool_search_call"), b'"') => Slot::Text,
        (Some("function_call" | "tool_search_call"), b'{') => Slot::Object,
        (Some("custom_tool_call"), b'"') => Slot::Input,
        (Some("local_shell_call"), b'{') => Slot::Action,
        // A type that no codex writes: left unchanged.
        _ => return Ok(None),
    };
    Ok(Some(Site {
        id,
        role,
        in_compacted_history,
        slot,
        raw: (raw.len() <= LONGEST_NEW).then(|| raw.into()),
        span: as_u64(within(&span, value)),
    }))
}

/// The values of these keys of the next object.
///
/// # Errors
/// It is not an object, or it has duplicates of these keys.
fn keys<const N: usize>(
    cursor: &mut Cursor<'_>,
    text: &str,
    names: [&str; N],
) -> Result<[Option<Span>; N], NotJson> {
    let mut found = [const { None }; N];
    cursor.open(JsonKind::Object)?;
    while let Some(key) = cursor.key()? {
        let value = cursor.value()?;
        if let Some(at) = names
            .iter()
            .position(|name| str_eq(&text[key.clone()], name))
            && found[at].replace(value).is_some()
        {
            return Err(NotJson);
        }
    }
    Ok(found)
}

fn decode_string(raw: &str) -> Option<Cow<'_, str>> {
    raw.starts_with('"').then(|| decode(raw))
}

/// Converts a range of a part of the text to one of the text.
fn within(part: &Span, span: Span) -> Span {
    part.start + span.start..part.start + span.end
}

fn as_u64(span: Span) -> Range<u64> {
    span.start as u64..span.end as u64
}

impl Site {
    /// The replacement under `op`; `None` where the value is kept: `Light` does not undo `Heavy`.
    fn replacement(&self, op: Op) -> Option<Replacement> {
        let undone = op == Op::Light && self.slot == Slot::Output && self.is_heavy();
        self.slot.replacement(op).filter(|_| !undone)
    }

    /// Whether the value is the heavy marker, whole or truncated behind its common prefix with the light one.
    fn is_heavy(&self) -> bool {
        let same = Op::Heavy
            .marker()
            .bytes()
            .zip(Op::Light.marker().bytes())
            .take_while(|(heavy, light)| heavy == light)
            .count();
        self.raw
            .as_deref()
            .and_then(|raw| raw.strip_prefix('"')?.strip_suffix('"'))
            .is_some_and(|text| text.len() > same && Op::Heavy.marker().starts_with(text))
    }
}

impl PatchLine {
    /// The patch that applies `op_of` to each site, and the indexes of the ids that it changes. `None` where nothing
    /// changes.
    pub(crate) fn patch(&self, op_of: impl Fn(&Site) -> Option<Op>) -> Option<(Patch, Vec<usize>)> {
        let chosen: Vec<(&Site, Replacement)> = self
            .sites
            .iter()
            .filter_map(|site| Some((site, site.replacement(op_of(site)?)?)))
            .collect();
        // Bytes available for markers that are longer than their values: the padding, and what the other sites free.
        let mut available = self.padding_end - self.json;
        for (site, new) in &chosen {
            available += length(&site.span).saturating_sub(new.length());
        }
        let mut texts = Vec::new();
        let mut changed = Vec::new();
        for (site, new) in chosen {
            let old = length(&site.span);
            let Some(text) = new.within(if new.length() <= old {
                old
            } else {
                old + available
            }) else {
                continue;
            };
            available -= (text.len() as u64).saturating_sub(old);
            if site.raw.as_deref() != Some(&*text) {
                changed.push(site.id);
            }
            texts.push((site.span.clone(), text));
        }
        if changed.is_empty() {
            return None;
        }
        Some((self.spliced(texts), changed))
    }

    fn spliced(&self, texts: Vec<(Range<u64>, Cow<'static, str>)>) -> Patch {
        let kept = |span: Range<u64>| Piece::Keep(self.offset + span.start..self.offset + span.end);
        let start = texts.first().map_or(self.json, |(span, _)| span.start);
        let mut pieces = Vec::new();
        let (mut at, mut written) = (start, 0);
        for (span, text) in texts {
            if span.start > at {
                pieces.push(kept(at..span.start));
            }
            written += span.start - at + text.len() as u64;
            at = span.end;
            pieces.push(Piece::Text(text));
        }
        if self.json > at {
            pieces.push(kept(at..self.json));
            written += self.json - at;
        }
        // Not negative: `patch` has kept within the available bytes.
        let spaces = (self.padding_end - start).saturating_sub(written);
        if spaces > 0 {
            pieces.push(Piece::Spaces(spaces));
        }
        Patch {
            at: self.offset + start,
            pieces,
            // The casts cannot wrap: a line is at most 32 MiB long.
            freed: self.json as i64 - (start + written) as i64,
        }
    }
}

fn length(span: &Range<u64>) -> u64 {
    span.end - span.start
}
