//! Playing a scenario to its end, and what must be true then.

use std::collections::BTreeMap;
use std::time::Duration;

use atoll_model::id::{Attempt, ExecutionId, ObjectId, RunId};
use atoll_model::value::Value;
use atoll_model::workflow::Work;
use control_plane_core::FinishedRun;
use control_plane_core::view::{ExecutionPage, ExecutionState, RunError, RunState, SiteState};
use indexmap::IndexMap;

use crate::clients::Want;
use crate::rng::Digest;
use crate::scenario::Scenario;
use crate::site::{Site, Standing};
use crate::world::World;

/// Within this long after the last fault everything has come to an end: a site that was cut off counts as lost after a
/// quarter of an hour, a control plane that was just started waits for five minutes, what is quarantined is refused for a
/// day, and after that a few dozen executions of half an hour each may have to run one after the other, several times.
const LIVENESS_BOUND: Duration = Duration::from_secs(2 * 24 * 3_600);
/// Until nothing is on its way any more, and nothing that a person sent in, or a revoked site may have, is in the bucket.
const AFTERMATH: Duration = Duration::from_secs(10 * 60);
/// After the last fault, before what an agent measured while it was held up is measured again.
const SETTLED: Duration = Duration::from_secs(600);
/// Until sites have let go of all that has expired, also of what they were asked for many times; and how often that is looked at.
const EXPIRING: Duration = Duration::from_secs(4 * 3_600);
const EXPIRING_LOOK: Duration = Duration::from_secs(60);
const HOLD_MAX: Duration = Duration::from_secs(2 * 3_600);

/// What can be seen of a world after a while.
#[derive(Debug)]
pub struct Sight {
    pub sites: Vec<SiteState>,
    /// Why each agent does not connect any more, if it does not.
    pub gave_up: Vec<Option<String>>,
}

/// Plays a scenario for a while, and looks.
///
/// # Panics
/// When a promise is broken.
pub fn look(scenario: Scenario, after: Duration) -> Sight {
    let mut world = World::new(scenario);
    let end = world.now + after;
    while world.step(end) {}
    let sites = world.leading_core().map(|core| core.sites().iter().map(|site| site.state).collect());
    Sight { sites: sites.unwrap_or_default(), gave_up: world.sites.iter().map(|site| site.gave_up.clone()).collect() }
}

/// A run and its executions, but for when and where.
#[derive(Debug, PartialEq)]
pub struct Seen {
    pub state: RunState,
    pub outputs: IndexMap<String, Value>,
    pub error: Option<RunError>,
    pub executions: Vec<SeenExecution>,
}

#[derive(Debug, PartialEq)]
pub struct SeenExecution {
    pub execution: ExecutionId,
    pub attempt: Attempt,
    pub state: ExecutionState,
    pub inputs: IndexMap<String, Value>,
    pub outputs: IndexMap<String, Value>,
    pub error: Option<String>,
}

/// What a scenario came to.
#[derive(Debug)]
pub struct Ending {
    pub digest: Digest,
    /// Points at which somebody could have been killed.
    pub points: u64,
    pub events: u64,
    pub crashes: u32,
    pub starts: u64,
    /// When a process last began.
    pub last_start: Duration,
    /// When somebody was last killed.
    pub last_crash: Duration,
    pub states: Vec<RunState>,
    /// What people can see of each run that has ended.
    pub runs: Vec<Seen>,
    /// Crossings of a border: object, from, to.
    pub crossings: u64,
    /// Those of them that came from a site which was being given the object itself.
    pub relayed: u64,
    /// Times that a server found that it leads no more.
    pub depositions: u64,
    /// Runs that the history holds, and nobody else.
    pub kept: u64,
    /// Sites that were taken for lost.
    pub lost: u64,
    /// Times that the control plane was set back to a backup.
    pub restored: u32,
}

/// Plays a scenario.
///
/// # Panics
/// When a promise is broken.
pub fn run(scenario: Scenario) -> Ending {
    let mut world = World::new(scenario);
    let points = play(&mut world);
    world.check_end();
    Ending {
        digest: world.digest,
        points,
        last_start: world.history.last_start,
        last_crash: world.history.last_crash,
        events: world.events,
        crashes: world.history.crashes,
        starts: world.history.starts.values().map(|starts| u64::from(*starts)).sum(),
        runs: world.clients.runs.iter().filter_map(|run| world.seen(*run)).collect(),
        states: world.states(),
        crossings: world.history.crossings.values().sum(),
        relayed: world.history.relayed.len() as u64,
        depositions: u64::from(world.history.depositions),
        kept: world.runs_in_history(),
        lost: world.history.lost,
        restored: world.history.restored,
    }
}

/// Lets everything happen until nothing is on its way any more; the points until all runs had ended.
pub(crate) fn play(world: &mut World) -> u64 {
    let quiet_at = world.now + world.scenario.unquiet;
    while world.step(quiet_at) {}
    let bound = quiet_at + LIVENESS_BOUND;
    let mut looked = world.now;
    let mut is_settled = false;
    loop {
        if world.now.saturating_since(looked) > Duration::from_secs(30) {
            looked = world.now;
            if !is_settled && world.now >= quiet_at + SETTLED {
                is_settled = true;
                (0..world.sites.len()).for_each(|site| world.measure(site));
            }
            world.resolve_unknown();
            if world.is_over() {
                break;
            }
        }
        assert!(world.step(bound), "not over {LIVENESS_BOUND:?} after the last fault:\n{}", world.describe());
    }
    let points = world.points;
    let end = world.now + AFTERMATH;
    while world.step(end) {}
    let mut end = world.now;
    let last = end + EXPIRING;
    while end < last && world.left_of_expired().is_some() {
        end = end + EXPIRING_LOOK;
        while world.step(end) {}
    }
    // What is held for a while is watched to its end in some seeds only: nothing happens meanwhile.
    let held = world.clients.has_uploaded() || !world.history.revoked.is_empty();
    if held && world.scenario.lingers {
        let end = end + HOLD_MAX;
        while !world.bucket.is_empty() && world.step(end) {}
        let end = world.now + AFTERMATH;
        while world.step(end) {}
    }
    points
}

impl World {
    /// Of the control plane, or of the history once it has forgotten the run.
    pub(crate) fn state_of(&self, run: RunId) -> RunState {
        let core = self.leading_core().expect("one leads when all is quiet");
        let view = core.run(run).or_else(|| self.kept_runs.get(&run).map(FinishedRun::view));
        view.map_or(RunState::Submitted, |view| view.state)
    }

    pub(crate) fn states(&self) -> Vec<RunState> {
        self.clients.runs.iter().map(|run| self.state_of(*run)).collect()
    }

    fn runs_in_history(&self) -> u64 {
        let core = self.leading_core().expect("one leads when all is quiet");
        self.clients.runs.iter().filter(|run| core.run(**run).is_none() && self.kept_runs.contains_key(run)).count()
            as u64
    }

    fn seen(&self, run: RunId) -> Option<Seen> {
        let core = self.leading_core().expect("one leads when all is quiet");
        let view = core.run(run)?;
        let executions = core.executions(run, &ExecutionPage::default()).unwrap_or_default();
        let seen = executions.into_iter().map(|view| SeenExecution {
            execution: view.execution,
            attempt: view.attempt,
            state: view.state,
            inputs: view.inputs,
            outputs: view.outputs,
            error: view.error,
        });
        Some(Seen { state: view.state, outputs: view.outputs, error: view.error, executions: seen.collect() })
    }

    fn is_over(&self) -> bool {
        self.leading_core().is_some()
            && !self.is_anybody_waiting()
            && self.clients.runs.iter().all(|run| self.is_ended(*run))
    }

    fn is_ended(&self, run: RunId) -> bool {
        matches!(self.state_of(run), RunState::Succeeded | RunState::Failed | RunState::Cancelled)
    }

    /// What nobody knows the fate of, an administrator decides: he looks whether it ever ran.
    fn resolve_unknown(&mut self) {
        let Some(core) = self.leading_core() else { return };
        let mut unknown = Vec::new();
        // In a run that has ended there is nothing left to decide.
        for run in self.clients.runs.iter().filter(|run| !self.is_ended(**run)) {
            let executions = core.executions(*run, &ExecutionPage::default()).unwrap_or_default();
            unknown.extend(executions.iter().filter(|view| view.state == ExecutionState::Unknown).map(|v| v.execution));
        }
        for execution in unknown {
            let run_again = !self.history.starts.keys().any(|(started, _)| *started == execution);
            self.history.may_fail.insert(execution.run);
            self.wish(Duration::ZERO, Want::Resolve { execution, run_again });
        }
    }

    fn describe(&self) -> String {
        let Some(core) = self.leading_core() else { return "no server leads".to_owned() };
        let mut text = String::new();
        for run in &self.clients.runs {
            let Some(view) = core.run(*run) else { continue };
            text += &format!("{run} {:?} {:?}\n", view.state, view.counts);
            for execution in core.executions(*run, &ExecutionPage::default()).unwrap_or_default() {
                let ended = matches!(
                    execution.state,
                    ExecutionState::Succeeded
                        | ExecutionState::Failed
                        | ExecutionState::Cancelled
                        | ExecutionState::Skipped
                );
                if !ended {
                    text += &format!(
                        "  {} {} {:?} at {:?} attempt {} {:?}\n",
                        execution.execution,
                        execution.step,
                        execution.state,
                        execution.site,
                        execution.attempt,
                        execution.waiting_for
                    );
                }
            }
        }
        for site in core.sites() {
            text += &format!("{} {:?} {:?}\n", site.site, site.state, site.reason);
        }
        for site in &self.sites {
            text += &format!("{}: up {} gave up {:?}\n", site.name, site.core.is_some(), site.gave_up);
        }
        text
    }

    pub(crate) fn check_end(&self) {
        let core = self.leading_core().expect("one leads when all is quiet");
        core.check();
        for site in self.sites.iter().filter(|site| site.standing == Standing::Trusted) {
            assert_eq!(site.gave_up, None, "{} gave up", site.name);
            let left: Vec<_> = site.machine.claims.keys().collect();
            assert!(left.is_empty(), "{} still holds {left:?}", site.name);
        }
        assert_eq!(self.confined_in_bucket(), Default::default(), "what is confined is in the bucket");
        if self.history.restored > 0 {
            // Of what moved since the backup the ledger has what agents still tell, and what came into the bucket stays.
            return;
        }
        let mut sent_in = self.clients.bundles();
        sent_in.extend(self.clients.runs.iter().map(|run| crate::clients::input_of(*run).id));
        let is_watched = |object: &ObjectId| self.scenario.lingers || !sent_in.contains(object);
        let is_watched =
            |object: &ObjectId| (self.scenario.lingers || self.history.revoked.is_empty()) && is_watched(object);
        // The last copy of what a rule holds.
        let needed = |object: ObjectId| core.object(object).and_then(|view| view.needed);
        let is_held = |object: ObjectId| needed(object).is_some_and(|why| why.contains("(rule "));
        // A site whose journal was lost has what nobody knows of.
        let known_at = |object: ObjectId| core.object(object).map_or(Vec::new(), |view| view.replicas);
        let there = || self.sites.iter().filter(|site| site.standing == Standing::Trusted && !site.is_dead);
        let at_sites = |object: &ObjectId| there().any(|site| known_at(*object).contains(&site.name.to_string()));
        let is_watched = |object: &ObjectId| is_watched(object) && (!is_held(*object) || at_sites(object));
        let left: Vec<_> = self.bucket.keys().map(|(object, _)| *object).filter(is_watched).collect();
        assert!(left.is_empty(), "nobody needs these in the bucket any more: {left:?}");
        self.check_ledger();
        self.check_failures();
        self.check_copies();
        self.check_expired();
        self.check_reused();
        self.check_published();
        self.check_emitted();
    }

    /// What was taken from another execution, that one has made, by the same work out of the same inputs.
    fn check_reused(&self) {
        let core = self.leading_core().expect("one leads when all is quiet");
        // What either has read may have been made anew since, as something else.
        let is_anew = self.was_taken_away() || self.history.lost > 0 || !self.scenario.restores.is_empty();
        let what = |execution: ExecutionId| {
            let (workflow, _) = core.workflow(execution.run)?;
            Some((workflow.step(execution.step).work.clone(), core.execution(execution)?.inputs))
        };
        for run in &self.clients.runs {
            for view in core.executions(*run, &ExecutionPage::default()).unwrap_or_default() {
                let Some(reused) = view.reused else { continue };
                let has_run = self.history.starts.keys().any(|(started, _)| *started == reused.made_by);
                assert!(has_run, "{} has what {} has made, which never ran", view.execution, reused.made_by);
                assert_eq!(view.state, ExecutionState::Succeeded, "{} has taken what was made", view.execution);
                let (taker, maker) = (what(view.execution), what(reused.made_by));
                let is_same = is_anew || maker.is_none() || taker == maker;
                assert!(is_same, "{} has what {} has made of other inputs", view.execution, reused.made_by);
            }
        }
    }

    /// Of what has expired, and nothing holds, nothing is left.
    fn check_expired(&self) {
        if let Some((object, site)) = self.left_of_expired() {
            let known = self.leading_core().and_then(|core| core.object(object));
            panic!("{object}, whose time is over, is at {}: {known:#?}", site.name);
        }
    }

    /// Something of which nothing is to be left, and where it is, as far as each site has told all that it had.
    fn left_of_expired(&self) -> Option<(ObjectId, &Site)> {
        if self.was_taken_away() || self.history.lost > 0 {
            return None;
        }
        self.history.expired.difference(&self.history.made_to_stay).find_map(|object| {
            let site = self.sites.iter().find(|site| site.machine.store.contains_key(object))?;
            Some((*object, site))
        })
    }

    /// Of what a rule wants at two sites there are two copies, if there are two sites that can have one.
    fn check_copies(&self) {
        let core = self.leading_core().expect("one leads when all is quiet");
        let ready = core.sites().iter().filter(|site| site.state == SiteState::Ready && site.reason.is_none()).count();
        for (object, run) in &self.history.replicated {
            let Some(view) = core.object(*object) else { continue };
            let is_remembered = core.run(*run).is_some_and(|view| view.state == RunState::Succeeded);
            // Another rule may keep it where it is.
            let is_free = view.rules.len() == 1 && view.withheld.is_empty();
            let there = view.replicas.iter().filter(|place| *place != "bucket").count();
            if is_remembered && is_free && there > 0 {
                assert!(there >= ready.min(2), "of {object} of {run} there are {there} copies: {view:#?}");
            }
        }
    }

    /// What a run that has succeeded says it publishes was published, where it says: the very object, unless that was made
    /// anew since.
    fn check_published(&self) {
        let core = self.leading_core().expect("one leads when all is quiet");
        for run in self.clients.runs.iter().filter(|run| self.state_of(**run) == RunState::Succeeded) {
            let Some((workflow, _)) = core.workflow(*run) else { continue };
            let executions = core.executions(*run, &ExecutionPage::default()).unwrap_or_default();
            for view in executions.iter().filter(|view| view.state == ExecutionState::Succeeded) {
                let step = workflow.step(view.execution.step);
                if !matches!(step.work, Work::Export { .. }) {
                    continue;
                }
                let published = self.history.published.get(&(view.execution, view.attempt));
                let Some((site, objects)) = published else { panic!("{view:#?} has published nothing") };
                assert_eq!(step.site.names, [self.sites[*site].name.clone()], "{view:#?} was published elsewhere");
                let mut said = Vec::new();
                view.inputs.values().for_each(|value| value.visit_objects(&mut |object| said.push(object.id)));
                let is_anew = self.was_taken_away() || self.history.lost > 0;
                assert!(is_anew || *objects == said, "{objects:?} was published of {view:#?}");
            }
        }
    }

    /// Whether something is gone for good that may have been made anew.
    fn was_taken_away(&self) -> bool {
        let history = &self.history;
        history.journals_lost + history.reboots + history.damages > 0 || !history.revoked.is_empty()
    }

    /// Where nothing was taken away for good, a run fails only if something of it did.
    fn check_failures(&self) {
        let history = &self.history;
        let taken_away = self.was_taken_away();
        for run in self.clients.runs.iter().filter(|_| !taken_away && self.scenario.full_disks == 0) {
            let failed = self.state_of(*run) == RunState::Failed;
            assert!(!failed || history.may_fail.contains(run), "{run} failed, and nothing of it did");
        }
    }

    /// The ledger says what moved, no more, and no less but for what a lost journal took with it, and what came to a site
    /// that was revoked before it could tell.
    fn check_ledger(&self) {
        let mut entered: BTreeMap<(ObjectId, String, String), u64> = BTreeMap::new();
        for entry in self.entries() {
            if entry.from != "client" && entry.to != "client" {
                *entered.entry((entry.object, entry.from.to_string(), entry.to.to_string())).or_default() += 1;
            }
        }
        if self.history.journals_lost == 0 {
            let (truth, ledger) = (&self.history.crossings, &entered);
            // What a revoked site had sent is looked for when its permissions are over.
            let looked_for = |from: &String| self.scenario.lingers || !self.history.revoked.contains(from);
            let told =
                |(_, from, to): &&(ObjectId, String, String)| !self.history.revoked.contains(to) && looked_for(from);
            for key in truth.keys().chain(ledger.keys()).filter(told) {
                assert_eq!(ledger.get(key), truth.get(key), "the ledger (left) and the truth of {key:?}");
            }
        }
    }
}
