//! Runs, steps, elements, retries.

use std::time::Duration;

use atoll_model::session::{NotStartedReason, Outcome, SiteCommand};
use atoll_model::value::Value;

use super::world::{World, execution, failed, interrupted, not_started};
use crate::view::{ExecutionState, RunState};
use crate::{Rejection, Request};

const ONE: &str =
    "workflow: w\nsteps:\n  a: { run: x, outputs: { n: integer } }\noutputs:\n  n: ${{ steps.a.outputs.n }}\n";

#[test]
fn a_run_of_one_step_succeeds() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit(ONE);
    let a = world.dispatched_one("edge");
    world.start("edge", a);
    assert_eq!(world.state(run), RunState::Running);
    assert_eq!(world.state_of(a.0), ExecutionState::Running);
    world.succeed("edge", a, vec![Value::Integer(3)]);
    let view = world.core.run(run).unwrap();
    assert_eq!(view.state, RunState::Succeeded);
    assert_eq!(view.outputs["n"], Value::Integer(3));
    assert!(matches!(world.commands("edge").as_slice(), [SiteCommand::Forget { .. }]));
}

#[test]
fn a_submission_that_is_repeated_makes_no_second_run() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit(ONE);
    let again = Request::Submit {
        run,
        workflow: super::world::workflow(ONE),
        source: ONE.into(),
        inputs: Default::default(),
        submitted_by: "test".to_owned(),
        traceparent: None,
        tags: Default::default(),
    };
    world.ask(again).unwrap();
    assert_eq!(world.core.runs(&Default::default()).len(), 1);
    assert_eq!(world.dispatched("edge").len(), 1);
}

#[test]
fn elements_of_a_fan_out_are_dispatched_as_one_range_and_their_outputs_form_a_list() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit(
        "workflow: w\nsteps:\n  a: { run: x, foreach: \"${{ range(3) }}\", outputs: { n: integer } }\n  b: { run: x, with: { all: \"${{ steps.a.outputs.n }}\" } }\n",
    );
    let commands = world.commands("edge");
    assert!(matches!(commands.as_slice(), [SiteCommand::Prepare(_), SiteCommand::Dispatch(_)]));
    for element in [2, 0, 1] {
        let n = Value::Integer(i64::from(element) * 10);
        world.succeed("edge", (execution(run, 0, element), atoll_model::id::Attempt::FIRST), vec![n]);
    }
    let b = world.dispatched_one("edge");
    let inputs = world.core.execution(b.0).unwrap().inputs;
    assert_eq!(inputs["all"], Value::list(vec![Value::Integer(0), Value::Integer(10), Value::Integer(20)]));
}

#[test]
fn a_step_whose_condition_is_false_is_skipped_and_so_is_what_needs_it() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit(
        "workflow: w\nsteps:\n  a: { run: x, when: \"${{ 1 > 2 }}\", outputs: { n: integer } }\n  b: { run: x, with: { n: \"${{ steps.a.outputs.n }}\" } }\noutputs:\n  n: ${{ steps.a.outputs.n }}\n",
    );
    assert_eq!(world.state(run), RunState::Succeeded);
    assert_eq!(world.count(run, ExecutionState::Skipped), 2);
    assert_eq!(world.core.run(run).unwrap().outputs["n"], Value::Null);
}

#[test]
fn a_fan_out_over_nothing_ends_at_once() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit("workflow: w\nsteps:\n  a: { run: x, foreach: [] }\n");
    assert_eq!(world.state(run), RunState::Succeeded);
}

#[test]
fn a_failed_attempt_is_followed_by_another_after_its_back_off() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit("workflow: w\nsteps:\n  a: { run: x, retry: { attempts: 3, backoff: 5s } }\n");
    let first = world.dispatched_one("edge");
    world.fail("edge", first);
    assert_eq!(world.state_of(first.0), ExecutionState::Ready);
    world.advance(Duration::from_secs(4));
    assert!(world.dispatched("edge").is_empty());
    world.advance(Duration::from_secs(1));
    let second = world.dispatched_one("edge");
    assert_eq!(second.1.0, 2);
    world.fail("edge", second);
    world.advance(Duration::from_secs(9));
    assert!(world.dispatched("edge").is_empty(), "the back-off doubles");
    world.advance(Duration::from_secs(1));
    let third = world.dispatched_one("edge");
    world.fail("edge", third);
    assert_eq!(world.state(run), RunState::Failed);
}

#[test]
fn the_next_attempt_goes_to_another_site_if_it_is_asked_for() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    world.submit("workflow: w\nsteps:\n  a: { run: x, retry: { attempts: 2, backoff: 1s, other_site: true } }\n");
    let at_edge = world.dispatched("edge");
    let (first, other) = if at_edge.is_empty() { ("hpc", "edge") } else { ("edge", "hpc") };
    let execution = at_edge.first().copied().unwrap_or_else(|| world.dispatched_one("hpc"));
    world.fail(first, execution);
    world.advance(Duration::from_secs(1));
    assert_eq!(world.dispatched_one(other).1.0, 2);
}

#[test]
fn the_first_failure_cancels_what_waits_and_lets_end_what_runs() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit("workflow: w\nsteps:\n  a: { run: x }\n  b: { run: x }\n  c: { run: x, after: [a] }\n");
    let dispatched = world.dispatched("edge");
    world.start("edge", dispatched[1]);
    world.end("edge", dispatched[0], failed("it broke"), Vec::new());
    assert_eq!(world.state(run), RunState::Running);
    assert_eq!(world.count(run, ExecutionState::Cancelled), 1);
    assert!(world.commands("edge").is_empty(), "what runs is not stopped");
    world.succeed("edge", dispatched[1], Vec::new());
    let view = world.core.run(run).unwrap();
    assert_eq!(view.state, RunState::Failed);
    let error = view.error.unwrap();
    assert_eq!((error.step.as_str(), error.message.as_str()), ("a", "it broke"));
    assert_eq!(error.execution, Some(dispatched[0].0));
}

#[test]
fn cancelling_a_run_stops_what_runs_and_may_be_repeated() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit("workflow: w\nsteps:\n  a: { run: x }\n  b: { run: x, after: [a] }\n");
    let a = world.dispatched_one("edge");
    world.start("edge", a);
    for _ in 0..2 {
        world.ask(Request::CancelRun { run, reason: "enough".to_owned() }).unwrap();
    }
    assert_eq!(world.state(run), RunState::Cancelling);
    let commands = world.commands("edge");
    assert!(matches!(commands.as_slice(), [SiteCommand::Cancel { reason, .. }] if reason == "enough"));
    world.end("edge", a, Outcome::Cancelled, Vec::new());
    assert_eq!(world.state(run), RunState::Cancelled);
    world.ask(Request::CancelRun { run, reason: String::new() }).unwrap();
}

#[test]
fn a_run_that_nothing_was_dispatched_of_is_cancelled_at_once() {
    let mut world = World::with_sites(&["edge"]);
    world.disconnect("edge");
    let run = world.submit(ONE);
    world.ask(Request::CancelRun { run, reason: String::new() }).unwrap();
    assert_eq!(world.state(run), RunState::Cancelled);
}

#[test]
fn a_run_that_no_site_could_ever_run_is_refused() {
    let mut world = World::with_sites(&["edge"]);
    let refused = |result: Result<_, Rejection>| match result {
        Err(Rejection::Invalid(reason)) => reason,
        other => panic!("not refused: {other:?}"),
    };
    let memory = world.try_submit("workflow: w\nsteps:\n  a: { run: x, resources: { memory: 64GiB } }\n", &[]);
    assert!(refused(memory).contains("asks for 65536 MiB of memory, and it has 8192 MiB"));
    let label = world.try_submit("workflow: w\nsteps:\n  a: { run: x, site: { labels: { tier: hpc } } }\n", &[]);
    assert!(refused(label).contains("edge: it has no label tier"));
    let input = world.try_submit("workflow: w\ninputs: { n: integer }\nsteps:\n  a: { run: x }\n", &[]);
    assert!(refused(input).contains("input n has no value"));
}

#[test]
fn work_for_a_site_that_is_away_waits_with_its_reason() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    world.disconnect("hpc");
    let run = world.submit("workflow: w\nsteps:\n  a: { run: x, site: hpc }\n");
    let view = world.core.execution(execution(run, 0, 0)).unwrap();
    assert_eq!(view.state, ExecutionState::Ready);
    assert!(view.waiting_for.unwrap().contains("hpc: its agent is not connected"));
    world.connect("hpc");
    world.dispatched_one("hpc");
}

#[test]
fn an_output_over_the_limit_fails_its_execution_with_its_name() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit("workflow: w\nsteps:\n  a: { run: x, outputs: { text: string } }\n");
    let a = world.dispatched_one("edge");
    world.succeed("edge", a, vec![Value::string("x".repeat(300_000))]);
    let error = world.core.run(run).unwrap().error.unwrap();
    assert!(error.message.contains("output text has 300004 bytes"), "{}", error.message);
}

#[test]
fn an_expression_without_a_value_fails_the_run() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit("workflow: w\ninputs: { l: { type: list, default: [] } }\nsteps:\n  a: { run: x, with: { n: \"${{ inputs.l[3] }}\" } }\n");
    assert_eq!(world.state(run), RunState::Failed);
    assert_eq!(world.core.run(run).unwrap().error.unwrap().step, "a");
}

#[test]
fn g4_an_execution_whose_site_keeps_going_down_is_given_up() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit(ONE);
    for _ in 0..3 {
        let a = world.dispatched_one("edge");
        world.end("edge", a, interrupted(), Vec::new());
    }
    assert_eq!(world.state(run), RunState::Failed);
    assert!(world.core.run(run).unwrap().error.unwrap().message.contains("went down 3 times"));
}

#[test]
fn what_an_agent_hands_back_is_given_out_again() {
    let mut world = World::with_sites(&["edge"]);
    world.submit(ONE);
    let a = world.dispatched_one("edge");
    world.end("edge", a, not_started(NotStartedReason::Expired), Vec::new());
    world.advance(Duration::from_secs(1));
    assert_eq!(world.dispatched_one("edge").1.0, 2);
}

#[test]
fn an_execution_of_unknown_fate_waits_for_a_person() {
    let source = "workflow: w\nsteps:\n  a: { run: x, start: at-most-once }\n";
    for run_again in [true, false] {
        let mut world = World::with_sites(&["edge"]);
        let run = world.submit(source);
        let a = world.dispatched_one("edge");
        world.end("edge", a, interrupted(), Vec::new());
        assert_eq!(world.state_of(a.0), ExecutionState::Unknown);
        assert_eq!(world.state(run), RunState::Running);
        world.advance(Duration::from_secs(3_600));
        assert!(world.dispatched("edge").is_empty());
        world.heartbeat("edge");
        if world.agents["edge"].goodbye.is_some() || world.core.sites()[0].state != crate::view::SiteState::Ready {
            world.connect("edge");
        }
        world.ask(Request::ResolveUnknown { execution: a.0, run_again }).unwrap();
        if run_again {
            let again = world.dispatched_one("edge");
            assert_eq!(again.1.0, 2);
            world.succeed("edge", again, Vec::new());
            assert_eq!(world.state(run), RunState::Succeeded);
        } else {
            assert_eq!(world.state(run), RunState::Failed);
        }
    }
}

#[test]
fn runs_take_turns() {
    let mut world = World::with(|config| config.dispatch_ahead = 2_000);
    world.compare_recovery = false;
    world.add_site("edge");
    let source = "workflow: w\nsteps:\n  a: { run: x, foreach: \"${{ range(20000) }}\" }\n";
    let first = world.submit(source);
    let second = world.submit(source);
    let mut seen = [0, 0];
    for _ in 0..6 {
        let dispatched = world.dispatched("edge");
        for (execution, _) in &dispatched {
            seen[usize::from(execution.run == second)] += 1;
        }
        let reports = dispatched.iter().map(|e| world.finished(*e, Outcome::Succeeded, Vec::new())).collect();
        world.report("edge", reports);
    }
    assert!(world.core.run(first).is_some());
    assert!(seen[1] * 3 > seen[0], "the second run gets its share: {seen:?}");
}

#[test]
fn a_million_waiting_elements_are_one_range() {
    let mut world = World::with_sites(&["edge"]);
    world.disconnect("edge");
    let run = world.submit("workflow: w\nsteps:\n  a: { run: x, foreach: \"${{ range(1000000) }}\" }\n");
    assert_eq!(world.count(run, ExecutionState::Ready), 1_000_000);
    let expanded = world.facts.iter().find(|fact| matches!(fact, crate::Fact::StepExpanded { .. })).unwrap();
    let crate::Fact::StepExpanded { items, .. } = expanded else { unreachable!() };
    assert_eq!(*items, crate::Items::Range);
}

#[test]
fn large_steps_are_spread_over_sites_by_their_room() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    world.submit("workflow: w\nsteps:\n  a: { run: x, foreach: \"${{ range(16) }}\" }\n");
    let (edge, hpc) = (world.dispatched("edge").len(), world.dispatched("hpc").len());
    assert_eq!((edge, hpc), (8, 8));
}
