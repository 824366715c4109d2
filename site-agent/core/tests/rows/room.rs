//! Making room: what is proposed, what goes, what stays.

use std::time::Duration;

use atoll_model::policy::SitePolicy;
use atoll_model::resources::Capacity;
use atoll_model::session::{AgentBody, Heartbeat, Report, SiteCommand};
use atoll_model::value::ObjectRef;
use site_agent_core::event::ExitKind;
use site_agent_core::{Command, Config, Event, Snapshot};

use crate::harness::*;

/// One whose administrator gives 1,000 bytes of disk.
fn small() -> Site {
    let policy =
        SitePolicy { file: "policy.yaml".to_owned(), disk: Some((1_000, Default::default())), ..Default::default() };
    let mut site = Site::with(Config { policy, ..config() });
    site.connect();
    site
}

fn measure(site: &mut Site, store_bytes: u64) {
    let capacity = Capacity { disk_free_bytes: 1 << 40, ..config().capacity };
    site.event(Event::Measured { heartbeat: Heartbeat { store_bytes, capacity, ..Heartbeat::default() } });
}

fn looks(site: &Site) -> Vec<u64> {
    let look = |command: &Command| match command {
        Command::FindEvictable { bytes, .. } => Some(*bytes),
        _ => None,
    };
    site.commands.iter().filter_map(look).collect()
}

fn evictions(site: &Site) -> Vec<Vec<ObjectRef>> {
    let evict = |command: &Command| match command {
        Command::Evict { objects, .. } => Some(objects.clone()),
        _ => None,
    };
    site.commands.iter().filter_map(evict).collect()
}

fn proposals(site: &mut Site) -> Vec<(u64, Vec<ObjectRef>)> {
    let proposal = |(_, report)| match report {
        Report::Evictable { proposal, objects } => Some((proposal, objects)),
        _ => None,
    };
    site.reports().into_iter().filter_map(proposal).collect()
}

/// Proposes these and is allowed to let them go; the number of the command that allowed it.
fn allowed(site: &mut Site, objects: &[ObjectRef]) {
    measure(site, 900);
    site.event(Event::EvictableFound { objects: objects.to_vec() });
    let (proposal, _) = proposals(site).pop().unwrap();
    site.command(SiteCommand::Evict { proposal, objects: objects.to_vec(), refused: 0, reason: None });
}

/// The order of the last eviction that the shell was asked for.
fn order(site: &Site) -> atoll_model::id::CommandSeq {
    let order = |command: &Command| match command {
        Command::Evict { order, .. } => Some(*order),
        _ => None,
    };
    site.commands.iter().rev().find_map(order).unwrap()
}

fn ended(site: &mut Site) -> Vec<(Vec<ObjectRef>, Vec<ObjectRef>)> {
    let evicted = |(_, report)| match report {
        Report::Evicted { gone, kept } => Some((gone, kept)),
        _ => None,
    };
    site.reports().into_iter().filter_map(evicted).collect()
}

fn last_heartbeat(site: &Site) -> Heartbeat {
    let heartbeat = |frame: &&atoll_model::session::AgentFrame| match &frame.body {
        AgentBody::Heartbeat(heartbeat) => Some(heartbeat.clone()),
        _ => None,
    };
    site.sent().iter().rev().find_map(heartbeat).unwrap()
}

#[test]
fn room_is_made_when_it_is_short_and_only_after_it_was_allowed() {
    let mut site = small();
    measure(&mut site, 850);
    assert!(looks(&site).is_empty(), "there is room");
    measure(&mut site, 900);
    measure(&mut site, 900);
    assert_eq!(looks(&site), [150], "down to three quarters, and once");
    site.event(Event::EvictableFound { objects: vec![object(5), object(6)] });
    assert_eq!(proposals(&mut site).len(), 1);
    assert!(evictions(&site).is_empty(), "nothing goes unasked");
    let (proposal, _) = proposals(&mut site).pop().unwrap();
    site.command(SiteCommand::Evict { proposal, objects: vec![object(6)], refused: 1, reason: Some("no".to_owned()) });
    assert_eq!(evictions(&site), [vec![object(6)]]);
    let order = order(&site);
    site.event(Event::Evicted { order, gone: vec![object(6)], kept: Vec::new() });
    assert_eq!(ended(&mut site), [(vec![object(6)], Vec::new())]);
    measure(&mut site, 900);
    assert_eq!(looks(&site).len(), 2, "and again, where it was not enough");
}

#[test]
fn a_store_that_may_let_nothing_go_says_so_and_is_open_again_when_it_is_smaller() {
    let mut site = small();
    measure(&mut site, 1_000);
    site.event(Event::EvictableFound { objects: vec![object(5)] });
    let (proposal, _) = proposals(&mut site).pop().unwrap();
    let reason = Some("it is pinned".to_owned());
    site.command(SiteCommand::Evict { proposal, objects: Vec::new(), refused: 1, reason });
    measure(&mut site, 1_001);
    let closed = last_heartbeat(&site).closed.unwrap();
    assert!(closed.contains("policy.yaml") && closed.contains("nothing of it may go: it is pinned"), "{closed}");
    assert_eq!(looks(&site).len(), 1, "it does not ask again at once");
    for _ in 0..3 {
        site.pass(Duration::from_secs(21));
        site.grant();
    }
    measure(&mut site, 1_001);
    assert_eq!(looks(&site).len(), 2);
    measure(&mut site, 500);
    assert_eq!(last_heartbeat(&site).closed, None);
}

#[test]
fn what_something_accepted_reads_is_not_proposed_and_does_not_go() {
    let mut site = small();
    site.prepare(&template(0));
    site.command(SiteCommand::Dispatch(reader(0, 0, 5)));
    site.event(Event::Located { object: object(5), present: true });
    measure(&mut site, 900);
    site.event(Event::EvictableFound { objects: vec![object(5), object(6), object(7)] });
    let (proposal, objects) = proposals(&mut site).pop().unwrap();
    assert_eq!(objects, [object(6), object(7)]);
    // One that came after the proposal, and before the answer.
    site.command(SiteCommand::Dispatch(reader(0, 1, 6)));
    site.command(SiteCommand::Evict { proposal, objects, refused: 0, reason: None });
    assert_eq!(evictions(&site), [vec![object(7)]]);
    let order = order(&site);
    site.event(Event::Evicted { order, gone: vec![object(7)], kept: Vec::new() });
    assert_eq!(ended(&mut site), [(vec![object(7)], vec![object(6)])]);
}

#[test]
fn what_may_be_about_to_go_is_looked_for_when_that_is_settled() {
    let mut site = small();
    site.prepare(&template(0));
    allowed(&mut site, &[object(5)]);
    site.command(SiteCommand::Dispatch(reader(0, 0, 5)));
    let located = |site: &Site| site.has(|command| matches!(command, Command::Locate { .. }));
    assert!(!located(&site), "it may be there now and gone in a moment");
    let order = order(&site);
    site.event(Event::Evicted { order, gone: vec![object(5)], kept: Vec::new() });
    assert!(located(&site));
    site.event(Event::Located { object: object(5), present: false });
    assert!(site.has(|command| matches!(command, Command::Fetch { .. })));
}

#[test]
fn what_was_stored_anew_while_it_was_about_to_go_counts_as_there() {
    let mut site = small();
    site.prepare(&with_output(1));
    site.dispatch(1, 0..1);
    allowed(&mut site, &[object(5)]);
    site.exit(exec(1, 0), ExitKind::Code(0));
    site.store(exec(1, 0), vec![file(5)]);
    let order = order(&site);
    site.event(Event::Evicted { order, gone: vec![object(5)], kept: Vec::new() });
    assert_eq!(ended(&mut site), [(Vec::new(), vec![object(5)])]);
}

#[test]
fn a15_killed_after_it_was_allowed_the_next_process_says_what_is_gone_and_lets_nothing_more_go() {
    let mut site = small();
    allowed(&mut site, &[object(5), object(6)]);
    site.restart(Vec::new());
    // Asked again, a store that was opened anew lets nothing go; one of them had gone before.
    assert_eq!(evictions(&site), [vec![object(5), object(6)]]);
    let order = order(&site);
    site.event(Event::Evicted { order, gone: vec![object(5)], kept: vec![object(6)] });
    site.event(Event::Evicted { order, gone: vec![object(5)], kept: vec![object(6)] });
    site.connect();
    assert_eq!(ended(&mut site), [(vec![object(5)], vec![object(6)])], "told once");
}

#[test]
fn a15_an_answer_to_a_proposal_of_an_earlier_process_lets_nothing_go() {
    let mut site = small();
    measure(&mut site, 900);
    site.event(Event::EvictableFound { objects: vec![object(5)] });
    let (old, _) = proposals(&mut site).pop().unwrap();
    site.restart(Vec::new());
    site.connect();
    measure(&mut site, 900);
    site.event(Event::EvictableFound { objects: vec![object(5)] });
    site.command(SiteCommand::Evict { proposal: old, objects: vec![object(5)], refused: 0, reason: None });
    assert!(evictions(&site).is_empty());
    assert_eq!(ended(&mut site), [(Vec::new(), vec![object(5)])]);
}

#[test]
fn what_was_named_to_go_and_is_too_much_for_one_question_is_asked_for_in_several() {
    let mut site = Site::connected();
    let (tree, part) = (object(5), |number: u64| ObjectRef { bytes: number, ..object(6) });
    site.command(SiteCommand::ProposeEviction { objects: vec![tree] });
    let found: Vec<ObjectRef> = std::iter::once(tree).chain((0..5_000).map(part)).collect();
    let mut left = found.clone();
    while !left.is_empty() {
        site.event(Event::EvictableFound { objects: left.clone() });
        let (proposal, objects) = proposals(&mut site).pop().unwrap();
        assert!(objects.len() <= 2_048 && left.starts_with(&objects));
        left.drain(..objects.len());
        site.command(SiteCommand::Evict { proposal, objects: objects.clone(), refused: 0, reason: None });
        let order = order(&site);
        site.event(Event::Evicted { order, gone: objects, kept: Vec::new() });
        let asked = site.commands.iter().rev().find_map(|command| match command {
            Command::FindEvictable { objects: Some(objects), .. } => Some(objects.clone()),
            _ => None,
        });
        assert!(left.is_empty() || asked.as_ref() == Some(&left));
    }
    assert_eq!(ended(&mut site).into_iter().map(|(gone, _)| gone.len()).sum::<usize>(), found.len());
}

#[test]
fn what_is_named_while_something_is_about_to_go_is_looked_for_afterwards() {
    let mut site = small();
    allowed(&mut site, &[object(5)]);
    let looked = looks(&site).len();
    site.command(SiteCommand::ProposeEviction { objects: vec![object(6)] });
    assert_eq!(looks(&site).len(), looked, "the store watches over the objects of one question");
    let order = order(&site);
    site.event(Event::Evicted { order, gone: vec![object(5)], kept: Vec::new() });
    assert_eq!(looks(&site).len(), looked + 1);
    site.command(SiteCommand::ProposeEviction { objects: vec![object(7)] });
    site.event(Event::EvictableFound { objects: vec![object(6)] });
    let (proposal, _) = proposals(&mut site).pop().unwrap();
    site.command(SiteCommand::Evict { proposal, objects: Vec::new(), refused: 1, reason: None });
    let last = |command: &Command| matches!(command, Command::FindEvictable { objects: Some(objects), .. } if *objects == [object(7)]);
    assert!(site.has(last), "one after the other");
}

#[test]
fn what_was_named_and_may_not_go_does_not_keep_room_from_being_made() {
    let mut site = small();
    for _ in 0..8 {
        site.command(SiteCommand::ProposeEviction { objects: vec![object(5)] });
        site.event(Event::EvictableFound { objects: Vec::new() });
    }
    let looked = looks(&site).len();
    measure(&mut site, 900);
    assert_eq!(looks(&site)[looked..], [150]);
}

#[test]
fn a_person_may_ask_for_an_object_to_go_and_for_the_store_to_be_read_again() {
    let mut site = Site::connected();
    site.command(SiteCommand::ProposeEviction { objects: vec![object(5)] });
    assert!(site.has(
        |command| matches!(command, Command::FindEvictable { objects: Some(objects), .. } if *objects == [object(5)])
    ));
    site.event(Event::EvictableFound { objects: vec![object(5)] });
    assert_eq!(proposals(&mut site).len(), 1);
    site.command(SiteCommand::Verify { objects: Vec::new() });
    site.restart(Vec::new());
    let verify = |command: &Command| match command {
        Command::Verify { order, .. } => Some(*order),
        _ => None,
    };
    let order = site.commands.iter().find_map(verify).unwrap();
    site.event(Event::Verified { order, files: 3, bytes: 30, damaged: 0 });
    site.event(Event::Verified { order, files: 3, bytes: 30, damaged: 0 });
    site.connect();
    let told = site.reports().iter().filter(|(_, report)| matches!(report, Report::Verified { files: 3, .. })).count();
    assert_eq!(told, 1);
}

/// A tree, and what it is made of: more than one question is about.
fn tree_of_many() -> (ObjectRef, Vec<ObjectRef>) {
    let part = |number: u64| {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&number.to_be_bytes());
        ObjectRef { id: atoll_model::id::ObjectId::from_digest(digest), ..object(6) }
    };
    (object(5), (0..3_000).map(part).collect())
}

/// What the shell was last asked to look for, by name.
fn looked_for(site: &Site) -> Vec<ObjectRef> {
    let look = |command: &Command| match command {
        Command::FindEvictable { objects: Some(objects), .. } => Some(objects.clone()),
        _ => None,
    };
    let mut objects = site.commands.iter().rev().find_map(look).unwrap_or_default();
    objects.sort_unstable();
    objects
}

/// The shell finds these, and all that is asked about may go; what that is.
fn all_may_go(site: &mut Site, found: &[ObjectRef]) -> Vec<ObjectRef> {
    site.event(Event::EvictableFound { objects: found.to_vec() });
    let (proposal, objects) = proposals(site).pop().unwrap();
    site.command(SiteCommand::Evict { proposal, objects: objects.clone(), refused: 0, reason: None });
    objects
}

#[test]
fn a15_killed_between_two_questions_about_a_tree_the_next_process_goes_on_with_its_parts() {
    let mut site = Site::connected();
    let (tree, parts) = tree_of_many();
    site.command(SiteCommand::ProposeEviction { objects: vec![tree] });
    let found: Vec<ObjectRef> = std::iter::once(tree).chain(parts).collect();
    let asked = all_may_go(&mut site, &found);
    let first = order(&site);
    site.event(Event::Evicted { order: first, gone: asked.clone(), kept: Vec::new() });
    let mut left = found[asked.len()..].to_vec();
    left.sort_unstable();
    site.restart(Vec::new());
    assert_eq!(looked_for(&site), left);
    site.connect();
    // Killed again in the middle of the rest: some are gone, and what is not is asked about anew.
    assert_eq!(all_may_go(&mut site, &left), left);
    site.restart(Vec::new());
    let (gone, kept) = left.split_at(10);
    let second = order(&site);
    site.event(Event::Evicted { order: second, gone: gone.to_vec(), kept: kept.to_vec() });
    site.connect();
    assert_eq!(all_may_go(&mut site, kept), kept);
    let third = order(&site);
    site.event(Event::Evicted { order: third, gone: kept.to_vec(), kept: Vec::new() });
    site.restart(Vec::new());
    assert!(looks(&site).is_empty(), "nothing is left");
}

#[test]
fn a_part_that_stays_is_not_asked_about_by_every_process() {
    let mut site = Site::connected();
    let (tree, parts) = tree_of_many();
    let [refused, used, gone] = [parts[0], parts[1], parts[2]];
    site.command(SiteCommand::ProposeEviction { objects: vec![tree] });
    site.event(Event::EvictableFound { objects: vec![tree, refused, used, gone] });
    let (proposal, _) = proposals(&mut site).pop().unwrap();
    let reason = Some("it is pinned".to_owned());
    site.command(SiteCommand::Evict { proposal, objects: vec![tree, used, gone], refused: 1, reason });
    let order = order(&site);
    site.event(Event::Evicted { order, gone: vec![tree, gone], kept: vec![used] });
    site.restart(Vec::new());
    assert!(looks(&site).is_empty());
}

#[test]
fn a_snapshot_of_before_there_were_parts_is_read() {
    let mut encoded = postcard::to_stdvec(&Snapshot::default()).unwrap();
    assert_eq!([encoded.pop(), encoded.pop()], [Some(0); 2]);
    Snapshot::upgrade(1, &mut encoded);
    assert_eq!(postcard::from_bytes::<Snapshot>(&encoded).unwrap(), Snapshot::default());
}
