//! `atoll site doctor`, on the machine of a site that is to join, and of one that has joined.

use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use e2e_tests::{Cluster, Options, Output, atoll, clock_shifter};
use serde_json::Value;

/// What the doctor has said, once it has ended with the code that fits.
struct Said(Value);

impl Said {
    fn of(arguments: &[&str], data_dir: &Path, environment: &[(&str, &str)]) -> Result<Self> {
        let mut command = atoll(&["site", "doctor", "--json", "--data-dir"]);
        // No profile of whoever runs this names a server.
        command.env("XDG_CONFIG_HOME", "/nowhere");
        command.arg(data_dir).args(arguments).envs(environment.iter().copied());
        let output = Output::of(&mut command)?;
        let document = output.document()?;
        let problems = document["problems"].as_u64().context("a number of problems")?;
        assert_eq!(output.code, i32::from(problems > 0), "{document:#}");
        for check in document["checks"].as_array().context("checks")? {
            let is_bad = matches!(check["state"].as_str(), Some("problem" | "warning"));
            assert!(!is_bad || check["advice"].is_string(), "nothing to do about it: {check:#}");
        }
        Ok(Self(document))
    }

    fn check(&self, name: &str) -> &Value {
        let checks = self.0["checks"].as_array().unwrap();
        let found = checks.iter().find(|check| check["check"] == name);
        found.unwrap_or_else(|| panic!("no {name} in {:#}", self.0))
    }

    fn state(&self, name: &str) -> &str {
        self.check(name)["state"].as_str().unwrap()
    }

    fn figure(&self, name: &str, figure: &str) -> f64 {
        let check = self.check(name);
        check["figures"][figure].as_f64().unwrap_or_else(|| panic!("no {figure} in {check:#}"))
    }
}

fn one_site() -> Result<Cluster> {
    Cluster::start(Options { sites: vec!["edge"], ..Options::default() })
}

fn join_token(cluster: &Cluster, site: &str) -> Result<String> {
    let token = cluster.call(&["site", "token", "create", site, "--json"])?.json()?;
    Ok(token["token"].as_str().context("a token")?.to_owned())
}

/// Whose CA is another one.
fn with_another_pin(token: &str) -> Result<String> {
    let (prefix, encoded) = token.split_once('.').context("a token with a point")?;
    let mut content: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(encoded)?)?;
    content["ca_sha256"] = content["secret"].clone();
    Ok(format!("{prefix}.{}", URL_SAFE_NO_PAD.encode(content.to_string())))
}

#[test]
fn a_machine_is_looked_at_before_its_site_joins_and_the_token_is_still_good() -> Result<()> {
    let cluster = one_site()?;
    let (token, directory) = (join_token(&cluster, "new")?, cluster.directory().join("new"));
    let said = Said::of(&["--server", &token], &directory, &[])?;
    for name in ["token", "agent-port", "server-identity", "clock", "round-trip", "data-dir", "kernel"] {
        assert_eq!(said.state(name), "ok", "{:#}", said.check(name));
    }
    for name in ["identity", "server-bandwidth", "bucket-bandwidth", "direct-port-tcp", "api-port"] {
        assert_eq!(said.state(name), "skipped", "{:#}", said.check(name));
    }
    assert!(said.figure("round-trip", "p50_ms") > 0.0);
    assert!(said.figure("clock", "offset_ms").abs() < 5_000.0);
    assert_eq!(said.0["site"], Value::Null);
    assert!(!directory.exists(), "the doctor makes nothing");

    let joined = Output::of(atoll(&["agent", "join", &token, "--data-dir"]).arg(&directory))?;
    assert_eq!(joined.code, 0, "{}", joined.stderr);
    let address = said.0["server"].as_str().unwrap();
    let said = Said::of(&["--server", &token], &directory, &[])?;
    assert_eq!((said.state("identity"), said.state("token")), ("ok", "skipped"));
    let said = Said::of(&["--server", address], &cluster.directory().join("other"), &[])?;
    assert_eq!((said.state("agent-port"), said.state("server-identity")), ("ok", "skipped"));
    Ok(())
}

#[test]
fn a_site_that_has_joined_is_measured_to_the_server_and_to_the_bucket_and_nothing_stays() -> Result<()> {
    let cluster = one_site()?;
    let directory = &cluster.site("edge").directory;
    let link = cluster.site("edge").link.address().to_string();
    let url = [("ATOLL_URL", cluster.url()), ("ATOLL_TOKEN", cluster.token())];
    let said = Said::of(&["--server", &link], directory, &url)?;
    assert_eq!(said.0["site"], "edge");
    for name in ["identity", "agent-port", "server-identity", "clock", "round-trip", "api-port"] {
        assert_eq!(said.state(name), "ok", "{:#}", said.check(name));
    }
    assert!(said.check("identity")["found"].as_str().unwrap().contains("its agent runs"));
    for name in ["server-bandwidth", "bucket-bandwidth"] {
        assert!(said.figure(name, "up_bytes_per_second") > 1e3, "{:#}", said.check(name));
        assert!(said.figure(name, "down_bytes_per_second") > 1e3, "{:#}", said.check(name));
    }
    assert_eq!(cluster.bucket_objects()?, Vec::<std::path::PathBuf>::new());
    let left = std::fs::read_dir(directory)?.filter_map(Result::ok).map(|entry| entry.file_name());
    assert!(left.into_iter().all(|name| !name.to_string_lossy().contains("doctor")));

    let shown = Output::of(atoll(&["site", "doctor", "--data-dir"]).arg(directory).args(["--server", &link]))?;
    assert!(shown.stdout.starts_with("CHECK") && shown.stdout.contains("bucket-bandwidth"), "{}", shown.stdout);

    cluster.wait_for_site("edge", "ready")?;
    assert_eq!(cluster.call(&["site", "revoke", "edge", "--reason", "stolen"])?.code, 0);
    let said = Said::of(&["--server", &link], directory, &[])?;
    assert_eq!(said.state("server-bandwidth"), "problem", "{:#}", said.0);
    assert!(said.check("server-bandwidth")["found"].as_str().unwrap().contains("stolen"));
    Ok(())
}

#[test]
fn whoever_is_not_the_server_is_told_apart_from_a_port_that_is_closed() -> Result<()> {
    let cluster = one_site()?;
    let (token, directory) = (join_token(&cluster, "new")?, cluster.directory().join("new"));
    let said = Said::of(&["--server", &with_another_pin(&token)?], &directory, &[])?;
    assert_eq!((said.state("agent-port"), said.state("server-identity")), ("ok", "problem"), "{:#}", said.0);
    assert_eq!((said.state("clock"), said.state("round-trip")), ("skipped", "skipped"));

    let held = TcpListener::bind("127.0.0.1:0")?;
    let address = held.local_addr()?.to_string();
    let said = Said::of(&["--server", &token, "--direct-listen", &address], &directory, &[])?;
    assert_eq!((said.state("direct-port-tcp"), said.state("direct-port-udp")), ("problem", "ok"), "{:#}", said.0);
    drop(held);
    let said = Said::of(&["--server", &address], &directory, &[("HTTPS_PROXY", "http://user:secret@proxy:3128")])?;
    assert_eq!((said.state("agent-port"), said.state("server-identity")), ("problem", "skipped"), "{:#}", said.0);
    assert_eq!(said.state("proxy"), "warning");
    assert!(!said.0.to_string().contains("secret"));

    let web = TcpListener::bind("127.0.0.1:0")?;
    let address = web.local_addr()?.to_string();
    std::thread::spawn(move || {
        for mut stream in web.incoming().map_while(Result::ok) {
            // Whoever speaks TLS hangs up.
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let said = Said::of(&["--server", &address], &directory, &[])?;
    assert_eq!((said.state("agent-port"), said.state("server-identity")), ("ok", "problem"), "{:#}", said.0);

    let nonsense = Output::of(&mut atoll(&["site", "doctor", "--server", "atoll-join.nonsense"]))?;
    assert_eq!(nonsense.code, 2, "{}", nonsense.stderr);
    Ok(())
}

#[test]
fn e2_a_clock_that_is_off_is_measured_though_certificates_are_not_valid_by_it() -> Result<()> {
    let cluster = one_site()?;
    let shifter = clock_shifter(cluster.directory())?;
    let shifter = shifter.to_str().context("plain text")?;
    let (token, directory) = (join_token(&cluster, "new")?, cluster.directory().join("new"));
    // A server's certificate is some minutes older than the server, and lives for days.
    for (ahead, clock, server) in [
        (90, "warning", "ok"),
        (400, "problem", "ok"),
        (-7_200, "problem", "problem"),
        (31_536_000, "problem", "problem"),
    ] {
        let seconds = ahead.to_string();
        let shifted = [("LD_PRELOAD", shifter), ("CLOCK_AHEAD_SECONDS", seconds.as_str())];
        let said = Said::of(&["--server", &token], &directory, &shifted)?;
        assert_eq!((said.state("clock"), said.state("server-identity")), (clock, server), "{ahead}: {:#}", said.0);
        let off = said.figure("clock", "offset_ms") - f64::from(ahead) * 1e3;
        assert!(off.abs() < 5_000.0, "{ahead}: {off}");
    }
    Ok(())
}

#[test]
fn what_the_machine_lacks_is_said_with_what_to_do() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let said = Said::of(&[], Path::new("/proc/atoll"), &[("PATH", "/nowhere")])?;
    assert_eq!(said.state("data-dir"), "problem");
    assert_eq!((said.state("batch-system"), said.state("containers")), ("skipped", "skipped"));
    assert_eq!(said.state("agent-port"), "skipped");

    let sinfo = scratch.path().join("sinfo");
    let answers =
        "#!/bin/sh\nif [ \"$1\" = --version ]; then echo slurm 22.05.8; else echo 'debug*|up|30:00|2|down*'; fi\n";
    std::fs::write(&sinfo, answers)?;
    std::fs::set_permissions(&sinfo, std::fs::Permissions::from_mode(0o755))?;
    let path = scratch.path().to_str().context("plain text")?;
    let said = Said::of(&[], &scratch.path().join("data"), &[("PATH", path)])?;
    let slurm = said.check("slurm");
    assert_eq!(slurm["state"], "problem", "{slurm:#}");
    assert_eq!(slurm["figures"]["partitions"][0]["nodes_by_state"]["down*"], 2, "{slurm:#}");
    Ok(())
}
