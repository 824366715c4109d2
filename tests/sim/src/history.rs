//! What really happened, as nobody inside the simulation can see it, and what must never happen.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use atoll_model::elements::ElementSet;
use atoll_model::id::{AgentId, Attempt, ExecutionId, ObjectId, RunId, SiteId, SiteName, StepIndex};
use atoll_model::session::{AgentFrame, StepTemplate};
use atoll_model::value::ObjectRef;
use atoll_model::workflow::{OnDisconnect, StartMode};
use control_plane_core::{Fact, ReturnCause};
use site_agent_core::event::ExitKind;

use crate::machine::Key;

#[derive(Debug, Default)]
pub(crate) struct History {
    /// Values of records that have started a run.
    pub(crate) emitted: BTreeSet<i64>,
    /// Starts of a process, by attempt.
    pub(crate) starts: BTreeMap<Key, u32>,
    /// Attempts that have a process now, and at which site.
    alive: BTreeMap<Key, usize>,
    /// Attempts whose process came to its end without having been stopped.
    ended_by_itself: BTreeSet<Key>,
    /// The attempt at each execution that counts, and the site that has it, as the journal has it.
    pub(crate) current: BTreeMap<ExecutionId, (Attempt, SiteId)>,
    /// Attempts that were dispatched to wait at their site for what others make there.
    ahead: BTreeMap<Key, bool>,
    /// Executions that were given to another because nothing was heard of the one who had them.
    pub(crate) given_away: BTreeSet<ExecutionId>,
    /// The number of the last command that each agent was given.
    commands: BTreeMap<AgentId, u64>,
    /// Steps that were ever delegated.
    delegated_steps: BTreeSet<(RunId, StepIndex)>,
    /// Steps that were delegated and given away, whatever their agents had begun of them.
    pub(crate) given_away_steps: BTreeSet<(RunId, StepIndex)>,
    /// Executions of unknown fate that somebody let run again.
    pub(crate) resolved: BTreeSet<ExecutionId>,
    /// Runs that have a reason to fail: a process of theirs failed, or was stopped and must not start twice.
    pub(crate) may_fail: BTreeSet<RunId>,
    /// Bytes that crossed a border: object, from, to; how often.
    pub(crate) crossings: BTreeMap<(ObjectId, String, String), u64>,
    pub(crate) moved: Vec<Crossing>,
    /// What executions were started with at a site, and what was made at one, when first.
    pub(crate) reads: BTreeMap<(ObjectId, String), BTreeSet<ExecutionId>>,
    pub(crate) made_at: BTreeMap<(ObjectId, String), Duration>,
    /// Steps that have made an object.
    pub(crate) makers: BTreeMap<ObjectId, BTreeSet<(RunId, StepIndex)>>,
    /// What attempts have published, by the site.
    pub(crate) published: BTreeMap<Key, (usize, Vec<ObjectId>)>,
    /// When somebody last began to bring an object to a place.
    pub(crate) begun: BTreeMap<(ObjectId, String), Duration>,
    /// What came to a site from another that was being given it.
    pub(crate) relayed: BTreeSet<(ObjectId, usize)>,
    /// The time now.
    pub(crate) at: Duration,
    /// Executions, and delegated steps, that were taken from a site before they had ended there, and when last.
    pub(crate) taken: BTreeMap<ExecutionId, Duration>,
    pub(crate) taken_steps: BTreeMap<(RunId, StepIndex), Duration>,
    /// How often executions that had succeeded were made again, for what they had made was lost.
    pub(crate) made_again: BTreeMap<ExecutionId, usize>,
    /// Runs of which nothing was needed any more, and since when.
    pub(crate) broken_off: BTreeMap<RunId, Duration>,
    /// Steps whose outputs a rule wants in the bucket at once; what they made, and for which runs.
    pub(crate) eager_steps: BTreeSet<(RunId, StepIndex)>,
    pub(crate) eager: BTreeMap<ObjectId, BTreeSet<RunId>>,
    /// Steps whose outputs must not leave some sites, and these; and what they made.
    pub(crate) confined_steps: BTreeMap<(RunId, StepIndex), BTreeSet<String>>,
    pub(crate) confined: BTreeMap<ObjectId, BTreeSet<String>>,
    /// What executions made, in order.
    made: BTreeMap<RunId, Vec<ObjectRef>>,
    /// Runs of which all that is made is held, or pinned wherever it is, by a rule that is never lifted.
    pub(crate) holding: BTreeSet<RunId>,
    pub(crate) pinning: BTreeSet<RunId>,
    /// Runs of which all that is made is wanted at two sites, by a rule that is never lifted.
    pub(crate) replicating: BTreeSet<RunId>,
    /// Runs of which nothing that is made is left in the end, by a rule that is never lifted; what they have made since, and
    /// what others have.
    pub(crate) expiring: BTreeSet<RunId>,
    pub(crate) expired: BTreeSet<ObjectId>,
    pub(crate) made_to_stay: BTreeSet<ObjectId>,
    /// What they have made since, and what of it counted at once.
    pub(crate) held: BTreeSet<ObjectId>,
    pub(crate) pinned: BTreeSet<ObjectId>,
    /// Copies that do not count any more, and whose sites may not have heard of it: granted before anything pinned them.
    pub(crate) let_go: BTreeSet<(SiteName, ObjectId)>,
    /// The names of sites, as their tokens gave them.
    names: BTreeMap<SiteId, SiteName>,
    pub(crate) replicated: BTreeSet<(ObjectId, RunId)>,
    /// Sites that were revoked: what one had not told by then, nobody knows.
    pub(crate) revoked: BTreeSet<String>,
    /// Runs that were acknowledged.
    pub(crate) acknowledged: BTreeSet<RunId>,
    /// Times that the control plane was set back to a backup, and what was done since the last one that it does not know.
    pub(crate) restored: u32,
    since_backup: BTreeSet<ExecutionId>,
    /// Executions of which nobody may have told what was done since the backup, and runs that began anew after it: of
    /// these an attempt may be made twice.
    doubtful: BTreeSet<ExecutionId>,
    anew: BTreeSet<RunId>,
    /// When a process last began.
    pub(crate) last_start: Duration,
    pub(crate) journals_lost: u32,
    pub(crate) crashes: u32,
    /// When somebody was last killed.
    pub(crate) last_crash: Duration,
    pub(crate) reboots: u32,
    pub(crate) damages: u32,
    /// Copies that sites have let go of.
    pub(crate) evictions: u64,
    /// Times that a server found that it leads no more.
    pub(crate) depositions: u32,
    /// Sites that were taken for lost.
    pub(crate) lost: u64,
}

/// Bytes that came over a border.
#[derive(Debug, Clone)]
pub(crate) struct Crossing {
    pub(crate) object: ObjectId,
    pub(crate) bytes: u64,
    pub(crate) from: String,
    pub(crate) to: String,
    /// When somebody began to fetch or push it.
    pub(crate) began: Duration,
}

impl History {
    pub(crate) fn process_began(&mut self, key: Key, site: usize, start: StartMode) {
        let (execution, attempt) = key;
        let all = (execution, Attempt(0))..=(execution, Attempt(u32::MAX));
        if self.doubtful.contains(&execution) || self.anew.contains(&execution.run) {
            self.alive.insert(key, site);
            *self.starts.entry(key).or_default() += 1;
            return;
        }
        for ((_, other), other_site) in self.alive.range(all.clone()) {
            assert_ne!(*other, attempt, "two live processes of {key:?}");
            assert_ne!(*other_site, site, "two live attempts at {execution} at one site");
            let given_away = self.given_away.contains(&execution)
                || self.given_away_steps.contains(&(execution.run, execution.step));
            assert!(given_away, "two live attempts at {execution}, which nobody gave away");
        }
        if start == StartMode::AtMostOnce && !self.resolved.contains(&execution) {
            let earlier = self.starts.range(all).map(|(key, _)| key).find(|key| !self.ended_by_itself.contains(key));
            assert_eq!(earlier, None, "{execution} was started once more, and must not be");
        }
        self.alive.insert(key, site);
        let starts = self.starts.entry(key).or_default();
        *starts += 1;
        assert!(start == StartMode::AtLeastOnce || *starts == 1, "{key:?} was started twice, and must not be");
    }

    pub(crate) fn process_ended(&mut self, key: Key, how: &ExitKind, template: &StepTemplate) {
        self.alive.remove(&key);
        let stopped = matches!(how, ExitKind::Killed | ExitKind::Interrupted(_));
        if !stopped {
            self.ended_by_itself.insert(key);
        }
        let succeeded = *how == ExitKind::Code(0);
        // What the loss of the link has stopped several times counts as poison, like what a crash has.
        let gives_up = template.start == StartMode::AtMostOnce || template.on_disconnect == OnDisconnect::Stop;
        if !succeeded && (!stopped || gives_up) {
            self.may_fail.insert(key.0.run);
        }
    }

    /// The control plane knows what it knew at an earlier time. Runs that it does not know any more begin anew.
    pub(crate) fn set_back(&mut self, gone: &BTreeSet<RunId>, current: BTreeMap<ExecutionId, (Attempt, SiteId)>) {
        self.restored += 1;
        self.acknowledged.retain(|run| !gone.contains(run));
        self.anew.extend(gone);
        let is_new = |(execution, attempt): &&Key| current.get(execution).is_none_or(|(known, _)| known != attempt);
        self.since_backup.extend(self.ahead.keys().filter(is_new).map(|(execution, _)| *execution));
        self.current = current;
    }

    /// What is known of a run beforehand holds of the one that it is from now on as well.
    pub(crate) fn rename(&mut self, run: RunId, now: RunId) {
        let confined = self.confined_steps.iter().filter(|((of, _), _)| *of == run);
        let confined: Vec<_> = confined.map(|((_, step), to)| ((now, *step), to.clone())).collect();
        self.confined_steps.extend(confined);
        let eager: Vec<_> =
            self.eager_steps.iter().filter(|(of, _)| *of == run).map(|(_, step)| (now, *step)).collect();
        self.eager_steps.extend(eager);
        let ruled = [&mut self.holding, &mut self.pinning, &mut self.replicating, &mut self.expiring];
        for runs in ruled.into_iter().chain([&mut self.may_fail]) {
            if runs.contains(&run) {
                runs.insert(now);
            }
        }
    }

    /// What was done since the backup may be done again.
    pub(crate) fn doubt_what_came_since(&mut self) {
        self.doubtful.append(&mut self.since_backup);
    }

    /// Whether an attempt waits, or waited, at its site for what others make there.
    pub(crate) fn is_ahead(&self, key: Key) -> bool {
        // Of a delegated step its agent gives out attempts by itself.
        let delegated = self.delegated_steps.contains(&(key.0.run, key.0.step));
        delegated || self.ahead.get(&key).copied().unwrap_or(false)
    }

    pub(crate) fn commands_given(&mut self, agent: AgentId, last: u64) {
        let given = self.commands.entry(agent).or_default();
        *given = last.max(*given);
    }

    pub(crate) fn commands_acknowledged(&self, agent: AgentId, frame: &AgentFrame) {
        let given = self.commands.get(&agent).copied().unwrap_or(0);
        let acknowledged = frame.acknowledged.0;
        assert!(acknowledged <= given, "{agent} acknowledges command {acknowledged}, and was given {given}");
    }

    /// What the control plane has decided and made durable: who has what, and what may be started again.
    #[expect(clippy::wildcard_enum_match_arm, reason = "most facts are of something else")]
    pub(crate) fn decided(&mut self, fact: &Fact) {
        let executions = |run: &RunId, step: &StepIndex, elements: &ElementSet| -> Vec<ExecutionId> {
            elements.iter().map(|element| ExecutionId { run: *run, step: *step, element }).collect()
        };
        match fact {
            Fact::TokenCreated { site, site_id, .. } => {
                self.names.insert(*site_id, site.clone());
            }
            Fact::ExecutionsPlaced { run, step, attempt, elements, site, .. } => {
                let had = executions(run, step, elements).into_iter().map(|execution| (execution, (*attempt, *site)));
                self.current.extend(had);
            }
            Fact::ExecutionsDispatched { run, step, attempt, elements, site, fragment, .. } => {
                for execution in executions(run, step, elements) {
                    self.current.insert(execution, (*attempt, *site));
                    self.ahead.insert((execution, *attempt), *fragment);
                }
            }
            Fact::RunFailing { run, error } => {
                self.broken_off.entry(*run).or_insert(self.at);
                // An expression has no value.
                if error.execution.is_none() {
                    self.may_fail.insert(*run);
                }
            }
            Fact::RunCancelling { run, .. } => {
                self.broken_off.entry(*run).or_insert(self.at);
            }
            Fact::StepDelegated { run, step, .. } => {
                self.delegated_steps.insert((*run, *step));
            }
            Fact::DelegationEnded { run, step, given_away } => {
                self.taken_steps.insert((*run, *step), self.at);
                if *given_away {
                    self.given_away_steps.insert((*run, *step));
                }
            }
            Fact::ExecutionsTaken { run, step, attempt, elements, site, .. } => {
                let had = executions(run, step, elements).into_iter().map(|execution| (execution, (*attempt, *site)));
                self.current.extend(had);
            }
            Fact::AgentLost { .. } => {
                self.lost += 1;
                // What it has done since the backup nobody tells of.
                self.doubt_what_came_since();
            }
            Fact::AttemptAdopted { execution, attempt, site, .. } => {
                self.current.insert(*execution, (*attempt, *site));
            }
            Fact::ExecutionsFinished { run, step, site, elements } => {
                for finished in elements {
                    let execution = ExecutionId { run: *run, step: *step, element: finished.element };
                    let (has, counts) = (self.current.remove(&execution), (finished.attempt, *site));
                    assert_eq!(has, Some(counts), "who has {execution} (left), and whose outcome of it counts");
                    let is_first = finished.attempt == Attempt::FIRST && !self.given_away.contains(&execution);
                    for output in &finished.outputs {
                        output.visit_objects(&mut |object| {
                            let lasts = !self.expiring.contains(run);
                            if lasts { &mut self.made_to_stay } else { &mut self.expired }.insert(object.id);
                            self.held.extend(self.holding.get(run).map(|_| object.id));
                            self.replicated.extend(self.replicating.get(run).map(|_| (object.id, *run)));
                            self.pinned.extend(self.pinning.get(run).filter(|_| is_first).map(|_| object.id));
                        });
                    }
                }
            }
            Fact::EvictionGranted { site, objects, .. } => {
                let ids = objects.iter().map(|object| object.id).filter(|id| !self.pinned.contains(id));
                self.let_go.extend(ids.map(|id| (self.names[site].clone(), id)));
            }
            Fact::EvictionEnded { site, gone, kept } => {
                gone.iter().chain(kept).for_each(|id| {
                    self.let_go.remove(&(self.names[site].clone(), *id));
                });
            }
            Fact::ExecutionsGivenUp { run, step, elements, .. } => {
                for execution in executions(run, step, elements) {
                    self.current.remove(&execution);
                }
            }
            Fact::RecomputeOrdered { execution } => *self.made_again.entry(*execution).or_default() += 1,
            Fact::ExecutionsReturned { run, step, elements, cause, .. } => {
                let executions = executions(run, step, elements);
                for execution in &executions {
                    self.current.remove(execution);
                }
                self.taken.extend(executions.iter().map(|execution| (*execution, self.at)));
                match cause {
                    // What waited for others may have begun on what they have not committed: it is told to end, and may
                    // take its time.
                    ReturnCause::Lost | ReturnCause::Withdrawn => self.given_away.extend(executions),
                    ReturnCause::Resolved => self.resolved.extend(executions),
                    ReturnCause::Failed
                    | ReturnCause::Interrupted
                    | ReturnCause::NotStarted
                    | ReturnCause::NeverSent
                    | ReturnCause::Stopped
                    | ReturnCause::Refused
                    | ReturnCause::OutOfMemory
                    | ReturnCause::InputUnavailable => {}
                }
            }
            _ => {}
        }
    }

    pub(crate) fn crossed(&mut self, (object, bytes): (ObjectId, u64), from: &str, to: &str, began: Duration) {
        let may = self.confined.get(&object).is_none_or(|sites| sites.contains(to));
        assert!(may, "{object}, which is confined, went from {from} to {to}");
        let (from, to) = (from.to_owned(), to.to_owned());
        *self.crossings.entry((object, from.clone(), to.clone())).or_default() += 1;
        self.moved.push(Crossing { object, bytes, from, to, began });
    }

    /// An execution is started with objects that are at its site.
    pub(crate) fn read(&mut self, execution: ExecutionId, site: &str, objects: &[ObjectId]) {
        for object in objects {
            self.reads.entry((*object, site.to_owned())).or_default().insert(execution);
        }
    }

    /// Whether anything of a run must not leave some sites.
    pub(crate) fn is_confined(&self, run: RunId) -> bool {
        let all = (run, StepIndex(0))..=(run, StepIndex(u16::MAX));
        self.confined_steps.range(all).next().is_some()
    }

    pub(crate) fn made(&mut self, run: RunId, step: StepIndex, object: ObjectRef) {
        if let Some(sites) = self.confined_steps.get(&(run, step)) {
            self.confined.insert(object.id, sites.clone());
        }
        let made = self.made.entry(run).or_default();
        if made.last() != Some(&object) {
            made.push(object);
        }
    }

    /// An output is in the store of a site.
    pub(crate) fn made_output(&mut self, execution: ExecutionId, object: ObjectRef, site: &str, at: Duration) {
        self.made(execution.run, execution.step, object);
        self.made_at.entry((object.id, site.to_owned())).or_insert(at);
        self.makers.entry(object.id).or_default().insert((execution.run, execution.step));
        if self.eager_steps.contains(&(execution.run, execution.step)) {
            self.eager.entry(object.id).or_default().insert(execution.run);
        }
    }

    /// What was made for a run so far.
    pub(crate) fn made_by(&self, run: RunId) -> &[ObjectRef] {
        self.made.get(&run).map_or(&[], Vec::as_slice)
    }
}
