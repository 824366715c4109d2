//! Workflows that are deployed: a source at a site starts their runs, each record one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e_tests::{Cluster, Options};
use serde_json::{Value, json};

const MANIFEST: &str = "name: counter\nversion: \"1\"\nkind: source\nruntime: python\nhandler: main.py:run\n\
                        inputs: { gate: string }\noutputs: { n: integer }\nresources: { cpu: 0.2 }\n";
/// Counts up to what is written at the gate, and waits there for more.
const MODULE: &str = r#"
import time


def run(source, gate):
    n = source.offset or 0
    print("begins at", n)
    while True:
        text = open(gate).read()
        if text == "fail":
            raise ValueError("the river has dried up")
        if n < int(text or 0):
            n += 1
            source.emit({"n": n}, offset=n, wait=n % 10 == 0)
        else:
            source.flush()
            time.sleep(0.005)
"#;

fn workflow(gate: &Path, more: &str) -> String {
    let gate = gate.display();
    format!(
        "workflow: counted\nsource: {{ action: counter@1, site: edge, with: {{ gate: {gate} }} }}\n\
         inputs: {{ n: integer }}\nsteps: {{ next: {{ executor: null }} }}\noutputs: {{ n: \"${{{{ inputs.n }}}}\" }}\n{more}"
    )
}

struct Counter {
    cluster: Cluster,
    gate: PathBuf,
}

impl Counter {
    fn start() -> Result<Self> {
        let cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() })?;
        let folder = cluster.directory().join("counter");
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("action.yaml"), MANIFEST)?;
        fs::write(folder.join("main.py"), MODULE)?;
        let gate = cluster.directory().join("gate");
        let counter = Self { cluster, gate };
        counter.open_to("0")?;
        counter.json(&["action", "push", &folder.display().to_string()])?;
        Ok(counter)
    }

    fn json(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.cluster.call(&[arguments, &["--json"]].concat())?;
        ensure!(output.code == 0, "{arguments:?}: {} {} {}", output.code, output.stdout, output.stderr);
        Ok(serde_json::from_str(&output.stdout)?)
    }

    fn open_to(&self, text: &str) -> Result<()> {
        // Whole at any moment at which it is read.
        let next = self.gate.with_extension("next");
        fs::write(&next, text)?;
        Ok(fs::rename(&next, &self.gate)?)
    }

    fn deploy(&self, more: &str) -> Result<Value> {
        let file = self.cluster.directory().join("counted.yaml");
        fs::write(&file, workflow(&self.gate, more))?;
        self.json(&["workflow", "deploy", &file.display().to_string()])
    }

    fn show(&self) -> Result<Value> {
        self.json(&["workflow", "show", "counted"])
    }

    fn wait_for(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        e2e_tests::wait_for(what, || Ok(Some(self.show()?).filter(|shown| wanted(shown))))
            .with_context(|| format!("{:#?}", self.show()))
    }

    fn wait_for_emitted(&self, count: u64) -> Result<Value> {
        self.wait_for("records", |shown| shown["emitted"].as_u64().is_some_and(|emitted| emitted >= count))
    }

    /// How often each record has started a run that has succeeded.
    fn counted(&self) -> Result<BTreeMap<i64, u32>> {
        let listed = self.json(&["runs", "--workflow", "counted", "--state", "succeeded", "--limit", "10000"])?;
        let mut counted = BTreeMap::new();
        for run in listed["runs"].as_array().context("runs")? {
            *counted.entry(run["outputs"]["n"].as_i64().context("a number")?).or_default() += 1;
        }
        Ok(counted)
    }

    fn check_counted(&self, records: i64) -> Result<()> {
        let complete = usize::try_from(records)?;
        self.cluster.eventually("runs have ended", || Ok(self.counted()?.len() >= complete))?;
        let once: BTreeMap<i64, u32> = (1..=records).map(|record| (record, 1)).collect();
        assert_eq!(self.counted()?, once, "each record has started one run");
        Ok(())
    }

    /// A process below the site's folder whose command has this word in it.
    fn process(&self, word: &str) -> Result<i32> {
        let folder = self.cluster.site("edge").directory.display().to_string();
        e2e_tests::wait_for(word, || {
            for entry in fs::read_dir("/proc")?.flatten() {
                let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
                let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                let command = String::from_utf8_lossy(&command).into_owned();
                if command.contains(word) && command.contains(&folder) {
                    return Ok(Some(pid));
                }
            }
            Ok(None)
        })
    }

    fn kill(&self, word: &str) -> Result<()> {
        let pid = self.process(word)?;
        let killed = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status()?;
        ensure!(killed.success(), "{word} was gone before it was killed");
        Ok(())
    }
}

#[test]
fn a_source_that_is_killed_and_restarted_50_times_while_it_emits_5000_records_starts_5000_runs() -> Result<()> {
    let mut counter = Counter::start()?;
    let deployed = counter.deploy("")?;
    assert_eq!(deployed["state"], "ready", "{deployed:#}");
    for kill in 0..50_u64 {
        counter.open_to(&(100 * (kill + 1)).to_string())?;
        // In the middle of what it is let to emit.
        counter.wait_for_emitted(100 * kill + 20)?;
        match kill % 3 {
            0 => counter.kill("atoll_worker")?,
            1 => counter.kill("no_namespace")?,
            _ => {
                counter.cluster.kill_agent("edge")?;
                counter.cluster.start_agent("edge")?;
            }
        }
    }
    // The last records may be out before the last kill is.
    let shown = counter.wait_for("all records, after all kills", |shown| {
        let [emitted, restarts] = [&shown["emitted"], &shown["source"]["restarts"]].map(Value::as_u64);
        emitted >= Some(5_000) && restarts >= Some(34)
    })?;
    assert_eq!((&shown["emitted"], &shown["offset"]), (&json!(5_000), &json!(5_000)), "{shown:#}");
    assert_eq!(shown["source"]["restarts"], 34, "an agent that is killed takes no source with it: {shown:#}");
    counter.check_counted(5_000)
}

#[test]
fn a_deployed_workflow_is_replaced_fails_with_its_reason_and_is_gone() -> Result<()> {
    let counter = Counter::start()?;
    let deployed = counter.deploy("")?;
    assert_eq!((&deployed["state"], &deployed["generation"]), (&json!("ready"), &json!(1)), "{deployed:#}");
    counter.open_to("10")?;
    let shown = counter.wait_for_emitted(10)?;
    assert_eq!((&shown["source"]["site"], &shown["source"]["action"]), (&json!("edge"), &json!("counter@1")));
    let logs = counter.cluster.call(&["logs", shown["source"]["run"].as_str().context("a run")?])?;
    assert!(logs.stdout.contains("begins at 0"), "{}", logs.stdout);
    let run = counter.json(&["run", "counted", "-i", "n=11", "--wait"])?;
    assert_eq!(run["outputs"]["n"], 11, "it is run by its name: {run:#}");
    let again = counter.deploy("# another\n")?;
    assert_eq!((&again["state"], &again["generation"]), (&json!("ready"), &json!(2)), "{again:#}");
    assert_eq!(again["offset"], 10, "it goes on where the former has stopped");
    let text = counter.json(&["workflow", "export", "counted"])?;
    assert_eq!(text["text"], workflow(&counter.gate, "# another\n"));
    let refused = counter.cluster.call(&["action", "remove", "counter@1"])?;
    assert!(refused.code != 0 && refused.stderr.contains("counted"), "{}", refused.stderr);
    counter.open_to("fail")?;
    let shown = counter.wait_for("an error", |shown| !shown["source"]["last_error"].is_null())?;
    assert_eq!(shown["source"]["last_error"], "ValueError: the river has dried up");
    let gone = counter.json(&["workflow", "undeploy", "counted"])?;
    assert_eq!(gone["state"], "gone");
    assert_eq!(counter.json(&["workflow", "list"])?, json!({ "workflows": [] }));
    counter.json(&["action", "remove", "counter@1"])?;
    Ok(())
}

#[test]
fn the_example_starts_runs_of_its_readings() -> Result<()> {
    let cluster = Cluster::two_sites()?;
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/river-levels");
    let file = example.join("workflow.yaml").display().to_string();
    for arguments in
        [&["action", "push", &example.join("gauge").display().to_string()][..], &["workflow", "deploy", &file]]
    {
        let said = cluster.call(arguments)?;
        ensure!(said.code == 0, "{arguments:?}: {} {}", said.stdout, said.stderr);
    }
    cluster.eventually("a reading has started a run", || {
        let listed = cluster.call(&["runs", "--workflow", "river-levels", "--state", "succeeded", "--json"])?;
        Ok(serde_json::from_str::<Value>(&listed.stdout)?["runs"].as_array().is_some_and(|runs| !runs.is_empty()))
    })
}

#[test]
fn a_source_waits_while_the_link_is_down_and_loses_nothing() -> Result<()> {
    let mut counter = Counter::start()?;
    counter.deploy("")?;
    counter.open_to("20")?;
    counter.wait_for_emitted(20)?;
    counter.cluster.kill_server()?;
    counter.open_to("400")?;
    std::thread::sleep(Duration::from_millis(500));
    counter.cluster.start_server()?;
    counter.wait_for_emitted(400)?;
    counter.check_counted(400)
}
