//! Reading everything again, bit by bit, so that damage is found before somebody needs what is damaged.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::io::Read as _;

use atoll_model::id::ObjectId;
use atoll_model::value::ObjectRef;
use serde::{Deserialize, Serialize};

use super::error::{Doing as _, StoreError};
use super::layout::{Key, Variant};
use super::stamp::Stamp;
use super::{Inner, SiteStore, open};
use crate::manifest::{Node, manifest_id};

const FOLDERS: [&str; 2] = ["trees", "objects"];
const FOLDERS_EACH: u16 = 256;

/// How far a pass through the store has come: all files of the folders before, and of this one those up to a name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubPlace {
    folder: u16,
    after: String,
}

/// What a part of a pass came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scrubbed {
    pub files: u64,
    pub bytes: u64,
    /// Objects that are not in the store any more, each with what was wrong: damaged files, and trees that hold one.
    pub damaged: Vec<(ObjectRef, String)>,
    /// Where to go on; nothing at the end of the pass.
    pub next: Option<ScrubPlace>,
}

impl ScrubPlace {
    /// How much of a pass is behind it, in thousandths.
    pub fn per_mille(&self) -> u16 {
        u16::try_from(u32::from(self.folder) * 1_000 / u32::from(FOLDERS_EACH * 2)).unwrap_or(1_000)
    }
}

impl SiteStore {
    /// Reads files of the store again, from the disk, until it has read so many bytes or the pass is over. Damaged copies
    /// are in quarantine then, and the trees that they are part of are not in the store any more: fetched again, only what
    /// is missing of them comes over the wire.
    pub fn scrub_some(&self, place: &ScrubPlace, bytes: u64) -> Result<Scrubbed, StoreError> {
        self.inner.scrub_some(place, bytes)
    }

    /// How far the last pass had come when [`Self::remember_scrub`] was called last; nothing if it was over.
    pub fn remembered_scrub(&self) -> Option<ScrubPlace> {
        let bytes = fs::read(self.inner.layout.folder("scrub")).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Writes down how far a pass has come. Lost, it costs another beginning.
    pub fn remember_scrub(&self, place: Option<&ScrubPlace>) -> Result<(), StoreError> {
        let (path, temporary) = (self.inner.layout.folder("scrub"), self.inner.temporary());
        let bytes = serde_json::to_vec(&place).expect("a place has an encoding");
        fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, &path)).doing("write", &path)
    }
}

impl Inner {
    fn scrub_some(&self, place: &ScrubPlace, bytes: u64) -> Result<Scrubbed, StoreError> {
        let mut scrubbed = Scrubbed::default();
        let mut bad = HashMap::new();
        let mut place = place.clone();
        while place.folder < FOLDERS_EACH * 2 {
            let keys = self.folder_keys(&place)?;
            for (name, key) in keys {
                if scrubbed.bytes >= bytes {
                    scrubbed.next = Some(place);
                    self.give_up_trees_of(&bad, &mut scrubbed)?;
                    return Ok(scrubbed);
                }
                let size = self.layout.of(&key).symlink_metadata().map_or(0, |metadata| metadata.len());
                scrubbed.files += 1;
                scrubbed.bytes += size;
                match self.scrub_key(&key) {
                    Ok(()) | Err(StoreError::NotFound(_)) => {}
                    Err(StoreError::Damaged { object, message }) => {
                        bad.insert(object.id, message.clone());
                        scrubbed.damaged.push((object, message));
                    }
                    Err(error) => return Err(error),
                }
                place.after = name;
            }
            place = ScrubPlace { folder: place.folder + 1, after: String::new() };
        }
        self.give_up_trees_of(&bad, &mut scrubbed)?;
        Ok(scrubbed)
    }

    /// Reads one file from the disk. Whoever wants to use it meanwhile does not have to wait.
    pub(super) fn scrub_key(&self, key: &Key) -> Result<(), StoreError> {
        let path = self.layout.of(key);
        let file = match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(StoreError::NotFound(key.id)),
            file => file.doing("open", &path)?,
        };
        let before = Stamp::of(&rustix::fs::fstat(&file).doing("look at", &path)?);
        let found = self.read_again(key, file, before.size);
        if found.as_ref().is_ok_and(|found| *found == key.id) {
            return Ok(());
        }
        let _shard = self.shard(key.id);
        let now = match rustix::fs::lstat(&path) {
            Err(rustix::io::Errno::NOENT) => return Err(StoreError::NotFound(key.id)),
            stat => Stamp::of(&stat.doing("look at", &path)?),
        };
        let same = (now.inode, now.size, now.modified) == (before.inode, before.size, before.modified);
        match found {
            Ok(found) if same => Err(self.quarantine(key, &format!("its bytes are those of {found}"))?),
            // A disk that cannot read what it was given has lost it.
            Err(error) if same => Err(self.quarantine(key, &format!("it cannot be read ({error})"))?),
            // Another stands there now, or somebody writes to it.
            Ok(_) | Err(_) => self.check_locked(key).map(|_| ()),
        }
    }

    fn read_again(&self, key: &Key, mut file: File, size: u64) -> std::io::Result<ObjectId> {
        forget_pages(&file);
        match key.variant {
            Variant::Plain | Variant::Executable => self.hashing.file(&file, size).map(ObjectId::from_digest),
            Variant::Tree => {
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes)?;
                Ok(manifest_id(&bytes))
            }
        }
    }

    /// The files of a folder that come after the place, in order.
    fn folder_keys(&self, place: &ScrubPlace) -> Result<Vec<(String, Key)>, StoreError> {
        let folder = FOLDERS[usize::from(place.folder / FOLDERS_EACH)];
        let digits = format!("{:02x}", place.folder % FOLDERS_EACH);
        let path = self.layout.folder(folder).join(&digits);
        let entries = match fs::read_dir(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.doing("read", &path)?,
        };
        let mut keys = Vec::new();
        for entry in entries {
            let entry = entry.doing("read", &path)?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            if let Some(key) = Key::parse(folder, &digits, &name).filter(|_| name > place.after) {
                keys.push((name, key));
            }
        }
        keys.sort_unstable();
        Ok(keys)
    }

    /// Takes every tree out of use that any of these objects is part of.
    fn give_up_trees_of(&self, bad: &HashMap<ObjectId, String>, scrubbed: &mut Scrubbed) -> Result<(), StoreError> {
        if bad.is_empty() {
            return Ok(());
        }
        let mut trees = BTreeSet::new();
        open::scan(&self.layout, &mut |key, _| {
            if key.variant == Variant::Tree {
                trees.insert(key.id);
            }
        })?;
        let mut gone: HashSet<ObjectId> = bad.keys().copied().filter(|id| self.is_gone(*id)).collect();
        loop {
            let before = gone.len();
            for tree in &trees {
                if gone.contains(tree) {
                    continue;
                }
                let manifest = match self.manifest(*tree) {
                    Ok(manifest) => manifest,
                    // A damaged one is found, and told of, when its turn comes, or was.
                    Err(StoreError::NotFound(_) | StoreError::Damaged { .. }) => continue,
                    Err(error) => return Err(error),
                };
                let part = manifest.entries.iter().find_map(|entry| match entry.node {
                    Node::File { id, .. } | Node::Directory { id, .. } => gone.contains(&id).then_some(id),
                    Node::Symlink { .. } => None,
                });
                let Some(part) = part else { continue };
                let object =
                    ObjectRef { id: *tree, kind: atoll_model::value::ObjectKind::Tree, bytes: manifest.totals().bytes };
                self.remove_key(&Key::new(*tree, Variant::Tree))?;
                scrubbed.damaged.push((object, format!("{part} of it is damaged")));
                gone.insert(*tree);
            }
            if gone.len() == before {
                return Ok(());
            }
        }
    }

    /// Of a file with two variants the other may be sound.
    fn is_gone(&self, id: ObjectId) -> bool {
        use atoll_model::value::ObjectKind;
        [ObjectKind::File, ObjectKind::Tree].into_iter().all(|kind| self.key_present(id, kind).is_none())
    }
}

/// Has the file read from the disk, not from what the system remembers of it (D9). A file system that does not care for
/// the hint is verified as well as it can be.
fn forget_pages(file: &File) {
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
}
