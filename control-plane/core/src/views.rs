//! Views: what people see, made from the state when they ask.

mod deployments;
mod executions;
mod planning;
mod policies;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use atoll_model::id::{ObjectId, RunId, SiteId, SiteName};
use atoll_model::session::Other;
use atoll_model::workflow::{SiteFacts, Workflow};

use crate::agenda::Leaving;
use crate::control_plane::ControlPlane;
use crate::fact::PinnedAt;
use crate::state::{BucketState, LedgerEntry, ObjectState, Phase, Pin, Place, Run, StepPhase, StepState, Usage};
use crate::view::{
    Counters, DeployedView, ExecutionState, LedgerFilter, LedgerView, MovingView, ObjectFilter, ObjectRow, ObjectView,
    PinView, ProjectView, RunFilter, RunPlace, RunState, RunView, SiteView, VerificationView, WorkflowUsage,
};

impl ControlPlane {
    /// Newest first.
    pub fn runs(&self, filter: &RunFilter) -> Vec<RunView> {
        let place = |run: &Run| RunPlace { submitted_at: run.submitted_at, run: run.id };
        let runs = self.state.runs.values().filter(|run| filter.admits_place(place(run)));
        let mut runs: Vec<_> = runs.collect();
        runs.sort_by_key(|run| std::cmp::Reverse(place(run)));
        let quickly = |run: &&&Arc<Run>| {
            filter.state.is_none_or(|state| state == run_state(run))
                && filter.workflow.as_ref().is_none_or(|name| *name == run.workflow.name)
        };
        let views = runs.iter().filter(quickly).map(|run| self.run_view(run)).filter(|view| filter.admits(view));
        views.take(filter.limit.unwrap_or(usize::MAX)).collect()
    }

    pub fn run(&self, run: RunId) -> Option<RunView> {
        self.state.runs.get(&run).map(|run| self.run_view(run))
    }

    fn run_view(&self, run: &Run) -> RunView {
        let mut counts = BTreeMap::new();
        for step in &run.steps {
            count_step(step, &mut counts);
        }
        counts.retain(|_, count| *count > 0);
        RunView {
            run: run.id,
            workflow: run.workflow.name.clone(),
            state: run_state(run),
            submitted_by: run.submitted_by.clone(),
            traceparent: run.traceparent.clone(),
            submitted_at: run.submitted_at,
            started_at: run.started_at,
            finished_at: run.finished_at,
            outputs: run.outputs.clone(),
            error: run.error.clone(),
            counts,
            tags: self.state.tags.get(&run.id).cloned().unwrap_or_default(),
            sites: sites_of(run)
                .into_iter()
                .filter_map(|site| Some(self.state.sites.get(&site)?.name.clone()))
                .collect(),
            moving: if run.is_live() { self.moving(run.id) } else { Vec::new() },
        }
    }

    /// What moves for a run, as the sites at either end have told last.
    fn moving(&self, run: RunId) -> Vec<MovingView> {
        let mut moving = Vec::new();
        for site in self.sessions.by_site.keys() {
            let heartbeat = self.sessions.presence.get(site).and_then(|presence| presence.heartbeat.as_ref());
            for told in heartbeat.iter().flat_map(|heartbeat| &heartbeat.moving) {
                let known = self.state.objects.get(&told.object);
                if known.is_none_or(|known| known.uses.iter().all(|usage| usage.run != run)) {
                    continue;
                }
                let (here, bucket) = (self.state.site_name(*site), Place::Bucket.to_string());
                let (from, to) = match told.other {
                    Other::FromBucket => (bucket, here),
                    Other::ToBucket => (here, bucket),
                    Other::FromAgent(agent) => {
                        let holder = self.state.site_of(agent).map(|holder| self.state.site_name(holder));
                        (holder.unwrap_or_else(|| agent.to_string()), here)
                    }
                };
                moving.push(MovingView {
                    object: told.object,
                    from,
                    to,
                    bytes: told.bytes,
                    moved_bytes: told.moved_bytes,
                    bytes_per_second: told.bytes_per_second,
                });
            }
        }
        moving
    }

    /// The workflow of a run and the text of its file.
    pub fn workflow(&self, run: RunId) -> Option<(Arc<Workflow>, Arc<str>)> {
        self.state.runs.get(&run).map(|run| (Arc::clone(&run.workflow), Arc::clone(&run.source)))
    }

    pub fn object(&self, object: ObjectId) -> Option<ObjectView> {
        let known = self.state.objects.get(&object)?;
        let ObjectRow { replicas, pins, .. } = self.object_row(known);
        let filter = LedgerFilter { object: Some(object), ..LedgerFilter::default() };
        let allowed = |(id, _): &(&SiteId, &crate::state::Site)| self.vetoes(known, Some(**id)).destination.is_none();
        let confined_to = self
            .confining(known)
            .map(|_| self.state.sites.iter().filter(allowed).map(|(_, site)| site.name.clone()).collect());
        let rules = self.rules_on(known).flat_map(|(run, rules)| {
            let confining = rules.confined_by.iter().copied();
            let others = [rules.push.rule, rules.bucket, rules.direct, rules.encrypt].into_iter().flatten();
            let of_copies = rules.claims.iter().map(|(_, rule)| rule).chain(&rules.replicate).copied();
            let of_copies = of_copies.chain(rules.expires.map(|expires| expires.rule));
            confining.chain(others).chain(of_copies).map(|rule| run.plan.rules.name(rule)).collect::<Vec<_>>()
        });
        let withheld = known.withheld.iter().map(|(site, said)| (self.state.site_name(*site), said.to_string()));
        let mut runs: Vec<_> = known.uses.iter().map(|usage| usage.run).collect();
        runs.dedup();
        let needed = self.need_of(known).map(|need| need.why);
        let copies = self.copies_view(known);
        let wanted = self.wanted_copies_view(known);
        let expiry = self.whole_expiry_view(known);
        Some(ObjectView {
            object: known.reference,
            replicas,
            ledger: self.ledger(&filter),
            confined_to,
            rules: rules.collect::<BTreeSet<_>>().into_iter().collect(),
            withheld: withheld.collect(),
            encrypted: self.state.keys.of_copy(object).map(ToString::to_string),
            pins,
            needed,
            copies,
            wanted,
            expiry,
            runs,
        })
    }

    /// Objects that are known, in the order of their names.
    pub fn objects(&self, filter: &ObjectFilter) -> Vec<ObjectRow> {
        let site = filter.site.as_ref().map(|name| self.state.site_names.get(name).copied());
        let after = filter.after.map_or(Bound::Unbounded, Bound::Excluded);
        let matching = self.state.objects.range((after, Bound::Unbounded)).map(|(_, known)| known).filter(|known| {
            site.is_none_or(|site| site.is_some_and(|site| known.is_at(site)))
                && filter.run.is_none_or(|run| known.uses.iter().any(|usage| usage.run == run))
                && (!filter.pinned || self.state.is_pinned(known.reference.id))
                && (!filter.expired || self.has_expired(known))
        });
        matching.take(filter.limit).map(|known| self.object_row(known)).collect()
    }

    fn object_row(&self, known: &ObjectState) -> ObjectRow {
        let mut replicas: Vec<_> = known.sites.iter().map(|site| self.state.site_name(*site)).collect();
        if known.bucket == BucketState::Present {
            replicas.push(Place::Bucket.to_string());
        }
        let pins = self.state.pins.get(&known.reference.id).into_iter().flatten();
        let pin = |(at, pin): (&PinnedAt, &Pin)| PinView {
            at: match at {
                PinnedAt::Anywhere => "anywhere".to_owned(),
                PinnedAt::Bucket => Place::Bucket.to_string(),
                PinnedAt::Site(site) => self.state.site_name(*site),
            },
            by: pin.by.to_string(),
            since: pin.since,
        };
        let expiry = self.expiry_view(known);
        ObjectRow { object: known.reference, replicas, pins: pins.map(pin).collect(), expiry }
    }

    /// What came of the last time that the site was asked to read its store again, if it ever was.
    pub fn verification(&self, site: &SiteName) -> Option<VerificationView> {
        let known = self.state.verifications.get(self.state.site_names.get(site)?)?;
        let ended = known.ended;
        Some(VerificationView {
            asked_at: known.asked_at,
            ended_at: ended.map(|ended| ended.at),
            files: ended.map_or(0, |ended| ended.files),
            bytes: ended.map_or(0, |ended| ended.bytes),
            damaged: ended.map_or(0, |ended| ended.damaged),
        })
    }

    /// Projects that have a live run, or settings, by name.
    pub fn projects(&self) -> Vec<ProjectView> {
        let live = self.state.runs.values().filter(|run| run.is_live()).map(|run| run.project.to_string());
        let names: BTreeSet<String> = live.chain(self.state.projects.0.keys().cloned()).collect();
        names.iter().filter_map(|project| self.project(project)).collect()
    }

    /// Nothing for one that has neither live runs nor settings.
    pub fn project(&self, project: &str) -> Option<ProjectView> {
        let settings = self.state.projects.0.get(project);
        let live = || self.state.runs.values().filter(|run| run.is_live() && *run.project == *project);
        if settings.is_none() && live().next().is_none() {
            return None;
        }
        let settings = settings.cloned().unwrap_or_default();
        let usage = self.state.usage_of(project);
        let mut workflows: BTreeMap<String, WorkflowUsage> = BTreeMap::new();
        for name in live().map(|run| &run.workflow.name).chain(settings.workflows.keys()) {
            if !workflows.contains_key(name) {
                let Usage { runs, executions } = self.state.usage_of_workflow(project, name);
                let limits = settings.workflows.get(name).copied().unwrap_or_default();
                workflows.insert(name.clone(), WorkflowUsage { runs, executions, limits });
            }
        }
        Some(ProjectView {
            project: project.to_owned(),
            runs_live: live().count() as u64,
            runs: usage.runs,
            executions: usage.executions,
            executions_waiting: live().map(|run| waiting(run)).sum(),
            workflows,
            settings,
        })
    }

    pub fn sites(&self) -> Vec<SiteView> {
        self.state.site_names.values().map(|site| self.site_view(*site)).collect()
    }

    /// Where the action in this bundle is, or is made ready.
    pub fn deployed(&self, bundle: ObjectId) -> Vec<DeployedView> {
        let at = |(name, site): (&SiteName, &SiteId)| {
            let told = self.sessions.deployed(*site).iter().find(|told| told.bundle == bundle)?;
            Some(DeployedView { site: name.clone(), state: told.state.clone(), since: told.since })
        };
        self.state.site_names.iter().filter_map(at).collect()
    }

    pub fn site(&self, site: &SiteName) -> Option<SiteView> {
        self.state.site_names.get(site).map(|site| self.site_view(*site))
    }

    fn site_view(&self, id: SiteId) -> SiteView {
        let site = self.state.site(id);
        let session = self.sessions.by_site.get(&id);
        let presence = self.sessions.presence.get(&id);
        let heartbeat = presence.and_then(|presence| presence.heartbeat.as_ref());
        let capacity = heartbeat.map(|heartbeat| heartbeat.capacity.clone()).or_else(|| site.capacity.clone());
        let capacity = capacity.unwrap_or_default();
        let (mut running, mut free) = (0, capacity.clone());
        for (run, step) in site.busy.keys() {
            let (run, step) = (self.state.run(*run), *step);
            let of_step = run.steps[step.index()].active.iter().filter(|(_, active)| active.site == id);
            for (element, _) in of_step.filter(|(_, active)| active.phase == crate::state::ActivePhase::Running) {
                let load = run.load_of(step, *element);
                running += 1;
                free.cpu_millis = free.cpu_millis.saturating_sub(load.cpu_millis);
                free.memory_bytes = free.memory_bytes.saturating_sub(load.memory_bytes.unwrap_or(0));
            }
        }
        SiteView {
            site: site.name.clone(),
            state: self.site_state(id),
            labels: site.labels.clone(),
            agent_version: site.agent_version.clone(),
            connected_since: session.map(|session| session.since),
            last_heard: presence
                .map(|presence| presence.heard_at)
                .filter(|at| session.is_some() || (*at != self.started_at && at.micros() != 0)),
            capacity,
            free,
            running,
            queued: u64::from(site.outstanding).saturating_sub(running),
            batch_wait: self.sessions.batch_wait(id),
            store_objects: heartbeat.map_or(0, |heartbeat| heartbeat.store_objects),
            store_bytes: heartbeat.map_or(0, |heartbeat| heartbeat.store_bytes),
            reason: site.revoked.clone().or_else(|| self.site_closed(id)),
            warning: self.held_back_with(id).or_else(|| session.and_then(|_| self.clock_offset(id))),
        }
    }

    /// In order of time.
    pub fn ledger(&self, filter: &LedgerFilter) -> Vec<LedgerView> {
        let of_runs = self.state.runs.values().filter(|run| filter.run.is_none_or(|wanted| wanted == run.id));
        let of_runs = of_runs.flat_map(|run| run.ledger.iter().map(|entry| (Some(run.id), entry)));
        let unclaimed = self.state.unclaimed_ledger.iter().filter(|_| filter.run.is_none()).map(|entry| (None, entry));
        let touches = |entry: &LedgerEntry| {
            filter.site.as_ref().is_none_or(|name| {
                let place = Place::Site(name.clone());
                entry.from == place || entry.to == place
            })
        };
        let mut entries: Vec<_> = of_runs
            .chain(unclaimed)
            .filter(|(_, entry)| filter.object.is_none_or(|object| object == entry.object) && touches(entry))
            .map(|(run, entry)| ledger_view(run, entry))
            .collect();
        entries.sort_by_key(|entry| entry.at);
        entries
    }

    /// What [`check_sites`](atoll_model::workflow::check_sites) needs to know.
    pub fn site_facts(&self) -> Vec<SiteFacts> {
        let sites = self.state.sites.values().filter(|site| site.revoked.is_none());
        sites
            .map(|site| SiteFacts {
                name: site.name.clone(),
                labels: site.labels.clone(),
                capacity: site.capacity.clone(),
                runtimes: site.runtimes.clone(),
            })
            .collect()
    }

    pub fn counters(&self) -> Counters {
        let mut counters = self.counters.clone();
        for run in self.state.runs.values().filter(|run| run.is_live()) {
            counters.runs_live += 1;
            counters.executions_waiting += waiting(run);
        }
        let outstanding = self.state.sites.values().map(|site| u64::from(site.outstanding));
        counters.executions_outstanding = outstanding.sum();
        let in_bucket = self.state.objects.values().filter(|object| object.bucket == BucketState::Present);
        counters.objects_in_bucket = in_bucket.count() as u64;
        let leaving = |state| self.agenda.expired.objects.values().filter(|leaving| **leaving == state).count() as u64;
        (counters.objects_expired, counters.objects_asking) = (leaving(Leaving::Going), leaving(Leaving::Asking));
        (counters.objects_lacking_copies, counters.objects_late) = self.count_lacking();
        counters.transfers_live = self.state.transfers.len() as u64;
        counters.sites_held_back = self.held_back() as u64;
        for site in self.state.sites.keys() {
            *counters.sites_by_state.entry(self.site_state(*site)).or_default() += 1;
        }
        counters
    }
}

/// Executions that are ready, and have no site.
fn waiting(run: &Run) -> u64 {
    run.steps.iter().map(|step| u64::from(step.ready.len()) + step.again.len() as u64).sum()
}

fn ledger_view(run: Option<RunId>, entry: &LedgerEntry) -> LedgerView {
    let straight = matches!((&entry.from, &entry.to), (Place::Site(_), Place::Site(_)));
    LedgerView {
        object: entry.object,
        bytes: entry.bytes,
        from: entry.from.to_string(),
        to: entry.to.to_string(),
        route: if straight { "direct" } else { "bucket" }.to_owned(),
        for_execution: entry.for_execution,
        run,
        rule: entry.rule.to_string(),
        at: entry.at,
    }
}

fn run_state(run: &Run) -> RunState {
    match run.phase {
        Phase::Ended(state) => state,
        Phase::Cancelling => RunState::Cancelling,
        Phase::Going | Phase::Failing if run.started_at.is_none() => RunState::Submitted,
        Phase::Going | Phase::Failing => RunState::Running,
    }
}

/// Executions of a step by state. A step whose elements are not known yet counts as one.
fn count_step(step: &StepState, counts: &mut BTreeMap<ExecutionState, u64>) {
    let mut add = |state, count: u64| *counts.entry(state).or_default() += count;
    match step.phase {
        StepPhase::Waiting => return add(ExecutionState::Waiting, 1),
        StepPhase::Skipped => return add(ExecutionState::Skipped, 1),
        StepPhase::Cancelled => return add(ExecutionState::Cancelled, 1),
        StepPhase::Expanded => {}
    }
    let mut again = step.again.len() as u64;
    let mut succeeded = u64::from(step.succeeded);
    if !step.recomputing.is_empty() {
        // They are shown as what they are now.
        let waiting = step.recomputing.iter().filter(|element| step.again.contains_key(element)).count() as u64;
        again -= waiting;
        succeeded -= u64::from(step.recomputing.len()) - waiting;
    }
    add(ExecutionState::Ready, u64::from(step.ready.len()) + again);
    for active in step.active.values() {
        add(executions::active_state(active), 1);
    }
    add(ExecutionState::Succeeded, succeeded);
    add(ExecutionState::Failed, u64::from(step.failed));
    add(ExecutionState::Cancelled, u64::from(step.cancelled_rows) + u64::from(step.cancelled.len()));
    add(ExecutionState::Unknown, step.unknown.len() as u64);
}

/// Sites that its executions were given to.
pub(crate) fn sites_of(run: &Run) -> BTreeSet<SiteId> {
    let decisions = run.steps.iter().flat_map(|step| &step.decisions);
    decisions.flat_map(|decision| decision.chosen.keys().copied()).collect()
}
