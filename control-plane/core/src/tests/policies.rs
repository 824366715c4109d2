//! Rules: those of projects and those of workflows, what follows when they change, and what sites refuse by themselves.

use std::sync::Arc;

use atoll_model::id::RunId;
use atoll_model::policy::parse;
use atoll_model::session::{NotStartedReason, PushFailure, Report, SiteCommand};

use super::world::{World, execution, file, not_started, object, workflow};
use crate::view::{ExecutionState, LedgerFilter, RunState, RunTags};
use crate::{PolicyApplication, Rejection, Request, Response};

const TWO_STEPS: &str = "workflow: w\nsteps:\n  make: { run: x, site: edge, outputs: { f: file } }\n  use: { run: x, foreach: \"${{ range(1) }}\", with: { f: \"${{ steps.make.outputs.f }}\" }, site: [edge, hpc] }\n";
const FAR: &str = "workflow: w\nsteps:\n  make: { run: x, site: edge, outputs: { f: file } }\n  use: { run: x, with: { f: \"${{ steps.make.outputs.f }}\" }, site: hpc }\n";

pub(super) fn application(project: &str, source: &str) -> PolicyApplication {
    PolicyApplication {
        project: project.to_owned(),
        policy: parse("eu.yaml", source).unwrap(),
        source: Arc::from(source),
        applied_by: "ada".to_owned(),
        instead_of: None,
    }
}

pub(super) fn apply(world: &mut World, source: &str) {
    let application = Box::new(application("default", source));
    assert_eq!(world.ask(Request::ApplyPolicy { application }), Ok(Response::Done));
}

fn refused(world: &mut World, source: &str) -> String {
    match world.try_submit(source, &[]) {
        Err(Rejection::Invalid(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

/// A run whose second step waits at `hpc` for what `edge` is pushing.
fn pushing() -> (World, RunId, atoll_model::id::TransferId) {
    let mut world = World::with_sites(&["edge", "hpc"]);
    let run = world.submit(FAR);
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000)]);
    let (transfer, _) = world.pushes("edge")[0];
    (world, run, transfer)
}

#[test]
fn the_rules_of_a_project_confine_what_its_runs_make_and_a_veto_names_file_and_line() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    apply(&mut world, "placement:\n  - match: { step: make }\n    confine: edge\n");
    let reason = refused(&mut world, FAR);
    assert!(reason.contains("hpc: eu.yaml:2"), "{reason}");
    let run = world.submit(TWO_STEPS);
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000)]);
    let reader = world.dispatched_one("edge");
    assert!(world.pushes("edge").is_empty());
    let why = world.core.why_execution(reader.0).unwrap();
    let hpc = why.sites.iter().find(|verdict| verdict.site.as_str() == "hpc").unwrap();
    assert!(!hpc.feasible && hpc.reason.contains("eu.yaml:2"), "{}", hpc.reason);
    let plan = world.core.plan(&workflow(TWO_STEPS), &Default::default(), &RunTags::default());
    let of_reader = &plan.steps[1].1;
    let hpc = of_reader.sites.iter().find(|verdict| verdict.site.as_str() == "hpc").unwrap();
    assert!(hpc.reason.contains("eu.yaml:2"), "{}", hpc.reason);
    let view = world.core.object(object(1, 1_000).id).unwrap();
    assert_eq!(view.confined_to.unwrap().iter().map(|site| site.as_str()).collect::<Vec<_>>(), ["edge"]);
    assert!(view.rules[0].contains("eu.yaml:2"), "{:?}", view.rules);
    let rules = world.core.run_rules(run).unwrap();
    assert_eq!(rules.version, Some(1));
    assert!(rules.data[0].bucket_closed.as_ref().unwrap().contains("eu.yaml:2"));
}

#[test]
fn a_confined_object_is_not_brought_out_by_a_person_nor_when_its_run_has_left_memory() {
    let mut world = World::with_sites(&["edge"]);
    apply(&mut world, "placement:\n  - confine: { to: edge, bucket: allowed }\n");
    let source = "workflow: w\nsteps:\n  make: { run: x, site: edge, outputs: { f: file } }\n";
    let run = world.submit(source);
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000)]);
    assert_eq!(world.state(run), RunState::Succeeded);
    let kept = world.core.finished_run(run).unwrap();
    let hold = std::time::Duration::from_secs(60);
    let stage = |kept| Request::StageForClient { run, object: object(1, 1_000), hold, kept };
    let staged = world.ask(stage(None));
    assert!(matches!(&staged, Err(Rejection::Forbidden(reason)) if reason.contains("eu.yaml:2")), "{staged:?}");
    world.advance(std::time::Duration::from_secs(8 * 24 * 3_600));
    assert!(world.core.finished_run(run).is_none(), "it has left memory");
    let staged = world.ask(stage(Some(Box::new(kept))));
    assert!(matches!(&staged, Err(Rejection::Forbidden(reason)) if reason.contains("eu.yaml:2")), "{staged:?}");
    assert!(world.pushes("edge").is_empty());
}

#[test]
fn rules_of_a_project_and_of_a_workflow_add_up() {
    let mut world = World::with_sites(&["edge", "hpc", "cloud"]);
    apply(&mut world, "placement:\n  - confine: [edge, hpc]\n");
    let confined = format!("{}placement:\n  - confine: [hpc, cloud]\n", TWO_STEPS.replace("site: edge", "site: hpc"));
    world.submit(&confined);
    let make = world.dispatched_one("hpc");
    world.succeed("hpc", make, vec![file(1, 1_000)]);
    let reader = world.dispatched_one("hpc");
    let why = world.core.why_execution(reader.0).unwrap();
    let reason = |site: &str| why.sites.iter().find(|verdict| verdict.site.as_str() == site).unwrap().reason.clone();
    assert!(reason("edge").contains("test.yaml:"), "{}", reason("edge"));
    let nowhere = format!("{FAR}placement:\n  - match: {{ step: make }}\n    confine: cloud\n");
    assert!(refused(&mut world, &nowhere).contains("no site can run step make"), "both are named");
}

#[test]
fn a_rule_about_large_objects_lets_small_ones_go_once_their_size_is_known() {
    for (bytes, goes) in [(1_000, true), (2 << 30, false)] {
        let mut world = World::with_sites(&["edge", "hpc"]);
        apply(&mut world, "placement:\n  - match: { bytes: '>= 1GiB' }\n    push: never\n");
        let run = world.submit(FAR.replace("site: hpc", "site: [hpc]").as_str());
        let make = world.dispatched_one("edge");
        world.succeed("edge", make, vec![file(1, bytes)]);
        assert_eq!(!world.pushes("edge").is_empty(), goes, "{bytes}");
        let state = if goes { RunState::Running } else { RunState::Failed };
        assert_eq!(world.state(run), state);
    }
}

#[test]
fn versions_are_remembered_with_who_and_when_and_a_stale_one_replaces_nothing() {
    let mut world = World::with_sites(&["edge"]);
    apply(&mut world, "placement:\n  - push: never\n");
    apply(&mut world, "placement:\n  - push: never\n");
    apply(&mut world, "placement:\n  - push: eager\n");
    let stale = PolicyApplication { instead_of: Some(1), ..application("default", "placement: []\n") };
    let answer = world.ask(Request::ApplyPolicy { application: Box::new(stale) });
    assert!(matches!(answer, Err(Rejection::Conflict(_))), "{answer:?}");
    let versions = world.core.policies("default");
    assert_eq!(versions.iter().map(|applied| applied.version).collect::<Vec<_>>(), [1, 2]);
    assert!(versions.iter().all(|applied| applied.applied_by == "ada" && applied.at == world.now));
    assert!(world.core.policies("other").is_empty());
}

#[test]
fn a_push_that_a_new_rule_forbids_is_cancelled_and_its_reader_fails_with_the_rule() {
    let (mut world, run, transfer) = pushing();
    assert_eq!(world.state_of(execution(run, 1, 0)), ExecutionState::Placed);
    apply(&mut world, "placement:\n  - confine: edge\n");
    let cancelled = world
        .commands("edge")
        .into_iter()
        .any(|command| matches!(command, SiteCommand::CancelPush { transfer: cancelled } if cancelled == transfer));
    assert!(cancelled, "the push is called back");
    let (reason, message) = (PushFailure::Cancelled, "cancelled".to_owned());
    world.report("edge", vec![Report::PushFailed { transfer, object: object(1, 1_000), reason, message }]);
    world.carry_out_looks(false);
    world.carry_out_deletes();
    assert_eq!(world.state(run), RunState::Failed);
    let error = world.core.run(run).unwrap().error.unwrap();
    assert!(error.message.contains("eu.yaml:2"), "{}", error.message);
    assert!(world.core.ledger(&LedgerFilter::default()).is_empty());
}

#[test]
fn what_a_new_rule_allows_is_done_for_runs_that_go_on() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    apply(&mut world, "placement:\n  - push: never\n");
    let run = world.submit(TWO_STEPS);
    let make = world.dispatched_one("edge");
    apply(&mut world, "placement:\n  - push: eager\n");
    world.succeed("edge", make, vec![file(1, 1_000)]);
    assert_eq!(world.pushes("edge").len(), 1);
    assert_eq!(world.state(run), RunState::Running);
}

#[test]
fn what_a_rule_wants_on_success_is_pushed_then_and_kept_as_long_as_it_says() {
    let mut world = World::with_sites(&["edge"]);
    apply(&mut world, "placement:\n  - push: on-success\n    keep: { for: 2d after run.end }\n");
    let source = "workflow: w\nsteps:\n  make: { run: x, site: edge, outputs: { f: file } }\n";
    let run = world.submit(source);
    let make = world.dispatched_one("edge");
    assert!(world.pushes("edge").is_empty());
    world.succeed("edge", make, vec![file(1, 1_000)]);
    assert_eq!(world.state(run), RunState::Succeeded);
    let (transfer, pushed) = world.pushes("edge")[0];
    let at = world.now;
    world.report("edge", vec![Report::Pushed { transfer, object: pushed, wire_bytes: 1_000, at }]);
    assert_eq!(world.objects_in_bucket(), 1);
    world.advance(std::time::Duration::from_secs(47 * 3_600));
    assert_eq!(world.objects_in_bucket(), 1);
    world.advance(std::time::Duration::from_secs(2 * 3_600));
    assert_eq!(world.carry_out_deletes().first(), Some(&pushed.id));
    let entry = &world.core.ledger(&LedgerFilter::default())[0];
    assert_eq!(entry.rule, "eu.yaml:2");
}

#[test]
fn what_was_pushed_by_a_rule_without_a_time_goes_from_the_bucket_with_its_run() {
    let mut world = World::with_sites(&["edge"]);
    apply(&mut world, "placement:\n  - push: on-success\n");
    world.submit("workflow: w\nsteps:\n  make: { run: x, site: edge, outputs: { f: file } }\n");
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000)]);
    let (transfer, pushed) = world.pushes("edge")[0];
    let at = world.now;
    world.report("edge", vec![Report::Pushed { transfer, object: pushed, wire_bytes: 1_000, at }]);
    world.advance_with(world.config.keep_finished / 2, &["edge"]);
    assert_eq!((world.carry_out_deletes().len(), world.objects_in_bucket()), (0, 1));
    world.advance_with(world.config.keep_finished, &["edge"]);
    assert_eq!(world.carry_out_deletes(), [pushed.id], "the run is remembered no more, and nobody else wants it");
}

#[test]
fn what_a_site_does_not_give_is_read_where_it_is() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    let run = world.submit(TWO_STEPS);
    let make = world.dispatched_one("edge");
    let drain = |drained| Request::DrainSite { site: "edge".parse().unwrap(), drained };
    world.ask(drain(true)).unwrap();
    world.succeed("edge", make, vec![file(1, 1_000)]);
    let (transfer, pushed) = world.pushes("edge")[0];
    let (reason, message) = (PushFailure::Forbidden, "not from here (policy.yaml:4)".to_owned());
    world.report("edge", vec![Report::PushFailed { transfer, object: pushed, reason, message }]);
    world.carry_out_deletes();
    let reader = execution(run, 1, 0);
    assert_eq!(world.state_of(reader), ExecutionState::Ready);
    let waits = world.core.execution(reader).unwrap().waiting_for.unwrap();
    assert!(waits.contains("policy.yaml:4"), "{waits}");
    world.ask(drain(false)).unwrap();
    assert_eq!(world.dispatched_one("edge").0, reader);
    assert!(world.dispatched("hpc").is_empty());
}

#[test]
fn a_site_that_refuses_a_push_is_not_asked_again_and_the_reader_fails_with_its_rule() {
    let (mut world, run, transfer) = pushing();
    let message = "the site's own policy does not let it leave (/etc/atoll/policy.yaml:4)".to_owned();
    let reason = PushFailure::Forbidden;
    world.report("edge", vec![Report::PushFailed { transfer, object: object(1, 1_000), reason, message }]);
    world.carry_out_looks(false);
    world.carry_out_deletes();
    assert_eq!(world.pushes("edge").len(), 0, "nothing is asked for again");
    assert_eq!(world.state(run), RunState::Failed);
    let error = world.core.run(run).unwrap().error.unwrap();
    assert!(error.message.contains("/etc/atoll/policy.yaml:4"), "{}", error.message);
    let view = world.core.object(object(1, 1_000).id).unwrap();
    assert_eq!(view.withheld.len(), 1);
}

#[test]
fn an_object_that_comes_to_be_confined_is_given_to_no_reader_elsewhere_by_any_way() {
    let (mut world, run, transfer) = pushing();
    let at = world.now;
    world.report("edge", vec![Report::Pushed { transfer, object: object(1, 1_000), wire_bytes: 1_000, at }]);
    let reader = world.dispatched_one("hpc");
    let agent = world.agents["hpc"].id;
    let fetch = || Request::AuthoriseFetch { agent, object: object(1, 1_000).id };
    assert!(world.ask(fetch()).is_ok());
    for (site, agent) in [("edge", world.agents["edge"].id), ("hpc", agent)] {
        world.ask(Request::Advertise { agent, addresses: vec![site.to_owned()], relays: false }).unwrap();
    }
    apply(&mut world, "placement:\n  - confine: { to: edge, bucket: allowed }\n");
    let answer = world.ask(fetch());
    assert!(matches!(&answer, Err(Rejection::Forbidden(reason)) if reason.contains("eu.yaml:2")), "{answer:?}");
    let offered = world.ask(Request::Offers { agent, object: object(1, 1_000).id });
    assert!(matches!(&offered, Ok(Response::Offered { holders, .. }) if holders.is_empty()), "{offered:?}");
    assert!(world.pushes("edge").is_empty());
    world.end("hpc", reader, not_started(NotStartedReason::InputUnavailable), Vec::new());
    world.advance_with(std::time::Duration::from_secs(60), &["edge", "hpc"]);
    assert_eq!(world.state(run), RunState::Failed);
    let error = world.core.run(run).unwrap().error.unwrap();
    assert!(error.message.contains("eu.yaml:2"), "{}", error.message);
}
