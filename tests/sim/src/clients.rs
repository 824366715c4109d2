//! People: they enrol sites, submit runs, change their minds, and repeat what was not answered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use atoll_model::id::{ObjectId, RunId, SiteName, TokenId};
use atoll_model::placement::Labels;
use atoll_model::policy::parse;
use atoll_model::time::Timestamp;
use atoll_model::value::{FileName, FileRef, ObjectKind, Value};
use control_plane_core::PolicyApplication;
use control_plane_core::event::ProjectChange;
use control_plane_core::view::RunTags;
use control_plane_core::{Encryption, KeyId, Rejection, Request, RequestId, Response};
use indexmap::IndexMap;

use crate::actions::{self, Deed};
use crate::rng::mix;
use crate::scenario::Scenario;
use crate::server::Asker;
use crate::site::{Site, Standing};
use crate::sources;
use crate::workload::{self, Drawn};
use crate::world::{BucketCopy, Occurrence, World, copy_name};

/// After this long somebody who was not answered asks again.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long what somebody takes out is to be there.
const TAKE_HOLD: Duration = Duration::from_secs(120);

/// How long what somebody has sent in is there for a run that takes it.
const SENT_IN_HOLD: Duration = Duration::from_secs(3_600);

#[derive(Debug, Default)]
pub(crate) struct Clients {
    wishes: Vec<Wish>,
    /// When the input of a run was sent in.
    sent_in: BTreeMap<RunId, Timestamp>,
    pub(crate) runs: Vec<RunId>,
    /// Actions that were pushed, and not removed since.
    pub(crate) pushed: BTreeSet<u64>,
}

impl Clients {
    /// Nobody drains a site any more.
    pub(crate) fn stop_draining(&mut self) {
        for wish in &mut self.wishes {
            wish.granted |= matches!(wish.want, Want::Drain { drained: true, .. });
        }
    }

    /// Of runs that nobody knows any more, what somebody had brought about is wanted again.
    pub(crate) fn want_again(&mut self, gone: &BTreeSet<RunId>) -> Vec<usize> {
        let is_gone =
            |want: &Want| matches!(want, Want::Submit { run, .. } | Want::Upload { run } if gone.contains(run));
        let wishes = self.wishes.iter_mut().enumerate();
        let again = wishes.filter(|(_, wish)| wish.granted && is_gone(&wish.want));
        again
            .map(|(client, wish)| {
                wish.granted = false;
                client
            })
            .collect()
    }

    /// Whether anybody has sent something in, which is held for a while.
    pub(crate) fn has_uploaded(&self) -> bool {
        self.wishes.iter().any(|wish| matches!(wish.want, Want::Upload { .. } | Want::Action { .. }))
    }

    /// The bundles of what anybody has pushed, or will.
    pub(crate) fn bundles(&self) -> BTreeSet<ObjectId> {
        let action = |wish: &Wish| if let Want::Action { action, .. } = wish.want { Some(action) } else { None };
        self.wishes.iter().filter_map(action).map(actions::bundle).collect()
    }

    /// What was not granted yet.
    pub(crate) fn still_wanted(&self) -> impl Iterator<Item = &Want> {
        self.wishes.iter().filter(|wish| !wish.granted).map(|wish| &wish.want)
    }
}

/// Something that somebody wants, until it is answered.
#[derive(Debug)]
struct Wish {
    want: Want,
    waiting: Option<(usize, u64, RequestId)>,
    granted: bool,
}

#[derive(Debug)]
pub(crate) enum Want {
    Token {
        site: usize,
    },
    Enrol {
        site: usize,
    },
    Upload {
        run: RunId,
    },
    Action {
        action: u64,
        deed: Deed,
    },
    Submit {
        run: RunId,
        /// What whoever submits it calls it.
        key: RunId,
        drawn: Box<Drawn>,
    },
    Cancel {
        run: RunId,
    },
    Drain {
        site: usize,
        drained: bool,
    },
    Revoke {
        site: usize,
    },
    Remove {
        site: usize,
    },
    /// Somebody knows that a machine is gone.
    DeclareLost {
        site: usize,
    },
    Resolve {
        execution: atoll_model::id::ExecutionId,
        run_again: bool,
    },
    /// Somebody sets what a project may have.
    SetProject {
        project: String,
        change: ProjectChange,
    },
    /// Somebody gives a project other rules.
    ApplyPolicy {
        project: String,
        source: &'static str,
    },
    Deploy {
        generation: u32,
    },
    Undeploy,
    /// Take something out that a run has made.
    Take {
        run: RunId,
        patience: u32,
    },
}

/// Rules that no drawn workflow contradicts: they change the way of the data, and who may take it out.
const POLICIES: [&str; 10] = [
    "placement: []\n",
    "placement:\n  - route: [bucket, direct]\n",
    "placement:\n  - match: { step: \"s1*\" }\n    confine: { to: \"has(site)\", bucket: allowed }\n",
    "placement:\n  - encrypt: { key: project }\n",
    "placement:\n  - match: { step: \"s1*\" }\n    confine: { to: \"has(site)\", bucket: if-encrypted }\n  - encrypt: { key: project }\n",
    "placement:\n  - match: { step: \"s1*\" }\n    keep: { for: 20s after run.end }\n",
    HOLD,
    // Twice, because little is made under it that a site wants to let go of.
    PIN,
    PIN,
    REPLICATE,
];
/// Of what is made under it one copy stays.
const HOLD: &str = "placement:\n  - hold: { reason: audit }\n";
/// Of what is made under it there are two copies, where two sites can have one.
const REPLICATE: &str = "placement:\n  - replicate: { copies: 2, importance: should }\n";
/// No copy goes of what is made under it.
const PIN: &str = "placement:\n  - pin: { at: \"has(site)\", until: 7d after run.end }\n";

/// Of what is made under the first three nothing is left in the end.
const EXPIRING: [&str; 5] = [
    "placement:\n  - expire: { after: 20s }\n",
    "placement:\n  - expire: { after: 20s }\n    keep: { for: 60s after run.end }\n",
    "placement:\n  - expire: { after: 20s }\n    replicate: { copies: 2, importance: should }\n",
    EXPIRE_HELD,
    "placement:\n  - expire: { after: 20s, then: ask }\n",
];
/// A hold wins over the end of its time.
const EXPIRE_HELD: &str = "placement:\n  - expire: { after: 20s }\n  - hold: { reason: audit }\n";

impl Want {
    /// Whether it is about a machine that will not come back, and whose place no other has taken.
    fn is_of_dead(&self, sites: &[Site]) -> bool {
        let Self::DeclareLost { site } = self else { return false };
        sites[*site].is_dead && sites[*site].standing == Standing::Trusted
    }

    fn is_action_settled(&self, result: &Result<Response, Rejection>) -> bool {
        matches!(self, Self::Action { deed, .. } if actions::is_settled(*deed, result))
    }

    /// The run that somebody wants to do something about.
    fn run(&self) -> Option<RunId> {
        match self {
            Self::Cancel { run } => Some(*run),
            Self::Resolve { execution, .. } => Some(execution.run),
            Self::Token { .. }
            | Self::Enrol { .. }
            | Self::Upload { .. }
            | Self::Action { .. }
            | Self::Submit { .. }
            | Self::Drain { .. }
            | Self::Revoke { .. }
            | Self::Remove { .. }
            | Self::SetProject { .. }
            | Self::ApplyPolicy { .. }
            | Self::Deploy { .. }
            | Self::Undeploy
            | Self::DeclareLost { .. } => None,
            Self::Take { run, .. } => Some(*run),
        }
    }

    /// The run that somebody sends something in for, submits, or wants something of.
    fn run_mut(&mut self) -> Option<&mut RunId> {
        match self {
            Self::Cancel { run } | Self::Upload { run } | Self::Submit { run, .. } | Self::Take { run, .. } => {
                Some(run)
            }
            Self::Resolve { .. }
            | Self::Token { .. }
            | Self::Enrol { .. }
            | Self::Action { .. }
            | Self::Drain { .. }
            | Self::Revoke { .. }
            | Self::Remove { .. }
            | Self::SetProject { .. }
            | Self::ApplyPolicy { .. }
            | Self::Deploy { .. }
            | Self::Undeploy
            | Self::DeclareLost { .. } => None,
        }
    }
}

impl World {
    pub(crate) fn enrol_sites(&mut self) {
        // A copy of a site enrols nobody: it has the identity of the one that it was copied from.
        for site in 0..self.sites.len() - usize::from(self.scenario.cloned) {
            self.wish(Duration::ZERO, Want::Token { site });
        }
    }

    pub(crate) fn plan_clients(&mut self) {
        let mut first: Option<Drawn> = None;
        for number in 0..self.scenario.runs {
            let run = RunId::from_bits(u128::from(mix(&[self.scenario.seed, number as u64, 77])));
            if self.scenario.limits {
                let change = ProjectChange {
                    share: Some(self.rng.between(1, 3) as u32),
                    max_executions: Some(self.rng.chance(500).then(|| self.rng.between(1, 6) as u32)),
                    max_runs: Some(self.rng.chance(300).then(|| self.rng.between(1, 2) as u32)),
                    workflow: self.rng.chance(300).then(|| "drawn".to_owned()),
                };
                let delay = self.rng.spread(1_000, 300_000_000);
                let project = project_of(run, &self.scenario);
                self.wish(delay, Want::SetProject { project: project.clone(), change });
                let drawn = POLICIES[self.rng.below(POLICIES.len() as u64) as usize];
                let source = self.expiring_policy(number).unwrap_or(drawn);
                let delay = self.rng.spread(1_000, 300_000_000);
                self.wish(delay, Want::ApplyPolicy { project, source });
            } else if let Some(source) = self.expiring_policy(number).filter(|_| number == 0) {
                let project = project_of(run, &self.scenario);
                self.wish(Duration::from_millis(1), Want::ApplyPolicy { project, source });
            }
            let given = self.scenario.workflows.get(number).cloned();
            let drawn = match given {
                Some(source) => {
                    let workflow = workload::read(&source);
                    Drawn::given(source, workflow)
                }
                None => {
                    let drawn = workload::draw(&mut self.rng, &self.scenario);
                    // Who submits the same again finds what was made before.
                    let again = self.scenario.caches && !mix(&[self.scenario.seed, number as u64]).is_multiple_of(3);
                    first.take().filter(|_| again).unwrap_or(drawn)
                }
            };
            first = Some(drawn.clone());
            self.trace(|| format!("{run}:\n{}", drawn.source));
            self.clients.runs.push(run);
            for step in &drawn.confined {
                self.history.confined_steps.insert((run, *step), drawn.confined_to.clone());
            }
            self.history.eager_steps.extend(drawn.eager.map(|step| (run, step)));
            let unquiet = self.scenario.unquiet.as_micros() as u64;
            let at = if number == 0 { Duration::from_secs(1) } else { self.rng.micros(1_000_000, unquiet) };
            if self.rng.chance(self.scenario.cancels) {
                let later = at + self.rng.spread(1_000, 60_000_000);
                self.wish(later, Want::Cancel { run });
            }
            if self.rng.chance(self.scenario.takes) {
                let later = at + self.rng.spread(1_000_000, 600_000_000);
                self.wish(later, Want::Take { run, patience: 3 });
            }
            if drawn.has_input {
                self.wish(at, Want::Upload { run });
            }
            self.wish_actions(&drawn.actions, at);
            self.wish(at, Want::Submit { run, key: run, drawn: Box::new(drawn) });
        }
    }

    /// Drawn apart, so that it shifts nothing of the rest.
    fn expiring_policy(&self, number: usize) -> Option<&'static str> {
        let drawn = mix(&[self.scenario.seed, number as u64, 0xE4_91_4E]) % (EXPIRING.len() as u64 + 1);
        EXPIRING.get(drawn as usize).copied().filter(|_| self.scenario.expires)
    }

    pub(crate) fn wish(&mut self, delay: Duration, want: Want) {
        self.clients.wishes.push(Wish { want, waiting: None, granted: false });
        let client = self.clients.wishes.len() - 1;
        self.after(delay, Occurrence::Client(client));
    }

    pub(crate) fn client_acts(&mut self, client: usize) {
        if self.clients.wishes[client].granted {
            return;
        }
        if !self.is_possible(client) {
            self.after(PATIENCE, Occurrence::Client(client));
            return;
        }
        if let Want::Submit { run, key, .. } = self.clients.wishes[client].want {
            let run = self.called_now(run, key);
            if self.kept_runs.contains_key(&run) {
                // The shell looks into the history: of a run that the core has forgotten it would make another.
                self.history.acknowledged.insert(run);
                self.clients.wishes[client].granted = true;
                return;
            }
        }
        let mut again_after = PATIENCE;
        if let Want::Take { patience, .. } = &mut self.clients.wishes[client].want {
            if *patience == 0 {
                self.clients.wishes[client].granted = true;
                return;
            }
            *patience -= 1;
            // What is answered late is answered when the hold ends at the latest.
            again_after = TAKE_HOLD * 2;
        }
        let body = self.request_of(client);
        if let Some(server) = self.some_leader().filter(|server| self.servers[*server].stalled_until <= self.now) {
            let process = self.servers[server].process;
            let request = self.ask_server(server, Asker::Client(client), body);
            self.clients.wishes[client].waiting = Some((server, process, request));
        }
        self.after(again_after, Occurrence::Client(client));
    }

    /// What a run is called that is submitted now: another name than before, if nobody knows it since a backup was restored.
    fn called_now(&mut self, run: RunId, key: RunId) -> RunId {
        let Some(core) = self.leading_core() else { return run };
        let names = core.names_of(key);
        let is_known = |name: &&RunId| core.run(**name).is_some() || self.kept_runs.contains_key(*name);
        let now = *names.iter().find(is_known).unwrap_or(&names[names.len() - 1]);
        if now != run {
            self.rename(run, now);
        }
        now
    }

    fn rename(&mut self, run: RunId, now: RunId) {
        self.trace(|| format!("{run} is {now} from now on"));
        self.clients.runs.iter_mut().filter(|known| **known == run).for_each(|known| *known = now);
        for wish in &mut self.clients.wishes {
            if let Some(known) = wish.want.run_mut().filter(|known| **known == run) {
                *known = now;
            }
        }
        if let Some(at) = self.clients.sent_in.remove(&run) {
            self.clients.sent_in.insert(now, at);
        }
        self.history.rename(run, now);
    }

    pub(crate) fn client_hears(
        &mut self,
        client: usize,
        (server, request): (usize, RequestId),
        result: Result<Response, Rejection>,
    ) {
        let asked = (server, self.servers[server].process, request);
        let now = self.now;
        let Clients { wishes, sent_in: sent, .. } = &mut self.clients;
        let wish = &mut wishes[client];
        if wish.waiting != Some(asked) || wish.granted {
            return;
        }
        let is_held_no_more = |run| sent.get(&run).is_some_and(|at| now.saturating_since(*at) >= SENT_IN_HOLD);
        let is_to_be_sent_again = matches!(result, Err(Rejection::Invalid(_)))
            && matches!(wish.want, Want::Submit { run, .. } if is_held_no_more(run));
        let settled = match &result {
            result if matches!(wish.want, Want::Action { .. }) => wish.want.is_action_settled(result),
            // Work of it is still to be given away.
            Err(Rejection::Conflict(_)) if matches!(wish.want, Want::Remove { .. }) => false,
            // A site that the workflow names is being replaced.
            Err(_) if matches!(wish.want, Want::Submit { .. }) && self.scenario.is_fleet() => false,
            // It was put off for longer than its input was held.
            Err(_) if is_to_be_sent_again => false,
            // A script that several workflows have was cut off too often, and is in quarantine for a while.
            Err(Rejection::Conflict(_)) if matches!(wish.want, Want::Submit { .. }) && self.scenario.caches => false,
            // Whoever knows that a machine is gone says it until it is believed.
            Err(Rejection::Conflict(_)) if wish.want.is_of_dead(&self.sites) => false,
            // Nothing is to be said of a site that is there, or was removed.
            Err(_) if matches!(wish.want, Want::DeclareLost { .. }) => true,
            // Removed by the request whose answer was lost.
            Err(Rejection::NotFound(_)) if matches!(wish.want, Want::Remove { .. } | Want::Undeploy) => true,
            Ok(_) | Err(Rejection::Conflict(_) | Rejection::Forbidden(_) | Rejection::Invalid(_)) => true,
            // It is over, and only the history knows of it.
            Err(Rejection::NotFound(_)) if wish.want.run().is_some_and(|run| self.kept_runs.contains_key(&run)) => true,
            // Whoever cancels what is not there yet tries again; a site that is away may come back.
            Err(Rejection::NotFound(_) | Rejection::Unavailable(_) | Rejection::Busy(_)) => false,
        };
        wish.granted = settled;
        match (&wish.want, &result) {
            (Want::Upload { run }, Ok(Response::Staged { copy })) => {
                // Another copy was there before.
                let (own, counts) = (copy_name(&sent_in(*run, &self.scenario)), copy_name(copy));
                if own != counts {
                    self.bucket.remove(&own);
                }
                sent.insert(*run, now);
            }
            (Want::Submit { run, .. }, Err(_)) if is_to_be_sent_again => {
                let run = *run;
                self.clients.sent_in.remove(&run);
                self.wish(Duration::ZERO, Want::Upload { run });
            }
            (Want::Submit { run, .. }, Ok(_)) => {
                self.history.acknowledged.insert(*run);
            }
            (Want::Action { action, deed }, result) => {
                let (action, deed) = (*action, *deed);
                self.action_heard(action, deed, result);
            }
            (Want::ApplyPolicy { project, source }, Ok(_)) => {
                let (project, source) = (project.clone(), *source);
                self.follow_policy(&project, source);
            }
            // Made by the request whose answer was lost.
            (Want::Token { site }, Ok(_) | Err(Rejection::Conflict(_))) => {
                let site = *site;
                self.wish(Duration::ZERO, Want::Enrol { site });
            }
            (Want::Enrol { site }, Ok(_)) => {
                let site = *site;
                let agent = self.sites[site].agent;
                for copy in 0..self.sites.len() {
                    if self.sites[copy].agent == agent {
                        self.sites[copy].enrolled = true;
                        self.after(Duration::ZERO, Occurrence::SiteStart(copy));
                    }
                }
            }
            (Want::Revoke { site }, Ok(_)) => {
                let site = *site;
                let delay = self.rng.spread(1_000, 60_000_000);
                self.wish(delay, Want::Remove { site });
            }
            (Want::Remove { site }, _) if settled => {
                let site = *site;
                self.replace_site(site);
            }
            (Want::Submit { .. } | Want::Token { .. } | Want::Enrol { .. } | Want::Upload { .. }, Err(rejection)) => {
                assert!(!settled, "{rejection}");
            }
            (
                Want::Upload { .. }
                | Want::Cancel { .. }
                | Want::Drain { .. }
                | Want::Resolve { .. }
                | Want::Revoke { .. }
                | Want::Remove { .. }
                | Want::DeclareLost { .. }
                | Want::SetProject { .. }
                | Want::ApplyPolicy { .. }
                | Want::Deploy { .. }
                | Want::Undeploy
                | Want::Take { .. },
                _,
            ) => {}
        }
    }

    /// What the rules hold of all that is made from now on, where nobody gives the project others.
    fn follow_policy(&mut self, project: &str, source: &str) {
        let is_of = |want: &Want| matches!(want, Want::ApplyPolicy { project: other, .. } if other == project);
        if self.clients.wishes.iter().filter(|wish| is_of(&wish.want)).count() > 1 {
            return;
        }
        let runs = self.clients.runs.iter().copied().filter(|run| project_of(*run, &self.scenario) == project);
        match source {
            HOLD | EXPIRE_HELD => self.history.holding.extend(runs),
            source if EXPIRING[..3].contains(&source) => self.history.expiring.extend(runs),
            PIN => self.history.pinning.extend(runs),
            REPLICATE => self.history.replicating.extend(runs),
            _ => {}
        }
    }

    /// Somebody revokes a site, once.
    pub(crate) fn revoke(&mut self, site: usize) {
        if self.sites[site].standing == Standing::Trusted && self.sites[site].enrolled {
            self.sites[site].standing = Standing::Revoked;
            self.history.revoked.insert(self.sites[site].name.to_string());
            self.wish(Duration::ZERO, Want::Revoke { site });
        }
    }

    /// Another machine joins under the name of a site that was removed.
    fn replace_site(&mut self, site: usize) {
        self.sites[site].standing = Standing::Replaced;
        let mut anew = Site::new(self.sites.len(), &mut self.rng, &self.scenario);
        anew.name = self.sites[site].name.clone();
        self.sites.push(anew);
        self.network.links.push(Default::default());
        self.wish(Duration::ZERO, Want::Token { site: self.sites.len() - 1 });
    }

    /// Whether what comes before it is done: a run wants sites, and its input in the bucket.
    fn is_possible(&self, client: usize) -> bool {
        let want = &self.clients.wishes[client].want;
        if let Want::Action { action, deed: Deed::Remove } = want {
            return !self.is_action_missed(*action);
        }
        // In a fleet there is always one that has just gone.
        let usable = |site: &Site| self.scenario.is_fleet() || (site.enrolled && site.standing != Standing::Revoked);
        if matches!(want, Want::Deploy { .. }) {
            return self.sites.iter().all(usable);
        }
        if matches!(want, Want::Undeploy) {
            let deploys = |wish: &Wish| matches!(wish.want, Want::Deploy { .. }) && !wish.granted;
            return !self.clients.wishes.iter().any(deploys) && self.has_emitted_all();
        }
        let Want::Submit { run, drawn, .. } = want else { return true };
        if !drawn.actions.is_subset(&self.clients.pushed) {
            return false;
        }
        let uploads = |wish: &Wish| matches!(&wish.want, Want::Upload { run: of } if of == run) && !wish.granted;
        self.sites.iter().all(usable) && !self.clients.wishes.iter().any(uploads)
    }

    /// Whether somebody still wants something.
    pub(crate) fn is_anybody_waiting(&self) -> bool {
        self.clients.wishes.iter().any(|wish| !wish.granted)
    }

    fn request_of(&mut self, client: usize) -> Request {
        match &self.clients.wishes[client].want {
            Want::Token { site } => Request::CreateToken {
                token: TokenId::from_bits(1 + *site as u128),
                secret_hash: key_of(*site, 1),
                site: self.sites[*site].name.clone(),
                labels: Labels::from([("zone".to_owned(), zone_of(&self.sites[*site].name).to_owned())]),
                lifetime: Duration::from_secs(3_600),
            },
            Want::Enrol { site } => Request::Enrol {
                token: TokenId::from_bits(1 + *site as u128),
                secret_hash: key_of(*site, 1),
                identity_key: key_of(*site, 2),
                agent: self.sites[*site].agent,
            },
            Want::Upload { run } => {
                let copy = sent_in(*run, &self.scenario);
                self.bucket.insert(copy_name(&copy), BucketCopy { corrupt: false });
                Request::RecordUpload { object: copy.object, key: copy.encryption.map(|encryption| encryption.key) }
            }
            Want::Action { action, deed } => {
                let (action, deed) = (*action, *deed);
                self.action_request(action, deed)
            }
            Want::Submit { run, drawn, .. } => {
                let mut inputs = IndexMap::new();
                if drawn.has_input {
                    let object = input_of(*run);
                    let name = FileName::new(b"data").expect("a name");
                    let file = FileRef { object: object.id, bytes: object.bytes, name, executable: false };
                    inputs.insert("data".to_owned(), Value::File(file));
                }
                Request::Submit {
                    run: *run,
                    workflow: Arc::new(drawn.workflow.clone()),
                    source: Arc::from(drawn.source.as_str()),
                    inputs,
                    submitted_by: "somebody".to_owned(),
                    traceparent: None,
                    tags: RunTags { project: project_of(*run, &self.scenario), ..RunTags::default() },
                }
            }
            Want::Cancel { run } => Request::CancelRun { run: *run, reason: "enough".to_owned() },
            Want::Deploy { generation } => sources::deploy_request(self.scenario.seed, *generation, self.now),
            Want::Undeploy => Request::UndeployWorkflow { name: sources::name() },
            Want::Drain { site, drained } => {
                Request::DrainSite { site: self.sites[*site].name.clone(), drained: *drained }
            }
            Want::Revoke { site } => {
                Request::RevokeSite { site: self.sites[*site].name.clone(), reason: "stolen".to_owned() }
            }
            Want::SetProject { project, change } => {
                Request::SetProject { project: project.clone(), change: change.clone() }
            }
            Want::ApplyPolicy { project, source } => {
                let application = PolicyApplication {
                    project: project.clone(),
                    policy: parse("policy.yaml", source).expect("the rules of the simulation are valid"),
                    source: Arc::from(*source),
                    applied_by: "sim".to_owned(),
                    instead_of: None,
                };
                Request::ApplyPolicy { application: Box::new(application) }
            }
            Want::DeclareLost { site } => Request::DeclareLost { site: self.sites[*site].name.clone() },
            Want::Remove { site } => Request::RemoveSite { site: self.sites[*site].name.clone() },
            Want::Take { run, .. } => {
                let made = self.history.made_by(*run);
                let place = self.rng.below(made.len() as u64) as usize;
                // Of what has made nothing yet, what was sent in.
                let object = made.get(place).copied().unwrap_or_else(|| input_of(*run));
                Request::StageForClient { run: *run, object, hold: TAKE_HOLD, kept: None }
            }
            Want::Resolve { execution, run_again } => {
                Request::ResolveUnknown { execution: *execution, run_again: *run_again }
            }
        }
    }
}

/// What is sent in for a run. Some of it is encrypted, and always by the same key.
fn sent_in(run: RunId, scenario: &Scenario) -> control_plane_core::BucketCopy {
    let encrypted = scenario.limits && mix(&[run.bits() as u64, 11]).is_multiple_of(2);
    let key = encrypted.then(|| KeyId { project: project_of(run, scenario).into(), number: 1 });
    let encryption = key.map(|key| Encryption { key, wrapped: None });
    control_plane_core::BucketCopy { object: input_of(run), encryption }
}

fn project_of(run: RunId, scenario: &Scenario) -> String {
    let number = mix(&[run.bits() as u64, 9]) % 3;
    if scenario.limits { format!("project-{number}") } else { RunTags::default().project }
}

/// By its name, which another machine may take over.
fn zone_of(site: &SiteName) -> &'static str {
    let number: usize = site.as_str().trim_start_matches('s').parse().unwrap_or_default();
    workload::ZONES[number % 2]
}

fn key_of(site: usize, which: u64) -> [u8; 32] {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&mix(&[site as u64, which]).to_le_bytes());
    key
}

pub(crate) fn input_of(run: RunId) -> atoll_model::value::ObjectRef {
    workload::object(mix(&[run.bits() as u64, 5]), ObjectKind::File)
}
