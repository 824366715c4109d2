//! From the text of a policy file to a checked [`Policy`].

use std::time::Duration;

use super::schema::PLACEMENT_FIELDS;
use super::selector::{Attribute, AttributeKind, Attributes, SITE, Selector};
use super::selector_text;
use super::{
    BucketUse, ByteRange, Confine, Expire, Expiry, Hold, Importance, Keep, KeepAt, KeyScope, Pin, Policy, PolicyMatch,
    PolicyRule, Replicate, Route, Until,
};
use crate::diagnostic::{Diagnostic, Place};
use crate::limits::{REPLICAS_MAX, WORKFLOW_BYTES_MAX};
use crate::placement::{Labels, PushMode};
use crate::reading::{Fields, Report};
use crate::units::{parse_duration, parse_size};
use crate::yaml::{Kind, Node};

/// Parses and checks a policy file.
///
/// # Errors
/// Everything that is wrong with it, in the order of the file.
pub fn parse(file: &str, source: &str) -> Result<Policy, Vec<Diagnostic>> {
    let mut report = Report::new(file);
    let policy = report.yaml(source, WORKFLOW_BYTES_MAX).map(|root| read(&mut report, file, &root));
    match policy {
        Some(policy) if report.is_empty() => Ok(policy),
        Some(_) | None => Err(report.into_diagnostics()),
    }
}

fn read(report: &mut Report, file: &str, root: &Node) -> Policy {
    let fields = report.fields(root, "a policy", &["attributes", "placement"]);
    let attributes = fields.get("attributes").map(|node| read_attributes(report, node)).unwrap_or_default();
    let rules = match fields.get("placement") {
        Some(node) => read_rules(report, node, &attributes),
        None => {
            let help = Some("write `placement:` and below it a list of rules".to_owned());
            report.error(root.place, "a policy needs `placement`", help);
            Vec::new()
        }
    };
    Policy { file: file.to_owned(), attributes, rules }
}

fn read_attributes(report: &mut Report, node: &Node) -> Attributes {
    let mut attributes = Attributes::new();
    if node.is_null() {
        return attributes;
    }
    for entry in report.entries(node, "`attributes`") {
        report.name(&entry.key, entry.key_place, "an attribute", true);
        if [SITE, "has", "in"].contains(&entry.key.as_str()) {
            report.error(entry.key_place, format!("`{}` has a meaning of its own", entry.key), None);
        }
        let fields = report.fields(&entry.value, "an attribute", &["type", "values", "description"]);
        let values = fields.get("values").map(|node| (node.place, report.texts(node, "a value of an attribute")));
        let Some(kind) = fields.get("type") else {
            let help = Some("write `{ type: enum, values: [a, b] }`".to_owned());
            report.error(fields.place, "an attribute needs a `type`", help);
            continue;
        };
        let kinds = [("enum", 0), ("integer", 1), ("bytes", 2), ("version", 3), ("boolean", 4)];
        let kind = match (report.word(kind, "the type of an attribute", &kinds), values) {
            (None, _) => continue,
            (Some(0), Some((_, words))) if !words.is_empty() => {
                AttributeKind::Enum(words.into_iter().map(|(word, _)| word.to_owned()).collect())
            }
            (Some(0), _) => {
                report.error(kind.place, "an enum needs its `values`", None);
                continue;
            }
            (Some(_), Some((place, _))) => {
                report.error(place, "only an enum has `values`", Some("write `type: enum`".to_owned()));
                continue;
            }
            (Some(1), None) => AttributeKind::Integer,
            (Some(2), None) => AttributeKind::Bytes,
            (Some(3), None) => AttributeKind::Version,
            (Some(_), None) => AttributeKind::Boolean,
        };
        let description = fields.get("description").and_then(|node| report.text(node, "`description`"));
        attributes.insert(entry.key.clone(), Attribute { kind, description: description.map(str::to_owned) });
    }
    attributes
}

fn read_rules(report: &mut Report, node: &Node, attributes: &Attributes) -> Vec<PolicyRule> {
    let Kind::Sequence(items) = &node.kind else {
        if !node.is_null() {
            let help = Some("begin each rule with `- `".to_owned());
            report.error(node.place, format!("`placement` is a list of rules, not {}", node.described()), help);
        }
        return Vec::new();
    };
    items.iter().map(|item| read_rule(report, item, attributes)).collect()
}

fn read_rule(report: &mut Report, node: &Node, attributes: &Attributes) -> PolicyRule {
    let fields = report.fields(node, "a rule", PLACEMENT_FIELDS);
    if !PLACEMENT_FIELDS[1..].iter().any(|field| fields.get(field).is_some()) {
        let help = "add `confine: { to: … }`, `push: never` or the like".to_owned();
        report.error(node.place, "the rule says nothing", Some(help));
    }
    let rule = PolicyRule {
        matches: fields.get("match").map(|node| read_match(report, node)).unwrap_or_default(),
        confine: fields.get("confine").and_then(|node| read_confine(report, node, attributes)),
        ..read_said(report, &fields, attributes)
    };
    let pushes = matches!(rule.push, Some(PushMode::Eager | PushMode::OnSuccess));
    let shut = rule.confine.as_ref().is_some_and(|confine| confine.bucket == BucketUse::Forbidden);
    if let (true, true, Some(push)) = (pushes, shut, fields.get("push")) {
        let help = Some("leave `push` out, or allow the `bucket` where it confines".to_owned());
        report.error(push.place, "the rule keeps out of the bucket what it pushes there", help);
    }
    rule
}

/// What a rule says beside what it matches and confines.
pub(crate) fn read_said(report: &mut Report, fields: &Fields<'_>, attributes: &Attributes) -> PolicyRule {
    let modes = [
        ("when-needed", PushMode::WhenNeeded),
        ("eager", PushMode::Eager),
        ("on-success", PushMode::OnSuccess),
        ("never", PushMode::Never),
    ];
    PolicyRule {
        matches: PolicyMatch::default(),
        confine: None,
        route: fields.get("route").map(|node| read_route(report, node)),
        push: fields.get("push").and_then(|node| report.word(node, "`push`", &modes)),
        replicate: fields.get("replicate").and_then(|node| read_replicate(report, node, attributes)),
        keep: fields.get("keep").and_then(|node| read_keep(report, node, attributes)),
        pin: fields.get("pin").and_then(|node| read_pin(report, node, attributes)),
        expire: fields.get("expire").and_then(|node| read_expire(report, node)),
        encrypt: fields.get("encrypt").and_then(|node| read_encrypt(report, node)),
        hold: fields.get("hold").and_then(|node| read_hold(report, node)),
        place: fields.place,
    }
}

fn read_match(report: &mut Report, node: &Node) -> PolicyMatch {
    let fields = report.fields(node, "`match`", &["workflow", "step", "output", "input", "labels", "bytes"]);
    let mut text = |name: &str| fields.get(name).and_then(|node| report.text(node, name)).map(str::to_owned);
    let (workflow, step, output, input) = (text("workflow"), text("step"), text("output"), text("input"));
    if let (Some(node), true) = (fields.get("input"), step.is_some() || output.is_some()) {
        let help = Some("make it two rules".to_owned());
        report.error(node.place, "a rule matches an input, or the outputs of steps, not both", help);
    }
    PolicyMatch { workflow, step, output, input, ..read_kind(report, &fields) }
}

/// The labels and the size that a rule matches.
pub(crate) fn read_kind(report: &mut Report, fields: &Fields<'_>) -> PolicyMatch {
    let mut labels = Labels::new();
    if let Some(node) = fields.get("labels") {
        for entry in report.entries(node, "`labels`") {
            if let Some(value) = report.text(&entry.value, "the value of a label") {
                labels.insert(entry.key.clone(), value.to_owned());
            }
        }
    }
    let bytes = fields.get("bytes").and_then(|node| report.parsed_with(node, "`bytes`", read_bytes));
    PolicyMatch { labels, bytes, ..PolicyMatch::default() }
}

/// `>= 1GiB`, `< 4MiB`, or both ends: `1MiB..1GiB`.
fn read_bytes(text: &str) -> Result<ByteRange, String> {
    let size = |text: &str| parse_size(text.trim()).map_err(|error| error.to_string());
    let text = text.trim();
    let range = if let Some(rest) = text.strip_prefix(">=") {
        (Some(size(rest)?), Some(u64::MAX))
    } else if let Some(rest) = text.strip_prefix("<=") {
        (Some(0), Some(size(rest)?))
    } else if let Some(rest) = text.strip_prefix('>') {
        (size(rest)?.checked_add(1), Some(u64::MAX))
    } else if let Some(rest) = text.strip_prefix('<') {
        (Some(0), size(rest)?.checked_sub(1))
    } else if let Some((least, most)) = text.split_once("..") {
        (Some(size(least)?), Some(size(most)?))
    } else {
        return Err(format!(
            "`{}` is no range of sizes: write `>= 1GiB`, `< 4MiB` or `1MiB..1GiB`",
            text.escape_debug()
        ));
    };
    match range {
        (Some(least), Some(most)) if least <= most => Ok(ByteRange { least, most }),
        _ => Err(format!("nothing has `{}` bytes", text.escape_debug())),
    }
}

/// Reads an expression, the name of a site, a list of names, or `{ labels: { attribute: value } }`.
fn read_selector(report: &mut Report, node: &Node, attributes: &Attributes) -> Option<Selector> {
    match &node.kind {
        Kind::Scalar { text, plain } => {
            let selector = selector_text::read(text, attributes);
            selector.map_err(|problem| refuse(report, node.place, text, *plain, problem)).ok()
        }
        Kind::Sequence(items) => {
            let mut sites = Vec::new();
            for item in items {
                let text = report.text(item, "the name of a site")?;
                match selector_text::site_named(text, 0, text.len()) {
                    Ok(site) => sites.push(site),
                    Err(problem) => report.error(item.place, problem.message, problem.help),
                }
            }
            if items.is_empty() {
                report.error(node.place, "it selects nothing", None);
            }
            Some(Selector::Some(sites))
        }
        Kind::Mapping(_) => {
            let fields = report.fields(node, "a selector", &["labels"]);
            let mut parts = Vec::new();
            let labels = fields.get("labels").map(|labels| report.entries(labels, "`labels`")).unwrap_or_default();
            for entry in labels {
                let Some(value) = report.text(&entry.value, "the value of an attribute") else { continue };
                let quoted = format!("{} == '{value}'", entry.key);
                match selector_text::read(&quoted, attributes) {
                    Ok(part) => parts.push(part),
                    Err(problem) => {
                        let is_key = problem.end <= entry.key.len();
                        let place = if is_key { entry.key_place } else { entry.value.place };
                        report.error(place, problem.message, problem.help);
                    }
                }
            }
            if labels.is_empty() {
                report.error(node.place, "it selects nothing", Some("write `labels: { region: eu }`".to_owned()));
            }
            Some(Selector::All(parts))
        }
    }
}

/// Says where in the text of a selector something is wrong; in one of several lines, only which.
fn refuse(report: &mut Report, at: Place, text: &str, plain: bool, problem: selector_text::Problem) {
    let mut place = at;
    let spanned = usize::try_from(at.end.saturating_sub(at.start)).unwrap_or(0);
    let quotes = if plain { 0 } else { 1 };
    // Where nothing is escaped or folded, the text stands in the file as it is.
    if spanned == text.len() + 2 * quotes {
        let number = |offset: usize| u32::try_from(offset).unwrap_or(u32::MAX);
        let before = text.get(..problem.start).map_or(0, |before| before.chars().count());
        place.column += number(before + quotes);
        (place.start, place.end) = (at.start + number(problem.start + quotes), at.start + number(problem.end + quotes));
    }
    report.error(place, problem.message, problem.help);
}

fn required<'node>(report: &mut Report, fields: &Fields<'node>, what: &str, name: &str) -> Option<&'node Node> {
    let node = fields.get(name);
    if node.is_none() {
        report.error(fields.place, format!("{what} needs `{name}`"), None);
    }
    node
}

fn read_confine(report: &mut Report, node: &Node, attributes: &Attributes) -> Option<Confine> {
    let is_record = matches!(&node.kind, Kind::Mapping(entries) if !entries.iter().any(|entry| entry.key == "labels"));
    if !is_record {
        return Some(Confine { to: read_selector(report, node, attributes)?, bucket: BucketUse::default() });
    }
    let fields = report.fields(node, "`confine`", &["to", "bucket"]);
    let bucket = read_bucket_use(report, &fields);
    let to = required(report, &fields, "`confine`", "to").and_then(|node| read_selector(report, node, attributes))?;
    Some(Confine { to, bucket })
}

pub(crate) fn read_bucket_use(report: &mut Report, fields: &Fields<'_>) -> BucketUse {
    let uses = [
        ("allowed", BucketUse::Allowed),
        ("if-encrypted", BucketUse::IfEncrypted),
        ("forbidden", BucketUse::Forbidden),
    ];
    fields.get("bucket").and_then(|node| report.word(node, "`bucket`", &uses)).unwrap_or_default()
}

fn read_route(report: &mut Report, node: &Node) -> Vec<Route> {
    let mut routes = Vec::new();
    for (text, place) in report.texts(node, "a route") {
        let route = match text {
            "direct" => Route::Direct,
            "bucket" => Route::Bucket,
            _ => {
                let help = crate::suggestion::did_you_mean(text, ["direct", "bucket"]);
                report.error(place, format!("there is no route `{}`", text.escape_debug()), help);
                continue;
            }
        };
        if routes.contains(&route) {
            report.error(place, format!("`{text}` is named twice"), None);
        } else {
            routes.push(route);
        }
    }
    if routes.is_empty() {
        report.error(node.place, "`route` names no route", Some("write `[direct, bucket]`".to_owned()));
    }
    routes
}

fn duration(report: &mut Report, node: &Node, what: &str) -> Option<Duration> {
    report.parsed_with(node, what, |text| parse_duration(text).map_err(|error| error.to_string()))
}

fn read_replicate(report: &mut Report, node: &Node, attributes: &Attributes) -> Option<Replicate> {
    let fields = report.fields(node, "`replicate`", &["copies", "across", "to", "within", "importance"]);
    let across = match fields.get("across") {
        None => SITE.to_owned(),
        Some(node) => {
            let name = report.text(node, "`across`")?;
            if name != SITE && !attributes.contains_key(name) {
                let known = std::iter::once(SITE).chain(attributes.keys().map(String::as_str));
                let help = crate::suggestion::did_you_mean(name, known);
                report.error(node.place, format!("no attribute `{}` is declared", name.escape_debug()), help);
            }
            name.to_owned()
        }
    };
    let importances = [("must", Importance::Must), ("should", Importance::Should)];
    let to = match fields.get("to") {
        Some(node) => read_selector(report, node, attributes)?,
        None => Selector::Every,
    };
    let within = fields.get("within").and_then(|node| duration(report, node, "`within`"));
    let importance = fields.get("importance").and_then(|node| report.word(node, "`importance`", &importances));
    let copies = required(report, &fields, "`replicate`", "copies")
        .and_then(|node| report.integer(node, "`copies`", 1..=REPLICAS_MAX))?;
    Some(Replicate { copies, across, to, within, importance: importance.unwrap_or_default() })
}

/// `7d after run.end`, `run.end`, `forever`.
fn read_until(report: &mut Report, node: &Node, what: &str) -> Option<Until> {
    report.parsed_with(node, what, |text| match text.trim() {
        "forever" => Ok(Until::Forever),
        "run.end" => Ok(Until::AfterRun(Duration::ZERO)),
        other => match other.strip_suffix("after run.end") {
            Some(time) => parse_duration(time).map(Until::AfterRun).map_err(|error| error.to_string()),
            None => {
                Err(format!("`{}` is no time: write `7d after run.end`, `run.end` or `forever`", other.escape_debug()))
            }
        },
    })
}

fn read_keep(report: &mut Report, node: &Node, attributes: &Attributes) -> Option<Keep> {
    let fields = report.fields(node, "`keep`", &["at", "for"]);
    let at = match fields.get("at") {
        None => KeepAt::Producer,
        Some(node) if matches!(&node.kind, Kind::Scalar { text, .. } if text == "producer") => KeepAt::Producer,
        Some(node) => KeepAt::Sites(read_selector(report, node, attributes)?),
    };
    let until = required(report, &fields, "`keep`", "for").and_then(|node| read_until(report, node, "`for`"))?;
    Some(Keep { at, until })
}

fn read_pin(report: &mut Report, node: &Node, attributes: &Attributes) -> Option<Pin> {
    let fields = report.fields(node, "`pin`", &["at", "until"]);
    let at = required(report, &fields, "`pin`", "at").and_then(|node| read_selector(report, node, attributes));
    let until = required(report, &fields, "`pin`", "until").and_then(|node| read_until(report, node, "`until`"));
    Some(Pin { at: at?, until: until? })
}

fn read_expire(report: &mut Report, node: &Node) -> Option<Expire> {
    let fields = report.fields(node, "`expire`", &["after", "then"]);
    let ways = [("delete", Expiry::Delete), ("ask", Expiry::Ask)];
    let is_archive = |node: &&Node| matches!(&node.kind, Kind::Scalar { text, .. } if text == "archive");
    if let Some(node) = fields.get("then").filter(is_archive) {
        let help = "publish the output where it is to stay, and write `delete`; or `ask`, and decide then".to_owned();
        report.error(node.place, "there is no archive that Atoll could bring it to", Some(help));
        return None;
    }
    let then = fields.get("then").and_then(|node| report.word(node, "`then`", &ways)).unwrap_or(Expiry::Delete);
    let after = required(report, &fields, "`expire`", "after").and_then(|node| duration(report, node, "`after`"))?;
    Some(Expire { after, then })
}

fn read_encrypt(report: &mut Report, node: &Node) -> Option<KeyScope> {
    let fields = report.fields(node, "`encrypt`", &["key"]);
    required(report, &fields, "`encrypt`", "key")
        .and_then(|node| report.word(node, "`key`", &[("project", KeyScope::Project)]))
}

fn read_hold(report: &mut Report, node: &Node) -> Option<Hold> {
    let fields = report.fields(node, "`hold`", &["reason"]);
    let reason = required(report, &fields, "`hold`", "reason").and_then(|node| report.text(node, "`reason`"))?;
    Some(Hold { reason: reason.to_owned() })
}
