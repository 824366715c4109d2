//! Who runs a bucket that is no directory of the server's, and how it is opened.

mod azure;
mod gcs;
mod s3;

use std::path::Path as FilePath;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::multipart::MultipartStore;
use object_store::signer::Signer;

pub use self::azure::AzureOptions;
pub use self::gcs::GcsOptions;
pub use self::s3::S3Options;
use super::{BucketError, BucketOptions};

/// All that is asked of a provider.
pub(super) trait Store: ObjectStore + MultipartStore + Signer {}

impl<T: ObjectStore + MultipartStore + Signer> Store for T {}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Provider {
    S3,
    Gcs,
    Azure,
}

impl Provider {
    const ALL: [Self; 3] = [Self::S3, Self::Gcs, Self::Azure];

    pub(super) fn of_scheme(scheme: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|provider| provider.scheme() == scheme)
    }

    pub(super) fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gcs => "gs",
            Self::Azure => "az",
        }
    }

    /// What it calls a bucket.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::S3 | Self::Gcs => "bucket",
            Self::Azure => "container",
        }
    }

    pub(super) fn open(self, name: &str, options: &BucketOptions) -> Result<Arc<dyn Store>, BucketError> {
        Ok(match self {
            Self::S3 => Arc::new(s3::open(name, &options.s3)?),
            Self::Gcs => Arc::new(gcs::open(name, &options.gcs)?),
            Self::Azure => Arc::new(azure::open(name, &options.azure)?),
        })
    }

    /// What it takes to make URLs for agents.
    pub(super) fn signs_with(self) -> &'static str {
        match self {
            Self::S3 => "it takes an access key: name the file that holds it as credentials_file under [s3]",
            Self::Gcs => {
                "it takes the key of a service account, whose file is named as credentials_file under [gcs], or a machine \
                 of Google's whose service account may sign (the role iam.serviceAccountTokenCreator on itself)"
            }
            Self::Azure => {
                "it takes the key of the storage account, or an identity that may get user delegation keys (the role \
                 Storage Blob Delegator), in the file that is named as credentials_file under [azure]; a SAS cannot sign"
            }
        }
    }
}

fn read_credentials(path: &FilePath) -> Result<String, BucketError> {
    std::fs::read_to_string(path)
        .map_err(BucketError::io(format!("the bucket's credentials cannot be read from {}", path.display())))
}

/// object_store's messages hold those of what caused them.
fn settings_error(error: &object_store::Error, help: &str) -> BucketError {
    BucketError::Settings(format!("{error}{help}"))
}

fn is_plain_http(endpoint: &str) -> bool {
    endpoint.starts_with("http://")
}
