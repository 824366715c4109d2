//! The S3 server that tests/parts/ceph-up.sh starts, as the environment says.

use object_store::aws::{AmazonS3, AmazonS3Builder};

/// `s3://BUCKET/PREFIX` on that server; nothing, loudly, without one.
pub(crate) fn url() -> Option<String> {
    let url = std::env::var("ATOLL_TEST_S3").ok();
    if url.is_none() {
        println!("SKIPPED: no S3 server; tests/run.sh starts one and sets ATOLL_TEST_S3");
    }
    url
}

/// The bucket, beside what Atoll makes of it.
pub(crate) fn store(url: &str) -> object_store::Result<AmazonS3> {
    AmazonS3Builder::from_env()
        .with_bucket_name(url.split('/').nth(2).unwrap_or_default())
        .with_virtual_hosted_style_request(false)
        .with_allow_http(true)
        .build()
}
