//! Objects and their copies, as a person sees and changes them: `atoll data`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use e2e_tests::{Cluster, Options};
use serde_json::Value;

const MADE: &str = "workflow: made\nsteps:\n  make:\n    site: edge\n    run: |\n      echo kept > \"$ATOLL_OUTPUTS/kept\"\n      echo spare > \"$ATOLL_OUTPUTS/spare\"\n    outputs: { kept: file, spare: file }\noutputs:\n  kept: ${{ steps.make.outputs.kept }}\n";

fn json(cluster: &Cluster, arguments: &[&str]) -> Result<Value> {
    let output = cluster.call(&[arguments, &["--json"]].concat())?;
    anyhow::ensure!(output.code == 0, "{arguments:?}: {} {}", output.code, output.stderr);
    Ok(serde_json::from_str(&output.stdout)?)
}

fn object_named(shown: &Value, output: &str) -> Result<String> {
    let value = &shown["executions"][0]["outputs"][output]["object"];
    Ok(value.as_str().with_context(|| format!("{output} in {shown:#}"))?.to_owned())
}

/// Flips one bit of what [`MADE`] keeps, in the store of a site. Where that is.
fn damage_kept(cluster: &Cluster, site: &str, object: &str) -> Result<PathBuf> {
    let (first, rest) = object.trim_start_matches("b3:").split_at(2);
    let path = cluster.site(site).directory.join(format!("store/objects/{first}/{rest}"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
    fs::write(&path, "kepu\n")?;
    Ok(path)
}

#[test]
fn copies_are_listed_pinned_brought_to_the_bucket_taken_out_and_let_go() -> Result<()> {
    let cluster = Cluster::two_sites()?;
    let run = cluster.submit(MADE, &[])?;
    let shown = cluster.wait_for_end(&run)?;
    let (kept, spare) = (object_named(&shown, "kept")?, object_named(&shown, "spare")?);
    let listed = json(&cluster, &["data", "ls", "--site", "edge", "--run", &run.id])?;
    assert_eq!(listed["objects"].as_array().map(Vec::len), Some(2), "{listed:#}");
    assert_eq!(json(&cluster, &["data", "ls", "--site", "hpc"])?["objects"], Value::Array(Vec::new()));

    let pinned = json(&cluster, &["data", "pin", &spare, "--site", "edge"])?;
    assert_eq!((&pinned["pins"][0]["at"], &pinned["replicas"][0]), (&"edge".into(), &"edge".into()));
    let refused = cluster.call(&["data", "evict", &spare, "--site", "edge"])?;
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("pinned"), "{}", refused.stderr);
    // The output of a run that is remembered is not let go as the last copy.
    let refused = cluster.call(&["data", "evict", &kept, "--site", "edge"])?;
    assert!(refused.code == 1 && refused.stderr.contains("last copy"), "{}", refused.stderr);

    let pushed = json(&cluster, &["data", "push", &kept])?;
    assert_eq!(pushed["replicas"], serde_json::json!(["edge", "bucket"]));
    let to = cluster.directory().join("exported");
    cluster.call(&["data", "export", &kept, "-o", &to.display().to_string()])?;
    assert_eq!(fs::read_to_string(&to)?, "kept\n");

    json(&cluster, &["data", "pin", &kept, "--site", "hpc"])?;
    let is_at_hpc = |document: &Value| document["replicas"].as_array().is_some_and(|all| all.contains(&"hpc".into()));
    cluster.eventually("the copy to come", || Ok(is_at_hpc(&json(&cluster, &["data", "where", &kept])?)))?;
    let entries = json(&cluster, &["data", "where", &kept])?["ledger"].as_array().cloned().unwrap_or_default();
    ensure!(entries.iter().any(|entry| entry["to"] == "hpc" && entry["rule"] == "client"), "{entries:#?}");

    json(&cluster, &["data", "unpin", &spare, "--site", "edge"])?;
    json(&cluster, &["data", "evict", &spare, "--site", "edge"])?;
    let gone = |document: Value| document["replicas"].as_array().is_some_and(Vec::is_empty);
    cluster.eventually("the copy to go", || Ok(gone(json(&cluster, &["data", "where", &spare])?)))?;
    assert_eq!(json(&cluster, &["data", "where", &kept])?["replicas"][0], "edge");
    Ok(())
}

#[test]
fn files_of_this_machine_and_of_a_site_are_taken_in() -> Result<()> {
    let agent_arguments = ["--import-root", "/", "--export-to", "/"].map(str::to_owned).to_vec();
    let cluster = Cluster::start(Options { sites: vec!["edge"], agent_arguments, ..Options::default() })?;
    let file = cluster.directory().join("readings.csv");
    fs::write(&file, "1,2\n")?;
    let sent = json(&cluster, &["data", "import", &file.display().to_string(), "--pin"])?;
    assert_eq!((&sent["at"], &sent["pinned"]), (&"bucket".into(), &true.into()));
    let object = sent["object"].as_str().context("an object")?.to_owned();
    let held = json(&cluster, &["data", "import", &format!("edge:{}", file.display())])?;
    assert_eq!((&held["object"], &held["at"]), (&object.as_str().into(), &"edge".into()));
    let known = json(&cluster, &["data", "where", &object])?;
    assert_eq!(known["replicas"], serde_json::json!(["edge", "bucket"]));
    let published = cluster.directory().join("published/readings.csv");
    let to = format!("edge:{}", published.display());
    json(&cluster, &["data", "export", &object, "-o", &to])?;
    assert_eq!(fs::read_to_string(&published)?, "1,2\n");
    json(&cluster, &["data", "export", &object, "-o", &to])?;
    fs::write(&published, "3,4\n")?;
    let again = cluster.call(&["data", "export", &object, "-o", &to])?;
    assert_eq!(again.code, 1, "what else is there stays: {}", again.stderr);
    Ok(())
}

/// Serves one file to whoever asks; its address.
fn web_server(content: &'static str) -> Result<String> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 4096];
            let _ = std::io::Read::read(&mut stream, &mut request);
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{content}", content.len());
            let _ = std::io::Write::write_all(&mut stream, answer.as_bytes());
        }
    });
    Ok(format!("http://{address}"))
}

#[test]
fn an_input_is_fetched_by_a_site_from_what_its_administrator_lists() -> Result<()> {
    let web = web_server("3,4\n")?;
    let agent_arguments = vec!["--import-url".to_owned(), format!("{web}/open/")];
    let cluster = Cluster::start(Options { sites: vec!["edge"], agent_arguments, ..Options::default() })?;
    let workflow = "workflow: fetched\ninputs: { readings: { type: file } }\nsteps:\n  count:\n    with: { readings: \"${{ inputs.readings }}\" }\n    run: |\n      basename \"$readings\" > \"$ATOLL_OUTPUTS/name\"\n      cat \"$readings\" > \"$ATOLL_OUTPUTS/text\"\n    outputs: { name: string, text: string }\noutputs:\n  name: ${{ steps.count.outputs.name }}\n  text: ${{ steps.count.outputs.text }}\n";
    let run = cluster.submit(workflow, &[&format!("readings=@{web}/open/readings.csv")])?;
    let shown = cluster.wait_for_end(&run)?;
    let expected = serde_json::json!({ "name": "readings.csv", "text": "3,4" });
    assert_eq!((&shown["state"], &shown["outputs"]), (&"succeeded".into(), &expected), "{shown:#}");
    let held = json(&cluster, &["data", "import", &format!("edge:{web}/open/readings.csv")])?;
    assert_eq!((&held["at"], &held["value"]["bytes"]), (&"edge".into(), &4.into()), "{held:#}");

    let run = cluster.submit(workflow, &[&format!("readings=@{web}/closed/readings.csv")])?;
    let shown = cluster.wait_for_end(&run)?;
    assert_eq!(shown["state"], "failed");
    assert!(shown["error"].to_string().contains("import_urls"), "{shown:#}");
    Ok(())
}

#[test]
fn d5_one_bit_flipped_in_a_store_is_found_named_and_repaired() -> Result<()> {
    let cluster = Cluster::two_sites()?;
    let run = cluster.submit(MADE, &[])?;
    let kept = object_named(&cluster.wait_for_end(&run)?, "kept")?;
    json(&cluster, &["data", "push", &kept])?;
    let sound = json(&cluster, &["data", "verify", "edge"])?;
    assert_eq!(sound["damaged"], 0, "{sound:#}");
    damage_kept(&cluster, "edge", &kept)?;
    let damaged = cluster.call(&["data", "verify", "edge", "--json"])?;
    let document: Value = serde_json::from_str(&damaged.stdout)?;
    assert_eq!((damaged.code, &document["damaged"]), (1, &1.into()), "{document:#}");
    let named = |document: Value| document["replicas"] == serde_json::json!(["bucket"]);
    cluster.eventually("the copy to be known as lost", || Ok(named(json(&cluster, &["data", "where", &kept])?)))?;
    // Whoever asks for it gets the sound copy.
    let to = cluster.directory().join("again");
    cluster.call(&["data", "export", &kept, "-o", &to.display().to_string()])?;
    assert_eq!(fs::read_to_string(&to)?, "kept\n");
    Ok(())
}

#[test]
fn what_a_rule_wants_at_two_sites_comes_there_stays_there_and_comes_again_when_it_is_damaged() -> Result<()> {
    let cluster = Cluster::two_sites()?;
    let policy = cluster.directory().join("copies.yaml");
    fs::write(&policy, "placement:\n  - match: { output: kept }\n    replicate: { copies: 2 }\n")?;
    let applied = cluster.call(&["policy", "apply", &policy.display().to_string(), "--project", "default"])?;
    assert_eq!(applied.code, 0, "{}", applied.stderr);
    let run = cluster.submit(MADE, &[])?;
    let shown = cluster.wait_for_end(&run)?;
    let (kept, spare) = (object_named(&shown, "kept")?, object_named(&shown, "spare")?);
    let both = serde_json::json!(["edge", "hpc"]);
    let is_at_both = || Ok(json(&cluster, &["data", "where", &kept])?["replicas"] == both);
    cluster.eventually("the copy at the other site, and no other", is_at_both)?;
    let ledger = cluster.ledger(&run)?;
    let is_by_rule = |entry: &Value| entry["rule"].as_str().is_some_and(|rule| rule.ends_with("copies.yaml:2"));
    assert!(ledger.len() == 2 && ledger.iter().all(is_by_rule), "into the bucket and out of it: {ledger:#?}");
    assert_eq!(json(&cluster, &["data", "where", &spare])?["replicas"], serde_json::json!(["edge"]));
    let why = json(&cluster, &["why", &kept])?;
    assert!(why["copies"][0].as_str().is_some_and(|copies| copies.ends_with("wants 2 copies: 2 there")), "{why:#}");

    let refused = cluster.call(&["data", "evict", &kept, "--site", "hpc"])?;
    assert!(refused.code == 1 && refused.stderr.contains("wants 2 copies of it"), "{}", refused.stderr);

    let path = damage_kept(&cluster, "hpc", &kept)?;
    let damaged = cluster.call(&["data", "verify", "hpc"])?;
    assert_eq!(damaged.code, 1, "{}", damaged.stderr);
    cluster.eventually("the damaged copy to be replaced", || {
        Ok(fs::read_to_string(&path).is_ok_and(|text| text == "kept\n") && is_at_both()?)
    })
}

#[test]
fn what_expires_goes_from_the_store_of_its_site_by_itself_or_when_somebody_has_decided() -> Result<()> {
    let cluster = Cluster::two_sites()?;
    let policy = cluster.directory().join("time.yaml");
    let rules = "placement:\n  - match: { step: brief }\n    expire: { after: 1s }\n  - match: { step: asked }\n    expire: { after: 1s, then: ask }\n";
    fs::write(&policy, rules)?;
    let applied = cluster.call(&["policy", "apply", &policy.display().to_string(), "--project", "default"])?;
    assert_eq!(applied.code, 0, "{}", applied.stderr);
    let source = "workflow: timed\nsteps:\n  brief: { site: edge, run: echo brief > \"$ATOLL_OUTPUTS/f\", outputs: { f: file } }\n  asked: { site: hpc, run: echo asked > \"$ATOLL_OUTPUTS/f\", outputs: { f: file } }\noutputs:\n  brief: ${{ steps.brief.outputs.f }}\n  asked: ${{ steps.asked.outputs.f }}\n";
    let run = cluster.submit(source, &[])?;
    let shown = cluster.wait_for_end(&run)?;
    let object = |name: &str| shown["outputs"][name]["object"].as_str().context("an object").map(str::to_owned);
    let (brief, asked) = (object("brief")?, object("asked")?);
    let is_stored = |site: &str, object: &str| {
        let (first, rest) = object.trim_start_matches("b3:").split_at(2);
        cluster.site(site).directory.join(format!("store/objects/{first}/{rest}")).exists()
    };
    cluster.eventually("what has expired to go", || Ok(!is_stored("edge", &brief)))?;
    let is_asked = || Ok(json(&cluster, &["data", "where", &asked])?["expiry"]["state"] == "asking");
    cluster.eventually("somebody to be asked", is_asked)?;
    assert!(is_stored("hpc", &asked), "it waits for a decision");
    let expired = json(&cluster, &["data", "ls", "--expired", "--site", "hpc"])?;
    assert_eq!(expired["objects"].as_array().map(Vec::len), Some(1), "{expired:#}");
    assert_eq!(expired["objects"][0]["object"], asked.as_str());
    let why = cluster.call(&["why", &asked])?;
    let way = format!("atoll data evict {asked} --expired");
    assert!(why.stdout.contains("time.yaml:4") && why.stdout.contains(&way), "{}", why.stdout);
    let refused = cluster.call(&["data", "evict", &asked])?;
    assert_eq!(refused.code, 2, "{}", refused.stderr);

    json(&cluster, &["data", "evict", &asked, "--expired"])?;
    cluster.eventually("what was let go to go", || Ok(!is_stored("hpc", &asked)))?;
    assert_eq!(cluster.show(&run)?["state"], "succeeded", "its run is remembered");
    Ok(())
}

#[test]
fn a_site_that_may_hold_little_makes_room_by_itself_and_goes_on() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let policy = folder.path().join("policy.yaml");
    fs::write(&policy, "limits: { disk: 1MB }\n")?;
    let config = folder.path().join("agent.toml");
    fs::write(&config, format!("policy = {policy:?}\nevict_idle_seconds = 0\n"))?;
    let agent_arguments = vec!["--config".to_owned(), config.display().to_string()];
    let cluster = Cluster::start(Options { sites: vec!["edge"], agent_arguments, ..Options::default() })?;
    // Ten times what it may hold, one after the other: nobody needs what is done with.
    for number in 0..10 {
        let source = format!(
            "workflow: w{number}\nsteps:\n  make:\n    run: head -c 900000 /dev/urandom > \"$ATOLL_OUTPUTS/f\"\n    outputs: {{ f: file }}\n"
        );
        let run = cluster.submit(&source, &[])?;
        assert_eq!(cluster.wait_for_end(&run)?["state"], "succeeded");
    }
    let small = |document: Value| document["store"]["bytes"].as_u64().is_some_and(|bytes| bytes < 1_000_000);
    cluster.eventually("the store to be small again", || Ok(small(json(&cluster, &["site", "show", "edge"])?)))?;
    Ok(())
}
