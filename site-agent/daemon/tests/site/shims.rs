//! A shim that dies: what it watched over ends with it, what it had not begun is run elsewhere, and nothing twice.

use atoll_model::session::Outcome;
use rustix::process::{Signal, kill_process};

use crate::site::{Site, eventually, gone, is_alive};

const DAEMON: &str = "setsid sh -c 'echo $$ > @/daemon.next; mv @/daemon.next @/daemon; exec sleep 300' &
until [ -e @/daemon ]; do sleep 0.01; done";

#[tokio::test]
async fn a5_what_a_dead_shim_watched_over_is_ended_whole_and_interrupted() {
    let mut site = Site::start().await;
    let execution = site.run(&format!("{DAEMON}\necho $$ >> @/main; exec sleep 300"));
    let main = site.traced_pid("main").await;
    let daemon = site.traced_pid("daemon").await;
    kill_process(site.shims()[0], Signal::KILL).unwrap();
    let end = site.control.finished(execution).await;
    assert_eq!(end.outcome, Outcome::Interrupted { message: "the process that watched over it has died".to_owned() });
    assert!(!is_alive(main) && !is_alive(daemon), "nothing is left when the end is told");
    let next = site.run("true");
    assert_eq!(site.control.finished(next).await.outcome, Outcome::Succeeded);
}

#[tokio::test]
async fn a5_strays_of_a_shim_that_died_without_an_agent_are_ended_before_anything_starts() {
    let mut site = Site::start().await;
    let execution = site.run(&format!("{DAEMON}\necho $$ >> @/main; exec sleep 300"));
    let main = site.traced_pid("main").await;
    let daemon = site.traced_pid("daemon").await;
    let shims = site.shims();
    site.kill_agent();
    for shim in shims {
        kill_process(shim, Signal::KILL).unwrap();
        gone("a shim", shim).await;
    }
    assert!(is_alive(main) && is_alive(daemon), "the main process was not the shim's to take along");
    site.start_agent().await;
    assert!(!is_alive(main) && !is_alive(daemon), "they are ended before the session");
    assert!(matches!(site.control.finished(execution).await.outcome, Outcome::Interrupted { .. }));
}

#[tokio::test]
async fn a6_an_agent_killed_again_and_again_after_a_dead_shim_tells_of_it_once() {
    let mut site = Site::start().await;
    site.control.deafen(true);
    let execution = site.run("echo $$ >> @/main; exec sleep 300");
    site.trace("main").await;
    site.kill_agent();
    kill_process(site.shims()[0], Signal::KILL).unwrap();
    for round in 0..3 {
        site.start_agent().await;
        // The slot is taken by another, which drops what its log said of the shim before.
        site.run(&format!("echo other >> @/other.{round}"));
        site.trace(&format!("other.{round}")).await;
        site.kill_agent();
    }
    site.control.deafen(false);
    site.start_agent().await;
    assert!(matches!(site.control.finished(execution).await.outcome, Outcome::Interrupted { .. }));
    assert_eq!(site.trace("main").await.lines().count(), 1);
}

#[tokio::test]
async fn a_cancel_is_heard_though_the_shim_died_before_it_could_hear_it() {
    let mut site = Site::start().await;
    // One slot, in which the others of the step queue behind the first: it is stopped, so that it hears nothing.
    let mut step = site.step("echo $ATOLL_EXECUTION >> @/starts; [ -e @/short ] || exec sleep 300");
    step.resources.cpu_millis = 4_000;
    site.open_gate("short");
    for execution in site.run_elements(step.clone(), 8) {
        site.control.finished(execution).await;
    }
    let shim = site.shims()[0];
    kill_process(shim, Signal::STOP).unwrap();
    std::fs::remove_file(site.scratch().join("short")).unwrap();
    let before = site.trace("starts").await;
    let next = site.step("echo $ATOLL_EXECUTION >> @/starts; exec sleep 300");
    let next = site.run_step(next);
    // Handed to the shim that does not hear, and cancelled there.
    site.cancel(next);
    site.control.until("the cancel's acknowledgement", |state| state.acknowledged_all().then_some(())).await;
    kill_process(shim, Signal::KILL).unwrap();
    assert_eq!(site.control.finished(next).await.outcome, Outcome::Cancelled);
    assert_eq!(site.trace("starts").await, before, "it never started");
    eventually("the end of the dead shim", || (!site.shims().contains(&shim)).then_some(())).await;
}

/// Keeps a process from everything, its own end too, as a file system that is away does.
struct Freezer(std::path::PathBuf);

impl Freezer {
    /// Nothing where the machine has none.
    fn freeze(process: rustix::process::Pid) -> Option<Self> {
        let folder = std::path::PathBuf::from(format!("/sys/fs/cgroup/freezer/atoll-test-{}", std::process::id()));
        std::fs::create_dir(&folder).ok()?;
        let freezer = Self(folder);
        std::fs::write(freezer.0.join("cgroup.procs"), process.as_raw_nonzero().to_string()).ok()?;
        std::fs::write(freezer.0.join("freezer.state"), "FROZEN").ok()?;
        Some(freezer)
    }

    fn thaw(&self) {
        std::fs::write(self.0.join("freezer.state"), "THAWED").unwrap();
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        // Whatever became of the test, nothing stays frozen.
        let _ = std::fs::write(self.0.join("freezer.state"), "THAWED");
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[tokio::test]
async fn a6_an_agent_starts_beside_what_cannot_be_ended_and_tells_its_end_when_it_comes() {
    let mut site = Site::start().await;
    let execution = site.run("echo $$ > @/main; exec sleep 300");
    let main = site.traced_pid("main").await;
    site.control.started(execution).await;
    let freezer = Freezer::freeze(main);
    let shim = site.shims()[0];
    site.kill_agent();
    kill_process(shim, Signal::KILL).unwrap();
    gone("a shim", shim).await;
    site.start_agent().await;
    if let Some(freezer) = &freezer {
        let next = site.run("true");
        assert_eq!(site.control.finished(next).await.outcome, Outcome::Succeeded, "the site works");
        assert!(site.control.look(|state| state.ends(execution).is_empty()), "what may run has not ended");
        assert!(is_alive(main));
        freezer.thaw();
    }
    assert!(matches!(site.control.finished(execution).await.outcome, Outcome::Interrupted { .. }));
    assert!(!is_alive(main));
}
