//! What an agent's core is told of itself when it starts, and the numbers it decides by.

use std::time::Duration;

use atoll_model::id::{AgentId, JournalId};
use atoll_model::policy::SitePolicy;
use atoll_model::resources::Capacity;
use atoll_model::time::Timestamp;

#[derive(Debug, Clone)]
pub struct Config {
    pub agent: AgentId,
    /// Minted by the shell; taken if the journal holds nothing yet.
    pub new_journal: JournalId,
    pub agent_version: String,
    pub runtimes: Vec<String>,
    /// The start of the machine that this process lives in.
    pub boot: Boot,
    /// What the site offers to work.
    pub capacity: Capacity,
    /// Once the outbox holds this much, nothing new is started; recording goes on (B5).
    pub outbox_bytes_max: u64,
    /// Once the store has less room than this, the site takes no new work (E1).
    pub disk_free_bytes_min: u64,
    /// Bytes of the file system that the store is on; 0 if that is not known, and then only the policy limits it.
    pub disk_bytes: u64,
    /// What the site's administrator lets the control plane have.
    pub policy: SitePolicy,
    /// Where the agent's own machine stands for a batch system: nodes that the shell can bring, for work that is short.
    pub pilots: Option<Pilots>,
}

/// Nodes that come when there is work for them, and go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pilots {
    /// Most of them.
    pub max: u32,
    /// What each offers.
    pub capacity: Capacity,
    /// What says that it runs no longer is for them.
    pub short: Duration,
}

/// A start of the machine. Leases outlive an agent's process within it, and never beyond: the clock that they run by
/// begins anew with each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boot {
    pub id: u128,
    /// When it was, by the clock that the core is given.
    pub at: Timestamp,
}

/// How long the session lease is taken to be until the control plane grants one.
pub(crate) const LEASE_BEFORE_FIRST_GRANT: Duration = atoll_model::limits::SESSION_LEASE;
/// Time between heartbeats until the control plane says otherwise.
pub(crate) const HEARTBEAT_BEFORE_FIRST_GRANT: Duration = atoll_model::limits::HEARTBEAT;
/// A session whose other end says nothing for this long is half-open: it is given up (C5).
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(45);
/// How long a start waits to be reported, so that an execution that ends within it is reported once, not twice.
pub(crate) const STARTED_DELAY: Duration = Duration::from_millis(250);
/// Reports on their way up to which a new one is sent at once; beyond it, reports gather until an acknowledgement comes,
/// so that batches grow with the load and a single report never waits.
pub(crate) const REPORTS_EAGER: u64 = 8;
/// How far a full outbox has to empty, in hundredths, before more work is asked for: far enough that it is not full again
/// at once.
pub(crate) const OUTBOX_EMPTIED_PERCENT: u64 = 75;
/// Elements and bytes of one report.
pub(crate) const REPORT_ELEMENTS_MAX: usize = 1_024;
pub(crate) const REPORT_BYTES_MAX: u64 = 64 << 10;
/// Predicted run time below which executions of a step are queued behind those that run.
pub(crate) const SHORT: Duration = Duration::from_millis(20);
/// How much predicted work may be queued behind a running execution, so that a slot is busy while a start is journaled.
pub(crate) const AHEAD: Duration = Duration::from_millis(250);
/// Most executions queued behind a running one.
pub(crate) const AHEAD_MAX: u32 = 1024;
/// How many smaller executions may pass one that waits for room, before room is kept for it.
pub(crate) const BYPASS_MAX: u32 = 64;
/// Steps without room that one pass looks at, so that a pass takes bounded time.
pub(crate) const BACKFILL_SCAN: usize = 32;
/// Failed tries of a fetch while the control plane can be reached, after which the input counts as unavailable: with
/// back-off about two minutes.
pub(crate) const FETCH_ATTEMPTS_MAX: u32 = 9;
pub(crate) const FETCH_BACKOFF: Duration = Duration::from_millis(500);
pub(crate) const FETCH_BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Objects known to be in the store; beyond it they are forgotten, which costs a look each.
pub(crate) const PRESENT_MAX: usize = 100_000;
/// Elements of a delegated step with inputs of their own that are put into the queue together, and how few of them are left
/// in it when the next ones are: deep enough that no slot is idle, shallow enough that a fan-out of a million stays a range.
pub(crate) const FEED: u32 = 1_024;
pub(crate) const FEED_LOW: usize = 512;
