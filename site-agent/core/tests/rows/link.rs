//! B, C, E: the control plane is away, or the link does strange things.

use std::time::Duration;

use atoll_model::id::{Epoch, ExecutionId, ReportSeq};
use atoll_model::session::{
    AgentBody, ControlBody, ControlFrame, Dispatch, Goodbye, LocalState, NotStartedReason, Outcome, Report,
    SiteCommand, StepTemplate, TemplateWork, Verdict,
};
use atoll_model::time::Timestamp;
use atoll_model::workflow::OnDisconnect;
use site_agent_core::event::{ExitKind, Found, FoundAttempt, FoundState, NodeId};
use site_agent_core::{Boot, Command, Config, Event};

use crate::harness::*;

#[test]
fn b5_without_a_control_plane_what_was_delegated_goes_on_and_everything_is_recorded() {
    let mut site = Site::connected();
    site.prepare(&with_output(0));
    site.prepare(&template(1));
    site.dispatch(0, 0..1);
    site.command(SiteCommand::Dispatch(follower(1)));
    site.event(Event::Disconnected);
    site.pass(Duration::from_secs(300));
    site.exit(exec(0, 0), ExitKind::Code(0));
    site.store(exec(0, 0), vec![file(1)]);
    assert_eq!(site.starts().len(), 2, "the fragment starts under the work lease");
    site.succeed(exec(1, 0));
    site.connect();
    assert_eq!(site.finished().len(), 2);
}

#[test]
fn b5_a_full_outbox_stops_starts_and_no_records() {
    let mut site = Site::with(Config { outbox_bytes_max: 100, ..config() });
    site.connect();
    site.prepare(&template(0));
    site.dispatch(0, 0..2);
    site.succeed(exec(0, 0));
    site.succeed(exec(0, 1));
    site.dispatch(0, 2..3);
    assert_eq!(site.starts().len(), 2);
    site.event(Event::Disconnected);
    site.commands.clear();
    site.connect();
    assert_eq!(site.finished().len(), 2);
    site.frame(2, ControlBody::Acknowledge);
    assert_eq!(site.starts(), [(exec(0, 2), FIRST)], "room again");
}

#[test]
fn b5_an_agent_that_is_cut_off_fills_its_outbox_to_its_bound_and_loses_nothing_when_it_comes_back() {
    let most = 20_000;
    let mut site = Site::with(Config { outbox_bytes_max: most, ..config() });
    site.connect();
    site.prepare(&template(0));
    site.dispatch(0, 0..1_000);
    site.event(Event::Disconnected);
    let mut ended = 0;
    while let Some((execution, _)) = site.starts().get(ended).copied() {
        site.succeed(execution);
        ended += 1;
    }
    assert!((50..200).contains(&ended), "{ended} outcomes come to {most} bytes");
    site.pass(Duration::from_secs(4 * 3_600));
    assert_eq!((site.starts().len(), site.finished().len()), (ended, 0), "what waits is kept, not given back");
    site.commands.clear();
    let inventory = site.connect();
    assert_eq!(inventory.len(), 1_000);
    let mut last = 0;
    while let Some((number, _)) = site.reports().last().cloned().filter(|(number, _)| *number > last) {
        last = number;
        site.frame(last, ControlBody::Acknowledge);
    }
    let mut next = 0;
    while let Some((execution, _)) = site.starts().get(next).copied() {
        next += 1;
        site.succeed(execution);
        site.frame(site.reports().last().map_or(0, |(number, _)| *number), ControlBody::Acknowledge);
    }
    let mut finished: Vec<u32> = site.finished().iter().map(|(_, element)| element.element).collect();
    finished.sort_unstable();
    assert!(finished.into_iter().eq(0..1_000), "each was reported, and once");
}

#[test]
fn b5_a_full_outbox_is_told_of_at_once_and_so_is_its_end_and_nothing_is_given_back() {
    let mut site = Site::with(Config { outbox_bytes_max: 1_000, ..config() });
    site.connect();
    site.prepare(&template(0));
    site.dispatch(0, 0..100);
    let told = |site: &Site| -> Vec<bool> {
        let closed = site.sent().into_iter().filter_map(|frame| match &frame.body {
            AgentBody::Heartbeat(heartbeat) => Some(heartbeat.closed.is_some()),
            _ => None,
        });
        closed.collect()
    };
    site.commands.clear();
    site.dispatch(0, 100..101);
    let mut ended = 0;
    while told(&site).is_empty() {
        site.succeed(exec(0, ended));
        ended += 1;
    }
    assert_eq!(told(&site), [true]);
    let sent = site.reports().last().unwrap().0;
    site.frame(sent, ControlBody::Acknowledge);
    assert_eq!(told(&site), [true, false]);
    assert!(site.finished().iter().all(|(_, element)| is_success(&element.outcome)));
}

#[test]
fn c2_every_frame_twice_does_nothing_twice() {
    let mut site = Site::connected();
    let commands = vec![SiteCommand::Prepare(Box::new(template(0))), SiteCommand::Dispatch(plain(0, 0..2))];
    site.repeat(1, commands.clone());
    site.repeat(1, commands);
    assert_eq!(site.starts().len(), 2);
    for _ in 0..2 {
        site.exit(exec(0, 0), ExitKind::Code(0));
    }
    for _ in 0..2 {
        site.store(exec(0, 0), Vec::new());
    }
    assert_eq!(site.finished().len(), 1);
    site.frame(1, ControlBody::Acknowledge);
    let snapshot = site.agent.snapshot();
    site.frame(1, ControlBody::Acknowledge);
    site.frame(0, ControlBody::Verdicts(vec![Verdict::Forget]));
    assert_eq!(site.agent.snapshot(), snapshot);
}

#[test]
fn c3_commands_after_a_gap_are_not_taken() {
    let mut site = Site::connected();
    site.repeat(2, vec![SiteCommand::Dispatch(plain(0, 0..1))]);
    let last = site.sent().last().map(|frame| frame.acknowledged.0);
    assert_eq!(last, Some(0));
    site.repeat(1, vec![SiteCommand::Prepare(Box::new(template(0))), SiteCommand::Dispatch(plain(0, 0..1))]);
    assert_eq!(site.starts().len(), 1);
}

#[test]
fn c3_frames_of_another_session_are_dropped() {
    let mut site = Site::connected();
    site.prepare(&template(0));
    let body = ControlBody::Commands {
        first: atoll_model::id::CommandSeq(2),
        commands: vec![SiteCommand::Dispatch(plain(0, 0..1))],
    };
    let frame = ControlFrame { epoch: Epoch(site.epoch - 1), acknowledged: ReportSeq(0), lease: None, body };
    site.event(Event::FrameReceived { frame });
    assert_eq!(site.starts(), []);
}

#[test]
fn c5_a_silent_session_is_given_up() {
    let mut site = Site::connected();
    site.commands.clear();
    site.pass(Duration::from_secs(60));
    assert!(site.has(|command| matches!(command, Command::Disconnect { give_up: None })));
    let heartbeats = site.sent().into_iter().filter(|frame| matches!(frame.body, AgentBody::Heartbeat(_))).count();
    assert!((2..=4).contains(&heartbeats), "{heartbeats}");
}

#[test]
fn c5_an_agent_that_was_paced_down_waits_for_its_welcome_as_long_as_for_anything_else() {
    let mut site = Site::connected();
    site.grant_with(Duration::from_secs(60));
    site.event(Event::Disconnected);
    site.event(Event::Connected { boot_nonce: 7, wall_clock: site.now });
    site.commands.clear();
    site.pass(Duration::from_secs(170));
    assert!(!site.has(|command| matches!(command, Command::Disconnect { .. })));
    site.pass(Duration::from_secs(20));
    assert!(site.has(|command| matches!(command, Command::Disconnect { give_up: None })));
}

#[test]
fn c6_only_an_answered_heartbeat_grants_a_lease() {
    let mut site = Site::connected();
    site.prepare(&template(0));
    for _ in 0..10 {
        // What comes from the control plane is heard; what is said to it is not.
        site.pass(Duration::from_secs(10));
        site.frame(0, ControlBody::Acknowledge);
    }
    site.dispatch(0, 0..1);
    assert_eq!(site.starts(), []);
    site.grant();
    assert_eq!(site.starts().len(), 1);
}

#[test]
fn c6_without_the_session_lease_nothing_that_was_dispatched_alone_starts() {
    let mut site = Site::connected();
    site.prepare(&template(0));
    site.dispatch(0, 0..3);
    site.event(Event::Disconnected);
    site.pass(Duration::from_secs(46));
    site.succeed(exec(0, 0));
    assert_eq!(site.starts().len(), 2);
    site.connect();
    assert_eq!(site.starts().len(), 3);
}

#[test]
fn c6_without_the_work_lease_no_fragment_starts() {
    let mut site = Site::connected();
    site.prepare(&with_output(0));
    site.prepare(&template(1));
    site.dispatch(0, 0..1);
    site.command(SiteCommand::Dispatch(follower(1)));
    site.event(Event::Disconnected);
    site.pass(Duration::from_secs(901));
    site.exit(exec(0, 0), ExitKind::Code(0));
    site.store(exec(0, 0), vec![file(1)]);
    assert_eq!(site.starts().len(), 1);
}

/// A chain of two steps of which the first runs, and the link is gone.
fn cut_off_in_a_chain() -> Site {
    let mut site = Site::connected();
    site.prepare(&with_output(0));
    site.prepare(&template(1));
    site.dispatch(0, 0..1);
    site.command(SiteCommand::Dispatch(follower(1)));
    site.event(Event::Disconnected);
    site.pass(Duration::from_secs(300));
    site
}

fn running(execution: ExecutionId) -> Found {
    let state = FoundState::Running { since: Timestamp(1) };
    Found { attempts: vec![FoundAttempt { execution, attempt: FIRST, node: NodeId::HOME, state }], ..Found::default() }
}

#[test]
fn b5_an_agent_that_is_killed_while_it_is_cut_off_finishes_the_chain_alone() {
    let mut site = cut_off_in_a_chain();
    site.restart_with(running(exec(0, 0)));
    site.exit(exec(0, 0), ExitKind::Code(0));
    site.store(exec(0, 0), vec![file(1)]);
    assert_eq!(site.starts(), [(exec(1, 0), FIRST)]);
}

#[test]
fn c6_a_restart_prolongs_no_lease() {
    let mut site = cut_off_in_a_chain();
    site.pass(Duration::from_secs(599));
    site.restart_with(running(exec(0, 0)));
    site.pass(Duration::from_secs(2));
    site.exit(exec(0, 0), ExitKind::Code(0));
    site.store(exec(0, 0), vec![file(1)]);
    assert_eq!(site.starts(), []);
}

#[test]
fn c6_a_lease_ends_with_the_machine() {
    let mut site = cut_off_in_a_chain();
    let boot = Boot { id: 4, ..config().boot };
    site.restart_in(boot, running(exec(0, 0)));
    site.exit(exec(0, 0), ExitKind::Code(0));
    site.store(exec(0, 0), vec![file(1)]);
    assert_eq!(site.starts(), []);
    site.connect();
    assert_eq!(site.starts(), [(exec(1, 0), FIRST)]);
}

#[test]
fn g3_an_agent_that_was_revoked_starts_nothing_more_under_its_lease() {
    let mut site = Site::connected();
    site.prepare(&with_output(0));
    site.prepare(&template(1));
    site.dispatch(0, 0..1);
    site.command(SiteCommand::Dispatch(follower(1)));
    site.frame(0, ControlBody::Goodbye(Goodbye::Revoked { reason: "stolen".to_owned() }));
    site.restart_with(running(exec(0, 0)));
    site.exit(exec(0, 0), ExitKind::Code(0));
    site.store(exec(0, 0), vec![file(1)]);
    assert_eq!(site.starts(), []);
}

#[test]
fn c6_what_must_not_go_on_without_a_link_is_stopped_with_the_lease() {
    let mut site = Site::connected();
    site.prepare(&StepTemplate { on_disconnect: OnDisconnect::Stop, ..template(0) });
    site.dispatch(0, 0..1);
    site.event(Event::Disconnected);
    site.pass(Duration::from_secs(44));
    assert!(!site.has(|command| matches!(command, Command::Kill { .. })));
    site.pass(Duration::from_secs(2));
    assert!(site.has(|command| matches!(command, Command::Kill { .. })));
    site.exit(exec(0, 0), ExitKind::Killed);
    site.store(exec(0, 0), Vec::new());
    site.connect();
    assert_eq!(site.finished().remove(0).1.outcome, Outcome::Cancelled, "a stop on purpose is no crash");
}

#[test]
fn credits_bound_what_is_on_its_way() {
    let mut site = Site::connected();
    let steps = 120;
    for step in 0..steps {
        site.prepare(&StepTemplate { work: TemplateWork::Null, ..template(step) });
    }
    site.event(Event::Disconnected);
    site.connect();
    site.commands.clear();
    for step in 0..steps {
        site.dispatch(step, 0..1);
        let (run, elements) = (RUN, atoll_model::elements::ElementSet::from_range(0..1));
        let step = atoll_model::id::StepIndex(step);
        site.event(Event::NullFinished { run, step, attempt: FIRST, elements, at: site.now });
    }
    assert_eq!(site.reports().len(), 8, "then they gather");
    site.event(Event::Disconnected);
    site.commands.clear();
    site.connect();
    assert_eq!(site.reports().len(), 100, "as many as there are credits");
    site.frame(50, ControlBody::Acknowledge);
    assert_eq!(site.reports().len(), 120);
}

#[test]
fn e1_a_full_disk_closes_the_site_and_stops_nothing() {
    let mut site = Site::connected();
    site.prepare(&template(0));
    site.dispatch(0, 0..3);
    site.commands.clear();
    site.measure(1 << 20);
    assert!(!site.has(|command| matches!(command, Command::Kill { .. })));
    let frames = site.sent();
    assert!(matches!(&frames[0].body, AgentBody::Heartbeat(heartbeat) if heartbeat.closed.is_some()));
    let (_, element) = site.finished().remove(0);
    assert!(matches!(element.outcome, Outcome::NotStarted { reason: NotStartedReason::Closed, .. }));
    site.succeed(exec(0, 0));
    assert_eq!(site.finished().len(), 2);
    site.measure(1 << 40);
    site.command(SiteCommand::Dispatch(Dispatch { attempt: atoll_model::id::Attempt(2), ..plain(0, 2..3) }));
    assert_eq!(site.starts().len(), 1, "open again");
}

#[test]
fn e3_after_a_suspension_nothing_starts_before_the_lease_is_renewed() {
    let mut site = Site::connected();
    site.prepare(&template(0));
    let asleep = Duration::from_secs(3_600);
    site.now = site.now + asleep;
    site.dispatch(0, 0..1);
    assert_eq!(site.starts(), []);
    site.event(Event::TimeoutElapsed);
    site.connect();
    assert_eq!(site.starts().len(), 1);
}

#[test]
fn e6_a_superseded_session_comes_back_and_a_revoked_one_does_not() {
    for (goodbye, gives_up) in [
        (Goodbye::Superseded, false),
        (Goodbye::ShuttingDown, false),
        (Goodbye::Revoked { reason: "two agents use this identity".to_owned() }, true),
        (Goodbye::Refused { reason: "too new".to_owned() }, true),
    ] {
        let mut site = Site::connected();
        site.frame(0, ControlBody::Goodbye(goodbye));
        assert!(
            site.has(|command| matches!(command, Command::Disconnect { give_up } if give_up.is_some() == gives_up))
        );
    }
}

#[test]
fn reports_of_one_step_travel_together() {
    let mut site = Site::connected();
    site.prepare(&template(0));
    site.dispatch(0, 0..40);
    for element in 0..40 {
        site.succeed(exec(0, element));
    }
    assert_eq!(site.reports().len(), 8);
    site.commands.clear();
    site.frame(8, ControlBody::Acknowledge);
    let reports = site.reports();
    assert_eq!(reports.len(), 1);
    assert!(matches!(&reports[0].1, Report::Finished { elements, .. } if elements.len() == 32));
}

#[test]
fn a_start_that_is_due_waits_for_acknowledgements_without_a_timer() {
    let mut site = Site::connected();
    site.prepare(&template(0));
    site.dispatch(0, 0..40);
    for element in 0..39 {
        site.succeed(exec(0, element));
    }
    site.event(Event::Started { execution: exec(0, 39), attempt: FIRST, at: site.now });
    site.pass(Duration::from_secs(1));
    assert!(site.agent.next_timeout().is_some_and(|at| at > site.now));
}

#[test]
fn b6_acknowledged_reports_are_sent_again_to_a_control_plane_that_lacks_them() {
    let mut site = Site::connected();
    site.prepare(&template(0));
    site.dispatch(0, 0..3);
    site.succeed(exec(0, 0));
    site.succeed(exec(0, 1));
    site.pass(Duration::from_secs(1));
    let told = site.reports();
    let last = told.last().expect("it has reported").0;
    site.frame(last, ControlBody::Acknowledge);
    // Killed and started again meanwhile: they are in its journal.
    site.event(Event::Disconnected);
    let running = FoundState::Running { since: site.now };
    let found = FoundAttempt { execution: exec(0, 2), attempt: FIRST, node: NodeId::HOME, state: running };
    site.restart(vec![found]);
    site.commands.clear();
    let named = site.connect_with(0, |_| Verdict::Keep);
    assert_eq!(named.iter().filter(|item| item.state == LocalState::Finished).count(), 2);
    let again: Vec<_> = site.reports().into_iter().filter(|(number, _)| *number <= last).collect();
    assert_eq!(again, told, "the same under the same numbers");
    site.frame(last, ControlBody::Acknowledge);
    site.commands.clear();
    site.event(Event::Disconnected);
    site.connect_with(last, |_| Verdict::Keep);
    assert!(site.reports().iter().all(|(number, _)| *number > last), "what is known is not sent again");
}

#[test]
fn b6_an_attempt_that_is_given_out_again_is_said_to_be_known() {
    let mut site = Site::connected();
    site.prepare(&template(0));
    site.dispatch(0, 0..2);
    site.succeed(exec(0, 0));
    site.pass(Duration::from_secs(1));
    let told = site.reports().last().expect("it has reported").0;
    site.frame(told, ControlBody::Acknowledge);
    site.commands.clear();
    // Under a number of its own: no repetition. The second still runs.
    site.dispatch(0, 0..3);
    site.pass(Duration::from_secs(1));
    let ends: Vec<_> = site.finished().into_iter().map(|(_, end)| (end.element, end.attempt, end.outcome)).collect();
    assert_eq!(ends.len(), 1, "{ends:?}");
    let (element, attempt, outcome) = &ends[0];
    assert_eq!((*element, *attempt), (0, FIRST));
    assert!(matches!(outcome, Outcome::NotStarted { reason: NotStartedReason::AttemptKnown, .. }), "{outcome:?}");
    assert_eq!(site.starts(), [(exec(0, 2), FIRST)], "what is new is begun");
}
