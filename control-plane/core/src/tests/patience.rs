//! The bucket or the link refuses for long: what was to come there comes when they are back.

use std::time::Duration;

use atoll_model::id::RunId;
use atoll_model::session::{NotStartedReason, PushFailure, Report};

use super::policies::apply;
use super::world::{World, file, not_started, object};
use crate::view::RunState;

const SITES: [&str; 2] = ["edge", "hpc"];
const ONE: &str = "workflow: w\nsteps:\n  make: { run: x, site: edge, outputs: { f: file } }\n";
const AND_WAIT: &str = "workflow: w\nsteps:\n  make: { run: x, site: edge, outputs: { f: file } }\n  wait: { run: x, site: edge, after: [make] }\n";
const HOUR: Duration = Duration::from_secs(3_600);

/// The bucket refuses every push from the site for so long; how often it was asked.
fn refuse_for(world: &mut World, site: &str, time: Duration) -> usize {
    let (until, mut asked) = (world.now + time, 0);
    while world.now < until {
        for (transfer, object) in world.pushes(site) {
            let (reason, message) = (PushFailure::Refused, "503 Slow Down".to_owned());
            world.report(site, vec![Report::PushFailed { transfer, object, reason, message }]);
            asked += 1;
        }
        world.carry_out_looks(false);
        world.carry_out_deletes();
        world.advance_with(Duration::from_secs(1), &SITES);
    }
    asked
}

/// A run under the policy that has made an object at `edge`.
fn made(world: &mut World, policy: &str, source: &str) -> RunId {
    apply(world, policy);
    let run = world.submit(source);
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000)]);
    run
}

fn copies(world: &World) -> String {
    world.core.object(object(1, 0).id).unwrap().copies.join("\n")
}

#[test]
fn d1_what_a_rule_wants_in_the_bucket_at_once_is_sent_until_it_is_there() {
    let mut world = World::with_sites(&SITES);
    let run = made(&mut world, "placement:\n  - push: eager\n", AND_WAIT);
    let asked = refuse_for(&mut world, "edge", HOUR);
    assert!((15..30).contains(&asked), "twice as long between tries, and at most five minutes: {asked}");
    assert!(copies(&world).contains("wants it in the bucket: refused"), "{}", copies(&world));
    assert!(copies(&world).ends_with("503 Slow Down"), "{}", copies(&world));
    world.restart();
    world.connect("edge");
    world.advance_with(Duration::from_secs(300), &SITES);
    assert_eq!(world.carry_out_pushes("edge"), 1);
    assert_eq!((world.objects_in_bucket(), world.state(run)), (1, RunState::Running));
    assert_eq!(copies(&world), "");
}

#[test]
fn d1_what_a_rule_wants_of_a_run_that_has_succeeded_is_sent_before_the_run_is_forgotten() {
    let mut world = World::with(|config| config.keep_finished = HOUR);
    SITES.iter().for_each(|site| world.add_site(site));
    let policy = "placement:\n  - push: on-success\n    keep: { for: 24h after run.end }\n";
    let run = made(&mut world, policy, ONE);
    assert_eq!(world.state(run), RunState::Succeeded);
    assert!(refuse_for(&mut world, "edge", HOUR * 3) > 30);
    assert!(world.core.run(run).is_some(), "its rule would be forgotten with it");
    world.advance_with(Duration::from_secs(300), &SITES);
    assert_eq!(world.carry_out_pushes("edge"), 1);
    world.advance_with(Duration::from_secs(120), &SITES);
    assert!(world.core.run(run).is_none());
    assert_eq!((world.carry_out_deletes().len(), world.objects_in_bucket()), (0, 1));
    world.advance_with(HOUR * 24, &SITES);
    assert_eq!(world.carry_out_deletes(), [object(1, 1_000).id]);
}

#[test]
fn d1_a_run_is_not_remembered_for_what_would_go_from_the_bucket_with_it() {
    let mut world = World::with(|config| config.keep_finished = HOUR);
    SITES.iter().for_each(|site| world.add_site(site));
    let run = made(&mut world, "placement:\n  - push: on-success\n", ONE);
    refuse_for(&mut world, "edge", HOUR - Duration::from_secs(60));
    assert!(world.core.run(run).is_some());
    refuse_for(&mut world, "edge", Duration::from_secs(600));
    assert!(world.core.run(run).is_none());
}

#[test]
fn what_was_made_before_a_rule_wanted_it_in_the_bucket_comes_there_too() {
    let mut world = World::with_sites(&SITES);
    made(&mut world, "placement: []\n", AND_WAIT);
    assert!(world.pushes("edge").is_empty());
    apply(&mut world, "placement:\n  - push: eager\n");
    assert_eq!(world.carry_out_pushes("edge"), 1);
}

#[test]
fn what_a_rule_keeps_in_the_bucket_is_not_called_back_when_its_run_ends() {
    let mut world = World::with_sites(&SITES);
    let policy = "placement:\n  - push: eager\n    keep: { for: 2h after run.end }\n";
    let run = made(&mut world, policy, ONE);
    assert_eq!(world.state(run), RunState::Succeeded);
    assert_eq!(world.carry_out_pushes("edge"), 1);
    assert_eq!((world.carry_out_deletes().len(), world.objects_in_bucket()), (0, 1));
    world.advance_with(HOUR * 2, &SITES);
    assert_eq!(world.carry_out_deletes(), [object(1, 1_000).id]);
}

#[test]
fn what_waits_for_a_site_that_is_away_is_sent_when_that_is_back() {
    let mut world = World::with_sites(&SITES);
    made(&mut world, "placement: []\n", AND_WAIT);
    world.disconnect("edge");
    apply(&mut world, "placement:\n  - push: eager\n");
    assert!(copies(&world).contains("waits for a site that has it"), "{}", copies(&world));
    world.connect("edge");
    assert_eq!(world.carry_out_pushes("edge"), 1);
}

#[test]
fn d1_no_run_fails_because_an_input_cannot_be_fetched_for_hours() {
    let far = "workflow: w\nsteps:\n  make: { run: x, site: edge, outputs: { f: file } }\n  use: { run: x, with: { f: \"${{ steps.make.outputs.f }}\" }, site: hpc }\n";
    let mut world = World::with_sites(&SITES);
    let run = world.submit(far);
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000)]);
    assert_eq!(world.carry_out_pushes("edge"), 1);
    for _ in 0..60 {
        let reader = world.dispatched_one("hpc");
        world.end("hpc", reader, not_started(NotStartedReason::InputUnavailable), Vec::new());
        assert_eq!(world.state(run), RunState::Running);
        world.advance_with(Duration::from_secs(300), &SITES);
    }
    let reader = world.dispatched_one("hpc");
    world.succeed("hpc", reader, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
}
