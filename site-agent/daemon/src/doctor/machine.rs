//! The machine: what its kernel allows this user.

use std::path::Path;

use atoll_model::resources::IsolationProfile;
use nix::sys::resource::{Resource, getrlimit};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use super::commands::{Answer, Commands};
use super::report::{Check, shown_bytes};
use crate::config::{Config, ShimProgram};
use crate::executor::local::{Survey, survey};
use crate::measure;
use crate::shim::{NAMESPACES, STRICT};

/// Slots, connections and files that are being fetched take one each, and there may be hundreds of them.
const OPEN_FILES_FEW: u64 = 1_024;
const OPEN_FILES_TOO_FEW: u64 = 256;

/// What was seen.
#[derive(Debug)]
pub(super) struct Seen {
    kernel: String,
    has_pidfd: bool,
    cpus: f64,
    memory_bytes: u64,
    /// Soft and hard.
    open_files: (u64, u64),
    /// What the shim got, or why it got nothing.
    namespaces: Result<String, String>,
    /// Why nothing can be kept from everything else, if it cannot.
    strict: Result<(), String>,
    strict_is_least: bool,
    settings: Settings,
    bubblewrap: Answer,
    cgroups: Survey,
}

/// What may forbid user namespaces.
#[derive(Debug, Default, Clone, Copy)]
struct Settings {
    none_allowed: bool,
    not_for_users: bool,
    apparmor: bool,
}

impl Seen {
    /// Whether this user may make user namespaces.
    pub(super) fn has_namespaces(&self) -> bool {
        self.namespaces.is_ok()
    }
}

pub(super) async fn look(config: &Config, commands: &Commands) -> Seen {
    let capacity = measure::capacity(config);
    let named = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let system = rustix::system::uname();
    Seen {
        kernel: format!("{} {} on {}", named(system.sysname()), named(system.release()), named(system.machine())),
        has_pidfd: pidfd_open(getpid(), PidfdFlags::empty()).is_ok(),
        cpus: f64::from(capacity.cpu_millis) / 1_000.0,
        memory_bytes: capacity.memory_bytes,
        open_files: getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((0, 0)),
        namespaces: try_shim(config, commands, NAMESPACES).await,
        strict: strict(config, commands).await,
        strict_is_least: config.isolation.minimum == IsolationProfile::Strict,
        settings: Settings::read(Path::new("/proc/sys")),
        bubblewrap: commands.ask("bwrap", &["--version"]).await,
        cgroups: survey(),
    }
}

/// Has a shim try, since a process that has threads may not.
async fn try_shim(config: &Config, commands: &Commands, what: &str) -> Result<String, String> {
    let shim = config.shim_program.clone().map_or_else(ShimProgram::own, Ok).map_err(|error| error.to_string())?;
    let arguments = shim.arguments.iter().map(String::as_str).chain([what]);
    match commands.run(&shim.program, &arguments.collect::<Vec<_>>()).await {
        Answer::Said(text) => Ok(text.trim().to_owned()),
        other @ (Answer::Missing | Answer::Late(_) | Answer::Failed(_)) => Err(other.complaint().unwrap_or_default()),
    }
}

async fn strict(config: &Config, commands: &Commands) -> Result<(), String> {
    if config.jobs_max().is_some() {
        return Err("executions are jobs of a cluster, whose nodes keep them apart as they do".to_owned());
    }
    try_shim(config, commands, STRICT).await.map(drop)
}

impl Settings {
    fn read(root: &Path) -> Self {
        let is = |name: &str, value: &str| {
            std::fs::read_to_string(root.join(name)).is_ok_and(|content| content.trim() == value)
        };
        Self {
            none_allowed: is("user/max_user_namespaces", "0"),
            not_for_users: is("kernel/unprivileged_userns_clone", "0"),
            apparmor: is("kernel/apparmor_restrict_unprivileged_userns", "1"),
        }
    }

    fn advice(self) -> &'static str {
        match self {
            Self { none_allowed: true, .. } => {
                "allow them: `sysctl user.max_user_namespaces=15000`, and in /etc/sysctl.d to keep it"
            }
            Self { not_for_users: true, .. } => {
                "allow them: `sysctl kernel.unprivileged_userns_clone=1`, and in /etc/sysctl.d to keep it"
            }
            Self { apparmor: true, .. } => {
                "allow them to this program by a profile of AppArmor with `userns,`, or to all: `sysctl \
                 kernel.apparmor_restrict_unprivileged_userns=0`"
            }
            Self { .. } => {
                "have whatever the agent runs in (a container, a seccomp filter, SELinux) allow unshare(CLONE_NEWUSER)"
            }
        }
    }
}

pub(super) fn judge(seen: &Seen) -> Vec<Check> {
    vec![
        judge_kernel(seen),
        judge_open_files(seen.open_files),
        judge_namespaces(seen),
        judge_isolation(seen),
        judge_cgroups(&seen.cgroups),
    ]
}

fn judge_kernel(seen: &Seen) -> Check {
    let name = "kernel";
    let found = format!("{}; offers {} CPUs and {}", seen.kernel, seen.cpus, shown_bytes(seen.memory_bytes));
    let check = if seen.has_pidfd {
        Check::ok(name, found)
    } else {
        let advice =
            "the agent watches what it runs by pidfd: use Linux 5.3 or newer, and a sandbox that allows pidfd_open";
        Check::problem(name, format!("{found}; it has no pidfd"), advice)
    };
    check.with("cpus", seen.cpus).with("memory_bytes", seen.memory_bytes)
}

fn judge_open_files((soft, hard): (u64, u64)) -> Check {
    let name = "open-files";
    let found = format!("{soft} at a time ({hard} at most)");
    let advice = "raise the limit of open files for the agent: `LimitNOFILE=65536` in its systemd unit, `ulimit -n` in its \
                  shell, or /etc/security/limits.conf";
    let check = match soft {
        OPEN_FILES_FEW.. => Check::ok(name, found),
        OPEN_FILES_TOO_FEW.. => Check::warning(name, found, advice),
        _ => Check::problem(name, found, advice),
    };
    check.with("soft", soft).with("hard", hard)
}

fn judge_namespaces(seen: &Seen) -> Check {
    let name = "user-namespaces";
    let bubblewrap = match seen.bubblewrap.text() {
        Some(version) => format!("; {} is there", version.trim()),
        None => "; bubblewrap is not installed".to_owned(),
    };
    match &seen.namespaces {
        Ok(kind) => {
            Check::ok(name, format!("allowed ({kind}): what runs sees the agent's folders read-only{bubblewrap}"))
        }
        Err(why) => Check::warning(
            name,
            format!(
                "not allowed ({why}): what runs is not kept from files of the agent's user, and inputs are checked after \
                     each use{bubblewrap}"
            ),
            seen.settings.advice(),
        ),
    }
}

fn judge_isolation(seen: &Seen) -> Check {
    let name = "isolation";
    let Err(why) = &seen.strict else {
        return Check::ok(name, "steps with `isolation: strict` can run").with("strict", true);
    };
    let found = format!("steps with `isolation: strict` cannot run here: {why}");
    let check = if seen.strict_is_least {
        let advice =
            "the site takes no work like this: have what is named allowed, or lower `minimum` under `[isolation]`";
        Check::problem(name, found, advice)
    } else {
        let advice = "nothing, if no step asks for it; else use Linux 5.12 or newer and have what runs the agent (a container, a \
                      seccomp filter) allow namespaces and mounts in them";
        Check::warning(name, found, advice)
    };
    check.with("strict", false)
}

fn judge_cgroups(survey: &Survey) -> Check {
    let name = "cgroups";
    let version = match (survey.second, survey.first) {
        (true, true) => "v1 and v2",
        (true, false) => "v2",
        (false, true) => "v1",
        (false, false) => "none mounted",
    };
    let list = |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let found = format!("{version}; usable by what is started from here: {}", list(&survey.usable));
    let has = |name: &str| survey.usable.iter().any(|usable| usable == name);
    let check = if has("memory") && has("cpu") {
        Check::ok(name, found)
    } else {
        let advice = "have the groups delegated: `Delegate=yes` in the agent's systemd unit, or start it with `systemd-run --user \
                      --scope -p Delegate=yes` (and `loginctl enable-linger USER`)";
        let means = if has("memory") {
            "CPUs of steps are counted, not enforced"
        } else {
            "memory of steps is limited for each process only, and CPUs are counted, not enforced"
        };
        Check::warning(name, format!("{found}; {means}"), advice)
    };
    let check = match &survey.own {
        Some(own) => check.with("own", own.display().to_string()),
        None => check,
    };
    check.with("usable", survey.usable.clone()).with("offered", survey.offered.clone())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use super::super::report::CheckState;
    use super::*;

    fn survey_of(usable: &[&str]) -> Survey {
        let usable = usable.iter().map(|name| (*name).to_owned()).collect();
        Survey { second: true, usable, ..Survey::default() }
    }

    fn seen(namespaces: Result<String, String>) -> Seen {
        Seen {
            kernel: "Linux 6.1.0 on x86_64".to_owned(),
            has_pidfd: true,
            cpus: 8.0,
            memory_bytes: 16_000_000_000,
            open_files: (1_024, 524_288),
            strict: namespaces.clone().map(drop),
            strict_is_least: false,
            namespaces,
            settings: Settings::default(),
            bubblewrap: Answer::Missing,
            cgroups: survey_of(&["memory", "cpu"]),
        }
    }

    #[test]
    fn a_machine_that_allows_everything_has_nothing_to_be_done() {
        let checks = judge(&seen(Ok("user and mount namespaces".to_owned())));
        assert!(checks.iter().all(|check| check.state == CheckState::Ok), "{checks:#?}");
        assert_eq!(checks[0].found, "Linux 6.1.0 on x86_64; offers 8 CPUs and 16.0 GB");
    }

    #[test]
    fn a_site_that_cannot_give_what_it_demands_is_a_problem_and_else_a_warning() {
        let seen = seen(Err("EPERM".to_owned()));
        let check = judge_isolation(&seen);
        assert_eq!(check.state, CheckState::Warning);
        assert!(check.found.contains("EPERM"), "{check:?}");
        assert_eq!(judge_isolation(&Seen { strict_is_least: true, ..seen }).state, CheckState::Problem);
    }

    #[test]
    fn a_kernel_without_pidfd_runs_nothing() {
        let old = Seen { has_pidfd: false, ..seen(Ok(String::new())) };
        assert_eq!(judge_kernel(&old).state, CheckState::Problem);
    }

    #[test]
    fn few_open_files_are_a_warning_and_very_few_a_problem() {
        assert_eq!(judge_open_files((1_024, 1_024)).state, CheckState::Ok);
        assert_eq!(judge_open_files((1_023, 4_096)).state, CheckState::Warning);
        assert_eq!(judge_open_files((255, 4_096)).state, CheckState::Problem);
    }

    #[test]
    fn namespaces_that_are_forbidden_come_with_the_setting_that_forbids_them() {
        let folder = tempfile::tempdir().unwrap();
        let advice = |name: &str, value: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, value).unwrap();
            let settings = Settings::read(folder.path());
            let check = judge_namespaces(&Seen { settings, ..seen(Err("EPERM".to_owned())) });
            assert_eq!(check.state, CheckState::Warning);
            check.advice.unwrap()
        };
        assert!(advice("kernel/apparmor_restrict_unprivileged_userns", "1\n").contains("AppArmor"));
        assert!(advice("kernel/unprivileged_userns_clone", "0\n").contains("unprivileged_userns_clone=1"));
        assert!(advice("user/max_user_namespaces", "0\n").contains("max_user_namespaces"));
        assert!(Settings::default().advice().contains("CLONE_NEWUSER"));
    }

    #[test]
    fn groups_that_are_not_delegated_cost_the_limits() {
        assert_eq!(judge_cgroups(&survey_of(&["memory", "cpu", "pids"])).state, CheckState::Ok);
        let memory = judge_cgroups(&survey_of(&["memory"]));
        assert!(memory.state == CheckState::Warning && memory.found.contains("CPUs of steps"), "{}", memory.found);
        let nothing = judge_cgroups(&Survey::default());
        assert!(
            nothing.found.starts_with("none mounted; usable by what is started from here: none"),
            "{}",
            nothing.found
        );
    }
}
