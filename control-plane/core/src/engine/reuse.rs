//! Results that are taken again: an execution of a step with `cache` that would do what another has done, with the same
//! inputs, ends with what that one has made, wherever that is, unless making it anew would be faster than fetching it.
//!
//! What is the same is decided by a digest: of what is carried out and what it sees, of the project, and of all rules that
//! keep data from anywhere, so that what was made under others is not taken.

use atoll_model::digest::Digester;
use atoll_model::id::{ObjectId, RunId, SiteId, StepIndex};
use atoll_model::limits::{RESULTS_BYTES_MAX, RESULTS_MAX};
use atoll_model::policy::{Confine, KeyScope, Location, PolicyMatch};
use atoll_model::session::{Binding, BindingSource, FinishedElement, Outcome};
use atoll_model::value::ObjectRef;
use atoll_model::workflow::{Output, Step};
use storage_sync_core::Reach;
use storage_sync_core::policy::RuleId;

use super::place::QUANTUM;
use crate::agenda::Timer;
use crate::caches::Shared;
use crate::control_plane::ControlPlane;
use crate::fact::{Fact, ResultKey};
use crate::placement::{BANDWIDTH_DEFAULT, TRANSFER_SECONDS, permanent_obstacle};
use crate::rules::DataRules;
use crate::state::{BucketState, KnownResult, ObjectState, Run, Source};
use crate::view::ExecutionState;

impl ControlPlane {
    /// Ends executions that wait for a site with results that are known; whether there were any. Each is looked up once.
    pub(crate) fn reuse(&mut self, run_id: RunId, step: StepIndex, shared: &Shared) -> bool {
        let run = self.state.run(run_id);
        let definition = run.workflow.step(step);
        if !definition.cache.is_some_and(|cache| cache.takes) {
            return false;
        }
        let Some(stem) = stem(run, definition, shared) else { return false };
        let looked_up = self.agenda.looked_up.entry((run_id, step)).or_default();
        let mut elements = run.steps[step.index()].ready.clone().take_first(QUANTUM);
        elements.remove_all(looked_up);
        looked_up.insert_all(&elements);
        let mut taken = Vec::new();
        for element in elements.iter() {
            let Some(key) = self.result_key(run, step, element, &stem) else { continue };
            let Some(result) = self.state.results.get(key).filter(|result| result.until > self.now) else { continue };
            if self.may_take(run, step, result) && self.is_worth_fetching(run, definition, result, &shared.objects) {
                taken.push((element, key));
            }
        }
        if taken.is_empty() {
            return false;
        }
        *self.counters.executions_ended.entry(ExecutionState::Succeeded).or_default() += taken.len() as u64;
        self.counters.executions_reused += taken.len() as u64;
        let results = taken.iter().filter_map(|(_, key)| self.state.results.get(*key));
        let objects: Vec<ObjectId> = results.flat_map(objects_of).map(|object| object.id).collect();
        let wants_copies = run.plan.rules.want_copies();
        self.record(Fact::ExecutionsReused { run: run_id, step, results: taken, at: self.now });
        if wants_copies {
            self.agenda.to_copy.extend(objects.iter().copied());
        }
        // What lies in the bucket has one more who may want it to stay there.
        self.agenda.sweep.extend(objects);
        self.after_elements_ended(run_id, step);
        self.continue_frontier(run_id);
        true
    }

    /// Keeps what executions have made, to be taken by others.
    pub(super) fn keep_results(&mut self, run_id: RunId, step: StepIndex, made: &[u32]) {
        let run = self.state.run(run_id);
        let definition = run.workflow.step(step);
        let Some(cache) = definition.cache else { return };
        let Ok(shared) = self.caches.shared(run, step) else { return };
        let Some(stem) = stem(run, definition, &shared) else { return };
        let keyed = |element: &u32| Some((*element, self.result_key(run, step, *element, &stem)?));
        let results: Vec<_> = made.iter().filter_map(keyed).collect();
        if results.is_empty() {
            return;
        }
        let until = self.now + cache.lasts;
        self.record(Fact::ResultsKept { run: run_id, step, results, until });
        self.drop_results();
    }

    /// Lets go of what has ended, and of what ends first where there is too much.
    pub(crate) fn drop_results(&mut self) {
        let results = &self.state.results;
        let (mut excess, mut excess_bytes) =
            (results.len().saturating_sub(RESULTS_MAX), results.bytes().saturating_sub(RESULTS_BYTES_MAX));
        let mut keys = Vec::new();
        let mut next = None;
        for (until, key) in results.by_end() {
            if until > self.now && excess == 0 && excess_bytes == 0 {
                next = Some(until);
                break;
            }
            excess = excess.saturating_sub(1);
            excess_bytes = excess_bytes.saturating_sub(results.get(key).map_or(0, KnownResult::stored_bytes));
            keys.push(key);
        }
        if !keys.is_empty() {
            self.record(Fact::ResultsDropped { keys });
        }
        if let Some(next) = next {
            self.agenda.set(next, Timer::Results);
        }
    }

    /// Nothing if an input of the element has no value.
    fn result_key(&self, run: &Run, step: StepIndex, element: u32, stem: &Digester) -> Option<ResultKey> {
        let mut digester = stem.clone();
        digester.add(&self.caches.own(run, step, element).ok()?)?;
        Some(ResultKey(digester.finish()))
    }

    /// Whether all of it is there, and only where the rules of the run let it be.
    fn may_take(&self, run: &Run, step: StepIndex, result: &KnownResult) -> bool {
        let mut may = true;
        for (output, value) in (0..u16::MAX).zip(&*result.outputs) {
            value.visit_objects(&mut |object| {
                let said = run.plan.rules_on(&run.workflow, Source::Step(step), output, object);
                let known = self.state.objects.get(&object.id);
                may &= known.is_some_and(|known| {
                    self.can_be_had(known) && said.is_none_or(|said| self.is_where_it_may_be(run, &said, known))
                });
            });
        }
        may
    }

    fn can_be_had(&self, known: &ObjectState) -> bool {
        self.state.bucket_state(known) == BucketState::Present
            || known.sites.iter().any(|site| self.reach(*site) != Reach::Gone)
    }

    /// Whether it is not, and is not on its way to, where the rules of the run would keep it from.
    fn is_where_it_may_be(&self, run: &Run, said: &DataRules, known: &ObjectState) -> bool {
        let is_kept_away = |site: &SiteId| {
            let at = self.state.sites.get(site).map(|site| Location { name: &site.name, labels: &site.labels });
            at.is_some_and(|at| run.plan.rules.keeping_away(&said.confined_by, at).is_some())
        };
        let in_bucket = known.bucket != BucketState::Absent || known.within.is_some() || known.transfer.is_some();
        let is_copied = self.state.copying(known.reference.id).next().is_some();
        !known.sites.iter().any(is_kept_away)
            && !(in_bucket && (said.bucket.is_some() || said.encrypt.is_some()))
            && (!is_copied || said.confined_by.is_empty())
    }

    /// Whether it is nearer than it is long to make: what is not at any site where the step may run is fetched by whoever
    /// reads it there.
    fn is_worth_fetching(&self, run: &Run, definition: &Step, result: &KnownResult, inputs: &[ObjectRef]) -> bool {
        let candidates = self.candidates();
        let wanted = self.requirement(run, definition);
        let admitted = candidates.iter().filter(|candidate| permanent_obstacle(candidate, &wanted).is_none());
        let admitted: Vec<SiteId> = admitted.map(|candidate| candidate.site).collect();
        let mut fetching = 0.0;
        for object in objects_of(result) {
            let Some(known) = self.state.objects.get(&object.id) else { continue };
            if known.sites.iter().any(|site| admitted.contains(site)) {
                continue;
            }
            let rates = known.sites.iter().map(|site| self.estimates.bytes_per_second(*site));
            let rate = rates.fold(0.0, f64::max);
            let rate = if rate > 0.0 { rate } else { BANDWIDTH_DEFAULT };
            fetching += TRANSFER_SECONDS + object.bytes as f64 / rate;
        }
        if fetching == 0.0 {
            return true;
        }
        let making = self.assess(run, definition, &candidates, inputs, None);
        let making = making.iter().filter(|assessment| assessment.obstacle.is_none());
        let soonest = making.map(|assessment| assessment.wait_seconds(0));
        let soonest = soonest.min_by(f64::total_cmp);
        // Where it cannot be made now, what is there is nearer in any case.
        soonest.is_none_or(|seconds| fetching <= seconds + result.took.as_secs_f64())
    }
}

/// Those among elements of which what they made may be taken.
pub(super) fn succeeded(elements: &[FinishedElement]) -> Vec<u32> {
    let made = elements.iter().filter(|finished| finished.outcome == Outcome::Succeeded);
    made.map(|finished| finished.element).collect()
}

fn objects_of(result: &KnownResult) -> Vec<ObjectRef> {
    let mut objects = Vec::new();
    result.outputs.iter().for_each(|value| value.visit_objects(&mut |object| objects.push(object)));
    objects
}

/// What the executions of a step have in common that tells them from others. Nothing is the same as what cannot be encoded.
fn stem(run: &Run, definition: &Step, shared: &Shared) -> Option<Digester> {
    let mut digester = Digester::new("atoll 2026-11 key of a result");
    let command = definition.work.action().map_or(&[][..], |action| &action.command);
    let environment: Vec<_> = definition.environment.iter().collect();
    let output = |(name, output): (_, &Output)| (name, output.r#type.clone(), output.optional, output.listed);
    let outputs: Vec<_> = definition.outputs.iter().map(output).collect();
    let input = |binding: &'_ Binding| match &binding.source {
        BindingSource::Value(value) => Some((binding.name.clone(), value.clone())),
        BindingSource::Output { .. } => None,
    };
    let inputs: Vec<_> = shared.bindings.iter().filter_map(input).collect();
    digester.add(&(&*run.project, definition.version(), command, environment, outputs, inputs))?;
    digester.add(&kept_from(run, definition.index))?;
    Some(digester)
}

/// What keeps the outputs of a step from anywhere. What depends on their size is not known before, so all of it counts.
fn kept_from(run: &Run, step: StepIndex) -> Vec<(Option<&PolicyMatch>, Option<&Confine>, Option<KeyScope>)> {
    let rules = &run.plan.rules;
    let said = |rule: &RuleId| {
        let rule = rules.rule(*rule)?;
        Some((None, rule.confine.as_ref(), rule.encrypt))
    };
    let outputs = run.plan.steps[step.index()].outputs.iter();
    let mut all: Vec<_> =
        outputs.flat_map(|output| output.confined_by.iter().chain(&output.encrypt)).filter_map(said).collect();
    if rules.sized {
        let all_rules = rules.layers().into_iter().flat_map(|layer| layer.rules);
        all.extend(all_rules.map(|rule| (Some(&rule.matches), rule.confine.as_ref(), rule.encrypt)));
    }
    all
}
