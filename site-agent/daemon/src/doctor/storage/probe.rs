//! Trying a file system out, in a folder of its own that is gone afterwards.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock, ioctl_ficlone, major, minor, statvfs};
use tokio::sync::oneshot;

use super::{Looked, Room, Seen, Trial};

/// A file server that hangs holds up whoever asks it, for ever.
const PATIENCE: Duration = Duration::from_secs(20);
const SYNCS: usize = 21;

/// Looks at the folder, or at the nearest one above it.
pub(in super::super) async fn look(data_dir: &Path) -> Looked {
    let (teller, told) = oneshot::channel();
    let data_dir = data_dir.to_owned();
    // A thread of its own: one that hangs in the kernel is not waited for when the program ends.
    std::thread::spawn(move || {
        // Nobody may listen any more.
        let _ = teller.send(see(&data_dir));
    });
    match tokio::time::timeout(PATIENCE, told).await {
        Ok(Ok(looked)) => looked,
        Ok(Err(_)) | Err(_) => Looked::Late(PATIENCE),
    }
}

fn see(data_dir: &Path) -> Looked {
    let nearest = data_dir.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    match seen(nearest, nearest == data_dir) {
        Ok(seen) => Looked::Seen(seen),
        Err(error) => Looked::Failed(nearest.to_owned(), error.to_string()),
    }
}

fn seen(folder: &Path, is_there: bool) -> io::Result<Seen> {
    let found = statvfs(folder)?;
    let used = found.f_blocks.saturating_sub(found.f_bfree);
    let room = Room {
        free_bytes: found.f_bavail * found.f_frsize,
        all_bytes: (used + found.f_bavail) * found.f_frsize,
        free_inodes: found.f_favail,
        all_inodes: found.f_files,
    };
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let kind = kind_of(&mounts, &folder.canonicalize()?, folder.metadata()?.dev());
    let trial = TrialFolder::make(folder).and_then(|own| own.trial()).map_err(|error| error.to_string());
    Ok(Seen { folder: folder.to_owned(), is_there, room, kind: kind.unwrap_or_else(|| "unknown".to_owned()), trial })
}

/// What kind of file system a path is on, by the lines of `/proc/self/mountinfo`: that of its device, or, where files have
/// another device than their mount (btrfs), the one mounted nearest above.
fn kind_of(mounts: &str, path: &Path, device: u64) -> Option<String> {
    let device = format!("{}:{}", major(device), minor(device));
    let mounts = mounts.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(2);
        let (number, at) = (before.next()?, PathBuf::from(unescaped(before.nth(1)?)));
        Some((number == device, at, after.split(' ').next()?))
    });
    let above = mounts.filter(|(_, at, _)| path.starts_with(at));
    // Of several at one place the last one is seen.
    let found = above.max_by_key(|(is_device, at, _)| (*is_device, at.components().count()));
    found.map(|(_, _, kind)| kind.to_owned())
}

/// Spaces are written as `\040`.
fn unescaped(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// A folder that goes when it is dropped.
struct TrialFolder(PathBuf);

impl Drop for TrialFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, folder = %self.0.display(), "what was tried out with is left behind");
        }
    }
}

impl TrialFolder {
    fn make(folder: &Path) -> io::Result<Self> {
        let own = folder.join(format!(".atoll-doctor-{}", uuid::Uuid::now_v7().simple()));
        DirBuilder::new().mode(0o700).create(&own)?;
        Ok(Self(own))
    }

    fn trial(&self) -> io::Result<Trial> {
        let path = |name: &str| self.0.join(name);
        let mut took = Vec::with_capacity(SYNCS);
        for number in 0..SYNCS {
            let began = Instant::now();
            let mut file = File::create(path(&format!("sync-{number}")))?;
            file.write_all(&[7; 4_096])?;
            file.sync_all()?;
            took.push(began.elapsed().as_secs_f64() * 1e3);
        }
        took.sort_by(f64::total_cmp);
        let first = File::open(path("sync-0"))?;
        let clone = File::create(path("clone"))?;
        let locked = flock(&first, FlockOperation::NonBlockingLockExclusive);
        Ok(Trial {
            hard_links: fs::hard_link(path("sync-0"), path("link")).is_ok(),
            reflinks: ioctl_ficlone(&clone, &first).is_ok(),
            locks: locked.is_ok(),
            sync_ms: took[SYNCS / 2],
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use rustix::fs::makedev;

    use super::*;

    const MOUNTS: &str = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:26 / /scratch\\040space rw shared:4 - lustre mds@tcp:/scratch rw
31 22 0:27 /@home /home rw shared:5 - btrfs /dev/vdb rw
33 22 0:29 / /proc rw - proc proc rw
";

    #[test]
    fn the_kind_of_a_file_system_is_that_of_its_device_or_of_the_mount_above() {
        let kind = |path: &str, device| kind_of(MOUNTS, Path::new(path), device);
        assert_eq!(kind("/var/lib", makedev(254, 0)).as_deref(), Some("ext4"));
        assert_eq!(kind("/scratch space/atoll", makedev(0, 26)).as_deref(), Some("lustre"));
        // Its subvolumes have devices that are nowhere in the list.
        assert_eq!(kind("/home/me", makedev(0, 99)).as_deref(), Some("btrfs"));
        assert_eq!(kind_of("", Path::new("/"), 1), None);
    }

    #[tokio::test]
    async fn a_folder_is_tried_out_and_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let Looked::Seen(seen) = look(folder.path()).await else { panic!("it answers") };
        assert!(seen.is_there && seen.room.all_bytes > 0, "{seen:?}");
        assert!(seen.trial.unwrap().hard_links);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_folder_that_is_not_there_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let wanted = folder.path().join("lib/atoll");
        let Looked::Seen(seen) = look(&wanted).await else { panic!("it answers") };
        assert_eq!((seen.folder.as_path(), seen.is_there), (folder.path(), false));
        assert!(!folder.path().join("lib").exists());
    }
}
