//! What is encrypted in the bucket: nothing of it is to be seen there, and it moves as anything else does.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result};
use atoll_model::value::{ObjectKind, ObjectRef};
use futures::{StreamExt as _, TryStreamExt as _};
use storage_sync_engine::bucket::{BucketError, ByteStream, Encryption, Stored};
use storage_sync_engine::encryption::{CHUNK_BYTES, ProjectKey, encrypted_bytes};
use storage_sync_engine::stream::pack;
use storage_sync_engine::transfer::{FetchError, PushError, TransferConfig};
use support::server::{Fault, Minter, quick, transfers};
use support::world::{TRANSFER, World};
use support::{Site, damage, noise, object_path};

const SECRET: &[u8] = b"the patient's name is Ada";

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder)
        .unwrap()
        .flat_map(|entry| {
            let path = entry.unwrap().path();
            if path.is_dir() { files(&path) } else { vec![path] }
        })
        .collect()
}

/// The one object in the bucket.
fn only(world: &World) -> Result<PathBuf> {
    let found = files(&world.served.folder.path().join("e"));
    assert_eq!(found.len(), 1, "{found:?}");
    found.into_iter().next().context("there is one")
}

fn secret_folder(world: &World) -> Result<PathBuf> {
    for index in 0..40 {
        let bytes = [SECRET, &noise(index * 3_000, index as u8)].concat();
        world.from.write(&format!("tree/named-{}/{index}", index % 3), &bytes)?;
    }
    world.from.write("tree/large", &noise(9 << 20, 1))?;
    world.from.write("tree/empty", b"")?;
    Ok(world.from.path("tree"))
}

/// Takes the folder into the store, which moves it there.
fn secret_tree(world: &World) -> Result<ObjectRef> {
    Ok(world.from.store.ingest(&secret_folder(world)?)?.object)
}

fn shows(folder: &Path, what: &[u8]) -> bool {
    let named = |path: &PathBuf| path.to_string_lossy().as_bytes().windows(what.len()).any(|part| part == what);
    let holds = |path: &PathBuf| std::fs::read(path).unwrap().windows(what.len()).any(|part| part == what);
    files(folder).iter().any(|path| named(path) || holds(path))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_encrypted_arrives_as_it_was_whatever_its_size() -> Result<()> {
    let world = World::encrypted().await?;
    let chunk = CHUNK_BYTES as usize;
    for length in [0, 1, chunk - 1, chunk, chunk + 1, 3 * chunk, (8 << 20) + 1, (40 << 20) + 7] {
        let object = world.file(length, 1)?;
        let there = encrypted_bytes(length as u64);
        assert_eq!(world.push(object).await?, there, "{length}");
        assert_eq!(world.push(object).await?, 0, "it is there");
        assert_eq!(std::fs::metadata(only(&world)?)?.len(), there);
        world.fetch(object).await?;
        world.to.store.scrub(object)?;
        world.served.bucket.delete(world.minter.stored(object)).await?;
        assert_eq!(world.served.bucket.find(world.minter.stored(object)).await?.map(|found| found.stream_bytes), None);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_in_the_bucket_shows_what_is_in_a_tree_or_how_it_is_named() -> Result<()> {
    let plain = World::new().await?;
    let tree = secret_tree(&plain)?;
    plain.push(tree).await?;
    let bucket = plain.served.folder.path();
    assert!(shows(bucket, SECRET) && shows(bucket, b"named-1") && shows(bucket, tree.id.hex().as_bytes()));

    let world = World::encrypted().await?;
    assert_eq!(secret_tree(&world)?, tree);
    world.push(tree).await?;
    let bucket = world.served.folder.path();
    for what in [SECRET, b"named-1", tree.id.hex().as_bytes(), tree.id.digest()] {
        assert!(!shows(bucket, what), "{:?}", String::from_utf8_lossy(what));
    }
    world.fetch(tree).await?;
    world.to.store.scrub(tree)?;

    // Of a tree of which something is there already, the ranges that are fetched begin anywhere.
    let other = World::encrypted().await?;
    secret_tree(&other)?;
    other.push(tree).await?;
    for index in (0..40).step_by(2) {
        let bytes = [SECRET, &noise(index * 3_000, index as u8)].concat();
        other.to.store.ingest(&other.to.write("part", &bytes)?)?;
    }
    other.fetch(tree).await?;
    other.to.store.scrub(tree)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_uploads_of_one_object_have_nothing_in_common() -> Result<()> {
    let world = World::encrypted().await?;
    let object = world.file(200_000, 1)?;
    world.push(object).await?;
    let first = std::fs::read(only(&world)?)?;
    std::fs::remove_file(only(&world)?)?;
    world.push(object).await?;
    let second = std::fs::read(only(&world)?)?;
    assert_eq!(first.len(), second.len());
    let same = first[8..].chunks(16).zip(second[8..].chunks(16)).filter(|(one, other)| one == other).count();
    assert_eq!(same, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a14_an_encrypted_push_goes_on_after_a_crash_with_the_parts_that_are_missing() -> Result<()> {
    let mut world = World::encrypted().await?;
    let object = world.file(80 << 20, 1)?;
    let config = TransferConfig { parts_max: 1, tries_max: 1, ..quick() };
    world.served.fail([Fault::None, Fault::None, Fault::None, Fault::Status(500)]);
    let error = transfers(&world.from.store, &world.minter, config)?.push(TRANSFER, object).await.unwrap_err();
    assert!(matches!(error, PushError::Unreachable { .. }), "{error}");
    world.from = world.from.reopen()?;
    assert_eq!(world.push(object).await?, encrypted_bytes(80 << 20) - (48 << 20));
    world.fetch(object).await?;
    world.to.store.scrub(object)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a3_an_encrypted_fetch_goes_on_with_what_is_missing() -> Result<()> {
    let mut world = World::encrypted().await?;
    let object = world.file(64 << 20, 1)?;
    world.push(object).await?;
    let config = TransferConfig { requests_max: 1, tries_max: 1, ..quick() };
    world.served.fail([Fault::None; 5]);
    world.served.fail([Fault::Status(500)]);
    transfers(&world.to.store, &world.minter, config)?.fetch(object).await.unwrap_err();
    world.to = world.to.reopen()?;
    let wire_bytes = world.fetch(object).await?;
    assert!((24 << 20..(24 << 20) + (64 << 10)).contains(&wire_bytes), "{wire_bytes}");
    // A connection that breaks loses the chunk that was on its way, and no more.
    world.to.store.scrub(object)?;
    let other = world.file(30 << 20, 2)?;
    world.push(other).await?;
    world.served.fail([Fault::Reset(1 << 20), Fault::Truncate(3 << 20), Fault::Reset(100_000), Fault::Status(503)]);
    let wire_bytes = world.fetch(other).await?;
    assert!((30 << 20..(30 << 20) + (400 << 10)).contains(&wire_bytes), "{wire_bytes}");
    world.to.store.scrub(other)?;
    Ok(())
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[tokio::test(flavor = "multi_thread")]
async fn d6_a_bit_that_changed_in_what_is_encrypted_is_found_and_what_was_put_again_is_whole() -> Result<()> {
    let mut world = World::encrypted().await?;
    let mut state = 0x5eed_u64;
    for object in [world.file(1_000, 1)?, world.file(20 << 20, 2)?, secret_tree(&world)?] {
        world.push(object).await?;
        let path = only(&world)?;
        let whole = std::fs::read(&path)?;
        for round in 0..12 {
            let mut bytes = whole.clone();
            let bit = if round < 3 { round * 150 } else { random(&mut state) as usize } % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, bytes)?;
            // With a store that has nothing of a tree yet.
            world.to = Site::new()?;
            let error = world.fetch(object).await.unwrap_err();
            assert!(matches!(error, FetchError::Corrupt { .. }), "bit {bit}: {error}");
            assert!(!world.to.store.contains(object));
        }
        world.served.bucket.delete(world.minter.stored(object)).await?;
        world.push(object).await?;
        world.fetch(object).await?;
        world.to.store.scrub(object)?;
        world.served.bucket.delete(world.minter.stored(object)).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn d8_chunks_that_were_swapped_cut_off_or_taken_from_another_object_are_never_taken_in() -> Result<()> {
    let world = World::encrypted().await?;
    let (object, other) = (world.file(20 << 20, 1)?, world.file(20 << 20, 2)?);
    world.push(other).await?;
    let strange = std::fs::read(only(&world)?)?;
    world.served.bucket.delete(world.minter.stored(other)).await?;
    world.push(object).await?;
    let path = only(&world)?;
    let whole = std::fs::read(&path)?;
    let sealed = CHUNK_BYTES as usize + 16;
    let mut swapped = whole.clone();
    let (first, second) = swapped[40..].split_at_mut(sealed);
    first.swap_with_slice(&mut second[..sealed]);
    let cut = whole[..whole.len() - sealed].to_vec();
    for wrong in [swapped, cut, strange, whole[..39].to_vec(), Vec::new(), noise(whole.len(), 3)] {
        std::fs::write(&path, &wrong)?;
        let error = world.fetch(object).await.unwrap_err();
        assert!(matches!(error, FetchError::Corrupt { .. }), "{} bytes: {error}", wrong.len());
        assert!(!world.to.store.contains(object));
    }
    std::fs::write(&path, &whole)?;
    world.fetch(object).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_another_key_neither_finds_nor_reads_it() -> Result<()> {
    let mut world = World::encrypted().await?;
    let object = world.file(100_000, 1)?;
    world.push(object).await?;
    let path = only(&world)?;
    world.minter = Minter::of_project(&world.served.bucket, Some(ProjectKey::new([10; 32])));
    assert!(world.fetch(object).await.is_err());
    world.push(object).await?;
    let mine = files(&world.served.folder.path().join("e")).into_iter().find(|other| *other != path).unwrap();
    std::fs::copy(&path, mine)?;
    assert!(matches!(world.fetch(object).await.unwrap_err(), FetchError::Corrupt { .. }));
    Ok(())
}

fn stream(bytes: Vec<u8>) -> ByteStream {
    futures::stream::iter(bytes.chunks(300_000).map(|part| Ok(bytes::Bytes::copy_from_slice(part))).collect::<Vec<_>>())
        .boxed()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_person_sends_in_can_be_read_by_range_and_file_by_file() -> Result<()> {
    let world = World::encrypted().await?;
    let packed = pack(&secret_folder(&world)?)?;
    let bytes = packed.read_at(0, packed.stream_bytes() as usize)?;
    let (bucket, tree) = (&world.served.bucket, world.minter.stored(packed.object()));
    assert_eq!(bucket.put_stream(tree.clone(), stream(bytes.clone())).await?, packed.stream_bytes());
    assert!(!shows(world.served.folder.path(), SECRET));
    let read: Vec<_> = bucket.get_stream(tree.clone(), None).await?.try_collect().await?;
    assert!(read.concat() == bytes);
    let read: Vec<_> = bucket.get_stream(tree.clone(), Some(65_000..200_001)).await?.try_collect().await?;
    assert!(read.concat() == bytes[65_000..200_001]);

    let contents = bucket.contents(tree.clone()).await?;
    let listing = contents.listing().context("it is small")?;
    assert_eq!(listing.len(), 42);
    let file = &listing[5];
    let object = ObjectRef { id: file.object, kind: ObjectKind::File, bytes: file.bytes };
    let stored = world.minter.stored(object);
    bucket.take_out(&contents, object.id, stored.encryption.as_ref()).await?;
    assert!(!shows(world.served.folder.path(), SECRET));
    world.fetch(object).await?;
    world.to.store.scrub(object)?;

    // Found by whoever takes something out, as the directory's damage.
    bucket.delete(stored.clone()).await?;
    let path = only(&world)?;
    let mut damaged = std::fs::read(&path)?;
    damaged.iter_mut().skip(100).for_each(|byte| *byte ^= 1);
    std::fs::write(&path, damaged)?;
    let taken = bucket.take_out(&contents, object.id, stored.encryption.as_ref()).await;
    assert!(matches!(&taken, Err(BucketError::Corrupt { object, .. }) if *object == packed.object()), "{taken:?}");
    assert!(matches!(bucket.contents(tree.clone()).await, Err(BucketError::Corrupt { .. })));
    let other = Encryption::new(&ProjectKey::new([1; 32]), packed.object());
    let elsewhere = Stored { object: packed.object(), encryption: Some(other) };
    assert!(!elsewhere.is_at(&tree) && tree.is_at(&world.minter.stored(packed.object())));
    assert!(matches!(bucket.get_stream(elsewhere, None).await, Err(BucketError::NotFound(_))));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn d5_a_damaged_source_is_never_pushed_encrypted() -> Result<()> {
    let world = World::encrypted().await?;
    let object = world.file(40 << 20, 1)?;
    damage(&object_path(&world.from.store, "objects", object.id))?;
    let error = world.push(object).await.unwrap_err();
    assert!(matches!(error, PushError::Damaged { .. }), "{error}");
    assert!(world.served.bucket.find(world.minter.stored(object)).await?.is_none());
    assert_eq!(world.minter.completed.load(Ordering::Relaxed), 0);
    Ok(())
}
