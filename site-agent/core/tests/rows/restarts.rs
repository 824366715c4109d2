//! A: the agent is killed at each point of an execution.

use std::time::Duration;

use atoll_model::session::{AgentBody, InventoryItem, LocalState, Outcome, Report, SiteCommand, StepTemplate, Verdict};
use atoll_model::workflow::StartMode;
use site_agent_core::event::{Arrival, ExitKind, Found, FoundAttempt, FoundState, NodeId};
use site_agent_core::{Command, Event};

use crate::harness::*;

fn found(step: u16, element: u32, state: FoundState) -> FoundAttempt {
    FoundAttempt { execution: exec(step, element), attempt: FIRST, node: NodeId::HOME, state }
}

fn last_acknowledged(site: &Site) -> u64 {
    site.sent().last().expect("something was sent").acknowledged.0
}

#[test]
fn a1_a_command_that_was_not_journaled_is_not_acknowledged() {
    let mut site = Site::connected();
    site.prepare(&template(0));
    let durable = site.facts.len();
    site.dispatch(0, 0..1);
    assert_eq!(last_acknowledged(&site), 2, "after the facts it follows from");
    site.facts.truncate(durable);
    let facts = site.facts.clone();
    let (agent, _) = site_agent_core::Agent::recover(config(), None, facts, Found::default(), site.now);
    site.agent = agent;
    site.commands.clear();
    site.connect();
    let hello = site.sent().into_iter().find_map(|frame| match &frame.body {
        AgentBody::Hello(hello) => Some(hello.last_command.0),
        _ => None,
    });
    assert_eq!(hello, Some(1), "so that it is sent again");
}

#[test]
fn a2_a_journaled_command_that_was_not_acknowledged_is_recognised() {
    let mut site = Site::connected();
    site.prepare(&template(0));
    site.dispatch(0, 0..1);
    site.restart(Vec::new());
    site.connect();
    assert_eq!(site.starts().len(), 1);
    site.commands.clear();
    site.repeat(2, vec![SiteCommand::Dispatch(plain(0, 0..1))]);
    assert_eq!(last_acknowledged(&site), 2, "acknowledged again");
    assert_eq!(site.starts(), []);
    site.repeat(3, vec![SiteCommand::Dispatch(plain(0, 0..1))]);
    assert_eq!(site.starts(), [], "nor under another number");
}

#[test]
fn a3_a_fetch_that_a_restart_interrupted_is_taken_up_and_told_of_once() {
    let mut site = Site::connected();
    site.prepare(&template(0));
    site.command(SiteCommand::Dispatch(reader(0, 0, 5)));
    site.event(Event::Located { object: object(5), present: false });
    assert!(site.has(|command| matches!(command, Command::Fetch { .. })));
    let arrival = Arrival { object: object(5), intent: 1, wire_bytes: 7, direct: None, at: site.now };
    let found = Found { arrivals: vec![arrival], ..Found::default() };
    site.restart_with(found.clone());
    assert_eq!(site.commands.iter().filter(|command| matches!(command, Command::Locate { .. })).count(), 1);
    assert!(site.has(|command| matches!(command, Command::ForgetArrival { intent: 1, .. })));
    // The note may be there once more, as it is taken away only after what it says is durable.
    site.restart_with(found);
    site.event(Event::Located { object: object(5), present: true });
    site.connect();
    assert_eq!(fetched_bytes(&site), [7]);
    assert_eq!(site.starts().len(), 1);
}

#[test]
fn a3_a_fetch_that_a_restart_cut_short_is_begun_again_and_told_of_when_it_has_come() {
    let mut site = Site::connected();
    site.prepare(&template(0));
    site.command(SiteCommand::Dispatch(reader(0, 0, 5)));
    site.event(Event::Located { object: object(5), present: false });
    // A note of an earlier fetch of the same object, which was on record.
    let arrival = Arrival { object: object(5), intent: 0, wire_bytes: 7, direct: None, at: site.now };
    site.restart_with(Found { arrivals: vec![arrival], ..Found::default() });
    site.event(Event::Located { object: object(5), present: false });
    assert!(site.has(|command| matches!(command, Command::Fetch { intent: 1, .. })));
    site.event(Event::Fetched { object: object(5), wire_bytes: 5, direct: None, at: site.now });
    site.connect();
    assert_eq!(fetched_bytes(&site), [5]);
}

#[test]
fn d5_what_was_fetched_and_damaged_before_it_was_on_record_is_told_of_as_both() {
    let mut site = Site::connected();
    site.prepare(&template(0));
    site.command(SiteCommand::Dispatch(reader(0, 0, 5)));
    site.event(Event::Located { object: object(5), present: false });
    let arrival = Arrival { object: object(5), intent: 1, wire_bytes: 5, direct: None, at: site.now };
    site.restart_with(Found { arrivals: vec![arrival], ..Found::default() });
    site.event(Event::Located { object: object(5), present: false });
    assert!(site.has(|command| matches!(command, Command::Fetch { intent: 2, .. })));
    site.event(Event::Fetched { object: object(5), wire_bytes: 5, direct: None, at: site.now });
    site.connect();
    assert_eq!(fetched_bytes(&site), [5, 5]);
    let faults = site.reports().into_iter().filter(|(_, report)| matches!(report, Report::Fault { .. }));
    assert_eq!(faults.count(), 1, "so that the control plane does not take the first for a copy");
}

#[test]
fn d5_what_is_here_without_having_come_was_made_here() {
    let mut site = Site::connected();
    site.prepare(&template(0));
    site.command(SiteCommand::Dispatch(reader(0, 0, 5)));
    site.event(Event::Located { object: object(5), present: false });
    site.restart(Vec::new());
    site.event(Event::Located { object: object(5), present: true });
    site.connect();
    assert_eq!(fetched_bytes(&site), [0; 0]);
    assert_eq!(site.starts().len(), 1);
}

fn fetched_bytes(site: &Site) -> Vec<u64> {
    let fetched = site.reports().into_iter().filter_map(|(_, report)| match report {
        Report::Fetched { wire_bytes, .. } => Some(wire_bytes),
        _ => None,
    });
    fetched.collect()
}

#[test]
fn a4_an_intent_without_a_claim_is_started_again() {
    let mut site = Site::connected();
    site.prepare(&template(0));
    site.dispatch(0, 0..1);
    assert_eq!(site.starts().len(), 1);
    site.restart(Vec::new());
    assert_eq!(site.starts().len(), 1, "the lease holds as long as it did before");
    site.event(Event::Disconnected);
    site.pass(Duration::from_secs(46));
    site.restart(Vec::new());
    assert_eq!(site.starts(), [], "not without a lease");
    site.connect();
    assert_eq!(site.starts().len(), 1);
}

#[test]
fn a4_at_most_once_starts_again_only_without_a_claim_and_with_a_lease() {
    let mut site = Site::connected();
    site.prepare(&StepTemplate { start: StartMode::AtMostOnce, ..template(0) });
    site.dispatch(0, 0..2);
    site.event(Event::Disconnected);
    site.pass(Duration::from_secs(46));
    site.restart(vec![found(0, 0, FoundState::Queued)]);
    assert_eq!(site.starts(), []);
    site.connect();
    assert_eq!(site.starts(), [(exec(0, 1), FIRST)]);
}

#[test]
fn a5_a_claim_whose_start_was_not_journaled_is_found_running() {
    let mut site = Site::connected();
    site.prepare(&template(0));
    site.dispatch(0, 0..1);
    site.restart(vec![found(0, 0, FoundState::Queued)]);
    let inventory = site.connect();
    assert_eq!(inventory[0].state, LocalState::Running);
    assert_eq!(site.starts(), []);
    site.succeed(exec(0, 0));
    assert_eq!(site.finished().len(), 1);
}

#[test]
fn a6_what_runs_is_not_started_again() {
    let mut site = Site::connected();
    site.prepare(&template(0));
    site.dispatch(0, 0..3);
    let since = site.now;
    site.restart(vec![found(0, 0, FoundState::Running { since }), found(0, 1, FoundState::Running { since })]);
    site.connect();
    assert_eq!(site.starts(), [], "and it holds its room");
    site.exit(exec(0, 0), ExitKind::Code(0));
    assert_eq!(site.starts(), [(exec(0, 2), FIRST)]);
}

#[test]
fn a7_what_ran_when_the_machine_went_down_is_interrupted() {
    let mut site = Site::connected();
    site.prepare(&template(0));
    site.dispatch(0, 0..1);
    let exit = exit_at(site.now, ExitKind::Interrupted("the machine was restarted".to_owned()));
    site.restart(vec![found(0, 0, FoundState::Exited(exit))]);
    site.store(exec(0, 0), Vec::new());
    site.connect();
    assert!(matches!(site.finished().remove(0).1.outcome, Outcome::Interrupted { .. }));
}

#[test]
fn a8_an_end_that_nobody_saw_is_taken_in() {
    let mut site = Site::connected();
    site.prepare(&with_output(0));
    site.dispatch(0, 0..1);
    site.restart(vec![found(0, 0, FoundState::Exited(exit_at(site.now, ExitKind::Code(0))))]);
    assert!(site.has(|command| matches!(command, Command::Collect { outputs: true, .. })));
}

#[test]
fn a9_collecting_begins_again() {
    let mut site = Site::connected();
    site.prepare(&with_output(0));
    site.dispatch(0, 0..1);
    site.exit(exec(0, 0), ExitKind::Code(0));
    site.restart(vec![found(0, 0, FoundState::Exited(exit_at(site.now, ExitKind::Code(0))))]);
    assert!(site.has(|command| matches!(command, Command::Collect { outputs: true, .. })));
    site.store(exec(0, 0), vec![file(1)]);
    site.connect();
    assert_eq!(site.finished().remove(0).1.outputs, [file(1)]);
}

#[test]
fn a10_a_manifest_without_a_report_becomes_a_report() {
    let mut site = Site::connected();
    site.prepare(&with_output(0));
    site.dispatch(0, 0..1);
    site.exit(exec(0, 0), ExitKind::Code(0));
    let durable = site.facts.len();
    site.store(exec(0, 0), vec![file(1)]);
    site.facts.truncate(durable);
    let found = vec![found(0, 0, FoundState::Exited(exit_at(site.now, ExitKind::Code(0))))];
    let (agent, step) = site_agent_core::Agent::recover(
        config(),
        None,
        site.facts.clone(),
        Found { attempts: found, ..Found::default() },
        site.now,
    );
    site.agent = agent;
    site.commands = step.commands;
    site.store(exec(0, 0), vec![file(1)]);
    site.connect();
    assert_eq!(site.finished().len(), 1);
}

fn finished_while_away() -> Site {
    let mut site = Site::connected();
    site.prepare(&template(0));
    site.dispatch(0, 0..1);
    site.event(Event::Disconnected);
    site.commands.clear();
    site.succeed(exec(0, 0));
    assert_eq!(site.reports(), []);
    site
}

#[test]
fn a11_what_was_not_sent_is_sent_after_a_restart() {
    let mut site = finished_while_away();
    site.restart(Vec::new());
    let inventory = site.connect();
    assert_eq!(inventory, [InventoryItem { execution: exec(0, 0), attempt: FIRST, state: LocalState::Finished }]);
    assert_eq!(site.finished().len(), 1);
}

#[test]
fn a12_what_was_not_acknowledged_is_sent_again_under_its_number() {
    let mut site = finished_while_away();
    site.connect();
    let first = site.reports();
    site.restart(Vec::new());
    site.connect();
    assert_eq!(site.reports(), first);
}

#[test]
fn a13_what_was_acknowledged_and_not_trimmed_is_trimmed() {
    let mut site = finished_while_away();
    site.connect();
    site.restart(Vec::new());
    site.connect_with(1, |_| Verdict::Keep);
    assert_eq!(site.reports(), []);
    site.restart(Vec::new());
    assert_eq!(site.connect_with(1, |_| Verdict::Keep), [], "nor does it come back");
}

#[test]
fn a16_a_new_journal_goes_on_with_what_runs() {
    let mut site = Site::connected();
    site.prepare(&with_output(0));
    site.dispatch(0, 0..2);
    let since = site.now;
    let exit = exit_at(site.now, ExitKind::Code(0));
    site.lose_journal(vec![found(0, 0, FoundState::Running { since }), found(0, 1, FoundState::Exited(exit))]);
    assert!(!site.has(|command| matches!(command, Command::Kill { .. } | Command::Release { .. })));
    let inventory = site.connect();
    assert_eq!(inventory.iter().map(|item| item.state).collect::<Vec<_>>(), [LocalState::Running; 2]);
    site.prepare(&with_output(0));
    site.dispatch(0, 0..2);
    assert_eq!(site.starts(), []);
    site.store(exec(0, 1), vec![file(1)]);
    site.exit(exec(0, 0), ExitKind::Code(0));
    site.store(exec(0, 0), vec![file(1)]);
    assert_eq!(site.finished().len(), 2);
}

#[test]
fn a16_what_nobody_wants_any_more_is_stopped() {
    let mut site = Site::new();
    let since = site.now;
    site.lose_journal(vec![found(0, 0, FoundState::Running { since })]);
    site.connect_with(0, |_| Verdict::Forget);
    assert!(site.has(|command| matches!(command, Command::Kill { .. })));
    site.exit(exec(0, 0), ExitKind::Killed);
    assert!(site.has(|command| matches!(command, Command::Release { .. })));
    assert_eq!(site.reports(), []);
}

#[test]
fn a16_what_a_later_attempt_supersedes_makes_room_for_it() {
    let mut site = Site::new();
    let exit = exit_at(site.now, ExitKind::Code(0));
    site.lose_journal(vec![found(0, 0, FoundState::Exited(exit))]);
    site.connect();
    site.prepare(&with_output(0));
    let attempt = atoll_model::id::Attempt(2);
    site.command(SiteCommand::Dispatch(atoll_model::session::Dispatch { attempt, ..plain(0, 0..1) }));
    assert_eq!(site.starts(), [(exec(0, 0), attempt)]);
    assert_eq!(site.finished().remove(0).1.outcome, Outcome::Cancelled);
}

#[test]
fn a16_what_read_a_sealed_output_is_reported_when_that_is_committed() {
    let mut site = Site::new();
    let exit = exit_at(site.now, ExitKind::Code(0));
    let both = vec![found(0, 0, FoundState::Exited(exit.clone())), found(1, 0, FoundState::Exited(exit))];
    site.lose_journal(both);
    site.connect();
    site.prepare(&with_output(0));
    site.dispatch(0, 0..1);
    site.prepare(&with_output(1));
    site.command(SiteCommand::Dispatch(follower(1)));
    site.store(exec(1, 0), vec![file(2)]);
    assert_eq!(site.finished(), []);
    site.store(exec(0, 0), vec![file(1)]);
    assert_eq!(site.finished().len(), 2);
}
