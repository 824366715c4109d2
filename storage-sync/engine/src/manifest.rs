//! Manifests: what a directory holds. A tree is named by the digest of its root's manifest.
//!
//! A manifest is `atoll tree 1\n`, the number of entries (u32), and the entries in bytewise order of their names, each
//! once. An entry is a kind (u8), the length of its name (u8) and the name; then
//!
//! | kind | what | then |
//! |---|---|---|
//! | 0, 1 | file, executable file | size (u64), digest (32 bytes) |
//! | 2 | directory | bytes, files and entries below it (u64 each), digest of its manifest (32 bytes) |
//! | 3 | symbolic link | length of its target (u16), target |
//!
//! Numbers are little-endian. There is exactly one encoding of a directory, and anything else is refused. The digest is
//! taken in a context of its own (`blake3::derive_key`), so that no file can have the name of a manifest.

use std::collections::{HashMap, HashSet, VecDeque};

use atoll_model::id::ObjectId;
use atoll_model::limits::{SYMLINK_BYTES_MAX, TREE_DEPTH_MAX, TREE_ENTRIES_MAX};
use atoll_model::value::FileName;

const CONTEXT: &str = "atoll/tree/1";
const MAGIC: &[u8] = b"atoll tree 1\n";

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Manifest {
    pub(crate) entries: Vec<ManifestEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ManifestEntry {
    pub(crate) name: FileName,
    pub(crate) node: Node,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    File { id: ObjectId, bytes: u64, executable: bool },
    Directory { id: ObjectId, totals: Totals },
    Symlink { target: Vec<u8> },
}

/// What is below a directory, counting every name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Totals {
    pub(crate) bytes: u64,
    pub(crate) files: u64,
    pub(crate) entries: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error("a manifest is not in its canonical form: {0}")]
    NotCanonical(&'static str),
    #[error("a manifest holds a name that no file can have")]
    Name,
    #[error("the symbolic link {name} points to {target}, {why}")]
    Symlink { name: String, target: String, why: &'static str },
    #[error("the totals of a directory are not those of what is in it")]
    Totals,
    #[error("the tree is larger than allowed: {0}")]
    TooLarge(&'static str),
    #[error("a manifest of the tree is missing")]
    Missing,
}

pub(crate) fn manifest_id(bytes: &[u8]) -> ObjectId {
    ObjectId::from_digest(blake3::derive_key(CONTEXT, bytes))
}

impl Manifest {
    /// The entries must be in order of their names.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(MAGIC.len() + 4 + self.entries.len() * 64);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&(self.entries.len() as u32).to_le_bytes());
        for entry in &self.entries {
            let kind = match &entry.node {
                Node::File { executable, .. } => u8::from(*executable),
                Node::Directory { .. } => 2,
                Node::Symlink { .. } => 3,
            };
            let name = entry.name.as_bytes();
            bytes.push(kind);
            bytes.push(name.len() as u8);
            bytes.extend_from_slice(name);
            match &entry.node {
                Node::File { id, bytes: size, .. } => {
                    bytes.extend_from_slice(&size.to_le_bytes());
                    bytes.extend_from_slice(id.digest());
                }
                Node::Directory { id, totals } => {
                    bytes.extend_from_slice(&totals.bytes.to_le_bytes());
                    bytes.extend_from_slice(&totals.files.to_le_bytes());
                    bytes.extend_from_slice(&totals.entries.to_le_bytes());
                    bytes.extend_from_slice(id.digest());
                }
                Node::Symlink { target } => {
                    bytes.extend_from_slice(&(target.len() as u16).to_le_bytes());
                    bytes.extend_from_slice(target);
                }
            }
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let mut reader = Reader { bytes };
        if reader.take(MAGIC.len())? != MAGIC {
            return Err(ManifestError::NotCanonical("it does not begin as one"));
        }
        let count = u32::from_le_bytes(reader.array()?);
        let mut entries: Vec<ManifestEntry> = Vec::new();
        for _ in 0..count {
            let [kind, length] = reader.array()?;
            let name = FileName::new(reader.take(usize::from(length))?).map_err(|_| ManifestError::Name)?;
            let node = match kind {
                0 | 1 => {
                    let bytes = u64::from_le_bytes(reader.array()?);
                    Node::File { id: ObjectId::from_digest(reader.array()?), bytes, executable: kind == 1 }
                }
                2 => {
                    let totals = Totals {
                        bytes: u64::from_le_bytes(reader.array()?),
                        files: u64::from_le_bytes(reader.array()?),
                        entries: u64::from_le_bytes(reader.array()?),
                    };
                    Node::Directory { id: ObjectId::from_digest(reader.array()?), totals }
                }
                3 => {
                    let length = u16::from_le_bytes(reader.array()?);
                    Node::Symlink { target: reader.take(usize::from(length))?.to_vec() }
                }
                _ => return Err(ManifestError::NotCanonical("an entry is of no known kind")),
            };
            if entries.last().is_some_and(|last| last.name >= name) {
                return Err(ManifestError::NotCanonical("its names are not in order"));
            }
            entries.push(ManifestEntry { name, node });
        }
        if reader.bytes.is_empty() {
            Ok(Self { entries })
        } else {
            Err(ManifestError::NotCanonical("there is something after its end"))
        }
    }

    /// Saturating, so that no sum of lies comes out small.
    pub(crate) fn totals(&self) -> Totals {
        self.entries.iter().fold(Totals::default(), |sum, entry| {
            let own = match &entry.node {
                Node::File { bytes, .. } => Totals { bytes: *bytes, files: 1, entries: 0 },
                Node::Directory { totals, .. } => *totals,
                Node::Symlink { .. } => Totals::default(),
            };
            Totals {
                bytes: sum.bytes.saturating_add(own.bytes),
                files: sum.files.saturating_add(own.files),
                entries: sum.entries.saturating_add(own.entries).saturating_add(1),
            }
        })
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], ManifestError> {
        let (taken, rest) =
            self.bytes.split_at_checked(count).ok_or(ManifestError::NotCanonical("it ends in the middle"))?;
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ManifestError> {
        Ok(self.take(N)?.try_into().expect("take gives as many bytes as it was asked for"))
    }
}

/// Why a symbolic link `depth` directories below a tree's root must not be in it, if so. A target may go up, but not above
/// the root, and go down; it may come up again only out of directories of the tree itself, and not out of links, which may
/// lead anywhere: `is_directory` is asked whether these names lead to one from the directory that the link stands in. What
/// is above that is not the same wherever the directory is used, so from there a target only goes down.
pub(crate) fn symlink_fault(
    target: &[u8],
    depth: usize,
    is_directory: &mut dyn FnMut(&[&[u8]]) -> bool,
) -> Option<&'static str> {
    if target.is_empty() || target.contains(&0) {
        return Some("which is no path");
    }
    if target.len() > SYMLINK_BYTES_MAX {
        return Some("which is too long");
    }
    if target.starts_with(b"/") {
        return Some("an absolute path, which means something else at every site");
    }
    let mut up = 0;
    let mut down: Vec<&[u8]> = Vec::new();
    for name in target.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".") {
        if name != b".." {
            down.push(name);
            continue;
        }
        if down.is_empty() {
            up += 1;
            if up > depth {
                return Some("which is outside of the directory");
            }
        } else if up > 0 || !is_directory(&down) {
            return Some("which goes up after it went down, and so may lead anywhere");
        } else {
            down.pop();
        }
    }
    None
}

/// Whether these names lead to a directory, from a directory and through directories only.
fn leads_to_directory(from: ObjectId, names: &[&[u8]], manifests: &HashMap<ObjectId, Manifest>) -> bool {
    let below = |id: ObjectId, name: &&[u8]| {
        let entries = &manifests.get(&id)?.entries;
        let place = entries.binary_search_by(|entry| entry.name.as_bytes().cmp(name)).ok()?;
        match &entries[place].node {
            Node::Directory { id, .. } => Some(*id),
            Node::File { .. } | Node::Symlink { .. } => None,
        }
    };
    names.iter().try_fold(from, below).is_some()
}

/// Checks a whole tree: totals, limits, symbolic links. `manifests` holds those that it refers to, and the root's.
pub(crate) fn check_tree(root: ObjectId, manifests: &HashMap<ObjectId, Manifest>) -> Result<Totals, ManifestError> {
    let get = |id: &ObjectId| manifests.get(id).ok_or(ManifestError::Missing);
    let totals = get(&root)?.totals();
    if totals.entries > TREE_ENTRIES_MAX {
        return Err(ManifestError::TooLarge("it has too many entries"));
    }
    if totals.bytes == u64::MAX {
        return Err(ManifestError::TooLarge("its bytes cannot be counted"));
    }
    // Breadth first, so that each manifest is met first where it is least deep, which is where its links reach furthest.
    let mut seen = HashSet::from([root]);
    let mut queue = VecDeque::from([(root, 0)]);
    while let Some((id, depth)) = queue.pop_front() {
        for entry in &get(&id)?.entries {
            match &entry.node {
                Node::File { .. } => {}
                Node::Symlink { target } => {
                    let mut is_directory = |names: &[&[u8]]| leads_to_directory(id, names, manifests);
                    if let Some(why) = symlink_fault(target, depth, &mut is_directory) {
                        let target = String::from_utf8_lossy(target).escape_debug().to_string();
                        return Err(ManifestError::Symlink { name: entry.name.to_string(), target, why });
                    }
                }
                Node::Directory { id, totals } => {
                    if get(id)?.totals() != *totals {
                        return Err(ManifestError::Totals);
                    }
                    if seen.insert(*id) {
                        queue.push_back((*id, depth + 1));
                    }
                }
            }
        }
    }
    check_depth(root, manifests, &mut HashMap::new(), 0)?;
    Ok(totals)
}

/// How deep a tree goes. Recursion is bounded by the limit that it checks.
fn check_depth(
    id: ObjectId,
    manifests: &HashMap<ObjectId, Manifest>,
    known: &mut HashMap<ObjectId, usize>,
    above: usize,
) -> Result<usize, ManifestError> {
    let height = match known.get(&id) {
        Some(height) => *height,
        None if above >= TREE_DEPTH_MAX => return Err(ManifestError::TooLarge("it is too deep")),
        None => {
            let mut height = 0;
            for entry in &manifests.get(&id).ok_or(ManifestError::Missing)?.entries {
                if let Node::Directory { id, .. } = &entry.node {
                    height = height.max(1 + check_depth(*id, manifests, known, above + 1)?);
                }
            }
            known.insert(id, height);
            height
        }
    };
    if above + height > TREE_DEPTH_MAX { Err(ManifestError::TooLarge("it is too deep")) } else { Ok(height) }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn name(bytes: &[u8]) -> FileName {
        FileName::new(bytes).unwrap()
    }

    fn file(bytes: u64) -> Node {
        Node::File { id: ObjectId::from_digest([9; 32]), bytes, executable: false }
    }

    fn sample() -> Manifest {
        let totals = Totals { bytes: 5, files: 2, entries: 3 };
        Manifest {
            entries: vec![
                ManifestEntry { name: name(b"\xff odd\nname"), node: file(7) },
                ManifestEntry {
                    name: name(b"\xff\xff"),
                    node: Node::Directory { id: ObjectId::from_digest([1; 32]), totals },
                },
            ],
        }
    }

    #[test]
    fn a_manifest_has_one_encoding() {
        let bytes = sample().encode();
        assert_eq!(Manifest::decode(&bytes), Ok(sample()));
        for length in 0..bytes.len() {
            assert!(Manifest::decode(&bytes[..length]).is_err());
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(Manifest::decode(&longer).is_err());
        let mut reversed = sample();
        reversed.entries.reverse();
        assert!(Manifest::decode(&reversed.encode()).is_err());
    }

    #[test]
    fn a_file_never_has_the_name_of_a_manifest() {
        let bytes = sample().encode();
        assert_ne!(manifest_id(&bytes).digest(), blake3::hash(&bytes).as_bytes());
    }

    #[test]
    fn g8_a_manifest_with_a_path_for_a_name_is_refused() {
        for bad in [&b".."[..], b".", b"a/b", b"/etc", b"a\0b", b""] {
            let mut bytes = [MAGIC, &1u32.to_le_bytes()[..], &[3, bad.len() as u8], bad, &1u16.to_le_bytes()].concat();
            bytes.push(b'x');
            assert_eq!(Manifest::decode(&bytes), Err(ManifestError::Name), "{bad:?}");
        }
    }

    #[test]
    fn g7_a_link_stays_inside_or_is_refused() {
        // There is a directory `a` with a directory `b` in it; everything else may be a link.
        let fault = |target: &str, depth| {
            symlink_fault(target.as_bytes(), depth, &mut |names| matches!(names, [b"a"] | [b"a", b"b"]))
        };
        for (target, depth) in [
            ("a", 0),
            ("a/b", 0),
            ("../a", 1),
            ("../../x/y", 2),
            ("./a//b/.", 0),
            (".", 0),
            ("a/../c", 0),
            ("a/b/../../c/d", 0),
            ("a/../../c", 1),
            ("a/..", 0),
        ] {
            assert_eq!(fault(target, depth), None, "{target}");
        }
        for (target, depth) in [
            ("/etc/passwd", 3),
            ("..", 0),
            ("../../a", 1),
            ("a/../../b", 0),
            ("link/../b", 0),
            ("a/link/../../b", 0),
            ("../a/../b", 1),
            ("", 0),
        ] {
            assert!(fault(target, depth).is_some(), "{target}");
        }
    }

    #[test]
    fn g7_a_link_that_comes_up_out_of_another_link_is_refused_in_a_tree_that_arrives() {
        let link = |target: &[u8]| Node::Symlink { target: target.to_vec() };
        let empty = Manifest::default();
        let (empty_id, totals) = (manifest_id(&empty.encode()), empty.totals());
        let tree = |a: Node| Manifest {
            entries: vec![
                ManifestEntry { name: name(b"a"), node: a },
                ManifestEntry { name: name(b"b"), node: file(1) },
                ManifestEntry { name: name(b"l"), node: link(b"a/../b") },
            ],
        };
        let check = |root: Manifest| {
            let id = manifest_id(&root.encode());
            check_tree(id, &HashMap::from([(id, root), (empty_id, empty.clone())]))
        };
        assert!(check(tree(Node::Directory { id: empty_id, totals })).is_ok());
        assert!(matches!(check(tree(link(b"."))), Err(ManifestError::Symlink { .. })));
        assert!(matches!(check(tree(file(1))), Err(ManifestError::Symlink { .. })));
    }

    #[test]
    fn g5_a_tree_that_unfolds_to_more_than_it_says_is_refused() {
        let mut manifests = HashMap::new();
        let mut inner = Manifest { entries: vec![ManifestEntry { name: name(b"f"), node: file(1) }] };
        for _ in 0..40 {
            let id = manifest_id(&inner.encode());
            let totals = inner.totals();
            manifests.insert(id, inner);
            let node = Node::Directory { id, totals };
            inner = Manifest {
                entries: vec![
                    ManifestEntry { name: name(b"a"), node: node.clone() },
                    ManifestEntry { name: name(b"b"), node },
                ],
            };
        }
        let root = manifest_id(&inner.encode());
        manifests.insert(root, inner);
        assert_eq!(check_tree(root, &manifests), Err(ManifestError::TooLarge("it has too many entries")));
    }

    #[test]
    fn totals_that_are_lies_are_refused() {
        let inner = Manifest { entries: vec![ManifestEntry { name: name(b"f"), node: file(1) }] };
        let id = manifest_id(&inner.encode());
        let totals = Totals { bytes: 2, files: 1, entries: 1 };
        let outer =
            Manifest { entries: vec![ManifestEntry { name: name(b"d"), node: Node::Directory { id, totals } }] };
        let root = manifest_id(&outer.encode());
        let manifests = HashMap::from([(id, inner), (root, outer)]);
        assert_eq!(check_tree(root, &manifests), Err(ManifestError::Totals));
    }
}
