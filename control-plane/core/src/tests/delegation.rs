//! Steps that are delegated whole.

use std::time::Duration;

use atoll_model::elements::ElementSet;
use atoll_model::id::{Attempt, JournalId, RunId, StepIndex};
use atoll_model::limits;
use atoll_model::session::{
    Delegation, LocalState, NeedState, NotStartedReason, Outcome, PROTOCOL_VERSION_DELEGATION, Report, SiteCommand,
    StartedElement,
};
use atoll_model::value::Value;

use super::world::{World, execution, failed, item, not_started};
use crate::command::Response;
use crate::event::{ProjectChange, Request};
use crate::view::{ExecutionState, RunState, RunTags};

/// A list, a fan over it, a condition on what the fan makes, and one that reads it all.
fn source(site: &str) -> String {
    let text = "workflow: w
steps:
  list: { SITE run: x, outputs: { l: list } }
  each: { SITE foreach: \"${{ steps.list.outputs.l }}\", with: { item: \"${{ item }}\" }, run: x, outputs: { n: integer }, retry: { attempts: 3, backoff: 5s } }
  maybe: { SITE when: \"${{ size(steps.each.outputs.n) > 2 }}\", run: x, with: { all: \"${{ steps.each.outputs.n }}\" } }
  join: { SITE run: x, with: { first: \"${{ steps.each.outputs.n[0] + 1 }}\" }, outputs: { n: integer } }
outputs: { n: \"${{ steps.join.outputs.n }}\" }
";
    text.replace("SITE", site)
}

const FIRST: Attempt = Attempt::FIRST;

fn world(sites: &[&str]) -> World {
    let mut world = World::new();
    world.protocol = PROTOCOL_VERSION_DELEGATION;
    sites.iter().for_each(|site| world.add_site(site));
    world
}

fn delegations(commands: &[SiteCommand]) -> Vec<&Delegation> {
    let delegations = commands.iter().filter_map(|command| match command {
        SiteCommand::Delegate(delegation) => Some(&**delegation),
        _ => None,
    });
    delegations.collect()
}

fn withdrawn(commands: &[SiteCommand]) -> Vec<(u16, bool)> {
    let withdrawn = commands.iter().filter_map(|command| match command {
        SiteCommand::Withdraw { step, stop, .. } => Some((step.0, *stop)),
        _ => None,
    });
    withdrawn.collect()
}

fn list(count: i64) -> Vec<Value> {
    vec![Value::list((0..count).map(Value::Integer).collect())]
}

fn done(run: RunId, step: u16) -> Report {
    Report::DelegationEnded { run, step: StepIndex(step), kept: Vec::new(), reason: "done".to_owned() }
}

fn started(run: RunId, step: u16, element: u32, attempt: Attempt, world: &World) -> Report {
    Report::Started { run, step: StepIndex(step), elements: vec![StartedElement { element, attempt, at: world.now }] }
}

/// A run whose first step is at work at the only site that can have it, and the other three delegated there.
fn delegated(world: &mut World) -> RunId {
    delegated_by(world, &source("site: edge,"))
}

fn delegated_by(world: &mut World, source: &str) -> RunId {
    let run = world.submit(source);
    let commands = world.commands("edge");
    let steps: Vec<u16> = delegations(&commands).iter().map(|delegation| delegation.template.step.0).collect();
    assert_eq!(steps, [1, 2, 3]);
    let needs = delegations(&commands).into_iter().map(|delegation| delegation.needs[0].state.clone());
    let states: Vec<_> = needs.collect();
    assert_eq!(states, [NeedState::Dispatched { count: 1 }, NeedState::Delegated, NeedState::Delegated]);
    run
}

#[test]
fn what_the_site_did_alone_moves_the_same_rows_in_one_frame() {
    let mut world = world(&["edge", "other"]);
    let run = delegated(&mut world);
    world.disconnect("edge");
    world.advance(Duration::from_secs(300));
    let finished = |(step, element)| item((execution(run, step, element), FIRST), LocalState::Finished);
    world.connect_with("edge", [(0, 0), (1, 0), (1, 1), (3, 0)].map(finished).to_vec());
    let ok = |world: &World, step, element, outputs| {
        world.finished((execution(run, step, element), FIRST), Outcome::Succeeded, outputs)
    };
    let mut reports = vec![ok(&world, 0, 0, list(2))];
    reports.extend((0..2).map(|element| ok(&world, 1, element, vec![Value::Integer(4)])));
    reports.extend([done(run, 1), done(run, 2), ok(&world, 3, 0, vec![Value::Integer(5)]), done(run, 3)]);
    world.report("edge", reports);
    assert_eq!(world.state(run), RunState::Succeeded);
    assert_eq!(world.count(run, ExecutionState::Succeeded), 4);
    assert_eq!(world.state_of(execution(run, 2, 0)), ExecutionState::Skipped);
    assert_eq!((world.dispatched("edge"), world.dispatched("other")), Default::default());
}

#[test]
fn an_attempt_that_the_agent_gave_out_shows_as_it_starts_and_is_tried_again_there() {
    let mut world = world(&["edge"]);
    let run = delegated(&mut world);
    world.succeed("edge", (execution(run, 0, 0), FIRST), list(2));
    assert_eq!(world.count(run, ExecutionState::Ready), 2);
    let report = started(run, 1, 0, FIRST, &world);
    world.report("edge", vec![report]);
    assert_eq!(world.state_of(execution(run, 1, 0)), ExecutionState::Running);
    let Report::Finished { run, step, elements } =
        world.finished((execution(run, 1, 0), FIRST), failed("no"), Vec::new())
    else {
        unreachable!()
    };
    world.report("edge", vec![Report::Retried { run, step, elements }]);
    world.advance_with(Duration::from_secs(20), &["edge"]);
    assert_eq!(world.state_of(execution(run, 1, 0)), ExecutionState::Ready);
    assert!(world.dispatched("edge").is_empty(), "the agent does it");
    world.succeed("edge", (execution(run, 1, 0), Attempt(2)), vec![Value::Integer(1)]);
    assert_eq!(world.state_of(execution(run, 1, 0)), ExecutionState::Succeeded);
}

#[test]
fn an_element_that_the_agent_hands_back_is_placed_like_any_other() {
    let mut world = world(&["edge"]);
    let run = delegated(&mut world);
    world.succeed("edge", (execution(run, 0, 0), FIRST), list(2));
    world.end("edge", (execution(run, 1, 0), FIRST), not_started(NotStartedReason::InputUnavailable), Vec::new());
    world.advance_with(Duration::from_secs(5), &["edge"]);
    assert_eq!(world.dispatched("edge"), [(execution(run, 1, 0), Attempt(2))]);
}

#[test]
fn a_step_that_the_agent_hands_back_goes_on_as_if_it_had_never_had_it() {
    let mut world = world(&["edge"]);
    let run = delegated(&mut world);
    world.succeed("edge", (execution(run, 0, 0), FIRST), list(3));
    let kept = vec![(FIRST, ElementSet::from_range(1..2))];
    let reason = "it cannot".to_owned();
    world.report("edge", vec![Report::DelegationEnded { run, step: StepIndex(1), kept, reason }]);
    assert_eq!(world.dispatched("edge"), [(execution(run, 1, 0), FIRST), (execution(run, 1, 2), FIRST)]);
    assert_eq!(world.state_of(execution(run, 1, 1)), ExecutionState::Dispatched, "that one it kept");
}

#[test]
fn an_expression_without_a_value_fails_the_run_with_the_same_text_whoever_found_out() {
    let texts: Vec<_> = [1, PROTOCOL_VERSION_DELEGATION]
        .into_iter()
        .map(|protocol| {
            let mut world = World::new();
            world.protocol = protocol;
            world.add_site("edge");
            let source = "workflow: w\nsteps:\n  a: { run: x, outputs: { l: list } }\n  b: { when: \"${{ steps.a.outputs.l[0] == 1 }}\", run: x }\n";
            let run = world.submit(source);
            world.commands("edge");
            world.succeed("edge", (execution(run, 0, 0), FIRST), list(0));
            if protocol == PROTOCOL_VERSION_DELEGATION {
                let (kept, reason) = (Vec::new(), "it has no value".to_owned());
                world.report("edge", vec![Report::DelegationEnded { run, step: StepIndex(1), kept, reason }]);
            }
            assert_eq!(world.state(run), RunState::Failed);
            world.core.run(run).unwrap().error.unwrap().message
        })
        .collect();
    assert_eq!(texts[0], texts[1]);
}

#[test]
fn c4_a_delegation_of_a_lost_site_is_given_away_and_its_late_outcomes_count_once() {
    let mut world = world(&["edge"]);
    let run = delegated_by(&mut world, &source(""));
    world.add_site("other");
    world.succeed("edge", (execution(run, 0, 0), FIRST), list(2));
    world.disconnect("edge");
    world.advance_with(Duration::from_secs(3_600), &["other"]);
    let given = world.dispatched("other");
    let fourth = Attempt(4);
    assert_eq!(
        given,
        [(execution(run, 1, 0), fourth), (execution(run, 1, 1), fourth)],
        "three may have been made there"
    );
    world.succeed("other", (execution(run, 1, 0), fourth), vec![Value::Integer(1)]);
    // Back again, it has done both: one too late, the other before anybody else.
    let finished = |element| item((execution(run, 1, element), FIRST), LocalState::Finished);
    world.connect_with("edge", vec![finished(0), finished(1)]);
    for element in 0..2 {
        world.succeed("edge", (execution(run, 1, element), FIRST), vec![Value::Integer(7)]);
    }
    let outputs = |element| world.core.execution(execution(run, 1, element)).unwrap().outputs["n"].clone();
    assert_eq!([outputs(0), outputs(1)], [Value::Integer(1), Value::Integer(7)]);
    assert_eq!(world.count(run, ExecutionState::Skipped), 1);
    assert!(withdrawn(&world.commands("edge")).contains(&(1, false)));
}

#[test]
fn a_lost_site_that_alone_can_do_it_finds_its_delegation_when_it_comes_back() {
    let mut world = world(&["edge", "other"]);
    let run = delegated(&mut world);
    world.succeed("edge", (execution(run, 0, 0), FIRST), list(2));
    world.disconnect("edge");
    world.advance_with(Duration::from_secs(3_600), &["other"]);
    let running = item((execution(run, 1, 0), FIRST), LocalState::Running);
    world.connect_with("edge", vec![running]);
    assert!(withdrawn(&world.commands("edge")).is_empty());
    assert_eq!(world.state_of(execution(run, 1, 0)), ExecutionState::Dispatched);
    world.succeed("edge", (execution(run, 1, 0), FIRST), vec![Value::Integer(1)]);
    world.succeed("edge", (execution(run, 1, 1), FIRST), vec![Value::Integer(1)]);
    assert_eq!(world.count(run, ExecutionState::Succeeded), 3);
    assert!(world.dispatched("edge").is_empty());
}

#[test]
fn a_cancelled_run_ends_when_the_agent_has_said_what_it_kept_and_that_is_stopped() {
    let mut world = world(&["edge"]);
    let run = delegated(&mut world);
    world.succeed("edge", (execution(run, 0, 0), FIRST), list(3));
    assert_eq!(world.ask(Request::CancelRun { run, reason: String::new() }), Ok(Response::Done));
    assert_eq!(withdrawn(&world.commands("edge")), [(1, true), (2, true), (3, true)]);
    assert_eq!(world.state(run), RunState::Cancelling);
    let kept = vec![(FIRST, ElementSet::from_range(0..1))];
    let ended = |step, kept| Report::DelegationEnded { run, step: StepIndex(step), kept, reason: String::new() };
    world.report("edge", vec![ended(1, kept), ended(2, Vec::new()), ended(3, Vec::new())]);
    assert_eq!(world.state(run), RunState::Cancelling, "one is still at work");
    world.end("edge", (execution(run, 1, 0), FIRST), Outcome::Cancelled, Vec::new());
    assert_eq!(world.state(run), RunState::Cancelled);
}

#[test]
fn a_drained_site_hands_back_what_it_has_not_begun() {
    let mut world = world(&["edge"]);
    delegated(&mut world);
    let site = "edge".parse().unwrap();
    assert_eq!(world.ask(Request::DrainSite { site, drained: true }), Ok(Response::Done));
    assert_eq!(withdrawn(&world.commands("edge")), [(1, false), (2, false), (3, false)]);
}

#[test]
fn an_agent_with_a_new_journal_has_no_delegation_and_no_attempt_is_given_out_twice() {
    let mut world = world(&["edge"]);
    let run = delegated(&mut world);
    world.succeed("edge", (execution(run, 0, 0), FIRST), list(1));
    world.disconnect("edge");
    let agent = world.agents.get_mut("edge").unwrap();
    agent.journal = JournalId::from_bits(999);
    (agent.last_command, agent.last_report, agent.acknowledged_report) = Default::default();
    world.connect("edge");
    let dispatched = world.dispatched("edge");
    assert_eq!(dispatched, [(execution(run, 1, 0), Attempt(4))], "three attempts may have been made there");
}

#[test]
fn agents_of_the_version_before_get_executions_and_no_steps() {
    let mut world = World::with_sites(&["edge"]);
    world.submit(&source(""));
    assert!(delegations(&world.commands("edge")).is_empty());
}

fn limit(world: &mut World, max_executions: Option<u32>) {
    let max_executions = Some(max_executions);
    let change = ProjectChange { share: None, max_executions, max_runs: None, workflow: None };
    let project = RunTags::PROJECT.to_owned();
    assert_eq!(world.ask(Request::SetProject { project, change }), Ok(Response::Done));
}

#[test]
fn under_a_limit_nothing_is_delegated_and_one_on_runs_is_none() {
    let mut world = world(&["edge"]);
    limit(&mut world, Some(4));
    world.submit(&source(""));
    assert!(delegations(&world.commands("edge")).is_empty());
    limit(&mut world, None);
    let one_at_a_time = source("").replace("workflow: w\n", "workflow: v\nconcurrency: { runs: 1 }\n");
    delegated_by(&mut world, &one_at_a_time);
}

#[test]
fn a_limit_that_is_set_later_counts_what_has_begun_and_takes_back_the_rest() {
    let mut world = world(&["edge"]);
    let run = delegated(&mut world);
    world.succeed("edge", (execution(run, 0, 0), FIRST), list(5));
    limit(&mut world, Some(2));
    assert_eq!(withdrawn(&world.commands("edge")), [(1, false), (2, false), (3, false)]);
    // Three had begun by then: more than the limit allows, and they go on.
    let kept = vec![(FIRST, ElementSet::from_range(0..3))];
    let reason = "it was withdrawn".to_owned();
    world.report(
        "edge",
        vec![Report::DelegationEnded { run, step: StepIndex(1), kept, reason }, done(run, 2), done(run, 3)],
    );
    assert_eq!(world.count(run, ExecutionState::Dispatched), 3);
    assert!(world.dispatched("edge").is_empty());
    for element in 0..2 {
        world.succeed("edge", (execution(run, 1, element), FIRST), vec![Value::Integer(1)]);
    }
    assert_eq!(world.dispatched("edge"), [(execution(run, 1, 3), FIRST)], "two at a time");
}

#[test]
fn c4_a_limit_that_is_set_while_a_site_is_lost_holds_when_it_comes_back() {
    let mut world = world(&["edge", "other"]);
    let run = delegated(&mut world);
    world.succeed("edge", (execution(run, 0, 0), FIRST), list(3));
    world.disconnect("edge");
    world.advance_with(Duration::from_secs(3_600), &["other"]);
    limit(&mut world, Some(1));
    let ran = |element| item((execution(run, 1, element), FIRST), LocalState::Running);
    world.connect_with("edge", vec![ran(0), ran(1)]);
    assert_eq!(withdrawn(&world.commands("edge")), [(1, false), (2, false), (3, false)]);
    assert_eq!(world.count(run, ExecutionState::Dispatched), 2, "what has begun goes on");
    world.report("edge", (1..4).map(|step| done(run, step)).collect());
    world.succeed("edge", (execution(run, 1, 0), FIRST), vec![Value::Integer(1)]);
    assert!(world.dispatched("edge").is_empty());
    world.succeed("edge", (execution(run, 1, 1), FIRST), vec![Value::Integer(1)]);
    assert_eq!(world.dispatched("edge"), [(execution(run, 1, 2), FIRST)]);
}

#[test]
fn steps_that_only_wait_for_others_and_do_nothing_are_delegated_too() {
    let mut world = world(&["edge"]);
    let source = "workflow: w
steps:
  a: { run: x }
  gate: { executor: \"null\", after: [a] }
  b: { run: x, after: [gate] }
  many: { foreach: \"${{ range(3) }}\", run: x, after: [b] }
  end: { executor: \"null\", after: [many, gate] }
";
    let run = world.submit(source);
    let commands = world.commands("edge");
    let steps: Vec<u16> = delegations(&commands).iter().map(|delegation| delegation.template.step.0).collect();
    assert_eq!(steps, [1, 2, 3, 4]);
    world.disconnect("edge");
    world.advance(Duration::from_secs(300));
    let all = [(0, 0), (1, 0), (2, 0), (3, 0), (3, 1), (3, 2), (4, 0)];
    let finished = |(step, element)| item((execution(run, step, element), FIRST), LocalState::Finished);
    world.connect_with("edge", all.map(finished).to_vec());
    let ended = all
        .map(|(step, element)| world.finished((execution(run, step, element), FIRST), Outcome::Succeeded, Vec::new()));
    world.report("edge", ended.into_iter().chain((1..5).map(|step| done(run, step))).collect());
    assert_eq!(world.state(run), RunState::Succeeded);
}

#[test]
fn a_script_that_takes_agents_down_is_taken_back_from_an_agent_that_has_not_begun_it() {
    let mut world = world(&["edge", "other"]);
    let poison = "workflow: p\nsteps:\n  a: { site: SITE, run: bad }\n";
    let source = "workflow: w\nsteps:\n  a: { site: edge, run: x }\n  b: { site: edge, run: bad, after: [a] }\n";
    world.submit(source);
    assert_eq!(delegations(&world.commands("edge")).len(), 1);
    for crash in 0..limits::POISON_VERSION_CRASHES_MAX {
        let site = ["edge", "other"][crash as usize % 2];
        let run = world.submit(&poison.replace("SITE", site));
        let first = (execution(run, 0, 0), FIRST);
        assert!(world.dispatched(site).contains(&first));
        let message = "it went down".to_owned();
        world.end(site, first, Outcome::Interrupted { message }, Vec::new());
        if crash + 1 < limits::POISON_VERSION_CRASHES_MAX {
            world.ask(Request::CancelRun { run, reason: String::new() }).unwrap();
            assert!(withdrawn(&world.commands("edge")).is_empty());
        }
    }
    assert_eq!(withdrawn(&world.commands("edge")), [(1, false)]);
}

#[test]
fn a_run_that_fails_does_not_wait_for_a_lost_site_that_was_asked_for_a_step_before() {
    let mut world = world(&["edge", "other"]);
    let source = "workflow: w
steps:
  a: { site: edge, run: x }
  b: { site: edge, run: x, after: [a] }
  c: { site: other, run: x }
";
    let run = world.submit(source);
    assert_eq!(delegations(&world.commands("edge")).len(), 1);
    let site = "edge".parse().unwrap();
    assert_eq!(world.ask(Request::DrainSite { site, drained: true }), Ok(Response::Done));
    assert_eq!(withdrawn(&world.commands("edge")), [(1, false)]);
    world.disconnect("edge");
    world.advance_with(Duration::from_secs(3_600), &["other"]);
    world.end("other", (execution(run, 2, 0), FIRST), failed("no"), Vec::new());
    assert_eq!(world.state(run), RunState::Failed);
}

#[test]
fn a16_a_step_that_goes_along_with_what_it_needs_has_no_attempt_that_an_agent_may_have_given_out() {
    let mut world = world(&["edge"]);
    let source = "workflow: w
steps:
  a: { run: x, outputs: { l: list, n: integer } }
  b: { run: x, foreach: \"${{ steps.a.outputs.l }}\", outputs: { n: integer } }
  c: { run: x, with: { n: \"${{ steps.b.outputs.n[0] }}\" }, outputs: { n: integer } }
  d: { run: x, with: { n: \"${{ steps.c.outputs.n }}\" } }
";
    let run = world.submit(source);
    assert_eq!(delegations(&world.commands("edge")).len(), 3);
    world.succeed("edge", (execution(run, 0, 0), FIRST), vec![Value::list(vec![Value::Integer(1)]), Value::Integer(1)]);
    world.disconnect("edge");
    let agent = world.agents.get_mut("edge").unwrap();
    agent.journal = JournalId::from_bits(999);
    (agent.last_command, agent.last_report, agent.acknowledged_report) = Default::default();
    world.connect("edge");
    let again = Attempt(2);
    assert_eq!(world.dispatched("edge"), [(execution(run, 1, 0), again)]);
    world.succeed("edge", (execution(run, 1, 0), again), vec![Value::Integer(1)]);
    assert_eq!(world.dispatched("edge"), [(execution(run, 2, 0), again), (execution(run, 3, 0), again)]);
}

#[test]
fn b6_what_an_agent_did_of_a_delegated_step_since_the_backup_counts() {
    let mut world = world(&["edge", "other"]);
    let run = delegated(&mut world);
    let backup = world.facts.len();
    let ok = |world: &World, step, element, outputs| {
        world.finished((execution(run, step, element), FIRST), Outcome::Succeeded, outputs)
    };
    let mut reports = vec![ok(&world, 0, 0, list(2))];
    reports.extend((0..2).map(|element| ok(&world, 1, element, vec![Value::Integer(4)])));
    world.report("edge", reports);
    assert_eq!(world.count(run, ExecutionState::Succeeded), 3);

    world.set_back(backup);
    world.ask(Request::NoteRestored).unwrap();
    assert_eq!(world.count(run, ExecutionState::Succeeded), 0);
    let finished = |(step, element)| item((execution(run, step, element), FIRST), LocalState::Finished);
    world.catch_up("edge", [(0, 0), (1, 0), (1, 1)].map(finished).to_vec());
    assert_eq!(
        world.count(run, ExecutionState::Succeeded),
        3,
        "its delegations are given away, what it has done is not"
    );
}
