//! A workflow that is deployed, and its source: a process that emits whoever is killed around it, and is killed itself. In the
//! end each of its records has started one run.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use atoll_model::id::RunId;
use atoll_model::time::Timestamp;
use atoll_model::value::Value;
use atoll_model::workflow::Step;
use control_plane_core::view::RunTags;
use control_plane_core::{Deployed, DeploymentName, EmittedRecord, Fact, Request};
use indexmap::IndexMap;
use site_agent_core::event::ExitKind;

use crate::clients::Want;
use crate::machine::{ClaimState, Key};
use crate::rng::mix;
use crate::workload;
use crate::world::{Answer, Ask, Occurrence, World};

/// Records of a source.
pub(crate) const RECORDS: i64 = 25;
/// So many wait for an answer at a time.
const AT_ONCE: usize = 3;
/// How far a source goes back that relies on the keys of its records.
const BACK: i64 = 5;
/// After this long a call that was not answered is made again.
const AGAIN: Duration = Duration::from_secs(1);

const WORKFLOW: &str = "workflow: fed\ninputs: { n: integer }\nsteps: { next: { executor: null } }\n";
const EMITTER: &str = "workflow: emitter\nsteps: { source: { run: emit, site: s0 } }\n";

/// What a source has emitted, as whoever watches over its process knows it.
#[derive(Debug, Default)]
pub(crate) struct Emitting {
    /// What it had emitted when it began; nothing before it was told.
    base: Option<i64>,
    /// Of the last record.
    last: u64,
    waiting: VecDeque<u64>,
    /// The process of the agent that has a call under way.
    called_by: Option<u64>,
}

/// The records of a call, by their numbers: the value of each is its number more than the base.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Emission {
    pub(crate) key: Key,
    base: i64,
    first: u64,
    count: u64,
}

pub(crate) fn is_source(workflow: &str) -> bool {
    workflow == "fed.source"
}

pub(crate) fn name() -> DeploymentName {
    DeploymentName { project: RunTags::PROJECT.to_owned(), name: "fed".to_owned() }
}

/// As the shell makes it, which has another name for a run each time that somebody asks.
pub(crate) fn deploy_request(seed: u64, generation: u32, asked_at: Timestamp) -> Request {
    let mut emitter = workload::read(EMITTER);
    emitter.name = "fed.source".to_owned();
    emitter.steps = emitter.steps.into_iter().map(persistent).collect();
    let run =
        RunId::from_bits(u128::from(mix(&[seed, 0x50_0CE, u64::from(generation), asked_at.micros().cast_unsigned()])));
    let deployed = Deployed {
        workflow: Arc::new(workload::read(WORKFLOW)),
        text: Arc::from(format!("{WORKFLOW}# {generation}\n")),
        emitter: Some((Arc::new(emitter), run)),
        by: "somebody".to_owned(),
    };
    Request::DeployWorkflow { name: name(), deployed: Box::new(deployed) }
}

fn persistent(mut step: Step) -> Step {
    step.retry.attempts = u32::MAX;
    step
}

impl World {
    pub(crate) fn plan_sources(&mut self) {
        if !self.scenario.sources {
            return;
        }
        self.wish(Duration::from_secs(1), Want::Deploy { generation: 1 });
        let unquiet = self.scenario.unquiet.as_micros() as u64;
        if self.rng.chance(400) {
            let later = self.rng.micros(2_000_000, unquiet);
            self.wish(later, Want::Deploy { generation: 2 });
        }
        self.wish(self.scenario.unquiet, Want::Undeploy);
    }

    /// Whether all was emitted, so that the source may go.
    pub(crate) fn has_emitted_all(&self) -> bool {
        let deployed = self.leading_core().and_then(|core| core.deployment(&name()));
        deployed.is_none_or(|deployed| deployed.emitted >= RECORDS as u64)
    }

    pub(crate) fn source_begins(&mut self, site: usize, key: Key) {
        self.sites[site].machine.emitting.insert(key, Emitting::default());
        if self.unquiet && self.rng.chance(700) {
            let boot = self.sites[site].machine.boot;
            let delay = self.rng.spread(50_000, 60_000_000);
            self.after(delay, Occurrence::ProcessExits { site, boot, key });
        }
        self.emit(site, key, Duration::ZERO);
    }

    /// How the process of a source ends by itself: it fails, or is gone with what watches over it.
    pub(crate) fn source_exit(&self, (execution, attempt): Key) -> ExitKind {
        let number = mix(&[self.scenario.seed, execution.run.bits() as u64, u64::from(attempt.0), 0xE817]);
        if number.is_multiple_of(2) {
            return ExitKind::Code(1);
        }
        ExitKind::Interrupted("its shim was killed".to_owned())
    }

    /// An agent begins, and hears of its shims what was not answered.
    pub(crate) fn emit_again(&mut self, site: usize) {
        let keys: Vec<Key> = self.sites[site].machine.emitting.keys().copied().collect();
        keys.into_iter().for_each(|key| self.emit(site, key, Duration::ZERO));
    }

    fn emit(&mut self, site: usize, key: Key, delay: Duration) {
        let state = &mut self.sites[site];
        let is_running =
            state.machine.claims.get(&key).is_some_and(|claim| matches!(claim.state, ClaimState::Running { .. }));
        let Some(emitting) = state.machine.emitting.get_mut(&key) else { return };
        if state.core.is_none() || !is_running || emitting.called_by == Some(state.process) {
            return;
        }
        let first = emitting.waiting.front().copied().unwrap_or(0);
        if emitting.base.is_some() && emitting.waiting.is_empty() {
            return;
        }
        emitting.called_by = Some(state.process);
        let (base, count) = (emitting.base.unwrap_or(0), emitting.waiting.len() as u64);
        self.call_after(delay, site, Ask::Emit(Emission { key, base, first, count }));
    }

    /// What a call asks for that has arrived.
    pub(crate) fn emit_request(&self, site: usize, rpc: u64, emission: &Emission) -> Request {
        let Emission { key: (execution, attempt), base, first, count } = *emission;
        let record = |number: u64| {
            let value = base + i64::try_from(number).expect("few");
            let run = RunId::from_bits(u128::from(mix(&[self.scenario.seed, rpc, number, 0xE817])));
            let inputs = IndexMap::from_iter([("n".to_owned(), Value::Integer(value))]);
            let key = self.has_keys().then(|| value.to_string());
            EmittedRecord { number, run, inputs, offset: Some(Arc::from(value.to_string())), key }
        };
        let records = (first..first + count).map(record).collect();
        Request::Emit { agent: self.sites[site].agent, execution, attempt, records }
    }

    pub(crate) fn emit_answered(&mut self, site: usize, emission: &Emission, result: Result<Answer, String>) {
        let (key, has_keys) = (emission.key, self.has_keys());
        let Some(emitting) = self.sites[site].machine.emitting.get_mut(&key) else { return };
        emitting.called_by = None;
        let Ok(Answer::Emitted { through, offset, refused }) = result else {
            return self.emit(site, key, AGAIN);
        };
        assert_eq!(refused, None, "a record was refused");
        if emitting.base.is_none() {
            let offset: i64 = offset.map_or(0, |offset| offset.parse().expect("it was a number"));
            emitting.base = Some(if has_keys { (offset - BACK).max(0) } else { offset });
        }
        emitting.waiting.retain(|number| *number > through);
        let left = RECORDS - emitting.base.unwrap_or(0);
        while emitting.waiting.len() < AT_ONCE && i64::try_from(emitting.last).expect("few") < left {
            emitting.last += 1;
            emitting.waiting.push_back(emitting.last);
        }
        let delay = self.rng.spread(1_000, 5_000_000);
        self.emit(site, key, delay);
    }

    /// In some worlds the source does not go on where it stopped, and its records have keys.
    fn has_keys(&self) -> bool {
        mix(&[self.scenario.seed, 0x4E_75]).is_multiple_of(2)
    }

    /// A run that a record has started, or that of a source.
    pub(crate) fn note_emitted(&mut self, fact: &Fact) {
        let Fact::RunSubmitted { run, workflow, inputs, .. } = fact else { return };
        let is_fed = workflow.name == name().name;
        if let Some(Value::Integer(value)) = inputs.get("n").filter(|_| is_fed) {
            assert!(self.history.emitted.insert(*value), "record {value} has started two runs");
        }
        if is_fed || is_source(&workflow.name) {
            self.clients.runs.push(*run);
        }
    }

    /// Each record has started its run.
    pub(crate) fn check_emitted(&self) {
        if self.scenario.sources {
            let all = (1..=RECORDS).collect();
            assert_eq!(self.history.emitted, all, "records that have started a run");
            let core = self.leading_core().expect("one leads when all is quiet");
            assert!(core.deployment(&name()).is_none(), "what was undeployed is gone");
        }
    }
}
