//! Which tree a stream is of, told by its beginning: for streams that are sent without their name.

use atoll_model::limits::TREE_MANIFEST_BYTES_MAX;
use atoll_model::value::{ObjectKind, ObjectRef};

use super::CorruptStream;
use crate::manifest::{Manifest, manifest_id};

const LENGTH: usize = 4;

/// What the root's manifest says of a tree. Not verified beyond it: whoever takes in the stream does that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeHead {
    pub object: ObjectRef,
    pub files: u64,
}

/// Reads the root's manifest, which is the first of a tree's stream; nothing while more of the stream is needed.
///
/// # Errors
/// When this is not the beginning of a tree's stream.
pub fn identify_tree(beginning: &[u8]) -> Result<Option<TreeHead>, CorruptStream> {
    let Some((length, rest)) = beginning.split_first_chunk::<LENGTH>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > TREE_MANIFEST_BYTES_MAX {
        return Err(CorruptStream("the stream does not begin as that of a tree".to_owned()));
    }
    let Some(manifest) = rest.get(..length) else { return Ok(None) };
    let decoded = Manifest::decode(manifest).map_err(|error| CorruptStream(error.to_string()))?;
    let totals = decoded.totals();
    let object = ObjectRef { id: manifest_id(manifest), kind: ObjectKind::Tree, bytes: totals.bytes };
    Ok(Some(TreeHead { object, files: totals.files }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::pack;

    #[test]
    fn a_tree_is_told_by_the_beginning_of_its_stream() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        std::fs::create_dir(directory.path().join("below")).expect("a directory can be made");
        std::fs::write(directory.path().join("a"), "alpha").expect("a file can be written");
        std::fs::write(directory.path().join("below/b"), "beta").expect("a file can be written");
        let packed = pack(directory.path()).expect("it can be packed");
        let stream = packed.read_at(0, 1 << 20).expect("it can be read");
        let head = identify_tree(&stream).expect("it is a tree").expect("it is whole");
        assert_eq!((head.object, head.files), (packed.object(), 2));
        assert_eq!(identify_tree(&stream[..20]), Ok(None));
        assert!(identify_tree(b"\xff\xff\xff\xffno tree").is_err());
        assert!(identify_tree(b"\x07\0\0\0no tree").is_err());
    }
}
