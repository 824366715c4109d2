//! Results that are taken again: `cache` in a step.

use std::fs;

use anyhow::{Context as _, Result};
use e2e_tests::{Cluster, Run};
use serde_json::Value;

/// Writes down each time that it runs.
fn loud(cluster: &Cluster) -> String {
    let log = cluster.directory().join("ran");
    format!(
        "workflow: loud\ninputs:\n  words: {{ type: file }}\nsteps:\n  make:\n    site: edge\n    cache: 1d\n    with: {{ words: \
         \"${{{{ inputs.words }}}}\" }}\n    run: |\n      echo again >> {}\n      tr a-z A-Z < \"$words\" > \
         \"$ATOLL_OUTPUTS/loud\"\n    outputs: {{ loud: file }}\n  read:\n    site: hpc\n    with: {{ loud: \"${{{{ \
         steps.make.outputs.loud }}}}\" }}\n    run: grep -q WORDS \"$loud\"\n",
        log.display()
    )
}

fn times_run(cluster: &Cluster) -> Result<usize> {
    Ok(fs::read_to_string(cluster.directory().join("ran"))?.lines().count())
}

fn made_by(shown: &Value) -> Option<&str> {
    shown["executions"].as_array()?.iter().find(|execution| execution["step"] == "make")?["reused"]["made_by"].as_str()
}

#[test]
fn what_was_made_of_the_same_is_taken_by_later_runs_also_after_the_server_was_killed() -> Result<()> {
    let mut cluster = Cluster::two_sites()?;
    let words = cluster.directory().join("words");
    fs::write(&words, "words\n")?;
    let workflow = loud(&cluster);
    let input = format!("words=@{}", words.display());
    let first = cluster.run(&workflow, &[&input])?;
    assert_eq!((&first["state"], made_by(&first), times_run(&cluster)?), (&"succeeded".into(), None, 1), "{first:#}");
    let maker = first["executions"].as_array().and_then(|all| all.iter().find(|one| one["step"] == "make"));
    let maker = maker.and_then(|one| one["execution"].as_str()).context("it was made")?.to_owned();

    let second = cluster.run(&workflow, &[&input])?;
    assert_eq!((&second["state"], made_by(&second), times_run(&cluster)?), (&"succeeded".into(), Some(&*maker), 1));
    let taken = second["executions"][0]["execution"].as_str().context("an execution")?;
    let why = cluster.call(&["why", taken])?;
    assert!(why.stdout.contains(&maker) && why.stdout.contains("--no-cache"), "{}{}", why.stdout, why.stderr);
    // What it reads at the other site is there since the first run, and does not cross again.
    let run = Run { id: second["run"].as_str().context("a run")?.to_owned() };
    assert_eq!(cluster.ledger(&run)?.iter().filter(|entry| entry["to"] == "hpc").count(), 0);

    cluster.kill_server()?;
    cluster.start_server()?;
    cluster.wait_for_site("edge", "ready")?;
    cluster.wait_for_site("hpc", "ready")?;
    let third = cluster.run(&workflow, &[&input])?;
    assert_eq!((&third["state"], made_by(&third), times_run(&cluster)?), (&"succeeded".into(), Some(&*maker), 1));

    let file = cluster.directory().join("loud.yaml");
    fs::write(&file, &workflow)?;
    let file = file.display().to_string();
    let anew = cluster.call(&["run", &file, "-i", &input, "--no-cache", "--wait", "--json"])?.json()?;
    let anew = cluster.show(&Run { id: anew["run"].as_str().context("a run")?.to_owned() })?;
    assert_eq!((&anew["state"], made_by(&anew), times_run(&cluster)?), (&"succeeded".into(), None, 2));
    fs::write(&words, "other words\n")?;
    let other = cluster.run(&workflow, &[&input])?;
    assert_eq!((&other["state"], made_by(&other), times_run(&cluster)?), (&"succeeded".into(), None, 3));
    Ok(())
}
