//! Whose turn it is among what waits at the agent.

use std::time::Duration;

use atoll_model::limits::AGEING;
use atoll_model::resources::Resources;
use atoll_model::session::{Dispatch, SiteCommand, StepTemplate, TemplateWork};
use proptest::collection::vec;
use proptest::prelude::*;
use site_agent_core::Command;
use site_agent_core::event::{ExitKind, FoundAttempt, FoundState, NodeId};

use crate::harness::*;

/// A step whose executions take the whole of the site.
fn whole(step: u16, priority: i16) -> StepTemplate {
    StepTemplate { resources: Resources { cpu_millis: 2_000, ..Resources::default() }, priority, ..template(step) }
}

/// A site at which the one execution of step 0 runs.
fn busy() -> Site {
    let mut site = Site::connected();
    site.prepare(&whole(0, 0));
    site.dispatch(0, 0..1);
    site
}

fn queue(site: &mut Site, step: u16, priority: i16, count: u32) {
    site.prepare(&whole(step, priority));
    site.dispatch(step, 0..count);
}

/// The step and element that was started last.
fn last(site: &Site) -> (u16, u32) {
    let (execution, _) = *site.starts().last().unwrap();
    (execution.step.0, execution.element)
}

/// What runs takes this long.
fn run_for(site: &mut Site, time: Duration) {
    let end = site.now + time;
    while site.now < end {
        site.pass(end.saturating_since(site.now).min(Duration::from_secs(10)));
        site.grant();
    }
    let (step, element) = last(site);
    site.succeed(exec(step, element));
}

fn order(site: &mut Site, count: usize) -> Vec<(u16, u32)> {
    let starts = (0..count).map(|_| {
        run_for(site, Duration::from_secs(1));
        last(site)
    });
    starts.collect()
}

#[test]
fn what_has_a_higher_priority_starts_before_what_waits_already() {
    let mut site = busy();
    queue(&mut site, 1, 0, 2);
    queue(&mut site, 2, -1, 1);
    queue(&mut site, 3, 7, 2);
    queue(&mut site, 4, 7, 1);
    assert_eq!(order(&mut site, 6), [(3, 0), (3, 1), (4, 0), (1, 0), (1, 1), (2, 0)]);
}

#[test]
fn priorities_outlive_the_agents_process() {
    let mut site = busy();
    queue(&mut site, 1, 0, 1);
    queue(&mut site, 2, 1, 1);
    let state = FoundState::Running { since: site.now };
    site.restart(vec![FoundAttempt { execution: exec(0, 0), attempt: FIRST, node: NodeId::HOME, state }]);
    site.connect();
    site.succeed(exec(0, 0));
    assert_eq!(last(&site), (2, 0));
}

#[test]
fn what_waits_long_without_having_been_passed_over_does_not_come_before_what_is_urgent() {
    let mut site = busy();
    queue(&mut site, 1, 0, 2);
    run_for(&mut site, Duration::from_secs(3_600));
    queue(&mut site, 2, 1, 1);
    assert_eq!(order(&mut site, 2), [(2, 0), (1, 1)]);
}

#[test]
fn what_is_passed_over_counts_one_more_after_each_while_and_gets_one_start() {
    let mut site = busy();
    queue(&mut site, 1, 0, 2);
    queue(&mut site, 2, 3, 1_000);
    let every = AGEING / 10;
    let mut passed = Vec::new();
    for _ in 0..2 {
        let mut starts = 0;
        while last(&site).0 != 1 {
            run_for(&mut site, every);
            starts += 1;
        }
        passed.push(starts);
        run_for(&mut site, every);
        assert_eq!(last(&site).0, 2);
    }
    // What ranks alike is the higher priority's, so it takes four times AGEING to make up for three points.
    assert_eq!(passed, [41, 40], "the first of all was not passed over before something was started in its stead");
}

#[test]
fn a_large_urgent_execution_is_passed_by_what_is_less_urgent_only_so_often() {
    let mut site = Site::connected();
    site.prepare(&template(0));
    site.dispatch(0, 0..1);
    queue(&mut site, 1, 5, 1);
    site.prepare(&template(2));
    site.dispatch(2, 0..1_000);
    let mut ended = 0;
    while site.starts().contains(&(exec(2, ended), FIRST)) {
        site.succeed(exec(2, ended));
        ended += 1;
    }
    assert_eq!(ended, 64);
    site.succeed(exec(0, 0));
    assert_eq!(last(&site), (1, 0));
}

#[test]
fn work_that_is_nothing_waits_for_nobody() {
    let mut site = busy();
    queue(&mut site, 1, 9, 1);
    site.prepare(&StepTemplate { work: TemplateWork::Null, priority: -9, ..template(2) });
    site.dispatch(2, 0..4);
    assert!(site.has(|command| matches!(command, Command::StartNull { elements, .. } if elements.len() == 4)));
}

proptest! {
    /// Whatever arrives between the ends, it is always the most urgent that starts, and the first among equals.
    #[test]
    fn the_most_urgent_starts_next_and_the_first_among_equals(
        arrivals in vec(vec((-100..=100i16, 1..4u32), 0..3), 1..20),
    ) {
        let mut site = busy();
        let mut waiting: Vec<(i16, u16, u32)> = Vec::new();
        let mut steps = 0;
        for arrived in arrivals {
            for (priority, count) in arrived {
                steps += 1;
                queue(&mut site, steps, priority, count);
                waiting.extend((0..count).map(|element| (priority, steps, element)));
            }
            waiting.sort_by_key(|(priority, step, element)| (-priority, *step, *element));
            let (step, element) = last(&site);
            site.succeed(exec(step, element));
            if waiting.is_empty() {
                queue(&mut site, steps + 1, 0, 1);
                steps += 1;
            } else {
                let (_, step, element) = waiting.remove(0);
                prop_assert_eq!(last(&site), (step, element));
            }
        }
    }
}

#[test]
fn an_attempt_whose_memory_has_grown_takes_as_much_room_as_its_own_template_says() {
    let of = |memory_bytes| Resources { memory_bytes: Some(memory_bytes), cpu_millis: 100, ..Resources::default() };
    let step = |memory_bytes| StepTemplate { resources: of(memory_bytes), ..template(0) };
    let mut site = Site::connected();
    // The site has 1 GiB.
    site.prepare(&step(300 << 20));
    site.dispatch(0, 0..2);
    site.exit(exec(0, 0), ExitKind::OutOfMemory);
    site.store(exec(0, 0), Vec::new());
    site.prepare(&step(900 << 20));
    site.command(SiteCommand::Dispatch(Dispatch { attempt: FIRST.next(), ..plain(0, 0..1) }));
    assert_eq!(site.starts().len(), 2, "beside the one that runs there is too little left for it");
    site.exit(exec(0, 1), ExitKind::Code(1));
    site.store(exec(0, 1), Vec::new());
    assert_eq!(site.starts().last(), Some(&(exec(0, 0), FIRST.next())));
    let given = site.commands.iter().rev().find_map(|command| match command {
        Command::Start { template, .. } => template.resources.memory_bytes,
        _ => None,
    });
    assert_eq!(given, Some(900 << 20));
    // What is as small as before finds the room that is left.
    site.prepare(&step(100 << 20));
    site.command(SiteCommand::Dispatch(Dispatch { attempt: FIRST.next(), ..plain(0, 1..2) }));
    assert_eq!(site.starts().len(), 4);
}
