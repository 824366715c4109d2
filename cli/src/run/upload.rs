//! Sends a file or a directory in, once, as the stream that crosses borders.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use storage_sync_engine::stream::{Packed, pack, pack_bundle};

use crate::client::{Client, segment};

/// Bytes that are read ahead of the network at a time.
const CHUNK: usize = 1 << 20;

/// What a run is that something is sent in for.
#[derive(Default)]
pub(crate) struct Purpose<'a> {
    pub(crate) project: Option<&'a str>,
    /// Whether a rule of the workflow itself encrypts anything that is sent in.
    pub(crate) encrypted: bool,
}

/// Uploads what stands at the path; the value that the server made of it.
///
/// # Errors
/// When it cannot be read, or the server cannot be reached.
pub(crate) async fn send(client: &Client, path: &Path, purpose: &Purpose<'_>) -> anyhow::Result<Value> {
    let path = path.canonicalize().with_context(|| format!("cannot open {}", path.display()))?;
    let name = path.file_name().context("a path with a name")?.as_bytes().to_owned();
    let directory = path.is_dir();
    let packing = path.clone();
    let packed = tokio::task::spawn_blocking(move || pack(&packing))
        .await?
        .with_context(|| format!("cannot read {}", path.display()))?;
    send_packed(client, packed, (name, directory), purpose).await
}

/// Uploads the folder of an action.
///
/// # Errors
/// When it cannot be read, or the server cannot be reached.
pub(crate) async fn send_bundle(client: &Client, folder: &Path, purpose: &Purpose<'_>) -> anyhow::Result<Value> {
    let packing = folder.to_owned();
    let packed = tokio::task::spawn_blocking(move || pack_bundle(&packing))
        .await?
        .with_context(|| format!("{} cannot be packed", folder.display()))?;
    send_packed(client, packed, (b"action".to_vec(), true), purpose).await
}

/// Uploads what was packed, under a name.
///
/// # Errors
/// When it has changed meanwhile, or the server cannot be reached.
pub(crate) async fn send_packed(
    client: &Client,
    packed: Packed,
    (name, directory): (Vec<u8>, bool),
    purpose: &Purpose<'_>,
) -> anyhow::Result<Value> {
    let executable = if packed.is_executable() { "&executable=true" } else { "" };
    let packed = Arc::new(packed);
    let total = packed.stream_bytes();
    let bytes = futures::stream::try_unfold(0u64, move |offset| {
        let packed = packed.clone();
        async move {
            if offset >= total {
                return Ok(None);
            }
            let chunk = tokio::task::spawn_blocking(move || packed.read_at(offset, CHUNK))
                .await
                .map_err(std::io::Error::other)??;
            let next = offset + chunk.len() as u64;
            Ok::<_, std::io::Error>(Some((chunk, next)))
        }
    });
    let kind = if directory { "tree" } else { "file" };
    // Names are bytes: in a query only base 64 carries them whole.
    let name = URL_SAFE_NO_PAD.encode(name);
    let Purpose { project, encrypted } = purpose;
    let project = project.map(|project| format!("&project={}", segment(project)));
    let project = project.unwrap_or_default();
    let query = format!(
        "/uploads?kind={kind}&name_base64={name}&stream_bytes={total}{executable}{project}&encrypted={encrypted}"
    );
    client.put(&query, reqwest::Body::wrap_stream(bytes)).await
}
