//! The steps of a workflow file.

use indexmap::IndexMap;

use super::cluster;
use super::parse::Surroundings;
use super::rules::read_selector;
use super::settings::{check_variable, read_cache, read_demands, read_environment, read_retry};
use crate::diagnostic::Place;
use crate::expression::{Expression, Form, Listed, Names, Reader};
use crate::id::StepIndex;
use crate::limits::{CONCURRENCY_MAX, STEPS_MAX};
use crate::reading::{Fields, Report};
use crate::suggestion::did_you_mean;
use crate::value::{Type, Value};
use crate::workflow::{Action, OnDisconnect, Output, ResourcePlaces, StartMode, Step, Work};
use crate::yaml::{Entry, Kind, Node};

const STEP_FIELDS: &[&str] = &[
    "action",
    "run",
    "command",
    "executor",
    "description",
    "with",
    "foreach",
    "when",
    "site",
    "resources",
    "retry",
    "outputs",
    "after",
    "on_disconnect",
    "start",
    "env",
    "priority",
    "max_parallel",
    "cache",
    "isolation",
    "network",
    "uses",
];

/// What a source or a service may say: it is one execution that stays.
const STANDING_FIELDS: &[&str] = &["action", "description", "with", "site", "resources", "env", "priority"];

/// A step before its expressions are read: they may name steps that come later in the file.
#[derive(Debug)]
pub(super) struct Draft<'node> {
    pub(super) name: String,
    pub(super) index: StepIndex,
    pub(super) outputs: IndexMap<String, Output>,
    /// Whether its action could not be resolved, so that nothing is known of its outputs.
    pub(super) unknown: bool,
    place: Place,
    work: Work,
    fields: Fields<'node>,
}

/// Steps that follow from what a file says of its inputs and outputs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Others {
    pub(super) imports: usize,
    pub(super) exports: usize,
}

pub(super) fn read_drafts<'node>(
    report: &mut Report,
    node: &'node Node,
    others: Others,
    surroundings: &dyn Surroundings,
) -> Vec<Draft<'node>> {
    let entries = report.entries(node, "`steps`");
    if entries.is_empty() && others.exports == 0 && matches!(node.kind, Kind::Mapping(_)) {
        report.error(node.place, "a workflow needs at least one step", None);
    }
    let count = others.imports + entries.len() + others.exports;
    if count > STEPS_MAX {
        report.error(node.place, format!("there are {count} steps, more than {STEPS_MAX}"), None);
        return Vec::new();
    }
    let drafts = entries.iter().enumerate().map(|(position, entry)| {
        report.name(&entry.key, entry.key_place, "a step", true);
        let fields = report.fields(&entry.value, "a step", STEP_FIELDS);
        let work = read_work(report, entry, &fields, surroundings);
        let outputs = read_step_outputs(report, &fields, &work);
        let index = StepIndex(u16::try_from(others.imports + position).expect("fewer than STEPS_MAX"));
        let unknown = fields.get("action").is_some() && work.action().is_none();
        Draft { name: entry.key.clone(), index, outputs, unknown, place: entry.key_place, work, fields }
    });
    drafts.collect()
}

/// What stays for as long as a workflow is deployed.
#[derive(Clone, Copy)]
pub(super) struct Standing<'a> {
    /// As in "a source".
    pub(super) kind: &'a str,
    pub(super) resolve: &'a dyn Fn(&str) -> Result<Work, String>,
}

/// The step that carries a source or a service out.
pub(super) fn read_standing<'node>(
    report: &mut Report,
    entry: &'node Entry,
    index: StepIndex,
    standing: Standing<'_>,
) -> Draft<'node> {
    let kind = standing.kind;
    let fields = report.fields(&entry.value, &format!("a {kind}"), STANDING_FIELDS);
    let reference = fields.get("action").and_then(|node| Some((node.place, report.text(node, "an action")?)));
    let work = match reference.map(|(place, reference)| (place, (standing.resolve)(reference))) {
        Some((_, Ok(work))) => work,
        Some((place, Err(message))) => {
            report.error(place, message, None);
            Work::Null
        }
        None => {
            if fields.get("action").is_none() {
                let help = Some(format!("write `action: name@1` with an action whose `kind` is `{kind}`"));
                report.error(entry.key_place, format!("a {kind} needs an `action`"), help);
            }
            Work::Null
        }
    };
    let outputs = work.action().map(|action| action.outputs.clone()).unwrap_or_default();
    let unknown = work.action().is_none();
    Draft { name: entry.key.clone(), index, outputs, unknown, place: entry.key_place, work, fields }
}

fn read_work(report: &mut Report, step: &Entry, fields: &Fields<'_>, surroundings: &dyn Surroundings) -> Work {
    let null = fields.get("executor").is_some_and(|node| {
        let executors = [("local", false), ("null", true)];
        report.word(node, "an executor", &executors).unwrap_or(false)
    });
    if let Some(node) = fields.get("command") {
        return read_program(report, node, fields);
    }
    match (fields.get("run"), fields.get("action"), null) {
        (None, None, true) => Work::Null,
        (Some(node), None, false) => Work::Script(read_script(report, node)),
        (None, Some(node), false) => {
            let Some(reference) = report.text(node, "an action") else { return Work::Null };
            match surroundings.action(reference) {
                Ok(work) => work,
                Err(message) => {
                    report.error(node.place, message, None);
                    // Of which nothing is known, so that nothing more is said about how it is used.
                    Work::Null
                }
            }
        }
        (Some(node), Some(_), _) => {
            report.error(node.place, "a step has `run` or `action`, not both", None);
            Work::Null
        }
        (Some(node), None, true) | (None, Some(node), true) => {
            report.error(
                node.place,
                "a step with `executor: null` does nothing: it has neither `run` nor `action`",
                None,
            );
            Work::Null
        }
        (None, None, false) => {
            let help =
                "write `run:` with a shell script, `command:` with a program, or `action:` with an action".to_owned();
            report.error(step.key_place, format!("step `{}` says nothing of what it does", step.key), Some(help));
            Work::Null
        }
    }
}

/// A program without a shell is an action without a folder: its inputs and outputs are what the step declares.
fn read_program(report: &mut Report, node: &Node, fields: &Fields<'_>) -> Work {
    if ["run", "action", "executor"].iter().any(|other| fields.get(other).is_some()) {
        report.error(node.place, "a step with `command` has no `run`, `action` or `executor` beside it", None);
    }
    let command = crate::action::read_command(report, node);
    let program = command.first().map(String::as_str).unwrap_or_default();
    Work::Action(Action {
        name: program.rsplit('/').next().unwrap_or(program).to_owned(),
        version: String::new(),
        bundle: None,
        bundle_bytes: 0,
        command,
        inputs: IndexMap::new(),
        outputs: IndexMap::new(),
        resources: None,
    })
}

fn read_script(report: &mut Report, node: &Node) -> String {
    let script = report.text(node, "a script").unwrap_or_default();
    let mut rest = script;
    while let Some((_, after)) = rest.split_once("${{") {
        let inside = after.trim_start();
        if ["inputs.", "steps.", "item", "index"].iter().any(|root| inside.starts_with(root)) {
            let help = "hand it over under `with:`, and read it as an environment variable: \"$name\"".to_owned();
            report.error(node.place, "a script has no expressions in it", Some(help));
            break;
        }
        rest = after;
    }
    if script.contains('\0') {
        report.error(node.place, "a script has no NUL in it", None);
    }
    script.to_owned()
}

fn read_step_outputs(report: &mut Report, fields: &Fields<'_>, work: &Work) -> IndexMap<String, Output> {
    let declared = fields.get("outputs");
    match (work, declared) {
        (Work::Action(_), declared) if fields.get("command").is_some() => {
            declared.map(|node| report.outputs(node)).unwrap_or_default()
        }
        (Work::Action(action) | Work::Python(action) | Work::Container(action) | Work::Wasm(action), None) => {
            action.outputs.clone()
        }
        (Work::Action(action) | Work::Python(action) | Work::Container(action) | Work::Wasm(action), Some(node)) => {
            let help = Some("leave `outputs` out: the action declares them".to_owned());
            report.error(node.place, format!("the outputs of the action `{}` are its own", action.name), help);
            action.outputs.clone()
        }
        (Work::Null, Some(node)) if fields.get("executor").is_some() && !node.is_null() => {
            report.error(node.place, "a step with `executor: null` has no outputs", None);
            IndexMap::new()
        }
        (Work::Script(_) | Work::Import { .. } | Work::Null | Work::Export { .. }, Some(node)) => report.outputs(node),
        (Work::Script(_) | Work::Import { .. } | Work::Null | Work::Export { .. }, None) => IndexMap::new(),
    }
}

impl Draft<'_> {
    pub(super) fn fans_out(&self) -> bool {
        self.fields.get("foreach").is_some()
    }

    /// Reads the expressions of the step, and everything else that it says.
    pub(super) fn into_step(self, report: &mut Report, source: &str, names: &Names, listed: &mut Vec<Listed>) -> Step {
        let fields = self.fields;
        let mut reader = Reader::new(source, names, None);
        let foreach = fields.get("foreach").map(|node| reader.typed(node, &Type::List(None), "`foreach`"));
        let when = fields.get("when").map(|node| read_when(&mut reader, node));
        let mut found = reader.take_listed();
        reader.report_to(report);
        let item = foreach.as_ref().map(|foreach| {
            if let Type::List(Some(element)) = &foreach.r#type { (**element).clone() } else { Type::Any }
        });
        let mut reader = Reader::new(source, names, item.as_ref());
        let bindings = self.bindings(report, &mut reader);
        found.extend(reader.take_listed());
        reader.report_to(report);
        if found.contains(&Listed::Item) {
            found.extend(foreach.iter().flat_map(|foreach| directories_of(foreach, names)));
        }
        listed.extend(found.into_iter().filter(|listed| *listed != Listed::Item));
        let mut needs = read_after(report, &fields, names);
        for expression in bindings.values().chain(&foreach).chain(&when) {
            needs.extend(expression.reads_steps.iter().copied());
        }
        needs.sort_unstable();
        needs.dedup();
        let own_resources = self.work.action().and_then(|action| action.resources.as_ref());
        let resources = read_demands(report, &fields).over(own_resources).unwrap_or_default();
        let resources_place = fields.get("resources").map_or(self.place, |node| node.place);
        cluster::check_work(report, resources_place, &resources, &self.work);
        let starts = [("at-least-once", StartMode::AtLeastOnce), ("at-most-once", StartMode::AtMostOnce)];
        let disconnects = [("finish", OnDisconnect::Finish), ("stop", OnDisconnect::Stop)];
        let start = fields.get("start").and_then(|node| report.word(node, "`start`", &starts));
        let on_disconnect =
            fields.get("on_disconnect").and_then(|node| report.word(node, "`on_disconnect`", &disconnects));
        let start = start.unwrap_or_default();
        let cache = fields.get("cache").and_then(|node| read_cache(report, node, start));
        Step {
            cache,
            environment: read_environment(report, &fields, &bindings),
            name: self.name,
            index: self.index,
            place: self.place,
            work: self.work,
            bindings,
            foreach,
            when,
            site: fields.get("site").map(|node| read_selector(report, node, "`site`")).unwrap_or_default(),
            resource_places: resource_places(&fields, self.place),
            retry: fields.get("retry").map(|node| read_retry(report, node, &resources)).unwrap_or_default(),
            resources,
            outputs: self.outputs,
            needs,
            start,
            on_disconnect: on_disconnect.unwrap_or_default(),
            priority: fields.get("priority").and_then(|node| report.priority(node)).unwrap_or_default(),
            max_parallel: fields
                .get("max_parallel")
                .and_then(|node| report.integer(node, "`max_parallel`", 1..=CONCURRENCY_MAX)),
        }
    }

    fn bindings(&self, report: &mut Report, reader: &mut Reader<'_>) -> IndexMap<String, Expression> {
        let mut bindings = IndexMap::new();
        let with = self.fields.get("with").filter(|node| !node.is_null());
        let action = self.work.action().filter(|_| self.fields.get("command").is_none());
        for entry in with.map(|node| report.entries(node, "`with`")).unwrap_or_default() {
            let declared = action.and_then(|action| action.inputs.get(&entry.key));
            if declared.is_none() {
                check_variable(report, &entry.key, entry.key_place, "an input");
            }
            if let (Some(action), None) = (action, declared) {
                let help = did_you_mean(&entry.key, action.inputs.keys().map(String::as_str));
                let message = format!("the action `{}` has no input `{}`", action.name, entry.key.escape_debug());
                report.error(entry.key_place, message, help);
            }
            let expression = match declared {
                // What is optional may be left out in so many words.
                Some(input) if entry.value.is_null() && input.default == Some(Value::Null) => {
                    Expression::literal(Value::Null, entry.value.place)
                }
                Some(input) => reader.typed(&entry.value, &input.r#type, &format!("`{}`", entry.key)),
                None => reader.expression(&entry.value),
            };
            bindings.insert(entry.key.clone(), expression);
        }
        if let Some(action) = action {
            let place = with.map_or(self.place, |node| node.place);
            add_defaults(report, action, place, &mut bindings);
        }
        bindings
    }
}

fn resource_places(fields: &Fields<'_>, step: Place) -> ResourcePlaces {
    let resources = fields.get("resources");
    let entries = resources.map_or(&[][..], |node| match &node.kind {
        Kind::Mapping(entries) => entries,
        Kind::Scalar { .. } | Kind::Sequence(_) => &[],
    });
    let of = |name: &str| entries.iter().find(|entry| entry.key == name).map_or(step, |entry| entry.value.place);
    ResourcePlaces { cpu: of("cpu"), memory: of("memory") }
}

fn add_defaults(report: &mut Report, action: &Action, place: Place, bindings: &mut IndexMap<String, Expression>) {
    for (name, input) in &action.inputs {
        if bindings.contains_key(name) {
            continue;
        }
        match &input.default {
            Some(default) => {
                let expression = Expression::literal(default.clone(), place);
                bindings.insert(name.clone(), Expression { r#type: input.r#type.clone(), ..expression });
            }
            None => {
                let help = Some(format!("add `{name}: …` under `with:`"));
                let message = format!("the action `{}` needs the input `{name}`, {}", action.name, input.r#type);
                report.error(place, message, help);
            }
        }
    }
}

fn read_when(reader: &mut Reader<'_>, node: &Node) -> Expression {
    let expression = reader.typed(node, &Type::Boolean, "`when`");
    if expression.reads_item {
        for (_, message, help) in &mut reader.problems {
            if message.starts_with("there is no `item` here") || message.starts_with("there is no `index` here") {
                *message = "`when` decides about the whole step, before it fans out".to_owned();
                *help = Some("leave elements out in `foreach`: `list.filter(x, …)`".to_owned());
            }
        }
    }
    expression
}

/// The directories that the elements of a fan-out may be, or hold.
fn directories_of(foreach: &Expression, names: &Names) -> Vec<Listed> {
    let inputs = foreach.reads_inputs.iter().cloned().map(Listed::Input);
    let outputs =
        names.steps.values().filter(|step| foreach.reads_steps.contains(&step.index)).flat_map(|step| {
            step.outputs.keys().map(|output| Listed::Output { step: step.index, output: output.clone() })
        });
    inputs.chain(outputs).collect()
}

fn read_after(report: &mut Report, fields: &Fields<'_>, names: &Names) -> Vec<StepIndex> {
    let Some(node) = fields.get("after").filter(|node| !node.is_null()) else { return Vec::new() };
    let mut after = Vec::new();
    for (name, place) in report.texts(node, "the name of a step") {
        match names.steps.get(name) {
            Some(step) => after.push(step.index),
            None => {
                let help = did_you_mean(name, names.steps.keys().map(String::as_str));
                report.error(place, format!("there is no step `{}`", name.escape_debug()), help);
            }
        }
    }
    after
}

/// What to do where one type stands and another is wanted.
pub(super) fn type_help(wanted: &Type, given: &Type) -> Option<String> {
    match (wanted, given) {
        (Type::List(_), Type::List(_)) => None,
        (Type::List(_), Type::Directory) => Some("list its files: `files(…, \"*\")`".to_owned()),
        (Type::List(_), Type::Integer) => Some("write `range(…)` for the numbers below it".to_owned()),
        (_, Type::List(Some(element))) if wanted.accepts(element) => {
            Some("a step that fans out gives a list; take one element with `[0]`, or add `foreach:`".to_owned())
        }
        (Type::String, Type::Integer | Type::Number | Type::Boolean) => Some("write `string(…)`".to_owned()),
        (Type::Boolean, Type::String) => Some("compare it: `… == \"yes\"`".to_owned()),
        (Type::Boolean, Type::Integer) => Some("compare it: `… > 0`".to_owned()),
        (Type::Boolean, Type::List(_)) => Some("compare its size: `….size() > 0`".to_owned()),
        _ => None,
    }
}

impl Expression {
    /// Takes the expression as one of a type; what is written out becomes a value of it.
    ///
    /// # Errors
    /// What is wrong, where it is of another type.
    pub(super) fn conform(&mut self, wanted: &Type) -> Result<(), String> {
        if let Form::Literal(value) = &mut self.form {
            *value = crate::value::from_json(&value.to_json(), wanted).map_err(|mismatch| mismatch.to_string())?;
            self.r#type = wanted.clone();
            return Ok(());
        }
        if wanted.accepts(&self.r#type) { Ok(()) } else { Err(format!("expected {wanted}, found {}", self.r#type)) }
    }
}
