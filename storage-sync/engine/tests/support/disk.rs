//! A file system of its own, on a disk that can be filled and damaged. Mounting needs root, as CI has it.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// An ext4 file system of 64 MiB in a file, mounted as long as this lives.
pub(crate) struct SmallDisk {
    folder: tempfile::TempDir,
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

impl SmallDisk {
    pub(crate) fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let image = folder.path().join("image");
        fs::File::create(&image)?.set_len(64 << 20)?;
        run(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image))?;
        fs::create_dir(folder.path().join("mnt"))?;
        let disk = Self { folder };
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(disk.root()))?;
        Ok(disk)
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    /// Takes all the space there is.
    pub(crate) fn fill(&self) -> Result<PathBuf> {
        let path = self.root().join("ballast");
        for size in [1 << 20, 64 << 10, 4096, 512] {
            loop {
                use std::io::Write as _;
                let mut file = fs::File::options().append(true).create(true).open(&path)?;
                if file.write_all(&vec![1; size]).and_then(|()| file.sync_all()).is_err() {
                    break;
                }
            }
        }
        Ok(path)
    }

    /// Changes a byte on the disk, behind the back of the file system, where these bytes stand.
    pub(crate) fn damage(&self, bytes: &[u8]) -> Result<()> {
        run(Command::new("sync").arg("-f").arg(self.root()))?;
        let image = fs::File::options().read(true).write(true).open(self.folder.path().join("image"))?;
        let mut block = vec![0; bytes.len()];
        let mut found = None;
        // Blocks of so small a file system have 1 KiB.
        for at in (0..image.metadata()?.len() - bytes.len() as u64).step_by(1024) {
            image.read_exact_at(&mut block, at)?;
            if block == bytes {
                found = Some(at);
            }
        }
        let at = found.context("the bytes on the disk")?;
        image.write_all_at(&[!bytes[0]], at)?;
        Ok(image.sync_all()?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.root()).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "the test's file system stays mounted");
    }
}
