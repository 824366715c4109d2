//! What decides which bytes go where: how the rules of a workflow bear on an object, how an object reaches a place where
//! it is needed, and what the bucket may drop. Pure functions from what is desired and what is known to a plan; carrying
//! out a plan leaves nothing to choose.
//!
//! No clock, no I/O, no state: whoever calls remembers.
//!
//! Invariants:
//! - an object that any rule confines is never planned to go through the bucket;
//! - an object is never pushed while its deletion from the bucket is not confirmed, nor twice at a time;
//! - the bucket keeps what an unfinished step reads, a person waits for, or a rule keeps there.

mod plan;
pub mod policy;
mod retention;
mod rules;

pub use plan::{Holder, InBucket, Knowledge, Plan, Reach, plan};
pub use retention::{Needs, Retention, retain};
pub use rules::{PushRule, Subject, confining, forbidden_by, is_confined, push_rule};
