//! B6: the control plane was restored from a backup, so that others know more than it does.
//!
//! Every site is asked for what it has done since: it sends its reports again from where the backup ends, those included
//! that were acknowledged. Until each site has told, or is taken for lost, nothing is given out: what waits here may have
//! been done there. An attempt that the backup knows nothing of counts if its execution is still open.

use std::collections::BTreeSet;

use atoll_model::id::{Attempt, Epoch, ExecutionId, ReportSeq, RunId, SiteId, StepIndex};
use atoll_model::session::{FinishedElement, Hello, InventoryItem, LocalState, Outcome, Report, Verdict};
use atoll_model::time::Timestamp;

use crate::command::{Rejection, Response};
use crate::control_plane::ControlPlane;
use crate::fact::Fact;
use crate::state::{ActivePhase, Log, StepPhase};

/// An epoch above this one is not one that a control plane ever gave.
const EPOCH_MAX: Epoch = Epoch(1 << 62);

impl ControlPlane {
    /// A person says that the journal is a copy of an earlier time.
    pub(crate) fn note_restored(&mut self) -> Result<Response, Rejection> {
        self.set_back();
        Ok(Response::Done)
    }

    /// An agent has what this control plane never gave to it, or acknowledged: it is a copy of an earlier time. Says which
    /// session the agent knows.
    pub(crate) fn notice_set_back(&mut self, site: SiteId, known: Epoch, hello: &Hello) -> Epoch {
        let known = if known > EPOCH_MAX { Epoch(0) } else { known };
        let log = &self.state.site(site).log;
        let is_ahead = hello.last_command > log.last_command || hello.acknowledged_report > log.last_report;
        let is_later = known > self.state.site(site).epoch || (log.journal == Some(hello.journal) && is_ahead);
        if is_later && !self.state.catching_up.contains(&site) {
            self.set_back();
        }
        known
    }

    /// What a run may be called that is, or was, submitted under a name of its submitter's; the last is what it is called if
    /// it is not known yet. After a backup was restored that is another than before, for of a run that the backup lacks
    /// agents may still have attempts.
    pub fn names_of(&self, run: RunId) -> Vec<RunId> {
        let since = |at: &Timestamp| RunId::from_bits(run.bits() ^ (u128::from(at.0.unsigned_abs()) << 64));
        std::iter::once(run).chain(self.state.set_backs.iter().map(since)).collect()
    }

    fn set_back(&mut self) {
        let told = |site: &SiteId| self.sessions.by_site.contains_key(site);
        let sites = self.state.sites.iter().filter(|(_, site)| site.agent.is_some() && site.revoked.is_none());
        let sites: Vec<SiteId> = sites.map(|(site, _)| *site).filter(|site| !told(site)).collect();
        for site in &sites {
            if self.state.site(*site).lost.is_some() {
                // It may have come back after the time of the backup.
                self.wait_for(*site);
            }
        }
        self.record(Fact::SetBack { sites, at: self.now });
    }

    /// Sites that are still to say what they have done.
    fn awaited(&self) -> impl Iterator<Item = SiteId> + '_ {
        self.state
            .catching_up
            .iter()
            .copied()
            .filter(|site| self.state.sites.get(site).is_some_and(|site| site.lost.is_none() && site.revoked.is_none()))
    }

    /// Whether nothing may be given out.
    pub(crate) fn is_held(&self) -> bool {
        self.awaited().next().is_some()
    }

    /// Not for those that have no more to tell before it does.
    fn waits_for_others(&self, site: SiteId) -> bool {
        self.awaited().any(|awaited| awaited != site && !self.sessions.put_off.contains(&awaited))
    }

    /// What a site has to tell next is heard when others have told more.
    pub(crate) fn put_off(&mut self, site: SiteId) {
        self.sessions.put_off.insert(site);
        self.close_session(site);
    }

    /// Whether an attempt may have been made after the time of the backup.
    pub(crate) fn is_news(
        &self,
        site: SiteId,
        ExecutionId { run, step, element }: ExecutionId,
        attempt: Attempt,
    ) -> bool {
        if !self.state.catching_up.contains(&site) {
            return false;
        }
        let known = self.state.runs.get(&run).filter(|run| run.is_going_on());
        let Some(known) = known.and_then(|run| run.steps.get(step.index())) else { return false };
        let is_open = known.row(element).is_none() && !known.unknown.contains_key(&element);
        // A delegation that was given away since may have been handed back after the backup: what came of the step then has
        // numbers that count as used up.
        let next = known.next_attempt(element);
        let next = self.state.given_away_from(run, step).map_or(next, |first| next.min(first));
        known.phase == StepPhase::Expanded && element < known.count && is_open && attempt >= next
    }

    /// Whether it is to be the current one: not if another is as far.
    pub(crate) fn is_ahead(&self, execution: ExecutionId, attempt: Attempt) -> bool {
        let active = self.state.active(execution);
        active.is_none_or(|active| active.attempt < attempt || active.phase != ActivePhase::Running)
    }

    /// Makes an attempt that the backup knows nothing of the current one.
    pub(crate) fn take_in_news(
        &mut self,
        site: SiteId,
        execution: ExecutionId,
        attempt: Attempt,
        started_at: Option<Timestamp>,
    ) {
        let (run, step) = (execution.run, execution.step);
        if self.state.step(run, step).decisions.is_empty() {
            self.record(Fact::PlacementDecided { run, step, sites: Vec::new(), at: self.now });
        }
        self.adopt_attempt(execution, attempt, site, started_at);
    }

    /// What an agent names of a step that is not known to have begun is judged when its reports are in.
    pub(crate) fn is_judged_later(&self, site: SiteId, item: &InventoryItem) -> bool {
        self.state.catching_up.contains(&site) && self.has_not_begun(item.execution)
    }

    fn has_not_begun(&self, execution: ExecutionId) -> bool {
        let run = self.state.runs.get(&execution.run).filter(|run| run.is_going_on());
        let step = run.and_then(|run| run.steps.get(execution.step.index()));
        step.is_some_and(|step| step.phase == StepPhase::Waiting)
    }

    /// Of runs that were submitted after the backup nothing is known: their agents are told, so that a run that is
    /// submitted again under its key finds nothing of the first.
    pub(crate) fn forget_unknown_runs(&mut self, site: SiteId, items: &[InventoryItem]) {
        if !self.state.catching_up.contains(&site) {
            return;
        }
        let named: BTreeSet<RunId> = items.iter().map(|item| item.execution.run).collect();
        for run in named.into_iter().filter(|run| !self.state.runs.contains_key(run)).collect::<Vec<_>>() {
            self.record(Fact::ForgetOrdered { site, run });
        }
    }

    /// Whether a report tells of what follows from something that only another site knows: it is heard after that.
    pub(crate) fn comes_too_early(&mut self, site: SiteId, report: &Report) -> bool {
        let (Report::Started { run, step, .. } | Report::Finished { run, step, .. }) = report else { return false };
        if matches!(report, Report::Finished { elements, .. } if elements.iter().all(came_to_nothing)) {
            return false;
        }
        self.is_for_later(site, ExecutionId { run: *run, step: *step, element: 0 })
    }

    /// Whether what an execution follows from is still to be told by others. Where nobody has more to tell, it may have
    /// followed from results that were taken again, as they may be now.
    fn is_for_later(&mut self, site: SiteId, execution: ExecutionId) -> bool {
        while self.depends_on_others(site, execution) {
            if self.waits_for_others(site) {
                return true;
            }
            if !self.take_known_results(execution.run) {
                return false;
            }
            // What the others have to tell may follow from these.
            self.sessions.put_off.clear();
        }
        false
    }

    /// Ends executions of a run with results that are known, though nothing is given out yet; whether there were any.
    fn take_known_results(&mut self, run: RunId) -> bool {
        let mut taken = false;
        for step in self.steps_that_wait(run) {
            while self.steps_that_wait(run).contains(&step)
                && let Ok(shared) = self.caches.shared(self.state.run(run), step)
                && self.reuse(run, step, &shared)
            {
                taken = true;
            }
        }
        self.settle();
        taken
    }

    /// Steps of a run that have executions which wait for a site.
    fn steps_that_wait(&self, run: RunId) -> Vec<StepIndex> {
        let Some(known) = self.state.runs.get(&run).filter(|run| run.is_going_on()) else { return Vec::new() };
        let steps = known.workflow.steps.iter().map(|step| step.index);
        let waits = |step: &StepIndex| {
            let state = &known.steps[step.index()];
            state.phase == StepPhase::Expanded && state.has_waiting()
        };
        steps.filter(waits).collect()
    }

    /// All reports of the site are in; whether nothing that it has depends on what others have yet to tell.
    pub(crate) fn catch_up(&mut self, site: SiteId) -> bool {
        if !self.state.catching_up.contains(&site) {
            return true;
        }
        let session = self.sessions.by_site.get_mut(&site).expect("only a session is drained");
        let later = std::mem::take(&mut session.judged_later);
        if later.iter().any(|item| self.is_for_later(site, item.execution)) {
            return false;
        }
        for InventoryItem { execution, attempt, state } in later {
            let started_at = match state {
                LocalState::Accepted => None,
                LocalState::Running => Some(self.now),
                LocalState::Finished => continue,
            };
            let is_new = self.is_news(site, execution, attempt) || self.goes_along(site, execution);
            if is_new && self.is_ahead(execution, attempt) {
                self.take_in_news(site, execution, attempt, started_at);
            }
        }
        self.record(Fact::CaughtUp { site });
        self.sessions.put_off.clear();
        true
    }

    /// Whether what it follows from may be known elsewhere. What goes on at the site itself is told of there, in its turn: a
    /// follower may end before that has, as where the disk is full.
    fn depends_on_others(&self, site: SiteId, execution: ExecutionId) -> bool {
        self.has_not_begun(execution) && !self.goes_along(site, execution)
    }

    /// Whether it waits at the site for what goes on there.
    fn goes_along(&self, site: SiteId, execution: ExecutionId) -> bool {
        if !self.has_not_begun(execution) {
            return false;
        }
        let run = self.state.run(execution.run);
        let step = run.workflow.step(execution.step);
        let goes_on = |need: &atoll_model::id::StepIndex| {
            let needed = &run.steps[need.index()];
            needed.is_ended() || needed.active.get(&0).is_some_and(|active| active.site == site)
        };
        step.foreach.is_none() && step.needs.iter().all(goes_on)
    }

    /// An item that names an attempt which the backup knows nothing of.
    pub(crate) fn verdict_on_news(&mut self, site: SiteId, item: &InventoryItem) -> Option<Verdict> {
        if !self.is_news(site, item.execution, item.attempt) {
            return None;
        }
        if item.state == LocalState::Finished {
            // Its report follows, and says what became of it.
            return Some(Verdict::Keep);
        }
        if !self.is_ahead(item.execution, item.attempt) {
            return Some(Verdict::Cancel);
        }
        let started_at = (item.state == LocalState::Running).then_some(self.now);
        self.take_in_news(site, item.execution, item.attempt, started_at);
        Some(Verdict::Keep)
    }
}

/// Whether nothing comes of it, whatever it was to follow from: a follower may end so before that is tried again.
fn came_to_nothing(element: &FinishedElement) -> bool {
    matches!(element.outcome, Outcome::NotStarted { .. } | Outcome::Cancelled)
}

/// Up to where the reports of an agent are known whose journal is another one than was known, or has more in it.
pub(crate) fn known_reports(log: &Log, hello: &Hello, is_catching_up: bool) -> ReportSeq {
    if !is_catching_up || hello.first_report == ReportSeq(0) {
        return hello.acknowledged_report;
    }
    let has_all = hello.last_report.max(hello.acknowledged_report) >= log.last_report;
    let known = if log.journal == Some(hello.journal) && has_all { log.last_report } else { ReportSeq(0) };
    known.max(ReportSeq(hello.first_report.0 - 1))
}
