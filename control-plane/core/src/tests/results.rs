//! Results that are taken again instead of being made anew.

use std::time::Duration;

use atoll_model::id::{ExecutionId, RunId};
use atoll_model::session::{NotStartedReason, Outcome, Report};
use atoll_model::value::Value;

use super::damage::lost;
use super::eviction::{propose, replicas};
use super::world::{World, execution, file, not_started, object, workflow};
use crate::view::{ExecutionState, RunState, RunTags};

const MINUTE: Duration = Duration::from_secs(60);

/// A world in which runs are forgotten after a minute.
fn forgetful(sites: &[&str]) -> World {
    let mut world = World::with(|config| config.keep_finished = MINUTE);
    sites.iter().for_each(|site| world.add_site(site));
    world
}

/// A run of one step with this script, given this number.
fn source(script: &str, number: i64, more: &str) -> String {
    format!(
        "workflow: w\nsteps:\n  make: {{ run: {script}, with: {{ n: {number} }}, cache: 30d, outputs: {{ f: file }}{more} }}\n"
    )
}

fn make(number: i64) -> String {
    source("make it", number, "")
}

/// A run that has made this object at the only site to which anything was given.
fn made(world: &mut World, source: &str, site: &str, file: Value) -> RunId {
    let run = world.submit(source);
    let one = world.dispatched_one(site);
    world.succeed(site, one, vec![file]);
    assert_eq!(world.state(run), RunState::Succeeded);
    run
}

fn made_by(world: &World, run: RunId) -> Option<ExecutionId> {
    world.core.execution(execution(run, 0, 0)).unwrap().reused.map(|reused| reused.made_by)
}

#[test]
fn what_another_run_has_made_of_the_same_is_taken_and_nothing_runs() {
    let mut world = World::with_sites(&["edge"]);
    let first = made(&mut world, &make(1), "edge", file(1, 1_000));
    let second = world.submit(&make(1));
    assert_eq!(world.state(second), RunState::Succeeded);
    assert_eq!(world.dispatched("edge"), []);
    assert_eq!(made_by(&world, second), Some(execution(first, 0, 0)));
    let view = world.core.execution(execution(second, 0, 0)).unwrap();
    assert_eq!(view.outputs.values().collect::<Vec<_>>(), [&file(1, 1_000)]);
    assert_eq!((view.state, view.started_at, view.exit_code), (ExecutionState::Succeeded, None, None));
    assert_eq!(world.core.counters().executions_reused, 1);
    assert_eq!(world.core.object(object(1, 0).id).unwrap().runs, [first, second]);
}

#[test]
fn what_differs_in_anything_is_made_anew() {
    let mut world = World::with_sites(&["edge"]);
    made(&mut world, &make(1), "edge", file(1, 1_000));
    let others = [
        make(2),
        source("make it otherwise", 1, ""),
        source("make it", 1, ", env: { A: b }"),
        "workflow: w\nsteps:\n  make: { run: make it, with: { m: 1 }, cache: 30d, outputs: { f: file } }\n".to_owned(),
        "workflow: w\nsteps:\n  make: { run: make it, with: { n: 1 }, cache: 30d, outputs: { g: file } }\n".to_owned(),
        "workflow: w\nsteps:\n  make: { run: make it, with: { n: 1 }, outputs: { f: file } }\n".to_owned(),
    ];
    for other in others {
        let run = made(&mut world, &other, "edge", file(2, 10));
        assert_eq!(made_by(&world, run), None, "{other}");
    }
    let elsewhere = RunTags { project: "rivers".to_owned(), ..RunTags::default() };
    let run = world.submit_tagged(&make(1), elsewhere);
    assert_eq!(made_by(&world, run), None, "results stay in their project");
    assert_eq!(world.dispatched("edge").len(), 1);
}

#[test]
fn steps_and_workflows_may_have_other_names_and_resources() {
    let mut world = World::with_sites(&["edge"]);
    let first = made(&mut world, &make(1), "edge", file(1, 1_000));
    let other = "workflow: other\nsteps:\n  before: { run: x, outputs: { n: integer } }\n  again: { run: make it, with: { n: \
                 \"${{ steps.before.outputs.n }}\" }, cache: 1d, priority: 3, resources: { cpu: 2 }, outputs: { f: file } }\n";
    let run = world.submit(other);
    let before = world.dispatched_one("edge");
    world.succeed("edge", before, vec![Value::Integer(1)]);
    assert_eq!(world.state(run), RunState::Succeeded);
    let again = world.core.execution(execution(run, 1, 0)).unwrap();
    assert_eq!(again.reused.map(|reused| reused.made_by), Some(execution(first, 0, 0)));
}

#[test]
fn a_run_that_is_to_make_all_anew_does_and_others_take_what_it_made() {
    let mut world = World::with_sites(&["edge"]);
    made(&mut world, &make(1), "edge", file(1, 1_000));
    let mut anew = (*workflow(&make(1))).clone();
    anew.make_all_anew();
    let fresh = world.submit_workflow(anew);
    let one = world.dispatched_one("edge");
    world.succeed("edge", one, vec![file(2, 1_000)]);
    let third = world.submit(&make(1));
    assert_eq!(made_by(&world, third), Some(execution(fresh, 0, 0)));
}

#[test]
fn of_a_fan_out_what_is_known_is_taken_and_the_rest_runs() {
    let mut world = World::with_sites(&["edge"]);
    let fan = |count: u32| {
        format!(
            "workflow: w\nsteps:\n  f: {{ run: x, foreach: \"${{{{ range({count}) }}}}\", with: {{ n: \"${{{{ item }}}}\" }}, \
             cache: 30d, outputs: {{ n: integer }} }}\n"
        )
    };
    let first = world.submit(&fan(3));
    for one in world.dispatched("edge") {
        world.succeed("edge", one, vec![Value::Integer(i64::from(one.0.element))]);
    }
    assert_eq!(world.state(first), RunState::Succeeded);
    let second = world.submit(&fan(5));
    let dispatched: Vec<u32> = world.dispatched("edge").iter().map(|one| one.0.element).collect();
    assert_eq!(dispatched, [3, 4]);
    assert_eq!(world.count(second, ExecutionState::Succeeded), 3);
}

#[test]
fn a_reader_elsewhere_gets_what_was_taken_from_where_it_is() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    let edge_only = |more: &str| {
        format!(
            "workflow: w\nsteps:\n  make: {{ run: make it, cache: 30d, site: edge, outputs: {{ f: file }} }}\n{more}"
        )
    };
    made(&mut world, &edge_only(""), "edge", file(1, 1_000));
    let reader = "  read: { run: y, site: hpc, with: { f: \"${{ steps.make.outputs.f }}\" } }\n";
    let run = world.submit(&edge_only(reader));
    assert_eq!(world.carry_out_pushes("edge"), 1, "only because of the reader");
    let read = world.dispatched_one("hpc");
    world.succeed("hpc", read, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
}

#[test]
fn results_outlast_their_run_and_their_objects_may_go_all_the_same() {
    let mut world = forgetful(&["edge"]);
    let first = made(&mut world, &make(1), "edge", file(1, 1_000));
    world.advance_with(MINUTE, &["edge"]);
    assert!(world.core.run(first).is_none());
    let second = world.submit(&make(1));
    assert_eq!(made_by(&world, second), Some(execution(first, 0, 0)));
    world.advance_with(MINUTE, &["edge"]);
    assert!(world.core.run(second).is_none());
    assert_eq!(replicas(&world, 1), ["edge"]);
    let one = object(1, 1_000);
    assert_eq!(propose(&mut world, "edge", &[one]), (vec![one], None), "nobody needs it, it is only handy");
    world.report("edge", vec![Report::Evicted { gone: vec![one], kept: Vec::new() }]);
    let third = world.submit(&make(1));
    assert_eq!(world.dispatched("edge").len(), 1, "what is gone is made anew");
    assert_eq!(made_by(&world, third), None);
}

#[test]
fn a_result_is_taken_no_longer_than_its_step_says() {
    let mut world = forgetful(&["edge"]);
    let source = make(1).replace("30d", "2m");
    made(&mut world, &source, "edge", file(1, 1_000));
    world.advance_with(MINUTE, &["edge"]);
    assert!(world.core.object(object(1, 0).id).is_some(), "its run is forgotten, and it may still be taken");
    world.advance_with(MINUTE, &["edge"]);
    assert!(world.core.object(object(1, 0).id).is_none(), "nothing knows it any more");
    world.submit(&source);
    assert_eq!(world.dispatched("edge").len(), 1);
}

#[test]
fn what_was_taken_and_is_lost_is_made_by_who_took_it() {
    let mut world = forgetful(&["edge", "hpc"]);
    made(&mut world, &source("make it", 1, ", site: edge"), "edge", file(1, 1_000));
    world.advance_with(MINUTE, &["edge", "hpc"]);
    let more = "  read: { run: y, site: edge, with: { f: \"${{ steps.make.outputs.f }}\" }, retry: 3 }\n";
    let run = world.submit(&(source("make it", 1, ", site: edge") + more));
    let read = world.dispatched_one("edge");
    assert_eq!((read.0.step.index(), made_by(&world, run).is_some()), (1, true));
    world.report("edge", vec![lost(object(1, 1_000))]);
    world.end("edge", read, not_started(NotStartedReason::InputUnavailable), Vec::new());
    world.advance(Duration::from_secs(2));
    let again = world.dispatched_one("edge");
    assert_eq!(again.0, execution(run, 0, 0));
    world.succeed("edge", again, vec![file(1, 1_000)]);
    assert_eq!(made_by(&world, run), None, "it has run now");
    let read = world.dispatched_one("edge");
    world.succeed("edge", read, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
}

#[test]
fn what_was_made_under_another_confinement_is_not_taken() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    let confined = make(1) + "placement:\n  - { match: { step: make }, confine: edge }\n";
    let first = made(&mut world, &confined, "edge", file(1, 1_000));
    let run = world.submit(&make(1));
    assert_eq!(made_by(&world, run), None, "without the rule it could leave the site");
    assert_eq!(world.dispatched("edge").len() + world.dispatched("hpc").len(), 1);
    let same = world.submit(&confined);
    assert_eq!(made_by(&world, same), Some(execution(first, 0, 0)));
}

#[test]
fn what_is_far_and_large_and_soon_made_is_made_anew() {
    for (seconds, is_taken) in [(2, false), (2_000, true)] {
        let mut world = World::with_sites(&["edge", "hpc"]);
        let at = |site: &str| source("make it", 1, &format!(", site: {site}"));
        let run = world.submit(&at("edge"));
        let one = world.dispatched_one("edge");
        world.start("edge", one);
        let started = world.now;
        world.advance_with(Duration::from_secs(seconds), &["edge", "hpc"]);
        let mut finished = world.finished(one, Outcome::Succeeded, vec![file(1, 10 << 30)]);
        if let Report::Finished { elements, .. } = &mut finished {
            elements[0].started_at = Some(started);
        }
        world.report("edge", vec![finished]);
        assert_eq!(world.state(run), RunState::Succeeded);
        let other = world.submit(&at("hpc"));
        assert_eq!(made_by(&world, other).is_some(), is_taken, "10 GiB that took {seconds} s to make");
    }
}
