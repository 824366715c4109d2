//! Pilots: short work of a real Slurm cluster runs in workers that are jobs.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use e2e_tests::{Cluster, Options, Output, SlurmCluster, free_port};
use serde_json::Value;

/// Jobs that are submitted to see what the cluster reaches by itself.
const BARE_JOBS: u32 = 40;
const EXECUTIONS: u32 = 6_000;

/// A Slurm site with pilots.
struct Site {
    cluster: Cluster,
    slurm: SlurmCluster,
}

impl Site {
    fn new(place: u8, pilots: &str) -> Result<Option<Self>> {
        let Some(slurm) = SlurmCluster::start("c1", place)? else { return Ok(None) };
        Self::of(slurm, pilots).map(Some)
    }

    fn of(slurm: SlurmCluster, pilots: &str) -> Result<Self> {
        let (port, gateway) = (free_port()?, slurm.gateway());
        let settings = format!(
            "pilots = {{ {pilots} }}\n[workers]\nlisten = \"0.0.0.0:{port}\"\naddresses = [\"{gateway}:{port}\"]\nlost_seconds = 16\n"
        );
        let config = slurm.agent_config(&settings)?;
        let site_arguments = BTreeMap::from([("hpc", vec!["--config".to_owned(), config.display().to_string()])]);
        let cluster = Cluster::start(Options { sites: vec!["hpc"], site_arguments, ..Options::default() })?;
        Ok(Self { cluster, slurm })
    }

    fn notes(&self) -> PathBuf {
        self.cluster.directory().join("notes")
    }

    /// A fan-out, each element of which notes that it begins, takes so long, and notes its end.
    fn workflow(&self, count: u32, time: &str, seconds: &str) -> String {
        let notes = self.notes();
        format!(
            "workflow: short\nsteps:\n  work:\n    foreach: ${{{{ range({count}) }}}}\n    with: {{ n: \"${{{{ item }}}}\" }}\n    \
             resources: {{ cpu: 1, memory: 64MiB, time: {time} }}\n    run: |\n      \
             echo \"began $n $ATOLL_ATTEMPT\" >> {notes}\n      sleep {seconds}\n      echo \"ended $n $ATOLL_ATTEMPT\" >> {notes}\n",
            notes = notes.display()
        )
    }

    /// Which have begun, or ended, in which attempt.
    fn noted(&self, what: &str) -> Vec<(u32, u32)> {
        let text = fs::read_to_string(self.notes()).unwrap_or_default();
        let note = |line: &str| {
            let mut words = line.strip_prefix(what)?.split_whitespace();
            Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
        };
        let mut noted: Vec<(u32, u32)> = text.lines().filter_map(note).collect();
        noted.sort_unstable();
        noted
    }

    /// The numbers of the jobs in the queue with their names.
    fn jobs(&self) -> Result<Vec<(String, String)>> {
        let listed = self.slurm.ask("squeue", &["--noheader", "--states=PENDING,RUNNING", "--format=%A %j"])?;
        Ok(listed.lines().filter_map(|line| line.split_once(' ')).map(|(a, b)| (a.to_owned(), b.to_owned())).collect())
    }

    fn the_pilot(&self) -> Result<String> {
        let jobs = self.jobs()?;
        match jobs.as_slice() {
            [(number, name)] if name.starts_with("atoll.pilot.") => Ok(number.clone()),
            _ => anyhow::bail!("one pilot, and nothing else: {jobs:?}"),
        }
    }

    /// Runs a workflow to its end, and looks at it only then; the seconds that it took.
    fn seconds_of(&self, workflow: &str) -> Result<f64> {
        let file = self.cluster.directory().join("timed.yaml");
        fs::write(&file, workflow)?;
        let shown = self.cluster.call(&["run", &file.display().to_string(), "--wait", "--json"])?.json()?;
        ensure!(shown["state"] == "succeeded", "{shown}");
        let moment = |name: &str| -> Result<f64> {
            let text = shown[name].as_str().with_context(|| format!("{name} in {shown}"))?;
            Ok(Output::of(Command::new("date").args(["-d", text, "+%s.%N"]))?.stdout.trim().parse()?)
        };
        Ok(moment("finished_at")? - moment("started_at")?)
    }
}

fn succeeded(shown: &Value) {
    assert_eq!(shown["state"], "succeeded", "{shown}");
}

/// How many jobs that do nothing the cluster ends in a second, each submitted by itself.
fn bare_rate(slurm: &SlurmCluster) -> Result<f64> {
    let began = Instant::now();
    for _ in 0..BARE_JOBS {
        slurm.ask("sbatch", &["--parsable", "--mem=64M", "--output=/dev/null", "--chdir=/", "--wrap=true"])?;
    }
    e2e_tests::wait_for("the cluster's own jobs", || Ok(slurm.queue()?.is_empty().then_some(())))?;
    Ok(f64::from(BARE_JOBS) / began.elapsed().as_secs_f64())
}

#[test]
fn short_executions_run_in_one_pilot_far_faster_than_as_jobs() {
    let Some(slurm) = SlurmCluster::start("c1", 8).unwrap() else { return };
    let bare = bare_rate(&slurm).unwrap();
    let pilots = "max = 1, cpus = 2, memory = \"1GiB\", time = \"10m\", idle = \"3s\", short = \"10s\"";
    let site = Site::of(slurm, pilots).unwrap();
    succeeded(&site.cluster.run(&site.workflow(2, "10s", "0"), &[]).unwrap());
    assert_eq!(site.noted("ended"), [(0, 1), (1, 1)]);
    site.the_pilot().unwrap();

    let workflow = format!(
        "workflow: short\nsteps:\n  work:\n    foreach: ${{{{ range({EXECUTIONS}) }}}}\n    \
         resources: {{ cpu: 1, memory: 64MiB, time: 5s }}\n    run: \"true\"\n"
    );
    let rate = f64::from(EXECUTIONS) / site.seconds_of(&workflow).unwrap();
    eprintln!("one pilot of two CPUs: {rate:.0} executions/s; sbatch alone: {bare:.1} jobs/s");
    assert!(rate > 20.0 * bare, "{rate:.0} executions/s in a pilot, {bare:.1} jobs/s");
    site.the_pilot().unwrap();

    // What says nothing of its time, or of a longer one than is short, is a job.
    succeeded(&site.cluster.run(&site.workflow(1, "11s", "0"), &[]).unwrap());
    let ended = || Ok(site.slurm.ended()?.iter().any(|line| line.contains("atoll.short.work.")));
    site.cluster.eventually("the job to be noted", ended).unwrap();
    // One that has nothing to do leaves, and the next short work brings another.
    site.cluster.eventually("the pilot to leave", || Ok(site.jobs()?.is_empty())).unwrap();
    succeeded(&site.cluster.run(&site.workflow(2, "1s", "0"), &[]).unwrap());
}

#[test]
fn a_pilot_leaves_before_its_time_is_over_and_another_takes_its_place() {
    let pilots = "max = 1, cpus = 1, memory = \"1GiB\", time = \"90s\", idle = \"5s\", short = \"5s\"";
    let Some(site) = Site::new(9, pilots).unwrap() else { return };
    let shown = site.cluster.run(&site.workflow(16, "5s", "1.5"), &[]).unwrap();
    succeeded(&shown);
    assert_eq!(site.noted("began"), (0..16).map(|n| (n, 1)).collect::<Vec<_>>(), "none was cut off");
    assert_eq!(site.noted("ended"), site.noted("began"));
    let pilots = || Ok(site.slurm.ended()?.iter().filter(|line| line.contains("atoll.pilot.")).count() >= 2);
    site.cluster.eventually("two pilots to have ended", pilots).unwrap();
    assert!(site.slurm.ended().unwrap().iter().all(|line| line.contains("JobState=COMPLETED")), "by themselves");
}

#[test]
fn a_pilot_that_is_cancelled_or_killed_loses_nothing() {
    let pilots = "max = 1, cpus = 2, memory = \"1GiB\", time = \"10m\", idle = \"5s\", short = \"1m\"";
    let Some(site) = Site::new(10, pilots).unwrap() else { return };
    for end in [&["--quiet"][..], &["--signal=KILL", "--full"]] {
        let workflow = site.workflow(4, "1m", "$(( ATOLL_ATTEMPT == 1 ? 10 : 0 ))");
        let run = site.cluster.submit(&workflow, &[]).unwrap();
        site.cluster.eventually("two to run", || Ok(site.noted("began").len() == 2)).unwrap();
        let pilot = site.the_pilot().unwrap();
        let arguments: Vec<&str> = end.iter().copied().chain([pilot.as_str()]).collect();
        site.slurm.ask("scancel", &arguments).unwrap();
        let shown = site.cluster.wait_for_end(&run).unwrap();
        succeeded(&shown);
        let ended: Vec<u32> = site.noted("ended").into_iter().map(|(n, _)| n).collect();
        assert_eq!(ended, [0, 1, 2, 3], "each to its end once");
        assert!(site.noted("began").iter().all(|(_, attempt)| *attempt <= 2), "{:?}", site.noted("began"));
        fs::remove_file(site.notes()).unwrap();
    }
}

#[test]
fn an_agent_that_is_killed_finds_its_pilot_and_what_runs_there() {
    let pilots = "max = 2, cpus = 2, memory = \"1GiB\", time = \"10m\", idle = \"20s\", short = \"1m\"";
    let Some(mut site) = Site::new(11, pilots).unwrap() else { return };
    let run = site.cluster.submit(&site.workflow(2, "1m", "12"), &[]).unwrap();
    site.cluster.eventually("both to run", || Ok(site.noted("began").len() == 2)).unwrap();
    let pilot = site.the_pilot().unwrap();
    for _ in 0..2 {
        site.cluster.kill_agent("hpc").unwrap();
        site.cluster.start_agent("hpc").unwrap();
        site.cluster.wait_for_site("hpc", "ready").unwrap();
    }
    succeeded(&site.cluster.wait_for_end(&run).unwrap());
    assert_eq!(site.noted("ended"), [(0, 1), (1, 1)], "none was tried again");
    assert_eq!(site.the_pilot().unwrap(), pilot, "it is the same one, and the only one");
    succeeded(&site.cluster.run(&site.workflow(2, "1m", "0"), &[]).unwrap());
    assert_eq!(site.the_pilot().unwrap(), pilot, "and takes what comes");
}
