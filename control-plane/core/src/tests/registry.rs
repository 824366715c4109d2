//! Versions of actions that people push: what they are, who uses them, when their bundles go.

use std::sync::Arc;
use std::time::Duration;

use atoll_model::action::{ActionKind, ActionReference, BundleSignature, PublicKey};
use atoll_model::id::{Attempt, ExecutionId, ObjectId, RunId};
use atoll_model::session::{CONTAINER_RUNTIME, NotStartedReason, Outcome, SiteCommand, TemplateWork, WASM_RUNTIME};
use atoll_model::time::Timestamp;
use atoll_model::value::{ObjectKind, ObjectRef};
use atoll_model::workflow::{Surroundings, Work, parse};

use super::world::{World, object};
use crate::view::{RunState, RunTags};
use crate::{ActionName, ActionVersion, Registry, Rejection, Request, Response};

const MANIFEST: &str = "name: clean\nversion: \"1.0\"\ncommand: [./clean]\nlabels: { domain: text }\n";
const USES: &str = "workflow: w\nsteps:\n  a: { action: clean@1.0 }\n";

pub(super) fn name(version: &str) -> ActionName {
    let reference = ActionReference { name: "clean".to_owned(), version: version.to_owned() };
    ActionName { project: "default".to_owned(), reference }
}

pub(super) fn bundle(number: u8) -> ObjectRef {
    ObjectRef { kind: ObjectKind::Tree, ..object(number, 100) }
}

pub(super) fn signature(key: u8) -> BundleSignature {
    BundleSignature::from_bytes(PublicKey::from_bytes([key; 32]), &[key; 64]).unwrap()
}

fn version(number: u8, signatures: &[u8]) -> Box<ActionVersion> {
    Box::new(ActionVersion {
        kind: ActionKind::Processor,
        bundle: bundle(number),
        manifest: Arc::from(MANIFEST),
        description: None,
        labels: [("domain".to_owned(), "text".to_owned())].into(),
        signatures: signatures.iter().copied().map(signature).collect(),
        pushed_by: "test".to_owned(),
        pushed_at: Timestamp::ZERO,
        deprecated: None,
    })
}

/// Sends the bundle in and pushes it.
pub(super) fn push(world: &mut World, named: &str, number: u8, signatures: &[u8]) -> Result<Response, Rejection> {
    world.carry_out_deletes();
    world.ask(Request::RecordUpload { object: bundle(number), key: None }).unwrap();
    world.ask(Request::PushAction { name: name(named), version: version(number, signatures) })
}

/// What was pushed, as a submission sees it.
struct Pushed(Arc<Registry>);

impl Surroundings for Pushed {
    fn action(&self, reference: &str) -> Result<Work, String> {
        let reference = reference.parse::<ActionReference>().map_err(|error| error.to_string())?;
        self.0.action(&ActionName { project: "default".to_owned(), reference })
    }
}

pub(super) fn submit(world: &mut World, source: &str) -> RunId {
    submit_as(world, source, RunTags::default())
}

fn submit_as(world: &mut World, source: &str, tags: RunTags) -> RunId {
    let workflow = Arc::new(parse("test.yaml", source, &Pushed(world.core.registry())).unwrap());
    let run = RunId::from_bits(u128::from(world.unique()));
    let (source, submitted_by, traceparent) = (Arc::from(source), "test".to_owned(), None);
    let inputs = Default::default();
    world.ask(Request::Submit { run, workflow, source, inputs, submitted_by, traceparent, tags }).unwrap();
    run
}

/// The site does not let the execution run.
fn refuse(world: &mut World, site: &str, execution: (ExecutionId, Attempt)) {
    let message = format!("the policy of {site} ({site}.yaml:3)");
    let outcome = Outcome::NotStarted { reason: NotStartedReason::Refused, message };
    world.end(site, execution, outcome, Vec::new());
}

#[test]
fn what_one_site_refuses_goes_to_another_at_once_and_never_there_again() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    let run = world.submit("workflow: w\nsteps:\n  a: { run: x, foreach: \"${{ range(40) }}\" }\n");
    let mut ended = 0;
    while world.state(run) != RunState::Succeeded {
        let at_edge = world.dispatched("edge");
        for execution in at_edge {
            refuse(&mut world, "edge", execution);
        }
        for execution in world.dispatched("hpc") {
            world.succeed("hpc", execution, Vec::new());
            ended += 1;
        }
        assert!(world.dispatched("edge").is_empty(), "it has said that it will not");
    }
    assert_eq!(ended, 40);
}

#[test]
fn what_every_site_refuses_fails_at_once_with_what_each_has_said() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    let run = world.submit("workflow: w\nsteps:\n  a: { run: x }\n  b: { run: y, after: a }\n");
    let first = ["edge", "hpc"].into_iter().find_map(|site| Some((site, *world.dispatched(site).first()?)));
    let (site, execution) = first.unwrap();
    world.succeed(site, execution, Vec::new());
    let mut refusals = 0;
    for _ in 0..2 {
        for site in ["edge", "hpc"] {
            for execution in world.dispatched(site) {
                refuse(&mut world, site, execution);
                refusals += 1;
            }
        }
    }
    assert_eq!((world.state(run), refusals), (RunState::Failed, 2), "in the middle of a run, and without a wait");
    let message = world.core.run(run).unwrap().error.unwrap().message;
    assert!(message.contains("edge.yaml:3") && message.contains("hpc.yaml:3"), "{message}");
    assert!(message.starts_with("no site can run it"), "{message}");
}

#[test]
fn a_site_that_begins_anew_is_asked_again() {
    let mut world = World::with_sites(&["edge"]);
    world.join("hpc", &[]);
    let run = world.submit("workflow: w\nsteps:\n  a: { run: x }\n");
    let execution = world.dispatched_one("edge");
    refuse(&mut world, "edge", execution);
    assert_eq!(world.state(run), RunState::Running, "a site whose agent has not come yet may do it");
    assert!(world.dispatched("edge").is_empty());
    world.disconnect("edge");
    world.agents.get_mut("edge").unwrap().incarnation += 1;
    world.connect("edge");
    world.advance_with(Duration::from_secs(60), &["edge"]);
    let execution = world.dispatched_one("edge");
    world.succeed("edge", execution, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
}

#[test]
fn sites_are_given_the_signatures_that_a_bundle_has() {
    let mut world = World::with_sites(&["edge"]);
    push(&mut world, "1.0", 20, &[1, 2]).unwrap();
    submit(&mut world, USES);
    let prepared = world.commands("edge").into_iter().find_map(|command| match command {
        SiteCommand::Prepare(template) => Some(template.work),
        _ => None,
    });
    let (command, signatures) = (vec!["./clean".to_owned()], vec![signature(1), signature(2)]);
    assert_eq!(prepared, Some(TemplateWork::SignedCommand { command, bundle: bundle(20), signatures }));
}

#[test]
fn containers_and_components_go_to_sites_that_can_run_them_as_their_bundle_alone() {
    let (bundle, signatures) = (bundle(20), vec![signature(1)]);
    let container = TemplateWork::Container { bundle, signatures: signatures.clone() };
    assert_eq!(prepared_at_a_site_with(CONTAINER_RUNTIME, "image: ./image.tar"), Some(container));
    let component = TemplateWork::Wasm { bundle, signatures };
    assert_eq!(prepared_at_a_site_with(WASM_RUNTIME, "command: [main.wasm]"), Some(component));
}

/// What is prepared at the one site that has the runtime.
fn prepared_at_a_site_with(runtime: &str, said: &str) -> Option<TemplateWork> {
    let mut world = World::with_sites(&["edge"]);
    world.join("hpc", &[]);
    world.agents.get_mut("hpc").unwrap().runtimes = vec!["command".to_owned(), runtime.to_owned()];
    world.connect("hpc");
    world.carry_out_deletes();
    world.ask(Request::RecordUpload { object: bundle(20), key: None }).unwrap();
    let manifest = format!("name: clean\nversion: \"1.0\"\nruntime: {runtime}\n{said}\n");
    let version = Box::new(ActionVersion { manifest: Arc::from(manifest.as_str()), ..*version(20, &[1]) });
    world.ask(Request::PushAction { name: name("1.0"), version }).unwrap();
    submit(&mut world, USES);
    world.commands("hpc").into_iter().find_map(|command| match command {
        SiteCommand::Prepare(template) => Some(template.work),
        _ => None,
    })
}

fn refused(answer: Result<Response, Rejection>) -> String {
    match answer {
        Err(Rejection::Conflict(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_version_is_pushed_once_and_never_becomes_something_else() {
    let mut world = World::with_sites(&["edge"]);
    assert_eq!(push(&mut world, "1.0", 20, &[]), Ok(Response::Done));
    let before = world.core.snapshot();
    let again = Request::PushAction { name: name("1.0"), version: version(20, &[]) };
    assert_eq!(world.ask(again), Ok(Response::Done), "the same again");
    assert_eq!(world.core.snapshot(), before, "changes nothing");
    let reason = refused(push(&mut world, "1.0", 21, &[]));
    assert!(reason.contains("never changes") && reason.contains(&bundle(20).id.to_string()), "{reason}");
    assert_eq!(push(&mut world, "1.1", 21, &[]), Ok(Response::Done));
    let registry = world.core.registry();
    let versions: Vec<&str> = registry.of_project("default").map(|(name, _)| name.reference.version.as_str()).collect();
    assert_eq!(versions, ["1.0", "1.1"]);
    assert_eq!(registry.of_project("other").count(), 0);
}

#[test]
fn what_was_not_sent_in_is_not_pushed() {
    let mut world = World::new();
    let push = Request::PushAction { name: name("1.0"), version: version(20, &[]) };
    assert!(matches!(world.ask(push), Err(Rejection::Invalid(reason)) if reason.contains("was not sent in")));
}

#[test]
fn a_missing_version_is_refused_with_what_there_is() {
    let mut world = World::new();
    push(&mut world, "1.0", 20, &[]).unwrap();
    let registry = world.core.registry();
    let missing = |text: &str| Pushed(Arc::clone(&registry)).action(text).unwrap_err();
    assert_eq!(missing("clean@2.0"), "clean has no version 2.0 in project default: it has 1.0");
    assert_eq!(missing("claen@1.0"), "there is no action claen in project default (did you mean `clean`?)");
    let other = ActionName { project: "other".to_owned(), ..name("1.0") };
    assert_eq!(
        registry.action(&other).unwrap_err(),
        "there is no action clean in project other (nothing was pushed there yet)"
    );
}

#[test]
fn a_run_has_the_digest_that_was_pushed_when_it_was_submitted() {
    let mut world = World::with_sites(&["edge"]);
    push(&mut world, "1.0", 20, &[]).unwrap();
    let run = submit(&mut world, USES);
    let templates: Vec<TemplateWork> = world
        .commands("edge")
        .into_iter()
        .filter_map(|command| if let SiteCommand::Prepare(template) = command { Some(template.work) } else { None })
        .collect();
    let [TemplateWork::Command { command, bundle: used }] = templates.as_slice() else { panic!("{templates:?}") };
    assert_eq!((command.as_slice(), *used), (["./clean".to_owned()].as_slice(), Some(bundle(20))));
    assert_eq!(world.state(run), RunState::Running);
}

#[test]
fn a_deprecated_version_is_said_to_be_and_goes_on_working() {
    let mut world = World::with_sites(&["edge"]);
    push(&mut world, "1.0", 20, &[]).unwrap();
    let before = submit(&mut world, USES);
    assert_eq!(world.core.deprecations(before), [""; 0]);
    let advise = |advice: Option<&str>| {
        let advice = advice.map(|reason| (Some(reason.to_owned()), "somebody".to_owned()));
        Request::DeprecateAction { name: name("1.0"), advice }
    };
    assert_eq!(world.ask(advise(Some("use 1.1"))), Ok(Response::Done));
    let after = submit(&mut world, USES);
    for run in [before, after] {
        assert_eq!(world.core.deprecations(run), ["step a uses clean 1.0, which is deprecated: use 1.1"]);
    }
    for execution in world.dispatched("edge") {
        world.succeed("edge", execution, Vec::new());
    }
    assert_eq!((world.state(before), world.state(after)), (RunState::Succeeded, RunState::Succeeded));
    assert_eq!(world.ask(advise(None)), Ok(Response::Done));
    assert_eq!(world.core.deprecations(after), [""; 0]);
    let unknown = Request::DeprecateAction { name: name("2.0"), advice: None };
    assert!(matches!(world.ask(unknown), Err(Rejection::NotFound(_))));
}

#[test]
fn a_version_that_a_live_run_uses_is_not_removed_and_its_bundle_goes_with_the_last() {
    let mut world = World::with_sites(&["edge"]);
    push(&mut world, "1.0", 20, &[]).unwrap();
    push(&mut world, "1.1", 20, &[]).unwrap();
    let run = submit(&mut world, USES);
    let remove = |version: &str| Request::RemoveAction { name: name(version) };
    let reason = refused(world.ask(remove("1.0")));
    assert!(reason.contains(&run.to_string()) && reason.contains("deprecate"), "{reason}");
    assert_eq!(world.ask(remove("1.1")), Ok(Response::Done), "the run uses another");
    let execution = world.dispatched_one("edge");
    world.succeed("edge", execution, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
    world.advance_with(Duration::from_secs(2 * 3_600), &["edge"]);
    assert_eq!(world.carry_out_deletes(), Vec::<ObjectId>::new(), "what was pushed stays in the bucket");
    assert_eq!(world.ask(remove("1.0")), Ok(Response::Done));
    assert_eq!(world.carry_out_deletes(), [bundle(20).id]);
    assert!(matches!(world.ask(remove("1.0")), Err(Rejection::NotFound(reason)) if reason.contains("was removed")));
    assert!(refused(push(&mut world, "1.0", 21, &[])).contains("never changes"), "nor does it come to be another");
    assert_eq!(push(&mut world, "1.0", 20, &[]), Ok(Response::Done));
}

#[test]
fn a_run_of_another_project_keeps_the_bundle_and_not_the_version() {
    let mut world = World::with_sites(&["edge"]);
    push(&mut world, "1.0", 20, &[]).unwrap();
    let run = submit_as(&mut world, USES, RunTags { project: "other".to_owned(), ..RunTags::default() });
    assert_eq!(world.ask(Request::RemoveAction { name: name("1.0") }), Ok(Response::Done));
    assert_eq!(world.carry_out_deletes(), Vec::<ObjectId>::new(), "the run reads it");
    let execution = world.dispatched_one("edge");
    world.succeed("edge", execution, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
    assert_eq!(world.carry_out_deletes(), [bundle(20).id]);
}

#[test]
fn signatures_are_added_to_what_was_pushed_each_key_once() {
    let mut world = World::new();
    push(&mut world, "1.0", 20, &[1]).unwrap();
    push(&mut world, "1.0", 20, &[1, 2]).unwrap();
    let registry = world.core.registry();
    assert_eq!(registry.get(&name("1.0")).unwrap().signatures, [signature(1), signature(2)]);
    let many: Vec<u8> = (3..20).collect();
    assert!(matches!(push(&mut world, "1.0", 20, &many), Err(Rejection::Invalid(_))));
    world.restart();
    assert_eq!(*world.core.registry(), *registry);
}
