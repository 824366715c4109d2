//! Further machines of a site: their workers share its executions, are killed, cut short and outlive its agent.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use e2e_tests::{Cluster, Machine, Options, free_port};
use serde_json::Value;
use tempfile::TempDir;

/// A site whose own machine runs nothing that takes a whole CPU, and its workers.
struct Pool {
    cluster: Cluster,
    machines: Vec<Machine>,
    folder: TempDir,
}

impl Pool {
    /// With so many machines, whose workers have not joined yet.
    fn new(count: u8) -> Result<Option<Self>> {
        let folder = tempfile::Builder::new().prefix("atoll-workers-").tempdir()?;
        let mut machines = Vec::new();
        for number in 1..=count {
            let Some(machine) = Machine::new(number, folder.path())? else { return Ok(None) };
            machines.push(machine);
        }
        let (config, port) = (folder.path().join("agent.toml"), free_port()?);
        let gateway = machines[0].gateway();
        fs::write(
            &config,
            format!(
                "cpus = 0.1\n[workers]\nlisten = \"0.0.0.0:{port}\"\naddresses = [\"{gateway}:{port}\"]\nlost_seconds = 8\n"
            ),
        )?;
        let arguments = vec!["--config".to_owned(), config.display().to_string()];
        let site_arguments = BTreeMap::from([("lab", arguments)]);
        let cluster = Cluster::start(Options { sites: vec!["lab"], site_arguments, ..Options::default() })?;
        Ok(Some(Self { cluster, machines, folder }))
    }

    fn data_dir(&self) -> PathBuf {
        self.cluster.site("lab").directory.clone()
    }

    fn join(&mut self, machine: usize, arguments: &[&str]) -> Result<()> {
        let data_dir = self.data_dir();
        self.machines[machine].start_worker(&data_dir, arguments)
    }

    /// Waits until the site offers so many CPUs beside the tenth of its own machine.
    fn wait_for_cpus(&self, cpus: f64) -> Result<()> {
        let offered = || -> Result<bool> {
            let sites = self.cluster.call(&["sites", "--json"])?.json()?;
            let there = sites["sites"][0]["capacity"]["cpus"].as_f64().unwrap_or(0.0);
            Ok((there - cpus - 0.1).abs() < 0.05)
        };
        self.cluster.eventually(&format!("{cpus} CPUs"), offered)
    }

    fn notes(&self) -> PathBuf {
        self.folder.path().join("notes")
    }

    /// What executions have noted at their end: which each was, which attempt, and where it ran.
    fn ended(&self) -> Vec<(u32, u32, String)> {
        let text = fs::read_to_string(self.notes()).unwrap_or_default();
        let note = |line: &str| {
            let mut words = line.split(' ');
            Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?, words.next()?.to_owned()))
        };
        text.lines().filter_map(note).collect()
    }

    /// A fan-out, each element of which takes so long and then notes where it was.
    fn workflow(&self, count: u32, seconds: &str) -> String {
        let notes = self.notes();
        format!(
            "workflow: shared\nsteps:\n  work:\n    foreach: ${{{{ range({count}) }}}}\n    with: {{ n: \"${{{{ item }}}}\" }}\n    \
             run: |\n      sleep {seconds}\n      echo \"$n $ATOLL_ATTEMPT $(readlink /proc/self/ns/net)\" >> {notes}\n      \
             echo \"$n\" > \"$ATOLL_OUTPUTS/n\"\n      echo done > \"$ATOLL_OUTPUTS/file\"\n    \
             outputs: {{ n: integer, file: file }}\noutputs: {{ all: \"${{{{ steps.work.outputs.n }}}}\" }}\n",
            notes = notes.display()
        )
    }
}

fn assert_each_once(pool: &Pool, shown: &Value, count: u32) -> Result<()> {
    ensure!(shown["state"] == "succeeded", "{shown}");
    let outputs = shown["outputs"]["all"].as_array().context("a list")?;
    let outputs: Vec<u64> = outputs.iter().filter_map(Value::as_u64).collect();
    assert_eq!(outputs, (0..u64::from(count)).collect::<Vec<_>>());
    let mut ended: Vec<u32> = pool.ended().into_iter().map(|(n, ..)| n).collect();
    ended.sort_unstable();
    assert_eq!(ended, (0..count).collect::<Vec<_>>(), "each has run to its end once");
    Ok(())
}

fn ended_by_machine(pool: &Pool) -> Result<Vec<usize>> {
    let ended = pool.ended();
    let count = |machine: &Machine| -> Result<usize> {
        let network = machine.network()?;
        Ok(ended.iter().filter(|(.., at)| *at == network).count())
    };
    pool.machines.iter().map(count).collect()
}

#[test]
fn two_workers_share_200_executions_and_one_that_is_killed_loses_none_and_repeats_none() {
    let Some(mut pool) = Pool::new(2).unwrap() else { return };
    pool.join(0, &[]).unwrap();
    pool.join(1, &[]).unwrap();
    pool.wait_for_cpus(4.0).unwrap();
    let run = pool.cluster.submit(&pool.workflow(200, "0.1"), &[]).unwrap();
    let both = || Ok(ended_by_machine(&pool)?.iter().all(|count| *count >= 15));
    pool.cluster.eventually("both to have worked", both).unwrap();
    pool.machines[0].kill_worker().unwrap();
    let shown = pool.cluster.wait_for_end(&run).unwrap();
    assert_each_once(&pool, &shown, 200).unwrap();
    let ended = ended_by_machine(&pool).unwrap();
    assert_eq!(ended.iter().sum::<usize>(), 200, "nothing ran with the agent: {ended:?}");
    assert!(pool.cluster.log("lab").contains("a worker is lost"), "it was given up");
}

#[test]
fn an_agent_that_is_killed_finds_what_its_workers_run() {
    let Some(mut pool) = Pool::new(2).unwrap() else { return };
    pool.join(0, &[]).unwrap();
    pool.join(1, &[]).unwrap();
    pool.wait_for_cpus(4.0).unwrap();
    let run = pool.cluster.submit(&pool.workflow(12, "1"), &[]).unwrap();
    pool.cluster.eventually("some to run", || Ok(!pool.ended().is_empty())).unwrap();
    for _ in 0..2 {
        pool.cluster.kill_agent("lab").unwrap();
        pool.cluster.start_agent("lab").unwrap();
        pool.cluster.wait_for_site("lab", "ready").unwrap();
    }
    let shown = pool.cluster.wait_for_end(&run).unwrap();
    assert_each_once(&pool, &shown, 12).unwrap();
    assert!(pool.ended().iter().all(|(_, attempt, _)| *attempt == 1), "none was tried again: {:?}", pool.ended());
}

#[test]
fn a_worker_that_is_asked_to_end_loses_nothing_and_one_whose_time_is_over_hands_on_what_runs() {
    let Some(mut pool) = Pool::new(2).unwrap() else { return };
    pool.join(0, &[]).unwrap();
    pool.wait_for_cpus(2.0).unwrap();
    let run = pool.cluster.submit(&pool.workflow(30, "0.3"), &[]).unwrap();
    pool.cluster.eventually("some to run", || Ok(pool.ended().len() >= 4)).unwrap();
    pool.join(1, &[]).unwrap();
    pool.machines[0].stop_worker().unwrap();
    assert!(pool.machines[0].wait_for_worker_end().unwrap().success());
    let shown = pool.cluster.wait_for_end(&run).unwrap();
    assert_each_once(&pool, &shown, 30).unwrap();
    assert!(pool.ended().iter().all(|(_, attempt, _)| *attempt == 1), "none was cut off");
    assert!(ended_by_machine(&pool).unwrap().iter().all(|count| *count > 0));
    pool.machines[1].stop_worker().unwrap();
    assert!(pool.machines[1].wait_for_worker_end().unwrap().success());
    pool.wait_for_cpus(0.0).unwrap();

    fs::remove_file(pool.notes()).unwrap();
    pool.join(0, &["--time-limit", "20s", "--drain", "1s"]).unwrap();
    pool.wait_for_cpus(2.0).unwrap();
    let run = pool.cluster.submit(&pool.workflow(1, "$(( ATOLL_ATTEMPT == 1 ? 60 : 0 ))"), &[]).unwrap();
    let runs = |shown: &Value| shown["executions"][0]["state"] == "running";
    pool.cluster.wait_for_run(&run, runs).unwrap();
    pool.join(1, &[]).unwrap();
    assert!(pool.machines[0].wait_for_worker_end().unwrap().success());
    let shown = pool.cluster.wait_for_end(&run).unwrap();
    assert_each_once(&pool, &shown, 1).unwrap();
    assert_eq!(pool.ended()[0].1, 2, "it was tried again at the other");
}

#[test]
fn a_worker_that_does_not_share_the_folders_or_has_no_token_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let worker = |arguments: &[&str]| {
        e2e_tests::Output::of(e2e_tests::atoll(&["worker"]).args(arguments).env_remove("ATOLL_WORKER_TOKEN")).unwrap()
    };
    let nobody = worker(&["--data-dir", &folder.path().display().to_string()]);
    assert!(nobody.code != 0 && nobody.stderr.contains("[workers] listen"), "{}", nobody.stderr);
    let wrong = worker(&["--token", "atoll1.abc"]);
    assert!(wrong.code != 0 && wrong.stderr.contains("atoll site worker-token"), "{}", wrong.stderr);
    assert_eq!(worker(&[]).code, 2, "neither a folder nor a token");
}
