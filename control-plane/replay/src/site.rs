//! A site that does in virtual time what it is told: it fetches what it lacks, runs as much at a time as it has processors
//! for, and reports.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use atoll_model::id::{AgentId, Attempt, CommandSeq, Epoch, ExecutionId, ObjectId, ReportSeq, RunId, StepIndex};
use atoll_model::session::{
    Binding, BindingSource, ControlBody, ControlFrame, Dispatch, DispatchElements, SiteCommand,
};
use atoll_model::value::ObjectRef;
use control_plane_core::ConnectionId;

#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) agent: AgentId,
    pub(crate) connection: ConnectionId,
    pub(crate) epoch: Epoch,
    pub(crate) last_command: CommandSeq,
    pub(crate) last_report: ReportSeq,
    /// Inputs that all executions of a step share.
    templates: BTreeMap<(RunId, StepIndex), Vec<Binding>>,
    pub(crate) store: BTreeSet<ObjectId>,
    /// On their way, and what is wanted and nobody gives yet.
    pub(crate) fetching: BTreeSet<ObjectId>,
    /// What of it a rule wants here.
    pub(crate) copying: BTreeSet<ObjectId>,
    pub(crate) free: u32,
    waiting: BTreeMap<ExecutionId, Waiting>,
    pub(crate) ready: VecDeque<(ExecutionId, Attempt)>,
    ended: BTreeSet<ExecutionId>,
}

#[derive(Debug)]
struct Waiting {
    attempt: Attempt,
    executions: BTreeSet<ExecutionId>,
    objects: BTreeSet<ObjectId>,
}

/// What a site is to do and cannot do by itself.
#[derive(Debug)]
pub(crate) enum Errand {
    Fetch(ObjectRef, ExecutionId),
    Push(atoll_model::id::TransferId, ObjectRef),
    /// What a rule wants here is here.
    TellOfCopy(ObjectRef),
}

impl Site {
    pub(crate) fn new(agent: AgentId, connection: ConnectionId, processors: u32) -> Self {
        Self {
            agent,
            connection,
            epoch: Epoch(0),
            last_command: CommandSeq(0),
            last_report: ReportSeq(0),
            templates: BTreeMap::new(),
            store: BTreeSet::new(),
            fetching: BTreeSet::new(),
            copying: BTreeSet::new(),
            free: processors,
            waiting: BTreeMap::new(),
            ready: VecDeque::new(),
            ended: BTreeSet::new(),
        }
    }

    /// Takes in a frame; what it asks for that the site cannot do by itself.
    ///
    /// # Errors
    /// When the control plane takes something back or ends the session: nothing goes wrong in a replay.
    pub(crate) fn receive(&mut self, frame: ControlFrame) -> Result<Vec<Errand>, String> {
        let mut errands = Vec::new();
        match frame.body {
            ControlBody::Welcome(_) => self.epoch = frame.epoch,
            ControlBody::Commands { first, commands } => {
                for (number, command) in (first.0..).zip(commands) {
                    if number == self.last_command.0 + 1 {
                        self.last_command = CommandSeq(number);
                        self.carry_out(command, &mut errands)?;
                    }
                }
            }
            ControlBody::Verdicts(_) | ControlBody::Ready | ControlBody::Acknowledge => {}
            ControlBody::Goodbye(goodbye) => return Err(format!("a session was ended: {goodbye:?}")),
        }
        Ok(errands)
    }

    fn carry_out(&mut self, command: SiteCommand, errands: &mut Vec<Errand>) -> Result<(), String> {
        match command {
            SiteCommand::Prepare(template) => {
                self.templates.insert((template.run, template.step), template.bindings);
            }
            SiteCommand::Dispatch(dispatch) => self.accept(dispatch, errands),
            SiteCommand::Push { transfer, object } => errands.push(Errand::Push(transfer, object)),
            SiteCommand::Replicate { object, .. } if self.store.contains(&object.id) => {
                errands.push(Errand::TellOfCopy(object));
            }
            SiteCommand::Replicate { object, execution } => {
                self.copying.insert(object.id);
                if self.fetching.insert(object.id) {
                    errands.push(Errand::Fetch(object, execution));
                }
            }
            // No time is counted for actions that are made ready.
            SiteCommand::MakeReady(_) => {}
            SiteCommand::Forget { run } => self.templates.retain(|(of, _), _| *of != run),
            other @ (SiteCommand::Cancel { .. }
            | SiteCommand::CancelPush { .. }
            | SiteCommand::Delegate(_)
            | SiteCommand::Withdraw { .. }
            | SiteCommand::Evict { .. }
            | SiteCommand::ProposeEviction { .. }
            | SiteCommand::Verify { .. }
            | SiteCommand::Unknown { .. }) => return Err(format!("a site was told what no replay needs: {other:?}")),
        }
        Ok(())
    }

    fn accept(&mut self, dispatch: Dispatch, errands: &mut Vec<Errand>) {
        let Dispatch { run, step, attempt, elements, .. } = dispatch;
        let elements: Vec<(u32, Vec<Binding>)> = match elements {
            DispatchElements::Plain(elements) => elements.iter().map(|element| (element, Vec::new())).collect(),
            DispatchElements::Bound(bound) => bound,
        };
        for (element, own) in elements {
            let execution = ExecutionId { run, step, element };
            let mut waiting = Waiting { attempt, executions: BTreeSet::new(), objects: BTreeSet::new() };
            let shared = self.templates.get(&(run, step)).into_iter().flatten();
            for binding in shared.chain(&own) {
                match &binding.source {
                    BindingSource::Value(value) => value.visit_objects(&mut |object| {
                        if !self.store.contains(&object.id) {
                            waiting.objects.insert(object.id);
                            if self.fetching.insert(object.id) {
                                errands.push(Errand::Fetch(object, execution));
                            }
                        }
                    }),
                    BindingSource::Output { execution, .. } => {
                        if !self.ended.contains(execution) {
                            waiting.executions.insert(*execution);
                        }
                    }
                }
            }
            self.waiting.insert(execution, waiting);
            self.admit(execution);
        }
    }

    /// Moves an execution to those that are ready if it waits for nothing any more.
    fn admit(&mut self, execution: ExecutionId) {
        let waiting = &self.waiting[&execution];
        if waiting.executions.is_empty() && waiting.objects.is_empty() {
            self.ready.push_back((execution, waiting.attempt));
            self.waiting.remove(&execution);
        }
    }

    fn no_longer(&mut self, change: impl Fn(&mut Waiting) -> bool) {
        let changed: Vec<_> =
            self.waiting.iter_mut().filter_map(|(execution, waiting)| change(waiting).then_some(*execution)).collect();
        changed.into_iter().for_each(|execution| self.admit(execution));
    }

    pub(crate) fn fetched(&mut self, object: ObjectId) {
        self.fetching.remove(&object);
        self.store.insert(object);
        self.no_longer(|waiting| waiting.objects.remove(&object));
    }

    pub(crate) fn ended(&mut self, execution: ExecutionId) {
        self.free += 1;
        self.ended.insert(execution);
        self.no_longer(|waiting| waiting.executions.remove(&execution));
    }
}
