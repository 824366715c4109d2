//! The core itself: how an event becomes a step.

use atoll_model::id::{RunId, SiteId, StepIndex};
use atoll_model::time::Timestamp;

use crate::agenda::{Agenda, StepKey, Timer};
use crate::caches::Caches;
use crate::command::{Command, Rejection, Response};
use crate::direct::Direct;
use crate::estimates::Estimates;
use crate::event::{Config, Event, RequestId};
use crate::fact::Fact;
use crate::outlook::Outlooks;
use crate::sessions::Sessions;
use crate::state::{ActivePhase, BucketState, Phase, Snapshot, State, StepPhase};
use crate::view::Counters;

/// What follows from an event: facts to make durable, then commands to carry out. The facts of one step are appended
/// together: all of them are found again, or none.
#[must_use]
#[derive(Debug, Clone, Default)]
pub struct Step {
    pub facts: Vec<Fact>,
    pub commands: Vec<Command>,
}

/// Decides for all runs and all sites.
#[derive(Debug)]
pub struct ControlPlane {
    pub(crate) config: Config,
    pub(crate) state: State,
    pub(crate) sessions: Sessions,
    pub(crate) agenda: Agenda,
    pub(crate) caches: Caches,
    pub(crate) estimates: Estimates,
    pub(crate) outlooks: Outlooks,
    pub(crate) direct: Direct,
    pub(crate) counters: Counters,
    /// When this process began to decide.
    pub(crate) started_at: Timestamp,
    /// The time of the event that is being handled.
    pub(crate) now: Timestamp,
    step: Step,
}

impl ControlPlane {
    /// Rebuilds the state from a checkpoint and everything decided since. Nothing at all is a first start.
    ///
    /// What must be asked for again (deletions from the bucket) is asked for at the first
    /// [`Event::TimeoutElapsed`], which [`Self::next_timeout`] wants at once.
    pub fn recover(
        config: Config,
        snapshot: Option<Snapshot>,
        facts: impl IntoIterator<Item = Fact>,
        now: Timestamp,
    ) -> Self {
        let mut state = snapshot.map(|snapshot| snapshot.0).unwrap_or_default();
        state.restore_derived();
        for fact in facts {
            state.evolve(&fact);
        }
        let mut core = Self {
            config,
            state,
            sessions: Sessions::default(),
            agenda: Agenda::default(),
            caches: Caches::default(),
            estimates: Estimates::default(),
            outlooks: Outlooks::default(),
            direct: Direct::default(),
            counters: Counters::default(),
            started_at: now,
            now,
            step: Step::default(),
        };
        core.rebuild_agenda();
        core.tolerate_all();
        core
    }

    /// Takes in what another control plane has decided, so that the views show it. One that follows decides nothing itself:
    /// it handles no event before [`Self::take_over`].
    pub fn follow(&mut self, facts: impl IntoIterator<Item = Fact>) {
        for fact in facts {
            self.state.evolve(&fact);
        }
        self.caches = Caches::default();
    }

    /// Begins to decide where the one that was followed has stopped.
    pub fn take_over(self, config: Config, now: Timestamp) -> Self {
        Self::recover(config, Some(Snapshot(self.state)), [], now)
    }

    /// Takes in one event and returns everything that follows from it.
    pub fn handle(&mut self, event: Event, now: Timestamp) -> Step {
        // Clocks may step back; deadlines are compared with what was seen before.
        self.now = self.now.max(now);
        match event {
            Event::Request { request, body } => self.request(request, body),
            Event::FrameReceived { connection, agent, frame } => self.frame(connection, agent, frame),
            Event::ConnectionLost { connection } => self.connection_lost(connection),
            Event::BucketObjectDeleted { object } => self.bucket_object_deleted(object),
            Event::BucketObjectSeen { object, transfer, present } => self.bucket_object_seen(object, transfer, present),
            Event::RunKept { run } => self.run_kept(run),
            Event::TimeoutElapsed => {}
        }
        while let Some(timer) = self.agenda.take_elapsed(self.now) {
            self.elapsed(timer);
        }
        self.agenda.looks = 0;
        self.settle();
        self.tolerate_less();
        self.flush();
        std::mem::take(&mut self.step)
    }

    /// When to handle [`Event::TimeoutElapsed`], if nothing happens before.
    pub fn next_timeout(&self) -> Option<Timestamp> {
        self.agenda.first_timer()
    }

    /// The whole durable state. Cheap: runs are shared until they change.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.state.clone())
    }

    pub(crate) fn record(&mut self, fact: Fact) {
        self.state.evolve(&fact);
        self.loosen(&fact);
        self.step.facts.push(fact);
    }

    pub(crate) fn command(&mut self, command: Command) {
        self.step.commands.push(command);
    }

    pub(crate) fn reply(&mut self, request: RequestId, result: Result<Response, Rejection>) {
        self.command(Command::Reply { request, result });
    }

    fn elapsed(&mut self, timer: Timer) {
        match timer {
            Timer::Retry(run, step) => self.want_place(run, step),
            Timer::Liveness(site) => self.look_at_silence(site),
            Timer::Object(object) => self.look_at_object(object),
            Timer::Retire(run) => self.retire(run),
            Timer::Claim(claim) => self.lapse(claim),
            Timer::Expire(run) => self.look_at_expiry_of(run),
            Timer::Expired => self.look_at_expired_again(),
            Timer::ExpiredAt(site) => self.ask_for_expired(site),
            Timer::Results => self.drop_results(),
            Timer::LastCopies => self.agenda.sweep.extend(self.agenda.last_copies.take()),
            Timer::Copies => self.agenda.to_copy.extend(self.agenda.lacking.take()),
            Timer::Wake => self.retire_beyond_memory(),
            Timer::Repositories => self.look_at_schedule(),
        }
    }

    /// Works off the agenda until nothing follows from anything any more.
    pub(crate) fn settle(&mut self) {
        loop {
            if let Some((run, step)) = self.agenda.expand.pop_front() {
                self.expand(run, step);
            } else if let Some((run, step)) = self.next_to_chain() {
                self.dispatch_ahead(run, step);
            } else if let Some(object) = self.agenda.replan.pop_first() {
                self.replan(object);
            } else if !self.agenda.arrived.is_empty() && !self.is_held() {
                self.dispatch_arrived();
            } else if let Some((run, step)) = self.next_to_place() {
                self.place(run, step);
            } else if let Some(object) = self.agenda.unwanted.pop_first() {
                self.call_back(object);
            } else if let Some(run) = self.agenda.ending.pop_first() {
                self.end_if_over(run);
            } else if let Some(object) = self.agenda.to_copy.pop_first() {
                self.make_copies(object);
            } else if !self.agenda.to_expire.is_empty() {
                self.look_at_expiry();
            } else if let Some(object) = self.agenda.sweep.pop_first() {
                self.sweep(object);
            } else if let Some(tree) = self.agenda.sweep_around.pop_first() {
                self.sweep(tree);
            } else {
                break;
            }
        }
    }

    fn next_to_chain(&mut self) -> Option<StepKey> {
        if self.agenda.chain.is_empty() || self.is_held() { None } else { self.agenda.chain.pop_front() }
    }

    fn rebuild_agenda(&mut self) {
        self.state.sites.keys().copied().collect::<Vec<_>>().into_iter().for_each(|site| self.wait_for(site));
        for (id, object) in &self.state.objects {
            if object.bucket != BucketState::Absent {
                self.agenda.set(self.now, Timer::Object(*id));
            }
            if object.bucket == BucketState::Deleting {
                self.agenda.deleted_before.insert(*id);
            }
        }
        let claims: Vec<_> = self.state.claims.ids().collect();
        claims.into_iter().for_each(|claim| self.look_when_lapsed(claim));
        if self.state.results.len() > 0 {
            self.agenda.set(self.now, Timer::Results);
        }
        self.set_schedule();
        let runs: Vec<RunId> = self.state.runs.keys().copied().collect();
        let mut active: Vec<(SiteId, RunId, StepIndex, u32)> = Vec::new();
        for id in runs {
            let run = std::sync::Arc::clone(&self.state.runs[&id]);
            if let Phase::Ended(_) = run.phase {
                self.note_finished(id);
                continue;
            }
            self.agenda.ending.insert(id);
            for (index, step) in (0..=u16::MAX).map(StepIndex).zip(&run.steps) {
                match step.phase {
                    StepPhase::Waiting if step.needs_left == 0 => self.agenda.expand.push_back((id, index)),
                    StepPhase::Waiting => self.agenda.chain.push_back((id, index)),
                    StepPhase::Expanded => {
                        if step.has_waiting() {
                            self.agenda.place.push((id, index), run.priority_of(index));
                        }
                        active.extend(step.active.iter().map(|(element, active)| (active.site, id, index, *element)));
                        let placed = step.active.iter().filter(|(_, active)| active.phase == ActivePhase::Placed);
                        for (element, _) in placed {
                            let execution = atoll_model::id::ExecutionId { run: id, step: index, element: *element };
                            self.agenda.arrived.insert(execution);
                        }
                    }
                    StepPhase::Skipped | StepPhase::Cancelled => {}
                }
            }
        }
        self.look_at_all_copies();
        for (site, run, step, element) in active {
            self.want(site, atoll_model::id::ExecutionId { run, step, element });
        }
        let wanted: Vec<_> = self.agenda.wants.objects().collect();
        self.agenda.replan.extend(wanted);
        if !self.state.runs.is_empty() {
            // Whatever was decided and not followed up is followed up at once.
            self.agenda.set(self.now, Timer::Wake);
        }
    }
}
