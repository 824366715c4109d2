//! Reading what is pushed.

use crate::stream::ObjectStream;

/// Reads a stream from its beginning to its end, and checks every file of it.
pub(super) struct Verifying {
    stream: ObjectStream,
    at: u64,
    file: usize,
    hasher: blake3::Hasher,
}

impl Verifying {
    pub(super) fn new(stream: ObjectStream) -> Self {
        let at = 0;
        let mut verifying = Self { stream, at, file: 0, hasher: blake3::Hasher::new() };
        // What has no bytes has the digest of nothing, or its manifest is wrong, which its own digest rules out.
        verifying.skip_empty();
        verifying
    }

    fn skip_empty(&mut self) {
        while self.stream.plan.files.get(self.file).is_some_and(|file| file.bytes == 0) {
            self.file += 1;
        }
    }

    /// The next bytes, `length` of them unless the stream ends before.
    ///
    /// # Errors
    /// When a file that ends in them is not what its name says, or cannot be read.
    pub(super) fn next(&mut self, length: usize) -> Result<Vec<u8>, String> {
        let bytes = self.stream.read_at(self.at, length).map_err(|error| format!("it cannot be read: {error}"))?;
        let prefix = self.stream.plan.prefix.len() as u64;
        let mut rest = &bytes[(prefix.saturating_sub(self.at) as usize).min(bytes.len())..];
        let mut at = self.at.max(prefix);
        while !rest.is_empty() {
            let file = self.stream.plan.files.get(self.file).ok_or("it is longer than its plan")?;
            let (id, end) = (file.id, file.start + file.bytes);
            let (taken, after) = rest.split_at(((end - at) as usize).min(rest.len()));
            self.hasher.update(taken);
            at += taken.len() as u64;
            rest = after;
            if at == end {
                if self.hasher.finalize().as_bytes() != id.digest() {
                    return Err(format!("the bytes of {id} have another digest"));
                }
                self.hasher.reset();
                self.file += 1;
                self.skip_empty();
            }
        }
        self.at += bytes.len() as u64;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use atoll_model::id::ObjectId;
    use atoll_model::value::{ObjectKind, ObjectRef};

    use super::*;
    use crate::stream::plan::StreamPlan;
    use crate::stream::source::Files;

    fn verifying(bytes: &[u8], expected: &[u8]) -> (tempfile::TempDir, Verifying) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, bytes).unwrap();
        let id = ObjectId::from_digest(*blake3::hash(expected).as_bytes());
        let length = bytes.len() as u64;
        let object = ObjectRef { id, kind: ObjectKind::File, bytes: length };
        let plan = std::sync::Arc::new(StreamPlan::of_file(id, length));
        let stream = ObjectStream { object, plan, files: Files::Paths(vec![path]) };
        (folder, Verifying::new(stream))
    }

    #[test]
    fn d5_what_the_disk_changed_is_found_while_it_is_read() {
        let (_folder, mut right) = verifying(b"0123456789", b"0123456789");
        assert_eq!(right.next(6), Ok(b"012345".to_vec()));
        assert_eq!(right.next(6), Ok(b"6789".to_vec()));
        let (_folder, mut wrong) = verifying(b"0123456789", b"0123456780");
        assert_eq!(wrong.next(6), Ok(b"012345".to_vec()));
        assert!(wrong.next(6).is_err());
    }
}
