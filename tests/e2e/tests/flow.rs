//! Whose turn it is, from the control plane to the process that runs.

use anyhow::Result;
use e2e_tests::{Cluster, Options, wait_for};

#[test]
fn what_is_urgent_starts_before_what_was_handed_to_the_agent_earlier() -> Result<()> {
    let cluster = Cluster::start(Options {
        sites: vec!["edge"],
        agent_arguments: ["--cpus", "1"].map(str::to_owned).to_vec(),
        ..Options::default()
    })?;
    let (order, go) = (cluster.directory().join("order"), cluster.directory().join("go"));
    let (shown_order, shown_go) = (order.display(), go.display());
    let work = |name: &str, priority: i32, more: &str| {
        let script = format!("echo {name} >> {shown_order}");
        format!("workflow: {name}\npriority: {priority}\nsteps:\n  a:\n    run: |\n      {script}\n{more}")
    };
    let holding = format!("      while [ ! -e {shown_go} ]; do sleep 0.05; done\n");
    let holds = cluster.submit(&work("holds", 0, &holding), &[])?;
    let ran = || std::fs::read_to_string(&order).unwrap_or_default();
    wait_for("the first", || Ok((ran() == "holds\n").then_some(())))?;
    let at_the_agent = |run| {
        cluster.wait_for_run(run, |shown| {
            let executions = shown["executions"].as_array();
            executions.is_some_and(|all| !all.is_empty() && all.iter().all(|one| one["state"] == "dispatched"))
        })
    };
    let low = cluster.submit(&work("low", 0, "    foreach: ${{ range(2) }}\n"), &[])?;
    at_the_agent(&low)?;
    let high = cluster.submit(&work("high", 10, ""), &[])?;
    at_the_agent(&high)?;
    std::fs::write(&go, "")?;
    for run in [&holds, &low, &high] {
        assert_eq!(cluster.wait_for_end(run)?["state"], "succeeded");
    }
    assert_eq!(ran(), "holds\nhigh\nlow\nlow\n");
    Ok(())
}
