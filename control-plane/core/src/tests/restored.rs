//! B6: a control plane that is restored from a backup, among agents that know more than it does.

use std::time::Duration;

use atoll_model::id::{Attempt, JournalId, StepIndex};
use atoll_model::session::{
    AgentBody, Inventory, LocalState, NotStartedReason, Outcome, PROTOCOL_VERSION_DELEGATION, Report, SiteCommand,
    Verdict,
};
use atoll_model::value::Value;

use super::world::{World, execution, executions_of, failed, file, item, not_started, object};
use crate::fact::Fact;
use crate::view::{ExecutionState, RunState, SiteState};
use crate::{Rejection, Request};

const FREE: &str = "workflow: w\nsteps:\n  a: { run: x, foreach: \"${{ range(3) }}\" }\n";
const DELEGATED: &str = "
workflow: w
steps:
  a: { site: SITE, run: x, outputs: { n: integer } }
  b: { when: \"${{ steps.a.outputs.n > 0 }}\", run: x, retry: { attempts: 3, backoff: 1s } }
";
const CHAIN: &str = "
workflow: w
steps:
  a: { site: one, run: x, outputs: { o: file } }
  b: { site: two, run: x, with: { o: \"${{ steps.a.outputs.o }}\" } }
";

#[test]
fn b6_what_was_done_after_the_backup_is_heard_again_and_not_done_again() {
    let mut world = World::with_sites(&["edge"]);
    let backup = world.facts.len();
    let run = world.submit(FREE);
    let known = world.facts.len();
    let dispatched = world.dispatched("edge");
    for execution in &dispatched {
        world.succeed("edge", *execution, Vec::new());
    }
    assert_eq!(world.state(run), RunState::Succeeded);
    assert!(backup < known);
    world.set_back(known);
    let items = dispatched.iter().map(|execution| item(*execution, LocalState::Finished)).collect();
    world.catch_up("edge", items);
    assert_eq!(world.agents["edge"].verdicts, [Verdict::Keep; 3]);
    assert!(world.dispatched("edge").is_empty(), "nothing is given out again");
    assert_eq!(world.state(run), RunState::Succeeded);
}

#[test]
fn b6_attempts_that_the_backup_knows_nothing_of_count() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit("workflow: w\nsteps:\n  a: { run: x, retry: { attempts: 3, backoff: 1s } }\n");
    let backup = world.facts.len();
    let first = world.dispatched_one("edge");
    world.end("edge", first, failed("exit code 1"), Vec::new());
    world.advance_with(Duration::from_secs(15), &["edge"]);
    let second = world.dispatched_one("edge");
    assert_eq!(second.1, Attempt(2));
    world.start("edge", second);
    world.set_back(backup);
    world.catch_up("edge", vec![item(first, LocalState::Finished), item(second, LocalState::Running)]);
    assert_eq!(world.agents["edge"].verdicts, [Verdict::Keep; 2]);
    let commands = world.commands("edge");
    assert!(
        !commands.iter().any(|command| matches!(command, SiteCommand::Cancel { .. })),
        "that would stop the second"
    );
    let again = commands.iter().flat_map(executions_of);
    assert!(again.into_iter().all(|again| again == second), "at most it is told of the second again");
    assert_eq!(world.state_of(first.0), ExecutionState::Running);
    world.succeed("edge", second, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
}

#[test]
fn b6_nothing_is_given_out_before_every_site_has_told_what_it_has_done() {
    let mut world = World::with_sites(&["one", "two"]);
    world.disconnect("one");
    world.disconnect("two");
    let run = world.submit(FREE);
    let backup = world.facts.len();
    world.connect("two");
    let dispatched = world.dispatched("two");
    assert_eq!(dispatched.len(), 3);
    world.succeed("two", dispatched[0], Vec::new());
    world.set_back(backup);
    world.ask(Request::NoteRestored).unwrap();
    // It has nothing to tell, and could do everything.
    world.connect("one");
    assert!(world.dispatched("one").is_empty(), "the other may have done it");
    let mut items = vec![item(dispatched[0], LocalState::Finished), item(dispatched[1], LocalState::Running)];
    items.push(item(dispatched[2], LocalState::Accepted));
    world.catch_up("two", items);
    assert!(world.dispatched("one").is_empty());
    for execution in &dispatched[1..] {
        world.succeed("two", *execution, Vec::new());
    }
    assert_eq!(world.state(run), RunState::Succeeded);
}

#[test]
fn b6_an_agent_that_knows_more_shows_that_the_control_plane_was_set_back() {
    let mut world = World::with_sites(&["one", "two"]);
    world.disconnect("two");
    world.submit(FREE);
    let backup = world.facts.len();
    let dispatched = world.dispatched("one");
    world.succeed("one", dispatched[0], Vec::new());
    let epoch = world.agents["one"].epoch;
    world.set_back(backup);
    world.connect_with("one", vec![item(dispatched[0], LocalState::Finished)]);
    assert!(world.agents["one"].epoch > epoch, "its new session fences all that it has been in");
    let later = world.submit("workflow: w\nsteps:\n  a: { run: x }\n");
    world.catch_up("one", vec![item(dispatched[0], LocalState::Finished)]);
    assert!(world.dispatched("one").is_empty(), "the other site has not told yet");
    world.connect("two");
    assert_eq!(world.state(later), RunState::Running);
    let given = world.dispatched("one").len() + world.dispatched("two").len();
    assert_eq!(given, 3, "the two that nobody has any trace of, and the new one");
}

#[test]
fn b6_a_site_that_does_not_come_back_is_waited_for_no_longer_than_until_it_is_lost() {
    let mut world = World::with_sites(&["one", "two"]);
    let run = world.submit(FREE);
    world.disconnect("two");
    let backup = world.facts.len();
    world.set_back(backup);
    world.ask(Request::NoteRestored).unwrap();
    world.connect("one");
    assert!(world.dispatched("one").is_empty());
    world.advance_with(Duration::from_secs(1_200), &["one"]);
    assert_eq!(world.dispatched("one").len(), 3);
    assert_eq!(world.state(run), RunState::Running);
}

#[test]
fn b6_what_follows_from_another_sites_work_is_heard_after_it() {
    let mut world = World::with_sites(&["one", "two"]);
    let run = world.submit(CHAIN);
    let backup = world.facts.len();
    let a = world.dispatched_one("one");
    world.succeed("one", a, vec![file(7, 10)]);
    world.carry_out_pushes("one");
    let b = world.dispatched_one("two");
    world.succeed("two", b, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
    world.set_back(backup);
    // The second site comes first: what it has done follows from what is not known yet.
    world.catch_up("two", vec![item(b, LocalState::Finished)]);
    assert_eq!(world.agents["two"].verdicts, [Verdict::Keep]);
    assert_eq!(world.closed.last(), Some(&world.agents["two"].connection), "it is to come again");
    world.catch_up("one", vec![item(a, LocalState::Finished)]);
    world.catch_up("two", vec![item(b, LocalState::Finished)]);
    assert!(world.dispatched("one").is_empty() && world.dispatched("two").is_empty());
    assert_eq!(world.state(run), RunState::Succeeded);
}

#[test]
fn b6_a_run_that_was_submitted_after_the_backup_leaves_nothing_at_the_agents() {
    let mut world = World::with_sites(&["edge"]);
    let backup = world.facts.len();
    world.submit(FREE);
    let dispatched = world.dispatched("edge");
    world.set_back(backup);
    world.catch_up("edge", dispatched.iter().map(|execution| item(*execution, LocalState::Running)).collect());
    assert_eq!(world.agents["edge"].verdicts, [Verdict::Forget; 3]);
    let run = dispatched[0].0.run;
    assert!(world.commands("edge").contains(&SiteCommand::Forget { run }));
}

#[test]
fn b6_a_control_plane_that_was_not_set_back_takes_in_nothing_that_it_did_not_give() {
    let mut world = World::with_sites(&["one", "two"]);
    let run = world.submit("workflow: w\nsteps:\n  a: { site: one, run: x }\n");
    let a = world.dispatched_one("one");
    world.end("two", (a.0, Attempt(2)), Outcome::Succeeded, vec![Value::Null]);
    assert_eq!(world.state(run), RunState::Running);
    world.succeed("one", a, Vec::new());
    assert_eq!(world.state_of(execution(run, 0, 0)), ExecutionState::Succeeded);
}

#[test]
fn b6_a_run_that_the_backup_lacks_is_another_one_when_it_is_submitted_again() {
    let mut world = World::with_sites(&["edge"]);
    let backup = world.facts.len();
    let lacking = world.submit(FREE);
    assert_eq!(world.core.names_of(lacking), [lacking]);
    world.set_back(backup);
    world.ask(Request::NoteRestored).unwrap();
    world.advance(Duration::from_secs(1));
    world.ask(Request::NoteRestored).unwrap();
    let names = world.core.names_of(lacking);
    assert_eq!((names.len(), names[0]), (2, lacking), "it is the same restoration");
    assert_ne!(names[1], lacking);
    world.restart();
    assert_eq!(world.core.names_of(lacking), names);
}

#[test]
fn b6_what_a_site_proposed_to_let_go_since_the_backup_is_granted_to_nobody_again() {
    let mut world = World::with_sites(&["one", "two"]);
    let run = world.submit(CHAIN);
    let a = world.dispatched_one("one");
    world.succeed("one", a, vec![file(7, 10)]);
    world.carry_out_pushes("one");
    let b = world.dispatched_one("two");
    let (one, at) = (object(7, 10), world.now);
    world.report("two", vec![Report::Fetched { object: one, wire_bytes: 10, direct: None, execution: b.0, at }]);
    world.succeed("two", b, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
    world.carry_out_deletes();
    let backup = world.facts.len();
    let granted = |world: &mut World, site: &str| -> Vec<_> {
        let answers = world.commands(site).into_iter().filter_map(|command| match command {
            SiteCommand::Evict { proposal: 7, objects, .. } => Some(objects),
            _ => None,
        });
        answers.flatten().collect()
    };
    world.report("one", vec![Report::Evictable { proposal: 7, objects: vec![one] }]);
    assert_eq!(granted(&mut world, "one"), [one]);
    world.report("one", vec![Report::Evicted { gone: vec![one], kept: Vec::new() }]);
    world.set_back(backup);
    world.ask(Request::NoteRestored).unwrap();
    let from = |site: &str| Request::EvictObject { object: one.id, site: Some(site.parse().unwrap()) };
    let refused = world.ask(from("one"));
    assert!(matches!(&refused, Err(Rejection::Conflict(why)) if why.contains("has not heard all")), "{refused:?}");
    world.catch_up("two", Vec::new());
    world.catch_up("one", Vec::new());
    assert_eq!(granted(&mut world, "one"), [], "it has gone there by the first answer");
    assert_eq!(world.core.object(one.id).unwrap().replicas, ["two"]);
}

#[test]
fn b6_what_came_to_nothing_waits_for_nobody_elses_news() {
    let mut world = World::with_sites(&["one", "two"]);
    let source = "
workflow: w
steps:
  a: { site: one, run: x, retry: { attempts: 3, backoff: 1s }, outputs: { o: file } }
  b: { site: one, run: x, with: { o: \"${{ steps.a.outputs.o }}\" }, outputs: { o: file } }
  c: { site: two, run: x, with: { o: \"${{ steps.b.outputs.o }}\" } }
";
    let run = world.submit(source);
    let backup = world.facts.len();
    // What follows ends before what it follows from is tried again.
    let first = world.dispatched("one");
    world.end("one", first[0], failed("exit code 1"), Vec::new());
    world.end("one", first[1], not_started(NotStartedReason::PredecessorFailed), Vec::new());
    world.advance_with(Duration::from_secs(15), &["one", "two"]);
    let again = world.dispatched("one");
    world.succeed("one", again[0], vec![file(1, 10)]);
    world.succeed("one", again[1], vec![file(2, 10)]);
    world.carry_out_pushes("one");
    let c = world.dispatched_one("two");
    world.succeed("two", c, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
    world.set_back(backup);
    let finished = |keys: &[_]| keys.iter().map(|key| item(*key, LocalState::Finished)).collect::<Vec<_>>();
    let of_one = finished(&[first[0], first[1], again[0], again[1]]);
    for _ in 0..3 {
        world.catch_up("two", finished(&[c]));
        world.catch_up("one", of_one.clone());
    }
    assert_eq!(world.state(run), RunState::Succeeded);
}

#[test]
fn b6_what_came_of_a_step_after_its_delegation_was_handed_back_counts() {
    let mut world = World::new();
    world.protocol = PROTOCOL_VERSION_DELEGATION;
    ["one", "two"].iter().for_each(|site| world.add_site(site));
    world.disconnect("two");
    let run = world.submit(&DELEGATED.replace("SITE", "one"));
    let a = world.dispatched_one("one");
    world.succeed("one", a, vec![Value::Integer(1)]);
    let backup = world.facts.len();
    world.connect("two");
    world.ask(Request::DrainSite { site: "one".parse().unwrap(), drained: true }).unwrap();
    let (step, kept, reason) = (StepIndex(1), Vec::new(), "withdrawn".to_owned());
    world.report("one", vec![Report::DelegationEnded { run, step, kept, reason }]);
    let b = world.dispatched_one("two");
    assert_eq!(b, (execution(run, 1, 0), Attempt::FIRST), "no other attempt of it was given out");
    world.start("two", b);
    world.set_back(backup);
    world.ask(Request::NoteRestored).unwrap();
    // Its agent has lost its journal: the delegation, of whose end the backup knows nothing, is given away.
    let agent = world.agents.get_mut("one").unwrap();
    (agent.journal, agent.last_command) = (JournalId::from_bits(999), Default::default());
    (agent.acknowledged_report, agent.last_report) = Default::default();
    agent.kept.clear();
    world.catch_up("one", Vec::new());
    world.catch_up("two", vec![item(b, LocalState::Running)]);
    assert_eq!(world.agents["two"].verdicts, [Verdict::Keep]);
    assert!(world.dispatched("one").is_empty(), "it goes on at the other");
    world.succeed("two", b, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
}

#[test]
fn b6_what_the_agent_of_a_delegated_step_has_tried_again_goes_on() {
    let mut world = World::new();
    world.protocol = PROTOCOL_VERSION_DELEGATION;
    world.add_site("edge");
    let run = world.submit(&DELEGATED.replace("SITE", "edge"));
    let a = world.dispatched_one("edge");
    world.succeed("edge", a, vec![Value::Integer(1)]);
    let (first, second) = ((execution(run, 1, 0), Attempt(1)), (execution(run, 1, 0), Attempt(2)));
    world.start("edge", first);
    let backup = world.facts.len();
    let Report::Finished { run, step, elements } = world.finished(first, failed("exit code 1"), Vec::new()) else {
        unreachable!()
    };
    world.report("edge", vec![Report::Retried { run, step, elements }]);
    world.start("edge", second);
    world.set_back(backup);
    world.commands("edge");
    world.catch_up("edge", vec![item(second, LocalState::Running), item(first, LocalState::Finished)]);
    assert_eq!(world.agents["edge"].verdicts, [Verdict::Keep; 2]);
    let commands = world.commands("edge");
    assert!(!commands.iter().any(|command| matches!(command, SiteCommand::Cancel { .. })), "{commands:?}");
    world.succeed("edge", second, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
}

fn state_of_site(world: &World, name: &str) -> SiteState {
    world.core.sites().into_iter().find(|view| view.site.to_string() == name).unwrap().state
}

#[test]
fn b6_a_site_that_was_lost_when_the_backup_was_made_is_waited_for_too() {
    let mut world = World::with_sites(&["one", "two"]);
    world.disconnect("one");
    world.advance_with(Duration::from_secs(1_200), &["two"]);
    assert_eq!(state_of_site(&world, "one"), SiteState::Lost);
    world.disconnect("two");
    let run = world.submit(FREE);
    let backup = world.facts.len();
    world.connect("one");
    let dispatched = world.dispatched("one");
    assert_eq!(dispatched.len(), 3);
    world.set_back(backup);
    world.ask(Request::NoteRestored).unwrap();
    world.connect("two");
    assert!(world.dispatched("two").is_empty(), "the other may have come back, and has");
    world.catch_up("one", dispatched.iter().map(|execution| item(*execution, LocalState::Running)).collect());
    dispatched.iter().for_each(|execution| world.succeed("one", *execution, Vec::new()));
    assert!(world.dispatched("two").is_empty());
    assert_eq!(world.state(run), RunState::Succeeded);
}

#[test]
fn b6_a_site_that_was_lost_and_does_not_come_back_is_waited_for_no_longer_than_that() {
    let mut world = World::with_sites(&["one", "two"]);
    world.disconnect("one");
    world.advance_with(Duration::from_secs(1_200), &["two"]);
    world.submit(FREE);
    let backup = world.facts.len();
    world.set_back(backup);
    world.ask(Request::NoteRestored).unwrap();
    world.connect("two");
    assert_eq!(state_of_site(&world, "one"), SiteState::Disconnected);
    world.advance_with(Duration::from_secs(1_200), &["two"]);
    assert_eq!(state_of_site(&world, "one"), SiteState::Lost);
    assert_eq!(world.dispatched("two").len(), 3);
}

#[test]
fn b6_attempts_that_were_made_in_turns_at_two_sites_are_told_in_any_order() {
    for first_is_told_first in [true, false] {
        let mut world = World::with_sites(&["one", "two"]);
        let run = world
            .submit("workflow: w\nsteps:\n  a: { run: x, retry: { attempts: 4, backoff: 1s, other_site: true } }\n");
        let at_one = world.dispatched("one");
        let (begins, other) = if at_one.is_empty() { ("two", "one") } else { ("one", "two") };
        let first = at_one.first().copied().unwrap_or_else(|| world.dispatched_one("two"));
        world.start(begins, first);
        let backup = world.facts.len();
        let fail = |world: &mut World, site: &str, execution| {
            world.end(site, execution, failed("exit code 1"), Vec::new());
            world.advance_with(Duration::from_secs(15), &["one", "two"]);
        };
        fail(&mut world, begins, first);
        let second = world.dispatched_one(other);
        world.start(other, second);
        fail(&mut world, other, second);
        let third = world.dispatched_one(begins);
        world.succeed(begins, third, Vec::new());
        assert_eq!(world.state(run), RunState::Succeeded);
        world.set_back(backup);
        let finished = |execution| item(execution, LocalState::Finished);
        let mut tell = [(begins, vec![finished(first), finished(third)]), (other, vec![finished(second)])];
        if !first_is_told_first {
            tell.reverse();
        }
        tell.into_iter().for_each(|(site, items)| world.catch_up(site, items));
        assert_eq!(world.state(run), RunState::Succeeded, "{first_is_told_first}");
    }
}

#[test]
fn b6_what_an_agent_ends_at_the_welcome_is_not_taken_for_the_end_of_what_is_delegated_after() {
    let mut world = World::new();
    world.protocol = PROTOCOL_VERSION_DELEGATION;
    world.add_site("edge");
    world.disconnect("edge");
    let run = world.submit(&DELEGATED.replace("SITE", "edge"));
    let backup = world.facts.len();
    world.connect("edge");
    let a = world.dispatched_one("edge");
    world.set_back(backup);
    world.ask(Request::NoteRestored).unwrap();
    world.hello("edge");
    assert!(world.agents["edge"].welcome.as_ref().unwrap().new_journal);
    // Told that nothing is known of it, the agent ends the delegation, and names what it has.
    let (step, kept, reason) = (StepIndex(1), Vec::new(), "not known".to_owned());
    let reports = vec![Report::DelegationEnded { run, step, kept, reason }];
    let agent = world.agents.get_mut("edge").unwrap();
    let first = agent.last_report.next();
    agent.last_report = first;
    agent.kept.clone_from(&reports);
    let items = vec![item(a, LocalState::Running)];
    world.frame("edge", AgentBody::Inventory(Inventory { items, last_report: first }));
    world.receive("edge");
    assert!(!world.agents["edge"].is_ready, "there is more to tell of before");
    world.frame("edge", AgentBody::Reports { first, reports });
    world.receive("edge");
    assert!(world.agents["edge"].is_ready);
    let delegated = |command: &SiteCommand| matches!(command, SiteCommand::Delegate(_));
    assert!(world.commands("edge").iter().any(delegated), "it is delegated again");
    world.succeed("edge", a, vec![Value::Integer(1)]);
    assert!(world.dispatched("edge").is_empty(), "the agent goes on by itself");
}

#[test]
fn b6_sites_whose_news_follow_from_what_nobody_tells_do_not_wait_for_each_other() {
    let mut world = World::with_sites(&["one", "two", "three"]);
    let source = "
workflow: w
steps:
  a: { site: three, run: x, outputs: { n: integer } }
  b: { site: three, run: x, outputs: { n: integer } }
  c: { site: one, run: x, with: { n: \"${{ steps.a.outputs.n }}\" } }
  d: { site: two, run: x, with: { n: \"${{ steps.b.outputs.n }}\" } }
";
    let run = world.submit(source);
    let backup = world.facts.len();
    for execution in world.dispatched("three") {
        world.succeed("three", execution, vec![Value::Integer(1)]);
    }
    let (c, d) = (world.dispatched_one("one"), world.dispatched_one("two"));
    world.succeed("one", c, Vec::new());
    world.succeed("two", d, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
    world.set_back(backup);
    world.ask(Request::NoteRestored).unwrap();
    let agent = world.agents.get_mut("three").unwrap();
    (agent.journal, agent.last_command) = (JournalId::from_bits(999), Default::default());
    (agent.acknowledged_report, agent.last_report) = Default::default();
    agent.kept.clear();
    world.catch_up("three", Vec::new());
    for _ in 0..2 {
        world.catch_up("one", vec![item(c, LocalState::Finished)]);
        world.catch_up("two", vec![item(d, LocalState::Finished)]);
    }
    assert!(world.agents["one"].is_ready || world.agents["two"].is_ready, "one of them is heard first");
    world.catch_up("one", vec![item(c, LocalState::Finished)]);
    assert_eq!(world.dispatched("three").len(), 2, "what is lost is made again");
}

#[test]
fn b6_what_follows_from_a_result_that_was_taken_again_since_the_backup_is_not_done_twice() {
    let mut world = World::with_sites(&["one", "two"]);
    let make = "{ site: one, run: make it, cache: 30d, outputs: { n: integer } }";
    let first = world.submit(&format!("workflow: w\nsteps:\n  make: {make}\n"));
    let one = world.dispatched_one("one");
    world.succeed("one", one, vec![Value::Integer(1)]);
    assert_eq!(world.state(first), RunState::Succeeded);
    let reads = "run: x, with: { n: \"${{ steps.make.outputs.n }}\" }";
    let after = ["one", "two"].map(|site| format!("  at-{site}: {{ site: {site}, {reads} }}\n")).concat();
    let run = world.submit(&format!("workflow: w\nsteps:\n  make: {make}\n{after}"));
    let taken = world.facts.iter().rposition(|fact| matches!(fact, Fact::ExecutionsReused { .. }));
    let backup = taken.expect("it is taken from the first run");
    let begun = [("one", world.dispatched_one("one")), ("two", world.dispatched_one("two"))];
    world.set_back(backup);
    world.ask(Request::NoteRestored).unwrap();
    let mut to_tell = begun.to_vec();
    for _ in 0..3 {
        to_tell.retain(|(site, execution)| {
            world.catch_up(site, vec![item(*execution, LocalState::Running)]);
            !world.agents[*site].is_ready
        });
    }
    assert_eq!(to_tell, [], "nobody waits for ever");
    for (site, execution) in begun {
        assert_eq!(world.dispatched(site), [], "{site} goes on with what it has");
        world.succeed(site, execution, Vec::new());
    }
    assert_eq!(world.state(run), RunState::Succeeded);
}
