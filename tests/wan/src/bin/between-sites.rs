//! Measures what a fetch from another site's agent costs: over loopback, or over a link with a rate, a round trip and loss.
//!
//! Both agents' ends run in this process, each in the network namespace of its site, with certificates of a CA made for the
//! occasion. What is measured ends when the object is verified, durable and in the reader's store.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use atoll_model::id::AgentId;
use clap::{Parser, ValueEnum};
use storage_sync_engine::direct::{Dialer, DirectConfig, Offer, Serving, Transport, listen};
use storage_sync_engine::store::SiteStore;
use storage_sync_engine::transfer::{TransferConfig, Transfers};
use wan_tests::agents::{Authority, OnlyOffer, Open, runtime, write_noise};
use wan_tests::{Network, Shape};

const HOLDER: AgentId = AgentId::from_bits(1);
const READER: AgentId = AgentId::from_bits(2);
const PORT: u16 = 7_433;

#[derive(Debug, Parser)]
#[command(about = "Measures fetches from another site's agent")]
struct Cli {
    /// Bytes of one file; with `--files`, of each.
    #[arg(long, default_value_t = 2 << 30)]
    bytes: u64,
    /// A directory of so many files instead of one file.
    #[arg(long)]
    files: Option<u32>,
    /// Bits of a second; without it, loopback.
    #[arg(long)]
    rate: Option<u64>,
    #[arg(long, default_value_t = 50_000)]
    round_trip_micros: u64,
    #[arg(long, default_value_t = 0.0)]
    loss: f64,
    #[arg(long, value_enum, default_value_t = Way::Tcp)]
    way: Way,
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Where both stores are: its disk is part of what is measured.
    #[arg(long, default_value = "/var/tmp")]
    data_dir: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Way {
    Tcp,
    Quic,
    Measured,
}

fn processor_seconds() -> Result<f64> {
    let used = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(used.user_time()) + seconds(used.system_time()))
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let network = match cli.rate {
        Some(_) => Some(Network::new()?.context("a link needs root and /dev/net/tun")?),
        None => None,
    };
    let sites = match &network {
        Some(network) => Some((network.site("holder")?, network.site("reader")?)),
        None => None,
    };
    let mut link = None;
    if let (Some(network), Some((holder, reader)), Some(rate)) = (&network, &sites, cli.rate) {
        let shape = Shape::wide_area(rate, cli.round_trip_micros).with_loss(cli.loss);
        link = Some(network.join(holder, reader, shape, 1)?);
    }
    let folder = tempfile::Builder::new().prefix("atoll-between-").tempdir_in(&cli.data_dir)?;
    let from = SiteStore::open(&folder.path().join("holder"))?;
    let to = SiteStore::open(&folder.path().join("reader"))?;
    let authority = Authority::new()?;
    let address: IpAddr = sites.as_ref().map_or(Ipv4Addr::LOCALHOST, |(holder, _)| holder.address()).into();
    let serving_runtime = runtime(sites.as_ref().map(|(holder, _)| holder))?;
    let tls = authority.agent(HOLDER, "holder")?;
    let serving = Serving::new(from.clone(), HOLDER, tls, Arc::new(Open), None);
    let starting = serving_runtime.spawn(async move { listen(serving, SocketAddr::new(address, PORT)).await });
    let listening = serving_runtime.block_on(starting)??;
    let reading = runtime(sites.as_ref().map(|(_, reader)| reader))?;
    let only = match cli.way {
        Way::Tcp => Some(Transport::Tcp),
        Way::Quic => Some(Transport::Quic),
        Way::Measured => None,
    };
    let config = DirectConfig { only, ..DirectConfig::default() };
    let dialer = Dialer::new(authority.agent(READER, "reader")?, config, None);
    for round in 0..cli.rounds {
        let path = folder.path().join("made");
        match cli.files {
            None => write_noise(&path, cli.bytes, u64::from(round) + 1)?,
            Some(files) => {
                for index in 0..files {
                    let below = path.join((index / 500).to_string());
                    std::fs::create_dir_all(&below)?;
                    let seed = u64::from(round + 1) << 32 | u64::from(index);
                    write_noise(&below.join(index.to_string()), cli.bytes, seed)?;
                }
            }
        }
        let object = from.ingest(&path)?.object;
        let ticket = authority.sign(&authority.ticket(READER, HOLDER, object))?;
        let offer = Offer { holder: HOLDER, addresses: vec![listening.address], ticket };
        let credentials = Arc::new(OnlyOffer::new(offer));
        let client = reqwest::Client::builder().build()?;
        let config = TransferConfig::default();
        let transfers = Transfers::with_direct(to.clone(), client, credentials.clone(), config, Some(dialer.clone()));
        let (began, used) = (Instant::now(), processor_seconds()?);
        let fetched = reading.block_on(reading.spawn(async move { transfers.fetch(object).await }))?;
        let (seconds, used) = (began.elapsed().as_secs_f64(), processor_seconds()? - used);
        let fetched = fetched.with_context(|| credentials.failed().join("; "))?;
        let rate = object.bytes as f64 / seconds;
        println!(
            "{}",
            serde_json::json!({
                "bytes": object.bytes,
                "seconds": seconds,
                "bytes_per_second": rate,
                "megabits_per_second": rate * 8.0 / 1e6,
                "share_of_link": cli.rate.map(|link| rate * 8.0 / link as f64),
                "processor_seconds": used,
                "wire_bytes": fetched.wire_bytes,
                "carried": link.as_ref().map(wan_tests::Link::carried),
                "measured": format!("{:?}", dialer.measured(HOLDER)),
            })
        );
        from.remove(object)?;
        to.remove(object)?;
    }
    serving_runtime.block_on(listening.stop());
    Ok(())
}
