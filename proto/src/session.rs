//! The frames of a session.

use std::time::Duration;

use atoll_model::id::{CommandSeq, Epoch, ReportSeq, RunId, StepIndex};
use atoll_model::limits::{
    DEPLOYED_REASON_CHARS_MAX, DEPLOYED_TOLD_MAX, FRAME_ELEMENTS_MAX, MOVING_TOLD_MAX, WAITING_TOLD_MAX,
};
use atoll_model::session::{
    AgentBody, AgentFrame, ControlBody, ControlFrame, Credits, Deployed, DeployedState, Goodbye, Heartbeat, Hello,
    Inventory, InventoryItem, LeaseGrant, LocalState, Moving, Other, Verdict, WaitingJob, Welcome,
};
use atoll_model::time::Timestamp;

use crate::bindings::read_run;
use crate::columns::{ElementsReader, elements, read_runs, runs};
use crate::commands::{read_commands, write_commands};
use crate::error::{Received, WireError, required};
use crate::reports::{read_reports, write_reports};
use crate::types::{digest, enumeration, number, read_attempt, read_digest, read_step, step};
use crate::v1 as wire;
use crate::v1::{agent_frame, control_frame};

enumeration!(local_state, read_local_state, LocalState, wire::LocalState, [Accepted, Running, Finished]);
enumeration!(verdict, read_verdict, Verdict, wire::Verdict, [Keep, Cancel, Forget]);

impl From<AgentFrame> for wire::AgentFrame {
    fn from(frame: AgentFrame) -> Self {
        use agent_frame::Body;
        let body = match frame.body {
            AgentBody::Hello(hello) => Body::Hello(hello.into()),
            AgentBody::Inventory(inventory) => Body::Inventory(write_inventory(&inventory)),
            AgentBody::Reports { first, reports } => Body::Reports(write_reports(first, reports)),
            AgentBody::Heartbeat(heartbeat) => Body::Heartbeat(heartbeat.into()),
            AgentBody::Acknowledge => Body::Acknowledge(wire::Nothing {}),
        };
        Self { epoch: frame.epoch.0, acknowledged: frame.acknowledged.0, body: Some(body) }
    }
}

impl TryFrom<wire::AgentFrame> for Received<AgentFrame> {
    type Error = WireError;

    fn try_from(message: wire::AgentFrame) -> Result<Self, WireError> {
        use agent_frame::Body;
        let mut refused = Vec::new();
        let body = match message.body {
            Some(Body::Hello(hello)) => AgentBody::Hello(hello.try_into()?),
            Some(Body::Inventory(inventory)) => AgentBody::Inventory(read_inventory(inventory, &mut refused)?),
            Some(Body::Reports(reports)) => read_reports(reports, &mut refused)?,
            Some(Body::Heartbeat(heartbeat)) => AgentBody::Heartbeat(heartbeat.into()),
            Some(Body::Acknowledge(wire::Nothing {})) => AgentBody::Acknowledge,
            None => {
                refused.push(WireError::UnknownKind { field: "body" });
                AgentBody::Acknowledge
            }
        };
        let frame = AgentFrame { epoch: Epoch(message.epoch), acknowledged: CommandSeq(message.acknowledged), body };
        Ok(Self { frame, refused })
    }
}

impl From<Hello> for wire::Hello {
    fn from(hello: Hello) -> Self {
        Self {
            agent: Some(hello.agent.into()),
            journal: Some(hello.journal.into()),
            incarnation: hello.incarnation,
            boot_nonce: hello.boot_nonce,
            protocol_min: hello.protocol_min,
            protocol_max: hello.protocol_max,
            agent_version: hello.agent_version,
            capacity: Some(hello.capacity.into()),
            runtimes: hello.runtimes,
            last_command: hello.last_command.0,
            acknowledged_report: hello.acknowledged_report.0,
            last_report: hello.last_report.0,
            first_report: hello.first_report.0,
            clock: hello.clock.micros(),
            wall_clock: hello.wall_clock.micros(),
        }
    }
}

impl TryFrom<wire::Hello> for Hello {
    type Error = WireError;

    fn try_from(message: wire::Hello) -> Result<Self, WireError> {
        Ok(Self {
            agent: required(message.agent, "hello.agent")?.into(),
            journal: required(message.journal, "hello.journal")?.into(),
            incarnation: message.incarnation,
            boot_nonce: message.boot_nonce,
            protocol_min: message.protocol_min,
            protocol_max: message.protocol_max,
            agent_version: message.agent_version,
            capacity: message.capacity.unwrap_or_default().into(),
            runtimes: message.runtimes,
            last_command: CommandSeq(message.last_command),
            acknowledged_report: ReportSeq(message.acknowledged_report),
            last_report: ReportSeq(message.last_report),
            first_report: ReportSeq(message.first_report),
            clock: Timestamp::from_micros(message.clock),
            wall_clock: Timestamp::from_micros(message.wall_clock),
        })
    }
}

fn write_inventory(inventory: &Inventory) -> wire::Inventory {
    let step_of = |item: &InventoryItem| -> (RunId, StepIndex) { (item.execution.run, item.execution.step) };
    let groups = inventory.items.chunk_by(|left, right| step_of(left) == step_of(right)).map(|group| {
        let (run, index) = step_of(&group[0]);
        wire::InventoryGroup {
            run: Some(run.into()),
            step: step(index),
            elements: Some(elements(group.iter().map(|item| item.execution.element))),
            attempts: Some(runs(group.iter().map(|item| u64::from(item.attempt.0)))),
            states: Some(runs(group.iter().map(|item| local_state(item.state) as u64))),
        }
    });
    wire::Inventory { groups: groups.collect(), last_report: inventory.last_report.0 }
}

/// Reads an inventory. A state that is not known here is that of something the agent holds: as good as running.
fn read_inventory(message: wire::Inventory, refused: &mut Vec<WireError>) -> Result<Inventory, WireError> {
    let mut items = Vec::new();
    for group in message.groups {
        let run = read_run(group.run)?;
        let step = read_step(group.step)?;
        let elements = ElementsReader::new(group.elements, "inventory.elements")?;
        let count = elements.count();
        let found = items.len() + count;
        if found > FRAME_ELEMENTS_MAX {
            let field = "inventory.elements";
            return Err(WireError::TooMany { field, limit: FRAME_ELEMENTS_MAX, found: found as u64 });
        }
        let attempts = read_runs(group.attempts, count, "inventory.attempts")?;
        let states = read_runs(group.states, count, "inventory.states")?;
        items.reserve(count);
        for ((element, attempt), state) in elements.into_iter().zip(attempts).zip(states) {
            let state = read_local_state(state, "inventory.states").unwrap_or_else(|error| {
                refused.push(error);
                LocalState::Running
            });
            let execution = atoll_model::id::ExecutionId { run, step, element };
            items.push(InventoryItem { execution, attempt: read_attempt(attempt)?, state });
        }
    }
    Ok(Inventory { items, last_report: ReportSeq(message.last_report) })
}

impl From<Heartbeat> for wire::Heartbeat {
    fn from(heartbeat: Heartbeat) -> Self {
        Self {
            sent_at: heartbeat.sent_at.micros(),
            wall_clock: heartbeat.wall_clock.micros(),
            capacity: Some(heartbeat.capacity.into()),
            running: heartbeat.running,
            queued: heartbeat.queued,
            store_objects: heartbeat.store_objects,
            store_bytes: heartbeat.store_bytes,
            load_millis: heartbeat.load_millis,
            closed: heartbeat.closed,
            moving: heartbeat.moving.into_iter().map(Into::into).collect(),
            batch_wait_ms: heartbeat.batch_wait.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
            waiting: heartbeat.waiting.into_iter().map(Into::into).collect(),
            deployed: heartbeat.deployed.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<wire::Heartbeat> for Heartbeat {
    fn from(message: wire::Heartbeat) -> Self {
        Self {
            sent_at: Timestamp::from_micros(message.sent_at),
            wall_clock: Timestamp::from_micros(message.wall_clock),
            capacity: message.capacity.unwrap_or_default().into(),
            running: message.running,
            queued: message.queued,
            store_objects: message.store_objects,
            store_bytes: message.store_bytes,
            load_millis: message.load_millis,
            closed: message.closed,
            // One that does not say of which object it is tells nobody anything.
            moving: message.moving.into_iter().take(MOVING_TOLD_MAX).filter_map(read_moving).collect(),
            batch_wait: message.batch_wait_ms.map(Duration::from_millis),
            waiting: message.waiting.into_iter().take(WAITING_TOLD_MAX).filter_map(read_waiting).collect(),
            deployed: message.deployed.into_iter().take(DEPLOYED_TOLD_MAX).filter_map(read_deployed).collect(),
        }
    }
}

impl From<WaitingJob> for wire::WaitingJob {
    fn from(waiting: WaitingJob) -> Self {
        Self { execution: Some(waiting.execution.into()), attempt: u64::from(waiting.attempt.0), why: waiting.why }
    }
}

fn read_waiting(message: wire::WaitingJob) -> Option<WaitingJob> {
    Some(WaitingJob {
        execution: message.execution?.try_into().ok()?,
        attempt: read_attempt(message.attempt).ok()?,
        why: message.why,
    })
}

impl From<Deployed> for wire::Deployed {
    fn from(deployed: Deployed) -> Self {
        let (state, reason) = match deployed.state {
            DeployedState::Deploying => (wire::DeployedState::Deploying, String::new()),
            DeployedState::Ready => (wire::DeployedState::Ready, String::new()),
            DeployedState::Failed(reason) => (wire::DeployedState::Failed, reason),
            DeployedState::Draining => (wire::DeployedState::Draining, String::new()),
        };
        Self { bundle: digest(deployed.bundle), state: state.into(), reason, since: deployed.since.micros() }
    }
}

/// One of a state that is not known here tells nobody anything.
fn read_deployed(message: wire::Deployed) -> Option<Deployed> {
    let state = match wire::DeployedState::try_from(message.state).ok()? {
        wire::DeployedState::Unspecified => return None,
        wire::DeployedState::Deploying => DeployedState::Deploying,
        wire::DeployedState::Ready => DeployedState::Ready,
        wire::DeployedState::Failed => {
            DeployedState::Failed(message.reason.chars().take(DEPLOYED_REASON_CHARS_MAX).collect())
        }
        wire::DeployedState::Draining => DeployedState::Draining,
    };
    let bundle = read_digest(&message.bundle, "deployed.bundle").ok()?;
    Some(Deployed { bundle, state, since: Timestamp::from_micros(message.since) })
}

impl From<Moving> for wire::Moving {
    fn from(moving: Moving) -> Self {
        let agent = match moving.other {
            Other::FromAgent(agent) => Some(agent.into()),
            Other::FromBucket | Other::ToBucket => None,
        };
        Self {
            object: digest(moving.object),
            to_bucket: moving.other == Other::ToBucket,
            agent,
            bytes: moving.bytes,
            moved_bytes: moving.moved_bytes,
            bytes_per_second: moving.bytes_per_second,
        }
    }
}

fn read_moving(message: wire::Moving) -> Option<Moving> {
    let other = match message.agent {
        Some(agent) => Other::FromAgent(agent.into()),
        None if message.to_bucket => Other::ToBucket,
        None => Other::FromBucket,
    };
    Some(Moving {
        object: read_digest(&message.object, "moving.object").ok()?,
        other,
        bytes: message.bytes,
        moved_bytes: message.moved_bytes,
        bytes_per_second: message.bytes_per_second,
    })
}

impl From<ControlFrame> for wire::ControlFrame {
    fn from(frame: ControlFrame) -> Self {
        use control_frame::Body;
        let body = match frame.body {
            ControlBody::Welcome(welcome) => Body::Welcome(wire::Welcome {
                protocol: welcome.protocol,
                resume_after: welcome.resume_after.0,
                new_journal: welcome.new_journal,
                report_credits: welcome.credits.reports,
            }),
            ControlBody::Verdicts(verdicts) => Body::Verdicts(wire::Verdicts {
                count: verdicts.len() as u64,
                verdicts: Some(runs(verdicts.into_iter().map(|member| verdict(member) as u64))),
            }),
            ControlBody::Commands { first, commands } => Body::Commands(write_commands(first, commands)),
            ControlBody::Ready => Body::Ready(wire::Nothing {}),
            ControlBody::Acknowledge => Body::Acknowledge(wire::Nothing {}),
            ControlBody::Goodbye(goodbye) => Body::Goodbye(goodbye.into()),
        };
        Self {
            epoch: frame.epoch.0,
            acknowledged: frame.acknowledged.0,
            lease: frame.lease.map(Into::into),
            body: Some(body),
        }
    }
}

impl TryFrom<wire::ControlFrame> for Received<ControlFrame> {
    type Error = WireError;

    fn try_from(message: wire::ControlFrame) -> Result<Self, WireError> {
        use control_frame::Body;
        let mut refused = Vec::new();
        let body = match message.body {
            Some(Body::Welcome(welcome)) => ControlBody::Welcome(Welcome {
                protocol: welcome.protocol,
                resume_after: ReportSeq(welcome.resume_after),
                new_journal: welcome.new_journal,
                credits: Credits { reports: welcome.report_credits },
            }),
            Some(Body::Verdicts(verdicts)) => ControlBody::Verdicts(read_verdicts(verdicts, &mut refused)?),
            Some(Body::Commands(commands)) => read_commands(commands, &mut refused)?,
            Some(Body::Ready(wire::Nothing {})) => ControlBody::Ready,
            Some(Body::Acknowledge(wire::Nothing {})) => ControlBody::Acknowledge,
            Some(Body::Goodbye(goodbye)) => ControlBody::Goodbye(goodbye.try_into()?),
            None => {
                refused.push(WireError::UnknownKind { field: "body" });
                ControlBody::Acknowledge
            }
        };
        let frame = ControlFrame {
            epoch: Epoch(message.epoch),
            acknowledged: ReportSeq(message.acknowledged),
            lease: message.lease.map(LeaseGrant::try_from).transpose()?,
            body,
        };
        Ok(Self { frame, refused })
    }
}

impl From<LeaseGrant> for wire::LeaseGrant {
    fn from(grant: LeaseGrant) -> Self {
        Self {
            answers: grant.answers.micros(),
            session: Some(grant.session.into()),
            work: Some(grant.work.into()),
            heartbeat: Some(grant.heartbeat.into()),
        }
    }
}

impl TryFrom<wire::LeaseGrant> for LeaseGrant {
    type Error = WireError;

    fn try_from(message: wire::LeaseGrant) -> Result<Self, WireError> {
        Ok(Self {
            answers: Timestamp::from_micros(message.answers),
            session: required(message.session, "lease.session")?.try_into()?,
            work: required(message.work, "lease.work")?.try_into()?,
            heartbeat: required(message.heartbeat, "lease.heartbeat")?.try_into()?,
        })
    }
}

/// Reads verdicts. One that is not known here changes nothing: an agent drops nothing unless it is told to.
fn read_verdicts(message: wire::Verdicts, refused: &mut Vec<WireError>) -> Result<Vec<Verdict>, WireError> {
    let field = "verdicts";
    let count = usize::try_from(message.count).ok().filter(|count| *count <= FRAME_ELEMENTS_MAX);
    let too_many = WireError::TooMany { field, limit: FRAME_ELEMENTS_MAX, found: message.count };
    let verdicts = read_runs(message.verdicts, count.ok_or(too_many)?, field)?;
    let read = verdicts.map(|value| {
        read_verdict(value, field).unwrap_or_else(|error| {
            refused.push(error);
            Verdict::Keep
        })
    });
    Ok(read.collect())
}

impl From<Goodbye> for wire::Goodbye {
    fn from(goodbye: Goodbye) -> Self {
        let (kind, reason) = match goodbye {
            Goodbye::Superseded => (wire::GoodbyeKind::Superseded, String::new()),
            Goodbye::Revoked { reason } => (wire::GoodbyeKind::Revoked, reason),
            Goodbye::Refused { reason } => (wire::GoodbyeKind::Refused, reason),
            Goodbye::ShuttingDown => (wire::GoodbyeKind::ShuttingDown, String::new()),
        };
        Self { kind: kind.into(), reason }
    }
}

impl TryFrom<wire::Goodbye> for Goodbye {
    type Error = WireError;

    fn try_from(message: wire::Goodbye) -> Result<Self, WireError> {
        let reason = message.reason;
        match wire::GoodbyeKind::try_from(message.kind) {
            Ok(wire::GoodbyeKind::Superseded) => Ok(Self::Superseded),
            Ok(wire::GoodbyeKind::Revoked) => Ok(Self::Revoked { reason }),
            Ok(wire::GoodbyeKind::Refused) => Ok(Self::Refused { reason }),
            Ok(wire::GoodbyeKind::ShuttingDown) => Ok(Self::ShuttingDown),
            Ok(wire::GoodbyeKind::Unspecified) | Err(_) => {
                Err(WireError::UnknownNumber { field: "goodbye.kind", value: number(message.kind) })
            }
        }
    }
}
