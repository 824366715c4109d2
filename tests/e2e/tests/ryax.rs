//! Actions that were written for Ryax, run as they stand.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use e2e_tests::{Cluster, Options, Repository, atoll};
use serde_json::{Value, json};

/// All that can be run, beside each other and after each other.
const WORKFLOW: &str = r#"workflow: ryax
steps:
  write: { run: "printf 'one\ntwo\n\nthree\n' > \"$ATOLL_OUTPUTS/text.txt\"; mv \"$ATOLL_OUTPUTS/text.txt\" \"$ATOLL_OUTPUTS/text\"", outputs: { text: file } }
  count: { action: count-lines@1.0, with: { text: "${{ steps.write.outputs.text }}", skip_blank: true } }
  split: { action: split-lines@1.0, foreach: "${{ range(6) }}", with: { text: "${{ steps.write.outputs.text }}" } }
  join: { action: join-parts@1.0, with: { parts: "${{ steps.split.outputs.parts[5] }}", mode: loud } }
  note: { action: optional-note@1.0, with: { picture: null } }
  mean: { action: mean@1.0, with: { a: 1, b: 2 } }
  greet: { action: greet@1.0, with: { name: you, key: secret } }
  announce: { action: announce@1.0, with: { text: "${{ steps.greet.outputs.greeting }}" } }
  fixed: { action: fixed-name@1.0, foreach: "${{ range(12) }}", with: { number: "${{ item }}" } }
  read: { run: 'cat "$file" > "$ATOLL_OUTPUTS/content"', foreach: "${{ steps.fixed.outputs.file }}", with: { file: "${{ item }}" }, outputs: { content: string } }
  rows: { action: rows@1.0, with: { count: 4 } }
  each: { action: mean@1.0, foreach: "${{ steps.rows.outputs.square }}", with: { a: "${{ item }}", b: 1 } }
  none: { action: rows@1.0, with: { count: 0 } }
  pass: { action: pass-on@1.0, with: { file: "${{ steps.join.outputs.joined }}" } }
  again: { action: pass-on@1.0, with: { file: "${{ steps.pass.outputs.same }}" } }
  remember: { action: remember@1.0, foreach: "${{ range(20) }}" }
outputs:
  lines: ${{ steps.count.outputs.lines }}
  joined: ${{ steps.again.outputs.same }}
  bytes: ${{ steps.again.outputs.bytes }}
  kinds: ${{ steps.join.outputs.kinds }}
  said: ${{ steps.note.outputs.said }}
  mean: "${{ [steps.mean.outputs.mean, steps.mean.outputs.whole, steps.mean.outputs.text] }}"
  greeting: ${{ steps.greet.outputs.greeting }}
  beside: ${{ steps.greet.outputs.where }}
  seen: ${{ steps.fixed.outputs.seen }}
  contents: ${{ steps.read.outputs.content }}
  names: ${{ steps.rows.outputs.name }}
  odd: ${{ steps.rows.outputs.odd }}
  means: ${{ steps.each.outputs.mean }}
  none: ${{ steps.none.outputs.name }}
  calls: ${{ steps.remember.outputs.calls }}
  raw: ${{ steps.remember.outputs.raw[0] }}
"#;

fn root() -> Result<PathBuf> {
    Ok(Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).context("the root")?.to_owned())
}

/// The folders of all actions that can be run.
fn folders() -> Result<Vec<PathBuf>> {
    let mut folders = vec![root()?.join("examples/ryax/count-lines")];
    for entry in fs::read_dir(root()?.join("tests/e2e/ryax"))? {
        folders.push(entry?.path());
    }
    folders.retain(|folder| folder.join("ryax_metadata.yaml").exists());
    ensure!(folders.len() >= 12, "{folders:?}");
    Ok(folders)
}

fn check(folder: &Path) -> Result<Value> {
    let said = atoll(&["action", "check", &folder.display().to_string(), "--json"]).output()?;
    serde_json::from_slice(&said.stdout).with_context(|| format!("{said:?}"))
}

fn messages(checked: &Value) -> Vec<&str> {
    let errors = checked["errors"].as_array().into_iter().flatten();
    errors.filter_map(|error| error["message"].as_str()).collect()
}

#[test]
fn actions_of_ryax_are_pushed_as_they_stand_and_run_beside_each_other() -> Result<()> {
    let cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() })?;
    for folder in folders()? {
        let checked = check(&folder)?;
        let pushed = cluster.call(&["action", "push", &folder.display().to_string(), "--json"])?;
        ensure!(pushed.code == 0, "{}: {} {}", folder.display(), pushed.stdout, pushed.stderr);
        assert_eq!(pushed.json()?["digest"], checked["digest"]);
    }
    let shown = cluster.run(WORKFLOW, &[])?;
    assert_eq!(shown["state"], "succeeded", "{shown:#}");
    let outputs = &shown["outputs"];
    assert_eq!((&outputs["lines"], &outputs["kinds"]), (&json!(3), &json!("str,str,float")), "{outputs:#}");
    assert_eq!((&outputs["bytes"], &outputs["joined"]["name"]), (&json!(30), &json!("joined.txt")), "{outputs:#}");
    assert_eq!(outputs["said"], "[('count', 3), ('note', None), ('picture', None)]");
    assert_eq!(outputs["mean"], json!([1.0, 1, "5"]));
    assert_eq!(outputs["greeting"], "Hello, you!");
    let beside = outputs["beside"].as_str().context("a text")?;
    assert_eq!(beside, "phrases,requirements.txt,ryax_handler.py,ryax_metadata.yaml,word.txt");
    assert_eq!(outputs["seen"], json!(vec![false; 12]), "each has a /tmp of its own");
    let contents: Vec<String> = (0..12).map(|number| number.to_string()).collect();
    assert_eq!(outputs["contents"], json!(contents));
    assert_eq!((&outputs["names"], &outputs["none"]), (&json!(["0", "1", "2", "3"]), &json!([])), "{outputs:#}");
    assert_eq!(outputs["odd"], json!([null, null, null, null]));
    assert_eq!(outputs["means"], json!([0.0, 1.0, 2.0, 5.0]));
    assert_eq!(outputs["raw"], "cba");
    let calls: Vec<u64> = serde_json::from_value(outputs["calls"].clone())?;
    assert!(calls.iter().any(|calls| *calls > 1), "a process serves several: {calls:?}");
    Ok(())
}

#[test]
fn a_ryax_exception_reaches_the_error_of_the_run() -> Result<()> {
    let cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() })?;
    let copied = std::process::Command::new("cp").arg("-r").args(folders()?).arg(cluster.directory()).status()?;
    ensure!(copied.success(), "the folders are copied");
    let workflow = "workflow: w\nsteps:\n  a: { action: ./teapot, with: { brew: coffee } }\n";
    let shown = cluster.run(workflow, &[])?;
    assert_eq!(shown["state"], "failed", "{shown:#}");
    let error = shown["error"].to_string();
    assert!(error.contains("RyaxException: no coffee here (code 418)"), "{error}");
    Ok(())
}

#[test]
fn the_example_runs_as_it_stands_and_has_a_script_on_demand() -> Result<()> {
    let cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() })?;
    let workflow = root()?.join("examples/ryax/workflow.yaml");
    let shown = cluster.run(workflow.to_str().context("a path")?, &[])?;
    assert_eq!((&shown["state"], &shown["outputs"]["lines"]), (&json!("succeeded"), &json!(2)), "{shown:#}");
    let folder = cluster.directory().join("solve");
    fs::create_dir(&folder)?;
    let input = "{ name: ranks, human_name: R, help: H, type: integer }";
    let output = "{ name: result, human_name: R, help: H, type: directory }, { name: twice, human_name: T, help: H, type: integer }";
    let metadata = format!(
        "apiVersion: ryax.tech/v2.0\nkind: Processor\nspec:\n  id: solve\n  human_name: Solve\n  type: python3\n  addons: {{ hpc: {{}} }}\n  inputs: [{input}]\n  outputs: [{output}]\n"
    );
    fs::write(folder.join("ryax_metadata.yaml"), metadata)?;
    fs::write(folder.join("ryax_handler.py"), "def handle(inputs):\n    raise SystemExit('not called')\n")?;
    let workflow = "workflow: w\nsteps:\n  a:\n    action: ./solve\n    with:\n      ranks: 3\n      custom_script: |\n        mkdir out\n        echo $ranks > out/ranks\n        export result=\"$PWD/out\" twice=$((ranks * 2))\noutputs: { twice: \"${{ steps.a.outputs.twice }}\", result: \"${{ steps.a.outputs.result }}\" }\n";
    let shown = cluster.run(workflow, &[])?;
    assert_eq!((&shown["state"], &shown["outputs"]["twice"]), (&json!("succeeded"), &json!(6)), "{shown:#}");
    assert_eq!(shown["outputs"]["result"]["files"], 1, "{shown:#}");
    Ok(())
}

#[test]
fn sources_of_ryax_are_checked_wholly() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut count = 0;
    for entry in fs::read_dir(root()?.join("tests/e2e/ryax/sources"))? {
        let source = entry?.path();
        let checked = check(&source)?;
        assert_eq!((&checked["valid"], &checked["kind"]), (&json!(true), &json!("source")), "{checked:#}");
        let copied = folder.path().join("source");
        fs::create_dir_all(&copied)?;
        fs::copy(source.join("ryax_metadata.yaml"), copied.join("ryax_metadata.yaml"))?;
        fs::write(copied.join("ryax_run.py"), "async def run(service):\n    pass\n")?;
        assert!(messages(&check(&copied)?)[0].contains("wrong number of arguments"));
        count += 1;
    }
    assert_eq!(count, 3);
    Ok(())
}

#[test]
fn sources_of_ryax_start_the_runs_of_workflows_that_are_deployed() -> Result<()> {
    let cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() })?;
    for name in ["metronome", "just-once", "any-form"] {
        let folder = root()?.join("tests/e2e/ryax/sources").join(name);
        let pushed = cluster.call(&["action", "push", &folder.display().to_string()])?;
        ensure!(pushed.code == 0, "{name}: {} {}", pushed.stdout, pushed.stderr);
    }
    let deploy = |name: &str, source: &str, input: &str| -> Result<()> {
        let file = cluster.directory().join(format!("{name}.yaml"));
        let text = format!(
            "workflow: {name}\nsource: {source}\ninputs: {{ {input} }}\nsteps: {{ next: {{ executor: null }} }}\noutputs: {{ it: \"${{{{ inputs.{} }}}}\" }}\n",
            input.split(':').next().unwrap_or_default()
        );
        fs::write(&file, text)?;
        let deployed = cluster.call(&["workflow", "deploy", &file.display().to_string(), "--json"])?;
        ensure!(deployed.code == 0, "{name}: {} {}", deployed.stdout, deployed.stderr);
        Ok(())
    };
    let outputs_of = |name: &str| -> Result<Vec<Value>> {
        let listed = cluster.call(&["runs", "--workflow", name, "--state", "succeeded", "--json"])?.json()?;
        let runs = listed["runs"].as_array().context("runs")?;
        Ok(runs.iter().rev().map(|run| run["outputs"]["it"].clone()).collect())
    };
    deploy("ticking", "{ action: metronome@1.0, with: { period: 0.05 } }", "tick: integer")?;
    cluster.eventually("three runs", || Ok(outputs_of("ticking")?.len() >= 3))?;
    let mut ticks: Vec<i64> = outputs_of("ticking")?.iter().filter_map(Value::as_i64).collect();
    ticks.sort_unstable();
    assert_eq!(ticks[..3], [1, 2, 3]);
    deploy("once", "{ action: just-once@1.0 }", "at: string")?;
    cluster.eventually("it has ended", || {
        Ok(cluster.call(&["workflow", "show", "once", "--json"])?.json()?["state"] == "ended")
    })?;
    cluster.eventually("its run", || Ok(outputs_of("once")?.len() == 1))?;
    deploy("form", "{ action: any-form@1.0 }", "name: { type: string, default: none }")?;
    cluster.eventually("it says that it could not", || {
        let shown = cluster.call(&["workflow", "show", "form", "--json"])?.json()?;
        let run = shown["source"]["run"].as_str().context("its run")?.to_owned();
        Ok(cluster.call(&["logs", &run])?.stdout.contains("could not start a run"))
    })?;
    assert_eq!(outputs_of("form")?.len(), 0);
    Ok(())
}

#[test]
fn a_repository_of_ryax_is_imported_and_each_error_has_its_place() -> Result<()> {
    let cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() })?;
    let repository = Repository::new()?;
    let folder = root()?.join("tests/e2e/ryax/rows");
    let [metadata, handler] =
        ["ryax_metadata.yaml", "ryax_handler.py"].map(|name| fs::read_to_string(folder.join(name)));
    let (metadata, handler) = (metadata?, handler?);
    repository.write("good/rows/ryax_metadata.yaml", &metadata)?;
    repository.write("good/rows/ryax_handler.py", &handler)?;
    repository.write("bad/syntax/ryax_metadata.yaml", &metadata.replace("id: rows", "id: broken"))?;
    repository.write("bad/syntax/ryax_handler.py", "def handle(inputs):\n    return {\n")?;
    repository.write("bad/nothing/ryax_metadata.yaml", &metadata)?;
    repository.write("bad/logo/ryax_metadata.yaml", &format!("{metadata}  logo: logo.gif\n"))?;
    repository.write("bad/logo/ryax_handler.py", &handler)?;
    repository.commit()?;
    let path = repository.path().display().to_string();
    let added = cluster.call(&["repo", "add", &path, "--name", "old"])?;
    assert_eq!(added.code, 1, "some are wrong");
    for said in [
        "bad/syntax/ryax_handler.py:3:1: syntax error",
        "bad/nothing/ryax_metadata.yaml:2:7: there is no `ryax_handler.py`",
        "bad/logo/ryax_metadata.yaml:",
        "the logo `logo.gif` cannot be read",
    ] {
        assert!(added.stdout.contains(said), "{said}: {}", added.stdout);
    }
    cluster.call(&["repo", "import", "old"])?;
    let workflow = "workflow: w\nsteps:\n  a: { action: rows@1.0, with: { count: 2 } }\noutputs: { names: \"${{ steps.a.outputs.name }}\" }\n";
    let shown = cluster.run(workflow, &[])?;
    assert_eq!((&shown["state"], &shown["outputs"]["names"]), (&json!("succeeded"), &json!(["0", "1"])), "{shown:#}");
    Ok(())
}
