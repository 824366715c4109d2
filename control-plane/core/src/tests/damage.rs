//! Copies that are damaged or lost: found, replaced from another copy, or made again.

use std::time::Duration;

use atoll_model::id::Attempt;
use atoll_model::session::{BindingSource, FaultLocation, NotStartedReason, PushFailure, Report, SiteCommand};
use atoll_model::value::{ObjectKind, ObjectRef};

use super::data::{LISTED, TWO_SITES, fetch, sent_in, waiting_for_a_push};
use super::eviction::propose;
use super::world::{World, execution, file, object};
use crate::view::{ExecutionState, RunState};
use crate::{Rejection, Request};

/// A site says that it has no sound copy of it.
pub(super) fn lost(object: ObjectRef) -> Report {
    let (location, message) = (FaultLocation::SiteStore, "damaged".to_owned());
    Report::Fault { object: object.id, kind: object.kind, location, message }
}

/// The copy at `edge`, of an object that has no other, turns out to be damaged when it is to be pushed.
fn lose_what_is_pushed(world: &mut World) {
    let (transfer, pushed) = world.pushes("edge")[0];
    let (reason, message) = (PushFailure::Unavailable, "damaged".to_owned());
    world.report("edge", vec![lost(pushed), Report::PushFailed { transfer, object: pushed, reason, message }]);
    world.carry_out_looks(false);
    world.carry_out_deletes();
}

#[test]
fn d5_an_object_of_which_no_copy_is_left_is_made_again() {
    let (mut world, run) = waiting_for_a_push(TWO_SITES);
    let (transfer, pushed) = world.pushes("edge")[0];
    let failed = Report::PushFailed {
        transfer,
        object: pushed,
        reason: PushFailure::Unavailable,
        message: "damaged".to_owned(),
    };
    world.report("edge", vec![lost(pushed), failed]);
    world.carry_out_deletes();
    let again = world.dispatched_one("edge");
    assert_eq!((again.0, again.1.0), (execution(run, 0, 0), 2));
    world.succeed("edge", again, vec![file(1, 1_000), file(2, 2_000)]);
    assert_eq!(world.carry_out_pushes("edge"), 1);
    let reader = world.dispatched_one("hpc");
    world.succeed("hpc", reader, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
}

#[test]
fn d5_what_another_run_made_first_is_made_again_by_the_run_that_reads_it() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    let first = world.submit("workflow: w\nsteps:\n  a: { run: x, site: edge, outputs: { f: file } }\n");
    let made = world.dispatched_one("edge");
    world.succeed("edge", made, vec![file(1, 1_000)]);
    assert_eq!(world.state(first), RunState::Succeeded);
    let run = world.submit(TWO_SITES);
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000), file(2, 2_000)]);
    lose_what_is_pushed(&mut world);
    let again = world.dispatched_one("edge");
    assert_eq!((again.0, again.1.0), (execution(run, 0, 0), 2));
}

#[test]
fn d5_what_can_be_made_by_its_own_reader_only_fails_its_readers() {
    let source = "workflow: w
steps:
  make: { run: x, site: edge, start: at-most-once, outputs: { f: file } }
  pass: { run: x, site: edge, with: { f: \"${{ steps.make.outputs.f }}\" }, outputs: { f: file } }
  use: { run: x, site: hpc, with: { f: \"${{ steps.pass.outputs.f }}\" } }
";
    let mut world = World::with_sites(&["edge", "hpc"]);
    let run = world.submit(source);
    for next in world.dispatched("edge") {
        world.succeed("edge", next, vec![file(1, 1_000)]);
    }
    lose_what_is_pushed(&mut world);
    assert_eq!(world.state(run), RunState::Failed);
    let message = world.core.run(run).unwrap().error.unwrap().message;
    assert!(message.contains("cannot be made again"), "{message}");
}

#[test]
fn d5_a_copy_that_another_run_makes_serves_those_that_wait() {
    let (mut world, run) = waiting_for_a_push(TWO_SITES);
    let (transfer, pushed) = world.pushes("edge")[0];
    let reason = PushFailure::Unavailable;
    world.report("edge", vec![Report::PushFailed { transfer, object: pushed, reason, message: "gone".to_owned() }]);
    world.carry_out_deletes();
    assert_eq!(world.state_of(execution(run, 1, 0)), ExecutionState::Ready);
    world.submit("workflow: other\nsteps:\n  make: { run: x, site: hpc, outputs: { f: file } }\n");
    let make = world.dispatched_one("hpc");
    world.succeed("hpc", make, vec![file(1, 1_000)]);
    assert_eq!(world.dispatched_one("hpc").0, execution(run, 1, 0));
}

#[test]
fn d5_an_object_that_cannot_be_made_again_fails_its_readers_by_name() {
    let source = TWO_SITES.replace("make: { run: x,", "make: { run: x, start: at-most-once,");
    let (mut world, run) = waiting_for_a_push(&source);
    let (transfer, pushed) = world.pushes("edge")[0];
    let reason = PushFailure::Unavailable;
    world.report("edge", vec![Report::PushFailed { transfer, object: pushed, reason, message: "gone".to_owned() }]);
    world.carry_out_deletes();
    assert_eq!(world.state(run), RunState::Failed);
    assert!(world.core.run(run).unwrap().error.unwrap().message.contains(&pushed.id.to_string()));
}

#[test]
fn d6_a_damaged_copy_in_the_bucket_is_replaced() {
    let (mut world, run) = waiting_for_a_push(TWO_SITES);
    world.carry_out_pushes("edge");
    let reader = world.dispatched_one("hpc");
    let (location, message) = (FaultLocation::Bucket, "digest differs".to_owned());
    let id = object(1, 1_000).id;
    world.report("hpc", vec![Report::Fault { object: id, kind: ObjectKind::File, location, message }]);
    let agent = world.agents["hpc"].id;
    let unavailable = world.ask(Request::AuthoriseFetch { agent, object: id });
    assert!(matches!(unavailable, Err(Rejection::Unavailable(_))));
    assert!(world.pushes("edge").is_empty(), "not while the damaged copy is being deleted");
    assert_eq!(world.carry_out_deletes(), [id]);
    assert_eq!(world.carry_out_pushes("edge"), 1);
    assert!(world.ask(Request::AuthoriseFetch { agent, object: id }).is_ok());
    world.succeed("hpc", reader, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
}

#[test]
fn d6_a_damaged_directory_that_was_sent_in_fails_those_who_read_its_files() {
    let mut world = World::with_sites(&["edge"]);
    let (tree, all) = sent_in(&mut world);
    let run = world.try_submit(LISTED.replace("hpc", "edge").as_str(), &[("all", all)]).unwrap();
    let each = world.dispatched("edge");
    let agent = world.agents["edge"].id;
    let fetch = Request::AuthoriseFetch { agent, object: object(1, 200).id };
    assert!(world.ask(fetch.clone()).is_ok());
    let message = "the bytes of file 1 have another digest".to_owned();
    for id in [tree.id, object(1, 200).id] {
        world.ask(Request::BucketFault { agent, object: id, message: message.clone() }).unwrap();
    }
    world.carry_out_deletes();
    let reason = NotStartedReason::InputUnavailable;
    for execution in each {
        world.end("edge", execution, super::world::not_started(reason), Vec::new());
    }
    world.advance_with(Duration::from_secs(60), &["edge"]);
    assert_eq!(world.state(run), RunState::Failed);
    let message = world.core.run(run).unwrap().error.unwrap().message;
    assert!(message.contains("no copy of its input"), "{message}");
}

#[test]
fn d5_a_site_that_says_it_has_no_copy_is_believed_and_one_that_never_had_one_changes_nothing() {
    let (mut world, _) = waiting_for_a_push(TWO_SITES);
    let one = object(1, 1_000);
    let replicas = |world: &World| world.core.object(one.id).unwrap().replicas;
    world.report("hpc", vec![lost(one)]);
    assert_eq!((replicas(&world), world.pushes("edge").len()), (vec!["edge".to_owned()], 1));
    world.report("edge", vec![lost(one)]);
    assert!(replicas(&world).is_empty());
}

#[test]
fn d5_a_step_of_which_a_site_knows_the_inputs_is_sent_anew_when_one_was_made_again_of_other_bytes() {
    let source = "workflow: w\nsteps:\n  make: { run: x, site: edge, outputs: { f: file } }\n  use: { run: x, site: hpc, foreach: \"${{ range(2) }}\", with: { f: \"${{ steps.make.outputs.f }}\" } }\n";
    let mut world = World::with_sites(&["edge", "hpc"]);
    let run = world.submit(source);
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000)]);
    assert_eq!(world.carry_out_pushes("edge"), 1);
    let readers = world.dispatched("hpc");
    assert_eq!(readers.len(), 2);
    // Both copies are damaged.
    let (agent, one) = (world.agents["hpc"].id, object(1, 1_000));
    let message = "its digest is another".to_owned();
    world.ask(Request::BucketFault { agent, object: one.id, message }).unwrap();
    world.report("edge", vec![lost(one)]);
    world.carry_out_deletes();
    for reader in readers {
        let ended = super::world::not_started(NotStartedReason::InputUnavailable);
        world.end("hpc", reader, ended, Vec::new());
    }
    world.advance_with(Duration::from_secs(10), &["edge", "hpc"]);
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(3, 3_000)]);
    assert_eq!(world.carry_out_pushes("edge"), 1);
    let bindings = world.commands("hpc").into_iter().find_map(|command| match command {
        SiteCommand::Prepare(template) => Some(template.bindings),
        _ => None,
    });
    let value = bindings.unwrap().into_iter().map(|binding| binding.source).next();
    assert_eq!(value, Some(BindingSource::Value(file(3, 3_000))));
    assert_eq!(world.state(run), RunState::Running);
}

#[test]
fn d5_who_waits_for_what_is_made_again_waits_for_what_was_made() {
    let mut world = World::with_sites(&["edge", "hpc", "spare"]);
    let run = world.submit(&TWO_SITES.replace("site: edge", "site: [edge, spare]"));
    let (first, second) = match world.dispatched("edge").first().copied() {
        Some(make) => (("edge", make), "spare"),
        None => (("spare", world.dispatched_one("spare")), "edge"),
    };
    world.succeed(first.0, first.1, vec![file(1, 1_000), file(2, 2_000)]);
    // Its site is lost, and comes back while what it had is being made again, this time from other bytes.
    world.disconnect(first.0);
    world.advance_with(Duration::from_secs(16 * 60), &[second, "hpc"]);
    world.carry_out_deletes();
    let make = world.dispatched_one(second);
    world.connect(first.0);
    world.succeed(second, make, vec![file(3, 3_000), file(2, 2_000)]);
    assert!(world.carry_out_pushes(first.0) > 0);
    assert_eq!(world.carry_out_pushes(second), 1);
    let reader = world.dispatched_one("hpc");
    world.succeed("hpc", reader, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
}

#[test]
fn what_a_run_was_given_stays_until_it_ends_and_is_read_again_when_a_site_is_lost() {
    let source = "workflow: w\ninputs: { f: file }\nsteps:\n  make: { run: x, with: { f: \"${{ inputs.f }}\" }, outputs: { g: file } }\n  read: { run: x, with: { g: \"${{ steps.make.outputs.g }}\" } }\n";
    let mut world = World::with_sites(&["edge"]);
    let given = object(1, 500);
    world.ask(Request::RecordUpload { object: given, key: None }).unwrap();
    let run = world.try_submit(source, &[("f", file(1, 500))]).unwrap();
    let make = execution(run, 0, 0);
    fetch(&mut world, "edge", 1, 500, make);
    world.succeed("edge", (make, Attempt::FIRST), vec![file(2, 1_000)]);
    assert!(world.deletes.is_empty(), "its one reader has ended, and may have to read it again");
    assert_eq!(propose(&mut world, "edge", &[given]), (vec![given], None), "the bucket has it");
    world.report("edge", vec![Report::Evicted { gone: vec![given], kept: Vec::new() }]);

    world.add_site("hpc");
    world.advance_with(Duration::from_secs(2_000), &["hpc"]);
    let again = world.dispatched("hpc").into_iter().find(|(execution, _)| *execution == make).unwrap();
    let agent = world.agents["hpc"].id;
    world.ask(Request::AuthoriseFetch { agent, object: given.id }).unwrap();
    fetch(&mut world, "hpc", 1, 500, make);
    world.succeed("hpc", again, vec![file(2, 1_000)]);
    let read = world.dispatched("hpc").into_iter().rfind(|(execution, _)| *execution != make).unwrap();
    world.succeed("hpc", read, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
    assert_eq!(world.carry_out_deletes(), [given.id], "nobody reads it any more");
}
