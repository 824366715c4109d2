//! Azure Blob Storage.

use std::path::PathBuf;

use object_store::azure::{AzureConfigKey, MicrosoftAzure, MicrosoftAzureBuilder};

use super::{is_plain_http, read_credentials, settings_error};
use crate::bucket::BucketError;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AzureOptions {
    /// Name of the storage account, if neither the credentials nor the environment say it.
    pub account: Option<String>,
    /// Of anything that is not `https://ACCOUNT.blob.core.windows.net`. That of an emulator ends with the account.
    pub endpoint: Option<String>,
    /// Lines of `key = value`: `connection_string`, or `account` and `key`, or `account`, `tenant_id`, `client_id` and
    /// `client_secret`. Without it the environment's `AZURE_…` count, as Azure's tools read them, then the machine's own
    /// identity.
    pub credentials_file: Option<PathBuf>,
}

type Settings = Vec<(AzureConfigKey, String)>;

pub(super) fn open(name: &str, options: &AzureOptions) -> Result<MicrosoftAzure, BucketError> {
    let (mut builder, settings) = match &options.credentials_file {
        Some(path) => {
            let settings = credentials(&read_credentials(path)?)
                .map_err(|error| BucketError::Settings(format!("{}: {error}", path.display())))?;
            (MicrosoftAzureBuilder::new(), settings)
        }
        None => (MicrosoftAzureBuilder::from_env(), environment(|name| std::env::var(name).ok())?),
    };
    for (key, value) in settings {
        builder = builder.with_config(key, value);
    }
    if let Some(account) = &options.account {
        builder = builder.with_account(account);
    }
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    if builder.get_config_value(&AzureConfigKey::AccountName).is_none() {
        return Err(BucketError::Settings(format!(
            "nothing says which storage account has the container {name}: write account under [azure], or set \
             AZURE_STORAGE_ACCOUNT"
        )));
    }
    let plain = builder.get_config_value(&AzureConfigKey::Endpoint).is_some_and(|endpoint| is_plain_http(&endpoint));
    builder = builder.with_container_name(name).with_allow_http(plain);
    builder.build().map_err(|error| settings_error(&error, ""))
}

/// What Azure's command line reads of the environment, beside what object_store does.
fn environment(variable: impl Fn(&str) -> Option<String>) -> Result<Settings, BucketError> {
    let mut found = Settings::new();
    if let Some(text) = variable("AZURE_STORAGE_CONNECTION_STRING") {
        let fields = connection_string(&text);
        found = fields.map_err(|error| BucketError::Settings(format!("AZURE_STORAGE_CONNECTION_STRING: {error}")))?;
    }
    let named =
        [("AZURE_STORAGE_ACCOUNT", AzureConfigKey::AccountName), ("AZURE_STORAGE_KEY", AzureConfigKey::AccessKey)];
    found.extend(named.into_iter().filter_map(|(name, key)| Some((key, variable(name)?))));
    Ok(found)
}

/// What a file of credentials says.
fn credentials(text: &str) -> Result<Settings, String> {
    let mut found = Settings::new();
    for (number, line) in text.lines().map(str::trim).enumerate() {
        if line.is_empty() || line.starts_with(['#', ';', '[']) {
            continue;
        }
        let wrong = |problem: &str| {
            format!(
                "line {}: {problem}; it says connection_string, or account and key, or account, tenant_id, client_id and \
                 client_secret, each as key = value",
                number + 1
            )
        };
        let (key, value) = line.split_once('=').ok_or_else(|| wrong("there is no ="))?;
        let value = value.trim().to_owned();
        match key.trim() {
            "connection_string" => found.extend(connection_string(&value).map_err(|error| wrong(&error))?),
            "account" => found.push((AzureConfigKey::AccountName, value)),
            "key" => found.push((AzureConfigKey::AccessKey, value)),
            "tenant_id" => found.push((AzureConfigKey::AuthorityId, value)),
            "client_id" => found.push((AzureConfigKey::ClientId, value)),
            "client_secret" => found.push((AzureConfigKey::ClientSecret, value)),
            other => return Err(wrong(&format!("{other:?} is unknown"))),
        }
    }
    Ok(found)
}

/// `AccountName=…;AccountKey=…;…`, as the portal shows it.
fn connection_string(text: &str) -> Result<Settings, String> {
    let field = |wanted: &str| {
        let mut fields = text.split(';').filter_map(|field| field.split_once('='));
        fields.find_map(|(name, value)| name.trim().eq_ignore_ascii_case(wanted).then(|| value.trim()))
    };
    let needed = |name: &str| field(name).ok_or_else(|| format!("the connection string has no {name}"));
    let (account, key) = (needed("AccountName")?, needed("AccountKey")?);
    let endpoint = match (field("BlobEndpoint"), field("EndpointSuffix")) {
        (Some(endpoint), _) => Some(endpoint.to_owned()),
        (None, Some(suffix)) => {
            Some(format!("{}://{account}.blob.{suffix}", field("DefaultEndpointsProtocol").unwrap_or("https")))
        }
        (None, None) => None,
    };
    let mut found =
        vec![(AzureConfigKey::AccountName, account.to_owned()), (AzureConfigKey::AccessKey, key.to_owned())];
    found.extend(endpoint.map(|endpoint| (AzureConfigKey::Endpoint, endpoint)));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(key: AzureConfigKey, value: &str) -> (AzureConfigKey, String) {
        (key, value.to_owned())
    }

    #[test]
    fn credentials_are_a_connection_string_or_an_account_with_its_key_or_an_identity() {
        use AzureConfigKey::{AccessKey, AccountName, AuthorityId, ClientId, ClientSecret, Endpoint};
        let portal = "connection_string = DefaultEndpointsProtocol=https;AccountName=lake;AccountKey=a+b/c==;\
                      EndpointSuffix=core.windows.net\n";
        let named =
            |endpoint| [setting(AccountName, "lake"), setting(AccessKey, "a+b/c=="), setting(Endpoint, endpoint)];
        assert_eq!(credentials(portal), Ok(named("https://lake.blob.core.windows.net").to_vec()));
        let own = "AccountName=lake;AccountKey=a+b/c==;BlobEndpoint=http://127.0.0.1:10000/lake;";
        assert_eq!(connection_string(own), Ok(named("http://127.0.0.1:10000/lake").to_vec()));
        let key = "[storage]\n# of the account\naccount = lake\nkey=a+b/c==\n";
        assert_eq!(credentials(key), Ok(named("")[..2].to_vec()));
        let identity = "account = lake\ntenant_id = t\nclient_id = c\nclient_secret = s=1\n";
        assert_eq!(
            credentials(identity),
            Ok(vec![
                setting(AccountName, "lake"),
                setting(AuthorityId, "t"),
                setting(ClientId, "c"),
                setting(ClientSecret, "s=1"),
            ])
        );
        for (text, said) in [
            ("account = lake\nsas_token = x", "line 2: \"sas_token\" is unknown; it says connection_string"),
            ("lake", "line 1: there is no =;"),
            ("connection_string = AccountName=lake", "line 1: the connection string has no AccountKey"),
        ] {
            let error = credentials(text).expect_err("it says nothing of use");
            assert!(error.starts_with(said), "{error}");
        }
    }

    #[test]
    fn the_environment_is_read_as_azures_command_line_reads_it() {
        let variables = |name: &str| match name {
            "AZURE_STORAGE_ACCOUNT" => Some("lake".to_owned()),
            "AZURE_STORAGE_KEY" => Some("a+b/c==".to_owned()),
            _ => None,
        };
        let expected =
            vec![setting(AzureConfigKey::AccountName, "lake"), setting(AzureConfigKey::AccessKey, "a+b/c==")];
        assert_eq!(environment(variables).expect("it is well-formed"), expected);
    }

    #[test]
    fn an_account_that_nothing_names_is_asked_for() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("credentials");
        std::fs::write(&path, "key = bm90IG9uZQ==\n")?;
        let options = AzureOptions { credentials_file: Some(path), ..AzureOptions::default() };
        let error = open("tiles", &options).expect_err("there is no account").to_string();
        assert!(
            error.contains("which storage account has the container tiles: write account under [azure]"),
            "{error}"
        );
        let named = AzureOptions { account: Some("lake".to_owned()), ..options };
        assert!(open("tiles", &named).is_ok());
        Ok(())
    }
}
