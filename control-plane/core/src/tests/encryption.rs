//! What rules want encrypted in the bucket: by which key it goes there, and what is known of it until it is gone.

use std::sync::Arc;

use atoll_model::session::{FaultLocation, Outcome, PushFailure, Report, SiteCommand};
use atoll_model::value::{ObjectKind, ObjectRef};

use super::data::{LISTED, sent_in_as};
use super::world::{World, execution, file, object};
use crate::view::RunState;
use crate::{BucketCopy, Encryption, KeyId, PolicyApplication, Rejection, Request, Response, WrappedKey};

const FAR: &str = "workflow: w\nsteps:\n  make: { run: x, site: edge, outputs: { f: file } }\n  use: { run: x, with: { f: \"${{ steps.make.outputs.f }}\" }, site: hpc }\n";
const OF_MAKE: &str = "placement:\n  - match: { step: make }\n    encrypt: { key: project }\n";

fn apply(world: &mut World, source: &str) {
    let application = Box::new(PolicyApplication {
        project: "default".to_owned(),
        policy: atoll_model::policy::parse("keys.yaml", source).unwrap(),
        source: Arc::from(source),
        applied_by: "ada".to_owned(),
        instead_of: None,
    });
    assert_eq!(world.ask(Request::ApplyPolicy { application }), Ok(Response::Done));
}

fn key(number: u32) -> KeyId {
    KeyId { project: "default".into(), number }
}

fn wrapped(byte: u8) -> WrappedKey {
    WrappedKey::new(&[byte; 40])
}

fn keep(world: &mut World, number: u32, byte: u8, instead_of: Option<u8>) -> Result<Response, Rejection> {
    let (key, instead_of) = (key(number), instead_of.map(wrapped));
    world.ask(Request::KeepProjectKey { key, wrapped: wrapped(byte), instead_of })
}

fn encrypted(object: ObjectRef, byte: Option<u8>) -> BucketCopy {
    BucketCopy { object, encryption: Some(Encryption { key: key(1), wrapped: byte.map(wrapped) }) }
}

/// The copy that an agent may write, or read.
fn authorised(world: &mut World, request: Request) -> BucketCopy {
    match world.ask(request).unwrap() {
        Response::Authorised { copy, within: None } => copy,
        other => panic!("{other:?}"),
    }
}

/// A run whose second step waits at `hpc` for what `edge` is pushing.
fn pushing(world: &mut World) -> (atoll_model::id::RunId, atoll_model::id::TransferId) {
    let run = world.submit(FAR);
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000)]);
    (run, world.pushes("edge")[0].0)
}

#[test]
fn what_a_rule_encrypts_goes_and_comes_by_the_key_of_its_project_and_is_forgotten_with_its_copy() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    apply(&mut world, OF_MAKE);
    let (run, transfer) = pushing(&mut world);
    let (edge, hpc, of) = (world.agents["edge"].id, world.agents["hpc"].id, object(1, 1_000));
    let push = Request::AuthorisePush { agent: edge, transfer };
    assert_eq!(authorised(&mut world, push.clone()), encrypted(of, None), "nobody has made the key yet");
    assert_eq!(keep(&mut world, 1, 7, None), Ok(Response::ProjectKey { wrapped: wrapped(7) }));
    assert_eq!(authorised(&mut world, push), encrypted(of, Some(7)));
    let at = world.now;
    world.report("edge", vec![Report::Pushed { transfer, object: of, wire_bytes: 1_056, at }]);
    let reader = world.dispatched_one("hpc");
    let fetch = Request::AuthoriseFetch { agent: hpc, object: of.id };
    assert_eq!(authorised(&mut world, fetch), encrypted(of, Some(7)));
    assert_eq!(world.recovered().encryption_of(of.id), encrypted(of, Some(7)).encryption);
    assert!(world.core.object(of.id).unwrap().encrypted.unwrap().contains("project default"));
    let rules = world.core.run_rules(run).unwrap();
    assert!(rules.data[0].encrypted.as_ref().unwrap().contains("keys.yaml:2"));
    assert_eq!(rules.data[0].bucket_closed, None);
    world.succeed("hpc", reader, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
    assert_eq!(world.deletes, [encrypted(of, Some(7))]);
    world.carry_out_deletes();
    assert_eq!(world.core.encryption_of(of.id), None);
    assert_eq!(world.core.project_keys(), [(key(1), wrapped(7))], "the key stays");
}

#[test]
fn d6_a_damaged_encrypted_copy_is_replaced_by_an_encrypted_one() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    apply(&mut world, OF_MAKE);
    let (run, _) = pushing(&mut world);
    world.receive("edge");
    let (id, agent) = (object(1, 1_000).id, world.agents["hpc"].id);
    let transfer = *world.core.snapshot().0.transfers.keys().next().unwrap();
    let at = world.now;
    world.report("edge", vec![Report::Pushed { transfer, object: object(1, 1_000), wire_bytes: 1_056, at }]);
    let reader = world.dispatched_one("hpc");
    let (location, message) = (FaultLocation::Bucket, "chunk 0 is not what was put there".to_owned());
    world.report("hpc", vec![Report::Fault { object: id, kind: ObjectKind::File, location, message }]);
    assert_eq!(world.deletes, [encrypted(object(1, 1_000), None)]);
    world.carry_out_deletes();
    assert_eq!(world.carry_out_pushes("edge"), 1);
    let again = authorised(&mut world, Request::AuthoriseFetch { agent, object: id });
    assert_eq!(again, encrypted(object(1, 1_000), None));
    world.succeed("hpc", reader, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
}

#[test]
fn a_push_in_clear_is_called_back_when_a_rule_comes_to_want_it_encrypted_and_what_has_arrived_stays() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    let (run, transfer) = pushing(&mut world);
    apply(&mut world, OF_MAKE);
    let (agent, of) = (world.agents["edge"].id, object(1, 1_000));
    assert!(matches!(world.ask(Request::AuthorisePush { agent, transfer }), Err(Rejection::Conflict(_))));
    let cancelled = |command: &SiteCommand| matches!(command, SiteCommand::CancelPush { .. });
    assert!(world.commands("edge").iter().any(cancelled));
    let (reason, message) = (PushFailure::Cancelled, "cancelled".to_owned());
    world.report("edge", vec![Report::PushFailed { transfer, object: of, reason, message }]);
    assert_eq!(world.looks, [(of, transfer)]);
    assert_eq!(world.core.encryption_of(of.id), None, "what may have arrived did so in clear");
    world.carry_out_looks(false);
    world.carry_out_deletes();
    let (transfer, _) = world.pushes("edge")[0];
    assert_eq!(authorised(&mut world, Request::AuthorisePush { agent, transfer }), encrypted(of, None));
    let at = world.now;
    world.report("edge", vec![Report::Pushed { transfer, object: of, wire_bytes: 1_056, at }]);
    // Encrypted it stays so, whatever the rules are now.
    apply(&mut world, "placement: []\n");
    assert!(world.core.encryption_of(of.id).is_some());
    let reader = world.dispatched_one("hpc");
    world.succeed("hpc", reader, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);

    let mut world = World::with_sites(&["edge", "hpc"]);
    pushing(&mut world);
    world.receive("edge");
    let transfer = *world.core.snapshot().0.transfers.keys().next().unwrap();
    let at = world.now;
    world.report("edge", vec![Report::Pushed { transfer, object: of, wire_bytes: 1_000, at }]);
    apply(&mut world, OF_MAKE);
    assert_eq!(world.core.encryption_of(of.id), None);
    let agent = world.agents["hpc"].id;
    let copy = authorised(&mut world, Request::AuthoriseFetch { agent, object: of.id });
    assert_eq!(copy, BucketCopy { object: of, encryption: None });
}

#[test]
fn a_confinement_that_lets_encrypted_data_into_the_bucket_lets_it_go_to_its_sites() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    apply(
        &mut world,
        "placement:\n  - match: { step: make }\n    confine: { to: [edge, hpc], bucket: if-encrypted }\n",
    );
    let refused = world.try_submit(FAR, &[]);
    assert!(matches!(refused, Err(Rejection::Invalid(_))), "nothing encrypts it: {refused:?}");
    apply(
        &mut world,
        "placement:\n  - match: { step: make }\n    confine: { to: [edge, hpc], bucket: if-encrypted }\n    encrypt: { key: project }\n",
    );
    let run = world.submit(FAR);
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000)]);
    world.receive("edge");
    assert_eq!(world.carry_out_pushes("edge"), 1);
    assert!(world.core.encryption_of(object(1, 1_000).id).is_some());
    let reader = world.dispatched_one("hpc");
    world.succeed("hpc", reader, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
}

#[test]
fn of_two_who_make_a_key_one_was_first_and_a_key_is_wrapped_anew_by_who_knows_how_it_was() {
    let mut world = World::with_sites(&["edge"]);
    let kept = |byte| Ok(Response::ProjectKey { wrapped: wrapped(byte) });
    assert!(matches!(keep(&mut world, 2, 1, None), Err(Rejection::NotFound(_))), "the first is number 1");
    assert_eq!(keep(&mut world, 1, 1, None), kept(1));
    assert_eq!(keep(&mut world, 1, 2, None), kept(1));
    assert_eq!(keep(&mut world, 1, 3, Some(2)), kept(1));
    assert_eq!(keep(&mut world, 1, 3, Some(1)), kept(3));
    assert_eq!(world.core.project_keys(), [(key(1), wrapped(3))]);
    assert!(!format!("{:?}", world.facts).contains("3, 3, 3"), "not even wrapped it is shown");
}

#[test]
fn what_is_sent_in_is_encrypted_where_a_rule_may_want_it_and_the_copy_that_was_there_counts() {
    let mut world = World::with_sites(&["edge"]);
    assert_eq!(world.core.encryption_of_uploads("default", false), None);
    assert_eq!(world.core.encryption_of_uploads("default", true), encrypted(object(1, 5), None).encryption);
    apply(&mut world, OF_MAKE);
    assert_eq!(world.core.encryption_of_uploads("default", false), None, "outputs are not sent in");
    apply(&mut world, "placement:\n  - match: { input: raw }\n    encrypt: { key: project }\n");
    assert!(world.core.encryption_of_uploads("default", false).is_some());
    assert_eq!(world.core.encryption_of_uploads("other", false), None);

    let (mine, other) = (object(1, 500), object(2, 500));
    let staged = |copy| Ok(Response::Staged { copy });
    let recorded = world.ask(Request::RecordUpload { object: mine, key: Some(key(1)) });
    assert_eq!(recorded, staged(encrypted(mine, None)));
    assert_eq!(world.ask(Request::RecordUpload { object: mine, key: None }), recorded, "the first one counts");
    let plain = staged(BucketCopy { object: other, encryption: None });
    assert_eq!(world.ask(Request::RecordUpload { object: other, key: None }), plain);
    assert_eq!(world.ask(Request::RecordUpload { object: other, key: Some(key(1)) }), plain);
}

#[test]
fn an_upload_in_clear_is_asked_for_again_while_the_same_is_on_its_way_encrypted() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    apply(&mut world, OF_MAKE);
    let (_, transfer) = pushing(&mut world);
    let of = object(1, 1_000);
    let raced = world.ask(Request::RecordUpload { object: of, key: None });
    assert!(matches!(raced, Err(Rejection::Unavailable(_))), "{raced:?}");
    assert!(world.ask(Request::RecordUpload { object: of, key: Some(key(1)) }).is_ok());
    let at = world.now;
    world.report("edge", vec![Report::Pushed { transfer, object: of, wire_bytes: 0, at }]);
    assert!(world.core.encryption_of(of.id).is_some());
}

#[test]
fn files_of_an_encrypted_directory_are_taken_out_encrypted() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    let (tree, all) = sent_in_as(&mut world, Some(key(1)));
    world.try_submit(LISTED, &[("all", all)]).unwrap();
    world.receive("edge");
    let (agent, part) = (world.agents["edge"].id, object(1, 200));
    let answer = world.ask(Request::AuthoriseFetch { agent, object: part.id }).unwrap();
    let (copy, within) = (encrypted(part, None), Some(encrypted(tree, None)));
    assert_eq!(answer, Response::Authorised { copy, within });
}

#[test]
fn a_log_of_a_run_of_which_anything_is_encrypted_is_taken_out_encrypted() {
    for (source, is_encrypted) in [(OF_MAKE, true), ("placement: []\n", false)] {
        let mut world = World::with_sites(&["edge", "hpc"]);
        apply(&mut world, source);
        let run = world.submit(FAR);
        let make = world.dispatched_one("edge");
        let Report::Finished { run: of, step, mut elements } =
            world.finished(make, Outcome::Succeeded, vec![file(1, 1_000)])
        else {
            panic!("it has finished")
        };
        elements[0].logs.stdout = Some(object(8, 10));
        world.report("edge", vec![Report::Finished { run: of, step, elements }]);
        assert_eq!(make.0, execution(run, 0, 0));
        world.pushes("edge");
        let hold = std::time::Duration::from_secs(60);
        world.request(Request::StageForClient { run, object: object(8, 10), hold, kept: None });
        let (transfer, _) = world.pushes("edge")[0];
        let agent = world.agents["edge"].id;
        let copy = authorised(&mut world, Request::AuthorisePush { agent, transfer });
        assert_eq!(copy.encryption.is_some(), is_encrypted);
    }
}
