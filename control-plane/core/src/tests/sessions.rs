//! Sessions: what is sent again, what is heard twice, what is fenced.

use std::time::Duration;

use atoll_model::id::{Attempt, JournalId, ReportSeq};
use atoll_model::session::{AgentBody, AgentFrame, Goodbye, LocalState, Outcome, Report, SiteCommand, Verdict};
use atoll_model::value::Value;

use super::world::{World, execution, item};
use crate::Event;
use crate::view::{ExecutionState, RunState, SiteState};

const ONE: &str = "workflow: w\nsteps:\n  a: { run: x }\n";
const ONCE: &str = "workflow: w\nsteps:\n  a: { run: x, start: at-most-once }\n";

#[test]
fn a1_a_command_that_did_not_arrive_is_sent_again_under_its_number() {
    let mut world = World::with_sites(&["edge"]);
    world.submit(ONE);
    world.agents.get_mut("edge").unwrap().frames.clear();
    world.disconnect("edge");
    world.connect("edge");
    let dispatched = world.dispatched_one("edge");
    assert_eq!(dispatched.1, Attempt::FIRST);
    assert_eq!(world.agents["edge"].last_command.0, 2);
}

#[test]
fn a2_a_journaled_command_that_was_not_acknowledged_is_recognised() {
    let mut world = World::with_sites(&["edge"]);
    world.submit(ONE);
    world.receive("edge");
    let a = super::world::executions_of(&world.agents["edge"].commands[1])[0];
    world.disconnect("edge");
    world.connect_with("edge", vec![item(a, LocalState::Accepted)]);
    assert_eq!(world.agents["edge"].verdicts, [Verdict::Keep]);
    assert_eq!(world.agents["edge"].commands.len(), 2, "nothing is sent twice");
    world.succeed("edge", a, Vec::new());
    assert_eq!(world.state(a.0.run), RunState::Succeeded);
}

#[test]
fn a11_an_outcome_that_was_journaled_and_not_sent_counts_after_reconnecting() {
    let mut world = World::with_sites(&["edge"]);
    world.submit(ONE);
    let a = world.dispatched_one("edge");
    world.disconnect("edge");
    world.agents.get_mut("edge").unwrap().last_report = ReportSeq(1);
    world.connect_with("edge", vec![item(a, LocalState::Finished)]);
    assert_eq!(world.agents["edge"].verdicts, [Verdict::Keep]);
    assert!(!world.agents["edge"].is_ready, "the outbox is drained first");
    world.agents.get_mut("edge").unwrap().last_report = ReportSeq(0);
    world.succeed("edge", a, Vec::new());
    assert!(world.agents["edge"].is_ready);
    assert_eq!(world.state(a.0.run), RunState::Succeeded);
}

#[test]
fn a12_a_report_that_is_sent_again_counts_once() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit("workflow: w\nsteps:\n  a: { run: x, retry: { attempts: 2, backoff: 1s } }\n");
    let a = world.dispatched_one("edge");
    world.fail("edge", a);
    let known = world.core.snapshot();
    let report = world.finished(a, super::world::failed("exit code 1"), Vec::new());
    world.frame("edge", AgentBody::Reports { first: ReportSeq(1), reports: vec![report] });
    assert_eq!(world.core.snapshot(), known);
    assert_eq!(world.state(run), RunState::Running);
}

#[test]
fn a13_a_report_that_is_repeated_is_acknowledged_again() {
    let mut world = World::with_sites(&["edge"]);
    world.submit(ONE);
    let a = world.dispatched_one("edge");
    world.succeed("edge", a, Vec::new());
    world.commands("edge");
    let report = world.finished(a, Outcome::Succeeded, Vec::new());
    world.frame("edge", AgentBody::Reports { first: ReportSeq(1), reports: vec![report] });
    let frame = world.agents["edge"].frames.back().expect("answered");
    assert_eq!(frame.acknowledged, ReportSeq(1));
}

#[test]
fn a16_a_new_journal_says_the_whole_truth() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit("workflow: w\nsteps:\n  a: { run: x, foreach: \"${{ range(3) }}\" }\n");
    let dispatched = world.dispatched("edge");
    world.start("edge", dispatched[0]);
    world.disconnect("edge");
    let agent = world.agents.get_mut("edge").unwrap();
    agent.journal = JournalId::from_bits(999);
    agent.last_command.0 = 0;
    agent.last_report.0 = 0;
    agent.acknowledged_report.0 = 0;
    // A shim still runs the second; the others have left no trace.
    world.connect_with("edge", vec![item(dispatched[1], LocalState::Running)]);
    assert!(world.agents["edge"].welcome.as_ref().unwrap().new_journal);
    assert_eq!(world.agents["edge"].verdicts, [Verdict::Keep]);
    let mut again = world.dispatched("edge");
    again.sort();
    let expected =
        [(execution(run, 0, 0), Attempt(2)), (execution(run, 0, 1), Attempt(1)), (execution(run, 0, 2), Attempt(2))];
    assert_eq!(again, expected, "what goes on is told again under its attempt, what is gone gets another");
    again.into_iter().for_each(|execution| world.succeed("edge", execution, Vec::new()));
    assert_eq!(world.state(run), RunState::Succeeded);
}

#[test]
fn a16_with_a_new_journal_what_was_never_sent_keeps_its_attempt() {
    let mut world = World::with_sites(&["edge"]);
    world.submit(ONCE);
    let first = world.dispatched_one("edge");
    world.disconnect("edge");
    // Accepted while nobody is connected: nothing is placed at an agent that is away.
    let second = world.submit(ONCE);
    let agent = world.agents.get_mut("edge").unwrap();
    agent.journal = JournalId::from_bits(999);
    agent.last_command.0 = 0;
    agent.last_report.0 = 0;
    agent.acknowledged_report.0 = 0;
    world.connect_with("edge", Vec::new());
    assert_eq!(world.state_of(first.0), ExecutionState::Unknown, "it was sent, and must not start twice");
    assert_eq!(world.dispatched_one("edge"), (execution(second, 0, 0), Attempt::FIRST));
}

#[test]
fn a16_what_a_new_journal_lacks_is_told_even_if_the_control_plane_went_down_before_it_was() {
    let mut world = World::with_sites(&["edge"]);
    world.submit(ONE);
    let a = world.dispatched_one("edge");
    world.disconnect("edge");
    let agent = world.agents.get_mut("edge").unwrap();
    agent.journal = JournalId::from_bits(999);
    agent.last_command.0 = 0;
    world.hello("edge");
    world.restart();
    world.connect_with("edge", vec![item(a, LocalState::Running)]);
    assert!(world.agents["edge"].welcome.as_ref().unwrap().new_journal);
    assert_eq!(world.dispatched("edge"), [a]);
}

#[test]
fn a16_with_a_new_journal_what_was_to_be_stopped_is_forgotten() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit(ONE);
    let a = world.dispatched_one("edge");
    world.start("edge", a);
    world.ask(crate::Request::CancelRun { run, reason: String::new() }).unwrap();
    world.disconnect("edge");
    let agent = world.agents.get_mut("edge").unwrap();
    agent.journal = JournalId::from_bits(999);
    agent.last_command.0 = 0;
    agent.last_report.0 = 0;
    agent.acknowledged_report.0 = 0;
    agent.commands.clear();
    world.connect_with("edge", vec![item(a, LocalState::Running)]);
    assert_eq!(world.agents["edge"].verdicts, [Verdict::Forget]);
    assert_eq!(world.state(run), RunState::Cancelled);
}

#[test]
fn b1_commands_that_were_decided_and_not_sent_are_sent_after_a_restart() {
    let mut world = World::with_sites(&["edge"]);
    world.submit(ONE);
    world.agents.get_mut("edge").unwrap().frames.clear();
    world.restart();
    world.connect("edge");
    assert_eq!(world.dispatched_one("edge").1, Attempt::FIRST);
}

#[test]
fn b2_a_report_that_was_applied_and_not_acknowledged_is_a_no_op() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit("workflow: w\nsteps:\n  a: { run: x, retry: { attempts: 2, backoff: 1s } }\n");
    let a = world.dispatched_one("edge");
    let report = world.finished(a, super::world::failed("exit code 1"), Vec::new());
    world.frame("edge", AgentBody::Reports { first: ReportSeq(1), reports: vec![report] });
    world.restart();
    world.agents.get_mut("edge").unwrap().last_report = ReportSeq(1);
    world.connect_with("edge", vec![item(a, LocalState::Finished)]);
    let known = world.core.snapshot();
    assert_eq!(world.agents["edge"].welcome.as_ref().unwrap().resume_after, ReportSeq(1));
    let report = world.finished(a, super::world::failed("exit code 1"), Vec::new());
    world.frame("edge", AgentBody::Reports { first: ReportSeq(1), reports: vec![report] });
    assert_eq!(world.core.snapshot(), known);
    assert_eq!(world.state(run), RunState::Running);
}

#[test]
fn c2_every_frame_may_arrive_twice() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit("workflow: w\nsteps:\n  a: { run: x, outputs: { n: integer } }\n");
    let a = world.dispatched_one("edge");
    let started = Report::Started {
        run,
        step: a.0.step,
        elements: vec![atoll_model::session::StartedElement { element: 0, attempt: a.1, at: world.now }],
    };
    let finished = world.finished(a, Outcome::Succeeded, vec![Value::Integer(1)]);
    for (number, report) in [(1, started), (2, finished)] {
        for _ in 0..2 {
            let body = AgentBody::Reports { first: ReportSeq(number), reports: vec![report.clone()] };
            world.frame("edge", body);
        }
    }
    assert_eq!(world.state(run), RunState::Succeeded);
    assert_eq!(world.core.counters().executions_ended[&ExecutionState::Succeeded], 1);
}

#[test]
fn c3_after_a_gap_reports_are_asked_for_again_and_none_is_skipped() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit(ONE);
    let a = world.dispatched_one("edge");
    let report = world.finished(a, Outcome::Succeeded, Vec::new());
    let connection = world.agents["edge"].connection;
    world.frame("edge", AgentBody::Reports { first: ReportSeq(2), reports: vec![report] });
    assert_eq!(world.closed, [connection]);
    assert_eq!(world.state_of(a.0), ExecutionState::Dispatched);
    world.connect_with("edge", vec![item(a, LocalState::Finished)]);
    assert_eq!(world.agents["edge"].welcome.as_ref().unwrap().resume_after, ReportSeq(0));
    world.succeed("edge", a, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
}

#[test]
fn c6_only_an_answered_heartbeat_grants_a_lease() {
    let mut world = World::with_sites(&["edge"]);
    world.frame("edge", AgentBody::Acknowledge);
    assert!(world.agents["edge"].frames.iter().all(|frame| frame.lease.is_none()));
    world.advance(Duration::from_secs(5));
    let sent_at = world.now;
    let heartbeat = atoll_model::session::Heartbeat { sent_at, ..Default::default() };
    world.frame("edge", AgentBody::Heartbeat(heartbeat));
    let lease = world.agents["edge"].frames.back().unwrap().lease.expect("a lease");
    assert_eq!(lease.answers, sent_at);
    assert_eq!(lease.session, Duration::from_secs(45));
}

#[test]
fn c7_sessions_are_taken_up_again_and_again_without_losing_anything() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit("workflow: w\nsteps:\n  a: { run: x, foreach: \"${{ range(20) }}\" }\n");
    let dispatched = world.dispatched("edge");
    for (place, execution) in dispatched.iter().enumerate() {
        world.disconnect("edge");
        let left = dispatched[place..].iter().map(|execution| item(*execution, LocalState::Accepted)).collect();
        world.connect_with("edge", left);
        assert!(world.dispatched("edge").is_empty(), "nothing is given out twice");
        world.succeed("edge", *execution, Vec::new());
    }
    assert_eq!(world.state(run), RunState::Succeeded);
}

#[test]
fn frames_of_an_older_session_are_not_heard() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit(ONE);
    let a = world.dispatched_one("edge");
    let (connection, agent, epoch) = {
        let agent = &world.agents["edge"];
        (agent.connection, agent.id, agent.epoch)
    };
    world.connect_with("edge", vec![item(a, LocalState::Accepted)]);
    assert!(world.closed.contains(&connection));
    let report = world.finished(a, Outcome::Succeeded, Vec::new());
    let body = AgentBody::Reports { first: ReportSeq(1), reports: vec![report] };
    let frame = AgentFrame { epoch, acknowledged: Default::default(), body };
    world.handle(Event::FrameReceived { connection, agent, frame: frame.clone() });
    let connection = world.agents["edge"].connection;
    world.handle(Event::FrameReceived { connection, agent, frame });
    assert_eq!(world.state(run), RunState::Running);
    assert_eq!(world.core.site(&"edge".parse().unwrap()).unwrap().state, SiteState::Ready);
}

#[test]
fn e6_two_agents_with_one_identity_are_both_shut_out() {
    let mut world = World::with_sites(&["edge"]);
    for nonce in [1, 2, 1, 2] {
        world.agents.get_mut("edge").unwrap().boot_nonce = nonce;
        world.hello("edge");
    }
    // A hello of the process before that came late looks the same.
    assert_ne!(world.core.sites()[0].state, SiteState::Quarantined);
    for nonce in [1, 2] {
        world.agents.get_mut("edge").unwrap().boot_nonce = nonce;
        world.hello("edge");
    }
    assert!(matches!(world.agents["edge"].goodbye, Some(Goodbye::Revoked { .. })));
    assert_eq!(world.core.sites()[0].state, SiteState::Quarantined);
    world.hello("edge");
    assert!(matches!(world.agents["edge"].goodbye, Some(Goodbye::Revoked { .. })));
}

#[test]
fn an_agent_that_restarts_often_is_not_taken_for_two() {
    let mut world = World::with_sites(&["edge"]);
    for nonce in 10..20 {
        world.agents.get_mut("edge").unwrap().boot_nonce = nonce;
        world.connect("edge");
    }
    assert_eq!(world.core.sites()[0].state, SiteState::Ready);
}

#[test]
fn the_session_of_another_version_of_the_protocol_is_refused() {
    let mut world = World::with_sites(&["edge"]);
    let agent = world.agents["edge"].id;
    let hello = atoll_model::session::Hello {
        agent,
        journal: world.agents["edge"].journal,
        incarnation: 1,
        boot_nonce: 1,
        protocol_min: 7,
        protocol_max: 9,
        agent_version: String::new(),
        capacity: Default::default(),
        runtimes: Vec::new(),
        last_command: Default::default(),
        acknowledged_report: Default::default(),
        first_report: Default::default(),
        last_report: Default::default(),
        clock: world.now,
        wall_clock: world.now,
    };
    world.frame("edge", AgentBody::Hello(hello));
    world.receive("edge");
    assert!(matches!(&world.agents["edge"].goodbye, Some(Goodbye::Refused { reason }) if reason.contains("7 to 9")));
}

#[test]
fn a_cancel_that_did_not_arrive_is_repeated() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit(ONE);
    let a = world.dispatched_one("edge");
    world.start("edge", a);
    world.disconnect("edge");
    world.ask(crate::Request::CancelRun { run, reason: String::new() }).unwrap();
    world.connect_with("edge", vec![item(a, LocalState::Running)]);
    assert_eq!(world.agents["edge"].verdicts, [Verdict::Cancel]);
    assert!(matches!(world.commands("edge").as_slice(), [SiteCommand::Cancel { .. }]));
}

#[test]
fn what_was_never_sent_to_a_lost_site_is_not_sent_when_that_comes_back_but_given_out_anew() {
    let (mut world, run) = super::data::waiting_for_a_push(super::data::TWO_SITES);
    world.disconnect("hpc");
    assert_eq!(world.carry_out_pushes("edge"), 1);
    // It was given to `hpc`, and nobody was there to be told.
    world.advance_with(Duration::from_secs(16 * 60), &["edge"]);
    world.connect("hpc");
    let reader = world.dispatched_one("hpc");
    assert_eq!(reader.1, Attempt::FIRST);
    world.succeed("hpc", reader, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
}
