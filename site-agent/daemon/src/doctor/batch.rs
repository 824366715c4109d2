//! Batch systems: which there are, whether they answer, and what they offer.

mod kubernetes;
mod slurm;
mod template;

use std::path::Path;

use super::commands::{Answer, Commands};
use super::report::Check;
use crate::config::{BatchSettings, KubernetesSettings};

/// A batch system that is known by its programs.
struct Known {
    title: &'static str,
    check: &'static str,
    /// All of them are there where it is.
    programs: &'static [&'static str],
    /// What says its version.
    version: (&'static str, &'static [&'static str]),
    /// What fails where it does not answer.
    alive: (&'static str, &'static [&'static str]),
}

const OTHERS: [Known; 4] = [
    Known {
        title: "PBS",
        check: "pbs",
        programs: &["qsub", "qstat", "pbsnodes"],
        version: ("qstat", &["--version"]),
        alive: ("qstat", &["-Q"]),
    },
    Known { title: "LSF", check: "lsf", programs: &["bsub", "lsid"], version: ("lsid", &["-V"]), alive: ("lsid", &[]) },
    Known {
        title: "Flux",
        check: "flux",
        programs: &["flux"],
        version: ("flux", &["version"]),
        alive: ("flux", &["resource", "list"]),
    },
    Known {
        title: "HTCondor",
        check: "htcondor",
        programs: &["condor_submit", "condor_status"],
        version: ("condor_version", &[]),
        alive: ("condor_status", &["-total"]),
    },
];

/// One check for each batch system that is there, or one that says that there is none; before them one of the system that
/// the site's jobs go to.
pub(super) async fn look(
    settings: Option<&BatchSettings>,
    kubernetes: Option<(&KubernetesSettings, &Path)>,
    commands: &Commands,
) -> Vec<Check> {
    let mut checks = Vec::new();
    if let Some((settings, data_dir)) = kubernetes {
        checks.extend(kubernetes::look(settings, data_dir).await);
    }
    if let Some(settings) = settings {
        checks.push(template::look(settings, commands).await);
    }
    if commands.has("sinfo") || commands.has("sbatch") {
        checks.push(slurm::look(commands).await);
        checks.push(slurm::look_at_accounting(commands).await);
    }
    for known in &OTHERS {
        if known.programs.iter().all(|program| commands.has(program)) {
            let (version, alive) = tokio::join!(
                commands.ask(known.version.0, known.version.1),
                commands.ask(known.alive.0, known.alive.1)
            );
            checks.push(judge(known, &version, &alive));
        }
    }
    if checks.is_empty() {
        let none = "none is found on PATH (Slurm, PBS, LSF, Flux, HTCondor): work runs as processes of this machine";
        checks.push(Check::skipped("batch-system", none));
    }
    checks
}

fn judge(known: &Known, version: &Answer, alive: &Answer) -> Check {
    let version = version.text().map(version_in).filter(|version| !version.is_empty());
    let title = version.map_or_else(|| known.title.to_owned(), |version| format!("{} {version}", known.title));
    match alive.complaint() {
        None => Check::ok(known.check, format!("{title} answers")),
        Some(complaint) => {
            let (program, arguments) = known.alive;
            let command = format!("{program} {}", arguments.join(" "));
            let advice = format!(
                "have `{}` answer for this user: is this machine one from which jobs are submitted, and does the system's \
                 server run?",
                command.trim()
            );
            Check::problem(known.check, format!("{title}: {complaint}"), advice)
        }
    }
}

/// The first word of the output that is a version: digits with points between them.
fn version_in(text: &str) -> String {
    let is_version = |word: &str| {
        word.contains('.') && word.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') && !word.starts_with('.')
    };
    let words = text.split(|letter: char| letter.is_whitespace() || letter == ',' || letter == '$');
    words.map(|word| word.trim_end_matches('.')).find(|word| is_version(word)).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::commands::tests::scripts;
    use super::super::report::CheckState;
    use super::*;

    #[test]
    fn versions_are_found_in_what_each_system_says() {
        assert_eq!(version_in("pbs_version = 22.05.11\n"), "22.05.11");
        assert_eq!(version_in("IBM Spectrum LSF Standard 10.1.0.12, Jun 10 2021\nCopyright"), "10.1.0.12");
        assert_eq!(version_in("commands:    \t\t0.53.0\nlibflux-core:\t\t0.53.0\n"), "0.53.0");
        assert_eq!(version_in("$CondorVersion: 10.0.9 2023-09-28 BuildID: 678228 $\n"), "10.0.9");
        assert_eq!(version_in("no version. at all"), "");
    }

    #[tokio::test]
    async fn a_machine_without_a_batch_system_says_so() {
        let (_folder, commands) = scripts(&[]);
        let checks = look(None, None, &commands).await;
        assert_eq!(checks.len(), 1);
        assert_eq!((checks[0].name, checks[0].state), ("batch-system", CheckState::Skipped));
    }

    #[tokio::test]
    async fn each_system_is_known_by_its_programs_and_asked_whether_it_answers() {
        let (_folder, commands) = scripts(&[
            ("qsub", ""),
            ("pbsnodes", ""),
            ("qstat", "if [ \"$1\" = --version ]; then echo pbs_version = 22.05.11; else echo workq; fi"),
            ("bsub", ""),
            ("lsid", "echo 'lsid: LSF daemon not responding' >&2; exit 255"),
            ("flux", "if [ \"$1\" = version ]; then echo 'commands: 0.53.0'; else echo; fi"),
            ("condor_submit", ""),
            ("condor_status", "echo 'Failed to connect' >&2; exit 1"),
            ("condor_version", "echo '$CondorVersion: 10.0.9 2023-09-28 $'"),
        ]);
        let checks = look(None, None, &commands).await;
        let seen: Vec<(&str, CheckState, &str)> =
            checks.iter().map(|check| (check.name, check.state, check.found.as_str())).collect();
        assert_eq!(
            seen,
            [
                ("pbs", CheckState::Ok, "PBS 22.05.11 answers"),
                ("lsf", CheckState::Problem, "LSF: lsid: LSF daemon not responding"),
                ("flux", CheckState::Ok, "Flux 0.53.0 answers"),
                ("htcondor", CheckState::Problem, "HTCondor 10.0.9: Failed to connect"),
            ]
        );
    }
}
