//! What the machine does to a site: its disk fills up, and what it wrote last is torn.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use atoll_model::session::{FailureReason, Outcome};
use atoll_model::value::Type;
use rustix::process::{Signal, kill_process};

use crate::restarts::{log_bytes, noted_end, reboot};
use crate::site::{Site, eventually, gone, output};

/// A file system of its own, so small that it fills up.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: &Path, mebibytes: u32) -> Self {
        fs::create_dir(path).unwrap();
        let size = format!("size={mebibytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(path).status().unwrap();
        assert!(mounted.success());
        Self(path.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What still runs there keeps it until it ends.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test]
async fn e1_on_a_full_disk_ends_are_recorded_and_the_site_closes_until_there_is_room() {
    let folder = tempfile::Builder::new().prefix("atoll-site-").tempdir().unwrap();
    // The reserve of the journal is only taken where there is four times as much.
    let disk = SmallDisk::mount(&folder.path().join("disk"), 320);
    let data = disk.0.join("data");
    let mut site = Site::start_in(folder, data, "").await;
    let quiet = site.run("until [ -e @/end ]; do sleep 0.02; done; echo last words >&2; exit 5");
    site.control.started(quiet).await;
    // It stops short of the last bytes: what writes until nothing is left takes the reserve as well.
    let filler = site.run(
        "free=$(df --output=avail -B1 . | tail -n 1); head -c $((free - 2000000)) /dev/zero > fill; echo full > @/full
until [ -e @/room ]; do sleep 0.02; done",
    );
    site.trace("full").await;
    let closed = |state: &crate::control::State| state.heartbeats.last()?.closed.clone();
    let why = site.control.until("the close of the site", closed).await;
    assert!(why.contains("full"), "{why}");

    site.open_gate("end");
    let end = site.control.finished(quiet).await;
    assert!(matches!(end.outcome, Outcome::Failed { exit_code: Some(5), .. }), "{end:?}");
    // Even an agent that is killed now comes back, and finds what runs.
    site.kill_agent();
    site.start_agent().await;
    site.open_gate("room");
    assert_eq!(site.control.finished(filler).await.outcome, Outcome::Succeeded);
    let open = |state: &crate::control::State| state.heartbeats.last()?.closed.is_none().then_some(());
    site.control.until("the site's opening", open).await;
    let next = site.run("true");
    assert_eq!(site.control.finished(next).await.outcome, Outcome::Succeeded);
    drop(site);
    drop(disk);
}

#[tokio::test]
async fn e1_an_output_that_fills_the_disk_fails_by_name_and_leaves_room() {
    let folder = tempfile::Builder::new().prefix("atoll-site-").tempdir().unwrap();
    let disk = SmallDisk::mount(&folder.path().join("disk"), 200);
    let data = disk.0.join("data");
    let mut site = Site::start_in(folder, data, "").await;
    let mut step = site.step("cat /dev/zero > \"$ATOLL_OUTPUTS/big\"");
    step.outputs = vec![output("big", Type::File)];
    let execution = site.run_step(step);
    let end = site.control.finished(execution).await;
    assert!(matches!(end.outcome, Outcome::Failed { reason: FailureReason::ExitCode, .. }), "{end:?}");
    assert!(end.logs.stderr.is_some(), "it could say that there was no space");
    let next = site.run("true");
    assert_eq!(site.control.finished(next).await.outcome, Outcome::Succeeded);
    drop(site);
    drop(disk);
}

#[tokio::test]
async fn a7_a_record_of_an_end_that_was_torn_is_none() {
    let mut site = Site::start().await;
    let mut step =
        site.step("echo $$ > @/pid; until [ -e @/gate ]; do sleep 0.02; done; echo x > \"$ATOLL_OUTPUTS/out\"");
    step.outputs = vec![output("out", Type::File)];
    let execution = site.run_step(step);
    let running = site.traced_pid("pid").await;
    let before = log_bytes(&site, execution).await;
    site.kill_agent();
    site.open_gate("gate");
    gone("what runs", running).await;
    noted_end(&site, before).await;
    for shim in site.shims() {
        kill_process(shim, Signal::KILL).unwrap();
        gone("a shim", shim).await;
    }
    let log = site.slots()[0].join("log");
    let mut bytes = fs::read(&log).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&log, bytes).unwrap();
    site.start_agent().await;
    let end = site.control.finished(execution).await;
    assert!(matches!(end.outcome, Outcome::Interrupted { .. }), "{end:?}");
    eventually("an empty slot", || fs::read_dir(site.slots()[0].join("kept")).unwrap().next().is_none().then_some(()))
        .await;
}

#[tokio::test]
async fn a9_an_output_that_was_sealed_and_torn_when_the_machine_went_down_does_not_count() {
    let mut site = Site::start().await;
    let mut step = site.step("truncate -s 2000000000 \"$ATOLL_OUTPUTS/big\"");
    step.outputs = vec![output("big", Type::File)];
    let execution = site.run_step(step);
    let sealed = site.data().join("store/sealed");
    let seal = eventually("the seal of an output", || {
        let mut entries = fs::read_dir(&sealed).unwrap().flatten().map(|entry| entry.path());
        entries.find(|path| path.file_name().is_some_and(|name| name != "log"))
    })
    .await;
    site.kill_agent();
    assert!(site.control.look(|state| state.ends(execution).is_empty()), "it was killed in the middle");
    fs::File::options().write(true).open(&seal).unwrap().set_len(1_000_000).unwrap();
    reboot(&site);
    site.start_agent().await;
    let end = site.control.finished(execution).await;
    assert!(matches!(end.outcome, Outcome::Interrupted { .. }), "{end:?}");
    eventually("the end of the seal", || (!seal.exists()).then_some(())).await;
}
