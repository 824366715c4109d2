//! Which crate may know which.
#![expect(clippy::unwrap_used, reason = "a file that can't be read fails the test")]

use std::collections::BTreeSet;
use std::process::Command;

use tidy_tests::source::sources;
use tidy_tests::workspace::{dependencies, root};

const CORES: [&str; 3] = ["control-plane-core", "site-agent-core", "storage-sync-core"];
const SHELLS: [&str; 5] =
    ["control-plane-server", "site-agent-daemon", "storage-sync-engine", "storage-sync-journal", "atoll"];

fn assert_none(found: &[String], rule: &str) {
    assert!(found.is_empty(), "{rule}:\n  {}", found.join("\n  "));
}

#[test]
fn cores_depend_on_nothing_that_does() {
    let forbidden = [
        "tokio",
        "tokio-util",
        "tokio-stream",
        "async-trait",
        "futures",
        "tonic",
        "prost",
        "hyper",
        "axum",
        "reqwest",
        "object_store",
        "sled",
        "redb",
        "rand",
        "getrandom",
        "uuid",
        "nix",
        "rustix",
        "tempfile",
        "atoll-proto",
    ];
    let crates = dependencies().unwrap();
    let mut found = Vec::new();
    for core in CORES.into_iter().chain(["atoll-model"]) {
        for name in forbidden.into_iter().chain(SHELLS) {
            // The vocabulary holds the ids, and shells draw them through it.
            if crates[core].contains(name) && (core, name) != ("atoll-model", "uuid") {
                found.push(format!("{core} depends on {name}"));
            }
        }
    }
    assert_none(&found, "cores decide and do nothing");
}

#[test]
fn the_vocabulary_depends_on_no_crate_of_ours() {
    let crates = dependencies().unwrap();
    let ours: Vec<String> = crates["atoll-model"].iter().filter(|name| crates.contains_key(*name)).cloned().collect();
    assert_none(&ours, "model stands below everything");
}

#[test]
fn only_proto_knows_wire_types_and_only_the_stores_name_a_database() {
    let mut found = Vec::new();
    for (name, needed) in dependencies().unwrap() {
        for wire in ["prost", "tonic-prost"] {
            if name != "atoll-proto" && needed.contains(wire) {
                found.push(format!("{name} depends on {wire}"));
            }
        }
        let stores = [
            ("sled", "storage-sync-journal"),
            ("redb", "storage-sync-journal"),
            ("tokio-postgres", "control-plane-postgres"),
        ];
        for (database, store) in stores {
            if name != store && needed.contains(database) {
                found.push(format!("{name} depends on {database}"));
            }
        }
    }
    assert_none(&found, "one crate for the wire, one for the embedded databases, one for the shared one");
}

#[test]
fn the_two_shells_do_not_know_each_other() {
    let crates = dependencies().unwrap();
    assert!(!crates["control-plane-server"].contains("site-agent-daemon"));
    assert!(!crates["site-agent-daemon"].contains("control-plane-server"));
    assert!(!crates["site-agent-daemon"].contains("control-plane-postgres"), "an agent speaks with no database");
    for library in ["storage-sync-engine", "storage-sync-journal"] {
        for shell in ["control-plane-server", "site-agent-daemon", "atoll"] {
            assert!(!crates[library].contains(shell), "{library} depends on {shell}");
        }
    }
}

#[test]
fn there_is_one_tls_provider_and_no_openssl() {
    // Cargo.lock names optional crates of other platforms too; the tree is what is built here.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["tree", "--workspace", "--locked", "--edges", "normal,build", "--prefix", "none", "--format", "{p}"])
        .current_dir(root())
        .output()
        .unwrap();
    let tree = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let built: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(built.contains("aws-lc-rs") && built.contains("tokio"), "{built:?}");
    for name in ["ring", "openssl", "openssl-sys", "native-tls", "boring", "async-std", "serde_yaml", "tar"] {
        assert!(!built.contains(name), "{name} is built into Atoll");
    }
}

#[test]
fn cores_have_no_clock_file_thread_chance_or_async() {
    let forbidden = [
        "async fn",
        "Instant::now",
        "SystemTime",
        "std::fs",
        "std::net",
        "std::thread",
        "std::env",
        "HashMap",
        "HashSet",
        "tokio::",
        "File::open",
        "println!",
    ];
    let mut found = Vec::new();
    for source in sources().unwrap() {
        let in_core = ["control-plane/core/src", "site-agent/core/src", "storage-sync/core/src"];
        if !in_core.iter().any(|folder| source.path.starts_with(folder)) {
            continue;
        }
        for word in forbidden {
            for (at, _) in source.product_code().match_indices(word) {
                found.push(format!("{}:{} names {word}", source.path.display(), source.line_of(at)));
            }
        }
    }
    assert_none(&found, "cores know no world");
}
