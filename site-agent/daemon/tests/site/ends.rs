//! How executions end: limits that are enforced, children that are not left behind, cancels.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use atoll_model::resources::Resources;
use atoll_model::session::{FailureReason, Outcome, StepTemplate, TemplateWork};

use crate::site::{Site, eventually, gone, is_alive};

fn reason(outcome: &Outcome) -> FailureReason {
    match outcome {
        Outcome::Failed { reason, .. } => *reason,
        other => panic!("it has not failed: {other:?}"),
    }
}

/// Starts a process that leaves its group and session and lets its parent go, and writes down its number.
const DAEMON: &str = "setsid sh -c 'echo $$ > @/daemon.next; mv @/daemon.next @/daemon; exec sleep 300' &
until [ -e @/daemon ]; do sleep 0.01; done";

#[tokio::test]
async fn a_step_that_runs_for_too_long_is_ended_whole_and_says_so() {
    let mut site = Site::start().await;
    let mut step = site.step(&format!("{DAEMON}\nsleep 300"));
    step.resources = Resources { time: Some(Duration::from_millis(700)), ..step.resources };
    let execution = site.run_step(step);
    let daemon = site.traced_pid("daemon").await;
    let end = site.control.finished(execution).await;
    assert_eq!(reason(&end.outcome), FailureReason::TimedOut);
    let ran = end.finished_at.saturating_since(end.started_at.unwrap());
    assert!(ran >= Duration::from_millis(700) && ran < Duration::from_secs(20), "{ran:?}");
    assert!(!is_alive(daemon), "nothing is left when the end is told");
}

#[tokio::test]
async fn a_time_limit_is_kept_while_the_agent_is_down() {
    let mut site = Site::start().await;
    let mut step = site.step(&format!("{DAEMON}\nsleep 300"));
    step.resources = Resources { time: Some(Duration::from_millis(700)), ..step.resources };
    let execution = site.run_step(step);
    let daemon = site.traced_pid("daemon").await;
    site.kill_agent();
    gone("what ran for too long", daemon).await;
    site.start_agent().await;
    assert_eq!(reason(&site.control.finished(execution).await.outcome), FailureReason::TimedOut);
}

#[tokio::test]
async fn a_step_that_takes_too_much_memory_is_said_to_have_and_its_neighbour_lives() {
    let mut site = Site::start().await;
    let neighbour = site.run("until [ -e @/gate ]; do sleep 0.02; done");
    site.control.started(neighbour).await;
    // `tail` keeps all of it, since there is no line.
    let mut step = site.step("head -c 400000000 /dev/zero | tail -n 1 > /dev/null || echo $? > @/status; exit 9");
    step.resources = Resources { memory_bytes: Some(48 << 20), ..step.resources };
    let greedy = site.run_step(step.clone());
    let end = site.control.finished(greedy).await;
    let limited = !site.agent_log().contains("may not make control groups");
    if limited {
        assert_eq!(reason(&end.outcome), FailureReason::OutOfMemory, "{end:?}");
    } else {
        // Without control groups it is refused the memory, and fails by itself.
        assert_eq!(reason(&end.outcome), FailureReason::ExitCode, "{end:?}");
    }
    assert_ne!(site.trace("status").await, "0\n");
    // The next in that slot is not blamed for it.
    let next = site.run("exit 3");
    assert_eq!(reason(&site.control.finished(next).await.outcome), FailureReason::ExitCode);
    site.open_gate("gate");
    assert_eq!(site.control.finished(neighbour).await.outcome, Outcome::Succeeded);
}

#[tokio::test]
async fn what_a_step_leaves_running_is_ended_with_it() {
    let mut site = Site::start().await;
    let execution = site.run(&format!("{DAEMON}\n(trap '' TERM HUP INT; sleep 300) &\necho fine"));
    let end = site.control.finished(execution).await;
    assert_eq!(end.outcome, Outcome::Succeeded);
    let daemon = site.traced_pid("daemon").await;
    assert!(!is_alive(daemon), "nothing is left when the end is told");
    assert!(end.logs.stdout.is_some());
}

#[tokio::test]
async fn a_step_that_forks_without_end_is_ended_with_all_of_it() {
    let mut site = Site::start().await;
    // Each process starts another and ends, so that whoever is found may be gone when it is killed.
    let script = "cat > @/chain <<'END'\ntrue > @/alive\n[ -e @/stop ] || setsid sh @/chain &\nEND
sh @/chain\nuntil [ -e @/alive ]; do sleep 0.01; done";
    let execution = site.run(script);
    assert_eq!(site.control.finished(execution).await.outcome, Outcome::Succeeded);
    std::fs::remove_file(site.scratch().join("alive")).unwrap();
    let next = site.run("sleep 0.2");
    assert_eq!(site.control.finished(next).await.outcome, Outcome::Succeeded);
    let still = site.scratch().join("alive").exists();
    site.open_gate("stop");
    assert!(!still, "a process of it goes on");
}

#[tokio::test]
async fn a_cancel_ends_all_that_an_execution_started() {
    let mut site = Site::start().await;
    let execution = site.run(&format!("trap '' TERM INT HUP\n{DAEMON}\nsh -c 'echo $$ > @/child; exec sleep 300'"));
    let daemon = site.traced_pid("daemon").await;
    let child = site.traced_pid("child").await;
    site.cancel(execution);
    assert_eq!(site.control.finished(execution).await.outcome, Outcome::Cancelled);
    assert!(!is_alive(daemon) && !is_alive(child));
}

#[tokio::test]
async fn a_cancel_that_races_a_start_leaves_nothing_running() {
    let mut site = Site::start().await;
    for round in 0..30 {
        let execution = site.run(&format!("echo $$ > @/pid.{round}; exec sleep 300"));
        if round % 3 == 1 {
            tokio::task::yield_now().await;
        } else if round % 3 == 2 {
            site.control.started(execution).await;
        }
        site.cancel(execution);
        let outcome = site.control.finished(execution).await.outcome;
        let cancelled = matches!(
            outcome,
            Outcome::Cancelled | Outcome::NotStarted { reason: atoll_model::session::NotStartedReason::Cancelled, .. }
        );
        assert!(cancelled, "{outcome:?}");
        let left = std::fs::read_to_string(site.scratch().join(format!("pid.{round}"))).ok();
        let left = left.and_then(|text| rustix::process::Pid::from_raw(text.trim().parse().ok()?));
        assert!(left.is_none_or(|pid| !is_alive(pid)), "round {round}");
    }
}

#[tokio::test]
async fn a_cancel_that_comes_while_the_agent_is_down_reaches_what_runs() {
    let mut site = Site::start().await;
    let execution = site.run("echo $$ > @/pid; exec sleep 300");
    let running = site.traced_pid("pid").await;
    site.control.started(execution).await;
    site.kill_agent();
    site.cancel(execution);
    site.start_agent().await;
    assert_eq!(site.control.finished(execution).await.outcome, Outcome::Cancelled);
    assert!(!is_alive(running));
}

#[tokio::test]
async fn executions_of_one_slot_see_nothing_of_each_other() {
    let mut site = Site::start().await;
    let mut step = site.step(
        "ls -A . \"$TMPDIR\" \"$ATOLL_OUTPUTS\" >> @/seen
touch mine; echo x > \"$TMPDIR/mine\"; mkdir sub; chmod 500 sub; echo said; echo wrong >&2",
    );
    step.resources.cpu_millis = 4_000;
    let executions = site.run_elements(step, 4);
    for execution in executions {
        let end = site.control.finished(execution).await;
        assert_eq!(end.outcome, Outcome::Succeeded);
        let [stdout, stderr] = [end.logs.stdout, end.logs.stderr].map(|log| log.unwrap().bytes);
        assert_eq!((stdout, stderr), (5, 6), "each has its own logs");
    }
    let seen = site.trace("seen").await;
    assert!(seen.lines().all(|line| line.is_empty() || line.ends_with(':')), "{seen}");
    eventually("an empty slot", || {
        let kept = site.slots()[0].join("kept");
        std::fs::read_dir(kept).unwrap().next().is_none().then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_is_no_program_for_this_machine_is_said_to_be_none() {
    let mut site = Site::start().await;
    let path = site.scratch().join("program");
    std::fs::write(&path, [0, 1, 2, 3]).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let command = vec![path.to_str().unwrap().to_owned()];
    let step = StepTemplate { work: TemplateWork::Command { command, bundle: None }, ..site.step("") };
    let execution = site.run_step(step);
    let end = site.control.finished(execution).await;
    let Outcome::Failed { message, .. } = &end.outcome else { panic!("it has not failed: {end:?}") };
    assert!(
        message.contains("program cannot be started: it is neither a program for this machine nor a script"),
        "{message}"
    );
    let next = site.run("true");
    assert_eq!(site.control.finished(next).await.outcome, Outcome::Succeeded);
}

#[tokio::test]
async fn what_a_step_writes_to_a_disk_is_told_with_its_end() {
    let mut site = Site::start().await;
    // Where a machine has its temporary files in memory, these are not.
    let write = "dd if=/dev/zero of=/var/tmp/atoll-$ATOLL_EXECUTION bs=65536 count=64 conv=fsync 2> /dev/null";
    let written = site.run(&format!("{write}; rm /var/tmp/atoll-$ATOLL_EXECUTION"));
    let usage = site.control.finished(written).await.usage;
    assert!((4 << 20..64 << 20).contains(&usage.disk_written_bytes), "{usage:?}");
    let idle = site.run("true");
    let usage = site.control.finished(idle).await.usage;
    assert!(usage.disk_written_bytes < 1 << 20, "of another there is nothing in it: {usage:?}");
}
