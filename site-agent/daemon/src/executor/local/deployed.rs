//! How far the actions of this site are: made ready for executions, or ahead of them, and let go.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use atoll_model::id::ObjectId;
use atoll_model::limits::{DEPLOYED_REASON_CHARS_MAX, DEPLOYED_TOLD_MAX};
use atoll_model::session::{Deployed, DeployedState};
use atoll_model::time::Timestamp;
use tokio::sync::Notify;

use crate::clock::wall_clock;

/// Actions that are remembered. Beyond it those are forgotten whose state changed longest ago, and are told of again when it
/// changes.
const KNOWN_MAX: usize = 16 * DEPLOYED_TOLD_MAX;

/// The states of actions by their bundles, for whoever has a copy of this. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    known: Mutex<BTreeMap<ObjectId, (Timestamp, DeployedState)>>,
    changed: Notify,
}

impl Ledger {
    /// Those whose state changed last come first.
    pub(crate) fn told(&self) -> Vec<Deployed> {
        let known = self.known();
        let deployed = |(bundle, (since, state)): (&ObjectId, &(Timestamp, DeployedState))| Deployed {
            bundle: *bundle,
            state: state.clone(),
            since: *since,
        };
        let mut all: Vec<Deployed> = known.iter().map(deployed).collect();
        all.sort_by_key(|deployed| std::cmp::Reverse(deployed.since));
        all.truncate(DEPLOYED_TOLD_MAX);
        all
    }

    /// Waits until something has changed since this was last waited for.
    pub(crate) async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Somebody asks for the action: of one of which nothing is known yet, this is its beginning.
    pub(super) fn begin(&self, bundle: ObjectId) {
        self.change(bundle, |known| known.is_none().then_some(DeployedState::Deploying));
    }

    pub(super) fn deploying(&self, bundle: ObjectId) {
        self.change(bundle, |_| Some(DeployedState::Deploying));
    }

    pub(super) fn ready(&self, bundle: ObjectId) {
        self.change(bundle, |_| Some(DeployedState::Ready));
    }

    pub(super) fn failed(&self, bundle: ObjectId, why: &str) {
        let why: String = why.chars().take(DEPLOYED_REASON_CHARS_MAX).collect();
        self.change(bundle, |_| Some(DeployedState::Failed(why)));
    }

    pub(super) fn draining(&self, bundle: ObjectId) {
        self.change(bundle, |_| Some(DeployedState::Draining));
    }

    /// It has been let go, unless somebody asked for it meanwhile.
    pub(super) fn gone(&self, bundle: ObjectId) {
        if let Entry::Occupied(known) = self.known().entry(bundle)
            && known.get().1 == DeployedState::Draining
        {
            known.remove();
            self.0.changed.notify_one();
        }
    }

    /// What failed so long ago, and nobody needs, is not told of any more.
    pub(super) fn forget_failed(&self, needed: &BTreeSet<ObjectId>, idle: Duration) {
        let now = wall_clock();
        self.known().retain(|bundle, (since, state)| {
            let is_failed = matches!(state, DeployedState::Failed(_));
            !is_failed || needed.contains(bundle) || now.saturating_since(*since) < idle
        });
    }

    fn change(&self, bundle: ObjectId, state: impl FnOnce(Option<&DeployedState>) -> Option<DeployedState>) {
        let mut known = self.known();
        let before = known.get(&bundle).map(|(_, state)| state);
        let Some(state) = state(before).filter(|state| Some(state) != before) else { return };
        known.insert(bundle, (wall_clock(), state));
        if known.len() > KNOWN_MAX
            && let Some(oldest) = known.iter().min_by_key(|(_, (since, _))| *since).map(|(bundle, _)| *bundle)
        {
            known.remove(&oldest);
        }
        self.0.changed.notify_one();
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<ObjectId, (Timestamp, DeployedState)>> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(number: u8) -> ObjectId {
        ObjectId::from_digest([number; 32])
    }

    fn states(ledger: &Ledger) -> Vec<(ObjectId, DeployedState)> {
        ledger.told().into_iter().map(|deployed| (deployed.bundle, deployed.state)).collect()
    }

    #[test]
    fn a_state_is_told_since_it_came_and_goes_with_the_action() {
        let ledger = Ledger::default();
        ledger.begin(bundle(1));
        assert_eq!(states(&ledger), [(bundle(1), DeployedState::Deploying)]);
        ledger.ready(bundle(1));
        let since = ledger.told()[0].since;
        ledger.begin(bundle(1));
        ledger.ready(bundle(1));
        assert_eq!(ledger.told()[0].since, since, "nothing has changed");
        ledger.gone(bundle(1));
        assert_eq!(states(&ledger), [(bundle(1), DeployedState::Ready)], "it was asked for again");
        ledger.draining(bundle(1));
        assert_eq!(states(&ledger), [(bundle(1), DeployedState::Draining)]);
        ledger.gone(bundle(1));
        assert!(ledger.told().is_empty());
    }

    #[test]
    fn the_latest_are_told_and_no_more_than_a_heartbeat_carries() {
        let ledger = Ledger::default();
        for number in 0..=u8::MAX {
            ledger.ready(bundle(number));
        }
        ledger.failed(bundle(3), &"why ".repeat(DEPLOYED_REASON_CHARS_MAX));
        let told = ledger.told();
        assert_eq!(told.len(), DEPLOYED_TOLD_MAX);
        assert!(told.is_sorted_by_key(|deployed| std::cmp::Reverse(deployed.since)));
        let failed = told.iter().find(|deployed| deployed.bundle == bundle(3)).expect("it is the latest");
        let DeployedState::Failed(why) = &failed.state else { panic!("{failed:?}") };
        assert_eq!(why.chars().count(), DEPLOYED_REASON_CHARS_MAX);
        let is_told = || ledger.told().iter().any(|deployed| deployed.bundle == bundle(3));
        ledger.forget_failed(&BTreeSet::from([bundle(3)]), Duration::ZERO);
        ledger.forget_failed(&BTreeSet::new(), Duration::from_secs(3_600));
        assert!(is_told(), "it is needed, or has failed just now");
        ledger.forget_failed(&BTreeSet::new(), Duration::ZERO);
        assert!(!is_told());
    }

    #[tokio::test]
    async fn who_waits_for_a_change_hears_of_one_that_came_before() {
        let ledger = Ledger::default();
        ledger.begin(bundle(1));
        let heard = tokio::time::timeout(std::time::Duration::from_secs(10), ledger.changed()).await;
        assert!(heard.is_ok());
    }
}
