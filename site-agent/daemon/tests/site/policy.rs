//! The site's own policy against a control plane that wants what it forbids, by every way that there is.

use std::fs;
use std::path::PathBuf;

use atoll_model::id::{ExecutionId, ObjectId, TransferId};
use atoll_model::session::{
    Binding, BindingSource, NotStartedReason, Outcome, PushFailure, Report, SiteCommand, StepTemplate, TemplateWork,
};
use atoll_model::value::{ObjectKind, ObjectRef, Type, Value};
use atoll_proto::LogStream;

use crate::site::{Site, output};

/// A site with patients' data, and a policy that keeps it there.
async fn site() -> (Site, PathBuf) {
    let folder = tempfile::Builder::new().prefix("atoll-site-").tempdir().unwrap();
    let patients = folder.path().join("patients");
    fs::create_dir_all(patients.join("more")).unwrap();
    fs::write(patients.join("a.csv"), "secret of a").unwrap();
    fs::write(patients.join("more/b.csv"), "secret of b").unwrap();
    let policy = folder.path().join("policy.yaml");
    let rules =
        format!("run:\n  - refuse: {{ workflow: mine* }}\nleave:\n  - refuse: {{ path: '{}*' }}\n", patients.display());
    fs::write(&policy, rules).unwrap();
    let settings = format!("policy = {policy:?}\nimports = [{:?}]", folder.path());
    let data = folder.path().join("data");
    (Site::start_in(folder, data, &settings).await, patients)
}

fn import(site: &mut Site, path: &std::path::Path) -> StepTemplate {
    let work = TemplateWork::Import { source: path.to_str().unwrap().to_owned().into(), directory: true };
    StepTemplate { work, outputs: vec![output("data", Type::Directory)], ..site.step("") }
}

/// Has the object pushed, and returns the refusal.
async fn refused(site: &Site, number: u128, object: ObjectRef) -> (PushFailure, String) {
    let transfer = TransferId::from_bits(number);
    site.control.order(vec![SiteCommand::Push { transfer, object }]);
    let answer = |report: &Report| match report {
        Report::PushFailed { transfer: of, reason, message, .. } if *of == transfer => Some((*reason, message.clone())),
        _ => None,
    };
    site.control.until("the answer to a push", |state| state.reports.iter().find_map(answer)).await
}

async fn made(site: &Site, execution: ExecutionId) -> (ObjectRef, Value, Option<ObjectRef>) {
    let end = site.control.finished(execution).await;
    assert_eq!(end.outcome, Outcome::Succeeded, "{}", site.agent_log());
    let mut object = None;
    end.outputs[0].visit_objects(&mut |found| object = Some(found));
    (object.unwrap(), end.outputs[0].clone(), end.logs.stdout)
}

#[tokio::test]
async fn data_that_the_site_keeps_leaves_by_no_way_though_the_control_plane_asks() {
    let (mut site, patients) = site().await;
    let template = import(&mut site, &patients);
    let (tree, value, _) = made(&site, site.run_step(template)).await;
    let mut reader = site.step("cat \"$data/a.csv\"; cat \"$data/more/b.csv\" > $ATOLL_OUTPUTS/copy; [ -e @/gate ] || until [ -e @/gate ]; do sleep 0.02; done");
    reader.outputs = vec![output("copy", Type::File)];
    let reading =
        site.run_bound(reader, vec![Binding { name: "data".to_owned(), source: BindingSource::Value(value) }]);
    site.control.started(reading).await;
    let live = site.control.read_log(reading, LogStream::Stdout, false).await;
    assert_eq!(site.control.whole_log(live).await, b"", "nor is what it prints read while it runs");
    site.open_gate("gate");
    let (copy, _, log) = made(&site, reading).await;
    let part = |text: &str| {
        let digest = *blake3::hash(text.as_bytes()).as_bytes();
        ObjectRef { id: ObjectId::from_digest(digest), kind: ObjectKind::File, bytes: text.len() as u64 }
    };
    let wanted = [tree, copy, log.unwrap(), part("secret of a"), part("secret of b")];
    for round in 0..2 {
        for (number, object) in (1..).zip(wanted) {
            let (reason, message) = refused(&site, number + round * 100, object).await;
            assert_eq!(reason, PushFailure::Forbidden);
            assert!(message.ends_with("policy.yaml:4)"), "{message}");
            let request = site.control.read_object(reading, object).await;
            assert_eq!(site.control.whole_log(request).await, b"", "nor is it read as if it were a log");
        }
        if round == 0 {
            site.kill_agent();
            site.start_agent().await;
        }
    }
}

#[tokio::test]
async fn other_data_of_the_site_is_still_read() {
    let (mut site, _) = site().await;
    let execution = site.run("echo public");
    let log = site.control.finished(execution).await.logs.stdout.unwrap();
    let request = site.control.read_object(execution, log).await;
    assert_eq!(site.control.whole_log(request).await, b"public\n");
}

#[tokio::test]
async fn work_that_the_site_does_not_want_never_runs() {
    let (mut site, _) = site().await;
    let step = StepTemplate { workflow: "mine-coins".to_owned(), ..site.step("touch @/mined") };
    let end = site.control.finished(site.run_step(step)).await;
    let Outcome::NotStarted { reason: NotStartedReason::Refused, message } = end.outcome else {
        panic!("{:?}", end.outcome)
    };
    assert!(message.ends_with("policy.yaml:2)"), "{message}");
    assert!(!site.scratch().join("mined").exists());
}
