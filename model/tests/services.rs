//! What a workflow file may say of the services that are kept running while it is deployed, and of the steps that use them.

use atoll_model::action::{self, ActionKind};
use atoll_model::diagnostic::Diagnostic;
use atoll_model::workflow::{Deployable, Surroundings, Work, parse_deployable, workflow_schema};
use expect_test::{Expect, expect};

const INDEX: &str = "name: index\nversion: '1'\nkind: service\ncommand: [serve]\nport: any\n\
                     inputs: { words: { type: string, default: all } }\nresources: { cpu: 0.5 }\n";
const GAUGE: &str = "name: gauge\nversion: '1'\nkind: source\nruntime: python\nhandler: main.py:run\n\
                     outputs: { level: number }\n";

struct Pushed;

impl Surroundings for Pushed {
    fn action(&self, reference: &str) -> Result<Work, String> {
        find(reference, ActionKind::Processor)
    }

    fn source(&self, reference: &str) -> Result<Work, String> {
        find(reference, ActionKind::Source)
    }

    fn service(&self, reference: &str) -> Result<Work, String> {
        find(reference, ActionKind::Service)
    }
}

fn find(reference: &str, kind: ActionKind) -> Result<Work, String> {
    let manifest = match reference {
        "index@1" => INDEX,
        "gauge@1" => GAUGE,
        _ => return Err(format!("there is no action `{reference}`")),
    };
    Ok(action::parse("action.yaml", manifest).expect("valid").of_kind(kind)?.into_work(None, 0))
}

fn file(services: &str, step: &str) -> String {
    format!("workflow: rivers\nservices: {services}\nsteps: {{ a: {step} }}\n")
}

fn read(text: &str) -> Deployable {
    parse_deployable("workflow.yaml", text, &Pushed).unwrap_or_else(|wrong| panic!("{wrong:?}"))
}

#[track_caller]
fn check(services: &str, step: &str, expected: Expect) {
    let text = file(services, step);
    let diagnostics = parse_deployable("workflow.yaml", &text, &Pushed).err().unwrap_or_default();
    let shown = |Diagnostic { place, message, help, .. }: &Diagnostic| {
        let help = help.as_ref().map(|help| format!(" ({help})")).unwrap_or_default();
        format!("{}:{} {message}{help}\n", place.line, place.column)
    };
    expected.assert_eq(&diagnostics.iter().map(shown).collect::<String>());
}

#[test]
fn services_are_steps_of_what_stays_while_a_workflow_is_deployed() {
    let text = file("{ word-index: { action: index@1, site: edge } }", "{ run: x, uses: word-index }");
    let Deployable { workflow, emitter: Some(emitter) } = read(&text) else { panic!("it has a service") };
    assert_eq!((emitter.name.as_str(), emitter.steps.len()), ("rivers.services", 1));
    let service = &emitter.steps[0];
    assert!(service.is_service() && service.name == "word-index" && service.retry.attempts == 1, "{service:?}");
    assert_eq!(service.resources.cpu_millis, 500);
    let step = &workflow.steps[0];
    assert!(!step.is_service());
    assert_eq!(step.site.names, service.site.names);
    let variable = step.environment.get("ATOLL_SERVICE_WORD_INDEX").map(String::as_str);
    assert_eq!(variable, Some("rivers/word-index"));
    assert_eq!(service.environment.get("ATOLL_SERVICE").map(String::as_str), variable);
    let schema = jsonschema::validator_for(&workflow_schema()).expect("a valid schema");
    assert!(schema.is_valid(&atoll_model::yaml_to_json(&text).expect("valid YAML")));
}

#[test]
fn a_source_is_the_first_of_what_stays() {
    let services = "{ one: { action: index@1 }, two: { action: index@1, with: { words: few } } }\n\
                    source: { action: gauge@1 }\ninputs: { level: number }";
    let emitter = read(&file(services, "{ run: x }")).emitter.expect("it has a source and services");
    assert_eq!(emitter.name, "rivers.source");
    let steps: Vec<_> = emitter.steps.iter().map(|step| (step.name.as_str(), step.index.index())).collect();
    assert_eq!(steps, [("source", 0), ("one", 1), ("two", 2)]);
}

#[test]
fn what_is_wrong_with_services_is_said_at_its_place() {
    check(
        "{ source: { site: edge }, two: { action: gauge@1 } }",
        "{ run: x }",
        expect![[r#"
            2:13 a service cannot be called `source`: that is what starts runs
            2:13 a service needs an `action` (write `action: name@1` with an action whose `kind` is `service`)
            2:52 the action gauge is no service: its action.yaml does not say `kind: service`
        "#]],
    );
    check(
        "{ index: { action: index@1, site: edge }, other: { action: index@1 } }",
        "{ run: x, site: hpc, uses: [indx, index, other] }",
        expect![[r#"
            3:41 there is no `indx` among the `services` of the file (did you mean `index`?)
            3:47 the service `index` is at edge, and the step `a` elsewhere (leave `site` of the step out)
            3:54 where the service `other` runs is not certain, and what uses it runs there too (name its site: `other: { site: …, action: … }`)
        "#]],
    );
}
