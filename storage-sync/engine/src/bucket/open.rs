use std::path::Path as FilePath;
use std::sync::Arc;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::path::Path;

use super::directory::Directory;
use super::{Backend, Bucket, BucketError, BucketOptions};

pub(super) fn open(url: &str, options: BucketOptions) -> Result<Bucket, BucketError> {
    let url_lifetime = options.url_lifetime;
    if let Some(rest) = url.strip_prefix("s3://") {
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if name.is_empty() {
            return Err(BucketError::Settings(format!(
                "{url} names no bucket; write s3://BUCKET or s3://BUCKET/PREFIX"
            )));
        }
        let prefix = Path::parse(prefix).map_err(|error| BucketError::Settings(format!("{url}: {error}")))?;
        let s3 = s3(name, &options)?;
        return Ok(Bucket { backend: Backend::S3(Arc::new(s3)), prefix, url_lifetime });
    }
    let path = match (url.strip_prefix("file://"), url.contains("://")) {
        (Some(path), _) => path,
        (None, false) => url,
        (None, true) => {
            return Err(BucketError::Settings(format!(
                "{url}: a bucket is s3://BUCKET/PREFIX, file:///DIR, or a path"
            )));
        }
    };
    if options.serve_url.is_empty() {
        return Err(BucketError::Settings("a directory needs the address at which it is served".to_owned()));
    }
    let directory = Directory::open(FilePath::new(path), &options)?;
    Ok(Bucket { backend: Backend::Directory(Arc::new(directory)), prefix: Path::default(), url_lifetime })
}

/// A bucket of somebody else's, with what the environment says of it.
pub(crate) fn open_s3(name: &str) -> Result<object_store::aws::AmazonS3, BucketError> {
    s3(name, &BucketOptions::default())
}

fn s3(name: &str, options: &BucketOptions) -> Result<object_store::aws::AmazonS3, BucketError> {
    let mut builder = AmazonS3Builder::from_env();
    if let Some(path) = &options.credentials_file {
        let text = std::fs::read_to_string(path)
            .map_err(BucketError::io(format!("the bucket's credentials cannot be read from {}", path.display())))?;
        for (key, value) in credentials(&text) {
            builder = builder.with_config(key, value);
        }
    }
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(region) = &options.region {
        builder = builder.with_region(region);
    }
    let plain = builder
        .get_config_value(&AmazonS3ConfigKey::Endpoint)
        .or_else(|| builder.get_config_value(&AmazonS3ConfigKey::S3Endpoint))
        .is_some_and(|endpoint| endpoint.starts_with("http://"));
    builder = builder.with_bucket_name(name).with_virtual_hosted_style_request(false).with_allow_http(plain);
    builder.build().map_err(|error| BucketError::Settings(error.to_string()))
}

/// What a file in the format of the AWS tools says: lines of `key = value`, of its first profile or the default one.
fn credentials(text: &str) -> Vec<(AmazonS3ConfigKey, String)> {
    let mut profile = "default";
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            profile = name.trim();
        } else if let Some((key, value)) = line.split_once('=')
            && profile == "default"
            && !line.starts_with(['#', ';'])
        {
            let key = match key.trim() {
                "aws_access_key_id" => AmazonS3ConfigKey::AccessKeyId,
                "aws_secret_access_key" => AmazonS3ConfigKey::SecretAccessKey,
                "aws_session_token" => AmazonS3ConfigKey::Token,
                "region" => AmazonS3ConfigKey::Region,
                "endpoint_url" => AmazonS3ConfigKey::Endpoint,
                // Settings that other tools read.
                _ => continue,
            };
            found.push((key, value.trim().to_owned()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_read_as_the_aws_tools_write_them() {
        let text = "[default]\naws_access_key_id = AK\n# a comment = x\naws_secret_access_key=s=e/c\nregion = eu\n\n\
                    [other]\naws_access_key_id = NO\n";
        assert_eq!(
            credentials(text),
            [
                (AmazonS3ConfigKey::AccessKeyId, "AK".to_owned()),
                (AmazonS3ConfigKey::SecretAccessKey, "s=e/c".to_owned()),
                (AmazonS3ConfigKey::Region, "eu".to_owned()),
            ]
        );
    }

    #[test]
    fn a_bucket_that_is_none_is_said_so() {
        for url in ["s3://", "gs://x", "ftp://x/y", "/tmp/without-an-address"] {
            let error = open(url, BucketOptions::default()).expect_err("it is no bucket");
            assert!(matches!(error, BucketError::Settings(_)), "{url}: {error}");
        }
    }
}
