//! Fetches from another site over links that break, lose and flip bits.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use atoll_model::id::AgentId;
use atoll_model::value::ObjectRef;
use storage_sync_engine::direct::{Dialer, DirectConfig, Listening, Offer, Serving, Transport, listen};
use storage_sync_engine::store::SiteStore;
use storage_sync_engine::transfer::{TransferConfig, Transfers};
use tokio::runtime::Runtime;
use wan_tests::agents::{Authority, OnlyOffer, Open, runtime, write_noise};
use wan_tests::{Link, Network, Shape, Site};

const HOLDER: AgentId = AgentId::from_bits(1);
const READER: AgentId = AgentId::from_bits(2);
const LENGTH: u64 = 160 << 20;

struct World {
    folder: tempfile::TempDir,
    authority: Authority,
    from: SiteStore,
    to: SiteStore,
    listening: Listening,
    link: Link,
    serving: Runtime,
    reading: Runtime,
    _sites: [Site; 2],
}

impl World {
    fn new(shape: Shape, seed: u64) -> Result<Option<Self>> {
        let Some(network) = Network::new()? else { return Ok(None) };
        let sites = [network.site("holder")?, network.site("reader")?];
        let link = network.join(&sites[0], &sites[1], shape, seed)?;
        let folder = tempfile::tempdir()?;
        let from = SiteStore::open(&folder.path().join("holder"))?;
        let to = SiteStore::open(&folder.path().join("reader"))?;
        let authority = Authority::new()?;
        let (serving, reading) = (runtime(Some(&sites[0]))?, runtime(Some(&sites[1]))?);
        let tls = authority.agent(HOLDER, "holder")?;
        let parts = Serving::new(from.clone(), HOLDER, tls, Arc::new(Open), None);
        let address = SocketAddr::new(sites[0].address().into(), 7_433);
        let listening = serving.block_on(serving.spawn(async move { listen(parts, address).await }))??;
        Ok(Some(Self { folder, authority, from, to, listening, link, serving, reading, _sites: sites }))
    }

    fn object(&self) -> Result<ObjectRef> {
        let path = self.folder.path().join("made");
        write_noise(&path, LENGTH, 1)?;
        Ok(self.from.ingest(&path)?.object)
    }

    /// An agent that starts anew at the reader's site.
    fn reader(&self, object: ObjectRef, way: Transport) -> Result<(Transfers, Arc<OnlyOffer>)> {
        let ticket = self.authority.sign(&self.authority.ticket(READER, HOLDER, object))?;
        let offer = Offer { holder: HOLDER, addresses: vec![self.listening.address], ticket };
        let credentials = Arc::new(OnlyOffer::new(offer));
        let config = DirectConfig {
            only: Some(way),
            connect_timeout: Duration::from_secs(3),
            stall_timeout: Duration::from_secs(2),
            ..DirectConfig::default()
        };
        let dialer = Dialer::new(self.authority.agent(READER, "reader")?, config, None);
        let client = reqwest::Client::builder().build()?;
        let transfers = Transfers::with_direct(
            self.to.clone(),
            client,
            credentials.clone(),
            TransferConfig::default(),
            Some(dialer),
        );
        Ok((transfers, credentials))
    }

    fn end(self) {
        self.serving.block_on(self.listening.stop());
    }
}

/// Bytes that the holder's site has sent over the link.
fn sent(link: &Link) -> u64 {
    link.carried()[0].bytes
}

#[test]
fn c1_a_fetch_over_a_link_that_is_cut_goes_on_where_it_was_when_it_is_mended() -> Result<()> {
    for (way, share) in [(Transport::Tcp, 0.2), (Transport::Quic, 0.45), (Transport::Tcp, 0.75)] {
        let Some(world) = World::new(Shape::wide_area(400_000_000, 10_000), 1)? else { return Ok(()) };
        let object = world.object()?;
        let (transfers, credentials) = world.reader(object, way)?;
        let fetching = world.reading.spawn(async move { transfers.fetch(object).await });
        while (sent(&world.link) as f64) < share * LENGTH as f64 {
            std::thread::yield_now();
        }
        world.link.cut();
        let cut_off = world.reading.block_on(fetching)?;
        assert!(cut_off.is_err(), "there is no other way");
        assert_eq!(credentials.failed().len(), 1, "{:?}", credentials.failed());
        let before = sent(&world.link);
        world.link.mend();
        let (transfers, credentials) = world.reader(object, way)?;
        let fetched = world.reading.block_on(world.reading.spawn(async move { transfers.fetch(object).await }))?;
        let fetched = fetched.map_err(|error| anyhow::anyhow!("{error}: {:?}", credentials.failed()))?;
        // What was under way on each connection is lost: half a piece of 8 MiB on each of eight, and what waited in queues.
        let twice = before.saturating_sub(LENGTH - fetched.wire_bytes);
        assert!(twice < 72 << 20, "{way:?}: {twice} bytes were sent twice, {fetched:?}");
        world.to.scrub(object)?;
        world.end();
    }
    Ok(())
}

#[test]
fn bits_that_flip_on_the_wire_cost_time_and_never_reach_the_store() -> Result<()> {
    for way in [Transport::Tcp, Transport::Quic] {
        let shape = Shape { damage: 0.0002, ..Shape::wide_area(400_000_000, 4_000) };
        let Some(world) = World::new(shape, 3)? else { return Ok(()) };
        let object = world.object()?;
        let mut tries = 0;
        while !world.to.contains(object) {
            let (transfers, credentials) = world.reader(object, way)?;
            let fetched = world.reading.block_on(world.reading.spawn(async move { transfers.fetch(object).await }))?;
            assert!(fetched.is_ok() || !credentials.failed().is_empty());
            tries += 1;
            assert!(tries < 30, "{way:?}: {:?}", credentials.failed());
        }
        assert!(world.link.carried()[0].damaged > 0, "{way:?}: {:?}", world.link.carried());
        world.to.scrub(object).unwrap();
        world.end();
    }
    Ok(())
}
