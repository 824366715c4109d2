//! The source that starts the runs of a workflow that is deployed.

use std::time::Duration;

use indexmap::IndexMap;

use super::parse::Surroundings;
use super::steps::read_source;
use crate::expression::Names;
use crate::reading::Report;
use crate::workflow::{Concurrency, Output, Retry, Step, Workflow};
use crate::yaml::{Kind, Node};

const FIELD: &str = "source";
/// Before a source that has failed is begun anew, for the first time.
const BACKOFF: Duration = Duration::from_millis(200);

/// The workflow that carries the source of another one out: nothing if it has none, or one that is wrong.
pub(super) fn read_emitter(
    report: &mut Report,
    text: &str,
    root: &Node,
    workflow: &Workflow,
    surroundings: &dyn Surroundings,
) -> Option<Workflow> {
    let Kind::Mapping(entries) = &root.kind else { return None };
    let entry = entries.iter().find(|entry| entry.key == FIELD && !entry.value.is_null())?;
    let draft = read_source(report, entry, surroundings);
    let is_known = !draft.unknown;
    let step = draft.into_step(report, text, &Names::default(), &mut Vec::new());
    if is_known {
        check_inputs(report, workflow, &step);
    }
    let retry = Retry { attempts: u32::MAX, backoff: BACKOFF, other_site: false };
    // What it emits are no outputs: it never succeeds with any.
    let step = Step { outputs: IndexMap::new(), retry, ..step };
    Some(Workflow {
        file: workflow.file.clone(),
        name: format!("{}.{FIELD}", workflow.name),
        description: None,
        inputs: IndexMap::new(),
        steps: vec![step],
        outputs: IndexMap::new(),
        placement: Vec::new(),
        requires: Vec::new(),
        priority: workflow.priority,
        concurrency: Concurrency::default(),
    })
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
