//! The bucket's promises, the same for a directory, S3, Google's and Azure's storage.
//!
//! With `ATOLL_TEST_S3=s3://bucket/prefix` they are asked of that bucket too; the endpoint, region and keys are the
//! environment's `AWS_…`. With `ATOLL_TEST_AZURE=az://container` of that container; its account is the environment's
//! `AZURE_STORAGE_CONNECTION_STRING`. Google's own service was never asked: see `support/google.rs`.
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
    Bucket, BucketError, BucketOptions, ByteStream, GcsOptions, MultipartPlan, UploadPlan, UploadRequest,
};
use storage_sync_engine::stream::pack;
use support::azurite::Azurite;
use support::google::{Google, HOST, Refused, check_url};
use support::server::{Minter, Served, quick, transfers};
use support::{Site, noise, s3};

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

/// `given_up` is what is answered to a part of an upload that was given up.
async fn holds_its_promises(bucket: &Bucket, expired: &Bucket, given_up: StatusCode) -> Result<()> {
    bucket.check().await?;
    let client = reqwest::Client::builder().build()?;
    single_put(bucket, expired, &client).await?;
    multipart(bucket, &client).await?;
    begun_anew(bucket, &client, given_up).await?;
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
    let put = |url: &str| {
        let put = client.put(url).body(bytes.clone());
        headers.iter().fold(put, |put, (name, value)| put.header(name, value))
    };
    assert_eq!(put(&elsewhere).send().await?.status(), StatusCode::FORBIDDEN);
    assert!(put(&url).send().await?.status().is_success());
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
    assert_eq!(put(&url).send().await?.status(), StatusCode::FORBIDDEN);
    let mut tampered = url.clone();
    let last = tampered.pop().context("a URL is not empty")?;
    tampered.push(if last == '0' || last == 'A' { 'B' } else { '0' });
    assert_eq!(client.get(&tampered).send().await?.status(), StatusCode::FORBIDDEN);
    let old = expired.mint_download(object).await?.url;
    // S3 knows no shorter life than a second.
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        match client.get(&old).send().await?.status() {
            StatusCode::OK => anyhow::ensure!(Instant::now() < until, "a URL works after its end"),
            // Which it is, is for each to say: either has agents ask for a fresh one.
            StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => break,
            other => anyhow::bail!("a URL that has expired is answered with {other}"),
        }
    }
    bucket.delete(object).await?;
    bucket.delete(object).await?;
    assert_eq!(bucket.stream_bytes(object).await?, None);
    assert_eq!(client.get(&url).send().await?.status(), StatusCode::NOT_FOUND);
    Ok(())
}

async fn put_part(client: &reqwest::Client, url: &str, bytes: &[u8]) -> Result<String> {
    let answer = client.put(url).body(bytes.to_vec()).send().await?;
    assert!(answer.status().is_success(), "{}", answer.status());
    // Not everyone gives parts a tag.
    Ok(answer.headers().get("etag").map_or(Ok(""), |etag| etag.to_str())?.to_owned())
}

async fn multipart(bucket: &Bucket, client: &reqwest::Client) -> Result<()> {
    let bytes = fresh_noise((40 << 20) + 5);
    let object = object_of(&bytes);
    let UploadPlan::Multipart(plan) = bucket.plan_upload(&request(object), None).await? else {
        anyhow::bail!("a large object goes in parts")
    };
    assert_eq!((plan.part_count, plan.urls.len(), plan.first_part), (3, 3, 0));
    let parts: Vec<&[u8]> = bytes.chunks(plan.part_bytes as usize).collect();
    let second = put_part(client, &plan.urls[1], parts[1]).await?;
    let first = put_part(client, &plan.urls[0], parts[0]).await?;
    // Later, with fresh URLs for what is left.
    let again = UploadRequest { upload_id: Some(plan.upload_id.clone()), first_part: 2, ..request(object) };
    let UploadPlan::Multipart(MultipartPlan { upload_id, urls, first_part: 2, .. }) =
        bucket.plan_upload(&again, None).await?
    else {
        anyhow::bail!("the upload goes on")
    };
    assert_eq!(upload_id, plan.upload_id);
    assert_eq!(bucket.stream_bytes(object).await?, None, "parts are no object");
    let third = put_part(client, &urls[0], parts[2]).await?;
    let etags = [first, second, third];
    let fewer = bucket.complete_upload(object, object.bytes, Some(&upload_id), &etags[..2]).await;
    assert!(matches!(fewer, Err(BucketError::Incomplete { .. })), "{fewer:?}");
    assert_eq!(bucket.stream_bytes(object).await?, None, "fewer parts are no object either");
    bucket.complete_upload(object, object.bytes, Some(&upload_id), &etags).await?;
    bucket.complete_upload(object, object.bytes, Some(&upload_id), &etags).await?;
    let read: Vec<bytes::Bytes> = bucket.get_stream(object, Some(5..(20 << 20))).await?.try_collect().await?;
    assert!(read.concat() == bytes[5..20 << 20]);
    bucket.delete(object).await?;
    Ok(())
}

/// An upload that is given up leaves nothing behind that gets into what is brought in afterwards.
async fn begun_anew(bucket: &Bucket, client: &reqwest::Client, given_up: StatusCode) -> Result<()> {
    let bytes = fresh_noise((20 << 20) + 5);
    let object = object_of(&bytes);
    let begin = async || match bucket.plan_upload(&request(object), None).await? {
        UploadPlan::Multipart(plan) => Ok(plan),
        UploadPlan::AlreadyThere | UploadPlan::Single { .. } => anyhow::bail!("a large object goes in parts"),
    };
    let old = begin().await?;
    bucket.abort_upload(object, &old.upload_id).await?;
    bucket.abort_upload(object, &old.upload_id).await?;
    let wrong = noise(old.part_bytes as usize, 7);
    assert_eq!(client.put(&old.urls[0]).body(wrong.clone()).send().await?.status(), given_up);
    // Who cannot say so of a part says so at the end.
    if given_up.is_success() {
        let lost =
            bucket.complete_upload(object, object.bytes, Some(&old.upload_id), &[String::new(), String::new()]).await;
        assert!(matches!(lost, Err(BucketError::Incomplete { .. })), "{lost:?}");
    }
    assert_eq!(bucket.put_stream(object, stream(bytes.clone())).await?, object.bytes);
    bucket.delete(object).await?;

    assert_eq!(client.put(&old.urls[0]).body(wrong).send().await?.status(), given_up);
    let new = begin().await?;
    assert_ne!(new.upload_id, old.upload_id);
    let mut etags = Vec::new();
    for (url, part) in new.urls.iter().zip(bytes.chunks(new.part_bytes as usize)) {
        etags.push(put_part(client, url, part).await?);
    }
    bucket.complete_upload(object, object.bytes, Some(&new.upload_id), &etags).await?;
    let read: Vec<bytes::Bytes> = bucket.get_stream(object, None).await?.try_collect().await?;
    assert!(read.concat() == bytes);
    bucket.delete(object).await?;
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
    holds_its_promises(&served.bucket, &served.expired, StatusCode::NOT_FOUND).await?;
    assert_eq!(served.bucket.list_all().await?, []);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_holds_the_promises_of_a_bucket() -> Result<()> {
    let Some(url) = s3::url() else { return Ok(()) };
    opened_holds_its_promises(&url, BucketOptions::default(), StatusCode::NOT_FOUND).await
}

async fn opened_holds_its_promises(url: &str, options: BucketOptions, given_up: StatusCode) -> Result<()> {
    let bucket = Bucket::open(url, options.clone())?;
    let short = BucketOptions { url_lifetime: Duration::from_secs(1), ..options };
    holds_its_promises(&bucket, &Bucket::open(url, short)?, given_up).await
}

#[tokio::test(flavor = "multi_thread")]
async fn azures_storage_holds_the_promises_of_a_bucket() -> Result<()> {
    let Some(azurite) = Azurite::found() else { return Ok(()) };
    // It knows no uploads: a part is taken, and nothing is made of it.
    let given_up = StatusCode::CREATED;
    opened_holds_its_promises(&azurite.url, BucketOptions::default(), given_up).await?;
    opened_holds_its_promises(&format!("{}/deep/prefix", azurite.url), BucketOptions::default(), given_up).await
}

/// Google's own service was never asked: what it checks is checked as it says that it does, and a real S3 server does the rest.
#[tokio::test(flavor = "multi_thread")]
async fn googles_storage_holds_the_promises_of_a_bucket_as_far_as_it_can_be_had_without_google() -> Result<()> {
    let Some(url) = s3::url() else { return Ok(()) };
    let url = url.replace("s3://", "gs://");
    let name = url["gs://".len()..].split('/').next().unwrap();
    let (endpoint, google) = Google::start(name).await?;
    let folder = tempfile::tempdir()?;
    let options = |credentials: &str| -> Result<BucketOptions> {
        let file = folder.path().join("credentials.json");
        std::fs::write(&file, credentials)?;
        let gcs = GcsOptions { endpoint: Some(endpoint.clone()), credentials_file: Some(file) };
        Ok(BucketOptions { gcs, ..BucketOptions::default() })
    };
    let known = options(&google.credentials)?;
    let bucket = Bucket::open(&format!("{url}/google"), known.clone())?;
    opened_holds_its_promises(&format!("{url}/google"), known, StatusCode::NOT_FOUND).await?;

    // Its signatures are dear, so that a plan holds few of them.
    let object = ObjectRef { bytes: 2 << 30, ..object_of(b"large") };
    let mut asked = request(object);
    for (first_part, urls) in [(0, 50), (100, 28)] {
        asked.first_part = first_part;
        let UploadPlan::Multipart(plan) = bucket.plan_upload(&asked, None).await? else {
            anyhow::bail!("a large object goes in parts")
        };
        assert_eq!((plan.part_count, plan.first_part, plan.urls.len()), (128, first_part, urls));
        asked.upload_id = Some(plan.upload_id);
    }
    bucket.abort_upload(object, asked.upload_id.as_deref().unwrap()).await?;

    let (_, stranger) = Google::start(name).await?;
    let error = Bucket::open(&url, options(&stranger.credentials)?)?.check().await.expect_err("it has another key");
    assert!(error.to_string().contains("refuses the server's credentials"), "{error}");
    Ok(())
}

/// What stands in for Google refuses what Google would and takes what Google would: URLs that Google has published as correct
/// (`storage/v1/v4_signatures.json` of its conformance tests, with the public key of the account that signed them).
#[test]
fn urls_that_google_has_signed_are_recognised() -> Result<()> {
    const KEY: &str = "MIIBCgKCAQEArD8zIqyKLbX0Nq8o0Jj1qHEhHhqO3+0OP7TEFx5Vxc6PdwBoFNrfnJRI/S+ZaDYS1avr5Pqpp8g8+UNOMvI1VsjG\
                       M8xjTaxkVv8mmKp6pSmQstTt25pzY1exA2wv4xNWSwWNFNx2kh35+kvTQ/DF3YA9P7pUU1sKur1PP8OoubWLFO59iy5UE5dX0O/3\
                       pjvZ2HAhSXsx2VWtB5nlrHR8FrKJNLJMEGEDSMz9yRfQaUeYCU9oDYHuiqKQ3rCXi6C82l+3FJw5/ggJ5y7iw8MErCFSslcYQRbB\
                       Vz6ZYKWkEcJhs8BG3/16bfaqNusNlDIJ99I7DmipUngF/HEulYhfrQIDAQAB";
    const SIGNED: [(&str, &str, &str); 2] = [
        (
            "PUT",
            "X-Goog-SignedHeaders=host",
            "8adff1d4285739e31aa68e73767a46bc5511fde377497dbe08481bf5ceb34e29cc9a59921748d8ec3dd4085b7e9b7772a952afedfcdaecb3\
             ae8352275b8b7c867f204e3db85076220a3127a8a9589302fc1181eae13b9b7fe41109ec8cdc93c1e8bac2d7a0cc32a109ca02d069572113\
             26563ab3d3e678a0ba296e298b5fc5e14593c99d444c94724cc4be97015dbff1dca377b508fa0cb7169195de98d0e4ac96c42b918d28c8d9\
             2d33e1bd125ce0fb3cd7ad2c45dae65c22628378f6584971b8bf3945b26f2611eb651e9b6a8648970c1ecf386bb71327b082e7296c4e1ee2\
             fc0bdd8983da80af375c817fb1ad491d0bc22c0f51dba0d66e2cffbc90803e47",
        ),
        (
            "GET",
            "X-Goog-Meta-Foo=bar&X-Goog-SignedHeaders=host&prefix=%2Ffoo",
            "a07745e1b3d59b85cbe11aa766df72c22468959e7217615dccb7f030234f66b60b37e480f30725ed51f29816362ca8286c619ebb66448ff1\
             d370be2a4a48aacf20d3d2d6200ed17341a5791baf2ee5cd9c2823adacc6264f66c8a54fa887e1bce3c55cf78fb2f6a52618cf09d6f945f6\
             3d148052a7b66a75e075ff5065828a806b84bdc49a42399be7483225c720d5e18a6160f79d815f433e7921694fe1d041099851793c2581db\
             0e5ca503cfb566e414f900ceede5f9b22030edd32ab20b6f7f9fb2afba89098b9364e03397c03a94eac3a140c99979b8786844fb4f6c62c1\
             985378939dd1bbaea8e41b9100dda85a27733171cc78d96ee362ea2c3432f4d8",
        ),
    ];
    let key = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, KEY)?;
    // 2019-02-01, nine o'clock.
    let signed_at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_549_011_600);
    for (method, query, signature) in SIGNED {
        let text = format!(
            "https://storage.googleapis.com/test-bucket/test-object?X-Goog-Algorithm=GOOG4-RSA-SHA256&\
             X-Goog-Credential=test-iam-credentials%40dummy-project-id.iam.gserviceaccount.com%2F20190201%2Fauto%2Fstorage\
             %2Fgoog4_request&X-Goog-Date=20190201T090000Z&X-Goog-Expires=10&{query}&X-Goog-Signature={signature}"
        );
        let url: reqwest::Url = text.parse()?;
        let check = |method, url, after| check_url(method, url, HOST, &key, signed_at + Duration::from_secs(after));
        assert_eq!(check(method, &url, 9), Ok(()));
        assert_eq!(check(method, &url, 10), Err(Refused::Expired));
        assert_eq!(check("DELETE", &url, 9), Err(Refused::Signature));
        assert_eq!(check_url(method, &url, "example.org", &key, signed_at), Err(Refused::Signature));
        let other = text.replace("test-object", "other-object").parse()?;
        assert_eq!(check(method, &other, 9), Err(Refused::Signature));
    }
    Ok(())
}

#[tokio::test]
async fn wrong_credentials_and_a_container_that_is_not_there_are_said_so_with_what_to_do() -> Result<()> {
    let Some(azurite) = Azurite::found() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("credentials");
    let error = async |url: &str, key: &str| -> Result<String> {
        std::fs::write(&file, format!("key = {key}\n"))?;
        let options = BucketOptions { azure: azurite.options(&file), ..BucketOptions::default() };
        let error = Bucket::open(url, options)?.check().await.expect_err("it is not to be used");
        assert!(matches!(error, BucketError::Unusable { .. }), "{error:?}");
        Ok(error.to_string())
    };
    let said = error(&azurite.url, "bm90IHRoZSBrZXk=").await?;
    assert!(said.contains("refuses the server's credentials"), "{said}");
    let said = error("az://not-there", &azurite.key).await?;
    assert!(said.contains("there is no such bucket or container: it must be made first"), "{said}");
    Ok(())
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
