//! Deployed workflows: their sources begin where they stopped, each record starts one run, generations fence each other.

use std::sync::Arc;
use std::time::Duration;

use atoll_model::id::{Attempt, ExecutionId, RunId};
use atoll_model::session::Outcome;
use atoll_model::value::Value;
use atoll_model::workflow::{Action, Deployable, Output, Surroundings, Work, parse_deployable};
use indexmap::IndexMap;

use super::registry::{bundle, name, push};
use super::world::{World, failed, interrupted};
use crate::view::{DeploymentState, DeploymentView, RunState};
use crate::{Deployed, DeploymentName, EmittedRecord, Fact, Rejection, Request, Response};

/// Its runs have nothing to do.
const FED: &str = "workflow: fed\nsource: { action: clean@1, site: edge }\ninputs: { n: integer }\n\
                   steps: { a: { run: x, when: \"${{ inputs.n < 0 }}\" } }\n";

/// Two services, and runs that use one of them.
const SERVED: &str = "workflow: fed\nservices: { one: { action: clean@1, site: edge }, two: { action: clean@1, site: edge } }\n\
                      steps: { a: { run: x, uses: one } }\n";

/// What was pushed is a source of numbers, or a service.
struct Gauge;

impl Surroundings for Gauge {
    fn action(&self, reference: &str) -> Result<Work, String> {
        Err(format!("there is no action {reference}"))
    }

    fn source(&self, reference: &str) -> Result<Work, String> {
        pushed(reference)
    }

    fn service(&self, reference: &str) -> Result<Work, String> {
        pushed(reference)
    }
}

fn pushed(reference: &str) -> Result<Work, String> {
    let (name, version) = reference.split_once('@').ok_or("no version")?;
    let number =
        Output { r#type: atoll_model::value::Type::Integer, optional: false, listed: false, place: Default::default() };
    Ok(Work::Python(Action {
        name: name.to_owned(),
        version: version.to_owned(),
        bundle: Some(bundle(1).id),
        bundle_bytes: bundle(1).bytes,
        command: Vec::new(),
        inputs: IndexMap::new(),
        outputs: IndexMap::from_iter([("n".to_owned(), number)]),
        resources: None,
    }))
}

fn fed() -> DeploymentName {
    DeploymentName { project: "default".to_owned(), name: "fed".to_owned() }
}

fn ready() -> World {
    let mut world = World::new();
    world.join("edge", &[]);
    world.agents.get_mut("edge").unwrap().runtimes.push("python".to_owned());
    world.connect("edge");
    push(&mut world, "1", 1, &[]).unwrap();
    world
}

fn deploy(world: &mut World, source: &str) -> Result<Response, Rejection> {
    let run = RunId::from_bits(u128::from(world.unique()));
    deploy_as(world, source, run)
}

fn deploy_as(world: &mut World, source: &str, run: RunId) -> Result<Response, Rejection> {
    let Deployable { workflow, emitter } = parse_deployable("fed.yaml", source, &Gauge).unwrap();
    let emitter = emitter.map(|emitter| (Arc::new(emitter), run));
    let deployed = Deployed { workflow: Arc::new(workflow), text: Arc::from(source), emitter, by: "ann".to_owned() };
    world.ask(Request::DeployWorkflow { name: fed(), deployed: Box::new(deployed) })
}

/// Deployed, and its source dispatched.
fn deployed() -> (World, (ExecutionId, Attempt)) {
    let mut world = ready();
    deploy(&mut world, FED).unwrap();
    let source = world.dispatched_one("edge");
    (world, source)
}

fn record(world: &mut World, number: u64, value: i64) -> EmittedRecord {
    EmittedRecord {
        number,
        run: RunId::from_bits(u128::from(world.unique())),
        inputs: IndexMap::from_iter([("n".to_owned(), Value::Integer(value))]),
        offset: Some(Arc::from(value.to_string())),
        key: None,
    }
}

fn emit_all(
    world: &mut World,
    (execution, attempt): (ExecutionId, Attempt),
    records: Vec<EmittedRecord>,
) -> Result<(u64, Option<String>), Rejection> {
    let agent = world.agents["edge"].id;
    match world.ask(Request::Emit { agent, execution, attempt, records })? {
        Response::Emitted { through, offset, refused: None } => Ok((through, offset.map(|offset| offset.to_string()))),
        other => panic!("{other:?}"),
    }
}

fn emit(
    world: &mut World,
    source: (ExecutionId, Attempt),
    number: u64,
    value: i64,
) -> Result<(u64, Option<String>), Rejection> {
    let record = record(world, number, value);
    emit_all(world, source, vec![record])
}

fn asked(world: &mut World, source: (ExecutionId, Attempt)) -> (u64, Option<String>) {
    emit_all(world, source, Vec::new()).unwrap()
}

/// Values of the records that have started a run, in their order.
fn started(world: &World) -> Vec<Value> {
    let value = |fact: &Fact| match fact {
        Fact::RunSubmitted { workflow, inputs, .. } if workflow.name == "fed" => Some(inputs["n"].clone()),
        _ => None,
    };
    world.facts.iter().filter_map(value).collect()
}

fn numbers(values: &[i64]) -> Vec<Value> {
    values.iter().map(|value| Value::Integer(*value)).collect()
}

fn view(world: &World) -> DeploymentView {
    world.core.deployment(&fed()).unwrap()
}

#[test]
fn each_record_starts_one_run_however_often_it_is_said() {
    let (mut world, source) = deployed();
    assert_eq!(asked(&mut world, source), (0, None));
    assert_eq!(emit(&mut world, source, 1, 10), Ok((1, Some("10".to_owned()))));
    assert_eq!(emit(&mut world, source, 1, 10), Ok((1, Some("10".to_owned()))), "its answer was lost");
    let records = vec![record(&mut world, 1, 10), record(&mut world, 2, 20), record(&mut world, 3, 30)];
    assert_eq!(emit_all(&mut world, source, records), Ok((3, Some("30".to_owned()))));
    assert_eq!(started(&world), numbers(&[10, 20, 30]));
    world.restart();
    assert_eq!(emit(&mut world, source, 3, 30), Ok((3, Some("30".to_owned()))), "it is remembered");
    assert_eq!(started(&world), numbers(&[10, 20, 30]));
}

#[test]
fn the_next_attempt_goes_on_where_the_last_one_stopped_and_the_last_one_counts_no_more() {
    let (mut world, first) = deployed();
    world.start("edge", first);
    assert_eq!(view(&world).state, DeploymentState::Ready);
    emit(&mut world, first, 1, 10).unwrap();
    world.end("edge", first, failed("it has dried up"), Vec::new());
    assert!(matches!(emit(&mut world, first, 2, 20), Err(Rejection::Busy(_))), "what comes late comes again");
    let shown = view(&world);
    assert_eq!(shown.state, DeploymentState::Deploying);
    assert_eq!(shown.source.unwrap().last_error.as_deref(), Some("it has dried up"));
    world.advance(Duration::from_secs(2));
    let second = world.dispatched_one("edge");
    assert_eq!((second.0, second.1), (first.0, Attempt(first.1.0 + 1)));
    assert_eq!(asked(&mut world, second), (0, Some("10".to_owned())));
    assert_eq!(emit(&mut world, second, 1, 20), Ok((1, Some("20".to_owned()))));
    assert_eq!(started(&world), numbers(&[10, 20]));
    assert_eq!(view(&world).source.unwrap().restarts, 1);
}

#[test]
fn a_source_that_gets_on_is_begun_anew_at_once_however_often_it_has_failed() {
    let (mut world, mut source) = deployed();
    for time in 0..40 {
        emit(&mut world, source, 1, time).unwrap();
        let outcome = if time % 2 == 0 { failed("again") } else { interrupted() };
        world.end("edge", source, outcome, Vec::new());
        world.advance(Duration::from_millis(250));
        source = world.dispatched_one("edge");
    }
    assert_eq!(started(&world).len(), 40);
}

#[test]
fn a_source_that_never_emits_is_begun_anew_after_growing_pauses_and_never_given_up() {
    let (mut world, mut source) = deployed();
    for _ in 0..30 {
        world.end("edge", source, interrupted(), Vec::new());
        assert!(world.dispatched("edge").is_empty(), "it pauses");
        world.advance_with(Duration::from_secs(400), &["edge"]);
        source = world.dispatched_one("edge");
    }
}

#[test]
fn of_records_with_the_same_key_the_first_starts_a_run() {
    let (mut world, source) = deployed();
    let with_key = |record: EmittedRecord, key: &str| EmittedRecord { key: Some(key.to_owned()), ..record };
    let records = vec![record(&mut world, 1, 10), record(&mut world, 2, 20), record(&mut world, 3, 30)];
    let records = records.into_iter().zip(["a", "b", "a"]).map(|(record, key)| with_key(record, key)).collect();
    assert_eq!(emit_all(&mut world, source, records), Ok((3, Some("30".to_owned()))));
    assert_eq!(started(&world), numbers(&[10, 20]));
    assert_eq!(view(&world).emitted, 2);
}

#[test]
fn another_generation_begins_when_the_one_before_has_ended() {
    let (mut world, first) = deployed();
    world.start("edge", first);
    emit(&mut world, first, 1, 10).unwrap();
    deploy(&mut world, FED).unwrap();
    assert_eq!(view(&world).generation, 1, "nothing would change");
    deploy(&mut world, &format!("{FED}# again\n")).unwrap();
    assert_eq!((view(&world).generation, view(&world).state), (2, DeploymentState::Deploying));
    assert!(matches!(emit(&mut world, first, 2, 20), Err(Rejection::Busy(_))), "the former emits nothing more");
    assert!(world.dispatched("edge").iter().all(|(execution, _)| execution.run != first.0.run));
    world.end("edge", first, Outcome::Cancelled, Vec::new());
    let second = world.dispatched("edge").into_iter().find(|(execution, _)| execution.step == first.0.step).unwrap();
    assert_ne!(second.0.run, first.0.run);
    assert_eq!(asked(&mut world, second), (0, Some("10".to_owned())), "the source is the same");
    emit(&mut world, second, 1, 20).unwrap();
    assert_eq!(started(&world), numbers(&[10, 20]));
}

#[test]
fn a_request_that_comes_again_after_another_generation_was_deployed_changes_nothing() {
    let mut world = ready();
    let first = RunId::from_bits(u128::from(world.unique()));
    deploy_as(&mut world, FED, first).unwrap();
    let (source, _) = world.dispatched_one("edge");
    assert_eq!(source.run, first);
    let next = format!("{FED}# another\n");
    deploy(&mut world, &next).unwrap();
    let deployed = view(&world);
    assert_eq!(deploy_as(&mut world, FED, first), Ok(Response::Done));
    assert_eq!(view(&world), deployed);
    assert_eq!(deployed.generation, 2);
}

#[test]
fn what_is_undeployed_is_gone_when_its_source_is_and_its_runs_go_on() {
    let (mut world, source) = deployed();
    emit(&mut world, source, 1, -10).unwrap();
    assert_eq!(world.ask(Request::UndeployWorkflow { name: fed() }), Ok(Response::Done));
    assert_eq!(view(&world).state, DeploymentState::Draining);
    let removal = Request::RemoveAction { name: name("1") };
    assert!(matches!(world.ask(removal.clone()), Err(Rejection::Conflict(_))), "its source uses it");
    world.end("edge", source, Outcome::Cancelled, Vec::new());
    assert!(world.core.deployment(&fed()).is_none());
    let missing = world.ask(Request::UndeployWorkflow { name: fed() }).unwrap_err();
    assert!(missing.to_string().contains("it has none"), "{missing}");
    let run = world.dispatched("edge").into_iter().find(|(execution, _)| execution.run != source.0.run).unwrap();
    world.succeed("edge", run, Vec::new());
    assert_eq!(world.state(run.0.run), RunState::Succeeded);
    assert_eq!(world.ask(removal), Ok(Response::Done));
}

#[test]
fn a_source_that_nobody_can_run_is_refused_and_one_that_ends_by_itself_says_so() {
    let mut world = World::with_sites(&["edge"]);
    push(&mut world, "1", 1, &[]).unwrap();
    let refused = deploy(&mut world, FED).unwrap_err();
    assert!(refused.to_string().contains("no site can run step source"), "{refused}");
    assert!(world.core.deployment(&fed()).is_none());
    let (mut world, source) = deployed();
    world.succeed("edge", source, Vec::new());
    assert_eq!(view(&world).state, DeploymentState::Ended);
    deploy(&mut world, FED).unwrap();
    assert_eq!(view(&world).generation, 2, "deployed again it begins anew");
    world.dispatched_one("edge");
}

#[test]
fn an_action_that_was_not_pushed_is_refused() {
    let mut world = ready();
    let refused = deploy(&mut world, &FED.replace("clean@1", "other@1")).unwrap_err();
    assert!(refused.to_string().contains("the action other was not pushed"), "{refused}");
}

#[test]
fn a_workflow_without_a_source_is_ready_and_gone_at_once() {
    let mut world = ready();
    deploy(&mut world, "workflow: fed\nsteps: { a: { run: x } }\n").unwrap();
    assert_eq!(view(&world).state, DeploymentState::Ready);
    world.ask(Request::UndeployWorkflow { name: fed() }).unwrap();
    assert!(world.core.deployment(&fed()).is_none());
}

#[test]
fn services_are_ready_when_all_have_started_begin_anew_with_what_goes_down_and_fail_with_their_reason() {
    let mut world = ready();
    deploy(&mut world, SERVED).unwrap();
    let services = world.dispatched("edge");
    let [one, two] = services.as_slice() else { panic!("{services:?}") };
    world.start("edge", *one);
    let shown = view(&world);
    assert_eq!((shown.state, shown.source), (DeploymentState::Deploying, None));
    assert_eq!(shown.reason.as_deref(), Some("the service two is at its site, and not well yet"));
    let states: Vec<_> = shown.services.iter().map(|service| (service.name.as_str(), service.is_ready)).collect();
    assert_eq!(states, [("one", true), ("two", false)]);
    world.start("edge", *two);
    assert_eq!(view(&world).state, DeploymentState::Ready);
    assert!(matches!(emit(&mut world, *one, 1, 10), Err(Rejection::Busy(_))), "a service emits nothing");
    for crash in 1..=5 {
        let current = (one.0, Attempt(one.1.0 + crash - 1));
        world.end("edge", current, interrupted(), Vec::new());
        world.advance(Duration::from_millis(1));
        let again = world.dispatched_one("edge");
        assert_eq!(again, (one.0, Attempt(one.1.0 + crash)), "it is never given up for what goes down with it");
    }
    assert_eq!((view(&world).state, view(&world).services[0].restarts), (DeploymentState::Deploying, 5));
    let last = (one.0, Attempt(one.1.0 + 5));
    world.end("edge", last, failed("the service has ended 6 times in a row"), Vec::new());
    world.end("edge", *two, Outcome::Cancelled, Vec::new());
    let shown = view(&world);
    assert_eq!(shown.state, DeploymentState::Failed);
    assert!(shown.reason.unwrap().contains("the service has ended 6 times in a row"));
}

#[test]
fn a_source_that_fails_again_and_again_is_shown_as_failed_until_it_emits() {
    let (mut world, mut source) = deployed();
    for _ in 0..5 {
        assert_eq!(view(&world).state, DeploymentState::Deploying);
        world.end("edge", source, failed("it has dried up"), Vec::new());
        world.advance_with(Duration::from_secs(10), &["edge"]);
        source = world.dispatched_one("edge");
    }
    let shown = view(&world);
    assert_eq!(shown.state, DeploymentState::Failed);
    let reason = "its source has failed 5 times in a row and is begun again after a pause: it has dried up";
    assert_eq!(shown.reason.as_deref(), Some(reason));
    emit(&mut world, source, 1, 10).unwrap();
    assert_eq!(view(&world).state, DeploymentState::Deploying);
    world.start("edge", source);
    assert_eq!(view(&world).state, DeploymentState::Ready);
}

#[test]
fn only_the_agent_that_has_the_source_emits_for_it() {
    let (mut world, source) = deployed();
    world.add_site("hpc");
    let agent = world.agents["hpc"].id;
    let records = vec![record(&mut world, 1, 10)];
    let asked = world.ask(Request::Emit { agent, execution: source.0, attempt: source.1, records });
    assert!(matches!(asked, Err(Rejection::Busy(_))), "{asked:?}");
    assert!(started(&world).is_empty());
}
