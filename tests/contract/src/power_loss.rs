//! A disk that forgets. A recorder, preloaded into a process, writes down every change to files and names and every
//! completed sync; from that log any state can be built that a power cut may leave at any moment.
//!
//! The model: the bytes of a file are there for certain once a sync of that file has completed after they were written;
//! a name once a sync of its directory has. Of the rest, [`Forgets::All`] drops everything, and [`Forgets::Some`] keeps
//! pages of unsynced writes at random, each for itself, and a random beginning of the unsynced changes of names.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::random::Random;

const PAGE_BYTES: usize = 4096;

/// Builds the recorder with the system's C compiler.
///
/// # Errors
/// If there is no `cc`.
pub fn build_recorder(into: &Path) -> Result<PathBuf> {
    let library = into.join("recorder.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("power-loss/recorder.c");
    let status = Command::new("cc")
        .args(["-O2", "-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(source)
        .args(["-ldl", "-lpthread"])
        .status()
        .context("no C compiler `cc`")?;
    ensure!(status.success(), "the recorder does not compile");
    Ok(library)
}

/// One thing that a process did.
#[derive(Debug)]
enum Operation {
    Create { inode: u64, path: PathBuf },
    Write { inode: u64, offset: u64, data: Vec<u8> },
    Truncate { inode: u64, length: u64 },
    Sync { inode: u64 },
    Rename { from: PathBuf, to: PathBuf },
    Remove { path: PathBuf },
    MakeDirectory { inode: u64, path: PathBuf },
}

/// What a process did, in order.
#[derive(Debug)]
pub struct Log {
    operations: Vec<Operation>,
}

/// What a power cut takes of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgets {
    All,
    Some,
}

impl Log {
    /// # Errors
    /// If the process wrote in a way that the recorder does not follow.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path)?;
        let mut rest = bytes.as_slice();
        let mut operations = Vec::new();
        // A process that is killed may leave the last record unfinished.
        while let Some((operation, after)) = decode(rest)? {
            operations.push(operation);
            rest = after;
        }
        Ok(Self { operations })
    }

    pub fn len(&self) -> usize {
        self.operations.len()
    }

    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    pub fn syncs(&self) -> usize {
        self.operations.iter().filter(|operation| matches!(operation, Operation::Sync { .. })).count()
    }
}

fn decode(bytes: &[u8]) -> Result<Option<(Operation, &[u8])>> {
    const HEAD_BYTES: usize = 25;
    let Some((head, rest)) = bytes.split_at_checked(HEAD_BYTES) else { return Ok(None) };
    let number = |at: usize| -> Result<u64> { Ok(u64::from_ne_bytes(head[at..at + 8].try_into()?)) };
    let length = |at: usize| -> Result<usize> { Ok(u32::from_ne_bytes(head[at..at + 4].try_into()?) as usize) };
    let (inode, value) = (number(1)?, number(9)?);
    let (first_length, second_length) = (length(17)?, length(21)?);
    let Some((body, rest)) = rest.split_at_checked(first_length + second_length) else { return Ok(None) };
    let (first, second) = body.split_at(first_length);
    let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
    let operation = match head[0] {
        1 => Operation::Create { inode, path: path(first) },
        2 => Operation::Write { inode, offset: value, data: first.to_vec() },
        3 => Operation::Truncate { inode, length: value },
        4 => Operation::Sync { inode },
        5 => Operation::Rename { from: path(first), to: path(second) },
        6 => Operation::Remove { path: path(first) },
        7 => Operation::MakeDirectory { inode, path: path(first) },
        _ => bail!("the process used {}, which the recorder does not follow", String::from_utf8_lossy(first)),
    };
    Ok(Some((operation, rest)))
}

#[derive(Clone, Debug)]
enum Change {
    Write { offset: usize, data: Vec<u8> },
    Truncate { length: usize },
}

#[derive(Clone, Debug, Default)]
struct Contents {
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Directory,
    File(usize),
}

#[derive(Clone, Debug)]
enum NameChange {
    Add { path: PathBuf, node: Node },
    Remove { path: PathBuf },
    Rename { from: PathBuf, to: PathBuf, node: Node },
}

/// A disk, as it is and as it would be after a power cut.
#[derive(Clone, Debug)]
pub struct Disk {
    root: PathBuf,
    files: Vec<Contents>,
    by_inode: HashMap<u64, usize>,
    directories: HashMap<u64, PathBuf>,
    names: BTreeMap<PathBuf, Node>,
    durable_names: BTreeMap<PathBuf, Node>,
    pending_names: Vec<NameChange>,
}

impl Disk {
    /// A disk whose present contents below `root` are all durable.
    ///
    /// # Errors
    /// If a file can't be read.
    pub fn read(root: &Path) -> Result<Self> {
        let root = root.canonicalize()?;
        let mut disk = Self {
            files: Vec::new(),
            by_inode: HashMap::new(),
            directories: HashMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending_names: Vec::new(),
            root: root.clone(),
        };
        disk.read_directory(&root)?;
        disk.durable_names = disk.names.clone();
        Ok(disk)
    }

    fn read_directory(&mut self, path: &Path) -> Result<()> {
        self.directories.insert(fs::metadata(path)?.ino(), path.to_owned());
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                self.names.insert(path.clone(), Node::Directory);
                self.read_directory(&path)?;
            } else {
                let file = self.add_file(entry.metadata()?.ino());
                self.files[file].durable = fs::read(&path)?;
                self.names.insert(path, Node::File(file));
            }
        }
        Ok(())
    }

    fn add_file(&mut self, inode: u64) -> usize {
        self.files.push(Contents::default());
        let file = self.files.len() - 1;
        // An inode number comes back once what had it is gone for good.
        self.by_inode.insert(inode, file);
        self.directories.remove(&inode);
        file
    }

    /// Plays the first `count` operations of `log`, and hands what was written to `watched` to `see` as it comes.
    pub fn play(&mut self, log: &Log, count: usize, watched: &Path, mut see: impl FnMut(&[u8])) {
        for operation in &log.operations[..count] {
            if let Operation::Write { inode, data, .. } = operation
                && self.names.get(watched) == self.by_inode.get(inode).map(|file| Node::File(*file)).as_ref()
            {
                see(data);
            }
            self.apply(operation);
        }
    }

    fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Create { inode, path } => {
                let node = Node::File(self.add_file(*inode));
                self.names.insert(path.clone(), node);
                self.pending_names.push(NameChange::Add { path: path.clone(), node });
            }
            Operation::MakeDirectory { inode, path } => {
                self.directories.insert(*inode, path.clone());
                self.by_inode.remove(inode);
                self.names.insert(path.clone(), Node::Directory);
                self.pending_names.push(NameChange::Add { path: path.clone(), node: Node::Directory });
            }
            Operation::Write { inode, offset, data } => {
                let change = Change::Write { offset: *offset as usize, data: data.clone() };
                self.change(*inode, change);
            }
            Operation::Truncate { inode, length } => self.change(*inode, Change::Truncate { length: *length as usize }),
            Operation::Sync { inode } => self.sync(*inode),
            Operation::Rename { from, to } => {
                if let Some(node) = self.names.remove(from) {
                    self.names.insert(to.clone(), node);
                    self.pending_names.push(NameChange::Rename { from: from.clone(), to: to.clone(), node });
                }
            }
            Operation::Remove { path } => {
                self.names.remove(path);
                self.pending_names.push(NameChange::Remove { path: path.clone() });
            }
        }
    }

    fn change(&mut self, inode: u64, change: Change) {
        if let Some(file) = self.by_inode.get(&inode) {
            self.files[*file].pending.push(change);
        }
    }

    fn sync(&mut self, inode: u64) {
        if let Some(directory) = self.directories.get(&inode).cloned() {
            let (of_it, others): (Vec<_>, Vec<_>) =
                std::mem::take(&mut self.pending_names).into_iter().partition(|change| change.is_in(&directory));
            self.pending_names = others;
            for change in of_it {
                change.apply(&mut self.durable_names);
            }
        } else if let Some(file) = self.by_inode.get(&inode) {
            let contents = &mut self.files[*file];
            for change in std::mem::take(&mut contents.pending) {
                apply_whole(&mut contents.durable, &change);
            }
        }
    }

    /// Writes what is left after a power cut now into `target`, which stands for the root.
    ///
    /// # Errors
    /// If a file can't be written.
    pub fn cut_power(&self, forgets: Forgets, random: &mut Random, target: &Path) -> Result<()> {
        let mut names = self.durable_names.clone();
        if forgets == Forgets::Some {
            let kept = random.below(self.pending_names.len() as u64 + 1) as usize;
            for change in &self.pending_names[..kept] {
                change.apply(&mut names);
            }
        }
        fs::create_dir_all(target)?;
        let mut made = BTreeSet::from([self.root.clone()]);
        for (path, node) in &names {
            let Some(parent) = path.parent() else { continue };
            if !made.contains(parent) {
                continue;
            }
            let here = target.join(path.strip_prefix(&self.root)?);
            match node {
                Node::Directory => {
                    fs::create_dir(&here)?;
                    made.insert(path.clone());
                }
                Node::File(file) => fs::write(&here, left_of(&self.files[*file], forgets, random))?,
            }
        }
        Ok(())
    }
}

impl NameChange {
    fn is_in(&self, directory: &Path) -> bool {
        match self {
            Self::Add { path, .. } | Self::Remove { path } => path.parent() == Some(directory),
            Self::Rename { from, to, .. } => from.parent() == Some(directory) || to.parent() == Some(directory),
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, Node>) {
        match self {
            Self::Add { path, node } => {
                names.insert(path.clone(), *node);
            }
            Self::Remove { path } => {
                names.remove(path);
            }
            Self::Rename { from, to, node } => {
                names.remove(from);
                names.insert(to.clone(), *node);
            }
        }
    }
}

fn apply_whole(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write { offset, data } => write_at(bytes, *offset, data),
        Change::Truncate { length } => bytes.resize(*length, 0),
    }
}

fn write_at(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(data);
}

fn left_of(contents: &Contents, forgets: Forgets, random: &mut Random) -> Vec<u8> {
    let mut bytes = contents.durable.clone();
    if forgets == Forgets::All {
        return bytes;
    }
    for change in &contents.pending {
        match change {
            Change::Truncate { .. } if random.one_in(2) => apply_whole(&mut bytes, change),
            Change::Truncate { .. } => {}
            Change::Write { offset, data } => {
                let mut at = 0;
                while at < data.len() {
                    let page_end = PAGE_BYTES - (offset + at) % PAGE_BYTES;
                    let piece = &data[at..data.len().min(at + page_end)];
                    if random.one_in(2) {
                        write_at(&mut bytes, offset + at, piece);
                    }
                    at += piece.len();
                }
            }
        }
    }
    bytes
}
