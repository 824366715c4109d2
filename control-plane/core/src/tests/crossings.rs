//! Nothing crosses a border that nobody there reads any more, and nothing that has crossed does so again.

use std::time::Duration;

use atoll_model::id::TransferId;
use atoll_model::session::{LocalState, NotStartedReason, PushFailure, Report, SiteCommand};
use atoll_model::value::Value;

use super::data::{TWO_SITES, pushed_bytes, waiting_for_a_push};
use super::world::{World, execution, file, item, not_started, object};
use crate::view::{ExecutionState, RunState};
use crate::{Rejection, Request};

const LOST_AFTER: Duration = Duration::from_secs(16 * 60);

fn is_called_back(world: &mut World, transfer: TransferId) -> bool {
    let cancels = |command: &SiteCommand| matches!(command, SiteCommand::CancelPush { transfer: t } if *t == transfer);
    world.commands("edge").iter().any(cancels)
}

fn drain(world: &mut World, site: &str, drained: bool) {
    world.ask(Request::DrainSite { site: site.parse().unwrap(), drained }).unwrap();
}

#[test]
fn what_came_to_the_bucket_from_a_site_that_was_lost_is_not_made_again() {
    let (mut world, run) = waiting_for_a_push(TWO_SITES);
    world.pushes("edge");
    world.disconnect("edge");
    world.advance_with(LOST_AFTER, &["hpc"]);
    assert_eq!(world.state_of(execution(run, 1, 0)), ExecutionState::Placed, "it waits for who looks");
    assert_eq!(world.carry_out_looks(true), 1);
    let reader = world.dispatched_one("hpc");
    world.succeed("hpc", reader, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
    assert_eq!(pushed_bytes(&world), [1_000]);
}

#[test]
fn a_push_is_called_back_when_its_reader_is_given_to_a_site_that_has_the_object() {
    let source = "workflow: w\nsteps:\n  make: { run: x, site: edge, outputs: { f: file } }\n  other: { run: x, site: hpc, outputs: { n: integer } }\n  use: { run: x, with: { f: \"${{ steps.make.outputs.f }}\", n: \"${{ steps.other.outputs.n }}\" } }\n";
    let mut world = World::with_sites(&["edge", "hpc"]);
    let run = world.submit(source);
    let (make, other) = (world.dispatched_one("edge"), world.dispatched_one("hpc"));
    drain(&mut world, "edge", true);
    world.succeed("edge", make, vec![file(1, 1_000)]);
    world.succeed("hpc", other, vec![Value::Integer(1)]);
    let (transfer, pushed) = world.pushes("edge")[0];
    drain(&mut world, "edge", false);
    world.disconnect("hpc");
    world.advance_with(LOST_AFTER, &["edge"]);
    assert!(is_called_back(&mut world, transfer));
    assert!(world.ask(Request::AuthorisePush { agent: world.agents["edge"].id, transfer }).is_err());
    // Refused or cancelled, it counts as no failure of the bucket.
    let (reason, message) = (PushFailure::Refused, "it was cancelled".to_owned());
    world.report("edge", vec![Report::PushFailed { transfer, object: pushed, reason, message }]);
    world.carry_out_deletes();
    assert_eq!(world.core.execution(execution(run, 2, 0)).unwrap().site.unwrap().as_str(), "edge");
    assert_eq!(pushed_bytes(&world), [0; 0]);
}

#[test]
fn what_is_made_where_somebody_waits_for_it_is_not_waited_for() {
    let source = "workflow: w\nsteps:\n  make: { run: x, site: edge, outputs: { f: file } }\n  same: { run: x, site: hpc, outputs: { f: file } }\n  use: { run: x, site: hpc, with: { f: \"${{ steps.make.outputs.f }}\" } }\n";
    let mut world = World::with_sites(&["edge", "hpc"]);
    let run = world.submit(source);
    let (make, same) = (world.dispatched_one("edge"), world.dispatched_one("hpc"));
    world.succeed("edge", make, vec![file(1, 1_000)]);
    let (transfer, _) = world.pushes("edge")[0];
    world.succeed("hpc", same, vec![file(1, 1_000)]);
    assert_eq!(world.dispatched_one("hpc").0, execution(run, 2, 0));
    assert!(is_called_back(&mut world, transfer));
}

#[test]
fn c4_what_a_late_outcome_has_made_as_well_is_known_to_be_there() {
    let source = "workflow: w\nsteps:\n  make: { run: x, outputs: { f: file } }\n  other: { run: x, site: hpc, outputs: { n: integer } }\n  use: { run: x, site: edge, with: { f: \"${{ steps.make.outputs.f }}\", n: \"${{ steps.other.outputs.n }}\" } }\n";
    let mut world = World::with_sites(&["edge", "hpc"]);
    drain(&mut world, "hpc", true);
    let run = world.submit(source);
    let first = world.dispatched_one("edge");
    world.start("edge", first);
    drain(&mut world, "hpc", false);
    let other = world.dispatched_one("hpc");
    world.disconnect("edge");
    world.advance_with(LOST_AFTER, &["hpc"]);
    let second = world.dispatched_one("hpc");
    world.succeed("hpc", second, vec![file(1, 1_000)]);
    world.connect_with("edge", vec![item(first, LocalState::Finished)]);
    world.succeed("edge", first, vec![file(1, 1_000)]);
    assert_eq!(world.core.object(object(1, 1_000).id).unwrap().replicas, ["edge", "hpc"]);
    world.succeed("hpc", other, vec![Value::Integer(1)]);
    let reader = world.dispatched_one("edge");
    assert_eq!(reader.0, execution(run, 2, 0));
    world.succeed("edge", reader, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
    assert_eq!(pushed_bytes(&world), [0; 0]);
}

#[test]
fn what_is_to_be_cancelled_fetches_nothing_more() {
    let (mut world, run) = waiting_for_a_push(TWO_SITES);
    let (transfer, pushed) = world.pushes("edge")[0];
    world.report("edge", vec![Report::Pushed { transfer, object: pushed, wire_bytes: 1_000, at: world.now }]);
    let reader = world.dispatched_one("hpc");
    let agent = world.agents["hpc"].id;
    let fetch = |world: &mut World| world.ask(Request::AuthoriseFetch { agent, object: pushed.id });
    assert!(fetch(&mut world).is_ok());
    world.ask(Request::CancelRun { run, reason: "no more".to_owned() }).unwrap();
    assert!(matches!(fetch(&mut world), Err(Rejection::Forbidden(_))), "its agent has not heard yet");
    world.end("hpc", reader, not_started(NotStartedReason::InputUnavailable), Vec::new());
    assert_eq!(world.state(run), RunState::Cancelled);
}
