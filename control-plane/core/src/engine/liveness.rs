//! Silence: when a site is suspected, disconnected, lost.

use std::sync::Arc;
use std::time::Duration;

use atoll_model::elements::ElementSet;
use atoll_model::id::{RunId, SiteId, StepIndex};
use atoll_model::limits;
use atoll_model::session::PushFailure;
use atoll_model::time::Timestamp;
use atoll_model::workflow::StartMode;

use crate::agenda::Timer;
use crate::command::Command;
use crate::control_plane::ControlPlane;
use crate::event::ConnectionId;
use crate::fact::{Fact, ReturnCause};
use crate::sessions::{Presence, SessionPhase};
use crate::state::{Active, ActivePhase};
use crate::view::SiteState;

/// Session leases without a word, after which the connection is given up.
const LEASES_UNTIL_DISCONNECTED: u32 = 3;

impl ControlPlane {
    pub(crate) fn heard(&mut self, site: SiteId) {
        let (now, lease) = (self.now, self.lease_of(site));
        let last_command = self.state.site(site).log.last_command;
        let presence =
            self.sessions.presence.entry(site).or_insert_with(|| Presence::new(Timestamp::ZERO, last_command, lease));
        let was_silent = now.saturating_since(presence.heard_at) > lease;
        if presence.heard_at == Timestamp::ZERO {
            self.agenda.set(now + lease, Timer::Liveness(site));
        }
        presence.heard_at = now;
        if was_silent {
            self.release_held(site);
            self.site_came_back(site);
        }
    }

    /// Work may go there (again).
    pub(crate) fn site_came_back(&mut self, site: SiteId) {
        self.agenda.has_room(site);
        self.wake_stuck(site);
        self.agenda.look_at_lacking();
        self.ask_again_for_expired(site);
        let wanted: Vec<_> = self.agenda.wants.objects().collect();
        let there =
            |object: &atoll_model::id::ObjectId| self.state.objects.get(object).is_none_or(|known| known.is_at(site));
        let concerned: Vec<_> = wanted.into_iter().filter(there).collect();
        self.agenda.replan.extend(concerned);
    }

    pub(crate) fn site_state(&self, site: SiteId) -> SiteState {
        let Some(state) = self.state.sites.get(&site) else { return SiteState::Revoked };
        if state.revoked.is_some() {
            return SiteState::Revoked;
        }
        let Some(agent) = state.agent else { return SiteState::Expected };
        if self.state.agents.get(&agent).is_some_and(|agent| agent.quarantined.is_some()) {
            return SiteState::Quarantined;
        }
        if state.lost.is_some() {
            return SiteState::Lost;
        }
        let Some(session) = self.sessions.by_site.get(&site) else {
            return if state.log.journal.is_none() { SiteState::Expected } else { SiteState::Disconnected };
        };
        let heard_at = self.sessions.presence.get(&site).map_or(Timestamp::ZERO, |presence| presence.heard_at);
        let silent = self.now.saturating_since(heard_at);
        match session.phase {
            _ if silent > self.lease_of(site) => SiteState::Suspect,
            SessionPhase::AwaitingInventory | SessionPhase::Draining => SiteState::Syncing,
            SessionPhase::Ready if state.drained => SiteState::Draining,
            SessionPhase::Ready => SiteState::Ready,
        }
    }

    /// Why a site takes no new work now, if it does not.
    pub(crate) fn site_closed(&self, site: SiteId) -> Option<String> {
        let reason = match self.site_state(site) {
            SiteState::Ready => {
                let presence = self.sessions.presence.get(&site)?;
                let closed = presence.heartbeat.as_ref().and_then(|heartbeat| heartbeat.closed.clone());
                return if presence.is_far_off() { self.clock_offset(site) } else { closed };
            }
            SiteState::Expected => "no agent has joined it yet",
            SiteState::Syncing => "its agent has just connected",
            SiteState::Suspect => "its agent has missed a heartbeat",
            SiteState::Disconnected => "its agent is not connected",
            SiteState::Lost => "its agent was not heard for too long",
            SiteState::Draining => "it is being drained",
            SiteState::Revoked => "it is revoked",
            SiteState::Quarantined => "two agents use its identity",
        };
        Some(reason.to_owned())
    }

    /// E2: how far the clock of a site's machine is off; whether it has been put right.
    pub(crate) fn measure_clock(&mut self, site: SiteId, wall_clock: Timestamp) -> bool {
        let now = self.now;
        let Some(presence) = self.sessions.presence.get_mut(&site).filter(|_| wall_clock != Timestamp::ZERO) else {
            return false;
        };
        let was_far_off = presence.is_far_off();
        presence.clock_offset = (wall_clock.distance(now), wall_clock > now);
        was_far_off && !presence.is_far_off()
    }

    /// What people are told of a site's clock.
    pub(crate) fn clock_offset(&self, site: SiteId) -> Option<String> {
        let (offset, ahead) = self.sessions.presence.get(&site)?.clock_offset;
        let direction = if ahead { "ahead" } else { "behind" };
        (offset > limits::CLOCK_OFFSET_WARN).then(|| format!("its clock is {} s {direction}", offset.as_secs()))
    }

    pub(crate) fn connection_lost(&mut self, connection: ConnectionId) {
        // A session that was superseded has no entry any more.
        if let Some(site) = self.sessions.by_connection.remove(&connection) {
            self.sessions.by_site.remove(&site);
        }
    }

    pub(crate) fn close_session(&mut self, site: SiteId) {
        if let Some(session) = self.sessions.by_site.remove(&site) {
            self.sessions.by_connection.remove(&session.connection);
            self.command(Command::Close { connection: session.connection });
        }
    }

    /// From now on until the site is taken for lost.
    pub(crate) fn wait_for(&mut self, site: SiteId) {
        let (state, lease) = (self.state.site(site), self.session_lease());
        self.sessions.presence.insert(site, Presence::new(self.now, state.log.last_command, lease));
        if state.agent.is_some() {
            self.agenda.set(self.now + self.config.session_lease, Timer::Liveness(site));
        }
    }

    pub(crate) fn look_at_silence(&mut self, site: SiteId) {
        let Some(state) = self.state.sites.get(&site) else { return };
        let Some(presence) = self.sessions.presence.get(&site) else { return };
        if state.revoked.is_some() || state.lost.is_some() || state.agent.is_none() {
            // Said hello again, it is looked at again.
            self.sessions.presence.get_mut(&site).expect("just seen").heard_at = Timestamp::ZERO;
            return;
        }
        let (lease, heard_at) = (presence.lease(), presence.heard_at);
        let silent = self.now.saturating_since(heard_at);
        if silent >= lease * LEASES_UNTIL_DISCONNECTED {
            self.close_session(site);
        }
        let lost_at = (heard_at + self.config.lost_after).max(self.started_at + self.config.restart_grace);
        if self.now >= lost_at && silent >= self.config.lost_after {
            if self.too_many_are_silent(site, heard_at) {
                self.hold_back(site);
                self.agenda.set(self.now + lease, Timer::Liveness(site));
            } else {
                self.declare_lost(site);
            }
            return;
        }
        let thresholds = [heard_at + lease, heard_at + lease * LEASES_UNTIL_DISCONNECTED, lost_at];
        let just_after = Duration::from_micros(1);
        let next = thresholds.into_iter().filter(|at| *at > self.now).min().unwrap_or(self.now + lease);
        self.agenda.set(next + just_after, Timer::Liveness(site));
    }

    pub(crate) fn declare_lost(&mut self, site: SiteId) {
        let Some(agent) = self.state.site(site).agent else { return };
        self.release_held(site);
        self.counters.agents_lost += 1;
        self.close_session(site);
        self.record(Fact::AgentLost { agent, at: self.now });
        let message = format!("site {} was not heard for too long", self.state.site(site).name);
        self.give_away_work(site, &message);
        self.give_away_delegations(site, false);
        self.look_at_all_copies();
    }

    /// Takes everything from a site that will not do it.
    pub(crate) fn give_away(&mut self, site: SiteId, message: &str) {
        self.give_away_work(site, message);
        self.give_away_delegations(site, true);
        self.take_back_copies(site);
        self.wait_elsewhere(site);
    }

    fn give_away_work(&mut self, site: SiteId, message: &str) {
        let busy: Vec<_> = self.state.site(site).busy.keys().copied().collect();
        for (run, step) in busy.iter().copied() {
            let elements = self.active_at(site, run, step, |_, _| true);
            self.return_from(site, run, step, &elements, message);
        }
        self.after_returns(&busy);
        let transfers: Vec<_> = self.state.transfers.iter().filter(|(_, transfer)| transfer.site == site).collect();
        let transfers: Vec<_> = transfers.into_iter().map(|(id, transfer)| (*id, transfer.object.id)).collect();
        for (transfer, object) in transfers {
            let reason = PushFailure::Cancelled;
            self.end_push(transfer, object, reason, message);
        }
        let wanted: Vec<_> = self.agenda.wants.objects().collect();
        self.agenda.replan.extend(wanted);
        self.wake_data();
    }

    /// What no site could run may find one, now that this one has changed.
    pub(crate) fn wake_stuck(&mut self, site: SiteId) {
        let (state, changed) = (&self.state, self.state.site(site));
        let woken = self.agenda.take_stuck(|(run, step)| {
            let run = state.runs.get(&run);
            run.is_none_or(|run| run.workflow.step(step).site.admits(&changed.name, &changed.labels))
        });
        woken.into_iter().for_each(|(run, step)| self.want_place(run, step));
    }

    /// Elements of a step that are active at a site.
    pub(crate) fn active_at(
        &self,
        site: SiteId,
        run: RunId,
        step: StepIndex,
        mut which: impl FnMut(u32, &Active) -> bool,
    ) -> ElementSet {
        let active = self.state.step(run, step).active.iter();
        active.filter(|(element, active)| active.site == site && which(**element, active)).map(|(e, _)| *e).collect()
    }

    /// The rule for attempts that a site had and will not finish (as far as is known): what was never sent is still to be
    /// given out; what must not start twice has an unknown fate; everything else gets another attempt, which fences this
    /// one.
    pub(crate) fn return_from(
        &mut self,
        site: SiteId,
        run: RunId,
        step: StepIndex,
        elements: &ElementSet,
        message: &str,
    ) {
        if elements.is_empty() {
            return;
        }
        let sent = self.sessions.presence.get(&site).map_or(self.state.site(site).log.last_command, |p| p.sent);
        let at_most_once = self.state.run(run).workflow.step(step).start == StartMode::AtMostOnce;
        let going_on = self.state.run(run).is_going_on();
        let (mut unsent, mut gone) = (ElementSet::new(), ElementSet::new());
        for element in elements.iter() {
            let active = &self.state.step(run, step).active[&element];
            let never = active.phase == ActivePhase::Placed
                || (active.phase == ActivePhase::Dispatched && active.command > sent);
            if never {
                unsent.insert(element)
            } else {
                gone.insert(element)
            };
            self.agenda.unwant(atoll_model::id::ExecutionId { run, step, element });
        }
        let message: Arc<str> = Arc::from(message);
        if !going_on {
            let (at, elements) = (self.now, elements.clone());
            self.record(Fact::ExecutionsGivenUp { run, step, elements, cancelled: true, message, at });
            self.after_elements_ended(run, step);
            return;
        }
        let not_before = self.now;
        if !unsent.is_empty() {
            let (cause, message) = (ReturnCause::NeverSent, Arc::clone(&message));
            self.record(Fact::ExecutionsReturned { run, step, elements: unsent, cause, message, not_before });
        }
        if !gone.is_empty() && at_most_once {
            self.record(Fact::ExecutionsUnknown { run, step, elements: gone, message });
        } else if !gone.is_empty() {
            let cause = ReturnCause::Lost;
            self.counters.executions_returned += u64::from(gone.len());
            self.record(Fact::ExecutionsReturned { run, step, elements: gone, cause, message, not_before });
        }
        self.agenda.has_room(site);
    }

    /// What follows when all that a site will not do was taken from it.
    pub(crate) fn after_returns(&mut self, steps: &[(RunId, StepIndex)]) {
        for (run, step) in steps {
            if self.state.runs.get(run).is_some_and(|run| run.is_going_on()) {
                self.after_return(*run, *step);
            }
        }
    }

    /// What follows when executions of a step wait again.
    pub(crate) fn after_return(&mut self, run: RunId, step: StepIndex) {
        self.want_place(run, step);
        self.agenda.chain.push_back((run, step));
        self.withdraw_successors(run, step);
    }
}
