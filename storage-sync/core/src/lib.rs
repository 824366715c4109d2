//! What decides which bytes go where: how rules bear on an object, how an object reaches a place where
//! it is needed, and what the bucket may drop. Pure functions from what is desired and what is known to a plan; carrying
//! out a plan leaves nothing to choose.
//!
//! No clock, no I/O, no state: whoever calls remembers.
//!
//! Invariants:
//! - an object is never planned to go where a rule is against it, nor a way that one closes;
//! - an object is never pushed while its deletion from the bucket is not confirmed, nor twice at a time;
//! - the bucket keeps what an unfinished step reads, a person waits for, or a rule keeps there;
//! - no site lets go of the last copy of what somebody needs, nor of what is used or kept there.

mod plan;
pub mod policy;
mod retention;

pub use plan::{Holder, InBucket, Knowledge, Plan, Reach, Vetoes, plan};
pub use retention::{CopyNeeds, Needs, Retention, Stays, may_evict, retain};
