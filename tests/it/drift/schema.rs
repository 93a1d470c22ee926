//! The names in the JSON schema that `codex app-server` prints of itself, at every depth. How they are written is said at
//! the head of `known-schema.txt`.

use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The names in a JSON schema. A type that the schema defines is named once, wherever it is used.
pub(super) struct SchemaNames<'a> {
    definitions: &'a Value,
    names: &'a mut BTreeSet<String>,
    /// The types that were read, some of which contain themselves.
    read: BTreeSet<&'a str>,
}

impl<'a> SchemaNames<'a> {
    pub(super) fn new(schema: &'a Value, names: &'a mut BTreeSet<String>) -> SchemaNames<'a> {
        SchemaNames {
            definitions: &schema["definitions"],
            names,
            read: BTreeSet::new(),
        }
    }

    /// The name of the type that a schema refers to.
    fn reference(schema: &'a Value) -> Option<&'a str> {
        schema["$ref"].as_str()?.strip_prefix("#/definitions/")
    }

    /// Adds the messages of a schema that is one of several, but those that are not `wanted`.
    pub(super) fn add_messages(
        &mut self,
        kind: &str,
        schema: &'a Value,
        wanted: impl Fn(&str) -> bool,
    ) {
        for message in array(&schema["oneOf"]) {
            let method = only_value(&message["properties"]["method"]).unwrap_or("?");
            if wanted(method) {
                let params = &message["properties"]["params"];
                let params = Self::reference(params).map_or(params, |it| &self.definitions[it]);
                self.add(&format!("{kind} {method}"), params);
            }
        }
    }

    pub(super) fn add(&mut self, name: &str, schema: &'a Value) {
        self.names.insert(name.to_owned());
        self.add_below(name, schema);
    }

    fn add_below(&mut self, name: &str, schema: &'a Value) {
        if let Some(of) = Self::reference(schema) {
            if self.read.insert(of) {
                self.add(&format!("type {of}"), &self.definitions[of]);
            }
            return;
        }
        for variant in ["oneOf", "anyOf", "allOf"]
            .into_iter()
            .flat_map(|it| array(&schema[it]))
        {
            match only_value(&variant["properties"]["type"]) {
                Some(form) => self.add(&format!("{name}/{form}"), variant),
                None => self.add_below(name, variant),
            }
        }
        let properties = schema["properties"].as_object();
        for (key, value) in properties.into_iter().flatten() {
            if key == "type" && only_value(value).is_some() {
                continue;
            }
            self.add(&format!("{name}.{key}"), value);
        }
        for value in array(&schema["enum"]).iter().filter_map(Value::as_str) {
            self.names.insert(format!("{name}={value}"));
        }
        for (inner, mark) in [("items", "[]"), ("additionalProperties", ".*")] {
            if let Some(inner) = schema.get(inner) {
                self.add_below(&format!("{name}{mark}"), inner);
            }
        }
    }
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The value of a string that can have but one, as the `type` of a variant.
fn only_value(schema: &Value) -> Option<&str> {
    match array(&schema["enum"]) {
        [value] => value.as_str(),
        _ => None,
    }
}

/// Where the schema of a request's response is: `thread/start` has `ThreadStartResponse.json`, in a directory by the
/// version of the protocol.
pub(super) fn response_file(directory: &Path, request: &str) -> PathBuf {
    let words = request.split('/').map(|word| {
        let (first, rest) = word.split_at(1);
        first.to_uppercase() + rest
    });
    let name = words.collect::<String>() + "Response.json";
    ["v2", "v1"]
        .into_iter()
        .map(|version| directory.join(version).join(&name))
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn lists_every_name_in_schema() {
    let schema = json!({
        "oneOf": [{"properties": {"method": {"enum": ["a/b"]}, "params": {"$ref": "#/definitions/Params"}}}],
        "definitions": {
            "Params": {"properties": {
                "inner": {"properties": {"deep": {"type": "string"}, "type": {"type": "string"}}},
                "list": {"items": {"$ref": "#/definitions/Node"}},
                "map": {"additionalProperties": {"properties": {"of": {}}}},
                "open": {"additionalProperties": true},
            }},
            "Node": {"oneOf": [
                {"properties": {"type": {"enum": ["leaf"]}, "size": {"type": "integer"}}},
                {"properties": {"type": {"enum": ["tree"]}, "left": {"anyOf": [{"$ref": "#/definitions/Node"}, {"type": "null"}]}}},
                {"enum": ["none"]},
            ]},
        },
    });
    let mut names = BTreeSet::new();
    SchemaNames::new(&schema, &mut names).add_messages("notification", &schema, |_| true);
    assert_eq!(
        names.into_iter().collect::<Vec<_>>(),
        [
            "notification a/b",
            "notification a/b.inner",
            "notification a/b.inner.deep",
            "notification a/b.inner.type",
            "notification a/b.list",
            "notification a/b.map",
            "notification a/b.map.*.of",
            "notification a/b.open",
            "type Node",
            "type Node/leaf",
            "type Node/leaf.size",
            "type Node/tree",
            "type Node/tree.left",
            "type Node=none",
        ]
    );
}
