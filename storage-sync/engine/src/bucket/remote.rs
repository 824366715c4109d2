//! Buckets that agents talk to themselves, under URLs that are signed with the server's credentials.

use std::sync::Arc;
use std::time::Duration;

use atoll_model::value::ObjectRef;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use object_store::ObjectStore;
use object_store::multipart::PartId;
use object_store::path::Path;
use object_store::signer::{Method, SignedUrlOptions};

use super::directory::random_name;
use super::provider::{Provider, Store};
use super::{BucketError, PART_URLS_MAX};

/// A signature of Google's takes a millisecond of a processor, or a request where the key is not at hand.
const GCS_URLS_MAX: u32 = 50;
/// Of Azure's ids of uploads, which are ours. With the number of a part they have as many characters as those that
/// object_store makes: all of one blob's blocks must have equally many.
const AZURE_UPLOAD_CHARACTERS: usize = 24;

#[derive(Debug, Clone)]
pub(super) struct Remote {
    provider: Provider,
    store: Arc<dyn Store>,
}

impl Remote {
    pub(super) fn new(provider: Provider, store: Arc<dyn Store>) -> Self {
        Self { provider, store }
    }

    pub(super) fn provider(&self) -> Provider {
        self.provider
    }

    pub(super) fn store(&self) -> &dyn ObjectStore {
        self.store.as_ref()
    }

    /// For a GET, or the PUT of a whole object, which takes [`Self::put_headers`].
    pub(super) async fn url(&self, method: Method, path: &Path, lifetime: Duration) -> Result<String, BucketError> {
        let signed = self.store.signed_url(method, path, lifetime).await;
        signed.map(String::from).map_err(|error| self.unsigned(error))
    }

    pub(super) fn put_headers(&self) -> Vec<(String, String)> {
        match self.provider {
            Provider::S3 | Provider::Gcs => Vec::new(),
            Provider::Azure => vec![("x-ms-blob-type".to_owned(), "BlockBlob".to_owned())],
        }
    }

    /// How many URLs of parts one plan holds at most.
    pub(super) fn part_urls_max(&self) -> u32 {
        match self.provider {
            Provider::S3 | Provider::Azure => PART_URLS_MAX,
            Provider::Gcs => GCS_URLS_MAX,
        }
    }

    /// For the PUT of a part, counted from 0.
    pub(super) async fn part_url(
        &self,
        path: &Path,
        upload: &str,
        part: u32,
        lifetime: Duration,
    ) -> Result<String, BucketError> {
        let signed = match self.provider {
            Provider::S3 | Provider::Gcs => {
                // They count from 1.
                let number = (part + 1).to_string();
                let query = [("partNumber", number.as_str()), ("uploadId", upload)];
                let options = SignedUrlOptions::new().with_query(query);
                self.store.signed_url_opts(Method::PUT, path, lifetime, &options).await
            }
            Provider::Azure => self.store.signed_url(Method::PUT, path, lifetime).await.map(|mut url| {
                let block = STANDARD.encode(block(upload, part));
                url.query_pairs_mut().append_pair("comp", "block").append_pair("blockid", &block);
                url
            }),
        };
        signed.map(String::from).map_err(|error| self.unsigned(error))
    }

    pub(super) async fn begin(&self, path: &Path) -> Result<String, BucketError> {
        match self.provider {
            Provider::S3 | Provider::Gcs => Ok(self.store.create_multipart(path).await?),
            // Azure keeps what is sent of a blob under the ids that its blocks have, and knows no uploads.
            Provider::Azure => {
                let mut id = random_name();
                id.truncate(AZURE_UPLOAD_CHARACTERS);
                Ok(id)
            }
        }
    }

    /// Whether it may be an upload of this provider's: after another bucket took the place of the one before, ids come back
    /// that are not.
    pub(super) fn is_upload(&self, id: &str) -> bool {
        match self.provider {
            Provider::S3 | Provider::Gcs => true,
            Provider::Azure => id.len() == AZURE_UPLOAD_CHARACTERS && id.bytes().all(|byte| byte.is_ascii_hexdigit()),
        }
    }

    /// `etags` are those of all parts.
    pub(super) async fn complete(
        &self,
        object: ObjectRef,
        path: &Path,
        upload: &str,
        etags: &[String],
    ) -> Result<(), BucketError> {
        let part = |content_id| PartId { content_id };
        let parts = match self.provider {
            Provider::S3 | Provider::Gcs => etags.iter().cloned().map(part).collect(),
            // Azure gives blocks no tags: it is asked for those of this upload, and refuses if one is not there.
            Provider::Azure => (0..etags.len() as u32).map(|number| part(block(upload, number))).collect(),
        };
        match self.store.complete_multipart(path, &upload.to_owned(), parts).await {
            Ok(_) => Ok(()),
            Err(error) if is_upload_lost(&error) => {
                let message = "the bucket does not know the upload, or not all of its parts, any more".to_owned();
                Err(BucketError::Incomplete { object, message })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// With Azure there is nothing to do: it drops blocks of which nothing was made after a week.
    pub(super) async fn abort(&self, path: &Path, upload: &str) -> Result<(), BucketError> {
        match self.store.abort_multipart(path, &upload.to_owned()).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn unsigned(&self, source: object_store::Error) -> BucketError {
        let message = format!("no URLs can be signed for agents: {}", self.provider.signs_with());
        BucketError::Unusable { message, source }
    }
}

/// Names what an upload sends as one of its parts, so that nothing of an older upload is taken for it.
fn block(upload: &str, part: u32) -> String {
    format!("{upload}{part:08x}")
}

/// Whether it cannot be gone on with, so that it has to begin again.
fn is_upload_lost(error: &object_store::Error) -> bool {
    const CODES: [&str; 4] = ["NoSuchUpload", "InvalidPart", "EntityTooSmall", "InvalidBlockList"];
    matches!(error, object_store::Error::NotFound { .. }) || says(error, &CODES)
}

/// Whether a provider's answer has one of these texts: of most answers object_store keeps nothing else.
pub(super) fn says(error: &object_store::Error, texts: &[&str]) -> bool {
    let message = error.to_string();
    texts.iter().any(|text| message.contains(text))
}
