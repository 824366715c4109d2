//! Looking ahead for a run: when it is worth it, among which sites, and what placement makes of it.

use std::collections::BTreeMap;

use atoll_model::elements::ElementSet;
use atoll_model::id::{RunId, SiteId, StepIndex};
use atoll_model::value::ObjectRef;
use atoll_model::workflow::Workflow;

use crate::control_plane::ControlPlane;
use crate::look_ahead::{Aim, Links, SITES_MAX, look_ahead};
use crate::outlook::{BYTES_DETOUR_SECONDS, Outlooks, Place, RunOutlook, Sketch, StepOutlook, TIME_DETOUR};
use crate::placement::{Assessment, DataTerms, TRANSFER_SECONDS, egress_price, permanent_obstacle};
use crate::plan::RunPlan;
use crate::state::Run;

/// Bytes that steps hand to one another, below which time is better spent than on a look ahead where time is what counts.
const WORTH_BYTES: u64 = 32 << 20;

impl ControlPlane {
    /// Looks ahead for a run, if it was not done, or if what it was done with has changed.
    pub(crate) fn refresh_outlook(&mut self, run_id: RunId) {
        let Some(run) = self.state.runs.get(&run_id) else { return };
        if run.steps.len() < 2 {
            return;
        }
        let ended = run.steps.len() - run.steps_left as usize;
        let known = self.outlooks.of(run_id);
        if known.is_some_and(|known| known.steps.is_empty() && ended < known.again_at) {
            return;
        }
        let open = self.open_sites(run.id);
        if known.is_some_and(|known| known.open == open && ended < known.again_at) {
            return;
        }
        let outlook = self.outlook(run, open, ended);
        self.outlooks.keep(run_id, outlook);
    }

    fn outlook(&self, run: &Run, open: Vec<SiteId>, ended: usize) -> RunOutlook {
        let later = ended + ended / 2 + 1;
        let nothing = |open, again_at| RunOutlook { open, again_at, steps: Vec::new(), detour_seconds: 0.0 };
        if open.len() < 2 || self.config.goal.effort == 0 {
            return nothing(open, later);
        }
        let sketch = self.sketch(run);
        if !self.is_asked_for() {
            match sketch.bytes_handed_on() {
                Some(bytes) if bytes >= WORTH_BYTES => {}
                Some(_) => return nothing(open, usize::MAX),
                None => return nothing(open, later),
            }
        }
        match self.draw_and_look(&sketch, &open) {
            None => nothing(open, later),
            Some((steps, seconds, is_guess)) => RunOutlook {
                open,
                again_at: if is_guess { later } else { usize::MAX },
                steps,
                detour_seconds: self.detour_seconds(seconds),
            },
        }
    }

    fn sketch<'a>(&'a self, run: &'a Run) -> Sketch<'a> {
        Sketch {
            workflow: &run.workflow,
            plan: &run.plan,
            inputs: &run.inputs,
            run: Some(run),
            estimates: &self.estimates,
        }
    }

    /// Whether runs are looked at even if they hand on little, or nobody knows how much.
    fn is_asked_for(&self) -> bool {
        self.config.goal.aim == Aim::Bytes || self.config.goal.share_max < 1.0
    }

    fn detour_seconds(&self, makespan_seconds: f64) -> f64 {
        match self.config.goal.aim {
            Aim::Bytes => BYTES_DETOUR_SECONDS,
            Aim::Time => TIME_DETOUR * makespan_seconds,
        }
    }

    /// What would be seen ahead for a workflow that has not begun: for each step the site that most of it would go to, and
    /// what going elsewhere is worth.
    pub(crate) fn look_before(&self, sketch: &Sketch<'_>) -> Vec<Option<(SiteId, f64)>> {
        let open = self.open_sites(RunId::from_bits(0));
        let nothing = vec![None; sketch.workflow.steps.len()];
        if open.len() < 2 || nothing.len() < 2 || self.config.goal.effort == 0 {
            return nothing;
        }
        let Some((steps, seconds, _)) = self.draw_and_look(sketch, &open) else { return nothing };
        let detour_seconds = self.detour_seconds(seconds);
        let most = |step: &StepOutlook| {
            open.iter().copied().max_by_key(|open| step.sites.iter().filter(|site| *site == open).count())
        };
        steps.iter().map(|step| Some((most(step)?, detour_seconds))).collect()
    }

    /// Where each step's elements should go, how long all of it takes, and whether bytes were guessed for it.
    pub(crate) fn draw_and_look(&self, sketch: &Sketch<'_>, open: &[SiteId]) -> Option<(Vec<StepOutlook>, f64, bool)> {
        let places = self.places_of(sketch.workflow, sketch.plan, open);
        let pairs = open.iter().flat_map(|from| open.iter().map(move |to| (*from, *to)));
        let rates = pairs.filter(|(from, to)| from != to).map(|(from, to)| self.estimates.link(from, to));
        let slowest = rates.fold(f64::INFINITY, f64::min);
        let links = Links { bytes_per_second: slowest, latency_micros: (TRANSFER_SECONDS * 1e6) as u64 };
        let whereabouts =
            |object: ObjectRef| self.state.objects.get(&object.id).map(|known| known.sites.clone()).unwrap_or_default();
        let drawing = sketch.draw(&places, links, &whereabouts)?;
        let goal = self.config.goal;
        let bytes: u64 = drawing.graph.items.iter().map(|item| item.bytes).sum();
        if drawing.graph.units.len() < 2 || !self.is_asked_for() && (drawing.is_guess || bytes < WORTH_BYTES) {
            return None;
        }
        let found = look_ahead(&drawing.graph, goal);
        let step = |parts: &crate::outlook::Parts| StepOutlook {
            count: parts.count,
            sites: parts.units().map(|unit| open[usize::from(found.site_of[unit as usize])]).collect(),
        };
        Some((drawing.steps.iter().map(step).collect(), found.makespan_micros as f64 / 1e6, drawing.is_guess))
    }

    /// The elements, by the sites that a look ahead gives them to.
    pub(crate) fn by_outlook(&self, run: RunId, step: StepIndex, elements: ElementSet) -> Vec<ElementSet> {
        if !self.outlooks.has(run) {
            return vec![elements];
        }
        let mut by_site: BTreeMap<Option<SiteId>, ElementSet> = BTreeMap::new();
        for element in elements.iter() {
            let ahead = self.outlooks.site(run, step, element).map(|(site, _)| site);
            by_site.entry(ahead).or_default().insert(element);
        }
        by_site.into_values().collect()
    }

    /// An object that would have to come to a site: over the fastest of the links to it, from whom it costs least.
    pub(crate) fn add_missing(&self, terms: &mut DataTerms, object: ObjectRef, site: SiteId) {
        let holders = self.state.objects.get(&object.id).map_or(&[][..], |known| known.sites.as_slice());
        let rate = holders.iter().map(|holder| self.estimates.link(*holder, site)).reduce(f64::max);
        let rate = rate.unwrap_or_else(|| self.estimates.bytes_per_second(site));
        let price = |holder: &SiteId| egress_price(&self.state.sites.get(holder)?.labels);
        let price = holders.iter().map(|holder| price(holder).unwrap_or(0.0)).reduce(f64::min);
        terms.missing_objects += 1;
        terms.missing_bytes += object.bytes;
        terms.missing_seconds += object.bytes as f64 / rate;
        terms.egress_money += object.bytes as f64 * price.unwrap_or(0.0);
    }

    /// Sites that take work now: those where the run is already, then the largest.
    pub(crate) fn open_sites(&self, run: RunId) -> Vec<SiteId> {
        let mut open: Vec<_> =
            self.state.sites.keys().copied().filter(|site| self.site_closed(*site).is_none()).collect();
        if open.len() > SITES_MAX {
            open.sort_by_key(|id| {
                let site = self.state.site(*id);
                let busy = site.busy.range((run, StepIndex(0))..=(run, StepIndex(u16::MAX))).count();
                let cpus = site.capacity.as_ref().map_or(0, |capacity| capacity.cpu_millis);
                std::cmp::Reverse((busy, cpus))
            });
            open.truncate(SITES_MAX);
            open.sort_unstable();
        }
        open
    }

    fn places_of(&self, workflow: &Workflow, plan: &RunPlan, open: &[SiteId]) -> Vec<Place> {
        let candidates = self.candidates();
        let place = |site: &SiteId| {
            let candidate = candidates.iter().find(|candidate| candidate.site == *site).expect("open sites are known");
            let admits = |step: &atoll_model::workflow::Step| {
                let wanted = super::place::requirement(step, 0.0);
                permanent_obstacle(candidate, &wanted).is_none() && self.rule_obstacle(plan, step, candidate).is_none()
            };
            Place {
                site: *site,
                cpu_millis: candidate.capacity.map_or(1_000, |capacity| capacity.cpu_millis),
                busy_micros: (self.busy_seconds(*site) * 1e6) as u64,
                admits: workflow.steps.iter().map(admits).collect(),
            }
        };
        open.iter().map(place).collect()
    }
}

impl Outlooks {
    /// Makes other sites than the one that was seen ahead worse by what a detour is worth.
    pub(crate) fn lean(&self, assessments: &mut [Assessment], run: RunId, step: StepIndex, element: u32) {
        if let Some((site, detour_seconds)) = self.site(run, step, element) {
            lean(assessments, site, detour_seconds);
        }
    }
}

pub(crate) fn lean(assessments: &mut [Assessment], site: SiteId, detour_seconds: f64) {
    if assessments.iter().any(|assessment| assessment.site == site && assessment.obstacle.is_none()) {
        let others = assessments.iter_mut().filter(|assessment| assessment.site != site);
        others.for_each(|assessment| assessment.detour_seconds = detour_seconds);
    }
}
