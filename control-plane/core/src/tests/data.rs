//! Objects: what crosses a border, when, and what stays.

use std::time::Duration;

use atoll_model::id::Attempt;
use atoll_model::session::{PushFailure, Report, SiteCommand};
use atoll_model::value::{ObjectKind, ObjectRef, Value};

use super::world::{World, execution, file, object};
use crate::view::{ExecutionState, LedgerFilter, RunState};
use crate::{BucketCopy, Event, Rejection, Request, Response};

pub(super) const TWO_SITES: &str = "workflow: w\nsteps:\n  make: { run: x, site: edge, outputs: { f: file, g: file } }\n  use: { run: x, site: hpc, with: { f: \"${{ steps.make.outputs.f }}\" } }\n";

/// A run whose second step waits at `hpc` for object 1, of 1000 bytes, which `edge` has.
pub(super) fn waiting_for_a_push(source: &str) -> (World, atoll_model::id::RunId) {
    let mut world = World::with_sites(&["edge", "hpc"]);
    let run = world.submit(source);
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000), file(2, 2_000)]);
    (world, run)
}

fn plain(object: ObjectRef) -> BucketCopy {
    BucketCopy { object, encryption: None }
}

pub(super) fn fetch(world: &mut World, site: &str, number: u8, bytes: u64, execution: atoll_model::id::ExecutionId) {
    let at = world.now;
    world.report(
        site,
        vec![Report::Fetched { object: object(number, bytes), wire_bytes: bytes, direct: None, execution, at }],
    );
}

#[test]
fn an_object_is_pushed_when_a_reader_is_placed_elsewhere_and_leaves_the_bucket_with_the_last() {
    let (mut world, run) = waiting_for_a_push(TWO_SITES);
    assert_eq!(world.state_of(execution(run, 1, 0)), ExecutionState::Placed);
    assert!(world.dispatched("hpc").is_empty());
    let pushes = world.pushes("edge");
    assert_eq!(pushes.iter().map(|(_, object)| *object).collect::<Vec<_>>(), [object(1, 1_000)]);
    let (transfer, pushed) = pushes[0];
    let at = world.now;
    world.report("edge", vec![Report::Pushed { transfer, object: pushed, wire_bytes: 1_000, at }]);
    let reader = world.dispatched_one("hpc");
    fetch(&mut world, "hpc", 1, 1_000, reader.0);
    assert_eq!(world.objects_in_bucket(), 1);
    world.succeed("hpc", reader, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
    assert_eq!(world.carry_out_deletes(), [pushed.id]);
    assert_eq!(world.objects_in_bucket(), 0);
    let ledger = world.core.ledger(&Default::default());
    let entries: Vec<_> = ledger.iter().map(|entry| (entry.from.as_str(), entry.to.as_str(), entry.bytes)).collect();
    assert_eq!(entries, [("edge", "bucket", 1_000), ("bucket", "hpc", 1_000)]);
    assert!(ledger.iter().all(|entry| entry.rule == "when-needed" && entry.for_execution == Some(reader.0)));
}

#[test]
fn one_push_serves_all_that_wait() {
    let source = "workflow: w\nsteps:\n  make: { run: x, site: edge, outputs: { f: file } }\n  use: { run: x, site: hpc, foreach: \"${{ range(50) }}\", with: { f: \"${{ steps.make.outputs.f }}\" } }\n";
    let mut world = World::with_sites(&["edge", "hpc"]);
    let run = world.submit(source);
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000)]);
    assert_eq!(world.count(run, ExecutionState::Placed), 50);
    assert_eq!(world.carry_out_pushes("edge"), 1);
    let readers = world.dispatched("hpc");
    assert_eq!(readers.len(), 50);
    fetch(&mut world, "hpc", 1, 1_000, readers[0].0);
    readers.into_iter().for_each(|reader| world.succeed("hpc", reader, Vec::new()));
    assert_eq!(world.state(run), RunState::Succeeded);
    assert_eq!(world.core.ledger(&Default::default()).len(), 2);
    world.carry_out_deletes();
    assert_eq!(world.objects_in_bucket(), 0);
}

#[test]
fn files_of_a_fan_out_are_pushed_one_by_one() {
    let source = "workflow: w\nsteps:\n  make: { run: x, site: edge, foreach: [a, b, c], outputs: { f: file } }\n  use: { run: x, site: hpc, foreach: \"${{ steps.make.outputs.f }}\", with: { f: \"${{ item }}\" } }\n";
    let mut world = World::with_sites(&["edge", "hpc"]);
    let run = world.submit(source);
    for (number, make) in (1..).zip(world.dispatched("edge")) {
        world.succeed("edge", make, vec![file(number, 100)]);
    }
    let pushes = world.pushes("edge");
    assert_eq!(pushes.len(), 3);
    let (transfer, pushed) = pushes[1];
    let at = world.now;
    world.report("edge", vec![Report::Pushed { transfer, object: pushed, wire_bytes: 100, at }]);
    assert_eq!(world.dispatched_one("hpc").0, execution(run, 1, 1), "only the one whose file is there");
}

#[test]
fn an_outage_of_the_bucket_is_waited_for_with_its_reason_however_long_it_lasts() {
    let (mut world, run) = waiting_for_a_push(TWO_SITES);
    let refused = |(transfer, object)| Report::PushFailed {
        transfer,
        object,
        reason: PushFailure::Refused,
        message: "no route".to_owned(),
    };
    let shown = |world: &World| world.core.execution(execution(run, 1, 0)).unwrap().waiting_for.unwrap();
    assert_eq!(shown(&world), "its inputs are on their way");
    for times in 1..=12 {
        let push = world.pushes("edge")[0];
        world.report("edge", vec![refused(push)]);
        assert!(world.pushes("edge").is_empty(), "what the last try may have left goes first");
        world.carry_out_looks(false);
        world.carry_out_deletes();
        assert!(world.pushes("edge").is_empty(), "it is not asked again and again without a pause");
        assert!(shown(&world).contains(&format!("(tried {times} times, and again until it can): no route")));
        world.advance_with(Duration::from_secs(301), &["edge", "hpc"]);
    }
    let (transfer, object) = world.pushes("edge")[0];
    world.report("edge", vec![Report::Pushed { transfer, object, wire_bytes: 1_000, at: world.now }]);
    let reader = world.dispatched_one("hpc");
    world.succeed("hpc", reader, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
}

#[test]
fn a_person_who_asks_for_what_the_bucket_refuses_is_told_why() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit("workflow: w\nsteps:\n  make: { run: x, outputs: { f: file } }\n");
    let made = world.dispatched_one("edge");
    world.succeed("edge", made, vec![file(1, 1_000)]);
    let hold = Duration::from_secs(60);
    let request = world.request(Request::StageForClient { run, object: object(1, 1_000), hold, kept: None });
    for _ in 0..5 {
        let (transfer, object) = world.pushes("edge")[0];
        let (reason, message) = (PushFailure::Refused, "no route".to_owned());
        world.report("edge", vec![Report::PushFailed { transfer, object, reason, message }]);
        world.carry_out_looks(false);
        world.carry_out_deletes();
    }
    assert!(matches!(&world.replies[&request], Err(Rejection::Unavailable(reason)) if reason.contains("no route")));
    assert!(world.pushes("edge").is_empty());
}

/// What the ledger has of crossings from a site into the bucket.
pub(super) fn pushed_bytes(world: &World) -> Vec<u64> {
    let entries = world.core.ledger(&LedgerFilter::default());
    entries.iter().filter(|entry| entry.from == "edge").map(|entry| entry.bytes).collect()
}

#[test]
fn a_push_that_came_to_its_end_and_was_not_told_of_is_found_in_the_bucket_once() {
    let (mut world, _) = waiting_for_a_push(TWO_SITES);
    let (transfer, pushed) = world.pushes("edge")[0];
    // The agent was killed before it could record the end; then the push was cancelled, and it cannot tell any more.
    let (reason, message) = (PushFailure::Cancelled, "cancelled".to_owned());
    world.report("edge", vec![Report::PushFailed { transfer, object: pushed, reason, message }]);
    assert!(world.deletes.is_empty(), "what is there is looked at before it is deleted");
    world.advance(Duration::from_secs(61));
    assert_eq!(world.carry_out_looks(true), 1);
    assert_eq!(pushed_bytes(&world), [pushed.bytes]);
    let reader = world.dispatched_one("hpc");
    assert_eq!(world.carry_out_pushes("edge"), 0, "whoever waits reads what is there");
    fetch(&mut world, "hpc", 1, 1_000, reader.0);
    world.succeed("hpc", reader, Vec::new());
    assert_eq!(world.carry_out_deletes(), [pushed.id]);
    assert_eq!(pushed_bytes(&world), [pushed.bytes]);
}

#[test]
fn a_push_that_came_to_nothing_leaves_nothing_in_the_ledger() {
    let (mut world, _) = waiting_for_a_push(TWO_SITES);
    let (transfer, pushed) = world.pushes("edge")[0];
    let (reason, message) = (PushFailure::Refused, "no route".to_owned());
    world.report("edge", vec![Report::PushFailed { transfer, object: pushed, reason, message }]);
    // A confirmation of an earlier deletion says nothing of what this push may have left.
    world.handle(Event::BucketObjectDeleted { object: pushed.id });
    assert_eq!(world.carry_out_looks(false), 1);
    assert_eq!(world.carry_out_deletes(), [pushed.id]);
    assert_eq!(pushed_bytes(&world), [0; 0]);
}

#[test]
fn an_agent_may_fetch_only_what_its_executions_read_and_push_only_what_was_ordered() {
    let (mut world, _) = waiting_for_a_push(TWO_SITES);
    let (edge, hpc) = (world.agents["edge"].id, world.agents["hpc"].id);
    let (transfer, pushed) = world.pushes("edge")[0];
    let authorised = world.ask(Request::AuthorisePush { agent: edge, transfer }).unwrap();
    assert_eq!(authorised, Response::Authorised { copy: plain(pushed), within: None });
    assert!(matches!(world.ask(Request::AuthorisePush { agent: hpc, transfer }), Err(Rejection::Forbidden(_))));
    let fetch = |agent, number| Request::AuthoriseFetch { agent, object: object(number, 1_000).id };
    assert!(matches!(world.ask(fetch(hpc, 1)), Err(Rejection::Unavailable(_))));
    let at = world.now;
    world.report("edge", vec![Report::Pushed { transfer, object: pushed, wire_bytes: 1_000, at }]);
    assert!(world.ask(fetch(hpc, 1)).is_ok());
    assert!(matches!(world.ask(fetch(hpc, 2)), Err(Rejection::Forbidden(_))));
    assert!(matches!(world.ask(fetch(edge, 1)), Err(Rejection::Forbidden(_))));
    let reader = world.dispatched_one("hpc");
    world.succeed("hpc", reader, Vec::new());
    assert!(matches!(world.ask(fetch(hpc, 1)), Err(Rejection::Forbidden(_))), "its execution has ended");
}

#[test]
fn confined_data_stays_and_work_goes_to_it() {
    let placement = "placement:\n  - match: { step: make, output: f }\n    confine: { names: [edge] }\n";
    let source = format!("{}{placement}", TWO_SITES.replace("use: { run: x, site: hpc,", "use: { run: x,"));
    let mut world = World::with_sites(&["edge", "hpc"]);
    let run = world.submit(&source);
    let dispatched = world.dispatched("edge");
    assert_eq!(dispatched.len(), 2);
    world.succeed("edge", dispatched[0], vec![file(1, 1_000), file(2, 1)]);
    assert!(world.pushes("edge").is_empty());
    let view = world.core.object(object(1, 1_000).id).unwrap();
    assert_eq!(view.confined_to.unwrap(), ["edge".parse().unwrap()]);
    let hold = Duration::from_secs(60);
    let staged = world.ask(Request::StageForClient { run, object: object(1, 1_000), hold, kept: None });
    assert!(matches!(staged, Err(Rejection::Forbidden(_))));
    let elsewhere = format!("{TWO_SITES}{placement}");
    let refused = world.try_submit(&elsewhere, &[]);
    assert!(matches!(&refused, Err(Rejection::Invalid(reason)) if reason.contains("rule 1")), "{refused:?}");
}

#[test]
fn the_log_of_a_step_with_confined_data_is_not_put_into_the_bucket() {
    let source = "workflow: w\nsteps:\n  make: { run: x, site: edge, outputs: { f: file } }\n  use: { run: x, with: { f: \"${{ steps.make.outputs.f }}\" } }\n  free: { run: x, site: edge }\nplacement:\n  - match: { step: make }\n    confine: { names: [edge] }\n";
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit(source);
    let logged = |world: &World, execution, log: u8, outputs| {
        let mut report = world.finished(execution, atoll_model::session::Outcome::Succeeded, outputs);
        let Report::Finished { elements, .. } = &mut report else { panic!("it is one") };
        elements[0].logs.stdout = Some(object(log, 10));
        report
    };
    let mut dispatched = world.dispatched("edge");
    dispatched.sort();
    for (number, execution) in (0u8..).zip(dispatched) {
        let outputs = if number == 0 { vec![file(1, 1_000)] } else { Vec::new() };
        let report = logged(&world, execution, 10 + number, outputs);
        world.report("edge", vec![report]);
    }
    assert_eq!(world.state(run), RunState::Succeeded);
    let stage =
        |log| Request::StageForClient { run, object: object(log, 10), hold: Duration::from_secs(60), kept: None };
    for log in [10, 11] {
        let staged = world.ask(stage(log));
        assert!(matches!(&staged, Err(Rejection::Forbidden(reason)) if reason.contains("rule 1")), "{staged:?}");
    }
    world.request(stage(12));
    assert_eq!(world.carry_out_pushes("edge"), 1);
}

#[test]
fn data_that_is_never_pushed_keeps_its_readers_where_it_is() {
    let source = "workflow: w\nsteps:\n  make: { run: x, site: edge, outputs: { f: file } }\n  use: { run: x, foreach: \"${{ range(4) }}\", with: { f: \"${{ steps.make.outputs.f }}\" } }\nplacement:\n  - match: { step: make }\n    push: never\n";
    let mut world = World::with_sites(&["edge", "hpc"]);
    world.submit(source);
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000)]);
    assert_eq!(world.dispatched("edge").len(), 4);
    let why = world.core.why_execution(execution(make.0.run, 1, 0)).unwrap();
    let hpc = why.sites.iter().find(|verdict| verdict.site.as_str() == "hpc").unwrap();
    assert!(!hpc.feasible && hpc.reason.contains("rule 1"), "{}", hpc.reason);
}

#[test]
fn an_eager_output_is_pushed_as_soon_as_it_exists() {
    let source = "workflow: w\nsteps:\n  make: { run: x, site: edge, outputs: { f: file } }\n  wait: { run: x, site: edge, after: [make] }\nplacement:\n  - match: { step: make }\n    push: eager\n";
    let mut world = World::with_sites(&["edge", "hpc"]);
    let run = world.submit(source);
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000)]);
    world.receive("edge");
    assert_eq!(world.carry_out_pushes("edge"), 1);
    let ledger = world.core.ledger(&Default::default());
    assert!(ledger[0].rule.starts_with("rule 1 (line "), "{}", ledger[0].rule);
    assert_eq!(world.objects_in_bucket(), 1);
    assert_eq!(world.state(run), RunState::Running);
    let wait = (execution(run, 1, 0), Attempt::FIRST);
    world.succeed("edge", wait, Vec::new());
    assert_eq!(world.carry_out_deletes().len(), 1, "nothing stays after the run");
}

#[test]
fn what_a_person_sends_in_goes_to_the_run_and_then_from_the_bucket() {
    let source = "workflow: w\ninputs: { f: file }\nsteps:\n  a: { run: x, with: { f: \"${{ inputs.f }}\" } }\n";
    let mut world = World::with_sites(&["edge"]);
    let refused = world.try_submit(source, &[("f", file(1, 500))]);
    assert!(matches!(&refused, Err(Rejection::Invalid(reason)) if reason.contains("not sent in")), "{refused:?}");
    world.ask(Request::RecordUpload { object: object(1, 500), key: None }).unwrap();
    let run = world.try_submit(source, &[("f", file(1, 500))]).unwrap();
    let a = world.dispatched_one("edge");
    fetch(&mut world, "edge", 1, 500, a.0);
    world.succeed("edge", a, Vec::new());
    assert_eq!(world.carry_out_deletes().len(), 1);
    let filter = crate::view::LedgerFilter { run: Some(run), ..Default::default() };
    let entries: Vec<_> = world.core.ledger(&filter).into_iter().map(|entry| (entry.from, entry.to)).collect();
    let pair = |from: &str, to: &str| (from.to_owned(), to.to_owned());
    assert_eq!(entries, [pair("client", "bucket"), pair("bucket", "edge")]);
}

#[test]
fn what_nobody_uses_is_not_held_for_ever() {
    let mut world = World::with_sites(&["edge"]);
    world.ask(Request::RecordUpload { object: object(1, 500), key: None }).unwrap();
    world.advance(Duration::from_secs(3_599));
    assert!(world.deletes.is_empty());
    world.advance(Duration::from_secs(1));
    assert_eq!(world.carry_out_deletes().len(), 1);
    assert!(world.core.object(object(1, 500).id).is_none());
}

#[test]
fn an_upload_that_races_a_deletion_is_asked_for_again() {
    let mut world = World::with_sites(&["edge"]);
    world.ask(Request::RecordUpload { object: object(1, 500), key: None }).unwrap();
    world.advance(Duration::from_secs(3_600));
    assert_eq!(world.deletes.len(), 1);
    let raced = world.ask(Request::RecordUpload { object: object(1, 500), key: None });
    assert!(matches!(raced, Err(Rejection::Unavailable(_))));
    world.carry_out_deletes();
    world.ask(Request::RecordUpload { object: object(1, 500), key: None }).unwrap();
}

#[test]
fn a_deletion_is_asked_for_once_and_again_after_a_restart() {
    let mut world = World::with_sites(&["edge"]);
    world.ask(Request::RecordUpload { object: object(1, 500), key: None }).unwrap();
    world.advance(Duration::from_secs(3_600));
    assert_eq!(world.deletes.len(), 1);
    world.restart();
    world.deletes.clear();
    world.advance(Duration::from_secs(29));
    assert_eq!(world.deletes.len(), 0, "what the process before asked for may still be under way");
    world.advance(Duration::from_secs(1));
    assert_eq!(world.deletes.len(), 1);
    world.advance(Duration::from_secs(3_600));
    assert_eq!(world.deletes.len(), 1, "two at a time could take away what was sent between them");
    world.carry_out_deletes();
    assert!(world.core.object(object(1, 500).id).is_none());
}

#[test]
fn an_output_is_staged_for_a_person_and_held_for_a_while() {
    let source =
        "workflow: w\nsteps:\n  a: { run: x, outputs: { f: file } }\noutputs:\n  f: ${{ steps.a.outputs.f }}\n";
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit(source);
    let a = world.dispatched_one("edge");
    world.succeed("edge", a, vec![file(1, 1_000)]);
    let hold = Duration::from_secs(600);
    let request = world.request(Request::StageForClient { run, object: object(1, 1_000), hold, kept: None });
    assert!(!world.replies.contains_key(&request));
    world.carry_out_pushes("edge");
    assert_eq!(world.replies[&request], Ok(Response::Staged { copy: plain(object(1, 1_000)) }));
    world.ask(Request::RecordDownload { run, object: object(1, 1_000), bytes: 1_000 }).unwrap();
    assert_eq!(world.objects_in_bucket(), 1);
    world.advance_with(hold, &["edge"]);
    assert_eq!(world.carry_out_deletes().len(), 1);
    let rules: Vec<_> =
        world.core.ledger(&Default::default()).into_iter().map(|entry| (entry.to, entry.rule)).collect();
    assert_eq!(rules[0], ("bucket".to_owned(), "client".to_owned()));
    assert_eq!(rules[1].0, "client");
    world.disconnect("edge");
    let away = world.ask(Request::StageForClient { run, object: object(1, 1_000), hold, kept: None });
    assert!(matches!(&away, Err(Rejection::Unavailable(reason)) if reason.contains("edge")), "{away:?}");
}

#[test]
fn pushes_for_a_run_that_is_cancelled_are_cancelled() {
    let (mut world, run) = waiting_for_a_push(TWO_SITES);
    let (transfer, pushed) = world.pushes("edge")[0];
    world.ask(Request::CancelRun { run, reason: String::new() }).unwrap();
    assert_eq!(world.state(run), RunState::Cancelled);
    let commands = world.commands("edge");
    let cancelled = |command: &_| matches!(command, SiteCommand::CancelPush { transfer: t } if *t == transfer);
    assert!(commands.iter().any(cancelled), "{commands:?}");
    // It had gone through already.
    let at = world.now;
    world.report("edge", vec![Report::Pushed { transfer, object: pushed, wire_bytes: 1_000, at }]);
    assert_eq!(world.carry_out_deletes(), [pushed.id]);
}

#[test]
fn work_goes_where_its_data_is() {
    let source = "workflow: w\nsteps:\n  make: { run: x, site: hpc, outputs: { f: file } }\n  use: { run: x, foreach: \"${{ range(4) }}\", with: { f: \"${{ steps.make.outputs.f }}\" } }\n";
    let mut world = World::with_sites(&["edge", "hpc"]);
    world.submit(source);
    let make = world.dispatched_one("hpc");
    world.succeed("hpc", make, vec![file(1, 100 << 30)]);
    assert_eq!(world.dispatched("hpc").len(), 4);
    let why = world.core.why_execution(execution(make.0.run, 1, 2)).unwrap();
    assert_eq!(why.chosen.unwrap().as_str(), "hpc");
    let edge = why.sites.iter().find(|verdict| verdict.site.as_str() == "edge").unwrap();
    assert!(edge.feasible && edge.terms["data_seconds"] > 1_000.0);
}

#[test]
fn a_plan_shows_sites_and_edges_before_anything_runs() {
    let world = World::with_sites(&["edge", "hpc"]);
    let plan = world.core.plan(&super::world::workflow(TWO_SITES), &Default::default(), &Default::default());
    let chosen: Vec<_> = plan.steps.iter().map(|(step, why)| (step.as_str(), why.chosen.clone().unwrap())).collect();
    assert_eq!(chosen, [("make", "edge".parse().unwrap()), ("use", "hpc".parse().unwrap())]);
    assert_eq!((plan.edges[0].route.as_str(), plan.edges[0].rule.as_str()), ("bucket", "when-needed"));
    let _ = Value::Null;
}

pub(super) const LISTED: &str = "workflow: w\ninputs: { all: { type: directory } }\nsteps:\n  each: { run: x, site: edge, foreach: \"${{ files(inputs.all, '*.csv') }}\", with: { f: \"${{ item }}\" }, outputs: { same: file } }\n  use: { run: x, site: hpc, with: { same: \"${{ steps.each.outputs.same }}\" } }\n";

/// A directory of files 1, 2 and 3, which is sent in.
pub(super) fn sent_in(world: &mut World) -> (ObjectRef, Value) {
    sent_in_as(world, None)
}

pub(super) fn sent_in_as(world: &mut World, key: Option<crate::KeyId>) -> (ObjectRef, Value) {
    let tree = ObjectRef { kind: ObjectKind::Tree, ..object(9, 600) };
    world.ask(Request::RecordUpload { object: tree, key }).unwrap();
    let listing = [(1, "a.csv"), (2, "b.csv"), (3, "c.txt")].map(|(number, path)| atoll_model::value::ListedFile {
        path: path.as_bytes().to_vec(),
        object: object(number, 200).id,
        bytes: 200,
        executable: false,
    });
    let directory = atoll_model::value::DirectoryRef {
        object: tree.id,
        bytes: 600,
        files: 3,
        name: atoll_model::value::FileName::new(b"all").unwrap(),
        listing: Some(std::sync::Arc::new(listing.to_vec())),
    };
    (tree, Value::Directory(directory))
}

#[test]
fn files_of_a_directory_that_was_sent_in_are_taken_out_of_it_as_they_are_asked_for() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    let (tree, all) = sent_in(&mut world);
    let run = world.try_submit(LISTED, &[("all", all)]).unwrap();
    let each = world.dispatched("edge");
    assert_eq!(each.len(), 2, "those that match");
    let (edge, hpc) = (world.agents["edge"].id, world.agents["hpc"].id);
    let fetch = |agent, number| Request::AuthoriseFetch { agent, object: object(number, 200).id };
    let within = world.ask(fetch(edge, 1)).unwrap();
    assert_eq!(within, Response::Authorised { copy: plain(object(1, 200)), within: Some(plain(tree)) });
    assert!(matches!(world.ask(fetch(edge, 3)), Err(Rejection::Forbidden(_))), "nothing reads it");
    assert!(matches!(world.ask(fetch(hpc, 1)), Err(Rejection::Forbidden(_))));
    let whole = Request::AuthoriseFetch { agent: edge, object: tree.id };
    assert!(matches!(world.ask(whole), Err(Rejection::Forbidden(_))), "nothing reads all of it");

    // The outputs are the same files, and the other site reads them when nobody reads the input any more.
    for (number, execution) in (1..).zip(each) {
        world.succeed("edge", execution, vec![file(number, 200)]);
    }
    assert!(world.carry_out_deletes().is_empty(), "its files are still to be had from it");
    world.restart();
    world.connect("edge");
    world.connect("hpc");
    let reader = world.dispatched_one("hpc");
    assert_eq!(
        world.ask(fetch(hpc, 2)).unwrap(),
        Response::Authorised { copy: plain(object(2, 200)), within: Some(plain(tree)) }
    );
    world.succeed("hpc", reader, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
    let mut deleted = world.carry_out_deletes();
    deleted.sort();
    assert_eq!(deleted, [object(1, 200).id, object(2, 200).id, tree.id]);
    assert_eq!(world.objects_in_bucket(), 0);
}
