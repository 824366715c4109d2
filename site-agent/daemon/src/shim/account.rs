//! The local accounts that executions run as.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, chown, lchown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::{Deserialize, Serialize};
use site_agent_spawn::{Circumstances, Identity, Program, Spawner};

/// What says in the words of the machine whom a process runs as, and whether it reaches the folders that it is given.
const TRIAL: &str = r#"id -u && id -g && id -G && for folder in "$@"; do cd "$folder" || exit 9; done"#;

/// An account of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Account {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    /// All groups that it is in.
    pub groups: Vec<u32>,
}

impl Account {
    pub(crate) fn identity(&self) -> Identity {
        Identity { user: self.uid, group: self.gid, groups: self.groups.clone() }
    }
}

/// Gives a file or folder to an account, or back to this process's own user; no link is followed.
pub(crate) fn give(path: &Path, account: Option<&Account>) -> io::Result<()> {
    let own = || (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let (uid, gid) = account.map_or_else(own, |account| (account.uid, account.gid));
    lchown(path, Some(uid), Some(gid)).map_err(|error| match account {
        Some(Account { name, uid, .. }) => io::Error::new(
            error.kind(),
            format!("{} cannot be given to the account {name} ({uid}), which takes root: {error}", path.display()),
        ),
        None => error,
    })
}

/// Makes everything that an account has left in a place this process's own. What is not the account's stays whose it is.
pub(crate) fn take_over(place: &Path, account: &Account) -> io::Result<()> {
    let mut left = vec![place.to_owned()];
    while let Some(path) = left.pop() {
        let found = fs::symlink_metadata(&path)?;
        if found.uid() == account.uid {
            give(&path, None)?;
        }
        if found.is_dir() {
            for entry in fs::read_dir(&path)? {
                left.push(entry?.path());
            }
        }
    }
    Ok(())
}

/// Gives a folder to an account that may look at it and no more.
///
/// # Errors
/// When this process may not.
pub(crate) fn lend(folder: &Path, account: &Account) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o500))?;
    chown(folder, Some(account.uid), Some(account.gid))
}

/// Runs a program as an account, which says who it is: for a person who wants to know whether that can be done.
pub(super) fn try_out(arguments: &[std::ffi::OsString]) -> ExitCode {
    let Some((account, folders)) = arguments.split_first() else {
        return super::refuse("it is to be told an account");
    };
    let Ok(account) = serde_json::from_slice::<Account>(account.as_encoded_bytes()) else {
        return super::refuse("its argument is no account");
    };
    let folders: Vec<PathBuf> = folders.iter().map(PathBuf::from).collect();
    match run_trial(&account, &folders) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run_trial(account: &Account, folders: &[PathBuf]) -> io::Result<bool> {
    let words = ["/bin/sh", "-c", TRIAL, "sh"].map(|word| word.as_bytes().to_vec());
    let folders = folders.iter().map(|folder| folder.as_os_str().as_encoded_bytes().to_vec());
    let command: Vec<Vec<u8>> = words.into_iter().chain(folders).collect();
    let path: [(&[u8], &[u8]); 1] = [(b"PATH", b"/usr/bin:/bin")];
    let identity = account.identity();
    let circumstances = Circumstances { identity: Some(&identity), ..Circumstances::default() };
    let nothing: [(&[u8], &[u8]); 0] = [];
    let mut child = Spawner::new().spawn_under(&Program::new(&command, path)?, &nothing, circumstances)?;
    let mut ends = [rustix::event::PollFd::new(&child, rustix::event::PollFlags::IN)];
    while rustix::event::poll(&mut ends, None) == Err(rustix::io::Errno::INTR) {}
    Ok(child.try_wait()?.is_some_and(|ended| ended.status.success()))
}
