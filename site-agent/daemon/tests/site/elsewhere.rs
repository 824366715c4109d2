//! Executions that work on another file system than the store's.

use std::path::PathBuf;
use std::process::Stdio;

use atoll_model::session::{Binding, BindingSource, Outcome};
use atoll_model::value::{Type, Value};
use tempfile::TempDir;

use crate::site::{Site, output};

/// A folder in the machine's memory, which is no disk that a data directory is on.
fn memory() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let work = folder.path().join("work");
    (folder, work)
}

#[tokio::test]
async fn outputs_of_another_file_system_reach_the_store_and_the_next_step() {
    let (_folder, work) = memory();
    let mut site = Site::start_apart(work.clone()).await;
    let mut make = site.step(
        "pwd > @/at; mkdir \"$ATOLL_OUTPUTS/tree\"; printf one > \"$ATOLL_OUTPUTS/tree/a\"
head -c 3000000 /dev/zero | tr '\\0' y > \"$ATOLL_OUTPUTS/file\"",
    );
    make.outputs = vec![output("tree", Type::Directory), output("file", Type::File)];
    let made = site.run_step(make);
    let end = site.control.finished(made).await;
    assert_eq!(end.outcome, Outcome::Succeeded);
    assert!(site.trace("at").await.starts_with(work.to_str().unwrap()));
    let (Value::Directory(tree), Value::File(file)) = (&end.outputs[0], &end.outputs[1]) else {
        panic!("{:?}", end.outputs)
    };
    assert_eq!((tree.files, tree.bytes, file.bytes), (1, 3, 3_000_000));

    let binding =
        |name: &str, value: &Value| Binding { name: name.to_owned(), source: BindingSource::Value(value.clone()) };
    let mut read = site.step(
        "cat \"$tree/a\" > @/read; echo >> @/read; stat -c %d:%i \"$file\" > @/inode
! { echo more >> \"$file\"; } 2>/dev/null; wc -c < \"$file\" > \"$ATOLL_OUTPUTS/size\"",
    );
    read.outputs = vec![output("size", Type::Integer)];
    let bindings = vec![binding("tree", &end.outputs[0]), binding("file", &end.outputs[1])];
    let reader = site.run_bound(read, bindings);
    let end = site.control.finished(reader).await;
    assert_eq!((end.outcome, &end.outputs), (Outcome::Succeeded, &vec![Value::Integer(3_000_000)]));
    assert_eq!(site.trace("read").await, "one\n");
    // Inputs are links all the same.
    let hex = file.object.hex();
    let stored = std::fs::metadata(site.data().join("store/objects").join(&hex[..2]).join(&hex[2..])).unwrap();
    let inode = site.trace("inode").await;
    assert!(inode.trim().ends_with(&format!(":{}", std::os::unix::fs::MetadataExt::ino(&stored))), "{inode}");
    let said = site.agent_log().matches("they are copied and compared").count();
    assert_eq!(said, 1, "{}", site.agent_log());
}

#[tokio::test]
async fn a_killed_agent_finds_what_runs_elsewhere() {
    let (_folder, work) = memory();
    let mut site = Site::start_apart(work).await;
    let mut step =
        site.step("echo > @/started; until [ -e @/gate ]; do sleep 0.02; done; printf 7 > \"$ATOLL_OUTPUTS/n\"");
    step.outputs = vec![output("n", Type::Integer)];
    let execution = site.run_step(step);
    site.trace("started").await;
    site.kill_agent();
    site.start_agent().await;
    site.open_gate("gate");
    let end = site.control.finished(execution).await;
    assert_eq!((end.outcome, end.outputs), (Outcome::Succeeded, vec![Value::Integer(7)]));
}

#[tokio::test]
async fn what_runs_in_the_former_place_is_not_left_before_it_has_ended() {
    let (_folder, work) = memory();
    let mut site = Site::start().await;
    let mut step =
        site.step("echo > @/started; until [ -e @/gate ]; do sleep 0.02; done; printf 7 > \"$ATOLL_OUTPUTS/n\"");
    step.outputs = vec![output("n", Type::Integer)];
    let execution = site.run_step(step);
    site.trace("started").await;
    site.kill_agent();
    site.configure(Some(work.clone()));
    site.start_agent().await;
    site.open_gate("gate");
    let end = site.control.finished(execution).await;
    assert_eq!((end.outcome, end.outputs), (Outcome::Succeeded, vec![Value::Integer(7)]));
    let former = site.data().join("slots");
    // That its end was told may be known to the agent later than to the control plane.
    for _ in 0..20 {
        assert!(site.stop_agent().await.success());
        site.start_agent().await;
        if !former.exists() {
            break;
        }
    }
    let next = site.run("pwd > @/at");
    assert_eq!(site.control.finished(next).await.outcome, Outcome::Succeeded);
    assert!(site.trace("at").await.starts_with(work.to_str().unwrap()));
    assert!(!former.exists());
}

#[tokio::test]
async fn e7_two_agents_do_not_work_in_one_directory() {
    let (_folder, work) = memory();
    let mut first = Site::start_apart(work.clone()).await;
    let mut second = Site::start().await;
    assert!(second.stop_agent().await.success());
    second.configure(Some(work));
    let refused = second.agent_command().stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("give each agent a directory of its own"), "{said}");
    second.configure(None);
    let execution = first.run("true");
    assert_eq!(first.control.finished(execution).await.outcome, Outcome::Succeeded);
}
