//! A program that one step makes, another one runs.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::Result;
use e2e_tests::Cluster;

const COMPILED: &str = r#"workflow: compiled
inputs: { tool: { type: file } }
steps:
  compile:
    site: edge
    with: { tool: "${{ inputs.tool }}" }
    run: |
      "$tool" > "$ATOLL_OUTPUTS/program"
      chmod +x "$ATOLL_OUTPUTS/program"
      echo text > "$ATOLL_OUTPUTS/text"
    outputs: { program: file, text: file }
  same:
    site: edge
    with: { program: "${{ steps.compile.outputs.program }}" }
    run: |
      "$program" > "$ATOLL_OUTPUTS/said"
    outputs: { said: string }
  other:
    site: hpc
    with:
      programs: "${{ [steps.compile.outputs.program] }}"
      program: "${{ steps.compile.outputs.program }}"
      text: "${{ steps.compile.outputs.text }}"
    run: |
      "$program" > "$ATOLL_OUTPUTS/said"
      if test -x "$text"; then exit 3; fi
      cp -p "$program" "$ATOLL_OUTPUTS/again"
    outputs: { said: string, again: file }
outputs:
  same: ${{ steps.same.outputs.said }}
  other: ${{ steps.other.outputs.said }}
  program: ${{ steps.compile.outputs.program }}
  programs: "${{ [steps.other.outputs.again, steps.compile.outputs.text] }}"
"#;

fn mode(path: &Path) -> Result<u32> {
    Ok(path.metadata()?.permissions().mode() & 0o111)
}

#[test]
fn a_program_that_a_step_makes_runs_at_its_site_and_at_another() -> Result<()> {
    let cluster = Cluster::two_sites()?;
    let tool = cluster.directory().join("tool");
    std::fs::write(&tool, "#!/bin/sh\necho '#!/bin/sh'\necho 'echo compiled'\n")?;
    std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755))?;
    let run = cluster.submit(COMPILED, &[&format!("tool=@{}", tool.display())])?;
    let shown = cluster.wait_for_end(&run)?;
    assert_eq!(shown["state"], "succeeded", "{shown:#}");
    assert_eq!((&shown["outputs"]["same"], &shown["outputs"]["other"]), (&"compiled".into(), &"compiled".into()));
    assert_eq!(shown["outputs"]["program"]["executable"], true);
    assert_eq!(shown["outputs"]["programs"][1].get("executable"), None);

    let folder = cluster.directory().join("got");
    let got = cluster.call(&["get", &run.id, "-o", folder.to_str().expect("plain text")])?;
    assert_eq!(got.code, 0, "{}", got.stderr);
    assert_ne!(mode(&folder.join("program"))?, 0);
    assert_ne!(mode(&folder.join("programs/0-again"))?, 0);
    assert_eq!(mode(&folder.join("programs/1-text"))?, 0);
    Ok(())
}
