//! Files and directories that are fetched from outside of Atoll: from a web server, or from a bucket that is not its own.
//!
//! Nobody outside says what the digest of a file is, so what comes is written to a folder first and taken into the store
//! from there. A connection that breaks is made again, and goes on where it broke if the other side can say that it still
//! has the same file.

mod source;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use atoll_model::workflow::OutsideUrl;
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::fs::File;
use tokio::io::AsyncWriteExt as _;

use self::source::{Opened, Place, Remote};

/// How often one file is asked for again after nothing more came of it.
const FRUITLESS_MAX: u32 = 5;
/// Before it is asked for again; doubled each time.
const PAUSE: Duration = Duration::from_millis(500);
/// A server that says when it is to be asked again is not waited for longer.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Without a byte.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Files of a directory that come at the same time.
const AT_ONCE: usize = 16;
/// Of a directory: their names are held in memory until all have come.
const FILES_MAX: usize = 1_000_000;

/// Why something could not be fetched from outside.
#[derive(Debug, thiserror::Error)]
pub enum OutsideError {
    /// The other side says no, and would say so again.
    #[error("{url}: {message}")]
    Refused { url: String, message: String },
    /// It did not come, several times.
    #[error("{url} did not come: {message}")]
    Unreachable { url: String, message: String },
    /// What a bucket has there cannot be a directory.
    #[error("{url} cannot be a directory: {message}")]
    NoDirectory { url: String, message: String },
    #[error("{}: {error}", path.display())]
    Disk { path: PathBuf, error: io::Error },
}

impl OutsideError {
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Disk { error, .. } if error.kind() == io::ErrorKind::StorageFull)
    }

    fn disk(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Disk { path, error }
    }
}

/// Fetches a file, or everything below a key of a bucket, to `into`, which must not exist. A redirection is followed only
/// to where `allowed` says. The keys of buckets are those of this process's environment, as the AWS tools read them.
pub async fn fetch_outside(
    url: &OutsideUrl,
    directory: bool,
    into: &Path,
    allowed: impl Fn(&OutsideUrl) -> bool + Send + Sync + 'static,
) -> Result<(), OutsideError> {
    let remote = Remote::open(url, allowed)?;
    if !directory {
        return fetch_file(&remote, &remote.place(), into).await;
    }
    let found = remote.list(FILES_MAX).await?;
    let folders: BTreeSet<&Path> = found.iter().filter_map(|(path, _)| path.parent()).collect();
    for folder in folders {
        let folder = into.join(folder);
        tokio::fs::create_dir_all(&folder).await.map_err(OutsideError::disk(&folder))?;
    }
    let files = found.iter().map(|(path, place)| {
        let (remote, path) = (&remote, into.join(path));
        async move { fetch_file(remote, place, &path).await }
    });
    futures::stream::iter(files).buffer_unordered(AT_ONCE).try_collect().await
}

async fn fetch_file(remote: &Remote, place: &Place, into: &Path) -> Result<(), OutsideError> {
    let mut file = File::create_new(into).await.map_err(OutsideError::disk(into))?;
    let (mut written, mut tag) = (0, None);
    let mut fruitless = 0;
    loop {
        let before = written;
        let failure = match remote.open_at(place, written, tag.as_deref()).await {
            Ok(opened) => {
                if opened.from != written {
                    // It is another file by now, or the server cannot go on in the middle.
                    written = 0;
                    file = File::create(into).await.map_err(OutsideError::disk(into))?;
                }
                tag.clone_from(&opened.tag);
                match copy(opened, &mut file, into, &mut written).await? {
                    None => return file.flush().await.map_err(OutsideError::disk(into)),
                    Some(message) => source::Failure { message, is_final: false, pause: None },
                }
            }
            Err(failure) => failure,
        };
        fruitless = if written > before { 0 } else { fruitless + 1 };
        let url = remote.shown(place);
        if failure.is_final {
            return Err(OutsideError::Refused { url, message: failure.message });
        }
        if fruitless > FRUITLESS_MAX {
            return Err(OutsideError::Unreachable { url, message: failure.message });
        }
        tracing::info!(url, error = failure.message, bytes = written, "asking again for what is to be taken in");
        let pause = failure.pause.unwrap_or(PAUSE * 2_u32.pow(fruitless));
        tokio::time::sleep(pause.min(PAUSE_MAX)).await;
    }
}

/// Writes what comes; why no more came, if not because that was all.
async fn copy(
    mut opened: Opened,
    file: &mut File,
    into: &Path,
    written: &mut u64,
) -> Result<Option<String>, OutsideError> {
    loop {
        match tokio::time::timeout(SILENCE_MAX, opened.bytes.next()).await {
            Err(_) => return Ok(Some(format!("nothing came for {} s", SILENCE_MAX.as_secs()))),
            Ok(Some(Err(message))) => return Ok(Some(message)),
            Ok(Some(Ok(bytes))) => {
                file.write_all(&bytes).await.map_err(OutsideError::disk(into))?;
                *written += bytes.len() as u64;
            }
            Ok(None) => {
                return Ok(opened
                    .until
                    .filter(|until| until != written)
                    .map(|until| format!("it ended after {written} bytes of {until}")));
            }
        }
    }
}
