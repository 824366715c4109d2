//! Publishing in a bucket of somebody else's: a file under a key, a directory as everything below one.
//!
//! With each file goes the digest of its content, so that what is there already is told apart without being read.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atoll_model::workflow::OutsideUrl;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::{Path as Key, PathPart};
use object_store::{Attribute, Attributes, GetOptions, ObjectStore, PutMultipartOptions, PutOptions, WriteMultipart};
use tokio_util::sync::CancellationToken;

use super::{PublishError, open_file};
use crate::bucket;

/// Says what a file holds: its BLAKE3 digest. Azure takes no `-` in such a name, and some S3 servers no `_`.
const CONTENT: Attribute = Attribute::Metadata(std::borrow::Cow::Borrowed("atollblake3"));
/// Files of a directory that go at the same time.
const AT_ONCE: usize = 8;
/// A file that is not larger goes in one piece.
const PART_BYTES: usize = 8 << 20;
/// What S3 and Google take of one file; Azure takes more.
const PARTS_MAX: u64 = 10_000;
/// Of one file, in memory.
const IN_FLIGHT_BYTES: usize = 32 << 20;
/// Names of them are held in memory.
const FILES_MAX: usize = 1_000_000;

/// Publishes what stands at `from`, which nobody changes meanwhile, under the key of the URL. The keys of the bucket are
/// those of this process's environment, as the provider's own tools read them.
///
/// # Errors
/// When something else is there, which is not to be overwritten, or the bucket refuses. Of a directory, files may be there
/// then.
pub async fn publish_in_bucket(
    from: &Path,
    url: &OutsideUrl,
    overwrite: bool,
    given_up: &CancellationToken,
) -> Result<(), PublishError> {
    let target = Target::open(url)?;
    let files = target.files(from)?;
    let standing = target.standing(&files, from.is_dir(), overwrite);
    let standing = given_up.run_until_cancelled(standing).await.ok_or(PublishError::GivenUp)??;
    let stop = given_up.child_token();
    let files = files.iter().map(|(key, path)| target.publish(key, path, standing.get(key), overwrite, &stop));
    let mut published = futures::stream::iter(files).buffer_unordered(AT_ONCE);
    let mut result = Ok(());
    while let Some(one) = published.next().await {
        if one.is_err() && result.is_ok() {
            // The others take back what they have sent in part.
            stop.cancel();
            result = one;
        }
    }
    result
}

struct Target {
    store: Arc<dyn ObjectStore>,
    bucket: String,
    key: Key,
    url: OutsideUrl,
}

impl Target {
    fn open(url: &OutsideUrl) -> Result<Self, PublishError> {
        let refused = |message: String| PublishError::Refused { place: url.to_string(), message };
        let (name, key) = url.in_bucket().ok_or_else(|| refused("only a bucket is published to".to_owned()))?;
        let key = Key::parse(key.trim_end_matches('/')).map_err(|error| refused(error.to_string()))?;
        let store = bucket::open_outside(url.scheme(), name).map_err(|error| refused(error.to_string()))?;
        Ok(Self { store, bucket: name.to_owned(), key, url: url.clone() })
    }

    fn shown(&self, key: &Key) -> String {
        format!("{}://{}/{key}", self.url.scheme(), self.bucket)
    }

    fn failed(&self, key: &Key) -> impl FnOnce(object_store::Error) -> PublishError {
        let url = self.shown(key);
        move |error| PublishError::Bucket { url, message: error.to_string() }
    }

    /// Every file that is to be there, by its key.
    fn files(&self, from: &Path) -> Result<BTreeMap<Key, PathBuf>, PublishError> {
        let mut files = BTreeMap::new();
        if from.is_dir() {
            self.add_folder(from, &self.key, &mut files)?;
        } else if self.key == Key::default() || self.url.as_str().ends_with('/') {
            let message = "it does not say what the file is to be called".to_owned();
            return Err(PublishError::Refused { place: self.url.to_string(), message });
        } else {
            files.insert(self.key.clone(), from.to_owned());
        }
        Ok(files)
    }

    fn add_folder(&self, folder: &Path, below: &Key, files: &mut BTreeMap<Key, PathBuf>) -> Result<(), PublishError> {
        for entry in fs::read_dir(folder).map_err(PublishError::disk(folder))? {
            let entry = entry.map_err(PublishError::disk(folder))?;
            let (path, name) = (entry.path(), entry.file_name());
            let refused = |message: &str| {
                let message = format!("{name:?} {message}");
                PublishError::Refused { place: self.url.to_string(), message }
            };
            let part = name.to_str().and_then(|name| PathPart::parse(name).ok());
            let key = below.clone().join(part.ok_or_else(|| refused("cannot be part of a key"))?);
            let kind = entry.file_type().map_err(PublishError::disk(&path))?;
            if kind.is_dir() {
                self.add_folder(&path, &key, files)?;
            } else if kind.is_symlink() {
                return Err(refused("is a link, of which a bucket has none"));
            } else if files.len() == FILES_MAX {
                return Err(refused(&format!("is one file more than {FILES_MAX}")));
            } else {
                files.insert(key, path);
            }
        }
        Ok(())
    }

    /// Of these files, those that are there, with their sizes. What else is there is in the way unless it may stay beside
    /// them.
    async fn standing(
        &self,
        files: &BTreeMap<Key, PathBuf>,
        directory: bool,
        overwrite: bool,
    ) -> Result<BTreeMap<Key, u64>, PublishError> {
        let mut standing = BTreeMap::new();
        if !directory {
            match self.store.get_opts(&self.key, GetOptions { head: true, ..GetOptions::default() }).await {
                Ok(found) => drop(standing.insert(self.key.clone(), found.meta.size)),
                Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(self.failed(&self.key)(error)),
            }
            return Ok(standing);
        }
        let mut listing = self.store.list(Some(&self.key));
        while let Some(found) = listing.try_next().await.map_err(self.failed(&self.key))? {
            if files.contains_key(&found.location) {
                standing.insert(found.location, found.size);
            } else if !overwrite {
                return Err(PublishError::Exists(self.shown(&found.location)));
            }
        }
        Ok(standing)
    }

    async fn publish(
        &self,
        key: &Key,
        path: &Path,
        standing: Option<&u64>,
        overwrite: bool,
        given_up: &CancellationToken,
    ) -> Result<(), PublishError> {
        let (size, content) = given_up.run_until_cancelled(content_of(path)).await.ok_or(PublishError::GivenUp)??;
        if let Some(bytes) = standing {
            let same = async { Ok(*bytes == size && self.content_at(key).await? == content) };
            if given_up.run_until_cancelled(same).await.ok_or(PublishError::GivenUp)?? {
                return Ok(());
            }
            if !overwrite {
                return Err(PublishError::Exists(self.shown(key)));
            }
        }
        let attributes = Attributes::from_iter([(CONTENT, content.to_hex().to_string())]);
        if size <= PART_BYTES as u64 {
            let bytes = fs::read(path).map_err(PublishError::disk(path))?;
            let options = PutOptions { attributes, ..PutOptions::default() };
            let put = self.store.put_opts(key, bytes.into(), options);
            let put = given_up.run_until_cancelled(put).await.ok_or(PublishError::GivenUp)?;
            return put.map(drop).map_err(self.failed(key));
        }
        if given_up.is_cancelled() {
            return Err(PublishError::GivenUp);
        }
        let options = PutMultipartOptions { attributes, ..PutMultipartOptions::default() };
        let upload = self.store.put_multipart_opts(key, options).await.map_err(self.failed(key))?;
        let part_bytes = PART_BYTES.max(usize::try_from(size.div_ceil(PARTS_MAX)).unwrap_or(usize::MAX));
        let mut upload = WriteMultipart::new_with_chunk_size(upload, part_bytes);
        let written = given_up.run_until_cancelled(self.write(key, path, part_bytes, &mut upload)).await;
        match written.unwrap_or(Err(PublishError::GivenUp)) {
            Ok(()) => upload.finish().await.map(drop).map_err(self.failed(key)),
            Err(error) => {
                // The bucket would keep the parts, and somebody pay for them.
                if let Err(error) = upload.abort().await {
                    tracing::warn!(url = self.shown(key), %error, "parts that were sent cannot be taken back");
                }
                Err(error)
            }
        }
    }

    async fn write(
        &self,
        key: &Key,
        path: &Path,
        part_bytes: usize,
        upload: &mut WriteMultipart,
    ) -> Result<(), PublishError> {
        let (mut file, _) = open_file(path).map_err(PublishError::disk(path))?;
        let mut part = vec![0; PART_BYTES];
        loop {
            let read = file.read(&mut part).map_err(PublishError::disk(path))?;
            if read == 0 {
                return Ok(());
            }
            upload.wait_for_capacity((IN_FLIGHT_BYTES / part_bytes).max(1)).await.map_err(self.failed(key))?;
            upload.write(&part[..read]);
        }
    }

    /// What the file under a key holds: as it says, or as its bytes do.
    async fn content_at(&self, key: &Key) -> Result<blake3::Hash, PublishError> {
        let head = GetOptions { head: true, ..GetOptions::default() };
        let found = self.store.get_opts(key, head).await.map_err(self.failed(key))?;
        let said = found.attributes.get(&CONTENT).and_then(|said| blake3::Hash::from_hex(said.as_ref()).ok());
        if let Some(said) = said {
            return Ok(said);
        }
        let mut hasher = blake3::Hasher::new();
        let found = self.store.get_opts(key, GetOptions::default()).await.map_err(self.failed(key))?;
        let mut bytes = found.into_stream();
        while let Some(part) = bytes.try_next().await.map_err(self.failed(key))? {
            hasher.update(&part);
        }
        Ok(hasher.finalize())
    }
}

/// Reads it on another thread, so that what is being sent goes on.
async fn content_of(path: &Path) -> Result<(u64, blake3::Hash), PublishError> {
    let from = path.to_owned();
    let read = move || {
        let (mut file, metadata) = open_file(&from)?;
        let mut hasher = blake3::Hasher::new();
        io::copy(&mut file, &mut hasher)?;
        Ok((metadata.len(), hasher.finalize()))
    };
    let read = tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| Err(io::Error::other(error)));
    read.map_err(PublishError::disk(path))
}
