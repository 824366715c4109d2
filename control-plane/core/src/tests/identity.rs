//! Tokens, certificates, revocation.

use std::time::Duration;

use atoll_model::id::{AgentId, TokenId};
use atoll_model::session::Goodbye;

use super::world::World;
use crate::view::{ExecutionState, RunState, SiteState};
use crate::{Rejection, Request, Response};

const TOKEN: TokenId = TokenId::from_bits(1);

fn world_with_token() -> World {
    let mut world = World::new();
    let lifetime = Duration::from_secs(60);
    let site = "edge".parse().unwrap();
    world
        .ask(Request::CreateToken { token: TOKEN, secret_hash: [1; 32], site, labels: Default::default(), lifetime })
        .unwrap();
    world
}

fn enrol(world: &mut World, secret: u8, key: u8, agent: u128) -> Result<Response, Rejection> {
    let agent = AgentId::from_bits(agent);
    world.ask(Request::Enrol { token: TOKEN, secret_hash: [secret; 32], identity_key: [key; 32], agent })
}

fn forbidden(result: Result<Response, Rejection>) -> String {
    match result {
        Err(Rejection::Forbidden(reason)) => reason,
        other => panic!("not forbidden: {other:?}"),
    }
}

#[test]
fn g1_a_token_joins_one_agent_and_its_answer_can_be_repeated_by_the_same_key() {
    let mut world = world_with_token();
    assert_eq!(world.core.sites()[0].state, SiteState::Expected);
    let first = enrol(&mut world, 1, 5, 10).unwrap();
    assert_eq!(enrol(&mut world, 1, 5, 11).unwrap(), first);
    assert!(forbidden(enrol(&mut world, 1, 6, 12)).contains("already used"));
}

#[test]
fn g1_a_tampered_an_unknown_and_an_expired_token_each_say_so() {
    let mut world = world_with_token();
    assert!(forbidden(enrol(&mut world, 2, 5, 10)).contains("damaged"));
    let unknown = Request::Enrol {
        token: TokenId::from_bits(77),
        secret_hash: [1; 32],
        identity_key: [5; 32],
        agent: AgentId::from_bits(10),
    };
    assert!(forbidden(world.ask(unknown)).contains("not known"));
    world.advance(Duration::from_secs(61));
    assert!(forbidden(enrol(&mut world, 1, 5, 10)).contains("expired"));
}

fn recover(world: &mut World, site: &str, join_counter: u64) -> Result<Response, Rejection> {
    let agent = world.agents[site].id;
    let identity_key = key_of(world, site);
    world.ask(Request::RecoverIdentity { agent, identity_key, join_counter })
}

fn key_of(world: &World, site: &str) -> [u8; 32] {
    let agent = world.agents[site].id;
    let key = world.facts.iter().find_map(|fact| match fact {
        crate::Fact::AgentEnrolled { agent: enrolled, identity_key, .. } if *enrolled == agent => Some(*identity_key),
        _ => None,
    });
    key.unwrap()
}

#[test]
fn g2_a_known_key_recovers_a_certificate_a_limited_number_of_times() {
    let mut world = World::with_sites(&["edge"]);
    let day = Duration::from_secs(26 * 3_600);
    for counter in 1..=5 {
        world.advance(day);
        let answer = recover(&mut world, "edge", counter).unwrap();
        assert!(matches!(answer, Response::Certify { join_counter, .. } if join_counter == counter + 1));
    }
    assert!(recover(&mut world, "edge", 5).is_ok(), "an answer that was lost is repeated");
    world.advance(day);
    assert!(forbidden(recover(&mut world, "edge", 6)).contains("used up"));
}

#[test]
fn g2_a_foreign_key_and_a_long_absence_do_not_recover() {
    let mut world = World::with_sites(&["edge"]);
    let agent = world.agents["edge"].id;
    let foreign = Request::RecoverIdentity { agent, identity_key: [99; 32], join_counter: 1 };
    assert!(forbidden(world.ask(foreign)).contains("not that of"));
    world.advance(Duration::from_secs(92 * 24 * 3_600));
    assert!(forbidden(recover(&mut world, "edge", 1)).contains("join again"));
}

#[test]
fn e6_a_counter_of_the_past_shows_a_copied_identity() {
    let mut world = World::with_sites(&["edge"]);
    let agent = world.agents["edge"].id;
    world.ask(Request::RenewCertificate { agent, join_counter: 1 }).unwrap();
    world.advance(Duration::from_secs(12 * 3_600));
    let copy = world.ask(Request::RenewCertificate { agent, join_counter: 1 });
    assert!(forbidden(copy).contains("two agents"));
    assert_eq!(world.core.sites()[0].state, SiteState::Quarantined);
    assert!(world.ask(Request::RenewCertificate { agent, join_counter: 2 }).is_err());
}

#[test]
fn g3_a_revoked_site_is_cut_off_and_its_work_goes_elsewhere() {
    let mut world = World::with_sites(&["edge"]);
    world.submit("workflow: w\nsteps:\n  a: { run: x }\n");
    let a = world.dispatched_one("edge");
    world.add_site("hpc");
    world.ask(Request::RevokeSite { site: "edge".parse().unwrap(), reason: "stolen".to_owned() }).unwrap();
    world.receive("edge");
    let agent = &world.agents["edge"];
    assert!(matches!(&agent.goodbye, Some(Goodbye::Revoked { reason }) if reason == "stolen"));
    assert!(world.closed.contains(&agent.connection));
    let id = agent.id;
    assert_eq!(world.dispatched_one("hpc").1.0, 2);
    world.hello("edge");
    assert!(matches!(world.agents["edge"].goodbye, Some(Goodbye::Revoked { .. })));
    assert!(forbidden(world.ask(Request::RenewCertificate { agent: id, join_counter: 1 })).contains("stolen"));
    let object = super::world::object(1, 1).id;
    assert!(forbidden(world.ask(Request::AuthoriseFetch { agent: id, object })).contains("stolen"));
    assert_eq!(world.state_of(a.0), ExecutionState::Dispatched);
    world.ask(Request::RemoveSite { site: "edge".parse().unwrap() }).unwrap();
    assert_eq!(world.core.sites().len(), 1);
}

#[test]
fn g3_what_a_revoked_site_may_have_run_is_decided_on_after_the_site_was_removed() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit("workflow: w\nsteps:\n  a: { run: x, start: at-most-once }\n");
    let a = world.dispatched_one("edge");
    world.start("edge", a);
    let site: atoll_model::id::SiteName = "edge".parse().unwrap();
    world.ask(Request::RevokeSite { site: site.clone(), reason: "stolen".to_owned() }).unwrap();
    world.ask(Request::RemoveSite { site }).unwrap();
    assert_eq!(world.state_of(a.0), ExecutionState::Unknown);
    world.ask(Request::ResolveUnknown { execution: a.0, run_again: false }).unwrap();
    assert_eq!(world.state(run), RunState::Failed);
}

#[test]
fn g3_a_token_that_was_redeemed_for_a_site_is_no_good_when_the_site_is_revoked() {
    let mut world = World::new();
    let (token, unused) = (TokenId::from_bits(1), TokenId::from_bits(2));
    let site: atoll_model::id::SiteName = "edge".parse().unwrap();
    for token in [token, unused] {
        let lifetime = Duration::from_secs(3_600);
        let (labels, site) = (Default::default(), site.clone());
        world.ask(Request::CreateToken { token, secret_hash: [7; 32], site, labels, lifetime }).unwrap();
    }
    let redeem = |token, agent| Request::Enrol {
        token,
        secret_hash: [7; 32],
        identity_key: [9; 32],
        agent: AgentId::from_bits(agent),
    };
    world.ask(redeem(token, 1)).unwrap();
    assert!(world.ask(redeem(token, 2)).is_ok(), "the answer was lost");
    world.ask(Request::RevokeSite { site, reason: "stolen".to_owned() }).unwrap();
    assert!(forbidden(world.ask(redeem(token, 3))).contains("stolen"));
    assert!(forbidden(world.ask(redeem(unused, 4))).contains("stolen"));
}

#[test]
fn a_drained_site_gets_nothing_new() {
    let mut world = World::with_sites(&["edge"]);
    world.ask(Request::DrainSite { site: "edge".parse().unwrap(), drained: true }).unwrap();
    world.submit("workflow: w\nsteps:\n  a: { run: x }\n");
    assert!(world.dispatched("edge").is_empty());
    world.ask(Request::DrainSite { site: "edge".parse().unwrap(), drained: false }).unwrap();
    world.dispatched_one("edge");
}

#[test]
fn a_new_agent_takes_its_site_over() {
    let mut world = World::with_sites(&["edge"]);
    world.submit("workflow: w\nsteps:\n  a: { run: x }\n");
    world.dispatched_one("edge");
    let before = world.agents["edge"].id;
    world.join("edge", &[]);
    world.connect("edge");
    assert_eq!(world.dispatched_one("edge").1.0, 2);
    assert!(forbidden(world.ask(Request::RenewCertificate { agent: before, join_counter: 1 })).contains("any more"));
}
