//! Objects, where they are, the transfers that move them, and the record of every crossing.

use std::collections::BTreeMap;
use std::sync::Arc;

use atoll_model::id::{ExecutionId, ObjectId, RunId, SiteId, SiteName, StepIndex, TransferId};
use atoll_model::time::Timestamp;
use atoll_model::value::ObjectRef;
use serde::{Deserialize, Serialize};

use crate::fact::RuleText;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ObjectState {
    pub(crate) reference: ObjectRef,
    /// Sites that have it, ascending.
    pub(crate) sites: Vec<SiteId>,
    pub(crate) bucket: BucketState,
    /// What it is in the runs that know it, ascending.
    pub(crate) uses: Vec<Use>,
    /// Files of a listed directory: whoever has the directory has them.
    pub(crate) parts: Vec<ObjectId>,
    /// A listed directory that was sent in and holds this file: in the bucket, it can be taken out of that.
    pub(crate) within: Option<ObjectId>,
    /// The first execution that made it.
    pub(crate) producer: Option<ExecutionId>,
    pub(crate) transfer: Option<TransferId>,
    /// A person wants it in the bucket until then.
    pub(crate) hold_until: Option<Timestamp>,
    /// A person has sent it in, and no run has taken it.
    pub(crate) upload_until: Option<Timestamp>,
    /// Pushes that were refused since one succeeded.
    pub(crate) push_trouble: Option<PushTrouble>,
    /// One that came to nothing as far as is known; the bucket is still to be looked into.
    pub(crate) doubtful: Option<DoubtfulPush>,
    /// Sites whose own policy does not let it leave, and what they said.
    pub(crate) withheld: BTreeMap<SiteId, Arc<str>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DoubtfulPush {
    pub(crate) transfer: TransferId,
    pub(crate) ended: Transfer,
    /// The site may be removed before the answer comes.
    pub(crate) from: SiteName,
    pub(crate) since: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PushTrouble {
    pub(crate) times: u32,
    /// The last one.
    pub(crate) at: Timestamp,
    pub(crate) message: Arc<str>,
}

impl ObjectState {
    pub(crate) fn new(reference: ObjectRef) -> Self {
        Self {
            reference,
            sites: Vec::new(),
            bucket: BucketState::Absent,
            uses: Vec::new(),
            parts: Vec::new(),
            within: None,
            producer: None,
            transfer: None,
            hold_until: None,
            upload_until: None,
            push_trouble: None,
            doubtful: None,
            withheld: BTreeMap::new(),
        }
    }

    pub(crate) fn is_at(&self, site: SiteId) -> bool {
        self.sites.binary_search(&site).is_ok()
    }

    pub(crate) fn add_site(&mut self, site: SiteId) {
        if let Err(place) = self.sites.binary_search(&site) {
            self.sites.insert(place, site);
        }
    }

    pub(crate) fn remove_site(&mut self, site: SiteId) {
        if let Ok(place) = self.sites.binary_search(&site) {
            self.sites.remove(place);
        }
    }

    pub(crate) fn add_use(&mut self, usage: Use) {
        if let Err(place) = self.uses.binary_search(&usage) {
            self.uses.insert(place, usage);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum BucketState {
    Absent,
    Present,
    /// Its deletion was asked for and is not confirmed: a push now could be deleted with it.
    Deleting,
}

/// What an object is in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Use {
    pub(crate) run: RunId,
    pub(crate) source: Source,
    /// Which output of the step.
    pub(crate) output: u16,
}

/// Where the objects that a step reads come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Source {
    Step(StepIndex),
    /// By its place among the workflow's inputs.
    Input(u16),
    /// The bundle of a step's action.
    Bundle(StepIndex),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Transfer {
    pub(crate) object: ObjectRef,
    pub(crate) site: SiteId,
    pub(crate) run: Option<RunId>,
    pub(crate) for_execution: Option<ExecutionId>,
    pub(crate) rule: RuleText,
    pub(crate) ordered_at: Timestamp,
    pub(crate) cancelled: bool,
}

/// One end of a crossing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Place {
    Site(atoll_model::id::SiteName),
    Bucket,
    Client,
}

impl std::fmt::Display for Place {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Site(name) => std::fmt::Display::fmt(name, formatter),
            Self::Bucket => formatter.write_str("bucket"),
            Self::Client => formatter.write_str("client"),
        }
    }
}

/// Bytes that crossed a border.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LedgerEntry {
    pub(crate) object: ObjectId,
    pub(crate) bytes: u64,
    pub(crate) from: Place,
    pub(crate) to: Place,
    pub(crate) for_execution: Option<ExecutionId>,
    pub(crate) rule: RuleText,
    pub(crate) at: Timestamp,
}
