//! Actions in Python, from the folder that somebody makes to the process at a site.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use e2e_tests::{Cluster, Options};
use serde_json::{Value, json};

const MANIFEST: &str = "name: words\nversion: \"1.0\"\nruntime: python\nhandler: main.py:handle\n\
                        inputs: { text: file, gate: { type: string, default: '' } }\n\
                        outputs: { count: integer, loud: file, pid: integer }\nresources: { cpu: 0.5 }\n";
const MODULE: &str = r#"
import os, time
from shout import shout


def handle(text, gate):
    print("reads", text)
    if gate:
        open(gate + ".waits", "w").write(str(os.getpid()))
        while not os.path.exists(gate):
            time.sleep(0.01)
    words = open(text).read().split()
    with open("loud", "w") as loud:
        loud.write(shout(" ".join(words)))
    return {"count": len(words), "loud": "loud", "pid": os.getpid()}
"#;

const WORKFLOW: &str = r#"workflow: words
steps:
  make: { run: 'echo "one two $n" > "$ATOLL_OUTPUTS/text"', foreach: "${{ range(40) }}", with: { n: "${{ index }}" }, outputs: { text: file } }
  count: { action: words@1.0, foreach: "${{ steps.make.outputs.text }}", with: { text: "${{ item }}" } }
  join: { run: 'for file in $(echo "$all" | tr -d "[]\"" | tr , " "); do cat "$file"; echo; done | sort -u | wc -l > "$ATOLL_OUTPUTS/lines"', with: { all: "${{ steps.count.outputs.loud }}" }, outputs: { lines: integer } }
outputs:
  lines: ${{ steps.join.outputs.lines }}
  counts: ${{ steps.count.outputs.count }}
  pids: ${{ steps.count.outputs.pid }}
"#;

fn folder(cluster: &Cluster) -> Result<PathBuf> {
    let folder = cluster.directory().join("words");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("action.yaml"), MANIFEST)?;
    fs::write(folder.join("main.py"), MODULE)?;
    fs::write(folder.join("shout.py"), "def shout(text):\n    return text.upper()\n")?;
    Ok(folder)
}

fn push(cluster: &Cluster, more: &[&str]) -> Result<()> {
    let folder = folder(cluster)?.display().to_string();
    let pushed = cluster.call(&[&["action", "push", &folder], more].concat())?;
    ensure!(pushed.code == 0, "{} {}", pushed.stdout, pushed.stderr);
    Ok(())
}

#[test]
fn an_action_that_was_just_made_runs() -> Result<()> {
    let cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() })?;
    let folder = cluster.directory().join("lines");
    let path = folder.display().to_string();
    for arguments in [&["action", "init", "--runtime", "python", &path][..], &["action", "check", &path]] {
        let said = cluster.call(arguments)?;
        ensure!(said.code == 0, "{arguments:?}: {} {}", said.stdout, said.stderr);
    }
    let text = cluster.directory().join("text");
    fs::write(&text, "a\nb\nc\n")?;
    // The folder goes with the run, without having been pushed.
    let workflow = "workflow: w\ninputs: { text: file }\nsteps:\n  a: { action: ./lines, with: { text: \"${{ inputs.text }}\" } }\noutputs: { lines: \"${{ steps.a.outputs.lines }}\" }\n";
    let shown = cluster.run(workflow, &[&format!("text=@{}", text.display())])?;
    assert_eq!((&shown["state"], &shown["outputs"]["lines"]), (&json!("succeeded"), &json!(3)), "{shown:#}");
    fs::write(folder.join("main.py"), "def other(): pass\n")?;
    let said = cluster.call(&["action", "check", &path])?;
    ensure!(said.code != 0 && said.stderr.contains("there is no `handle` in `main.py`"), "{}", said.stderr);
    ensure!(said.stderr.contains("action.yaml:7:10"), "where it is named: {}", said.stderr);
    Ok(())
}

#[test]
fn forty_files_are_read_by_a_few_processes_and_what_they_make_is_read_by_others() -> Result<()> {
    let cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() })?;
    push(&cluster, &[])?;
    let shown = cluster.run(WORKFLOW, &[])?;
    assert_eq!(shown["state"], "succeeded", "{shown:#}");
    assert_eq!((&shown["outputs"]["counts"], &shown["outputs"]["lines"]), (&json!(vec![3; 40]), &json!(40)));
    let mut pids: Vec<i64> = serde_json::from_value(shown["outputs"]["pids"].clone())?;
    pids.sort_unstable();
    pids.dedup();
    assert!(pids.len() < 20, "{pids:?}");
    Ok(())
}

#[test]
fn a_call_is_adopted_by_the_agent_that_follows_one_that_was_killed() -> Result<()> {
    let mut cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() })?;
    push(&cluster, &[])?;
    let gate = cluster.directory().join("gate");
    let workflow = format!(
        "workflow: waits\nsteps:\n  make: {{ run: 'echo a b > \"$ATOLL_OUTPUTS/text\"', outputs: {{ text: file }} }}\n  a: {{ action: words@1.0, with: {{ text: \"${{{{ steps.make.outputs.text }}}}\", gate: {} }} }}\noutputs:\n  pid: ${{{{ steps.a.outputs.pid }}}}\n",
        gate.display()
    );
    let run = cluster.submit(&workflow, &[])?;
    let waits = gate.with_extension("waits");
    cluster.eventually("the call", || Ok(fs::read_to_string(&waits).is_ok_and(|pid| !pid.is_empty())))?;
    let pid: i64 = fs::read_to_string(&waits)?.parse()?;
    cluster.kill_agent("edge")?;
    fs::write(&gate, "")?;
    cluster.start_agent("edge")?;
    let shown = cluster.wait_for_end(&run)?;
    assert_eq!((&shown["state"], &shown["outputs"]["pid"]), (&json!("succeeded"), &json!(pid)), "{shown:#}");
    let executions = shown["executions"].as_array().context("executions")?;
    let attempts: Vec<&Value> = executions.iter().map(|execution| &execution["attempt"]).collect();
    assert_eq!(attempts, [&json!(1), &json!(1)], "nothing was run twice");
    Ok(())
}

#[test]
fn a_site_that_demands_signatures_runs_a_handler_that_has_one() -> Result<()> {
    let keys = tempfile::tempdir()?;
    let key = keys.path().join("release.key").display().to_string();
    let made = e2e_tests::atoll(&["action", "key", "new", &key]).output()?;
    ensure!(made.status.success(), "{made:?}");
    let policy = keys.path().join("policy.yaml");
    let public_key = String::from_utf8(made.stdout)?;
    let rules = format!(
        "keys:\n  release: \"{}\"\nrun:\n  - allow: {{ signed_by: release }}\n  - refuse: {{ work: action }}\n",
        public_key.trim()
    );
    fs::write(&policy, rules)?;
    let of_edge = vec![("ATOLL_AGENT_POLICY", policy.display().to_string())];
    let site_environment = [("edge", of_edge)].into();
    let cluster = Cluster::start(Options { sites: vec!["edge"], site_environment, ..Options::default() })?;
    push(&cluster, &[])?;
    let refused = cluster.run(WORKFLOW, &[])?;
    assert_eq!(refused["state"], "failed", "{refused:#}");
    push(&cluster, &["--key", &key])?;
    let shown = cluster.run(WORKFLOW, &[])?;
    assert_eq!(shown["state"], "succeeded", "{shown:#}");
    Ok(())
}

#[test]
fn a_site_without_a_python_gets_no_work_for_one() -> Result<()> {
    let none = vec![("ATOLL_AGENT_PYTHON", "/no/such/python".to_owned())];
    let site_environment = [("edge", none)].into();
    let cluster = Cluster::start(Options { sites: vec!["edge", "hpc"], site_environment, ..Options::default() })?;
    push(&cluster, &[])?;
    let shown = cluster.run(WORKFLOW, &[])?;
    assert_eq!(shown["state"], "succeeded", "{shown:#}");
    let executions = shown["executions"].as_array().context("executions")?;
    let counted = executions.iter().filter(|execution| execution["step"] == "count");
    assert!(counted.clone().count() == 40 && counted.clone().all(|execution| execution["site"] == "hpc"), "{shown:#}");
    Ok(())
}

#[test]
fn the_example_runs_as_it_stands() -> Result<()> {
    let cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() })?;
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).context("the root")?;
    let workflow = repository.join("examples/python/workflow.yaml");
    let shown = cluster.run(workflow.to_str().context("a path")?, &[])?;
    assert_eq!(shown["state"], "succeeded", "{shown:#}");
    let highest = shown["outputs"]["highest"].as_array().context("a list")?;
    assert_eq!((highest.len(), &highest[0]), (100, &json!(2.0)));
    Ok(())
}

/// Holds 160 MB before it answers which attempt that was, and is given 96 MiB at first.
const GREEDY: &str = "import os\n\n\ndef handle():\n    held = b\"x\" * 160_000_000\n    return {\"attempt\": int(os.environ.get(\"ATOLL_ATTEMPT\", \"0\")), \"held\": len(held)}\n";

#[test]
fn what_ran_out_of_memory_is_tried_again_with_more_and_says_so() -> Result<()> {
    let cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() })?;
    let folder = cluster.directory().join("greedy");
    fs::create_dir_all(&folder)?;
    let manifest = "name: greedy\nversion: \"1.0\"\nruntime: python\nhandler: main.py:handle\noutputs: { attempt: integer, held: integer }\n";
    fs::write(folder.join("action.yaml"), manifest)?;
    fs::write(folder.join("main.py"), GREEDY)?;
    let workflow = |growth: &str| {
        format!(
            "workflow: w\nsteps:\n  a: {{ action: ./greedy, resources: {{ memory: 96MiB }}, retry: {{ attempts: 2, backoff: 100ms{growth} }} }}\n\
             outputs: {{ held: \"${{{{ steps.a.outputs.held }}}}\" }}\n"
        )
    };
    let run = cluster.submit(&workflow(", memory: 4x"), &[])?;
    let shown = cluster.wait_for_end(&run)?;
    assert_eq!((&shown["state"], &shown["outputs"]["held"]), (&json!("succeeded"), &json!(160_000_000)), "{shown:#}");
    let execution = &shown["executions"][0];
    assert_eq!(
        (&execution["attempt"], &execution["memory_limit_bytes"]),
        (&json!(2), &json!(384 << 20)),
        "{execution:#}"
    );
    let listed = cluster.call(&["show", &run.id])?.stdout;
    ensure!(listed.contains("2 (384 MiB)"), "{listed}");
    let why = cluster.call(&["why", execution["execution"].as_str().unwrap_or_default()])?.stdout;
    ensure!(why.contains("attempt 2 may use 384 MiB of memory"), "{why}");
    let shown = cluster.run(&workflow(""), &[])?;
    let execution = &shown["executions"][0];
    assert_eq!((&shown["state"], &execution["attempt"]), (&json!("failed"), &json!(2)), "{shown:#}");
    assert_eq!(execution["memory_limit_bytes"], json!(96 << 20));
    ensure!(execution["error"].as_str().is_some_and(|error| error.contains("memory")), "{execution:#}");
    Ok(())
}
