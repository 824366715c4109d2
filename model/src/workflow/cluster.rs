//! What a step says of the nodes of a cluster that it wants, and of its job there.

use crate::diagnostic::Place;
use crate::limits::{NODES_MAX, SBATCH_OPTIONS_MAX, TASKS_PER_NODE_MAX};
use crate::reading::{Fields, Report};
use crate::resources::{Launch, Resources, Spread};
use crate::suggestion::did_you_mean;
use crate::workflow::Work;
use crate::yaml::Node;

/// What a step may say to `sbatch` beside what its other resources become. What makes the agent find, read or trust its own
/// jobs is not among them, nor is what a site's administrator says: where jobs go and in whose name.
const SBATCH_OPTIONS: &[&str] = &[
    "acctg-freq",
    "bb",
    "cluster-constraint",
    "constraint",
    "contiguous",
    "core-spec",
    "cores-per-socket",
    "cpu-freq",
    "deadline",
    "distribution",
    "exclude",
    "exclusive",
    "extra-node-info",
    "gpu-bind",
    "gpu-freq",
    "gres",
    "gres-flags",
    "hint",
    "licenses",
    "mail-type",
    "mail-user",
    "mem-bind",
    "nice",
    "nodelist",
    "ntasks-per-core",
    "ntasks-per-socket",
    "overcommit",
    "oversubscribe",
    "power",
    "prefer",
    "profile",
    "reservation",
    "sockets-per-node",
    "spread-job",
    "switches",
    "thread-spec",
    "threads-per-core",
    "time-min",
    "tmp",
    "use-min-nodes",
    "wckey",
];

/// Reads `nodes`, `tasks_per_node` and `launch` of `resources`; nothing where one task on one node is all.
pub(super) fn read_spread(report: &mut Report, fields: &Fields<'_>) -> Option<Spread> {
    let mut count = |name: &str, most| {
        fields.get(name).and_then(|node| report.integer(node, &format!("`{name}`"), 1..=most)).unwrap_or(1)
    };
    let (nodes, tasks_per_node) = (count("nodes", NODES_MAX), count("tasks_per_node", TASKS_PER_NODE_MAX));
    let launchers = Launch::ALL.map(|launch| (launch.as_str(), launch));
    let launch = fields.get("launch").and_then(|node| report.word(node, "`launch`", &launchers));
    let is_spread = nodes > 1 || tasks_per_node > 1 || launch.is_some();
    is_spread.then_some(Spread { nodes, tasks_per_node, launch })
}

/// Reads `sbatch: ["--constraint=avx2"]` of `resources`.
pub(super) fn read_sbatch(report: &mut Report, node: &Node) -> Vec<String> {
    let said = report.texts(node, "an option of `sbatch`");
    if said.len() > SBATCH_OPTIONS_MAX {
        report.error(node.place, format!("`sbatch` has at most {SBATCH_OPTIONS_MAX} options"), None);
    }
    let mut options = Vec::new();
    for (text, place) in said {
        match check_option(text) {
            Ok(()) => options.push(text.to_owned()),
            Err((message, help)) => report.error(place, message, help),
        }
    }
    options
}

/// One option, in one word: what Slurm would read as a second one would not have been looked at.
fn check_option(text: &str) -> Result<(), (String, Option<String>)> {
    let shown = text.escape_debug();
    let is_plain = |letter: char| letter.is_ascii_graphic() && !"\"'\\#`$".contains(letter);
    let Some(option) = text.strip_prefix("--").filter(|_| text.chars().all(is_plain)) else {
        let help = Some("an option stands in one word, with its value: `--constraint=avx2`".to_owned());
        return Err((format!("`{shown}` is no option of `sbatch`"), help));
    };
    let name = option.split('=').next().unwrap_or(option);
    if SBATCH_OPTIONS.contains(&name) {
        return Ok(());
    }
    let own = [("nodes", "nodes"), ("ntasks-per-node", "tasks_per_node"), ("cpus-per-task", "cpu")];
    let own = own.into_iter().chain([("mem", "memory"), ("time", "time"), ("gpus", "gpu")]);
    let help = own.into_iter().find(|(known, _)| *known == name).map(|(_, own)| format!("say it as `{own}`"));
    let help = help.or_else(|| did_you_mean(name, SBATCH_OPTIONS.iter().copied()));
    Err((format!("a step cannot say `--{}` to `sbatch`", name.escape_debug()), help))
}

/// What is spread, or has options of its own, is what a job can be.
pub(super) fn check_work(report: &mut Report, place: Place, resources: &Resources, work: &Work) {
    if !resources.is_for_batch_system() {
        return;
    }
    let is_launched = resources.spread.is_some_and(|spread| spread.launch.is_some());
    match work {
        Work::Script(_) | Work::Action(_) => {}
        Work::Python(_) if !is_launched => {}
        Work::Python(_) => {
            let help = Some("leave `launch` out, and start from it what is to run on all nodes".to_owned());
            report.error(place, "a handler in Python is called once: it is not launched as tasks", help);
        }
        Work::Container(_) | Work::Wasm(_) | Work::Null | Work::Import { .. } | Work::Export { .. } => {
            let help = Some("leave out `nodes`, `tasks_per_node`, `launch` and `sbatch`".to_owned());
            report.error(place, "only commands, scripts and handlers in Python become jobs of a cluster", help);
        }
    }
}
