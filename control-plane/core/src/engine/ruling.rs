//! What rules, and sites by their own policies, are against: at a site, on the way to it, and for good.

use std::borrow::Cow;

use atoll_model::id::{ObjectId, RunId, SiteId};
use atoll_model::placement::PushMode;
use atoll_model::policy::Location;
use atoll_model::value::ObjectRef;
use atoll_model::workflow::Step;
use storage_sync_core::policy::RuleId;
use storage_sync_core::{Plan, Reach, Vetoes};

use crate::control_plane::ControlPlane;
use crate::placement::{self, Candidate};
use crate::plan::RunPlan;
use crate::rules::DataRules;
use crate::state::{ObjectState, Run, Use};

/// Why no site will ever run something.
#[derive(Debug)]
pub(crate) struct Nowhere {
    /// Whether a rule, or what a site withholds, is the reason at any of them.
    pub(crate) by_rule: bool,
    pub(crate) reason: String,
}

/// A rule of a run.
pub(crate) type Cited = (RunId, RuleId);

impl ControlPlane {
    /// What the rules of all runs that know the object say, added up, of its way to a site, or to nobody in particular.
    pub(crate) fn vetoes(&self, object: &ObjectState, destination: Option<SiteId>) -> Vetoes<Cited> {
        let mut vetoes = Vetoes::default();
        let destination = destination.and_then(|site| self.location(site));
        for (run, rules) in self.rules_on(object) {
            let cited = |rule: Option<RuleId>| rule.map(|rule| (run.id, rule));
            if let (None, Some(location)) = (vetoes.destination, destination) {
                vetoes.destination = cited(run.plan.rules.keeping_away(&rules.confined_by, location));
            }
            let never = rules.push.rule.filter(|_| rules.push.mode == PushMode::Never);
            vetoes.leaving = vetoes.leaving.or(cited(never));
            vetoes.bucket = vetoes.bucket.or(cited(rules.bucket));
            vetoes.direct = vetoes.direct.or(cited(rules.direct));
            vetoes.bucket_first |= rules.bucket_first;
        }
        vetoes
    }

    /// What rules can say of a site.
    pub(crate) fn location(&self, site: SiteId) -> Option<Location<'_>> {
        let site = self.state.sites.get(&site)?;
        Some(Location { name: &site.name, labels: &site.labels })
    }

    /// The first rule that confines the object, whichever run's it is.
    pub(crate) fn confining(&self, object: &ObjectState) -> Option<Cited> {
        self.rules_on(object).find_map(|(run, rules)| Some((run.id, rules.confined_by.first().copied()?)))
    }

    pub(crate) fn rules_on<'a>(
        &'a self,
        object: &'a ObjectState,
    ) -> impl Iterator<Item = (&'a Run, Cow<'a, DataRules>)> {
        self.rules_by_use(object).map(|(_, run, rules)| (run, rules))
    }

    /// The rules on an object, each for what it is in a run.
    pub(crate) fn rules_by_use<'a>(
        &'a self,
        object: &'a ObjectState,
    ) -> impl Iterator<Item = (Use, &'a Run, Cow<'a, DataRules>)> {
        object.uses.iter().filter_map(|usage| {
            let run = self.state.runs.get(&usage.run)?;
            let rules = run.plan.rules_on(&run.workflow, usage.source, usage.output, object.reference)?;
            Some((*usage, &**run, rules))
        })
    }

    /// Why the rules, or the site that has it, keep an object from going to a site.
    pub(crate) fn veto(&self, object: ObjectId, site: SiteId) -> Option<String> {
        match self.plan_object(object, site) {
            Plan::Forbidden(rule) => {
                Some(format!("it reads {object}, which {} keeps where it is", self.rule_name(rule)))
            }
            Plan::Closed(rule) => {
                let rule = self.rule_name(rule);
                Some(format!("it reads {object}, which {rule} lets take no way that there is"))
            }
            Plan::Withheld(holder) => {
                let said = self.state.objects.get(&object).and_then(|known| known.withheld.get(&holder));
                let said = said.map_or("", |said| said);
                Some(format!("it reads {object}, which {} does not give: {said}", self.state.site_name(holder)))
            }
            Plan::Present
            | Plan::InBucket
            | Plan::DirectFrom(_)
            | Plan::PushFrom(_)
            | Plan::Wait
            | Plan::Unavailable => None,
        }
    }

    /// A [`Self::veto`] that stays while the rules do, and a copy is left.
    pub(crate) fn lasting_veto(&self, object: ObjectId, site: SiteId) -> Option<String> {
        let known = self.state.objects.get(&object)?;
        let left = known.sites.iter().any(|holder| self.reach(*holder) != Reach::Gone);
        let lasts = matches!(self.plan_object(object, site), Plan::Forbidden(_) | Plan::Withheld(_));
        if left && lasts { self.veto(object, site) } else { None }
    }

    pub(crate) fn rule_name(&self, (run, rule): Cited) -> String {
        self.state.runs.get(&run).map_or_else(|| "a rule".to_owned(), |run| run.plan.rules.name(rule))
    }

    /// Why an object may not be published outside of all sites, if that is what the step does with it.
    pub(crate) fn publishing_veto(&self, step: &Step, object: ObjectId) -> Option<String> {
        let url = step.published_url()?;
        let rule = self.confining(self.state.objects.get(&object)?)?;
        Some(format!("it publishes {object} at {url}, and {} confines that", self.rule_name(rule)))
    }

    /// Why the rules keep a step from running at a site, whatever it reads in fact.
    pub(crate) fn rule_obstacle(&self, plan: &RunPlan, step: &Step, candidate: &Candidate<'_>) -> Option<String> {
        let planned = &plan.steps[step.index.index()];
        if let (Some(url), Some(rule)) = (step.published_url(), planned.confined_by.first()) {
            return Some(format!("{} confines what is to be published at {url}", plan.rules.name(*rule)));
        }
        let outputs = planned.outputs.iter().map(|output| &output.confined_by);
        std::iter::once(&planned.confined_by).chain(outputs).find_map(|confined_by| {
            let location = Location { name: candidate.name, labels: candidate.labels };
            let rule = plan.rules.keeping_away(confined_by, location)?;
            Some(format!("{} confines its data to other sites", plan.rules.name(rule)))
        })
    }

    /// Why no site will ever run the step, as `definition` has it, while the rules are as they are. A site that is only away,
    /// or copies that are gone, are no such reason.
    pub(crate) fn nowhere(&self, run: &Run, definition: &Step, objects: &[ObjectRef]) -> Option<Nowhere> {
        let wanted = self.requirement(run, definition);
        let mut reasons = Vec::new();
        let mut by_rule = false;
        for candidate in self.candidates() {
            let own = placement::permanent_obstacle(&candidate, &wanted)
                .or_else(|| self.state.site(candidate.site).revoked.as_ref().map(|_| "it is revoked".to_owned()));
            let vetoed = || {
                let forbidden = self.rule_obstacle(&run.plan, definition, &candidate);
                let refused = || self.state.refusal(run.id, definition.index, candidate.site).map(ToString::to_string);
                let forbidden = forbidden.or_else(refused);
                let veto = |object: &ObjectRef| {
                    let publishing = self.publishing_veto(definition, object.id);
                    publishing.or_else(|| self.lasting_veto(object.id, candidate.site))
                };
                forbidden.or_else(|| objects.iter().find_map(veto))
            };
            match own.map(|reason| (reason, false)).or_else(|| vetoed().map(|reason| (reason, true))) {
                Some((reason, is_rule)) => {
                    by_rule |= is_rule;
                    reasons.push(format!("{}: {reason}", candidate.name));
                }
                None => return None,
            }
        }
        Some(Nowhere { by_rule, reason: format!("no site can run it: {}", reasons.join("; ")) })
    }
}
