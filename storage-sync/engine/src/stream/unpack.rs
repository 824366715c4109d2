//! Writes a stream to a local path.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use atoll_model::id::ObjectId;
use atoll_model::value::{ObjectKind, ObjectRef};
use rustix::fs::{CWD, RenameFlags};

use super::plan::{PlannedFile, StreamPlan};
use super::receive::{CorruptStream, Receiver, Sink};
use crate::manifest::{Manifest, Node};

#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("what was received is damaged: {}", .0.0)]
    Corrupt(CorruptStream),
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
    #[error("cannot {what} {}", .path.display())]
    Io {
        /// A verb.
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl From<CorruptStream> for UnpackError {
    fn from(corrupt: CorruptStream) -> Self {
        Self::Corrupt(corrupt)
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> UnpackError {
    let path = path.to_owned();
    move |source| UnpackError::Io { what, path, source }
}

/// Writes a stream to a local path, verifying it; nothing stands at the path before all of it is verified. Dropped before
/// its end, it leaves nothing behind. Blocks.
#[derive(Debug)]
pub struct Unpacker {
    receiver: Receiver,
    writer: Writer,
}

#[derive(Debug)]
struct Writer {
    object: ObjectRef,
    target: PathBuf,
    temporary: PathBuf,
    /// Of a file alone.
    executable: bool,
    /// Where each file of a tree goes, below the root, and whether it is executable there.
    places: HashMap<ObjectId, Vec<(PathBuf, bool)>>,
    links: Vec<(PathBuf, Vec<u8>)>,
    open: Option<File>,
    finished: bool,
}

impl Unpacker {
    /// Begins to write `object` to `path`, which must not exist.
    pub fn new(object: ObjectRef, path: &Path) -> Result<Self, UnpackError> {
        if path.symlink_metadata().is_ok() {
            return Err(UnpackError::Exists(path.to_owned()));
        }
        let name = path.file_name().unwrap_or(OsStr::new("download")).as_bytes();
        let mut hidden = b".".to_vec();
        // Room for what is added, so that a long name does not become too long.
        hidden.extend_from_slice(&name[..name.len().min(200)]);
        hidden.extend_from_slice(format!(".partial-{}", std::process::id()).as_bytes());
        let temporary = path.with_file_name(OsStr::from_bytes(&hidden));
        let writer = Writer {
            object,
            target: path.to_owned(),
            temporary,
            executable: false,
            places: HashMap::new(),
            links: Vec::new(),
            open: None,
            finished: false,
        };
        Ok(Self { receiver: Receiver::new(object), writer })
    }

    /// A file that is the whole stream may be run where it goes to; the stream does not say so.
    #[must_use]
    pub fn executable(mut self, executable: bool) -> Self {
        self.writer.executable = executable;
        self
    }

    /// Takes the next bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), UnpackError> {
        self.receiver.push(bytes, &mut self.writer)
    }

    /// The stream has ended: puts the result at its path.
    pub fn finish(mut self) -> Result<(), UnpackError> {
        self.receiver.finish(&mut self.writer)?;
        self.writer.finish()
    }
}

impl Writer {
    fn directory(&mut self, plan: &StreamPlan, manifest: &Manifest, below: &Path) -> Result<(), UnpackError> {
        let path = self.temporary.join(below);
        fs::create_dir(&path).map_err(failed("make", &path))?;
        for entry in &manifest.entries {
            let place = below.join(OsStr::from_bytes(entry.name.as_bytes()));
            match &entry.node {
                Node::File { id, executable, .. } => {
                    self.places.entry(*id).or_default().push((place, *executable));
                }
                Node::Directory { id, .. } => self.directory(plan, &plan.decoded[id], &place)?,
                Node::Symlink { target } => self.links.push((place, target.clone())),
            }
        }
        Ok(())
    }

    fn place(&self, file: &PlannedFile, which: usize) -> Option<(PathBuf, bool)> {
        match self.object.kind {
            ObjectKind::File => (which == 0).then(|| (self.temporary.clone(), self.executable)),
            ObjectKind::Tree => {
                let (place, executable) = self.places.get(&file.id)?.get(which)?;
                Some((self.temporary.join(place), *executable))
            }
        }
    }

    fn create(path: &Path, executable: bool) -> Result<File, UnpackError> {
        let mode = if executable { 0o777 } else { 0o666 };
        File::options().write(true).create_new(true).mode(mode).open(path).map_err(failed("make", path))
    }

    fn finish(&mut self) -> Result<(), UnpackError> {
        // Links come last, so that nothing is ever written through one.
        for (place, target) in &self.links {
            let path = self.temporary.join(place);
            std::os::unix::fs::symlink(OsStr::from_bytes(target), &path).map_err(failed("make", &path))?;
        }
        match rustix::fs::renameat_with(CWD, &self.temporary, CWD, &self.target, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => return Err(UnpackError::Exists(self.target.clone())),
            // A file system that does not know the flag.
            Err(rustix::io::Errno::INVAL) if self.target.symlink_metadata().is_err() => {
                fs::rename(&self.temporary, &self.target).map_err(failed("make", &self.target))?;
            }
            Err(error) => return Err(failed("make", &self.target)(error.into())),
        }
        self.finished = true;
        Ok(())
    }
}

impl Sink for Writer {
    type Error = UnpackError;

    fn begin(&mut self, plan: &StreamPlan) -> Result<(), UnpackError> {
        self.directory(plan, &plan.decoded[&self.object.id], Path::new(""))
    }

    fn file(&mut self, _: usize, file: &PlannedFile) -> Result<(), UnpackError> {
        let (path, executable) = self.place(file, 0).expect("a file of the stream has a place in the tree");
        self.open = Some(Self::create(&path, executable)?);
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), UnpackError> {
        let file = self.open.as_mut().expect("bytes come for a file that has begun");
        file.write_all(bytes).map_err(failed("write below", &self.temporary))
    }

    fn file_verified(&mut self, _: usize, file: &PlannedFile) -> Result<(), UnpackError> {
        self.open = None;
        let (first, _) = self.place(file, 0).expect("a file of the stream has a place in the tree");
        let mut which = 1;
        while let Some((path, executable)) = self.place(file, which) {
            let mut from = File::open(&first).map_err(failed("open", &first))?;
            io::copy(&mut from, &mut Self::create(&path, executable)?).map_err(failed("write", &path))?;
            which += 1;
        }
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.finished {
            // Nothing may be there yet, and what cannot be removed is hidden and says what it is.
            let _ = match self.object.kind {
                ObjectKind::File => fs::remove_file(&self.temporary),
                ObjectKind::Tree => fs::remove_dir_all(&self.temporary),
            };
        }
    }
}
