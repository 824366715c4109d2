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
    let covers = outermost(&enclosed.hidden);
    let [work, tmp, out] = own;
    let mut plan = Plan { enclosure: Enclosure::new(enclosed.network, work, filter)?, covers, shown: Vec::new() };
    for folder in [work, tmp, out] {
        plan.show(folder, true)?;
    }
    let staged = key.map(|key| enclosed.staged.join(key.folder()));
    for path in staged.iter().chain(&enclosed.shown) {
        plan.show(path, false)?;
    }
    let resolver = PathBuf::from(RESOLVER).canonicalize().ok().filter(|_| enclosed.network);
    plan.shown_at_services(resolver.as_deref())?;
    plan.carry_out(tmp)
}

struct Plan {
    enclosure: Enclosure,
    covers: Vec<PathBuf>,
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

    fn shown_at_services(&mut self, resolver: Option<&Path>) -> io::Result<()> {
        let services = Path::new(SERVICES_FOLDER);
        if let Some(resolver) = resolver.filter(|resolver| resolver.starts_with(services)) {
            self.show(resolver, false)?;
        }
        if services.is_dir() {
            self.covers.push(services.to_owned());
        }
        Ok(())
    }

    fn carry_out(mut self, tmp: &Path) -> io::Result<Enclosure> {
        let devices = DEVICES.map(|name| Path::new(DEVICES_FOLDER).join(name));
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
        // What is below a temporary folder is covered with it.
        let is_covered = |cover: &PathBuf| TEMPORARY_FOLDERS.iter().any(|folder| cover.starts_with(folder));
        let covers: Vec<PathBuf> = self.covers.iter().filter(|cover| !is_covered(cover)).cloned().collect();
        for cover in &covers {
            enclosure.cover(cover, NAMES_ONLY)?;
        }
        let around: Vec<&Path> = covers.iter().map(PathBuf::as_path).chain(TEMPORARY_FOLDERS.map(Path::new)).collect();
        for shown in &self.shown {
            make_place(enclosure, shown, &around)?;
            enclosure.put(shown.taken, &shown.path, shown.writable)?;
        }
        for cover in &covers {
            enclosure.close(cover)?;
        }
        enclosure.cover(Path::new(DEVICES_FOLDER), NAMES_ONLY)?;
        for (device, taken) in devices {
            enclosure.make_file(device)?;
            enclosure.put(taken, device, false)?;
        }
        finish_devices(enclosure)?;
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

fn finish_devices(enclosure: &mut Enclosure) -> io::Result<()> {
    let devices = Path::new(DEVICES_FOLDER);
    let own = [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")];
    for (name, target) in own {
        enclosure.make_link(&devices.join(name), target)?;
    }
    let shared = devices.join("shm");
    enclosure.make_folder(&shared)?;
    enclosure.cover(&shared, SHARED_MEMORY)?;
    enclosure.close(devices)
}

/// Those of the folders that are there and not below others of them.
fn outermost(folders: &[PathBuf]) -> Vec<PathBuf> {
    let is_inner = |folder: &PathBuf| folders.iter().any(|other| other != folder && folder.starts_with(other));
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
