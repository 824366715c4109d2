//! Checks of a workflow against the sites that there are.

use std::collections::{BTreeMap, BTreeSet};

use super::order::in_order;
use crate::diagnostic::{Diagnostic, Place};
use crate::id::SiteName;
use crate::placement::{Labels, PushMode, SiteSelector};
use crate::reading::Report;
use crate::resources::Capacity;
use crate::suggestion::did_you_mean;
use crate::units::format_size;
use crate::workflow::{Step, Workflow};

/// What is known of a site when a workflow is submitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteFacts {
    pub name: SiteName,
    pub labels: Labels,
    /// Nothing until the site's agent has been connected once.
    pub capacity: Option<Capacity>,
    /// Empty where they are not known.
    pub runtimes: Vec<String>,
}

/// Finds what no site can satisfy: unknown names and labels, more memory or CPUs than any admissible site has, data
/// confined away from the step that reads it.
pub fn check_sites(workflow: &Workflow, file: &str, sites: &[SiteFacts]) -> Vec<Diagnostic> {
    let mut check = Check { report: Report::new(file), sites };
    for rule in &workflow.placement {
        if let Some(confine) = &rule.confine {
            check.selector(confine, "`confine`");
        }
    }
    let mut admissible = Vec::with_capacity(workflow.steps.len());
    for step in &workflow.steps {
        let selector = SiteSelector { place: place_of(step), ..step.site.clone() };
        let known = check.selector(&selector, "the step");
        let sites = check.admitted(&step.site);
        if known {
            check.resources(step, &sites);
        }
        admissible.push(sites);
    }
    check.confinement(workflow, admissible);
    check.report.into_diagnostics()
}

struct Check<'a> {
    report: Report,
    sites: &'a [SiteFacts],
}

/// Places of sites in the list of them.
type Sites = BTreeSet<usize>;

impl Check<'_> {
    fn admitted(&self, selector: &SiteSelector) -> Sites {
        let admitted = |(_, site): &(usize, &SiteFacts)| selector.admits(&site.name, &site.labels);
        self.sites.iter().enumerate().filter(admitted).map(|(place, _)| place).collect()
    }

    /// Whether there is a site that the selector admits.
    fn selector(&mut self, selector: &SiteSelector, what: &str) -> bool {
        let sites = self.sites;
        let mut known = true;
        for (number, name) in selector.names.iter().enumerate() {
            if !sites.iter().any(|site| site.name == *name) {
                let help = did_you_mean(name.as_str(), sites.iter().map(|site| site.name.as_str()));
                let help = help.or_else(|| Some(format!("make it one: `atoll site token create {name}`")));
                let place = selector.name_places.get(number).copied().unwrap_or(selector.place);
                self.report.error(place, format!("there is no site `{name}`"), help);
                known = false;
            }
        }
        for (label, value) in &selector.labels {
            let values: BTreeSet<&str> =
                sites.iter().filter_map(|site| site.labels.get(label)).map(String::as_str).collect();
            if values.contains(value.as_str()) {
                continue;
            }
            known = false;
            let labels: BTreeSet<&str> = sites.iter().flat_map(|site| site.labels.keys()).map(String::as_str).collect();
            let (key, written) = selector.label_places.get(label).copied().unwrap_or((selector.place, selector.place));
            let (place, message, help) = if values.is_empty() {
                (key, format!("no site has a label `{label}`"), did_you_mean(label, labels.iter().copied()))
            } else {
                (written, format!("no site has `{label}: {value}`"), did_you_mean(value, values.iter().copied()))
            };
            self.report.error(place, message, help);
        }
        if known && self.admitted(selector).is_empty() {
            let message = if sites.is_empty() {
                "there is no site yet".to_owned()
            } else {
                format!("no site has everything that {what} asks for")
            };
            let help = sites.is_empty().then(|| "make one: `atoll site token create NAME`".to_owned());
            self.report.error(selector.place, message, help);
            return false;
        }
        known
    }

    fn resources(&mut self, step: &Step, sites: &Sites) {
        let capacities: Vec<(&SiteName, &Capacity)> = sites
            .iter()
            .filter_map(|site| Some((&self.sites[*site].name, self.sites[*site].capacity.as_ref()?)))
            .collect();
        // A site that was never connected may have any.
        if capacities.len() < sites.len() || sites.is_empty() {
            return;
        }
        if self.runtimes(step, sites) {
            return;
        }
        let wanted = &step.resources;
        let most_memory = capacities.iter().max_by_key(|(_, capacity)| capacity.memory_bytes);
        if let (Some(memory), Some((site, capacity))) = (wanted.memory_bytes_in_all(), most_memory)
            && memory > capacity.memory_bytes
        {
            let message = format!(
                "step `{}` asks for {} of memory, more than any site has where it may run",
                step.name,
                format_size(memory)
            );
            let help = Some(format!("`{site}` has the most: {}", format_size(capacity.memory_bytes)));
            self.report.error(step.resource_places.memory, message, help);
            return;
        }
        let most_cpu = capacities.iter().max_by_key(|(_, capacity)| capacity.cpu_millis);
        let cpus = |millis: u32| f64::from(millis) / 1_000.0;
        if let Some((site, capacity)) = most_cpu
            && wanted.cpu_millis_in_all() > capacity.cpu_millis
        {
            let message = format!(
                "step `{}` asks for {} CPUs, more than any site has where it may run",
                step.name,
                cpus(wanted.cpu_millis_in_all())
            );
            let help = Some(format!("`{site}` has the most: {}", cpus(capacity.cpu_millis)));
            self.report.error(step.resource_places.cpu, message, help);
            return;
        }
        let fits = |capacity: &Capacity| {
            wanted.cpu_millis_in_all() <= capacity.cpu_millis
                && wanted.memory_bytes_in_all().is_none_or(|memory| memory <= capacity.memory_bytes)
        };
        if let Some((site, (what, there))) = capacities
            .iter()
            .map(|(site, capacity)| capacity.lacks(wanted).map(|lacks| (site, lacks)))
            .collect::<Option<Vec<_>>>()
            .and_then(|lacking| lacking.into_iter().next())
        {
            let message = format!("step `{}` asks for {what}, and no site has that where it may run", step.name);
            self.report.error(place_of(step), message, Some(format!("`{site}` has {there}")));
            return;
        }
        if !capacities.iter().any(|(_, capacity)| fits(capacity)) {
            let message =
                format!("no site where step `{}` may run has both the memory and the CPUs that it asks for", step.name);
            self.report.error(step.resource_places.memory, message, None);
        }
    }

    /// Whether none of these sites gives what only batch systems can.
    fn runtimes(&mut self, step: &Step, sites: &Sites) -> bool {
        let facts = self.sites;
        let lacking = |site: &usize| {
            let runtimes = &facts[*site].runtimes;
            if runtimes.is_empty() { None } else { step.resources.not_given_by(runtimes) }
        };
        let lacking = sites.iter().map(lacking).collect::<Option<Vec<_>>>();
        let Some((what, help)) = lacking.and_then(|lacking| lacking.into_iter().next()) else { return false };
        let message = format!("step `{}` asks for {what}, and no site gives that where it may run", step.name);
        self.report.error(place_of(step), message, Some(help.to_owned()));
        true
    }

    /// Confinements add up, and what is derived from confined data is confined as it is.
    fn confinement(&mut self, workflow: &Workflow, admissible: Vec<Sites>) {
        if workflow.placement.is_empty() {
            return;
        }
        let mut derived: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for index in in_order(&workflow.steps) {
            let step = workflow.step(index);
            let mut rules: BTreeSet<usize> = BTreeSet::new();
            for need in data_needs(step) {
                rules.extend(derived.get(&need).into_iter().flatten());
            }
            let inputs = step.bindings.values().chain(&step.foreach).flat_map(|expression| &expression.reads_inputs);
            for input in inputs {
                rules.extend(confining(workflow, |rule| rule.covers_input(input)));
            }
            let read = rules.clone();
            for output in step.outputs.keys() {
                rules.extend(confining(workflow, |rule| rule.covers_output(&step.name, output)));
            }
            if let Some(input) = step.name.strip_prefix("inputs.") {
                rules.extend(confining(workflow, |rule| rule.covers_input(input)));
            }
            self.step_within(workflow, step, &admissible[index.index()], &rules, &read);
            self.outside_of_all(workflow, step, &rules);
            if !rules.is_empty() {
                derived.insert(index.index(), rules);
            }
        }
        self.never_pushed(workflow, &admissible);
    }

    fn step_within(
        &mut self,
        workflow: &Workflow,
        step: &Step,
        sites: &Sites,
        rules: &BTreeSet<usize>,
        read: &BTreeSet<usize>,
    ) {
        if sites.is_empty() || rules.is_empty() {
            return;
        }
        let mut left = sites.clone();
        for rule in rules {
            let Some(confine) = &workflow.placement[*rule].confine else { continue };
            let allowed = self.admitted(confine);
            if allowed.is_empty() {
                return;
            }
            left.retain(|site| allowed.contains(site));
            if left.is_empty() {
                let names = |sites: &Sites| {
                    sites.iter().map(|site| format!("`{}`", self.sites[*site].name)).collect::<Vec<_>>().join(", ")
                };
                let line = workflow.placement[*rule].place.line;
                let verb = if read.contains(rule) { "reads" } else { "makes" };
                let message = format!(
                    "step `{}` {verb} data that may not leave {}, and runs elsewhere",
                    step.name,
                    names(&allowed)
                );
                let help = format!(
                    "placement rule {} (line {line}) confines it; the step is placed at {}",
                    rule + 1,
                    names(sites)
                );
                self.report.error(place_of(step), message, Some(help));
                return;
            }
        }
    }

    /// What is published at a URL is at no site.
    fn outside_of_all(&mut self, workflow: &Workflow, step: &Step, rules: &BTreeSet<usize>) {
        let (Some(url), Some(rule)) = (step.published_url(), rules.first()) else { return };
        let line = workflow.placement[*rule].place.line;
        let message = format!("step `{}` publishes confined data at {url}, outside of all sites", step.name);
        let help = format!("placement rule {} (line {line}) confines it", rule + 1);
        self.report.error(place_of(step), message, Some(help));
    }

    /// What is never pushed is read where it is.
    fn never_pushed(&mut self, workflow: &Workflow, admissible: &[Sites]) {
        for step in &workflow.steps {
            for need in data_needs(step) {
                let producer = &workflow.steps[need];
                let never = workflow.placement.iter().enumerate().find(|(_, rule)| {
                    rule.said.push == Some(PushMode::Never)
                        && !producer.outputs.is_empty()
                        && producer.outputs.keys().all(|output| rule.matches.covers_output(&producer.name, output))
                });
                let (here, there) = (&admissible[step.index.index()], &admissible[need]);
                if let Some((number, rule)) = never
                    && !here.is_empty()
                    && !there.is_empty()
                    && here.is_disjoint(there)
                {
                    let message = format!(
                        "step `{}` reads from `{}`, which is never pushed, and runs elsewhere",
                        step.name, producer.name
                    );
                    let help = format!("placement rule {} (line {}) says `push: never`", number + 1, rule.place.line);
                    self.report.error(place_of(step), message, Some(help));
                }
            }
        }
    }
}

/// Where the file says where a step runs; the step itself, where it does not.
fn place_of(step: &Step) -> Place {
    if step.site == SiteSelector::default() { step.place } else { step.site.place }
}

/// The steps whose outputs a step reads as data; what only decides whether it runs stays at the control plane.
fn data_needs(step: &Step) -> BTreeSet<usize> {
    let expressions = step.bindings.values().chain(&step.foreach);
    expressions.flat_map(|expression| &expression.reads_steps).map(|step| step.index()).collect()
}

fn confining(workflow: &Workflow, covers: impl Fn(&crate::placement::RuleMatch) -> bool) -> Vec<usize> {
    let confining = |(_, rule): &(usize, &crate::placement::Rule)| rule.confine.is_some() && covers(&rule.matches);
    workflow.placement.iter().enumerate().filter(confining).map(|(number, _)| number).collect()
}
