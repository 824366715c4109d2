//! Hashes a local file or directory in order to send it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atoll_model::id::ObjectId;
use atoll_model::limits::{BUNDLE_BYTES_MAX, BUNDLE_ENTRIES_MAX};
use atoll_model::value::{DirectoryRef, FileName, FileRef, ObjectKind, ObjectRef, Value};

use super::plan::{Planner, StreamPlan};
use super::source::{Files, ObjectStream};
use crate::hash::Hashing;
use crate::manifest::{Manifest, ManifestEntry, Node, Totals, manifest_id};
use crate::store::error::{Doing as _, IngestError};
use crate::store::layout::shown_path;
use crate::walk::{Tree, WalkLimits, walk};

/// A local file or directory, ready to be sent. It is read again when its stream is; the receiver finds out if it has
/// changed since.
#[derive(Debug)]
pub struct Packed {
    stream: ObjectStream,
    files: u64,
    executable: bool,
}

impl Packed {
    pub fn object(&self) -> ObjectRef {
        self.stream.object
    }

    /// Files in it, each by every name that it has.
    pub fn files(&self) -> u64 {
        self.files
    }

    /// The value that stands for it.
    pub fn value(&self, name: FileName) -> Value {
        let ObjectRef { id: object, kind, bytes } = self.stream.object;
        match kind {
            ObjectKind::File => Value::File(FileRef { object, bytes, name, executable: self.executable }),
            ObjectKind::Tree => {
                Value::Directory(DirectoryRef { object, bytes, files: self.files, name, listing: None })
            }
        }
    }

    /// Whether it is a file that may be run.
    pub fn is_executable(&self) -> bool {
        self.executable
    }

    /// Exact length of the stream.
    pub fn stream_bytes(&self) -> u64 {
        self.stream.stream_bytes()
    }

    /// Bytes of the stream from `offset`, `length` of them unless it ends before. Blocks.
    pub fn read_at(&self, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
        self.stream.read_at(offset, length)
    }
}

struct Packing {
    hashing: Hashing,
    manifests: HashMap<ObjectId, Vec<u8>>,
    paths: HashMap<ObjectId, PathBuf>,
}

/// What lies beside the code of an action and is no part of it: histories of versions, and what interpreters and desktops
/// leave. With it the same code would have another digest each time.
pub const BUNDLE_PASSED_OVER: &[&str] = &[".git", ".hg", ".svn", "__pycache__", ".DS_Store"];

/// Hashes the folder of an action. Its digest says nothing of times, owners, and modes but whether a file may be run. Blocks.
pub fn pack_bundle(path: &Path) -> Result<Packed, IngestError> {
    let limits = WalkLimits {
        entries: BUNDLE_ENTRIES_MAX,
        bytes: BUNDLE_BYTES_MAX,
        passed_over: BUNDLE_PASSED_OVER,
        ..WalkLimits::default()
    };
    pack_within(path, limits)
}

/// Hashes a local file or directory. `path` may be a symbolic link; what is below it is bound by the rules of outputs.
/// Blocks.
pub fn pack(path: &Path) -> Result<Packed, IngestError> {
    pack_within(path, WalkLimits::default())
}

fn pack_within(path: &Path, limits: WalkLimits) -> Result<Packed, IngestError> {
    let real = match path.canonicalize() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(IngestError::Missing(shown_path(path)));
        }
        real => real.doing("find", path)?,
    };
    let walked =
        walk(&real, limits, false, &mut |file| Ok((file.stat.st_size as u64, file.stat.st_mode & 0o111 != 0)))?;
    let mut packing = Packing { hashing: Hashing::new(), manifests: HashMap::new(), paths: HashMap::new() };
    let (object, plan) = match &walked.tree {
        Tree::File((bytes, _)) => {
            let id = packing.file(&real, *bytes)?;
            (ObjectRef { id, kind: ObjectKind::File, bytes: *bytes }, StreamPlan::of_file(id, *bytes))
        }
        Tree::Directory(children) => {
            let (id, totals) = packing.directory(&real, children)?;
            let mut planner = Planner::new(id);
            while let Some(next) = planner.next() {
                planner.add(&packing.manifests[&next]).expect("a manifest that was just made is sound");
            }
            let refused = |error: crate::manifest::ManifestError| IngestError::Refused {
                path: shown_path(path),
                why: format!("cannot be sent: {error}"),
            };
            (ObjectRef { id, kind: ObjectKind::Tree, bytes: totals.bytes }, planner.finish().map_err(refused)?)
        }
        Tree::Symlink(_) => unreachable!("a canonical path is no symbolic link"),
    };
    let executable = matches!(walked.tree, Tree::File((_, true)));
    let paths = plan.files.iter().map(|file| packing.paths[&file.id].clone()).collect();
    Ok(Packed {
        stream: ObjectStream { object, plan: Arc::new(plan), files: Files::Paths(paths) },
        files: walked.files,
        executable,
    })
}

impl Packing {
    fn file(&mut self, path: &Path, bytes: u64) -> Result<ObjectId, IngestError> {
        let file = File::open(path).doing("open", path)?;
        let digest = match self.hashing.file(&file, bytes) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(IngestError::Changed(shown_path(path)));
            }
            digest => digest.doing("read", path)?,
        };
        let id = ObjectId::from_digest(digest);
        self.paths.entry(id).or_insert_with(|| path.to_owned());
        Ok(id)
    }

    fn directory(
        &mut self,
        path: &Path,
        children: &[(FileName, Tree<(u64, bool)>)],
    ) -> Result<(ObjectId, Totals), IngestError> {
        let mut manifest = Manifest::default();
        for (name, child) in children {
            let path = path.join(OsStr::from_bytes(name.as_bytes()));
            let node = match child {
                Tree::File((bytes, executable)) => {
                    Node::File { id: self.file(&path, *bytes)?, bytes: *bytes, executable: *executable }
                }
                Tree::Directory(children) => {
                    let (id, totals) = self.directory(&path, children)?;
                    Node::Directory { id, totals }
                }
                Tree::Symlink(target) => Node::Symlink { target: target.clone() },
            };
            manifest.entries.push(ManifestEntry { name: name.clone(), node });
        }
        let bytes = manifest.encode();
        let id = manifest_id(&bytes);
        self.manifests.insert(id, bytes);
        Ok((id, manifest.totals()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::os::unix::net::UnixListener;

    use super::*;

    fn bundle(make: impl FnOnce(&Path)) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(folder.path().join("lib")).expect("a directory");
        fs::write(folder.path().join("action.yaml"), "name: a\n").expect("a file");
        fs::write(folder.path().join("lib/main.py"), "print()\n").expect("a file");
        make(folder.path());
        folder
    }

    fn digest(folder: &tempfile::TempDir) -> ObjectId {
        pack_bundle(folder.path()).expect("it can be packed").object().id
    }

    #[test]
    fn a_bundle_is_named_by_what_is_in_it_and_nothing_else() {
        let plain = digest(&bundle(|_| {}));
        let littered = bundle(|folder| {
            for (name, file) in [(".git", "HEAD"), ("lib/__pycache__", "main.pyc")] {
                fs::create_dir(folder.join(name)).expect("a directory");
                fs::write(folder.join(name).join(file), "x").expect("a file");
            }
            let code = fs::File::open(folder.join("lib/main.py")).expect("it is there");
            code.set_modified(std::time::SystemTime::UNIX_EPOCH).expect("a time can be set");
            fs::set_permissions(folder.join("action.yaml"), fs::Permissions::from_mode(0o600)).expect("a mode");
        });
        assert_eq!(digest(&littered), plain);
        let executable = bundle(|folder| {
            fs::set_permissions(folder.join("lib/main.py"), fs::Permissions::from_mode(0o755)).expect("a mode");
        });
        let linked = bundle(|folder| symlink("lib/main.py", folder.join("main")).expect("a link"));
        let more = bundle(|folder| fs::create_dir(folder.join("empty")).expect("a directory"));
        for other in [&executable, &linked, &more] {
            assert_ne!(digest(other), plain);
        }
    }

    #[test]
    fn what_leads_out_of_a_bundle_or_is_no_file_is_refused_by_its_path() {
        let outside = bundle(|folder| symlink("../../secret", folder.join("lib/out")).expect("a link"));
        let absolute = bundle(|folder| symlink("/etc/passwd", folder.join("lib/etc")).expect("a link"));
        let socket = bundle(|folder| drop(UnixListener::bind(folder.join("s")).expect("a socket")));
        for (folder, path, why) in [
            (outside, "lib/out", "outside of the directory"),
            (absolute, "lib/etc", "an absolute path"),
            (socket, "/s", "is a socket"),
        ] {
            let error = pack_bundle(folder.path()).expect_err("refused").to_string();
            assert!(error.contains(path) && error.contains(why), "{error}");
        }
    }
}
