//! Site selectors, and the rules under `placement`.

use crate::diagnostic::Place;
use crate::placement::{PushMode, Rule, RuleMatch, SiteSelector};
use crate::policy::{
    Attributes, BucketUse, Confine, PLACEMENT_FIELDS, PolicyMatch, PolicyRule, read_bucket_use, read_kind, read_said,
};
use crate::reading::Report;
use crate::suggestion::did_you_mean;
use crate::workflow::Workflow;
use crate::yaml::{Kind, Node};

/// Reads a site by name, a list of names, or `{ name | site | names | sites | labels }`.
pub(super) fn read_selector(report: &mut Report, node: &Node, what: &str) -> SiteSelector {
    let mut selector = SiteSelector { place: node.place, ..SiteSelector::default() };
    if matches!(node.kind, Kind::Scalar { .. } | Kind::Sequence(_)) {
        read_names(report, node, &mut selector);
        return selector;
    }
    let fields = report.fields(node, what, &["name", "names", "site", "sites", "labels"]);
    for field in ["name", "site", "names", "sites"] {
        if let Some(node) = fields.get(field) {
            read_names(report, node, &mut selector);
        }
    }
    if let Some(labels) = fields.get("labels") {
        for entry in report.entries(labels, "`labels`") {
            if let Some(value) = report.text(&entry.value, "the value of a label") {
                selector.labels.insert(entry.key.clone(), value.to_owned());
                selector.label_places.insert(entry.key.clone(), (entry.key_place, entry.value.place));
            }
        }
    }
    if selector.names.is_empty() && selector.labels.is_empty() {
        let help = "write a name, `{ labels: { key: value } }`, or leave it out: then any site will do".to_owned();
        report.error(node.place, format!("{what} selects nothing"), Some(help));
    }
    selector
}

fn read_names(report: &mut Report, node: &Node, selector: &mut SiteSelector) {
    for (text, place) in report.texts(node, "the name of a site") {
        match text.parse() {
            Ok(name) => {
                selector.names.push(name);
                selector.name_places.push(place);
            }
            Err(error) => report.error(place, format!("{error}"), None),
        }
    }
}

pub(super) fn read_rules(report: &mut Report, node: &Node, workflow: &Workflow) -> Vec<Rule> {
    let Kind::Sequence(items) = &node.kind else {
        let help = Some("begin each rule with `- `".to_owned());
        report.error(node.place, format!("`placement` is a list of rules, not {}", node.described()), help);
        return Vec::new();
    };
    items.iter().map(|item| read_rule(report, item, workflow)).collect()
}

fn read_rule(report: &mut Report, node: &Node, workflow: &Workflow) -> Rule {
    let fields = report.fields(node, "a rule", PLACEMENT_FIELDS);
    let (matches, kind) = fields.get("match").map(|node| read_match(report, node, workflow)).unwrap_or_default();
    let confine = fields.get("confine").map(|node| read_confine(report, node));
    let RuleMatch { step, output, input } = matches.clone();
    let said = PolicyRule {
        matches: PolicyMatch { step, output, input, ..kind },
        confine: confine.as_ref().map(|(to, bucket)| Confine { to: to.into(), bucket: *bucket }),
        ..read_said(report, &fields, &Attributes::new())
    };
    if !PLACEMENT_FIELDS[1..].iter().any(|field| fields.get(field).is_some()) {
        let help = "add `confine: { labels: { … } }` or `push: never`".to_owned();
        report.error(node.place, "the rule says nothing", Some(help));
    }
    let pushes = matches!(said.push, Some(PushMode::Eager | PushMode::OnSuccess));
    if let (Some((_, BucketUse::Forbidden)), true, Some(push)) = (&confine, pushes, fields.get("push")) {
        let help = Some("leave `push` out: confined data never enters the bucket".to_owned());
        report.error(push.place, "the rule confines what it pushes eagerly", help);
    }
    Rule { said, matches, confine: confine.map(|(to, _)| to), place: node.place }
}

/// Reads sites, or `{ to: sites, bucket: … }`.
fn read_confine(report: &mut Report, node: &Node) -> (SiteSelector, BucketUse) {
    let is_record = matches!(&node.kind, Kind::Mapping(entries) if entries.iter().any(|entry| entry.key == "to" || entry.key == "bucket"));
    if !is_record {
        return (read_selector(report, node, "`confine`"), BucketUse::default());
    }
    let fields = report.fields(node, "`confine`", &["to", "bucket"]);
    let to = fields.get("to").map(|node| read_selector(report, node, "`to`"));
    if to.is_none() {
        report.error(fields.place, "`confine` needs `to`", None);
    }
    (to.unwrap_or_default(), read_bucket_use(report, &fields))
}

fn read_match(report: &mut Report, node: &Node, workflow: &Workflow) -> (RuleMatch, PolicyMatch) {
    let fields = report.fields(node, "`match`", &["step", "output", "input", "labels", "bytes"]);
    let mut part = |name: &str| {
        let node = fields.get(name)?;
        Some((report.text(node, name)?.to_owned(), node.place))
    };
    let (step, output, input) = (part("step"), part("output"), part("input"));
    if let (Some((_, place)), true) = (&input, step.is_some() || output.is_some()) {
        let help = Some("make it two rules".to_owned());
        report.error(*place, "a rule matches an input, or the outputs of steps, not both", help);
    }
    let steps = || workflow.steps.iter().filter(|step| !step.name.contains('.'));
    if let Some((pattern, place)) = &step {
        check_pattern(report, pattern, *place, "step", steps().map(|step| step.name.as_str()));
    }
    if let Some((pattern, place)) = &output {
        let matching = steps().filter(|known| step.as_ref().is_none_or(|(step, _)| fits(step, &known.name)));
        let outputs: Vec<&str> = matching.flat_map(|step| step.outputs.keys()).map(String::as_str).collect();
        check_pattern(report, pattern, *place, "output", outputs.iter().copied());
    }
    if let Some((pattern, place)) = &input {
        check_pattern(report, pattern, *place, "input", workflow.inputs.keys().map(String::as_str));
    }
    let text = |part: Option<(String, Place)>| part.map(|(text, _)| text);
    (RuleMatch { step: text(step), output: text(output), input: text(input) }, read_kind(report, &fields))
}

fn check_pattern<'known>(
    report: &mut Report,
    pattern: &str,
    place: Place,
    what: &str,
    known: impl Iterator<Item = &'known str> + Clone,
) {
    if pattern.strip_suffix('*').unwrap_or(pattern).contains('*') {
        report.error(place, format!("`{}`: a `*` stands at the end only", pattern.escape_debug()), None);
    } else if !known.clone().any(|name| fits(pattern, name)) {
        let message = format!("the rule matches no {what}: `{}`", pattern.escape_debug());
        report.error(place, message, did_you_mean(pattern.trim_end_matches('*'), known));
    }
}

fn fits(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => pattern == name,
    }
}

impl RuleMatch {
    /// Whether the rule bears on an output of a step.
    pub fn covers_output(&self, step: &str, output: &str) -> bool {
        self.input.is_none()
            && self.step.as_deref().is_none_or(|pattern| fits(pattern, step))
            && self.output.as_deref().is_none_or(|pattern| fits(pattern, output))
    }

    /// Whether the rule bears on an input of the workflow.
    pub fn covers_input(&self, input: &str) -> bool {
        self.step.is_none() && self.output.is_none() && self.input.as_deref().is_none_or(|pattern| fits(pattern, input))
    }
}
