//! Looking into a directory that is in the bucket, and taking files out of it.

use std::collections::HashMap;

use atoll_model::id::ObjectId;
use atoll_model::limits::LISTING_FILES_MAX;
use atoll_model::value::{ListedFile, ObjectKind, ObjectRef};
use futures::TryStreamExt as _;

use super::{Bucket, BucketError, ByteStream, Encryption, Stored, upload};
use crate::manifest::Node;
use crate::stream::CorruptStream;
use crate::stream::plan::{PrefixReader, StreamPlan, fits};

/// What a directory in the bucket holds, as its own manifests say.
#[derive(Debug)]
pub struct TreeContents {
    tree: Stored,
    files: u64,
    listing: Option<Vec<ListedFile>>,
    /// Where the bytes of each file begin in the stream, and how many they are.
    places: HashMap<ObjectId, (u64, u64)>,
}

impl TreeContents {
    /// The directory that it was read of.
    pub fn tree(&self) -> &Stored {
        &self.tree
    }

    /// How many files it has, each counted as often as it is named.
    pub fn files(&self) -> u64 {
        self.files
    }

    /// The files in order of their paths; nothing where there are more than [`LISTING_FILES_MAX`].
    pub fn listing(&self) -> Option<&[ListedFile]> {
        self.listing.as_deref()
    }
}

pub(super) async fn contents(bucket: &Bucket, stored: Stored) -> Result<TreeContents, BucketError> {
    let tree = stored.object;
    let mut stream = bucket.get_stream(stored.clone(), None).await?;
    let mut reader = PrefixReader::new(tree.id);
    let corrupt = |message: String| upload::corrupt(tree, CorruptStream(message));
    while let Some(bytes) = stream.try_next().await.map_err(BucketError::reading(tree))? {
        let plan = reader.push(&bytes).map_err(|error| corrupt(error.to_string()))?;
        let Some((plan, _)) = plan else { continue };
        if !fits(&plan, tree) {
            return Err(corrupt("the tree has another size".to_owned()));
        }
        return Ok(of_plan(stored, &plan));
    }
    Err(corrupt("it ends too early".to_owned()))
}

fn of_plan(tree: Stored, plan: &StreamPlan) -> TreeContents {
    let files = plan.totals.files;
    let listing = (files <= LISTING_FILES_MAX as u64).then(|| {
        let mut listing = Vec::new();
        list(plan, tree.object.id, &mut Vec::new(), &mut listing);
        // Within one directory the order of names is that of paths; across them a name that goes on with a byte below
        // `/` comes before the files of a directory.
        listing.sort_by(|a, b| a.path.cmp(&b.path));
        listing
    });
    let places = plan.files.iter().map(|file| (file.id, (file.start, file.bytes))).collect();
    TreeContents { tree, files, listing, places }
}

/// The plan was checked: it has every manifest, and its depth is bounded.
fn list(plan: &StreamPlan, id: ObjectId, path: &mut Vec<u8>, files: &mut Vec<ListedFile>) {
    for entry in &plan.decoded[&id].entries {
        let length = path.len();
        path.extend_from_slice(if length == 0 { b"" } else { b"/" });
        path.extend_from_slice(entry.name.as_bytes());
        match &entry.node {
            Node::File { id, bytes, executable } => {
                let (object, bytes, executable) = (*id, *bytes, *executable);
                files.push(ListedFile { path: path.clone(), object, bytes, executable });
            }
            Node::Directory { id, .. } => list(plan, *id, path, files),
            Node::Symlink { .. } => {}
        }
        path.truncate(length);
    }
}

async fn open(bucket: &Bucket, from: &TreeContents, file: ObjectId) -> Result<(ObjectRef, ByteStream), BucketError> {
    let not_in_it = || upload::corrupt(from.tree.object, CorruptStream(format!("{file} is not in it")));
    let (start, bytes) = *from.places.get(&file).ok_or_else(not_in_it)?;
    let range = start..start + bytes;
    let stream = match range.is_empty() {
        // There is no range of no bytes.
        true => Box::pin(futures::stream::empty()),
        false => bucket.get_stream(from.tree.clone(), Some(range)).await?,
    };
    Ok((ObjectRef { id: file, kind: ObjectKind::File, bytes }, stream))
}

pub(super) async fn read_file(bucket: &Bucket, from: &TreeContents, file: ObjectId) -> Result<Vec<u8>, BucketError> {
    let tree = from.tree.object;
    let (object, mut stream) = open(bucket, from, file).await?;
    let mut content = Vec::new();
    while let Some(bytes) = stream.try_next().await.map_err(BucketError::reading(tree))? {
        content.extend_from_slice(&bytes);
    }
    if content.len() as u64 != object.bytes || *blake3::hash(&content).as_bytes() != *file.digest() {
        return Err(upload::corrupt(tree, CorruptStream(format!("{file} in it is damaged"))));
    }
    Ok(content)
}

pub(super) async fn take_out(
    bucket: &Bucket,
    from: &TreeContents,
    file: ObjectId,
    encrypt: Option<&Encryption>,
) -> Result<u64, BucketError> {
    let tree = from.tree.object;
    let (object, stream) = open(bucket, from, file).await?;
    match bucket.put_stream(Stored { object, encryption: encrypt.cloned() }, stream).await {
        // It is the directory that is damaged; the file never was there.
        Err(BucketError::Corrupt { message, .. }) => Err(BucketError::Corrupt { object: tree, message }),
        result => result,
    }
}
