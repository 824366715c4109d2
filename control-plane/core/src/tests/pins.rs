//! Copies that people want somewhere: they are brought there, and stay.

use std::time::Duration;

use atoll_model::id::{Attempt, ExecutionId, RunId};
use atoll_model::session::{Report, SiteCommand};

use super::damage::lost;
use super::eviction::{propose, replicas};
use super::policies::apply;
use super::world::{World, execution, file, object};
use crate::event::PinPlace;
use crate::view::RunState;
use crate::{Rejection, Request, Response};

const SITES: [&str; 3] = ["edge", "far", "hpc"];
const ONE: &str = "workflow: w\nsteps:\n  make: { run: x, site: edge, outputs: { f: file } }\n";
const SENT: &str =
    "workflow: w\ninputs: { f: file }\nsteps:\n  read: { run: x, with: { f: \"${{ inputs.f }}\" }, site: edge }\n";

/// A run under the policy that has made an object at `edge`.
fn made(world: &mut World, policy: &str) -> (RunId, (ExecutionId, Attempt)) {
    apply(world, policy);
    let run = world.submit(ONE);
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000)]);
    (run, make)
}

fn at(site: &str) -> PinPlace {
    PinPlace::Site(site.parse().unwrap())
}

fn pin(world: &mut World, place: PinPlace) -> Result<Response, Rejection> {
    world.ask(Request::PinObject { object: object(1, 0).id, at: place, by: "ada".to_owned() })
}

/// For which executions the site was told to have a copy.
fn told(world: &mut World, site: &str) -> Vec<ExecutionId> {
    let of_copy = |command: SiteCommand| match command {
        SiteCommand::Replicate { object: copied, execution } => (copied.id == object(1, 0).id).then_some(execution),
        _ => None,
    };
    world.commands(site).into_iter().filter_map(of_copy).collect()
}

fn come(world: &mut World, site: &str, execution: ExecutionId) {
    let (object, at) = (object(1, 1_000), world.now);
    let fetched = Report::Fetched { object, wire_bytes: 1_000, direct: None, execution, at };
    world.report(site, vec![fetched, Report::ReplicaEnded { object, failure: None }]);
}

fn copies(world: &World) -> String {
    world.core.object(object(1, 0).id).unwrap().copies.join("\n")
}

#[test]
fn what_is_pinned_where_it_is_not_is_brought_there_once_and_stays() {
    let mut world = World::with_sites(&SITES);
    let (run, make) = made(&mut world, "placement: []\n");
    pin(&mut world, at("hpc")).unwrap();
    pin(&mut world, at("hpc")).unwrap();
    assert_eq!(world.carry_out_pushes("edge"), 1);
    assert_eq!((told(&mut world, "hpc"), told(&mut world, "far")), (vec![make.0], Vec::new()));
    assert_eq!(copies(&world), "ada wants it at hpc: on its way there");
    assert_eq!(world.carry_out_deletes(), [], "while it is on its way it stays in the bucket");
    come(&mut world, "hpc", make.0);
    assert_eq!(world.carry_out_deletes(), [object(1, 0).id]);
    assert_eq!((replicas(&world, 1), copies(&world)), (vec!["edge".to_owned(), "hpc".to_owned()], String::new()));
    let ledger = world.core.ledger(&Default::default());
    let entries: Vec<_> =
        ledger.iter().map(|entry| (entry.from.as_str(), entry.to.as_str(), entry.rule.as_str())).collect();
    assert_eq!(entries, [("edge", "bucket", "client"), ("bucket", "hpc", "client")]);
    let one = object(1, 1_000);
    assert!(propose(&mut world, "hpc", &[one]).1.unwrap().contains("ada has pinned it there"));
    world.ask(Request::UnpinObject { object: one.id, at: at("hpc") }).unwrap();
    assert_eq!(propose(&mut world, "hpc", &[one]).0, [one]);
    world.advance_with(Duration::from_secs(120), &SITES);
    assert_eq!((world.carry_out_pushes("edge"), world.state(run)), (0, RunState::Succeeded));
}

#[test]
fn a_pinned_copy_that_is_lost_is_brought_anew_and_after_a_restart_too() {
    let mut world = World::with_sites(&SITES);
    let (_, make) = made(&mut world, "placement: []\n");
    pin(&mut world, at("hpc")).unwrap();
    world.carry_out_pushes("edge");
    assert_eq!(told(&mut world, "hpc"), [make.0]);
    come(&mut world, "hpc", make.0);
    world.carry_out_deletes();
    world.report("hpc", vec![lost(object(1, 1_000))]);
    world.restart();
    SITES.iter().for_each(|site| world.connect(site));
    world.advance_with(Duration::from_secs(90), &SITES);
    assert_eq!(world.carry_out_pushes("edge"), 1);
    assert_eq!(told(&mut world, "hpc"), [make.0]);
}

#[test]
fn what_is_pinned_in_the_bucket_comes_there_although_its_run_ends() {
    let mut world = World::with_sites(&SITES);
    apply(&mut world, "placement: []\n");
    let waits = format!("{ONE}  wait: {{ run: x, site: edge, after: [make] }}\n");
    let run = world.submit(&waits);
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000)]);
    let wait = world.dispatched_one("edge");
    world.disconnect("edge");
    pin(&mut world, PinPlace::Bucket).unwrap();
    assert_eq!(copies(&world), "ada wants it in the bucket: waits for a site that has it");
    world.connect("edge");
    world.succeed("edge", wait, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
    assert_eq!(world.carry_out_pushes("edge"), 1);
    assert_eq!((world.carry_out_deletes().len(), world.objects_in_bucket(), copies(&world)), (0, 1, String::new()));
    world.ask(Request::UnpinObject { object: object(1, 0).id, at: PinPlace::Bucket }).unwrap();
    assert_eq!(world.carry_out_deletes(), [object(1, 0).id]);
}

#[test]
fn what_a_rule_keeps_where_it_is_cannot_be_pinned_elsewhere() {
    let mut world = World::with_sites(&SITES);
    made(&mut world, "placement:\n  - confine: edge\n");
    for place in [at("hpc"), PinPlace::Bucket] {
        let refused = pin(&mut world, place).unwrap_err();
        assert!(matches!(&refused, Rejection::Forbidden(why) if why.contains("eu.yaml:2")), "{refused:?}");
    }
    // A rule that comes later is obeyed as well.
    apply(&mut world, "placement: []\n");
    world.disconnect("edge");
    pin(&mut world, at("hpc")).unwrap();
    apply(&mut world, "placement:\n  - push: never\n");
    world.connect("edge");
    world.advance_with(Duration::from_secs(90), &SITES);
    assert_eq!(world.carry_out_pushes("edge"), 0);
    assert!(told(&mut world, "hpc").is_empty());
    assert_eq!(copies(&world), "ada wants it at hpc: it cannot come there now");
}

#[test]
fn what_was_confined_by_a_run_that_is_forgotten_is_brought_nowhere() {
    let mut world = World::with(|config| config.keep_finished = Duration::from_secs(60));
    SITES.iter().for_each(|site| world.add_site(site));
    let (run, _) = made(&mut world, "placement:\n  - confine: edge\n");
    pin(&mut world, PinPlace::Anywhere).unwrap();
    world.advance_with(Duration::from_secs(240), &SITES);
    assert!(world.core.run(run).is_none());
    for place in [at("hpc"), PinPlace::Bucket] {
        let refused = pin(&mut world, place).unwrap_err();
        assert!(matches!(&refused, Rejection::Conflict(why) if why.contains("its rules are not known")), "{refused:?}");
    }
    assert_eq!(world.carry_out_pushes("edge"), 0);
}

#[test]
fn what_was_sent_in_is_brought_to_a_site_for_who_reads_it() {
    let mut world = World::with_sites(&SITES);
    let one = object(1, 1_000);
    world.ask(Request::RecordUpload { object: one, key: None }).unwrap();
    let refused = pin(&mut world, at("hpc")).unwrap_err();
    assert!(matches!(&refused, Rejection::Conflict(why) if why.contains("makes or reads")), "{refused:?}");
    let run = world.try_submit(SENT, &[("f", file(1, 1_000))]).unwrap();
    pin(&mut world, at("hpc")).unwrap();
    assert_eq!(told(&mut world, "hpc"), [execution(run, 0, 0)]);
    come(&mut world, "hpc", execution(run, 0, 0));
    assert_eq!(replicas(&world, 1), ["hpc", "bucket"]);
}

#[test]
fn a_pin_at_a_site_that_will_not_come_or_of_what_is_nowhere_is_refused() {
    let mut world = World::with_sites(&SITES);
    made(&mut world, "placement: []\n");
    world.ask(Request::RevokeSite { site: "hpc".parse().unwrap(), reason: "stolen".to_owned() }).unwrap();
    let refused = pin(&mut world, at("hpc")).unwrap_err();
    assert!(matches!(&refused, Rejection::Conflict(why) if why.contains("it is revoked")), "{refused:?}");
    world.ask(Request::RevokeSite { site: "edge".parse().unwrap(), reason: "stolen".to_owned() }).unwrap();
    let refused = pin(&mut world, at("far")).unwrap_err();
    assert!(matches!(&refused, Rejection::Conflict(why) if why.contains("no copy")), "{refused:?}");
}

#[test]
fn what_a_rule_pins_is_brought_to_one_of_its_sites_and_stays_there_for_its_time() {
    let mut world = World::with_sites(&SITES);
    let policy = "placement:\n  - pin: { at: \"site in [far, hpc]\", until: 2h after run.end }\n";
    let (_, make) = made(&mut world, policy);
    assert_eq!(world.carry_out_pushes("edge"), 1);
    let told: Vec<_> = ["far", "hpc"].into_iter().filter(|site| !told(&mut world, site).is_empty()).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(copies(&world).contains("wants 1 copy: 0 there, on its way to"), "{}", copies(&world));
    come(&mut world, told[0], make.0);
    assert_eq!(world.carry_out_deletes(), [object(1, 0).id]);
    assert!(copies(&world).ends_with("wants 1 copy: 1 there"), "{}", copies(&world));
    let one = object(1, 1_000);
    assert!(propose(&mut world, told[0], &[one]).1.unwrap().contains("eu.yaml:2"));
    world.advance_with(Duration::from_secs(2 * 3_600), &SITES);
    world.report(told[0], vec![lost(one)]);
    assert!(world.pushes("edge").is_empty(), "its time is over");
}

#[test]
fn what_is_made_where_a_rule_pins_it_goes_nowhere() {
    let mut world = World::with_sites(&SITES);
    made(&mut world, "placement:\n  - pin: { at: \"site in [edge, hpc]\", until: run.end }\n");
    assert_eq!(world.carry_out_pushes("edge"), 0);
    assert!(told(&mut world, "hpc").is_empty());
}
