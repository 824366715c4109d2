//! Actions that are made ready where they are certain to be wanted, while what comes before them still runs.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use e2e_tests::{Cluster, Options};
use serde_json::{Value, json};

const WORKFLOW: &str = r#"workflow: later
steps:
  first: { site: edge, run: 'until [ -e GATE ]; do sleep 0.05; done; echo 3 > "$ATOLL_OUTPUTS/n"', outputs: { n: integer } }
  then: { site: cloud, action: twice@1.0, with: { n: "${{ steps.first.outputs.n }}" } }
outputs:
  n: ${{ steps.then.outputs.n }}
"#;

/// Pushes an action that needs these packages, if any.
fn push(cluster: &Cluster, requirements: Option<&str>) -> Result<()> {
    let folder = cluster.directory().join("twice");
    fs::create_dir_all(&folder)?;
    let mut manifest = "name: twice\nversion: \"1.0\"\nruntime: python\nhandler: main.py:handle\n\
                        inputs: { n: integer }\noutputs: { n: integer }\n"
        .to_owned();
    if let Some(requirements) = requirements {
        manifest.push_str("requirements: requirements.txt\n");
        fs::write(folder.join("requirements.txt"), requirements)?;
    }
    fs::write(folder.join("action.yaml"), manifest)?;
    fs::write(folder.join("main.py"), "def handle(n):\n    return {\"n\": 2 * n}\n")?;
    let pushed = cluster.call(&["action", "push", &folder.display().to_string()])?;
    ensure!(pushed.code == 0, "{} {}", pushed.stdout, pushed.stderr);
    Ok(())
}

/// Where the action is, as people see it.
fn sites(cluster: &Cluster) -> Result<Vec<Value>> {
    let shown = cluster.call(&["action", "show", "twice@1.0", "--json"])?;
    ensure!(shown.code == 0, "{} {}", shown.stdout, shown.stderr);
    let shown: Value = serde_json::from_str(&shown.stdout)?;
    shown["sites"].as_array().cloned().with_context(|| format!("{shown:#}"))
}

fn workflow(cluster: &Cluster) -> (String, PathBuf) {
    let gate = cluster.directory().join("gate");
    (WORKFLOW.replace("GATE", &gate.display().to_string()), gate)
}

#[test]
fn an_action_is_there_before_what_it_follows_has_ended() -> Result<()> {
    let cluster = Cluster::start(Options { sites: vec!["edge", "cloud"], ..Options::default() })?;
    push(&cluster, None)?;
    ensure!(sites(&cluster)?.is_empty(), "nobody has wanted it yet");
    let (workflow, gate) = workflow(&cluster);
    let run = cluster.submit(&workflow, &[])?;
    let is_ready = |site: &Value| (&site["site"], &site["state"]) == (&json!("cloud"), &json!("ready"));
    cluster.eventually("the action is ready at the site of its step", || {
        let sites = sites(&cluster)?;
        ensure!(sites.len() < 2, "{sites:?}");
        Ok(sites.iter().any(is_ready))
    })?;
    ensure!(cluster.show(&run)?["state"] == "running", "what comes before still runs");
    let shown = cluster.call(&["action", "show", "twice@1.0"])?;
    ensure!(shown.stdout.contains("  ready at cloud since "), "{}", shown.stdout);
    fs::write(gate, "")?;
    let shown = cluster.wait_for_end(&run)?;
    assert_eq!((&shown["state"], &shown["outputs"]["n"]), (&json!("succeeded"), &json!(6)), "{shown:#}");
    let crossed = cluster.ledger(&run)?;
    let of_bundle = crossed.iter().filter(|entry| entry["to"] == "cloud").count();
    assert_eq!(of_bundle, 1, "it came once, for both: {crossed:#?}");
    Ok(())
}

#[test]
fn processes_that_are_to_wait_wait_for_the_first_execution_with_the_handler_loaded() -> Result<()> {
    let cluster = Cluster::start(Options { sites: vec!["edge", "cloud"], ..Options::default() })?;
    let (workflow, gate) = workflow(&cluster);
    let loaded = cluster.directory().join("loaded");
    fs::create_dir_all(&loaded)?;
    let folder = cluster.directory().join("twice");
    fs::create_dir_all(&folder)?;
    let manifest = "name: twice\nversion: \"1.0\"\nruntime: python\nhandler: main.py:handle\n\
                    inputs: { n: integer }\noutputs: { n: integer }\nwarm: { min: 2 }\n";
    fs::write(folder.join("action.yaml"), manifest)?;
    let module = "import os\nopen('LOADED/' + str(os.getpid()), 'w').close()\n\ndef handle(n):\n    return {\"n\": os.getpid()}\n";
    fs::write(folder.join("main.py"), module.replace("LOADED", &loaded.display().to_string()))?;
    let pushed = cluster.call(&["action", "push", &folder.display().to_string()])?;
    ensure!(pushed.code == 0, "{} {}", pushed.stdout, pushed.stderr);
    let processes = || -> Result<Vec<i64>> {
        let names = fs::read_dir(&loaded)?.map(|entry| Ok(entry?.file_name().to_string_lossy().parse()?));
        names.collect()
    };
    let run = cluster.submit(&workflow, &[])?;
    cluster.eventually("two processes have loaded the handler", || Ok(processes()?.len() == 2))?;
    ensure!(cluster.show(&run)?["state"] == "running", "what comes before still runs");
    fs::write(gate, "")?;
    let shown = cluster.wait_for_end(&run)?;
    let called = shown["outputs"]["n"].as_i64().with_context(|| format!("{shown:#}"))?;
    let processes = processes()?;
    assert!(processes.len() == 2 && processes.contains(&called), "{called} is one of {processes:?}");
    Ok(())
}

#[test]
fn people_see_that_an_action_cannot_be_made_ready_before_anything_waits_for_it() -> Result<()> {
    let cluster = Cluster::start(Options { sites: vec!["edge", "cloud"], ..Options::default() })?;
    push(&cluster, Some("./nowhere/nothing-1.0-py3-none-any.whl\n"))?;
    let (workflow, gate) = workflow(&cluster);
    let run = cluster.submit(&workflow, &[])?;
    let mut reason = String::new();
    cluster.eventually("the site says that it cannot", || {
        let sites = sites(&cluster)?;
        let failed = sites.iter().find(|site| site["state"] == "failed");
        reason = failed.and_then(|site| site["reason"].as_str()).unwrap_or_default().to_owned();
        Ok(failed.is_some())
    })?;
    ensure!(reason.contains("cannot be installed"), "{reason}");
    ensure!(cluster.show(&run)?["state"] == "running", "what comes before goes on");
    fs::write(gate, "")?;
    let shown = cluster.wait_for_end(&run)?;
    assert_eq!(shown["state"], "failed", "{shown:#}");
    Ok(())
}
