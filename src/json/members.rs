//! The members of an object that somebody asks for, by name; everything else in it is ignored.
//!
//! This is how everything is read that may have members nobody here knows, and known ones of another type: those
//! count as absent. Where a key is there twice the last one counts, as in any parsed JSON object.

use super::cursor::{Cursor, JsonKind, NotJson, decode, word};
use std::borrow::Cow;

/// The members of an object that were asked for, raw.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Members<'a, const N: usize> {
    names: &'static [&'static str; N],
    values: [Option<&'a [u8]>; N],
}

impl<'a, const N: usize> Members<'a, N> {
    /// None of these.
    pub(crate) fn none(names: &'static [&'static str; N]) -> Members<'a, N> {
        Members {
            names,
            values: [None; N],
        }
    }

    /// Those of the object of `text` that `cursor` stands before.
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

    /// Adds those of the object of `text` that `cursor` stands before.
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

    /// Those of what may be an object.
    pub(crate) fn of(text: Option<&'a [u8]>, names: &'static [&'static str; N]) -> Members<'a, N> {
        let text = text.unwrap_or_default();
        Members::walk(text, &mut Cursor::new(text), names).unwrap_or_else(|_| Members::none(names))
    }

    /// Takes note of a member, if it was asked for.
    pub(crate) fn set(&mut self, key: &[u8], value: &'a [u8]) {
        let key = word(key);
        if let Some(at) = self.names.iter().position(|name| name.as_bytes() == &*key) {
            self.values[at] = Some(value);
        }
    }

    /// The member of this name, as it stands, if it is there and not `null`.
    pub(crate) fn raw(&self, name: &str) -> Option<&'a [u8]> {
        let at = self.names.iter().position(|known| *known == name);
        debug_assert!(at.is_some(), "'{name}' was not asked for");
        self.values[at?].filter(|raw| *raw != b"null")
    }

    /// What the member of this name says, if it is a string.
    pub(crate) fn text(&self, name: &str) -> Option<Cow<'a, str>> {
        text_of(self.raw(name)?)
    }

    /// The number that the member of this name is, if it is one without sign and point.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        std::str::from_utf8(self.raw(name)?).ok()?.parse().ok()
    }
}

/// What a value says, if it is a string.
pub(crate) fn text_of(raw: &[u8]) -> Option<Cow<'_, str>> {
    raw.starts_with(b"\"").then(|| decode(raw))
}

/// The elements of what may be a list.
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
