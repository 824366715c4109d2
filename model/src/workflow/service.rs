//! The services that are kept running while a workflow is deployed, and the steps that use them.

use std::time::Duration;

use indexmap::IndexMap;

use super::parse::Surroundings;
use super::source::SOURCE;
use super::steps::{Standing, read_standing};
use crate::action::{SERVICE_VARIABLE, address_variable};
use crate::diagnostic::Place;
use crate::expression::Names;
use crate::id::StepIndex;
use crate::limits::SERVICES_MAX;
use crate::placement::SiteSelector;
use crate::reading::Report;
use crate::suggestion::did_you_mean;
use crate::workflow::{Retry, Step, Workflow};
use crate::yaml::{Entry, Kind, Node};

pub(super) const SERVICES: &str = "services";
/// A service that has failed is begun again where it is, by whoever watches over it. When that gives it up, it has failed.
const ATTEMPTS: u32 = 1;

/// The steps that carry services out, the first with this index.
pub(super) fn read_services(
    report: &mut Report,
    text: &str,
    node: &Node,
    first: u16,
    (workflow, surroundings): (&str, &dyn Surroundings),
) -> Vec<Step> {
    let entries = report.entries(node, "`services`");
    if entries.len() > SERVICES_MAX {
        report.error(node.place, format!("there are {} services, more than {SERVICES_MAX}", entries.len()), None);
        return Vec::new();
    }
    let standing = Standing { kind: "service", resolve: &|reference| surroundings.service(reference) };
    let read = |(entry, index): (&Entry, u16)| {
        report.name(&entry.key, entry.key_place, "a service", true);
        if entry.key == SOURCE {
            let message = format!("a service cannot be called `{SOURCE}`: that is what starts runs");
            report.error(entry.key_place, message, None);
        }
        let draft = read_standing(report, entry, StepIndex(index), standing);
        let mut step = draft.into_step(report, text, &Names::before_any_run(), &mut Vec::new());
        step.environment.insert(SERVICE_VARIABLE.to_owned(), reference(workflow, &step.name));
        let retry = Retry { attempts: ATTEMPTS, backoff: Duration::ZERO, ..Retry::default() };
        Step { outputs: IndexMap::new(), retry, ..step }
    };
    entries.iter().zip(first..).map(read).collect()
}

/// What names a service within a project.
fn reference(workflow: &str, service: &str) -> String {
    format!("{workflow}/{service}")
}

/// Reads which services steps use: they run where those are, and find their addresses in their environment.
pub(super) fn read_uses(report: &mut Report, root: &Node, workflow: &mut Workflow, emitter: Option<&Workflow>) {
    let services: Vec<&Step> =
        emitter.into_iter().flat_map(|emitter| &emitter.steps).filter(|step| step.is_service()).collect();
    let name = workflow.name.clone();
    for entry in field(root, "steps").into_iter().flat_map(entries_of) {
        let Some(uses) = field(&entry.value, "uses") else { continue };
        let Some(step) = workflow.steps.iter_mut().find(|step| step.name == entry.key) else { continue };
        for (used, place) in report.texts(uses, "the name of a service") {
            match services.iter().find(|service| service.name == used) {
                Some(service) => use_service(report, &name, step, service, place),
                None => {
                    let help = did_you_mean(used, services.iter().map(|service| service.name.as_str()));
                    let message = format!("there is no `{}` among the `services` of the file", used.escape_debug());
                    report.error(place, message, help);
                }
            }
        }
    }
}

fn use_service(report: &mut Report, workflow: &str, step: &mut Step, service: &Step, place: Place) {
    let [site] = service.site.names.as_slice() else {
        let message =
            format!("where the service `{}` runs is not certain, and what uses it runs there too", service.name);
        let help = format!("name its site: `{}: {{ site: …, action: … }}`", service.name);
        return report.error(place, message, Some(help));
    };
    let is_silent = step.site.names.is_empty() && step.site.labels.is_empty();
    if is_silent {
        step.site =
            SiteSelector { names: vec![site.clone()], name_places: vec![place], place, ..SiteSelector::default() };
    } else if step.site.names != [site.clone()] {
        let message = format!("the service `{}` is at {site}, and the step `{}` elsewhere", service.name, step.name);
        report.error(place, message, Some("leave `site` of the step out".to_owned()));
    }
    step.environment.insert(address_variable(&service.name), reference(workflow, &service.name));
}

fn field<'node>(node: &'node Node, name: &str) -> Option<&'node Node> {
    entries_of(node).iter().find(|entry| entry.key == name).map(|entry| &entry.value).filter(|value| !value.is_null())
}

fn entries_of(node: &Node) -> &[Entry] {
    match &node.kind {
        Kind::Mapping(entries) => entries,
        Kind::Scalar { .. } | Kind::Sequence(_) => &[],
    }
}
