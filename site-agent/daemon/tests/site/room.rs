//! A store with little room: what goes, what stays, and what a look at all of it finds.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use atoll_model::id::ObjectId;
use atoll_model::session::{FaultLocation, Outcome, Report, SiteCommand};
use atoll_model::value::{ObjectRef, Type};

use crate::site::{Site, output};

/// A site whose store may hold 100 kB.
async fn small() -> Site {
    let folder = tempfile::Builder::new().prefix("atoll-site-").tempdir().unwrap();
    let policy = folder.path().join("policy.yaml");
    fs::write(&policy, "limits: { disk: 100KB }\n").unwrap();
    let settings = format!("policy = {policy:?}\nevict_idle_seconds = 0");
    let data = folder.path().join("data");
    Site::start_in(folder, data, &settings).await
}

/// Runs a script that writes one file, and waits until the agent has nothing to do with it any more.
async fn made(site: &mut Site, script: &str) -> ObjectRef {
    let template = site.step(script);
    let template = atoll_model::session::StepTemplate { outputs: vec![output("f", Type::File)], ..template };
    let execution = site.run_step(template);
    let end = site.control.finished(execution).await;
    assert_eq!(end.outcome, Outcome::Succeeded, "{}", site.agent_log());
    let mut object = None;
    end.outputs[0].visit_objects(&mut |found| object = Some(found));
    object.unwrap()
}

fn path_of(site: &Site, object: ObjectId) -> PathBuf {
    let hex = object.hex();
    site.data().join(format!("store/objects/{}/{}", &hex[..2], &hex[2..]))
}

/// The proposals that hold this object.
fn proposal_of(reports: &[Report], object: ObjectRef) -> Option<(u64, Vec<ObjectRef>)> {
    reports.iter().rev().find_map(|report| match report {
        Report::Evictable { proposal, objects } if objects.contains(&object) => Some((*proposal, objects.clone())),
        _ => None,
    })
}

#[tokio::test]
async fn a_store_that_is_too_full_asks_and_lets_go_of_what_it_may_and_no_more() {
    let mut site = small().await;
    let first = made(&mut site, "head -c 60000 /dev/zero | tr '\\0' a > $ATOLL_OUTPUTS/f").await;
    let second = made(&mut site, "head -c 30000 /dev/zero | tr '\\0' b > $ATOLL_OUTPUTS/f").await;
    let (proposal, objects) = site.control.until("a proposal", |state| proposal_of(&state.reports, first)).await;
    assert!(path_of(&site, first.id).exists(), "nothing goes unasked");
    let refused = u32::try_from(objects.len()).unwrap() - 1;
    site.control.order(vec![SiteCommand::Evict { proposal, objects: vec![first], refused, reason: None }]);
    let gone = |report: &Report| match report {
        Report::Evicted { gone, kept } => Some((gone.clone(), kept.clone())),
        _ => None,
    };
    let (gone, kept) = site.control.until("the end", |state| state.reports.iter().find_map(gone)).await;
    assert_eq!((gone, kept), (vec![first], Vec::new()));
    assert!(!path_of(&site, first.id).exists() && path_of(&site, second.id).exists());
}

#[tokio::test]
async fn what_is_made_again_after_it_was_proposed_stays() {
    let mut site = small().await;
    let script = "head -c 90000 /dev/zero | tr '\\0' a > $ATOLL_OUTPUTS/f";
    let object = made(&mut site, script).await;
    let (proposal, _) = site.control.until("a proposal", |state| proposal_of(&state.reports, object)).await;
    // The same bytes once more: the store has them already, and somebody needs them now.
    assert_eq!(made(&mut site, script).await, object);
    site.control.order(vec![SiteCommand::Evict { proposal, objects: vec![object], refused: 0, reason: None }]);
    let kept =
        |report: &Report| matches!(report, Report::Evicted { gone, kept } if gone.is_empty() && *kept == [object]);
    site.control.until("the end", |state| state.reports.iter().any(kept).then_some(())).await;
    assert!(path_of(&site, object.id).exists());
}

#[tokio::test]
async fn d5_a_store_that_is_read_again_tells_of_what_is_damaged_and_does_not_hand_it_over() {
    let mut site = Site::start().await;
    let object = made(&mut site, "echo precious > $ATOLL_OUTPUTS/f").await;
    let path = path_of(&site, object.id);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&path, "precjous\n").unwrap();
    site.control.order(vec![SiteCommand::Verify { objects: Vec::new() }]);
    let verified = |report: &Report| match report {
        Report::Verified { files, damaged, .. } => Some((*files, *damaged)),
        _ => None,
    };
    let (files, damaged) = site.control.until("the end", |state| state.reports.iter().find_map(verified)).await;
    assert!(files >= 1);
    assert_eq!(damaged, 1);
    let told = |report: &Report| matches!(report, Report::Fault { object: of, location: FaultLocation::SiteStore, .. } if *of == object.id);
    assert!(site.control.look(|state| state.reports.iter().any(told)));
    assert!(!path.exists());
}
