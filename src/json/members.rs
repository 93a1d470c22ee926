//! Selected members of a JSON object, by name; all others are ignored.
//!
//! For every object that may have unknown members, or known ones of an unexpected type: the latter count as absent.
//! Of duplicate keys the last one counts, as in a parsed JSON object.

use super::cursor::{Cursor, JsonKind, NotJson, decode, decode_bytes};
use std::borrow::Cow;

/// The raw values of the requested members of an object.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Members<'a, const N: usize> {
    names: &'static [&'static str; N],
    values: [Option<&'a [u8]>; N],
}

impl<'a, const N: usize> Members<'a, N> {
    /// No member is present.
    pub(crate) fn none(names: &'static [&'static str; N]) -> Members<'a, N> {
        Members {
            names,
            values: [None; N],
        }
    }

    /// Reads the next object of `cursor`, whose text is `text`.
    ///
    /// # Errors
    /// It is not an object, or not JSON.
    pub(crate) fn walk(
        text: &'a [u8],
        cursor: &mut Cursor<'a>,
        names: &'static [&'static str; N],
    ) -> Result<Members<'a, N>, NotJson> {
        let mut members = Members::none(names);
        members.walk_into(text, cursor)?;
        Ok(members)
    }

    /// As [`Members::walk`], into members that may have been set before.
    ///
    /// # Errors
    /// As [`Members::walk`].
    pub(crate) fn walk_into(
        &mut self,
        text: &'a [u8],
        cursor: &mut Cursor<'a>,
    ) -> Result<(), NotJson> {
        cursor.open(JsonKind::Object)?;
        while let Some(key) = cursor.key()? {
            let value = cursor.value()?;
            self.set(&text[key], &text[value]);
        }
        Ok(())
    }

    /// Reads the object `text`. Where it is absent or not an object, no member is present.
    pub(crate) fn of(text: Option<&'a [u8]>, names: &'static [&'static str; N]) -> Members<'a, N> {
        let text = text.unwrap_or_default();
        Members::walk(text, &mut Cursor::new(text), names).unwrap_or_else(|_| Members::none(names))
    }

    /// Sets a member, if it was requested.
    pub(crate) fn set(&mut self, key: &[u8], value: &'a [u8]) {
        let key = decode_bytes(key);
        if let Some(at) = self.names.iter().position(|name| name.as_bytes() == &*key) {
            self.values[at] = Some(value);
        }
    }

    /// The raw value of a requested member, where it is present and not `null`.
    pub(crate) fn raw(&self, name: &str) -> Option<&'a [u8]> {
        let at = self.names.iter().position(|known| *known == name);
        debug_assert!(at.is_some(), "'{name}' was not asked for");
        self.values[at?].filter(|raw| *raw != b"null")
    }

    /// The text of a requested member, where it is a string.
    pub(crate) fn text(&self, name: &str) -> Option<Cow<'a, str>> {
        text_of(self.raw(name)?)
    }

    /// The value of a requested member, where it is an unsigned integer.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        std::str::from_utf8(self.raw(name)?).ok()?.parse().ok()
    }
}

/// The text of a raw value, where it is a string.
pub(crate) fn text_of(raw: &[u8]) -> Option<Cow<'_, str>> {
    raw.starts_with(b"\"").then(|| decode(raw))
}

/// The raw elements of an array; none where it is absent or not an array. Stops at the first one that is not JSON.
pub(crate) fn elements(raw: Option<&[u8]>) -> Vec<&[u8]> {
    let raw = raw.unwrap_or_default();
    let mut cursor = Cursor::new(raw);
    let mut elements = Vec::new();
    if cursor.open(JsonKind::Array).is_ok() {
        while let Ok(true) = cursor.element()
            && let Ok(span) = cursor.value()
        {
            elements.push(&raw[span]);
        }
    }
    elements
}
