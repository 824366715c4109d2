//! The durable state: everything that follows from the facts, and nothing else. Only `evolve` changes it.

mod claims;
mod copies;
mod delegated;
mod deployments;
mod ending;
mod evolve;
mod evolve_executions;
mod evolve_objects;
mod evolve_runs;
mod evolve_sites;
mod grown;
mod keys;
mod object;
mod poison;
mod ready;
mod registry;
mod replicas;
mod repositories;
mod results;
mod returning;
mod row;
mod run;
mod site;
mod tries;
mod usage;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use atoll_model::id::{AgentId, ExecutionId, ObjectId, RunId, SiteId, SiteName, StepIndex, TokenId, TransferId};
use atoll_model::time::Timestamp;
use serde::{Deserialize, Serialize};

pub(crate) use self::claims::{ClaimId, ClaimTerms, Claimed, Claims, StandingHold};
pub(crate) use self::copies::{Pin, Verification};
pub(crate) use self::delegated::Delegations;
pub(crate) use self::deployments::SOURCE;
pub(crate) use self::evolve_runs::{submitted_objects, visit_with_parts};
pub(crate) use self::keys::Keys;
pub(crate) use self::object::{
    BucketState, DoubtfulPush, LedgerEntry, ObjectState, Place, PushTrouble, Source, Transfer, Use,
};
pub(crate) use self::poison::{Crash, Crashes};
pub(crate) use self::ready::ReadyOrders;
pub(crate) use self::replicas::ReplicaOrder;
pub(crate) use self::results::{KnownResult, ResultKey, Results, TakenFrom};
pub(crate) use self::row::{Detail, Row, RowState};
pub(crate) use self::run::{Active, ActivePhase, Decision, Former, Phase, Run, StepPhase, StepState};
pub(crate) use self::site::{Agent, Log, Outgoing, Site, Token};
pub(crate) use self::tries::Tries;
pub(crate) use self::usage::{ProjectUsage, Projects, Usage};
use crate::deployments::Deployments;
use crate::fact::PinnedAt;
use crate::plan::RunPlan;
use crate::registry::Registry;
use crate::repositories::Repositories;
use crate::rules::{AppliedPolicy, Rules};
use crate::view::RunTags;

/// The whole durable state, as a checkpoint holds it. Runs are shared with the state it was taken from until they change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot(pub(crate) State);

impl Snapshot {
    /// Format of snapshots and facts. Facts are only ever added to, at the end of their list; what changes in a snapshot
    /// is put right by [`Self::upgrade`]. What a step asks for beside CPUs, memory and time came with format 6; memory that
    /// grows, what was used of disks, and how a step is spread over a cluster with format 7, and nothing has moved.
    pub const FORMAT: u16 = 8;

    /// Makes an encoded snapshot of an earlier format one of this format.
    pub fn upgrade(format: u16, encoded: &mut Vec<u8>) {
        const EMPTY: u8 = 0;
        if format < 2 {
            // The tags of runs, what is set for projects, the sites that catch up, delegated steps, the rules of projects,
            // pins and verifications, keys, what is encrypted by them, claims, copies to be made, results, and who took them.
            encoded.extend([EMPTY; 13]);
        }
        if format < 3 {
            // When a backup was restored, which is not in all of format 2 (what is too much is not read), what people let go
            // of when a rule asked, rules that hold, and copies that are about to go.
            encoded.extend([EMPTY; 4]);
        }
        if format < 4 {
            // Versions of actions, those that were removed, and what sites refuse. Of format 2 it may be one byte too much.
            encoded.extend([EMPTY; 3]);
        }
        if format < 5 {
            // Repositories, where versions came from, and the number of the last import.
            encoded.extend([EMPTY; 3]);
        }
        if format < 6 {
            // Deployed workflows.
            encoded.push(EMPTY);
        }
        if format < 7 {
            // Templates with grown memory.
            encoded.push(EMPTY);
        }
        if format < 8 {
            // Actions that are made ready.
            encoded.push(EMPTY);
        }
    }
}

/// New fields stand at the end, and [`Snapshot::upgrade`] makes them for what was written before.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) tokens: BTreeMap<TokenId, Token>,
    pub(crate) agents: BTreeMap<AgentId, Agent>,
    pub(crate) sites: BTreeMap<SiteId, Site>,
    pub(crate) site_names: BTreeMap<SiteName, SiteId>,
    /// The last number given to a site; never given twice, so that a removed site's number means nothing else later.
    pub(crate) last_site: SiteId,
    pub(crate) runs: BTreeMap<RunId, Arc<Run>>,
    pub(crate) objects: BTreeMap<ObjectId, ObjectState>,
    /// Live ones only.
    pub(crate) transfers: BTreeMap<TransferId, Transfer>,
    /// Transfers that were ever ordered.
    pub(crate) transfers_ordered: u64,
    /// Versions of actions, by their bundles, and scripts and commands, by their digests, whose executions were cut off lately.
    pub(crate) crashed_actions: BTreeMap<ObjectId, Crashes>,
    /// Crossings that belong to no run (yet).
    pub(crate) unclaimed_ledger: Vec<LedgerEntry>,
    /// Of those runs that were given any. Not there in format 1 of the journal.
    pub(crate) tags: BTreeMap<RunId, RunTags>,
    /// Not there in format 1 of the journal.
    pub(crate) projects: Projects,
    /// Sites that may have done more than is known here, because this state was restored from a backup.
    pub(crate) catching_up: BTreeSet<SiteId>,
    /// Steps of live runs that are, or were, delegated whole. Not there in format 1 of the journal.
    pub(crate) delegations: Delegations,
    /// Versions of the rules of each project, the one that holds last.
    pub(crate) policies: BTreeMap<String, Vec<Arc<AppliedPolicy>>>,
    /// What people want to stay. Not there in format 1 of the journal, like what follows.
    pub(crate) pins: BTreeMap<ObjectId, BTreeMap<PinnedAt, Pin>>,
    /// The last time that each site was asked to read its store again.
    pub(crate) verifications: BTreeMap<SiteId, Verification>,
    pub(crate) keys: Keys,
    /// What rules hold of runs that are forgotten.
    pub(crate) claims: Claims,
    /// Copies that sites were told to have and do not have yet.
    pub(crate) replicas: BTreeMap<(ObjectId, SiteId), ReplicaOrder>,
    pub(crate) results: Results,
    /// When it was noticed that a backup had been restored, ascending.
    pub(crate) set_backs: Vec<Timestamp>,
    /// Objects that people let go of when their time was over, and when they did. Not there before format 3 of the journal.
    pub(crate) let_go: BTreeMap<ObjectId, Timestamp>,
    /// The rules of each project that hold anything. Not there before format 3 of the journal.
    pub(crate) holds: BTreeMap<String, Vec<StandingHold>>,
    /// Copies that sites were allowed to let go, and have not said whether they have: they do not count, and may be there all
    /// the same. Not there before format 3 of the journal.
    pub(crate) going: BTreeMap<SiteId, BTreeSet<ObjectId>>,
    /// Not there before format 4 of the journal.
    pub(crate) registry: Arc<Registry>,
    /// Why sites do not let steps of live runs run there, by their own policies. Not there before format 4 of the journal.
    pub(crate) refusals: BTreeMap<(RunId, StepIndex), BTreeMap<SiteId, Arc<str>>>,
    /// Not there before format 5 of the journal.
    pub(crate) repositories: Arc<Repositories>,
    /// Not there before format 6 of the journal.
    pub(crate) deployments: Deployments,
    /// Of steps whose last template at a site is for executions of which the memory has grown: how often, by site. Not there
    /// before format 7 of the journal.
    pub(crate) grown_templates: BTreeMap<(RunId, StepIndex), BTreeMap<SiteId, u32>>,
    /// Not there before format 8 of the journal.
    pub(crate) ready_orders: ReadyOrders,
    /// Runs that have not ended, and what is under way, by project. Both follow from the runs.
    #[serde(skip)]
    pub(crate) live_runs: u64,
    #[serde(skip)]
    pub(crate) usage: BTreeMap<Arc<str>, ProjectUsage>,
}

impl State {
    /// Makes what a checkpoint leaves out because it follows from the rest.
    pub(crate) fn restore_derived(&mut self) {
        for (id, run) in &mut self.runs {
            let run = Arc::make_mut(run);
            run.tag(self.tags.get(id));
            run.plan = planned(run, &self.policies, self.tags.get(id));
        }
        self.claims.restore_derived();
        self.results.restore_derived();
        Arc::make_mut(&mut self.registry).restore_derived();
        self.recount();
    }

    /// Evaluates the rules for a run anew: it belongs to another project now, or they have changed.
    pub(crate) fn plan_anew(&mut self, run: RunId) {
        if let Some(known) = self.runs.get_mut(&run).map(Arc::make_mut) {
            known.plan = planned(known, &self.policies, self.tags.get(&run));
        }
    }

    /// The rules of a project that hold now.
    pub(crate) fn policy(&self, project: &str) -> Option<&Arc<AppliedPolicy>> {
        self.policies.get(project).and_then(|versions| versions.last())
    }

    /// Why a site does not let a step run there, if it has said so.
    pub(crate) fn refusal(&self, run: RunId, step: StepIndex, site: SiteId) -> Option<&Arc<str>> {
        self.refusals.get(&(run, step))?.get(&site)
    }

    pub(crate) fn run_mut(&mut self, run: RunId) -> &mut Run {
        Arc::make_mut(self.runs.get_mut(&run).expect("facts name runs that exist"))
    }

    pub(crate) fn run(&self, run: RunId) -> &Run {
        self.runs.get(&run).expect("only runs that exist are named")
    }

    pub(crate) fn step(&self, run: RunId, step: StepIndex) -> &StepState {
        &self.run(run).steps[step.index()]
    }

    pub(crate) fn site(&self, site: SiteId) -> &Site {
        self.sites.get(&site).expect("only sites that exist are named")
    }

    pub(crate) fn site_mut(&mut self, site: SiteId) -> &mut Site {
        self.sites.get_mut(&site).expect("facts name sites that exist")
    }

    /// The site that an agent speaks for, if it still does.
    pub(crate) fn site_of(&self, agent: AgentId) -> Option<SiteId> {
        let site = self.agents.get(&agent)?.site;
        (self.sites.get(&site)?.agent == Some(agent)).then_some(site)
    }

    pub(crate) fn active(&self, execution: ExecutionId) -> Option<&Active> {
        self.runs.get(&execution.run)?.steps.get(execution.step.index())?.active.get(&execution.element)
    }

    pub(crate) fn site_name(&self, site: SiteId) -> String {
        self.sites.get(&site).map_or_else(|| format!("removed site {site}"), |site| site.name.to_string())
    }
}

fn planned(run: &Run, policies: &BTreeMap<String, Vec<Arc<AppliedPolicy>>>, tags: Option<&RunTags>) -> Arc<RunPlan> {
    let project = policies.get(&*run.project).and_then(|versions| versions.last());
    let none = BTreeMap::new();
    let rules = Rules::new(&run.workflow, project, tags.map_or(&none, |tags| &tags.labels));
    Arc::new(RunPlan::new(&run.workflow, rules))
}
