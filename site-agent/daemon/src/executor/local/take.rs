//! What the executor does with each order, and with each notice of a shim.

use std::sync::Arc;
use std::time::Instant;

use atoll_model::session::{FailureReason, Logs, StepTemplate, TemplateWork};
use atoll_model::value::Value;
use atoll_telemetry::Work;
use site_agent_core::Event;
use site_agent_core::command::{StartInput, StartValue};
use site_agent_core::event::{NodeId, OutputFailure, StoredOutputs};
use storage_sync_engine::store::Stored;

use super::actions::ReadyAction;
use super::attempts::{Known, Phase, Place};
use super::collect::with_listing;
use super::exports::Export;
use super::imports::Import;
use super::preparing::Staged;
use super::recovery::{exit, interrupted};
use super::returned::returned;
use super::services::{ServiceError, Waiting, patience};
use super::slots::Wanted;
use super::{Job, Local, Order, orders};
use crate::clock::wall_clock;
use crate::emitted::Emitted;
use crate::executor::batch::Handed;
use crate::shim::KEPT;
use crate::shim::protocol::{End, EndKind, Isolation, Key, Left, Notice, Record, Taken, ToShim};

impl Local {
    pub(super) fn take(&mut self, order: Order) {
        match order {
            Order::Start { key, template, inputs, node, ahead } => self.start(key, template, inputs, (node, ahead)),
            Order::Staged(key, staged) => self.staged(key, staged),
            Order::Imported(key, result) => self.imported(key, result),
            Order::Exported(key, result) => self.exported(key, result),
            Order::Kill(key) => self.kill(key),
            Order::Collect { key, template, outputs } => self.collect(key, template, outputs),
            Order::Release(key) => self.release(key),
            Order::Locate(object) => self.workers.locate(object),
            Order::MakeReady(template) => self.workers.make_ready(template),
            Order::LetActionsGo(order) => self.workers.let_actions_go(order),
            Order::WarmUp(template, action) => self.warm_up(&template, &action),
            Order::DropSealed(seals) => self.workers.job(Job::DropSealed(seals)),
            Order::Cleared { slot, ended } => self.cleared(slot, ended),
            Order::OfJobs(notices) => notices.into_iter().for_each(|notice| self.notice(Place::Job, notice)),
            Order::Taken(key, taken) => self.taken(key, taken),
            Order::OfNodes(tidings) => self.hear_of_nodes(tidings),
            Order::Quit => self.quit = true,
        }
    }

    fn start(
        &mut self,
        key: Key,
        template: Arc<StepTemplate>,
        inputs: Vec<StartInput>,
        (node, ahead): (NodeId, Option<u32>),
    ) {
        if self.attempts.get(key).is_some() {
            // Asked for again after a restart of the agent: a slot has it already.
            return;
        }
        let account = match self.account_of(&template) {
            Ok(account) => account,
            Err(error) => {
                return self.not_started(key, FailureReason::NotExecutable, super::staging::full_message(&error));
            }
        };
        let step = (template.run, template.step);
        let known_by = Some(Arc::clone(&template));
        let bytes_in = inputs.iter().map(|input| bytes_of(&input.value)).sum();
        let mut moving = None;
        if let TemplateWork::Import { source, directory } = &template.work {
            let import = Import { source: source.clone(), directory: *directory };
            moving = Some(self.workers.import(key, import));
        } else {
            let entries = orders::entries(&inputs);
            let is_bundled = template.work.bundle().is_some();
            let is_export = matches!(template.work, TemplateWork::Export { .. });
            if entries.is_empty() && !is_bundled && !is_export {
                let known = Known {
                    step,
                    template: known_by,
                    node,
                    place: None,
                    phase: Phase::Handed { order: None },
                    lent: None,
                    killed: false,
                    bytes_in,
                };
                self.attempts.insert(key, known);
                self.hand(key, &template, &inputs, None, ahead, None);
                return;
            }
            self.workers.stage(key, entries, &template, account);
        }
        let phase = Phase::Staging { template, inputs, since: wall_clock(), ahead, killed: false, moving };
        let known = Known { step, template: known_by, node, place: None, phase, lent: None, killed: false, bytes_in };
        self.attempts.insert(key, known);
    }

    fn staged(&mut self, key: Key, staged: Staged) {
        let Some(known) = self.attempts.get_mut(key) else { return };
        let Phase::Staging { template, inputs, since, ahead, killed, moving } = &mut known.phase else { return };
        let (template, inputs, ahead, killed) = (Arc::clone(template), std::mem::take(inputs), *ahead, *killed);
        if let Some(spans) = &self.spans {
            spans.done(&template, key, Work::Inputs, *since, wall_clock());
        }
        match staged.result {
            Err(failure) => self.cannot_start(key, failure),
            Ok(lent) => {
                known.lent = lent;
                match Export::of(&template, &inputs).filter(|_| !killed) {
                    Some(Ok(export)) => *moving = Some(self.workers.export(key, export)),
                    Some(Err(failure)) => self.cannot_start(key, failure),
                    None => {
                        known.phase = Phase::Handed { order: None };
                        if killed {
                            self.killed(key);
                        } else {
                            self.hand(key, &template, &inputs, staged.action.as_ref(), ahead, None);
                        }
                    }
                }
            }
        }
    }

    /// Gives an attempt whose inputs are ready to a slot, unless it has to wait for a service first, at most until then.
    fn hand(
        &mut self,
        key: Key,
        template: &Arc<StepTemplate>,
        inputs: &[StartInput],
        action: Option<&ReadyAction>,
        ahead: Option<u32>,
        until: Option<Instant>,
    ) {
        if let Some(why) = action.and_then(|action| action.differs_from(template, inputs)) {
            return self.not_started(key, FailureReason::NotExecutable, why);
        }
        let step = (template.run, template.step);
        let now = Instant::now();
        let (common, order) = match self.prepare(key, template, inputs, action) {
            Ok(prepared) => prepared,
            Err(orders::OrderError::Service(ServiceError::NotReady(_))) if until.is_none_or(|until| now < until) => {
                let until = until.unwrap_or_else(|| patience(now));
                let (template, inputs, action) = (Arc::clone(template), inputs.to_vec(), action.cloned());
                return self.services.wait(Waiting { key, template, inputs, action, ahead, until });
            }
            Err(error) => {
                return self.not_started(key, FailureReason::NotExecutable, super::staging::full_message(&error));
            }
        };
        let node = self.attempts.get(key).map_or(NodeId::HOME, |known| known.node);
        let jobs = self.jobs.as_ref().filter(|_| node == NodeId::HOME);
        if jobs.is_some() && (common.emits || common.kept.is_some()) {
            let why = "sources and services stay for as long as their workflow is deployed, and the executions of this site are \
                       jobs of a cluster: let it run at a site with `executor = \"local\"`";
            return self.not_started(key, FailureReason::NotExecutable, why.to_owned());
        }
        if let Some(jobs) = jobs {
            if let Some(known) = self.attempts.get_mut(key) {
                known.place = Some(Place::Job);
                known.phase = Phase::Handed { order: None };
            }
            let label = format!("{}.{}", template.workflow, template.step_name);
            return jobs.hand(Handed { label, common, order });
        }
        let common = match self.with_gpus(key, template, common) {
            Ok(common) => common,
            Err(message) => return self.not_started(key, FailureReason::Agent, message),
        };
        if !self.elsewhere.has(node) {
            return self.forsaken(key);
        }
        match self.slots.choose(step, ahead, Wanted::by(&common, node)) {
            Ok(number) => {
                if common.kept.is_some() {
                    // What it says before it is well is what one wants to read.
                    self.attempts.log_at(key, self.folder(Place::Slot(number), key), true);
                }
                if let Some(known) = self.attempts.get_mut(key) {
                    known.place = Some(Place::Slot(number));
                    known.phase = Phase::Handed { order: Some((Arc::clone(&common), order.clone())) };
                }
                if let Some(shim) = self.slots.shim_mut(number) {
                    shim.hand(&common, order, step);
                }
            }
            Err(error) => self.not_started(key, FailureReason::Agent, super::staging::full_message(&error)),
        }
    }

    /// Hands over what has waited for services, as far as these are ready now.
    pub(super) fn hand_waiting(&mut self) {
        for Waiting { key, template, inputs, action, ahead, until } in self.services.take_waiting() {
            self.hand(key, &template, &inputs, action.as_ref(), ahead, Some(until));
        }
    }

    pub(super) fn not_started(&mut self, key: Key, reason: FailureReason, message: String) {
        let Key { execution, attempt } = key;
        self.events.push(Event::NotStarted { execution, attempt, reason, message });
        self.release(key);
    }

    /// An attempt that was to be ended before it started.
    pub(super) fn killed(&mut self, key: Key) {
        self.release_gpus(key);
        let now = wall_clock();
        let end = End { how: EndKind::Killed, ..interrupted(now, String::new()) };
        if let Some(known) = self.attempts.get_mut(key) {
            known.phase = Phase::Ended { left: Left::default(), ran: None };
        }
        let Key { execution, attempt } = key;
        self.events.push(Event::Exited { execution, attempt, exit: exit(&end, 0), stored: None });
    }

    fn kill(&mut self, key: Key) {
        if self.services.forget(key) {
            return self.killed(key);
        }
        match self.attempts.get_mut(key) {
            None => self.killed(key),
            Some(known) => match &mut known.phase {
                Phase::Staging { killed, moving, .. } => {
                    *killed = true;
                    if let Some(moving) = moving {
                        moving.cancel();
                    }
                }
                Phase::Handed { .. } => {
                    known.killed = true;
                    match (known.place, &self.jobs) {
                        (Some(Place::Slot(slot)), _) => {
                            if let Some(shim) = self.slots.shim_mut(slot) {
                                shim.say(&ToShim::Kill(key));
                            }
                        }
                        (Some(Place::Job), Some(jobs)) => jobs.kill(key),
                        (Some(Place::Job) | None, _) => {}
                    }
                }
                // Its end was told.
                Phase::Ended { .. } | Phase::Imported { .. } => {}
            },
        }
    }

    fn collect(&mut self, key: Key, template: Arc<StepTemplate>, outputs: bool) {
        let Key { execution, attempt } = key;
        let nothing = |outputs| StoredOutputs { outputs, logs: Logs::default(), bytes_out: 0 };
        let result = match self.attempts.get(key).map(|known| (&known.phase, known.place)) {
            Some((Phase::Imported { stored }, _)) => {
                let listed = template.outputs.first().is_some_and(|output| output.listed);
                let stored = Stored::clone(stored);
                let listing = if listed { with_listing(&self.store, stored) } else { Ok(stored) };
                listing.map(|stored| nothing(vec![stored.value])).map_err(|error| OutputFailure {
                    reason: FailureReason::Agent,
                    message: super::staging::full_message(&error),
                    logs: Logs::default(),
                })
            }
            Some((Phase::Ended { left, ran }, Some(place))) => {
                if let (Some(spans), Some(end)) = (&self.spans, ran) {
                    spans.ran(&template, key, end);
                }
                if let Some(EndKind::Returned { outputs }) = ran.as_deref().map(|end| &end.how) {
                    let result = returned(&template, outputs).map(nothing);
                    return self.events.push(Event::OutputsStored { execution, attempt, result });
                }
                let collection = self.collection(place, key, template, outputs, left.clone());
                if !collection.is_empty() {
                    return self.workers.job(Job::Collect(Box::new(collection)));
                }
                Ok(nothing(Vec::new()))
            }
            Some(_) | None => Ok(nothing(Vec::new())),
        };
        self.events.push(Event::OutputsStored { execution, attempt, result });
    }

    fn release(&mut self, key: Key) {
        self.release_gpus(key);
        let Some(known) = self.attempts.remove(key) else { return };
        let kept = match (&known.phase, known.place) {
            (Phase::Ended { left, .. }, Some(place @ Place::Slot(slot))) => {
                self.slots.forget(slot, key);
                left.is_kept().then(|| self.folder(place, key).join(KEPT).join(key.folder()))
            }
            (_, Some(place @ Place::Job)) => {
                if let Some(jobs) = &self.jobs {
                    jobs.forget(key);
                }
                Some(self.folder(place, key))
            }
            (Phase::Ended { .. } | Phase::Staging { .. } | Phase::Handed { .. } | Phase::Imported { .. }, _) => None,
        };
        let check = match known.place {
            Some(Place::Slot(slot)) => self.slots.isolation(slot) == Some(Isolation::Nothing),
            // What its node allows is not known here.
            Some(Place::Job) => true,
            None => false,
        };
        if kept.is_some() || known.lent.is_some() {
            self.workers.release(Job::Release { key, kept, lent: known.lent, check });
        }
    }

    pub(super) fn notice(&mut self, place: Place, notice: Notice) {
        match notice {
            Notice::Started { key, at } => {
                self.meters.executions_started.inc();
                self.attempts.log_at(key, self.folder(place, key), true);
                self.events.push(Event::Started { execution: key.execution, attempt: key.attempt, at });
                if self.services.ready(key) {
                    self.common = None;
                    self.hand_waiting();
                }
            }
            Notice::Ended { key, end } => {
                self.taken_off(place, key);
                self.ended(place, key, &end);
            }
            Notice::GivenBack { key, .. } => {
                self.taken_off(place, key);
                self.killed(key);
            }
        }
    }

    /// An attempt has emitted, or asks how far its source has come.
    pub(super) fn emitted(&mut self, key: Key, records: Vec<Record>) {
        self.emitting.insert(key);
        // Where nobody listens any more the agent ends, and the shim tells the next one.
        let _ = self.emitted.send(Emitted::Records { key, records });
    }

    fn taken(&mut self, key: Key, taken: Taken) {
        let Some(Place::Slot(slot)) = self.attempts.get(key).and_then(|known| known.place) else { return };
        if let Some(shim) = self.slots.shim_mut(slot) {
            shim.say(&ToShim::Taken { key, taken });
        }
    }

    pub(super) fn ended(&mut self, place: Place, key: Key, end: &End) {
        if self.emitting.remove(&key) {
            let _ = self.emitted.send(Emitted::Over(key));
        }
        if self.services.over(key) {
            // What was prepared may name its address.
            self.common = None;
        }
        self.release_gpus(key);
        self.meters.ended(&end.how);
        let bytes_in = self.attempts.get(key).map_or(0, |known| known.bytes_in);
        self.attempts.end(key, place, end);
        self.attempts.log_at(key, self.folder(place, key).join(KEPT).join(key.folder()), false);
        let Key { execution, attempt } = key;
        match &end.how {
            EndKind::NotStarted { message, no_space } => {
                let reason = if *no_space { FailureReason::NoSpace } else { FailureReason::NotExecutable };
                self.not_started(key, reason, message.clone());
            }
            EndKind::Code(_)
            | EndKind::Signal(_)
            | EndKind::TimedOut
            | EndKind::OutOfMemory
            | EndKind::Killed
            | EndKind::Interrupted { .. }
            | EndKind::Returned { .. }
            | EndKind::Failed { .. } => {
                if matches!(&end.how, EndKind::Failed { reason: FailureReason::NotExecutable, .. }) {
                    // Somebody may have removed the image.
                    self.workers.doubt_images();
                }
                let stored = self.values_of(place, key, end);
                self.events.push(Event::Exited { execution, attempt, exit: exit(end, bytes_in), stored });
            }
        }
    }
}

fn bytes_of(value: &StartValue) -> u64 {
    match value {
        StartValue::Value(value @ (Value::File(_) | Value::Directory(_) | Value::List(_) | Value::Object(_))) => {
            let mut bytes = 0;
            value.visit_objects(&mut |object| bytes += object.bytes);
            bytes
        }
        StartValue::Value(_) | StartValue::Sealed { .. } => 0,
    }
}
