//! The session with the control plane: greeting, inventory, commands, heartbeats, leases.

use std::collections::BTreeSet;
use std::time::Duration;

use atoll_model::id::{CommandSeq, Epoch, ReportSeq, RunId};
use atoll_model::session::{
    AgentBody, AgentFrame, ControlBody, ControlFrame, Goodbye, Heartbeat, Hello, Inventory, InventoryItem, LeaseGrant,
    LocalState, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, SiteCommand, Verdict, Welcome,
};
use atoll_model::time::Timestamp;

use crate::agent::{Agent, Step};
use crate::command::Command;
use crate::config::{Boot, HEARTBEAT_BEFORE_FIRST_GRANT, LEASE_BEFORE_FIRST_GRANT, SILENCE_MAX};
use crate::fact::Fact;
use crate::making_room::StoreOrder;
use crate::state::{AttemptKey, Lease, Outbox, StepKey};

#[derive(Debug)]
pub(crate) struct Session {
    phase: Phase,
    epoch: Epoch,
    boot_nonce: u64,
    heard_at: Timestamp,
    heartbeat: Duration,
    heartbeat_at: Timestamp,
    heartbeats: u64,
    /// The last report that was sent in this session.
    pub(crate) sent: ReportSeq,
    pub(crate) credits: u64,
    session_until: Option<Timestamp>,
    work_until: Option<Timestamp>,
    /// What a lease granted before both sides agree will be worth when they do.
    promised: Option<LeaseGrant>,
    /// When work that must not go on without a link is stopped.
    stop_at: Timestamp,
    stopped: bool,
}

#[derive(Debug, PartialEq)]
enum Phase {
    Offline,
    /// `Hello` is sent.
    Greeting,
    /// The inventory is sent: these items, in this order.
    Comparing(Vec<AttemptKey>),
    /// The verdicts are in.
    Agreed,
}

impl Session {
    fn new(now: Timestamp) -> Self {
        Self {
            phase: Phase::Offline,
            epoch: Epoch(0),
            boot_nonce: 0,
            heard_at: now,
            heartbeat: HEARTBEAT_BEFORE_FIRST_GRANT,
            heartbeat_at: now,
            heartbeats: 0,
            sent: ReportSeq(0),
            credits: 0,
            session_until: None,
            work_until: None,
            promised: None,
            stop_at: now + LEASE_BEFORE_FIRST_GRANT,
            stopped: false,
        }
    }

    /// One that goes on under the leases of the process before, if the machine was not started anew since.
    pub(crate) fn resumed(lease: &Lease, boot: Boot, now: Timestamp) -> Self {
        let until = |noted: Duration| Some(boot.at + noted).filter(|until| lease.boot == boot.id && *until > now);
        Self { session_until: until(lease.session), work_until: until(lease.work), ..Self::new(now) }
    }

    pub(crate) fn end(&mut self) {
        self.phase = Phase::Offline;
        self.promised = None;
    }

    pub(crate) fn is_online(&self) -> bool {
        self.phase != Phase::Offline
    }

    /// Whether reports may be sent.
    pub(crate) fn may_report(&self) -> bool {
        self.phase == Phase::Agreed
    }

    /// Whether the session lease and the work lease hold.
    pub(crate) fn leases(&self, now: Timestamp) -> (bool, bool) {
        let holds = |until: Option<Timestamp>| until.is_some_and(|until| now < until);
        (holds(self.session_until), holds(self.work_until))
    }

    pub(crate) fn stop_at(&self) -> Option<Timestamp> {
        (!self.stopped).then_some(self.stop_at)
    }

    /// Stops what must not go on without a link; whether that is new.
    pub(crate) fn take_stop(&mut self) -> bool {
        !std::mem::replace(&mut self.stopped, true)
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped
    }

    pub(crate) fn next_timeout(&self) -> Option<Timestamp> {
        match self.phase {
            Phase::Offline => None,
            Phase::Greeting | Phase::Comparing(_) => Some(self.heard_at + self.silence_max()),
            Phase::Agreed => Some(self.heartbeat_at.min(self.heard_at + self.silence_max())),
        }
    }

    pub(crate) fn check(&self, outbox: &Outbox) {
        if self.may_report() {
            assert!(outbox.acknowledged() <= self.sent, "what was acknowledged was sent");
            assert!(self.sent <= outbox.last(), "only what has a number is sent");
        }
    }

    /// Three heartbeats, as a lease is, so that a fleet that is paced down is not taken for silent.
    fn silence_max(&self) -> Duration {
        SILENCE_MAX.max(self.heartbeat * 3)
    }

    fn grant(&mut self, grant: LeaseGrant, now: Timestamp) {
        self.heartbeat = grant.heartbeat.max(Duration::from_millis(1));
        // A fleet that has become small is heard more often again, from now on.
        self.heartbeat_at = self.heartbeat_at.min(self.after_heartbeat(now));
        // An answer from before a time of its own would be an error of the peer's; from before a suspension it is just old.
        let from = grant.answers.min(now);
        self.session_until = self.session_until.max(Some(from + grant.session));
        self.work_until = self.work_until.max(Some(from + grant.work));
        if self.session_until > Some(now) {
            self.stop_at = self.stop_at.max(from + grant.session);
            self.stopped = false;
        }
    }

    /// A fifth more or less, so that agents that came back together do not stay together.
    fn next_heartbeat(&mut self, now: Timestamp) {
        self.heartbeats += 1;
        self.heartbeat_at = self.after_heartbeat(now);
    }

    fn after_heartbeat(&self, now: Timestamp) -> Timestamp {
        let mixed = (self.boot_nonce ^ self.heartbeats).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let percent = 80 + u32::try_from((mixed >> 32) % 41).unwrap_or(0);
        now + self.heartbeat * percent / 100
    }
}

impl Agent {
    pub(crate) fn say_hello(&mut self, boot_nonce: u64, wall_clock: Timestamp, now: Timestamp, step: &mut Step) {
        self.number_reports(step);
        self.session.phase = Phase::Greeting;
        self.session.promised = None;
        self.session.boot_nonce = boot_nonce;
        self.session.heard_at = now;
        let hello = Hello {
            agent: self.config.agent,
            journal: self.state.journal.expect("a journal begins with its id"),
            incarnation: self.state.incarnation,
            boot_nonce,
            protocol_min: PROTOCOL_VERSION_MIN,
            protocol_max: PROTOCOL_VERSION,
            agent_version: self.config.agent_version.clone(),
            capacity: self.config.capacity.clone(),
            runtimes: self.config.runtimes.clone(),
            last_command: self.state.last_command,
            acknowledged_report: self.state.outbox.acknowledged(),
            last_report: self.state.outbox.last(),
            first_report: self.state.outbox.first(),
            clock: now,
            wall_clock,
        };
        let acknowledged = self.state.last_command;
        let frame = AgentFrame { epoch: self.session.epoch, acknowledged, body: AgentBody::Hello(hello) };
        step.commands.push(Command::Send { frame });
    }

    pub(crate) fn receive(&mut self, frame: ControlFrame, now: Timestamp, step: &mut Step) {
        let ControlFrame { epoch, acknowledged, lease, body } = frame;
        match body {
            ControlBody::Goodbye(goodbye) => {
                // One of an older session speaks of a stream that is gone.
                if self.session.is_online() && (epoch == self.session.epoch || self.session.phase == Phase::Greeting) {
                    self.part(goodbye, step);
                }
                return;
            }
            ControlBody::Welcome(welcome) => {
                // Doubled, or the answer to a Hello of an older stream.
                if !self.session.is_online() || epoch <= self.session.epoch {
                    return;
                }
                self.session.epoch = epoch;
                self.session.heard_at = now;
                self.session.promised = lease;
                self.welcomed(&welcome, acknowledged, now, step);
                return;
            }
            ControlBody::Verdicts(_) | ControlBody::Commands { .. } | ControlBody::Ready | ControlBody::Acknowledge => {
            }
        }
        if epoch != self.session.epoch || matches!(self.session.phase, Phase::Offline | Phase::Greeting) {
            return; // Of a session that is over.
        }
        self.session.heard_at = now;
        self.acknowledged(acknowledged, step);
        match lease {
            Some(grant) if self.session.may_report() => self.session.grant(grant, now),
            Some(grant) => self.session.promised = Some(grant),
            None => {}
        }
        match body {
            ControlBody::Verdicts(verdicts) => self.compared(&verdicts, now, step),
            ControlBody::Commands { first, commands } => self.take_commands(first, commands, now, step),
            ControlBody::Ready | ControlBody::Acknowledge | ControlBody::Welcome(_) | ControlBody::Goodbye(_) => {}
        }
    }

    /// Notes how far the leases reach, while there is work that the next process might have to go on with: once for each
    /// answered heartbeat at most.
    pub(crate) fn note_lease(&mut self, step: &mut Step) {
        if self.state.active.is_empty() && self.waiting.is_empty() && self.ready.is_empty() {
            return;
        }
        let Boot { id: boot, at } = self.config.boot;
        let reach = |until: Option<Timestamp>| until.map_or(Duration::ZERO, |until| until.saturating_since(at));
        let lease = Lease { boot, session: reach(self.session.session_until), work: reach(self.session.work_until) };
        let is_known = self.state.lease == lease;
        if !is_known && lease.work > Duration::ZERO {
            self.decide(step, Fact::LeaseNoted { boot, session: lease.session, work: lease.work });
        }
    }

    /// Nothing is started under a lease of an agent that was turned away.
    fn end_leases(&mut self, step: &mut Step) {
        (self.session.session_until, self.session.work_until) = (None, None);
        let Lease { boot, work, .. } = self.state.lease;
        if work > Duration::ZERO {
            self.decide(step, Fact::LeaseNoted { boot, session: Duration::ZERO, work: Duration::ZERO });
        }
    }

    pub(crate) fn session_elapse(&mut self, now: Timestamp, step: &mut Step) {
        if !self.session.is_online() {
            return;
        }
        if now >= self.session.heard_at + self.session.silence_max() {
            self.session.end();
            step.commands.push(Command::Disconnect { give_up: None });
        } else if self.session.may_report() && now >= self.session.heartbeat_at {
            self.send_heartbeat(now, step);
        }
    }

    pub(crate) fn send_heartbeat(&mut self, now: Timestamp, step: &mut Step) {
        if !self.session.may_report() {
            return;
        }
        self.session.next_heartbeat(now);
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let full = || self.outbox_full.then(|| "its outbox is full of reports that nobody has acknowledged".to_owned());
        let queued: u32 = self.state.items().map(|(_, _, item)| item.elements.len()).sum();
        let heartbeat = Heartbeat {
            sent_at: now,
            wall_clock: self.wall_clock(now),
            running: count(self.state.active.len()),
            queued,
            closed: self.closed().or_else(full),
            deployed: self.deployed(),
            ..self.measured.clone()
        };
        self.send(AgentBody::Heartbeat(heartbeat), step);
    }

    /// As it was measured last, and moved on since.
    fn wall_clock(&self, now: Timestamp) -> Timestamp {
        let (measured, at) = (self.measured.wall_clock, self.measured_at);
        if measured == Timestamp::ZERO { measured } else { measured + now.saturating_since(at) }
    }

    /// Sends a frame that acknowledges all commands in facts so far: the shell makes those durable first.
    pub(crate) fn send(&mut self, body: AgentBody, step: &mut Step) {
        let frame = AgentFrame { epoch: self.session.epoch, acknowledged: self.state.last_command, body };
        step.commands.push(Command::Send { frame });
    }

    fn welcomed(&mut self, welcome: &Welcome, acknowledged: ReportSeq, now: Timestamp, step: &mut Step) {
        let resume_after = welcome.resume_after.max(acknowledged);
        if resume_after > self.state.outbox.last() {
            // The same journal with less in it: it was set back, and its numbers mean something else now.
            let reason = "the agent's journal is older than what the control plane has of it".to_owned();
            self.session.end();
            step.commands.push(Command::Disconnect { give_up: Some(reason) });
            return;
        }
        if resume_after < self.state.outbox.acknowledged() && self.state.outbox.first() <= resume_after.next() {
            // B6: the control plane is not what it was when it acknowledged them.
            self.decide(step, Fact::ReportsWanted { after: resume_after });
        }
        if welcome.new_journal {
            // B6: the same, and what was delegated since it knows nothing of.
            self.hand_back("the control plane does not know of it any more", step);
            self.forget_orders(step);
        }
        // What came since hello is of before this session too.
        self.number_reports(step);
        self.session.sent = self.state.outbox.acknowledged();
        self.session.credits = u64::from(welcome.credits.reports.max(1));
        self.acknowledged(resume_after, step);
        let mut items = Vec::new();
        // What the agent gave out itself and did not start, nobody asks for.
        for (key, _, item) in self.state.items().filter(|(_, _, item)| !item.terms.delegated) {
            let accepted = |element| (crate::agent::execution(key, element), item.attempt, LocalState::Accepted);
            items.extend(item.elements.iter().map(accepted));
        }
        items.extend(self.state.active.keys().map(|(execution, attempt)| (*execution, *attempt, LocalState::Running)));
        let finished = &mut |(execution, attempt)| items.push((execution, attempt, LocalState::Finished));
        self.state.outbox.visit_ended(finished);
        self.session.phase =
            Phase::Comparing(items.iter().map(|(execution, attempt, _)| (*execution, *attempt)).collect());
        let items =
            items.into_iter().map(|(execution, attempt, state)| InventoryItem { execution, attempt, state }).collect();
        let last_report = self.state.outbox.last();
        self.session.heartbeat_at = now;
        self.send(AgentBody::Inventory(Inventory { items, last_report }), step);
    }

    fn compared(&mut self, verdicts: &[Verdict], now: Timestamp, step: &mut Step) {
        let Phase::Comparing(items) = std::mem::replace(&mut self.session.phase, Phase::Agreed) else { return };
        let told = |wanted: Verdict| -> Vec<AttemptKey> {
            let told = items.iter().zip(verdicts).filter(|(_, verdict)| **verdict == wanted);
            told.map(|(item, _)| *item).collect()
        };
        let (cancel, forget) = (told(Verdict::Cancel), told(Verdict::Forget));
        if !cancel.is_empty() || !forget.is_empty() {
            let touched: BTreeSet<StepKey> =
                cancel.iter().chain(&forget).map(|(execution, _)| (execution.run, execution.step)).collect();
            let forgotten = forget.clone();
            self.decide(step, Fact::VerdictsAccepted { cancel, forget });
            self.revisit(&touched);
            forgotten.into_iter().for_each(|key| self.attempt_ended(key));
        }
        if let Some(grant) = self.session.promised.take() {
            self.session.grant(grant, now);
        }
        self.stage_reconnected(now);
        self.hand_back_if_closed(step);
        self.send_heartbeat(now, step);
    }

    fn take_commands(&mut self, first: CommandSeq, mut commands: Vec<SiteCommand>, now: Timestamp, step: &mut Step) {
        let known = self.state.last_command;
        // Commands that are known were sent again because their acknowledgement was lost; it is repeated. After a gap
        // nothing is taken: the acknowledgement says from where.
        let skip = (known.0 + 1).saturating_sub(first.0);
        if first.0 <= known.0 + 1 && skip < commands.len() as u64 {
            commands.drain(..usize::try_from(skip).expect("it is less than a length"));
            let mut touched = BTreeSet::new();
            let (mut forgotten, mut withdrawn) = (Vec::new(), Vec::new());
            let mut pushes = Vec::new();
            for command in &commands {
                match command {
                    SiteCommand::Prepare(template) => {
                        touched.insert((template.run, template.step));
                    }
                    SiteCommand::Dispatch(dispatch) => {
                        touched.insert((dispatch.run, dispatch.step));
                    }
                    SiteCommand::Cancel { run, step, .. } => {
                        touched.insert((*run, *step));
                    }
                    SiteCommand::Forget { run } => forgotten.push(*run),
                    SiteCommand::Push { transfer, object } => {
                        if !self.state.pushes.contains_key(transfer) {
                            pushes.push((*transfer, Command::Push { transfer: *transfer, object: *object }));
                        }
                    }
                    SiteCommand::CancelPush { transfer } => {
                        pushes.push((*transfer, Command::CancelPush { transfer: *transfer }));
                    }
                    SiteCommand::Evict { .. }
                    | SiteCommand::ProposeEviction { .. }
                    | SiteCommand::Verify { .. }
                    | SiteCommand::Replicate { .. }
                    | SiteCommand::MakeReady(_)
                    | SiteCommand::Unknown { .. } => {}
                    SiteCommand::Delegate(delegation) => {
                        let key = (delegation.template.run, delegation.template.step);
                        self.expandable.insert(key);
                    }
                    SiteCommand::Withdraw { run, step, .. } => {
                        touched.insert((*run, *step));
                        withdrawn.push((*run, *step));
                    }
                }
            }
            let dropped: Vec<_> = withdrawn.iter().flat_map(|key| self.queued(*key)).collect();
            let of_store = StoreOrder::among(known.next(), &commands);
            let unwanted = self.ahead.take(&self.state.ahead, &commands);
            forgotten.iter().for_each(|run| self.forget_run(*run));
            self.decide(step, Fact::CommandsAccepted { first: known.next(), at: now, commands });
            self.wake.extend(dropped);
            self.cancel_fetches(&unwanted, step);
            of_store.into_iter().for_each(|order| self.take_store_order(order, now, step));
            self.revisit(&touched);
            withdrawn.into_iter().for_each(|key| self.delegation_changed(key));
            // One that is over cannot be cancelled. One that was cancelled before it was heard of is begun all the same:
            // whoever begins it tells of its end.
            pushes.retain(|(transfer, _)| self.state.pushes.contains_key(transfer));
            for (transfer, command) in pushes {
                if !self.refuse_push(transfer, step) {
                    step.commands.push(command);
                }
            }
        }
        self.send(AgentBody::Acknowledge, step);
    }

    /// Looks at what a command may have changed in these steps.
    fn revisit(&mut self, touched: &BTreeSet<StepKey>) {
        self.notice_items(touched.iter().copied());
        for key in touched {
            let launches = &self.launches;
            let affected = self.state.active_of(*key).filter(|(key, active)| {
                active.ending.is_some() || active.forgotten || launches.get(key).is_some_and(|launch| launch.is_stuck())
            });
            self.unsettled.extend(affected.map(|(key, _)| *key));
        }
    }

    /// Everything of the run that waits is looked at once more, after it is gone.
    fn forget_run(&mut self, run: RunId) {
        self.wake.extend(self.waiting.of_run(run));
        self.wake.extend(self.ready.of_run(run));
        self.wake.extend(self.asked.iter().filter(|((of, _), _)| *of == run).map(|(key, order)| (*order, *key)));
        self.unsettled.extend(self.launches.keys().filter(|(execution, _)| execution.run == run));
        self.room.forget(run);
        self.lists.borrow_mut().retain(|(of, _), _| *of != run);
    }

    fn part(&mut self, goodbye: Goodbye, step: &mut Step) {
        self.session.end();
        let give_up = match goodbye {
            // Either our own newer stream, or another process with our identity: the control plane tells them apart.
            Goodbye::Superseded | Goodbye::ShuttingDown => None,
            Goodbye::Refused { reason } => Some(reason),
            Goodbye::Revoked { reason } => {
                self.end_leases(step);
                Some(reason)
            }
        };
        step.commands.push(Command::Disconnect { give_up });
    }
}
