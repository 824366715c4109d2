//! Steps that go along with what they wait for.

use std::time::Duration;

use atoll_model::id::{Attempt, JournalId};
use atoll_model::session::{
    BindingSource, Dispatch, DispatchElements, LocalState, NotStartedReason, Outcome, SiteCommand, Verdict,
};
use atoll_model::value::Value;

use super::world::{World, execution, failed, file, item, not_started};
use crate::view::{ExecutionState, RunState};

fn chain(length: usize, site: &str) -> String {
    let mut source = "workflow: w\nsteps:\n".to_owned();
    for step in 0..length {
        let with = match step {
            0 => String::new(),
            _ => format!(", with: {{ n: \"${{{{ steps.s{}.outputs.n }}}}\" }}", step - 1),
        };
        source += &format!("  s{step}: {{ run: x{site}{with}, outputs: {{ n: integer }} }}\n");
    }
    source
}

#[test]
fn a_chain_on_one_site_is_dispatched_at_once() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit(&chain(5, ""));
    let commands = world.commands("edge");
    let dispatches: Vec<_> = commands
        .iter()
        .filter_map(|command| match command {
            SiteCommand::Dispatch(dispatch) => Some(dispatch.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(dispatches.len(), 5);
    assert!(!dispatches[0].fragment);
    for (step, dispatch) in dispatches.iter().enumerate().skip(1) {
        let Dispatch { fragment: true, elements: DispatchElements::Bound(bound), .. } = dispatch else {
            panic!("{dispatch:?}")
        };
        let expected = BindingSource::Output {
            execution: execution(run, u16::try_from(step - 1).unwrap(), 0),
            attempt: Attempt::FIRST,
            output: "n".to_owned(),
        };
        assert_eq!(bound[0].1[0].source, expected);
    }
    for step in 0..5 {
        world.succeed("edge", (execution(run, step, 0), Attempt::FIRST), vec![Value::Integer(1)]);
    }
    assert_eq!(world.state(run), RunState::Succeeded);
}

#[test]
fn a_long_chain_is_dispatched_as_it_goes() {
    let mut world = World::with_sites(&["edge"]);
    world.compare_recovery = false;
    let run = world.submit(&chain(600, ""));
    let mut seen = world.dispatched("edge").len();
    assert_eq!(seen, 257);
    for step in 0..600 {
        world.succeed("edge", (execution(run, step, 0), Attempt::FIRST), vec![Value::Integer(1)]);
        seen += world.dispatched("edge").len();
    }
    assert_eq!(seen, 600);
    assert_eq!(world.state(run), RunState::Succeeded);
}

#[test]
fn a_step_that_must_run_elsewhere_waits_for_its_inputs() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    let source = "workflow: w\nsteps:\n  a: { run: x, site: edge, outputs: { n: integer } }\n  b: { run: x, site: hpc, with: { n: \"${{ steps.a.outputs.n }}\" } }\n";
    world.submit(source);
    let a = world.dispatched_one("edge");
    assert!(world.dispatched("hpc").is_empty());
    world.succeed("edge", a, vec![Value::Integer(1)]);
    world.dispatched_one("hpc");
}

#[test]
fn when_the_first_of_a_chain_is_tried_again_the_others_are_taken_back() {
    let mut world = World::with_sites(&["edge"]);
    let source = chain(3, "").replace("s0: { run: x", "s0: { run: x, retry: { attempts: 2, backoff: 1s }");
    let run = world.submit(&source);
    let first = world.dispatched("edge");
    assert_eq!(first.len(), 3);
    world.fail("edge", first[0]);
    let cancels = world.commands("edge");
    assert_eq!(cancels.iter().filter(|command| matches!(command, SiteCommand::Cancel { .. })).count(), 2);
    for execution in &first[1..] {
        world.end("edge", *execution, not_started(NotStartedReason::PredecessorFailed), Vec::new());
    }
    assert_eq!(world.count(run, ExecutionState::Waiting), 2);
    world.advance(Duration::from_secs(1));
    let second = world.dispatched("edge");
    assert_eq!(second.iter().map(|(_, attempt)| attempt.0).collect::<Vec<_>>(), [2, 2, 2]);
    second.into_iter().for_each(|execution| world.succeed("edge", execution, vec![Value::Integer(1)]));
    assert_eq!(world.state(run), RunState::Succeeded);
}

#[test]
fn when_a_step_fails_for_good_what_went_along_is_cancelled() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit(&chain(3, ""));
    let dispatched = world.dispatched("edge");
    world.end("edge", dispatched[0], failed("broken"), Vec::new());
    assert_eq!(world.state(run), RunState::Running);
    for execution in &dispatched[1..] {
        world.end("edge", *execution, not_started(NotStartedReason::PredecessorFailed), Vec::new());
    }
    assert_eq!(world.state(run), RunState::Failed);
    assert_eq!(world.count(run, ExecutionState::Cancelled), 2);
}

#[test]
fn a_site_that_was_cut_off_reconciles_what_it_did_alone() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit(&chain(3, ""));
    let chain = world.dispatched("edge");
    world.disconnect("edge");
    world.advance(Duration::from_secs(300));
    world.agents.get_mut("edge").unwrap().last_report.0 = 3;
    world.connect_with("edge", chain.iter().map(|execution| item(*execution, LocalState::Finished)).collect());
    assert_eq!(world.agents["edge"].verdicts, [Verdict::Keep; 3]);
    world.agents.get_mut("edge").unwrap().last_report.0 = 0;
    let reports = chain.iter().map(|e| world.finished(*e, Outcome::Succeeded, vec![Value::Integer(1)])).collect();
    world.report("edge", reports);
    assert_eq!(world.state(run), RunState::Succeeded);
    assert!(world.dispatched("edge").is_empty());
}

#[test]
fn a_site_that_was_lost_and_went_on_alone_is_believed_if_nobody_else_began() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit(&chain(3, ", site: edge"));
    let chain = world.dispatched("edge");
    world.add_site("hpc");
    world.advance_with(Duration::from_secs(16 * 60), &["hpc"]);
    assert_eq!(world.count(run, ExecutionState::Waiting), 2);
    world.agents.get_mut("edge").unwrap().last_report.0 = 2;
    let states = [LocalState::Finished, LocalState::Finished, LocalState::Running];
    let inventory = chain.iter().zip(states).map(|(execution, state)| item(*execution, state)).collect();
    world.connect_with("edge", inventory);
    assert_eq!(world.agents["edge"].verdicts, [Verdict::Keep; 3]);
    world.agents.get_mut("edge").unwrap().last_report.0 = 0;
    for execution in chain {
        world.succeed("edge", execution, vec![Value::Integer(1)]);
    }
    assert!(world.dispatched("edge").is_empty(), "no step runs twice");
    assert_eq!(world.state(run), RunState::Succeeded);
}

#[test]
fn a_chain_with_files_moves_nothing() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    let source = "workflow: w\nsteps:\n  a: { run: x, outputs: { f: file } }\n  b: { run: x, with: { f: \"${{ steps.a.outputs.f }}\" }, outputs: { f: file } }\n";
    let run = world.submit(source);
    let site = if world.dispatched("edge").is_empty() { "hpc" } else { "edge" };
    world.succeed(site, (execution(run, 0, 0), Attempt::FIRST), vec![file(1, 1 << 30)]);
    world.succeed(site, (execution(run, 1, 0), Attempt::FIRST), vec![file(2, 1 << 30)]);
    assert_eq!(world.state(run), RunState::Succeeded);
    assert!(world.core.ledger(&Default::default()).is_empty());
}

#[test]
fn after_a_restart_the_same_fragment_is_sent() {
    let mut world = World::with_sites(&["edge"]);
    world.submit(&chain(3, ""));
    let before: Vec<_> = world.agents["edge"].frames.iter().cloned().collect();
    world.restart();
    world.connect("edge");
    assert!(!before.is_empty());
    assert_eq!(world.dispatched("edge").len(), 3);
}

#[test]
fn a16_what_runs_on_outputs_that_a_new_journal_lacks_is_run_anew() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit(&chain(2, ""));
    world.commands("edge");
    let (first, second) = (execution(run, 0, 0), execution(run, 1, 0));
    world.start("edge", (first, Attempt::FIRST));
    world.start("edge", (second, Attempt::FIRST));
    // The first has ended, and with the journal the only record of it is lost.
    world.disconnect("edge");
    let agent = world.agents.get_mut("edge").unwrap();
    agent.journal = JournalId::from_bits(999);
    (agent.last_command, agent.last_report, agent.acknowledged_report) = Default::default();
    world.connect_with("edge", vec![item((second, Attempt::FIRST), LocalState::Running)]);
    assert_eq!(world.agents["edge"].verdicts, [Verdict::Forget]);
    for step in 0..2 {
        world.succeed("edge", (execution(run, step, 0), Attempt(2)), vec![Value::Integer(1)]);
    }
    assert_eq!(world.state(run), RunState::Succeeded);
}
