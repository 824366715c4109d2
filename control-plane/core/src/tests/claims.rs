//! What rules hold: copies at sites and in the bucket, also when the run that they are of is forgotten.

use std::time::Duration;

use atoll_model::id::RunId;
use atoll_model::session::{FaultLocation, Report};
use atoll_model::value::{ObjectKind, ObjectRef};

use super::eviction::{propose, replicas};
use super::policies::apply;
use super::world::{World, file, object};
use crate::state::Snapshot;
use crate::view::RunState;
use crate::{ControlPlane, Request};

pub(super) const ONE: &str = "workflow: w\nsteps:\n  make: { run: x, site: edge, outputs: { f: file } }\n";
const READ_AT_HPC: &str = "workflow: w\nsteps:\n  make: { run: x, site: edge, outputs: { f: file } }\n  use: { run: x, site: hpc, with: { f: \"${{ steps.make.outputs.f }}\" } }\n";
pub(super) const HOUR: Duration = Duration::from_secs(3_600);
/// How long a run is remembered that has ended.
pub(super) const REMEMBERED: Duration = Duration::from_secs(60);
pub(super) const SITES: [&str; 2] = ["edge", "hpc"];
const HOLD: &str = "placement:\n  - hold: { reason: audit }\n";
pub(super) const NOTHING: &str = "placement:\n  - push: when-needed\n";

pub(super) fn world() -> World {
    let mut world = World::with(|config| config.keep_finished = REMEMBERED);
    SITES.iter().for_each(|site| world.add_site(site));
    world
}

/// A run whose only output, which nobody reads, is at `edge`, where it was made, and at `hpc`.
pub(super) fn made_by(world: &mut World, source: &str) -> (RunId, ObjectRef) {
    let run = world.submit(source);
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000)]);
    assert_eq!(world.state(run), RunState::Succeeded);
    let one = object(1, 1_000);
    // As it is where it was used at the other site.
    world.report("hpc", vec![Report::Evicted { gone: Vec::new(), kept: vec![one] }]);
    // Where a rule wanted it there, it was on its way.
    world.carry_out_pushes("edge");
    world.carry_out_deletes();
    assert_eq!(replicas(world, 1), SITES);
    (run, one)
}

/// The same under a rule of the project.
pub(super) fn under(rule: &str) -> (World, RunId, ObjectRef) {
    let mut world = world();
    apply(&mut world, &format!("placement:\n  - {rule}\n"));
    let (run, one) = made_by(&mut world, ONE);
    (world, run, one)
}

fn stays(world: &mut World, site: &str, object: ObjectRef, why: &str) {
    let (granted, reason) = propose(world, site, &[object]);
    assert!(granted.is_empty(), "{site}");
    let reason = reason.unwrap();
    assert!(reason.contains(why), "{reason}");
}

fn goes(world: &mut World, site: &str, object: ObjectRef) {
    assert_eq!(propose(world, site, &[object]).0, [object], "{site}");
}

pub(super) fn forget(world: &mut World, run: RunId) {
    world.advance_with(REMEMBERED * 2, &SITES);
    assert!(world.core.run(run).is_none(), "it is in the history, and in memory no more");
}

fn lose(world: &mut World, site: &str) {
    let (object, message) = (object(1, 1_000).id, "damaged".to_owned());
    let location = FaultLocation::SiteStore;
    world.report(site, vec![Report::Fault { object, kind: ObjectKind::File, location, message }]);
}

#[test]
fn what_a_rule_keeps_where_it_was_made_stays_there_as_long_as_it_says() {
    let (mut world, run, one) = under("keep: { for: 2h after run.end }");
    let why = "eu.yaml:2 (rule 1 of the project's policy, version 1) keeps it there";
    stays(&mut world, "edge", one, why);
    forget(&mut world, run);
    stays(&mut world, "edge", one, why);
    goes(&mut world, "hpc", one);
    world.advance_with(HOUR, &SITES);
    stays(&mut world, "edge", one, why);
    world.advance_with(HOUR, &SITES);
    assert!(world.core.object(one.id).is_none(), "nothing is known of what nothing holds");
    goes(&mut world, "edge", one);
}

#[test]
fn what_a_rule_keeps_or_pins_at_some_sites_stays_there_and_goes_elsewhere() {
    for rule in ["keep: { at: hpc, for: 2h after run.end }", "pin: { at: hpc, until: 2h after run.end }"] {
        let (mut world, run, one) = under(rule);
        stays(&mut world, "hpc", one, "keeps it there");
        forget(&mut world, run);
        stays(&mut world, "hpc", one, "keeps it there");
        goes(&mut world, "edge", one);
        world.advance_with(HOUR * 3, &SITES);
        goes(&mut world, "hpc", one);
    }
}

#[test]
fn what_is_made_again_by_a_later_run_is_kept_for_as_long_as_that_says() {
    let (mut world, first, one) = under("keep: { for: 2h after run.end }");
    forget(&mut world, first);
    world.advance_with(HOUR, &SITES);
    let (second, _) = made_by(&mut world, ONE);
    world.advance_with(HOUR, &SITES);
    stays(&mut world, "edge", one, "keeps it there");
    assert!(world.core.run(second).is_none());
    goes(&mut world, "hpc", one);
    world.advance_with(HOUR, &SITES);
    goes(&mut world, "edge", one);
}

#[test]
fn what_a_rule_holds_stays_somewhere_until_the_rule_is_lifted() {
    let (mut world, run, one) = under("hold: { reason: audit }");
    forget(&mut world, run);
    goes(&mut world, "edge", one);
    let why = "eu.yaml:2 (rule 1 of the project's policy, version 1) holds it";
    stays(&mut world, "hpc", one, why);
    apply(&mut world, "placement:\n  - push: when-needed\n  - hold: { reason: audit }\n");
    stays(&mut world, "hpc", one, why);
    apply(&mut world, NOTHING);
    goes(&mut world, "hpc", one);
    assert!(world.core.object(one.id).is_none());
}

#[test]
fn what_the_rules_of_another_project_say_lifts_nothing() {
    let (mut world, run, one) = under("hold: { reason: audit }");
    forget(&mut world, run);
    goes(&mut world, "edge", one);
    let mut application = super::policies::application("other", NOTHING);
    application.applied_by = "bob".to_owned();
    world.ask(Request::ApplyPolicy { application: Box::new(application) }).unwrap();
    stays(&mut world, "hpc", one, "holds it");
}

#[test]
fn what_a_workflow_holds_is_held_whatever_its_project_says_later() {
    let mut world = world();
    let (run, one) = made_by(&mut world, &format!("{ONE}placement:\n  - hold: {{ reason: audit }}\n"));
    apply(&mut world, HOLD);
    forget(&mut world, run);
    apply(&mut world, NOTHING);
    goes(&mut world, "edge", one);
    stays(&mut world, "hpc", one, "of the workflow) holds it");
}

#[test]
fn a_rule_holds_the_last_copy_in_the_bucket_when_no_site_has_one() {
    let mut world = world();
    apply(&mut world, HOLD);
    let run = world.submit(READ_AT_HPC);
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000)]);
    world.carry_out_pushes("edge");
    let reader = world.dispatched_one("hpc");
    lose(&mut world, "edge");
    world.fail("hpc", reader);
    assert_eq!(world.state(run), RunState::Failed);
    assert_eq!(replicas(&world, 1), ["bucket"]);
    forget(&mut world, run);
    world.restart();
    world.advance(HOUR);
    assert_eq!((world.carry_out_deletes().len(), world.objects_in_bucket()), (0, 1));
    apply(&mut world, NOTHING);
    assert_eq!(world.carry_out_deletes(), [object(1, 1_000).id]);
    assert!(world.core.object(object(1, 1_000).id).is_none());
}

/// A run whose output a rule has pushed once it had succeeded.
fn pushed_under(world: &mut World, rule: &str) -> (RunId, ObjectRef) {
    apply(world, &format!("placement:\n  - push: on-success\n{rule}"));
    let run = world.submit(ONE);
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000)]);
    assert_eq!(world.carry_out_pushes("edge"), 1);
    assert_eq!(world.objects_in_bucket(), 1);
    (run, object(1, 1_000))
}

#[test]
fn what_was_pushed_by_a_rule_stays_in_the_bucket_when_its_run_is_forgotten_as_long_as_the_rule_says() {
    let mut world = world();
    let (run, one) = pushed_under(&mut world, "    keep: { for: 2h after run.end }\n");
    forget(&mut world, run);
    world.advance_with(HOUR, &SITES);
    world.restart();
    world.advance(Duration::from_secs(1));
    assert_eq!((world.carry_out_deletes().len(), world.objects_in_bucket()), (0, 1));
    world.advance(HOUR);
    assert_eq!(world.carry_out_deletes(), [one.id]);
}

#[test]
fn what_was_pushed_by_a_rule_without_a_time_goes_from_the_bucket_with_its_run() {
    let mut world = world();
    let (run, one) = pushed_under(&mut world, "");
    world.advance_with(REMEMBERED / 2, &SITES);
    assert!(world.carry_out_deletes().is_empty());
    forget(&mut world, run);
    assert_eq!(world.carry_out_deletes(), [one.id]);
}

#[test]
fn runs_that_do_not_fit_leave_the_memory_and_what_rules_hold_of_them_stays() {
    let mut world = World::with(|config| config.keep_finished_bytes = 1);
    SITES.iter().for_each(|site| world.add_site(site));
    let (run, one) = pushed_under(&mut world, "  - keep: { for: 2h after run.end }\n");
    world.advance_with(REMEMBERED * 2, &SITES);
    assert!(world.core.run(run).is_none(), "a run for which something is sent waits for it, and then goes");
    assert_eq!((world.carry_out_deletes().len(), world.objects_in_bucket()), (0, 1));
    stays(&mut world, "edge", one, "keeps it there");
    world.advance_with(HOUR * 2, &SITES);
    assert_eq!(world.carry_out_deletes(), [one.id]);
}

#[test]
fn what_runs_leave_held_is_little_and_says_its_rules_once() {
    const RUNS: usize = 200;
    let mut world = World::with(|config| config.keep_finished_bytes = 1);
    SITES.iter().for_each(|site| world.add_site(site));
    apply(&mut world, HOLD);
    world.compare_recovery = false;
    let before = encoded(&world).len();
    for _ in 0..RUNS {
        let run = world.submit(ONE);
        let make = world.dispatched_one("edge");
        world.succeed("edge", make, vec![file(1, 1_000)]);
        assert!(world.core.run(run).is_none());
    }
    let each = (encoded(&world).len() - before) / RUNS;
    assert!(each < 300, "{each} bytes of the state for each run");
    apply(&mut world, NOTHING);
    assert!(world.core.object(object(1, 1_000).id).is_none());
}

pub(super) fn encoded(world: &World) -> Vec<u8> {
    postcard::to_allocvec(&world.core.snapshot()).unwrap()
}

#[test]
fn what_is_held_is_the_same_after_a_checkpoint() {
    let (mut world, run, one) = under("hold: { reason: audit }");
    forget(&mut world, run);
    let snapshot: Snapshot = postcard::from_bytes(&encoded(&world)).unwrap();
    world.core = ControlPlane::recover(world.config.clone(), Some(snapshot), [], world.now);
    assert_eq!(world.core.snapshot(), world.recovered().snapshot());
    let view = world.core.object(one.id).unwrap();
    assert!(view.needed.unwrap().contains("holds it"));
}
