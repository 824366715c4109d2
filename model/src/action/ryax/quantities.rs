//! What an action of Ryax asks of a machine, in the units of Ryax.

use std::time::Duration;

use super::fields::At;
use crate::reading::Report;
use crate::resources::{Gpus, Resources};
use crate::value::Value;
use crate::yaml::Node;

/// An action gets more than this.
const MEMORY_BYTES_MIN: u64 = 32 << 20;

/// Reads `spec.resources`.
pub(super) fn read_resources(report: &mut Report, node: &Node) -> Resources {
    let at = At::top().key("spec").key("resources");
    let mut resources = Resources::default();
    let Some(fields) = at.mapping(report, node, &["cpu", "memory", "time", "gpu"], &[]) else {
        return resources;
    };
    let mut invalid = |name: &str, node: &Node, expected: &str| {
        let message = format!("`{}` is {expected}, not {}", at.key(name), node.described());
        report.error(node.place, message, None);
    };
    if let Some(node) = fields.get("cpu") {
        match number(node).filter(|cpus| (0.1..=1e6).contains(cpus)) {
            Some(cpus) => resources.cpu_millis = (cpus * 1_000.0).round() as u32,
            None => invalid("cpu", node, "a number of CPUs, at least 0.1"),
        }
    }
    if let Some(node) = fields.get("memory") {
        resources.memory_bytes = memory(node);
        if resources.memory_bytes.is_none() {
            invalid("memory", node, "a number with the unit K, M, G or T, or one of bytes, and more than 32M");
        }
    }
    if let Some(node) = fields.get("time") {
        resources.time = time(node);
        if resources.time.is_none() {
            invalid("time", node, "a number with the unit s, m, h or d, or one of seconds, and at least 1s");
        }
    }
    if let Some(node) = fields.get("gpu") {
        let count = if let Value::Integer(count) = node.to_value() { u32::try_from(count).ok() } else { None };
        resources.gpus = count.filter(|count| *count >= 1).map(|count| Gpus { count, kind: None });
        if resources.gpus.is_none() {
            invalid("gpu", node, "a number of GPUs, at least 1");
        }
    }
    resources
}

fn number(node: &Node) -> Option<f64> {
    match node.to_value() {
        Value::Integer(integer) => Some(integer as f64),
        Value::Number(number) => Some(number),
        Value::Null
        | Value::Boolean(_)
        | Value::String(_)
        | Value::List(_)
        | Value::Object(_)
        | Value::File(_)
        | Value::Directory(_) => None,
    }
}

fn memory(node: &Node) -> Option<u64> {
    let bytes = if let Value::String(text) = node.to_value() {
        let (number, unit) = split_unit(&text, 24)?;
        let power = ["K", "M", "G", "T"].iter().position(|known| *known == unit)? + 1;
        // Only the integer part counts.
        let whole = number.split('.').next().unwrap_or_default().parse::<u64>().ok()?;
        whole.checked_mul(1 << (10 * power))?
    } else {
        number(node).filter(|bytes| (1e6..=1e18).contains(bytes))? as u64
    };
    (bytes > MEMORY_BYTES_MIN).then_some(bytes)
}

fn time(node: &Node) -> Option<Duration> {
    let seconds = if let Value::String(text) = node.to_value() {
        let (number, unit) = split_unit(&text, 32)?;
        let units = [("s", 1.0), ("m", 60.0), ("h", 3_600.0), ("d", 86_400.0)];
        let (_, factor) = units.iter().find(|(known, _)| *known == unit)?;
        number.parse::<f64>().ok()? * factor
    } else {
        number(node)?
    };
    (1.0..=1e10).contains(&seconds).then(|| Duration::from_secs_f64(seconds))
}

/// A number with digits and at most one point, and what follows it.
fn split_unit(text: &str, chars_max: usize) -> Option<(&str, &str)> {
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
    let (number, unit) = text.split_at(end);
    let is_number = number.starts_with(|first: char| first.is_ascii_digit()) && number.parse::<f64>().is_ok();
    ((2..=chars_max).contains(&text.chars().count()) && is_number).then_some((number, unit.trim()))
}
