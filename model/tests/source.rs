//! What a workflow file may say of the source that starts its runs.

use atoll_model::action::{self, ActionKind};
use atoll_model::diagnostic::Diagnostic;
use atoll_model::workflow::{Deployable, Surroundings, Work, parse, parse_deployable, workflow_schema};
use expect_test::{Expect, expect};

const GAUGE: &str = "name: gauge\nversion: '1'\nkind: source\nruntime: python\nhandler: main.py:run\n\
                     inputs: { period: { type: string, default: 5s }, port: integer }\n\
                     outputs: { level: number, place: { type: string, optional: true } }\nresources: { cpu: 0.5 }\n";

struct Gauges;

impl Surroundings for Gauges {
    fn action(&self, reference: &str) -> Result<Work, String> {
        self.find(reference, ActionKind::Processor)
    }

    fn source(&self, reference: &str) -> Result<Work, String> {
        self.find(reference, ActionKind::Source)
    }
}

impl Gauges {
    fn find(&self, reference: &str, kind: ActionKind) -> Result<Work, String> {
        match reference {
            "gauge@1" => Ok(action::parse("action.yaml", GAUGE).expect("valid").of_kind(kind)?.into_work(None, 0)),
            _ => Err(format!("there is no action `{reference}`")),
        }
    }
}

fn file(source: &str, inputs: &str) -> String {
    format!("workflow: rivers\nsource: {source}\ninputs: {inputs}\nsteps: {{ a: {{ run: x }} }}\n")
}

#[track_caller]
fn check(source: &str, inputs: &str, expected: Expect) {
    let diagnostics = parse("workflow.yaml", &file(source, inputs), &Gauges).err().unwrap_or_default();
    let shown = |Diagnostic { place, message, help, .. }: &Diagnostic| {
        let help = help.as_ref().map(|help| format!(" ({help})")).unwrap_or_default();
        format!("{}:{} {message}{help}\n", place.line, place.column)
    };
    expected.assert_eq(&diagnostics.iter().map(shown).collect::<String>());
}

#[test]
fn a_source_is_a_workflow_of_one_step_that_is_begun_again_for_ever() {
    let text = file("{ action: gauge@1, site: edge, with: { port: 7 }, env: { TZ: UTC } }", "{ level: number }");
    let Ok(Deployable { workflow, emitter: Some(emitter) }) = parse_deployable("workflow.yaml", &text, &Gauges) else {
        panic!("it is valid, and has a source")
    };
    assert_eq!((workflow.name.as_str(), workflow.steps.len()), ("rivers", 1));
    assert_eq!((emitter.name.as_str(), emitter.steps.len()), ("rivers.source", 1));
    let step = &emitter.steps[0];
    assert!(matches!(&step.work, Work::Python(action) if action.name == "gauge"), "{:?}", step.work);
    assert_eq!(step.bindings.keys().collect::<Vec<_>>(), ["port", "period"]);
    assert_eq!((step.retry.attempts, step.resources.cpu_millis, step.outputs.len()), (u32::MAX, 500, 0));
    let schema = jsonschema::validator_for(&workflow_schema()).expect("a valid schema");
    assert!(schema.is_valid(&atoll_model::yaml_to_json(&text).expect("valid YAML")));
    let without = text.replace("source:", "# ");
    assert!(parse_deployable("workflow.yaml", &without, &Gauges).expect("valid").emitter.is_none());
}

#[test]
fn what_runs_are_given_is_what_the_source_emits() {
    let source = "{ action: gauge@1, with: { port: 7 } }";
    check(
        source,
        "{ level: number, place: { type: string, default: here }, more: { type: integer, default: 1 } }",
        expect![[""]],
    );
    check(
        source,
        "{ level: integer, place: string, hight: number }",
        expect![[r#"
            3:11 the input `level` is an integer, and the source emits a number
            3:27 the source does not always emit the input `place`, which has no default (give it a `default`)
            3:42 the source does not emit the input `hight`, which has no default (the source emits level, place; or give the input a `default`)
        "#]],
    );
}

#[test]
fn what_is_wrong_with_a_source_is_said_at_its_place() {
    let schema = jsonschema::validator_for(&workflow_schema()).expect("a valid schema");
    check(
        "{ site: edge }",
        "{}",
        expect![["2:1 a source needs an `action` (write `action: name@1` with an action whose `kind` is `source`)\n"]],
    );
    check("{ action: other@1 }", "{}", expect![["2:19 there is no action `other@1`\n"]]);
    check(
        "{ action: gauge@1 }",
        "{}",
        expect![["2:1 the action `gauge` needs the input `port`, an integer (add `port: …` under `with:`)\n"]],
    );
    let before_any_run = file("{ action: gauge@1, with: { port: \"${{ inputs.level }}\" } }", "{ level: number }");
    let refused = parse("workflow.yaml", &before_any_run, &Gauges).expect_err("a source is there before any run");
    let expected = "`inputs.level` is of a run, and this is begun before any run";
    assert!(refused[0].message.contains(expected), "{refused:?}");
    for wrong in ["{ action: gauge@1, retry: 3 }", "{ site: edge }"] {
        assert!(parse("workflow.yaml", &file(wrong, "{}"), &Gauges).is_err(), "{wrong}");
        assert!(!schema.is_valid(&atoll_model::yaml_to_json(&file(wrong, "{}")).expect("valid YAML")), "{wrong}");
    }
    let step = "workflow: w\nsteps: { a: { action: gauge@1, with: { port: 1 } } }\n";
    let refused = parse("workflow.yaml", step, &Gauges).expect_err("a source is no step");
    assert_eq!(refused[0].message, "the action gauge is a source: it stands below `source:`, and not in a step");
}
