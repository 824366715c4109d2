//! How references to files stand in journals.
//!
//! There an executable file is told by a `/` at the end of its name or path, where no other can have one: so what was
//! written before the bit was kept reads as it did, and the bit costs nothing where it is not set.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{FileName, FileRef, ListedFile};
use crate::id::ObjectId;

const MARK: u8 = b'/';

fn marked(name: &[u8], executable: bool) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name.len() + 1);
    bytes.extend_from_slice(name);
    bytes.extend(executable.then_some(MARK));
    bytes
}

fn unmark(mut name: Vec<u8>) -> (Vec<u8>, bool) {
    let executable = name.last() == Some(&MARK);
    if executable {
        name.pop();
    }
    (name, executable)
}

impl Serialize for FileRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let name = marked(self.name.as_bytes(), self.executable);
        StoredFile { object: self.object, bytes: self.bytes, name }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for FileRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let StoredFile { object, bytes, name } = StoredFile::deserialize(deserializer)?;
        let (name, executable) = unmark(name);
        let name = FileName::new(&name).map_err(D::Error::custom)?;
        Ok(Self { object, bytes, name, executable })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename = "FileRef")]
struct StoredFile {
    object: ObjectId,
    bytes: u64,
    name: Vec<u8>,
}

impl Serialize for ListedFile {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let path = marked(&self.path, self.executable);
        StoredListedFile { path, object: self.object, bytes: self.bytes }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ListedFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let StoredListedFile { path, object, bytes } = StoredListedFile::deserialize(deserializer)?;
        let (path, executable) = unmark(path);
        Ok(Self { path, object, bytes, executable })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename = "ListedFile")]
struct StoredListedFile {
    path: Vec<u8>,
    object: ObjectId,
    bytes: u64,
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn object() -> ObjectId {
        ObjectId::from_digest([7; 32])
    }

    #[test]
    fn what_was_written_before_the_bit_was_kept_is_read_as_a_file_that_is_not_executable() {
        let old = StoredFile { object: object(), bytes: 12, name: b"a.csv".to_vec() };
        let name = FileName::new(b"a.csv").unwrap();
        let file = FileRef { object: object(), bytes: 12, name, executable: false };
        let bytes = postcard::to_stdvec(&old).unwrap();
        assert_eq!(postcard::from_bytes::<FileRef>(&bytes).unwrap(), file);
        assert_eq!(postcard::to_stdvec(&file).unwrap(), bytes);
    }

    #[test]
    fn an_executable_file_comes_back_as_one() {
        let name = FileName::new(b"program").unwrap();
        let file = FileRef { object: object(), bytes: 3, name, executable: true };
        let bytes = postcard::to_stdvec(&file).unwrap();
        assert_eq!(postcard::from_bytes::<FileRef>(&bytes).unwrap(), file);
        let listed = ListedFile { path: b"bin/program".to_vec(), object: object(), bytes: 3, executable: true };
        let bytes = postcard::to_stdvec(&listed).unwrap();
        assert_eq!(postcard::from_bytes::<ListedFile>(&bytes).unwrap(), listed);
    }
}
