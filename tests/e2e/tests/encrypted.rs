//! What a policy has encrypted: the bucket's owner reads nothing of it, everybody who may does.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use e2e_tests::{Cluster, Options, wait_for};

const SECRET: &str = "the patient's name is Ada Lovelace";

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    Ok(found)
}

/// Files whose name or content has these bytes.
fn showing(folder: &Path, what: &[u8]) -> Result<Vec<PathBuf>> {
    let mut showing = Vec::new();
    for path in files(folder)? {
        // What is deleted meanwhile shows nothing.
        let content = std::fs::read(&path).unwrap_or_default();
        let name = path.to_string_lossy().into_owned();
        if [name.as_bytes(), &content].iter().any(|bytes| bytes.windows(what.len()).any(|part| part == what)) {
            showing.push(path);
        }
    }
    Ok(showing)
}

fn workflow(gate: &Path) -> String {
    r#"workflow: secret
inputs: { told: file, folder: { type: directory } }
steps:
  make:
    site: edge
    with: { told: "${{ inputs.told }}" }
    run: |
      mkdir "$ATOLL_OUTPUTS/tree"
      for i in 1 2 3 4 5; do cat "$told" > "$ATOLL_OUTPUTS/tree/named-$i"; done
      for i in 1 2 3 4 5 6 7 8; do cat "$told"; head -c 3000000 /dev/zero; done > "$ATOLL_OUTPUTS/large"
    outputs: { tree: directory, large: file }
  each:
    site: hpc
    foreach: ${{ files(inputs.folder, "*.txt") }}
    with: { file: "${{ item }}" }
    run: cp "$file" "$ATOLL_OUTPUTS/same"
    outputs: { same: file }
  use:
    site: hpc
    with: { tree: "${{ steps.make.outputs.tree }}", large: "${{ steps.make.outputs.large }}" }
    run: |
      cat "$tree/named-1"
      tr -d '\000' < "$large" | cat - "$tree"/* > "$ATOLL_OUTPUTS/heard"
      while [ ! -e GATE ]; do sleep 0.05; done
    outputs: { heard: file }
outputs:
  heard: ${{ steps.use.outputs.heard }}
  tree: ${{ steps.make.outputs.tree }}
"#
    .replace("GATE", &gate.display().to_string())
}

/// Applies the policy, submits the workflow, and gives the run when its last step has read everything.
fn until_it_is_read(cluster: &Cluster, gate: &Path) -> Result<e2e_tests::Run> {
    let policy = cluster.directory().join("keys.yaml");
    std::fs::write(&policy, "placement:\n  - encrypt: { key: project }\n    route: [bucket]\n")?;
    let applied = cluster.call(&["policy", "apply", policy.to_str().context("a path")?, "--project", "default"])?;
    assert_eq!(applied.code, 0, "{}", applied.stderr);
    let (told, folder) = (cluster.directory().join("told"), cluster.directory().join("sent"));
    std::fs::write(&told, SECRET)?;
    std::fs::create_dir_all(&folder)?;
    for name in ["first-of-them.txt", "second-of-them.txt"] {
        std::fs::write(folder.join(name), format!("{SECRET} {name}"))?;
    }
    let inputs = [format!("told=@{}", told.display()), format!("folder=@{}", folder.display())];
    let run = cluster.submit(&workflow(gate), &[&inputs[0], &inputs[1]])?;
    let is_in_use = |shown: &serde_json::Value| {
        matches!(shown["state"].as_str(), Some("failed" | "succeeded"))
            || shown["executions"].as_array().is_some_and(|executions| {
                executions.iter().any(|execution| execution["step"] == "use" && execution["state"] == "running")
            })
    };
    cluster.wait_for_run(&run, is_in_use)?;
    Ok(run)
}

fn take(cluster: &Cluster, run: &e2e_tests::Run) -> Result<()> {
    let shown = cluster.wait_for_end(run)?;
    assert_eq!(shown["state"], "succeeded", "{shown:#}");
    let folder = tempfile::tempdir_in(cluster.directory())?;
    let (heard, tree) = (folder.path().join("heard"), folder.path().join("got"));
    for (output, target) in [("heard", &heard), ("tree", &tree)] {
        let got = cluster.call(&["get", &run.id, output, "-o", target.to_str().context("a path")?])?;
        assert_eq!(got.code, 0, "{}", got.stderr);
    }
    assert_eq!(std::fs::read_to_string(&heard)?, SECRET.repeat(13));
    assert_eq!(std::fs::read_to_string(tree.join("named-5"))?, SECRET);
    Ok(())
}

#[test]
fn what_a_policy_has_encrypted_is_nowhere_in_the_bucket_and_at_the_other_site_as_it_was() -> Result<()> {
    let mut cluster = Cluster::two_sites()?;
    let gate = cluster.directory().join("gate");
    let run = until_it_is_read(&cluster, &gate)?;
    let bucket = cluster.bucket_directory();
    let there = cluster.bucket_objects()?;
    assert!(there.iter().filter(|path| path.starts_with(bucket.join("e"))).count() >= 2, "{there:?}");
    let shown = cluster.show(&run)?;
    let tree = shown["executions"].as_array().context("executions")?.iter().find(|made| made["step"] == "make");
    let tree = tree.and_then(|made| made["outputs"]["tree"]["object"].as_str()).context("the tree's name")?;
    let hex = tree.trim_start_matches("b3:").to_owned();
    for what in [SECRET, "named-3", "first-of-them", &hex, &hex[..16]] {
        assert_eq!(showing(&bucket, what.as_bytes())?, Vec::<PathBuf>::new(), "{what}");
    }
    assert!(there.iter().all(|path| !path.starts_with(bucket.join("o")) && !path.starts_with(bucket.join("t"))));
    let why = cluster.call(&["why", tree])?;
    assert!(why.stdout.contains("encrypted in the bucket by key 1 of project default"), "{}", why.stdout);

    // The keys outlive the process, as they are wrapped in its journal.
    cluster.kill_server()?;
    cluster.start_server()?;
    std::fs::write(&gate, "")?;
    take(&cluster, &run)?;
    assert_eq!(showing(&bucket, SECRET.as_bytes())?, Vec::<PathBuf>::new());
    let server = cluster.directory().join("server");
    let master = server.join("master.key");
    assert_eq!(std::fs::metadata(&master)?.permissions().mode() & 0o777, 0o600);
    let secret = std::fs::read(&master)?;
    assert_eq!(showing(&server, &secret)?, [master]);
    Ok(())
}

#[test]
fn a_server_with_another_master_key_does_not_start_and_with_the_retired_one_wraps_anew() -> Result<()> {
    let mut cluster = Cluster::two_sites()?;
    let gate = cluster.directory().join("gate");
    std::fs::write(&gate, "")?;
    let run = until_it_is_read(&cluster, &gate)?;
    take(&cluster, &run)?;
    let folder = cluster.directory().join("server");
    let (master, retired) = (folder.join("master.key"), folder.join("retired.key"));
    cluster.kill_server()?;
    std::fs::rename(&master, &retired)?;
    assert!(cluster.start_server().is_err(), "it would make keys that open nothing of what is there");
    let log = cluster.log("server");
    assert!(log.contains("retired_master_key_file"), "{log}");
    let config = cluster.directory().join("server.toml");
    std::fs::write(&config, format!("retired_master_key_file = {:?}\n", retired.display().to_string()))?;
    cluster.start_server_with(&["--config", config.to_str().context("a path")?])?;
    wait_for("the keys to be wrapped anew", || Ok(cluster.log("server").contains("wrapped anew").then_some(())))?;
    cluster.kill_server()?;
    cluster.start_server()?;
    take(&cluster, &run)
}

#[test]
fn what_is_encrypted_moves_by_way_of_a_real_s3_server() -> Result<()> {
    let Some([bucket]) = e2e_tests::s3(["ATOLL_TEST_S3"]) else { return Ok(()) };
    let cluster = Cluster::start(Options {
        sites: vec!["edge", "hpc"],
        bucket: Some(format!("{bucket}/encrypted")),
        ..Options::default()
    })?;
    let gate = cluster.directory().join("gate");
    std::fs::write(&gate, "")?;
    let run = until_it_is_read(&cluster, &gate)?;
    take(&cluster, &run)
}
