//! Fetches and pushes over a real connection, with everything that can go wrong on the way.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::sync::atomic::Ordering;

use anyhow::Result;
use atoll_model::id::ObjectId;
use atoll_model::value::{ObjectKind, ObjectRef, Value};
use futures::StreamExt as _;
use storage_sync_engine::store::Entry;
use storage_sync_engine::stream::{ObjectStream, Unpacker, pack};
use storage_sync_engine::transfer::{FetchError, PushError, TransferConfig, arrivals};
use support::server::{Fault, quick, transfers};
use support::world::{TRANSFER, World};
use support::{Site, damage, look, noise, object_path};

/// A tree with small files, large ones, and some twice.
fn tree(world: &World) -> Result<(ObjectRef, Value)> {
    for index in 0..40 {
        world.from.write(&format!("tree/small/{index}"), &noise(index * 50, index as u8))?;
    }
    world.from.write("tree/large", &noise(20 << 20, 200))?;
    world.from.write("tree/sub/twin", &noise(9 << 20, 201))?;
    world.from.write("tree/twin", &noise(9 << 20, 201))?;
    fs::create_dir(world.from.path("tree/empty"))?;
    std::os::unix::fs::symlink("sub/twin", world.from.path("tree/link"))?;
    std::os::unix::fs::symlink("empty/../sub/twin", world.from.path("tree/round"))?;
    let stored = world.from.store.ingest(&world.from.path("tree"))?;
    Ok((stored.object, stored.value))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_arrives_as_it_was_whatever_its_size() -> Result<()> {
    for length in [0, 1, 5 << 20, (16 << 20) + 1, 40 << 20] {
        let world = World::new().await?;
        let object = world.file(length, 1)?;
        assert_eq!(world.push(object).await?, length as u64);
        assert_eq!(world.push(object).await?, 0, "what is there is not sent again");
        assert_eq!(world.fetch(object).await?, length as u64);
        assert_eq!(world.fetch(object).await?, 0);
        world.to.store.scrub(object)?;
        assert_eq!(world.to.store.read(object.id, 0, length)?, noise(length, 1));
        assert_eq!(fs::read_dir(world.to.store.root().join("partial"))?.count(), 0);
        assert_eq!(fs::read_dir(world.from.store.root().join("partial"))?.count(), 0);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_arrives_as_it_was_each_file_once() -> Result<()> {
    let world = World::new().await?;
    let (object, value) = tree(&world)?;
    let stream_bytes = ObjectStream::of(&world.from.store, object)?.stream_bytes();
    assert!(stream_bytes < object.bytes, "files that are there twice travel once");
    assert_eq!(world.push(object).await?, stream_bytes);
    let wire_bytes = world.fetch(object).await?;
    assert!(wire_bytes <= stream_bytes + (1 << 20), "{wire_bytes} of {stream_bytes}");
    world.to.store.scrub(object)?;
    world.from.store.materialise(&world.from.path("in"), &Entry::for_value("x", &value))?;
    world.to.store.materialise(&world.to.path("in"), &Entry::for_value("x", &value))?;
    assert_eq!(look(&world.to.path("in"))?, look(&world.from.path("in"))?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_missing_of_a_tree_is_fetched() -> Result<()> {
    let world = World::new().await?;
    let (object, _) = tree(&world)?;
    world.push(object).await?;
    world.to.store.ingest(&world.to.write("large", &noise(20 << 20, 200))?)?;
    let wire_bytes = world.fetch(object).await?;
    assert!(wire_bytes < 12 << 20, "{wire_bytes}");
    world.to.store.scrub(object)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_who_waits_for_an_object_waits_for_one_fetch() -> Result<()> {
    let world = World::new().await?;
    let object = world.file(30 << 20, 1)?;
    world.push(object).await?;
    let transfers = transfers(&world.to.store, &world.minter, quick())?;
    let answers = futures::future::join_all((0..20).map(|_| transfers.fetch(object))).await;
    let wire_bytes: Vec<u64> = answers.into_iter().map(|answer| answer.unwrap().wire_bytes).collect();
    assert_eq!(wire_bytes, [30 << 20; 20]);
    assert_eq!(world.served.bytes_out.load(Ordering::Relaxed), 30 << 20);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn d1_a_server_that_stumbles_is_asked_again() -> Result<()> {
    let world = World::new().await?;
    let object = world.file(30 << 20, 1)?;
    world.served.fail([Fault::Status(500), Fault::Status(503), Fault::Status(429), Fault::Status(502)]);
    world.push(object).await?;
    world.served.fail([Fault::Status(500), Fault::Reset(1000), Fault::Truncate(2000), Fault::Status(503)]);
    let wire_bytes = world.fetch(object).await?;
    assert!((30 << 20..31 << 20).contains(&wire_bytes), "what came before a reset is kept: {wire_bytes}");
    world.to.store.scrub(object)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_is_away_for_a_while_is_waited_for() -> Result<()> {
    let world = World::new().await?;
    let object = world.file(1000, 1)?;
    world.minter.unavailable.store(4, Ordering::Relaxed);
    world.push(object).await?;
    world.minter.unavailable.store(4, Ordering::Relaxed);
    world.fetch(object).await?;
    world.minter.unavailable.store(1_000, Ordering::Relaxed);
    let other = ObjectRef { id: ObjectId::from_digest([1; 32]), kind: ObjectKind::File, bytes: 5 };
    assert!(matches!(world.fetch(other).await, Err(FetchError::Credentials(_))));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_url_is_replaced_by_a_fresh_one() -> Result<()> {
    for length in [1000, 40 << 20] {
        let world = World::new().await?;
        let object = world.file(length, 1)?;
        world.minter.first.lock().unwrap().push(world.served.expired.clone());
        world.push(object).await?;
        world.minter.first.lock().unwrap().push(world.served.expired.clone());
        world.fetch(object).await?;
        world.to.store.scrub(object)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn d6_a_damaged_answer_is_refused_and_fetched_again() -> Result<()> {
    let world = World::new().await?;
    let object = world.file(30 << 20, 1)?;
    world.push(object).await?;
    world.served.fail([Fault::WrongByte]);
    let wire_bytes = world.fetch(object).await?;
    assert_eq!(wire_bytes, 60 << 20);
    world.to.store.scrub(object)?;
    let (tree, _) = tree(&world)?;
    world.push(tree).await?;
    world.served.fail([Fault::None, Fault::WrongByte]);
    world.fetch(tree).await?;
    world.to.store.scrub(tree)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn d6_a_damaged_object_in_the_bucket_is_refused_and_never_reaches_the_store() -> Result<()> {
    let world = World::new().await?;
    let (tree, _) = tree(&world)?;
    for object in [world.file(1000, 1)?, world.file(20 << 20, 1)?, tree] {
        world.push(object).await?;
        damage(&world.served.path(object))?;
        let before = world.to.store.list()?.len();
        let error = world.fetch(object).await.unwrap_err();
        assert!(matches!(error, FetchError::Corrupt { .. }), "{error}");
        assert!(!world.to.store.contains(object));
        if object.kind == ObjectKind::File {
            assert_eq!(world.to.store.list()?.len(), before);
        }
        // Deleted and pushed again, it is whole.
        world.served.bucket.delete(object).await?;
        assert!(matches!(world.fetch(object).await.unwrap_err(), FetchError::Missing(_) | FetchError::Corrupt { .. }));
        world.push(object).await?;
        world.fetch(object).await?;
        world.to.store.scrub(object)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a3_a_fetch_goes_on_after_a_crash_with_what_is_missing() -> Result<()> {
    let mut world = World::new().await?;
    let object = world.file(64 << 20, 1)?;
    world.push(object).await?;
    // One request at a time: five segments arrive, then everything fails.
    let config = TransferConfig { requests_max: 1, tries_max: 1, ..quick() };
    world.served.fail([Fault::None; 5]);
    world.served.fail([Fault::Status(500)]);
    let error = transfers(&world.to.store, &world.minter, config)?.fetch(object).await.unwrap_err();
    assert!(matches!(error, FetchError::Unreachable { tries: 1, .. }), "{error}");
    assert!(!world.to.store.contains(object));
    let before = world.served.bytes_out.load(Ordering::Relaxed);
    world.to = world.to.reopen()?;
    assert_eq!(world.fetch(object).await?, 24 << 20);
    assert_eq!(world.served.bytes_out.load(Ordering::Relaxed) - before, 24 << 20);
    world.to.store.scrub(object)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a3_an_arrival_is_noted_until_it_is_on_record() -> Result<()> {
    let world = World::new().await?;
    let (tree, _) = tree(&world)?;
    for object in [world.file(1000, 1)?, world.file(20 << 20, 1)?, tree] {
        world.push(object).await?;
        let to = Site::new()?;
        let fetching = transfers(&to.store, &world.minter, quick())?;
        let wire_bytes = fetching.fetch_noted(object, 3).await?.wire_bytes;
        drop(fetching);
        let to = to.reopen()?;
        let fetching = transfers(&to.store, &world.minter, quick())?;
        let noted = arrivals(&to.store)?;
        assert_eq!(noted.len(), 1);
        assert_eq!((noted[0].object, noted[0].intent, noted[0].wire_bytes), (object, 3, wire_bytes));
        fetching.forget_arrival(object, 2)?;
        assert_eq!(arrivals(&to.store)?.len(), 1, "of another fetch");
        fetching.forget_arrival(object, 3)?;
        assert_eq!(arrivals(&to.store)?, []);
        assert_eq!(fetching.fetch_noted(object, 4).await?.wire_bytes, 0);
        assert_eq!(arrivals(&to.store)?, [], "nothing came");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a3_what_is_refused_after_all_leaves_no_note() -> Result<()> {
    let world = World::new().await?;
    let (tree, _) = tree(&world)?;
    for object in [world.file(1000, 1)?, world.file(20 << 20, 1)?, tree] {
        world.push(object).await?;
        damage(&world.served.path(object))?;
        let fetching = transfers(&world.to.store, &world.minter, quick())?;
        fetching.fetch_noted(object, 3).await.unwrap_err();
        assert_eq!(arrivals(&world.to.store)?, []);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a3_what_was_damaged_while_the_agent_was_down_is_fetched_again() -> Result<()> {
    let mut world = World::new().await?;
    let object = world.file(40 << 20, 1)?;
    world.push(object).await?;
    let config = TransferConfig { requests_max: 1, tries_max: 1, ..quick() };
    world.served.fail([Fault::None, Fault::None, Fault::None, Fault::Status(500)]);
    transfers(&world.to.store, &world.minter, config)?.fetch(object).await.unwrap_err();
    let folder = world.to.store.root().join(format!("partial/fetch-{}", object.id.hex()));
    damage(&folder.join(format!("{}.part", object.id.hex())))?;
    world.to = world.to.reopen()?;
    // What never came, and the one grain that was damaged.
    assert_eq!(world.fetch(object).await?, 17 << 20);
    world.to.store.scrub(object)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a14_a_push_goes_on_after_a_crash_with_the_parts_that_are_missing() -> Result<()> {
    let mut world = World::new().await?;
    let object = world.file(80 << 20, 1)?;
    let config = TransferConfig { parts_max: 1, tries_max: 1, ..quick() };
    world.served.fail([Fault::None, Fault::None, Fault::None, Fault::Status(500)]);
    let error = transfers(&world.from.store, &world.minter, config)?.push(TRANSFER, object).await.unwrap_err();
    assert!(matches!(error, PushError::Unreachable { .. }), "{error}");
    assert_eq!(world.served.bucket.stream_bytes(object).await?, None);
    world.from = world.from.reopen()?;
    assert_eq!(world.push(object).await?, 32 << 20);
    world.fetch(object).await?;
    world.to.store.scrub(object)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_whose_upload_was_forgotten_begins_again() -> Result<()> {
    let world = World::new().await?;
    let object = world.file(40 << 20, 1)?;
    let config = TransferConfig { parts_max: 1, tries_max: 1, ..quick() };
    world.served.fail([Fault::None, Fault::Status(500)]);
    transfers(&world.from.store, &world.minter, config)?.push(TRANSFER, object).await.unwrap_err();
    for entry in fs::read_dir(world.served.folder.path().join(".uploads"))? {
        fs::remove_dir_all(entry?.path())?;
    }
    assert_eq!(world.push(object).await?, 40 << 20);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn d5_a_damaged_source_is_never_pushed() -> Result<()> {
    for length in [1000, 40 << 20] {
        let world = World::new().await?;
        let object = world.file(length, 1)?;
        damage(&object_path(&world.from.store, "objects", object.id))?;
        let error = world.push(object).await.unwrap_err();
        assert!(matches!(error, PushError::Damaged { .. }), "{error}");
        assert_eq!(world.served.bucket.stream_bytes(object).await?, None);
        assert!(!world.from.store.contains(object));
        assert!(matches!(world.push(object).await.unwrap_err(), PushError::Missing(_)));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_nowhere_is_said_to_be_missing() -> Result<()> {
    let world = World::new().await?;
    let object = ObjectRef { id: ObjectId::from_digest([3; 32]), kind: ObjectKind::File, bytes: 0 };
    assert!(matches!(world.fetch(object).await.unwrap_err(), FetchError::Missing(_) | FetchError::Corrupt { .. }));
    assert!(matches!(world.push(object).await.unwrap_err(), PushError::Missing(_)));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_person_sends_and_takes_out_goes_through_the_bucket_unchanged() -> Result<()> {
    let world = World::new().await?;
    world.from.write("mine/a b", b"1")?;
    world.from.write("mine/sub/c", &noise(17 << 20, 4))?;
    fs::write(world.from.path("mine/empty"), b"")?;
    let packed = pack(&world.from.path("mine"))?;
    let body = |packed: &storage_sync_engine::stream::Packed| -> Result<Vec<std::io::Result<bytes::Bytes>>> {
        let mut chunks = Vec::new();
        let mut at = 0;
        while at < packed.stream_bytes() {
            let bytes = packed.read_at(at, 100_000)?;
            at += bytes.len() as u64;
            chunks.push(Ok(bytes.into()));
        }
        Ok(chunks)
    };
    let put = world.served.bucket.put_stream(packed.object(), futures::stream::iter(body(&packed)?).boxed()).await?;
    assert_eq!(put, packed.stream_bytes());
    assert_eq!(world.from.store.ingest(&world.from.path("mine"))?.object, packed.object());
    let mut stream = world.served.bucket.get_stream(packed.object(), None).await?;
    let target = world.to.path("got");
    let mut unpacker = Unpacker::new(packed.object(), &target)?;
    while let Some(chunk) = stream.next().await {
        unpacker.push(&chunk?)?;
    }
    assert!(!target.exists());
    unpacker.finish()?;
    world.fetch(packed.object()).await?;
    let value = packed.value(atoll_model::value::FileName::new(b"mine")?);
    world.to.store.materialise(&world.to.path("in"), &Entry::for_value("x", &value))?;
    assert_eq!(look(&target)?, look(&world.to.path("in/x/mine"))?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn d6_what_a_person_sends_damaged_never_becomes_visible() -> Result<()> {
    let world = World::new().await?;
    let bytes = noise(40 << 20, 9);
    let object = ObjectRef {
        id: ObjectId::from_digest(*blake3::hash(&bytes).as_bytes()),
        kind: ObjectKind::File,
        bytes: bytes.len() as u64,
    };
    let chunks = |bytes: &[u8]| {
        let chunks: Vec<_> = bytes.chunks(1 << 20).map(|chunk| Ok(bytes::Bytes::copy_from_slice(chunk))).collect();
        futures::stream::iter(chunks).boxed()
    };
    let mut wrong = bytes.clone();
    wrong[30 << 20] ^= 1;
    let longer = [&bytes[..], b"x"].concat();
    for bad in [&wrong[..], &bytes[..20 << 20], &longer, &[]] {
        assert!(world.served.bucket.put_stream(object, chunks(bad)).await.is_err());
        assert_eq!(world.served.bucket.stream_bytes(object).await?, None);
    }
    assert_eq!(world.served.bucket.put_stream(object, chunks(&bytes)).await?, object.bytes);
    assert_eq!(world.served.bucket.list_all().await?, [(object, object.bytes)]);
    Ok(())
}
