//! The main job, as the README tells a newcomer to run it.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use e2e_tests::{Cluster, Output, atoll, wait_for};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the test lies two folders below the root")
}

/// Processes whose command line or environment names this folder.
pub(crate) fn processes_of(folder: &Path) -> Vec<u32> {
    let folder = folder.to_str().unwrap();
    let processes =
        std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    processes
        .filter(|pid: &u32| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&command).contains(folder)
        })
        .collect()
}

#[test]
fn the_first_command_runs_the_example_and_leaves_nothing_running() -> Result<()> {
    let place = tempfile::tempdir()?;
    let workflow = repository().join("examples/earthquakes/workflow.yaml");
    let mut command = atoll(&["dev", "--run"]);
    command.arg(&workflow).current_dir(&place).env("TMPDIR", place.path());
    let output = Output::of(&mut command)?;
    assert_eq!(output.code, 0, "{}\n{}", output.stdout, output.stderr);
    for expected in
        ["succeeded", "clean", "fit[7]", "What crossed a border", "edge → bucket", "bucket → edge", "The result is in"]
    {
        assert!(output.stdout.contains(expected), "{expected:?} in\n{}", output.stdout);
    }
    let results = std::fs::read_dir(place.path().join("atoll-results"))?.next().context("a result")??.path();
    let plot = std::fs::read_to_string(results.join("report/plot.svg"))?;
    assert!(plot.starts_with("<svg") && plot.trim_end().ends_with("</svg>"));
    let table = std::fs::read_to_string(results.join("report/table.csv"))?;
    assert_eq!(table.lines().count(), 9, "{table}");
    assert!(table.contains("california,817,4.33,1.1,292"), "{table}");
    wait_for("every process to end", || Ok(processes_of(place.path()).is_empty().then_some(())))
}

#[test]
fn only_what_a_step_at_the_other_site_reads_crosses_a_border() -> Result<()> {
    let cluster = Cluster::two_sites()?;
    let workflow = repository().join("examples/earthquakes/workflow.yaml");
    let run = cluster.submit(workflow.to_str().unwrap(), &[])?;
    let shown = cluster.wait_for_end(&run)?;
    assert_eq!(shown["state"], "succeeded", "{shown:#}");

    let executions = shown["executions"].as_array().unwrap();
    let of = |step: &str| executions.iter().filter(|execution| execution["step"] == step).collect::<Vec<_>>();
    let object = |value: &serde_json::Value| value["object"].as_str().unwrap().to_owned();
    let regions: BTreeSet<String> = of("fit").iter().map(|fit| object(&fit["inputs"]["events"])).collect();
    let laws: BTreeSet<String> = of("fit").iter().map(|fit| object(&fit["outputs"]["law"])).collect();
    assert_eq!((regions.len(), laws.len()), (8, 8));

    let entries = cluster.ledger(&run)?;
    let moved = |from: &str, to: &str| -> Vec<String> {
        let matching = entries.iter().filter(|entry| entry["from"] == from && entry["to"] == to);
        let mut objects: Vec<_> = matching.map(|entry| entry["object"].as_str().unwrap().to_owned()).collect();
        objects.sort();
        objects
    };
    let regions: Vec<_> = regions.into_iter().collect();
    let laws: Vec<_> = laws.into_iter().collect();
    assert_eq!(moved("edge", "bucket"), regions);
    assert_eq!(moved("bucket", "hpc"), regions);
    assert_eq!(moved("hpc", "bucket"), laws);
    assert_eq!(moved("bucket", "edge"), laws);
    assert_eq!(entries.len(), 32, "{entries:#?}");
    cluster.wait_for_empty_bucket()
}

#[test]
fn dev_is_found_again_with_its_sites_and_runs() -> Result<()> {
    let place = tempfile::tempdir()?;
    let ready_file = place.path().join("ready.json");
    let start = || -> Result<(std::process::Child, serde_json::Value)> {
        let mut command = atoll(&["dev", "--data-dir"]);
        command.arg(place.path().join("data")).arg("--ready-file").arg(&ready_file);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let ready = wait_for("the ready file", || {
            Ok(std::fs::read(&ready_file).ok().and_then(|text| serde_json::from_slice(&text).ok()))
        })?;
        Ok((child, ready))
    };
    let stop = |mut child: std::process::Child| -> Result<()> {
        let signalled = Command::new("kill").args(["-INT", &child.id().to_string()]).status()?;
        assert!(signalled.success());
        let status = wait_for("the end of dev", || Ok(child.try_wait()?))?;
        assert!(status.success(), "{status}");
        std::fs::remove_file(&ready_file)?;
        wait_for("every process to end", || Ok(processes_of(place.path()).is_empty().then_some(())))
    };
    let call = |ready: &serde_json::Value, arguments: &[&str]| {
        let mut command = atoll(arguments);
        command.env("ATOLL_URL", ready["url"].as_str().unwrap()).env("ATOLL_TOKEN", ready["token"].as_str().unwrap());
        Output::of(&mut command)
    };
    let file = place.path().join("hello.yaml");
    std::fs::write(&file, "workflow: hello\nsteps:\n  hello:\n    site: hpc\n    run: echo hello\n")?;

    let (child, ready) = start()?;
    assert_eq!(ready["sites"], serde_json::json!(["edge", "hpc"]));
    assert!(ready["pids"]["server"].is_u64() && ready["pids"]["edge"].is_u64() && ready["pids"]["hpc"].is_u64());
    let first = call(&ready, &["run", file.to_str().unwrap(), "--wait", "--json"])?.json()?;
    assert_eq!(first["state"], "succeeded");
    stop(child)?;

    let (child, ready) = start()?;
    let runs = call(&ready, &["runs", "--json"])?.json()?;
    assert_eq!(runs["runs"][0]["run"], first["run"]);
    let again = call(&ready, &["run", file.to_str().unwrap(), "--wait", "--json"])?.json()?;
    assert_eq!(again["state"], "succeeded");
    stop(child)
}
