//! Rows E3, E4: the agent is stopped for longer than its lease, or taken by the kernel because memory has run out.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::site::{Site, eventually, is_alive};

const GATED: &str = "echo $$ >> @/starts; until [ -e @/gate ]; do sleep 0.02; done";
const LEASE: Duration = Duration::from_secs(1);

fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).unwrap();
    kill_process(pid, signal).unwrap();
}

#[tokio::test]
async fn e3_an_agent_that_was_stopped_beyond_its_lease_is_answered_before_it_starts_anything() {
    let mut site = Site::start().await;
    site.control.lease_for(LEASE);
    site.kill_agent();
    site.start_agent().await;
    let first = site.run(GATED);
    site.control.started(first).await;
    let running = site.traced_pid("starts").await;

    signal(site.agent_pid(), Signal::STOP);
    site.control.mute(true);
    let second = site.run("echo $$ >> @/second");
    let stopped = Instant::now();
    eventually("the end of the lease", || (stopped.elapsed() > LEASE * 2).then_some(())).await;
    assert!(is_alive(running), "what runs does not notice");
    let heartbeats = site.control.look(|state| state.heartbeats.len());
    signal(site.agent_pid(), Signal::CONT);
    let has_it = |state: &crate::control::State| {
        (state.acknowledged_all() && state.heartbeats.len() >= heartbeats + 2).then_some(())
    };
    site.control.until("the command taken in and two heartbeats", has_it).await;
    assert!(!site.control.look(|state| state.is_started(second)));
    assert!(!site.scratch().join("second").exists(), "it has the command, and no lease to start it under");

    site.control.mute(false);
    site.control.finished(second).await;
    assert!(is_alive(running));
    site.open_gate("gate");
    site.control.finished(first).await;
    assert_eq!(site.trace("starts").await.lines().count(), 1);
}

#[tokio::test]
async fn e4_executions_are_taken_before_the_agent_and_an_agent_that_was_taken_finds_them_again() {
    let mut site = Site::start().await;
    // As the unit of systemd has it; without the right to, the agent counts as any process does.
    let protected = fs::write(format!("/proc/{}/oom_score_adj", site.agent_pid()), "-500").is_ok();
    let execution = site.run(GATED);
    site.control.started(execution).await;
    let running = site.traced_pid("starts").await;
    let read = |pid: u32, file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    let pid = running.as_raw_nonzero().get().unsigned_abs();
    assert_eq!(read(pid, "oom_score_adj").trim(), "0", "the kernel takes it like any other process");
    assert_eq!(read(site.agent_pid(), "oom_score_adj").trim(), if protected { "-500" } else { "0" });
    if !site.agent_log().contains("may not make control groups") {
        assert_ne!(read(pid, "cgroup"), read(site.agent_pid(), "cgroup"), "it is in a group of its own");
    }

    // What the kernel does when memory has run out.
    site.kill_agent();
    assert!(is_alive(running));
    site.start_agent().await;
    site.open_gate("gate");
    site.control.finished(execution).await;
    assert_eq!(site.trace("starts").await.lines().count(), 1);
}
