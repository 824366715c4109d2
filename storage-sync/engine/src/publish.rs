//! Files and directories that leave Atoll: to a path of this machine, or to a bucket that is not its own.
//!
//! What stands at the target already is left alone unless it is to be overwritten. If it is the very same content then
//! that is as good as done: whoever does not know whether it was published may ask again.

mod path;
mod upload;

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

pub use self::path::{PathTarget, publish_at_path};
pub use self::upload::publish_in_bucket;

/// Why something was not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("{0} exists already, and is not what is to be published")]
    Exists(String),
    /// The site's administrator does not let it be written there.
    #[error("{}: the site publishes nothing at {}: its administrator lists where it does under exports", path.display(), real.display())]
    NotAllowed { path: PathBuf, real: PathBuf },
    /// It cannot be at that place, whoever asks.
    #[error("{place}: {message}")]
    Refused { place: String, message: String },
    #[error("it is not asked for any more")]
    GivenUp,
    #[error("{}: {error}", path.display())]
    Disk { path: PathBuf, error: io::Error },
    #[error("{url}: {message}")]
    Bucket { url: String, message: String },
}

impl PublishError {
    fn disk(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Disk { path, error }
    }
}

/// Opens what must be a regular file, following no link and waiting for nobody.
fn open_file(path: &Path) -> io::Result<(File, Metadata)> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let file = File::options().read(true).custom_flags(flags.cast_signed()).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok((file, metadata))
}
