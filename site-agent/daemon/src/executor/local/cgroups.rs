//! Control groups for slots: of the first version, of the second, or of both at once, below the agent's own group, and
//! only where the agent may make any.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::shim::protocol::{CgroupVersion, ControlGroup, SlotCgroups};

/// The groups that belong to one agent, in which those of its slots are made.
#[derive(Debug, Clone, Default)]
pub(crate) struct AgentCgroups {
    memory: Option<ControlGroup>,
    cpu: Option<ControlGroup>,
    pids: Option<ControlGroup>,
    unified: Option<PathBuf>,
}

/// One line of `/proc/self/mountinfo` that mounts control groups.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    /// Names of controllers; none for the second version.
    controllers: Vec<String>,
    root: String,
    mounted_at: PathBuf,
    second: bool,
}

impl AgentCgroups {
    /// Makes the groups of the agent that keeps everything in `data_dir`; what cannot be had is left out.
    pub(crate) fn make(data_dir: &Path) -> Self {
        let Ok(mounts) = fs::read_to_string("/proc/self/mountinfo") else { return Self::default() };
        let Ok(own) = fs::read_to_string("/proc/self/cgroup") else { return Self::default() };
        let name = format!("atoll-{}", &blake3::hash(data_dir.as_os_str().as_encoded_bytes()).to_hex()[..12]);
        let mut groups = Self::default();
        for hierarchy in hierarchies(&mounts) {
            let Some(base) = own_folder(&hierarchy, &own) else { continue };
            if hierarchy.second {
                groups.make_second(&base, &name);
            } else {
                groups.make_first(&hierarchy, &base, &name);
            }
        }
        groups
    }

    /// Whether memory and CPU can be limited.
    pub(super) const fn limits(&self) -> (bool, bool) {
        (self.memory.is_some(), self.cpu.is_some())
    }

    fn make_first(&mut self, hierarchy: &Hierarchy, base: &Path, name: &str) {
        for controller in &hierarchy.controllers {
            let place = match controller.as_str() {
                "memory" => &mut self.memory,
                "cpu" => &mut self.cpu,
                "pids" => &mut self.pids,
                _ => continue,
            };
            let folder = base.join(name);
            if make(&folder).is_ok() {
                *place = Some(ControlGroup { folder, version: CgroupVersion::V1 });
            }
        }
    }

    fn make_second(&mut self, base: &Path, name: &str) {
        let offered = fs::read_to_string(base.join("cgroup.controllers")).unwrap_or_default();
        let offered: Vec<&str> = offered.split_ascii_whitespace().collect();
        let wanted: Vec<&str> = ["memory", "cpu", "pids"].into_iter().filter(|name| offered.contains(name)).collect();
        let folder = base.join(name);
        if make(&folder).is_err() {
            return;
        }
        self.unified = Some(folder.clone());
        let enabled = wanted.is_empty() || enable(base, &wanted).and_then(|()| enable(&folder, &wanted)).is_ok();
        for controller in wanted.iter().filter(|_| enabled) {
            let group = Some(ControlGroup { folder: folder.clone(), version: CgroupVersion::V2 });
            match *controller {
                "memory" => self.memory = group,
                "cpu" => self.cpu = group,
                _ => self.pids = group,
            }
        }
    }

    /// Makes the groups of a slot, or finds them.
    pub(crate) fn for_slot(&self, slot: u32) -> SlotCgroups {
        let name = format!("slot-{slot}");
        let below = |group: &Option<ControlGroup>| {
            let group = group.as_ref()?;
            let folder = group.folder.join(&name);
            make(&folder).ok().map(|()| ControlGroup { folder, version: group.version })
        };
        let unified = self.unified.as_ref().map(|folder| folder.join(&name));
        SlotCgroups {
            memory: below(&self.memory),
            cpu: below(&self.cpu),
            pids: below(&self.pids),
            unified: unified.filter(|folder| make(folder).is_ok()),
        }
    }

    /// Takes the groups of the agent and of its slots away. Whether nothing was left in any of them.
    pub(super) fn remove(&self) -> bool {
        let own = SlotCgroups {
            memory: self.memory.clone(),
            cpu: self.cpu.clone(),
            pids: self.pids.clone(),
            unified: self.unified.clone(),
        };
        let mut gone = true;
        for folder in folders(&own) {
            for below in fs::read_dir(folder).into_iter().flatten().flatten() {
                // What is no group cannot be removed, and need not be.
                let _ = fs::remove_dir(below.path());
            }
            let removed = fs::remove_dir(folder);
            gone &= removed.is_ok() || removed.is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        }
        gone
    }

    /// Takes the groups of a slot away, if nothing is in them.
    pub(crate) fn remove_slot(&self, slot: u32) {
        for folder in folders(&self.for_slot(slot)) {
            // Something may still be there; then it stays until the next time.
            let _ = fs::remove_dir(folder);
        }
    }
}

/// What the agent could do with control groups, started as this process was.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Survey {
    pub(crate) first: bool,
    pub(crate) second: bool,
    /// This process's own group of the second version.
    pub(crate) own: Option<PathBuf>,
    /// Controllers that stand for limits of memory, CPUs and processes: those that there are, and those that can be used.
    pub(crate) offered: Vec<String>,
    pub(crate) usable: Vec<String>,
}

/// Tries it out, and leaves nothing behind.
pub(crate) fn survey() -> Survey {
    let Ok(mounts) = fs::read_to_string("/proc/self/mountinfo") else { return Survey::default() };
    let Ok(own) = fs::read_to_string("/proc/self/cgroup") else { return Survey::default() };
    let mut survey = Survey::default();
    for hierarchy in hierarchies(&mounts) {
        survey.second |= hierarchy.second;
        survey.first |= !hierarchy.second;
        let Some(base) = own_folder(&hierarchy, &own) else { continue };
        let offered = if hierarchy.second {
            let offered = fs::read_to_string(base.join("cgroup.controllers")).unwrap_or_default();
            let offered: Vec<&str> = offered.split_ascii_whitespace().collect();
            ["memory", "cpu", "pids"].into_iter().filter(|name| offered.contains(name)).map(str::to_owned).collect()
        } else {
            hierarchy.controllers.clone()
        };
        if can_make(&base) && (!hierarchy.second || can_hand_down(&base, &offered)) {
            survey.usable.extend(offered.iter().cloned());
        }
        survey.offered.extend(offered);
        if hierarchy.second {
            survey.own = Some(base);
        }
    }
    for names in [&mut survey.offered, &mut survey.usable] {
        names.sort();
        names.dedup();
    }
    survey
}

/// Whether groups can be made below this one.
fn can_make(base: &Path) -> bool {
    let folder = base.join(format!("atoll-doctor-{}", std::process::id()));
    let made = make(&folder).is_ok();
    // What could not be made need not go.
    let _ = fs::remove_dir(&folder);
    made
}

/// Whether groups below this one can have the controllers: they have them, or no other process is in the way once the
/// agent has moved into a group of its own.
fn can_hand_down(base: &Path, controllers: &[String]) -> bool {
    let read = |name: &str| fs::read_to_string(base.join(name)).unwrap_or_default();
    let handed = read("cgroup.subtree_control");
    if controllers.iter().all(|wanted| handed.split_ascii_whitespace().any(|name| name == wanted)) {
        return true;
    }
    // Only the root of all groups may hold processes beside groups; it has no type.
    let is_root = !base.join("cgroup.type").exists();
    let own = std::process::id().to_string();
    let alone = is_root || read("cgroup.procs").lines().all(|process| process == own);
    alone && rustix::fs::access(base.join("cgroup.subtree_control"), rustix::fs::Access::WRITE_OK).is_ok()
}

/// The folders of these groups.
pub(super) fn folders(groups: &SlotCgroups) -> impl Iterator<Item = &Path> {
    let limited = [&groups.memory, &groups.cpu, &groups.pids];
    let limited = limited.into_iter().flatten().map(|group| group.folder.as_path());
    limited.chain(groups.unified.as_deref())
}

/// Gives the groups below `folder` these controllers. A group that holds processes may not do so, so the agent moves
/// into a group of its own first.
fn enable(folder: &Path, controllers: &[&str]) -> io::Result<()> {
    let text = controllers.iter().map(|name| format!("+{name}")).collect::<Vec<_>>().join(" ");
    let control = folder.join("cgroup.subtree_control");
    if fs::write(&control, &text).is_ok() {
        return Ok(());
    }
    let own = folder.join("atoll-agent");
    make(&own)?;
    fs::write(own.join("cgroup.procs"), std::process::id().to_string())?;
    fs::write(&control, &text)
}

fn make(folder: &Path) -> io::Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    // A folder that belongs to somebody else can be seen and not used.
    fs::OpenOptions::new().write(true).open(folder.join("cgroup.procs")).map(drop)
}

fn hierarchies(mounts: &str) -> Vec<Hierarchy> {
    mounts
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let mut before = before.split(' ').skip(3);
            let (root, mounted_at) = (before.next()?.to_owned(), PathBuf::from(before.next()?));
            let mut after = after.split(' ');
            let kind = after.next()?;
            let options = after.nth(1)?;
            let second = kind == "cgroup2";
            let known = |name: &&str| matches!(*name, "memory" | "cpu" | "pids");
            let controllers: Vec<String> = options.split(',').filter(known).map(str::to_owned).collect();
            let of_use = second || (kind == "cgroup" && !controllers.is_empty());
            of_use.then_some(Hierarchy { controllers, root, mounted_at, second })
        })
        .collect()
}

/// Where this process's own group is in a hierarchy.
fn own_folder(hierarchy: &Hierarchy, own: &str) -> Option<PathBuf> {
    let path = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let same = match hierarchy.controllers.first() {
            _ if hierarchy.second => controllers.is_empty(),
            Some(controller) => controllers.split(',').any(|name| name == controller),
            None => false,
        };
        same.then_some(path)
    })?;
    // In a container the mount shows a part of the tree only.
    let below = Path::new(path).strip_prefix(&hierarchy.root).ok()?;
    Some(hierarchy.mounted_at.join(below))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use super::*;

    const MOUNTS: &str = "\
30 23 0:26 / /sys/fs/cgroup/unified rw,nosuid shared:4 - cgroup2 cgroup2 rw
31 23 0:27 /box /sys/fs/cgroup/memory rw,nosuid shared:5 - cgroup cgroup rw,memory
32 23 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
33 23 0:29 / /proc rw - proc proc rw
";
    const OWN: &str = "4:memory:/box/inner\n1:cpu,cpuacct:/\n0::/app.slice\n";

    #[test]
    fn each_hierarchy_is_found_with_the_own_group_in_it() {
        let found: Vec<PathBuf> =
            hierarchies(MOUNTS).iter().map(|hierarchy| own_folder(hierarchy, OWN).unwrap()).collect();
        let expected =
            ["/sys/fs/cgroup/unified/app.slice", "/sys/fs/cgroup/memory/inner", "/sys/fs/cgroup/cpu,cpuacct"];
        assert_eq!(found, expected.map(PathBuf::from));
    }

    #[test]
    fn a_group_outside_of_what_is_mounted_is_none() {
        let hierarchies = hierarchies(MOUNTS);
        assert_eq!(own_folder(&hierarchies[1], "4:memory:/elsewhere\n"), None);
    }
}
