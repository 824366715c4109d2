//! Objects that go from one site straight to another.

use std::time::Duration;

use atoll_model::id::{AgentId, Attempt, ExecutionId, RunId};
use atoll_model::session::{DirectShare, Report};

use super::world::{World, execution, file, object};
use crate::command::HolderOffer;
use crate::view::{ExecutionState, RunState};
use crate::{Rejection, Request, Response};

const SOURCE: &str = "workflow: w\nsteps:\n  make: { run: x, site: edge, outputs: { f: file } }\n  use: { run: x, site: hpc, with: { f: \"${{ steps.make.outputs.f }}\" } }\n";

fn agent(world: &World, site: &str) -> AgentId {
    world.agents[site].id
}

fn address() -> String {
    "10.0.0.1:7433".to_owned()
}

fn advertise(world: &mut World, site: &str, addresses: Vec<String>) {
    let agent = agent(world, site);
    let request = Request::Advertise { agent, addresses, relays: false };
    assert_eq!(world.ask(request), Ok(Response::Done));
}

fn offers(world: &mut World) -> Result<Vec<HolderOffer>, Rejection> {
    let agent = agent(world, "hpc");
    match world.ask(Request::Offers { agent, object: object(1, 1_000).id })? {
        Response::Offered { object: offered, holders, ask_again } => {
            assert_eq!(ask_again, None);
            assert_eq!(offered, object(1, 1_000));
            Ok(holders)
        }
        other => panic!("{other:?}"),
    }
}

/// A run whose second step reads at `hpc` what the first has made at `edge`, which listens.
fn made() -> (World, RunId) {
    let mut world = World::with_sites(&["edge", "hpc"]);
    advertise(&mut world, "edge", vec![address()]);
    advertise(&mut world, "hpc", Vec::new());
    let run = world.submit(SOURCE);
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000)]);
    (world, run)
}

#[test]
fn what_a_reachable_site_has_is_fetched_from_it_and_never_enters_the_bucket() {
    let (mut world, run) = made();
    let reader = world.dispatched_one("hpc");
    assert!(world.pushes("edge").is_empty());
    let holder = agent(&world, "edge");
    assert_eq!(offers(&mut world), Ok(vec![HolderOffer { agent: holder, addresses: vec![address()] }]));
    let (at, direct) = (world.now, Some(DirectShare { holder, wire_bytes: 1_000 }));
    let fetched = Report::Fetched { object: object(1, 1_000), wire_bytes: 1_000, direct, execution: reader.0, at };
    world.report("hpc", vec![fetched]);
    world.succeed("hpc", reader, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
    assert_eq!(world.objects_in_bucket(), 0);
    let ledger = world.core.ledger(&Default::default());
    let entries: Vec<_> = ledger.iter().map(|entry| (entry.from.as_str(), entry.to.as_str(), entry.bytes)).collect();
    assert_eq!(entries, [("edge", "hpc", 1_000)]);
}

#[test]
fn c1_a_holder_that_cannot_be_reached_pushes_and_is_not_offered_again_for_a_while() {
    let (mut world, run) = made();
    let reader = world.dispatched_one("hpc");
    let (agent, holder) = (agent(&world, "hpc"), agent(&world, "edge"));
    let failed = Request::OfferFailed { agent, object: object(1, 1_000).id, holder };
    assert_eq!(world.ask(failed.clone()), Ok(Response::Done));
    assert_eq!(world.ask(failed), Ok(Response::Done), "said twice it has no more effect");
    assert_eq!(offers(&mut world), Ok(Vec::new()));
    let pushes = world.pushes("edge");
    assert_eq!(pushes.len(), 1);
    let (transfer, pushed) = pushes[0];
    let at = world.now;
    world.report("edge", vec![Report::Pushed { transfer, object: pushed, wire_bytes: 1_000, at }]);
    assert!(world.ask(Request::AuthoriseFetch { agent, object: pushed.id }).is_ok());
    // Some had come before the link broke.
    let direct = Some(DirectShare { holder, wire_bytes: 400 });
    world.report("hpc", vec![Report::Fetched { object: pushed, wire_bytes: 1_010, direct, execution: reader.0, at }]);
    world.succeed("hpc", reader, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
    let ledger = world.core.ledger(&Default::default());
    let entries: Vec<_> = ledger.iter().map(|entry| (entry.from.as_str(), entry.to.as_str(), entry.bytes)).collect();
    assert_eq!(entries, [("edge", "bucket", 1_000), ("edge", "hpc", 400), ("bucket", "hpc", 610)]);
    // The next run between the two takes the bucket from the beginning, until the time is over.
    let second = world.submit(SOURCE);
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(2, 500)]);
    assert_eq!(world.state_of(execution(second, 1, 0)), ExecutionState::Placed);
    assert_eq!(world.pushes("edge").len(), 1);
}

#[test]
fn without_an_address_or_a_reader_everything_goes_over_the_bucket() {
    for (holder, reader) in [(false, true), (true, false)] {
        let mut world = World::with_sites(&["edge", "hpc"]);
        if holder {
            advertise(&mut world, "edge", vec![address()]);
        }
        if reader {
            advertise(&mut world, "hpc", Vec::new());
        }
        world.submit(SOURCE);
        let make = world.dispatched_one("edge");
        world.succeed("edge", make, vec![file(1, 1_000)]);
        assert!(world.dispatched("hpc").is_empty());
        assert_eq!(world.pushes("edge").len(), 1);
    }
}

#[test]
fn nobody_is_told_who_has_what_he_does_not_read() {
    let (mut world, _) = made();
    let (edge, hpc) = (agent(&world, "edge"), agent(&world, "hpc"));
    let foreign = Request::Offers { agent: hpc, object: object(9, 1).id };
    assert!(matches!(world.ask(foreign), Err(Rejection::Forbidden(_))));
    let reader = world.dispatched_one("hpc");
    world.succeed("hpc", reader, Vec::new());
    let late = Request::Offers { agent: hpc, object: object(1, 1_000).id };
    assert!(matches!(world.ask(late), Err(Rejection::Forbidden(_))), "nothing there reads it any more");
    let holder = Request::Offers { agent: edge, object: object(1, 1_000).id };
    assert!(matches!(world.ask(holder), Err(Rejection::Forbidden(_))));
}

#[test]
fn a_control_plane_that_starts_anew_learns_again_who_listens() {
    let (mut world, _) = made();
    let reader = world.dispatched_one("hpc");
    world.restart();
    world.connect("edge");
    world.connect("hpc");
    assert_eq!(offers(&mut world), Ok(Vec::new()), "nobody has said that it listens: it is pushed");
    assert_eq!(world.pushes("edge").len(), 1);
    world.succeed("hpc", reader, Vec::new());
}

#[test]
fn what_goes_along_with_its_predecessor_may_fetch_what_is_there_already() {
    const JOINED: &str = "workflow: w\nsteps:\n  make: { run: x, site: edge, outputs: { f: file } }\n  go: { run: x, site: hpc, outputs: { f: file } }\n  use:\n    run: x\n    site: hpc\n    with: { f: \"${{ steps.make.outputs.f }}\", g: \"${{ steps.go.outputs.f }}\" }\n";
    let mut world = World::with_sites(&["edge", "hpc"]);
    advertise(&mut world, "edge", vec![address()]);
    advertise(&mut world, "hpc", Vec::new());
    world.submit(JOINED);
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000)]);
    let dispatched = world.dispatched("hpc");
    assert_eq!(dispatched.len(), 2, "one runs, and one waits for it there: {dispatched:?}");
    let holder = agent(&world, "edge");
    assert_eq!(offers(&mut world), Ok(vec![HolderOffer { agent: holder, addresses: vec![address()] }]));
}

const LARGE: u64 = 1 << 30;
const SITES: [&str; 3] = ["edge", "hpc", "cloud"];

/// What the site's agent is told of who has an object, by site.
fn offered(world: &mut World, to: &str, number: u8) -> Vec<String> {
    let agent = agent(world, to);
    let answer = world.ask(Request::Offers { agent, object: object(number, LARGE).id });
    let Ok(Response::Offered { holders, .. }) = answer else { panic!("{answer:?}") };
    let site_of = |holder: &HolderOffer| world.agents.iter().find(|(_, known)| known.id == holder.agent);
    holders.iter().filter_map(|holder| Some(site_of(holder)?.0.clone())).collect()
}

fn fetched(world: &mut World, site: &str, number: u8, from: &str, reader: (ExecutionId, Attempt)) {
    let direct = Some(DirectShare { holder: agent(world, from), wire_bytes: LARGE });
    let (object, at) = (object(number, LARGE), world.now);
    world.report(site, vec![Report::Fetched { object, wire_bytes: LARGE, direct, execution: reader.0, at }]);
}

/// An object goes from one site to another, and takes that long.
fn measure(world: &mut World, number: u8, from: &str, to: &str, seconds: u64) {
    let make = format!("{{ run: x, site: {from}, outputs: {{ f: file }} }}");
    let take = format!("{{ run: x, site: {to}, with: {{ f: \"${{{{ steps.make.outputs.f }}}}\" }} }}");
    world.submit(&format!("workflow: m{number}\nsteps:\n  make: {make}\n  take: {take}\n"));
    let made = world.dispatched_one(from);
    world.succeed(from, made, vec![file(number, LARGE)]);
    let reader = world.dispatched_one(to);
    world.advance_with(Duration::from_secs(seconds), &SITES);
    fetched(world, to, number, from, reader);
    world.succeed(to, reader, Vec::new());
}

/// Three sites that reach each other; how long an object takes to the third from the first, and from the second.
fn measured(from_edge: u64, from_hpc: u64) -> World {
    let mut world = World::with_sites(&SITES);
    SITES.iter().for_each(|site| advertise(&mut world, site, vec![address()]));
    measure(&mut world, 11, "edge", "cloud", from_edge);
    measure(&mut world, 12, "hpc", "cloud", from_hpc);
    world
}

#[test]
fn of_several_that_have_an_object_the_one_with_the_fastest_link_is_asked_first() {
    const SHARED: &str = "workflow: w\nsteps:\n  make: { run: x, site: edge, outputs: { f: file } }\n  copy: { run: x, site: hpc, with: { f: \"${{ steps.make.outputs.f }}\" } }\n  use: { run: x, site: cloud, with: { f: \"${{ steps.make.outputs.f }}\" } }\n";
    for (from_edge, from_hpc, expected) in [(60, 15, ["hpc", "edge"]), (15, 60, ["edge", "hpc"])] {
        let mut world = measured(from_edge, from_hpc);
        world.submit(SHARED);
        let make = world.dispatched_one("edge");
        world.succeed("edge", make, vec![file(1, LARGE)]);
        let (copy, reader) = (world.dispatched_one("hpc"), world.dispatched_one("cloud"));
        assert_eq!(offered(&mut world, "cloud", 1), ["edge"], "only one has it");
        fetched(&mut world, "hpc", 1, "edge", copy);
        assert_eq!(offered(&mut world, "cloud", 1), expected);
        fetched(&mut world, "cloud", 1, expected[0], reader);
        world.succeed("hpc", copy, Vec::new());
        world.succeed("cloud", reader, Vec::new());
    }
}

#[test]
fn a_holder_that_is_giving_already_is_asked_after_one_that_is_idle() {
    const PAIR: &str = "workflow: w\nsteps:\n  make: { run: x, site: edge, outputs: { f: file, g: file } }\n  copy: { run: x, site: hpc, with: { f: \"${{ steps.make.outputs.f }}\", g: \"${{ steps.make.outputs.g }}\" } }\n  use: { run: x, site: cloud, with: { f: \"${{ steps.make.outputs.f }}\", g: \"${{ steps.make.outputs.g }}\" } }\n";
    let mut world = measured(30, 30);
    world.submit(PAIR);
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, LARGE), file(2, LARGE)]);
    let (copy, reader) = (world.dispatched_one("hpc"), world.dispatched_one("cloud"));
    [1, 2].into_iter().for_each(|number| fetched(&mut world, "hpc", number, "edge", copy));
    assert_eq!(offered(&mut world, "cloud", 1), ["edge", "hpc"]);
    assert_eq!(offered(&mut world, "cloud", 2), ["hpc", "edge"]);
    assert_eq!(offered(&mut world, "cloud", 1), ["edge", "hpc"], "what it asks for again does not count against it");
    fetched(&mut world, "cloud", 1, "edge", reader);
    assert_eq!(offered(&mut world, "cloud", 2), ["edge", "hpc"], "it is idle again, and as fast");
    world.succeed("hpc", copy, Vec::new());
    world.succeed("cloud", reader, Vec::new());
}

const FAR: [&str; 3] = ["edge", "far", "near"];
const MIB: u64 = 1 << 20;

/// `edge`, and `far` and `near` next to each other at the other end of a thin link: 100 MiB took `far` 100 seconds.
fn behind_a_thin_link() -> World {
    let mut world = World::with_sites(&FAR);
    FAR.iter().for_each(|site| advertise(&mut world, site, vec![address()]));
    for (site, number) in [("far", 1), ("near", 2)] {
        give(&mut world, site, number, 100 * MIB);
        world.advance_with(Duration::from_secs(100), &FAR);
        came(&mut world, site, "edge", number, 100 * MIB);
    }
    world
}

fn reads_at(site: &str) -> String {
    SOURCE.replace("site: hpc", &format!("site: {site}"))
}

fn asks(world: &mut World, site: &str, number: u8, bytes: u64) -> (Vec<AgentId>, Option<Duration>) {
    let agent = agent(world, site);
    match world.ask(Request::Offers { agent, object: object(number, bytes).id }).unwrap() {
        Response::Offered { holders, ask_again, .. } => {
            (holders.into_iter().map(|holder| holder.agent).collect(), ask_again)
        }
        other => panic!("{other:?}"),
    }
}

/// Something is made at `edge` for a reader at the site, which is sent to `edge` for it.
fn give(world: &mut World, site: &str, number: u8, bytes: u64) {
    world.submit(&reads_at(site));
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(number, bytes)]);
    assert_eq!(asks(world, site, number, bytes), (vec![agent(world, "edge")], None));
}

fn came(world: &mut World, site: &str, from: &str, number: u8, bytes: u64) {
    let reader = world.dispatched_one(site);
    let (at, direct) = (world.now, Some(DirectShare { holder: agent(world, from), wire_bytes: bytes }));
    let fetched = Report::Fetched { object: object(number, bytes), wire_bytes: bytes, direct, execution: reader.0, at };
    world.report(site, vec![fetched]);
    world.succeed(site, reader, Vec::new());
}

/// Readers at `far` and `near` of the same that was made at `edge`; `far` is being given it.
fn read_by_both(world: &mut World, bytes: u64) {
    give(world, "far", 7, bytes);
    world.submit(&reads_at("near"));
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(7, bytes)]);
}

#[test]
fn over_a_thin_link_goes_one_copy_and_the_far_sites_serve_one_another() {
    let mut world = behind_a_thin_link();
    read_by_both(&mut world, 200 * MIB);
    let (holders, ask_again) = asks(&mut world, "near", 7, 200 * MIB);
    assert!(holders.is_empty());
    assert!(ask_again.is_some_and(|time| time <= Duration::from_secs(5)), "{ask_again:?}");
    world.advance_with(Duration::from_secs(198), &FAR);
    assert!(asks(&mut world, "near", 7, 200 * MIB).1.is_some(), "in two seconds");
    world.advance_with(Duration::from_secs(2), &FAR);
    came(&mut world, "far", "edge", 7, 200 * MIB);
    let (holders, ask_again) = asks(&mut world, "near", 7, 200 * MIB);
    assert_eq!((holders.first(), ask_again), (Some(&agent(&world, "far")), None));
    came(&mut world, "near", "far", 7, 200 * MIB);
    let ledger = world.core.ledger(&Default::default());
    let of_seven = ledger.iter().filter(|entry| entry.object == object(7, 0).id);
    let crossings: Vec<_> = of_seven.map(|entry| (entry.from.as_str(), entry.to.as_str())).collect();
    assert_eq!(crossings, [("edge", "far"), ("far", "near")]);
}

#[test]
fn a_reader_that_is_late_or_cut_off_is_not_waited_for() {
    let mut world = behind_a_thin_link();
    read_by_both(&mut world, 200 * MIB);
    assert!(asks(&mut world, "near", 7, 200 * MIB).1.is_some());
    world.disconnect("far");
    assert_eq!(asks(&mut world, "near", 7, 200 * MIB), (vec![agent(&world, "edge")], None));
    let mut world = behind_a_thin_link();
    read_by_both(&mut world, 200 * MIB);
    world.advance_with(Duration::from_secs(400), &FAR);
    assert_eq!(asks(&mut world, "near", 7, 200 * MIB).1, None);
}

#[test]
fn nobody_waits_for_what_comes_soon_or_over_a_link_of_which_nothing_is_known() {
    let mut world = behind_a_thin_link();
    read_by_both(&mut world, MIB / 2);
    assert_eq!(asks(&mut world, "near", 7, MIB / 2).1, None);
    let mut world = World::with_sites(&FAR);
    FAR.iter().for_each(|site| advertise(&mut world, site, vec![address()]));
    read_by_both(&mut world, 1_000 * MIB);
    assert_eq!(asks(&mut world, "near", 7, 1_000 * MIB).1, None);
}

/// [`behind_a_thin_link`], where agents give what they have of what is on its way to them.
fn that_relays() -> World {
    let mut world = behind_a_thin_link();
    for site in FAR {
        let agent = agent(&world, site);
        let request = Request::Advertise { agent, addresses: vec![address()], relays: true };
        assert_eq!(world.ask(request), Ok(Response::Done));
    }
    world
}

fn fails_to_get(world: &mut World, site: &str, from: &str, number: u8, bytes: u64) {
    let (agent, holder) = (agent(world, site), agent(world, from));
    let failed = Request::OfferFailed { agent, object: object(number, bytes).id, holder };
    assert_eq!(world.ask(failed), Ok(Response::Done));
}

#[test]
fn what_comes_over_a_thin_link_goes_on_to_the_next_while_it_comes() {
    let mut world = that_relays();
    let [edge, far] = ["edge", "far"].map(|site| agent(&world, site));
    read_by_both(&mut world, 200 * MIB);
    assert_eq!(asks(&mut world, "near", 7, 200 * MIB), (vec![far, edge], None));
    world.advance_with(Duration::from_secs(200), &FAR);
    // Who has it last may say so first.
    came(&mut world, "near", "far", 7, 200 * MIB);
    came(&mut world, "far", "edge", 7, 200 * MIB);
    let ledger = world.core.ledger(&Default::default());
    let of_seven = ledger.iter().filter(|entry| entry.object == object(7, 0).id);
    let crossings: Vec<_> = of_seven.map(|entry| (entry.from.as_str(), entry.to.as_str(), entry.bytes)).collect();
    assert_eq!(crossings, [("edge", "far", 200 * MIB), ("far", "near", 200 * MIB)]);
    // That it took as long as over the thin link says nothing of the link between the two.
    give(&mut world, "far", 8, 200 * MIB);
    world.submit(&reads_at("near"));
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(8, 200 * MIB)]);
    assert_eq!(asks(&mut world, "near", 8, 200 * MIB), (vec![far, edge], None));
}

#[test]
fn an_agent_that_does_not_know_how_waits_until_all_of_it_has_come() {
    for older in ["far", "near"] {
        let mut world = that_relays();
        advertise(&mut world, older, vec![address()]);
        read_by_both(&mut world, 200 * MIB);
        let (holders, ask_again) = asks(&mut world, "near", 7, 200 * MIB);
        assert!(holders.is_empty() && ask_again.is_some(), "{older}: {holders:?}");
    }
}

#[test]
fn c1_a_relay_that_fails_is_left_and_the_link_to_it_stays_open() {
    let mut world = that_relays();
    let [edge, far] = ["edge", "far"].map(|site| agent(&world, site));
    read_by_both(&mut world, 200 * MIB);
    assert_eq!(asks(&mut world, "near", 7, 200 * MIB).0, [far, edge]);
    for _ in 0..2 {
        fails_to_get(&mut world, "near", "far", 7, 200 * MIB);
    }
    let (holders, ask_again) = asks(&mut world, "near", 7, 200 * MIB);
    assert!(holders.is_empty() && ask_again.is_some(), "it may have it whole later: {holders:?}");
    world.advance_with(Duration::from_secs(200), &FAR);
    came(&mut world, "far", "edge", 7, 200 * MIB);
    assert_eq!(asks(&mut world, "near", 7, 200 * MIB).0.first(), Some(&far));
    assert!(world.pushes("edge").is_empty());
}

#[test]
fn two_sites_never_wait_for_each_other() {
    let mut world = that_relays();
    let [edge, far] = ["edge", "far"].map(|site| agent(&world, site));
    read_by_both(&mut world, 200 * MIB);
    assert_eq!(asks(&mut world, "near", 7, 200 * MIB).0, [far, edge]);
    // It lost its way, and asks again, while the other still has it from it.
    assert_eq!(asks(&mut world, "far", 7, 200 * MIB), (vec![edge], None));
}
