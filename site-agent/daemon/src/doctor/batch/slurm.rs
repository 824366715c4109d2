//! Slurm: its version, whether its controller answers, its partitions, and whether there is accounting.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::doctor::commands::{Answer, Commands};
use crate::doctor::report::{Check, first_line};

/// Partition (`*` marks the default), whether it is up, time limit, nodes, their state.
const PARTITIONS: [&str; 2] = ["--noheader", "--format=%P|%a|%l|%D|%T"];

/// Of a job that most likely is none: what matters is whether there is an answer.
const ACCOUNTING: [&str; 4] = ["--noheader", "--allocations", "--jobs=1", "--format=JobID"];

/// What was asked.
#[derive(Debug)]
struct Seen {
    version: Answer,
    partitions: Answer,
    can_submit: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct Partition {
    name: String,
    is_default: bool,
    is_up: bool,
    time_limit: String,
    /// How many are in each state.
    nodes: BTreeMap<String, u64>,
}

pub(super) async fn look(commands: &Commands) -> Check {
    let (version, partitions) = tokio::join!(commands.ask("sinfo", &["--version"]), commands.ask("sinfo", &PARTITIONS));
    let seen = Seen {
        version,
        partitions,
        can_submit: ["sbatch", "squeue", "scancel"].iter().all(|program| commands.has(program)),
    };
    judge(&seen)
}

pub(super) async fn look_at_accounting(commands: &Commands) -> Check {
    judge_accounting(&commands.ask("sacct", &ACCOUNTING).await)
}

/// A site without accounting works: what is lacking is a word for how jobs ended that the controller has let go of.
fn judge_accounting(answer: &Answer) -> Check {
    let name = "slurm-accounting";
    let unknown = "how a job ended that the controller has forgotten, and that has left no word, will not be known";
    match answer.complaint() {
        None => Check::ok(name, "sacct answers: it is asked how jobs ended that the controller has forgotten"),
        Some(why) if *answer == Answer::Missing || why.contains("accounting storage is disabled") => {
            let advice = "have the cluster keep accounts (slurmdbd, AccountingStorageType=accounting_storage/slurmdbd), and \
                          install sacct here";
            let why = if *answer == Answer::Missing { "there is no sacct".to_owned() } else { why };
            Check::skipped(name, format!("{why}: {unknown}")).with_advice(advice)
        }
        Some(why) => {
            let advice = "have slurmdbd run, and this machine reach it (AccountingStorageHost): until then such jobs are waited for";
            Check::warning(name, format!("sacct: {why}"), advice)
        }
    }
}

fn judge(seen: &Seen) -> Check {
    let version = seen.version.text().map(first_line).unwrap_or_default().replace("slurm", "Slurm");
    let title = if version.is_empty() { "Slurm".to_owned() } else { version };
    if let Some(complaint) = seen.partitions.complaint() {
        let advice = "have `sinfo` answer for this user: is this machine one from which jobs are submitted, does slurmctld run, \
                      and has munge the cluster's key?";
        return Check::problem("slurm", format!("{title}: {complaint}"), advice);
    }
    let partitions = read_partitions(seen.partitions.text().unwrap_or_default());
    let listed: Vec<String> = partitions.iter().map(Partition::shown).collect();
    let found = format!("{title}: {}", if listed.is_empty() { "no partition".to_owned() } else { listed.join("; ") });
    judge_partitions(seen, found, &partitions)
        .with("partitions", partitions.iter().map(Partition::document).collect::<Vec<Value>>())
}

fn judge_partitions(seen: &Seen, found: String, partitions: &[Partition]) -> Check {
    let name = "slurm";
    if !partitions.iter().any(Partition::is_usable) {
        let advice = "no node could take a job: `sinfo -R` says why nodes are down or drained, `scontrol update` brings them back";
        return Check::problem(name, found, advice);
    }
    if !seen.can_submit {
        let advice = "install Slurm's client programs here (sbatch, squeue, scancel), or run the agent on a login node";
        return Check::problem(name, format!("{found}; sbatch, squeue or scancel is missing"), advice);
    }
    let unusable: Vec<&str> = partitions.iter().filter(|one| !one.is_usable()).map(|one| one.name.as_str()).collect();
    if !unusable.is_empty() {
        let advice = format!("no node of {} could take a job: `sinfo -R` says why", unusable.join(", "));
        return Check::warning(name, found, advice);
    }
    if !partitions.iter().any(|one| one.is_default) {
        let advice = "no partition is the default: steps have to name theirs, or the site's administrator one for all";
        return Check::warning(name, found, advice);
    }
    Check::ok(name, found)
}

impl Partition {
    fn total(&self) -> u64 {
        self.nodes.values().sum()
    }

    fn is_usable(&self) -> bool {
        let usable = |state: &str| {
            // `*` marks nodes that do not respond.
            let takes = ["idle", "mixed", "allocated", "completing", "planned", "reserved"];
            !state.ends_with('*')
                && takes.contains(&state.trim_end_matches(|letter: char| !letter.is_ascii_alphabetic()))
        };
        self.is_up && self.nodes.iter().any(|(state, count)| *count > 0 && usable(state))
    }

    fn shown(&self) -> String {
        let states: Vec<String> = self.nodes.iter().map(|(state, count)| format!("{count} {state}")).collect();
        let default = if self.is_default { " (default)" } else { "" };
        let down = if self.is_up { "" } else { ", not up" };
        format!(
            "{}{default}: {} nodes ({}), time limit {}{down}",
            self.name,
            self.total(),
            states.join(", "),
            self.time_limit
        )
    }

    fn document(&self) -> Value {
        json!({
            "partition": self.name,
            "default": self.is_default,
            "up": self.is_up,
            "time_limit": self.time_limit,
            "time_limit_seconds": seconds(&self.time_limit),
            "nodes": self.total(),
            "nodes_by_state": self.nodes,
        })
    }
}

/// Lines that are not what was asked for are of no partition.
fn read_partitions(text: &str) -> Vec<Partition> {
    let mut partitions: Vec<Partition> = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.trim().split('|').collect();
        let &[name, up, time_limit, nodes, state] = fields.as_slice() else { continue };
        let Ok(count) = nodes.parse::<u64>() else { continue };
        let (name, is_default) = name.strip_suffix('*').map_or((name, false), |name| (name, true));
        let at = partitions.iter().position(|known| known.name == name).unwrap_or_else(|| {
            partitions.push(Partition {
                name: name.to_owned(),
                is_default,
                is_up: up == "up",
                time_limit: time_limit.to_owned(),
                nodes: BTreeMap::new(),
            });
            partitions.len() - 1
        });
        *partitions[at].nodes.entry(state.to_owned()).or_default() += count;
    }
    partitions
}

/// Of a limit as Slurm writes it, `2-12:00:00`; none for `infinite`.
fn seconds(limit: &str) -> Option<u64> {
    let (days, rest) = limit.split_once('-').map_or((0, limit), |(days, rest)| (days.parse().unwrap_or(0), rest));
    let parts = rest.split(':').map(|part| part.parse().ok()).collect::<Option<Vec<u64>>>()?;
    let of_day = match parts.as_slice() {
        [hours, minutes, seconds] => hours * 3_600 + minutes * 60 + seconds,
        [minutes, seconds] => minutes * 60 + seconds,
        _ => return None,
    };
    Some(days * 86_400 + of_day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::commands::tests::scripts;
    use crate::doctor::report::CheckState;

    const CLUSTER: &str = "\
debug*|up|30:00|2|idle
debug*|up|30:00|1|mixed
long|up|7-00:00:00|16|allocated
long|up|7-00:00:00|2|drained
gpu|up|infinite|4|idle~
";

    fn seen(partitions: &str) -> Seen {
        Seen {
            version: Answer::Said("slurm 22.05.8\n".to_owned()),
            partitions: Answer::Said(partitions.to_owned()),
            can_submit: true,
        }
    }

    #[test]
    fn partitions_are_told_with_their_nodes_and_limits() {
        let check = judge(&seen(CLUSTER));
        assert_eq!(check.state, CheckState::Ok);
        assert_eq!(
            check.found,
            "Slurm 22.05.8: debug (default): 3 nodes (2 idle, 1 mixed), time limit 30:00; \
             long: 18 nodes (16 allocated, 2 drained), time limit 7-00:00:00; gpu: 4 nodes (4 idle~), time limit infinite"
        );
        let long = &check.figures["partitions"][1];
        assert_eq!((&long["time_limit_seconds"], &long["nodes"]), (&json!(604_800), &json!(18)));
        assert_eq!(check.figures["partitions"][2]["time_limit_seconds"], Value::Null);
    }

    #[test]
    fn a_partition_that_could_take_nothing_is_named() {
        let down = judge(&seen("debug*|up|30:00|2|idle\nlong|up|infinite|16|down*\nold|inact|infinite|1|idle\n"));
        assert_eq!(down.state, CheckState::Warning);
        assert!(down.advice.is_some_and(|advice| advice.contains("long, old")), "{}", down.found);
        assert_eq!(judge(&seen("debug*|up|30:00|2|idle*\n")).state, CheckState::Problem);
        assert_eq!(judge(&seen("nonsense\n")).state, CheckState::Problem);
        assert_eq!(judge(&seen("debug|up|30:00|2|idle\n")).state, CheckState::Warning);
    }

    #[test]
    fn what_is_missing_to_submit_is_a_problem() {
        assert_eq!(judge(&Seen { can_submit: false, ..seen(CLUSTER) }).state, CheckState::Problem);
    }

    #[tokio::test]
    async fn a_controller_that_is_down_is_a_problem_with_its_own_words() {
        let down = "echo 'slurm_load_partitions: Unable to contact slurm controller (connect failure)' >&2; exit 1";
        let version = "if [ \"$1\" = --version ]; then echo slurm 22.05.8; exit; fi;";
        let (_folder, commands) = scripts(&[("sinfo", &format!("{version} {down}")), ("sbatch", "")]);
        let check = look(&commands).await;
        assert_eq!(check.state, CheckState::Problem);
        assert!(check.found.starts_with("Slurm 22.05.8: slurm_load_partitions: Unable"), "{}", check.found);
    }

    #[tokio::test]
    async fn a_cluster_that_answers_is_read() {
        let answer = "if [ \"$1\" = --version ]; then echo slurm 23.11.4; else echo 'debug*|up|1:00:00|4|idle'; fi";
        let programs = [("sinfo", answer), ("sbatch", ""), ("squeue", ""), ("scancel", "")];
        let (_folder, commands) = scripts(&programs);
        let check = look(&commands).await;
        assert_eq!(check.state, CheckState::Ok, "{}", check.found);
        assert_eq!(check.found, "Slurm 23.11.4: debug (default): 4 nodes (4 idle), time limit 1:00:00");
    }

    #[tokio::test]
    async fn a_site_without_accounting_is_told_what_it_lacks_and_nothing_is_wrong_with_it() {
        let of = async |answer: Option<&str>| {
            let (_folder, commands) = scripts(answer.map(|answer| ("sacct", answer)).as_slice());
            let check = look_at_accounting(&commands).await;
            (check.state, check.advice.unwrap_or_default())
        };
        assert_eq!(of(Some("echo 12")).await, (CheckState::Ok, String::new()));
        for none in [None, Some("echo 'Slurm accounting storage is disabled' >&2; exit 1")] {
            let (state, advice) = of(none).await;
            assert!(state == CheckState::Skipped && advice.contains("slurmdbd"), "{state:?} {advice}");
        }
        let away = "echo 'sacct: error: Problem talking to the database: Connection refused' >&2; exit 1";
        assert_eq!(of(Some(away)).await.0, CheckState::Warning);
    }

    #[test]
    fn time_limits_are_read_as_slurm_writes_them() {
        assert_eq!((seconds("30:00"), seconds("1:00:00")), (Some(1_800), Some(3_600)));
        assert_eq!((seconds("2-12:00:00"), seconds("infinite")), (Some(216_000), None));
    }
}
