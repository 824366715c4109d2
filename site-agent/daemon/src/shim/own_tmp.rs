//! What a worker sees as `/tmp`: something of its own, where the machine allows it.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json, json};

use super::directory::{SlotDirectory, make_private};
use super::protocol::{Isolation, Setup};

const TMP: &str = "/tmp";

/// What a worker sees as `/tmp`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum OwnTmp {
    /// What everything on the machine sees.
    Shared,
    /// The slot's temporary folder.
    Temporary,
    /// If it asks for that, a folder of the slot in which these, that are below `/tmp`, stay where they are.
    Around(Vec<PathBuf>),
}

/// What workers can be given as `/tmp`.
pub(super) fn own_tmp(setup: &Setup, isolation: Isolation) -> OwnTmp {
    let seen: Vec<&PathBuf> = setup.read_only.iter().chain([&setup.slot]).collect();
    if isolation == Isolation::Nothing || seen.iter().any(|folder| *folder == Path::new(TMP)) {
        return OwnTmp::Shared;
    }
    let mut kept: Vec<PathBuf> = Vec::new();
    for folder in seen.into_iter().filter(|folder| folder.starts_with(TMP)) {
        if !kept.iter().any(|other| folder.starts_with(other)) {
            kept.push(folder.clone());
        }
    }
    if kept.is_empty() { OwnTmp::Temporary } else { OwnTmp::Around(kept) }
}

/// What a worker sees as `/tmp`, and what stays where it is in it.
pub(super) struct Tmp {
    pub(super) folder: CString,
    pub(super) kept: Vec<(CString, CString)>,
}

impl Tmp {
    /// Only what was written for Ryax asks for more than the slot's temporary folder; it is told what stays in it, since it
    /// empties the folder itself.
    pub(super) fn of(
        own: &OwnTmp,
        slot: &SlotDirectory,
        is_of_another: bool,
        params: &mut Map<String, Json>,
        command: &[Vec<u8>],
    ) -> io::Result<Option<Self>> {
        let text = |path: &Path| CString::new(path.as_os_str().as_bytes());
        let (kept, ryax) = match (own, params.get_mut("ryax")) {
            (OwnTmp::Temporary, _) => return Ok(Some(Self { folder: text(slot.tmp())?, kept: Vec::new() })),
            // What another account has left in the folder is nothing to make places in.
            (OwnTmp::Around(kept), Some(ryax)) if !is_of_another => (kept, ryax),
            (OwnTmp::Shared | OwnTmp::Around(_), _) => return Ok(None),
        };
        let program = command.first().map(|program| Path::new(OsStr::from_bytes(program)));
        if program.is_none_or(|program| program.starts_with(TMP) && !kept.iter().any(|kept| program.starts_with(kept)))
        {
            // It would hide what it is started from.
            return Ok(None);
        }
        let folder = slot.own_tmp();
        make_private(&folder)?;
        let mut places = Vec::new();
        for path in kept {
            let place = folder.join(path.strip_prefix(TMP).map_err(io::Error::other)?);
            std::fs::create_dir_all(&place)?;
            places.push((text(path)?, text(&place)?));
        }
        ryax["kept"] = json!(kept);
        Ok(Some(Self { folder: text(&folder)?, kept: places }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_below_tmp_keeps_its_outermost_folders_there() {
        let own = |read_only: &[&str], slot: &str| {
            let read_only = read_only.iter().map(PathBuf::from).collect();
            own_tmp(&Setup { slot: slot.into(), read_only, ..Setup::default() }, Isolation::Mounts)
        };
        assert_eq!(own(&["/srv/site"], "/srv/site/slots/1"), OwnTmp::Temporary);
        assert_eq!(own(&["/tmp/a/site"], "/tmp/a/site/slots/1"), OwnTmp::Around(vec!["/tmp/a/site".into()]));
        assert_eq!(own(&["/srv/site", "/tmp/slots"], "/tmp/slots/1"), OwnTmp::Around(vec!["/tmp/slots".into()]));
        assert_eq!(own(&["/tmp"], "/tmp/slots/1"), OwnTmp::Shared);
        assert_eq!(own_tmp(&Setup::default(), Isolation::Nothing), OwnTmp::Shared);
    }
}
