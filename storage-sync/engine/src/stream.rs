//! The canonical stream of an object: how it crosses a border.
//!
//! Of a file it is the bytes. Of a tree it is first its manifests, depth first from the root, each once and behind its
//! length (u32, little-endian); then the bytes of its files in the order in which the manifests name them, each once. So
//! every byte has one place, the length is known before anything is sent, any range can be made or fetched alone, and
//! each manifest and file is verified as soon as it is whole. It is no archive format: there are names in it, and no
//! paths, so nothing can be put outside of the directory that it is unpacked to.

mod identify;
mod pack;
pub(crate) mod plan;
mod receive;
pub(crate) mod source;
mod unpack;

pub use identify::{TreeHead, identify_tree};
pub use pack::{BUNDLE_PASSED_OVER, Packed, pack, pack_bundle};
pub use receive::CorruptStream;
pub(crate) use receive::{Receiver, Sink};
pub use source::ObjectStream;
pub use unpack::{UnpackError, Unpacker};
