//! The value types of the config file, with their `expected …` texts in error messages.

use super::ModelArgs;
use serde::de::{self, Deserialize, Deserializer, IntoDeserializer, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

/// A string without NUL, which can be an argument or an environment variable.
pub(super) struct NoNulText(pub(super) String);
/// A [`NoNulText`] that is not empty.
pub(super) struct NonEmptyText(pub(super) String);
pub(super) struct Strings(pub(super) Vec<String>);
pub(super) struct Bool(pub(super) bool);
/// A time limit in seconds; 0 is `None`, no limit.
pub(super) struct TimeLimit(pub(super) Option<Duration>);
pub(super) struct WholeSeconds(pub(super) Duration);
pub(super) struct Count(pub(super) usize);

macro_rules! deserialize_with {
    ($type:ident, $method:ident, $expecting:literal, $($visit:item)*) => {
        impl<'de> de::Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(json: D) -> std::result::Result<Self, D::Error> {
                struct ValueVisitor;
                impl<'de> Visitor<'de> for ValueVisitor {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }
                    $($visit)*
                }
                json.$method(ValueVisitor)
            }
        }
    };
}

deserialize_with!(
    NoNulText,
    deserialize_str,
    "a string",
    fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<NoNulText, E> {
        if text.contains('\0') {
            return Err(E::invalid_value(
                de::Unexpected::Str(text),
                &"a string without NUL",
            ));
        }
        Ok(NoNulText(text.to_owned()))
    }
);
deserialize_with!(
    NonEmptyText,
    deserialize_str,
    "a string that is not empty",
    fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<NonEmptyText, E> {
        if text.is_empty() || text.contains('\0') {
            return Err(E::invalid_value(de::Unexpected::Str(text), &self));
        }
        Ok(NonEmptyText(text.to_owned()))
    }
);
deserialize_with!(
    Strings,
    deserialize_seq,
    "a list of strings",
    fn visit_seq<A: de::SeqAccess<'de>>(
        self,
        mut list: A,
    ) -> std::result::Result<Strings, A::Error> {
        let mut strings = Vec::new();
        while let Some(NoNulText(text)) = list.next_element()? {
            strings.push(text);
        }
        Ok(Strings(strings))
    }
);
/// An object with any keys and values of one type. A duplicate key is an error.
pub(super) struct MapOf<T>(pub(super) BTreeMap<String, T>);

impl<'de, T: de::Deserialize<'de>> de::Deserialize<'de> for MapOf<T> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> std::result::Result<Self, D::Error> {
        json.deserialize_map(MapVisitor(PhantomData))
    }
}

struct MapVisitor<T>(PhantomData<T>);

impl<'de, T: de::Deserialize<'de>> Visitor<'de> for MapVisitor<T> {
    type Value = MapOf<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<MapOf<T>, A::Error> {
        let mut values = BTreeMap::new();
        while let Some(NoNulText(name)) = map.next_key()? {
            if values.contains_key(&name) {
                return Err(de::Error::custom(format!("duplicate key '{name}'")));
            }
            values.insert(name, map.next_value()?);
        }
        Ok(MapOf(values))
    }
}

impl<'de> Deserialize<'de> for ModelArgs {
    fn deserialize<D: Deserializer<'de>>(json: D) -> std::result::Result<Self, D::Error> {
        json.deserialize_any(ModelArgsVisitor)
    }
}

struct ModelArgsVisitor;

impl<'de> Visitor<'de> for ModelArgsVisitor {
    type Value = ModelArgs;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or an object")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<ModelArgs, E> {
        NoNulText::deserialize(text.into_deserializer()).map(|NoNulText(model)| ModelArgs {
            model: Some(model),
            ..ModelArgs::default()
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<ModelArgs, A::Error> {
        let MapOf(mut members) = MapVisitor::<NoNulText>(PhantomData).visit_map(map)?;
        let mut take = |name| members.remove(name).map(|NoNulText(text)| text);
        let args = ModelArgs {
            model: take("model"),
            reasoning_effort: take("reasoning_effort"),
            service_tier: take("service_tier"),
        };
        match members.keys().next() {
            None => Ok(args),
            Some(other) => Err(de::Error::custom(format!(
                "'{other}' is not one of \"model\", \"reasoning_effort\" and \"service_tier\""
            ))),
        }
    }
}
deserialize_with!(
    Bool,
    deserialize_bool,
    "true or false",
    fn visit_bool<E: de::Error>(self, value: bool) -> std::result::Result<Bool, E> {
        Ok(Bool(value))
    }
);
deserialize_with!(
    TimeLimit,
    deserialize_u64,
    "a whole number of seconds, 0 for never",
    fn visit_u64<E: de::Error>(self, seconds: u64) -> std::result::Result<TimeLimit, E> {
        Ok(TimeLimit(
            (seconds > 0).then(|| Duration::from_secs(seconds)),
        ))
    }
);

deserialize_with!(
    WholeSeconds,
    deserialize_u64,
    "a whole number of seconds",
    fn visit_u64<E: de::Error>(self, seconds: u64) -> std::result::Result<WholeSeconds, E> {
        Ok(WholeSeconds(Duration::from_secs(seconds)))
    }
);

deserialize_with!(
    Count,
    deserialize_u64,
    "a whole number",
    fn visit_u64<E: de::Error>(self, number: u64) -> std::result::Result<Count, E> {
        Ok(Count(usize::try_from(number).unwrap_or(usize::MAX)))
    }
);

/// One of these strings; the result is its value.
pub(super) struct OneOf<T: 'static>(pub(super) &'static [(&'static str, T)]);

impl<'de, T: Copy> de::DeserializeSeed<'de> for OneOf<T> {
    type Value = T;
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> std::result::Result<T, D::Error> {
        json.deserialize_str(self)
    }
}

impl<T: Copy> Visitor<'_> for OneOf<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("one of ")?;
        for (at, (word, _)) in self.0.iter().enumerate() {
            write!(f, "{}\"{word}\"", if at == 0 { "" } else { ", " })?;
        }
        Ok(())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<T, E> {
        match self.0.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Ok(*value),
            None => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
        }
    }
}
