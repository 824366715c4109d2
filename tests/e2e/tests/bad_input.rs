//! What is wrong, odd or hostile: a clear error or a right result, and the agent lives.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use e2e_tests::{Cluster, Options, Output, Run, SmallDisk};
use serde_json::{Value, json};

fn message(shown: &Value) -> String {
    shown["error"]["message"].as_str().unwrap_or_default().to_owned()
}

/// One step at `edge` with this script and these outputs; the run as it ended.
fn run_script(cluster: &Cluster, script: &str, outputs: &str) -> Result<Value> {
    let indented: String = script.lines().map(|line| format!("      {line}\n")).collect();
    cluster.run(
        &format!("workflow: odd\nsteps:\n  odd:\n    site: edge\n    run: |\n{indented}    outputs: {outputs}\n"),
        &[],
    )
}

/// After whatever came before, the site still works.
fn check_alive(cluster: &Cluster) -> Result<()> {
    let shown = run_script(cluster, "echo 1 > \"$ATOLL_OUTPUTS/n\"", "{ n: integer }")?;
    ensure!(shown["state"] == "succeeded", "{shown:#}");
    Ok(())
}

#[test]
fn a_broken_workflow_is_refused_with_its_place_and_what_would_be_right() -> Result<()> {
    let cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() })?;
    let cases = [
        ("workflow: [\n", 2, ""),
        ("workflow: w\nsteps:\n  a:\n    run: true\n    ruin: false\n", 5, "ruin"),
        (
            "workflow: w\nsteps:\n  a:\n    run: \"true\"\n    outputs: { n: integer }\n  b:\n    with: { m: \"${{ steps.a.outputs.m }}\" }\n    run: \"true\"\n",
            7,
            "no output `m`",
        ),
        (
            "workflow: w\nsteps:\n  a:\n    with: { x: \"${{ steps.b.outputs.y }}\" }\n    run: \"true\"\n    outputs: { y: string }\n  b:\n    with: { x: \"${{ steps.a.outputs.y }}\" }\n    run: \"true\"\n    outputs: { y: string }\n",
            3,
            "need each other",
        ),
        ("workflow: w\nsteps:\n  a:\n    site: atlantis\n    run: \"true\"\n", 4, "atlantis"),
        ("workflow: w\nsteps:\n  a:\n    resources:\n      memory: 900TiB\n    run: \"true\"\n", 5, "memory"),
        ("workflow: w\ninputs:\n  n: { type: intger }\nsteps:\n  a:\n    run: \"true\"\n", 3, "integer"),
    ];
    for (source, line, expected) in cases {
        let file = cluster.directory().join("broken.yaml");
        std::fs::write(&file, source)?;
        let output = cluster.call(&["check", file.to_str().unwrap(), "--json"])?;
        assert_eq!(output.code, 2, "{source}\n{}{}", output.stdout, output.stderr);
        let document = output.document()?;
        assert_eq!(document["valid"], false);
        let error = &document["errors"][0];
        assert_eq!(error["line"], line, "{source}\n{document:#}");
        assert!(error["column"].as_u64().is_some_and(|column| column > 0), "{document:#}");
        let text = error.to_string();
        assert!(text.contains(expected), "{expected:?} in {text}");
        let submitted = cluster.call(&["run", file.to_str().unwrap(), "--json"])?;
        assert_eq!(submitted.code, 2, "{}{}", submitted.stdout, submitted.stderr);
    }
    assert_eq!(cluster.call(&["runs", "--json"])?.json()?["runs"], json!([]), "nothing was accepted");
    Ok(())
}

#[test]
fn wrong_inputs_are_refused_before_anything_runs() -> Result<()> {
    let cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() })?;
    let file = cluster.directory().join("typed.yaml");
    std::fs::write(
        &file,
        "workflow: typed\ninputs:\n  n: { type: integer }\nsteps:\n  a:\n    with: { n: \"${{ inputs.n }}\" }\n    run: \"true\"\n",
    )?;
    for inputs in [&["-i", "n=seven"][..], &[], &["-i", "n=1", "-i", "m=2"], &["-i", "n=@/nowhere"]] {
        let mut command = cluster.command(&["run", "--json"]);
        let output = Output::of(command.arg(&file).args(inputs))?;
        assert_eq!(output.code, 2, "{inputs:?}: {}{}", output.stdout, output.stderr);
    }
    Ok(())
}

#[test]
fn a_missing_output_fails_with_its_name() -> Result<()> {
    let cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() })?;
    let shown = run_script(&cluster, "echo 1 > \"$ATOLL_OUTPUTS/other\"", "{ wanted: file }")?;
    assert_eq!(shown["state"], "failed");
    assert!(message(&shown).contains("wanted"), "{shown:#}");
    let shown = run_script(&cluster, "true", "{ n: { type: integer, optional: true } }")?;
    assert_eq!(shown["state"], "succeeded", "{shown:#}");
    let shown = run_script(&cluster, "echo many > \"$ATOLL_OUTPUTS/n\"", "{ n: integer }")?;
    assert_eq!(shown["state"], "failed");
    assert!(message(&shown).contains("integer"), "{shown:#}");
    check_alive(&cluster)
}

#[test]
fn g6_odd_names_arrive_as_they_were() -> Result<()> {
    let cluster = Cluster::two_sites()?;
    let workflow = r#"workflow: names
steps:
  make:
    site: edge
    run: |
      mkdir "$ATOLL_OUTPUTS/odd"
      cd "$ATOLL_OUTPUTS/odd"
      echo 1 > "with space"
      echo 2 > "with 'single' and \"double\" quotes"
      echo 3 > "$(printf 'two\nlines')"
      echo 4 > "Grüße 東京"
      echo 5 > "$(printf 'latin\351')"
      echo 6 > "-rf"
      mkdir -p "a folder/in it"
      : > "a folder/in it/empty"
    outputs: { odd: directory }
  take:
    site: hpc
    with: { odd: "${{ steps.make.outputs.odd }}" }
    run: |
      cd "$odd"
      cat "with space" "with 'single' and \"double\" quotes" "$(printf 'two\nlines')" "Grüße 東京" "$(printf 'latin\351')" ./-rf | tr -d '\n' > "$ATOLL_OUTPUTS/all"
      test -e "a folder/in it/empty" && test ! -s "a folder/in it/empty"
    outputs: { all: integer }
outputs:
  all: ${{ steps.take.outputs.all }}
  odd: ${{ steps.make.outputs.odd }}
"#;
    let run = cluster.submit(workflow, &[])?;
    let shown = cluster.wait_for_end(&run)?;
    assert_eq!(shown["state"], "succeeded", "{shown:#}");
    assert_eq!(shown["outputs"]["all"], 123_456);
    let target = cluster.directory().join("got");
    let got = cluster.call(&["get", &run.id, "odd", "-o", target.to_str().unwrap()])?;
    assert_eq!(got.code, 0, "{}", got.stderr);
    assert_eq!(std::fs::read_to_string(target.join("Grüße 東京"))?, "4\n");
    Ok(())
}

#[test]
fn inputs_from_a_person_keep_their_odd_names_and_bytes() -> Result<()> {
    let cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() })?;
    let folder = cluster.directory().join("in put's");
    std::fs::create_dir(&folder)?;
    let file = folder.join("a b\n\"c\" é.txt");
    std::fs::write(&file, b"bytes\0\xff")?;
    let workflow = "workflow: given\ninputs:\n  given: { type: file }\nsteps:\n  look:\n    site: edge\n    with: { given: \"${{ inputs.given }}\" }\n    run: |\n      basename \"$given\" > \"$ATOLL_OUTPUTS/name\"\n      wc -c < \"$given\" > \"$ATOLL_OUTPUTS/size\"\n    outputs: { name: string, size: integer }\noutputs:\n  name: ${{ steps.look.outputs.name }}\n  size: ${{ steps.look.outputs.size }}\n";
    let shown = cluster.run(workflow, &[&format!("given=@{}", file.display())])?;
    assert_eq!(shown["state"], "succeeded", "{shown:#}");
    assert_eq!(shown["outputs"]["name"], "a b\n\"c\" é.txt");
    assert_eq!(shown["outputs"]["size"], 7);
    Ok(())
}

#[test]
fn g7_a_link_that_points_outside_is_refused_by_name() -> Result<()> {
    let cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() })?;
    for (script, name) in [
        ("mkdir \"$ATOLL_OUTPUTS/tree\"; ln -s /etc/passwd \"$ATOLL_OUTPUTS/tree/sly\"", "sly"),
        ("mkdir \"$ATOLL_OUTPUTS/tree\"; ln -s ../../../../etc \"$ATOLL_OUTPUTS/tree/up\"", "up"),
        ("ln -s /etc \"$ATOLL_OUTPUTS/tree\"", "tree"),
    ] {
        let shown = run_script(&cluster, script, "{ tree: directory }")?;
        assert_eq!(shown["state"], "failed", "{script}: {shown:#}");
        assert!(message(&shown).contains(name), "{script}: {shown:#}");
    }
    let inside =
        "mkdir \"$ATOLL_OUTPUTS/tree\"; echo 1 > \"$ATOLL_OUTPUTS/tree/real\"; ln -s real \"$ATOLL_OUTPUTS/tree/link\"";
    assert_eq!(run_script(&cluster, inside, "{ tree: directory }")?["state"], "succeeded");
    check_alive(&cluster)
}

#[test]
fn g10_pipes_and_devices_are_refused_and_hard_links_are_files() -> Result<()> {
    let cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() })?;
    let shown = run_script(
        &cluster,
        "mkdir \"$ATOLL_OUTPUTS/tree\"; mkfifo \"$ATOLL_OUTPUTS/tree/pipe\"",
        "{ tree: directory }",
    )?;
    assert_eq!(shown["state"], "failed");
    assert!(message(&shown).contains("pipe"), "{shown:#}");
    let linked = "mkdir \"$ATOLL_OUTPUTS/tree\"; echo 1 > \"$ATOLL_OUTPUTS/tree/a\"; ln \"$ATOLL_OUTPUTS/tree/a\" \"$ATOLL_OUTPUTS/tree/b\"";
    assert_eq!(run_script(&cluster, linked, "{ tree: directory }")?["state"], "succeeded");
    check_alive(&cluster)
}

#[test]
fn g5_a_sparse_output_of_5_gib_stays_sparse_and_is_handed_over() -> Result<()> {
    let cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() })?;
    let workflow = "workflow: sparse\nsteps:\n  make:\n    site: edge\n    run: truncate -s 5G \"$ATOLL_OUTPUTS/big\"\n    outputs: { big: file }\n  take:\n    site: edge\n    with: { big: \"${{ steps.make.outputs.big }}\" }\n    run: |\n      stat -L -c %s \"$big\" > \"$ATOLL_OUTPUTS/size\"\n      stat -L -c %b \"$big\" > \"$ATOLL_OUTPUTS/blocks\"\n    outputs: { size: integer, blocks: integer }\noutputs:\n  size: ${{ steps.take.outputs.size }}\n  blocks: ${{ steps.take.outputs.blocks }}\n";
    let shown = cluster.run(workflow, &[])?;
    assert_eq!(shown["state"], "succeeded", "{shown:#}");
    assert_eq!(shown["outputs"]["size"], 5_u64 << 30);
    assert!(shown["outputs"]["blocks"].as_u64().unwrap() < 1_000, "{shown:#}");
    Ok(())
}

#[test]
fn ten_thousand_small_outputs_arrive_at_the_other_site() -> Result<()> {
    let cluster = Cluster::two_sites()?;
    let workflow = r#"workflow: many
steps:
  make:
    site: edge
    run: |
      mkdir "$ATOLL_OUTPUTS/many"
      cd "$ATOLL_OUTPUTS/many"
      seq 10000 | split -l 1 -a 4 - file
      : > empty
    outputs: { many: directory }
  count:
    site: hpc
    with: { many: "${{ steps.make.outputs.many }}" }
    run: |
      find "$many" -type f | wc -l > "$ATOLL_OUTPUTS/files"
      cat "$many"/file* | sort -n | tail -n 1 > "$ATOLL_OUTPUTS/last"
    outputs: { files: integer, last: integer }
outputs:
  files: ${{ steps.count.outputs.files }}
  last: ${{ steps.count.outputs.last }}
"#;
    let shown = cluster.run(workflow, &[])?;
    assert_eq!(shown["state"], "succeeded", "{shown:#}");
    assert_eq!((&shown["outputs"]["files"], &shown["outputs"]["last"]), (&json!(10_001), &json!(10_000)));
    Ok(())
}

#[test]
fn a_step_that_forks_children_and_exits_leaves_nothing_behind() -> Result<()> {
    let cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() })?;
    let mark = cluster.directory().join("mark");
    let script = format!(
        "(while :; do date > {0}; sleep 0.05; done) > /dev/null 2>&1 &\nsetsid sh -c 'while :; do date > {0}.detached; sleep 0.05; done' > /dev/null 2>&1 < /dev/null &\nsleep 0.2\necho 1 > \"$ATOLL_OUTPUTS/n\"",
        mark.display()
    );
    let shown = run_script(&cluster, &script, "{ n: integer }")?;
    assert_eq!(shown["state"], "succeeded", "{shown:#}");
    for mark in [mark.clone(), PathBuf::from(format!("{}.detached", mark.display()))] {
        std::fs::remove_file(&mark).context("the children ran")?;
    }
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(!mark.exists() && !PathBuf::from(format!("{}.detached", mark.display())).exists(), "a child lives on");
    Ok(())
}

#[test]
fn inputs_are_read_only() -> Result<()> {
    let cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() })?;
    let workflow = r#"workflow: vandal
steps:
  make:
    site: edge
    run: echo precious > "$ATOLL_OUTPUTS/text"
    outputs: { text: file }
  vandal:
    site: edge
    with: { text: "${{ steps.make.outputs.text }}" }
    run: |
      chmod u+w "$text" || true
      echo broken > "$text" || true
      rm -f "$text" || true
      cat "$text" > "$ATOLL_OUTPUTS/copy"
    outputs: { copy: string }
  after:
    site: edge
    with: { text: "${{ steps.make.outputs.text }}", wait: "${{ steps.vandal.outputs.copy }}" }
    run: cat "$text" > "$ATOLL_OUTPUTS/copy"
    outputs: { copy: string }
outputs:
  seen: ${{ steps.vandal.outputs.copy }}
  after: ${{ steps.after.outputs.copy }}
"#;
    let shown = cluster.run(workflow, &[])?;
    assert_eq!(shown["state"], "succeeded", "{shown:#}");
    assert_eq!((&shown["outputs"]["seen"], &shown["outputs"]["after"]), (&json!("precious"), &json!("precious")));
    Ok(())
}

#[test]
fn limits_of_time_and_memory_are_enforced_and_named() -> Result<()> {
    let cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() })?;
    let slow = "workflow: slow\nsteps:\n  slow:\n    resources: { time: 1s }\n    run: sleep 60\n";
    let shown = cluster.run(slow, &[])?;
    assert_eq!(shown["state"], "failed");
    assert!(message(&shown).contains("time"), "{shown:#}");
    let greedy = "workflow: greedy\nsteps:\n  greedy:\n    resources: { memory: 64MiB, time: 30s }\n    run: |\n      head -c 400m /dev/zero | tail\n";
    let shown = cluster.run(greedy, &[])?;
    assert_eq!(shown["state"], "failed");
    check_alive(&cluster)
}

#[test]
fn e1_a_full_disk_at_the_site_fails_the_execution_and_the_agent_lives() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = SmallDisk::new(folder.path(), 192)?;
    let directory = disk.path().join("edge");
    std::fs::create_dir(&directory)?;
    let cluster = Cluster::start(Options {
        sites: vec!["edge"],
        site_directories: [("edge", directory)].into(),
        ..Options::default()
    })?;
    let shown = run_script(&cluster, "head -c 500m /dev/zero > \"$ATOLL_OUTPUTS/big\"", "{ big: file }")?;
    assert_eq!(shown["state"], "failed", "{shown:#}");
    let run = Run { id: shown["run"].as_str().unwrap().to_owned() };
    let logs = cluster.call(&["logs", &run.id])?;
    let said = format!("{} {} {}", message(&shown), logs.stdout, logs.stderr);
    assert!(said.to_lowercase().contains("space"), "{said}");
    check_alive(&cluster)
}

#[test]
fn a_file_that_somebody_deleted_in_the_bucket_fails_its_run_by_name_and_can_be_sent_in_again() -> Result<()> {
    let mut cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() })?;
    let workflow = "workflow: counted\ninputs: { words: { type: file } }\nsteps:\n  count:\n    with: { words: \"${{ inputs.words }}\" }\n    run: wc -w < \"$words\"\n";
    let words = cluster.directory().join("words");
    std::fs::write(&words, "one two three\n")?;
    let input = format!("words=@{}", words.display());
    cluster.stop_agent("edge")?;
    let run = cluster.submit(workflow, &[&input])?;
    let sent_in = cluster.bucket_objects()?;
    ensure!(!sent_in.is_empty(), "what is sent in is in the bucket");
    sent_in.iter().try_for_each(std::fs::remove_file)?;
    cluster.start_agent("edge")?;
    let shown = cluster.wait_for_end(&run)?;
    assert_eq!(shown["state"], "failed", "{shown:#}");
    assert!(message(&shown).contains("no copy of its input"), "{shown:#}");
    let shown = cluster.run(workflow, &[&input])?;
    assert_eq!(shown["state"], "succeeded", "{shown:#}");
    Ok(())
}
