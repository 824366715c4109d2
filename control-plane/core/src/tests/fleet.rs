//! Many sites: how often they are heard, what is decided when many fall silent together, and clocks that are off.

use std::time::Duration;

use atoll_model::limits;
use atoll_model::session::LeaseGrant;

use super::world::World;
use crate::command::Rejection;
use crate::event::Request;
use crate::view::SiteState;

const LOST_AFTER: Duration = Duration::from_secs(16 * 60);
const MINUTE: Duration = Duration::from_secs(60);

fn state(world: &World, site: &str) -> SiteState {
    world.core.site(&site.parse().unwrap()).unwrap().state
}

fn warning(world: &World, site: &str) -> Option<String> {
    world.core.site(&site.parse().unwrap()).unwrap().warning
}

fn declare_lost(world: &mut World, site: &str) -> Result<(), Rejection> {
    world.ask(Request::DeclareLost { site: site.parse().unwrap() }).map(|_| ())
}

/// A control plane with so many sites, past the time after its start.
fn fleet(sites: usize) -> (World, Vec<String>) {
    let mut world = World::new();
    world.compare_recovery = false;
    let names: Vec<String> = (0..sites).map(|number| format!("s{number}")).collect();
    for name in &names {
        world.add_site(name);
    }
    let heard: Vec<_> = names.iter().map(String::as_str).collect();
    world.advance_with(limits::RESTART_GRACE + MINUTE, &heard);
    (world, names)
}

fn granted(world: &mut World, site: &str) -> LeaseGrant {
    world.heartbeat(site);
    world.agents[site].lease.unwrap()
}

#[test]
fn a_small_fleet_is_heard_as_often_as_was_configured() {
    let (mut world, _) = fleet(20);
    let grant = granted(&mut world, "s1");
    assert_eq!((grant.heartbeat, grant.session), (limits::HEARTBEAT, limits::SESSION_LEASE));
}

#[test]
fn heartbeats_are_paced_by_who_is_connected_and_a_lease_holds_for_three_of_them() {
    let mut world = World::with(|config| config.heartbeat = Duration::from_millis(100));
    world.compare_recovery = false;
    let names: Vec<String> = (0..60).map(|number| format!("s{number}")).collect();
    names.iter().for_each(|name| world.add_site(name));
    let grant = granted(&mut world, "s1");
    assert_eq!(grant.heartbeat, Duration::from_millis(600), "60 of them at 100 a second");
    let heard: Vec<_> = names.iter().map(String::as_str).collect();
    world.advance_with(limits::RESTART_GRACE, &heard);
    names.iter().skip(20).for_each(|name| world.disconnect(name));
    let grant = granted(&mut world, "s1");
    assert_eq!(grant.heartbeat, Duration::from_millis(200));
    assert!(grant.session >= grant.heartbeat * 3);
}

#[test]
fn after_a_start_heartbeats_are_paced_by_who_will_come_back() {
    let mut world = World::with(|config| config.heartbeat = Duration::from_millis(100));
    world.compare_recovery = false;
    (0..60).for_each(|number| world.add_site(&format!("s{number}")));
    world.restart();
    world.connect("s1");
    assert_eq!(granted(&mut world, "s1").heartbeat, Duration::from_millis(600));
}

#[test]
fn however_many_agents_there_are_the_session_lease_stays_within_the_work_lease() {
    let mut world = World::with(|config| config.work_lease = Duration::from_secs(2));
    world.compare_recovery = false;
    world.config.heartbeat = Duration::from_millis(1);
    world.config.session_lease = Duration::from_millis(3);
    (0..100).for_each(|number| world.add_site(&format!("s{number}")));
    world.restart();
    world.connect("s1");
    let grant = granted(&mut world, "s1");
    assert_eq!(grant.heartbeat, Duration::from_millis(400), "a fifth of the work lease, not the second of 100 agents");
    assert!(grant.session <= grant.work && grant.session >= grant.heartbeat * 3);
}

#[test]
fn a_site_is_judged_by_the_lease_that_it_was_granted_while_the_fleet_shrinks() {
    let mut world = World::with(|config| config.session_lease = Duration::from_millis(300));
    world.compare_recovery = false;
    world.config.heartbeat = Duration::from_millis(100);
    let names: Vec<String> = (0..200).map(|number| format!("s{number}")).collect();
    names.iter().for_each(|name| world.add_site(name));
    world.restart();
    names.iter().for_each(|name| world.connect(name));
    let heard: Vec<_> = names.iter().map(String::as_str).collect();
    world.advance_with(limits::RESTART_GRACE + MINUTE, &heard);
    assert_eq!(granted(&mut world, "s1").session, Duration::from_secs(6));
    names.iter().skip(2).for_each(|name| world.disconnect(name));
    assert_eq!(granted(&mut world, "s1").session, Duration::from_millis(300));
    world.advance(Duration::from_secs(5));
    assert_eq!(state(&world, "s1"), SiteState::Ready, "its next heartbeat was set by the longer one");
    world.heartbeat("s1");
    world.advance(Duration::from_millis(400));
    assert_eq!(state(&world, "s1"), SiteState::Suspect);
}

#[test]
fn b7_a_fleet_that_falls_silent_together_is_held_back_and_people_are_told() {
    let (mut world, names) = fleet(10);
    world.submit("workflow: w\nsteps:\n  a: { run: x, site: s1 }\n");
    let a = world.dispatched_one("s1");
    let heard: Vec<_> = names[4..].iter().map(String::as_str).collect();
    world.advance_with(LOST_AFTER * 3, &heard);
    for site in &names[..4] {
        assert_eq!(state(&world, site), SiteState::Disconnected);
        assert!(warning(&world, site).is_some_and(|text| text.contains("atoll site lost")));
    }
    assert_eq!((world.core.held_back(), world.core.counters().sites_held_back), (4, 4));
    assert_eq!(world.core.execution(a.0).unwrap().attempt, a.1, "its work is not given away");
    assert_eq!(world.core.counters().agents_lost, 0);
}

#[test]
fn b7_those_that_come_back_are_not_held_any_more_and_the_few_that_stay_away_are_lost() {
    let (mut world, names) = fleet(10);
    let heard: Vec<_> = names[4..].iter().map(String::as_str).collect();
    world.advance_with(LOST_AFTER * 2, &heard);
    assert_eq!(world.core.held_back(), 4);
    world.connect("s0");
    world.connect("s1");
    assert_eq!((world.core.held_back(), warning(&world, "s0")), (2, None));
    let heard: Vec<_> = ["s0", "s1"].into_iter().chain(heard).collect();
    world.advance_with(MINUTE * 2, &heard);
    assert_eq!((state(&world, "s2"), state(&world, "s3")), (SiteState::Lost, SiteState::Lost));
    assert_eq!((world.core.held_back(), state(&world, "s0")), (0, SiteState::Ready));
}

#[test]
fn b7_a_person_may_declare_a_site_lost_once_its_leases_have_run_out() {
    let (mut world, names) = fleet(10);
    world.submit("workflow: w\nsteps:\n  a: { run: x }\n");
    let at = names.iter().find(|site| !world.agents[*site].frames.is_empty()).unwrap().clone();
    let a = world.dispatched_one(&at);
    assert!(matches!(declare_lost(&mut world, &at), Err(Rejection::Conflict(_))), "it is connected");
    let (gone, heard): (Vec<_>, Vec<_>) = {
        let others = names.iter().filter(|site| **site != at);
        let mut gone: Vec<String> = others.clone().take(4).cloned().collect();
        gone.push(at.clone());
        (gone, others.skip(4).map(String::as_str).collect())
    };
    world.advance_with(MINUTE * 10, &heard);
    let refused = declare_lost(&mut world, &at).unwrap_err();
    assert!(matches!(&refused, Rejection::Conflict(text) if text.contains("under its lease")), "{refused}");
    world.advance_with(LOST_AFTER, &heard);
    assert_eq!(world.core.held_back(), gone.len());
    declare_lost(&mut world, &at).unwrap();
    declare_lost(&mut world, &at).unwrap();
    assert_eq!((state(&world, &at), world.core.held_back()), (SiteState::Lost, gone.len() - 1));
    assert_eq!(world.core.execution(a.0).unwrap().attempt.0, a.1.0 + 1, "its work is given to another");
    assert!(matches!(
        world.ask(Request::DeclareLost { site: "nowhere".parse().unwrap() }),
        Err(Rejection::NotFound(_))
    ));
}

#[test]
fn b7_sites_that_fall_silent_one_after_the_other_are_lost_one_after_the_other() {
    let (mut world, names) = fleet(10);
    for gone in 1..=4 {
        let heard: Vec<_> = names[gone..].iter().map(String::as_str).collect();
        world.advance_with(MINUTE * 5, &heard);
    }
    let heard: Vec<_> = names[4..].iter().map(String::as_str).collect();
    world.advance_with(LOST_AFTER, &heard);
    assert!(names[..4].iter().all(|site| state(&world, site) == SiteState::Lost));
    assert_eq!(world.core.held_back(), 0);
}

#[test]
fn e2_people_are_told_of_a_clock_that_is_off_by_a_minute_and_the_site_goes_on() {
    let mut world = World::new();
    world.join("edge", &[]);
    world.agents.get_mut("edge").unwrap().clock_ahead = Duration::from_secs(90);
    world.connect("edge");
    assert_eq!(warning(&world, "edge").as_deref(), Some("its clock is 90 s ahead"));
    world.submit("workflow: w\nsteps:\n  a: { run: x }\n");
    assert_eq!(world.dispatched("edge").len(), 1);
}

#[test]
fn e2_a_site_whose_clock_is_off_by_more_than_five_minutes_gets_no_new_work_until_it_is_put_right() {
    let mut world = World::new();
    world.join("edge", &[]);
    world.agents.get_mut("edge").unwrap().clock_ahead = Duration::from_secs(301);
    world.connect("edge");
    world.submit("workflow: w\nsteps:\n  a: { run: x }\n");
    assert_eq!(world.dispatched("edge"), []);
    let edge = world.core.site(&"edge".parse().unwrap()).unwrap();
    assert_eq!(edge.reason.as_deref(), Some("its clock is 301 s ahead"));
    world.agents.get_mut("edge").unwrap().clock_ahead = Duration::ZERO;
    world.heartbeat("edge");
    assert_eq!(world.dispatched("edge").len(), 1);
    assert_eq!(warning(&world, "edge"), None);
}

#[test]
fn e2_a_clock_that_goes_wrong_stops_what_is_new_and_nothing_that_is_there() {
    let mut world = World::with_sites(&["edge"]);
    world.submit("workflow: w\nsteps:\n  a: { run: x }\n");
    let a = world.dispatched_one("edge");
    world.agents.get_mut("edge").unwrap().clock_ahead = Duration::from_secs(3_600);
    world.heartbeat("edge");
    world.submit("workflow: w\nsteps:\n  b: { run: x }\n");
    assert_eq!(world.dispatched("edge"), []);
    world.start("edge", a);
    world.succeed("edge", a, Vec::new());
    assert_eq!(world.state(a.0.run), crate::view::RunState::Succeeded);
}
