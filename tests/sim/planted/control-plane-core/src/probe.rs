//! Which event or decision of the control plane met which state.

use atoll_model::id::{AgentId, Attempt, ExecutionId, ObjectId, RunId, SiteId, StepIndex};
use atoll_model::session::{AgentBody, FaultLocation, Outcome, PushFailure, Report};

use crate::control_plane::ControlPlane;
use crate::event::{ConnectionId, Event};
use crate::fact::{Fact, ReturnCause};
use crate::sessions::SessionPhase;
use crate::state::{ActivePhase, BucketState, RowState, StepPhase};

impl ControlPlane {
    /// Before an event is handled.
    pub(crate) fn probe_event(&self, event: &Event) {
        match event {
            Event::FrameReceived { connection, agent, frame } => self.probe_frame(*connection, *agent, &frame.body),
            Event::ConnectionLost { connection } => {
                let state = match self.sessions.by_connection.get(connection) {
                    Some(site) => self.session_state(*site),
                    None => "superseded",
                };
                planted::seen("session", state, "connection lost");
            }
            Event::BucketObjectDeleted { object } => self.object_meets(*object, "is deleted (heard)"),
            Event::BucketObjectSeen { object, .. } => self.object_meets(*object, "is looked for (heard)"),
            Event::Request { .. } | Event::RunKept { .. } | Event::TimeoutElapsed => {}
        }
    }

    fn probe_frame(&self, connection: ConnectionId, agent: AgentId, body: &AgentBody) {
        let event = match body {
            AgentBody::Hello(_) => "hello",
            AgentBody::Inventory(_) => "inventory",
            AgentBody::Reports { .. } => "reports",
            AgentBody::Heartbeat(_) => "heartbeat",
            AgentBody::Acknowledge => "acknowledge",
        };
        let of_connection = self.sessions.by_connection.get(&connection).copied();
        let state = match (event, of_connection) {
            (_, Some(site)) => self.session_state(site),
            ("hello", None) => self.state.agents.get(&agent).map_or("none", |agent| self.session_state(agent.site)),
            (_, None) => "superseded",
        };
        planted::seen("session", state, event);
        if let (AgentBody::Reports { reports, .. }, Some(site)) = (body, of_connection) {
            reports.iter().for_each(|report| self.probe_report(site, report));
        }
    }

    fn session_state(&self, site: SiteId) -> &'static str {
        match self.sessions.by_site.get(&site).map(|session| session.phase) {
            None => "none",
            Some(SessionPhase::AwaitingInventory) => "awaiting inventory",
            Some(SessionPhase::Draining) => "draining",
            Some(SessionPhase::Ready) => "ready",
        }
    }

    fn probe_report(&self, site: SiteId, report: &Report) {
        match report {
            Report::Started { run, step, elements } => {
                for started in elements {
                    let current = self.is_current(site, (*run, *step, started.element), started.attempt);
                    let event = match self.is_own(site, (*run, *step, started.element), started.attempt) {
                        _ if current => "reported: started",
                        true => "reported: own attempt started",
                        false => "reported: other attempt started",
                    };
                    self.execution_meets(*run, *step, started.element, event);
                }
            }
            Report::Retried { run, step, elements } => {
                for finished in elements {
                    self.execution_meets(*run, *step, finished.element, "reported: tried again");
                }
            }
            Report::DelegationEnded { run, step, kept, .. } => {
                for element in kept.iter().flat_map(|(_, elements)| elements.iter()) {
                    self.execution_meets(*run, *step, element, "reported: kept");
                }
            }
            Report::Finished { run, step, elements } => {
                for finished in elements {
                    let current = self.is_current(site, (*run, *step, finished.element), finished.attempt);
                    let event = match &finished.outcome {
                        _ if !current && self.is_own(site, (*run, *step, finished.element), finished.attempt) => {
                            "reported: own attempt ended"
                        }
                        _ if !current => "reported: other attempt ended",
                        Outcome::Succeeded => "reported: succeeded",
                        Outcome::Failed { .. } => "reported: failed",
                        Outcome::Cancelled => "reported: cancelled",
                        Outcome::Interrupted { .. } => "reported: interrupted",
                        Outcome::NotStarted { .. } => "reported: not started",
                    };
                    self.execution_meets(*run, *step, finished.element, event);
                }
            }
            Report::Fetched { .. }
            | Report::Pushed { .. }
            | Report::PushFailed { .. }
            | Report::Fault { .. }
            | Report::Evictable { .. }
            | Report::Evicted { .. }
            | Report::Verified { .. }
            | Report::ReplicaEnded { .. }
            | Report::Unknown { .. } => {}
        }
    }

    fn is_current(&self, site: SiteId, (run, step, element): (RunId, StepIndex, u32), attempt: Attempt) -> bool {
        let Some(state) = self.state.runs.get(&run).and_then(|run| run.steps.get(step.index())) else { return false };
        let at = state.active.get(&element).or_else(|| state.unknown.get(&element));
        at.is_some_and(|at| at.attempt == attempt && at.site == site)
    }

    /// Whether it is news of an attempt that the agent has given out by itself.
    fn is_own(&self, site: SiteId, (run, step, element): (RunId, StepIndex, u32), attempt: Attempt) -> bool {
        let state = self.state.runs.get(&run).and_then(|run| run.steps.get(step.index()));
        let waits = state.is_some_and(|state| state.phase == StepPhase::Waiting);
        let delegated = self.state.delegation(run, step).is_some_and(|d| d.site == site && attempt >= d.attempt);
        (waits && delegated) || self.state.is_takeable(ExecutionId { run, step, element }, attempt, site)
    }

    fn execution_meets(&self, run: RunId, step: StepIndex, element: u32, event: &'static str) {
        planted::seen("execution", self.execution_state(run, step, element), event);
    }

    fn execution_state(&self, run: RunId, step: StepIndex, element: u32) -> &'static str {
        let Some(state) = self.state.runs.get(&run).and_then(|run| run.steps.get(step.index())) else {
            return "run forgotten";
        };
        if let Some(active) = state.active.get(&element) {
            return match active.phase {
                ActivePhase::Placed => "placed",
                _ if active.cancelling => "being cancelled",
                ActivePhase::Dispatched if active.fragment => "dispatched ahead",
                ActivePhase::Dispatched => "dispatched",
                ActivePhase::Running => "running",
            };
        }
        if state.unknown.contains_key(&element) {
            return "unknown";
        }
        if state.again.contains_key(&element) {
            return "ready again";
        }
        match state.row(element).map(|row| row.state) {
            Some(RowState::Succeeded) => "succeeded",
            Some(RowState::Failed) => "failed",
            Some(RowState::Cancelled) => "cancelled",
            Some(RowState::Open) | None => match state.phase {
                StepPhase::Expanded if state.cancelled.contains(element) => "cancelled",
                StepPhase::Expanded => "ready",
                StepPhase::Waiting => "waiting",
                StepPhase::Skipped | StepPhase::Cancelled => "cancelled",
            },
        }
    }

    fn object_meets(&self, object: ObjectId, event: &'static str) {
        let state = match self.state.objects.get(&object) {
            None => "not known",
            Some(known) => match (known.bucket, known.transfer.is_some(), known.doubtful.is_some()) {
                (BucketState::Absent, false, _) => "absent",
                (BucketState::Absent, true, _) => "being pushed",
                (BucketState::Present, false, _) => "present",
                (BucketState::Present, true, _) => "present and being pushed",
                (BucketState::Deleting, false, false) => "being deleted",
                (BucketState::Deleting, true, false) => "being deleted and pushed",
                (BucketState::Deleting, _, true) => "being looked for",
            },
        };
        planted::seen("object in the bucket", state, event);
    }

    fn transfer_meets(&self, transfer: &atoll_model::id::TransferId, event: &'static str) {
        let state = match self.state.transfers.get(transfer) {
            None => "none",
            Some(transfer) if transfer.cancelled => "cancelled",
            Some(_) => "ordered",
        };
        planted::seen("transfer", state, event);
        if let Some(transfer) = self.state.transfers.get(transfer) {
            self.object_meets(transfer.object.id, event);
        }
    }

    /// Before a decision changes the state.
    pub(crate) fn probe_fact(&self, fact: &Fact) {
        let each = |run: &RunId, step: &StepIndex, elements: &atoll_model::elements::ElementSet, event| {
            elements.iter().for_each(|element| self.execution_meets(*run, *step, element, event));
        };
        let one = |execution: &ExecutionId, event| {
            self.execution_meets(execution.run, execution.step, execution.element, event);
        };
        match fact {
            Fact::ExecutionsPlaced { run, step, elements, .. } => each(run, step, elements, "placed"),
            Fact::ExecutionsDispatched { run, step, elements, fragment: true, .. } => {
                each(run, step, elements, "dispatched ahead");
            }
            Fact::ExecutionsDispatched { run, step, elements, .. } => each(run, step, elements, "dispatched"),
            Fact::ExecutionsStarted { run, step, elements } => {
                elements.iter().for_each(|started| self.execution_meets(*run, *step, started.element, "started"));
            }
            Fact::ExecutionsFinished { run, step, elements, .. } => {
                for finished in elements {
                    let event = match &finished.outcome {
                        Outcome::Succeeded => "succeeds",
                        Outcome::Failed { .. } | Outcome::Interrupted { .. } => "fails",
                        Outcome::Cancelled | Outcome::NotStarted { .. } => "is cancelled",
                    };
                    self.execution_meets(*run, *step, finished.element, event);
                }
            }
            Fact::ExecutionsGivenUp { run, step, elements, .. } => each(run, step, elements, "given up"),
            Fact::ExecutionsReturned { run, step, elements, cause, .. } => {
                let event = match cause {
                    ReturnCause::Failed | ReturnCause::OutOfMemory => "returned: failed",
                    ReturnCause::Interrupted => "returned: interrupted",
                    ReturnCause::NotStarted | ReturnCause::Refused => "returned: not started",
                    ReturnCause::Lost => "returned: lost",
                    ReturnCause::NeverSent => "returned: never sent",
                    ReturnCause::Withdrawn => "returned: withdrawn",
                    ReturnCause::InputUnavailable => "returned: input unavailable",
                    ReturnCause::Resolved => "returned: resolved",
                    ReturnCause::Stopped => "returned: stopped",
                };
                each(run, step, elements, event);
            }
            Fact::ExecutionsUnknown { run, step, elements, .. } => each(run, step, elements, "becomes unknown"),
            Fact::AttemptAdopted { execution, .. } => one(execution, "former adopted"),
            Fact::ExecutionCrashed { execution, .. } => one(execution, "crashed"),
            Fact::OutcomeSuperseded { execution, .. } => one(execution, "outcome superseded"),
            Fact::RecomputeOrdered { execution } => one(execution, "recompute ordered"),
            Fact::CancelOrdered { run, step, elements, .. } => each(run, step, elements, "cancel ordered"),
            Fact::ObjectUploaded { object, .. } => self.object_meets(object.id, "uploaded"),
            Fact::ObjectFetched { object, .. } => self.object_meets(object.id, "fetched"),
            Fact::PushOrdered { transfer, object, .. } => {
                let state = if self.state.transfers.contains_key(transfer) { "ordered" } else { "none" };
                planted::seen("transfer", state, "push ordered");
                self.object_meets(object.id, "push ordered");
            }
            Fact::PushCancelled { transfer } => self.transfer_meets(transfer, "push cancelled"),
            Fact::PushEnded { transfer, .. } => self.transfer_meets(transfer, "push ended"),
            Fact::PushFailed { transfer, reason, .. } => {
                let event = match reason {
                    PushFailure::Unavailable => "push failed: unavailable",
                    PushFailure::Refused => "push failed: refused",
                    PushFailure::Cancelled => "push failed: cancelled",
                    PushFailure::Forbidden => "push failed: forbidden",
                };
                self.transfer_meets(transfer, event);
            }
            Fact::ReplicaLost { object, location, .. } => {
                let event = match location {
                    FaultLocation::SiteStore => "copy lost at a site",
                    FaultLocation::Bucket => "copy found damaged",
                };
                self.object_meets(*object, event);
            }
            Fact::BucketReleased { object } => self.object_meets(*object, "released"),
            _ => {}
        }
    }
}
