//! What rules let go of when its time is over.

use std::time::Duration;

use atoll_model::id::{JournalId, RunId};
use atoll_model::session::{Report, SiteCommand};
use atoll_model::value::ObjectRef;

use super::claims::{HOUR, NOTHING, ONE, REMEMBERED, SITES, encoded, forget, made_by, under, world};
use super::eviction::{propose, replicas};
use super::policies::apply;
use super::world::{World, file, object};
use crate::event::PinPlace;
use crate::state::Snapshot;
use crate::view::{ExpiryState, ObjectFilter, RunState};
use crate::{ControlPlane, Rejection, Request, Response};

const EXPIRE: &str = "expire: { after: 2h }";
const ASK: &str = "expire: { after: 2h, then: ask }";
const NOT_SAID: &str = "edge: it was let go, and the site has not said that it has";
/// Before a site is asked again.
const AGAIN: Duration = Duration::from_secs(600);

/// What the site was asked to let go of, because its time is over.
fn asked(world: &mut World, site: &str) -> Vec<ObjectRef> {
    let of_command = |command: SiteCommand| match command {
        SiteCommand::ProposeEviction { objects } => objects,
        _ => Vec::new(),
    };
    let mut asked: Vec<_> = world.commands(site).into_iter().flat_map(of_command).collect();
    // Without an answer it is asked again.
    asked.dedup();
    asked
}

/// The site is asked for the object, and lets it go.
fn goes_from(world: &mut World, site: &str, object: ObjectRef) {
    assert_eq!(asked(world, site), [object], "{site}");
    assert_eq!(propose(world, site, &[object]).0, [object], "{site}");
    world.report(site, vec![Report::Evicted { gone: vec![object], kept: Vec::new() }]);
}

fn stays(world: &mut World, site: &str) {
    assert_eq!(asked(world, site), [], "{site}");
}

/// A world that remembers its runs for a week, and one of them whose output, object 1, is at both sites.
fn remembered(rule: &str) -> (World, RunId, ObjectRef) {
    let mut world = World::with_sites(&SITES);
    apply(&mut world, &format!("placement:\n  - {rule}\n"));
    let shown = format!("{ONE}outputs: {{ f: \"${{{{ steps.make.outputs.f }}}}\" }}\n");
    let (run, one) = made_by(&mut world, &shown);
    (world, run, one)
}

fn state(world: &World) -> (ExpiryState, Vec<String>) {
    let expiry = world.core.object(object(1, 0).id).unwrap().expiry.unwrap();
    (expiry.state, expiry.waits_for)
}

fn pin(world: &mut World, at: PinPlace) {
    world.ask(Request::PinObject { object: object(1, 0).id, at, by: "ada".to_owned() }).unwrap();
}

fn let_go(world: &mut World) -> Result<Response, Rejection> {
    world.ask(Request::LetExpiredGo { object: object(1, 0).id })
}

#[test]
fn what_has_expired_goes_from_all_sites_although_it_is_an_output_of_a_run_that_is_remembered() {
    let (mut world, run, one) = remembered(EXPIRE);
    world.advance_with(HOUR * 2 - REMEMBERED, &SITES);
    SITES.iter().for_each(|site| stays(&mut world, site));
    assert_eq!(state(&world).0, ExpiryState::Pending);
    world.advance_with(REMEMBERED, &SITES);
    SITES.iter().for_each(|site| goes_from(&mut world, site, one));
    assert!(replicas(&world, 1).is_empty());
    assert_eq!(world.state(run), RunState::Succeeded);
    world.advance_with(AGAIN * 3, &SITES);
    SITES.iter().for_each(|site| stays(&mut world, site));
}

#[test]
fn what_expires_when_its_run_is_forgotten_goes_and_is_known_no_more() {
    let (mut world, run, one) = under(EXPIRE);
    forget(&mut world, run);
    world.restart();
    SITES.iter().for_each(|site| world.connect(site));
    world.advance_with(HOUR, &SITES);
    SITES.iter().for_each(|site| stays(&mut world, site));
    world.advance_with(HOUR, &SITES);
    SITES.iter().for_each(|site| goes_from(&mut world, site, one));
    assert!(world.core.object(one.id).is_some(), "a site may have used it meanwhile");
    world.advance_with(AGAIN * 3, &SITES);
    assert!(world.core.object(one.id).is_none());
}

#[test]
fn what_was_due_when_the_server_was_away_goes_when_it_is_back() {
    for is_forgotten in [false, true] {
        let (mut world, run, one) = if is_forgotten { under(EXPIRE) } else { remembered(EXPIRE) };
        if is_forgotten {
            forget(&mut world, run);
        }
        let snapshot: Snapshot = postcard::from_bytes(&encoded(&world)).unwrap();
        world.now = world.now + HOUR * 3;
        world.core = ControlPlane::recover(world.config.clone(), Some(snapshot), [], world.now);
        SITES.iter().for_each(|site| world.connect(site));
        world.advance(Duration::from_secs(1));
        SITES.iter().for_each(|site| goes_from(&mut world, site, one));
    }
}

#[test]
fn a_site_that_is_away_is_asked_when_it_is_back() {
    let (mut world, run, one) = under(EXPIRE);
    forget(&mut world, run);
    world.disconnect("edge");
    world.advance_with(HOUR * 3, &["hpc"]);
    goes_from(&mut world, "hpc", one);
    world.advance_with(HOUR * 24, &["hpc"]);
    assert_eq!(state(&world), (ExpiryState::Going, vec!["edge: it is away".to_owned()]));
    world.connect("edge");
    goes_from(&mut world, "edge", one);
}

/// An object that nobody remembers a run of is gone from one site, and the other, which was asked, may let it go.
fn about_to_go() -> (World, ObjectRef) {
    let (mut world, run, one) = under(EXPIRE);
    forget(&mut world, run);
    world.advance_with(HOUR * 2, &SITES);
    goes_from(&mut world, "hpc", one);
    assert_eq!(asked(&mut world, "edge"), [one]);
    assert_eq!(propose(&mut world, "edge", &[one]).0, [one]);
    assert!(replicas(&world, 1).is_empty());
    (world, one)
}

#[test]
fn what_a_site_was_about_to_let_go_when_it_went_away_and_has_kept_goes_when_it_is_back() {
    // With its answer it may be late, whatever becomes of the control plane meanwhile.
    for (goes_away, restarts) in [(true, false), (true, true), (false, true), (false, false)] {
        let (mut world, one) = about_to_go();
        if restarts {
            world.restart();
            world.connect("hpc");
        }
        if goes_away {
            world.disconnect("edge");
            world.advance_with(AGAIN * 6, &["hpc"]);
            assert_eq!(state(&world), (ExpiryState::Going, vec![NOT_SAID.to_owned()]));
            world.connect("edge");
        } else {
            if restarts {
                world.connect("edge");
            }
            world.advance_with(AGAIN * 6, &SITES);
        }
        world.report("edge", vec![Report::Evicted { gone: Vec::new(), kept: vec![one] }]);
        world.advance_with(AGAIN, &SITES);
        goes_from(&mut world, "edge", one);
        world.advance_with(AGAIN * 3, &SITES);
        assert!(world.core.object(one.id).is_none());
    }
}

#[test]
fn what_a_site_has_kept_goes_although_its_run_was_forgotten_meanwhile() {
    let (mut world, run, one) = under("expire: { after: 1m }");
    world.advance_with(Duration::from_secs(120), &SITES);
    goes_from(&mut world, "hpc", one);
    assert_eq!(asked(&mut world, "edge"), [one]);
    assert_eq!(propose(&mut world, "edge", &[one]).0, [one]);
    world.disconnect("edge");
    world.advance_with(REMEMBERED * 2, &["hpc"]);
    assert!(world.core.run(run).is_none());
    world.connect("edge");
    world.report("edge", vec![Report::Evicted { gone: Vec::new(), kept: vec![one] }]);
    world.advance_with(AGAIN, &SITES);
    goes_from(&mut world, "edge", one);
}

#[test]
fn what_a_lost_journal_was_to_let_go_is_waited_for_no_longer() {
    let (mut world, one) = about_to_go();
    world.disconnect("edge");
    let agent = world.agents.get_mut("edge").unwrap();
    (agent.journal, agent.last_command) = (JournalId::from_bits(999), Default::default());
    (agent.acknowledged_report, agent.last_report) = Default::default();
    agent.kept.clear();
    world.connect("edge");
    world.advance_with(AGAIN * 3, &SITES);
    assert!(world.core.object(one.id).is_none());
}

#[test]
fn an_agent_that_forgot_what_it_was_asked_is_asked_again() {
    let (mut world, _, one) = remembered(EXPIRE);
    world.advance_with(HOUR * 2, &SITES);
    assert_eq!(asked(&mut world, "edge"), [one]);
    goes_from(&mut world, "hpc", one);
    world.disconnect("edge");
    world.connect("edge");
    goes_from(&mut world, "edge", one);
}

#[test]
fn what_a_site_has_used_meanwhile_is_asked_for_again_later_and_not_at_once() {
    let (mut world, one) = about_to_go();
    world.report("edge", vec![Report::Evicted { gone: Vec::new(), kept: vec![one] }]);
    stays(&mut world, "edge");
    assert_eq!(replicas(&world, 1), ["edge"]);
    world.advance_with(AGAIN * 2, &SITES);
    goes_from(&mut world, "edge", one);
}

#[test]
fn a_site_is_asked_for_more_when_it_has_answered() {
    let (mut world, _, one) = remembered(EXPIRE);
    let (two, shortly) = (object(2, 2_000), Duration::from_secs(120));
    world.advance_with(shortly, &SITES);
    world.submit(ONE);
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(2, 2_000)]);
    world.advance_with(HOUR * 2, &SITES);
    assert_eq!(asked(&mut world, "edge"), [one], "an agent has one question in mind, and has not answered it");
    assert_eq!(propose(&mut world, "edge", &[one]).0, [one]);
    stays(&mut world, "edge");
    world.report("edge", vec![Report::Evicted { gone: vec![one], kept: Vec::new() }]);
    goes_from(&mut world, "edge", two);
}

#[test]
fn what_somebody_has_pinned_stays_until_it_is_not_pinned_any_more() {
    let (mut world, run, one) = under(EXPIRE);
    pin(&mut world, PinPlace::Site("edge".parse().unwrap()));
    forget(&mut world, run);
    world.advance_with(HOUR * 3, &SITES);
    stays(&mut world, "edge");
    goes_from(&mut world, "hpc", one);
    assert_eq!(state(&world).1, ["edge: ada has pinned it there"]);
    let at = PinPlace::Site("edge".parse().unwrap());
    world.ask(Request::UnpinObject { object: one.id, at }).unwrap();
    goes_from(&mut world, "edge", one);
}

#[test]
fn a_hold_wins_over_the_end_of_its_time_until_it_is_lifted() {
    let (mut world, _, one) = remembered("expire: { after: 2h }\n  - hold: { reason: audit }");
    world.advance_with(HOUR * 3, &SITES);
    SITES.iter().for_each(|site| stays(&mut world, site));
    apply(&mut world, &format!("placement:\n  - {EXPIRE}\n"));
    world.advance_with(Duration::from_secs(15), &SITES);
    SITES.iter().for_each(|site| goes_from(&mut world, site, one));
}

#[test]
fn a_hold_that_comes_when_the_run_is_forgotten_holds_what_it_may_be_about() {
    let (mut world, run, one) = under("match: { workflow: w }\n    expire: { after: 2h }");
    forget(&mut world, run);
    let expires = "placement:\n  - match: { workflow: w }\n    expire: { after: 2h }\n";
    apply(&mut world, &format!("{expires}  - match: {{ step: make }}\n    hold: {{ reason: audit }}\n"));
    world.advance_with(HOUR * 3, &SITES);
    SITES.iter().for_each(|site| stays(&mut world, site));
    assert_eq!(state(&world), (ExpiryState::Held, vec!["eu.yaml:4 of the policy of its project holds it".to_owned()]));
    apply(&mut world, &format!("{expires}  - match: {{ workflow: other }}\n    hold: {{ reason: audit }}\n"));
    SITES.iter().for_each(|site| goes_from(&mut world, site, one));
}

#[test]
fn what_was_held_when_its_run_was_forgotten_goes_when_the_hold_is_lifted() {
    let (mut world, run, one) = under(&format!("{EXPIRE}\n  - hold: {{ reason: audit }}"));
    forget(&mut world, run);
    world.advance_with(HOUR * 3, &SITES);
    world.restart();
    SITES.iter().for_each(|site| world.connect(site));
    world.advance_with(HOUR, &SITES);
    SITES.iter().for_each(|site| stays(&mut world, site));
    assert_eq!(state(&world).0, ExpiryState::Held);
    apply(&mut world, &format!("placement:\n  - {EXPIRE}\n"));
    SITES.iter().for_each(|site| goes_from(&mut world, site, one));
    world.advance_with(AGAIN * 3, &SITES);
    assert!(world.core.object(one.id).is_none());
}

#[test]
fn what_its_workflow_holds_never_goes_as_expired() {
    let mut world = world();
    let (run, one) = made_by(&mut world, &format!("{ONE}placement:\n  - {EXPIRE}\n  - hold: {{ reason: audit }}\n"));
    forget(&mut world, run);
    world.advance_with(HOUR * 3, &SITES);
    SITES.iter().for_each(|site| stays(&mut world, site));
    assert_eq!(world.core.object(one.id).unwrap().expiry, None);
}

#[test]
fn a_hold_that_was_not_about_it_when_its_run_was_forgotten_does_not_stop_it_unless_it_came_anew() {
    const OTHER: &str = "  - match: { step: other }\n    hold: { reason: audit }\n";
    let (expires, nothing) = (format!("  - {EXPIRE}\n"), "  - push: when-needed\n");
    for (is_of_workflow, comes_anew) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut world = world();
        let (of_project, of_workflow) =
            if is_of_workflow { (nothing, format!("placement:\n{expires}")) } else { (&*expires, String::new()) };
        apply(&mut world, &format!("placement:\n{of_project}{OTHER}"));
        let (run, one) = made_by(&mut world, &format!("{ONE}{of_workflow}"));
        forget(&mut world, run);
        if comes_anew {
            apply(&mut world, &format!("placement:\n{of_project}"));
        }
        apply(&mut world, &format!("placement:\n{of_project}{OTHER}{nothing}"));
        world.advance_with(HOUR * 3, &SITES);
        for site in SITES {
            if comes_anew { stays(&mut world, site) } else { goes_from(&mut world, site, one) }
        }
    }
}

#[test]
fn what_rules_keep_for_longer_stays_there_for_so_long() {
    for is_forgotten in [false, true] {
        let rule = "expire: { after: 2h }\n    keep: { for: 4h after run.end }";
        let (mut world, run, one) = if is_forgotten { under(rule) } else { remembered(rule) };
        if is_forgotten {
            forget(&mut world, run);
        }
        world.advance_with(HOUR * 3, &SITES);
        stays(&mut world, "edge");
        goes_from(&mut world, "hpc", one);
        world.advance_with(HOUR + AGAIN, &SITES);
        goes_from(&mut world, "edge", one);
    }
}

#[test]
fn what_a_live_run_reads_stays_until_that_has_ended() {
    let mut world = World::with_sites(&SITES);
    apply(&mut world, &format!("placement:\n  - match: {{ workflow: w }}\n    {EXPIRE}\n"));
    let (_, one) = made_by(&mut world, ONE);
    let source = ONE.replace("workflow: w", "workflow: other")
        + "  use: { run: x, foreach: \"${{ range(1) }}\", site: edge, with: { f: \"${{ steps.make.outputs.f }}\" } }\n";
    world.submit(&source);
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000)]);
    let reader = world.dispatched_one("edge");
    world.advance_with(HOUR * 3, &SITES);
    stays(&mut world, "edge");
    goes_from(&mut world, "hpc", one);
    assert!(state(&world).1[0].contains("reads it there"), "{:?}", state(&world));
    world.succeed("edge", reader, Vec::new());
    goes_from(&mut world, "edge", one);
}

#[test]
fn of_several_runs_the_one_that_ends_last_says_when_its_time_is_over() {
    for is_forgotten in [false, true] {
        let (mut world, run, one) = if is_forgotten { under(EXPIRE) } else { remembered(EXPIRE) };
        if is_forgotten {
            forget(&mut world, run);
        }
        world.advance_with(HOUR, &SITES);
        let (second, _) = made_by(&mut world, ONE);
        if is_forgotten {
            forget(&mut world, second);
        }
        world.advance_with(HOUR + AGAIN, &SITES);
        SITES.iter().for_each(|site| stays(&mut world, site));
        world.advance_with(HOUR, &SITES);
        SITES.iter().for_each(|site| goes_from(&mut world, site, one));
    }
}

#[test]
fn a_rule_that_is_lifted_lets_nothing_go() {
    let (mut world, _, one) = remembered(EXPIRE);
    apply(&mut world, NOTHING);
    world.advance_with(HOUR * 3, &SITES);
    SITES.iter().for_each(|site| stays(&mut world, site));
    let (granted, why) = propose(&mut world, "edge", &[one]);
    assert_eq!((granted, why), (vec![one], None), "one of two may always go");
    assert!(propose(&mut world, "hpc", &[one]).1.unwrap().contains("it is an output of"));

    let (mut world, run, one) = under(EXPIRE);
    forget(&mut world, run);
    apply(&mut world, NOTHING);
    assert!(world.core.object(one.id).is_none(), "nothing is known of what nothing is said of");
    world.advance_with(HOUR * 3, &SITES);
    SITES.iter().for_each(|site| stays(&mut world, site));
}

#[test]
fn what_a_workflow_says_of_the_time_of_its_outputs_holds_whatever_its_project_says_later() {
    let mut world = world();
    let (run, one) = made_by(&mut world, &format!("{ONE}placement:\n  - {EXPIRE}\n"));
    forget(&mut world, run);
    apply(&mut world, NOTHING);
    world.advance_with(HOUR * 2, &SITES);
    SITES.iter().for_each(|site| goes_from(&mut world, site, one));
    world.advance_with(AGAIN * 3, &SITES);
    assert!(world.core.object(one.id).is_none());
}

#[test]
fn what_has_expired_goes_from_the_bucket_and_is_copied_nowhere_any_more() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    apply(&mut world, "placement:\n  - push: on-success\n    replicate: { copies: 2 }\n    expire: { after: 2h }\n");
    let run = world.submit(ONE);
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000)]);
    assert_eq!(world.carry_out_pushes("edge"), 1);
    let (one, at) = (object(1, 1_000), world.now);
    let fetched = Report::Fetched { object: one, wire_bytes: 1_000, direct: None, execution: make.0, at };
    world.report("hpc", vec![fetched, Report::ReplicaEnded { object: one, failure: None }]);
    world.commands("hpc");
    assert_eq!((world.carry_out_deletes().len(), replicas(&world, 1).len()), (0, 3));
    world.advance_with(HOUR * 2, &SITES);
    assert_eq!(world.carry_out_deletes(), [one.id]);
    SITES.iter().for_each(|site| goes_from(&mut world, site, one));
    world.advance_with(HOUR, &SITES);
    assert_eq!((world.carry_out_pushes("edge"), replicas(&world, 1)), (0, Vec::new()));
    assert!(world.commands("hpc").is_empty());
    assert_eq!(world.core.object(one.id).unwrap().copies, Vec::<String>::new());
    assert_eq!(world.state(run), RunState::Succeeded);
}

#[test]
fn somebody_is_asked_where_a_rule_says_so_and_what_he_lets_go_goes() {
    for is_forgotten in [false, true] {
        let (mut world, run, one) = if is_forgotten { under(ASK) } else { remembered(ASK) };
        if is_forgotten {
            forget(&mut world, run);
        }
        let early = let_go(&mut world).unwrap_err();
        assert!(matches!(&early, Rejection::Conflict(why) if why.contains("is over at")), "{early:?}");
        world.advance_with(HOUR * 3, &SITES);
        SITES.iter().for_each(|site| stays(&mut world, site));
        assert_eq!((state(&world).0, world.core.counters().objects_asking), (ExpiryState::Asking, 1));
        let expired = world.core.objects(&ObjectFilter { expired: true, limit: 10, ..ObjectFilter::default() });
        assert_eq!(expired.iter().map(|row| row.object).collect::<Vec<_>>(), [one]);
        let_go(&mut world).unwrap();
        goes_from(&mut world, "hpc", one);
        world.restart();
        SITES.iter().for_each(|site| world.connect(site));
        world.advance(Duration::from_secs(1));
        goes_from(&mut world, "edge", one);
    }
}

#[test]
fn a_decision_is_about_what_had_expired_by_then() {
    let (mut world, _, one) = remembered(ASK);
    world.advance_with(HOUR * 2, &SITES);
    let_go(&mut world).unwrap();
    SITES.iter().for_each(|site| goes_from(&mut world, site, one));
    made_by(&mut world, ONE);
    world.advance_with(HOUR * 3, &SITES);
    SITES.iter().for_each(|site| stays(&mut world, site));
    assert_eq!(state(&world).0, ExpiryState::Asking);
}

#[test]
fn what_no_rule_lets_go_or_one_holds_cannot_be_let_go_as_expired() {
    let (mut world, _, _) = remembered("push: when-needed");
    let refused = let_go(&mut world).unwrap_err();
    assert!(matches!(&refused, Rejection::Conflict(why) if why.contains("no rule says")), "{refused:?}");
    let (mut world, run, _) = under(ASK);
    forget(&mut world, run);
    apply(&mut world, &format!("placement:\n  - {ASK}\n  - hold: {{ reason: audit }}\n"));
    world.advance_with(HOUR * 3, &SITES);
    let refused = let_go(&mut world).unwrap_err();
    assert!(matches!(&refused, Rejection::Conflict(why) if why.contains("holds b3:")), "{refused:?}");
}
