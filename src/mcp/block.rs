//! A content block of the daemon's, as codex takes it.
//!
//! One that is right passes byte for byte. One member that is wrong and the call fails as a whole, with an error
//! that tells the model nothing: so a block goes without such a member where MCP can do without, and one of a
//! type that this client does not know, or without what its type needs, becomes text. What is right was measured:
//! it is what 0.135, 0.148, 0.155 and 0.169 all take.

use super::version::ProtocolVersion;
use crate::json::{json_string, why_unreadable};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt::Write;

/// A content block, as far as its form is checked. Field by field raw, so that a wrong type is a wrong member
/// and not an error.
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
    /// As the daemon writes its own image blocks.
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

/// Where these can be read, codex can read them too.
#[derive(Deserialize)]
#[expect(dead_code, reason = "only whether they can be read is of interest")]
struct Annotations {
    audience: Option<Vec<Role>>,
    /// A fraction is as right, and is what MCP's own examples have; but 0.148 and 0.155 refuse the whole result
    /// for one.
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

/// The block as MCP has it, whatever the daemon wrote.
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

/// The members of a block or a resource that MCP has and that are as MCP has them.
#[derive(Default)]
struct BlockMembers {
    json: String,
    /// There are others, or others are needed.
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

    /// Adds a member that can be left out, unless it is not as `right` says.
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
    /// What of the block can be passed on; `None` where something is missing that its type needs.
    fn members(&self, version: ProtocolVersion) -> Option<BlockMembers> {
        let kind = self.kind.as_deref()?;
        let mut members = BlockMembers::default();
        members.add("type", &json_string(kind));
        match kind {
            "text" => members.add("text", string(self.text)?),
            "image" => {
                members.add("data", string(self.data)?);
                // Where both are there, the one that MCP has.
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
                // As 0.135 has it; later ones take 64 bits.
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

/// A string, as JSON.
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

/// An object that codex can read, however deep in a block it stands.
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

/// Is this a time as RFC 3339 writes it? 0.135 refuses any other, later ones take every string. The 29th of
/// February is none here: that is not worth a calendar.
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
