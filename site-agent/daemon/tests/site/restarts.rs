//! Rows A5–A10, E7: the agent is killed, or the machine goes down, at each point of an execution.

use std::fs;
use std::path::Path;

use atoll_model::id::ExecutionId;
use atoll_model::session::{LocalState, Outcome};
use atoll_model::value::{Type, Value};
use atoll_model::workflow::StartMode;
use rustix::process::{Signal, kill_process};

use crate::site::{Site, eventually, gone, is_alive, output};

/// Leaves a line for each time that it starts, and waits for a gate.
const GATED: &str =
    "echo $$ >> @/starts; until [ -e @/gate ]; do sleep 0.02; done; echo done > \"$ATOLL_OUTPUTS/said\"";

#[tokio::test]
async fn a5_a_process_whose_start_was_not_journaled_is_found_and_runs_once() {
    let mut site = Site::start().await;
    // It kills the agent before its shim could say that it has started.
    let script = format!("kill -9 $(cat @/agent.pid); {GATED}");
    let mut step = site.step(&script);
    step.outputs = vec![output("said", Type::String)];
    let execution = site.run_step(step);
    let running = site.traced_pid("starts").await;
    site.agent_was_killed();
    assert!(!site.control.look(|state| state.is_started(execution)), "its start was never reported");

    site.start_agent().await;
    site.control.started(execution).await;
    assert!(is_alive(running));
    site.open_gate("gate");
    assert_eq!(site.control.finished(execution).await.outputs, [Value::string("done")]);
    assert_eq!(site.trace("starts").await.lines().count(), 1);
}

#[tokio::test]
async fn a6_what_runs_is_found_again_each_time_and_never_doubled() {
    let mut site = Site::start().await;
    let mut step = site.step(&GATED.replace("starts", "starts.$ATOLL_EXECUTION"));
    step.outputs = vec![output("said", Type::String)];
    let executions = site.run_elements(step, 6);
    for execution in &executions[..6] {
        site.control.started(*execution).await;
    }
    let trace = |execution| format!("starts.{execution}");
    let mut running = Vec::new();
    for execution in &executions {
        running.push(site.traced_pid(&trace(*execution)).await);
    }
    for _ in 0..3 {
        site.kill_agent();
        site.start_agent().await;
        let inventory = site.control.look(|state| state.inventories.last().unwrap().clone());
        assert_eq!(inventory.len(), 6);
        assert!(inventory.iter().all(|item| item.state == LocalState::Running), "{inventory:?}");
    }
    assert!(running.iter().all(|pid| is_alive(*pid)));
    site.open_gate("gate");
    for execution in executions {
        assert_eq!(site.control.finished(execution).await.outcome, Outcome::Succeeded);
        assert_eq!(site.trace(&trace(execution)).await.lines().count(), 1);
    }
}

#[tokio::test]
async fn a6_stopping_the_agent_stops_nothing_else() {
    let mut site = Site::start().await;
    let execution = site.run(GATED);
    let running = site.traced_pid("starts").await;
    assert!(site.stop_agent().await.success(), "{}", site.agent_log());
    assert!(is_alive(running));
    site.start_agent().await;
    site.open_gate("gate");
    assert_eq!(site.control.finished(execution).await.outcome, Outcome::Succeeded);
}

/// Makes the log of a slot say that it was written before the machine was booted last.
fn age(log: &Path) {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let bytes = fs::read(log).unwrap();
    let (mut rest, mut aged) = (bytes.as_slice(), Vec::new());
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let (_digest, after) = after.split_at(4);
        let (body, after) = after.split_at(u32::from_le_bytes(*length) as usize);
        let mut body = body.to_vec();
        let found = body.windows(36).position(|part| part == boot.trim().as_bytes());
        if let Some(place) = found {
            body[place..place + 8].copy_from_slice(b"00000000");
        }
        aged.extend_from_slice(length);
        aged.extend_from_slice(&blake3::hash(&body).as_bytes()[..4]);
        aged.extend_from_slice(&body);
        rest = after;
    }
    assert_ne!(aged, bytes, "a log names the boot");
    fs::write(log, aged).unwrap();
}

/// Takes the machine down under an agent that is dead: its shims die, and what comes after them is another boot.
pub(crate) fn reboot(site: &Site) {
    for shim in site.shims() {
        kill_process(shim, Signal::KILL).unwrap();
    }
    for slot in site.slots() {
        age(&slot.join("log"));
    }
}

/// How long the log of the slot is while the execution runs.
pub(crate) async fn log_bytes(site: &Site, execution: ExecutionId) -> u64 {
    site.control.started(execution).await;
    fs::metadata(site.slots()[0].join("log")).unwrap().len()
}

/// Waits until the shim has noted an end in its log.
pub(crate) async fn noted_end(site: &Site, before: u64) {
    let log = site.slots()[0].join("log");
    eventually("the note of an end", || (fs::metadata(&log).unwrap().len() > before).then_some(())).await;
}

#[tokio::test]
async fn a7_what_ran_when_the_machine_went_down_is_interrupted() {
    let mut site = Site::start().await;
    let execution = site.run(GATED);
    site.control.started(execution).await;
    let running = site.traced_pid("starts").await;
    site.kill_agent();
    reboot(&site);
    kill_process(running, Signal::KILL).unwrap();
    site.start_agent().await;
    let end = site.control.finished(execution).await;
    assert_eq!(end.outcome, Outcome::Interrupted { message: "the machine went down while it ran".to_owned() });
    assert_eq!(site.trace("starts").await.lines().count(), 1);
}

#[tokio::test]
async fn a7_outputs_that_were_not_taken_in_when_the_machine_went_down_do_not_count() {
    let mut site = Site::start().await;
    let mut step = site.step(GATED);
    step.outputs = vec![output("said", Type::File)];
    let execution = site.run_step(step);
    let running = site.traced_pid("starts").await;
    let before = log_bytes(&site, execution).await;
    site.kill_agent();
    site.open_gate("gate");
    gone("what runs", running).await;
    let kept = site.slots()[0].join("kept").join(format!("{execution}.1/out/said"));
    eventually("what it left", || kept.exists().then_some(())).await;
    noted_end(&site, before).await;
    // The end was made durable, and what was written before it was not.
    fs::write(&kept, "").unwrap();
    reboot(&site);
    site.start_agent().await;
    let end = site.control.finished(execution).await;
    assert!(matches!(end.outcome, Outcome::Interrupted { .. }), "{end:?}");
    eventually("the end of what it left", || (!kept.exists()).then_some(())).await;
}

#[tokio::test]
async fn a7_what_ended_without_outputs_when_the_machine_went_down_has_ended() {
    let mut site = Site::start().await;
    let mut step = site.step(&GATED.replace("> \"$ATOLL_OUTPUTS/said\"", ""));
    step.start = StartMode::AtMostOnce;
    let execution = site.run_step(step);
    let running = site.traced_pid("starts").await;
    let before = log_bytes(&site, execution).await;
    site.kill_agent();
    site.open_gate("gate");
    gone("what runs", running).await;
    noted_end(&site, before).await;
    reboot(&site);
    site.start_agent().await;
    assert_eq!(site.control.finished(execution).await.outcome, Outcome::Succeeded);
}

#[tokio::test]
async fn a8_an_end_that_nobody_saw_is_taken_in_from_the_shim_or_from_its_log() {
    // A small value is told with the end, and stands in the slot's log; a file is moved aside.
    for (shim_lives, kind) in [(true, Type::String), (false, Type::String), (true, Type::File), (false, Type::File)] {
        let mut site = Site::start().await;
        let mut step = site.step(GATED);
        step.outputs = vec![output("said", kind.clone())];
        let execution = site.run_step(step);
        let running = site.traced_pid("starts").await;
        let before = log_bytes(&site, execution).await;
        site.kill_agent();
        site.open_gate("gate");
        gone("what runs", running).await;
        noted_end(&site, before).await;
        let kept = site.slots()[0].join("kept").join(format!("{execution}.1/out/said"));
        assert_eq!(kept.exists(), kind == Type::File);
        if !shim_lives {
            kill_process(site.shims()[0], Signal::KILL).unwrap();
        }
        site.start_agent().await;
        let end = site.control.finished(execution).await;
        match &end.outputs[0] {
            Value::File(file) => assert_eq!(file.bytes, 5, "{shim_lives}: {end:?}"),
            value => assert_eq!(*value, Value::string("done"), "{shim_lives}: {end:?}"),
        }
        assert_eq!(site.trace("starts").await.lines().count(), 1);
    }
}

#[tokio::test]
async fn a9_an_agent_killed_while_it_takes_in_outputs_takes_them_in_again() {
    let mut site = Site::start().await;
    let mut step = site.step("truncate -s 2000000000 \"$ATOLL_OUTPUTS/big\"; echo why >&2");
    step.outputs = vec![output("big", Type::File)];
    let execution = site.run_step(step);
    let sealed = site.data().join("store/sealed");
    eventually("the seal of an output", || {
        let mut names = fs::read_dir(&sealed).unwrap().flatten().map(|entry| entry.file_name());
        names.any(|name| name != "log").then_some(())
    })
    .await;
    site.kill_agent();
    assert!(site.control.look(|state| state.ends(execution).is_empty()), "it was killed in the middle");
    site.start_agent().await;
    let end = site.control.finished(execution).await;
    let Value::File(file) = &end.outputs[0] else { panic!("{end:?}") };
    let mut zeros = blake3::Hasher::new();
    for _ in 0..2_000 {
        zeros.update(&[0; 1_000_000]);
    }
    assert_eq!(file.object, atoll_model::id::ObjectId::from_digest(*zeros.finalize().as_bytes()));
    assert!(end.logs.stderr.is_some());
}

#[tokio::test]
async fn a10_an_agent_killed_once_its_outputs_are_stored_reports_them() {
    let mut site = Site::start().await;
    for round in 0..5 {
        let mut step = site.step(&format!("echo {round} > \"$ATOLL_OUTPUTS/said\""));
        step.outputs = vec![output("said", Type::File)];
        let execution = site.run_step(step);
        let id = blake3::hash(format!("{round}\n").as_bytes()).to_hex().to_string();
        let object = site.data().join("store/objects").join(&id[..2]);
        eventually("the object", || fs::read_dir(&object).ok()?.next().map(drop)).await;
        site.kill_agent();
        site.start_agent().await;
        let end = site.control.finished(execution).await;
        let Value::File(file) = &end.outputs[0] else { panic!("{end:?}") };
        assert_eq!(file.object.hex(), id);
        // What it left is let go, and so is its seal.
        eventually("the release", || {
            fs::read_dir(site.slots()[0].join("kept")).unwrap().next().is_none().then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a12_a_report_that_was_not_heard_is_sent_again_after_a_restart() {
    let mut site = Site::start().await;
    site.control.deafen(true);
    let execution = site.run("echo said >> @/trace");
    site.trace("trace").await;
    site.kill_agent();
    site.control.deafen(false);
    site.start_agent().await;
    assert_eq!(site.control.finished(execution).await.outcome, Outcome::Succeeded);
    assert_eq!(site.trace("trace").await, "said\n");
}

#[tokio::test]
async fn e7_a_second_agent_is_kept_out_and_told_who_is_in() {
    let mut site = Site::start().await;
    let refused = site.agent_command().output().unwrap();
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("already works in") && said.contains(&format!("process {}", site.agent_pid())), "{said}");
    // The lock of one that was killed holds nobody up.
    site.kill_agent();
    site.start_agent().await;
}
