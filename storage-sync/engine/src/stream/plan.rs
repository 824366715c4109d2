//! What is where in the stream of a tree.

use std::collections::{HashMap, HashSet};

use atoll_model::id::ObjectId;
use atoll_model::limits::TREE_MANIFEST_BYTES_MAX;
use atoll_model::value::ObjectRef;

use crate::manifest::{Manifest, ManifestError, Node, Totals, check_tree, manifest_id};
use crate::store::take_in::Variants;

const LENGTH: usize = 4;

/// A file in the stream.
#[derive(Debug, Clone)]
pub(crate) struct PlannedFile {
    pub(crate) id: ObjectId,
    pub(crate) bytes: u64,
    /// Where its first byte is.
    pub(crate) start: u64,
    pub(crate) variants: Variants,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct StreamPlan {
    /// The part of the stream that holds the manifests.
    pub(crate) prefix: Vec<u8>,
    /// The manifests in it: name, and where their bytes are in the prefix.
    pub(crate) manifests: Vec<(ObjectId, std::ops::Range<usize>)>,
    pub(crate) decoded: HashMap<ObjectId, Manifest>,
    pub(crate) files: Vec<PlannedFile>,
    pub(crate) totals: Totals,
    pub(crate) stream_bytes: u64,
}

impl StreamPlan {
    /// The plan of a file's stream.
    pub(crate) fn of_file(id: ObjectId, bytes: u64) -> Self {
        let mut variants = Variants::default();
        variants.add(false);
        let totals = Totals { bytes, files: 1, entries: 0 };
        let files = vec![PlannedFile { id, bytes, start: 0, variants }];
        Self { files, totals, stream_bytes: bytes, ..Self::default() }
    }

    pub(crate) fn manifest_bytes(&self) -> impl DoubleEndedIterator<Item = (ObjectId, &[u8])> {
        self.manifests.iter().map(|(id, range)| (*id, &self.prefix[range.clone()]))
    }
}

/// Puts the plan of a tree together, manifest by manifest in the order of the stream.
#[derive(Debug)]
pub(crate) struct Planner {
    root: ObjectId,
    /// The next manifests, the very next last.
    expected: Vec<ObjectId>,
    seen: HashSet<ObjectId>,
    plan: StreamPlan,
}

impl Planner {
    pub(crate) fn new(root: ObjectId) -> Self {
        Self { root, expected: vec![root], seen: HashSet::from([root]), plan: StreamPlan::default() }
    }

    /// Whose manifest comes next; nothing when all are there.
    pub(crate) fn next(&self) -> Option<ObjectId> {
        self.expected.last().copied()
    }

    /// Takes in the manifest that comes next.
    pub(crate) fn add(&mut self, bytes: &[u8]) -> Result<(), ManifestError> {
        let id = self.expected.pop().expect("a manifest is expected");
        if manifest_id(bytes) != id {
            return Err(ManifestError::NotCanonical("its digest is another"));
        }
        let manifest = Manifest::decode(bytes)?;
        self.plan.prefix.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        let start = self.plan.prefix.len();
        self.plan.prefix.extend_from_slice(bytes);
        self.plan.manifests.push((id, start..self.plan.prefix.len()));
        for entry in manifest.entries.iter().rev() {
            if let Node::Directory { id, .. } = &entry.node
                && !self.seen.contains(id)
            {
                self.expected.push(*id);
            }
        }
        self.plan.decoded.insert(id, manifest);
        // A directory that was named twice before it came is expected twice.
        while let Some(next) = self.expected.last() {
            if self.plan.decoded.contains_key(next) {
                self.expected.pop();
            } else {
                self.seen.insert(*next);
                break;
            }
        }
        Ok(())
    }

    /// All manifests are there: checks the tree whole, and says where its files are.
    pub(crate) fn finish(mut self) -> Result<StreamPlan, ManifestError> {
        self.plan.totals = check_tree(self.root, &self.plan.decoded)?;
        let mut places: HashMap<ObjectId, usize> = HashMap::new();
        let mut at = self.plan.prefix.len() as u64;
        for (id, _) in &self.plan.manifests {
            let manifest = self.plan.decoded.get(id).ok_or(ManifestError::Missing)?;
            for entry in &manifest.entries {
                let Node::File { id, bytes, executable } = &entry.node else { continue };
                let index = *places.entry(*id).or_insert(self.plan.files.len());
                if index == self.plan.files.len() {
                    let variants = Variants::default();
                    self.plan.files.push(PlannedFile { id: *id, bytes: *bytes, start: at, variants });
                    at = at.checked_add(*bytes).ok_or(ManifestError::TooLarge("its bytes cannot be counted"))?;
                }
                let file = &mut self.plan.files[index];
                if file.bytes != *bytes {
                    return Err(ManifestError::NotCanonical("one file has two sizes"));
                }
                file.variants.add(*executable);
            }
        }
        self.plan.stream_bytes = at;
        Ok(self.plan)
    }
}

/// Takes manifests out of the beginning of a stream as they come.
#[derive(Debug)]
pub(crate) struct PrefixReader {
    planner: Planner,
    buffer: Vec<u8>,
}

impl PrefixReader {
    pub(crate) fn new(root: ObjectId) -> Self {
        Self { planner: Planner::new(root), buffer: Vec::new() }
    }

    /// Takes bytes; gives the plan once the last manifest is there, with the bytes that follow it.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<Option<(StreamPlan, Vec<u8>)>, ManifestError> {
        self.buffer.extend_from_slice(bytes);
        let mut at = 0;
        while self.planner.next().is_some() {
            let rest = &self.buffer[at..];
            let Some((length, rest)) = rest.split_first_chunk::<LENGTH>() else { break };
            let length = u32::from_le_bytes(*length) as usize;
            if length > TREE_MANIFEST_BYTES_MAX {
                return Err(ManifestError::TooLarge("a manifest is too long"));
            }
            let Some(manifest) = rest.get(..length) else { break };
            self.planner.add(manifest)?;
            at += LENGTH + length;
        }
        self.buffer.drain(..at);
        if self.planner.next().is_some() {
            return Ok(None);
        }
        let done = std::mem::replace(&mut self.planner, Planner::new(ObjectId::from_digest([0; 32])));
        Ok(Some((done.finish()?, std::mem::take(&mut self.buffer))))
    }
}

/// Whether a plan is that of the object that was asked for.
pub(crate) fn fits(plan: &StreamPlan, object: ObjectRef) -> bool {
    plan.totals.bytes == object.bytes
}
