//! The way out: what is kept of each command becomes the whole command, and frames leave with acknowledgements and leases.

use std::collections::BTreeMap;

use atoll_model::action::SERVICE_VARIABLE;
use atoll_model::elements::ElementSet;
use atoll_model::expression::{Form, evaluate};
use atoll_model::id::{Attempt, CommandSeq, Epoch, ExecutionId, SiteId, StepIndex};
use atoll_model::limits;
use atoll_model::session::{
    Binding, BindingSource, ControlBody, ControlFrame, Dispatch, DispatchElements, Origin, Requester, SiteCommand,
    StepTemplate, TemplateOutput, TemplateWork,
};
use atoll_model::workflow::{Step, Work};

use crate::caches::value_bytes;
use crate::command::Command;
use crate::control_plane::ControlPlane;
use crate::event::ConnectionId;
use crate::sessions::SessionPhase;
use crate::state::{Outgoing, Run};

/// Encoded commands of one frame, roughly.
const FRAME_BYTES: usize = limits::FRAME_BYTES_MAX / 2;

impl ControlPlane {
    /// Sends a frame, with the acknowledgement and the lease that are owed.
    pub(crate) fn send(&mut self, connection: ConnectionId, site: SiteId, epoch: Epoch, body: ControlBody) {
        let acknowledged = self.state.site(site).log.last_report;
        let mut answers = None;
        if let Some(session) = self.sessions.by_site.get_mut(&site).filter(|session| session.connection == connection) {
            session.acknowledge = false;
            answers = session.answers.take();
        }
        let lease = answers.map(|answers| self.grant(site, answers));
        let frame = ControlFrame { epoch, acknowledged, lease, body };
        self.command(Command::Send { connection, frame });
    }

    /// Sends what has piled up for every site that something happened to.
    pub(crate) fn flush(&mut self) {
        while let Some(site) = self.agenda.touched.pop_first() {
            let Some(session) = self.sessions.by_site.get(&site) else { continue };
            let (connection, epoch, phase) = (session.connection, session.epoch, session.phase);
            if phase != SessionPhase::AwaitingInventory {
                self.send_commands(site, connection, epoch);
            }
            if self.sessions.by_site.get(&site).is_some_and(|session| session.acknowledge) {
                self.send(connection, site, epoch, ControlBody::Acknowledge);
            }
        }
    }

    /// Sends the commands that the session has not had yet.
    fn send_commands(&mut self, site: SiteId, connection: ConnectionId, epoch: Epoch) {
        loop {
            let session = self.sessions.by_site.get(&site).expect("only called in a session");
            let log = &self.state.site(site).log;
            let first = log.first_unacknowledged().max(session.sent.next());
            let skip = usize::try_from(first.0 - log.first_unacknowledged().0).expect("no longer than the outbox");
            let mut commands = Vec::new();
            let mut bytes = 0;
            for command in log.outbox.iter().skip(skip) {
                let (command, size) = self.whole(command);
                commands.push(command);
                bytes += size;
                if bytes >= FRAME_BYTES {
                    break;
                }
            }
            if commands.is_empty() {
                return;
            }
            let last = CommandSeq(first.0 + commands.len() as u64 - 1);
            let session = self.sessions.by_site.get_mut(&site).expect("just seen");
            session.sent = last;
            if let Some(presence) = self.sessions.presence.get_mut(&site) {
                presence.sent = presence.sent.max(last);
            }
            self.send(connection, site, epoch, ControlBody::Commands { first, commands });
        }
    }

    /// Makes the whole of a command, and says roughly how long it is.
    fn whole(&self, command: &Outgoing) -> (SiteCommand, usize) {
        match command {
            Outgoing::Prepare { run, step } => match self.state.runs.get(run).filter(|run| run.is_live()) {
                Some(run) => self.template(run, *step, 0),
                // Nothing of an ended run is prepared; the number stays.
                None => (SiteCommand::Forget { run: *run }, 32),
            },
            Outgoing::PrepareGrown { run, step, grown } => match self.state.runs.get(run).filter(|run| run.is_live()) {
                Some(run) => self.template(run, *step, *grown),
                None => (SiteCommand::Forget { run: *run }, 32),
            },
            Outgoing::Dispatch { run, step, attempt, elements, fragment } => {
                match self.state.runs.get(run).filter(|run| run.is_live()) {
                    Some(known) => self.whole_dispatch(known, *step, *attempt, elements, *fragment),
                    None => (SiteCommand::Forget { run: *run }, 32),
                }
            }
            Outgoing::Cancel { run, step, elements, reason } => {
                let size = 32 + reason.len() + elements.ranges().len() * 8;
                let (elements, reason) = (elements.clone(), reason.to_string());
                (SiteCommand::Cancel { run: *run, step: *step, elements, reason }, size)
            }
            Outgoing::Push { transfer, object } => (SiteCommand::Push { transfer: *transfer, object: *object }, 72),
            Outgoing::CancelPush { transfer } => (SiteCommand::CancelPush { transfer: *transfer }, 24),
            Outgoing::Forget { run } => (SiteCommand::Forget { run: *run }, 32),
            Outgoing::Delegate { run, step } => match self.state.runs.get(run).filter(|run| run.is_live()) {
                Some(known) => self.delegation_command(known, *step),
                None => (SiteCommand::Forget { run: *run }, 32),
            },
            Outgoing::Withdraw { run, step, stop } => {
                (SiteCommand::Withdraw { run: *run, step: *step, stop: *stop }, 32)
            }
            Outgoing::Evict { proposal, objects, refused, reason } => {
                let size = 64 + objects.len() * 48;
                let (objects, reason) = (objects.clone(), reason.as_deref().map(str::to_owned));
                (SiteCommand::Evict { proposal: *proposal, objects, refused: *refused, reason }, size)
            }
            Outgoing::ProposeEviction { object } => (SiteCommand::ProposeEviction { objects: vec![*object] }, 64),
            Outgoing::ProposeExpired { objects } => {
                (SiteCommand::ProposeEviction { objects: objects.clone() }, 32 + objects.len() * 48)
            }
            Outgoing::Verify { objects } => (SiteCommand::Verify { objects: objects.clone() }, 32 + objects.len() * 48),
            Outgoing::Replicate { object, execution } => {
                (SiteCommand::Replicate { object: *object, execution: *execution }, 96)
            }
            Outgoing::MakeReady { run, step } => match self.state.runs.get(run).filter(|run| run.is_live()) {
                Some(run) => {
                    let (template, bytes) = self.bare_template(run, *step);
                    (SiteCommand::MakeReady(Box::new(template)), bytes)
                }
                None => (SiteCommand::Forget { run: *run }, 32),
            },
        }
    }

    /// A step's template, for executions of which the memory has grown so often.
    fn template(&self, run: &Run, step: StepIndex, grown: u32) -> (SiteCommand, usize) {
        // A step is prepared after its shared inputs were evaluated once.
        let shared = self.caches.shared(run, step).unwrap_or_default();
        let (template, bytes) = self.bare_template(run, step);
        let resources = run.grown_step(step, grown).resources.clone();
        let template = StepTemplate { bindings: shared.bindings.clone(), resources, ..template };
        (SiteCommand::Prepare(Box::new(template)), bytes + shared.bytes)
    }

    /// A step's template without any inputs.
    pub(super) fn bare_template(&self, run: &Run, step: StepIndex) -> (StepTemplate, usize) {
        let definition = run.workflow.step(step);
        let work = match &definition.work {
            Work::Script(script) => TemplateWork::Script(script.clone()),
            Work::Action(action) => self.command_of(run, action),
            Work::Python(action) => {
                self.bundled(run, action, |bundle, signatures| TemplateWork::Python { bundle, signatures })
            }
            Work::Container(action) => {
                self.bundled(run, action, |bundle, signatures| TemplateWork::Container { bundle, signatures })
            }
            Work::Wasm(action) => {
                self.bundled(run, action, |bundle, signatures| TemplateWork::Wasm { bundle, signatures })
            }
            Work::Import { source, directory } => {
                TemplateWork::Import { source: source.clone(), directory: *directory }
            }
            Work::Null => TemplateWork::Null,
            Work::Export { target, overwrite } => {
                TemplateWork::Export { target: target.clone(), overwrite: *overwrite }
            }
        };
        let text = match &work {
            TemplateWork::Script(text) => text.len(),
            TemplateWork::Command { .. }
            | TemplateWork::SignedCommand { .. }
            | TemplateWork::Python { .. }
            | TemplateWork::Container { .. }
            | TemplateWork::Wasm { .. }
            | TemplateWork::Import { .. }
            | TemplateWork::Null
            | TemplateWork::Export { .. } => 256,
        };
        let output = |(name, output): (&String, &atoll_model::workflow::Output)| TemplateOutput {
            name: name.clone(),
            r#type: output.r#type.clone(),
            optional: output.optional,
            listed: output.listed,
        };
        let template = StepTemplate {
            run: run.id,
            step,
            step_name: definition.name.clone(),
            workflow: run.workflow.name.clone(),
            work,
            resources: definition.resources.clone(),
            outputs: definition.outputs.iter().map(output).collect(),
            bindings: Vec::new(),
            environment: environment(run, definition),
            start: definition.start,
            on_disconnect: definition.on_disconnect,
            priority: run.priority_of(step),
            origin: Origin {
                traceparent: run.traceparent.clone(),
                requester: Some(Requester { project: run.project.to_string(), person: run.submitted_by.clone() }),
            },
        };
        (template, 256 + text)
    }

    fn whole_dispatch(
        &self,
        run: &Run,
        step: StepIndex,
        attempt: Attempt,
        elements: &ElementSet,
        fragment: bool,
    ) -> (SiteCommand, usize) {
        let mut bytes = 48 + elements.ranges().len() * 8;
        let elements = if run.plan.steps[step.index()].own.is_empty() {
            DispatchElements::Plain(elements.clone())
        } else {
            let bound = elements.iter().filter_map(|element| {
                // One that was taken back since is not sent any more.
                let active = run.steps[step.index()].active.get(&element).filter(|a| a.attempt == attempt)?;
                let bindings = self.own_bindings(run, step, element, active.attempt)?;
                bytes += bindings.iter().map(binding_bytes).sum::<usize>();
                Some((element, bindings))
            });
            DispatchElements::Bound(bound.collect())
        };
        let (run, start_by) = (run.id, None);
        (SiteCommand::Dispatch(Dispatch { run, step, attempt, elements, fragment, start_by }), bytes)
    }

    /// The inputs that go with a dispatch: values, or outputs of executions that are still at the agent.
    fn own_bindings(&self, run: &Run, step: StepIndex, element: u32, attempt: Attempt) -> Option<Vec<Binding>> {
        let definition = run.workflow.step(step);
        let scope = self.caches.element_scope(run, step, element);
        let bound: BTreeMap<StepIndex, Attempt> =
            run.steps[step.index()].bound.get(&attempt).into_iter().flatten().copied().collect();
        let binding = |name: &String| {
            let expression = &definition.bindings[name];
            let open = if let Form::Output { step, output } = &expression.form {
                let open = bound.get(step).filter(|_| !run.steps[step.index()].is_ended());
                open.map(|attempt| (ExecutionId { run: run.id, step: *step, element: 0 }, *attempt, output.clone()))
            } else {
                None
            };
            let source = match open {
                Some((execution, attempt, output)) => BindingSource::Output { execution, attempt, output },
                None => BindingSource::Value(evaluate(expression, &scope).ok()?),
            };
            Some(Binding { name: name.clone(), source })
        };
        run.plan.steps[step.index()].own.iter().map(binding).collect()
    }
}

fn binding_bytes(binding: &Binding) -> usize {
    binding.name.len()
        + match &binding.source {
            BindingSource::Value(value) => value_bytes(value),
            BindingSource::Output { output, .. } => 32 + output.len(),
        }
}

/// What a step sets, with services by names that no other project has.
fn environment(run: &Run, definition: &Step) -> Vec<(String, String)> {
    let of_project = |(name, value): (&String, &String)| {
        let is_service = name.starts_with(SERVICE_VARIABLE);
        (name.clone(), if is_service { format!("{}/{value}", run.project) } else { value.clone() })
    };
    definition.environment.iter().map(of_project).collect()
}
