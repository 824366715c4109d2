//! Copies that rules want at several sites.

use std::time::Duration;

use atoll_model::id::{Attempt, ExecutionId, RunId};
use atoll_model::session::{Report, SiteCommand};

use super::eviction::{propose, replicas};
use super::policies::apply;
use super::world::{World, file, object};
use crate::view::{RunState, WantedState};
use crate::{Request, Response};

const ONE: &str = "workflow: w\nsteps:\n  make: { run: x, site: edge, outputs: { f: file } }\n";
const TWICE: &str = "placement:\n  - replicate: { copies: 2 }\n";

/// At which of the sites a copy is wanted now.
fn told(world: &mut World, sites: &[&'static str]) -> Vec<&'static str> {
    let of_site =
        |command: &SiteCommand| matches!(command, SiteCommand::Replicate { object: o, .. } if o.id == object(1, 0).id);
    sites.iter().copied().filter(|site| world.commands(site).iter().any(of_site)).collect()
}

fn come(world: &mut World, site: &str, make: (ExecutionId, Attempt)) {
    let (object, at) = (object(1, 1_000), world.now);
    let fetched = Report::Fetched { object, wire_bytes: 1_000, direct: None, execution: make.0, at };
    world.report(site, vec![fetched, Report::ReplicaEnded { object, failure: None }]);
}

/// A run under the policy that has made an object at `edge`, which was pushed.
fn made(world: &mut World, policy: &str) -> (RunId, (ExecutionId, Attempt)) {
    apply(world, policy);
    let run = world.submit(ONE);
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000)]);
    assert_eq!(world.state(run), RunState::Succeeded);
    assert_eq!(world.carry_out_pushes("edge"), 1);
    (run, make)
}

fn copies(world: &World) -> String {
    world.core.object(object(1, 0).id).unwrap().copies.join("\n")
}

#[test]
fn what_is_made_comes_to_as_many_sites_as_a_rule_wants_and_is_entered_under_the_rule() {
    let mut world = World::with_sites(&["edge", "far", "hpc"]);
    let (_, make) = made(&mut world, TWICE);
    let told = told(&mut world, &["far", "hpc"]);
    assert_eq!(told.len(), 1, "one more copy: {told:?}");
    assert!(copies(&world).contains("wants 2 copies: 1 there, on its way to"), "{}", copies(&world));
    // While it is on its way it stays in the bucket, for that site alone.
    assert_eq!(world.carry_out_deletes(), []);
    let of = |site: &str| Request::AuthoriseFetch { agent: world.agents[site].id, object: object(1, 0).id };
    let (here, elsewhere) = (of(told[0]), of(["far", "hpc"].into_iter().find(|site| *site != told[0]).unwrap()));
    assert!(matches!(world.ask(here), Ok(Response::Authorised { .. })));
    assert!(world.ask(elsewhere).is_err());
    come(&mut world, told[0], make);
    assert_eq!(world.carry_out_deletes(), [object(1, 0).id]);
    assert_eq!(replicas(&world, 1), ["edge", told[0]]);
    assert!(copies(&world).ends_with("wants 2 copies: 2 there"), "{}", copies(&world));
    let ledger = world.core.ledger(&Default::default());
    let entries: Vec<_> =
        ledger.iter().map(|entry| (entry.from.as_str(), entry.to.as_str(), entry.rule.as_str())).collect();
    assert_eq!(entries, [("edge", "bucket", "eu.yaml:2"), ("bucket", told[0], "eu.yaml:2")]);
}

#[test]
fn none_of_the_copies_that_a_rule_wants_goes_and_one_more_may() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    let (_, make) = made(&mut world, TWICE);
    assert_eq!(told(&mut world, &["hpc"]), ["hpc"]);
    come(&mut world, "hpc", make);
    let one = object(1, 1_000);
    let (granted, reason) = propose(&mut world, "edge", &[one]);
    assert!(granted.is_empty());
    let reason = reason.unwrap();
    assert!(reason.contains("eu.yaml:2") && reason.contains("wants 2 copies of it"), "{reason}");
    world.add_site("far");
    world.report("far", vec![Report::Evicted { gone: Vec::new(), kept: vec![one] }]);
    assert_eq!(propose(&mut world, "edge", &[one]).0, [one]);
}

#[test]
fn a_copy_that_is_lost_is_made_anew_at_another_site() {
    let mut world = World::with_sites(&["edge", "far", "hpc"]);
    let (_, make) = made(&mut world, TWICE);
    let first = told(&mut world, &["far", "hpc"])[0];
    come(&mut world, first, make);
    world.carry_out_deletes();
    let name = first.parse().unwrap();
    world.ask(Request::RevokeSite { site: name, reason: "stolen".to_owned() }).unwrap();
    assert_eq!(world.carry_out_pushes("edge"), 1);
    let second = if first == "far" { "hpc" } else { "far" };
    assert_eq!(told(&mut world, &[second]), [second]);
    come(&mut world, second, make);
    assert_eq!(replicas(&world, 1).len(), 3, "what it was last known to have, the revoked site has still");
    assert_eq!(world.carry_out_deletes(), [object(1, 0).id]);
}

#[test]
fn a_site_that_could_not_take_a_copy_is_asked_again_later() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    let (_, make) = made(&mut world, TWICE);
    assert_eq!(told(&mut world, &["hpc"]), ["hpc"]);
    let failure = Some("the disk of the site is full".to_owned());
    world.report("hpc", vec![Report::ReplicaEnded { object: object(1, 1_000), failure }]);
    assert!(told(&mut world, &["hpc"]).is_empty());
    assert!(copies(&world).ends_with("; hpc could not: the disk of the site is full"), "{}", copies(&world));
    world.advance_with(Duration::from_secs(90), &["edge", "hpc"]);
    world.carry_out_deletes();
    world.carry_out_pushes("edge");
    assert_eq!(told(&mut world, &["hpc"]), ["hpc"]);
    come(&mut world, "hpc", make);
    assert_eq!(replicas(&world, 1), ["edge", "hpc"]);
}

#[test]
fn copies_differ_in_what_the_rule_says_and_are_where_it_says() {
    let mut world = World::new();
    for (site, zone) in [("edge", "a"), ("far", "a"), ("hpc", "b"), ("lab", "c")] {
        world.join(site, &[("zone", zone)]);
        world.connect(site);
    }
    let policy = "attributes: { zone: { type: enum, values: [a, b, c] } }\nplacement:\n  - replicate: { copies: 2, across: zone, to: \"zone != 'c'\" }\n";
    made(&mut world, policy);
    assert_eq!(told(&mut world, &["far", "hpc", "lab"]), ["hpc"]);
}

#[test]
fn what_is_confined_is_not_copied_and_what_is_wanted_in_vain_says_so() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    apply(&mut world, "placement:\n  - confine: edge\n  - replicate: { copies: 2, importance: should }\n");
    world.submit(ONE);
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000)]);
    assert_eq!(world.carry_out_pushes("edge"), 0);
    assert!(told(&mut world, &["hpc"]).is_empty());
    assert!(copies(&world).ends_with("wants 2 copies: 1 there, no other site can take one now"), "{}", copies(&world));
}

#[test]
fn a_site_that_joins_later_gets_the_copy_and_a_new_journal_is_told_again() {
    let mut world = World::with_sites(&["edge"]);
    apply(&mut world, "placement:\n  - replicate: { copies: 2, importance: should }\n");
    world.submit(ONE);
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000)]);
    assert_eq!(world.carry_out_pushes("edge"), 0, "nobody could read it");
    world.add_site("hpc");
    assert_eq!(world.carry_out_pushes("edge"), 1);
    assert_eq!(told(&mut world, &["hpc"]), ["hpc"]);
    world.restart();
    for site in ["edge", "hpc"] {
        world.agents.get_mut(site).unwrap().journal = atoll_model::id::JournalId::from_bits(77);
        world.connect(site);
    }
    assert_eq!(told(&mut world, &["hpc"]), ["hpc"]);
    come(&mut world, "hpc", make);
    world.advance(Duration::from_secs(1));
    assert_eq!(world.carry_out_deletes(), [object(1, 0).id]);
}

#[test]
fn copies_that_are_not_there_in_time_are_late_until_they_are() {
    let mut world = World::with_sites(&["edge"]);
    apply(&mut world, "placement:\n  - replicate: { copies: 2, within: 6h, importance: should }\n");
    world.submit(ONE);
    let make = world.dispatched_one("edge");
    let (made_at, six_hours) = (world.now, Duration::from_secs(6 * 3_600));
    world.succeed("edge", make, vec![file(1, 1_000)]);
    let state = |world: &World| world.core.object(object(1, 0).id).unwrap().wanted[0].clone();
    let stuck = state(&world);
    assert_eq!((stuck.state, stuck.since, stuck.due), (WantedState::Stuck, Some(made_at), Some(made_at + six_hours)));
    world.advance_with(six_hours, &["edge"]);
    assert_eq!(state(&world).state, WantedState::Violated);
    assert!(copies(&world).ends_with(&format!("take one now; VIOLATED: due at {}", made_at + six_hours)));
    let counters = world.core.counters();
    assert_eq!((counters.objects_lacking_copies, counters.objects_late), (1, 1));
    world.restart();
    world.connect("edge");
    world.add_site("hpc");
    assert_eq!(world.carry_out_pushes("edge"), 1);
    assert_eq!(told(&mut world, &["hpc"]), ["hpc"]);
    assert_eq!(state(&world).state, WantedState::Violated, "on its way, and late");
    come(&mut world, "hpc", make);
    assert_eq!((state(&world).state, state(&world).due), (WantedState::Ok, None));
    assert_eq!(world.core.counters().objects_late, 0);
}

#[test]
fn copies_that_are_on_their_way_are_in_progress_and_not_late_without_a_time() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    let (_, make) = made(&mut world, TWICE);
    world.advance_with(Duration::from_secs(24 * 3_600), &["edge", "hpc"]);
    let wanted = world.core.object(object(1, 0).id).unwrap().wanted;
    assert_eq!((wanted[0].state, wanted[0].due, wanted[0].there), (WantedState::InProgress, None, 1));
    assert_eq!(told(&mut world, &["hpc"]), ["hpc"]);
    come(&mut world, "hpc", make);
    assert_eq!(world.core.object(object(1, 0).id).unwrap().wanted[0].state, WantedState::Ok);
}
