//! Google Cloud Storage.

use std::path::{Path, PathBuf};

use object_store::gcp::{GoogleCloudStorage, GoogleCloudStorageBuilder};
use serde::Deserialize;

use super::{read_credentials, settings_error};
use crate::bucket::BucketError;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcsOptions {
    /// `http://host:port` of an emulator. The URLs of agents are signed for Google's own host whatever it is.
    pub endpoint: Option<String>,
    /// The key file of a service account, as Google hands it out (JSON). Without it the environment counts
    /// (`GOOGLE_APPLICATION_CREDENTIALS`, `GOOGLE_SERVICE_ACCOUNT`), then what `gcloud auth application-default login` has
    /// left, then the machine's own service account.
    pub credentials_file: Option<PathBuf>,
}

pub(super) fn open(name: &str, options: &GcsOptions) -> Result<GoogleCloudStorage, BucketError> {
    let mut builder = match &options.credentials_file {
        Some(path) => GoogleCloudStorageBuilder::new().with_service_account_key(service_account(path)?),
        None => GoogleCloudStorageBuilder::from_env(),
    };
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_base_url(endpoint.trim_end_matches('/'));
    }
    let help = "; name the key file of a service account as credentials_file under [gcs], or as GOOGLE_APPLICATION_CREDENTIALS";
    builder.with_bucket_name(name).build().map_err(|error| settings_error(&error, help))
}

/// The text of a file that holds a key with which URLs can be signed: other credentials of Google's have none.
fn service_account(path: &Path) -> Result<String, BucketError> {
    #[derive(Deserialize)]
    struct Kind {
        r#type: String,
    }

    let text = read_credentials(path)?;
    let refused = |what: String| {
        BucketError::Settings(format!(
            "{} {what}; the key file of a service account has \"type\": \"service_account\"",
            path.display()
        ))
    };
    match serde_json::from_str::<Kind>(&text) {
        Ok(kind) if kind.r#type == "service_account" => Ok(text),
        Ok(kind) => Err(refused(format!("holds credentials of the type {:?}, which cannot sign URLs", kind.r#type))),
        Err(error) => Err(refused(format!("is no file of credentials of Google's ({error})"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_that_cannot_sign_are_refused_with_what_would_do() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("credentials.json");
        let options = GcsOptions { credentials_file: Some(path.clone()), ..GcsOptions::default() };
        for (text, said) in [
            (r#"{"type": "authorized_user", "refresh_token": "x"}"#, "\"authorized_user\", which cannot sign URLs"),
            (r#"{"type": "external_account"}"#, "\"external_account\", which cannot sign URLs"),
            ("aws_access_key_id = x", "is no file of credentials of Google's"),
            (r#"{"type": "service_account"}"#, "missing field `private_key`"),
        ] {
            std::fs::write(&path, text)?;
            let error = open("bucket", &options).expect_err("no URL can be signed with it").to_string();
            assert!(error.contains(said) && error.contains("service account"), "{error}");
        }
        Ok(())
    }
}
