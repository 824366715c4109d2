//! The control plane as a process: what it is given, and how it ends.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use e2e_tests::{Cluster, Options, Output, SmallDisk};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PublicKeyData as _};

#[test]
fn a_control_plane_whose_journal_cannot_be_written_ends_and_has_lost_nothing_that_it_acknowledged() -> Result<()> {
    for store in ["sled", "redb"] {
        let folder = tempfile::tempdir()?;
        let disk = SmallDisk::new(folder.path(), 48)?;
        let mut cluster = Cluster::start(Options {
            sites: vec!["edge"],
            server_directory: Some(disk.path().join("server")),
            server_arguments: ["--store", store].map(str::to_owned).to_vec(),
            ..Options::default()
        })?;
        let file = cluster.directory().join("padded.yaml");
        // Many bytes in each fact, so that the disk is full soon.
        let padding = "x".repeat(200_000);
        std::fs::write(&file, format!("workflow: padded\nsteps:\n  a:\n    run: \"true\"\n# {padding}\n"))?;
        let filler = disk.path().join("filler");
        fill(&filler)?;
        let mut acknowledged = Vec::new();
        let refused = loop {
            let output = Output::of(cluster.command(&["run", "--json"]).arg(&file))?;
            if output.code != 0 {
                break output;
            }
            acknowledged.push(output.json()?["run"].as_str().context("a run")?.to_owned());
            ensure!(acknowledged.len() < 1_000, "{store}: the disk is never full");
        };
        ensure!(!acknowledged.is_empty(), "{store}: {}", refused.stderr);
        let status = cluster.wait_for_server_end()?;
        let log = cluster.log("server");
        ensure!(!status.success() && status.code().is_some(), "{store}: {status}\n{log}");
        ensure!(log.contains("the journal cannot be written"), "{store}: {log}");
        std::fs::remove_file(&filler)?;
        cluster.start_server()?;
        for run in &acknowledged {
            let output = cluster.call(&["show", run, "--json"])?;
            ensure!(output.code == 0, "{store}: {run} is lost: {}", output.stderr);
        }
        let shown = cluster.run("workflow: after\nsteps:\n  a:\n    run: \"true\"\n", &[])?;
        ensure!(shown["state"] == "succeeded", "{shown:#}");
    }
    Ok(())
}

/// Room on a disk that is nearly full: both databases grow by a megabyte or more at a time.
const LEFT_BYTES: u64 = 8 << 20;

/// Takes all but that of a disk.
fn fill(path: &Path) -> Result<()> {
    let mut file = std::fs::File::create(path)?;
    let piece = vec![0; 64 << 10];
    let mut bytes = 0u64;
    loop {
        match std::io::Write::write_all(&mut file, &piece) {
            Ok(()) => bytes += piece.len() as u64,
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(file.set_len(bytes.saturating_sub(LEFT_BYTES))?)
}

#[test]
fn a_given_certificate_is_served_to_people_and_agents_meet_atolls_own() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (certificate, key) = (folder.path().join("chain.pem"), folder.path().join("key.pem"));
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key)?;
    let ca_public_key = ca_key.subject_public_key_info();
    let leaf_key = KeyPair::generate()?;
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let leaf = CertificateParams::new(names)?.signed_by(&leaf_key, &Issuer::new(ca, ca_key))?;
    std::fs::write(&certificate, leaf.pem() + &ca_certificate.pem())?;
    std::fs::write(&key, leaf_key.serialize_pem())?;
    let path = |path: &Path| path.display().to_string();
    let cluster = Cluster::start(Options {
        sites: vec!["edge"],
        server_arguments: vec!["--tls-cert".to_owned(), path(&certificate), "--tls-key".to_owned(), path(&key)],
        ..Options::default()
    })?;
    // The command line speaks with whom the token pins, and with nobody else.
    let shown = cluster.run("workflow: w\nsteps:\n  a:\n    run: \"true\"\n", &[])?;
    ensure!(shown["state"] == "succeeded", "{shown:#}");
    let pin = digest(&SHA256, &ca_public_key);
    ensure!(cluster.token().ends_with(&URL_SAFE_NO_PAD.encode(pin)), "the token pins something else");
    Ok(())
}
