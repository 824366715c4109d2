//! Sites whose executions are jobs of batch systems that templates describe. Their programs are played, as they answer; the
//! jobs are real processes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use e2e_tests::{Cluster, Options};

use crate::slurm::effects;

/// A cluster of each of these systems, whose programs are all in one folder.
struct Played(tempfile::TempDir);

impl Played {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let fakes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../parts/batch_fakes.py");
        ensure!(Command::new("python3").arg(fakes).arg(folder.path()).status()?.success(), "there is no cluster");
        Ok(Self(folder))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A site `hpc` whose jobs go there, with these further lines of `[batch]`.
    fn site(&self, system: &str, settings: &str) -> Result<Cluster> {
        let config = self.path("agent.toml");
        let commands = self.path("bin").display().to_string();
        let text = format!(
            "executor = \"{system}\"\ncpus = 400\nmemory = \"100GiB\"\n[batch]\ncommands = \"{commands}\"\npoll_seconds = 1\n{settings}\n"
        );
        std::fs::write(&config, text)?;
        let site_arguments = BTreeMap::from([("hpc", vec!["--config".to_owned(), config.display().to_string()])]);
        Cluster::start(Options { sites: vec!["hpc"], site_arguments, ..Options::default() })
    }

    /// How many jobs were submitted.
    fn jobs(&self) -> Result<usize> {
        let names = std::fs::read_dir(self.path("jobs"))?.flatten().map(|entry| entry.file_name());
        Ok(names.filter(|name| name.to_string_lossy().bytes().all(|byte| byte.is_ascii_digit())).count())
    }
}

#[test]
fn a_fan_out_runs_as_jobs_of_each_system_and_each_is_told_of_itself() -> Result<()> {
    for (system, variable, number) in
        [("pbs", "PBS_JOBID", "12.pbs"), ("lsf", "LSB_JOBID", "12"), ("flux", "FLUX_JOB_ID", "f12")]
    {
        let played = Played::new()?;
        // It is no variable that is passed on unless it begins as the template says.
        let settings = if system == "lsf" { "options = [\"-x\"]\n" } else { "queue = \"main\"\n" };
        let cluster = played.site(system, settings)?;
        let workflow = format!(
            "workflow: jobs\nsteps:\n  a:\n    foreach: ${{{{ range(3) }}}}\n    with: {{ number: '${{{{ item }}}}' }}\n    resources: {{ time: 5m }}\n    run: |\n      echo \"${variable}\" > \"$ATOLL_OUTPUTS/job\"\n      echo $((number * number)) > \"$ATOLL_OUTPUTS/square\"\n    outputs: {{ square: integer, job: string }}\noutputs: {{ squares: '${{{{ steps.a.outputs.square }}}}', jobs: '${{{{ steps.a.outputs.job }}}}' }}\n"
        );
        let shown = cluster.run(&workflow, &[])?;
        assert_eq!(shown["state"], "succeeded", "{system}: {:#}\n{}", shown["error"], cluster.log("hpc"));
        assert_eq!(shown["outputs"]["squares"], serde_json::json!([0, 1, 4]), "{system}");
        let mut jobs: Vec<&str> =
            shown["outputs"]["jobs"].as_array().into_iter().flatten().filter_map(|job| job.as_str()).collect();
        jobs.sort_unstable();
        assert_eq!((jobs.len(), jobs.first().copied()), (3, Some(number)), "{system}");
        assert_eq!(played.jobs()?, 3, "{system}");
    }
    Ok(())
}

#[test]
fn jobs_of_htcondor_end_as_every_process_and_are_cancelled() -> Result<()> {
    let played = Played::new()?;
    let cluster = played.site("htcondor", "options = ['requirements = (Arch == \"X86_64\")']\n")?;
    let failed = cluster.run("workflow: coded\nsteps:\n  a:\n    run: |\n      echo before; exit 7\n", &[])?;
    assert_eq!(failed["executions"][0]["exit_code"], 7, "{failed:#}\n{}", cluster.log("hpc"));
    let mark = cluster.directory().join("mark");
    let workflow = format!(
        "workflow: long\nsteps:\n  long:\n    foreach: ${{{{ range(2) }}}}\n    run: |\n      echo x >> {}\n      sleep 600\n",
        mark.display()
    );
    let run = cluster.submit(&workflow, &[])?;
    cluster.eventually("both to run", || Ok(std::fs::read_to_string(&mark).is_ok_and(|text| text == "x\nx\n")))?;
    cluster.call(&["cancel", &run.id])?;
    let shown = cluster.wait_for_end(&run)?;
    assert_eq!(shown["state"], "cancelled", "{shown:#}");
    let jobs = cluster.site("hpc").directory.join("jobs");
    cluster.eventually("nothing to be left of them", || {
        let left = |folder: &str| std::fs::read_dir(jobs.join(folder)).map(Iterator::count);
        Ok(left("")? == 3 && left("batches")? == 0 && left("news")? == 0)
    })
}

#[test]
fn an_answer_that_is_lost_and_an_agent_that_is_killed_have_nothing_run_twice() -> Result<()> {
    for system in ["pbs", "lsf"] {
        let played = Played::new()?;
        let mut cluster = played.site(system, "")?;
        let path = cluster.directory().join("effects");
        std::fs::write(&path, "")?;
        std::fs::write(played.path("lost"), "")?;
        let workflow = format!(
            "workflow: once\nsteps:\n  a:\n    foreach: ${{{{ range(2) }}}}\n    with: {{ number: '${{{{ item }}}}' }}\n    run: |\n      echo \"begin $number\" >> {path}\n      sleep 3\n      echo \"end $number\" >> {path}\n",
            path = path.display()
        );
        let run = cluster.submit(&workflow, &[])?;
        cluster.eventually("both to run", || Ok(effects(&path)?.len() >= 2))?;
        cluster.kill_agent("hpc")?;
        std::fs::remove_file(played.path("lost"))?;
        cluster.start_agent("hpc")?;
        let shown = cluster.wait_for_end(&run)?;
        assert_eq!(shown["state"], "succeeded", "{system}: {:#}\n{}", shown["error"], cluster.log("hpc"));
        assert!(effects(&path)?.values().all(|times| *times == 1), "{system}: {:?}", effects(&path)?);
        assert_eq!(played.jobs()?, 2, "{system}");
    }
    Ok(())
}

#[test]
fn a_system_that_is_away_fails_nothing_and_one_that_refuses_says_why() -> Result<()> {
    let played = Played::new()?;
    std::fs::write(played.path("away"), "")?;
    let cluster = played.site("pbs", "")?;
    let run = cluster.submit("workflow: patient\nsteps:\n  a:\n    run: |\n      true\n", &[])?;
    cluster.eventually("the agent to say so", || Ok(cluster.log("hpc").contains("PBS cannot be reached")))?;
    std::fs::remove_file(played.path("away"))?;
    assert_eq!(cluster.wait_for_end(&run)?["state"], "succeeded", "{}", cluster.log("hpc"));
    drop(cluster);
    let cluster = played.site("pbs", "queue = \"nope\"\n")?;
    let shown = cluster.run("workflow: refused\nsteps:\n  a:\n    run: |\n      true\n", &[])?;
    let error = shown["error"]["message"].as_str().unwrap_or_default();
    assert!(error.contains("PBS does not take the job in queue nope: qsub: Unknown queue"), "{shown:#}");
    Ok(())
}

#[test]
fn what_a_job_waits_for_is_shown_in_its_system_s_words_and_one_that_waits_is_cancelled() -> Result<()> {
    let played = Played::new()?;
    std::fs::write(played.path("full"), "")?;
    let cluster = played.site("pbs", "")?;
    let run = cluster.submit("workflow: waits\nsteps:\n  a:\n    run: |\n      true\n", &[])?;
    let why = "PBS: job 12.pbs is Q (Not Running: Insufficient amount of resource: ncpus)";
    cluster.wait_for_run(&run, |shown| shown["executions"][0]["waiting_for"] == why)?;
    cluster.call(&["cancel", &run.id])?;
    assert_eq!(cluster.wait_for_end(&run)?["state"], "cancelled");
    Ok(())
}
