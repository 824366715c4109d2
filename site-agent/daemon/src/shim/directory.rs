//! The directory of a slot: what an execution finds empty, and what it leaves.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::mem::MaybeUninit;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, RawDir, flock};
use rustix::io::Errno;
use serde_json::{Map, Value as Json};

use super::account::{Account, give, take_over};
use super::outputs::{read_small, remove_small};
use super::protocol::{Key, Left, LeftOutputs, Outputs};
use super::watch::Watch;

pub(crate) const WORK: &str = "work";
pub(crate) const TMP: &str = "tmp";
pub(crate) const OUT: &str = "out";
const OWN_TMP: &str = "own-tmp";
pub(crate) const STDOUT: &str = "stdout";
pub(crate) const STDERR: &str = "stderr";
/// What attempts left, in a folder for each, until the agent has taken it in.
pub(crate) const KEPT: &str = "kept";
pub(crate) const SOCKET: &str = "shim.sock";

const LAST_WORDS_BYTES: u64 = 4 << 10;

/// The slot as its shim sees it.
#[derive(Debug)]
pub(crate) struct SlotDirectory {
    path: PathBuf,
    work: PathBuf,
    tmp: PathBuf,
    out: PathBuf,
    stdout: File,
    stderr: File,
    watch: Watch,
    /// Something may have changed since the slot was made ready.
    touched: bool,
    /// Names of what was told of the outputs folder, and is still in it.
    told: Vec<Vec<u8>>,
    /// Somebody may read the logs.
    watched: bool,
    /// How often the logs, and the temporary folder, were other ones than before.
    logs_made: u32,
    tmp_made: u32,
    /// Whose its folders and logs are, if not this process's own user's.
    owner: Option<Account>,
}

impl SlotDirectory {
    /// Makes the slot as an execution is to find it, and makes its work directory and logs those of this process: an
    /// execution inherits them.
    pub(crate) fn prepare(path: &Path) -> io::Result<Self> {
        let [work, tmp, out] = [WORK, TMP, OUT].map(|name| path.join(name));
        make_private(&path.join(KEPT))?;
        let [stdout, stderr] = [STDOUT, STDERR].map(|name| new_log(&path.join(name), None));
        let mut slot = Self {
            path: path.to_owned(),
            work,
            tmp,
            out,
            stdout: stdout?,
            stderr: stderr?,
            watch: Watch::new(),
            touched: true,
            told: Vec::new(),
            watched: true,
            logs_made: 0,
            tmp_made: 0,
            owner: None,
        };
        slot.clean()?;
        slot.adopt()?;
        Ok(slot)
    }

    /// Makes the folders and logs those of the account that the next execution runs as, of this process's own user if there is
    /// none. Others may pass through the slot then, to what is theirs.
    ///
    /// # Errors
    /// When this process may not give anything away.
    pub(crate) fn belong_to(&mut self, account: Option<&Account>) -> io::Result<()> {
        if self.owner.as_ref() == account {
            return Ok(());
        }
        for name in [WORK, TMP, OUT, STDOUT, STDERR] {
            give(&self.path.join(name), account)?;
        }
        fs::set_permissions(&self.path, fs::Permissions::from_mode(if account.is_some() { 0o711 } else { 0o700 }))?;
        self.owner = account.cloned();
        Ok(())
    }

    fn make_own(&self, folder: &Path) -> io::Result<()> {
        make_private(folder)?;
        self.owner.as_ref().map_or(Ok(()), |owner| give(folder, Some(owner)))
    }

    fn adopt(&mut self) -> io::Result<()> {
        rustix::process::chdir(&self.work)?;
        self.adopt_logs()
    }

    /// Which logs these are, of those that the slot has had.
    pub(crate) const fn logs_made(&self) -> u32 {
        self.logs_made
    }

    /// Which temporary folder this is.
    pub(crate) const fn tmp_made(&self) -> u32 {
        self.tmp_made
    }

    pub(crate) fn tmp(&self) -> &Path {
        &self.tmp
    }

    /// What a worker that empties it by itself sees as `/tmp`.
    pub(crate) fn own_tmp(&self) -> PathBuf {
        self.path.join(OWN_TMP)
    }

    /// The folders that an execution may write to: its work directory, its temporary one, its outputs.
    pub(crate) fn own_folders(&self) -> [&Path; 3] {
        [&self.work, &self.tmp, &self.out]
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn work(&self) -> &Path {
        &self.work
    }

    pub(crate) fn out(&self) -> &Path {
        &self.out
    }

    /// The end of what was written to standard error.
    pub(crate) fn last_of_stderr(&self) -> String {
        let mut text = Vec::new();
        let read = File::open(self.path.join(STDERR)).and_then(|mut log| {
            let length = log.metadata()?.len();
            log.seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS_BYTES)))?;
            log.take(LAST_WORDS_BYTES).read_to_end(&mut text)
        });
        read.map(|_| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
    }

    /// Where everything is that a worker uses, by the names that the action protocol has for it.
    pub(crate) fn folders(&self) -> [(&'static str, PathBuf); 5] {
        [
            ("work", self.work.clone()),
            ("temporary", self.tmp.clone()),
            ("outputs", self.out.clone()),
            ("stdout", self.path.join(STDOUT)),
            ("stderr", self.path.join(STDERR)),
        ]
    }

    /// Whether nothing is left of the execution but what it answered. [`SlotDirectory::bound_logs`] has looked at the slot.
    pub(crate) fn is_bare(&self) -> bool {
        let is_silent = |log: &File| log.metadata().is_ok_and(|metadata| metadata.len() == 0);
        !self.touched || (is_empty_folder(&self.out) && is_silent(&self.stdout) && is_silent(&self.stderr))
    }

    /// Writes outputs that were answered as values to where a command writes them.
    pub(crate) fn write_values(&mut self, values: &Map<String, Json>) -> io::Result<()> {
        self.touched = true;
        for (name, value) in values.iter().filter(|(name, _)| !name.contains('/')) {
            let text = match value {
                Json::Null => continue,
                // One line break at the end does not count.
                Json::String(text) if text.ends_with('\n') => format!("{text}\n"),
                Json::String(text) => text.clone(),
                other @ (Json::Bool(_) | Json::Number(_) | Json::Array(_) | Json::Object(_)) => other.to_string(),
            };
            // A name may be a link by now, to what only this process may write to.
            let path = self.out.join(name);
            remove_whatever(&path)?;
            OpenOptions::new().write(true).create_new(true).open(path)?.write_all(text.as_bytes())?;
        }
        Ok(())
    }

    fn adopt_logs(&mut self) -> io::Result<()> {
        self.logs_made += 1;
        // Room for the last words of what fails because the disk is full; not every file system can give it.
        let _ = rustix::fs::fallocate(&self.stderr, rustix::fs::FallocateFlags::KEEP_SIZE, 0, LAST_WORDS_BYTES);
        rustix::stdio::dup2_stdout(&self.stdout)?;
        rustix::stdio::dup2_stderr(&self.stderr)?;
        Ok(())
    }

    /// Leaves logs to those who still read them, with a lock, as those of an execution that wrote nothing. To be called
    /// when the next one is claimed: who locks a log after that sees by the claim that it is another's.
    pub(crate) fn part_with_watched_logs(&mut self) -> io::Result<()> {
        if !self.watched && !self.is_touched() {
            return Ok(());
        }
        let mut parted = false;
        for (name, log) in [(STDOUT, &mut self.stdout), (STDERR, &mut self.stderr)] {
            match flock(&*log, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => flock(&*log, FlockOperation::Unlock)?,
                Err(Errno::WOULDBLOCK) => {
                    *log = new_log(&self.path.join(name), self.owner.as_ref())?;
                    parted = true;
                }
                // Where files cannot be locked, nobody has locked one.
                Err(_) => {}
            }
        }
        self.watched = false;
        if parted {
            self.adopt_logs()?;
            self.arm();
        }
        Ok(())
    }

    fn arm(&mut self) {
        let logs = [STDOUT, STDERR].map(|name| self.path.join(name));
        self.watch.arm([&self.work, &self.tmp, &self.out], [&logs[0], &logs[1]]);
    }

    fn is_touched(&mut self) -> bool {
        self.touched = self.touched || self.watch.has_seen_something();
        self.touched
    }

    /// What an execution is told of the slot.
    pub(crate) fn environment(&self) -> [(&'static str, &Path); 3] {
        [("ATOLL_OUTPUTS", &self.out), ("TMPDIR", &self.tmp), ("HOME", &self.work)]
    }

    /// Moves aside what the attempt left and the agent is to take in. Nothing of it runs any more, and
    /// [`SlotDirectory::bound_logs`] has looked at the slot since it ended.
    pub(crate) fn keep(&mut self, key: Key, outputs: Outputs) -> io::Result<Left> {
        if !self.touched {
            return Ok(Left::default());
        }
        let left = Left {
            outputs: self.left_outputs(outputs),
            stdout: self.stdout.metadata()?.len() > 0,
            stderr: self.stderr.metadata()?.len() > 0,
        };
        if !left.is_kept() {
            return Ok(left);
        }
        let kept = self.path.join(KEPT).join(key.folder());
        make_private(&kept)?;
        if left.outputs == LeftOutputs::Kept {
            fs::rename(&self.out, kept.join(OUT))?;
        }
        if left.stdout {
            fs::rename(self.path.join(STDOUT), kept.join(STDOUT))?;
            self.stdout = open_log(&self.path.join(STDOUT), self.owner.as_ref())?;
        }
        if left.stderr {
            fs::rename(self.path.join(STDERR), kept.join(STDERR))?;
            self.stderr = open_log(&self.path.join(STDERR), self.owner.as_ref())?;
        }
        if let Some(owner) = &self.owner {
            take_over(&kept, owner)?;
        }
        if left.stdout || left.stderr {
            self.adopt_logs()?;
        }
        Ok(left)
    }

    fn left_outputs(&mut self, wanted: Outputs) -> LeftOutputs {
        match wanted {
            Outputs::Ignored => LeftOutputs::Nothing,
            Outputs::Told => match read_small(&self.out) {
                Some(told) if told.is_empty() => LeftOutputs::Nothing,
                Some(told) => {
                    self.told = told.iter().map(|output| output.name.clone()).collect();
                    LeftOutputs::Told(told)
                }
                None => LeftOutputs::Kept,
            },
            Outputs::Kept if is_empty_folder(&self.out) => LeftOutputs::Nothing,
            Outputs::Kept => LeftOutputs::Kept,
        }
    }

    /// Makes the slot as the next execution is to find it.
    pub(crate) fn clean(&mut self) -> io::Result<()> {
        if !self.touched {
            return Ok(());
        }
        let mut renewed = false;
        let told = std::mem::take(&mut self.told);
        if !told.is_empty() {
            // If that does not do, the folder is made anew.
            let _ = remove_small(&self.out, &told);
        }
        for folder in [&self.work, &self.out] {
            if !is_as_made(folder) {
                renewed = true;
                remove_whatever(folder)?;
                self.make_own(folder)?;
            }
        }
        // It stays the same folder if that can be: a worker may have it mounted.
        if !is_as_made(&self.tmp) && (empty(&self.tmp).is_err() || !is_as_made(&self.tmp)) {
            self.tmp_made += 1;
            remove_whatever(&self.tmp)?;
            self.make_own(&self.tmp)?;
        }
        if renewed {
            self.adopt()?;
        }
        self.arm();
        self.touched = false;
        self.watched = true;
        Ok(())
    }

    /// Drops the middle of a log that has grown too long, so that it takes no more than about `bytes_max` of the disk.
    /// Its length stays what it is: who reads it sees how much was written. Looks whether anything was touched at all.
    pub(crate) fn bound_logs(&mut self, bytes_max: u64) {
        use rustix::fs::{FallocateFlags, fallocate};
        if !self.is_touched() {
            return;
        }
        for log in [&self.stdout, &self.stderr] {
            let Ok(length) = log.metadata().map(|metadata| metadata.len()) else { continue };
            if bytes_max > 0 && length > bytes_max {
                let head = bytes_max / 2;
                let dropped = length - bytes_max;
                // Where holes cannot be made the log stays long; the object that is made of it does not.
                let _ = fallocate(log, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, head, dropped);
            }
        }
    }
}

fn new_log(path: &Path, owner: Option<&Account>) -> io::Result<File> {
    remove_whatever(path)?;
    open_log(path, owner)
}

fn open_log(path: &Path, owner: Option<&Account>) -> io::Result<File> {
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    owner.map_or(Ok(()), |owner| give(path, Some(owner)))?;
    Ok(log)
}

/// Whether this is an empty folder that its user, and nobody else, may use.
fn is_as_made(path: &Path) -> bool {
    let mode = fs::symlink_metadata(path).map(|metadata| metadata.permissions().mode() & 0o7777);
    mode.is_ok_and(|mode| mode == 0o700) && is_empty_folder(path)
}

/// Moves aside what an attempt had written to its logs when nobody watched over it any more.
pub(crate) fn keep_logs(slot: &Path, key: Key) -> Left {
    let kept = slot.join(KEPT).join(key.folder());
    let keep = |name: &str| {
        let written = fs::metadata(slot.join(name)).is_ok_and(|log| log.len() > 0);
        // It ends without its log if there is no room for another name.
        written && make_private(&kept).is_ok() && fs::rename(slot.join(name), kept.join(name)).is_ok()
    };
    Left { outputs: LeftOutputs::Nothing, stdout: keep(STDOUT), stderr: keep(STDERR) }
}

/// Makes a folder that only this user may enter, if it is not there.
pub(crate) fn make_private(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        made => made,
    }
}

/// Whether this is a folder (not a link to one) with nothing in it.
pub(crate) fn is_empty_folder(path: &Path) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(folder) = rustix::fs::openat(CWD, path, flags, Mode::empty()) else { return false };
    let mut buffer = [MaybeUninit::<u8>::uninit(); 512];
    let mut entries = RawDir::new(folder, &mut buffer);
    loop {
        match entries.next() {
            None => return true,
            Some(Ok(entry)) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
            Some(Ok(_) | Err(_)) => return false,
        }
    }
}

/// Removes a file, or a folder with all that is in it, following no link. Folders that were made unwritable are made
/// writable first.
pub(crate) fn remove_whatever(path: &Path) -> io::Result<()> {
    match remove_once(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open_up(path)?;
            remove_once(path)
        }
        result => result,
    }
}

/// Removes what is in a folder, and lets its user, and nobody else, use it.
fn empty(folder: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(folder)?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(folder)? {
        remove_whatever(&entry?.path())?;
    }
    Ok(())
}

fn remove_once(path: &Path) -> io::Result<()> {
    let removed = match rustix::fs::unlinkat(CWD, path, AtFlags::empty()) {
        // Linux says ISDIR; POSIX would have it say PERM.
        Err(Errno::ISDIR | Errno::PERM) => fs::remove_dir_all(path),
        result => result.map_err(io::Error::from),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn open_up(path: &Path) -> io::Result<()> {
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        if !fs::symlink_metadata(&folder)?.is_dir() {
            continue;
        }
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use super::*;

    #[test]
    fn a_link_to_an_empty_folder_is_not_an_empty_folder() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", folder.path().join("link")).unwrap();
        assert!(is_empty_folder(&folder.path().join("real")));
        assert!(!is_empty_folder(&folder.path().join("link")));
        assert!(!is_empty_folder(&folder.path().join("absent")));
    }

    #[test]
    fn removing_follows_no_link_and_heeds_no_mode() {
        let folder = tempfile::tempdir().unwrap();
        let kept = folder.path().join("kept");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("precious"), "x").unwrap();
        let gone = folder.path().join("gone");
        fs::create_dir_all(gone.join("locked/deep")).unwrap();
        std::os::unix::fs::symlink(&kept, gone.join("link")).unwrap();
        fs::write(gone.join("locked/deep/file"), "x").unwrap();
        fs::set_permissions(gone.join("locked"), fs::Permissions::from_mode(0o500)).unwrap();
        remove_whatever(&gone).unwrap();
        assert!(!gone.exists());
        assert!(kept.join("precious").exists());
        remove_whatever(&gone).unwrap();
    }
}
