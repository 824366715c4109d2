//! Reports of agents, each applied exactly once: the position of the last one moves in the step of its effects.

use atoll_model::id::{ExecutionId, ReportSeq, SiteId};
use atoll_model::session::{ControlBody, Report, StartedElement};

use crate::control_plane::ControlPlane;
use crate::fact::Fact;
use crate::sessions::SessionPhase;
use crate::state::{Active, ActivePhase};

impl ControlPlane {
    pub(crate) fn reports(&mut self, site: SiteId, first: ReportSeq, reports: Vec<Report>) {
        let session = self.sessions.by_site.get(&site).expect("frames are heard in sessions");
        let last = self.state.site(site).log.last_report;
        if first > last.next() || session.phase == SessionPhase::AwaitingInventory {
            // C3: something is missing before these. The next session says from where to send again.
            return self.close_session(site);
        }
        let agent = session.agent;
        let known = usize::try_from(last.next().0 - first.0).unwrap_or(usize::MAX);
        let mut through = last;
        let mut comes_too_early = false;
        for report in reports.into_iter().skip(known) {
            if self.state.catching_up.contains(&site) {
                // What a report brings about is known before the next one is looked at.
                self.settle();
                comes_too_early = self.comes_too_early(site, &report);
                if comes_too_early {
                    break;
                }
            }
            through = through.next();
            self.report(site, report);
        }
        if through > last {
            self.record(Fact::ReportsApplied { agent, through });
            self.sessions.put_off.clear();
        }
        if comes_too_early {
            return self.put_off(site);
        }
        if let Some(session) = self.sessions.by_site.get_mut(&site) {
            session.acknowledge = true;
            self.agenda.touched.insert(site);
        }
        self.ready_if_drained(site);
    }

    /// New work flows once both sides know the same.
    pub(crate) fn ready_if_drained(&mut self, site: SiteId) {
        let last_report = self.state.site(site).log.last_report;
        let Some(session) = self.sessions.by_site.get(&site) else { return };
        if session.phase == SessionPhase::Draining && last_report >= session.drained_at {
            if self.state.catching_up.contains(&site) {
                self.settle();
            }
            if !self.catch_up(site) {
                return self.put_off(site);
            }
            let Some(session) = self.sessions.by_site.get_mut(&site) else { return };
            session.phase = SessionPhase::Ready;
            let (connection, epoch) = (session.connection, session.epoch);
            // Commands of before go first.
            self.agenda.touched.insert(site);
            self.flush();
            self.send(connection, site, epoch, ControlBody::Ready);
            self.site_came_back(site);
        }
    }

    fn report(&mut self, site: SiteId, report: Report) {
        match report {
            Report::Started { run, step, elements } => self.started(site, run, step, elements),
            Report::Finished { run, step, elements } => self.finished(site, run, step, elements),
            Report::Fetched { object, wire_bytes, direct, execution, at } => {
                // A holder that is not known any more leaves its bytes to the bucket's count.
                let direct = direct.and_then(|share| {
                    let holder = self.state.agents.get(&share.holder).map(|agent| agent.site)?;
                    Some((holder, share.wire_bytes.min(wire_bytes)))
                });
                let given = direct.and_then(|(holder, _)| self.direct.given_since(holder, site, object.id));
                // What came no faster than its holder got it says nothing of the link between the two.
                if let (Some((holder, _)), Some(active)) = (direct, self.state.active(execution))
                    && !given.is_some_and(|(_, relayed)| relayed)
                {
                    let since = given.map_or(active.placed_at, |(since, _)| since);
                    let seconds = self.now.saturating_since(since).as_secs_f64();
                    self.estimates.learn_link(holder, site, wire_bytes, seconds);
                }
                self.direct.gave(site, object.id);
                self.counters.bytes_from_bucket += wire_bytes - direct.map_or(0, |(_, bytes)| bytes);
                let rule = self.fetch_rule(object.id, site, execution);
                self.record(Fact::ObjectFetched { object, site, wire_bytes, direct, execution, rule, at });
            }
            Report::Pushed { transfer, object: _, wire_bytes, at } => self.pushed(site, transfer, wire_bytes, at),
            Report::PushFailed { transfer, object: _, reason, message } => {
                self.push_failed(site, transfer, reason, message);
            }
            Report::Fault { object, kind: _, location, message } => self.replica_lost(site, object, location, message),
            Report::Evictable { proposal, objects } => self.eviction_proposed(site, proposal, &objects),
            Report::Evicted { gone, kept } => self.evicted(site, &gone, &kept),
            Report::Verified { files, bytes, damaged } => {
                self.record(Fact::VerificationEnded { site, files, bytes, damaged, at: self.now });
            }
            // Of a newer agent: it has no effect that this version knows.
            Report::Unknown { reason: _ } => {}
            Report::Retried { run, step, elements } => self.retried(site, run, step, elements),
            Report::DelegationEnded { run, step, kept, reason: _ } => self.delegation_ended(site, run, step, kept),
            Report::ReplicaEnded { object, failure } => self.replica_ended(site, object.id, failure.as_deref()),
        }
    }

    fn started(
        &mut self,
        site: SiteId,
        run: atoll_model::id::RunId,
        step: atoll_model::id::StepIndex,
        mut elements: Vec<StartedElement>,
    ) {
        self.take_reported(site, run, step, elements.iter().map(|started| (started.element, started.attempt)));
        let Some(known) = self.state.runs.get(&run).filter(|run| run.is_live()) else { return };
        let Some(state) = known.steps.get(step.index()) else { return };
        let news: Vec<_> = elements.iter().map(|started| (started.element, started.attempt, started.at)).collect();
        // An attempt that was given away may start all the same; only the current one is shown.
        elements.retain(|started| {
            let active = state.active.get(&started.element);
            active.is_some_and(|active| {
                active.site == site && active.attempt == started.attempt && active.phase == ActivePhase::Dispatched
            })
        });
        if !elements.is_empty() {
            self.counters.executions_started += elements.len() as u64;
            self.record(Fact::ExecutionsStarted { run, step, elements });
        }
        if self.state.catching_up.contains(&site) {
            for (element, attempt, at) in news {
                let execution = ExecutionId { run, step, element };
                let is_current = |active: &Active| active.site == site && active.attempt == attempt;
                let is_known = self.state.active(execution).is_some_and(is_current);
                if !is_known && self.is_news(site, execution, attempt) && self.is_ahead(execution, attempt) {
                    self.take_in_news(site, execution, attempt, Some(at));
                }
            }
        }
    }
}
