//! The emulator that tests/parts/azurite-up.sh starts, as the environment says.

use object_store::azure::{MicrosoftAzure, MicrosoftAzureBuilder};
use storage_sync_engine::bucket::AzureOptions;

pub(crate) struct Azurite {
    /// `az://CONTAINER`.
    pub(crate) url: String,
    pub(crate) account: String,
    pub(crate) key: String,
    pub(crate) endpoint: String,
}

impl Azurite {
    pub(crate) fn found() -> Option<Self> {
        let Ok(url) = std::env::var("ATOLL_TEST_AZURE") else {
            println!("SKIPPED: no Azurite; tests/run.sh starts one and sets ATOLL_TEST_AZURE");
            return None;
        };
        let text = std::env::var("AZURE_STORAGE_CONNECTION_STRING").expect("it comes with ATOLL_TEST_AZURE");
        let field = |wanted: &str| {
            let mut fields = text.split(';').filter_map(|field| field.split_once('='));
            fields.find_map(|(name, value)| (name == wanted).then(|| value.to_owned())).expect("the script writes it")
        };
        let (account, key, endpoint) = (field("AccountName"), field("AccountKey"), field("BlobEndpoint"));
        Some(Self { url, account, key, endpoint })
    }

    /// The container, beside what Atoll makes of it.
    pub(crate) fn store(&self) -> object_store::Result<MicrosoftAzure> {
        MicrosoftAzureBuilder::new()
            .with_account(&self.account)
            .with_access_key(&self.key)
            .with_endpoint(self.endpoint.clone())
            .with_container_name(self.url.split('/').nth(2).unwrap_or_default())
            .with_allow_http(true)
            .build()
    }

    /// Reached with the credentials of a file.
    pub(crate) fn options(&self, credentials: &std::path::Path) -> AzureOptions {
        AzureOptions {
            account: Some(self.account.clone()),
            endpoint: Some(self.endpoint.clone()),
            credentials_file: Some(credentials.to_owned()),
        }
    }
}
