//! How a session begins: hello, welcome, inventory, verdicts, ready.

use atoll_model::elements::ElementSet;
use atoll_model::id::{AgentId, CommandSeq, Epoch, SiteId};
use atoll_model::limits;
use atoll_model::session::{
    AgentBody, AgentFrame, ControlBody, Credits, Goodbye, Heartbeat, Hello, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN,
    Welcome,
};
use atoll_model::time::Timestamp;
use std::sync::Arc;
use std::time::Duration;

use super::restored::known_reports;
use crate::agenda::Timer;
use crate::command::Command;
use crate::control_plane::ControlPlane;
use crate::event::ConnectionId;
use crate::fact::{Fact, LogPositions, ReturnCause};
use crate::sessions::{Presence, Session, SessionPhase};
use crate::state::{ActivePhase, Log, Outgoing};

/// Within this time, processes that take one session from each other are counted.
const TAKEOVER_WINDOW: Duration = Duration::from_secs(10 * 60);
/// Times that a process comes back after another has taken over, within the window. One agent that restarts does not come
/// back as the process it was, but for a hello of its that was long on its way: that makes two, its own and that of the
/// process which comes back after it.
const TAKEOVERS_BACK_MAX: usize = 4;

impl ControlPlane {
    pub(crate) fn frame(&mut self, connection: ConnectionId, agent: AgentId, frame: AgentFrame) {
        if let AgentBody::Hello(hello) = frame.body {
            return self.hello(connection, agent, frame.epoch, hello);
        }
        // What still arrives on a connection whose session was superseded is not heard.
        let Some(site) = self.sessions.by_connection.get(&connection).copied() else { return };
        let Some(session) = self.sessions.by_site.get(&site) else { return };
        if session.epoch != frame.epoch || session.agent != agent {
            return;
        }
        self.heard(site);
        self.acknowledged(site, agent, frame.acknowledged);
        match frame.body {
            AgentBody::Hello(_) => unreachable!("handled above"),
            AgentBody::Inventory(inventory) => self.inventory(site, inventory),
            AgentBody::Reports { first, reports } => self.reports(site, first, reports),
            AgentBody::Heartbeat(heartbeat) => self.heartbeat(site, heartbeat),
            AgentBody::Acknowledge => {}
        }
    }

    fn acknowledged(&mut self, site: SiteId, agent: AgentId, through: CommandSeq) {
        let log = &self.state.site(site).log;
        if through >= log.first_unacknowledged() && !log.outbox.is_empty() {
            self.record(Fact::CommandsAcknowledged { agent, through });
        }
    }

    fn heartbeat(&mut self, site: SiteId, heartbeat: Heartbeat) {
        let known = self.state.site(site).capacity.as_ref();
        let changed = known.is_none_or(|known| {
            (known.cpu_millis, known.memory_bytes) != (heartbeat.capacity.cpu_millis, heartbeat.capacity.memory_bytes)
        });
        if changed {
            self.record(Fact::CapacityChanged { site, capacity: heartbeat.capacity.clone() });
        }
        let session = self.sessions.by_site.get_mut(&site).expect("frames are heard in sessions");
        session.acknowledge = true;
        session.answers = Some(heartbeat.sent_at);
        let presence = self.sessions.presence.get_mut(&site).expect("was just heard");
        let reopened =
            presence.heartbeat.as_ref().is_some_and(|last| last.closed.is_some() && heartbeat.closed.is_none());
        let wall_clock = heartbeat.wall_clock;
        presence.heartbeat = Some(heartbeat);
        let put_right = self.measure_clock(site, wall_clock);
        if changed || reopened || put_right {
            self.site_came_back(site);
        }
        self.agenda.touched.insert(site);
    }

    fn hello(&mut self, connection: ConnectionId, agent: AgentId, known: Epoch, hello: Hello) {
        let Some(site) = self.vet(connection, agent, &hello) else { return };
        self.end_session(site, Goodbye::Superseded);
        let known = self.notice_set_back(site, known, &hello);
        let is_catching_up = self.state.catching_up.contains(&site);
        let restart = log_restart(&self.state.site(site).log, &hello, is_catching_up);
        if restart.is_some() {
            self.take_back_unsent(site);
        }
        self.counters.sessions_opened += 1;
        let epoch = self.state.site(site).epoch.max(known).next();
        let was_lost = self.state.site(site).lost.is_some();
        self.record(Fact::SessionOpened {
            agent,
            epoch,
            journal: hello.journal,
            incarnation: hello.incarnation,
            restart,
            capacity: hello.capacity.clone(),
            runtimes: hello.runtimes.clone(),
            agent_version: hello.agent_version.clone(),
            at: self.now,
        });
        self.acknowledged(site, agent, hello.last_command);
        let log = &self.state.site(site).log;
        let (resume_after, sent) = (log.last_report, hello.last_command);
        let session = Session {
            connection,
            agent,
            epoch,
            phase: SessionPhase::AwaitingInventory,
            drained_at: hello.last_report,
            restarted: self.state.site(site).log.is_unheard,
            sent,
            since: self.now,
            judged_later: Vec::new(),
            acknowledge: false,
            answers: Some(hello.clock),
            protocol: PROTOCOL_VERSION.min(hello.protocol_max),
        };
        self.sessions.by_site.insert(site, session);
        self.sessions.by_connection.insert(connection, site);
        self.heard(site);
        self.measure_clock(site, hello.wall_clock);
        let presence = self.sessions.presence.get_mut(&site).expect("was just heard");
        if restart.is_some() {
            presence.sent = sent;
        }
        presence.sent = presence.sent.max(sent);
        self.agenda.set(self.now + self.lease_of(site), Timer::Liveness(site));
        let credits = Credits { reports: limits::REPORT_CREDITS };
        let welcome = Welcome {
            protocol: PROTOCOL_VERSION.min(hello.protocol_max),
            resume_after,
            new_journal: self.state.site(site).log.is_unheard,
            credits,
        };
        self.send(connection, site, epoch, ControlBody::Welcome(welcome));
        if was_lost {
            self.withdraw_limited();
        }
    }

    /// The site that a session is opened for. Whoever gets none has been told why, where it is owed an answer.
    fn vet(&mut self, connection: ConnectionId, agent: AgentId, hello: &Hello) -> Option<SiteId> {
        let site = match self.admit(agent, hello) {
            Ok(site) => site,
            Err(goodbye) => {
                self.turn_away(connection, goodbye);
                return None;
            }
        };
        let open = self.sessions.by_site.get(&site).map(|session| session.connection);
        if open == Some(connection) {
            // A second hello on one connection: the first session stands.
            return None;
        }
        if open.is_some_and(|open| open > connection) {
            // Read late from a stream that its agent has given up: it has opened another since, or another process has.
            self.turn_away(connection, Goodbye::Superseded);
            return None;
        }
        if self.takes_turns(site, hello.boot_nonce) {
            let name = self.state.site(site).name.clone();
            let reason = format!("two agents use the identity of site {name} and take the session from each other");
            self.turn_away(connection, Goodbye::Revoked { reason: reason.clone() });
            self.quarantine(agent, site, reason);
            return None;
        }
        Some(site)
    }

    fn admit(&self, agent: AgentId, hello: &Hello) -> Result<SiteId, Goodbye> {
        if hello.agent != agent {
            let reason = format!("the certificate is that of {agent}, not of {}", hello.agent);
            return Err(Goodbye::Refused { reason });
        }
        let site = self.trusted_site(agent).map_err(|rejection| Goodbye::Revoked { reason: rejection.to_string() })?;
        if hello.protocol_min > PROTOCOL_VERSION || hello.protocol_max < PROTOCOL_VERSION_MIN {
            let reason = format!(
                "the agent speaks versions {} to {} of the protocol, the control plane versions \
                 {PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION}",
                hello.protocol_min, hello.protocol_max
            );
            return Err(Goodbye::Refused { reason });
        }
        Ok(site)
    }

    fn turn_away(&mut self, connection: ConnectionId, goodbye: Goodbye) {
        let frame = atoll_model::session::ControlFrame {
            epoch: Default::default(),
            acknowledged: Default::default(),
            lease: None,
            body: ControlBody::Goodbye(goodbye),
        };
        self.command(Command::Send { connection, frame });
        self.command(Command::Close { connection });
    }

    /// E6: whether two processes take the session from each other.
    fn takes_turns(&mut self, site: SiteId, boot_nonce: u64) -> bool {
        let (now, lease) = (self.now, self.session_lease());
        let last_command = self.state.site(site).log.last_command;
        let presence =
            self.sessions.presence.entry(site).or_insert_with(|| Presence::new(Timestamp::ZERO, last_command, lease));
        let takeovers = &mut presence.takeovers;
        takeovers.retain(|(at, _)| now.saturating_since(*at) <= TAKEOVER_WINDOW);
        if takeovers.back().is_none_or(|(_, last)| *last != boot_nonce) {
            takeovers.push_back((now, boot_nonce));
        }
        let nonces: Vec<_> = takeovers.iter().map(|(_, nonce)| *nonce).collect();
        let back = nonces.iter().enumerate().filter(|(place, nonce)| nonces[..*place].contains(nonce)).count();
        back >= TAKEOVERS_BACK_MAX
    }

    /// The agent's journal is not the one that the outbox was for: what was never sent is still to be given out.
    fn take_back_unsent(&mut self, site: SiteId) {
        let sent = self.sessions.presence.get(&site).map_or(self.state.site(site).log.last_command, |p| p.sent);
        let log = &self.state.site(site).log;
        let first = log.first_unacknowledged();
        let unsent: Vec<_> = log
            .outbox
            .iter()
            .zip(first.0..)
            .filter(|(_, number)| *number > sent.0)
            .filter_map(|(command, number)| match command {
                Outgoing::Dispatch { run, step, .. } => Some((*run, *step, CommandSeq(number))),
                Outgoing::Prepare { .. }
                | Outgoing::PrepareGrown { .. }
                | Outgoing::Cancel { .. }
                | Outgoing::Push { .. }
                | Outgoing::CancelPush { .. }
                | Outgoing::Forget { .. }
                | Outgoing::Delegate { .. }
                | Outgoing::Withdraw { .. }
                | Outgoing::Evict { .. }
                | Outgoing::ProposeEviction { .. }
                | Outgoing::ProposeExpired { .. }
                | Outgoing::Verify { .. }
                | Outgoing::Replicate { .. }
                | Outgoing::MakeReady { .. } => None,
            })
            .collect();
        for (run, step, command) in unsent {
            if !self.state.runs.get(&run).is_some_and(|run| run.is_going_on()) {
                continue;
            }
            let elements: ElementSet = self.active_at(site, run, step, |_, active| {
                active.command == command && active.phase == ActivePhase::Dispatched
            });
            if elements.is_empty() {
                continue;
            }
            let message: Arc<str> = Arc::from("the agent has a new journal, and this was never sent");
            let (cause, not_before) = (ReturnCause::NeverSent, self.now);
            self.record(Fact::ExecutionsReturned { run, step, elements, cause, message, not_before });
            self.after_return(run, step);
        }
    }
}

/// Where the logs begin again, if the agent's journal is another one, or has gone back in time.
fn log_restart(log: &Log, hello: &Hello, is_catching_up: bool) -> Option<LogPositions> {
    let is_known = log.journal == Some(hello.journal);
    let has_all_reports = hello.last_report.max(hello.acknowledged_report) >= log.last_report;
    let has_acknowledged = hello.last_command.next() >= log.first_unacknowledged();
    let has_no_more = hello.last_command <= log.last_command && hello.acknowledged_report <= log.last_report;
    if is_known && has_all_reports && has_acknowledged && has_no_more {
        return None;
    }
    let last_report = known_reports(log, hello, is_catching_up);
    Some(LogPositions { last_report, last_command: hello.last_command })
}
