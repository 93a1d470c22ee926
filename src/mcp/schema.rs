//! Makes a tool's input schema acceptable to codex and the providers behind it.
//!
//! Providers reject a whole request for one tool whose schema is not that of an object, or has `anyOf`, `oneOf`,
//! `allOf`, `enum` or `not` at the top level. codex (0.135 and 0.169, measured) passes on `anyOf`, `oneOf`, `allOf`,
//! `enum`, `$ref` and a list of types unchanged, silently drops `not` and `if`, and silently leaves a tool out for one
//! keyword of a wrong type at any depth (`"required":true`). So alternatives are merged into the properties, what that
//! loses is put into the description, and malformed keywords are removed.
//!
//! The schema is for the model only: the arguments of a call are neither checked nor changed.

use crate::json::{self, Cursor};
use crate::json::{json_string, replace_lone_surrogates, truncate, why_unreadable};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// A longer schema, in bytes, is passed on unchanged or not at all: its tree would take many times the memory.
const REWRITE_BYTES_MAX: usize = 256 * 1024;
/// How many values a rewrite may copy: references can multiply a schema without limit.
const COPIES_MAX: usize = 50_000;
/// How deep alternatives and references may nest.
const NESTING_MAX: usize = 32;
/// The most bytes of a condition or a schema in a description.
const NOTE_BYTES_MAX: usize = 16 * 1024;

/// Keywords that must not be at the top level: providers reject them, or codex silently drops them.
const COMBINERS: [&str; 10] = [
    "anyOf", "oneOf", "allOf", "enum", "const", "not", "if", "then", "else", "$ref",
];

/// A schema that codex can be given.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InputSchema {
    /// The JSON text of an object.
    pub(super) json: String,
    /// What the rewritten schema has lost, for the tool's description.
    pub(super) note: Option<String>,
    /// What was changed; the tool's name goes before it.
    pub(super) warning: Option<String>,
}

impl InputSchema {
    /// The schema for codex that corresponds to the daemon's.
    pub(super) fn normalize(given: Option<&RawValue>) -> InputSchema {
        let given = given.map_or("{}", RawValue::get);
        let given = replace_lone_surrogates(given);
        normalize(&given).unwrap_or_else(|why| {
            let says_nothing = matches!(&*given, "null" | "true" | "false");
            InputSchema {
                json: "{\"type\":\"object\"}".to_owned(),
                note: (!says_nothing).then(|| note(&given)),
                warning: Some(format!("{why}; any object is accepted")),
            }
        })
    }
}

/// The note for the description.
fn note(schema: &str) -> String {
    let shown = truncate(schema, NOTE_BYTES_MAX);
    let cut = if shown.len() < schema.len() {
        " … (cut)"
    } else {
        ""
    };
    format!("The arguments must match this JSON schema: {shown}{cut}")
}

/// An error tells why the schema cannot be rewritten.
fn normalize(given: &str) -> Result<InputSchema, String> {
    if !given.starts_with('{') {
        return Err("is not an object".to_owned());
    }
    if let Some(why) = why_unreadable(given) {
        return Err(format!("cannot be read by codex ({why})"));
    }
    let unchanged = |json: String| InputSchema {
        json,
        note: None,
        warning: None,
    };
    if given.len() > REWRITE_BYTES_MAX {
        let (kind, has_combiner) = inspect_top(given).map_err(|_| "cannot be read".to_owned())?;
        if kind.is_none_or(|kind| kind == "\"object\"") && !has_combiner {
            return Ok(unchanged(with_type(given, kind.is_some())));
        }
        return Err(format!(
            "is not a plain object schema and has more than {REWRITE_BYTES_MAX} bytes"
        ));
    }
    #[derive(Deserialize)]
    struct Top<'a> {
        #[serde(borrow, default)]
        #[expect(dead_code, reason = "only whether it stands once is of interest")]
        r#type: Option<&'a RawValue>,
    }
    if serde_json::from_str::<Top<'_>>(given).is_err() {
        return Err("has a duplicate type".to_owned());
    }
    let mut schema: Value =
        serde_json::from_str(given).map_err(|error| format!("cannot be read ({error})"))?;
    let mut ignored = Vec::new();
    repair(&mut schema, "", &mut ignored);
    let top = schema.as_object().expect("it starts with a brace");
    if !allows_object(top.get("type")) {
        return Err("is not the schema of an object".to_owned());
    }
    let found: Vec<&str> = COMBINERS
        .into_iter()
        .filter(|keyword| top.contains_key(*keyword))
        .collect();
    let listed = top.get("type").is_some_and(Value::is_array);
    let mut warnings = Vec::new();
    let mut note_text = None;
    let mut rewritten = if found.is_empty() && !listed {
        None
    } else {
        let mut merger = Merger::new(&schema);
        let shape = match merger.shape(&schema, 0) {
            Ok(Some(shape)) => shape,
            Ok(None) => return Err("is not the schema of an object".to_owned()),
            Err(TooComplex) => return Err("has too many alternatives to be merged".to_owned()),
        };
        let changed = if found.is_empty() {
            "allows types besides object, which providers reject; they are removed".to_owned()
        } else {
            format!(
                "has {} at the top level, which providers reject; it is merged into the properties",
                found
                    .iter()
                    .map(|keyword| format!("'{keyword}'"))
                    .collect::<Vec<_>>()
                    .join(", ")
            )
        };
        if merger.inexact {
            note_text = Some(note(&condition(top, &found)));
            warnings.push(format!(
                "{changed}, and the condition is added to the description"
            ));
        } else {
            warnings.push(changed);
        }
        Some(assemble(top, shape))
    };
    let output = rewritten.as_mut().unwrap_or(&mut schema);
    remove_broken_references(output, &mut ignored);
    if !ignored.is_empty() {
        warnings.push(ignored_warning(&ignored));
    }
    if warnings.is_empty() {
        // Byte for byte as the daemon wrote it.
        return Ok(unchanged(with_type(given, schema.get("type").is_some())));
    }
    if rewritten.is_none() {
        schema["type"] = json!("object");
        rewritten = Some(schema);
    }
    Ok(InputSchema {
        json: rewritten.unwrap_or_default().to_string(),
        note: note_text,
        warning: Some(warnings.join("; and it ")),
    })
}

/// The raw `type` of a schema, and whether it has one of [`COMBINERS`]. The members are not collected: there can be as
/// many as fit into a line.
fn inspect_top(schema: &str) -> Result<(Option<&str>, bool), json::NotJson> {
    let mut cursor = Cursor::new(schema);
    cursor.open(json::JsonKind::Object)?;
    let (mut kind, mut has_combiner) = (None, false);
    while let Some(key) = cursor.key()? {
        let (key, value) = (&schema[key], &schema[cursor.value()?]);
        if json::str_eq(key, "type") {
            kind = Some(value);
        }
        has_combiner |= COMBINERS.iter().any(|keyword| json::str_eq(key, keyword));
    }
    Ok((kind, has_combiner))
}

/// The schema's own text, with a `type` added if it has none.
fn with_type(given: &str, has_type: bool) -> String {
    if has_type {
        return given.to_owned();
    }
    let rest = given[1..].trim_start();
    let comma = if rest.starts_with('}') { "" } else { "," };
    format!("{{\"type\":\"object\"{comma}{rest}")
}

/// The keywords removed from the top level, and the definitions that they refer to.
fn condition(top: &Map<String, Value>, found: &[&str]) -> String {
    let mut removed: Map<String, Value> = found
        .iter()
        .filter_map(|keyword| Some(((*keyword).to_owned(), top.get(*keyword)?.clone())))
        .collect();
    if Value::Object(removed.clone())
        .to_string()
        .contains("\"$ref\"")
    {
        for keyword in ["$defs", "definitions"] {
            if let Some(definitions) = top.get(keyword) {
                removed.insert(keyword.to_owned(), definitions.clone());
            }
        }
    }
    Value::Object(removed).to_string()
}

/// The top level with the merged properties.
fn assemble(top: &Map<String, Value>, shape: Shape) -> Value {
    let mut result = top.clone();
    for keyword in COMBINERS {
        result.remove(keyword);
    }
    result.insert("type".to_owned(), json!("object"));
    result.insert("properties".to_owned(), Value::Object(shape.properties));
    if shape.required.is_empty() {
        result.remove("required");
    } else {
        result.insert("required".to_owned(), json!(shape.required));
    }
    match shape.additional {
        Some(additional) => result.insert("additionalProperties".to_owned(), additional),
        None => result.remove("additionalProperties"),
    };
    Value::Object(result)
}

/// The warning about removed keywords. The first few paths are enough to find the others.
fn ignored_warning(ignored: &[String]) -> String {
    const SHOWN_MAX: usize = 3;
    let shown = ignored[..ignored.len().min(SHOWN_MAX)].join(", ");
    let more = match ignored.len().saturating_sub(SHOWN_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("is malformed, and codex would leave the tool out: {shown}{more} ignored")
}

/// Removes every keyword of a wrong type where codex reads schemas, and adds its path to `ignored`.
fn repair(schema: &mut Value, path: &str, ignored: &mut Vec<String>) {
    if schema.is_boolean() {
        return;
    }
    let Value::Object(object) = schema else {
        ignored.push(quote_path(path));
        *schema = json!({});
        return;
    };
    let names = |value: &Value| {
        value
            .as_array()
            .is_some_and(|list| list.iter().all(Value::is_string))
    };
    object.retain(|keyword, value| {
        let right = match keyword.as_str() {
            "properties" | "$defs" | "definitions" => value.is_object(),
            "items" | "additionalProperties" => value.is_object() || value.is_boolean(),
            "anyOf" | "oneOf" | "allOf" => value.as_array().is_some_and(|list| !list.is_empty()),
            "enum" => value.is_array(),
            "required" => names(value),
            "type" => value.is_string() || names(value),
            "description" | "$ref" => value.is_string(),
            _ => true,
        };
        if !right {
            ignored.push(quote_path(&format!("{path}/{keyword}")));
        }
        right
    });
    for (keyword, value) in object.iter_mut() {
        let path = format!("{path}/{keyword}");
        match (keyword.as_str(), value) {
            ("properties" | "$defs" | "definitions", Value::Object(schemas)) => {
                for (name, schema) in schemas {
                    repair(schema, &format!("{path}/{name}"), ignored);
                }
            }
            ("anyOf" | "oneOf" | "allOf", Value::Array(schemas)) => {
                for (at, schema) in schemas.iter_mut().enumerate() {
                    repair(schema, &format!("{path}/{at}"), ignored);
                }
            }
            ("items" | "additionalProperties", schema) => repair(schema, &path, ignored),
            _ => {}
        }
    }
}

fn quote_path(path: &str) -> String {
    format!("'#{}'", truncate(path, 128))
}

/// Removes references without a target: a provider rejects the request for one.
fn remove_broken_references(schema: &mut Value, ignored: &mut Vec<String>) {
    fn collect(schema: &Value, root: &Value, broken: &mut BTreeSet<String>) {
        match schema {
            Value::Object(object) => {
                if let Some(Value::String(reference)) = object.get("$ref")
                    && resolve(root, reference).is_none()
                {
                    broken.insert(reference.clone());
                }
                object
                    .values()
                    .for_each(|value| collect(value, root, broken));
            }
            Value::Array(list) => list.iter().for_each(|value| collect(value, root, broken)),
            _ => {}
        }
    }
    fn remove(schema: &mut Value, broken: &BTreeSet<String>) {
        match schema {
            Value::Object(object) => {
                if matches!(object.get("$ref"), Some(Value::String(reference)) if broken.contains(reference))
                {
                    object.remove("$ref");
                }
                object.values_mut().for_each(|value| remove(value, broken));
            }
            Value::Array(list) => list.iter_mut().for_each(|value| remove(value, broken)),
            _ => {}
        }
    }
    let mut broken = BTreeSet::new();
    collect(schema, schema, &mut broken);
    if !broken.is_empty() {
        remove(schema, &broken);
        ignored.extend(
            broken
                .iter()
                .map(|reference| format!("the reference '{}'", truncate(reference, 128))),
        );
    }
}

/// The target of a reference within the schema.
fn resolve<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    let pointer = reference.strip_prefix('#')?;
    root.pointer(pointer)
        .or_else(|| root.pointer(&percent_decoded(pointer)?))
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first == b'%' {
            let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &rest[2..];
        } else {
            bytes.push(first);
        }
    }
    String::from_utf8(bytes).ok()
}

fn allows_object(kind: Option<&Value>) -> bool {
    match kind {
        Some(Value::String(kind)) => kind == "object",
        Some(Value::Array(kinds)) => kinds.iter().any(|kind| kind == "object"),
        _ => true,
    }
}

/// There are too many alternatives and references to follow.
#[derive(Debug)]
struct TooComplex;

/// The objects that a schema allows, as far as properties can express it.
#[derive(Clone, Debug, Default)]
struct Shape {
    properties: Map<String, Value>,
    required: BTreeSet<String>,
    /// `additionalProperties`.
    additional: Option<Value>,
}

/// Merges the alternatives of a schema.
struct Merger<'a> {
    root: &'a Value,
    /// How many more values may be copied.
    left: usize,
    /// The references being followed, to detect cycles.
    following: Vec<&'a str>,
    /// The properties allow more than the schema does.
    inexact: bool,
}

impl<'a> Merger<'a> {
    fn new(root: &'a Value) -> Merger<'a> {
        Merger {
            root,
            left: COPIES_MAX,
            following: Vec::new(),
            inexact: false,
        }
    }

    /// Counts copied values.
    fn spend(&mut self, values: usize) -> Result<(), TooComplex> {
        self.left = self.left.checked_sub(values).ok_or(TooComplex)?;
        Ok(())
    }

    /// The objects that a schema allows; `None` where it allows none.
    fn shape(&mut self, schema: &'a Value, depth: usize) -> Result<Option<Shape>, TooComplex> {
        self.spend(1)?;
        if depth > NESTING_MAX {
            return Err(TooComplex);
        }
        let object = match schema {
            Value::Object(object) => object,
            Value::Bool(false) => return Ok(None),
            _ => return Ok(Some(Shape::default())),
        };
        if !allows_object(object.get("type")) {
            return Ok(None);
        }
        let list = |keyword: &str| object.get(keyword).and_then(Value::as_array);
        let mut shape = Shape::default();
        if let Some(properties) = object.get("properties").and_then(Value::as_object) {
            self.spend(properties.values().map(count).sum())?;
            shape.properties.clone_from(properties);
        }
        if let Some(required) = list("required") {
            self.spend(required.len())?;
            let names = required.iter().filter_map(Value::as_str);
            shape.required = names.map(str::to_owned).collect();
        }
        if let Some(additional) = object.get("additionalProperties") {
            self.spend(count(additional))?;
            shape.additional = Some(additional.clone());
        }
        const LOST: [&str; 7] = [
            "not",
            "minProperties",
            "maxProperties",
            "patternProperties",
            "propertyNames",
            "dependentRequired",
            "dependentSchemas",
        ];
        // At the top level all of these are kept but `not`.
        self.inexact |= LOST
            .iter()
            .any(|keyword| object.contains_key(*keyword) && (depth > 0 || *keyword == "not"));
        let constant = object.get("const").map(std::slice::from_ref);
        if let Some(values) = list("enum").map(Vec::as_slice).or(constant) {
            let Some(values) = self.values(values)? else {
                return Ok(None);
            };
            shape = self.intersect(shape, values)?;
        }
        if let Some(reference) = object.get("$ref").and_then(Value::as_str) {
            match resolve(self.root, reference) {
                // A cycle adds nothing to itself.
                Some(_) if self.following.contains(&reference) || reference == "#" => {}
                Some(target) => {
                    self.following.push(reference);
                    let found = self.shape(target, depth + 1)?;
                    self.following.pop();
                    let Some(found) = found else { return Ok(None) };
                    shape = self.intersect(shape, found)?;
                }
                None => self.inexact = true,
            }
        }
        for part in list("allOf").into_iter().flatten() {
            let Some(part) = self.shape(part, depth + 1)? else {
                return Ok(None);
            };
            shape = self.intersect(shape, part)?;
        }
        for keyword in ["anyOf", "oneOf"] {
            if let Some(alternatives) = list(keyword) {
                let mut possible = Vec::new();
                for alternative in alternatives {
                    possible.extend(self.shape(alternative, depth + 1)?);
                }
                let Some(possible) = self.union(possible)? else {
                    return Ok(None);
                };
                shape = self.intersect(shape, possible)?;
            }
        }
        if let Some(when) = object.get("if") {
            let mut possible = Vec::new();
            if let Some(when) = self.shape(when, depth + 1)? {
                possible.extend(match object.get("then") {
                    Some(then) => match self.shape(then, depth + 1)? {
                        Some(then) => Some(self.intersect(when, then)?),
                        None => None,
                    },
                    None => Some(when),
                });
            }
            possible.extend(match object.get("else") {
                Some(otherwise) => self.shape(otherwise, depth + 1)?,
                None => Some(Shape::default()),
            });
            self.inexact = true;
            let Some(possible) = self.union(possible)? else {
                return Ok(None);
            };
            shape = self.intersect(shape, possible)?;
        }
        Ok(Some(shape))
    }

    /// The objects among these values.
    fn values(&mut self, values: &[Value]) -> Result<Option<Shape>, TooComplex> {
        let mut shapes = Vec::new();
        for value in values {
            if let Value::Object(object) = value {
                self.spend(1 + count(value))?;
                shapes.push(Shape {
                    properties: object
                        .iter()
                        .map(|(name, value)| (name.clone(), json!({ "enum": [value] })))
                        .collect(),
                    required: object.keys().cloned().collect(),
                    additional: Some(Value::Bool(false)),
                });
            }
        }
        self.union(shapes)
    }

    /// The objects that both allow.
    fn intersect(&mut self, mut one: Shape, other: Shape) -> Result<Shape, TooComplex> {
        for (name, schema) in other.properties {
            let merged = match one.properties.remove(&name) {
                Some(first) => {
                    self.spend(1)?;
                    intersect_schemas(first, schema)
                }
                None => schema,
            };
            one.properties.insert(name, merged);
        }
        one.required.extend(other.required);
        one.additional = match (one.additional, other.additional) {
            (Some(one), Some(other)) => Some(intersect_schemas(one, other)),
            (one, other) => one.or(other),
        };
        Ok(one)
    }

    /// The objects that any of these allows; `None` where the list is empty.
    fn union(&mut self, shapes: Vec<Shape>) -> Result<Option<Shape>, TooComplex> {
        let mut shapes = shapes.into_iter();
        let Some(first) = shapes.next() else {
            return Ok(None);
        };
        if shapes.len() == 0 {
            return Ok(Some(first));
        }
        self.inexact = true;
        let mut required = first.required;
        let mut additional = first.additional;
        let mut properties: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        let mut add = |from: Map<String, Value>| {
            for (name, schema) in from {
                properties.entry(name).or_default().push(schema);
            }
        };
        add(first.properties);
        for shape in shapes {
            required.retain(|name| shape.required.contains(name));
            if additional != shape.additional {
                additional = None;
            }
            add(shape.properties);
        }
        self.spend(properties.len())?;
        Ok(Some(Shape {
            properties: properties
                .into_iter()
                .map(|(name, schemas)| (name, union_schema(schemas)))
                .collect(),
            required,
            additional,
        }))
    }
}

/// The number of values in a value.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(object) => object.values().map(count).sum(),
        _ => 0,
    }
}

fn allows_all(schema: &Value) -> bool {
    match schema {
        Value::Bool(all) => *all,
        Value::Object(object) => object.is_empty(),
        _ => false,
    }
}

/// The schema of what both allow. codex 0.135 replaces an `allOf` in a property by `{}`, so it is the last resort.
fn intersect_schemas(one: Value, other: Value) -> Value {
    if one == other || allows_all(&other) || one == false {
        return one;
    }
    if allows_all(&one) || other == false {
        return other;
    }
    let (Value::Object(mut first), Value::Object(second)) = (one.clone(), other.clone()) else {
        return json!({"allOf": [one, other]});
    };
    for (keyword, value) in second {
        let Some(known) = first.get(&keyword) else {
            first.insert(keyword, value);
            continue;
        };
        let merged = match keyword.as_str() {
            _ if *known == value => continue,
            "title" | "description" | "default" | "examples" | "$comment" => continue,
            "type" => intersect_types(known, &value),
            "enum" => intersect_lists(known, &value),
            "required" => union_names(known, &value),
            _ => None,
        };
        match merged {
            Some(merged) => first.insert(keyword, merged),
            None => return json!({"allOf": [one, other]}),
        };
    }
    Value::Object(first)
}

fn intersect_types(one: &Value, other: &Value) -> Option<Value> {
    let list = |kinds: &Value| match kinds {
        Value::Array(kinds) => kinds.clone(),
        kind => vec![kind.clone()],
    };
    let (one, other) = (list(one), list(other));
    let mut common: Vec<Value> = Vec::new();
    for kind in &one {
        let narrower = other
            .iter()
            .find(|other| *other == kind || (kind == "number" && *other == "integer"))
            .or_else(|| (kind == "integer" && other.contains(&json!("number"))).then_some(kind));
        common.extend(narrower.cloned());
    }
    match common.len() {
        0 => None,
        1 => common.pop(),
        _ => Some(Value::Array(common)),
    }
}

fn intersect_lists(one: &Value, other: &Value) -> Option<Value> {
    let other = other.as_array()?;
    let common: Vec<Value> = one
        .as_array()?
        .iter()
        .filter(|value| other.contains(value))
        .cloned()
        .collect();
    (!common.is_empty()).then_some(Value::Array(common))
}

fn union_names(one: &Value, other: &Value) -> Option<Value> {
    let mut names = one.as_array()?.clone();
    for name in other.as_array()? {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    Some(Value::Array(names))
}

/// The schema of what any of these allows.
fn union_schema(schemas: Vec<Value>) -> Value {
    let mut different: Vec<Value> = Vec::new();
    for schema in schemas {
        let parts = match schema {
            Value::Object(mut object)
                if object.len() == 1 && object.get("anyOf").is_some_and(Value::is_array) =>
            {
                match object.remove("anyOf") {
                    Some(Value::Array(parts)) => parts,
                    _ => Vec::new(),
                }
            }
            schema => vec![schema],
        };
        for part in parts {
            if allows_all(&part) {
                return json!({});
            }
            if !different.contains(&part) {
                different.push(part);
            }
        }
    }
    if different.len() == 1 {
        return different.remove(0);
    }
    match merge_value_lists(&different) {
        Some(schema) => schema,
        None => json!({ "anyOf": different }),
    }
}

/// One list of values for schemas that have nothing but such lists.
fn merge_value_lists(schemas: &[Value]) -> Option<Value> {
    let mut values: Vec<Value> = Vec::new();
    let mut kinds: Vec<&Value> = Vec::new();
    for schema in schemas {
        let object = schema.as_object()?;
        if object
            .keys()
            .any(|keyword| !matches!(keyword.as_str(), "enum" | "const" | "type"))
        {
            return None;
        }
        match (object.get("enum"), object.get("const")) {
            (Some(Value::Array(list)), None) => {
                values.extend(list.iter().cloned());
            }
            (None, Some(value)) => values.push(value.clone()),
            _ => return None,
        }
        kinds.extend(object.get("type"));
    }
    let mut different: Vec<Value> = Vec::with_capacity(values.len());
    let mut seen = BTreeSet::new();
    for value in values {
        if seen.insert(value.to_string()) {
            different.push(value);
        }
    }
    let mut result = json!({ "enum": different });
    if kinds.len() == schemas.len() && kinds.iter().all(|kind| *kind == kinds[0]) {
        result["type"] = kinds[0].clone();
    }
    Some(result)
}

/// The description with the note, as JSON.
pub(super) fn description(given: Option<&str>, note: Option<&str>) -> Option<String> {
    let text = match (given, note) {
        (Some(given), Some(note)) if !given.trim().is_empty() => {
            Cow::Owned(format!("{}\n\n{note}", given.trim_end()))
        }
        (_, Some(note)) => Cow::Borrowed(note),
        (given, None) => Cow::Borrowed(given?),
    };
    Some(json_string(&text))
}

#[cfg(test)]
mod tests;
