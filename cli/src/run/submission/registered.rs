//! Actions that were pushed, looked up at a server.

use anyhow::Context as _;
use atoll_model::action::{ActionReference, parse};
use atoll_model::workflow::Work;

use crate::action::version_path;
use crate::client::Client;
use crate::failure::Failure;

/// Where `name@version` is looked up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Registered<'a> {
    /// Nothing where none is known.
    pub(crate) client: Option<&'a Client>,
    pub(crate) project: &'a str,
}

impl Registered<'_> {
    /// The action, or why there is none.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub(super) async fn find(&self, text: &str) -> anyhow::Result<Result<Work, String>> {
        let reference = match text.parse::<ActionReference>() {
            Ok(reference) => reference,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let Some(client) = self.client else {
            let what = format!("{reference} is looked up at a server, and none is known");
            return Ok(Err(format!("{what}: set ATOLL_URL and ATOLL_TOKEN, or use `atoll login`")));
        };
        let document = match client.get(&version_path(self.project, &reference)).await {
            Ok(document) => document,
            Err(error) => match error.downcast::<Failure>()? {
                Failure::Failed(reason) => return Ok(Err(reason)),
                other @ (Failure::Usage(_)
                | Failure::Invalid { .. }
                | Failure::Unreachable(_)
                | Failure::Unauthorised(_)) => return Err(other.into()),
            },
        };
        let manifest = document["manifest"].as_str().context("the answer has no manifest")?;
        let file = format!("action.yaml of {reference}");
        let manifest = parse(&file, manifest)
            .map_err(|diagnostics| diagnostics.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "));
        Ok(manifest.map(|manifest| manifest.into_work(None, 0)))
    }
}
