//! The agent's own folders: made, let accounts through where there are some, and found again when they were elsewhere.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::config::Config;
use crate::executor::local;
use crate::shim::{make_private, remove_whatever};
use crate::{IDENTITY, accounts};

/// Says where the slots of the last agent were.
const SLOTS_NOTE: &str = "slots-at";

/// Makes the folders that everything else is in.
pub(super) fn make_folders(config: &Config) -> anyhow::Result<()> {
    for folder in [Some(&config.data_dir), config.work_dir.as_ref()].into_iter().flatten() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    let data_dir = &config.data_dir;
    make_private(&data_dir.join(IDENTITY)).with_context(|| format!("cannot use {}", data_dir.display()))
}

/// Where executions run as other accounts these pass through the agent's folders, and read what is lent to them. Before
/// anything is started, and again when all that is the agent's own was made.
pub(super) fn open_ways(config: &Config, slots_dir: &Path) -> anyhow::Result<()> {
    if config.accounts.is_none() || !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    // What it lends has the modes that it says, whatever it was started with.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    accounts::open_ways(&config.data_dir, slots_dir).context("accounts cannot be let through the agent's folders")
}

/// Where executions work: where the administrator wants it, once nothing is left where they worked before.
pub(super) fn settle_slots(config: &Config) -> anyhow::Result<PathBuf> {
    let (note, slots) = (config.data_dir.join(SLOTS_NOTE), config.slots_dir());
    let former = match std::fs::read(&note) {
        Ok(path) => PathBuf::from(OsString::from_vec(path)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => config.data_dir.join("slots"),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", note.display())),
    };
    if former == slots {
        return Ok(slots);
    }
    if local::has_work(&former)? {
        let (former_shown, slots) = (former.display(), slots.display());
        tracing::warn!(former = %former_shown, %slots, "steps work on in the former place: they work in the new one from a start on that finds nothing left there");
        return Ok(former);
    }
    local::stop_work(&config.data_dir, &former)?;
    remove_whatever(&former).with_context(|| format!("cannot clear {}", former.display()))?;
    std::fs::write(&note, slots.as_os_str().as_bytes()).with_context(|| format!("cannot write {}", note.display()))?;
    Ok(slots)
}
