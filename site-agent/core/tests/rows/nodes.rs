//! Further machines of the site: what runs where, and what happens when one comes or goes.

use std::collections::BTreeMap;
use std::time::Duration;

use atoll_model::resources::{Capacity, Gpus, Resources};
use atoll_model::session::{AgentBody, Binding, BindingSource, NotStartedReason, Outcome, StepTemplate, TemplateWork};
use atoll_model::value::Value;
use site_agent_core::event::{ExitKind, Found, FoundAttempt, FoundState, Node, NodeId};
use site_agent_core::{Command, Config, Event, Pilots};

use crate::harness::*;

fn node(cpus: u32) -> Node {
    let capacity = Capacity { cpu_millis: cpus * 1_000, memory_bytes: 1 << 30, ..Capacity::default() };
    Node { capacity, is_open: true }
}

fn nodes(site: &mut Site, nodes: &[(u32, Node)]) {
    let nodes = nodes.iter().map(|(id, node)| (NodeId(*id), node.clone())).collect();
    site.event(Event::NodesChanged { nodes });
}

/// How many starts each node was given.
fn starts_by_node(site: &Site) -> BTreeMap<u32, usize> {
    let mut counted = BTreeMap::new();
    for command in &site.commands {
        if let Command::Start { node, .. } = command {
            *counted.entry(node.0).or_default() += 1;
        }
    }
    counted
}

fn large(step: u16, cpus: u32) -> StepTemplate {
    StepTemplate { resources: Resources { cpu_millis: cpus * 1_000, ..Resources::default() }, ..template(step) }
}

fn outcomes(site: &Site) -> Vec<Outcome> {
    site.finished().into_iter().map(|(_, element)| element.outcome).collect()
}

#[test]
fn executions_are_spread_over_nodes_by_what_is_free() {
    let mut site = Site::connected();
    nodes(&mut site, &[(1, node(4)), (2, node(2))]);
    site.prepare(&template(0));
    site.dispatch(0, 0..20);
    assert_eq!(starts_by_node(&site), BTreeMap::from([(0, 2), (1, 4), (2, 2)]));
}

#[test]
fn nothing_runs_on_the_sum_of_what_two_nodes_have_free() {
    let mut site = Site::connected();
    nodes(&mut site, &[(1, node(3))]);
    site.prepare(&large(0, 2));
    site.dispatch(0, 0..2);
    assert_eq!(starts_by_node(&site), BTreeMap::from([(0, 1), (1, 1)]));
    site.prepare(&large(1, 4));
    site.dispatch(1, 0..1);
    let doomed = |outcome: &Outcome| matches!(outcome, Outcome::NotStarted { reason: NotStartedReason::Impossible, message } if message.contains("node"));
    assert!(outcomes(&site).iter().any(doomed), "five CPUs in all are no four of one node");
}

#[test]
fn a_closed_node_gets_nothing_and_what_waits_for_it_waits() {
    let mut site = Site::connected();
    let closed = Node { is_open: false, ..node(8) };
    nodes(&mut site, &[(1, closed)]);
    site.prepare(&large(0, 8));
    site.dispatch(0, 0..1);
    assert!(site.starts().is_empty() && outcomes(&site).is_empty());
    nodes(&mut site, &[(1, node(8))]);
    assert_eq!(starts_by_node(&site), BTreeMap::from([(1, 1)]));
}

#[test]
fn what_ran_on_a_node_that_is_gone_gives_nothing_back_to_others() {
    let mut site = Site::connected();
    nodes(&mut site, &[(1, node(4))]);
    site.prepare(&large(0, 4));
    site.dispatch(0, 0..1);
    assert_eq!(starts_by_node(&site), BTreeMap::from([(1, 1)]));
    nodes(&mut site, &[]);
    site.exit(exec(0, 0), ExitKind::Interrupted("its worker was lost".to_owned()));
    site.store(exec(0, 0), Vec::new());
    site.prepare(&template(1));
    site.dispatch(1, 0..5);
    assert_eq!(starts_by_node(&site), BTreeMap::from([(0, 2), (1, 1)]), "two CPUs at home, as before");
}

#[test]
fn what_is_found_running_after_a_restart_takes_the_room_of_its_node() {
    let mut site = Site::connected();
    nodes(&mut site, &[(1, node(4))]);
    site.prepare(&large(0, 4));
    site.prepare(&large(1, 4));
    site.dispatch(0, 0..1);
    let (attempt, state) = (FIRST, FoundState::Running { since: site.now });
    let attempts = vec![FoundAttempt { execution: exec(0, 0), attempt, node: NodeId(1), state }];
    site.restart_with(Found { attempts, nodes: [(NodeId(1), node(4))].into(), ..Found::default() });
    site.connect();
    site.dispatch(1, 0..1);
    assert!(site.starts().is_empty(), "the node is taken");
    site.succeed(exec(0, 0));
    assert_eq!(starts_by_node(&site), BTreeMap::from([(1, 1)]));
}

#[test]
fn gpus_are_those_of_one_node_and_containers_stay_with_the_agent() {
    let mut site = Site::connected();
    let mut with_gpus = node(4);
    with_gpus.capacity.gpus = [("a100".to_owned(), 2)].into();
    nodes(&mut site, &[(1, with_gpus), (2, node(8))]);
    let gpus = Some(Gpus { count: 1, kind: None });
    site.prepare(&StepTemplate { resources: Resources { gpus, ..Resources::default() }, ..template(0) });
    site.dispatch(0, 0..3);
    assert_eq!(starts_by_node(&site), BTreeMap::from([(1, 2)]));
    let work = TemplateWork::Container { bundle: object(9), signatures: Vec::new() };
    site.prepare(&StepTemplate { work, ..large(1, 8) });
    site.dispatch(1, 0..1);
    assert!(outcomes(&site).iter().any(|outcome| matches!(outcome, Outcome::NotStarted { .. })), "home has two CPUs");
}

#[test]
fn services_and_what_uses_them_run_where_the_agent_is() {
    let mut site = Site::connected();
    nodes(&mut site, &[(1, node(8))]);
    for (step, variable) in [(0, "ATOLL_SERVICE"), (1, "ATOLL_SERVICE_INDEX")] {
        let environment = vec![(variable.to_owned(), "default/rivers/index".to_owned())];
        site.prepare(&StepTemplate { environment, ..template(step) });
        site.dispatch(step, 0..1);
    }
    assert_eq!(starts_by_node(&site), BTreeMap::from([(0, 2)]));
}

#[test]
fn the_site_says_what_all_its_nodes_have() {
    let mut site = Site::connected();
    nodes(&mut site, &[(1, node(4)), (2, Node { is_open: false, ..node(2) })]);
    let heartbeat = atoll_model::session::Heartbeat { capacity: config().capacity, ..Default::default() };
    site.event(Event::Measured { heartbeat });
    site.pass(Duration::from_secs(60));
    let told = site.commands.iter().rev().find_map(|command| match command {
        Command::Send { frame } => match &frame.body {
            AgentBody::Heartbeat(heartbeat) => Some(heartbeat.capacity.clone()),
            _ => None,
        },
        _ => None,
    });
    assert_eq!(told.unwrap().cpu_millis, 8_000);
}

/// One whose own machine stands for a cluster of two CPUs, with pilots of one CPU for what takes a minute at most.
fn with_pilots() -> Site {
    let capacity = Capacity { cpu_millis: 1_000, memory_bytes: 1 << 30, ..Capacity::default() };
    let pilots = Some(Pilots { max: 8, capacity, short: Duration::from_secs(60) });
    let mut site = Site::with(Config { pilots, ..config() });
    site.connect();
    site
}

fn timed(step: u16, seconds: u64) -> StepTemplate {
    let time = Some(Duration::from_secs(seconds));
    StepTemplate { resources: Resources { time, ..Resources::default() }, ..template(step) }
}

fn pilots_wanted(site: &Site) -> Vec<u32> {
    let wanted = |command: &Command| match command {
        Command::WantPilots { count } => Some(*count),
        _ => None,
    };
    site.commands.iter().filter_map(wanted).collect()
}

#[test]
fn short_work_waits_for_pilots_and_long_work_does_not_wait_behind_it() {
    let mut site = with_pilots();
    site.prepare(&timed(0, 60));
    site.prepare(&timed(1, 61));
    site.prepare(&template(2));
    site.dispatch(0, 0..100);
    assert!(site.starts().is_empty());
    assert_eq!(pilots_wanted(&site), [8], "it would fill more than there may be");
    site.dispatch(1, 0..1);
    site.dispatch(2, 0..1);
    assert_eq!(starts_by_node(&site), BTreeMap::from([(0, 2)]), "what is long, or says nothing of its time, is a job");
    nodes(&mut site, &[(1, node(1)), (2, node(1))]);
    assert_eq!(starts_by_node(&site), BTreeMap::from([(0, 2), (1, 1), (2, 1)]));
}

#[test]
fn nobody_wants_pilots_when_nothing_waits_for_them() {
    let mut site = with_pilots();
    site.prepare(&timed(0, 1));
    site.dispatch(0, 0..3);
    nodes(&mut site, &[(1, node(1)), (2, node(1)), (3, node(1))]);
    assert_eq!(pilots_wanted(&site), [3, 0]);
    let heartbeat = atoll_model::session::Heartbeat { capacity: config().capacity, ..Default::default() };
    site.event(Event::Measured { heartbeat });
    site.pass(Duration::from_secs(60));
    let told = site.commands.iter().rev().find_map(|command| match command {
        Command::Send { frame } => match &frame.body {
            AgentBody::Heartbeat(heartbeat) => Some(heartbeat.capacity.cpu_millis),
            _ => None,
        },
        _ => None,
    });
    assert_eq!(told, Some(2_000), "pilots are part of the cluster");
}

#[test]
fn what_no_pilot_could_take_is_a_job_however_short() {
    let mut site = with_pilots();
    let resources = Resources { cpu_millis: 2_000, ..timed(0, 1).resources };
    site.prepare(&StepTemplate { resources, ..template(0) });
    site.dispatch(0, 0..1);
    assert_eq!(starts_by_node(&site), BTreeMap::from([(0, 1)]));
    assert!(pilots_wanted(&site).is_empty());
}

#[test]
fn the_script_of_a_job_is_a_job_however_short() {
    let mut site = with_pilots();
    for (step, script) in [(0, Value::Null), (1, Value::String("srun ./solve".into()))] {
        let bindings = vec![Binding { name: "custom_script".to_owned(), source: BindingSource::Value(script) }];
        site.prepare(&StepTemplate { bindings, ..timed(step, 1) });
        site.dispatch(step, 0..1);
    }
    assert_eq!(site.starts().len(), 1, "the one that is no script waits for a pilot");
    assert_eq!(pilots_wanted(&site), [1]);
}

#[test]
fn short_work_runs_as_jobs_while_there_are_no_pilots_to_be_had() {
    let mut site = with_pilots();
    site.prepare(&timed(0, 1));
    site.dispatch(0, 0..3);
    assert_eq!(pilots_wanted(&site), [3]);
    site.event(Event::PilotsBarred { barred: true });
    assert_eq!(starts_by_node(&site), BTreeMap::from([(0, 2)]), "as many as the cluster has room for");
    assert_eq!(pilots_wanted(&site), [3, 0]);
    site.event(Event::PilotsBarred { barred: false });
    assert_eq!(pilots_wanted(&site), [3, 0, 1]);
}

#[test]
fn what_ran_in_a_pilot_that_is_lost_was_interrupted() {
    let mut site = with_pilots();
    site.prepare(&timed(0, 1));
    nodes(&mut site, &[(1, node(1))]);
    site.dispatch(0, 0..1);
    nodes(&mut site, &[]);
    site.exit(exec(0, 0), ExitKind::Interrupted("its worker was lost".to_owned()));
    site.store(exec(0, 0), Vec::new());
    assert!(matches!(outcomes(&site)[..], [Outcome::Interrupted { .. }]), "{:?}", outcomes(&site));
    site.dispatch(0, 1..2);
    assert_eq!(pilots_wanted(&site), [1], "what comes next waits for another");
}
