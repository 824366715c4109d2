//! What a step says of how it is run: resources, retries, its environment.

use std::collections::BTreeMap;
use std::time::Duration;

use indexmap::IndexMap;

use crate::diagnostic::Place;
use crate::expression::Expression;
use crate::limits::{ATTEMPTS_MAX, CACHE_MAX, CONCURRENCY_MAX, GPUS_MAX};
use crate::reading::{Fields, Report};
use crate::resources::{Confinement, Gpus, IsolationProfile, Resources};
use crate::units::{parse_amount, parse_cpu, parse_duration, parse_growth, parse_size};
use crate::workflow::cluster::{read_sbatch, read_spread};
use crate::workflow::{Cache, Concurrency, Retry, StartMode};
use crate::yaml::{Kind, Node};

/// Reads `resources`, `isolation` and `network` of a step or an action; nothing where none of them is said.
pub(crate) fn read_demands(report: &mut Report, fields: &Fields<'_>) -> Demands {
    let isolation = fields.get("isolation").and_then(|node| {
        report.word(node, "`isolation`", &IsolationProfile::ALL.map(|profile| (profile.as_str(), profile)))
    });
    let network = fields.get("network").and_then(|node| report.boolean(node, "`network`"));
    let resources = fields.get("resources").map(|node| read_resources(report, node));
    Demands { resources, isolation, network }
}

/// What a step or an action asks for, as far as it says.
#[derive(Debug, Default)]
pub(crate) struct Demands {
    resources: Option<Resources>,
    isolation: Option<IsolationProfile>,
    network: Option<bool>,
}

impl Demands {
    /// All of it, with what an action says where this is silent. Of two isolations the stricter counts.
    pub(crate) fn over(self, own: Option<&Resources>) -> Option<Resources> {
        let is_silent = self.resources.is_none() && self.isolation.is_none() && self.network.is_none();
        if is_silent {
            return own.cloned();
        }
        let mut resources = self.resources.or_else(|| own.cloned()).unwrap_or_default();
        let former = own.map(|own| &own.confinement);
        let confinement = &mut resources.confinement;
        confinement.isolation = self.isolation.max(former.and_then(|former| former.isolation));
        confinement.network = self.network.unwrap_or(former.is_some_and(|former| former.network));
        Some(resources)
    }
}

const RESOURCES: &[&str] =
    &["cpu", "memory", "time", "scratch", "gpu", "named", "nodes", "tasks_per_node", "launch", "sbatch"];

fn read_resources(report: &mut Report, node: &Node) -> Resources {
    let fields = report.fields(node, "`resources`", RESOURCES);
    let cpu = fields
        .get("cpu")
        .and_then(|node| report.parsed_with(node, "`cpu`", |text| parse_cpu(text).map_err(|error| error.to_string())));
    let memory = fields.get("memory").and_then(|node| {
        report.parsed_with(node, "`memory`", |text| match parse_size(text) {
            Ok(0) => Err("nothing runs in no memory".to_owned()),
            Ok(bytes) => Ok(bytes),
            Err(error) => Err(error.to_string()),
        })
    });
    let time = fields.get("time").and_then(|node| {
        report.parsed_with(node, "`time`", |text| match parse_duration(text) {
            Ok(Duration::ZERO) => Err("nothing runs in no time".to_owned()),
            Ok(time) => Ok(time),
            Err(error) => Err(error.to_string()),
        })
    });
    let scratch_bytes = fields.get("scratch").and_then(|node| {
        report.parsed_with(node, "`scratch`", |text| match parse_size(text) {
            Ok(0) => Err("nothing runs without room for its outputs: write `1MiB` or more".to_owned()),
            Ok(bytes) => Ok(bytes),
            Err(error) => Err(error.to_string()),
        })
    });
    Resources {
        cpu_millis: cpu.unwrap_or(Resources::default().cpu_millis),
        memory_bytes: memory,
        time,
        confinement: Confinement { scratch_bytes, ..Confinement::default() },
        gpus: fields.get("gpu").and_then(|node| read_gpus(report, node)),
        named: fields.get("named").map(|node| read_named(report, node)).unwrap_or_default(),
        spread: read_spread(report, &fields),
        sbatch: fields.get("sbatch").map(|node| read_sbatch(report, node)).unwrap_or_default(),
    }
}

/// Reads `gpu: 2` or `gpu: { count: 2, kind: a100 }`.
fn read_gpus(report: &mut Report, node: &Node) -> Option<Gpus> {
    let what = "the number of GPUs";
    if matches!(node.kind, Kind::Scalar { .. }) {
        return report.integer(node, what, 1..=GPUS_MAX).map(|count| Gpus { count, kind: None });
    }
    let fields = report.fields(node, "`gpu`", &["count", "kind"]);
    let count = fields.get("count").map_or(Some(1), |node| report.integer(node, what, 1..=GPUS_MAX));
    let kind = fields.get("kind").and_then(|node| report.text(node, "the kind of a GPU")).map(str::to_owned);
    Some(Gpus { count: count?, kind })
}

/// Reads `named: { licences: 0.5 }`.
fn read_named(report: &mut Report, node: &Node) -> BTreeMap<String, u32> {
    let mut named = BTreeMap::new();
    for entry in report.entries(node, "`named`") {
        if !report.name(&entry.key, entry.key_place, "a resource", true) {
            continue;
        }
        let parse = |text: &str| parse_amount(text).map_err(|error| error.to_string());
        let amount = report.parsed_with(&entry.value, &format!("`{}`", entry.key), parse);
        named.extend(amount.map(|amount| (entry.key.clone(), amount)));
    }
    named
}

/// Reads `concurrency: { executions, runs }`.
pub(super) fn read_concurrency(report: &mut Report, node: &Node) -> Concurrency {
    let fields = report.fields(node, "`concurrency`", &["executions", "runs"]);
    let mut limit = |name: &str| fields.get(name).and_then(|node| report.integer(node, name, 1..=CONCURRENCY_MAX));
    Concurrency { executions: limit("executions"), runs: limit("runs") }
}

/// Reads `retry`; `resources` are what the step asks for in the end.
pub(super) fn read_retry(report: &mut Report, node: &Node, resources: &Resources) -> Retry {
    let default = Retry::default();
    let what = "the number of attempts";
    if matches!(node.kind, Kind::Scalar { .. }) {
        return Retry { attempts: report.integer(node, what, 1..=ATTEMPTS_MAX).unwrap_or(1), ..default };
    }
    let fields = report.fields(node, "`retry`", &["attempts", "backoff", "other_site", "memory"]);
    let attempts = fields.get("attempts").and_then(|node| report.integer(node, what, 1..=ATTEMPTS_MAX));
    let backoff = fields.get("backoff").and_then(|node| {
        report.parsed_with(node, "`backoff`", |text| parse_duration(text).map_err(|error| error.to_string()))
    });
    let other_site = fields.get("other_site").and_then(|node| report.boolean(node, "`other_site`"));
    let attempts = attempts.unwrap_or(default.attempts);
    let memory = fields.get("memory").and_then(|node| {
        let parse = |text: &str| parse_growth(text).map_err(|error| error.to_string());
        let growth = report.parsed_with(node, "`memory`", parse)?;
        if resources.memory_bytes.is_none() {
            let help = "say under `resources` how much the first attempt may use: `memory: 512MiB`".to_owned();
            report.error(node.place, "`memory` cannot grow where the step asks for none", Some(help));
        } else if attempts == 1 {
            let help = "add `attempts: 3`, say".to_owned();
            report.error(node.place, "`memory` grows from attempt to attempt, and there is one", Some(help));
        }
        Some(growth)
    });
    Retry {
        attempts,
        backoff: backoff.unwrap_or(default.backoff),
        other_site: other_site.unwrap_or(default.other_site),
        memory,
    }
}

/// For how long results are kept; what may not run twice is not taken to do the same each time either.
pub(super) fn read_cache(report: &mut Report, node: &Node, start: StartMode) -> Option<Cache> {
    let lasts = report.parsed_with(node, "`cache`", |text| parse_duration(text).map_err(|error| error.to_string()))?;
    if start == StartMode::AtMostOnce {
        let help = "leave out one of both: what must not start twice does more than make its outputs";
        report.error(node.place, "`cache` goes with `start: at-least-once` only", Some(help.to_owned()));
        return None;
    }
    if lasts.is_zero() || lasts > CACHE_MAX {
        let days = CACHE_MAX.as_secs() / 86_400;
        report.error(node.place, format!("`cache` is a time of at most {days} days, such as 30d"), None);
        return None;
    }
    Some(Cache { lasts, takes: true })
}

pub(super) fn read_environment(
    report: &mut Report,
    fields: &Fields<'_>,
    bindings: &IndexMap<String, Expression>,
) -> IndexMap<String, String> {
    let mut environment = IndexMap::new();
    let Some(node) = fields.get("env").filter(|node| !node.is_null()) else { return environment };
    for entry in report.entries(node, "`env`") {
        let name = &entry.key;
        let valid = !name.is_empty() && !name.contains(['=', '\0']);
        if !valid || is_ours(name) {
            report.error(entry.key_place, format!("`{}` cannot be set under `env`", name.escape_debug()), None);
        } else if bindings.contains_key(name) {
            report.error(entry.key_place, format!("`{name}` is given under `with` already"), None);
        }
        let Kind::Scalar { text, .. } = &entry.value.kind else {
            let message = format!("the value of `{}` is a text, not {}", name.escape_debug(), entry.value.described());
            report.error(entry.value.place, message, None);
            continue;
        };
        if text.contains("${{") || text.contains('\0') {
            let help = Some("values that are computed are handed over under `with:`".to_owned());
            report.error(entry.value.place, "`env` holds plain texts", help);
        }
        environment.insert(name.clone(), text.clone());
    }
    environment
}

fn is_ours(name: &str) -> bool {
    name.starts_with("ATOLL_") || name == "TMPDIR"
}

/// Checks the name of an input of a step: it becomes an environment variable.
pub(crate) fn check_variable(report: &mut Report, name: &str, place: Place, what: &str) {
    const TAKEN: &[&str] = &["PATH", "HOME", "PWD", "IFS", "ENV", "SHELL", "TRACEPARENT", "TRACESTATE"];
    if report.name(name, place, what, false) && (is_ours(name) || name.starts_with("LD_") || TAKEN.contains(&name)) {
        let help = Some("it becomes an environment variable, and this one has a meaning already".to_owned());
        report.error(place, format!("`{name}` cannot be the name of {what}"), help);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stricter_of_step_and_action_counts_and_the_steps_own_word_on_the_network() {
        use IsolationProfile::{None as Open, Standard, Strict};
        let action = |isolation, network| {
            let confinement = Confinement { isolation, network, ..Confinement::default() };
            Resources { cpu_millis: 500, confinement, ..Resources::default() }
        };
        for (isolation, network, own, expected) in [
            (None, None, action(Some(Strict), true), (Some(Strict), true)),
            (Some(Open), None, action(Some(Strict), false), (Some(Strict), false)),
            (Some(Strict), Some(false), action(Some(Standard), true), (Some(Strict), false)),
            (Some(Standard), Some(true), action(None, false), (Some(Standard), true)),
        ] {
            for resources in [None, Some(Resources::default())] {
                let cpu_millis = if resources.is_some() { 1_000 } else { 500 };
                let asked = Demands { resources, isolation, network }.over(Some(&own)).expect("something");
                assert_eq!(asked.cpu_millis, cpu_millis);
                assert_eq!((asked.confinement.isolation, asked.confinement.network), expected);
            }
        }
        assert_eq!(Demands::default().over(None), None);
    }
}
