//! Whose turn it is, and how much a site is given at a time.
//!
//! A site is given what it has room for, and as much again as keeps it busy for some seconds, so that it never waits for
//! a round trip and nobody waits long behind what it was given before. Who finds it full waits for it in a queue; as soon
//! as anybody waits there, everybody does, and gets room in turns.

use atoll_model::id::{RunId, SiteId, StepIndex};
use atoll_model::resources::{Capacity, Resources};

use crate::agenda::{Round, StepKey, Turn};
use crate::control_plane::ControlPlane;
use crate::engine::place::QUANTUM;
use crate::fair::Standing;
use crate::placement;
use crate::plan::Load;
use crate::state::Run;

/// What a site may have at least, however long it takes: once what it runs at a time, so that there is a next one.
const MACHINES_MIN: f64 = 2.0;
/// Executions of one turn, if there is room for so many: below it, commands would be small.
const TURN_MIN: u32 = 256;
/// Those who wait, as far as they make turns smaller.
const COMPETITORS_MAX: u32 = 64;

/// What a site has to do.
#[derive(Debug, Clone, Copy, Default)]
struct Burden {
    /// How often the whole of it would be filled.
    machines: f64,
    /// Until all of it has run, roughly.
    seconds: f64,
}

impl ControlPlane {
    pub(crate) fn standing(&self, run: &Run, step: StepIndex) -> Standing {
        let settings = self.state.projects.0.get(&*run.project);
        Standing {
            priority: run.priority_of(step),
            project: run.project.clone(),
            share: settings.map_or(1, |settings| settings.share),
        }
    }

    /// The step has executions that want a site.
    pub(crate) fn want_place(&mut self, run: RunId, step: StepIndex) {
        if let Some(known) = self.state.runs.get(&run) {
            self.agenda.place.push((run, step), known.priority_of(step));
        }
    }

    /// Steps that no site could run because of their data may have one now.
    pub(crate) fn wake_data(&mut self) {
        let woken = self.agenda.take_stuck(|_| false);
        woken.into_iter().for_each(|(run, step)| self.want_place(run, step));
    }

    fn burden(&self, site: SiteId) -> Burden {
        let site = self.state.site(site);
        let mut burden = Burden::default();
        for (load, count) in &site.loads {
            let machines = f64::from(*count) / f64::from(slots(site.capacity.as_ref(), *load));
            burden.machines += machines;
            burden.seconds += machines * self.estimates.seconds(load.kind);
        }
        burden
    }

    /// Until all that a site has to do has run, roughly.
    pub(crate) fn busy_seconds(&self, site: SiteId) -> f64 {
        self.burden(site).seconds
    }

    /// How many more executions of this kind a site is given.
    pub(crate) fn room(&self, site: SiteId, load: Load) -> u32 {
        let state = self.state.site(site);
        let (slots, burden) = (slots(state.capacity.as_ref(), load), self.burden(site));
        let by_number = slots.saturating_add(self.config.dispatch_ahead).saturating_sub(state.outstanding);
        let by_size = (MACHINES_MIN - burden.machines) * f64::from(slots);
        let seconds = self.estimates.seconds(load.kind).max(1e-9);
        let by_time = (self.config.dispatch_ahead_time.as_secs_f64() - burden.seconds) * f64::from(slots) / seconds;
        // Saturates; less than nothing is nothing.
        by_number.min(by_size.max(by_time).ceil() as u32)
    }

    /// Whether no execution of any kind has room at a site.
    fn is_full(&self, site: SiteId) -> bool {
        let Some(state) = self.state.sites.get(&site) else { return true };
        let burden = self.burden(site);
        let slots = placement::slots(state.capacity.as_ref(), &Resources::default());
        state.outstanding >= self.config.dispatch_ahead.saturating_add(slots)
            || (burden.machines >= MACHINES_MIN && burden.seconds >= self.config.dispatch_ahead_time.as_secs_f64())
    }

    /// Whether it is worth while to fill a site: if every execution that ends were followed by one, batches would be small.
    fn is_worth_filling(&self, site: SiteId) -> bool {
        let Some(full_at) = self.agenda.full_at.get(&site) else { return true };
        let outstanding = self.state.sites.get(&site).map_or(0, |site| site.outstanding);
        let some = (full_at.min(&self.config.dispatch_ahead) / 4).max(1);
        outstanding.saturating_add(some) <= *full_at
    }

    /// What a step may be given at a site now.
    pub(crate) fn room_in_turn(&self, site: SiteId, load: Load) -> u32 {
        match self.agenda.turn {
            Some(turn) if turn.site == site => self.room(site, load).min(turn.left),
            Some(_) | None if self.agenda.is_contended(site) => 0,
            Some(_) | None => self.room(site, load),
        }
    }

    /// The next step that is asked whether it wants a site: one that was not asked yet, then those that wait for room
    /// where there may be some.
    pub(crate) fn next_to_place(&mut self) -> Option<StepKey> {
        if self.is_held() {
            return None;
        }
        self.agenda.turn = None;
        if let Some(step) = self.agenda.place.pop() {
            return Some(step);
        }
        if let Some(step) = self.next_within_limits() {
            return Some(step);
        }
        while let Some(site) = self.agenda.roomy.first_key_value().map(|(site, _)| *site) {
            if let Some(step) = self.next_in_round(site) {
                return Some(step);
            }
            let round = self.agenda.roomy.remove(&site).unwrap_or_default();
            self.end_round(site, round);
        }
        None
    }

    /// Asks the next of those who wait for room at a site, each once.
    fn next_in_round(&mut self, site: SiteId) -> Option<StepKey> {
        let began = self.agenda.roomy.get(&site)?.began;
        if self.is_full(site) || !(began || self.is_worth_filling(site)) {
            return None;
        }
        let queue = self.agenda.room.get_mut(&site)?;
        let step = queue.pop(self.now)?;
        let others = u32::try_from(queue.len()).unwrap_or(u32::MAX).min(COMPETITORS_MAX);
        let load = self.state.runs.get(&step.0).map(|run| run.plan.steps[step.1.index()].load);
        let room = load.map_or(0, |load| self.room(site, load));
        let left = if others == 0 { QUANTUM } else { (room / (2 * (others + 1))).max(TURN_MIN.min(room / 4)).max(1) };
        self.agenda.roomy.get_mut(&site).expect("just seen").began = true;
        self.agenda.turn = Some(Turn { site, left });
        Some(step)
    }

    fn end_round(&mut self, site: SiteId, round: Round) {
        if round.began
            && let Some(state) = self.state.sites.get(&site)
        {
            self.agenda.full_at.insert(site, state.outstanding);
        }
        for (run, step) in round.held {
            self.queue_at(site, run, step);
        }
        if let Some(queue) = self.agenda.room.get_mut(&site) {
            queue.forget_shares();
        }
    }

    fn queue_at(&mut self, site: SiteId, run: RunId, step: StepIndex) {
        let Some(known) = self.state.runs.get(&run) else { return };
        let standing = self.standing(known, step);
        self.agenda.room.entry(site).or_default().push((run, step), &standing, self.now);
    }

    /// Nobody is given anything at this site any more: who waited there for room is asked anew.
    pub(crate) fn wait_elsewhere(&mut self, site: SiteId) {
        let held = self.agenda.roomy.remove(&site).map(|round| round.held).unwrap_or_default();
        let mut queue = self.agenda.room.remove(&site).unwrap_or_default();
        self.agenda.full_at.remove(&site);
        let waiting = std::iter::from_fn(|| queue.pop(self.now)).chain(held).collect::<Vec<_>>();
        waiting.into_iter().for_each(|(run, step)| self.want_place(run, step));
    }

    /// A step that was placed as far as there was room waits at these sites for more; `best` is where it would go first.
    pub(crate) fn wait_for_room(
        &mut self,
        (run, step): StepKey,
        sites: &[SiteId],
        best: Option<SiteId>,
        load: Load,
        given: u32,
    ) {
        let turn = self.agenda.turn.map(|turn| turn.site);
        for site in sites {
            let round = self.agenda.roomy.get_mut(site).filter(|_| turn == Some(*site) && given == 0);
            match round {
                // Others are asked before it is asked again.
                Some(round) => round.held.push((run, step)),
                None => self.queue_at(*site, run, step),
            }
            if self.room(*site, load) == 0 {
                self.agenda.full_at.insert(*site, self.state.site(*site).outstanding);
            }
        }
        if let Some(best) = best.filter(|best| turn != Some(*best) && self.room(*best, load) > 0) {
            self.agenda.ask_at(best);
        }
    }

    /// Executions of a step were given to a site.
    pub(crate) fn charge(&mut self, run: RunId, step: StepIndex, site: SiteId, count: u32) {
        if let Some(turn) = self.agenda.turn.as_mut().filter(|turn| turn.site == site) {
            turn.left = turn.left.saturating_sub(count);
        }
        if !self.agenda.room.contains_key(&site) {
            return;
        }
        let standing = self.standing(self.state.run(run), step);
        let now = self.now;
        if let Some(queue) = self.agenda.room.get_mut(&site) {
            queue.charge(run, &standing, count, now);
        }
    }
}

fn slots(capacity: Option<&Capacity>, load: Load) -> u32 {
    let resources =
        Resources { cpu_millis: load.cpu_millis.max(1), memory_bytes: load.memory_bytes, ..Resources::default() };
    placement::slots(capacity, &resources)
}
