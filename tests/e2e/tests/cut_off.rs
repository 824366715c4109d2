//! A site that is cut off goes on with what was delegated to it, and reconciles.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e_tests::{Cluster, Options, wait_for};

#[test]
fn a_site_cut_off_in_the_middle_of_a_chain_finishes_it_alone() -> Result<()> {
    finishes_a_chain_alone(|_| Ok(()))
}

#[test]
fn b5_an_agent_that_is_killed_while_it_is_cut_off_finishes_the_chain_alone() -> Result<()> {
    finishes_a_chain_alone(|cluster| {
        cluster.kill_agent("edge")?;
        cluster.start_agent("edge")
    })
}

/// Cuts a site off in the first of three steps, and does something to it before the step ends.
fn finishes_a_chain_alone(trouble: impl Fn(&mut Cluster) -> Result<()>) -> Result<()> {
    let mut cluster = Cluster::two_sites()?;
    let effects = cluster.directory().join("effects");
    let go = cluster.directory().join("go");
    std::fs::write(&effects, "")?;
    let (shown_effects, shown_go) = (effects.display(), go.display());
    let workflow = format!(
        r#"workflow: chain
steps:
  one:
    site: edge
    run: |
      echo one >> {shown_effects}
      while [ ! -e {shown_go} ]; do sleep 0.05; done
      echo 1 > "$ATOLL_OUTPUTS/n"
    outputs: {{ n: integer }}
  two:
    site: edge
    with: {{ n: "${{{{ steps.one.outputs.n }}}}" }}
    run: |
      echo two >> {shown_effects}
      echo $((n + 1)) > "$ATOLL_OUTPUTS/n"
    outputs: {{ n: integer }}
  three:
    site: edge
    with: {{ n: "${{{{ steps.two.outputs.n }}}}" }}
    run: |
      echo three >> {shown_effects}
      echo $((n + 1)) > "$ATOLL_OUTPUTS/n"
    outputs: {{ n: integer }}
outputs:
  n: ${{{{ steps.three.outputs.n }}}}
"#
    );
    let run = cluster.submit(&workflow, &[])?;
    let ran = || std::fs::read_to_string(&effects).unwrap_or_default();
    wait_for("the first step", || Ok((ran() == "one\n").then_some(())))?;
    cluster.site("edge").link.cut();
    trouble(&mut cluster)?;
    std::fs::write(&go, "")?;
    wait_for("the last step", || Ok((ran() == "one\ntwo\nthree\n").then_some(())))?;
    let meanwhile = cluster.show(&run)?;
    assert_eq!(meanwhile["state"], "running", "nobody can know yet: {meanwhile:#}");
    cluster.site("edge").link.mend();
    let shown = cluster.wait_for_end(&run)?;
    assert_eq!(shown["state"], "succeeded", "{shown:#}");
    assert_eq!(shown["outputs"]["n"], 3);
    assert_eq!(ran(), "one\ntwo\nthree\n");
    assert!(shown["executions"].as_array().unwrap().iter().all(|execution| execution["attempt"] == 1));
    Ok(())
}

#[test]
fn b5_agents_go_on_while_the_control_plane_is_down() -> Result<()> {
    let mut cluster = Cluster::two_sites()?;
    let go = cluster.directory().join("go");
    let workflow = format!(
        r#"workflow: down
steps:
  wait:
    foreach: ${{{{ ["edge", "hpc"] }}}}
    with: {{ name: "${{{{ item }}}}" }}
    run: |
      while [ ! -e {} ]; do sleep 0.05; done
      echo "$name" > "$ATOLL_OUTPUTS/name"
    outputs: {{ name: string }}
outputs:
  names: ${{{{ steps.wait.outputs.name }}}}
"#,
        go.display()
    );
    let run = cluster.submit(&workflow, &[])?;
    cluster.wait_for_run(&run, |shown| {
        shown["executions"]
            .as_array()
            .is_some_and(|executions| executions.iter().all(|execution| execution["state"] == "running"))
    })?;
    cluster.kill_server()?;
    std::fs::write(&go, "")?;
    cluster.start_server()?;
    let shown = cluster.wait_for_end(&run)?;
    assert_eq!(shown["state"], "succeeded", "{shown:#}");
    assert_eq!(shown["outputs"]["names"], serde_json::json!(["edge", "hpc"]));
    Ok(())
}

#[test]
fn c7_a_flapping_link_loses_nothing_and_runs_nothing_twice() -> Result<()> {
    let cluster = Cluster::two_sites()?;
    let effects = cluster.directory().join("effects");
    let workflow = format!(
        r#"workflow: flapping
steps:
  each:
    site: edge
    foreach: ${{{{ range(40) }}}}
    with: {{ number: "${{{{ item }}}}" }}
    run: |
      echo "$number" >> {}
      sleep 0.05
      echo "$number" > "$ATOLL_OUTPUTS/n"
    outputs: {{ n: integer }}
outputs:
  all: ${{{{ steps.each.outputs.n }}}}
"#,
        effects.display()
    );
    let run = cluster.submit(&workflow, &[])?;
    for _ in 0..6 {
        std::thread::sleep(std::time::Duration::from_millis(150));
        cluster.site("edge").link.reset();
    }
    let shown = cluster.wait_for_end(&run)?;
    assert_eq!(shown["state"], "succeeded", "{shown:#}");
    let expected: Vec<u32> = (0..40).collect();
    assert_eq!(shown["outputs"]["all"], serde_json::json!(expected));
    let mut ran: Vec<u32> = std::fs::read_to_string(&effects)?.lines().map(|line| line.parse().unwrap()).collect();
    ran.sort_unstable();
    assert_eq!(ran, expected, "each exactly once");
    Ok(())
}

#[test]
fn an_agent_that_is_asked_to_end_ends_at_once() -> Result<()> {
    let mut cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() })?;
    for _ in 0..3 {
        let shown = cluster.run("workflow: w\nsteps:\n  a: { run: \"true\" }\n", &[])?;
        ensure!(shown["state"] == "succeeded", "{shown:#}");
        let asked = Instant::now();
        cluster.stop_agent("edge")?;
        ensure!(asked.elapsed() < Duration::from_millis(1_500), "it took {:?}", asked.elapsed());
        cluster.start_agent("edge")?;
        cluster.wait_for_site("edge", "ready")?;
    }
    Ok(())
}

#[test]
fn d6_an_object_that_is_damaged_in_the_bucket_is_reported_replaced_and_fetched_again() -> Result<()> {
    let cluster = Cluster::start(Options { sites: vec!["edge", "hpc", "lab"], ..Options::default() })?;
    let (read, go) = (cluster.directory().join("read"), cluster.directory().join("go"));
    let workflow = format!(
        r#"workflow: damaged
steps:
  make:
    site: edge
    run: seq 1 2000 > "$ATOLL_OUTPUTS/numbers"
    outputs: {{ numbers: file }}
  hold:
    site: hpc
    with: {{ numbers: "${{{{ steps.make.outputs.numbers }}}}" }}
    run: |
      : > {}
      while [ ! -e {} ]; do sleep 0.05; done
  later:
    site: lab
    after: [hold]
    with: {{ numbers: "${{{{ steps.make.outputs.numbers }}}}" }}
    run: tail -n 1 "$numbers" > "$ATOLL_OUTPUTS/last"
    outputs: {{ last: integer }}
outputs:
  last: ${{{{ steps.later.outputs.last }}}}
"#,
        read.display(),
        go.display()
    );
    let run = cluster.submit(&workflow, &[])?;
    wait_for("the first reader", || Ok(read.exists().then_some(())))?;
    let objects = cluster.bucket_objects()?;
    ensure!(objects.len() == 1, "{objects:?}");
    let mut bytes = std::fs::read(&objects[0])?;
    bytes[100] ^= 1;
    std::fs::write(&objects[0], &bytes)?;
    std::fs::write(&go, "")?;
    let shown = cluster.wait_for_end(&run)?;
    ensure!(shown["state"] == "succeeded" && shown["outputs"]["last"] == 2_000, "{shown:#}");
    let pushed = cluster.ledger(&run)?.iter().filter(|entry| entry["to"] == "bucket").count();
    ensure!(pushed == 2, "it was pushed {pushed} times");
    cluster.wait_for_empty_bucket()
}

/// What was not there when the link went, the site makes, fans out over, decides on and hands on by itself.
#[test]
fn b5_a_site_cut_off_at_the_start_finishes_a_workflow_with_foreach_when_and_values_alone() -> Result<()> {
    let cluster = Cluster::two_sites()?;
    let effects = cluster.directory().join("effects");
    let go = cluster.directory().join("go");
    std::fs::write(&effects, "")?;
    let (shown_effects, shown_go) = (effects.display(), go.display());
    let workflow = format!(
        r#"workflow: alone
steps:
  list:
    site: edge
    run: |
      echo list >> {shown_effects}
      while [ ! -e {shown_go} ]; do sleep 0.05; done
      echo '[3, 1, 2]' > "$ATOLL_OUTPUTS/numbers"
      mkdir "$ATOLL_OUTPUTS/texts"
      for n in a b; do echo $n > "$ATOLL_OUTPUTS/texts/$n.txt"; done
    outputs: {{ numbers: list, texts: directory }}
  double:
    site: edge
    foreach: ${{{{ steps.list.outputs.numbers }}}}
    with: {{ n: "${{{{ item }}}}", place: "${{{{ index }}}}" }}
    retry: {{ attempts: 2, backoff: 0s }}
    run: |
      echo "double $n" >> {shown_effects}
      if [ "$n" = 1 ] && [ $(grep -c "double 1" {shown_effects}) = 1 ]; then exit 1; fi
      echo $((n * 2)) > "$ATOLL_OUTPUTS/m"
    outputs: {{ m: integer }}
  read:
    site: edge
    foreach: ${{{{ files(steps.list.outputs.texts, "*.txt") }}}}
    with: {{ text: "${{{{ item }}}}" }}
    run: |
      echo "read $(cat "$text")" >> {shown_effects}
  many:
    site: edge
    when: ${{{{ steps.double.outputs.m.exists(m, m > 5) }}}}
    with: {{ all: "${{{{ steps.double.outputs.m }}}}", first: "${{{{ steps.double.outputs.m[0] + 1 }}}}" }}
    run: |
      echo "many $first" >> {shown_effects}
      echo "$first" > "$ATOLL_OUTPUTS/first"
    outputs: {{ first: integer }}
  few:
    site: edge
    when: ${{{{ size(steps.double.outputs.m) < 3 }}}}
    run: echo few >> {shown_effects}
  last:
    site: edge
    after: [read]
    with: {{ n: "${{{{ steps.many.outputs.first }}}}" }}
    run: |
      echo "last $n" >> {shown_effects}
      echo $((n + 1)) > "$ATOLL_OUTPUTS/n"
    outputs: {{ n: integer }}
outputs:
  doubled: ${{{{ steps.double.outputs.m }}}}
  n: ${{{{ steps.last.outputs.n }}}}
"#
    );
    let run = cluster.submit(&workflow, &[])?;
    let ran = || std::fs::read_to_string(&effects).unwrap_or_default();
    wait_for("the first step", || Ok((ran() == "list\n").then_some(())))?;
    cluster.site("edge").link.cut();
    std::fs::write(&go, "")?;
    wait_for("the last step", || Ok(ran().contains("last 7").then_some(())))?;
    let meanwhile = cluster.show(&run)?;
    ensure!(meanwhile["state"] == "running", "nobody can know yet: {meanwhile:#}");
    cluster.site("edge").link.mend();
    let shown = cluster.wait_for_end(&run)?;
    ensure!(shown["state"] == "succeeded", "{shown:#}");
    ensure!(shown["outputs"] == serde_json::json!({"doubled": [6, 2, 4], "n": 8}), "{shown:#}");
    let mut lines: Vec<String> = ran().lines().map(str::to_owned).collect();
    lines.sort();
    let expected = ["double 1", "double 1", "double 2", "double 3", "last 7", "list", "many 7", "read a", "read b"];
    ensure!(lines == expected, "each once, and what failed once more: {lines:?}");
    let executions = shown["executions"].as_array().expect("a list");
    let skipped = executions.iter().filter(|execution| execution["state"] == "skipped").count();
    ensure!(skipped == 1 && executions.len() == 9, "{shown:#}");
    Ok(())
}
