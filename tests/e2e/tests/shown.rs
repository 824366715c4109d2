//! What the commands show, in the shapes that scripts rely on.

use std::time::Duration;

use anyhow::Result;
use e2e_tests::{Cluster, Options, Output, atoll};
use serde_json::Value;

fn assert_fields(value: &Value, fields: &[&str]) {
    for field in fields {
        assert!(value.get(field).is_some(), "{field} in {value:#}");
    }
}

const HELLO: &str = "workflow: hello\nsteps:\n  hello:\n    site: edge\n    run: |\n      echo out\n      echo err >&2\n      echo text > \"$ATOLL_OUTPUTS/file\"\n    outputs: { file: file }\n  read:\n    site: hpc\n    with: { file: \"${{ steps.hello.outputs.file }}\" }\n    run: cat \"$file\"\noutputs:\n  file: ${{ steps.hello.outputs.file }}\n";

#[test]
fn every_command_prints_what_the_contract_names() -> Result<()> {
    let cluster = Cluster::two_sites()?;
    let run = cluster.submit(HELLO, &[])?;
    let shown = cluster.wait_for_end(&run)?;
    assert_fields(
        &shown,
        &["run", "state", "workflow", "submitted_at", "started_at", "finished_at", "outputs", "error", "executions"],
    );
    assert_eq!(shown["state"], "succeeded", "{shown:#}");
    let execution = &shown["executions"][0];
    assert_fields(
        execution,
        &[
            "execution",
            "step",
            "element",
            "attempt",
            "state",
            "site",
            "submitted_at",
            "placed_at",
            "started_at",
            "finished_at",
            "inputs",
            "outputs",
            "exit_code",
            "error",
            "usage",
        ],
    );
    assert_fields(
        &execution["usage"],
        &["cpu_seconds", "max_rss_bytes", "bytes_in", "bytes_out", "disk_read_bytes", "disk_written_bytes"],
    );
    let id = execution["execution"].as_str().unwrap();

    let logs = cluster.call(&["logs", &run.id, "--json"])?;
    assert_eq!(logs.code, 0, "{}", logs.stderr);
    let lines: Vec<Value> = logs.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |stream: &str| {
        lines
            .iter()
            .filter(|line| line["stream"] == stream)
            .map(|line| line["line"].as_str().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!((of("stdout"), of("stderr")), (vec!["out", "text"], vec!["err"]));
    lines.iter().for_each(|line| assert_fields(line, &["at", "execution", "stream", "line"]));
    let only = cluster.call(&["logs", id, "--stream", "stderr"])?;
    assert_eq!(only.stdout.trim(), "err");

    let why = cluster.call(&["why", id, "--json"])?.json()?;
    assert_eq!(why["chosen"], "edge");
    assert_fields(&why["sites"][0], &["site", "feasible", "reason", "terms"]);
    let object = execution["outputs"]["file"]["object"].as_str().unwrap();
    let why = cluster.call(&["why", object, "--json"])?.json()?;
    assert_fields(&why, &["replicas", "ledger"]);

    let ledger = cluster.call(&["ledger", "--run", &run.id, "--json"])?.json()?;
    assert_fields(&ledger, &["entries", "bytes_total"]);
    assert_fields(&ledger["entries"][0], &["object", "bytes", "from", "to", "route", "for_execution", "rule", "at"]);

    let sites = cluster.call(&["sites", "--json"])?.json()?;
    assert_fields(
        &sites["sites"][0],
        &[
            "site",
            "state",
            "labels",
            "agent_version",
            "connected_since",
            "capacity",
            "free",
            "running",
            "queued",
            "store",
        ],
    );
    let runs = cluster.call(&["runs", "--workflow", "hello", "--json"])?.json()?;
    assert_eq!(runs["runs"].as_array().map(Vec::len), Some(1));

    let file = cluster.directory().join("hello.yaml");
    std::fs::write(&file, HELLO)?;
    let plan = cluster.call(&["plan", file.to_str().unwrap(), "--json"])?.json()?;
    assert_fields(&plan, &["steps", "edges"]);
    assert_fields(&plan["edges"][0], &["from", "to", "bytes_expected", "route", "rule"]);
    let check = cluster.call(&["check", file.to_str().unwrap(), "--json"])?.json()?;
    assert_eq!(check, serde_json::json!({ "valid": true, "errors": [] }));
    Ok(())
}

#[test]
fn exit_codes_mean_what_they_say() -> Result<()> {
    let cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() })?;
    assert_eq!(atoll(&["--no-such-flag"]).output()?.status.code(), Some(2));
    let mut nowhere = atoll(&["runs"]);
    nowhere.env("ATOLL_URL", "http://127.0.0.1:1").env("ATOLL_TOKEN", cluster.token());
    assert_eq!(Output::of(&mut nowhere)?.code, 3);
    let mut stranger = cluster.command(&["runs"]);
    stranger.env(
        "ATOLL_TOKEN",
        "atoll.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    );
    assert_eq!(Output::of(&mut stranger)?.code, 3);
    let file = cluster.directory().join("fails.yaml");
    std::fs::write(&file, "workflow: fails\nsteps:\n  a:\n    run: exit 7\n")?;
    let failed = cluster.call(&["run", file.to_str().unwrap(), "--wait", "--json"])?;
    assert_eq!(failed.code, 1, "{}", failed.stderr);
    let document = failed.document()?;
    assert_eq!(document["state"], "failed");
    assert_eq!(document["error"]["step"], "a");
    assert!(document["error"]["message"].as_str().unwrap().contains('7'), "{document:#}");
    Ok(())
}

#[test]
fn a_cancelled_run_ends_and_its_processes_with_it() -> Result<()> {
    let cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() })?;
    let mark = cluster.directory().join("mark");
    let workflow = format!(
        "workflow: long\nsteps:\n  long:\n    run: |\n      while :; do date > {}; sleep 0.05; done\n",
        mark.display()
    );
    let run = cluster.submit(&workflow, &[])?;
    e2e_tests::wait_for("the step to run", || Ok(mark.exists().then_some(())))?;
    let live = cluster.show(&run)?;
    assert_eq!(live["state"], "running");
    let cancelled = cluster.call(&["cancel", &run.id, "--reason", "enough", "--json"])?;
    assert_eq!(cancelled.code, 0, "{}", cancelled.stderr);
    let shown = cluster.wait_for_end(&run)?;
    assert_eq!(shown["state"], "cancelled", "{shown:#}");
    std::fs::remove_file(&mark)?;
    std::thread::sleep(Duration::from_millis(300));
    assert!(!mark.exists(), "the process lives on");
    Ok(())
}

#[test]
fn logs_of_a_running_step_are_live() -> Result<()> {
    let cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() })?;
    let go = cluster.directory().join("go");
    let workflow = format!(
        "workflow: live\nsteps:\n  live:\n    run: |\n      echo first\n      while [ ! -e {} ]; do sleep 0.05; done\n      echo second\n",
        go.display()
    );
    let run = cluster.submit(&workflow, &[])?;
    e2e_tests::wait_for(
        "the first line",
        || Ok((cluster.call(&["logs", &run.id])?.stdout == "first\n").then_some(())),
    )?;
    std::fs::write(&go, "")?;
    let followed = cluster.call(&["logs", &run.id, "--follow"])?;
    assert_eq!(followed.stdout, "first\nsecond\n", "{}", followed.stderr);
    Ok(())
}

#[test]
fn a_drained_site_takes_nothing_new_and_a_revoked_one_is_gone() -> Result<()> {
    let mut cluster = Cluster::two_sites()?;
    assert_eq!(cluster.call(&["site", "drain", "edge"])?.code, 0);
    cluster.wait_for_site("edge", "draining")?;
    let anywhere = "workflow: anywhere\nsteps:\n  a:\n    foreach: ${{ range(8) }}\n    run: \"true\"\n";
    let shown = cluster.run(anywhere, &[])?;
    assert_eq!(shown["state"], "succeeded", "{shown:#}");
    assert!(shown["executions"].as_array().unwrap().iter().all(|execution| execution["site"] == "hpc"), "{shown:#}");
    assert_eq!(cluster.call(&["site", "undrain", "edge"])?.code, 0);
    cluster.wait_for_site("edge", "ready")?;
    let run = cluster.submit("workflow: long\nsteps:\n  a:\n    site: edge\n    run: sleep 600\n", &[])?;
    cluster.wait_for_run(&run, |shown| shown["executions"][0]["state"] == "running")?;
    assert_eq!(cluster.call(&["site", "revoke", "edge"])?.code, 0);
    cluster.wait_for_site("edge", "revoked")?;
    assert!(!cluster.wait_for_agent_end("edge")?.success(), "its agent is told, and gives up");
    cluster.start_agent("edge")?;
    assert!(!cluster.wait_for_agent_end("edge")?.success(), "and gets no session any more");
    let shown = cluster.show(&run)?;
    assert_eq!(shown["executions"][0]["site"], Value::Null, "{shown:#}");
    assert_eq!(cluster.call(&["cancel", &run.id])?.code, 0);
    Ok(())
}

#[test]
fn stopping_an_agent_kills_nothing_that_runs() -> Result<()> {
    let mut cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() })?;
    let go = cluster.directory().join("go");
    let effects = cluster.directory().join("effects");
    let workflow = format!(
        "workflow: upgrade\nsteps:\n  long:\n    run: |\n      echo begun >> {0}\n      while [ ! -e {1} ]; do sleep 0.05; done\n      echo ended >> {0}\n      echo 1 > \"$ATOLL_OUTPUTS/n\"\n    outputs: {{ n: integer }}\n",
        effects.display(),
        go.display()
    );
    let run = cluster.submit(&workflow, &[])?;
    e2e_tests::wait_for("the step to run", || Ok(effects.exists().then_some(())))?;
    cluster.stop_agent("edge")?;
    std::fs::write(&go, "")?;
    e2e_tests::wait_for("the step to end without an agent", || {
        Ok((std::fs::read_to_string(&effects)? == "begun\nended\n").then_some(()))
    })?;
    cluster.start_agent("edge")?;
    let shown = cluster.wait_for_end(&run)?;
    assert_eq!(shown["state"], "succeeded", "{shown:#}");
    assert_eq!(std::fs::read_to_string(&effects)?, "begun\nended\n");
    Ok(())
}
