//! The action that executions in Python are of: it adds one to what it is handed.

use std::fs;

use crate::action::push_folder;
use crate::client::Client;

const MANIFEST: &str = "name: bench-count\nversion: '1'\nruntime: python\nhandler: main.py:handle\n\
                        inputs: { hops: { type: integer, default: 0 } }\noutputs: { hops: integer }\n";
const MODULE: &str = "def handle(hops):\n    return {\"hops\": hops + 1}\n";

/// How steps name it.
pub(super) const ACTION: &str = "bench-count@1";

/// Pushes it.
///
/// # Errors
/// When the server does not take it.
pub(super) async fn push(client: &Client) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("action.yaml"), MANIFEST)?;
    fs::write(folder.path().join("main.py"), MODULE)?;
    push_folder(client, folder.path(), "default", &[]).await.map(drop)
}
