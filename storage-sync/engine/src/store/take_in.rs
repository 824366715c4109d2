//! Taking in what came over the wire.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use atoll_model::id::ObjectId;
use atoll_model::value::ObjectKind;

use super::SiteStore;
use super::commit::write_new;
use super::error::{Doing as _, StoreError};
use super::layout::{Key, Variant};

/// Blocks of zeros of this size are left out when a file is written: they become holes.
const ZERO_BLOCK: usize = 64 << 10;

/// A verified file that is going to be in the store: its bytes stand at `path`, in `partial/`.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) id: ObjectId,
    pub(crate) variants: Variants,
    pub(crate) path: PathBuf,
}

/// Which variants of a file a tree uses. At least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Variants {
    pub(crate) plain: bool,
    pub(crate) executable: bool,
}

impl Variants {
    pub(crate) fn add(&mut self, executable: bool) {
        if executable {
            self.executable = true;
        } else {
            self.plain = true;
        }
    }
}

impl SiteStore {
    pub(crate) fn partial(&self, name: &str) -> PathBuf {
        self.inner.layout.folder("partial").join(name)
    }

    pub(crate) fn temporary(&self) -> PathBuf {
        self.inner.temporary()
    }

    pub(crate) fn has_file(&self, id: ObjectId) -> bool {
        self.inner.key_present(id, ObjectKind::File).is_some()
    }

    /// Verified bytes of a manifest, if it is there.
    pub(crate) fn manifest_bytes(&self, id: ObjectId) -> Result<Vec<u8>, StoreError> {
        self.inner.touch(id);
        self.inner.manifest(id).map(|manifest| manifest.encode())
    }

    /// Opens a file of the store for reading, without a look at its bytes: whoever reads it verifies them.
    pub(crate) fn open_file(&self, id: ObjectId) -> Result<File, StoreError> {
        self.inner.touch(id);
        let key = self.inner.key_present(id, ObjectKind::File).ok_or(StoreError::NotFound(id))?;
        let path = self.inner.layout.of(&key);
        File::open(&path).doing("open", &path)
    }

    /// Gives verified files their names, all of them durable at the end.
    pub(crate) fn take_in(&self, arrived: Vec<Arrived>) -> Result<(), StoreError> {
        let inner = &self.inner;
        let mut named = Vec::with_capacity(arrived.len());
        for Arrived { id, variants, path } in arrived {
            if variants.executable && variants.plain {
                let second = inner.temporary();
                let from = File::open(&path).doing("open", &path)?;
                inner.copier.file(&from, &second, Variant::Executable.mode())?;
                named.push((Key::new(id, Variant::Executable), second));
            }
            named.push((Key::new(id, Variant::file(!variants.plain)), path));
        }
        for (key, path) in &named {
            let permissions = path.symlink_metadata().doing("look at", path)?.permissions();
            if permissions.mode() & 0o7777 != key.variant.mode() {
                fs::set_permissions(path, fs::Permissions::from_mode(key.variant.mode())).doing("protect", path)?;
            }
        }
        self.name_all(named)
    }

    /// Gives the manifests of a tree their names, the root's last. All its files must be there.
    pub(crate) fn take_in_manifests<'a>(
        &self,
        manifests: impl DoubleEndedIterator<Item = (ObjectId, &'a [u8])>,
    ) -> Result<(), StoreError> {
        let mut named = Vec::new();
        for (id, bytes) in manifests.rev() {
            let path = self.inner.temporary();
            write_new(&path, bytes)?;
            named.push((Key::new(id, Variant::Tree), path));
        }
        self.name_all(named)
    }

    fn name_all(&self, named: Vec<(Key, PathBuf)>) -> Result<(), StoreError> {
        let inner = &self.inner;
        let paths: BTreeSet<PathBuf> = named.iter().map(|(_, path)| path.clone()).collect();
        inner.barrier.sync(&paths).doing("sync", &inner.layout.root)?;
        let mut folders = BTreeSet::new();
        for (key, path) in named {
            if inner.put_new(&key, &path)? {
                folders.extend(inner.layout.of(&key).parent().map(Path::to_owned));
            }
        }
        inner.folders.sync(&inner.barrier, folders, &inner.layout.root)
    }
}

/// Writes a new file in `partial/`, zeros as holes.
pub(crate) fn write_sparse(path: &Path, variants: Variants, bytes: &[u8]) -> Result<(), StoreError> {
    let mode = Variant::file(!variants.plain).mode();
    let file = File::options().write(true).create_new(true).mode(mode).open(path).doing("make", path)?;
    let written = write_sparse_at(&file, 0, bytes).and_then(|()| {
        // Only a large file can end with a hole.
        if bytes.len() < ZERO_BLOCK { Ok(()) } else { file.set_len(bytes.len() as u64) }
    });
    if written.is_err() {
        // A full disk has better use for the space.
        let _ = fs::remove_file(path);
    }
    written.doing("write", path)
}

/// Writes into a file that holds zeros there.
pub(crate) fn write_sparse_at(file: &File, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
    if bytes.len() < ZERO_BLOCK {
        return file.write_all_at(bytes, offset);
    }
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let zero = |block: &[u8]| block.len() == ZERO_BLOCK && block.iter().all(|byte| *byte == 0);
        let run = rest.chunks(ZERO_BLOCK).take_while(|block| !zero(block)).map(<[u8]>::len).sum::<usize>();
        if run > 0 {
            file.write_all_at(&rest[..run], offset + at as u64)?;
            at += run;
        } else {
            at += ZERO_BLOCK;
        }
    }
    Ok(())
}
