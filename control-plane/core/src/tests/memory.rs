//! Attempts that end for want of memory, and what the next ones ask for.

use std::time::Duration;

use atoll_model::id::{Attempt, ExecutionId, JournalId};
use atoll_model::session::{FailureReason, LocalState, Outcome, PROTOCOL_VERSION_DELEGATION, SiteCommand};
use atoll_model::value::Value;

use super::world::{World, execution, executions_of, failed, item};
use crate::view::{ExecutionState, RunState};

const GIB: u64 = 1 << 30;
/// A site of the world has 8 GiB.
const GROWS: &str = "workflow: w\nsteps:\n  a: { foreach: [1, 2], with: { n: \"${{ item }}\" }, run: x, resources: { memory: 1GiB }, \
                     retry: { attempts: 3, backoff: 1s, memory: 2x } }\n";
const ONE: &str =
    "workflow: w\nsteps:\n  a: { run: x, resources: { memory: 3GiB }, retry: { attempts: 4, memory: 2x } }\n";

fn out_of_memory() -> Outcome {
    let message = "it used more memory than it may".to_owned();
    Outcome::Failed { reason: FailureReason::OutOfMemory, exit_code: None, message }
}

/// What a site is told: of templates their memory, in GiB, and then what goes under each.
fn told(world: &mut World, site: &str) -> Vec<(u64, Vec<(u32, u32)>)> {
    let mut told: Vec<(u64, Vec<(u32, u32)>)> = Vec::new();
    for command in world.commands(site) {
        if let SiteCommand::Prepare(template) = &command {
            told.push((template.resources.memory_bytes.unwrap() / GIB, Vec::new()));
        }
        let dispatched = executions_of(&command).into_iter().map(|(execution, attempt)| (execution.element, attempt.0));
        match told.last_mut() {
            Some((_, under)) => under.extend(dispatched),
            // As the last template said.
            None => told.push((0, dispatched.collect())),
        }
    }
    told
}

fn end(world: &mut World, site: &str, execution: ExecutionId, attempt: u32, outcome: Outcome) {
    world.start(site, (execution, Attempt(attempt)));
    world.end(site, (execution, Attempt(attempt)), outcome, Vec::new());
}

fn wait(world: &mut World, sites: &[&str]) {
    world.advance_with(Duration::from_secs(15), sites);
}

#[test]
fn after_an_end_for_want_of_memory_the_next_attempt_asks_for_more_and_after_another_failure_it_does_not() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit(GROWS);
    assert_eq!(told(&mut world, "edge"), [(1, vec![(0, 1), (1, 1)])]);
    end(&mut world, "edge", execution(run, 0, 0), 1, out_of_memory());
    end(&mut world, "edge", execution(run, 0, 1), 1, failed("exit code 1"));
    let waiting = world.core.execution(execution(run, 0, 0)).unwrap();
    assert_eq!((waiting.attempt.0, waiting.memory_limit_bytes), (2, Some(2 * GIB)));
    let error = "it used more memory than it may (1 GiB): the next attempt asks for 2 GiB";
    assert_eq!(waiting.error.as_deref(), Some(error));
    wait(&mut world, &["edge"]);
    // What is as before comes first, under the template that is there already.
    assert_eq!(told(&mut world, "edge"), [(0, vec![(1, 2)]), (2, vec![(0, 2)])]);
    let free = world.core.sites()[0].capacity.memory_bytes;
    world.start("edge", (execution(run, 0, 0), Attempt(2)));
    world.start("edge", (execution(run, 0, 1), Attempt(2)));
    assert_eq!(free - world.core.sites()[0].free.memory_bytes, 3 * GIB);
    end(&mut world, "edge", execution(run, 0, 0), 2, out_of_memory());
    end(&mut world, "edge", execution(run, 0, 1), 2, failed("exit code 1"));
    world.restart();
    world.connect("edge");
    wait(&mut world, &["edge"]);
    assert_eq!(told(&mut world, "edge"), [(1, vec![(1, 3)]), (4, vec![(0, 3)])]);
    world.succeed("edge", (execution(run, 0, 0), Attempt(3)), Vec::new());
    let ended = world.core.execution(execution(run, 0, 0)).unwrap();
    assert_eq!((ended.state, ended.memory_limit_bytes), (ExecutionState::Succeeded, Some(4 * GIB)));
    end(&mut world, "edge", execution(run, 0, 1), 3, out_of_memory());
    let ended = world.core.execution(execution(run, 0, 1)).unwrap();
    assert_eq!((ended.attempt.0, ended.error.as_deref()), (3, Some("it used more memory than it may")));
    assert_eq!((ended.memory_limit_bytes, world.state(run)), (Some(GIB), RunState::Failed));
}

#[test]
fn without_growth_an_end_for_want_of_memory_is_a_failure_like_any_other() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit(&ONE.replace(", memory: 2x", ""));
    world.commands("edge");
    end(&mut world, "edge", execution(run, 0, 0), 1, out_of_memory());
    wait(&mut world, &["edge"]);
    assert_eq!(told(&mut world, "edge"), [(0, vec![(0, 2)])]);
    assert_eq!(world.core.execution(execution(run, 0, 0)).unwrap().memory_limit_bytes, Some(3 * GIB));
}

#[test]
fn the_next_attempt_goes_where_there_is_as_much_and_where_there_is_nowhere_the_last_reason_stands() {
    let mut world = World::new();
    world.join("small", &[]);
    world.agents.get_mut("small").unwrap().capacity.memory_bytes = 4 * GIB;
    world.connect("small");
    let run = world.submit(ONE);
    assert_eq!(told(&mut world, "small"), [(3, vec![(0, 1)])]);
    world.add_site("large");
    end(&mut world, "small", execution(run, 0, 0), 1, out_of_memory());
    wait(&mut world, &["small", "large"]);
    assert_eq!(told(&mut world, "small"), []);
    assert_eq!(told(&mut world, "large"), [(6, vec![(0, 2)])]);
    let why = world.core.why_execution(execution(run, 0, 0)).unwrap();
    let small = why.sites.iter().find(|verdict| verdict.site.as_str() == "small").unwrap();
    assert_eq!(small.reason, "the step asks for 6144 MiB of memory, and it has 4096 MiB");
    end(&mut world, "large", execution(run, 0, 0), 2, out_of_memory());
    let ended = world.core.execution(execution(run, 0, 0)).unwrap();
    assert_eq!((ended.state, ended.attempt.0), (ExecutionState::Failed, 2));
    assert_eq!(
        ended.error.as_deref(),
        Some(
            "it used more memory than it may (6 GiB): the next attempt asks for 12 GiB; no site can run it: small: the \
             step asks for 12288 MiB of memory, and it has 4096 MiB; large: the step asks for 12288 MiB of memory, and it \
             has 8192 MiB"
        )
    );
    assert_eq!(world.state(run), RunState::Failed);
}

#[test]
fn what_has_grown_waits_for_no_site_that_is_gone_for_good() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit(ONE);
    world.commands("edge");
    end(&mut world, "edge", execution(run, 0, 0), 1, out_of_memory());
    world.disconnect("edge");
    world.agents.get_mut("edge").unwrap().capacity.memory_bytes = 4 * GIB;
    world.connect("edge");
    wait(&mut world, &["edge"]);
    let ended = world.core.execution(execution(run, 0, 0)).unwrap();
    assert_eq!((ended.state, world.state(run)), (ExecutionState::Failed, RunState::Failed));
    let error = ended.error.unwrap();
    assert!(
        error.starts_with("it used more memory than it may (3 GiB)") && error.contains("no site can run"),
        "{error}"
    );
}

#[test]
fn an_agent_with_a_new_journal_is_told_of_the_memory_that_has_grown() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit(ONE);
    world.commands("edge");
    end(&mut world, "edge", execution(run, 0, 0), 1, out_of_memory());
    wait(&mut world, &["edge"]);
    assert_eq!(told(&mut world, "edge"), [(6, vec![(0, 2)])]);
    world.start("edge", (execution(run, 0, 0), Attempt(2)));
    world.disconnect("edge");
    let agent = world.agents.get_mut("edge").unwrap();
    agent.journal = JournalId::from_bits(999);
    (agent.last_command, agent.last_report, agent.acknowledged_report) = Default::default();
    world.connect_with("edge", vec![item((execution(run, 0, 0), Attempt(2)), LocalState::Running)]);
    assert_eq!(told(&mut world, "edge"), [(6, vec![(0, 2)])]);
}

#[test]
fn a_step_whose_memory_grows_is_not_delegated() {
    for (growth, delegated) in [("", 1), (", memory: 2x", 0)] {
        let mut world = World::new();
        world.protocol = PROTOCOL_VERSION_DELEGATION;
        world.add_site("edge");
        world.submit(&format!(
            "workflow: w\nsteps:\n  l: {{ run: x, outputs: {{ l: list }} }}\n  a: {{ foreach: \"${{{{ steps.l.outputs.l }}}}\", \
             run: x, resources: {{ memory: 1GiB }}, retry: {{ attempts: 3{growth} }} }}\n"
        ));
        let commands = world.commands("edge");
        let count = commands.iter().filter(|command| matches!(command, SiteCommand::Delegate(_))).count();
        assert_eq!(count, delegated, "{growth}");
        let first = commands.iter().flat_map(executions_of).next().unwrap();
        world.succeed("edge", first, vec![Value::list([1, 2].map(Value::Integer).to_vec())]);
        assert_eq!(world.dispatched("edge").len(), if delegated == 0 { 2 } else { 0 });
    }
}
