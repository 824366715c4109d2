//! Whether an execution has touched its slot: most short ones have not, and one question to the kernel is cheaper than a
//! look into every folder.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
use rustix::io::Errno;

/// Room for many events: what they are does not matter.
const EVENT_BYTES: usize = 4 << 10;

/// Hears of the first change of each file and folder it watches. Where the kernel has no more watches to give, anything may
/// have been touched.
#[derive(Debug)]
pub(crate) struct Watch {
    events: Option<OwnedFd>,
}

impl Watch {
    /// Watches nothing yet.
    pub(crate) fn new() -> Self {
        Self { events: init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok() }
    }

    /// Forgets what has happened, and watches these from now on. Nothing may run in the slot meanwhile.
    pub(crate) fn arm(&mut self, folders: [&Path; 3], files: [&Path; 2]) {
        let Some(events) = &self.events else { return };
        while Self::read(events) == Ok(EVENT_BYTES) {}
        let own = WatchFlags::ATTRIB | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF | WatchFlags::ONESHOT;
        let folders = folders.map(|folder| (folder, own | WatchFlags::CREATE | WatchFlags::MOVED_TO));
        let files = files.map(|file| (file, own | WatchFlags::MODIFY | WatchFlags::OPEN));
        let armed =
            folders.into_iter().chain(files).try_for_each(|(path, flags)| add_watch(events, path, flags).map(drop));
        if armed.is_err() {
            self.events = None;
        }
    }

    /// Whether anything may have been touched since it was armed.
    pub(crate) fn has_seen_something(&self) -> bool {
        self.events.as_ref().is_none_or(|events| Self::read(events) != Err(Errno::AGAIN))
    }

    fn read(events: &OwnedFd) -> Result<usize, Errno> {
        let mut buffer = [MaybeUninit::<u8>::uninit(); EVENT_BYTES];
        rustix::io::read(events, &mut buffer).map(|(read, _)| read.len())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use std::fs::{self, File, OpenOptions, Permissions};
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn seen(touch: impl FnOnce(&Path, &mut File)) -> bool {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        ["a", "b", "c"].iter().for_each(|name| fs::create_dir(at(name)).unwrap());
        let mut log = OpenOptions::new().create(true).append(true).open(at("out")).unwrap();
        File::create(at("err")).unwrap();
        let mut watch = Watch::new();
        let arm = |watch: &mut Watch| watch.arm([&at("a"), &at("b"), &at("c")], [&at("out"), &at("err")]);
        arm(&mut watch);
        assert!(!watch.has_seen_something());
        touch(folder.path(), &mut log);
        let seen = watch.has_seen_something();
        arm(&mut watch);
        assert!(!watch.has_seen_something(), "armed anew it has seen nothing");
        seen
    }

    #[test]
    fn whatever_may_stay_behind_is_seen() {
        assert!(seen(|folder, _| fs::write(folder.join("a/file"), "x").unwrap()));
        assert!(seen(|folder, _| fs::create_dir(folder.join("b/folder")).unwrap()));
        assert!(seen(|folder, _| std::os::unix::fs::symlink("/", folder.join("c/link")).unwrap()));
        assert!(seen(|folder, _| fs::hard_link(folder.join("err"), folder.join("c/link")).unwrap()));
        assert!(seen(|folder, _| {
            fs::write(folder.join("elsewhere"), "x").unwrap();
            fs::rename(folder.join("elsewhere"), folder.join("a/file")).unwrap();
        }));
        assert!(seen(|_, log| log.write_all(b"x").unwrap()));
        assert!(seen(|_, log| log.set_len(10).unwrap()));
        assert!(seen(|folder, _| fs::set_permissions(folder.join("a"), Permissions::from_mode(0o500)).unwrap()));
        assert!(seen(|folder, _| {
            fs::remove_dir(folder.join("a")).unwrap();
            fs::create_dir(folder.join("a")).unwrap();
        }));
    }

    #[test]
    fn a_log_that_is_opened_is_seen_and_a_folder_that_is_read_is_not() {
        assert!(seen(|folder, _| drop(File::open(folder.join("out")).unwrap())));
        assert!(!seen(|folder, _| fs::read_dir(folder.join("a")).unwrap().for_each(drop)));
    }
}
