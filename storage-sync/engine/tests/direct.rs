//! Fetches from another site's agent, with everything that can go wrong on the way.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use atoll_model::id::{AgentId, SiteName, TransferId};
use atoll_model::ticket::Ticket;
use atoll_model::value::{ObjectRef, Value};
use storage_sync_engine::bucket::UploadRequest;
use storage_sync_engine::direct::{AgentTls, Dialer, DirectConfig, Host, Listening, Offer, Serving, Transport, listen};
use storage_sync_engine::store::Entry;
use storage_sync_engine::stream::ObjectStream;
use storage_sync_engine::transfer::{
    CredentialError, Credentials, Download, FetchError, Fetched, Offers, Transfers, Upload,
};
use support::server::{Minter, Served, quick, transfers};
use support::{Site, damage, look, noise, object_path};
use tokio::task::JoinSet;
use wan_tests::agents::Authority;

const HOLDER: AgentId = AgentId::from_bits(1);
const READER: AgentId = AgentId::from_bits(2);

/// What the holder's own site says, and hears.
#[derive(Debug, Default)]
struct Gate {
    closed: Mutex<Option<String>>,
    damaged: Mutex<Vec<ObjectRef>>,
    sent: AtomicU64,
}

impl Host for Gate {
    fn admit(&self, to: &SiteName, _: ObjectRef) -> Result<(), String> {
        assert_eq!(to.to_string(), "reader");
        self.closed.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    fn damaged(&self, object: ObjectRef, _: &str) {
        self.damaged.lock().unwrap().push(object);
    }

    fn sent(&self, to: AgentId, _: ObjectRef, wire_bytes: u64) {
        assert_eq!(to, READER);
        self.sent.fetch_add(wire_bytes, Ordering::Relaxed);
    }
}

struct World {
    authority: Authority,
    from: Site,
    to: Site,
    gate: Arc<Gate>,
    listening: Option<Listening>,
    address: std::net::SocketAddr,
    served: Served2,
}

/// The bucket, where a fetch ends that finds no agent.
struct Served2 {
    served: Arc<Served>,
    minter: Arc<Minter>,
}

/// Offers what it was told to, and remembers what came of it.
struct Offering {
    minter: Arc<Minter>,
    offers: Vec<Offer>,
    failed: Mutex<Vec<String>>,
    asked: AtomicU64,
}

impl Offering {
    fn new(minter: Arc<Minter>, offers: Vec<Offer>) -> Arc<Self> {
        Arc::new(Self { minter, offers, failed: Mutex::default(), asked: AtomicU64::new(0) })
    }
}

#[async_trait]
impl Credentials for Offering {
    async fn download(&self, object: ObjectRef) -> Result<Download, CredentialError> {
        self.minter.download(object).await
    }

    async fn offers(&self, _: ObjectRef) -> Result<Offers, CredentialError> {
        // Somebody else is just getting it, at first.
        if self.asked.fetch_add(1, Ordering::Relaxed) == 0 {
            return Ok(Offers::AskAgain(Duration::from_millis(1)));
        }
        Ok(Offers::From(self.offers.clone()))
    }

    async fn offer_failed(&self, _: ObjectRef, holder: AgentId, message: &str) -> Result<(), CredentialError> {
        assert_eq!(holder, HOLDER);
        self.failed.lock().unwrap().push(message.to_owned());
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

fn config(only: Option<Transport>) -> DirectConfig {
    DirectConfig {
        only,
        connect_timeout: Duration::from_secs(2),
        stall_timeout: Duration::from_secs(5),
        ..DirectConfig::default()
    }
}

impl World {
    async fn new() -> Result<Self> {
        let (authority, from, gate) = (Authority::new()?, Site::new()?, Arc::<Gate>::default());
        let served = Served::start().await?;
        let minter = Minter::new(&served.bucket);
        let mut world = Self {
            authority,
            from,
            to: Site::new()?,
            gate,
            listening: None,
            address: ([127, 0, 0, 1], 0).into(),
            served: Served2 { served, minter },
        };
        world.listen(None).await?;
        Ok(world)
    }

    async fn listen(&mut self, rate: Option<u64>) -> Result<()> {
        let tls = self.authority.agent(HOLDER, "holder")?;
        let serving = Serving::new(self.from.store.clone(), HOLDER, tls, self.gate.clone(), rate);
        let listening = listen(serving, ([127, 0, 0, 1], 0).into()).await?;
        self.address = listening.address;
        self.listening = Some(listening);
        Ok(())
    }

    /// The holder's agent ends, as far as readers can tell.
    async fn stop(&mut self) -> Result<()> {
        self.listening.take().context("it listens")?.stop().await;
        Ok(())
    }

    fn file(&self, length: usize) -> Result<ObjectRef> {
        Ok(self.from.store.ingest(&self.from.write("file", &noise(length, 1))?)?.object)
    }

    fn offer(&self, object: ObjectRef) -> Result<Offer> {
        self.offer_with(&self.authority.ticket(READER, HOLDER, object))
    }

    fn offer_with(&self, ticket: &Ticket) -> Result<Offer> {
        Ok(Offer { holder: HOLDER, addresses: vec![self.address], ticket: self.authority.sign(ticket)? })
    }

    fn reader(&self, offers: Vec<Offer>, only: Option<Transport>) -> Result<(Transfers, Arc<Offering>)> {
        let tls = self.authority.agent(READER, "reader")?;
        self.reader_as(tls, offers, only)
    }

    fn reader_as(
        &self,
        tls: AgentTls,
        offers: Vec<Offer>,
        only: Option<Transport>,
    ) -> Result<(Transfers, Arc<Offering>)> {
        let offering = Offering::new(self.served.minter.clone(), offers);
        let dialer = Dialer::new(tls, config(only), None);
        let client = reqwest::Client::builder().build()?;
        let store = self.to.store.clone();
        Ok((Transfers::with_direct(store, client, offering.clone(), quick(), Some(dialer)), offering))
    }

    async fn fetch(&self, object: ObjectRef, only: Option<Transport>) -> Result<Fetched> {
        let (transfers, _) = self.reader(vec![self.offer(object)?], only)?;
        Ok(transfers.fetch(object).await?)
    }

    /// What the reader is told when nothing but the holder has the object.
    async fn refusal(&self, offer: Offer, object: ObjectRef) -> Result<String> {
        let (transfers, offering) = self.reader(vec![offer], None)?;
        let error = transfers.fetch(object).await.unwrap_err();
        assert!(
            matches!(error, FetchError::Missing(_) | FetchError::Corrupt { .. } | FetchError::Unreachable { .. }),
            "{error:?}"
        );
        assert!(!self.to.store.contains(object));
        let failed = offering.failed.lock().unwrap();
        assert_eq!(failed.len(), 1, "{failed:?}");
        Ok(failed[0].clone())
    }

    async fn put_into_the_bucket(&self, object: ObjectRef) -> Result<()> {
        let transfers = transfers(&self.from.store, &self.served.minter, quick())?;
        transfers.push(TransferId::from_bits(7), object).await?;
        Ok(())
    }
}

/// Waits until so many bytes of the one fetch are there; how many then are.
async fn arrived(transfers: &Transfers, bytes: u64) -> u64 {
    loop {
        let arrived = transfers.underway().first().map_or(0, |underway| underway.arrived_bytes);
        if arrived >= bytes {
            return arrived;
        }
        tokio::task::yield_now().await;
    }
}

const BOTH: [Option<Transport>; 2] = [Some(Transport::Quic), Some(Transport::Tcp)];

#[tokio::test(flavor = "multi_thread")]
async fn a_file_comes_straight_from_the_other_site_whatever_its_size() -> Result<()> {
    for only in BOTH {
        for length in [0, 1, 5 << 20, (8 << 20) + 1, 40 << 20] {
            let world = World::new().await?;
            let object = world.file(length)?;
            let fetched = world.fetch(object, only).await?;
            assert_eq!(fetched.wire_bytes, length as u64);
            assert_eq!(fetched.direct, (length > 0).then_some((HOLDER, length as u64)));
            assert_eq!(world.gate.sent.load(Ordering::Relaxed), length as u64);
            world.to.store.scrub(object)?;
            assert_eq!(world.to.store.read(object.id, 0, length)?, noise(length, 1));
            assert_eq!(std::fs::read_dir(world.to.store.root().join("partial"))?.count(), 0);
            assert_eq!(world.fetch(object, only).await?.wire_bytes, 0, "what is there is not fetched");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_of_many_files_arrives_as_it_was() -> Result<()> {
    for only in BOTH {
        let world = World::new().await?;
        for index in 0..600 {
            world.from.write(&format!("tree/{}/{index}", index % 7), &noise(index * 20, index as u8))?;
        }
        world.from.write("tree/large", &noise(20 << 20, 200))?;
        let stored = world.from.store.ingest(&world.from.path("tree"))?;
        let fetched = world.fetch(stored.object, only).await?;
        let stream_bytes = ObjectStream::of(&world.from.store, stored.object)?.stream_bytes();
        assert!(fetched.wire_bytes <= stream_bytes + (1 << 20), "{fetched:?}");
        world.to.store.scrub(stored.object)?;
        let entries = Entry::for_value("x", &stored.value);
        world.from.store.materialise(&world.from.path("in"), &entries)?;
        world.to.store.materialise(&world.to.path("in"), &entries)?;
        assert_eq!(look(&world.to.path("in"))?, look(&world.from.path("in"))?);
        assert!(matches!(stored.value, Value::Directory(_)));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_is_good_for_its_reader_holder_objects_and_time_only() -> Result<()> {
    let mut world = World::new().await?;
    let object = world.file(10 << 20)?;
    let other = world.from.store.ingest(&world.from.write("other", b"other")?)?.object;
    let right = world.authority.ticket(READER, HOLDER, object);
    let wrong = [
        (Ticket { reader: HOLDER, ..right.clone() }, "given to another agent"),
        (Ticket { holder: READER, ..right.clone() }, "what another agent has"),
        (Ticket { objects: vec![other], ..right.clone() }, "is not for"),
        (Ticket { expires_at: atoll_model::time::Timestamp(1), ..right.clone() }, "expired"),
        (Ticket { bytes_max: 5 << 20, ..right.clone() }, "no more than 5242880 may be"),
    ];
    for (ticket, why) in wrong {
        let said = world.refusal(world.offer_with(&ticket)?, object).await?;
        assert!(said.contains(why), "{said}");
    }
    let forged = Offer { ticket: Authority::new()?.sign(&right)?, ..world.offer(object)? };
    let said = world.refusal(forged, object).await?;
    assert!(said.contains("not signed by the control plane"), "{said}");
    assert!(world.gate.sent.load(Ordering::Relaxed) <= 5 << 20, "nothing was given but what one allowed");
    // Who has a certificate of somebody else's CA does not even come to showing a ticket.
    let stranger = Authority::new()?.agent(READER, "reader")?;
    let (transfers, offering) = world.reader_as(stranger, vec![world.offer(object)?], None)?;
    assert!(transfers.fetch(object).await.is_err());
    assert_eq!(offering.failed.lock().unwrap().len(), 1);
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_holders_own_site_refuses_does_not_leave_whatever_the_ticket_says() -> Result<()> {
    let world = World::new().await?;
    let object = world.file(1 << 20)?;
    *world.gate.closed.lock().unwrap() = Some("policy.toml:3 keeps it here".to_owned());
    let said = world.refusal(world.offer(object)?, object).await?;
    assert!(said.contains("policy.toml:3 keeps it here"), "{said}");
    assert_eq!(world.gate.sent.load(Ordering::Relaxed), 0);
    Ok(())
}

/// A port where nobody listens for UDP, and TCP is served from. Of UDP it may be free while somebody else has it of TCP.
fn blocked_for_udp() -> Result<(std::net::UdpSocket, std::net::TcpListener)> {
    loop {
        let blocked = std::net::UdpSocket::bind("127.0.0.1:0")?;
        match std::net::TcpListener::bind(blocked.local_addr()?) {
            Ok(served) => return Ok((blocked, served)),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_one_way_is_blocked_the_other_is_taken() -> Result<()> {
    let world = World::new().await?;
    let object = world.file(20 << 20)?;
    let (_blocked, proxy) = blocked_for_udp()?;
    let address = proxy.local_addr()?;
    let target = world.address;
    std::thread::spawn(move || {
        while let Ok((inward, _)) = proxy.accept() {
            let outward = std::net::TcpStream::connect(target).unwrap();
            for (mut from, mut to) in [(inward.try_clone().unwrap(), outward.try_clone().unwrap()), (outward, inward)] {
                std::thread::spawn(move || {
                    // Ends with the connection, however that ends.
                    let _ = std::io::copy(&mut from, &mut to);
                });
            }
        }
    });
    let offer = Offer { addresses: vec![address], ..world.offer(object)? };
    let (transfers, _) = world.reader(vec![offer], None)?;
    let fetched = transfers.fetch(object).await?;
    assert_eq!(fetched.direct.map(|(holder, _)| holder), Some(HOLDER));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_agent_that_listens_there_is_not_asked() -> Result<()> {
    let world = World::new().await?;
    let object = world.file(100)?;
    let ticket = world.authority.ticket(READER, AgentId::from_bits(9), object);
    let offer = Offer { holder: AgentId::from_bits(9), ..world.offer_with(&ticket)? };
    for only in BOTH {
        let dialer = Dialer::new(world.authority.agent(READER, "reader")?, config(only), None);
        let said = dialer.reach(&offer).await.unwrap_err();
        assert!(said.contains("another agent listens there"), "{said}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn c1_a_fetch_whose_holder_is_lost_goes_on_from_the_bucket_without_starting_over() -> Result<()> {
    for only in BOTH {
        let mut world = World::new().await?;
        world.stop().await?;
        // Slow enough to be stopped in the middle.
        world.listen(Some(60 << 20)).await?;
        let object = world.file(96 << 20)?;
        world.put_into_the_bucket(object).await?;
        let (transfers, offering) = world.reader(vec![world.offer(object)?], only)?;
        let mut fetching = JoinSet::new();
        fetching.spawn({
            let transfers = transfers.clone();
            async move { transfers.fetch(object).await }
        });
        arrived(&transfers, 40 << 20).await;
        world.stop().await?;
        let fetched = fetching.join_next().await.context("it was begun")???;
        let (_, direct) = fetched.direct.context("it began at the holder")?;
        assert!(direct >= 32 << 20, "{direct}");
        // Of each range that was under way the last grain may have been cut off.
        assert!(fetched.wire_bytes <= object.bytes + (8 << 20), "grains that came are not fetched again: {fetched:?}");
        assert_eq!(offering.failed.lock().unwrap().len(), 1);
        assert!(transfers.underway().is_empty());
        world.to.store.scrub(object)?;
        assert!(world.served.served.bucket.stream_bytes(object).await?.is_some());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a3_a_reader_that_ends_in_the_middle_goes_on_where_it_was() -> Result<()> {
    for only in BOTH {
        let mut world = World::new().await?;
        world.stop().await?;
        world.listen(Some(60 << 20)).await?;
        let object = world.file(96 << 20)?;
        let (transfers, _) = world.reader(vec![world.offer(object)?], only)?;
        let mut fetching = JoinSet::new();
        fetching.spawn({
            let transfers = transfers.clone();
            async move { transfers.fetch(object).await }
        });
        let before = arrived(&transfers, 48 << 20).await;
        fetching.shutdown().await;
        drop(transfers);
        let World { authority, from, to, gate, listening, address, served } = world;
        let world = World { authority, from, to: to.reopen()?, gate, listening, address, served };
        let fetched = world.fetch(object, only).await?;
        assert!(fetched.wire_bytes <= object.bytes - before, "{fetched:?} after {before}");
        world.to.store.scrub(object)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn d5_a_damaged_copy_at_the_holder_is_found_named_and_not_taken() -> Result<()> {
    for length in [1 << 20, 20 << 20] {
        let world = World::new().await?;
        let object = world.file(length)?;
        world.put_into_the_bucket(object).await?;
        damage(&object_path(&world.from.store, "objects", object.id))?;
        let (transfers, offering) = world.reader(vec![world.offer(object)?], None)?;
        let fetched = transfers.fetch(object).await?;
        assert_eq!(world.gate.damaged.lock().unwrap()[..], [object], "the holder looks at its copy");
        assert!(!world.from.store.contains(object), "and puts it out of use");
        assert!(offering.failed.lock().unwrap()[0].contains("damaged"), "{:?}", offering.failed);
        assert!(fetched.wire_bytes >= 2 * length as u64, "the bucket's was taken: {fetched:?}");
        world.to.store.scrub(object)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_shrinks_is_sent_compressed_over_a_slow_link() -> Result<()> {
    let mut world = World::new().await?;
    world.stop().await?;
    world.listen(Some(30 << 20)).await?;
    let text: Vec<u8> =
        (0..4_000_000u32).flat_map(|number| format!("{number},{}\n", number % 97).into_bytes()).collect();
    let first = world.file(20 << 20)?;
    let second = world.from.store.ingest(&world.from.write("text", &text)?)?.object;
    let offers = [world.offer(first)?, world.offer(second)?];
    let tls = world.authority.agent(READER, "reader")?;
    let dialer = Dialer::new(tls, config(Some(Transport::Tcp)), None);
    let mut wire_bytes = Vec::new();
    // The first shows how slow the link is.
    for (object, offer) in [first, second].into_iter().zip(offers) {
        let offering = Offering::new(world.served.minter.clone(), vec![offer]);
        let client = reqwest::Client::builder().build()?;
        let transfers = Transfers::with_direct(world.to.store.clone(), client, offering, quick(), Some(dialer.clone()));
        wire_bytes.push(transfers.fetch(object).await?.wire_bytes);
        world.to.store.scrub(object)?;
    }
    assert_eq!(wire_bytes[0], first.bytes, "noise does not shrink");
    assert!(wire_bytes[1] < second.bytes / 2, "{wire_bytes:?}");
    assert_eq!(world.to.store.read(second.id, 0, text.len())?, text);
    Ok(())
}
