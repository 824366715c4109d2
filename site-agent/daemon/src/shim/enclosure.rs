//! What an execution sees that is kept from everything else: the machine's programs, its own folders, and nothing more.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, WaitOptions, waitpid};
use site_agent_spawn::{Circumstances, Enclosure, Filter, Program, Spawner, Taken};

use super::protocol::{Enclosed, Key};

/// Memory that may be shared in `/dev/shm`; it counts as the execution's own where memory is limited by a control group.
const SHARED_MEMORY: &str = "size=64m,mode=1777";
/// What covers a folder holds nothing but names.
const NAMES_ONLY: &str = "size=1m,mode=0755";
/// Devices without which programs do not run.
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
const DEVICES_FOLDER: &str = "/dev";
const DEVICE_LINKS: [(&str, &str); 4] =
    [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")];
/// Sockets of the machine's services are here, and some of them would do anything for this user.
const SERVICES_FOLDER: &str = "/run";
const TEMPORARY_FOLDERS: [&str; 2] = ["/tmp", "/var/tmp"];
/// What names servers is often a link to below [`SERVICES_FOLDER`].
const RESOLVER: &str = "/etc/resolv.conf";

/// Puts together what an execution is enclosed in whose own folders these are: to work in, for what is temporary, for outputs.
///
/// # Errors
/// When this machine's calls are not known, or a path is none.
pub(super) fn enclosure(enclosed: &Enclosed, own: [&Path; 3], key: Option<Key>) -> io::Result<Enclosure> {
    let filter = Filter::strict().ok_or_else(|| io::Error::other("no filter for calls of this kind of machine"))?;
    let [work, tmp, out] = own;
    let mut plan = Plan { enclosure: Enclosure::new(enclosed.network, work, filter)?, shown: Vec::new() };
    for folder in [work, tmp, out] {
        plan.show(folder, true)?;
    }
    let staged = key.map(|key| enclosed.staged.join(key.folder()));
    for path in staged.iter().chain(&enclosed.shown) {
        plan.show(path, false)?;
    }
    let resolver = PathBuf::from(RESOLVER).canonicalize().ok().filter(|_| enclosed.network);
    if let Some(resolver) = resolver.filter(|resolver| resolver.starts_with(SERVICES_FOLDER)) {
        plan.show(&resolver, false)?;
    }
    let of_machine = [SERVICES_FOLDER, DEVICES_FOLDER].map(PathBuf::from);
    let covers: Vec<PathBuf> = enclosed.hidden.iter().cloned().chain(of_machine).collect();
    plan.carry_out(&outermost(&covers), tmp, &enclosed.devices)
}

struct Plan {
    enclosure: Enclosure,
    shown: Vec<Shown>,
}

struct Shown {
    path: PathBuf,
    taken: Taken,
    is_folder: bool,
    writable: bool,
}

impl Plan {
    /// What is in a folder that will be covered is taken hold of before; what is not there is not shown.
    fn show(&mut self, path: &Path, writable: bool) -> io::Result<()> {
        let Ok(found) = path.metadata() else { return Ok(()) };
        let taken = self.enclosure.take(path)?;
        self.shown.push(Shown { path: path.to_owned(), taken, is_folder: found.is_dir(), writable });
        Ok(())
    }

    fn carry_out(mut self, covers: &[PathBuf], tmp: &Path, more_devices: &[String]) -> io::Result<Enclosure> {
        let at = |name: &str| Path::new(DEVICES_FOLDER).join(name);
        let more = more_devices.iter().map(|name| at(name)).filter(|device| device.exists());
        let devices: Vec<PathBuf> = DEVICES.into_iter().map(at).chain(more).collect();
        let devices = devices.iter().map(|device| Ok((device, self.enclosure.take(device)?)));
        let devices = devices.collect::<io::Result<Vec<_>>>()?;
        let mut temporary = Vec::new();
        for folder in TEMPORARY_FOLDERS.map(Path::new).into_iter().filter(|folder| folder.is_dir()) {
            temporary.push((folder, self.enclosure.take(tmp)?));
        }
        let enclosure = &mut self.enclosure;
        for (folder, taken) in temporary {
            enclosure.put(taken, folder, true)?;
        }
        for cover in covers {
            enclosure.cover(cover, NAMES_ONLY)?;
        }
        let shared = at("shm");
        enclosure.make_folder(&shared)?;
        enclosure.cover(&shared, SHARED_MEMORY)?;
        let around: Vec<&Path> = covers.iter().map(PathBuf::as_path).chain(TEMPORARY_FOLDERS.map(Path::new)).collect();
        for shown in &self.shown {
            make_place(enclosure, shown, &around)?;
            enclosure.put(shown.taken, &shown.path, shown.writable)?;
        }
        for (device, taken) in devices {
            enclosure.make_file(device)?;
            enclosure.put(taken, device, false)?;
        }
        for (name, target) in DEVICE_LINKS {
            enclosure.make_link(&at(name), target)?;
        }
        for cover in covers {
            enclosure.close(cover)?;
        }
        enclosure.show_processes(Path::new("/proc"))?;
        Ok(self.enclosure)
    }
}

/// Folders around what is shown, as far as they were covered, and itself, to be put over.
fn make_place(enclosure: &mut Enclosure, shown: &Shown, covers: &[&Path]) -> io::Result<()> {
    let Some(cover) = covers.iter().find(|cover| shown.path.starts_with(cover)) else { return Ok(()) };
    let mut around: Vec<&Path> = shown.path.ancestors().skip(1).take_while(|folder| folder != cover).collect();
    around.reverse();
    around.into_iter().try_for_each(|folder| enclosure.make_folder(folder))?;
    if shown.is_folder { enclosure.make_folder(&shown.path) } else { enclosure.make_file(&shown.path) }
}

/// Those of the folders that are there and not below others of them, or below a temporary folder, which is covered whole.
fn outermost(folders: &[PathBuf]) -> Vec<PathBuf> {
    let is_inner = |folder: &PathBuf| {
        folders.iter().any(|other| other != folder && folder.starts_with(other))
            || TEMPORARY_FOLDERS.iter().any(|temporary| folder.starts_with(temporary))
    };
    folders.iter().filter(|folder| folder.is_dir() && !is_inner(folder)).cloned().collect()
}

/// Tries whether this machine lets a program be enclosed, and leaves nothing behind. For a process of one thread, in namespaces
/// of its own.
///
/// # Errors
/// When it does not, and why.
pub(super) fn try_out() -> io::Result<()> {
    let folder = std::env::temp_dir().join(format!("atoll-try-{}", std::process::id()));
    let own = ["work", "tmp", "out"].map(|name| folder.join(name));
    let done = own.iter().try_for_each(fs::create_dir_all).and_then(|()| {
        let [work, tmp, out] = &own;
        let enclosure = enclosure(&Enclosed::default(), [work, tmp, out], None)?;
        let nothing: [(&[u8], &[u8]); 0] = [];
        let program = Program::new(&["/bin/sh", "-c", ":"], nothing)?;
        let circumstances = Circumstances { enclosure: Some(&enclosure), ..Circumstances::default() };
        let child = Spawner::new().spawn_under(&program, &nothing, circumstances)?;
        let pid = Pid::from_raw(child.id()).ok_or_else(|| io::Error::other("it has no number"))?;
        match waitpid(Some(pid), WaitOptions::empty())? {
            Some((_, status)) if status.exit_status() == Some(0) => Ok(()),
            _ => Err(io::Error::other("a program that is enclosed does not run")),
        }
    });
    // Whoever looks at it next does not need it.
    let _ = fs::remove_dir_all(&folder);
    done
}
