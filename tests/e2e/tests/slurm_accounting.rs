//! Slurm sites whose cluster keeps accounts, by a real slurmdbd: what is known of jobs of which nobody else knows any more.

use anyhow::{Context as _, Result, ensure};
use e2e_tests::{Cluster, Run, SlurmCluster};
use std::time::{Duration, Instant};

use crate::slurm::site_on;
use crate::slurm_faults::end_with;

/// The run's only job is over while there is no agent, its word of that is lost, and the controller forgets it.
fn lose(slurm: &SlurmCluster, cluster: &mut Cluster, run: &Run, state: &str) -> Result<()> {
    cluster.wait_for_run(run, |shown| shown["executions"][0]["state"] == "running")?;
    cluster.kill_agent("hpc")?;
    let begun = Instant::now();
    while !slurm.accounted()?.iter().any(|found| found == state) || !slurm.queue()?.is_empty() {
        // Time limits are looked at every half a minute.
        ensure!(begun.elapsed() < Duration::from_secs(180), "{:?}", slurm.accounted()?);
        std::thread::sleep(Duration::from_millis(200));
    }
    let news = cluster.site("hpc").directory.join("jobs/news");
    let mut names = std::fs::read_dir(&news)?.flatten().map(|entry| entry.path());
    let word = names.find(|path| path.extension().is_some_and(|name| name == "ended"));
    std::fs::remove_file(word.context("the job has left no word")?)?;
    slurm.kill("slurmctld")?;
    slurm.start_daemon("slurmctld", &["-c"])?;
    cluster.eventually("the controller to answer", || Ok(slurm.queue().is_ok()))?;
    assert_eq!(slurm.ask("squeue", &["--noheader", "--states=all"])?, "", "nothing is known of it");
    Ok(())
}

#[test]
fn f5_a_job_that_used_too_much_memory_and_is_known_to_accounting_alone_is_told_as_such() -> Result<()> {
    let Some(slurm) = SlurmCluster::start_accounted("c1", 19)? else { return Ok(()) };
    let mut cluster = site_on(&slurm, "")?;
    let hungry = "workflow: hungry\nsteps:\n  a:\n    resources: { memory: 48MiB }\n    run: |\n      sleep 3\n      head -c 300M /dev/zero | tail\n";
    let run = cluster.submit(hungry, &[])?;
    lose(&slurm, &mut cluster, &run, "OUT_OF_MEMORY")?;
    cluster.start_agent("hpc")?;
    let shown = end_with(&slurm, &cluster, &run)?;
    assert_eq!(shown["state"], "failed", "{}", cluster.log("hpc"));
    let message = shown["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("more memory"), "{message}\n{}", cluster.log("hpc"));
    Ok(())
}

#[test]
fn f5_accounting_that_is_away_fails_nothing_and_settles_it_when_it_is_back() -> Result<()> {
    let Some(slurm) = SlurmCluster::start_accounted("c1", 20)? else { return Ok(()) };
    // The shim keeps the limits of steps; this one is the cluster's own.
    let mut cluster = site_on(&slurm, "options = [\"--time=1\"]\n")?;
    let run = cluster.submit("workflow: walltime\nsteps:\n  a:\n    run: |\n      sleep 300\n", &[])?;
    lose(&slurm, &mut cluster, &run, "TIMEOUT")?;
    slurm.kill("slurmdbd")?;
    cluster.start_agent("hpc")?;
    cluster
        .eventually("the agent to say so", || Ok(cluster.log("hpc").contains("Slurm's accounting cannot be asked")))?;
    // Longer than a job's own word would be waited for.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(15) {
        let shown = cluster.show(&run)?;
        assert_eq!((&shown["state"], &shown["executions"][0]["attempt"]), (&"running".into(), &1.into()), "{shown:#}");
        std::thread::sleep(Duration::from_millis(500));
    }
    slurm.start_daemon("slurmdbd", &[])?;
    let shown = end_with(&slurm, &cluster, &run)?;
    assert_eq!(shown["state"], "failed", "{}", cluster.log("hpc"));
    let message = shown["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("time limit"), "{message}\n{}", cluster.log("hpc"));
    assert_eq!(shown["executions"][0]["attempt"], 1, "{shown:#}");
    assert!(cluster.log("hpc").contains("Slurm's accounting answers"), "{}", cluster.log("hpc"));
    Ok(())
}
