//! Makes a content block of the daemon acceptable to codex.
//!
//! A valid block is passed on byte for byte. One invalid member would make the whole call fail, with an error that
//! tells the model nothing: so such a member is dropped if MCP does not require it, and a block of an unknown type, or
//! without a required member, becomes text. Valid is what 0.135, 0.148, 0.155 and 0.169 all accept, as measured.

use super::version::ProtocolVersion;
use crate::json::{json_string, why_unreadable};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt::Write;

/// A content block as far as it is checked. All fields are raw, so that one of a wrong type is not an error.
#[derive(Deserialize)]
struct ContentBlock<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow)]
    text: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow, rename = "mimeType")]
    mime_type: Option<&'a RawValue>,
    /// The daemon's name for `mimeType` in image blocks.
    #[serde(borrow)]
    media_type: Option<&'a RawValue>,
    #[serde(borrow)]
    resource: Option<&'a RawValue>,
    #[serde(borrow)]
    uri: Option<&'a RawValue>,
    #[serde(borrow)]
    name: Option<&'a RawValue>,
    #[serde(borrow)]
    title: Option<&'a RawValue>,
    #[serde(borrow)]
    description: Option<&'a RawValue>,
    #[serde(borrow)]
    size: Option<&'a RawValue>,
    #[serde(borrow)]
    icons: Option<&'a RawValue>,
    #[serde(borrow)]
    annotations: Option<&'a RawValue>,
    #[serde(borrow, rename = "_meta")]
    meta: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Resource<'a> {
    #[serde(borrow)]
    uri: Option<&'a RawValue>,
    #[serde(borrow)]
    text: Option<&'a RawValue>,
    #[serde(borrow)]
    blob: Option<&'a RawValue>,
    #[serde(borrow, rename = "mimeType")]
    mime_type: Option<&'a RawValue>,
    #[serde(borrow, rename = "_meta")]
    meta: Option<&'a RawValue>,
}

/// What deserializes into this, codex can deserialize, too.
#[derive(Deserialize)]
#[expect(dead_code, reason = "only whether they can be read is of interest")]
struct Annotations {
    audience: Option<Vec<Role>>,
    /// MCP allows fractions, and its own examples have them; but 0.148 and 0.155 reject the whole result for one.
    priority: Option<u64>,
    #[serde(rename = "lastModified")]
    last_modified: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    User,
    Assistant,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "only whether they can be read is of interest")]
struct Icon {
    src: String,
    #[serde(rename = "mimeType")]
    mime_type: Option<String>,
    sizes: Option<Vec<String>>,
    theme: Option<Theme>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Theme {
    Light,
    Dark,
}

/// The block in MCP's form.
pub(super) fn normalize(raw: &str, version: ProtocolVersion) -> String {
    if raw.starts_with('"') {
        return format!("{{\"type\":\"text\",\"text\":{raw}}}");
    }
    let parsed = match raw.starts_with('{') {
        true => serde_json::from_str::<ContentBlock<'_>>(raw).ok(),
        false => None,
    };
    match parsed.and_then(|parsed| parsed.members(version)) {
        Some(members) if !members.wrong && why_unreadable(raw).is_none() => raw.to_owned(),
        Some(members) => format!("{{{}}}", members.json),
        None => text(raw),
    }
}

/// The valid members of a block or a resource.
#[derive(Default)]
struct BlockMembers {
    json: String,
    /// There are invalid members, or required ones are missing.
    wrong: bool,
}

impl BlockMembers {
    fn add(&mut self, name: &str, json: &str) {
        if !self.json.is_empty() {
            self.json.push(',');
        }
        // Writing to memory does not fail.
        let _ = write!(self.json, "\"{name}\":{json}");
    }

    /// Adds an optional member if it is valid.
    fn add_optional(
        &mut self,
        name: &str,
        member: Option<&RawValue>,
        right: impl Fn(&RawValue) -> bool,
    ) {
        match member {
            Some(member) if right(member) => self.add(name, member.get()),
            Some(_) => self.wrong = true,
            None => {}
        }
    }
}

impl ContentBlock<'_> {
    /// The members that can be passed on; `None` where a required one is missing.
    fn members(&self, version: ProtocolVersion) -> Option<BlockMembers> {
        let kind = self.kind.as_deref()?;
        let mut members = BlockMembers::default();
        members.add("type", &json_string(kind));
        match kind {
            "text" => members.add("text", string(self.text)?),
            "image" => {
                members.add("data", string(self.data)?);
                // MCP's name takes precedence if both are present.
                let own = string(self.mime_type);
                members.wrong |= own.is_none();
                members.add("mimeType", own.or_else(|| string(self.media_type))?);
            }
            "audio" if version >= ProtocolVersion::V2025_03_26 => {
                members.add("data", string(self.data)?);
                members.add("mimeType", string(self.mime_type)?);
            }
            "resource_link" if version >= ProtocolVersion::V2025_06_18 => {
                members.add("uri", string(self.uri)?);
                members.add("name", string(self.name)?);
                members.add_optional("title", self.title, is_string);
                members.add_optional("description", self.description, is_string);
                members.add_optional("mimeType", self.mime_type, is_string);
                // 0.135 takes 32 bits, later versions 64.
                members.add_optional("size", self.size, is::<u32>);
                members.add_optional("icons", self.icons, is::<Vec<Icon>>);
            }
            "resource" => {
                let raw = self.resource?.get();
                let resource = raw.starts_with('{').then(|| serde_json::from_str(raw));
                let resource = Resource::members(&resource?.ok()?)?;
                members.wrong |= resource.wrong;
                members.add("resource", &format!("{{{}}}", resource.json));
            }
            _ => return None,
        }
        members.add_optional("annotations", self.annotations, is_annotations);
        members.add_optional("_meta", self.meta, is_object);
        Some(members)
    }
}

impl Resource<'_> {
    fn members(&self) -> Option<BlockMembers> {
        let mut members = BlockMembers::default();
        members.add("uri", string(self.uri)?);
        match string(self.text) {
            Some(text) => members.add("text", text),
            None => members.add("blob", string(self.blob)?),
        }
        members.add_optional("mimeType", self.mime_type, is_string);
        members.add_optional("_meta", self.meta, is_object);
        Some(members)
    }
}

/// A raw JSON string.
fn string(member: Option<&RawValue>) -> Option<&str> {
    let json = member?.get();
    json.starts_with('"').then_some(json)
}

fn is<T: DeserializeOwned>(member: &RawValue) -> bool {
    serde_json::from_str::<T>(member.get()).is_ok()
}

fn is_string(member: &RawValue) -> bool {
    member.get().starts_with('"')
}

/// An object that codex's reader accepts.
fn is_object(member: &RawValue) -> bool {
    member.get().starts_with('{') && why_unreadable(member.get()).is_none()
}

fn is_annotations(member: &RawValue) -> bool {
    is_object(member)
        && serde_json::from_str::<Annotations>(member.get()).is_ok_and(|annotations| {
            let changed = annotations.last_modified;
            changed.is_none_or(|time| is_time(time.as_bytes()))
        })
}

/// Whether this is a time as in RFC 3339. 0.135 rejects any other, later versions accept every string. The 29th of
/// February is treated as invalid, to need no calendar.
fn is_time(text: &[u8]) -> bool {
    const SHAPE: &[u8] = b"0000-00-00T00:00:00";
    let Some((start, rest)) = text.split_at_checked(SHAPE.len()) else {
        return false;
    };
    let alike = |text: &[u8], shape: &[u8]| {
        text.len() == shape.len()
            && text.iter().zip(shape).all(|(byte, shape)| match shape {
                b'0' => byte.is_ascii_digit(),
                shape => byte == shape,
            })
    };
    if !alike(start, SHAPE) {
        return false;
    }
    let number = |at: usize| (start[at] - b'0') * 10 + start[at + 1] - b'0';
    let days = match number(5) {
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return false,
    };
    let fraction = match rest.first() {
        Some(b'.') => {
            let digits = rest[1..].iter().take_while(|byte| byte.is_ascii_digit());
            1 + digits.count()
        }
        _ => 0,
    };
    let zone = &rest[fraction..];
    (1..=days).contains(&number(8))
        && number(11) < 24
        && number(14) < 60
        && number(17) < 60
        && fraction != 1
        && (zone == b"Z"
            || (alike(zone, b"+00:00") || alike(zone, b"-00:00"))
                && zone[1] < b'2'
                && zone[4] < b'6')
}

/// A block of text.
pub(super) fn text(text: &str) -> String {
    format!("{{\"type\":\"text\",\"text\":{}}}", json_string(text))
}
