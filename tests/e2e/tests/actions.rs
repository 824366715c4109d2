//! Actions that are pushed once and run at any site: fetched once, signed, advised against, removed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use e2e_tests::{Cluster, Options};
use serde_json::{Value, json};

const MANIFEST: &str = "name: shout\nversion: \"1.0\"\ncommand: [sh, main.sh]\ninputs: { word: string }\noutputs: { text: string }\nresources: { cpu: 0.1 }\n";
const PROGRAM: &str = "set -eu\n. \"$ATOLL_ACTION/lib/shout.sh\"\nshout \"$word\" > \"$ATOLL_OUTPUTS/text\"\n";

/// Twenty executions at each of two sites.
const EVERYWHERE: &str = r#"workflow: shouting
steps:
  near: { action: shout@1.0, site: edge, foreach: "${{ range(20) }}", with: { word: "w${{ index }}" } }
  far: { action: shout@1.0, site: hpc, foreach: "${{ range(20) }}", with: { word: "w${{ index }}" } }
outputs:
  near: ${{ steps.near.outputs.text }}
  far: ${{ steps.far.outputs.text }}
"#;
const ANYWHERE: &str = "workflow: once\nsteps:\n  a: { action: shout@1.0, with: { word: now } }\n";

fn json(cluster: &Cluster, arguments: &[&str]) -> Result<Value> {
    let output = cluster.call(&[arguments, &["--json"]].concat())?;
    ensure!(output.code == 0, "{arguments:?}: {} {}", output.code, output.stderr);
    if output.stdout.is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_str(&output.stdout)?) }
}

/// The folder of the action, whose voice ends with `mark`.
fn folder(parent: &Path, mark: &str) -> Result<PathBuf> {
    let folder = parent.join(format!("shout{mark}"));
    fs::create_dir_all(folder.join("lib"))?;
    fs::write(folder.join("action.yaml"), MANIFEST)?;
    fs::write(folder.join("main.sh"), PROGRAM)?;
    let shout = format!("shout() {{ printf '%s{mark}' \"$1\" | tr a-z A-Z; }}\n");
    fs::write(folder.join("lib/shout.sh"), shout)?;
    Ok(folder)
}

fn push(cluster: &Cluster, folder: &Path, more: &[&str]) -> Result<Value> {
    json(cluster, &[&["action", "push", &folder.display().to_string()], more].concat())
}

/// How often the object has come to a site.
fn fetched(cluster: &Cluster, object: &str, site: &str) -> Result<usize> {
    let ledger = json(cluster, &["why", object])?;
    let entries = ledger["ledger"].as_array().context("a ledger")?;
    Ok(entries.iter().filter(|entry| entry["to"] == site).count())
}

fn runs_everywhere(cluster: &Cluster) -> Result<()> {
    let pushed = push(cluster, &folder(cluster.directory(), "!")?, &[])?;
    let digest = pushed["digest"].as_str().context("a digest")?.to_owned();
    assert_eq!(
        (&pushed["action"], &pushed["version"], &pushed["kind"]),
        (&json!("shout"), &json!("1.0"), &json!("processor"))
    );
    let expected: Value = (0..20).map(|number| json!(format!("W{number}!"))).collect();
    for _ in 0..2 {
        let shown = cluster.run(EVERYWHERE, &[])?;
        assert_eq!(shown["state"], "succeeded", "{shown:#}");
        assert_eq!((&shown["outputs"]["near"], &shown["outputs"]["far"]), (&expected, &expected));
    }
    for site in ["edge", "hpc"] {
        assert_eq!(fetched(cluster, &digest, site)?, 1, "once at {site}");
        let made = cluster.site(site).directory.join(format!("actions/{}/action", digest.trim_start_matches("b3:")));
        assert!(made.join("lib/shout.sh").exists(), "{}", made.display());
    }
    Ok(())
}

#[test]
fn a_pushed_action_runs_at_every_site_and_is_fetched_once_by_each() -> Result<()> {
    runs_everywhere(&Cluster::two_sites()?)
}

#[test]
fn a_pushed_action_comes_to_its_sites_by_way_of_s3() -> Result<()> {
    let Some([bucket, _]) = e2e_tests::s3(["ATOLL_TEST_S3", "AWS_ENDPOINT_URL"]) else { return Ok(()) };
    let bucket = Some(format!("{bucket}/actions-{}", std::process::id()));
    runs_everywhere(&Cluster::start(Options { sites: vec!["edge", "hpc"], bucket, ..Options::default() })?)
}

#[test]
fn a_version_stays_what_it_is_until_it_is_removed_and_then_nothing_is_left_of_it_in_the_bucket() -> Result<()> {
    let cluster = Cluster::two_sites()?;
    let first = folder(cluster.directory(), "!")?;
    let pushed = push(&cluster, &first, &[])?;
    assert_eq!(push(&cluster, &first, &[])?["pushed_at"], pushed["pushed_at"], "the same again");
    let other = cluster.call(&["action", "push", &folder(cluster.directory(), "?")?.display().to_string()])?;
    assert!(other.code == 1 && other.stderr.contains("never changes"), "{} {}", other.code, other.stderr);

    let deprecated = json(&cluster, &["action", "deprecate", "shout@1.0", "--reason", "use 2.0"])?;
    assert_eq!(deprecated["deprecated"]["reason"], "use 2.0");
    let gate = cluster.directory().join("gate");
    let waits = format!(
        "workflow: waits\nsteps:\n  wait: {{ run: 'until [ -e {} ]; do sleep 0.05; done' }}\n  a: {{ action: shout@1.0, after: wait, with: {{ word: now }} }}\n",
        gate.display()
    );
    let file = cluster.directory().join("waits.yaml");
    fs::write(&file, &waits)?;
    let submitted = cluster.call(&["run", &file.display().to_string(), "--json"])?;
    assert!(submitted.stderr.contains("warning: step a uses shout 1.0, which is deprecated: use 2.0"));
    let run = e2e_tests::Run { id: submitted.json()?["run"].as_str().context("a run")?.to_owned() };
    let refused = cluster.call(&["action", "remove", "shout@1.0"])?;
    assert!(refused.code == 1 && refused.stderr.contains(&run.id), "{} {}", refused.code, refused.stderr);
    fs::write(&gate, "")?;
    assert_eq!(cluster.wait_for_end(&run)?["state"], "succeeded");

    let listed = json(&cluster, &["action", "list"])?;
    assert_eq!(listed["actions"][0]["digest"], pushed["digest"], "{listed:#}");
    let digest = pushed["digest"].as_str().context("a digest")?.trim_start_matches("b3:");
    let has_bundle = || -> Result<bool> {
        Ok(cluster.bucket_objects()?.iter().any(|path| path.display().to_string().contains(&digest[8..])))
    };
    assert!(has_bundle()?, "what was pushed stays in the bucket");
    json(&cluster, &["action", "remove", "shout@1.0"])?;
    assert_eq!(json(&cluster, &["action", "list"])?["actions"], json!([]));
    // What was sent in and refused stays for an hour; what was pushed goes.
    cluster.eventually("the bundle to go", || Ok(!has_bundle()?))?;
    let refused = cluster.call(&["run", &file.display().to_string()])?;
    assert!(refused.code == 2 && refused.stderr.contains("was removed"), "{} {}", refused.code, refused.stderr);
    Ok(())
}

/// Two sites, of which `edge` runs only what a key has signed that the second value is the file of.
fn demanding(sites: &[&'static str]) -> Result<(Cluster, tempfile::TempDir, String)> {
    let folder = tempfile::tempdir()?;
    let key = folder.path().join("release.key").display().to_string();
    let made = e2e_tests::atoll(&["action", "key", "new", &key]).output()?;
    ensure!(made.status.success(), "{made:?}");
    let public_key = String::from_utf8(made.stdout)?;
    let policy = folder.path().join("policy.yaml");
    let rules = format!(
        "keys:\n  release: \"{}\"\nrun:\n  - allow: {{ signed_by: release }}\n  - refuse: {{}}\n",
        public_key.trim()
    );
    fs::write(&policy, rules)?;
    let of_edge = vec![("ATOLL_AGENT_POLICY", policy.display().to_string())];
    let site_environment = [("edge", of_edge)].into();
    let cluster = Cluster::start(Options { sites: sites.to_vec(), site_environment, ..Options::default() })?;
    Ok((cluster, folder, key))
}

#[test]
fn what_a_site_demands_to_be_signed_goes_elsewhere_without_and_runs_there_with_a_signature() -> Result<()> {
    let (cluster, _folder, key) = demanding(&["edge", "hpc"])?;
    let action = folder(cluster.directory(), "!")?;
    push(&cluster, &action, &[])?;
    for _ in 0..4 {
        let shown = cluster.run(ANYWHERE, &[])?;
        let execution = &shown["executions"][0];
        assert_eq!((&shown["state"], &execution["site"]), (&json!("succeeded"), &json!("hpc")), "{shown:#}");
    }
    let signed = push(&cluster, &action, &["--key", &key])?;
    assert_eq!(signed["signed_by"].as_array().map(Vec::len), Some(1), "{signed:#}");
    let at_edge = ANYWHERE.replace("with:", "site: edge, with:");
    let shown = cluster.run(&at_edge, &[])?;
    assert_eq!((&shown["state"], &shown["executions"][0]["site"]), (&json!("succeeded"), &json!("edge")), "{shown:#}");
    Ok(())
}

#[test]
fn what_no_site_lets_run_fails_at_once_with_the_rule_also_in_the_middle_of_a_run() -> Result<()> {
    let (cluster, folder_of_key, _) = demanding(&["edge", "hpc"])?;
    push(&cluster, &folder(cluster.directory(), "!")?, &[])?;
    let at_edge = ANYWHERE.replace("with:", "site: edge, with:");
    let later = at_edge
        .replace("steps:\n", "steps:\n  first: { run: 'true', site: hpc }\n")
        .replace("with:", "after: first, with:");
    let policy = folder_of_key.path().join("policy.yaml").display().to_string();
    for workflow in [at_edge, later] {
        let shown = cluster.run(&workflow, &[])?;
        let message = shown["error"]["message"].as_str().context("a message")?;
        assert_eq!((&shown["state"], &shown["error"]["step"]), (&json!("failed"), &json!("a")), "{shown:#}");
        assert!(message.contains(&format!("{policy}:5")), "the rule that refuses: {message}");
        assert!(message.contains(&format!("it is not signed by release ({policy}:4)")), "and what it lacks: {message}");
    }
    Ok(())
}
