//! Silence and loss: when work is given to another, and what becomes of outcomes that come late.

use std::time::Duration;

use atoll_model::id::Attempt;
use atoll_model::session::{LocalState, Outcome, Report, SiteCommand, Verdict};
use atoll_model::value::Value;

use super::world::{World, failed, item};
use crate::view::{ExecutionState, RunState, SiteState};

const ANYWHERE: &str = "workflow: w\nsteps:\n  a: { run: x, outputs: { n: integer } }\n";
const ONCE: &str = "workflow: w\nsteps:\n  a: { run: x, start: at-most-once }\n";
const LOST_AFTER: Duration = Duration::from_secs(16 * 60);

/// A run of one execution at `edge`, which then falls silent and is lost, while `hpc` is heard.
fn lost(source: &str, started: bool) -> (World, (atoll_model::id::ExecutionId, Attempt)) {
    let mut world = World::with_sites(&["edge"]);
    world.submit(source);
    let a = world.dispatched_one("edge");
    if started {
        world.start("edge", a);
    }
    world.add_site("hpc");
    world.advance_with(LOST_AFTER, &["hpc"]);
    assert_eq!(world.core.site(&"edge".parse().unwrap()).unwrap().state, SiteState::Lost);
    (world, a)
}

fn site_state(world: &World, site: &str) -> SiteState {
    world.core.site(&site.parse().unwrap()).unwrap().state
}

#[test]
fn a_silent_site_is_suspected_then_disconnected_then_lost() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    world.advance_with(Duration::from_secs(30), &["hpc"]);
    assert_eq!(site_state(&world, "edge"), SiteState::Ready);
    world.advance_with(Duration::from_secs(30), &["hpc"]);
    assert_eq!(site_state(&world, "edge"), SiteState::Suspect);
    world.advance_with(Duration::from_secs(90), &["hpc"]);
    assert_eq!(site_state(&world, "edge"), SiteState::Disconnected);
    world.advance_with(LOST_AFTER, &["hpc"]);
    assert_eq!(site_state(&world, "edge"), SiteState::Lost);
    assert_eq!(site_state(&world, "hpc"), SiteState::Ready);
}

#[test]
fn a_lost_session_hands_nothing_over() {
    let mut world = World::with_sites(&["edge"]);
    world.submit(ANYWHERE);
    let a = world.dispatched_one("edge");
    world.add_site("hpc");
    world.disconnect("edge");
    world.advance_with(Duration::from_secs(14 * 60), &["hpc"]);
    assert!(world.dispatched("hpc").is_empty());
    assert_eq!(world.state_of(a.0), ExecutionState::Dispatched);
}

#[test]
fn what_a_lost_site_had_gets_another_attempt_elsewhere() {
    let (mut world, a) = lost(ANYWHERE, true);
    let replacement = world.dispatched_one("hpc");
    assert_eq!((replacement.0, replacement.1.0), (a.0, 2));
    world.succeed("hpc", replacement, vec![Value::Integer(1)]);
    assert_eq!(world.state(a.0.run), RunState::Succeeded);
}

#[test]
fn what_must_not_start_twice_is_unknown_when_its_site_is_lost_and_its_late_outcome_counts() {
    let (mut world, a) = lost(ONCE, false);
    assert!(world.dispatched("hpc").is_empty());
    assert_eq!(world.state_of(a.0), ExecutionState::Unknown);
    world.connect_with("edge", vec![item(a, LocalState::Running)]);
    assert_eq!(world.agents["edge"].verdicts, [Verdict::Keep]);
    assert_eq!(world.state_of(a.0), ExecutionState::Running);
    world.succeed("edge", a, Vec::new());
    assert_eq!(world.state(a.0.run), RunState::Succeeded);
}

#[test]
fn nobody_is_lost_for_a_while_after_a_restart() {
    let mut world = World::with(|config| config.lost_after = Duration::from_secs(60));
    world.add_site("edge");
    world.restart();
    world.advance(Duration::from_secs(299));
    assert_ne!(site_state(&world, "edge"), SiteState::Lost);
    world.advance(Duration::from_secs(2));
    assert_eq!(site_state(&world, "edge"), SiteState::Lost);
}

#[test]
fn b7_when_many_sites_fall_silent_at_once_nobody_is_lost() {
    let mut world = World::with_sites(&["a", "b", "c", "d"]);
    world.advance_with(LOST_AFTER * 4, &["d"]);
    assert!(["a", "b", "c"].iter().all(|site| site_state(&world, site) == SiteState::Disconnected));
    for site in ["b", "c"] {
        world.connect(site);
    }
    world.advance_with(LOST_AFTER, &["b", "c", "d"]);
    assert_eq!(site_state(&world, "a"), SiteState::Lost, "one silent site among four is one silent site");
}

#[test]
fn c4_a_late_success_is_adopted_while_its_replacement_has_not_started() {
    let (mut world, a) = lost(ANYWHERE, true);
    let replacement = world.dispatched_one("hpc");
    world.connect_with("edge", vec![item(a, LocalState::Finished)]);
    world.succeed("edge", a, vec![Value::Integer(1)]);
    assert_eq!(world.state(a.0.run), RunState::Succeeded);
    assert_eq!(world.core.execution(a.0).unwrap().attempt, a.1);
    let commands = world.commands("hpc");
    assert!(matches!(commands.first(), Some(SiteCommand::Cancel { .. })), "{commands:?}");
    world.end("hpc", replacement, Outcome::Cancelled, Vec::new());
    assert_eq!(world.state(a.0.run), RunState::Succeeded);
}

#[test]
fn c4_the_first_success_counts_while_both_run() {
    let (mut world, a) = lost(ANYWHERE, true);
    let replacement = world.dispatched_one("hpc");
    world.start("hpc", replacement);
    world.connect_with("edge", vec![item(a, LocalState::Finished)]);
    world.succeed("edge", a, vec![Value::Integer(1)]);
    assert_eq!(world.state(a.0.run), RunState::Succeeded);
    assert!(matches!(world.commands("hpc").first(), Some(SiteCommand::Cancel { .. })));
}

#[test]
fn c4_a_late_outcome_after_the_replacement_ended_is_evidence_only() {
    let (mut world, a) = lost(ANYWHERE, true);
    let replacement = world.dispatched_one("hpc");
    world.succeed("hpc", replacement, vec![Value::Integer(2)]);
    let state = world.core.execution(a.0).unwrap();
    world.connect_with("edge", vec![item(a, LocalState::Finished)]);
    world.succeed("edge", a, vec![Value::Integer(1)]);
    assert_eq!(world.core.execution(a.0).unwrap(), state);
    let evidence = world
        .facts
        .iter()
        .any(|fact| matches!(fact, crate::Fact::OutcomeSuperseded { same_outputs: false, succeeded: true, .. }));
    assert!(evidence);
}

#[test]
fn c4_a_late_failure_changes_nothing() {
    let (mut world, a) = lost(ANYWHERE, true);
    let replacement = world.dispatched_one("hpc");
    world.connect_with("edge", vec![item(a, LocalState::Finished)]);
    // Taken back while its end is not known, it is the current attempt again, and its failure is its own.
    world.end("edge", a, failed("broken"), Vec::new());
    assert_eq!(world.state(a.0.run), RunState::Failed);
    let _ = replacement;
}

#[test]
fn work_that_still_runs_at_a_site_that_returns_is_taken_back() {
    let (mut world, a) = lost("workflow: w\nsteps:\n  a: { run: x, site: edge }\n", true);
    assert_eq!(world.state_of(a.0), ExecutionState::Ready);
    world.connect_with("edge", vec![item(a, LocalState::Running)]);
    assert_eq!(world.agents["edge"].verdicts, [Verdict::Keep]);
    assert!(world.dispatched("edge").is_empty());
    world.succeed("edge", a, Vec::new());
    assert_eq!(world.state(a.0.run), RunState::Succeeded);
}

#[test]
fn work_that_still_runs_where_it_was_given_away_is_stopped_when_the_replacement_runs() {
    let (mut world, a) = lost(ANYWHERE, true);
    let replacement = world.dispatched_one("hpc");
    world.start("hpc", replacement);
    world.connect_with("edge", vec![item(a, LocalState::Running)]);
    assert_eq!(world.agents["edge"].verdicts, [Verdict::Cancel]);
    world.end("edge", a, Outcome::Cancelled, Vec::new());
    world.succeed("hpc", replacement, vec![Value::Integer(1)]);
    assert_eq!(world.state(a.0.run), RunState::Succeeded);
}

#[test]
fn a_run_that_is_being_cancelled_ends_when_its_site_is_lost() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit(ANYWHERE);
    let a = world.dispatched_one("edge");
    world.start("edge", a);
    world.add_site("hpc");
    world.disconnect("edge");
    world.ask(crate::Request::CancelRun { run, reason: String::new() }).unwrap();
    world.advance_with(LOST_AFTER, &["hpc"]);
    assert_eq!(world.state(run), RunState::Cancelled);
}

#[test]
fn an_attempt_that_one_report_ends_twice_ends_once() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit(ANYWHERE);
    let a = world.dispatched_one("edge");
    let first = world.finished(a, Outcome::Succeeded, vec![Value::Integer(1)]);
    let again = world.finished(a, failed("exit code 1"), Vec::new());
    let (Report::Finished { run: of, step, mut elements }, Report::Finished { elements: more, .. }) = (first, again)
    else {
        unreachable!("that is what was made")
    };
    elements.extend(more);
    world.report("edge", vec![Report::Finished { run: of, step, elements }]);
    assert_eq!(world.state(run), RunState::Succeeded);
    assert_eq!(world.state_of(a.0), ExecutionState::Succeeded);
}
