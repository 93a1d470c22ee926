//! What of a line is replaced, and by what: pure, one line at a time.
//!
//! A line keeps its length in bytes, always. codex notes byte offsets into its rollouts (from 0.148 in
//! `thread_history_1.sqlite`, and forks note one into their parent's), and a line that became shorter would
//! move everything behind it. So what is saved becomes spaces at the line's end, which JSON allows, and a
//! marker that is longer than what it replaces is cut. Spaces from an earlier time are room again.
//!
//! The text is never printed anew: key order, number formats and escapes of what stays are codex's own.

use crate::json::{Cursor, JsonKind, NotJson, Span, decode, is};
use std::borrow::Cow;
use std::ops::Range;

/// What is to be done with a call. The order is that of strength.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Op {
    /// The outputs become `...(consumed)`.
    Light,
    /// The outputs become `...(tool called)` and the arguments `{}`.
    Heavy,
}

impl Op {
    /// The operation of this name: the daemon's own names, and the short ones.
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

/// Which half of a call stands somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LineRole {
    Call,
    Output,
}

/// A value that can be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    /// An output: a string, or a list of content blocks. Every codex since 0.135 takes a string for either.
    Output,
    /// What a search for tools found.
    Tools,
    /// Arguments: JSON in a string, as the Responses API has them.
    Text,
    /// Arguments as JSON itself.
    Object,
    /// The input of a free-form call.
    Input,
    /// What a `local_shell_call` runs. codex insists on the type and on a list of words.
    Action,
}

/// What comes into a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Replacement {
    /// A string that may be cut to what fits.
    Marker(&'static str),
    /// All of it, or nothing.
    Whole(&'static str),
}

impl Slot {
    /// What `op` puts here; nothing where `op` leaves it alone.
    fn filled(self, op: Op) -> Option<Replacement> {
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
    /// Its length in bytes where there is room for all of it.
    fn length(self) -> u64 {
        match self {
            Replacement::Marker(text) => text.len() as u64 + 2,
            Replacement::Whole(text) => text.len() as u64,
        }
    }

    /// The JSON of it that is no longer than `most` bytes, if that is worth anything.
    fn within(self, most: u64) -> Option<Cow<'static, str>> {
        match self {
            Replacement::Whole(text) => (text.len() as u64 <= most).then_some(Cow::Borrowed(text)),
            Replacement::Marker(text) => {
                let room = usize::try_from(most.saturating_sub(2)).unwrap_or(usize::MAX);
                // The markers are ASCII without anything that JSON escapes.
                let cut = &text[..text.len().min(room)];
                (!cut.is_empty()).then(|| Cow::Owned(format!("\"{cut}\"")))
            }
        }
    }
}

/// A place in a line where a call or an output of interest stands.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    /// Which of the wanted ids it has.
    pub(crate) id: usize,
    pub(crate) role: LineRole,
    /// It stands in the history that a `compacted` line holds.
    pub(crate) copied: bool,
    slot: Slot,
    /// Where the value stands, in bytes from the beginning of the line.
    span: Range<u64>,
    /// What stands there, if it is short enough to be something that we wrote.
    raw: Option<Box<str>>,
}

/// No replacement is longer.
const LONGEST_NEW: usize = 32;

/// A line that has something of interest, without its bytes.
#[derive(Debug)]
pub(crate) struct PatchLine {
    /// Where it begins in the file.
    pub(crate) offset: u64,
    pub(crate) sites: Vec<Site>,
    /// Where its JSON ends, in bytes from its beginning.
    json: u64,
    /// Where the spaces behind that end.
    room: u64,
}

/// A piece of a line's new text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Text(Cow<'static, str>),
    /// What stands at this place of the old file.
    Keep(Range<u64>),
    Spaces(u64),
}

/// What is written over a part of the file, from `at` on; as long as what it covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Patch {
    pub(crate) at: u64,
    pub(crate) pieces: Vec<Piece>,
    /// How many bytes shorter the line's JSON becomes; less than 0 where a marker takes room of the spaces.
    pub(crate) freed: i64,
}

/// Is this, by the first `call_id` of its payload, certainly a line of another call? For lines that are known
/// to be a call or an output; an answer of `false` says nothing.
pub(crate) fn is_of_another(text: &str, wanted: &dyn Fn(&str) -> Option<usize>) -> bool {
    let id = || -> Result<Option<Span>, NotJson> {
        let mut cursor = Cursor::new(text);
        cursor.open(JsonKind::Object)?;
        while let Some(key) = cursor.key()? {
            if !is(&text[key], "payload") {
                cursor.value()?;
                continue;
            }
            cursor.open(JsonKind::Object)?;
            while let Some(key) = cursor.key()? {
                let value = cursor.value()?;
                if is(&text[key], "call_id") {
                    return Ok(Some(value));
                }
            }
            break;
        }
        Ok(None)
    };
    match id() {
        Ok(Some(id)) if text[id.clone()].starts_with('"') => wanted(&decode(&text[id])).is_none(),
        _ => false,
    }
}

/// Finds in a line what belongs to the calls that `wanted` knows. `None` where there is nothing of that, and
/// for a line that is not JSON or has a key of ours twice: codex does not read such a line either.
pub(crate) fn read(
    offset: u64,
    text: &str,
    wanted: &dyn Fn(&str) -> Option<usize>,
) -> Option<PatchLine> {
    let sites = sites(text, wanted).ok().filter(|sites| !sites.is_empty())?;
    let json = text.trim_end_matches([' ', '\t', '\r', '\n']).len();
    let spaces = text[json..]
        .bytes()
        .take_while(|byte| *byte == b' ')
        .count();
    Some(PatchLine {
        offset,
        sites,
        json: json as u64,
        room: (json + spaces) as u64,
    })
}

fn sites(text: &str, wanted: &dyn Fn(&str) -> Option<usize>) -> Result<Vec<Site>, NotJson> {
    let mut cursor = Cursor::new(text);
    let [record, payload] = keys(&mut cursor, text, ["type", "payload"])?;
    cursor.end()?;
    let (Some(record), Some(payload)) = (record, payload) else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    if is(&text[record.clone()], "response_item") {
        found.extend(item(text, payload, false, wanted)?);
    } else if is(&text[record], "compacted") {
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
            found.extend(item(text, element, true, wanted)?);
        }
    }
    Ok(found)
}

/// The place of interest in one item of the Responses API, if it has one.
fn item(
    text: &str,
    place: Span,
    copied: bool,
    wanted: &dyn Fn(&str) -> Option<usize>,
) -> Result<Option<Site>, NotJson> {
    let inner = &text[place.clone()];
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
        // The older form of a shell call has only an `id`.
        LineRole::Call => text_of(call_id).or_else(|| text_of(id)),
        LineRole::Output => text_of(call_id),
    };
    let (Some(id), Some(value)) = (id.and_then(|id| wanted(&id)), value) else {
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
        // Of a type that no codex writes: it is left alone.
        _ => return Ok(None),
    };
    Ok(Some(Site {
        id,
        role,
        copied,
        slot,
        raw: (raw.len() <= LONGEST_NEW).then(|| raw.into()),
        span: as_u64(within(&place, value)),
    }))
}

/// The values of these keys of the object that comes next.
///
/// # Errors
/// Where it is not an object, and where one of the keys stands there twice.
fn keys<const N: usize>(
    cursor: &mut Cursor<'_>,
    text: &str,
    names: [&str; N],
) -> Result<[Option<Span>; N], NotJson> {
    let mut found = [const { None }; N];
    cursor.open(JsonKind::Object)?;
    while let Some(key) = cursor.key()? {
        let value = cursor.value()?;
        if let Some(at) = names.iter().position(|name| is(&text[key.clone()], name))
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

/// A place in a part of the text, as a place in the text.
fn within(part: &Span, span: Span) -> Span {
    part.start + span.start..part.start + span.end
}

fn as_u64(span: Span) -> Range<u64> {
    span.start as u64..span.end as u64
}

impl Site {
    /// What `op` puts here. Nothing where it leaves the place alone: `Light` does not undo `Heavy`.
    fn new_text(&self, op: Op) -> Option<Replacement> {
        let undone = op == Op::Light && self.slot == Slot::Output && self.is_heavy();
        self.slot.filled(op).filter(|_| !undone)
    }

    /// Is this the heavy marker, whole or cut to where it still differs from the light one?
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
    /// The patch that does with each place what `op_of` says, and the ids that it changes something of.
    /// `None` where nothing changes.
    pub(crate) fn patch(&self, op_of: impl Fn(&Site) -> Option<Op>) -> Option<(Patch, Vec<usize>)> {
        let chosen: Vec<(&Site, Replacement)> = self
            .sites
            .iter()
            .filter_map(|site| Some((site, site.new_text(op_of(site)?)?)))
            .collect();
        // The room that there is for markers longer than what they replace: the spaces at the end, and what
        // the other places give.
        let mut room = self.room - self.json;
        for (site, new) in &chosen {
            room += length(&site.span).saturating_sub(new.length());
        }
        let mut texts = Vec::new();
        let mut changed = Vec::new();
        for (site, new) in chosen {
            let old = length(&site.span);
            let Some(text) = new.within(if new.length() <= old { old } else { old + room }) else {
                continue;
            };
            room -= (text.len() as u64).saturating_sub(old);
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
        // What is written never exceeds the room: `patch` has counted it.
        let spaces = (self.room - start).saturating_sub(written);
        if spaces > 0 {
            pieces.push(Piece::Spaces(spaces));
        }
        Patch {
            at: self.offset + start,
            pieces,
            // A line is at most 32 MiB long.
            freed: self.json as i64 - (start + written) as i64,
        }
    }
}

fn length(span: &Range<u64>) -> u64 {
    span.end - span.start
}
