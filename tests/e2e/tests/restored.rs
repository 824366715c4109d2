//! B6: the server's directory is restored from a backup, and the agents know better.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use e2e_tests::{Cluster, Options, wait_for};

/// Executions that leave a line outside of Atoll when they start; the second step begins when the first is over.
fn workflow(effects: &Path) -> String {
    let effects = effects.display();
    format!(
        "workflow: restored\nsteps:\n  first:\n    foreach: ${{{{ range(8) }}}}\n    with: {{ number: \"${{{{ item }}}}\" }}\n    run: |\n      echo \"$ATOLL_EXECUTION\" >> {effects}\n      sleep 0.2\n  second:\n    after: [first]\n    foreach: ${{{{ range(6) }}}}\n    with: {{ number: \"${{{{ item }}}}\" }}\n    run: |\n      echo \"$ATOLL_EXECUTION\" >> {effects}\n      sleep 0.2\n"
    )
}

fn lines(effects: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(effects).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").arg("-a").args([from, to]).status()?;
    ensure!(status.success(), "cp -a {} {}", from.display(), to.display());
    Ok(())
}

/// Backs the server up while the first step runs, restores that while the second does.
fn nothing_is_lost_or_run_twice(note: impl Fn(&Cluster, &Path) -> Result<()>) -> Result<()> {
    let mut cluster = Cluster::start(Options { sites: vec!["edge", "hpc"], ..Options::default() })?;
    let (data_dir, backup) = (cluster.directory().join("server"), cluster.directory().join("backup"));
    let effects = cluster.directory().join("effects");
    let began =
        |count: usize| wait_for(&format!("{count} executions"), || Ok((lines(&effects).len() >= count).then_some(())));
    let run = cluster.submit(&workflow(&effects), &[])?;
    began(2)?;
    cluster.kill_server()?;
    copy(&data_dir, &backup)?;
    cluster.start_server()?;
    began(10)?;
    cluster.kill_server()?;
    std::fs::remove_dir_all(&data_dir)?;
    copy(&backup, &data_dir)?;
    note(&cluster, &data_dir)?;
    cluster.start_server()?;
    let ended = cluster.wait_for_end(&run)?;
    assert_eq!(ended["state"], "succeeded", "{ended}");
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    lines(&effects).into_iter().for_each(|line| *counts.entry(line).or_default() += 1);
    assert_eq!(counts.len(), 14, "{counts:?}");
    assert!(counts.values().all(|count| *count == 1), "ran more than once: {counts:?}");
    Ok(())
}

#[test]
fn b6_a_server_restored_from_a_backup_loses_nothing_that_agents_hold_and_runs_nothing_twice() -> Result<()> {
    nothing_is_lost_or_run_twice(|cluster, data_dir| {
        let noted = cluster.call(&[
            "server",
            "journal",
            "restored",
            "--json",
            "--data-dir",
            &data_dir.display().to_string(),
        ])?;
        ensure!(noted.code == 0, "{}", noted.stderr);
        ensure!(noted.json()?["sites"] == 2, "{}", noted.stdout);
        Ok(())
    })
}

#[test]
fn b6_a_server_that_nobody_told_of_its_restoration_learns_it_from_its_agents() -> Result<()> {
    nothing_is_lost_or_run_twice(|_, _| Ok(()))
}
