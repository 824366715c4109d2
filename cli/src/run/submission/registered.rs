//! Actions that were pushed, looked up at a server.

use std::path::Path;

use anyhow::Context as _;
use atoll_model::action::{ActionReference, Manifest, parse};

use crate::action::version_path;
use crate::client::Client;
use crate::workflow;

/// Where `name@version` is looked up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Registered<'a> {
    /// Nothing where none is known.
    pub(crate) client: Option<&'a Client>,
    pub(crate) project: &'a str,
}

impl Registered<'_> {
    /// The text of the workflow that is deployed by this name, if there is no file of it and one is.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub(super) async fn deployed(&self, file: &Path) -> anyhow::Result<Option<String>> {
        let name = file.to_str().filter(|name| !name.contains(['/', '.']) && !file.exists());
        let Some((name, client)) = name.zip(self.client) else { return Ok(None) };
        let document = client.look_up(&workflow::deployed_path(self.project, name)).await?;
        Ok(document.ok().and_then(|document| Some(document["text"].as_str()?.to_owned())))
    }

    /// The action, or why there is none.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub(super) async fn find(&self, text: &str) -> anyhow::Result<Result<Manifest, String>> {
        let reference = match text.parse::<ActionReference>() {
            Ok(reference) => reference,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let Some(client) = self.client else {
            let what = format!("{reference} is looked up at a server, and none is known");
            return Ok(Err(format!("{what}: set ATOLL_URL and ATOLL_TOKEN, or use `atoll login`")));
        };
        let document = match client.look_up(&version_path(self.project, &reference)).await? {
            Ok(document) => document,
            Err(reason) => return Ok(Err(reason)),
        };
        let manifest = document["manifest"].as_str().context("the answer has no manifest")?;
        let file = format!("action.yaml of {reference}");
        Ok(parse(&file, manifest)
            .map_err(|diagnostics| diagnostics.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))
    }
}
