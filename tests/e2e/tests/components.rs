//! Actions that are components of WebAssembly, from the folder that somebody makes to the process at a site.

use std::fs;

use anyhow::{Result, ensure};
use e2e_tests::{Cluster, Options};
use serde_json::json;
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
};
use wit_component::ComponentEncoder;

const COUNT: &str = include_str!("../../../site-agent/wasm/tests/programs/count.wat");

const WORKFLOW: &str = r#"workflow: lines
steps:
  make: { site: hpc, foreach: "${{ range(4) }}", with: { n: "${{ index }}" }, run: 'seq 1 "$n" > "$ATOLL_OUTPUTS/text"', outputs: { text: file } }
  count: { site: edge, action: line-count@0.1, foreach: "${{ steps.make.outputs.text }}", with: { text: "${{ item }}" }, isolation: ISOLATION }
outputs:
  lines: ${{ steps.count.outputs.lines }}
"#;

fn component() -> Result<Vec<u8>> {
    ComponentEncoder::default()
        .module(&wat::parse_str(COUNT)?)?
        .adapter(WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER)?
        .encode()
}

#[test]
fn an_action_that_was_just_made_runs_as_a_component_however_it_is_kept_apart() -> Result<()> {
    let cluster = Cluster::start(Options { sites: vec!["edge", "hpc"], ..Options::default() })?;
    if cluster.call(&["shim", "component", "probe"])?.code != 0 {
        eprintln!("SKIPPED: this atoll was built without what runs components (--features atoll/wasm)");
        ensure!(std::env::var_os("CI").is_none(), "CI has it");
        return Ok(());
    }
    let folder = cluster.directory().join("line-count");
    let path = folder.display().to_string();
    let made = cluster.call(&["action", "init", "--runtime", "wasm", &path])?;
    ensure!(made.code == 0, "{} {}", made.stdout, made.stderr);
    let refused = |words: &str| -> Result<()> {
        let checked = cluster.call(&["action", "check", &path])?;
        ensure!(checked.code == 2 && checked.stderr.contains(words), "{}", checked.stderr);
        Ok(())
    };
    refused("there is no `main.wasm`")?;
    fs::write(folder.join("main.wasm"), wat::parse_str(COUNT)?)?;
    refused("is a core module, and no component")?;
    fs::write(folder.join("main.wasm"), "#!/bin/sh")?;
    refused("is no component of WebAssembly")?;
    fs::write(folder.join("main.wasm"), component()?)?;
    let pushed = cluster.call(&["action", "push", &path])?;
    ensure!(pushed.code == 0, "{} {}", pushed.stdout, pushed.stderr);
    for isolation in ["none", "standard", "strict"] {
        let shown = cluster.run(&WORKFLOW.replace("ISOLATION", isolation), &[])?;
        let seen = (&shown["state"], &shown["outputs"]["lines"]);
        assert_eq!(seen, (&json!("succeeded"), &json!([0, 1, 2, 3])), "{shown:#}");
    }
    Ok(())
}
