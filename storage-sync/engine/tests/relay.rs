//! Cut-through: a site that is just being given an object gives what it has of it to the next.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use atoll_model::id::{AgentId, SiteName, TransferId};
use atoll_model::value::ObjectRef;
use storage_sync_engine::bucket::UploadRequest;
use storage_sync_engine::direct::{Dialer, DirectConfig, Host, Listening, Offer, Serving, Transport, listen};
use storage_sync_engine::store::{Entry, StoreError};
use storage_sync_engine::transfer::{
    CredentialError, Credentials, Download, FetchError, Fetched, Offers, Transfers, Upload,
};
use support::server::{Minter, Served, quick, transfers};
use support::{Site, damage, look, noise, object_path};
use tokio::task::JoinSet;
use wan_tests::agents::Authority;

const MAKER: AgentId = AgentId::from_bits(1);
const RELAY: AgentId = AgentId::from_bits(2);
const LAST: AgentId = AgentId::from_bits(3);
const MIB: u64 = 1 << 20;

/// Ranges that have left an agent: from, to, bytes; of all agents in one order.
type Given = Arc<Mutex<Vec<(AgentId, AgentId, u64)>>>;

#[derive(Debug)]
struct Gate {
    own: AgentId,
    given: Given,
    closed: Mutex<bool>,
}

impl Host for Gate {
    fn admit(&self, _: &SiteName, _: ObjectRef) -> Result<(), String> {
        if *self.closed.lock().unwrap() { Err("it stays here".to_owned()) } else { Ok(()) }
    }

    fn damaged(&self, _: ObjectRef, _: &str) {}

    fn sent(&self, to: AgentId, _: ObjectRef, wire_bytes: u64) {
        self.given.lock().unwrap().push((self.own, to, wire_bytes));
    }
}

struct Offering {
    minter: Arc<Minter>,
    offers: Mutex<Vec<Offer>>,
    failed: Mutex<Vec<(AgentId, String)>>,
}

#[async_trait]
impl Credentials for Offering {
    async fn download(&self, object: ObjectRef) -> Result<Download, CredentialError> {
        self.minter.download(object).await
    }

    async fn offers(&self, _: ObjectRef) -> Result<Offers, CredentialError> {
        Ok(Offers::From(self.offers.lock().unwrap().clone()))
    }

    async fn offer_failed(&self, _: ObjectRef, holder: AgentId, message: &str) -> Result<(), CredentialError> {
        self.failed.lock().unwrap().push((holder, message.to_owned()));
        Ok(())
    }

    async fn upload_plan(&self, transfer: TransferId, request: &UploadRequest) -> Result<Upload, CredentialError> {
        self.minter.upload_plan(transfer, request).await
    }

    async fn complete(
        &self,
        transfer: TransferId,
        request: &UploadRequest,
        etags: &[String],
    ) -> Result<(), CredentialError> {
        self.minter.complete(transfer, request, etags).await
    }
}

struct Agent {
    id: AgentId,
    site: Site,
    transfers: Transfers,
    offering: Arc<Offering>,
    gate: Arc<Gate>,
    listening: Listening,
}

struct World {
    authority: Authority,
    minter: Arc<Minter>,
    maker: Agent,
    relay: Agent,
    last: Agent,
    given: Given,
    _served: Arc<Served>,
}

type Fetching = JoinSet<Result<Fetched, FetchError>>;

impl World {
    /// Three sites, the first of which gives so many bytes in a second.
    async fn new(rate: u64, only: Option<Transport>) -> Result<Self> {
        let (authority, given, served) = (Authority::new()?, Given::default(), Served::start().await?);
        let minter = Minter::new(&served.bucket);
        let agent = async |id: AgentId, rate: Option<u64>| -> Result<Agent> {
            let (site, name) = (Site::new()?, format!("site-{}", id.bits()));
            let offering =
                Arc::new(Offering { minter: minter.clone(), offers: Mutex::default(), failed: Mutex::default() });
            let direct = DirectConfig { only, stall_timeout: Duration::from_secs(10), ..DirectConfig::default() };
            let dialer = Dialer::new(authority.agent(id, &name)?, direct, None);
            let client = reqwest::Client::builder().build()?;
            let transfers = Transfers::with_direct(site.store.clone(), client, offering.clone(), quick(), Some(dialer));
            let gate = Arc::new(Gate { own: id, given: given.clone(), closed: Mutex::new(false) });
            let (tls, incoming) = (authority.agent(id, &name)?, transfers.incoming());
            let serving = Serving::relaying(site.store.clone(), id, tls, gate.clone(), rate, incoming);
            let listening = listen(serving, ([127, 0, 0, 1], 0).into()).await?;
            Ok(Agent { id, site, transfers, offering, gate, listening })
        };
        let (maker, relay, last) =
            (agent(MAKER, Some(rate)).await?, agent(RELAY, None).await?, agent(LAST, None).await?);
        Ok(Self { authority, minter, maker, relay, last, given, _served: served })
    }

    fn file(&self, bytes: u64) -> Result<ObjectRef> {
        let path = self.maker.site.write("file", &noise(bytes as usize, 3))?;
        Ok(self.maker.site.store.ingest(&path)?.object)
    }

    /// Whom a reader is told to ask.
    fn offer(&self, object: ObjectRef, holders: &[&Agent], reader: &Agent) -> Result<()> {
        let offer = |holder: &&Agent| -> Result<Offer> {
            let ticket = self.authority.sign(&self.authority.ticket(reader.id, holder.id, object))?;
            Ok(Offer { holder: holder.id, addresses: vec![holder.listening.address], ticket })
        };
        *reader.offering.offers.lock().unwrap() = holders.iter().map(offer).collect::<Result<_>>()?;
        Ok(())
    }

    /// The relay is being given the object, and the last site is told to have it from there.
    async fn begin(&self, object: ObjectRef, fallback: &[&Agent]) -> Result<(Fetching, Fetching)> {
        self.offer(object, &[&self.maker], &self.relay)?;
        self.offer(object, &[&[&self.relay], fallback].concat(), &self.last)?;
        let relayed = self.relay.fetching(object);
        self.relay.has_come(MIB).await;
        Ok((relayed, self.last.fetching(object)))
    }

    fn bytes_given(&self, from: AgentId, to: AgentId) -> u64 {
        let given = self.given.lock().unwrap();
        given.iter().filter(|(giver, taker, _)| (*giver, *taker) == (from, to)).map(|(.., bytes)| bytes).sum()
    }
}

impl Agent {
    fn fetching(&self, object: ObjectRef) -> Fetching {
        let (mut fetching, transfers) = (JoinSet::new(), self.transfers.clone());
        fetching.spawn(async move { transfers.fetch(object).await });
        fetching
    }

    async fn has_come(&self, bytes: u64) {
        while self.transfers.underway().first().is_none_or(|underway| underway.arrived_bytes < bytes) {
            tokio::task::yield_now().await;
        }
    }
}

async fn end(mut fetching: Fetching) -> Result<Fetched> {
    Ok(fetching.join_next().await.context("it was begun")???)
}

const BOTH: [Option<Transport>; 2] = [Some(Transport::Quic), Some(Transport::Tcp)];

#[tokio::test(flavor = "multi_thread")]
async fn the_last_site_has_most_of_an_object_when_the_one_before_it_has_got_all() -> Result<()> {
    for only in BOTH {
        let world = World::new(24 * MIB, only).await?;
        let object = world.file(72 * MIB + 5)?;
        let (relayed, last) = world.begin(object, &[]).await?;
        // Nobody is handed what is not all there.
        let entry = Entry {
            path: "in".into(),
            source: storage_sync_engine::store::Source::File { id: object.id, executable: false },
        };
        for site in [&world.relay.site, &world.last.site] {
            let early = site.store.materialise(&site.path("early"), std::slice::from_ref(&entry));
            assert!(matches!(early, Err(StoreError::NotFound(_))), "{early:?}");
        }
        let (relayed, last) = (end(relayed).await?, end(last).await?);
        assert_eq!((relayed.direct, last.direct), (Some((MAKER, object.bytes)), Some((RELAY, object.bytes))));
        for site in [&world.relay.site, &world.last.site] {
            site.store.scrub(object)?;
        }
        // Each byte once to each, and over the first link once.
        let taken = [(MAKER, RELAY), (RELAY, LAST), (MAKER, LAST)].map(|(from, to)| world.bytes_given(from, to));
        assert_eq!(taken, [object.bytes, object.bytes, 0]);
        // Two whole transfers, one after the other, would have all of the second after the last of the first.
        let given = world.given.lock().unwrap();
        let last_of_first = given.iter().rposition(|(from, ..)| *from == MAKER).unwrap();
        let before: u64 =
            given[..last_of_first].iter().filter(|(from, ..)| *from == RELAY).map(|(.., bytes)| bytes).sum();
        assert!(before > object.bytes / 4, "{before} of {} had gone on", object.bytes);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_goes_on_file_by_file() -> Result<()> {
    let world = World::new(24 * MIB, None).await?;
    for index in 0..500_usize {
        world.maker.site.write(&format!("tree/{}/{index}", index % 7), &noise(index * 20, index as u8))?;
    }
    world.maker.site.write("tree/empty", b"")?;
    world.maker.site.write("tree/large", &noise(40 << 20, 200))?;
    let stored = world.maker.site.store.ingest(&world.maker.site.path("tree"))?;
    let (relayed, last) = world.begin(stored.object, &[]).await?;
    let (_, last) = (end(relayed).await?, end(last).await?);
    assert_eq!(last.direct.map(|(holder, _)| holder), Some(RELAY));
    let entries = Entry::for_value("x", &stored.value);
    for site in [&world.maker.site, &world.last.site] {
        site.store.materialise(&site.path("in"), &entries)?;
    }
    assert_eq!(look(&world.last.site.path("in"))?, look(&world.maker.site.path("in"))?);
    assert_eq!(world.bytes_given(MAKER, LAST), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn c1_a_relay_that_gives_up_costs_nothing_of_what_it_gave() -> Result<()> {
    for only in BOTH {
        let world = World::new(24 * MIB, only).await?;
        let object = world.file(72 * MIB)?;
        let (mut relayed, last) = world.begin(object, &[&world.maker]).await?;
        world.last.has_come(20 * MIB).await;
        relayed.shutdown().await;
        let last = end(last).await?;
        assert_eq!(last.direct.map(|(holder, _)| holder), Some(MAKER));
        assert!(last.wire_bytes <= object.bytes + 16 * MIB, "{last:?}");
        assert!(world.bytes_given(RELAY, LAST) >= 16 * MIB);
        assert_eq!(world.last.offering.failed.lock().unwrap()[0].0, RELAY);
        world.last.site.store.scrub(object)?;
        assert!(!world.relay.site.store.contains(object));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn c1_a_relay_that_begins_again_goes_on_giving() -> Result<()> {
    let world = World::new(24 * MIB, None).await?;
    let object = world.file(72 * MIB)?;
    let (mut relayed, last) = world.begin(object, &[]).await?;
    world.last.has_come(20 * MIB).await;
    relayed.shutdown().await;
    let (relayed, last) = (end(world.relay.fetching(object)).await?, end(last).await?);
    assert!(relayed.wire_bytes <= object.bytes - 16 * MIB, "it goes on where it was: {relayed:?}");
    assert_eq!(last.direct.map(|(holder, _)| holder), Some(RELAY));
    assert!(world.last.offering.failed.lock().unwrap().is_empty());
    world.last.site.store.scrub(object)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn d5_damage_at_the_first_site_is_taken_in_by_nobody_behind_it() -> Result<()> {
    let world = World::new(24 * MIB, None).await?;
    let object = world.file(48 * MIB)?;
    transfers(&world.maker.site.store, &world.minter, quick())?.push(TransferId::from_bits(7), object).await?;
    damage(&object_path(&world.maker.site.store, "objects", object.id))?;
    let (relayed, last) = world.begin(object, &[]).await?;
    let (relayed, last) = (end(relayed).await?, end(last).await?);
    for (site, fetched) in [(&world.relay.site, relayed), (&world.last.site, last)] {
        site.store.scrub(object)?;
        assert_eq!(site.store.stats().quarantined, 0, "it never had a name: {fetched:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_its_own_site_keeps_does_not_go_on_while_it_comes() -> Result<()> {
    let world = World::new(24 * MIB, None).await?;
    let object = world.file(48 * MIB)?;
    *world.relay.gate.closed.lock().unwrap() = true;
    let (relayed, last) = world.begin(object, &[&world.maker]).await?;
    let (_, last) = (end(relayed).await?, end(last).await?);
    assert_eq!(last.direct, Some((MAKER, object.bytes)));
    assert_eq!(world.bytes_given(RELAY, LAST), 0);
    assert!(world.last.offering.failed.lock().unwrap()[0].1.contains("it stays here"));
    Ok(())
}
