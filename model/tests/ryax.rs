//! What the metadata of an action of Ryax may say, and how it is told what is wrong with it.

use std::time::Duration;

use atoll_model::action::{ActionKind, ActionReference, Manifest, RyaxKind, RyaxType, parse};
use atoll_model::resources::Gpus;
use atoll_model::value::{Type, Value};
use expect_test::{Expect, expect};

const FILE: &str = "a/ryax_metadata.yaml";
const HEAD: &str = "apiVersion: ryax.tech/v2.0\nkind: Processor\nspec:\n  id: count-lines\n  human_name: Count lines\n  type: python3\n  version: \"1.0\"\n";

fn with(rest: &str) -> String {
    format!("{HEAD}{rest}")
}

fn parsed(source: &str) -> Manifest {
    parse(FILE, source).expect("valid metadata")
}

#[track_caller]
fn check(source: &str, expected: Expect) {
    let diagnostics = parse(FILE, source).expect_err("invalid metadata");
    let lines: Vec<String> = diagnostics.iter().map(|diagnostic| format!("{diagnostic}\n")).collect();
    expected.assert_eq(&lines.concat());
}

fn input(name: &str, r#type: &str, more: &str) -> String {
    format!("    - {{ name: {name}, human_name: N, help: H, type: {type}{more} }}\n")
}

#[test]
fn metadata_is_read_as_an_action_with_a_handler_in_python() {
    let inputs = [
        input("text", "file", ""),
        input("key", "password", ""),
        input("ratio", "float", ", default_value: 1"),
        input("word", "string", ", default_value: 2"),
        input("mode", "enum", ", enum_values: [a, b], default_value: b"),
        input("more", "longstring", ", optional: true"),
        input("HOME", "table", ""),
    ];
    let outputs = [input("lines", "integer", ""), input("made", "directory", ", optional: true")];
    let rest = format!(
        "  categories: [Text]\n  options: {{ python.version: \"3.11\" }}\n  resources: {{ cpu: 0.5, memory: 128M, time: 1.5m }}\n  \
         inputs:\n{}  outputs:\n{}",
        inputs.concat(),
        outputs.concat()
    );
    let manifest = parsed(&with(&rest));
    assert_eq!((manifest.name.as_str(), manifest.version.as_str()), ("count-lines", "1.0"));
    assert_eq!(manifest.description.as_deref(), Some("Count lines"));
    let default = |name: &str| manifest.inputs[name].default.clone();
    assert_eq!(default("text"), None);
    assert_eq!(default("ratio"), Some(Value::Number(1.0)));
    assert_eq!((default("word"), default("mode")), (Some(Value::string("2")), Some(Value::string("b"))));
    assert_eq!(default("more"), Some(Value::Null));
    assert_eq!(manifest.inputs["mode"].r#type, Type::Enum(vec!["a".to_owned(), "b".to_owned()]));
    assert_eq!((&manifest.outputs["lines"].r#type, &manifest.outputs["made"].r#type), (&Type::Any, &Type::Directory));
    assert!(manifest.outputs["made"].optional);
    let resources = manifest.resources.as_ref().expect("resources");
    assert_eq!((resources.cpu_millis, resources.memory_bytes), (500, Some(128 << 20)));
    assert_eq!(resources.time, Some(Duration::from_secs(90)));
    let ryax = manifest.ryax().expect("it is of Ryax");
    assert_eq!((ryax.kind, &ryax.outputs["lines"]), (RyaxKind::Handler, &RyaxType::Integer));
}

#[test]
fn the_text_alone_tells_what_it_is_of() {
    assert!(parse("action.yaml of count-lines@1.0", HEAD).expect("valid").ryax().is_some());
    let ours = parse("action.yaml", "name: a\nversion: '1'\nruntime: python\nhandler: a.py:f\n").expect("valid");
    assert!(ours.ryax().is_none());
}

#[test]
fn steps_name_actions_of_ryax_by_their_id() {
    for text in ["count-lines@1.0", "3d.model-@1.0", "a.b@unversioned"] {
        assert!(text.parse::<ActionReference>().is_ok(), "{text}");
    }
    for text in ["ab.@@1", "a.b.c.d.e.f.g.h.i.j.k.l.m@1", ".a@1", "A.b@1"] {
        assert!(text.parse::<ActionReference>().is_err(), "{text}");
    }
    assert_eq!(parsed(&HEAD.replace("  version: \"1.0\"\n", "")).version, "unversioned");
}

#[test]
fn everything_that_the_schema_refuses_is_said_with_its_path_and_place() {
    check(
        "apiVersion: ryax.tech/v2.0\nkind: Undefined\nextra: 1\nspec:\n  id: Ab\n  human_name: N\n  type: python\n  version: 1.0\n  colour: red\n",
        expect![[r#"
            a/ryax_metadata.yaml:2:7: `kind` cannot be `Undefined` (known: `Processor`, `Publisher`, `Source`, `Trigger`)
            a/ryax_metadata.yaml:3:1: the metadata has no field `extra` (known: `apiVersion`, `kind`, `spec`)
            a/ryax_metadata.yaml:5:7: `spec.id` has 3 to 24 characters, not 2
            a/ryax_metadata.yaml:6:15: `spec.human_name` has 3 to 128 characters, not 1
            a/ryax_metadata.yaml:7:9: `spec.type` cannot be `python` (did you mean `python3`?)
            a/ryax_metadata.yaml:8:12: `spec.version` is a text, and `1.0` is none for YAML (put it in quotes: "1.0")
            a/ryax_metadata.yaml:9:3: `spec` has no field `colour` (known: `id`, `human_name`, `type`, `version`, `description`, `logo`, `categories`, `dependencies`, `options`, `addons`, `resources`, `dynamic_outputs`, `inputs`, `outputs`)
        "#]],
    );
    check(
        "kind: Processor\n",
        expect![[r#"
            a/ryax_metadata.yaml:1:1: `apiVersion` is missing
            a/ryax_metadata.yaml:1:1: `spec` is missing
        "#]],
    );
    check(
        "a: [\n",
        expect![[r#"
            a/ryax_metadata.yaml:2:1: this is no valid YAML: while parsing a node, did not find expected node content
        "#]],
    );
    check(
        "apiVersion: ryax.tech/v1\nkind: Functions\nspec: { detail: x }\n",
        expect![[r#"
            a/ryax_metadata.yaml:1:13: this is version 1 of the metadata of Ryax, which is not read (write it as version 2: `apiVersion: ryax.tech/v2.0`, with `spec.inputs` and `spec.outputs`)
        "#]],
    );
}

#[test]
fn inputs_and_outputs_have_the_limits_of_the_schema() {
    let rest = format!(
        "  inputs:\n{}{}{}{}    - {{ name: x, type: string, unit: m }}\n  outputs:\n{}{}",
        input("a", "integer", ", default_value: many"),
        input("a", "float", ""),
        input("b/c", "int", ""),
        input("d", "enum", ", enum_values: [a], default_value: b, optional: often"),
        input("e", "string", ", default_value: 1"),
        input("e", "string", ""),
    );
    check(
        &with(&rest),
        expect![[r#"
            a/ryax_metadata.yaml:9:72: `spec.inputs[0].default_value` is an integer, and `many` is none
            a/ryax_metadata.yaml:10:15: `spec.inputs[1].name`: there is a `a` among the inputs already
            a/ryax_metadata.yaml:11:15: `spec.inputs[2].name` cannot be `b/c` (a to z, A to Z, 0 to 9, `_`, `-`, `.`)
            a/ryax_metadata.yaml:11:50: `spec.inputs[2].type` cannot be `int` (did you mean `integer`?)
            a/ryax_metadata.yaml:12:87: `spec.inputs[3].default_value` is one of a, and `b` is none
            a/ryax_metadata.yaml:12:100: `spec.inputs[3].optional` is true or false, not `often`
            a/ryax_metadata.yaml:13:7: `spec.inputs[4].human_name` is missing
            a/ryax_metadata.yaml:13:7: `spec.inputs[4].help` is missing
            a/ryax_metadata.yaml:13:32: `spec.inputs[4]` has no field `unit` (known: `human_name`, `help`, `name`, `type`, `enum_values`, `optional`, `default_value`)
            a/ryax_metadata.yaml:15:56: `spec.outputs[0]` has no field `default_value` (known: `human_name`, `help`, `name`, `type`, `enum_values`, `optional`)
            a/ryax_metadata.yaml:16:15: `spec.outputs[1].name`: there is a `e` among the outputs already
        "#]],
    );
}

#[test]
fn resources_are_read_in_the_units_of_ryax() {
    let resources = |text: &str| parse(FILE, &with(&format!("  resources: {text}\n")));
    let memory = |text: &str| resources(&format!("{{ memory: {text} }}")).ok()?.resources?.memory_bytes;
    assert_eq!(memory("33M"), Some(33 << 20));
    assert_eq!(memory("1.9G"), Some(1 << 30));
    assert_eq!(memory("40000K"), Some(40_000 << 10));
    assert_eq!(memory("100000000"), Some(100_000_000));
    for wrong in ["32M", "100", "2m", "G", "64MiB", "-1G", "999999999999T"] {
        assert_eq!(memory(wrong), None, "{wrong}");
    }
    let time = |text: &str| resources(&format!("{{ time: {text} }}")).ok()?.resources?.time;
    assert_eq!(
        (time("2h"), time("0.5m"), time("90")),
        (Some(Duration::from_secs(7_200)), Some(Duration::from_secs(30)), Some(Duration::from_secs(90)))
    );
    for wrong in ["2H", "0.5", "1h30m", "s"] {
        assert_eq!(time(wrong), None, "{wrong}");
    }
    check(
        &with("  resources: { cpu: 0.05, memory: 1K, gpu: 0, disk: 1G }\n"),
        expect![[r#"
            a/ryax_metadata.yaml:8:21: `spec.resources.cpu` is a number of CPUs, at least 0.1, not `0.05`
            a/ryax_metadata.yaml:8:35: `spec.resources.memory` is a number with the unit K, M, G or T, or one of bytes, and more than 32M, not `1K`
            a/ryax_metadata.yaml:8:44: `spec.resources.gpu` is a number of GPUs, at least 1, not `0`
            a/ryax_metadata.yaml:8:47: `spec.resources` has no field `disk` (known: `cpu`, `memory`, `time`, `gpu`)
        "#]],
    );
    let manifest = parsed(&with("  dependencies: [ffmpeg]\n  resources: { gpu: 2 }\n"));
    assert_eq!(manifest.ryax().expect("of Ryax").notes.len(), 1);
    assert_eq!(manifest.resources.expect("resources").gpus, Some(Gpus { count: 2, kind: None }));
}

#[test]
fn what_cannot_be_run_is_refused_in_clear_words() {
    check(
        &HEAD.replace("python3", "nodejs"),
        expect![[r#"
            a/ryax_metadata.yaml:6:9: actions of `type: nodejs` are not supported (only `type: python3` can be run)
        "#]],
    );
    check(
        &with("  dynamic_outputs: true\n"),
        expect![[r#"
            a/ryax_metadata.yaml:8:20: only a source has dynamic outputs (leave it out, or write `kind: Source`)
        "#]],
    );
    let source = with("  dynamic_outputs: true\n").replace("Processor", "Trigger");
    let source = parsed(&source);
    assert_eq!(source.kind, ActionKind::Source);
    assert!(source.ryax().expect("of Ryax").notes[0].contains("dynamic_outputs"));
}

#[test]
fn a_source_emits_values_of_the_types_that_it_declares() {
    let outputs = "  outputs: [{ name: level, human_name: L, help: H, type: float }, { name: rows, human_name: R, help: H, type: table }]\n";
    let source = |outputs: &str| with(outputs).replace("Processor", "Source");
    let outputs_of =
        |manifest: Manifest| manifest.outputs.into_values().map(|output| output.r#type).collect::<Vec<_>>();
    assert_eq!(outputs_of(parsed(&source(outputs))), [Type::Number, Type::List(None)]);
    assert_eq!(outputs_of(parsed(&with(outputs))), [Type::Any, Type::Any], "a handler may return a list of them");
    check(
        &source("  outputs: [{ name: photo, human_name: P, help: H, type: file }]\n"),
        expect![[r#"
            a/ryax_metadata.yaml:8:13: a source emits values: `photo` cannot be a file (emit what tells where it is, and let a step of the workflow fetch it)
        "#]],
    );
}

#[test]
fn the_addon_for_batch_systems_adds_a_script() {
    let manifest = parsed(&with("  addons: { hpc: {} }\n"));
    assert!(manifest.ryax().expect("of Ryax").takes_script);
    assert_eq!(manifest.inputs["custom_script"].default, Some(Value::Null));
}
