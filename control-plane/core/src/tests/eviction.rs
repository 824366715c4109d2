//! Which copies may go, and which stay.

use std::time::Duration;

use atoll_model::id::RunId;
use atoll_model::session::{Report, SiteCommand};
use atoll_model::value::ObjectRef;

use super::world::{World, execution, file, object};
use crate::view::{ObjectFilter, RunState};
use crate::{PinPlace, Rejection, Request};

const SHOWN: &str = "workflow: w\nsteps:\n  make: { run: x, site: edge, outputs: { f: file, g: file } }\n  use: { run: x, site: hpc, with: { f: \"${{ steps.make.outputs.f }}\" } }\noutputs: { f: \"${{ steps.make.outputs.f }}\" }\n";

/// How long a run is remembered that has ended.
const REMEMBERED: Duration = Duration::from_secs(60);

/// A run of which object 1 is an output; `edge` made it, and `hpc` has fetched it and runs what reads it.
fn read_at_hpc() -> (World, RunId, (atoll_model::id::ExecutionId, atoll_model::id::Attempt)) {
    let mut world = World::with(|config| config.keep_finished = REMEMBERED);
    world.add_site("edge");
    world.add_site("hpc");
    let run = world.submit(SHOWN);
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000), file(2, 2_000)]);
    world.carry_out_pushes("edge");
    let reader = world.dispatched_one("hpc");
    let at = world.now;
    let fetched =
        Report::Fetched { object: object(1, 1_000), wire_bytes: 1_000, direct: None, execution: reader.0, at };
    world.report("hpc", vec![fetched]);
    (world, run, reader)
}

/// Asks for these to go; what may, and why the first of the others may not.
pub(super) fn propose(world: &mut World, site: &str, objects: &[ObjectRef]) -> (Vec<ObjectRef>, Option<String>) {
    world.report(site, vec![Report::Evictable { proposal: 7, objects: objects.to_vec() }]);
    let answers = world.commands(site).into_iter().filter_map(|command| match command {
        SiteCommand::Evict { proposal: 7, objects, refused: _, reason } => Some((objects, reason)),
        _ => None,
    });
    let mut answers: Vec<_> = answers.collect();
    assert_eq!(answers.len(), 1, "each proposal is answered once");
    answers.remove(0)
}

pub(super) fn replicas(world: &World, number: u8) -> Vec<String> {
    world.core.object(object(number, 0).id).map_or_else(Vec::new, |view| view.replicas)
}

#[test]
fn no_two_sites_let_go_of_the_last_two_copies() {
    let (mut world, run, reader) = read_at_hpc();
    world.succeed("hpc", reader, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
    world.carry_out_deletes();
    let one = object(1, 1_000);
    assert_eq!(propose(&mut world, "edge", &[one]), (vec![one], None));
    // Whether it has gone there is not known yet, and does not matter.
    let (granted, reason) = propose(&mut world, "hpc", &[one]);
    assert!(granted.is_empty());
    let reason = reason.unwrap();
    assert!(reason.contains("last copy") && reason.contains(&run.to_string()), "{reason}");
    assert_eq!(replicas(&world, 1), ["hpc"]);
    // It was used there after all: so there are two again.
    world.report("edge", vec![Report::Evicted { gone: Vec::new(), kept: vec![one] }]);
    assert_eq!(replicas(&world, 1), ["edge", "hpc"]);
    assert_eq!(propose(&mut world, "hpc", &[one]).0, [one]);
    world.report("hpc", vec![Report::Evicted { gone: vec![one], kept: Vec::new() }]);
    assert_eq!(replicas(&world, 1), ["edge"]);
}

#[test]
fn what_is_read_at_a_site_stays_there_and_what_nobody_reads_goes_as_the_last_copy() {
    let (mut world, _, reader) = read_at_hpc();
    let (granted, reason) = propose(&mut world, "hpc", &[object(1, 1_000)]);
    assert!(granted.is_empty() && reason.unwrap().contains("reads it there"));
    // No step reads what its step has made any more, and the run does not give it out.
    world.succeed("hpc", reader, Vec::new());
    assert_eq!(propose(&mut world, "edge", &[object(2, 2_000), object(9, 9)]).0, [object(2, 2_000), object(9, 9)]);
}

#[test]
fn the_last_copy_of_what_cannot_be_made_again_stays_until_its_run_has_ended() {
    for (start, goes) in [("", true), ("start: at-most-once, ", false)] {
        let mut world = World::with_sites(&["edge"]);
        let run = world.submit(&format!(
            "workflow: w\nsteps:\n  a: {{ {start}run: x, outputs: {{ f: file }} }}\n  b: {{ run: x, with: {{ f: \"${{{{ steps.a.outputs.f }}}}\" }}, outputs: {{ f: file }} }}\n  c: {{ run: x, with: {{ f: \"${{{{ steps.b.outputs.f }}}}\" }} }}\n",
        ));
        let a = world.dispatched("edge")[0];
        world.succeed("edge", a, vec![file(1, 1_000)]);
        // Its reader has ended; what that has made may be lost with the site, as far as anybody knows.
        let b = (execution(run, 1, 0), a.1);
        world.succeed("edge", b, vec![file(2, 1_000)]);
        let (granted, reason) = propose(&mut world, "edge", &[object(1, 1_000)]);
        assert_eq!(!granted.is_empty(), goes, "{reason:?}");
        if !goes {
            assert!(reason.unwrap().contains("it cannot be made again"));
            world.succeed("edge", (execution(run, 2, 0), a.1), Vec::new());
            assert_eq!(propose(&mut world, "edge", &[object(1, 1_000)]).0, [object(1, 1_000)]);
        }
    }
}

#[test]
fn a_copy_in_the_bucket_counts_for_readers_and_not_for_what_outlasts_them() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    let source = "workflow: w\nsteps:\n  one: { run: x, site: edge, outputs: { f: file } }\n  two: { run: y, site: edge, outputs: { f: file } }\n  use: { run: x, site: hpc, with: { one: \"${{ steps.one.outputs.f }}\", two: \"${{ steps.two.outputs.f }}\" } }\noutputs: { f: \"${{ steps.two.outputs.f }}\" }\n";
    world.submit(source);
    let (read, shown) = (object(5, 500), object(6, 600));
    for dispatched in world.dispatched("edge") {
        let made = if dispatched.0.step.index() == 0 { file(5, 500) } else { file(6, 600) };
        world.succeed("edge", dispatched, vec![made]);
    }
    world.carry_out_pushes("edge");
    // The bucket loses both with their last reader: then the output of the run would be gone.
    let (granted, reason) = propose(&mut world, "edge", &[read, shown]);
    assert_eq!(granted, [read], "{reason:?}");
    assert!(reason.unwrap().contains("last copy"));
}

#[test]
fn what_is_on_its_way_stays_where_it_comes_from() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    world.submit(SHOWN);
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000), file(2, 2_000)]);
    let (granted, reason) = propose(&mut world, "edge", &[object(1, 1_000)]);
    assert!(granted.is_empty() && reason.unwrap().contains("pushed from there"));
}

#[test]
fn outputs_and_logs_stay_as_long_as_their_run_is_remembered() {
    let mut world = World::with(|config| config.keep_finished = REMEMBERED);
    world.add_site("edge");
    let run = world.submit("workflow: w\nsteps:\n  make: { run: x, outputs: { f: file } }\noutputs: { f: \"${{ steps.make.outputs.f }}\" }\n");
    let make = world.dispatched_one("edge");
    let mut finished = world.finished(make, atoll_model::session::Outcome::Succeeded, vec![file(1, 10)]);
    if let Report::Finished { elements, .. } = &mut finished {
        elements[0].logs.stdout = Some(object(3, 5));
    }
    world.report("edge", vec![finished]);
    assert_eq!(world.state(run), RunState::Succeeded);
    let objects = [object(1, 10), object(3, 5)];
    assert!(propose(&mut world, "edge", &objects).0.is_empty());
    world.advance_with(REMEMBERED * 2, &["edge"]);
    assert!(world.core.run(run).is_none());
    assert_eq!(propose(&mut world, "edge", &objects).0, objects);
}

#[test]
fn what_a_person_has_pinned_stays_until_it_is_not_pinned_any_more() {
    let (mut world, run, reader) = read_at_hpc();
    let (two, id) = (object(2, 2_000), object(2, 0).id);
    let pin = |at| Request::PinObject { object: id, at, by: "ada".to_owned() };
    let unpin = |at| Request::UnpinObject { object: id, at };
    world.ask(pin(PinPlace::Anywhere)).unwrap();
    let reason = propose(&mut world, "edge", &[two]).1.unwrap();
    assert!(reason.contains("last copy") && reason.contains("ada"), "{reason}");
    world.ask(pin(PinPlace::Site("edge".parse().unwrap()))).unwrap();
    world.ask(unpin(PinPlace::Anywhere)).unwrap();
    assert!(propose(&mut world, "edge", &[two]).1.unwrap().contains("ada has pinned it there"));
    let pinned = world.core.objects(&ObjectFilter { pinned: true, limit: 10, ..ObjectFilter::default() });
    assert_eq!(pinned.iter().map(|row| (row.object, row.pins[0].at.as_str())).collect::<Vec<_>>(), [(two, "edge")]);
    // Also when its run is not known any more.
    world.succeed("hpc", reader, Vec::new());
    world.carry_out_deletes();
    world.advance_with(REMEMBERED * 2, &["edge", "hpc"]);
    assert!(world.core.run(run).is_none());
    assert!(propose(&mut world, "edge", &[two]).0.is_empty());
    world.ask(unpin(PinPlace::Site("edge".parse().unwrap()))).unwrap();
    assert_eq!(propose(&mut world, "edge", &[two]).0, [two]);
    assert!(matches!(world.ask(unpin(PinPlace::Anywhere)), Err(Rejection::NotFound(_))));
}

#[test]
fn what_is_pinned_in_the_bucket_is_not_swept() {
    let (mut world, _, reader) = read_at_hpc();
    let id = object(1, 0).id;
    world.ask(Request::PinObject { object: id, at: PinPlace::Bucket, by: "ada".to_owned() }).unwrap();
    world.succeed("hpc", reader, Vec::new());
    assert!(world.carry_out_deletes().is_empty());
    let refused = world.ask(Request::EvictObject { object: id, site: None });
    assert!(matches!(refused, Err(Rejection::Conflict(_))), "{refused:?}");
    world.ask(Request::UnpinObject { object: id, at: PinPlace::Bucket }).unwrap();
    assert_eq!(world.carry_out_deletes(), [id]);
}

#[test]
fn a_person_is_told_why_an_object_stays_or_the_site_is_asked() {
    let (mut world, _, reader) = read_at_hpc();
    let hpc = Some("hpc".parse().unwrap());
    let refused = world.ask(Request::EvictObject { object: object(1, 0).id, site: hpc });
    assert!(matches!(&refused, Err(Rejection::Conflict(why)) if why.contains("reads it there")), "{refused:?}");
    world.succeed("hpc", reader, Vec::new());
    world.commands("edge");
    let edge = Some("edge".parse().unwrap());
    world.ask(Request::EvictObject { object: object(2, 0).id, site: edge }).unwrap();
    let asked = world.commands("edge");
    assert!(matches!(&asked[..], [SiteCommand::ProposeEviction { objects }] if *objects == [object(2, 2_000)]));
}

#[test]
fn a_site_is_asked_to_read_its_store_again_and_what_it_found_is_shown() {
    let mut world = World::with_sites(&["edge"]);
    let edge: atoll_model::id::SiteName = "edge".parse().unwrap();
    world.ask(Request::VerifySite { site: edge.clone(), objects: Vec::new() }).unwrap();
    assert!(matches!(&world.commands("edge")[..], [SiteCommand::Verify { objects }] if objects.is_empty()));
    assert_eq!(world.core.verification(&edge).unwrap().ended_at, None);
    world.report("edge", vec![Report::Verified { files: 4, bytes: 40, damaged: 1 }]);
    let view = world.core.verification(&edge).unwrap();
    assert_eq!((view.files, view.bytes, view.damaged, view.ended_at.is_some()), (4, 40, 1, true));
}
