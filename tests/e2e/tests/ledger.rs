//! Bytes cross a border once for each site that reads them, and the ledger says what the wires carried. Who reads what at
//! which site, the scripts themselves write down.
//!
//! `ATOLL_LEDGER_WORKFLOWS` says how many workflows (12), `ATOLL_LEDGER_FIRST` from which (0).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use e2e_tests::{Cluster, Link, Options};
use serde_json::Value;

const SITES: [&str; 4] = ["edge", "hpc", "lab", "cloud"];
/// What sites and the bucket say to each other beside the objects, for each workflow.
const TALK_BYTES: u64 = 40 << 10;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A source of chance that is the same everywhere.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn of_hundred(&mut self, chances: u64) -> bool {
        self.below(100) < chances
    }
}

/// What a workflow is drawn to do.
#[derive(Debug)]
struct Drawn {
    source: String,
    /// For each step the steps that it reads, and the size of what it makes.
    steps: Vec<(BTreeSet<usize>, u64)>,
    eager: Option<usize>,
}

fn draw(number: u64, notes: &Path) -> Drawn {
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15 ^ (number + 1).wrapping_mul(0xd134_2543_de82_ef95));
    (0..8).for_each(|_| _ = chance.below(2));
    let sites = &SITES[..2 + chance.below(3) as usize];
    let count = 4 + chance.below(5) as usize;
    let mut text = format!("workflow: ledger-{number}\nsteps:\n");
    let mut steps: Vec<(BTreeSet<usize>, u64)> = Vec::new();
    let eager = chance.of_hundred(30).then(|| chance.below(count as u64) as usize);
    for step in 0..count {
        let mut reads = BTreeSet::new();
        for _ in 0..chance.below(3) {
            reads.extend((step > 0).then(|| chance.below(step as u64) as usize));
        }
        let bytes = 20_000 + chance.below(300_000);
        let note = notes.join(format!("{number}-{step}"));
        // What fails at one site is tried at another.
        let moves = chance.of_hundred(30);
        writeln!(text, "  s{step}:").expect("text grows");
        if moves {
            text.push_str("    retry: { attempts: 3, backoff: 10ms, other_site: true }\n");
        } else if chance.of_hundred(70) {
            writeln!(text, "    site: {}", sites[chance.below(sites.len() as u64) as usize]).expect("text grows");
        }
        if !reads.is_empty() {
            let with = reads.iter().map(|read| format!("i{read}: \"${{{{ steps.s{read}.outputs.out }}}}\""));
            writeln!(text, "    with: {{ {} }}", with.collect::<Vec<_>>().join(", ")).expect("text grows");
        }
        let note = note.display();
        writeln!(text, "    run: |\n      echo \"$ATOLL_SITE\" >> '{note}'").expect("text grows");
        reads.iter().for_each(|read| writeln!(text, "      cat \"$i{read}\" > /dev/null").expect("text grows"));
        if moves {
            writeln!(text, "      [ \"$(wc -l < '{note}')\" -gt 1 ] || exit 1").expect("text grows");
        }
        writeln!(text, "      head -c {bytes} /dev/urandom > \"$ATOLL_OUTPUTS/out\"\n    outputs: {{ out: file }}")
            .expect("text grows");
        steps.push((reads, bytes));
    }
    if let Some(step) = eager {
        writeln!(text, "placement:\n  - match: {{ step: s{step} }}\n    push: eager").expect("text grows");
    }
    Drawn { source: text, steps, eager }
}

/// What had to cross: to the bucket, and from there to sites.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Crossed {
    to_bucket: u64,
    from_bucket: u64,
}

fn noted(notes: &Path, number: u64, step: usize) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(notes.join(format!("{number}-{step}")))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Compares the ledger of a run with what its scripts have read where.
fn check(cluster: &Cluster, drawn: &Drawn, number: u64, notes: &Path) -> Result<Crossed> {
    let run = cluster.submit(&drawn.source, &[])?;
    let shown = cluster.wait_for_end(&run)?;
    ensure!(shown["state"] == "succeeded", "{shown:#}\n{}", drawn.source);
    let text = |value: &Value| value.as_str().map(str::to_owned).context("text");
    let mut objects = BTreeMap::new();
    for execution in shown["executions"].as_array().context("executions")? {
        objects.insert(text(&execution["step"])?, text(&execution["outputs"]["out"]["object"])?);
    }
    let (mut entered, mut rules) = (BTreeMap::new(), Vec::new());
    for entry in cluster.ledger(&run)? {
        let key = (text(&entry["object"])?, text(&entry["from"])?, text(&entry["to"])?);
        ensure!(entry["route"] == "bucket", "{entry:#}");
        rules.push((key.clone(), entry["rule"] != "when-needed"));
        let bytes = entry["bytes"].as_u64().context("bytes")?;
        ensure!(entered.insert(key, bytes).is_none(), "it crossed twice: {entry:#}\n{}", drawn.source);
    }
    // For each object where it was made, and where it was read.
    let mut expected: BTreeMap<(String, String, String), u64> = BTreeMap::new();
    let (mut least, mut by_rule) = (Crossed::default(), BTreeSet::new());
    for (step, (_, bytes)) in drawn.steps.iter().enumerate() {
        let made_at = noted(notes, number, step)?.pop().context("it ran somewhere")?;
        let object = &objects[&format!("s{step}")];
        let mut readers = BTreeSet::new();
        for (reader, (reads, _)) in drawn.steps.iter().enumerate() {
            if reads.contains(&step) {
                readers.extend(noted(notes, number, reader)?);
            }
        }
        readers.remove(&made_at);
        let pushed = (object.clone(), made_at, "bucket".to_owned());
        // What a rule sends to the bucket and nobody reads there may not have come before the run ended.
        let is_eager = drawn.eager == Some(step);
        if !readers.is_empty() || is_eager && entered.contains_key(&pushed) {
            expected.insert(pushed, *bytes);
            least.to_bucket += bytes;
        }
        if is_eager {
            by_rule.insert(object.clone());
        }
        for reader in readers {
            expected.insert((object.clone(), "bucket".to_owned(), reader), *bytes);
            least.from_bucket += bytes;
        }
    }
    for (key, is_by_rule) in rules {
        ensure!(is_by_rule == by_rule.contains(&key.0), "{key:?} by a rule: {is_by_rule}\n{}", drawn.source);
    }
    ensure!(entered == expected, "the ledger:\n{entered:#?}\nwhat was read:\n{expected:#?}\n{}", drawn.source);
    Ok(least)
}

/// What all of them together had to send there and back.
fn check_all(cluster: &Cluster) -> Result<Crossed> {
    let notes = cluster.directory().join("notes");
    std::fs::create_dir(&notes)?;
    let first = setting("ATOLL_LEDGER_FIRST", 0);
    let mut least = Crossed::default();
    for number in first..first + workflows() {
        let drawn = draw(number, &notes);
        let crossed = check(cluster, &drawn, number, &notes).with_context(|| format!("workflow {number}"))?;
        least.to_bucket += crossed.to_bucket;
        least.from_bucket += crossed.from_bucket;
    }
    ensure!(least.to_bucket > 0 && least.from_bucket > 0, "nothing had to cross");
    Ok(least)
}

fn workflows() -> u64 {
    setting("ATOLL_LEDGER_WORKFLOWS", 12)
}

#[test]
fn what_crosses_is_what_is_read_elsewhere() -> Result<()> {
    let cluster = Cluster::start(Options { sites: SITES.to_vec(), ..Options::default() })?;
    check_all(&cluster)?;
    cluster.wait_for_empty_bucket()
}

#[test]
fn what_crosses_to_and_from_a_real_s3_server_is_what_is_read_elsewhere() -> Result<()> {
    let Some([bucket, endpoint]) = e2e_tests::s3(["ATOLL_TEST_S3", "AWS_ENDPOINT_URL"]) else { return Ok(()) };
    let address = endpoint.split("://").nth(1).context("an address")?.trim_end_matches('/').parse()?;
    let wire = Link::new(address)?;
    let cluster = Cluster::start(Options {
        sites: SITES.to_vec(),
        bucket: Some(format!("{bucket}/ledger")),
        environment: vec![("AWS_ENDPOINT_URL".to_owned(), format!("http://{}", wire.address()))],
        ..Options::default()
    })?;
    let before = wire.carried();
    let least = check_all(&cluster)?;
    let after = wire.carried();
    let ways = [("to", after.0 - before.0, least.to_bucket), ("from", after.1 - before.1, least.from_bucket)];
    for (way, carried, least) in ways {
        println!("{way} the bucket: {least} bytes in the ledger, {carried} on the wire");
        ensure!(carried >= least, "{way} the bucket: {carried} bytes were carried of {least}");
        let talk = workflows() * TALK_BYTES;
        ensure!(carried <= least + least / 20 + talk, "{way} the bucket: {carried} bytes were carried for {least}");
    }
    Ok(())
}
