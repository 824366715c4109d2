//! From the text of a workflow file to a checked [`Workflow`].

use indexmap::IndexMap;

use super::held::{Given, Outside};
use super::inputs::{Imported, read_inputs};
use super::order::order_steps;
use super::outputs::{Published, count_published, read_outputs};
use super::rules::read_rules;
use super::service::read_uses;
use super::settings::read_concurrency;
use super::source::read_emitter;
use super::steps::{Draft, Others, read_drafts};
use crate::diagnostic::{Diagnostic, Place};
use crate::expression::{Expression, Listed, Names, Reader, StepNames};
use crate::id::{SiteName, StepIndex};
use crate::limits::WORKFLOW_BYTES_MAX;
use crate::placement::SiteSelector;
use crate::reading::{Fields, Report};
use crate::resources::Resources;
use crate::value::Type;
use crate::workflow::{Input, OnDisconnect, Output, ResourcePlaces, Retry, StartMode, Step, Work, Workflow};
use crate::yaml::Node;

/// What a workflow file refers to and does not hold itself.
pub trait Surroundings {
    /// Resolves what stands after `action:`.
    ///
    /// # Errors
    /// Why there is no such action, in a sentence without a full stop.
    fn action(&self, reference: &str) -> Result<Work, String>;

    /// Resolves what stands after `action:` below `source:`, an action of another kind.
    ///
    /// # Errors
    /// As for [`Self::action`].
    fn source(&self, reference: &str) -> Result<Work, String> {
        Err(format!("there is no source {reference} here"))
    }

    /// Resolves what stands after `action:` of a service.
    ///
    /// # Errors
    /// As for [`Self::action`].
    fn service(&self, reference: &str) -> Result<Work, String> {
        Err(format!("there is no service {reference} here"))
    }

    /// What was given for an input when the workflow was submitted.
    fn given(&self, input: &str) -> Given {
        let _ = input;
        Given::Nothing
    }
}

const WORKFLOW_FIELDS: &[&str] = &[
    "workflow",
    "description",
    "requires",
    "source",
    "services",
    "inputs",
    "steps",
    "outputs",
    "placement",
    "priority",
    "concurrency",
];

/// What a file says that is to be deployed.
#[derive(Debug, Clone, PartialEq)]
pub struct Deployable {
    pub workflow: Workflow,
    /// What carries its source and its services out, if it has any: a workflow of steps that stay, the source first, which only
    /// ends when it is cancelled, or one of them is given up.
    pub emitter: Option<Workflow>,
}

/// Parses and checks a workflow file. What it says of a source and of services is checked too, and plays no part in a
/// single run.
///
/// # Errors
/// Everything that is wrong with it, in the order of the file.
pub fn parse(file_name: &str, source: &str, surroundings: &dyn Surroundings) -> Result<Workflow, Vec<Diagnostic>> {
    parse_deployable(file_name, source, surroundings).map(|deployable| deployable.workflow)
}

/// As [`parse`], with its source and its services.
///
/// # Errors
/// Everything that is wrong with it, in the order of the file.
pub fn parse_deployable(
    file_name: &str,
    source: &str,
    surroundings: &dyn Surroundings,
) -> Result<Deployable, Vec<Diagnostic>> {
    let mut report = Report::new(file_name);
    let deployable = report.yaml(source, WORKFLOW_BYTES_MAX).and_then(|root| {
        let mut workflow = read(&mut report, source, &root, surroundings)?;
        let emitter = read_emitter(&mut report, source, &root, &workflow, surroundings);
        read_uses(&mut report, &root, &mut workflow, emitter.as_ref());
        Some(Deployable { workflow, emitter })
    });
    match deployable {
        Some(deployable) if report.is_empty() => Ok(deployable),
        Some(_) | None => Err(report.into_diagnostics()),
    }
}

fn read(report: &mut Report, source: &str, root: &Node, surroundings: &dyn Surroundings) -> Option<Workflow> {
    let fields = report.fields(root, "a workflow", WORKFLOW_FIELDS);
    let name = read_name(report, &fields);
    let description = fields.get("description").and_then(|node| report.text(node, "`description`")).map(str::to_owned);
    let requires =
        fields.get("requires").map(|node| report.texts(node, "a program that is required")).unwrap_or_default();
    let (mut inputs, imported) = match fields.get("inputs") {
        Some(node) if !node.is_null() => read_inputs(report, node, surroundings),
        Some(_) | None => Default::default(),
    };
    let outputs_node = fields.get("outputs").filter(|node| !node.is_null());
    let others = Others { imports: imported.len(), exports: count_published(outputs_node) };
    let drafts = match fields.get("steps") {
        Some(node) => read_drafts(report, node, others, surroundings),
        // What it is given it publishes.
        None if others.exports > 0 => Vec::new(),
        None => {
            let help = "write `steps:` and below it a step by its name, with `run:` or `action:`".to_owned();
            report.error(root.place, "a workflow needs `steps`", Some(help));
            return None;
        }
    };
    let names = names(&inputs, &imported, &drafts);
    let mut listed = Vec::new();
    let mut steps: Vec<Step> =
        imported.iter().zip(0..).map(|(imported, index)| import_step(imported, StepIndex(index))).collect();
    for draft in drafts {
        steps.push(draft.into_step(report, source, &names, &mut listed));
    }
    order_steps(report, &steps);
    let mut outputs = IndexMap::new();
    if let Some(node) = outputs_node {
        let mut reader = Reader::new(source, &names, None);
        let published;
        (outputs, published) = read_outputs(report, &mut reader, node);
        listed.extend(reader.take_listed());
        reader.report_to(report);
        let indices = (0..=u16::MAX).skip(steps.len()).map(StepIndex);
        steps.extend(published.into_iter().zip(indices).map(|(published, index)| export_step(published, index)));
    }
    let priority = fields.get("priority").and_then(|node| report.priority(node));
    let mut workflow = Workflow {
        file: report.file().to_owned(),
        name,
        description,
        inputs: std::mem::take(&mut inputs),
        steps,
        outputs,
        placement: Vec::new(),
        requires: requires.into_iter().map(|(program, _)| program.to_owned()).collect(),
        priority: priority.unwrap_or_default(),
        concurrency: fields.get("concurrency").map(|node| read_concurrency(report, node)).unwrap_or_default(),
    };
    if let Some(node) = fields.get("placement").filter(|node| !node.is_null()) {
        workflow.placement = read_rules(report, node, &workflow);
    }
    mark_listed(&mut workflow, &listed);
    Some(workflow)
}

fn read_name(report: &mut Report, fields: &Fields<'_>) -> String {
    let Some(node) = fields.get("workflow") else {
        report.error(
            fields.place,
            "a workflow needs a name",
            Some("write `workflow: my-name` in the first line".to_owned()),
        );
        return String::new();
    };
    let name = report.text(node, "the name of a workflow").unwrap_or_default();
    if !name.is_empty() {
        report.name(name, node.place, "a workflow", true);
    }
    name.to_owned()
}

fn names(inputs: &IndexMap<String, Input>, imported: &[Imported], drafts: &[Draft<'_>]) -> Names {
    let mut names = Names::default();
    for (name, input) in inputs {
        names.inputs.insert(name.clone(), (input.r#type.clone(), input.imported_by));
    }
    debug_assert!(imported.iter().all(|imported| names.inputs.contains_key(&imported.input)));
    for draft in drafts {
        let outputs = draft.outputs.iter().map(|(name, output)| (name.clone(), output.r#type.clone())).collect();
        let step = StepNames { index: draft.index, fans_out: draft.fans_out(), outputs, unknown: draft.unknown };
        names.steps.insert(draft.name.clone(), step);
    }
    names
}

/// How often what does not come is fetched again, or what does not arrive sent again, and after how long for the first
/// time.
const OUTSIDE_ATTEMPTS: u32 = 3;
const OUTSIDE_BACKOFF: std::time::Duration = std::time::Duration::from_secs(2);

/// What one site cannot fetch or send, another may.
fn outside_retry(place: &Outside, site: Option<&SiteName>) -> Retry {
    match place {
        Outside::Path(_) => Retry::default(),
        Outside::Url(_) => {
            Retry { attempts: OUTSIDE_ATTEMPTS, backoff: OUTSIDE_BACKOFF, other_site: site.is_none(), memory: None }
        }
    }
}

/// The step that takes an input in at the site that holds or fetches it.
fn import_step(imported: &Imported, index: StepIndex) -> Step {
    let output = Output { r#type: imported.r#type.clone(), optional: false, listed: false, place: imported.place };
    let site = imported.from.site();
    let source = imported.from.source();
    let selector =
        SiteSelector { names: site.cloned().into_iter().collect(), place: imported.place, ..SiteSelector::default() };
    Step {
        retry: outside_retry(&source, site),
        outputs: IndexMap::from_iter([(imported.input.clone(), output)]),
        site: selector,
        ..plain_step(
            format!("inputs.{}", imported.input),
            index,
            imported.place,
            Work::Import { source, directory: imported.r#type == Type::Directory },
        )
    }
}

/// The step that publishes an output.
fn export_step(published: Published, index: StepIndex) -> Step {
    let Published { output, value, at, place } = published;
    let (names, name_places): (Vec<_>, Vec<_>) = at.site.into_iter().unzip();
    Step {
        retry: outside_retry(&at.target, names.first()),
        needs: value.reads_steps.clone(),
        bindings: IndexMap::from_iter([(output.clone(), value)]),
        site: SiteSelector { names, name_places, place: at.place, ..SiteSelector::default() },
        ..plain_step(
            format!("outputs.{output}"),
            index,
            place,
            Work::Export { target: at.target, overwrite: at.overwrite },
        )
    }
}

fn plain_step(name: String, index: StepIndex, place: Place, work: Work) -> Step {
    Step {
        name,
        index,
        place,
        work,
        bindings: IndexMap::new(),
        foreach: None,
        when: None,
        site: SiteSelector::default(),
        resources: Resources::default(),
        resource_places: ResourcePlaces { cpu: place, memory: place },
        retry: Retry::default(),
        outputs: IndexMap::new(),
        needs: Vec::new(),
        start: StartMode::default(),
        on_disconnect: OnDisconnect::default(),
        environment: IndexMap::new(),
        priority: 0,
        max_parallel: None,
        cache: None,
    }
}

/// Marks the directories whose files expressions ask for, so that their listing is reported with them.
fn mark_listed(workflow: &mut Workflow, listed: &[Listed]) {
    for listed in listed {
        match listed {
            Listed::Input(name) => {
                if let Some(input) = workflow.inputs.get_mut(name) {
                    input.listed = true;
                }
            }
            Listed::Output { step, output } => {
                if let Some(output) = workflow.steps[step.index()].outputs.get_mut(output) {
                    output.listed = true;
                }
            }
            Listed::Item => unreachable!("a step replaces what comes out of its item by what it fans out over"),
        }
    }
}

impl Reader<'_> {
    /// Hands over what was found wrong.
    pub(super) fn report_to(self, report: &mut Report) {
        for (place, message, help) in self.problems {
            report.error(place, message, help);
        }
    }

    /// Reads an expression that must be of a type. Where it may be, what is written out is taken as that type.
    pub(super) fn typed(&mut self, node: &Node, wanted: &Type, what: &str) -> Expression {
        let mut expression = self.expression(node);
        if let Err(message) = expression.conform(wanted) {
            let help = super::steps::type_help(wanted, &expression.r#type);
            self.problems.push((expression.place, format!("{what}: {message}"), help));
        }
        expression
    }
}
