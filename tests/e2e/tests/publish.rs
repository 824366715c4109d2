//! Outputs that are published at a path of a site, and in a bucket of somebody else's.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result, ensure};
use e2e_tests::{Cluster, Options};
use serde_json::{Value, json};

/// Makes a map and a directory of tiles at `edge`.
fn workflow(text: &str, outputs: &str) -> String {
    format!(
        r#"workflow: published
steps:
  make:
    site: edge
    run: |
      echo {text} > "$ATOLL_OUTPUTS/map"
      mkdir -p "$ATOLL_OUTPUTS/tiles/deep"
      echo a > "$ATOLL_OUTPUTS/tiles/a"
      echo b > "$ATOLL_OUTPUTS/tiles/deep/b c"
    outputs: {{ map: file, tiles: directory }}
outputs:
{outputs}
"#
    )
}

fn document(cluster: &Cluster, arguments: &[&str]) -> Result<Value> {
    let output = cluster.call(&[arguments, &["--json"]].concat())?;
    ensure!(output.code == 0, "{arguments:?}: {} {}", output.code, output.stderr);
    Ok(serde_json::from_str(&output.stdout)?)
}

#[test]
fn outputs_stand_at_paths_of_sites_when_a_run_has_succeeded() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let public = folder.path().join("public");
    fs::create_dir(&public)?;
    let agent_arguments = vec!["--export-to".to_owned(), public.display().to_string()];
    let cluster = Cluster::start(Options { sites: vec!["edge", "hpc"], agent_arguments, ..Options::default() })?;
    let outputs = |map: &str| {
        let (map, tiles) = (public.join(map).display().to_string(), public.join("tiles").display().to_string());
        format!(
            "  map: {{ value: \"${{{{ steps.make.outputs.map }}}}\", publish: {{ site: hpc, path: {map} }} }}\n  tiles: {{ value: \"${{{{ steps.make.outputs.tiles }}}}\", publish: {{ site: edge, path: {tiles} }} }}"
        )
    };
    for _ in 0..2 {
        let run = cluster.submit(&workflow("one", &outputs("maps/map")), &[])?;
        let shown = cluster.wait_for_end(&run)?;
        assert_eq!(shown["state"], "succeeded", "{shown:#}");
        assert_eq!(fs::read_to_string(public.join("maps/map"))?, "one\n");
        assert_eq!(fs::read_to_string(public.join("tiles/deep/b c"))?, "b\n");
        assert_eq!(fs::metadata(public.join("maps/map"))?.permissions().mode() & 0o200, 0o200, "it is nobody's copy");
        let executions = shown["executions"].as_array().context("executions")?;
        let export = executions.iter().find(|one| one["step"] == "outputs.map").context("the step")?;
        assert_eq!((&export["site"], &export["state"]), (&"hpc".into(), &"succeeded".into()), "{export:#}");
        assert_eq!(export["inputs"]["map"], shown["outputs"]["map"], "{shown:#}");
        let why = document(&cluster, &["why", export["execution"].as_str().context("its name")?])?;
        assert_eq!(why["chosen"], "hpc");
        let entries = cluster.ledger(&run)?;
        let to_hpc = entries.iter().filter(|entry| entry["to"] == "hpc").count();
        assert!(to_hpc <= 1 && entries.iter().all(|entry| entry["bytes"] == 4), "only the map crossed: {entries:#?}");
    }

    let run = cluster.submit(&workflow("two", &outputs("maps/map")), &[])?;
    let shown = cluster.wait_for_end(&run)?;
    assert_eq!((&shown["state"], &shown["error"]["step"]), (&"failed".into(), &"outputs.map".into()), "{shown:#}");
    assert!(shown["error"]["message"].to_string().contains("exists already"), "{shown:#}");
    assert_eq!(fs::read_to_string(public.join("maps/map"))?, "one\n");

    let run = cluster.submit(&workflow("one", &outputs("../map")), &[]);
    assert!(run.is_err(), "a path that leads elsewhere than it seems to is refused before it is a run");
    let file = cluster.directory().join("confined.yaml");
    let confined = workflow("one", &outputs("confined")) + "placement:\n  - match: { step: make }\n    confine: edge\n";
    fs::write(&file, confined)?;
    let refused = cluster.call(&["run", &file.display().to_string()])?;
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(
        refused.stderr.contains("outputs.map") && refused.stderr.contains("placement rule 1"),
        "{}",
        refused.stderr
    );
    Ok(())
}

#[test]
fn outputs_stand_in_a_bucket_of_somebody_elses_when_a_run_has_succeeded() -> Result<()> {
    let Some([bucket]) = e2e_tests::s3(["ATOLL_TEST_S3"]) else { return Ok(()) };
    outputs_stand_below(&bucket)
}

#[test]
fn outputs_stand_in_a_container_of_azure_when_a_run_has_succeeded() -> Result<()> {
    let Some(container) = e2e_tests::azurite() else { return Ok(()) };
    outputs_stand_below(&container)
}

fn outputs_stand_below(bucket: &str) -> Result<()> {
    let ours = format!("{bucket}/published-{}", std::process::id());
    let agent_arguments = ["--import-url", bucket, "--export-to", &ours].map(str::to_owned).to_vec();
    let cluster = Cluster::start(Options { sites: vec!["edge"], agent_arguments, ..Options::default() })?;
    let outputs = format!(
        "  map: {{ value: \"${{{{ steps.make.outputs.map }}}}\", publish: {{ url: \"{ours}/map.txt\", site: edge }} }}\n  tiles: {{ value: \"${{{{ steps.make.outputs.tiles }}}}\", publish: {{ url: \"{ours}/tiles/\" }} }}"
    );
    for _ in 0..2 {
        let run = cluster.submit(&workflow("one", &outputs), &[])?;
        let shown = cluster.wait_for_end(&run)?;
        assert_eq!(shown["state"], "succeeded", "{shown:#}");
        for (place, output, directory) in [("map.txt", "map", false), ("tiles", "tiles", true)] {
            let from = format!("edge:{ours}/{place}");
            let import = ["data", "import", &from, "--directory"];
            let there = document(&cluster, &import[..if directory { 4 } else { 3 }])?;
            assert_eq!(there["object"], shown["outputs"][output]["object"], "what is there is what was made");
        }
    }
    let made = cluster.submit(&workflow("two", "  map: ${{ steps.make.outputs.map }}"), &[])?;
    let made = cluster.wait_for_end(&made)?;
    let object = made["outputs"]["map"]["object"].as_str().context("an object")?;
    let to = format!("edge:{ours}/exported");
    let exported = document(&cluster, &["data", "export", object, "-o", &to])?;
    assert_eq!(exported, json!({ "object": object, "bytes": 4, "path": to }));
    let there = document(&cluster, &["data", "import", &to])?;
    assert_eq!(there["object"], object);
    for (elsewhere, reason) in
        [(format!("edge:{ours}/map.txt"), "exists already"), (format!("edge:{bucket}/x"), "exports")]
    {
        let refused = cluster.call(&["data", "export", object, "-o", &elsewhere])?;
        assert!(refused.code == 1 && refused.stderr.contains(reason), "{}", refused.stderr);
    }
    Ok(())
}
