//! What executions publish: where the administrator lets them, whole or not at all, and once however often it is asked for.

use std::fs;
use std::path::Path;

use atoll_model::id::ExecutionId;
use atoll_model::session::{
    Binding, BindingSource, FailureReason, NotStartedReason, Outcome, StepTemplate, TemplateWork,
};
use atoll_model::value::{Type, Value};

use crate::site::{Site, eventually, output};

/// A site that publishes below one folder, at one prefix of a bucket that cannot be reached, and has a policy.
async fn site() -> Site {
    let folder = tempfile::Builder::new().prefix("atoll-site-").tempdir().unwrap();
    fs::create_dir(folder.path().join("public")).unwrap();
    let policy = folder.path().join("policy.yaml");
    let rules = "run:\n  - refuse: { work: export, path: '/*/private/*' }\nleave:\n  - allow: { step: step0, to: 's3://survey/open/*' }\n  - refuse: { workflow: test }\n";
    fs::write(&policy, rules).unwrap();
    let exports = [folder.path().join("public").display().to_string(), "s3://survey".to_owned()];
    let settings = format!("policy = {policy:?}\nexports = {exports:?}");
    let data = folder.path().join("data");
    Site::start_in(folder, data, &settings).await
}

fn public(site: &Site) -> std::path::PathBuf {
    site.scratch().with_file_name("public")
}

/// A file and a tree that the site has made.
async fn made(site: &mut Site) -> [Value; 2] {
    let mut step = site.step(
        "echo one > \"$ATOLL_OUTPUTS/file\"; mkdir -p \"$ATOLL_OUTPUTS/tree/deep\"; echo two > \"$ATOLL_OUTPUTS/tree/deep/b\"",
    );
    step.outputs = vec![output("file", Type::File), output("tree", Type::Directory)];
    let execution = site.run_step(step);
    let end = site.control.finished(execution).await;
    assert_eq!(end.outcome, Outcome::Succeeded);
    [end.outputs[0].clone(), end.outputs[1].clone()]
}

fn export(site: &mut Site, value: &Value, target: &str, overwrite: bool) -> ExecutionId {
    let work = TemplateWork::Export { target: target.to_owned().into(), overwrite };
    let step = StepTemplate { work, ..site.step("") };
    site.run_bound(step, vec![Binding { name: "it".to_owned(), source: BindingSource::Value(value.clone()) }])
}

async fn outcome(site: &mut Site, value: &Value, target: &Path, overwrite: bool) -> Outcome {
    let execution = export(site, value, target.to_str().unwrap(), overwrite);
    site.control.finished(execution).await.outcome
}

fn refusal(outcome: Outcome) -> String {
    match outcome {
        Outcome::Failed { reason: FailureReason::ExportFailed, message, .. } => message,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_file_and_a_tree_are_published_once_and_nothing_is_in_their_way_or_they_in_anybodys() {
    let mut site = site().await;
    let public = public(&site);
    let [file, tree] = made(&mut site).await;
    let (to_file, to_tree) = (public.join("maps/map"), public.join("tree"));
    for _ in 0..2 {
        assert_eq!(outcome(&mut site, &file, &to_file, false).await, Outcome::Succeeded);
        assert_eq!(outcome(&mut site, &tree, &to_tree, false).await, Outcome::Succeeded);
    }
    assert_eq!(fs::read_to_string(&to_file).unwrap(), "one\n");
    assert_eq!(fs::read_to_string(to_tree.join("deep/b")).unwrap(), "two\n");
    // What is published belongs to whom it is given: it is no part of the store.
    fs::write(&to_file, "changed\n").unwrap();
    let message = refusal(outcome(&mut site, &file, &to_file, false).await);
    assert!(message.contains("exists already"), "{message}");
    assert_eq!(outcome(&mut site, &file, &to_file, true).await, Outcome::Succeeded);
    assert_eq!(fs::read_to_string(&to_file).unwrap(), "one\n");
    assert_eq!(fs::read_dir(&public).unwrap().count(), 2, "nothing unfinished is left");
}

#[tokio::test]
async fn nothing_is_published_where_the_administrator_does_not_list_it() {
    let mut site = site().await;
    let (public, scratch) = (public(&site), site.scratch());
    let [file, _] = made(&mut site).await;
    std::os::unix::fs::symlink(&scratch, public.join("away")).unwrap();
    for target in [scratch.join("x"), public.join("away/x"), site.data().join("x")] {
        let message = refusal(outcome(&mut site, &file, &target, true).await);
        assert!(message.contains("under exports"), "{message}");
    }
    assert!(!scratch.join("x").exists() && !site.data().join("x").exists());
    let message = refusal(outcome(&mut site, &file, Path::new("s3://elsewhere/x"), false).await);
    assert!(message.contains("under exports"), "{message}");
    let message = refusal(outcome(&mut site, &Value::Integer(7), &public.join("n"), false).await);
    assert!(message.contains("only a file or a directory"), "{message}");
}

#[tokio::test]
async fn the_policy_of_the_site_says_what_is_published_and_what_of_it_leaves() {
    let mut site = site().await;
    let [file, _] = made(&mut site).await;
    let target = public(&site).join("private/x");
    let Outcome::NotStarted { reason: NotStartedReason::Refused, message } =
        outcome(&mut site, &file, &target, false).await
    else {
        panic!("it may not run");
    };
    assert!(message.ends_with("policy.yaml:2)"), "{message}");
    assert!(!target.exists());
    let message = refusal(outcome(&mut site, &file, Path::new("s3://survey/closed/x"), false).await);
    assert!(message.ends_with("policy.yaml:5)"), "{message}");
    // At a path of the site it does not leave it.
    let inside = public(&site).join("x");
    assert_eq!(outcome(&mut site, &file, &inside, false).await, Outcome::Succeeded);
}

#[tokio::test]
async fn an_agent_that_is_killed_meanwhile_publishes_it_whole_in_the_end() {
    let mut site = site().await;
    let target = public(&site).join("large");
    let mut step = site.step("head -c 600000000 /dev/urandom > \"$ATOLL_OUTPUTS/large\"");
    step.outputs = vec![output("large", Type::File)];
    let execution = site.run_step(step);
    let large = site.control.finished(execution).await.outputs[0].clone();
    let execution = export(&mut site, &large, target.to_str().unwrap(), false);
    let unfinished = || {
        let entries = fs::read_dir(target.parent().unwrap()).unwrap();
        entries.flatten().next().map(|entry| entry.file_name().into_string().unwrap())
    };
    let name = eventually("it is begun", unfinished).await;
    site.kill_agent();
    assert!(name == "large" || name.starts_with(".atoll-"), "{name}");
    site.start_agent().await;
    assert_eq!(site.control.finished(execution).await.outcome, Outcome::Succeeded);
    let Value::File(of) = &large else { panic!("{large:?}") };
    assert_eq!(fs::metadata(&target).unwrap().len(), of.bytes);
    assert_eq!(fs::read_dir(target.parent().unwrap()).unwrap().count(), 1, "what was unfinished is gone");
}
