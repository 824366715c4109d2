//! The rules of a project: given, and followed from then on by everything that has not crossed a border yet.

use std::sync::Arc;

use atoll_model::id::TransferId;
use atoll_model::placement::PushMode;
use atoll_model::policy::Until;
use atoll_model::time::Timestamp;

use crate::agenda::Timer;
use crate::command::{Rejection, Response};
use crate::control_plane::ControlPlane;
use crate::event::PolicyApplication;
use crate::fact::Fact;
use crate::rules::{AppliedPolicy, DataRules};
use crate::state::{ObjectState, Run};

impl ControlPlane {
    pub(crate) fn apply_policy(&mut self, application: PolicyApplication) -> Result<Response, Rejection> {
        let PolicyApplication { project, policy, source, applied_by, instead_of } = application;
        let current = self.state.policy(&project);
        let version = current.map_or(0, |current| current.version);
        if current.is_some_and(|current| current.policy == policy && current.source == source) {
            // Its answer was lost, or it is what holds already.
            return Ok(Response::Done);
        }
        if instead_of.is_some_and(|expected| expected != version) {
            let reason =
                format!("version {version} of the policy of project {project} holds, which somebody else applied");
            return Err(Rejection::Conflict(reason));
        }
        let applied = AppliedPolicy { version: version + 1, policy, source, applied_by, at: self.now };
        let claimed = self.state.claims.of_project(&project).flat_map(|claim| self.state.claims.objects_of(claim));
        let claimed: Vec<_> = claimed.collect();
        self.record(Fact::PolicyApplied { project, applied: Arc::new(applied) });
        self.agenda.sweep.extend(claimed);
        self.follow_rules();
        Ok(Response::Done)
    }

    /// What is under way to where it may not go any more is called back, and what waits is looked at anew.
    fn follow_rules(&mut self) {
        let live = self.state.transfers.iter().filter(|(_, transfer)| !transfer.cancelled);
        let against = live.filter(|(_, transfer)| {
            let known = self.state.objects.get(&transfer.object.id);
            let in_clear = |known: &ObjectState| self.state.keys.of_copy(known.reference.id).is_none();
            known.is_some_and(|known| {
                self.vetoes(known, None).bucket.is_some() || in_clear(known) && self.encrypting(known).is_some()
            })
        });
        let against: Vec<(TransferId, _)> = against.map(|(id, transfer)| (*id, transfer.site)).collect();
        for (transfer, site) in against {
            self.record(Fact::PushCancelled { transfer });
            self.agenda.touched.insert(site);
        }
        self.withdraw_ruled_out();
        // What was seen ahead was seen under other rules.
        let runs: Vec<_> = self.state.runs.keys().copied().collect();
        runs.into_iter().for_each(|run| self.outlooks.forget(run));
        let wanted: Vec<_> = self.agenda.wants.objects().chain(self.agenda.clients.keys().copied()).collect();
        self.agenda.replan.extend(wanted);
        let in_bucket = self.state.runs.values().flat_map(|run| run.in_bucket.values().flatten().copied());
        let in_bucket: Vec<_> = in_bucket.collect();
        self.agenda.sweep.extend(in_bucket);
        self.look_at_all_copies();
        self.look_at_all_expiries();
        self.wake_data();
    }

    /// Whether a rule of the run keeps the object in the bucket now; looks again when it ceases to.
    pub(crate) fn is_kept(&self, run: &Run, rules: &DataRules) -> Kept {
        let ended = run.finished_at.filter(|_| !run.is_live());
        match (rules.push.mode, rules.keep, ended) {
            (PushMode::Eager, _, None) => Kept::Yes,
            (PushMode::WhenNeeded | PushMode::Never, ..) | (PushMode::OnSuccess, _, None) => Kept::No,
            (PushMode::Eager, None, Some(_)) => Kept::No,
            // As long as the run is known.
            (PushMode::OnSuccess, None, Some(_)) => Kept::Yes,
            (PushMode::Eager | PushMode::OnSuccess, Some(Until::Forever), Some(_)) => Kept::Yes,
            (PushMode::Eager | PushMode::OnSuccess, Some(Until::AfterRun(time)), Some(ended)) => {
                let until = ended + time;
                if until > self.now { Kept::Until(until) } else { Kept::No }
            }
        }
    }

    pub(crate) fn look_when_kept_no_more(&mut self, object: atoll_model::id::ObjectId) {
        let Some(known) = self.state.objects.get(&object) else { return };
        let until = self.rules_on(known).filter_map(|(run, rules)| match self.is_kept(run, &rules) {
            Kept::Until(until) => Some(until),
            Kept::Yes | Kept::No => None,
        });
        // What keeps it in the bucket may end long before what holds it anywhere.
        for until in until.max().into_iter().chain(self.held_by_rules_until(known)) {
            self.agenda.set(until, Timer::Object(object));
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    No,
    Until(Timestamp),
    Yes,
}
