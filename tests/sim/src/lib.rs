//! Both cores on a virtual network, in one thread, with one seeded source of chance: every fault that the failure matrix
//! names and that a core can see, and the promises that must hold all the same.
//!
//! [`run`] plays a [`Scenario`] to its end and checks it; [`Scenario::drawn`] makes one of a seed. A seed that fails is
//! played again with `ATOLL_SIM_TRACE=1 ATOLL_SIM_FIRST=SEED ATOLL_SIM_SEEDS=1`.

mod account;
mod actions;
mod clients;
mod evictions;
mod faults;
mod history;
mod journal;
mod leading;
mod machine;
mod network;
mod restoring;
mod rng;
mod scenario;
mod server;
mod shell;
mod site;
mod sources;
mod streams;
mod transfers;
mod verdict;
pub mod workload;
mod world;

pub use account::{Account, account};
pub use rng::{Digest, Rng};
pub use scenario::{Cut, Kill, Outage, Restore, Revocation, Scenario, Who};
pub use verdict::{Ending, Seen, SeenExecution, Sight, look, run};
