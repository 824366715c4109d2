use std::path::Path as FilePath;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::path::Path;

use super::directory::Directory;
use super::provider::Provider;
use super::remote::Remote;
use super::{Backend, Bucket, BucketError, BucketOptions};

pub(super) fn open(url: &str, options: BucketOptions) -> Result<Bucket, BucketError> {
    let url_lifetime = options.url_lifetime;
    let Some((scheme, rest)) = url.split_once("://") else { return open_directory(url, &options) };
    if scheme == "file" {
        return open_directory(rest, &options);
    }
    let provider = Provider::of_scheme(scheme).ok_or_else(|| {
        BucketError::Settings(format!(
            "{url}: a bucket is s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX, file:///DIR, or a path"
        ))
    })?;
    let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if name.is_empty() {
        let word = provider.word();
        let upper = word.to_uppercase();
        return Err(BucketError::Settings(format!(
            "{url} names no {word}; write {scheme}://{upper} or {scheme}://{upper}/PREFIX"
        )));
    }
    let prefix = Path::parse(prefix).map_err(|error| BucketError::Settings(format!("{url}: {error}")))?;
    let store = provider.open(name, &options)?;
    Ok(Bucket { backend: Backend::Remote(Remote::new(provider, store)), prefix, url_lifetime })
}

fn open_directory(path: &str, options: &BucketOptions) -> Result<Bucket, BucketError> {
    if options.serve_url.is_empty() {
        return Err(BucketError::Settings("a directory needs the address at which it is served".to_owned()));
    }
    let directory = Directory::open(FilePath::new(path), options)?;
    let backend = Backend::Directory(Arc::new(directory));
    Ok(Bucket { backend, prefix: Path::default(), url_lifetime: options.url_lifetime })
}

/// A bucket of somebody else's, with what the environment says of it.
pub(crate) fn open_outside(scheme: &str, name: &str) -> Result<Arc<dyn ObjectStore>, BucketError> {
    let provider =
        Provider::of_scheme(scheme).ok_or_else(|| BucketError::Settings(format!("{scheme}://{name} is no bucket")))?;
    Ok(provider.open(name, &BucketOptions::default())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_that_is_none_is_said_so() {
        for (url, said) in [
            ("s3://", "names no bucket; write s3://BUCKET or s3://BUCKET/PREFIX"),
            ("gs:///prefix", "names no bucket; write gs://BUCKET or gs://BUCKET/PREFIX"),
            ("az://", "names no container; write az://CONTAINER or az://CONTAINER/PREFIX"),
            ("ftp://x/y", "a bucket is s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX, file:///DIR"),
            ("gcs://x", "a bucket is s3://BUCKET/PREFIX"),
            ("/tmp/without-an-address", "a directory needs the address at which it is served"),
        ] {
            let error = open(url, BucketOptions::default()).expect_err("it is no bucket");
            assert!(matches!(error, BucketError::Settings(_)), "{url}: {error}");
            assert!(error.to_string().contains(said), "{url}: {error}");
        }
    }
}
