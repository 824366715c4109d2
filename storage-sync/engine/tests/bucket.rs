//! The bucket's promises, the same for a directory and for S3.
//!
//! With `ATOLL_TEST_S3=s3://bucket/prefix` they are asked of that bucket too; the endpoint, region and keys are the
//! environment's `AWS_…`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use atoll_model::id::{ObjectId, TransferId};
use atoll_model::value::{ObjectKind, ObjectRef};
use futures::{StreamExt as _, TryStreamExt as _};
use reqwest::StatusCode;
use storage_sync_engine::bucket::{
    Bucket, BucketError, BucketOptions, ByteStream, MultipartPlan, UploadPlan, UploadRequest,
};
use storage_sync_engine::stream::pack;
use support::server::{Minter, Served, quick, transfers};
use support::{Site, noise};

fn object_of(bytes: &[u8]) -> ObjectRef {
    let id = ObjectId::from_digest(*blake3::hash(bytes).as_bytes());
    ObjectRef { id, kind: ObjectKind::File, bytes: bytes.len() as u64 }
}

fn request(object: ObjectRef) -> UploadRequest {
    UploadRequest { object, stream_bytes: object.bytes, upload_id: None, first_part: 0 }
}

fn stream(bytes: Vec<u8>) -> ByteStream {
    futures::stream::iter([Ok(bytes::Bytes::from(bytes))]).boxed()
}

/// Different in each run, so that a bucket that outlives the tests does not answer them from before.
fn fresh_noise(length: usize) -> Vec<u8> {
    let mut bytes = noise(length, 0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos().to_le_bytes();
    let count = now.len().min(bytes.len());
    bytes[..count].copy_from_slice(&now[..count]);
    bytes
}

async fn holds_its_promises(bucket: &Bucket, expired: &Bucket) -> Result<()> {
    bucket.check().await?;
    let client = reqwest::Client::builder().build()?;
    single_put(bucket, expired, &client).await?;
    multipart(bucket, &client).await?;
    streams(bucket).await?;
    directories(bucket).await?;
    whole_transfers(bucket, expired).await
}

async fn directories(bucket: &Bucket) -> Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::create_dir(folder.path().join("deep"))?;
    let (first, second) = (fresh_noise(3_000), fresh_noise(70_000));
    for (name, bytes) in [("b", &first[..]), ("deep/a", &second[..]), ("deep.x", b""), ("again", &first[..])] {
        std::fs::write(folder.path().join(name), bytes)?;
    }
    std::os::unix::fs::symlink("b", folder.path().join("link"))?;
    let packed = pack(folder.path())?;
    let tree = packed.object();
    assert!(matches!(bucket.contents(tree).await, Err(BucketError::NotFound(_))));
    bucket.put_stream(tree, stream(packed.read_at(0, 1 << 20)?)).await?;
    let contents = bucket.contents(tree).await?;
    let listing = contents.listing().context("a listing")?;
    let paths: Vec<_> = listing.iter().map(|file| String::from_utf8_lossy(&file.path).into_owned()).collect();
    assert_eq!((paths.as_slice(), contents.files()), (&["again", "b", "deep.x", "deep/a"].map(str::to_owned)[..], 4));
    for bytes in [&first[..], &second, b""] {
        let object = object_of(bytes);
        bucket.delete(object).await?;
        assert_eq!(bucket.take_out(&contents, object.id, None).await?, object.bytes);
        let taken: Vec<_> = bucket.get_stream(object, None).await?.try_collect().await?;
        assert_eq!(taken.concat(), bytes);
        bucket.delete(object).await?;
    }
    let other = object_of(b"other").id;
    assert!(matches!(bucket.take_out(&contents, other, None).await, Err(BucketError::Corrupt { .. })));
    let lie = ObjectRef { bytes: tree.bytes + 1, ..tree };
    assert!(matches!(bucket.contents(lie).await, Err(BucketError::Corrupt { .. })));
    bucket.delete(tree).await?;
    Ok(())
}

/// What is damaged in a directory that is in the bucket never comes out of it.
#[tokio::test]
async fn d6_a_damaged_file_is_not_taken_out_of_a_directory() -> Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::create_dir(folder.path().join("tree"))?;
    std::fs::write(folder.path().join("tree/a"), "alpha")?;
    let place = folder.path().join("bucket");
    let bucket = Bucket::open(
        &place.display().to_string(),
        BucketOptions { serve_url: "https://127.0.0.1:1".to_owned(), ..BucketOptions::default() },
    )?;
    let packed = pack(&folder.path().join("tree"))?;
    let tree = packed.object();
    bucket.put_stream(tree, stream(packed.read_at(0, 1 << 20)?)).await?;
    let contents = bucket.contents(tree).await?;
    let hex = tree.id.hex();
    let path = place.join("t").join(&hex[..2]).join(&hex);
    let mut bytes = std::fs::read(&path)?;
    *bytes.last_mut().context("bytes")? ^= 1;
    std::fs::write(&path, bytes)?;
    let file = object_of(b"alpha");
    let taken = bucket.take_out(&contents, file.id, None).await;
    assert!(matches!(&taken, Err(BucketError::Corrupt { object, .. }) if *object == tree), "{taken:?}");
    assert_eq!(bucket.stream_bytes(file).await?, None);
    Ok(())
}

async fn single_put(bucket: &Bucket, expired: &Bucket, client: &reqwest::Client) -> Result<()> {
    let bytes = fresh_noise(10_000);
    let object = object_of(&bytes);
    assert_eq!(bucket.stream_bytes(object).await?, None);
    let UploadPlan::Single { url, headers } = bucket.plan_upload(&request(object), None).await? else {
        anyhow::bail!("a small object goes in one request")
    };
    assert!(matches!(
        bucket.complete_upload(object, object.bytes, None, &[]).await,
        Err(BucketError::Incomplete { .. })
    ));
    // The URL of a PUT is none for a GET, and none for another object.
    assert_eq!(client.get(&url).send().await?.status(), StatusCode::FORBIDDEN);
    let other = object_of(b"other").id.hex();
    let elsewhere = url
        .replace(&object.id.hex(), &other)
        .replace(&format!("/{}/", &object.id.hex()[..2]), &format!("/{}/", &other[..2]));
    assert_eq!(client.put(&elsewhere).body(bytes.clone()).send().await?.status(), StatusCode::FORBIDDEN);
    let mut put = client.put(&url).body(bytes.clone());
    for (name, value) in headers {
        put = put.header(name, value);
    }
    assert_eq!(put.send().await?.status(), StatusCode::OK);
    bucket.complete_upload(object, object.bytes, None, &[]).await?;
    bucket.complete_upload(object, object.bytes, None, &[]).await?;
    assert_eq!(bucket.plan_upload(&request(object), None).await?, UploadPlan::AlreadyThere);

    let url = bucket.mint_download(object).await?.url;
    let answer = client.get(&url).send().await?;
    assert_eq!((answer.status(), answer.bytes().await?.to_vec()), (StatusCode::OK, bytes.clone()));
    let answer = client.get(&url).header("range", "bytes=100-199").send().await?;
    assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(answer.headers()["content-range"].to_str()?, "bytes 100-199/10000");
    assert_eq!(answer.bytes().await?.to_vec(), bytes[100..200]);
    assert_eq!(client.put(&url).body("x").send().await?.status(), StatusCode::FORBIDDEN);
    let mut tampered = url.clone();
    let last = tampered.pop().context("a URL is not empty")?;
    tampered.push(if last == '0' || last == 'A' { 'B' } else { '0' });
    assert_eq!(client.get(&tampered).send().await?.status(), StatusCode::FORBIDDEN);
    let old = expired.mint_download(object).await?.url;
    // S3 knows no shorter life than a second.
    let until = Instant::now() + Duration::from_secs(5);
    while client.get(&old).send().await?.status() != StatusCode::FORBIDDEN {
        anyhow::ensure!(Instant::now() < until, "a URL works after its end");
    }
    bucket.delete(object).await?;
    bucket.delete(object).await?;
    assert_eq!(bucket.stream_bytes(object).await?, None);
    assert_eq!(client.get(&url).send().await?.status(), StatusCode::NOT_FOUND);
    Ok(())
}

async fn multipart(bucket: &Bucket, client: &reqwest::Client) -> Result<()> {
    let bytes = fresh_noise((40 << 20) + 5);
    let object = object_of(&bytes);
    let UploadPlan::Multipart(plan) = bucket.plan_upload(&request(object), None).await? else {
        anyhow::bail!("a large object goes in parts")
    };
    assert_eq!((plan.part_count, plan.urls.len(), plan.first_part), (3, 3, 0));
    let part = |index: usize| bytes.chunks(plan.part_bytes as usize).nth(index).unwrap().to_vec();
    let put = async |url: &str, index: usize| -> Result<String> {
        let answer = client.put(url).body(part(index)).send().await?;
        assert_eq!(answer.status(), StatusCode::OK);
        Ok(answer.headers()["etag"].to_str()?.to_owned())
    };
    let second = put(&plan.urls[1], 1).await?;
    let first = put(&plan.urls[0], 0).await?;
    // Later, with fresh URLs for what is left.
    let again = UploadRequest { upload_id: Some(plan.upload_id.clone()), first_part: 2, ..request(object) };
    let UploadPlan::Multipart(MultipartPlan { upload_id, urls, first_part: 2, .. }) =
        bucket.plan_upload(&again, None).await?
    else {
        anyhow::bail!("the upload goes on")
    };
    assert_eq!(upload_id, plan.upload_id);
    assert_eq!(bucket.stream_bytes(object).await?, None, "parts are no object");
    let third = put(&urls[0], 2).await?;
    let etags = [first, second, third];
    assert!(bucket.complete_upload(object, object.bytes, Some(&upload_id), &etags[..2]).await.is_err());
    // S3 counts an upload of fewer parts as whole; the length tells, and it is not taken for the object.
    let id = match bucket.stream_bytes(object).await? {
        None => upload_id,
        Some(_) => {
            let UploadPlan::Multipart(plan) = bucket.plan_upload(&request(object), None).await? else {
                anyhow::bail!("a broken object is uploaded again")
            };
            for index in 0..3 {
                put(&plan.urls[index], index).await?;
            }
            plan.upload_id
        }
    };
    bucket.complete_upload(object, object.bytes, Some(&id), &etags).await?;
    bucket.complete_upload(object, object.bytes, Some(&id), &etags).await?;
    let read: Vec<bytes::Bytes> = bucket.get_stream(object, Some(5..(20 << 20))).await?.try_collect().await?;
    assert!(read.concat() == bytes[5..20 << 20]);
    bucket.delete(object).await?;

    let UploadPlan::Multipart(plan) = bucket.plan_upload(&request(object), None).await? else {
        anyhow::bail!("a large object goes in parts")
    };
    bucket.abort_upload(object, &plan.upload_id).await?;
    bucket.abort_upload(object, &plan.upload_id).await?;
    assert_eq!(client.put(&plan.urls[0]).body(part(0)).send().await?.status(), StatusCode::NOT_FOUND);
    Ok(())
}

async fn streams(bucket: &Bucket) -> Result<()> {
    for length in [0, 1_000, 40 << 20] {
        let bytes = fresh_noise(length);
        let object = object_of(&bytes);
        let mut wrong = bytes.clone();
        wrong.push(1);
        assert!(matches!(bucket.put_stream(object, stream(wrong)).await, Err(BucketError::Corrupt { .. })));
        if length > 0 {
            assert_eq!(bucket.stream_bytes(object).await?, None);
        }
        assert_eq!(bucket.put_stream(object, stream(bytes.clone())).await?, length as u64);
        assert!(bucket.list_all().await?.contains(&(object, object.bytes)));
        let read: Vec<bytes::Bytes> = bucket.get_stream(object, None).await?.try_collect().await?;
        assert!(read.concat() == bytes);
        bucket.delete(object).await?;
        assert!(matches!(bucket.get_stream(object, None).await, Err(BucketError::NotFound(_))));
    }
    Ok(())
}

async fn whole_transfers(bucket: &Bucket, expired: &Bucket) -> Result<()> {
    let (from, to) = (Site::new()?, Site::new()?);
    let minter = Minter::new(bucket);
    from.write("tree/large", &fresh_noise(40 << 20))?;
    from.write("tree/small", &fresh_noise(100))?;
    let tree = from.store.ingest(&from.path("tree"))?.object;
    let file = from.store.ingest(&from.write("file", &fresh_noise(1_000))?)?.object;
    for (number, object) in [tree, file].into_iter().enumerate() {
        minter.first.lock().unwrap().push(expired.clone());
        let transfer = TransferId::from_bits(number as u128);
        transfers(&from.store, &minter, quick())?.push(transfer, object).await?;
        transfers(&to.store, &minter, quick())?.fetch(object).await?;
        to.store.scrub(object)?;
        bucket.delete(object).await?;
    }
    assert_eq!(minter.completed.load(Ordering::Relaxed), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_holds_the_promises_of_a_bucket() -> Result<()> {
    let served = Served::start().await?;
    holds_its_promises(&served.bucket, &served.expired).await?;
    assert_eq!(served.bucket.list_all().await?, []);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_holds_the_promises_of_a_bucket() -> Result<()> {
    let Ok(url) = std::env::var("ATOLL_TEST_S3") else {
        println!("ATOLL_TEST_S3 names no bucket; nothing is asked of S3");
        return Ok(());
    };
    let bucket = Bucket::open(&url, BucketOptions::default())?;
    let short = BucketOptions { url_lifetime: Duration::from_secs(1), ..BucketOptions::default() };
    holds_its_promises(&bucket, &Bucket::open(&url, short)?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_directory_refuses_is_refused_in_plain_words() -> Result<()> {
    let served = Served::start().await?;
    let client = reqwest::Client::builder().build()?;
    let bytes = noise(1_000, 1);
    let object = object_of(&bytes);
    let text = async |request: reqwest::RequestBuilder| -> Result<(u16, String)> {
        let answer = request.send().await?;
        Ok((answer.status().as_u16(), answer.text().await?.trim().to_owned()))
    };
    let url = served.bucket.mint_download(object).await?.url;
    assert_eq!(text(client.get(&url)).await?, (404, "the object is not in the bucket".to_owned()));
    let expired = served.expired.mint_download(object).await?.url;
    assert_eq!(text(client.get(expired)).await?, (403, "this URL has expired; ask for a fresh one".to_owned()));
    let wrong = (403, "the signature is not that of this URL, method and object".to_owned());
    assert_eq!(text(client.delete(&url)).await?, wrong);
    assert_eq!(text(client.get(url.split('?').next().unwrap())).await?, wrong);
    let root = format!("http://{}/bucket", served.address);
    let no_object = (404, "this is not the path of an object".to_owned());
    for path in ["o/aa/short", ".uploads/x", "o/..%2f..%2fetc/passwd", "x/aa/bb"] {
        assert_eq!(text(client.get(format!("{root}/{path}"))).await?, no_object);
    }
    let UploadPlan::Single { url, .. } = served.bucket.plan_upload(&request(object), None).await? else {
        anyhow::bail!("a small object goes in one request")
    };
    let exactly = (400, "this URL is for exactly 1000 bytes".to_owned());
    assert_eq!(text(client.put(&url).body(noise(1_001, 1))).await?, exactly);
    assert_eq!(text(client.put(&url).body(noise(10, 1))).await?, exactly);
    assert_eq!(served.bucket.stream_bytes(object).await?, None);
    assert_eq!(std::fs::read_dir(served.folder.path().join(".uploads"))?.count(), 0);
    Ok(())
}
