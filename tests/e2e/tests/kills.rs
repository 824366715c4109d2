//! `kill -9` of an agent, of the control plane and of both, at many points of a run: started again, the run ends as it
//! would have, and each execution's effect counts once.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use e2e_tests::Cluster;

/// Every element leaves a line in a file outside of Atoll at its start and at its end, so that what really ran is known.
fn workflow(effects: &Path) -> String {
    let effects = effects.display();
    format!(
        r#"workflow: kills
steps:
  make:
    site: edge
    foreach: ${{{{ range(6) }}}}
    with: {{ number: "${{{{ item }}}}" }}
    retry: {{ attempts: 5, backoff: 100ms }}
    run: |
      echo "start make $number $ATOLL_ATTEMPT" >> {effects}
      sleep 0.15
      echo "$number" > "$ATOLL_OUTPUTS/text"
      echo "end make $number $ATOLL_ATTEMPT" >> {effects}
    outputs: {{ text: file }}
  double:
    site: hpc
    foreach: ${{{{ steps.make.outputs.text }}}}
    with: {{ text: "${{{{ item }}}}" }}
    retry: {{ attempts: 5, backoff: 100ms }}
    run: |
      number=$(cat "$text")
      echo "start double $number $ATOLL_ATTEMPT" >> {effects}
      sleep 0.1
      echo $((number * 2)) > "$ATOLL_OUTPUTS/doubled"
      echo "end double $number $ATOLL_ATTEMPT" >> {effects}
    outputs: {{ doubled: integer }}
  sum:
    site: edge
    with: {{ numbers: "${{{{ steps.double.outputs.doubled }}}}" }}
    retry: {{ attempts: 5, backoff: 100ms }}
    run: |
      echo "start sum 0 $ATOLL_ATTEMPT" >> {effects}
      echo "$numbers" | tr -d '[]' | tr ',' '+' | sed 's/^/echo $((/; s/$/))/' | sh > "$ATOLL_OUTPUTS/sum"
      echo "end sum 0 $ATOLL_ATTEMPT" >> {effects}
    outputs: {{ sum: integer }}
outputs:
  sum: ${{{{ steps.sum.outputs.sum }}}}
"#
    )
}

#[derive(Debug, Clone, Copy)]
enum Victim {
    Server,
    Edge,
    Hpc,
    All,
}

fn check_kill(victim: Victim, after: Duration) -> Result<()> {
    let mut cluster = Cluster::two_sites()?;
    let effects = cluster.directory().join("effects");
    std::fs::write(&effects, "")?;
    let run = cluster.submit(&workflow(&effects), &[])?;
    std::thread::sleep(after);
    let (server, edge, hpc) = match victim {
        Victim::Server => (true, false, false),
        Victim::Edge => (false, true, false),
        Victim::Hpc => (false, false, true),
        Victim::All => (true, true, true),
    };
    if edge {
        cluster.kill_agent("edge")?;
    }
    if server {
        cluster.kill_server()?;
    }
    if hpc {
        cluster.kill_agent("hpc")?;
    }
    if server {
        cluster.start_server()?;
    }
    if edge {
        cluster.start_agent("edge")?;
    }
    if hpc {
        cluster.start_agent("hpc")?;
    }
    let shown = cluster.wait_for_end(&run)?;
    assert_eq!(shown["state"], "succeeded", "{victim:?} after {after:?}: {shown:#}");
    assert_eq!(shown["outputs"]["sum"], 30);
    check_effects(&std::fs::read_to_string(&effects)?, &format!("{victim:?} after {after:?}"));
    Ok(())
}

/// Killing Atoll's own processes kills no work: so everything ran exactly once.
fn check_effects(effects: &str, context: &str) {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for line in effects.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        *seen.entry(words[..3].join(" ")).or_default() += 1;
    }
    let doubled: Vec<_> = seen.iter().filter(|(_, count)| **count != 1).collect();
    assert!(doubled.is_empty(), "{context}: not exactly once: {doubled:?}\n{effects}");
    assert_eq!(seen.len(), 26, "{context}: {effects}");
}

fn check_kills(victim: Victim, offsets_ms: &[u64]) -> Result<()> {
    for offset in offsets_ms {
        check_kill(victim, Duration::from_millis(*offset))?;
    }
    Ok(())
}

#[test]
fn a_killed_control_plane_loses_nothing() -> Result<()> {
    check_kills(Victim::Server, &[0, 60, 150, 300, 500, 700])
}

#[test]
fn a_killed_agent_finds_its_work_again() -> Result<()> {
    check_kills(Victim::Edge, &[10, 90, 180, 270, 400, 800])
}

#[test]
fn a_killed_agent_at_the_reading_site_finds_its_work_again() -> Result<()> {
    check_kills(Victim::Hpc, &[250, 350, 450, 550, 650])
}

#[test]
fn everything_killed_at_once_goes_on_where_it_was() -> Result<()> {
    check_kills(Victim::All, &[5, 120, 240, 360, 480, 600])
}
