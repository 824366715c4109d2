//! What the executor knows of each attempt, from its start to its release.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use atoll_model::session::StepTemplate;
use atoll_model::time::Timestamp;
use site_agent_core::command::StartInput;
use site_agent_core::event::NodeId;
use storage_sync_engine::store::{Lent, Stored};
use tokio_util::sync::CancellationToken;

use super::live::{LogPlace, LogPlaces};
use super::slot::StepKey;
use crate::shim::protocol::{Common, End, Key, Left, LeftOutputs, Order};
use crate::shim::{STDERR, STDOUT};

#[derive(Debug)]
pub(super) struct Known {
    pub step: StepKey,
    /// Of what this process has started.
    pub template: Option<Arc<StepTemplate>>,
    /// The machine that it has room on.
    pub node: NodeId,
    /// Where it was handed to, or ended.
    pub place: Option<Place>,
    pub phase: Phase,
    pub lent: Option<Lent>,
    /// Whether its slot was told to end it.
    pub killed: bool,
    /// Bytes of what it reads.
    pub bytes_in: u64,
}

/// Where an attempt runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In a slot of this machine.
    Slot(u32),
    /// In a job of the site's batch system, whose slot is its own.
    Job,
}

#[derive(Debug)]
pub(super) enum Phase {
    /// Its inputs are being made ready.
    Staging {
        template: Arc<StepTemplate>,
        inputs: Vec<StartInput>,
        since: Timestamp,
        ahead: Option<u32>,
        killed: bool,
        /// Gives up what is being fetched or published, if it is.
        moving: Option<CancellationToken>,
    },
    /// A slot has it. The order is kept in case the slot's shim dies before it has claimed it.
    Handed {
        order: Option<(Arc<Common>, Order)>,
    },
    Ended {
        left: Left,
        /// How its process ended, if there was one.
        ran: Option<Box<End>>,
    },
    Imported {
        stored: Box<Stored>,
    },
}

#[derive(Debug)]
pub(super) struct Attempts {
    known: BTreeMap<Key, Known>,
    logs: LogPlaces,
}

impl Known {
    /// Whether it is on its way, or runs.
    pub(super) fn is_unfinished(&self) -> bool {
        matches!(self.phase, Phase::Staging { .. } | Phase::Handed { .. })
    }

    /// Whether what was sealed with this claim may be asked for again.
    pub(super) fn may_collect(&self, claim: &str) -> bool {
        let Phase::Ended { left, .. } = &self.phase else { return true };
        let is_log = claim.ends_with(&format!("/{STDOUT}")) || claim.ends_with(&format!("/{STDERR}"));
        left.outputs == LeftOutputs::Kept || (is_log && left.is_kept())
    }
}

impl Attempts {
    pub(super) fn new(logs: LogPlaces) -> Self {
        Self { known: BTreeMap::new(), logs }
    }

    pub(super) fn count(&self) -> usize {
        self.known.len()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.known.keys().copied()
    }

    pub(super) fn get(&self, key: Key) -> Option<&Known> {
        self.known.get(&key)
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut Known> {
        self.known.get_mut(&key)
    }

    pub(super) fn insert(&mut self, key: Key, known: Known) {
        self.known.insert(key, known);
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Known> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        self.known.remove(&key)
    }

    /// Its logs are in this folder.
    pub(super) fn log_at(&self, key: Key, folder: PathBuf, running: bool) {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner).insert(key, LogPlace { folder, running });
    }

    /// It was handed over by a process before this one.
    pub(super) fn adopt(&mut self, key: Key, place: Place) -> &mut Known {
        let step = (key.execution.run, key.execution.step);
        let known = self.known.entry(key).or_insert(Known {
            step,
            template: None,
            node: NodeId::HOME,
            place: None,
            phase: Phase::Handed { order: None },
            lent: None,
            killed: false,
            bytes_in: 0,
        });
        known.place = Some(place);
        known
    }

    /// It has ended; what it left is known.
    pub(super) fn end(&mut self, key: Key, place: Place, end: &End) {
        let known = self.adopt(key, place);
        known.phase = Phase::Ended { left: end.left.clone(), ran: Some(Box::new(end.clone())) };
    }
}
