//! What stays for as long as a workflow is deployed: the source that starts its runs, and its services.

use std::time::Duration;

use indexmap::IndexMap;

use super::parse::Surroundings;
use super::service::{SERVICES, read_services};
use super::steps::{Standing, read_standing};
use crate::expression::Names;
use crate::id::StepIndex;
use crate::reading::Report;
use crate::workflow::{Concurrency, Output, Retry, Step, Workflow};
use crate::yaml::{Entry, Kind, Node};

pub(super) const SOURCE: &str = "source";
/// Before a source that has failed is begun anew, for the first time.
const BACKOFF: Duration = Duration::from_millis(200);

/// The workflow that carries the source and the services of another one out: nothing if it has none, or one that is wrong.
pub(super) fn read_emitter(
    report: &mut Report,
    text: &str,
    root: &Node,
    workflow: &Workflow,
    surroundings: &dyn Surroundings,
) -> Option<Workflow> {
    let Kind::Mapping(entries) = &root.kind else { return None };
    let find = |field: &str| entries.iter().find(|entry| entry.key == field && !entry.value.is_null());
    let mut steps: Vec<Step> =
        find(SOURCE).map(|entry| read_source(report, text, entry, workflow, surroundings)).into_iter().collect();
    let what = if steps.is_empty() { SERVICES } else { SOURCE };
    if let Some(entry) = find(SERVICES) {
        let first = u16::try_from(steps.len()).expect("at most one");
        steps.extend(read_services(report, text, &entry.value, first, (&workflow.name, surroundings)));
    }
    (!steps.is_empty()).then(|| Workflow {
        file: workflow.file.clone(),
        name: format!("{}.{what}", workflow.name),
        description: None,
        inputs: IndexMap::new(),
        steps,
        outputs: IndexMap::new(),
        placement: Vec::new(),
        requires: Vec::new(),
        priority: workflow.priority,
        concurrency: Concurrency::default(),
    })
}

fn read_source(
    report: &mut Report,
    text: &str,
    entry: &Entry,
    workflow: &Workflow,
    surroundings: &dyn Surroundings,
) -> Step {
    let standing = Standing { kind: SOURCE, resolve: &|reference| surroundings.source(reference) };
    let draft = read_standing(report, entry, StepIndex(0), standing);
    let is_known = !draft.unknown;
    let step = draft.into_step(report, text, &Names::before_any_run(), &mut Vec::new());
    if is_known {
        check_inputs(report, workflow, &step);
    }
    let retry = Retry { attempts: u32::MAX, backoff: BACKOFF, ..Retry::default() };
    // What it emits are no outputs: it never succeeds with any.
    Step { outputs: IndexMap::new(), retry, ..step }
}

/// A record is what a run is given: each input has to be in it, or to have a default.
fn check_inputs(report: &mut Report, workflow: &Workflow, source: &Step) {
    for (name, input) in workflow.inputs.iter().filter(|(_, input)| input.imported_by.is_none()) {
        let is_needed = input.default.is_none();
        let Some(Output { r#type, optional, .. }) = source.outputs.get(name) else {
            if is_needed {
                let emitted: Vec<&str> = source.outputs.keys().map(String::as_str).collect();
                let help = format!("the source emits {}; or give the input a `default`", listed(&emitted));
                let message = format!("the source does not emit the input `{name}`, which has no default");
                report.error(input.place, message, Some(help));
            }
            continue;
        };
        if !input.r#type.accepts(r#type) {
            let message = format!("the input `{name}` is {}, and the source emits {}", input.r#type, r#type);
            report.error(input.place, message, None);
        } else if is_needed && *optional {
            let message = format!("the source does not always emit the input `{name}`, which has no default");
            report.error(input.place, message, Some("give it a `default`".to_owned()));
        }
    }
}

fn listed(names: &[&str]) -> String {
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}
