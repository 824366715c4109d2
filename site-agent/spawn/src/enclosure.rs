//! What a program is to see of the machine and may do there: put together by its parent, carried out by the child before it
//! becomes the program.

use std::ffi::{CString, OsStr, c_int};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::AtomicI32;

use crate::filter::Filter;

/// Namespaces of its own, with what is mounted there; no rights; limits; calls that are refused.
#[derive(Debug)]
pub struct Enclosure {
    pub(crate) namespaces: c_int,
    pub(crate) operations: Vec<Operation>,
    /// Trees that were taken, until they are put.
    pub(crate) taken: Vec<AtomicI32>,
    pub(crate) directory: CString,
    pub(crate) filter: Filter,
}

/// A tree of files that [`Enclosure::take`] holds.
#[derive(Debug, Clone, Copy)]
pub struct Taken(usize);

/// One step of setting up what is seen.
#[derive(Debug)]
pub(crate) enum Operation {
    /// Nothing that is mounted can be written to.
    ReadOnlyAll,
    ReadOnly(CString, bool),
    /// An empty folder in memory, with these options.
    Cover(CString, CString),
    Folder(CString),
    File(CString),
    Link(CString, CString),
    Take(CString, usize),
    Put(usize, CString),
    Processes(CString),
}

impl Enclosure {
    /// Everything as it is, but read-only; in namespaces of its own for mounts, processes and what they share, and for the
    /// network unless `network`. The program starts in `directory`.
    ///
    /// # Errors
    /// When the path holds a byte 0.
    pub fn new(network: bool, directory: &Path, filter: Filter) -> io::Result<Self> {
        let alone = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC;
        Ok(Self {
            namespaces: if network { alone } else { alone | libc::CLONE_NEWNET },
            operations: vec![Operation::ReadOnlyAll],
            taken: Vec::new(),
            directory: text(directory.as_os_str())?,
            filter,
        })
    }

    /// Takes hold of a file or folder as it is seen now, to be put elsewhere or put back.
    ///
    /// # Errors
    /// When the path holds a byte 0; as with all that follows.
    pub fn take(&mut self, path: &Path) -> io::Result<Taken> {
        let place = self.taken.len();
        self.operations.push(Operation::Take(text(path.as_os_str())?, place));
        self.taken.push(AtomicI32::new(-1));
        Ok(Taken(place))
    }

    /// Puts what was taken over a file or folder that is there. Each is put once.
    pub fn put(&mut self, taken: Taken, path: &Path, writable: bool) -> io::Result<()> {
        let at = text(path.as_os_str())?;
        self.operations.push(Operation::Put(taken.0, at.clone()));
        if writable {
            self.operations.push(Operation::ReadOnly(at, false));
        }
        Ok(())
    }

    /// Covers a folder with an empty one in memory, which can be written to until [`Self::close`].
    pub fn cover(&mut self, path: &Path, options: &str) -> io::Result<()> {
        self.operations.push(Operation::Cover(text(path.as_os_str())?, CString::new(options)?));
        Ok(())
    }

    /// Nothing can be written to what is mounted here any more.
    pub fn close(&mut self, path: &Path) -> io::Result<()> {
        self.operations.push(Operation::ReadOnly(text(path.as_os_str())?, true));
        Ok(())
    }

    /// Makes a folder, if it is not there.
    pub fn make_folder(&mut self, path: &Path) -> io::Result<()> {
        self.operations.push(Operation::Folder(text(path.as_os_str())?));
        Ok(())
    }

    /// Makes an empty file, if it is not there.
    pub fn make_file(&mut self, path: &Path) -> io::Result<()> {
        self.operations.push(Operation::File(text(path.as_os_str())?));
        Ok(())
    }

    /// Makes a symbolic link.
    pub fn make_link(&mut self, path: &Path, target: &str) -> io::Result<()> {
        self.operations.push(Operation::Link(text(path.as_os_str())?, CString::new(target)?));
        Ok(())
    }

    /// Shows the processes of the enclosure, and no others, in a folder.
    pub fn show_processes(&mut self, path: &Path) -> io::Result<()> {
        self.operations.push(Operation::Processes(text(path.as_os_str())?));
        Ok(())
    }

    /// What an operation does, by its number, for people.
    pub(crate) fn described(&self, number: usize) -> String {
        let shown = |path: &CString| path.to_string_lossy().into_owned();
        match self.operations.get(number) {
            Some(Operation::ReadOnlyAll) => "everything cannot be shown read-only".to_owned(),
            Some(Operation::ReadOnly(path, _)) => format!("whether {} can be written to cannot be set", shown(path)),
            Some(Operation::Cover(path, _)) => format!("{} cannot be covered", shown(path)),
            Some(Operation::Folder(path) | Operation::File(path) | Operation::Link(path, _)) => {
                format!("{} cannot be made", shown(path))
            }
            Some(Operation::Take(path, _) | Operation::Put(_, path)) => format!("{} cannot be shown", shown(path)),
            Some(Operation::Processes(path)) => format!("the processes cannot be shown in {}", shown(path)),
            None => format!("{} cannot be entered, or rights not be given up", shown(&self.directory)),
        }
    }
}

fn text(path: &OsStr) -> io::Result<CString> {
    Ok(CString::new(path.as_bytes())?)
}
