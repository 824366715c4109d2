//! What people take out: brought into the bucket for them, and held there for a while.

use std::sync::Arc;
use std::time::Duration;

use atoll_model::id::{ObjectId, RunId, SiteId, StepIndex};
use atoll_model::time::Timestamp;
use atoll_model::value::{ObjectRef, Value};
use storage_sync_core::policy::RuleId;
use storage_sync_core::{Plan, Reach};

use crate::agenda::{Taker, Timer};
use crate::command::{Rejection, Response};
use crate::control_plane::ControlPlane;
use crate::event::RequestId;
use crate::fact::{Fact, RuleText};
use crate::finished::FinishedRun;
use crate::plan::RunPlan;
use crate::state::{BucketState, Run};

/// Longest hold that a person may ask for.
const HOLD_MAX: Duration = Duration::from_secs(24 * 3_600);

impl ControlPlane {
    /// Answers now, or when the object is in the bucket.
    pub(crate) fn stage_for_client(
        &mut self,
        request: RequestId,
        (run_id, kept): (RunId, Option<Box<FinishedRun>>),
        object: ObjectRef,
        hold: Duration,
    ) {
        let until = self.now + hold.min(HOLD_MAX);
        let run = self.state.runs.get(&run_id).cloned().or_else(|| self.kept_run(&*kept?, run_id));
        // A log is under no rule of its own, nor is what the history alone knows of: it goes as anything of the run may have to.
        let encrypt = run.as_ref().filter(|run| run.plan.rules.encrypts()).map(|run| run.project.clone());
        let held = match run {
            Some(run) => self.hold_for_client(&run, object, until),
            None => Err(Rejection::NotFound(format!("there is no run {run_id}"))),
        };
        match held {
            Ok(true) => self.reply(request, Ok(Response::Staged { copy: self.copy_of(object) })),
            Ok(false) => {
                let taker = Taker { request, run: run_id, until, encrypt };
                self.agenda.clients.entry(object.id).or_default().push(taker);
                self.serve_clients(object.id);
            }
            Err(rejection) => self.reply(request, Err(rejection)),
        }
    }

    /// A run of the history, under the rules that hold now.
    fn kept_run(&self, kept: &FinishedRun, run: RunId) -> Option<Arc<Run>> {
        let mut run = kept.run_of(run)?;
        let rules = self.rules_for(&run.workflow, kept.tags());
        let plan = RunPlan::new(&run.workflow, rules);
        Arc::make_mut(&mut run).plan = Arc::new(plan);
        Some(run)
    }

    /// Whether the object is in the bucket already.
    fn hold_for_client(&mut self, run: &Run, object: ObjectRef, until: Timestamp) -> Result<bool, Rejection> {
        let known = self.state.objects.get(&object.id).filter(|known| known.uses.iter().any(|u| u.run == run.id));
        let site = match known {
            Some(_) => None,
            None => Some(maker_of(run, object.id)?),
        };
        if let Some(any) = self.state.objects.get(&object.id)
            && let Some(rule) = self.confining(any)
        {
            let rule = self.rule_name(rule);
            return Err(Rejection::Forbidden(format!("{rule} confines {} to its sites", object.id)));
        }
        let holders = known.map_or_else(|| site.into_iter().collect(), |known| known.sites.clone());
        let present = self.state.objects.get(&object.id).is_some_and(|known| known.bucket == BucketState::Present);
        if !present && !holders.iter().any(|site| self.reach(*site) == Reach::Connected) {
            return Err(Rejection::Unavailable(self.why_out_of_reach(object.id, &holders)));
        }
        self.record(Fact::ObjectHeld { object, run: run.id, site, until });
        self.agenda.set(until, Timer::Object(object.id));
        Ok(present)
    }

    /// Orders the push that requests wait for, or answers them.
    pub(crate) fn serve_clients(&mut self, object: ObjectId) {
        let Some(run) = self.agenda.clients.get(&object).and_then(|all| all.first()).map(|taker| taker.run) else {
            return;
        };
        let confined = self.state.objects.get(&object).and_then(|known| self.confining(known));
        if let Some(rule) = confined {
            let reason = format!("{} confines {object} to its sites", self.rule_name(rule));
            return self.refuse_clients(object, &reason);
        }
        // A site that does not exist has no copy: what is planned for it is the way into the bucket.
        match self.plan_object(object, SiteId(0)) {
            // Directly an object goes to sites only, and a site that does not exist reads none.
            Plan::InBucket | Plan::Present | Plan::DirectFrom(_) => {
                let copy = self.copy_of(self.state.objects[&object].reference);
                for taker in self.agenda.clients.remove(&object).unwrap_or_default() {
                    self.reply(taker.request, Ok(Response::Staged { copy: copy.clone() }));
                }
            }
            Plan::PushFrom(site) => {
                let reference = self.state.objects[&object].reference;
                self.order_push(reference, site, (run, None), RuleText::Client);
            }
            Plan::Wait => {}
            Plan::Withheld(_) => {
                let reason = self.veto(object, SiteId(0)).unwrap_or_default();
                self.refuse_clients(object, &reason);
            }
            Plan::Forbidden(_) | Plan::Closed(_) => {
                // `push: never` is about executions; what a person asks for is pushed all the same.
                let known = &self.state.objects[&object];
                let reference = known.reference;
                let holder = known.sites.iter().copied().find(|site| self.reach(*site) == Reach::Connected);
                let is_free = known.transfer.is_none() && known.bucket == BucketState::Absent;
                if let Some(rule) = self.vetoes(known, None).bucket {
                    let reason = format!("{} keeps {object} out of the bucket", self.rule_name(rule));
                    self.refuse_clients(object, &reason);
                } else if let Some(site) = holder.filter(|_| is_free) {
                    self.order_push(reference, site, (run, None), RuleText::Client);
                }
            }
            Plan::Unavailable => self.refuse_clients(object, &self.why_out_of_reach(object, &[])),
        }
    }

    pub(crate) fn refuse_clients(&mut self, object: ObjectId, reason: &str) {
        for taker in self.agenda.clients.remove(&object).unwrap_or_default() {
            self.reply(taker.request, Err(Rejection::Unavailable(reason.to_owned())));
        }
    }

    pub(crate) fn record_download(&mut self, run: RunId, object: ObjectRef, bytes: u64) -> Result<Response, Rejection> {
        self.record(Fact::ObjectDownloaded { object, run, bytes, at: self.now });
        Ok(Response::Done)
    }

    pub(crate) fn refuse_who_waited_too_long(&mut self, object: ObjectId) {
        let now = self.now;
        let waiting =
            self.agenda.clients.get_mut(&object).map(|all| all.extract_if(.., |taker| taker.until <= now).collect());
        let expired: Vec<_> = waiting.unwrap_or_default();
        for taker in expired {
            let reason = format!("{object} did not come into the bucket in time");
            self.reply(taker.request, Err(Rejection::Unavailable(reason)));
        }
        if self.agenda.clients.get(&object).is_some_and(Vec::is_empty) {
            self.agenda.clients.remove(&object);
        }
    }

    /// Where the copies of an object are that nobody can get at now, and what whoever wants it can do.
    fn why_out_of_reach(&self, object: ObjectId, holders: &[SiteId]) -> String {
        const ANEW: &str = "submit the workflow again to have it made anew";
        let (mut places, mut is_final) = (Vec::new(), true);
        for site in holders {
            let known = self.state.sites.get(site);
            let state = match known {
                None => "removed",
                Some(known) if known.revoked.is_some() => "revoked",
                Some(known) if known.lost.is_some() => "lost",
                Some(_) => "not connected",
            };
            is_final &= known.is_none_or(|known| known.revoked.is_some());
            let name = known.map_or_else(|| "a site".to_owned(), |known| format!("site {}", known.name));
            places.push(format!("{name} ({state})"));
        }
        match (places.as_slice(), is_final) {
            ([], _) => format!("no copy of {object} is left; {ANEW}"),
            (places, true) => format!("{object} was at {} only; {ANEW}", places.join(", ")),
            (places, false) => {
                let at = places.join(", ");
                format!("{object} is at {at} only; start the agent there and ask again, or {ANEW}")
            }
        }
    }
}

/// The site where a log of the run was written, or an output of a run made that is not known any more, if a person may have
/// it.
fn maker_of(run: &Run, object: ObjectId) -> Result<SiteId, Rejection> {
    let confined = |rule: RuleId, what: &str| {
        let rule = run.plan.rules.name(rule);
        Rejection::Forbidden(format!("{rule} confines {what}"))
    };
    if let Some((step, place, site)) = output_of(run, object) {
        let rules = run.plan.steps[step.index()].outputs.get(place);
        return match rules.and_then(|rules| rules.confined_by.first()) {
            Some(rule) => Err(confined(*rule, &format!("{object} to its sites"))),
            None => Ok(site),
        };
    }
    let none = || Rejection::NotFound(format!("{} has neither an output nor a log that is {object}", run.id));
    let (step, site) = log_of(run, object).ok_or_else(none)?;
    match run.plan.steps[step.index()].confining() {
        Some(rule) => {
            let step = &run.workflow.step(step).name;
            let what = format!(
                "what step {step} reads or makes, so its log is not put into the bucket; its site shows it to who looks"
            );
            Err(confined(rule, &what))
        }
        None => Ok(site),
    }
}

/// Whether the object is the value, or in it.
pub(super) fn holds(value: &Value, object: ObjectId) -> bool {
    let mut is_here = false;
    value.visit_objects(&mut |found| is_here |= found.id == object);
    is_here
}

/// Which output of which step it is, and where it was made.
fn output_of(run: &Run, object: ObjectId) -> Option<(StepIndex, usize, SiteId)> {
    (0..=u16::MAX).map(StepIndex).zip(&run.steps).find_map(|(index, step)| {
        step.details.iter().find_map(|(element, detail)| {
            let place = detail.outputs.iter().position(|value| holds(value, object))?;
            Some((index, place, step.row(*element)?.site))
        })
    })
}

/// The step whose log this is, and the site of the execution that wrote it.
fn log_of(run: &Run, object: ObjectId) -> Option<(StepIndex, SiteId)> {
    (0..=u16::MAX).map(StepIndex).zip(&run.steps).find_map(|(index, step)| {
        step.details.iter().find_map(|(element, detail)| {
            let logs = [detail.logs.stdout, detail.logs.stderr];
            let is_here = logs.into_iter().flatten().any(|log| log.id == object);
            is_here.then(|| step.row(*element)).flatten().map(|row| (index, row.site))
        })
    })
}
