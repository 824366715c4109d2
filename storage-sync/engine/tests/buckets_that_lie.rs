//! Buckets that change bits, lose objects, stall, and say that they hold what they do not.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use atoll_model::value::ObjectRef;
use futures::future::join_all;
use storage_sync_engine::transfer::{FetchError, TransferConfig};
use support::noise;
use support::server::{Fault, quick, transfers};
use support::world::World;

fn tree(world: &World) -> Result<ObjectRef> {
    for index in 0..12 {
        world.from.write(&format!("tree/{}/{index}", index % 3), &noise(index * 300 + 1, index as u8))?;
    }
    Ok(world.from.store.ingest(&world.from.path("tree"))?.object)
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[tokio::test(flavor = "multi_thread")]
async fn d6_each_of_ten_thousand_bits_that_change_on_the_way_is_noticed() -> Result<()> {
    let world = World::new().await?;
    let objects = [world.file(1, 1)?, world.file(3_000, 2)?, tree(&world)?, world.file(70_000, 3)?];
    let large = world.file((9 << 20) + 5, 4)?;
    for object in objects.iter().chain([&large]) {
        world.push(*object).await?;
    }
    let transfers = transfers(&world.to.store, &world.minter, quick())?;
    let (mut state, mut noticed) = (0x5eed_u64, 0);
    let mut round = 0;
    while noticed < 10_000 {
        // Each is asked for a second time, with another bit wrong.
        let fetched: Vec<ObjectRef> = if round % 60 == 0 { vec![large] } else { objects.to_vec() };
        world.served.fail((0..4 * fetched.len()).map(|_| Fault::Flip(random(&mut state))));
        let answers = join_all(fetched.iter().map(|object| transfers.fetch(*object))).await;
        for (object, answer) in fetched.iter().zip(answers) {
            let error = answer.unwrap_err();
            assert!(matches!(error, FetchError::Corrupt { .. }), "round {round}: {error}");
            assert!(!world.to.store.contains(*object), "round {round}");
            noticed += 2;
        }
        world.served.faults.lock().unwrap().clear();
        round += 1;
    }
    for object in objects.into_iter().chain([large]) {
        transfers.fetch(object).await?;
        world.to.store.scrub(object)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn d2_an_answer_that_stalls_is_given_up_and_asked_for_again_from_where_it_was() -> Result<()> {
    let world = World::new().await?;
    let object = world.file(20 << 20, 1)?;
    world.push(object).await?;
    world.served.fail([Fault::Stall(3 << 20), Fault::Stall(0), Fault::Stall(5 << 20)]);
    let config = TransferConfig { stall_timeout: Duration::from_millis(400), ..quick() };
    let wire_bytes = world.fetch_with(object, config).await?;
    assert!(wire_bytes < 21 << 20, "what came before it stalled is kept: {wire_bytes}");
    world.to.store.scrub(object)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn d3_an_upload_that_is_said_to_have_arrived_and_has_not_is_no_copy() -> Result<()> {
    let world = World::new().await?;
    let small = world.file(10_000, 1)?;
    world.served.fail([Fault::Swallow]);
    assert!(world.push(small).await.is_err(), "it is looked for before it counts");
    assert_eq!(world.served.bucket.stream_bytes(small).await?, None);
    world.push(small).await?;
    world.fetch(small).await?;

    let large = world.file(40 << 20, 2)?;
    world.served.fail([Fault::None, Fault::Swallow]);
    let wire_bytes = world.push(large).await?;
    assert!(wire_bytes > 40 << 20, "the upload begins again: {wire_bytes}");
    world.fetch(large).await?;
    world.to.store.scrub(large)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn d4_an_object_that_is_there_already_and_is_not_whole_is_uploaded_again() -> Result<()> {
    let world = World::new().await?;
    let object = world.file(50_000, 1)?;
    world.push(object).await?;
    std::fs::File::options().write(true).open(world.served.path(object))?.set_len(20_000)?;
    assert_eq!(world.push(object).await?, 50_000);
    assert_eq!(world.push(object).await?, 0, "now it is there");
    world.fetch(object).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn d7_an_object_that_the_bucket_has_lost_is_said_to_be_missing_and_can_be_pushed_again() -> Result<()> {
    let world = World::new().await?;
    let object = world.file(50_000, 1)?;
    world.push(object).await?;
    std::fs::remove_file(world.served.path(object))?;
    let error = world.fetch(object).await.unwrap_err();
    assert!(matches!(error, FetchError::Missing(_) | FetchError::Corrupt { .. }), "{error}");
    assert_eq!(world.push(object).await?, 50_000);
    assert_eq!(world.fetch(object).await?, 50_000);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn d8_other_bytes_of_the_same_length_under_a_right_name_are_never_taken_in() -> Result<()> {
    let world = World::new().await?;
    for length in [5_000, 20 << 20] {
        let object = world.file(length, 1)?;
        world.push(object).await?;
        std::fs::write(world.served.path(object), noise(length, 99))?;
        let before = world.served.bytes_out.load(Ordering::Relaxed);
        let error = world.fetch(object).await.unwrap_err();
        assert!(matches!(error, FetchError::Corrupt { .. }), "{error}");
        assert!(!world.to.store.contains(object));
        assert_eq!(world.served.bytes_out.load(Ordering::Relaxed) - before, 2 * length as u64, "twice is enough");
        assert_eq!(std::fs::read_dir(world.to.store.root().join("partial"))?.count(), 0);
    }
    Ok(())
}
