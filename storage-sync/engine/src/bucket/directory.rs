//! A directory as a bucket. Objects stand where `object_store` finds them; uploads are gathered in `.uploads/`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use object_store::local::LocalFileSystem;
use serde::{Deserialize, Serialize};

use super::signing::{Grant, UrlSigner};
use super::{BucketError, BucketOptions, Key};

/// After this long nobody comes back to an upload; S3's buckets are given the same rule.
const UPLOAD_KEPT: Duration = Duration::from_secs(7 * 24 * 3_600);

#[derive(Debug)]
pub(super) struct Directory {
    root: PathBuf,
    pub(super) files: LocalFileSystem,
    pub(super) signer: UrlSigner,
    serve_url: String,
}

/// An upload in parts that has begun: `.uploads/<id>/about`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Upload {
    key: String,
    pub(super) stream_bytes: u64,
    pub(super) part_bytes: u64,
}

impl Upload {
    pub(super) fn part_count(&self) -> u64 {
        self.stream_bytes.div_ceil(self.part_bytes)
    }

    pub(super) fn part_length(&self, part: u32) -> u64 {
        let start = u64::from(part) * self.part_bytes;
        self.stream_bytes.saturating_sub(start).min(self.part_bytes)
    }
}

impl Directory {
    pub(super) fn open(path: &Path, options: &BucketOptions) -> Result<Self, BucketError> {
        let failed = || BucketError::io(format!("the bucket cannot be opened at {}", path.display()));
        fs::create_dir_all(path.join(".uploads")).map_err(failed())?;
        let root = path.canonicalize().map_err(failed())?;
        let files = LocalFileSystem::new_with_prefix(&root)?.with_fsync(true);
        let directory = Self {
            root,
            files,
            signer: UrlSigner::new(&options.signing_key),
            serve_url: options.serve_url.trim_end_matches('/').to_owned(),
        };
        directory.drop_old_uploads().map_err(failed())?;
        Ok(directory)
    }

    pub(super) fn download_url(&self, key: &Key, expires_at: SystemTime) -> String {
        self.url(key, &Grant::Download, expires_at)
    }

    pub(super) fn url(&self, key: &Key, grant: &Grant, expires_at: SystemTime) -> String {
        format!("{}/bucket/{}", self.serve_url, self.signer.sign(key, grant, expires_at))
    }

    pub(super) fn path(&self, key: &Key) -> PathBuf {
        self.root.join(key.to_string())
    }

    /// A path below `.uploads/` that nothing else uses.
    pub(super) fn temporary(&self) -> PathBuf {
        self.root.join(".uploads").join(format!("put-{}", random_name()))
    }

    pub(super) fn create_upload(&self, key: &Key, upload: &UploadSize) -> io::Result<String> {
        let id = random_name();
        let folder = self.root.join(".uploads").join(&id);
        fs::create_dir(&folder)?;
        let about = Upload { key: key.to_string(), stream_bytes: upload.stream_bytes, part_bytes: upload.part_bytes };
        fs::write(folder.join("about"), serde_json::to_vec(&about)?)?;
        File::create(folder.join("data"))?.set_len(about.stream_bytes)?;
        Ok(id)
    }

    /// The upload of this name, if it is one of this object.
    pub(super) fn upload(&self, key: &Key, id: &str) -> io::Result<Option<Upload>> {
        let Some(folder) = self.upload_folder(id) else { return Ok(None) };
        match fs::read(folder.join("about")) {
            Ok(bytes) => {
                let upload: Upload = serde_json::from_slice(&bytes)?;
                Ok((upload.key == key.to_string()).then_some(upload))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Where the parts of an upload are gathered.
    pub(super) fn upload_folder(&self, id: &str) -> Option<PathBuf> {
        let valid = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        valid.then(|| self.root.join(".uploads").join(id))
    }

    /// Moves what was gathered to its place, durably.
    pub(super) fn publish(&self, key: &Key, from: &Path) -> io::Result<()> {
        let target = self.path(key);
        let folder = target.parent().expect("a key has three names");
        fs::create_dir_all(folder)?;
        fs::rename(from, &target)?;
        for folder in [folder, folder.parent().unwrap_or(folder), &self.root] {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    }

    fn drop_old_uploads(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.root.join(".uploads"))? {
            let entry = entry?;
            let age = entry.metadata()?.modified()?.elapsed().unwrap_or(Duration::ZERO);
            if age > UPLOAD_KEPT {
                let path = entry.path();
                if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UploadSize {
    pub(super) stream_bytes: u64,
    pub(super) part_bytes: u64,
}

/// 32 hexadecimal digits.
pub(super) fn random_name() -> String {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).expect("the system gives random bytes");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
