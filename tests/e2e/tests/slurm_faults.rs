//! Slurm sites while something fails: rows F1 to F6 of the failure matrix, with a real cluster.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e_tests::{Cluster, Run, SlurmCluster};
use serde_json::Value;

use crate::slurm::{effects, site_on};

/// So many jobs of a CPU and a time that each leave a line at their start and at their end.
fn workflow(effects: &Path, count: u32, seconds: &str) -> String {
    format!(
        "workflow: faults\nsteps:\n  a:\n    foreach: ${{{{ range({count}) }}}}\n    with: {{ number: \"${{{{ item }}}}\" }}\n    run: |\n      echo \"start $number\" >> {effects}\n      sleep {seconds}\n      echo \"end $number\" >> {effects}\n",
        effects = effects.display()
    )
}

fn started(path: &Path) -> Result<usize> {
    Ok(effects(path)?.keys().filter(|line| line.starts_with("start ")).count())
}

/// Waits for the end of a run while nodes are brought back that a restarted controller takes out.
pub(crate) fn end_with(slurm: &SlurmCluster, cluster: &Cluster, run: &Run) -> Result<Value> {
    let begun = Instant::now();
    loop {
        slurm.resume()?;
        let shown = cluster.show(run)?;
        if shown["state"] != "running" {
            return Ok(shown);
        }
        ensure!(begun.elapsed() < Duration::from_secs(240), "{shown:#}\n{}", cluster.log("hpc"));
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// All succeeded, and each began and ended once.
fn check_ran_once(shown: &Value, path: &Path, count: usize, cluster: &Cluster) -> Result<()> {
    assert_eq!(shown["state"], "succeeded", "{:#}\n{}", shown["error"], cluster.log("hpc"));
    let seen = effects(path)?;
    let more: Vec<_> = seen.iter().filter(|(_, times)| **times != 1).collect();
    assert!(more.is_empty(), "not exactly once: {more:?}\n{}", cluster.log("hpc"));
    assert_eq!(seen.len(), 2 * count, "{seen:?}");
    Ok(())
}

#[test]
fn f1_a_controller_that_is_away_fails_nothing() -> Result<()> {
    let Some(slurm) = SlurmCluster::start("c1", 11)? else { return Ok(()) };
    let cluster = site_on(&slurm, "")?;
    let path = cluster.directory().join("effects");
    // What is to start waits until the controller is back.
    std::fs::write(&path, "")?;
    slurm.kill("slurmctld")?;
    let run = cluster.submit(&workflow(&path, 2, "0.1"), &[])?;
    cluster.eventually("the agent to say so", || Ok(cluster.log("hpc").contains("Slurm cannot be reached")))?;
    assert_eq!(cluster.show(&run)?["state"], "running");
    slurm.start_daemon("slurmctld", &[])?;
    let shown = end_with(&slurm, &cluster, &run)?;
    check_ran_once(&shown, &path, 2, &cluster)?;
    // What runs goes on, and its own word of its end counts.
    std::fs::write(&path, "")?;
    let run = cluster.submit(&workflow(&path, 3, "3"), &[])?;
    cluster.eventually("all to run", || Ok(started(&path)? == 3))?;
    slurm.kill("slurmctld")?;
    let shown = cluster.wait_for_end(&run)?;
    check_ran_once(&shown, &path, 3, &cluster)
}

#[test]
fn f2_an_agent_that_is_killed_around_its_submission_submits_nothing_twice() -> Result<()> {
    let Some(slurm) = SlurmCluster::start("c1", 12)? else { return Ok(()) };
    let mut cluster = site_on(&slurm, "")?;
    let path = cluster.directory().join("effects");
    // Before the jobs are gathered, around `sbatch`, while they wait to be started, and while they run.
    for after in [40, 110, 130, 170, 260, 600, 1_300] {
        std::fs::write(&path, "")?;
        let ended_before = slurm.ended()?.len();
        let run = cluster.submit(&workflow(&path, 6, "1"), &[])?;
        std::thread::sleep(Duration::from_millis(after));
        cluster.kill_agent("hpc")?;
        cluster.start_agent("hpc")?;
        let shown = cluster.wait_for_end(&run)?;
        check_ran_once(&shown, &path, 6, &cluster)?;
        cluster.eventually("the cluster to be done", || Ok(slurm.queue()?.is_empty()))?;
        let jobs = slurm.ended()?.len() - ended_before;
        assert_eq!(jobs, 6, "killed after {after} ms: {jobs} jobs for 6 attempts\n{}", cluster.log("hpc"));
    }
    Ok(())
}

#[test]
fn f3_jobs_that_the_controller_forgot_are_submitted_again_and_run_once() -> Result<()> {
    let Some(slurm) = SlurmCluster::start("c1", 13)? else { return Ok(()) };
    let cluster = site_on(&slurm, "forgotten_seconds = 5\n")?;
    let path = cluster.directory().join("effects");
    std::fs::write(&path, "")?;
    slurm.ask("sbatch", &["--cpus-per-task=16", "--output=/dev/null", "--wrap=sleep 600"])?;
    let run = cluster.submit(&workflow(&path, 6, "0.1"), &[])?;
    cluster.eventually("six to wait behind another's", || Ok(slurm.queue()?.len() == 7))?;
    slurm.kill("slurmctld")?;
    slurm.start_daemon("slurmctld", &["-c"])?;
    let shown = end_with(&slurm, &cluster, &run)?;
    check_ran_once(&shown, &path, 6, &cluster)?;
    assert!(cluster.log("hpc").contains("submitted again"), "{}", cluster.log("hpc"));
    Ok(())
}

/// A controller that has forgotten a job ends it when it hears that a node runs it: then it is tried again.
#[test]
fn f3_a_controller_that_is_killed_right_after_a_submission_loses_nothing() -> Result<()> {
    let Some(slurm) = SlurmCluster::start("c1", 14)? else { return Ok(()) };
    let cluster = site_on(&slurm, "forgotten_seconds = 5\n")?;
    let path = cluster.directory().join("effects");
    std::fs::write(&path, "")?;
    let text = workflow(&path, 8, "2").replace("    run: |", "    retry: { attempts: 3 }\n    run: |");
    let run = cluster.submit(&text, &[])?;
    let batches = cluster.site("hpc").directory.join("jobs/batches");
    cluster.eventually("the jobs to be submitted", || {
        let texts = std::fs::read_dir(&batches)?.flatten().map(|entry| std::fs::read_to_string(entry.path()));
        Ok(texts.flatten().any(|text| !text.contains("\"job\":null")))
    })?;
    slurm.kill("slurmctld")?;
    slurm.start_daemon("slurmctld", &[])?;
    // What the cluster ended without a word is missed after a minute.
    let shown = end_with(&slurm, &cluster, &run)?;
    assert_eq!(shown["state"], "succeeded", "{:#}\n{}", shown["error"], cluster.log("hpc"));
    let ends: Vec<(String, usize)> = effects(&path)?.into_iter().filter(|(line, _)| line.starts_with("end ")).collect();
    assert!(ends.len() == 8 && ends.iter().all(|(_, times)| *times == 1), "{ends:?}");
    Ok(())
}

#[test]
fn f4_jobs_of_a_node_whose_daemon_died_run_once_it_is_back() -> Result<()> {
    let Some(slurm) = SlurmCluster::start("c1", 15)? else { return Ok(()) };
    let cluster = site_on(&slurm, "forgotten_seconds = 10\n")?;
    let path = cluster.directory().join("effects");
    std::fs::write(&path, "")?;
    let running = cluster.submit(&workflow(&path, 4, "4"), &[])?;
    cluster.eventually("four to run", || Ok(started(&path)? == 4))?;
    slurm.kill("slurmd")?;
    // What runs goes on without the daemon.
    let shown = cluster.wait_for_end(&running)?;
    check_ran_once(&shown, &path, 4, &cluster)?;
    std::fs::write(&path, "")?;
    let waiting = cluster.submit(&workflow(&path, 4, "0.1"), &[])?;
    cluster.eventually("the cluster to have them", || Ok(slurm.queue()?.len() >= 4))?;
    slurm.start_daemon("slurmd", &[])?;
    let shown = cluster.wait_for_end(&waiting)?;
    check_ran_once(&shown, &path, 4, &cluster)
}

#[test]
fn f5_the_end_of_a_job_that_the_controller_has_let_go_of_is_read_from_its_own_word() -> Result<()> {
    let Some(slurm) = SlurmCluster::start("c1", 16)? else { return Ok(()) };
    let mut cluster = site_on(&slurm, "")?;
    let path = cluster.directory().join("effects");
    std::fs::write(&path, "")?;
    let run = cluster.submit(&workflow(&path, 3, "1"), &[])?;
    cluster.eventually("all to run", || Ok(started(&path)? == 3))?;
    cluster.kill_agent("hpc")?;
    cluster.eventually("the cluster to be done", || Ok(slurm.queue()?.is_empty()))?;
    slurm.kill("slurmctld")?;
    slurm.start_daemon("slurmctld", &["-c"])?;
    assert_eq!(slurm.ask("squeue", &["--noheader", "--states=all"])?, "", "nothing is known of them");
    cluster.start_agent("hpc")?;
    let shown = cluster.wait_for_end(&run)?;
    check_ran_once(&shown, &path, 3, &cluster)
}

#[test]
fn f6_a_job_that_reaches_the_limit_of_its_cluster_has_timed_out() -> Result<()> {
    let Some(slurm) = SlurmCluster::start("c1", 17)? else { return Ok(()) };
    // The shim keeps the limits of steps; this one is the cluster's own, which is looked at every half a minute.
    let cluster = site_on(&slurm, "options = [\"--time=1\"]\n")?;
    let workflow = "workflow: walltime\nsteps:\n  a:\n    run: |\n      echo begun\n      sleep 300\n";
    let run = cluster.submit(workflow, &[])?;
    let shown = end_with(&slurm, &cluster, &run)?;
    assert_eq!(shown["state"], "failed", "{}", cluster.log("hpc"));
    assert!(shown["error"]["message"].as_str().unwrap().contains("time limit"), "{:#}", shown["error"]);
    assert_eq!(cluster.call(&["logs", &run.id])?.stdout.trim(), "begun");
    Ok(())
}

#[test]
fn jobs_that_somebody_else_cancels_are_told_with_slurms_words() -> Result<()> {
    let Some(slurm) = SlurmCluster::start("c1", 18)? else { return Ok(()) };
    let cluster = site_on(&slurm, "")?;
    let run = cluster.submit("workflow: cancelled\nsteps:\n  a:\n    run: |\n      sleep 300\n", &[])?;
    // One that has not begun would be submitted again.
    cluster.wait_for_run(&run, |shown| shown["executions"][0]["state"] == "running")?;
    slurm.ask("scancel", &["--user", "root"])?;
    // It is tried again, as after every end that nobody here wanted.
    let shown = cluster.wait_for_run(&run, |shown| shown["executions"][0]["attempt"] == 2)?;
    let message = shown["executions"][0]["crashes"][0]["message"].as_str().unwrap();
    assert!(message.contains("CANCELLED") && message.contains("partition main"), "{message}");
    Ok(())
}
