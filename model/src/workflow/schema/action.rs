//! The schema of an action's manifest.

use serde_json::{Value, json};

use super::{DIALECT, NAME, VARIABLE, definitions, named, record};
use crate::limits::{RUN_LABELS_MAX, SERVICE_FAILURES_MAX, SERVICE_RESTARTS_MAX, WARM_MAX};

/// The schema of `action.yaml`.
pub fn action_schema() -> Value {
    json!({
        "$schema": DIALECT,
        "title": "Atoll action",
        "type": "object",
        "properties": {
            "name": { "type": "string", "pattern": NAME },
            "version": {
                "type": ["string", "number"],
                "pattern": "^[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}$",
                "description": "Put it in quotes: 1.10 is not 1.1.",
            },
            "kind": {
                "enum": ["processor", "source", "service"],
                "description": "A processor turns inputs into outputs, and ends. A source stays, and emits records, each \
                                of which starts a run. A service stays, and is begun again when it ends or is not well.",
            },
            "runtime": {
                "enum": ["command", "python", "container", "wasm"],
                "description": "command: a process of its own. python: a function, called in a process that serves many. \
                                container: a container of its own. wasm: a component of WebAssembly.",
            },
            "command": {
                "type": "array", "minItems": 1, "items": { "type": ["string", "number", "boolean"] },
                "description": "Program and arguments; a program without a `/` at its start is looked up in the folder \
                                of the action, then in PATH. With `runtime: wasm` a file of the folder, a component, \
                                and its arguments.",
            },
            "handler": {
                "type": "string", "pattern": "\\.py:[^:]+$",
                "description": "With `runtime: python`: a file of the folder, and a function in it, as `main.py:handle`.",
            },
            "requirements": {
                "type": "string",
                "description": "With `runtime: python`: a file of the folder that names the packages it needs, as pip \
                                reads it.",
            },
            "image": {
                "type": "string", "pattern": "@sha256:[0-9a-f]{64}$|^\\./.",
                "description": "With `runtime: container`: an image of a registry with its digest, as \
                                `docker.io/library/debian@sha256:…`, or an archive of one in the folder, as `./image.tar`.",
            },
            "description": { "type": "string" },
            "labels": labels(),
            "inputs": named(VARIABLE, "#/$defs/input", "Each becomes an environment variable of its name."),
            "outputs": named(NAME, "#/$defs/output", "Each stands at `$ATOLL_OUTPUTS/<name>` at the end."),
            "resources": { "$ref": "#/$defs/resources" },
            "isolation": { "$ref": "#/$defs/isolation" },
            "network": { "$ref": "#/$defs/network" },
            "port": {
                "anyOf": [{ "const": "any" }, { "type": "integer", "minimum": 1, "maximum": 65535 }],
                "description": "Where a service listens; `any` is one that the site chooses, which it finds in ATOLL_PORT.",
            },
            "health": health(),
            "restart": restart(),
            "warm": warm(),
        },
        "required": ["name", "version"],
        "allOf": of_kinds(),
        "if": { "properties": { "runtime": { "const": "python" } }, "required": ["runtime"] },
        "then": { "required": ["handler"], "properties": { "command": false, "image": false } },
        "else": without_python(),
        "additionalProperties": false,
        "$defs": definitions(),
    })
}

/// What an action is to be found by.
fn labels() -> Value {
    json!({
        "type": ["object", "null"],
        "maxProperties": RUN_LABELS_MAX,
        "propertyNames": { "pattern": "^[^=,]+$" },
        "additionalProperties": { "type": ["string", "number", "boolean"] },
        "description": "What it is to be found by.",
    })
}

/// What actions of one kind alone say, and must say.
fn of_kinds() -> Value {
    json!([
        {
            "if": { "properties": { "kind": { "const": "source" } }, "required": ["kind"] },
            "then": { "properties": { "runtime": { "const": "python" } }, "required": ["runtime"] },
        },
        {
            "if": { "properties": { "kind": { "const": "service" } }, "required": ["kind"] },
            "else": { "properties": { "port": false, "health": false, "restart": false } },
        },
    ])
}

/// What an action says whose runtime is another than `python`.
fn without_python() -> Value {
    json!({
        "properties": { "handler": false, "requirements": false, "warm": false },
        "if": { "properties": { "runtime": { "const": "container" } }, "required": ["runtime"] },
        "then": { "required": ["image"] },
        "else": { "required": ["command"], "properties": { "image": false } },
    })
}

/// How many processes of an action wait that have nothing to do.
fn warm() -> Value {
    let count = json!({ "type": "integer", "minimum": 0, "maximum": WARM_MAX });
    let fields = json!({
        "min": count,
        "max": count,
        "for": { "type": ["string", "integer"], "description": "How long those beyond `min` wait." },
    });
    let mut warm = record(fields, &[]);
    warm["type"] = json!(["object", "null"]);
    warm["description"] =
        json!("With `runtime: python`: how many of its processes wait at a site that have nothing to do.");
    warm
}

/// How it is known that a service is well.
fn health() -> Value {
    let time = json!({ "type": ["string", "integer"] });
    let fields = json!({
        "http": { "type": "string", "pattern": "^/", "description": "Its port answers for this path with a status below 400." },
        "command": {
            "type": "array", "minItems": 1, "items": { "type": ["string", "number", "boolean"] },
            "description": "A program and its arguments that end with code 0.",
        },
        "every": time,
        "timeout": time,
        "failures": { "type": "integer", "minimum": 1, "maximum": SERVICE_FAILURES_MAX },
        "start": time,
    });
    let mut health = record(fields, &[]);
    health["type"] = json!(["object", "null"]);
    health["description"] =
        json!("How it is known that a service is well: that something listens, unless it says more.");
    health
}

/// When a service is begun again.
fn restart() -> Value {
    let fields = json!({
        "backoff": { "type": ["string", "integer"], "description": "Before the first time; doubled for each further one in a row." },
        "max": { "type": "integer", "minimum": 0, "maximum": SERVICE_RESTARTS_MAX },
    });
    let mut restart = record(fields, &[]);
    restart["type"] = json!(["object", "null"]);
    restart
}
