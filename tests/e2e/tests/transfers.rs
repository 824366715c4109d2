//! Transfers in the middle of which something is killed: they go on where they were, and what arrives is what was sent.
//!
//! The moments are drawn from a seed. For the whole thing, with 50 of them in transfers of 2 GiB, and an S3 server that was
//! started with `ATOLL_TEST_S3_BYTES=12884901888`:
//!
//! ```text
//! ATOLL_TRANSFER_BYTES=2147483648 ATOLL_TRANSFER_KILLS=50 ATOLL_TRANSFER_SEED=7 \
//!     cargo test --release -p e2e-tests --test main transfers -- --nocapture
//! ```

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use e2e_tests::{Cluster, Link, Options, wait_for};

/// What may come twice of a transfer of any size: all that was asked for and not taken in. Between agents this near,
/// ranges of 2 MiB: six on two cores, sixteen at most; and what goes with them.
const ASKED_OF_AGENT: u64 = 36 << 20;
/// Of a bucket, eight ranges of 8 MiB, or four parts of 16 MiB.
const ASKED_OF_BUCKET: u64 = 72 << 20;

/// Bytes that show that a transfer moves.
const STRIDE: u64 = 8 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Holder,
    Reader,
    Server,
    Wire,
    S3,
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn workflow(bytes: u64, number: u64) -> String {
    format!(
        r#"workflow: transfer-{number}
steps:
  make:
    site: edge
    run: |
      head -c {bytes} /dev/urandom > "$ATOLL_OUTPUTS/made"
      sha256sum < "$ATOLL_OUTPUTS/made" > "$ATOLL_OUTPUTS/digest"
    outputs: {{ made: file, digest: string }}
  take:
    site: hpc
    with: {{ made: "${{{{ steps.make.outputs.made }}}}" }}
    retry: {{ attempts: 5, backoff: 100ms }}
    run: |
      sha256sum < "$made" > "$ATOLL_OUTPUTS/digest"
    outputs: {{ digest: string }}
outputs:
  sent: ${{{{ steps.make.outputs.digest }}}}
  received: ${{{{ steps.take.outputs.digest }}}}
"#
    )
}

/// The process of the S3 server that `tests/parts/ceph-up.sh` started in a directory.
fn kill_s3(directory: &Path) -> Result<()> {
    let pid = std::fs::read_to_string(directory.join("client.rgw.a.pid"))?.trim().to_owned();
    ensure!(Command::new("kill").args(["-9", &pid]).status()?.success(), "the S3 server cannot be killed");
    let process = Path::new("/proc").join(&pid);
    // It is nobody's child here: until it is reaped, its command line is empty.
    wait_for("the end of the S3 server", || {
        Ok(std::fs::read(process.join("cmdline")).map_or(true, |line| line.is_empty()).then_some(()))
    })?;
    let configuration = directory.join("ceph.conf");
    let started = Command::new("radosgw").args(["-n", "client.rgw.a", "-c"]).arg(configuration).status()?;
    ensure!(started.success(), "the S3 server does not start again");
    Ok(())
}

fn kill(cluster: &mut Cluster, wire: &Link, victim: Victim) -> Result<()> {
    match victim {
        Victim::Holder => {
            cluster.kill_agent("edge")?;
            cluster.start_agent("edge")
        }
        Victim::Reader => {
            cluster.kill_agent("hpc")?;
            cluster.start_agent("hpc")
        }
        Victim::Server => {
            cluster.kill_server()?;
            cluster.start_server()
        }
        Victim::Wire => {
            wire.cut();
            // Meanwhile, something else happens.
            cluster.call(&["sites", "--json"])?;
            wire.mend();
            Ok(())
        }
        Victim::S3 => kill_s3(Path::new(&std::env::var("ATOLL_TEST_S3_DIRECTORY")?)),
    }
}

/// The next number of a sequence that looks like chance (SplitMix64).
fn draw(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// A moment of a transfer, as a share of its bytes: not so late that it may be over before the kill.
fn moment(state: &mut u64) -> f64 {
    0.01 + 0.97 * (draw(state) >> 11) as f64 / (1u64 << 53) as f64
}

/// Looks for as long as more bytes pass the wire: a large transfer may take longer than anything else is waited for.
fn while_it_moves<T>(carried: &impl Fn() -> u64, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    loop {
        let before = carried();
        let seen = wait_for("more bytes, or the end", || match look()? {
            Some(found) => Ok(Some(Some(found))),
            None => Ok((carried() > before + STRIDE).then_some(None)),
        })?;
        if let Some(found) = seen {
            return Ok(found);
        }
    }
}

/// `copies`: how often each byte passes the wire if nothing happens; `asked`: what may come twice in any case.
fn check(cluster: &mut Cluster, wire: &Link, victims: &[Victim], copies: u64, asked: u64) -> Result<()> {
    let bytes = setting("ATOLL_TRANSFER_BYTES", 256 << 20);
    let kills = setting("ATOLL_TRANSFER_KILLS", victims.len() as u64);
    let mut chance = setting("ATOLL_TRANSFER_SEED", 1);
    let carried = || {
        let (one, other) = wire.carried();
        one + other
    };
    let mut most = 0.0f64;
    for (number, victim) in (0..kills).zip(victims.iter().cycle()) {
        let (before, moment) = (carried(), moment(&mut chance));
        let run = cluster.submit(&workflow(bytes, number), &[])?;
        let at = before + ((copies * bytes) as f64 * moment) as u64;
        let under_way = || Ok((carried() >= at).then_some(()));
        while_it_moves(&carried, under_way)
            .with_context(|| format!("{} of {}: {:?}", carried() - before, at - before, cluster.show(&run)))?;
        kill(cluster, wire, *victim).with_context(|| format!("{victim:?}"))?;
        let shown = while_it_moves(&carried, || {
            let Ok(shown) = cluster.show(&run) else { return Ok(None) };
            Ok((!shown["finished_at"].is_null()).then_some(shown))
        })?;
        assert_eq!(shown["state"], "succeeded", "{number} {victim:?}: {shown:#}");
        assert_eq!(shown["outputs"]["sent"], shown["outputs"]["received"], "{victim:?}: {shown:#}");
        let twice = (carried() - before).saturating_sub(copies * bytes);
        let share = twice as f64 / (copies * bytes) as f64;
        most = most.max(share);
        println!("{number} {victim:?} at {:.0} %: {:.2} % twice", moment * 100.0, share * 100.0);
        assert!(twice <= (copies * bytes / 20).max(asked), "{number} {victim:?}: {twice} bytes came twice");
    }
    println!("{kills} kills in transfers of {bytes} bytes: at most {:.2} % twice", most * 100.0);
    Ok(())
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

#[test]
fn a3_b5_c1_a_transfer_between_agents_goes_on_after_either_of_them_the_server_or_the_wire_was_lost() -> Result<()> {
    let port = free_port()?;
    let wire = Link::new(([127, 0, 0, 1], port).into())?;
    let settings = vec![
        ("ATOLL_AGENT_DIRECT_LISTEN", format!("127.0.0.1:{port}")),
        ("ATOLL_AGENT_DIRECT_ADDRESSES", wire.address().to_string()),
    ];
    let mut cluster = Cluster::start(Options {
        sites: vec!["edge", "hpc"],
        site_environment: [("edge", settings)].into(),
        ..Options::default()
    })?;
    check(&mut cluster, &wire, &[Victim::Holder, Victim::Reader, Victim::Wire, Victim::Server], 1, ASKED_OF_AGENT)
}

#[test]
fn a3_d1_c1_a_transfer_by_way_of_s3_goes_on_after_any_part_of_it_was_lost() -> Result<()> {
    let names = ["ATOLL_TEST_S3", "AWS_ENDPOINT_URL", "ATOLL_TEST_S3_DIRECTORY"];
    let Some([bucket, endpoint, _]) = e2e_tests::s3(names) else { return Ok(()) };
    let address = endpoint.split("://").nth(1).context("an address")?.trim_end_matches('/').parse()?;
    let wire = Link::new(address)?;
    let mut cluster = Cluster::start(Options {
        sites: vec!["edge", "hpc"],
        bucket: Some(format!("{bucket}/transfers")),
        environment: vec![("AWS_ENDPOINT_URL".to_owned(), format!("http://{}", wire.address()))],
        ..Options::default()
    })?;
    let victims = [Victim::S3, Victim::Holder, Victim::Reader, Victim::Server, Victim::Wire];
    check(&mut cluster, &wire, &victims, 2, ASKED_OF_BUCKET)
}

/// Something is made at `edge` and read at two sites.
fn read_by_two(bytes: u64) -> String {
    format!(
        r#"workflow: relayed
steps:
  make:
    site: edge
    run: head -c {bytes} /dev/urandom > "$ATOLL_OUTPUTS/made"
    outputs: {{ made: file }}
  here:
    site: hpc
    with: {{ made: "${{{{ steps.make.outputs.made }}}}" }}
    run: cmp "$made" "$made"
  there:
    site: cloud
    with: {{ made: "${{{{ steps.make.outputs.made }}}}" }}
    run: cmp "$made" "$made"
"#
    )
}

#[test]
fn over_a_thin_link_goes_one_copy_and_the_sites_behind_it_serve_one_another() -> Result<()> {
    const BYTES: u64 = 24_000_000;
    let [edge, hpc, cloud] = [free_port()?, free_port()?, free_port()?];
    let wire_to = |port: u16| Link::new(([127, 0, 0, 1], port).into());
    let (wire, near) = (wire_to(edge)?, [wire_to(hpc)?, wire_to(cloud)?]);
    wire.narrow(8_000_000);
    let listens = |port: u16, wire: &Link| {
        let listen = ("ATOLL_AGENT_DIRECT_LISTEN", format!("127.0.0.1:{port}"));
        vec![listen, ("ATOLL_AGENT_DIRECT_ADDRESSES", wire.address().to_string())]
    };
    let site_environment =
        [("edge", listens(edge, &wire)), ("hpc", listens(hpc, &near[0])), ("cloud", listens(cloud, &near[1]))];
    let cluster = Cluster::start(Options {
        sites: vec!["edge", "hpc", "cloud"],
        site_environment: site_environment.into(),
        ..Options::default()
    })?;
    // Nothing is known of the links before something has come over them.
    let first = cluster.submit(&read_by_two(BYTES / 2), &[])?;
    assert_eq!(cluster.wait_for_end(&first)?["state"], "succeeded");
    let between = || near.iter().map(|wire| wire.carried().1).sum::<u64>();
    let (before, before_between) = (wire.carried().1, between());
    let second = cluster.submit(&read_by_two(BYTES), &[])?;
    // What had gone on from one to the other while the thin link still carried the one copy.
    let mut gone_on = 0;
    let shown = wait_for("the end of the run", || {
        let so_far = between() - before_between;
        if wire.carried().1 - before < BYTES {
            gone_on = gone_on.max(so_far);
        }
        let shown = cluster.show(&second)?;
        Ok((!shown["finished_at"].is_null()).then_some(shown))
    })?;
    assert_eq!(shown["state"], "succeeded", "{shown:#}");
    let ledger = cluster.ledger(&second)?;
    let mut ways: Vec<_> = ledger.iter().map(|entry| (entry["from"].as_str(), entry["to"].as_str())).collect();
    ways.sort_unstable();
    let (by_hpc, by_cloud) = (
        [(Some("edge"), Some("hpc")), (Some("hpc"), Some("cloud"))],
        [(Some("cloud"), Some("hpc")), (Some("edge"), Some("cloud"))],
    );
    assert!(ways == by_hpc || ways == by_cloud, "{ledger:#?}");
    let carried = wire.carried().1 - before;
    assert!(carried < BYTES * 5 / 4, "{carried} bytes came over the thin link");
    assert!(gone_on > BYTES / 4, "{gone_on} bytes had gone on");
    Ok(())
}
