//! Two agents never work in one data directory (E7).

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::fs::{FlockOperation, flock};

use crate::shim::log::boot_id;

/// Held as long as the agent runs.
#[derive(Debug)]
pub(crate) struct DataLock {
    _in_directory: File,
    _on_machine: File,
}

/// Locks a data directory, there and, because a directory may be shared between machines whose locks do not reach one
/// another, by a file that says which machine has it.
///
/// # Errors
/// When another agent works in it; the message says where.
pub(crate) fn lock(data_dir: &Path) -> anyhow::Result<DataLock> {
    let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let own = format!("{host} {}", boot_id()?);
    let path = data_dir.join("lock");
    let mut file = open(&path)?;
    let on_machine = open(&machine_path(data_dir)?)?;
    let mut holder = String::new();
    file.read_to_string(&mut holder)?;
    let refused =
        [&file, &on_machine].into_iter().any(|file| flock(file, FlockOperation::NonBlockingLockExclusive).is_err());
    if refused {
        bail!("an agent already works in {} ({}); stop it first", data_dir.display(), holder.trim());
    }
    let elsewhere =
        holder.lines().next().filter(|line| !line.is_empty() && line.split(' ').next() != Some(host.as_str()));
    if let Some(elsewhere) = elsewhere {
        bail!(
            "{} belongs to the agent on {elsewhere}: give each machine a data directory of its own, or remove {} if that agent is gone for good",
            data_dir.display(),
            path.display()
        );
    }
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{own}\nprocess {}", std::process::id())?;
    file.sync_all()?;
    Ok(DataLock { _in_directory: file, _on_machine: on_machine })
}

fn open(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .create(true)
        .read(true)
        .write(true)
        .truncate(false)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}

/// A path that is certainly on this machine.
fn machine_path(data_dir: &Path) -> anyhow::Result<PathBuf> {
    let real = fs::canonicalize(data_dir)?;
    let name = blake3::hash(real.as_os_str().as_encoded_bytes()).to_hex();
    Ok(std::env::temp_dir().join(format!("atoll-agent-{}.lock", &name[..16])))
}
