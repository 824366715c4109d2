//! The sample of docs/contract.md, as it stands.

use anyhow::Result;
use e2e_tests::{Cluster, Options};
use serde_json::json;

fn sample() -> String {
    let text = include_str!("../../../docs/contract.md");
    let after = text.split("```yaml\n").nth(1).expect("the sample");
    after.split("```").next().expect("its end").to_owned()
}

/// Names of the sites that an entry leads from and to.
fn ways(entries: &[serde_json::Value]) -> Vec<(String, String)> {
    let mut ways: Vec<_> = entries
        .iter()
        .map(|entry| (entry["from"].as_str().unwrap().to_owned(), entry["to"].as_str().unwrap().to_owned()))
        .collect();
    ways.sort();
    ways
}

fn check_sample(cluster: &Cluster) -> Result<()> {
    let run = cluster.submit(&sample(), &[])?;
    let shown = cluster.wait_for_end(&run)?;
    assert_eq!(shown["state"], "succeeded", "{shown:#}");
    assert_eq!(shown["outputs"]["lines"], json!(3), "{shown:#}");
    let lengths: Vec<_> =
        shown["executions"].as_array().unwrap().iter().filter(|execution| execution["step"] == "make").collect();
    assert_eq!(lengths.len(), 3);
    for (execution, expected) in lengths.iter().zip([5, 4, 5]) {
        assert_eq!(execution["outputs"]["length"], json!(expected));
        assert_eq!(execution["site"], "edge");
    }

    let entries = cluster.ledger(&run)?;
    let three = |from: &str, to: &str| vec![(from.to_owned(), to.to_owned()); 3];
    assert_eq!(ways(&entries), [three("bucket", "hpc"), three("edge", "bucket")].concat(), "{entries:#?}");
    let mut objects: Vec<_> = entries.iter().map(|entry| entry["object"].as_str().unwrap()).collect();
    objects.sort_unstable();
    objects.dedup();
    assert_eq!(objects.len(), 3, "three objects, each by way of the bucket");

    if cluster.bucket_directory().exists() {
        cluster.wait_for_empty_bucket()?;
    }
    let target = cluster.directory().join("got");
    let got = cluster.call(&["get", &run.id, "all", "-o", target.to_str().unwrap()])?;
    assert_eq!(got.code, 0, "{}", got.stderr);
    assert_eq!(std::fs::read_to_string(target.join("words.txt"))?, "alpha\nbeta\ngamma\n");
    assert_eq!(std::fs::read_to_string(target.join("lengths.json"))?.trim(), "[5,4,5]");
    Ok(())
}

#[test]
fn the_sample_of_the_contract_runs_as_it_stands() -> Result<()> {
    let cluster = Cluster::two_sites()?;
    check_sample(&cluster)
}

#[test]
fn the_sample_of_the_contract_runs_on_redb_too() -> Result<()> {
    let cluster = Cluster::start(Options {
        sites: vec!["edge", "hpc"],
        server_arguments: ["--store", "redb"].map(str::to_owned).to_vec(),
        environment: Vec::new(),
        ..Options::default()
    })?;
    check_sample(&cluster)
}

#[test]
fn the_sample_of_the_contract_runs_with_a_real_s3_server() -> Result<()> {
    let Some([bucket]) = e2e_tests::s3(["ATOLL_TEST_S3"]) else { return Ok(()) };
    let cluster = Cluster::start(Options {
        sites: vec!["edge", "hpc"],
        bucket: Some(format!("{bucket}/sample")),
        ..Options::default()
    })?;
    check_sample(&cluster)
}

#[test]
fn the_sample_of_the_contract_runs_with_azures_emulator() -> Result<()> {
    let Some(container) = e2e_tests::azurite() else { return Ok(()) };
    let cluster = Cluster::start(Options {
        sites: vec!["edge", "hpc"],
        bucket: Some(format!("{container}/sample")),
        ..Options::default()
    })?;
    check_sample(&cluster)
}

#[test]
fn each_file_of_a_directory_that_is_sent_in_goes_where_it_is_read() -> Result<()> {
    let cluster = Cluster::two_sites()?;
    let input = cluster.directory().join("input of a person");
    std::fs::create_dir_all(input.join("deep"))?;
    for (name, text) in [("b 2.csv", "beta\n"), ("deep/c.csv", "gamma\n"), ("a.csv", "alpha\n"), ("notes.txt", "no\n")]
    {
        std::fs::write(input.join(name), text)?;
    }
    std::fs::write(input.join("empty.csv"), "")?;
    let source = r#"workflow: each
inputs: { all: { type: directory } }
steps:
  each:
    foreach: ${{ files(inputs.all, "**/*.csv") }}
    with: { file: "${{ item }}" }
    site: edge
    run: |
      basename "$file" > "$ATOLL_OUTPUTS/name"
      cp "$file" "$ATOLL_OUTPUTS/same"
    outputs: { name: string, same: file }
  gather:
    with: { same: "${{ steps.each.outputs.same }}", names: "${{ steps.each.outputs.name }}" }
    site: hpc
    run: |
      echo "$same" | tr -d '[]"' | tr ',' '\n' | while read -r f; do cat "$f"; done > "$ATOLL_OUTPUTS/all"
      echo "$names" > "$ATOLL_OUTPUTS/names"
    outputs: { all: file, names: list }
outputs:
  all: ${{ steps.gather.outputs.all }}
  names: ${{ steps.gather.outputs.names }}
"#;
    let run = cluster.submit(source, &[&format!("all=@{}", input.display())])?;
    let shown = cluster.wait_for_end(&run)?;
    assert_eq!(shown["state"], "succeeded", "{shown:#}");
    assert_eq!(shown["outputs"]["names"], json!(["a.csv", "b 2.csv", "c.csv", "empty.csv"]), "{shown:#}");
    cluster.wait_for_empty_bucket()?;
    let target = cluster.directory().join("all");
    let got = cluster.call(&["get", &run.id, "all", "-o", target.to_str().unwrap()])?;
    assert_eq!(got.code, 0, "{}", got.stderr);
    assert_eq!(std::fs::read_to_string(&target)?, "alpha\nbeta\ngamma\n");
    let entries = cluster.ledger(&run)?;
    let to_edge: Vec<_> = entries.iter().filter(|entry| entry["to"] == "edge").collect();
    assert_eq!(to_edge.iter().map(|entry| entry["bytes"].as_u64().unwrap()).sum::<u64>(), 17, "{entries:#?}");
    Ok(())
}
