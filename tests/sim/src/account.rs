//! What crossed borders, beside what had to: each object once to each site that reads it and did not make it, once to the
//! bucket for all who fetch it from there, and what rules ask for. Who reads what is seen where processes start, what crossed
//! where bytes come over the wire: neither is asked of the cores.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use atoll_model::id::{ExecutionId, ObjectId, RunId};
use control_plane_core::FinishedRun;
use control_plane_core::view::{LedgerFilter, LedgerView, RunState};

use crate::history::{Crossing, History};
use crate::scenario::Scenario;
use crate::verdict::play;
use crate::world::World;

const BUCKET: &str = "bucket";
const CLIENT: &str = "client";
/// Until a site that can be reached has heard of a decision.
const NEWS: Duration = Duration::from_secs(1);

/// The borders that a world's objects have crossed.
#[derive(Debug, Default)]
pub struct Account {
    pub states: Vec<RunState>,
    pub crossings: u64,
    pub bytes: u64,
    /// The least with which all that was read could have been where it was.
    pub bytes_min: u64,
    /// Crossings from one site straight to another.
    pub direct: u64,
    /// Crossings that a rule asked for.
    pub by_rule: u64,
    /// Executions that were taken from the site that they had been given to.
    pub moved: u64,
    /// Crossings for executions that were taken from their site before they began, or whose run was over by then: nobody
    /// could know it when they began to cross.
    pub in_vain: Vec<String>,
    /// Crossings of what something else made by chance, where it was waited for, after it had begun to cross.
    pub coincidences: Vec<String>,
    pub bytes_in_vain: u64,
    /// Crossings that nothing asked for, and entries that are wrong.
    pub excess: Vec<String>,
}

/// Plays a scenario to its end and accounts for what crossed.
///
/// # Panics
/// When a promise is broken.
pub fn account(scenario: Scenario) -> Account {
    let mut world = World::new(scenario);
    play(&mut world);
    world.check_end();
    let mut account = Account { states: world.states(), ..Account::default() };
    account.moved = world.history.taken.len() as u64;
    let entries = world.entries();
    let reasons = Reasons::new(&world, &entries);
    account.weigh_crossings(&world.history, &reasons);
    account.check_entries(&world.history, &reasons, &entries);
    account
}

impl World {
    /// The ledger: the control plane's, and that of the runs that only the history knows.
    pub(crate) fn entries(&self) -> Vec<LedgerView> {
        let core = self.leading_core().expect("one leads when all is quiet");
        let forgotten = self.kept_runs.iter().filter(|(run, _)| core.run(**run).is_none());
        let of_history = forgotten.map(|(_, run)| FinishedRun::open(run).ledger(&LedgerFilter::default()));
        core.ledger(&LedgerFilter::default()).into_iter().chain(of_history.flatten()).collect()
    }
}

/// Why an object may be on its way.
struct Reasons<'a> {
    history: &'a History,
    /// For whom each object crossed to each place, as the ledger has it.
    entered_for: BTreeMap<(ObjectId, String), Vec<ExecutionId>>,
}

impl<'a> Reasons<'a> {
    fn new(world: &'a World, entries: &[LedgerView]) -> Self {
        let mut entered_for: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for entry in entries {
            entered_for.entry((entry.object, entry.to.clone())).or_default().extend(entry.for_execution);
        }
        Self { history: &world.history, entered_for }
    }

    fn readers(&self, object: ObjectId, site: &str) -> impl Iterator<Item = ExecutionId> {
        self.history.reads.get(&(object, site.to_owned())).into_iter().flatten().copied()
    }

    /// How often the object has a reason to come to the bucket: for the runs that read it at a site that has it from there,
    /// or have a rule that wants it there, once for each step that made it. What one step made may be gone from the bucket
    /// before another makes the same, for nobody could know that it would; and it may be gone before a reader is made again.
    fn stays_in_bucket(&self, object: ObjectId) -> u64 {
        let fetched = self.history.moved.iter().filter(|moved| moved.object == object && moved.from == BUCKET);
        let readers: BTreeSet<ExecutionId> = fetched.flat_map(|moved| self.readers(object, &moved.to)).collect();
        let made_again: usize = readers.iter().filter_map(|reader| self.history.made_again.get(reader)).sum();
        let by_rule = self.history.eager.get(&object).into_iter().flatten();
        let runs: BTreeSet<RunId> = readers.iter().map(|reader| reader.run).chain(by_rule.copied()).collect();
        let makers = self.history.makers.get(&object).into_iter().flatten();
        let makers = makers.filter(|(run, _)| runs.contains(run)).count();
        (makers.max(usize::from(!runs.is_empty())) + made_again) as u64
    }

    /// When an execution was taken from a site, or its run was broken off.
    fn taken_at(&self, execution: ExecutionId) -> Option<Duration> {
        let step = (execution.run, execution.step);
        let taken = [
            self.history.taken.get(&execution),
            self.history.taken_steps.get(&step),
            self.history.broken_off.get(&execution.run),
        ];
        taken.into_iter().flatten().max().copied()
    }

    /// Whether something else made the object at a site where an execution waited for it.
    fn was_made_meanwhile(&self, crossing: &Crossing, execution: ExecutionId) -> bool {
        let read =
            self.history.reads.iter().filter(|((object, _), by)| *object == crossing.object && by.contains(&execution));
        let mut made = read.filter_map(|(read, _)| self.history.made_at.get(read));
        crossing.to == BUCKET && made.any(|made| crossing.began < *made + NEWS)
    }

    /// For whom an object crossed to a place.
    fn readers_entered(&self, crossing: &Crossing) -> &[ExecutionId] {
        self.entered_for.get(&(crossing.object, crossing.to.clone())).map_or(&[], Vec::as_slice)
    }

    /// How many of an object's crossings to a place were for what was known to be over only after they had begun: no more
    /// than executions that they were for and that were taken away.
    fn in_vain(&self, crossings: &[&Crossing]) -> usize {
        let Some(first) = crossings.first() else { return 0 };
        let taken = || self.readers_entered(first).iter().filter_map(|execution| self.taken_at(*execution));
        let unknowing = crossings.iter().filter(|crossing| taken().any(|taken| crossing.began < taken + NEWS)).count();
        unknowing.min(taken().count())
    }

    fn is_coincidence(&self, crossing: &Crossing) -> bool {
        self.readers_entered(crossing).iter().any(|execution| self.was_made_meanwhile(crossing, *execution))
    }
}

impl Account {
    fn weigh_crossings(&mut self, history: &History, reasons: &Reasons<'_>) {
        let mut by_way: BTreeMap<(ObjectId, &str), Vec<&Crossing>> = BTreeMap::new();
        for crossing in history.moved.iter().filter(|crossing| crossing.from != CLIENT) {
            by_way.entry((crossing.object, crossing.to.as_str())).or_default().push(crossing);
            self.crossings += 1;
            self.bytes += crossing.bytes;
            self.direct += u64::from(crossing.from != BUCKET && crossing.to != BUCKET);
        }
        for ((object, to), crossings) in by_way {
            let whole = crossings.iter().map(|crossing| crossing.bytes).sum::<u64>();
            let size = crossings.iter().map(|crossing| crossing.bytes).max().unwrap_or(0);
            let needed = if to == BUCKET {
                reasons.stays_in_bucket(object)
            } else {
                let made = history.made_at.get(&(object, to.to_owned()));
                let late = crossings.iter().all(|crossing| made.is_none_or(|made| crossing.began < *made));
                u64::from(late && reasons.readers(object, to).next().is_some())
            };
            let times = crossings.len() as u64;
            self.bytes_min += size * needed.min(times);
            if times <= needed {
                continue;
            }
            let text = format!(
                "{object} crossed to {to} {times} times ({whole} bytes), {needed} needed: {crossings:?}, made by {:?}",
                history.makers.get(&object)
            );
            let too_many = crossings.len() - usize::try_from(needed).unwrap_or(usize::MAX);
            if reasons.in_vain(&crossings) >= too_many {
                self.in_vain.push(text);
            } else if too_many == 1 && crossings.iter().any(|crossing| reasons.is_coincidence(crossing)) {
                self.coincidences.push(text);
            } else {
                self.excess.push(text);
                continue;
            }
            self.bytes_in_vain += size * too_many as u64;
        }
        for ((object, site), readers) in &history.reads {
            let came = history.moved.iter().any(|crossing| crossing.object == *object && crossing.to == *site);
            if !came && !history.made_at.contains_key(&(*object, site.clone())) {
                self.excess.push(format!("{object} was read at {site} by {readers:?}, and never came there"));
            }
        }
    }

    /// Every crossing has one entry, which says rightly how many bytes crossed, by which way, for whom and by which rule.
    fn check_entries(&mut self, history: &History, reasons: &Reasons<'_>, entries: &[LedgerView]) {
        let mut entered: BTreeMap<(ObjectId, &str, &str), Vec<u64>> = BTreeMap::new();
        for entry in entries.iter().filter(|entry| entry.from != CLIENT && entry.to != CLIENT) {
            let key = (entry.object, entry.from.as_str(), entry.to.as_str());
            entered.entry(key).or_default().push(entry.bytes);
            if let Some(wrong) = self.what_is_wrong(history, reasons, entry) {
                self.excess.push(format!("{wrong}: {entry:?}"));
            }
        }
        let mut crossed: BTreeMap<(ObjectId, &str, &str), Vec<u64>> = BTreeMap::new();
        for crossing in history.moved.iter().filter(|crossing| crossing.from != CLIENT) {
            let key = (crossing.object, crossing.from.as_str(), crossing.to.as_str());
            crossed.entry(key).or_default().push(crossing.bytes);
        }
        if entered != crossed {
            self.excess.push(format!("the ledger has\n{entered:?}\nand what crossed is\n{crossed:?}"));
        }
    }

    fn what_is_wrong(&mut self, history: &History, reasons: &Reasons<'_>, entry: &LedgerView) -> Option<&'static str> {
        let is_direct = entry.from != BUCKET && entry.to != BUCKET;
        if entry.route != if is_direct { "direct" } else { "bucket" } {
            return Some("the way is another");
        }
        let Some(execution) = entry.for_execution else { return Some("it is not said for whom") };
        let is_by_rule = entry.rule != "when-needed";
        self.by_rule += u64::from(is_by_rule);
        if is_by_rule && !history.eager.get(&entry.object).is_some_and(|runs| runs.contains(&execution.run)) {
            return Some("no rule asks for it");
        }
        let reads_at = |site: &str| reasons.readers(entry.object, site).any(|reader| reader == execution);
        let is_read = if entry.to == BUCKET {
            let fetched = history.moved.iter().filter(|moved| moved.object == entry.object && moved.from == BUCKET);
            is_by_rule || fetched.into_iter().any(|moved| reads_at(&moved.to))
        } else {
            reads_at(&entry.to)
        };
        // It may have begun for an execution that was taken away since, and be read by another.
        let was_given = reasons.taken_at(execution).is_some();
        let is_made_meanwhile = || {
            let mut crossings =
                history.moved.iter().filter(|moved| moved.object == entry.object && moved.to == entry.to);
            crossings.any(|crossing| reasons.was_made_meanwhile(crossing, execution))
        };
        (!is_read && !was_given && !is_made_meanwhile()).then_some("whom it is for does not read it there")
    }
}
