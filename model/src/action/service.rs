//! What `action.yaml` says of an action that is a service: where it listens, how it is known to be well, and when it is begun
//! again.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Runtime, read_command};
use crate::diagnostic::Place;
use crate::limits::{
    SERVICE_FAILURES_MAX, SERVICE_RESTARTS_MAX, SERVICE_START_PATIENCE, SERVICE_TIMES_MAX, SERVICE_TIMES_MIN,
};
use crate::reading::{Fields, Report};
use crate::resources::{IsolationProfile, Resources};
use crate::units::parse_duration;
use crate::yaml::Node;

/// The variable by which a process learns the port that it is to listen on.
pub const PORT_VARIABLE: &str = "ATOLL_PORT";
/// The variable that says that a step is a service, and which.
pub const SERVICE_VARIABLE: &str = "ATOLL_SERVICE";

/// Fields of a manifest that are a service's alone.
const FIELDS: [&str; 3] = ["port", "health", "restart"];

/// A process that stays, and is begun again when it ends or is not well.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub port: Option<Port>,
    pub health: Health,
    pub restart: Restart,
}

/// Where a service listens, on the machine's own address 127.0.0.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Port {
    /// At one that the site chooses.
    Any,
    Fixed(u16),
}

/// How it is known that a service is well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    pub probe: Probe,
    /// Between two looks at one that is well.
    pub every: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Looks in a row that find it not well before it is begun again.
    pub failures: u32,
    /// How long it may take to be well for the first time.
    pub start: Duration,
}

/// What is looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Probe {
    /// That it runs.
    Runs,
    /// That something listens at its port.
    Port,
    /// That its port answers a request for this path with a status below 400.
    Http(String),
    /// That this command ends with code 0.
    Command(Vec<String>),
}

/// When a service is begun again that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// Before the first time; doubled for each further one in a row.
    pub backoff: Duration,
    /// How often in a row before it is given up.
    pub max: u32,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            probe: Probe::Runs,
            every: Duration::from_secs(10),
            timeout: Duration::from_secs(2),
            failures: 3,
            start: SERVICE_START_PATIENCE,
        }
    }
}

impl Default for Restart {
    fn default() -> Self {
        Self { backoff: Duration::from_secs(1), max: 5 }
    }
}

/// The variable that names the address of a service to those that use it.
pub fn address_variable(service: &str) -> String {
    let upper = service.to_ascii_uppercase().replace('-', "_");
    format!("{SERVICE_VARIABLE}_{upper}")
}

/// Reads `port`, `health` and `restart` of an action that is a service.
pub(super) fn read(
    report: &mut Report,
    fields: &Fields<'_>,
    runtime: &Runtime,
    resources: Option<&Resources>,
) -> Service {
    let port = fields.get("port").and_then(|node| read_port(report, node));
    let health = match fields.get("health") {
        Some(node) if !node.is_null() => read_health(report, node, port),
        Some(_) | None => Health { probe: default_probe(port), ..Health::default() },
    };
    let restart = fields.get("restart").filter(|node| !node.is_null());
    let restart = restart.map(|node| read_restart(report, node)).unwrap_or_default();
    let is_contained = matches!(runtime, Runtime::Container(_));
    if let (true, Probe::Command(_), Some(node)) = (is_contained, &health.probe, fields.get("health")) {
        let help = Some("write `port: …`, and `health: { http: /… }` if it speaks HTTP".to_owned());
        report.error(node.place, "how a container does is asked at its port, not by a command", help);
    }
    if let Some(place) = fields.get("port").map(|node| node.place) {
        check_reachable(report, place, is_contained, resources);
    }
    Service { port, health, restart }
}

/// Says that these belong to another kind.
pub(super) fn refuse(report: &mut Report, fields: &Fields<'_>) {
    for name in FIELDS {
        if let Some(node) = fields.get(name) {
            let help = Some("write `kind: service` too".to_owned());
            report.error(node.place, format!("`{name}` is for actions with `kind: service`"), help);
        }
    }
}

/// A port is of use only where others share the network that it is in.
fn check_reachable(report: &mut Report, place: Place, is_contained: bool, resources: Option<&Resources>) {
    let confinement = resources.map(|resources| &resources.confinement);
    let is_strict = confinement.is_some_and(|said| said.isolation == Some(IsolationProfile::Strict));
    let has_network = confinement.is_some_and(|said| said.network);
    if (is_contained || is_strict) && !has_network {
        let message = "nobody can reach its port: it has no network";
        report.error(place, message, Some("write `network: true` too".to_owned()));
    }
}

fn default_probe(port: Option<Port>) -> Probe {
    if port.is_some() { Probe::Port } else { Probe::Runs }
}

fn read_port(report: &mut Report, node: &Node) -> Option<Port> {
    let expected = "a port is a number from 1 to 65535, or `any` for one that the site chooses";
    report.parsed_with(node, "`port`", |text| match text {
        "any" => Ok(Port::Any),
        number => number.parse().ok().filter(|port| *port > 0).map(Port::Fixed).ok_or_else(|| expected.to_owned()),
    })
}

fn read_health(report: &mut Report, node: &Node, port: Option<Port>) -> Health {
    let fields = report.fields(node, "`health`", &["http", "command", "every", "timeout", "failures", "start"]);
    let usual = Health::default();
    let probe = match (fields.get("http"), fields.get("command")) {
        (Some(path), None) => {
            if port.is_none() {
                let help = Some("write `port: 8080`, or `port: any`, too".to_owned());
                report.error(path.place, "`http` asks its port, and it has none", help);
            }
            read_path(report, path)
        }
        (None, Some(command)) => Probe::Command(read_command(report, command)),
        (Some(_), Some(command)) => {
            report.error(command.place, "`health` has `http` or `command`, not both", None);
            default_probe(port)
        }
        (None, None) => default_probe(port),
    };
    let mut time =
        |name: &str, usual: Duration| fields.get(name).and_then(|node| read_time(report, node, name)).unwrap_or(usual);
    let (every, timeout, start) =
        (time("every", usual.every), time("timeout", usual.timeout), time("start", usual.start));
    let failures = fields.get("failures").and_then(|node| report.integer(node, "`failures`", 1..=SERVICE_FAILURES_MAX));
    Health { probe, every, timeout, failures: failures.unwrap_or(usual.failures), start }
}

fn read_path(report: &mut Report, node: &Node) -> Probe {
    let path = report.text(node, "`http`").unwrap_or("/");
    if !path.starts_with('/') || path.bytes().any(|byte| !byte.is_ascii_graphic()) {
        let help = Some("write `http: /health`".to_owned());
        report.error(node.place, format!("`{}` is not a path", path.escape_debug()), help);
    }
    Probe::Http(path.to_owned())
}

fn read_restart(report: &mut Report, node: &Node) -> Restart {
    let fields = report.fields(node, "`restart`", &["backoff", "max"]);
    let usual = Restart::default();
    let backoff = fields.get("backoff").and_then(|node| read_time(report, node, "backoff"));
    let max = fields.get("max").and_then(|node| report.integer(node, "`max`", 0..=SERVICE_RESTARTS_MAX));
    Restart { backoff: backoff.unwrap_or(usual.backoff), max: max.unwrap_or(usual.max) }
}

fn read_time(report: &mut Report, node: &Node, name: &str) -> Option<Duration> {
    report.parsed_with(node, &format!("`{name}`"), |text| {
        let time = parse_duration(text).map_err(|error| error.to_string())?;
        if (SERVICE_TIMES_MIN..=SERVICE_TIMES_MAX).contains(&time) {
            return Ok(time);
        }
        Err(format!("it is from {} ms to {} h", SERVICE_TIMES_MIN.as_millis(), SERVICE_TIMES_MAX.as_secs() / 3600))
    })
}
