//! What became of the copies that somebody wants, for people.

use atoll_model::id::SiteId;
use atoll_model::time::Timestamp;

use super::replicas::{Replication, copies, maker};
use crate::control_plane::ControlPlane;
use crate::state::{ObjectState, Run};
use crate::view::{WantedCopiesView, WantedState};

impl ControlPlane {
    /// What is wanted of copies.
    pub(crate) fn copies_view(&self, known: &ObjectState) -> Vec<String> {
        let in_bucket = self.owed_to_bucket(known).map(|owed| {
            let rest = match (known.transfer, &known.push_trouble) {
                (Some(_), _) => "on its way there".to_owned(),
                (None, Some(trouble)) => format!("refused {} times, tried again: {}", trouble.times, trouble.message),
                (None, None) => "waits for a site that has it".to_owned(),
            };
            format!("{} wants it in the bucket: {rest}", owed.name())
        });
        let by_rules = self.wanted_copies_view(known).into_iter().map(|wanted| {
            let rest = wanted.reason.map_or_else(String::new, |reason| format!(", {reason}"));
            let late = wanted.due.filter(|_| wanted.state == WantedState::Violated);
            let late = late.map_or_else(String::new, |due| format!("; VIOLATED: due at {due}"));
            format!("{} wants {}: {} there{rest}{late}", wanted.rule, copies(wanted.copies), wanted.there)
        });
        let pinned = self.pinned_and_lacking(known).map(|(site, by)| {
            let is_coming = self.state.copying(known.reference.id).any(|coming| coming == site);
            let rest = match (is_coming, self.site_closed(site), self.way_of_copy(known, site)) {
                (true, ..) => "on its way there".to_owned(),
                (false, Some(closed), _) => format!("waits for the site: {closed}"),
                (false, None, Some(_)) => "waits for the bucket".to_owned(),
                (false, None, None) => "it cannot come there now".to_owned(),
            };
            format!("{by} wants it at {}: {rest}{}", self.state.site_name(site), self.copy_failure(known))
        });
        in_bucket.into_iter().chain(by_rules).chain(pinned).collect()
    }

    /// What each rule wants of copies at several sites, as a state.
    pub(crate) fn wanted_copies_view(&self, known: &ObjectState) -> Vec<WantedCopiesView> {
        self.replications(known).map(|replication| self.wanted_view(known, &replication)).collect()
    }

    fn wanted_view(&self, known: &ObjectState, replication: &Replication<'_>) -> WantedCopiesView {
        let there = self.there_for(known, replication);
        let (since, due) = if replication.is_content(there) { (None, None) } else { self.due(known, replication) };
        let coming: Vec<String> =
            self.state.copying(known.reference.id).map(|site: SiteId| self.state.site_name(site)).collect();
        let (state, rest) = match (replication.is_content(there), coming.is_empty()) {
            (true, _) => (WantedState::Ok, None),
            (false, false) => (WantedState::InProgress, Some(format!("on its way to {}", coming.join(", ")))),
            (false, true) if self.next_copy(known).is_some() => {
                (WantedState::InProgress, Some("waits for the bucket".to_owned()))
            }
            (false, true) => (WantedState::Stuck, Some("no other site can take one now".to_owned())),
        };
        let is_late = due.is_some_and(|due| due <= self.now);
        WantedCopiesView {
            rule: replication.name(),
            copies: replication.wanted.copies,
            there: u32::try_from(there).unwrap_or(u32::MAX),
            state: if is_late { WantedState::Violated } else { state },
            reason: rest.map(|rest| rest + &self.copy_failure(known)),
            since,
            due,
        }
    }

    fn there_for(&self, known: &ObjectState, replication: &Replication<'_>) -> usize {
        self.differing_among(&replication.wanted, known.sites.iter().copied()).len()
    }

    /// Since when its copies are wanted, and when they have to be there.
    fn due(&self, known: &ObjectState, replication: &Replication<'_>) -> (Option<Timestamp>, Option<Timestamp>) {
        let since = self.made_when(replication.run, known);
        (since, since.and_then(|since| Some(since + replication.wanted.within?)))
    }

    /// When the object came to be in the run.
    fn made_when(&self, run: &Run, known: &ObjectState) -> Option<Timestamp> {
        let of_run = known.producer.filter(|producer| producer.run == run.id);
        let uses = || known.uses.iter().filter(|usage| usage.run == run.id);
        // Another run made the same before.
        let made = of_run.or_else(|| uses().find_map(|usage| maker(run, *usage, known)))?;
        Some(run.steps.get(made.step.index())?.row(made.element)?.finished_at)
    }

    /// Objects that lack copies which rules want, and those of them of which the copies are late.
    pub(crate) fn count_lacking(&self) -> (u64, u64) {
        let known = self.agenda.lacking.objects().filter_map(|object| self.state.objects.get(object));
        known.fold((0, 0), |(lacking, late), known| {
            let lacks = |replication: &Replication<'_>| !replication.is_content(self.there_for(known, replication));
            let due: Vec<_> =
                self.replications(known).filter(lacks).map(|replication| self.due(known, &replication).1).collect();
            let is_late = due.iter().flatten().any(|due| *due <= self.now);
            (lacking + u64::from(!due.is_empty()), late + u64::from(is_late))
        })
    }

    /// Why the last copy could not be made, as more text.
    fn copy_failure(&self, known: &ObjectState) -> String {
        let failed = self.agenda.copy_failures.get(&known.reference.id);
        failed.map_or_else(String::new, |(site, message)| {
            format!("; {} could not: {message}", self.state.site_name(*site))
        })
    }
}
