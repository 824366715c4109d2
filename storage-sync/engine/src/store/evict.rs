//! Letting objects go, to make room. Which may go is decided elsewhere; what is proposed and what is let go is never what
//! anything here is made of, what is lent, sealed or being taken in, nor what was used since it was proposed.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use atoll_model::id::ObjectId;
use atoll_model::value::{ObjectKind, ObjectRef};

use super::error::StoreError;
use super::layout::{Key, Variant};
use super::seal::Phase;
use super::{Inner, SiteStore, locked, open};
use crate::manifest::Node;

/// An object that nothing here needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evictable {
    pub object: ObjectRef,
    /// Bytes of room that it takes; of a tree, those of its manifest: its files are proposed by themselves, after it.
    pub frees: u64,
    pub used_at: SystemTime,
}

/// What became of an object that was to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Eviction {
    pub object: ObjectRef,
    /// Whether it is not in the store any more.
    pub gone: bool,
    pub freed: u64,
}

/// What must not go now.
#[derive(Debug, Default)]
pub(super) struct Guards {
    /// Being taken in, each as often as somebody does.
    held: HashMap<ObjectId, u32>,
    watch: Watch,
}

/// What happens to the objects that were proposed last.
#[derive(Debug, Default)]
enum Watch {
    #[default]
    Closed,
    /// It is not known yet which they are.
    Looking(HashSet<ObjectId>),
    /// Each, with the number of places in manifests of this store where it stands.
    Open(HashMap<ObjectId, u32>),
}

impl Watch {
    fn note(&mut self, used: ObjectId) {
        match self {
            Self::Closed => {}
            Self::Looking(all) => {
                all.insert(used);
            }
            Self::Open(proposed) => {
                proposed.remove(&used);
            }
        }
    }
}

/// Keeps objects in the store while it lives, whether they are there or not.
#[derive(Debug)]
pub(crate) struct Held {
    store: SiteStore,
    objects: Vec<ObjectId>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.store.inner.release(&self.objects);
    }
}

/// What a look through the store has found.
#[derive(Default)]
struct Survey {
    objects: HashMap<ObjectId, Found>,
    /// What each tree is made of, with repetitions.
    children: HashMap<ObjectId, Vec<ObjectId>>,
    /// In how many places of manifests each object stands.
    places: HashMap<ObjectId, u32>,
    chosen: Vec<Evictable>,
}

#[derive(Clone, Copy)]
struct Found {
    object: ObjectRef,
    frees: u64,
    used_at: SystemTime,
    /// Whether it also stands where executions find it.
    lent: bool,
}

impl SiteStore {
    /// What may go to make so much room, and was not used for `idle`: the least recently used first, at most `most`
    /// objects. From now until the next such call it is watched whether they are used.
    pub fn evictable(&self, bytes: u64, idle: Duration, most: usize) -> Result<Vec<Evictable>, StoreError> {
        self.inner.propose(None, bytes, idle, most)
    }

    /// Those of these objects that may go, and what they alone are made of.
    pub fn evictable_of(&self, objects: &[ObjectRef]) -> Result<Vec<Evictable>, StoreError> {
        let only = objects.iter().map(|object| object.id).collect();
        self.inner.propose(Some(only), u64::MAX, Duration::ZERO, usize::MAX)
    }

    /// Lets go of objects that were proposed, in the order in which they were. Those that are needed or were used since
    /// stay; so does everything that was not among the last proposals. A crash at any point leaves whole trees, or files
    /// that are proposed again.
    pub fn evict(&self, objects: &[ObjectRef]) -> Result<Vec<Eviction>, StoreError> {
        self.inner.evict(objects)
    }

    /// Keeps these objects from being let go, from before somebody looks whether they are there.
    pub(crate) fn hold(&self, objects: Vec<ObjectId>) -> Held {
        self.inner.hold(&objects);
        Held { store: self.clone(), objects }
    }
}

impl Inner {
    pub(super) fn hold(&self, objects: &[ObjectId]) {
        let Guards { held, watch } = &mut *locked(&self.guards);
        for object in objects {
            *held.entry(*object).or_default() += 1;
            watch.note(*object);
        }
    }

    pub(super) fn release(&self, objects: &[ObjectId]) {
        let mut guards = locked(&self.guards);
        for object in objects {
            if let Some(count) = guards.held.get_mut(object) {
                *count -= 1;
                if *count == 0 {
                    guards.held.remove(object);
                }
            }
        }
    }

    /// The object is used: it does not go under a proposal that was made before.
    pub(super) fn touch(&self, object: ObjectId) {
        if self.watching.load(Ordering::Acquire) {
            locked(&self.guards).watch.note(object);
        }
    }

    fn propose(
        &self,
        only: Option<HashSet<ObjectId>>,
        bytes: u64,
        idle: Duration,
        most: usize,
    ) -> Result<Vec<Evictable>, StoreError> {
        self.watching.store(true, Ordering::Release);
        locked(&self.guards).watch = Watch::Looking(HashSet::new());
        let mut survey = self.survey()?;
        let sealed = self.committed_seals();
        let busy: HashSet<ObjectId> = {
            let guards = locked(&self.guards);
            guards.held.keys().copied().chain(sealed).collect()
        };
        let wanted = |id: &ObjectId| only.as_ref().is_none_or(|only| only.contains(id));
        survey.choose(&wanted, &busy, bytes, idle, most);
        let Survey { chosen, places, .. } = survey;
        let mut guards = locked(&self.guards);
        let used = match std::mem::take(&mut guards.watch) {
            Watch::Looking(used) => used,
            // Two looks at a time: this one proposes nothing.
            Watch::Closed | Watch::Open(_) => return Ok(Vec::new()),
        };
        let chosen: Vec<Evictable> = chosen.into_iter().filter(|found| !used.contains(&found.object.id)).collect();
        let places_of = |id: ObjectId| places.get(&id).copied().unwrap_or(0);
        guards.watch = Watch::Open(chosen.iter().map(|found| (found.object.id, places_of(found.object.id))).collect());
        Ok(chosen)
    }

    fn committed_seals(&self) -> Vec<ObjectId> {
        let seals: Vec<_> = locked(&self.seals).values().cloned().collect();
        let committed = |phase: &Phase| match phase {
            Phase::Committed(object) => Some(object.id),
            Phase::Waiting(_) => None,
        };
        seals.iter().filter_map(|sealed| committed(&locked(sealed).phase)).collect()
    }

    fn survey(&self) -> Result<Survey, StoreError> {
        let mut survey = Survey::default();
        let mut trees = Vec::new();
        open::scan(&self.layout, &mut |key, metadata| {
            let changed = Duration::from_secs(u64::try_from(metadata.ctime()).unwrap_or(0));
            let found = Found {
                object: ObjectRef { id: key.id, kind: key.variant.kind(), bytes: metadata.len() },
                frees: metadata.len(),
                used_at: UNIX_EPOCH + changed,
                lent: metadata.nlink() > 1,
            };
            if key.variant == Variant::Tree {
                trees.push(key.id);
            }
            // The two variants of a file are one object.
            let known = survey.objects.entry(key.id).or_insert(Found { frees: 0, ..found });
            known.frees += found.frees;
            known.used_at = known.used_at.max(found.used_at);
            known.lent |= found.lent;
        })?;
        for tree in trees {
            let manifest = match self.manifest(tree) {
                Ok(manifest) => manifest,
                Err(StoreError::NotFound(_) | StoreError::Damaged { .. }) => {
                    survey.objects.remove(&tree);
                    continue;
                }
                Err(error) => return Err(error),
            };
            if let Some(found) = survey.objects.get_mut(&tree) {
                found.object.bytes = manifest.totals().bytes;
            }
            let child = |node: &Node| match node {
                Node::File { id, .. } | Node::Directory { id, .. } => Some(*id),
                Node::Symlink { .. } => None,
            };
            let children: Vec<ObjectId> = manifest.entries.iter().filter_map(|entry| child(&entry.node)).collect();
            for child in &children {
                *survey.places.entry(*child).or_default() += 1;
            }
            survey.children.insert(tree, children);
        }
        Ok(survey)
    }

    fn evict(&self, objects: &[ObjectRef]) -> Result<Vec<Eviction>, StoreError> {
        let sealed: HashSet<ObjectId> = self.committed_seals().into_iter().collect();
        let mut done: HashMap<ObjectId, u64> = HashMap::new();
        let mut folders = BTreeSet::new();
        // A tree goes before what it is made of, and that it went is on disk first: half a tree would pass for a whole one.
        for tree in objects.iter().filter(|object| object.kind == ObjectKind::Tree) {
            let Ok(manifest) = self.manifest(tree.id) else { continue };
            let key = Key::new(tree.id, Variant::Tree);
            let Some(freed) = self.let_go(tree.id, &[key], &sealed)? else { continue };
            done.insert(tree.id, freed);
            folders.extend(self.layout.of(&key).parent().map(Path::to_owned));
            if let Watch::Open(proposed) = &mut locked(&self.guards).watch {
                for entry in &manifest.entries {
                    if let Node::File { id, .. } | Node::Directory { id, .. } = entry.node
                        && let Some(places) = proposed.get_mut(&id)
                    {
                        *places = places.saturating_sub(1);
                    }
                }
            }
        }
        if !folders.is_empty() {
            self.folders.sync(&self.barrier, folders, &self.layout.root)?;
        }
        for file in objects.iter().filter(|object| object.kind == ObjectKind::File) {
            let keys = [Key::new(file.id, Variant::Plain), Key::new(file.id, Variant::Executable)];
            if let Some(freed) = self.let_go(file.id, &keys, &sealed)? {
                done.insert(file.id, freed);
            }
        }
        let became = |object: &ObjectRef| {
            let freed = done.get(&object.id).copied();
            let gone = freed.is_some() || self.key_present(object.id, object.kind).is_none();
            Eviction { object: *object, gone, freed: freed.unwrap_or(0) }
        };
        Ok(objects.iter().map(became).collect())
    }

    /// The room that it made, if the object may go.
    fn let_go(&self, id: ObjectId, keys: &[Key], sealed: &HashSet<ObjectId>) -> Result<Option<u64>, StoreError> {
        let _shard = self.shard(id);
        let mut guards = locked(&self.guards);
        let Watch::Open(proposed) = &guards.watch else { return Ok(None) };
        if proposed.get(&id) != Some(&0) || guards.held.contains_key(&id) || sealed.contains(&id) {
            return Ok(None);
        }
        let found: Vec<_> =
            keys.iter().filter_map(|key| Some((key, self.layout.of(key).symlink_metadata().ok()?))).collect();
        if found.is_empty() || found.iter().any(|(_, metadata)| metadata.nlink() > 1) {
            return Ok(None);
        }
        let mut freed = 0;
        for (key, _) in found {
            freed += self.remove_key_locked(key)?.unwrap_or(0);
        }
        if let Watch::Open(proposed) = &mut guards.watch {
            proposed.remove(&id);
        }
        Ok(Some(freed))
    }
}

impl Survey {
    fn choose(
        &mut self,
        wanted: &dyn Fn(&ObjectId) -> bool,
        busy: &HashSet<ObjectId>,
        bytes: u64,
        idle: Duration,
        most: usize,
    ) {
        let before = SystemTime::now().checked_sub(idle).unwrap_or(UNIX_EPOCH);
        let roots: Vec<ObjectId> =
            self.objects.keys().filter(|id| !self.places.contains_key(id) && wanted(id)).copied().collect();
        let mut looked = HashMap::new();
        let mut roots: Vec<(SystemTime, bool, ObjectId)> = roots
            .into_iter()
            .map(|id| {
                let (used_at, in_use) = self.use_of(id, busy, &mut looked);
                (used_at, in_use, id)
            })
            .collect();
        roots.sort_unstable();
        let mut left = self.places.clone();
        let mut frees = 0;
        for (used_at, in_use, root) in roots {
            if frees >= bytes || self.chosen.len() >= most || used_at > before {
                break;
            }
            if in_use {
                continue;
            }
            let mut going = vec![root];
            while let Some(id) = going.pop() {
                let Some(found) = self.objects.get(&id).filter(|_| self.chosen.len() < most) else { continue };
                frees += found.frees;
                self.chosen.push(Evictable { object: found.object, frees: found.frees, used_at });
                for child in self.children.get(&id).into_iter().flatten() {
                    let places = left.entry(*child).or_default();
                    *places = places.saturating_sub(1);
                    if *places == 0 {
                        going.push(*child);
                    }
                }
            }
        }
    }

    /// When the object, or anything that it is made of, was last used; and whether it is being used.
    fn use_of(
        &self,
        id: ObjectId,
        busy: &HashSet<ObjectId>,
        looked: &mut HashMap<ObjectId, (SystemTime, bool)>,
    ) -> (SystemTime, bool) {
        if let Some(known) = looked.get(&id) {
            return *known;
        }
        let found = self.objects.get(&id);
        let mut used_at = found.map_or(UNIX_EPOCH, |found| found.used_at);
        let mut in_use = found.is_some_and(|found| found.lent) || busy.contains(&id);
        for child in self.children.get(&id).into_iter().flatten() {
            let (of_child, child_in_use) = self.use_of(*child, busy, looked);
            used_at = used_at.max(of_child);
            in_use |= child_in_use;
        }
        looked.insert(id, (used_at, in_use));
        (used_at, in_use)
    }
}
