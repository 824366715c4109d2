//! What a site lets go of to make room, and that nobody ever misses it.

use atoll_model::id::{CommandSeq, ObjectId};
use atoll_model::value::ObjectRef;
use site_agent_core::Event;

use crate::faults::Victim;
use crate::site::Standing;
use crate::world::{Occurrence, Process, World};

/// What each object counts for.
const BYTES: u64 = 1_000;

impl World {
    /// Proposes what nothing at the site holds, or some of it.
    pub(crate) fn find_evictable(&mut self, site: usize, only: Option<Vec<ObjectRef>>) {
        let machine = &self.sites[site].machine;
        let wanted = |id: &ObjectId| only.as_ref().is_none_or(|only| only.iter().any(|object| object.id == *id));
        let idle: Vec<ObjectRef> = machine
            .store
            .iter()
            .filter(|(id, stored)| !stored.damaged && wanted(id) && !machine.is_held(**id))
            .map(|(id, stored)| ObjectRef { id: *id, kind: stored.kind, bytes: BYTES })
            .collect();
        let objects: Vec<ObjectRef> = idle.into_iter().filter(|_| self.rng.chance(600)).collect();
        self.sites[site].machine.watched = objects.iter().map(|object| object.id).collect();
        let delay = self.rng.spread(50, 500_000);
        self.tell_site(site, delay, Event::EvictableFound { objects });
    }

    /// Lets go of one after the other; the agent may be killed between any two.
    pub(crate) fn evict(&mut self, site: usize, order: CommandSeq, objects: Vec<ObjectRef>) {
        let process = self.sites[site].process;
        let delay = self.rng.spread(50, 1_000_000);
        self.after(delay, Occurrence::Evicts { site, process, order, objects, done: 0 });
    }

    pub(crate) fn evict_next(
        &mut self,
        site: usize,
        process: Process,
        (order, objects): (CommandSeq, Vec<ObjectRef>),
        done: usize,
    ) {
        if self.sites[site].process != process {
            return;
        }
        let Some(object) = objects.get(done).copied() else {
            let store = &self.sites[site].machine.store;
            let (kept, gone) = objects.into_iter().partition(|object| store.contains_key(&object.id));
            let delay = self.rng.spread(50, 1_000_000);
            return self.tell_site(site, delay, Event::Evicted { order, gone, kept });
        };
        let machine = &mut self.sites[site].machine;
        if machine.watched.remove(&object.id)
            && !machine.is_held(object.id)
            && machine.store.remove(&object.id).is_some()
        {
            self.history.evictions += 1;
            self.assert_not_missed(site, object.id);
        }
        if !self.crash_point(Victim::Site(site)) {
            let delay = self.rng.spread(10, 100_000);
            self.after(delay, Occurrence::Evicts { site, process, order, objects, done: done + 1 });
        }
    }

    pub(crate) fn verify(&mut self, site: usize, order: CommandSeq, objects: Vec<ObjectRef>) {
        let ids: Vec<ObjectId> = match objects.as_slice() {
            [] => self.sites[site].machine.store.keys().copied().collect(),
            objects => objects.iter().map(|object| object.id).collect(),
        };
        let (files, mut damaged) = (ids.len() as u64, 0);
        for id in ids {
            let known = self.sites[site].machine.store.contains_key(&id);
            damaged += u64::from(known && !self.verified(site, id));
        }
        let delay = self.rng.spread(50, 2_000_000);
        self.tell_site(site, delay, Event::Verified { order, files, bytes: files * BYTES, damaged });
    }

    /// A site has let go of its copy: no needed object is ever without one. What was taken away for good by something else
    /// is not its fault.
    fn assert_not_missed(&self, site: usize, object: ObjectId) {
        let history = &self.history;
        let is_set_back = history.restored > 0;
        // A site that was cut off may hear late that its copy is not counted on any more.
        let was_let_go = history.let_go.contains(&(self.sites[site].name.clone(), object));
        let is_pinned = history.pinned.contains(&object) && !was_let_go;
        assert!(is_set_back || !is_pinned, "s{site} lets go of {object}, which a rule pins");
        let taken_away = history.damages > 0
            || !history.revoked.is_empty()
            || self.sites.iter().any(|site| site.is_dead || site.standing != Standing::Trusted);
        let elsewhere = self.sites.iter().any(|site| site.machine.store.contains_key(&object));
        // What a control plane allowed that was set back since, is done all the same.
        if is_set_back || taken_away || elsewhere || self.bucket.keys().any(|(copy, _)| *copy == object) {
            return;
        }
        assert!(!history.held.contains(&object), "s{site} lets go of {object}, which a rule holds");
        let Some(needed) = self.leading_core().and_then(|core| core.object(object)).and_then(|view| view.needed) else {
            return;
        };
        if needed.contains("(rule ") {
            // It may have been let go before the rule came: those that were always there are looked at above.
            return;
        }
        panic!("s{site} lets go of the last copy of {object}: {needed}");
    }
}
