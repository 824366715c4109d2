//! S3, and whatever speaks as it does.

use std::path::PathBuf;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};

use super::{is_plain_http, read_credentials, settings_error};
use crate::bucket::BucketError;

/// What is not said comes from the environment's `AWS_…`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct S3Options {
    /// `http://host:port` of a server other than Amazon's; addressed path-style.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    /// A file as the AWS tools write it (`aws_access_key_id = …`, `aws_secret_access_key = …`, and optionally
    /// `aws_session_token`, `region`, `endpoint_url`).
    pub credentials_file: Option<PathBuf>,
}

pub(super) fn open(name: &str, options: &S3Options) -> Result<AmazonS3, BucketError> {
    let mut builder = AmazonS3Builder::from_env();
    if let Some(path) = &options.credentials_file {
        for (key, value) in credentials(&read_credentials(path)?) {
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
        .is_some_and(|endpoint| is_plain_http(&endpoint));
    builder = builder.with_bucket_name(name).with_virtual_hosted_style_request(false).with_allow_http(plain);
    builder.build().map_err(|error| settings_error(&error, ""))
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
}
