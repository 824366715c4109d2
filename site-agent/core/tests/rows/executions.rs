//! Executions: turns, fragments, ends.

use std::time::Duration;

use atoll_model::elements::ElementSet;
use atoll_model::id::{Attempt, StepIndex};
use atoll_model::resources::Resources;
use atoll_model::session::{
    Dispatch, FailureReason, Logs, NotStartedReason, Outcome, SiteCommand, StepTemplate, TemplateWork,
};
use atoll_model::value::Value;
use site_agent_core::command::StartValue;
use site_agent_core::event::{Exit, ExitKind, OutputFailure, Seal, SealedOutput, SealedValue, StoredOutputs};
use site_agent_core::{Command, Event};

use crate::harness::*;

#[test]
fn only_as_many_run_as_there_is_room_for() {
    let mut site = Site::connected();
    site.prepare(&template(0));
    site.dispatch(0, 0..5);
    assert_eq!(site.starts().len(), 2);
    site.succeed(exec(0, 0));
    assert_eq!(site.starts().len(), 3);
}

#[test]
fn short_executions_queue_behind_running_ones() {
    let mut site = Site::connected();
    site.prepare(&template(0));
    site.dispatch(0, 0..3_000);
    let exit = Exit { started_at: site.now, ..exit_at(site.now, ExitKind::Code(0)) };
    site.event(Event::Exited { execution: exec(0, 0), attempt: FIRST, exit, stored: None });
    let ahead = site.commands.iter().filter(|command| matches!(command, Command::Start { ahead: Some(2), .. })).count();
    assert_eq!(ahead, 2 * 1_024, "as many as the limit, behind each of two");
    assert_eq!(site.starts().len(), 3 + 2 * 1_024);
}

#[test]
fn a_large_execution_is_passed_only_so_often() {
    let mut site = Site::connected();
    let large = StepTemplate { resources: Resources { cpu_millis: 2_000, ..Resources::default() }, ..template(1) };
    site.prepare(&template(0));
    site.prepare(&large);
    site.prepare(&template(2));
    site.dispatch(0, 0..1);
    site.dispatch(1, 0..1);
    site.dispatch(2, 0..1_000);
    let mut ended = 0;
    while site.starts().contains(&(exec(2, ended), FIRST)) {
        site.succeed(exec(2, ended));
        ended += 1;
    }
    assert_eq!(ended, 64, "then room is kept for it");
    site.succeed(exec(0, 0));
    assert!(site.starts().contains(&(exec(1, 0), FIRST)));
}

#[test]
fn what_never_fits_is_impossible() {
    let mut site = Site::connected();
    let resources = Resources { memory_bytes: Some(2 << 30), ..Resources::default() };
    site.prepare(&StepTemplate { resources, ..template(0) });
    site.dispatch(0, 0..3);
    assert_eq!(site.starts(), []);
    let impossible =
        |outcome: &Outcome| matches!(outcome, Outcome::NotStarted { reason: NotStartedReason::Impossible, .. });
    assert_eq!(site.finished().iter().filter(|(_, element)| impossible(&element.outcome)).count(), 3);
}

#[test]
fn null_work_is_asked_for_and_reported_by_the_set() {
    let mut site = Site::connected();
    site.prepare(&StepTemplate { work: TemplateWork::Null, ..template(0) });
    site.dispatch(0, 0..1_000);
    assert!(site.has(|command| matches!(command, Command::StartNull { elements, .. } if elements.len() == 1_000)));
    let elements = ElementSet::from_range(0..1_000);
    site.event(Event::NullFinished { run: RUN, step: StepIndex(0), attempt: FIRST, elements, at: site.now });
    assert_eq!(site.reports().len(), 1);
    assert!(site.finished().iter().all(|(_, element)| is_success(&element.outcome)));
    assert_eq!(site.finished().len(), 1_000);
}

#[test]
fn a_start_is_not_reported_apart_from_an_end_that_follows_at_once() {
    let mut site = Site::connected();
    site.prepare(&template(0));
    site.dispatch(0, 0..2);
    site.succeed(exec(0, 0));
    site.event(Event::Started { execution: exec(0, 1), attempt: FIRST, at: site.now });
    site.pass(Duration::from_secs(1));
    let started = site.reports().into_iter().find_map(|(_, report)| match report {
        atoll_model::session::Report::Started { elements, .. } => Some(elements),
        _ => None,
    });
    assert_eq!(started.unwrap().iter().map(|element| element.element).collect::<Vec<_>>(), [1]);
}

#[test]
fn exits_are_told_apart() {
    let cases = [
        (ExitKind::Code(3), FailureReason::ExitCode),
        (ExitKind::Signal(11), FailureReason::Signal),
        (ExitKind::TimedOut, FailureReason::TimedOut),
        (ExitKind::OutOfMemory, FailureReason::OutOfMemory),
    ];
    for (how, expected) in cases {
        let mut site = Site::connected();
        site.prepare(&with_output(0));
        site.dispatch(0, 0..1);
        site.exit(exec(0, 0), how);
        assert!(site.has(|command| matches!(command, Command::Collect { outputs: false, .. })));
        site.store(exec(0, 0), Vec::new());
        let (_, element) = site.finished().remove(0);
        assert!(
            matches!(element.outcome, Outcome::Failed { reason, .. } if reason == expected),
            "{:?}",
            element.outcome
        );
        assert!(site.has(|command| matches!(command, Command::Release { .. })));
    }
}

#[test]
fn an_end_that_brings_what_was_left_is_reported_without_asking_for_it() {
    for (how, outputs) in [(ExitKind::Code(0), vec![Value::Integer(7)]), (ExitKind::Code(3), Vec::new())] {
        let mut site = Site::connected();
        site.prepare(&with_output(0));
        site.dispatch(0, 0..1);
        let exit = exit_at(site.now, how.clone());
        let stored = Some(StoredOutputs { outputs: outputs.clone(), logs: Logs::default(), bytes_out: 0 });
        site.event(Event::Exited { execution: exec(0, 0), attempt: FIRST, exit, stored });
        assert!(!site.has(|command| matches!(command, Command::Collect { .. })));
        let (_, element) = site.finished().remove(0);
        assert_eq!(element.outcome == Outcome::Succeeded, how == ExitKind::Code(0), "{:?}", element.outcome);
        assert_eq!(element.outputs, outputs);
    }
}

#[test]
fn a_cancel_ends_what_waits_at_once_and_kills_what_runs() {
    let mut site = Site::connected();
    site.prepare(&template(0));
    site.dispatch(0, 0..3);
    let elements = ElementSet::from_range(0..3);
    site.command(SiteCommand::Cancel { run: RUN, step: StepIndex(0), elements, reason: "enough".to_owned() });
    assert_eq!(site.commands.iter().filter(|command| matches!(command, Command::Kill { .. })).count(), 2);
    let cancelled = Outcome::NotStarted { reason: NotStartedReason::Cancelled, message: "cancelled".to_owned() };
    assert_eq!(site.finished().remove(0).1.outcome, cancelled);
    site.exit(exec(0, 0), ExitKind::Killed);
    site.store(exec(0, 0), Vec::new());
    assert_eq!(site.finished().remove(1).1.outcome, Outcome::Cancelled);
}

#[test]
fn a_later_attempt_waits_until_the_earlier_one_is_over() {
    let mut site = Site::connected();
    site.prepare(&template(0));
    site.dispatch(0, 0..1);
    site.command(SiteCommand::Dispatch(Dispatch { attempt: Attempt(2), ..plain(0, 0..1) }));
    assert_eq!(site.starts(), [(exec(0, 0), FIRST)]);
    assert!(site.has(|command| matches!(command, Command::Kill { attempt: FIRST, .. })));
    site.exit(exec(0, 0), ExitKind::Killed);
    site.store(exec(0, 0), Vec::new());
    assert_eq!(site.starts(), [(exec(0, 0), FIRST), (exec(0, 0), Attempt(2))]);
    site.command(SiteCommand::Dispatch(plain(0, 0..1)));
    assert_eq!(site.starts().len(), 2, "an earlier attempt is not taken any more");
}

#[test]
fn what_is_not_started_in_time_expires() {
    let mut site = Site::connected();
    site.prepare(&template(0));
    let start_by = Some(Duration::from_secs(5));
    site.command(SiteCommand::Dispatch(Dispatch { start_by, ..plain(0, 0..3) }));
    site.pass(Duration::from_secs(6));
    let (_, element) = site.finished().remove(0);
    assert!(matches!(element.outcome, Outcome::NotStarted { reason: NotStartedReason::Expired, .. }));
    assert_eq!(element.element, 2);
}

fn chain(site: &mut Site, steps: u16) {
    for step in 0..steps {
        site.prepare(&with_output(step));
    }
    site.dispatch(0, 0..1);
    for step in 1..steps {
        site.command(SiteCommand::Dispatch(follower(step)));
    }
}

fn seal(site: &mut Site, step: u16) {
    let value = SealedValue::File { name: b"file".to_vec(), bytes: 3 };
    let output = SealedOutput { name: "out".to_owned(), seal: Some(Seal(u64::from(step) + 1)), value: Some(value) };
    site.event(Event::OutputsSealed { execution: exec(step, 0), attempt: FIRST, outputs: vec![output] });
}

#[test]
fn a_fragment_starts_on_a_sealed_output_and_is_reported_after_its_digest_is_known() {
    let mut site = Site::connected();
    chain(&mut site, 2);
    site.exit(exec(0, 0), ExitKind::Code(0));
    seal(&mut site, 0);
    let sealed = |command: &Command| {
        matches!(command, Command::Start { inputs, .. }
            if matches!(inputs.first(), Some(input) if matches!(input.value, StartValue::Sealed { seal: Seal(1), .. })))
    };
    assert!(site.has(sealed));
    site.exit(exec(1, 0), ExitKind::Code(0));
    site.store(exec(1, 0), vec![file(2)]);
    assert_eq!(site.finished(), [], "the output that it read is not committed");
    site.store(exec(0, 0), vec![file(1)]);
    let finished: Vec<(u16, bool)> =
        site.finished().iter().map(|(step, element)| (*step, is_success(&element.outcome))).collect();
    assert_eq!(finished, [(0, true), (1, true)]);
}

#[test]
fn a_failed_commit_invalidates_whatever_ran_on_it() {
    let mut site = Site::connected();
    chain(&mut site, 4);
    site.exit(exec(0, 0), ExitKind::Code(0));
    seal(&mut site, 0);
    site.exit(exec(1, 0), ExitKind::Code(0));
    seal(&mut site, 1);
    site.store(exec(1, 0), vec![file(2)]);
    assert_eq!(site.starts().len(), 3);
    let failure = OutputFailure {
        reason: FailureReason::InvalidOutput,
        message: "it changed while it was read".to_owned(),
        logs: atoll_model::session::Logs::default(),
    };
    site.event(Event::OutputsStored { execution: exec(0, 0), attempt: FIRST, result: Err(failure) });
    assert!(site.has(|command| matches!(command, Command::DropSealed { seals } if *seals == [Seal(1)])));
    assert!(site.has(|command| matches!(command, Command::Kill { execution, .. } if *execution == exec(2, 0))));
    site.exit(exec(2, 0), ExitKind::Killed);
    let outcomes: Vec<(u16, Outcome)> =
        site.finished().into_iter().map(|(step, element)| (step, element.outcome)).collect();
    assert_eq!(outcomes.len(), 4);
    assert!(matches!(outcomes[0], (0, Outcome::Failed { reason: FailureReason::InvalidOutput, .. })));
    for (_, outcome) in &outcomes[1..] {
        assert!(
            matches!(outcome, Outcome::NotStarted { reason: NotStartedReason::PredecessorFailed, .. }),
            "{outcome:?}"
        );
    }
}

#[test]
fn the_successors_of_a_failed_execution_are_not_started() {
    let mut site = Site::connected();
    chain(&mut site, 3);
    site.exit(exec(0, 0), ExitKind::Code(1));
    site.store(exec(0, 0), Vec::new());
    assert_eq!(site.starts().len(), 1);
    assert_eq!(site.finished().len(), 3);
}

#[test]
fn a_successor_that_is_dispatched_late_gets_the_value() {
    let mut site = Site::connected();
    site.prepare(&with_output(0));
    site.dispatch(0, 0..1);
    site.exit(exec(0, 0), ExitKind::Code(0));
    site.store(exec(0, 0), vec![file(1)]);
    site.frame(1, atoll_model::session::ControlBody::Acknowledge);
    site.prepare(&with_output(1));
    site.command(SiteCommand::Dispatch(follower(1)));
    assert!(site.starts().contains(&(exec(1, 0), FIRST)));
}

#[test]
fn a_forgotten_run_leaves_nothing() {
    let mut site = Site::connected();
    site.prepare(&template(0));
    site.dispatch(0, 0..4);
    site.command(SiteCommand::Forget { run: RUN });
    assert_eq!(site.commands.iter().filter(|command| matches!(command, Command::Kill { .. })).count(), 2);
    site.exit(exec(0, 0), ExitKind::Killed);
    site.exit(exec(0, 1), ExitKind::Killed);
    assert_eq!(site.finished(), []);
    assert_eq!(site.commands.iter().filter(|command| matches!(command, Command::Release { .. })).count(), 2);
    let before = site.agent.snapshot();
    site.restart(Vec::new());
    assert_eq!(site.connect(), []);
    assert_ne!(before, site.agent.snapshot(), "a restart is counted");
}
