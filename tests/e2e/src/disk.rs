//! A disk that is soon full.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

/// A file system of its own, that can be filled.
#[derive(Debug)]
pub struct SmallDisk {
    mounted: PathBuf,
}

impl SmallDisk {
    /// # Errors
    /// When nothing can be mounted there, which only root may.
    pub fn new(folder: &Path, mebibytes: u32) -> Result<Self> {
        let mounted = folder.join("small");
        std::fs::create_dir(&mounted)?;
        let size = format!("size={mebibytes}m");
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&mounted).status()?;
        ensure!(status.success(), "mount: {status}; this test needs root");
        Ok(Self { mounted })
    }

    pub fn path(&self) -> &Path {
        &self.mounted
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazy, because the processes of a failed test may still hold it.
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.mounted).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.mounted.display());
        }
    }
}
