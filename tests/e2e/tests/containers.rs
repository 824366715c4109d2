//! Actions that are containers, from the folder that somebody makes to the container at a site.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use e2e_tests::{Cluster, Options};
use serde_json::{Value, json};

/// Whether this machine has what these tests need. A complete run of the tests takes no for a failure.
fn has_podman() -> bool {
    let works = Command::new("podman").arg("info").output().is_ok_and(|said| said.status.success());
    if works && Path::new("/bin/busybox").exists() {
        return true;
    }
    eprintln!("SKIPPED: there is no podman that answers, or no static busybox (busybox-static)");
    assert!(std::env::var_os("CI").is_none(), "CI has podman");
    false
}

fn podman(arguments: &[&str]) -> Result<String> {
    let said = Command::new("podman").args(arguments).output()?;
    ensure!(said.status.success(), "podman {arguments:?}: {}", String::from_utf8_lossy(&said.stderr));
    Ok(String::from_utf8_lossy(&said.stdout).into_owned())
}

/// Removes an image. Podman says no while a container of anybody goes in the same moment.
fn remove_image(image: &str) -> Result<()> {
    let remove = || podman(&["rmi", "--force", image]);
    (0..9).find_map(|_| remove().ok()).map_or_else(remove, Ok).map(drop)
}

/// An image with a shell, in an archive; podman itself does not know it any more. Returns its id.
fn write_image(scratch: &Path, archive: &Path) -> Result<String> {
    let root = scratch.join("root");
    fs::create_dir_all(root.join("bin"))?;
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    for name in ["sh", "cat", "wc", "ls"] {
        symlink("busybox", root.join("bin").join(name))?;
    }
    let unique = scratch.file_name().context("a folder")?.to_string_lossy().to_lowercase();
    fs::write(root.join("unique"), &unique)?;
    let (name, packed) = (format!("localhost/{unique}"), scratch.join("root.tar").display().to_string());
    let packing = Command::new("tar").arg("-C").arg(&root).args(["-cf", &packed, "."]).status()?;
    ensure!(packing.success(), "tar");
    let id = podman(&["import", "--quiet", &packed, &name])?;
    podman(&["save", "--quiet", "--output", &archive.display().to_string(), &name])?;
    remove_image(&name)?;
    Ok(id.trim().trim_start_matches("sha256:").to_owned())
}

const WORKFLOW: &str = r#"workflow: lines
steps:
  make: { site: hpc, foreach: "${{ range(4) }}", with: { n: "${{ index }}" }, run: 'seq 1 "$n" > "$ATOLL_OUTPUTS/text"', outputs: { text: file } }
  count: { site: edge, action: line-count@0.1, foreach: "${{ steps.make.outputs.text }}", with: { text: "${{ item }}" } }
outputs:
  lines: ${{ steps.count.outputs.lines }}
"#;

#[test]
fn an_action_that_was_just_made_runs_in_a_container_at_a_site_without_a_registry() -> Result<()> {
    if !has_podman() {
        return Ok(());
    }
    let cluster = Cluster::two_sites()?;
    let folder = cluster.directory().join("line-count");
    let path = folder.display().to_string();
    let made = cluster.call(&["action", "init", "--runtime", "container", &path])?;
    ensure!(made.code == 0, "{} {}", made.stdout, made.stderr);
    let checked = cluster.call(&["action", "check", &path])?;
    ensure!(checked.code == 2 && checked.stderr.contains("there is no file `image.tar`"), "{}", checked.stderr);
    ensure!(checked.stderr.contains("podman save"), "what to do: {}", checked.stderr);
    let image = write_image(cluster.directory(), &folder.join("image.tar"))?;
    let pushed = cluster.call(&["action", "push", &path])?;
    ensure!(pushed.code == 0, "{} {}", pushed.stdout, pushed.stderr);
    let shown = cluster.run(WORKFLOW, &[])?;
    assert_eq!((&shown["state"], &shown["outputs"]["lines"]), (&json!("succeeded"), &json!([0, 1, 2, 3])), "{shown:#}");
    remove_image(&image)
}

const SERVED: &str = r#"workflow: served
services: { pages: { action: pages@1, site: edge } }
steps:
  ask: { uses: pages, run: 'python3 -c "import os, urllib.request as r; print(r.urlopen(\"http://\" + os.environ[\"ATOLL_SERVICE_PAGES\"] + \"/pid\").read().decode())" > "$ATOLL_OUTPUTS/said"', outputs: { said: string } }
outputs:
  said: ${{ steps.ask.outputs.said }}
"#;

#[test]
fn a_service_in_a_container_is_reached_and_begun_again_when_its_container_is_killed() -> Result<()> {
    if !has_podman() {
        return Ok(());
    }
    let cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() })?;
    let folder = cluster.directory().join("pages");
    fs::create_dir(&folder)?;
    let image = write_image(cluster.directory(), &folder.join("image.tar"))?;
    let manifest = "name: pages\nversion: '1'\nkind: service\nruntime: container\nimage: ./image.tar\n\
                    command: [sh, main.sh]\nnetwork: true\nport: any\nhealth: { http: /pid, every: 1s }\n\
                    restart: { backoff: 100ms }\nresources: { cpu: 0.2 }\n";
    fs::write(folder.join("action.yaml"), manifest)?;
    fs::write(
        folder.join("main.sh"),
        "cat /proc/sys/kernel/random/uuid > pid\nexec /bin/busybox httpd -f -h . -p 127.0.0.1:$ATOLL_PORT\n",
    )?;
    let file = cluster.directory().join("served.yaml");
    fs::write(&file, SERVED)?;
    for arguments in
        [&["action", "push", &folder.display().to_string()][..], &["workflow", "deploy", &file.display().to_string()]]
    {
        let said = cluster.call(arguments)?;
        ensure!(said.code == 0, "{arguments:?}: {} {}", said.stdout, said.stderr);
    }
    let asked = || -> Result<Option<String>> {
        let run: Value = serde_json::from_str(&cluster.call(&["run", "served", "--wait", "--json"])?.stdout)?;
        Ok(run["outputs"]["said"].as_str().map(str::to_owned))
    };
    let first = asked()?.context("it answers")?;
    let of_image = format!("ancestor={image}");
    let running = || podman(&["ps", "--quiet", "--filter", &of_image]);
    podman(&["kill", running()?.trim()])?;
    e2e_tests::wait_for("another container", || Ok(asked()?.filter(|said| *said != first)))?;
    let gone = cluster.call(&["workflow", "undeploy", "served"])?;
    ensure!(gone.code == 0, "{} {}", gone.stdout, gone.stderr);
    cluster.eventually("its container is gone", || Ok(running()?.trim().is_empty()))?;
    remove_image(&image)
}

#[test]
fn a_site_without_an_engine_gets_no_containers_and_says_why() -> Result<()> {
    if !has_podman() {
        return Ok(());
    }
    let cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() })?;
    let settings = cluster.directory().join("none.toml");
    fs::write(&settings, "[container]\nengine = \"none\"\n")?;
    let doctor = |more: &[&str]| -> Result<Value> {
        let said = cluster.call(&[&["site", "doctor", "--json", "--data-dir"], more].concat())?;
        let diagnosis: Value = serde_json::from_str(&said.stdout).with_context(|| said.stderr.clone())?;
        let checks = diagnosis["checks"].as_array().context("checks")?;
        Ok(checks.iter().find(|check| check["check"] == "containers").cloned().unwrap_or_default())
    };
    let data = cluster.directory().join("nowhere").display().to_string();
    let found = doctor(&[&data])?;
    ensure!(found["state"] == "ok" && found["figures"]["start_ms"].as_u64() > Some(0), "{found}");
    let none = doctor(&[&data, "--config", &settings.display().to_string()])?;
    ensure!(none["state"] == "skipped", "{none}");
    Ok(())
}
