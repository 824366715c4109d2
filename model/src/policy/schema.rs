//! The JSON Schema of a policy file, for editors. What it cannot say (selectors) is checked when a file is parsed.

use serde_json::{Value, json};

use crate::limits::REPLICAS_MAX;

/// The fields of a rule, `match` first.
pub(crate) const PLACEMENT_FIELDS: &[&str] =
    &["match", "confine", "route", "push", "replicate", "keep", "pin", "expire", "encrypt", "hold"];

/// The schema of a policy file.
pub fn policy_schema() -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Atoll policy",
        "type": "object",
        "properties": {
            "attributes": {
                "type": ["object", "null"],
                "description": "What selectors may ask of a site: its labels, with their types.",
                "additionalProperties": { "$ref": "#/$defs/attribute" },
            },
            "placement": { "type": ["array", "null"], "items": { "$ref": "#/$defs/rule" } },
        },
        "required": ["placement"],
        "additionalProperties": false,
        "$defs": {
            "attribute": record(
                json!({
                    "type": { "enum": ["enum", "integer", "bytes", "version", "boolean"] },
                    "values": { "type": "array", "minItems": 1, "items": { "type": ["string", "number", "boolean"] } },
                    "description": { "type": "string" },
                }),
                &["type"],
            ),
            "selector": {
                "description": "`region == 'eu' && tier <= 2`, the name of a site, or a list of names.",
                "anyOf": [
                    { "type": "string", "minLength": 1 },
                    { "type": "array", "minItems": 1, "items": { "type": "string" } },
                    record(json!({ "labels": { "type": "object", "minProperties": 1 } }), &["labels"]),
                ],
            },
            "rule": rule(),
        },
    })
}

fn rule() -> Value {
    let text = json!({ "type": "string" });
    let selector = json!({ "$ref": "#/$defs/selector" });
    let mut rule = record(
        json!({
            "match": record(
                json!({
                    "workflow": text, "step": text, "output": text, "input": text,
                    "labels": { "type": "object", "additionalProperties": { "type": ["string", "number", "boolean"] } },
                    "bytes": { "type": "string", "description": "`>= 1GiB`, `< 4MiB` or `1MiB..1GiB`." },
                }),
                &[],
            ),
            "confine": {
                "description": "The data goes to these sites only, and work that reads it goes to it.",
                "anyOf": [
                    selector,
                    record(
                        json!({ "to": selector, "bucket": { "enum": ["allowed", "if-encrypted", "forbidden"] } }),
                        &["to"],
                    ),
                ],
            },
        }),
        &[],
    );
    if let (Some(fields), Value::Object(said)) = (rule["properties"].as_object_mut(), said_fields()) {
        fields.extend(said);
    }
    let says: Vec<Value> = PLACEMENT_FIELDS[1..].iter().map(|field| json!({ "required": [field] })).collect();
    rule["anyOf"] = json!(says);
    rule
}

/// What a rule may say beside what it matches and confines, for a document that defines a selector.
pub(crate) fn said_fields() -> Value {
    let selector = json!({ "$ref": "#/$defs/selector" });
    let until = json!({ "type": "string", "description": "`7d after run.end`, `run.end` or `forever`." });
    let duration = json!({ "type": ["string", "integer"], "description": "As in 90d or 6h." });
    json!({
        "route": {
            "anyOf": [
                { "enum": ["direct", "bucket"] },
                { "type": "array", "minItems": 1, "uniqueItems": true, "items": { "enum": ["direct", "bucket"] } },
            ],
        },
        "push": { "enum": ["when-needed", "eager", "on-success", "never"] },
        "replicate": record(
            json!({
                "copies": { "type": "integer", "minimum": 1, "maximum": REPLICAS_MAX },
                "across": { "type": "string" },
                "to": selector,
                "within": duration,
                "importance": { "enum": ["must", "should"] },
            }),
            &["copies"],
        ),
        "keep": record(json!({ "at": selector, "for": until }), &["for"]),
        "pin": record(json!({ "at": selector, "until": until }), &["at", "until"]),
        "expire": record(
            json!({
                "after": { "type": ["string", "integer"], "description": "After the end of the run, as in 90d or 6h." },
                "then": { "enum": ["delete", "ask"] },
            }),
            &["after"],
        ),
        "encrypt": record(json!({ "key": { "const": "project" } }), &["key"]),
        "hold": record(json!({ "reason": { "type": "string" } }), &["reason"]),
    })
}

fn record(fields: Value, required: &[&str]) -> Value {
    json!({ "type": "object", "properties": fields, "required": required, "additionalProperties": false })
}
