//! Results that may be taken again: what executions of steps with `cache` have made, and who has taken it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use atoll_model::id::{Attempt, ExecutionId, ObjectId, RunId, SiteId, StepIndex};
use atoll_model::time::Timestamp;
use atoll_model::value::Value;
use serde::{Deserialize, Serialize};

use super::{Detail, Row, RowState, Source, State, Use, visit_with_parts};
use crate::fact::Fact;

/// Digest of everything that an execution does and sees, and of who may take what it makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ResultKey(pub(crate) [u8; 32]);

/// What an execution has made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct KnownResult {
    pub(crate) outputs: Arc<[Value]>,
    pub(crate) made_by: ExecutionId,
    pub(crate) site: SiteId,
    /// How long that took.
    pub(crate) took: Duration,
    pub(crate) until: Timestamp,
}

impl KnownResult {
    pub(crate) fn stored_bytes(&self) -> usize {
        self.outputs.iter().map(Value::stored_bytes).sum()
    }

    /// Its objects, with the files of directories that are listed.
    fn objects(&self) -> BTreeSet<ObjectId> {
        let mut objects = BTreeSet::new();
        for value in &*self.outputs {
            visit_with_parts(value, &mut |object, parts| {
                objects.extend(parts.iter().map(|part| part.id).chain([object.id]));
            });
        }
        objects
    }
}

/// Where an execution that did not run has its outputs from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TakenFrom {
    pub(crate) made_by: ExecutionId,
    /// How long it took to make them.
    pub(crate) took: Duration,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Results {
    known: BTreeMap<ResultKey, KnownResult>,
    /// Of runs that are remembered.
    taken: BTreeMap<RunId, BTreeMap<(StepIndex, u32), TakenFrom>>,
    /// What follows from the results: in how many each object is, in which order they end, and their bytes.
    #[serde(skip)]
    objects: BTreeMap<ObjectId, u32>,
    #[serde(skip)]
    by_end: BTreeSet<(Timestamp, ResultKey)>,
    #[serde(skip)]
    bytes: usize,
}

impl Results {
    pub(crate) fn get(&self, key: ResultKey) -> Option<&KnownResult> {
        self.known.get(&key)
    }

    pub(crate) fn taken(&self, execution: ExecutionId) -> Option<TakenFrom> {
        self.taken.get(&execution.run)?.get(&(execution.step, execution.element)).copied()
    }

    pub(crate) fn taken_by(&self, run: RunId) -> BTreeMap<(StepIndex, u32), TakenFrom> {
        self.taken.get(&run).cloned().unwrap_or_default()
    }

    /// Nothing but what one run has taken.
    pub(crate) fn of_run(run: RunId, taken: &BTreeMap<(StepIndex, u32), TakenFrom>) -> Self {
        Self { taken: BTreeMap::from([(run, taken.clone())]), ..Self::default() }
    }

    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    /// Of all values.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// In the order in which they end.
    pub(crate) fn by_end(&self) -> impl Iterator<Item = (Timestamp, ResultKey)> {
        self.by_end.iter().copied()
    }

    pub(super) fn holds(&self, object: ObjectId) -> bool {
        self.objects.contains_key(&object)
    }

    pub(super) fn forget_run(&mut self, run: RunId) {
        self.taken.remove(&run);
    }

    /// What was taken is made by the execution itself after all.
    pub(super) fn forget_taken(&mut self, execution: ExecutionId) {
        if let Some(taken) = self.taken.get_mut(&execution.run) {
            taken.remove(&(execution.step, execution.element));
            if taken.is_empty() {
                self.taken.remove(&execution.run);
            }
        }
    }

    /// Asserts that what is counted along is what follows from the results.
    pub(crate) fn check(&self) {
        let mut counted = self.clone();
        counted.restore_derived();
        assert_eq!(*self, counted, "results as counted");
    }

    pub(super) fn restore_derived(&mut self) {
        (self.objects, self.by_end, self.bytes) = Default::default();
        let known: Vec<ResultKey> = self.known.keys().copied().collect();
        known.into_iter().for_each(|key| self.count(key));
    }

    fn count(&mut self, key: ResultKey) {
        let result = &self.known[&key];
        self.by_end.insert((result.until, key));
        self.bytes += result.stored_bytes();
        for object in result.objects() {
            *self.objects.entry(object).or_default() += 1;
        }
    }

    fn keep(&mut self, key: ResultKey, result: KnownResult) -> Vec<ObjectId> {
        // Counted first, so that what is in both is in one all the time.
        let before = self.known.insert(key, result);
        self.count(key);
        before.map(|before| self.discount(key, &before)).unwrap_or_default()
    }

    fn drop(&mut self, key: ResultKey) -> Vec<ObjectId> {
        self.known.remove(&key).map(|dropped| self.discount(key, &dropped)).unwrap_or_default()
    }

    /// The objects that are in no result any more.
    fn discount(&mut self, key: ResultKey, gone: &KnownResult) -> Vec<ObjectId> {
        if self.known.get(&key).is_none_or(|now| now.until != gone.until) {
            self.by_end.remove(&(gone.until, key));
        }
        self.bytes -= gone.stored_bytes();
        let mut free = Vec::new();
        for object in gone.objects() {
            let count = self.objects.get_mut(&object).expect("it was counted");
            *count -= 1;
            if *count == 0 {
                self.objects.remove(&object);
                free.push(object);
            }
        }
        free
    }
}

impl State {
    #[expect(clippy::wildcard_enum_match_arm, reason = "`evolve` names every fact once")]
    pub(super) fn evolve_results(&mut self, fact: &Fact) {
        match fact {
            Fact::ResultsKept { run, step, results, until } => {
                for (element, key) in results {
                    self.keep_result(ExecutionId { run: *run, step: *step, element: *element }, *key, *until);
                }
            }
            Fact::ResultsDropped { keys } => {
                for key in keys {
                    self.results.drop(*key).into_iter().for_each(|object| self.drop_if_unknown(object));
                }
            }
            Fact::ExecutionsReused { run, step, results, at } => self.reuse(*run, *step, results, *at),
            _ => unreachable!("evolve hands over facts about results only"),
        }
    }

    fn keep_result(&mut self, execution: ExecutionId, key: ResultKey, until: Timestamp) {
        let step = &self.run(execution.run).steps[execution.step.index()];
        let row = *step.row(execution.element).expect("what has ended has a row");
        let outputs = step.details.get(&execution.element).map(|detail| Arc::from(detail.outputs.as_slice()));
        let took = row.finished_at.saturating_since(row.started_at);
        let outputs = outputs.unwrap_or_default();
        let result = KnownResult { outputs, made_by: execution, site: row.site, took, until };
        self.results.keep(key, result).into_iter().for_each(|object| self.drop_if_unknown(object));
    }

    /// The executions have ended with what others have made.
    fn reuse(&mut self, run_id: RunId, step_index: StepIndex, results: &[(u32, ResultKey)], at: Timestamp) {
        for (element, key) in results {
            let result = self.results.get(*key).expect("facts name results that are known").clone();
            let execution = ExecutionId { run: run_id, step: step_index, element: *element };
            let taken = TakenFrom { made_by: result.made_by, took: result.took };
            self.results.taken.entry(run_id).or_default().insert((step_index, *element), taken);
            let run = self.run_mut(run_id);
            let step = &mut run.steps[step_index.index()];
            step.ready.remove(*element);
            step.ended += 1;
            step.succeeded += 1;
            let (state, attempt, site) = (RowState::Succeeded, Attempt::FIRST, result.site);
            step.set_row(*element, Row { state, attempt, site, finished_at: at, ..Row::OPEN });
            if !result.outputs.is_empty() {
                let detail = Detail { outputs: result.outputs.to_vec(), ..Detail::default() };
                step.details.insert(*element, Box::new(detail));
            }
            if step.is_ended() {
                run.end_step(step_index);
            }
            for (output, value) in (0..u16::MAX).zip(&*result.outputs) {
                visit_with_parts(value, &mut |object, parts| {
                    self.note_object(object, Use { run: run_id, source: Source::Step(step_index), output }, &parts);
                    for id in parts.iter().map(|part| part.id).chain([object.id]) {
                        let known = self.objects.get_mut(&id).expect("just noted");
                        known.producer = known.producer.or(Some(execution));
                    }
                });
            }
        }
        self.run_mut(run_id).started_at.get_or_insert(at);
    }
}
