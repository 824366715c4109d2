//! Copies at sites: which may go to make room, which stay because a person says so. A copy that may go does not count from
//! that moment on, so no two sites let go of the last two.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use atoll_model::id::{ObjectId, SiteId, SiteName, StepIndex};
use atoll_model::value::ObjectRef;
use atoll_model::workflow::StartMode;
use storage_sync_core::{CopyNeeds, Reach, Stays, may_evict};

use super::bucket::unfinished_readers;
use crate::command::{Rejection, Response};
use crate::control_plane::ControlPlane;
use crate::event::PinPlace;
use crate::fact::{Fact, PinnedAt};
use crate::state::{BucketState, ObjectState, Run, Source, Use};

/// Why a copy must be somewhere.
#[derive(Debug)]
pub(crate) struct Need {
    pub(crate) why: String,
    /// Also when all steps that read it have ended.
    pub(crate) lasts: bool,
}

impl ControlPlane {
    /// A site asks which of these may go; each proposal is answered, if only with why nothing may.
    pub(crate) fn eviction_proposed(&mut self, site: SiteId, proposal: u64, objects: &[ObjectRef]) {
        let shown = self.shown_objects(objects);
        let (mut granted, mut refused, mut reason) = (Vec::new(), 0, None);
        for object in objects {
            match self.why_it_stays(site, object.id, &shown) {
                None => granted.push(*object),
                Some(why) => {
                    refused += 1;
                    reason.get_or_insert_with(|| Arc::from(format!("{}: {why}", object.id)));
                }
            }
        }
        self.agenda.to_copy.extend(granted.iter().map(|object| object.id));
        let is_over = granted.is_empty();
        self.record(Fact::EvictionGranted { site, proposal, objects: granted, refused, reason });
        self.agenda.touched.insert(site);
        if is_over {
            self.has_answered_for_expired(site);
        }
    }

    pub(crate) fn evicted(&mut self, site: SiteId, gone: &[ObjectRef], kept: &[ObjectRef]) {
        let names = |objects: &[ObjectRef]| objects.iter().map(|object| object.id).collect::<Vec<_>>();
        let (gone, kept) = (names(gone), names(kept));
        let known = kept.iter().filter(|id| self.state.objects.contains_key(id)).copied();
        let known: Vec<ObjectId> = known.collect();
        self.look_at_left(gone.iter().chain(&kept));
        self.record(Fact::EvictionEnded { site, gone, kept });
        self.has_answered_for_expired(site);
        if !known.is_empty() {
            self.agenda.replan.extend(known);
            self.wake_data();
        }
    }

    /// Why the site must keep its copy, if it must.
    pub(super) fn why_it_stays(
        &self,
        site: SiteId,
        object: ObjectId,
        shown: &BTreeMap<ObjectId, String>,
    ) -> Option<String> {
        if self.state.catching_up.contains(&site) {
            // B6: what was proposed and answered since the backup is heard again. The copies may have gone by that answer,
            // and an agent that holds a second one for that of an earlier process keeps all it names.
            return Some("the control plane was restored, and has not heard all from the site yet".to_owned());
        }
        let known = self.state.objects.get(&object);
        let used = known.and_then(|known| self.use_at(site, known));
        let kept = self.kept_there(site, object).or_else(|| known.and_then(|known| self.held_there(site, known)));
        let kept = kept.or_else(|| known.and_then(|known| self.is_one_of_copies(site, known)));
        let shown = || shown.get(&object).map(|why| Need { why: why.clone(), lasts: true });
        let needed = match known.and_then(|known| self.need_of(known)) {
            Some(need) if need.lasts => Some(need),
            passing => shown().or(passing),
        };
        let others = known.map_or(0, |known| self.other_copies(site, known, needed.as_ref()));
        let needs = CopyNeeds { in_use: used.is_some(), kept_there: kept.is_some(), needed: needed.is_some(), others };
        match may_evict(needs) {
            Ok(()) => None,
            Err(Stays::InUse) => used,
            Err(Stays::KeptThere) => kept,
            Err(Stays::LastCopy) => needed.map(|need| format!("it is the last copy, and {}", need.why)),
        }
    }

    fn use_at(&self, site: SiteId, known: &ObjectState) -> Option<String> {
        let transfer = known.transfer.and_then(|transfer| self.state.transfers.get(&transfer));
        if transfer.is_some_and(|transfer| transfer.site == site) {
            return Some("it is being pushed from there".to_owned());
        }
        if let Some(execution) = self.reader_at(site, known.reference.id) {
            return Some(format!("{execution} reads it there"));
        }
        // Which elements of a delegated step there are, its agent may know before anybody else.
        known.uses.iter().find_map(|usage| {
            let run = self.state.runs.get(&usage.run).filter(|run| run.is_live())?;
            let reads = |step: &StepIndex| run.plan.steps[step.index()].reads.contains(&usage.source);
            let mut delegated = self.state.delegated_steps(usage.run).filter(|(_, delegated)| delegated.site == site);
            let (step, _) = delegated.find(|(step, _)| reads(step) && !run.steps[step.index()].is_ended())?;
            Some(format!(
                "step {} of {}, which was given to the site, is to read it",
                run.workflow.step(step).name,
                run.id
            ))
        })
    }

    fn kept_there(&self, site: SiteId, object: ObjectId) -> Option<String> {
        self.pinned_by(object, PinnedAt::Site(site)).map(|by| format!("{by} has pinned it there"))
    }

    /// Who needs a copy of the object, wherever it is.
    pub(crate) fn need_of(&self, known: &ObjectState) -> Option<Need> {
        if let Some(by) = self.pinned_by(known.reference.id, PinnedAt::Anywhere) {
            return Some(Need { why: format!("{by} has pinned it"), lasts: true });
        }
        if let Some(why) = self.held_anywhere(known) {
            return Some(Need { why, lasts: true });
        }
        let of_run = |usage: &Use| self.state.runs.get(&usage.run).filter(|run| run.is_live());
        let given_out = known.uses.iter().find_map(|usage| of_run(usage).filter(|run| is_given_out(run, usage)));
        if let Some(run) = given_out {
            return Some(Need { why: format!("it is an output of {}, which has not ended", run.id), lasts: true });
        }
        // What was made of it may be lost with its site, and be made again only as long as this is there.
        let once = known.uses.iter().find_map(|usage| of_run(usage).filter(|run| is_made_once(run, usage)));
        if let Some(run) = once {
            return Some(Need { why: format!("it cannot be made again, and {} has not ended", run.id), lasts: true });
        }
        if self.agenda.clients.contains_key(&known.reference.id) {
            return Some(Need { why: "somebody waits for it".to_owned(), lasts: false });
        }
        let is_read = |run: &Run, usage: &Use| unfinished_readers(run, usage.source) > 0;
        let reader = known.uses.iter().find_map(|usage| of_run(usage).filter(|run| is_read(run, usage)));
        reader.map(|run| Need { why: format!("steps of {} are to read it", run.id), lasts: false })
    }

    /// Copies elsewhere that can be had, for somebody who needs one. One in the bucket goes with its readers, unless it is
    /// pinned there; and once a backup was restored (B6), it may have gone there since without a trace.
    fn other_copies(&self, site: SiteId, known: &ObjectState, need: Option<&Need>) -> u32 {
        let stays = |other: &&SiteId| {
            **other != site
                && self.reach(**other) == Reach::Connected
                && !self.state.catching_up.contains(*other)
                && !known.withheld.contains_key(*other)
        };
        let of_sites = u32::try_from(known.sites.iter().filter(stays).count()).unwrap_or(u32::MAX);
        let is_pinned = self.is_pinned_at(known.reference.id, PinnedAt::Bucket);
        let lasts = need.is_none_or(|need| need.lasts) && !is_pinned;
        let is_in_bucket = known.bucket == BucketState::Present && self.state.set_backs.is_empty();
        of_sites + u32::from(is_in_bucket && !lasts)
    }

    /// Those of the objects that people may still ask for: outputs and logs of runs that are not forgotten, each with what
    /// it is. What the rules of a run let go it shows no more.
    pub(super) fn shown_objects(&self, objects: &[ObjectRef]) -> BTreeMap<ObjectId, String> {
        let wanted: BTreeSet<ObjectId> = objects.iter().map(|object| object.id).collect();
        let mut shown = BTreeMap::new();
        for run in self.state.runs.values() {
            for value in run.outputs.values() {
                value.visit_objects(&mut |object| {
                    if wanted.contains(&object.id) && !self.is_let_go_by(run, object.id) {
                        shown.entry(object.id).or_insert_with(|| format!("it is an output of {}", run.id));
                    }
                });
            }
            for detail in run.steps.iter().flat_map(|step| step.details.values()) {
                for log in [detail.logs.stdout, detail.logs.stderr].into_iter().flatten() {
                    if wanted.contains(&log.id) {
                        shown.entry(log.id).or_insert_with(|| format!("it is a log of {}", run.id));
                    }
                }
            }
        }
        shown
    }

    pub(crate) fn is_pinned_at(&self, object: ObjectId, at: PinnedAt) -> bool {
        self.state.pins.get(&object).is_some_and(|pins| pins.contains_key(&at))
    }

    pub(crate) fn pinned_by(&self, object: ObjectId, at: PinnedAt) -> Option<&str> {
        Some(&self.state.pins.get(&object)?.get(&at)?.by)
    }

    /// A copy stays there from now on; where there is none yet, one is brought.
    pub(crate) fn pin_object(&mut self, object: ObjectId, at: &PinPlace, by: &str) -> Result<Response, Rejection> {
        let place = self.pin_place(at)?;
        let known = self.known_object(object)?;
        let is_there = match place {
            PinnedAt::Anywhere => !known.sites.is_empty() || known.bucket == BucketState::Present,
            PinnedAt::Bucket => known.bucket == BucketState::Present,
            PinnedAt::Site(site) => known.is_at(site),
        };
        if !is_there {
            self.can_come_to(place, known)?;
        }
        if !self.is_pinned_at(object, place) {
            let (by, since) = (Arc::from(by), self.now);
            self.record(Fact::ObjectPinned { object, at: place, by, since });
            self.agenda.to_copy.insert(object);
        }
        Ok(Response::Done)
    }

    pub(crate) fn unpin_object(&mut self, object: ObjectId, at: &PinPlace) -> Result<Response, Rejection> {
        let place = self.pin_place(at)?;
        if !self.is_pinned_at(object, place) {
            return Err(Rejection::NotFound(format!("{object} is not pinned there")));
        }
        self.record(Fact::ObjectUnpinned { object, at: place });
        self.agenda.sweep.insert(object);
        self.agenda.to_expire.insert(object);
        Ok(Response::Done)
    }

    pub(crate) fn evict_object(&mut self, object: ObjectId, site: Option<&SiteName>) -> Result<Response, Rejection> {
        let known = self.known_object(object)?;
        let reference = known.reference;
        let Some(name) = site else {
            if known.bucket != BucketState::Present {
                return Err(Rejection::NotFound(format!("{object} is not in the bucket")));
            }
            if self.is_needed_in_bucket(known) {
                return Err(Rejection::Conflict(format!("{object} is needed in the bucket")));
            }
            self.agenda.sweep.insert(object);
            return Ok(Response::Done);
        };
        let site = self.site_named(name)?;
        if !known.is_at(site) {
            return Err(Rejection::NotFound(format!("{object} is not at {name}")));
        }
        let shown = self.shown_objects(&[reference]);
        if let Some(why) = self.why_it_stays(site, object, &shown) {
            return Err(Rejection::Conflict(format!("{object} stays at {name}: {why}")));
        }
        self.record(Fact::EvictionAsked { site, object: reference });
        self.agenda.touched.insert(site);
        Ok(Response::Done)
    }

    pub(crate) fn verify_site(&mut self, name: &SiteName, objects: &[ObjectId]) -> Result<Response, Rejection> {
        let site = self.site_named(name)?;
        let references = objects.iter().map(|object| Ok(self.known_object(*object)?.reference));
        let objects: Vec<ObjectRef> = references.collect::<Result<_, Rejection>>()?;
        self.record(Fact::VerificationAsked { site, objects, at: self.now });
        self.agenda.touched.insert(site);
        Ok(Response::Done)
    }

    pub(super) fn known_object(&self, object: ObjectId) -> Result<&ObjectState, Rejection> {
        self.state.objects.get(&object).ok_or_else(|| Rejection::NotFound(format!("there is no object {object}")))
    }

    fn pin_place(&self, at: &PinPlace) -> Result<PinnedAt, Rejection> {
        Ok(match at {
            PinPlace::Anywhere => PinnedAt::Anywhere,
            PinPlace::Bucket => PinnedAt::Bucket,
            PinPlace::Site(name) => PinnedAt::Site(self.site_named(name)?),
        })
    }
}

/// Whether it was made by a step that never starts twice.
fn is_made_once(run: &Run, usage: &Use) -> bool {
    matches!(usage.source, Source::Step(step) if run.workflow.step(step).start == StartMode::AtMostOnce)
}

/// Whether it may come to be among the outputs of its run.
fn is_given_out(run: &Run, usage: &Use) -> bool {
    run.workflow.outputs.values().any(|output| match usage.source {
        Source::Step(step) => {
            let imported = |name: &String| run.workflow.inputs.get(name).and_then(|input| input.imported_by);
            output.reads_steps.contains(&step) || output.reads_inputs.iter().any(|name| imported(name) == Some(step))
        }
        Source::Input(place) => {
            let name = run.workflow.inputs.get_index(usize::from(place)).map(|(name, _)| name);
            name.is_some_and(|name| output.reads_inputs.contains(name))
        }
        Source::Bundle(_) => false,
    })
}
