//! Runs that have left the memory of the server, and its journal, looked at from outside.

use std::path::Path;

use anyhow::Result;
use e2e_tests::{Cluster, Options, Output, atoll, wait_for};
use serde_json::{Value, json};

const HELLO: &str = "workflow: hello\nsteps:\n  hello:\n    site: edge\n    run: echo 3 > \"$ATOLL_OUTPUTS/n\"\n    outputs: { n: integer }\noutputs:\n  n: ${{ steps.hello.outputs.n }}\n";

fn journal(data_dir: &Path, command: &str, more: &[&str]) -> Result<Output> {
    Output::of(atoll(&["server", "journal", command, "--data-dir"]).arg(data_dir).args(more))
}

fn ids(document: &Value) -> Vec<String> {
    document["runs"].as_array().unwrap().iter().map(|run| run["run"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_run_that_left_the_memory_is_found_and_shown_after_the_server_was_killed() -> Result<()> {
    let mut cluster = Cluster::start(Options {
        sites: vec!["edge"],
        environment: vec![("ATOLL_SERVER_LEASES__KEEP_FINISHED_SECONDS".to_owned(), "0".to_owned())],
        ..Options::default()
    })?;
    let file = cluster.directory().join("hello.yaml");
    std::fs::write(&file, HELLO)?;
    let file = file.to_str().unwrap();
    let wet = ["run", file, "--project", "rivers", "--label", "season=wet", "--wait", "--json"];
    let first = cluster.call(&wet)?.json()?["run"].as_str().unwrap().to_owned();
    let second = cluster.call(&["run", file, "--wait", "--json"])?.json()?["run"].as_str().unwrap().to_owned();

    cluster.kill_server()?;
    let data_dir = cluster.directory().join("server");
    let verified = journal(&data_dir, "verify", &["--json"])?;
    assert_eq!(verified.code, 0, "{}", verified.stderr);
    assert_eq!(verified.json()?["sound"], true);
    let exported = journal(&data_dir, "export", &[])?;
    let facts: Vec<Value> = exported.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of_kind = |kind: &str| facts.iter().filter(|line| line["fact"].get(kind).is_some()).count();
    assert_eq!((of_kind("RunSubmitted"), of_kind("RunEnded"), of_kind("RunTagged")), (2, 2, 1));
    let figures = journal(&data_dir, "stats", &["--json"])?.json()?;
    assert_eq!((&figures["facts"], &figures["store"]), (&json!(facts.len()), &json!("sled")));
    assert_eq!(figures["facts_by_kind"]["RunSubmitted"], 2);

    cluster.start_server()?;
    let in_use = journal(&data_dir, "verify", &[])?;
    assert_eq!(in_use.code, 1);
    assert!(in_use.stderr.contains("is in use by process"), "{}", in_use.stderr);
    wait_for("both runs in the history", || {
        let probes = cluster.call(&["runs", "--json"])?.json()?;
        Ok((ids(&probes) == [second.clone(), first.clone()]).then_some(()))
    })?;
    for (flags, expected) in [
        (vec!["--project", "rivers"], vec![&first]),
        (vec!["--label", "season=wet", "--state", "succeeded", "--site", "edge"], vec![&first]),
        (vec!["--workflow", "hello", "--since", "1h"], vec![&second, &first]),
        (vec!["--until", "1h"], vec![]),
        (vec!["--limit", "1"], vec![&second]),
        (vec!["--limit", "1", "--before", &second], vec![&first]),
    ] {
        let found = cluster.call(&[&["runs", "--json"][..], &flags].concat())?.json()?;
        assert_eq!(ids(&found).iter().collect::<Vec<_>>(), expected, "{flags:?}");
    }
    let shown = cluster.call(&["show", &first, "--json"])?.json()?;
    assert_eq!((&shown["state"], &shown["outputs"]["n"]), (&json!("succeeded"), &json!(3)));
    assert_eq!(shown["executions"][0]["site"], "edge");
    Ok(())
}

#[test]
fn outputs_and_logs_of_a_run_that_left_the_memory_are_fetched_as_long_as_its_site_has_them() -> Result<()> {
    let mut cluster = Cluster::start(Options {
        sites: vec!["edge"],
        environment: vec![("ATOLL_SERVER_LEASES__KEEP_FINISHED_SECONDS".to_owned(), "0".to_owned())],
        ..Options::default()
    })?;
    let workflow = "workflow: made\nsteps:\n  make:\n    site: edge\n    run: |\n      echo said\n      echo bytes > \"$ATOLL_OUTPUTS/f\"\n    outputs: { f: file }\noutputs:\n  f: ${{ steps.make.outputs.f }}\n";
    let ended = cluster.run(workflow, &[])?;
    let run = ended["run"].as_str().unwrap();
    wait_for("the run to leave the memory", || {
        let data_dir = cluster.directory().join("server");
        Ok(data_dir.join("history.redb").exists().then_some(()))
    })?;
    cluster.kill_server()?;
    cluster.start_server()?;
    cluster.wait_for_site("edge", "ready")?;
    let to = cluster.directory().join("f");
    let got = cluster.call(&["get", run, "f", "-o", &to.display().to_string()])?;
    assert_eq!(got.code, 0, "{}", got.stderr);
    assert_eq!(std::fs::read_to_string(&to)?, "bytes\n");
    let logs = cluster.call(&["logs", run])?;
    assert!(logs.code == 0 && logs.stdout.contains("said"), "{}{}", logs.stdout, logs.stderr);
    Ok(())
}

#[test]
fn a_directory_without_a_journal_is_used_wrongly() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for command in ["verify", "export", "stats"] {
        let output = journal(&folder.path().join("nothing"), command, &[])?;
        assert_eq!(output.code, 2, "{}", output.stderr);
        assert!(output.stderr.contains("there is no journal in"), "{}", output.stderr);
    }
    assert!(!folder.path().join("nothing").exists());
    Ok(())
}
