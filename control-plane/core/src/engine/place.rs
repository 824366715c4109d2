//! From executions that are ready to executions that have a site.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use atoll_model::elements::ElementSet;
use atoll_model::id::{Attempt, ExecutionId, RunId, SiteId, StepIndex};
use atoll_model::session::{CONTAINER_RUNTIME, EXPORT_RUNTIME, PYTHON_RUNTIME, WASM_RUNTIME};
use atoll_model::value::ObjectRef;
use atoll_model::workflow::{Step, Work};

use super::dispatch::Assignment;
use crate::agenda::Timer;
use crate::caches::{Shared, value_bytes};
use crate::control_plane::ControlPlane;
use crate::fact::Fact;
use crate::placement::{self, Assessment, Candidate, DataTerms, Requirement};
use crate::state::{Run, StepPhase};

/// Executions of one step that get a site before it is the turn of the next step.
pub(crate) const QUANTUM: u32 = 1_024;
/// Encoded inputs of one dispatch command, roughly: several fit into a frame.
const DISPATCH_BYTES: usize = 256 << 10;
/// Encoded inputs of one execution: beyond it the command could not be decoded.
const INPUT_BYTES_MAX: usize = 8 << 20;
/// A decision is not written down again within this time if nothing but its figures has changed.
const DECISION_LIFETIME: Duration = Duration::from_secs(1);
/// Decisions kept of one step; later ones that only differ in figures join the last.
const DECISIONS_MAX: usize = 64;

/// Executions that ask for the same and read the same from the same places.
#[derive(Debug)]
struct Group {
    elements: ElementSet,
    /// Objects of one of them, beside those that the whole step shares.
    objects: Vec<ObjectRef>,
    /// The site that they should not go to again, if there is another.
    avoid: Option<SiteId>,
    attempt: Attempt,
    /// How often the memory has grown that they ask for.
    grown: u32,
}

/// Where a look ahead gives an execution to, and where each of its objects is.
type Likeness = (Option<SiteId>, Vec<(Vec<SiteId>, bool)>);

impl Group {
    fn first(mut self, count: u32) -> Self {
        Self { elements: self.elements.take_first(count), ..self }
    }
}

impl ControlPlane {
    /// Gives the waiting executions of a step to sites, as far as there is room.
    pub(crate) fn place(&mut self, run: RunId, step: StepIndex) {
        let Some(known) = self.state.runs.get(&run) else { return };
        let state = &known.steps[step.index()];
        if !known.is_going_on() || state.phase != StepPhase::Expanded || !state.has_waiting() {
            return;
        }
        if !self.take_from_lost(run, step) {
            return;
        }
        let known = self.state.run(run);
        let (mut allowed, limit) = self.allowance(known, step);
        if let (0, Some(limit)) = (allowed, limit) {
            return self.wait_for_limit(run, step, limit);
        }
        if let Some(message) =
            self.state.poisonous(known.workflow.step(step), known.plan.steps[step.index()].version, self.now)
        {
            return self.give_up_waiting(run, step, &message);
        }
        let shared = match self.caches.shared(known, step) {
            Ok(shared) if shared.bytes <= INPUT_BYTES_MAX => shared,
            Ok(shared) => {
                let message = format!("its inputs come to {} bytes, more than can be handed over", shared.bytes);
                return self.give_up_waiting(run, step, &message);
            }
            Err(error) => return self.give_up_waiting(run, step, &error.to_string()),
        };
        if self.reuse(run, step, &shared) {
            if self.state.runs.get(&run).is_some_and(|run| run.steps[step.index()].has_waiting()) {
                self.want_place(run, step);
            }
            return;
        }
        self.refresh_outlook(run);
        let groups = match self.groups(run, step) {
            Ok(groups) => groups,
            Err((element, message)) => {
                let elements = ElementSet::from_range(element..element + 1);
                self.give_up(run, step, elements, &message);
                self.want_place(run, step);
                return;
            }
        };
        for group in groups {
            if !self.state.runs.get(&run).is_some_and(|run| run.is_going_on()) {
                return;
            }
            allowed -= self.place_group(run, step, &shared, group.first(allowed));
            if allowed == 0 {
                // What a limit holds back is put where it belongs when it is asked again.
                return self.want_place(run, step);
            }
        }
    }

    /// The waiting executions of a step that may be placed in this turn, those that are alike together.
    fn groups(&mut self, run_id: RunId, step: StepIndex) -> Result<Vec<Group>, (u32, String)> {
        let run = self.state.run(run_id);
        let state = &run.steps[step.index()];
        let mut groups = Vec::new();
        let by_element = run.plan.steps[step.index()].own_by_element;
        let delegated = self.state.delegation(run_id, step).is_some();
        let mut first = if delegated { ElementSet::new() } else { state.ready.clone().take_first(QUANTUM) };
        if !first.is_empty() && !by_element {
            let own = self.own_objects(run, step, first.first().expect("not empty"))?;
            for elements in self.by_outlook(run_id, step, first) {
                let (avoid, attempt) = (None, Attempt::FIRST);
                groups.push(Group { elements, objects: own.clone(), avoid, attempt, grown: 0 });
            }
        } else if !first.is_empty() {
            let load = run.plan.steps[step.index()].load;
            let room: u32 = self.state.sites.keys().map(|site| self.room(*site, load)).fold(0, u32::saturating_add);
            first = first.take_first(room.max(1));
            let mut alike: BTreeMap<Likeness, Group> = BTreeMap::new();
            for element in first.iter() {
                let objects = self.own_objects(run, step, element)?;
                let places = objects.iter().map(|object| self.places(object.id)).collect();
                let (elements, attempt) = (ElementSet::new(), Attempt::FIRST);
                let new = |objects| Group { elements, objects, avoid: None, attempt, grown: 0 };
                let ahead = self.outlooks.site(run_id, step, element).map(|(site, _)| site);
                alike.entry((ahead, places)).or_insert_with(|| new(objects)).elements.insert(element);
            }
            groups.extend(alike.into_values());
        }
        let other_site = run.workflow.step(step).retry.other_site;
        let mut next_try = None;
        let again = state.again.iter().filter(|(element, _)| self.state.is_placeable(run_id, step, **element));
        for (element, not_before) in again.take(QUANTUM as usize) {
            if *not_before > self.now {
                next_try =
                    Some(next_try.map_or(*not_before, |known: atoll_model::time::Timestamp| known.min(*not_before)));
                continue;
            }
            let objects = self.own_objects(run, step, *element)?;
            let avoid = state.tries.get(element).and_then(|tries| tries.last_site).filter(|_| other_site);
            let attempt = state.next_attempt(*element);
            let elements = ElementSet::from_range(*element..*element + 1);
            groups.push(Group { elements, objects, avoid, attempt, grown: state.grown(*element) });
        }
        // Each change between them is one more template on its way to a site.
        groups.sort_by_key(|group| group.grown);
        if let Some(at) = next_try {
            self.agenda.set(at, Timer::Retry(run_id, step));
        }
        Ok(groups)
    }

    /// Whether executions of a step wait for a site, and not for the agent that the step is delegated to.
    fn has_placeable(&self, run: RunId, step: StepIndex) -> bool {
        let state = self.state.step(run, step);
        match self.state.delegation(run, step) {
            Some(delegated) => delegated.back.iter().any(|element| state.again.contains_key(&element)),
            None => state.has_waiting(),
        }
    }

    fn own_objects(&self, run: &Run, step: StepIndex, element: u32) -> Result<Vec<ObjectRef>, (u32, String)> {
        let own = self.caches.own(run, step, element).map_err(|error| (element, error.to_string()))?;
        let mut objects = Vec::new();
        let mut bytes = 0;
        for (_, value) in &own {
            value.visit_objects(&mut |object| objects.push(object));
            bytes += value_bytes(value);
        }
        if bytes > INPUT_BYTES_MAX {
            return Err((element, format!("its inputs come to {bytes} bytes, more than can be handed over")));
        }
        Ok(objects)
    }

    /// Places executions as far as there is room; how many.
    fn place_group(&mut self, run_id: RunId, step: StepIndex, shared: &Arc<Shared>, group: Group) -> u32 {
        let run = self.state.run(run_id);
        let definition = run.grown_step(step, group.grown);
        let candidates = self.candidates();
        let objects: Vec<_> = shared.objects.iter().chain(&group.objects).copied().collect();
        let mut assessments = self.assess(run, &definition, &candidates, &objects, None);
        if let Some(avoid) = group.avoid {
            avoid_site(&mut assessments, avoid);
        }
        let first = group.elements.first().expect("no group is empty");
        self.outlooks.lean(&mut assessments, run_id, step, first);
        let feasible: Vec<_> =
            assessments.iter().filter(|assessment| assessment.obstacle.is_none()).map(|a| a.site).collect();
        if feasible.is_empty() {
            let nowhere = self.nowhere(run, &definition, &objects);
            if let Some(nowhere) = nowhere.filter(|nowhere| nowhere.by_rule || group.grown > 0) {
                let first = group.elements.first().expect("no group is empty");
                let error = run.steps[step.index()].tries.get(&first).and_then(|tries| tries.last_error.as_deref());
                let reason = match error.filter(|_| group.grown > 0) {
                    Some(error) => format!("{error}; {}", nowhere.reason),
                    None => nowhere.reason,
                };
                self.give_up(run_id, step, group.elements, &reason);
                return 0;
            }
            self.agenda.stuck.insert((run_id, step), !objects.is_empty());
            self.recover_inputs(run_id, &objects);
            return 0;
        }
        let load = run.grown_load(step, group.grown);
        let room = |site: SiteId| self.room_in_turn(site, load);
        let shares = placement::spread(&assessments, group.elements.len(), (run_id, step, first), &room);
        let mut left = group.elements;
        let mut all_given = 0;
        if !shares.is_empty() {
            let decision = self.decide(run_id, step, &assessments);
            for (site, count) in shares {
                assessments
                    .iter_mut()
                    .filter(|assessment| assessment.site == site)
                    .for_each(|a| a.outstanding += count);
                let given = left.take_first(count);
                all_given += count;
                self.charge(run_id, step, site, count);
                let attempt = group.attempt;
                self.hand_over(Assignment { run: run_id, step, attempt, site, decision }, given, &objects);
            }
        }
        if !left.is_empty() {
            let best = placement::best(&assessments, (run_id, step, first));
            self.wait_for_room((run_id, step), &feasible, best, load, all_given);
        } else if self.has_placeable(run_id, step) {
            self.want_place(run_id, step);
        }
        all_given
    }

    /// Dispatches executions to a site whose objects are at hand there; others wait for their objects.
    fn hand_over(&mut self, assignment: Assignment, elements: ElementSet, shared_objects: &[ObjectRef]) {
        let Assignment { run, step, site, .. } = assignment;
        let planned = &self.state.run(run).plan.steps[step.index()];
        let by_element = planned.own_by_element;
        if !by_element {
            let at_hand = shared_objects.iter().all(|object| self.is_at_hand(*object, site));
            return if at_hand {
                self.dispatch(assignment, elements, false);
            } else {
                self.hold_for_inputs(assignment, elements);
            };
        }
        let (mut ready, mut waiting, mut bytes) = (ElementSet::new(), ElementSet::new(), 0);
        for element in elements.iter() {
            let known = self.state.run(run);
            let own = self.caches.own(known, step, element).unwrap_or_default();
            let objects = self.needed_objects(known, step, element);
            if objects.iter().all(|object| self.is_at_hand(*object, site)) {
                ready.insert(element);
                bytes += own.iter().map(|(name, value)| name.len() + value_bytes(value)).sum::<usize>();
                if bytes > DISPATCH_BYTES {
                    self.dispatch(assignment, std::mem::take(&mut ready), false);
                    bytes = 0;
                }
            } else {
                waiting.insert(element);
            }
        }
        if !ready.is_empty() {
            self.dispatch(assignment, ready, false);
        }
        if !waiting.is_empty() {
            self.hold_for_inputs(assignment, waiting);
        }
    }

    /// The elements are placed, and what they lack is on its way.
    fn hold_for_inputs(&mut self, assignment: Assignment, elements: ElementSet) {
        let Assignment { run, step, attempt, site, decision } = assignment;
        let at = self.now;
        let placed: Vec<_> = elements.iter().map(|element| ExecutionId { run, step, element }).collect();
        self.record(Fact::ExecutionsPlaced { run, step, attempt, elements, site, decision, at });
        for execution in placed {
            for object in self.want(site, execution) {
                if !self.is_at_hand(object, site) {
                    self.agenda.replan.insert(object.id);
                }
            }
        }
    }

    /// Writes the decision down, unless it is the last one again.
    pub(crate) fn decide(&mut self, run: RunId, step: StepIndex, assessments: &[Assessment]) -> u32 {
        let candidates = self.candidates();
        let known = &self.state.step(run, step).decisions;
        if let Some(last) = known.last() {
            let same = last.sites.len() == assessments.len()
                && last.sites.iter().zip(assessments).all(|(verdict, now)| verdict.feasible == now.obstacle.is_none());
            let one = assessments.iter().filter(|assessment| assessment.obstacle.is_none()).count() == 1;
            let recent = self.now.saturating_since(last.at) < DECISION_LIFETIME;
            if same && (one || recent || known.len() >= DECISIONS_MAX) {
                return u32::try_from(known.len() - 1).expect("few decisions");
            }
        }
        let number = u32::try_from(known.len()).expect("few decisions");
        let sites = placement::verdicts(assessments, &candidates);
        self.record(Fact::PlacementDecided { run, step, sites, at: self.now });
        number
    }

    /// Every site, as placement sees it.
    pub(crate) fn candidates(&self) -> Vec<Candidate<'_>> {
        let candidate = |(id, site): (&SiteId, &'_ crate::state::Site)| (*id, site.outstanding);
        let numbers: Vec<_> = self.state.sites.iter().map(candidate).collect();
        numbers
            .into_iter()
            .map(|(id, outstanding)| {
                let site = self.state.site(id);
                Candidate {
                    site: id,
                    name: &site.name,
                    labels: &site.labels,
                    capacity: site.capacity.as_ref(),
                    runtimes: &site.runtimes,
                    closed: self.site_closed(id),
                    outstanding,
                    batch_wait_seconds: self.sessions.batch_wait(id).map_or(0.0, |wait| wait.as_secs_f64()),
                }
            })
            .collect()
    }

    pub(crate) fn requirement<'a>(&self, run: &Run, step: &'a Step) -> Requirement<'a> {
        requirement(step, self.estimates.run_seconds(&run.workflow, step))
    }

    /// Looks at every site for executions that read these objects; `ahead` is the site where other inputs, which do not
    /// exist yet, will be.
    pub(crate) fn assess(
        &self,
        run: &Run,
        step: &Step,
        candidates: &[Candidate<'_>],
        objects: &[ObjectRef],
        ahead: Option<SiteId>,
    ) -> Vec<Assessment> {
        let wanted = self.requirement(run, step);
        placement::assess(candidates, &wanted, &mut |candidate| {
            let mut terms = self.data_terms(run, step, candidate, objects);
            if ahead.is_some_and(|site| site != candidate.site) {
                terms.missing_objects += 1;
            }
            terms
        })
    }

    pub(crate) fn assess_ahead(
        &self,
        run: &Run,
        step: StepIndex,
        site: SiteId,
        known: &[ObjectRef],
    ) -> Vec<Assessment> {
        let definition = run.grown_step(step, run.steps[step.index()].grown(0));
        let mut assessments = self.assess(run, &definition, &self.candidates(), known, Some(site));
        self.outlooks.lean(&mut assessments, run.id, step, 0);
        assessments
    }

    fn data_terms(&self, run: &Run, step: &Step, candidate: &Candidate<'_>, objects: &[ObjectRef]) -> DataTerms {
        let mut terms = DataTerms {
            bytes_per_second: self.estimates.bytes_per_second(candidate.site),
            obstacle: self
                .rule_obstacle(&run.plan, step, candidate)
                .or_else(|| self.state.refusal(run.id, step.index, candidate.site).map(ToString::to_string))
                .or_else(|| objects.iter().find_map(|object| self.publishing_veto(step, object.id))),
            ..DataTerms::default()
        };
        if terms.obstacle.is_some() {
            return terms;
        }
        for object in objects {
            match self.lack(*object, candidate.site) {
                Ok(false) => {}
                Ok(true) => {
                    self.add_missing(&mut terms, *object, candidate.site);
                }
                Err(obstacle) => {
                    terms.obstacle = Some(obstacle);
                    return terms;
                }
            }
        }
        let leaves = run.plan.steps[step.index.index()].successors.iter().any(|successor| {
            let selector = &run.workflow.step(*successor).site;
            !selector.admits(candidate.name, candidate.labels)
        });
        if leaves && !step.outputs.is_empty() {
            terms.leaving = true;
            terms.leaving_bytes = self.estimates.bytes_out(&run.workflow, step).unwrap_or(0.0);
        }
        terms
    }

    fn give_up_waiting(&mut self, run: RunId, step: StepIndex, message: &str) {
        let state = self.state.step(run, step);
        let mut elements = state.ready.clone();
        elements.insert_all(&state.again.keys().copied().collect());
        self.give_up(run, step, elements, message);
    }

    /// The executions cannot be carried out anywhere: they fail.
    pub(crate) fn give_up(&mut self, run: RunId, step: StepIndex, elements: ElementSet, message: &str) {
        let Some(first) = elements.first() else { return };
        let at = self.now;
        let message: Arc<str> = Arc::from(message);
        elements.iter().for_each(|element| self.agenda.unwant(ExecutionId { run, step, element }));
        let text = Arc::clone(&message);
        self.record(Fact::ExecutionsGivenUp { run, step, elements, cancelled: false, message: text, at });
        self.fail_for(ExecutionId { run, step, element: first }, &message);
        self.after_elements_ended(run, step);
    }
}

pub(crate) fn requirement(step: &Step, run_seconds: f64) -> Requirement<'_> {
    let runtime = match &step.work {
        Work::Script(_) | Work::Action(_) => Some("command"),
        Work::Export { .. } => Some(EXPORT_RUNTIME),
        Work::Python(_) => Some(PYTHON_RUNTIME),
        Work::Container(_) => Some(CONTAINER_RUNTIME),
        Work::Wasm(_) => Some(WASM_RUNTIME),
        Work::Import { .. } | Work::Null => None,
    };
    Requirement { selector: &step.site, resources: &step.resources, runtime, run_seconds }
}

/// Leaves a site out if another would do.
fn avoid_site(assessments: &mut [Assessment], avoid: SiteId) {
    let another = assessments.iter().any(|assessment| assessment.obstacle.is_none() && assessment.site != avoid);
    let avoided = assessments.iter_mut().find(|assessment| assessment.site == avoid && assessment.obstacle.is_none());
    if let Some(avoided) = avoided.filter(|_| another) {
        avoided.obstacle = Some("the last attempt failed there".to_owned());
    }
}
