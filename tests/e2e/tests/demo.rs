//! The demonstration of three kinds of site, as `deploy/README.md` tells people to start it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use e2e_tests::{Output, atoll};

use crate::example::processes_of;

#[test]
fn three_kinds_of_site_do_one_workflow_and_leave_nothing_behind() -> Result<()> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).context("the root")?;
    let place = tempfile::Builder::new().prefix("atoll-demo-").tempdir()?;
    // Jobs of the cluster are another user's as far as their folders go.
    Command::new("chmod").arg("755").arg(place.path()).status()?;
    let namespaces = || -> Result<String> { Ok(Output::of(Command::new("ip").args(["netns", "list"]))?.stdout) };
    let mut demo = Command::new("bash");
    demo.arg(repository.join("deploy/demo.sh")).env("ATOLL", atoll(&[]).get_program()).env("TMPDIR", place.path());
    let said = Output::of(&mut demo)?;
    if said.stderr.contains("missing: ") || said.stderr.contains("want root") {
        eprintln!("SKIPPED: {}", said.stderr.trim());
        assert!(std::env::var_os("CI").is_none(), "CI is root, and has what the demonstration needs");
        return Ok(());
    }
    assert_eq!(said.code, 0, "{}\n{}", said.stdout, said.stderr);
    for (step, site) in [("read", "edge"), ("model", "hpc"), ("report", "cloud")] {
        let done = said.stdout.lines().filter(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.get(1..4) == Some(&[step, "succeeded", site])
        });
        assert_eq!(done.count(), if step == "report" { 1 } else { 12 }, "{step}: {}", said.stdout);
    }
    // The image and the function by way of the bucket, each reading to the one site that models it, each model to the last.
    for crossing in ["edge    bucket", "bucket  hpc", "hpc     bucket", "bucket  cloud"] {
        assert!(said.stdout.contains(crossing), "{crossing}: {}", said.stdout);
    }
    let report: Vec<&str> = said.stdout.lines().skip_while(|line| !line.starts_with("river ")).skip(1).collect();
    assert_eq!(report.iter().filter(|line| line.contains(" job ") && line.ends_with("on node demo")).count(), 12);
    assert!(report[0].starts_with("rhine "), "{report:?}");
    assert!(!namespaces()?.contains("atoll-edge-"), "{}", namespaces()?);
    assert_eq!(processes_of(place.path()), Vec::<u32>::new());
    assert_eq!(std::fs::read_dir(place.path())?.count(), 0, "nothing is left of it");
    Ok(())
}
