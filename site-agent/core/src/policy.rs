//! What the site's administrator lets the control plane have: what may run, and what may leave.

use std::collections::BTreeMap;

use atoll_model::id::{Attempt, ExecutionId, ObjectId, TransferId};
use atoll_model::policy::{BUCKET, Withholding};
use atoll_model::session::{Logs, PushFailure, Report, StepTemplate};
use atoll_model::value::Value;

use crate::agent::{Agent, Step};
use crate::fact::Fact;
use crate::readiness::bindings;
use crate::state::{AttemptKey, Terms};

/// Said of what ran before the journal was lost: its step is not known, so no rule can be shown to allow it.
const UNKNOWN_STEP: &str = "the site's own policy has rules on what may leave, and its step is not known any more";

impl Agent {
    /// Why the object may not leave the site for everywhere: nobody is shown it as a log then.
    pub fn withheld(&self, object: ObjectId) -> Option<&str> {
        self.state.withheld.get(&object)?.iter().find_map(Withholding::any_refusal)
    }

    /// Why the object may not leave the site for another one, by its name, or for the bucket.
    pub fn withheld_from(&self, object: ObjectId, to: &str) -> Option<&str> {
        self.state.withheld.get(&object)?.iter().find_map(|term| term.refusal(to))
    }

    /// All that is said of an object that may not leave for everywhere.
    pub fn withholdings(&self, object: ObjectId) -> Option<(ObjectId, &[Withholding])> {
        self.state.withheld.get(&object).map(|terms| (object, terms.as_slice()))
    }

    /// Everything that may not leave for everywhere, as it was decided so far.
    pub fn all_withheld(&self) -> impl Iterator<Item = (ObjectId, &[Withholding])> {
        self.state.withheld.iter().map(|(object, terms)| (*object, terms.as_slice()))
    }

    /// Why what the attempt writes may not be read from elsewhere, while it is running too.
    pub fn withheld_logs(&self, execution: ExecutionId, attempt: Attempt) -> Option<String> {
        let active = self.state.active.get(&(execution, attempt))?;
        self.reason_for_logs(&(execution, attempt), active.terms.as_ref())
    }

    /// Attempts whose logs may not be read from elsewhere, of all that may have a process.
    pub fn all_withheld_logs(&self) -> impl Iterator<Item = (ExecutionId, Attempt, String)> {
        self.state.active.iter().filter_map(|((execution, attempt), active)| {
            let reason = self.reason_for_logs(&(*execution, *attempt), active.terms.as_ref())?;
            Some((*execution, *attempt, reason))
        })
    }

    /// Ends a push of what may not leave; whether it was one.
    pub(crate) fn refuse_push(&mut self, transfer: TransferId, step: &mut Step) -> bool {
        let Some(object) = self.state.pushes.get(&transfer).map(|push| push.object) else { return false };
        let Some(message) = self.withheld_from(object.id, BUCKET).map(str::to_owned) else { return false };
        let report = Report::PushFailed { transfer, object, reason: PushFailure::Forbidden, message };
        self.end_push(transfer, report, step);
        true
    }

    /// Remembers which outputs and logs of an attempt that ends now may not leave.
    pub(crate) fn withhold(&mut self, key: AttemptKey, outputs: &[Value], logs: Logs, step: &mut Step) {
        let terms = self.state.active.get(&key).and_then(|active| active.terms.clone());
        let mut found: BTreeMap<Vec<Withholding>, Vec<ObjectId>> = BTreeMap::new();
        if let Some(reason) = self.reason_for_logs(&key, terms.as_ref()) {
            let logs = [logs.stdout, logs.stderr].into_iter().flatten().map(|log| log.id);
            found.entry(vec![Withholding::everywhere(reason)]).or_default().extend(logs);
        }
        if let Some((template, terms)) = terms.as_ref().and_then(|terms| Some((self.template_of(&key, terms)?, terms)))
        {
            let inherited = self.inherited(template, terms);
            for (declared, value) in template.outputs.iter().zip(outputs) {
                let mut all = inherited.clone();
                all.extend(
                    self.config.policy.withholds(template, &declared.name).filter(|own| !inherited.contains(own)),
                );
                if !all.is_empty() {
                    value.visit_objects(&mut |object| found.entry(all.clone()).or_default().push(object.id));
                }
            }
        }
        for (terms, mut objects) in found {
            objects.retain(|object| {
                let known = self.state.withheld.get(object);
                known.is_none_or(|known| !terms.iter().all(|term| known.contains(term)))
            });
            if !objects.is_empty() {
                self.decide(step, Fact::Withheld { objects, terms });
            }
        }
    }

    fn reason_for_logs(&self, key: &AttemptKey, terms: Option<&Terms>) -> Option<String> {
        if self.config.policy.leave.is_empty() && self.state.withheld.is_empty() {
            return None;
        }
        let known = terms.and_then(|terms| Some((self.template_of(key, terms)?, terms)));
        let Some((template, terms)) = known else {
            let any = self.config.policy.leave.iter().any(|rule| rule.refuses);
            return any.then(|| UNKNOWN_STEP.to_owned());
        };
        let inherited = self.inherited(template, terms).iter().find_map(Withholding::any_refusal).map(str::to_owned);
        inherited.or_else(|| self.config.policy.refuses_logs(template))
    }

    fn template_of(&self, (execution, _): &AttemptKey, terms: &Terms) -> Option<&StepTemplate> {
        self.state.template((execution.run, execution.step), terms.template).map(AsRef::as_ref)
    }

    /// What what is derived from the inputs inherits.
    fn inherited(&self, template: &StepTemplate, terms: &Terms) -> Vec<Withholding> {
        let mut inherited = Vec::new();
        if self.state.withheld.is_empty() {
            return inherited;
        }
        for binding in bindings(template, terms) {
            self.visit_input(binding, &mut |object| {
                for term in self.state.withheld.get(&object).into_iter().flatten() {
                    if !inherited.contains(term) {
                        inherited.push(term.clone());
                    }
                }
            });
        }
        inherited.sort_unstable();
        inherited
    }
}
