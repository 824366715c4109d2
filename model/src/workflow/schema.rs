//! The JSON Schemas of the workflow file and of an action's manifest, for editors. What they cannot say (references,
//! types of expressions, cycles, sites) is checked when a file is parsed.

mod action;

use serde_json::{Map, Value, json};

pub use self::action::action_schema;
use crate::limits::{
    CONCURRENCY_MAX, GPUS_MAX, NODES_MAX, PRIORITY_MAX, PRIORITY_MIN, SBATCH_OPTIONS_MAX, TASKS_PER_NODE_MAX,
};
use crate::policy::said_fields;
use crate::resources::{IsolationProfile, Launch};

const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";
const NAME: &str = "^[A-Za-z_][A-Za-z0-9_-]{0,62}$";
const VARIABLE: &str = "^[A-Za-z_][A-Za-z0-9_]{0,62}$";
const SITE: &str = "^[a-z][a-z0-9-]{0,62}$";

/// The schema of a workflow file.
pub fn workflow_schema() -> Value {
    let fields = json!({
        "workflow": { "type": "string", "pattern": NAME, "description": "The name of the workflow." },
        "description": { "type": "string" },
        "requires": {
            "description": "Programs that the scripts call; looked for by `atoll dev` before anything runs.",
            "$ref": "#/$defs/texts",
        },
        "source": standing(
            "What starts runs when the workflow is deployed: an action of the kind `source`, whose outputs are the inputs \
             of the runs.",
        ),
        "services": {
            "type": ["object", "null"],
            "description": "What is kept running while the workflow is deployed, by name.",
            "propertyNames": { "pattern": NAME },
            "additionalProperties": standing("An action of the kind `service`."),
        },
        "inputs": named(NAME, "#/$defs/input", "What a run is given."),
        "steps": named(NAME, "#/$defs/step", "The nodes of the graph; what a step reads decides when it runs."),
        "outputs": {
            "type": ["object", "null"],
            "description": "What the run yields: an expression, or one with where its file or directory is published.",
            "propertyNames": { "pattern": NAME },
            "additionalProperties": {
                "if": { "type": "object", "required": ["publish"] },
                "then": { "$ref": "#/$defs/published" },
            },
        },
        "placement": {
            "type": ["array", "null"],
            "description": "Rules for where data may go.",
            "items": { "$ref": "#/$defs/rule" },
        },
        "priority": priority("Of its runs that are submitted without one; more comes first. 0 by default."),
        "concurrency": record(
            json!({
                "executions": limit("Executions of all its runs of one project that may be at sites at a time."),
                "runs": limit("Runs of one project that may be under way at a time."),
            }),
            &[],
        ),
    });
    json!({
        "$schema": DIALECT,
        "title": "Atoll workflow",
        "type": "object",
        "properties": fields,
        "required": ["workflow"],
        "anyOf": [{ "required": ["steps"] }, { "required": ["outputs"] }],
        "additionalProperties": false,
        "$defs": definitions(),
    })
}

/// What stays for as long as a workflow is deployed.
fn standing(description: &str) -> Value {
    json!({
        "type": ["object", "null"],
        "description": description,
        "properties": {
            "action": { "type": "string" },
            "description": { "type": "string" },
            "with": { "type": ["object", "null"], "propertyNames": { "pattern": VARIABLE }, "description": "Its inputs." },
            "site": { "$ref": "#/$defs/selector" },
            "resources": { "$ref": "#/$defs/resources" },
            "env": {
                "type": ["object", "null"],
                "additionalProperties": { "type": ["string", "number", "boolean"] },
                "description": "Further environment variables, as plain texts.",
            },
            "priority": priority("Added to the priority of the workflow."),
        },
        "required": ["action"],
        "additionalProperties": false,
    })
}

fn named(pattern: &str, item: &str, description: &str) -> Value {
    json!({
        "type": ["object", "null"],
        "description": description,
        "propertyNames": { "pattern": pattern },
        "additionalProperties": { "$ref": item },
    })
}

fn record(fields: Value, required: &[&str]) -> Value {
    json!({ "type": "object", "properties": fields, "required": required, "additionalProperties": false })
}

fn priority(description: &str) -> Value {
    json!({ "type": "integer", "minimum": PRIORITY_MIN, "maximum": PRIORITY_MAX, "description": description })
}

fn limit(description: &str) -> Value {
    json!({ "type": "integer", "minimum": 1, "maximum": CONCURRENCY_MAX, "description": description })
}

/// A list, or one for a list of one.
fn one_or_more(item: &Value) -> Value {
    json!({ "anyOf": [item, { "type": "array", "items": item, "minItems": 1 }] })
}

fn definitions() -> Value {
    let site_name = json!({ "type": "string", "pattern": SITE });
    let mut definitions = Map::new();
    let mut define = |name: &str, schema: Value| definitions.insert(name.to_owned(), schema);
    define("texts", one_or_more(&json!({ "type": "string" })));
    define("sites", one_or_more(&site_name));
    define(
        "type",
        json!({
            "type": "string",
            "pattern": "^(list of )*(string|integer|number|boolean|list|object|file|directory)$|^enum$",
            "description": "string, integer, number, boolean, enum, list, object, file, directory, or `list of file` and the like.",
            "examples": ["string", "integer", "number", "boolean", "enum", "list", "object", "file", "directory", "list of file"],
        }),
    );
    let typed = json!({
        "type": { "$ref": "#/$defs/type" },
        "of": { "$ref": "#/$defs/type", "description": "The type of a list's elements." },
        "values": { "type": "array", "items": { "type": ["string", "number", "boolean"] }, "description": "What an enum may be." },
        "description": { "type": "string" },
    });
    let with = |field: &str, schema: Value| {
        let mut fields = typed.clone();
        fields[field] = schema;
        json!({ "anyOf": [{ "$ref": "#/$defs/type" }, record(fields, &["type"])] })
    };
    define(
        "input",
        with(
            "default",
            json!({ "description": "Its value where none is given; for a file or directory `{ site, path }`, where a site holds it, or `{ url }` (https, http, s3, gs, az), from where one fetches it, `site` if it matters." }),
        ),
    );
    define("output", with("optional", json!({ "type": "boolean", "description": "Whether a step may leave it out." })));
    define("resources", resources());
    define(
        "isolation",
        json!({
            "enum": IsolationProfile::ALL.map(IsolationProfile::as_str),
            "description": "How it is kept from everything else, at least: the stricter of what the step, the action and \
                            the site say.",
        }),
    );
    let network = "Whether it reaches the network where its isolation or its container would keep it from it.";
    define("network", json!({ "type": "boolean", "description": network }));
    let labels = json!({
        "type": "object", "minProperties": 1,
        "additionalProperties": { "type": ["string", "number", "boolean"] },
        "description": "All of them must be equal.",
    });
    let mut fields = json!({ "labels": labels });
    for field in ["name", "names", "site", "sites"] {
        fields[field] = json!({ "$ref": "#/$defs/sites" });
    }
    let mut selector = record(fields, &[]);
    selector["minProperties"] = json!(1);
    define("selector", json!({ "anyOf": [{ "$ref": "#/$defs/sites" }, selector] }));
    define("published", published(&site_name));
    define("rule", rule());
    define("step", step());
    Value::Object(definitions)
}

fn resources() -> Value {
    let quantity = |description: &str| json!({ "type": ["string", "number"], "description": description });
    let gpus = json!({ "type": "integer", "minimum": 1, "maximum": GPUS_MAX });
    let fields = json!({
        "cpu": quantity("CPUs: 2, 0.5, 500m. One by default."),
        "memory": quantity("Memory that it may use: 512MiB. Enforced."),
        "time": quantity("How long one attempt may run: 5m, 1h30m."),
        "scratch": quantity("What it may write to its own folders: 1GiB. Enforced."),
        "gpu": {
            "description": "GPUs that nobody else uses meanwhile; of a kind that the site names.",
            "anyOf": [gpus, record(json!({ "count": gpus, "kind": { "type": "string" } }), &[])],
        },
        "named": {
            "type": "object",
            "description": "Of what a site has a number of, by its name: { licences: 0.5 }.",
            "propertyNames": { "pattern": NAME },
            "additionalProperties": { "type": ["string", "number"] },
        },
        "nodes": {
            "type": "integer", "minimum": 1, "maximum": NODES_MAX,
            "description": "Nodes of a cluster. CPUs are for each task, memory and GPUs for each node.",
        },
        "tasks_per_node": {
            "type": "integer", "minimum": 1, "maximum": TASKS_PER_NODE_MAX, "description": "Tasks on each of its nodes.",
        },
        "launch": {
            "enum": Launch::ALL.map(Launch::as_str),
            "description": "What starts the command as each task; without it, it is started once, on the first node.",
        },
        "sbatch": {
            "description": "Further options of its job at sites of Slurm: --constraint=avx2.",
            "anyOf": [
                { "type": "string", "pattern": "^--" },
                { "type": "array", "maxItems": SBATCH_OPTIONS_MAX, "items": { "type": "string", "pattern": "^--" } },
            ],
        },
    });
    record(fields, &[])
}

fn published(site_name: &Value) -> Value {
    let fields = json!({
        "site": site_name,
        "path": { "type": "string", "pattern": "^/", "description": "A path of the site, at which nothing else stands." },
        "url": { "type": "string", "pattern": "^(s3|gs|az)://.", "description": "A key in a bucket; a directory becomes everything below it." },
        "overwrite": { "type": "boolean", "description": "Whether something else that stands there is replaced." },
    });
    let mut publish = record(fields, &[]);
    publish["oneOf"] = json!([{ "required": ["site", "path"] }, { "required": ["url"] }]);
    record(json!({ "value": { "description": "A file or a directory." }, "publish": publish }), &["value", "publish"])
}

fn rule() -> Value {
    let text = json!({ "type": "string" });
    let labels = json!({ "type": "object", "additionalProperties": { "type": ["string", "number", "boolean"] } });
    let selector = json!({ "$ref": "#/$defs/selector" });
    let record_of_both =
        record(json!({ "to": selector, "bucket": { "enum": ["allowed", "if-encrypted", "forbidden"] } }), &["to"]);
    let mut fields = json!({
        "match": record(
            json!({
                "step": text, "output": text, "input": text, "labels": labels,
                "bytes": { "type": "string", "description": "`>= 1GiB`, `< 4MiB` or `1MiB..1GiB`." },
            }),
            &[],
        ),
        "confine": {
            "description": "The data never leaves these sites, nor enters the bucket unless that is allowed.",
            "anyOf": [selector, record_of_both],
        },
    });
    if let (Some(fields), Value::Object(said)) = (fields.as_object_mut(), said_fields()) {
        fields.extend(said);
    }
    record(fields, &[])
}

fn step() -> Value {
    let mut step = record(
        json!({
            "description": { "type": "string" },
            "run": { "type": "string", "description": "A script for `sh -eu`; its inputs are environment variables." },
            "action": { "type": "string", "description": "The folder of an action, or `name@version` of one that was pushed." },
            "command": {
                "type": "array", "minItems": 1, "items": { "type": ["string", "number", "boolean"] },
                "description": "A program and its arguments, without a shell.",
            },
            "executor": {
                "enum": ["local", "null", null],
                "description": "`null` with neither `run` nor `action`: nothing, which succeeds at once; for measuring.",
            },
            "with": { "type": ["object", "null"], "propertyNames": { "pattern": VARIABLE }, "description": "Its inputs." },
            "foreach": {
                "type": ["string", "array"],
                "description": "A list: the step runs once for each element, which is `item`, its number `index`.",
            },
            "when": { "type": ["string", "boolean"], "description": "The step is skipped where this is false." },
            "site": { "$ref": "#/$defs/selector", "description": "Where it may run; anywhere where it is left out." },
            "resources": { "$ref": "#/$defs/resources" },
            "isolation": { "$ref": "#/$defs/isolation" },
            "network": { "$ref": "#/$defs/network" },
            "retry": {
                "anyOf": [
                    { "type": "integer", "minimum": 1, "maximum": crate::limits::ATTEMPTS_MAX },
                    record(
                        json!({
                            "attempts": { "type": "integer", "minimum": 1, "maximum": crate::limits::ATTEMPTS_MAX },
                            "backoff": { "type": ["string", "integer"], "description": "Before the second attempt, doubled for each further one." },
                            "other_site": { "type": "boolean" },
                            "memory": {
                                "type": "string",
                                "pattern": "^[0-9]+(\\.[0-9]+)?x$",
                                "description": "How many times as much memory the attempt after one that ran out of it asks for: 2x.",
                            },
                        }),
                        &[],
                    ),
                ],
            },
            "outputs": named(NAME, "#/$defs/output", "Each stands at `$ATOLL_OUTPUTS/<name>` at the end."),
            "after": { "$ref": "#/$defs/texts", "description": "Steps that it waits for without reading from them." },
            "on_disconnect": { "enum": ["finish", "stop"], "description": "What a lost link means for running work." },
            "start": {
                "enum": ["at-least-once", "at-most-once"],
                "description": "at-most-once: never started twice; where its fate is unknown somebody decides.",
            },
            "env": {
                "type": ["object", "null"],
                "additionalProperties": { "type": ["string", "number", "boolean"] },
                "description": "Further environment variables, as plain texts.",
            },
            "uses": { "$ref": "#/$defs/texts", "description": "Services of the file whose addresses it is given, at their site." },
            "priority": priority("Added to the priority of the run."),
            "max_parallel": limit("Executions of this step in one run that may be at sites at a time."),
            "cache": {
                "type": "string",
                "description": "For how long its outputs may be taken by executions that do the same with the same inputs, such as `30d`.",
            },
        }),
        &[],
    );
    let works = [json!({ "required": ["run"] }), json!({ "required": ["action"] }), json!({ "required": ["command"] })];
    let mut alternatives = works.to_vec();
    alternatives.push(json!({ "required": ["executor"], "not": { "anyOf": works } }));
    step["oneOf"] = json!(alternatives);
    step
}
