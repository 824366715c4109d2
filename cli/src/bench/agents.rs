//! What connected agents without work cost: memory and time of the control plane, and the time until all have come back
//! after it was killed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::{Map, Value, json};

use super::fleet::{Fleet, Seen};
use super::{Findings, Measured, Place, machine};
use crate::client::Client;
use crate::serve::raise_descriptors;

/// Tokens that are asked for at a time.
const TOKENS_AT_ONCE: usize = 64;
/// How long all agents may take to connect; far above what is aimed at.
const CONNECT_PATIENCE: Duration = Duration::from_secs(180);
/// After the last agent has connected, until the server has put away what that took.
const SETTLE: Duration = Duration::from_secs(5);
/// Descriptors that the server needs beside those of the agents: files, listeners, requests.
const DESCRIPTORS_BESIDE: u64 = 200;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    pub(super) count: u32,
    pub(super) processes: u32,
    pub(super) idle: Duration,
}

pub(super) async fn measure(place: &Place, scale: Scale) -> anyhow::Result<Findings> {
    check_room(scale)?;
    let mut measured = place.start(0).await?;
    let results = run(&mut measured, scale).await;
    measured.installation.stop().await;
    let settings = json!({
        "count": scale.count,
        "processes": scale.processes,
        "idle_seconds": scale.idle.as_secs_f64(),
        "store": place.store_name(),
    });
    Ok(Findings { bench: "agents", settings, results: results? })
}

/// That the system lets so many connections be.
fn check_room(scale: Scale) -> anyhow::Result<()> {
    let descriptors = raise_descriptors()?;
    let wanted = u64::from(scale.count) + DESCRIPTORS_BESIDE;
    if descriptors < wanted {
        bail!(
            "{} agents need {wanted} open files in the server, and the hard limit is {descriptors}: raise it (ulimit -Hn), \
             or take fewer agents",
            scale.count
        );
    }
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").context("the range of ports")?;
    let mut ends = range.split_whitespace().filter_map(|end| end.parse::<u32>().ok());
    let ports = ends.next().zip(ends.next()).map_or(0, |(first, last)| last.saturating_sub(first));
    if ports < scale.count {
        bail!("{} agents need as many ports, and net.ipv4.ip_local_port_range has {ports}", scale.count);
    }
    Ok(())
}

async fn run(measured: &mut Measured, scale: Scale) -> anyhow::Result<Map<String, Value>> {
    let count = u64::from(scale.count);
    let pid = measured.installation.server_pid();
    let empty = machine::resident_bytes(pid)?;
    let began = Instant::now();
    let tokens = tokens(&measured.client, scale.count).await?;
    let mut fleet = Fleet::join(&tokens, scale.processes).await?;
    let joined = began.elapsed();

    let began = Instant::now();
    fleet.connect().await?;
    fleet.wait_for(Seen { present: count, sessions: count }, CONNECT_PATIENCE).await?;
    let connected = began.elapsed();
    tokio::time::sleep(SETTLE).await;
    let full = machine::resident_bytes(pid)?;
    let before = (machine::used(pid)?.cpu_seconds, Instant::now());
    tokio::time::sleep(scale.idle).await;
    let idle_share = (machine::used(pid)?.cpu_seconds - before.0) / before.1.elapsed().as_secs_f64();
    fleet.catch_up().await?;
    let steady = fleet.seen();
    if steady != (Seen { present: count, sessions: count }) {
        bail!("sessions broke while nothing happened: {steady:?} instead of {count}");
    }

    let began = Instant::now();
    let start = measured.installation.kill_server().await?;
    fleet.wait_for(Seen { present: count, sessions: 2 * count }, CONNECT_PATIENCE).await?;
    let reconnected = began.elapsed();
    let ready = measured.client.ready_sites().await?.len() as u64;
    if ready != count {
        bail!("{ready} sites are ready instead of {count}");
    }
    fleet.stop().await;

    let mut results = Map::new();
    let mut add = |name: &str, value: Value| results.insert(name.to_owned(), value);
    add("agents", json!(count));
    add("join_seconds", json!(joined.as_secs_f64()));
    add("connect_seconds", json!(connected.as_secs_f64()));
    add("server_rss_bytes_before", json!(empty));
    add("server_rss_bytes_connected", json!(full));
    add("bytes_per_agent", json!(full.saturating_sub(empty) as f64 / f64::from(scale.count)));
    add("idle_cpu_share_of_a_core", json!(idle_share));
    add("restart_seconds", json!(start.as_secs_f64()));
    add("reconnect_seconds", json!(reconnected.as_secs_f64()));
    Ok(results)
}

async fn tokens(client: &Client, count: u32) -> anyhow::Result<Vec<String>> {
    let labels = BTreeMap::from([("simulated".to_owned(), "true".to_owned())]);
    let names = (1..=count).map(super::site_name);
    let asked = names.map(|site| {
        let labels = &labels;
        async move { client.create_site_token(&site, Duration::from_secs(600), labels).await }
    });
    futures::stream::iter(asked).buffer_unordered(TOKENS_AT_ONCE).try_collect().await
}
