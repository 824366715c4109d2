//! Actions that are to be ready before an execution is.

use std::time::Duration;

use atoll_model::id::ObjectId;
use atoll_model::policy::SitePolicy;
use atoll_model::resources::{Capacity, Resources};
use atoll_model::session::{
    AgentBody, Deployed, DeployedState, Heartbeat, Report, SiteCommand, StepTemplate, TemplateWork,
};
use atoll_model::time::Timestamp;
use atoll_model::value::{ObjectKind, ObjectRef};
use site_agent_core::event::{Arrival, Found};
use site_agent_core::{Command, Config, Event, Snapshot};

use crate::harness::*;

fn bundle(number: u8) -> ObjectRef {
    ObjectRef { kind: ObjectKind::Tree, ..object(number) }
}

/// A step that runs the action with this bundle.
fn action(step: u16, number: u8) -> StepTemplate {
    let command = vec!["sh".to_owned(), "main.sh".to_owned()];
    StepTemplate { work: TemplateWork::Command { command, bundle: Some(bundle(number)) }, ..template(step) }
}

fn order(site: &mut Site, template: &StepTemplate) {
    site.command(SiteCommand::MakeReady(Box::new(template.clone())));
}

fn not_there(site: &mut Site, number: u8) {
    site.event(Event::Located { object: bundle(number), present: false });
}

fn fetched(site: &mut Site, number: u8) {
    site.event(Event::Fetched { object: bundle(number), wire_bytes: 5, direct: None, at: site.now });
}

fn fetch_failed(site: &mut Site, number: u8, permanent: bool) {
    let message = "nobody gives it out".to_owned();
    site.event(Event::FetchFailed { object: bundle(number), message, corrupt: false, permanent });
}

fn fetches(site: &Site) -> usize {
    site.commands.iter().filter(|command| matches!(command, Command::Fetch { .. })).count()
}

/// The steps whose actions the shell was asked for.
fn made_ready(site: &Site) -> Vec<u16> {
    let asked = site.commands.iter().filter_map(|command| match command {
        Command::MakeReady { template } => Some(template.step.0),
        _ => None,
    });
    asked.collect()
}

/// What the last heartbeat tells.
fn told(site: &Site) -> Vec<(ObjectId, DeployedState)> {
    let heartbeat = site.sent().into_iter().rev().find_map(|frame| match &frame.body {
        AgentBody::Heartbeat(heartbeat) => Some(heartbeat.deployed.clone()),
        _ => None,
    });
    heartbeat.unwrap_or_default().into_iter().map(|deployed| (deployed.bundle, deployed.state)).collect()
}

fn measure(site: &mut Site, store_bytes: u64, deployed: Vec<Deployed>) {
    let capacity = Capacity { disk_free_bytes: 1 << 40, ..config().capacity };
    let heartbeat = Heartbeat { store_bytes, capacity, deployed, ..Heartbeat::default() };
    site.event(Event::Measured { heartbeat });
}

fn with_policy(policy: SitePolicy) -> Site {
    let mut site = Site::with(Config { policy, ..config() });
    site.connect();
    site
}

/// One whose administrator gives 1,000 bytes of disk.
fn small() -> Site {
    let disk = Some((1_000, Default::default()));
    with_policy(SitePolicy { file: "policy.yaml".to_owned(), disk, ..Default::default() })
}

#[test]
fn an_action_is_fetched_and_made_ready_once_however_often_it_is_ordered() {
    let mut site = Site::connected();
    order(&mut site, &action(0, 9));
    assert_eq!(told(&site), [(bundle(9).id, DeployedState::Deploying)], "at once");
    not_there(&mut site, 9);
    assert_eq!((fetches(&site), made_ready(&site)), (1, vec![]));
    fetched(&mut site, 9);
    assert_eq!(made_ready(&site), [0]);
    let report = site.reports().pop().unwrap().1;
    assert!(matches!(report, Report::Fetched { execution, .. } if execution == exec(0, 0)), "{report:?}");
    order(&mut site, &action(0, 9));
    order(&mut site, &action(1, 9));
    for _ in 0..2 {
        measure(&mut site, 0, Vec::new());
    }
    assert_eq!((fetches(&site), made_ready(&site)), (1, vec![0, 1]));
}

#[test]
fn what_the_shell_tells_is_told_at_once_and_until_then_that_it_is_under_way() {
    let mut site = Site::connected();
    order(&mut site, &action(0, 9));
    site.event(Event::Located { object: bundle(9), present: true });
    assert_eq!(made_ready(&site), [0]);
    measure(&mut site, 0, Vec::new());
    assert_eq!(told(&site), [(bundle(9).id, DeployedState::Deploying)]);
    for state in [DeployedState::Deploying, DeployedState::Ready] {
        let before = site.sent().len();
        let deployed = Deployed { bundle: bundle(9).id, state: state.clone(), since: Timestamp(1) };
        measure(&mut site, 0, vec![deployed]);
        assert_eq!((told(&site), site.sent().len()), (vec![(bundle(9).id, state)], before + 1));
    }
    measure(&mut site, 0, Vec::new());
    assert_eq!(told(&site), [], "it is gone");
}

#[test]
fn an_execution_that_comes_meanwhile_shares_the_fetch() {
    let mut site = Site::connected();
    order(&mut site, &action(0, 9));
    not_there(&mut site, 9);
    site.prepare(&action(0, 9));
    site.dispatch(0, 0..1);
    fetched(&mut site, 9);
    assert_eq!((fetches(&site), made_ready(&site).len(), site.starts().len()), (1, 1, 1));
}

#[test]
fn the_end_of_an_execution_stops_no_fetch_that_was_ordered() {
    let mut site = Site::connected();
    site.prepare(&action(0, 9));
    site.dispatch(0, 0..1);
    not_there(&mut site, 9);
    order(&mut site, &action(0, 9));
    let elements = atoll_model::elements::ElementSet::from_range(0..1);
    let (run, step) = (exec(0, 0).run, exec(0, 0).step);
    site.command(SiteCommand::Cancel { run, step, elements, reason: "cancelled".to_owned() });
    assert!(!site.has(|command| matches!(command, Command::CancelFetch { .. })));
    fetched(&mut site, 9);
    assert_eq!(made_ready(&site), [0]);
}

#[test]
fn a_fetch_is_tried_again_as_long_as_the_order_stands_and_its_failure_is_told() {
    let mut site = Site::connected();
    order(&mut site, &action(0, 9));
    not_there(&mut site, 9);
    for tries in 1..30 {
        assert_eq!(fetches(&site), tries);
        fetch_failed(&mut site, 9, false);
        site.pass(Duration::from_secs(31));
        site.grant();
    }
    let told = told(&site);
    assert!(matches!(&told[..], [(_, DeployedState::Failed(why))] if why.contains("nobody gives")), "{told:?}");
    assert!(!site.reports().iter().any(|(_, report)| matches!(report, Report::Fault { .. })), "it is only told");
    fetched(&mut site, 9);
    assert_eq!(made_ready(&site), [0]);
}

#[test]
fn what_could_not_be_fetched_for_an_order_fails_no_execution() {
    let mut site = Site::connected();
    order(&mut site, &action(0, 9));
    not_there(&mut site, 9);
    fetch_failed(&mut site, 9, true);
    assert!(matches!(&told(&site)[..], [(_, DeployedState::Failed(_))]));
    assert_eq!(fetches(&site), 1);
    site.prepare(&action(0, 9));
    site.dispatch(0, 0..1);
    assert_eq!(fetches(&site), 2, "it does not wait for the order's next try");
    fetch_failed(&mut site, 9, true);
    assert_eq!(site.finished().len(), 1, "this one was for it");
}

#[test]
fn a_fetch_that_fails_for_an_order_is_begun_anew_for_an_execution_that_has_come_since() {
    let mut site = Site::connected();
    order(&mut site, &action(0, 9));
    not_there(&mut site, 9);
    site.prepare(&action(0, 9));
    site.dispatch(0, 0..1);
    fetch_failed(&mut site, 9, true);
    assert_eq!((fetches(&site), site.finished().len()), (2, 0));
    fetched(&mut site, 9);
    assert_eq!((made_ready(&site).len(), site.starts().len()), (1, 1));
}

#[test]
fn an_order_ends_with_its_run() {
    let mut site = Site::connected();
    order(&mut site, &action(0, 9));
    order(&mut site, &action(1, 8));
    not_there(&mut site, 9);
    site.event(Event::Located { object: bundle(8), present: true });
    site.command(SiteCommand::Forget { run: RUN });
    assert!(site.has(|command| matches!(command, Command::CancelFetch { object } if *object == bundle(9))));
    fetch_failed(&mut site, 9, false);
    site.restart(Vec::new());
    assert!(!site.has(|command| matches!(command, Command::Locate { .. } | Command::MakeReady { .. })));
    site.connect();
    assert_eq!(told(&site), []);
}

#[test]
fn the_next_process_asks_again_for_what_was_ready_and_goes_on_with_what_was_not() {
    let mut site = Site::connected();
    order(&mut site, &action(0, 9));
    order(&mut site, &action(1, 8));
    site.event(Event::Located { object: bundle(9), present: true });
    not_there(&mut site, 8);
    assert_eq!(made_ready(&site), [0]);
    site.restart(Vec::new());
    assert!(made_ready(&site).is_empty(), "whether it is there is asked first");
    site.event(Event::Located { object: bundle(9), present: true });
    not_there(&mut site, 8);
    assert_eq!((made_ready(&site), fetches(&site)), (vec![0], 1));
    let arrival = Arrival { object: bundle(8), intent: 1, wire_bytes: 5, direct: None, at: site.now };
    site.restart_with(Found { arrivals: vec![arrival], ..Found::default() });
    site.event(Event::Located { object: bundle(8), present: true });
    assert_eq!(made_ready(&site), [1]);
    site.connect();
    let fetched = site.reports().into_iter().filter(|(_, report)| matches!(report, Report::Fetched { .. }));
    assert_eq!(fetched.count(), 1, "what crossed the border is on record");
}

#[test]
fn what_the_policy_refuses_is_neither_fetched_nor_made_ready() {
    let policy = SitePolicy::parse("policy.yaml", "run:\n  - refuse: { step: step7 }\n").unwrap();
    let mut site = with_policy(policy);
    order(&mut site, &action(7, 9));
    let told = told(&site);
    assert!(matches!(&told[..], [(_, DeployedState::Failed(why))] if why.contains("policy.yaml:2")), "{told:?}");
    assert!(!site.has(|command| matches!(command, Command::Locate { .. } | Command::Fetch { .. })));
    order(&mut site, &action(0, 9));
    site.event(Event::Located { object: bundle(9), present: true });
    assert_eq!(made_ready(&site), [0], "another step may");
}

#[test]
fn what_cannot_run_at_the_site_is_said_to_fail_at_once() {
    let mut site = Site::connected();
    let work = TemplateWork::Python { bundle: bundle(9), signatures: Vec::new() };
    order(&mut site, &StepTemplate { work, ..template(0) });
    let resources = Resources { cpu_millis: 64_000, ..Resources::default() };
    order(&mut site, &StepTemplate { resources, ..action(1, 8) });
    let told = told(&site);
    let why = |number: u8| told.iter().find(|(id, _)| *id == bundle(number).id).map(|(_, state)| state.clone());
    assert!(matches!(why(9), Some(DeployedState::Failed(why)) if why.contains("python")), "{told:?}");
    assert!(matches!(why(8), Some(DeployedState::Failed(why)) if why.contains("more than the site")), "{told:?}");
    assert!(!site.has(|command| matches!(command, Command::Locate { .. })));
}

#[test]
fn a_site_that_is_closed_makes_nothing_ready_until_it_is_open() {
    let mut site = Site::connected();
    site.measure(1);
    order(&mut site, &action(0, 9));
    assert!(!site.has(|command| matches!(command, Command::Locate { .. })));
    assert_eq!(told(&site), []);
    site.measure(1 << 40);
    site.event(Event::Located { object: bundle(9), present: true });
    assert_eq!(made_ready(&site), [0]);
}

#[test]
fn a_fetch_that_was_ordered_is_called_back_where_room_is_short_and_made_when_there_is() {
    let mut site = small();
    order(&mut site, &action(0, 9));
    not_there(&mut site, 9);
    measure(&mut site, 900, Vec::new());
    assert!(site.has(|command| matches!(command, Command::CancelFetch { .. })));
    fetch_failed(&mut site, 9, false);
    site.pass(Duration::from_secs(31));
    assert_eq!(fetches(&site), 1);
    measure(&mut site, 10, Vec::new());
    not_there(&mut site, 9);
    assert_eq!(fetches(&site), 2);
}

#[test]
fn a_bundle_that_was_ordered_stays_where_there_is_room_and_may_go_where_it_is_short() {
    let mut site = small();
    order(&mut site, &action(0, 9));
    site.event(Event::Located { object: bundle(9), present: true });
    let needed = |site: &Site| {
        let look = site.commands.iter().rev().find_map(|command| match command {
            Command::FindEvictable { actions, .. } => Some(actions.contains(&bundle(9).id)),
            _ => None,
        });
        look.expect("it was looked for")
    };
    site.command(SiteCommand::ProposeEviction { objects: vec![bundle(9)] });
    assert!(needed(&site));
    site.event(Event::EvictableFound { objects: vec![bundle(9)] });
    let asks = |site: &Site| site.reports().iter().any(|(_, report)| matches!(report, Report::Evictable { .. }));
    assert!(!asks(&site));
    measure(&mut site, 900, Vec::new());
    assert!(!needed(&site));
    site.event(Event::EvictableFound { objects: vec![bundle(9)] });
    assert!(asks(&site));
}

#[test]
fn an_order_that_says_something_else_than_before_is_carried_out_anew() {
    let mut site = Site::connected();
    order(&mut site, &action(0, 9));
    not_there(&mut site, 9);
    order(&mut site, &action(0, 8));
    assert!(site.has(|command| matches!(command, Command::CancelFetch { object } if *object == bundle(9))));
    site.event(Event::Located { object: bundle(8), present: true });
    fetched(&mut site, 9);
    assert_eq!(made_ready(&site), [0]);
}

#[test]
fn a_snapshot_of_before_there_were_orders_is_read() {
    let mut encoded = postcard::to_stdvec(&Snapshot::default()).unwrap();
    assert_eq!(encoded.pop(), Some(0));
    Snapshot::upgrade(6, &mut encoded);
    assert_eq!(postcard::from_bytes::<Snapshot>(&encoded).unwrap(), Snapshot::default());
}

#[test]
fn b6_what_a_control_plane_of_an_earlier_time_does_not_know_of_is_made_ready_no_more() {
    let mut site = Site::connected();
    order(&mut site, &action(0, 9));
    site.event(Event::Disconnected);
    site.lacking = true;
    site.connect();
    not_there(&mut site, 9);
    assert_eq!((fetches(&site), told(&site)), (0, vec![]), "nobody would ever end it");
    site.restart(Vec::new());
    site.lacking = false;
    site.connect();
    assert_eq!((fetches(&site), made_ready(&site)), (0, vec![]));
}
