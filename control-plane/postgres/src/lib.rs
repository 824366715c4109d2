//! The control plane's journal on PostgreSQL, for more than one server: one of them leads, the others follow it.
//!
//! A server opens a [`Standby`] and polls it: what the leader has made durable comes batch by batch. [`Standby::try_lead`]
//! succeeds when nobody's lease is valid any more, and yields a [`PostgresJournal`] that writes under a new epoch.
//!
//! Invariants:
//! - every append and every checkpoint is one statement that holds the leader's row locked and writes nothing unless the
//!   row says the writer's epoch: a leader that was superseded is refused by the database itself;
//! - what is written into the history or removed from it stands only if that row says the same epoch when it is
//!   committed: a [`Fence`] carries the epoch from the standby that took the lead to the history;
//! - whoever becomes leader has changed that row, so whatever its predecessor made durable is visible to it;
//! - what a barrier has covered is committed, with `synchronous_commit`, and found again whole and in order;
//! - a damaged or missing batch is a fault that names its place, never skipped;
//! - a lease is over for its holder before it is over for the others.
//!
//! What it does not: it knows nothing of what the bytes mean, and makes neither the database nor its backups.

mod address;
mod error;
mod fence;
mod history;
mod inspection;
mod journal;
mod lease;
mod schema;
mod session;
mod standby;
mod tls;

pub use address::{Address, InvalidAddress};
pub use error::{OpenError, StoreError};
pub use fence::Fence;
pub use history::{Ended as EndedRun, History, Listed, Query};
pub use inspection::{Inspection, inspect};
pub use journal::PostgresJournal;
pub use lease::{Ended, LEASE};
pub use schema::{SCHEMA_VERSION, drop_schema};
pub use standby::{Contents, Leader, Member, News, Standby, Taken};
