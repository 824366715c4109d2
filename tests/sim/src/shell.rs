//! The shell of an agent: what it does with the commands of its core.

use std::time::Duration;

use atoll_model::id::{Attempt, ObjectId};
use atoll_model::session::{
    AgentBody, FailureReason, Logs, PROTOCOL_VERSION_DELEGATION, StepTemplate, TemplateWork, Usage,
};
use atoll_model::time::Timestamp;
use atoll_model::value::{ObjectKind, ObjectRef, Value};
use atoll_model::workflow::OnDisconnect;
use site_agent_core::command::{StartInput, StartValue};
use site_agent_core::event::{
    Exit, ExitKind, OutputFailure, Seal, SealedOutput, SealedValue, StoredOutputs, WholeValue,
};
use site_agent_core::{Command, Event};

use crate::machine::{Claim, ClaimState, Key};
use crate::rng::mix;
use crate::sources;
use crate::workload::{self, Behaviour};
use crate::world::{Occurrence, Process, World};

fn objects_of(inputs: &[StartInput]) -> Vec<ObjectId> {
    let mut objects = Vec::new();
    for input in inputs {
        if let StartValue::Value(value) = &input.value {
            value.visit_objects(&mut |object| objects.push(object.id));
        }
    }
    objects
}

impl World {
    pub(crate) fn site_performs(&mut self, site: usize, command: Command, decided_at: Timestamp) {
        let process = self.sites[site].process;
        match command {
            Command::Send { mut frame } => {
                if let AgentBody::Hello(hello) = &mut frame.body
                    && self.scenario.old_agents
                {
                    hello.protocol_max = PROTOCOL_VERSION_DELEGATION - 1;
                }
                if let Some(stream) = self.sites[site].stream {
                    let at = self.now + self.latency(site);
                    self.enqueue_to_server(stream, at, frame);
                }
            }
            Command::Disconnect { give_up } => {
                self.agent_closes(site);
                self.sites[site].gave_up = give_up;
                self.reconnect(site);
            }
            Command::Locate { object } => {
                let present = self.verified(site, object.id);
                let delay = self.rng.micros(10, 2_000);
                self.tell_site(site, delay, Event::Located { object, present });
            }
            Command::Fetch { object, intent } => self.fetch(site, object, intent),
            Command::ForgetArrival { object, intent } => self.sites[site].machine.forget_arrival(object.id, intent),
            Command::CancelFetch { object } => self.cancel_fetch(site, object),
            Command::Push { transfer, object } => self.push(site, transfer, object),
            Command::CancelPush { transfer } => self.cancel_push(site, transfer),
            Command::Start { execution, attempt, template, inputs, ahead, .. } => {
                self.assert_leased(site, (execution, attempt), &template, decided_at);
                let mut objects = objects_of(&inputs);
                objects.extend(template.work.bundle().map(|bundle| bundle.id));
                if let Some(message) = self.unreadable(site, &objects) {
                    let reason = FailureReason::Agent;
                    let delay = self.rng.micros(10, 2_000);
                    self.tell_site(site, delay, Event::NotStarted { execution, attempt, reason, message });
                    return;
                }
                self.history.read(execution, self.sites[site].name.as_str(), &objects);
                let step = (execution.run, execution.step);
                let bytes_in = inputs.len() as u64;
                let machine = &mut self.sites[site].machine;
                objects.iter().for_each(|object| {
                    machine.watched.remove(object);
                });
                let claim = Claim { template, state: ClaimState::Queued, bytes_in, holds: objects };
                assert!(machine.claims.insert((execution, attempt), claim).is_none(), "claimed twice");
                if ahead.is_some() && machine.runs_any_of(execution.run, execution.step) {
                    machine.queues.entry(step).or_default().push_back((execution, attempt));
                } else {
                    self.process_begins(site, (execution, attempt));
                }
            }
            // Sites of the simulation have none.
            Command::WantPilots { .. } => {}
            Command::StartNull { run, step, attempt, mut elements } => {
                while !elements.is_empty() {
                    let count = self.rng.between(1, 8) as u32;
                    let elements = elements.take_first(count);
                    let delay = self.rng.micros(10, 3_000);
                    self.after(delay, Occurrence::NullFinishes { site, process, run, step, attempt, elements });
                }
            }
            Command::Kill { execution, attempt } => self.kill(site, (execution, attempt)),
            Command::Collect { execution, attempt, template: _, outputs } => {
                let key = (execution, attempt);
                if outputs && self.rng.chance(700) {
                    self.seal(site, key);
                }
                let delay = self.rng.spread(50, 200_000);
                self.after(delay, Occurrence::Collected { site, process, key, outputs });
            }
            Command::Release { execution, attempt } => {
                let claim = self.sites[site].machine.claims.remove(&(execution, attempt));
                assert!(
                    claim.is_none_or(|claim| matches!(claim.state, ClaimState::Exited(_))),
                    "{execution} is released while it runs"
                );
            }
            Command::FindEvictable { bytes: _, objects, actions: _ } => self.find_evictable(site, objects),
            Command::Evict { order, objects } => self.evict(site, order, objects),
            Command::Verify { order, objects } => self.verify(site, order, objects),
            Command::DropSealed { seals: _ } => {}
            Command::MakeReady { template } => self.make_ready(site, &template),
        }
    }

    /// The folder of an action is made of its bundle, which is in the store, or was damaged since.
    fn make_ready(&mut self, site: usize, template: &StepTemplate) {
        let bundle = template.work.bundle().expect("what is made ready has a bundle");
        self.sites[site].machine.watched.remove(&bundle.id);
        if let Some(message) = self.unreadable(site, &[bundle.id]) {
            self.trace(|| format!("s{site} cannot make {} ready: {message}", bundle.id));
        }
    }

    /// I3: nothing is started that was decided after the end of its lease.
    fn assert_leased(&self, site: usize, key: Key, template: &StepTemplate, decided_at: Timestamp) {
        let state = &self.sites[site];
        let goes_on = self.history.is_ahead(key) && template.on_disconnect == OnDisconnect::Finish;
        let until = if goes_on { state.work_until.max(state.session_until) } else { state.session_until };
        assert!(decided_at <= until, "s{site} starts {key:?}, and its lease ended at {until:?}");
    }

    /// A process of an attempt comes to its end, whether the agent lives or not.
    pub(crate) fn process_exits(&mut self, site: usize, boot: u64, key: Key) {
        if self.sites[site].machine.boot != boot {
            return;
        }
        let emits = self.sites[site].machine.emitting.contains_key(&key);
        let exit = if emits { self.source_exit(key) } else { self.behaviour(key).exit };
        self.end_process(site, key, exit);
    }

    /// The machine goes down with everything that runs on it, and comes up again.
    pub(crate) fn reboot(&mut self, site: usize) {
        self.crash_site(site);
        self.history.reboots += 1;
        let running: Vec<Key> = self.sites[site]
            .machine
            .claims
            .iter()
            .filter(|(_, claim)| !matches!(claim.state, ClaimState::Exited(_)))
            .map(|(key, _)| *key)
            .collect();
        self.sites[site].machine.boot += 1;
        self.sites[site].machine.booted_at = self.now;
        // What was granted before is not to be believed by a machine that was started anew.
        (self.sites[site].session_until, self.sites[site].work_until) = (Timestamp::ZERO, Timestamp::ZERO);
        self.sites[site].machine.queues.clear();
        for key in running {
            self.end_process(site, key, ExitKind::Interrupted("the machine went down".to_owned()));
        }
    }

    pub(crate) fn collected(&mut self, site: usize, process: Process, key: Key, outputs: bool) {
        if self.sites[site].process != process {
            return;
        }
        let (execution, attempt) = key;
        let Some(claim) = self.sites[site].machine.claims.get(&key) else { return };
        let template = std::sync::Arc::clone(&claim.template);
        let behaviour = self.behaviour((execution, attempt));
        let logs = self.store_logs(site, key);
        let full = self.sites[site].machine.is_full;
        let result = if outputs && (behaviour.spoils || full) {
            self.history.may_fail.insert(execution.run);
            let reason = if full { FailureReason::NoSpace } else { FailureReason::InvalidOutput };
            Err(OutputFailure { reason, message: "it cannot be taken in".to_owned(), logs })
        } else {
            let outputs = if outputs { self.store_outputs(site, key, &template) } else { Vec::new() };
            Ok(StoredOutputs { bytes_out: outputs.len() as u64, outputs, logs })
        };
        self.site_event(site, process, Event::OutputsStored { execution, attempt, result });
    }

    fn behaviour(&self, (execution, attempt): Key) -> Behaviour {
        let drawn = workload::behaviour(
            self.scenario.seed,
            execution,
            self.place_of((execution, attempt)),
            self.scenario.pace(),
        );
        if self.scenario.faultless { Behaviour { exit: ExitKind::Code(0), spoils: false, ..drawn } } else { drawn }
    }

    /// The number that decides what an attempt does.
    fn place_of(&self, (execution, attempt): Key) -> Attempt {
        if !self.scenario.unnumbered {
            return attempt;
        }
        let earlier = self.history.starts.range((execution, Attempt(0))..(execution, attempt)).count();
        Attempt(Attempt::FIRST.0 + u32::try_from(earlier).expect("attempts are few"))
    }

    fn process_begins(&mut self, site: usize, key: Key) {
        let (execution, attempt) = key;
        let at = self.site_time(site);
        let behaviour = self.behaviour((execution, attempt));
        let machine = &mut self.sites[site].machine;
        let Some(claim) = machine.claims.get_mut(&key) else { return };
        claim.state = ClaimState::Running { since: at };
        let (boot, start) = (machine.boot, claim.template.start);
        let is_source = sources::is_source(&claim.template.workflow);
        self.history.process_began(key, site, start);
        self.history.last_start = self.elapsed();
        self.trace(|| format!("s{site} * {execution} attempt {attempt} begins"));
        if is_source {
            self.source_begins(site, key);
        } else {
            self.after(behaviour.lasts, Occurrence::ProcessExits { site, boot, key });
        }
        let delay = self.rng.micros(10, 1_000);
        self.tell_site(site, delay, Event::Started { execution, attempt, at });
    }

    fn end_process(&mut self, site: usize, key: Key, how: ExitKind) {
        let (execution, attempt) = key;
        let finished_at = self.site_time(site);
        let Some(claim) = self.sites[site].machine.claims.get_mut(&key) else { return };
        let started_at = match claim.state {
            ClaimState::Queued => finished_at,
            ClaimState::Running { since } => since,
            ClaimState::Exited(_) => return,
        };
        self.sites[site].machine.emitting.remove(&key);
        let Some(claim) = self.sites[site].machine.claims.get_mut(&key) else { return };
        let usage = Usage { bytes_in: claim.bytes_in, ..Usage::default() };
        let exit = Exit { started_at, finished_at, how, usage };
        claim.state = ClaimState::Exited(exit.clone());
        let (template, read) = (std::sync::Arc::clone(&claim.template), claim.holds.clone());
        self.history.process_ended(key, &exit.how, &template);
        if exit.how == ExitKind::Code(0) && matches!(template.work, TemplateWork::Export { .. }) {
            self.history.published.insert(key, (site, read));
        }
        self.trace(|| format!("s{site} * {execution} attempt {attempt} ends: {:?}", exit.how));
        let stored = (exit.how == ExitKind::Code(0)).then(|| self.values_left(site, key, &template)).flatten();
        let delay = self.rng.micros(10, 2_000);
        self.tell_site(site, delay, Event::Exited { execution, attempt, exit, stored });
        let queue = self.sites[site].machine.queues.get_mut(&(execution.run, execution.step));
        if let Some(next) = queue.and_then(std::collections::VecDeque::pop_front) {
            self.process_begins(site, next);
        }
    }

    /// What is asked to end may take its time.
    fn kill(&mut self, site: usize, key: Key) {
        let step = (key.0.run, key.0.step);
        if let Some(queue) = self.sites[site].machine.queues.get_mut(&step) {
            queue.retain(|queued| *queued != key);
        }
        let slow = self.rng.chance(self.scenario.slow_kills);
        let longest: u64 = if self.scenario.long { 1_800_000_000 } else { 60_000_000 };
        // It ends before everything has.
        let left = self.scenario.unquiet.saturating_sub(self.elapsed()) + Duration::from_secs(60);
        let longest = longest.min(left.as_micros() as u64);
        let delay = slow.then(|| match self.scenario.long {
            true => self.rng.micros(1_000, longest),
            false => self.rng.spread(1_000, longest),
        });
        let runs = self.sites[site].machine.claims.get(&key).map(|claim| &claim.state);
        match (runs, delay) {
            (Some(ClaimState::Running { .. }), Some(delay)) => {
                let boot = self.sites[site].machine.boot;
                self.after(delay, Occurrence::ProcessKilled { site, boot, key });
            }
            _ => self.end_process(site, key, ExitKind::Killed),
        }
    }

    pub(crate) fn process_killed(&mut self, site: usize, boot: u64, key: Key) {
        if self.sites[site].machine.boot == boot {
            self.end_process(site, key, ExitKind::Killed);
        }
    }

    /// Why an input cannot be handed over: verified at each use, a damaged one is taken out of use and told of (D5).
    fn unreadable(&mut self, site: usize, objects: &[ObjectId]) -> Option<String> {
        for object in objects {
            let known = self.sites[site].machine.store.contains_key(object);
            assert!(known || self.history.damages > 0, "{site} is started without {object}");
            if !self.verified(site, *object) {
                return Some(format!("{object} is damaged"));
            }
        }
        None
    }

    /// Whether an object is in the store, whole; if it is damaged it is taken out.
    pub(crate) fn verified(&mut self, site: usize, id: ObjectId) -> bool {
        let Some(stored) = self.sites[site].machine.store.get(&id).copied() else { return false };
        if stored.damaged {
            self.sites[site].machine.store.remove(&id);
            let event = Event::Damaged { object: id, kind: stored.kind, message: "a bit has flipped".to_owned() };
            self.tell_site(site, Duration::from_micros(5), event);
        }
        !stored.damaged
    }

    fn seal(&mut self, site: usize, key: Key) {
        let (execution, attempt) = key;
        let Some(claim) = self.sites[site].machine.claims.get(&key) else { return };
        let template = std::sync::Arc::clone(&claim.template);
        let (making, place) = (self.making(key), self.place_of(key));
        let outputs = template.outputs.iter().map(|output| {
            let value = workload::output(making, execution, place, output);
            let name = output.name.clone();
            if let Value::File(file) = value {
                self.sites[site].machine.next_seal += 1;
                let seal = Some(Seal(self.sites[site].machine.next_seal));
                let value = SealedValue::File { name: file.name.as_bytes().to_vec(), bytes: file.bytes };
                SealedOutput { name, seal, value: Some(value) }
            } else {
                let value = Some(SealedValue::Whole(Box::new(WholeValue(value))));
                SealedOutput { name, seal: None, value }
            }
        });
        let outputs = outputs.collect();
        self.tell_site(site, Duration::from_micros(40), Event::OutputsSealed { execution, attempt, outputs });
    }

    /// What an attempt left, if that is nothing but values, and its agent reads them before it tells of its end.
    fn values_left(&self, site: usize, key: Key, template: &StepTemplate) -> Option<StoredOutputs> {
        let is_early = mix(&[self.number_of(key), 0xEA21]).is_multiple_of(2);
        if !is_early || self.behaviour(key).spoils || self.sites[site].machine.is_full || self.log_of(key).is_some() {
            return None;
        }
        let outputs = self.outputs_of(key, template);
        let mut objects = 0;
        outputs.iter().for_each(|output| output.visit_objects(&mut |_| objects += 1));
        (objects == 0).then(|| StoredOutputs { bytes_out: outputs.len() as u64, outputs, logs: Logs::default() })
    }

    fn outputs_of(&self, key: Key, template: &StepTemplate) -> Vec<Value> {
        let (execution, _) = key;
        let (making, place) = (self.making(key), self.place_of(key));
        template.outputs.iter().map(|output| workload::output(making, execution, place, output)).collect()
    }

    fn making(&self, (execution, _): Key) -> workload::Making {
        let shared = !self.history.is_confined(execution.run);
        workload::Making { seed: self.scenario.seed, shared, large: self.scenario.is_thin() }
    }

    fn store_outputs(&mut self, site: usize, key: Key, template: &StepTemplate) -> Vec<Value> {
        let (execution, _) = key;
        let outputs = self.outputs_of(key, template);
        let (name, at) = (self.sites[site].name.to_string(), self.elapsed());
        for output in &outputs {
            output.visit_objects(&mut |object| {
                self.sites[site].machine.put(object);
                self.sites[site].machine.hold(key, object.id);
                self.history.made_output(execution, object, &name, at);
            });
        }
        outputs
    }

    /// By which is decided what an attempt does, without a draw that would shift others.
    fn number_of(&self, (execution, attempt): Key) -> u64 {
        mix(&[
            self.scenario.seed,
            execution.run.bits() as u64,
            u64::from(execution.step.0),
            u64::from(execution.element),
            u64::from(attempt.0),
        ])
    }

    fn log_of(&self, key: Key) -> Option<ObjectRef> {
        let number = self.number_of(key);
        number.is_multiple_of(3).then(|| workload::object(number ^ 1, ObjectKind::File))
    }

    fn store_logs(&mut self, site: usize, key: Key) -> Logs {
        let (execution, _) = key;
        let stdout = self.log_of(key);
        if let Some(log) = stdout {
            self.sites[site].machine.put(log);
            self.sites[site].machine.hold(key, log.id);
            self.history.made(execution.run, execution.step, log);
        }
        Logs { stdout, stderr: None }
    }
}
