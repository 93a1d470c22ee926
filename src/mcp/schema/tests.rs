use super::*;

fn normalized(schema: &str) -> InputSchema {
    let raw = RawValue::from_string(schema.to_owned()).unwrap();
    InputSchema::normalize(Some(&raw))
}

/// The rewritten schema, whether the description has a note, and a part of the warning.
#[track_caller]
fn check(given: &Value, expected: &Value, noted: bool, warning: &str) {
    let result = normalized(&given.to_string());
    let json: Value = serde_json::from_str(&result.json).unwrap();
    assert_eq!(json, *expected, "{given}");
    assert_eq!(result.note.is_some(), noted, "{given}: {:?}", result.note);
    let shown_warning = result.warning.unwrap_or_default();
    assert!(
        shown_warning.contains(warning) && shown_warning.is_empty() == warning.is_empty(),
        "{given}: {shown_warning}"
    );
    for keyword in COMBINERS {
        assert_eq!(json.get(keyword), None, "{given}");
    }
    // A rewritten schema needs no further change.
    let again = normalized(&result.json);
    assert_eq!((again.json, again.warning), (result.json, None), "{given}");
}

// fault: 93
#[test]
fn merges_alternatives_into_properties() {
    let string = json!({"type": "string"});
    let both = json!({"id": string, "name": string});
    let person = json!({"type": "object", "properties": both, "required": ["id"]});
    for (given, expected, noted, warning) in [
        (
            json!({"type": "object", "properties": both, "anyOf": [{"required": ["id"]}, {"required": ["name"]}]}),
            json!({"type": "object", "properties": both}),
            true,
            "has 'anyOf' at the top level, which providers reject; it is merged into the properties, and the condition is added to the description",
        ),
        // No type, alternatives only; what all of them require is required.
        (
            json!({"oneOf": [
                {"type": "object", "properties": {"kind": {"const": "a"}, "id": string}, "required": ["kind", "id"], "additionalProperties": false},
                {"type": "object", "properties": {"kind": {"const": "b"}, "name": string}, "required": ["kind"], "additionalProperties": false},
                {"type": "null"}]}),
            json!({"type": "object", "properties": {"id": string, "name": string, "kind": {"enum": ["a", "b"]}},
                "required": ["kind"], "additionalProperties": false}),
            true,
            "has 'oneOf' at the top",
        ),
        // Two schemas of one property.
        (
            json!({"anyOf": [{"properties": {"id": string}}, {"properties": {"id": {"type": "integer"}}}]}),
            json!({"type": "object", "properties": {"id": {"anyOf": [string, {"type": "integer"}]}}}),
            true,
            "has 'anyOf' at the top",
        ),
        // All of it is required, and expressed exactly.
        (
            json!({"$defs": {"Person": person}, "allOf": [{"$ref": "#/$defs/Person"},
                {"properties": {"age": {"type": "integer"}}, "required": ["age"]}]}),
            json!({"type": "object", "$defs": {"Person": person},
                "properties": {"id": string, "name": string, "age": {"type": "integer"}}, "required": ["age", "id"]}),
            false,
            "has 'allOf' at the top level, which providers reject; it is merged into the properties",
        ),
        (
            json!({"definitions": {"a/b": {"$ref": "#/definitions/Person"}, "Person": person}, "$ref": "#/definitions/a~1b"}),
            json!({"type": "object", "definitions": {"a/b": {"$ref": "#/definitions/Person"}, "Person": person},
                "properties": both, "required": ["id"]}),
            false,
            "has '$ref' at the top",
        ),
        (
            json!({"type": "object", "properties": {"x": {"type": "number"}}, "allOf": [
                {"anyOf": [{"properties": {"y": string}, "required": ["y"]}, {"properties": {"z": string}, "required": ["z"]}]},
                {"properties": {"x": {"type": "integer", "minimum": 1}}, "required": ["x"]}]}),
            json!({"type": "object", "properties": {"x": {"type": "integer", "minimum": 1}, "y": string, "z": string}, "required": ["x"]}),
            true,
            "has 'allOf' at the top",
        ),
        // Two conditions on one property that cannot be merged.
        (
            json!({"properties": {"a": {"minLength": 1}}, "allOf": [{"properties": {"a": {"minLength": 2}}}]}),
            json!({"type": "object", "properties": {"a": {"allOf": [{"minLength": 1}, {"minLength": 2}]}}}),
            false,
            "has 'allOf' at the top",
        ),
        (
            json!({"type": "object", "enum": [{"a": 1}, {"a": 2, "b": "x"}, "none"]}),
            json!({"type": "object", "properties": {"a": {"enum": [1, 2]}, "b": {"enum": ["x"]}}, "required": ["a"],
                "additionalProperties": false}),
            true,
            "has 'enum' at the top",
        ),
        (
            json!({"const": {"a": null}}),
            json!({"type": "object", "properties": {"a": {"enum": [null]}}, "required": ["a"], "additionalProperties": false}),
            false,
            "has 'const' at the top",
        ),
        (
            json!({"oneOf": [{"const": {"do": "on"}}, {"const": {"do": "off"}}]}),
            json!({"type": "object", "properties": {"do": {"enum": ["on", "off"]}}, "required": ["do"], "additionalProperties": false}),
            true,
            "has 'oneOf' at the top",
        ),
        (
            json!({"type": "object", "properties": both, "not": {"required": ["id", "name"]}}),
            json!({"type": "object", "properties": both}),
            true,
            "has 'not' at the top",
        ),
        (
            json!({"type": "object", "properties": both, "required": ["id"], "if": {"properties": {"id": {"const": "x"}}},
                "then": {"required": ["name"]}, "else": {"properties": {"age": {"type": "integer"}}}}),
            json!({"type": "object", "properties": {"id": {"type": "string", "const": "x"}, "name": string, "age": {"type": "integer"}},
                "required": ["id"]}),
            true,
            "has 'if', 'then', 'else' at the top",
        ),
        (
            json!({"type": ["object", "null"], "properties": both}),
            json!({"type": "object", "properties": both}),
            false,
            "allows types besides object",
        ),
        // A condition in an alternative that properties cannot express.
        (
            json!({"allOf": [{"properties": both, "minProperties": 1}]}),
            json!({"type": "object", "properties": both}),
            true,
            "has 'allOf' at the top",
        ),
        // A cycle of references.
        (
            json!({"$defs": {"A": {"allOf": [{"$ref": "#/$defs/B"}]}, "B": {"$ref": "#/$defs/A", "properties": both}}, "$ref": "#/$defs/A"}),
            json!({"type": "object", "$defs": {"A": {"allOf": [{"$ref": "#/$defs/B"}]}, "B": {"$ref": "#/$defs/A", "properties": both}},
                "properties": both}),
            false,
            "has '$ref' at the top",
        ),
        // Definitions that were only referred to by the alternatives are unused then.
        (
            json!({"anyOf": [{"properties": {"a": string, "b": {"$ref": "#/anyOf/0/properties/a"}}}]}),
            json!({"type": "object", "properties": {"a": string, "b": {}}}),
            false,
            "the reference '#/anyOf/0/properties/a' ignored",
        ),
    ] {
        check(&given, &expected, noted, warning);
    }
    let given =
        r##"{"anyOf":[{"$ref":"#/$defs/A"},{}],"$defs":{"A":{"required":["a"]}},"title":"t"}"##;
    assert_eq!(
        normalized(given).note.unwrap(),
        r##"The arguments must match this JSON schema: {"$defs":{"A":{"required":["a"]}},"anyOf":[{"$ref":"#/$defs/A"},{}]}"##
    );
}

// fault: 93
#[test]
fn passes_other_schemas_byte_for_byte() {
    for (given, expected) in [
        (
            r#"{ "type":"object" , "properties":{"b":{"anyOf":[{"type":"string"},{}]},"a":true}}"#,
            None,
        ),
        (
            r#"{"type":"object","minProperties":1,"patternProperties":{"^x":{}},"x":[1e3]}"#,
            None,
        ),
        (
            r#"{"properties":{"type":{"type":"string"},"required":{"type":"boolean"}}}"#,
            Some(
                r#"{"type":"object","properties":{"type":{"type":"string"},"required":{"type":"boolean"}}}"#,
            ),
        ),
        (
            r##"{"type":"object","properties":{"next":{"$ref":"#"},"d":{"$ref":"#/$defs/a%20b"}},"$defs":{"a b":{}}}"##,
            None,
        ),
        ("{}", Some(r#"{"type":"object"}"#)),
    ] {
        let result = normalized(given);
        assert_eq!(result.json, expected.unwrap_or(given));
        assert_eq!((result.note, result.warning), (None, None), "{given}");
    }
    let none = InputSchema::normalize(None);
    assert_eq!(
        (none.json.as_str(), none.warning),
        (r#"{"type":"object"}"#, None)
    );
}

// fault: 93
#[test]
fn removes_malformed_keywords_that_codex_drops_a_tool_for() {
    let string = json!({"type": "string"});
    let object = |properties: Value| json!({"type": "object", "properties": properties});
    for (given, expected, warning) in [
        (
            json!({"type": "object", "properties": [1]}),
            json!({"type": "object"}),
            "'#/properties' ignored",
        ),
        (
            json!({"properties": {"id": string}, "required": "id"}),
            object(json!({"id": string})),
            "'#/required' ignored",
        ),
        (
            object(json!({"id": {"type": "string", "required": true}})),
            object(json!({"id": string})),
            "'#/properties/id/required' ignored",
        ),
        (
            object(json!({"id": 5})),
            object(json!({"id": {}})),
            "'#/properties/id' ignored",
        ),
        (
            object(json!({"id": {"type": 5}})),
            object(json!({"id": {}})),
            "'#/properties/id/type' ignored",
        ),
        (
            object(json!({"id": {"items": [string]}})),
            object(json!({"id": {}})),
            "'#/properties/id/items' ignored",
        ),
        (
            object(json!({"id": {"enum": "x"}})),
            object(json!({"id": {}})),
            "'#/properties/id/enum' ignored",
        ),
        (
            object(json!({"id": {"description": ["x"]}})),
            object(json!({"id": {}})),
            "'#/properties/id/description' ignored",
        ),
        (
            object(json!({"id": {"anyOf": [string, 7]}})),
            object(json!({"id": {"anyOf": [string, {}]}})),
            "'#/properties/id/anyOf/1' ignored",
        ),
        (
            json!({"type": "object", "additionalProperties": "no"}),
            json!({"type": "object"}),
            "'#/additionalProperties' ignored",
        ),
        (
            object(json!({"id": {"$ref": "#/$defs/Nope"}})),
            object(json!({"id": {}})),
            "the reference '#/$defs/Nope' ignored",
        ),
        (
            object(json!({"a": 1, "b": 2, "c": 3, "d": 4, "e": 5})),
            object(json!({"a": {}, "b": {}, "c": {}, "d": {}, "e": {}})),
            "is malformed, and codex would leave the tool out: '#/properties/a', '#/properties/b', '#/properties/c' and 2 more ignored",
        ),
    ] {
        check(&given, &expected, false, warning);
    }
}

// fault: 93
/// A schema that cannot be rewritten becomes one for any object, with a note in the description.
#[test]
fn takes_any_object_where_a_schema_cannot_be_rewritten() {
    let doubling: Map<String, Value> = (0..40)
        .map(|at| {
            let next = json!({"$ref": format!("#/$defs/d{}", at + 1)});
            (format!("d{at}"), json!({"allOf": [next, next, next]}))
        })
        .chain([("d40".to_owned(), json!({"properties": {"a": {}}}))])
        .collect();
    let nested = |depth: usize| {
        format!(
            "{}{{}}{}",
            r#"{"anyOf":["#.repeat(depth),
            "]}".repeat(depth)
        )
    };
    let large = format!(
        r#"{{"anyOf":[{{}}],"x":"{}"}}"#,
        "x".repeat(REWRITE_BYTES_MAX)
    );
    for (given, why) in [
        (
            r#"{"type":"array","items":{}}"#.to_owned(),
            "is not the schema of an object",
        ),
        (
            r#"{"type":["string","null"]}"#.to_owned(),
            "is not the schema of an object",
        ),
        (
            r#"{"enum":["a",1]}"#.to_owned(),
            "is not the schema of an object",
        ),
        (
            r#"{"anyOf":[{"type":"string"},false]}"#.to_owned(),
            "is not the schema of an object",
        ),
        (
            r#"{"type":"object","type":"object"}"#.to_owned(),
            "has a duplicate type",
        ),
        (r#"["x"]"#.to_owned(), "is not an object"),
        (
            r#"{"properties":{"a":{"maximum":1e999}}}"#.to_owned(),
            "cannot be read by codex (number out of range",
        ),
        (
            json!({"$defs": doubling, "$ref": "#/$defs/d0"}).to_string(),
            "has too many alternatives to be merged",
        ),
        (nested(40), "has too many alternatives to be merged"),
        (
            nested(60),
            "cannot be read by codex (it nests deeper than 100 levels",
        ),
        (
            nested(100_000),
            "cannot be read by codex (it nests deeper than 100 levels",
        ),
        (
            large,
            "is not a plain object schema and has more than 262144 bytes",
        ),
    ] {
        let result = normalized(&given);
        assert_eq!(
            result.json,
            r#"{"type":"object"}"#,
            "{}",
            truncate(&given, 60)
        );
        let warning = result.warning.unwrap();
        assert!(
            warning.starts_with(why) && warning.ends_with("; any object is accepted"),
            "{warning}"
        );
        let note = result.note.unwrap();
        assert!(
            note.starts_with(&format!(
                "The arguments must match this JSON schema: {}",
                truncate(&given, 100)
            )),
            "{note}"
        );
        assert!(note.len() < NOTE_BYTES_MAX + 100);
        assert_eq!(note.ends_with(" … (cut)"), given.len() > NOTE_BYTES_MAX);
    }
    for given in ["true", "false", "null"] {
        let result = normalized(given);
        assert_eq!(
            (result.json.as_str(), result.note),
            (r#"{"type":"object"}"#, None)
        );
        assert_eq!(
            result.warning.unwrap(),
            "is not an object; any object is accepted"
        );
    }
    // A large schema that needs no rewrite is passed on unchanged.
    let plain = format!(
        r#"{{"properties":{{}},"x":"{}"}}"#,
        "x".repeat(REWRITE_BYTES_MAX)
    );
    assert_eq!(
        normalized(&plain).json,
        format!(r#"{{"type":"object",{}"#, &plain[1..])
    );
}

#[test]
fn adds_the_condition_behind_the_description() {
    assert_eq!(
        description(Some("does x.\n"), Some("More.")).unwrap(),
        r#""does x.\n\nMore.""#
    );
    assert_eq!(description(Some(" "), Some("More.")).unwrap(), r#""More.""#);
    assert_eq!(description(None, Some("More.")).unwrap(), r#""More.""#);
    assert_eq!(
        description(Some("does x\n"), None).unwrap(),
        r#""does x\n""#
    );
    assert_eq!(description(None, None), None);
}
