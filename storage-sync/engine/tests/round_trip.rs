//! Any tree comes out as it went in: through the store, over the stream, into another store, onto a disk.

mod support;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::Result;
use proptest::prelude::*;
use storage_sync_engine::store::Entry;
use storage_sync_engine::stream::{ObjectStream, Unpacker, pack};
use support::{Site, look};

#[derive(Debug, Clone)]
enum Node {
    File {
        bytes: Vec<u8>,
        executable: bool,
    },
    /// To the entry of its directory that has this place, if there is one.
    Link(usize),
    Directory(BTreeMap<Vec<u8>, Node>),
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_filter("no name holds it", |byte| *byte != 0 && *byte != b'/');
    let odd = prop::collection::vec(byte, 1..12);
    let plain = "[a-c]{1,2}".prop_map(String::into_bytes);
    prop_oneof![odd, plain].prop_filter("no file has it", |name| name != b"." && name != b"..")
}

fn node() -> impl Strategy<Value = Node> {
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        Just(Vec::new()),
        // Twins, and files that begin, end or consist of zeros.
        (1usize..3, 0usize..200_000).prop_map(|(byte, length)| vec![byte as u8 - 1; length]),
    ];
    let leaf = prop_oneof![
        4 => (bytes, any::<bool>()).prop_map(|(bytes, executable)| Node::File { bytes, executable }),
        1 => (0usize..4).prop_map(Node::Link),
    ];
    leaf.prop_recursive(4, 40, 6, |node| prop::collection::btree_map(name(), node, 0..6).prop_map(Node::Directory))
}

fn tree() -> impl Strategy<Value = Node> {
    prop::collection::btree_map(name(), node(), 0..6).prop_map(Node::Directory)
}

fn make(path: &Path, node: &Node, siblings: &BTreeMap<Vec<u8>, Node>) -> Result<()> {
    match node {
        Node::File { bytes, executable } => {
            fs::write(path, bytes)?;
            fs::set_permissions(path, fs::Permissions::from_mode(if *executable { 0o755 } else { 0o640 }))?;
        }
        Node::Link(place) => {
            let target = siblings.keys().nth(*place).map_or(&b"nowhere"[..], Vec::as_slice);
            std::os::unix::fs::symlink(OsStr::from_bytes(target), path)?;
        }
        Node::Directory(children) => {
            fs::create_dir(path)?;
            for (name, child) in children {
                make(&path.join(OsStr::from_bytes(name)), child, children)?;
            }
        }
    }
    Ok(())
}

fn round_trip(tree: &Node, chunk: usize) -> Result<()> {
    let (from, to) = (Site::new()?, Site::new()?);
    let made = from.path("made");
    make(&made, tree, &BTreeMap::new())?;
    let before = look(&made)?;

    let packed = pack(&made)?;
    let stored = from.store.ingest(&made)?;
    assert_eq!(packed.object(), stored.object);
    let stream = ObjectStream::of(&from.store, stored.object)?;
    assert_eq!(packed.stream_bytes(), stream.stream_bytes());

    // The stream is the same however it is cut.
    let mut unpacker = Unpacker::new(stored.object, &to.path("unpacked"))?;
    let mut at = 0;
    while at < stream.stream_bytes() {
        let bytes = stream.read_at(at, chunk)?;
        at += bytes.len() as u64;
        unpacker.push(&bytes)?;
    }
    unpacker.finish()?;
    assert_eq!(look(&to.path("unpacked"))?, before);

    let again = to.store.ingest(&to.path("unpacked"))?;
    assert_eq!(again.object, stored.object);
    let entries = Entry::for_value("x", &stored.value);
    to.store.materialise(&to.path("in"), &entries)?;
    assert_eq!(look(&to.path("in/x/made"))?, before);
    from.store.materialise(&from.path("in"), &entries)?;
    assert_eq!(look(&from.path("in/x/made"))?, before);

    // Taken back and lent again, nothing has to be hashed again: that it was not touched is known.
    from.store.take_back(&from.path("in"))?;
    let lent = from.store.materialise(&from.path("in"), &entries)?;
    assert!(from.store.touched(&lent)?.is_empty());
    assert_eq!(from.store.stats().quarantined, 0);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn g6_any_tree_comes_out_as_it_went_in(tree in tree(), chunk in 1usize..100_000) {
        let result = round_trip(&tree, chunk.max(500));
        prop_assert!(result.is_ok(), "{result:?}");
    }

    #[test]
    fn g8_a_damaged_stream_writes_nothing_outside_and_is_refused(
        tree in tree(),
        place in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let result = damaged(&tree, place, bit);
        prop_assert!(result.is_ok(), "{result:?}");
    }
}

fn damaged(tree: &Node, place: prop::sample::Index, bit: u8) -> Result<()> {
    let site = Site::new()?;
    let made = site.path("made");
    make(&made, tree, &BTreeMap::new())?;
    let packed = pack(&made)?;
    let mut bytes = packed.read_at(0, packed.stream_bytes() as usize)?;
    let index = place.index(bytes.len());
    bytes[index] ^= 1 << bit;
    let folder = site.path("target");
    fs::create_dir(&folder)?;
    let mut unpacker = Unpacker::new(packed.object(), &folder.join("unpacked"))?;
    let refused = match unpacker.push(&bytes) {
        Ok(()) => unpacker.finish().is_err(),
        Err(_) => {
            drop(unpacker);
            true
        }
    };
    assert!(refused, "byte {index} of {} was not missed", bytes.len());
    assert_eq!(fs::read_dir(&folder)?.count(), 0);
    Ok(())
}
