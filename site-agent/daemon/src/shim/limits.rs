//! Memory and CPU of what runs in a slot: through the slot's control groups where there are any, else through what a
//! process inherits. Limits are written only when they change.

use std::env;
use std::fs;
use std::io;
use std::path::Path;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::job::evidence::KUBERNETES_JOB;
use super::protocol::{CgroupVersion, Common, ControlGroup, SlotCgroups};

/// Processes and threads in one slot: more than any honest build starts, less than what takes a machine down.
pub(super) const PIDS_MAX: u32 = 8_192;
/// Files that one process has open: more than programs need that were not written for it, so few that all processes of a slot
/// together leave some of what a machine has.
const OPEN_FILES_MAX: u64 = 65_536;
/// Microseconds over which the share of a CPU is measured out.
const CPU_PERIOD_MICROS: u64 = 100_000;
/// Below this the shim itself could not go on under a limit of its own data segment.
const OWN_MEMORY_MIN: u64 = 32 << 20;

/// The first version of control groups says of no limit that it is about this much.
const NO_LIMIT: u64 = 1 << 60;

/// The limits of a slot, as they stand.
#[derive(Debug)]
pub(crate) struct Limits {
    cgroups: SlotCgroups,
    processes_max: u32,
    /// The group that a batch system limits this process in: it is only asked what happened there.
    of_job: Option<ControlGroup>,
    memory_bytes: Option<u64>,
    cpu_millis: Option<u32>,
    /// How often the kernel had killed something here for its memory, when it was last asked.
    oom_kills: u64,
    /// The limit of the data segment to go back to once a process was started under another.
    own_data_limit: Option<Rlimit>,
}

impl Limits {
    /// Moves this process into the slot's groups, so that all it starts is born there.
    pub(crate) fn join(cgroups: SlotCgroups, processes_max: Option<u32>, complaints: &mut Vec<String>) -> Self {
        expose();
        limit_open_files();
        let processes_max = processes_max.unwrap_or(PIDS_MAX);
        let mut limits = Self { cgroups, processes_max, ..Self::none() };
        for group in [&mut limits.cgroups.memory, &mut limits.cgroups.cpu, &mut limits.cgroups.pids] {
            if let Some(Err(error)) = group.as_ref().map(|group| enter(&group.folder)) {
                complaints.push(format!("a control group cannot be entered ({error})"));
                *group = None;
            }
        }
        if let Some(Err(error)) = limits.cgroups.unified.as_ref().map(|folder| enter(folder)) {
            complaints.push(format!("a control group cannot be entered ({error})"));
            limits.cgroups.unified = None;
        }
        limits.set_pids_max(limits.processes_max);
        limits.lift();
        limits.oom_kills = limits.read_oom_kills();
        limits
    }

    /// In a job of a batch system, which limits what runs in it. Where it does not, a process inherits its limit of memory.
    pub(crate) fn of_job() -> Self {
        expose();
        let mut limits = Self { of_job: scheduled_memory_group(), ..Self::none() };
        limits.oom_kills = limits.read_oom_kills();
        limits
    }

    fn none() -> Self {
        let cgroups = SlotCgroups::default();
        Self {
            cgroups,
            processes_max: PIDS_MAX,
            of_job: None,
            memory_bytes: None,
            cpu_millis: None,
            oom_kills: 0,
            own_data_limit: None,
        }
    }

    /// A slot that is used again may have limits of its last shim.
    fn lift(&self) {
        let _ = self.write_memory(None);
        let _ = self.write_cpu(None);
    }

    /// Sets what the next process runs under. Memory that cannot be limited through a group is limited through the
    /// data segment that the process inherits: [`Limits::started`] takes that off this process again.
    pub(crate) fn apply(&mut self, wanted: &Common) -> io::Result<()> {
        if wanted.cpu_millis != self.cpu_millis {
            self.write_cpu(wanted.cpu_millis)?;
            self.cpu_millis = wanted.cpu_millis;
        }
        if self.cgroups.memory.is_some() {
            if wanted.memory_bytes != self.memory_bytes {
                self.write_memory(wanted.memory_bytes)?;
                self.memory_bytes = wanted.memory_bytes;
            }
            if wanted.memory_bytes.is_some() {
                // If memory runs out the kernel is to take what runs here, not the shim that watches over it.
                let _ = fs::write("/proc/self/oom_score_adj", "500");
            }
        } else if self.of_job.is_some() {
            let _ = fs::write("/proc/self/oom_score_adj", "500");
        } else if let Some(bytes) = wanted.memory_bytes {
            let present = getrlimit(Resource::Data);
            let limit = Rlimit { current: Some(bytes.max(OWN_MEMORY_MIN)), maximum: present.maximum };
            setrlimit(Resource::Data, limit)?;
            self.own_data_limit = Some(present);
        }
        Ok(())
    }

    /// The process was started, or could not be.
    pub(crate) fn started(&mut self) {
        if let Some(limit) = self.own_data_limit.take() {
            // Raising a soft limit to what it was is always allowed.
            let _ = setrlimit(Resource::Data, limit);
        }
        if self.memory_bytes.is_some() || self.of_job.is_some() {
            let _ = fs::write("/proc/self/oom_score_adj", "0");
        }
    }

    /// Whether the kernel killed something of the slot for its memory since this was last asked.
    pub(crate) fn ran_out_of_memory(&mut self) -> bool {
        if self.memory_bytes.is_none() && self.of_job.is_none() {
            return false;
        }
        let now = self.read_oom_kills();
        let before = std::mem::replace(&mut self.oom_kills, now);
        now > before
    }

    /// While everything is killed nothing may fork; afterwards it may again.
    pub(crate) fn forbid_forks(&self, forbid: bool) {
        self.set_pids_max(if forbid { 0 } else { self.processes_max });
    }

    /// How many processes an execution may have.
    pub(crate) fn processes_max(&self) -> u32 {
        self.processes_max
    }

    fn set_pids_max(&self, maximum: u32) {
        if let Some(group) = &self.cgroups.pids {
            // A root group has no such file; then forks cannot be forbidden.
            let _ = fs::write(group.folder.join("pids.max"), maximum.to_string());
        }
    }

    fn write_memory(&self, bytes: Option<u64>) -> io::Result<()> {
        let Some(group) = &self.cgroups.memory else { return Ok(()) };
        match group.version {
            CgroupVersion::V2 => {
                let text = bytes.map_or_else(|| "max".to_owned(), |bytes| bytes.to_string());
                fs::write(group.folder.join("memory.max"), text)?;
                // Without a swap controller there is nothing to limit.
                let _ = fs::write(group.folder.join("memory.swap.max"), if bytes.is_some() { "0" } else { "max" });
                Ok(())
            }
            CgroupVersion::V1 => {
                let text = bytes.map_or_else(|| "-1".to_owned(), |bytes| bytes.to_string());
                let with_swap = group.folder.join("memory.memsw.limit_in_bytes");
                let alone = group.folder.join("memory.limit_in_bytes");
                // The limit with swap may never be below the one without, so both ways are tried in turn.
                if fs::write(&with_swap, &text).is_ok() {
                    return fs::write(&alone, &text);
                }
                fs::write(&alone, &text)?;
                if with_swap.exists() { fs::write(&with_swap, &text) } else { Ok(()) }
            }
        }
    }

    fn write_cpu(&self, millis: Option<u32>) -> io::Result<()> {
        let Some(ControlGroup { folder, version }) = &self.cgroups.cpu else { return Ok(()) };
        let quota = millis.map(|millis| (u64::from(millis) * CPU_PERIOD_MICROS / 1_000).max(1_000));
        match version {
            CgroupVersion::V2 => {
                let quota = quota.map_or_else(|| "max".to_owned(), |quota| quota.to_string());
                fs::write(folder.join("cpu.max"), format!("{quota} {CPU_PERIOD_MICROS}"))
            }
            CgroupVersion::V1 => {
                fs::write(folder.join("cpu.cfs_period_us"), CPU_PERIOD_MICROS.to_string())?;
                let quota = quota.map_or_else(|| "-1".to_owned(), |quota| quota.to_string());
                fs::write(folder.join("cpu.cfs_quota_us"), quota)
            }
        }
    }

    fn read_oom_kills(&self) -> u64 {
        let Some(group) = self.cgroups.memory.as_ref().or(self.of_job.as_ref()) else { return 0 };
        let file = match group.version {
            CgroupVersion::V1 => "memory.oom_control",
            CgroupVersion::V2 => "memory.events",
        };
        fs::read_to_string(group.folder.join(file)).map_or(0, |text| field(&text, "oom_kill"))
    }
}

/// The group of this process that limits memory, if a batch system has made it for the job.
fn scheduled_memory_group() -> Option<ControlGroup> {
    if env::var_os(KUBERNETES_JOB).is_some() {
        return group_of_pod(Path::new("/sys/fs/cgroup"));
    }
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let (path, version) = scheduled_group(&own)?;
    let root = match version {
        CgroupVersion::V1 => "/sys/fs/cgroup/memory",
        CgroupVersion::V2 => "/sys/fs/cgroup",
    };
    let folder = Path::new(root).join(path.trim_start_matches('/'));
    folder.is_dir().then_some(ControlGroup { folder, version })
}

/// The group of a container as it sees it itself, if it limits memory.
fn group_of_pod(root: &Path) -> Option<ControlGroup> {
    let limits = |file: &Path| {
        let limit = fs::read_to_string(file).ok().and_then(|text| text.trim().parse::<u64>().ok());
        limit.is_some_and(|limit| limit < NO_LIMIT)
    };
    if limits(&root.join("memory.max")) {
        return Some(ControlGroup { folder: root.to_owned(), version: CgroupVersion::V2 });
    }
    let folder = root.join("memory");
    limits(&folder.join("memory.limit_in_bytes")).then_some(ControlGroup { folder, version: CgroupVersion::V1 })
}

/// Which of these lines of `/proc/PID/cgroup` is the group of a job.
fn scheduled_group(own: &str) -> Option<(&str, CgroupVersion)> {
    own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let version = match controllers {
            "" => CgroupVersion::V2,
            controllers if controllers.split(',').any(|name| name == "memory") => CgroupVersion::V1,
            _ => return None,
        };
        (path.contains("slurm") && path.contains("/job_")).then_some((path, version))
    })
}

/// E4: an agent that the kernel is to spare when memory runs out hands that down; what runs here is to be taken first.
fn expose() {
    const SCORE: &str = "/proc/self/oom_score_adj";
    let inherited = fs::read_to_string(SCORE).ok().and_then(|text| text.trim().parse::<i32>().ok());
    if inherited.is_some_and(|score| score < 0) {
        // Anybody may make himself the likelier one.
        let _ = fs::write(SCORE, "0");
    }
}

/// E5: what runs has no more files open at a time than leaves some to others, whatever the agent may have.
fn limit_open_files() {
    let present = getrlimit(Resource::Nofile);
    let most = |limit: Option<u64>| Some(limit.map_or(OPEN_FILES_MAX, |limit| limit.min(OPEN_FILES_MAX)));
    let limit = Rlimit { current: most(present.current), maximum: most(present.maximum) };
    // Lowering both is always allowed.
    let _ = setrlimit(Resource::Nofile, limit);
}

fn enter(folder: &Path) -> io::Result<()> {
    fs::write(folder.join("cgroup.procs"), "0")
}

/// The number after a name at the start of a line; 0 if there is none.
pub(super) fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(field, _)| *field == name)
        .and_then(|(_, number)| number.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use super::*;

    fn group(folder: &Path, version: CgroupVersion) -> Option<ControlGroup> {
        Some(ControlGroup { folder: folder.to_owned(), version })
    }

    #[test]
    fn the_second_version_gets_its_limits_in_its_words() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        fs::write(path.join("memory.events"), "low 0\noom 1\noom_kill 3\n").unwrap();
        let cgroups = SlotCgroups {
            memory: group(path, CgroupVersion::V2),
            cpu: group(path, CgroupVersion::V2),
            ..SlotCgroups::default()
        };
        let mut limits = Limits { cgroups, oom_kills: 3, ..Limits::none() };
        let wanted = Common { memory_bytes: Some(64 << 20), cpu_millis: Some(1_500), ..Common::default() };
        limits.apply(&wanted).unwrap();
        limits.started();
        assert_eq!(fs::read_to_string(path.join("memory.max")).unwrap(), "67108864");
        assert_eq!(fs::read_to_string(path.join("cpu.max")).unwrap(), "150000 100000");
        assert!(!limits.ran_out_of_memory());
        fs::write(path.join("memory.events"), "low 0\noom 2\noom_kill 4\n").unwrap();
        assert!(limits.ran_out_of_memory());
        assert!(!limits.ran_out_of_memory());
        limits.apply(&Common::default()).unwrap();
        assert_eq!(fs::read_to_string(path.join("memory.max")).unwrap(), "max");
        assert_eq!(fs::read_to_string(path.join("cpu.max")).unwrap(), "max 100000");
    }

    #[test]
    fn a_pod_is_limited_by_its_container_s_group_if_that_has_a_limit() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        assert_eq!(group_of_pod(root), None);
        fs::create_dir(root.join("memory")).unwrap();
        for (file, limit, version) in [
            ("memory/memory.limit_in_bytes", "9223372036854771712", None),
            ("memory/memory.limit_in_bytes", "83886080", Some(CgroupVersion::V1)),
            ("memory.max", "max", Some(CgroupVersion::V1)),
            ("memory.max", "83886080", Some(CgroupVersion::V2)),
        ] {
            fs::write(root.join(file), format!("{limit}\n")).unwrap();
            assert_eq!(group_of_pod(root).map(|group| group.version), version, "{file}: {limit}");
        }
    }

    #[test]
    fn a_group_is_that_of_a_job_if_a_batch_system_made_it() {
        let first = "9:name=systemd:/\n4:memory:/slurm_c1/uid_0/job_4/step_batch/task_0\n0::/\n";
        let second = "0::/system.slice/slurmstepd.scope/job_4/step_batch/user/task_0\n";
        assert_eq!(scheduled_group(first), Some(("/slurm_c1/uid_0/job_4/step_batch/task_0", CgroupVersion::V1)));
        assert!(matches!(scheduled_group(second), Some((_, CgroupVersion::V2))));
        assert_eq!(scheduled_group("4:memory:/\n0::/user.slice/session-1.scope\n"), None);
    }
}
